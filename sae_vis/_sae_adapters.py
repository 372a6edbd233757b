"""Recognise what a user passes as an encoder, without importing the library that it comes from.

Encoders of other libraries become ``Encoder`` objects here, one adapter each, in a module of its own. A new family is a
line of ``_FAMILIES``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sae_vis._errors import ModelError
from sae_vis._sae_lens import from_sae_lens, is_sae_lens, load_sae_lens
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
        return obj
    if isinstance(obj, str | Path):
        return _of_folder(obj, name)
    for recognises, adapter in _FAMILIES:
        if recognises(obj):
            return adapter(obj, name)
    missing = [member for member in _PROTOCOL if not hasattr(obj, member)]
    raise ModelError(
        f"{name} is a {type(obj).__name__}, which sae_vis cannot read as a sparse autoencoder: it has no {', '.join(missing)}. "
        "Copy its weights with AutoEncoder.from_weights({'W_enc': …, 'b_enc': …, 'W_dec': …, 'b_dec': …}), or give it the "
        "members of the Encoder protocol."
    )


def _of_folder(path: str | Path, name: str) -> Encoder:
    try:
        is_folder = Path(path).is_dir()
    except OSError:  # a name that no file system takes
        is_folder = False
    if not is_folder:
        raise ModelError(
            f"{name} is a {type(path).__name__}, {str(path)!r}, and there is no such folder: give the folder of a SAELens "
            "autoencoder, or an encoder."
        )
    return load_sae_lens(path)
