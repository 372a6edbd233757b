"""Saving and loading: exact, deterministic, never half written, and every fault one clear error."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import gc
import gzip
import json
import math
import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import msgspec
import pytest
from conftest import small_feature
from hypothesis import given
from hypothesis import strategies as st

from sae_vis import FileFormatError, InputError, MultiFeatureData, MultiPromptData, PromptComparisonData, _json
from sae_vis._params import Column, Component, FeatureVisParams, Layout

CHECKOUT = Path(__file__).resolve().parents[1]
BOTH = pytest.mark.parametrize("kind", ["feature_data", "prompt_data"])


def saved(obj, path: Path) -> bytes:
    _json.save(obj, path)
    return path.read_bytes()


def fault(data: bytes, path: Path, cls=MultiFeatureData, **options) -> str:
    """The message of the error that loading ``data`` gives; it names the file."""
    path.write_bytes(data)
    with pytest.raises(FileFormatError) as caught:
        _json.load(cls, path, **options)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.endswith(".")
    return message.removeprefix(f"{path}: ")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data.json"


@pytest.fixture
def tree(feature_data, path) -> dict:
    """The document as plain Python values, to be spoilt."""
    return json.loads(saved(feature_data, path))


def spoilt(tree: dict, path: Path) -> str:
    return fault(json.dumps(tree).encode(), path)


# --- round trips -------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("name", ["data.json", "data.json.gz"])
def test_a_round_trip_is_exact(kind, name, tmp_path, request):
    data = request.getfixturevalue(kind)
    first = saved(data, tmp_path / name)
    loaded = _json.load(type(data), tmp_path / name)
    assert loaded == data
    assert type(loaded) is type(data)
    assert saved(loaded, tmp_path / name) == first
    assert list(loaded.vocab) == list(data.vocab)  # the order too


@BOTH
def test_the_methods_of_the_dataclasses_do_the_same(kind, path, request):
    data = request.getfixturevalue(kind)
    data.save_json(path)
    assert type(data).load_json(path) == data


@BOTH
def test_one_valid_document_with_one_feature_a_line(kind, path, request):
    data = request.getfixturevalue(kind)
    lines = saved(data, path).decode().rstrip("\n").split("\n")  # a token may hold U+2028
    values = data.feature_data_dict if kind == "feature_data" else data.prompt_data_dict
    assert lines[0].startswith(f'{{"format": "sae_vis", "kind": "{type(data).__name__}", "version": 2, "header": {{')
    assert lines[0].endswith('"features": [')
    assert lines[-1] == "]}"
    assert [json.loads(line.rstrip(","))["feature_idx"] for line in lines[1:-1]] == sorted(values)
    whole = json.loads("\n".join(lines))
    assert list(whole) == ["format", "kind", "version", "header", "features"]


def test_no_features_is_a_file_too(feature_data, path):
    feature_data.feature_data_dict = {}
    _json.save(feature_data, path)
    assert _json.load(MultiFeatureData, path) == feature_data


def test_a_feature_that_never_fires(feature_data, path):
    acts = feature_data.feature_data_dict[8].activations
    acts.density, acts.n_active = 0.0, 0
    acts.max = acts.mean = acts.variance = acts.skewness = acts.kurtosis = None
    feature_data.feature_data_dict[8].logits = None
    _json.save(feature_data, path)
    assert _json.load(MultiFeatureData, path) == feature_data


def test_the_layout_and_every_parameter_come_back(feature_data, path):
    feature_data.params = FeatureVisParams(
        hook_point="x",
        features=[3, 1],
        buffer=None,
        ignore_tokens=(),
        memory_budget=12345,
        correlate_features=None,
        ablation=None,
        layout=Layout((Column("logits_tables", Component("sequences", {"examples": 3}), width=300),), height=500),
    )
    _json.save(feature_data, path)
    loaded = _json.load(MultiFeatureData, path)
    assert loaded.params == feature_data.params
    assert isinstance(loaded.params.layout.columns[0].components, tuple)


def test_an_int_where_a_float_belongs_is_written_as_a_float(feature_data, path):
    feature_data.feature_data_dict[8].activations.max = 3
    first = saved(feature_data, path)
    assert b'"max":3.0' in first
    loaded = _json.load(MultiFeatureData, path)
    assert loaded == feature_data
    assert saved(loaded, path) == first


FLOATS = st.floats(allow_nan=False, allow_infinity=False)


@given(values=st.lists(FLOATS, min_size=1, max_size=20), texts=st.dictionaries(st.integers(0, 2**40), st.text()))
def test_any_finite_number_and_any_text_survive(values, texts, tmp_path_factory):
    from conftest import small_provenance

    feature = small_feature(1)
    sequence = feature.sequences.groups[0].sequences[0]
    sequence.token_ids, sequence.bold_idx, sequence.effects = list(range(len(values))), 0, []
    sequence.feat_acts, sequence.loss_contribution = values, [None, *values[1:]]
    data = MultiFeatureData({1: feature}, texts, {}, {}, FeatureVisParams(), small_provenance())
    path = tmp_path_factory.getbasetemp() / "any.json"
    first = saved(data, path)
    loaded = _json.load(MultiFeatureData, path)
    assert loaded == data
    assert [math.copysign(1, v) for v in values] == [
        math.copysign(1, v) for v in loaded.feature_data_dict[1].sequences.groups[0].sequences[0].feat_acts
    ]
    assert saved(loaded, path) == first


HALF_PAIRS = ["\ud800", "\ud800\udc00", "a\udfffb", "\udc00\ud800", '"\\\ud83d', "\ud800\\u0041"]


@given(texts=st.lists(st.text(st.characters(categories=["Cs", "Ll", "Po", "Zs"])), min_size=1, max_size=5))
def test_tokens_with_half_a_surrogate_pair_survive(texts, tmp_path_factory):
    check_half_pairs(texts, tmp_path_factory.getbasetemp() / "half.json")


@pytest.mark.parametrize("text", HALF_PAIRS)
def test_one_token_with_half_a_surrogate_pair(text, path):
    check_half_pairs([text, "ordinary"], path)
    document = json.loads(path.read_text("utf-8"))
    assert list(document["header"]["vocab_surrogates"]) == ["0"]
    assert "\ufffd" in document["header"]["vocab"]["0"]


def check_half_pairs(texts: list[str], path: Path) -> None:
    from conftest import small_provenance

    data = MultiFeatureData({}, dict(enumerate(texts)), {}, {}, FeatureVisParams(), small_provenance())
    first = saved(data, path)
    first.decode("utf-8")
    loaded = _json.load(MultiFeatureData, path)
    assert loaded.vocab == data.vocab
    assert saved(loaded, path) == first


def test_equal_data_gives_equal_bytes(feature_data, tmp_path):
    a = saved(feature_data, tmp_path / "a.json.gz")
    assert a[4:8] == bytes(4), "no time"
    b = saved(copy.deepcopy(feature_data), tmp_path / "b.json.gz")
    assert a == b
    assert b"a.json" not in a[:40]
    assert gzip.decompress(a) == saved(feature_data, tmp_path / "a.json")


def test_what_was_drawn_is_saved_like_what_was_not(feature_data, path):
    first = saved(feature_data, path)
    feature_data[8].get_html()
    feature_data.get_html()
    assert saved(feature_data, path) == first


@pytest.mark.parametrize("indent", [None, 2])
def test_another_layout_of_the_same_document_is_read(indent, feature_data, path, tree):
    reordered = dict(reversed(tree.items())) | {"features": tree["features"][::-1]}
    path.write_text(json.dumps(reordered, indent=indent), "utf-8")
    assert _json.load(MultiFeatureData, path) == feature_data


def test_fields_with_a_default_may_be_absent(tree, path):
    del tree["features"][0]["label"]
    del tree["header"]["params"]["verbose"]
    path.write_text(json.dumps(tree), "utf-8")
    assert _json.load(MultiFeatureData, path).params.verbose is True


def test_gzip_is_recognised_whatever_the_name(feature_data, tmp_path, path):
    _json.save(feature_data, tmp_path / "x.json.gz")
    (tmp_path / "x.json.gz").rename(path)
    assert _json.load(MultiFeatureData, path) == feature_data


def test_the_collector_is_paused_and_restored(feature_data, path, monkeypatch):
    seen = []
    monkeypatch.setattr(_json, "_load", lambda *_: seen.append(gc.isenabled()))
    _json.save(feature_data, path)
    _json.load(MultiFeatureData, path)
    assert seen == [False]
    assert gc.isenabled()
    gc.disable()
    try:
        _json.save(feature_data, path)
        assert not gc.isenabled()
    finally:
        gc.enable()


# --- what cannot be saved ----------------------------------------------------------------------------------------


def nan_at(where: str):
    def spoil(data: MultiFeatureData) -> None:
        feature = data.feature_data_dict[8]
        sequence = feature.sequences.groups[1].sequences[0]
        match where:
            case "a moment":
                feature.activations.skewness = math.nan
            case "a list":
                sequence.feat_acts[1] = math.inf
            case "a list with None":
                sequence.loss_contribution[2] = -math.inf
            case "a dict":
                feature.logits.shown_logits[5] = math.nan

    return spoil


@pytest.mark.parametrize(
    ("where", "path_to_it"),
    [
        ("a moment", "$.features[1] (feature 8).activations.skewness"),
        ("a list", "$.features[1] (feature 8).sequences.groups[1].sequences[0].feat_acts[1]"),
        ("a list with None", "$.features[1] (feature 8).sequences.groups[1].sequences[0].loss_contribution[2]"),
        ("a dict", "$.features[1] (feature 8).logits.shown_logits[...]"),
    ],
)
def test_a_number_that_is_not_finite_is_refused_by_its_path(where, path_to_it, feature_data, path):
    old = saved(feature_data, path)
    nan_at(where)(feature_data)
    with pytest.raises(InputError, match=re.escape(f"{path_to_it}: expected a finite number, got NaN or infinity.")):
        _json.save(feature_data, path)
    assert path.read_bytes() == old
    assert os.listdir(path.parent) == [path.name]


def test_values_of_other_types_are_refused_by_their_path(feature_data, path):
    numpy = pytest.importorskip("numpy")
    feature_data.feature_data_dict[2].activations.max = numpy.float32(1.5)
    with pytest.raises(
        InputError, match=r"\$\.features\[0\] \(feature 2\)\.activations\.max: expected float.*numpy\.float32"
    ):
        _json.save(feature_data, path)


def test_a_header_value_is_refused_by_its_path(feature_data, path):
    feature_data.provenance.d_in = "16"
    with pytest.raises(InputError, match=r"\$\.header\.provenance\.d_in: expected int, got str"):
        _json.save(feature_data, path)


@pytest.mark.parametrize("where", ["label", "model"])
def test_half_a_surrogate_pair_outside_the_vocabulary_is_refused(where, feature_data, path):
    if where == "label":
        feature_data.feature_data_dict[8].label = "\ud800"
    else:
        feature_data.provenance.model = "\ud800"
    expected = r"features\[1\] \(feature 8\)\.label" if where == "label" else r"header\.provenance\.model"
    with pytest.raises(InputError, match=rf"\$\.{expected} holds half a surrogate pair"):
        _json.save(feature_data, path)
    assert not path.exists()


def test_only_the_two_top_classes_are_files(path):
    with pytest.raises(InputError, match="Only MultiFeatureData and MultiPromptData"):
        _json.save(small_feature(), path)
    with pytest.raises(InputError, match="Only MultiFeatureData and MultiPromptData"):
        _json.load(int, path)


# --- files that are written as a whole, or not at all ----------------------------------------------------------------


def test_write_atomic_writes(path):
    _json.write_atomic(path, b"one")
    _json.write_atomic(str(path), [b"t", b"wo"])
    assert path.read_bytes() == b"two"
    assert os.listdir(path.parent) == [path.name]


def test_a_new_file_has_the_permissions_of_any_new_file(path):
    other = path.with_name("other")
    other.write_bytes(b"")
    _json.write_atomic(path, b"")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)


def test_an_old_file_keeps_its_permissions(path):
    path.write_bytes(b"old")
    path.chmod(0o640)
    _json.write_atomic(path, b"new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_link_stays_a_link(tmp_path):
    target, link = tmp_path / "folder" / "target", tmp_path / "link"
    target.parent.mkdir()
    link.symlink_to(target)
    for content in (b"first", b"second"):  # a link to nothing, then to a file
        _json.write_atomic(link, content)
        assert link.is_symlink()
        assert target.read_bytes() == content
    assert os.listdir(target.parent) == ["target"]


def test_what_is_not_a_plain_file_is_written_to_directly():
    _json.write_atomic("/dev/null", b"gone")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_name_of_255_bytes_works(tmp_path):
    _json.write_atomic(tmp_path / ("n" * 255), b"x")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/such/folder/x.json", "its folder does not exist"),
        ("", "directory"),
        ("n" * 256, "too long"),
        ("a\0b", "NUL"),
    ],
)
def test_a_path_that_cannot_be_written_is_a_clear_error(name, message, tmp_path):
    with pytest.raises(InputError, match=message) as caught:
        _json.write_atomic(f"{tmp_path}/{name}", b"x")
    assert str(tmp_path) in str(caught.value)


def test_a_file_as_a_folder_is_a_clear_error(path):
    path.write_bytes(b"old")
    with pytest.raises(InputError, match="Not a directory"):
        _json.write_atomic(path / "x.json", b"x")


def test_a_read_only_file_is_not_replaced(path, monkeypatch):
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anything
    with pytest.raises(InputError, match="read-only"):
        _json.write_atomic(path, b"new")
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_other(step, path, monkeypatch):
    path.write_bytes(b"old")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    def chunks():
        yield b"half"
        if step == "write":
            full()

    if step == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    if step == "replace":
        monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(InputError, match="No space left on device") as caught:
        _json.write_atomic(path, chunks())
    assert str(path) in str(caught.value)
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == [path.name]


def test_an_interrupt_leaves_the_old_file_and_no_other(path):
    path.write_bytes(b"old")

    def chunks():
        yield b"half"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _json.write_atomic(path, chunks())
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == [path.name]


def test_kill_9_in_the_middle_leaves_the_old_file(path):
    path.write_bytes(b"old")
    program = f"""
import sys, time
from sae_vis._json import write_atomic
def chunks():
    yield b"x" * 2**20
    print("half", flush=True)
    time.sleep(60)
write_atomic({str(path)!r}, chunks())
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=CHECKOUT) as process:
        assert process.stdout.readline() == b"half\n"
        process.kill()
    assert path.read_bytes() == b"old"


def test_a_full_device_is_a_clear_error(feature_data):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(InputError, match="No space left"):
        _json.save(feature_data, "/dev/full")


# --- files that are not right --------------------------------------------------------------------------------------


def test_foreign_files(path):
    assert "the file is empty" in fault(b"", path)
    assert "the file is empty" in fault(b" \n", path)
    assert "not readable as a file of sae_vis" in fault(b"\x89PNG\r\n\x1a\n\x00\x00", path)
    assert "not readable as a file of sae_vis" in fault(b"feature,density\n1,2\n", path)
    assert "expected object, got array" in fault(b"[1, 2]", path)
    assert "$.format must be 'sae_vis', got None" in fault(b'{"feature_data_dict": {}}', path)
    assert "$.format must be 'sae_vis', got 'xxx" in fault(b'{"format": "' + b"x" * 5000 + b'"}', path)
    assert len(fault(b'{"format": "' + b"x" * 5000 + b'"}', path)) < 200


def test_absent_and_unreadable_files(tmp_path):
    for name, message in (("absent.json", "No such file"), ("", "it is a folder"), ("a\0b", "null")):
        with pytest.raises(FileFormatError, match=message):
            _json.load(MultiFeatureData, f"{tmp_path}/{name}")


def test_another_kind(feature_data, path, tree):
    data = saved(feature_data, path)
    message = fault(data, path, MultiPromptData)
    assert message == "it holds a MultiFeatureData, not a MultiPromptData: load it with MultiFeatureData.load_json."
    for kind in (None, "FeatureData", 3, ["MultiFeatureData"]):
        assert "$.kind must be one of MultiFeatureData, MultiPromptData" in spoilt(tree | {"kind": kind}, path)


def test_either_kind_can_be_asked_for(feature_data, prompt_data, path):
    for data in (feature_data, prompt_data):
        _json.save(data, path)
        assert _json.load_any([MultiFeatureData, MultiPromptData], path) == data


def test_other_versions(tree, path):
    assert "format version 3, but this sae_vis reads up to 2: install a newer" in spoilt(tree | {"version": 3}, path)
    for version in (0, -1, "1", 1.5, True, None):
        assert "$.version must be a positive int" in spoilt(tree | {"version": version}, path)


def test_a_newer_version_is_said_before_its_new_contents_are_looked_at(tree, path):
    assert "newer sae_vis" in spoilt(tree | {"version": 9, "new": 1, "header": {"new": 1}}, path)


def test_parts_that_are_missing(tree, path):
    for name in ("header", "features"):
        assert "'header' or 'features' is missing" in spoilt({k: v for k, v in tree.items() if k != name}, path)
    del tree["features"][1]["activations"]["density"]
    assert "$.features[1] (feature 8).activations: object missing required field density" in spoilt(tree, path)
    del tree["header"]["vocab"]
    assert "$.header: object missing required field vocab" in spoilt(tree, path)


def test_values_of_a_wrong_type(tree, path):
    tree["features"][1]["activations"]["density"] = "0.5"
    assert spoilt(tree, path) == "$.features[1] (feature 8).activations.density: expected float, got str."
    tree["features"][1] = None
    assert spoilt(tree, path) == "$.features[1]: expected object, got None."
    tree["features"][1] = copy.deepcopy(tree["features"][0])
    for value in (1.5, 2.0, "8", None, True):
        tree["features"][1]["feature_idx"] = value
        assert "$.features[1].feature_idx: expected int, got" in spoilt(tree, path)
    tree["features"] = {}
    assert "$.features: expected array" in spoilt(tree, path)


def test_keys_that_are_no_numbers(tree, path):
    tree["header"]["vocab"]["x"] = "y"
    assert "$.header.vocab: a key: expected int, got str" in spoilt(tree, path)


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"null", b"0x1", b"01"])
def test_numbers_that_are_none(number, feature_data, path):
    data = saved(feature_data, path).replace(b'"density":0.01', b'"density":' + number, 1)
    assert number in data
    fault(data, path)


def test_numbers_of_a_million_digits(feature_data, path):
    data = saved(feature_data, path)
    fault(data.replace(b'"n_active":4', b'"n_active":4.' + b"1" * 10**6, 1), path)
    fault(data.replace(b'"density":0.01', b'"density":1' + b"0" * 10**6, 1), path)


def test_unknown_fields_are_errors_wherever_they_are(tree, path):
    def check(place: dict, where: str) -> None:
        place["surplus"] = 1
        assert spoilt(tree, path) == f"{where}: object contains unknown field surplus."
        del place["surplus"]

    check(tree, "$")
    check(tree["header"], "$.header")
    check(tree["header"]["params"], "$.header.params")
    check(tree["header"]["provenance"], "$.header.provenance")
    check(tree["features"][0], "$.features[0]")
    check(tree["features"][1]["sequences"]["groups"][0]["sequences"][0]["effects"][0],
          "$.features[1].sequences.groups[0].sequences[0].effects[0]")  # fmt: skip


def test_what_stands_behind_the_features_is_read_too(feature_data, path):
    data = saved(feature_data, path)
    assert data.endswith(b"\n]}\n")
    assert "surplus" in fault(data.removesuffix(b"}\n") + b', "surplus": 1}\n', path)
    assert fault(data.removesuffix(b"}\n") + b', "version": 2}\n', path) == "$.version is there twice."


def test_a_key_that_is_there_twice_is_an_error(feature_data, path):
    data = saved(feature_data, path)
    for old, new, where in (
        (b'"n_active":4', b'"n_active":4,"n_active":4', "$.features[0].activations.n_active"),
        (b'"5":" the"', b'"5":"x","5":" the"', "$.header.vocab.5"),
        (b'"version": 2', b'"version": 2, "version": 2', "$.version"),
    ):
        assert data.count(old) >= 1
        assert fault(data.replace(old, new, 1), path) == f"{where} is there twice."


def test_a_feature_that_is_there_twice_is_an_error(tree, path):
    tree["features"].append(tree["features"][0])
    assert spoilt(tree, path) == "$.features: feature 2 is there twice."


def test_the_checks_of_the_dataclasses_name_the_place(tree, path):
    good = copy.deepcopy(tree)
    tree["features"][1]["activations"]["density"] = 1.5
    assert "$.features[1] (feature 8).activations: ActivationsData: density must be from 0 to 1, got 1.5." in spoilt(
        tree, path
    )
    tree = copy.deepcopy(good)
    tree["features"][0]["sequences"]["groups"][1]["sequences"][0]["feat_acts"].pop()
    message = spoilt(tree, path)
    assert "$.features[0] (feature 2).sequences.groups[1].sequences[0]: SequenceData" in message
    assert "feat_acts has 2" in message
    tree = copy.deepcopy(good)
    tree["header"]["params"]["n_bins"] = 0
    assert "$.header.params: FeatureVisParams.n_bins must be an int from 1" in spoilt(tree, path)
    tree = copy.deepcopy(good)
    tree["header"]["params"]["ablation"] = "half"
    assert "$.header.params.ablation: invalid enum value 'half'" in spoilt(tree, path).replace("Invalid", "invalid")


def test_the_checks_of_the_whole_name_the_file(prompt_data, path):
    tree = json.loads(saved(prompt_data, path))
    tree["header"]["n_active"].pop()
    message = fault(json.dumps(tree).encode(), path, MultiPromptData)
    assert "n_active has 2" in message


def test_exact_texts_that_are_none(tree, path):
    for text in ("xyz", "e", "ff"):
        tree["header"]["vocab_surrogates"] = {"5": text}
        spoilt(tree, path)
    tree["header"]["vocab_surrogates"] = 3
    assert "$.header.vocab_surrogates" in spoilt(tree, path)


def test_text_that_is_not_utf_8(feature_data, path):
    data = saved(feature_data, path)
    assert "text that is not UTF-8" in fault(data.replace(b" the", b" \xffhe", 1), path)
    assert "text that is not UTF-8" in fault(data.replace(b"TOP", b"T\xc3P", 1), path)
    fault(data.decode().encode("utf-16"), path)


@pytest.mark.parametrize("inner", [b"[", b'{"x":'])
def test_deep_nesting(inner, feature_data, path):
    bomb = inner * 200_000
    assert "nested too deeply" in fault(bomb, path) or "expected object" in fault(bomb, path)
    data = saved(feature_data, path)
    assert "nested too deeply" in fault(data.replace(b'"density":0.01', b'"density":' + bomb, 1), path)
    fault(data.replace(b'"label":null', b'"label":null,"x":' + b"[" * 500 + b"]" * 500, 1), path)


def test_truncated_anywhere(prompt_data, path):
    data = saved(prompt_data, path)
    for length in range(0, len(data) - 1, 7):
        fault(data[:length], path, MultiPromptData)
    path.write_bytes(data[:-1])  # only the last line's end is missing
    assert _json.load(MultiPromptData, path) == prompt_data


def test_a_truncated_or_damaged_gzip(feature_data, tmp_path, path):
    data = saved(feature_data, tmp_path / "x.json.gz")
    for length in range(3, len(data), 101):
        fault(data[:length], path)
    assert "gzip stream is truncated" in fault(data[:-5], path)
    assert "gzip stream is damaged" in fault(data[:-8] + b"\0" * 8, path)
    assert "gzip stream is damaged" in fault(data + b"rubbish", path)
    for position in range(2, len(data), 37):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :])
        with contextlib.suppress(FileFormatError):
            assert _json.load(MultiFeatureData, path) == feature_data  # e.g. the byte that names the system


def test_a_gzip_bomb_is_stopped(feature_data, path):
    bomb = gzip.compress(b" " * 50_000_000)
    assert len(bomb) < 100_000
    message = fault(bomb, path, max_bytes=1_000_000)
    assert message == "larger than 1,000,000 bytes; if that is right, give a larger max_bytes."
    size = len(saved(feature_data, path))
    assert "larger than" in fault(path.read_bytes(), path, max_bytes=size - 1)
    assert _json.load(MultiFeatureData, path, max_bytes=size) == feature_data


@pytest.fixture(scope="module")
def one_file(tmp_path_factory) -> tuple[bytes, Path]:
    from conftest import small_provenance

    path = tmp_path_factory.mktemp("flips") / "one.json"
    data = MultiFeatureData({8: small_feature()}, {5: " the"}, {}, {}, FeatureVisParams(), small_provenance())
    return saved(data, path), path


@given(st.data())
def test_any_damage_is_an_error_or_another_valid_file(one_file, data):
    """Flipped bits, dropped and doubled pieces: an error that names the file, or data that saves and loads again."""
    content, path = one_file
    start = data.draw(st.integers(0, len(content) - 1))
    stop = data.draw(st.integers(start, min(start + 60, len(content))))
    piece = content[start:stop]
    change = data.draw(
        st.sampled_from([b"", piece * 2, piece[::-1], bytes(byte ^ 1 for byte in piece), b"null", b"[]", b"1e5", b'"'])
    )
    path.write_bytes(content[:start] + change + content[stop:])
    try:
        loaded = _json.load(MultiFeatureData, path)
    except FileFormatError as error:
        assert str(error).startswith(f"{path}: ")  # noqa: PT017  # either outcome is right
    else:
        _json.save(loaded, path)
        assert _json.load(MultiFeatureData, path) == loaded


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(JSON_VALUES, JSON_VALUES, JSON_VALUES)
def test_any_json_at_all_gives_only_the_one_error(one_file, a, b, c):
    _, path = one_file
    for tree in (a, {"format": "sae_vis", "kind": b, "version": c},
                 {"format": "sae_vis", "kind": "MultiFeatureData", "version": 1, "header": a, "features": [b, c]}):  # fmt: skip
        path.write_text(json.dumps(tree), "utf-8")
        with pytest.raises(FileFormatError):
            _json.load(MultiFeatureData, path)


# --- older versions ------------------------------------------------------------------------------------------------

OLD_FILES = {"features_1.json": MultiFeatureData, "prompt_1.json": MultiPromptData}


@pytest.mark.parametrize("name", OLD_FILES)
def test_a_file_of_version_1_loads_without_the_parts_that_it_had_not(name, request, path):
    """These files were written by the code that wrote version 1, from what the fixtures make."""
    loaded = OLD_FILES[name].load_json(CHECKOUT / "tests" / "old_files" / name)
    data = request.getfixturevalue("feature_data" if "features" in name else "prompt_data")
    data.params = dataclasses.replace(data.params, n_tokens=0, n_counterexamples=0, n_position_bins=0)
    assert loaded == data
    assert loaded.get_html() == data.get_html()
    assert saved(loaded, path) == saved(data, path)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (b'"version": 1,', b'"version": 1, "version": 1,', "$.version is there twice."),
        (b'"n_active":4', b'"n_active":4,"n_active":4', "$.features[0].activations.n_active is there twice."),
        (b'"n_active":4', b'"n_active":4,"surplus":4', "unknown field surplus"),
        (b'"params":{', b'"parameters":{', "could not be brought to 2"),
        (b'"header": {', b'"header": null, "other": {', "could not be brought to 2"),
    ],
)
def test_a_file_of_version_1_is_checked_like_any_other(old, new, told, path):
    data = (CHECKOUT / "tests" / "old_files" / "features_1.json").read_bytes()
    assert old in data
    assert told in fault(data.replace(old, new, 1), path)


def from_version_2(document: dict) -> dict:
    """As if version 2 had called the model "network"."""
    provenance = document["header"]["provenance"]
    provenance["model"] = provenance.pop("network")
    return document


@pytest.fixture
def version_3(monkeypatch):
    monkeypatch.setattr(_json, "VERSION", 3)
    monkeypatch.setattr(_json, "MIGRATIONS", _json.MIGRATIONS | {2: from_version_2})
    _json._kind.cache_clear()
    yield
    _json._kind.cache_clear()


def test_an_older_version_is_brought_up(feature_data, path, tree, version_3):
    provenance = tree["header"]["provenance"]
    provenance["network"] = provenance.pop("model")
    path.write_text(json.dumps(tree), "utf-8")
    assert _json.load(MultiFeatureData, path) == feature_data
    assert b'"version": 3' in saved(feature_data, path)
    assert _json.load(MultiFeatureData, path) == feature_data


def test_a_migrated_file_is_checked_like_any_other(path, tree, version_3):
    assert "format version 2 could not be brought to 3: KeyError" in spoilt(tree, path)
    provenance = tree["header"]["provenance"]
    provenance["network"] = provenance.pop("model")
    provenance["surplus"] = 1
    assert "unknown field surplus" in spoilt(tree, path)


def test_a_step_that_is_missing_is_an_error_of_the_file(path, tree, version_3, monkeypatch):
    monkeypatch.setattr(_json, "MIGRATIONS", {})
    assert "could not be brought to 3" in spoilt(tree, path)


# --- the schema ----------------------------------------------------------------------------------------------------


def test_the_schema_in_docs_is_up_to_date():
    current = _json.schema(MultiFeatureData, MultiPromptData, PromptComparisonData)
    assert (CHECKOUT / "docs" / "schema.json").read_bytes() == current, "run `make schema`"


@BOTH
def test_saved_files_fit_the_schema(kind, path, request):
    document = json.loads(saved(request.getfixturevalue(kind), path))
    validator = jsonschema.Draft202012Validator(
        json.loads(_json.schema(MultiFeatureData, MultiPromptData, PromptComparisonData))
    )
    validator.check_schema(validator.schema)
    validator.validate(document)
    document["header"]["surplus"] = 1
    assert not validator.is_valid(document)


def test_the_example_in_the_docs_is_a_real_file(path):
    blocks = re.findall(r"```json\n(.*?)```", (CHECKOUT / "docs" / "json.md").read_text("utf-8"), re.DOTALL)
    path.write_text(blocks[0], "utf-8")
    assert _json.load(MultiFeatureData, path)[8].get_html()


# --- speed ---------------------------------------------------------------------------------------------------------


@pytest.mark.timed
def test_checking_costs_no_more_than_a_few_times_bare_decoding(one_file):
    """A ratio of CPU times on one machine, so that a slow machine does not matter."""
    from conftest import small_provenance

    _, path = one_file
    features = {index: small_feature(index) for index in range(400)}
    data = MultiFeatureData(features, {}, {}, {}, FeatureVisParams(), small_provenance())
    content = saved(data, path)

    def cost(work) -> float:
        times = []
        for _ in range(5):
            start = time.process_time()
            work()
            times.append(time.process_time() - start)
        return min(times)

    plain = cost(lambda: json.dumps(json.loads(content)))
    ours = cost(lambda: (_json.save(data, path), _json.load(MultiFeatureData, path)))
    bare = cost(lambda: msgspec.json.encode(msgspec.json.decode(content)))
    assert ours < 15 * bare, (ours, bare)
    assert ours < 4 * plain, (ours, plain)
