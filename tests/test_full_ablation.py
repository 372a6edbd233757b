"""The full effect, against plain PyTorch hooks on the Hugging Face model, one feature and one row at a time."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from brute_force import activations, hook_values, random_encoder, width_at
from hf_models import BOS, D_VOCAB, N_CTX, PAD, build, native, save_tokenizer, shared, some_tokens
from models import ToyModel, planted
from models import fetch as fetch_planted_model
from plain_hooks import PLACES, log_probs, log_probs_without, values_at
from test_ablation import SMALL, TOLERANCE, WRITING_KINDS, error_of_changes, sequences_of
from torch import Tensor

from sae_vis import FeatureVisParams, get_feature_data, get_prompt_data
from sae_vis._errors import ModelError
from sae_vis._full_ablation import Start
from sae_vis.model_fns import HookPoint, LanguageModel

KINDS = (*WRITING_KINDS, "mlp.hook_pre")


def fetch(model: Any, hook_point: str, tokens: Any = None, encoder: Any = None, **options: Any) -> Any:
    encoder = encoder or random_encoder(width_at(model, hook_point), 4)
    fvp = FeatureVisParams(hook_point=hook_point, **{**SMALL, "ablation": "full", **options})
    return get_feature_data(encoder, model, some_tokens() if tokens is None else tokens, fvp)


class Effect(NamedTuple):
    """What is stored of one prediction."""

    feature: int
    row: int
    position: int
    loss: float | None
    changes: Any  # a TokenEffect, or None


def stored(data: Any) -> Iterator[Effect]:
    """Every effect of the full ablation, wherever it is stored."""
    for index, feature in data.items():
        for sequence in sequences_of(feature):
            losses, effects = sequence.loss_contribution, sequence.effects
            if sequence.full is not None:
                losses, effects = sequence.full.loss_contribution, sequence.full.effects
            by_place = {effect.at: effect for effect in effects}
            for at, loss in enumerate(losses):
                yield Effect(index, sequence.row, sequence.start + at, loss, by_place.get(at))


class Oracle:
    """One forward pass of the plain model for each feature and row, on demand."""

    def __init__(self, name: str, hook_point: str, tokens: Tensor, encoder: Any, ignored: tuple[int, ...] = (0, 1, 2)):
        self.name, self.hook_point, self.tokens, self.encoder = name, hook_point, tokens, encoder
        read = shared_values(name, tokens, hook_point)
        self.acts = activations(encoder, read)
        self.acts[torch.isin(tokens, torch.tensor(ignored))] = 0.0
        self.clean = log_probs(name, tokens)
        self._without: dict[tuple[int, int], Tensor] = {}

    def change(self, feature: int, row: int) -> Tensor:
        """``logp_with - logp_without [seq, d_vocab]``."""
        key = feature, row
        if key not in self._without:
            w = self.encoder.W_dec[feature].detach().double()
            contribution = self.acts[row, :, feature, None] * w[None]
            self._without[key] = log_probs_without(self.name, self.tokens[row], self.hook_point, contribution.float())
        return self.clean[row] - self._without[key]

    def worst_error(self, data: Any, padding: int | None = PAD) -> float:
        """Of any stored loss or change; what must be exact is asserted."""
        worst, n_checked = 0.0, 0
        for effect in stored(data):
            token = int(self.tokens[effect.row, effect.position])
            if effect.position == 0 or token == padding:
                assert effect.loss is None
                assert effect.changes is None
                continue
            change = self.change(effect.feature, effect.row)[effect.position - 1]
            worst = max(worst, abs(effect.loss + float(change[token])))
            active_before = self.acts[effect.row, : effect.position, effect.feature]
            if not bool((active_before > 0).any()):
                assert effect.loss == 0.0
            if active_before[-1] > 0 and data.params.n_changes:
                worst = max(worst, error_of_changes(effect.changes, change, data.params.n_changes))
            else:
                assert effect.changes is None
            n_checked += 1
        assert n_checked > 20
        return worst


def shared_values(name: str, tokens: Tensor, hook_point: str) -> Tensor:
    """What the encoder reads; the middle of a block is no place of the plain model."""
    if hook_point.endswith("hook_resid_mid"):
        return hook_values(shared(name), tokens, hook_point)
    return values_at(name, tokens, hook_point)


def worst_error(name: str, kind: str, layer: int, **options: Any) -> float:
    """For one model and hook point; also run by hand to make the table in docs/numbers.md."""
    hook_point, tokens = f"blocks.{layer}.{kind}", some_tokens()
    encoder = random_encoder(width_at(shared(name), hook_point), 4, seed=layer)
    return Oracle(name, hook_point, tokens, encoder).worst_error(
        fetch(shared(name), hook_point, tokens, encoder, **options)
    )


# --- against plain hooks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name in PLACES for kind in KINDS if kind in PLACES[name][1]]
)
@pytest.mark.parametrize("layer", [0, 1])
def test_stored_effects_are_those_of_plain_hooks_on_the_hugging_face_model(name, kind, layer):
    assert worst_error(name, kind, layer) < TOLERANCE


@pytest.mark.parametrize(
    "options", [{"buffer": None}, {"buffer": (0, 0)}, {"n_changes": 0}, {"minibatch_size_tokens": 1}]
)
def test_options_change_nothing_else(options):
    assert worst_error("gpt2", "hook_resid_pre", 1, **options) < TOLERANCE


@pytest.mark.parametrize("ignored", [(), (5, 9, BOS)])
def test_ignored_positions_are_not_ablated(ignored):
    hook_point, tokens = "blocks.1.hook_resid_pre", some_tokens()
    encoder = random_encoder(16, 4)
    data = fetch(shared("gpt2"), hook_point, tokens, encoder, ignore_tokens=ignored)
    assert Oracle("gpt2", hook_point, tokens, encoder, ignored).worst_error(data) < TOLERANCE


@pytest.mark.parametrize("norm", ["LN", "RMS", "LNPre", "RMSPre", None])
@pytest.mark.parametrize("kind", KINDS)
def test_native_models_are_ablated_as_transformer_lens_does_it_row_by_row(norm, kind):
    """With TransformerLens' own hooks on the whole row; the middle of a block through the attention's output."""
    model, tokens, hook_point = shared(f"native-{norm}"), some_tokens(), f"blocks.1.{kind}"
    encoder = random_encoder(width_at(model, hook_point), 3)
    acts = activations(encoder, hook_values(model, tokens, hook_point))
    acts[torch.isin(tokens, torch.tensor([0, 1, 2]))] = 0.0
    written_at = "blocks.1.hook_attn_out" if kind == "hook_resid_mid" else hook_point
    data = fetch(model, hook_point, tokens, encoder)
    check_against_transformer_lens(model, data, tokens, written_at, acts, encoder)


@pytest.mark.parametrize("cap", [0.5, 30.0])
def test_a_soft_capped_native_model(cap, tmp_path):
    model = native("LN", save_tokenizer(tmp_path), output_logits_soft_cap=cap)
    data = fetch(model, "blocks.1.mlp.hook_post", ablation=("direct", "full"))
    losses = [
        (direct, full)
        for feature in data.values()
        for s in sequences_of(feature)
        for direct, full in zip(s.loss_contribution, s.full.loss_contribution, strict=True)
    ]
    assert any(direct for direct, _ in losses)
    assert all(direct == pytest.approx(full, abs=2e-5) for direct, full in losses)


@pytest.mark.parametrize("name", ["gpt2", "llama", "neox"])
@pytest.mark.parametrize("kind", ["mlp.hook_post", "hook_mlp_out", "hook_resid_post"])
def test_where_the_direct_effect_is_exact_both_are_the_same(name, kind):
    data = fetch(shared(name), f"blocks.1.{kind}", ablation=("direct", "full"))
    assert data.provenance.direct_effect == "exact"
    for feature in data.values():
        for sequence in sequences_of(feature):
            assert sequence.loss_contribution == pytest.approx(sequence.full.loss_contribution, abs=2e-5)
            assert [e.at for e in sequence.effects] == [e.at for e in sequence.full.effects]


def test_elsewhere_they_differ_and_the_direct_one_is_what_it_was():
    both, direct, full = (
        fetch(shared("gpt2"), "blocks.0.mlp.hook_post", ablation=ablation)
        for ablation in (("full", "direct"), "direct", "full")
    )
    n_different = 0
    for index, feature in both.items():
        for one, d, f in zip(*map(sequences_of, (feature, direct[index], full[index])), strict=True):
            assert (one.loss_contribution, one.effects) == (d.loss_contribution, d.effects)
            assert (one.full.loss_contribution, one.full.effects) == (f.loss_contribution, f.effects)
            assert d.full is None
            assert f.full is None
            n_different += d.loss_contribution != f.loss_contribution
    assert n_different > 10


# --- models that are not described by the formula --------------------------------------------------------------------


def test_the_models_own_logits_are_used_where_they_are_not_an_unembedding():
    """A model whose logits are changed behind the unembedding has no direct effect, but a full one."""
    with_offset = build("gpt2")
    offset = torch.linspace(-2, 2, D_VOCAB)
    with_offset.unembed.register_forward_hook(lambda module, args, out: out * (1.0 + 0.1 * out.tanh()) + offset)

    class Wrapped:
        """Its ``unembed`` is the plain one, so that no tail gives the logits of ``run_with_hooks``."""

        def __getattr__(self, name):
            return getattr(with_offset, name)

        def unembed(self, x):
            return x @ with_offset.W_U

    tokens, hook_point = some_tokens(), "blocks.0.hook_resid_post"
    encoder = random_encoder(16, 3)
    data = fetch(Wrapped(), hook_point, tokens, encoder, ablation=("direct", "full"))
    assert data.provenance.direct_effect == "none"
    acts = activations(encoder, hook_values(with_offset, tokens, hook_point))
    acts[torch.isin(tokens, torch.tensor([0, 1, 2]))] = 0.0
    check_against_transformer_lens(with_offset, data, tokens, hook_point, acts, encoder)


@pytest.mark.parametrize("hook_point", ["hook_embed", "blocks.0.ln1.hook_normalized", "ln_final.hook_normalized"])
def test_hook_points_that_are_no_place_of_a_block_have_a_full_effect_too(hook_point):
    model, tokens = shared("gpt2"), some_tokens()
    encoder = random_encoder(16, 3)
    data = fetch(model, hook_point, tokens, encoder)
    acts = activations(encoder, hook_values(model, tokens, hook_point))
    acts[torch.isin(tokens, torch.tensor([0, 1, 2]))] = 0.0
    check_against_transformer_lens(model, data, tokens, hook_point, acts, encoder)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_is_ablated_too(dtype):
    hook_point, tokens = "blocks.0.hook_resid_post", some_tokens()
    encoder = random_encoder(16, 3)
    data = fetch(build("llama", dtype=dtype), hook_point, tokens, encoder)
    oracle = Oracle("llama", hook_point, tokens, encoder)
    pairs = [
        (effect.loss, -float(oracle.change(effect.feature, effect.row)[effect.position - 1, token]))
        for effect in stored(data)
        if effect.loss and (token := int(tokens[effect.row, effect.position])) is not None
    ]
    assert len(pairs) > 20
    ours, theirs = torch.tensor(pairs).T
    assert float((ours - theirs).abs().mean()) < 0.1 * float(theirs.abs().mean())


class StreamModel(ToyModel):
    """A block whose middle is a place of the residual stream itself, as HookedTransformer has it."""

    def __init__(self, table: Tensor) -> None:
        super().__init__(table, n_ctx=N_CTX)
        names = ("hook_resid_pre", "hook_resid_mid", "hook_mlp_out", "hook_resid_post")
        self.hook_dict = {f"blocks.0.{name}": None for name in names}
        self.W = torch.nn.Parameter(torch.randn(16, 16, generator=torch.Generator().manual_seed(1)) / 4)

    def run_with_hooks(self, tokens: Tensor, fwd_hooks: Any = (), return_type: str | None = None) -> Tensor:
        def at(name: str, value: Tensor) -> Tensor:
            for wanted, run in fwd_hooks:
                changed = run(value, hook=None) if wanted == f"blocks.0.{name}" else None
                value = value if changed is None else changed
            return value

        mid = at("hook_resid_mid", at("hook_resid_pre", self.table[tokens]))
        post = at("hook_resid_post", mid + at("hook_mlp_out", torch.tanh(mid @ self.W)))
        return self.unembed(self.ln_final(post))


def test_the_middle_of_a_block_that_lies_in_the_residual_stream_is_changed_once():
    model = StreamModel(torch.randn(D_VOCAB, 16, generator=torch.Generator().manual_seed(2)))
    tokens, hook_point, encoder = some_tokens(), "blocks.0.hook_resid_mid", random_encoder(16, 4)
    data = fetch(model, hook_point, tokens, encoder, ignore_tokens=())
    acts = activations(encoder, model.table.detach()[tokens])
    check_against_transformer_lens(model, data, tokens, hook_point, acts, encoder)


# --- less work, the same numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["native-LN", "gpt2", "llama", "gemma2", "neox"])
def test_every_model_here_begins_at_the_block_of_the_hook_point(name):
    wrapped = LanguageModel(shared(name))
    with wrapped.as_for_inference():
        start = Start.find(wrapped, 1, "blocks.1.hook_resid_pre", some_tokens())
    assert start.block == 1


def sizes_of_calls(module: Any) -> list[tuple[int, int]]:
    """Fills with the numbers of rows and tokens of each call of a module from now on."""
    sizes: list[tuple[int, int]] = []

    def note(module, args, kwargs):
        sizes.append(tuple((args[0] if args else kwargs["hidden_states"]).shape[:2]))

    module.register_forward_pre_hook(note, with_kwargs=True)
    return sizes


def firing_on(model: Any, token: int, position: int) -> Any:
    """One feature that fires on this token at this position only, read where GPT-2's first block begins."""
    place = hook_values(model, torch.full((1, position + 1), token), "blocks.0.hook_resid_pre")[0, position]
    encoder = random_encoder(16, 1)
    with torch.no_grad():
        encoder.b_dec.zero_()
        encoder.W_enc[:, 0] = place / place.norm()
        encoder.b_enc[0] = -0.999 * place.norm()
    return encoder


def test_nothing_is_run_behind_the_last_token_that_is_shown():
    model = build("gpt2")
    tokens = some_tokens(8, 24, bos=False)
    tokens[tokens == 9] = 10
    tokens[:, 2] = 9
    options = {"buffer": (1, 2), "n_groups": 0, "first_group_size": 20, "n_counterexamples": 0, "ignore_tokens": ()}
    encoder = firing_on(model, 9, 2)
    sizes = sizes_of_calls(model.blocks[1].attn)
    data = fetch(model, "blocks.0.hook_resid_pre", tokens, encoder, **options)
    assert data[0].activations.n_active == len(sequences_of(data[0])) == 8
    assert {s.start + len(s.token_ids) for s in sequences_of(data[0])} == {5}
    assert [size for size in sizes if size[1] < 24] == [(8, 8)]  # one pass for all, of as few tokens as keep the bits


@pytest.mark.parametrize("hook_point", ["blocks.1.hook_resid_pre", "blocks.0.hook_resid_post", "blocks.0.hook_mlp_out"])
def test_blocks_before_what_is_changed_are_not_run_for_each_feature(hook_point):
    model, tokens = build("gpt2"), some_tokens()
    first, second = sizes_of_calls(model.blocks[0].attn), sizes_of_calls(model.blocks[1].attn)
    fetch(model, hook_point, tokens, ablation=None)
    without = sum(rows for rows, _ in first)
    first.clear()
    second.clear()
    data = fetch(model, hook_point, tokens)
    n_pairs = sum(len({s.row for s in sequences_of(feature)}) for feature in data.values())
    assert n_pairs > 15
    n_shown = len({s.row for feature in data.values() for s in sequences_of(feature)})
    # The shown rows as they are, and the sample (two rows) for the tails, the short cuts and whether the place is read.
    assert sum(rows for rows, _ in first) <= without + n_shown + 10 * 2
    assert sum(rows for rows, _ in second) >= n_pairs


@pytest.mark.parametrize("ablation", ["full", ("direct", "full")])
@pytest.mark.parametrize("hook_point", ["blocks.1.hook_resid_pre", "blocks.0.hook_resid_post", "blocks.0.hook_mlp_out"])
def test_shown_rows_begin_with_what_was_kept_while_collecting_where_there_is_room(hook_point, ablation):
    model, tokens = build("gpt2"), some_tokens()
    calls = sizes_of_calls(model.blocks[0].attn)
    found, rows_run = [], []
    for room in (0, 1, 2):  # of the residual stream at one hook point
        calls.clear()
        budget = room * 8 * tokens.numel() * 4 * model.cfg.d_model + 1
        options = {"ablation": ablation, "memory_budget": budget, "minibatch_size_tokens": 4}
        found.append(fetch(model, hook_point, tokens, **options).feature_data_dict)
        rows_run.append(sum(rows for rows, _ in calls))
    assert found[0] == found[1] == found[2]
    n_shown = len({s.row for feature in found[0].values() for s in sequences_of(feature)})
    assert n_shown > 5
    at_one, at_both = rows_run[0] - rows_run[1], rows_run[1] - rows_run[2]
    assert at_one >= n_shown
    assert at_both >= n_shown if ablation != "full" else at_both == 0


def test_nothing_is_kept_far_behind_the_hook_point_where_few_rows_are_shown():
    """To keep what enters the second block, every row would have to run through all of the first one."""
    model, tokens, encoder = build("gpt2"), some_tokens(100), Normalising("blocks.1.hook_resid_pre")
    encoder.hook_point = "blocks.0.hook_resid_pre"
    mlp = sizes_of_calls(model.blocks[0].mlp)
    few = {"first_group_size": 1, "n_groups": 0, "n_counterexamples": 0, "features": (0,)}
    fetch(model, None, tokens, encoder, **few)
    n_few = sum(rows for rows, _ in mlp)
    mlp.clear()
    fetch(model, None, tokens, encoder, **few, loss_shares="exact")  # which looks at every row
    assert n_few < len(tokens) <= sum(rows for rows, _ in mlp)


def test_a_model_whose_blocks_leave_something_behind_is_run_whole():
    """The second block reads what the first one left, so that it cannot be run alone."""
    model, tokens, hook_point = build("gpt2"), some_tokens(), "blocks.1.hook_resid_pre"
    left: list[Tensor] = []
    model.blocks[0].attn.register_forward_hook(lambda module, args, out: left.append(out[0]))
    model.blocks[1].mlp.register_forward_hook(lambda module, args, out: out + 0.3 * left.pop() if left else out)
    wrapped = LanguageModel(model)
    with wrapped.as_for_inference():
        assert Start.find(wrapped, 1, hook_point, tokens).block == 0
    left.clear()
    encoder = random_encoder(16, 3)
    data = fetch(model, hook_point, tokens, encoder, minibatch_size_tokens=1)
    acts = activations(encoder, hook_values(model, tokens, hook_point))
    acts[torch.isin(tokens, torch.tensor([0, 1, 2]))] = 0.0
    check_against_transformer_lens(model, data, tokens, hook_point, acts, encoder)


def test_what_its_block_does_behind_the_hook_point_is_done_to_the_change_too():
    """Half of what the MLP gives reaches the next block: a change there is another one than at the hook point."""
    model, tokens, hook_point = build("gpt2"), some_tokens(), "blocks.0.hook_mlp_out"
    model.blocks[0].mlp.register_forward_hook(lambda module, args, out: 0.5 * out)
    encoder = random_encoder(16, 3)
    data = fetch(model, hook_point, tokens, encoder)
    acts = activations(encoder, hook_values(model, tokens, hook_point))
    acts[torch.isin(tokens, torch.tensor([0, 1, 2]))] = 0.0
    check_against_transformer_lens(model, data, tokens, hook_point, acts, encoder)


def check_against_transformer_lens(
    model: Any, data: Any, tokens: Tensor, hook_point: str, acts: Tensor, encoder: Any, at_least: int = 20
) -> None:
    """Every stored loss is that of TransformerLens' own hooks on the whole row, one at a time."""

    def log_probs_of(row: Tensor, hooks: Any) -> Tensor:
        with torch.no_grad():
            return torch.log_softmax(model.run_with_hooks(row[None], fwd_hooks=hooks)[0].double(), -1)

    @functools.cache
    def change_of(feature: int, row: int) -> Tensor:
        contribution = acts[row, :, feature, None].float() * encoder.W_dec[feature].detach()

        def remove(value: Tensor, hook: Any) -> Tensor:
            return value - contribution.reshape(value[0].shape)

        return log_probs_of(tokens[row], [(hook_point, remove)]) - log_probs_of(tokens[row], [])

    effects = [effect for effect in stored(data) if effect.loss]
    assert len(effects) >= at_least
    for effect in effects:
        token = tokens[effect.row, effect.position]
        expected = change_of(effect.feature, effect.row)[effect.position - 1, token]
        assert effect.loss == pytest.approx(float(expected), abs=TOLERANCE)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_blocks_and_hooks_are_as_they_were_after_an_error_in_the_middle(error):
    model, tokens = build("gpt2"), some_tokens()
    before = {name: (len(p.fwd_hooks), len(p._forward_hooks)) for name, p in model.hook_dict.items()}
    calls: list[int] = []

    def fail_later(module, args):
        calls.append(1)
        if "forward" in vars(model.blocks[0]) and len(calls) > 6:
            raise error("stop")

    handle = model.blocks[1].attn.register_forward_pre_hook(fail_later)
    with pytest.raises(error):
        fetch(model, "blocks.1.hook_resid_pre", tokens)
    handle.remove()
    assert "forward" not in vars(model.blocks[0])
    assert {name: (len(p.fwd_hooks), len(p._forward_hooks)) for name, p in model.hook_dict.items()} == before


def test_a_forward_of_a_blocks_own_comes_back():
    model = build("gpt2")
    own = model.blocks[0].forward
    vars(model.blocks[0])["forward"] = own
    fetch(model, "blocks.1.hook_resid_pre")
    assert vars(model.blocks[0])["forward"] is own


@pytest.mark.parametrize("kind", ["hook_resid_pre", "hook_resid_mid", "mlp.hook_pre", "attn.hook_z"])
def test_the_same_bits_however_the_work_is_cut_up(kind):
    hook_point, tokens = f"blocks.1.{kind}", some_tokens(9)
    model = shared("llama")
    encoder = random_encoder(width_at(model, hook_point), 20)
    whole = fetch(model, hook_point, tokens, encoder)
    for options in (
        {"minibatch_size_tokens": 1},
        {"minibatch_size_tokens": 4},
        {"minibatch_size_features": 3},
        {"memory_budget": "20KB"},
    ):
        assert fetch(model, hook_point, tokens, encoder, **options).feature_data_dict == whole.feature_data_dict
    one = fetch(model, hook_point, tokens, encoder, features=7)
    assert one[7] == whole[7]


def test_chunks_of_any_size_give_the_same(monkeypatch):
    whole = fetch(shared("gpt2"), "blocks.0.mlp.hook_post")
    monkeypatch.setattr("sae_vis._ablation.CHUNK_BYTES", 4 * D_VOCAB * 6 * 5)
    assert fetch(shared("gpt2"), "blocks.0.mlp.hook_post").feature_data_dict == whole.feature_data_dict


# --- encoders that write elsewhere, or on another scale --------------------------------------------------------------


class Normalising:
    """An encoder that divides its input by its norm, and multiplies what it writes with it again."""

    d_in = d_hidden = 16

    def __init__(self, hook_point_out: str | None = None) -> None:
        self.inner = random_encoder(16, 16)
        self.W_dec = self.inner.W_dec
        self.hook_point = "blocks.0.hook_resid_post"
        if hook_point_out:
            self.hook_point_out = hook_point_out

    def encode(self, x, features=None):
        return self.inner.encode(x / self.write_scale(x)[..., None], features)

    def decoder_rows(self, features):
        return self.inner.decoder_rows(features)

    def write_scale(self, x):
        return x.float().norm(dim=-1) / 4


@pytest.mark.parametrize("written_at", [None, "blocks.1.hook_resid_pre", "blocks.1.hook_mlp_out"])
@pytest.mark.parametrize("ablation", ["direct", "full"])
def test_the_contribution_has_the_scale_and_the_place_that_the_encoder_says(written_at, ablation):
    model, tokens, encoder = shared("gpt2"), some_tokens(), Normalising(written_at)
    data = fetch(model, None, tokens, encoder, ablation=ablation, features=range(4))
    assert data.provenance.hook_point == "blocks.0.hook_resid_post"
    assert data.provenance.hook_point_out == written_at
    x = hook_values(model, tokens, encoder.hook_point)
    acts = encoder.encode(x).detach() * encoder.write_scale(x)[..., None]
    acts[torch.isin(tokens, torch.tensor([0, 1, 2]))] = 0.0
    if ablation == "full":
        place = written_at or encoder.hook_point
        return check_against_transformer_lens(model, data, tokens, place, acts, encoder)
    from brute_force import change_of_log_probs

    final, n_checked = hook_values(model, tokens, "blocks.1.hook_resid_post"), 0
    for effect in stored(data):
        if effect.loss:
            before, token = effect.position - 1, tokens[effect.row, effect.position]
            a, d = float(acts[effect.row, before, effect.feature]), encoder.W_dec[effect.feature].detach()
            change = change_of_log_probs(model, final[effect.row, before], a, d)
            assert effect.loss == pytest.approx(-float(change[token]), abs=TOLERANCE)
            n_checked += 1
    assert n_checked > 20
    return None


# --- prompts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ablation", ["full", ("direct", "full")])
def test_the_scores_of_a_prompt_are_those_of_plain_hooks(ablation):
    hook_point, tokens = "blocks.0.mlp.hook_post", some_tokens()
    encoder = random_encoder(64, 6)
    features = fetch(shared("gpt2"), hook_point, tokens, encoder, ablation=ablation)
    prompt = get_prompt_data(encoder, shared("gpt2"), tokens[1].tolist(), features, num_top_features=6)
    oracle, name = Oracle("gpt2", hook_point, tokens[1:2], encoder), "loss_effect"
    assert ("loss_effect_full" in prompt.scores) == (ablation != "full")
    if ablation != "full":
        name = "loss_effect_full"
        only_direct = dataclasses.replace(features.params, ablation="direct")
        direct = get_prompt_data(encoder, shared("gpt2"), tokens[1].tolist(), features, only_direct)
        assert direct.scores["loss_effect"] == [ranked[:10] for ranked in prompt.scores["loss_effect"]]
    for position, ranked in enumerate(prompt.scores[name]):
        active = [f for f in range(6) if position and oracle.acts[0, position - 1, f] > 0]
        expected = {f: -float(oracle.change(f, 0)[position - 1, tokens[1, position]]) for f in active}
        assert {feature for feature, _ in ranked} == set(active)
        assert [score for _, score in ranked] == sorted(score for _, score in ranked)
        assert dict(ranked) == pytest.approx(expected, abs=TOLERANCE)


# --- errors --------------------------------------------------------------------------------------------------------------


def test_a_place_that_nothing_reads_is_a_clear_error():
    """In the middle of a block without an MLP hook the change would be lost; here the model throws it away itself."""
    encoder, model, tokens = planted(torch.rand(3, 4, 2, generator=torch.Generator().manual_seed(0)))
    model.hook_dict["blocks.0.hook_aside"] = None
    run = model.run_with_hooks

    def run_with_hooks(tokens, fwd_hooks=(), return_type=None):
        for name, hook in fwd_hooks:
            if name == "blocks.0.hook_aside":
                hook(model.table[tokens], hook=None)
        return run(tokens, [pair for pair in fwd_hooks if pair[0] != "blocks.0.hook_aside"], return_type)

    model.run_with_hooks = run_with_hooks
    with pytest.raises(
        ModelError, match=r"ablation='full' cannot be measured at 'blocks\.0\.hook_aside'.*nothing reads it"
    ):
        fetch_planted_model(encoder, model, tokens, hook_point="blocks.0.hook_aside", ablation="full")


def test_a_decoder_of_the_wrong_width_is_a_clear_error():
    class Wide(Normalising):
        def decoder_rows(self, features):
            return torch.ones(len(features), 17)

    with pytest.raises(ModelError, match=r"width 17.*'blocks\.1\.mlp\.hook_pre' takes 64"):
        fetch(shared("gpt2"), None, encoder=Wide("blocks.1.mlp.hook_pre"))


def test_an_unknown_place_to_write_to_names_the_nearest():
    with pytest.raises(ModelError, match=r"no hook point 'blocks\.9\.hook_mlp_out'"):
        fetch(shared("gpt2"), None, encoder=Normalising("blocks.9.hook_mlp_out"))


def test_a_hook_point_knows_its_block_whatever_its_kind():
    assert HookPoint.parse("blocks.11.attn.hook_q").block == 11
    assert HookPoint.parse("hook_embed").block is None
