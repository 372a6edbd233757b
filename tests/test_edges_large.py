"""Counts that a float32 or an int32 cannot hold, distributions of a million activations, vocabularies of a quarter million.

The oracles are exact: whole numbers and fractions of Python.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import brute_force
import hf_models
import numpy as np
import oracles
import pytest
import torch
from drawing import check_drawn, check_features
from models import fetch, random_tokens
from page_reading import text_of

from sae_vis import get_prompt_data
from sae_vis._correlations import SparseColumns, WithDense, co_moments, most_correlated
from sae_vis._prompt_scoring import act_quantile
from sae_vis._statistics import (
    EXACT_KNOTS,
    FeatureActivations,
    count_at_least,
    histogram,
    interval_examples,
    moments,
    quantile_knots,
    top_examples,
)
from sae_vis._store import ActivationStore, merge_stores

FLOAT32_COUNTS = 2**24  # the first count that a float32 counter cannot get beyond


# --- more positions than a float32 counts ------------------------------------------------------------------------------


def counted_values() -> dict[float, int]:
    """Activations and how often each is there; one of them more often than a float32 counter reaches."""
    return {0.5: FLOAT32_COUNTS + 3, 2.0: 7, 4.0: 1}


@pytest.fixture(scope="module")
def many() -> np.ndarray:
    return np.repeat(np.array(list(counted_values())), list(counted_values().values()))


def exact_moments(counts: dict[float, int], n: int) -> tuple[float, float, float, float]:
    mean = sum(Fraction(value) * count for value, count in counts.items()) / n
    second, third, fourth = (
        sum(
            (Fraction(value) - mean) ** power * count
            for value, count in [*counts.items(), (0, n - sum(counts.values()))]
        )
        / n
        for power in (2, 3, 4)
    )
    spread = math.sqrt(second)
    return float(mean), float(second), float(third) / spread**3, float(fourth / second**2)


@pytest.mark.parametrize("n_zeros", [0, 10**9])
def test_moments_of_more_activations_than_a_float32_counts(many, n_zeros):
    n = len(many) + n_zeros
    assert moments(many, n) == pytest.approx(exact_moments(counted_values(), n), rel=1e-9)


def test_bars_that_are_taller_than_a_float32_counts(many):
    edges, heights = histogram(many, 7)  # 0.5 wide
    assert edges == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0]
    assert heights == [FLOAT32_COUNTS + 3, 0, 0, 7, 0, 0, 1]


def test_quantiles_of_more_activations_than_a_float32_counts(many):
    values, ranks = quantile_knots(many)
    assert ranks[-1] == len(many) == FLOAT32_COUNTS + 11
    n = 3 * len(many)
    at_least = 0
    for value, count in sorted(counted_values().items(), reverse=True):
        at_least += count
        assert count_at_least(value, values, ranks) == pytest.approx(at_least, rel=0.03)
        assert 1 - act_quantile(value, values, ranks, n) == pytest.approx(at_least / n, rel=0.03)
    assert 1 - act_quantile(4.0, values, ranks, n) == pytest.approx(1 / n, rel=1e-5), "the top is exact"
    assert act_quantile(5.0, values, ranks, n) == 1.0


def test_shares_of_intervals_of_more_activations_than_a_float32_counts(many):
    seq_len = 1024
    acts = FeatureActivations.of(3, np.arange(len(many)), many.astype(np.float32), seq_len, 0, 2 * len(many))
    intervals = interval_examples(acts, 8, 1, 0, (5, 5), allow_overlap=False)
    counts = {interval.upper: 0 for interval in intervals} | counted_values()
    assert [i.share for i in intervals] == [counts[i.upper] / (2 * len(many)) for i in intervals]
    assert math.fsum(i.share for i in intervals) == 0.5
    last = intervals[-1].examples[0]
    places = range(FLOAT32_COUNTS + 3)  # of the activations of 0.5
    best = min(places[::997], key=lambda place: oracles.priority(0, 3, oracles.Place(*divmod(place, seq_len))))
    found = oracles.priority(0, 3, oracles.Place(*last))
    assert found <= oracles.priority(0, 3, oracles.Place(*divmod(best, seq_len)))
    assert found < 2**64 / FLOAT32_COUNTS * 40, "the smallest of so many hashes is small"


@pytest.mark.parametrize("first_row", [0, FLOAT32_COUNTS - 2, 2**31 - 2, 2**33 + 1])
def test_examples_of_rows_beyond_what_floats_and_ints_of_32_bits_hold(first_row):
    generator = np.random.default_rng(0)
    grid = np.where(generator.random((40, 6)) < 0.4, generator.choice([0.5, 1.0, 3.0], (40, 6)), 0.0).astype(np.float32)
    places = np.flatnonzero(grid)
    acts = FeatureActivations.of(9, places, grid.reshape(-1)[places], 6, first_row, grid.size)
    active = {oracles.Place(first_row + p // 6, p % 6): float(grid.flat[p]) for p in places.tolist()}
    assert top_examples(acts, 30, (1, 1), allow_overlap=False) == oracles.top_group(active, 30, (1, 1), 6)
    found = interval_examples(acts, 3, 10, 5, (1, 1), allow_overlap=False)
    expected = oracles.interval_groups(active, 3, 10, 5, 9, (1, 1), 6)
    assert [i.examples for i in found] == [i.examples for i in expected]


def store(rows: int, seq: int, positions: list[int], first_row: int) -> ActivationStore:
    """One feature, active at these positions. Which ones are counted has a shape, and takes no memory."""
    return ActivationStore(
        torch.tensor([5]),
        torch.tensor([0, len(positions)]),
        torch.tensor(positions, dtype=torch.int32),
        torch.arange(1, len(positions) + 1, dtype=torch.float32),
        torch.empty(rows, seq, dtype=torch.bool, device="meta"),
        first_row,
    )


def test_merged_stores_of_more_than_two_billion_positions_know_their_places():
    seq = 2**12
    rows = 2**31 // seq
    first = store(rows, seq, [0, FLOAT32_COUNTS + 1, 2**31 - 1], 0)
    second = store(2, seq, [0, 2 * seq - 1], rows)
    merged = merge_stores([first, second])
    positions, values = merged.column(0)
    assert positions.dtype == torch.int64
    assert positions.tolist() == [0, FLOAT32_COUNTS + 1, 2**31 - 1, 2**31, 2**31 + 2 * seq - 1]
    assert values.tolist() == [1.0, 2.0, 3.0, 1.0, 2.0]
    assert merged.counted.shape == (rows + 2, seq)
    acts = FeatureActivations.of(5, positions.numpy(), values.numpy(), seq, 0, merged.counted.numel())
    places = [divmod(place, seq) for place in positions.tolist()]
    assert list(zip(acts.rows.tolist(), acts.positions.tolist(), strict=True)) == places
    assert top_examples(acts, 3, (5, 5), allow_overlap=False) == [places[2], places[1], places[4]]


@pytest.mark.parametrize(("n_positions", "dtype"), [(48, torch.int32), (2**31 - 8, torch.int32), (2**31, torch.int64)])
def test_positions_are_as_small_as_they_can_be(n_positions, dtype):
    rows = n_positions // 8
    merged = merge_stores([store(rows - 1, 8, [1, 23], 0), store(1, 8, [7], rows - 1)])
    assert merged.column(0)[0].dtype == dtype
    assert merged.column(0)[0].tolist() == [1, 23, n_positions - 1]


# --- correlations ------------------------------------------------------------------------------------------------------


def exact_pearson(x: list[float], y: list[float], counts: list[int]) -> float | None:
    """In fractions: no offset is too large for it. Each pair of values is there so often."""
    n = sum(counts)
    fx, fy = [Fraction(v) for v in x], [Fraction(v) for v in y]
    mean_x = sum(v * c for v, c in zip(fx, counts, strict=True)) / n
    mean_y = sum(v * c for v, c in zip(fy, counts, strict=True)) / n
    xx = sum((v - mean_x) ** 2 * c for v, c in zip(fx, counts, strict=True))
    yy = sum((v - mean_y) ** 2 * c for v, c in zip(fy, counts, strict=True))
    xy = sum((a - mean_x) * (b - mean_y) * c for a, b, c in zip(fx, fy, counts, strict=True))
    if not xx or not yy:
        return None
    squared = xy * xy / (xx * yy)
    return math.copysign(math.sqrt(squared), xy)


def columns_at_the_edge(n: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    """A sparse signal, and columns to correlate it with."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n, generator=generator) * (torch.rand(n, generator=generator) < 0.5)
    noise = torch.rand(n, generator=generator)
    one = torch.zeros(n)
    one[int(x.argmax())] = 1.0
    columns = [
        torch.zeros(n),  # constant
        torch.full((n,), 0.1),  # constant, and no sum of it is exact
        x.clone(),
        -x,
        x * 1e-30,
        x * 1e30,
        x.clone(),
        1e6 + x,  # a step of float32 is 0.06 there
        1e6 - x,
        3e4 + 0.01 * noise,
        one,
        1e6 + one,
        1e6 - one,
        torch.full((n,), 1e6),
    ]
    return x, torch.stack(columns, 1)


@pytest.mark.parametrize("batch", [1, 7, 60])
def test_correlations_of_columns_at_the_edge_are_those_of_fractions(batch):
    x, y = columns_at_the_edge()
    running = WithDense(1, y.shape[1], torch.device("cpu"))
    for start in range(0, len(x), batch):
        running.add(SparseColumns.of(x[start : start + batch, None]), y[start : start + batch])
    co = running.co_moments(SparseColumns.of(x[:, None]).moments())
    (found,) = most_correlated(co, np.arange(y.shape[1]), 50)
    exact = [exact_pearson(x.tolist(), y[:, i].tolist(), [1] * len(x)) for i in range(y.shape[1])]
    expected = {i: r for i, r in enumerate(exact) if r is not None}
    assert sorted(found.indices) == sorted(expected), "constant columns, and only they, are left out"
    assert dict(zip(found.indices, found.pearson, strict=True)) == pytest.approx(expected, abs=1.1e-6)
    assert found.indices[:4] == [2, 4, 5, 6], "ties go to the lower index"
    assert found.pearson[:4] == [1.0] * 4
    assert (found.indices[-1], found.pearson[-1]) == (3, -1.0)


@pytest.mark.parametrize("size", [1, 3, 50])
def test_a_table_is_as_long_as_there_are_columns(size):
    x, y = columns_at_the_edge()
    co = co_moments(SparseColumns.of(x[:, None]), y[:, 2:4])
    (found,) = most_correlated(co, np.array([7, 5]), size)
    assert found.indices == [7, 5][:size]
    (none,) = most_correlated(co, np.array([7, 5]), size, np.array([7]))
    assert none.indices == [5]


@pytest.mark.parametrize("sparse", [True, False])
def test_co_moments_of_more_positions_than_a_float32_counts(sparse):
    """The same positions again and again, by merging; then some others, whose means are elsewhere."""
    x, y = columns_at_the_edge()
    y = y[:, [2, 4, 5, 10]] if sparse else y
    doublings = 19
    one = co_moments(SparseColumns.of(x[:, None]), SparseColumns.of(y) if sparse else y)
    for _ in range(doublings):
        one = one.merged(one)
    late_x, late_y = x[:9] * 3, y[:9] * 0.5
    one = one.merged(co_moments(SparseColumns.of(late_x[:, None]), SparseColumns.of(late_y) if sparse else late_y))
    counts = [2**doublings] * len(x) + [1] * 9
    assert one.n == sum(counts) > FLOAT32_COUNTS
    all_x, all_y = torch.cat([x, late_x]).tolist(), torch.cat([y, late_y]).T.tolist()
    for i, column in enumerate(all_y):
        mean = sum(Fraction(v) * c for v, c in zip(column, counts, strict=True)) / one.n
        squares = sum((Fraction(v) - mean) ** 2 * c for v, c in zip(column, counts, strict=True))
        assert float(one.y.mean[i]) == pytest.approx(float(mean), rel=1e-12)
        assert float(one.y.squares[i]) == pytest.approx(float(squares), rel=1e-9, abs=1e-20)
    (found,) = most_correlated(one, np.arange(len(all_y)), 50)
    expected = {i: exact_pearson(all_x, column, counts) for i, column in enumerate(all_y)}
    expected = {i: r for i, r in expected.items() if r is not None}
    assert dict(zip(found.indices, found.pearson, strict=True)) == pytest.approx(expected, abs=1.1e-6)


# --- quantile knots ----------------------------------------------------------------------------------------------------

SHAPES = {
    "spread": lambda g, n: g.exponential(1.0, n) + 1e-3,
    "ties at the top": lambda g, n: np.minimum(g.exponential(1.0, n) + 1e-3, 1.5),
    "ties in the tail": lambda g, n: np.maximum(g.exponential(1.0, n), 0.75),
    "ties everywhere": lambda g, n: g.choice([0.1, 0.2, 0.3000001, 0.3000002, 7.0], n),
    "one value": lambda g, n: np.full(n, 0.1234567),
    "over sixty powers of ten": lambda g, n: 10.0 ** g.uniform(-30, 30, n),
    "subnormal": lambda g, n: g.integers(1, 50, n) * 2.0**-149,
}


@pytest.mark.parametrize("n", [1, 2, 31, 32, 33, 34, 1000, 10**6])
@pytest.mark.parametrize("shape", SHAPES)
def test_quantiles_at_between_above_and_below_the_knots(shape, n):
    raw = SHAPES[shape](np.random.default_rng(n), n).astype(np.float32).astype(np.float64)
    rising = np.sort(raw)
    values, ranks = quantile_knots(raw)
    knots = np.array(values)
    at = rising[n - np.array(ranks)].astype(np.float32)  # the unrounded ones
    beside = [np.nextafter(at, np.float32(edge)) for edge in (0, np.inf)]
    probes = np.concatenate([at, *beside, rising[:: max(1, n // 500)], [rising[-1] * 1.5], [rising[0] / 2]])
    probes = np.unique(probes.astype(np.float64))
    probes = probes[probes > 0]
    true = n - np.searchsorted(rising, probes, side="left")
    found = np.array([count_at_least(value, values, ranks) for value in probes.tolist()])
    below = probes < rising[0]
    assert (np.abs(found - true)[~below] <= 0.03 * true[~below]).all()
    assert (found[true <= EXACT_KNOTS] == true[true <= EXACT_KNOTS]).all()
    assert (found[below] == n).all()
    assert (found[probes > rising[-1]] == 0).all()
    assert (np.diff(found) <= 0).all(), "a larger activation never has more at or above it"
    assert (np.diff(knots) <= 0).all()
    assert len(values) < 300
    quantiles = [act_quantile(value, values, ranks, 10 * n) for value in probes.tolist()]
    assert quantiles == sorted(quantiles)
    assert 0.0 <= quantiles[0] <= quantiles[-1] <= 1.0


def test_the_quantile_of_a_feature_that_is_active_everywhere_begins_at_zero():
    raw = np.arange(1.0, 2001.0)
    values, ranks = quantile_knots(raw)
    assert act_quantile(1.0, values, ranks, 2000) == 0.0
    assert act_quantile(2000.0, values, ranks, 2000) == pytest.approx(1 - 1 / 2000, abs=1e-9)


# --- a vocabulary of a quarter million ---------------------------------------------------------------------------------

D_VOCAB = 2**18


def large_vocabulary(n_ctx: int = 16) -> object:
    return hf_models.native("RMS", d_vocab=D_VOCAB, n_layers=1, n_ctx=n_ctx)


def test_a_vocabulary_of_a_quarter_million(tmp_path):
    model, encoder, hook_point = large_vocabulary(), brute_force.random_encoder(24, 2), "blocks.0.mlp.hook_post"
    tokens = random_tokens(3, 8, D_VOCAB)
    tokens[0, 3:5] = D_VOCAB - 1
    data = fetch(encoder, model, tokens, hook_point=hook_point, buffer=None, n_bins=50)
    article = check_features(data, tmp_path)[0]
    assert f"of {D_VOCAB:,} tokens" in text_of(article)
    final = brute_force.hook_values(model, tokens, "blocks.0.hook_resid_post")
    acts = brute_force.activations(encoder, brute_force.hook_values(model, tokens, hook_point))
    weight = (model.ln_final.weight.detach().double()[:, None] * model.W_U.detach().double()).numpy()
    shown = set()
    for index, feature in data.items():
        d = brute_force.direction(model, encoder, hook_point, index)
        expected = d.double().numpy() @ weight
        expected -= expected.mean()
        logits = feature.logits
        for ids, values, order in (
            (logits.top_token_ids, logits.top_logits, np.argsort(-expected)),
            (logits.bottom_token_ids, logits.bottom_logits, np.argsort(expected)),
        ):
            assert values == pytest.approx(expected[order[:10]].tolist(), rel=1e-4)
            assert expected[ids].tolist() == pytest.approx(values, rel=1e-4)
        assert sum(logits.histogram.bar_heights) == D_VOCAB
        low, high = logits.histogram.bar_edges[0], logits.histogram.bar_edges[-1]
        assert (low, high) == (pytest.approx(expected.min(), rel=1e-4), pytest.approx(expected.max(), rel=1e-4))
        for sequence in (s for group in feature.sequences.groups[:1] for s in group.sequences[:2]):
            shown |= set(sequence.token_ids)
            for at in range(1, 8):
                change = brute_force.change_of_log_probs(
                    model, final[sequence.row, at - 1], float(acts[sequence.row, at - 1, index]), d
                )
                assert sequence.loss_contribution[at] == pytest.approx(-float(change[sequence.token_ids[at]]), abs=2e-4)
    assert set(data.vocab) >= shown
    prompt = get_prompt_data(encoder, model, [0, D_VOCAB - 1, 5, D_VOCAB - 1], data)
    check_drawn(prompt, tmp_path, score_name="loss_effect")
    assert str(D_VOCAB - 1) in prompt.get_html()


MEASURE = """
import resource, sys
import brute_force, test_edges_large
from models import fetch, random_tokens
from sae_vis import get_prompt_data
model, seq = test_edges_large.large_vocabulary(512), int(sys.argv[1])
tokens = random_tokens(2, seq, test_edges_large.D_VOCAB)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
encoder = brute_force.random_encoder(24, 2)
data = fetch(encoder, model, tokens, hook_point="blocks.0.mlp.hook_post", first_group_size=2, n_groups=0)
get_prompt_data(encoder, model, tokens[0], data, num_top_features=2)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count memory in other units")
def test_long_rows_of_a_large_vocabulary_take_no_gigabytes():
    """The logits of two rows of 512 tokens are 1.1 GB; their closed form is checked on a few positions only."""
    tests = Path(__file__).parent
    path = os.pathsep.join([str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, "512"],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(result.stdout.split()[-1]) < 900, "MiB"
