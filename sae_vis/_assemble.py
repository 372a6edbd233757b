"""From numbers to dataclasses: tensors and arrays become plain Python numbers, rounded for storing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from jaxtyping import Float
from torch import Tensor

from sae_vis._distribution_data import ActivationsData, HistogramData, LogitsData
from sae_vis._params import FeatureVisParams
from sae_vis._ranking import largest_of_any_width
from sae_vis._sequence_data import FullEffects, SequenceData, TokenEffect
from sae_vis._shown import ByPlace, EffectAt, ShownFeature
from sae_vis._statistics import (
    ActivationMoments,
    FeatureActivations,
    histogram,
    histograms,
    moments,
    moments_of_rows,
    significant,
)
from sae_vis.model_fns import MIN_PRODUCT_ROWS
from sae_vis.utils_fns import round_significant, ticks

STORED_DIGITS = 5
EDGE_DIGITS = 8
LOGITS_BYTES = 2**26  # of logit weights that are looked at together


def sequence_data(
    row: int,
    start: int,
    bold: int,
    token_ids: list[int],
    places: range,
    seen: ShownFeature,
    padding: int | None,
) -> SequenceData:
    """A shown sequence, from what was looked up and measured at its places."""
    unpredicted = [at for at, token in enumerate(token_ids) if token == padding] if padding in token_ids else []
    if start == 0:
        unpredicted.append(0)
    measured = [_measured(effect_at, places, unpredicted) for effect_at in seen.effects.values()]
    losses, effects = measured[0] if measured else ([None] * len(token_ids), [])
    acts = [0.0] * len(token_ids)
    for place, value in seen.activation.within(places):
        acts[place - places.start] = value
    both = FullEffects(*measured[1]) if len(measured) > 1 else None
    return SequenceData(row, start, bold, token_ids, acts, losses, effects, both)


def _measured(
    effect_at: ByPlace[EffectAt], places: range, unpredicted: Sequence[int]
) -> tuple[list[float | None], list[TokenEffect]]:
    """The loss contributions of the tokens that are predicted, and the tokens that are raised and lowered there."""
    losses: list[float | None] = [0.0] * len(places)
    for at in unpredicted:
        losses[at] = None
    effects = []
    for place, effect in effect_at.within(places):
        at = place - places.start
        if losses[at] is None:
            continue
        losses[at] = effect.loss
        if effect.raised_ids or effect.lowered_ids:
            effects.append(TokenEffect(at, *effect[1:]))
    return losses, effects


def activations_data(acts: FeatureActivations, n_bins: int) -> ActivationsData:
    edges, heights = histogram(acts.values, n_bins)
    bars = HistogramData(edges, heights, ticks(edges[0], edges[-1]) if edges else [])
    n_active = len(acts.values)
    density = n_active / acts.n_counted
    if not n_active:
        return ActivationsData(density, 0, None, None, None, None, None, bars)
    mean, variance, skewness, kurtosis = moments(acts.values, acts.n_counted)
    return ActivationsData(density, n_active, acts.maximum, mean, variance, skewness, kurtosis, bars)


def logits_at_a_time(d_vocab: int) -> int:
    """So many features that their logit weights take little memory, and at least as many as a product should have."""
    return max(MIN_PRODUCT_ROWS, LOGITS_BYTES // (4 * d_vocab))


class LogitPanel(NamedTuple):
    """What the logit panels show of one feature, from its logit weights ``[d_vocab]``."""

    weights: Any
    top: list[int]
    bottom: list[int]
    edges: list[float]
    heights: list[int]
    shape: tuple[float | None, float | None]

    def data(self, shown_ids: list[int]) -> LogitsData:
        """The panels, with the logit weights of the tokens that are shown."""
        every = [*self.top, *self.bottom, *shown_ids]
        weights = stored_logits(self.weights[every])
        n_top, n_listed = len(self.top), len(self.top) + len(self.bottom)
        edges = significant(np.array(self.edges), EDGE_DIGITS).tolist()
        return LogitsData(
            self.top,
            weights[:n_top],
            self.bottom,
            weights[n_top:n_listed],
            dict(zip(shown_ids, weights[n_listed:], strict=True)),
            HistogramData(edges, self.heights, ticks(edges[0], edges[-1])),
            *self.shape,
        )


class LogitPanels(NamedTuple):
    """The panels of several features, computed together; equal weights stand in the order of the token ids."""

    weights: Any
    top: list[list[int]]
    bottom: list[list[int]]
    edges: list[list[float]]
    heights: list[list[int]]
    shapes: list[tuple[float | None, float | None]]  # skewness and kurtosis

    @classmethod
    def of(cls, weights: Float[Tensor, "n d_vocab"] | None, fvp: FeatureVisParams) -> LogitPanels:
        """Of the logit weights; None where there are none."""
        if weights is None:
            return cls(None, [], [], [], [], [])
        n = min(fvp.n_logits, weights.shape[1])
        best = [largest_of_any_width(weights, n, negated=negated).sorted()[0].tolist() for negated in (False, True)]
        edges, heights = histograms(weights, fvp.n_bins)
        rows = weights.cpu().numpy()
        return cls(rows, best[0], best[1], edges, heights, [_shape(found) for found in moments_of_rows(rows)])

    def at(self, index: int) -> LogitPanel | None:
        """Those of one feature."""
        if self.weights is None:
            return None
        return LogitPanel(
            self.weights[index],
            self.top[index],
            self.bottom[index],
            self.edges[index],
            self.heights[index],
            self.shapes[index],
        )


def _shape(of_all: ActivationMoments) -> tuple[float | None, float | None]:
    """Skewness and kurtosis, rounded; None where the logit weights are all equal."""
    skewness, kurtosis = (
        None if value is None else round_significant(value, STORED_DIGITS)
        for value in (of_all.skewness, of_all.kurtosis)
    )
    return skewness, kurtosis


def stored_logits(weights: npt.NDArray[np.floating]) -> list[float]:
    """Logit weights, rounded for storing."""
    stored: list[float] = significant(weights.astype(np.float64), STORED_DIGITS).tolist()
    return stored


def sequence_token_ids(sequence: SequenceData) -> Iterator[int]:
    yield from sequence.token_ids
    for effect in sequence.all_effects():
        yield from (*effect.raised_token_ids, *effect.lowered_token_ids)
