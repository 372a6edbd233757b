"""Recognise what a user passes as an encoder, without importing the library that it comes from.

Encoders of other libraries become ``Encoder`` objects here, one adapter each, in a module of its own. A new family is a
line of ``_FAMILIES``.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path

from sae_vis._errors import ModelError, check_path
from sae_vis._sae_lens import CONFIG_FILE, WEIGHTS_FILE, from_sae_lens, is_sae_lens, load_sae_lens
from sae_vis.model_fns import Encoder

_PROTOCOL = ("d_in", "d_hidden", "encode", "decoder_rows")

# Whether an object is one of the family, and what makes an encoder of it. What an object is, is read off its class: where
# one of another library came from, that library is imported already, and need not be by us.
_FAMILIES: tuple[tuple[Callable[[object], bool], Callable[[object, str], Encoder]], ...] = (
    (is_sae_lens, from_sae_lens),
)


def as_encoder(obj: object, name: str = "encoder") -> Encoder:
    """The object itself if it follows the ``Encoder`` protocol, else its adapter, if it is of a family that is known.

    A path stands for the folder of a SAELens autoencoder.

    Raises:
        InputError: if such a folder cannot be read.
        ModelError: if the object cannot be used, with what is missing.
    """
    if isinstance(obj, type):
        raise ModelError(f"{name} is a class, {obj.__name__}: give an object of it, with its weights.")
    if isinstance(obj, Encoder):
        _check_encode(obj, name)
        return obj
    if isinstance(obj, str | os.PathLike):
        return _of_folder(check_path(obj, name), type(obj).__name__, name)
    for recognises, adapter in _FAMILIES:
        if recognises(obj):
            return adapter(obj, name)
    missing = [member for member in _PROTOCOL if getattr(obj, member, None) is None]
    raise ModelError(
        f"{name} is a {type(obj).__name__}, which sae_vis cannot read as a sparse autoencoder: it has no {', '.join(missing)}. "
        "If it is a plain ReLU autoencoder, a = relu((x - b_dec) @ W_enc + b_enc), copy its weights with "
        "AutoEncoder.from_weights({'W_enc': …, 'b_enc': …, 'W_dec': …, 'b_dec': …}); any other (TopK, JumpReLU, gated, …) "
        "needs the members of the Encoder protocol: see 'Your own SAE' in the README."
    )


def _check_encode(encoder: Encoder, name: str) -> None:
    """Raise ``ModelError`` if ``encode`` cannot be called as it will be, as far as its signature tells."""
    try:
        inspect.signature(encoder.encode).bind("x", "features")
    except TypeError:  # there is one argument, or no function
        raise ModelError(f"{name} is a {type(encoder).__name__}, whose encode must take (x, features=None).") from None
    except ValueError:  # a function of C may have no signature
        return


def _of_folder(path: str, kind: str, name: str) -> Encoder:
    try:
        is_folder, is_file = Path(path).is_dir(), Path(path).is_file()
    except (OSError, ValueError):  # a name that no file system takes
        is_folder = is_file = False
    if is_file:
        in_folder = Path(path).name in (CONFIG_FILE, WEIGHTS_FILE)
        way_out = (
            f"the folder that it lies in, {str(Path(path).parent)!r}" if in_folder else f"AutoEncoder.load({path!r})"
        )
        raise ModelError(f"{name} is a {kind}, {path!r}, which is a file, not a folder of SAELens: give {way_out}.")
    if not is_folder:
        raise ModelError(
            f"{name} is a {kind}, {path!r}, and there is no such folder: give the folder of a SAELens autoencoder, or an encoder."
        )
    return load_sae_lens(path)
