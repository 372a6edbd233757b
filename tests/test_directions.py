"""The map of decoder directions against plain linear algebra, and what it must not depend on."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from models import encoder_for, fetch, fetch_planted, planted, random_tokens

from sae_vis import AutoEncoder, FeatureVisParams, InputError, MultiFeatureData, get_feature_data
from sae_vis import _directions as directions
from sae_vis._directions import DirectionMap, main_axes, sample_size
from sae_vis._features_page import overview_of
from sae_vis._overview import nearest_direction, twin


def encoder_writing(rows: torch.Tensor) -> AutoEncoder:
    n, d = rows.shape
    weights = {"W_enc": torch.zeros(d, n), "b_enc": torch.zeros(n), "W_dec": rows, "b_dec": torch.zeros(d)}
    return AutoEncoder.from_weights(weights, apply_b_dec_to_input=False)


def spread(n: int, d: int, seed: int = 0) -> torch.Tensor:
    """Rows that vary along few axes more than along the others."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator) * torch.logspace(1, -1, d) + 0.3


def plain_places(rows: torch.Tensor) -> list[list[float]]:
    """By the singular vectors of the centred unit rows, one row after the other."""
    unit = np.array([[value / math.sqrt(sum(v * v for v in row)) for value in row] for row in rows.tolist()])
    centred = unit - unit.mean(0)
    axes = np.linalg.svd(centred)[2][:2]
    axes = [axis * np.sign(axis[np.abs(axis).argmax()]) for axis in axes]
    return [[round(float(axis @ row), 5) for axis in axes] for row in centred]


@pytest.mark.parametrize(("n", "d"), [(40, 12), (12, 40), (300, 7), (2, 9), (64, 64)])
def test_the_map_is_the_projection_on_the_singular_vectors_of_the_whole_dictionary(n, d):
    rows = spread(n, d)
    found = DirectionMap(encoder_writing(rows), "pca").of(torch.arange(n))
    assert np.abs(np.array(found) - np.array(plain_places(rows))).max() < 2e-5


@pytest.mark.parametrize(("n", "d"), [(40, 12), (12, 40), (2, 9)])
def test_the_share_of_the_variance_is_that_of_the_two_largest_eigenvalues(n, d):
    rows = spread(n, d).double().numpy()
    values = np.linalg.eigvalsh(np.cov((rows / np.linalg.norm(rows, axis=1, keepdims=True)).T))
    expected = values[-2:].sum() / values.sum()
    assert DirectionMap(encoder_writing(spread(n, d)), "pca").variance == pytest.approx(expected, abs=2e-5)
    assert DirectionMap(encoder_writing(torch.ones(n, d)), "pca").variance is None


def test_the_share_is_kept_with_the_data_and_told_below_the_map():
    data = fetch_planted(torch.rand(2, 5, 4, generator=torch.Generator().manual_seed(0)))
    assert data.provenance.map_variance == 0.66667  # four directions, each orthogonal to the others
    assert data.provenance.map_sample is None
    assert told_of_the_map(data).startswith(
        "By the two main axes of 4 decoder directions (PCA, 66.7 % of their variance)"
    )


def told_of_the_map(data):
    return overview_of(data, list(data))._meta["map"]


def test_a_map_whose_axes_come_from_a_part_of_the_dictionary_says_so(monkeypatch):
    monkeypatch.setattr(directions, "MOST_WORK", sum((3 * 3 * 4, directions.EIGEN_WORK * 3**3)))  # of three of them
    data = fetch_planted(torch.rand(2, 5, 4, generator=torch.Generator().manual_seed(0)))
    assert data.provenance.map_sample == 3
    assert told_of_the_map(data).startswith(
        "By the two main axes of 3 of the 4 decoder directions (PCA of an evenly spaced sample, 100 % of its variance)"
    )


def test_the_axes_of_a_large_dictionary_are_those_of_an_evenly_spaced_part(monkeypatch):
    monkeypatch.setattr(directions, "MOST_WORK", 30_000)
    rows = spread(100, 12)
    n = sample_size(100, 12)
    assert 2 < n < 100
    sample = rows[[i * 100 // n for i in range(n)]].double().numpy()
    unit = sample / np.linalg.norm(sample, axis=1, keepdims=True)
    _, vectors = np.linalg.eigh(np.cov(unit.T))
    expected = (rows.double().numpy()[5] / rows[5].double().norm().item() - unit.mean(0)) @ vectors[:, [-1, -2]]
    mapped = DirectionMap(encoder_writing(rows), "pca")
    assert mapped.sample == n
    found = mapped.of(torch.tensor([5]))[0]
    assert np.abs(found) == pytest.approx(np.abs(expected), abs=2e-5)


@pytest.mark.parametrize(
    ("d_hidden", "d_out"), [(1, 1), (2, 5000), (256, 64), (16384, 2048), (24576, 768), (10**6, 8192)]
)
def test_the_part_is_as_large_as_the_work_allows(d_hidden, d_out):
    def work(n):
        return n * min(n, d_out) * d_out + directions.EIGEN_WORK * min(n, d_out) ** 3

    n = sample_size(d_hidden, d_out)
    assert min(2, d_hidden) <= n <= d_hidden
    assert n <= 2 or work(n) <= directions.MOST_WORK
    assert n == d_hidden or work(n + 1) > directions.MOST_WORK


def test_the_sign_of_an_axis_is_that_of_its_largest_entry_and_does_not_flip_with_the_rows():
    rows = spread(50, 6).double()
    centred = rows - rows.mean(0)
    for axis in main_axes(centred):
        assert float(axis[axis.abs().argmax()]) > 0
    for some, other in zip(main_axes(centred), main_axes(-centred), strict=True):
        assert torch.allclose(some, other)
    tied = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [3.0, -3.0], [-3.0, 3.0]], dtype=torch.float64)
    assert main_axes(tied)[0].tolist() == pytest.approx([0.5**0.5, -(0.5**0.5)])
    assert main_axes(tied)[1].tolist() == [0.0, 0.0]  # nothing varies along it


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_a_row_that_is_no_direction_has_no_place_and_moves_no_other(bad):
    rows = spread(20, 6)
    whole = DirectionMap(encoder_writing(torch.cat([rows[:9], rows[10:]])), "pca").of(torch.arange(19))
    rows[9] = bad
    found = DirectionMap(encoder_writing(rows), "pca").of(torch.arange(20))
    assert found[9] is None
    assert [place for place in found if place] == whole


@pytest.mark.parametrize(("rows", "kind"), [(spread(1, 4), "pca"), (torch.zeros(5, 4), "pca"), (spread(9, 4), None)])
def test_without_two_directions_or_a_kind_there_is_no_map(rows, kind):
    assert DirectionMap(encoder_writing(rows), kind).of(torch.arange(len(rows))) == [None] * len(rows)


def test_a_place_has_the_same_bits_whatever_else_is_asked_for(monkeypatch):
    rows = spread(700, 33)
    encoder = encoder_writing(rows)
    whole = DirectionMap(encoder, "pca").of(torch.arange(700))
    monkeypatch.setattr(directions, "TILE", 3)
    some = torch.tensor([0, 5, 6, 299, 699])
    mapped = DirectionMap(encoder, "pca")
    assert mapped.of(some) == [whole[i] for i in some.tolist()]
    assert [mapped.of(torch.tensor([i]))[0] for i in some.tolist()] == [whole[i] for i in some.tolist()]


def test_the_features_know_their_places_in_memory_and_in_a_folder(tmp_path):
    acts = torch.rand(4, 6, 5, generator=torch.Generator().manual_seed(0))
    encoder, model, tokens = planted(acts)
    encoder.W_dec.data = spread(5, encoder.d_in)
    expected = DirectionMap(encoder, "pca").of(torch.arange(5))
    data = fetch(encoder, model, tokens, ablation=None)
    assert [(f.direction.x, f.direction.y) for f in data.values()] == expected
    params = FeatureVisParams(hook_point=data.params.hook_point, verbose=False, ablation=None, ignore_tokens=())
    folder = get_feature_data(encoder, model, tokens, params, out_dir=tmp_path / "run")
    assert {i: folder[i].direction for i in folder} == {i: data[i].direction for i in data}
    data.save_json(tmp_path / "features.json")
    assert MultiFeatureData.load_json(tmp_path / "features.json")[3].direction == data[3].direction


def test_no_map_is_made_where_none_is_asked_for():
    data = fetch_planted(torch.rand(2, 4, 3), feature_map=None)
    assert [feature.direction for feature in data.values()] == [None] * 3


def test_a_place_that_is_not_finite_is_refused():
    place = fetch_planted(torch.rand(2, 4, 3))[0].direction
    with pytest.raises(InputError, match="DirectionData: y"):
        dataclasses.replace(place, y=math.nan)


def test_without_umap_learn_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(InputError, match=r"pip install 'sae-vis\[map\]'.*feature_map='pca'"):
        fetch_planted(torch.rand(2, 4, 3), feature_map="umap")


def _need_umap() -> None:
    if importlib.util.find_spec("umap") is None:
        pytest.skip("umap-learn is not installed: pip install 'sae-vis[map]'")


@pytest.mark.slow
def test_umap_keeps_clusters_apart_and_gives_the_same_map_each_time():
    _need_umap()
    centres = torch.eye(16)[:2].repeat_interleave(40, 0)
    encoder = encoder_for(16, 80)
    encoder.W_dec.data = centres + 0.05 * torch.randn(80, 16, generator=torch.Generator().manual_seed(0))
    encoder.W_dec.data[7] = 0.0
    _, model, tokens = planted(torch.rand(2, 4, 16))
    states = torch.random.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002 - what must not change
    found = fetch(encoder, model, tokens, feature_map="umap", ablation=None)
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    places = [found[i].direction for i in range(80)]
    assert places[7] is None
    points = np.array([(p.x, p.y) for p in places if p])
    first, second = points[:39], points[39:]
    between = np.linalg.norm(first.mean(0) - second.mean(0))
    assert between > 2 * max(np.linalg.norm(part - part.mean(0), axis=1).max() for part in (first, second))
    again = DirectionMap(encoder, "umap").of(torch.tensor([3, 60]))
    assert again == [(places[i].x, places[i].y) for i in (3, 60)]


@pytest.mark.parametrize("n", [3, 4, 20])
@pytest.mark.slow
def test_umap_of_few_features(n):
    _need_umap()
    found = DirectionMap(encoder_writing(spread(n, 6)), "umap").of(torch.arange(n))
    assert (None in found) == (n == 3)


def test_tokens_do_not_move_the_map():
    encoder, model, tokens = planted(torch.rand(4, 6, 5))
    one, other = (fetch(encoder, model, some, ablation=None) for some in (tokens, random_tokens(3, 5, 20)))
    assert [one[i].direction for i in one] == [other[i].direction for i in other]


# --- duplicates ----------------------------------------------------------------------------------------------------


def test_a_twin_has_the_largest_cosine_of_the_dictionary_if_it_is_larger_than_0_95():
    encoder, model, tokens = planted(torch.rand(6, 8, 12, generator=torch.Generator().manual_seed(0)))
    rows = torch.randn(12, encoder.d_in, generator=torch.Generator().manual_seed(1))
    rows[7] = 2 * rows[3] + 0.01 * rows[5]
    rows[9] = -rows[3]
    rows[10] = rows[11] = rows[0]  # ties go to the lower id
    encoder.W_dec.data = rows
    expected = []
    for i, own in enumerate(rows.double().tolist()):
        cosines = [
            -2.0
            if i == j
            else sum(map(math.prod, zip(own, other, strict=True))) / math.hypot(*own) / math.hypot(*other)
            for j, other in enumerate(rows.double().tolist())
        ]
        largest = max(round(cosine, 6) for cosine in cosines)
        expected.append(
            next(j for j, cosine in enumerate(cosines) if round(cosine, 6) == largest) if largest > 0.95 else None
        )
    assert expected == [10, None, None, 7, None, None, None, 3, None, None, 0, 0]
    every = fetch(encoder, model, tokens, ablation=None)
    assert [twin(every[i]) for i in range(12)] == expected
    few = fetch(
        encoder, model, tokens, ablation=None, features=(3, 11)
    )  # of the whole dictionary, whatever is asked for
    assert [twin(few[i]) for i in few] == [7, 0]


@pytest.mark.parametrize(("cosine", "expected"), [(0.95, None), (0.950001, 4), (None, None)])
def test_a_duplicate_needs_more_than_0_95(cosine, expected):
    nearest = None if cosine is None else SimpleNamespace(indices=[4, 5], cosine=[cosine, 0.3])
    assert twin(SimpleNamespace(neighbours=SimpleNamespace(nearest=nearest))) == expected
    assert nearest_direction(SimpleNamespace(neighbours=None)) == (None, None)
    assert twin(SimpleNamespace()) is None
