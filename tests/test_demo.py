"""The bundled model, its autoencoders and its text: they load, they are as good as they say, and both views come of them."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from sae_vis import MultiFeatureData
from sae_vis._demo import DATA, PROMPT, Demo, chosen_features, label, load_demo, run
from sae_vis._errors import InputError, ModelError

SOME_ROWS = 64


@pytest.fixture(scope="module")
def demo() -> Demo:
    before = torch.get_rng_state()
    loaded = load_demo()
    assert torch.equal(before, torch.get_rng_state())
    return loaded


@pytest.fixture(scope="module")
def config():
    return json.loads((DATA / "config.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def neurons(demo):
    """What the autoencoders read on some rows, the BOS left out: ``[rows, seq - 1, d_mlp]``."""
    with torch.no_grad():
        _, cache = demo.model.run_with_cache(
            demo.tokens[:SOME_ROWS], names_filter=demo.hook_point, return_cache_object=False
        )
    return cache[demo.hook_point][:, 1:]


@torch.no_grad()
def losses_on_some_rows(demo, replacement=None) -> torch.Tensor:
    """Each row's mean cross entropy after BOS, with what stands at the hook point replaced (but at BOS)."""

    def replace(value, hook):
        return value if replacement is None else torch.cat([value[:, :1], replacement], 1)

    tokens = demo.tokens[:SOME_ROWS]
    log_probs = demo.model.run_with_hooks(tokens, fwd_hooks=[(demo.hook_point, replace)]).log_softmax(-1)
    return -log_probs[:, 1:-1].gather(-1, tokens[:, 2:, None])[..., 0].mean(-1)


def near(per_row: torch.Tensor, at_least: float = 0.05):
    """How far the mean of some rows may lie from the mean of all: 0.05 nats, or four standard errors where rows differ."""
    return max(at_least, 4.0 * float(per_row.std()) / len(per_row) ** 0.5)


def test_all_parts_fit_together(demo, config):
    assert demo.tokens.shape == (config["tokens"]["rows"], config["tokens"]["row_length"])
    assert demo.tokens.shape[0] >= 1000
    assert demo.tokens.shape[1] <= demo.model.cfg.n_ctx
    assert demo.tokens.dtype == torch.int64
    assert 0 <= int(demo.tokens.min()) <= int(demo.tokens.max()) < demo.model.cfg.d_vocab
    assert demo.hook_point in demo.model.hook_dict
    d_mlp = config["model"]["d_mlp"]
    assert d_mlp >= 768
    for encoder in (demo.encoder, demo.encoder_B):
        assert encoder.d_in == d_mlp
        assert all(bool(weight.isfinite().all()) for weight in encoder.parameters())
    assert demo.encoder.d_hidden >= 1024
    assert not demo.model.training
    assert set(demo.labels) <= set(range(demo.encoder.d_hidden))
    assert all(text.strip() for text in demo.labels.values())


def test_without_transformerlens_the_demo_says_which_version_it_needs(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformer_lens"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformer_lens", None)
    with pytest.raises(ModelError, match=r"needs TransformerLens 2\.16 or newer"):
        load_demo()


@pytest.mark.parametrize("config", [None, "", "[]", "{", '{"model_type": "gpt2"}'])
def test_a_folder_without_a_bundled_model_is_told(config, tmp_path):
    if config is not None:
        (tmp_path / "config.json").write_text(config, encoding="utf-8")
    for folder in (tmp_path, str(tmp_path)):
        with pytest.raises(InputError, match=rf"{tmp_path.name}' holds no config\.json .*load_demo\(\)"):
            load_demo(folder)


def test_decoder_rows_have_norm_one(demo):
    for encoder in (demo.encoder, demo.encoder_B):
        torch.testing.assert_close(encoder.W_dec.norm(dim=-1), torch.ones(encoder.d_hidden), rtol=1e-3, atol=1e-3)


def test_everything_together_is_small_and_has_its_licences():
    files = [path for path in DATA.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 14e6
    assert (DATA / "LICENSES.txt").stat().st_size > 1000


def test_every_row_begins_with_bos_and_has_it_nowhere_else(demo):
    bos = demo.model.tokenizer.bos_token_id
    assert bool((demo.tokens[:, 0] == bos).all())
    assert not bool((demo.tokens[:, 1:] == bos).any())


def test_the_logits_are_finite_and_better_than_chance(demo):
    with torch.no_grad():
        logits = demo.model(demo.tokens[:4])
    assert bool(logits.isfinite().all())
    assert logits.shape == (4, demo.tokens.shape[1], demo.model.cfg.d_vocab)


def test_the_loss_is_what_the_configuration_says_and_beats_counting_words(demo, config):
    quality = config["quality"]["language_model"]
    n_tokens = demo.tokens.shape[1] - 1
    assert n_tokens > 100
    losses = losses_on_some_rows(demo)
    assert float(losses.mean()) == pytest.approx(quality["sample_loss"], abs=near(losses))
    assert quality["sample_loss"] == pytest.approx(quality["held_out_loss"], abs=0.2)
    assert quality["held_out_loss"] < quality["bigram_loss"] - 0.5 < quality["unigram_loss"] - 0.5


@pytest.mark.parametrize("name", ["sae", "sae_b"])
@torch.no_grad()
def test_the_autoencoders_are_what_the_configuration_says(demo, config, neurons, name):
    encoder = demo.encoder if name == "sae" else demo.encoder_B
    quality = config["quality"][name]
    acts = encoder.encode(neurons)
    rebuilt = encoder.decode(acts)
    assert float((acts > 0).sum(-1).double().mean()) == pytest.approx(quality["l0"], rel=0.08)
    error = (neurons - rebuilt).square().sum()
    spread = (neurons - neurons.mean((0, 1))).square().sum()
    assert 1 - float(error / spread) == pytest.approx(quality["explained_variance"], abs=0.03)
    clean = losses_on_some_rows(demo)
    lost = losses_on_some_rows(demo, rebuilt) - clean
    lost_without = losses_on_some_rows(demo, torch.zeros_like(neurons)) - clean
    assert float(lost.mean()) == pytest.approx(quality["loss_sae"] - quality["loss_clean"], abs=near(lost))
    expected = quality["loss_zero_ablation"] - quality["loss_clean"]
    assert float(lost_without.mean()) == pytest.approx(expected, abs=near(lost_without))
    assert 0 < float(lost.mean()) < float(lost_without.mean())
    dead = 1 - float((acts > 0).flatten(0, 1).any(0).double().mean())
    assert dead <= quality["dead_share_sample"] + 0.1


@pytest.mark.parametrize(
    "text",
    [
        PROMPT,
        "def f(x):\n\treturn {'a': x}  # comment\n",
        "naïve café — “quotes” … 日本語 🎉 \u200d",
        "  leading and trailing  ",
        "\r\n\x00\x7f",
    ],
)
def test_the_tokenizer_gives_back_the_text(demo, text):
    tokenizer = demo.model.tokenizer
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    assert all(0 <= token < demo.model.cfg.d_vocab for token in ids)
    assert tokenizer.bos_token_id not in ids


def test_the_held_out_text_is_text(demo):
    row = demo.model.tokenizer.decode(demo.tokens[0, 1:].tolist())
    assert len(row) > demo.tokens.shape[1]
    assert "�" not in row.strip("�")


def test_the_chosen_features_are_the_labelled_and_the_first_others(demo):
    chosen = chosen_features(demo, 64)
    assert len(chosen) == len(set(chosen)) == 64
    assert chosen == sorted(chosen)
    assert set(list(demo.labels)[:64]) <= set(chosen)
    assert chosen_features(demo._replace(labels={}), 3) == [0, 1, 2]
    assert chosen_features(demo._replace(labels={500: "x"}), 3) == [0, 1, 500]


def test_labels_land_on_the_features_that_are_there(feature_data):
    label(feature_data, {8: "eight", 999: "not there"})
    assert feature_data[8].label == "eight"
    assert feature_data[2].label is None


def test_the_demo_writes_both_views_and_the_data(tmp_path, capsys, monkeypatch, demo):
    monkeypatch.setattr("sae_vis._demo.load_demo", lambda: demo._replace(tokens=demo.tokens[:SOME_ROWS]))
    paths = run(tmp_path, features=3, quiet=True)
    assert [path.name for path in paths] == ["demo_feature_vis.html", "demo_prompt_vis.html", "demo_features.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in paths)
    features = MultiFeatureData.load_json(paths[2])
    assert len(features) == 3
    assert features.provenance.direct_effect == "exact"
    for feature in features.values():
        assert feature.activations.n_active > 0
        assert feature.logits is not None
        assert feature.sequences.groups[0].sequences
        assert feature.feature_tables.correlated_b_features.indices
    for path in paths[:2]:
        page = path.read_text(encoding="utf-8")
        assert page.lower().startswith("<!doctype html>")
        assert "�" not in page
    assert "demo_feature_vis.html#feature=" in paths[1].read_text(encoding="utf-8")
    assert capsys.readouterr().err == ""
