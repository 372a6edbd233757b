"""Feature folders: what is read is what was in memory, a killed run goes on, another run is refused, damage is told."""

from __future__ import annotations

import copy
import dataclasses
import errno
import gzip
import json
import math
import os
import pickle
import shutil
import subprocess
import tracemalloc
import zlib
from array import array
from pathlib import Path
from random import Random

import pytest
from fuzzing import survey
from hypothesis import given
from hypothesis import strategies as st
from rendering_fixtures import make_features
from test_saving_survives import run_child

from sae_vis import FeatureVisParams, FileFormatError, InputError, MultiFeatureData, _feature_folder, _json
from sae_vis.__main__ import main
from sae_vis._feature_folder import ROWS, RUN, VOCAB, FeatureFolder, index_name, part_name


def small(**params) -> MultiFeatureData:
    return make_features(7, first_group_size=3, n_groups=2, other_groups_size=2, **params)


def corpus(data: MultiFeatureData) -> bytes | None:
    """All rows of a run: those that the data has, and zeros where it shows none."""
    told = data.provenance
    if not data.params.store_rows:
        return None
    rows = [data.rows.get(row, [0] * told.seq_len) for row in range(told.n_rows)]
    return array("I", [token for row in rows for token in row]).tobytes()


def whole_vocabulary(data: MultiFeatureData) -> dict[int, str]:
    return {**data.vocab, **{i: f"unused {i}" for i in range(100_000, 100_005)}}


def opened(data: MultiFeatureData, folder: Path, **changes) -> FeatureFolder[MultiFeatureData]:
    """The folder of the run that ``data`` came from."""
    arguments = {
        "params": data.params,
        "provenance": copy.deepcopy(data.provenance),
        "vocab": whole_vocabulary(data),
        "vocab_bytes": data.vocab_bytes,
        "rows": corpus(data),
    }
    return FeatureFolder.create_or_resume(MultiFeatureData, folder, **{**arguments, **changes})


def write(data: MultiFeatureData, folder: Path, at_once: int = 3, **changes) -> MultiFeatureData:
    """Fetch what is not finished yet, as a run does."""
    with opened(data, folder, **changes) as run:
        todo = [i for i in data if i not in run.finished]
        for start in range(0, len(todo), at_once):
            run.add([data[i] for i in todo[start : start + at_once]])
        return run.data()


def trimmed(data: MultiFeatureData) -> MultiFeatureData:
    """The same with whole rows and the texts that occur, as fetching gives it: the synthetic run has others."""
    seq_len = data.provenance.seq_len
    shown = set().union(*(feature.shown_rows() for feature in data.values()))
    rows = {row: [*data.rows[row], *[0] * seq_len][:seq_len] for row in sorted(shown & data.rows.keys())}
    ids = {token for row in rows.values() for token in row}.union(*(f.vocab_ids() for f in data.values()))
    partial = {i: text for i, text in sorted(data.vocab_bytes.items()) if i in ids}
    return dataclasses.replace(data, vocab={i: data.vocab[i] for i in sorted(ids)}, vocab_bytes=partial, rows=rows)


@pytest.fixture
def data() -> MultiFeatureData:
    return trimmed(small())


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def reads(monkeypatch) -> list[int]:
    """The features that are read from disk, as they are."""
    seen: list[int] = []
    read = _feature_folder.FolderFeatures._read

    def counted(self, feature):
        seen.append(feature)
        return read(self, feature)

    monkeypatch.setattr(_feature_folder.FolderFeatures, "_read", counted)
    return seen


def fault(folder: Path) -> str:
    """What is said when everything in the folder is read."""
    with pytest.raises(FileFormatError) as caught:
        read_all(folder)
    return str(caught.value)


def read_all(folder: Path) -> MultiFeatureData:
    loaded = MultiFeatureData.load_dir(folder)
    list(loaded.values())
    list(loaded.rows.values())
    return loaded


# --- what is read is what was written ----------------------------------------------------------------------------------


@pytest.mark.parametrize("store_rows", [True, False])
@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_a_folder_gives_what_is_in_memory(store_rows, at_once, folder, tmp_path):
    data = trimmed(small(store_rows=store_rows))
    written = write(data, folder, at_once)
    loaded = MultiFeatureData.load_dir(folder)
    for lazy in (written, loaded):
        assert lazy == data
        assert data == lazy
        for name in ("json", "html", "json.gz"):
            ours, theirs = tmp_path / f"a.{name}", tmp_path / f"b.{name}"
            for one, path in ((lazy, ours), (data, theirs)):
                (one.save_html if name == "html" else one.save_json)(path)
            assert ours.read_bytes() == theirs.read_bytes()
    assert (folder / ROWS).exists() == store_rows


def test_order_of_writing_does_not_matter(data, folder):
    with opened(data, folder) as run:
        for i in (5, 2, 6, 0, 4, 1, 3):
            run.add([data[i]])
        assert run.finished == list(range(7))
        assert list(run.data()) == list(range(7))
        assert run.data() == data


def test_differences_are_seen(data, folder):
    loaded = write(data, folder)
    other = copy.deepcopy(data)
    other.feature_data_dict[6].activations.n_active += 1
    assert loaded != other
    assert loaded != dataclasses.replace(data, feature_data_dict={i: data[i] for i in range(6)})
    assert loaded != dataclasses.replace(data, rows={})
    assert loaded.feature_data_dict != 3


def test_the_mapping_behaves_as_in_memory(data, folder):
    loaded = write(data, folder)
    assert len(loaded) == 7
    assert list(loaded) == list(loaded.keys()) == list(range(7))
    assert 3 in loaded
    assert 7 not in loaded
    assert loaded[1].label == data[1].label
    assert [i for i, _ in loaded.items()] == list(range(7))
    assert repr(loaded) == repr(data)
    assert "7" in repr(loaded.feature_data_dict)
    assert loaded[2].get_html() == data[2].get_html()
    assert loaded._repr_html_() == data._repr_html_()
    for absent in (7, -1, "3", None, [1]):
        with pytest.raises(InputError, match="is not in this data"):
            loaded[absent]
    with pytest.raises(KeyError):
        loaded.rows[10**6]


def test_an_empty_folder_has_no_features(data, folder):
    with opened(data, folder) as run:
        run.add([])
        assert run.finished == []
        assert dict(run.data().items()) == {}
    assert len(MultiFeatureData.load_dir(folder)) == 0


def test_tokens_with_half_a_surrogate_pair_survive(data, folder):
    data.vocab[min(data.vocab)] = "\ud83d!"
    assert write(data, folder).vocab == data.vocab


def test_files_are_laid_out_as_the_documentation_says(data, folder):
    write(data, folder)
    names = [part_name(i) for i in range(3)] + [index_name(i) for i in range(3)] + [ROWS, RUN, VOCAB]
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    assert json.loads((folder / RUN).read_bytes())["kind"] == "FeatureFolder"
    lines = gzip.decompress((folder / part_name(1)).read_bytes())
    assert [json.loads(line)["feature_idx"] for line in lines.replace(b"}{", b"}\n{").split(b"\n")] == [3, 4, 5]
    index = json.loads(gzip.decompress((folder / index_name(1)).read_bytes()))
    start = index["sizes"][0]
    member = (folder / part_name(1)).read_bytes()[start : start + index["sizes"][1]]
    assert json.loads(gzip.decompress(member))["feature_idx"] == 4
    row = min(data.rows)
    at = row * data.provenance.seq_len * 4
    stored = array("I", (folder / ROWS).read_bytes()[at : at + data.provenance.seq_len * 4])
    assert stored.tolist() == data.rows[row]


def test_equal_data_gives_equal_files(data, tmp_path):
    for name in ("one", "other"):
        write(data, tmp_path / name)
    for path in sorted((tmp_path / "one").iterdir()):
        assert path.read_bytes() == (tmp_path / "other" / path.name).read_bytes()


# --- few at a time -----------------------------------------------------------------------------------------------------


def test_nothing_is_read_before_it_is_asked_for(data, folder, reads, monkeypatch):
    write(data, folder)
    loaded = MultiFeatureData.load_dir(folder)
    assert list(loaded) == list(loaded.keys())
    assert 3 in loaded
    repr(loaded)
    pickle.dumps(loaded)
    copy.copy(loaded)
    iter(loaded.values())
    assert reads == []
    assert loaded[4].feature_idx == 4
    assert loaded[4] is loaded[4]
    assert reads == [4]


def test_saving_and_drawing_read_each_feature_once(data, folder, reads, tmp_path):
    write(data, folder)
    for save in ("save_json", "save_html"):
        loaded = MultiFeatureData.load_dir(folder)
        reads.clear()
        getattr(loaded, save)(tmp_path / save)
        assert sorted(reads) == list(range(7)), save


def test_the_last_few_are_kept(data, folder, reads, monkeypatch):
    monkeypatch.setattr(_feature_folder, "CACHED", 2)
    write(data, folder)
    loaded = MultiFeatureData.load_dir(folder)
    for i in (0, 1, 0, 1, 2, 0):
        loaded[i]
    assert reads == [0, 1, 2, 0]


@pytest.mark.parametrize("held", [False, True])
def test_what_is_set_on_features_of_a_folder_is_not_lost(held, data, folder, monkeypatch, tmp_path):
    monkeypatch.setattr(_feature_folder, "CACHED", 2)
    write(data, folder)
    loaded = MultiFeatureData.load_dir(folder)
    features = loaded.values()
    for feature in list(features) if held else features:
        i = feature.feature_idx
        feature.label, feature.note, feature.starred = f"label {i}", f"note {i}", True
        feature.extras["mine"] = {"a": [i]}
    loaded[3].extras["mine"]["a"].append(33)
    loaded.labels[5] = "five"
    loaded[6].label = None
    for again in (
        loaded,
        pickle.loads(pickle.dumps(loaded)),
        loaded.merge(dataclasses.replace(data, feature_data_dict={})),
    ):
        assert dict(again.labels) == {**{i: f"label {i}" for i in range(5)}, 5: "five"}, "none of feature 6"
        assert [(one.note, one.starred, one.extras) for one in again.values()] == [
            (f"note {i}", True, {"mine": {"a": [i, 33] if i == 3 else [i]}}) for i in range(7)
        ]
    loaded.save_json(tmp_path / "all.json")
    saved = MultiFeatureData.load_json(tmp_path / "all.json")
    assert saved == loaded != data
    loaded.save_labels(tmp_path / "labels.json")
    fresh = MultiFeatureData.load_dir(folder)
    assert dict(fresh.labels) == dict(data.labels)
    fresh.load_labels(tmp_path / "labels.json")
    assert dict(fresh.labels) == dict(loaded.labels)


def test_a_feature_that_somebody_holds_is_the_same_object_each_time(data, folder, monkeypatch):
    monkeypatch.setattr(_feature_folder, "CACHED", 1)
    write(data, folder)
    loaded = MultiFeatureData.load_dir(folder)
    first = loaded[0]
    for i in range(1, 7):
        loaded[i]
    first.label = "late"
    assert loaded[0] is first
    assert loaded.labels[0] == "late"
    loaded.labels[0] = "later"
    assert first.label == "later"
    del first
    loaded[5], loaded[6]
    assert loaded[0].label == "later"


def test_memory_does_not_grow_with_the_number_of_features(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(_feature_folder, "CACHED", 4)
    one = trimmed(make_features(4, dead=()))
    n = 100
    data = dataclasses.replace(one, params=FeatureVisParams())
    data.provenance.d_hidden = n
    with opened(data, folder) as run:
        for start in range(0, n, 50):
            run.add([dataclasses.replace(one[i % 4], feature_idx=i) for i in range(start, start + 50)])
        tracemalloc.start()
        loaded = run.data()
        before = tracemalloc.get_traced_memory()[0]
        loaded[0]
        of_one = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.reset_peak()
        total = sum(feature.activations.n_active for feature in loaded.values())
        assert total == sum(one[i % 4].activations.n_active for i in range(n))
        peak_reading = tracemalloc.get_traced_memory()[1] - before
        tracemalloc.reset_peak()
        loaded.save_json(tmp_path / "all.json.gz")
        peak_saving = tracemalloc.get_traced_memory()[1] - before
        tracemalloc.stop()
    most = (_feature_folder.CACHED + 4) * of_one
    assert peak_reading < most < n * of_one / 8
    assert peak_saving < n * of_one / 2  # of which the header has the rows


def test_pickling_and_copying_keep_the_folder(data, folder, reads):
    write(data, folder)
    loaded = MultiFeatureData.load_dir(folder)
    packed = pickle.dumps(loaded)
    deep = copy.deepcopy(loaded)
    assert reads == []
    assert pickle.loads(packed) == data == deep


def test_merging_reads_no_feature(data, folder, tmp_path, reads):
    halves = [
        trimmed(dataclasses.replace(data, feature_data_dict={i: data[i] for i in ids}, params=data.params))
        for ids in ((0, 2, 5), (1, 3, 4, 6))
    ]
    lazy = [
        write(half, tmp_path / str(i), rows=corpus(data), vocab=whole_vocabulary(data)) for i, half in enumerate(halves)
    ]
    merged = lazy[0].merge(lazy[1])
    mixed = lazy[0].merge(halves[1])
    assert reads == []
    assert list(merged) == list(mixed) == list(range(7))
    assert merged == mixed == data
    with pytest.raises(InputError, match="both hold 0, 2, 5"):
        lazy[0].merge(halves[0])


# --- going on ------------------------------------------------------------------------------------------------------------


def killed(run: FeatureFolder, monkeypatch, at: str) -> None:
    """Let the process die when the file is to be written."""
    write_atomic = _json.write_atomic

    def dying(path, content):
        if Path(path).name == at:
            raise KeyboardInterrupt
        write_atomic(path, content)

    monkeypatch.setattr(_json, "write_atomic", dying)


STEPS = [RUN, VOCAB, ROWS, part_name(0), index_name(0), part_name(1), index_name(1), part_name(2), index_name(2)]


@pytest.mark.parametrize("step", STEPS)
def test_a_run_that_is_killed_goes_on(step, data, folder, monkeypatch):
    with monkeypatch.context() as patch:
        killed(None, patch, step)
        with pytest.raises(KeyboardInterrupt):
            write(data, folder)
    n_before = 0
    if step not in STEPS[:3]:
        loaded = read_all(folder)
        n_before = 3 * ((STEPS.index(step) - 3) // 2)
        assert len(loaded) == n_before
    with opened(data, folder) as run:
        assert len(run.finished) == n_before
    assert write(data, folder) == data
    assert read_all(folder) == data


def test_a_part_without_its_index_is_written_over(data, folder):
    write(data, folder)
    (folder / index_name(1)).unlink()
    (folder / part_name(1)).write_bytes(b"half a part")
    assert list(read_all(folder)) == [0, 1, 2, 6]
    assert write(data, folder) == data
    assert len(list(folder.iterdir())) == 9


def test_temporary_files_of_killed_runs_are_no_foreign_files(data, folder):
    folder.mkdir()
    (folder / ".sae_vis-0123456789abcdef.tmp").write_bytes(b"x")
    assert write(data, folder) == data


def test_a_finished_run_is_left_as_it_is(data, folder):
    write(data, folder)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    assert write(data, folder) == data
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()} == before


def test_more_features_can_be_asked_for_later(data, folder):
    def asking(ids):
        params = dataclasses.replace(data.params, features=ids)
        return trimmed(dataclasses.replace(data, feature_data_dict={i: data[i] for i in ids}, params=params))

    options = {"rows": corpus(data), "vocab": whole_vocabulary(data), "vocab_bytes": data.vocab_bytes}
    assert write(asking((1, 4)), folder, **options) == asking((1, 4))
    assert write(asking((0, 1, 2)), folder, **options) == asking((0, 1, 2, 4))
    everything = write(data, folder, **options)
    assert everything == data
    assert everything.params.features is None
    assert write(asking((0, 1)), folder, **options) == data


def test_options_of_how_a_run_is_made_may_change(data, folder):
    write(data, folder)
    changed = {"minibatch_size_tokens": 3, "minibatch_size_features": 5, "memory_budget": 10**6, "verbose": False}
    params = dataclasses.replace(data.params, **changed)
    assert write(data, folder, params=params) == dataclasses.replace(data, params=params)
    assert MultiFeatureData.load_dir(folder).params == params


def test_what_a_run_finds_out_is_kept(data, folder):
    first = copy.deepcopy(data.provenance)
    first.notes = ["at the start"]
    with opened(data, folder, provenance=first) as run:
        run.add([data[0]])
        first.notes.append("clamped")
        run.add([data[1]])
    again = copy.deepcopy(data.provenance)
    again.notes = ["at the start", "new"]
    with opened(data, folder, provenance=again) as run:
        assert again.notes == ["at the start", "clamped", "new"]
        run.add([data[2]])
        again.direct_effect, again.direct_effect_reason = "none", "found on the way"
        assert run.data().provenance is again
    third = copy.deepcopy(data.provenance)
    with opened(data, folder, provenance=third):
        pass
    assert third == again == MultiFeatureData.load_dir(folder).provenance
    assert third.direct_effect == "none"


CHILD = """
    import sys
    sys.path.insert(0, sys.argv[3])
    from test_feature_folder import opened
    from sae_vis import MultiFeatureData
    data = MultiFeatureData.load_json(sys.argv[1])
    print("ready", flush=True)
    with opened(data, sys.argv[2]) as run:
        for i in data:
            if i not in run.finished:
                run.add([data[i]])
    print("done", flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kill -9 is of POSIX")
def test_a_run_that_is_killed_again_and_again_comes_to_its_end(tmp_path, folder):
    one = trimmed(small())
    data = dataclasses.replace(
        one, feature_data_dict={i: dataclasses.replace(one[i % 7], feature_idx=i) for i in range(300)}
    )
    data.save_json(tmp_path / "data.json")
    random, n_before, kills = Random(0), 0, 0
    while True:
        child = run_child(CHILD, tmp_path / "data.json", folder, Path(__file__).parent)
        assert child.stdout.readline() == "ready\n", child.stderr.read()
        try:
            child.wait(random.uniform(0.01, 0.08) if kills < 5 else 60)
        except subprocess.TimeoutExpired:
            child.kill()
            kills += 1
        told, errors = child.communicate()
        assert not errors
        if told == "done\n":
            break
        if (folder / RUN).exists() and (folder / VOCAB).exists() and (folder / ROWS).exists():
            loaded = read_all(folder)
            assert len(loaded) >= n_before
            n_before = len(loaded)
            assert all(loaded[i] == data[i] for i in loaded)
    assert kills >= 2
    assert read_all(folder) == data


# --- a real run ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"store_rows": False, "ablation": ("direct", "full")}])
def test_what_a_model_gave_is_the_same_from_a_folder(options, folder):
    torch = pytest.importorskip("torch")
    from brute_force import random_encoder
    from hf_models import shared, some_tokens

    from sae_vis import get_feature_data
    from sae_vis._vocabulary import token_texts

    model, tokens = shared("gpt2"), some_tokens()
    fvp = FeatureVisParams("blocks.0.mlp.hook_post", verbose=False, n_groups=2, first_group_size=4, **options)
    data = get_feature_data(random_encoder(64, 6), model, tokens, fvp)
    texts = token_texts(model.tokenizer, range(model.cfg.d_vocab))
    stored = torch.as_tensor(tokens).to(torch.int32).numpy().astype("<u4").tobytes() if fvp.store_rows else None
    with FeatureFolder.create_or_resume(
        MultiFeatureData, folder, fvp, copy.deepcopy(data.provenance), texts.text, texts.partial, stored
    ) as run:
        run.add([data[0], data[4]])
        run.add([data[i] for i in (5, 1, 2, 3)])
        assert run.data() == data
    loaded = MultiFeatureData.load_dir(folder)
    assert loaded == data
    assert loaded.get_html() == data.get_html()


# --- never a mix ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("params.seed", lambda d: {"params": dataclasses.replace(d.params, seed=9)}),
        ("params.hook_point", lambda d: {"params": dataclasses.replace(d.params, hook_point="blocks.3.hook_mlp_out")}),
        ("params.correlate_features", lambda d: {"params": dataclasses.replace(d.params, correlate_features="asked")}),
        ("provenance.hook_point", lambda d: {"provenance": dataclasses.replace(d.provenance, hook_point="elsewhere")}),
        ("provenance.d_hidden", lambda d: {"provenance": dataclasses.replace(d.provenance, d_hidden=9999)}),
        (
            "provenance.ignored_token_ids",
            lambda d: {"provenance": dataclasses.replace(d.provenance, ignored_token_ids=[])},
        ),
        *(
            (f"provenance.digests.{name}", lambda d, name=name: {"provenance": changed(d, "digests", name)})
            for name in ("model", "encoder", "encoder_B", "tokens")
        ),
        *(
            (f"provenance.versions.{name}", lambda d, name=name: {"provenance": changed(d, "versions", name)})
            for name in ("sae_vis", "torch", "transformer_lens", "something")
        ),
        ("the vocabulary's texts", lambda d: {"vocab": {**whole_vocabulary(d), 5: "another tokenizer"}}),
        ("the vocabulary's texts", lambda d: {"vocab_bytes": {}}),
    ],
)
def test_another_run_is_refused_by_what_differs(what, change, data, folder):
    data.vocab_bytes[min(data.vocab)] = "e2"
    write(data, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(InputError) as caught:
        opened(data, folder, **change(data))
    assert what in str(caught.value)
    assert "Give another out_dir" in str(caught.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def changed(data, field, key):
    return dataclasses.replace(data.provenance, **{field: {**getattr(data.provenance, field), key: "other"}})


def test_without_rows_and_with_them_are_two_runs(data, folder):
    write(data, folder)
    with pytest.raises(InputError, match=r"params\.store_rows"):
        opened(data, folder, params=dataclasses.replace(data.params, store_rows=False), rows=None)


def test_features_that_are_correlated_with_each_other_are_asked_for_at_once(folder):
    data = trimmed(small(correlate_features="asked", features=(0, 1, 2)))
    write(data, folder)
    assert write(data, folder) == data
    with pytest.raises(InputError, match="correlate_features='asked'"):
        opened(data, folder, params=dataclasses.replace(data.params, features=(0, 1)))
    loose = trimmed(small(correlate_features="asked", features=(0, 1), include_left_tables=False))
    write(loose, folder.with_name("other"))
    more = dataclasses.replace(loose.params, features=(0, 1, 2))
    assert write(loose, folder.with_name("other"), params=more).params == more


def test_two_runs_at_a_time_are_refused(data, folder):
    with opened(data, folder), pytest.raises(InputError, match="Another run is writing"):
        opened(data, folder)
    opened(data, folder).close()


@pytest.mark.parametrize("error", [BlockingIOError, OSError])
def test_a_file_system_without_locks_is_no_hindrance(error, data, folder, monkeypatch):
    def flock(*_):
        raise error

    monkeypatch.setattr(_feature_folder.fcntl, "flock", flock)
    if error is OSError:
        assert write(data, folder) == data
    else:
        with pytest.raises(InputError, match="Another run"):
            opened(data, folder)
    monkeypatch.setattr(_feature_folder, "fcntl", None)
    assert write(data, folder) == data


def test_a_folder_of_other_files_is_refused_and_left_alone(data, folder):
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match=r"holds other files \('thesis.tex'\)"):
        opened(data, folder)
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]
    (folder / RUN).write_text('{"name": "another tool"}', encoding="utf-8")
    with pytest.raises(FileFormatError, match="a FeatureFolder of sae_vis was expected"):
        opened(data, folder)
    assert (folder / RUN).read_text(encoding="utf-8") == '{"name": "another tool"}'


def test_a_folder_that_cannot_be_made_is_a_clear_error(data, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for name, message in (
        ("file", "File exists|Not a directory"),
        ("no/such", "its parent does not exist"),
        ("a\0b", "null|NUL"),
    ):
        with pytest.raises(InputError, match=message):
            opened(data, tmp_path / name)


def test_a_feature_is_added_once(data, folder):
    with opened(data, folder) as run:
        run.add([data[0], data[1]])
        for again in ([data[1]], [data[2], data[2]]):
            with pytest.raises(InputError, match="is there already"):
                run.add(again)
        with pytest.raises(InputError, match="from 0 to 2047, got 2048"):
            run.add([dataclasses.replace(data[0], feature_idx=2048)])
        assert run.finished == [0, 1]


def test_a_value_that_cannot_be_written_is_told_by_its_path(data, folder):
    data[2].activations.max = math.nan
    with opened(data, folder) as run:
        with pytest.raises(InputError, match=r"\(feature 2\)\.activations\.max"):
            run.add([data[1], data[2]])
        assert run.finished == []
    assert list(read_all(folder)) == []


@pytest.mark.parametrize("rows", [None, b"", bytes(8)])
def test_rows_of_another_size_are_an_error(rows, data, folder):
    with pytest.raises(InputError, match="rows"):
        opened(data, folder, rows=rows)
    assert not folder.exists()


def test_a_full_disk_leaves_what_was_finished(data, folder, monkeypatch):
    with opened(data, folder) as run:
        run.add([data[0]])

        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(InputError, match="No space left"):
            run.add([data[1]])
        assert run.finished == [0]
    assert list(read_all(folder)) == [0]


# --- damage ------------------------------------------------------------------------------------------------------------


def edit(path: Path, change) -> None:
    """Change the content of a JSON file."""
    zipped = path.suffix == ".gz"
    content = json.loads(gzip.decompress(path.read_bytes()) if zipped else path.read_bytes())
    change(content)
    encoded = json.dumps(content).encode()
    path.write_bytes(gzip.compress(encoded) if zipped else encoded)


def swap(values: list) -> None:
    values[0], values[1] = values[1], values[0]


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (RUN, lambda c: c.update(version=3), "install a newer sae_vis"),
        (RUN, lambda c: c.update(version="1"), "not readable"),
        (RUN, lambda c: c.update(kind="MultiFeatureData"), "a FeatureFolder of sae_vis was expected"),
        (RUN, lambda c: c.update(extra=1), "extra"),
        (RUN, lambda c: c["params"].update(extra=1), "params: .*extra"),
        (RUN, lambda c: c["params"].update(seed="x"), r"\$\.seed"),
        (RUN, lambda c: c["params"].update(store_rows=False), "does not fit store_rows"),
        (RUN, lambda c: c["provenance"].pop("model"), "provenance: .*model"),
        (RUN, lambda c: c["provenance"].update(n_rows=3), "3 rows at most"),
        (RUN, lambda c: c["provenance"].update(seq_len=3), "bytes expected"),
        (RUN, lambda c: c.update(rows_crc32=1), "rows.bin: damaged"),
        (RUN, lambda c: c.update(vocab_crc32=1), "vocab.json.gz: damaged"),
        (VOCAB, lambda c: c["vocab"].popitem(), "vocab.json.gz: damaged"),
        (VOCAB, lambda c: c.update(vocab=3), "not readable"),
        (index_name(1), lambda c: c.update(version=3), "install a newer sae_vis"),
        (index_name(1), lambda c: c["features"].pop(), "lists of one length"),
        (index_name(1), lambda c: c["sizes"].append(1), "lists of one length"),
        (index_name(1), lambda c: c["features"].__setitem__(0, 0), "feature 0 is in another part too"),
        (index_name(1), lambda c: c["features"].__setitem__(0, 99), "feature 99: it holds feature 3"),
        (index_name(1), lambda c: swap(c["features"]), "feature 3: it holds feature 4"),
        (index_name(1), lambda c: swap(c["sizes"]), "features-00001.json.gz: feature 3: .*index"),
        (index_name(1), lambda c: swap(c["lengths"]), "feature 3: it does not stand where"),
        (index_name(1), lambda c: c["sizes"].__setitem__(0, 5), "its index says"),
        (index_name(1), lambda c: c["rows"].append(10**9), "rows at most"),
        (index_name(1), lambda c: c["sizes"].__setitem__(0, -5), "lists of one length"),
        (index_name(1), lambda c: c.pop("rows"), "not readable"),
    ],
)
def test_a_wrong_file_is_told_by_its_name_and_place(file, change, message, data, folder):
    write(data, folder)
    edit(folder / file, change)
    with pytest.raises(FileFormatError, match=message) as caught:
        read_all(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("file", [RUN, VOCAB, ROWS, part_name(1), index_name(1)])
@pytest.mark.parametrize("damage", ["truncated", "empty", "absent", "garbage"])
def test_a_damaged_file_is_told_by_its_name(file, damage, data, folder):
    write(data, folder)
    path = folder / file
    content = path.read_bytes()
    if damage == "absent":
        path.unlink()
    else:
        path.write_bytes(
            {"truncated": content[:-5], "empty": b"", "garbage": Random(0).randbytes(len(content))}[damage]
        )
    if (file, damage) == (index_name(1), "absent"):
        assert list(read_all(folder)) == [0, 1, 2, 6]
    else:
        assert file in fault(folder)


def test_other_parts_are_read_beside_a_feature_that_is_damaged(data, folder):
    write(data, folder)
    content = bytearray((folder / part_name(1)).read_bytes())
    content[40] ^= 255
    (folder / part_name(1)).write_bytes(content)
    loaded = MultiFeatureData.load_dir(folder)
    with pytest.raises(
        FileFormatError, match=r"features-00001.json.gz: feature 3: .*gzip stream is damaged.*remove its index"
    ):
        loaded[3]
    assert loaded[4] == data[4]
    (folder / index_name(1)).unlink()
    assert write(data, folder) == data


def test_values_are_checked_as_in_a_file(data, folder):
    write(data, folder, at_once=1)
    original = gzip.decompress((folder / part_name(0)).read_bytes())

    def spoilt(change) -> str:
        content = json.loads(original)
        change(content)
        put(json.dumps(content).encode())
        return fault(folder)

    def put(line: bytes) -> None:
        member = gzip.compress(line)
        (folder / part_name(0)).write_bytes(member)
        edit(folder / index_name(0), lambda c: c.update(sizes=[len(member)], lengths=[len(line)]))

    assert "feature 0: $.activations.density: expected float, got str" in spoilt(
        lambda c: c["activations"].update(density="x")
    )
    assert "density must be from 0 to 1" in spoilt(lambda c: c["activations"].update(density=2.0))
    assert "unknown" in spoilt(lambda c: c["activations"].update(surprise=2.0))
    put(original.replace(b'{"feature_idx":0', b'{"feature_idx":1,"feature_idx":0'))
    assert "$.feature_idx is there twice" in fault(folder)
    put(json.dumps(json.loads(original), indent=1).encode())
    assert read_all(folder) == data


def test_an_index_cannot_claim_any_length(data, folder):
    write(data, folder, at_once=1)
    for length in (2**63 - 1, 2**40, 0):
        edit(folder / index_name(0), lambda c, length=length: c.update(lengths=[length]))
        assert "lengths must be lists of one length" in fault(folder)


def test_a_gzip_bomb_is_stopped(data, folder):
    write(data, folder, at_once=1)
    member = gzip.compress(bytes(10**8))
    (folder / part_name(0)).write_bytes(member)
    edit(folder / index_name(0), lambda c: c.update(sizes=[len(member)]))
    tracemalloc.start()
    assert "does not stand where the index says" in fault(folder)
    assert tracemalloc.get_traced_memory()[1] < 2 * 10**7
    tracemalloc.stop()


def test_what_is_no_folder_of_ours(data, tmp_path):
    assert "there is no such folder" in fault(tmp_path / "nowhere")
    assert "holds no run.json" in fault(tmp_path)
    data.save_json(tmp_path / "file.json")
    assert "no such folder" in fault(tmp_path / "file.json")
    assert "cannot be read: File name too long" in fault(tmp_path / ("x" * 300))


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "run"
    write(trimmed(small()), folder)
    return folder


def test_any_damage_is_an_error_or_changes_nothing(written, tmp_path):
    """Every byte that counts is under a checksum but for those of run.json, where a change may give another valid run."""
    whole = read_all(written)
    contents = {path.name: path.read_bytes() for path in written.iterdir()}
    names = sorted(contents)

    def make(random: Random):
        name = random.choice(names)
        content = bytearray(contents[name])
        for _ in range(random.choice([1, 1, 3])):
            at = random.randrange(len(content))
            kind = random.randrange(4)
            if kind == 0:
                content[at] ^= 1 << random.randrange(8)
            elif kind == 1:
                del content[at : at + random.randrange(1, 9)]
            elif kind == 2:
                content[at:at] = random.randbytes(random.randrange(1, 9))
            else:
                content[at:] = b""
            if not content:
                break
        return name, bytes(content)

    def check(case) -> str:
        name, content = case
        try:
            (written / name).write_bytes(content)
            loaded = read_all(written)
            if name != RUN:
                assert loaded == whole
            return "read"
        finally:
            (written / name).write_bytes(contents[name])

    answers = survey("feature-folder", 300, make, check)
    assert answers["refused"] > 200
    assert read_all(written) == whole


@given(st.lists(st.integers(0, 6), unique=True, min_size=1), st.data())
def test_any_order_and_any_split_into_parts_give_the_same(order, draw):
    import tempfile

    data = WHOLE
    with tempfile.TemporaryDirectory() as name:
        left = list(order)
        while left:
            n = draw.draw(st.integers(1, len(left)))
            with opened(data, Path(name) / "run") as run:
                run.add([data[i] for i in left[:n]])
            left = left[n:]
        some = dataclasses.replace(data, feature_data_dict={i: data[i] for i in order})
        assert MultiFeatureData.load_dir(Path(name) / "run") == trimmed(some)


WHOLE = trimmed(small())


# --- the command line ----------------------------------------------------------------------------------------------------


def test_info_and_html_read_a_folder(data, folder, capsys, monkeypatch):
    write(data, folder)
    assert main(["info", str(folder)]) == 0
    told = capsys.readouterr().out
    assert "7: 0, 1, 2, 3, 4, 5, 6" in told
    assert data.provenance.hook_point in told
    assert main(["html", str(folder)]) == 0
    assert folder.with_name("run.html").read_text(encoding="utf-8") == data.get_html()
    folder.with_name("run.html").unlink()
    monkeypatch.chdir(folder)
    assert main(["html", "."]) == 0
    assert folder.with_name("run.html").exists()


def test_a_folder_of_other_things_is_a_clear_error(tmp_path, capsys):
    assert main(["info", str(tmp_path)]) == 2
    assert "no feature folder" in capsys.readouterr().err


def test_rows_are_read_the_same_on_a_machine_of_the_other_byte_order(data, folder, monkeypatch):
    write(data, folder)
    row = min(data.rows)
    monkeypatch.setattr("sys.byteorder", "big")
    values = array("I", data.rows[row])
    values.byteswap()
    assert MultiFeatureData.load_dir(folder).rows[row] == values.tolist()


def test_the_checksums_are_those_of_zlib(data, folder):
    write(data, folder)
    run = json.loads((folder / RUN).read_bytes())
    assert run["rows_crc32"] == zlib.crc32((folder / ROWS).read_bytes())
    assert run["vocab_crc32"] == zlib.crc32(gzip.decompress((folder / VOCAB).read_bytes()))


def test_a_truncated_file_of_rows_that_is_found_late_is_an_error(data, folder):
    write(data, folder)
    rows = MultiFeatureData.load_dir(folder).rows
    shutil.copy(folder / ROWS, folder / "copy")
    (folder / "copy").write_bytes((folder / ROWS).read_bytes()[:10])
    late = _feature_folder.FolderRows(folder / "copy", data.provenance.seq_len, rows)
    with pytest.raises(FileFormatError, match="truncated"):
        late[max(rows)]


def test_a_folder_as_a_file_is_told_the_way(data, folder):
    write(data, folder)
    with pytest.raises(FileFormatError, match="load_dir opens one"):
        MultiFeatureData.load_json(folder)


def test_the_example_in_the_docs_reads_a_folder(data, folder, monkeypatch):
    numpy = pytest.importorskip("numpy")
    write(data, folder, at_once=100)
    text = (Path(__file__).parents[1] / "docs" / "json.md").read_text(encoding="utf-8")
    code = text.partition("## The folder of a run")[2].partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(folder.parent)
    told = data.provenance
    names = {"json": json, "gzip": gzip, "Path": Path, "numpy": numpy, "n_rows": told.n_rows, "seq_len": told.seq_len}
    exec(code, names)
    assert names["fifth"]["feature_idx"] == 4
    assert all(names["rows"][row].tolist() == data.rows[row] for row in data.rows)
