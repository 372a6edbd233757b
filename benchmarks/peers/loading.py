"""Read the model, the tokens and the tokenizer that ``benchmarks.material`` has written, under any TransformerLens.

The weights of the model have GPT-2's names and shapes (``c_attn`` and the like hold ``[in, out]``).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

EPS = 1e-5


def load_shape(folder: Path) -> dict[str, int]:
    """The sizes of the model and of the dictionary."""
    sizes: dict[str, int] = json.loads((folder / "shape.json").read_text(encoding="utf-8"))
    return sizes


def load_tokens(folder: Path, rows: int) -> Tensor:
    """The first rows of tokens, ``[rows, seq]``."""
    tokens = load_file(folder / "tokens.safetensors")["tokens"]
    if rows > len(tokens):
        raise ValueError(f"{folder} holds {len(tokens)} rows of tokens, {rows} are wanted.")
    return tokens[:rows].contiguous()


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer, which TransformerLens may change: each model gets one of its own."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder / "tokenizer")


def load_encoder_weights(folder: Path) -> dict[str, Tensor]:
    """``W_enc [d_in, d_hidden]``, ``b_enc``, ``W_dec [d_hidden, d_in]`` (unit rows) and ``b_dec``."""
    return load_file(folder / "encoder.safetensors")


def load_bridge(folder: Path) -> Any:
    """The model in the bridge of TransformerLens 3 and 4."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import GPT2Config, GPT2LMHeadModel

    shape, tokenizer = load_shape(folder), load_tokenizer(folder)
    config = GPT2Config(
        vocab_size=shape["d_vocab"],
        n_positions=shape["n_ctx"],
        n_embd=shape["d_model"],
        n_inner=shape["d_mlp"],
        n_layer=shape["n_layers"],
        n_head=shape["n_heads"],
        activation_function="gelu",
        layer_norm_epsilon=EPS,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.device("meta"):
        model = GPT2LMHeadModel(config)
    # No weight is drawn, and none is copied: the file is the memory.
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=True, assign=True)
    bridge = TransformerBridge.boot_transformers("benchmark", hf_model=model, tokenizer=tokenizer, device="cpu")
    return bridge.eval()


def load_hooked(folder: Path, kind: Any) -> Any:
    """The model as a ``HookedTransformer`` of TransformerLens 2 and 3, or what is derived from it."""
    from transformer_lens import HookedTransformerConfig

    shape = load_shape(folder)
    config = HookedTransformerConfig(
        n_layers=shape["n_layers"],
        d_model=shape["d_model"],
        n_ctx=shape["n_ctx"],
        d_head=shape["d_model"] // shape["n_heads"],
        n_heads=shape["n_heads"],
        d_mlp=shape["d_mlp"],
        d_vocab=shape["d_vocab"],
        act_fn="gelu",
        normalization_type="LN",
        eps=EPS,
        device="cpu",
        init_weights=False,
        model_name="benchmark",
    )
    model = kind(config, tokenizer=load_tokenizer(folder), move_to_device=False)
    model.load_state_dict(_hooked_weights(load_file(folder / "model.safetensors"), shape), strict=False, assign=True)
    return model.eval()


def _hooked_weights(gpt2: dict[str, Tensor], shape: dict[str, int]) -> dict[str, Tensor]:
    """GPT-2's weights under the names and in the shapes of a ``HookedTransformer``."""
    heads, d_model = shape["n_heads"], shape["d_model"]
    d_head = d_model // heads
    weights = {
        "embed.W_E": gpt2["transformer.wte.weight"],
        "pos_embed.W_pos": gpt2["transformer.wpe.weight"],
        "unembed.W_U": gpt2["lm_head.weight"].T,
        "unembed.b_U": torch.zeros(shape["d_vocab"]),
        "ln_final.w": gpt2["transformer.ln_f.weight"],
        "ln_final.b": gpt2["transformer.ln_f.bias"],
    }
    for layer in range(shape["n_layers"]):
        source, target = f"transformer.h.{layer}", f"blocks.{layer}"
        products = gpt2[f"{source}.attn.c_attn.weight"].split(d_model, 1)
        biases = gpt2[f"{source}.attn.c_attn.bias"].split(d_model)
        for name, product, bias in zip("QKV", products, biases, strict=True):
            weights[f"{target}.attn.W_{name}"] = product.reshape(d_model, heads, d_head).transpose(0, 1).contiguous()
            weights[f"{target}.attn.b_{name}"] = bias.reshape(heads, d_head)
        weights[f"{target}.attn.W_O"] = gpt2[f"{source}.attn.c_proj.weight"].reshape(heads, d_head, d_model)
        weights[f"{target}.attn.b_O"] = gpt2[f"{source}.attn.c_proj.bias"]
        for number in (1, 2):
            weights[f"{target}.ln{number}.w"] = gpt2[f"{source}.ln_{number}.weight"]
            weights[f"{target}.ln{number}.b"] = gpt2[f"{source}.ln_{number}.bias"]
        for name, theirs in (("in", "c_fc"), ("out", "c_proj")):
            weights[f"{target}.mlp.W_{name}"] = gpt2[f"{source}.mlp.{theirs}.weight"]
            weights[f"{target}.mlp.b_{name}"] = gpt2[f"{source}.mlp.{theirs}.bias"]
    return weights
