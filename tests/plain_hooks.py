"""Ablation through plain PyTorch hooks on plain Hugging Face models: nothing of TransformerLens, nothing of the library.

What a hook point of TransformerLens is on the Hugging Face side is written down here by architecture, as a module and
whether its input or its output stands there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from hf_models import MAKERS, randomise
from torch import Tensor, nn


@functools.cache
def plain(name: str) -> Any:
    """The Hugging Face model with the very weights of ``hf_models.build(name)``."""
    model = MAKERS[name]()
    randomise(model)
    return model.eval()


_GPT2 = {
    "hook_resid_pre": ("", "in"),
    "hook_resid_mid": ("attn", "out"),  # what is taken from the attention's output is missing in the middle
    "hook_resid_post": ("", "out"),
    "hook_attn_out": ("attn", "out"),
    "hook_mlp_out": ("mlp", "out"),
    "mlp.hook_pre": ("mlp.c_fc", "out"),
    "mlp.hook_post": ("mlp.c_proj", "in"),
    "attn.hook_z": ("attn.c_proj", "in"),
}
_LLAMA = {
    "hook_resid_pre": ("", "in"),
    "hook_resid_mid": ("self_attn", "out"),
    "hook_resid_post": ("", "out"),
    "hook_attn_out": ("self_attn", "out"),
    "hook_mlp_out": ("mlp", "out"),
    "mlp.hook_pre": ("mlp.gate_proj", "out"),
    "mlp.hook_post": ("mlp.down_proj", "in"),
    "attn.hook_z": ("self_attn.o_proj", "in"),
}
# Its outputs stand behind the norms that follow attention and MLP.
_GEMMA2 = _LLAMA | {
    "hook_resid_mid": ("post_attention_layernorm", "out"),
    "hook_attn_out": ("post_attention_layernorm", "out"),
    "hook_mlp_out": ("post_feedforward_layernorm", "out"),
}
_NEOX = {
    "hook_resid_pre": ("", "in"),
    "hook_resid_post": ("", "out"),
    "hook_attn_out": ("attention", "out"),
    "hook_mlp_out": ("mlp", "out"),
    "mlp.hook_pre": ("mlp.dense_h_to_4h", "out"),
    "mlp.hook_post": ("mlp.dense_4h_to_h", "in"),
    "attn.hook_z": ("attention.dense", "in"),
}
PLACES = {
    "gpt2": ("transformer.h", _GPT2),
    "gpt2-untied": ("transformer.h", _GPT2),
    "llama": ("model.layers", _LLAMA),
    "llama-tied": ("model.layers", _LLAMA),
    "gemma2": ("model.layers", _GEMMA2),
    "neox": ("gpt_neox.layers", _NEOX),
}


def _hooked(name: str, hook_point: str, change: Callable[[Tensor], Tensor | None]) -> Any:
    """Register a hook that may change what stands at the hook point; returns its handle."""
    _, layer, kind = hook_point.split(".", 2)
    blocks, places = PLACES[name]
    path, side = places[kind]
    module = plain(name).get_submodule(".".join(part for part in (blocks, layer, path) if part))

    def on_input(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Any, ...] | None:
        changed = change(args[0])
        return None if changed is None else (changed, *args[1:])

    def on_output(module: nn.Module, args: Any, output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output
        changed = change(first)
        if changed is None:
            return None
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return module.register_forward_pre_hook(on_input) if side == "in" else module.register_forward_hook(on_output)


@torch.no_grad()
def values_at(name: str, tokens: Tensor, hook_point: str) -> Tensor:
    """What stands at the hook point, with heads flattened (not for ``hook_resid_mid``)."""
    seen: list[Tensor] = []
    handle = _hooked(name, hook_point, lambda value: seen.append(value.clone()))
    plain(name)(tokens)
    handle.remove()
    return seen[0]


@torch.no_grad()
def log_probs(name: str, tokens: Tensor) -> Tensor:
    """The model's log-probabilities ``[rows, seq, d_vocab]``."""
    return torch.log_softmax(plain(name)(tokens).logits.double(), -1)


@torch.no_grad()
def log_probs_without(name: str, row: Tensor, hook_point: str, contribution: Tensor) -> Tensor:
    """Of one row, with ``contribution [seq, d]`` taken away at the hook point at every position."""
    handle = _hooked(name, hook_point, lambda value: value - contribution.to(value.dtype))
    try:
        return log_probs(name, row[None])[0]
    finally:
        handle.remove()
