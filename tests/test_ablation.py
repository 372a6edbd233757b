"""The direct effect and the logit weights, against the model's own modules, one feature and one position at a time."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from brute_force import (
    activations,
    change_of_log_probs,
    direction,
    hook_values,
    log_probs,
    random_encoder,
    real_ablation,
    width_at,
)
from hf_models import ALL_MODELS, BOS, D_VOCAB, PAD, build, native, shared, some_tokens

from sae_vis import FeatureVisParams, get_feature_data
from sae_vis._ablation import FormulaTail, ModelTail, Pairs, choose_tail, direct_effects
from sae_vis.model_fns import LanguageModel

SMALL = {"verbose": False, "include_left_tables": False, "first_group_size": 5, "n_groups": 3, "other_groups_size": 2}
WRITING_KINDS = (
    "hook_resid_pre",
    "hook_resid_mid",
    "hook_resid_post",
    "hook_mlp_out",
    "hook_attn_out",
    "mlp.hook_post",
    "attn.hook_z",
)
TOLERANCE = 2e-4


def fetch(model: Any, hook_point: str, tokens: Any = None, encoder: Any = None, **options: Any) -> Any:
    encoder = encoder or random_encoder(width_at(model, hook_point), 4)
    fvp = FeatureVisParams(hook_point=hook_point, **{**SMALL, **options})
    return get_feature_data(encoder, model, some_tokens() if tokens is None else tokens, fvp)


def sequences_of(feature: Any) -> list[Any]:
    return [sequence for group in feature.sequences.groups for sequence in group.sequences]


def worst_error(
    data: Any, model: Any, hook_point: str, tokens: Any, encoder: Any, ignored: tuple[int, ...] = (0, 1, 2)
) -> float:
    """The largest difference of any stored effect from brute force; what must be exact is asserted."""
    acts = activations(encoder, hook_values(model, tokens, hook_point))
    acts[torch.isin(tokens, torch.tensor(ignored))] = 0.0
    final = hook_values(model, tokens, f"blocks.{model.cfg.n_layers - 1}.hook_resid_post")
    worst, n_effects = 0.0, 0
    for index, feature in data.items():
        d = direction(model, encoder, hook_point, index)
        for sequence in sequences_of(feature):
            effects = {effect.at: effect for effect in sequence.effects}
            for at, token in enumerate(sequence.token_ids):
                position = sequence.start + at
                assert token == int(tokens[sequence.row, position])
                if position == 0 or token == model.tokenizer.pad_token_id:
                    assert sequence.loss_contribution[at] is None
                    assert at not in effects
                    continue
                activation = float(acts[sequence.row, position - 1, index])
                if activation == 0:
                    assert sequence.loss_contribution[at] == 0.0
                    assert at not in effects
                    continue
                change = change_of_log_probs(model, final[sequence.row, position - 1], activation, d)
                worst = max(worst, abs(sequence.loss_contribution[at] + float(change[token])))
                worst = max(worst, error_of_changes(effects[at], change, data.params.n_changes))
                n_effects += 1
    assert n_effects > 20
    return worst


def error(stored: float, expected: float) -> float:
    """The difference, less what storing four significant digits costs."""
    return max(0.0, abs(stored - expected) - 0.5 * 10 ** (math.floor(math.log10(abs(stored))) - 3))


def error_of_changes(effect: Any, change: Any, n_changes: int) -> float:
    """How far the listed changes are from the largest of all changes; their order and their number are asserted."""
    worst = 0.0
    for ids, values, sign in (
        (effect.raised_token_ids, effect.raised_logprobs, 1.0),
        (effect.lowered_token_ids, effect.lowered_logprobs, -1.0),
    ):
        signed = sign * change
        ranked = signed.sort(descending=True).values.tolist()
        assert len(set(ids)) == len(ids)
        assert len(ids) == min(n_changes, sum(value > 0 for value in ranked))
        assert [sign * v for v in values] == sorted((sign * v for v in values), reverse=True)
        assert all(sign * value > 0 for value in values)
        for token, value, best in zip(ids, values, ranked, strict=False):
            worst = max(worst, error(value, float(change[token])), error(value, sign * best))
    return worst


def has_path(name: str, kind: str) -> bool:
    """Not the middle of a block that has none, nor what Gemma 2 sends through a norm."""
    return not (name == "neox" and kind == "hook_resid_mid") and not (name == "gemma2" and "." in kind)


# --- the effects that are stored -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), [(n, k) for n in ALL_MODELS for k in WRITING_KINDS if has_path(n, k)])
def test_stored_effects_are_those_of_brute_force(name, kind):
    for layer in (0, 1):
        model, tokens, hook_point = shared(name), some_tokens(), f"blocks.{layer}.{kind}"
        encoder = random_encoder(width_at(model, hook_point), 4, seed=layer)
        data = fetch(model, hook_point, tokens, encoder)
        assert worst_error(data, model, hook_point, tokens, encoder) < TOLERANCE


@pytest.mark.parametrize(
    ("name", "hook_point"), [("gpt2", "blocks.1.mlp.hook_post"), ("llama", "blocks.0.hook_resid_pre")]
)
def test_stored_effects_of_processed_models_are_those_of_brute_force(name, hook_point):
    model, tokens = shared(name, compat=True), some_tokens()
    encoder = random_encoder(width_at(model, hook_point), 4)
    assert worst_error(fetch(model, hook_point, tokens, encoder), model, hook_point, tokens, encoder) < TOLERANCE


@pytest.mark.parametrize("cap", [0.5, 30.0])
def test_stored_effects_of_a_soft_capped_model_are_those_of_brute_force(cap, tmp_path):
    from hf_models import save_tokenizer

    model = native("LN", save_tokenizer(tmp_path), output_logits_soft_cap=cap)
    tokens, hook_point = some_tokens(), "blocks.1.mlp.hook_post"
    encoder = random_encoder(24, 4)
    assert float(model(tokens).detach().abs().max()) <= cap
    assert worst_error(fetch(model, hook_point, tokens, encoder), model, hook_point, tokens, encoder) < TOLERANCE


@pytest.mark.parametrize(
    "options", [{"ignore_tokens": ()}, {"ignore_tokens": (5, 9, BOS)}, {"buffer": None}, {"buffer": (0, 0)}]
)
def test_ignored_positions_and_buffers_change_nothing_else(options):
    model, tokens, hook_point = shared("gpt2"), some_tokens(), "blocks.1.mlp.hook_post"
    encoder = random_encoder(64, 4)
    data = fetch(model, hook_point, tokens, encoder, other_groups_size=5, **options)
    ignored = options.get("ignore_tokens", (0, 1, 2))
    assert worst_error(data, model, hook_point, tokens, encoder, ignored) < TOLERANCE


def test_a_feature_that_wants_the_next_token_has_a_negative_loss_contribution():
    model, tokens = shared("gpt2"), some_tokens()
    wanted = int(tokens[1, 4])
    encoder = random_encoder(16, 1)
    with torch.no_grad():
        encoder.W_enc.zero_()
        encoder.b_enc.fill_(1.0)  # always on
        encoder.W_dec[0] = 2.0 * model.W_U[:, wanted]
    data = fetch(model, "blocks.1.hook_resid_post", tokens, encoder, buffer=None, first_group_size=9)
    (sequence,) = (s for s in data[0].sequences.groups[0].sequences if s.row == 1)
    assert sequence.loss_contribution[4] < -0.1
    for effect in sequence.effects:
        assert effect.raised_token_ids[0] == wanted
        assert effect.raised_logprobs[0] > 0.1


def test_the_first_token_of_a_window_has_the_effect_of_the_token_before_it():
    """And not that of the last token of the row, nor none."""
    model, tokens, hook_point = shared("gpt2"), some_tokens(), "blocks.1.hook_resid_post"
    encoder = random_encoder(16, 4)
    data = fetch(model, hook_point, tokens, encoder, buffer=(0, 1))
    acts = activations(encoder, hook_values(model, tokens, hook_point))
    checked = 0
    for index, feature in data.items():
        for sequence in sequences_of(feature):
            assert sequence.bold_idx == 0
            if sequence.start > 1:
                before = float(acts[sequence.row, sequence.start - 1, index])
                assert (sequence.loss_contribution[0] != 0.0) == (before > 0)
                checked += 1
    assert checked > 10


# --- exactness -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["native-LN", "native-RMS", "gpt2-untied", "llama", "neox"])
def test_at_the_last_layer_the_loss_contribution_is_that_of_a_real_ablation(name):
    """The feature's part of ``mlp.hook_post`` is taken away at one position of the hook point, and the model run again."""
    model, tokens, hook_point = shared(name), some_tokens(), "blocks.1.mlp.hook_post"
    encoder = random_encoder(width_at(model, hook_point), 3)
    data = fetch(model, hook_point, tokens, encoder)
    assert data.provenance.direct_effect == "exact"
    acts = activations(encoder, hook_values(model, tokens, hook_point))
    with torch.no_grad():
        clean = torch.log_softmax(model(tokens).double(), -1)
    checked = 0
    for index, feature in data.items():
        for sequence in sequences_of(feature)[:3]:
            for at, loss in enumerate(sequence.loss_contribution):
                position = sequence.start + at
                if loss:
                    change = acts[sequence.row, position - 1, index].float() * encoder.W_dec[index].detach()
                    without = real_ablation(model, tokens, hook_point, sequence.row, position - 1, change)
                    token = sequence.token_ids[at]
                    real = without[position - 1, token] - clean[sequence.row, position - 1, token]
                    assert loss == pytest.approx(float(real), abs=TOLERANCE)
                    checked += 1
    assert checked > 20


@pytest.mark.parametrize(
    ("name", "hook_point", "told"),
    [
        ("gpt2", "blocks.1.mlp.hook_post", "exact"),
        ("gpt2", "blocks.0.mlp.hook_post", "direct path"),
        ("gpt2", "blocks.1.attn.hook_z", "direct path"),
        ("neox", "blocks.1.attn.hook_z", "exact"),
        ("gemma2", "blocks.1.hook_resid_post", "exact"),
        ("gemma2", "blocks.1.mlp.hook_post", "none"),
    ],
)
def test_the_page_can_say_how_exact_the_effect_is(name, hook_point, told):
    provenance = fetch(shared(name), hook_point).provenance
    assert provenance.direct_effect == told
    assert bool(provenance.direct_effect_reason) == (told == "none")


# --- options -------------------------------------------------------------------------------------------------------


def test_without_changes_the_losses_are_the_same_and_no_token_is_listed():
    model = shared("gpt2")
    plain, without = (fetch(model, "blocks.1.mlp.hook_post", n_changes=n) for n in (5, 0))
    for index, feature in plain.items():
        for ours, theirs in zip(sequences_of(feature), sequences_of(without[index]), strict=True):
            assert ours.loss_contribution == theirs.loss_contribution
            assert theirs.effects == []


@pytest.mark.parametrize("n_changes", [1, 3, D_VOCAB, 1000])
def test_any_number_of_changes_is_listed(n_changes):
    model, tokens, hook_point = shared("gpt2"), some_tokens(), "blocks.1.mlp.hook_post"
    encoder = random_encoder(64, 2)
    data = fetch(model, hook_point, tokens, encoder, n_changes=n_changes)
    effects = [e for feature in data.values() for s in sequences_of(feature) for e in s.effects]
    assert effects
    for effect in effects:
        assert max(len(effect.raised_token_ids), len(effect.lowered_token_ids)) <= n_changes
        assert not set(effect.raised_token_ids) & set(effect.lowered_token_ids)


def test_without_ablation_there_are_logits_but_no_effects():
    data, plain = (fetch(shared("gpt2"), "blocks.1.mlp.hook_post", ablation=a) for a in (None, "direct"))
    for index, feature in data.items():
        assert feature.logits == plain[index].logits
        assert feature.activations == plain[index].activations
        for sequence in sequences_of(feature):
            assert set(sequence.loss_contribution) == {None}
            assert sequence.effects == []


def test_a_vocabulary_of_two():
    model = native(d_vocab=2)
    tokens = torch.randint(0, 2, (5, 8), generator=torch.Generator().manual_seed(0))
    encoder = random_encoder(24, 3)
    data = fetch(model, "blocks.1.mlp.hook_post", tokens, encoder)
    acts = activations(encoder, hook_values(model, tokens, "blocks.1.mlp.hook_post"))
    final = hook_values(model, tokens, "blocks.1.hook_resid_post")
    for index, feature in data.items():
        assert sorted(feature.logits.top_token_ids) == sorted(feature.logits.bottom_token_ids) == [0, 1]
        d = direction(model, encoder, "blocks.1.mlp.hook_post", index)
        for sequence in sequences_of(feature):
            for effect in sequence.effects:
                position = sequence.start + effect.at - 1
                a = float(acts[sequence.row, position, index])
                change = change_of_log_probs(model, final[sequence.row, position], a, d)
                assert error_of_changes(effect, change, 5) < TOLERANCE


@pytest.mark.parametrize("seq_len", [1, 2])
def test_very_short_rows(seq_len):
    model, tokens = shared("gpt2"), some_tokens(6, seq_len, bos=False)
    encoder = random_encoder(64, 4)
    data = fetch(model, "blocks.1.mlp.hook_post", tokens, encoder)
    for feature in data.values():
        for sequence in sequences_of(feature):
            assert sequence.loss_contribution[0] is None
            assert len(sequence.token_ids) == seq_len


# --- models that the formula does not describe ------------------------------------------------------------------------


def tail_for(model: Any, hook_point: str = "blocks.1.hook_resid_post") -> Any:
    wrapped = LanguageModel(model)
    width = width_at(model, hook_point)
    directions = random_encoder(width, 4).W_dec.detach().float()
    with wrapped.as_for_inference():
        formula = FormulaTail(wrapped, wrapped.final_norm(), directions)
        return choose_tail(wrapped, formula, directions, some_tokens())


@pytest.mark.parametrize("name", ALL_MODELS)
def test_the_formula_describes_every_model_here(name):
    assert isinstance(tail_for(shared(name)), FormulaTail)


class OddNorm(torch.nn.Module):
    """A norm that no formula of gain and scale describes."""

    def forward(self, x):
        return torch.tanh(x) + 0.1 * x.roll(1, -1)


def with_odd_norm() -> Any:
    model = build("gpt2")
    model.ln_final.register_forward_hook(lambda module, args, result: OddNorm()(args[0]))
    return model


def test_an_odd_norm_is_left_to_the_models_own_modules():
    model, tokens, hook_point = with_odd_norm(), some_tokens(), "blocks.1.hook_resid_post"
    assert isinstance(tail_for(model), ModelTail)
    encoder = random_encoder(16, 3)
    data = fetch(model, hook_point, tokens, encoder)
    assert data.provenance.direct_effect == "exact"
    assert worst_error(data, model, hook_point, tokens, encoder) < TOLERANCE


@pytest.mark.parametrize("size", [0.003, 0.03])
def test_a_norm_that_is_a_little_odd_is_left_to_the_models_own_modules_too(size):
    model = build("gpt2")
    model.ln_final.register_forward_hook(lambda module, args, result: result + size * torch.tanh(args[0]).roll(1, -1))
    wrapped, tokens = LanguageModel(model), some_tokens()
    with wrapped.as_for_inference():
        formula = FormulaTail(wrapped, wrapped.final_norm(), torch.zeros(1, 16))
        formula.prepare(wrapped.final_residual(tokens).flatten(0, 1))
        off = float((formula.logits() - wrapped.logits(tokens).flatten(0, 1)).abs().max())
    assert 1e-3 < off < 0.5
    assert isinstance(tail_for(model), ModelTail)


class ScaledLogits:
    """A model that scales its logits after the unembedding, where nobody can see it."""

    def __init__(self, model: Any) -> None:
        self.inner = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def run_with_hooks(self, *args: Any, **options: Any) -> Any:
        result = self.inner.run_with_hooks(*args, **options)
        return None if result is None else 0.5 * result


def test_logits_that_are_not_the_unembedding_of_the_norm_have_no_direct_effect():
    model = ScaledLogits(shared("gpt2"))
    assert tail_for(model) is None
    data = get_feature_data(
        random_encoder(64, 3), model, some_tokens(), FeatureVisParams(hook_point="blocks.1.mlp.hook_post", **SMALL)
    )
    assert data.provenance.direct_effect == "none"
    assert "not its unembedding" in data.provenance.direct_effect_reason
    for feature in data.values():
        assert all(loss is None for s in sequences_of(feature) for loss in s.loss_contribution)
        assert not any(s.effects for s in sequences_of(feature))


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_is_measured_too(name, dtype):
    """What it says of effects cannot be finer than its number format, and must not be refused for that."""
    model, tokens, hook_point = build(name, dtype=dtype), some_tokens(), "blocks.1.hook_resid_post"
    encoder = random_encoder(16, 3)
    data = fetch(model, hook_point, tokens, encoder)
    assert data.provenance.direct_effect == "exact"
    exact = fetch(shared(name), hook_point, tokens, encoder, buffer=None, first_group_size=100)
    expected = {
        (index, s.row, s.start + at): loss
        for index, feature in exact.items()
        for s in sequences_of(feature)
        for at, loss in enumerate(s.loss_contribution)
    }
    pairs = [
        (loss, expected[index, s.row, s.start + at])
        for index, feature in data.items()
        for s in sequences_of(feature)
        for at, loss in enumerate(s.loss_contribution)
        if loss and expected.get((index, s.row, s.start + at)) is not None
    ]
    assert len(pairs) > 20
    ours, theirs = torch.tensor(pairs).T
    assert float((ours - theirs).abs().mean()) < 0.1 * float(theirs.abs().mean())


# --- the formula itself ----------------------------------------------------------------------------------------------


def test_pairs_in_any_order_and_in_any_chunks_give_the_same_effects(monkeypatch):
    wrapped = LanguageModel(shared("native-LN"))
    generator = torch.Generator().manual_seed(0)
    residual, directions = torch.randn(9, 16, generator=generator), torch.randn(5, 16, generator=generator)
    pairs = Pairs(
        torch.randint(0, 9, (40,), generator=generator),
        torch.randint(0, 5, (40,), generator=generator),
        torch.rand(40, generator=generator) + 0.1,
        torch.randint(0, D_VOCAB, (40,), generator=generator),
    )
    with wrapped.as_for_inference():
        norm = wrapped.final_norm()
        formula, own = FormulaTail(wrapped, norm, directions), ModelTail(wrapped, directions)
        whole = direct_effects(formula, residual, pairs, 5, D_VOCAB)
        by_modules = direct_effects(own, residual, pairs, 5, D_VOCAB)
        monkeypatch.setattr("sae_vis._ablation.CHUNK_BYTES", 4 * D_VOCAB * 6 * 7)
        in_chunks = direct_effects(formula, residual, pairs, 5, D_VOCAB)
        none = direct_effects(formula, residual, Pairs(*(values[:0] for values in pairs)), 5, D_VOCAB)
    torch.testing.assert_close(whole.loss, by_modules.loss, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole.raised, by_modules.raised, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(whole, in_chunks, strict=True))
    assert [tuple(values.shape) for values in none] == [(0,), (0, 5), (0, 5), (0, 5), (0, 5)]
    expected = [
        float(log_probs(wrapped.model, residual[p] - a * directions[f])[t] - log_probs(wrapped.model, residual[p])[t])
        for p, f, a, t in zip(*(values.tolist() for values in pairs), strict=True)
    ]
    assert whole.loss.tolist() == pytest.approx(expected, abs=1e-5)


def test_scaling_the_residual_stream_does_not_change_the_logits_of_a_normed_model():
    wrapped = LanguageModel(shared("gpt2"))
    residual = torch.randn(4, 16, generator=torch.Generator().manual_seed(0)) + 0.5
    with wrapped.as_for_inference():
        tail = FormulaTail(wrapped, wrapped.final_norm(), torch.zeros(1, 16))
        tail.prepare(100.0 * residual)
        large = tail.logits()
        tail.prepare(1000.0 * residual)
        torch.testing.assert_close(tail.logits(), large, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(large, wrapped.logits_from_residual(100.0 * residual), rtol=1e-4, atol=1e-4)


# --- logit weights ----------------------------------------------------------------------------------------------------


def logit_weights(model: Any, d: Any, *, centres: bool, gain: Any) -> list[float]:
    """By loops: the direction, centred if the norm does so, times the gain, times the unembedding; less its mean."""
    width = len(d)
    mean = sum(float(x) for x in d) / width if centres else 0.0
    scaled = [(float(d[i]) - mean) * float(gain[i]) for i in range(width)]
    unembedding = model.W_U.detach().tolist()
    raw = [sum(scaled[i] * unembedding[i][token] for i in range(width)) for token in range(len(unembedding[0]))]
    middle = sum(raw) / len(raw)
    return [value - middle for value in raw]


def gain_of(model: Any) -> Any:
    """The final norm's gain, by the names that each architecture has for it."""
    weight = getattr(model.ln_final.original_component, "weight", None)
    if weight is None:
        return torch.ones(model.W_U.shape[0])
    return weight.detach() + (1.0 if "Gemma" in type(model.ln_final.original_component).__name__ else 0.0)


@pytest.mark.parametrize("name", ALL_MODELS)
def test_logit_weights_are_those_of_loops(name):
    model, tokens = shared(name), some_tokens()
    hook_point = "blocks.0.hook_resid_post" if name == "gemma2" else "blocks.0.mlp.hook_post"
    encoder = random_encoder(width_at(model, hook_point), 3)
    data = fetch(model, hook_point, tokens, encoder, n_logits=7, n_bins=9)
    centres = name in ("native-LN", "native-LNPre", "gpt2", "gpt2-untied", "neox")
    for index, feature in data.items():
        d = direction(model, encoder, hook_point, index).detach()
        weights = logit_weights(model, d, centres=centres, gain=gain_of(model))
        logits = feature.logits
        order = sorted(range(len(weights)), key=lambda token: -weights[token])
        assert logits.top_token_ids == order[:7]
        assert logits.bottom_token_ids == order[:-8:-1]
        assert logits.top_logits == pytest.approx([weights[i] for i in order[:7]], rel=1e-4, abs=1e-5)
        assert logits.bottom_logits == pytest.approx([weights[i] for i in order[:-8:-1]], rel=1e-4, abs=1e-5)
        shown = {token for sequence in sequences_of(feature) for token in sequence.token_ids}
        assert set(logits.shown_logits) >= shown
        assert logits.shown_logits == pytest.approx({i: weights[i] for i in logits.shown_logits}, rel=1e-4, abs=1e-5)
        bars = logits.histogram
        assert len(bars.bar_heights) == 9
        assert sum(bars.bar_heights) == D_VOCAB
        assert bars.bar_edges[0] == pytest.approx(min(weights), rel=1e-4)
        assert bars.bar_edges[-1] == pytest.approx(max(weights), rel=1e-4)
        for low, high, height in zip(bars.bar_edges[:-1], bars.bar_edges[1:], bars.bar_heights, strict=True):
            surely = sum(low + 1e-5 < weight < high - 1e-5 for weight in weights)
            perhaps = sum(low - 1e-5 < weight < high + 1e-5 for weight in weights)
            assert surely <= height <= perhaps


def test_a_constant_direction_has_no_logit_weights_where_the_norm_centres():
    for name, centres in (("gpt2", True), ("llama", False)):
        model = shared(name)
        encoder = random_encoder(16, 1)
        with torch.no_grad():
            encoder.W_dec.fill_(1.0)
        logits = fetch(model, "blocks.0.hook_resid_post", encoder=encoder)[0].logits
        assert (max(map(abs, logits.top_logits)) < 1e-5) == centres


def test_a_decoder_of_zeros_writes_nothing():
    encoder = random_encoder(64, 2)
    with torch.no_grad():
        encoder.W_dec.zero_()
    data = fetch(shared("gpt2"), "blocks.1.mlp.hook_post", encoder=encoder)
    for feature in data.values():
        assert set(feature.logits.top_logits) == {0.0}
        equal = list(range(len(feature.logits.top_logits)))
        assert feature.logits.top_token_ids == feature.logits.bottom_token_ids == equal, "in the order of the ids"
        for sequence in sequences_of(feature):
            assert set(map(repr, sequence.loss_contribution)) <= {"None", "0.0"}, "and never -0.0"
            assert sequence.effects == []


def test_padding_in_the_middle_of_a_row_has_no_loss_but_the_token_after_it_has():
    model, tokens, hook_point = shared("gpt2"), some_tokens(), "blocks.1.hook_resid_post"
    tokens[2, 5] = PAD
    encoder = random_encoder(16, 2)
    data = fetch(model, hook_point, tokens, encoder, buffer=None, first_group_size=50, ignore_tokens=())
    (sequence,) = {s.row: s for s in sequences_of(data[0]) if s.row == 2}.values()
    assert [i for i, loss in enumerate(sequence.loss_contribution) if loss is None] == [0, 5]


def test_a_negative_activation_of_a_signed_encoder_is_no_activation():
    class Signed:
        d_in, d_hidden = 16, 2

        def __init__(self):
            self.directions = random_encoder(16, 2).W_dec.detach()

        def encode(self, x, features=None):
            chosen = self.directions if features is None else self.directions[features]
            return x @ chosen.T

        def decoder_rows(self, features):
            return self.directions[features]

    data = fetch(shared("gpt2"), "blocks.0.hook_resid_pre", encoder=Signed())
    assert any("negative activations" in note for note in data.provenance.notes)
    for feature in data.values():
        assert all(value >= 0 for s in sequences_of(feature) for value in s.feat_acts)
        assert 0 < feature.activations.density < 1


def test_the_same_options_give_the_same_data_twice():
    first, second = (fetch(shared("gpt2"), "blocks.1.mlp.hook_post") for _ in range(2))
    assert dataclasses.asdict(first) == dataclasses.asdict(second)
