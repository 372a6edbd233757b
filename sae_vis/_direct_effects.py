"""The direct effects of many pairs of a feature and a position, in one pass over the vocabulary by tiles.

With ``u``, ``l``, ``s`` and ``s'`` as in ``_ablation``, the log-probabilities with minus without the feature are::

    change = (1/s - 1/s') u + (a/s') l + lse' - lse

Everything but the last two terms, the logarithms of the sums of exponentials, is linear in what two matrix products give:
``u`` for each position, ``l`` for each feature. So a tile of the vocabulary needs these two products once, and then, for
each pair, one exponential a token. No array holds more than a tile of the vocabulary, however many features there are.

Which tokens change most is found without looking at all of them (``_linear_changes``), but under a soft cap, where the
change is not linear: there the pass looks at each change of each tile.

Every number has the same bits whatever the width of the tiles and the size of the pieces: exponentials are added up in
stretches of ``SUM_WIDTH`` tokens, and these sums in order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae_vis._ablation import Effects, FormulaTail, Pairs
from sae_vis._linear_changes import Changes, Factors, Reached, linear_changes, precise
from sae_vis._ranking import Ranked, largest
from sae_vis.model_fns import soft_cap

SUM_WIDTH = 2048
PIECE = 2**18  # numbers of one array of [pairs, tile] that are worked on at a time: a few of them stay in the cache
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
        self.factors = Factors.of(formula, self.centred, pairs)
        self.inverse = (1.0 / self.factors.scale)[:, None]
        k, double = len(pairs.position), precise(residual.device)
        self.with_ = torch.full((len(residual),), -torch.inf, dtype=double, device=residual.device)
        self.without = torch.full((k,), -torch.inf, dtype=double, device=residual.device)
        self.reached = Reached.of(self.centred)
        self.scan = _Scan(pairs, n_changes) if formula.cap > 0 else None
        positions = torch.arange(len(residual) + 1, device=residual.device)
        self.first_pair: list[int] = torch.searchsorted(pairs.position, positions).tolist()

    def tile(self, first: int, stop: int) -> None:
        """Go over the tokens ``first .. stop``."""
        tile = _Tile.of(self.formula, first, stop)
        sums_with, sums_without = (_Sums.of(len(sums), tile) for sums in (self.with_, self.without))
        if self.scan is not None:
            self.scan.begin(tile)
        for rows in _slices(len(self.with_), ROWS):
            if self.first_pair[rows.start] == self.first_pair[rows.stop]:
                continue  # no feature changes anything there
            unscaled = _padded(self.formula.product(self.centred[rows], self.formula.weight[:, first:stop]), tile.width)
            for positions in _slices(rows.stop, tile.positions_a_piece, rows.start):
                here = unscaled[positions.start - rows.start : positions.stop - rows.start]
                if self.scan is None:
                    self.reached.reach(here, positions)
                self._look_at(here, tile, positions, sums_with, sums_without)
        self.with_, self.without = sums_with.joined(self.with_), sums_without.joined(self.without)

    def _look_at(self, unscaled: Tensor, tile: _Tile, positions: slice, sums_with: _Sums, sums_without: _Sums) -> None:
        """Add up the exponentials of the logits of some positions, with everything and without the feature of each pair."""
        room = tile.buffers.logits[: len(unscaled)]
        logits = torch.addcmul(tile.bias, unscaled, self.inverse[positions], out=room)
        logits = tile.nothing_behind(self._capped(logits))
        sums_with.add(logits, positions, tile.buffers.own)
        pairs = range(self.first_pair[positions.start], self.first_pair[positions.stop])
        for piece in _slices(pairs.stop, tile.pairs_a_piece, pairs.start):
            local = self.pairs.position[piece] - positions.start
            if self.scan is None:
                without = self._without(logits, tile, piece, local)
            else:
                without = self._capped_without(unscaled, tile, piece, local)
                self.scan.look_at(logits, without, tile, piece, local)
            sums_without.add(without, piece, without)

    def _without(self, logits: Tensor, tile: _Tile, piece: slice, local: Tensor) -> Float[Tensor, "pairs width"]:
        """The logits without the feature: with it, minus the change, whose ``u`` is that of the logits less their bias."""
        own, direction = self._gathered(logits, tile, piece, local)
        if self.formula.norm.scales:
            relative = self.factors.relative[piece, None]
            own.addcmul_(own, relative, value=-1.0)
            if tile.biased:
                own.addcmul_(tile.bias, relative)
        own.addcmul_(direction, self.factors.of_direction[piece, None], value=-1.0)
        return tile.nothing_behind(own)

    def _capped_without(
        self, unscaled: Tensor, tile: _Tile, piece: slice, local: Tensor
    ) -> Float[Tensor, "pairs width"]:
        """Likewise under a soft cap, where the change is not linear."""
        own, direction = self._gathered(unscaled, tile, piece, local)
        own.div_(self.factors.scale_without[piece, None])
        own.addcmul_(direction, self.factors.of_direction[piece, None], value=-1.0).add_(tile.bias)
        return tile.nothing_behind(self._capped(own))

    def _gathered(self, values: Tensor, tile: _Tile, piece: slice, local: Tensor) -> tuple[Tensor, Tensor]:
        """Of each pair the values of its position, and what its feature writes, in the tile's buffers."""
        n, buffers = piece.stop - piece.start, tile.buffers
        own = torch.index_select(values, 0, local, out=buffers.own[:n])
        return own, torch.index_select(tile.directions, 0, self.pairs.feature[piece], out=buffers.direction[:n])

    def _capped(self, logits: Tensor) -> Tensor:
        return soft_cap(logits, self.formula.cap)

    def effects(self) -> Effects:
        """The changes of the log-probabilities, when all tiles were gone over."""
        if self.scan is None:
            changes = linear_changes(self.formula, self.centred, self.pairs, self.factors, self.reached, self.n)
        else:
            changes = self.scan.changes
        shift = (self.without - self.with_[self.pairs.position])[:, None]  # lse' - lse
        loss = -(changes.of_next + shift[:, 0]).float()
        raised_ids, raised = Ranked(changes.raised).sorted()
        lowered_ids, lowered = Ranked(changes.lowered).sorted()
        columns = (loss, raised_ids, (raised + shift).float(), lowered_ids, (shift - lowered).float())
        return Effects(*(values.cpu() for values in columns))


class _Scan:
    """Looks at the change of each token of each pair, a tile at a time."""

    def __init__(self, pairs: Pairs, n_changes: int) -> None:
        k, device = len(pairs.position), pairs.position.device
        self.pairs, self.n = pairs, n_changes
        none = torch.zeros(k, 0, dtype=torch.int64, device=device)
        self.changes = Changes(torch.zeros(k, device=device), none, none)

    def begin(self, tile: _Tile) -> None:
        """Make room for what is found after another tile."""
        before = self.changes
        size = min(self.n, before.raised.shape[1] + tile.width)
        raised, lowered = (before.raised.new_zeros(len(before.raised), size) for _ in range(2))
        self.before, self.changes = before, before._replace(raised=raised, lowered=lowered)

    def look_at(self, logits: Tensor, without: Tensor, tile: _Tile, piece: slice, local: Tensor) -> None:
        """Note the change of the next token where it is in the tile, and the largest and smallest changes."""
        change = torch.index_select(logits, 0, local, out=tile.buffers.direction[: len(without)]).sub_(without)
        next_token = self.pairs.next_token[piece] - tile.first
        inside = (next_token >= 0) & (next_token < tile.n_tokens)
        here = change.gather(1, next_token.clamp(0, tile.n_tokens - 1)[:, None])[:, 0]
        self.changes.of_next[piece] += here.where(inside, 0.0)
        if self.n == 0:
            return
        for negated, before, after in (
            (False, self.before.raised, self.changes.raised),
            (True, self.before.lowered, self.changes.lowered),
        ):
            if tile.n_tokens < change.shape[1]:
                change[:, tile.n_tokens :] = torch.inf if negated else -torch.inf
            best = largest(change, min(self.n, change.shape[1]), tile.first, negated=negated)
            after[piece] = Ranked(before[piece]).joined(best, self.n).keys


class _Sums(NamedTuple):
    """Of each line of logits, in each stretch of a tile: the largest, and the sum of exponentials of what lies below it."""

    most: Float[Tensor, "k stretches"]
    sums: Float[Tensor, "k stretches"]

    @classmethod
    def of(cls, k: int, tile: _Tile) -> _Sums:
        """Of lines that were not looked at: there is nothing in their sums."""
        most = tile.directions.new_full((k, tile.width // SUM_WIDTH), -torch.inf)
        return cls(most, torch.zeros_like(most))

    def add(self, logits: Float[Tensor, "m width"], lines: slice, room: Float[Tensor, "m width"]) -> None:
        """Add up the logits of some lines; ``room`` may be theirs."""
        shape = (lines.stop - lines.start, -1, SUM_WIDTH)
        stretches, room = logits.view(shape), room[: shape[0]].view(shape)
        most = torch.amax(stretches, -1, out=self.most[lines])
        torch.sum(torch.sub(stretches, most[:, :, None], out=room).exp_(), -1, out=self.sums[lines])

    def joined(self, before: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
        """The logarithms of the sums of exponentials, with those of the tiles before."""
        for most, sums in zip(self.most.unbind(1), self.sums.unbind(1), strict=True):
            before = torch.logaddexp(before, sums.to(before.dtype).log_() + most)
        return before


class _Buffers(NamedTuple):
    """Room for the arrays of one piece: new memory for each would cost as much as what is computed in it."""

    own: Float[Tensor, "piece width"]
    direction: Float[Tensor, "piece width"]
    logits: Float[Tensor, "piece width"]

    @classmethod
    def of(cls, width: int, like: Tensor) -> _Buffers:
        return cls(*(like.new_empty(max(1, PIECE // width), width) for _ in cls._fields))


class _Tile(NamedTuple):
    """A stretch of the vocabulary: its first token, how many there are, the features' logits and the bias, both padded."""

    first: int
    n_tokens: int
    directions: Float[Tensor, "n width"]
    bias: Float[Tensor, " width"]
    biased: bool
    buffers: _Buffers

    @classmethod
    def of(cls, formula: FormulaTail, first: int, stop: int) -> _Tile:
        n_tokens = stop - first
        width = -(-n_tokens // SUM_WIDTH) * SUM_WIDTH
        directions = _padded(formula.product(formula.centred_directions, formula.weight[:, first:stop]), width)
        bias = torch.nn.functional.pad(formula.bias[first:stop], (0, width - n_tokens))
        return cls(first, n_tokens, directions, bias, bool(bias.any()), _Buffers.of(width, directions))

    @property
    def width(self) -> int:
        return len(self.bias)

    @property
    def pairs_a_piece(self) -> int:
        """How many pairs are worked on at a time."""
        return len(self.buffers.own)

    @property
    def positions_a_piece(self) -> int:
        """How many positions: fewer, so that where each has a pair or two, these are no more than a piece or two."""
        return max(1, 3 * self.pairs_a_piece // 4)

    def nothing_behind(self, logits: Float[Tensor, "n width"]) -> Float[Tensor, "n width"]:
        """The logits, with minus infinity behind the tokens of the tile, where exp gives 0."""
        if self.n_tokens < self.width:
            logits[:, self.n_tokens :] = -torch.inf
        return logits


def _padded(product: Float[Tensor, "n tile"], width: int) -> Float[Tensor, "n width"]:
    return torch.nn.functional.pad(product, (0, width - product.shape[1])) if product.shape[1] < width else product


def _slices(stop: int, size: int, start: int = 0) -> Iterator[slice]:
    for first in range(start, stop, size):
        yield slice(first, min(first + size, stop))
