"""Measure the effects of the features on the tokens that are shown: only rows that are shown run through the whole model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_vis._ablation import Effects, Pairs, Tail, direct_effects
from sae_vis._errors import ModelError
from sae_vis._full_ablation import FullAblation, RowAblation
from sae_vis._params import Ablation
from sae_vis._shown import EffectAt, ShownFeature, Window, rounded, shown_activations, shown_places
from sae_vis._statistics import FeatureActivations, Ints
from sae_vis.model_fns import Encoder, LanguageModel, check_tensor


class Methods(NamedTuple):
    """How the effects are measured: by taking the feature out of the final residual stream, out of the model, or both."""

    direct: Tail | None = None
    full: FullAblation | None = None

    @property
    def names(self) -> tuple[Ablation, ...]:
        """Those that are there, in the order in which they are shown."""
        chosen: list[tuple[Ablation, object]] = [("direct", self.direct), ("full", self.full)]
        return tuple(name for name, method in chosen if method is not None)


class Written(NamedTuple):
    """How much of its direction an activation writes: itself, unless the encoder undoes a normalisation of its input.

    ``encoder`` has a ``write_scale`` of what stands at ``hook_point``.
    """

    encoder: Encoder
    hook_point: str

    def scale(self, model: LanguageModel, tokens: Int[Tensor, "rows seq"]) -> Float[Tensor, "rows seq"] | None:
        """What the activations on these rows are multiplied with; None for 1."""
        write_scale = getattr(self.encoder, "write_scale", None)
        if write_scale is None:
            return None
        scale: Tensor = write_scale(model.activations(tokens, self.hook_point))
        check_tensor(scale, "The encoder's write_scale", tuple(tokens.shape))
        return scale.detach().float().cpu()


def measure(
    model: LanguageModel,
    methods: Methods,
    written: Written,
    tokens: Int[Tensor, "rows seq"],
    features: Sequence[FeatureActivations],
    windows: Sequence[Sequence[Window]],
    n_changes: int,
    rows_a_batch: int,
    on_rows: Callable[[int, int], None] = lambda done, total: None,
) -> list[ShownFeature]:
    """The activations on the shown tokens, and the effects of the features on them.

    ``on_rows(done, total)`` reports progress. A feature has no entry where its effect is exactly zero: for the direct
    effect, where it is not active one token before; for the full one, where it is active nowhere before.
    """
    seq_len = tokens.shape[1]
    shown = [shown_places(some, seq_len) for some in windows]
    result = [
        ShownFeature(shown_activations(acts, places, seq_len), {name: {} for name in methods.names})
        for acts, places in zip(features, shown, strict=True)
    ]
    if not methods.names:
        return result
    rows = np.unique(np.concatenate([places // seq_len for places in shown]) if shown else np.zeros(0, dtype=np.int64))
    for start in range(0, len(rows), rows_a_batch):
        batch = _Batch.of(rows[start : start + rows_a_batch], tokens, model, written)
        if methods.direct is not None:
            for index, place, effect in _direct(model, methods.direct, batch, features, shown, n_changes):
                result[index].effects["direct"][place] = effect
        if methods.full is not None:
            for index, place, effect in _full(methods.full, batch, features, shown):
                result[index].effects["full"][place] = effect
        on_rows(min(start + rows_a_batch, len(rows)), len(rows))
    return result


class _Batch(NamedTuple):
    """Some rows, by their index among all, with their tokens and what activations on them are multiplied with."""

    rows: Ints
    tokens: Int[Tensor, "rows seq"]
    scale: Float[Tensor, "rows seq"] | None

    @classmethod
    def of(cls, rows: Ints, tokens: Tensor, model: LanguageModel, written: Written) -> _Batch:
        own = tokens[torch.from_numpy(rows)]
        return cls(rows, own, written.scale(model, own))

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


def _direct(
    model: LanguageModel,
    tail: Tail,
    batch: _Batch,
    features: Sequence[FeatureActivations],
    shown: Sequence[Ints],
    n_changes: int,
) -> _Found:
    """Effects on the shown tokens whose predecessor the feature is active at, sorted by place."""
    places, owners, contributions = [], [], []
    for index, (acts, visible) in enumerate(zip(features, shown, strict=True)):
        active, which, in_batch = batch.places(acts, visible)
        wanted = np.isin(active + 1, in_batch) & (active % batch.seq_len + 1 < batch.seq_len)
        places.append(active[wanted])
        owners.append(np.full(int(wanted.sum()), index))
        contributions.append(batch.contributions(acts, which[wanted], active[wanted]))
    place, owner, contribution = np.concatenate(places), np.concatenate(owners), torch.cat(contributions)
    if not len(place):
        return
    order = np.lexsort((owner, place))
    place, owner = place[order], owner[order]
    residual = model.final_residual(batch.tokens).flatten(0, 1)
    pairs = Pairs(
        torch.from_numpy(place),
        torch.from_numpy(owner),
        contribution[torch.from_numpy(order)],
        batch.tokens.reshape(-1)[torch.from_numpy(place + 1)],
    )
    pairs = Pairs(*(values.to(residual.device) for values in pairs))
    effects = direct_effects(tail, residual, pairs, n_changes, model.d_vocab)
    _check_finite(effects, place, batch)
    for index, at, effect in zip(owner.tolist(), place.tolist(), rounded(effects), strict=True):
        yield index, batch.place_among_all(at) + 1, effect  # stored at the token that is predicted


def _full(full: FullAblation, batch: _Batch, features: Sequence[FeatureActivations], shown: Sequence[Ints]) -> _Found:
    """Effects on the shown tokens that come after an activation of the feature in their row."""
    work = [
        one
        for index, (acts, visible) in enumerate(zip(features, shown, strict=True))
        for one in _ablations(index, batch, acts, visible, causal=full.model.causal)
    ]
    for one, effects in full.effects(batch.tokens, work):
        _check_finite(effects, one.row * batch.seq_len + one.predicted.numpy() - 1, batch)
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


def _check_finite(effects: Effects, places: Ints, batch: _Batch) -> None:
    """Raise ``ModelError`` naming row and position of the first effect that is NaN or infinite."""
    finite = torch.isfinite(effects.loss)
    for changes in (effects.raised, effects.lowered):
        finite &= torch.isfinite(changes).all(-1)
    if not bool(finite.all()):
        row, position = divmod(batch.place_among_all(int(places[int((~finite).nonzero()[0])])), batch.seq_len)
        raise ModelError(
            f"The effects on the prediction made at row {row}, position {position} of the tokens are NaN or infinity: the final "
            "residual stream or a feature's share of it is too large there (float16 overflows above 65504; bfloat16 and float32 "
            "do not). Check the model's number format, or leave effects out with FeatureVisParams(ablation=None)."
        )
