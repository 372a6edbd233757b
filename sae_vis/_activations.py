"""Collect: run the model over the tokens, encode what stands at the hook point, and keep what is not zero.

One pass of the model over the tokens fills the activation store (``_store``) for many features at once, and adds up their
products with the neurons of the hook point (``_correlations``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Self, TypeGuard

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_vis._correlations import SparseColumns, WithDense
from sae_vis._errors import ModelError
from sae_vis._store import ActivationStore, StoreBuilder
from sae_vis.model_fns import (
    MIN_PRODUCT_COLUMNS,
    MIN_PRODUCT_ROWS,
    AutoEncoder,
    Encoder,
    LanguageModel,
    check_tensor,
    in_the_cache,
)

MANY_PRODUCTS = 2**22
ENCODED_BYTES = 2**27  # of dense activations at a time, most of them zeros
_OTHER_FORMAT = re.compile("same dtype|scalar type")  # what torch says of a product of two number formats
BLOCK = 32  # activations that are looked at together
SHARE_OF_STORE, SHARE_OF_PRODUCTS = 8, 2  # of the memory budget


# --- encoding ----------------------------------------------------------------------------------------------------


class Room:
    """Memory that is written to again and again: new memory from the system costs a tenth of the product that fills it."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.float32, device="cpu")

    def of(self, *shape: int) -> Tensor:
        """Memory of a shape; what was there before is lost."""
        size = math.prod(shape)
        if len(self._memory) < size:
            self._memory = self._memory.new_empty(size)
        return self._memory[:size].view(shape)

    def suits(self, encoder: Encoder) -> TypeGuard[AutoEncoder]:
        """Whether an encoder can write to it."""
        return (
            isinstance(encoder, AutoEncoder)
            and type(encoder).encode is AutoEncoder.encode
            and (encoder.W_enc.device, encoder.W_enc.dtype) == (self._memory.device, self._memory.dtype)
            and not torch.is_grad_enabled()
        )


def encode(
    encoder: Encoder,
    x: Float[Tensor, "rows seq *d"],
    features: Int[Tensor, " n"] | None,
    name: str = "The encoder",
    room: Room | None = None,
) -> Float[Tensor, "rows seq n"]:
    """Activations in float32. Each one has the same bits whatever is encoded beside it.

    That holds because products are never smaller than 32 rows x 16 columns: smaller ones take other paths. With ``room``,
    they may be overwritten by what is encoded next.
    """
    n_rows, seq_len = x.shape[:2]
    padding = -(-MIN_PRODUCT_ROWS // seq_len) - n_rows
    if padding > 0:
        x = torch.cat([x, x[:1].expand(padding, *x.shape[1:])])
    n = encoder.d_hidden if features is None else len(features)
    if n < MIN_PRODUCT_COLUMNS:  # a whole dictionary may be as narrow
        features = torch.arange(n) if features is None else features
        # Never as many as there are: an encode that gives all of them, whatever is asked for, would not be noticed.
        more = MIN_PRODUCT_COLUMNS - n + (encoder.d_hidden == MIN_PRODUCT_COLUMNS)
        features = torch.cat([features, features[:1].expand(more)])
    shape = (*x.shape[:2], encoder.d_hidden if features is None else len(features))
    try:
        if room is not None and room.suits(encoder):
            acts = encoder.encode(x, features, out=room.of(*shape))
        else:
            acts = encoder.encode(x, features)
    except IndexError as error:
        raise ModelError(
            f"{name}'s encode raises IndexError ({error}). Has it as many features as its d_hidden, {encoder.d_hidden}, says?"
        ) from error
    except RuntimeError as error:
        if not _OTHER_FORMAT.search(str(error)):
            raise
        raise ModelError(
            f"{name}'s encode fails on x in the model's number format, {x.dtype} ({error}). It must convert x: "
            "x.to(self.W_enc.dtype)."
        ) from error
    _check_columns(acts, x, features, encoder.d_hidden, name)
    check_tensor(acts, f"{name}'s encode", shape)
    return acts[:n_rows, :, :n].float()


def _check_columns(acts: object, x: Tensor, features: Tensor | None, d_hidden: int, name: str) -> None:
    """Raise ``ModelError`` if there are not as many activations of each position as features were asked for."""
    asked = d_hidden if features is None else len(features)
    if not isinstance(acts, Tensor) or acts.shape[:-1] != x.shape[:2] or acts.shape[-1] == asked:
        return
    got = acts.shape[-1]
    if got == d_hidden:
        raise ModelError(f"{name}'s encode gave all {got} features when asked for some: return acts[..., features].")
    repeated = features is not None and len(set(features.tolist())) < asked
    raise ModelError(
        f"{name}'s encode gave {got} activations at each position when asked for {'all ' if features is None else ''}{asked} "
        f"features{' (some of them again and again)' if repeated else ''}: it must be one for each."
    )


def decoder_rows(encoder: Encoder, features: Int[Tensor, " n"]) -> Float[Tensor, "n d_out"]:
    """What one unit of each feature writes at the hook point, in float32, heads flattened."""
    rows = encoder.decoder_rows(features)
    check_tensor(rows, "The encoder's decoder_rows", (len(features), None))
    return rows.detach().float().flatten(1)


def write_scale(encoder: Encoder, x: Float[Tensor, "rows seq *d"]) -> Float[Tensor, "rows seq"] | None:
    """What the activations on ``x`` are multiplied with when they are written, in float32 on the CPU; None for 1."""
    own = getattr(encoder, "write_scale", None)
    if own is None:
        return None
    scale: Tensor = own(x)
    check_tensor(scale, "The encoder's write_scale", tuple(x.shape[:2]))
    return scale.detach().float().cpu()


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
    """What one pass over the tokens gives.

    ``features`` are those of this round. ``store`` holds them, and all others that they are to be correlated with;
    ``store_b`` the features of encoder B; ``neurons`` the products of this round's features with the neurons; ``kept``
    what stands at each of the plan's ``kept_hooks``.
    """

    features: Int[Tensor, " n"]
    store: ActivationStore
    store_b: ActivationStore | None
    neurons: WithDense | None
    kept: Mapping[str, Float[Tensor, "rows seq d_model"]]
    signed: bool

    def holds(self, wanted: Int[Tensor, " n"], stored: Int[Tensor, " m"], *, neurons: bool, b: bool) -> bool:
        """Whether it is enough for the wanted features: these stored, and the tables' other sides."""
        return (
            bool(torch.isin(stored, self.store.features).all())
            and bool(torch.isin(wanted, self.features).all())
            and (self.neurons is not None or not neurons)
            and (self.store_b is not None or not b)
        )

    def only(self, wanted: Int[Tensor, " n"], stored: Int[Tensor, " m"], *, neurons: bool, b: bool) -> Collected:
        """As if only these features had been wanted, only these stored, and only these tables asked for."""
        products = self.neurons.select(torch.searchsorted(self.features, wanted)) if neurons and self.neurons else None
        store_b = self.store_b if b else None
        return replace(self, features=wanted, store=self.store.only(stored), store_b=store_b, neurons=products)


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
    kept_hooks: tuple[str, ...] = ()
    one_round: bool = False

    def stored(self, encoder: Encoder, asked: Int[Tensor, " m"], wanted: Int[Tensor, " n"]) -> Int[Tensor, " k"]:
        """The features whose activations are kept: those that are wanted, and all that they are correlated with."""
        return {"all": torch.arange(encoder.d_hidden), "asked": asked}.get(self.correlate or "", wanted)


def collect(
    model: LanguageModel,
    encoder: Encoder,
    encoder_b: Encoder | None,
    tokens: Int[Tensor, "rows seq"],
    counted: Bool[Tensor, "rows seq"],
    features: Int[Tensor, " n"],
    asked: Int[Tensor, " m"],
    plan: CollectPlan,
    on_batch: Callable[[int, int, int], None] = lambda done, total, n_features: None,
) -> Iterator[Collected]:
    """Collect the features in as few rounds over the tokens as the memory budget allows: mostly one.

    ``features`` are those of all that were ``asked`` for whose data is wanted; with ``correlate="asked"`` they are correlated
    with all of these. Yields one ``Collected`` a round, of consecutive pieces of ``features``; the numbers of a feature do not
    depend on the rounds. Activations beyond the budget lie on disk; what makes more rounds is the products with the neurons.
    ``on_batch(rows done, rows in all, features in this round)`` reports progress.
    """
    for some in torch.split(features, _features_a_round(encoder, plan)):
        yield _one_pass(model, _Round(encoder, encoder_b, some, asked, counted, plan, model.device), tokens, on_batch)


def _one_pass(
    model: LanguageModel, round_: _Round, tokens: Tensor, on_batch: Callable[[int, int, int], None]
) -> Collected:
    """Run the model over the tokens, and give what the round collects of it."""
    plan, kept = round_.plan, dict[str, Tensor]()
    n_features = len(round_.features)
    size = _rows_a_batch(model, plan, n_features * round_.encoder.d_in, tokens.shape[1])
    with round_:
        for start in range(0, len(tokens), size):
            rows = slice(start, min(start + size, len(tokens)))
            captured = model.capture(tokens[rows], [plan.hook_point, *plan.kept_hooks])
            x = captured[plan.hook_point]
            check_finite(x, f"The activations at {plan.hook_point!r}", start)
            round_.add(x, rows)
            for name in plan.kept_hooks:
                if name not in kept:
                    kept[name] = captured[name].new_empty(*tokens.shape, *captured[name].shape[2:])
                kept[name][rows] = captured[name]
            on_batch(rows.stop, len(tokens), n_features)
        return round_.finish(kept)


def _features_a_round(encoder: Encoder, plan: CollectPlan) -> int:
    """As many as the budget holds products with the neurons of; all, where they are to be saved together."""
    if plan.one_round:
        return encoder.d_hidden
    by_memory = (
        max(1, plan.memory_bytes // SHARE_OF_PRODUCTS // (8 * encoder.d_in)) if plan.neurons else encoder.d_hidden
    )
    return min(by_memory, plan.max_features or by_memory)


def _rows_a_batch(model: LanguageModel, plan: CollectPlan, n_products: int, seq_len: int) -> int:
    """What the model runs together, but for many products with neurons: each batch goes over all of them."""
    if plan.neurons and n_products > MANY_PRODUCTS:
        return plan.minibatch_rows
    return min(plan.minibatch_rows, model.rows_a_pass(seq_len))


class _Round:
    """One pass over the tokens, whose temporary files are closed at its end, also when something goes wrong."""

    def __init__(
        self,
        encoder: Encoder,
        encoder_b: Encoder | None,
        features: Tensor,
        all_asked: Tensor,
        counted: Tensor,
        plan: CollectPlan,
        device: torch.device,
    ) -> None:
        self.encoder, self.encoder_b, self.features = encoder, encoder_b, features
        self.counted, self.plan = counted, plan
        stored = plan.stored(encoder, all_asked, features)
        self.store = StoreBuilder(stored, counted, plan.memory_bytes // SHARE_OF_STORE)
        self.store_b = None
        if encoder_b is not None:
            self.store_b = StoreBuilder(torch.arange(encoder_b.d_hidden), counted, plan.memory_bytes // SHARE_OF_STORE)
        device = torch.device("cpu") if device.type == "mps" else device  # MPS has no float64
        self.neurons = WithDense(len(features), encoder.d_in, device) if plan.neurons else None
        self.signed, self.room = False, Room()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        for store in (self.store, self.store_b):
            if store is not None:
                store.close()

    def add(self, x: Float[Tensor, "rows seq *d"], rows: slice) -> None:
        """Encode a batch of rows, keep what is not zero, add up the products with the neurons."""
        counted = self.counted[rows]
        active, signed = _encode(self.encoder, x, counted, rows.start, self.store, self.room, "The encoder")
        self.signed = self.signed or signed
        if self.neurons is not None:
            self._add_products(active, x, counted)
        if self.encoder_b is not None and self.store_b is not None:
            _encode(self.encoder_b, x, counted, rows.start, self.store_b, self.room, "encoder_B")

    def _add_products(self, active: list[Tensor], x: Tensor, counted: Tensor) -> None:
        neurons = self.neurons
        if neurons is None:
            return
        rows, columns, values = (part.to(neurons.device) for part in active)
        counted = counted.to(neurons.device).flatten()
        number = counted.cumsum(0) - 1  # of each position among those that count
        columns_of_x = SparseColumns.sorted_from(
            number[rows], columns, values, len(self.store.features), int(counted.sum())
        )
        if len(self.features) < len(self.store.features):
            columns_of_x = columns_of_x.select(
                torch.searchsorted(self.store.features, self.features).to(neurons.device)
            )
        # By numbers, not by the mask itself: that takes twice as long.
        neurons.add(
            columns_of_x, x.flatten(2).to(neurons.device).flatten(0, 1).index_select(0, counted.nonzero()[:, 0])
        )

    def finish(self, kept: Mapping[str, Tensor]) -> Collected:
        """What was collected."""
        store_b = None if self.store_b is None else self.store_b.finish()
        return Collected(self.features, self.store.finish(), store_b, self.neurons, kept, self.signed)


def _encode(
    encoder: Encoder, x: Tensor, counted: Tensor, first_row: int, store: StoreBuilder, room: Room, name: str
) -> tuple[list[Tensor], bool]:
    """Add the activations to the store. Gives rows, columns and values, and whether there were negative ones."""
    features = None if len(store.features) == encoder.d_hidden else store.features
    found, signed = [], False
    whose = "The activations of encoder_B" if name == "encoder_B" else f"{name}'s activations"
    seq_len, start = x.shape[1], 0
    for some in torch.split(x, max(1, ENCODED_BYTES // (4 * len(store.features) * seq_len))):
        for given in in_the_cache(encode(encoder, some, features, name, room)):
            lowest, highest = given.amin(), _block_maxima(given)
            if not bool(torch.isfinite(lowest + (given if highest is None else highest).amax())):
                check_finite(given, whose, first_row + start)
            negative = bool(lowest < 0)
            signed = signed or negative
            acts = given.clamp_min(0.0) if negative else given  # not in place: they may be the encoder's own
            row, column, value = active_ones(acts.flatten(0, 1), highest)
            counts = counted[start : start + len(acts)].to(acts.device).flatten()[row]
            found.append((row[counts] + start * seq_len, column[counts], value[counts]))
            start += len(acts)
    rows, columns, values = (torch.cat(parts) for parts in zip(*found, strict=True))
    store.add(rows + first_row * seq_len, columns, values)
    return [rows, columns, values], signed


def _block_maxima(acts: Float[Tensor, "rows seq n"]) -> Float[Tensor, " blocks"] | None:
    """The largest of each ``BLOCK`` activations that stand beside each other; None where they are not looked at so."""
    in_blocks = acts.device.type == "cpu" and acts.is_contiguous() and acts.numel() and not acts.numel() % BLOCK
    return acts.view(-1, BLOCK).amax(1) if in_blocks else None


def active_ones(
    acts: Float[Tensor, "p n"], highest: Float[Tensor, " blocks"] | None
) -> tuple[Int[Tensor, " k"], Int[Tensor, " k"], Float[Tensor, " k"]]:
    """Rows, columns and values of what is above zero, row by row; nothing may be below. ``highest``: their block maxima.

    ``nonzero`` of mostly zeros takes twice as long as to find the blocks that hold something, and look into these.
    """
    if highest is not None:
        some = (highest > 0).nonzero()[:, 0]
        if 2 * len(some) < len(highest):
            blocks = acts.view(-1, BLOCK)[some]
            block, within = blocks.nonzero().unbind(1)
            place = some[block] * BLOCK + within
            return place // acts.shape[1], place % acts.shape[1], blocks[block, within]
    row, column = acts.nonzero().unbind(1)
    return row, column, acts[row, column]
