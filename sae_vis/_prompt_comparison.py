"""The comparison of two prompts: what was fetched, how it is drawn, how it is saved. No computation."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sae_vis import _columns, _furniture, _json, _page, _rows, _text, html_fns
from sae_vis._checks import check, check_feature_idx, check_finite, check_hex
from sae_vis._distribution_data import ActivationsData, LogitsData
from sae_vis._errors import InputError
from sae_vis._page_context import LOSS_SCORES, SCORE_NAMES, PageContext, Provenance, ScoreName
from sae_vis._params import FeatureVisParams
from sae_vis._prompt_data import METRICS, checked_url
from sae_vis._prompt_panels import HEAT_ROWS, HeatMetric, HeatRow, difference_metric, heat_data, heat_html, heat_rows
from sae_vis._saved import SavedPage, TextTwin
from sae_vis._sequence_data import SequenceData, SequenceGroupData, hover_of, loss_key_of, token_ids_of
from sae_vis._templates import Html, join, template
from sae_vis.html_fns import NOTHING, TokenPrinter
from sae_vis.utils_fns import decimals_for, format_general, format_quantile, format_signed, round_significant

Pair = tuple[int | None, int | None]
Ranking = list[tuple[int, float]]
EXAMPLES = 8  # of the top activations that a column shows
DIFFERENCE_DIGITS = 6
NOISE = 1e-12  # what is left of sums that cancel


@dataclass
class ComparedFeature:
    """One feature on both prompts: its activations and effects, and the quantile of its activation at each position."""

    feature_idx: int
    sequence: SequenceData
    other_sequence: SequenceData
    quantiles: list[float]
    other_quantiles: list[float]
    activations: ActivationsData
    logits: LogitsData | None
    top_group: SequenceGroupData
    label: str | None = None

    def __post_init__(self) -> None:
        check_feature_idx(self, self.feature_idx)
        for name, sequence, quantiles in (
            ("quantiles", self.sequence, self.quantiles),
            ("other_quantiles", self.other_sequence, self.other_quantiles),
        ):
            n_tokens, n = len(sequence.token_ids), len(quantiles)
            check(n == n_tokens, self, f"{name} has {n} items for {n_tokens} tokens.")
            check(all(0.0 <= share <= 1.0 for share in quantiles), self, f"{name} must be from 0 to 1.")

    def get_html(
        self, page: PageContext | None = None, *, rank: str = "", score: str = "", bold: Pair = (None, None)
    ) -> Html:
        """The feature's column: both prompts, one under the other, and what tells of the feature itself."""
        page = page or PageContext()
        both = [self.sequence, self.other_sequence]
        page = _columns.for_feature(page, [*both, *self.top_group.sequences], self.activations, self.logits)
        link = join([str(self.feature_idx)])
        if page.feature_url:
            link = html_fns.outside_link(self.feature_idx, page.feature_url.replace("{feature}", str(self.feature_idx)))
        drawn = [one.get_html(page, bold_idx=-1 if at is None else at) for one, at in zip(both, bold, strict=True)]
        tops = self.top_group.get_html(page, examples=EXAMPLES)
        panels = [
            template("compared_sequences.html").fill(first=drawn[0], other=drawn[1], hover=hover_of(both, page)),
            self.activations.get_html(page),
            self.logits.tables_html(page, rows=5) if self.logits else NOTHING,
            html_fns.top_sequences(tops, hover_of(self.top_group.sequences[:EXAMPLES], page)),
        ]
        column = html_fns.column(["has-prompt"], panels, 420)
        label = html_fns.label(self.label or "")
        return html_fns.prompt_column(self.feature_idx, link, label, rank, score, [column], page.params.border)

    def example_rows(self) -> list[int]:
        """The rows of the examples that the column shows, the strongest first, each once."""
        return list(dict.fromkeys(sequence.row for sequence in self.top_group.sequences[:EXAMPLES]))

    def token_ids(self) -> set[int]:
        """Every token that the column may name."""
        return token_ids_of([self.sequence, self.other_sequence, *self.top_group.sequences])


@dataclass(repr=False)
class PromptComparisonData(SavedPage, TextTwin):
    """Which features differ between two prompts, by aligned token and in all.

    ``pairs`` aligns their tokens in order: positions of the first and the other, None where one has no counterpart.
    ``differences[score_name][pair]`` lists ``(feature, difference)``, the score on the other prompt less that on the first, the
    largest in size first. ``totals[score_name]`` lists the sums over all pairs. A feature that is not active has the score 0, and
    so has every one where a token has no counterpart. ``heat_map[score_name]`` has the rows of the features with the largest
    difference at any pair, the largest in size first; their positions are indices of ``pairs``.

    ``compared_dict`` has the features that are listed anywhere, and ``rows`` the whole rows of their examples, where the
    features' own data has them. ``heat_map`` and ``rows`` are empty in older files.
    """

    prompt_token_ids: list[int]
    other_token_ids: list[int]
    pairs: list[tuple[int | None, int | None]]
    vocab: dict[int, str]
    vocab_bytes: dict[int, str]
    compared_dict: dict[int, ComparedFeature]
    params: FeatureVisParams
    provenance: Provenance
    differences: dict[ScoreName, list[list[tuple[int, float]]]]
    totals: dict[ScoreName, list[tuple[int, float]]]
    heat_map: dict[ScoreName, list[HeatRow]] = field(default_factory=dict)
    rows: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.compared_dict = dict(sorted(self.compared_dict.items()))
        for which, ids in enumerate((self.prompt_token_ids, self.other_token_ids)):
            places = [pair[which] for pair in self.pairs if pair[which] is not None]
            in_order = places == list(range(len(ids)))
            check(in_order, self, f"pairs must name each of the {len(ids)} positions once, got {places[:8]}.")
        check((None, None) not in self.pairs, self, "a pair of nothing and nothing.")
        for feature, data in self.compared_dict.items():
            check(feature == data.feature_idx, self, f"key {feature} holds feature {data.feature_idx}.")
            shown = (len(data.sequence.token_ids), len(data.other_sequence.token_ids))
            fits = shown == (len(self.prompt_token_ids), len(self.other_token_ids))
            check(fits, self, f"feature {feature} shows prompts of {shown} tokens.")
        self._check_rankings()
        self._check_heat_map()
        check_hex(self, self.vocab_bytes)

    def _check_rankings(self) -> None:
        known = self.differences.keys() == self.totals.keys() and set(self.totals) <= set(SCORE_NAMES)
        check(known, self, f"scores {list(self.differences)} and {list(self.totals)}; known: {SCORE_NAMES}.")
        both = all(one.sequence.full and one.other_sequence.full for one in self.compared_dict.values())
        check(
            both or "loss_effect_full" not in self.totals,
            self,
            "loss_effect_full is ranked, but a feature has no full effects.",
        )
        for name, of_pairs in self.differences.items():
            n, expected = len(of_pairs), len(self.pairs)
            check(n == expected, self, f"differences[{name!r}] has {n} pairs, expected {expected}.")
            for ranked in (*of_pairs, self.totals[name]):
                features = [feature for feature, _ in ranked]
                absent = next((feature for feature in features if feature not in self.compared_dict), None)
                check(absent is None, self, f"differences name feature {absent}, which has no data.")
                check(len(set(features)) == len(features), self, f"a ranking by {name!r} names a feature twice.")
                check_finite(self, differences=[difference for _, difference in ranked])

    def _check_heat_map(self) -> None:
        for name, rows in self.heat_map.items():
            check(name in self.totals, self, f"heat_map has the score {name!r}, which totals have not.")
            for row in rows:
                known = row.feature_idx in self.compared_dict
                check(known, self, f"heat_map names feature {row.feature_idx}, which has no data.")
                last, n = row.positions[-1], len(self.pairs)
                check(last < n, self, f"heat_map has pair {last} of {n} pairs.")

    def __repr__(self) -> str:
        lengths = f"{len(self.prompt_token_ids)} and {len(self.other_token_ids)} tokens"
        return f"PromptComparisonData({lengths}, {len(self.compared_dict)} features of {self.provenance.model})"

    def get_html(
        self,
        page: PageContext | None = None,
        *,
        pair: int | None = None,
        score_name: ScoreName | None = None,
        feature_url: str | None = None,
    ) -> Html:
        """The whole page as one document: every metric and every pair of tokens, the chosen ones shown at the start.

        Args:
            page: what is known of the page; None: this data's own.
            pair: an index of ``pairs``; None: the totals over all of them.
            score_name: one of the scores of ``totals``; None: the first.
            feature_url: where a feature's own page is, e.g. ``"features.html#feature={feature}"``.

        Raises:
            InputError: if there is no such pair or score, or the address could run a script.
        """
        name = self._score_name(score_name)
        if pair is not None and (
            not isinstance(pair, int) or isinstance(pair, bool) or not 0 <= pair < len(self.pairs)
        ):
            raise InputError(f"pair must be an index of the aligned tokens, 0 to {len(self.pairs) - 1}, got {pair!r}.")
        page = dataclasses.replace(
            page or PageContext(TokenPrinter(self.vocab, self.vocab_bytes), self.params, self.provenance),
            score_name=name,
            feature_url=checked_url(feature_url),
        )
        return _document(self, page, 0 if pair is None else pair + 1)

    def save_html(
        self,
        path: str | os.PathLike[str],
        pair: int | None = None,
        score_name: ScoreName | None = None,
        feature_url: str | None = None,
    ) -> None:
        """Write the whole page to one file, which opens from disk with no network; the arguments are ``get_html``'s."""
        document = self.get_html(pair=pair, score_name=score_name, feature_url=feature_url)
        _json.write_atomic(path, document.encode())

    def to_text(self, score_name: ScoreName | None = None, at_most: int = 3) -> str:
        """The comparison as plain text, for where no HTML is shown: the features that differ most, in all and at each pair.

        Raises:
            InputError: if there is no such score, or ``at_most`` is no int from 0 on.
        """
        name, at_most = self._score_name(score_name), _text.checked_number("at_most", at_most)
        texts = _text.TokenTexts(self.vocab, self.vocab_bytes)
        lines = [texts.line(ids) for ids in (self.prompt_token_ids, self.other_token_ids)]
        told = [_text.plain(repr(self)), f"  features by the difference of {name}, largest first:"]
        for position, ranked in enumerate(_ranked(self, name)):
            first, other = self.pairs[position - 1] if position else (None, None)
            own = "all tokens" if not position else "–" if first is None else lines[0][first]
            theirs = "" if not position else "–" if other is None else lines[1][other]
            shown = [self._told(name, position, *one) for one in ranked[:at_most]]
            told.append(_text.pair_line(own, theirs, shown))
        return "\n".join(told)

    def _score_name(self, asked: ScoreName | None) -> ScoreName:
        name = next(iter(self.totals), "act_size") if asked is None else asked
        if not isinstance(name, str) or name not in self.totals:
            raise InputError(f"There is no score {name!r} in this data. There is: {', '.join(self.totals) or 'none'}.")
        return name

    def _told(self, name: ScoreName, position: int, feature: int, difference: float) -> str:
        label = _text.plain(self.compared_dict[feature].label or "")
        return f"{feature}{f' {label}' if label else ''} ({_text_of(self, name, position, feature, difference)})"


# --- the page ------------------------------------------------------------------------------------------------------

_WHAT: dict[ScoreName, str] = {
    "act_size": "activation",
    "act_quantile": "quantile",
    "loss_effect": "loss",
    "loss_effect_full": "loss",
}
_ABOUT: dict[ScoreName, str] = {
    "act_size": "activation",
    "act_quantile": "quantile",
    "loss_effect": "loss effect",
    "loss_effect_full": "full loss effect",
}
_NONE = "No feature to show: none differs here."
_HEAT: dict[str, HeatMetric] = {
    name: difference_metric(_WHAT[name], long_name, rooted=name != "act_size") for name, long_name in _ABOUT.items()
}


def _document(data: PromptComparisonData, page: PageContext, position: int) -> Html:
    """The page. Position 0 of its strip stands for all tokens, the others for the pairs."""
    name = page.score_name
    ranked = _ranked(data, name)[position]
    bold = data.pairs[position - 1] if position else (None, None)
    columns = [
        data.compared_dict[feature].get_html(
            page, rank=f"#{rank}", score=_text_of(data, name, position, feature, score), bold=bold
        )
        for rank, (feature, score) in enumerate(ranked, 1)
    ]
    shown = {feature for feature, _ in ranked}
    packed = _page.all_packed(
        (feature, _page.pack(one.get_html(page))) for feature, one in data.compared_dict.items() if feature not in shown
    )
    heat = _heat_map(data)
    body = template("comparison_page.html").fill(
        subtitle=_furniture.subtitle_of(page.provenance),
        notes=_furniture.notes_of(page),
        strip=join(_strip(data, page, position)),
        metrics=join(html_fns.prompt_metric(one, METRICS[one][0], one == name) for one in data.totals),
        about=_about(name),
        legend=html_fns.legend("the feature’s maximum", loss_key_of(page)),
        heat=heat_html() if any(heat.values()) else NOTHING,
        columns=join(columns),
        none=_NONE,
        none_hidden=Html(" hidden") if columns else NOTHING,
        footer=_furniture.footer_of(page),
        hovertext=html_fns.hovertext(),
    )
    rows = _rows.chosen(data.rows, [one.example_rows() for one in data.compared_dict.values()])
    ids = {*data.prompt_token_ids, *data.other_token_ids}.union(*(f.token_ids() for f in data.compared_dict.values()))
    state: dict[str, Any] = {
        "position": position,
        "metric": name,
        "about": {one: _about(one) for one in data.totals},
        "none": dict.fromkeys(data.totals, _NONE),
        "labels": {feature: one.label for feature, one in data.compared_dict.items() if one.label},
        **_furniture.whose(page),
        "places": [[None, None], *data.pairs],
        "scores": {
            one: [
                [[feature, _text_of(data, one, place, feature, score)] for feature, score in at]
                for place, at in enumerate(_ranked(data, one))
            ]
            for one in data.totals
        },
    }
    cells = heat_data(heat, _HEAT, {f: one.label for f, one in data.compared_dict.items()}, _cell_text(data), first=1)
    elements = [
        _furniture.vocab_element(page, ids | _rows.token_ids(rows.values())),
        _page.data("rankings", state),
        _page.data("heat", cells),
        *_furniture.rows_element(rows),
        *packed,
    ]
    return _page.document(f"Two prompts · {_furniture.subtitle_of(page.provenance)}", body, elements)


def _ranked(data: PromptComparisonData, name: ScoreName) -> list[Ranking]:
    return [data.totals[name], *data.differences[name]]


def _about(name: ScoreName) -> str:
    return (
        f"The second prompt’s {_ABOUT[name]} less the first’s (0 where a token has no counterpart), largest differences first; "
        "for all tokens, the sum."
    )


def _text_of(data: PromptComparisonData, name: ScoreName, position: int, feature: int, difference: float) -> str:
    """What it is and the difference, behind the two scores where it is that of a pair."""
    return f"{_WHAT[name]} {_number_of(data, name, position, feature, difference)}"


def _number_of(data: PromptComparisonData, name: ScoreName, position: int, feature: int, difference: float) -> str:
    decimals = min(6, max(3, decimals_for(difference, 2)))
    if name == "act_quantile":
        difference, decimals = 100.0 * difference, min(4, max(2, decimals_for(100.0 * difference, 2)))
    unit = " %" if name == "act_quantile" else ""
    told = f"{format_signed(difference, decimals)}{unit}"
    if not position:
        return told
    pair, one = data.pairs[position - 1], data.compared_dict[feature]
    first, other = (0.0 if at is None else _score(one, name, which, at) for which, at in enumerate(pair))
    if name in LOSS_SCORES:
        return f"{format_signed(first, decimals)} → {format_signed(other, decimals)} ({told})"
    if name == "act_quantile":
        return f"{format_quantile(first)} → {format_quantile(other)} ({told})"
    return f"{format_general(first)} → {format_general(other)} ({told})"


def _score(one: ComparedFeature, name: ScoreName, which: int, at: int) -> float:
    if name == "act_quantile":
        return (one.other_quantiles if which else one.quantiles)[at]
    sequence = one.other_sequence if which else one.sequence
    if name == "act_size":
        return sequence.feat_acts[at]
    losses = sequence.full_losses() if name == "loss_effect_full" else sequence.loss_contribution
    return losses[at] or 0.0


def _heat_map(data: PromptComparisonData) -> dict[str, list[HeatRow]]:
    """The rows that are stored; of older files, those of the features that they have, from the features' own numbers."""
    stored: dict[str, list[HeatRow]] = {name: rows for name, rows in data.heat_map.items()}  # noqa: C416  # for mypy
    return stored or {
        name: heat_rows([_differences(data, name, pair) for pair in data.pairs], HEAT_ROWS, _HEAT[name].best)
        for name in data.totals
    }


def _differences(data: PromptComparisonData, name: ScoreName, pair: Pair) -> Ranking:
    """What of all features differs at a pair; there is no effect on the loss of a token that nothing predicts."""
    found = []
    for feature, one in data.compared_dict.items():
        if name in LOSS_SCORES and not _is_predicted(one, pair):
            continue
        first, other = (0.0 if at is None else _score(one, name, which, at) for which, at in enumerate(pair))
        difference = round_significant(other - first, DIFFERENCE_DIGITS)
        if abs(difference) > NOISE:
            found.append((feature, difference))
    return found


def _is_predicted(one: ComparedFeature, pair: Pair) -> bool:
    sequences = zip(pair, (one.sequence, one.other_sequence), strict=True)
    return all(at is None or sequence.loss_contribution[at] is not None for at, sequence in sequences)


def _cell_text(data: PromptComparisonData) -> Callable[[str, int, int, float], str]:
    def text(name: str, feature: int, pair: int, difference: float) -> str:
        return _number_of(data, name, pair + 1, feature, difference)  # type: ignore[arg-type]  # one of the scores

    return text


def _strip(data: PromptComparisonData, page: PageContext, chosen: int) -> list[Html]:
    """A button for all tokens, and one for each pair with both tokens, one under the other."""
    texts = [page.printer.sequence(ids) for ids in (data.prompt_token_ids, data.other_token_ids)]
    ids = (data.prompt_token_ids, data.other_token_ids)
    buttons = [_button("All tokens", NOTHING, NOTHING, "all", is_chosen=not chosen)]
    for index, pair in enumerate(data.pairs, 1):
        first, other = (_GAP if at is None else texts[which][at] for which, at in enumerate(pair))
        tokens = [None if at is None else ids[which][at] for which, at in enumerate(pair)]
        kind = "gap" if None in pair else "same" if tokens[0] == tokens[1] else "other"
        told = " and ".join("nothing" if at is None else f"position {at}" for at in pair)
        buttons.append(_button(f"Pair {index - 1}: {told}", first, other, kind, is_chosen=index == chosen))
    return buttons


_GAP = Html("<s>—</s>")


def _button(label: str, first: Html, other: Html, kind: str, *, is_chosen: bool) -> Html:
    return template("comparison_pair.html").fill(
        label=label,
        first=first if kind != "all" else Html("All"),
        other=other if kind != "all" else Html("tokens"),
        kind=kind,
        checked="true" if is_chosen else "false",
        tab=0 if is_chosen else -1,
    )
