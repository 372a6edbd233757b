"""The directions of the dictionary that lie nearest to a feature's own, by cosine, over every pair and exactly.

Every pair is looked at in float32, in tiles. What could be among the largest then, rounding considered, is computed again
in float64, so the result does not depend on the tiles.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_vis._products import product
from sae_vis._statistics import Floats, Ints
from sae_vis.model_fns import product_error

COSINE_DECIMALS = 6
MOST_ROWS = 2**12  # of a tile: larger ones are no faster
TILE_BYTES = 2**24  # of float32 products that are looked at together
SHARE_OF_DIRECTIONS = 8  # of the memory budget
COPIES = 6  # of a float32 direction, while it is worked with
PIECE = 2**20  # numbers of pairs that are multiplied together in float64: more would be new memory each time
SPARE = 13  # candidates beyond the size that are taken without a look at the whole row: rounding seldom adds more
MANY = 64  # candidates for each row of a table: beyond, as where all directions are orthogonal, whole rows are cheaper
USUAL = 1e12  # lengths between this and its inverse have squares that float32 can add up

Rows = Callable[[Int[Tensor, " k"]], Float[Tensor, "k d"]]


class Nearest(NamedTuple):
    """The features whose directions are nearest to one's own, nearest first."""

    indices: list[int]
    cosine: list[float]


class _Pairs(NamedTuple):
    """Pairs of a feature (its index among those asked for) and another one (its id), with the cosine."""

    feature: Ints
    other: Ints
    cosine: Floats


class _Directions(NamedTuple):
    """Some directions: ids, rows, and for the first look the rows at some size that float32 can multiply, with their lengths.

    The rows themselves, but for those that are far too long or short. A length of 0 stands for a row that has no direction:
    one of zeros, or one that a broken encoder made infinite. ``norms`` are the lengths of the rows themselves, in float64.
    """

    ids: Int[Tensor, " k"]
    rows: Float[Tensor, "k d"]
    scaled: Float[Tensor, "k d"]
    lengths: Float[Tensor, " k"]
    norms: Float[Tensor, " k"]

    @classmethod
    def of(cls, ids: Int[Tensor, " k"], rows: Float[Tensor, "k d"]) -> _Directions:
        rows = _where_float64_is(rows)
        scaled, norms = rows, decoder_norms(rows)
        lengths = norms.float()
        odd = ~((lengths > 1 / USUAL) & (lengths < USUAL))
        if bool(odd.any()):
            usable = torch.isfinite(norms[odd]) & (norms[odd] > 0)
            scaled = rows.clone()
            scaled[odd] = (rows[odd].double() / norms[odd].where(usable, 1.0)[:, None]).float()
            lengths[odd] = usable.float()
        return cls(ids, rows, scaled, lengths, norms)

    @property
    def usable(self) -> Tensor:
        """Which have a direction."""
        return self.lengths > 0

    def part(self, start: int, stop: int) -> _Directions:
        return _Directions(*(values[start:stop] for values in self))


def decoder_norms(rows: Float[Tensor, "k d"]) -> Float[Tensor, " k"]:
    """The length of each decoder row, in float64."""
    rows = _where_float64_is(rows)
    pieces = torch.split(rows, max(1, PIECE // max(1, rows.shape[1])))
    return torch.cat([part.cpu().double().norm(dim=1) for part in pieces]).to(rows.device)


def _where_float64_is(rows: Tensor) -> Tensor:
    """The rows on their device, or on the CPU: MPS has no float64."""
    return rows.cpu() if rows.device.type == "mps" else rows


def nearest_directions(
    rows_of: Rows,
    features: Int[Tensor, " n"],
    own_rows: Float[Tensor, "n d"],
    d_hidden: int,
    size: int,
    memory_bytes: int = 2**32,
) -> list[Nearest]:
    """For each feature, the ``size`` features of the whole dictionary whose directions have the largest cosine with its own.

    The feature itself and rows of zeros are left out; ties (to six decimals) go to the lower index. ``rows_of`` gives the
    directions of some features, ``own_rows`` are those of ``features``.
    """
    x = _Directions.of(features, own_rows)
    tile = max(64, memory_bytes // SHARE_OF_DIRECTIONS // (4 * COPIES * max(1, own_rows.shape[1])))
    tile = min(tile, MOST_ROWS)
    found: list[_Pairs] = []
    room = x.scaled.new_empty(0)  # new memory for every tile would cost half as much as its product
    for ids in torch.split(torch.arange(d_hidden), tile):
        y = x if torch.equal(ids, features) else _Directions.of(ids, rows_of(ids))
        step = max(32, TILE_BYTES // (4 * len(ids)))
        for start in range(0, len(features), step):
            some = x.part(start, start + step)
            if len(room) < len(some.ids) * len(ids):
                room = room.new_empty(len(some.ids) * len(ids))
            pairs = _best(some, y, size, room[: len(some.ids) * len(ids)].view(len(some.ids), len(ids)))
            found.append(pairs._replace(feature=pairs.feature + start))
    return _ranked(_joined(found), len(features), size)


def _joined(parts: list[_Pairs]) -> _Pairs:
    return _Pairs(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def _best(x: _Directions, y: _Directions, size: int, room: Float[Tensor, "n_x n_y"]) -> _Pairs:
    """Among these are the ``size`` largest cosines of each x with some y; ``y.ids`` follow each other.

    ``room`` is memory for the products.
    """
    products = product(x.scaled / x.lengths[:, None], y.scaled.T, room)
    products = _without_itself(products.div_(y.lengths), x, y)
    found = products.topk(min(size + SPARE, len(y.ids)), 1)
    least = found.values[:, :size][:, -1:] - _margin(products, x.rows.shape[1])
    inside = (found.values >= least) & torch.isfinite(found.values)
    more = inside[:, -1] & (found.values.shape[1] < len(y.ids))  # there may be others, which have to be looked for
    feature, place = (inside & ~more[:, None]).nonzero().unbind(1)
    other = found.indices[feature, place]
    parts = [_Pairs(feature.cpu().numpy(), y.ids[other.cpu()].numpy(), _cosines(x, y, feature, other))]
    if bool(more.any()):
        parts += _among_all(x, y, products, least, more.nonzero()[:, 0], size)
    return _joined(parts)


def _among_all(
    x: _Directions, y: _Directions, products: Tensor, least: Tensor, rows: Int[Tensor, " k"], size: int
) -> list[_Pairs]:
    """The candidates of some x, each of their products looked at."""
    products = products[rows]
    candidates = (products >= least[rows]) & torch.isfinite(products)
    many = candidates.sum(1) > MANY * size
    feature, other = (candidates & ~many[:, None]).nonzero().unbind(1)
    feature = rows[feature]
    parts = [_Pairs(feature.cpu().numpy(), y.ids[other.cpu()].numpy(), _cosines(x, y, feature, other))]
    return parts + [_whole_rows(x, y, some, size) for some in torch.split(rows[many], 32) if len(some)]


def _without_itself(products: Tensor, x: _Directions, y: _Directions) -> Tensor:
    """Minus infinity where there is no direction, and for a feature with itself."""
    products[:, ~y.usable] = -torch.inf
    products[~x.usable] = -torch.inf
    at = x.ids - y.ids[0]
    there = ((at >= 0) & (at < len(y.ids))).nonzero()[:, 0]
    products[there.to(products.device), at[there].to(products.device)] = -torch.inf
    return products


def _margin(products: Tensor, width: int) -> float:
    """Twice what a float32 product and the lengths may be off, and the step that cosines are rounded to."""
    return 2 * product_error(width, products.device) + 2 * 10.0**-COSINE_DECIMALS


def _cosines(x: _Directions, y: _Directions, feature: Tensor, other: Tensor) -> Floats:
    """Of some pairs, in float64."""
    step = max(1, PIECE // max(1, x.rows.shape[1]))
    found = [
        (x.rows[a].double() * y.rows[b].double()).sum(1) / x.norms[a] / y.norms[b]
        for a, b in zip(torch.split(feature, step), torch.split(other, step), strict=True)
    ]
    return _stored(torch.cat(found))


def _stored(cosines: Tensor) -> Floats:
    rounded: Floats = np.round(cosines.clamp(-1.0, 1.0).cpu().numpy(), COSINE_DECIMALS) + 0.0  # no -0.0
    return rounded


def _whole_rows(x: _Directions, y: _Directions, rows: Tensor, size: int) -> _Pairs:
    """The largest cosines of a few x, all of them computed in float64."""
    few = _Directions(x.ids[rows.cpu()], *(values[rows] for values in x[1:]))
    parts = [
        few.rows.double() @ part.double().T for part in torch.split(y.rows, max(1, PIECE // max(1, x.rows.shape[1])))
    ]
    exact = _without_itself(torch.cat(parts, 1) / few.norms[:, None] / y.norms, few, y)
    found = []
    for row, cosines in zip(rows.tolist(), exact, strict=True):
        values = _stored(cosines)
        values[~torch.isfinite(cosines).cpu().numpy()] = -np.inf
        best = np.argsort(-values, kind="stable")[:size]
        best = best[values[best] > -np.inf]
        found.append(_Pairs(np.full(len(best), row), y.ids.numpy()[best], values[best]))
    return _joined(found)


def _ranked(pairs: _Pairs, n: int, size: int) -> list[Nearest]:
    """The first of each feature, by cosine and then by id."""
    order = np.lexsort((pairs.other, -pairs.cosine, pairs.feature))
    ends = np.searchsorted(pairs.feature[order], np.arange(n + 1))
    result = []
    for start, stop in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        best = order[start : min(stop, start + size)]
        result.append(Nearest(pairs.other[best].tolist(), pairs.cosine[best].tolist()))
    return result
