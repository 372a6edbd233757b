"""The checks of the dataclasses: lengths, ranges and numbers, with errors that name the class and what is wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Sized
from typing import Any

from sae_vis._errors import InputError

MOST = 2**63 - 1  # of anything that is counted: more than a corpus can hold, and JSON allows numbers of any length


def check(condition: bool, where: object, message: str) -> None:
    """Raise ``InputError`` with the class of ``where`` unless the condition holds."""
    if not condition:
        raise InputError(f"{type(where).__name__}: {message}")


def check_hex(where: object, vocab_bytes: Mapping[int, str]) -> None:
    """The bytes of tokens are texts of hexadecimal digits."""
    for token_id, text in vocab_bytes.items():
        try:
            bytes.fromhex(text)
        except (TypeError, ValueError):
            raise InputError(
                f"{type(where).__name__}: vocab_bytes[{token_id}] must be bytes as hexadecimal digits, got {str(text)[:40]!r}."
            ) from None


def check_same_length(where: object, **lists: Sized | None) -> None:
    """All the lists that are there have one length; the error names them."""
    if len({len(items) for items in lists.values() if items is not None}) > 1:
        lengths = {name: len(items) for name, items in lists.items() if items is not None}
        told = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise InputError(f"{type(where).__name__}: lists of one length expected, but {told}.")


def check_counts(where: object, **counts: Sequence[int]) -> None:
    """Nothing is negative, nor larger than anything can be."""
    for name, values in counts.items():
        if all(0 <= value <= MOST for value in values):
            continue
        for index, value in enumerate(values):
            check(0 <= value <= MOST, where, f"{name}[{index}] must be from 0 to {MOST}, got {short_int(value)}.")


def check_feature_idx(where: object, feature_idx: int) -> None:
    """A feature's index is one that a page can hold."""
    check(0 <= feature_idx < 2**31, where, f"feature_idx must be from 0 to {2**31 - 1}, got {short_int(feature_idx)}.")


def short_int(value: int) -> str:
    """A number of any length, for an error."""
    text = repr(value)
    return text if len(text) < 40 else f"{text[:20]}… ({len(text)} digits)"


def check_finite(where: object, **values: Sequence[float | None] | float | None) -> None:
    """No NaN and no infinity, which JSON cannot hold and no page can show."""
    for name, value in values.items():
        items: Any = value if type(value) is list or isinstance(value, Sequence) else (value,)  # the first is fast
        # Files hold millions of numbers, and only a finite sum rules both out.
        if math.isfinite(sum(filter(None, items))):
            continue
        for index, item in enumerate(items):
            if item is not None and not math.isfinite(item):
                raise InputError(f"{type(where).__name__}: {name}[{index}] is {item!r}, a finite number was expected.")
