"""Stage ``export``: the trained parts as the small files of ``sae_vis/demo_data``, and reading them back.

``model.safetensors`` is float16 under the names of TransformerLens' bridge (``bridge.load_state_dict``). The SAEs are
int8 with one float32 scale per feature for the encoder and one for the decoder; a decoder row's scale makes its norm
exactly one. ``tokens.safetensors`` holds held-out rows as int16.
"""

from __future__ import annotations

import json
import sysconfig
import tarfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .lm import TwinModel, load_twin
from .sae import Sae, load_folded
from .settings import BOS_ID, HOOK_POINT, MODEL, ROW_LENGTH, SAES, SAMPLE_ROWS, SOURCES
from .text import load_tokenizer

DJANGO_SHARE = 0.4  # of the sample's rows; the other sources share the rest by the square root of their size
BRIDGE_FIELDS = (
    "n_layers", "d_model", "n_heads", "d_head", "d_mlp", "n_ctx", "d_vocab", "act_fn", "normalization_type", "eps",
)  # fmt: skip
TWIN_TO_BRIDGE = (
    ("tok_embed.", "embed."), ("pos.", "pos_embed."), ("layers.", "blocks."), ("mlp.fc_in.", "mlp.in."),
    ("mlp.fc_out.", "mlp.out."), ("ln_out.", "ln_final."), ("head.", "unembed."),
)  # fmt: skip


def export(work: Path, out: Path) -> None:
    """Write everything but the figures, the labels and the README into ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    twin = load_twin(work / "lm.safetensors")
    weights = {bridge_name(name): value.half() for name, value in twin.state_dict().items()}
    weights["unembed.bias"] = torch.zeros(MODEL.d_vocab, dtype=torch.float16)  # the bridge has a place for one
    save_file(weights, out / "model.safetensors")
    for name in SAES:
        save_file(_to_int8(load_folded(work, name)), out / f"{name}.safetensors")
    tokens, source = _sample(work)
    save_file({"tokens": tokens, "source": source}, out / "tokens.safetensors")
    _export_tokenizer(work / "tokenizer", out / "tokenizer")
    (out / "LICENSES.txt").write_text(_licences(work / "sdists"), encoding="utf-8")
    config = {
        "model": {name: asdict(MODEL)[name] for name in BRIDGE_FIELDS},
        "training": {"trained_tokens": _steps(work / "lm.pt") * MODEL.rows_per_step * MODEL.n_ctx},
        "saes": {
            name: {
                "file": f"{name}.safetensors",
                "hook_point": HOOK_POINT,
                "d_in": MODEL.d_mlp,
                **asdict(settings),
                "trained_tokens": _steps(work / f"{name}.pt") * settings.batch_tokens,
            }
            for name, settings in SAES.items()
        },
        "tokens": {"file": "tokens.safetensors", "rows": SAMPLE_ROWS, "row_length": ROW_LENGTH,
                   "sources": json.loads((work / "sources.json").read_text())},
    }  # fmt: skip
    write_config(out, config)
    for path in out.glob("*.safetensors"):
        path.chmod(0o644)
    difference = bridge_difference(out)
    print(f"largest difference between the bridge's logits and the trained model's: {difference:.2e}", flush=True)
    if difference > 1e-4:
        raise ValueError("The exported model doesn't compute what was trained.")
    print(f"{sum(p.stat().st_size for p in out.rglob('*') if p.is_file()) / 1e6:.2f} MB in {out}", flush=True)


def bridge_name(name: str) -> str:
    """Return the name TransformerLens' bridge gives to a parameter of the twin."""
    for ours, theirs in TWIN_TO_BRIDGE:
        name = name.replace(ours, theirs)
    return name


def load_exported_model(out: Path) -> TwinModel:
    """Return the exported weights in float32."""
    model = TwinModel(MODEL)
    exported = load_file(out / "model.safetensors")
    model.load_state_dict({name: exported[bridge_name(name)].float() for name in model.state_dict()})
    return model.eval().requires_grad_(False)


def load_exported_sae(out: Path, name: str) -> Sae:
    """Return an exported SAE in float32."""
    t = load_file(out / f"{name}.safetensors")
    return Sae(
        enc=t["W_enc.int8"].float() * t["W_enc.scale"][:, None], b_enc=t["b_enc"],
        dec=t["W_dec.int8"].float() * t["W_dec.scale"][:, None], b_dec=t["b_dec"],
    )  # fmt: skip


def load_exported_tokens(out: Path) -> Tensor:
    """Return the held-out sample as int64."""
    return load_file(out / "tokens.safetensors")["tokens"].long()


def write_config(out: Path, config: dict[str, Any]) -> None:
    """Write ``config.json``."""
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


@torch.no_grad()
def bridge_difference(out: Path) -> float:
    """Return the largest difference of logits between the twin and a ``TransformerBridge`` of the exported weights."""
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    fields = {name: asdict(MODEL)[name] for name in BRIDGE_FIELDS}
    bridge = TransformerBridge.boot_native(
        TransformerBridgeConfig(**fields, init_weights=False), tokenizer=load_tokenizer(out / "tokenizer")
    ).eval()
    weights = {name: value.float() for name, value in load_file(out / "model.safetensors").items()}
    bridge.load_state_dict(weights)
    tokens = load_exported_tokens(out)[:8]
    return float((bridge(tokens) - load_exported_model(out)(tokens)).abs().max())


def _steps(checkpoint: Path) -> int:
    return int(torch.load(checkpoint, weights_only=True)["step"])


def _export_tokenizer(trained: Path, out: Path) -> None:
    """Save the tokenizer for transformers 4 and 5 alike."""
    load_tokenizer(trained).save_pretrained(out)
    path = out / "tokenizer_config.json"
    kept = ("bos_token", "eos_token", "pad_token", "model_max_length")
    settings = {key: value for key, value in json.loads(path.read_text()).items() if key in kept}
    path.write_text(json.dumps({**settings, "tokenizer_class": "PreTrainedTokenizerFast"}, indent=2) + "\n")


def _to_int8(sae: Sae) -> dict[str, Tensor]:
    enc_scale = sae.enc.abs().amax(dim=1) / 127
    enc = (sae.enc / enc_scale[:, None]).round().to(torch.int8)
    dec = (sae.dec / (sae.dec.abs().amax(dim=1, keepdim=True) / 127)).round().to(torch.int8)
    return {
        "W_enc.int8": enc, "W_enc.scale": enc_scale, "b_enc": sae.b_enc,
        "W_dec.int8": dec, "W_dec.scale": 1 / dec.float().norm(dim=1), "b_dec": sae.b_dec,
    }  # fmt: skip


def _sample(work: Path) -> tuple[Tensor, Tensor]:
    """Return ``SAMPLE_ROWS`` held-out rows, each from one source, and the index of the source of each."""
    sources: list[str] = json.loads((work / "sources.json").read_text())
    with np.load(work / "held_out.npz") as data:
        documents = np.split(data["tokens"], data["ends"][:-1])
        source_of = data["source"]
    body = ROW_LENGTH - 1
    rng = np.random.default_rng(0)
    pools: list[np.ndarray] = []
    for index in range(len(sources)):
        running = np.concatenate([d for d, s in zip(documents, source_of, strict=True) if s == index])
        n_rows = len(running) // body
        rows = np.full((n_rows, ROW_LENGTH), BOS_ID, dtype=np.int16)
        rows[:, 1:] = running[: n_rows * body].reshape(n_rows, body)
        pools.append(rng.permutation(rows))
    taken = _quotas([len(pool) for pool in pools], sources.index("Django"))
    tokens = np.concatenate([pool[:n] for pool, n in zip(pools, taken, strict=True)])
    source = np.repeat(np.arange(len(sources), dtype=np.uint8), taken)
    order = rng.permutation(len(tokens))
    return torch.from_numpy(tokens[order]), torch.from_numpy(source[order])


def _quotas(sizes: list[int], django: int) -> list[int]:
    """Share out ``SAMPLE_ROWS``: Django its fixed share, the rest by the square root of what there is."""
    quotas = [0] * len(sizes)
    quotas[django] = min(sizes[django], round(DJANGO_SHARE * SAMPLE_ROWS))
    while sum(quotas) < SAMPLE_ROWS:
        wanting = [i for i in range(len(sizes)) if i != django and quotas[i] < sizes[i]]
        if not wanting:
            raise ValueError("There isn't enough held-out text for the sample.")
        neediest = max(wanting, key=lambda i: sizes[i] ** 0.5 / (quotas[i] + 1))
        quotas[neediest] += 1
    return quotas


def _licences(sdists: Path) -> str:
    """Return the licence texts of all sources, one after the other."""
    parts = [
        "The language model, the SAEs and the tokenizer of this folder were trained on the text of the works below,\n",
        "and tokens.safetensors holds excerpts of them. Their licences follow, each as its distribution gives it.\n",
    ]
    for source in SOURCES:
        title = f"{source.name} {source.version}".strip() + f" ({source.licence})"
        texts = _licence_files(sdists, f"{source.name}-{source.version}.tar.gz") if source.version else [
            (Path(sysconfig.get_paths()["stdlib"]) / "LICENSE.txt").read_text(encoding="utf-8")
        ]  # fmt: skip
        rule = "=" * 100
        parts.append(
            f"{rule}\n{title}\n{source.copyright}\n{rule}\n\n" + "\n\n".join(text.strip() for text in texts) + "\n"
        )
    return "\n".join(parts)


def _licence_files(sdists: Path, name: str) -> list[str]:
    path = next(p for p in sdists.iterdir() if p.name.lower() == name.lower())
    texts = []
    with tarfile.open(path) as archive:
        for member in archive.getmembers():
            parts = member.name.split("/")
            if member.isfile() and len(parts) == 2 and parts[1].upper().startswith(("LICENSE", "COPYING")):
                stream = archive.extractfile(member)
                assert stream is not None
                texts.append(stream.read().decode("utf-8"))
    if not texts:
        raise FileNotFoundError(f"{name} holds no licence file.")
    return texts
