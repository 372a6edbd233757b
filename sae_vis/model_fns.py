"""The model and the encoder, as the rest of the library sees them.

``AutoEncoder`` is our own sparse autoencoder, ``Encoder`` the protocol that any other one is adapted to, and
``LanguageModel`` the one thin wrapper around TransformerLens: it never imports it, and duck-types what it needs.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeGuard, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae_vis._errors import InputError, ModelError, check_path, cut, shown
from sae_vis._params import nearest
from sae_vis._products import fast_products, product

# Products of at least this many rows give each row the same bits whatever the other rows are; smaller ones do not.
MIN_PRODUCT_ROWS = 32
MIN_PRODUCT_COLUMNS = 16
COARSE = 4e-3  # the error of a product on an accelerator that rounds its inputs to ten bits
# In rows of a multiple of so many tokens, attention and activation functions give the same bits wherever the row stands in
# its batch; in others the matrices of attention begin at odd addresses, and vector instructions leave remainders.
ROW_MULTIPLE = 8

CACHED = 2**20  # numbers that a processor's caches hold
DIGEST_SAMPLE = 4096
MOST_ROWS = 2**31
CPU_TOKENS = 1024  # of a pass on a CPU: the arrays of more leave its caches, and each needs new memory from the system


# --- encoders ----------------------------------------------------------------------------------------------------


@runtime_checkable
class Encoder(Protocol):
    """What the library needs of a sparse autoencoder; adapt your own by giving it these.

    Optional, read with ``getattr``:

    - ``hook_point: str``, where it reads, used where ``FeatureVisParams`` names none.
    - ``hook_point_out: str``, where it writes, if elsewhere (a transcoder).
    - ``write_scale(x) -> [rows, seq]``, float32, for ``x`` as ``encode`` takes it: by what one unit of activation is
      multiplied when it is written, so that a feature of activation ``a`` writes ``a * write_scale * decoder_row``. An
      encoder that normalises its input and scales its output back has one (not 1) at every position.
    - ``digest() -> str``, which tells it from others of the same shape.
    - ``decoder_bias(x) -> [rows, seq, d_out]``, what is written where no feature is active, for ``x`` as ``encode`` takes
      it: needed to reconstruct a prompt. ``cannot_reconstruct: str``, if not empty, says why it cannot be done.
    """

    @property
    def d_in(self) -> int:
        """Width of the hook point (heads flattened)."""
        ...

    @property
    def d_hidden(self) -> int:
        """Number of features."""
        ...

    def encode(self, x: Tensor, features: Tensor | None = None) -> Tensor:
        """Activations ``[rows, seq, n]`` of the given features (None: all) on ``x`` ``[rows, seq, *d_in]``."""
        ...

    def decoder_rows(self, features: Tensor) -> Tensor:
        """What one unit of each feature writes at the hook point, ``[n, d_out]``."""
        ...


def in_the_cache(values: Float[Tensor, "n ..."]) -> Sequence[Float[Tensor, "m ..."]]:
    """The same numbers, so few rows at a time that a CPU goes over them several times, but reads them from memory once."""
    if values.device.type != "cpu" or values.requires_grad or not values.numel():
        return [values]  # gradients know no pieces that are changed in place
    return torch.split(values, max(1, CACHED * len(values) // values.numel()))


@dataclass(frozen=True)
class AutoEncoderConfig:
    """The shape of an ``AutoEncoder``: widths of the hook point and of the dictionary, and whether b_dec is subtracted."""

    d_in: int
    d_hidden: int
    apply_b_dec_to_input: bool = True

    def __post_init__(self) -> None:
        for name in ("d_in", "d_hidden"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"AutoEncoderConfig.{name} must be an int >= 1, got {value!r}.")
        subtracts = self.apply_b_dec_to_input
        if not isinstance(subtracts, bool):
            raise InputError(f"AutoEncoderConfig.apply_b_dec_to_input must be True or False, got {shown(subtracts)}.")


class AutoEncoder(nn.Module):
    """A sparse autoencoder: ``a = relu((x - b_dec) @ W_enc + b_enc)``, ``x ~ a @ W_dec + b_dec``.

    Shapes: ``W_enc [d_in, d_hidden]``, ``b_enc [d_hidden]``, ``W_dec [d_hidden, d_in]``, ``b_dec [d_in]``. With
    ``apply_b_dec_to_input=False`` the encoder does not subtract ``b_dec``.
    """

    def __init__(self, cfg: AutoEncoderConfig) -> None:
        super().__init__()
        self.cfg = cfg
        generator = torch.Generator("cpu").manual_seed(0)  # nothing global is touched
        decoder = torch.randn(cfg.d_hidden, cfg.d_in, generator=generator, device="cpu").to(torch.get_default_device())
        decoder /= decoder.norm(dim=-1, keepdim=True)
        self.W_enc = nn.Parameter(decoder.T.contiguous())
        self.b_enc = nn.Parameter(torch.zeros(cfg.d_hidden))
        self.W_dec = nn.Parameter(decoder)
        self.b_dec = nn.Parameter(torch.zeros(cfg.d_in))

    @property
    def d_in(self) -> int:
        """Width of the hook point."""
        return self.cfg.d_in

    @property
    def d_hidden(self) -> int:
        """Number of features."""
        return self.cfg.d_hidden

    def encode(
        self, x: Float[Tensor, "... d_in"], features: Tensor | None = None, *, out: Tensor | None = None
    ) -> Float[Tensor, "... n"]:
        """Activations of the given features (None: all), sliced before the product, so that few features cost little.

        The heads of ``hook_z`` (``[rows, seq, n_heads, d_head]``) are flattened. ``out``, of the result's shape, is where it
        is written: new memory for a whole dictionary costs a tenth of the product.

        Raises:
            InputError: if ``x`` has another width.
        """
        weight: Tensor = self.W_enc
        bias: Tensor = self.b_enc
        if features is not None:
            weight, bias = weight[:, features], bias[features]
        in_heads = x.ndim == 4 and (x.shape[-1] != self.d_in or x.shape[2] == 1)  # one head is as wide as all
        given, x = tuple(x.shape), rearrange(x, "... head d_head -> ... (head d_head)") if in_heads else x
        if x.shape[-1] != self.d_in:
            raise InputError(
                f"encode needs activations of width {self.d_in}, [rows, seq, {self.d_in}], got shape {given}."
            )
        x = x.to(weight)
        if self.cfg.apply_b_dec_to_input:
            x = x - self.b_dec
        acts = product(x, weight, out)
        for some in in_the_cache(acts.view(-1, len(bias))):
            some.add_(bias).relu_()
        return acts

    def decode(self, acts: Float[Tensor, "... d_hidden"]) -> Float[Tensor, "... d_in"]:
        """The reconstruction of ``x``."""
        return acts @ self.W_dec + self.b_dec

    def forward(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_in"]:
        """``decode(encode(x))``."""
        return self.decode(self.encode(x))

    def decoder_rows(self, features: Tensor) -> Float[Tensor, "n d_in"]:
        """What one unit of each feature writes at the hook point."""
        first, n = int(features[0]) if len(features) else 0, len(features)
        in_a_row = torch.equal(features.cpu(), torch.arange(first, first + n))
        return self.W_dec[first : first + n] if in_a_row else self.W_dec[features]  # a slice is no copy

    def digest(self) -> str:
        """Tells it from others: by its weights, and whether ``b_dec`` is subtracted."""
        setting = [] if self.cfg.apply_b_dec_to_input else [("apply_b_dec_to_input=False", torch.zeros(0))]
        return digest_tensors([*self.named_parameters(), *setting])

    def decoder_bias(self, x: Float[Tensor, "rows seq *d_in"]) -> Float[Tensor, "rows seq d_in"]:
        """What is written where no feature is active: ``b_dec``."""
        return self.b_dec.expand(*x.shape[:2], -1)

    def save(self, path: str | Path) -> None:
        """Write the weights and the configuration to one safetensors file.

        Raises:
            InputError: if it cannot be written.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        name = check_path(path)
        metadata = {name: str(value) for name, value in asdict(self.cfg).items()}
        # Copies: tensors that share memory cannot be written.
        weights = {name: weight.detach().cpu().contiguous().clone() for name, weight in self.state_dict().items()}
        try:
            save_file(weights, name, metadata=metadata)
        except (OSError, ValueError, SafetensorError) as error:
            raise InputError(f"Cannot write an AutoEncoder to {name!r}: {cut(str(error))}") from None

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> AutoEncoder:
        """Read what ``save`` wrote.

        Raises:
            InputError: if the file is missing, is no safetensors file, or holds other weights; if there is no such device.
        """
        from safetensors import SafetensorError, safe_open

        name, place = check_path(path), checked_device(device)
        try:
            with safe_open(name, framework="pt") as file:
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
                metadata = file.metadata() or {}
        except (OSError, ValueError, SafetensorError) as error:
            told = f"Cannot read an AutoEncoder from {name}: {cut(str(error))}"
            if isinstance(error, SafetensorError) and not name.endswith(".safetensors"):
                told += ". For a .pt file: AutoEncoder.from_weights(torch.load(path, weights_only=True))."
            raise InputError(told) from None
        subtracts = metadata.get("apply_b_dec_to_input", "True")
        if subtracts not in ("True", "False"):
            raise InputError(f"{name}: apply_b_dec_to_input must be True or False, got {shown(subtracts)}.")
        return cls.from_weights(weights, apply_b_dec_to_input=subtracts == "True").to(place)

    @classmethod
    def load_from_hf(cls, version: str | int = "run1", device: str | torch.device = "cpu") -> AutoEncoder:
        """One of Neel Nanda's autoencoders of the MLP of the model gelu-1l, from the Hugging Face hub or its local cache.

        Args:
            version: "run1" or "run2" (the last checkpoint of each run), or the name of another checkpoint of
                ``NeelNanda/sparse_autoencoder``, such as 25.
            device: where the weights go.

        Raises:
            InputError: if it cannot be had (no network, no such file), or is not what it should be.
        """
        if not isinstance(version, str | int) or isinstance(version, bool) or not str(version).strip():
            raise InputError(f"version must be {_known_runs()} or another checkpoint's name, got {version!r}.")
        place = checked_device(device)
        file = f"{_HUB_RUNS.get(str(version), version)}.pt"
        path = _from_hub(version, file)
        try:
            weights = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # noqa: BLE001 - a damaged archive or pickle raises almost anything
            raise InputError(
                f"{path} (checkpoint {version!r} of {_HUB}) is damaged, or no file of tensors "
                f"({type(error).__name__}). Remove it and load it again."
            ) from None
        try:
            return cls.from_weights(weights).to(place)
        except InputError as error:
            raise InputError(f"{path} (checkpoint {version!r} of {_HUB}): {error}") from None

    @classmethod
    def from_weights(cls, weights: dict[str, Tensor], apply_b_dec_to_input: bool = True) -> AutoEncoder:
        """An encoder of tensors named ``W_enc, b_enc, W_dec, b_dec`` (shapes as in the class).

        Raises:
            InputError: if a tensor is missing, one is too many, or a shape does not fit.
        """
        names = ("W_enc", "b_enc", "W_dec", "b_dec")
        if not isinstance(weights, dict):
            raise InputError(f"weights must be a dict of the tensors {', '.join(names)}, got {type(weights).__name__}.")
        if set(weights) != set(names):
            given = ", ".join(sorted(str(name) for name in weights)) or "none"
            raise InputError(f"An AutoEncoder needs the tensors {', '.join(names)}; got {cut(given)}.")
        for name, weight in weights.items():
            if not isinstance(weight, Tensor) or not weight.is_floating_point():
                got = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
                raise InputError(f"{name} must be a tensor of floating-point numbers, got {got}.")
        if weights["W_enc"].ndim != 2:
            raise InputError(f"W_enc must be [d_in, d_hidden], got shape {tuple(weights['W_enc'].shape)}.")
        _check_orientation(weights)
        d_in, d_hidden = weights["W_enc"].shape
        expected = {"W_enc": (d_in, d_hidden), "b_enc": (d_hidden,), "W_dec": (d_hidden, d_in), "b_dec": (d_in,)}
        for name, shape in expected.items():
            if tuple(weights[name].shape) != shape:
                raise InputError(f"{name} must have shape {shape} to fit W_enc, got {tuple(weights[name].shape)}.")
            if weights[name].is_meta or weights[name].layout != torch.strided:
                raise InputError(
                    f"{name} must be a dense tensor, got {weights[name].layout} on {weights[name].device}."
                )
        encoder = cls(AutoEncoderConfig(d_in, d_hidden, apply_b_dec_to_input))
        encoder.to(device=weights["W_enc"].device, dtype=weights["W_enc"].dtype)
        encoder.load_state_dict(weights)
        return encoder


def _check_orientation(weights: dict[str, Tensor]) -> None:
    """Raise ``InputError`` where the biases say that ``W_enc`` is turned round."""
    shape, d_hidden, d_in = tuple(weights["W_enc"].shape), weights["b_enc"].shape, weights["b_dec"].shape
    if shape == (*d_hidden, *d_in) and d_hidden != d_in:
        other = " and W_dec.T" if tuple(weights["W_dec"].shape) == (*d_in, *d_hidden) else ""
        raise InputError(
            f"W_enc is [d_hidden, d_in], as nn.Linear holds it (its shape is {shape}): pass W_enc.T{other}."
        )


_HUB = "NeelNanda/sparse_autoencoder"
_HUB_RUNS = {"run1": "25", "run2": "47"}  # the files are named by checkpoint


def _known_runs() -> str:
    return " or ".join(f'"{name}"' for name in _HUB_RUNS)


def _from_hub(version: str | int, file: str) -> str:
    """Where the file of the hub lies on this machine, downloaded if it has to be; every failure is one sentence."""
    wanted = f"The autoencoder {version!r} (file {file} of {_HUB}, known are {_known_runs()})"
    try:
        import huggingface_hub
    except ImportError:
        raise InputError(f"{wanted} needs the package huggingface_hub: pip install huggingface_hub.") from None
    try:
        return str(huggingface_hub.hf_hub_download(_HUB, file))
    except Exception as error:  # noqa: BLE001 - each version has an HTTP client with exceptions of its own
        names = {one.__name__ for one in type(error).__mro__}
        if "EntryNotFoundError" in names and "LocalEntryNotFoundError" not in names:
            raise InputError(f"{wanted} is not there: the repository has no such file.") from None
        raise InputError(
            f"{wanted} could not be had from the Hugging Face hub ({type(error).__name__}): it needs network access, or the "
            "file in the hub's local cache."
        ) from None


# --- hook points -------------------------------------------------------------------------------------------------

_HOOK_POINT = re.compile(
    r"blocks\.(\d+)\.(hook_resid_pre|hook_resid_mid|hook_resid_post|hook_mlp_out|hook_attn_out"
    r"|mlp\.hook_pre|mlp\.hook_post|attn\.hook_z)"
)
WRITES_TO_RESIDUAL = {"hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_mlp_out", "hook_attn_out"}
NO_PATH = {"mlp.hook_pre": "a nonlinearity stands between mlp.hook_pre and the residual stream"}


class HookPoint(NamedTuple):
    """A hook point's full name, and its layer and kind where they are known."""

    name: str
    layer: int | None
    kind: str | None

    @classmethod
    def parse(cls, name: str) -> HookPoint:
        """Layer and kind of a hook point of a transformer block; both None for any other."""
        match = _HOOK_POINT.fullmatch(name)
        return cls(name, int(match[1]), match[2]) if match else cls(name, None, None)

    @property
    def block(self) -> int | None:
        """The transformer block that it lies in, whatever its kind."""
        match = re.match(r"blocks\.(\d+)\.", self.name)
        return int(match[1]) if match else None


class WritePath(NamedTuple):
    """How the hook point writes to the residual stream: a matrix (None: as it is), or the reason why there is no map."""

    matrix: Tensor | None
    missing_because: str | None
    exact: bool


class FinalNorm(NamedTuple):
    """What the last normalisation does, probed: ``y = gain * (centre(x) / sqrt(mean(centre(x)^2) + eps)) + bias``.

    ``scales`` is False for a model without one.
    """

    centres: bool
    scales: bool
    gain: Tensor
    bias: Tensor
    eps: float


Change = Callable[[Tensor], Tensor]  # of the activations at a hook point
NO_CHANGES: Mapping[str, Change] = {}


class _Reached(Exception):  # noqa: N818 - not an error: it ends a forward pass at the hook
    """Raised by a hook to end the forward pass where nothing later is needed."""


def _setting(cfg: Any, name: str) -> int:
    """A size in the configuration of a model."""
    value = getattr(cfg, name, None)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelError(f"The model's cfg.{name} must be an int >= 1, got {shown(value)}.")
    return value


def _cap(value: Any) -> float:
    """The soft cap of the logits; 0 and less stand for none."""
    number = 0.0 if value is None else value
    if not isinstance(number, int | float) or not abs(number) < float("inf"):
        raise ModelError(f"The model's cfg.output_logits_soft_cap must be a finite number or None, got {shown(value)}.")
    return float(number)


class LanguageModel:
    """A TransformerLens model: run to a hook point, final residual stream, unembedding, tokenizer.

    Works with ``HookedTransformer`` and its subclasses (TransformerLens 2 and 3) and ``TransformerBridge`` (3 and 4);
    whatever has ``cfg``, ``hook_dict``, ``run_with_hooks``, ``ln_final``, ``unembed`` and ``W_U`` will do.

    Raises:
        ModelError: if the object lacks one of these, or has SAEs of SAELens attached to it.
    """

    def __init__(self, model: Any) -> None:
        needed = {"cfg", "hook_dict", "run_with_hooks", "ln_final", "unembed", "W_U", "blocks"}
        if getattr(getattr(model, "cfg", None), "normalization_type", "") is None:
            needed.remove("ln_final")  # a HookedTransformer without norms has none
        missing = sorted(name for name in needed if not hasattr(model, name))
        if missing:
            raise ModelError(
                f"{type(model).__name__} is not a TransformerLens model: it has no {', '.join(missing)}. Wrap it with "
                "TransformerBridge.boot_transformers(name, hf_model=your_model) first (TransformerLens 3 and 4), or load it "
                "with HookedTransformer.from_pretrained(name) (2 and 3)."
            )
        attached = getattr(model, "acts_to_saes", None)  # of sae_lens' HookedSAETransformer
        if attached:
            raise ModelError(
                f"{type(model).__name__} has SAEs attached at {', '.join(attached)}: they replace the activations there by "
                "their reconstructions. Take them off with model.reset_saes(), then pass the model."
            )
        self.model = model
        self.cfg = model.cfg
        self.n_layers = _setting(self.cfg, "n_layers")
        check_tensor(model.W_U, f"{type(model).__name__}.W_U", (None, None))
        if model.W_U.ndim != 2 or not model.W_U.is_floating_point() or not model.W_U.numel():
            raise ModelError(
                f"{type(model).__name__}.W_U must be [d_model, d_vocab] of floating-point numbers, got {model.W_U.dtype} of "
                f"shape {tuple(model.W_U.shape)}."
            )
        self.d_model, self.d_vocab = (int(n) for n in model.W_U.shape)
        self.n_ctx = _setting(self.cfg, "n_ctx")
        self.tokenizer = getattr(model, "tokenizer", None)
        self.name = str(getattr(self.cfg, "model_name", None) or type(model).__name__)
        self.device = model.W_U.device
        self.soft_cap = _cap(getattr(self.cfg, "output_logits_soft_cap", None))
        # Whether what attention writes reaches the end of its block as it is, with no MLP that reads it on the way.
        self.parallel = any(bool(getattr(self.cfg, name, False)) for name in ("parallel_attn_mlp", "attn_only"))
        self.final_hook = f"blocks.{self.n_layers - 1}.hook_resid_post"

    # -- running --

    @contextmanager
    def as_for_inference(self) -> Iterator[None]:
        """Evaluation mode without gradients; each module's training flag and the gradient mode come back afterwards.

        So do automatic mixed precision and torch's default number format, which would change what is computed here.
        """
        wrapped = getattr(self.model, "original_model", None)  # which the bridge does not register as a part of itself
        parts = [*self.model.modules(), *(wrapped.modules() if isinstance(wrapped, nn.Module) else ())]
        in_training = [module for module in parts if module.training]
        for module in in_training:
            module.training = False
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                yield
        finally:
            torch.set_default_dtype(default)
            for module in in_training:
                module.training = True

    def check_hook_point(self, name: str) -> HookPoint:
        """The hook point of this name; it is of the kind of any other name that the model has for it.

        Raises:
            ModelError: with the nearest names, if the model has no such hook point.
        """
        known = self.model.hook_dict
        if name not in known:
            similar = nearest(name, known) or ["blocks.0.mlp.hook_post", "blocks.0.hook_resid_pre"]
            raise ModelError(f"Model {self.name!r} has no hook point {name!r}. Nearest names: {', '.join(similar)}.")
        point, own = HookPoint.parse(name), known[name]
        if point.kind is None and own is not None:  # a bridge knows one hook by several names
            same = [HookPoint.parse(other) for other, hook in known.items() if hook is own]
            point = next((other._replace(name=name) for other in same if other.kind), point)
        return point

    def activations(self, tokens: Int[Tensor, "rows seq"], hook_point: str) -> Float[Tensor, "rows seq *d"]:
        """The activations at a hook point; nothing after it is run.

        Raises:
            ModelError: if the hook point never fires.
        """
        return self.capture(tokens, [hook_point])[hook_point]

    def capture(
        self, tokens: Int[Tensor, "rows seq"], names: Sequence[str], changes: Mapping[str, Change] = NO_CHANGES
    ) -> dict[str, Float[Tensor, "rows seq *d"]]:
        """The activations at some hook points, with some changed on the way; nothing after the last of them is run.

        A change gets the activations ``[rows or more, seq or longer, *d]`` and gives what goes on in their place.

        Raises:
            ModelError: if one of the hook points never fires.
        """
        n_rows, seq_len = tokens.shape
        most = self.rows_a_pass(seq_len)
        if n_rows > most and not changes:
            parts = [self.capture(some, names) for some in torch.split(tokens, most)]
            return {name: torch.cat([part[name] for part in parts]) for name in names}
        captured: dict[str, Tensor] = {}

        def hook_at(name: str) -> Callable[[Tensor], Tensor | None]:
            def run(value: Tensor) -> Tensor | None:
                check_tensor(value, f"The hook point {name!r}", (n_rows, seq_len, None), more=True)
                if not value.is_floating_point():
                    raise ModelError(f"The hook point {name!r} gives {value.dtype}, not floating-point activations.")
                changed = changes[name](value) if name in changes else None
                if name in names:
                    kept = (value if changed is None else changed).detach()[:n_rows, :seq_len].contiguous()
                    captured[name] = kept
                    if len(captured) == len(set(names)):
                        raise _Reached
                    captured[name] = kept.clone()  # the model runs on, and may write over it
                return changed

            return run

        self._run(tokens, {name: hook_at(name) for name in dict.fromkeys([*changes, *names])})
        missing = [name for name in names if name not in captured]
        if missing:
            raise ModelError(
                f"The hook point {missing[0]!r} exists on {self.name!r} but never fired in a forward pass. Some need to be "
                "switched on (e.g. model.set_use_attn_result(True)); otherwise choose another."
            )
        return captured

    def final_residual(self, tokens: Int[Tensor, "rows seq"]) -> Float[Tensor, "rows seq d_model"]:
        """The residual stream after the last block."""
        return self.activations(tokens, self.final_hook)

    def logits(
        self, tokens: Int[Tensor, "rows seq"], changes: Mapping[str, Change] = NO_CHANGES
    ) -> Float[Tensor, "rows seq d_vocab"]:
        """The model's own logits, in float32, with some activations changed on the way."""
        logits: Tensor = self._run(tokens, dict(changes), return_type="logits")
        n_rows, seq_len = tokens.shape
        shape = (n_rows, seq_len, self.d_vocab)
        check_tensor(logits, "The model's forward pass (return_type='logits')", shape, more=True)
        return logits[:n_rows, :seq_len, : self.d_vocab].float()

    def _run(self, tokens: Tensor, hooks: dict[str, Callable[[Tensor], Any]], return_type: str | None = None) -> Any:
        """A forward pass with hooks, until it ends or a hook raises ``_Reached``, and what it gives.

        Hooks and results may have padding rows at the end, and padding tokens behind each row.
        """
        tokens = self._padded(tokens)
        # TransformerLens passes the hook point as a keyword; its name may be an alias, so nothing here reads it.
        fwd_hooks = [(name, lambda value, hook=None, run=run: run(value)) for name, run in hooks.items()]
        try:
            with fast_products():
                return self.model.run_with_hooks(tokens.to(self.device), fwd_hooks=fwd_hooks, return_type=return_type)
        except _Reached:
            return None
        except (AssertionError, ValueError) as error:  # by version of TransformerLens
            if not str(error).startswith("Cannot add hook"):
                raise
            raise ModelError(f"The hook point {' or '.join(hooks)} has to be switched on: {error}") from None

    def rows_a_pass(self, seq_len: int) -> int:
        """How many rows of this length are worth running together, at most."""
        return max(1, CPU_TOKENS // max(1, seq_len)) if self.device.type == "cpu" else MOST_ROWS

    @property
    def causal(self) -> bool:
        """Whether each token sees only those before it."""
        return getattr(self.cfg, "attention_dir", None) == "causal"

    def padded_length(self, seq_len: int) -> int:
        """How long rows of this many tokens are when they are run."""
        longer = -(-seq_len // ROW_MULTIPLE) * ROW_MULTIPLE
        return longer if self.causal and longer <= self.n_ctx else seq_len

    def _padded(self, tokens: Int[Tensor, "rows seq"]) -> Int[Tensor, "more_rows more_seq"]:
        """More rows and longer rows, so that a row's own numbers have the same bits in every batch.

        Where each token sees those before it only, what stands behind the row changes nothing in it.
        """
        missing = self.padded_length(tokens.shape[1]) - tokens.shape[1]
        if missing:
            # No padding token: where the tokenizer pads on the left, HookedTransformer masks those that begin a row.
            behind = torch.full((len(tokens), missing), int(self.padding_id() == 0)).to(tokens)
            tokens = torch.cat([tokens, behind], 1)
        n_rows, seq_len = tokens.shape
        missing = -(-MIN_PRODUCT_ROWS // seq_len) - n_rows
        return torch.cat([tokens, tokens[:1].expand(missing, -1)]) if missing > 0 else tokens

    # -- from the residual stream to the logits --

    def final_norm(self) -> FinalNorm:
        """Probe the last normalisation: what it does is read off its outputs, never off names or the configuration."""
        width = self.d_model
        probe = torch.ones(width, device=self.device)
        probe[1::2] = -1.0
        if width % 2 and width >= 3:
            probe[-3:] = torch.tensor([2.0, -1.0, -1.0], device=self.device)  # mean zero for an odd width too
        mean_square = float(probe.square().mean())

        def odd_and_even(x: Tensor) -> tuple[Tensor, Tensor]:
            plus, minus = self._apply_norm(x), self._apply_norm(-x)
            return (plus - minus) / 2, (plus + minus) / 2

        # Powers of two are the same in every number format, and a mean of them has no rounding error to be blown up.
        much, little = 2.0**13, 2.0**-10
        large, bias = odd_and_even(much * probe)  # so large that eps does not count
        larger, _ = odd_and_even(2 * much * probe)
        if torch.allclose(larger, 2 * large, rtol=1e-2):
            return FinalNorm(False, False, large / (much * probe), bias, 0.0)
        gain = large / probe * mean_square**0.5
        shifted, _ = odd_and_even(much * (probe + 1.0))
        centres = bool((shifted - large).abs().max() < 0.1 * gain.abs().max())
        small, _ = odd_and_even(little * probe)
        strongest = gain.abs().argmax()
        ratio = float(small[strongest] / (gain[strongest] * probe[strongest]))  # = s / sqrt(s^2 * mean_square + eps)
        eps = max(0.0, little**2 / ratio**2 - little**2 * mean_square) if ratio else 0.0
        return FinalNorm(centres, True, gain, bias, eps)

    def _apply_norm(self, x: Float[Tensor, " d_model"]) -> Float[Tensor, " d_model"]:
        dtype = self.model.W_U.dtype
        return self._normed(x.to(dtype)[None, None]).detach()[0, 0].float()

    def _normed(self, residual: Float[Tensor, "rows seq d_model"]) -> Float[Tensor, "rows seq d_model"]:
        norm = getattr(self.model, "ln_final", None)
        return residual if norm is None else norm(residual)

    def unembedding(self) -> tuple[Float[Tensor, "d_model d_vocab"], Float[Tensor, " d_vocab"]]:
        """``W_U`` and ``b_U`` (zeros where there is none), in float32."""
        weight = self.model.W_U.detach().float()
        bias = getattr(self.model, "b_U", None)
        if bias is None:
            bias = torch.zeros_like(weight[0])
        check_tensor(bias, "The model's b_U", (self.d_vocab,))
        bias = bias.detach().float()
        for name, values in (("W_U", weight), ("b_U", bias)):
            # A finite sum rules both out, and takes a tenth of the time.
            if not bool(torch.isfinite(values.sum())) and not bool(torch.isfinite(values).all()):
                raise ModelError(
                    f"The model's {name} holds NaN or infinity. Check its weights and their number format."
                )
        return weight, bias

    def logits_from_residual(self, residual: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_vocab"]:
        """The model's own norm and unembedding, with the soft cap that some models put behind them; float32."""
        dtype = self.model.W_U.dtype
        with fast_products():
            logits: Tensor = self.model.unembed(self._normed(residual.to(dtype)[None]))[0].float()
        return soft_cap(logits, self.soft_cap)

    # -- from the hook point to the residual stream --

    def write_path(self, hook_point: HookPoint, tokens: Int[Tensor, "rows seq"]) -> WritePath:
        """How the hook point writes to the residual stream, checked by a small perturbation of a real forward pass."""
        layer, kind = hook_point.layer, hook_point.kind
        if layer is None or kind is None:
            return WritePath(None, f"no map from {hook_point.name} to the residual stream is known", False)
        if kind in NO_PATH:
            return WritePath(None, NO_PATH[kind], False)
        last = layer == self.n_layers - 1
        ends_block = kind in ("mlp.hook_post", "hook_mlp_out", "hook_resid_post")
        from_attention = kind in ("attn.hook_z", "hook_attn_out")
        exact = last and (ends_block or (from_attention and self.parallel))
        matrix = None if kind in WRITES_TO_RESIDUAL else self._output_matrix(layer, kind)
        if kind.startswith("hook_resid"):
            return WritePath(None, None, exact)
        mid = f"blocks.{layer}.hook_resid_mid"
        read_at = mid if from_attention and not self.parallel and mid in self.model.hook_dict else None
        error = self._perturbation_error(hook_point.name, read_at or f"blocks.{layer}.hook_resid_post", matrix, tokens)
        if not error <= 1e-2:  # NaN is no small error
            reason = (
                f"something (such as a norm) stands between {hook_point.name} and the residual stream: a small change there "
                f"does not arrive as the weights say (relative error {error:.2g})"
            )
            return WritePath(None, reason, False)
        return WritePath(matrix, None, exact)

    def _output_matrix(self, layer: int, kind: str) -> Tensor:
        block = self.model.blocks[layer]
        weight = block.mlp.W_out if kind == "mlp.hook_post" else block.attn.W_O
        matrix: Tensor = weight.detach().float()
        return matrix if matrix.ndim == 2 else rearrange(matrix, "head d_head d_model -> (head d_head) d_model")

    def _perturbation_error(self, hook_point: str, read_at: str, matrix: Tensor | None, tokens: Tensor) -> float:
        """How far the change at ``read_at`` is from ``change @ matrix``, relative to it.

        The change is as large as what stands there, so that rounding in half precision cannot hide it; the map is linear,
        or it is none.
        """
        row = tokens[:1]
        captured = self.capture(row, [hook_point, read_at])
        plain, before = captured[hook_point], captured[read_at].float()
        generator = torch.Generator().manual_seed(0)
        change = torch.randn(plain.shape, generator=generator, device="cpu").to(self.device)

        def expected() -> Tensor:
            flat = change.reshape(*change.shape[:2], -1)
            return flat if matrix is None else flat @ matrix

        if expected().shape != before.shape:
            return float("inf")
        change *= (before.norm() / expected().norm().clamp_min(1e-12)).clamp_min(1e-3)
        change = change.to(plain.dtype).float()

        def add(value: Tensor) -> Tensor:
            changed = value.clone()
            changed[:, : change.shape[1]] += change.to(value.dtype)
            return changed

        after = self.capture(row, [read_at], {hook_point: add})[read_at].float()
        return float((after - before - expected()).norm() / expected().norm().clamp_min(1e-12))

    def writes_centred(self) -> bool:
        """Whether what the first block writes has mean zero over the residual stream, as exactly as processing leaves it."""
        block = self.model.blocks[0]
        weight = getattr(getattr(block, "mlp", None), "W_out", None)
        if not isinstance(weight, Tensor):  # a block without an MLP
            weight = getattr(getattr(block, "attn", None), "W_O", None)
        if not isinstance(weight, Tensor):
            return False
        largest = max(1e-5, torch.finfo(weight.dtype).eps)  # half precision rounds what was centred
        weight = weight.detach().float()
        return bool(weight.mean(-1).abs().max() < largest * weight.std())

    def value_biases_folded(self) -> bool:
        """Whether the first block's value biases are zero and its output bias is not, as processing leaves them."""
        attention = getattr(self.model.blocks[0], "attn", None)
        biases = [getattr(attention, name, None) for name in ("b_V", "b_O")]
        value, output = (bool(b.detach().any()) if isinstance(b, Tensor) else None for b in biases)
        return value is False and output is True

    def neurons_end_in_a_norm(self) -> bool:
        """Whether ``mlp.hook_post`` lies behind a norm (``act_fn="solu_ln"``), whose weights processing folds away."""
        return str(getattr(self.cfg, "act_fn", "")).endswith("_ln")

    # -- identity --

    def special_token_ids(self) -> tuple[int, ...]:
        """The tokenizer's BOS, EOS and padding ids."""
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        return tuple(sorted({i for i in map(self._token_id, names) if i is not None}))

    def padding_id(self) -> int | None:
        """The tokenizer's padding id."""
        return self._token_id("pad_token_id")

    def own_padding_id(self) -> int | None:
        """The tokenizer's padding id, unless the same token begins or ends texts, where it is no sign of padding."""
        padding = self.padding_id()
        return None if padding in (self.bos_id(), self._token_id("eos_token_id")) else padding

    def bos_id(self) -> int | None:
        """The id that the tokenizer begins a text with."""
        return self._token_id("bos_token_id")

    def _token_id(self, name: str) -> int | None:
        value = getattr(self.tokenizer, name, None)
        return value if _is_token_id(value) else None

    def digest(self) -> str:
        """A digest of a sample of every parameter."""
        return digest_tensors((name, weight) for name, weight in self.model.named_parameters())


def checked_device(device: str | torch.device) -> torch.device:
    """The device, if something can be put there.

    Raises:
        InputError: if it is none, or is not there.
    """
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:  # by device, and by how torch was built
        raise InputError(f"The device {device!r} cannot be used: {str(error).partition(chr(10))[0]}") from None


def _is_token_id(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def check_tensor(value: Any, what: str, shape: tuple[int | None, ...], more: bool = False) -> None:
    """Raise ``ModelError`` unless ``value`` is a dense tensor of real numbers of this shape.

    None stands for any size, of one dimension or several at the end of the shape; with ``more`` the sizes are the least.
    """
    told = f"[{', '.join('...' if size is None else str(size) for size in shape)}]"
    if not isinstance(value, Tensor):
        raise ModelError(
            f"{what} must be a tensor {told}, got {shown(value) if value is None else type(value).__name__}."
        )
    fits = len(value.shape) >= len(shape) if shape[-1] is None else len(value.shape) == len(shape)
    for size, wanted in zip(value.shape, shape, strict=False):
        fits = fits and (wanted is None or size == wanted or (more and size > wanted))
    if not fits:
        raise ModelError(f"{what} must be a tensor {told}, got one of shape {tuple(value.shape)}.")
    if value.is_meta or value.layout != torch.strided or value.is_complex():
        raise ModelError(
            f"{what} must give a dense tensor of real numbers, got {value.dtype} with layout {value.layout} on {value.device}."
        )


def steady_product(a: Float[Tensor, "n k"], b: Float[Tensor, "k m"]) -> Float[Tensor, "n m"]:
    """``a @ b``, each row with the same bits whatever the other rows are."""
    n, m = len(a), b.shape[1]
    missing = MIN_PRODUCT_ROWS - n if n else 0
    if missing > 0:
        a = torch.cat([a, a[:1].expand(missing, -1)])
    if m < MIN_PRODUCT_COLUMNS:
        b = nn.functional.pad(b, (0, MIN_PRODUCT_COLUMNS - m))
    return product(a, b)[:n, :m].contiguous()


def product_error(width: int, device: torch.device) -> float:
    """What a float32 product of two vectors of this width may be off, as a share of the product of their lengths."""
    error = 2 * (width + 8) * torch.finfo(torch.float32).eps
    return error if device.type == "cpu" else max(error, COARSE)


def soft_cap(logits: Tensor, cap: float) -> Tensor:
    """``cap * tanh(logits / cap)``, as Gemma 2 bounds its logits; unchanged for ``cap <= 0``."""
    return cap * torch.tanh(logits / cap) if cap > 0 else logits


def digest_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """A digest of names, shapes, types and an evenly spaced sample of values of ``(name, tensor)`` pairs."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // DIGEST_SAMPLE)]
        digest.update(sample.double().cpu().numpy().tobytes())
    return digest.hexdigest()
