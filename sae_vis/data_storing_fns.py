"""The nested dataclasses of both views: what was fetched, how it is drawn, how it is saved. No computation.

Every class that is drawn has ``get_html(page)``, which hands the ``PageContext`` down and gives an ``Html`` fragment.

Only ``str``, ``int``, ``float``, ``bool``, ``None``, lists and dicts are inside, so that JSON holds everything needed to
draw a page again, with no model, no tokenizer and no torch. Every class checks its lengths and ranges when it is made.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
import operator
import os
from collections.abc import (
    Callable,
    Generator,
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    Sequence,
    ValuesView,
)
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import msgspec

from sae_vis import _feature_folder, _json, _labels, _overview, _page, _render_pool, _rows, _site, _text, html_fns
from sae_vis._checks import (
    check,
    check_counts,
    check_feature_idx,
    check_finite,
    check_hex,
    check_same_length,
    short_int,
)
from sae_vis._errors import InputError, shown
from sae_vis._neighbours_data import LossShareData, NeighboursData
from sae_vis._params import (
    BUILT_IN,
    COMPONENTS,
    RUN_OPTIONS,
    Ablation,
    Component,
    FeatureVisParams,
    Layout,
    OptionValue,
    about,
)
from sae_vis._prompt_panels import (
    HEAT_ROWS,
    PROMPT_HEAT,
    HeatRow,
    ReconstructionData,
    heat_data,
    heat_html,
    heat_rows,
)
from sae_vis._saved import Saved, SavedPage, TextTwin
from sae_vis._templates import Html, join, template
from sae_vis._token_data import PositionsData, TokensData
from sae_vis.html_fns import NOTHING, TokenPrinter
from sae_vis.utils_fns import (
    decimals_for,
    format_fixed,
    format_general,
    format_percent,
    format_quantile,
    format_signed,
    largest,
    level,
    shorten,
)

V = TypeVar("V")
D = TypeVar("D")
_flat = itertools.chain.from_iterable

NAME_LIMIT = 200  # characters that a page shows of the name of a model or a hook point
TEXT_LIMIT = 2000  # likewise of a note or a reason

ScoreName = Literal["act_size", "act_quantile", "loss_effect", "loss_effect_full"]
SCORE_NAMES: tuple[ScoreName, ...] = ("act_size", "act_quantile", "loss_effect", "loss_effect_full")
LOSS_SCORES: tuple[ScoreName, ...] = ("loss_effect", "loss_effect_full")


# --- what drawing needs to know ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class PageContext:
    """What a part of a page must know of the whole to draw itself; ``get_html`` hands it down.

    ``features`` are those that a link can reach. ``act_max``, the two ``loss_max`` and ``shown_logits`` belong to the feature
    that is being drawn, ``score_name`` and ``seq_pos`` to the prompt-centric view.
    """

    printer: TokenPrinter = field(default_factory=lambda: TokenPrinter({}, {}))
    params: FeatureVisParams = field(default_factory=FeatureVisParams)
    provenance: Provenance | None = None
    features: frozenset[int] = frozenset()
    act_max: float = 0.0
    loss_max: float = 0.0
    full_loss_max: float = 0.0
    shown_logits: Mapping[int, float] = field(default_factory=dict)
    logit_decimals: int = 3
    seq_pos: int | None = None
    score_name: ScoreName = "act_quantile"
    feature_url: str | None = None
    rows: Mapping[int, list[int]] = field(default_factory=dict)

    def for_feature(
        self, sequences: Iterable[SequenceData], activations: ActivationsData, logits: LogitsData | None
    ) -> PageContext:
        """The same page, for one feature: the scales of its colours and its logit weights."""
        shown = list(sequences)
        largest_act = max((max(sequence.feat_acts) for sequence in shown), default=0.0)
        return dataclasses.replace(
            self,
            act_max=activations.max or largest_act,  # a prompt may exceed it: its colours are as strong as can be
            loss_max=largest(_flat(sequence.loss_contribution for sequence in shown)),
            full_loss_max=largest(_flat(sequence.full_losses() for sequence in shown)),
            shown_logits=logits.shown_logits if logits else {},
            logit_decimals=decimals_for(largest(logits.shown_logits.values())) if logits else 3,
        )

    def ignored(self, token_ids: Sequence[int], start: int = 0) -> list[bool]:
        """Whether each token of a row is left out of every number; the first one stands at position ``start``."""
        told = self.provenance
        ids, places = (told.ignored_token_ids, told.ignored_positions) if told else ((), ())
        if not places and frozenset(ids).isdisjoint(token_ids):
            return [False] * len(token_ids)
        return [token_id in ids or place in places for place, token_id in enumerate(token_ids, start)]

    @property
    def measured(self) -> tuple[Ablation, ...]:
        """Which effects the data holds, the one that is shown at first before the other."""
        asked = self.params.ablations
        no_direct = self.provenance is not None and self.provenance.direct_effect == "none"
        return tuple(ablation for ablation in asked if ablation != "direct" or not no_direct)

    def loss_how(self, ablation: Ablation) -> str:
        """In a few words, which effect on the loss it is."""
        if ablation == "full":
            return "full ablation"
        if self.provenance is None:
            return "direct effect"
        reason = shorten(self.provenance.direct_effect_reason, TEXT_LIMIT)
        return f"{self.provenance.direct_effect}{f': {reason}' if reason else ''}"


# --- the parts of one feature ------------------------------------------------------------------------------------


@dataclass(slots=True)
class HistogramData:
    """Equal bins: ``n + 1`` edges, ``n`` counts, and the ticks of the axis. All empty where there is nothing to count."""

    bar_edges: list[float]
    bar_heights: list[int]
    tick_vals: list[float]

    def __post_init__(self) -> None:
        expected = len(self.bar_heights) + 1 if self.bar_heights else 0
        check(
            len(self.bar_edges) == expected,
            self,
            f"{len(self.bar_heights)} bars need {expected} edges, got {len(self.bar_edges)}.",
        )
        check_counts(self, bar_heights=self.bar_heights)
        check_finite(self, bar_edges=self.bar_edges, tick_vals=self.tick_vals)
        if self.bar_edges:
            low, high = self.bar_edges[0], self.bar_edges[-1]
            check(
                low < high and math.isfinite(high - low),
                self,
                f"bar_edges must rise over a finite range, got {low!r} to {high!r}.",
            )
            check(sorted(self.bar_edges) == self.bar_edges, self, "bar_edges must not fall.")
        check(sorted(set(self.tick_vals)) == self.tick_vals, self, "tick_vals must rise.")

    def get_html(
        self,
        page: PageContext | None = None,
        *,
        kind: str = "activations",
        pin: float | None = None,
        pin_text: str = "",
    ) -> Html:
        """The histogram as a plot; ``kind`` is "activations" or "logits", ``pin`` a value to mark."""
        if not self.bar_heights:
            return html_fns.empty("There is nothing to count.")
        low, high = self.bar_edges[0], self.bar_edges[-1]
        label = f"Histogram of {kind} from {format_general(low)} to {format_general(high)}"
        line = NOTHING if pin is None else html_fns.plot_pin(pin, pin_text, low, high)
        return html_fns.middle_plot(kind, label, self.bar_edges, self.bar_heights, self.tick_vals, line)


@dataclass(slots=True)
class NeuronAlignmentData:
    """The neurons of the hook point with the largest decoder weights, and each weight's share of the L1 norm (0 to 1)."""

    indices: list[int]
    values: list[float]
    share_of_l1: list[float]

    def __post_init__(self) -> None:
        check_same_length(self, indices=self.indices, values=self.values, share_of_l1=self.share_of_l1)
        check_finite(self, values=self.values, share_of_l1=self.share_of_l1)
        check(all(0.0 <= share <= 1.0 for share in self.share_of_l1), self, "share_of_l1 must be from 0 to 1.")

    def get_html(self, page: PageContext | None = None, *, rows: int | None = None) -> Html:
        """The table, with at most ``rows`` rows."""
        most = largest(self.values)
        return html_fns.numbers_table(
            "Neuron alignment",
            ["Index", "Value", "% of L1"],
            [str(index) for index in self.indices[:rows]],
            [format_signed(value, decimals_for(most, 3) if 0 < most < 0.01 else 3) for value in self.values[:rows]],
            [format_percent(share, 2) for share in self.share_of_l1[:rows]],
        )


@dataclass(slots=True)
class CorrelationData:
    """The columns that correlate most with a feature: Pearson's r, and the cosine similarity of the activations."""

    indices: list[int]
    pearson: list[float]
    cosine: list[float]

    def __post_init__(self) -> None:
        check_same_length(self, indices=self.indices, pearson=self.pearson, cosine=self.cosine)
        check_finite(self, pearson=self.pearson, cosine=self.cosine)

    def get_html(
        self,
        page: PageContext | None = None,
        *,
        title: str = "Correlated neurons",
        rows: int | None = None,
        links: bool = False,
    ) -> Html:
        """The table, with at most ``rows`` rows; ``links`` where an index is a feature that the page may hold."""
        reachable = page.features if page and links else frozenset()
        return html_fns.numbers_table(
            title,
            ["Index", "Pearson", "Cosine"],
            [html_fns.feature_link(index) if index in reachable else str(index) for index in self.indices[:rows]],
            [format_signed(value) for value in self.pearson[:rows]],
            [format_signed(value) for value in self.cosine[:rows]],
        )


@dataclass(slots=True)
class FeatureTablesData:
    """The left-hand tables; None where a table was not computed."""

    neuron_alignment: NeuronAlignmentData | None = None
    correlated_neurons: CorrelationData | None = None
    correlated_features: CorrelationData | None = None
    correlated_b_features: CorrelationData | None = None

    def get_html(self, page: PageContext | None = None, *, rows: int | None = None) -> Html:
        """The tables that there are, below each other."""
        tables = [self.neuron_alignment.get_html(page, rows=rows)] if self.neuron_alignment else []
        for title, table, links in (
            ("Correlated neurons", self.correlated_neurons, False),
            ("Correlated features", self.correlated_features, True),
            ("Correlated B features", self.correlated_b_features, False),
        ):
            if table is not None:
                tables.append(table.get_html(page, title=title, rows=rows, links=links))
        return html_fns.left_tables(tables)


@dataclass(slots=True)
class ActivationsData:
    """How often and how strongly a feature fires over the counted positions; the moments are None if it never does."""

    density: float
    n_active: int
    max: float | None
    mean: float | None
    variance: float | None
    skewness: float | None
    kurtosis: float | None
    histogram: HistogramData

    def __post_init__(self) -> None:
        check(0.0 <= self.density <= 1.0, self, f"density must be from 0 to 1, got {self.density!r}.")
        check_counts(self, n_active=[self.n_active])
        check_finite(
            self, max=self.max, mean=self.mean, variance=self.variance, skewness=self.skewness, kurtosis=self.kurtosis
        )

    def get_html(self, page: PageContext | None = None, *, pin: float | None = None) -> Html:
        """The histogram of the active activations, or a sentence where the feature never fires."""
        summary = f"density {format_percent(self.density)}"
        if self.max is None or not self.histogram.bar_heights:
            counted = page.provenance.n_counted if page and page.provenance else None
            where = "these tokens" if counted is None else f"the {_count(counted, 'counted token')}"
            text = f"This feature never fires on {where}."
            return html_fns.activations_histogram(summary, html_fns.empty(text))
        summary += f", max {format_fixed(self.max, decimals_for(self.max, 3))}"
        pin_text = "" if pin is None else format_fixed(pin, decimals_for(page.act_max if page else self.max))
        return html_fns.activations_histogram(summary, self.histogram.get_html(page, pin=pin, pin_text=pin_text))

    def moments_html(self, page: PageContext | None = None) -> Html:
        """The moments in one line, or a sentence where the feature never fires."""
        moments = {"Mean": self.mean, "Variance": self.variance, "Skewness": self.skewness, "Kurtosis": self.kurtosis}
        known = {name: format_general(value, 3) for name, value in moments.items() if value is not None}
        return html_fns.moments(list(known), list(known.values())) if known else NOTHING


@dataclass(slots=True)
class LogitsData:
    """The direct effect of one unit of the feature on the logits, centred over the vocabulary.

    ``top_*`` from the largest down, ``bottom_*`` from the smallest up; ``shown_logits`` maps the id of every token that
    is shown in the feature's sequences to its logit weight. ``skewness`` and ``kurtosis`` (not minus 3) are those of the
    logit weights over the vocabulary; None where they are all equal, and in older files.
    """

    top_token_ids: list[int]
    top_logits: list[float]
    bottom_token_ids: list[int]
    bottom_logits: list[float]
    shown_logits: dict[int, float]
    histogram: HistogramData
    skewness: float | None = None
    kurtosis: float | None = None

    def __post_init__(self) -> None:
        check_same_length(self, top_token_ids=self.top_token_ids, top_logits=self.top_logits)
        check_same_length(self, bottom_token_ids=self.bottom_token_ids, bottom_logits=self.bottom_logits)
        check_finite(
            self,
            top_logits=self.top_logits,
            bottom_logits=self.bottom_logits,
            shown_logits=list(self.shown_logits.values()),
            skewness=self.skewness,
            kurtosis=self.kurtosis,
        )

    def get_html(self, page: PageContext | None = None) -> Html:
        """The tables and the histogram."""
        return join([self.tables_html(page), self.histogram_html(page)])

    def tables_html(self, page: PageContext | None = None, *, rows: int | None = None) -> Html:
        """The tokens whose logits the feature lowers most and raises most."""
        printer = (page or PageContext()).printer
        strongest = largest([*self.top_logits, *self.bottom_logits])
        negative, positive = (
            html_fns.logits_table(
                title, kind, [printer.one(token_id) for token_id in ids[:rows]], values[:rows], strongest
            )
            for title, kind, ids, values in (
                ("Negative logits", "negative", self.bottom_token_ids, self.bottom_logits),
                ("Positive logits", "positive", self.top_token_ids, self.top_logits),
            )
        )
        return html_fns.logits_tables(negative, positive)

    def histogram_html(self, page: PageContext | None = None, *, pin: float | None = None) -> Html:
        """The histogram of the logit weights over the vocabulary."""
        if not self.histogram.bar_heights:
            return html_fns.logits_histogram("", html_fns.empty("There are no logit weights to count."))
        pin_text = "" if pin is None else format_signed(pin, page.logit_decimals if page else 3)
        plot = self.histogram.get_html(page, kind="logits", pin=pin, pin_text=pin_text)
        return html_fns.logits_histogram(f"of {_count(sum(self.histogram.bar_heights), 'token')}", plot)


# Files hold hundreds of the following two classes for each feature. Their checks look at all at once, which a right one
# passes; only what is not seen to be right so goes through the checks one by one, which say what is wrong.
_UNSEEN = (TypeError, OverflowError, AttributeError)  # what looking at values of wrong types may raise


@dataclass(slots=True)
class TokenEffect:
    """The tokens whose log-probability the feature raises and lowers most, at the predicted token ``at`` of a sequence.

    The log-probabilities are differences, with the feature minus without it, of the prediction made one token earlier.
    """

    at: int
    raised_token_ids: list[int]
    raised_logprobs: list[float]
    lowered_token_ids: list[int]
    lowered_logprobs: list[float]

    def __post_init__(self) -> None:
        raised, lowered = self.raised_logprobs, self.lowered_logprobs
        try:
            # Only a finite sum has no NaN and no infinity in it.
            if (
                len(self.raised_token_ids) == len(raised)
                and len(self.lowered_token_ids) == len(lowered)
                and math.isfinite(sum(raised) + sum(lowered))
            ):
                return
        except _UNSEEN:
            pass
        self._check_each()

    def _check_each(self) -> None:
        check_same_length(self, raised_token_ids=self.raised_token_ids, raised_logprobs=self.raised_logprobs)
        check_same_length(self, lowered_token_ids=self.lowered_token_ids, lowered_logprobs=self.lowered_logprobs)
        check_finite(self, raised_logprobs=self.raised_logprobs, lowered_logprobs=self.lowered_logprobs)


@dataclass(slots=True)
class FullEffects:
    """The effects of the full ablation on a sequence, where those of the direct one are stored too."""

    loss_contribution: list[float | None]
    effects: list[TokenEffect] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_finite(self, loss_contribution=self.loss_contribution)


@dataclass(slots=True)
class SequenceData:
    """A shown piece of a row: tokens ``start .. start + len(token_ids)`` of ``row``, token ``bold_idx`` of them bold.

    ``feat_acts`` are the feature's activations on each token, ``loss_contribution`` the change of the loss on each token
    that the feature causes, in nats (negative: it helps), None where there is none. With ``ablation=("direct", "full")``
    these are the direct effects, and ``full`` holds the others.
    """

    row: int
    start: int
    bold_idx: int
    token_ids: list[int]
    feat_acts: list[float]
    loss_contribution: list[float | None]
    effects: list[TokenEffect] = field(default_factory=list)
    full: FullEffects | None = None

    def __post_init__(self) -> None:
        try:
            n_tokens, full = len(self.token_ids), self.full
            if (
                n_tokens == len(self.feat_acts) == len(self.loss_contribution)
                and (full is None or n_tokens == len(full.loss_contribution))
                and 0 <= self.bold_idx < n_tokens
                and self.row >= 0 <= self.start
                and math.isfinite(sum(self.feat_acts) + sum(filter(None, self.loss_contribution)))
            ):
                for effect in self.effects if full is None else self.all_effects():
                    if not 0 <= effect.at < n_tokens:
                        break
                else:
                    return
        except _UNSEEN:
            pass
        self._check_each()

    def _check_each(self) -> None:
        check_same_length(
            self,
            token_ids=self.token_ids,
            feat_acts=self.feat_acts,
            loss_contribution=self.loss_contribution,
            **({"full.loss_contribution": self.full.loss_contribution} if self.full else {}),
        )
        n_tokens = len(self.token_ids)
        check(n_tokens > 0, self, "a sequence needs at least one token.")
        check(0 <= self.bold_idx < n_tokens, self, f"bold_idx must be from 0 to {n_tokens - 1}, got {self.bold_idx!r}.")
        check(
            self.row >= 0 and self.start >= 0,
            self,
            f"row and start must not be negative, got {self.row}, {self.start}.",
        )
        check(
            all(0 <= effect.at < n_tokens for effect in self.all_effects()),
            self,
            f"an effect lies outside the sequence of {n_tokens} tokens.",
        )
        check_finite(self, feat_acts=self.feat_acts, loss_contribution=self.loss_contribution)

    def get_html(self, page: PageContext | None = None, *, bold_idx: int | None = None) -> Html:
        """The tokens in a line, coloured by activation and underlined by effect on the loss."""
        page = page or PageContext(act_max=max(self.feat_acts))
        bold_idx = self.bold_idx if bold_idx is None else bold_idx
        act_max, loss_max, full_max = page.act_max, page.loss_max, page.full_loss_max
        texts, drawn = page.printer.sequence(self.token_ids), html_fns.token_attributes
        attributes = [NOTHING] * len(texts)  # most have none
        grey = page.ignored(self.token_ids, self.start)
        full_losses = self.full_losses() or [None] * len(texts)
        shown = zip(self.feat_acts, self.loss_contribution, full_losses, grey, strict=True)
        for index, (act, loss, full, is_grey) in enumerate(shown):
            if act or loss or full or is_grey or index == bold_idx:
                attributes[index] = drawn(
                    level(act, act_max) if act else 0.0,
                    level(loss, loss_max) if loss else 0.0,
                    index == bold_idx,
                    is_grey,
                    level(full, full_max) if full else 0.0,
                )
        act, decimals = self.feat_acts[bold_idx], decimals_for(act_max, 3)
        if 0 < act < 0.5 * 10.0**-decimals:  # three digits would make it a zero; a fourth tells it from one
            decimals = decimals_for(act_max)
        return html_fns.sequence(texts, attributes, format_fixed(act, decimals))

    def full_losses(self) -> list[float | None]:
        """The loss contributions of the full ablation, where both are stored."""
        return self.full.loss_contribution if self.full else []

    def all_effects(self) -> list[TokenEffect]:
        """The effects of every ablation that is stored."""
        return [*self.effects, *self.full.effects] if self.full else self.effects


@dataclass(slots=True)
class SequenceGroupData:
    """Examples of one kind: the top activations (``share`` None), or random ones with activations in (lower, upper].

    ``share_of_activation`` is an interval's share of the sum of the feature's activations, ``n_positions`` how many of them it
    holds, ``share_of_loss`` its share of the feature's effect. ``near_duplicates`` are the indices of those sequences that
    nearly repeat an earlier one of the feature.
    """

    title: str
    lower: float
    upper: float
    share: float | None
    sequences: list[SequenceData]
    share_of_activation: float | None = None
    n_positions: int | None = None
    share_of_loss: LossShareData | None = None
    near_duplicates: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_finite(self, lower=self.lower, upper=self.upper)
        check(self.share is None or 0.0 <= self.share <= 1.0, self, f"share must be from 0 to 1, got {self.share!r}.")
        share = self.share_of_activation
        check(share is None or 0.0 <= share <= 1.0, self, f"share_of_activation must be from 0 to 1, got {share!r}.")
        check_counts(self, n_positions=[self.n_positions or 0], near_duplicates=self.near_duplicates)

    def get_html(self, page: PageContext | None = None, *, examples: int | None = None) -> Html:
        """The title and at most so many examples."""
        page = page or PageContext(act_max=self.upper)
        if self.share is None:
            detail = f"max {format_fixed(self.upper, decimals_for(page.act_max, 3))}"
        else:
            detail = f"{format_percent(self.share)} of tokens"
        sequences = [sequence.get_html(page) for sequence in self.sequences[:examples]]
        repeats = self.repeats(examples)
        for at in repeats:
            sequences[at] = html_fns.near_duplicate(sequences[at])
        if repeats:
            detail += f", {_count(len(repeats), 'near-duplicate')}"
        somewhere = self.upper if self.share is None else self.share
        nothing = "No example shown." if somewhere else "No example."
        return html_fns.sequence_group(
            self.title, detail, [self._shares_html(), *(sequences or [html_fns.empty(nothing)])]
        )

    def repeats(self, examples: int | None = None) -> list[int]:
        """Which of the first so many examples nearly repeat an earlier one."""
        n = len(self.sequences[:examples])
        return [at for at in self.near_duplicates if at < n]

    def _shares_html(self) -> Html:
        """What the interval holds of all activation, and of the effect on the loss, where that is known."""
        if self.share_of_activation is None:
            return NOTHING
        bars = [("act", "activation", self.share_of_activation, "")]
        if (loss := self.share_of_loss) is not None:
            about = "" if loss.exact else "≈ "
            bars += [("low", "loss lowered", loss.lowered, about), ("high", "raised", loss.raised, about)]
        kinds, names, shares, signs = zip(*bars, strict=True)
        # Whole numbers: estimates of a few examples have no more digits, and pages stay small.
        texts = [
            f"{sign}{share:.0%}" if share >= 0.005 or not share else "< 1%"
            for sign, share in zip(signs, shares, strict=True)
        ]
        texts = [text.replace("%", " %") for text in texts]
        return html_fns.shares(kinds, names, [level(share, 1.0) for share in shares], texts)


@dataclass(slots=True)
class SequenceMultiGroupData:
    """All groups of examples of a feature: the top activations, then the intervals from the top down."""

    groups: list[SequenceGroupData]

    @property
    def top(self) -> SequenceGroupData | None:
        """The group of top activations; None where none were asked for, or the feature is active nowhere."""
        return next((group for group in self.groups if group.share is None), None)

    def get_html(self, page: PageContext | None = None, *, examples: int | None = None) -> Html:
        """All groups with at most so many examples each, the legend, and the numbers for the hover text."""
        page = page or PageContext(act_max=max((group.upper for group in self.groups), default=0.0))
        shown = [sequence for group in self.groups for sequence in group.sequences[:examples]]
        if not self.groups:
            asked = page.params.first_group_size or page.params.n_groups
            nothing = "No examples: the feature is active nowhere." if asked else "No examples were asked for."
            return html_fns.sequence_multi_group(NOTHING, [html_fns.empty(nothing)], NOTHING)
        key = html_fns.legend(format_fixed(page.act_max, decimals_for(page.act_max, 3)), _loss_key(page))
        repeats = sum(len(group.repeats(examples)) for group in self.groups)
        legend = join([key, html_fns.near_duplicates_switch(repeats)])
        groups = [group.get_html(page, examples=examples) for group in self.groups]
        return html_fns.sequence_multi_group(legend, groups, _hover(shown, page))


@dataclass(slots=True)
class CounterexamplesData:
    """Random examples where a feature does not fire on the bold token, though it fires somewhere.

    ``near_misses`` have one of its top tokens there (``n_near_misses`` positions do), ``negatives`` any. Both are empty if
    the feature never fires.
    """

    near_misses: list[SequenceData]
    n_near_misses: int
    negatives: list[SequenceData]

    def __post_init__(self) -> None:
        check_counts(self, n_near_misses=[self.n_near_misses])
        check(
            len(self.near_misses) <= self.n_near_misses,
            self,
            f"{len(self.near_misses)} near misses are shown, but n_near_misses is {short_int(self.n_near_misses)}.",
        )

    def sequences(self) -> list[SequenceData]:
        """The examples of both groups."""
        return [*self.near_misses, *self.negatives]

    def get_html(self, page: PageContext | None = None, *, examples: int | None = None) -> Html:
        """Both groups with at most so many examples each; nothing where there are none at all."""
        page = page or PageContext()
        if not self.near_misses and not self.negatives:
            return NOTHING
        n, groups = self.n_near_misses, list[Html]()
        for title, detail, sequences, nothing in (
            (
                "NEAR MISSES",
                f"{_count(n, 'place')} with a top token where it does not fire",
                self.near_misses,
                "It fires wherever one of its top tokens stands.",
            ),
            ("RANDOM NEGATIVES", "places where it does not fire", self.negatives, "It fires on every token."),
        ):
            drawn = [sequence.get_html(page) for sequence in sequences[:examples]]
            reason = html_fns.empty("No example shown." if sequences else nothing)
            groups.append(html_fns.sequence_group(title, detail if drawn else "", drawn or [reason]))
        shown = [*self.near_misses[:examples], *self.negatives[:examples]]
        return html_fns.counterexamples(groups, _hover(shown, page) if shown else NOTHING)


def _loss_key(page: PageContext) -> Html:
    """What the underlines show, and a choice where there are two effects."""
    if not page.measured:
        reason = shorten(page.provenance.direct_effect_reason, TEXT_LIMIT) if page.provenance else ""
        return join([f"Loss contribution not measured{f': {reason}' if reason and page.params.ablations else ''}"])
    hows = [page.loss_how(ablation) for ablation in page.measured]
    return html_fns.loss_key(list(page.measured), hows)


def _hover(sequences: Sequence[SequenceData], page: PageContext) -> Html:
    """The numbers behind some sequences, for the hover text."""
    ids = list(_flat(sequence.token_ids for sequence in sequences))
    distinct = dict.fromkeys(ids) if page.shown_logits else ()
    numbers = _page.hover_numbers(
        rows=[sequence.row for sequence in sequences],
        starts=[sequence.start for sequence in sequences],
        lengths=[len(sequence.token_ids) for sequence in sequences],
        ids=ids,
        acts=list(_flat(sequence.feat_acts for sequence in sequences)),
        losses=list(_flat(sequence.loss_contribution for sequence in sequences)),
        full_losses=list(_flat(sequence.full_losses() for sequence in sequences)),
        logits=list(map(page.shown_logits.get, distinct)),
        effects=_hover_effects(sequences, [sequence.effects for sequence in sequences]),
        full_effects=_hover_effects(sequences, [s.full.effects if s.full else [] for s in sequences]),
        only=page.measured[0] if page.measured else "direct",
        act_decimals=decimals_for(page.act_max),
        logit_decimals=page.logit_decimals,
    )
    return html_fns.hover_data(numbers)


def _hover_effects(sequences: Sequence[SequenceData], effects: Sequence[list[TokenEffect]]) -> dict[str, Any]:
    """All effects, their places counted through all sequences."""
    at: list[int] = []
    ids: list[list[int]] = []
    logprobs: list[list[float]] = []
    before = 0
    for sequence, of_sequence in zip(sequences, effects, strict=True):
        for effect in of_sequence:
            at.append(before + effect.at)
            ids += (effect.raised_token_ids, effect.lowered_token_ids)
            logprobs += (effect.raised_logprobs, effect.lowered_logprobs)
        before += len(sequence.token_ids)
    return _page.effect_numbers(at, ids, logprobs)


@dataclass(slots=True)
class QuantileKnots:
    """Points of a feature's distribution of activations, from which ``act_quantile`` is looked up.

    ``values`` fall, ``ranks`` rise: ``ranks[i]`` of the ``n`` counted positions have an activation >= ``values[i]``.
    """

    values: list[float]
    ranks: list[int]
    n: int

    def __post_init__(self) -> None:
        check_same_length(self, values=self.values, ranks=self.ranks)
        check_finite(self, values=self.values)
        check(
            all(map(operator.ge, self.values, self.values[1:])) and all(map(operator.lt, self.ranks, self.ranks[1:])),
            self,
            "values must fall and ranks must rise.",
        )
        check(
            not self.ranks or (self.ranks[0] >= 1 and self.ranks[-1] <= self.n),
            self,
            f"ranks must be from 1 to {self.n}.",
        )


@dataclass(slots=True)
class DirectionData:
    """Where a feature's decoder direction lies on the map of the dictionary (``FeatureVisParams.feature_map``)."""

    x: float
    y: float

    def __post_init__(self) -> None:
        check_finite(self, x=self.x, y=self.y)


@dataclass
class FeatureData(TextTwin):
    """Everything shown of one feature. ``label``, ``note`` and ``starred`` are what a reader says of it."""

    feature_idx: int
    feature_tables: FeatureTablesData
    activations: ActivationsData
    logits: LogitsData | None
    sequences: SequenceMultiGroupData
    quantiles: QuantileKnots
    label: str | None = None
    tokens: TokensData | None = None
    positions: PositionsData | None = None
    counterexamples: CounterexamplesData | None = None
    note: str | None = None
    starred: bool = False
    neighbours: NeighboursData | None = None
    decoder_norm: float | None = None
    direction: DirectionData | None = None
    extras: dict[str, Any] = field(default_factory=dict)  # what panels of one's own draw, by component

    def __post_init__(self) -> None:
        self.extras = {name: _extra(name, value) for name, value in self.extras.items()}
        check_feature_idx(self, self.feature_idx)
        check_finite(self, decoder_norm=self.decoder_norm)

    @property
    def top_group(self) -> SequenceGroupData:
        """The group of top activations, without any example where there is none."""
        return self.sequences.top or SequenceGroupData("TOP ACTIVATIONS", 0.0, self.activations.max or 0.0, None, [])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_context"}

    def __repr__(self) -> str:
        return f"FeatureData({_text.summary(self)})"

    def _repr_html_(self) -> str:
        return _page.notebook_frame(self.get_html(), repr(self))

    def to_text(self, examples: int = 5) -> str:
        """The feature as plain text, for where no HTML is shown: density, maximum, top tokens, logits and examples.

        The bold token of an example stands between « and »; what cannot be printed is named, e.g. ``[U+200B]``.

        Raises:
            InputError: if ``examples`` is no int from 0 on.
        """
        page = vars(self).get("_context") or PageContext()
        return _text.feature_text(self, _token_texts(page.printer), _text.checked_number("examples", examples))

    def get_html(self, page: PageContext | None = None) -> Html:
        """The feature's panels on a page; without ``page``, a whole document of this feature alone.

        A feature that was taken out of a ``MultiFeatureData`` remembers the vocabulary, the parameters and the provenance
        there. One that never was in any shows token ids.
        """
        if page is None:
            return _one_feature_document(self, vars(self).get("_context") or PageContext())
        page = page.for_feature(self._shown_sequences(), self.activations, self.logits)
        layout = page.params.feature_layout()
        heading = html_fns.label(self.label or "")
        columns = _columns(layout, self, page)
        return html_fns.feature(
            self.feature_idx, heading, self._stats(layout, page), columns, page.params.border, layout.height or 0
        )

    def token_ids(self) -> set[int]:
        """Every token that occurs in the sequences and in their effects."""
        return _token_ids(self._shown_sequences())

    def vocab_ids(self) -> set[int]:
        """Every token that any panel shows."""
        logits = self.logits
        listed = self.tokens.token_ids if self.tokens else ()
        return self.token_ids().union(listed, *((logits.top_token_ids, logits.bottom_token_ids) if logits else ()))

    def shown_rows(self) -> set[int]:
        """The rows that the examples come from."""
        return set(self.example_rows())

    def example_rows(self) -> list[int]:
        """The row of each example, in the order in which they are shown."""
        return [sequence.row for sequence in self._shown_sequences()]

    def _shown_sequences(self) -> list[SequenceData]:
        against = self.counterexamples.sequences() if self.counterexamples else []
        return [*(sequence for group in self.sequences.groups for sequence in group.sequences), *against]

    def _stats(self, layout: Layout, page: PageContext) -> Html:
        """The numbers beside the title; the moments only where no panel shows them."""
        acts = self.activations
        values: dict[str, str] = {}
        twin, cosine = _overview.twin(self), _overview.nearest_direction(self)[1]
        if twin is not None and cosine is not None:
            link = html_fns.feature_link(twin) if twin in page.features else str(twin)
            values["Duplicate of"] = join([link, f" (cosine {format_fixed(cosine, 3)})"])
        values |= {"Density": format_percent(acts.density), "Active": f"{acts.n_active:,}"}
        numbers = {"Max": acts.max, "Decoder norm": self.decoder_norm}
        if acts.skewness is None or "moments" not in {component.name for component in layout.components()}:
            numbers |= {"Mean": acts.mean, "Skewness": acts.skewness, "Kurtosis": acts.kurtosis}
        values |= {name: format_general(value, 3) for name, value in numbers.items() if value is not None}
        return html_fns.stats(list(values), list(values.values()))


def _token_texts(printer: TokenPrinter) -> _text.TokenTexts:
    return _text.TokenTexts(printer.vocab, printer.vocab_bytes)


def _token_ids(sequences: Iterable[SequenceData]) -> set[int]:
    ids: set[int] = set()
    for sequence in sequences:
        ids.update(sequence.token_ids)
        for effect in sequence.all_effects():
            ids.update(effect.raised_token_ids, effect.lowered_token_ids)
    return ids


# --- where the numbers come from ---------------------------------------------------------------------------------


@dataclass
class Provenance:
    """What was run on what: enough to tell whether two files belong together, and what a page must say of its numbers.

    ``direct_effect`` is "exact", "direct path" (later computation that reads the hook point is left out) or "none", with
    the reason in ``direct_effect_reason``. ``hook_point_out`` is where the features are written, None where they are read
    (it differs for transcoders). ``first_token_id`` is the token that every row begins with, where there is one
    (a prompt then gets it too). ``ignored_positions`` are places in the row that do not count, ``notes`` are shown on the page.
    """

    model: str
    hook_point: str
    d_in: int
    d_hidden: int
    n_rows: int
    seq_len: int
    n_counted: int
    direct_effect: Literal["exact", "direct path", "none"]
    direct_effect_reason: str = ""
    hook_point_out: str | None = None
    first_token_id: int | None = None
    ignored_token_ids: list[int] = field(default_factory=list)
    ignored_positions: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    map_variance: float | None = (
        None  # the share of that of the decoder directions, along the two axes of the map (PCA)
    )
    map_sample: int | None = None  # how many directions these axes come from, evenly spaced; None: from all of them


# --- from components to columns ----------------------------------------------------------------------------------

Drawer = Callable[[Any, PageContext, Mapping[str, Any]], Html]

_DRAWERS: dict[str, Drawer] = {
    "feature_tables": lambda part, page, options: part.get_html(page, rows=options.get("rows")),
    "activations_histogram": lambda part, page, options: part.get_html(page),
    "logits_tables": lambda part, page, options: part.tables_html(page, rows=options.get("rows")),
    "logits_histogram": lambda part, page, options: part.histogram_html(page),
    "sequences": lambda part, page, options: part.get_html(page, examples=options.get("examples")),
    "tokens": lambda part, page, options: part.get_html(page, rows=options.get("rows")),
    "positions": lambda part, page, options: part.get_html(page),
    "counterexamples": lambda part, page, options: part.get_html(page, examples=options.get("examples")),
    "neighbours": lambda part, page, options: part.get_html(page, rows=options.get("rows")),
    "moments": lambda part, page, options: part.moments_html(page),
}


def _columns(layout: Layout, data: object, page: PageContext, drawers: Mapping[str, Drawer] = _DRAWERS) -> list[Html]:
    """The columns of a layout, drawn from the attributes of ``data`` that their components name.

    Where an attribute is None, the reason is shown once and its other components are left out. Nothing is said of a part
    that older files have not, unless the layout was given.
    """
    missing: set[str] = set()
    columns = []
    for column in layout.columns:
        drawn = []
        for component in column.components:
            attribute = COMPONENTS[component.name].attribute
            part = _part_of(data, component.name)
            if part is not None:
                panel = _drawer(component.name, drawers)(part, page, _all_options(component))
                drawn += [html_fns.part(component.name, panel)] if panel else []
            elif attribute not in missing and (page.params.layout or not COMPONENTS[component.name].optional):
                missing.add(attribute)
                drawn.append(html_fns.empty(_missing_reason(attribute, page)))
        names = [component.name.replace("_", "-") for component in column.components]
        columns.append(html_fns.column([f"has-{name}" for name in names], drawn, column.width or 0, column.height or 0))
    return columns


def _extra(name: str, value: Any) -> Any:
    """The data of a panel of one's own: as its dataclass, where that is known, else as it is in the file."""
    spec = COMPONENTS.get(name)
    if spec is None or spec.data is None or isinstance(value, spec.data):
        return value
    try:
        return msgspec.convert(value, spec.data)
    except msgspec.ValidationError as error:
        raise InputError(f"FeatureData.extras[{name!r}] is no {spec.data.__name__}: {error}.") from None


def _all_options(component: Component) -> Mapping[str, OptionValue]:
    """Those that the layout gives; to a panel of one's own also the defaults of the others, which the library's have."""
    spec = COMPONENTS[component.name]
    return {**spec.options, **component.options} if spec.draw else component.options


def _part_of(data: object, component: str) -> Any:
    """What a component draws of a feature; None where it is not there."""
    spec = COMPONENTS[component]
    if spec.data is None and not hasattr(data, spec.attribute):
        raise InputError(f"Component {component!r}: {type(data).__name__} has no attribute {spec.attribute!r}.")
    part = getattr(data, spec.attribute, None)
    return part.get(component) if spec.data is not None and part is not None else part


def _drawer(component: str, drawers: Mapping[str, Drawer]) -> Drawer:
    return COMPONENTS[component].draw or drawers[component]


def _abouts(layout: Layout) -> Html:
    """What the panels of a layout are, once for the whole page, which needs all that these panels need."""
    names = list(dict.fromkeys(component.name for component in layout.components()))
    needs = frozenset[str]().union(*(template(COMPONENTS[name].template).needs for name in names))
    return html_fns.abouts(
        names, [COMPONENTS[name].help for name in names], [about(name) for name in names], sorted(needs)
    )


def _missing_reason(attribute: str, page: PageContext) -> str:
    told = page.provenance if attribute == "logits" else None  # the reason is that of the direct effect alone
    reason = shorten(told.direct_effect_reason, TEXT_LIMIT) if told else ""
    return f"There are no {attribute.replace('_', ' ')} here{f': {reason}' if reason else '.'}"


# --- the feature-centric view ------------------------------------------------------------------------------------


class _Largest(msgspec.Struct):
    max: float | None


class _Distribution(msgspec.Struct):
    """What the prompt-centric view needs of every feature that is active."""

    activations: _Largest
    quantiles: QuantileKnots


class _Said(msgspec.Struct):
    """What a reader said of a feature."""

    label: str | None = None
    note: str | None = None
    starred: bool = False


@dataclass(repr=False)
class MultiFeatureData(Saved, TextTwin):
    """Many features of one encoder on one set of tokens: a mapping from feature index to ``FeatureData``.

    ``vocab`` holds the text of every token id that occurs, ``vocab_bytes`` the bytes (hex) of those that are only part of
    a character, ``rows`` the whole rows that examples come from (empty with ``store_rows=False``).

    What ``load_dir`` opens reads a feature from its file when it is asked for, and lets go of it again. Its ``label``,
    ``note``, ``starred`` and ``extras`` are remembered as they are set, in memory: ``save_labels`` and ``save_json`` write them.
    """

    feature_data_dict: Mapping[int, FeatureData]
    vocab: dict[int, str]
    vocab_bytes: dict[int, str]
    rows: Mapping[int, list[int]]
    params: FeatureVisParams
    provenance: Provenance

    def __post_init__(self) -> None:
        if not isinstance(
            self.feature_data_dict, _feature_folder.LazyMapping
        ):  # which is sorted, and checks what it reads
            self.feature_data_dict = dict(sorted(self.feature_data_dict.items()))
            for index, feature in self.feature_data_dict.items():
                check(index == feature.feature_idx, self, f"key {index} holds feature {feature.feature_idx}.")
        check_hex(self, self.vocab_bytes)

    def __getitem__(self, feature: int) -> FeatureData:
        try:
            return self._with_context(self.feature_data_dict[feature])
        except (KeyError, TypeError):
            raise InputError(_absent_feature(feature, self.feature_data_dict)) from None

    def __iter__(self) -> Iterator[int]:
        return iter(self.feature_data_dict)

    def __len__(self) -> int:
        return len(self.feature_data_dict)

    def __contains__(self, feature: object) -> bool:
        return feature in self.feature_data_dict

    def distribution(self, feature: int) -> tuple[float | None, QuantileKnots]:
        """The largest activation and the quantile knots of a feature; quick where features are read from a folder.

        Raises:
            InputError: if there is no such feature.
        """
        features = self.feature_data_dict
        if isinstance(features, _feature_folder.FolderFeatures) and feature in features:
            found = features.partly(feature, _Distribution)
            return found.activations.max, found.quantiles
        data = self[feature]
        return data.activations.max, data.quantiles

    def get(self, feature: int, default: D | None = None) -> FeatureData | D | None:
        """A feature, or something else where it is not there."""
        found = self.feature_data_dict.get(feature)
        return default if found is None else self._with_context(found)

    def only(self, features: Iterable[int]) -> MultiFeatureData:
        """Some of the features, in memory, with the texts and rows that they show: what would have been fetched of them.

        Raises:
            InputError: if there is no such feature, or none is given.
        """
        try:
            ids = sorted({operator.index(feature) for feature in features})
        except TypeError:
            raise InputError(f"features must be feature indices, e.g. [8, 9], got {shown(features)}.") from None
        if not ids:
            raise InputError("features are none: give at least one feature index.")
        chosen = {index: self[index] for index in ids}
        shown_rows = set[int]().union(*(data.shown_rows() for data in chosen.values()))
        rows = {row: self.rows[row] for row in sorted(shown_rows) if row in self.rows}
        tokens = {token for row in rows.values() for token in row}.union(
            *(data.vocab_ids() for data in chosen.values())
        )
        return MultiFeatureData(
            feature_data_dict=chosen,
            vocab={token: text for token, text in self.vocab.items() if token in tokens},
            vocab_bytes={token: text for token, text in self.vocab_bytes.items() if token in tokens},
            rows=rows,
            params=dataclasses.replace(self.params, features=tuple(ids)),
            provenance=self.provenance,
        )

    def keys(self) -> KeysView[int]:
        """The feature indices, in rising order."""
        return self.feature_data_dict.keys()

    def values(self) -> ValuesView[FeatureData]:
        """The features, in rising order of their index."""
        return ValuesView(self)  # which reads one after the other

    def items(self) -> ItemsView[int, FeatureData]:
        """Pairs of index and feature, in rising order."""
        return ItemsView(self)

    @property
    def labels(self) -> _labels.Labels:
        """The labels of the features that have one: ``features.labels[8] = "import statements"``, or assign a whole mapping.

        A label that is None, empty or deleted is taken away. Assigning a mapping replaces all labels.

        Raises:
            InputError: if a feature is not there, or a label is no text of at most 200 characters.
        """
        return _labels.Labels(
            self.feature_data_dict,
            lambda feature: self._said(feature).label or None,
            lambda feature, text: _feature_folder.change(self.feature_data_dict, feature, {"label": text}),
            lambda feature: _absent_feature(feature, self.feature_data_dict),
        )

    @labels.setter
    def labels(self, labels: Mapping[int, str | None]) -> None:
        self.labels.replace(labels)

    def save_labels(self, path: str | os.PathLike[str]) -> None:
        """Write labels, notes and stars to a JSON file, which ``load_labels`` and the pages in a browser read.

        Raises:
            InputError: if it cannot be written.
        """
        said = {feature: self._said(feature) for feature in self}
        marks = {
            feature: _labels.Marks(one.label or None, one.note or None, one.starred)
            for feature, one in said.items()
            if one.label or one.note or one.starred
        }
        _labels.save(path, _origin(self.provenance), marks)

    def load_labels(self, path: str | os.PathLike[str], *, any_origin: bool = False) -> list[int]:
        """Take over labels, notes and stars from a file of ``save_labels`` or from one that a page exported.

        What the file says of a feature replaces what was said of it here; other features stay as they are.

        Args:
            path: the file.
            any_origin: whether the features of another encoder, hook point or model will do.

        Returns:
            The features of the file that this data does not hold.

        Raises:
            FileFormatError: if the file is none of labels.
            InputError: if it is about other features.
        """
        absent = []
        for feature, marks in _labels.load(path, _origin(self.provenance), any_origin).items():
            if feature not in self:
                absent.append(feature)
                continue
            said = {"label": marks.label, "note": marks.note, "starred": marks.star}
            _feature_folder.change(self.feature_data_dict, feature, said)
        return sorted(absent)

    def _said(self, feature: int) -> Any:
        return _feature_folder.some_fields(self.feature_data_dict, feature, _Said)

    def __repr__(self) -> str:
        return f"MultiFeatureData({_count(len(self), 'feature')} of {_subtitle(self.provenance)})"

    def with_layout(self, layout: Layout | None) -> MultiFeatureData:
        """The same data, whose pages have another layout (None: the default); nothing is computed.

        Raises:
            InputError: if a component does not belong in this view.
        """
        return dataclasses.replace(self, params=dataclasses.replace(self.params, layout=layout))

    def get_html(
        self, page: PageContext | None = None, feature: int | None = None, *, layout: Layout | None = None
    ) -> Html:
        """The whole page as one document: every feature, ``feature`` (None: the overview of all) shown at the start.

        Raises:
            InputError: if there is no such feature, or a component of the ``layout`` does not belong in this view.
        """
        if layout is not None:
            return self.with_layout(layout).get_html(page, feature)
        first = self._first(feature)
        return _features_document(self, page or self._context(), list(self), first, opens=_opens(feature))

    def save_html(
        self,
        path: str | os.PathLike[str],
        feature: int | None = None,
        *,
        processes: int | None = None,
        layout: Layout | None = None,
    ) -> None:
        """Write the whole page to one file, which opens from disk with no network.

        Args:
            path: the file.
            feature: the one that is shown at the start; None: the overview of all.
            processes: how many draw; None: as many as there are cores, where the features are enough to be worth it; 1: this
                one alone. The file is the same.
            layout: the arrangement of the panels; None: that of the parameters.

        Raises:
            InputError: if there is no such feature, ``processes`` is no such number, or a component of the layout does not
                belong in this view.
        """
        if layout is not None:
            self.with_layout(layout).save_html(path, feature, processes=processes)
            return
        first, opens = self._first(feature), _opens(feature)
        parts = _features_parts(self, self._context(), list(self), first, processes=processes, opens=opens)
        _json.write_atomic(path, _page.document_pieces(*parts))

    def save_site(
        self,
        folder: str | os.PathLike[str],
        feature: int | None = None,
        processes: int | None = None,
        *,
        layout: Layout | None = None,
    ) -> None:
        """Write a folder, for as many features as there are: its ``index.html`` opens from disk and from any static host.

        The page is that of ``save_html``, but features lie in files of 2 MB at most, which it loads when one is asked for.
        They are drawn one after the other. A site that is there already is replaced.

        Args:
            folder: where the site goes.
            feature: the one that is shown at the start; None: the overview of all.
            processes: how many draw, as for ``save_html``.
            layout: the arrangement of the panels; None: that of the parameters.

        Raises:
            InputError: if there is no such feature, or the folder holds anything else.
        """
        if layout is not None:
            self.with_layout(layout).save_site(folder, feature, processes)
            return
        first, page = self._first(feature), self._context()
        opened = NOTHING if first is None else self.feature_data_dict[first].get_html(page)
        body = _features_body(page, first, opened, len(self), opens=_opens(feature))
        overview = _overview_of(self, list(self))
        features = _noted(overview, (self.feature_data_dict[index] for index in self))
        vocab = _vocab(page, self.vocab)
        with contextlib.closing(packed_features(features, page, len(self), processes)) as drawn:
            packed = (_site.Packed(data.feature_idx, data.label, text, data.note, data.starred) for data, text in drawn)
            title, assets = _first_title(page, first), functools.partial(_overview_assets, overview, page, vocab)
            _site.write(folder, title, _title(page), body, vocab, packed, self.rows, _whose(page), assets)

    @classmethod
    def load_dir(cls, folder: str | os.PathLike[str]) -> MultiFeatureData:
        """Open a folder that ``get_feature_data(..., out_dir=folder)`` wrote, finished or not; neither model nor torch is needed.

        A feature is read when it is asked for, and checked then; memory holds few at a time.

        Raises:
            FileFormatError: if the folder is not what it should be; the file is named.
        """
        with _feature_folder.FeatureFolder.existing(cls, folder) as opened:
            return opened.data()

    def _repr_html_(self) -> str:
        shown = list(self)[: _page.NOTEBOOK_FEATURES]
        document = self._notebook_document(shown)
        while len(document) > _page.NOTEBOOK_BYTES and len(shown) > 1:
            shown = shown[: max(1, len(shown) * _page.NOTEBOOK_BYTES // (len(document) + 1))]
            document = self._notebook_document(shown)
        return _page.notebook_frame(document, repr(self))

    def to_text(self, at_most: int = 5, examples: int = 3) -> str:
        """The first features as plain text, for where no HTML is shown; see ``FeatureData.to_text``.

        Raises:
            InputError: if ``at_most`` or ``examples`` is no int from 0 on.
        """
        listed = itertools.islice(self, _text.checked_number("at_most", at_most))
        shown = [self[feature].to_text(examples) for feature in listed]
        left = len(self) - len(shown)
        more = [f"… and {_count(left, 'other')}: features[8].to_text() gives one."] if left else []
        return "\n\n".join([_text.plain(repr(self)), *shown, *more])

    def merge(self, other: MultiFeatureData) -> MultiFeatureData:
        """Both sets of features in one; they must be disjoint and come from the same run but for the features asked for.

        Raises:
            InputError: if a feature is in both, or the parameters, the provenance or the vocabularies differ.
        """
        if not isinstance(other, MultiFeatureData):
            raise InputError(f"MultiFeatureData.merge needs another MultiFeatureData, got {type(other).__name__}.")
        common = sorted(self.keys() & other.keys())
        if common:
            raise InputError(f"merge joins disjoint features, but both hold {_some(common)}.")
        _check_same_run(self, other)
        features = None
        if self.params.features is not None and other.params.features is not None:
            features = tuple(sorted({*self.params.features, *other.params.features}))
        known = other.provenance if self.provenance.map_variance is None else self.provenance
        return MultiFeatureData(
            feature_data_dict=_feature_folder.joined(self.feature_data_dict, other.feature_data_dict),
            vocab=dict(_merged("vocab", self.vocab, other.vocab)),
            vocab_bytes=dict(_merged("vocab_bytes", self.vocab_bytes, other.vocab_bytes)),
            rows=_merged("rows", self.rows, other.rows),
            params=dataclasses.replace(self.params, features=features),
            provenance=dataclasses.replace(self.provenance, **{name: getattr(known, name) for name in _OF_MAP}),
        )

    def _with_context(self, feature: FeatureData) -> FeatureData:
        """The feature, remembering how to draw itself. That is no field: it is neither saved nor compared."""
        vars(feature)["_context"] = PageContext(
            TokenPrinter(self.vocab, self.vocab_bytes), self.params, self.provenance, rows=self.rows
        )
        return feature

    def _context(self) -> PageContext:
        printer = TokenPrinter(self.vocab, self.vocab_bytes)
        return PageContext(printer, self.params, self.provenance, frozenset(self.feature_data_dict))

    def _first(self, feature: int | None) -> int | None:
        if feature is None:
            return next(iter(self), None)
        try:
            return self.feature_data_dict[feature].feature_idx
        except (KeyError, TypeError):
            raise InputError(_absent_feature(feature, self.feature_data_dict)) from None

    def _notebook_document(self, shown: list[int]) -> Html:
        note = ""
        if len(shown) < len(self):
            note = (
                f"Showing {len(shown)} of {_count(len(self), 'feature')}. "
                "Write them all to a file with .save_html('features.html'), or choose some: features[8]."
            )
        page = dataclasses.replace(self._context(), features=frozenset(shown))
        return _features_document(self, page, shown, next(iter(shown), None), note)


def packed_features(
    features: Iterable[FeatureData], page: PageContext, count: int, processes: int | None = None
) -> Generator[tuple[FeatureData, str], None, None]:
    """Each feature with its packed HTML, in order; close it if it is not read to the end.

    Args:
        features: read one by one, few of them held at once.
        page: the page that they are drawn for.
        count: how many there are, about.
        processes: how many draw; None: as many as there are cores, where ``count`` makes that worth it; 1: this one alone.

    Raises:
        InputError: if ``processes`` is no such number.
    """

    def here(feature: FeatureData) -> str:
        return _page.pack(feature.get_html(page))

    n = _render_pool.n_processes(processes, count)
    setup = worker_setup(page) if n > 1 else None
    if setup is None:
        yield from _packed_behind((feature, feature.get_html(page)) for feature in features)
    else:
        yield from _render_pool.ordered_map(features, n, setup, _worker_line, here)


def _packed_behind(drawn: Iterable[tuple[FeatureData, Html]]) -> Generator[tuple[FeatureData, str], None, None]:
    """Each feature with its HTML packed while the next one is drawn: compressing needs no interpreter."""
    last: tuple[FeatureData, Future[str]] | None = None
    with ThreadPoolExecutor(1) as thread:
        for feature, fragment in drawn:
            before, last = last, (feature, thread.submit(_page.pack, fragment))
            if before:
                yield before[0], before[1].result()
        if last:
            yield last[0], last[1].result()


def worker_setup(page: PageContext) -> bytes | None:
    """What a worker process must know of a page: the features in a line, a document without any; None if that is not all."""
    if type(page) is not PageContext or type(page.printer) is not TokenPrinter or page.provenance is None:
        return None
    layout = page.params.feature_layout()
    if any(component.name not in BUILT_IN for component in layout.components()):
        return None  # another process does not know panels that were registered in this one
    printer = page.printer
    data = MultiFeatureData({}, dict(printer.vocab), dict(printer.vocab_bytes), {}, page.params, page.provenance)
    try:
        return b" ".join(b"%d" % feature for feature in sorted(page.features)) + b"\n" + b"".join(_json.document(data))
    except InputError:  # what no file can hold is drawn all the same
        return None


def _worker_line(feature: FeatureData) -> bytes | None:
    try:
        return _json.line(MultiFeatureData, feature) if type(feature) is FeatureData else None
    except InputError:
        return None


def _features_document(
    features: MultiFeatureData,
    page: PageContext,
    shown: list[int],
    first: int | None,
    note: str = "",
    opens: str = "overview",
) -> Html:
    return _page.document(*_features_parts(features, page, shown, first, note, opens=opens))


def _features_parts(
    features: MultiFeatureData,
    page: PageContext,
    shown: list[int],
    first: int | None,
    note: str = "",
    processes: int | None = 1,
    opens: str = "overview",
) -> tuple[str, Html, list[Html]]:
    """Title, body and elements of the feature-centric page: ``first`` in plain HTML, the others packed.

    Every feature is looked at once.
    """
    overview = _overview_of(features, shown)
    opened, labels, token_ids = NOTHING, dict[int, str](), set[int]()
    examples: list[list[int]] = []  # the rows of each feature's
    notes: dict[int, str] = {}
    stars: list[int] = []
    every_text = len(shown) == len(features)

    def others() -> Iterator[FeatureData]:
        nonlocal opened
        for index in shown:
            feature = features.feature_data_dict[index]
            overview.add(feature)
            if not every_text:
                token_ids.update(feature.token_ids())
            if feature.label:
                labels[index] = feature.label
            if feature.note:
                notes[index] = feature.note
            if feature.starred:
                stars.append(index)
            if features.rows:
                examples.append(feature.example_rows())
            if index == first:
                opened = feature.get_html(page)
            else:
                yield feature

    with contextlib.closing(packed_features(others(), page, len(shown), processes)) as drawn:
        packed = _page.all_packed((feature.feature_idx, text) for feature, text in drawn)
    index = {"ids": shown, "labels": labels, "notes": notes, "stars": stars, "title": _title(page), **_whose(page)}
    body = _features_body(page, first, opened, len(shown), note, opens)
    rows = _rows.chosen(features.rows, examples)
    token_ids |= _rows.token_ids(rows.values()) | overview.token_ids()
    # The texts of a whole vocabulary may be more than a notebook should hold, for fifty features of thousands.
    vocab = _vocab(page, features.vocab if every_text else token_ids)
    assets = _overview_assets(overview, page, vocab) if len(shown) > 1 else {}
    elements = [
        _page.data("vocab", vocab),
        _page.data("index", index),
        *_rows_element(rows),
        *(_page.packed_asset(name, text) for name, text in assets.items()),
        *packed,
    ]
    return _first_title(page, first), body, elements


# --- the overview of many features ---------------------------------------------------------------------------------


def _opens(feature: int | None) -> str:
    return "overview" if feature is None else "feature"


def _overview_of(features: MultiFeatureData, shown: Sequence[int]) -> _overview.Overview:
    """What will collect the overview of the features ``shown``; columns that need all of them are given to it here."""
    told, kind = features.provenance, features.params.feature_map
    return _overview.Overview(meta={"map": _MAPS[kind](told)} if kind else None)


def _pca_map(told: Provenance) -> str:
    share = told.map_variance if told.map_variance is not None and 0 <= told.map_variance <= 1 else None
    of, kind, whose = f"{told.d_hidden:,} decoder directions", "PCA", "their"
    if told.map_sample is not None:
        of, kind, whose = f"{told.map_sample:,} of the {of}", "PCA of an evenly spaced sample", "its"
    kept = "" if share is None else f", {format_percent(share)} of {whose} variance"
    return f"By the two main axes of {of} ({kind}{kept}): features far apart differ, near ones may or may not."


def _umap_map(told: Provenance) -> str:
    return (
        f"By UMAP of the {told.d_hidden:,} decoder directions: near features are similar, large distances mean little."
    )


_MAPS: dict[str, Callable[[Provenance], str]] = {"pca": _pca_map, "umap": _umap_map}


def _noted(overview: _overview.Overview, features: Iterable[FeatureData]) -> Iterator[FeatureData]:
    for feature in features:
        overview.add(feature)
        yield feature


def _overview_assets(overview: _overview.Overview, page: PageContext, vocab: Mapping[str, Any]) -> dict[str, str]:
    printer = page.printer
    return overview.assets(_overview.texts_apart(vocab["ids"], vocab["html"], printer.vocab, printer.vocab_bytes))


def _features_body(
    page: PageContext, first: int | None, opened: Html, count: int, note: str = "", opens: str = "overview"
) -> Html:
    """The body of the feature-centric page: what does not depend on the feature, and ``first`` of ``count``."""
    return html_fns.features_page(
        "SAE features" if count != 1 else "SAE feature",
        _subtitle(page.provenance),
        html_fns.feature_finder(first, count) if first is not None and count > 1 else NOTHING,
        _notes(page, note),
        html_fns.empty("There are no features in this data.") if first is None else opened,
        _footer(page),
        join([html_fns.hovertext(), _abouts(page.params.feature_layout())]),
        html_fns.overview(opens, count) if count > 1 else NOTHING,
    )


def _first_title(page: PageContext, first: int | None) -> str:
    return _title(page) if first is None else f"Feature {first} · {_title(page)}"


def _one_feature_document(feature: FeatureData, page: PageContext) -> Html:
    index = {
        "ids": [feature.feature_idx],
        "labels": {feature.feature_idx: feature.label} if feature.label else {},
        "notes": {feature.feature_idx: feature.note} if feature.note else {},
        "stars": [feature.feature_idx] if feature.starred else [],
        "title": _title(page),
        **_whose(page),
    }
    body = html_fns.features_page(
        "SAE feature",
        _subtitle(page.provenance),
        NOTHING,
        _notes(page),
        feature.get_html(page),
        _footer(page),
        join([html_fns.hovertext(), _abouts(page.params.feature_layout())]),
    )
    rows = _rows.chosen(page.rows, [feature.example_rows()])
    token_ids = feature.token_ids() | _rows.token_ids(rows.values())
    elements = [_vocab_element(page, token_ids), _page.data("index", index), *_rows_element(rows)]
    return _page.document(f"Feature {feature.feature_idx} · {_title(page)}", body, elements)


def _origin(provenance: Provenance) -> dict[str, str]:
    return _labels.origin(provenance.model, provenance.hook_point, provenance.digests)


def _whose(page: PageContext) -> dict[str, object]:
    """Whose features the page shows: browsers keep what a reader says of them under this key."""
    of = _origin(page.provenance) if page.provenance else {}
    return {"of": of, "key": _labels.storage_key(of)}


def _rows_element(rows: Mapping[int, Sequence[int]]) -> list[Html]:
    """The rows that a reader may open, where there are any."""
    return [_page.data("rows", _rows.packed(rows))] if rows else []


def _vocab_element(page: PageContext, token_ids: Iterable[int]) -> Html:
    """How every token that the hover text may name is shown."""
    return _page.data("vocab", _vocab(page, token_ids))


def _vocab(page: PageContext, token_ids: Iterable[int]) -> dict[str, Any]:
    ids = sorted(token_ids)
    parts = page.printer.vocab_bytes
    return {
        "ids": ids,
        "html": [page.printer.one(token_id) for token_id in ids],
        "bytes": {token_id: parts[token_id] for token_id in ids if token_id in parts},
    }


def _title(page: PageContext) -> str:
    told = page.provenance
    return f"{shorten(told.hook_point, NAME_LIMIT)} · {shorten(told.model, NAME_LIMIT)}" if told else "sae_vis"


def _subtitle(provenance: Provenance | None) -> str:
    if provenance is None:
        return ""
    return f"{shorten(provenance.hook_point, NAME_LIMIT)} of {shorten(provenance.model, NAME_LIMIT)}"


def _notes(page: PageContext, *first: str) -> Html:
    notes = page.provenance.notes if page.provenance else []
    return html_fns.notes([shorten(note, TEXT_LIMIT) for note in (*first, *notes) if note])


def _footer(page: PageContext) -> str:
    told = page.provenance
    if told is None:
        return "sae_vis"
    parts = [
        f"{_count(told.n_rows, 'row')} of {_count(told.seq_len, 'token')}, {_count(told.n_counted, 'position')} counted",
        f"{_count(told.d_hidden, 'feature')} on {_count(told.d_in, 'dimension')}",
        ", ".join(f"{shorten(name)} {shorten(version)}" for name, version in sorted(told.versions.items())),
        ", ".join(f"{shorten(name)} {digest[:12]}" for name, digest in sorted(told.digests.items())),
    ]
    return " · ".join(part for part in parts if part)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _some(values: Sequence[object], at_most: int = 8) -> str:
    return ", ".join(map(str, values[:at_most])) + (", …" if len(values) > at_most else "") if values else "none"


# What tells of the map, and so of the encoder, whose digest is compared: older files have it not, and the last digit of the
# variance may be another machine's.
_OF_MAP = ("map_variance", "map_sample")


def _check_same_run(one: MultiFeatureData, other: MultiFeatureData) -> None:
    told = dataclasses.replace(other.provenance, **{name: getattr(one.provenance, name) for name in _OF_MAP})
    for what, mine, others in (
        ("parameters", *(dataclasses.replace(data.params, **RUN_OPTIONS) for data in (one, other))),
        ("provenance", one.provenance, told),
    ):
        names = [f.name for f in dataclasses.fields(mine) if getattr(mine, f.name) != getattr(others, f.name)]  # type: ignore[arg-type]
        if names:
            raise InputError(f"merge joins features of one run, but the {what} differ in: {', '.join(names)}.")


def _merged(what: str, one: Mapping[int, V], other: Mapping[int, V]) -> Mapping[int, V]:
    differing = sorted(key for key in one.keys() & other.keys() if one[key] != other[key])
    if differing:
        raise InputError(f"merge joins features of one run, but {what} differs at {_some(differing)}.")
    return _feature_folder.joined(one, other)


def _absent_feature(feature: object, known: Mapping[int, FeatureData]) -> str:
    return (
        f"Feature {feature!r} is not in this data, which holds {_count(len(known), 'feature')}: {_some(list(known))}."
    )


# --- the prompt-centric view -------------------------------------------------------------------------------------


# How each score is named, written in a column's title, and explained.
_METRICS: dict[str, tuple[str, str]] = {
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
        page = (page or PageContext()).for_feature(
            [self.sequence, *self.top_group.sequences], self.activations, self.logits
        )
        link = join([str(self.feature_idx)])
        if page.feature_url:
            link = html_fns.outside_link(self.feature_idx, page.feature_url.replace("{feature}", str(self.feature_idx)))
        return html_fns.prompt_column(
            self.feature_idx,
            link,
            html_fns.label(self.label or ""),
            rank,
            score,
            _columns(page.params.layout_of("prompt"), self, page, _prompt_drawers(self)),
            page.params.border,
        )

    def token_ids(self) -> set[int]:
        """Every token that occurs in the prompt, in the top sequences and in their effects."""
        return _token_ids([self.sequence, *self.top_group.sequences])

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

    return _DRAWERS | {
        "prompt": lambda part, page, options: html_fns.prompt_sequence(
            part.get_html(page, bold_idx=page.seq_pos), _hover([part], page)
        ),
        "activations_histogram": lambda part, page, options: part.get_html(page, pin=act_pin(page)),
        "logits_histogram": lambda part, page, options: part.histogram_html(page, pin=logit_pin(page)),
        "top_sequences": lambda part, page, options: html_fns.top_sequences(
            part.get_html(page, examples=options.get("examples")),
            _hover(part.sequences[: options.get("examples")], page),
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
        columns = _count(n_features, "feature")
        return f"MultiPromptData({_count(n_tokens, 'token')}, {columns} of {_subtitle(self.provenance)})"

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
            feature_url=_checked_url(feature_url),
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
            raise InputError(f"There is no score {asked!r} in this data. There is: {_some(list(self.scores))}.")
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
                f"seq_pos must be an index of the prompt's tokens, 0 to {last}, got {asked!r}. {_some(tokens, 40)}"
            )
        return asked


def _checked_url(url: str | None) -> str | None:
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
        _subtitle(page.provenance),
        _notes(page),
        _strip(prompt, page),
        [html_fns.prompt_metric(name, _METRICS[name][0], name == score_name) for name in prompt.scores],
        _METRICS[score_name][1],
        html_fns.legend("the feature’s maximum", _loss_key(page)),
        columns,
        _none_ranked(score_name),
        _footer(page),
        join([html_fns.hovertext(), _abouts(page.params.layout_of("prompt"))]),
        _whole_prompt(prompt, page, heat),
    )
    rows = _rows.chosen(prompt.rows, [data.example_rows() for data in prompt.prompt_data_dict.values()])
    ids = set(prompt.prompt_token_ids).union(*(data.token_ids() for data in prompt.prompt_data_dict.values()))
    ids |= _rows.token_ids(rows.values())
    state = {
        "position": position,
        "metric": score_name,
        "about": {name: _METRICS[name][1] for name in prompt.scores},
        "none": {name: _none_ranked(name) for name in prompt.scores},
        "labels": {feature: data.label for feature, data in prompt.prompt_data_dict.items() if data.label},
        **_whose(page),
        "scores": {
            name: [[[feature, _score_text(name, score)] for feature, score in at] for at in positions]
            for name, positions in prompt.scores.items()
        },
    }
    labels = {feature: data.label for feature, data in prompt.prompt_data_dict.items()}
    cells = heat_data(heat, PROMPT_HEAT, labels, lambda name, feature, at, score: _score_number(name, score))
    elements = [
        _vocab_element(page, ids),
        _page.data("rankings", state),
        _page.data("heat", cells),
        *_rows_element(rows),
        *packed,
    ]
    return _page.document(f"Prompt · {_title(page)}", body, elements)


def _strip(prompt: MultiPromptData, page: PageContext) -> list[Html]:
    """The prompt's tokens, each with the number of features that are active on it."""
    largest = max(prompt.n_active, default=0)
    tokens = page.printer.sequence(prompt.prompt_token_ids)
    return [
        html_fns.prompt_token(
            token,
            f"Position {position}, {_count(n_active, 'active feature')}",
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


# --- for the comparison of two prompts, which is a module of its own -----------------------------------------------

METRICS = _METRICS
checked_url = _checked_url
hover_of, token_ids_of, vocab_element = _hover, _token_ids, _vocab_element
subtitle_of, notes_of, footer_of, loss_key_of = _subtitle, _notes, _footer, _loss_key
whose, rows_element = _whose, _rows_element
