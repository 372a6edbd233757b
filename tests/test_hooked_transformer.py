"""HookedTransformer of TransformerLens 2 and 3: processed and unprocessed, the same numbers as everywhere else."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from brute_force import (
    activations,
    change_of_log_probs,
    direction,
    hook_values,
    random_encoder,
    real_ablation,
    width_at,
)
from hf_models import BOS, MAKERS, PAD, build, some_tokens
from hooked_models import CONFIGURED, HookedTransformer, as_native, build_hooked, empty, shared_hooked
from test_ablation import WRITING_KINDS, logit_weights, sequences_of, worst_error
from test_full_ablation import check_against_transformer_lens
from test_model_fns import KINDS, applied, arrived, hooks_of

from sae_vis import FeatureVisParams, get_feature_data, get_prompt_data, load_demo
from sae_vis._ablation import FormulaTail, choose_tail
from sae_vis._errors import ModelError
from sae_vis._full_ablation import Start
from sae_vis.model_fns import FinalNorm, HookPoint, LanguageModel

if HookedTransformer is None:
    pytest.skip("TransformerLens 4 has no HookedTransformer", allow_module_level=True)

SMALL = {"verbose": False, "include_left_tables": False, "first_group_size": 5, "n_groups": 3, "other_groups_size": 2}
TOLERANCE = 2e-4
RAW = [(name, False) for name in (*CONFIGURED, *MAKERS)]
# TransformerLens folds no norm into the attention of a model of the shortformer kind.
PROCESSED = [(name, True) for name in (*CONFIGURED, *MAKERS) if name != "shortformer"]
ALL = [*RAW, *PROCESSED]
RMS_MODELS = ("RMS", "RMSPre", "gated", "llama", "llama-tied", "gemma2")
WITH_VALUE_BIASES = ("RMS", "RMSPre", "gated")
LAYER_NORM_MODELS = ("LN", "LNPre", "solu-ln", "rotary", "soft-cap", "gpt2", "gpt2-untied", "neox")
HAS_BRIDGE = find_spec("transformer_lens.model_bridge") is not None
needs_bridge = pytest.mark.skipif(not HAS_BRIDGE, reason="TransformerLens 2 has no TransformerBridge to compare with")


def hook_points(model: Any, kinds: tuple[str, ...] = KINDS) -> list[str]:
    """Those of these kinds that the model has: attention only has no MLP, parallel parts have no middle."""
    kinds = tuple(kind for kind in kinds if not (model.cfg.attn_only and "mlp" in kind))  # it lists hook_mlp_out
    return [name for layer in range(2) for kind in kinds if (name := f"blocks.{layer}.{kind}") in model.hook_dict]


def fetch(model: Any, hook_point: str, tokens: Any = None, encoder: Any = None, **options: Any) -> Any:
    encoder = encoder or random_encoder(width_at(model, hook_point), 4)
    fvp = FeatureVisParams(hook_point=hook_point, **{**SMALL, **options})
    with warnings.catch_warnings():  # that processing changes what is read is tested further down
        warnings.filterwarnings("ignore", message="The model's (writing weights|value biases) are")
        return get_feature_data(encoder, model, some_tokens() if tokens is None else tokens, fvp)


@torch.no_grad()
def ours(model: Any, tokens: Any, hook_point: str) -> torch.Tensor:
    return LanguageModel(model).activations(tokens, hook_point)


# --- activations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "processed"), ALL)
def test_activations_are_what_transformer_lens_caches(name, processed):
    model, tokens = shared_hooked(name, processed=processed), some_tokens()
    names = hook_points(model)
    assert len(names) >= (8 if name == "attention-only" else 14)
    for hook_point in names:
        expected = hook_values(model, tokens, hook_point)
        torch.testing.assert_close(ours(model, tokens, hook_point), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["LN", "RMS", "shortformer", "rotary", "llama", "gemma2", "neox", "attention-only"])
def test_the_same_row_has_the_same_bits_alone_and_in_a_batch(name):
    model, tokens = shared_hooked(name), some_tokens(9, seq_len=13)
    for hook_point in hook_points(model):
        alone = torch.cat([ours(model, row[None], hook_point) for row in tokens])
        assert torch.equal(ours(model, tokens, hook_point), alone), hook_point


def test_threads_do_not_change_that():
    model, tokens, hook_point = shared_hooked("LN"), some_tokens(5), "blocks.1.hook_resid_post"
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        alone = torch.cat([ours(model, row[None], hook_point) for row in tokens])
        assert torch.equal(ours(model, tokens, hook_point), alone)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("n_rows", [1, 7])
@pytest.mark.parametrize("seq_len", [1, 5])
def test_small_batches_come_back_in_their_own_shape(n_rows, seq_len):
    model, tokens = shared_hooked("gpt2"), some_tokens(n_rows, seq_len, bos=False)
    wrapped = LanguageModel(model)
    with wrapped.as_for_inference():
        assert wrapped.activations(tokens, "blocks.0.attn.hook_z").shape == (n_rows, seq_len, 2, 8)
        torch.testing.assert_close(wrapped.logits(tokens), model(tokens), rtol=1e-5, atol=1e-5)


def test_nothing_after_the_hook_point_is_run():
    model = build_hooked("LN")
    calls: list[str] = []
    for part in ("blocks.0.mlp", "blocks.1.attn", "ln_final", "unembed"):
        model.get_submodule(part).register_forward_hook(lambda *_, part=part: calls.append(part))
    ours(model, some_tokens(), "blocks.0.hook_resid_mid")
    assert calls == []
    ours(model, some_tokens(), "blocks.1.hook_resid_pre")
    assert calls == ["blocks.0.mlp"]


# --- the same weights, processed, unprocessed and in the bridge --------------------------------------------------------


def agrees_after_processing(name: str, hook_point: str) -> bool:
    """Folding takes value biases out of hook_z, and the weights of a norm behind the neurons out of hook_post."""
    kind = hook_point.split(".", 2)[2]
    if kind == "mlp.hook_post":
        return name != "solu-ln"
    return kind == "mlp.hook_pre" or (name in RMS_MODELS and not (kind == "attn.hook_z" and name in WITH_VALUE_BIASES))


@pytest.mark.parametrize("name", [*RMS_MODELS, *LAYER_NORM_MODELS])
def test_processed_weights_give_the_same_activations_where_they_should_and_nowhere_else(name):
    raw, processed, tokens = shared_hooked(name), shared_hooked(name, processed=True), some_tokens()
    for hook_point in hook_points(raw):
        difference = float((ours(raw, tokens, hook_point) - ours(processed, tokens, hook_point)).abs().max())
        assert (difference < 1e-4) == agrees_after_processing(name, hook_point), (hook_point, difference)


def check_same_features(one: Any, other: Any) -> None:
    assert list(one) == list(other)
    compared = 0
    for feature, data in one.items():
        theirs = other[feature]
        assert data.activations.n_active == theirs.activations.n_active
        if not data.activations.n_active:
            continue
        assert data.activations.max == pytest.approx(theirs.activations.max, rel=2e-4)
        assert data.activations.mean == pytest.approx(theirs.activations.mean, rel=1e-3)
        assert data.logits.shown_logits == pytest.approx(theirs.logits.shown_logits, rel=1e-3, abs=2e-4)
        losses = {
            (s.row, s.start + at): loss
            for s in sequences_of(theirs)
            for at, loss in enumerate(s.loss_contribution)
            if loss
        }
        for s in sequences_of(data):
            for at, loss in enumerate(s.loss_contribution):
                if loss and (s.row, s.start + at) in losses:  # near-ties among the examples may swap
                    assert loss == pytest.approx(losses[s.row, s.start + at], rel=1e-3, abs=2e-4)
                    compared += 1
    assert compared > 20


@pytest.mark.parametrize("name", [name for name in (*RMS_MODELS, *LAYER_NORM_MODELS) if name != "solu-ln"])
def test_processed_weights_give_the_same_features_where_the_activations_are_the_same(name):
    kind = "hook_mlp_out" if name == "gemma2" else "mlp.hook_post"
    check_same_features(*(fetch(shared_hooked(name, processed=p), f"blocks.1.{kind}") for p in (False, True)))


@needs_bridge
@pytest.mark.parametrize("name", [name for name in (*CONFIGURED, *MAKERS) if name not in ("solu-ln", "shortformer")])
def test_the_same_weights_in_the_bridge_give_the_same_activations(name):
    hooked, tokens = shared_hooked(name), some_tokens()
    bridge = build(name) if name in MAKERS else as_native(hooked)
    for hook_point in hook_points(hooked):
        torch.testing.assert_close(
            ours(hooked, tokens, hook_point), ours(bridge, tokens, hook_point), rtol=1e-4, atol=1e-4
        )
    with torch.no_grad():
        logits = [LanguageModel(model).logits(tokens) for model in (hooked, bridge)]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)


@needs_bridge
@pytest.mark.parametrize("name", ["LN", "no-norm", "attention-only", "gpt2", "llama", "gemma2", "neox"])
def test_the_same_weights_in_the_bridge_give_the_same_features(name):
    hooked = shared_hooked(name)
    bridge = build(name) if name in MAKERS else as_native(hooked)
    kind = {"attention-only": "attn.hook_z", "gemma2": "hook_resid_mid"}.get(name, "mlp.hook_post")
    check_same_features(*(fetch(model, f"blocks.0.{kind}", ignore_tokens=(0, 1, 2)) for model in (hooked, bridge)))


# --- effects on the predictions ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "processed"), ALL)
def test_stored_effects_are_those_of_brute_force(name, processed):
    model, tokens = shared_hooked(name, processed=processed), some_tokens()
    for hook_point in hook_points(model, WRITING_KINDS):
        if name == "gemma2" and hook_point.split(".", 2)[2] in ("mlp.hook_post", "attn.hook_z"):
            continue  # a norm stands behind them
        if hook_point.startswith(f"blocks.{int(not processed)}."):
            continue  # one layer of each variant: it takes long
        encoder = random_encoder(width_at(model, hook_point), 3, seed=int(hook_point[7]))
        data = fetch(model, hook_point, tokens, encoder)
        assert worst_error(data, model, hook_point, tokens, encoder) < TOLERANCE, hook_point


@pytest.mark.parametrize(("name", "processed"), ALL)
@torch.no_grad()
def test_exact_means_that_a_real_ablation_does_the_same(name, processed):
    model, tokens = shared_hooked(name, processed=processed), some_tokens()
    final = hook_values(model, tokens, "blocks.1.hook_resid_post")
    wrapped = LanguageModel(model)
    row, position = 1, 4
    clean = torch.log_softmax(model(tokens)[row].double(), -1)
    for hook_point in hook_points(model):
        path = wrapped.write_path(HookPoint.parse(hook_point), tokens)
        behind_a_norm = name == "gemma2" and hook_point.split(".", 2)[2] in ("mlp.hook_post", "attn.hook_z")
        assert bool(path.missing_because) == (hook_point.endswith("mlp.hook_pre") or behind_a_norm), hook_point
        if path.missing_because:
            assert not path.exact
            continue
        vector = torch.randn(width_at(model, hook_point), generator=torch.Generator().manual_seed(3))
        d = vector if path.matrix is None else vector @ path.matrix
        torch.testing.assert_close(arrived(model, tokens, hook_point, vector), d, rtol=1e-4, atol=1e-4)
        real = real_ablation(model, tokens, hook_point, row, position, vector) - clean
        direct = torch.zeros_like(real)
        without = wrapped.logits_from_residual((final[row, position] - d)[None])[0]
        direct[position] = torch.log_softmax(without.double(), -1) - clean[position]
        assert float(direct.abs().max()) > 0.05  # large enough to tell
        assert path.exact == bool((real - direct).abs().max() < 1e-4), hook_point


@pytest.mark.parametrize(("name", "processed"), ALL)
def test_full_effects_are_those_of_a_pass_for_each_feature_and_row(name, processed):
    """With TransformerLens' own hooks on whole rows, at every hook point of the second block."""
    model, tokens = shared_hooked(name, processed=processed), some_tokens()
    for hook_point in hook_points(model):
        if hook_point.startswith("blocks.1."):
            encoder = random_encoder(width_at(model, hook_point), 3)
            data = fetch(model, hook_point, tokens, encoder, ablation="full")
            acts = activations(encoder, hook_values(model, tokens, hook_point))
            acts[torch.isin(tokens, torch.tensor([0, 1, 2]))] = 0.0
            check_against_transformer_lens(model, data, tokens, hook_point, acts, encoder, at_least=3)


@pytest.mark.parametrize(("name", "processed"), ALL)
def test_blocks_before_the_hook_point_are_passed_over(name, processed):
    wrapped = LanguageModel(shared_hooked(name, processed=processed))
    with wrapped.as_for_inference():
        assert Start.find(wrapped, 1, "blocks.1.hook_resid_pre", some_tokens()).block == 1


def test_attention_is_exact_at_the_last_layer_of_a_model_without_mlps():
    data = fetch(shared_hooked("attention-only"), "blocks.1.attn.hook_z")
    assert data.provenance.direct_effect == "exact"
    assert fetch(shared_hooked("attention-only"), "blocks.0.attn.hook_z").provenance.direct_effect == "direct path"
    assert fetch(shared_hooked("LN"), "blocks.1.attn.hook_z").provenance.direct_effect == "direct path"


@pytest.mark.parametrize(("name", "processed"), ALL)
@torch.no_grad()
def test_the_formula_describes_every_model(name, processed):
    model = shared_hooked(name, processed=processed)
    wrapped = LanguageModel(model)
    directions = random_encoder(16, 4).W_dec.detach()
    formula = FormulaTail(wrapped, wrapped.final_norm(), directions)
    assert isinstance(choose_tail(wrapped, formula, directions, some_tokens()), FormulaTail)


@pytest.mark.parametrize(("name", "processed"), ALL)
def test_logit_weights_are_those_of_loops(name, processed):
    model = shared_hooked(name, processed=processed)
    hook_point = "blocks.0.hook_resid_post"
    encoder = random_encoder(16, 2)
    centres = name in (*LAYER_NORM_MODELS, "attention-only", "shortformer")
    gain = getattr(getattr(model, "ln_final", None), "w", torch.ones(16)).detach()
    for index, feature in fetch(model, hook_point, encoder=encoder).items():
        d = direction(model, encoder, hook_point, index)
        weights = logit_weights(model, d, centres=centres, gain=gain)
        assert feature.logits.shown_logits == pytest.approx(
            {i: weights[i] for i in feature.logits.shown_logits}, rel=1e-4, abs=1e-5
        )
        order = sorted(range(len(weights)), key=lambda token: -weights[token])
        assert feature.logits.top_token_ids == order[:10]


# --- the final norm --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "processed"), ALL)
@torch.no_grad()
def test_the_final_norm_is_probed_as_it_is(name, processed):
    model = shared_hooked(name, processed=processed)
    norm = LanguageModel(model).final_norm()
    assert isinstance(norm, FinalNorm)
    assert norm.scales == (name != "no-norm")
    assert norm.centres == (name in (*LAYER_NORM_MODELS, "attention-only", "shortformer"))
    assert norm.eps == pytest.approx(model.cfg.eps if norm.scales else 0.0, rel=1e-3, abs=1e-9)
    own = getattr(model, "ln_final", torch.nn.Identity())
    for size in (1e-3, 1.0, 50.0):
        x = size * (torch.randn(5, 16, generator=torch.Generator().manual_seed(0)) + 0.7)
        torch.testing.assert_close(applied(norm, x), own(x[None])[0], rtol=1e-4, atol=1e-5)
    if processed:
        torch.testing.assert_close(norm.gain, torch.ones(16), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(norm.bias, torch.zeros(16), rtol=1e-4, atol=1e-4)


# --- what provenance says of processing --------------------------------------------------------------------------------


def noted(name: str, kind: str, *, processed: bool) -> list[str]:
    model = shared_hooked(name, processed=processed)
    hook_point = f"blocks.0.{kind}"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = get_feature_data(
            random_encoder(width_at(model, hook_point), 2),
            model,
            some_tokens(),
            FeatureVisParams(hook_point=hook_point, **SMALL),
        )
    assert [str(w.message) for w in caught] == data.provenance.notes
    assert all(w.category is UserWarning and "trained on" in str(w.message) for w in caught)
    return data.provenance.notes


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("attention-only", kind) for kind in ("hook_resid_pre", "attn.hook_z")),
        *(
            (name, kind)
            for name in (*RMS_MODELS, *LAYER_NORM_MODELS)
            for kind in ("hook_resid_pre", "mlp.hook_pre", "mlp.hook_post", "attn.hook_z", "hook_attn_out")
        ),
    ],
)
def test_a_warning_is_given_exactly_where_processing_changes_what_is_read(name, kind):
    assert not noted(name, kind, processed=False)
    notes = noted(name, kind, processed=True)
    assert bool(notes) != agrees_after_processing(name, f"blocks.0.{kind}")
    if notes:
        assert ("value biases" if name in RMS_MODELS else "centred") in notes[0]


def test_processing_changes_the_digest_of_the_model():
    digests = {LanguageModel(shared_hooked("LN", processed=processed)).digest() for processed in (False, True)}
    assert len(digests) == 2


# --- padding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["LN", "shortformer", "llama"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pad", [PAD, BOS])
@torch.no_grad()
def test_rows_that_hold_padding_are_what_the_model_makes_of_them(name, side, pad):
    """A tokenizer that pads on the left makes the model mask the padding tokens that begin a row, and those alone."""
    model = build_hooked(name)
    model.tokenizer.padding_side = side
    model.tokenizer.pad_token = model.tokenizer.decode([pad])
    assert model.tokenizer.pad_token_id == pad
    tokens = some_tokens(6, 11)
    tokens[0, :4] = pad
    tokens[1, :] = pad
    tokens[2, 5] = pad
    tokens[3, -4:] = pad
    for some in (tokens, tokens[:, :1], tokens[1:2], tokens[:1, :2]):
        for hook_point in ("blocks.0.attn.hook_z", "blocks.1.hook_resid_post"):
            expected = hook_values(model, some, hook_point)
            assert bool(expected.isfinite().all())
            torch.testing.assert_close(ours(model, some, hook_point), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(LanguageModel(model).logits(some), model(some), rtol=1e-5, atol=1e-5)


def test_effects_in_rows_that_are_padded_on_the_left_are_those_of_brute_force():
    model, tokens = build_hooked("LN"), some_tokens()
    model.tokenizer.padding_side = "left"
    tokens[:3, :4] = PAD
    encoder = random_encoder(24, 4)
    data = fetch(model, "blocks.1.mlp.hook_post", tokens, encoder)
    assert worst_error(data, model, "blocks.1.mlp.hook_post", tokens, encoder) < TOLERANCE
    assert not data.provenance.notes, "the model masks the padding"
    model.tokenizer.padding_side = "right"
    with pytest.warns(UserWarning, match="Padding stands before the text in 3 of"):
        assert fetch(model, "blocks.1.mlp.hook_post", tokens, encoder).provenance.notes


# --- prompts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processed", [False, True])
def test_the_prompt_view_scores_as_brute_force_does(processed):
    model, hook_point = shared_hooked("gpt2", processed=processed), "blocks.1.mlp.hook_post"
    encoder = random_encoder(64, 8)
    features = fetch(model, hook_point, some_tokens(20), encoder)
    prompt = get_prompt_data(encoder, model, "w7 w21 w33 w7 w45", features, num_top_features=100)
    ids = torch.tensor([[BOS, 7, 21, 33, 7, 45]])
    assert prompt.prompt_token_ids == ids[0].tolist()  # one BOS, although TransformerLens' tokenizer may put one itself
    acts = activations(encoder, hook_values(model, ids, hook_point))[0]
    acts[0] = 0.0
    final = hook_values(model, ids, "blocks.1.hook_resid_post")[0]
    checked = 0
    for position in range(1, 6):
        sizes = dict(prompt.scores["act_size"][position])
        expected = {f: float(a) for f, a in enumerate(acts[position]) if a > 0}
        assert sizes == pytest.approx(expected, rel=1e-3, abs=1e-3)
        for feature, effect in prompt.scores["loss_effect"][position]:
            d = direction(model, encoder, hook_point, feature)
            change = change_of_log_probs(model, final[position - 1], float(acts[position - 1, feature]), d)
            assert effect == pytest.approx(-float(change[ids[0, position]]), abs=TOLERANCE)
            checked += 1
    assert checked > 5


# --- no traces, no noise ---------------------------------------------------------------------------------------------


def test_nothing_stays_behind_and_nothing_is_warned_of():
    model = build_hooked("LN")
    model.train()
    model.blocks[1].eval()
    seen: list[int] = []
    model.add_hook("blocks.0.hook_resid_pre", lambda value, hook: seen.append(1))
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    hooks, flags, level = hooks_of(model), [m.training for m in model.modules()], model.context_level
    random_state = torch.get_rng_state()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fetch(model, "blocks.0.mlp.hook_post")
    assert not caught
    assert (hooks_of(model), model.context_level) == (hooks, level)
    assert [m.training for m in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    n = len(seen)
    model(some_tokens())
    assert len(seen) == n + 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("where", ["blocks.0.mlp", "unembed"])
def test_no_hook_and_no_setting_stays_after_an_error_in_the_forward_pass(error, where):
    model = build_hooked("LN")
    side = model.tokenizer.padding_side
    before = hooks_of(model)

    def fail(*_):
        raise error("stop")

    handle = model.get_submodule(where).register_forward_hook(fail)
    with pytest.raises(error):
        fetch(model, "blocks.0.mlp.hook_post", encoder=random_encoder(24, 2))
    handle.remove()
    assert hooks_of(model) == before
    assert (model.context_level, model.tokenizer.padding_side) == (0, side)
    fetch(model, "blocks.0.mlp.hook_post")


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hook_point", "nearest"),
    [
        ("LN", "blocks.0.mlp.hook_pots", r"blocks\.0\.mlp\.hook_post"),
        ("LN", "blocks.7.hook_resid_pre", r"blocks\.\d\.hook_resid_pre"),
        ("attention-only", "blocks.0.mlp.hook_post", r"blocks\.0\."),
        ("neox", "blocks.0.hook_resid_mid", r"blocks\.0\.hook_resid_p"),
    ],
)
def test_an_unknown_hook_point_is_not_passed_over_in_silence(name, hook_point, nearest):
    with pytest.raises(ModelError, match=f"no hook point '{hook_point}'.*{nearest}"):
        fetch(shared_hooked(name), hook_point, encoder=random_encoder(16, 2))


def test_a_hook_point_that_is_switched_off_is_a_clear_error():
    model = build_hooked("LN")
    for hook_point in ("blocks.0.hook_mlp_in", "blocks.0.attn.hook_result", "blocks.0.hook_q_input"):
        with pytest.raises(ModelError, match=rf"{hook_point}.*switched on"):
            fetch(model, hook_point, encoder=random_encoder(16, 2))
    model.set_use_hook_mlp_in(True)
    assert fetch(model, "blocks.0.hook_mlp_in").provenance.direct_effect == "none"


def test_a_hook_point_that_never_fires_is_a_clear_error():
    with pytest.raises(ModelError, match=r"blocks\.0\.hook_mlp_out.*never fired"):
        fetch(build_hooked("attention-only"), "blocks.0.hook_mlp_out", encoder=random_encoder(16, 2))


def test_a_model_that_is_no_language_model_is_refused():
    from transformer_lens import HookedEncoder, HookedTransformerConfig

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        cfg = HookedTransformerConfig(
            n_layers=1, d_model=8, n_heads=1, d_head=8, d_mlp=8, n_ctx=8, d_vocab=9, act_fn="gelu"
        )
        encoder = HookedEncoder(cfg)
    with pytest.raises(ModelError, match=r"HookedEncoder is not a TransformerLens model.*HookedTransformer\.from_pre"):
        LanguageModel(encoder)


def test_nan_weights_are_told_with_their_place():
    model = build_hooked("LN")
    with torch.no_grad():
        model.embed.W_E[9] = float("nan")
    tokens = some_tokens()
    tokens[tokens == 9] = 8
    tokens[3, 6] = 9
    with pytest.raises(ModelError, match="row 3, position 6"):
        fetch(model, "blocks.0.hook_resid_pre", tokens, random_encoder(16, 2))


# --- number formats, no tokenizer --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_in_another_number_format_is_measured_too(dtype):
    model, tokens = build_hooked("gpt2", dtype=dtype), some_tokens()
    encoder = random_encoder(16, 3)
    data = fetch(model, "blocks.1.hook_resid_post", tokens, encoder)
    assert data.provenance.direct_effect == "exact"
    exact = fetch(shared_hooked("gpt2"), "blocks.1.hook_resid_post", tokens, encoder)
    for index, feature in data.items():
        assert feature.activations.max == pytest.approx(exact[index].activations.max, rel=0.03)


def test_a_model_without_a_tokenizer_works():
    model = empty({})
    data = fetch(model, "blocks.0.mlp.hook_post", some_tokens(bos=False))
    assert data.provenance.n_counted == 6 * 12


# --- the bundled model, and a subclass of others -----------------------------------------------------------------------


@torch.no_grad()
def test_the_bundled_model_is_the_same_in_both():
    """In TransformerLens 3 it comes as a bridge, in 2 as a HookedTransformer."""
    from sae_vis import _demo

    demo = load_demo()
    assert isinstance(demo.model, HookedTransformer) == (not HAS_BRIDGE)
    config = _demo.json.loads((_demo.DATA / "config.json").read_text("utf-8"))["model"]
    weights = {name: w.float() for name, w in _demo.load_file(_demo.DATA / "model.safetensors").items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        hooked = _demo._as_hooked_transformer(config, weights, demo.model.tokenizer).eval()
    tokens = demo.tokens[:3]
    torch.testing.assert_close(hooked(tokens), demo.model(tokens), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(
        ours(hooked, tokens, demo.hook_point), ours(demo.model, tokens, demo.hook_point), rtol=1e-5, atol=1e-5
    )


class SubClass(HookedTransformer):
    """As other libraries make them."""


def test_a_subclass_is_a_hooked_transformer():
    model = build_hooked("LN")
    model.__class__ = SubClass
    assert fetch(model, "blocks.1.mlp.hook_post").provenance.direct_effect == "exact"


def sae_transformer() -> tuple[Any, Any]:
    """SAELens' HookedSAETransformer with the weights of the small model, and an SAE of SAELens for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sae_lens = pytest.importorskip("sae_lens", reason="sae_lens is not installed")
        plain = build_hooked("LN")
        model = sae_lens.HookedSAETransformer(plain.cfg, tokenizer=plain.tokenizer)
        model.load_state_dict(plain.state_dict())
        sae = sae_lens.StandardSAE(sae_lens.StandardSAEConfig(d_in=24, d_sae=32))
        sae.cfg.metadata.hook_name = "blocks.1.mlp.hook_post"
    return model.eval(), sae


def test_the_transformer_of_saelens_is_read_like_any_other():
    model, _ = sae_transformer()
    plain = shared_hooked("LN")
    for hook_point in hook_points(plain):
        assert torch.equal(ours(model, some_tokens(), hook_point), ours(plain, some_tokens(), hook_point))
    check_same_features(*(fetch(m, "blocks.1.mlp.hook_post") for m in (model, plain)))


def test_attached_saes_are_refused_until_they_are_taken_off():
    model, sae = sae_transformer()
    model.add_sae(sae)
    with pytest.raises(ModelError, match=r"SAEs attached at blocks\.1\.mlp\.hook_post.*reset_saes"):
        fetch(model, "blocks.0.hook_resid_pre", encoder=random_encoder(16, 2))
    model.reset_saes()
    fetch(model, "blocks.1.mlp.hook_post")


# --- reconstruction ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hook_point", ["blocks.0.hook_resid_mid", "blocks.0.hook_mlp_out", "blocks.0.attn.hook_z"])
def test_a_prompts_reconstruction_stands_where_a_hook_would_put_it(hook_point):
    model, tokens = build_hooked("LN"), some_tokens()
    encoder = random_encoder(width_at(model, hook_point), 40)
    features = fetch(model, hook_point, tokens, encoder, ignore_tokens=())
    prompt = tokens[0].tolist()
    found = get_prompt_data(encoder, model, prompt, features, prepend_bos=False, reconstruction=True).reconstruction

    def with_instead(change: Any) -> list[float]:
        with torch.no_grad():
            logits = model.run_with_hooks(tokens[:1], fwd_hooks=[(hook_point, lambda x, hook: change(x))])[0]
        return (-logits.double().log_softmax(-1)[torch.arange(len(prompt) - 1), tokens[0, 1:]]).tolist()

    def decoded(x: Any) -> Any:
        return encoder.decode(encoder.encode(x)).view(x.shape)

    assert found.loss_ablated[1:] == pytest.approx(with_instead(torch.zeros_like), abs=TOLERANCE)
    assert found.loss_spliced[1:] == pytest.approx(with_instead(decoded), abs=TOLERANCE)
    assert found.loss_chosen == found.loss_spliced  # every feature was asked for
    assert found.loss_spliced != found.loss
