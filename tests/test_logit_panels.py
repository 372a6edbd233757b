"""The logit panels and the histograms of several features at a time against those of one, and sorted Python numbers."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_vis import FeatureVisParams
from sae_vis._assemble import LogitPanels
from sae_vis._statistics import histogram, histograms, moments, moments_of_rows
from sae_vis.utils_fns import round_significant


def check(weights: torch.Tensor, n_logits: int, n_bins: int = 50) -> None:
    before = weights.clone()
    panels = LogitPanels.of(weights, FeatureVisParams(n_logits=n_logits, n_bins=n_bins))
    assert torch.equal(weights, before)
    for index, row in enumerate(weights.tolist()):
        panel = panels.at(index)
        assert panel is not None
        assert panel.weights.tolist() == row
        assert panel.top == sorted(range(len(row)), key=lambda token: (-row[token], token))[:n_logits]
        assert panel.bottom == sorted(range(len(row)), key=lambda token: (row[token], token))[:n_logits]
        assert (panel.edges, panel.heights) == histogram(weights[index].double().numpy(), n_bins)
        shown = [0, len(row) - 1]
        data = panel.data(shown)
        assert data.top_token_ids == panel.top
        assert data.bottom_token_ids == panel.bottom
        assert data.top_logits == [round_significant(row[token], 5) for token in panel.top]
        assert data.bottom_logits == [round_significant(row[token], 5) for token in panel.bottom]
        assert data.shown_logits == {token: round_significant(row[token], 5) for token in shown}


@pytest.mark.parametrize("d_vocab", [1, 2, 63, 64, 65, 130, 1000])
@pytest.mark.parametrize("n_logits", [1, 10, 64, 5000])
def test_the_panels_of_several_features_are_those_of_each(d_vocab, n_logits):
    weights = torch.randn(4, d_vocab, generator=torch.Generator().manual_seed(0))
    weights[1] = weights[1].round()  # ties, and zeros of both signs
    weights[2] = -3.0
    weights[3, ::2] = weights[3, 0]
    check(weights, n_logits)


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 200), st.integers(1, 30), st.integers(1, 5))
def test_equal_weights_stand_in_the_order_of_the_token_ids(seed, d_vocab, n_logits, kinds):
    generator = torch.Generator().manual_seed(seed)
    check(torch.randint(-kinds, kinds, (2, d_vocab), generator=generator) / 4, n_logits, 3)


def test_without_logit_weights_there_are_no_panels():
    assert LogitPanels.of(None, FeatureVisParams()).at(3) is None


@pytest.mark.parametrize("n_bins", [1, 2, 7, 50])
@pytest.mark.parametrize("width", [1, 2, 64, 1000])
@pytest.mark.parametrize("constants", [True, False])
def test_histograms_of_many_rows_are_those_of_each(n_bins, width, constants):
    generator = np.random.default_rng(width)
    rows = generator.normal(size=(9, width)) * 10.0 ** generator.integers(-30, 30, size=(9, 1))
    rows[1] = 3.25  # a constant
    rows[2] = np.rint(generator.normal(size=width) * 3)  # on the edges of bins, and zeros of both signs
    rows[3] += 1e6
    rows[4] = 2e6
    if not constants:
        rows = np.delete(rows, [1, 4], axis=0)
    values = rows.astype(np.float32)
    edges, heights = histograms(torch.from_numpy(values), n_bins)
    assert len(edges) == len(heights) == len(values)
    for row, own_edges, own_heights in zip(values, edges, heights, strict=True):
        assert (own_edges, own_heights) == histogram(row.astype(np.float64), n_bins)
        assert sum(own_heights) == width


@pytest.mark.parametrize("n_bins", [1, 3, 10, 49])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_on_the_edges_of_bins_are_in_the_bins_above_and_the_largest_is_in_the_last(n_bins, dtype):
    generator = np.random.default_rng(n_bins)
    for low, high in [(0.0, 1.0), (-3.0, 7.0), (-0.1, 0.2), (1e-42, 1e-40), (-1e30, 3e30)]:
        edges = np.linspace(dtype(low), dtype(high), n_bins + 1).astype(dtype)
        around = [np.nextafter(edges[1:-1], dtype(end)) for end in (low, high)]  # a bit below, a bit above
        values = generator.permutation(np.concatenate([edges, edges, *around]))
        found_edges, heights = histogram(values, n_bins)
        assert found_edges == np.linspace(float(values.min()), float(values.max()), n_bins + 1).tolist()
        bars = [oracles.bar_of(value, found_edges) for value in values.tolist()]
        assert heights == [bars.count(bar) for bar in range(n_bins)]


def test_no_rows_have_no_histograms():
    assert histograms(torch.zeros(0, 5), 4) == ([], [])


@pytest.mark.parametrize("d_vocab", [1, 2, 65, 1000])
def test_the_shape_of_the_logit_weights_is_that_of_exact_fractions(d_vocab):
    weights = torch.randn(3, d_vocab, generator=torch.Generator().manual_seed(1)).exp()
    weights[1] = 0.1  # a constant, whose mean may be rounded
    weights[2] = 1000.0 + 0.001 * weights[2]
    panels = LogitPanels.of(weights, FeatureVisParams())
    for index, row in enumerate(weights.tolist()):
        panel = panels.at(index)
        assert panel is not None
        data, expected = panel.data([0]), oracles.moments(row)
        for found, exact in ((data.skewness, expected.skewness), (data.kurtosis, expected.kurtosis)):
            assert found == (None if exact is None else pytest.approx(exact, rel=5e-5, abs=1e-12))


@pytest.mark.parametrize("width", [1, 2, 65, 3000])
@pytest.mark.parametrize("cached", [1, 7000, 2**18])
def test_moments_of_many_rows_have_the_bits_of_each(width, cached, monkeypatch):
    generator = np.random.default_rng(width)
    rows = generator.normal(size=(9, width)) * 10.0 ** generator.integers(-30, 30, size=(9, 1))
    rows[3] = 0.1  # a constant, whose mean may be rounded
    rows[5] += 1e6
    values = rows.astype(np.float32)
    monkeypatch.setattr("sae_vis._statistics.CACHED", cached)
    assert moments_of_rows(values) == [moments(row.astype(np.float64), width) for row in values]
