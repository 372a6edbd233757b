"""One function per template: plain values in (str, int, float, bool and lists of them), ``Html`` out.

What a function is given as text is escaped by the template; what another function here made is ``Html`` and goes in as it
is. Numbers become text here, so that there is one place that says how a number looks.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache

from sae_vis._templates import Html, Template, escape, join, template
from sae_vis.utils_fns import (
    Piece,
    decimals_for,
    format_signed,
    format_ticks,
    join_bytes,
    level,
    printable,
    printable_bytes,
    shorten,
)

NOTHING = Html("")
TOKEN_LIMIT = 48  # characters of a token that are shown; the title of a longer one tells more
TITLE_LIMIT = 400
_SIMPLE = re.compile(r" ?[!#-%(-;=?-~]+(?: [!#-%(-;=?-~]+)*")  # visible, and none of it means anything in HTML

# --- token text --------------------------------------------------------------------------------------------------


def token_text(text: str) -> Html:
    """A token's text with its whitespace made visible and everything invisible named; never more than a line."""
    if len(text) <= TOKEN_LIMIT and _SIMPLE.fullmatch(text):  # most of a vocabulary
        return Html(_mark("·") + text[1:]) if text[0] == " " else Html(text)
    shown = _pieces(printable(shorten(text, TOKEN_LIMIT)))
    if len(text) <= TOKEN_LIMIT:
        return shown
    title = "".join(piece.text for piece in printable(shorten(text, TITLE_LIMIT)))
    return template("token_long.html").fill(text=shown, title=f"{len(text):,} characters: {title}")


def token_bytes(hex_text: str) -> Html:
    """A token that is only part of a character: its bytes as codes, and as text what of it is whole."""
    return _pieces(printable_bytes(bytes.fromhex(hex_text)))


def unknown_token(token: int) -> Html:
    """A token whose text is not known."""
    return template("token_code.html").fill(code=f"id {token}")


def joined_tokens(shown: Sequence[Html], hex_texts: Sequence[str]) -> list[Html]:
    """Tokens beside each other, those that make up a character together shown as that character.

    Args:
        shown: how each token looks on its own.
        hex_texts: the bytes of those that are part of a character, "" for the others.
    """
    joined = join_bytes([bytes.fromhex(text) if text else None for text in hex_texts])
    return [
        alone if text is None else token_text(text) if text else _mark("‹")
        for alone, text in zip(shown, joined, strict=True)
    ]


def _pieces(pieces: Sequence[Piece]) -> Html:
    parts: list[Html] = []
    for kind, text in pieces:
        if kind == "text":
            parts.append(escape(text))
        elif kind == "mark":
            parts.append(_mark(text))
        else:
            parts.append(template("token_code.html").fill(code=text))
    return join(parts)


@lru_cache(1024)  # there are few, mostly one space
def _mark(marks: str) -> Html:
    if marks[0] in "‹◌":  # of a character, not before a word: no line breaks there
        return template("token_mark_inside.html").fill(mark=marks)
    return template("token_mark.html").fill(mark=marks)


class TokenPrinter:
    """How each token of a vocabulary is shown; every text is made printable once."""

    def __init__(self, vocab: Mapping[int, str], vocab_bytes: Mapping[int, str]) -> None:
        self._vocab = vocab
        self._bytes = vocab_bytes
        self._shown: dict[int, Html] = {}

    @property
    def vocab(self) -> Mapping[int, str]:
        """The texts of the tokens."""
        return self._vocab

    @property
    def vocab_bytes(self) -> Mapping[int, str]:
        """The bytes (hex) of the tokens that are only part of a character."""
        return self._bytes

    def one(self, token_id: int) -> Html:
        """A token by itself."""
        shown = self._shown.get(token_id)
        if shown is None:
            if token_id in self._bytes:
                shown = token_bytes(self._bytes[token_id])
            elif token_id in self._vocab:
                shown = token_text(self._vocab[token_id])
            else:
                shown = unknown_token(token_id)
            self._shown[token_id] = shown
        return shown

    def sequence(self, token_ids: Sequence[int]) -> list[Html]:
        """Tokens beside each other: those that make up a character together are shown as that character."""
        known = self._shown
        try:
            shown = [known[token_id] for token_id in token_ids]
        except KeyError:
            shown = [self.one(token_id) for token_id in token_ids]
        if self._bytes.keys().isdisjoint(token_ids):
            return shown
        return joined_tokens(shown, [self._bytes.get(token_id, "") for token_id in token_ids])

    def text(self, token_id: int) -> str:
        """A token in an error message."""
        return f"{self._vocab[token_id][:20]!r}" if token_id in self._vocab else f"id {token_id}"


# --- sequences ---------------------------------------------------------------------------------------------------


@lru_cache(2**16)  # shares have two decimals: with one effect there are fewer
def token_attributes(activation: float, effect: float, bold: bool, ignored: bool, full_effect: float = 0.0) -> Html:
    """How a token of a sequence is coloured; nothing for most.

    Args:
        activation: 0 to 1 of the feature's maximum, for the background.
        effect: -1 to 1 of the feature's largest effect on the loss, for the underline; negative lowers the loss.
        bold: whether this is the token that the sequence was chosen for.
        ignored: whether the token's position is left out of every number.
        full_effect: like ``effect``, of the full ablation, where both are there.
    """
    styles = [f"--a:{_short(activation)}"] if activation else []
    if effect:
        styles.append(f"--{'h' if effect < 0 else 'r'}:{_short(abs(effect))}")
    if full_effect:
        styles.append(f"--{'fh' if full_effect < 0 else 'fr'}:{_short(abs(full_effect))}")
    names = " ".join(name for name, given in (("b", bold), ("x", ignored)) if given)
    attributes = f' class="{names}"' if names else ""
    return Html(f'{attributes} style="{";".join(styles)}"' if styles else attributes)


def _short(share: float) -> str:
    return f"{share:.2f}".lstrip("0").rstrip("0").rstrip(".")


def sequence(texts: Sequence[Html], attributes: Sequence[Html], value: str) -> Html:
    """A line of tokens with ``value`` before it; each token has its printable text and its ``token_attributes``."""
    (before, between, after), (start, middle, end) = _sequence_pieces()
    # There are hundreds of tokens for each feature: their pieces are joined at once, all of them Html.
    parts: list[str] = [end + start, "", middle, ""] * len(texts)
    parts[1::4], parts[3::4] = attributes, texts
    if parts:
        parts[0] = start
        parts.append(end)
    needs = frozenset[str]()
    for text in texts:
        if text.needs:  # a plain str has none: what is no Html cannot slip through
            needs |= text.needs
    return Html("".join((before, escape(value), between, *parts, after)), needs)


@cache
def _sequence_pieces() -> tuple[list[str], list[str]]:
    line, token = template("sequence_template.html"), template("token_template.html")
    return line.pieces("value", "tokens"), token.pieces("attributes", "text")


def sequence_group(title: str, detail: str, sequences: Sequence[Html]) -> Html:
    """A titled group of sequences."""
    return template("sequence_group_template.html").fill(
        title=shorten(title, TITLE_LIMIT), detail=detail, sequences=join(sequences)
    )


def sequence_multi_group(legend: Html, groups: Sequence[Html], hover: Html) -> Html:
    """All groups of a feature, with the legend above them and the data that hovering shows."""
    return template("sequence_multi_group.html").fill(legend=legend, groups=join(groups), hover=hover)


def legend(largest: str, loss: Html) -> Html:
    """What the colours of a token mean."""
    return template("legend.html").fill(largest=largest, loss=loss)


def loss_key(ablations: Sequence[str], hows: Sequence[str]) -> Html:
    """What the underlines mean, and which effect on the loss they show: a choice where there are two.

    ``ablations`` are "direct", "full" or both, ``hows`` says of each in a few words what it is.
    """
    if len(ablations) == 1:
        return template("loss_key.html").fill(how=template("loss_how.html").fill(how=hows[0]))
    choice = template("loss_choice.html")
    choices = [
        choice.fill(ablation=ablation, how=how, checked="true" if first else "false", tab=0 if first else -1)
        for ablation, how, first in zip(ablations, hows, (True, False), strict=True)
    ]
    return template("loss_key.html").fill(how=template("loss_switch.html").fill(choices=join(choices)))


def hover_data(json: Html) -> Html:
    """The numbers behind the sequences of a panel, for the hover text."""
    return template("hover_data.html").fill(json=json)


def hovertext() -> Html:
    """The hover text of a page, of which there is one; the script fills it."""
    return template("hovertext.html").fill()


# --- tables ------------------------------------------------------------------------------------------------------


def numbers_table(title: str, heads: Sequence[str], *columns: Sequence[str]) -> Html:
    """A small table: the first column names a neuron or a feature, the one or two others are numbers; ``heads`` are titles."""
    row = template("numbers_row_of_two.html") if len(columns) == 2 else template("numbers_row_of_three.html")
    names = ("index", "first", "second")[: len(columns)]
    if not any(columns):
        columns = (["none"], [""], [""])[: len(columns)]
    rows = row.fill_each(**dict(zip(names, columns, strict=True)))
    return template("numbers_table.html").fill(title=title, heads=_heads(tuple(heads)), rows=rows)


@cache
def _heads(titles: tuple[str, ...]) -> Html:
    return join([template("numbers_head.html").fill(text=title) for title in titles])


def left_tables(tables: Sequence[Html]) -> Html:
    """The tables of aligned neurons and correlated features below each other."""
    return template("left_tables_template.html").fill(tables=join(tables))


@lru_cache(2**14)
def feature_link(feature: int) -> Html:
    """A link to another feature of the same page."""
    return template("feature_link.html").fill(feature=feature)


def outside_link(feature: int, url: str) -> Html:
    """A link to a feature's own page somewhere else."""
    return template("outside_link.html").fill(feature=feature, url=url)


def logits_table(title: str, kind: str, tokens: Sequence[Html], values: Sequence[float], largest: float) -> Html:
    """Tokens with their logit weights, shaded by size; ``kind`` is "negative" or "positive"."""
    decimals = decimals_for(largest, 3)
    decimals = min(4, decimals) if decimals < 6 else decimals  # four, unless they say nothing of the largest
    rows = template("logits_row.html").fill_each(
        level=[_short(abs(level(value, largest))) or "0" for value in values],
        token=tokens,
        value=[format_signed(value, decimals) for value in values],
    )
    return template("logits_table.html").fill(title=title, kind=kind, rows=rows)


def logits_tables(negative: Html, positive: Html) -> Html:
    """The two tables of logit weights beside each other."""
    return template("logits_tables.html").fill(negative=negative, positive=positive)


# --- plots -------------------------------------------------------------------------------------------------------

# The geometry of a plot, in the units of its viewBox; middle_plots.html draws the axis to fit.
PLOT_LEFT, PLOT_RIGHT, PLOT_TOP, PLOT_BOTTOM = 6.0, 306.0, 14.0, 82.0
PLOT_CHARACTER = 6.0  # the width of a digit, about
PIN_SLACK = 1e-3  # of the axis: the value and the axis were rounded apart


def middle_plot(
    kind: str, label: str, edges: Sequence[float], heights: Sequence[int], tick_vals: Sequence[float], pin: Html
) -> Html:
    """A histogram as inline SVG: one path for the bars below zero, one for the others, a baseline and round ticks.

    ``kind``, "activations" or "logits", decides the colours and which hover lines it gets; ``pin`` is a line from
    ``plot_pin`` that stays, or ``NOTHING``.
    """
    low, high = edges[0], edges[-1]
    inside = [tick for tick in tick_vals if low <= tick <= high]
    at = [plot_x(tick, low, high) for tick in inside]
    places = list(map(_short_place, at))
    labels = format_ticks(inside)
    below = [2 * index + 1 for index in range(len(heights)) if edges[index] + edges[index + 1] < 0]
    split = len(below)  # edges rise, so the bars below zero come first
    return template("middle_plots.html").fill(
        kind=kind,
        label=label,
        scale=f"{float(low)!r} {float(high)!r} {PLOT_LEFT:g} {PLOT_RIGHT:g}",
        count=f"{max(heights):,}",
        lower=_bars(heights, 0, split),
        upper=_bars(heights, split, len(heights)),
        tick_lines="".join(f"M{place} 82v3.5" for place in places),
        tick_labels=_tick_labels(template("plot_tick.html"), places, labels, _with_room(at, labels)),
        pin=pin,
    )


def _tick_labels(tick: Template, places: Sequence[str], labels: Sequence[str], shown: range) -> Html:
    return tick.fill_each(x=[places[i] for i in shown], label=[labels[i] for i in shown])


def _with_room(places: Sequence[float], labels: Sequence[str]) -> range:
    """Which ticks get their label: all, or every second or third one where they would touch; zero among them.

    ``places`` rise. Where some lie on each other, as a file may have them, one label has to do.
    """
    if len(labels) < 2:
        return range(len(labels))
    widest = max(map(len, labels)) * PLOT_CHARACTER + PLOT_CHARACTER
    narrowest = min(after - before for before, after in itertools.pairwise(places))
    step = math.ceil(widest / max(narrowest, widest / len(labels)))
    return range(labels.index("0") % step if "0" in labels else 0, len(labels), step)


def plot_x(value: float, low: float, high: float) -> float:
    """Where a value lies on a plot's axis."""
    return PLOT_LEFT + (PLOT_RIGHT - PLOT_LEFT) * ((value - low) / (high - low))


def plot_pin(value: float, text: str, low: float, high: float) -> Html:
    """A line with a label that marks a value on a plot; one beyond the axis stands at its end, with an arrow.

    ``js/tooltip.js`` draws the same lines on hover.
    """
    slack = (high - low) * PIN_SLACK
    text = f"← {text}" if value < low - slack else f"{text} →" if value > high + slack else text
    x = plot_x(min(high, max(low, value)), low, high)
    anchor = "end" if x > (PLOT_LEFT + PLOT_RIGHT) / 2 else "start"
    label_x = _short_place(x - 3 if anchor == "end" else x + 3)
    return template("plot_pin.html").fill(x=_short_place(x), label_x=label_x, anchor=anchor, label=text)


def _bars(heights: Sequence[int], start: int, stop: int) -> str:
    """The path of some bars of a histogram. What was counted at all is at least one unit tall."""
    before, behind = _around_bars(len(heights))
    scale = (PLOT_BOTTOM - PLOT_TOP) / max(1, *heights)
    return "".join(
        [
            f"{before[index]}{_short_place(max(1.0, heights[index] * scale))}{behind}"
            for index in range(start, stop)
            if heights[index]
        ]
    )


@lru_cache(2**6)
def _around_bars(n: int) -> tuple[list[str], str]:
    """What stands in a path before the height of each of ``n`` bars, and behind it."""
    width = (PLOT_RIGHT - PLOT_LEFT) / n
    gap = min(1.0, width / 6)
    before = [f"M{_short_place(PLOT_LEFT + index * width + gap / 2)} 82v-" for index in range(n)]
    return before, f"h{_short_place(width - gap, 2)}V82"


def _short_place(value: float, decimals: int = 1) -> str:
    return f"{value:.{decimals}f}".rstrip("0").rstrip(".")


def activations_histogram(summary: str, plot: Html) -> Html:
    """The panel of the activations histogram."""
    return template("activations_histogram.html").fill(summary=summary, plot=plot)


def logits_histogram(summary: str, plot: Html) -> Html:
    """The panel of the logits histogram."""
    return template("logits_histogram.html").fill(summary=summary, plot=plot)


def empty(text: str) -> Html:
    """A calm sentence where a panel has nothing to show."""
    return template("empty.html").fill(text=text)


# --- a feature ---------------------------------------------------------------------------------------------------


def label(text: str) -> Html:
    """A feature's label, kept from turning the text around it."""
    return template("label.html").fill(text=shorten(text, 200)) if text else NOTHING


def stats(names: Sequence[str], values: Sequence[str]) -> Html:
    """Pairs of a name and a value in one line."""
    return template("stats.html").fill(stats=template("stat.html").fill_each(name=names, value=values))


def column(names: Sequence[str], components: Sequence[Html], width: int, height: int = 0) -> Html:
    """A column of panels; a ``width`` of 0 takes what they need. In a column of sequences it is a group's least width.

    One taller than its ``height`` (0: any) scrolls.
    """
    sizes = [f"--{name}:{int(size)}px" for name, size in (("w", width), ("tall", height)) if size]
    size = Html(f' style="{";".join(sizes)}"') if sizes else NOTHING
    return template("column.html").fill(names=" ".join(names), components=join(components), size=size)


def feature(index: int, label: Html, stats: Html, columns: Sequence[Html], border: bool, height: int) -> Html:
    """A feature's panels with its heading; columns taller than ``height`` (0: any) scroll."""
    return template("feature.html").fill(
        index=index,
        label=label,
        stats=stats,
        columns=join(columns),
        style=" bordered" if border else "",
        size=Html(f' style="--height:{int(height)}px"') if height else NOTHING,
    )


# --- pages -------------------------------------------------------------------------------------------------------


def notes(texts: Sequence[str]) -> Html:
    """What a reader must know of the numbers on the page."""
    if not texts:
        return NOTHING
    return template("notes.html").fill(notes=join(template("note.html").fill(text=text) for text in texts))


def feature_selector(current: int, count: int) -> Html:
    """Choose a feature: previous, next, or by number or label."""
    width = max(6, len(str(current)) + 2)
    return template("feature_selector.html").fill(current=current, width=width, count=f"of {count:,}")


def features_page(
    title: str,
    subtitle: str,
    selector: Html,
    notes: Html,
    feature: Html,
    footer: str,
    hovertext: Html,
    overview: Html = NOTHING,
) -> Html:
    """The body of the feature-centric page."""
    return template("features_page.html").fill(
        title=title,
        subtitle=subtitle,
        selector=selector,
        notes=notes,
        feature=feature,
        footer=footer,
        hovertext=hovertext,
        overview=overview,
    )


def feature_finder(current: int, count: int) -> Html:
    """What leads to a feature, at the top of a page of several: the overview, the search, the selector."""
    return template("feature_finder.html").fill(selector=feature_selector(current, count))


def overview(opens: str, count: int) -> Html:
    """The place of the overview, which the scripts fill; ``opens``, "overview" or "feature", is what is shown at first."""
    return template("overview.html").fill(opens=opens, count=count, plots=template("scatter.html").fill())


# --- the prompt-centric view -------------------------------------------------------------------------------------


def prompt_token(token: Html, label: str, n_active: int, largest: int, chosen: bool, ignored: bool) -> Html:
    """A token of the strip above the columns, with the number of features that are active on it."""
    styles = [f"--n:{_short(level(n_active, largest))}"] if n_active else []
    attributes = (' class="x"' if ignored else "") + (f' style="{styles[0]}"' if styles else "")
    return template("prompt_token.html").fill(
        token=token,
        label=label,
        n_active=n_active,
        checked="true" if chosen else "false",
        tab=0 if chosen else -1,
        style=Html(attributes),
    )


def prompt_metric(metric: str, name: str, chosen: bool) -> Html:
    """A button that ranks the columns by another score."""
    return template("prompt_metric.html").fill(
        metric=metric, name=name, checked="true" if chosen else "false", tab=0 if chosen else -1
    )


def prompt_sequence(sequence: Html, hover: Html) -> Html:
    """The prompt in a feature's column, coloured by the feature."""
    return template("prompt_sequence.html").fill(sequence=sequence, hover=hover)


def top_sequences(group: Html, hover: Html) -> Html:
    """The feature's top activations in a prompt's column."""
    return template("top_sequences.html").fill(group=group, hover=hover)


def prompt_column(
    feature: int, link: Html, label: Html, rank: str, score: str, columns: Sequence[Html], border: bool
) -> Html:
    """One feature's column of the prompt-centric page."""
    return template("prompt_column.html").fill(
        feature=feature,
        link=link,
        label=label,
        rank=rank,
        score=score,
        columns=join(columns),
        style=" bordered" if border else "",
    )


def prompt_page(
    title: str,
    subtitle: str,
    notes: Html,
    tokens: Sequence[Html],
    metrics: Sequence[Html],
    about: str,
    legend: Html,
    columns: Sequence[Html],
    none: str,
    footer: str,
    hovertext: Html,
    whole: Html = NOTHING,
) -> Html:
    """The body of the prompt-centric page; ``none`` is said where no feature is ranked, ``whole`` tells of all tokens."""
    return template("prompt_page.html").fill(
        title=title,
        subtitle=subtitle,
        notes=notes,
        tokens=join(tokens),
        metrics=join(metrics),
        about=about,
        legend=legend,
        columns=join(columns),
        none=none,
        none_hidden=Html(" hidden") if columns else NOTHING,
        footer=footer,
        hovertext=hovertext,
        whole=whole,
    )


# --- the tokens of a feature ---------------------------------------------------------------------------------------


def tokens_table(
    detail: str,
    summary: str,
    tokens: Sequence[Html],
    rates: Sequence[str],
    occurrences: Sequence[str],
    means: Sequence[str],
    shares: Sequence[str],
    bars: Sequence[float],
) -> Html:
    """The tokens that a feature fires on, below a sentence; ``bars`` are their shares of the activation from 0 to 1."""
    rows = template("tokens_row.html").fill_each(
        token=tokens,
        rate=rates,
        occurrences=occurrences,
        mean=means,
        share=shares,
        bar=[_short(bar) or "0" for bar in bars],
    )
    return template("tokens_table.html").fill(detail=detail, summary=summary, rows=rows)


EVEN_TOP, EVEN_BOTTOM = 10.0, 46.0  # of the plot of positions, whose axis positions_plot.html draws


def positions_plot(
    label: str, edges: Sequence[int], heights: Sequence[int], expected: Sequence[float], tick_vals: Sequence[float]
) -> Html:
    """A small histogram as inline SVG, with a line at the expected heights."""
    low, high = edges[0], edges[-1]
    scale = (EVEN_BOTTOM - EVEN_TOP) / max(1.0, *heights, *expected)
    unit = (PLOT_RIGHT - PLOT_LEFT) / (high - low)
    gap = min(1.0, unit * (edges[1] - edges[0]) / 6)
    bars, even, before = list[str](), list[str](), ""
    for index, (height, by_chance) in enumerate(zip(heights, expected, strict=True)):
        width = unit * (edges[index + 1] - edges[index])
        top = EVEN_BOTTOM - (max(1.0, height * scale) if height else 0.0)
        bars.append(f"V{top:.0f}h{_short_place(width - gap, 2)}V46h{_short_place(gap, 2)}")
        level_of_chance = _short_place(EVEN_BOTTOM - by_chance * scale)
        if level_of_chance != before:  # mostly it is level
            even.append(f"{f'H{_short_place(plot_x(edges[index], low, high))}' if even else 'M6 46'}V{level_of_chance}")
        before = level_of_chance
    at = [plot_x(tick, low, high) for tick in tick_vals]
    places, labels = list(map(_short_place, at)), format_ticks(tick_vals)
    return template("positions_plot.html").fill(
        label=label,
        count=f"{max(heights):,}",
        bars="".join(bars),
        even=f"{''.join(even)}H306",
        tick_lines="".join(f"M{place} 46v3.5" for place in places),
        tick_labels=_tick_labels(template("positions_tick.html"), places, labels, _with_room(at, labels)),
    )


def positions_histogram(plot: Html) -> Html:
    """The panel of the positions in the row."""
    return template("positions_histogram.html").fill(plot=plot)


def counterexamples(groups: Sequence[Html], hover: Html) -> Html:
    """The groups of examples where a feature does not fire."""
    return template("counterexamples.html").fill(groups=join(groups), hover=hover)


# --- neighbours, shares and near-duplicates ----------------------------------------------------------------------


def neighbours(tables: Sequence[Html]) -> Html:
    """The tables of what lies near a feature."""
    return template("neighbours.html").fill(tables=join(tables))


def moments(names: Sequence[str], values: Sequence[str]) -> Html:
    """The moments of a feature's activations in one line."""
    return template("moments.html").fill(moments=template("moment.html").fill_each(name=names, value=values))


def shares(kinds: Sequence[str], names: Sequence[str], levels: Sequence[float], texts: Sequence[str]) -> Html:
    """Bars beside each other: what an interval holds of the whole. ``kinds`` decide their colours."""
    drawn = zip(kinds, names, levels, texts, strict=True)
    return template("shares.html").fill(shares=join(_share(*one) for one in drawn))


@lru_cache(2**12)
def _share(kind: str, name: str, level: float, text: str) -> Html:
    return template("share.html").fill(kind=kind, name=name, level=_short(level) or "0", text=text)


def near_duplicate(sequence: Html) -> Html:
    """An example that nearly repeats one above it."""
    return template("near_duplicate.html").fill(sequence=sequence)


def near_duplicates_switch(count: int) -> Html:
    """The control that hides all near-duplicates of the page; nothing where a feature has none."""
    return template("near_duplicates_switch.html").fill(count=f"{count:,}") if count else NOTHING


def part(component: str, panel: Html) -> Html:
    """A panel with the button that tells what it is."""
    return template("part.html").fill(name=component.replace("_", " "), panel=panel)


def abouts(components: Sequence[str], titles: Sequence[str], texts: Sequence[str], needs: Sequence[str]) -> Html:
    """What the panels of a page are, once for the page, which also needs the files ``needs``."""
    item = template("about.html")
    items = zip(components, titles, texts, strict=True)
    filled = template("abouts.html").fill(
        items=join(
            item.fill(component=component.replace("_", " "), title=title, text=text) for component, title, text in items
        )
    )
    return Html(filled, filled.needs.union(needs))
