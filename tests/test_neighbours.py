"""Neighbours of a feature, the shares of its intervals and near-duplicate examples, against loops over Python numbers."""

from __future__ import annotations

import math
import random
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import encoder_for, fetch, fetch_planted, native_model, random_tokens
from torch import Tensor

from sae_vis import (
    CoactiveData,
    FeatureVisParams,
    InputError,
    LossShareData,
    NearestData,
    _correlations,
    _near_duplicates,
    _neighbours,
)
from sae_vis._correlations import CoMoments, SparseColumns, co_moments, co_moments_by_tile, most_coactive
from sae_vis._near_duplicates import near_duplicates
from sae_vis._neighbours import MANY, SPARE, decoder_norms, nearest_directions
from sae_vis._shares import Predicted, loss_shares
from sae_vis._shown import EffectAt, Window
from sae_vis._statistics import Example

# --- nearest directions ------------------------------------------------------------------------------------------


def plain_nearest(rows: list[list[float]], feature: int, size: int) -> list[tuple[int, float]]:
    def length(row: list[float]) -> float:
        return math.sqrt(math.fsum(v * v for v in row))

    own = rows[feature]
    found = []
    for other, row in enumerate(rows):
        if other != feature and length(row) and length(own):
            cosine = math.fsum(a * b for a, b in zip(own, row, strict=True)) / length(own) / length(row)
            found.append((other, round(min(1.0, max(-1.0, cosine)), 6)))
    return sorted(found, key=lambda pair: (-pair[1], pair[0]))[:size]


def directions(n: int, width: int, seed: int) -> Tensor:
    """Random ones, with copies, opposites and multiples, which tie, a row of zeros and one of another scale."""
    rows = torch.randn(n, width, generator=torch.Generator().manual_seed(seed))
    rows[n // 2], rows[n // 3], rows[n - 1], rows[0] = rows[1], -rows[1], 3 * rows[1], 0.0
    rows[2] *= 1e-30
    return rows


@settings(max_examples=30)
@given(
    st.integers(5, 40),
    st.integers(1, 9),
    st.integers(0, 10**6),
    st.sampled_from([1, 3, 100]),
    st.sampled_from([1, 2**32]),
    st.sampled_from([1, 64]),
)
def test_the_nearest_directions_are_those_of_loops_whatever_the_tiles(n, width, seed, size, memory_bytes, many):
    rows = directions(n, width, seed)
    asked = torch.tensor(sorted(random.Random(seed).sample(range(n), min(n, 4))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_neighbours, "MANY", many)  # 1: nearly every row goes the way of rows with many ties
        patch.setattr(_neighbours, "TILE_BYTES", 4 * n * 32 if memory_bytes == 1 else 2**26)
        found = nearest_directions(lambda ids: rows[ids], asked, rows[asked], n, size, memory_bytes)
    listed = rows.double().tolist()
    for feature, nearest in zip(asked.tolist(), found, strict=True):
        expected = plain_nearest(listed, feature, size)
        assert list(zip(nearest.indices, nearest.cosine, strict=True)) == expected


def test_a_dictionary_of_many_tiles_gives_what_one_tile_gives():
    rows = directions(300, 5, 0)
    ids = torch.arange(300)
    whole = nearest_directions(lambda some: rows[some], ids, rows, 300, 3)
    assert nearest_directions(lambda some: rows[some], ids, rows, 300, 3, memory_bytes=1) == whole


def test_features_asked_for_in_several_pieces_keep_their_neighbours(monkeypatch):
    rows = directions(100, 5, 0)
    ids = torch.arange(100)
    whole = nearest_directions(lambda some: rows[some], ids, rows, 100, 3)
    monkeypatch.setattr(_neighbours, "TILE_BYTES", 1)  # pieces of 32
    assert nearest_directions(lambda some: rows[some], ids, rows, 100, 3) == whole


def test_orthogonal_directions_tie_to_the_lower_index():
    eye = torch.eye(300)
    found = nearest_directions(lambda some: eye[some], torch.arange(300), eye, 300, 2)
    assert found[0] == ([1, 2], [0.0, 0.0])
    assert found[1] == ([0, 2], [0.0, 0.0])
    assert found[299] == ([0, 1], [0.0, 0.0])


@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("copies", [2, 10, 17, 5 + SPARE, 5 + SPARE + 1, 5 + SPARE + 2, MANY + 1, MANY + 2, 300])
def test_however_many_copies_a_direction_has_the_lowest_are_found(copies, size):
    rows = torch.randn(400, 4, generator=torch.Generator().manual_seed(copies))
    of_one = torch.randperm(400, generator=torch.Generator().manual_seed(0))[:copies]
    rows[of_one] = rows[of_one[0]] * torch.linspace(0.5, 2.0, copies)[:, None]
    asked = torch.cat([of_one[:2], torch.arange(10)]).unique()
    found = nearest_directions(lambda some: rows[some], asked, rows[asked], 400, size)
    listed = rows.double().tolist()
    for feature, nearest in zip(asked.tolist(), found, strict=True):
        assert list(zip(nearest.indices, nearest.cosine, strict=True)) == plain_nearest(listed, feature, size)


@pytest.mark.parametrize("n", [1, 2, SPARE, 3 + SPARE, 3 + SPARE + 1])
def test_dictionaries_of_few_directions_or_none_have_all_of_their_neighbours(n):
    rows = torch.randn(n, 3, generator=torch.Generator().manual_seed(n))
    ids = torch.arange(n)
    found = nearest_directions(lambda some: rows[some], ids, rows, n, 3)
    for feature, nearest in enumerate(found):
        expected = plain_nearest(rows.double().tolist(), feature, 3)
        assert list(zip(nearest.indices, nearest.cosine, strict=True)) == expected
    zeros = torch.zeros(n, 3)
    assert nearest_directions(lambda some: zeros[some], ids, zeros, n, 3) == [([], [])] * n


def test_rows_that_are_where_there_is_no_float64_are_looked_at_on_the_cpu():
    rows = directions(20, 4, 0)
    elsewhere = SimpleNamespace(device=torch.device("mps"), cpu=lambda: rows)
    ids = torch.arange(20)
    assert torch.equal(decoder_norms(elsewhere), decoder_norms(rows))
    found = nearest_directions(lambda some: elsewhere, ids, SimpleNamespace(**vars(elsewhere), shape=rows.shape), 20, 3)
    assert found == nearest_directions(lambda some: rows[some], ids, rows, 20, 3)


def test_float32_alone_would_rank_wrongly_and_is_only_the_first_look():
    """Cosines that differ in the sixth decimal, with rounding errors as large: the exact order is found."""
    angles = torch.arange(1, 60, dtype=torch.float64) * 2e-3
    rows = torch.stack([angles.cos(), angles.sin()], 1)
    rows = torch.cat([torch.tensor([[1.0, 0.0]], dtype=torch.float64), rows]).float()
    found = nearest_directions(lambda some: rows[some], torch.tensor([0]), rows[:1], len(rows), 10)
    assert found[0].indices == [index for index, _ in plain_nearest(rows.double().tolist(), 0, 10)]


def test_a_direction_that_is_broken_is_left_out():
    rows = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    rows[3], rows[4] = torch.inf, torch.nan
    found = nearest_directions(lambda some: rows[some], torch.tensor([1]), rows[1:2], 6, 10)
    assert sorted(found[0].indices) == [0, 2, 5]


@pytest.mark.parametrize("size", [1e-37, 1e-20, 1e-12, 1e12, 1e20, 1e37])
def test_the_length_of_a_direction_does_not_matter(size):
    rows = directions(40, 6, 3)
    asked = torch.tensor([2, 5, 11])
    longer = rows.clone()
    longer[1::2] *= size
    found, expected = (nearest_directions(lambda ids, of=of: of[ids], asked, of[asked], 40, 5) for of in (longer, rows))
    assert [nearest.indices for nearest in found] == [nearest.indices for nearest in expected]
    assert [nearest.cosine for nearest in found] == [pytest.approx(nearest.cosine, abs=2e-6) for nearest in expected]


def test_a_direction_may_be_longer_than_float32_can_tell():
    rows = directions(40, 64, 3)
    longest = rows * (3e38 / rows.abs().max())
    assert torch.isinf(longest.norm(dim=1)).any()
    found, expected = (
        nearest_directions(lambda ids, of=of: of[ids], torch.arange(40), of, 40, 5) for of in (longest, rows)
    )
    assert [nearest.indices for nearest in found] == [nearest.indices for nearest in expected]


# --- co-activation -----------------------------------------------------------------------------------------------


def plain_coactive(acts: list[list[float]], x: int, size: int) -> list[tuple[int, float, int]]:
    own = {i for i, value in enumerate(acts[x]) if value > 0}
    found = []
    for other, column in enumerate(acts):
        theirs = {i for i, value in enumerate(column) if value > 0}
        if other != x and own & theirs:
            found.append((other, round(len(own & theirs) / len(own | theirs), 6), len(own & theirs)))
    return sorted(found, key=lambda entry: (-entry[1], entry[0]))[:size]


@settings(max_examples=30)
@given(st.integers(2, 30), st.integers(0, 10**6), st.sampled_from([1, 3, 100]), st.sampled_from([1, 2, 100]))
def test_the_strongest_co_activation_is_that_of_sets(rows, seed, size, tile):
    generator = torch.Generator().manual_seed(seed)
    dense = torch.rand(rows, 9, generator=generator) * (torch.rand(rows, 9, generator=generator) < 0.4)
    dense[:, 4], dense[:, 5], dense[:, 6] = 0, dense[:, 1] * 7, 0.5 + dense[:, 2]  # never, the same, always
    columns = SparseColumns.of(dense)
    found: list = []
    for budget in (2**32, 8 * 500):  # the second: several chunks of positions
        found = []
        for co in co_moments_by_tile(columns, columns, budget, tile=tile, counting=True):
            some = slice(len(found), len(found) + len(co.products))
            counts = columns.offsets.diff()
            found += most_coactive(co.both, counts[some], counts, np.arange(9), size, np.arange(9)[some])
        listed = dense.T.tolist()
        assert [list(zip(*one, strict=True)) for one in found] == [plain_coactive(listed, i, size) for i in range(9)]


def test_counts_of_two_sets_of_positions_are_added_when_their_moments_are():
    dense = torch.rand(40, 5, generator=torch.Generator().manual_seed(0)).sub(0.5).clamp_min(0)

    def counted(rows: torch.Tensor) -> CoMoments:
        columns = SparseColumns.of(rows)
        return next(co_moments_by_tile(columns, columns, tile=5, counting=True))

    merged = counted(dense[:13]).merged(counted(dense[13:]))
    assert torch.equal(merged.both, counted(dense).both.double())
    assert (
        counted(dense[:13]).merged(co_moments(SparseColumns.of(dense[13:]), SparseColumns.of(dense[13:]))).both is None
    )


def test_counts_beyond_what_float32_holds_are_in_float64(monkeypatch):
    columns = SparseColumns.of(torch.ones(5, 2))
    (plain,) = co_moments_by_tile(columns, columns, tile=2, counting=True)
    monkeypatch.setattr(_correlations, "FLOAT32_WHOLE", 5)
    (large,) = co_moments_by_tile(columns, columns, tile=2, counting=True)
    assert (plain.both.dtype, large.both.dtype) == (torch.float32, torch.float64)
    assert torch.equal(plain.both.double(), large.both)


# --- in a run ----------------------------------------------------------------------------------------------------


def planted_acts(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    acts = torch.rand(6, 8, 5, generator=generator)
    return acts * (torch.rand(acts.shape, generator=generator) < 0.5)


def test_a_run_has_the_neighbours_of_loops():
    encoder, model = encoder_for(32, 24, 0.4), native_model(d_model=32, d_mlp=64, n_heads=2, d_head=16)
    tokens = random_tokens(6, 10, model.cfg.d_vocab)
    params = {"hook_point": "blocks.1.hook_resid_post", "features": (0, 3, 23), "rows_in_left_tables": 4}
    data = fetch(encoder, model, tokens, ablation=None, **params)
    rows = encoder.W_dec.detach().double().tolist()
    for feature in data:
        nearest = data[feature].neighbours.nearest
        assert list(zip(nearest.indices, nearest.cosine, strict=True)) == plain_nearest(rows, feature, 4)
        norm = math.sqrt(math.fsum(v * v for v in rows[feature]))
        assert data[feature].decoder_norm == pytest.approx(norm, rel=1e-5)


def test_co_activation_is_searched_where_the_correlated_features_are():
    acts = planted_acts()
    columns = acts.reshape(-1, 5).T.tolist()
    everywhere = fetch_planted(acts, features=(1, 2))
    for feature in (1, 2):
        found = everywhere[feature].neighbours.coactive
        listed = list(zip(found.indices, found.jaccard, found.n_both, strict=True))
        assert listed == plain_coactive(columns, feature, 3)
    assert fetch_planted(acts, features=(1, 2), correlate_features="asked")[1].neighbours.coactive.indices == [2]
    assert fetch_planted(acts, features=(1, 2), correlate_features=None)[1].neighbours.coactive is None
    assert fetch_planted(acts, include_left_tables=False)[1].neighbours is None
    assert fetch_planted(acts, include_left_tables=False)[1].decoder_norm == 1.0


# --- shares ------------------------------------------------------------------------------------------------------


def test_the_shares_of_activation_are_sums_and_add_up_to_one():
    acts = planted_acts(3)
    data = fetch_planted(acts, n_groups=4)
    for feature in data:
        every = [v for v in acts[..., feature].flatten().tolist() if v > 0]
        groups = [group for group in data[feature].sequences.groups if group.share is not None]
        assert sum(group.share_of_activation for group in groups) == pytest.approx(1.0, abs=1e-5)
        for group in groups:
            inside = [v for v in every if group.lower < round(v, 4) <= group.upper]
            assert group.n_positions == len(inside)
            assert group.share_of_activation == pytest.approx(sum(inside) / sum(every), abs=1e-3)


def test_loss_shares_are_means_times_numbers():
    found = loss_shares([[-1.0, 3.0], [-2.0]], [4, 1])
    assert [share.lowered for share in found] == [pytest.approx(2 / 4), pytest.approx(2 / 4)]
    assert [share.raised for share in found] == [1.0, 0.0]
    assert [share.n_examples for share in found] == [2, 1]
    assert not any(share.exact for share in found)
    assert all(share.exact for share in loss_shares([[-1.0, 3.0], [-2.0]], [2, 1]))


def test_there_are_no_loss_shares_where_they_cannot_be_known():
    assert loss_shares([[], [-1.0]], [3, 1]) is None  # positions, and no example of them
    assert loss_shares([[0.0], [0.0]], [1, 1]) is None  # nothing to have a share of
    assert loss_shares([[], [-1.0]], [0, 1])[0].lowered == 0.0


def test_the_effect_of_an_activation_is_that_on_the_token_after_it_where_one_is_predicted():
    tokens = np.array([[4, 5, 6, 1]])
    effect_at = {place: EffectAt(-float(place), [], [], [], []) for place in range(1, 4)}
    predicted = Predicted(effect_at, tokens, 1)
    assert predicted.losses_after([Window(0, 0, 4, bold) for bold in range(4)]) == [-1.0, -2.0, 0.0, 0.0]
    assert predicted._replace(padding=None).losses_after([Window(0, 0, 4, 2)]) == [-3.0]
    assert predicted._replace(effect_at={}).losses_after([Window(0, 0, 4, 0)]) == [0.0]


@pytest.fixture(scope="module")
def measured():
    encoder, model = encoder_for(32, 6, 0.4), native_model(d_model=32, d_mlp=64, n_heads=2, d_head=16)
    tokens = random_tokens(5, 9, model.cfg.d_vocab)

    def run(**params):
        return fetch(encoder, model, tokens, **{"hook_point": "blocks.1.hook_resid_post", "n_groups": 3, **params})

    return run


def test_exact_shares_are_those_of_every_position(measured):
    """With whole rows and as many examples as there are positions, the examples show every loss contribution."""
    exact = measured(loss_shares="exact", other_groups_size=1, buffer=(1, 0))
    whole = measured(buffer=None, other_groups_size=1000, allow_overlap=True)
    for feature in exact:
        groups = [group for group in whole[feature].sequences.groups if group.share is not None]
        sums = []
        for group in groups:
            after = [s.loss_contribution[s.bold_idx + 1 : s.bold_idx + 2] for s in group.sequences]
            losses = [loss for one in after for loss in one]
            sums.append((sum(max(0.0, -loss) for loss in losses), sum(max(0.0, loss) for loss in losses)))
        totals = [sum(column) for column in zip(*sums, strict=True)]
        found = [group.share_of_loss for group in exact[feature].sequences.groups if group.share is not None]
        if not any(totals):  # it is active on nothing but the last tokens of rows, which predict nothing
            assert found == [None] * len(groups)
            continue
        for share, one in zip(found, sums, strict=True):
            assert share.exact
            assert (share.lowered, share.raised) == pytest.approx(
                [a / b if b else 0.0 for a, b in zip(one, totals, strict=True)], abs=1e-5
            )
        assert [group.share_of_loss.exact for group in groups] == [True] * len(groups)
        assert [group.share_of_loss.lowered for group in groups] == [share.lowered for share in found]


@pytest.mark.parametrize("buffer", [(2, 0), (0, 3)])
def test_estimates_are_made_of_the_examples_whatever_is_shown_of_them(measured, buffer):
    some, wide = (
        measured(buffer=buffer, other_groups_size=2, allow_overlap=True),
        measured(other_groups_size=2, allow_overlap=True),
    )
    for feature in some:
        shares = [[group.share_of_loss for group in data[feature].sequences.groups] for data in (some, wide)]
        assert shares[0] == shares[1]
        assert shares[0][0] is None  # the top group is no interval
        assert all(share is None or share.n_examples <= 2 for share in shares[0][1:])
    assert sum(group.share_of_loss is not None for group in some[5].sequences.groups) == 3


def test_without_effects_there_are_no_loss_shares():
    data = fetch_planted(planted_acts())
    assert all(group.share_of_loss is None for group in data[0].sequences.groups)


# --- near-duplicates ---------------------------------------------------------------------------------------------


def plain_repeats(groups: list[list[Example]], tokens: np.ndarray, buffer: tuple[int, int] | None) -> list[list[int]]:
    seq_len = tokens.shape[1]

    def shown(example: Example) -> dict[int, int]:
        before, after = buffer or (seq_len, seq_len)
        span = range(max(0, example.position - before), min(seq_len, example.position + after + 1))
        return {at - example.position: int(tokens[example.row, at]) for at in span}

    kept: list[dict[int, int]] = []
    found = []
    for group in groups:
        found.append([])
        for at, example in enumerate(group):
            own = shown(example)
            for other in kept:
                equal = sum(1 for place in own if place in other and own[place] == other[place])
                if own[0] == other[0] and 5 * equal >= 4 * len(own.keys() | other.keys()):
                    found[-1].append(at)
                    break
            else:
                kept.append(own)
    return found


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from([(5, 5), (1, 0), (0, 0), (2, 9), None]), st.sampled_from([1, 2**20]))
def test_near_duplicates_are_those_of_loops(seed, buffer, piece):
    chance = random.Random(seed)
    tokens = np.array([[chance.choice([1, 1, 1, 1, 2]) for _ in range(12)] for _ in range(4)])
    tokens[3] = tokens[2]
    groups = [
        [Example(chance.randrange(4), chance.randrange(12)) for _ in range(chance.randrange(6))] for _ in range(3)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_near_duplicates, "PIECE", piece)
        assert near_duplicates(groups, tokens, buffer) == plain_repeats(groups, tokens, buffer)


def test_an_example_is_compared_only_with_those_that_repeat_none_themselves():
    first = list(range(10, 21))
    second = [1, 2, *first[2:]]  # of 11 tokens 2 are others: near the first
    third = [1, 2, 3, 4, *first[4:]]  # near the second, and not the first
    tokens = np.array([first, second, third])
    assert near_duplicates([[Example(row, 5) for row in range(3)]], tokens, (5, 5)) == [[1]]
    assert near_duplicates([[Example(1, 5), Example(2, 5)]], tokens, (5, 5)) == [[1]]


def repeated_rows() -> tuple[Tensor, Tensor]:
    """Activations and tokens of rows of which half are the same text."""
    tokens = random_tokens(12, 14, 30, seed=4)
    tokens[6:] = tokens[0]
    tokens[9:, ::7] = 29
    return tokens


def run_on(tokens: Tensor, **params):
    model = native_model(d_model=32, d_mlp=64, n_heads=2, d_head=16)
    encoder = encoder_for(32, 4, 0.4)
    return fetch(encoder, model, tokens, hook_point="blocks.0.hook_resid_pre", ablation=None, n_groups=3, **params)


def test_a_run_marks_near_duplicates_and_can_drop_them():
    tokens = repeated_rows()
    kept, dropped = (run_on(tokens, near_duplicates=choice, allow_overlap=True) for choice in ("keep", "drop"))
    assert any(group.near_duplicates for feature in kept for group in kept[feature].sequences.groups)
    for data in (kept, dropped):
        for feature in data:
            groups = data[feature].sequences.groups
            examples = [[Example(s.row, s.start + s.bold_idx) for s in group.sequences] for group in groups]
            assert [group.near_duplicates for group in groups] == plain_repeats(examples, tokens.numpy(), (5, 5))
    assert not any(group.near_duplicates for feature in dropped for group in dropped[feature].sequences.groups)
    for feature in kept:  # what is dropped makes room for the next candidates, in the same order
        top, other = kept[feature].sequences.groups[0], dropped[feature].sequences.groups[0]
        new = [(s.row, s.start) for at, s in enumerate(top.sequences) if at not in top.near_duplicates]
        assert [(s.row, s.start) for s in other.sequences][: len(new)] == new


def test_the_search_for_something_new_ends(monkeypatch):
    monkeypatch.setattr("sae_vis._statistics.MOST_PASSED", 2)
    tokens = torch.full((40, 9), 3)
    tokens[-1] = torch.arange(9)
    data = run_on(tokens, near_duplicates="drop", buffer=(0, 0))
    for feature in data:
        assert all(len(group.sequences) <= 9 for group in data[feature].sequences.groups)


# --- data --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: NearestData([1], []),
        lambda: NearestData([1], [math.nan]),
        lambda: CoactiveData([1], [1.5], [3]),
        lambda: CoactiveData([1], [0.5], []),
        lambda: CoactiveData([1], [0.5], [-3]),
        lambda: LossShareData(1.5, 0.0, 1, False),
        lambda: LossShareData(0.5, 0.0, -1, False),
        lambda: FeatureVisParams(near_duplicates="hide"),  # type: ignore[arg-type]
    ],
)
def test_wrong_data_is_refused(make):
    with pytest.raises(InputError):
        make()


def test_cosines_fall():
    rows = directions(30, 4, 1)
    for nearest in nearest_directions(lambda some: rows[some], torch.arange(30), rows, 30, 5):
        assert all(a >= b for a, b in pairwise(nearest.cosine))
