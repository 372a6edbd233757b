"""The tables of what correlates most, and the products that they are made of, against plain loops."""

from __future__ import annotations

import dataclasses

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_vis import _correlations, _spilled
from sae_vis._correlations import SparseColumns, WithDense, co_moments, co_moments_by_tile, most_correlated
from sae_vis._errors import InputError

Table = list[list[tuple[int, float, float]]]


def few_values(rows: int, n: int, seed: int) -> torch.Tensor:
    """Sparse columns of small whole numbers: some are constant, some zero, many correlate alike."""
    generator = torch.Generator().manual_seed(seed)
    columns = torch.randint(0, 4, (rows, n), generator=generator) * torch.randint(0, 2, (rows, n), generator=generator)
    columns[:, 0], columns[:, -1] = 2, 0
    columns[:, n // 2] = columns[:, 1]
    columns[:, n // 2 + 1] = 3 * columns[:, 1]
    columns[:, 2] = 3 - columns[:, 1]  # active nearly everywhere, and the very opposite
    return columns.float()


def lists(matrix: torch.Tensor) -> list[list[float]]:
    return matrix.double().T.tolist()


def check(found: list, expected: Table) -> None:
    assert [table.indices for table in found] == [[entry[0] for entry in table] for table in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.pearson == pytest.approx([entry[1] for entry in theirs], abs=1e-12)
        assert ours.cosine == pytest.approx([entry[2] for entry in theirs], abs=6e-7)
        assert [str(value) for value in (*ours.pearson, *ours.cosine)].count("-0.0") == 0


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(4, 9), st.sampled_from([1, 2, 3, 5, 100]), st.booleans())
def test_the_tables_are_those_of_loops_with_ties_to_the_lower_index(seed, rows, size, dense):
    x, y = few_values(rows, 7, seed), few_values(rows, 9, seed + 1)
    y[:, 4] = x[:, 3]  # the other's own columns are among them
    co = co_moments(SparseColumns.of(x), y if dense else SparseColumns.of(y))
    others = dict(enumerate(lists(y)))
    check(
        most_correlated(co, np.arange(9), size), [oracles.most_correlated(column, others, size) for column in lists(x)]
    )


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from([1, 3, 100]), st.sampled_from([1, 2, 5]))
def test_a_column_is_not_paired_with_itself_whatever_the_ids_are(seed, size, tile):
    y = few_values(8, 9, seed)
    ids = np.array([3, 4, 8, 10, 11, 17, 20, 30, 31])
    chosen = [1, 2, 4, 7]
    not_itself = np.array([4, 8, 12, 30])  # the third is nowhere
    others = {int(i): column for i, column in zip(ids, lists(y), strict=True)}
    found: list = []
    for co in co_moments_by_tile(SparseColumns.of(y[:, chosen]), SparseColumns.of(y), tile=tile):
        found += most_correlated(co, ids, size, not_itself[len(found) : len(found) + len(co.products)])
    columns = lists(y[:, chosen])
    check(
        found,
        [oracles.most_correlated(x, others, size, int(own)) for x, own in zip(columns, not_itself, strict=True)],
    )


def test_a_constant_correlates_with_nothing_and_nothing_with_it():
    x = torch.tensor([[2.0, 0.0, 1.0], [2.0, 0.0, 0.0], [2.0, 0.0, 3.0]])
    co = co_moments(SparseColumns.of(x), SparseColumns.of(x))
    assert [table.indices for table in most_correlated(co, np.arange(3), 3)] == [[], [], [2]]


@pytest.mark.parametrize(("n", "size"), [(0, 3), (3, 0)])
def test_an_empty_table_is_one_too(n, size):
    x = SparseColumns.of(few_values(5, 4, 0))
    (co,) = co_moments_by_tile(x, SparseColumns.of(torch.zeros(5, n)), tile=4)
    assert [tuple(map(len, table)) for table in most_correlated(co, np.arange(n), size)] == [(0, 0, 0)] * 4


def spread_out(columns: SparseColumns, places: torch.Tensor, n_places: int) -> SparseColumns:
    """The same positions among others that do not count."""
    return dataclasses.replace(columns, rows=places[columns.rows], n_places=n_places)


@pytest.mark.parametrize("budget", [1500, 10**4, 5 * 10**4, 10**9])
@pytest.mark.parametrize("piece", [40, 2**22])
def test_positions_that_do_not_count_change_nothing(budget, piece, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(50, n, generator=generator).clamp(min=0) for n in (6, 8))
    y[:, 2] += 10.0
    x[:, 3] += 5.0  # active everywhere, both
    (expected,) = co_moments_by_tile(SparseColumns.of(x), SparseColumns.of(y), tile=6)
    places = torch.randperm(90, generator=generator)[:50].sort().values
    monkeypatch.setattr(_correlations, "PIECE", piece)
    monkeypatch.setattr(_correlations, "LEAST_BYTES", 500)
    among = [spread_out(SparseColumns.of(matrix), places, 90) for matrix in (x, y)]
    parts = list(co_moments_by_tile(*among, budget))
    for name in ("mean", "squares", "low", "high"):
        assert torch.equal(torch.cat([getattr(part.x, name) for part in parts]), getattr(expected.x, name))
        assert all(torch.equal(getattr(part.y, name), getattr(expected.y, name)) for part in parts)
    torch.testing.assert_close(torch.cat([part.products for part in parts]), expected.products, rtol=1e-12, atol=1e-11)
    assert all(part.n == 50 for part in parts)


@pytest.mark.parametrize("budget", [1500, 10**9])
def test_columns_that_are_active_everywhere_do_not_cancel(budget, monkeypatch):
    monkeypatch.setattr(_correlations, "LEAST_BYTES", 500)
    generator = torch.Generator().manual_seed(0)
    x = 1e4 + torch.rand(50, 3, generator=generator) / 100  # in float32 ten different values
    y = torch.cat([1e4 + torch.rand(50, 2, generator=generator) / 100, x], 1)
    parts = list(co_moments_by_tile(SparseColumns.of(x), SparseColumns.of(y), budget, tile=2))
    dx, dy = x.double() - x.double().mean(0), y.double() - y.double().mean(0)
    torch.testing.assert_close(torch.cat([part.products for part in parts]), dx.T @ dy, rtol=1e-7, atol=0)


@pytest.mark.parametrize("tile", [1, 2, 3, 7])
def test_products_with_neurons_of_any_tiles_are_those_of_the_whole(tile, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    x = SparseColumns.of(torch.randn(40, 7, generator=generator).clamp(min=0))
    running = WithDense(7, 4, torch.device("cpu"))
    running.add(x, 100 + torch.randn(40, 4, generator=generator))
    whole = running.co_moments(x.moments())
    monkeypatch.setattr(_correlations, "TILE_BYTES", tile * 8 * 4)
    for parts in (list(running.co_moments_by_tile(x.moments(), tile)), list(running.co_moments_by_tile(x.moments()))):
        assert [len(part.products) for part in parts] == [min(tile, 7 - start) for start in range(0, 7, tile)]
        assert torch.equal(torch.cat([part.products for part in parts]), whole.products)
        for name in ("mean", "squares", "low", "high"):
            assert torch.equal(torch.cat([getattr(part.x, name) for part in parts]), getattr(whole.x, name))
            assert all(torch.equal(getattr(part.y, name), getattr(whole.y, name)) for part in parts)
    assert not running.room.numel(), "no position is expected any more"


def beyond_memory(monkeypatch) -> tuple[SparseColumns, int]:
    """Columns that lie in a file in several chunks, with this budget."""
    monkeypatch.setattr(_correlations, "LEAST_BYTES", 500)
    generator = torch.Generator().manual_seed(0)
    columns = SparseColumns.of(torch.randn(90, 8, generator=generator).clamp(min=0))
    assert len(columns.rows) > 300
    return columns, 8000


def test_what_is_laid_out_beyond_memory_is_given_back_after_each_chunk(monkeypatch):
    columns, budget = beyond_memory(monkeypatch)
    made, given_back = [], []
    mapped, release = _correlations.mapped, _correlations.release
    monkeypatch.setattr(_correlations, "mapped", lambda *of: made.append(mapped(*of)) or made[-1])
    monkeypatch.setattr(_correlations, "release", lambda file: (given_back.append(file), release(file)))
    tiles = co_moments_by_tile(columns, columns, budget, tile=4, counting=True)
    next(tiles)
    both = [one.file for one in made]
    assert len(both) == 2, "columns and values"
    written, multiplied = given_back[: len(given_back) // 2], given_back[len(given_back) // 2 :]
    assert written == multiplied == both * (len(written) // 2)
    chunks = len(written) // 2
    assert chunks > 2
    next(tiles)
    assert len(given_back) == 6 * chunks, "laid out once, and read for every tile"
    (whole,) = co_moments_by_tile(columns, columns, 10**9, tile=8, counting=True)
    assert len(made) == 2
    assert len(whole.products) == 8


def test_no_room_for_what_is_laid_out_is_told(monkeypatch):
    columns, budget = beyond_memory(monkeypatch)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_spilled.os, "posix_fallocate", full)
    with pytest.raises(InputError, match=r"no room for them.*No space left.*TMPDIR"):
        list(co_moments_by_tile(columns, columns, budget, tile=4))
    assert len(list(co_moments_by_tile(columns, columns, 10**9, tile=4))) == 2


def test_neurons_with_a_large_mean_do_not_cancel():
    generator = torch.Generator().manual_seed(0)
    y = 1e7 + torch.randint(0, 3, (60, 4), generator=generator)  # squares of 1e14, of which float64 knows two digits
    x = torch.rand(60, 2, generator=generator)
    running = WithDense(2, 4, torch.device("cpu"))
    for part_x, part_y in zip(x.split(7), y.split(7), strict=True):
        running.add(SparseColumns.of(part_x), part_y)
    co = running.co_moments(SparseColumns.of(x).moments())
    dx, dy = x.double() - x.double().mean(0), y.double() - y.double().mean(0)
    torch.testing.assert_close(co.y.squares, dy.square().sum(0), rtol=1e-9, atol=0)
    torch.testing.assert_close(co.products, dx.T @ dy, rtol=1e-9, atol=1e-9)


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 20), min_size=1, max_size=6))
def test_products_with_neurons_are_added_up_whatever_the_batches(seed, sizes):
    generator = torch.Generator().manual_seed(seed)
    rows = sum(sizes)
    x = torch.randn(rows, 4, generator=generator).clamp(min=0)
    y = torch.randn(rows, 5, generator=generator) * 3 + torch.tensor([0.0, 1e4, -50.0, 1.0, 0.0])
    running = WithDense(4, 5, torch.device("cpu"))
    for part_x, part_y in zip(x.split(sizes), y.split(sizes), strict=True):
        running.add(SparseColumns.of(part_x), part_y)
    if rows == 0:
        assert running.n == 0
        return
    co = running.co_moments(SparseColumns.of(x).moments())
    dx, dy = x.double() - x.double().mean(0), y.double() - y.double().mean(0)
    torch.testing.assert_close(co.products, dx.T @ dy, rtol=1e-9, atol=1e-8)
    torch.testing.assert_close(co.y.squares, dy.square().sum(0), rtol=1e-9, atol=1e-8)
    torch.testing.assert_close(co.y.mean, y.double().mean(0), rtol=1e-12, atol=1e-12)
    assert torch.equal(co.y.low, y.double().amin(0))
    assert torch.equal(co.y.high, y.double().amax(0))
    assert co.n == rows
