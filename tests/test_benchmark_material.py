"""The benchmarks' model, dictionary, tokens and tokenizer, in whichever version of TransformerLens is installed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks import material
from benchmarks.peers import loading
from sae_vis.model_fns import LanguageModel

SHAPES = (material.TINY_GELU_1L, material.TINY_FOUR_LAYERS)

pytestmark = pytest.mark.xdist_group("benchmark-material")  # the files are shared


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module", params=SHAPES, ids=lambda shape: shape.name)
def shape(request) -> material.Shape:
    return request.param


@pytest.fixture(scope="module")
def folder(shape, cache) -> Path:
    return material.prepare(shape, cache)


@pytest.fixture(scope="module")
def given(shape, cache) -> material.Material:
    return material.load(shape, cache)


def plain_logits(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    """The logits of the model as transformers has it, without TransformerLens."""
    shape = loading.load_shape(folder)
    config = GPT2Config(
        vocab_size=shape["d_vocab"],
        n_positions=shape["n_ctx"],
        n_embd=shape["d_model"],
        n_inner=shape["d_mlp"],
        n_layer=shape["n_layers"],
        n_head=shape["n_heads"],
        activation_function="gelu",
        tie_word_embeddings=False,
    )
    model = GPT2LMHeadModel(config).eval()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    with torch.no_grad():
        return model(tokens).logits


@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
def test_every_transformer_lens_has_the_model_that_was_written(folder, given):
    tokens = given.tokens[:4]
    expected = plain_logits(folder, tokens)
    models = [given.model]
    try:
        from transformer_lens import HookedTransformer
    except ImportError:
        pass
    else:
        models.append(loading.load_hooked(folder, HookedTransformer))
    for model in models:
        with torch.no_grad():
            torch.testing.assert_close(model(tokens), expected, rtol=1e-4, atol=1e-4)


def test_the_logits_are_not_degenerate(folder, given):
    logits = plain_logits(folder, given.tokens[:4])
    assert 1.5 < float(logits.std()) < 4.0
    assert float(logits.softmax(-1).max()) < 0.99


@pytest.mark.slow
def test_the_logit_weights_are_large_enough_for_the_ticks_of_the_peers():
    shape = material.GELU_1L
    weights = dict(material.random_weights(shape))
    decoder = torch.randn(64, shape.d_in, generator=torch.Generator().manual_seed(2))
    decoder /= decoder.norm(dim=1, keepdim=True)
    logit_weights = decoder @ weights["transformer.h.0.mlp.c_proj.weight"] @ weights["lm_head.weight"].T
    assert float(logit_weights.max(1).values.min()) > 0.5


def test_the_features_fire_on_half_a_percent_of_the_tokens_and_have_unit_directions(shape, given):
    lm = LanguageModel(given.model)
    with lm.as_for_inference():
        acts = given.encoder.encode(lm.activations(given.tokens, shape.hook_point)[:, 1:])
    density = (acts > 0).float().mean()
    assert 0.8 * material.DENSITY < float(density) < 1.2 * material.DENSITY
    torch.testing.assert_close(given.encoder.W_dec.norm(dim=1), torch.ones(shape.d_hidden))


def test_rows_begin_with_bos_and_the_others_follow_zipfs_law(shape):
    tokens = material.random_tokens(replace(shape, rows=4096))
    assert bool((tokens[:, 0] == material.BOS).all())
    assert int(tokens.max()) < shape.d_vocab
    counts = torch.bincount(tokens[:, 1:].flatten(), minlength=shape.d_vocab)[len(material.SPECIAL) :].float()
    assert float(counts[:1] / counts[9:10]) == pytest.approx((10 + 1.7) / (1 + 1.7), rel=0.1)


def test_the_tokenizer_reads_the_text_that_it_writes(given):
    """Words without a space in front would grow together."""
    spaced = [i for i in range(len(material.SPECIAL), 200) if given.tokenizer.convert_ids_to_tokens(i)[:1] == "Ġ"][1:]
    text = given.tokenizer.decode(spaced)
    assert text.startswith(" ")
    assert "Ġ" not in text
    assert given.tokenizer(text, add_special_tokens=False)["input_ids"] == spaced
    assert given.tokenizer.bos_token_id == material.BOS


@pytest.mark.parametrize("size", [12, 400, 49_152])
def test_the_vocabulary_holds_so_many_different_words(size):
    words = material.words(size)
    assert len(words) == len(set(words)) == size


def test_the_same_seeds_give_the_same_material(tmp_path, folder, shape):
    again = material.prepare(shape, tmp_path)
    for file in sorted(folder.rglob("*.json")):
        assert (again / file.relative_to(folder)).read_bytes() == file.read_bytes(), file.name
    for file in sorted(folder.glob("*.safetensors")):
        one, other = load_file(file), load_file(again / file.name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_was_written_is_used_again_unless_its_sizes_are_others(tmp_path):
    shape = material.TINY_GELU_1L
    folder = material.prepare(shape, tmp_path)
    before = (folder / "tokens.safetensors").stat().st_mtime_ns
    assert material.prepare(shape, tmp_path) == folder
    assert (folder / "tokens.safetensors").stat().st_mtime_ns == before
    material.prepare(replace(shape, rows=8), tmp_path)
    assert len(load_file(folder / "tokens.safetensors")["tokens"]) == 8
    assert json.loads((folder / "shape.json").read_text("utf-8"))["rows"] == 8
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_more_rows_than_there_are_is_an_error(folder, shape):
    with pytest.raises(ValueError, match=f"holds {shape.rows} rows of tokens, 100000 are wanted"):
        loading.load_tokens(folder, 100_000)
