"""Recognise what a user passes as an encoder, without importing the library that it comes from.

Encoders of other libraries become ``Encoder`` objects here, one adapter each.
"""

from __future__ import annotations

from sae_vis._errors import ModelError
from sae_vis.model_fns import Encoder

_PROTOCOL = ("d_in", "d_hidden", "encode", "decoder_rows")


def as_encoder(obj: object, name: str = "encoder") -> Encoder:
    """The object itself if it follows the ``Encoder`` protocol.

    Raises:
        ModelError: if it does not, with what is missing.
    """
    if isinstance(obj, type):
        raise ModelError(f"{name} is a class, {obj.__name__}: give an object of it, with its weights.")
    if isinstance(obj, Encoder):
        return obj
    missing = [member for member in _PROTOCOL if not hasattr(obj, member)]
    raise ModelError(
        f"{name} is a {type(obj).__name__}, which sae_vis cannot read as a sparse autoencoder: it has no {', '.join(missing)}. "
        "Copy its weights with AutoEncoder.from_weights({'W_enc': …, 'b_enc': …, 'W_dec': …, 'b_dec': …}), or give it the "
        "members of the Encoder protocol."
    )
