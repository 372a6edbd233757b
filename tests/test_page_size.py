"""How large a page is for each feature, measured on features of the bundled model: packed HTML, as a browser gets it."""

from __future__ import annotations

import dataclasses
import re
import statistics

import page_reading
import pytest
from page_reading import packed
from rendering_fixtures import make_features, make_prompt

from sae_vis import Column, FeatureVisParams, Html, Layout, MultiFeatureData, _page, get_feature_data
from sae_vis._demo import load_demo
from sae_vis._templates import template
from sae_vis.data_storing_fns import FeatureData

KB = 1000
ROWS, FEATURES = 160, 48
EVIDENCE = {"tokens", "positions", "neighbours", "counterexamples", "moments"}  # panels that are nothing but that


@pytest.fixture(scope="module")
def features() -> MultiFeatureData:
    demo = load_demo()
    params = FeatureVisParams(hook_point=demo.hook_point, features=tuple(range(FEATURES)), verbose=False)
    return get_feature_data(demo.encoder, demo.model, demo.tokens[:ROWS], params, demo.encoder_B)


def without_evidence(data: MultiFeatureData) -> MultiFeatureData:
    """The same features with what the page showed before there was evidence: no data of it, and no panel for it."""
    layout = data.params.feature_layout()
    columns = [
        Column(*(part for part in column.components if part.name not in EVIDENCE), width=column.width)
        for column in layout.columns
    ]
    bare = {index: bare_feature(feature) for index, feature in data.items()}
    params = dataclasses.replace(data.params, layout=Layout(tuple(columns), height=layout.height))
    return dataclasses.replace(data, feature_data_dict=bare, params=params)


def bare_feature(feature: FeatureData) -> FeatureData:
    groups = [
        dataclasses.replace(group, share_of_activation=None, n_positions=None, share_of_loss=None, near_duplicates=[])
        for group in feature.sequences.groups
    ]
    sequences = dataclasses.replace(feature.sequences, groups=groups)
    nothing = dict.fromkeys(("tokens", "positions", "neighbours", "counterexamples", "decoder_norm"))
    acts = dataclasses.replace(feature.activations, mean=None, skewness=None, kurtosis=None)
    return dataclasses.replace(feature, sequences=sequences, activations=acts, **nothing)


def told_of_panels(fragment: str) -> str:
    """A fragment without what says of each panel what it is."""
    return re.sub(r'<button type="button" class="what-is"[^>]*>\?</button>', "", fragment)


def sizes(data: MultiFeatureData, *, help_buttons: bool = True) -> list[int]:
    page = data._context()
    drawn = (data[index].get_html(page) for index in data)
    return [len(_page.pack(html if help_buttons else Html(told_of_panels(html)))) for html in drawn]


def test_the_evidence_of_the_median_feature_takes_at_most_three_kilobytes(features):
    bare = without_evidence(features)
    drawn = bare[0].get_html(bare._context())
    for told in ("counterexamples", "neighbours", "moments", "shares", "positions", "Decoder norm", 'class="dup"'):
        assert told not in told_of_panels(drawn)
        assert any(told in features[index].get_html(features._context()) for index in features)
    added = [all_ - some for all_, some in zip(sizes(features), sizes(bare, help_buttons=False), strict=True)]
    print(f"evidence: {statistics.median(added)} bytes a feature, of {statistics.median(sizes(features))}")
    assert statistics.median(added) <= 3.0 * KB


def test_the_median_feature_takes_at_most_sixteen_kilobytes(features):
    assert statistics.median(sizes(features)) <= 16 * KB


def test_the_index_takes_at_most_a_kilobyte_a_feature(features):
    document = features.get_html()
    index = re.findall(r'data-asset="\w+">([^<]*)<', document)
    index += re.findall(r'<script type="application/json" data-json="index">([^<]*)<', document)
    print(f"index: {sum(map(len, index)) / len(features):.0f} bytes a feature")
    assert len(index) > 2
    assert sum(map(len, index)) <= KB * len(features)


# --- what all fragments begin with -----------------------------------------------------------------------------------


def tags(html: str) -> set[str]:
    """The tags of a fragment, without the numbers in them and the values that depend on the feature."""
    return {re.sub(r'style="[^"]*"|\bd="[^"]*"|-?[\d.]+', "#", tag) for tag in re.findall(r"<[^>]*>", html)}


def test_the_common_markup_is_what_features_have(features):
    page = features._context()
    drawn = set[str]().union(*(tags(features[index].get_html(page)) for index in features))
    stale = {tag for tag in tags(_page._common_markup()) - drawn if "Histogram" not in tag}
    assert not stale


def test_a_fragment_is_much_smaller_for_the_common_markup(features):
    page = features._context()
    alone = [len(_page.pack_bytes(features[index].get_html(page).encode())) for index in features]
    assert statistics.median(alone) - statistics.median(sizes(features)) > 1.5 * KB


def test_any_fragment_comes_back_as_it_was(tmp_path):
    for text in ("", "é", "\U0001f3bb</script>", str(template("common.html").fill()), "a" * 100_000):
        document = f"{_page.common()}{_page.packed(7, _page.pack(Html(text)))}"
        (found,) = re.findall(r'data-packed="7">([^<]*)<', document)
        assert page_reading.unpacked(found, document) == text


def test_a_page_has_the_common_markup_once_where_anything_is_packed():
    features = make_features(3)
    assert features.get_html().count(" data-common=") == 1
    assert features[0].get_html().count(" data-common=") == 0
    assert make_prompt().get_html().count(" data-common=") == 1
    assert list(packed(features.get_html())) == [1, 2]
