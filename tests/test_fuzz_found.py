"""What fuzzing found, each once more by hand."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from page_reading import parse

from sae_vis import (
    AutoEncoder,
    AutoEncoderConfig,
    Column,
    Component,
    FeatureVisParams,
    FileFormatError,
    HistogramData,
    InputError,
    Layout,
    MultiFeatureData,
    NeuronAlignmentData,
    TemplateError,
    _params,
    _store_file,
    get_feature_data,
    load_activations,
    load_demo,
)
from sae_vis._templates import Template, template
from sae_vis.data_storing_fns import TokenEffect
from sae_vis.html_fns import plot_x


def type_name(value):
    return type(value).__name__


def reloaded(data, path, change):
    """The data as a file, with a change in its JSON, loaded again."""
    data.save_json(path)
    tree = json.loads(path.read_text(encoding="utf-8"))
    change(tree)
    path.write_text(json.dumps(tree), encoding="utf-8")
    return type(data).load_json(path)


# --- files -----------------------------------------------------------------------------------------------------------


def test_an_unknown_key_of_a_megabyte_is_quoted_in_part(feature_data, tmp_path):
    with pytest.raises(FileFormatError, match=r"unknown field xxx.* … ") as error:
        reloaded(feature_data, tmp_path / "a.json", lambda tree: tree["header"].update({"x" * 1_000_000: 1}))
    assert len(str(error.value)) < 1000 + len(str(tmp_path))


@pytest.mark.parametrize("loss", [1e16, 1e30, -1e300, 1.7976931348623157e308])
def test_effects_on_the_loss_of_any_size_are_drawn(loss, feature_data):
    sequence = feature_data[2].sequences.groups[0].sequences[0]
    sequence.loss_contribution[:] = [None, loss, 0.5]
    sequence.effects[:] = [TokenEffect(1, [5], [abs(loss)], [6, 7], [-abs(loss), -0.25])]
    numbers = hover_numbers(feature_data)
    scale = 10 ** numbers["decimals"][1]
    assert numbers["losses"][:3] == [None, pytest.approx(loss * scale, rel=0.6), pytest.approx(0.5 * scale, abs=0.5)]
    changes = numbers["effects"]
    raised, lowered, back = changes["steps"][:3]
    assert raised / 10 ** changes["decimals"] == pytest.approx(abs(loss), rel=0.6)
    assert lowered / 10 ** changes["decimals"] == pytest.approx(abs(loss), rel=0.6)
    assert (lowered - back) / 10 ** changes["decimals"] == pytest.approx(0.0, abs=1.0)


def hover_numbers(data):
    return json.loads(parse(data.get_html()).find(".//script[@class='hover']").text)


def test_ordinary_effects_keep_their_decimals(feature_data):
    numbers = hover_numbers(feature_data)
    assert numbers["decimals"][1] == 4
    assert numbers["losses"][:3] == [None, -1250, 0]


@pytest.mark.parametrize("text", ["zz", "f", "0x12", "é"])
def test_bytes_of_tokens_that_are_no_hexadecimal_digits_are_refused(text, feature_data, prompt_data, tmp_path):
    for data in (feature_data, prompt_data):
        with pytest.raises(FileFormatError, match=r"vocab_bytes\[6\] must be bytes as hexadecimal digits"):
            reloaded(data, tmp_path / "a.json", lambda tree: tree["header"].update(vocab_bytes={"6": text}))


@pytest.mark.parametrize("number", [10**30, -1])
def test_counts_that_cannot_be_are_refused(number, feature_data, prompt_data, tmp_path):
    def bars(tree):
        tree["features"][0]["activations"]["histogram"]["bar_heights"][1] = number

    def active(tree):
        tree["header"]["n_active"][1] = number

    with pytest.raises(FileFormatError, match=r"bar_heights\[1\] must be from 0 to"):
        reloaded(feature_data, tmp_path / "a.json", bars)
    with pytest.raises(FileFormatError, match=r"n_active\[1\] must be from 0 to"):
        reloaded(prompt_data, tmp_path / "a.json", active)


@pytest.mark.parametrize("number", ["9" * 400, str(2**31), "-1"])
def test_features_beyond_what_params_can_name_are_refused(number, feature_data, tmp_path):
    path = tmp_path / "a.json"
    feature_data.save_json(path)
    path.write_text(re.sub(r'"feature_idx":8', f'"feature_idx":{number}', path.read_text(encoding="utf-8")))
    with pytest.raises(FileFormatError, match="feature_idx must be from 0 to 2147483647"):
        MultiFeatureData.load_json(path)


@pytest.mark.parametrize("edges", [[1.0, 1.0], [2.0, 1.0], [0.0, 2.0, 1.0], [-1.5e308, 1.5e308]])
def test_a_histogram_over_no_range_or_an_infinite_one_is_refused(edges):
    with pytest.raises(InputError, match="bar_edges must"):
        HistogramData(edges, [1] * (len(edges) - 1), [])


@pytest.mark.parametrize("ticks", [[1.0, 1.0], [1.0, 0.5], [0.25, 0.5, 0.25]])
def test_ticks_that_do_not_rise_are_refused(ticks):
    with pytest.raises(InputError, match="tick_vals must rise"):
        HistogramData([0.0, 2.0], [1], ticks)


@pytest.mark.parametrize("ticks", [[0.5, 0.5000001], [0.0, 5e-324, 1.0], [index / 1000 for index in range(1000)]])
def test_ticks_on_top_of_each_other_are_drawn_with_few_labels(ticks):
    labels = HistogramData([0.0, 1.0], [1], ticks).get_html().count('y="96"')
    assert 1 <= labels <= 12


@pytest.mark.parametrize("share", [-0.1, 1.5, 1e308])
def test_shares_that_are_none_are_refused(share):
    with pytest.raises(InputError, match="share_of_l1 must be from 0 to 1"):
        NeuronAlignmentData([1], [0.5], [share])


@pytest.mark.parametrize("size", [5e-324, 1e-310, 1e-300])
def test_the_smallest_activations_there_are_are_drawn(size, feature_data):
    feature = feature_data[2]
    feature.activations.max = size
    feature.sequences.groups[0].sequences[0].feat_acts[:] = [0.0, size, size]
    acts = hover_numbers(feature_data)
    assert acts["acts"][1] / 10 ** acts["decimals"][0] == pytest.approx(size, rel=0.5, abs=1e-300)


@pytest.mark.parametrize("span", [5e-324, 1e-300, 1e308, 1.7e308])
def test_a_plot_of_any_range_has_its_places(span):
    assert plot_x(span, 0.0, span) == 306.0
    assert plot_x(0.0, 0.0, span) == 6.0


# --- paths -----------------------------------------------------------------------------------------------------------


class BytesPath:
    """A path as bytes, which none is here."""

    def __fspath__(self):
        return b"x"


TAKE_A_PATH = {
    "save_html": lambda data, prompt, path: data.save_html(path),
    "save_html of a prompt": lambda data, prompt, path: prompt.save_html(path),
    "save_json": lambda data, prompt, path: data.save_json(path),
    "save_labels": lambda data, prompt, path: data.save_labels(path),
    "save_site": lambda data, prompt, path: data.save_site(path),
    "load_json": lambda data, prompt, path: MultiFeatureData.load_json(path),
    "load_dir": lambda data, prompt, path: MultiFeatureData.load_dir(path),
    "load_labels": lambda data, prompt, path: data.load_labels(path),
    "load_demo": lambda data, prompt, path: load_demo(path),
    "load_activations": lambda data, prompt, path: load_activations(path),
    "save_collected": lambda data, prompt, path: _store_file.save_collected(None, path, {}),
    "AutoEncoder.load": lambda data, prompt, path: AutoEncoder.load(path),
    "AutoEncoder.save": lambda data, prompt, path: AutoEncoder(AutoEncoderConfig(2, 3)).save(path),
}


@pytest.mark.parametrize("path", [5, True, None, b"x", ["x"], io.StringIO(), BytesPath()], ids=type_name)
@pytest.mark.parametrize("name", TAKE_A_PATH)
def test_what_is_no_path_is_told(name, path, feature_data, prompt_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^\w+ must be a path \(str or os\.PathLike\), got "):
        TAKE_A_PATH[name](feature_data, prompt_data, path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", [5, True, b"x", ["x"], io.StringIO(), BytesPath()], ids=type_name)
@pytest.mark.parametrize("name", ["out_dir", "save_activations"])
def test_what_is_no_path_is_told_before_anything_is_fetched(name, path):
    with pytest.raises(InputError, match=rf"^{name} must be a path \(str or os\.PathLike\), got "):
        get_feature_data(None, None, None, **{name: path})


@pytest.mark.parametrize("name", ["no/such/folder/x", "a\0b", "x" * 300, "readonly"])
def test_a_file_that_cannot_be_written_is_told_before_the_model_runs(name, tmp_path, monkeypatch):
    (tmp_path / "readonly").write_bytes(b"")
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "readonly" and access(path, mode))
    with pytest.raises(InputError, match=r"Cannot write .*: "):
        get_feature_data(None, None, None, save_activations=tmp_path / name)


def test_labels_never_replace_saved_features(feature_data, tmp_path):
    for name in ("data.json", "data.json.gz"):
        feature_data.save_json(tmp_path / name)
        with pytest.raises(InputError, match="the file holds saved data"):
            feature_data.save_labels(tmp_path / name)
        assert MultiFeatureData.load_json(tmp_path / name) == feature_data
    for _ in range(2):
        feature_data.save_labels(tmp_path / "labels.json")


def test_any_path_like_object_is_a_path(feature_data, tmp_path):
    class Mine:
        def __fspath__(self):
            return str(tmp_path / "a.json")

    feature_data.save_json(Mine())
    assert MultiFeatureData.load_json(Mine()) == feature_data


# --- options -----------------------------------------------------------------------------------------------------------


class Raising:
    """An object of the user's whose own code fails."""

    def fail(self, *args):
        raise RuntimeError("the user's own fault")

    __index__ = __iter__ = __eq__ = __bool__ = __repr__ = __len__ = fail
    __hash__ = None


@pytest.mark.parametrize("name", [option.name for option in dataclasses.fields(FeatureVisParams)])
@pytest.mark.parametrize(
    "value", [Raising(), 10**5000, torch.ones(2, device="meta"), np.array([1, 2]), float("nan")], ids=type_name
)
def test_no_value_of_an_option_gives_a_foreign_error(name, value):
    with contextlib.suppress(InputError):
        kept = getattr(FeatureVisParams(**{name: value}), name)
        assert kept == (1, 2)  # the array is fine where a list or a pair of ints is


def test_a_list_that_never_ends_is_refused(monkeypatch):
    monkeypatch.setattr(_params, "MOST_ITEMS", 1000)
    with pytest.raises(InputError, match="at most 1,000; got more"):
        FeatureVisParams(features=itertools.count())


def test_an_error_in_the_users_generator_is_told():
    with pytest.raises(InputError, match=r"must be an int, a sequence of ints or None, got .*ZeroDivisionError"):
        FeatureVisParams(features=(1 // i for i in (1, 0)))


@pytest.mark.parametrize("budget", ["9" * 400, 2**63, "1e30", 10**400, "1e300GB"])
def test_a_budget_beyond_any_memory_is_refused(budget):
    with pytest.raises(InputError, match="memory_budget must be"):
        FeatureVisParams(memory_budget=budget)


@pytest.mark.parametrize("name", ["\ud800", "blocks.0\n", "a\x00"])
def test_a_hook_point_that_no_file_can_hold_is_refused(name):
    with pytest.raises(InputError, match="must be a name"):
        FeatureVisParams(hook_point=name)


def test_texts_and_ints_of_other_classes_become_plain_ones(feature_data, tmp_path):
    text, number = type("Text", (str,), {}), type("Int", (int,), {})
    layout = Layout([Column(Component(text("sequences"), {"examples": number(2)}), width=number(50))], number(200))
    params = FeatureVisParams(hook_point=text("a.b"), correlate_features=text("all"), seed=number(3), layout=layout)
    assert {type(value) for value in (params.hook_point, params.correlate_features)} == {str}
    saved = dataclasses.replace(feature_data, params=params)
    saved.save_json(tmp_path / "a.json")
    assert MultiFeatureData.load_json(tmp_path / "a.json") == saved


@pytest.mark.parametrize(
    "make",
    [
        lambda: Column(3),
        lambda: Column([["sequences"]]),
        lambda: Column("sequences", width=10**5000),
        lambda: Component(["sequences"]),
        lambda: Component("sequences", None),
        lambda: Component("sequences", {1: 2}),
        lambda: Component("sequences", {"examples": 10**5000}),
        lambda: Layout(None),
        lambda: Layout([Column("sequences")], height=True),
        lambda: Layout([Column("sequences")], height=Raising()),
    ],
)
def test_parts_of_a_layout_that_are_none_are_refused(make):
    with pytest.raises(InputError):
        make()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**5000, Raising()], ids=type_name)
def test_what_is_no_number_is_no_value_of_a_template(value):
    with pytest.raises(TemplateError, match="str, int or float expected"):
        Template("html/test.html", "{{ a }}").fill(a=value)


@pytest.mark.parametrize("name", ["../sae_vis/__init__.py", "/etc/passwd", "x" * 5000 + ".html", "a\x00.html"])
def test_no_file_outside_of_the_templates_is_read(name):
    with pytest.raises(TemplateError, match="is not the name of a template file"):
        template(name)
