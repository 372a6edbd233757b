"""SAELens autoencoders: folders against plain loops, objects against the library's own encode and decode.

The tests of objects and of folders that SAELens itself writes need sae_lens, which cannot be installed beside
TransformerLens 4; the others need nothing of it.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_models import D_VOCAB, N_CTX, native, shared, some_tokens
from safetensors.torch import save_file

import sae_vis
from sae_vis import FeatureVisParams, get_feature_data, get_prompt_data, load_sae_lens
from sae_vis._errors import InputError, ModelError
from sae_vis._sae_adapters import as_encoder
from sae_vis._sae_lens import KINDS, SaeLensEncoder, Settings
from sae_vis.model_fns import Encoder

D_IN, D_SAE, D_OUT = 16, 40, 12
NORMALIZATIONS = ("none", "layer_norm", "constant_norm_rescale")
HOOK_POINT = "blocks.1.hook_resid_pre"

# Architecture, what its configuration says beside, and the extra tensors.
CASES = {
    "standard": {},
    "standard-keeps-b_dec": {"architecture": "standard", "apply_b_dec_to_input": False},
    "gated": {},
    "jumprelu": {},
    "topk": {"k": 5, "rescale_acts_by_decoder_norm": False},
    "topk-of-many": {"architecture": "topk", "k": 30},  # of which some are below zero
    "topk-rescaled": {"architecture": "topk", "k": 5, "rescale_acts_by_decoder_norm": True},
    "abstopk": {"k": 5},
    "transcoder": {"d_out": D_OUT, "apply_b_dec_to_input": False},
    "skip_transcoder": {"d_out": D_OUT, "apply_b_dec_to_input": False},
    "jumprelu_transcoder": {"d_out": D_OUT, "apply_b_dec_to_input": False},
    "jumprelu_skip_transcoder": {"d_out": D_OUT, "apply_b_dec_to_input": False},
}
BY_CASE = pytest.mark.parametrize("case", CASES)
BY_NORMALIZATION = pytest.mark.parametrize("normalization", NORMALIZATIONS)


def vectors(*shape: int, seed: int = 1, size: float = 2.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * size + 0.5


def large_and_small(rows: int, seq: int) -> torch.Tensor:
    """Vectors that normalising makes much of: every other one varies so little that its epsilon counts."""
    x = vectors(rows, seq, D_IN)
    x[:, 1::2] = vectors(rows, seq, D_IN, size=0.01)[:, 1::2]
    return x


def configuration(case: str, **changes: Any) -> dict[str, Any]:
    """The configuration as SAELens 6 writes it."""
    return {
        "d_in": D_IN,
        "d_sae": D_SAE,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.54.12", "hook_name": HOOK_POINT, "hook_name_out": "blocks.1.hook_mlp_out"},
        "architecture": case,
        **CASES.get(case, {}),
        **changes,
    }


def random_tensors(architecture: str, d_in: int = D_IN, d_sae: int = D_SAE, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights of every size that matters; decoder rows of different norms, so that rescaling shows."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    d_out = D_OUT if "transcoder" in architecture else d_in
    tensors = {
        "W_enc": noise(d_in, d_sae) * 0.4,
        "W_dec": noise(d_sae, d_out) * (0.2 + noise(d_sae, 1).abs()),
        "b_dec": noise(d_out) * 0.3,
    }
    if architecture == "gated":
        tensors |= {"b_gate": noise(d_sae) * 0.3, "r_mag": noise(d_sae) * 0.3, "b_mag": noise(d_sae) * 0.3}
    else:
        tensors["b_enc"] = noise(d_sae) * 0.3
    if "jumprelu" in architecture:
        tensors["threshold"] = noise(d_sae).abs() * 0.5
    if "skip" in architecture:
        tensors["W_skip"] = noise(d_out, d_in) * 0.2
    return tensors


def write_folder(folder: Any, config: Any, tensors: dict[str, torch.Tensor]) -> Any:
    folder.mkdir(exist_ok=True)
    (folder / "cfg.json").write_text(config if isinstance(config, str) else json.dumps(config), "utf-8")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "sae_weights.safetensors")
    return folder


def hand_made(folder: Any, case: str, **changes: Any) -> tuple[SaeLensEncoder, dict[str, Any], dict[str, torch.Tensor]]:
    config = configuration(case, **changes)
    tensors = random_tensors(config["architecture"])
    return load_sae_lens(write_folder(folder, config, tensors)), config, tensors


# --- the oracle ------------------------------------------------------------------------------------------------------


def normalized_by_loops(config: dict[str, Any], vector: list[float]) -> tuple[list[float], float]:
    """The vector as the encoder sees it, and by what the output is multiplied to undo that."""
    n = len(vector)
    if config["normalize_activations"] == "layer_norm":
        mean = sum(vector) / n
        std = math.sqrt(sum((value - mean) ** 2 for value in vector) / (n - 1))
        return [(value - mean) / (std + 1e-5) for value in vector], std
    if config["normalize_activations"] == "constant_norm_rescale":
        norm = math.sqrt(sum(value**2 for value in vector))
        return [value * math.sqrt(n) / norm for value in vector], norm / math.sqrt(n)
    return vector, 1.0


def norm_by_loops(row: torch.Tensor) -> float:
    return math.sqrt(sum(value**2 for value in row.tolist()))


def encoded_by_loops(config: dict[str, Any], tensors: dict[str, torch.Tensor], vector: torch.Tensor) -> list[float]:
    """One vector, feature by feature."""
    t = {name: tensor.double() for name, tensor in tensors.items()}
    architecture = config["architecture"]
    x, _ = normalized_by_loops(config, vector.double().tolist())
    if config["apply_b_dec_to_input"]:
        x = [value - shift for value, shift in zip(x, t["b_dec"].tolist(), strict=True)]
    products = [sum(a * b for a, b in zip(x, t["W_enc"][:, f].tolist(), strict=True)) for f in range(D_SAE)]
    if architecture == "gated":
        return [
            max(0.0, product * math.exp(float(t["r_mag"][f])) + float(t["b_mag"][f]))
            if product + float(t["b_gate"][f]) > 0
            else 0.0
            for f, product in enumerate(products)
        ]
    before = [product + float(t["b_enc"][f]) for f, product in enumerate(products)]
    if "jumprelu" in architecture:
        return [max(0.0, z) if z > float(t["threshold"][f]) else 0.0 for f, z in enumerate(before)]
    if "topk" in architecture:
        if config.get("rescale_acts_by_decoder_norm"):
            before = [z * norm_by_loops(t["W_dec"][f]) for f, z in enumerate(before)]
        signed = architecture == "abstopk"
        order = sorted(range(D_SAE), key=lambda f: -abs(before[f]) if signed else -before[f])
        kept = set(order[: config["k"]])
        return [(z if signed else max(0.0, z)) if f in kept else 0.0 for f, z in enumerate(before)]
    return [max(0.0, z) for z in before]


def all_by_loops(config: dict[str, Any], tensors: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    acts = [[encoded_by_loops(config, tensors, vector) for vector in row] for row in x.flatten(2)]
    return torch.tensor(acts, dtype=torch.float64)


def decoded_by_loops(config: dict[str, Any], tensors: dict[str, torch.Tensor], vector: Any, acts: Any) -> list[float]:
    """What the activations of one vector are decoded to."""
    t = {name: tensor.double() for name, tensor in tensors.items()}
    if config.get("rescale_acts_by_decoder_norm"):
        acts = [a / norm_by_loops(t["W_dec"][f]) for f, a in enumerate(acts)]
    columns = range(t["W_dec"].shape[1])
    out = [sum(a * float(t["W_dec"][f, i]) for f, a in enumerate(acts)) + float(t["b_dec"][i]) for i in columns]
    if "transcoder" in config["architecture"]:
        return out
    values = vector.double().tolist()
    _, scale = normalized_by_loops(config, values)
    mean = sum(values) / len(values) if config["normalize_activations"] == "layer_norm" else 0.0
    return [value * scale + mean for value in out]


# --- folders, without sae_lens -----------------------------------------------------------------------------------------


@BY_CASE
@BY_NORMALIZATION
def test_a_folder_encodes_as_plain_loops_do(tmp_path, case, normalization):
    encoder, config, tensors = hand_made(tmp_path / "sae", case, normalize_activations=normalization, dtype="float64")
    x = large_and_small(2, 3)
    expected = all_by_loops(config, tensors, x)
    assert 0.05 < float((expected != 0).double().mean()) < 0.8
    assert float((expected < 0).double().mean()) > 0 or case != "abstopk"
    torch.testing.assert_close(encoder.encode(x), expected, rtol=1e-9, atol=1e-9)
    for features in ([3], [39, 0, 7], list(range(D_SAE))):
        sliced = encoder.encode(x, torch.tensor(features))
        torch.testing.assert_close(sliced, expected[..., features], rtol=1e-9, atol=1e-9)


@BY_CASE
@BY_NORMALIZATION
def test_what_a_feature_writes_is_what_decoding_loses_without_it(tmp_path, case, normalization):
    encoder, config, tensors = hand_made(tmp_path / "sae", case, normalize_activations=normalization)
    x = large_and_small(1, 3)
    acts, scale, rows = encoder.encode(x)[0], encoder.write_scale(x)[0], encoder.decoder_rows(torch.arange(D_SAE))
    assert scale.dtype == rows.dtype == torch.float32
    for position in range(3):
        values = acts[position].double().tolist()
        whole = torch.tensor(decoded_by_loops(config, tensors, x[0, position], values))
        for feature in acts[position].nonzero()[:4, 0].tolist():
            without = [0.0 if f == feature else value for f, value in enumerate(values)]
            lost = whole - torch.tensor(decoded_by_loops(config, tensors, x[0, position], without))
            written = acts[position, feature] * scale[position] * rows[feature]
            torch.testing.assert_close(written.double(), lost.double(), rtol=1e-5, atol=1e-5)


def test_a_folder_follows_the_protocol_and_says_where_it_reads_and_writes(tmp_path):
    encoder, _, _ = hand_made(tmp_path / "sae", "standard")
    assert isinstance(encoder, Encoder)
    assert as_encoder(encoder) is encoder
    assert (encoder.d_in, encoder.d_hidden, encoder.hook_point, encoder.hook_point_out) == (
        D_IN,
        D_SAE,
        HOOK_POINT,
        None,
    )
    assert repr(encoder) == "SaeLensEncoder(standard, d_in=16, d_hidden=40, hook_point='blocks.1.hook_resid_pre')"
    encoder, _, _ = hand_made(tmp_path / "transcoder", "transcoder")
    assert encoder.hook_point_out == "blocks.1.hook_mlp_out"
    assert encoder.decoder_rows(torch.tensor([4, 2])).shape == (2, D_OUT)
    assert sae_vis.load_sae_lens is load_sae_lens


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_heads_are_flattened_in_their_order(tmp_path, heads):
    encoder, _, _ = hand_made(
        tmp_path / "sae", "jumprelu", reshape_activations="hook_z", normalize_activations="layer_norm"
    )
    x = vectors(2, 3, D_IN)
    in_heads = x.reshape(2, 3, heads, D_IN // heads)
    assert torch.equal(encoder.encode(in_heads), encoder.encode(x))
    assert torch.equal(encoder.write_scale(in_heads), encoder.write_scale(x))
    assert encoder.decoder_rows(torch.tensor([1])).shape == (1, D_IN)


@pytest.mark.parametrize("dtype", ["float32", "torch.float64", "float16", "bfloat16"])
@BY_NORMALIZATION
def test_a_folder_is_computed_in_its_own_number_format(tmp_path, dtype, normalization):
    encoder, config, tensors = hand_made(tmp_path / "sae", "standard", dtype=dtype, normalize_activations=normalization)
    wanted = getattr(torch, dtype.removeprefix("torch."))
    x = vectors(2, 3, D_IN)
    assert encoder.encode(x).dtype == wanted
    tolerance = 60 * torch.finfo(wanted).eps
    expected = all_by_loops(config, tensors, x).float()
    torch.testing.assert_close(encoder.encode(x).float(), expected, rtol=tolerance, atol=max(tolerance, 1e-5))
    again = load_sae_lens(tmp_path / "sae", dtype=torch.float32)
    torch.testing.assert_close(again.encode(x), expected, rtol=1e-5, atol=1e-5)
    assert load_sae_lens(tmp_path / "sae", dtype="bfloat16").encode(x).dtype == torch.bfloat16


def test_double_precision_is_kept(tmp_path):
    encoder, config, tensors = hand_made(tmp_path / "sae", "standard", dtype="float64")
    x = vectors(2, 3, D_IN).double() / 3
    torch.testing.assert_close(encoder.encode(x), all_by_loops(config, tensors, x), rtol=1e-12, atol=1e-12)


def test_few_features_cost_few_columns(tmp_path, monkeypatch):
    """The matrix that is multiplied with has as many columns as features are asked for, but for TopK."""
    widths = []
    product = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: widths.append(b.shape[1]) or product(a, b))
    for case, expected in {
        "standard": [3],
        "gated": [3, 3],
        "jumprelu": [3],
        "transcoder": [3],
        "topk": [D_SAE],
    }.items():
        encoder, _, _ = hand_made(tmp_path / case, case)
        widths.clear()
        encoder.encode(vectors(1, 2, D_IN), torch.tensor([0, 1, 2]))
        assert widths == expected


def test_exactly_at_its_threshold_a_feature_is_silent(tmp_path):
    """Planted: the product of each feature is the first number of the vector."""
    tensors = {"W_enc": torch.zeros(D_IN, D_SAE), "W_dec": torch.ones(D_SAE, D_IN), "b_dec": torch.zeros(D_IN)}
    tensors["W_enc"][0] = 1.0
    zeros, halves, x = torch.zeros(D_SAE), torch.full((D_SAE,), 0.5), torch.zeros(1, 3, D_IN)
    x[0, :, 0] = torch.tensor([0.25, 0.5, 0.75])
    jump = {**tensors, "b_enc": zeros, "threshold": halves}
    acts = load_sae_lens(write_folder(tmp_path / "jump", configuration("jumprelu"), jump)).encode(x)
    assert acts[0, :, 0].tolist() == [0.0, 0.0, 0.75]
    gated = {**tensors, "b_gate": -halves, "r_mag": zeros, "b_mag": halves}
    acts = load_sae_lens(write_folder(tmp_path / "gated", configuration("gated"), gated)).encode(x)
    assert acts[0, :, 0].tolist() == [0.0, 0.0, 1.25]


FLAT = {
    "d_in": D_IN,
    "d_sae": D_SAE,
    "dtype": "torch.float32",
    "device": "cpu",
    "hook_point": "blocks.0.hook_mlp_out",
    "hook_point_layer": 0,
    "hook_point_head_index": None,
    "activation_fn_str": "relu",
    "normalize_activations": False,
}


@pytest.mark.parametrize(
    ("changes", "as_now"),
    [
        ({}, {"architecture": "standard"}),
        ({"apply_b_dec_to_input": False}, {"architecture": "standard", "apply_b_dec_to_input": False}),
        ({"hook_name": "blocks.0.hook_mlp_out", "activation_fn": "relu", "sae_lens_version": "5.2.1"}, {}),
        ({"architecture": "gated", "normalize_activations": "layer_norm"}, {"normalize_activations": "layer_norm"}),
        ({"architecture": "jumprelu", "sae_lens_training_version": "4.0.0", "normalize_activations": None}, {}),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 7}}, {"architecture": "topk", "k": 7}),
    ],
)
def test_flat_configurations_from_before_version_6_are_read(tmp_path, changes, as_now):
    flat = {**FLAT, **changes}
    now = configuration(as_now.get("architecture", flat.get("architecture", "standard")), **as_now)
    tensors = random_tensors(now["architecture"])
    encoder = load_sae_lens(write_folder(tmp_path / "old", flat, tensors))
    x = vectors(1, 4, D_IN)
    torch.testing.assert_close(encoder.encode(x), all_by_loops(now, tensors, x).float(), rtol=1e-5, atol=1e-5)
    assert encoder.hook_point == "blocks.0.hook_mlp_out"


def test_a_threshold_saved_as_logarithm_and_a_scaling_factor_of_ones_are_read(tmp_path):
    config, tensors = configuration("jumprelu"), random_tensors("jumprelu")
    old = {name: tensor for name, tensor in tensors.items() if name != "threshold"}
    old |= {"log_threshold": tensors["threshold"].log(), "scaling_factor": torch.ones(D_SAE)}
    x = vectors(1, 4, D_IN)
    acts = load_sae_lens(write_folder(tmp_path / "old", config, old)).encode(x)
    torch.testing.assert_close(acts, all_by_loops(config, tensors, x).float(), rtol=1e-5, atol=1e-5)
    old["scaling_factor"] = torch.full((D_SAE,), 2.0)
    with pytest.raises(
        InputError, match=r"sae_weights\.safetensors holds tensors that a jumprelu has not: scaling_factor"
    ):
        load_sae_lens(write_folder(tmp_path / "old", config, old))


def test_loading_takes_what_scaling_there_was_in_training(tmp_path):
    """With the factor, the autoencoder reads the model's activations as it read the scaled ones."""
    config, tensors = (
        configuration("standard", normalize_activations="expected_average_only_in"),
        random_tensors("standard"),
    )
    folder = write_folder(tmp_path / "sae", config, tensors)
    with pytest.raises(ModelError, match=r"fold_activation_norm_scaling_factor.*scaling_factor=factor.*1\.0 takes"):
        load_sae_lens(folder)
    encoder, x = load_sae_lens(folder, scaling_factor=0.25), vectors(1, 4, D_IN)
    expected = all_by_loops(configuration("standard"), tensors, 0.25 * x).float()
    torch.testing.assert_close(encoder.encode(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(encoder.decoder_rows(torch.arange(3)), tensors["W_dec"][:3] * 4)
    as_it_is = load_sae_lens(folder, scaling_factor=1.0)
    torch.testing.assert_close(as_it_is.encode(0.25 * x), expected, rtol=1e-5, atol=1e-5)
    for factor in (0, -1.0, float("nan"), float("inf"), True, "2", 10**400, 1e39, 1e-39):
        with pytest.raises(InputError, match="scaling_factor must be a positive number"):
            load_sae_lens(folder, scaling_factor=factor)
    with pytest.raises(InputError, match=r"scaling_factor is for.*cfg\.json has 'none'"):
        load_sae_lens(write_folder(tmp_path / "other", configuration("standard"), tensors), scaling_factor=2.0)


def test_a_path_is_an_encoder_too(tmp_path):
    model, tokens = shared("gpt2"), some_tokens()
    encoder, _, _ = hand_made(tmp_path / "sae", "jumprelu")
    data = [
        get_feature_data(one, model, tokens, FeatureVisParams(features=[0, 3, 11], verbose=False))
        for one in (str(tmp_path / "sae"), tmp_path / "sae", encoder)
    ]
    assert data[0] == data[1] == data[2]
    assert data[0].provenance.hook_point == HOOK_POINT  # from the metadata
    with pytest.raises(ModelError, match=r"encoder is a str, 'nowhere', and there is no such folder"):
        as_encoder("nowhere")
    with pytest.raises(ModelError, match=r"encoder_B is a .*Path.*no such folder"):
        as_encoder(tmp_path / ("long" * 200), "encoder_B")
    with pytest.raises(InputError, match=r"cfg\.json"):
        as_encoder(str(tmp_path))


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_to_a_file_is_told_with_what_loads_it(kind, tmp_path):
    file = tmp_path / "my_sae.safetensors"
    file.touch()
    told = rf"encoder is a .*my_sae\.safetensors', which is a file.*give AutoEncoder\.load\('{file}'\)\."
    with pytest.raises(ModelError, match=told):
        as_encoder(kind(file))
    hand_made(tmp_path / "sae", "standard")
    for name in ("cfg.json", "sae_weights.safetensors"):
        with pytest.raises(
            ModelError, match=rf"which is a file.*give the folder that it lies in, '{tmp_path / 'sae'}'\."
        ):
            as_encoder(kind(tmp_path / "sae" / name))


def test_the_features_of_a_folder_are_found_on_a_model(tmp_path):
    """At the heads of attention, with normalisation at run time, against plain loops."""
    model, tokens = native(), some_tokens(bos=False)
    encoder, config, tensors = hand_made(
        tmp_path / "sae",
        "jumprelu",
        normalize_activations="constant_norm_rescale",
        reshape_activations="hook_z",
        metadata={"sae_lens_version": "6.0.0", "hook_name": "blocks.1.attn.hook_z"},
    )
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, names_filter="blocks.1.attn.hook_z", return_cache_object=False)
    acts = all_by_loops(config, tensors, cache["blocks.1.attn.hook_z"])
    data = get_feature_data(
        encoder, model, tokens, FeatureVisParams(features=[0, 5, 9], ignore_tokens=(), verbose=False)
    )
    for index, feature in data.items():
        assert feature.activations.n_active == int((acts[..., index] > 0).sum()) > 0
        assert feature.activations.max == pytest.approx(float(acts[..., index].max()), rel=1e-3)


def test_two_folders_of_one_decoder_are_told_apart(tmp_path):
    """The features of one cannot be shown on a prompt that the other reads."""
    model, tokens = shared("gpt2"), some_tokens()
    encoder, config, tensors = hand_made(tmp_path / "sae", "topk")
    data = get_feature_data(encoder, model, tokens, FeatureVisParams(features=[0, 1], verbose=False))
    get_prompt_data(tmp_path / "sae", model, [4, 5, 6], data)
    other = write_folder(tmp_path / "other", {**config, "k": 6}, tensors)
    with pytest.raises(InputError, match="another encoder"):
        get_prompt_data(other, model, [4, 5, 6], data)
    other = write_folder(tmp_path / "other", config, {**tensors, "b_enc": tensors["b_enc"] + 0.1})
    with pytest.raises(InputError, match="another encoder"):
        get_prompt_data(other, model, [4, 5, 6], data)


def test_two_linear_paths_beside_the_features_are_told_apart(tmp_path):
    encoder, config, tensors = hand_made(tmp_path / "sae", "skip_transcoder")
    other = load_sae_lens(write_folder(tmp_path / "other", config, {**tensors, "W_skip": tensors["W_skip"] + 0.1}))
    again = load_sae_lens(write_folder(tmp_path / "again", config, tensors))
    assert other.digest() != encoder.digest() == again.digest()


# --- damaged and foreign folders ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"cfg\.json is not the JSON"),
        ("{", r"cfg\.json is not the JSON"),
        ("[1]", r"cfg\.json must hold a JSON object, got list"),
        ("[" * 100_000, r"cfg\.json is not the JSON"),
        ("9" * 5000, r"cfg\.json is not the JSON"),
        ('{"d_in": "é"}'.encode("latin-1"), r"cfg\.json is not the JSON"),
    ],
    ids=["empty", "cut", "list", "deep", "huge", "latin"],
)
def test_a_damaged_configuration_is_told(tmp_path, text, message):
    folder = write_folder(tmp_path / "sae", "{}", random_tensors("standard"))
    (folder / "cfg.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message):
        load_sae_lens(folder)


def test_missing_files_are_told(tmp_path):
    with pytest.raises(
        InputError, match=r"Cannot read .*nowhere/cfg\.json.*holds cfg\.json and sae_weights\.safetensors"
    ):
        load_sae_lens(tmp_path / "nowhere")
    (tmp_path / "cfg.json").mkdir()
    with pytest.raises(InputError, match=r"Cannot read .*cfg\.json"):
        load_sae_lens(tmp_path)
    folder = write_folder(tmp_path / "sae", configuration("standard"), random_tensors("standard"))
    (folder / "sae_weights.safetensors").unlink()
    with pytest.raises(InputError, match=r"There is no .*sae_weights\.safetensors"):
        load_sae_lens(folder)


@pytest.mark.parametrize("content", [b"", b"not weights", "cut"])
def test_damaged_weights_are_told(tmp_path, content):
    folder = write_folder(tmp_path / "sae", configuration("standard"), random_tensors("standard"))
    file = folder / "sae_weights.safetensors"
    file.write_bytes(file.read_bytes()[:-9] if content == "cut" else content)
    with pytest.raises(InputError, match=r"sae_weights\.safetensors is damaged, or no safetensors file"):
        load_sae_lens(folder)


@pytest.mark.parametrize(
    ("case", "changes", "error", "message"),
    [
        (
            "standard",
            {"architecture": "crosscoder"},
            ModelError,
            r"cfg\.json: the architecture 'crosscoder' cannot be read",
        ),
        (
            "standard",
            {"architecture": "temporal"},
            ModelError,
            "'temporal' cannot be read without SAELens.*load_from_disk",
        ),
        ("standard", {"architecture": "matching_pursuit"}, ModelError, "without SAELens"),
        ("standard", {"architecture": "batchtopk"}, ModelError, "rest of the batch.*save_inference_model"),
        ("standard", {"architecture": "matryoshka_batchtopk"}, ModelError, "rest of the batch"),
        ("standard", {"architecture": 3}, InputError, r"cfg\.json: architecture must be str, got 3"),
        ("standard", {"apply_b_dec_to_input": "yes"}, InputError, "apply_b_dec_to_input must be bool, got 'yes'"),
        (
            "standard",
            {"normalize_activations": "softmax"},
            ModelError,
            "normalize_activations='softmax'.*expected one of none",
        ),
        ("standard", {"normalize_activations": "constant_scalar_rescale"}, ModelError, "expected one of none"),
        ("standard", {"normalize_activations": "covariance_whitening"}, ModelError, "fold_activation_whitening"),
        ("standard", {"normalize_activations": 3}, InputError, "normalize_activations must be str"),
        ("standard", {"dtype": "int8"}, InputError, "dtype must be one of float32.*got 'int8'"),
        ("standard", {"dtype": 7}, InputError, "dtype must be one of float32"),
        ("standard", {"d_in": 17}, InputError, "d_in is 17 in the configuration, but 16 in the weights"),
        ("standard", {"d_sae": 41}, InputError, "d_sae is 41 in the configuration, but 40 in the weights"),
        ("transcoder", {"d_out": 13}, InputError, "d_out is 13 in the configuration, but 12 in the weights"),
        (
            "transcoder",
            {"apply_b_dec_to_input": True},
            InputError,
            "a transcoder cannot have apply_b_dec_to_input=True",
        ),
        ("topk", {"k": "5"}, InputError, "k must be int, got '5'"),
        ("topk", {"k": True}, InputError, "k must be int, got True"),
        ("topk", {"k": 0}, InputError, "k must be an int from 1 to the 40 features, got 0"),
        ("topk", {"k": 41}, InputError, "k must be an int from 1 to the 40 features, got 41"),
        ("standard", {"metadata": {"sae_lens_version": "6.1.0", "hook_name": 4}}, InputError, "hook_name must be str"),
        (
            "standard",
            {"metadata": {"sae_lens_version": "6.1.0", "hook_head_index": 3}},
            ModelError,
            r"single head \(hook_head_index=3\).*zeros for the others",
        ),
        (
            "standard",
            {"metadata": {}, "activation_fn": "tanh-relu"},
            ModelError,
            "'tanh-relu' is unknown; expected relu",
        ),
        ("standard", {"metadata": None, "activation_fn": "topk"}, InputError, "k must be int, got None"),
        (
            "standard",
            {"metadata": {"sae_lens_version": "9" * 5000}, "activation_fn": "selu"},
            ModelError,
            "'selu' is unknown; expected relu",
        ),
        ("standard", {"dtype": "d" * 10_000}, InputError, "got 'd{50,100} … d{40,50}'.$"),
    ],
)
def test_configurations_that_cannot_be_used_are_told(tmp_path, case, changes, error, message):
    config = configuration(case, **changes)
    folder = write_folder(tmp_path / "sae", config, random_tensors(case))
    with pytest.raises(error, match=message):
        load_sae_lens(folder)


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        (
            "standard",
            {"W_enc": None},
            "has no W_enc: a standard autoencoder needs W_enc, b_enc, W_dec, b_dec; got W_dec, b_dec",
        ),
        ("standard", {"W_dec": None}, "has no W_dec"),
        ("gated", {"b_mag": None, "r_mag": None}, "has no r_mag, b_mag"),
        ("jumprelu", {"threshold": None}, "has no threshold"),
        ("standard", {"threshold": torch.zeros(D_SAE)}, "holds tensors that a standard has not: threshold"),
        ("transcoder", {"W_skip": torch.zeros(D_OUT, D_IN)}, "holds tensors that a transcoder has not: W_skip"),
        ("standard", {"W_enc": torch.zeros(D_IN)}, r"W_enc must be a matrix, got shape \(16,\)"),
        ("standard", {"W_enc": torch.zeros(D_IN, 0)}, "W_enc must be a matrix"),
        ("standard", {"W_enc": torch.zeros(D_IN, 41)}, r"W_enc must have shape \(16, 40\), got \(16, 41\)"),
        (
            "standard",
            {"W_dec": torch.zeros(D_SAE, 17)},
            "reads width 16, but W_dec writes width 17, and it is no transcoder",
        ),
        ("standard", {"b_enc": torch.zeros(1)}, r"b_enc must have shape \(40,\), got \(1,\)"),
        ("transcoder", {"b_dec": torch.zeros(D_IN)}, r"b_dec must have shape \(12,\), got \(16,\)"),
        ("skip_transcoder", {"W_skip": torch.zeros(D_IN, D_OUT)}, r"W_skip must have shape \(12, 16\)"),
        (
            "standard",
            {"b_enc": torch.zeros(D_SAE, dtype=torch.int64)},
            "b_enc must hold floating-point numbers, got torch.int64",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_told(tmp_path, case, changes, message):
    tensors = {**random_tensors(case), **changes}
    folder = write_folder(
        tmp_path / "sae", configuration(case), {name: tensor for name, tensor in tensors.items() if tensor is not None}
    )
    with pytest.raises(InputError, match=message) as caught:
        load_sae_lens(folder)
    assert "sae_weights.safetensors" in str(caught.value)


def test_a_foreign_folder_is_told(tmp_path):
    folder = write_folder(tmp_path / "model", {"model_type": "gpt2", "n_layer": 2}, {"wte.weight": torch.zeros(3, 4)})
    with pytest.raises(InputError, match=r"holds tensors that a standard has not: wte\.weight"):
        load_sae_lens(folder)


def test_a_device_or_number_format_that_is_none_is_told(tmp_path):
    folder = write_folder(tmp_path / "sae", configuration("standard"), random_tensors("standard"))
    with pytest.raises(InputError, match="The device 'abacus' cannot be used"):
        load_sae_lens(folder, device="abacus")
    for dtype in ("int8", torch.int32, 3):
        with pytest.raises(InputError, match="dtype must be one of float32"):
            load_sae_lens(folder, dtype=dtype)


@pytest.mark.parametrize("folder", [None, 3, b"sae", ["sae"]])
def test_what_is_no_path_is_told(folder):
    with pytest.raises(InputError, match="load_sae_lens needs the path of a folder, got"):
        load_sae_lens(folder)


@pytest.mark.parametrize(
    ("formats", "told"),
    [
        ((torch.float16, torch.float32), r"torch\.float16, torch\.float32"),
        ((torch.float8_e5m2,) * 2, r"torch\.float8_e5m2"),
    ],
)
def test_without_a_number_format_the_tensors_must_have_one(tmp_path, formats, told):
    config, tensors = configuration("standard"), random_tensors("standard")
    del config["dtype"]
    typed = {name: tensor.to(formats[name != "W_enc"]) for name, tensor in tensors.items()}
    folder = write_folder(tmp_path / "sae", config, typed)
    with pytest.raises(
        InputError, match=rf"holds numbers of {told}, and .*cfg\.json names no dtype to compute in: give dtype="
    ):
        load_sae_lens(folder)
    assert load_sae_lens(folder, dtype="float32").dtype == torch.float32


@pytest.mark.parametrize("factor", [0, 0.0, -1.0, float("nan"), float("inf"), 10**400, "1", True])
def test_a_factor_that_cannot_be_undone_is_told(factor):
    config = configuration("temporal", activation_normalization_factor=factor)
    with pytest.raises(InputError, match=r"cfg: activation_normalization_factor must be"):
        Settings.of(config, "cfg")
    assert Settings.of({**config, "activation_normalization_factor": 2}, "cfg").scalar == 2.0


# --- objects of sae_lens -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lens() -> Any:
    with warnings.catch_warnings():  # of what it imports
        warnings.simplefilter("ignore")
        return pytest.importorskip(
            "sae_lens", reason="sae_lens is not installed (it cannot be beside TransformerLens 4)", exc_type=ImportError
        )


def fill(sae: Any, seed: int = 0) -> Any:
    """Random weights, in the object's own number format."""
    architecture = sae.cfg.architecture()
    tensors = random_tensors("transcoder" if "transcoder" in architecture else architecture, seed=seed)
    tensors |= random_tensors("jumprelu", seed=seed) if architecture == "jumprelu" else {}
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            value = tensors.get(name)
            if value is None or value.shape != parameter.shape:
                value = torch.randn(parameter.shape, generator=generator) * 0.3
                value = value.abs() if name == "threshold" else value
            parameter.copy_(value)
        if architecture == "matching_pursuit":  # with rows of length one, as it is trained, it comes to an end
            sae.W_dec /= sae.W_dec.norm(dim=-1, keepdim=True)
    return sae


def make(lens: Any, case: str, **changes: Any) -> Any:
    return fill(lens.SAE.from_dict(configuration(case, **changes)))


@torch.no_grad()
def own_encode(sae: Any, x: torch.Tensor) -> torch.Tensor:
    acts = sae.encode(x)
    for name in ("ln_mu", "ln_std", "x_norm_coeff"):
        vars(sae).pop(name, None)
    return acts


OBJECTS_ONLY = {
    "matching_pursuit": {"residual_threshold": 0.01, "max_iterations": 6},
    "temporal": {
        "n_heads": 2,
        "bottleneck_factor": 2,
        "kval_topk": 5,
        "normalize_activations": "constant_scalar_rescale",
        "activation_normalization_factor": 0.5,
    },
}


@BY_CASE
@BY_NORMALIZATION
def test_an_object_encodes_as_it_does_itself(lens, case, normalization):
    sae = make(lens, case, normalize_activations=normalization)
    encoder, x = as_encoder(sae), large_and_small(3, 5)
    expected = own_encode(sae, x)
    assert 0.05 < float((expected != 0).double().mean()) < 0.8
    assert encoder.own_encode is None  # by the formula, sliced
    torch.testing.assert_close(encoder.encode(x), expected, rtol=0, atol=1e-5)
    for features in ([3], [39, 0, 7], list(range(D_SAE))):
        torch.testing.assert_close(
            encoder.encode(x, torch.tensor(features)), expected[..., features], rtol=0, atol=1e-5
        )
    assert encoder.tensors["W_enc"].data_ptr() == sae.W_enc.data_ptr()
    assert not encoder.encode(x).requires_grad
    assert not encoder.decoder_rows(torch.tensor([0])).requires_grad


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("case", ["standard", "gated", "jumprelu", "topk-rescaled", "jumprelu_transcoder"])
@BY_NORMALIZATION
def test_an_object_is_computed_in_its_own_number_format(lens, case, dtype, normalization):
    sae = make(lens, case, dtype=dtype, normalize_activations=normalization)
    encoder, x = as_encoder(sae), vectors(3, 5, D_IN)
    expected = own_encode(sae, x)
    assert encoder.encode(x).dtype == expected.dtype == getattr(torch, dtype)
    assert torch.equal(encoder.encode(x), expected)
    chosen = torch.arange(0, D_SAE, 2)
    tolerance = 8 * torch.finfo(expected.dtype).eps
    close = torch.isclose(encoder.encode(x, chosen), expected[..., chosen], rtol=tolerance, atol=tolerance)
    assert float(close.double().mean()) > 0.995  # one beside a threshold may fall on its other side


@pytest.mark.parametrize("case", [*CASES, *OBJECTS_ONLY])
@BY_NORMALIZATION
def test_what_a_feature_writes_is_what_the_objects_decode_loses_without_it(lens, case, normalization):
    options = {**OBJECTS_ONLY.get(case, {}), "normalize_activations": normalization}
    sae = make(lens, case, **options)
    encoder, x = as_encoder(sae), large_and_small(2, 5)

    @torch.no_grad()
    def decoded(acts: torch.Tensor) -> torch.Tensor:
        sae.encode(x)  # leaves what decode takes away
        return sae.decode(acts)

    acts, scale, rows = encoder.encode(x), encoder.write_scale(x), encoder.decoder_rows(torch.arange(D_SAE))
    assert scale.shape == x.shape[:2]
    assert scale.dtype == torch.float32
    whole = decoded(acts)
    for feature in range(D_SAE):
        without = acts.clone()
        without[..., feature] = 0.0
        written = (acts[..., feature] * scale)[..., None] * rows[feature]
        torch.testing.assert_close(written, whole - decoded(without), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("case", CASES)
@BY_NORMALIZATION
def test_features_and_bias_are_together_what_the_object_gives(lens, case, normalization):
    sae = make(lens, case, normalize_activations=normalization)
    with torch.no_grad():
        for name in ("W_skip", "b_dec"):
            if hasattr(sae, name):
                weight = getattr(sae, name)
                weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(5)))
    encoder, x = as_encoder(sae), large_and_small(2, 5)
    with torch.no_grad():
        expected = sae(x).flatten(2)
    made = encoder.decoder_bias(x)
    assert made.dtype == torch.float32
    rows = encoder.decoder_rows(torch.arange(D_SAE))
    made = made + encoder.write_scale(x)[..., None] * (encoder.encode(x) @ rows)
    assert encoder.cannot_reconstruct == ""
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=3e-5)


@pytest.mark.parametrize("case", OBJECTS_ONLY)
def test_what_only_the_object_can_encode_goes_through_it(lens, case):
    sae = make(lens, case, **OBJECTS_ONLY[case])
    encoder, x = as_encoder(sae), vectors(3, 5, D_IN)
    expected = own_encode(sae, x)
    assert encoder.own_encode is not None
    assert (encoder.d_in, encoder.d_hidden) == (D_IN, D_SAE)
    torch.testing.assert_close(encoder.encode(x), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(encoder.encode(x, torch.tensor([4, 1])), expected[..., [4, 1]], rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["object", "own"])
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_an_object_of_hook_z_reads_heads(lens, heads, mode):
    metadata = {"sae_lens_version": "6.54.12", "hook_name": "blocks.0.attn.hook_z"}
    sae = make(lens, "standard", reshape_activations="hook_z", normalize_activations="layer_norm", metadata=metadata)
    if mode == "own":
        sae.activation_fn = torch.nn.Softplus()
    before, x = dict(vars(sae)), vectors(2, 3, heads, D_IN // heads)
    encoder = as_encoder(sae)
    assert (encoder.own_encode is None) == (mode == "object")
    acts, scale = encoder.encode(x), encoder.write_scale(x)
    assert dict(vars(sae)) == before
    torch.testing.assert_close(acts, own_encode(sae, x), rtol=0, atol=1e-5)
    torch.testing.assert_close(scale, x.flatten(2).std(-1))
    assert encoder.hook_point == "blocks.0.attn.hook_z"


@BY_NORMALIZATION
@pytest.mark.parametrize("case", ["standard", "jumprelu", "matching_pursuit", "temporal"])
def test_nothing_is_left_on_the_object(lens, case, normalization):
    sae = make(lens, case, **{**OBJECTS_ONLY.get(case, {}), "normalize_activations": normalization})
    sae.train()
    weights = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    before = dict(vars(sae))
    encoder = as_encoder(sae)
    x = vectors(2, 5, D_IN)
    encoder.encode(x)
    encoder.encode(x, torch.tensor([1]))
    encoder.write_scale(x)
    encoder.decoder_rows(torch.tensor([1]))
    assert dict(vars(sae)) == before
    assert not {"ln_mu", "ln_std", "x_norm_coeff"} & set(vars(sae))
    assert all(torch.equal(weights[name], tensor) for name, tensor in sae.state_dict().items())
    assert sae.training
    assert all(module.training for module in sae.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in sae.parameters())
    assert torch.is_grad_enabled()


# -- folders that sae_lens writes --


@BY_CASE
@BY_NORMALIZATION
def test_a_folder_that_sae_lens_saved_encodes_as_what_was_saved(lens, tmp_path, case, normalization):
    sae = make(lens, case, normalize_activations=normalization)
    sae.save_model(tmp_path / "sae")
    encoder, x = load_sae_lens(tmp_path / "sae"), vectors(3, 5, D_IN)
    torch.testing.assert_close(encoder.encode(x), own_encode(sae, x), rtol=0, atol=1e-5)
    assert encoder.digest() == as_encoder(sae).digest()
    assert (encoder.hook_point, encoder.hook_point_out) == (as_encoder(sae).hook_point, as_encoder(sae).hook_point_out)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_folder_in_half_precision_encodes_as_what_was_saved(lens, tmp_path, dtype):
    sae = make(lens, "jumprelu", dtype=dtype)
    sae.save_model(tmp_path / "sae")
    x = vectors(3, 5, D_IN)
    assert torch.equal(load_sae_lens(tmp_path / "sae").encode(x), own_encode(sae, x))


@pytest.mark.parametrize("changes", [{}, {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 7}}])
def test_a_flat_folder_encodes_as_sae_lens_reads_it(lens, tmp_path, changes):
    folder = write_folder(tmp_path / "old", {**FLAT, **changes}, random_tensors("standard"))
    sae, x = lens.SAE.load_from_disk(folder), vectors(3, 5, D_IN)
    encoder = load_sae_lens(folder)
    torch.testing.assert_close(encoder.encode(x), own_encode(sae, x), rtol=0, atol=1e-5)
    assert encoder.hook_point == sae.cfg.metadata.hook_name == "blocks.0.hook_mlp_out"


@pytest.mark.parametrize("case", ["standard", "gated", "jumprelu", "topk", "topk-rescaled", "abstopk"])
def test_folding_by_us_is_folding_by_sae_lens(lens, tmp_path, case):
    sae = make(lens, case, normalize_activations="expected_average_only_in")
    sae.save_model(tmp_path / "sae")
    with pytest.raises(ModelError, match=r"encoder \(a .*SAE\).*fold_activation_norm_scaling_factor\(factor\)"):
        as_encoder(sae)
    encoder, x = load_sae_lens(tmp_path / "sae", scaling_factor=0.3), vectors(3, 5, D_IN)
    sae.fold_activation_norm_scaling_factor(0.3)
    torch.testing.assert_close(encoder.encode(x), own_encode(sae, x), rtol=0, atol=1e-5)
    torch.testing.assert_close(as_encoder(sae).encode(x), own_encode(sae, x), rtol=0, atol=1e-5)
    rows = torch.arange(D_SAE)
    torch.testing.assert_close(encoder.decoder_rows(rows), as_encoder(sae).decoder_rows(rows), rtol=1e-5, atol=1e-6)


# -- objects in training --


def in_training(lens: Any, architecture: str, **options: Any) -> Any:
    """A training object of this architecture, filled."""
    classes = {
        "standard": (lens.StandardTrainingSAE, lens.StandardTrainingSAEConfig),
        "gated": (lens.GatedTrainingSAE, lens.GatedTrainingSAEConfig),
        "jumprelu": (lens.JumpReLUTrainingSAE, lens.JumpReLUTrainingSAEConfig),
        "topk": (lens.TopKTrainingSAE, lens.TopKTrainingSAEConfig),
        "batchtopk": (lens.BatchTopKTrainingSAE, lens.BatchTopKTrainingSAEConfig),
        "matryoshka_batchtopk": (lens.MatryoshkaBatchTopKTrainingSAE, lens.MatryoshkaBatchTopKTrainingSAEConfig),
    }
    kind, config = classes[architecture]
    return fill(kind(config(d_in=D_IN, d_sae=D_SAE, **options)))


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("standard", {}),
        ("standard", {"normalize_activations": "layer_norm"}),
        ("gated", {}),
        ("jumprelu", {}),
        ("jumprelu", {"dtype": "bfloat16"}),
        ("topk", {"k": 5}),
        ("topk", {"k": 5, "use_sparse_activations": True}),
        ("topk", {"k": 5, "rescale_acts_by_decoder_norm": False}),
    ],
)
def test_what_training_returns_encodes_as_it_does_itself(lens, architecture, options):
    sae = in_training(lens, architecture, **options)
    encoder, x = as_encoder(sae), vectors(3, 5, D_IN)
    expected = own_encode(sae, x)
    expected = expected.to_dense() if expected.is_sparse else expected
    assert 0.05 < float((expected != 0).double().mean()) < 0.9
    torch.testing.assert_close(encoder.encode(x), expected, rtol=0, atol=1e-5)
    assert not encoder.encode(x).requires_grad


@pytest.mark.parametrize("lowest", [-0.5, -1e-3])
def test_a_threshold_below_zero_lets_through_what_training_lets_through(lens, lowest):
    """However little it is, so that no trial would find it."""
    sae = in_training(lens, "jumprelu")
    with torch.no_grad():
        sae.threshold.copy_(torch.linspace(lowest, 0.5, D_SAE))
        x = vectors(3, 5, D_IN)
        sae.b_enc[0] = lowest / 2 - (x[0, 0] - sae.b_dec) @ sae.W_enc[:, 0]  # feature 0 lies between the two there
    encoder, expected = as_encoder(sae), own_encode(sae, x)
    assert float(expected[0, 0, 0]) == pytest.approx(lowest / 2, abs=1e-5)
    torch.testing.assert_close(encoder.encode(x), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "options"), [("batchtopk", {}), ("matryoshka_batchtopk", {"matryoshka_widths": [10, D_SAE]})]
)
def test_what_depends_on_the_batch_is_refused_and_what_it_saves_is_read(lens, tmp_path, architecture, options):
    sae = in_training(lens, architecture, k=5, **options)
    sae.topk_threshold.fill_(0.6)
    with pytest.raises(ModelError, match=r"rest of the batch.*save_inference_model"):
        as_encoder(sae)
    sae.save_inference_model(tmp_path / "inference")
    inference, x = lens.SAE.load_from_disk(tmp_path / "inference"), vectors(3, 5, D_IN)
    assert inference.cfg.architecture() == "jumprelu"
    for encoder in (load_sae_lens(tmp_path / "inference"), as_encoder(inference)):
        torch.testing.assert_close(encoder.encode(x), own_encode(inference, x), rtol=0, atol=1e-5)
    sae.save_model(tmp_path / "training")
    with pytest.raises(ModelError, match="rest of the batch"):
        load_sae_lens(tmp_path / "training")


# -- objects that go their own way --


def test_an_object_with_another_encode_keeps_it(lens):
    class Doubling(lens.StandardSAE):
        def encode(self, x):
            return 2 * super().encode(x)

    sae = fill(Doubling(lens.StandardSAEConfig(D_IN, D_SAE)))
    encoder, x = as_encoder(sae), vectors(3, 5, D_IN)
    assert encoder.own_encode is not None
    expected = own_encode(sae, x)
    assert torch.equal(encoder.encode(x), expected)
    assert torch.equal(encoder.encode(x, torch.tensor([5, 2])), expected[..., [5, 2]])


def test_objects_of_an_unknown_kind_are_told_apart_by_all_that_they_hold(lens):
    """Of these the adapter itself needs no more than the decoder."""
    saes = [make(lens, "temporal", **OBJECTS_ONLY["temporal"]) for _ in range(3)]
    with torch.no_grad():
        name, changed = next((n, p) for n, p in saes[2].named_parameters() if n not in ("W_dec", "b_dec"))
        changed.add_(0.1)
    one, same, other = (as_encoder(sae).digest() for sae in saes)
    assert one == same != other, name


def test_an_object_with_hooks_of_the_users_keeps_them_and_they_are_called_for_the_tokens_only(lens):
    sae, seen, x = make(lens, "standard"), [], vectors(3, 5, D_IN)
    sae.add_hook("hook_sae_acts_post", lambda acts, hook: seen.append(len(acts)) or acts * 0.5)
    encoder = as_encoder(sae)
    assert not seen
    acts = encoder.encode(x)
    assert seen == [3]
    sae.reset_hooks()
    torch.testing.assert_close(acts, 0.5 * own_encode(sae, x))


def test_an_object_that_depends_on_the_batch_without_saying_so_is_refused(lens):
    class Centring(lens.StandardSAE):
        def encode(self, x):
            return super().encode(x - x.mean((0, 1)))

    with pytest.raises(ModelError, match=r"encoder \(a Centring\): its activations depend on the rest of the batch"):
        as_encoder(fill(Centring(lens.StandardSAEConfig(D_IN, D_SAE))))


def test_an_object_that_writes_otherwise_than_it_says_is_refused(lens):
    class Louder(lens.StandardSAE):
        def decode(self, acts):
            return super().decode(3 * acts)

    with pytest.raises(ModelError, match=r"Louder\): its decode does not write its features"):
        as_encoder(fill(Louder(lens.StandardSAEConfig(D_IN, D_SAE))))
    sae = make(lens, "standard", normalize_activations="layer_norm")
    sae.fold_activation_norm_scaling_factor(1.0)  # says "none" now, and goes on normalising
    with pytest.raises(ModelError, match="does not write its features as its configuration says"):
        as_encoder(sae)


def test_an_object_that_cannot_encode_is_told(lens):
    sae = make(lens, "standard").half()  # which it does not notice
    with pytest.raises(
        ModelError, match=r"encoder_B \(a StandardSAE\) fails on vectors of width 16.*sae\.to\(dtype=…\)"
    ):
        as_encoder(sae, "encoder_B")
    assert as_encoder(sae.to(dtype=torch.float16)).encode(vectors(1, 2, D_IN)).dtype == torch.float16


def test_other_objects_of_sae_lens_are_no_autoencoders(lens):
    for thing in (make(lens, "standard").cfg, lens.SAE):
        with pytest.raises(ModelError, match="encoder"):
            as_encoder(thing)
    with pytest.raises(ModelError, match=r"StandardSAEConfig\) comes from SAELens, but is no autoencoder"):
        as_encoder(make(lens, "standard").cfg)
    sae = make(lens, "standard", metadata={"sae_lens_version": "6.54.12", "hook_head_index": 2})
    with pytest.raises(ModelError, match="single head"):
        as_encoder(sae)


# -- end to end --


def old_model() -> Any:
    """TransformerLens' own model of versions 2 and 3."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformer_lens import HookedTransformer, HookedTransformerConfig

        config = HookedTransformerConfig(
            n_layers=2,
            d_model=D_IN,
            n_heads=2,
            d_head=8,
            d_mlp=24,
            n_ctx=N_CTX,
            d_vocab=D_VOCAB,
            act_fn="gelu",
            normalization_type="LN",
            seed=0,
        )
        return HookedTransformer(config).eval()


@pytest.mark.parametrize("build", [old_model, native], ids=["HookedTransformer", "TransformerBridge"])
@pytest.mark.parametrize(
    ("case", "hook_point", "options"),
    [
        ("standard", "blocks.1.hook_resid_pre", {}),
        ("topk-rescaled", "blocks.1.hook_resid_post", {"normalize_activations": "layer_norm"}),
        ("jumprelu", "blocks.1.attn.hook_z", {"reshape_activations": "hook_z"}),
    ],
)
def test_the_features_of_an_object_are_shown_on_a_model(lens, tmp_path, build, case, hook_point, options):
    model, tokens = build(), some_tokens(bos=False)
    sae = make(lens, case, metadata={"sae_lens_version": "6.54.12", "hook_name": hook_point}, **options)
    state = dict(vars(sae))
    data = get_feature_data(sae, model, tokens, FeatureVisParams(ignore_tokens=(), verbose=False))
    assert dict(vars(sae)) == state
    assert data.provenance.hook_point == hook_point
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, names_filter=hook_point, return_cache_object=False)
    acts = own_encode(sae, cache[hook_point])
    for index in range(D_SAE):
        feature = data[index].activations
        assert feature.n_active == int((acts[..., index] > 0).sum())
        assert (feature.max or 0.0) == pytest.approx(float(acts[..., index].max()), rel=1e-3, abs=1e-6)
    assert any(feature.activations.n_active for feature in data.values())
    prompt = get_prompt_data(sae, model, tokens[0, :6], data)
    assert prompt.n_active == (acts[0, :6] > 0).sum(-1).tolist()
    data.save_html(tmp_path / "features.html")
    sae.save_model(tmp_path / "sae")
    again = get_feature_data(tmp_path / "sae", model, tokens, FeatureVisParams(ignore_tokens=(), verbose=False))
    assert again == data


def written_by(sae: Any, x: torch.Tensor, feature: int) -> torch.Tensor:
    """What the object's own decode writes less when a feature is taken out of its own activations, ``[rows, seq, d]``."""
    with torch.no_grad():
        acts = sae.encode(x)
        whole = sae.decode(acts)
        sae.encode(x)  # decoding takes the scale away that encoding leaves on the object
        return whole - sae.decode(acts.index_fill(-1, torch.tensor([feature]), 0.0))


@pytest.mark.parametrize("build", [old_model, native], ids=["HookedTransformer", "TransformerBridge"])
@pytest.mark.parametrize(
    ("case", "hook_point_out", "options"),
    [
        ("standard", None, {"normalize_activations": "layer_norm"}),
        ("topk-rescaled", None, {"normalize_activations": "constant_norm_rescale"}),
        ("transcoder", "blocks.1.hook_mlp_out", {"d_out": D_IN}),
        ("jumprelu_transcoder", "blocks.1.hook_mlp_out", {"d_out": D_IN}),
    ],
)
def test_effects_are_those_of_what_the_objects_own_decode_writes(lens, build, case, hook_point_out, options):
    """Taken out by TransformerLens' own hooks, one feature and row at a time."""
    model, tokens = build(), some_tokens(bos=False)
    metadata = {"sae_lens_version": "6.54.12", "hook_name": HOOK_POINT, "hook_name_out": hook_point_out}
    sae = make(lens, case, metadata=metadata, **options)
    fvp = FeatureVisParams(
        features=range(8), ablation="full", ignore_tokens=(), verbose=False, first_group_size=4, n_groups=0
    )
    data = get_feature_data(sae, model, tokens, fvp)
    assert data.provenance.hook_point_out == hook_point_out
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, names_filter=HOOK_POINT, return_cache_object=False)
        clean = torch.log_softmax(model(tokens).double(), -1)
    n_checked = 0
    for feature in data:
        contribution = written_by(sae, cache[HOOK_POINT], feature)
        for sequence in (s for group in data[feature].sequences.groups for s in group.sequences):
            row = tokens[sequence.row, None]

            def remove(value, hook, taken=contribution[sequence.row]):
                return value - taken

            with torch.no_grad():
                logits = model.run_with_hooks(row, fwd_hooks=[(hook_point_out or HOOK_POINT, remove)])
            without = torch.log_softmax(logits[0].double(), -1)
            for at, loss in enumerate(sequence.loss_contribution):
                position = sequence.start + at
                if loss:
                    token = row[0, position]
                    expected = without[position - 1, token] - clean[sequence.row, position - 1, token]
                    assert loss == pytest.approx(float(expected), abs=2e-4)
                    n_checked += 1
    assert n_checked > 20


def test_every_architecture_of_sae_lens_is_known_or_refused_by_name(lens):
    """A new one in a later version would show here."""
    from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

    assert set(SAE_CLASS_REGISTRY) == {*KINDS, *OBJECTS_ONLY}
    assert set(SAE_TRAINING_CLASS_REGISTRY) - set(SAE_CLASS_REGISTRY) == {"batchtopk", "matryoshka_batchtopk"}


def test_sae_lens_is_never_imported_by_us():
    program = (
        "import sys, sae_vis.data_fetching_fns; from sae_vis import AutoEncoder, AutoEncoderConfig; "
        "from sae_vis._sae_adapters import as_encoder; as_encoder(AutoEncoder(AutoEncoderConfig(2, 3))); "
        "assert 'sae_lens' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
