"""The reconstruction of a prompt: each number against plain hooks on the plain Hugging Face model, and where there is none."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import re
from typing import Any

import browser
import plain_hooks
import pytest
import torch
from brute_force import activations, random_encoder, width_at
from hf_models import BOS, EOS, PAD, shared, some_tokens

from sae_vis import FeatureVisParams, MultiPromptData, ReconstructionData, get_feature_data, get_prompt_data
from sae_vis import _reconstruction as fast
from sae_vis._errors import FileFormatError, InputError, ModelError

if browser.sync_playwright:
    from playwright.sync_api import expect

PROMPT = [BOS, 7, 21, 33, 7, 45, 12, EOS, 30, PAD, 9]
CHOSEN = [1, 2, 5]
PLACES = [
    ("gpt2", "blocks.0.hook_resid_pre"),
    ("gpt2", "blocks.1.hook_resid_mid"),
    ("gpt2", "blocks.1.hook_resid_post"),
    ("gpt2", "blocks.0.hook_attn_out"),
    ("gpt2", "blocks.0.mlp.hook_pre"),
    ("gpt2", "blocks.0.mlp.hook_post"),
    ("gpt2", "blocks.0.attn.hook_z"),
    ("llama", "blocks.0.mlp.hook_post"),
    ("llama", "blocks.1.hook_resid_mid"),
    ("gemma2", "blocks.1.hook_mlp_out"),
    ("neox", "blocks.0.hook_resid_post"),
]


def encoder_for(name: str, hook_point: str) -> Any:
    return random_encoder(width_at(shared(name), hook_point), 24, apply_b_dec_to_input=False)


def options(hook_point: str, **changed: Any) -> FeatureVisParams:
    few = {"verbose": False, "include_left_tables": False, "first_group_size": 1, "n_groups": 0}
    return FeatureVisParams(**{"hook_point": hook_point, "features": CHOSEN, "ablation": None, **few, **changed})


@functools.cache
def prompted(name: str, hook_point: str, **changed: Any) -> MultiPromptData:
    encoder, model = encoder_for(name, hook_point), shared(name)
    features = get_feature_data(encoder, model, some_tokens(6), options(hook_point, **changed))
    return get_prompt_data(encoder, model, PROMPT, features, reconstruction=True)


def told(data: MultiPromptData) -> ReconstructionData:
    assert data.reconstruction is not None
    return data.reconstruction


def plain_log_probs(name: str, hook_point: str, put: torch.Tensor | None) -> torch.Tensor:
    """With ``put`` at the hook point of the Hugging Face model at every counted position, by plain PyTorch hooks."""
    ids = torch.tensor(PROMPT)
    counted = ~torch.isin(ids, torch.tensor([BOS, PAD, EOS]))
    if put is None:
        return plain_hooks.log_probs(name, ids[None])[0]
    own = values(name, hook_point)
    difference = torch.where(counted[:, None], own - put, torch.zeros_like(own))
    return plain_hooks.log_probs_without(name, ids, hook_point, difference)


def plain_losses(name: str, hook_point: str, put: torch.Tensor | None) -> list[float | None]:
    log_probs = plain_log_probs(name, hook_point, put)
    losses = [None, *(-float(log_probs[t - 1, PROMPT[t]]) for t in range(1, len(PROMPT)))]
    return [None if token == PAD else loss for token, loss in zip(PROMPT, losses, strict=True)]


def values(name: str, hook_point: str) -> torch.Tensor:
    if not hook_point.endswith("hook_resid_mid"):
        return plain_hooks.values_at(name, torch.tensor([PROMPT]), hook_point)[0]
    layer = hook_point.split(".")[1]
    added = [
        plain_hooks.values_at(name, torch.tensor([PROMPT]), f"blocks.{layer}.{kind}")[0]
        for kind in ("hook_resid_pre", "hook_attn_out")
    ]
    return added[0] + added[1]


def written(name: str, hook_point: str, features: list[int]) -> torch.Tensor:
    """What the encoder gives with some of its features, one at a time."""
    encoder = encoder_for(name, hook_point)
    acts = activations(encoder, values(name, hook_point)[None])[0]
    made = encoder.b_dec.detach().double().repeat(len(PROMPT), 1)
    for position in range(len(PROMPT)):
        for feature in features:
            made[position] += acts[position, feature] * encoder.W_dec[feature].detach().double()
    return made


@pytest.mark.parametrize(("name", "hook_point"), PLACES)
def test_the_losses_are_those_of_plain_hooks(name, hook_point):
    found = told(prompted(name, hook_point))
    whole, some = written(name, hook_point, list(range(24))), written(name, hook_point, CHOSEN)
    expected = {
        "loss": plain_losses(name, hook_point, None),
        "loss_spliced": plain_losses(name, hook_point, whole.float()),
        "loss_chosen": plain_losses(name, hook_point, some.float()),
        "loss_ablated": plain_losses(name, hook_point, torch.zeros_like(whole).float()),
    }
    for kind, losses in expected.items():
        for given, loss in zip(getattr(found, kind), losses, strict=True):
            assert (given is None) == (loss is None)
            # Of a residual stream of zeros, norms make much of the rounding that the plain way leaves there.
            near_nothing = kind == "loss_ablated" and "resid" in hook_point
            assert given == pytest.approx(loss, abs=1e-3 if near_nothing else 1e-4), kind
    for one, other in (("loss", "loss_spliced"), ("loss_spliced", "loss_chosen"), ("loss_spliced", "loss_ablated")):
        assert getattr(found, one) != getattr(found, other)


@pytest.mark.parametrize(("name", "hook_point"), [PLACES[0], PLACES[1], PLACES[5], PLACES[7]])
def test_the_divergence_is_that_of_the_definition(name, hook_point):
    found = told(prompted(name, hook_point))
    own = plain_log_probs(name, hook_point, None).double()
    spliced = plain_log_probs(name, hook_point, written(name, hook_point, list(range(24))).float()).double()
    assert found.kl[0] is None
    for t in range(1, len(PROMPT)):
        if PROMPT[t] == PAD:
            assert found.kl[t] is None
            continue
        pairs = zip(own[t - 1].tolist(), spliced[t - 1].tolist(), strict=True)
        assert found.kl[t] == pytest.approx(sum(math.exp(p) * (p - q) for p, q in pairs), abs=1e-4)
    assert max(value for value in found.kl if value) > 1e-3
    mean = [value for value in found.kl if value is not None]
    assert found.total("kl") == pytest.approx(sum(mean) / len(mean))
    assert f"{found.total('kl'):.3f} nats (KL)" in found.summary(few=True)


def test_a_file_without_the_divergence_is_drawn_without_it(tmp_path):
    data = copy.deepcopy(prompted(*PLACES[0]))
    assert '<th scope="col">KL</th>' in data.get_html()
    data.reconstruction.kl = []
    data.save_json(tmp_path / "p.json")
    text = (tmp_path / "p.json").read_text("utf-8")
    (tmp_path / "old.json").write_text(re.sub(r',\s*"kl":\s*\[\]', "", text), "utf-8")
    old = MultiPromptData.load_json(tmp_path / "old.json")
    assert old == data
    assert '<th scope="col">KL</th>' not in old.get_html()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_an_encoder_scales_back_is_scaled_in_the_reconstruction(dtype):
    encoder = random_encoder(8, 24, apply_b_dec_to_input=False)
    scales = torch.tensor([[0.5, 1.0, 3.0]], dtype=dtype)
    encoder.write_scale = lambda x: scales
    x = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(0))
    made = fast.decoded(encoder, x, torch.tensor(CHOSEN))
    acts = activations(encoder, x)[0]
    for found, features in ((made.whole, range(24)), (made.chosen, CHOSEN)):
        for position, scale in enumerate([0.5, 1.0, 3.0]):
            rows = sum(acts[position, feature] * encoder.W_dec[feature].detach().double() for feature in features)
            torch.testing.assert_close(
                found[position], encoder.b_dec.detach().double() + scale * rows, rtol=1e-5, atol=1e-5
            )


@pytest.mark.parametrize(("name", "hook_point"), [PLACES[0], PLACES[3], PLACES[5], PLACES[6], PLACES[7]])
def test_error_and_count_of_features_are_those_of_the_definition(name, hook_point):
    found = told(prompted(name, hook_point))
    own = values(name, hook_point).double()
    counted = [position for position, token in enumerate(PROMPT) if token not in (BOS, PAD, EOS)]
    mean = sum(own[position] for position in counted) / len(counted)
    encoder = encoder_for(name, hook_point)
    acts = activations(encoder, values(name, hook_point)[None])[0]
    for made, total in (
        (written(name, hook_point, list(range(24))), found.fvu),
        (written(name, hook_point, CHOSEN), found.fvu_chosen),
    ):
        off = sum(float(((own[p] - made[p]) ** 2).sum()) for p in counted)
        assert total == pytest.approx(off / sum(float(((own[p] - mean) ** 2).sum()) for p in counted), rel=1e-3)
    made = written(name, hook_point, list(range(24)))
    for position in range(len(PROMPT)):
        if position not in counted:
            assert found.error[position] is None
            assert found.l0[position] is None
            continue
        share = float(((own[position] - made[position]) ** 2).sum() / ((own[position] - mean) ** 2).sum())
        assert found.error[position] == pytest.approx(share, rel=1e-3)
        assert found.l0[position] == sum(1 for value in acts[position] if value > 0)
    assert found.n_chosen == len(CHOSEN)


def test_recovered_is_the_quotient_of_the_losses():
    data = ReconstructionData(
        [None, 0.5, 0.5],
        [None, 1, 3],
        [None, 1.0, 2.0],
        [None, 2.0, 2.5],
        [None, 4.0, 2.0],
        [None, 5.0, 2.005],
        0.5,
        0.9,
        3,
    )
    assert [data.recovered(position) for position in range(3)] == [None, 0.75, None]
    assert data.total("loss") == 1.5
    assert data.total_recovered() == pytest.approx((3.5025 - 2.25) / (3.5025 - 1.5))
    assert data.total_recovered("loss_chosen") == pytest.approx((3.5025 - 3.0) / (3.5025 - 1.5))


def test_a_perfect_encoder_leaves_out_nothing_and_changes_no_loss():
    model, hook_point = shared("gpt2"), "blocks.0.mlp.hook_post"
    encoder = random_encoder(width_at(model, hook_point), 2 * width_at(model, hook_point))
    with torch.no_grad():
        eye = torch.eye(encoder.d_in)
        encoder.W_enc.copy_(torch.cat([eye, -eye], 1))
        encoder.W_dec.copy_(torch.cat([eye, -eye]))
        encoder.b_enc.zero_()
    features = get_feature_data(encoder, model, some_tokens(4), options(hook_point, features=range(encoder.d_hidden)))
    found = told(get_prompt_data(encoder, model, PROMPT, features, reconstruction=True))
    assert found.fvu == found.fvu_chosen == pytest.approx(0.0, abs=1e-10)
    for kind in ("loss_spliced", "loss_chosen"):
        for spliced, loss in zip(getattr(found, kind), found.loss, strict=True):
            assert spliced == pytest.approx(loss, abs=2e-5)
    shares = [share for share in map(found.recovered, range(len(PROMPT))) if share is not None]
    assert shares
    assert shares == pytest.approx([1.0] * len(shares), abs=5e-3)


def test_a_transcoder_is_put_where_it_writes():
    name, read_at, write_at = "gpt2", "blocks.1.mlp.hook_pre", "blocks.1.hook_mlp_out"
    model = shared(name)
    encoder = random_encoder(width_at(model, read_at), 10, apply_b_dec_to_input=False)
    d_out = width_at(model, write_at)
    weights = torch.randn(10, d_out, generator=torch.Generator().manual_seed(3))
    bias = torch.randn(d_out, generator=torch.Generator().manual_seed(4))

    class Transcoder:
        d_in, d_hidden, hook_point, hook_point_out = encoder.d_in, 10, read_at, write_at

        def encode(self, x: torch.Tensor, features: Any = None) -> torch.Tensor:
            return encoder.encode(x, features).detach()

        def decoder_rows(self, features: torch.Tensor) -> torch.Tensor:
            return weights[features]

        def decoder_bias(self, x: torch.Tensor) -> torch.Tensor:
            return bias.expand(*x.shape[:2], -1)

    features = get_feature_data(Transcoder(), model, some_tokens(6), options(read_at))
    found = told(get_prompt_data(Transcoder(), model, PROMPT, features, reconstruction=True))
    acts = activations(encoder, plain_hooks.values_at(name, torch.tensor([PROMPT]), read_at))[0]
    put = (bias.double() + acts @ weights.double()).float()
    for given, loss in zip(found.loss_spliced, plain_losses(name, write_at, put), strict=True):
        assert given == pytest.approx(loss, abs=1e-4)


def test_an_encoder_without_a_bias_is_told_so():
    encoder = encoder_for("gpt2", "blocks.0.mlp.hook_post")

    class Plain:
        d_in, d_hidden = encoder.d_in, encoder.d_hidden
        encode, decoder_rows = encoder.encode, encoder.decoder_rows

    features = get_feature_data(Plain(), shared("gpt2"), some_tokens(4), options("blocks.0.mlp.hook_post"))
    data = get_prompt_data(Plain(), shared("gpt2"), PROMPT, features, reconstruction=True)
    assert "decoder_bias(x)" in told(data).reason
    assert told(data).error == []
    assert "It cannot be measured: the encoder does not say" in data.get_html()


def test_a_bias_of_a_wrong_shape_is_refused():
    encoder = encoder_for("gpt2", "blocks.0.mlp.hook_post")

    class Wrong:
        d_in, d_hidden = encoder.d_in, encoder.d_hidden
        encode, decoder_rows = encoder.encode, encoder.decoder_rows

        def decoder_bias(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros(x.shape[0], x.shape[1], 3)

    features = get_feature_data(Wrong(), shared("gpt2"), some_tokens(4), options("blocks.0.mlp.hook_post"))
    with pytest.raises(ModelError, match="decoder_bias writes vectors of width 3"):
        get_prompt_data(Wrong(), shared("gpt2"), PROMPT, features, reconstruction=True)


def test_the_numbers_depend_on_nothing_but_prompt_and_encoder(monkeypatch):
    name, hook_point = PLACES[5]
    usual = told(prompted(name, hook_point))
    other = told(prompted(name, hook_point, memory_budget="1MB", minibatch_size_tokens=3))
    assert other == usual
    more = told(prompted(name, hook_point, features=tuple(range(24))))
    of_the_set = {"loss_chosen": [], "fvu_chosen": None, "n_chosen": 0}
    assert more.loss_chosen == more.loss_spliced
    for one in (usual, more):
        assert one.error
    assert dataclasses.asdict(more) | of_the_set == dataclasses.asdict(usual) | of_the_set
    monkeypatch.setattr(fast, "POSITIONS_AT_A_TIME", 3)
    assert told(prompted.__wrapped__(name, hook_point)) == usual


def test_features_are_added_up_in_pieces(monkeypatch):
    name, hook_point = PLACES[5]
    usual = told(prompted(name, hook_point))
    monkeypatch.setattr(fast, "FEATURES_AT_A_TIME", 5)
    cut = told(prompted.__wrapped__(name, hook_point))
    assert cut.l0 == usual.l0
    for one, other in zip(cut.error + cut.loss_spliced, usual.error + usual.loss_spliced, strict=True):
        assert one is other is None or one == pytest.approx(other, rel=1e-4)


@pytest.mark.parametrize("prompt", [[BOS], [BOS, 5], [5, 5, 5], [PAD, EOS]])
def test_prompts_with_nothing_to_compare_have_no_share(prompt):
    hook_point = "blocks.0.hook_resid_pre"
    encoder, model = encoder_for("gpt2", hook_point), shared("gpt2")
    features = get_feature_data(encoder, model, some_tokens(4), options(hook_point))
    data = get_prompt_data(encoder, model, prompt, features, prepend_bos=False, reconstruction=True)
    assert len(told(data).loss) == len(prompt)
    assert "Reconstruction" in data.get_html()
    if prompt != [5, 5, 5]:
        assert told(data).fvu is None


def test_it_is_saved_and_loaded_and_older_files_have_none(tmp_path):
    data = prompted(*PLACES[5])
    data.save_json(tmp_path / "p.json")
    again = MultiPromptData.load_json(tmp_path / "p.json")
    assert again == data
    assert again.get_html() == data.get_html()
    text = (tmp_path / "p.json").read_text("utf-8")
    start, end = text.index(',"heat_map":'), text.index('}, "features"')
    (tmp_path / "older.json").write_text(text[:start] + text[end:], "utf-8")
    older = MultiPromptData.load_json(tmp_path / "older.json")
    assert older.reconstruction is None
    assert older.heat_map == {}
    assert "Heat map" in older.get_html()
    broken = text.replace('"fvu":', '"n_chosen":4,"fvu":', 1)
    (tmp_path / "broken.json").write_text(broken, "utf-8")
    with pytest.raises(FileFormatError):
        MultiPromptData.load_json(tmp_path / "broken.json")


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match="lists of one length expected"):
        ReconstructionData([0.5], [1])
    with pytest.raises(InputError, match="a finite number was expected"):
        ReconstructionData([float("nan")], [1], [1.0], [1.0], [1.0], [1.0])
    with pytest.raises(InputError, match="reconstruction must be True or False"):
        get_prompt_data(None, None, PROMPT, fake_features(), reconstruction="yes")  # type: ignore[arg-type]


def fake_features() -> Any:
    encoder = encoder_for("gpt2", "blocks.0.mlp.hook_post")
    return get_feature_data(encoder, shared("gpt2"), some_tokens(2), options("blocks.0.mlp.hook_post"))


# --- the page -------------------------------------------------------------------------------------------------------


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_panel_tells_the_totals_and_every_token_and_a_row_chooses_its_token(show, scheme):
    from test_browser import expect_readable

    data = prompted(*PLACES[5])
    found = told(data)
    opened = show(data.get_html(seq_pos=2), size=(400, 800), color_scheme=scheme)
    (summary,) = opened.texts(".recon-sum")
    assert summary == found.summary(few=True)
    assert f"{found.total('loss_spliced'):.3f} with the reconstruction" in summary
    opened.page.locator(".recon summary").click()
    expect(opened.page.locator(".recon tbody tr")).to_have_count(len(PROMPT))
    opened.page.locator(".recon tbody tr").nth(4).locator("td").first.click()
    expect(opened.page.locator(".strip button").nth(4)).to_have_attribute("aria-checked", "true")
    rows = opened.js("[...document.querySelectorAll('.recon tbody tr')].map(r => [...r.cells].map(c => c.textContent))")
    for position, (_, active, _, loss, _, chosen, ablated, apart, _) in enumerate(rows):
        assert active == ("" if found.l0[position] is None else str(found.l0[position]))
        for text, value in (
            (loss, found.loss),
            (chosen, found.loss_chosen),
            (ablated, found.loss_ablated),
            (apart, found.kl),
        ):
            shown = float(text) if text else None
            assert shown == (None if value[position] is None else pytest.approx(value[position], abs=6e-3))
    assert opened.js("document.querySelector('.recon .at').dataset.pos") == "4"
    assert opened.js("document.documentElement.scrollWidth") == 400
    expect_readable(opened)
