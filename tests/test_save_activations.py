"""``get_feature_data(..., save_activations=...)``: what was collected is kept, and later calls run the later stages alone."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from brute_force import random_encoder
from hf_models import build, some_tokens
from safetensors import safe_open
from safetensors.torch import save_file

from sae_vis import (
    AutoEncoder,
    FeatureVisParams,
    FileFormatError,
    InputError,
    MultiFeatureData,
    _feature_view,
    _run,
    _store_file,
    get_feature_data,
    get_prompt_data,
    load_activations,
)
from sae_vis._correlations import SparseColumns, co_occurrence

HOOK_POINT = "blocks.1.hook_resid_pre"
N = 12
PARAMS = FeatureVisParams(HOOK_POINT, verbose=False)


@pytest.fixture(scope="module")
def model() -> Any:
    return build("gpt2")


@pytest.fixture(scope="module")
def encoder() -> Any:
    return random_encoder(16, N)


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "activations.safetensors"


@pytest.fixture
def collected(monkeypatch) -> list[int]:
    """How many features were collected, for each time that the model ran over the tokens."""
    calls: list[int] = []
    own = _feature_view.collect

    def counted(*args):
        calls.append(len(args[5]))
        return own(*args)

    monkeypatch.setattr(_feature_view, "collect", counted)
    return calls


def run(encoder, model, file=None, encoder_b=None, tokens=None, **options) -> MultiFeatureData:
    tokens = some_tokens() if tokens is None else tokens
    params = dataclasses.replace(PARAMS, **options)
    return get_feature_data(encoder, model, tokens, params, encoder_b, save_activations=file)


@pytest.mark.parametrize(
    "later",
    [
        {"n_groups": 3, "buffer": (1, 2), "seed": 4},
        {"features": (1, 5, 7)},
        {"features": (1, 5, 7), "correlate_features": "asked"},
        {"include_left_tables": False, "ablation": ("direct", "full")},
        {"rows_in_left_tables": 5, "minibatch_size_tokens": 2},
        {"memory_budget": 3000},
    ],
)
def test_other_options_give_the_same_as_without_the_file_and_do_not_collect(later, model, encoder, file, collected):
    b = random_encoder(16, 5)
    assert run(encoder, model, file, b) == run(encoder, model, None, b)
    expected = run(encoder, model, None, b, **later)
    collected.clear()
    assert run(encoder, model, file, b, **later) == expected
    assert collected == []


def test_a_file_that_holds_too_little_is_written_again(model, encoder, file, collected):
    run(encoder, model, file, features=(1, 4), correlate_features="asked")
    assert run(encoder, model, file, features=(1, 4, 6)) == run(encoder, model, features=(1, 4, 6))
    assert collected == [2, 3, 3]
    assert run(encoder, model, file, features=(1, 6)) == run(encoder, model, features=(1, 6))
    assert collected == [2, 3, 3, 2]
    with_b = run(encoder, model, file, random_encoder(16, 5), features=(1, 6))
    assert with_b == run(encoder, model, None, random_encoder(16, 5), features=(1, 6))


@pytest.mark.parametrize("what", ["encoder", "tokens", "model", "hook_point", "ignored_token_ids"])
def test_the_activations_of_another_run_are_refused(what, model, encoder, file):
    run(encoder, model, file)
    before = file.read_bytes()
    with pytest.raises(InputError, match=rf"holds the activations of another run: .*{what}.*remove the file"):
        run(
            random_encoder(16, N, seed=7) if what == "encoder" else encoder,
            build("llama") if what == "model" else model,
            file,
            tokens=some_tokens(seed=3) if what == "tokens" else None,
            hook_point="blocks.0.hook_resid_pre" if what == "hook_point" else HOOK_POINT,
            ignore_tokens=(5,) if what == "ignored_token_ids" else None,
        )
    assert file.read_bytes() == before


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign", "header", "newer", "offsets", "positions"])
def test_a_damaged_file_is_told(damage, model, encoder, file):
    run(encoder, model, file)
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    if damage == "truncated":
        content = content[:-9]
    elif damage == "empty":
        content = b""
    elif damage == "foreign":
        content = content.replace(b"sae_vis activations", b"sea_vis activations")
    elif damage == "header":
        content = content[:20] + b"\xff" + content[21:]
    elif damage == "newer":
        content = content.replace(b'"version":"1"', b'"version":"9"')
    else:
        start = 8 + size + header[damage]["data_offsets"][0]
        content = content[:start] + b"\x7f" * 8 + content[start + 8 :]
    file.write_bytes(content)
    advice = "give another path" if damage == "foreign" else "Remove the file, and the next call writes it again"
    with pytest.raises(FileFormatError, match=rf"{file}.*{advice}\.$"):
        run(encoder, model, file)


def test_a_file_with_features_of_b_gives_a_call_without_b_none(model, encoder, file):
    run(encoder, model, file, random_encoder(16, 9, seed=5))
    assert run(encoder, model, file) == run(encoder, model)


def test_a_file_with_correlated_neurons_gives_a_call_without_tables_none(model, encoder, file):
    run(encoder, model, file)
    assert run(encoder, model, file, include_left_tables=False) == run(encoder, model, include_left_tables=False)


@pytest.mark.parametrize("name", ["cfg", "k", "inner"])
def test_the_same_weights_with_another_setting_are_another_encoder(name, model, encoder, file, tmp_path):
    """Whether b_dec is subtracted, and how many features may be active, is written in no tensor."""
    plain, other = settings_of(encoder, name)
    features = run(plain, model, file)
    run(plain, model, tmp_path / "again")
    assert file.read_bytes() == (tmp_path / "again").read_bytes()
    with pytest.raises(InputError, match=r"digests\.encoder"):
        run(other, model, file)
    with pytest.raises(InputError, match="another encoder"):
        get_prompt_data(other, model, [5, 6, 7], features)


def settings_of(encoder: Any, name: str) -> tuple[Any, Any]:
    if name == "cfg":
        with torch.no_grad():
            encoder = AutoEncoder.from_weights({**encoder.state_dict(), "b_dec": torch.full((16,), 0.3)})
        return encoder, AutoEncoder.from_weights(encoder.state_dict(), apply_b_dec_to_input=False)
    few, many = TopK(encoder, 2), TopK(encoder, 5)
    return (few, many) if name == "k" else (Outer(few), Outer(many))


class TopK(torch.nn.Module):
    def __init__(self, encoder: Any, k: int) -> None:
        super().__init__()
        self.weights = torch.nn.Parameter(encoder.W_dec.detach().clone())
        self.k, self.device, self.d_hidden, self.d_in = k, "cpu", *encoder.W_dec.shape

    def encode(self, x, features=None):
        acts = x.float() @ self.weights.T
        acts = torch.where(acts >= acts.topk(self.k).values[..., -1:], acts, 0.0).relu()
        return acts if features is None else acts[..., features]

    def decoder_rows(self, features):
        return self.weights[features]


class Outer(torch.nn.Module):
    def __init__(self, inner: TopK) -> None:
        super().__init__()
        self.inner, self.d_hidden, self.d_in = inner, inner.d_hidden, inner.d_in
        self.encode, self.decoder_rows = inner.encode, inner.decoder_rows


def test_the_device_of_a_module_is_no_setting(encoder):
    one, other = TopK(encoder, 2), TopK(encoder, 2).eval()
    other.device = "cuda"
    assert _run._encoder_digest(one) == _run._encoder_digest(other)


def foreign(name: str, path: Path) -> None:
    if name == "folder":
        path.mkdir()
    elif name == "pipe":
        os.mkfifo(path)
    elif name == "tensors":
        save_file({"W_enc": torch.zeros(2)}, path)
    elif name == "page":
        path.write_text("<!doctype html><p>sae_vis activations", encoding="utf-8")
    else:
        path.write_bytes(b"\x89PNG" + b"\0" * 5000)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("folder", "it is a folder, and activations are kept in a file: give another path"),
        ("pipe", "it is no plain file: give another path"),
        *(
            (name, "it is not a file of activations that sae_vis wrote: give another path")
            for name in ("tensors", "page", "")
        ),
    ],
)
def test_what_is_no_file_of_activations_is_told_and_left_alone(name, told, model, encoder, file, collected):
    foreign(name, file)
    before = file.read_bytes() if file.is_file() else None
    for call in (lambda: load_activations(file), lambda: run(encoder, model, str(file))):
        with pytest.raises(FileFormatError, match=rf"^{re.escape(str(file))}: {told}\.$"):
            call()
    assert collected == []
    if before is not None:
        with pytest.raises(FileFormatError, match=told):
            _store_file.save_collected(None, file, {})
        assert file.read_bytes() == before


def test_a_missing_file_is_told_with_what_writes_one(file, tmp_path):
    with pytest.raises(
        FileFormatError, match=r"no such file; get_feature_data\(\.\.\., save_activations=…\) writes one\.$"
    ):
        load_activations(file)
    for path in ("a\0b", tmp_path / ("long" * 200)):
        with pytest.raises(FileFormatError, match=r"cannot be read: (?!.*Remove)"):
            load_activations(path)


@pytest.mark.parametrize("described", ["[]", "3", "{}", '{"identity": 3}', "[" * 100_000, "{"])
def test_a_file_of_ours_that_does_not_say_whose_it_is_is_told(described, file, model, encoder):
    metadata = {"kind": _store_file.KIND, "version": "1", "described": described}
    file.write_bytes(b"".join(_store_file._document({"counted": torch.zeros(2, 2, dtype=torch.bool)}, metadata)))
    for call in (lambda: load_activations(file), lambda: run(encoder, model, file)):
        with pytest.raises(FileFormatError, match="Remove the file, and the next call writes it again"):
            call()


def test_equal_runs_give_equal_files_that_other_programs_read(model, encoder, file, tmp_path):
    run(encoder, model, file)
    run(encoder, model, tmp_path / "again")
    assert file.read_bytes() == (tmp_path / "again").read_bytes()
    with safe_open(file, framework="pt") as opened:
        positions, values = opened.get_tensor("positions"), opened.get_tensor("values")
        offsets, features = opened.get_tensor("offsets"), opened.get_tensor("features")
    assert features.tolist() == list(range(N))
    assert len(positions) == len(values) == int(offsets[-1]) > 0


def test_a_file_that_cannot_be_written_is_told(model, encoder, tmp_path):
    with pytest.raises(InputError, match="its folder does not exist"):
        run(encoder, model, tmp_path / "no/such/folder")


def test_co_occurrence_counts_the_positions_where_both_are_active(model, encoder, file):
    run(encoder, model, file)
    store = load_activations(file)
    dense = torch.zeros(store.counted.numel(), N, dtype=torch.bool)
    for feature in range(N):
        dense[store.of(feature)[0].long(), feature] = True
    expected = (dense[:, :, None] & dense[:, None, :]).sum(0)
    assert torch.equal(store.co_occurrence(range(N)), expected)
    assert torch.equal(store.co_occurrence([7, 2, 7]), expected[[7, 2, 7]])
    none = SparseColumns.of(torch.zeros(3, 2))
    assert not co_occurrence(none, none).any()


def test_the_store_correlates_any_of_its_features(model, encoder, file):
    tables = run(encoder, model, file, rows_in_left_tables=4)
    found = load_activations(file).correlated([9, 3, 9], 4)
    for feature, one in zip([9, 3, 9], found, strict=True):
        expected = tables[feature].feature_tables.correlated_features
        assert (one.indices, one.pearson, one.cosine) == (expected.indices, expected.pearson, expected.cosine)
    with pytest.raises(InputError, match="Feature 12 is not in this store of 12 features"):
        load_activations(file).correlated([1, N])
