"""Examples that are nearly the same text: found by their token ids, aligned at the bold token.

Of two examples with the same bold token, every place around it that either of them shows is looked at (the bold one among
them); they are near-duplicates if both show the same token at 80 % of these places or more.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sae_vis._statistics import Example, Ints

SHARE_EQUAL = 0.8
NOTHING = -1  # stands where an example shows no token
PIECE = 2**20  # tokens that are compared at a time

Tokens = npt.NDArray[np.integer]


def near_duplicates(
    groups: Sequence[Sequence[Example]], tokens: Tokens, buffer: tuple[int, int] | None
) -> list[list[int]]:
    """For each group, which of its examples nearly repeat an earlier one of any group.

    An example is compared only with those that are no near-duplicates themselves, so that what is left when all of these
    are hidden has none in it. ``tokens [rows, seq]`` are all there are.
    """
    examples = [example for group in groups for example in group]
    if len(examples) < 2:
        return [[] for _ in groups]
    aligned = _aligned(examples, tokens, buffer)
    bold = aligned[:, buffer[0] if buffer else tokens.shape[1] - 1]
    later, earlier = np.nonzero(np.tri(len(bold), k=-1, dtype=np.bool_) & (bold[:, None] == bold))
    near = _near(aligned, later, earlier)
    before = defaultdict[int, list[int]](list)
    for one, other in zip(later[near].tolist(), earlier[near].tolist(), strict=True):
        before[one].append(other)
    repeats: set[int] = set()
    for one in sorted(before):
        if not repeats.issuperset(before[one]):
            repeats.add(one)
    found, start = [], 0
    for group in groups:
        found.append([at for at in range(len(group)) if start + at in repeats])
        start += len(group)
    return found


def _aligned(examples: Sequence[Example], tokens: Tokens, buffer: tuple[int, int] | None) -> Ints:
    """What each example shows, the bold tokens below each other: ``[n, width]``."""
    seq_len = tokens.shape[1]
    before, after = buffer or (seq_len - 1, seq_len - 1)
    rows, bold = np.fromiter(itertools.chain.from_iterable(examples), np.int64).reshape(-1, 2).T
    places = bold[:, None] + np.arange(-before, after + 1)
    inside = (places >= 0) & (places < seq_len)
    return np.where(inside, tokens[rows[:, None], places.clip(0, seq_len - 1)], NOTHING)


def _near(aligned: Ints, one: Ints, other: Ints) -> npt.NDArray[np.bool_]:
    """Which pairs of lines are near-duplicates."""
    found = []
    step = max(1, PIECE // aligned.shape[1])
    for start in range(0, len(one), step):
        a, b = aligned[one[start : start + step]], aligned[other[start : start + step]]
        equal = np.count_nonzero((a == b) & (a != NOTHING), axis=1)
        either = np.count_nonzero((a != NOTHING) | (b != NOTHING), axis=1)
        found.append(equal >= SHARE_EQUAL * either)
    return np.concatenate(found) if found else np.zeros(0, dtype=np.bool_)


class Distinct:
    """Says of each candidate whether it is new; near-duplicates of what was taken before, in any group, are not."""

    def __init__(self, tokens: Tokens, buffer: tuple[int, int] | None) -> None:
        self._tokens, self._buffer = tokens, buffer
        self._taken: dict[int, list[Ints]] = {}

    def take(self, example: Example) -> bool:
        """Whether the candidate is new; it is remembered then."""
        lines = self._taken.setdefault(int(self._tokens[example]), [])
        own = _aligned([example], self._tokens, self._buffer)
        others = np.arange(1, len(lines) + 1)
        if _near(np.concatenate([own, *lines]), np.zeros_like(others), others).any():
            return False
        lines.append(own)
        return True
