"""The activation store against a loop over rows, positions and features; rounds, merging, and the running co-moments."""

from __future__ import annotations

import dataclasses
import functools
import math
from itertools import pairwise
from types import SimpleNamespace

import brute_force
import hf_models
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import HOOK_POINT, encoder_for, planted

from sae_vis import AutoEncoder, _correlations, _spilled, _store
from sae_vis._activations import Collected, CollectPlan, Room, _block_maxima, active_ones, collect, encode
from sae_vis._correlations import CoMoments, SparseColumns, WithDense, co_moments, co_moments_by_tile
from sae_vis._errors import InputError
from sae_vis._store import ActivationStore, StoreBuilder, merge_stores
from sae_vis.model_fns import LanguageModel

PLAN = CollectPlan(HOOK_POINT, minibatch_rows=4, memory_bytes=10**9, neurons=True, correlate="all")


def run(encoder, model, tokens, counted=None, features=None, encoder_b=None, **plan) -> list[Collected]:
    counted = torch.ones_like(tokens, dtype=torch.bool) if counted is None else counted
    features = torch.arange(encoder.d_hidden) if features is None else features
    wrapped = LanguageModel(model)
    with wrapped.as_for_inference():
        plan = dataclasses.replace(PLAN, **plan)
        return list(collect(wrapped, encoder, encoder_b, tokens, counted, features, features, plan))


def run_once(*args, **options) -> Collected:
    (only,) = run(*args, **options)
    return only


def own(collected: Collected) -> ActivationStore:
    """The store of the features asked for."""
    return collected.store.only(collected.features)


def with_neurons(collected: Collected) -> CoMoments:
    return collected.neurons.co_moments(own(collected).columns().moments())


def with_features(collected: Collected) -> CoMoments:
    return co_moments(own(collected).columns(), collected.store.columns())


def dense(store: ActivationStore) -> torch.Tensor:
    """The store written out, ``[rows, seq, n]``."""
    result = torch.zeros(store.counted.numel(), len(store.features))
    for index in range(len(store.features)):
        positions, values = store.column(index)
        result[positions.long(), index] = values
    return result.reshape(*store.counted.shape, -1)


def sparse(rows: int, seq: int, n: int, seed: int = 0, share: float = 0.3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    acts = torch.randn(rows, seq, n, generator=generator).abs()
    return acts * (torch.rand(rows, seq, n, generator=generator) < share)


# --- the store ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hook_point", ["blocks.0.hook_resid_pre", "blocks.1.mlp.hook_post", "blocks.1.attn.hook_z"])
@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
def test_the_store_holds_what_a_loop_over_positions_gives(hook_point, apply_b_dec_to_input):
    model, tokens = hf_models.shared("native-LN"), hf_models.some_tokens(7, 9)
    width = brute_force.width_at(model, hook_point)
    encoder = brute_force.random_encoder(width, 10, apply_b_dec_to_input=apply_b_dec_to_input)
    expected = brute_force.activations(encoder, brute_force.hook_values(model, tokens, hook_point))
    found = dense(run_once(encoder, model, tokens, hook_point=hook_point).store).double()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert ((found > 0) == (expected > 0))[expected > 1e-6].all()


@pytest.mark.parametrize("shape", [(64, 48), (3, 32), (1, 31), (7, 5), (0, 32), (32, 1), (2, 4096)])
@pytest.mark.parametrize("density", [0.0, 0.003, 0.2, 1.0])
@pytest.mark.parametrize("contiguous", [True, False])
def test_active_ones_are_those_above_zero_in_their_order(shape, density, contiguous):
    generator = torch.Generator().manual_seed(0)
    acts = torch.rand(*shape, generator=generator) * (torch.rand(*shape, generator=generator) < density)
    acts = acts if contiguous else acts.T.contiguous().T
    rows, columns = acts.nonzero().unbind(1)
    for found, expected in zip(
        active_ones(acts, _block_maxima(acts)), (rows, columns, acts[rows, columns]), strict=True
    ):
        assert torch.equal(found, expected)


class Halved(AutoEncoder):
    """One with an ``encode`` of its own, which knows of no memory to write to."""

    def encode(self, x, features=None):  # type: ignore[override]
        return super().encode(x, features) / 2


def test_activations_in_memory_that_is_there_have_the_same_bits_and_new_ones_are_copied():
    encoder, room = encoder_for(16, 40), Room()
    generator = torch.Generator().manual_seed(0)
    x, other = torch.randn(2, 5, 9, encoder.d_in, generator=generator)
    features = torch.arange(20)
    with torch.no_grad():
        expected = encode(encoder, x, features)
        found = encode(encoder, x, features, room=room)
        assert torch.equal(found, expected)
        again = encode(encoder, other[:2], features, room=room)
        assert again.data_ptr() == found.data_ptr()
        assert torch.equal(again, encode(encoder, other[:2], features))
        own = Halved(encoder.cfg)
        own.load_state_dict(encoder.state_dict())
        assert torch.equal(encode(own, x, features, room=room), expected / 2)
        half = AutoEncoder.from_weights({name: weight.half() for name, weight in encoder.state_dict().items()})
        assert encode(half, x, features, room=room).dtype == torch.float32
    assert encode(encoder, x, features, room=room).requires_grad  # gradients need memory of their own


def test_gradients_go_through_an_encoder_of_ours():
    encoder = encoder_for(16, 40)
    x = torch.randn(64, encoder.d_in, requires_grad=True)
    encoder(x).square().sum().backward()
    assert float(x.grad.abs().sum()) > 0


def test_planted_activations_come_back_bit_by_bit():
    acts = sparse(9, 7, 5)
    store = run_once(*planted(acts)).store
    assert torch.equal(dense(store), acts)
    assert store.values.dtype == torch.float32
    assert store.positions.dtype == torch.int32
    assert (store.values > 0).all()
    for index in range(5):
        positions, _ = store.column(index)
        assert (positions.diff() > 0).all(), "positions of a feature rise"


def test_negative_activations_and_zeros_are_not_stored():
    acts = torch.tensor([[[1.0, -1.0], [0.0, -2.0]], [[-0.0, 3.0], [2.0, 0.0]]])

    class Signed:
        d_in = d_hidden = 2

        def encode(self, x, features=None):
            return x if features is None else x[..., features]

        def decoder_rows(self, features):
            return torch.eye(2)[features]

    _, model, tokens = planted(acts)
    collected = run_once(Signed(), model, tokens)
    assert collected.signed
    assert torch.equal(dense(collected.store), acts.clamp(min=0))


def test_an_encoder_that_returns_its_input_does_not_change_what_the_neurons_are():
    acts = torch.randn(6, 8, 3, generator=torch.Generator().manual_seed(1))

    class Neurons:
        d_in = d_hidden = 3

        def encode(self, x, features=None):
            return x if features is None else x[..., features]

        def decoder_rows(self, features):
            return torch.eye(3)[features]

    _, model, tokens = planted(acts)
    before = model.table.detach().clone()
    collected = run_once(Neurons(), model, tokens, encoder_b=Neurons())
    torch.testing.assert_close(with_neurons(collected).y.mean, acts.double().mean((0, 1)))
    assert torch.equal(model.table, before)


def test_ignored_positions_are_in_no_number():
    acts = sparse(8, 6, 4, share=0.6)
    counted = torch.rand(8, 6, generator=torch.Generator().manual_seed(3)) < 0.7
    hot = acts.clone()
    hot[~counted] = 1e6  # what an ignored position holds must show nowhere
    clean, dirty = (run_once(*planted(a), counted=counted) for a in (acts * counted[..., None], hot))
    assert torch.equal(dense(dirty.store), acts * counted[..., None])
    assert dirty.store.n_counted == int(counted.sum())
    for co in (with_neurons, with_features):
        ours, expected = co(dirty), co(clean)
        assert ours.n == int(counted.sum())
        assert torch.equal(ours.products, expected.products)
        assert all(torch.equal(a, b) for a, b in zip(ours.y, expected.y, strict=True))


def test_a_batch_of_nothing_but_ignored_positions_adds_nothing():
    acts = sparse(8, 6, 4)
    counted = torch.ones(8, 6, dtype=torch.bool)
    counted[4:] = False
    collected = run_once(*planted(acts), counted=counted, minibatch_rows=4)
    assert torch.equal(dense(collected.store)[:4], acts[:4])
    assert not dense(collected.store)[4:].any()
    assert with_neurons(collected).n == 24


def test_only_the_features_asked_for_are_stored():
    acts = sparse(5, 6, 8)
    asked = torch.tensor([1, 4, 7])
    for correlate in ("all", "asked", None):
        collected = run_once(*planted(acts), features=asked, correlate=correlate)
        assert torch.equal(own(collected).features, asked)
        assert torch.equal(dense(own(collected)), acts[..., asked])
        stored = {"all": list(range(8)), "asked": [1, 4, 7], None: [1, 4, 7]}[correlate]
        assert collected.store.features.tolist() == stored


def test_an_encoder_in_bfloat16_is_read_in_its_own_format():
    acts = sparse(5, 6, 4)
    encoder, model, tokens = planted(acts)
    found = dense(run_once(encoder.to(torch.bfloat16), model, tokens).store)
    assert torch.equal(found, acts.bfloat16().float())


@pytest.mark.parametrize("shape", [(1, 1), (1, 31), (2, 16), (3, 7), (40, 1)])
@pytest.mark.parametrize("n", [1, 5, 15, 16, 17, 40])
def test_an_activation_has_the_same_bits_whatever_is_encoded_beside_it(shape, n):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 31, 48, generator=generator)
    encoder = encoder_for(48, 40, density=0.5)
    with torch.no_grad():
        everything = encode(encoder, x, None)
        rows, seq = shape
        part = encode(encoder, x[:rows, :seq].contiguous(), torch.arange(n))
    assert torch.equal(part, everything[:rows, :seq, :n])


@pytest.mark.parametrize("d_hidden", [1, 3, 8, 15])
def test_a_whole_dictionary_that_is_narrow_has_the_bits_of_its_parts(d_hidden):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 31, 48, generator=generator)
    encoder = encoder_for(48, d_hidden, density=0.5)
    with torch.no_grad():
        everything = encode(encoder, x, None)
        assert everything.shape[-1] == d_hidden
        for feature in range(d_hidden):
            assert torch.equal(encode(encoder, x, torch.tensor([feature])), everything[..., feature : feature + 1])


# --- rounds ------------------------------------------------------------------------------------------------------


def test_a_tiny_budget_takes_more_rounds_and_gives_the_same():
    acts = sparse(20, 10, 16, share=0.9)
    whole = run_once(*planted(acts))
    rounds = run(*planted(acts), memory_bytes=1250)  # the products of four features with sixteen neurons
    assert len(rounds) == 4
    assert torch.equal(torch.cat([one.features for one in rounds]), torch.arange(16))
    assert torch.equal(torch.cat([dense(own(one)) for one in rounds], -1), acts)
    for co in (with_neurons, with_features):
        assert torch.equal(torch.cat([co(one).products for one in rounds]), co(whole).products)
        assert torch.equal(torch.cat([co(one).x.squares for one in rounds]), co(whole).x.squares)


def test_one_feature_a_round_is_the_least_even_if_it_does_not_fit():
    acts = sparse(10, 10, 3, share=1.0)
    rounds = run(*planted(acts), memory_bytes=1)
    assert [one.features.tolist() for one in rounds] == [[0], [1], [2]]
    assert torch.equal(torch.cat([dense(own(one)) for one in rounds], -1), acts)


@pytest.mark.parametrize("budget", [1, 400, 3000, 10**9])
@pytest.mark.parametrize("chunk", [7, 100])
def test_what_does_not_fit_lies_in_files_and_is_the_same(budget, chunk, monkeypatch):
    monkeypatch.setattr(_store, "CHUNK", chunk)
    acts = sparse(20, 10, 9, share=0.5)
    counted = torch.rand(20, 10, generator=torch.Generator().manual_seed(0)) < 0.8
    builder = StoreBuilder(torch.arange(9), counted, budget)
    for start in range(0, 20, 3):
        some = (acts * counted[..., None])[start : start + 3].flatten(0, 1)
        rows, columns = some.nonzero().unbind(1)
        builder.add(rows + start * 10, columns, some[rows, columns])
    store = builder.finish()
    assert bool(store.mapped) == (budget < 3001)
    assert torch.equal(dense(store), acts * counted[..., None])
    assert all((store.column(i)[0].diff() > 0).all() for i in range(9)), "positions rise"
    store.release()
    assert torch.equal(dense(store), acts * counted[..., None])
    assert dense(store.only(torch.tensor([1, 4, 8]))).equal((acts * counted[..., None])[..., [1, 4, 8]])


def test_an_empty_store_may_lie_in_files_too():
    counted = torch.ones(2, 3, dtype=torch.bool)
    for builder in (StoreBuilder(torch.arange(4), counted, 10**6), StoreBuilder(torch.arange(4), counted, 1)):
        if builder.memory_bytes == 1:
            builder._spill()
        assert not dense(builder.finish()).any()


def test_a_full_disk_is_told(monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_spilled.os, "posix_fallocate", full)
    builder = StoreBuilder(torch.arange(2), torch.ones(1, 4, dtype=torch.bool), 1)
    builder.add(torch.tensor([0, 1]), torch.tensor([0, 1]), torch.tensor([1.0, 2.0]))
    with pytest.raises(InputError, match=r"no room for them.*No space left.*TMPDIR"):
        builder.finish()


@pytest.mark.parametrize(("cap", "expected"), [(1, 5), (2, 3), (5, 1), (100, 1)])
def test_a_cap_on_the_features_a_round_is_kept(cap, expected):
    acts = sparse(4, 5, 5)
    rounds = run(*planted(acts), max_features=cap)
    assert len(rounds) == expected
    assert all(len(one.features) <= cap for one in rounds)
    assert torch.equal(torch.cat([dense(own(one)) for one in rounds], -1), acts)


def test_the_model_runs_once_over_the_rows_in_a_round():
    acts = sparse(32, 5, 5)
    encoder, model, tokens = planted(acts)
    run(encoder, model, tokens, minibatch_rows=8)
    assert model.rows_seen == 32


# --- merging -----------------------------------------------------------------------------------------------------


def shards(acts: torch.Tensor, cuts: list[int]) -> list[Collected]:
    encoder, model, tokens = planted(acts)
    bounds = [0, *cuts, len(tokens)]
    parts = []
    for start, stop in pairwise(bounds):
        part = run_once(encoder, model, tokens[start:stop])
        parts.append(dataclasses.replace(part, store=dataclasses.replace(part.store, row_offset=start)))
    return parts


@pytest.mark.parametrize("cuts", [[], [1], [5], [3, 4, 9]])
def test_stores_of_token_shards_merge_to_the_store_of_all(cuts):
    acts = sparse(11, 6, 4)
    whole = run_once(*planted(acts))
    parts = shards(acts, cuts)
    merged = merge_stores([part.store for part in parts])
    for field in dataclasses.fields(ActivationStore):
        ours, expected = getattr(merged, field.name), getattr(whole.store, field.name)
        same = torch.equal(ours, expected) if isinstance(ours, torch.Tensor) else ours == expected
        assert same, field.name
    neurons, expected = functools.reduce(CoMoments.merged, map(with_neurons, parts)), with_neurons(whole)
    torch.testing.assert_close(neurons.products, expected.products, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(neurons.y.squares, expected.y.squares, rtol=1e-12, atol=1e-12)
    assert torch.equal(neurons.y.low, expected.y.low)
    assert neurons.n == expected.n == 66


def test_merging_in_two_steps_is_merging_in_one():
    parts = [part.store for part in shards(sparse(9, 4, 3), [2, 6])]
    once, twice = merge_stores(parts), merge_stores([merge_stores(parts[:2]), parts[2]])
    assert torch.equal(once.positions, twice.positions)
    assert torch.equal(once.values, twice.values)
    later = merge_stores(parts[1:])
    assert later.row_offset == 2
    assert torch.equal(merge_stores([parts[0], later]).positions, once.positions)


def test_stores_that_do_not_follow_each_other_are_refused():
    first, second, third = (part.store for part in shards(sparse(9, 4, 3), [2, 6]))
    others = dataclasses.replace(second, features=torch.tensor([0, 1, 3]))
    shorter = dataclasses.replace(second, counted=second.counted[:, :3])
    for wrong in ([second, first], [first, third], [first, others], [first, shorter], [first, first]):
        with pytest.raises(InputError, match="rows follow each other"):
            merge_stores(wrong)


# --- co-moments --------------------------------------------------------------------------------------------------


def plain_comoments(x: torch.Tensor, y: torch.Tensor) -> list[list[float]]:
    columns_x, columns_y = x.double().T.tolist(), y.double().T.tolist()
    result = []
    for a in columns_x:
        mean_a = math.fsum(a) / len(a)
        row = []
        for b in columns_y:
            mean_b = math.fsum(b) / len(b)
            row.append(math.fsum((u - mean_a) * (v - mean_b) for u, v in zip(a, b, strict=True)))
        result.append(row)
    return result


@settings(max_examples=25)
@given(st.integers(0, 1000), st.lists(st.integers(0, 9), min_size=1, max_size=5), st.booleans())
def test_co_moments_of_any_batches_are_those_of_the_whole(seed, sizes, sparse_y):
    generator = torch.Generator().manual_seed(seed)
    rows = sum(sizes)
    if rows == 0:
        return
    x = torch.randn(rows, 3, generator=generator).clamp(min=0)
    y = torch.randn(rows, 4, generator=generator)
    y = y.clamp(min=0) if sparse_y else y + 1000.0
    parts = [
        co_moments(SparseColumns.of(part_x), SparseColumns.of(part_y) if sparse_y else part_y)
        for part_x, part_y in zip(x.split(sizes), y.split(sizes), strict=True)
        if len(part_x)
    ]
    co = functools.reduce(CoMoments.merged, parts)
    expected = torch.tensor(plain_comoments(x, y), dtype=torch.float64)
    torch.testing.assert_close(co.products, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(co.y.mean, y.double().mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(co.y.squares, (y.double() - y.double().mean(0)).square().sum(0), rtol=1e-9, atol=1e-9)
    assert torch.equal(co.y.low, y.double().amin(0))
    assert torch.equal(co.y.high, y.double().amax(0))
    assert torch.equal(co.x.low, x.double().amin(0))
    assert torch.equal(co.x.high, x.double().amax(0))
    assert co.n == rows


def test_co_moments_do_not_cancel_where_means_are_large():
    generator = torch.Generator().manual_seed(0)
    signal = torch.rand(400, 1, generator=generator)
    y = torch.cat([1e5 + signal, 1e5 - signal], 1)  # in float32 a step of 0.008
    running = WithDense(1, 2, torch.device("cpu"))
    for part_x, part_y in zip(signal.split(37), y.split(37), strict=True):
        running.add(SparseColumns.of(part_x), part_y)
    co = running.co_moments(SparseColumns.of(signal).moments())
    expected = torch.tensor(plain_comoments(signal, y), dtype=torch.float64)
    torch.testing.assert_close(co.products, expected, rtol=1e-9, atol=0)
    assert (co.y.squares > 0).all()


@settings(max_examples=25)
@given(st.integers(0, 1000), st.integers(1, 4), st.sampled_from([1, 200, 10**9]), st.booleans())
def test_co_moments_of_any_tiles_and_chunks_are_those_of_the_whole(seed, tile, budget, mkl):
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(30, n, generator=generator).clamp(min=0) for n in (5, 7))
    y[:, 3] += 1000.0  # active everywhere, with a large mean
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_correlations, "LEAST_BYTES", 1)
        if not mkl:
            patch.setattr(_correlations, "_has_mkl", lambda: False)
        parts = list(co_moments_by_tile(SparseColumns.of(x), SparseColumns.of(y), budget, tile))
    assert [len(part.products) for part in parts] == [min(tile, 5 - start) for start in range(0, 5, tile)]
    expected = torch.tensor(plain_comoments(x, y), dtype=torch.float64)
    torch.testing.assert_close(torch.cat([part.products for part in parts]), expected, rtol=1e-9, atol=1e-9)
    for part in parts:
        torch.testing.assert_close(part.y.mean, y.double().mean(0), rtol=1e-12, atol=1e-12)


def test_sparse_columns_are_the_matrix_they_were_made_of():
    matrix = sparse(1, 50, 6)[0]
    columns = SparseColumns.of(matrix)
    back = torch.zeros_like(matrix)
    back[columns.rows, columns.columns()] = columns.values
    assert torch.equal(back, matrix)
    chosen = columns.select(torch.tensor([0, 3, 5]))
    again = SparseColumns.of(matrix[:, [0, 3, 5]])
    assert all(torch.equal(getattr(chosen, name), getattr(again, name)) for name in ("offsets", "rows", "values"))
    assert torch.equal(columns.piece(2, 5).values, columns.values[(columns.columns() >= 2) & (columns.columns() < 5)])


def test_more_than_65536_columns_stay_apart():
    matrix = torch.zeros(2, 2**16 + 3)
    matrix[0, 0], matrix[1, 0], matrix[1, 2**16], matrix[0, 2**16 + 2], matrix[1, 2] = 1.0, 2.0, 3.0, 4.0, 5.0
    columns = SparseColumns.of(matrix)
    assert columns.columns().tolist() == [0, 0, 2, 2**16, 2**16 + 2]
    assert columns.rows.tolist() == [0, 1, 1, 1, 0]
    assert columns.values.tolist() == [1.0, 2.0, 5.0, 3.0, 4.0]


def test_a_merged_store_of_many_features_keeps_them_apart():
    n = 2**16 + 1
    counted = torch.ones(1, 2, dtype=torch.bool)
    ends = torch.zeros(n + 1, dtype=torch.int64)
    ends[1:] = 1
    ends[n] = 2
    one = ActivationStore(
        torch.arange(n), ends, torch.tensor([0, 1], dtype=torch.int32), torch.tensor([1.0, 2.0]), counted
    )
    merged = merge_stores([one, dataclasses.replace(one, row_offset=1)])
    assert merged.column(0)[0].tolist() == [0, 2]
    assert merged.of(n - 1)[0].tolist() == [1, 3]
    assert merged.of(n - 1)[1].tolist() == [2.0, 2.0]
    assert merged.of(5)[0].tolist() == []


# --- the encoder of B --------------------------------------------------------------------------------------------


def test_encoder_b_is_read_with_its_own_weights_and_bias():
    acts = sparse(8, 6, 4, share=0.7)
    encoder, model, tokens = planted(acts)
    other = AutoEncoder.from_weights(
        {
            "W_enc": torch.eye(4)[:, :2] * 2,
            "b_enc": torch.tensor([-0.5, 0.25]),
            "W_dec": torch.eye(4)[:2],
            "b_dec": torch.full((4,), 0.125),
        }
    )
    x = acts.reshape(-1, 4).double()
    expected = ((x[:, :2] - 0.125) * 2 + torch.tensor([-0.5, 0.25])).clamp(min=0)
    collected = run_once(encoder, model, tokens, encoder_b=other)
    co = co_moments(own(collected).columns(), collected.store_b.columns())
    torch.testing.assert_close(co.y.mean, expected.mean(0), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(co.products, torch.tensor(plain_comoments(x, expected)).double(), rtol=1e-5, atol=1e-5)


def test_tables_that_are_not_asked_for_cost_nothing():
    collected = run_once(*planted(sparse(4, 5, 3)), neurons=False, correlate=None)
    assert collected.neurons is None
    assert collected.store_b is None


def test_only_the_slice_of_the_weights_that_is_needed_is_encoded():
    asked_for = []
    encoder, model, tokens = planted(sparse(4, 8, 20))

    def spy(x, features=None):
        asked_for.append(None if features is None else len(features))
        return encoder.encode(x, features)

    watched = SimpleNamespace(d_in=20, d_hidden=20, encode=spy, decoder_rows=encoder.decoder_rows)
    run(watched, model, tokens, features=torch.tensor([2, 5]), correlate=None)
    assert asked_for == [16]  # padded to a product of sixteen columns, for equal bits
    asked_for.clear()
    run(watched, model, tokens, features=torch.tensor([2, 5]), correlate="all")
    assert asked_for == [None]
