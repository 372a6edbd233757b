"""Everything that follows from a feature's activations alone: pure functions of the store.

A feature's activations are rounded once, to a step of four significant digits of its maximum, and everything that is
ranked, counted or shown uses the rounded values; so neither the batch size nor the choice of other features shows.
"""

from __future__ import annotations

import functools
import itertools
import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from jaxtyping import Float
from torch import Tensor

from sae_vis.utils_fns import round_significant

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

SIGNIFICANT_DIGITS = 4
LARGEST_EXACT_POWER = 22  # powers of ten up to this one are exact in float64, so products and quotients round once
MOST_DECIMALS = 300  # a float32 has fewer
CACHED = 2**18  # numbers that a processor's cache holds
LARGEST_FOR_WIDTH_ONE = 1e6  # ticks that differ by less than 1 have too many digits beyond, and floats too few
EXACT_KNOTS = 32
FLOAT32_DIGITS = 9  # enough to tell any two float32 numbers apart
MOST_PASSED = (
    1000  # candidates of a group that are passed over as nothing new: where all are alike, the search must end
)
LOOKED_AT = 512  # candidates that are sorted first: a group mostly takes its examples from them
KNOT_RATIO = 1.06  # the square root of it is 1.03: the tail is known to 3 %


# --- rounding ----------------------------------------------------------------------------------------------------


def significant(values: Floats, digits: int, most_decimals: int = MOST_DECIMALS) -> Floats:
    """Values rounded to so many significant digits and decimals at most, each the float closest to its decimal form."""
    exponents = np.floor(np.log10(np.maximum(np.abs(values), 10.0**-most_decimals)))
    decimals = np.minimum(digits - 1 - exponents, most_decimals)
    scale = 10.0 ** np.abs(decimals)
    rounded: Floats = np.where(decimals >= 0, np.rint(values * scale) / scale, np.rint(values / scale) * scale)
    inexact = (scale > 10.0**LARGEST_EXACT_POWER) & (values != 0.0)  # far from 1: rare
    if inexact.any():
        rounded[inexact] = [round_significant(value, digits) for value in values[inexact].tolist()]
    return rounded


class Step(NamedTuple):
    """The unit that a feature's activations are rounded to: ``10 ** exponent``."""

    exponent: int

    @classmethod
    def for_maximum(cls, maximum: float) -> Step:
        """The step that gives this maximum four significant digits once it is rounded (9.9999 becomes 10.00)."""
        return cls(int(f"{maximum:.{SIGNIFICANT_DIGITS - 1}e}".partition("e")[2]) - SIGNIFICANT_DIGITS + 1)

    def steps(self, values: npt.NDArray[np.floating]) -> Floats:
        """Each activation as a whole number of steps; an active one is never rounded to zero.

        In floats: on a prompt, the activation of a feature may be more steps than an integer holds.
        """
        exact = values.astype(np.float64)
        scaled = exact / 10.0**self.exponent if self.exponent > 0 else exact * 10.0**-self.exponent
        return np.maximum(np.rint(scaled), 1.0)

    def value(self, counts: Floats) -> Floats:
        """The numbers that so many steps stand for, each the float closest to its decimal form."""
        if abs(self.exponent) > LARGEST_EXACT_POWER:
            return np.array([float(f"{int(count)}e{self.exponent}") for count in counts.tolist()], dtype=np.float64)
        return counts * 10.0**self.exponent if self.exponent >= 0 else counts / 10.0**-self.exponent


class FeatureActivations(NamedTuple):
    """One feature's active positions, rounded.

    ``rows``, ``positions`` (within the row), ``values`` [k], in order of row and position; ``raw`` are the values before
    rounding; ``n_counted`` positions in all.
    """

    feature: int
    rows: Ints
    positions: Ints
    values: Floats
    raw: Floats
    n_counted: int

    @classmethod
    def of(
        cls,
        feature: int,
        places: Ints,
        raw: npt.NDArray[np.float32],
        seq_len: int,
        row_offset: int,
        n_counted: int,
        maximum: float | None = None,
    ) -> FeatureActivations:
        """From the store's column: places are ``row * seq_len + position``; ``maximum`` None takes the column's own."""
        raw_double = raw.astype(np.float64)
        if len(raw):
            step = Step.for_maximum(maximum or float(raw_double.max()))
            values = step.value(step.steps(raw))
        else:
            values = raw_double
        rows, positions = np.divmod(places.astype(np.int64), seq_len)
        return cls(feature, rows + row_offset, positions, values, raw_double, n_counted)

    @classmethod
    def of_columns(
        cls,
        features: Sequence[int],
        offsets: Ints,
        places: Ints,
        raw: npt.NDArray[np.float32],
        seq_len: int,
        row_offset: int,
        n_counted: int,
    ) -> Iterator[FeatureActivations]:
        """From several columns of the store, each with the bits that ``of`` gives, in fewer and longer steps.

        Column ``i`` is ``offsets[i] .. offsets[i + 1]`` of ``places`` and ``raw``.
        """
        raw_double = raw.astype(np.float64)
        rows, positions = np.divmod(places.astype(np.int64), seq_len)
        rows += row_offset
        lengths = np.diff(offsets)
        maxima = np.maximum.reduceat(raw_double, offsets[:-1][lengths > 0]) if len(raw) else raw_double
        steps = iter([Step.for_maximum(maximum) for maximum in maxima.tolist()])
        spans = [
            (Step(0) if start == stop else next(steps), start, stop)
            for start, stop in itertools.pairwise(offsets.tolist())
        ]
        # One of the two is 1, which changes nothing.
        up, down = (
            np.repeat([10.0 ** max(0, sign * step.exponent) for step, _, _ in spans], lengths) for sign in (1, -1)
        )
        values = np.maximum(np.rint(raw_double / up * down), 1.0) * up / down
        for feature, (step, start, stop) in zip(features, spans, strict=True):
            own = slice(start, stop)
            if abs(step.exponent) > LARGEST_EXACT_POWER:
                values[own] = step.value(step.steps(raw_double[own]))
            yield cls(feature, rows[own], positions[own], values[own], raw_double[own], n_counted)

    def on_rows(self, rows: Ints) -> FeatureActivations:
        """The activations on some of the rows only, which rise; the values stay rounded as they are."""
        kept = are_among(self.rows, rows)
        return self._replace(
            rows=self.rows[kept], positions=self.positions[kept], values=self.values[kept], raw=self.raw[kept]
        )

    @property
    def maximum(self) -> float:
        """The largest activation."""
        return float(self.values.max())


def are_among(values: Ints, rising: Ints) -> npt.NDArray[np.bool_]:
    """Which values are among some that rise: in a fraction of the time that numpy takes for any that do not."""
    if not len(rising):
        return np.zeros(len(values), dtype=np.bool_)
    found: npt.NDArray[np.bool_] = rising[np.minimum(np.searchsorted(rising, values), len(rising) - 1)] == values
    return found


# --- moments, histogram, quantile knots --------------------------------------------------------------------------


class ActivationMoments(NamedTuple):
    """Population moments over all counted positions, zeros included; skewness and kurtosis None for a constant."""

    mean: float
    variance: float
    skewness: float | None
    kurtosis: float | None


def moments(values: Floats, n_counted: int) -> ActivationMoments:
    """Moments of ``values`` and ``n_counted - len(values)`` zeros; the kurtosis is not in excess of 3."""
    n_zeros = n_counted - len(values)
    mean = float(values.sum()) / n_counted
    deviations = values - mean
    squares = deviations * deviations  # products: the power function takes ten times as long below zero

    def central(powers: Floats, power: int) -> float:
        return (float(powers.sum()) + n_zeros * (-mean) ** power) / n_counted

    constant = len(values) == n_counted and values.min() == values.max()
    variance = 0.0 if constant else central(squares, 2)
    third, fourth = central(squares * deviations, 3), central(squares * squares, 4)
    return _moments(mean, variance, third, fourth)


def _moments(mean: float, variance: float, third: float, fourth: float) -> ActivationMoments:
    """From the central moments; a variance of 0 stands for a constant."""
    if variance == 0.0:
        return ActivationMoments(mean, 0.0, None, None)
    return ActivationMoments(mean, variance, third / variance**1.5, fourth / variance**2)


def moments_of_rows(rows: npt.NDArray[np.floating]) -> list[ActivationMoments]:
    """Moments of each row ``[n, width]``, in float64: the same bits as of each by itself, in fewer and longer steps."""
    return [found for some in _in_the_cache(rows) for found in _moments_of(some.astype(np.float64))]


def _moments_of(rows: Floats) -> Iterator[ActivationMoments]:
    width = rows.shape[1]
    mean, constant = rows.sum(1) / width, rows.min(1) == rows.max(1)
    deviations = rows - mean[:, None]
    squares = deviations * deviations
    variance = np.where(constant, 0.0, squares.sum(1) / width)
    deviations *= squares
    third = deviations.sum(1) / width
    squares *= squares
    fourth = squares.sum(1) / width
    return map(_moments, mean.tolist(), variance.tolist(), third.tolist(), fourth.tolist())


def _in_the_cache(rows: npt.NDArray[np.floating]) -> Iterator[npt.NDArray[np.floating]]:
    """A few rows at a time: a thread that takes long steps seldom waits for the interpreter, nor others for it."""
    step = max(1, CACHED // max(1, rows.shape[1]))
    return (rows[start : start + step] for start in range(0, len(rows), step))


def histogram(values: npt.NDArray[np.floating], n_bins: int) -> tuple[list[float], list[int]]:
    """Edges and counts of equal bins from the smallest to the largest value, in float64.

    If they are equal, one bin of width 1; of a thousandth of the value where that is too large to show a width of 1.
    """
    if not len(values):
        return [], []
    rising = np.sort(values)  # as they come: float32 is sorted in half the time
    low, high = float(rising[0]), float(rising[-1])
    if low == high:
        return _edges_around(low), [len(values)]
    edges = np.linspace(low, high, n_bins + 1)
    below = np.searchsorted(rising, _not_below(edges[1:-1], rising.dtype))  # numpy's histogram takes longer
    return edges.tolist(), np.diff(below, prepend=0, append=len(values)).tolist()


def histograms(values: Float[Tensor, "n width"], n_bins: int) -> tuple[list[list[float]], list[list[int]]]:
    """The edges and the counts of each row."""
    found = [one for some in _in_the_cache(values.cpu().numpy()) for one in _histograms(np.sort(some, axis=1), n_bins)]
    return [edges for edges, _ in found], [heights for _, heights in found]


def _histograms(rising: npt.NDArray[np.floating], n_bins: int) -> Iterator[tuple[list[float], list[int]]]:
    """Of sorted rows, all edges at once."""
    width = rising.shape[1]
    low, high = rising[:, 0].astype(np.float64), rising[:, -1].astype(np.float64)
    constant = low == high
    # The edges of a constant are other ones. Here they only must not be equal, for which all would be computed otherwise.
    edges = np.linspace(low, np.where(constant, low + np.abs(low) + 1.0, high), n_bins + 1, axis=1)
    inner = _not_below(edges[:, 1:-1], rising.dtype)
    below = np.array([np.searchsorted(row, own) for row, own in zip(rising, inner, strict=True)], dtype=np.int64)
    heights = np.diff(below, axis=1, prepend=0, append=width)
    for is_constant, own_edges, own_heights in zip(constant, edges.tolist(), heights.tolist(), strict=True):
        yield (_edges_around(own_edges[0]), [width]) if is_constant else (own_edges, own_heights)


def _edges_around(value: float) -> list[float]:
    half = 0.5 if abs(value) < LARGEST_FOR_WIDTH_ONE else abs(value) / 2000
    return [value - half, value + half]


def _not_below(edges: Floats, kind: np.dtype[Any]) -> npt.NDArray[np.floating]:
    """The smallest numbers of a kind that are not below the edges: the same ones of that kind lie below either."""
    near = edges.astype(kind)
    return np.where(near < edges, np.nextafter(near, kind.type(np.inf)), near)


def quantile_knots(raw: Floats) -> tuple[list[float], list[int]]:
    """Values and ranks (1: the largest) from which the share of smaller activations is known to 3 % of its tail.

    The top 32 are there exactly and unrounded, then ranks that grow by 6 %, then the smallest.
    """
    if not len(raw):
        return [], []
    ranks = knot_ranks(len(raw))
    values = np.sort(raw)[::-1][np.array(ranks) - 1]
    values[EXACT_KNOTS:] = significant(values[EXACT_KNOTS:], FLOAT32_DIGITS)
    # Rounding must not lift a value above the exact ones before it.
    return np.minimum.accumulate(values).tolist(), list(ranks)


@functools.lru_cache(2**12)  # many features are active as often as another one
def knot_ranks(n_active: int) -> tuple[int, ...]:
    """The ranks that are kept of ``n_active`` activations."""
    ranks = list(range(1, min(EXACT_KNOTS, n_active) + 1))
    while ranks[-1] < n_active:
        ranks.append(min(n_active, max(ranks[-1] + 1, math.floor(ranks[-1] * KNOT_RATIO))))
    return tuple(ranks)


def count_at_least(value: float, knot_values: list[float], ranks: list[int]) -> float:
    """How many activations are ``>= value``: exact where knots lie side by side, else within 3 %."""
    # Rounded alike: many positions may share one activation, and a knot rounded away from it would lose them all.
    wanted = -round_significant(value, FLOAT32_DIGITS)
    at_least = bisect_right(knot_values, wanted, key=lambda knot: -round_significant(knot, FLOAT32_DIGITS))
    if at_least == 0:
        return 0.0
    lowest = ranks[at_least - 1]
    highest = ranks[at_least] - 1 if at_least < len(ranks) else lowest
    return math.sqrt(lowest * highest)


# --- examples ----------------------------------------------------------------------------------------------------


class Example(NamedTuple):
    """A position chosen to be shown bold."""

    row: int
    position: int


class Interval(NamedTuple):
    """An interval ``(lower, upper]`` of activation, the share of counted positions in it, and its examples.

    ``share_of_activation`` is its share of the sum of all activations; it holds ``n_positions`` of them.
    """

    lower: float
    upper: float
    share: float
    examples: list[Example]
    share_of_activation: float
    n_positions: int


IsNew = Callable[[Example], bool]


def splitmix64(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of the SplitMix64 generator (Steele, Lea and Flood 2014): a well-mixed hash of 64 bits."""
    x = x + np.uint64(0x9E3779B97F4A7C15)  # of arrays: they wrap around without a warning
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def priorities(seed: int, feature: int, rows: Ints, positions: Ints) -> npt.NDArray[np.uint64]:
    """The random order of candidates: a hash of seed, feature, row in the whole set of tokens, and position."""
    hashed = splitmix64(rows.astype(np.uint64) ^ _hash_of(seed, feature))
    return splitmix64(hashed ^ positions.astype(np.uint64))


@functools.lru_cache(64)  # several draws for each feature, one after the other
def _hash_of(seed: int, feature: int) -> np.uint64:
    return splitmix64(splitmix64(np.array([seed], dtype=np.uint64)) ^ np.uint64(feature))[0]  # type: ignore[no-any-return]


def top_examples(
    acts: FeatureActivations,
    size: int,
    buffer: tuple[int, int] | None,
    allow_overlap: bool,
    is_new: IsNew | None = None,
) -> list[Example]:
    """The positions with the largest activations; ties go to the lower row, then the lower position."""
    order = _in_order(-acts.values)  # they stand in order of their places
    return _take(order, acts, _most(acts.rows, size, buffer, allow_overlap), buffer, allow_overlap, is_new)


def interval_examples(
    acts: FeatureActivations,
    n_groups: int,
    size: int,
    seed: int,
    buffer: tuple[int, int] | None,
    allow_overlap: bool,
    is_new: IsNew | None = None,
) -> list[Interval]:
    """Intervals of equal width from the maximum down to 0, each with random examples by priority sampling."""
    if not len(acts.values) or n_groups == 0:
        return []
    edges, interval_of = _edges(acts.maximum, n_groups), interval_numbers(acts, n_groups)
    by_interval = np.argsort(interval_of.astype(np.uint16), kind="stable")  # 16-bit integers are sorted by radix
    ends = np.searchsorted(interval_of[by_interval], np.arange(n_groups + 1))
    priority = priorities(seed, acts.feature, acts.rows, acts.positions)
    sums = np.bincount(interval_of, weights=acts.values, minlength=n_groups)
    intervals = []
    for i in reversed(range(n_groups)):
        members = by_interval[ends[i] : ends[i + 1]]
        order = (members[some] for some in _in_order(priority[members]))  # likewise
        most = _most(acts.rows[members], size, buffer, allow_overlap)
        examples = _take(order, acts, most, buffer, allow_overlap, is_new)
        share = len(members) / acts.n_counted
        of_activation = float(sums[i] / sums.sum())
        intervals.append(Interval(float(edges[i]), float(edges[i + 1]), share, examples, of_activation, len(members)))
    return intervals


def _edges(maximum: float, n_groups: int) -> Floats:
    return np.array([*(maximum * i / n_groups for i in range(n_groups)), maximum])  # max * n / n may be another float


def interval_numbers(acts: FeatureActivations, n_groups: int) -> Ints:
    """The interval that each activation lies in, counted from 0 up."""
    edges = _edges(acts.maximum, n_groups)
    return np.clip(np.searchsorted(edges, acts.values, side="left") - 1, 0, n_groups - 1)


def _in_order(keys: npt.NDArray[np.float64 | np.uint64]) -> Iterator[Ints]:
    """The stable order of the keys in two pieces: mostly the first is all that is needed."""
    if len(keys) <= 4 * LOOKED_AT:
        yield np.argsort(keys, kind="stable")
        return
    first = keys <= np.partition(keys, LOOKED_AT - 1)[LOOKED_AT - 1]  # all that are equal are in one piece
    for some in (np.flatnonzero(first), np.flatnonzero(~first)):
        yield some[np.argsort(keys[some], kind="stable")]


def _most(rows: Ints, size: int, buffer: tuple[int, int] | None, allow_overlap: bool) -> int:
    """How many examples candidates in these rows can give: where a row is shown whole, it is shown once."""
    if buffer is not None or allow_overlap:
        return size
    return min(size, 1 + int(np.count_nonzero(np.diff(rows))))


def _take(
    order: Iterator[Ints],
    acts: FeatureActivations,
    size: int,
    buffer: tuple[int, int] | None,
    allow_overlap: bool,
    is_new: IsNew | None = None,
) -> list[Example]:
    """The first candidates whose bold token does not lie in the window of one that was taken before.

    With ``is_new`` also those that it says no to are passed over, ``MOST_PASSED`` at most.
    """
    taken: list[Example] = []
    passed = 0
    in_row: dict[int, list[int]] = {}
    for example in _candidates(order, acts):
        if len(taken) == size:
            break
        before_in_row = in_row.setdefault(example.row, [])
        if not allow_overlap and any(is_shown(position, example.position, buffer) for position in before_in_row):
            continue
        if is_new is not None and not is_new(example):
            passed += 1
            if passed == MOST_PASSED:
                break
            continue
        before_in_row.append(example.position)
        taken.append(example)
    return taken


def _candidates(order: Iterator[Ints], acts: FeatureActivations, piece: int = 256) -> Iterator[Example]:
    """The candidates in order, a piece at a time: most of the time the first few are all that is needed."""
    for numbers in order:
        for start in range(0, len(numbers), piece):
            some = numbers[start : start + piece]
            yield from map(Example, acts.rows[some].tolist(), acts.positions[some].tolist())


def is_shown(bold: int, position: int, buffer: tuple[int, int] | None) -> bool:
    """Whether the window around ``bold`` shows ``position`` of the same row."""
    return buffer is None or bold - buffer[0] <= position <= bold + buffer[1]


# --- neurons -------------------------------------------------------------------------------------------------------


class Aligned(NamedTuple):
    """The entries of a decoder row with the largest values, and each one's share of the L1 norm."""

    indices: list[int]
    values: list[float]
    share_of_l1: list[float]


def aligned_neurons(decoder_rows: Floats, size: int) -> list[Aligned]:
    """The largest signed entries of each row ``[n, width]``; ties go to the lower index. The shares are 0 for a row of zeros."""
    size = min(size, decoder_rows.shape[1])
    if not size:
        return [Aligned([], [], [])] * len(decoder_rows)
    least = np.partition(decoder_rows, -size, axis=1)[:, [-size]]
    row, column = np.nonzero(decoder_rows >= least)
    value = decoder_rows[row, column]
    order = np.lexsort((column, -value, row))
    totals = np.abs(decoder_rows).sum(1).tolist()
    first = np.searchsorted(row, np.arange(len(decoder_rows))).tolist()
    return [
        _aligned(column[best].tolist(), value[best].tolist(), total)
        for best, total in ((order[start : start + size], total) for start, total in zip(first, totals, strict=True))
    ]


def _aligned(indices: list[int], values: list[float], total: float) -> Aligned:
    shares = [round(abs(value) / total, 6) if total else 0.0 for value in values]
    return Aligned(indices, [round_significant(value, 6) for value in values], shares)
