"""The tiny models of ``hf_models`` again, as HookedTransformer of TransformerLens 2 and 3, processed and unprocessed.

Those of Hugging Face come over by TransformerLens' own converters; the others are made of a configuration. It can be
imported wherever TransformerLens is; ``HookedTransformer`` is None where it no longer has one.
"""

from __future__ import annotations

import functools
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from hf_models import D_VOCAB, MAKERS, N_CTX, randomise, save_tokenizer

try:
    from transformer_lens import HookedTransformer, HookedTransformerConfig
except ImportError:  # TransformerLens 4
    HookedTransformer = HookedTransformerConfig = None

SMALL = {
    "n_layers": 2,
    "d_model": 16,
    "n_heads": 2,
    "d_head": 8,
    "d_mlp": 24,
    "n_ctx": N_CTX,
    "d_vocab": D_VOCAB,
    "act_fn": "gelu",
    "normalization_type": "LN",
    "eps": 1e-3,
    "seed": 0,
    "device": "cpu",
}

# Models that are nothing but a configuration.
CONFIGURED: dict[str, dict[str, Any]] = {
    "LN": {},
    "RMS": {"normalization_type": "RMS", "final_rms": True},
    "LNPre": {"normalization_type": "LNPre"},
    "RMSPre": {"normalization_type": "RMSPre", "final_rms": True},
    "no-norm": {"normalization_type": None},
    "solu-ln": {"act_fn": "solu_ln"},
    "attention-only": {"attn_only": True},
    "shortformer": {"positional_embedding_type": "shortformer"},
    "rotary": {"positional_embedding_type": "rotary", "rotary_dim": 8, "rotary_adjacent_pairs": True},
    "gated": {"normalization_type": "RMS", "final_rms": True, "gated_mlp": True, "act_fn": "silu"},
    "soft-cap": {"output_logits_soft_cap": 3.0},
}

_HF_CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {"d_mlp": 64, "act_fn": "gelu_new", "eps": 1e-5},
    "llama": {
        "n_heads": 4,
        "d_head": 4,
        "n_key_value_heads": 2,
        "act_fn": "silu",
        "normalization_type": "RMS",
        "final_rms": True,
        "gated_mlp": True,
        "positional_embedding_type": "rotary",
        "rotary_dim": 4,
        "rotary_adjacent_pairs": False,
    },
    "gemma2": {
        "n_key_value_heads": 1,
        "act_fn": "gelu_pytorch_tanh",
        "eps": 1e-6,
        "normalization_type": "RMS",
        "final_rms": True,
        "gated_mlp": True,
        "positional_embedding_type": "rotary",
        "rotary_dim": 8,
        "rotary_base": 10000,
        "rotary_adjacent_pairs": False,
        "attn_scale": 16.0,
        "attn_scores_soft_cap": 50.0,
        "output_logits_soft_cap": 3.0,
        "use_local_attn": True,
        "window_size": 8,
        "attn_types": ["local", "global"],
        "use_normalization_before_and_after": True,
    },
    "neox": {
        "eps": 1e-5,
        "parallel_attn_mlp": True,
        "positional_embedding_type": "rotary",
        "rotary_dim": 2,
        "rotary_adjacent_pairs": False,
    },
}


def _converted(hf_model: Any, family: str, cfg: Any) -> dict[str, torch.Tensor]:
    from transformer_lens.pretrained import weight_conversions

    name = "gemma" if family == "gemma2" else family
    return getattr(weight_conversions, f"convert_{name}_weights")(hf_model, cfg)


def empty(options: dict[str, Any], tokenizer: Any = None, **arguments: Any) -> Any:
    """A HookedTransformer of this configuration, without the deprecation warning of TransformerLens 3."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return HookedTransformer(HookedTransformerConfig(**{**SMALL, **options}), tokenizer=tokenizer, **arguments)


def build_hooked(name: str, *, processed: bool = False, dtype: torch.dtype = torch.float32) -> Any:
    """A fresh HookedTransformer: one of ``CONFIGURED`` or of ``hf_models.MAKERS``, with a tokenizer.

    ``processed`` as ``HookedTransformer.from_pretrained`` leaves it: norms and value biases folded, weights centred.
    """
    with tempfile.TemporaryDirectory() as folder:  # read once, when the model is built
        tokenizer = save_tokenizer(Path(folder))
        family = name.partition("-")[0]
        options = CONFIGURED[name] if name in CONFIGURED else _HF_CONFIGS[family]
        model = empty({**options, "dtype": dtype}, tokenizer)
    if name in CONFIGURED:
        randomise(model)
        if model.cfg.normalization_type is None:  # keep its predictions from being certain
            torch.nn.init.normal_(model.unembed.W_U, std=0.02, generator=torch.Generator().manual_seed(0))
        if model.cfg.gated_mlp:  # its bias is added behind the gate here, and there is none in other models
            for block in model.blocks:
                torch.nn.init.zeros_(block.mlp.b_in)
                torch.nn.init.zeros_(block.mlp.b_out)
    else:
        hf_model = MAKERS[name]()
        randomise(hf_model)
        weights = {key: weight.clone() for key, weight in _converted(hf_model, family, model.cfg).items()}
        model.load_state_dict(model.fill_missing_keys(weights))
    if processed:
        has_weights = model.cfg.normalization_type in ("LN", "RMS")
        model.process_weights_(fold_ln=has_weights, center_unembed=model.cfg.output_logits_soft_cap <= 0)
    model.cfg.model_name = name
    return model.eval()


@functools.cache
def shared_hooked(name: str, *, processed: bool = False) -> Any:
    """A HookedTransformer that many tests read and none changes."""
    return build_hooked(name, processed=processed)


def as_native(model: Any) -> Any:
    """TransformerLens' own model in its bridge (3.9 and 4), with the weights of this unprocessed HookedTransformer."""
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    options = CONFIGURED[model.cfg.model_name]
    bridge = TransformerBridge.boot_native(TransformerBridgeConfig(**{**SMALL, **options}))
    weights = native_weights(model.state_dict())
    own = bridge.state_dict()
    bridge.load_state_dict({name: weights[name].reshape(value.shape) for name, value in own.items() if name in weights})
    return bridge.eval()


def native_weights(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a HookedTransformer under the names and in the shapes of a native bridge."""
    renamed = {}
    for name, weight in weights.items():
        *place, leaf = name.split(".")
        part, _, which = leaf.partition("_")
        is_matrix = part == "W"
        if is_matrix and place[-1] == "attn" and which in "QKVO":
            layout = "head d_head m -> m (head d_head)" if which == "O" else "head m d_head -> (head d_head) m"
            weight_here = rearrange(weight, layout)
        else:
            weight_here = weight.T if is_matrix and place[-1] in ("mlp", "unembed") else weight
        if place[-1] in ("attn", "mlp"):
            place.append(which.lower())
        renamed[".".join([*place, "weight" if part in ("W", "w") else "bias"])] = weight_here
    return renamed
