"""Every number that follows from a feature's activations alone, against plain loops and at the edges of what can come."""

from __future__ import annotations

import math
from decimal import Decimal
from itertools import pairwise

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import encoder_for, fetch, fetch_planted, identity_encoder, planted

from sae_vis._correlations import SparseColumns, co_moments, most_correlated
from sae_vis._prompt_scoring import act_quantile, rank_by_score
from sae_vis._statistics import (
    EXACT_KNOTS,
    FeatureActivations,
    Step,
    aligned_neurons,
    are_among,
    count_at_least,
    histogram,
    knot_ranks,
    moments,
    quantile_knots,
    significant,
)
from sae_vis.utils_fns import ticks

positive = st.floats(2.0**-120, 2.0**120, width=32)
ordinary = st.floats(1 / 1024, 1024, width=32)


def close(a: float, b: float, tolerance: float = 1e-9) -> bool:
    return math.isclose(a, b, rel_tol=tolerance, abs_tol=1e-300)


def one_feature(values: list[float], n_counted: int | None = None) -> FeatureActivations:
    raw = np.array(values, dtype=np.float32)
    return FeatureActivations.of(0, np.arange(len(raw)), raw, max(len(raw), 1), 0, n_counted or len(raw))


# --- rounding ----------------------------------------------------------------------------------------------------


@given(positive, st.floats(0.0, 1.0, width=32))
def test_activations_are_rounded_to_four_digits_of_the_maximum_and_never_to_zero(maximum, share):
    value = float(np.float32(maximum * share))
    values = [maximum, *([value] if value > 0 else [])]
    step = 10.0 ** oracles.exponent_of_step(maximum)
    for raw, found in zip(values, one_feature(values).values.tolist(), strict=True):
        assert found > 0
        assert abs(found - raw) <= step * 0.500001 or (found <= step * 1.000001 and raw < step)
        assert found == oracles.rounded(raw, maximum)
        assert len(Decimal(repr(found)).normalize().as_tuple().digits) <= 4, "no noise in the last digits"


@given(positive)
def test_the_rounded_maximum_has_the_same_step_so_a_prompt_is_rounded_like_the_corpus(maximum):
    rounded = one_feature([maximum]).maximum
    assert Step.for_maximum(rounded) == Step.for_maximum(maximum)


@pytest.mark.parametrize("maximum", [9.99996, 999.96, 0.0999996, 99999.7])
def test_a_maximum_that_rounds_up_to_a_power_of_ten_still_has_four_digits(maximum):
    acts = one_feature([maximum, maximum / 3])
    assert acts.values.tolist() == [oracles.rounded(v, maximum) for v in acts.raw.tolist()]


@pytest.mark.parametrize("exponent", [-45, -24, -23, -22, -3, 0, 1, 22, 23, 24, 35])
def test_a_number_of_steps_is_the_float_nearest_to_its_decimal_form(exponent):
    counts = np.arange(1, 10_000)
    assert Step(exponent).value(counts).tolist() == [float(f"{count}e{exponent}") for count in counts.tolist()]


@pytest.mark.parametrize("maximum", [1e-45, 1e-38, 1.0, 1000.0, 0.001, 3.4e38])
def test_the_smallest_and_largest_floats_are_rounded_too(maximum):
    found = one_feature([maximum]).maximum
    assert close(found, float(np.float32(maximum)), 1e-3)


@given(st.lists(st.lists(positive, max_size=6), max_size=5), st.integers(0, 9))
def test_several_columns_are_rounded_as_each_by_itself(columns, row_offset):
    raw = [np.array(values, dtype=np.float32) for values in columns]
    places = [np.arange(len(values), dtype=np.int32) * (index + 2) for index, values in enumerate(raw)]
    offsets = np.cumsum([0, *map(len, raw)])
    together = np.concatenate([np.zeros(0, np.int32), *places]), np.concatenate([np.zeros(0, np.float32), *raw])
    found = [*FeatureActivations.of_columns(range(len(raw)), offsets, *together, 3, row_offset, 99)]
    assert len(found) == len(raw)
    for index, own in enumerate(found):
        expected = FeatureActivations.of(index, places[index], raw[index], 3, row_offset, 99)
        assert (own.feature, own.n_counted) == (expected.feature, expected.n_counted)
        for name in ("rows", "positions", "values", "raw"):
            ours, theirs = getattr(own, name), getattr(expected, name)
            assert (ours.dtype, ours.tolist()) == (theirs.dtype, theirs.tolist())


@given(st.lists(st.integers(0, 20)), st.sets(st.integers(-3, 25)))
def test_what_is_among_others_is_known(values, others):
    found = are_among(np.array(values, dtype=np.int64), np.array(sorted(others), dtype=np.int64))
    assert found.tolist() == [value in others for value in values]


# --- moments -----------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.lists(ordinary, min_size=1, max_size=12), st.integers(0, 30))
def test_moments_are_those_of_all_counted_positions_in_exact_fractions(values, n_zeros):
    expected = oracles.moments([*values, *[0.0] * n_zeros])
    found = moments(np.array(values), len(values) + n_zeros)
    assert close(found.mean, expected.mean)
    assert math.isclose(found.variance, expected.variance, rel_tol=1e-9, abs_tol=1e-12 * max(values) ** 2)
    if expected.skewness is None or expected.variance < 1e-8 * max(values) ** 2:  # a constant, up to rounding
        return
    assert math.isclose(found.skewness, expected.skewness, rel_tol=1e-6, abs_tol=1e-6)
    assert math.isclose(found.kurtosis, expected.kurtosis, rel_tol=1e-6)


@pytest.mark.parametrize("scale", [1e-40, 1e-20, 1.0, 1e20, 1e38])
def test_moments_of_tiny_and_huge_activations_are_finite_and_scale(scale):
    values = np.array([1.0, 2.0, 5.0])
    expected = oracles.moments([1.0, 2.0, 5.0, 0.0, 0.0])
    found = moments(values * scale, 5)
    assert close(found.mean, expected.mean * scale)
    assert close(found.variance, expected.variance * scale**2)
    assert close(found.skewness, expected.skewness)
    assert close(found.kurtosis, expected.kurtosis)


def test_a_rare_feature_of_a_corpus_of_a_trillion_tokens_has_moments():
    n = 10**12
    found = moments(np.array([3.0, 1.0]), n)
    assert close(found.mean, 4 / n)
    assert close(found.variance, 10 / n - (4 / n) ** 2)
    assert close(found.kurtosis, (82 / n) / (10 / n) ** 2, 1e-6)


def test_a_constant_has_no_skewness():
    assert moments(np.array([2.0, 2.0]), 2) == (2.0, 0.0, None, None)
    assert moments(np.array([0.1] * 7), 7) == (pytest.approx(0.1), 0.0, None, None)


# --- histogram and ticks -----------------------------------------------------------------------------------------


@given(st.lists(ordinary, min_size=1, max_size=40), st.integers(1, 50))
def test_the_histogram_counts_every_active_activation_once(values, n_bins):
    acts = one_feature(values)
    edges, heights = histogram(acts.values, n_bins)
    shown = acts.values.tolist()
    expected_edges, _ = oracles.histogram(shown, n_bins)
    assert len(edges) == len(heights) + 1 == len(expected_edges)
    assert edges[0] <= min(shown)
    assert edges[-1] >= max(shown)
    assert all(close(a, b, 1e-9) for a, b in zip(edges, expected_edges, strict=True))
    expected = [0] * len(heights)
    for value in shown:
        expected[oracles.bar_of(value, edges)] += 1
    assert heights == expected


def test_activations_that_are_all_equal_make_one_bar_of_width_one():
    assert histogram(np.array([2.5] * 3), 40) == ([2.0, 3.0], [3])


def test_no_activations_make_no_bars():
    assert histogram(np.array([]), 40) == ([], [])


any_float = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=300)
@given(any_float, any_float)
def test_ticks_of_any_range_are_few_rising_and_inside(a, b):
    low, high = min(a, b), max(a, b)
    found = ticks(low, high)
    assert len(found) <= 7
    assert found == sorted(set(found))
    assert all(low <= tick <= high for tick in found)


@given(any_float, st.integers(-300, 300), st.floats(1, 10))
def test_ticks_of_a_range_around_zero_are_round_numbers(centre, power, size):
    half = size * 10.0**power
    found = ticks(-half * 0.7, half)
    assert 3 <= len(found) <= 7
    assert 0.0 in found
    for tick in found:
        digits = Decimal(repr(tick)).normalize().as_tuple().digits
        assert len(digits) <= 2, "a round number"


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.0, 5e-324), (0.0, 1e-310), (-1e-300, 1e-300), (1.0, 1.0 + 2**-52), (1e16, 1e16 + 2), (-1e308, 1e308)],
)
def test_ticks_at_the_limits_of_floats(low, high):
    found = ticks(low, high)
    assert len(found) <= 7
    assert all(low <= tick <= high for tick in found)


def test_small_logits_do_not_make_thousands_of_ticks():
    """A largest weight below 0.3 once gave a tick each millionth."""
    data = fetch(encoder_for(4, 2), planted(torch.rand(2, 4, 4) * 1e-3)[1], torch.arange(8).reshape(2, 4))
    for feature in data.values():
        assert len(feature.logits.histogram.tick_vals) <= 7
        assert len(feature.activations.histogram.tick_vals) <= 7


# --- quantiles ---------------------------------------------------------------------------------------------------


def check_tail(raw: list[float], value: float) -> None:
    values, ranks = quantile_knots(np.array(raw, dtype=np.float64))
    true = oracles.count_at_least(value, raw)
    found = count_at_least(value, values, ranks)
    assert abs(found - true) <= 0.03 * true
    if true <= EXACT_KNOTS:
        assert found == true


@settings(max_examples=60)
@given(
    st.integers(0, 10**6),
    st.integers(1, 3000),
    st.sampled_from(["spread", "steep", "few values", "clustered"]),
)
def test_the_tail_is_known_to_three_per_cent_and_exactly_at_the_top(seed, n, shape):
    generator = np.random.default_rng(seed)
    raw = {
        "spread": lambda: generator.uniform(0.1, 1.0, n),
        "steep": lambda: generator.pareto(1.0, n) + 0.01,
        "few values": lambda: generator.choice(generator.uniform(0.1, 1.0, 4), n),
        "clustered": lambda: 0.1234567 + 1e-7 * generator.integers(0, 3, n),
    }[shape]()
    raw = raw.astype(np.float32).astype(np.float64)
    falling = np.sort(raw)[::-1]
    probes = {
        *falling[generator.integers(0, n, 30)].tolist(),
        *falling[:: max(1, n // 20)].tolist(),
        float(falling[0]),
        float(falling[-1]),
    }
    probes |= {float(np.nextafter(np.float32(v), np.float32(2))) for v in list(probes)}
    for value in sorted(probes):
        check_tail(raw.tolist(), value)


@pytest.mark.parametrize("value", [0.1234567, 0.1234564, 0.7654321, 0.3333333])
def test_a_value_that_many_positions_share_is_counted_with_all_of_them(value):
    value = float(np.float32(value))
    raw = [2.0] * 33 + [value] * 1000 + [0.01] * 50
    check_tail(raw, value)
    check_tail(raw, float(np.nextafter(np.float32(value), np.float32(2))))
    check_tail(raw, float(np.nextafter(np.float32(value), np.float32(0))))


def test_rounding_never_lifts_a_knot_above_the_exact_ones_before_it():
    for value in np.random.default_rng(0).random(50).astype(np.float32).astype(np.float64).tolist():
        values, _ = quantile_knots(np.full(40, value))  # half of them are rounded up
        assert values[:EXACT_KNOTS] == [value] * EXACT_KNOTS
        assert values == sorted(values, reverse=True)


def test_the_top_values_are_stored_as_they_are():
    raw = np.random.default_rng(0).random(500).astype(np.float32).astype(np.float64)
    values, ranks = quantile_knots(raw)
    assert ranks[:EXACT_KNOTS] == list(range(1, 33))
    falling = sorted(raw.tolist(), reverse=True)
    assert values[:EXACT_KNOTS] == falling[:32]
    assert values[EXACT_KNOTS:] == [float(f"{falling[rank - 1]:.8e}") for rank in ranks[EXACT_KNOTS:]], "nine digits"
    assert ranks[-1] == 500
    assert values == sorted(values, reverse=True)


@given(st.integers(1, 10**7))
def test_knots_are_few_and_reach_the_last_rank(n):
    ranks = knot_ranks(n)
    assert ranks[0] == 1
    assert ranks[-1] == n
    assert all(a < b for a, b in pairwise(ranks))
    assert len(ranks) <= 32 + 35 * max(1.0, math.log10(max(n, 32)) * 1.2)


def test_act_quantile_is_the_share_of_smaller_activations():
    raw = [5.0, 4.0, 4.0, 1.0]
    values, ranks = quantile_knots(np.array(raw))
    n = 1000
    for value, at_least in [(6.0, 0), (5.0, 1), (4.5, 1), (4.0, 3), (2.0, 3), (1.0, 4), (0.5, 4)]:
        assert act_quantile(value, values, ranks, n) == pytest.approx(1 - at_least / n, abs=1e-12)
    assert act_quantile(1.0, [], [], n) == 1.0, "a feature that never fires on the corpus"


@pytest.mark.parametrize("n", [3, 7, 115, 1234, 10**6 + 1, 3 * 10**9 + 7])
def test_a_quantile_is_one_less_a_tail_of_six_digits_without_noise(n):
    for at_least in (1, 2, 3):
        expected = float(1 - Decimal(f"{at_least / n:.5e}"))
        assert act_quantile(1.0, [1.0] * at_least, [1, 2, 3][:at_least], n) == expected


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 2000), st.integers(0, 10**5))
def test_the_tail_of_the_score_itself_is_within_three_per_cent(seed, n, n_zeros):
    raw = np.random.default_rng(seed).exponential(1.0, n).astype(np.float32).astype(np.float64)
    values, ranks = quantile_knots(raw)
    for value in raw[:: max(1, n // 25)].tolist():
        tail = oracles.count_at_least(value, raw.tolist()) / (n + n_zeros)
        assert abs((1 - act_quantile(value, values, ranks, n + n_zeros)) - tail) <= 0.03 * tail + 1e-12


def test_act_quantile_falls_with_the_activation_and_stays_a_share():
    raw = np.random.default_rng(1).exponential(1.0, 4000)
    values, ranks = quantile_knots(raw)
    found = [act_quantile(v, values, ranks, 10**6) for v in np.linspace(0.0, 12.0, 300).tolist()]
    assert found == sorted(found)
    assert all(0.0 <= q <= 1.0 for q in found)


def test_rankings_are_per_position_with_ties_to_the_lower_feature():
    at = [{}, {7: 1.0, 3: 1.0, 5: 2.0}, {9: 0.5}]
    largest = rank_by_score(at, lambda position, feature, activation: activation, 2, largest_first=True)
    smallest = rank_by_score(at, lambda position, feature, activation: -activation, 2, largest_first=False)
    assert largest == [[], [(5, 2.0), (3, 1.0)], [(9, 0.5)]]
    assert smallest == [[], [(5, -2.0), (3, -1.0)], [(9, -0.5)]]


# --- the whole of ActivationsData, from planted activations ------------------------------------------------------


def grids(acts: torch.Tensor) -> list[oracles.Grid]:
    """One grid a feature."""
    return acts.double().permute(2, 0, 1).tolist()


def check_activations_data(acts: torch.Tensor, counted: torch.Tensor | None = None, **params) -> None:
    encoder, model, tokens = planted(acts)
    ignored = () if counted is None else tuple(tokens[~counted].tolist())
    data = fetch(encoder, model, tokens, ablation=None, ignore_tokens=ignored, **params)
    mask = (torch.ones(acts.shape[:2], dtype=torch.bool) if counted is None else counted).tolist()
    n_counted = sum(map(sum, mask))
    assert data.provenance.n_counted == n_counted
    for feature, grid in enumerate(grids(acts)):
        found = data[feature]
        values = list(oracles.active(grid, mask).values())
        raw = [v for row, m in zip(grid, mask, strict=True) for v, c in zip(row, m, strict=True) if c and v > 0]
        shown = found.activations
        assert shown.n_active == len(values)
        assert shown.density == len(values) / n_counted
        assert found.quantiles.n == n_counted
        assert found.quantiles.values[:32] == sorted(raw, reverse=True)[:32]
        if not values:
            moments_found = (shown.max, shown.mean, shown.variance, shown.skewness, shown.kurtosis)
            assert moments_found == (None, None, None, None, None)
            assert (shown.histogram.bar_edges, shown.histogram.bar_heights, shown.histogram.tick_vals) == ([], [], [])
            assert found.sequences.groups == []
            continue
        assert shown.max == max(values)
        expected = oracles.moments([*values, *[0.0] * (n_counted - len(values))])
        assert close(shown.mean, expected.mean)
        assert close(shown.variance, expected.variance, 1e-7)
        for ours, theirs in ((shown.skewness, expected.skewness), (shown.kurtosis, expected.kurtosis)):
            assert (ours is None) == (theirs is None)
            assert ours is None or close(ours, theirs, 1e-6)
        edges, heights = oracles.histogram(values, params.get("n_bins", 40))
        assert len(shown.histogram.bar_edges) == len(edges)
        assert sum(shown.histogram.bar_heights) == sum(heights) == len(values)
        low, high = shown.histogram.bar_edges[0], shown.histogram.bar_edges[-1]
        assert all(low <= tick <= high for tick in shown.histogram.tick_vals)


def test_activations_data_is_what_plain_loops_give():
    generator = torch.Generator().manual_seed(0)
    acts = torch.randn(12, 9, 6, generator=generator) * torch.tensor([1.0, 1e-6, 1e4, 0.3, 7.0, 1.0])
    check_activations_data(acts)
    check_activations_data(acts, n_bins=7)


def test_activations_data_leaves_out_what_is_ignored():
    generator = torch.Generator().manual_seed(1)
    acts = torch.randn(10, 8, 4, generator=generator)
    counted = torch.rand(10, 8, generator=generator) < 0.6
    acts[~counted] = 1e4
    check_activations_data(acts, counted)


def test_features_at_the_edge_of_what_can_come():
    acts = torch.zeros(4, 8, 8)
    acts[..., 1] = torch.rand(4, 8, generator=torch.Generator().manual_seed(0)) + 0.5  # always active
    acts[2, 3, 2] = 1.5  # a single activation
    acts[..., 3] = 2.0  # always the same
    acts[::2, :, 4] = 0.7  # the same where active
    acts[0, 0, 5], acts[3, 7, 5] = 1.0, 1e-8  # one rounds to a single step
    acts[..., 6] = -1.0  # always negative
    acts[1, 1, 7] = 1e-42  # subnormal
    check_activations_data(acts)
    counted = torch.zeros(4, 8, dtype=torch.bool)
    counted[2, 3] = True
    check_activations_data(acts, counted)  # one counted token


def test_a_feature_that_never_fires_says_so_on_its_page():
    data = fetch_planted(torch.zeros(3, 6, 2))
    assert data[0].activations.max is None
    assert "never" in data.get_html()
    assert data[0].feature_tables.correlated_features.indices == []
    assert data[0].feature_tables.correlated_neurons.indices == []


# --- neuron alignment --------------------------------------------------------------------------------------------


def test_aligned_neurons_are_the_largest_signed_weights_with_their_share():
    row = [0.5, -2.0, 0.25, 0.5, 0.0, 1.0]
    (found,) = aligned_neurons(np.array([row]), 4)
    assert found.indices == [5, 0, 3, 2]
    assert found.values == [1.0, 0.5, 0.5, 0.25]
    assert found.share_of_l1 == [round(v / 4.25, 6) for v in (1.0, 0.5, 0.5, 0.25)]
    assert aligned_neurons(np.array([row]), 50)[0].indices == [5, 0, 3, 2, 4, 1]
    assert aligned_neurons(np.zeros((2, 3)), 2) == [([0, 1], [0.0, 0.0], [0.0, 0.0])] * 2


@given(
    st.lists(st.lists(st.sampled_from([-2.0, -0.5, 0.0, 0.5, 1.0, 3.0]), min_size=7, max_size=7), max_size=4),
    st.integers(0, 9),
)
def test_the_neurons_of_many_rows_are_those_of_sorting_each(rows, size):
    found = aligned_neurons(np.array(rows).reshape(-1, 7), size)
    assert [own.indices for own in found] == [
        sorted(range(7), key=lambda i, row=row: (-row[i], i))[:size] for row in rows
    ]
    assert [own.values for own in found] == [sorted(row, reverse=True)[:size] for row in rows]


def test_neuron_alignment_is_read_from_the_decoder():
    encoder, model, tokens = planted(torch.rand(3, 5, 6))
    with torch.no_grad():
        encoder.W_dec.copy_(torch.randn(6, 6, generator=torch.Generator().manual_seed(2)))
    data = fetch(encoder, model, tokens, features=(1, 4), rows_in_left_tables=3, ablation=None)
    for feature in (1, 4):
        row = encoder.W_dec[feature].tolist()
        best = sorted(range(6), key=lambda i: (-row[i], i))[:3]
        found = data[feature].feature_tables.neuron_alignment
        assert found.indices == best
        assert found.values == pytest.approx([row[i] for i in best], rel=1e-5)
        assert found.share_of_l1 == pytest.approx([abs(row[i]) / sum(map(abs, row)) for i in best], abs=1e-6)


# --- correlations ------------------------------------------------------------------------------------------------


def flat_columns(acts: torch.Tensor, counted: torch.Tensor | None = None) -> list[list[float]]:
    chosen = acts.flatten(0, 1) if counted is None else acts[counted]
    return chosen.double().T.tolist()


def check_table(found, x, others, size, itself=None) -> None:
    expected = oracles.most_correlated(x, others, size, itself)
    assert found.indices == [index for index, _, _ in expected]
    assert found.pearson == pytest.approx([r for _, r, _ in expected], abs=2e-6)
    assert found.cosine == pytest.approx([c for _, _, c in expected], abs=2e-6)
    assert [round(value, 6) for value in (*found.pearson, *found.cosine)] == [*found.pearson, *found.cosine]


def correlated_acts(seed: int = 0) -> torch.Tensor:
    """Signed dimensions, some constant, some equal to each other, one with a large mean."""
    acts = torch.randn(9, 8, 10, generator=torch.Generator().manual_seed(seed))
    acts[..., 3] = acts[..., 1] * 0.5 + 0.1 * acts[..., 3]
    acts[..., 5] = acts[..., 4]  # twins: ties
    acts[..., 6] = acts[..., 4]
    acts[..., 7] = 1.25  # constant, active
    acts[..., 8] = -1.0  # constant, never active
    acts[..., 9] += 50.0
    return acts


@pytest.mark.parametrize("minibatch_rows", [1, 4, 64])
def test_correlation_tables_are_what_plain_loops_give(minibatch_rows):
    acts = correlated_acts()
    encoder, model, tokens = planted(acts)
    counted = torch.rand(9, 8, generator=torch.Generator().manual_seed(5)) < 0.8
    other = encoder_for(10, 7, density=0.4, seed=3)
    data = fetch(
        encoder,
        model,
        tokens,
        other,
        ignore_tokens=tuple(tokens[~counted].tolist()),
        ablation=None,
        rows_in_left_tables=4,
        minibatch_size_tokens=minibatch_rows,
    )
    features = flat_columns(acts.clamp(min=0), counted)
    neurons = dict(enumerate(flat_columns(acts, counted)))
    with torch.no_grad():
        b_features = dict(enumerate(flat_columns(other.encode(acts), counted)))
    for feature, x in enumerate(features):
        tables = data[feature].feature_tables
        check_table(tables.correlated_neurons, x, neurons, 4)
        check_table(tables.correlated_features, x, dict(enumerate(features)), 4, feature)
        check_table(tables.correlated_b_features, x, b_features, 4)


def test_correlated_features_come_from_the_whole_dictionary_whatever_is_asked_for():
    acts = correlated_acts(1)
    whole = fetch_planted(acts)
    part = fetch_planted(acts, features=(1, 4))
    assert part[1].feature_tables == whole[1].feature_tables
    assert part[4].feature_tables == whole[4].feature_tables
    assert part[4].feature_tables.correlated_features.indices[:2] == [5, 6], "twins, the lower index first"


def test_asked_restricts_the_correlated_features_to_those_asked_for():
    acts = correlated_acts(1)
    data = fetch_planted(acts, features=(1, 4, 9), correlate_features="asked", rows_in_left_tables=5)
    columns = flat_columns(acts.clamp(min=0))
    for feature in (1, 4, 9):
        others = {i: columns[i] for i in (1, 4, 9)}
        check_table(data[feature].feature_tables.correlated_features, columns[feature], others, 5, feature)


def test_none_leaves_the_correlated_features_out_and_the_others_in():
    tables = fetch_planted(correlated_acts(), correlate_features=None)[1].feature_tables
    assert tables.correlated_features is None
    assert tables.correlated_neurons.indices
    assert tables.correlated_b_features is None
    assert fetch_planted(correlated_acts(), include_left_tables=False)[1].feature_tables.neuron_alignment is None


def test_one_feature_of_a_dictionary_of_one_has_no_other_to_correlate_with():
    acts = torch.rand(3, 6, 1, generator=torch.Generator().manual_seed(0))
    tables = fetch_planted(acts)[0].feature_tables
    assert tables.correlated_features.indices == []


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e5])
def test_neurons_with_a_large_mean_have_the_right_correlation(offset):
    """Raw sums in float32 gave NaN here, which sorts first, or values of hundreds of millions."""
    signal = torch.rand(40, 10, 1, generator=torch.Generator().manual_seed(0)).double()
    noise = torch.rand(40, 10, 1, generator=torch.Generator().manual_seed(1)).double()
    acts = torch.cat([signal, signal + offset, offset - signal, 0.5 * (signal + noise) + offset], -1).float()
    data = fetch_planted(acts, features=(0,), rows_in_left_tables=4)
    table = data[0].feature_tables.correlated_neurons
    check_table(table, flat_columns(acts)[0], dict(enumerate(flat_columns(acts))), 4)
    assert table.indices[-1] == 2
    assert all(-1 <= r <= 1 for r in table.pearson + table.cosine)


def test_a_correlation_of_numbers_that_differ_in_the_last_bit_is_no_nonsense():
    x = torch.tensor([[1.0], [0.0], [0.0], [1.0]])
    y = torch.full((4, 2), 1e6)
    y[0, 0] += 0.0625  # one bit of float32
    co = co_moments(SparseColumns.of(x), y)
    (found,) = most_correlated(co, np.arange(2), 3)
    assert found.indices == [0]
    assert found.pearson == pytest.approx([oracles.pearson(x[:, 0].tolist(), y[:, 0].double().tolist())], abs=1e-6)


def test_a_constant_is_one_even_where_its_mean_is_rounded():
    x = torch.tensor([[1.0], [0.0], [0.0], [2.0], [0.0], [1.0]])
    y = torch.full((6, 2), 0.1, dtype=torch.float64)  # six times 0.1 is not 0.6
    y[:, 1] = torch.arange(6)
    co = co_moments(SparseColumns.of(x), y)
    assert co.y.squares[0] >= 0
    assert most_correlated(co, np.arange(2), 3)[0].indices == [1]


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 30))
def test_pearson_and_cosine_of_small_samples(seed, n):
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(n, 2, generator=generator) * 2).round().clamp(min=0)
    y = (torch.randn(n, 4, generator=generator) * 2).round()
    co = co_moments(SparseColumns.of(x), y)
    for i, found in enumerate(most_correlated(co, np.arange(4), 4)):
        check_table(found, x[:, i].tolist(), dict(enumerate(y.double().T.tolist())), 4)


def test_the_cosine_is_that_of_the_activations_not_of_the_decoder_rows():
    acts = torch.rand(5, 6, 3, generator=torch.Generator().manual_seed(0))
    encoder, model, tokens = planted(acts)
    with torch.no_grad():
        encoder.W_dec.copy_(torch.randn(3, 3))
    table = fetch(encoder, model, tokens, ablation=None)[0].feature_tables.correlated_features
    columns = flat_columns(acts)
    assert table.cosine == pytest.approx([oracles.cosine(columns[0], columns[i]) for i in table.indices], abs=2e-6)


def test_the_dictionary_may_be_smaller_than_the_table():
    tables = fetch_planted(torch.rand(3, 6, 2), rows_in_left_tables=10)[0].feature_tables
    assert len(tables.correlated_features.indices) == 1
    assert len(tables.neuron_alignment.indices) == 2


def test_identity_encoder_reads_what_is_planted():  # the ground that the tests above stand on
    x = torch.randn(4, 9, 5)
    with torch.no_grad():
        assert torch.equal(identity_encoder(5, 3).encode(x), x[..., :3].clamp(min=0))


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20)
    | st.lists(st.floats(1e-45, 1e-20) | st.floats(1e20, 3e38), min_size=1, max_size=20),
    st.integers(1, 8),
)
def test_numbers_far_from_one_are_rounded_to_the_floats_nearest_to_their_decimals(values, digits):
    for value, rounded in zip(values, significant(np.array(values), digits).tolist(), strict=True):
        assert rounded == pytest.approx(value, rel=0.5000001 * 10.0 ** (1 - digits), abs=1e-310)
        if value and not 1e-13 < abs(value) < 1e22:
            assert rounded == float(f"{value:.{digits - 1}e}")
