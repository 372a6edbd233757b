"""The direct effects of many pairs of a feature and a position, in one pass over the vocabulary by tiles.

With ``u``, ``l``, ``s`` and ``s'`` as in ``_ablation``, the log-probabilities with minus without the feature are::

    change = (1/s - 1/s') u + (a/s') l + lse' - lse

Everything but the last two terms, the logarithms of the sums of exponentials, is linear in what two matrix products give:
``u`` for each position, ``l`` for each feature. So a tile of the vocabulary needs these two products once, and then, for
each pair, one exponential a token and a look for the largest and smallest changes. No array holds more than a tile of the
vocabulary, however many features there are.

Every number has the same bits whatever the width of the tiles and the size of the pieces: exponentials are added up in
stretches of ``SUM_WIDTH`` tokens, and these sums in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae_vis._ablation import Effects, FormulaTail, Pairs
from sae_vis._ranking import Ranked, largest
from sae_vis.model_fns import soft_cap

SUM_WIDTH = 2048
PIECE = 2**20  # numbers of one array of [pairs, tile] that are worked on at a time: they stay in the cache
WIDEST = 3 * 2**13  # tokens of a tile: larger arrays of [ROWS, tile] get new memory from the system each time
ROWS = 256  # positions whose product with a tile is taken at a time


def direct_effects_by_formula(
    formula: FormulaTail,
    residual: Float[Tensor, "p d_model"],
    pairs: Pairs,
    n_changes: int,
    tile_bytes: int = 2**29,
) -> Effects:
    """The effect of taking each pair's feature out of the residual stream at its position, on the residual's device.

    The pairs are in order of their positions. ``tile_bytes`` bounds the features' logits of one tile of the vocabulary.
    """
    d_vocab = formula.weight.shape[1]
    pass_ = _Pass(formula, residual, pairs, min(n_changes, d_vocab))
    fitting = min(WIDEST, tile_bytes // (4 * max(1, len(formula.centred_directions))))
    width = max(1, fitting // SUM_WIDTH) * SUM_WIDTH
    for first in range(0, d_vocab, width):
        pass_.tile(first, min(first + width, d_vocab))
    return pass_.effects()


class _Pass:
    """What is known of each pair after some tiles."""

    def __init__(self, formula: FormulaTail, residual: Tensor, pairs: Pairs, n_changes: int) -> None:
        self.formula, self.pairs, self.n = formula, pairs, n_changes
        self.centred = formula.centre(residual.float())
        self.factors = _Factors.of(formula, self.centred, pairs)
        k, precise = len(pairs.position), _precise(residual.device)
        self.with_ = torch.full((len(residual),), -torch.inf, dtype=precise, device=residual.device)
        self.without = torch.full((k,), -torch.inf, dtype=precise, device=residual.device)
        self.of_next = torch.zeros(k, device=residual.device)
        none = torch.zeros(k, 0, dtype=torch.int64, device=residual.device)
        self.raised, self.lowered = none.expand(k, 0), none.expand(k, 0)
        self.pieces: list[tuple[slice, slice]] = list(_pieces(pairs, len(residual)))

    def tile(self, first: int, stop: int) -> None:
        """Go over the tokens ``first .. stop``."""
        n_tokens, k = stop - first, len(self.pairs.position)
        width = -(-n_tokens // SUM_WIDTH) * SUM_WIDTH
        weight, bias = self.formula.weight[:, first:stop], self.formula.bias[first:stop]
        directions = _padded(self.formula.product(self.formula.centred_directions, weight), width)
        bias = torch.nn.functional.pad(bias, (0, width - n_tokens), value=-torch.inf)  # no token there: exp gives 0
        tile = _Tile(first, n_tokens, directions, bias, _Buffers.of(width, directions))
        size = min(self.n, self.raised.shape[1] + width)
        found = tuple(self.raised.new_zeros(k, size) for _ in range(2))
        for positions, some in self.pieces:
            unscaled = _padded(self.formula.product(self.centred[positions], weight), width)
            room = tile.buffers.of_positions[: len(unscaled)]
            logits = torch.div(unscaled, self.factors.scale[positions, None], out=room).add_(bias)
            logits = self._capped(logits, n_tokens)
            step = len(tile.buffers.own)
            for piece in _slices(positions.stop, step, positions.start):
                here = slice(piece.start - positions.start, piece.stop - positions.start)
                used_up = tile.buffers.own[: here.stop - here.start].copy_(logits[here])
                self.with_[piece] = _add_up(self.with_[piece], used_up)
            for piece in _slices(some.stop, step, some.start):
                change = self._change(unscaled, logits, tile, piece, positions.start)
                self._look_at(change, tile, piece, found)
        self.raised, self.lowered = found

    def _change(
        self, unscaled: Tensor, logits: Tensor, tile: _Tile, piece: slice, first_position: int
    ) -> Float[Tensor, "pairs width"]:
        """The change of the logits, with minus without; their sums of exponentials are added up on the way."""
        n, factors, buffers = piece.stop - piece.start, self.factors, tile.buffers
        position, feature = self.pairs.position[piece] - first_position, self.pairs.feature[piece]
        own = torch.index_select(unscaled, 0, position, out=buffers.own[:n])
        direction = torch.index_select(tile.directions, 0, feature, out=buffers.direction[:n])
        before = torch.index_select(logits, 0, position, out=buffers.logits[:n])
        if self.formula.cap > 0:
            own.div_(factors.scale_without[piece, None])
            own.addcmul_(direction, factors.of_direction[piece, None], value=-1.0).add_(tile.bias)
            without = self._capped(own, tile.n_tokens)
            change = before.sub_(without)
        else:
            change = own.mul_(factors.of_residual[piece, None])
            change.addcmul_(direction, factors.of_direction[piece, None])
            without = before.sub_(change)
        self.without[piece] = _add_up(self.without[piece], without)
        return change

    def _capped(self, logits: Tensor, n_tokens: int) -> Tensor:
        """The logits under the model's soft cap; minus infinity behind the tokens of the tile, where exp gives 0."""
        if self.formula.cap > 0:
            logits = soft_cap(logits, self.formula.cap)
            logits[:, n_tokens:] = -torch.inf
        return logits

    def _look_at(self, change: Tensor, tile: _Tile, piece: slice, found: tuple[Tensor, ...]) -> None:
        """Note the change of the next token where it is in the tile, and the largest and smallest changes."""
        next_token = self.pairs.next_token[piece] - tile.first
        inside = (next_token >= 0) & (next_token < tile.n_tokens)
        here = change.gather(1, next_token.clamp(0, tile.n_tokens - 1)[:, None])[:, 0]
        self.of_next[piece] += here.where(inside, 0.0)
        if self.n == 0:
            return
        for negated, before, after in zip((False, True), (self.raised, self.lowered), found, strict=True):
            if tile.n_tokens < change.shape[1]:
                change[:, tile.n_tokens :] = torch.inf if negated else -torch.inf
            best = largest(change, min(self.n, change.shape[1]), tile.first, negated=negated)
            after[piece] = Ranked(before[piece]).joined(best, self.n).keys

    def effects(self) -> Effects:
        """The changes of the log-probabilities, when all tiles were gone over."""
        shift = (self.without - self.with_[self.pairs.position])[:, None]  # lse' - lse
        loss = -(self.of_next + shift[:, 0]).float()
        raised_ids, raised = Ranked(self.raised).sorted()
        lowered_ids, lowered = Ranked(self.lowered).sorted()
        columns = (loss, raised_ids, (raised + shift).float(), lowered_ids, (shift - lowered).float())
        return Effects(*(values.cpu() for values in columns))


class _Buffers(NamedTuple):
    """Room for the arrays of one piece and of its positions: new memory for each would cost as much as what is computed in it."""

    own: Float[Tensor, "pairs width"]
    direction: Float[Tensor, "pairs width"]
    logits: Float[Tensor, "pairs width"]
    of_positions: Float[Tensor, "positions width"]

    @classmethod
    def of(cls, width: int, like: Tensor) -> _Buffers:
        rows = (*[max(1, PIECE // width)] * 3, ROWS)
        return cls(*(like.new_empty(n, width) for n in rows))


class _Tile(NamedTuple):
    """A stretch of the vocabulary: its first token, how many there are, the features' logits and the bias, both padded."""

    first: int
    n_tokens: int
    directions: Float[Tensor, "n width"]
    bias: Float[Tensor, " width"]
    buffers: _Buffers


class _Factors(NamedTuple):
    """Of each position the scale of its norm; of each pair that without the feature, and what the change is made of."""

    scale: Float[Tensor, " p"]
    scale_without: Float[Tensor, " k"]
    of_residual: Float[Tensor, " k"]
    of_direction: Float[Tensor, " k"]

    @classmethod
    def of(cls, formula: FormulaTail, centred: Tensor, pairs: Pairs) -> _Factors:
        """In double precision: the scales with and without a feature may be very close to each other."""
        a = pairs.activation
        if not formula.norm.scales:
            return cls(torch.ones_like(centred[:, 0]), torch.ones_like(a), torch.zeros_like(a), a)
        precise, step = _precise(centred.device), max(1, PIECE // centred.shape[1])

        def of_pairs(some: slice) -> Tensor:
            contribution = a[some, None] * formula.centred_directions[pairs.feature[some]].to(precise)
            return _mean_square(centred[pairs.position[some]].to(precise) - contribution)

        squares = _in_pieces(len(centred), step, lambda some: _mean_square(centred[some].to(precise)), centred)
        without = _in_pieces(len(a), step, of_pairs, centred) + formula.norm.eps
        before = (squares + formula.norm.eps)[pairs.position]
        s, s_without = before.sqrt(), without.sqrt()
        of_residual = (without - before) / (s * s_without * (s + s_without))  # 1/s - 1/s'
        scale = (squares + formula.norm.eps).sqrt().float()
        return cls(scale, s_without.float(), of_residual.float(), (a / s_without).float())


def _mean_square(x: Tensor) -> Tensor:
    return x.square().mean(-1)


def _in_pieces(n: int, step: int, compute: Callable[[slice], Tensor], like: Tensor) -> Tensor:
    """One number for each of ``n`` rows, computed for some rows at a time."""
    # Written into one array: kept pieces would lie between the large arrays of each piece, whose memory then stays taken.
    found = like.new_empty(n, dtype=_precise(like.device))
    for some in _slices(n, step):
        found[some] = compute(some)
    return found


def _add_up(before: Float[Tensor, " k"], logits: Float[Tensor, "k width"]) -> Float[Tensor, " k"]:
    """The logarithms of the sums of exponentials, with those of a tile added, whose logits are used up."""
    stretches = logits.view(len(logits), -1, SUM_WIDTH)
    most = stretches.amax(-1)
    sums = stretches.sub_(most[:, :, None]).exp_().sum(-1).to(before.dtype).log_() + most
    for stretch in sums.unbind(1):
        before = torch.logaddexp(before, stretch)
    return before


def _padded(product: Float[Tensor, "n tile"], width: int) -> Float[Tensor, "n width"]:
    return torch.nn.functional.pad(product, (0, width - product.shape[1])) if product.shape[1] < width else product


def _pieces(pairs: Pairs, n_positions: int) -> Iterator[tuple[slice, slice]]:
    """Positions that are worked on together, and their pairs."""
    starts = torch.arange(0, n_positions + ROWS, ROWS).clamp_max(n_positions)
    bounds = torch.searchsorted(pairs.position.cpu(), starts)
    for (start, stop), (low, high) in zip(
        zip(starts.tolist(), starts[1:].tolist(), strict=False),
        zip(bounds.tolist(), bounds[1:].tolist(), strict=False),
        strict=True,
    ):
        if low < high:
            yield slice(start, stop), slice(low, high)


def _slices(stop: int, size: int, start: int = 0) -> Iterator[slice]:
    for first in range(start, stop, size):
        yield slice(first, min(first + size, stop))


def _precise(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
