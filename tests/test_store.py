"""The activation store's files and its budget; what it holds is in test_activations."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import HOOK_POINT, planted

from sae_vis import InputError, _store
from sae_vis._activations import CollectPlan, collect
from sae_vis._store import BYTES_PER_ENTRY, ActivationStore, StoreBuilder
from sae_vis.model_fns import LanguageModel

N, SEQ, ROWS = 6, 10, 40


def some_acts(share: float = 0.5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    acts = torch.rand(ROWS * SEQ, N, generator=generator)
    return acts * (torch.rand(ROWS * SEQ, N, generator=generator) < share)


def built(acts: torch.Tensor, memory_bytes: int, step: int = 40) -> StoreBuilder:
    builder = StoreBuilder(torch.arange(N), torch.ones(ROWS, SEQ, dtype=torch.bool), memory_bytes)
    for start in range(0, len(acts), step):
        rows, columns = acts[start : start + step].nonzero().unbind(1)
        builder.add(rows + start, columns, acts[rows + start, columns])
    return builder


def dense(store: ActivationStore) -> torch.Tensor:
    result = torch.zeros(ROWS * SEQ, N)
    for index in range(N):
        positions, values = store.column(index)
        assert (positions.diff() > 0).all(), "positions rise"
        result[positions.long(), index] = values
    return result


@pytest.mark.parametrize("memory_bytes", [0, 1500, 4000, 14000, 15000, 10**9])
def test_no_more_is_held_in_memory_than_the_budget(memory_bytes, monkeypatch):
    acts = some_acts()
    held = []
    add = StoreBuilder.add

    def watched(self, positions, columns, values):
        add(self, positions, columns, values)
        held.append((self.in_memory, sum(BYTES_PER_ENTRY * len(part[0]) for part in self.parts), self.files is None))

    monkeypatch.setattr(StoreBuilder, "add", watched)
    builder = built(acts, memory_bytes)
    n_bytes = BYTES_PER_ENTRY * int((acts > 0).sum())
    assert (builder.files is None) == (n_bytes <= memory_bytes // 2), "half of it is for sorting"
    for told, there, whole in held:
        assert told == there
        assert there <= memory_bytes // (2 if whole else 8)
    store = builder.finish()
    assert builder.parts == []
    assert bool(store.mapped) == (builder.files is not None)
    assert torch.equal(dense(store), acts)


def test_the_bits_in_files_are_those_in_memory():
    acts = some_acts()
    acts[5] = torch.tensor([1e-45, 3.4e38, 1e-38, 0.1, 1.0, 1e-30])
    in_memory, in_files = built(acts, 10**9).finish(), built(acts, 1).finish()
    for name in ("features", "offsets", "positions", "values", "counted"):
        ours, theirs = getattr(in_files, name), getattr(in_memory, name)
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    assert in_files.columns().n_places == in_memory.columns().n_places == ROWS * SEQ


@pytest.mark.parametrize("chunk", [47, 1199, 1200, 1201, 10**6])
def test_chunks_of_the_files_may_end_anywhere(chunk, monkeypatch):
    acts = torch.zeros(ROWS * SEQ, N)
    acts[:200] = some_acts(1.0)[:200] + 0.5  # 1200 entries
    monkeypatch.setattr(_store, "CHUNK", chunk)
    assert torch.equal(dense(built(acts, 1).finish()), acts)


@pytest.mark.parametrize("joined", [1, 47, 10**6])
def test_parts_in_memory_may_be_of_any_size(joined, monkeypatch):
    acts = some_acts()
    acts[:300] = 0.0
    monkeypatch.setattr(_store, "JOINED", joined)
    store = built(acts, 10**9).finish()
    assert torch.equal(dense(store), acts)
    assert not store.mapped


def test_features_that_are_never_active_lie_in_files_too():
    acts = some_acts()
    acts[:, [0, 3, 5]] = 0.0
    store = built(acts, 1).finish()
    assert torch.equal(dense(store), acts)
    assert len(store.of(3)[0]) == 0
    assert torch.equal(dense(built(acts, 10**9).finish()), acts)


def test_a_store_in_files_gives_back_its_memory_and_reads_it_again(monkeypatch):
    given_back = []
    release = _store.release
    monkeypatch.setattr(_store, "release", lambda file: (given_back.append(file), release(file)))
    acts = some_acts()
    store = built(acts, 1).finish()
    given_back.clear()
    for _ in range(2):
        assert torch.equal(dense(store), acts)
        store.release()
    assert given_back == [*store.mapped, *store.mapped]
    assert len(store.mapped) == 2
    assert torch.equal(dense(store), acts)
    built(acts, 10**9).finish().release()
    assert len(given_back) == 4


@pytest.mark.parametrize("features", [(1, 4), (1, 2, 3), (4,)])
@pytest.mark.parametrize("memory_bytes", [1, 10**9])
def test_some_features_of_a_store_stay_in_its_files_where_they_follow_each_other(features, memory_bytes):
    acts = some_acts()
    store = built(acts, memory_bytes).finish()
    part = store.only(torch.tensor(features))
    stays = memory_bytes == 1 and features != (1, 4)
    assert part.mapped == (store.mapped if stays else ())
    shares_memory = part.values.untyped_storage().data_ptr() == store.values.untyped_storage().data_ptr()
    assert shares_memory == stays, "of a store in memory the rest can go"
    assert part.features.tolist() == list(features)
    for feature in features:
        for ours, theirs in zip(part.of(feature), store.of(feature), strict=True):
            assert torch.equal(ours, theirs)
        assert torch.equal(part.of(feature)[1], acts[:, feature][acts[:, feature] > 0])
    assert store.only(torch.arange(N)) is store
    assert store.only(torch.zeros(0, dtype=torch.int64)).offsets.tolist() == [0]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no list of open files")
def test_no_file_stays_open_when_the_store_is_let_go(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def open_files() -> list[str]:
        names = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
        return [os.readlink(name) for name in names if os.path.lexists(name) and str(tmp_path) in os.readlink(name)]

    builder = built(some_acts(), 1)
    assert len(open_files()) == 3, "positions, columns, values"
    store = builder.finish()
    assert all(file.closed for file in builder.files)
    assert len(open_files()) <= len(store.mapped)
    assert list(tmp_path.iterdir()) == [], "files have no names"
    del store, builder
    assert open_files() == []


def test_features_are_asked_for_by_their_ids():
    acts = some_acts()
    part = built(acts, 10**9).finish().only(torch.tensor([1, 4]))
    assert torch.equal(part.of(4)[1], acts[:, 4][acts[:, 4] > 0])
    assert torch.equal(part.of(np.int64(4))[0], part.of(4)[0])
    assert part.co_occurrence(torch.tensor([4, 1])).tolist() == part.co_occurrence([4, 1]).tolist()
    for wrong in (0, 2, -1, 2**70):
        with pytest.raises(InputError, match=f"Feature {wrong} is not in this store of 2 features"):
            part.of(wrong)
    for wrong in (True, 1.0, "1", None):
        with pytest.raises(InputError, match="by their ids"):
            part.of(wrong)
        for ask in (part.co_occurrence, part.correlated):
            with pytest.raises(InputError, match="by their ids"):
                ask([1, wrong])
    for ask in (part.co_occurrence, part.correlated):
        with pytest.raises(InputError, match="by their ids"):
            ask(1)
    for size in (0, -1, True, "3", 2.0):
        with pytest.raises(InputError, match="size must be an int >= 1"):
            part.correlated([1], size)


@pytest.mark.parametrize("memory_bytes", [1, 10**9])
def test_no_file_stays_open_after_an_error_even_while_the_error_is_kept(memory_bytes, monkeypatch):
    opened: list[Any] = []
    own = _store.temporary
    monkeypatch.setattr(_store, "temporary", lambda: opened.append(own()) or opened[-1])

    encoder, model, tokens = planted(some_acts().reshape(ROWS, SEQ, N))
    plan = CollectPlan(HOOK_POINT, 1, memory_bytes, neurons=False, correlate=None)

    def after_five(done, total, n_features):
        if done == 5:
            raise ZeroDivisionError

    wrapped, every, counted = LanguageModel(model), torch.arange(N), torch.ones(ROWS, SEQ, dtype=torch.bool)
    with pytest.raises(ZeroDivisionError) as caught, wrapped.as_for_inference():
        list(collect(wrapped, encoder, None, tokens, counted, every, every, plan, after_five))
    assert caught.value.__traceback__ is not None
    assert len(opened) == (3 if memory_bytes == 1 else 0)
    assert all(file.closed for file in opened)
