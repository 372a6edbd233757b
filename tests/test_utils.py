"""Ticks, number formats, colour levels and printable token text."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_vis.utils_fns import (
    Piece,
    decimals_for,
    format_fixed,
    format_general,
    format_percent,
    format_quantile,
    format_signed,
    join_bytes,
    level,
    printable,
    printable_bytes,
    round_significant,
    shorten,
    ticks,
)

finite = st.floats(-1e12, 1e12)


@given(finite, finite)
def test_ticks_lie_inside_rise_and_are_at_most_seven(a, b):
    low, high = min(a, b), max(a, b)
    found = ticks(low, high)
    assert len(found) <= 7
    assert found == sorted(set(found))
    slack = 1e-9 * max(abs(low), abs(high), high - low)
    assert all(low - slack <= tick <= high + slack for tick in found)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-3, 3, [-3, -2, -1, 0, 1, 2, 3]),
        (0, 20, [0, 5, 10, 15, 20]),
        (0.1, 6.9, [1, 2, 3, 4, 5, 6]),
        (2, 2, [2]),
        (0, float("nan"), [0]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert ticks(low, high) == expected


def test_round_significant():
    assert round_significant(1234.5, 2) == 1200
    assert round_significant(float("inf"), 2) == float("inf")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (format_fixed(-0.0001, 3), "0.000"),
        (format_fixed(-1.25, 1), "−1.2"),
        (format_signed(0.1234), "+0.123"),
        (format_signed(-0.1234), "−0.123"),
        (format_signed(-0.0), "0.000"),
        (format_signed(0.0001), "0.000"),
        (format_general(-0.5), "−0.5"),
        (format_general(0.0), "0"),
        (format_general(1234567.0), "1.235e+06"),
        (format_percent(0.000123), "0.0123 %"),
        (format_percent(0.0), "0 %"),
        (format_percent(1.0), "100 %"),
        (format_quantile(0.9998), "99.980 %"),
        (format_quantile(0.5), "50 %"),
        (format_quantile(0.0), "0 %"),
        (format_quantile(1.0), "100 %"),
        (format_quantile(1 - 1e-12), "100 %"),
    ],
)
def test_numbers_look_right(text, expected):
    assert text == expected


@pytest.mark.parametrize(
    ("largest", "expected"),
    [(0.0, 3), (3.21, 3), (0.0321, 5), (123.4, 1), (1e9, 0), (1e-30, 33), (9e11, 0), (1e12, -9), (1e30, -27)],
)
def test_decimals_follow_the_scale(largest, expected):
    assert decimals_for(largest) == expected


def test_levels_never_lose_what_is_there():
    assert level(0.0, 3.0) == 0.0
    assert level(1e-9, 3.0) == 0.01
    assert level(-3.0, 3.0) == -1.0
    assert level(9.0, 3.0) == 1.0
    assert level(1.0, 0.0) == 0.0
    assert level(1.0, float("nan")) == 0.0


# --- token text --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("word", [("text", "word")]),
        (" word", [("mark", "·"), ("text", "word")]),
        ("·word", [("text", "·word")]),
        ("two words", [("text", "two words")]),
        ("two  words ", [("text", "two"), ("mark", "··"), ("text", "words"), ("mark", "·")]),
        ("\n", [("mark", "↵")]),
        ("\n    ", [("mark", "↵····")]),
        ("↵", [("text", "↵")]),
        ("\tx", [("mark", "→"), ("text", "x")]),
        ("\r", [("code", "U+000D")]),
        ("\x00", [("code", "U+0000")]),
        ("\u200b", [("code", "U+200B")]),
        ("a\u202eb", [("text", "a"), ("code", "U+202E"), ("text", "b")]),
        ("\ud800", [("code", "U+D800")]),
        ("\u00a0", [("code", "U+00A0")]),
        ("\u2028", [("code", "U+2028")]),
        ("\ufeff", [("code", "U+FEFF")]),
        ("\ufffd", [("code", "U+FFFD")]),
        ("\U000e0041", [("code", "U+E0041")]),
        ("\u0301", [("mark", "◌"), ("text", "\u0301")]),
        ("e\u0301", [("text", "e\u0301")]),
        ("\ufe0f", [("code", "U+FE0F")]),
        ("❤\ufe0f", [("text", "❤\ufe0f")]),
        ("你好", [("text", "你好")]),
        ("", [("code", "empty")]),
    ],
)
def test_printable(text, expected):
    assert printable(text) == [Piece(*piece) for piece in expected]


@given(st.text(st.characters(exclude_categories=()), max_size=30))
def test_whatever_a_token_holds_nothing_invisible_is_shown(text):
    shown = "".join(piece.text for piece in printable(text))
    assert shown
    hidden = {"Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp"}
    assert not any(unicodedata.category(char) in hidden for char in shown)
    assert "\ufffd" not in shown


def test_a_mark_is_never_text_and_text_never_a_mark():
    assert {kind for kind, text in printable(" ·\n↵\t→") if "·" in text} == {"mark", "text"}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"abc", [("text", "abc")]),
        (b" \xe2\x9c", [("mark", "·"), ("code", "E2 9C")]),
        (b"\x93a", [("code", "93"), ("text", "a")]),
        (b"\xff\xfe", [("code", "FF"), ("code", "FE")]),
        (b"", [("code", "empty")]),
    ],
)
def test_bytes_are_shown_as_text_where_they_are_and_else_as_hex(data, expected):
    assert printable_bytes(data) == [Piece(*piece) for piece in expected]


def parts(*hex_texts):
    return [bytes.fromhex(text) if text else None for text in hex_texts]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (parts("e2", "9c", "93"), ["✓", "", ""]),
        (parts("e29c", "93"), ["✓", ""]),
        (parts("", "e2", "9c", "93", ""), [None, "✓", "", "", None]),
        (parts("e2", "9c"), [None, None]),
        (parts("9c", "93", "e29c", "93"), [None, None, "✓", ""]),
        (parts("e2", "", "9c", "93"), [None, None, None, None]),
        (parts("20f0", "9f", "8ebb"), [" 🎻", "", ""]),
        (parts("e2", "9c93e2", "9c93"), ["✓✓", "", ""]),
        (parts("41"), ["A"]),
        ([], []),
    ],
)
def test_byte_tokens_are_joined_to_the_characters_that_they_make(tokens, expected):
    assert join_bytes(tokens) == expected


@given(st.text(min_size=1, max_size=6), st.lists(st.integers(1, 3), min_size=1, max_size=30))
def test_any_split_of_a_text_joins_again(text, lengths):
    data, pieces = text.encode("utf-8", "replace"), []
    for length in lengths:
        pieces.append(data[:length])
        data = data[length:]
    pieces = [piece for piece in [*pieces, data] if piece]
    joined = join_bytes(pieces, at_most=len(pieces))
    assert "".join(text for text in joined if text is not None) == text.encode("utf-8", "replace").decode()
    assert None not in joined


def test_shorten():
    assert shorten("abc", 3) == "abc"
    assert shorten("abcd", 3) == "ab…"
