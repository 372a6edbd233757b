"""The last block's MLP, run for the places that are looked at only, gives what the model gives there."""

from __future__ import annotations

import hf_models
import pytest
import torch
from models import HOOK_POINT, ToyModel, encoder_for, fetch, random_tokens

from sae_vis import _feature_view
from sae_vis._ending import Ending
from sae_vis.model_fns import HookPoint, LanguageModel

MLP = HookPoint.parse("blocks.1.mlp.hook_post")


def ids(n_rows: int = 4, seq_len: int = 12) -> torch.Tensor:
    return random_tokens(n_rows, seq_len, hf_models.D_VOCAB, lowest=3)


@pytest.mark.parametrize(
    ("name", "begins"),
    [
        ("gpt2", "hook_resid_mid"),
        ("llama", "hook_resid_mid"),
        ("gemma2", "hook_resid_post"),  # a norm stands behind its MLP
        ("neox", "hook_resid_post"),  # its MLP works beside the attention
    ],
)
def test_it_gives_what_leaves_the_model_and_falls_back_where_it_would_not(name, begins):
    model = LanguageModel(hf_models.shared(name))
    with model.as_for_inference():
        ending = Ending.of(model, MLP, ids(2))
        assert ending.hook == f"blocks.1.{begins}"
        kept = model.activations(ids(), ending.hook).flatten(0, 1)
        torch.testing.assert_close(
            ending.leaving(kept), model.final_residual(ids()).flatten(0, 1), rtol=1e-5, atol=1e-6
        )


def test_a_position_has_the_same_bits_whatever_the_others_are():
    model = LanguageModel(hf_models.shared("gpt2"))
    with model.as_for_inference():
        ending = Ending.of(model, MLP, ids(2))
        kept = model.activations(ids(9, 13), ending.hook).flatten(0, 1)
        together = ending.leaving(kept)
        order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(0))
        for size in (1, 5, 33, len(kept)):
            for some in torch.split(order, size):
                assert torch.equal(ending.leaving(kept[some]), together[some])
        assert torch.equal(ending._replace(at_a_time=32).leaving(kept), together)
        assert ending.leaving(kept[:0]).shape == (0, kept.shape[1])


@pytest.mark.parametrize("name", ["blocks.1.hook_mlp_out", "blocks.1.hook_resid_post"])
def test_where_the_last_mlp_runs_anyway_its_end_is_kept(name):
    model = LanguageModel(hf_models.shared("gpt2"))
    with model.as_for_inference():
        assert Ending.of(model, HookPoint.parse(name), ids(2)) == Ending(model.final_hook)


def test_a_model_without_such_blocks_is_run_to_its_end():
    model = LanguageModel(ToyModel(torch.eye(8)))
    assert Ending.of(model, HookPoint.parse(HOOK_POINT), random_tokens(2, 6, 8)) == Ending(model.final_hook)


@pytest.mark.parametrize("name", ["blocks.1.hook_mlp_out", "blocks.1.hook_resid_post"])
def test_what_somebody_else_changes_on_the_way_is_changed_too(name):
    plain = hf_models.shared("gpt2")
    unchanged = LanguageModel(plain).final_residual(ids())
    plain.add_hook(name, lambda value, hook: value * 2)
    try:
        model = LanguageModel(plain)
        with model.as_for_inference():
            ending = Ending.of(model, MLP, ids(2))
            final = model.final_residual(ids())
            assert not torch.allclose(final, unchanged)
            kept = model.activations(ids(), ending.hook)
            torch.testing.assert_close(ending.leaving(kept.flatten(0, 1)), final.flatten(0, 1), rtol=1e-5, atol=1e-6)
    finally:
        plain.reset_hooks()


@pytest.mark.parametrize("hook_point", ["blocks.0.hook_resid_pre", "blocks.1.mlp.hook_post"])
@pytest.mark.parametrize("loss_shares", ["estimate", "exact"])
def test_the_effects_are_those_of_whole_passes(hook_point, loss_shares, monkeypatch):
    model = hf_models.shared("gpt2")
    width = model.cfg.d_mlp if "mlp" in hook_point else model.cfg.d_model
    options = {"hook_point": hook_point, "features": range(6), "loss_shares": loss_shares}
    short = fetch(encoder_for(width, 12, size=0.3), model, ids(6), **options)
    monkeypatch.setattr(_feature_view.FeatureFetcher, "_ending", lambda view: Ending(view.run.model.final_hook))
    whole = fetch(encoder_for(width, 12, size=0.3), model, ids(6), **options)
    seen = 0
    for feature in short:
        for one, other in zip(shown(short[feature]), shown(whole[feature]), strict=True):
            assert one == pytest.approx(other, rel=1e-3, abs=2e-4)
            seen += sum(map(bool, one))
    assert seen > 50


def shown(feature) -> list[list[float]]:
    return [
        [loss or 0.0 for loss in sequence.loss_contribution]
        for group in feature.sequences.groups
        for sequence in group.sequences
    ]
