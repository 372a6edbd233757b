"""Which examples are shown: the top group, the intervals and their random members, against the definitions word by word."""

from __future__ import annotations

import math
from collections import Counter
from itertools import chain

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import fetch, fetch_planted, planted
from oracles import Place

from sae_vis import _statistics
from sae_vis._shown import Window, shown_places
from sae_vis._statistics import (
    LOOKED_AT,
    Example,
    FeatureActivations,
    interval_examples,
    priorities,
    splitmix64,
    top_examples,
)

GAMMA = 0x9E3779B97F4A7C15


def of_grid(grid: oracles.Grid, feature: int = 0, row_offset: int = 0) -> FeatureActivations:
    raw = np.array(grid, dtype=np.float32)
    places = np.flatnonzero(raw.reshape(-1))
    return FeatureActivations.of(feature, places, raw.reshape(-1)[places], raw.shape[1], row_offset, raw.size)


def as_places(examples: list[Example]) -> list[Place]:
    return [Place(*example) for example in examples]


@st.composite
def grids(draw) -> oracles.Grid:
    """Small grids with many zeros and many ties."""
    n_rows, seq_len = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    value = st.one_of(st.just(0.0), st.sampled_from([0.5, 1.0, 1.5, 3.0]), st.floats(2.0**-8, 4.0, width=32))
    row = st.lists(value, min_size=seq_len, max_size=seq_len)
    return draw(st.lists(row, min_size=n_rows, max_size=n_rows))


buffers = st.one_of(st.none(), st.tuples(st.integers(0, 6), st.integers(0, 6)))


# --- the top group -----------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(grids(), st.integers(0, 12), buffers, st.booleans())
def test_the_top_group_is_what_the_definition_says(grid, size, buffer, allow_overlap):
    acts = oracles.active(grid)
    expected = oracles.top_group(acts, size, buffer, len(grid[0]), allow_overlap)
    assert as_places(top_examples(of_grid(grid), size, buffer, allow_overlap)) == expected


def test_ties_go_to_the_lower_row_then_the_lower_position():
    grid = [[0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 2.0, 1.0]]
    found = top_examples(of_grid(grid), 5, (0, 0), allow_overlap=False)
    assert found == [(1, 2), (0, 1), (0, 3), (1, 0), (1, 3)]


def test_examples_that_differ_only_after_rounding_are_ties():
    grid = [[1.00001, 1.00002], [2.0, 1.00003]]
    assert top_examples(of_grid(grid), 4, (0, 0), allow_overlap=False) == [(1, 0), (0, 0), (0, 1), (1, 1)]


def test_no_two_windows_of_the_top_group_hold_each_others_bold_token():
    grid = [[float(10 - i) for i in range(10)]]
    for buffer, positions in [((1, 1), [0, 2, 4, 6, 8]), ((0, 2), [0, 3, 6, 9]), ((2, 0), list(range(10)))]:
        found = top_examples(of_grid(grid), 10, buffer, allow_overlap=False)
        assert [example.position for example in found] == positions
        assert len(top_examples(of_grid(grid), 10, buffer, allow_overlap=True)) == 10
    assert len(top_examples(of_grid(grid), 10, None, allow_overlap=False)) == 1, "whole rows: one example a row"


def test_the_edges_of_a_row_are_eligible():
    grid = [[3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0], [1.0, *[0.0] * 9]]
    assert top_examples(of_grid(grid), 20, (5, 5), allow_overlap=False) == [(0, 0), (0, 9), (1, 0)]


def test_fewer_candidates_than_wanted_give_fewer_examples():
    assert top_examples(of_grid([[1.0, 0.0], [0.0, 2.0]]), 20, (5, 5), allow_overlap=False) == [(1, 1), (0, 0)]


def test_more_candidates_than_are_looked_at_at_once():
    grid = [[1.0] * 1000]  # all overlap those before, over several pieces of the search
    found = top_examples(of_grid(grid), 3, (400, 400), allow_overlap=False)
    assert [example.position for example in found] == [0, 401, 802]


@pytest.mark.parametrize("n", [4 * LOOKED_AT, 4 * LOOKED_AT + 1])
@pytest.mark.parametrize("kinds", [1, 2, 1000])
@pytest.mark.parametrize(("size", "buffer"), [(20, (5, 5)), (LOOKED_AT, (0, 0)), (LOOKED_AT + 30, (1, 0)), (400, None)])
def test_many_candidates_are_taken_in_the_order_of_all_of_them(n, kinds, size, buffer):
    generator = np.random.default_rng(n)
    values = np.zeros(350 * 12)
    values[generator.permutation(len(values))[:n]] = generator.integers(1, kinds + 1, n) / 8  # of one kind: all tie
    grid = values.reshape(350, 12).tolist()
    active = oracles.active(grid)
    found = top_examples(of_grid(grid), size, buffer, allow_overlap=False)
    assert as_places(found) == oracles.top_group(active, size, buffer, 12)
    (interval,) = interval_examples(of_grid(grid), 1, size, 3, buffer, allow_overlap=False)
    (expected,) = oracles.interval_groups(active, 1, size, 3, 0, buffer, 12)
    assert as_places(interval.examples) == expected.examples


@given(st.lists(st.integers(-3, 3) | st.integers(-(10**6), 10**6), max_size=40), st.integers(1, 9))
def test_the_order_in_pieces_is_the_stable_order(numbers, looked_at):
    keys = np.array(numbers, dtype=np.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_statistics, "LOOKED_AT", looked_at)
        pieces = [piece.tolist() for piece in _statistics._in_order(keys)]
    assert list(chain(*pieces)) == sorted(range(len(numbers)), key=lambda i: numbers[i])
    if len(numbers) > 4 * looked_at:
        rank = sorted(numbers)[looked_at - 1]
        assert len(pieces[0]) == sum(number <= rank for number in numbers), "few, and no two that are equal are apart"


def test_where_rows_are_shown_whole_the_search_ends_with_the_last_row(monkeypatch):
    grid = [[5.0, *[1.0] * 999], [4.0, *[1.0] * 999], [3.0, *[1.0] * 999]]
    looked_at: list[Example] = []

    def shown(bold: int, position: int, buffer: tuple[int, int] | None) -> bool:
        looked_at.append(Example(bold, position))
        return True

    monkeypatch.setattr(_statistics, "is_shown", shown)
    assert top_examples(of_grid(grid), 20, None, allow_overlap=False) == [(0, 0), (1, 0), (2, 0)]
    assert not looked_at
    (interval,) = interval_examples(of_grid(grid), 1, 20, 0, None, allow_overlap=False)
    assert len(interval.examples) == 3
    assert len(looked_at) < 100


def test_where_rows_are_shown_whole_another_example_of_a_row_may_be_new():
    grid = [[3.0, 1.0], [2.0, 0.0], [4.0, 1.0]]
    found = top_examples(of_grid(grid), 3, None, False, lambda example: example.position > 0 or example.row == 2)
    assert found == [(2, 0), (0, 1)]
    assert len(top_examples(of_grid(grid), 9, None, allow_overlap=True)) == 5


# --- intervals ---------------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(
    grids(),
    st.integers(1, 12),
    st.integers(0, 6),
    st.integers(0, 2**63 - 1),
    st.integers(0, 50),
    buffers,
    st.booleans(),
)
def test_intervals_are_what_the_definition_says(grid, n_groups, size, seed, feature, buffer, allow_overlap):
    acts = oracles.active(grid)
    seq_len = len(grid[0])
    expected = oracles.interval_groups(acts, n_groups, size, seed, feature, buffer, seq_len, allow_overlap)
    found = interval_examples(of_grid(grid, feature), n_groups, size, seed, buffer, allow_overlap)
    n_counted = len(grid) * seq_len
    assert [(i.lower, i.upper) for i in found] == [(i.lower, i.upper) for i in expected]
    assert [i.share for i in found] == [len(i.members) / n_counted for i in expected]
    assert [as_places(i.examples) for i in found] == [i.examples for i in expected]
    assert math.isclose(sum(i.share for i in found), len(acts) / n_counted, abs_tol=1e-12)


@given(st.floats(2.0**-60, 2.0**60, width=32), st.integers(1, 100))
def test_the_maximum_lies_inside_the_highest_interval(maximum, n_groups):
    acts = of_grid([[maximum, 0.0]])
    highest, *others = interval_examples(acts, n_groups, 5, 0, (5, 5), allow_overlap=False)
    assert highest.lower < acts.maximum <= highest.upper
    assert highest.upper == acts.maximum
    assert highest.share == 0.5
    assert all(not other.examples and other.share == 0.0 for other in others)


def test_edges_belong_to_the_interval_below_and_zeros_to_none():
    grid = [[1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0, 0.0]]
    found = interval_examples(of_grid(grid), 4, 5, 0, (0, 0), allow_overlap=False)
    assert [(i.lower, i.upper) for i in found] == [(3.0, 4.0), (2.0, 3.0), (1.0, 2.0), (0.0, 1.0)]
    assert [i.examples for i in found] == [[(0, 3)], [(0, 2)], [(0, 1)], [(0, 0)]]
    assert [i.share for i in found] == [0.125] * 4


def test_no_example_of_any_interval_is_inactive():
    """The lowest interval once took its examples from the zeros."""
    acts = torch.randn(20, 12, 3, generator=torch.Generator().manual_seed(0)) - 1.5
    data = fetch_planted(acts)
    for feature in data.values():
        for group in feature.sequences.groups[1:]:
            for sequence in group.sequences:
                assert group.lower < sequence.feat_acts[sequence.bold_idx] <= group.upper


# --- priority sampling -------------------------------------------------------------------------------------------


def test_splitmix64_gives_the_published_first_outputs():
    states = np.array([0, GAMMA, (2 * GAMMA) % 2**64], dtype=np.uint64)
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert splitmix64(states).tolist() == expected
    assert [oracles.splitmix64(int(state)) for state in states] == expected


def test_the_order_of_candidates_is_fixed_by_a_test_vector():
    """Pages made today must choose the same examples tomorrow."""
    rows, positions = np.array([0, 0, 1, 2**40]), np.array([0, 1, 0, 127])
    found = [f"{p:016x}" for p in priorities(0, 0, rows, positions).tolist()]
    assert found == ["2130748aaac80268", "2a4f111b3be57715", "d9eef7f073d37c42", "2945a87cc419b989"]


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**31 - 1), st.integers(0, 2**40), st.integers(0, 2**20))
def test_priorities_are_the_chained_hash(seed, feature, row, position):
    found = priorities(seed, feature, np.array([row]), np.array([position]))
    assert found.tolist() == [oracles.priority(seed, feature, Place(row, position))]


def test_every_candidate_is_as_likely_as_any_other():
    n, size, draws = 40, 5, 600
    grid = [[1.0] * 1 for _ in range(n)]
    chosen: Counter[int] = Counter()
    for seed in range(draws):
        (interval,) = interval_examples(of_grid(grid), 1, size, seed, (5, 5), allow_overlap=False)
        assert len(interval.examples) == size
        chosen.update(example.row for example in interval.examples)
    expected = draws * size / n
    chi_square = sum((chosen[row] - expected) ** 2 / expected for row in range(n))
    assert chi_square < 75  # 39 degrees of freedom: one in two thousand is above


def test_another_seed_or_feature_chooses_other_examples():
    grid = [[1.0] for _ in range(200)]

    def chosen(seed: int, feature: int) -> list[Example]:
        return interval_examples(of_grid(grid, feature), 1, 5, seed, (5, 5), allow_overlap=False)[0].examples

    assert chosen(0, 0) == chosen(0, 0)
    assert len({tuple(chosen(seed, feature)) for seed in range(3) for feature in range(3)}) == 9


def test_the_choice_follows_the_row_in_the_whole_set_of_tokens():
    grid = [[1.0] for _ in range(60)]
    whole = interval_examples(of_grid(grid), 1, 60, 3, (0, 0), allow_overlap=False)[0].examples
    later = interval_examples(of_grid(grid[20:], row_offset=20), 1, 60, 3, (0, 0), allow_overlap=False)[0].examples
    assert later == [example for example in whole if example.row >= 20]


# --- windows and what a page gets --------------------------------------------------------------------------------


@given(st.integers(0, 11), buffers)
def test_a_window_is_the_buffer_clipped_at_the_ends_of_the_row(position, buffer):
    window = Window.around(Example(3, position), buffer, 12)
    assert range(window.start, window.stop) == oracles.window(Place(3, position), buffer, 12)
    assert window.bold == position


def check_groups(acts: torch.Tensor, counted: torch.Tensor | None = None, **params) -> None:
    encoder, model, tokens = planted(acts)
    rows, seq_len, n = acts.shape
    mask = torch.ones(rows, seq_len, dtype=torch.bool) if counted is None else counted
    ignored = tuple(tokens[~mask].tolist())
    data = fetch(encoder, model, tokens, ablation=None, ignore_tokens=ignored, **params)
    fvp = data.params
    for feature in range(n):
        active = oracles.active(acts[..., feature].double().tolist(), mask.tolist())
        shown = data[feature].sequences.groups
        top = oracles.top_group(active, fvp.first_group_size, fvp.buffer, seq_len, fvp.allow_overlap)
        intervals = oracles.interval_groups(
            active, fvp.n_groups, fvp.other_groups_size, fvp.seed, feature, fvp.buffer, seq_len, fvp.allow_overlap
        )
        expected = [top, *(i.examples for i in intervals)] if fvp.first_group_size else [i.examples for i in intervals]
        if not active:
            assert shown == []
            continue
        assert len(shown) == len(expected)
        for group, places in zip(shown, expected, strict=True):
            assert [Place(s.row, s.start + s.bold_idx) for s in group.sequences] == places
            for sequence in group.sequences:
                place = Place(sequence.row, sequence.start + sequence.bold_idx)
                window = oracles.window(place, fvp.buffer, seq_len)
                assert sequence.start == window.start
                assert sequence.token_ids == tokens[sequence.row, window].tolist()
                assert sequence.feat_acts == [active.get(Place(sequence.row, t), 0.0) for t in window]
        if fvp.first_group_size:
            assert (shown[0].title, shown[0].share) == ("TOP ACTIVATIONS", None)
        shares = [group.share for group in shown if group.share is not None]
        assert math.isclose(sum(shares), data[feature].activations.density if fvp.n_groups else 0.0, abs_tol=1e-12)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"buffer": (2, 4)},
        {"buffer": (0, 0)},
        {"buffer": (10, 10)},
        {"buffer": (100, 0)},
        {"buffer": None},
        {"allow_overlap": True},
        {"n_groups": 0},
        {"n_groups": 1, "other_groups_size": 50},
        {"first_group_size": 0},
        {"first_group_size": 3, "other_groups_size": 0, "n_groups": 7},
        {"seed": 12345},
    ],
    ids=str,
)
def test_the_groups_of_a_page_are_what_the_definitions_say(params):
    generator = torch.Generator().manual_seed(0)
    acts = torch.randn(10, 14, 4, generator=generator) * torch.tensor([1.0, 1e-3, 50.0, 1.0])
    acts[..., 3] = 0.0
    check_groups(acts, **params)


@pytest.mark.parametrize(
    ("maximum", "title"),
    [
        (1.0, "INTERVAL 0.500 – 1.000"),
        (0.002, "INTERVAL 0.001000 – 0.002000"),
        (50.0, "INTERVAL 25.00 – 50.00"),
        (40000.0, "INTERVAL 20000 – 40000"),
    ],
)
def test_the_title_of_an_interval_has_the_digits_that_activations_are_rounded_to(maximum, title):
    groups = fetch_planted(torch.tensor([[[maximum], [0.0]]]), n_groups=2)[0].sequences.groups
    assert groups[1].title == title


def test_ignored_positions_are_shown_but_never_chosen():
    generator = torch.Generator().manual_seed(2)
    acts = torch.randn(8, 10, 3, generator=generator)
    counted = torch.ones(8, 10, dtype=torch.bool)
    counted[:, 0] = False
    counted[3, 5:] = False
    acts[~counted] = 99.0  # as at BOS: far larger than elsewhere
    check_groups(acts, counted, n_groups=4)


def test_a_corpus_smaller_than_any_group_is_no_problem():
    check_groups(torch.rand(1, 1, 2))
    check_groups(torch.rand(2, 3, 2))


def test_tokens_before_the_first_do_not_wrap_around_to_the_last():
    acts = torch.zeros(1, 12, 1)
    acts[0, 5] = 1.0
    (group, *_) = fetch_planted(acts)[0].sequences.groups
    assert group.sequences[0].token_ids == list(range(11))
    assert group.sequences[0].bold_idx == 5


def test_whole_rows_that_are_shown_are_stored_once():
    acts = torch.zeros(6, 5, 2)
    acts[1, 2, 0] = acts[1, 4, 1] = acts[4, 0, 1] = 1.0
    assert fetch_planted(acts, n_counterexamples=0).rows == {1: [5, 6, 7, 8, 9], 4: [20, 21, 22, 23, 24]}
    data = fetch_planted(acts, n_counterexamples=1)
    shown = {one.row for feature in data.values() for one in feature.counterexamples.sequences()}
    assert data.rows.keys() == {1, 4} | shown
    assert fetch_planted(acts, store_rows=False).rows == {}


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6), st.integers(1, 7))))
def test_the_places_that_windows_show_are_those_of_loops(windows):
    found = shown_places([Window(row, start, min(7, start + width), start) for row, start, width in windows], 7)
    shown = {7 * row + at for row, start, width in windows for at in range(start, min(7, start + width))}
    assert found.tolist() == sorted(shown)
    assert found.dtype == np.int64
