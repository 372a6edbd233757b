"""What a reader says of features: labels, notes and stars, and the JSON file that carries them between Python and browsers.

::

    {"format": "sae_vis labels", "version": 1,
     "of": {"model": "gelu-1l", "hook_point": "blocks.0.mlp.hook_post", "encoder": "1a2b…"},
     "features": {"8": {"label": "import statements", "note": "…", "star": true, "changed": "2026-01-31T12:00:00.000Z"}}}

``of`` says which features these are: those of one encoder at one hook point of one model, whatever text they were looked at on.
``js/labels.js`` writes and reads the same file; ``changed`` is when a reader changed it, absent for what Python says.
"""

from __future__ import annotations

import hashlib
import json
import operator
import os
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import msgspec

from sae_vis import _json
from sae_vis._errors import FileFormatError, InputError, check_path, shown

FORMAT, VERSION = "sae_vis labels", 1
MOST_LABEL, MOST_NOTE = 200, 10_000  # characters
MAX_BYTES = 100_000_000


class Marks(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """What is said of one feature."""

    label: str | None = None
    note: str | None = None
    star: bool = False
    changed: str | None = None


class _File(msgspec.Struct, forbid_unknown_fields=True):
    format: str
    version: int
    of: dict[str, str]
    features: dict[int, Marks]


def origin(model: str, hook_point: str, digests: Mapping[str, str]) -> dict[str, str]:
    """Whose features these are."""
    told = {"model": model, "hook_point": hook_point}
    return told | ({"encoder": digests["encoder"]} if "encoder" in digests else {})


def storage_key(of: Mapping[str, str]) -> str:
    """What browsers keep labels under: the same for every page of the same features."""
    return hashlib.blake2b(json.dumps(dict(sorted(of.items()))).encode(), digest_size=8).hexdigest()


# --- values ------------------------------------------------------------------------------------------------------


def checked_text(what: str, text: object, at_most: int) -> str | None:
    """A label or a note, stripped; None for nothing.

    Raises:
        InputError: if it is no text, too long, or cannot be written.
    """
    if text is None:
        return None
    if not isinstance(text, str):
        raise InputError(f"{what} must be a text or None, got {shown(text)}.")
    stripped = text.strip()
    if len(stripped) > at_most:
        raise InputError(f"{what} has {len(stripped):,} characters, at most {at_most:,} are allowed.")
    try:
        stripped.encode()
    except UnicodeEncodeError:
        raise InputError(f"{what} holds half a surrogate pair, which UTF-8 lacks: {shown(stripped)}.") from None
    return stripped or None


class Labels(MutableMapping[int, str]):
    """The labels of the features that have one: a view, so that what is set here is set in the data.

    Args:
        features: the features that there are, in rising order.
        read: a feature's label.
        write: sets it; None takes it away.
        absent: the error for a feature that is not there.
    """

    def __init__(
        self,
        features: Mapping[int, Any],
        read: Callable[[int], str | None],
        write: Callable[[int, str | None], None],
        absent: Callable[[object], str],
    ) -> None:
        self._features, self._read, self._write, self._absent = features, read, write, absent

    def _checked(self, feature: object) -> int:
        try:
            index = -1 if isinstance(feature, bool) else operator.index(feature)  # type: ignore[arg-type]
        except TypeError:
            index = -1
        if index not in self._features:
            raise InputError(self._absent(feature))
        return index

    def __getitem__(self, feature: int) -> str:
        label = self._read(self._checked(feature))
        if label is None:
            raise KeyError(feature)
        return label

    def __setitem__(self, feature: int, text: str | None) -> None:
        index = self._checked(feature)
        self._write(index, checked_text(f"The label of feature {index}", text, MOST_LABEL))

    def __delitem__(self, feature: int) -> None:
        index = self._checked(feature)
        self[index]
        self._write(index, None)

    def get(self, feature: object, default: Any = None) -> Any:
        """The label of a feature, or the default where it has none or is not there."""
        try:
            return self[feature]  # type: ignore[index]
        except (InputError, KeyError):
            return default

    def pop(self, feature: Any, *default: Any) -> Any:
        """Take the label of a feature away and give it; the default where it has none or is not there."""
        return default[0] if default and feature not in self else super().pop(feature)

    def __iter__(self) -> Iterator[int]:
        return (feature for feature in self._features if self._read(feature) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, feature: object) -> bool:
        try:
            return self._read(self._checked(feature)) is not None
        except InputError:
            return False

    def __repr__(self) -> str:
        return f"<labels of {len(self)} of {len(self._features):,} features: {shown(dict(self))}>"

    def replace(self, labels: object) -> None:
        """Have just these labels.

        Raises:
            InputError: if these are no labels of features that are there; nothing is changed then.
        """
        if not isinstance(labels, Mapping):
            raise InputError(f"labels must be a mapping from feature to text, got {shown(labels)}.")
        wanted = {
            (index := self._checked(feature)): checked_text(f"The label of feature {index}", text, MOST_LABEL)
            for feature, text in list(labels.items())
        }
        for feature in [feature for feature in self if feature not in wanted]:
            self._write(feature, None)
        for feature, text in wanted.items():
            self._write(feature, text)


# --- files -------------------------------------------------------------------------------------------------------


def save(path: str | os.PathLike[str], of: Mapping[str, str], features: Mapping[int, Marks]) -> None:
    """Write a file of labels.

    Raises:
        InputError: if it cannot be written, or would replace saved features.
    """
    _json.check_labels_path(path)
    for feature, marks in features.items():
        _check_texts(f"feature {feature}", marks)
    file = _File(FORMAT, VERSION, dict(of), dict(sorted(features.items())))
    _json.write_atomic(path, msgspec.json.format(msgspec.json.encode(file), indent=1) + b"\n")


def load(path: str | os.PathLike[str], of: Mapping[str, str], any_origin: bool) -> dict[int, Marks]:
    """Read a file of labels that Python or a browser wrote.

    Raises:
        FileFormatError: if it is none, of a newer version, or damaged.
        InputError: if it is about the features of another encoder, hook point or model.
    """
    where = check_path(path)
    data = _json.read_file(path, MAX_BYTES)
    try:
        top = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        told = {name: msgspec.json.decode(top[name]) for name in ("format", "version") if name in top}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise FileFormatError(f"{where}: not a file of labels: it is no JSON object.") from None
    if told.get("format") != FORMAT:
        found = f"its format is {shown(told['format'])}" if "format" in told else "it says no format"
        raise FileFormatError(f"{where}: not a file of labels: {found}, {FORMAT!r} was expected (see save_labels).")
    if told.get("version") != VERSION:
        raise FileFormatError(
            f"{where}: version {shown(told.get('version'))} of the labels; this library reads {VERSION}."
        )
    try:
        file = msgspec.json.decode(data, type=_File)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FileFormatError(f"{where}: a damaged file of labels: {error}.") from None
    differing = [name for name in file.of.keys() & of.keys() if file.of[name] != of[name]]
    if differing and not any_origin:
        told_both = "; ".join(
            f"{name} {shown(file.of[name], 60)} there, {shown(of[name], 60)} here" for name in sorted(differing)
        )
        raise InputError(
            f"{where}: these labels are of other features: {told_both}. Read them all the same with any_origin=True."
        )
    for feature, marks in file.features.items():
        _check_texts(f"{where}: feature {feature}", marks)
    return file.features


def _check_texts(whose: str, marks: Marks) -> None:
    """Strip a label and a note; raise ``InputError`` if a file could not hold them."""
    marks.label = checked_text(f"the label of {whose}", marks.label, MOST_LABEL)
    marks.note = checked_text(f"the note of {whose}", marks.note, MOST_NOTE)
