"""The shown pieces of rows: which tokens, with which activations and effects, rounded for storing."""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from sae_vis._ablation import Effects
from sae_vis._params import Ablation
from sae_vis._statistics import Example, FeatureActivations, Ints, are_among, significant

V = TypeVar("V")

LOSS_DECIMALS = 5
LOGPROB_DIGITS = 4


class Window(NamedTuple):
    """Tokens ``start .. stop`` of a row (in the whole set of tokens), with one of them bold."""

    row: int
    start: int
    stop: int
    bold: int

    @classmethod
    def around(cls, example: Example, buffer: tuple[int, int] | None, seq_len: int) -> Window:
        """The example with its buffer, clipped at the row's ends; the whole row without a buffer."""
        before, after = buffer or (seq_len, seq_len)
        return cls(
            example.row,
            max(0, example.position - before),
            min(seq_len, example.position + after + 1),
            example.position,
        )


class EffectAt(NamedTuple):
    """One feature's effect on one token, rounded for storing."""

    loss: float
    raised_ids: list[int]
    raised: list[float]
    lowered_ids: list[int]
    lowered: list[float]


class ByPlace(dict[int, V]):
    """What a feature has at places (``row * seq_len + position``), in any order; a missing place has nothing."""

    def within(self, places: range) -> Iterator[tuple[int, V]]:
        """What it has at some places that follow each other, without a look at each of them."""
        rising = self._rising
        for place in rising[bisect_left(rising, places.start) : bisect_left(rising, places.stop)]:
            yield place, self[place]

    @functools.cached_property
    def _rising(self) -> list[int]:
        return sorted(self)


class ShownFeature(NamedTuple):
    """A feature's activations and effects by place.

    ``effects`` has an entry for each way in which they were measured, the one that is shown first before the other.
    """

    activation: ByPlace[float]
    effects: Mapping[Ablation, ByPlace[EffectAt]]


def shown_places(windows: Sequence[Window], seq_len: int) -> Ints:
    """All places that the windows show, each once, in rising order."""
    starts, stops = list[int](), list[int]()
    for start, stop in sorted((w.row * seq_len + w.start, w.row * seq_len + w.stop) for w in windows):
        if stops and start <= stops[-1]:
            stops[-1] = max(stops[-1], stop)
        else:
            starts.append(start)
            stops.append(stop)
    first = np.array(starts, dtype=np.int64)
    lengths = np.array(stops, dtype=np.int64) - first
    return np.repeat(first - (lengths.cumsum() - lengths), lengths) + np.arange(lengths.sum())


def shown_activations(acts: FeatureActivations, places: Ints, seq_len: int) -> ByPlace[float]:
    """The feature's activations at the places where it has one; both rise."""
    own = acts.rows * seq_len + acts.positions
    found = are_among(own, places)
    return ByPlace(zip(own[found].tolist(), acts.values[found].tolist(), strict=True))


def rounded(effects: Effects) -> list[EffectAt]:
    """The effects as plain numbers; a token is listed as raised only if it is, and as lowered only if it is."""
    losses = (np.round(effects.loss.numpy().astype(np.float64), LOSS_DECIMALS) + 0.0).tolist()  # no -0.0
    raised, lowered = (
        significant(values.numpy().astype(np.float64), LOGPROB_DIGITS, LOSS_DECIMALS)
        for values in (effects.raised, effects.lowered)
    )
    columns = zip(
        losses,
        effects.raised_ids.tolist(),
        raised.tolist(),
        (raised > 0).sum(1).tolist(),  # the largest stand first
        effects.lowered_ids.tolist(),
        lowered.tolist(),
        (lowered < 0).sum(1).tolist(),
        strict=True,
    )
    size = effects.raised.shape[1]
    return [
        EffectAt(loss, up_ids, up, down_ids, down)
        if n_up == n_down == size
        else EffectAt(loss, up_ids[:n_up], up[:n_up], down_ids[:n_down], down[:n_down])
        for loss, up_ids, up, n_up, down_ids, down, n_down in columns
    ]
