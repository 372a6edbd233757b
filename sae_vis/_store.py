"""The activation store: what an encoder finds at every position, keeping only what is not zero.

It is feature-major (compressed sparse columns): the active positions of feature ``i`` are
``positions[offsets[i]:offsets[i + 1]]``, in rising order, with their ``values`` beside them. Stores of different rows of
tokens merge into the store of all rows. What does not fit into the memory budget lies in memory-mapped files.
"""

from __future__ import annotations

import contextlib
import mmap
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_vis._correlations import Correlated, SparseColumns, co_moments_by_tile, co_occurrence, most_correlated
from sae_vis._errors import InputError, shown
from sae_vis._ranking import sort_into, stable_order
from sae_vis._spilled import mapped, release, temporary, write

BYTES_PER_ENTRY = 4 + 4 + 4  # a float32 value, an int32 position, an int32 column
CHUNK = 2**23  # entries that are sorted at a time, of those on disk
JOINED = 2**17  # entries in memory that are sorted at a time, at least: they stay in the cache

_Part = tuple[Any, Any, Any]  # positions, columns, values


@dataclass(frozen=True)
class ActivationStore:
    """The non-zero activations of some features on some rows of tokens.

    Shapes: ``features [n]`` ids in rising order, ``offsets [n + 1]``, ``positions [nnz]`` (row * seq_len + position, from
    the store's first row), ``values [nnz]`` float32, ``counted [rows, seq]``. ``row_offset`` is the store's first row in
    the whole set of tokens. ``mapped`` are the files that it lies in, if it is not in memory.
    """

    features: Int[Tensor, " n"]
    offsets: Int[Tensor, " n_plus_1"]
    positions: Int[Tensor, " nnz"]
    values: Float[Tensor, " nnz"]
    counted: Bool[Tensor, "rows seq"]
    row_offset: int = 0
    mapped: tuple[mmap.mmap, ...] = field(default=(), compare=False, repr=False)

    @property
    def seq_len(self) -> int:
        """Tokens in a row."""
        return self.counted.shape[1]

    @property
    def n_counted(self) -> int:
        """Number of counted positions."""
        return int(self.counted.sum())

    def of(self, feature: int) -> tuple[Int[Tensor, " k"], Float[Tensor, " k"]]:
        """Active positions (row * seq_len + position) and activations of a feature, by its id.

        Raises:
            InputError: if the feature is not in the store.
        """
        own = torch.tensor(self._checked([feature]))
        return self.column(int(torch.searchsorted(self.features, own)))

    def column(self, index: int) -> tuple[Int[Tensor, " k"], Float[Tensor, " k"]]:
        """Likewise of the ``index``-th feature of the store, which is not looked up."""
        span = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        return self.positions[span], self.values[span]

    def columns(self) -> SparseColumns:
        """The whole store as a matrix of positions by features."""
        return SparseColumns(self.offsets, self.positions, self.values, self.n_counted, self.counted.numel())

    def correlated(self, features: Sequence[int], size: int = 10) -> list[Correlated]:
        """The features of the store that correlate most with each of some features, over the counted positions.

        Raises:
            InputError: if a feature is not in the store, or ``size`` is no number of features.
        """
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise InputError(f"size must be an int >= 1, got {shown(size)}.")
        asked, found = self._checked(features), list[Correlated]()
        ids, own = self.features.numpy(), torch.tensor(sorted(set(asked)), dtype=torch.int64)
        for co in co_moments_by_tile(self.only(own).columns(), self.columns()):
            found += most_correlated(co, ids, size, own.numpy()[len(found) : len(found) + len(co.products)])
        place = {feature: i for i, feature in enumerate(own.tolist())}
        return [found[place[feature]] for feature in asked]

    def co_occurrence(self, features: Sequence[int]) -> Int[Tensor, "k n"]:
        """At how many positions each of some features is active together with each feature of the store.

        Raises:
            InputError: if a feature is not in the store.
        """
        asked = torch.tensor(self._checked(features), dtype=torch.int64)
        own = torch.unique(asked)
        counts: Tensor = co_occurrence(self.only(own).columns(), self.columns())
        places: Tensor = torch.searchsorted(own, asked)
        return counts[places]

    def _checked(self, features: Sequence[int]) -> list[int]:
        try:
            given = [None if isinstance(feature, bool) else operator.index(feature) for feature in features]
        except TypeError:
            given = [None]
        asked = [feature for feature in given if feature is not None]
        if len(asked) < len(given):
            raise InputError(f"Features are asked for by their ids (ints), got {shown(features)}.")
        absent = sorted(set(asked) - set(self.features.tolist()))
        if absent:
            raise InputError(f"Feature {absent[0]} is not in this store of {len(self.features):,} features.")
        return asked

    def only(self, features: Int[Tensor, " k"]) -> ActivationStore:
        """The store of some of its features, in rising order; the store itself if they are all there are."""
        if len(features) == len(self.features):
            return self
        chosen = torch.searchsorted(self.features, features)
        counts = self.offsets.diff()[chosen]
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        if self.mapped and len(chosen) and bool((chosen.diff() == 1).all()):
            # They lie in one piece, and stay in the files. Of a store in memory a copy is taken: the rest of it can go.
            whole = slice(int(self.offsets[chosen[0]]), int(self.offsets[chosen[-1] + 1]))
            positions, values = self.positions[whole], self.values[whole]
            return ActivationStore(features, offsets, positions, values, self.counted, self.row_offset, self.mapped)
        spans = [slice(int(self.offsets[i]), int(self.offsets[i + 1])) for i in chosen.tolist()]
        positions = torch.cat([self.positions[span] for span in spans] or [self.positions[:0]])
        values = torch.cat([self.values[span] for span in spans] or [self.values[:0]])
        return ActivationStore(features, offsets, positions, values, self.counted, self.row_offset)

    def release(self) -> None:
        """Give back the memory of what was read of the files; it is read again when it is needed."""
        for file in self.mapped:
            release(file)


def merge_stores(stores: Sequence[ActivationStore]) -> ActivationStore:
    """One store of the rows of all, which must follow each other and hold the same features.

    Raises:
        InputError: if they do not.
    """
    first = stores[0]
    next_row = first.row_offset
    for store in stores:
        if (
            store.row_offset != next_row
            or store.seq_len != first.seq_len
            or not torch.equal(store.features, first.features)
        ):
            raise InputError(
                f"Activation stores merge only where rows follow each other, with the same features and row length; expected "
                f"a store that begins at row {next_row} with {first.seq_len} tokens a row, got row {store.row_offset} with "
                f"{store.seq_len}."
            )
        next_row += len(store.counted)
    shifts = [(store.row_offset - first.row_offset) * first.seq_len for store in stores]
    offsets, order = _interleave([store.offsets for store in stores])
    index_type = position_type(sum(store.counted.numel() for store in stores))
    positions = torch.cat([store.positions.to(index_type) + shift for store, shift in zip(stores, shifts, strict=True)])
    values = torch.cat([store.values for store in stores])
    counted = torch.cat([store.counted for store in stores])
    return ActivationStore(first.features, offsets, positions[order], values[order], counted, first.row_offset)


def position_type(n_positions: int) -> torch.dtype:
    """Of a number that tells positions apart."""
    return torch.int32 if n_positions < 2**31 else torch.int64


def _interleave(all_offsets: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Offsets of the merged columns, and where in the concatenated parts each merged entry comes from."""
    counts = torch.stack([offsets.diff() for offsets in all_offsets])  # [parts, n]
    offsets = torch.cat([counts.new_zeros(1), counts.sum(0).cumsum(0)])
    column_of_entry = torch.cat([torch.repeat_interleave(torch.arange(counts.shape[1]), part) for part in counts])
    return offsets, stable_order(column_of_entry, counts.shape[1])


# --- building ------------------------------------------------------------------------------------------------------


class StoreBuilder:
    """Takes activations batch by batch, as they come out of the encoder, and sorts them by feature at the end.

    Beyond ``memory_bytes`` they go to a temporary file, and so does the store; nothing of it stays when it is let go.
    """

    def __init__(self, features: Int[Tensor, " n"], counted: Bool[Tensor, "rows seq"], memory_bytes: int) -> None:
        self.features, self.counted, self.memory_bytes = features, counted, memory_bytes
        self.counts = np.zeros(len(features), dtype=np.int64)
        self.index_type = np.dtype(np.int32 if counted.numel() < 2**31 else np.int64)
        self.parts: list[_Part] = []
        self.in_memory = 0
        self.files: tuple[IO[bytes], ...] | None = None

    def add(self, positions: Int[Tensor, " k"], columns: Int[Tensor, " k"], values: Float[Tensor, " k"]) -> None:
        """Non-zeros at positions after those that were added before; ``columns`` index the features."""
        part = (
            positions.cpu().numpy().astype(self.index_type),
            columns.cpu().numpy().astype(np.int32),
            values.cpu().numpy().astype(np.float32),
        )
        self.counts += np.bincount(part[1], minlength=len(self.counts))
        self.parts.append(part)
        self.in_memory += len(part[0]) * BYTES_PER_ENTRY
        # Sorting needs as much again.
        if self.in_memory > self.memory_bytes // (2 if self.files is None else 8):
            self._spill()

    def close(self) -> None:
        """Let go of the temporary files, which what went wrong may else hold open for long."""
        for file in self.files or ():
            file.close()

    def finish(self) -> ActivationStore:
        """The store of what was added."""
        offsets = torch.from_numpy(np.concatenate([[0], self.counts.cumsum()]))
        next_place = offsets.numpy()[:-1].copy()  # of each column
        if self.files is None:
            positions, values = (np.empty(int(offsets[-1]), kind) for kind in (self.index_type, np.float32))
            for some, columns, found in self._joined_parts():
                sort_into((positions, values), torch.from_numpy(columns), (some, found), next_place)
            tensors = torch.from_numpy(positions), torch.from_numpy(values)
            return ActivationStore(self.features, offsets, *tensors, self.counted)
        self._spill()
        with contextlib.ExitStack() as files:
            for file in self.files:
                files.enter_context(file)
            places, numbers = (mapped(int(offsets[-1]), kind) for kind in (self.index_type, np.dtype(np.float32)))
            for some, columns, found in self._parts_on_disk():
                sort_into((places.array, numbers.array), torch.from_numpy(columns), (some, found), next_place)
                for one in (places, numbers):
                    one.file.flush()
                    release(one.file)
        return ActivationStore(
            self.features,
            offsets,
            torch.from_numpy(places.array),
            torch.from_numpy(numbers.array),
            self.counted,
            mapped=(places.file, numbers.file),
        )

    def _joined_parts(self) -> Iterator[_Part]:
        """What is in memory, a piece at a time; what was given is let go of."""
        least = max(JOINED, len(self.counts))
        self.parts.reverse()
        while self.parts:
            some, size = list[_Part](), 0
            while self.parts and size < least:
                some.append(self.parts.pop())
                size += len(some[-1][0])
            positions, columns, values = (np.concatenate(arrays) for arrays in zip(*some, strict=True))
            yield positions, columns, values

    def _spill(self) -> None:
        if self.files is None:
            self.files = tuple(temporary() for _ in range(3))
        for part in self.parts:
            for array, file in zip(part, self.files, strict=True):
                write(file, array)
        self.parts, self.in_memory = [], 0

    def _parts_on_disk(self) -> Iterator[_Part]:
        files = self.files or ()
        for file in files:
            file.seek(0)
        kinds = (self.index_type, np.dtype(np.int32), np.dtype(np.float32))
        while True:
            positions, columns, values = (
                np.frombuffer(bytearray(file.read(CHUNK * kind.itemsize)), dtype=kind)
                for file, kind in zip(files, kinds, strict=True)
            )
            if not len(columns):
                break
            yield positions, columns, values
