"""The nested dataclasses of both views: what was fetched, how it is drawn, how it is saved. No computation.

Only ``str``, ``int``, ``float``, ``bool``, ``None``, lists and dicts are inside, so that JSON holds everything needed to
draw a page again, with no model, no tokenizer and no torch. Every class checks its lengths and ranges when it is made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass, field
from typing import Literal

from sae_vis._errors import InputError
from sae_vis._params import FeatureVisParams

ScoreName = Literal["act_size", "act_quantile", "loss_effect"]
SCORE_NAMES: tuple[ScoreName, ...] = ("act_size", "act_quantile", "loss_effect")


def _check(condition: bool, where: object, message: str) -> None:
    if not condition:
        raise InputError(f"{type(where).__name__}: {message}")


def _check_same_length(where: object, **lists: Sized | None) -> None:
    """All the lists that are there have one length; the error names them."""
    lengths = {name: len(items) for name, items in lists.items() if items is not None}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise InputError(f"{type(where).__name__}: lists of one length expected, but {told}.")


def _check_finite(where: object, **values: Sequence[float | None] | float | None) -> None:
    """No NaN and no infinity, which JSON cannot hold and no page can show."""
    for name, value in values.items():
        items = value if isinstance(value, Sequence) else (value,)
        for index, item in enumerate(items):
            if item is not None and not math.isfinite(item):
                raise InputError(f"{type(where).__name__}: {name}[{index}] is {item!r}, a finite number was expected.")


# --- the parts of one feature ------------------------------------------------------------------------------------


@dataclass
class HistogramData:
    """Equal bins: ``n + 1`` edges, ``n`` counts, and the ticks of the axis. All empty where there is nothing to count."""

    bar_edges: list[float]
    bar_heights: list[int]
    tick_vals: list[float]

    def __post_init__(self) -> None:
        expected = len(self.bar_heights) + 1 if self.bar_heights else 0
        _check(
            len(self.bar_edges) == expected,
            self,
            f"{len(self.bar_heights)} bars need {expected} edges, got {len(self.bar_edges)}.",
        )
        _check(all(height >= 0 for height in self.bar_heights), self, "a bar height is negative.")
        _check_finite(self, bar_edges=self.bar_edges, tick_vals=self.tick_vals)


@dataclass
class NeuronAlignmentData:
    """The neurons of the hook point with the largest decoder weights, and each weight's share of the L1 norm (0 to 1)."""

    indices: list[int]
    values: list[float]
    share_of_l1: list[float]

    def __post_init__(self) -> None:
        _check_same_length(self, indices=self.indices, values=self.values, share_of_l1=self.share_of_l1)
        _check_finite(self, values=self.values, share_of_l1=self.share_of_l1)


@dataclass
class CorrelationData:
    """The columns that correlate most with a feature: Pearson's r, and the cosine similarity of the activations."""

    indices: list[int]
    pearson: list[float]
    cosine: list[float]

    def __post_init__(self) -> None:
        _check_same_length(self, indices=self.indices, pearson=self.pearson, cosine=self.cosine)
        _check_finite(self, pearson=self.pearson, cosine=self.cosine)


@dataclass
class FeatureTablesData:
    """The left-hand tables; None where a table was not computed."""

    neuron_alignment: NeuronAlignmentData | None = None
    correlated_neurons: CorrelationData | None = None
    correlated_features: CorrelationData | None = None
    correlated_b_features: CorrelationData | None = None


@dataclass
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
        _check(0.0 <= self.density <= 1.0, self, f"density must be from 0 to 1, got {self.density!r}.")
        _check(self.n_active >= 0, self, f"n_active must not be negative, got {self.n_active!r}.")
        _check_finite(
            self, max=self.max, mean=self.mean, variance=self.variance, skewness=self.skewness, kurtosis=self.kurtosis
        )


@dataclass
class LogitsData:
    """The direct effect of one unit of the feature on the logits, centred over the vocabulary.

    ``top_*`` from the largest down, ``bottom_*`` from the smallest up; ``shown_logits`` maps the id of every token that
    is shown in the feature's sequences to its logit weight.
    """

    top_token_ids: list[int]
    top_logits: list[float]
    bottom_token_ids: list[int]
    bottom_logits: list[float]
    shown_logits: dict[int, float]
    histogram: HistogramData

    def __post_init__(self) -> None:
        _check_same_length(self, top_token_ids=self.top_token_ids, top_logits=self.top_logits)
        _check_same_length(self, bottom_token_ids=self.bottom_token_ids, bottom_logits=self.bottom_logits)
        _check_finite(
            self,
            top_logits=self.top_logits,
            bottom_logits=self.bottom_logits,
            shown_logits=list(self.shown_logits.values()),
        )


@dataclass
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
        _check_same_length(self, raised_token_ids=self.raised_token_ids, raised_logprobs=self.raised_logprobs)
        _check_same_length(self, lowered_token_ids=self.lowered_token_ids, lowered_logprobs=self.lowered_logprobs)
        _check_finite(self, raised_logprobs=self.raised_logprobs, lowered_logprobs=self.lowered_logprobs)


@dataclass
class SequenceData:
    """A shown piece of a row: tokens ``start .. start + len(token_ids)`` of ``row``, token ``bold_idx`` of them bold.

    ``feat_acts`` are the feature's activations on each token, ``loss_contribution`` the change of the loss on each token
    that the feature causes, in nats (negative: it helps), None where there is none.
    """

    row: int
    start: int
    bold_idx: int
    token_ids: list[int]
    feat_acts: list[float]
    loss_contribution: list[float | None]
    effects: list[TokenEffect] = field(default_factory=list)

    def __post_init__(self) -> None:
        _check_same_length(
            self, token_ids=self.token_ids, feat_acts=self.feat_acts, loss_contribution=self.loss_contribution
        )
        n_tokens = len(self.token_ids)
        _check(n_tokens > 0, self, "a sequence needs at least one token.")
        _check(0 <= self.bold_idx < n_tokens, self, f"bold_idx must be from 0 to {n_tokens - 1}, got {self.bold_idx!r}.")
        _check(self.row >= 0 and self.start >= 0, self, f"row and start must not be negative, got {self.row}, {self.start}.")
        _check(
            all(0 <= effect.at < n_tokens for effect in self.effects),
            self,
            f"an effect lies outside the sequence of {n_tokens} tokens.",
        )
        _check_finite(self, feat_acts=self.feat_acts, loss_contribution=self.loss_contribution)


@dataclass
class SequenceGroupData:
    """Examples of one kind: the top activations (``share`` None), or random ones with activations in (lower, upper]."""

    title: str
    lower: float
    upper: float
    share: float | None
    sequences: list[SequenceData]

    def __post_init__(self) -> None:
        _check_finite(self, lower=self.lower, upper=self.upper)
        _check(self.share is None or 0.0 <= self.share <= 1.0, self, f"share must be from 0 to 1, got {self.share!r}.")


@dataclass
class SequenceMultiGroupData:
    """All groups of examples of a feature: the top activations, then the intervals from the top down."""

    groups: list[SequenceGroupData]


@dataclass
class QuantileKnots:
    """Points of a feature's distribution of activations, from which ``act_quantile`` is looked up.

    ``values`` fall, ``ranks`` rise: ``ranks[i]`` of the ``n`` counted positions have an activation >= ``values[i]``.
    """

    values: list[float]
    ranks: list[int]
    n: int

    def __post_init__(self) -> None:
        _check_same_length(self, values=self.values, ranks=self.ranks)
        _check_finite(self, values=self.values)
        _check(
            all(a >= b for a, b in zip(self.values, self.values[1:], strict=False))
            and all(a < b for a, b in zip(self.ranks, self.ranks[1:], strict=False)),
            self,
            "values must fall and ranks must rise.",
        )
        _check(not self.ranks or (self.ranks[0] >= 1 and self.ranks[-1] <= self.n), self, f"ranks must be from 1 to {self.n}.")


@dataclass
class FeatureData:
    """Everything shown of one feature."""

    feature_idx: int
    feature_tables: FeatureTablesData
    activations: ActivationsData
    logits: LogitsData | None
    sequences: SequenceMultiGroupData
    quantiles: QuantileKnots
    label: str | None = None

    def __post_init__(self) -> None:
        _check(self.feature_idx >= 0, self, f"feature_idx must not be negative, got {self.feature_idx!r}.")


# --- where the numbers come from ---------------------------------------------------------------------------------


@dataclass
class Provenance:
    """What was run on what: enough to tell whether two files belong together, and what a page must say of its numbers.

    ``direct_effect`` is "exact", "direct path" (later computation that reads the hook point is left out) or "none", with
    the reason in ``direct_effect_reason``. ``first_token_id`` is the token that every row begins with, where there is one
    (a prompt then gets it too). ``notes`` are shown on the page.
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
    first_token_id: int | None = None
    ignored_token_ids: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)


# --- the feature-centric view ------------------------------------------------------------------------------------


@dataclass
class MultiFeatureData:
    """Many features of one encoder on one set of tokens: a mapping from feature index to ``FeatureData``.

    ``vocab`` holds the text of every token id that occurs, ``vocab_bytes`` the bytes (hex) of those that are only part of
    a character, ``rows`` the whole rows that examples come from (empty with ``store_rows=False``).
    """

    feature_data_dict: dict[int, FeatureData]
    vocab: dict[int, str]
    vocab_bytes: dict[int, str]
    rows: dict[int, list[int]]
    params: FeatureVisParams
    provenance: Provenance

    def __post_init__(self) -> None:
        self.feature_data_dict = dict(sorted(self.feature_data_dict.items()))
        for index, feature in self.feature_data_dict.items():
            _check(index == feature.feature_idx, self, f"key {index} holds feature {feature.feature_idx}.")

    def __getitem__(self, feature: int) -> FeatureData:
        try:
            return self.feature_data_dict[feature]
        except KeyError:
            raise InputError(_absent_feature(feature, self.feature_data_dict)) from None

    def __iter__(self) -> Iterator[int]:
        return iter(self.feature_data_dict)

    def __len__(self) -> int:
        return len(self.feature_data_dict)

    def __contains__(self, feature: object) -> bool:
        return feature in self.feature_data_dict

    def keys(self):  # type: ignore[no-untyped-def]
        """The feature indices, in rising order."""
        return self.feature_data_dict.keys()

    def values(self):  # type: ignore[no-untyped-def]
        """The features, in rising order of their index."""
        return self.feature_data_dict.values()

    def items(self):  # type: ignore[no-untyped-def]
        """Pairs of index and feature, in rising order."""
        return self.feature_data_dict.items()


def _absent_feature(feature: object, known: dict[int, FeatureData]) -> str:
    held = list(known)
    told = ", ".join(map(str, held[:8])) + (", …" if len(held) > 8 else "")
    return f"Feature {feature!r} is not in this data, which holds {len(held)} features ({told or 'none'})."


# --- the prompt-centric view -------------------------------------------------------------------------------------


@dataclass
class PromptData:
    """One feature on a prompt, with what a column of the prompt-centric view shows of it."""

    feature_idx: int
    sequence: SequenceData
    activations: ActivationsData
    logits: LogitsData | None
    top_group: SequenceGroupData
    label: str | None = None


@dataclass
class MultiPromptData:
    """Which features matter at each token of one prompt.

    ``scores[score_name][position]`` lists ``(feature, score)``, best first; ``n_active[position]`` counts the features
    with an activation there, of those that were asked for.
    """

    prompt_token_ids: list[int]
    n_active: list[int]
    vocab: dict[int, str]
    vocab_bytes: dict[int, str]
    prompt_data_dict: dict[int, PromptData]
    params: FeatureVisParams
    provenance: Provenance
    scores: dict[ScoreName, list[list[tuple[int, float]]]]

    def __post_init__(self) -> None:
        self.prompt_data_dict = dict(sorted(self.prompt_data_dict.items()))
        _check_same_length(self, prompt_token_ids=self.prompt_token_ids, n_active=self.n_active)
        n_tokens = len(self.prompt_token_ids)
        for name, positions in self.scores.items():
            _check(len(positions) == n_tokens, self, f"scores[{name!r}] has {len(positions)} positions, expected {n_tokens}.")
            for ranked in positions:
                for feature, score in ranked:
                    _check(feature in self.prompt_data_dict, self, f"scores name feature {feature}, which has no data.")
                    _check_finite(self, scores=score)
        for feature, data in self.prompt_data_dict.items():
            shown = len(data.sequence.token_ids)
            _check(shown == n_tokens, self, f"feature {feature} shows {shown} tokens of a prompt of {n_tokens}.")


