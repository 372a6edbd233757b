"""The columns and the index of the overview: against plain code over the same features, for all that a page is made of."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import random
import sys
import zlib
from collections import Counter, defaultdict
from types import SimpleNamespace

import page_reading
import pytest
from rendering_fixtures import make_features

from sae_vis import _overview
from sae_vis.html_fns import TokenPrinter

N = 60


def unpacked(text):
    return zlib.decompress(base64.b64decode(text))


def assets(document):
    """The packed texts of a page's overview, by name."""
    elements = page_reading.parse(document).iter("script")
    return {e.get("data-asset"): e.text for e in elements if e.get("data-asset")}


def varints(content):
    value = shift = 0
    for byte in content:
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            yield value
            value = shift = 0


def postings(columns, packed):
    """Token -> rows, out of all blocks: read by the plainest code."""
    found = {}
    texts = [text for n in range(len(packed)) for text in packed.get(f"examples{n}", "").split()]
    assert len(texts) == len(columns["examples"]["blocks"])
    for first, text in zip(columns["examples"]["blocks"], texts, strict=True):
        numbers = varints(unpacked(text))
        token = first
        for step in numbers:
            token += step
            rows, row = [], 0
            for _ in range(next(numbers)):
                row += next(numbers)
                rows.append(row)
            assert token not in found
            found[token] = rows
    return found


@pytest.fixture(scope="module")
def features():
    features = make_features(N, dead=(3, 7))
    features.feature_data_dict[5].label = "import statements"
    return features


@pytest.fixture(scope="module")
def packed(features):
    return assets(features.get_html())


@pytest.fixture(scope="module")
def columns(packed):
    return json.loads(unpacked(packed["overview"]))


def rounded(value, digits=4):
    return value if value is None else pytest.approx(value, rel=0.51 * 10 ** (1 - digits))


@pytest.mark.parametrize("name", ["density", "n_active", "max", "mean"])
def test_a_column_holds_the_number_of_each_feature(name, features, columns):
    assert columns["ids"] == list(features)
    assert columns["numbers"][name] == [rounded(getattr(f.activations, name)) for f in features.values()]


def test_the_kurtosis_of_the_logit_weights_is_that_of_the_bins(features, columns):
    for feature, value in zip(features.values(), columns["numbers"]["logit_kurtosis"], strict=True):
        edges, heights = feature.logits.histogram.bar_edges, feature.logits.histogram.bar_heights
        every = [(edges[i] + edges[i + 1]) / 2 for i, n in enumerate(heights) for _ in range(n)]
        mean = math.fsum(every) / len(every)
        second, fourth = (math.fsum((x - mean) ** power for x in every) / len(every) for power in (2, 4))
        assert value == rounded(fourth / second**2)


def test_a_stored_kurtosis_and_a_decoder_norm_come_before_what_is_worked_out(features):
    feature = SimpleNamespace(logits=SimpleNamespace(kurtosis=7.5), decoder_norm=1.25)
    assert _overview.NUMBERS["logit_kurtosis"].value(feature) == 7.5
    assert _overview.NUMBERS["decoder_norm"].value(feature) == 1.25
    assert _overview.NUMBERS["logit_kurtosis"].value(SimpleNamespace(logits=None)) is None
    flat = dataclasses.replace(features[0].logits.histogram, bar_heights=[0] * 39 + [5])
    assert _overview.logit_kurtosis(SimpleNamespace(logits=SimpleNamespace(histogram=flat))) is None


def test_a_column_without_any_value_is_left_out(columns):
    assert "decoder_norm" not in columns["numbers"]
    assert set(columns["meta"]["numbers"]) == set(columns["numbers"])


def lists(columns, name):
    lengths, ids = columns["lists"][name]
    ids = iter(ids)
    return [[next(ids) for _ in range(length)] for length in lengths]


def test_lists_hold_the_tokens_of_each_feature(features, columns):
    assert lists(columns, "promoted") == [f.logits.top_token_ids for f in features.values()]
    assert lists(columns, "suppressed") == [f.logits.bottom_token_ids for f in features.values()]
    for feature, tokens in zip(features.values(), lists(columns, "top_tokens"), strict=True):
        totals = Counter()
        for sequence in feature.sequences.groups[0].sequences if feature.sequences.groups else []:
            totals[sequence.token_ids[sequence.bold_idx]] += sequence.feat_acts[sequence.bold_idx]
        assert set(tokens) == set(totals)
        assert [totals[t] for t in tokens] == sorted(totals.values(), reverse=True)


def test_a_table_of_tokens_comes_before_the_examples():
    feature = SimpleNamespace(tokens=SimpleNamespace(token_ids=list(range(30))))
    assert _overview.top_tokens(feature) == list(range(_overview.MOST_TOKENS))


@pytest.mark.parametrize("block_bytes", [1, 300, _overview.BLOCK_BYTES])
def test_postings_tell_which_features_show_a_token(block_bytes, features, monkeypatch):
    monkeypatch.setattr(_overview, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(_overview, "EXAMPLE_BYTES", 10**6)
    monkeypatch.setattr(_overview, "FILE_BYTES", 400)
    packed = assets(features.get_html())
    columns = json.loads(unpacked(packed["overview"]))
    expected = defaultdict(list)
    for row, feature in enumerate(features.values()):
        for token in {t for g in feature.sequences.groups for s in g.sequences for t in s.token_ids}:
            expected[token].append(row)
    assert postings(columns, packed) == expected
    assert columns["examples"]["scope"] == "all"
    assert columns["examples"]["blocks"] == sorted(columns["examples"]["blocks"])


def test_gaps_of_more_than_a_byte_are_read_back():
    kept = _overview._Postings()
    rng = random.Random(3)
    expected = {token: sorted(rng.sample(range(70_000), 40)) for token in (0, 5, 200_000)}
    for row in range(70_000):
        kept.add(row, [token for token, rows in expected.items() if row in rows])
    blocks = list(kept.blocks())
    packed = {f"examples{i}": base64.b64encode(zlib.compress(block)).decode() for i, (_, block) in enumerate(blocks)}
    assert postings({"examples": {"blocks": [first for first, _ in blocks]}}, packed) == expected


def test_only_the_top_examples_are_searched_where_all_would_be_too_much(features, monkeypatch):
    monkeypatch.setattr(_overview, "EXAMPLE_BYTES", 10)
    monkeypatch.setattr(_overview, "BLOCK_BYTES", 100)
    packed = assets(features.get_html())
    columns = json.loads(unpacked(packed["overview"]))
    assert columns["examples"]["scope"] == "top"
    row, feature = next((r, f) for r, f in enumerate(features.values()) if f.sequences.groups)
    tokens = {t for s in feature.sequences.groups[0].sequences for t in s.token_ids}
    assert {t for t, rows in postings(columns, packed).items() if row in rows} == tokens


def test_without_top_examples_all_are_searched_and_no_interval_is_taken_for_them(monkeypatch):
    monkeypatch.setattr(_overview, "EXAMPLE_BYTES", 0)
    monkeypatch.setattr(_overview, "BLOCK_BYTES", 100)
    features = make_features(4, n_groups=2, other_groups_size=3)
    for feature in features.values():
        feature.sequences.groups = [group for group in feature.sequences.groups if group.share is not None]
    packed = assets(features.get_html())
    columns = json.loads(unpacked(packed["overview"]))
    assert columns["examples"]["scope"] == "all"
    row, feature = next((r, f) for r, f in enumerate(features.values()) if f.sequences.groups)
    tokens = {t for g in feature.sequences.groups for s in g.sequences for t in s.token_ids}
    assert {t for t, rows in postings(columns, packed).items() if row in rows} == tokens
    feature.tokens = None
    assert _overview.top_tokens(feature) == []


def test_the_largest_number_is_still_one(features):
    largest = sys.float_info.max
    feature = next(f for f in features.values() if f.activations.max)
    acts = dataclasses.replace(feature.activations, max=largest)
    overview = _overview.Overview()
    overview.add(dataclasses.replace(feature, activations=acts))
    (found,) = json.loads(unpacked(overview.assets({})["overview"]))["numbers"]["max"]
    assert found == pytest.approx(largest, rel=1e-4)
    assert found <= largest, "rounded up it would be infinity"


def test_the_texts_of_tokens_can_be_told_from_their_html():
    hostile = [
        "the",
        " the",
        "  two",
        "a b",
        "<b>",
        " <b>",
        "&amp;",
        "·",
        "<i>·</i>x",
        "\n",
        "",
        " ",
        "x" * 99,
        "é",
        "\u200b",
        "\0",
        "\0ab",
    ]
    vocab = {**dict(enumerate(hostile)), 90: "\ufffd"}
    printer = TokenPrinter(vocab, {90: "e29c"})
    shown = [printer.one(token) for token in vocab]
    apart = _overview.texts_apart(vocab, shown, vocab, {90: "e29c"})
    for token, html in zip(vocab, shown, strict=True):
        text = apart.get(token)
        if text is None:  # what js/search.js does
            plain = html.removeprefix("<i>·</i>")
            text = " " * (plain != html) + unescaped(plain)
        if text.startswith("\0"):  # bytes
            text = bytes.fromhex(text[1:])
        assert text == (b"\xe2\x9c" if token == 90 else vocab[token].encode() if "\0" in vocab[token] else vocab[token])
    assert not {0, 1, 3, 4, 5, 6, 7, 13} & set(apart)  # most need no room


def test_the_text_of_a_token_that_is_shown_as_another_is_kept():
    assert _overview.texts_apart([1, 2], ["other", "same"], {1: "text", 2: "same"}, {}) == {1: "text"}


def unescaped(html):
    for entity, char in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&#x27;", "'"), ("&amp;", "&")):
        html = html.replace(entity, char)
    return html


def test_extra_columns_and_meta_reach_the_page(features):
    overview = _overview.Overview(
        {"x": [1.23456, None, float("inf")]}, {"map": "PCA", "numbers": {"x": {"label": "X"}}}
    )
    for feature in list(features.values())[:3]:
        overview.add(feature)
    columns = json.loads(unpacked(overview.assets({})["overview"]))
    assert columns["numbers"]["x"] == [1.2346, None, None], "of 1.235, 1.24 would be shown"
    assert columns["meta"]["map"] == "PCA"
    assert columns["meta"]["numbers"]["x"] == {"label": "X"}
    assert columns["meta"]["numbers"]["max"]["label"] == "max"


def test_the_overview_needs_less_than_a_kilobyte_a_feature(features, packed):
    assert sum(map(len, packed.values())) < 1024 * len(features)


def test_one_feature_alone_has_no_overview(features):
    one = dataclasses.replace(features, feature_data_dict={8: features[8]})
    assert 'class="overview"' not in one.get_html()
    assert not assets(one.get_html())
    assert 'class="overview"' not in features[8].get_html()


@pytest.mark.parametrize(("feature", "opens"), [(None, "overview"), (8, "feature")])
def test_a_page_knows_what_it_opens_on(feature, opens, features, tmp_path):
    features.save_html(tmp_path / "page.html", feature=feature)
    features.save_site(tmp_path / "site", feature=feature)
    for file in (tmp_path / "page.html", tmp_path / "site" / "index.html"):
        section = page_reading.parse(file.read_text("utf-8")).find(".//section[@class='overview']")
        assert section.get("data-opens") == opens


def test_a_site_and_a_page_hold_the_same_overview(features, packed, tmp_path):
    features.save_site(tmp_path / "site")
    told = page_reading.data((tmp_path / "site" / "index.html").read_text("utf-8"), "site")["assets"]
    assert set(told) == set(packed)
    for name, file in told.items():
        assert (tmp_path / "site" / file).read_text("ascii") == f'saeVis.receive("{name}","{packed[name]}");\n'
