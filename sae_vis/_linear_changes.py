"""The tokens whose logits a feature raises and lowers most, without a look at every token for every pair.

Where no soft cap follows, taking a feature out changes each logit (with minus without) by what is linear in two products::

    change = alpha u + beta l,    alpha = 1/s - 1/s',  beta = a/s'       (u, l, s and s' as in ``_ablation``)

``l`` is the same for all pairs of a feature, and ``u`` lies between two bounds that are known for the position. So the tokens
with the largest ``l`` are looked at first. Any other token changes by at most beta times the smallest ``l`` of these, plus
the most that ``alpha u`` can be; where that leaves others in question, all of them are looked at.

What is looked at is computed in float64, so the result depends neither on what else is computed nor on the bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_vis._ablation import FormulaTail, Pairs
from sae_vis._ranking import Ranked, keyed, largest_of_any_width
from sae_vis.model_fns import MIN_PRODUCT_ROWS, product_error

FIRST_LOOK = 64  # tokens of each side that are looked at first: for most features they are enough
LOGITS_BYTES = 2**26  # of logits of features that are looked at together
BLOCK_PAIRS = 64
BLOCK_NUMBERS = 2**20  # of the unembedding, that are multiplied together
TOKENS_AT_A_TIME = 2**12
PIECE = 2**17  # numbers of vectors whose lengths are computed together, in the cache
SIDES = (False, True)  # what is raised; what is lowered, whose changes are ranked with their signs turned


class Factors(NamedTuple):
    """Of each position the scale of its norm; of each pair that without the feature, and what the change is made of.

    ``of_residual`` is alpha and ``of_direction`` beta; ``relative`` is alpha times the scale of the position.
    """

    scale: Float[Tensor, " p"]
    scale_without: Float[Tensor, " k"]
    of_residual: Float[Tensor, " k"]
    relative: Float[Tensor, " k"]
    of_direction: Float[Tensor, " k"]

    @classmethod
    def of(cls, formula: FormulaTail, centred: Float[Tensor, "p d_model"], pairs: Pairs) -> Factors:
        """In double precision: the scales with and without a feature may be very close to each other."""
        a = pairs.activation
        if not formula.norm.scales:
            none = torch.zeros_like(a)
            return cls(torch.ones_like(centred[:, 0]), torch.ones_like(a), none, none, a)
        double, step = precise(centred.device), max(1, PIECE // centred.shape[1])

        def of_pairs(some: slice) -> Tensor:
            contribution = a[some, None] * formula.centred_directions[pairs.feature[some]].to(double)
            return _mean_square(centred[pairs.position[some]].to(double) - contribution)

        squares = _in_pieces(len(centred), step, lambda some: _mean_square(centred[some].to(double)), centred)
        without = _in_pieces(len(a), step, of_pairs, centred) + formula.norm.eps
        before = (squares + formula.norm.eps)[pairs.position]
        s, s_without = before.sqrt(), without.sqrt()
        relative = (without - before) / (s_without * (s + s_without))  # 1 - s/s'
        scale = (squares + formula.norm.eps).sqrt().float()
        return cls(scale, s_without.float(), (relative / s).float(), relative.float(), (a / s_without).float())


class Reached(NamedTuple):
    """Bounds of the ``u`` of each position: what it reaches over the tokens that were looked at, and 0."""

    low: Float[Tensor, " p"]
    high: Float[Tensor, " p"]

    @classmethod
    def of(cls, centred: Float[Tensor, "p d_model"]) -> Reached:
        """Before any token was looked at."""
        return cls(*(centred.new_zeros(len(centred)) for _ in cls._fields))

    def reach(self, unscaled: Float[Tensor, "m tokens"], positions: slice) -> None:
        """Take in the ``u`` of some positions and tokens."""
        low, high = self.low[positions], self.high[positions]
        torch.minimum(low, unscaled.amin(1), out=low)
        torch.maximum(high, unscaled.amax(1), out=high)


class Changes(NamedTuple):
    """Of each pair the change of the next token's logit, and the keys of the largest changes and of the negated smallest."""

    of_next: Float[Tensor, " k"]
    raised: Int[Tensor, "k n"]
    lowered: Int[Tensor, "k n"]


def linear_changes(
    formula: FormulaTail,
    centred: Float[Tensor, "p d_model"],
    pairs: Pairs,
    factors: Factors,
    reached: Reached,
    n_changes: int,
) -> Changes:
    """The changes of the logits (with minus without) of ``n_changes`` tokens on each side, and of the next token."""
    work = _Work(formula, centred, pairs, factors, reached, n_changes)
    features, counts = torch.unique(pairs.feature, return_counts=True)
    step = max(MIN_PRODUCT_ROWS, LOGITS_BYTES // (4 * formula.weight.shape[1]))
    first = 0
    for start in range(0, len(features), step):
        some, sizes = features[start : start + step], counts[start : start + step]
        work.look_at(some, _Blocks.of(sizes, first))
        first += int(sizes.sum())
    return Changes(work.of_next[work.place], *work.found[work.place].unbind(1))


class _Blocks(NamedTuple):
    """Stretches of pairs of one feature each: which of some features, where its pairs begin, and how many they are."""

    feature: Int[Tensor, " b"]
    start: Int[Tensor, " b"]
    size: Int[Tensor, " b"]

    @classmethod
    def of(cls, counts: Int[Tensor, " f"], first: int) -> _Blocks:
        """Of features that have so many pairs, one after the other from ``first`` on."""
        n_blocks = (counts + BLOCK_PAIRS - 1) // BLOCK_PAIRS
        feature = torch.repeat_interleave(n_blocks)
        within = (
            torch.arange(len(feature), device=counts.device) - (n_blocks.cumsum(0) - n_blocks)[feature]
        ) * BLOCK_PAIRS
        start = first + (counts.cumsum(0) - counts)[feature] + within
        return cls(feature, start, (counts[feature] - within).clamp_max(BLOCK_PAIRS))


class _Work:
    """What is found of each pair, some features at a time. The pairs stand in order of their features."""

    def __init__(
        self, formula: FormulaTail, centred: Tensor, pairs: Pairs, factors: Factors, reached: Reached, n: int
    ) -> None:
        by_feature = torch.argsort(pairs.feature, stable=True)
        self.place = torch.argsort(by_feature)  # of each pair in that order
        self.formula, self.centred, self.n = formula, centred, n
        self.dtype = precise(centred.device)
        self.pairs = Pairs(*(values[by_feature] for values in pairs))
        self.of_residual, self.of_direction = factors.of_residual[by_feature], factors.of_direction[by_feature]
        k = len(by_feature)
        self.of_next = torch.zeros(k, dtype=self.dtype, device=centred.device)
        self.found = torch.zeros(k, 2, n, dtype=torch.int64, device=centred.device)
        self.in_question = torch.zeros(k, 2, dtype=torch.bool, device=centred.device)
        ends = torch.stack([self.of_residual * values[self.pairs.position] for values in reached])
        # What alpha u can be at most, and what it can be with its sign turned, and how far off float32 may be.
        self.most = torch.stack([ends.amax(0), -ends.amin(0)], 1) + self._margin()[:, None]

    def _margin(self) -> Float[Tensor, " k"]:
        """What the float32 products of each pair may be off."""
        gain = self.formula.norm.gain
        error = product_error(len(gain), self.centred.device)
        longest = torch.linalg.vector_norm(self.formula.weight, dim=0).amax()
        residual, own = (
            torch.linalg.vector_norm(x * gain, dim=1) for x in (self.centred, self.formula.centred_directions)
        )
        lengths: Tensor = self.of_residual.abs() * residual[self.pairs.position]
        return lengths.addcmul_(self.of_direction, own[self.pairs.feature]).mul_(error * longest)

    def look_at(self, features: Int[Tensor, " f"], blocks: _Blocks) -> None:
        """Find the largest changes of all pairs of some features."""
        logits = self.formula.of_features(features)
        size = min(max(FIRST_LOOK, self.n), logits.shape[1])
        sides = [largest_of_any_width(logits, size, negated=negated).sorted() for negated in SIDES]
        ids, values = (torch.stack(columns, 1) for columns in zip(*sides, strict=True))  # [f, side, size]
        ids = ids.clamp_max(logits.shape[1] - 1)  # where weights overflow, what is no token may stand before NaN
        step = max(1, BLOCK_NUMBERS // (2 * size * len(self.formula.weight)))
        for some in zip(*(torch.split(values, step) for values in blocks), strict=True):
            self._first_look(_Blocks(*some), ids, values[..., -1])
        if self.n and size < logits.shape[1]:
            self._look_again(features, blocks, logits)

    def _first_look(self, blocks: _Blocks, ids: Int[Tensor, "f side size"], smallest: Float[Tensor, "f side"]) -> None:
        """Look at the tokens with the largest and the smallest ``l`` of each feature, and whether others are in question."""
        pair = blocks.start[:, None] + torch.arange(int(blocks.size.max()), device=ids.device)
        there = pair < (blocks.start + blocks.size)[:, None]
        pair = pair.where(there, blocks.start[:, None])
        read, tokens = self._read(pair), ids[blocks.feature]
        of_next = (read * self._of_tokens(self.pairs.next_token[pair])).sum(-1)
        self.of_next[pair[there]] = of_next[there]
        if self.n == 0:
            return
        changes = (read @ self._of_tokens(tokens.flatten(1)).mT).view(*pair.shape, *tokens.shape[1:])
        changes[:, :, 1].neg_()
        keys = keyed(changes.float(), tokens[:, None]).keys.topk(self.n).values
        least = Ranked(keys[..., -1]).values()
        others = self.most[pair] + self.of_direction[pair][..., None] * smallest[blocks.feature, None]
        self.found[pair[there]] = keys[there]
        self.in_question[pair[there]] = ~(least >= others)[there]  # also where there is NaN

    def _look_again(self, features: Int[Tensor, " f"], blocks: _Blocks, logits: Float[Tensor, "f d_vocab"]) -> None:
        """Look at all tokens that could be among the largest of the pairs that are in question."""
        first, stop = int(blocks.start[0]), int(blocks.start[-1] + blocks.size[-1])
        pair, side = self.in_question[first:stop].nonzero().unbind(1)
        pair = pair + first
        least = Ranked(self.found[pair, side, -1]).values() - self.most[pair, side]
        least = (least / self.of_direction[pair]).nan_to_num(nan=-torch.inf)
        index = torch.searchsorted(features, self.pairs.feature[pair])
        group, counts = torch.unique(index * 2 + side, return_counts=True)
        order = torch.split(torch.argsort(index * 2 + side, stable=True), counts.tolist())
        for (feature, of_side), some in zip((divmod(one, 2) for one in group.tolist()), order, strict=True):
            own = -logits[feature] if SIDES[of_side] else logits[feature]
            tokens = (own >= least[some].amin()).nonzero()[:, 0]
            for piece in torch.split(pair[some], BLOCK_PAIRS):
                self.found[piece, of_side] = self._ranked(self._read(piece), tokens, of_side)

    def _read(self, pair: Int[Tensor, "*m"]) -> Float[Tensor, "*m d_model"]:
        """What the unembedding reads, with minus without the feature; the last dimension of ``pair`` is of one feature."""
        residual = self.centred[self.pairs.position[pair]].to(self.dtype).mul_(self.of_residual[pair][..., None])
        direction = self.formula.centred_directions[self.pairs.feature[pair[..., :1]]].to(self.dtype)
        residual.addcmul_(direction, self.of_direction[pair][..., None].to(self.dtype))
        return residual.mul_(self.formula.norm.gain)

    def _of_tokens(self, tokens: Int[Tensor, "*t"]) -> Float[Tensor, "*t d_model"]:
        """The columns of the unembedding of some tokens."""
        return self.formula.weight.T[tokens].to(self.dtype)

    def _ranked(self, read: Float[Tensor, "m d_model"], tokens: Int[Tensor, " t"], side: int) -> Int[Tensor, "m n"]:
        """The keys of the largest changes among some tokens."""
        found = Ranked(tokens.new_zeros(len(read), 0))
        for some in torch.split(tokens, TOKENS_AT_A_TIME):
            changes = read @ self._of_tokens(some).T
            found = found.joined(keyed((-changes if SIDES[side] else changes).float(), some), self.n)
        return found.keys


def precise(device: torch.device) -> torch.dtype:
    """The floats to compute exactly with."""
    return torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64


def _mean_square(x: Tensor) -> Tensor:
    return x.square().mean(-1)


def _in_pieces(n: int, step: int, compute: Callable[[slice], Tensor], like: Tensor) -> Tensor:
    """One number for each of ``n`` rows, computed for some rows at a time."""
    # Written into one array: kept pieces would lie between the large arrays of each piece, whose memory then stays taken.
    found = like.new_empty(n, dtype=precise(like.device))
    for start in range(0, n, step):
        some = slice(start, min(start + step, n))
        found[some] = compute(some)
    return found
