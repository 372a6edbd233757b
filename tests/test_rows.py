"""Whole rows on a page: packed so that they come back, and no more than a page can hold."""

from __future__ import annotations

import base64
import json
import re
import zlib

import page_reading
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rendering_fixtures import make_features

from sae_vis import _rows

FEW = {"first_group_size": 4, "n_groups": 2, "other_groups_size": 2}


def unpacked(told):
    """The inverse, by the plainest code."""
    data = zlib.decompress(base64.b64decode(told["packed"]))
    values, value, shift = [], 0, 0
    for byte in data:
        value += (byte % 128) << shift
        shift += 7
        if byte < 128:
            values.append(told["ids"][value])
            value = shift = 0
    rows, number, at = {}, 0, 0
    for place, step in enumerate(told["rows"]):
        number += step
        length = told["lengths"][place] if len(told["lengths"]) > 1 else told["lengths"][0]
        rows[number] = values[at : at + length]
        at += length
    assert at == len(values)
    return rows


@given(st.dictionaries(st.integers(0, 10**6), st.lists(st.integers(0, 300_000), max_size=30), max_size=8))
def test_packed_rows_come_back(rows):
    told = json.loads(json.dumps(_rows.packed(rows)))
    assert (unpacked(told) if rows else {}) == rows


def test_frequent_tokens_are_one_byte():
    rows = {0: [50_000] * 100 + list(range(200))}
    told = _rows.packed(rows)
    assert told["ids"][0] == 50_000
    assert len(zlib.decompress(base64.b64decode(told["packed"]))) == 100 + 127 + (200 - 127) * 2


def test_a_page_holds_the_rows_of_its_features():
    features = make_features(3, dead=(), **FEW)
    told = page_reading.data(features.get_html(), "rows")
    assert unpacked(told) == features.rows
    alone = page_reading.data(features[1].get_html(), "rows")
    assert unpacked(alone) == {row: features.rows[row] for row in features[1].shown_rows()}
    vocab = page_reading.data(features[1].get_html(), "vocab")
    assert set(vocab["ids"]) >= {token for row in unpacked(alone).values() for token in row}
    assert vocab["bytes"].items() <= {str(i): text for i, text in features.vocab_bytes.items()}.items()


def test_without_stored_rows_a_page_holds_none():
    html = make_features(2, dead=(), store_rows=False, **FEW).get_html()
    assert '<script type="application/json" data-json="rows"' not in html


def test_a_page_with_too_many_rows_holds_those_of_the_strongest_examples(monkeypatch):
    features = make_features(3, dead=(), **FEW)
    length = len(next(iter(features.rows.values())))
    monkeypatch.setattr(_rows, "LEAST_BYTES", int(5 * length * _rows.BYTES_PER_TOKEN) + 1)
    monkeypatch.setattr(_rows, "BYTES_A_FEATURE", 0)
    order = [features[i].example_rows() for i in features]
    expected: list[int] = []
    for rank in range(len(order[0])):
        expected += [rows[rank] for rows in order if rows[rank] not in expected]
    assert sorted(unpacked(page_reading.data(features.get_html(), "rows"))) == sorted(expected[:5])


@pytest.mark.parametrize("tokens_a_file", [1, 130, 10**6])
def test_a_site_holds_each_row_once_in_files_in_order(tokens_a_file, tmp_path, monkeypatch):
    monkeypatch.setattr(_rows, "TOKENS_A_FILE", tokens_a_file)
    features = make_features(3, dead=(), **FEW)
    features.save_site(tmp_path / "site")
    told = page_reading.data((tmp_path / "site" / "index.html").read_text(encoding="utf-8"), "site")
    found: dict[int, list[int]] = {}
    for number, (file, first) in enumerate(told["rows"]):
        text = (tmp_path / "site" / file).read_text(encoding="utf-8")
        name, value = re.fullmatch(r'saeVis\.receive\("(rows\d+)",(.*)\);\n', text).groups()
        rows = unpacked(json.loads(value))
        assert (name, min(rows)) == (f"rows{number:05d}", first)
        assert not found or first > max(found)
        assert len(rows) == 1 or sum(map(len, rows.values())) <= tokens_a_file
        found |= rows
    assert found == features.rows
