"""The tokens that a feature fires on, where in the rows it does, and where it does not: against plain loops."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import QUIET, ToyModel, fetch, fetch_planted, identity_encoder, random_tokens
from page_reading import drawn, parse_fragment, text_of

from sae_vis import FeatureVisParams, InputError, MultiFeatureData, get_feature_data
from sae_vis._params import Column, Layout
from sae_vis._statistics import FeatureActivations
from sae_vis._token_statistics import (
    NEAR_MISSES,
    NEGATIVES,
    Gaps,
    RowPositions,
    TokenIndex,
    counterexamples,
    draws,
    top_tokens,
)
from sae_vis.data_storing_fns import CounterexamplesData, PositionsData, SequenceData, TokensData

SEED = 3


class Case:
    """Random tokens, some of them not counted, and a feature's activations on them."""

    def __init__(self, seed: int, rows: int, seq: int, n_ids: int, density: float, kinds: int) -> None:
        chance = np.random.default_rng(seed)
        self.tokens = chance.integers(0, n_ids, (rows, seq)) * 7
        self.counted = chance.random((rows, seq)) < 0.9
        self.counted[0, 0] = True
        # Few kinds of values, so that tokens tie.
        values = chance.integers(1, kinds + 1, (rows, seq)).astype(np.float32) / np.float32(8)
        self.grid = np.where((chance.random((rows, seq)) < density) & self.counted, values, 0).astype(np.float32)
        self.feature, self.seq = int(chance.integers(0, 9)), seq
        places = np.flatnonzero(self.grid.reshape(-1))
        raw = self.grid.reshape(-1)[places]
        self.acts = FeatureActivations.of(self.feature, places, raw, seq, 0, int(self.counted.sum()))
        self.index = TokenIndex.of(self.tokens, self.counted)
        self.active = oracles.active(self.grid.tolist(), self.counted.tolist())

    def expected(self) -> list[oracles.PlainToken]:
        return oracles.tokens_fired_on(self.active, self.tokens.tolist(), self.counted.tolist())


cases = st.builds(
    Case,
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 6),
    seq=st.integers(1, 12),
    n_ids=st.sampled_from([1, 2, 5, 200]),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    kinds=st.sampled_from([1, 3, 900]),
)


# --- the tokens that it fires on -----------------------------------------------------------------------------------


@settings(max_examples=80)
@given(case=cases, size=st.sampled_from([0, 1, 3, 1000]))
def test_top_tokens_are_those_of_plain_loops_in_exact_fractions(case, size):
    found, expected = top_tokens(case.acts, case.index, size), case.expected()
    best = expected[:size]
    assert found.n_distinct == len(expected)
    assert found.token_ids == [one.token for one in best]
    assert found.n_active == [one.n_active for one in best]
    assert found.n_occurrences == [one.n_occurrences for one in best]
    for mean, share, one in zip(found.mean, found.share, best, strict=True):
        assert math.isclose(mean, float(one.mean), rel_tol=1e-5)
        assert math.isclose(share, float(one.share), rel_tol=1e-5)


def test_sums_that_floats_would_tell_apart_are_ties_that_go_to_the_lower_id():
    """0.1 + 0.2 + 0.3 and 0.3 + 0.2 + 0.1 differ in their last bit."""
    tokens = np.array([[9, 9, 9, 4, 4, 4]])
    raw = np.array([0.3, 0.2, 0.1, 0.1, 0.2, 0.3], dtype=np.float32)
    acts = FeatureActivations.of(0, np.arange(6), raw, 6, 0, 6)
    found = top_tokens(acts, TokenIndex.of(tokens, np.ones_like(tokens, dtype=bool)), 2)
    assert found.token_ids == [4, 9]
    assert found.share == [0.5, 0.5]
    assert found.mean == [0.2, 0.2]


def test_few_activations_on_a_large_vocabulary_are_counted_like_many():
    tokens = np.arange(4000).reshape(4, 1000) // 2
    index = TokenIndex.of(tokens, np.ones_like(tokens, dtype=bool))
    places = np.arange(0, 4000, 3)
    raw = (places % 11 + 1).astype(np.float32)
    many = FeatureActivations.of(0, places, raw, 1000, 0, 4000)
    few = FeatureActivations.of(0, places[:100], raw[:100], 1000, 0, 4000)
    for acts in (many, few):
        grid = np.zeros(4000, dtype=np.float32)
        grid[acts.rows * 1000 + acts.positions] = acts.raw
        active = oracles.active(grid.reshape(4, 1000).tolist())
        expected = oracles.tokens_fired_on(active, tokens.tolist(), [[True] * 1000] * 4)
        assert top_tokens(acts, index, 7).token_ids == [one.token for one in expected[:7]]


# --- where in the rows ---------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(case=cases, n_bins=st.sampled_from([1, 2, 5, 32]))
def test_positions_are_counted_in_bins_of_one_width(case, n_bins):
    bins = RowPositions.of(case.counted, n_bins)
    widths = np.diff(bins.edges)
    assert len(widths) <= n_bins
    assert bins.edges[0] == 0
    assert bins.edges[-1] == case.seq
    assert set(widths[:-1].tolist()) <= {bins.width}
    assert widths[-1] <= bins.width
    assert bins.counts(case.acts) == oracles.active_by_bin(case.active, bins.edges)
    places = oracles.counted_places(case.tokens.tolist(), case.counted.tolist())
    assert bins.n_counted == oracles.active_by_bin(dict.fromkeys(places, 1.0), bins.edges)


# --- where it does not fire ----------------------------------------------------------------------------------------


@settings(max_examples=80)
@given(
    case=cases,
    size=st.sampled_from([1, 2, 5]),
    buffer=st.sampled_from([None, (0, 0), (1, 2), (20, 20)]),
    allow_overlap=st.booleans(),
)
def test_counterexamples_are_those_of_plain_loops(case, size, buffer, allow_overlap):
    found = counterexamples(
        case.acts, case.index, top_tokens(case.acts, case.index, 9), size, SEED, buffer, allow_overlap
    )
    if not case.active:
        assert found == ([], 0, [])
        return
    asked = (case.active, case.tokens.tolist(), case.counted.tolist(), size, SEED, case.feature)
    near_misses, n = oracles.drawn_near_misses(*asked)
    for got, order in ((found.near_misses, near_misses), (found.negatives, oracles.drawn_negatives(*asked))):
        expected = oracles.without_overlap(order, size, buffer, case.seq, allow_overlap)
        assert [tuple(example) for example in got] == [tuple(place) for place in expected]
    assert found.n_near_misses == n


def test_near_misses_are_on_each_top_token_by_its_share_however_often_it_occurs():
    """Token 1 has nine tenths of the activation and occurs a hundred times more seldom than token 0."""
    tokens = np.zeros((1, 101_000), dtype=np.int64)
    tokens[0, 100_000:] = 1
    places = np.arange(99_990, 100_010)
    raw = np.where(places < 100_000, 1.0, 9.0).astype(np.float32)
    acts = FeatureActivations.of(2, places, raw, tokens.shape[1], 0, tokens.size)
    index = TokenIndex.of(tokens, np.ones_like(tokens, dtype=bool))
    found = counterexamples(acts, index, top_tokens(acts, index, 5), 400, 0, (0, 0), allow_overlap=False)
    on_rare = sum(tokens[0, example.position] for example in found.near_misses)
    assert found.n_near_misses == 101_000 - 20
    assert 310 < on_rare < 385  # 360 in the mean, less what is drawn twice


def test_where_few_candidates_are_left_all_of_them_are_found():
    tokens = np.zeros((1, 3000), dtype=np.int64)
    silent = [5, 1700, 2999]
    places = np.setdiff1d(np.arange(3000), silent)
    acts = FeatureActivations.of(8, places, np.ones(len(places), dtype=np.float32), 3000, 0, 3000)
    index = TokenIndex.of(tokens, np.ones_like(tokens, dtype=bool))
    found = counterexamples(acts, index, top_tokens(acts, index, 5), 5, 0, (5, 5), False)
    assert sorted(example.position for example in found.negatives) == silent
    assert sorted(example.position for example in found.near_misses) == silent


@settings(max_examples=60)
@given(st.sets(st.integers(0, 39)), st.sampled_from([[(0, 40)], [(3, 9), (9, 10), (20, 40)], [(0, 1), (39, 40)]]))
def test_gaps_are_numbered_through_without_looking_at_them(active, stretches):
    starts, ends = np.array(stretches).T
    gaps = Gaps.between(np.array(sorted(active), dtype=np.int64), starts, ends)
    expected = [rank for start, end in stretches for rank in range(start, end) if rank not in active]
    assert gaps.total == len(expected)
    assert gaps.ranks(np.arange(len(expected))).tolist() == expected


def test_draws_are_even_and_fixed_for_all_time():
    assert draws(7, NEAR_MISSES, range(4), 0, 1000).tolist() == [
        oracles.priority(0, 7, oracles.Place(2**63 + 1, i)) % 1000 for i in range(4)
    ]
    counts = np.bincount(draws(1, NEGATIVES, range(8000), 5, 8), minlength=8)
    assert counts.min() > 850  # a thousand each, with a standard deviation of thirty
    assert counts.max() < 1150


# --- from the tokens to the data -----------------------------------------------------------------------------------

N_IDS, N_FEATURES, ROWS, SEQ = 12, 6, 9, 14


def toy() -> tuple[object, ToyModel, torch.Tensor]:
    """Each feature fires on the tokens whose row of the table is positive there, the last on every one."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(N_IDS, 8, generator=generator)
    table[:, N_FEATURES - 1] = table[:, N_FEATURES - 1].abs() + 0.1
    table[:, 0] = -1.0  # never
    return identity_encoder(8, N_FEATURES), ToyModel(table), random_tokens(ROWS, SEQ, N_IDS)


@pytest.fixture(scope="module")
def data() -> MultiFeatureData:
    encoder, model, tokens = toy()
    return fetch(encoder, model, tokens, ignore_tokens=(0,), n_groups=2, first_group_size=3, buffer=(2, 2), seed=SEED)


def activations_of(feature: int) -> tuple[dict[oracles.Place, float], list[list[int]], list[list[bool]]]:
    _, model, tokens = toy()
    counted = (tokens != 0).tolist()
    grid = model.table[tokens][..., feature].relu().tolist()
    return oracles.active(grid, counted), tokens.tolist(), counted


@pytest.mark.parametrize("feature", range(N_FEATURES))
def test_the_data_of_a_run_holds_what_plain_loops_find(data, feature):
    active, tokens, counted = activations_of(feature)
    found, expected = data[feature], oracles.tokens_fired_on(active, tokens, counted)
    assert found.tokens.n_distinct == len(expected)
    assert found.tokens.token_ids == [one.token for one in expected[:10]]
    assert found.tokens.firing_rates() == [one.n_active / one.n_occurrences for one in expected[:10]]
    assert found.positions.n_active == oracles.active_by_bin(active, found.positions.bar_edges)
    assert sum(found.positions.n_active) == found.activations.n_active
    assert sum(found.positions.n_counted) == data.provenance.n_counted
    near_misses, n = oracles.drawn_near_misses(active, tokens, counted, 5, SEED, feature)
    negatives = oracles.drawn_negatives(active, tokens, counted, 5, SEED, feature)
    assert found.counterexamples.n_near_misses == n
    for sequences, drawn_places in (
        (found.counterexamples.near_misses, near_misses),
        (found.counterexamples.negatives, negatives),
    ):
        places = oracles.without_overlap(drawn_places, 5, (2, 2), SEQ, allow_overlap=False)
        assert [(one.row, one.start + one.bold_idx) for one in sequences] == [tuple(place) for place in places]


def test_counterexamples_are_sequences_like_all_others(data):
    """Tokens, activations and rows are those of the corpus, and effects are there where the feature fires one token before."""
    n_effects = 0
    for feature in data.values():
        active, tokens, _ = activations_of(feature.feature_idx)
        for one in feature.counterexamples.sequences():
            at = range(one.start, one.start + len(one.token_ids))
            assert one.token_ids == [tokens[one.row][position] for position in at]
            assert one.feat_acts == [active.get(oracles.Place(one.row, position), 0.0) for position in at]
            assert one.feat_acts[one.bold_idx] == 0.0
            assert data.rows[one.row] == tokens[one.row]
            before = [oracles.Place(one.row, position - 1) in active for position in at]
            assert all(loss == 0.0 for loss, on in zip(one.loss_contribution, before, strict=True) if not on and loss)
            assert {effect.at for effect in one.effects} <= {i for i, on in enumerate(before) if on}
            n_effects += len(one.effects)
            assert set(one.token_ids) <= feature.logits.shown_logits.keys()
    assert n_effects > 10


def test_a_feature_that_never_fires_and_one_that_always_does(data):
    dead, everywhere = data[0], data[N_FEATURES - 1]
    assert dead.tokens == TokensData([], [], [], [], [], 0)
    assert dead.counterexamples == CounterexamplesData([], 0, [])
    assert sum(dead.positions.n_active) == 0
    assert not dead.tokens.get_html() + dead.positions.get_html() + dead.counterexamples.get_html()
    assert everywhere.counterexamples == CounterexamplesData([], 0, [])
    assert set(everywhere.tokens.firing_rates()) == {1.0}
    assert dead.get_html()
    assert everywhere.get_html()


def test_what_is_not_asked_for_is_not_there_and_the_rest_is_the_same():
    encoder, model, tokens = toy()
    whole = fetch(encoder, model, tokens, features=(1, 2))
    for name, option in (
        ("tokens", "n_tokens"),
        ("positions", "n_position_bins"),
        ("counterexamples", "n_counterexamples"),
    ):
        without = fetch(encoder, model, tokens, features=(1, 2), **{option: 0})
        for feature in without.values():
            assert getattr(feature, name) is None
            expected = whole[feature.feature_idx]
            others = {"tokens", "positions", "counterexamples", "sequences", "activations"} - {name}
            assert all(getattr(feature, other) == getattr(expected, other) for other in others)


def test_the_choice_follows_the_seed():
    encoder, model, tokens = toy()
    one, other = (fetch(encoder, model, tokens, features=2, seed=seed)[2].counterexamples for seed in (0, 1))
    assert one.negatives != other.negatives
    assert one.n_near_misses == other.n_near_misses


def test_every_token_that_is_listed_has_its_text():
    acts = torch.zeros(2, 30, 1)
    acts[0, 3:] = torch.arange(27, 0, -1)[:, None]
    data = fetch_planted(
        acts, n_tokens=27, first_group_size=1, n_groups=0, buffer=(0, 0), n_counterexamples=0, store_rows=False
    )
    assert len(data[0].tokens.token_ids) == 27
    assert set(data[0].tokens.token_ids) <= data[0].vocab_ids()


# --- keeping and drawing -------------------------------------------------------------------------------------------


def test_the_new_parts_are_saved_and_loaded_exactly(data, tmp_path):
    data.save_json(tmp_path / "data.json")
    again = MultiFeatureData.load_json(tmp_path / "data.json")
    assert dict(again.items()) == dict(data.items())
    assert again.get_html() == data.get_html()


def test_a_folder_of_version_1_goes_on_only_without_what_it_has_not(tmp_path):
    encoder, model, tokens = toy()
    old = {"n_tokens": 0, "n_counterexamples": 0, "n_position_bins": 0}

    def run(**options):
        params = FeatureVisParams(**{**QUIET, **options})
        return get_feature_data(encoder, model, tokens, params, out_dir=tmp_path / "run")

    before = run(features=(1,), **old)
    path = tmp_path / "run" / "run.json"
    text = path.read_text("utf-8").replace('"version":2', '"version":1')
    for name in old:
        assert f'"{name}":0,' in text
        text = text.replace(f'"{name}":0,', "")
    path.write_text(text, "utf-8")
    opened = MultiFeatureData.load_dir(tmp_path / "run")
    assert opened.params == before.params
    assert opened[1].get_html()
    with pytest.raises(InputError, match=r"n_tokens \(then 0, now 10\)"):
        run(features=(1, 2))
    assert list(run(features=(1, 2), **old)) == [1, 2]


def test_the_panels_say_what_they_hold(data):
    page = data._context()
    feature = data[2]
    tokens = parse_fragment(feature.tokens.get_html(page))
    rows = list(tokens.iter("tr"))[1:]
    assert len(rows) == len(feature.tokens.token_ids)
    rate = feature.tokens.firing_rates()[0]
    assert text_of(rows[0]).endswith(f"{100 * feature.tokens.share[0]:.0f} %")
    assert f"of {feature.tokens.n_occurrences[0]}" in text_of(rows[0])
    assert feature.tokens.summary().startswith(f"Top token: {100 * feature.tokens.share[0]:.0f} % of the activation")
    assert feature.tokens.summary().endswith(f"{100 * rate:.0f} % of its occurrences.")
    assert feature.tokens.summary() in text_of(tokens)
    assert len(list(parse_fragment(feature.tokens.get_html(page, rows=1)).iter("tr"))) == 2
    plot = parse_fragment(feature.positions.get_html(page))
    bars, even, _ = (path.get("d") for path in drawn(plot, "path"))
    assert bars.count("V46h") == SEQ
    assert even.startswith("M6 46V")
    shown = parse_fragment(feature.counterexamples.get_html(page))
    lines = [element for element in shown.iter("div") if element.get("class") == "seq"]
    assert len(lines) == len(feature.counterexamples.sequences())


def test_a_part_that_the_data_has_not_is_missed_only_where_the_layout_asks_for_it(data):
    bare = dataclasses.replace(data[2], tokens=None, positions=None, counterexamples=None)
    features = dataclasses.replace(data, feature_data_dict={2: bare})
    assert "There are no" not in features[2].get_html(features._context())
    features.params = dataclasses.replace(
        data.params, layout=Layout([Column("tokens", "positions", "counterexamples")])
    )
    text = features[2].get_html(features._context())
    for name in ("tokens", "positions", "counterexamples"):
        assert f"There are no {name} here." in text


SEQUENCE = SequenceData(0, 0, 0, [1], [0.0], [None])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TokensData([1], [1], [2], [0.5], [], 1), "lists of one length expected, but token_ids has 1"),
        (lambda: TokensData([1], [3], [2], [0.5], [0.5], 1), "n_active must be from 1 to n_occurrences"),
        (lambda: TokensData([1], [0], [2], [0.5], [0.5], 1), "n_active must be from 1 to n_occurrences"),
        (lambda: TokensData([1], [1], [2**63], [0.5], [0.5], 1), "n_active must be from 1"),
        (lambda: TokensData([1], [1], [2], [math.inf], [0.5], 1), r"mean\[0\] is inf, a finite number"),
        (lambda: TokensData([1], [1], [2], [0.5], [1.5], 1), "share must be from 0 to 1"),
        (lambda: TokensData([1], [1], [2], [0.5], [0.5], 0), "n_distinct must be no less"),
        (lambda: PositionsData([0, 1], [1, 2], [3, 4]), "lists of one length"),
        (lambda: PositionsData([0], [], []), "bar_edges"),
        (lambda: PositionsData([0, 2, 2], [0, 0], [1, 1]), "bar_edges"),
        (lambda: PositionsData([-1, 2], [0], [1]), "bar_edges"),
        (lambda: PositionsData([0, 2], [2], [1]), "n_active must be from 0 to n_counted"),
        (lambda: CounterexamplesData([SEQUENCE], 0, []), "1 near misses are shown, but n_near_misses is 0"),
        (lambda: CounterexamplesData([], -1, []), "n_near_misses"),
    ],
)
def test_data_that_cannot_be_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_positions_that_are_never_counted_are_expected_nowhere():
    positions = PositionsData([0, 1, 3], [0, 4], [0, 8])
    assert positions.expected() == [0.0, 4.0]
    assert PositionsData([0, 1], [0], [0]).expected() == [0.0]
    assert positions.get_html()
