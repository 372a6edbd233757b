"""The direct effects of many pairs of a feature and a position, in one pass over the vocabulary by tiles.

With ``u``, ``l``, ``s`` and ``s'`` as in ``_ablation``, the log-probabilities with minus without the feature are::

    change = (1/s - 1/s') u + (a/s') l + lse' - lse

Everything but the last two terms, the logarithms of the sums of exponentials, is linear in what two matrix products give:
``u`` for each position, ``l`` for each feature. So a tile of the vocabulary needs these two products once, and then, for
each pair, a weighted sum of a few rows of one table and one exponential a token. No array holds more than a tile of the
vocabulary, however many features there are.

Exponentials are taken of what lies below the largest logit *with* everything, which is known for each position before its
pairs are looked at. Where a feature moves the whole sum so far that this costs digits, the pair is looked at once more, by
itself (``_far``).

Which tokens change most is found without looking at all of them (``_linear_changes``), but under a soft cap, where the
change is not linear: there the pass looks at each change of each tile.

Every number has the same bits whatever the width of the tiles and the size of the pieces: exponentials are added up in
stretches of ``SUM_WIDTH`` tokens, and these sums in order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from sae_vis._ablation import Effects, FormulaTail, Pairs, chunk_size
from sae_vis._linear_changes import Changes, Factors, Reached, linear_changes, precise
from sae_vis._products import laid_out
from sae_vis._ranking import Ranked, largest
from sae_vis.model_fns import soft_cap

SUM_WIDTH = 2048
PIECE = 2**18  # numbers of one array of [pairs, tile] that are worked on at a time: a few of them stay in the cache
WIDEST = 2 * SUM_WIDTH  # tokens of a tile
ROWS = 704  # of positions or features, whose product with a tile is taken at a time: that of fewer is slower
BITS = 1 / math.log(2)  # in a nat
FAR = 30.0  # nats that a sum may move before it is taken once more, below its own largest logit
WITH_BAGS = frozenset({"cpu", "cuda"})  # kinds of device that mix rows of a table in one pass


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
        # Logits are in bits, as powers of two are taken several times as fast as exponentials; in nats under a soft cap.
        self.unit = 1.0 if formula.cap > 0 else BITS
        self.inverse = (self.unit / self.factors.scale)[:, None]
        self.mixtures = _Mixtures.of(pairs, self.factors, len(formula.centred_directions), self.unit)
        double = precise(residual.device)
        self.with_ = torch.full((len(residual),), -torch.inf, dtype=double, device=residual.device)
        self.without = torch.full((len(pairs.position),), -torch.inf, dtype=double, device=residual.device)
        self.reached = Reached.of(self.centred)
        self.scan = _Scan(pairs, n_changes) if formula.cap > 0 else None
        positions = torch.arange(len(residual) + 1, device=residual.device)
        self.first_pair: list[int] = torch.searchsorted(pairs.position, positions).tolist()

    def tile(self, first: int, stop: int) -> None:
        """Go over the tokens ``first .. stop``."""
        tile = _Tile.of(self.formula, first, stop, self.unit)
        sums = _Sums.of(len(self.with_), len(self.without), tile)
        weight = laid_out(self.formula.weight[:, first:stop])
        if self.scan is not None:
            self.scan.begin(tile)
        for rows in _slices(len(self.with_), ROWS):
            if self.first_pair[rows.start] == self.first_pair[rows.stop]:
                continue  # no feature changes anything there
            unscaled = _padded(self.formula.product(self.centred[rows], weight), tile.width)
            for positions in _slices(rows.stop, tile.positions_a_piece, rows.start):
                here = unscaled[positions.start - rows.start : positions.stop - rows.start]
                self._look_at(here, tile, positions, sums)
        nats = sums.most.to(self.with_.dtype) / self.unit
        self.with_ = _joined(self.with_, nats, sums.with_)
        most = nats[self.pairs.position] * self.mixtures.share[:, None]
        self.without = _joined(self.without, most, sums.without)

    def _look_at(self, unscaled: Tensor, tile: _Tile, positions: slice, sums: _Sums) -> None:
        """Add up the exponentials of the logits of some positions, with everything and without the feature of each pair."""
        logits = self._with_everything(unscaled, tile, positions, sums)
        pairs = range(self.first_pair[positions.start], self.first_pair[positions.stop])
        for piece in _slices(pairs.stop, tile.pairs_a_piece, pairs.start):
            local = self.pairs.position[piece] - positions.start
            without = self.mixtures.mixed(piece, local, tile.table)
            if self.scan is not None:
                without = soft_cap(without, self.formula.cap)
                self.scan.look_at(logits, without, tile, piece, local)
                most = sums.most[self.pairs.position[piece]]
                without = (_stretches(without) - most[:, :, None]).view_as(without)
            without = tile.nothing_behind(without)
            torch.sum(_stretches(self._powers(without, without)), -1, out=sums.without[piece])

    def _with_everything(self, unscaled: Tensor, tile: _Tile, positions: slice, sums: _Sums) -> Tensor:
        """Add up those with everything, and fill the tile's rows of these positions. The logits, where they are capped."""
        rows = tile.of_positions[: len(unscaled)]
        logits = torch.addcmul(tile.bias, unscaled, self.inverse[positions], out=rows)
        if self.scan is None:
            self.reached.reach(unscaled, positions)
        else:
            logits = soft_cap(logits, self.formula.cap)
        most = torch.amax(_stretches(tile.nothing_behind(logits)), -1, out=sums.most[positions])
        below = torch.sub(_stretches(logits), most[:, :, None], out=_stretches(rows))
        powers = self._powers(below, _stretches(tile.powers[: len(rows)]))
        torch.sum(powers, -1, out=sums.with_[positions])
        if self.scan is not None:
            rows.copy_(unscaled)  # before the cap nothing may be taken away
        return logits

    def _powers(self, logits: Tensor, out: Tensor) -> Tensor:
        """The exponentials of logits, which may be overwritten."""
        return torch.exp2(logits if self.unit == BITS else logits.mul_(BITS), out=out)

    def effects(self) -> Effects:
        """The changes of the log-probabilities, when all tiles were gone over."""
        if self.scan is None:
            changes = linear_changes(self.formula, self.centred, self.pairs, self.factors, self.reached, self.n)
        else:
            changes = self.scan.changes
        moved = self.without - self.with_[self.pairs.position]  # lse' - lse
        far = (~(moved.abs() < FAR)).nonzero()[:, 0]  # also where it is NaN
        moved[far] = self._far(far) - self.with_[self.pairs.position[far]]
        loss, shift = -(changes.of_next + moved).float(), moved[:, None]
        raised_ids, raised = Ranked(changes.raised).sorted()
        lowered_ids, lowered = Ranked(changes.lowered).sorted()
        columns = (loss, raised_ids, (raised + shift).float(), lowered_ids, (shift - lowered).float())
        return Effects(*(values.cpu() for values in columns))

    def _far(self, pairs: Int[Tensor, " m"]) -> Float[Tensor, " m"]:
        """``lse'`` of a few pairs, from all their logits at once."""
        found = self.without.new_empty(len(pairs))
        for some in _slices(len(pairs), chunk_size(self.formula.weight.shape[1])):
            own = pairs[some]
            unscaled = self.formula.product(self.centred[self.pairs.position[own]])
            unscaled /= self.factors.scale_without[own, None]
            direction = self.formula.product(self.formula.centred_directions[self.pairs.feature[own]])
            unscaled.addcmul_(direction, self.factors.of_direction[own, None], value=-1.0).add_(self.formula.bias)
            found[some] = soft_cap(unscaled, self.formula.cap).to(found.dtype).logsumexp(1)
        return found


class _Mixtures(NamedTuple):
    """The logits of each pair without its feature, as a weighted sum of rows of a tile's table.

    The rows are those of the features, the bias, and then what a piece holds of positions: their logits less the largest of
    each stretch, or ``u`` under a soft cap, where the change is not linear. Of the largest that is taken away from the logits
    with everything, ``share`` is taken away from those without the feature.
    """

    feature: Int[Tensor, " k"]
    weights: Float[Tensor, "k 4"]
    share: Float[Tensor, " k"]
    bias: int

    @classmethod
    def of(cls, pairs: Pairs, factors: Factors, bias: int, unit: float) -> _Mixtures:
        """``bias`` is the bias's row: that behind the features'; ``unit`` that of logits that have no soft cap: 1 under one."""
        one, relative = torch.ones_like(factors.relative), factors.relative
        if unit == 1.0:
            columns = (1.0 / factors.scale_without, torch.zeros_like(one), -factors.of_direction, one)
            share = one
        else:  # two weights for one row, as a sum of them would be off by its rounding in the same way for every token
            columns = (one, -relative, -unit * factors.of_direction, relative)
            share = 1.0 - relative.to(precise(relative.device))
        return cls(pairs.feature, torch.stack(columns, 1), share, bias)

    def mixed(self, piece: slice, local: Int[Tensor, " m"], table: Float[Tensor, "rows width"]) -> Tensor:
        """The logits ``[m, width]`` of some pairs at these positions of the piece, in new memory."""
        position = local + (self.bias + 1)
        rows = torch.stack([position, position, self.feature[piece], torch.full_like(local, self.bias)], 1)
        if table.device.type not in WITH_BAGS:
            return torch.einsum("krw,kr->kw", table[rows], self.weights[piece])
        return functional.embedding_bag(rows, table, mode="sum", per_sample_weights=self.weights[piece])


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
        change = torch.index_select(logits, 0, local, out=tile.powers[: len(without)]).sub_(without)
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
    """Of each stretch of a tile: the largest logit of each position, and sums of exponentials of what lies below it."""

    most: Float[Tensor, "p stretches"]
    with_: Float[Tensor, "p stretches"]
    without: Float[Tensor, "k stretches"]

    @classmethod
    def of(cls, p: int, k: int, tile: _Tile) -> _Sums:
        """Of positions and pairs that were not looked at: there is nothing in their sums."""
        n = tile.width // SUM_WIDTH
        return cls(tile.bias.new_full((p, n), -torch.inf), tile.bias.new_zeros(p, n), tile.bias.new_zeros(k, n))


def _joined(before: Float[Tensor, " n"], most: Float[Tensor, "n s"], sums: Float[Tensor, "n s"]) -> Float[Tensor, " n"]:
    """The logarithms of the sums of exponentials below ``most``, with those of the tiles before."""
    for top, total in zip(most.unbind(1), sums.unbind(1), strict=True):
        before = torch.logaddexp(before, total.to(before.dtype).log_() + top)
    return before


def _stretches(values: Float[Tensor, "n width"]) -> Float[Tensor, "n stretches sum_width"]:
    return values.view(len(values), -1, SUM_WIDTH)


class _Tile(NamedTuple):
    """A stretch of the vocabulary: its first token, how many there are, and room for what is worked on.

    ``table`` has the features' logits, the bias, and room for those of the positions of a piece; ``powers`` is room too.
    New memory for each piece would cost as much as what is computed in it. All rows are padded to whole stretches.
    """

    first: int
    n_tokens: int
    table: Float[Tensor, "rows width"]
    n_features: int
    powers: Float[Tensor, "piece width"]

    @classmethod
    def of(cls, formula: FormulaTail, first: int, stop: int, unit: float) -> _Tile:
        n_tokens, n_features = stop - first, len(formula.centred_directions)
        width = -(-n_tokens // SUM_WIDTH) * SUM_WIDTH
        pairs_a_piece = max(1, PIECE // width)
        positions_a_piece = max(1, 3 * pairs_a_piece // 4)
        table = formula.weight.new_zeros(n_features + 1 + positions_a_piece, width, dtype=torch.float32)
        for some in _slices(n_features, ROWS):
            table[some, :n_tokens] = formula.of_features(some, slice(first, stop))
        table[n_features, :n_tokens] = unit * formula.bias[first:stop]
        return cls(first, n_tokens, table, n_features, table.new_empty(pairs_a_piece, width))

    @property
    def width(self) -> int:
        return self.table.shape[1]

    @property
    def bias(self) -> Float[Tensor, " width"]:
        return self.table[self.n_features]

    @property
    def of_positions(self) -> Float[Tensor, "positions width"]:
        """Room for a row of each position of a piece."""
        return self.table[self.n_features + 1 :]

    @property
    def pairs_a_piece(self) -> int:
        """How many pairs are worked on at a time."""
        return len(self.powers)

    @property
    def positions_a_piece(self) -> int:
        """How many positions: fewer, so that where each has a pair or two, these are no more than a piece or two."""
        return len(self.of_positions)

    def nothing_behind(self, logits: Float[Tensor, "n width"]) -> Float[Tensor, "n width"]:
        """The logits, with minus infinity behind the tokens of the tile, where nothing is added."""
        if self.n_tokens < self.width:
            logits[:, self.n_tokens :] = -torch.inf
        return logits


def _padded(product: Float[Tensor, "n tile"], width: int) -> Float[Tensor, "n width"]:
    return torch.nn.functional.pad(product, (0, width - product.shape[1])) if product.shape[1] < width else product


def _slices(stop: int, size: int, start: int = 0) -> Iterator[slice]:
    for first in range(start, stop, size):
        yield slice(first, min(first + size, stop))
