"""A page whose features lie in files beside it: a folder that opens from disk and from any static host.

::

    index.html                  the page itself, with one feature in plain HTML, and the list of the shards
    features/00000-<hash>.js    a shard: the packed fragments of some features that follow each other
    assets/vocab-<hash>.js      how every token that the hover text may name is shown
    assets/labels-<hash>.js     the labels of the features, where there are any
    assets/rows00000-<hash>.js  some of the whole rows that examples come from, packed as ``_rows`` does it
    assets/overview-<hash>.js   the columns of the overview
    assets/examples0-<hash>.js  and so on: which features' examples show a token, for the search

The files are scripts, since a page that was opened from disk can load scripts and nothing else. They are named by their
contents and written first, ``index.html`` last: an older site works until then, and what only it used is removed. Its
Content-Security-Policy lets nothing add a script but the page's own, which ``js/site.js`` does.

Features are taken one after the other: memory does not grow with their number.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sae_vis import _json, _page, _rows
from sae_vis._errors import InputError, check_path, shown
from sae_vis._templates import Html, template

SHARD_BYTES = 2_000_000  # at most, but for a feature that is larger alone
INDEX, FEATURES, ASSETS = "index.html", "features", "assets"
# What a site may consist of, but for index.html: only such files are removed, and only beside such files is one written.
_OWN = {
    FEATURES: re.compile(r"\d{5,9}-[0-9a-f]{16}\.js"),
    ASSETS: re.compile(r"(vocab|labels|overview|examples\d{1,5}|rows\d{5,9})-[0-9a-f]{16}\.js"),
}
_MARKS = (
    re.compile(rb'<meta name="generator" content="sae_vis'),
    re.compile(rb'<script type="application/json" (data-json|id)="site">'),  # an id in older sites
)


class Packed(NamedTuple):
    """One feature of a site; ``fragment`` is what ``_page.pack`` made of its HTML."""

    feature: int
    label: str | None
    fragment: str
    note: str | None = None
    starred: bool = False


def write(
    folder: str | os.PathLike[str],
    title: str,
    page_title: str,
    body: Html,
    vocab: object,
    features: Iterable[Packed],
    rows: Mapping[int, Sequence[int]] | None = None,
    whose: Mapping[str, object] | None = None,
    assets: Callable[[], Mapping[str, str]] = dict,
) -> None:
    """Write a site.

    Args:
        folder: it may be absent, or hold an older site, which is replaced.
        title: the title of the document as it is at first.
        page_title: the title behind ``Feature 8 · `` of each feature.
        body: the body of the page, which needs all that a feature may need.
        vocab: how tokens are shown, as ``js/tooltip.js`` reads it.
        features: in rising order; each is taken when the one before is written or kept for writing.
        rows: the whole rows that examples come from.
        whose: whose features these are, for ``js/labels.js``.
        assets: gives, after all features were taken, what the page loads by name besides: packed text.

    Raises:
        InputError: if the folder holds anything else, or cannot be written.
    """
    path = Path(check_path(folder, "folder"))
    _make(path)
    noted = _Noted()
    shards = [
        (_put(path, FEATURES, f"{number:05d}", content), first)
        for number, (first, content) in enumerate(_shards(noted.passing(features)))
    ]
    files = {"vocab": _put(path, ASSETS, "vocab", _received("vocab", _json_string(vocab)))}
    if noted.labels:
        files["labels"] = _put(path, ASSETS, "labels", _received("labels", _json_string(noted.labels)))
    row_files = list(_put_rows(path, rows or {}))
    said = {"notes": noted.notes, "stars": noted.stars, **(whose or {})}
    listed: dict[str, object] = {"rows": row_files} if row_files else {}
    others = {name: _put(path, ASSETS, name, _received(name, f'"{text}"')) for name, text in assets().items()}
    elements = [
        _page.data("index", {"ranges": _ranges(noted.ids), "labels": {}, "title": page_title, **said}),
        _page.common(),
        template("site.html").fill(json=_page.json_text({"shards": shards, **files, **listed, "assets": others})),
    ]
    document = _page.document(title, body, elements, loads=True)
    _json.write_atomic(path / INDEX, document.encode())
    _remove_others(path, {*(file for file, _ in (*shards, *row_files)), *files.values(), *others.values()})


class _Noted:
    """What is told of all features, collected while they pass."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.labels: dict[int, str] = {}
        self.notes: dict[int, str] = {}
        self.stars: list[int] = []

    def passing(self, features: Iterable[Packed]) -> Iterator[Packed]:
        """The same features, one after the other."""
        for packed in features:
            self.ids.append(packed.feature)
            if packed.label:
                self.labels[packed.feature] = packed.label
            if packed.note:
                self.notes[packed.feature] = packed.note
            if packed.starred:
                self.stars.append(packed.feature)
            yield packed


# --- the contents ----------------------------------------------------------------------------------------------------


def _shards(features: Iterable[Packed]) -> Iterator[tuple[int, bytes]]:
    """The place of each shard's first feature among all, and the shard's content."""
    number = place = first = size = 0
    entries: list[str] = []
    for place, packed in enumerate(features):
        entry = f'"{packed.feature}":"{packed.fragment}"'  # base64: there is nothing to escape
        if entries and size + len(entry) + 100 > SHARD_BYTES:  # what stands around the entries is shorter
            yield first, _shard(number, entries)
            number, first, size, entries = number + 1, place, 0, []
        entries.append(entry)
        size += len(entry) + 2
    if entries:
        yield first, _shard(number, entries)


def _shard(number: int, entries: Sequence[str]) -> bytes:
    return _received(f"{number:05d}", "{" + ",\n".join(entries) + "}")


def _received(name: str, value: str) -> bytes:
    """A script that hands a value to the page; ASCII, so that no server can have it read in another encoding."""
    return f'saeVis.receive("{name}",{value});\n'.encode("ascii")


def _json_string(value: object) -> str:
    """A value as JSON in a string of JavaScript, which is parsed when it is needed."""
    return json.dumps(json.dumps(value, separators=(",", ":"), allow_nan=False))


def _ranges(ids: Sequence[int]) -> list[list[int]]:
    """Rising ids as pairs of the first and the last of those that follow each other."""
    ranges: list[list[int]] = []
    for i in ids:
        if ranges and i == ranges[-1][1] + 1:
            ranges[-1][1] = i
        else:
            ranges.append([i, i])
    return ranges


# --- the folder ------------------------------------------------------------------------------------------------------


def _put(folder: Path, kind: str, name: str, content: bytes) -> str:
    """Write a file whose name tells its content; its address, as seen from the page."""
    address = f"{kind}/{name}-{hashlib.blake2b(content, digest_size=8).hexdigest()}.js"
    _json.write_atomic(folder / address, content)
    return address


def _put_rows(folder: Path, rows: Mapping[int, Sequence[int]]) -> Iterator[tuple[str, int]]:
    """Write the files of the rows; the address of each and the number of its first row."""
    for number, part in enumerate(_rows.files(rows)):
        name = f"rows{number:05d}"
        yield _put(folder, ASSETS, name, _received(name, _page.json_text(_rows.packed(part)))), min(part)


def _make(path: Path) -> None:
    """The folder and those in it are there, and hold a site of ours, a part of one, or nothing."""
    try:
        path.mkdir(exist_ok=True)
        _check_own(path)
        for kind in _OWN:
            (path / kind).mkdir(exist_ok=True)
    except FileNotFoundError:
        raise InputError(f"Cannot make the folder {os.fspath(path)!r}: its parent does not exist.") from None
    except InputError:
        raise  # it is a ValueError too
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"Cannot write a site into {os.fspath(path)!r}: {reason}.") from None


def _check_own(path: Path) -> None:
    if (path / INDEX).is_file():
        content = (path / INDEX).read_bytes()
        foreign = [] if all(mark.search(content) for mark in _MARKS) else [INDEX]
    else:
        foreign = [
            file.name for file in path.iterdir() if file.name not in _OWN and not _json.TEMPORARY.fullmatch(file.name)
        ]
        foreign += [f"{kind}/{name}" for kind in _OWN if (path / kind).exists() for name in _others(path / kind)]
    if foreign:
        raise InputError(
            f"The folder {os.fspath(path)!r} holds other files ({', '.join(map(shown, sorted(foreign)[:3]))}) and no site of "
            "sae_vis: give an empty or a new folder."
        )


def _others(folder: Path) -> list[str]:
    """What in a folder of a site is not ours."""
    own = _OWN[folder.name]
    return [
        file.name
        for file in folder.iterdir()
        if not own.fullmatch(file.name) and not _json.TEMPORARY.fullmatch(file.name)
    ]


def _remove_others(path: Path, used: set[str]) -> None:
    """Remove the files of an older site that this one does not use."""
    for kind, own in _OWN.items():
        for file in list((path / kind).iterdir()):
            if own.fullmatch(file.name) and f"{kind}/{file.name}" not in used:
                with contextlib.suppress(OSError):  # it may be open in another program
                    file.unlink()


def size_of(folder: Path) -> tuple[int, int]:
    """The number of a site's files, and of their bytes together."""
    files: list[Any] = [folder / INDEX, *(file for kind in _OWN for file in (folder / kind).iterdir())]
    return len(files), sum(file.stat().st_size for file in files)
