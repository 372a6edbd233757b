"""The prompt-centric view: which features matter at each token of a prompt, how it is drawn and saved. No computation."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from sae_vis import _columns, _furniture, _json, _page, _rows, _text, html_fns
from sae_vis._checks import check, check_counts, check_feature_idx, check_finite, check_hex, check_same_length
from sae_vis._columns import Drawer
from sae_vis._distribution_data import ActivationsData, LogitsData
from sae_vis._errors import InputError, shown, some
from sae_vis._page_context import LOSS_SCORES, SCORE_NAMES, PageContext, Provenance, ScoreName
from sae_vis._params import FeatureVisParams, Layout
from sae_vis._prompt_panels import HEAT_ROWS, PROMPT_HEAT, HeatRow, ReconstructionData, heat_data, heat_html, heat_rows
from sae_vis._saved import SavedPage, TextTwin
from sae_vis._sequence_data import SequenceData, SequenceGroupData, hover_of, loss_key_of, token_ids_of
from sae_vis._templates import Html, join
from sae_vis.html_fns import TokenPrinter
from sae_vis.utils_fns import count, decimals_for, format_general, format_quantile, format_signed

# How each score is named, written in a column's title, and explained.
METRICS: dict[str, tuple[str, str]] = {
    "act_size": ("Activation", "The features with the largest activation on the chosen token."),
    "act_quantile": (
        "Quantile",
        "The features that are seldom as active as on the chosen token: the share of corpus tokens with a smaller activation.",
    ),
    "loss_effect": (
        "Loss effect",
        "The features active on the token before that lower the loss of predicting the chosen token most.",
    ),
    "loss_effect_full": (
        "Full loss effect",
        "Like the loss effect, but with the feature taken out at the hook point and everything later computed again.",
    ),
}


@dataclass
class PromptData:
    """One feature on a prompt, with what a column of the prompt-centric view shows of it."""

    feature_idx: int
    sequence: SequenceData
    activations: ActivationsData
    logits: LogitsData | None
    top_group: SequenceGroupData
    label: str | None = None

    def __post_init__(self) -> None:
        check_feature_idx(self, self.feature_idx)

    def get_html(self, page: PageContext | None = None, *, rank: str = "", score: str = "") -> Html:
        """The feature's column. With a position on the page, its token is bold and the histograms have their lines."""
        sequences = [self.sequence, *self.top_group.sequences]
        page = _columns.for_feature(page or PageContext(), sequences, self.activations, self.logits)
        link = join([str(self.feature_idx)])
        if page.feature_url:
            link = html_fns.outside_link(self.feature_idx, page.feature_url.replace("{feature}", str(self.feature_idx)))
        return html_fns.prompt_column(
            self.feature_idx,
            link,
            html_fns.label(self.label or ""),
            rank,
            score,
            _columns.columns(page.params.layout_of("prompt"), self, page, _prompt_drawers(self)),
            page.params.border,
        )

    def token_ids(self) -> set[int]:
        """Every token that occurs in the prompt, in the top sequences and in their effects."""
        return token_ids_of([self.sequence, *self.top_group.sequences])

    def example_rows(self) -> list[int]:
        """The rows of the examples beside the prompt, the strongest first, each once."""
        return list(dict.fromkeys(sequence.row for sequence in self.top_group.sequences))


def _prompt_drawers(data: PromptData) -> dict[str, Drawer]:
    """How a prompt's column draws its components: the same panels, with lines for the chosen position."""

    def act_pin(page: PageContext) -> float | None:
        # What acts on the prediction of a token is the activation on the token before it.
        at = page.seq_pos if page.seq_pos is None or page.score_name not in LOSS_SCORES else page.seq_pos - 1
        return data.sequence.feat_acts[at] or None if at is not None and at >= 0 else None

    def logit_pin(page: PageContext) -> float | None:
        if page.seq_pos is None or page.score_name not in LOSS_SCORES:
            return None
        return page.shown_logits.get(data.sequence.token_ids[page.seq_pos])

    return _columns.DRAWERS | {
        "prompt": lambda part, page, options: html_fns.prompt_sequence(
            part.get_html(page, bold_idx=page.seq_pos), hover_of([part], page)
        ),
        "activations_histogram": lambda part, page, options: part.get_html(page, pin=act_pin(page)),
        "logits_histogram": lambda part, page, options: part.histogram_html(page, pin=logit_pin(page)),
        "top_sequences": lambda part, page, options: html_fns.top_sequences(
            part.get_html(page, examples=options.get("examples")),
            hover_of(part.sequences[: options.get("examples")], page),
        ),
    }


@dataclass(repr=False)
class MultiPromptData(SavedPage, TextTwin):
    """Which features matter at each token of one prompt.

    ``scores[score_name][position]`` lists ``(feature, score)``, best first; ``n_active[position]`` counts the features
    with an activation there, of those that were asked for. ``heat_map[score_name]`` has the rows of the features with the
    best score at any position, the best first. ``reconstruction`` is None where it was not asked for. ``rows`` holds the whole
    rows of the features' strongest examples, where the features' own data has them.
    """

    prompt_token_ids: list[int]
    n_active: list[int]
    vocab: dict[int, str]
    vocab_bytes: dict[int, str]
    prompt_data_dict: dict[int, PromptData]
    params: FeatureVisParams
    provenance: Provenance
    scores: dict[ScoreName, list[list[tuple[int, float]]]]
    heat_map: dict[ScoreName, list[HeatRow]] = field(default_factory=dict)
    reconstruction: ReconstructionData | None = None
    rows: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.prompt_data_dict = dict(sorted(self.prompt_data_dict.items()))
        check_same_length(self, prompt_token_ids=self.prompt_token_ids, n_active=self.n_active)
        check_counts(self, n_active=self.n_active)
        n_tokens = len(self.prompt_token_ids)
        for name, positions in self.scores.items():
            check(name in SCORE_NAMES, self, f"unknown score {name!r}; known: {', '.join(SCORE_NAMES)}.")
            check(
                len(positions) == n_tokens,
                self,
                f"scores[{name!r}] has {len(positions)} positions, expected {n_tokens}.",
            )
            for position, ranked in enumerate(positions):
                distinct = len({feature for feature, _ in ranked})
                check(distinct == len(ranked), self, f"scores[{name!r}][{position}] names a feature twice.")
                for feature, score in ranked:
                    check(feature in self.prompt_data_dict, self, f"scores name feature {feature}, which has no data.")
                    check_finite(self, scores=score)
        for feature, data in self.prompt_data_dict.items():
            check(feature == data.feature_idx, self, f"key {feature} holds feature {data.feature_idx}.")
            shown = len(data.sequence.token_ids)
            check(shown == n_tokens, self, f"feature {feature} shows {shown} tokens of a prompt of {n_tokens}.")
        for name, rows in self.heat_map.items():
            check(name in self.scores, self, f"heat_map has the score {name!r}, which scores have not.")
            for row in rows:
                last, feature = row.positions[-1], row.feature_idx
                check(last < n_tokens, self, f"heat_map has position {last} of a prompt of {n_tokens} tokens.")
                check(feature in self.prompt_data_dict, self, f"heat_map names feature {feature}, which has no data.")
        if self.reconstruction and not self.reconstruction.reason:
            check_same_length(self, prompt_token_ids=self.prompt_token_ids, reconstruction=self.reconstruction.error)
        check_hex(self, self.vocab_bytes)

    def with_layout(self, layout: Layout | None) -> MultiPromptData:
        """The same data, whose columns have another layout (None: the default); nothing is computed.

        Raises:
            InputError: if a component does not belong in this view.
        """
        return dataclasses.replace(self, params=dataclasses.replace(self.params, prompt_layout=layout))

    def __repr__(self) -> str:
        n_tokens, n_features = len(self.prompt_token_ids), len(self.prompt_data_dict)
        columns = count(n_features, "feature")
        return f"MultiPromptData({count(n_tokens, 'token')}, {columns} of {_furniture.subtitle_of(self.provenance)})"

    def get_html(
        self,
        page: PageContext | None = None,
        *,
        seq_pos: int | None = None,
        score_name: ScoreName | None = None,
        feature_url: str | None = None,
    ) -> Html:
        """The whole page as one document: every metric and every position, the chosen ones shown at the start.

        Args:
            page: what is known of the page, e.g. other provenance; None: this data's own.
            seq_pos: an index of the prompt's tokens, BOS included; None: the last one at which a feature is ranked.
            score_name: "act_size", "act_quantile", "loss_effect" or "loss_effect_full"; None: "act_quantile", if it is there.
            feature_url: where a feature's own page is, e.g. ``"features.html#feature={feature}"``.

        Raises:
            InputError: if there is no such position or score, or the address could run a script.
        """
        score_name = self._score_name(score_name)
        page = dataclasses.replace(
            page or PageContext(TokenPrinter(self.vocab, self.vocab_bytes), self.params, self.provenance),
            seq_pos=self._seq_pos(seq_pos, score_name),
            score_name=score_name,
            feature_url=checked_url(feature_url),
        )
        return _prompt_document(self, page)

    def save_html(
        self,
        path: str | os.PathLike[str],
        seq_pos: int | None = None,
        score_name: ScoreName | None = None,
        feature_url: str | None = None,
    ) -> None:
        """Write the whole page to one file, which opens from disk with no network; the arguments are ``get_html``'s."""
        document = self.get_html(seq_pos=seq_pos, score_name=score_name, feature_url=feature_url)
        _json.write_atomic(path, document.encode())

    def to_text(self, score_name: ScoreName | None = None, at_most: int = 3) -> str:
        """The prompt as plain text, for where no HTML is shown: at each token the first features of a ranking.

        Raises:
            InputError: if there is no such score, or ``at_most`` is no int from 0 on.
        """
        name, at_most = self._score_name(score_name), _text.checked_number("at_most", at_most)
        tokens = _text.TokenTexts(self.vocab, self.vocab_bytes).line(self.prompt_token_ids)
        lines = []
        for position, ranked in enumerate(self.scores.get(name, [[] for _ in tokens])):
            told = []
            for feature, score in ranked[:at_most]:
                label = _text.plain(self.prompt_data_dict[feature].label or "")
                told.append(f"{feature}{f' {label}' if label else ''} ({_score_text(name, score)})")
            lines.append(_text.prompt_line(position, tokens[position], told))
        return "\n".join([_text.plain(repr(self)), f"  features by {name}, best first:", *lines])

    def _score_name(self, asked: ScoreName | None) -> ScoreName:
        if asked is None:
            return "act_quantile" if "act_quantile" in self.scores else next(iter(self.scores), "act_quantile")
        if not isinstance(asked, str) or asked not in self.scores:
            raise InputError(f"There is no score {asked!r} in this data. There is: {some(list(self.scores))}.")
        return asked

    def _seq_pos(self, asked: int | None, score_name: ScoreName) -> int:
        last = len(self.prompt_token_ids) - 1
        if asked is None:
            ranked = self.scores.get(score_name, [])
            return max((position for position, found in enumerate(ranked) if found), default=max(0, last))
        if not isinstance(asked, int) or isinstance(asked, bool) or not 0 <= asked <= last:
            printer = TokenPrinter(self.vocab, self.vocab_bytes)
            tokens = [f"{place} {printer.text(token_id)}" for place, token_id in enumerate(self.prompt_token_ids)]
            raise InputError(
                f"seq_pos must be an index of the prompt's tokens, 0 to {last}, got {asked!r}. {some(tokens, 40)}"
            )
        return asked


def checked_url(url: str | None) -> str | None:
    """An address that a link may have: http, https, or relative to the page."""
    if url is None:
        return None
    if not isinstance(url, str):
        raise InputError(f"feature_url must be a text or None, got {shown(url)}.")
    try:
        scheme = urlsplit(url).scheme
    except ValueError:
        scheme = "unreadable"
    # Browsers drop whitespace and controls out of an address before they read its scheme; a colon before any slash is one.
    hidden = any(char.isspace() or not char.isprintable() for char in url)
    if (
        hidden
        or scheme not in ("", "http", "https")
        or (not scheme and ":" in url.split("/")[0].split("#")[0].split("?")[0])
    ):
        raise InputError(
            f"feature_url must be an http(s) or relative address such as 'features.html#feature={{feature}}', got {url!r}."
        )
    if "{feature}" not in url:
        raise InputError(f"feature_url needs '{{feature}}' where the feature's index goes, got {url!r}.")
    return url


def _prompt_document(prompt: MultiPromptData, page: PageContext) -> Html:
    """The prompt-centric page. Columns shown at the start are plain HTML, the others packed: each is there once."""
    position, score_name = page.seq_pos or 0, page.score_name
    ranked = (prompt.scores.get(score_name) or [[]] * (position + 1))[position]
    columns = [
        prompt.prompt_data_dict[feature].get_html(page, rank=f"#{rank}", score=_score_text(score_name, score))
        for rank, (feature, score) in enumerate(ranked, 1)
    ]
    shown = {feature for feature, _ in ranked}
    bare = dataclasses.replace(page, seq_pos=None)
    heat = _heat_map(prompt)
    named = {f for positions in prompt.scores.values() for at in positions for f, _ in at}
    named |= {row.feature_idx for rows in heat.values() for row in rows}
    packed = _page.all_packed(
        (feature, _page.pack(data.get_html(bare)))
        for feature, data in prompt.prompt_data_dict.items()
        if feature not in shown and feature in named
    )
    body = html_fns.prompt_page(
        "SAE features on a prompt",
        _furniture.subtitle_of(page.provenance),
        _furniture.notes_of(page),
        _strip(prompt, page),
        [html_fns.prompt_metric(name, METRICS[name][0], name == score_name) for name in prompt.scores],
        METRICS[score_name][1],
        html_fns.legend("the feature’s maximum", loss_key_of(page)),
        columns,
        _none_ranked(score_name),
        _furniture.footer_of(page),
        join([html_fns.hovertext(), _columns.abouts(page.params.layout_of("prompt"))]),
        _whole_prompt(prompt, page, heat),
    )
    rows = _rows.chosen(prompt.rows, [data.example_rows() for data in prompt.prompt_data_dict.values()])
    ids = set(prompt.prompt_token_ids).union(*(data.token_ids() for data in prompt.prompt_data_dict.values()))
    ids |= _rows.token_ids(rows.values())
    state = {
        "position": position,
        "metric": score_name,
        "about": {name: METRICS[name][1] for name in prompt.scores},
        "none": {name: _none_ranked(name) for name in prompt.scores},
        "labels": {feature: data.label for feature, data in prompt.prompt_data_dict.items() if data.label},
        **_furniture.whose(page),
        "scores": {
            name: [[[feature, _score_text(name, score)] for feature, score in at] for at in positions]
            for name, positions in prompt.scores.items()
        },
    }
    labels = {feature: data.label for feature, data in prompt.prompt_data_dict.items()}
    cells = heat_data(heat, PROMPT_HEAT, labels, lambda name, feature, at, score: _score_number(name, score))
    elements = [
        _furniture.vocab_element(page, ids),
        _page.data("rankings", state),
        _page.data("heat", cells),
        *_furniture.rows_element(rows),
        *packed,
    ]
    return _page.document(f"Prompt · {_furniture.title_of(page)}", body, elements)


def _strip(prompt: MultiPromptData, page: PageContext) -> list[Html]:
    """The prompt's tokens, each with the number of features that are active on it."""
    largest = max(prompt.n_active, default=0)
    tokens = page.printer.sequence(prompt.prompt_token_ids)
    return [
        html_fns.prompt_token(
            token,
            f"Position {position}, {count(n_active, 'active feature')}",
            n_active,
            largest,
            position == page.seq_pos,
            ignored,
        )
        for position, (token, ignored, n_active) in enumerate(
            zip(tokens, page.ignored(prompt.prompt_token_ids), prompt.n_active, strict=True)
        )
    ]


def _none_ranked(score_name: str) -> str:
    where = "the token before it, so none changes its prediction" if score_name in LOSS_SCORES else "this token"
    return f"No feature to show: none of those that were fetched is active on {where}."


def _score_text(score_name: str, score: float) -> str:
    what = "quantile" if score_name == "act_quantile" else "loss" if score_name in LOSS_SCORES else "activation"
    return f"{what} {_score_number(score_name, score)}"


def _score_number(score_name: str, score: float) -> str:
    if score_name == "act_quantile":
        return format_quantile(score)
    if score_name in LOSS_SCORES:
        return format_signed(score, min(6, max(3, decimals_for(score, 2))))
    return format_general(score)


def _heat_map(prompt: MultiPromptData) -> dict[str, list[HeatRow]]:
    """The rows that are stored; of older files, those that the ranked features make up."""
    stored: dict[str, list[HeatRow]] = {name: rows for name, rows in prompt.heat_map.items()}  # noqa: C416  # for mypy
    return stored or {
        name: heat_rows(positions, HEAT_ROWS, PROMPT_HEAT[name].best) for name, positions in prompt.scores.items()
    }


def _whole_prompt(prompt: MultiPromptData, page: PageContext, heat: Mapping[str, list[HeatRow]]) -> Html:
    """The panels between the ranking and the columns: the heat map, and the reconstruction if it was measured."""
    panels = [heat_html()] if any(heat.values()) else []
    if prompt.reconstruction:
        tokens = page.printer.sequence(prompt.prompt_token_ids)
        ignored = page.ignored(prompt.prompt_token_ids)
        panels.append(prompt.reconstruction.get_html(tokens, ignored, prompt.provenance.d_hidden))
    return join(panels)
