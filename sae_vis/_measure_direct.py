"""Measure the direct effects of many features on the tokens that they show, all of them in one pass.

Every row that is shown runs through the model once, for all features. What leaves it at the positions that matter is kept,
as much as memory allows, and then measured together: what a tile of the vocabulary costs is paid once for all features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_vis._ablation import Effects, FormulaTail, Pairs, Tail, check_finite_effects, direct_effects, joined
from sae_vis._activations import write_scale
from sae_vis._direct_effects import direct_effects_by_formula
from sae_vis._ending import Ending
from sae_vis._shown import ByPlace, EffectAt, rounded
from sae_vis._statistics import FeatureActivations, Ints
from sae_vis.model_fns import Encoder, LanguageModel

SHARE_OF_RESIDUALS, SHARE_OF_TILE = 8, 8  # of the memory budget
NOTHING_KEPT: Mapping[str, Tensor] = {}


class Written(NamedTuple):
    """How much of its direction an activation writes: itself, unless the encoder undoes a normalisation of its input.

    ``encoder`` has a ``write_scale`` of what stands at ``hook_point``.
    """

    encoder: Encoder
    hook_point: str

    def scale(self, model: LanguageModel, tokens: Int[Tensor, "rows seq"]) -> Float[Tensor, "rows seq"] | None:
        """What the activations on these rows are multiplied with; None for 1."""
        if getattr(self.encoder, "write_scale", None) is None:
            return None  # the model need not run
        return write_scale(self.encoder, model.activations(tokens, self.hook_point))


class Corpus(NamedTuple):
    """The tokens, and the model that is run on them in batches of rows.

    ``kept`` is what stands at some hook points, where it is known already.
    """

    model: LanguageModel
    tokens: Int[Tensor, "rows seq"]
    written: Written
    rows_a_batch: int
    ending: Ending
    kept: Mapping[str, Float[Tensor, "rows seq d_model"]] = NOTHING_KEPT

    def standing(self, hook_point: str, rows: Ints) -> Float[Tensor, "rows seq d_model"] | None:
        """What stands at a hook point in these rows, where it is known."""
        kept = self.kept.get(hook_point)
        return None if kept is None else kept[torch.from_numpy(rows).to(kept.device)]

    def leaving(self, rows: Int[Tensor, " n"], places: Int[Tensor, " p"]) -> Float[Tensor, "p d_model"]:
        """What leaves the model at places of these rows, counted from the first of them."""
        seq_len = self.tokens.shape[1]
        kept = self.kept.get(self.ending.hook)
        if kept is not None:
            of_all = rows[places // seq_len] * seq_len + places % seq_len
            return self.ending.leaving(kept.flatten(0, 1)[of_all.to(kept.device)]).float()
        here = self.model.activations(self.tokens[rows], self.ending.hook).flatten(0, 1)
        return self.ending.leaving(here[places.to(here.device)]).float()


class DirectEffects(NamedTuple):
    """The effects of all features: those of the ``i``-th are ``offsets[i] .. offsets[i + 1]``, at rising ``predicted`` places."""

    offsets: Ints
    predicted: Ints
    effects: Effects

    def of(self, index: int) -> ByPlace[EffectAt]:
        """The effects of one feature by the place of the token that is predicted."""
        own = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        effects = rounded(Effects(*(values[own] for values in self.effects)))
        return ByPlace(zip(self.predicted[own].tolist(), effects, strict=True))


class _Pairs(NamedTuple):
    """Features at places (``row * seq_len + position``), in order of the places."""

    place: Ints
    owner: Ints
    activation: Float[Tensor, " k"]

    @classmethod
    def of(cls, features: Sequence[FeatureActivations], shown: Sequence[Ints], seq_len: int) -> _Pairs:
        """Where a feature is active one token before a token that it shows."""
        places, owners, activations = [], [], []
        for index, (acts, visible) in enumerate(zip(features, shown, strict=True)):
            active = acts.rows * seq_len + acts.positions
            wanted = np.isin(active + 1, visible, assume_unique=True) & (acts.positions + 1 < seq_len)
            places.append(active[wanted])
            owners.append(np.full(len(places[-1]), index))
            activations.append(acts.raw[wanted].astype(np.float32))
        place, owner, activation = (np.concatenate(values) for values in (places, owners, activations))
        order = np.lexsort((owner, place))
        return cls(place[order], owner[order], torch.from_numpy(activation[order]))


def measure_direct(
    tail: Tail,
    corpus: Corpus,
    features: Sequence[FeatureActivations],
    shown: Sequence[Ints],
    n_changes: int,
    memory_bytes: int,
    on_rows: Callable[[int, int], None],
) -> DirectEffects:
    """The effects on the shown tokens whose predecessor a feature is active at."""
    seq_len = corpus.tokens.shape[1]
    offsets = np.zeros(len(features) + 1, dtype=np.int64)
    if not features:
        return DirectEffects(offsets, offsets[:0], joined([], n_changes))
    pairs = _Pairs.of(features, shown, seq_len)
    n_rows = len(np.unique(pairs.place // seq_len))
    parts = []
    for some, residual, scale, done in _groups(corpus, pairs, max(1, memory_bytes // SHARE_OF_RESIDUALS)):
        _, position = np.unique(pairs.place[some], return_inverse=True)
        next_token = corpus.tokens.reshape(-1)[torch.from_numpy(pairs.place[some] + 1)]
        activation = pairs.activation[some]
        if scale is not None:
            activation = activation * scale[torch.from_numpy(position)]
        columns = (torch.from_numpy(position), torch.from_numpy(pairs.owner[some]), activation, next_token)
        own = Pairs(*(values.to(residual.device) for values in columns))
        parts.append(_effects(tail, residual, own, n_changes, corpus.model.d_vocab, memory_bytes))
        check_finite_effects(parts[-1], pairs.place[some], seq_len)
        on_rows(done, n_rows)
    by_owner = np.lexsort((pairs.place, pairs.owner))
    effects = Effects(*(values[torch.from_numpy(by_owner)] for values in joined(parts, n_changes)))
    offsets[1:] = np.bincount(pairs.owner, minlength=len(features)).cumsum()
    return DirectEffects(offsets, pairs.place[by_owner] + 1, effects)  # stored at the token that is predicted


def _effects(tail: Tail, residual: Tensor, pairs: Pairs, n_changes: int, d_vocab: int, memory_bytes: int) -> Effects:
    if isinstance(tail, FormulaTail):
        return direct_effects_by_formula(tail, residual, pairs, n_changes, memory_bytes // SHARE_OF_TILE)
    return direct_effects(tail, residual, pairs, n_changes, d_vocab)


def _groups(corpus: Corpus, pairs: _Pairs, residual_bytes: int) -> Iterator[tuple[slice, Tensor, Tensor | None, int]]:
    """Stretches of the pairs, with the residual stream and the scale at their distinct places, and the rows done so far."""
    seq_len = corpus.tokens.shape[1]
    places = np.unique(pairs.place)
    rows = np.unique(places // seq_len)
    size = max(1, residual_bytes // (4 * corpus.model.d_model))
    residuals: list[Tensor] = []
    scales: list[Tensor] = []
    first = n_kept = 0
    for start in range(0, len(rows), corpus.rows_a_batch):
        batch = rows[start : start + corpus.rows_a_batch]
        low, high = np.searchsorted(places, [batch[0] * seq_len, (batch[-1] + 1) * seq_len])
        within = torch.from_numpy(
            np.searchsorted(batch, places[low:high] // seq_len) * seq_len + places[low:high] % seq_len
        )
        residuals.append(corpus.leaving(torch.from_numpy(batch), within))
        scale = corpus.written.scale(corpus.model, corpus.tokens[torch.from_numpy(batch)])
        if scale is not None:
            scales.append(scale.reshape(-1)[within])
        n_kept += int(high - low)
        if n_kept >= size or start + corpus.rows_a_batch >= len(rows):
            stop = int(np.searchsorted(pairs.place, places[high - 1], side="right"))
            yield slice(first, stop), _joined(residuals), _joined(scales) if scales else None, start + len(batch)
            first, n_kept = stop, 0


def _joined(parts: list[Tensor]) -> Tensor:
    """The parts as one tensor; they are taken out of the list, so that what they hold is there once."""
    whole = parts[0].new_empty(sum(map(len, parts)), *parts[0].shape[1:])
    start = 0
    while parts:
        part = parts.pop(0)
        whole[start : start + len(part)] = part
        start += len(part)
    return whole
