"""Text that comes from a corpus, a user or a model is inert wherever it is shown: it can neither run, nor break the page."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from page_reading import packed, parse, parse_fragment, running_scripts, skeleton, text_of
from rendering_fixtures import make_features, make_prompt, make_provenance

SMALL = {"first_group_size": 1, "n_groups": 1, "other_groups_size": 1, "n_bins": 4, "n_logits": 4}
HOSTILE = {
    "hole": "{{ x }}",
    "hole of ours": "{{ tokens }}",
    "V8": "V8",
    "PS4": "PS4",
    "S9": "S9",
    "end of script": "</script>",
    "end of script, odd": "</SCRIPT\t>",
    "comment and script": "<!-- <script>",
    "end of comment": "-->",
    "cdata": "<![CDATA[x]]>",
    "image": "<img src=x onerror=alert(1)>",
    "bold": "<b>",
    "end of style": "</style><script>alert(1)</script>",
    "end of title": "</title><script>alert(1)</script>",
    "quotes": "\"'`",
    "attribute": '" onmouseover="alert(1)" x="',
    "entity": "&lt;&amp;&nbsp;&#0;&mdash",
    "NUL": "a\x00b",
    "controls": "".join(map(chr, range(1, 32))) + "\x7f\x80\x9f",
    "newlines": "\r\n\u0085\u2028\u2029",
    "bidi": "\u202e\u202d\u2066\u2067\u2068\u2069\u200e\u200f\u061c",
    "Hebrew": "שלום",
    "zero width": "\u200b\u200c\u200d\u2060\ufeff\u00ad",
    "lone surrogates": "\ud800\udfff",
    "noncharacters": "\ufffe\uffff\ufdd0\U0010ffff",
    "replacement": "\ufffd",
    "private": "\ue000\U000f0000",
    "tags": "\U000e0001\U000e007f",
    "combining": "\u0301\u20dd\ufe0f",
    "many accents": "a" + "\u0301" * 30,
    "bar": "|",
    "long": "x" * 10_000,
    "long and hostile": "<script>" * 1250,
    "backslashes": "\\u003c\\n\\",
    "spaces": "   ",
    "empty": "",
    "template literal": "${alert(1)}",
    "emoji": "👩‍💻🏳️‍🌈",
    "mojibake": "ĠÐ¿ÑĢÐ¸",
}
# A benign page of the same shape. Every place that shows text from outside holds this or a hostile one.
BENIGN = "word"
HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufffd-\uffff\ud800-\udfff]"
)


def data_with_text(text):
    """The data of both views with this text as every token, label, name, title and note."""
    provenance = make_provenance(
        model=text,
        hook_point=text,
        notes=[text],
        versions={text: text},
        digests={text: text},
        direct_effect_reason=text,
    )
    features = make_features(2, dead=(), **SMALL)
    prompt = make_prompt(3, 6, n_top=2, **SMALL)
    for data in (*features.feature_data_dict.values(), *prompt.prompt_data_dict.values()):
        data.label = text
    for data in features.feature_data_dict.values():
        for group in data.sequences.groups:
            group.title = text
    for data in prompt.prompt_data_dict.values():
        data.top_group.title = text
    changes = {"vocab": dict.fromkeys(features.vocab, text), "vocab_bytes": {}, "provenance": provenance}
    return dataclasses.replace(features, **changes), dataclasses.replace(prompt, **changes)


def with_text(text):
    """The pages of both views with it."""
    features, prompt = data_with_text(text)
    return [features.get_html(), features[1].get_html(), prompt.get_html(seq_pos=3, feature_url="f.html#{feature}")]


def fragments_of(document):
    return [parse_fragment(fragment) for fragment in packed(document).values()]


@pytest.fixture(scope="module")
def benign():
    return with_text(BENIGN)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_text_is_inert_everywhere(text, benign):
    for document, plain in zip(with_text(text), benign, strict=True):
        document.encode()
        assert not HIDDEN.search(document)
        tree, plain_tree = parse(document), parse(plain)
        scripts = [script.text for script in running_scripts(tree)]
        assert scripts == [script.text for script in running_scripts(plain_tree)]
        shape, plain_shape = without_labels(skeleton(tree)), without_labels(skeleton(plain_tree))
        assert shape == plain_shape
        for element in tree.iter("script"):
            if element.get("type") == "application/json":
                json.loads(element.text)
        for fragment, plain_fragment in zip(fragments_of(document), fragments_of(plain), strict=True):
            assert without_labels(skeleton(fragment)) == without_labels(skeleton(plain_fragment))


def without_labels(shape):
    """An empty label is not drawn, and an empty note is none."""
    return [item for item in shape if item[0] not in {"bdi", "aside"} and item != ("p", [])]


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_text_in_the_vocabulary_of_the_hover_text_is_inert(text):
    for document in with_text(text):
        vocab = json.loads(parse(document).find(".//script[@data-json='vocab']").text)
        for html in set(vocab["html"]):
            assert {tag for tag, _ in tags(parse_fragment(html))} <= {"i", "samp", "abbr"}
            assert {name for _, names in tags(parse_fragment(html)) for name in names} <= {"title", "class"}
            assert set(re.findall(r"<[^>]* class=([^ >]*)", html)) <= {'"in"'}  # of a mark, never of a token


def tags(tree):
    return [(element.tag, list(element.attrib)) for element in tree.iter() if element is not tree]


@pytest.mark.parametrize(
    "text", ["{{ x }}", "</script>", "<img src=x onerror=alert(1)>", "|", "V8", "S9", "שלום", "&lt;&amp;"]
)
def test_hostile_text_is_shown_as_it_is(text):
    features, alone, prompt = with_text(text)
    assert text in text_of(parse(alone).find(".//div[@class='seq']"))
    assert text in text_of(parse(prompt).find(".//div[@class='strip']"))
    for table in parse(features).iter("table"):
        if "logits" in table.get("class", ""):
            assert all(text_of(row[0]) == text for row in table.iter("tr"))


def test_a_token_that_is_a_placeholder_leaves_the_numbers_alone():
    """In the original a token "V8" or "PS4" in a logits table was itself replaced by a value."""
    features = make_features(1, dead=(), **SMALL)
    features.vocab = {token_id: f"V{token_id}" for token_id in features.vocab}
    features.vocab_bytes = {}
    logits = features.feature_data_dict[0].logits
    rows = [
        row
        for table in parse(features.get_html()).iter("table")
        for row in table.iter("tr")
        if "logits" in table.get("class", "")
    ]
    shown = [(text_of(row[0]), text_of(row[1])[0]) for row in rows]
    assert shown == [(f"V{i}", "−") for i in logits.bottom_token_ids] + [(f"V{i}", "+") for i in logits.top_token_ids]


def test_a_long_token_does_not_make_the_page_long():
    longest, normal = with_text("x" * 10_000)[1], with_text("x" * 40)[1]
    assert len(longest) - len(normal) < 2_000 * 100


def test_an_emoji_split_over_tokens_is_shown_whole():
    features = make_features(1, dead=(), **SMALL)
    pieces = {10: "f0", 11: "9f", 12: "8e", 13: "bb"}
    features.vocab_bytes = pieces
    sequence = features.feature_data_dict[0].sequences.groups[0].sequences[0]
    sequence.token_ids[:6] = [9, 10, 11, 12, 13, 10]
    tokens = parse(features.get_html()).find(".//div[@class='seq']")
    assert [text_of(token) for token in tokens][1:6] == ["🎻", "‹", "‹", "‹", "F0"]
    assert "\ufffd" not in features.get_html()


any_text = st.text(st.characters(exclude_categories=()), max_size=40)
nasty = st.lists(st.sampled_from([*HOSTILE.values(), *"<>&\"'{}/!-= \n"]), max_size=6).map(
    lambda parts: "".join(parts)[:60]
)


@settings(max_examples=15)
@given(any_text | nasty)
def test_any_text_is_inert(benign, text):
    for document, benign_document in zip(with_text(text), benign, strict=True):
        shape = without_labels(skeleton(parse(document)))
        assert shape == without_labels(skeleton(parse(benign_document)))
