"""The original's autoencoders from the Hugging Face hub, and the walk-through that uses them, on files written here.

Nothing is replaced but the download: of a file of the hub comes one of a folder, as it would come from the hub's cache.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
import torch
from brute_force import activations, random_encoder
from hf_models import BOS, D_VOCAB, EOS, save_tokenizer
from huggingface_hub import errors

from sae_vis import AutoEncoder, InputError, MultiFeatureData

D_IN, D_HIDDEN = 24, 40
NOTEBOOK = Path(__file__).resolve().parents[1] / "demo.ipynb"


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    encoder = random_encoder(D_IN, D_HIDDEN, seed=seed)
    return OrderedDict((name, weight.detach().clone()) for name, weight in encoder.state_dict().items())


@pytest.fixture
def hub(tmp_path, monkeypatch) -> SimpleNamespace:
    """A folder that stands for the hub: ``repository/file``; what is asked for is written down."""
    root, asked = tmp_path / "hub", []
    root.mkdir()

    def download(repo_id: str, filename: str, **_options: Any) -> str:
        asked.append((repo_id, filename))
        path = root / repo_id / filename
        if not path.is_file():
            raise errors.EntryNotFoundError(f"404 Client Error.\n\nEntry Not Found for url: https://…/{filename}.")
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    (root / "NeelNanda/sparse_autoencoder").mkdir(parents=True)
    return SimpleNamespace(root=root, asked=asked, saes=root / "NeelNanda/sparse_autoencoder")


@pytest.mark.parametrize(
    ("version", "file"),
    [("run1", "25.pt"), ("run2", "47.pt"), (25, "25.pt"), ("25", "25.pt"), ("gelu-2l_L0_51", "gelu-2l_L0_51.pt")],
)
@torch.no_grad()
def test_each_run_is_its_last_checkpoint_and_other_names_are_passed_on(hub, version, file):
    torch.save(weights(seed=3), hub.saes / file)
    encoder = AutoEncoder.load_from_hf(version)
    assert hub.asked == [("NeelNanda/sparse_autoencoder", file)]
    assert (encoder.d_in, encoder.d_hidden, encoder.cfg.apply_b_dec_to_input) == (D_IN, D_HIDDEN, True)
    for name, weight in weights(seed=3).items():
        assert torch.equal(getattr(encoder, name), weight)
    x = torch.randn(2, 3, D_IN, generator=torch.Generator().manual_seed(1))
    expected = activations(random_encoder(D_IN, D_HIDDEN, seed=3), x)  # (x - b_dec) @ W_enc + b_enc by loops
    torch.testing.assert_close(encoder.encode(x).double(), expected, rtol=1e-5, atol=1e-6)


def test_the_first_run_is_the_default_and_the_device_is_told(hub):
    torch.save(weights(), hub.saes / "25.pt")
    assert AutoEncoder.load_from_hf(device="cpu").W_enc.device == torch.device("cpu")
    assert AutoEncoder.load_from_hf(device=torch.device("meta")).W_enc.device.type == "meta"
    with pytest.raises(InputError, match="The device 'abacus' cannot be used"):
        AutoEncoder.load_from_hf("run1", device="abacus")


def is_one_sentence(message: str) -> bool:
    return "\n" not in message and message.endswith(".") and ". " not in message


@pytest.mark.parametrize(
    "error",
    [
        errors.LocalEntryNotFoundError("An error happened.\nPlease check your connection."),
        errors.OfflineModeIsEnabled("Cannot reach https://…: offline mode is enabled."),
        errors.HFValidationError("Repo id must use alphanumeric chars"),
        ConnectionError("Connection refused"),
        TimeoutError("timed out"),
        OSError(28, "No space left on device"),
        type("ConnectError", (Exception,), {})("[Errno -2] Name or service not known"),  # of an HTTP client
    ],
    ids=lambda error: type(error).__name__,
)
def test_without_the_hub_there_is_one_clear_sentence(monkeypatch, error):
    def fail(*_args: Any, **_options: Any) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(InputError, match=r"'run1' \(file 25\.pt .*needs network access, or .*local cache") as caught:
        AutoEncoder.load_from_hf("run1")
    message = str(caught.value)
    assert is_one_sentence(message)
    assert type(error).__name__ in message
    assert '"run1" or "run2"' in message
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_file_that_the_hub_has_not_is_told_with_the_known_names(hub):
    with pytest.raises(
        InputError, match=r"'run3' \(file run3\.pt.*known are \"run1\" or \"run2\".*no such file"
    ) as caught:
        AutoEncoder.load_from_hf("run3")
    assert is_one_sentence(str(caught.value))


@pytest.mark.parametrize("version", [None, True, 1.5, "", " ", b"run1", ["run1"]])
def test_what_is_no_name_is_told(version):
    with pytest.raises(InputError, match=r'version must be "run1" or "run2" or another'):
        AutoEncoder.load_from_hf(version)


def test_without_the_hubs_package_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match="pip install huggingface_hub"):
        AutoEncoder.load_from_hf("run1")


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("evil",)


def saved(thing: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    return buffer.getvalue()


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme.txt", "no tensors")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a checkpoint",
        b"<!doctype html><title>404</title>",
        saved(weights())[:-200],
        saved(weights())[:50],
        zipped(),
        pickle.dumps({"W_enc": [1.0]}),
        saved({"W_enc": Evil()}),
    ],
    ids=["empty", "text", "html", "cut", "stub", "zip", "pickle", "code"],
)
def test_a_damaged_file_is_told_and_runs_nothing(hub, tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (hub.saes / "25.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"25\.pt \(checkpoint 'run1' of NeelNanda/sparse_autoencoder\)") as caught:
        AutoEncoder.load_from_hf("run1")
    assert (
        "damaged" in str(caught.value) or "needs the tensors" in str(caught.value) or "must be a" in str(caught.value)
    )
    assert not Path("evil").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"W_enc": torch.zeros(D_IN, D_HIDDEN)}, "needs the tensors W_enc, b_enc, W_dec, b_dec; got W_enc"),
        ({**weights(), "threshold": torch.zeros(D_HIDDEN)}, "got W_dec, W_enc, b_dec, b_enc, threshold"),
        ({**weights(), 3: torch.zeros(1)}, "got 3, W_dec"),
        ({**weights(), "b_enc": torch.zeros(D_IN)}, r"b_enc must have shape \(40,\)"),
        ({**weights(), "W_enc": torch.zeros(D_IN)}, r"W_enc must be \[d_in, d_hidden\]"),
        ({**weights(), "b_dec": [0.0] * D_IN}, "b_dec must be a tensor of floating-point numbers, got list"),
        ({**weights(), "b_dec": torch.zeros(D_IN, dtype=torch.int64)}, "b_dec must be a tensor .*, got torch.int64"),
        (torch.zeros(3), "must be a dict of the tensors W_enc, b_enc, W_dec, b_dec, got Tensor"),
        ({}, "got none"),
    ],
    ids=["missing", "surplus", "number", "shape", "vector", "list", "integers", "tensor", "nothing"],
)
def test_other_contents_are_told(hub, content, message):
    torch.save(content, hub.saes / "47.pt")
    with pytest.raises(InputError, match=message) as caught:
        AutoEncoder.load_from_hf("run2")
    assert "47.pt" in str(caught.value)


OFFLINE = """
import sys
from sae_vis import AutoEncoder, SaeVisError
assert "huggingface_hub" not in sys.modules, "imported before it is needed"
try:
    print(AutoEncoder.load_from_hf("run2").d_hidden)
except SaeVisError as error:
    print(error)
"""


def test_the_real_hub_offline_uses_its_cache_and_says_what_is_missing(tmp_path):
    """huggingface_hub itself, in another process: with an empty cache, then with a checkpoint in it."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    environment.pop("HF_HUB_CACHE", None)

    def run() -> str:
        done = subprocess.run(
            [sys.executable, "-c", OFFLINE], env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    said = run()
    assert said.startswith("The autoencoder 'run2' (file 47.pt of NeelNanda/sparse_autoencoder")
    assert is_one_sentence(said)
    repository = tmp_path / "hub/models--NeelNanda--sparse_autoencoder"
    revision = "0123456789abcdef0123456789abcdef01234567"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(revision, "utf-8")
    (repository / "snapshots" / revision).mkdir(parents=True)
    torch.save(weights(), repository / "snapshots" / revision / "47.pt")
    assert run() == str(D_HIDDEN)


# --- the walk-through ----------------------------------------------------------------------------------------------------


def section() -> list[str]:
    """The code cells of the notebook's last section."""
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    start = next(i for i, cell in enumerate(cells) if cell.source.startswith("## The original walk-through"))
    return [cell.source for cell in cells[start:] if cell.cell_type == "code"]


def write_legacy_model(repository: Path) -> None:
    """A small model as the repositories of that time hold it: a configuration, and tensors by TransformerLens' names."""
    repository.mkdir(parents=True)
    save_tokenizer(repository / "tokenizer")
    d_model, n_heads, d_head = 16, 2, 8
    config = {
        "d_model": d_model,
        "n_layers": 1,
        "d_mlp": D_IN,
        "d_head": d_head,
        "n_heads": n_heads,
        "n_ctx": 128,
        "d_vocab": D_VOCAB,
        "act_fn": "gelu",
        "attn_only": False,
        "normalization": "LN",
        "tokenizer_name": str(repository / "tokenizer"),
    }
    (repository / "config.json").write_text(json.dumps(config), "utf-8")
    heads_in, heads_out = (n_heads, d_model, d_head), (n_heads, d_head, d_model)
    shapes = {
        "embed.W_E": (D_VOCAB, d_model),
        "pos_embed.W_pos": (128, d_model),
        **{f"blocks.0.attn.W_{name}": heads_in for name in "QKV"},
        **{f"blocks.0.attn.b_{name}": (n_heads, d_head) for name in "QKV"},
        "blocks.0.attn.W_O": heads_out,
        "blocks.0.attn.b_O": (d_model,),
        **{f"{norm}.{name}": (d_model,) for norm in ("blocks.0.ln1", "blocks.0.ln2", "ln_final") for name in "wb"},
        "blocks.0.mlp.W_in": (d_model, D_IN),
        "blocks.0.mlp.b_in": (D_IN,),
        "blocks.0.mlp.W_out": (D_IN, d_model),
        "blocks.0.mlp.b_out": (d_model,),
        "unembed.W_U": (d_model, D_VOCAB),
        "unembed.b_U": (D_VOCAB,),
    }
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) * 0.4 + 0.2 for name, shape in shapes.items()}
    torch.save(tensors, repository / "model_final.pth")


@pytest.fixture
def gelu_1l(hub, monkeypatch) -> SimpleNamespace:
    """A hub that has the model, the autoencoder and the text of the walk-through, all small."""
    import datasets
    from transformer_lens.model_bridge import TransformerBridge, sources  # noqa: F401 - it adds the ways to boot

    if not hasattr(TransformerBridge, "boot_tl_legacy"):
        pytest.skip("this TransformerLens has no boot_tl_legacy (version 4 does)")
    write_legacy_model(hub.root / "NeelNanda/GELU_1L512W_C4_Code")
    torch.save(weights(), hub.saes / "25.pt")
    generator = torch.Generator().manual_seed(0)
    texts = [" ".join(f"w{i}" for i in torch.randint(4, D_VOCAB, (90,), generator=generator)) for _ in range(12)]

    def listed(_api: Any, repo_id: str, **_options: Any) -> list[str]:
        return [path.name for path in (hub.root / repo_id).iterdir()]

    def load_dataset(name: str, split: str) -> Any:
        assert (name, split) == ("NeelNanda/c4-code-20k", "train[:500]")
        return datasets.Dataset.from_dict({"text": texts})

    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", listed)
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    hub.texts = texts
    return hub


def test_every_step_of_the_walk_through_works_on_files_of_the_same_form(gelu_1l, tmp_path):
    """The cells as they are in the notebook, switched on; TransformerLens' own loader reads the model."""
    from sae_vis import FeatureVisParams, get_feature_data, get_prompt_data

    cells, shown = section(), []
    assert cells[0].startswith("ONLINE = False\n")
    given = {
        "FeatureVisParams": FeatureVisParams,
        "get_feature_data": get_feature_data,
        "get_prompt_data": get_prompt_data,
        "torch": torch,
        "folder": tmp_path,
        "display": shown.append,
    }
    for source in [cells[0].replace("ONLINE = False", "ONLINE = True"), *cells[1:]]:
        exec(compile(source, str(NOTEBOOK), "exec"), given)
    tokens = given["original_tokens"]
    assert tokens.shape == (12 * 91 // 127, 128)
    assert bool((tokens[:, 0] == BOS).all())
    assert tokens[0, 1:91].tolist() == [int(word[1:]) for word in gelu_1l.texts[0].split()]
    assert int(tokens[0, 91]) == EOS
    features, prompt = shown
    assert list(features) == list(range(32))
    assert features.provenance.hook_point == "blocks.0.mlp.hook_post"
    assert any(feature.activations.n_active for feature in features.values())
    assert MultiFeatureData.load_json(tmp_path / "gelu_1l_features.json.gz") == features
    assert (tmp_path / "gelu_1l_feature_vis.html").stat().st_size > 10_000
    assert (tmp_path / "gelu_1l_prompt_vis.html").stat().st_size > 10_000
    assert prompt.provenance.hook_point == "blocks.0.mlp.hook_post"
    assert {repo for repo, _ in gelu_1l.asked} == {"NeelNanda/sparse_autoencoder", "NeelNanda/GELU_1L512W_C4_Code"}


def test_the_walk_through_is_switched_off_as_it_is_committed_and_says_so(capsys):
    given: dict[str, Any] = {}
    for source in section():
        exec(compile(source, str(NOTEBOOK), "exec"), given)
    said = capsys.readouterr().out.splitlines()
    assert said == ["Not run: set ONLINE = True above to download the model, the autoencoder and the text."]
