"""Stage ``report``: figures of the exported files, written to ``config.json``, and the README beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .export import load_exported_model, load_exported_sae, load_exported_tokens, write_config
from .lm import TwinModel, held_out_loss
from .sae import Sae, activations
from .settings import HOOK_POINT, ROW_LENGTH, SAES, SOURCES, VOCAB_SIZE
from .text import rows

BIGRAM_PRIORS = (1.0, 3.0, 10.0, 30.0, 100.0)  # weight of the unigram distribution; the best on held-out text counts
DEAD_TOKENS = 1_000_000
ROWS_AT_ONCE = 32

Figures = dict[str, float]


def report(work: Path, out: Path) -> None:
    """Measure the exported files, print the figures and write them down."""
    model, sample = load_exported_model(out), load_exported_tokens(out)
    held_out = torch.from_numpy(rows(work, "held_out", seed=0))
    train = rows(work, "train", seed=0)
    quality: dict[str, Any] = {
        "language_model": {
            "held_out_loss": held_out_loss(model, held_out),
            "sample_loss": held_out_loss(model, sample),
            **_baselines(train, held_out.numpy()),
            "held_out_tokens": held_out.numel(),
        }
    }
    firing_tokens = torch.from_numpy(train[: DEAD_TOKENS // (ROW_LENGTH - 1)])
    for name in SAES:
        quality[name] = sae_figures(model, load_exported_sae(out, name), sample, firing_tokens)
    quality = {part: {key: round(value, 4) for key, value in figures.items()} for part, figures in quality.items()}
    config = json.loads((out / "config.json").read_text())
    config["quality"] = quality
    write_config(out, config)
    (out / "README.md").write_text(_readme(work, config), encoding="utf-8")
    print(json.dumps(quality, indent=1), flush=True)


@torch.no_grad()
def sae_figures(model: TwinModel, sae: Sae, sample: Tensor, firing_tokens: Tensor) -> Figures:
    """Return an SAE's figures on the sample; BOS is neither counted nor replaced."""
    x = activations(model, sample)
    a = torch.cat([sae.encode(part) for part in x.split(8192)])
    reconstruction = torch.cat([sae.decode(part) for part in a.split(8192)])
    mean = x.mean(0)
    losses = {
        "clean": loss_with(model, sample, lambda post: post),
        "sae": loss_with(model, sample, lambda post: sae.decode(sae.encode(post))),
        "zero": loss_with(model, sample, torch.zeros_like),
        "mean": loss_with(model, sample, mean.expand_as),
    }
    density = (a > 0).float().mean(0)
    fired = torch.zeros(len(sae.b_enc), dtype=torch.bool)
    for part in firing_tokens.split(128):
        fired |= (sae.encode(activations(model, part)) > 0).any(0)
    return {
        "l0": density.sum().item(),
        "explained_variance": 1 - ((x - reconstruction).pow(2).sum() / (x - mean).pow(2).sum()).item(),
        "loss_clean": losses["clean"],
        "loss_sae": losses["sae"],
        "loss_zero_ablation": losses["zero"],
        "loss_mean_ablation": losses["mean"],
        "loss_recovered_zero": (losses["zero"] - losses["sae"]) / (losses["zero"] - losses["clean"]),
        "loss_recovered_mean": (losses["mean"] - losses["sae"]) / (losses["mean"] - losses["clean"]),
        "dead_share_sample": (density == 0).float().mean().item(),
        "dead_share_1m_training_tokens": (~fired).float().mean().item(),
        "share_denser_than_10_percent": (density > 0.1).float().mean().item(),
    }


@torch.no_grad()
def loss_with(model: TwinModel, tokens: Tensor, replace: Any) -> float:
    """Return the mean loss of the predictions made after BOS, with the hook point replaced there."""
    total, count = 0.0, 0
    for part in tokens.split(ROWS_AT_ONCE):
        resid, post = model.to_hook(part)
        post = torch.cat([post[:, :1], replace(post[:, 1:].flatten(0, 1)).view_as(post[:, 1:])], dim=1)
        log_probs = model.head(model.from_hook(resid, post))[:, 1:-1].log_softmax(-1)
        targets = part[:, 2:]
        total -= log_probs.gather(-1, targets[..., None]).sum().item()
        count += targets.numel()
    return total / count


def _baselines(train: np.ndarray, held_out: np.ndarray) -> Figures:
    """Return the held-out loss of counting: unigrams (add one), and bigrams backed by the unigrams."""
    unigram = np.bincount(train[:, 1:].ravel(), minlength=VOCAB_SIZE) + 1.0
    unigram /= unigram.sum()
    pairs = np.bincount(train[:, :-1].ravel() * VOCAB_SIZE + train[:, 1:].ravel(), minlength=VOCAB_SIZE**2)
    contexts = pairs.reshape(VOCAB_SIZE, VOCAB_SIZE).sum(1)
    before, after = held_out[:, :-1].ravel(), held_out[:, 1:].ravel()
    seen = pairs[before * VOCAB_SIZE + after]
    bigram = [
        float(-np.log((seen + prior * unigram[after]) / (contexts[before] + prior)).mean()) for prior in BIGRAM_PRIORS
    ]
    return {"unigram_loss": float(-np.log(unigram[after]).mean()), "bigram_loss": min(bigram)}


def _readme(work: Path, config: dict[str, Any]) -> str:
    sizes = json.loads((work / "corpus.json").read_text())
    total = sum(size["characters"] for size in sizes.values())
    lm, sae_a, sae_b = (config["quality"][key] for key in ("language_model", "sae", "sae_b"))
    sources = "\n".join(
        f"| {s.name} | {s.version or '3.11'} | {s.licence} | {sizes[s.name]['documents']} | "
        f"{sizes[s.name]['characters'] / 1e6:.1f} MB | {100 * sizes[s.name]['characters'] / total:.0f} % |"
        for s in SOURCES
    )
    names = (
        ("active features per token (L0)", "l0", "{:.1f}"),
        ("explained variance", "explained_variance", "{:.1%}"),
        ("loss, hook point untouched", "loss_clean", "{:.3f}"),
        ("loss, hook point replaced by the reconstruction", "loss_sae", "{:.3f}"),
        ("loss, hook point set to zero", "loss_zero_ablation", "{:.3f}"),
        ("loss, hook point set to its mean", "loss_mean_ablation", "{:.3f}"),
        ("loss recovered, against zero", "loss_recovered_zero", "{:.1%}"),
        ("loss recovered, against the mean", "loss_recovered_mean", "{:.1%}"),
        ("features that never fire on the sample", "dead_share_sample", "{:.1%}"),
        ("features that never fire on 1 million training tokens", "dead_share_1m_training_tokens", "{:.1%}"),
        ("features active on more than 10 % of tokens", "share_denser_than_10_percent", "{:.1%}"),
    )
    figures = "\n".join(
        f"| {title} | {form.format(sae_a[key])} | {form.format(sae_b[key])} |" for title, key, form in names
    )
    model, saes = config["model"], config["saes"]
    return README.format(
        sources=sources,
        figures=figures,
        lm=lm,
        model=model,
        hook=HOOK_POINT,
        rows=config["tokens"]["rows"],
        a=saes["sae"]["d_hidden"],
        b=saes["sae_b"]["d_hidden"],
        trained=config["training"]["trained_tokens"] / 1e6,
        trained_a=saes["sae"]["trained_tokens"] / 1e6,
        trained_b=saes["sae_b"]["trained_tokens"] / 1e6,
    )


README = """\
# The bundled demo model

A small language model of Python code and its documentation, two sparse autoencoders on its MLP and a sample of text
that none of them was trained on. `sae-vis demo` draws its pages from these files.
`scripts/train_demo.py` made them, and wrote this page; all its settings are in `scripts/demo_model/settings.py`.

## Files

| file | what it holds |
|---|---|
| `model.safetensors` | the model in float16, under the parameter names of TransformerLens' `TransformerBridge` |
| `sae.safetensors` | the SAE of {a} features on `{hook}` |
| `sae_b.safetensors` | a second one of {b} features and another seed, on the same hook point |
| `tokens.safetensors` | `tokens`: {rows} held-out rows of 128 ids (int16), BOS and text of one source; `source`: which one |
| `tokenizer/` | a byte-level BPE of {model[d_vocab]} tokens for `AutoTokenizer.from_pretrained` |
| `config.json` | the model's and the SAEs' settings and all figures below |
| `labels.json` | names a person gave to some features of `sae.safetensors` after looking at their top activations |
| `LICENSES.txt` | the licences of the text |

The SAEs compute `a = relu((x - b_dec) @ W_enc + b_enc)` and `a @ W_dec + b_dec`. Their weights are int8 with a row and a
scale per feature: `W_enc = (W_enc.int8 * W_enc.scale[:, None]).T` and `W_dec = W_dec.int8 * W_dec.scale[:, None]`.

## The model

{model[n_layers]} layer, d_model {model[d_model]}, {model[n_heads]} heads of {model[d_head]}, {model[d_mlp]} GELU neurons,
LayerNorm, learned positions, context {model[n_ctx]}, untied embeddings; trained on {trained:.1f} million tokens. Mean loss per
token, in nats, on all {lm[held_out_tokens]:,.0f} held-out tokens:

| unigrams (counted) | bigrams (counted, backed by unigrams) | this model | this model on the shipped sample |
|--:|--:|--:|--:|
| {lm[unigram_loss]:.3f} | {lm[bigram_loss]:.3f} | **{lm[held_out_loss]:.3f}** | {lm[sample_loss]:.3f} |

## The SAEs

Trained on activations at every position but BOS with an L1 penalty weighted by the decoder norms; at the end the decoder was
fitted again by least squares, without the penalty, to the codes as they are. Decoder rows have unit norm. Measured on the
files as shipped, on the sample. BOS is neither counted nor replaced.

| | {a} features | {b} features |
|---|--:|--:|
| million tokens trained on | {trained_a:.1f} | {trained_b:.1f} |
{figures}

## The text

Files of these distributions, without tests of the standard library, translations, vendored, generated and data files and
exact duplicates. About 4 % of the files, chosen by a hash of their name, are held out.

| source | version | licence | files | text | share |
|---|---|---|--:|--:|--:|
{sources}
"""
