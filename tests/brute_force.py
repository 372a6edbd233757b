"""Slow and plain answers to what the model part of the library computes, with the model's own modules, one at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sae_vis import AutoEncoder, AutoEncoderConfig


def random_encoder(d_in: int, d_hidden: int = 8, seed: int = 0, *, apply_b_dec_to_input: bool = True) -> AutoEncoder:
    """An autoencoder with random weights and biases whose features fire on about half of the positions."""
    generator = torch.Generator().manual_seed(seed)
    encoder = AutoEncoder(AutoEncoderConfig(d_in, d_hidden, apply_b_dec_to_input))
    with torch.no_grad():
        for name, size in (("W_enc", 0.4), ("b_enc", 0.2), ("W_dec", 0.4), ("b_dec", 0.2)):
            weight = getattr(encoder, name)
            weight.copy_(torch.randn(weight.shape, generator=generator) * size)
    return encoder


@torch.no_grad()
def hook_values(model: Any, tokens: Tensor, hook_point: str) -> Tensor:
    """What TransformerLens itself caches at the hook point."""
    _, cache = model.run_with_cache(tokens, names_filter=hook_point, return_cache_object=False)
    return cache[hook_point].detach()


def width_at(model: Any, hook_point: str) -> int:
    return hook_values(model, torch.tensor([[3, 4]]), hook_point)[0, 0].numel()


@torch.no_grad()
def activations(encoder: AutoEncoder, x: Tensor) -> Tensor:
    """The formula of the encoder, position by position and feature by feature: ``[rows, seq, d_hidden]``."""
    rows, seq = x.shape[:2]
    acts = torch.zeros(rows, seq, encoder.d_hidden, dtype=torch.float64)
    shift = encoder.b_dec.double() if encoder.cfg.apply_b_dec_to_input else torch.zeros(encoder.d_in).double()
    for row in range(rows):
        for position in range(seq):
            vector = x[row, position].reshape(-1).double() - shift
            for feature in range(encoder.d_hidden):
                value = float(vector @ encoder.W_enc[:, feature].double() + encoder.b_enc[feature].double())
                acts[row, position, feature] = max(0.0, value)
    return acts


@torch.no_grad()
def direction(model: Any, encoder: AutoEncoder, hook_point: str, feature: int) -> Tensor:
    """What one unit of the feature adds to the residual stream."""
    row = encoder.W_dec[feature].detach()
    layer = int(hook_point.split(".")[1])
    if hook_point.endswith("mlp.hook_post"):
        matrix = model.blocks[layer].mlp.W_out
        return sum(row[neuron] * matrix[neuron] for neuron in range(len(row)))
    if hook_point.endswith("attn.hook_z"):
        matrix = model.blocks[layer].attn.W_O
        heads = row.reshape(matrix.shape[:2])
        return sum(heads[h, i] * matrix[h, i] for h in range(matrix.shape[0]) for i in range(matrix.shape[1]))
    return row


@torch.no_grad()
def log_probs(model: Any, residual: Tensor) -> Tensor:
    """The log-probabilities at one position, through the model's own final norm and unembedding, and the soft cap."""
    norm = getattr(model, "ln_final", torch.nn.Identity())  # a HookedTransformer without norms has none
    logits = model.unembed(norm(residual[None, None]))[0, 0]
    cap = getattr(model.cfg, "output_logits_soft_cap", -1.0) or -1.0
    if cap > 0:
        logits = cap * torch.tanh(logits / cap)
    return torch.log_softmax(logits.double(), -1)


@torch.no_grad()
def change_of_log_probs(model: Any, residual: Tensor, activation: float, d: Tensor) -> Tensor:
    """``logp_with - logp_without`` over the vocabulary, for the direct effect at one position."""
    return log_probs(model, residual) - log_probs(model, residual - activation * d)


@torch.no_grad()
def real_ablation(model: Any, tokens: Tensor, hook_point: str, row: int, position: int, change: Tensor) -> Tensor:
    """The log-probabilities ``[seq, d_vocab]`` of a row when ``change`` is taken away at one position of the hook point."""

    def remove(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        value[0, position] -= change.reshape(value[0, position].shape)
        return value

    logits = model.run_with_hooks(tokens[row : row + 1], fwd_hooks=[(hook_point, remove)])
    return torch.log_softmax(logits[0].double(), -1)
