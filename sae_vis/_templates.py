"""Find, read and fill the template files of ``html/``, ``css/`` and ``js/``.

A template is an HTML file with holes ``{{ name }}``. It is split by one regex, once, and filled by joining, so a value
that itself looks like a hole is inert. Every value is escaped unless its type is ``Html``. The first line of a template
may declare the files that its markup needs, ``<!-- needs: css/tables.css js/tooltip.js -->``; the needs travel with the
``Html`` up to the page, which writes each file once. Style sheets and scripts are included as they are, never filled.
"""

from __future__ import annotations

import html
import math
import os
import re
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Self

from sae_vis._errors import InputError, TemplateError, shown

Value = str | int | float  # bool is left out on purpose: "True" on a page is a mistake

_NO_NEEDS: frozenset[str] = frozenset()
_HOLE = re.compile(r"\{\{ *([a-z_][a-z0-9_]*) *\}\}")
_NEEDS = re.compile(r"\A<!-- needs: ([a-z0-9_./ -]+?) -->\n")
_FILE = re.compile(r"(css|html|js)/[a-z0-9_]{1,80}\.(css|html|js)")
_ASSET_ENDS = {"css": re.compile("</style", re.IGNORECASE), "js": re.compile("</script|<!--", re.IGNORECASE)}
_SPECIAL = re.compile("[&<>\"']")
# What HTML cannot hold, what could reorder the page and what cannot be seen: controls, line separators, bidi and zero-width
# characters, surrogates, noncharacters, the replacement character.
UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufdd0-\ufdef\ufeff\ufffd-\uffff"
    + "".join(chr(plane * 0x10000 + end) for plane in range(1, 17) for end in (0xFFFE, 0xFFFF))
    + "]"
)


_CSS_COMMENT = r"/\*(?:[^*]|\*(?!/))*\*/"  # to its own end, and never to that of a later one
_CSS_PIECES = re.compile(
    r"""(?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
    rf"|(?P<lines>[ \t]*(?:{_CSS_COMMENT}[ \t]*)*\n\s*(?:{_CSS_COMMENT}\s*)*)"  # the end of a line, with comments beside it
    rf"|{_CSS_COMMENT}",  # between other things, where even a space could mean something
    re.DOTALL,
)


class Html(str):
    """Text that is already HTML, with the names of the style sheets and scripts that it needs.

    Safe by default: ``Html + Html`` is ``Html``, but with a plain ``str`` on either side, and through any other string
    method, the result is a plain ``str``, which the next template escapes. Use ``join`` to put pieces together.
    """

    __slots__ = ("needs",)
    needs: frozenset[str]

    def __new__(cls, text: str = "", needs: frozenset[str] = _NO_NEEDS) -> Self:
        self = str.__new__(cls, text)
        self.needs = needs
        return self

    def __add__(self, other: str) -> str:
        text = str.__add__(self, other)
        return Html(text, self.needs | other.needs) if isinstance(other, Html) else text


def escape(text: str) -> Html:
    """``text`` as HTML that shows it and does nothing else, in an element or in a quoted attribute."""
    return Html(_escaped(text))


def _escaped(text: str) -> str:
    if not text.isprintable() or "\ufffd" in text:  # the common case is fast
        text = UNPRINTABLE.sub(lambda match: f"[U+{ord(match[0]):04X}]", text)
    return html.escape(text, quote=True) if _SPECIAL.search(text) else text


def join(parts: Iterable[str]) -> Html:
    """The parts one after the other; those that are not ``Html`` are escaped."""
    pieces = [part if isinstance(part, Html) else escape(part) for part in parts]
    needs = {piece.needs for piece in pieces}  # few: most pieces need nothing or the same
    return Html("".join(pieces), _NO_NEEDS.union(*needs))


class Template:
    """One template file, split at its holes."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        declared = _NEEDS.match(text)
        self.needs = frozenset(declared[1].split()) if declared else _NO_NEEDS
        # A file's last newline belongs to the file, not to its markup: inside a sequence it would be shown.
        pieces = _HOLE.split(text[declared.end() if declared else 0 :].removesuffix("\n"))
        left_over = next((piece for piece in pieces[::2] if "{{" in piece or "}}" in piece), None)
        if left_over is not None:
            raise TemplateError(
                f"Template {name}: '{{{{' or '}}}}' outside of a hole such as {{{{ name }}}}: {shown(left_over)}."
            )
        self._pieces = pieces
        self._holes = [(index, pieces[index]) for index in range(1, len(pieces), 2)]
        self.names = frozenset(pieces[1::2])

    def pieces(self, *names: str) -> list[str]:
        """The markup around the holes, for what is filled thousands of times, with ``Html`` alone.

        Raises:
            TemplateError: if the holes are not these, in this order, or the markup needs files.
        """
        if self._pieces[1::2] != list(names) or self.needs:
            raise TemplateError(
                f"Template {self.name} needs files, or has not just the holes {', '.join(names)} in this order."
            )
        return self._pieces[::2]

    def fill(self, **values: Value) -> Html:
        """The markup with every hole filled.

        Raises:
            TemplateError: if a hole gets no value, a value has no hole, or a value is not a str, int or float.
        """
        if len(values) != len(self.names) or not self.names.issuperset(values):
            raise TemplateError(_mismatch(self.name, self.names, values))
        pieces = self._pieces.copy()
        needs = self.needs
        for index, name in self._holes:
            value = values[name]
            if type(value) is Html:
                if value.needs:
                    needs = needs | value.needs
                pieces[index] = value
            else:
                pieces[index] = self._text(name, value)
        return Html("".join(pieces), needs)

    def fill_each(self, **columns: Sequence[Value]) -> Html:
        """The markup once for each row of some columns, one after the other: what ``fill`` gives for each, joined.

        Raises:
            TemplateError: as ``fill``, and if the columns differ in length.
        """
        if len(columns) != len(self.names) or not self.names.issuperset(columns):
            raise TemplateError(_mismatch(self.name, self.names, columns))
        n_rows = min(map(len, columns.values()), default=0)
        if any(len(column) != n_rows for column in columns.values()):
            told = ", ".join(f"{name} {len(column)}" for name, column in columns.items())
            raise TemplateError(f"Template {self.name}: columns of one length expected, got {told}.")
        pieces = self._pieces * n_rows
        needs = self.needs if n_rows else _NO_NEEDS
        for index, name in self._holes:
            column = columns[name]
            pieces[index :: len(self._pieces)] = [
                value if type(value) is Html else self._text(name, value) for value in column
            ]
            needs = needs.union(*{value.needs for value in column if type(value) is Html})
        return Html("".join(pieces), needs)

    def _text(self, name: str, value: Value) -> str:
        """A value that is no ``Html`` as what a hole is filled with."""
        if isinstance(value, str):
            return _escaped(value)
        if (number := _number(value)) is not None:
            return number
        raise TemplateError(f"Template {self.name}, hole {name!r}: str, int or float expected, got {shown(value)}.")


def _number(value: object) -> str | None:
    """A finite number as text; None for anything else, and for an int that Python will not write out."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return str(value) if math.isfinite(value) else None
    except (ValueError, OverflowError):
        return None


def _mismatch(template: str, names: Iterable[str], given: Iterable[str]) -> str:
    missing, surplus = sorted(set(names) - set(given)), sorted(set(given) - set(names))
    told = [f"no value for hole {', '.join(map(shown, missing))}"] if missing else []
    told += [f"no hole for value {', '.join(map(shown, surplus))}"] if surplus else []
    return f"Template {template}: {'; '.join(told)}."


@cache
def template(name: str) -> Template:
    """The template ``html/<name>``, read once. The files that it needs must exist."""
    found = Template(f"html/{name}", _read(f"html/{name}"))
    for need in sorted(found.needs):
        asset(need)
    return found


def fill_template(name: str, **values: Value | Sequence[Html]) -> Html:
    """The template file ``name`` with its holes filled: text is escaped, ``Html`` is not; a list of ``Html`` is joined.

    Raises:
        TemplateError: if there is no such file, its holes and the values do not match, or a list holds what is no text.
    """
    for hole, value in values.items():
        if isinstance(value, list | tuple) and not all(isinstance(part, str) for part in value):
            raise TemplateError(f"{name}: a list for the hole {hole!r} holds what is no Html: {shown(value)}.")
    joined = {hole: join(value) if isinstance(value, list | tuple) else value for hole, value in values.items()}
    return template(name).fill(**joined)  # type: ignore[arg-type]


def forget() -> None:
    """Read every file anew when it is needed next."""
    template.cache_clear()
    asset.cache_clear()


@cache
def asset(name: str) -> str:
    """A script exactly as it is in the file, or a style sheet without its comments and indentation, e.g. ``css/general.css``."""
    text = _read(name)
    kind = name.partition("/")[0]
    if kind not in _ASSET_ENDS:
        raise TemplateError(f"{name!r} is neither a style sheet (css/...) nor a script (js/...).")
    if _ASSET_ENDS[kind].search(text):
        raise TemplateError(f"{name} contains {_ASSET_ENDS[kind].pattern!r}, which would end or confuse its element.")
    return compact_css(text) if kind == "css" else text


def compact_css(text: str) -> str:
    """A style sheet that says the same with no indentation and hardly a comment; strings stay as they are."""
    kept = _CSS_PIECES.sub(lambda match: match["string"] or ("\n" if match["lines"] else "/**/"), f"\n{text}\n")
    return kept.strip() + "\n"


def folder(kind: str) -> Traversable:
    """The folder ``css``, ``html`` or ``js``: inside the package once it is installed, beside the package in a checkout."""
    packed = files("sae_vis") / kind
    return packed if packed.is_dir() else Path(__file__).resolve().parents[1] / kind


_FOLDERS: list[Path] = []  # of panels that users added; the library's own files come first


def add_folder(path: str | os.PathLike[str]) -> None:
    """Look for templates, style sheets and scripts in this folder too.

    Raises:
        InputError: if it is no folder, or a file in it has the name of one that is known already.
    """
    try:
        added = Path(path).resolve(strict=True)
        files = sorted(added.iterdir())
    except (TypeError, ValueError, OSError) as error:  # no path, or none that the file system takes
        raise InputError(f"The folder {shown(path)} of a panel's template, css and js is not there: {error}.") from None
    if added in _FOLDERS:
        return
    known = [folder(kind) for kind in ("html", "css", "js")]
    for file in files:
        if file.suffix in (".html", ".css", ".js") and any((one / file.name).is_file() for one in [*known, *_FOLDERS]):
            raise InputError(f"{file}: there is a file of this name already: choose another one.")
    _FOLDERS.append(added)


def _read(name: str) -> str:
    kind, _, file = name.partition("/")
    if not _FILE.fullmatch(name):
        raise TemplateError(
            f"{shown(name)} is not the name of a template file, such as html/page.html or css/general.css."
        )
    places = (folder(kind) / file, *(added / file for added in _FOLDERS))
    place = next((place for place in places if place.is_file()), None)
    if place is None:
        searched = ", ".join(map(str, (folder(kind), *_FOLDERS)))
        hint = "Is its name right, and the folder of its panel?" if _FOLDERS else "Is the installation complete?"
        raise TemplateError(f"Template file {name!r} was not found in {searched}. {hint}")
    return place.read_text(encoding="utf-8")
