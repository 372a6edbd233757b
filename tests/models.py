"""A toy model whose activations are whatever a test plants, in milliseconds, and encoders to read them with.

For small models of TransformerLens itself see ``hf_models``.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from sae_vis import AutoEncoder, AutoEncoderConfig, FeatureVisParams, MultiFeatureData, get_feature_data

HOOK_POINT = "blocks.0.hook_resid_pre"
QUIET = {"hook_point": HOOK_POINT, "verbose": False, "ignore_tokens": ()}


class ToyModel(nn.Module):
    """Token ``i`` has row ``i`` of ``table [d_vocab, d_model]`` in the residual stream at every layer, then a LayerNorm.

    It has what the library asks of a TransformerLens model, and nothing else.
    """

    def __init__(self, table: Tensor, n_ctx: int = 64, tokenizer: Any = None) -> None:
        super().__init__()
        d_vocab, d_model = table.shape
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(table.float())
        self.W_U = nn.Parameter(torch.randn(d_model, d_vocab, generator=generator) / d_model**0.5)
        self.b_U = nn.Parameter(torch.zeros(d_vocab))
        self.ln_final = nn.LayerNorm(d_model)
        self.cfg = SimpleNamespace(n_layers=1, n_ctx=n_ctx, model_name="toy")
        self.hook_dict = {HOOK_POINT: None, "blocks.0.hook_resid_post": None}
        self.blocks = [SimpleNamespace()]
        self.tokenizer = tokenizer
        self.rows_seen = 0

    def unembed(self, x: Tensor) -> Tensor:
        return x @ self.W_U + self.b_U

    def run_with_hooks(self, tokens: Tensor, fwd_hooks: Any = (), return_type: str | None = None) -> Tensor:
        self.rows_seen += len(tokens)
        x = self.table[tokens]
        for name in self.hook_dict:
            for wanted, run in fwd_hooks:
                if wanted == name:
                    changed = run(x, hook=None)
                    x = x if changed is None else changed
        return self.unembed(self.ln_final(x))


def identity_encoder(d_in: int, n: int | None = None) -> AutoEncoder:
    """Feature ``i`` is what is positive of dimension ``i``; the first ``n`` of them."""
    eye = torch.eye(d_in)[:, : n or d_in]
    return AutoEncoder.from_weights(
        {"W_enc": eye.clone(), "b_enc": torch.zeros(eye.shape[1]), "W_dec": eye.T.clone(), "b_dec": torch.zeros(d_in)},
        apply_b_dec_to_input=False,
    )


def planted(acts: Tensor, d_model: int | None = None, **options: Any) -> tuple[AutoEncoder, ToyModel, Tensor]:
    """Encoder, model and tokens with these activations ``[rows, seq, n]``: each position has a token id of its own.

    The identity encoder gives the planted numbers exactly: products with zeros and ones do not round.
    """
    rows, seq, n = acts.shape
    table = torch.zeros(rows * seq, max(d_model or n, 2))
    table[:, :n] = acts.reshape(-1, n)
    model = ToyModel(table, n_ctx=max(seq, 2), **options)
    return identity_encoder(table.shape[1], n), model, torch.arange(rows * seq).reshape(rows, seq)


def encoder_for(d_in: int, d_hidden: int, density: float = 0.2, seed: int = 0, size: float = 1.0) -> AutoEncoder:
    """A random encoder whose features fire on about this share of inputs of standard deviation ``size``."""
    generator = torch.Generator().manual_seed(seed)
    encoder = AutoEncoder(AutoEncoderConfig(d_in, d_hidden))
    threshold = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(1.0 - density))
    with torch.no_grad():
        decoder = torch.randn(d_hidden, d_in, generator=generator)
        encoder.W_dec.copy_(decoder / decoder.norm(dim=-1, keepdim=True))
        encoder.W_enc.copy_(encoder.W_dec.T)
        encoder.b_dec.copy_(0.1 * torch.randn(d_in, generator=generator))
        encoder.b_enc.fill_(-float(threshold) * size)
    return encoder


def random_tokens(n_rows: int, seq_len: int, d_vocab: int, seed: int = 0, lowest: int = 0) -> Tensor:
    return torch.randint(lowest, d_vocab, (n_rows, seq_len), generator=torch.Generator().manual_seed(seed))


def native_model(normalization: str | None = "LN", n_layers: int = 2, **options: Any) -> Any:
    """TransformerLens' own small model with random weights, and a bias of the unembedding."""
    from hf_models import native

    return native(normalization, n_layers=n_layers, **options)


def fetch(encoder: Any, model: Any, tokens: Any, encoder_b: Any = None, **params: Any) -> MultiFeatureData:
    """``get_feature_data`` without progress bars; every position counts unless the test says otherwise."""
    return get_feature_data(encoder, model, tokens, FeatureVisParams(**{**QUIET, **params}), encoder_b)


def fetch_planted(acts: Tensor, **params: Any) -> MultiFeatureData:
    """The feature data of planted activations, without the effects on the logits."""
    encoder, model, tokens = planted(acts)
    return fetch(encoder, model, tokens, **{"ablation": None, **params})
