"""What a user can get wrong when fetching, one by one: each is a clear error, and nothing is guessed."""

from __future__ import annotations

import functools
from pathlib import Path

import hf_models
import numpy as np
import pytest
import torch
from brute_force import width_at
from models import HOOK_POINT, QUIET, encoder_for, fetch, fetch_planted, identity_encoder, planted, random_tokens
from torch import nn

import sae_vis
from sae_vis import AutoEncoder, AutoEncoderConfig, FeatureVisParams, get_feature_data, get_prompt_data
from sae_vis._errors import InputError, ModelError, SaeVisError

MLP = "blocks.0.mlp.hook_post"
PLAIN = {"ablation": None, "include_left_tables": False}


@functools.cache
def toy():
    """Encoder, model with a vocabulary of 24 and a context of 6, and 4 rows of tokens."""
    return planted(torch.rand(4, 6, 3, generator=torch.Generator().manual_seed(0)))


def refused(match: str, tokens, error=InputError, **params) -> str:
    encoder, model, _ = toy()
    with pytest.raises(error, match=match) as caught:
        fetch(encoder, model, tokens, **{**PLAIN, **params})
    assert isinstance(caught.value, SaeVisError)
    return str(caught.value)


# --- tokens ------------------------------------------------------------------------------------------------------


def test_one_row_without_a_batch_dimension():
    message = refused(r"shape \[rows, seq\]", torch.arange(6))
    assert "tokens[None]" in message
    assert "(6,)" in message


@pytest.mark.parametrize(
    "tokens",
    [
        torch.zeros(2, 3),
        torch.zeros(2, 3, dtype=torch.float16),
        np.zeros((2, 3)),
        [[0.5, 1.0]],
        torch.zeros(2, 3, dtype=torch.complex64),
    ],
    ids=str,
)
def test_tokens_that_are_no_integers(tokens):
    refused("integers", tokens)


def test_a_mask_is_not_taken_for_tokens():
    assert "bool" in refused("integers", torch.ones(2, 3, dtype=torch.bool))


@pytest.mark.parametrize("tokens", [torch.zeros(1, 2, 3, dtype=torch.long), 5, torch.tensor(5)], ids=str)
def test_tokens_of_the_wrong_dimension(tokens):
    refused(r"\[rows, seq\]", tokens)


@pytest.mark.parametrize(
    "tokens", [[[1, 2], [3]], [["a", "b"]], None, "text", [[2**70]], {"input_ids": [[1]]}], ids=str
)
def test_tokens_that_form_no_array(tokens):
    refused("tokens must be integers", tokens)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0)])
def test_no_tokens(shape):
    refused("empty", torch.zeros(shape, dtype=torch.long))


@pytest.mark.parametrize("wrong", [24, 10**9, -1])
def test_ids_outside_the_vocabulary_are_named_with_their_place(wrong):
    tokens = toy()[2].clone()
    tokens[2, 5], tokens[3, 1] = wrong, wrong
    message = refused("outside the model's vocabulary", tokens)
    assert f"{wrong} at row 2, position 5" in message
    assert "0 to 23" in message


def test_rows_longer_than_the_context():
    message = refused("longer than the model's context", torch.zeros(2, 7, dtype=torch.long))
    assert "7 tokens" in message
    assert "of 6" in message


def test_nothing_but_ignored_tokens():
    message = refused("nothing can be counted", torch.zeros(2, 3, dtype=torch.long), ignore_tokens=0)
    assert "6 positions" in message
    assert "ignore_tokens=()" in message


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_integers_of_any_kind_will_do(dtype):
    encoder, model, tokens = toy()
    expected = fetch(encoder, model, tokens, **PLAIN).feature_data_dict
    assert fetch(encoder, model, tokens.to(dtype), **PLAIN).feature_data_dict == expected
    assert fetch(encoder, model, tokens.to(dtype).numpy(), **PLAIN).feature_data_dict == expected
    assert fetch(encoder, model, tokens.tolist(), **PLAIN).feature_data_dict == expected
    assert fetch(encoder, model, tokens.T.contiguous().T.to(dtype), **PLAIN).feature_data_dict == expected


def test_the_special_tokens_of_the_tokenizer_are_ignored_by_default():
    model = hf_models.shared("native-LN")
    tokens = hf_models.some_tokens(6, 12)
    encoder = encoder_for(24, 4, 0.5)
    data = get_feature_data(encoder, model, tokens, FeatureVisParams(hook_point=MLP, verbose=False))
    special = torch.isin(tokens, torch.tensor([hf_models.BOS, hf_models.PAD, hf_models.EOS]))
    assert data.provenance.n_counted == int((~special).sum())
    assert data.provenance.ignored_token_ids == [0, 1, 2]
    everything = fetch(encoder, model, tokens, hook_point=MLP, ignore_tokens=())
    assert everything.provenance.n_counted == tokens.numel()


# --- hook points, features, encoders, models ---------------------------------------------------------------------


def test_an_unknown_hook_point_names_the_nearest():
    message = refused(
        "has no hook point 'blocks.0.hook_resid_pr'", toy()[2], ModelError, hook_point="blocks.0.hook_resid_pr"
    )
    assert "blocks.0.hook_resid_pre" in message
    refused("blocks.7.hook_resid_pre", toy()[2], ModelError, hook_point="blocks.7.hook_resid_pre")


def test_no_hook_point_at_all():
    message = refused("No hook point", toy()[2], hook_point=None)
    assert "FeatureVisParams(hook_point=" in message


def test_an_encoder_that_knows_its_hook_point_needs_none():
    encoder, model, tokens = planted(torch.rand(2, 3, 2))
    encoder.hook_point = HOOK_POINT
    data = fetch(encoder, model, tokens, **PLAIN, hook_point=None)
    assert data.provenance.hook_point == HOOK_POINT


@pytest.mark.parametrize("features", [3, (0, 1, 99), range(4)])
def test_a_feature_that_the_encoder_does_not_have(features):
    message = refused("out of range", toy()[2], features=features)
    assert "has 3 (0 to 2)" in message
    assert f"Feature {99 if isinstance(features, tuple) else 3} " in message


def test_features_that_are_no_features():
    for wrong in (-1, (0, -2), 1.5, "all", (), (1, 1)):
        with pytest.raises(InputError, match="features"):
            FeatureVisParams(features=wrong)


@pytest.mark.parametrize("width", [2, 5])
def test_an_encoder_of_another_width(width):
    _, model, tokens = toy()
    with pytest.raises(ModelError, match=rf"width {width}.*has width 3") as caught:
        fetch(identity_encoder(width), model, tokens, **PLAIN)
    assert HOOK_POINT in str(caught.value)


def test_an_encoder_b_of_another_width():
    encoder, model, tokens = toy()
    with pytest.raises(ModelError, match=r"encoder_B reads vectors of width 5"):
        fetch(encoder, model, tokens, identity_encoder(5), ablation=None)


@pytest.mark.parametrize("wrong", [None, nn.Linear(3, 3), "sae.safetensors", {"W_enc": 1}, AutoEncoder], ids=repr)
def test_what_is_no_encoder(wrong):
    encoder, model, tokens = toy()
    with pytest.raises(ModelError, match=r"encoder is a"):
        fetch(wrong, model, tokens, **PLAIN)
    if wrong is not None:
        with pytest.raises(ModelError, match=r"encoder_B is a"):
            fetch(encoder, model, tokens, wrong, **PLAIN)


def test_encoder_and_model_in_the_wrong_order():
    encoder, model, tokens = toy()
    with pytest.raises(ModelError, match="AutoEncoder is not a TransformerLens model"):
        fetch(model, encoder, tokens, **PLAIN)


def test_parameters_of_the_wrong_type():
    encoder, model, tokens = toy()
    with pytest.raises(InputError, match="fvp must be a FeatureVisParams, got dict"):
        get_feature_data(encoder, model, tokens, {"hook_point": HOOK_POINT})


# --- numbers that cannot be used ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [(0, 0), (5, 3), (8, 1)])
def test_activations_of_the_model_that_are_not_finite_are_named_with_their_place(bad, place):
    encoder, model, tokens = planted(torch.rand(9, 4, 3))
    with torch.no_grad():
        model.table[tokens[place], 1] = bad
    with pytest.raises(ModelError, match=f"at row {place[0]}, position {place[1]} of the tokens") as caught:
        fetch(encoder, model, tokens, **PLAIN, minibatch_size_tokens=2)
    assert HOOK_POINT in str(caught.value)


def test_activations_of_the_encoder_that_are_not_finite_are_named_with_their_place():
    encoder, model, tokens = planted(torch.rand(9, 4, 3) * 1e-3)
    with torch.no_grad():
        model.table[tokens[6, 2], 1] = 3e38
        encoder.W_enc[1, 1] = 10.0
    with pytest.raises(ModelError, match="The encoder's activations hold NaN or infinity, first at row 6, position 2"):
        fetch(encoder, model, tokens, **PLAIN, minibatch_size_tokens=4)


def test_activations_of_encoder_b_that_are_not_finite():
    encoder, model, tokens = planted(torch.rand(3, 4, 3))
    other = identity_encoder(3)
    with torch.no_grad():
        other.b_enc[0] = float("nan")
    with pytest.raises(ModelError, match="activations of encoder_B hold NaN or infinity, first at row 0, position 0"):
        fetch(encoder, model, tokens, other, ablation=None)


def test_finite_activations_whose_sum_overflows_are_no_error():
    acts = torch.full((4, 4, 2), 3e38)
    acts[0, 0] = 1e38
    data = fetch_planted(acts, include_left_tables=False)
    assert data[0].activations.max == pytest.approx(3e38, rel=1e-3)
    assert data[0].activations.n_active == 16


def test_negative_activations_are_clamped_and_the_page_says_so():
    acts = torch.randn(4, 6, 2, generator=torch.Generator().manual_seed(0))
    _, model, tokens = planted(acts)

    class Signed:
        d_in = d_hidden = 2

        def encode(self, x, features=None):
            return x if features is None else x[..., features]

        def decoder_rows(self, features):
            return torch.eye(2)[features]

    data = fetch(Signed(), model, tokens, ablation=None)
    assert data.feature_data_dict == fetch_planted(acts).feature_data_dict
    (note,) = data.provenance.notes
    assert "negative activations" in note
    assert "clamped at 0" in note
    assert note in data.get_html()
    assert fetch_planted(acts).provenance.notes == []


# --- encoders in other forms -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_an_encoder_in_another_number_format(dtype):
    acts = torch.rand(6, 5, 4, generator=torch.Generator().manual_seed(0))
    encoder, model, tokens = planted(acts)
    data = fetch(encoder.to(dtype), model, tokens)
    expected = acts.to(dtype).float()
    for feature in range(4):
        assert data[feature].quantiles.values[0] == float(expected[..., feature].max())
        assert data[feature].feature_tables.neuron_alignment.values[0] == 1.0
        assert data[feature].logits.top_logits == sorted(data[feature].logits.top_logits, reverse=True)
    assert all(weight.dtype == dtype for weight in encoder.parameters())


@pytest.mark.parametrize("layer", [0, 1])
def test_encoders_of_the_heads_read_them_flattened(layer):
    model, tokens = hf_models.shared("native-RMS"), hf_models.some_tokens(5, 9)
    hook_point = f"blocks.{layer}.attn.hook_z"
    data = fetch(encoder_for(16, 6, 0.4, size=0.5), model, tokens, hook_point=hook_point)
    assert data.provenance.d_in == 16
    for feature in data.values():
        assert all(0 <= i < 16 for i in feature.feature_tables.neuron_alignment.indices)
        assert all(0 <= i < 16 for i in feature.feature_tables.correlated_neurons.indices)
        assert feature.logits is not None
    assert sum(feature.activations.n_active for feature in data.values()) > 20


def test_any_object_with_the_members_of_the_protocol_is_an_encoder():
    acts = torch.rand(3, 4, 2)
    inner, model, tokens = planted(acts)

    class Mine:
        d_in, d_hidden = inner.d_in, inner.d_hidden

        def encode(self, x, features=None):
            return inner.encode(x, features)

        def decoder_rows(self, features):
            return inner.decoder_rows(features)

    expected = fetch(inner, model, tokens, ablation=None)
    assert fetch(Mine(), model, tokens, ablation=None).feature_data_dict == expected.feature_data_dict


def test_a_dictionary_as_wide_as_it_likes():
    """Nothing asks for a width that is a multiple of the model's."""
    encoder = AutoEncoder(AutoEncoderConfig(3, 7))
    _, model, tokens = toy()
    assert len(fetch(encoder, model, tokens, ablation=None)) == 7


# --- what is recorded, and what is shown on the way --------------------------------------------------------------


def test_where_it_came_from_is_recorded():
    encoder, model, tokens = toy()
    provenance = fetch(encoder, model, tokens, **PLAIN, ignore_tokens=(0, 7)).provenance
    assert (provenance.n_rows, provenance.seq_len, provenance.n_counted) == (4, 6, 22)
    assert (provenance.d_in, provenance.d_hidden) == (3, 3)
    assert provenance.ignored_token_ids == [0, 7]
    assert provenance.first_token_id is None
    assert provenance.versions["sae_vis"] == sae_vis.__version__
    assert set(provenance.digests) == {"model", "encoder", "tokens"}
    same_first = tokens.clone()
    same_first[:, 0] = 3
    again = fetch(encoder, model, same_first, **PLAIN, ignore_tokens=(0, 7)).provenance
    assert again.first_token_id == 3
    assert again.digests["tokens"] != provenance.digests["tokens"]
    assert again.digests["encoder"] == provenance.digests["encoder"]


def test_no_tokenizer_gives_a_page_of_ids():
    encoder, model, tokens = toy()
    data = fetch(encoder, model, tokens)
    assert data.vocab[5] == "<5>"
    assert data.vocab_bytes == {}
    assert "&lt;5&gt;" in data[0].get_html()


def test_only_tokens_that_occur_are_in_the_vocabulary():
    acts = torch.zeros(40, 4, 1)
    acts[3, 2] = 1.0
    data = fetch_planted(acts)
    logits, against = data[0].logits, data[0].counterexamples.sequences()
    shown_rows = {token for sequence in against for token in range(4 * sequence.row, 4 * sequence.row + 4)}
    expected = {12, 13, 14, 15, *shown_rows, *logits.top_token_ids, *logits.bottom_token_ids}
    assert set(data.vocab) == expected
    assert len(expected) < 40 * 4


@pytest.mark.parametrize("store_rows", [True, False])
def test_some_of_the_features_are_what_would_have_been_fetched_of_them(store_rows, tmp_path):
    tokens = random_tokens(12, 10, hf_models.D_VOCAB, lowest=3)
    model, options = hf_models.shared("native-LN"), {"hook_point": MLP, "store_rows": store_rows, "first_group_size": 2}
    whole = fetch(encoder_for(width_at(model, MLP), 20), model, tokens, **options)
    some = fetch(encoder_for(width_at(model, MLP), 20), model, tokens, features=(3, 7), **options)
    assert whole.only([7, 3, 7]) == some == whole.only(np.array([3, 7]))
    assert len(some.vocab) < len(whole.vocab)
    whole.only([3, 7]).save_html(tmp_path / "some.html")
    some.save_html(tmp_path / "fetched.html")
    assert (tmp_path / "some.html").read_bytes() == (tmp_path / "fetched.html").read_bytes()
    assert whole.get(3) == whole[3]
    assert whole.get(20) is None
    assert whole.get(20, "none") == "none"
    for wrong, match in (
        ([3, 20], "Feature 20 is not in this data"),
        ([], "at least one"),
        (3, "e.g. .8, 9."),
        (["a"], "e.g."),
    ):
        with pytest.raises(InputError, match=match):
            whole.only(wrong)


def test_progress_is_shown_if_wanted_and_nothing_otherwise(capfd):
    encoder, model, tokens = toy()
    fetch(encoder, model, tokens)
    assert capfd.readouterr() == ("", "")
    fetch(encoder, model, tokens, verbose=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "Collecting activations" in err
    assert "3 of 3 features" in err


def test_data_of_one_encoder_is_not_used_with_another():
    encoder, model, tokens = toy()
    data = fetch(encoder, model, tokens)
    with pytest.raises(InputError, match="d_hidden"):
        get_prompt_data(identity_encoder(3, 2), model, [1, 2], data)
    params = FeatureVisParams(**{**QUIET, "hook_point": "blocks.0.hook_resid_post"})
    with pytest.raises(InputError, match="hook_point"):
        get_prompt_data(encoder, model, [1, 2], data, params)


def test_a_file_that_was_saved_is_the_data_that_was_fetched(tmp_path: Path):
    encoder, model, _ = toy()
    data = fetch(encoder, model, random_tokens(5, 6, 24))
    data.save_json(tmp_path / "x.json")
    assert sae_vis.MultiFeatureData.load_json(tmp_path / "x.json") == data
