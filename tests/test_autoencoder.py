"""The library's own autoencoder: its formula by loops, slices, files, and the errors of both."""

from __future__ import annotations

import functools
import re

import numpy as np
import pytest
import torch
from brute_force import activations, hook_values, random_encoder
from hf_models import native, shared, some_tokens
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from sae_vis import AutoEncoder, AutoEncoderConfig, FeatureVisParams, get_feature_data
from sae_vis._activations import encode as encode_of
from sae_vis._errors import InputError, ModelError
from sae_vis._sae_adapters import as_encoder
from sae_vis.model_fns import Encoder

WEIGHTS = ("W_enc", "b_enc", "W_dec", "b_dec")


def vectors(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def weights_of(encoder: AutoEncoder) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in encoder.state_dict().items()}


# --- the formula -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("apply", [True, False])
@torch.no_grad()
def test_encoding_is_the_formula_by_loops(apply):
    encoder = random_encoder(6, 9, apply_b_dec_to_input=apply)
    x = vectors(3, 4, 6)
    expected = activations(encoder, x)
    assert 0.2 < float((expected > 0).double().mean()) < 0.8
    torch.testing.assert_close(encoder.encode(x).double(), expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_b_dec_is_taken_from_the_input_only_if_it_is_said():
    """The two differ by what the encoder makes of ``b_dec``."""
    with_it, without = (random_encoder(6, 9, apply_b_dec_to_input=apply) for apply in (True, False))
    x = vectors(5, 6)
    assert not torch.allclose(with_it.encode(x), without.encode(x))
    torch.testing.assert_close(with_it.encode(x + with_it.b_dec), without.encode(x))
    assert AutoEncoderConfig(6, 9).apply_b_dec_to_input is True


@torch.no_grad()
def test_decoding_is_the_formula_by_loops():
    encoder = random_encoder(5, 7)
    acts = vectors(4, 7).abs()
    for row, decoded in zip(acts, encoder.decode(acts), strict=True):
        for i in range(5):
            total = sum(float(row[f]) * float(encoder.W_dec[f, i]) for f in range(7)) + float(encoder.b_dec[i])
            assert float(decoded[i]) == pytest.approx(total, abs=1e-5)
    x = vectors(2, 3, 5)
    torch.testing.assert_close(encoder(x), encoder.decode(encoder.encode(x)))


@given(st.lists(st.integers(0, 19), min_size=1, max_size=25), st.booleans())
@torch.no_grad()
def test_slices_are_the_same_as_the_whole(features, apply):
    encoder = random_encoder(8, 20, apply_b_dec_to_input=apply)
    x, chosen = vectors(2, 3, 8), torch.tensor(features)
    torch.testing.assert_close(encoder.encode(x, chosen), encoder.encode(x)[..., chosen], rtol=1e-5, atol=1e-6)
    assert torch.equal(encoder.decoder_rows(chosen), encoder.W_dec[chosen])


@pytest.mark.parametrize("heads", [1, 2, 4])
@torch.no_grad()
def test_heads_are_flattened_in_their_order(heads):
    encoder = random_encoder(8, 5)
    x = vectors(2, 3, heads, 8 // heads)
    ours = encoder.encode(x)
    assert ours.shape == (2, 3, 5)
    torch.testing.assert_close(ours, encoder.encode(x.reshape(2, 3, 8)))
    torch.testing.assert_close(ours.double(), activations(encoder, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n_heads", [1, 2])
def test_features_of_heads_are_found_on_a_model(n_heads):
    model, tokens = native(n_heads=n_heads, d_head=16 // n_heads), some_tokens(bos=False)
    encoder, hook_point = random_encoder(16, 4), "blocks.1.attn.hook_z"
    acts = activations(encoder, hook_values(model, tokens, hook_point))
    data = get_feature_data(encoder, model, tokens, FeatureVisParams(hook_point=hook_point, verbose=False))
    for index, feature in data.items():
        assert feature.activations.n_active == int((acts[..., index] > 0).sum())
        assert (feature.activations.max or 0.0) == pytest.approx(float(acts[..., index].max()), rel=1e-3)


@torch.no_grad()
def test_input_of_another_type_is_read():
    encoder = random_encoder(8, 5)
    x = vectors(2, 3, 8)
    assert encoder.encode(x.double()).dtype == torch.float32
    torch.testing.assert_close(encoder.encode(x.bfloat16()), encoder.encode(x), rtol=0.1, atol=0.1)
    half = random_encoder(8, 5).to(torch.bfloat16)
    assert half.encode(x).dtype == torch.bfloat16


def test_a_new_autoencoder_leaves_the_random_numbers_alone_and_is_always_the_same():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, second = (AutoEncoder(AutoEncoderConfig(6, 10)) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    for name in WEIGHTS:
        assert torch.equal(getattr(first, name), getattr(second, name))
    torch.testing.assert_close(first.W_dec.norm(dim=-1), torch.ones(10))
    assert [tuple(getattr(first, name).shape) for name in WEIGHTS] == [(6, 10), (10,), (10, 6), (6,)]


def test_no_width_is_a_multiple_of_another():
    encoder = random_encoder(7, 11)
    assert (encoder.d_in, encoder.d_hidden) == (7, 11)
    assert encoder.encode(vectors(2, 7)).shape == (2, 11)


def test_running_it_changes_nothing():
    encoder = random_encoder(64, 6)
    before = weights_of(encoder)
    encoder.train()
    get_feature_data(
        encoder, shared("gpt2"), some_tokens(), FeatureVisParams(hook_point="blocks.0.mlp.hook_post", verbose=False)
    )
    assert encoder.training
    assert all(weight.grad is None and weight.requires_grad for weight in encoder.parameters())
    assert all(torch.equal(before[name], weight) for name, weight in weights_of(encoder).items())


# --- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("apply", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_saving_and_loading_gives_the_same_autoencoder(tmp_path, apply, dtype):
    encoder = random_encoder(6, 9, apply_b_dec_to_input=apply).to(dtype)
    encoder.save(tmp_path / "sae.safetensors")
    again = AutoEncoder.load(str(tmp_path / "sae.safetensors"))
    assert again.cfg == encoder.cfg
    for name in WEIGHTS:
        assert torch.equal(getattr(again, name), getattr(encoder, name))
        assert getattr(again, name).dtype == dtype


def test_a_file_without_settings_subtracts_b_dec(tmp_path):
    save_file(weights_of(random_encoder(6, 9)), tmp_path / "sae.safetensors")
    assert AutoEncoder.load(tmp_path / "sae.safetensors").cfg == AutoEncoderConfig(6, 9, apply_b_dec_to_input=True)


def test_a_missing_a_foreign_and_a_cut_file_are_clear_errors(tmp_path):
    with pytest.raises(InputError, match=r"missing\.safetensors"):
        AutoEncoder.load(tmp_path / "missing.safetensors")
    (tmp_path / "text.safetensors").write_text("not weights")
    with pytest.raises(InputError, match=r"text\.safetensors"):
        AutoEncoder.load(tmp_path / "text.safetensors")
    random_encoder(6, 9).save(tmp_path / "whole.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:-20])
    with pytest.raises(InputError, match=r"cut\.safetensors"):
        AutoEncoder.load(tmp_path / "cut.safetensors")
    with pytest.raises(InputError, match=tmp_path.name):
        AutoEncoder.load(tmp_path)


def test_a_device_that_is_not_there_is_told_before_anything_is_read(tmp_path):
    with pytest.raises(InputError, match="The device 'abacus' cannot be used"):
        AutoEncoder.load(tmp_path / "missing.safetensors", device="abacus")
    if not torch.cuda.is_available():
        random_encoder(6, 9).save(tmp_path / "sae.safetensors")
        with pytest.raises(InputError, match="The device 'cuda' cannot be used"):
            AutoEncoder.load(tmp_path / "sae.safetensors", device="cuda")


def test_a_file_of_torch_is_told_with_what_loads_it(tmp_path):
    encoder = random_encoder(6, 9)
    torch.save(weights_of(encoder), tmp_path / "sae.pt")
    with pytest.raises(
        InputError, match=r"For a \.pt file: AutoEncoder\.from_weights\(torch\.load\(path, weights_only=True"
    ):
        AutoEncoder.load(tmp_path / "sae.pt")
    again = AutoEncoder.from_weights(torch.load(tmp_path / "sae.pt", weights_only=True))
    assert torch.equal(again.W_enc, encoder.W_enc)
    (tmp_path / "cut.safetensors").write_bytes(b"no tensors")
    with pytest.raises(InputError, match=r"^(?!.*\.pt file)"):
        AutoEncoder.load(tmp_path / "cut.safetensors")


def test_a_file_that_cannot_be_written_is_told(tmp_path):
    for path in (tmp_path / "no" / "sae.safetensors", tmp_path):
        with pytest.raises(InputError, match=rf"Cannot write an AutoEncoder to '{path}'"):
            random_encoder(6, 9).save(path)


@pytest.mark.parametrize(("turned", "told"), [(("W_enc",), "W_enc.T"), (("W_enc", "W_dec"), "W_enc.T and W_dec.T")])
def test_weights_as_linear_layers_hold_them_are_told_with_the_way_out(turned, told):
    weights = weights_of(random_encoder(6, 9))
    given = {name: weight.T if name in turned else weight for name, weight in weights.items()}
    with pytest.raises(InputError, match=rf"W_enc is \[d_hidden, d_in\], as nn\.Linear holds it.*pass {told}\.$"):
        AutoEncoder.from_weights(given)
    again = AutoEncoder.from_weights({name: weight.T if name in turned else weight for name, weight in given.items()})
    assert torch.equal(again.W_enc, weights["W_enc"])


def test_a_square_encoder_is_taken_as_it_is():
    weights = weights_of(random_encoder(6, 6))
    assert torch.equal(AutoEncoder.from_weights(weights).W_enc, weights["W_enc"])


def test_wrong_names_are_told(tmp_path):
    weights = weights_of(random_encoder(6, 9))
    extra = {**weights, "threshold": torch.zeros(9)}
    with pytest.raises(InputError, match="threshold"):
        AutoEncoder.from_weights(extra)
    del weights["b_enc"]
    with pytest.raises(InputError, match=r"needs the tensors W_enc, b_enc.*got W_dec, W_enc, b_dec"):
        AutoEncoder.from_weights(weights)
    save_file(weights, tmp_path / "sae.safetensors")
    with pytest.raises(InputError, match="b_enc"):
        AutoEncoder.load(tmp_path / "sae.safetensors")


@pytest.mark.parametrize(
    ("name", "shape"),
    [("W_enc", (6,)), ("W_enc", (9, 6)), ("W_enc", (6, 9, 1)), ("b_enc", (6,)), ("W_dec", (6, 9)), ("b_dec", (9,))],
)
def test_wrong_shapes_are_told(name, shape):
    weights = weights_of(random_encoder(6, 9))
    weights[name] = torch.zeros(shape)
    with pytest.raises(InputError, match="shape"):
        AutoEncoder.from_weights(weights)


@pytest.mark.parametrize("value", [0, -1, 1.5, "8", True, None])
def test_widths_must_be_positive_ints(value):
    with pytest.raises(InputError, match=r"d_in must be an int >= 1"):
        AutoEncoderConfig(value, 8)
    with pytest.raises(InputError, match=r"d_hidden must be an int >= 1"):
        AutoEncoderConfig(8, value)


# --- what counts as an encoder ---------------------------------------------------------------------------------------


class Minimal:
    d_in, d_hidden = 16, 3

    def encode(self, x, features=None):
        acts = torch.relu(x[..., :3])
        return acts if features is None else acts[..., features]

    def decoder_rows(self, features):
        return torch.eye(3, 16)[features]


def test_anything_of_the_protocol_is_an_encoder():
    minimal, own = Minimal(), random_encoder(16, 3)
    assert as_encoder(minimal) is minimal
    assert as_encoder(own) is own
    assert isinstance(minimal, Encoder)
    data = get_feature_data(
        minimal, shared("gpt2"), some_tokens(), FeatureVisParams(hook_point="blocks.0.hook_resid_pre", verbose=False)
    )
    assert list(data) == [0, 1, 2]


def test_what_is_missing_of_the_protocol_is_told():
    with pytest.raises(ModelError, match=r"encoder is a Linear.*no d_in, d_hidden, encode, decoder_rows.*from_weights"):
        as_encoder(torch.nn.Linear(3, 4))
    with pytest.raises(ModelError, match="encoder_B is a NoneType"):
        as_encoder(None, "encoder_B")
    with pytest.raises(ModelError, match="encoder_B is a str"):
        get_feature_data(
            random_encoder(16),
            shared("gpt2"),
            some_tokens(),
            FeatureVisParams(hook_point="blocks.0.hook_resid_pre"),
            encoder_B="gpt2",
        )


def takes(encode) -> Minimal:
    return type("Mine", (Minimal,), {"encode": encode})()


def test_from_weights_is_for_plain_relu_alone():
    with pytest.raises(ModelError, match=r"encoder is a Mine.*it has no encode\."):
        as_encoder(takes(None))
    told = r"If it is a plain ReLU autoencoder, a = relu\(.*from_weights.*\(TopK, JumpReLU, gated, …\).*'Your own SAE'"
    with pytest.raises(ModelError, match=told):
        as_encoder(torch.nn.Linear(3, 4))


@pytest.mark.parametrize(
    "encode",
    [lambda self, x: x, lambda self, x, *, features=None: x, lambda self: 0, lambda self, x, f, other: x, 5],
    ids=["x", "keyword", "none", "three", "5"],
)
def test_an_encode_that_cannot_be_called_with_features_is_told(encode):
    with pytest.raises(ModelError, match=r"encoder_B is a Mine, whose encode must take \(x, features=None\)"):
        as_encoder(takes(encode), "encoder_B")


@pytest.mark.parametrize(
    "encode",
    [
        lambda self, x, features=None: x,
        lambda self, x, only=None, scale=1.0: x,
        lambda self, *args, **options: args[0],
        max,
        functools.partial(torch.add, alpha=1),
    ],
    ids=["usual", "more", "args", "builtin", "partial"],
)
def test_an_encode_that_may_take_features_is_left_to_be_called(encode):
    encoder = takes(encode)
    assert as_encoder(encoder) is encoder


def of_fifty(encode, dtype=torch.float32):
    """An encoder of fifty features with this ``encode``, which mostly looks at ``W_enc``."""
    encoder = takes(encode)
    encoder.d_hidden, encoder.W_enc = 50, torch.eye(16, 50, dtype=dtype)
    encoder.decoder_rows = lambda features: torch.eye(50, 16)[features]
    return encoder


def few(encoder):
    """Three of its features on a small model."""
    params = FeatureVisParams("blocks.0.hook_resid_pre", features=(0, 3, 4), correlate_features="asked", verbose=False)
    return get_feature_data(encoder, shared("gpt2"), some_tokens(), params)


def test_an_encode_that_passes_over_features_is_told():
    told = r"The encoder's encode gave all 50 features when asked for some: return acts\[\.\.\., features\]\."
    with pytest.raises(ModelError, match=told):
        few(of_fifty(lambda self, x, features=None: x @ self.W_enc))


@pytest.mark.parametrize("d_hidden", [3, 15, 16, 17])
def test_so_it_is_however_few_features_there_are(d_hidden):
    """Of 16, as many as the narrowest product has columns, the first would be taken for those that were asked for."""
    encoder = takes(lambda self, x, features=None: x @ self.W_enc)
    encoder.d_hidden, encoder.W_enc = d_hidden, torch.eye(16, d_hidden)
    x = torch.arange(640.0).reshape(1, 40, 16)
    with pytest.raises(ModelError, match=r"return acts\[\.\.\., features\]"):
        encode_of(encoder, x, torch.tensor([2, 1]), "The encoder")
    right = takes(lambda self, x, features=None: (x @ self.W_enc)[..., slice(None) if features is None else features])
    right.d_hidden, right.W_enc = encoder.d_hidden, encoder.W_enc
    assert torch.equal(encode_of(right, x, torch.tensor([2, 1]), "The encoder"), x[..., [2, 1]])
    assert torch.equal(encode_of(right, x, None, "The encoder")[..., :3], x[..., :3])


@pytest.mark.parametrize(
    ("features", "n", "told"),
    [
        (None, 16, "gave 16 activations at each position when asked for all 50 features: it must be one for each"),
        ([1, 2, 3], 3, r"gave 3 activations .* asked for 16 features \(some of them again and again\): it must"),
        (list(range(20)), 19, "gave 19 activations .* asked for 20 features: it must"),
        (list(range(20)), 50, "gave all 50 features when asked for some"),
    ],
)
def test_an_encode_that_gives_another_number_of_features_is_told_what_was_asked(features, n, told):
    encoder = of_fifty(lambda self, x, features=None: torch.zeros(*x.shape[:2], n))
    with pytest.raises(ModelError, match=rf"^encoder_B's encode {told}"):
        encode_of(encoder, torch.ones(2, 40, 16), None if features is None else torch.tensor(features), "encoder_B")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "product", [torch.matmul, lambda x, w: torch.einsum("rsd,df->rsf", x, w), lambda x, w: nn.functional.linear(x, w.T)]
)
def test_an_encode_of_another_number_format_is_told_to_convert(product, dtype):
    def encode(self, x, features=None):
        return product(x, self.W_enc[:, features])

    with pytest.raises(
        ModelError, match=r"number format, torch\.float32 \(.*must convert x: x\.to\(self\.W_enc\.dtype"
    ) as error:
        few(of_fifty(encode, dtype))
    assert isinstance(error.value.__cause__, RuntimeError)
    assert few(of_fifty(lambda self, x, features=None: encode(self, x.to(dtype), features), dtype))


def test_another_error_of_an_encode_is_its_own():
    def encode(self, x, features=None):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match=r"^mine$"):
        few(of_fifty(encode))


def test_an_encoder_of_another_width_is_told_before_anything_long_is_run():
    with pytest.raises(ModelError, match=r"reads vectors of width 10.*blocks\.0\.mlp\.hook_post.*width 64"):
        get_feature_data(
            random_encoder(10), shared("gpt2"), some_tokens(), FeatureVisParams(hook_point="blocks.0.mlp.hook_post")
        )
    with pytest.raises(ModelError, match=r"encoder_B reads vectors of width 10"):
        get_feature_data(
            random_encoder(64),
            shared("gpt2"),
            some_tokens(),
            FeatureVisParams(hook_point="blocks.0.mlp.hook_post"),
            encoder_B=random_encoder(10),
        )


def test_the_second_encoder_uses_its_own_weights():
    """A B feature that is one of A's features has a correlation of one with it, biases and all."""
    encoder, other = random_encoder(64, 6), random_encoder(64, 5, seed=3)
    with torch.no_grad():
        other.b_dec.copy_(encoder.b_dec)
        other.W_enc[:, 4] = encoder.W_enc[:, 2]
        other.b_enc[4] = encoder.b_enc[2]
    data = get_feature_data(
        encoder,
        shared("gpt2"),
        some_tokens(),
        FeatureVisParams(hook_point="blocks.0.mlp.hook_post", verbose=False),
        encoder_B=other,
    )
    best = data[2].feature_tables.correlated_b_features
    assert best.indices[0] == 4
    assert best.pearson[0] == pytest.approx(1.0, abs=1e-5)
    assert best.cosine[0] == pytest.approx(1.0, abs=1e-5)


def test_the_encoders_own_hook_point_is_the_default():
    class Placed(Minimal):
        hook_point = "blocks.1.hook_resid_pre"

    data = get_feature_data(Placed(), shared("gpt2"), some_tokens(), FeatureVisParams(verbose=False))
    assert data.provenance.hook_point == "blocks.1.hook_resid_pre"
    with pytest.raises(InputError, match="No hook point"):
        get_feature_data(Minimal(), shared("gpt2"), some_tokens(), FeatureVisParams(verbose=False))


# --- what it is given --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 2, 2), (1, 2, 5), (4,), (1, 2, 3, 5), (5,)])
def test_activations_of_another_width_are_told_and_never_joined(shape):
    encoder = random_encoder(4, 8)
    x = torch.ones(shape)
    if shape == (4,):
        assert encoder.encode(x).shape == (8,)
        return
    with pytest.raises(InputError, match=rf"width 4, \[rows, seq, 4\], got shape {re.escape(str(shape))}"):
        encoder.encode(x)


@pytest.mark.parametrize("value", [1, 0, "False", None, np.True_])
def test_whether_b_dec_is_subtracted_is_true_or_false(value):
    with pytest.raises(InputError, match="apply_b_dec_to_input must be True or False"):
        AutoEncoderConfig(4, 8, value)


def test_a_file_that_says_neither_is_refused(tmp_path):
    encoder = random_encoder(4, 8)
    save_file(encoder.state_dict(), tmp_path / "a.safetensors", metadata={"apply_b_dec_to_input": "1"})
    with pytest.raises(InputError, match="must be True or False, got '1'"):
        AutoEncoder.load(tmp_path / "a.safetensors")


def test_tensors_that_share_memory_are_saved(tmp_path):
    encoder = random_encoder(4, 4)
    encoder.b_enc = encoder.b_dec
    encoder.save(tmp_path / "a.safetensors")
    found = AutoEncoder.load(tmp_path / "a.safetensors")
    assert all(torch.equal(found.state_dict()[name], weight) for name, weight in encoder.state_dict().items())
