"""The parameters and the layout: what is accepted, in which form it is kept, and what each error says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from sae_vis import Column, Component, FeatureVisParams, InputError, Layout
from sae_vis._params import COMPONENTS, PROMPT_LAYOUT, nearest, parse_bytes

DEFAULTS = FeatureVisParams()


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (None, None),
        (7, (7,)),
        ([3, 1, 2], (1, 2, 3)),
        (range(2, 5), (2, 3, 4)),
        (np.array([4, 2]), (2, 4)),
        (torch.tensor([4, 2]), (2, 4)),
        (torch.tensor(5), (5,)),
        (np.int64(6), (6,)),
        ({1, 0}, (0, 1)),
    ],
)
def test_features_are_kept_as_rising_ints(given: object, kept: object) -> None:
    assert FeatureVisParams(features=given).features == kept  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "given", [[], "12", b"12", 1.5, [1.5], [True], [-1], [2**31], {1: 2}, object(), [None], np.array([0.5])]
)
def test_features_that_are_no_ints_are_refused(given: object) -> None:
    with pytest.raises(InputError, match="features"):
        FeatureVisParams(features=given)  # type: ignore[arg-type]


def test_a_feature_named_twice_is_refused_by_its_number() -> None:
    with pytest.raises(InputError, match=r"more than once: \[3\]"):
        FeatureVisParams(features=[3, 1, 3])  # type: ignore[arg-type]


BAD_VALUES = {
    "hook_point": ["", "  ", 3],
    "minibatch_size_tokens": [0, -1, 1.5, "64", None, True],
    "minibatch_size_features": [0, 2.5, "all"],
    "memory_budget": ["", "much", "4XB", 0, -1, "-4GB", "nan", "inf", None, True],
    "ignore_tokens": ["bos", [0.5], [-1], 1.5],
    "ignore_positions": ["0", [0.5], [-1], 1.5, None, [2**31]],
    "correlate_features": ["none", 0, True, "ALL"],
    "ablation": ["none", False, 0, (), [], ("full", "none"), ["direct", 1], {"full"}, b"full"],
    "include_left_tables": [1, 0, "yes", None],
    "rows_in_left_tables": [0, 1.5, None],
    "buffer": [(5,), (1, 2, 3), (-1, 5), 5, "55", (1.0, 2.0)],
    "n_groups": [-1, 1001, 1.5],
    "first_group_size": [-1, 0.5],
    "other_groups_size": [-1, 0.5],
    "allow_overlap": [1, None],
    "n_bins": [0, -3, 10_001],
    "n_logits": [0, "10"],
    "n_changes": [-1, 1001],
    "n_tokens": [-1, 10_001, None],
    "n_counterexamples": [-1, 0.5],
    "n_position_bins": [-1, 10_001],
    "store_rows": [None, 1],
    "border": [None, 1],
    "seq_width": [0, 39, "420", 10_001],
    "seq_height": [99, "tall"],
    "layout": ["wide", 3, [Column("sequences")]],
    "prompt_layout": ["wide", 3, Layout((Column("sequences"),))],
    "near_duplicates": ["hide", None, True],
    "loss_shares": ["all", None, 1],
    "seed": [-1, 2**63, 0.5],
    "verbose": [None, 1],
    "feature_map": ["tsne", 1, True],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, bad in BAD_VALUES.items() for value in bad])
def test_a_bad_value_is_refused_by_its_name(name: str, value: object) -> None:
    with pytest.raises(InputError, match=name if "layout" not in name else "[Ll]ayout|prompt view"):
        FeatureVisParams(**{name: value})


def test_every_option_but_features_has_bad_values_above() -> None:
    assert {field.name for field in dataclasses.fields(FeatureVisParams)} == {*BAD_VALUES, "features"}


@pytest.mark.parametrize("field", dataclasses.fields(FeatureVisParams), ids=lambda field: field.name)
def test_help_shows_every_option_with_its_default_and_its_meaning(field: dataclasses.Field[object]) -> None:
    text = FeatureVisParams.help()
    assert f"\n  {field.name} = {field.default!r}\n" in text
    assert " ".join(field.metadata["help"].split()) in " ".join(text.split())


def test_help_shows_itself_without_printing(capsys: pytest.CaptureFixture[str]) -> None:
    assert repr(FeatureVisParams.help()) == str(FeatureVisParams.help())
    assert capsys.readouterr().out == ""


def test_the_defaults_are_the_documented_ones() -> None:
    expected = {"buffer": (5, 5), "n_groups": 10, "first_group_size": 20, "other_groups_size": 5, "n_bins": 40}
    expected |= {
        "n_logits": 10,
        "n_changes": 5,
        "rows_in_left_tables": 3,
        "seq_width": 420,
        "minibatch_size_tokens": 64,
    }
    assert {name: getattr(DEFAULTS, name) for name in expected} == expected
    assert DEFAULTS.ablation == "direct"
    assert DEFAULTS.correlate_features == "all"


def test_replace_checks_again_and_parameters_are_frozen() -> None:
    assert dataclasses.replace(DEFAULTS, n_groups=3).n_groups == 3
    with pytest.raises(InputError, match="n_groups"):
        dataclasses.replace(DEFAULTS, n_groups=-3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        DEFAULTS.n_groups = 3  # type: ignore[misc]


def test_ignored_tokens_are_kept_sorted_and_once() -> None:
    assert FeatureVisParams(ignore_tokens=[5, 1, 5]).ignore_tokens == (1, 5)  # type: ignore[arg-type]
    assert FeatureVisParams(ignore_tokens=()).ignore_tokens == ()


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("4GB", 4 * 10**9), ("500 MB", 5 * 10**8), ("1.5KiB", 1536), ("64MiB", 2**26), ("7", 7), (12, 12), ("3b", 3)],
)
def test_memory_sizes_are_read_in_their_units(text: str | int, n_bytes: int) -> None:
    assert parse_bytes(text) == n_bytes
    assert FeatureVisParams(memory_budget=text).memory_budget_bytes == n_bytes


# --- layouts -----------------------------------------------------------------------------------------------------


def names(layout: Layout) -> list[list[str]]:
    return [[component.name for component in column.components] for column in layout.columns]


def test_the_flat_options_make_the_layout() -> None:
    middle = ["activations_histogram", "moments", "positions", "logits_tables", "logits_histogram", "tokens"]
    left, right = ["feature_tables", "neighbours"], ["sequences", "counterexamples"]
    assert names(DEFAULTS.feature_layout()) == [left, middle, right]
    assert names(FeatureVisParams(include_left_tables=False).feature_layout()) == [middle, right]
    few = FeatureVisParams(n_tokens=0, n_counterexamples=0, n_position_bins=0).feature_layout()
    assert names(few) == [left, [*middle[:2], *middle[3:5]], ["sequences"]]
    assert FeatureVisParams(seq_width=500, seq_height=700).feature_layout().columns[-1].width == 500
    assert FeatureVisParams(seq_height=700).feature_layout().height == 700


def test_a_given_layout_is_taken_as_it_is() -> None:
    layout = Layout((Column("sequences", width=600),))
    assert FeatureVisParams(layout=layout).feature_layout() is layout


def test_a_column_takes_names_components_and_lists() -> None:
    tables = Component("logits_tables", {"rows": 5})
    assert Column(tables, "sequences") == Column([tables, Component("sequences")])
    column = Column(tables, "sequences", width=600)
    assert dataclasses.replace(column, width=300) == Column(tables, "sequences", width=300)
    assert Layout([Column("sequences")]) == Layout((Column("sequences"),))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Component("sequence"), "Unknown component 'sequence'.*sequences"),
        (lambda: Component("sequences", {"rows": 3}), "no option 'rows'.*examples"),
        (lambda: Component("sequences", {"examples": -1}), "int >= 0"),
        (lambda: Component("sequences", {"examples": "3"}), "int >= 0"),
        (lambda: Component("sequences", {"examples": True}), "int >= 0"),
        (Column, "at least one component"),
        (lambda: Column([]), "at least one component"),
        (lambda: Column({"sequences": {"examples": 5}}), "takes names of components"),
        (lambda: Column("sequences", width=3), "width"),
        (lambda: Column("sequences", width=True), "width"),
        (lambda: Layout(()), "at least one Column"),
        (lambda: Layout(("sequences",)), "at least one Column"),  # type: ignore[arg-type]
        (lambda: Layout((Column("sequences"),), height=5), "height"),
        (lambda: FeatureVisParams(layout=PROMPT_LAYOUT), "'prompt' cannot be shown in the feature view.*sequences"),
    ],
)
def test_a_layout_that_cannot_be_drawn_is_refused(make: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()  # type: ignore[operator]


def test_the_prompt_layout_fits_its_view() -> None:
    PROMPT_LAYOUT.check_view("prompt")
    assert {component.name for component in PROMPT_LAYOUT.components()} <= set(COMPONENTS)


def test_the_nearest_names_come_first() -> None:
    known = ["blocks.0.mlp.hook_post", "blocks.0.mlp.hook_pre", "blocks.0.hook_resid_pre", "embed"]
    assert nearest("blocks.0.mlp.hook_pos", known)[0] == "blocks.0.mlp.hook_post"
    assert nearest("zzzz", known) == []


@pytest.mark.parametrize(
    ("given", "kept", "each"),
    [
        (None, None, ()),
        ("full", "full", ("full",)),
        (["direct"], "direct", ("direct",)),
        (("full", "direct"), ("direct", "full"), ("direct", "full")),
        (("full", "full"), "full", ("full",)),
    ],
)
def test_ablations_are_kept_as_one_or_both_in_their_order(given: object, kept: object, each: object) -> None:
    params = FeatureVisParams(ablation=given)
    assert params.ablation == kept
    assert params.ablations == each
