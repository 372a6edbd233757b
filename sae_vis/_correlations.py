"""Correlations of features with whatever else was recorded at the same positions, exactly and in float64.

Features are sparse, so only the positions where they are active are multiplied: a sparse product with the other features,
a sparse-dense one with neurons. What has a mean is shifted before it is squared, so that nothing cancels.
"""

from __future__ import annotations

import copy
import mmap
import warnings
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_vis._ranking import sort_into, stable_order
from sae_vis._spilled import mapped, release
from sae_vis._statistics import Ints

CORRELATION_DECIMALS = 6
LEAST_BYTES = 2**12  # that products take, however small the budget: less would be a call for every number
SHARE_OF_PRODUCTS, SHARE_LAID_OUT = 8, 4  # of the memory budget
TILE_BYTES = 2**23  # of products at a time, at most: what comes and goes is reused then, and else new memory each time
BYTES_PER_PRODUCT = 8 + 8 + 8 + 8  # the product, sparse and dense, and what is made of it
BYTES_PER_COUNT = 8 + 8 + 8  # how often both are active, and what is made of it
FLOAT32_WHOLE = 2**24  # below, float32 counts exactly
BYTES_LAID_OUT = 4 + 8 + 4  # of a non-zero by position: its column, its value, and a one
DENSE_PIECE = 2**16  # numbers of neurons that are added up together: they stay in the cache
PIECE = 2**20  # non-zeros that are looked at together
SORTED = 2**18  # non-zeros that are sorted together: they stay in the cache


class Moments(NamedTuple):
    """Of each column: mean, sum of squares around it, minimum and maximum, in float64."""

    mean: Float[Tensor, " n"]
    squares: Float[Tensor, " n"]
    low: Float[Tensor, " n"]
    high: Float[Tensor, " n"]

    @property
    def varies(self) -> Tensor:
        """Which columns are not constant."""
        return (self.high > self.low) & (self.squares > 0)


@dataclass(frozen=True)
class SparseColumns:
    """The non-zeros of a matrix of ``n_rows`` rows, column by column; none of them negative.

    The rows may stand among others that do not count: they are numbered from 0 to ``n_places``.
    """

    offsets: Int[Tensor, " n_plus_1"]
    rows: Int[Tensor, " nnz"]
    values: Float[Tensor, " nnz"]
    n_rows: int
    n_places: int

    @classmethod
    def of(cls, dense: Float[Tensor, "rows n"]) -> SparseColumns:
        """The non-zeros of a dense matrix."""
        row, column = dense.nonzero().unbind(1)
        return cls.sorted_from(row, column, dense[row, column], dense.shape[1], len(dense))

    @classmethod
    def sorted_from(
        cls, rows: Int[Tensor, " nnz"], columns: Int[Tensor, " nnz"], values: Float[Tensor, " nnz"], n: int, n_rows: int
    ) -> SparseColumns:
        """The matrix of non-zeros that are given row by row, with ``n`` columns."""
        by_column = stable_order(columns, n)  # much cheaper than reading the dense matrix column by column
        counts = torch.bincount(columns, minlength=n)
        return cls(_offsets(counts), rows[by_column], values[by_column], n_rows, n_rows)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def columns(self) -> Int[Tensor, " nnz"]:
        """The column of each non-zero."""
        return torch.repeat_interleave(self.offsets.diff())

    def select(self, chosen: Int[Tensor, " k"]) -> SparseColumns:
        """Some of the columns, in rising order."""
        is_chosen = torch.zeros(len(self), dtype=torch.bool, device=self.offsets.device)
        is_chosen[chosen] = True
        kept = is_chosen[self.columns()]
        counts = self.offsets.diff()[is_chosen]
        return SparseColumns(_offsets(counts), self.rows[kept], self.values[kept], self.n_rows, self.n_places)

    def piece(self, start: int, stop: int) -> SparseColumns:
        """The columns ``start .. stop``."""
        low, high = int(self.offsets[start]), int(self.offsets[stop])
        offsets = self.offsets[start : stop + 1] - low
        return SparseColumns(offsets, self.rows[low:high], self.values[low:high], self.n_rows, self.n_places)

    def moments(self) -> Moments:
        """Of the whole columns, zeros included. Sums of squares are around the mean, so nothing cancels."""
        step = max(1, PIECE * len(self) // max(1, len(self.rows)))  # without arrays as long as all the non-zeros
        parts = [_moments(self.piece(i, min(i + step, len(self)))) for i in range(0, max(1, len(self)), step)]
        return Moments(*(torch.cat(values) for values in zip(*parts, strict=True)))


def _moments(columns: SparseColumns) -> Moments:
    values, column, counts = columns.values.double(), columns.columns(), columns.offsets.diff()
    zeros = values.new_zeros(len(columns))
    mean = zeros.index_add(0, column, values) / columns.n_rows
    squares = zeros.index_add(0, column, (values - mean[column]).square())
    squares += (columns.n_rows - counts) * mean.square()
    full = counts == columns.n_rows
    low = torch.full_like(zeros, torch.inf).scatter_reduce(0, column, values, "amin").where(full, zeros)
    return Moments(mean, squares, low, zeros.scatter_reduce(0, column, values, "amax"))


def _offsets(counts: Int[Tensor, " n"]) -> Int[Tensor, " n_plus_1"]:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


@contextmanager
def _sparse_warnings_off() -> Iterator[None]:
    with warnings.catch_warnings():  # torch calls its sparse tensors beta, and the check that is off here costly
        warnings.filterwarnings("ignore", message="Sparse (CSR|invariant)")
        yield


def _csr(offsets: Tensor, columns: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    # MKL reads 32-bit indices, and torch converts others to them for every product, which takes as long as the product.
    fits = values.device.type == "cpu" and max(len(values), *size) < 2**31
    kind = torch.int32 if fits else torch.int64
    with _sparse_warnings_off():
        return torch.sparse_csr_tensor(offsets.to(kind), columns.to(kind), values, size, check_invariants=False)


# --- co-moments --------------------------------------------------------------------------------------------------


@dataclass
class CoMoments:
    """Moments of columns x (features) and y (anything) over ``n`` positions, and their products, in float64.

    ``products[i, j]`` is the sum over positions of ``(x_i - mean x_i) * (y_j - mean y_j)``.
    """

    n: int
    x: Moments
    y: Moments
    products: Float[Tensor, "n_x n_y"]
    both: Float[Tensor, "n_x n_y"] | None = None  # at how many positions both are not zero, if that was counted

    def merged(self, other: CoMoments) -> CoMoments:
        """With the positions of another one, by the pairwise update of Chan, Golub and LeVeque (1979)."""
        total = self.n + other.n
        if total == 0:
            return self
        weight, share = self.n * other.n / total, other.n / total
        shift_x, shift_y = other.x.mean - self.x.mean, other.y.mean - self.y.mean
        products = self.products + other.products + weight * torch.outer(shift_x, shift_y)
        return CoMoments(
            total,
            _merged(self.x, other.x, shift_x, weight, share),
            _merged(self.y, other.y, shift_y, weight, share),
            products,
            None if self.both is None or other.both is None else self.both.double() + other.both.double(),
        )


def _merged(a: Moments, b: Moments, shift: Tensor, weight: float, share: float) -> Moments:
    return Moments(
        a.mean + shift * share,
        a.squares + b.squares + weight * shift.square(),
        torch.minimum(a.low, b.low),
        torch.maximum(a.high, b.high),
    )


def co_moments(x: SparseColumns, y: SparseColumns | Float[Tensor, "rows n_y"]) -> CoMoments:
    """Of all columns at once."""
    if isinstance(y, SparseColumns):
        (whole,) = co_moments_by_tile(x, y, tile=max(1, len(x)))
        return whole
    with_dense = WithDense(len(x), y.shape[1], y.device)
    with_dense.add(x, y)
    return with_dense.co_moments(x.moments())


def co_moments_by_tile(
    x: SparseColumns,
    y: SparseColumns,
    memory_bytes: int = 2**32,
    tile: int | None = None,
    *,
    counting: bool = False,
) -> Iterator[CoMoments]:
    """Of some of the columns x after the others (``tile`` of them, or as many as memory holds), with all columns y.

    Both columns stand at the same positions. The products are of sparse matrices: zeros of either are skipped. With
    ``counting``, the same matrices with ones in them also say how often both are not zero.
    """
    moments_y = y.moments()
    shift_y = moments_y.low  # zero but for columns that are active everywhere, whose mean would drown the rest
    bytes_each = BYTES_PER_PRODUCT + counting * BYTES_PER_COUNT
    at_a_time = min(max(LEAST_BYTES, memory_bytes // SHARE_OF_PRODUCTS) // bytes_each, TILE_BYTES // 8)
    tile = tile or max(1, at_a_time // max(1, len(y)))
    exact = torch.float32 if y.n_places < FLOAT32_WHOLE else torch.float64  # for counts
    laid_out = _LaidOut.of(y, shift_y, memory_bytes // SHARE_LAID_OUT, exact if counting else None)
    chunked_x = _Chunked.of(x, len(laid_out.chunks))
    for start in range(0, max(1, len(x)), tile):
        stop = min(start + tile, len(x))
        some = x.piece(start, stop)
        moments = some.moments()
        products = some.values.new_zeros(len(some), len(y), dtype=torch.float64)
        both = products.new_zeros(products.shape, dtype=exact) if counting else None
        for chunk, (matrix, ones) in enumerate(laid_out.in_turn()):
            columns = chunked_x.by_column(chunk, start, stop, moments.low)
            _add_product(products, columns, matrix)
            if both is not None and ones is not None:
                _add_product(both, _ones(columns, exact), ones)
        products.addr_(moments.mean - moments.low, moments_y.mean - shift_y, alpha=-float(y.n_rows))
        yield CoMoments(y.n_rows, moments, moments_y, products, both)


def _ones(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """A sparse matrix with ones where this one has an entry."""
    return _with_values(matrix, torch.ones(len(matrix.values()), dtype=dtype, device=matrix.device))


def _with_values(matrix: Tensor, values: Tensor) -> Tensor:
    """A sparse matrix with other values."""
    return _csr(matrix.crow_indices(), matrix.col_indices(), values, (matrix.shape[0], matrix.shape[1]))


class _Chunked(NamedTuple):
    """Columns whose rows are looked at in chunks: ``bounds [n, chunks + 1]`` says where those of each chunk begin."""

    columns: SparseColumns
    bounds: Int[Tensor, "n bounds"]
    n_rows: int  # of a chunk

    @classmethod
    def of(cls, columns: SparseColumns, chunks: int) -> _Chunked:
        n = len(columns)
        n_rows = -(-columns.n_places // chunks)
        if chunks == 1:
            return cls(columns, torch.stack([columns.offsets[:-1], columns.offsets[1:]], 1).long(), n_rows)
        step = max(1, PIECE * n // max(1, len(columns.rows)))
        counts = []
        for start in range(0, n, step):
            some = columns.piece(start, min(start + step, n))
            cell = some.columns() * chunks + some.rows.long() // n_rows
            counts.append(torch.bincount(cell, minlength=len(some) * chunks).reshape(len(some), chunks))
        first = columns.offsets[:-1, None].long()
        return cls(columns, torch.cat([first, first + torch.cat(counts).cumsum(1)], 1), n_rows)

    def entries(self, chunk: int, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
        """Offsets, rows (from the chunk's first) and values of the columns ``start .. stop`` in a chunk."""
        low, high = self.bounds[start:stop, chunk], self.bounds[start:stop, chunk + 1]
        offsets = _offsets(high - low)
        if self.bounds.shape[1] == 2:
            span = slice(int(low[0]), int(high[-1])) if len(low) else slice(0, 0)
            return offsets, self.columns.rows[span], self.columns.values[span]
        index = torch.arange(int(offsets[-1])) + torch.repeat_interleave(low - offsets[:-1], high - low)
        return offsets, self.columns.rows[index] - chunk * self.n_rows, self.columns.values[index]

    def by_column(self, chunk: int, start: int, stop: int, shift: Float[Tensor, " n"]) -> Tensor:
        """The sparse matrix ``[columns, rows]`` of a chunk, each column less its shift."""
        offsets, rows, values = self.entries(chunk, start, stop)
        values = values.double()
        if bool(shift.any()):
            values = values - shift[torch.repeat_interleave(offsets.diff())]
        return _csr(offsets, rows, values, (stop - start, self.n_rows))

    def by_position(
        self, chunk: int, shift: Float[Tensor, " n"], room: tuple[np.ndarray, np.ndarray] | None = None
    ) -> Tensor:
        """The sparse matrix ``[rows, columns]`` of a chunk, each column less its shift.

        It is laid out in the room, if there is one: for the columns (int32) and the values (float64) of all its entries.
        """
        n, ends = len(self.columns), _offsets(self.bounds[:, chunk + 1] - self.bounds[:, chunk])
        column, value = room or (np.empty(int(ends[-1]), np.int32), np.empty(int(ends[-1]), np.float64))
        counts = torch.zeros(self.n_rows, dtype=torch.int64)
        pieces = [some for some, _ in column_pieces(ends, max(SORTED, self.n_rows))]
        for some in pieces:
            counts += torch.bincount(self.entries(chunk, some.start, some.stop)[1], minlength=self.n_rows)
        row_offsets = _offsets(counts)
        next_place = row_offsets[:-1].numpy().copy()
        shifts = bool(shift.any())
        for some in pieces:
            offsets, rows, values = self.entries(chunk, some.start, some.stop)
            own = torch.repeat_interleave(torch.arange(some.start, some.stop, dtype=torch.int32), offsets.diff())
            shifted = values.double() - shift[own] if shifts else values
            sort_into((column, value), rows, (own.numpy(), shifted.numpy()), next_place)
        return _csr(row_offsets, torch.from_numpy(column), torch.from_numpy(value), (self.n_rows, n))


@dataclass(frozen=True)
class _LaidOut:
    """Columns laid out position by position, each less its shift: in memory, or a chunk after the other in a file.

    ``ones`` are the same matrices with ones in them, where these are asked for.
    """

    chunks: list[Tensor]
    ones: list[Tensor] | None
    files: list[mmap.mmap]

    @classmethod
    def of(
        cls, columns: SparseColumns, shift: Float[Tensor, " n"], memory_bytes: int, ones: torch.dtype | None
    ) -> _LaidOut:
        """As many chunks as it takes to keep each of them within so much memory; ``ones`` of this type, if any."""
        n_chunks = -(-len(columns.rows) * BYTES_LAID_OUT // max(LEAST_BYTES, memory_bytes))
        n_chunks = max(1, min(columns.n_rows, n_chunks))  # one position at least
        chunked, chunks, files = _Chunked.of(columns, n_chunks), list[Tensor](), list[mmap.mmap]()
        rooms: list[tuple[np.ndarray, np.ndarray] | None] = [None] * n_chunks
        if n_chunks > 1:
            places, numbers = (mapped(len(columns.rows), np.dtype(kind)) for kind in (np.int32, np.float64))
            files = [places.file, numbers.file]
            ends = [0, *chunked.bounds.diff(dim=1).sum(0).cumsum(0).tolist()]
            rooms = [(places.array[low:high], numbers.array[low:high]) for low, high in pairwise(ends)]
        for chunk, room in enumerate(rooms):
            chunks.append(chunked.by_position(chunk, shift, room))
            for file in files:
                file.flush()
                release(file)
        if ones is None:
            return cls(chunks, None, files)
        all_ones = torch.ones(max(len(matrix.values()) for matrix in chunks), dtype=ones)
        return cls(chunks, [_with_values(matrix, all_ones[: len(matrix.values())]) for matrix in chunks], files)

    def in_turn(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Each chunk, with its ones. What is read of a file is given back when the next chunk is asked for."""
        for chunk, matrix in enumerate(self.chunks):
            yield matrix, None if self.ones is None else self.ones[chunk]
            for file in self.files:
                release(file)


def column_pieces(offsets: Int[Tensor, " n_plus_1"], size: int) -> Iterator[tuple[slice, slice]]:
    """Columns that follow each other, and the span of their non-zeros: of so many of these, or of one column."""
    ends = offsets.tolist()
    start = 0
    while start < len(ends) - 1:
        stop = max(start + 1, bisect_right(ends, ends[start] + size) - 1)
        yield slice(start, stop), slice(ends[start], ends[stop])
        start = stop


def _add_product(products: Float[Tensor, "n m"], a: Tensor, b: Tensor) -> None:
    """Add the product of two sparse matrices.

    Straight into a dense matrix: with MKL, torch never frees what a sparse result took (2.13).
    """
    with _sparse_warnings_off():
        if a.device.type == "cpu" and not _has_mkl():
            products += torch.sparse.mm(a.to_sparse(), b.to_sparse())  # coordinates: slower, but everywhere
        elif a.device.type == "cpu":
            products.addmm_(a, b)
        else:
            products += a @ b


def _has_mkl() -> bool:
    """Whether this build of torch multiplies compressed sparse matrices on a CPU."""
    return bool(torch.backends.mkl.is_available())  # type: ignore[no-untyped-call]


def co_occurrence(x: SparseColumns, y: SparseColumns) -> Int[Tensor, "n_x n_y"]:
    """At how many positions both columns are not zero, exactly."""
    ones = [SparseColumns(c.offsets, c.rows, torch.ones_like(c.values), c.n_rows, c.n_places) for c in (x, y)]
    none = [torch.zeros(len(c), dtype=torch.float64) for c in ones]
    counts = torch.zeros(len(x), len(y), dtype=torch.float64)
    by_column = _Chunked.of(ones[0], 1).by_column(0, 0, len(x), none[0])
    _add_product(counts, by_column, _Chunked.of(ones[1], 1).by_position(0, none[1]))
    return counts.round_().long()


class WithDense:
    """Running products of sparse columns x with dense columns y, added up in float64 batch by batch.

    The columns y are shifted by their means in the first batch, which leaves nothing to cancel; the sums do not depend on
    how the positions are cut into batches but for the rounding of float64.
    """

    def __init__(self, n_x: int, n_y: int, device: torch.device) -> None:
        self.n, self.n_x, self.n_y, self.device = 0, n_x, n_y, device
        self.products = torch.zeros(n_x, n_y, dtype=torch.float64, device=device)
        self.sums, self.squares, self.low, self.high = (
            torch.full((n_y,), value, dtype=torch.float64, device=device) for value in (0, 0, torch.inf, -torch.inf)
        )
        self.shift: Tensor | None = None
        self.room = self.products.new_empty(0)

    @classmethod
    def restored(cls, n: int, tensors: Mapping[str, Tensor | None]) -> WithDense:
        """What was added up over ``n`` positions, from its tensors: products, sums, squares, low, high and shift."""
        products = tensors["products"]
        if products is None or products.ndim != 2 or products.dtype != torch.float64:
            raise ValueError("the products with the neurons must be a matrix in float64")
        found = cls(0, products.shape[1], products.device)
        found.n, found.n_x, found.products = n, len(products), products
        for name in ("sums", "squares", "low", "high", "shift"):
            values = tensors[name]
            if values is not None and values.shape != (found.n_y,):
                raise ValueError(f"the {name} of the neurons must be {found.n_y} numbers")
            setattr(found, name, getattr(found, name) if values is None else values)
        return found

    def add(self, x: SparseColumns, y: Float[Tensor, "rows n_y"]) -> None:
        """Add positions."""
        if not len(y):
            return
        if self.shift is None:
            self.shift = y.sum(0, dtype=torch.float64) / len(y)
        self.low = torch.minimum(self.low, y.amin(0).double())
        self.high = torch.maximum(self.high, y.amax(0).double())
        if self.room.shape != y.shape:  # new memory for every batch would cost as much as what is computed in it
            self.room = torch.empty(y.shape, dtype=torch.float64, device=self.device)
        self.n += len(y)
        step = max(1, DENSE_PIECE // self.n_y)
        sums, squares = self.room.new_zeros(2, step, self.n_y)  # of every step-th position: added up once
        for start in range(0, len(y), step):
            shifted = self.room[start : start + step].copy_(y[start : start + step]).sub_(self.shift)
            sums[: len(shifted)].add_(shifted)
            squares[: len(shifted)].addcmul_(shifted, shifted)
        self.sums += sums.sum(0)
        self.squares += squares.sum(0)
        matrix = _csr(x.offsets, x.rows, x.values.double(), (len(x), len(y)))
        with _sparse_warnings_off():
            self.products.addmm_(matrix, self.room)

    def select(self, chosen: Int[Tensor, " k"]) -> WithDense:
        """Those of some of the columns x."""
        found = copy.copy(self)
        found.n_x, found.products = len(chosen), self.products[chosen.to(self.device)]
        return found

    def co_moments(self, x: Moments) -> CoMoments:
        """With the moments of the columns x over all positions."""
        return next(self.co_moments_by_tile(x, max(1, self.n_x)))

    def co_moments_by_tile(self, x: Moments, tile: int | None = None) -> Iterator[CoMoments]:
        """Of some of the columns x after the others, with all columns y. Nothing may be added any more."""
        self.room = self.room.new_empty(0)
        shift = torch.zeros_like(self.sums) if self.shift is None else self.shift
        mean = self.sums / max(1, self.n)
        squares = (self.squares - self.n * mean.square()).clamp_min(0.0)
        # What follows is on the CPU.
        y = Moments(*(values.cpu() for values in (mean + shift, squares, self.low, self.high)))
        tile = tile or max(1, TILE_BYTES // (8 * max(1, self.n_y)))
        for start in range(0, max(1, self.n_x), tile):
            some = Moments(*(values[start : start + tile] for values in x))
            products = self.products[start : start + tile].addr(some.mean.to(self.device), mean, alpha=-float(self.n))
            yield CoMoments(self.n, some, y, products.cpu())


# --- the largest -------------------------------------------------------------------------------------------------


class Correlated(NamedTuple):
    """The columns that correlate most with a feature."""

    indices: list[int]
    pearson: list[float]
    cosine: list[float]


def most_correlated(co: CoMoments, y_ids: Ints, size: int, not_itself: Ints | None = None) -> list[Correlated]:
    """For each column x, the columns y with the largest Pearson correlation; ties go to the lower index.

    ``y_ids`` name the columns y; ``not_itself[i]`` is the id that column x ``i`` must not be paired with.
    Constant columns are left out. The cosine similarity of the activations stands beside it.
    """
    if size < 1 or not len(y_ids):
        return [Correlated([], [], [])] * len(co.products)
    pearson = _pearson(co)
    if not_itself is not None:
        _leave_out_itself(pearson, y_ids, not_itself)
    found = [*_largest(pearson, size)]
    if not found:
        return []
    cosines = _cosine(co, [columns for columns, _ in found])
    return [
        Correlated(y_ids[columns].tolist(), (r + 0.0).tolist(), cosine.tolist())  # no -0.0
        for (columns, r), cosine in zip(found, cosines, strict=True)
    ]


def _pearson(co: CoMoments) -> np.ndarray:
    """Rounded, and minus infinity where a column is constant."""
    tiny = torch.finfo(torch.float64).tiny
    norm_x, norm_y = co.x.squares.clamp_min(tiny).sqrt(), co.y.squares.clamp_min(tiny).sqrt()
    pearson = (co.products / norm_y).div_(norm_x[:, None]).clamp_(-1.0, 1.0)
    pearson = pearson.round_(decimals=CORRELATION_DECIMALS)
    pearson[~co.x.varies] = -torch.inf
    pearson[:, ~co.y.varies] = -torch.inf
    return pearson.cpu().numpy()


def _largest(values: np.ndarray, size: int) -> Iterator[tuple[Ints, np.ndarray]]:
    """The columns with the largest values of each row that are not minus infinity, and these values."""
    size = min(size, values.shape[1])
    for row, least in zip(values, torch.from_numpy(values).topk(size, -1).values[:, -1].tolist(), strict=True):
        columns = np.flatnonzero(row >= least) if least > -np.inf else np.flatnonzero(row > -np.inf)
        best = columns[np.lexsort((columns, -row[columns]))][:size]
        yield best, row[best]


def _cosine(co: CoMoments, columns: Sequence[Ints]) -> list[np.ndarray]:
    """The cosine similarity of each column x with its columns y."""
    lengths = np.array([len(own) for own in columns])
    row = torch.from_numpy(np.repeat(np.arange(len(columns)), lengths)).to(co.products.device)
    column = torch.from_numpy(np.concatenate(columns)).to(co.products.device)
    mean_x, mean_y = co.x.mean[row], co.y.mean[column]
    raw = co.products[row, column] + co.n * mean_x * mean_y
    norms = ((co.x.squares[row] + co.n * mean_x**2) * (co.y.squares[column] + co.n * mean_y**2)).sqrt()
    cosine = (raw / norms).clamp_(-1.0, 1.0).cpu().numpy()
    return np.split(np.round(cosine, CORRELATION_DECIMALS) + 0.0, lengths.cumsum()[:-1])


# --- co-activation -----------------------------------------------------------------------------------------------


class Coactive(NamedTuple):
    """The columns that are active together with a feature most, relative to how often either is."""

    indices: list[int]
    jaccard: list[float]
    n_both: list[int]


def most_coactive(
    both: Float[Tensor, "n_x n_y"],
    n_x: Int[Tensor, " n_x"],
    n_y: Int[Tensor, " n_y"],
    y_ids: Ints,
    size: int,
    not_itself: Ints,
) -> list[Coactive]:
    """For each column x, the columns y with the largest Jaccard index; ties go to the lower index.

    The index is ``both / (n_x + n_y - both)``. ``n_x`` and ``n_y`` are how often each column is active, the other arguments as
    for ``most_correlated``. Columns that are never active together are left out.
    """
    if size < 1 or not len(y_ids):
        return [Coactive([], [], [])] * len(both)
    jaccard = both.double()
    union = (n_x[:, None] + n_y).double().sub_(jaccard)
    jaccard = jaccard.div_(union.clamp_min_(1.0)).round_(decimals=CORRELATION_DECIMALS)
    jaccard[both == 0] = -torch.inf
    values = jaccard.cpu().numpy()
    _leave_out_itself(values, y_ids, not_itself)
    return [
        Coactive(y_ids[columns].tolist(), found.tolist(), both[i, torch.from_numpy(columns)].long().tolist())
        for i, (columns, found) in enumerate(_largest(values, size))
    ]


def _leave_out_itself(values: np.ndarray, y_ids: Ints, not_itself: Ints) -> None:
    """Minus infinity where a column would be paired with itself."""
    order = np.argsort(y_ids)
    own = order[np.searchsorted(y_ids, not_itself, sorter=order).clip(max=len(y_ids) - 1)]
    there = y_ids[own] == not_itself
    values[np.flatnonzero(there), own[there]] = -np.inf
