"""Slow and plain answers to everything that follows from activations alone: loops over Python numbers, as docs/numbers.md
defines them. Nothing here is shared with the library."""

from __future__ import annotations

import math
from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

Grid = list[list[float]]  # activations [row][position]
Mask = list[list[bool]]  # whether a position is counted


class Place(NamedTuple):
    row: int
    position: int


# --- rounding ----------------------------------------------------------------------------------------------------


def exponent_of_step(maximum: float) -> int:
    """The step is a power of ten and gives the rounded maximum four significant digits."""
    return Decimal(f"{maximum:.3e}").adjusted() - 3


def rounded(value: float, maximum: float) -> float:
    """The activation as a whole number of steps, at least one."""
    unit = Decimal(1).scaleb(exponent_of_step(maximum))
    steps = (Decimal(value) / unit).quantize(Decimal(1), ROUND_HALF_EVEN)
    return float(max(steps, Decimal(1)) * unit)


def active(acts: Grid, counted: Mask | None = None) -> dict[Place, float]:
    """The activations above zero of counted positions, rounded."""
    raw = {
        Place(row, position): value
        for row, values in enumerate(acts)
        for position, value in enumerate(values)
        if value > 0 and (counted is None or counted[row][position])
    }
    maximum = max(raw.values(), default=0.0)
    return {place: rounded(value, maximum) for place, value in raw.items()}


# --- moments, histogram, quantiles -------------------------------------------------------------------------------


class PlainMoments(NamedTuple):
    mean: float
    variance: float
    skewness: float | None
    kurtosis: float | None


def moments(values: list[float]) -> PlainMoments:
    """Of every counted position, zeros written out; in exact fractions until the last step."""
    n = len(values)
    exact = [Fraction(value) for value in values]
    mean = sum(exact) / n
    second, third, fourth = (sum((x - mean) ** power for x in exact) / n for power in (2, 3, 4))
    if second == 0:
        return PlainMoments(float(mean), 0.0, None, None)
    # Scaled first, so that tiny and huge activations do not leave the range of a float.
    scale = max(abs(x - mean) for x in exact)
    spread = math.sqrt(float(second / scale**2))
    return PlainMoments(
        float(mean), float(second), float(third / scale**3) / spread**3, float(fourth / scale**4) / spread**4
    )


def bar_of(value: float, edges: list[float]) -> int:
    """The bar that holds the value: its lower edge belongs to it, and the last bar has both."""
    for i in range(len(edges) - 2):
        if value < edges[i + 1]:
            return i
    return len(edges) - 2


def histogram(values: list[float], n_bins: int) -> tuple[list[float], list[int]]:
    low, high = min(values), max(values)
    if low == high:
        return [low - 0.5, low + 0.5], [len(values)]
    edges = [low + (high - low) * i / n_bins for i in range(n_bins)] + [high]
    heights = [0] * n_bins
    for value in values:
        heights[bar_of(value, edges)] += 1
    return edges, heights


def count_at_least(value: float, values: list[float]) -> int:
    return sum(1 for other in values if other >= value)


# --- examples ----------------------------------------------------------------------------------------------------

_MASK = (1 << 64) - 1


def splitmix64(state: int) -> int:
    """The next output of Steele, Lea and Flood's generator from this state."""
    z = (state + 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def priority(seed: int, feature: int, place: Place) -> int:
    """One hash after the other of seed, feature, row and position, each mixed into the last."""
    hashed = splitmix64(seed)
    for part in (feature, place.row, place.position):
        hashed = splitmix64(hashed ^ part)
    return hashed


def window(place: Place, buffer: tuple[int, int] | None, seq_len: int) -> range:
    if buffer is None:
        return range(seq_len)
    return range(max(0, place.position - buffer[0]), min(seq_len, place.position + buffer[1] + 1))


def without_overlap(
    candidates: list[Place], size: int, buffer: tuple[int, int] | None, seq_len: int, allow_overlap: bool
) -> list[Place]:
    """The first candidates whose bold token lies in no window that was taken before."""
    taken: list[Place] = []
    for place in candidates:
        seen = any(other.row == place.row and place.position in window(other, buffer, seq_len) for other in taken)
        if len(taken) < size and (allow_overlap or not seen):
            taken.append(place)
    return taken


def top_group(
    acts: dict[Place, float], size: int, buffer: tuple[int, int] | None, seq_len: int, allow_overlap: bool = False
) -> list[Place]:
    order = sorted(acts, key=lambda place: (-acts[place], place.row, place.position))
    return without_overlap(order, size, buffer, seq_len, allow_overlap)


class PlainInterval(NamedTuple):
    lower: float
    upper: float
    members: list[Place]
    examples: list[Place]


def interval_groups(
    acts: dict[Place, float],
    n_groups: int,
    size: int,
    seed: int,
    feature: int,
    buffer: tuple[int, int] | None,
    seq_len: int,
    allow_overlap: bool = False,
) -> list[PlainInterval]:
    """From the top down: ``(max * i / n, max * (i + 1) / n]``, the maximum inside."""
    if not acts:
        return []
    maximum = max(acts.values())
    groups = []
    for i in reversed(range(n_groups)):
        lower = maximum * i / n_groups
        upper = maximum if i == n_groups - 1 else maximum * (i + 1) / n_groups
        members = [place for place, value in acts.items() if lower < value <= upper]
        order = sorted(members, key=lambda place: priority(seed, feature, place))
        groups.append(
            PlainInterval(lower, upper, members, without_overlap(order, size, buffer, seq_len, allow_overlap))
        )
    return groups


# --- correlations ------------------------------------------------------------------------------------------------


def pearson(x: list[float], y: list[float]) -> float | None:
    """None where one of them is constant."""
    if min(x) == max(x) or min(y) == max(y):
        return None
    mean_x, mean_y = math.fsum(x) / len(x), math.fsum(y) / len(y)
    dx, dy = [v - mean_x for v in x], [v - mean_y for v in y]
    product = math.fsum(a * b for a, b in zip(dx, dy, strict=True))
    return product / math.sqrt(math.fsum(a * a for a in dx) * math.fsum(b * b for b in dy))


def cosine(x: list[float], y: list[float]) -> float:
    product = math.fsum(a * b for a, b in zip(x, y, strict=True))
    return product / math.sqrt(math.fsum(a * a for a in x) * math.fsum(b * b for b in y))


def most_correlated(
    x: list[float], others: dict[int, list[float]], size: int, itself: int | None = None
) -> list[tuple[int, float, float]]:
    """``(index, pearson, cosine)``, the largest first, equal ones (to six decimals) by index."""
    found = []
    for index, y in others.items():
        r = None if index == itself else pearson(x, y)
        if r is not None:
            found.append((index, round(r, 6), cosine(x, y)))
    return sorted(found, key=lambda entry: (-entry[1], entry[0]))[:size]


# --- tokens, positions, counterexamples ----------------------------------------------------------------------------

Tokens = list[list[int]]  # token ids [row][position]


class PlainToken(NamedTuple):
    token: int
    n_active: int
    n_occurrences: int
    mean: Fraction
    share: Fraction


def counted_places(tokens: Tokens, counted: Mask) -> list[Place]:
    """Every counted position in the order of token id, row and position."""
    places = [
        (token, row, position)
        for row, ids in enumerate(tokens)
        for position, token in enumerate(ids)
        if counted[row][position]
    ]
    return [Place(row, position) for _, row, position in sorted(places)]


def tokens_fired_on(acts: dict[Place, float], tokens: Tokens, counted: Mask) -> list[PlainToken]:
    """All of them, the largest share first, ties to the lower id; in exact fractions of the decimals that are shown."""
    by_token: dict[int, list[Fraction]] = {}
    for place, value in acts.items():
        by_token.setdefault(tokens[place.row][place.position], []).append(Fraction(repr(value)))
    total = sum((sum(values) for values in by_token.values()), Fraction(0))
    occurring = [tokens[place.row][place.position] for place in counted_places(tokens, counted)]
    found = [
        PlainToken(token, len(values), occurring.count(token), sum(values) / len(values), sum(values) / total)
        for token, values in by_token.items()
    ]
    return sorted(found, key=lambda one: (-one.share, one.token))


def drawn_near_misses(
    acts: dict[Place, float], tokens: Tokens, counted: Mask, size: int, seed: int, feature: int
) -> tuple[list[Place], int]:
    """The first 64 draws for each that is wanted, and how many positions there are to draw from.

    A draw takes one of the top five tokens that has such positions, with the probability of its share, then one of them.
    """
    unit = Fraction(10) ** exponent_of_step(max(acts.values(), default=1.0))
    steps: dict[int, int] = {}
    for place, value in acts.items():
        token = tokens[place.row][place.position]
        steps[token] = steps.get(token, 0) + int(Fraction(repr(value)) / unit)
    silent: dict[int, list[Place]] = {}
    for one in tokens_fired_on(acts, tokens, counted)[:5]:
        silent[one.token] = [
            place
            for place in counted_places(tokens, counted)
            if tokens[place.row][place.position] == one.token and place not in acts
        ]
    pool = [token for token in sorted(silent) if silent[token]]
    weight = sum(steps[token] for token in pool)
    order = []
    for i in range(64 * size if pool else 0):
        left = priority(seed, feature, Place(2**63, i)) % weight
        for token in pool:
            if left < steps[token]:
                break
            left -= steps[token]
        order.append(silent[token][priority(seed, feature, Place(2**63 + 1, i)) % len(silent[token])])
    return list(dict.fromkeys(order)), sum(map(len, silent.values()))


def drawn_negatives(
    acts: dict[Place, float], tokens: Tokens, counted: Mask, size: int, seed: int, feature: int
) -> list[Place]:
    """The first 64 draws for each that is wanted, of all counted positions that the feature does not fire on."""
    silent = [place for place in counted_places(tokens, counted) if place not in acts]
    draws = range(64 * size if silent and acts else 0)
    return list(dict.fromkeys(silent[priority(seed, feature, Place(2**63 + 2, i)) % len(silent)] for i in draws))


def active_by_bin(acts: dict[Place, float], edges: list[int]) -> list[int]:
    return [sum(low <= place.position < high for place in acts) for low, high in pairwise(edges)]
