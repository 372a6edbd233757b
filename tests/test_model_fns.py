"""The wrapper around TransformerLens: every hook point, the final norm, the way to the residual stream, no traces left."""

from __future__ import annotations

import contextlib
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from brute_force import hook_values, random_encoder, real_ablation, width_at
from hf_models import (
    ALL_MODELS,
    N_CTX,
    PAD,
    boot,
    build,
    gpt2,
    native,
    qwen2,
    randomise,
    save_tokenizer,
    shared,
    some_tokens,
)
from torch import Tensor, nn

from sae_vis import (
    AutoEncoder,
    AutoEncoderConfig,
    FeatureVisParams,
    compare_prompts,
    get_feature_data,
    get_prompt_data,
)
from sae_vis._errors import ModelError
from sae_vis.model_fns import FinalNorm, HookPoint, LanguageModel, digest_tensors

KINDS = (
    "hook_resid_pre",
    "hook_resid_mid",
    "hook_resid_post",
    "hook_mlp_out",
    "hook_attn_out",
    "mlp.hook_pre",
    "mlp.hook_post",
    "attn.hook_z",
)
QUIET = {"verbose": False, "include_left_tables": False}


def has_kind(name: str, kind: str) -> bool:
    return not (name == "neox" and kind == "hook_resid_mid")  # attention and MLP are parallel: there is no middle


# --- activations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL_MODELS)
def test_activations_are_what_transformer_lens_caches(name):
    model, tokens = shared(name), some_tokens()
    wrapped = LanguageModel(model)
    for layer in range(2):
        for kind in KINDS:
            if has_kind(name, kind):
                hook_point = f"blocks.{layer}.{kind}"
                with wrapped.as_for_inference():
                    ours = wrapped.activations(tokens, hook_point)
                expected = hook_values(model, tokens, hook_point)  # in other batches, so the last bits may differ
                largest = float(expected.abs().max())
                torch.testing.assert_close(ours, expected, rtol=0.0, atol=1e-6 * largest)


@pytest.mark.parametrize("seq_len", [7, 9, 10])
def test_rows_are_never_made_longer_than_the_context(seq_len):
    model, tokens = native(n_ctx=10), some_tokens(3, seq_len, bos=False)
    wrapped = LanguageModel(model)
    with wrapped.as_for_inference():
        ours = wrapped.activations(tokens, "blocks.1.hook_resid_post")
    torch.testing.assert_close(ours, hook_values(model, tokens, "blocks.1.hook_resid_post"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n_rows", [1, 2, 7])
@pytest.mark.parametrize("seq_len", [1, 2, 5])
def test_small_batches_come_back_in_their_own_shape(n_rows, seq_len):
    model, tokens = shared("gpt2"), some_tokens(n_rows, seq_len, bos=False)
    wrapped = LanguageModel(model)
    with wrapped.as_for_inference():
        assert wrapped.activations(tokens, "blocks.0.attn.hook_z").shape == (n_rows, seq_len, 2, 8)
        assert wrapped.logits(tokens).shape == (n_rows, seq_len, 48)
        torch.testing.assert_close(wrapped.logits(tokens), model(tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["native-LN", "gpt2", "llama"])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_row_has_the_same_bits_alone_and_in_a_batch(name, threads):
    wrapped, tokens = LanguageModel(shared(name)), some_tokens(9)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with wrapped.as_for_inference():
            together = wrapped.activations(tokens, "blocks.1.mlp.hook_post")
            alone = torch.cat([wrapped.activations(row[None], "blocks.1.mlp.hook_post") for row in tokens])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(together, alone)


def test_layers_of_two_digits_are_reached():
    model = native(n_layers=12)
    wrapped = LanguageModel(model)
    assert HookPoint.parse("blocks.11.hook_resid_post") == ("blocks.11.hook_resid_post", 11, "hook_resid_post")
    assert wrapped.final_hook == "blocks.11.hook_resid_post"
    with wrapped.as_for_inference():
        ours = wrapped.activations(some_tokens(), "blocks.10.mlp.hook_post")
    torch.testing.assert_close(ours, hook_values(model, some_tokens(), "blocks.10.mlp.hook_post"))


@pytest.mark.parametrize(
    "name", ["hook_embed", "ln_final.hook_normalized", "blocks.1.hook_other", "blocks.x.hook_resid_pre"]
)
def test_other_hook_points_parse_to_no_layer_and_no_kind(name):
    assert HookPoint.parse(name) == (name, None, None)


# --- stopping ----------------------------------------------------------------------------------------------------


def count_calls(module: nn.Module) -> list[int]:
    calls: list[int] = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("name", ["native-LN", "gpt2", "gemma2"])
def test_nothing_after_the_hook_point_is_run(name):
    model = build(name)
    unembedding, last_norm = count_calls(model.unembed), count_calls(model.ln_final)
    first_mlp, second_mlp = count_calls(model.blocks[0].mlp), count_calls(model.blocks[1].mlp)
    wrapped = LanguageModel(model)
    with wrapped.as_for_inference():
        wrapped.activations(some_tokens(), "blocks.1.hook_resid_pre")
        assert (len(first_mlp), len(second_mlp), len(last_norm), len(unembedding)) == (1, 0, 0, 0)
        wrapped.final_residual(some_tokens())
        assert (len(first_mlp), len(second_mlp), len(last_norm), len(unembedding)) == (2, 1, 0, 0)
        wrapped.logits(some_tokens())
        assert (len(last_norm), len(unembedding)) == (1, 1)


def test_a_module_inside_the_block_is_the_last_that_runs():
    model = build("gpt2")
    mlp_output = count_calls(model.blocks[0].mlp.out)
    wrapped = LanguageModel(model)
    with wrapped.as_for_inference():
        wrapped.activations(some_tokens(), "blocks.0.mlp.hook_pre")
    assert not mlp_output


# --- no traces ---------------------------------------------------------------------------------------------------


def hooks_of(model: Any) -> dict[str, tuple[int, int]]:
    """How many hooks there are at each hook point, TransformerLens' list and torch's."""
    return {name: (len(p.fwd_hooks), len(p._forward_hooks)) for name, p in model.hook_dict.items()}


def fetch(model: Any, hook_point: str = "blocks.0.mlp.hook_post", tokens: Any = None, **options: Any) -> Any:
    encoder, tokens = random_encoder(width_at(model, hook_point)), some_tokens() if tokens is None else tokens
    return get_feature_data(encoder, model, tokens, FeatureVisParams(hook_point=hook_point, **QUIET, **options))


class StopHereError(Exception):
    pass


@pytest.mark.parametrize("error", [StopHereError, KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("where", ["ln_final", "blocks.0.mlp", "blocks.1.attn"])
def test_no_hook_stays_after_an_error_in_the_forward_pass(error, where):
    model = build("gpt2")
    before = hooks_of(model)

    def fail(*_):
        raise error("stop")

    handle = model.get_submodule(where).register_forward_hook(fail)
    with pytest.raises(error):
        fetch(model, "blocks.0.hook_resid_pre")
    handle.remove()
    assert hooks_of(model) == before
    fetch(model)
    assert hooks_of(model) == before


def test_hooks_that_the_user_set_stay_and_work():
    model = build("gpt2")
    seen: list[int] = []
    model.add_hook("blocks.0.hook_resid_pre", lambda value, hook: seen.append(1))
    before = hooks_of(model)
    fetch(model)
    assert hooks_of(model) == before
    n = len(seen)
    model(some_tokens())
    assert len(seen) == n + 1


@pytest.mark.parametrize("name", ["native-LN", "gpt2"])
def test_the_training_flag_of_every_module_comes_back(name):
    model = build(name)
    model.train()
    model.blocks[1].eval()  # e.g. a frozen part
    parts = [*model.modules(), *model.original_model.modules()]
    flags = [module.training for module in parts]
    assert set(flags) == {True, False}
    fetch(model)
    assert [module.training for module in parts] == flags


def test_a_model_in_training_mode_does_not_drop_out_values():
    plain = fetch(build("gpt2"))
    model = build("gpt2")
    model.blocks[0].train()  # GPT-2 drops out a tenth of the values in training mode
    assert fetch(model).feature_data_dict == plain.feature_data_dict
    model.train()
    assert fetch(model).feature_data_dict == plain.feature_data_dict


@pytest.mark.parametrize("ablation", ["direct", "full"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_mixed_precision_and_the_default_number_format_of_the_user_change_nothing(dtype, ablation):
    encoder = random_encoder(width_at(shared("gpt2"), "blocks.0.mlp.hook_post"))
    fvp = FeatureVisParams(hook_point="blocks.0.mlp.hook_post", ablation=ablation, **QUIET)
    plain, default = get_feature_data(encoder, shared("gpt2"), some_tokens(), fvp), torch.get_default_dtype()
    if dtype == torch.bfloat16:
        with torch.autocast("cpu", dtype=dtype):
            found = get_feature_data(encoder, shared("gpt2"), some_tokens(), fvp)
            assert torch.is_autocast_enabled("cpu")
    else:
        try:
            torch.set_default_dtype(dtype)
            found = get_feature_data(encoder, shared("gpt2"), some_tokens(), fvp)
            assert torch.get_default_dtype() == dtype
        finally:
            torch.set_default_dtype(default)
    assert found == plain


@pytest.mark.parametrize("ablation", ["direct", "full"])
def test_the_default_device_of_the_user_changes_nothing(ablation):
    encoder = random_encoder(width_at(shared("gpt2"), "blocks.0.mlp.hook_post"))
    fvp = FeatureVisParams(hook_point="blocks.0.mlp.hook_post", ablation=ablation, verbose=False)

    tokens = some_tokens().tolist()

    def everything():
        features = get_feature_data(encoder, shared("gpt2"), tokens, fvp)
        prompt = get_prompt_data(encoder, shared("gpt2"), [5, 6, 7], features, reconstruction=True)
        return features, prompt, compare_prompts(encoder, shared("gpt2"), [5, 6, 7], [5, 8], features)

    expected = everything()
    try:
        torch.set_default_device("meta")  # which holds no numbers
        assert everything() == expected
        assert torch.zeros(1).is_meta
        assert all(weight.is_meta for weight in AutoEncoder(AutoEncoderConfig(2, 3)).parameters())
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize("enabled", [True, False])
def test_gradient_mode_and_gradients_stay_as_they_are(enabled):
    model = build("gpt2")
    with torch.set_grad_enabled(enabled):
        fetch(model)
        assert torch.is_grad_enabled() is enabled
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())


def test_gradient_mode_and_flags_come_back_after_an_error():
    model = build("gpt2").train()
    with contextlib.suppress(ModelError), torch.enable_grad():
        fetch(model, ablation="direct", features=(0,), ignore_tokens=(), n_bins=3)
        get_feature_data(random_encoder(3), model, some_tokens(), FeatureVisParams(hook_point="blocks.0.mlp.hook_post"))
    assert torch.is_grad_enabled()
    assert model.training


def test_random_numbers_weights_and_settings_stay_as_they_are():
    model = build("gpt2")
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002 - the global state is what must not change
    random.seed(5)
    states = torch.get_rng_state(), str(np.random.get_state()), random.getstate()  # noqa: NPY002
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    fetch(model)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (str(np.random.get_state()), random.getstate())  # noqa: NPY002
    assert (dtype, threads) == (torch.get_default_dtype(), torch.get_num_threads())
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())


# --- errors ------------------------------------------------------------------------------------------------------


def test_an_unknown_hook_point_names_the_nearest_ones():
    wrapped = LanguageModel(shared("gpt2"))
    with pytest.raises(ModelError, match=r"blocks\.0\.mlp\.hook_pots.*blocks\.0\.mlp\.hook_post"):
        wrapped.check_hook_point("blocks.0.mlp.hook_pots")
    with pytest.raises(ModelError, match=r"blocks\.7\.hook_resid_pre.*blocks\.\d\.hook_resid_pre"):
        wrapped.check_hook_point("blocks.7.hook_resid_pre")
    with pytest.raises(ModelError, match="Nearest names: blocks"):
        wrapped.check_hook_point("")


def test_a_hook_point_that_is_switched_off_is_a_clear_error():
    model = build("gpt2")
    assert "blocks.0.hook_mlp_in" in model.hook_dict
    with pytest.raises(ModelError, match=r"blocks\.0\.hook_mlp_in.*switched on.*set_use_hook_mlp_in"):
        get_feature_data(
            random_encoder(16), model, some_tokens(), FeatureVisParams(hook_point="blocks.0.hook_mlp_in", **QUIET)
        )


def test_a_hook_point_that_never_fires_is_a_clear_error():
    wrapped = LanguageModel(shared("gpt2"))
    silent = _NeverFires(shared("gpt2"))
    with pytest.raises(ModelError, match=r"blocks\.0\.hook_resid_pre.*never fired"):
        LanguageModel(silent).activations(some_tokens(), "blocks.0.hook_resid_pre")
    assert wrapped.activations(some_tokens(), "blocks.0.hook_resid_pre").shape == (6, 12, 16)


class _Wrapper:
    """Everything of the model but what a subclass changes."""

    def __init__(self, model: Any) -> None:
        self.inner = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class _NeverFires(_Wrapper):
    def run_with_hooks(self, tokens, fwd_hooks=(), return_type="logits"):
        return self.inner.run_with_hooks(tokens, fwd_hooks=[], return_type=return_type)


def test_a_foreign_model_is_refused_with_the_way_out():
    hf_model = gpt2()
    with pytest.raises(ModelError, match=r"GPT2LMHeadModel is not a TransformerLens model.*boot_transformers"):
        LanguageModel(hf_model)
    with pytest.raises(ModelError, match=r"NoneType"):
        LanguageModel(None)


# --- the final norm ----------------------------------------------------------------------------------------------


def applied(norm: FinalNorm, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True) if norm.centres else x
    scale = (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt() if norm.scales else 1.0
    return centred / scale * norm.gain + norm.bias


@torch.no_grad()
def check_norm(model: Any, *, centres: bool, scales: bool, eps: float) -> FinalNorm:
    norm = LanguageModel(model).final_norm()
    assert (norm.centres, norm.scales) == (centres, scales)
    assert norm.eps == pytest.approx(eps, rel=1e-3, abs=1e-9)
    width = len(norm.gain)
    for size in (1e-3, 1.0, 50.0):
        x = size * (torch.randn(5, width, generator=torch.Generator().manual_seed(0)) + 0.7)
        torch.testing.assert_close(applied(norm, x), model.ln_final(x[None])[0], rtol=1e-4, atol=1e-5)
    return norm


@pytest.mark.parametrize(
    ("name", "centres", "eps"),
    [
        ("native-LN", True, 1e-3),
        ("native-RMS", False, 1e-3),
        ("native-LNPre", True, 1e-3),
        ("native-RMSPre", False, 1e-3),
        ("gpt2", True, 1e-5),
        ("llama", False, 1e-3),
        ("neox", True, 1e-5),
        ("gemma2", False, 1e-6),
    ],
)
def test_the_final_norm_is_probed_as_it_is(name, centres, eps):
    check_norm(shared(name), centres=centres, scales=True, eps=eps)


def test_a_model_without_a_final_norm_is_probed_as_such():
    norm = check_norm(shared("native-None"), centres=False, scales=False, eps=0.0)
    torch.testing.assert_close(norm.gain, torch.ones(16))
    torch.testing.assert_close(norm.bias, torch.zeros(16))


def test_gemmas_gain_is_one_more_than_its_weight():
    model = shared("gemma2")
    weight = model.ln_final.original_component.weight
    torch.testing.assert_close(LanguageModel(model).final_norm().gain, (1 + weight).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "neox"])
def test_folding_leaves_a_gain_of_one(name):
    model = shared(name, compat=True)
    norm = check_norm(
        model, centres=name in ("gpt2", "neox"), scales=True, eps=LanguageModel(shared(name)).final_norm().eps
    )
    torch.testing.assert_close(norm.gain, torch.ones(16), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(norm.bias, torch.zeros(16), rtol=1e-4, atol=1e-4)


class _JustANorm(_Wrapper):
    """A model whose final norm is any module, of any width."""

    def __init__(self, norm: nn.Module, width: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(shared("gpt2"))
        self.ln_final = norm.to(dtype)
        self.W_U = torch.zeros(width, 5, dtype=dtype)


class _ReciprocalLayerNorm(nn.Module):
    """A LayerNorm whose mean is rounded: the sum times the rounded reciprocal of the width."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.reciprocal, self.eps = torch.tensor(1.0 / width), eps

    def forward(self, x):
        centred = x - x.sum(-1, keepdim=True) * self.reciprocal
        return centred / (centred.square().sum(-1, keepdim=True) * self.reciprocal + self.eps).sqrt()


@pytest.mark.parametrize("width", [2, 3, 5, 17, 100, 768, 1000, 1536, 2560])
@pytest.mark.parametrize("eps", [1e-12, 1e-6, 1e-5, 1e-2])
@pytest.mark.parametrize("kind", ["layer", "reciprocal", "rms"])
def test_the_probe_holds_for_any_width_and_epsilon(width, eps, kind):
    norm = {
        "layer": nn.LayerNorm(width, eps=eps),
        "reciprocal": _ReciprocalLayerNorm(width, eps),
        "rms": nn.RMSNorm(width, eps=eps),
    }[kind]
    randomise(norm)
    check_norm(_JustANorm(norm, width), centres=kind != "rms", scales=True, eps=eps)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm])
@torch.no_grad()
def test_the_probe_of_a_norm_in_half_precision_is_right_to_half_precision(kind, dtype):
    norm = kind(64, eps=1e-5)
    randomise(norm)
    exact = LanguageModel(_JustANorm(norm, 64)).final_norm()
    half = LanguageModel(_JustANorm(norm, 64, dtype)).final_norm()
    assert half[:2] == exact[:2] == (kind is nn.LayerNorm, True)
    torch.testing.assert_close(half.gain, exact.gain, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(half.bias, exact.bias, rtol=2e-2, atol=2e-2)
    assert half.eps == pytest.approx(1e-5, rel=0.1)


def test_gains_of_zero_and_of_both_signs_are_probed():
    norm = nn.LayerNorm(6)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.0, -2.0, 1e-3, 30.0, 0.0, -1.0]))
        norm.bias.copy_(torch.arange(6.0))
    check_norm(_JustANorm(norm, 6), centres=True, scales=True, eps=1e-5)


# --- the way to the residual stream, and whether it is exact --------------------------------------------------------


def write_path(model: Any, hook_point: str) -> Any:
    wrapped = LanguageModel(model)
    with wrapped.as_for_inference():
        return wrapped.write_path(HookPoint.parse(hook_point), some_tokens())


@pytest.mark.parametrize("name", ALL_MODELS)
def test_the_way_to_the_residual_stream_is_what_a_change_does_there(name):
    """Adds a vector at the hook point and looks where it arrives first: at the middle or at the end of the block."""
    model, tokens = shared(name), some_tokens()
    for layer in range(2):
        for kind in KINDS:
            if not has_kind(name, kind):
                continue
            hook_point = f"blocks.{layer}.{kind}"
            path = write_path(model, hook_point)
            if kind == "mlp.hook_pre":
                assert "nonlinearity" in path.missing_because
                continue
            if name == "gemma2" and kind in ("mlp.hook_post", "attn.hook_z"):
                assert "norm" in path.missing_because
                continue
            assert path.missing_because is None
            width = width_at(model, hook_point)
            vector = torch.randn(width, generator=torch.Generator().manual_seed(layer))
            expected = vector if path.matrix is None else vector @ path.matrix
            assert (path.matrix is None) == (kind not in ("mlp.hook_post", "attn.hook_z"))
            torch.testing.assert_close(arrived(model, tokens, hook_point, vector), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def arrived(model: Any, tokens: Tensor, hook_point: str, vector: Tensor) -> Tensor:
    """How a vector added at the hook point shows in the residual stream, the first time that it is there to be seen."""
    layer, kind = hook_point.split(".", 2)[1:]
    after_attention = kind in ("hook_attn_out", "attn.hook_z") and f"blocks.{layer}.hook_resid_mid" in model.hook_dict
    end_of_part = f"blocks.{layer}.hook_resid_{'mid' if after_attention else 'post'}"
    read_at = hook_point if kind.startswith("hook_resid") else end_of_part
    kept: dict[str, Tensor] = {}

    def add(value, hook):
        return value + vector.reshape(value.shape[2:])

    def keep(value, hook):
        kept["value"] = value

    model.run_with_hooks(tokens, fwd_hooks=[(hook_point, add), (read_at, keep)])
    return (kept["value"] - hook_values(model, tokens, read_at))[2, 5]


@pytest.mark.parametrize("name", ALL_MODELS)
@torch.no_grad()
def test_exact_means_that_a_real_ablation_does_the_same(name):
    """Exact if and only if taking the vector out at the hook point changes the log-probabilities as the direct effect says.

    The vector is taken out at one position; the direct effect says that the other positions do not change.
    """
    model, tokens = shared(name), some_tokens()
    final = hook_values(model, tokens, "blocks.1.hook_resid_post")
    wrapped = LanguageModel(model)
    row, position = 1, 4
    clean = torch.log_softmax(model(tokens)[row].double(), -1)
    for layer in range(2):
        for kind in KINDS:
            hook_point = f"blocks.{layer}.{kind}"
            if not has_kind(name, kind):
                continue
            path = write_path(model, hook_point)
            if path.missing_because:
                assert not path.exact
                continue
            vector = torch.randn(width_at(model, hook_point), generator=torch.Generator().manual_seed(3))
            d = vector if path.matrix is None else vector @ path.matrix
            real = real_ablation(model, tokens, hook_point, row, position, vector) - clean
            direct = torch.zeros_like(real)
            without = wrapped.logits_from_residual((final[row, position] - d)[None])[0]
            direct[position] = torch.log_softmax(without.double(), -1) - clean[position]
            assert float(direct.abs().max()) > 0.05  # large enough to tell
            assert path.exact == bool((real - direct).abs().max() < 1e-4), hook_point


def test_attention_is_exact_at_the_last_layer_only_beside_a_parallel_mlp():
    assert write_path(shared("neox"), "blocks.1.attn.hook_z").exact
    assert write_path(shared("neox"), "blocks.1.hook_attn_out").exact
    assert not write_path(shared("gpt2"), "blocks.1.attn.hook_z").exact
    assert not write_path(shared("neox"), "blocks.0.attn.hook_z").exact


@pytest.mark.parametrize("hook_point", ["hook_embed", "ln_final.hook_normalized", "blocks.0.ln1.hook_normalized"])
def test_hook_points_of_no_known_path_say_so_and_still_give_the_rest(hook_point):
    model = shared("gpt2")
    data = fetch(model, hook_point)
    assert "no map from" in data.provenance.direct_effect_reason
    assert data.provenance.direct_effect == "none"
    assert all(feature.logits is None for feature in data.values())
    sequences = [s for feature in data.values() for group in feature.sequences.groups for s in group.sequences]
    assert sequences
    assert all(loss is None for s in sequences for loss in s.loss_contribution)
    assert all(not s.effects for s in sequences)


@pytest.mark.parametrize(
    ("name", "hook_point", "reason"),
    [
        ("gpt2", "blocks.1.mlp.hook_pre", "nonlinearity"),
        ("gemma2", "blocks.1.mlp.hook_post", "norm"),
        ("gemma2", "blocks.0.attn.hook_z", "norm"),
    ],
)
def test_what_stands_in_the_way_is_told_and_the_logit_panels_left_out(name, hook_point, reason):
    data = fetch(shared(name), hook_point)
    assert data.provenance.direct_effect == "none"
    assert reason in data.provenance.direct_effect_reason
    assert all(feature.logits is None for feature in data.values())
    assert any(feature.activations.n_active for feature in data.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["mlp.hook_post", "attn.hook_z", "hook_mlp_out"])
def test_rounding_in_half_precision_is_not_taken_for_something_in_the_way(dtype, kind):
    for larger in (1.0, 50.0):
        model = build("gpt2", dtype=dtype)
        with torch.no_grad():
            model.embed.original_component.weight.mul_(larger)
        for layer in range(2):
            assert write_path(model, f"blocks.{layer}.{kind}").missing_because is None
    gemma = build("gemma2", dtype=dtype)
    if kind != "hook_mlp_out":
        assert write_path(gemma, f"blocks.1.{kind}").missing_because is not None


def test_a_residual_stream_much_larger_than_the_change_hides_nothing():
    """As behind a token on which a real model's residual stream is a hundred times larger than elsewhere."""
    model = build("gpt2")
    with torch.no_grad():
        model.embed.original_component.weight.mul_(2000.0)
    for kind in ("mlp.hook_post", "attn.hook_z", "hook_mlp_out"):
        assert write_path(model, f"blocks.0.{kind}").missing_because is None


# --- processed and raw weights -------------------------------------------------------------------------------------

AGREEING = [
    *((name, kind) for name in ("llama", "llama-tied", "gemma2") for kind in KINDS),
    *((name, kind) for name in ("gpt2", "gpt2-untied", "neox") for kind in ("mlp.hook_pre", "mlp.hook_post")),
]


@pytest.mark.parametrize(("name", "kind"), AGREEING)
def test_processed_weights_give_the_same_activations_where_they_should(name, kind):
    raw, processed, tokens = shared(name), shared(name, compat=True), some_tokens()
    for layer in range(2):
        hook_point = f"blocks.{layer}.{kind}"
        ours, theirs = (LanguageModel(m).activations(tokens, hook_point) for m in (raw, processed))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "hook_point"), [("gpt2", "blocks.0.mlp.hook_post"), ("llama", "blocks.0.hook_mlp_out")]
)
def test_processed_weights_give_the_same_features(name, hook_point):
    raw, processed = fetch(shared(name), hook_point), fetch(shared(name, compat=True), hook_point)
    for feature, data in raw.items():
        other = processed[feature]
        assert data.activations.n_active == other.activations.n_active
        if data.activations.max is not None:
            assert data.activations.max == pytest.approx(other.activations.max, rel=2e-4)
        assert data.logits.shown_logits == pytest.approx(other.logits.shown_logits, rel=1e-3, abs=2e-4)


def test_centred_weights_of_a_layer_norm_model_are_told():
    processed = shared("gpt2", compat=True)
    with pytest.warns(UserWarning, match="centred") as told:
        data = fetch(processed, "blocks.0.hook_resid_pre")
    assert told[0].filename == __file__, "it is the caller's line that is told"
    assert any("centred" in note for note in data.provenance.notes)
    assert not fetch(shared("gpt2"), "blocks.0.hook_resid_pre").provenance.notes
    assert not fetch(processed, "blocks.0.mlp.hook_post").provenance.notes
    assert not fetch(shared("llama", compat=True), "blocks.0.hook_resid_pre").provenance.notes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [16, 768])
def test_centred_weights_are_known_in_every_number_format(dtype, width):
    weight = torch.randn(2 * width, width, generator=torch.Generator().manual_seed(0))
    model = shared("native-LN")
    told = []
    for written in (weight, weight - weight.mean(-1, keepdim=True)):
        block = SimpleNamespace(mlp=SimpleNamespace(W_out=written.to(dtype)))
        wrapped = LanguageModel(model)
        wrapped.model = SimpleNamespace(blocks=[block])
        told.append(wrapped.writes_centred())
    assert told == [False, True]


@pytest.mark.parametrize(("in_front", "where"), [(4, "left"), (0, "right")])
def test_padding_that_the_model_reads_in_front_of_a_text_is_told(in_front, where):
    tokens = torch.full((3, N_CTX), PAD)
    for row in tokens:
        row[in_front : in_front + 6] = some_tokens(1, 6, bos=False)[0]
    if where == "right":
        assert not fetch(shared("gpt2"), tokens=tokens).provenance.notes
        return
    with pytest.warns(UserWarning, match="Padding stands before the text in 3 of 3 rows") as told:
        assert "Pad on the right" in fetch(shared("gpt2"), tokens=tokens).provenance.notes[0]
    assert told[0].filename == __file__, "it is the caller's line that is told"


def test_a_bridges_own_name_of_a_hook_point_is_of_the_same_kind():
    names = {
        "blocks.1.mlp.out.hook_in": "blocks.1.mlp.hook_post",
        "blocks.1.mlp.hook_out": "blocks.1.hook_mlp_out",
        "blocks.1.hook_out": "blocks.1.hook_resid_post",
        "blocks.0.attn.o.hook_in": "blocks.0.attn.hook_z",
    }
    model = shared("gpt2")
    known = [name for name in names if name in model.hook_dict]
    assert len(known) >= 3
    for name in known:
        by_alias, by_name = fetch(model, names[name]), fetch(model, name)
        assert by_name.provenance.hook_point == name
        assert by_name.feature_data_dict == by_alias.feature_data_dict
        assert by_name.provenance.direct_effect == by_alias.provenance.direct_effect


def test_folded_value_biases_of_an_rms_norm_model_are_told_where_they_were(tmp_path):
    raw, processed = qwen2(), qwen2()
    for hf_model in (raw, processed):
        randomise(hf_model)
    raw, processed = (boot(hf_model, save_tokenizer(tmp_path)) for hf_model in (raw, processed))
    processed.enable_compatibility_mode()
    for kind in KINDS:
        ours, theirs = (LanguageModel(m).activations(some_tokens(), f"blocks.1.{kind}") for m in (raw, processed))
        assert (float((ours - theirs).abs().max()) < 1e-4) == (kind != "attn.hook_z")
    with pytest.warns(UserWarning, match="value biases are zero"):
        assert "value biases" in fetch(processed, "blocks.0.attn.hook_z").provenance.notes[0]
    assert not fetch(raw, "blocks.0.attn.hook_z").provenance.notes
    assert not fetch(processed, "blocks.0.hook_attn_out").provenance.notes


# --- odds and ends ---------------------------------------------------------------------------------------------------


def test_the_digest_tells_models_apart_and_is_steady():
    first, again, other = build("gpt2"), build("gpt2"), build("gpt2")
    with torch.no_grad():
        other.blocks[0].mlp.out.original_component.weight[0, 0] += 1.0
    digests = [LanguageModel(model).digest() for model in (first, again, other)]
    assert digests[0] == digests[1] != digests[2]


def test_the_digest_tells_names_shapes_and_number_formats_apart():
    zeros = torch.zeros(2, 3)
    pairs = [("a", zeros), ("b", zeros), ("a", zeros.T), ("a", zeros.double()), ("a", zeros.reshape(-1))]
    assert len({digest_tensors([pair]) for pair in pairs}) == len(pairs)
    assert digest_tensors(pairs[:2]) == digest_tensors(pairs[1::-1]), "in any order"


def test_a_model_without_a_tokenizer_has_no_special_tokens():
    wrapped = LanguageModel(native())
    assert wrapped.special_token_ids() == ()
    assert wrapped.padding_id() is None


def test_special_tokens_are_those_of_the_tokenizer(tmp_path):
    wrapped = LanguageModel(native(tokenizer=save_tokenizer(tmp_path)))
    assert wrapped.special_token_ids() == (0, 1, 2)
    assert wrapped.padding_id() == 1
