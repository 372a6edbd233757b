"""The exact ranking of many rows against sorting Python numbers, and the stable order of integers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_vis._ranking import BLOCK, ID_BITS, Ranked, keyed, largest, largest_of_any_width, sort_into, stable_order

FEW = [0.0, -0.0, 1.0, -1.0, 2.5, 1e-45, -1e-45, 3.4e38, -3.4e38, math.inf, -math.inf]
FLOATS = st.one_of(st.sampled_from(FEW), st.floats(width=32, allow_nan=False))


def plainly(row: list[float], n: int, first: int = 0) -> tuple[list[int], list[float]]:
    """Indices and values, the largest first, equal ones (0.0 and -0.0 are) by index."""
    order = sorted(range(len(row)), key=lambda i: (-row[i], i))[:n]
    return [first + i for i in order], [row[i] for i in order]


def check(found: Ranked, rows: list[list[float]], n: int, first: int = 0) -> None:
    indices, values = found.sorted()
    assert values.dtype == torch.float32
    for row, own_indices, own_values in zip(rows, indices.tolist(), values.tolist(), strict=True):
        assert (own_indices, own_values) == plainly(row, n, first)


@given(
    st.integers(1, 3),
    st.lists(st.lists(FLOATS, max_size=20), max_size=3),
    st.sampled_from([0, 1, 2, 3, 64, 65, 128, 1000]),
    FLOATS,
    st.integers(0, BLOCK),
)
def test_the_largest_are_those_of_sorting(n_blocks, rows, n, rest, shift):
    values = torch.full((len(rows), n_blocks * BLOCK), rest)
    for own, row in zip(values, rows, strict=True):
        own[: len(row)] = torch.tensor(row)
    values = values.roll(shift, 1)
    check(largest(values, n), values.tolist(), n)


@pytest.mark.parametrize("n", [1, 2, 7, 63, 64, 65, 500, 20 * BLOCK, 10**4])
@pytest.mark.parametrize("kinds", [1, 2, 30, 10**6])
def test_equal_values_come_by_their_index_in_however_many_blocks_they_are(n, kinds):
    generator = torch.Generator().manual_seed(n)
    values = torch.randint(0, kinds, (5, 20 * BLOCK), generator=generator) - kinds / 2
    check(largest(values, n), values.tolist(), n)
    check(largest(-values, n), (-values).tolist(), n)
    check(largest(values, n, negated=True), (-values).tolist(), n)


@pytest.mark.parametrize("first", [0, 5, 2**20, 2**ID_BITS - 2 * BLOCK])
def test_indices_are_counted_from_the_first_column(first):
    values = torch.randn(4, 2 * BLOCK, generator=torch.Generator().manual_seed(0))
    values[:, -1] = 100.0
    check(largest(values, 70, first), values.tolist(), 70, first)


def test_the_best_values_may_all_be_in_one_block_or_one_in_each():
    together, apart = torch.zeros(1, 10 * BLOCK), torch.zeros(1, 10 * BLOCK)
    together[0, 3 * BLOCK : 3 * BLOCK + 10] = torch.arange(10) + 1.0
    apart[0, ::BLOCK] = torch.arange(10) + 1.0
    for values in (together, apart):
        for n in (1, 9, 10, 11):
            check(largest(values, n), values.tolist(), n)


@pytest.mark.parametrize("width", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("shift", [-9.0, 9.0])
def test_rows_of_any_width_are_ranked(width, shift):
    values = torch.randn(3, width, generator=torch.Generator().manual_seed(0)) + shift
    n = min(7, width)
    check(largest_of_any_width(values, n), values.tolist(), n)
    check(largest_of_any_width(values, n, negated=True), (-values).tolist(), n)


@pytest.mark.parametrize("kinds", [1, 3, 10**6])
def test_rows_of_every_width_are_ranked_ties_and_all(kinds):
    generator = torch.Generator().manual_seed(kinds)
    for width in range(1, 201):
        values = torch.randint(-kinds, kinds, (2, width), generator=generator) / 4
        for n in {1, min(10, width), width}:
            check(largest_of_any_width(values, n), values.tolist(), n)
            check(largest_of_any_width(values, n, negated=True), (-values).tolist(), n)


def test_values_are_ranked_by_the_indices_that_they_are_given():
    values = torch.tensor([[1.0, 2.0, 2.0], [0.0, -1.0, 5.0]])
    indices, found = keyed(values, torch.tensor([30, 20, 10])).sorted()
    assert indices.tolist() == [[10, 20, 30], [10, 30, 20]]
    assert found.tolist() == [[2.0, 2.0, 1.0], [5.0, 0.0, -1.0]]


def test_minus_infinity_comes_last():
    values = torch.full((2, 2 * BLOCK), -math.inf)
    values[0, 100], values[1, :3] = -5.0, torch.tensor([-1e38, 0.0, -3e38])
    check(largest(values, 4), values.tolist(), 4)


def test_zeros_of_both_signs_are_equal_and_come_out_as_zero():
    values = torch.zeros(1, BLOCK)
    values[0, ::2] = -0.0
    indices, found = largest(values, 6).sorted()
    assert indices.tolist() == [[0, 1, 2, 3, 4, 5]]
    assert not torch.signbit(found).any()


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.sampled_from([1, 3, 64, 100, 10**4]), st.integers(0, 99))
def test_parts_of_a_row_joined_are_the_whole_row(parts, n, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-3, 3, (3, sum(parts) * BLOCK), generator=generator).float()
    joined, first = Ranked(torch.zeros(3, 0, dtype=torch.int64)), 0
    for n_blocks in parts:
        part = values[:, first : first + n_blocks * BLOCK]
        joined = joined.joined(largest(part, n, first), n)
        first += n_blocks * BLOCK
    check(joined, values.tolist(), n)


@pytest.mark.parametrize("below", [1, 7, 2**16 - 1, 2**16, 2**16 + 1, 2**31 - 1, 2**32, 2**40])
def test_the_order_of_integers_is_stable_at_any_size(below):
    generator = torch.Generator().manual_seed(0)
    keys = torch.randint(0, below, (3000,), generator=generator)
    keys[1000:2000] = keys[:1000]
    keys[-3:] = torch.tensor([below - 1, 0, below - 1])
    expected = np.argsort(keys.numpy(), kind="stable")
    for dtype in (torch.int64, *([torch.int32] if below < 2**31 else [])):
        assert stable_order(keys.to(dtype), below).tolist() == expected.tolist()


def test_nothing_has_an_order_too():
    assert stable_order(torch.zeros(0, dtype=torch.int64), 5).tolist() == []


@pytest.mark.parametrize("cuts", [[], [1], [0, 500, 500, 999]])
def test_what_is_sorted_in_piece_by_piece_is_sorted_as_a_whole(cuts):
    rng = np.random.default_rng(0)
    keys, numbers = rng.integers(0, 40, 1000).astype(np.int32), np.arange(1000.0)
    keys[keys == 7] = 8  # a key that does not occur
    targets = np.empty(1000), np.empty(1000, dtype=np.int32)
    next_place = np.searchsorted(np.sort(keys), np.arange(41))
    for own, some in zip(np.split(keys, cuts), np.split(numbers, cuts), strict=True):
        sort_into(targets, torch.from_numpy(own), (some, own), next_place)
    order = np.argsort(keys, kind="stable")
    assert targets[0].tolist() == numbers[order].tolist()
    assert targets[1].tolist() == keys[order].tolist()
    assert next_place.tolist() == [*np.searchsorted(np.sort(keys), np.arange(1, 41)).tolist(), 1000]
