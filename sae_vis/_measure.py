"""Measure the effects of the features on the tokens that are shown: only rows that are shown run through the whole model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_vis._ablation import Tail, check_finite_effects
from sae_vis._full_ablation import FullAblation, RowAblation
from sae_vis._measure_direct import Corpus, DirectEffects, measure_direct
from sae_vis._params import Ablation
from sae_vis._shown import ByPlace, EffectAt, ShownFeature, rounded, shown_activations
from sae_vis._statistics import FeatureActivations, Ints


class Methods(NamedTuple):
    """How the effects are measured: by taking the feature out of the final residual stream, out of the model, or both."""

    direct: Tail | None = None
    full: FullAblation | None = None

    @property
    def names(self) -> tuple[Ablation, ...]:
        """Those that are there, in the order in which they are shown."""
        chosen: list[tuple[Ablation, object]] = [("direct", self.direct), ("full", self.full)]
        return tuple(name for name, method in chosen if method is not None)


class Measured:
    """What was measured of all features: compact, and of one feature as plain numbers when it is asked for."""

    def __init__(self, features: Sequence[FeatureActivations], shown: Sequence[Ints], seq_len: int) -> None:
        self._features, self._shown, self._seq_len = features, shown, seq_len
        self.direct: DirectEffects | None = None
        self.full: list[ByPlace[EffectAt]] | None = None

    def of(self, index: int) -> ShownFeature:
        """The activations and the effects of the ``index``-th feature on the tokens that it shows."""
        activation = shown_activations(self._features[index], self._shown[index], self._seq_len)
        effects: dict[Ablation, ByPlace[EffectAt]] = {}
        if self.direct is not None:
            effects["direct"] = self.direct.of(index)
        if self.full is not None:
            effects["full"] = self.full[index]
        return ShownFeature(activation, effects)


def measure(
    corpus: Corpus,
    methods: Methods,
    features: Sequence[FeatureActivations],
    shown: Sequence[Ints],
    n_changes: int,
    memory_bytes: int,
    on_rows: Callable[[int, int], None] = lambda done, total: None,
) -> Measured:
    """The activations on the shown tokens, and the effects of the features on them.

    ``shown`` are the places (``row * seq_len + position``) of each feature, rising. ``features`` may be restricted to the
    shown rows. ``on_rows(done, total)`` reports progress. A feature has no entry where its effect is exactly zero: for the
    direct effect, where it is not active one token before; for the full one, where it is active nowhere before.
    """
    seq_len = corpus.tokens.shape[1]
    result = Measured(features, shown, seq_len)
    if methods.direct is not None:
        result.direct = measure_direct(methods.direct, corpus, features, shown, n_changes, memory_bytes, on_rows)
    if methods.full is not None:
        result.full = [ByPlace() for _ in features]
        rows = np.unique(np.concatenate([places // seq_len for places in shown] or [np.zeros(0, dtype=np.int64)]))
        for start in range(0, len(rows), corpus.rows_a_batch):
            batch = _Batch.of(rows[start : start + corpus.rows_a_batch], corpus)
            entering = corpus.standing(methods.full.start.entry, batch.rows)
            for index, place, effect in _full(methods.full, batch, entering, features, shown):
                result.full[index][place] = effect
            on_rows(min(start + corpus.rows_a_batch, len(rows)), len(rows))
    return result


class _Batch(NamedTuple):
    """Some rows, by their index among all, with their tokens and what activations on them are multiplied with."""

    rows: Ints
    tokens: Int[Tensor, "rows seq"]
    scale: Float[Tensor, "rows seq"] | None

    @classmethod
    def of(cls, rows: Ints, corpus: Corpus) -> _Batch:
        own = corpus.tokens[torch.from_numpy(rows)]
        return cls(rows, own, corpus.written.scale(corpus.model, own))

    @property
    def seq_len(self) -> int:
        return self.tokens.shape[1]

    def places(self, acts: FeatureActivations, visible: Ints) -> tuple[Ints, Ints, Ints]:
        """The feature's places in this batch, which of its activations they are, and the places that are shown.

        A place is ``row * seq_len + position``, with the rows of the batch counted from 0.
        """
        which, row = self._of_these_rows(acts.rows)
        at, row_shown = self._of_these_rows(visible // self.seq_len)
        return row * self.seq_len + acts.positions[which], which, row_shown * self.seq_len + visible[at] % self.seq_len

    def _of_these_rows(self, rows: Ints) -> tuple[Ints, Ints]:
        """Which of some rising rows are in this batch, and where in it they stand."""
        low, high = np.searchsorted(rows, [self.rows[0], self.rows[-1] + 1])
        which = low + np.flatnonzero(np.isin(rows[low:high], self.rows))
        return which, np.searchsorted(self.rows, rows[which])

    def contributions(self, acts: FeatureActivations, which: Ints, places: Ints) -> Float[Tensor, " k"]:
        """How much of its direction the feature writes at these places."""
        activations = torch.from_numpy(acts.raw[which].astype(np.float32))
        return activations if self.scale is None else activations * self.scale.reshape(-1)[torch.from_numpy(places)]

    def place_among_all(self, place: int) -> int:
        """The place of a place of this batch in the whole set of tokens."""
        return int(self.rows[place // self.seq_len]) * self.seq_len + place % self.seq_len


_Found = Iterator[tuple[int, int, EffectAt]]  # index of the feature, place of the predicted token, its effect there


def _full(
    full: FullAblation,
    batch: _Batch,
    entering: Tensor | None,
    features: Sequence[FeatureActivations],
    shown: Sequence[Ints],
) -> _Found:
    """Effects on the shown tokens that come after an activation of the feature in their row."""
    work = [
        one
        for index, (acts, visible) in enumerate(zip(features, shown, strict=True))
        for one in _ablations(index, batch, acts, visible, causal=full.model.causal)
    ]
    for one, effects in full.effects(batch.tokens, work, entering):
        places = [batch.place_among_all(one.row * batch.seq_len + at - 1) for at in one.predicted.tolist()]
        check_finite_effects(effects, np.array(places), batch.seq_len)
        for position, effect in zip(one.predicted.tolist(), rounded(effects), strict=True):
            yield one.feature, batch.place_among_all(one.row * batch.seq_len + position), effect


def _ablations(
    index: int, batch: _Batch, acts: FeatureActivations, visible: Ints, *, causal: bool
) -> Iterator[RowAblation]:
    """One for each shown row that the feature is active in before the last token shown."""
    active, which, in_batch = batch.places(acts, visible)
    contributions = batch.contributions(acts, which, active)
    for row in np.unique(in_batch // batch.seq_len).tolist():
        here = np.flatnonzero(active // batch.seq_len == row)
        positions = active[here] % batch.seq_len
        predicted = in_batch[in_batch // batch.seq_len == row] % batch.seq_len
        first = positions.min(initial=batch.seq_len) if causal else 0
        predicted = predicted[predicted > first]
        if len(here) and len(predicted):
            listed = np.isin(predicted - 1, positions)
            yield RowAblation(
                index,
                row,
                torch.from_numpy(positions),
                contributions[torch.from_numpy(here)],
                torch.from_numpy(predicted),
                torch.from_numpy(listed),
            )
