"""The autoencoders of SAELens, as objects of that library or as the folders it saves, without importing it.

An encoder here is settings (what ``cfg.json`` says) and tensors. The pure functions below encode as the library does, sliced
to the features that are asked for. An object is tried on a few vectors: where its own ``encode`` gives something else
(hooks, a changed activation function, a class of somebody's own), that is used instead, whole.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae_vis._errors import InputError, ModelError, shown
from sae_vis.model_fns import checked_device, digest_tensors

CONFIG_FILE, WEIGHTS_FILE = "cfg.json", "sae_weights.safetensors"
Weights = Mapping[str, Tensor]

_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in ("float32", "float64", "float16", "bfloat16")}
_LAYER_NORM_EPS = 1e-5


# --- the activation functions --------------------------------------------------------------------------------------
# Each takes input that is normalised and shifted already, and tensors whose last axis is that of the features.


def _relu(x: Tensor, w: Weights, settings: Settings) -> Tensor:
    return torch.relu(x @ w["W_enc"] + w["b_enc"])


def _jump_relu(x: Tensor, w: Weights, settings: Settings) -> Tensor:
    before = x @ w["W_enc"] + w["b_enc"]
    return torch.relu(before) * (before > w["threshold"]).to(before.dtype)


def _gated(x: Tensor, w: Weights, settings: Settings) -> Tensor:
    open_ = (x @ w["W_enc"] + w["b_gate"] > 0).to(x.dtype)
    return open_ * torch.relu(x @ (w["W_enc"] * w["r_mag"].exp()) + w["b_mag"])


def _before_top_k(x: Tensor, w: Weights, settings: Settings) -> Tensor:
    before = x @ w["W_enc"] + w["b_enc"]
    return before * w["W_dec"].norm(dim=-1) if settings.rescales else before


def _top_k(x: Tensor, w: Weights, settings: Settings) -> Tensor:
    before = _before_top_k(x, w, settings)
    values, places = torch.topk(before, settings.k, dim=-1, sorted=False)
    return torch.zeros_like(before).scatter_(-1, places, values.relu())


def _abs_top_k(x: Tensor, w: Weights, settings: Settings) -> Tensor:
    before = _before_top_k(x, w, settings)
    places = torch.topk(before.abs(), settings.k, dim=-1, sorted=False).indices
    return torch.zeros_like(before).scatter_(-1, places, before.gather(-1, places))


# --- architectures -------------------------------------------------------------------------------------------------


class Kind(NamedTuple):
    """An architecture: its tensors beside ``W_enc, W_dec, b_dec``, how it encodes, and what sets it apart."""

    beside: tuple[str, ...]
    encode: Callable[[Tensor, Weights, Settings], Tensor]
    whole: bool = False  # a feature depends on the others, so all are encoded
    transcodes: bool = False  # writes elsewhere than it reads: b_dec is not subtracted, nothing is scaled back
    skips: bool = False

    @property
    def tensors(self) -> tuple[str, ...]:
        """What it encodes and decodes with."""
        return ("W_enc", *self.beside, "W_dec", "b_dec")


KINDS = {
    "standard": Kind(("b_enc",), _relu),
    "gated": Kind(("b_gate", "r_mag", "b_mag"), _gated),
    "jumprelu": Kind(("b_enc", "threshold"), _jump_relu),
    "topk": Kind(("b_enc",), _top_k, whole=True),
    "abstopk": Kind(("b_enc",), _abs_top_k, whole=True),
    "transcoder": Kind(("b_enc",), _relu, transcodes=True),
    "skip_transcoder": Kind(("b_enc",), _relu, transcodes=True, skips=True),
    "jumprelu_transcoder": Kind(("b_enc", "threshold"), _jump_relu, transcodes=True),
    "jumprelu_skip_transcoder": Kind(("b_enc", "threshold"), _jump_relu, transcodes=True, skips=True),
}
_OF_THE_BATCH = ("batchtopk", "matryoshka_batchtopk")
_SCALED_BACK = ("none", "layer_norm", "constant_norm_rescale")
_UNFOLDED = {
    "expected_average_only_in": "Call sae.fold_activation_norm_scaling_factor(factor) first (on a copy, to keep yours), or load "
    "the folder with load_sae_lens(folder, scaling_factor=factor); the factor 1.0 takes the weights as they are.",
    "covariance_whitening": "Call sae.fold_activation_whitening(mean, matrix, inverse_matrix) first (on a copy, to keep yours); "
    "a folder is loaded with SAELens, folded and saved again.",
}


@dataclass(frozen=True)
class Settings:
    """What the configuration of a SAELens autoencoder says, as far as it matters here."""

    architecture: str
    dtype: torch.dtype | None
    subtracts_b_dec: bool
    normalizes: str
    scalar: float
    k: int
    rescales: bool
    hook_point: str | None
    hook_point_out: str | None

    @property
    def kind(self) -> Kind | None:
        """How it encodes; None where only its own object can."""
        return KINDS.get(self.architecture)

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors that are needed of it."""
        return ("W_dec", "b_dec") if self.kind is None else self.kind.tensors

    @classmethod
    def of(cls, config: Mapping[str, Any], where: str) -> Settings:
        """Read a configuration: the nested one of SAELens 6, or the flat one of the versions before it.

        Raises:
            InputError: if it holds something that cannot be.
            ModelError: if the autoencoder cannot be used, with the way out.
        """
        config = _as_of_version_6(config, where)
        metadata = config.get("metadata")
        metadata = metadata if isinstance(metadata, Mapping) else {}
        architecture = _value(config, "architecture", str, "standard", where)
        kind = KINDS.get(architecture)
        transcodes = kind is not None and kind.transcodes
        is_top_k = kind is not None and kind.whole
        subtracts = _value(config, "apply_b_dec_to_input", bool, not transcodes, where)
        if transcodes and subtracts:
            raise InputError(f"{where}: a transcoder cannot have apply_b_dec_to_input=True, for it writes elsewhere.")
        _refuse_unusable(architecture, metadata, where)
        normalizes = _value(config, "normalize_activations", str, "none", where)
        known = (*_SCALED_BACK, *_UNFOLDED, *(("constant_scalar_rescale",) if architecture == "temporal" else ()))
        if normalizes not in known:
            raise ModelError(
                f"{where}: normalize_activations={shown(normalizes)} is unknown; expected one of {', '.join(known)}."
            )
        return cls(
            architecture=architecture,
            dtype=_dtype(config.get("dtype"), where),
            subtracts_b_dec=subtracts,
            normalizes=normalizes,
            scalar=_scalar(config, where) if architecture == "temporal" else 1.0,
            k=_value(config, "k", int, 0, where) if is_top_k else 0,
            rescales=is_top_k and _value(config, "rescale_acts_by_decoder_norm", bool, False, where),
            hook_point=_value(metadata, "hook_name", (str, type(None)), None, where) or None,
            hook_point_out=_value(metadata, "hook_name_out", (str, type(None)), None, where) or None,
        )


def _value(config: Mapping[str, Any], name: str, kind: Any, default: Any, where: str) -> Any:
    value = config.get(name, default)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        names = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
        raise InputError(f"{where}: {name} must be {names}, got {shown(value)}.")
    return value


def _scalar(config: Mapping[str, Any], where: str) -> float:
    name = "activation_normalization_factor"
    value = _value(config, name, (int, float), 1.0, where)
    if not 1e-30 < value < 1e30:
        raise InputError(f"{where}: {name} must be a positive number between 1e-30 and 1e30, got {shown(value)}.")
    return float(value)


def _dtype(value: object, where: str) -> torch.dtype | None:
    if value is None:
        return None
    dtype = _DTYPES.get(str(value).removeprefix("torch."))
    if dtype is None:
        raise InputError(f"{where}: dtype must be one of {', '.join(_DTYPES)}, got {shown(value)}.")
    return dtype


def _refuse_unusable(architecture: str, metadata: Mapping[str, Any], where: str) -> None:
    if architecture in _OF_THE_BATCH:
        raise ModelError(
            f"{where}: {architecture!r} as it is in training: its activations depend on the rest of the batch. Save what it is "
            "at inference with sae.save_inference_model(folder), and give that folder."
        )
    for name in ("hook_head_index", "hook_head_index_out"):
        if metadata.get(name) is not None:
            raise ModelError(
                f"{where} reads or writes a single head ({name}={shown(metadata[name])}), and a hook point holds them all. Put "
                "its weights at that head's place, with zeros for the others, into AutoEncoder.from_weights."
            )


_RENAMED = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index", "activation_fn_str": "activation_fn"}


def _as_of_version_6(config: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The configuration as it is since SAELens 6, which has a part ``metadata`` and no choice of activation function."""
    metadata = config.get("metadata")
    version = config.get("sae_lens_version") or (isinstance(metadata, Mapping) and metadata.get("sae_lens_version"))
    major = version.partition(".")[0] if isinstance(version, str) else ""
    if re.fullmatch("[0-9]{1,9}", major) and int(major) >= 6:
        return config
    flat = {_RENAMED.get(name, name): value for name, value in config.items()}
    if isinstance(metadata, Mapping):
        flat = {**metadata, **flat}
    activation = flat.get("activation_fn", "relu")
    if activation == "topk":
        options = flat.get("activation_fn_kwargs")
        flat["architecture"] = "topk"
        flat["k"] = options.get("k") if isinstance(options, Mapping) else None
    elif activation != "relu":
        raise ModelError(f"{where}: the activation function {shown(activation)} is unknown; expected relu or topk.")
    normalizes = flat.get("normalize_activations") or "none"
    flat["normalize_activations"] = "expected_average_only_in" if normalizes is True else normalizes
    return {**flat, "metadata": flat}


# --- the encoder ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class SaeLensEncoder:
    """An autoencoder of SAELens behind the ``Encoder`` protocol. Its tensors are shared with the object, if there is one.

    ReLU, JumpReLU and gated encoders cost what the features asked for cost; TopK always encodes whole, and so does
    ``own_encode``, the object's own way, where it is given.
    """

    settings: Settings
    tensors: Weights
    dtype: torch.dtype
    own_encode: Callable[[Tensor], Tensor] | None = None
    own_tensors: Weights = field(default_factory=dict)  # all that the object holds, where it encodes in its own way
    skip: Tensor | None = None

    @property
    def d_in(self) -> int:
        """Width of the hook point that it reads."""
        encoder = self.tensors.get("W_enc")
        return self.tensors["W_dec"].shape[1] if encoder is None else encoder.shape[0]

    @property
    def d_hidden(self) -> int:
        """Number of features."""
        return self.tensors["W_dec"].shape[0]

    @property
    def hook_point(self) -> str | None:
        """Where it reads, as its metadata says."""
        return self.settings.hook_point

    @property
    def hook_point_out(self) -> str | None:
        """Where it writes, if elsewhere."""
        return self.settings.hook_point_out if self._transcodes else None

    @property
    def _transcodes(self) -> bool:
        return self.settings.kind is not None and self.settings.kind.transcodes

    @torch.no_grad()
    def encode(
        self, x: Float[Tensor, "rows seq *d_in"], features: Int[Tensor, " n"] | None = None
    ) -> Float[Tensor, "rows seq n"]:
        """Activations of the given features (None: all), in the autoencoder's number format; heads are flattened."""
        kind, weights = self.settings.kind, self.tensors
        x = self._typed(x)
        if kind is None or self.own_encode is not None:
            acts = self._in_its_own_way(x)
            return acts if features is None else acts[..., features]
        x, _ = normalized(x, self.settings)
        if self.settings.subtracts_b_dec:
            x = x - weights["b_dec"]
        if features is None or kind.whole:
            acts = kind.encode(x, weights, self.settings)
            return acts if features is None else acts[..., features]
        return kind.encode(x, {name: weights[name][..., features] for name in ("W_enc", *kind.beside)}, self.settings)

    @torch.no_grad()
    def decoder_rows(self, features: Int[Tensor, " n"]) -> Float[Tensor, "n d_out"]:
        """What one unit of each feature writes, before ``write_scale``; float32."""
        rows = self.tensors["W_dec"][features].float()
        if not self.settings.rescales:
            return rows
        norms = rows.norm(dim=-1, keepdim=True)
        return rows / torch.where(norms > 0, norms, 1.0)

    @torch.no_grad()
    def write_scale(self, x: Float[Tensor, "rows seq *d_in"]) -> Float[Tensor, "rows seq"]:
        """By what one unit of activation is multiplied when it is written, where ``x`` is read; float32.

        It is what normalising took away: the standard deviation for ``layer_norm``, ``|x| / sqrt(d_in)`` for
        ``constant_norm_rescale``, else 1. A transcoder writes as it is.
        """
        x = self._typed(x)
        if self._transcodes:
            return torch.ones(x.shape[:2], device=x.device)
        _, scale = normalized(x, self.settings)
        return scale.float()

    @property
    def cannot_reconstruct(self) -> str:
        """Why what it writes is more than its features and a bias; empty where it is not."""
        kind = self.settings.kind
        if kind is None:
            return f"what a {self.settings.architecture} autoencoder writes is more than its features and a bias."
        if kind.skips and self.skip is None:
            return "the linear path beside the features, W_skip, is not there."
        return ""

    @torch.no_grad()
    def decoder_bias(self, x: Float[Tensor, "rows seq *d_in"]) -> Float[Tensor, "rows seq d_out"]:
        """What is written where no feature is active; float32.

        It is ``b_dec`` with the normalisation undone, which for ``layer_norm`` adds the mean of ``x``; and what a skip
        transcoder's linear path makes of ``x``.
        """
        x, bias = self._typed(x), self.tensors["b_dec"].float()
        if self._transcodes:
            whole = bias.expand(*x.shape[:2], -1)
            return whole if self.skip is None else whole + (x @ self.skip.to(x).T).float()
        whole = normalized(x, self.settings)[1].float()[..., None] * bias
        return whole + x.float().mean(-1, keepdim=True) if self.settings.normalizes == "layer_norm" else whole

    def digest(self) -> str:
        """A digest of settings and tensors; what a hook or another activation function does is not in it."""
        own = {f"own {name}": tensor for name, tensor in self.own_tensors.items()}
        skip = {} if self.skip is None else {"W_skip": self.skip}
        tensors = {**self.tensors, **own, **skip}
        return digest_tensors((f"{self.settings} {name}", tensor) for name, tensor in tensors.items())

    def _typed(self, x: Tensor) -> Tensor:
        return x.flatten(2).to(device=self.tensors["W_dec"].device, dtype=self.dtype)

    def _in_its_own_way(self, x: Tensor) -> Tensor:
        if self.own_encode is None:
            raise ModelError(f"A {self.settings.architecture} autoencoder needs its own object to encode.")
        return self.own_encode(x)

    def __repr__(self) -> str:
        at = f", hook_point={self.hook_point!r}" if self.hook_point else ""
        return f"SaeLensEncoder({self.settings.architecture}, d_in={self.d_in}, d_hidden={self.d_hidden}{at})"


def normalized(x: Float[Tensor, "rows seq d_in"], settings: Settings) -> tuple[Tensor, Float[Tensor, "rows seq"]]:
    """The input as the encoder sees it, and what its output is multiplied with to undo that."""
    if settings.normalizes == "layer_norm":
        centred = x - x.mean(-1, keepdim=True)
        std = centred.std(-1, keepdim=True)
        return centred / (std + _LAYER_NORM_EPS), std[..., 0]  # it is undone without eps
    if settings.normalizes == "constant_norm_rescale":
        factor = x.shape[-1] ** 0.5 / x.norm(dim=-1, keepdim=True)
        return x * factor, 1 / factor[..., 0]
    scalar = settings.scalar if settings.normalizes == "constant_scalar_rescale" else 1.0
    return x * scalar if scalar != 1.0 else x, torch.full(x.shape[:2], 1 / scalar, device=x.device)


def _checked(settings: Settings, tensors: Weights, config: Mapping[str, Any], where: str) -> None:
    """Raise ``InputError`` if a tensor is missing or of a wrong shape, or widths are not those of the configuration."""
    kind, names = settings.kind, settings.names
    missing = [name for name in names if name not in tensors]
    if missing:
        raise InputError(
            f"{where} has no {', '.join(missing)}: a {settings.architecture} autoencoder needs {', '.join(names)}; got "
            f"{', '.join(sorted(tensors)) or 'none'}."
        )
    for name in ("W_enc", "W_dec"):
        if name in names and (tensors[name].ndim != 2 or 0 in tensors[name].shape):
            raise InputError(f"{where}: {name} must be a matrix, got shape {tuple(tensors[name].shape)}.")
    d_hidden, d_out = tensors["W_dec"].shape
    d_in = d_out if kind is None else tensors["W_enc"].shape[0]
    if kind is not None and not kind.transcodes and d_in != d_out:
        raise InputError(f"{where}: W_enc reads width {d_in}, but W_dec writes width {d_out}, and it is no transcoder.")
    expected = {"W_enc": (d_in, d_hidden), "W_dec": (d_hidden, d_out), "b_dec": (d_out,), "W_skip": (d_out, d_in)}
    for name in tensors if kind else names:
        shape = expected.get(name, (d_hidden,))
        if tuple(tensors[name].shape) != shape:
            raise InputError(f"{where}: {name} must have shape {shape}, got {tuple(tensors[name].shape)}.")
    for name, width in (("d_in", d_in), ("d_sae", d_hidden), ("d_out", d_out)):
        if config.get(name) not in (None, width):
            raise InputError(
                f"{where}: {name} is {shown(config[name])} in the configuration, but {width} in the weights."
            )
    if settings.architecture in ("topk", "abstopk") and not 1 <= settings.k <= d_hidden:
        raise InputError(f"{where}: k must be an int from 1 to the {d_hidden} features, got {settings.k}.")


# --- folders -------------------------------------------------------------------------------------------------------


def load_sae_lens(
    folder: str | Path,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    scaling_factor: float | None = None,
) -> SaeLensEncoder:
    """An autoencoder from a folder that SAELens saved, without SAELens.

    Reads ``cfg.json`` (of version 6, or a flat one from before) and ``sae_weights.safetensors``: standard, gated, JumpReLU
    (so batchtopk and matryoshka too), TopK, AbsTopK, and transcoders.

    Args:
        folder: where both files lie.
        device: where the weights go.
        dtype: the number format to compute in; None: that of the configuration.
        scaling_factor: folded into the weights of one that was saved with ``expected_average_only_in``.

    Raises:
        InputError: if a file is missing, damaged or foreign, or its tensors do not fit.
        ModelError: if this kind of autoencoder cannot be used, with the way out.
    """
    if not isinstance(folder, str | os.PathLike):
        raise InputError(f"load_sae_lens needs the path of a folder, got {shown(folder)}.")
    config_file, weights_file = Path(folder) / CONFIG_FILE, Path(folder) / WEIGHTS_FILE
    config = _read_config(config_file)
    settings = Settings.of(config, str(config_file))
    kind = settings.kind
    if kind is None:
        raise ModelError(
            f"{config_file}: the architecture {shown(settings.architecture)} cannot be read without SAELens; what can is "
            f"{', '.join(KINDS)}. Load it with SAE.load_from_disk and give the object."
        )
    wanted, place = _dtype(dtype, "load_sae_lens") or settings.dtype, checked_device(device)
    read = _read_tensors(weights_file)
    formats = {tensor.dtype for tensor in read.values()}
    if wanted is None and (len(formats) > 1 or not formats <= set(_DTYPES.values())):
        raise InputError(
            f"{weights_file} holds numbers of {', '.join(sorted(map(str, formats)))}, and {config_file} names no dtype to "
            f"compute in: give dtype=, one of {', '.join(_DTYPES)}."
        )
    tensors = _of_today({name: tensor.to(device=place, dtype=wanted or tensor.dtype) for name, tensor in read.items()})
    surplus = sorted(set(tensors) - {*kind.tensors, *(("W_skip",) if kind.skips else ())})
    if surplus:
        raise InputError(f"{weights_file} holds tensors that a {settings.architecture} has not: {', '.join(surplus)}.")
    _checked(settings, tensors, config, str(weights_file))
    settings, tensors = _folded(settings, tensors, scaling_factor, str(config_file))
    own = {name: tensors[name] for name in kind.tensors}
    return SaeLensEncoder(settings, own, tensors["W_dec"].dtype, skip=tensors.get("W_skip"))


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_bytes().decode("utf-8"))
    except OSError as error:
        raise InputError(
            f"Cannot read {file}: {error.strerror or error}. A folder of SAELens holds {CONFIG_FILE} and {WEIGHTS_FILE}."
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not the JSON that SAELens writes: {error}.") from None
    if not isinstance(config, dict):
        raise InputError(f"{file} must hold a JSON object, got {type(config).__name__}.")
    return config


def _read_tensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not file.is_file():
        raise InputError(f"There is no {file}. A folder of SAELens holds {CONFIG_FILE} and {WEIGHTS_FILE}.")
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} is damaged, or no safetensors file: {error}") from None
    wrong = [name for name, tensor in tensors.items() if not tensor.dtype.is_floating_point]
    if wrong:
        raise InputError(f"{file}: {wrong[0]} must hold floating-point numbers, got {tensors[wrong[0]].dtype}.")
    return tensors


def _of_today(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What older versions saved in another way: the logarithm of the threshold, and a scaling factor of ones."""
    tensors = dict(tensors)
    if "log_threshold" in tensors and "threshold" not in tensors:
        tensors["threshold"] = tensors.pop("log_threshold").exp()
    if "scaling_factor" in tensors and torch.equal(
        tensors["scaling_factor"], torch.ones_like(tensors["scaling_factor"])
    ):
        del tensors["scaling_factor"]
    return tensors


def _folded(
    settings: Settings, tensors: dict[str, Tensor], factor: float | None, where: str
) -> tuple[Settings, dict[str, Tensor]]:
    """The weights for activations as they are, of an autoencoder that was trained on scaled ones."""
    if factor is None or settings.normalizes != "expected_average_only_in":
        _refuse_unfolded(settings, where)
        if factor is not None:
            raise InputError(
                f"scaling_factor is for normalize_activations='expected_average_only_in'; {where} has {settings.normalizes!r}."
            )
        return settings, tensors
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 1e-30 < factor < 1e30:
        raise InputError(f"scaling_factor must be a positive number between 1e-30 and 1e30, got {shown(factor)}.")
    scaled = {
        "W_enc": tensors["W_enc"] * factor,
        "W_dec": tensors["W_dec"] / factor,
        "b_dec": tensors["b_dec"] / factor,
    }
    return replace(settings, normalizes="none"), {**tensors, **scaled}


def _refuse_unfolded(settings: Settings, where: str) -> None:
    way_out = _UNFOLDED.get(settings.normalizes)
    if way_out:
        raise ModelError(
            f"{where}: the autoencoder was trained on scaled activations (normalize_activations={settings.normalizes!r}), and "
            f"the scaling is not in its weights, so that it would read the model's wrongly. {way_out}"
        )


# --- objects -------------------------------------------------------------------------------------------------------


def is_sae_lens(obj: object) -> bool:
    """Whether the object's class comes from SAELens, or from a class that does."""
    return any(cls.__module__.partition(".")[0] == "sae_lens" for cls in type(obj).__mro__)


def from_sae_lens(sae: Any, name: str) -> SaeLensEncoder:
    """The adapter of a SAELens object, which is not changed.

    Raises:
        ModelError: if it cannot be used, with the way out.
    """
    where = f"{name} (a {type(sae).__name__})"
    config = _config_of(sae, where)
    try:
        settings = Settings.of(config, where)
        _refuse_unfolded(settings, where)
        held = {one: getattr(sae, one, None) for one in settings.names}
        tensors = {one: tensor.detach() for one, tensor in held.items() if isinstance(tensor, Tensor)}
        _checked(settings, tensors, config, where)
    except InputError as error:  # about a file it would be one of its contents
        raise ModelError(str(error)) from None
    dtype = getattr(sae, "dtype", None)
    skip = getattr(sae, "W_skip", None) if settings.kind is not None and settings.kind.skips else None
    encoder = SaeLensEncoder(
        settings,
        tensors,
        dtype if isinstance(dtype, torch.dtype) else tensors["W_dec"].dtype,
        skip=skip.detach() if isinstance(skip, Tensor) else None,
    )
    return _Own(sae, settings).tried(encoder, where)


def _config_of(sae: Any, where: str) -> dict[str, Any]:
    to_dict = getattr(getattr(sae, "cfg", None), "to_dict", None)
    if not isinstance(sae, nn.Module) or not callable(to_dict) or not hasattr(sae, "W_dec"):
        raise ModelError(f"{where} comes from SAELens, but is no autoencoder of it: give the SAE itself.")
    return dict(to_dict())


@contextmanager
def _left_as_it_was(sae: nn.Module) -> Iterator[None]:
    """Take away what normalisation and reshaping leave behind on the module while it runs."""
    before = dict(vars(sae))
    try:
        yield
    finally:
        for name in set(vars(sae)) - set(before):
            del sae.__dict__[name]
        sae.__dict__.update(before)


class _Own:
    """The object's own encode and decode."""

    def __init__(self, sae: Any, settings: Settings) -> None:
        self.sae = sae
        # Heads come flattened, and are handed on as one head to an object that flattens them itself.
        transcodes = settings.kind is not None and settings.kind.transcodes
        self.in_heads = bool(getattr(sae, "hook_z_reshaping_mode", False)) and not transcodes

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "rows seq d_in"]) -> Float[Tensor, "rows seq d_hidden"]:
        with _left_as_it_was(self.sae):
            return self._encode(x).detach()

    def _encode(self, x: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse invariant")  # of torch, for some TopK in training
            acts: Tensor = self.sae.encode(x[..., None, :] if self.in_heads else x)
            return acts.to_dense() if acts.is_sparse else acts

    @torch.no_grad()
    def decode_both(self, x: Tensor, acts: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """Two decodings after the encoding of ``x``, which leaves the scale on the module that decoding takes away."""
        decoded = []
        for one in (acts, other):
            with _left_as_it_was(self.sae):
                self._encode(x)
                decoded.append(self.sae.decode(one).flatten(2))
        return decoded[0], decoded[1]

    def tried(self, encoder: SaeLensEncoder, where: str) -> SaeLensEncoder:
        """The encoder, with the object's own encode where that gives something else on a few vectors."""
        settings = encoder.settings
        held = {name: value.detach() for name, value in self.sae.state_dict().items() if isinstance(value, Tensor)}
        in_its_own_way = replace(encoder, own_encode=self.encode, own_tensors=held)
        if any(module._forward_hooks or module._forward_pre_hooks for module in self.sae.modules()):  # noqa: SLF001
            return in_its_own_way  # and the hooks are not called for a trial
        x = _trial(encoder)
        try:
            acts = self.encode(x)
            if settings.architecture != "temporal":  # whose decode warns at every call
                self._check_decode(encoder, x, acts, where)
            if settings.kind is not None and _agree(encoder.encode(x), acts) and not _may_pass_below_zero(encoder):
                return encoder
            if not _agree(self.encode(torch.cat([x, 3 * x.flip(1)]))[:1], acts):
                raise ModelError(f"{where}: its activations depend on the rest of the batch, so they cannot be shown.")
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise ModelError(
                f"{where} fails on vectors of width {encoder.d_in} in {encoder.dtype}: {type(error).__name__}: {error}. If its "
                "weights were moved by sae.half() or the like, use sae.to(dtype=…), which tells it so."
            ) from None
        return in_its_own_way

    def _check_decode(self, encoder: SaeLensEncoder, x: Tensor, acts: Tensor, where: str) -> None:
        """Raise ``ModelError`` unless taking a feature out of the activations takes out what the adapter says it writes."""
        largest = acts.abs().argmax(-1, keepdim=True)
        whole, without = self.decode_both(x, acts, acts.scatter(-1, largest, 0.0))
        rows = encoder.decoder_rows(largest[0, :, 0])
        expected = (acts.gather(-1, largest)[..., 0].float() * encoder.write_scale(x))[..., None] * rows
        error = (whole.float() - without.float() - expected).abs().amax(-1)
        rounding = 32 * torch.finfo(encoder.dtype).eps * whole.float().abs().amax(-1)
        if bool((error > 1e-2 * expected.abs().amax(-1) + rounding).any()):  # false where something is not finite
            raise ModelError(
                f"{where}: its decode does not write its features as its configuration says "
                f"({encoder.settings.architecture}, normalize_activations={encoder.settings.normalizes!r}). Adapt it with the "
                "Encoder protocol."
            )


def _trial(encoder: SaeLensEncoder) -> Float[Tensor, "1 n d_in"]:
    """A few random vectors from small to large, so that some of them pass any threshold."""
    sizes = 10.0 ** torch.linspace(-1.0, 2.0, 8)
    x = torch.randn(1, len(sizes), encoder.d_in, generator=torch.Generator().manual_seed(0)) * sizes[:, None]
    return x.to(device=encoder.tensors["W_dec"].device, dtype=encoder.dtype)


def _agree(ours: Tensor, theirs: Tensor) -> bool:
    ours, theirs = ours.float().nan_to_num(), theirs.float().nan_to_num()
    return bool(((ours - theirs).abs().amax(-1) <= 1e-3 * theirs.abs().amax(-1)).all())


def _may_pass_below_zero(encoder: SaeLensEncoder) -> bool:
    """In training, JumpReLU lets through what lies between a threshold below zero and zero; a trial may miss it."""
    threshold = encoder.tensors.get("threshold")
    return threshold is not None and bool((threshold < 0).any())
