"""Keep what was collected in a file and read it again: one safetensors file, memory-mapped.

The metadata says what was run on what. So a later call with other groups, buffers or layouts does not run the model over
the tokens again, and a call with another model, encoder or other tokens is refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sae_vis._activations import Collected
from sae_vis._correlations import WithDense
from sae_vis._errors import FileFormatError, InputError, check_path, cut
from sae_vis._json import write_atomic
from sae_vis._store import ActivationStore

KIND, VERSION = "sae_vis activations", 1
PIECE_BYTES = 2**24
_STORE = ("features", "offsets", "positions", "values")
_NEURONS = ("products", "sums", "squares", "low", "high", "shift")
_TYPES = {torch.int64: "I64", torch.int32: "I32", torch.float32: "F32", torch.float64: "F64", torch.bool: "BOOL"}
_AGAIN = "Remove the file, and the next call writes it again"
_FOREIGN = "it is not a file of activations that sae_vis wrote: give another path"
_MARK, _MARK_WITHIN = f'"{KIND}"'.encode(), 4096  # what stands near the beginning of each of ours, damaged or not

PathLike = str | os.PathLike[str]


# --- writing ---------------------------------------------------------------------------------------------------------


def save_collected(collected: Collected, path: PathLike, identity: Mapping[str, Any]) -> None:
    """Write a round with all its features; ``identity`` says what was run on what.

    Raises:
        FileFormatError: if there is a foreign file.
        InputError: if the file cannot be written; what was there before is untouched.
    """
    name = check_path(path, "save_activations")
    if Path(name).is_file() and _begins_as_foreign(name):
        raise FileFormatError(f"{name}: {_FOREIGN}.")
    tensors = {**_store_tensors("", collected.store), "counted": collected.store.counted}
    if collected.store_b is not None:
        tensors |= _store_tensors("b.", collected.store_b)
    described = {"identity": dict(identity), "signed": collected.signed, "n": 0}
    if collected.neurons is not None:
        found = collected.neurons
        tensors["neurons.features"] = collected.features
        tensors |= {
            f"neurons.{name}": getattr(found, name).cpu() for name in _NEURONS if getattr(found, name) is not None
        }
        described["n"] = found.n
    metadata = {"kind": KIND, "version": str(VERSION), "described": json.dumps(described, sort_keys=True)}
    write_atomic(name, _document(tensors, metadata))


def _store_tensors(prefix: str, store: ActivationStore) -> dict[str, Tensor]:
    return {f"{prefix}{name}": getattr(store, name) for name in _STORE}


def _document(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[bytes]:
    """The bytes of a safetensors file, in pieces: the library's own function would need all of them at once."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))  # so that each is aligned
    for name, tensor in ordered:
        size = tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for _, tensor in ordered:
        flat = tensor.contiguous().reshape(-1)
        for piece in torch.split(flat, max(1, PIECE_BYTES // tensor.element_size())):
            yield piece.numpy().tobytes()


# --- reading ---------------------------------------------------------------------------------------------------------


def load_collected(path: PathLike, identity: Mapping[str, Any] | None = None) -> Collected:
    """What ``save_collected`` wrote, memory-mapped: it is read from the file where it is looked at.

    Raises:
        FileFormatError: if the file is missing, damaged, foreign or of a newer version.
        InputError: if it comes from another run than ``identity`` says; the names that differ are told.
    """
    name = check_path(path)
    tensors, described = _read(name)
    if identity is not None:
        _check_identity(name, described["identity"], json.loads(json.dumps(dict(identity))))
    try:
        counted = tensors["counted"]
        store = _store(tensors, "", counted)
        store_b = _store(tensors, "b.", counted) if "b.features" in tensors else None
        features, neurons = store.features, None
        if "neurons.features" in tensors:
            features = tensors["neurons.features"]
            neurons = _neurons(tensors, features, described["n"])
        return Collected(features, store, store_b, neurons, {}, bool(described["signed"]))
    except (KeyError, ValueError, TypeError) as error:
        raise FileFormatError(f"{name}: damaged ({cut(str(error), 200)}). {_AGAIN}.") from None


def load_activations(path: PathLike) -> ActivationStore:
    """The activations that ``get_feature_data(..., save_activations=path)`` kept, for analyses of one's own.

    ``store.of(feature)`` gives the positions (``row * seq_len + position``) and the activations of a feature;
    ``store.correlated(features)`` and ``store.co_occurrence(features)`` compare features with all others in it, exactly.
    They are read from the file where they are looked at.

    Raises:
        FileFormatError: if the file is missing, damaged, foreign or of a newer version.
    """
    return load_collected(path).store


def _read(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    _check_there(name)
    try:
        with safe_open(name, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("kind") != KIND:
                raise FileFormatError(f"{name}: {_FOREIGN}.")
            if metadata.get("version") != str(VERSION):
                version = cut(metadata.get("version", "none"), 40)
                raise FileFormatError(f"{name}: format version {version}, but this sae_vis reads {VERSION}. {_AGAIN}.")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
            described = json.loads(metadata["described"])
            return tensors, {**described, "identity": dict(described["identity"])}
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RecursionError) as error:
        if _begins_as_foreign(name):
            raise FileFormatError(f"{name}: {_FOREIGN}.") from None
        raise FileFormatError(
            f"{name}: cannot be read as a safetensors file ({cut(str(error), 200)}). {_AGAIN}."
        ) from None


def _check_there(name: str) -> None:
    """Raise ``FileFormatError`` if there is no such file, or none that can be read."""
    try:
        if Path(name).is_dir():
            raise FileFormatError(f"{name}: it is a folder, and activations are kept in a file: give another path.")
        if Path(name).exists() and not Path(name).is_file():  # a pipe would be waited for
            raise FileFormatError(f"{name}: it is no plain file: give another path.")
        with Path(name).open("rb"):
            pass
    except FileNotFoundError:
        raise FileFormatError(
            f"{name}: there is no such file; get_feature_data(..., save_activations=…) writes one."
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise FileFormatError(f"{name}: cannot be read: {reason}.") from None


def _begins_as_foreign(name: str) -> bool:
    """Whether a file is somebody else's; an empty one is nobody's, and one that cannot be read is not ours."""
    try:
        with Path(name).open("rb") as stream:
            start = stream.read(_MARK_WITHIN)
    except OSError:
        return True
    return bool(start) and _MARK not in start


def _store(tensors: Mapping[str, Tensor], prefix: str, counted: Tensor) -> ActivationStore:
    features, offsets, positions, values = (tensors[f"{prefix}{name}"] for name in _STORE)
    n, nnz = len(features), len(values)
    right = (
        features.dtype == offsets.dtype == torch.int64
        and positions.dtype in (torch.int32, torch.int64)
        and values.dtype == torch.float32
        and counted.dtype == torch.bool
        and counted.ndim == 2
        and len(offsets) == n + 1
        and len(positions) == nnz
        and int(offsets[0]) == 0
        and int(offsets[-1]) == nnz
        and bool((offsets.diff() >= 0).all())
        and bool((features.diff() > 0).all())
        and (not nnz or 0 <= int(positions.min()) <= int(positions.max()) < counted.numel())
    )
    if not right:
        raise ValueError(f"the {prefix or 'first '}store's offsets, positions and values do not fit each other")
    return ActivationStore(features, offsets, positions, values, counted)


def _neurons(tensors: Mapping[str, Tensor], features: Tensor, n: int) -> WithDense:
    found = WithDense.restored(n, {name: tensors.get(f"neurons.{name}") for name in _NEURONS})
    if found.n_x != len(features):
        raise ValueError("the products with the neurons do not fit their features")
    return found


def _check_identity(name: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    flat_then, flat_now = _flat(then), _flat(now)
    # What only one of them has is an encoder B that the other call did without.
    differing = sorted(key for key in flat_then.keys() & flat_now.keys() if flat_then[key] != flat_now[key])
    if differing:
        raise InputError(
            f"{name} holds the activations of another run: {', '.join(differing)} differ. Give another path to "
            "save_activations, or remove the file."
        )


def _flat(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The entries, with those of dicts inside under joined names."""
    flat: dict[str, Any] = {}
    for name, value in identity.items():
        flat |= {f"{name}.{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {name: value}
    return flat
