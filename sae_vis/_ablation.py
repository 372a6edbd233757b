"""What changes in the predictions when a feature is taken out of the final residual stream (the direct effect).

With the final residual stream r, the feature's activation a and its direction d there, the logits with and without the
feature are::

    with     u / s + b                            u     = (centre(r) * g) @ W_U,  s  = sqrt(mean(centre(r)^2) + eps)
    without  (u - a * l_raw) / s' + b             l_raw = (centre(d) * g) @ W_U,  s' = the same s of r - a * d

where g, eps and the bias b come from the final norm and the unembedding. So ``u`` is one product per position for all
features, and no feature needs a product of its own. ``ModelTail`` is the slow way through the model's own modules, for
models that this formula does not describe.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_vis._errors import ModelError
from sae_vis._statistics import Ints
from sae_vis.model_fns import FinalNorm, LanguageModel, soft_cap, steady_product

FORMULA_TOLERANCE = 1e-3
ROUNDINGS = 4  # in the model's number format between its last norm and its logits, where it caps them
CHUNK_BYTES = 256 * 10**6
KEPT_BYTES = 2**26  # of features' logits that are kept, rather than computed at each need
COPIES = 6  # arrays of [pairs, d_vocab] that are alive at the same time
EVERY = slice(None)


class Effects(NamedTuple):
    """The effects of pairs of a feature and a position on the prediction made there.

    Shapes: ``loss [k]`` of the token that follows (nats, with minus without: negative helps); ``raised_*`` and
    ``lowered_* [k, n_changes]``, the tokens whose log-probability changes most and by how much (with minus without).
    """

    loss: Float[Tensor, " k"]
    raised_ids: Int[Tensor, "k n_changes"]
    raised: Float[Tensor, "k n_changes"]
    lowered_ids: Int[Tensor, "k n_changes"]
    lowered: Float[Tensor, "k n_changes"]


class Pairs(NamedTuple):
    """Features at positions.

    ``position`` indexes the residuals, ``feature`` the directions; ``activation`` is the feature's there, ``next_token``
    the id of the token that follows.
    """

    position: Int[Tensor, " k"]
    feature: Int[Tensor, " k"]
    activation: Float[Tensor, " k"]
    next_token: Int[Tensor, " k"]


class Tail(Protocol):
    """From the residual stream to the logits, with and without features."""

    def prepare(self, residual: Float[Tensor, "p d_model"]) -> None:
        """Take the residuals of the positions that the next pairs lie at."""
        ...

    def logits(self) -> Float[Tensor, "p d_vocab"]:
        """The logits with everything."""
        ...

    def logits_without(self, position: Tensor, feature: Tensor, activation: Tensor) -> Float[Tensor, "k d_vocab"]:
        """The logits of pairs without their feature."""
        ...


class FormulaTail:
    """The closed form above, for directions ``[n, d_model]``.

    ``weight [d_model, d_vocab]``, ``bias [d_vocab]`` and ``cap`` (0: none) lead from the scaled residual stream to the logits.
    """

    def __init__(self, model: LanguageModel, norm: FinalNorm, directions: Float[Tensor, "n d_model"]) -> None:
        self.norm = norm
        self.weight, unembedding_bias = model.unembedding()
        self.bias = norm.bias @ self.weight + unembedding_bias
        self.cap = model.soft_cap
        self.centred_directions = self.centre(directions)
        self._of_all: Tensor | None = None

    def centre(self, x: Tensor) -> Tensor:
        """``x`` less its mean, where the norm takes it away."""
        return x - x.mean(-1, keepdim=True) if self.norm.centres else x

    def product(self, centred: Float[Tensor, "p d_model"], weight: Tensor | None = None) -> Float[Tensor, "p tokens"]:
        """What centred vectors give before they are scaled, for the tokens of ``weight`` (None: all)."""
        return steady_product(centred * self.norm.gain, self.weight if weight is None else weight)

    def of_features(self, some: slice | Tensor, tokens: slice = EVERY) -> Float[Tensor, "n tokens"]:
        """What one unit of some features gives before it is scaled. If the features are few, it is computed once for all."""
        if len(self.centred_directions) * self.weight.shape[1] * 4 > KEPT_BYTES:
            return self.product(self.centred_directions[some], self.weight[:, tokens])
        if self._of_all is None:
            self._of_all = self.product(self.centred_directions)
        return self._of_all[some, tokens]

    def scale(self, centred: Float[Tensor, "p d_model"]) -> Float[Tensor, "p 1"]:
        """By what the norm divides."""
        if not self.norm.scales:
            return torch.ones_like(centred[:, :1])
        return (centred.square().mean(-1, keepdim=True) + self.norm.eps).sqrt()

    def logit_weights(self, some: slice | Tensor = EVERY) -> Float[Tensor, "n d_vocab"]:
        """What one unit of some features does to the logits, centred over the vocabulary for display."""
        weights = self.of_features(some)
        return weights - weights.mean(-1, keepdim=True)

    def prepare(self, residual: Float[Tensor, "p d_model"]) -> None:
        self.centred = self.centre(residual.float())
        self.unscaled = self.product(self.centred)

    def logits(self) -> Float[Tensor, "p d_vocab"]:
        return soft_cap(torch.addcmul(self.bias, self.unscaled, 1.0 / self.scale(self.centred)), self.cap)

    def logits_without(self, position: Tensor, feature: Tensor, activation: Tensor) -> Float[Tensor, "k d_vocab"]:
        a, directions = activation[:, None], self.centred_directions[feature]
        scale = self.scale(self.centred[position] - a * directions)
        logits = torch.addcmul(self.unscaled[position], a, self.product(directions), value=-1.0)
        return soft_cap(logits.div_(scale).add_(self.bias), self.cap)


class ModelTail:
    """The model's own norm and unembedding, once for every pair."""

    def __init__(self, model: LanguageModel, directions: Float[Tensor, "n d_model"]) -> None:
        self.model, self.directions = model, directions

    def prepare(self, residual: Float[Tensor, "p d_model"]) -> None:
        self.residual = residual.float()

    def logits(self) -> Float[Tensor, "p d_vocab"]:
        return self.model.logits_from_residual(self.residual)

    def logits_without(self, position: Tensor, feature: Tensor, activation: Tensor) -> Float[Tensor, "k d_vocab"]:
        return self.model.logits_from_residual(self.residual[position] - activation[:, None] * self.directions[feature])


def choose_tail(
    model: LanguageModel,
    formula: FormulaTail,
    directions: Float[Tensor, "n d_model"],
    tokens: Int[Tensor, "rows seq"],
) -> Tail | None:
    """The formula if it gives the model's own logits on these rows, else the model's modules, else None."""
    own = model.logits(tokens).flatten(0, 1)
    residual = model.final_residual(tokens)
    rounding = ROUNDINGS * torch.finfo(residual.dtype).eps * float(own.abs().max())
    residual = residual.flatten(0, 1)
    tails: list[tuple[Tail, float]] = [
        (formula, FORMULA_TOLERANCE),
        (ModelTail(model, directions), max(FORMULA_TOLERANCE, rounding)),
    ]
    for tail, tolerance in tails:
        tail.prepare(residual)
        logits = tail.logits()
        if logits.shape == own.shape and float((logits - own).abs().max()) <= tolerance:
            return tail
    return None


def direct_effects(
    tail: Tail, residual: Float[Tensor, "p d_model"], pairs: Pairs, n_changes: int, d_vocab: int
) -> Effects:
    """The effect of taking each pair's feature out of the residual stream at its position.

    ``n_changes`` tokens at most are listed on each side. Memory: a fixed number of arrays of [pairs, d_vocab] in chunks.
    """
    chunk = chunk_size(d_vocab)
    parts = []
    for start in range(0, len(pairs.position), chunk):
        some = Pairs(*(values[start : start + chunk] for values in pairs))
        places, local = torch.unique(some.position, return_inverse=True)
        tail.prepare(residual[places])
        change = torch.log_softmax(tail.logits(), dim=-1)[local]
        change -= torch.log_softmax(tail.logits_without(local, some.feature, some.activation), dim=-1)
        parts.append(largest_changes(change, some.next_token, n_changes))
    return joined(parts, n_changes)


def chunk_size(d_vocab: int) -> int:
    """How many predictions may be compared at a time."""
    return max(1, CHUNK_BYTES // (4 * d_vocab * COPIES))


def largest_changes(change: Float[Tensor, "k d_vocab"], next_token: Int[Tensor, " k"], n_changes: int) -> Effects:
    """The effects that a change of the log-probabilities (with minus without) has."""
    loss = -change.gather(1, next_token[:, None])[:, 0]
    return listed_changes(loss.cpu(), change, n_changes, torch.ones(len(loss), dtype=torch.bool))


def listed_changes(
    loss: Float[Tensor, " k"], change: Float[Tensor, "l d_vocab"], n_changes: int, listed: Bool[Tensor, " k"]
) -> Effects:
    """The effects, with the largest changes of the predictions that are listed; for the others there are zeros."""
    found = [change.topk(min(n_changes, change.shape[1]), dim=-1, largest=largest) for largest in (True, False)]
    columns = [values.cpu() for one in found for values in (one.indices, one.values)]
    return Effects(loss, *(_spread(column, listed) for column in columns))


def _spread(values: Tensor, listed: Bool[Tensor, " k"]) -> Tensor:
    """The values in the rows that are listed, zeros in the others."""
    spread = values.new_zeros(len(listed), values.shape[1])
    spread[listed] = values
    return spread


def joined(parts: Sequence[Effects], n_changes: int = 0) -> Effects:
    """The effects of all parts, one after the other."""
    if not parts:
        none = torch.zeros(0, n_changes)
        return Effects(none.sum(1), none.long(), none, none.long(), none)
    return Effects(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def check_finite_effects(effects: Effects, places: Ints, seq_len: int) -> None:
    """Raise ``ModelError`` naming row and position of the first effect that is NaN or infinite.

    ``places`` (``row * seq_len + position``) are those where the predictions are made.
    """
    finite = torch.isfinite(effects.loss)
    for changes in (effects.raised, effects.lowered):
        finite &= torch.isfinite(changes).all(-1)
    if not bool(finite.all()):
        row, position = divmod(int(places[int((~finite).nonzero()[0])]), seq_len)
        raise ModelError(
            f"The effects on the prediction made at row {row}, position {position} of the tokens are NaN or infinity: the final "
            "residual stream or a feature's share of it is too large there (float16 overflows above 65504; bfloat16 and float32 "
            "do not). Check the model's number format, or leave effects out with FeatureVisParams(ablation=None)."
        )
