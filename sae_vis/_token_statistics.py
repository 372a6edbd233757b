"""On which tokens and where in the rows a feature fires, and where it does not: pure functions of its activations.

The counted positions stand in the order of their token's id, row and position (``TokenIndex``), once for all features. An
activation's place in that order tells how often its token occurs; the gaps between the activations are where the feature
does not fire, and are counted and drawn from without looking at any other position.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from sae_vis._ranking import stable_order
from sae_vis._statistics import Example, FeatureActivations, Floats, Ints, Step, is_shown, priorities
from sae_vis.utils_fns import round_significant

NEAR_MISS_TOKENS = 5  # near misses are looked for on so many of the feature's top tokens
DRAWS = 64  # for each example that is wanted: so many candidates are looked at, at most
FIRST_DRAWS = 4  # of them at once: mostly enough
# What stands for the row in the hash of a draw: no row has these numbers, so the draws are apart from each other and from
# the random examples.
NEAR_MISS_TOKEN, NEAR_MISSES, NEGATIVES = 2**63, 2**63 + 1, 2**63 + 2
STORED_DIGITS = 6


class TokenIndex(NamedTuple):
    """The counted positions in the order of token id, row and position.

    ``ids [d]`` are the distinct token ids, rising; those at ``ids[i]`` are ``places[offsets[i]:offsets[i + 1]]``, and a
    place is ``row * seq_len + position``. ``rank [rows * seq]`` is where each counted place stands in ``places``,
    ``column [rows * seq]`` which of the ids it has.
    """

    ids: Ints
    offsets: Ints
    places: npt.NDArray[np.integer[Any]]
    rank: npt.NDArray[np.integer[Any]]
    column: npt.NDArray[np.integer[Any]]
    seq_len: int

    @classmethod
    def of(cls, tokens: Ints, counted: npt.NDArray[np.bool_]) -> TokenIndex:
        """From the tokens ``[rows, seq]`` and which of them count."""
        flat = tokens.reshape(-1)
        small = np.int32 if flat.size < 2**31 else np.int64
        places = np.flatnonzero(counted.reshape(-1)).astype(small)
        order = stable_order(torch.from_numpy(flat[places]), int(flat.max(initial=0)) + 1).numpy()
        places = places[order]
        in_order = flat[places]
        first = np.flatnonzero(np.diff(in_order, prepend=-1))
        rank: npt.NDArray[np.integer[Any]] = np.zeros(flat.size, dtype=small)
        column: npt.NDArray[np.integer[Any]] = np.zeros(flat.size, dtype=np.int32)
        rank[places] = np.arange(len(places), dtype=small)
        offsets = np.append(first, len(places))
        column[places] = np.repeat(np.arange(len(first), dtype=np.int32), np.diff(offsets))
        return cls(in_order[first], offsets, places, rank, column, tokens.shape[1])

    def places_of(self, acts: FeatureActivations) -> Ints:
        """The places of a feature's activations."""
        return acts.rows * self.seq_len + acts.positions


# --- the tokens that it fires on -----------------------------------------------------------------------------------


class TopTokens(NamedTuple):
    """The tokens with the largest share of a feature's total activation, the largest first.

    ``columns`` index the ids, ``steps`` are the sums of the activations in whole steps.
    """

    columns: Ints
    steps: Ints
    token_ids: list[int]
    n_active: list[int]
    n_occurrences: list[int]
    mean: list[float]
    share: list[float]
    n_distinct: int

    def first(self, size: int) -> TopTokens:
        """The first of them."""
        cut = slice(size)
        return TopTokens(
            self.columns[cut],
            self.steps[cut],
            self.token_ids[cut],
            self.n_active[cut],
            self.n_occurrences[cut],
            self.mean[cut],
            self.share[cut],
            self.n_distinct,
        )


def top_tokens(acts: FeatureActivations, index: TokenIndex, size: int) -> TopTokens:
    """The ``size`` tokens with the largest sums of (rounded) activations; ties go to the lower id.

    The activations are added up as whole numbers of their step, which float64 holds exactly: no order of adding them shows.
    """
    if not len(acts.values):
        nothing = np.zeros(0, dtype=np.int64)
        return TopTokens(nothing, nothing, [], [], [], [], [], 0)
    step = Step.for_maximum(acts.maximum)
    columns, counts, sums = _by_column(index.column[index.places_of(acts)], step.steps(acts.values), len(index.ids))
    best = _largest(sums, size)
    occurrences = np.diff(index.offsets)[columns[best]]
    means, total = step.value(sums[best]) / counts[best], float(sums.sum())
    return TopTokens(
        columns[best],
        sums[best].astype(np.int64),
        index.ids[columns[best]].tolist(),
        counts[best].tolist(),
        occurrences.tolist(),
        [round_significant(mean, STORED_DIGITS) for mean in means.tolist()],
        [round_significant(share, STORED_DIGITS) for share in (sums[best] / total).tolist()],
        len(columns),
    )


def _by_column(column: Any, steps: Floats, n_columns: int) -> tuple[Any, Any, Any]:
    """The columns that occur, how often each does, and the sums of the steps there."""
    if len(column) * 8 < n_columns:  # few of a large vocabulary
        columns, which, counts = np.unique(column, return_inverse=True, return_counts=True)
        return columns, counts, np.bincount(which, steps, len(columns))
    counts = np.bincount(column, minlength=n_columns)
    columns = np.flatnonzero(counts)
    return columns, counts[columns], np.bincount(column, steps, n_columns)[columns]


def _largest(sums: Floats, size: int) -> Ints:
    """The indices of the largest, ties to the lower one."""
    if size < len(sums):
        candidates = np.flatnonzero(sums >= np.partition(sums, -size)[-size]) if size else np.zeros(0, dtype=np.int64)
    else:
        candidates = np.arange(len(sums))
    return candidates[np.argsort(-sums[candidates], kind="stable")][:size]


# --- where it fires in the rows --------------------------------------------------------------------------------------


class RowPositions(NamedTuple):
    """The positions of a row in bins of one width (the last may be narrower), and the counted positions in each."""

    width: int
    edges: list[int]
    n_counted: list[int]

    @classmethod
    def of(cls, counted: npt.NDArray[np.bool_], n_bins: int) -> RowPositions:
        """At most ``n_bins`` bins of the positions of ``counted [rows, seq]``."""
        seq_len = counted.shape[1]
        width = -(-seq_len // n_bins)
        starts = range(0, seq_len, width)
        by_bin = np.add.reduceat(counted.sum(0, dtype=np.int64), list(starts))
        return cls(width, [*starts, seq_len], by_bin.tolist())

    def counts(self, acts: FeatureActivations) -> list[int]:
        """At how many positions in each bin the feature is active."""
        counts: list[int] = np.bincount(acts.positions // self.width, minlength=len(self.n_counted)).tolist()
        return counts


# --- where it does not fire --------------------------------------------------------------------------------------------


class Gaps(NamedTuple):
    """The counted positions without an activation that lie in some stretches of a ``TokenIndex``, numbered through.

    The stretches are ``starts[i] .. starts[i] + lengths[i]``, rising; ``active`` are the activations in them, counted as if
    the stretches followed each other, rising. ``sizes`` counts the positions without one in each stretch.
    """

    starts: Ints
    lengths: Ints
    active: Ints
    sizes: Ints

    @classmethod
    def between(cls, ranks: Ints, starts: Ints, ends: Ints) -> Gaps:
        """``ranks`` are those of all activations, rising."""
        lows, highs = np.searchsorted(ranks, starts), np.searchsorted(ranks, ends)
        lengths = ends - starts
        before = np.cumsum(lengths) - lengths
        active = [
            ranks[low:high] - start + shift
            for low, high, start, shift in zip(
                lows.tolist(), highs.tolist(), starts.tolist(), before.tolist(), strict=True
            )
        ]
        return cls(
            starts, lengths, np.concatenate(active) if active else ranks[:0], lengths - (highs - lows).astype(np.int64)
        )

    @property
    def total(self) -> int:
        """How many positions there are in all stretches."""
        return int(self.sizes.sum())

    def ranks(self, numbers: Ints) -> Ints:
        """Where the positions with these numbers stand in the index."""
        before = self.active - np.arange(len(self.active))  # each activation: how many positions without one come first
        through = numbers + np.searchsorted(before, numbers, side="right")
        ends = np.cumsum(self.lengths)
        stretch = np.searchsorted(ends, through, side="right")
        return through - (ends - self.lengths)[stretch] + self.starts[stretch]


class Counterexamples(NamedTuple):
    """Random positions where a feature does not fire: on its top tokens, of which there are so many, and anywhere."""

    near_misses: list[Example]
    n_near_misses: int
    negatives: list[Example]


def counterexamples(
    acts: FeatureActivations,
    index: TokenIndex,
    top: TopTokens,
    size: int,
    seed: int,
    buffer: tuple[int, int] | None,
    allow_overlap: bool,
) -> Counterexamples:
    """Both groups; none of a feature that never fires. ``top`` holds ``NEAR_MISS_TOKENS`` tokens at least."""
    if not len(acts.values):
        return Counterexamples([], 0, [])
    ranks = np.sort(index.rank[index.places_of(acts)]).astype(np.int64)
    by_id = np.argsort(top.columns[:NEAR_MISS_TOKENS])
    columns = top.columns[by_id]
    on_top = Gaps.between(ranks, index.offsets[columns], index.offsets[columns + 1])
    anywhere = Gaps.between(ranks, np.zeros(1, dtype=np.int64), np.array([len(index.places)]))
    groups = []
    for gaps, stream, weights in (
        (on_top, NEAR_MISSES, np.where(on_top.sizes > 0, top.steps[by_id], 0)),
        (anywhere, NEGATIVES, np.ones(1, dtype=np.int64)),
    ):
        draw = _Draw(seed, acts.feature, stream, gaps, weights)
        groups.append(_taken(draw, index, size, buffer, allow_overlap) if gaps.total else [])
    return Counterexamples(groups[0], on_top.total, groups[1])


class _Draw(NamedTuple):
    """How positions without an activation are drawn: first one of the stretches, by its weight, then one of its positions."""

    seed: int
    feature: int
    stream: int
    gaps: Gaps
    weights: Ints

    def ranks(self, which: Sequence[int]) -> Ints:
        """Where the positions of these draws stand in the index."""
        sizes, stretch = self.gaps.sizes, np.zeros(len(which), dtype=np.int64)
        if len(sizes) > 1:
            weight = draws(self.feature, NEAR_MISS_TOKEN, which, self.seed, self.weights.sum())
            stretch = np.searchsorted(np.cumsum(self.weights), weight, side="right")
        number = draws(self.feature, self.stream, which, self.seed, sizes[stretch])
        return self.gaps.ranks(number + (np.cumsum(sizes) - sizes)[stretch])


def _taken(
    draw: _Draw, index: TokenIndex, size: int, buffer: tuple[int, int] | None, allow_overlap: bool
) -> list[Example]:
    """The first positions that are drawn, without those drawn before and those in the window of one taken before."""
    taken: list[Example] = []
    drawn: set[int] = set()
    for first, last in ((0, FIRST_DRAWS * size), (FIRST_DRAWS * size, DRAWS * size)):
        for place in index.places[draw.ranks(range(first, last))].tolist():
            if place in drawn:
                continue
            drawn.add(place)
            example = Example(*divmod(place, index.seq_len))
            if allow_overlap or not _overlaps(example, taken, buffer):
                taken.append(example)
            if len(taken) == size or len(drawn) == draw.gaps.total:
                return taken
    return taken


def draws(feature: int, stream: int, which: Sequence[int], seed: int, below: Any) -> Ints:
    """Random numbers from 0 to ``below``: hashes of seed, feature, stream and the number of the draw, modulo ``below``."""
    hashed = priorities(seed, feature, np.array([stream], dtype=np.uint64), np.asarray(which))
    return (hashed % np.asarray(below).astype(np.uint64)).astype(np.int64)


def _overlaps(example: Example, taken: Sequence[Example], buffer: tuple[int, int] | None) -> bool:
    return any(other.row == example.row and is_shown(other.position, example.position, buffer) for other in taken)
