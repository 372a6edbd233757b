"""Dataclasses to JSON and back: one valid document, exact, checked in both directions, never half written.

A file is ``{"format": "sae_vis", "kind": "MultiFeatureData", "version": 2, "header": {...}, "features": [``, then one
feature a line, then ``]}``: line-based tools can stream it, and any JSON reader can read it. See ``docs/json.md``.

``msgspec`` does the encoding and decoding, natively; what it lets through is checked here. Every dataclass has a
*mirror*, made from its type hints: a strict struct that forbids unknown fields and numbers that are not finite. Saving
converts to the mirror, which finds a bad value and names its path, and encodes that. Loading decodes the dataclasses
themselves, whose own checks then run, and encodes them again, line by line: if that gives the very bytes of the file,
nothing was ignored or changed. If not (somebody laid the file out differently, or it is wrong), everything is read once
more by slower code that knows any layout and names what is wrong.

This module imports no dataclass of the library: it reads the class that it is given. The dataclasses import it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import gzip
import inspect
import itertools
import json
import os
import re
import secrets
import stat
import time
import types
import typing
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, TypeVar

import msgspec
from zlib_ng import zlib_ng

from sae_vis._errors import FileFormatError, InputError, check_path, cut, shown

T = TypeVar("T")
PathLike = str | os.PathLike[str]
Document = dict[str, Any]

FORMAT = "sae_vis"
VERSION = 2
# The field of each kind that is written one value a line; every value knows its own key, ``feature_idx``.
LINES_FIELD = {
    "MultiFeatureData": "feature_data_dict",
    "MultiPromptData": "prompt_data_dict",
    "PromptComparisonData": "compared_dict",
}
# Options that version 1 had not, as they were then: without what they ask for.
ADDED_IN_2: dict[str, Any] = {"n_tokens": 0, "n_counterexamples": 0, "n_position_bins": 0}


def _from_1(document: Document) -> Document:
    """Version 2 adds tokens, positions and counterexamples to each feature; a run of version 1 had none of them."""
    document["header"]["params"] |= ADDED_IN_2
    return document


# version -> function from a document of that version (plain dicts, unchecked) to one of the next version
MIGRATIONS: dict[int, Callable[[Document], Document]] = {1: _from_1}
GZIP_BITS = zlib.MAX_WBITS | 16  # tells zlib of the header and the end of a gzip stream
MAX_BYTES = 4 * 2**30  # of a document, inflated: a gzip bomb is stopped there

_LARGEST = 1.7976931348623157e308
_Finite = Annotated[float, msgspec.Meta(ge=-_LARGEST, le=_LARGEST)]  # NaN passes neither comparison
_encode = msgspec.json.Encoder().encode
_encode_message = msgspec.msgpack.Encoder().encode
_BLOCK = 2**22
STALE_SECONDS = 24 * 60 * 60  # no save takes that long: a temporary file of that age is of one that was killed
TEMPORARY = re.compile(r"\.sae_vis-[0-9a-f]{16}\.tmp")
_STREAMS = ("/dev/std", "/dev/fd/", "/proc/")  # names of what is open already, be it a plain file
_PAGE, _GZIP = b"<!doctype html>", b"\x1f\x8b"  # how a page and a gzip stream begin
_START = 4096  # bytes that tell what a file is
_OWN_START = re.compile(rb'\s*\{\s*"format"\s*:\s*"sae_vis')  # whoever laid it out
_OWN_DATA = re.compile(_OWN_START.pattern + b'"')
_LONGEST_MESSAGE = 1000
_UNREADABLE = (msgspec.MsgspecError, RecursionError, ValueError, TypeError, OverflowError)


# --- saving ------------------------------------------------------------------------------------------------------


def save(obj: object, path: PathLike) -> None:
    """Write ``obj`` to ``path`` as JSON, gzipped if the name ends in ``.gz``; an interrupted save leaves the old file.

    Raises:
        InputError: if a value cannot be written (NaN, infinity, a wrong type: its path is named), or the file cannot.
    """
    name, chunks = check_path(path), document(obj)
    with garbage_collection_paused():
        write_atomic(name, _gzipped(chunks) if name.endswith(".gz") else chunks)


def document(obj: object) -> Iterator[bytes]:
    """The JSON document of ``obj`` in pieces: the line of the header, a line for each feature, the end.

    Raises:
        InputError: if a value cannot be written; its path is named.
    """
    cls: Any = type(obj)
    kind = _kind(cls)
    header = hide_half_pairs({name: getattr(obj, name) for name in kind.header_fields})
    yield kind.opening(_checked_line(header, kind.header_mirror, "$.header"))
    for index, value in enumerate(getattr(obj, kind.lines_field).values()):
        where = f"$.features[{index}] (feature {getattr(value, 'feature_idx', '?')})"
        yield (b",\n" if index else b"\n") + _checked_line(value, kind.line_mirror, where)
    yield _CLOSING


def message(value: object) -> bytes:
    """A dataclass for ``message_reader`` in another process, in a third of the time of a line: hardly anything is checked.

    NaN and infinity stay what they are, and an int where a float belongs becomes one when it is read.

    Raises:
        InputError: if a value cannot be written.
    """
    try:
        return _encode_message(value)
    except _UNREADABLE as error:
        raise InputError(f"This cannot be sent to another process: {error}.") from None


_CLOSING = b"\n]}\n"


def _checked_line(value: object, mirror: Any, where: str) -> bytes:
    """One line; the mirror also makes an int a float where a float belongs, as reading it back would."""
    try:
        strict = msgspec.convert(value, mirror, from_attributes=True)
    except _UNREADABLE as error:
        raise InputError(f"This cannot be saved as JSON: {_reason(error, where)}.") from None
    _check_extras(value, where)
    try:
        return _encode(strict)
    except UnicodeEncodeError:
        path = _path_of_half_pair(msgspec.to_builtins(strict), where)
        raise InputError(
            f"This cannot be saved as JSON: {path} holds half a surrogate pair, which UTF-8 lacks."
        ) from None


def _check_extras(value: object, where: str) -> None:
    """What panels of a user's own keep has no type here: it must be what JSON holds, numbers finite."""
    for name, extra in (getattr(value, "extras", None) or {}).items():
        try:
            json.dumps(msgspec.to_builtins(extra), allow_nan=False)
        except _UNREADABLE as error:
            raise InputError(f"This cannot be saved as JSON: {where}.extras.{name}: {error}.") from None


def _gzipped(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The chunks as one gzip stream without time or name, so that equal documents give equal files."""
    deflate = zlib_ng.compressobj(wbits=GZIP_BITS)
    for chunk in chunks:
        yield deflate.compress(chunk)
    yield deflate.flush()


# --- a file is there as a whole, or not at all ---------------------------------------------------------------------


def write_atomic(path: PathLike, data: bytes | Iterable[bytes]) -> None:
    """Write a file so that its name never holds half of it: to a temporary file beside it, flushed, then renamed.

    A link stays a link, an existing file keeps its permissions, and what is not a plain file (``/dev/stdout``, a pipe)
    is written to directly. A save that is killed leaves its temporary file, ``.sae_vis-….tmp``, behind; the next save into
    the folder removes those that are a day old.

    Raises:
        InputError: if it cannot be written, or a page would replace saved data; what was there before is untouched.
    """
    name = check_path(path)
    if "\0" in name:
        raise InputError(f"Cannot write {name!r}: a path cannot hold NUL.")
    try:
        chunks = iter([data] if isinstance(data, bytes) else data)
        start = next(chunks, b"")
        if start.startswith(_PAGE):
            check_page_path(name)
        chunks = itertools.chain([start], chunks)
        target = Path(os.path.realpath(name))
        mode = Path(name).stat().st_mode if Path(name).exists() else None
        if mode is not None and (not stat.S_ISREG(mode) or name.startswith(_STREAMS)):
            with Path(name).open("wb") as stream:
                stream.writelines(chunks)
        elif mode is not None and not os.access(target, os.W_OK):
            raise InputError(f"Cannot write {name!r}: the file that is there is read-only.")
        else:
            _write_beside(target, chunks, mode)
    except BrokenPipeError:
        raise  # whoever reads the pipe has seen enough: no fault of the path
    except FileNotFoundError as error:
        raise InputError(f"Cannot write {name!r}: its folder does not exist.") from error
    except OSError as error:
        raise InputError(f"Cannot write {name!r}: {error.strerror or error}.") from error


def check_page_path(path: PathLike) -> None:
    """Raise ``InputError`` if this is no path for a page: a file with data that ``save_json`` or ``save_labels`` wrote.

    A page can be drawn again; data may have taken hours to fetch, and labels were written by hand.
    """
    name = check_path(path)
    if _begins(name, _OWN_START):
        raise InputError(f"Cannot write a page to {name!r}: the file holds saved data. Give the page another name.")


def check_labels_path(path: PathLike) -> None:
    """Raise ``InputError`` if this is no path for labels: a file with data that ``save_json`` wrote."""
    name = check_path(path)
    if _begins(name, _OWN_DATA):
        raise InputError(f"Cannot write labels to {name!r}: the file holds saved data. Give the labels another name.")


def check_writable(path: PathLike) -> None:
    """Raise ``InputError`` if a file cannot be written there, before the work that it is to hold."""
    name = check_path(path)
    target = Path(os.path.realpath(name)) if "\0" not in name else Path(name)
    reason = ""
    try:
        if "\0" in name:
            reason = "a path cannot hold NUL"
        elif not target.parent.is_dir():
            reason = "its folder does not exist"
        elif not os.access(target if target.exists() else target.parent, os.W_OK):
            reason = "no permission"
    except OSError as error:  # e.g. a name that is too long
        reason = error.strerror or str(error)
    if reason:
        raise InputError(f"Cannot write {name!r}: {reason}.")


def _begins(name: str, own: re.Pattern[bytes]) -> bool:
    """Whether there is a file that begins as ours do, gzipped or not; False where it cannot be read."""
    try:
        if not Path(name).is_file() or name.startswith(_STREAMS):
            return False
        with Path(name).open("rb") as stream:
            start = stream.read(_START)
        if start.startswith(_GZIP):
            start = zlib.decompressobj(GZIP_BITS).decompress(start, _START)
    except (OSError, ValueError, zlib.error):
        return False
    return bool(own.match(start))


def _write_beside(target: Path, chunks: Iterable[bytes], mode: int | None) -> None:
    temporary = target.parent / f".sae_vis-{secrets.token_hex(8)}.tmp"  # not made from the name, which may be long
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(temporary, flags, 0o666)  # less the user's umask
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.writelines(chunks)
            stream.flush()
            os.fsync(descriptor)
        if mode is not None:
            temporary.chmod(stat.S_IMODE(mode))
        temporary.replace(target)
    except BaseException:  # an interrupt too must not leave the temporary file behind
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(target.parent)
    _remove_stale(target.parent)


def _remove_stale(folder: Path) -> None:
    """Remove the temporary files of saves that were killed, where they are old enough to be nobody's any more."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if TEMPORARY.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    if time.time() - entry.stat(follow_symlinks=False).st_mtime > STALE_SECONDS:
                        Path(entry.path).unlink()


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# --- loading -----------------------------------------------------------------------------------------------------


def load(cls: type[T], path: PathLike, *, max_bytes: int = MAX_BYTES) -> T:
    """The object of class ``cls`` that ``save`` wrote to ``path``, exactly as it was.

    Raises:
        FileFormatError: if the file is missing, foreign, truncated, of another kind or of a newer version, larger than
            ``max_bytes``, or wrong in any value; the file and the path of the value are named.
    """
    loaded: T = load_any([cls], path, max_bytes=max_bytes)
    return loaded


def load_any(classes: Sequence[type], path: PathLike, *, max_bytes: int = MAX_BYTES) -> Any:
    """Like ``load``, for a file that may hold any of several classes."""
    name, kinds = check_path(path), {kind.name: kind for kind in map(_kind, classes)}
    try:
        data = _read(name, max_bytes)
        with garbage_collection_paused():
            return _load(kinds, data)
    except _WrongFileError as wrong:
        raise FileFormatError(f"{name}: {cut(str(wrong), _LONGEST_MESSAGE)}.") from None


def loads(cls: type[T], data: bytes) -> T:
    """The object of class ``cls`` whose ``document`` this is.

    Raises:
        FileFormatError: if it is not.
    """
    kind = _kind(typing.cast("Any", cls))
    try:
        loaded: T = _load({kind.name: kind}, data)
    except _WrongFileError as wrong:
        raise FileFormatError(f"{cut(str(wrong), _LONGEST_MESSAGE)}.") from None
    return loaded


def message_reader(cls: type[T]) -> Callable[[bytes], T]:
    """What reads a ``cls`` from a ``message``, with the checks of its own."""
    return msgspec.msgpack.Decoder(cls).decode


class _WrongFileError(Exception):
    """What is wrong with a file, before the file's name is put in front."""


class _Envelope(msgspec.Struct):
    """The top of a document; the contents are looked at when the top is known to be right."""

    format: Any = None
    kind: Any = None
    version: Any = None
    header: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    features: list[msgspec.Raw] | msgspec.UnsetType = msgspec.UNSET


def _load(kinds: dict[str, _Kind], data: bytes) -> Any:
    for kind in kinds.values():
        exact = _load_exactly(kind, data)
        if exact is not None:
            return _assembled(kind, *exact)
    return _load_any_layout(kinds, data)


def _load_exactly(kind: _Kind, data: bytes) -> tuple[Any, list[Any]] | None:
    """Header and values of a document laid out as ``document`` does it, None for any other, right or wrong.

    Every line is decoded and encoded again: if that gives the very bytes of the file, nothing was ignored or changed.
    """
    start, end = kind.opening(b"\n").split(b"\n")
    position = data.find(b"\n")
    opening = data[:position]
    if not (opening.startswith(start) and opening.endswith(end) and data.endswith(_CLOSING)):
        return None
    values: list[Any] = []
    last = len(data) - len(_CLOSING)
    try:
        header = kind.decode_header(opening[len(start) : -len(end)])
        if kind.opening(_encode(header)) != opening:
            return None
        while position < last:  # the newline before a line
            position, begin = data.find(b"\n", position + 1), position + 1
            line = data[begin : position - (position < last)]  # less its comma
            values.append(kind.decode_line(line))
            if _encode(values[-1]) != line or not data.startswith(b",\n"[position >= last :], begin + len(line)):
                return None
    except _UNREADABLE:
        return None
    return header, values


def _load_any_layout(kinds: dict[str, _Kind], data: bytes) -> Any:
    """Slower, for documents in any layout; and what is wrong, it names."""
    envelope = _envelope(data)
    kind = _identified(envelope, kinds)
    if envelope.version < VERSION:
        data = _migrated(data, envelope.version)
        envelope = _envelope(data)
    if isinstance(envelope.header, msgspec.UnsetType) or isinstance(envelope.features, msgspec.UnsetType):
        raise _WrongFileError("'header' or 'features' is missing")
    header = _decoded(envelope.header, kind.decode_header, "$.header")
    values = [_decoded(raw, kind.decode_line, f"$.features[{i}]") for i, raw in enumerate(envelope.features)]
    _check_thoroughly(data, kind)
    return _assembled(kind, header, values)


def _envelope(data: bytes) -> _Envelope:
    if not data.strip():
        raise _WrongFileError("the file is empty")
    try:
        return msgspec.json.decode(data, type=_Envelope)
    except _UNREADABLE as error:
        not_json = "" if isinstance(error, msgspec.ValidationError) else _not_json(data)
        told = not_json or _reason(error, "$")
        raise _WrongFileError(f"not readable as a file of sae_vis: {told}") from None


def _not_json(data: bytes) -> str:
    """What a file is told to be that does not even begin as JSON; empty for one that does."""
    if data.lstrip().startswith((b"{", b"[")):
        return ""
    is_safetensors = b"\0" in data[:8] and data[8:9] == b"{"  # the length of its header, and the header
    return "it is not JSON" + ("; load_activations reads files of activations" if is_safetensors else "")


def _identified(envelope: _Envelope, kinds: dict[str, _Kind]) -> _Kind:
    """The kind of the document, if it is one that is asked for, in a version that this code reads."""
    if envelope.format != FORMAT:
        raise _WrongFileError(f"not a file of sae_vis: $.format must be {FORMAT!r}, got {shown(envelope.format, 60)}")
    version = envelope.version
    if type(version) is not int or version < 1:
        raise _WrongFileError(f"$.version must be a positive int, got {shown(version, 60)}")
    if version > VERSION:
        raise _WrongFileError(
            f"format version {version}, but this sae_vis reads up to {VERSION}: install a newer sae_vis"
        )
    name = envelope.kind
    if not isinstance(name, str) or name not in LINES_FIELD:
        raise _WrongFileError(f"$.kind must be one of {', '.join(LINES_FIELD)}, got {shown(name, 60)}")
    if name not in kinds:
        raise _WrongFileError(f"it holds a {name}, not a {' or '.join(kinds)}: load it with {name}.load_json")
    return kinds[name]


def _migrated(data: bytes, version: int) -> bytes:
    """The document brought to the present version, step by step."""
    try:
        repeated = _path_of_duplicate(json.loads(data, object_pairs_hook=_Pairs), "$")
        content = msgspec.json.decode(data)
        for step in range(version, VERSION):
            content = MIGRATIONS[step](content)
        brought = _encode(content | {"version": VERSION})
    except (LookupError, AttributeError, *_UNREADABLE) as error:
        raise _WrongFileError(f"format version {version} could not be brought to {VERSION}: {error!r}") from None
    if repeated:
        raise _WrongFileError(f"{repeated} is there twice")
    return brought


def _decoded(raw: msgspec.Raw, decode: Callable[[msgspec.Raw], Any], where: str) -> Any:
    try:
        return decode(raw)
    except _UNREADABLE as error:
        with contextlib.suppress(*_UNREADABLE):
            where += f" (feature {msgspec.json.decode(raw, type=_Indexed).feature_idx})"
        raise _WrongFileError(_reason(error, where)) from None


class _Indexed(msgspec.Struct):
    feature_idx: int


def _assembled(kind: _Kind, header: Any, values: list[Any]) -> Any:
    """The object itself, whose own checks run."""
    lines = {value.feature_idx: value for value in values}
    if len(lines) != len(values):
        twice = next(value.feature_idx for value in values if lines[value.feature_idx] is not value)
        raise _WrongFileError(f"$.features: feature {twice} is there twice")
    try:
        given = {name: getattr(header, name) for name in kind.header_mirror.__struct_fields__}
        fields = show_half_pairs({name: value for name, value in given.items() if value is not msgspec.UNSET})
        return kind.cls(**fields, **{kind.lines_field: lines})
    except _UNREADABLE as error:
        raise _WrongFileError(_reason(error, "$")) from None


def _check_thoroughly(data: bytes, kind: _Kind) -> None:
    """What msgspec passes over in dataclasses: unknown fields, and keys that are there twice."""
    try:
        msgspec.json.decode(data, type=kind.document_mirror)
        twice = _path_of_duplicate(json.loads(data, object_pairs_hook=_Pairs), "$")
    except _UNREADABLE as error:
        raise _WrongFileError(_reason(error, "$")) from None
    if twice:
        raise _WrongFileError(f"{twice} is there twice")


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as its pairs, duplicates and all."""


def _path_of_duplicate(value: object, where: str) -> str | None:
    items: Iterable[tuple[str, Any]] = ()
    if isinstance(value, _Pairs):
        keys = [key for key, _ in value]
        if len(set(keys)) < len(keys):
            return f"{where}.{next(key for key in keys if keys.count(key) > 1)}"
        items = ((f"{where}.{key}", item) for key, item in value)
    elif isinstance(value, list):
        items = ((f"{where}[{index}]", item) for index, item in enumerate(value))
    return next((path for inner, item in items if (path := _path_of_duplicate(item, inner))), None)


def _read(path: str, max_bytes: int) -> bytes:
    """The bytes of a file, inflated if it is gzipped, never more than ``max_bytes``."""
    try:
        with Path(path).open("rb") as stream:
            if stream.peek(2)[:2] == _GZIP:
                with gzip.GzipFile(fileobj=stream) as inflated:
                    return _read_blocks(inflated, max_bytes)
            return _read_blocks(stream, max_bytes)
    except EOFError:
        raise _WrongFileError("the gzip stream is truncated") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise _WrongFileError(f"the gzip stream is damaged: {error}") from None
    except IsADirectoryError:
        raise _WrongFileError(
            "it is a folder; MultiFeatureData.load_dir opens one that a run with out_dir wrote"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise _WrongFileError(f"cannot be read: {reason}") from None


def _read_blocks(stream: BinaryIO | gzip.GzipFile, max_bytes: int) -> bytes:
    """Block by block, since asking for ``max_bytes`` at once would reserve them."""
    blocks, total = [], 0
    while block := stream.read(_BLOCK):
        total += len(block)
        if total > max_bytes:
            raise _WrongFileError(f"larger than {max_bytes:,} bytes; if that is right, give a larger max_bytes")
        blocks.append(block)
    return b"".join(blocks)


# --- one value alone: what a folder of features is made of ----------------------------------------------------------


def read_file(path: PathLike, max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes of a file, inflated if it is gzipped.

    Raises:
        FileFormatError: if it cannot be read, is damaged, or larger than ``max_bytes``.
    """
    name = check_path(path)
    try:
        return _read(name, max_bytes)
    except _WrongFileError as wrong:
        raise FileFormatError(f"{name}: {wrong}.") from None


def encode_value(value: object, where: str) -> bytes:
    """A dataclass as one line of JSON, checked as ``save`` checks it.

    Raises:
        InputError: if a value cannot be written; its path is named, beginning with ``where``.
    """
    return _checked_line(value, _mirror(type(value)), where)


def decode_value(data: bytes | msgspec.Raw, cls: type[T], where: str) -> T:
    """The dataclass that ``encode_value`` wrote, checked as ``load`` checks it.

    Raises:
        FileFormatError: if anything is wrong; the message begins with ``where``.
    """
    try:
        with garbage_collection_paused():
            value: T = _decoder(typing.cast("Any", cls)).decode(data)
            twice = None
            if _encode(value) != bytes(data):  # laid out by somebody else: nothing may be ignored
                msgspec.json.decode(data, type=_mirror(cls))
                twice = _path_of_duplicate(json.loads(bytes(data), object_pairs_hook=_Pairs), "$")
    except _UNREADABLE as error:
        raise FileFormatError(f"{where}: {cut(_reason(error, '$'), _LONGEST_MESSAGE)}.") from None
    if twice is not None:
        raise FileFormatError(f"{where}: {twice} is there twice.")
    return value


@functools.cache
def _decoder(cls: Any) -> Any:
    return msgspec.json.Decoder(cls)


# --- messages ----------------------------------------------------------------------------------------------------


def _reason(error: BaseException, where: str) -> str:
    """What msgspec or a dataclass objects to, with the path of the value: ``$.features[3].max: expected float, got str``."""
    if isinstance(error, RecursionError):
        return f"{where}: nested too deeply"
    if isinstance(error, UnicodeError):
        return f"{where}: text that is not UTF-8"
    message, _, path = str(error).partition(" - at `")
    if "1.7976931348623157e+308" in message:
        message = "expected a finite number, got NaN or infinity"
    message = message.replace("`", "").replace("null", "None" if "got" in message else "null").rstrip(".")
    message = message[:1].lower() + message[1:] if message.startswith(("Expected", "Object")) else message
    if path.startswith("key` in `"):
        path, message = path.removeprefix("key` in `"), f"a key: {message}"
    return f"{where}{path.removeprefix('$').rstrip('`')}: {message}"


# --- text that UTF-8 cannot hold ------------------------------------------------------------------------------------
# A token's text may hold half a surrogate pair. In the header its place is taken by U+FFFD, and "vocab_surrogates" holds
# the exact text of these tokens: its UTF-8 bytes, the halves encoded like any other character, as hex. (JSON's own escapes
# would join a high half and a low half to one character.)

_HALF_PAIR = re.compile("[\ud800-\udfff]")


def hide_half_pairs(header: Document) -> Document:
    """The same with a ``vocab`` that UTF-8 can hold, and the exact texts beside it as ``vocab_surrogates``."""
    vocab = header.get("vocab")
    if not isinstance(vocab, dict):
        return header
    texts = {key: text for key, text in vocab.items() if isinstance(text, str) and _HALF_PAIR.search(text)}
    if not texts:
        return header
    hidden = {key: _HALF_PAIR.sub("\ufffd", text) for key, text in texts.items()}
    exact = {key: text.encode("utf-8", "surrogatepass").hex() for key, text in texts.items()}
    return header | {"vocab": vocab | hidden, "vocab_surrogates": exact}


def show_half_pairs(header: Document) -> Document:
    """The inverse of ``hide_half_pairs``.

    Raises:
        ValueError: if an exact text is none.
    """
    exact = header.pop("vocab_surrogates", msgspec.UNSET)
    if exact is not msgspec.UNSET:
        texts = {key: bytes.fromhex(text).decode("utf-8", "surrogatepass") for key, text in exact.items()}
        header["vocab"] = header["vocab"] | texts
    return header


def _path_of_half_pair(value: object, where: str) -> str | None:
    """The path of the first text that UTF-8 cannot hold."""
    items: Iterable[tuple[str, object]] = ()
    if isinstance(value, str):
        return where if _HALF_PAIR.search(value) else None
    if isinstance(value, dict):
        items = ((f"{where}.{key}".encode("ascii", "backslashreplace").decode(), item) for key, item in value.items())
    elif isinstance(value, list):
        items = ((f"{where}[{index}]", item) for index, item in enumerate(value))
    return next((path for inner, item in items if (path := _path_of_half_pair(item, inner))), None)


# --- kinds: what is read from the dataclasses themselves -------------------------------------------------------------


@dataclass(frozen=True)
class _Kind:
    """One class that can be saved, and the types and functions made from its type hints."""

    cls: Any
    lines_field: str
    header_fields: tuple[str, ...]
    decode_header: Callable[[msgspec.Raw | bytes], Any]
    decode_line: Callable[[msgspec.Raw | bytes], Any]
    header_mirror: Any
    line_mirror: Any
    document_mirror: Any

    @property
    def name(self) -> str:
        return str(self.cls.__name__)

    def opening(self, header: bytes) -> bytes:
        """The first line of a document."""
        start = f'{{"format": "{FORMAT}", "kind": "{self.name}", "version": {VERSION}, "header": '
        return start.encode() + header + b', "features": ['


@functools.cache
def _kind(cls: Any) -> _Kind:
    if cls.__name__ not in LINES_FIELD:
        raise InputError(f"Only {' and '.join(LINES_FIELD)} can be saved as a file, not {cls.__name__}.")
    lines_field = LINES_FIELD[cls.__name__]
    hints = _field_hints(cls)
    _, line = typing.get_args(hints.pop(lines_field))
    hidden = {"vocab_surrogates": dict[int, str] | msgspec.UnsetType} if "vocab" in hints else {}
    header_name = f"{cls.__name__}Header"
    needed = {field.name for field in dataclasses.fields(cls) if not _has_default(field)}
    added = {name: hint | msgspec.UnsetType for name, hint in hints.items() if name not in needed}
    header = _struct(header_name, {name: hints[name] for name in hints if name in needed}, added | hidden)
    strict_hints = {name: _mirror(hints[name]) for name in hints if name in needed}
    strict_added = {name: _mirror(hints[name]) | msgspec.UnsetType for name in added}
    told = f"Everything of a {cls.__name__} but the features."
    header_mirror = _struct(header_name, strict_hints, strict_added | hidden, told)
    line_mirror = _mirror(line)
    fixed = {"format": _only(FORMAT), "kind": _only(cls.__name__), "version": _only(VERSION)}
    contents = {"header": header_mirror, "features": types.GenericAlias(list, (line_mirror,))}
    return _Kind(
        cls=cls,
        lines_field=lines_field,
        header_fields=tuple(hints),
        decode_header=msgspec.json.Decoder(header).decode,
        decode_line=msgspec.json.Decoder(line).decode,
        header_mirror=header_mirror,
        line_mirror=line_mirror,
        document_mirror=_struct(cls.__name__, fixed | contents, {}, cls.__doc__),
    )


def _only(value: str | int) -> Any:
    """The type that holds nothing else than ``value``."""
    return Literal[value]


def _field_hints(cls: Any) -> dict[str, Any]:
    """The resolved types of the fields."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _mirror(hint: Any) -> Any:
    """The strict counterpart of a type: dataclasses become structs, floats must be finite."""
    if hint is float:
        return _Finite
    if hasattr(hint, "__dataclass_fields__"):
        return _mirror_class(hint)
    arguments = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if not arguments or origin is Literal:
        return hint
    if origin in (typing.Union, types.UnionType):
        return typing.Union[tuple(map(_mirror, arguments))]  # noqa: UP007  # not written out: computed
    return origin[tuple(map(_mirror, arguments))]


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


@functools.cache
def _mirror_class(cls: Any) -> Any:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    required: dict[str, Any] = {}
    optional: dict[str, Any] = {}
    for name, hint in _field_hints(cls).items():
        field = fields[name]
        (optional if _has_default(field) else required)[name] = _mirror(hint)
    return _struct(
        cls.__name__, required, {name: hint | msgspec.UnsetType for name, hint in optional.items()}, cls.__doc__
    )


def _struct(name: str, required: dict[str, Any], optional: dict[str, Any], doc: str | None = None) -> Any:
    """A strict struct; ``gc=False``, since these trees hold no cycles."""
    fields: list[Any] = [*required.items(), *((field, hint, msgspec.UNSET) for field, hint in optional.items())]
    namespace = {"__doc__": inspect.cleandoc(doc).partition("\n\n")[0].replace("\n", " ")} if doc else {}
    return msgspec.defstruct(name, fields, namespace=namespace, forbid_unknown_fields=True, kw_only=True, gc=False)


@contextlib.contextmanager
def garbage_collection_paused() -> Iterator[None]:
    """Many small objects and no cycles: the collector would look at all of them again and again, in vain."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            if not gc.get_freeze_count():
                gc.freeze()  # frozen and unfrozen, the new objects count as old ones, without a look at each
                gc.unfreeze()
            gc.enable()


# --- the schema --------------------------------------------------------------------------------------------------


def schema(*classes: type) -> bytes:
    """The JSON Schema of the files that hold these classes (``docs/schema.json``)."""
    mirrors = [_kind(cls).document_mirror for cls in classes]
    refs, definitions = msgspec.json.schema_components(mirrors, ref_template="#/$defs/{name}")
    whole = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Files of sae_vis, format version {VERSION}",
        "anyOf": list(refs),
        "$defs": definitions,
    }
    return msgspec.json.format(_encode(whole), indent=2) + b"\n"
