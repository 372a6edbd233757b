"""The exceptions of sae_vis: one base class, so that a caller can catch everything that the library raises on purpose.

A message says what was wrong, where, what came, what was expected, and what to do about it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any


def shown(value: object, at_most: int = 200) -> str:
    """A value in a message: its ``repr``, cut where it is long; its type where it has none (a user's object may raise)."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - the value's own code
        return f"<{type(value).__name__}>"
    return cut(text, at_most)


def cut(text: str, at_most: int = 200) -> str:
    """A text that a message quotes, without the middle where it is long: it may be a foreign file's."""
    return text if len(text) <= at_most else f"{text[: at_most // 2]} … {text[-at_most // 4 :]}"


def some(values: Sequence[object], at_most: int = 8) -> str:
    """The first of some values in a message, or that there are none."""
    return ", ".join(map(str, values[:at_most])) + (", …" if len(values) > at_most else "") if values else "none"


def check_path(value: object, name: str = "path") -> str:
    """The path that is given as the argument ``name``, as a text.

    Raises:
        InputError: if it is none: a number, bytes, a file that is open.
    """
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(path, str):
        raise InputError(f"{name} must be a path (str or os.PathLike), got {shown(value)}.")
    return path


class SaeVisError(Exception):
    """Base class of every error that sae_vis raises on purpose."""


class InputError(SaeVisError, ValueError):
    """An argument (tokens, parameters, a prompt, a feature index) is not usable as it is."""


class ModelError(SaeVisError):
    """The model or the encoder lacks something, does not fit, or gave values that cannot be used."""


class FileFormatError(SaeVisError):
    """A file is not what it should be: foreign, truncated, of another kind, or of a newer version."""


class TemplateError(SaeVisError):
    """A template file is missing, or its holes and the values given for them do not match."""


class Interrupted(KeyboardInterrupt):
    """``get_feature_data`` was interrupted: ``finished`` holds the features that were done by then, None if there are none.

    It is a ``KeyboardInterrupt``, so whatever handles one handles this too. The model and its hooks are as they were.
    """

    def __init__(self, message: str, finished: Any = None) -> None:
        super().__init__(message)
        self.finished = finished
