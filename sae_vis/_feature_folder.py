"""A feature folder: a run that writes features as they are finished, so that memory holds few and a stopped run goes on.

::

    run.json                      parameters and provenance, and the checksums of the next two
    vocab.json.gz                 the texts of the whole vocabulary
    rows.bin                      the token ids of all rows, little-endian uint32 [n_rows, seq_len]; not with store_rows=False
    features-00000.json.gz        a part: one gzip member a feature, each a line of JSON
    features-00000.index.json.gz  where each of its features stands, and which tokens and rows they show

Every file is written beside its place and renamed. ``run.json`` comes first and makes the folder ours; a part counts only
once its index is there. So a run that is killed leaves at most a part without an index, which the next run writes over.

This module imports no dataclass of the features: like ``_json`` it reads the class that it is given.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import itertools
import mmap
import os
import re
import sys
import weakref
import zlib
from abc import abstractmethod
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, Self, TypeVar, get_args, get_type_hints

import msgspec
from zlib_ng import zlib_ng

from sae_vis import _json
from sae_vis._errors import FileFormatError, InputError, check_path, cut, shown
from sae_vis._params import RUN_OPTIONS, FeatureVisParams

try:
    import fcntl
except ImportError:  # Windows: nothing holds two runs out of one folder there
    fcntl = None  # type: ignore[assignment]

M = TypeVar("M")
V = TypeVar("V")
S = TypeVar("S", bound=msgspec.Struct)
PathLike = str | os.PathLike[str]

VERSION = 2  # files of version 1 are read too
RUN, VOCAB, ROWS = "run.json", "vocab.json.gz", "rows.bin"
_INDEX = re.compile(r"features-(\d{5,9})\.index\.json\.gz")
COMPRESSING = 2  # threads
CACHED = 32  # features that are kept in memory
SET_BY_PEOPLE = ("label", "note", "starred", "extras")  # of a feature; its numbers are the run's
BYTES_PER_TOKEN = 4
# What the run itself finds out on its way. It follows from everything else, which is compared.
_FOUND = ("direct_effect", "direct_effect_reason", "notes", "map_variance", "map_sample")
_AGAIN = "remove its index, and the next run into this folder fetches its features again"


# --- mappings that read on access ------------------------------------------------------------------------------------


class LazyMapping(Mapping[int, V]):
    """A mapping with rising keys, which are known, to values that are read when they are asked for."""

    _places: Mapping[int, Any]

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[int]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __eq__(self, other: object) -> bool:
        """Whether keys and values are the same, compared one by one, so that few are in memory."""
        if not isinstance(other, Mapping):
            return NotImplemented
        return self._places.keys() == other.keys() and all(self[key] == other[key] for key in self)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self):,}>"

    @abstractmethod
    def __getitem__(self, key: int) -> V: ...


class JoinedMapping(LazyMapping[V]):
    """Two mappings as one; the first counts where both have a key."""

    def __init__(self, one: Mapping[int, V], other: Mapping[int, V]) -> None:
        self._places = dict(sorted({**dict.fromkeys(other, other), **dict.fromkeys(one, one)}.items()))

    def __getitem__(self, key: int) -> V:
        return self.part(key)[key]

    def part(self, key: int) -> Mapping[int, V]:
        """The one of both that the key's value comes from."""
        return self._places[key]  # type: ignore[no-any-return]


def joined(one: Mapping[int, V], other: Mapping[int, V]) -> Mapping[int, V]:
    """Both as one mapping with rising keys, which reads nothing where either is lazy."""
    if isinstance(one, LazyMapping) or isinstance(other, LazyMapping):
        return JoinedMapping(one, other)
    return dict(sorted({**one, **other}.items()))


def change(mapping: Mapping[int, Any], key: int, fields: Mapping[str, Any]) -> None:
    """Set fields of a value for good, also where it is read anew from a file each time."""
    if isinstance(mapping, JoinedMapping):
        change(mapping.part(key), key, fields)
    elif isinstance(mapping, FolderFeatures):
        mapping.change(key, fields)
    else:
        for name, value in fields.items():
            setattr(mapping[key], name, value)


def some_fields(mapping: Mapping[int, Any], key: int, struct: type[S]) -> Any:
    """An object with some fields of a value, quick where it is read from a file; ``struct`` has their names and types."""
    if isinstance(mapping, JoinedMapping):
        return some_fields(mapping.part(key), key, struct)
    if not isinstance(mapping, FolderFeatures):
        return mapping[key]
    found = mapping.partly(key, struct)
    for name, value in mapping.changes(key).items():
        if name in struct.__struct_fields__:
            setattr(found, name, value)
    return found


class _Place(NamedTuple):
    """Where a feature's line stands: which part, from which byte, how many bytes, and how many of them inflated."""

    part: int
    offset: int
    size: int
    length: int


class FolderFeatures(LazyMapping[Any]):
    """The features of a folder. The last few that were read are kept, and of all others what was said of them since.

    A feature that somebody holds is the same object each time, and when it is let go, what was set on it is noted.
    """

    def __init__(
        self, folder: Path, cls: Any, places: Mapping[int, _Place], changes: dict[int, dict[str, Any]] | None = None
    ) -> None:
        self._folder, self._cls, self._places = folder, cls, dict(sorted(places.items()))
        self._changes = changes or {}  # feature -> fields that were set since, in memory
        self._recent: dict[int, Any] = {}
        self._held: dict[int, weakref.ref[Any]] = {}
        self._noted: dict[int, dict[str, Any]] = {}  # of those that are held, what is known to be said of them

    def __reduce__(self) -> tuple[Any, ...]:
        for key in list(self._held):
            self.changes(key)
        return FolderFeatures, (self._folder, self._cls, self._places, self._changes)

    def __getitem__(self, key: int) -> Any:
        self._places[key]  # a key that is not there, or is none, fails as in a dict
        found = self._object(key)
        if found is None:
            found = self._read(key)
            for name, value in self._changes.get(key, {}).items():
                setattr(found, name, copy.deepcopy(value))
            self._hold(key, found)
        self._recent.pop(key, None)
        self._recent[key] = found
        if len(self._recent) > CACHED:
            del self._recent[next(iter(self._recent))]
        return found

    def _object(self, key: int) -> Any:
        """The feature, if somebody holds it."""
        held = self._held.get(key)
        return None if held is None else held()

    def _hold(self, key: int, feature: Any) -> None:
        owner, fields = weakref.ref(self), vars(feature)  # which outlive the feature

        def on_let_go(_: object) -> None:
            mapping = owner()
            if mapping is not None:
                mapping.forget(key, fields)

        self._held[key], self._noted[key] = weakref.ref(feature, on_let_go), _said(fields)

    def forget(self, key: int, fields: Mapping[str, Any]) -> None:
        """Nobody holds a feature any more: note what was set on it."""
        self._note(key, fields)
        del self._held[key], self._noted[key]

    def _note(self, key: int, fields: Mapping[str, Any]) -> None:
        """What was set on a feature since it was looked at last."""
        now, before = _said(fields), self._noted[key]
        changed = {name: value for name, value in now.items() if value != before[name]}
        if changed:
            self._changes.setdefault(key, {}).update(changed)
            self._noted[key] = now

    def change(self, key: int, fields: Mapping[str, Any]) -> None:
        """Set fields of a feature for good."""
        self.changes(key)
        self._changes.setdefault(key, {}).update(fields)
        found = self._object(key)
        if found is not None:
            vars(found).update(fields)
            self._noted[key] = _said(vars(found))

    def changes(self, key: int) -> Mapping[str, Any]:
        """The fields of a feature that were set since it was written, also those that were set on the object itself."""
        found = self._object(key)
        if found is not None:
            self._note(key, vars(found))
        return self._changes.get(key, {})

    def partly(self, feature: int, struct: type[S]) -> S:
        """Some fields of a feature, many times faster than all of them; ``struct`` has their names and types.

        Raises:
            FileFormatError: if the file is damaged.
        """
        line, where = self._line(feature)
        try:
            return msgspec.json.decode(line, type=struct)
        except (msgspec.MsgspecError, RecursionError, ValueError) as error:
            raise FileFormatError(f"{where}: {cut(str(error))}: {_AGAIN}.") from None

    def _read(self, feature: int) -> Any:
        line, where = self._line(feature)
        value: Any = _json.decode_value(line, self._cls, where)
        if value.feature_idx != feature:
            raise FileFormatError(f"{where}: it holds feature {value.feature_idx}: {_AGAIN}.")
        return value

    def _line(self, feature: int) -> tuple[bytes, str]:
        """The feature's line of JSON, and what an error in it begins with."""
        place: _Place = self._places[feature]
        path = self._folder / part_name(place.part)
        where = f"{path}: feature {feature}"
        return _inflated(path, place, where), where


def _said(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What people set on a feature, as it is now, whatever they set later."""
    return {name: copy.deepcopy(fields[name]) for name in SET_BY_PEOPLE}


def _inflated(path: Path, place: _Place, where: str) -> bytes:
    """The line of a feature; never more bytes than its index says."""
    try:
        with path.open("rb") as stream:
            stream.seek(place.offset)
            member = stream.read(place.size)
        inflate = zlib.decompressobj(_json.GZIP_BITS)
        line = inflate.decompress(member, place.length + 1)
    except OSError as error:
        raise FileFormatError(f"{where}: cannot be read: {error.strerror or error}.") from None
    except zlib.error as error:
        raise FileFormatError(f"{where}: the gzip stream is damaged ({error}): {_AGAIN}.") from None
    if not inflate.eof or inflate.unused_data or len(line) != place.length:
        raise FileFormatError(f"{where}: it does not stand where the index says: {_AGAIN}.")
    return line


class FolderRows(LazyMapping[list[int]]):
    """The rows of a folder that its features show, read from the file of all rows."""

    def __init__(self, path: Path, seq_len: int, shown_rows: Iterable[int]) -> None:
        self._path, self._seq_len = path, seq_len
        self._places = dict.fromkeys(sorted(shown_rows))

    def __reduce__(self) -> tuple[Any, ...]:
        return FolderRows, (self._path, self._seq_len, list(self._places))

    def __getitem__(self, key: int) -> list[int]:
        self._places[key]
        return self._row(key).tolist()

    def token_ids(self) -> set[int]:
        """Every token of these rows."""
        ids: set[int] = set()
        for row in self._places:
            ids.update(self._row(row))
        return ids

    def _row(self, row: int) -> array[int]:
        size = self._seq_len * BYTES_PER_TOKEN
        values = array("I")
        values.frombytes(self._mapped[row * size : (row + 1) * size])
        if sys.byteorder == "big":
            values.byteswap()
        if len(values) != self._seq_len:
            raise FileFormatError(f"{self._path}: row {row} is not there: the file is truncated.")
        return values

    @functools.cached_property
    def _mapped(self) -> mmap.mmap:
        return _mapped(self._path)


def _mapped(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as stream:
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise FileFormatError(f"{path}: cannot be read: {error}.") from None


# --- the files -------------------------------------------------------------------------------------------------------


class _Top(msgspec.Struct):
    """What every JSON file of a folder begins with; the rest is looked at when this is known to be right."""

    format: Any = None
    kind: Any = None
    version: Any = None


class _RunFile(msgspec.Struct, forbid_unknown_fields=True):
    """``run.json``. The checksums are CRC-32; that of the rows is None where they are not stored."""

    format: Literal["sae_vis"]
    kind: Literal["FeatureFolder"]
    version: Literal[1, 2]
    params: msgspec.Raw
    provenance: msgspec.Raw
    vocab_crc32: int
    rows_crc32: int | None


class _VocabFile(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """``vocab.json.gz``; what is in it is what a header has under the same names."""

    format: Literal["sae_vis"]
    kind: Literal["FeatureVocab"]
    version: Literal[1, 2]
    vocab: dict[int, str]
    vocab_bytes: dict[int, str]
    vocab_surrogates: dict[int, str] | msgspec.UnsetType = msgspec.UNSET


class _IndexFile(msgspec.Struct, forbid_unknown_fields=True):
    """The index of a part: of each feature the id, the size of its gzip member and the length of its line, in bytes."""

    format: Literal["sae_vis"]
    kind: Literal["FeatureIndex"]
    version: Literal[1, 2]
    features: list[int]
    sizes: list[int]
    lengths: list[int]
    token_ids: list[int]
    rows: list[int]


F = TypeVar("F", _RunFile, _VocabFile, _IndexFile)


def part_name(number: int) -> str:
    """The name of a part."""
    return f"features-{number:05d}.json.gz"


def index_name(number: int) -> str:
    """The name of a part's index."""
    return f"features-{number:05d}.index.json.gz"


_KINDS: dict[Any, str] = {_RunFile: "FeatureFolder", _VocabFile: "FeatureVocab", _IndexFile: "FeatureIndex"}


def _decoded(path: Path, kind: type[F]) -> F:
    """One JSON file of a folder.

    Raises:
        FileFormatError: if it is missing, damaged, of another kind or of a newer version.
    """
    return _decoded_bytes(path, _json.read_file(path), kind)


def _decoded_bytes(path: Path, data: bytes, kind: type[F]) -> F:
    expected = _KINDS[kind]
    try:
        top = msgspec.json.decode(data, type=_Top)
        problem = _problem(top, expected)
        if not problem:
            return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        problem = f"not readable as a {expected} of sae_vis: {cut(str(error))}"
    raise FileFormatError(f"{path}: {problem}.")


def _problem(top: _Top, expected: str) -> str | None:
    """What is wrong with the beginning of a file."""
    if top.format != _json.FORMAT or top.kind != expected:
        return f"a {expected} of sae_vis was expected, got {shown(top.kind, 60)}"
    if isinstance(top.version, int) and top.version > VERSION:
        version = shown(top.version, 40)
        return f"format version {version}, but this sae_vis reads up to {VERSION}: install a newer sae_vis"
    return None


def _vocab_bytes(vocab: Mapping[int, str], partial: Mapping[int, str]) -> bytes:
    """The content of the vocabulary's file."""
    texts = _json.hide_half_pairs({"vocab": dict(sorted(vocab.items())), "vocab_bytes": dict(sorted(partial.items()))})
    return msgspec.json.encode(_VocabFile(_json.FORMAT, "FeatureVocab", VERSION, **texts))  # type: ignore[arg-type]


def _gzip(data: bytes) -> bytes:
    # Level 6 takes half as long again for 3 % less. Without a time, equal data gives equal files.
    return zlib_ng.compress(data, 4, _json.GZIP_BITS)


# --- the folder ------------------------------------------------------------------------------------------------------


class FeatureFolder(Generic[M]):
    """A folder of features, open for reading or, after ``create_or_resume``, for adding; close it, or use ``with``.

    ``params`` and ``provenance`` are those of the run; the latter is the object that was given, and what its notes gain
    on the way is kept.
    """

    def __init__(self, cls: type[M], folder: Path, params: FeatureVisParams, provenance: Any) -> None:
        self.cls, self.params, self.provenance = cls, params, provenance
        self.folder = Path(os.path.abspath(folder))  # noqa: PTH100 - as it is now, links and all, wherever the caller goes
        self._line_class: Any = get_args(get_type_hints(cls)["feature_data_dict"])[1]
        self._parts: set[int] = set()
        self._places: dict[int, _Place] = {}
        self._token_ids: set[int] = set()  # of all parts together: those of each would fill the memory
        self._shown_rows: set[int] = set()
        self.checksums: tuple[int, int | None] = (0, None)  # of the vocabulary and of the rows
        self._run_written = b""
        self._lock: int | None = None

    @classmethod
    def existing(cls, kind: type[M], folder: PathLike) -> FeatureFolder[M]:
        """What is in a folder, for reading; ``kind`` is ``MultiFeatureData``.

        Raises:
            FileFormatError: if it is not a feature folder, or damaged.
        """
        path = Path(check_path(folder, "folder"))
        try:
            is_folder, is_run = path.is_dir(), (path / RUN).is_file()
        except OSError as error:
            raise FileFormatError(f"{os.fspath(folder)}: cannot be read: {error.strerror}.") from None
        if not is_run:
            told = f"it holds no {RUN}, so it is no feature folder" if is_folder else "there is no such folder"
            raise FileFormatError(
                f"{os.fspath(folder)}: {told}. One is what get_feature_data(..., out_dir=...) writes."
            )
        hints = get_type_hints(kind)
        data = _json.read_file(path / RUN)
        run = _decoded_bytes(path / RUN, data, _RunFile)
        params = _json.decode_value(run.params, FeatureVisParams, f"{path / RUN}: params")
        if run.version == 1:
            params = dataclasses.replace(params, **_json.ADDED_IN_2)
        provenance = _json.decode_value(run.provenance, hints["provenance"], f"{path / RUN}: provenance")
        if params.store_rows != (run.rows_crc32 is not None):
            raise FileFormatError(f"{path / RUN}: rows_crc32 does not fit store_rows={params.store_rows}.")
        opened = cls(kind, path, params, provenance)
        opened.checksums, opened._run_written = (run.vocab_crc32, run.rows_crc32), data
        opened._read_parts()
        return opened

    @classmethod
    def create_or_resume(
        cls,
        kind: type[M],
        folder: PathLike,
        params: FeatureVisParams,
        provenance: Any,
        vocab: Mapping[int, str],
        vocab_bytes: Mapping[int, str],
        rows: bytes | bytearray | memoryview | None,
    ) -> FeatureFolder[M]:
        """The folder of a run, new, or where an earlier call of the same run left it.

        Args:
            kind: ``MultiFeatureData``.
            folder: it may be absent; its parent must be there.
            params: what was asked for. Options of how a run is made may differ from an earlier call's.
            provenance: what is run on what. It gains the notes that an earlier call left, and what that found.
            vocab: the texts of the whole vocabulary.
            vocab_bytes: the bytes (hex) of those that are only part of a character.
            rows: all token ids as little-endian uint32 ``[n_rows, seq_len]``; None with ``store_rows=False``.

        Raises:
            InputError: if the folder holds anything else, another run or one that is being written, or cannot be written.
            FileFormatError: if what it holds is damaged.
        """
        path = Path(check_path(folder, "folder"))
        _check_rows(rows, params, provenance)
        _make(path)
        lock = _locked(path)
        try:
            texts = _vocab_bytes(vocab, vocab_bytes)
            crcs = zlib.crc32(texts), None if rows is None else zlib.crc32(rows)
            made = cls(kind, path, params, provenance)
            made.checksums = crcs
            if (path / RUN).exists():
                earlier = cls.existing(kind, path)
                _check_same_run(earlier, made)
                made._take_over(earlier)
            made._lock = lock
            made._write_run()
            made._write_whole(texts, rows)
        except BaseException:
            _unlock(lock)
            raise
        return made

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let other runs write into the folder."""
        _unlock(self._lock)
        self._lock = None

    @property
    def finished(self) -> list[int]:
        """The features that are there, in rising order."""
        return sorted(self._places)

    def add(self, features: Sequence[Any]) -> None:
        """Write finished features as one part: a hundred or so at a time, since each part is two files.

        Raises:
            InputError: if one is there already or not of the dictionary, a value cannot be written, or the folder cannot.
        """
        if not features:
            return
        ids = [feature.feature_idx for feature in features]
        twice = [i for i, times in Counter(ids).items() if times > 1 or i in self._places]
        if twice:
            raise InputError(f"{self.folder}: feature {twice[0]} is there already.")
        if not _within(ids, 0, self.provenance.d_hidden):
            raise InputError(
                f"{self.folder}: features must be from 0 to {self.provenance.d_hidden - 1}, got {max(ids)}."
            )
        lines = [_json.encode_value(feature, f"$ (feature {feature.feature_idx})") for feature in features]
        with ThreadPoolExecutor(COMPRESSING) as threads:
            members = list(threads.map(_gzip, lines))
        index = _IndexFile(
            _json.FORMAT,  # type: ignore[arg-type]
            "FeatureIndex",
            VERSION,  # type: ignore[arg-type]
            ids,
            list(map(len, members)),
            list(map(len, lines)),
            sorted(set().union(*(feature.vocab_ids() for feature in features))),
            sorted(set().union(*(feature.shown_rows() for feature in features))),
        )
        number = next(number for number in itertools.count() if number not in self._parts)
        self._check_index(self.folder / index_name(number), index)
        self._write_run()  # the notes that these features brought
        _json.write_atomic(self.folder / part_name(number), members)
        _json.write_atomic(self.folder / index_name(number), _gzip(msgspec.json.encode(index)))
        self._enter(number, index)

    def data(self) -> M:
        """All features that are there, read when they are asked for.

        Raises:
            FileFormatError: if the vocabulary or the rows are damaged.
        """
        if self._lock is not None:
            self._write_run()
        ids = set(self._token_ids)
        rows: Mapping[int, list[int]] = {}
        if self.params.store_rows:
            rows = self._rows()
            ids |= rows.token_ids()
        vocab, vocab_bytes = self._vocab()
        return self.cls(  # type: ignore[call-arg]
            feature_data_dict=FolderFeatures(self.folder, self._line_class, self._places),
            vocab={i: vocab[i] for i in sorted(ids) if i in vocab},
            vocab_bytes={i: vocab_bytes[i] for i in sorted(ids) if i in vocab_bytes},
            rows=rows,
            params=self.params,
            provenance=self.provenance,
        )

    # -- reading --

    def _read_parts(self) -> None:
        names = [file.name for file in self.folder.iterdir()]
        for number in sorted(int(found[1]) for found in map(_INDEX.fullmatch, names) if found):
            path = self.folder / index_name(number)
            index = _decoded(path, _IndexFile)
            self._check_index(path, index)
            self._check_size(number, index)
            twice = self._places.keys() & index.features
            if twice:
                raise FileFormatError(f"{path}: feature {min(twice)} is in another part too.")
            self._enter(number, index)

    def _check_size(self, number: int, index: _IndexFile) -> None:
        path = self.folder / part_name(number)
        try:
            size = path.stat().st_size
        except OSError as error:
            raise FileFormatError(f"{path}: cannot be read: {error.strerror}; {_AGAIN}.") from None
        if size != sum(index.sizes):
            raise FileFormatError(
                f"{path}: it has {size:,} bytes, its index says {sum(index.sizes):,}: {_AGAIN}. Features {index.features[0]} "
                f"to {index.features[-1]} are in it."
            )

    def _check_index(self, path: Path, index: _IndexFile) -> None:
        """Lists of one length, and nothing out of range."""
        told = self.provenance
        n = len(index.features)
        right = (
            n > 0
            and n == len(index.sizes) == len(index.lengths) == len(set(index.features))
            and _within(index.features, 0, told.d_hidden)
            and _within([*index.sizes, *index.lengths], 1, _json.MAX_BYTES)
            and _within(index.token_ids, 0, 2**63)
            and _within(index.rows, 0, told.n_rows)
        )
        if not right:
            raise FileFormatError(
                f"{path}: features, sizes and lengths must be lists of one length with {told.d_hidden} features and "
                f"{told.n_rows} rows at most."
            )

    def _enter(self, number: int, index: _IndexFile) -> None:
        self._parts.add(number)
        self._token_ids.update(index.token_ids)
        self._shown_rows.update(index.rows)
        offset = 0
        for feature, size, length in zip(index.features, index.sizes, index.lengths, strict=True):
            self._places[feature] = _Place(number, offset, size, length)
            offset += size

    def _rows(self) -> FolderRows:
        path, told = self.folder / ROWS, self.provenance
        mapped = _mapped(path)
        expected = told.n_rows * told.seq_len * BYTES_PER_TOKEN
        if len(mapped) != expected:
            raise FileFormatError(f"{path}: {expected:,} bytes expected, got {len(mapped):,}.")
        if zlib.crc32(mapped) != self.checksums[1]:
            raise FileFormatError(f"{path}: damaged: its checksum is not the one in {RUN}.")
        return FolderRows(path, told.seq_len, self._shown_rows)

    def _vocab(self) -> tuple[dict[int, str], dict[int, str]]:
        path = self.folder / VOCAB
        data = _json.read_file(path)
        file = _decoded_bytes(path, data, _VocabFile)
        if zlib.crc32(data) != self.checksums[0]:
            raise FileFormatError(f"{path}: damaged: its checksum is not the one in {RUN}.")
        texts = _json.show_half_pairs({"vocab": file.vocab, "vocab_surrogates": file.vocab_surrogates})
        return texts["vocab"], file.vocab_bytes

    # -- writing --

    def _take_over(self, earlier: FeatureFolder[M]) -> None:
        """Go on where an earlier call stopped."""
        self._parts, self._places = earlier._parts, earlier._places
        self._token_ids, self._shown_rows = earlier._token_ids, earlier._shown_rows
        self._run_written = earlier._run_written
        before, now = earlier.params.features, self.params.features
        if before is not None and now is not None:
            now = tuple(sorted({*before, *now}))
        self.params = dataclasses.replace(self.params, features=None if before is None else now)
        then = earlier.provenance
        notes = list(dict.fromkeys([*then.notes, *self.provenance.notes]))
        self.provenance.notes[:] = notes
        self.provenance.direct_effect = then.direct_effect
        self.provenance.direct_effect_reason = then.direct_effect_reason

    def _write_run(self) -> None:
        """Write ``run.json`` if it does not hold this already."""
        file = _RunFile(
            _json.FORMAT,  # type: ignore[arg-type]
            "FeatureFolder",
            VERSION,  # type: ignore[arg-type]
            msgspec.Raw(_json.encode_value(self.params, "$.params")),
            msgspec.Raw(_json.encode_value(self.provenance, "$.provenance")),
            *self.checksums,
        )
        data = msgspec.json.encode(file) + b"\n"
        if data != self._run_written:
            _json.write_atomic(self.folder / RUN, data)
            self._run_written = data

    def _write_whole(self, texts: bytes, rows: bytes | bytearray | memoryview | None) -> None:
        """Write the vocabulary and the rows where they are not there yet."""
        for name, content, crc in (
            (VOCAB, _gzip(texts), self.checksums[0]),
            (ROWS, None if rows is None else bytes(rows), self.checksums[1]),
        ):
            if content is not None and not _is_there(self.folder / name, crc):
                _json.write_atomic(self.folder / name, content)


def _within(values: Sequence[int], low: int, end: int) -> bool:
    return not values or (min(values) >= low and max(values) < end)


def _is_there(path: Path, crc: int | None) -> bool:
    try:
        content = _json.read_file(path) if path.name == VOCAB else _mapped(path)
    except FileFormatError:
        return False
    return zlib.crc32(content) == crc


# --- whose folder it is ----------------------------------------------------------------------------------------------


def _make(path: Path) -> None:
    """The folder is there, and holds a run of ours or nothing."""
    try:
        path.mkdir(exist_ok=True)
        names = [file.name for file in path.iterdir()]
    except FileNotFoundError:
        raise InputError(f"Cannot make the folder {os.fspath(path)!r}: its parent does not exist.") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"Cannot use {os.fspath(path)!r} as a folder of features: {reason}.") from None
    foreign = [name for name in names if not _json.TEMPORARY.fullmatch(name)]
    if RUN not in foreign and foreign:
        raise InputError(
            f"The folder {os.fspath(path)!r} holds other files ({', '.join(map(shown, sorted(foreign)[:3]))}) and no run of "
            "sae_vis: give an empty or a new folder as out_dir."
        )


def _locked(path: Path) -> int | None:
    """Hold other runs out, where the system can: two in one folder would write over each other."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise InputError(
            f"Another run is writing into {os.fspath(path)!r}: wait for it, or give another out_dir."
        ) from None
    except OSError:  # a file system without locks
        os.close(descriptor)
        return None
    return descriptor


def _unlock(lock: int | None) -> None:
    if lock is not None:
        with contextlib.suppress(OSError):
            os.close(lock)


def _check_rows(rows: bytes | bytearray | memoryview | None, params: FeatureVisParams, provenance: Any) -> None:
    if (rows is not None) != params.store_rows:
        raise InputError(f"store_rows={params.store_rows}, but the rows are {'missing' if rows is None else 'given'}.")
    expected = provenance.n_rows * provenance.seq_len * BYTES_PER_TOKEN
    if rows is not None and memoryview(rows).nbytes != expected:
        raise InputError(f"The rows must have {expected:,} bytes, got {memoryview(rows).nbytes:,}.")


def _check_same_run(then: FeatureFolder[Any], now: FeatureFolder[Any]) -> None:
    """Raise where a folder holds another run: its features do not belong with these.

    Raises:
        InputError: with the names of what differs.
    """
    before, after = (dataclasses.replace(folder.params, **RUN_OPTIONS) for folder in (then, now))
    differing = _differences("params", before, after)
    differing += _differences("provenance", then.provenance, now.provenance, _FOUND)
    asked = [folder.params.features for folder in (then, now)]
    if now.params.correlate_features == "asked" and now.params.include_left_tables and asked[0] != asked[1]:
        differing.append("params.features (which correlate_features='asked' correlates with each other)")
    if not differing:
        pairs = zip(("the vocabulary's texts", "the rows"), then.checksums, now.checksums, strict=True)
        differing += [what for what, one, other in pairs if one != other]
    if differing:
        raise InputError(
            f"The folder {os.fspath(now.folder)!r} holds a run that this one cannot go on with, since these differ: "
            f"{'; '.join(differing)}. Give another out_dir, or call it as before."
        )


def _differences(what: str, then: Any, now: Any, passed_over: Sequence[str] = ()) -> list[str]:
    """The fields of a dataclass that differ, with both values; of a dict, its keys."""
    found = []
    for field in dataclasses.fields(then):
        one, other = getattr(then, field.name), getattr(now, field.name)
        if field.name in passed_over or one == other:
            continue
        if isinstance(one, dict) and isinstance(other, dict):
            keys = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
            pairs = [(f"{field.name}.{key}", one.get(key), other.get(key)) for key in keys]
        else:
            pairs = [(field.name, one, other)]
        found += [f"{what}.{name} (then {shown(a, 60)}, now {shown(b, 60)})" for name, a, b in pairs]
    return found
