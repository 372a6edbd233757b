"""Labels, notes and stars: set from Python, kept in every file, and carried in a file of their own."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import page_reading
import pytest
from rendering_fixtures import make_features, make_provenance

from sae_vis import FileFormatError, InputError, MultiFeatureData, _labels
from sae_vis._feature_folder import FeatureFolder

FEW = {"first_group_size": 2, "n_groups": 1, "other_groups_size": 1, "n_bins": 4, "n_logits": 3}


@pytest.fixture
def features():
    return make_features(4, dead=(3,), **FEW)


@pytest.fixture
def lazy(features, tmp_path):
    """The same features, read from a folder when they are asked for."""
    token_ids = [features.rows.get(row, [0] * 64) for row in range(1000)]
    rows = b"".join(token.to_bytes(4, "little") for row in token_ids for token in row)
    told = make_provenance(seq_len=64)
    features.feature_data_dict[1].label = "Django model fields"
    with FeatureFolder.create_or_resume(
        MultiFeatureData, tmp_path / "run", features.params, told, features.vocab, features.vocab_bytes, rows
    ) as folder:
        folder.add(list(features.values()))
    return MultiFeatureData.load_dir(tmp_path / "run")


@pytest.fixture(params=["in memory", "in a folder", "merged"])
def any_features(request, features):
    if request.param == "in memory":
        return features
    lazy = request.getfixturevalue("lazy")
    if request.param == "in a folder":
        return lazy
    lazy_dict = lazy.feature_data_dict
    one, other = (dataclasses.replace(lazy, feature_data_dict={i: lazy_dict[i]}) for i in (0, 1))
    both = one.merge(other)
    rest = dataclasses.replace(lazy, feature_data_dict={i: lazy_dict[i] for i in (2, 3)})
    return both.merge(rest)


def test_labels_are_a_view_of_the_data(any_features):
    labels = any_features.labels
    assert dict(labels) == {1: "Django model fields"}
    labels[2] = "  import statements "
    assert any_features[2].label == "import statements"
    assert dict(any_features.labels) == {1: "Django model fields", 2: "import statements"}
    assert (2 in labels, 0 in labels, 17 in labels) == (True, False, False)
    assert len(labels) == 2
    del labels[1]
    labels[2] = ""
    assert dict(labels) == {}
    assert any_features[1].label is None
    with pytest.raises(KeyError):
        labels[1]


def test_labels_take_ids_from_numpy_and_default_to_what_is_given(any_features):
    labels = any_features.labels
    labels[np.int64(2)] = "two"
    assert (np.int64(2) in labels, labels[np.int64(2)], labels.get(2)) == (True, "two", "two")
    any_features.labels = {np.int64(1): "one"}
    assert dict(labels) == {1: "one"}
    assert all(type(feature) is int for feature in labels)
    assert [labels.get(key, "none") for key in (0, 900, -1, "1", True, None)] == ["none"] * 6
    assert (labels.pop(900, None), labels.pop(0, "none"), labels.pop(np.int64(1)), dict(labels)) == (
        None,
        "none",
        "one",
        {},
    )
    with pytest.raises(KeyError):
        labels.pop(1)
    with pytest.raises(InputError, match="Feature 900 is not in this data"):
        labels.pop(900)


def test_a_label_set_on_the_feature_is_seen_in_labels(features):
    features[2].label = "x"
    assert features.labels[2] == "x"


def test_assigning_labels_replaces_all(any_features):
    any_features.labels = {0: "zero", 2: "two"}
    assert dict(any_features.labels) == {0: "zero", 2: "two"}
    assert any_features[1].label is None


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({17: "x"}, "Feature 17 is not in this data"),
        ({"0": "x"}, "Feature '0' is not in this data"),
        ({True: "x"}, "Feature True is not in this data"),
        ({0: 5}, "label of feature 0 must be a text or None, got 5"),
        ({0: "x" * 201}, "201 characters, at most 200"),
        ({0: "\ud800"}, "half a surrogate pair"),
        ([(0, "x")], "must be a mapping"),
    ],
)
def test_what_is_no_label_is_refused_and_changes_nothing(features, labels, message):
    with pytest.raises(InputError, match=message):
        features.labels = labels
    assert dict(features.labels) == {1: "Django model fields"}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("label", "x" * 201, "the label of feature 2 has 201 characters"),
        ("label", 5, "the label of feature 2 must be a text or None, got 5"),
        ("note", "\ud800", "the note of feature 2 holds half a surrogate pair"),
        ("note", "x" * 10_001, "the note of feature 2 has 10,?001 characters"),
    ],
)
def test_what_no_file_of_labels_may_hold_is_not_saved(features, name, value, message, tmp_path):
    """It could not be read back; what the file held before stays."""
    features.save_labels(tmp_path / "labels.json")
    before = (tmp_path / "labels.json").read_bytes()
    setattr(features[2], name, value)
    with pytest.raises(InputError, match=message):
        features.save_labels(tmp_path / "labels.json")
    assert (tmp_path / "labels.json").read_bytes() == before


def test_labels_are_on_the_page_and_in_the_json(any_features, tmp_path):
    any_features.labels = {0: "<b>bold</b>", 3: "three"}
    html = any_features.get_html()
    index = page_reading.data(html, "index")
    assert index["labels"] == {"0": "<b>bold</b>", "3": "three"}
    assert '<bdi class="label">&lt;b&gt;bold&lt;/b&gt;</bdi>' in html
    any_features.save_json(tmp_path / "f.json")
    assert dict(MultiFeatureData.load_json(tmp_path / "f.json").labels) == {0: "<b>bold</b>", 3: "three"}
    any_features.save_site(tmp_path / "site")
    (file,) = (tmp_path / "site" / "assets").glob("labels-*.js")
    assert "three" in file.read_text(encoding="utf-8")


def test_a_file_of_labels_comes_back(any_features, tmp_path):
    written = {
        "format": "sae_vis labels",
        "version": 1,
        "of": {"model": "gelu-1l-code", "hook_point": "blocks.0.mlp.hook_post", "encoder": "1a2b3c4d5e6f7890"},
        "features": {
            "0": {"label": "zero", "note": "a\nnote", "star": True, "changed": "2026-01-31T12:00:00.000Z"},
            "1": {"note": "only a note"},
            "900": {"label": "of another part"},
        },
    }
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(written), encoding="utf-8")
    assert any_features.load_labels(path) == [900]
    assert dict(any_features.labels) == {0: "zero"}  # what is said of a feature is replaced
    assert (any_features[0].note, any_features[0].starred, any_features[1].note) == ("a\nnote", True, "only a note")
    any_features.save_labels(path)
    again = json.loads(path.read_text(encoding="utf-8"))
    del written["features"]["0"]["changed"], written["features"]["900"]
    assert again == written
    index = page_reading.data(any_features.get_html(), "index")
    assert (index["notes"], index["stars"]) == ({"0": "a\nnote", "1": "only a note"}, [0])


def test_notes_and_stars_are_in_the_json_of_the_data(features, tmp_path):
    features[0].note, features[0].starred = "a note", True
    features.save_json(tmp_path / "f.json")
    again = MultiFeatureData.load_json(tmp_path / "f.json")
    assert (again[0].note, again[0].starred, again[1].note, again[1].starred) == ("a note", True, None, False)


RIGHT = {"format": "sae_vis labels", "version": 1, "of": {}, "features": {}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no JSON object"),
        ("[]", "no JSON object"),
        ('{"format": "sae_vis", "version": 1}', "its format is 'sae_vis'"),
        ("{}", "it says no format"),
        (json.dumps(RIGHT | {"version": 2}), "version 2 of the labels; this library reads 1"),
        (json.dumps(RIGHT | {"features": {"x": {}}}), "damaged file of labels"),
        (json.dumps(RIGHT | {"features": {"1": {"label": 5}}}), r"damaged file of labels.*\$.features"),
        (json.dumps(RIGHT | {"features": {"1": {"lable": "x"}}}), "lable"),
        (json.dumps(RIGHT | {"more": 1}), "more"),
    ],
)
def test_a_foreign_file_is_refused(features, tmp_path, content, message):
    path = tmp_path / "labels.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(FileFormatError, match=message) as raised:
        features.load_labels(path)
    assert str(path) in str(raised.value)
    assert dict(features.labels) == {1: "Django model fields"}


def test_a_missing_file_is_refused(features, tmp_path):
    with pytest.raises(FileFormatError, match=r"no\.json"):
        features.load_labels(tmp_path / "no.json")


def test_what_a_file_says_is_stripped_like_what_is_set(features, tmp_path):
    file = {"format": "sae_vis labels", "version": 1, "of": {}}
    marks = {"0": {"label": "  imports\n", "note": "  "}, "1": {"label": " "}}
    (tmp_path / "labels.json").write_text(json.dumps(file | {"features": marks}), encoding="utf-8")
    features.labels = {1: "before"}
    features.load_labels(tmp_path / "labels.json")
    assert features.labels == {0: "imports"}
    assert (features[0].label, features[0].note, features[1].label) == ("imports", None, None)


@pytest.mark.parametrize("feature", [1.0, True, "1", [1], None, 99])
def test_what_is_no_feature_has_no_label(features, feature):
    features.labels = {1: "one"}
    assert 1 in features.labels
    assert feature not in features.labels


def test_labels_of_other_features_are_taken_only_if_asked(features, tmp_path):
    path = tmp_path / "labels.json"
    path.write_text(
        json.dumps(RIGHT | {"of": {"encoder": "other", "x": "y"}, "features": {"0": {"label": "zero"}}}),
        encoding="utf-8",
    )
    with pytest.raises(InputError, match="encoder 'other' there, '1a2b3c4d5e6f7890' here"):
        features.load_labels(path)
    assert features.load_labels(path, any_origin=True) == []
    assert features.labels[0] == "zero"


def test_browsers_keep_labels_under_one_key_whatever_text_the_features_were_looked_at_on():
    def key(**changes):
        features = make_features(1, dead=(), **FEW)
        features.provenance = make_provenance(**changes)
        return page_reading.data(features.get_html(), "index")["key"]

    assert key() == key(digests={"encoder": "1a2b3c4d5e6f7890", "tokens": "other"}, n_rows=5)
    assert len({key(), key(digests={"encoder": "other"}), key(model="other"), key(hook_point="other")}) == 4


def test_the_key_of_a_browser_does_not_depend_on_the_order_in_which_a_file_says_whose_labels_they_are():
    of = {"model": "gelu-1l", "hook_point": "blocks.0.mlp.hook_post", "encoder": "1a2b"}
    assert _labels.storage_key(of) == _labels.storage_key(dict(reversed(of.items())))
    assert _labels.storage_key(of) != _labels.storage_key(of | {"encoder": "1a2c"})
