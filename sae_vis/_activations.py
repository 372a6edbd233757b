"""The sparse activation store: what the encoder finds at every position, keeping only what is not zero.

One pass of the model over the tokens fills it, for many features at once. It is feature-major (compressed sparse
columns): the active positions of feature ``i`` are ``positions[offsets[i]:offsets[i + 1]]``, in rising order, with their
``values`` beside them. Stores of different rows of tokens merge into the store of all rows.

Beside the store go running co-moments for the correlations, added up in float64 by the pairwise update of Chan, Golub and
LeVeque (1979), which does not cancel where raw sums would.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_vis._errors import InputError, ModelError
from sae_vis.model_fns import MIN_PRODUCT_COLUMNS, MIN_PRODUCT_ROWS, Encoder, LanguageModel, check_tensor

BYTES_PER_ACTIVATION = 4 + 4  # a float32 value, an int32 position


@dataclass(frozen=True)
class ActivationStore:
    """The non-zero activations of some features on some rows of tokens.

    Shapes: ``features [n]`` ids in rising order, ``offsets [n + 1]``, ``positions [nnz]`` (row * seq_len + position, from
    the store's first row), ``values [nnz]`` float32, ``counted [rows, seq]``. ``row_offset`` is the store's first row in
    the whole set of tokens.
    """

    features: Int[Tensor, " n"]
    offsets: Int[Tensor, " n_plus_1"]
    positions: Int[Tensor, " nnz"]
    values: Float[Tensor, " nnz"]
    counted: Bool[Tensor, "rows seq"]
    row_offset: int = 0

    @property
    def seq_len(self) -> int:
        """Tokens in a row."""
        return self.counted.shape[1]

    @property
    def n_counted(self) -> int:
        """Number of counted positions."""
        return int(self.counted.sum())

    def of(self, index: int) -> tuple[Int[Tensor, " k"], Float[Tensor, " k"]]:
        """Active positions and activations of the ``index``-th feature of the store."""
        span = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        return self.positions[span], self.values[span]


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
    n_positions = sum(store.counted.numel() for store in stores)
    index_type = torch.int32 if n_positions < 2**31 else torch.int64
    positions = torch.cat([store.positions.to(index_type) + shift for store, shift in zip(stores, shifts, strict=True)])
    values = torch.cat([store.values for store in stores])
    counted = torch.cat([store.counted for store in stores])
    return ActivationStore(first.features, offsets, positions[order], values[order], counted, first.row_offset)


def _interleave(all_offsets: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Offsets of the merged columns, and where in the concatenated parts each merged entry comes from."""
    counts = torch.stack([offsets.diff() for offsets in all_offsets])  # [parts, n]
    offsets = torch.cat([counts.new_zeros(1), counts.sum(0).cumsum(0)])
    column_of_entry = torch.cat([torch.repeat_interleave(torch.arange(counts.shape[1]), part) for part in counts])
    return offsets, _stable_order(column_of_entry, counts.shape[1])


# --- co-moments --------------------------------------------------------------------------------------------------


class Moments(NamedTuple):
    """Of each column: mean, sum of squares around it, minimum and maximum, in float64."""

    mean: Float[Tensor, " n"]
    squares: Float[Tensor, " n"]
    low: Float[Tensor, " n"]
    high: Float[Tensor, " n"]


@dataclass(frozen=True)
class SparseColumns:
    """The non-zeros of a matrix of ``n_rows`` rows, column by column; none of them negative."""

    offsets: Int[Tensor, " n_plus_1"]
    rows: Int[Tensor, " nnz"]
    values: Float[Tensor, " nnz"]
    n_rows: int

    @classmethod
    def of(cls, dense: Float[Tensor, "rows n"]) -> SparseColumns:
        """The non-zeros of a dense matrix."""
        row, column = dense.nonzero().unbind(1)
        by_column = _stable_order(column, dense.shape[1])  # much cheaper than reading the matrix column by column
        row, column = row[by_column], column[by_column]
        counts = torch.bincount(column, minlength=dense.shape[1])
        return cls(torch.cat([counts.new_zeros(1), counts.cumsum(0)]), row, dense[row, column], len(dense))

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
        return SparseColumns(
            torch.cat([counts.new_zeros(1), counts.cumsum(0)]), self.rows[kept], self.values[kept], self.n_rows
        )

    def moments(self) -> Moments:
        """Of the whole columns, zeros included. Sums of squares around zero lose nothing where most values are zeros."""
        values, column, counts = self.values.double(), self.columns(), self.offsets.diff()
        zeros = values.new_zeros(len(self))
        mean = zeros.index_add(0, column, values) / self.n_rows
        squares = zeros.index_add(0, column, (values - mean[column]).square())
        squares += (self.n_rows - counts) * mean.square()
        full = counts == self.n_rows
        low = torch.full_like(zeros, torch.inf).scatter_reduce(0, column, values, "amin").where(full, zeros)
        return Moments(mean, squares, low, zeros.scatter_reduce(0, column, values, "amax"))

    def centred(self, mean: Float[Tensor, " n"]) -> Float[Tensor, "rows n"]:
        """The dense matrix in float64, less the mean of each column."""
        dense = (-mean).expand(self.n_rows, -1).clone()
        column = self.columns()
        dense[self.rows, column] += self.values
        return dense

    def product(self, dense: Float[Tensor, "rows b"]) -> Float[Tensor, "n b"]:
        """``columns.T @ dense`` in float64, skipping the zeros."""
        with warnings.catch_warnings():  # torch calls its sparse tensors beta, and the check that is off here costly
            warnings.filterwarnings("ignore", message="Sparse (CSR|invariant)")
            matrix = torch.sparse_csr_tensor(
                self.offsets, self.rows, self.values.double(), (len(self), self.n_rows), check_invariants=False
            )
            return matrix @ dense


def dense_moments(x: Float[Tensor, "rows n"]) -> tuple[Moments, Float[Tensor, "rows n"]]:
    """The moments of the columns of a dense matrix, and the centred matrix, in float64."""
    mean = x.sum(0, dtype=torch.float64) / len(x)
    centred = x.double().sub_(mean)
    squares = torch.linalg.vector_norm(centred, dim=0).square()
    return Moments(mean, squares, x.amin(0).double(), x.amax(0).double()), centred


class CoMoments:
    """Running moments of columns x (features) and y (anything), and their products, in float64.

    ``products[i, j]`` is the sum over positions of ``(x_i - mean x_i) * (y_j - mean y_j)``.
    """

    def __init__(self, n_x: int, n_y: int, device: torch.device) -> None:
        self.n = 0
        self.x, self.y = _no_moments(n_x, device), _no_moments(n_y, device)
        self.products = torch.zeros(n_x, n_y, dtype=torch.float64, device=device)

    def add(self, x: SparseColumns, y: SparseColumns | Float[Tensor, "rows n_y"]) -> None:
        """Add positions. It is enough to centre one side: ``sum x * (y - mean y)`` is already the centred product."""
        if x.n_rows == 0:
            return
        batch = CoMoments(0, 0, x.offsets.device)
        batch.n, batch.x = x.n_rows, x.moments()
        if isinstance(y, SparseColumns):
            batch.y = y.moments()
            batch.products = y.product(x.centred(batch.x.mean)).T
        else:
            batch.y, centred = dense_moments(y)
            batch.products = x.product(centred)
        self.merge(batch)

    def merge(self, other: CoMoments) -> None:
        """Add the positions of another one (Chan, Golub and LeVeque)."""
        total = self.n + other.n
        if total == 0:
            return
        weight = self.n * other.n / total
        shift_x, shift_y = other.x.mean - self.x.mean, other.y.mean - self.y.mean
        self.products += other.products + weight * torch.outer(shift_x, shift_y)
        self.x = _merged(self.x, other.x, shift_x, weight, other.n / total)
        self.y = _merged(self.y, other.y, shift_y, weight, other.n / total)
        self.n = total

    def keep_x(self, n: int) -> None:
        """Drop all but the first ``n`` columns x."""
        self.x = Moments(*(values[:n].clone() for values in self.x))
        self.products = self.products[:n].clone()


def _stable_order(keys: Int[Tensor, " k"], below: int) -> Int[Tensor, " k"]:
    """The order that sorts keys from 0 to ``below``, equal ones as they stand."""
    if keys.device.type == "cpu" and below <= 2**16:  # numpy sorts 16-bit integers by radix, many times faster
        return torch.from_numpy(np.argsort(keys.numpy().astype(np.uint16), kind="stable"))
    return torch.argsort(keys, stable=True)


def _no_moments(n: int, device: torch.device) -> Moments:
    zeros = torch.zeros(n, dtype=torch.float64, device=device)
    return Moments(zeros, zeros, zeros + torch.inf, zeros - torch.inf)


def _merged(a: Moments, b: Moments, shift: Tensor, weight: float, share: float) -> Moments:
    return Moments(
        a.mean + shift * share,
        a.squares + b.squares + weight * shift.square(),
        torch.minimum(a.low, b.low),
        torch.maximum(a.high, b.high),
    )


# --- encoding ----------------------------------------------------------------------------------------------------


def encode(
    encoder: Encoder, x: Float[Tensor, "rows seq *d"], features: Int[Tensor, " n"] | None, name: str = "The encoder"
) -> Float[Tensor, "rows seq n"]:
    """Activations in float32. Each one has the same bits whatever is encoded beside it.

    That holds because products are never smaller than 32 rows x 16 columns: smaller ones take other paths.
    """
    n_rows, seq_len = x.shape[:2]
    padding = -(-MIN_PRODUCT_ROWS // seq_len) - n_rows
    if padding > 0:
        x = torch.cat([x, x[:1].expand(padding, *x.shape[1:])])
    n = encoder.d_hidden if features is None else len(features)
    if n < MIN_PRODUCT_COLUMNS:  # a whole dictionary may be as narrow
        features = torch.arange(n) if features is None else features
        features = torch.cat([features, features[:1].expand(MIN_PRODUCT_COLUMNS - n)])
    try:
        acts = encoder.encode(x, features)
    except IndexError as error:
        raise ModelError(
            f"{name}'s encode raises IndexError ({error}). Has it as many features as its d_hidden, {encoder.d_hidden}, says?"
        ) from error
    check_tensor(acts, f"{name}'s encode", (*x.shape[:2], encoder.d_hidden if features is None else len(features)))
    return acts[:n_rows, :, :n].float()


def decoder_rows(encoder: Encoder, features: Int[Tensor, " n"]) -> Float[Tensor, "n d_out"]:
    """What one unit of each feature writes at the hook point, in float32, heads flattened."""
    rows = encoder.decoder_rows(features)
    check_tensor(rows, "The encoder's decoder_rows", (len(features), None))
    return rows.detach().float().flatten(1)


def check_finite(values: Tensor, what: str, first_row: int) -> None:
    """Raise ``ModelError`` naming row and position of the first NaN or infinity of ``values [rows, seq, ...]``."""
    if bool(torch.isfinite(values.sum())):  # cheap, and only a finite sum rules both out
        return
    finite = torch.isfinite(values)
    if bool(finite.all()):
        return
    row, position = (int(i) for i in (~finite.reshape(*values.shape[:2], -1).all(-1)).nonzero()[0])
    raise ModelError(
        f"{what} hold NaN or infinity, first at row {first_row + row}, position {position} of the tokens. "
        "Check the weights and the number format (float16 overflows above 65504; bfloat16 and float32 do not)."
    )


def check_width(encoder: Encoder, x: Tensor, hook_point: str, name: str) -> None:
    """Raise ``ModelError`` if the encoder does not fit the activations at the hook point."""
    width = x[0, 0].numel()
    if width != encoder.d_in:
        raise ModelError(
            f"{name} reads vectors of width {encoder.d_in}, but {hook_point!r} has width {width} "
            f"(shape {tuple(x.shape[2:])}). Choose the hook point that the encoder was trained on."
        )


# --- collecting --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Collected:
    """What one pass over the tokens gives: the store and, where asked for, the co-moments for the three tables."""

    store: ActivationStore
    with_neurons: CoMoments | None
    with_features: CoMoments | None
    with_b_features: CoMoments | None
    y_features: Int[Tensor, " n"] | None
    signed: bool


@dataclass(frozen=True)
class CollectPlan:
    """What to collect, and how: fixed for all rounds.

    ``correlate`` None leaves the correlations with features out, "asked" and "all" choose their columns.
    """

    hook_point: str
    minibatch_rows: int
    memory_bytes: int
    neurons: bool
    correlate: str | None
    max_features: int | None = None


def collect(
    model: LanguageModel,
    encoder: Encoder,
    encoder_b: Encoder | None,
    tokens: Int[Tensor, "rows seq"],
    counted: Bool[Tensor, "rows seq"],
    features: Int[Tensor, " n"],
    plan: CollectPlan,
    on_batch: Callable[[int, int, int], None] = lambda done, total, n_features: None,
) -> Iterator[Collected]:
    """Collect the features in as few rounds over the tokens as the memory budget allows.

    Yields one ``Collected`` a round, of consecutive pieces of ``features``. A round that grows over the budget drops the
    second half of its features, which then get a round of their own; the numbers of a feature do not depend on it.
    ``on_batch(rows done, rows in all, features in this round)`` reports progress.
    """
    waiting = features
    while len(waiting):
        first_try = waiting[: _features_a_round(model, encoder, encoder_b, plan)]
        collected = _one_round(model, encoder, encoder_b, tokens, counted, first_try, features, plan, on_batch)
        waiting = waiting[len(collected.store.features) :]
        yield collected


def _features_a_round(model: LanguageModel, encoder: Encoder, encoder_b: Encoder | None, plan: CollectPlan) -> int:
    """As many as half the budget holds of what each needs: its co-moments, and its logits when it is measured."""
    columns = 2 * model.d_vocab + encoder.d_in * plan.neurons
    columns += encoder.d_hidden if plan.correlate else 0
    columns += encoder_b.d_hidden if encoder_b is not None else 0
    by_memory = max(1, plan.memory_bytes // max(1, 8 * columns) // 2)
    return min(by_memory, plan.max_features or by_memory)


def _one_round(
    model: LanguageModel,
    encoder: Encoder,
    encoder_b: Encoder | None,
    tokens: Tensor,
    counted: Tensor,
    features: Tensor,
    all_asked: Tensor,
    plan: CollectPlan,
    on_batch: Callable[[int, int, int], None],
) -> Collected:
    round_ = _Round(encoder, encoder_b, features, all_asked, plan, model.device)
    for start in range(0, len(tokens), plan.minibatch_rows):
        stop = min(start + plan.minibatch_rows, len(tokens))
        x = model.activations(tokens[start:stop], plan.hook_point)
        check_finite(x, f"The activations at {plan.hook_point!r}", start)
        round_.add(x, counted[start:stop], start)
        on_batch(stop, len(tokens), len(round_.features))
    return round_.finish()


class _Round:
    """One pass over the tokens, for as many features as fit."""

    def __init__(
        self,
        encoder: Encoder,
        encoder_b: Encoder | None,
        features: Tensor,
        all_asked: Tensor,
        plan: CollectPlan,
        device: torch.device,
    ) -> None:
        self.encoder, self.encoder_b, self.features, self.plan = encoder, encoder_b, features, plan
        whole = torch.arange(encoder.d_hidden)
        self.y_features = {"all": whole, "asked": all_asked}.get(plan.correlate or "")
        self.encoded_features = features if self.y_features is None else self.y_features
        self.device = torch.device("cpu") if device.type == "mps" else device  # MPS has no float64
        n = len(features)
        self.with_neurons = CoMoments(n, encoder.d_in, self.device) if plan.neurons else None
        self.with_features = None if self.y_features is None else CoMoments(n, len(self.y_features), self.device)
        self.with_b = None if encoder_b is None else CoMoments(n, encoder_b.d_hidden, self.device)
        self.parts: list[ActivationStore] = []
        self.signed = False

    def add(self, x: Float[Tensor, "rows seq *d"], counted: Bool[Tensor, "rows seq"], first_row: int) -> None:
        """Encode a batch of rows, keep what is not zero, update the co-moments."""
        everything = len(self.encoded_features) == self.encoder.d_hidden
        acts = encode(self.encoder, x, None if everything else self.encoded_features)
        check_finite(acts, "The encoder's activations", first_row)
        acts, signed = _clamped(acts)
        self.signed = self.signed or signed
        columns = SparseColumns.of(acts[counted.to(acts.device)].to(self.device))
        asked = columns.select(torch.searchsorted(self.encoded_features, self.features).to(self.device))
        if self.with_neurons is not None:
            self.with_neurons.add(asked, x.flatten(2)[counted.to(x.device)].to(self.device))
        if self.with_features is not None:
            self.with_features.add(asked, columns)
        if self.with_b is not None and self.encoder_b is not None:
            acts_b = encode(self.encoder_b, x, None, "encoder_B")
            check_finite(acts_b, "The activations of encoder_B", first_row)
            acts_b, _ = _clamped(acts_b)
            self.with_b.add(asked, SparseColumns.of(acts_b[counted.to(acts_b.device)].to(self.device)))
        self.parts.append(_stored(asked, self.features, counted, first_row))
        while len(self.features) > 1 and self._stored_bytes() > self.plan.memory_bytes // 2:
            self._shrink((len(self.features) + 1) // 2)

    def finish(self) -> Collected:
        """What was collected, as one store."""
        return Collected(
            merge_stores(self.parts), self.with_neurons, self.with_features, self.with_b, self.y_features, self.signed
        )

    def _stored_bytes(self) -> int:
        return sum(len(part.values) for part in self.parts) * BYTES_PER_ACTIVATION

    def _shrink(self, n: int) -> None:
        """Go on with the first ``n`` features only; the others get a later round."""
        self.features = self.features[:n]
        self.parts = [_first_features(part, n) for part in self.parts]
        for moments in (self.with_neurons, self.with_features, self.with_b):
            if moments is not None:
                moments.keep_x(n)


def _clamped(acts: Tensor) -> tuple[Tensor, bool]:
    """The activations without negative ones, and whether there were any. Not in place: they may be the encoder's own."""
    signed = bool(acts.amin() < 0)
    return (acts.clamp_min(0.0) if signed else acts), signed


def _stored(
    columns: SparseColumns, features: Tensor, counted: Bool[Tensor, "rows seq"], first_row: int
) -> ActivationStore:
    """The columns of the counted positions, with the place of each position in the rows."""
    places = counted.reshape(-1).nonzero()[:, 0].to(torch.int32)
    positions = places[columns.rows.cpu()]
    return ActivationStore(features, columns.offsets.cpu(), positions, columns.values.cpu(), counted, first_row)


def _first_features(store: ActivationStore, n: int) -> ActivationStore:
    end = int(store.offsets[n])
    return ActivationStore(
        store.features[:n],
        store.offsets[: n + 1],
        store.positions[:end].clone(),
        store.values[:end].clone(),
        store.counted,
        store.row_offset,
    )
