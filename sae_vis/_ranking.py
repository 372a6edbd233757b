"""The largest values of many rows, exactly and with ties to the lower index, much faster than sorting or ``topk`` alone.

A row is cut into blocks, and only the blocks with the largest maxima are looked at: if ``n`` blocks come before another
one (by maximum, then by index), then ``n`` values come before all of its values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 64
ID_BITS = 24  # of a key: more tokens than any vocabulary has


class Ranked(NamedTuple):
    """Of each row the keys of its best entries, in no order. Keys of parts of a row can be joined and ranked again."""

    keys: Int[Tensor, "k n"]

    def joined(self, other: Ranked, n: int) -> Ranked:
        """The best ``n`` of both."""
        both = torch.cat([self.keys, other.keys], 1)
        return Ranked(both if both.shape[1] <= n else both.topk(n, sorted=False).values)

    def sorted(self) -> tuple[Int[Tensor, "k n"], Float[Tensor, "k n"]]:
        """Indices and values, the largest value first."""
        keys = self.keys.sort(descending=True).values
        return _indices(keys), _values(keys)

    def values(self) -> Float[Tensor, "k n"]:
        """The values, as they stand."""
        return _values(self.keys)


def largest(values: Float[Tensor, "k width"], n: int, first: int = 0, *, negated: bool = False) -> Ranked:
    """The ``n`` largest values of each row; its first column has the index ``first``.

    ``values`` are float32 without NaN; minus infinity stands for no value. The width must be a multiple of ``BLOCK``.
    ``negated`` ranks the values with their signs turned, without turning all of them; infinity stands for no value then.
    """
    n_blocks = values.shape[1] // BLOCK
    blocks = values.reshape(len(values), n_blocks, BLOCK)
    numbers = torch.arange(n_blocks, device=values.device)
    best = _keys(-blocks.amin(-1) if negated else blocks.amax(-1), numbers)
    chosen = _indices(best.topk(n, sorted=False).values) if n < n_blocks else numbers.expand(len(values), -1)
    candidates = blocks.gather(1, chosen[:, :, None].expand(-1, -1, BLOCK)).flatten(1)
    candidates = -candidates if negated else candidates
    within = torch.arange(BLOCK, device=values.device)
    keys = _keys(candidates, (first + chosen[:, :, None] * BLOCK + within).flatten(1))
    return Ranked(keys.topk(min(n, keys.shape[1]), sorted=False).values)


def largest_of_any_width(values: Float[Tensor, "k width"], n: int, *, negated: bool = False) -> Ranked:
    """As ``largest``, of rows of whatever width."""
    whole = values.shape[1] // BLOCK * BLOCK
    rest = values[:, whole:]  # ranked by itself: to fill up its block would be to copy all values
    others = keyed(-rest if negated else rest, torch.arange(whole, values.shape[1], device=values.device))
    return largest(values[:, :whole], n, negated=negated).joined(others, n)


def keyed(values: Float[Tensor, "*k width"], indices: Int[Tensor, "*k width"]) -> Ranked:
    """Float32 values by their indices."""
    return Ranked(_keys(values, indices))


def _keys(values: Tensor, indices: Tensor) -> Tensor:
    """Integers that are ordered as the values are, equal ones by falling index."""
    bits = (values + 0.0).view(torch.int32)  # adding zero turns -0.0 into 0.0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.long() << ID_BITS) | ((1 << ID_BITS) - 1 - indices)


def _indices(keys: Tensor) -> Tensor:
    return (1 << ID_BITS) - 1 - (keys & ((1 << ID_BITS) - 1))


def _values(keys: Tensor) -> Tensor:
    ordered = (keys >> ID_BITS).to(torch.int32)
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32)


def stable_order(keys: Int[Tensor, " k"], below: int) -> Int[Tensor, " k"]:
    """The order that sorts keys from 0 to ``below``, equal ones as they stand."""
    if keys.device.type != "cpu" or below > 2**32:
        return torch.argsort(keys, stable=True)
    numbers = keys.numpy()
    order = np.argsort(
        numbers.astype(np.uint16), kind="stable"
    )  # numpy sorts 16-bit integers by radix, many times faster
    if below > 2**16:
        order = order[np.argsort((numbers >> 16).astype(np.uint16)[order], kind="stable")]
    return torch.from_numpy(order)


def sort_into(
    targets: Sequence[npt.NDArray[Any]],
    keys: Int[Tensor, " k"],
    arrays: Sequence[npt.NDArray[Any]],
    next_place: npt.NDArray[np.int64],
) -> None:
    """Put the entries of each array into its target, sorted by their keys, equal ones as they stand.

    ``next_place`` says where the next entry of each key belongs, and is moved on: what is given piece by piece is sorted as a
    whole, in memory that the caches hold.
    """
    order = stable_order(keys, len(next_place)).numpy()
    counts = np.bincount(keys.numpy(), minlength=len(next_place))
    place = np.arange(len(keys)) + np.repeat(next_place - (counts.cumsum() - counts), counts)
    for target, values in zip(targets, arrays, strict=True):
        target[place] = values[order]
    next_place += counts
