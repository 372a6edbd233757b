"""Small pure functions that both halves use: axis ticks, rounding, number formats and printable token text."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from typing import Literal, NamedTuple

MINUS = "\u2212"  # as wide as a plus sign, unlike the hyphen
PLAIN_DECIMALS = 8  # more of them, and a number is written with a power of ten
PLAIN_LIMIT = 1e12  # likewise from here on
THOUSANDS = 999_999.5  # below, a number is written out even with more significant digits than asked for
MOST_DECIMALS = 300  # ten to that power is a float still
SMALLEST_SPAN = 1e-300  # of an axis; below, floats have too few digits for round steps

# --- axis ticks and rounding -------------------------------------------------------------------------------------


def ticks(low: float, high: float, at_most: int = 7) -> list[float]:
    """Round numbers (steps of 1, 2 or 5 times a power of ten) within ``[low, high]``, never more than ``at_most``."""
    span = high - low
    if not (math.isfinite(span) and span > 0):
        return [low] if math.isfinite(low) else []
    if span < SMALLEST_SPAN:
        return [0.0] if low <= 0 <= high else []
    exponent = math.floor(math.log10(span / at_most))
    for power in range(exponent, exponent + 3):
        for multiple in (1, 2, 5):
            step = multiple * 10.0**power
            first, last = math.ceil(low / step), math.floor(high / step)
            if last - first < at_most:
                numbers = dict.fromkeys(round_significant(index * step, 12) for index in range(first, last + 1))
                return [number for number in numbers if low <= number <= high]
    return []


def round_significant(value: float, digits: int) -> float:
    """``value`` rounded to so many significant digits."""
    return float(f"{value:.{digits - 1}e}") if math.isfinite(value) else value


def largest(values: Iterable[float | None]) -> float:
    """The largest absolute value, 0 where there is none."""
    numbers = list(filter(None, values))
    if not numbers:
        return 0.0
    lowest, highest = min(numbers), max(numbers)
    return max(highest, -lowest)


# --- number formats ----------------------------------------------------------------------------------------------


@lru_cache(2**12)  # hundreds of times for each feature, most of them for its largest activation
def decimals_for(scale: float, digits: int = 4) -> int:
    """Decimals that give ``scale`` so many significant digits; every number of one scale is shown with as many.

    Negative for a huge scale, whose last digits before the point mean nothing.
    """
    if not (math.isfinite(scale) and scale):
        return digits - 1
    decimals = digits - 1 - math.floor(math.log10(abs(scale)))
    return decimals if abs(scale) >= PLAIN_LIMIT else min(MOST_DECIMALS, max(0, decimals))


def format_fixed(value: float, decimals: int) -> str:
    """A number with so many decimals and a true minus sign; no minus before a zero.

    With a power of ten where that takes too many digits; what is not zero is then never written as zero. The function
    ``fixed`` in ``js/tooltip.js`` does the same.
    """
    if not 0 <= decimals <= PLAIN_DECIMALS or abs(value) >= PLAIN_LIMIT:
        if not value:
            return "0"
        digits = math.floor(math.log10(abs(value))) + decimals
        return f"{value:.{min(3, max(0, digits))}e}".replace("-", MINUS)
    text = f"{value:.{decimals}f}"
    if text.startswith("-"):
        text = MINUS + text[1:] if text.strip("-0.") else text[1:]
    return text


def format_signed(value: float, decimals: int = 3) -> str:
    """``+0.123`` or ``−0.123``; a number that rounds to zero has no sign."""
    text = format_fixed(value, decimals)
    return text if text[0] == MINUS or not text.strip("0.") else f"+{text}"


def format_general(value: float, digits: int = 4) -> str:
    """The shortest text with at most so many significant digits, e.g. for the ticks of an axis; all those of thousands."""
    whole = 10.0**digits - 0.5 <= abs(value) < THOUSANDS
    return f"{value + 0.0:.{0 if whole else digits}{'f' if whole else 'g'}}".replace("-", MINUS) if value else "0"


def format_ticks(values: Sequence[float]) -> list[str]:
    """The labels of an axis: four significant digits, or as many as tell them apart."""
    for digits in range(4, 17):
        labels = [format_general(value, digits) for value in values]
        if len(set(labels)) == len(set(values)):
            break
    return labels


def format_percent(share: float, digits: int = 3) -> str:
    """A share of 0 to 1 as a percentage with so many significant digits: ``0.0123 %``."""
    percent = 100.0 * share
    text = format_fixed(percent, decimals_for(percent, digits)) if percent else "0"
    return f"{text} %"


def format_quantile(share: float, rank_digits: int = 2, max_decimals: int = 6) -> str:
    """A quantile near 1 as a percentage, with as many digits as its distance from 100 % has meaning: ``99.980 %``."""
    tail = 100.0 * (1.0 - share)
    if tail < 10.0**-max_decimals:
        return "100 %"
    decimals = max(0, rank_digits - 1 - math.floor(math.log10(tail)))
    return f"{format_fixed(100.0 * share, min(max_decimals, decimals))} %"


def count(number: int, noun: str) -> str:
    """A number of things: ``1 token``, ``1,024 tokens``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


# --- colours -----------------------------------------------------------------------------------------------------


def level(value: float, scale: float) -> float:
    """Where ``value`` lies between 0 and ``scale`` (-1 to 1 for signed values), to two decimals, for a colour's strength.

    What is not zero never becomes zero, so that a weak activation still differs from none.
    """
    if not value or not scale > 0:
        return 0.0
    share = abs(value) / scale
    share = round(share, 2) or 0.01 if share < 1.0 else 1.0
    return share if value > 0 else -share


# --- printable token text ----------------------------------------------------------------------------------------

PieceKind = Literal["text", "mark", "code"]

# Zero-width or blank characters whose general category does not tell so.
_INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0\ufffc\ufffd")
_HIDDEN_CATEGORIES = frozenset(("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp", "Zs"))
_PLAIN = re.compile(r" ?[!-~]+(?: [!-~]+)*")
_WHITESPACE_MARKS = {"\n": "↵", "\t": "→"}


class Piece(NamedTuple):
    """A part of a token as it is shown: real text, a mark that stands for whitespace, or the name of a code."""

    kind: PieceKind
    text: str


def printable(text: str) -> list[Piece]:
    """What to show for a token's text so that nothing in it is invisible, breaks a line or turns the page around.

    Leading, trailing and repeated spaces become the mark ``·``, newlines ``↵``, tabs ``→``. Control, zero-width and
    bidirectional characters, other spaces, private and unassigned characters and lone surrogates become their code, e.g.
    ``U+200B``. Marks and codes are pieces of their own kind, so a real ``·`` can be told from a space.
    """
    if _PLAIN.fullmatch(text):  # most of a vocabulary
        return [Piece("mark", "·"), Piece("text", text[1:])] if text[0] == " " else [Piece("text", text)]
    pieces: list[Piece] = []
    last = len(text) - 1
    for index, char in enumerate(text):
        if char == " " and 0 < index < last and " " not in (text[index - 1], text[index + 1]):
            _extend(pieces, "text", " ")
        elif char == " ":
            _extend(pieces, "mark", "·")
        elif char in _WHITESPACE_MARKS:
            _extend(pieces, "mark", _WHITESPACE_MARKS[char])
        elif _is_hidden(char) or (char in _VARIATION_SELECTORS and not _follows_text(pieces)):
            pieces.append(Piece("code", f"U+{ord(char):04X}"))
        elif unicodedata.category(char)[0] == "M" and not _follows_text(pieces):
            _extend(pieces, "mark", "◌")  # else the accent would sit on the token before
            _extend(pieces, "text", char)
        else:
            _extend(pieces, "text", char)
    return pieces or [Piece("code", "empty")]


_VARIATION_SELECTORS = frozenset(map(chr, range(0xFE00, 0xFE10)))


def _extend(pieces: list[Piece], kind: PieceKind, char: str) -> None:
    if pieces and pieces[-1].kind == kind:
        pieces[-1] = Piece(kind, pieces[-1].text + char)
    else:
        pieces.append(Piece(kind, char))


def _follows_text(pieces: list[Piece]) -> bool:
    return bool(pieces) and pieces[-1].kind == "text"


@cache
def _is_hidden(char: str) -> bool:
    if char in _INVISIBLE:
        return True
    return char != " " and unicodedata.category(char) in _HIDDEN_CATEGORIES


def shorten(text: str, limit: int = 48) -> str:
    """The first characters of a text that is too long to show whole, else the text itself."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def printable_bytes(data: bytes) -> list[Piece]:
    """What to show for bytes that may hold parts of characters: text where they decode, else their hex as codes."""
    pieces: list[Piece] = []
    while data:
        try:
            good, bad, data = data.decode(), b"", b""
        except UnicodeDecodeError as error:
            good, bad, data = data[: error.start].decode(), data[error.start : error.end], data[error.end :]
        pieces += printable(good) if good else []
        pieces += [Piece("code", bad.hex(" ").upper())] if bad else []
    return pieces or [Piece("code", "empty")]


def join_bytes(tokens: Sequence[bytes | None], at_most: int = 12) -> list[str | None]:
    """The text of byte-level tokens that make up characters together: on the first of them, ``""`` on the others.

    None marks a token that is not byte-level (None in ``tokens``), or whose bytes never join to whole characters.
    """
    texts: list[str | None] = [None] * len(tokens)
    start = 0
    while start < len(tokens):
        joined = b""
        for end in range(start, min(len(tokens), start + at_most)):
            part = tokens[end]
            if part is None:
                break
            joined += part
            text = _decoded(joined)
            if text is not None:
                texts[start : end + 1] = [text, *[""] * (end - start)]
                start = end
                break
        start += 1
    return texts


def _decoded(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def varint(value: int) -> bytes:
    """A number from 0 on as LEB128: seven bits a byte, the lowest first, the eighth says that more follow."""
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    parts.append(value)
    return bytes(parts)
