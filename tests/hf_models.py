"""Tiny language models built from local Hugging Face configurations, with every weight random (norms and biases too)."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

torch.set_num_threads(1)  # on models as small as these, threads mostly wait for each other

D_VOCAB = 48
N_CTX = 24
BOS, PAD, EOS = 0, 1, 2
WORDS = ("<bos>", "<pad>", "<eos>", "<unk>", *(f"w{i}" for i in range(4, D_VOCAB)))


def save_tokenizer(folder: Path, *, prepends_bos: bool = False) -> Any:
    """A tokenizer of space-separated words, read back from a folder as TransformerLens needs it."""
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.Fuse()
    if prepends_bos:
        from tokenizers.processors import TemplateProcessing

        backend.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    fast.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def randomise(module: torch.nn.Module, seed: int = 0) -> None:
    """Every parameter random and of a size that matters; gains of norms stay near one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim == 2:
                scale = 0.5 if "embed" in name or "wte" in name or "wpe" in name else 1.2 / weight.shape[-1] ** 0.5
                weight.copy_(noise * scale)
            else:
                weight.copy_(weight + 0.3 * noise)


_SHARED = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}


def gpt2(tied: bool = True, n_layer: int = 2) -> GPT2LMHeadModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=D_VOCAB,
            n_positions=N_CTX,
            n_embd=16,
            n_layer=n_layer,
            n_head=2,
            tie_word_embeddings=tied,
            **_SHARED,
        )
    )


def llama(tied: bool = False) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=D_VOCAB,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=N_CTX,
            rms_norm_eps=1e-3,
            tie_word_embeddings=tied,
            **_SHARED,
        )
    )


def gemma2() -> Gemma2ForCausalLM:
    return Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=D_VOCAB,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            max_position_embeddings=N_CTX,
            final_logit_softcapping=3.0,
            sliding_window=8,
            attn_implementation="eager",
            **_SHARED,
        )
    )


def neox() -> GPTNeoXForCausalLM:
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=D_VOCAB,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=N_CTX,
            use_parallel_residual=True,
            **_SHARED,
        )
    )


def qwen2() -> Qwen2ForCausalLM:
    """RMSNorm, and biases on queries, keys and values."""
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=D_VOCAB,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=N_CTX,
            **_SHARED,
        )
    )


MAKERS = {
    "gpt2": gpt2,
    "gpt2-untied": functools.partial(gpt2, tied=False),
    "llama": llama,
    "llama-tied": functools.partial(llama, tied=True),
    "gemma2": gemma2,
    "neox": neox,
}


NATIVE_NORMS = ("LN", "RMS", "LNPre", "RMSPre", None)


def native(norm: str | None = "LN", tokenizer: Any = None, **options: Any) -> Any:
    """TransformerLens' own small model, every parameter and the unembedding's bias random."""
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    config = {
        "n_layers": 2,
        "d_model": 16,
        "n_heads": 2,
        "d_head": 8,
        "d_mlp": 24,
        "n_ctx": N_CTX,
        "d_vocab": D_VOCAB,
        "act_fn": "gelu",
        "normalization_type": norm,
        "eps": 1e-3,
        "seed": 0,
    }
    model = TransformerBridge.boot_native(TransformerBridgeConfig(**{**config, **options}), tokenizer=tokenizer)
    randomise(model)
    set_unembedding_bias(model)
    return model.eval()


def set_unembedding_bias(model: Any) -> None:
    """Give the unembedding a bias, which few configurations have, but which folding a norm's bias leaves behind."""
    bias = model.unembed.original_component.bias
    with torch.no_grad():
        bias.copy_(torch.randn(bias.shape, generator=torch.Generator().manual_seed(7)) * 0.5)


def boot(hf_model: Any, tokenizer: Any) -> Any:
    """The model in TransformerLens' bridge, in evaluation mode."""
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers("any-string", hf_model=hf_model, tokenizer=tokenizer, device="cpu")
    return bridge.eval()


def build(name: str, *, compat: bool = False, prepends_bos: bool = False, dtype: torch.dtype = torch.float32) -> Any:
    """A fresh model: one of ``MAKERS``, or ``native-`` and a norm; with a tokenizer."""
    with tempfile.TemporaryDirectory() as folder:  # read once, when the model is built
        tokenizer = save_tokenizer(Path(folder), prepends_bos=prepends_bos)
        if name.startswith("native-"):
            norm = name.removeprefix("native-")
            model = native(None if norm == "None" else norm, tokenizer)
        else:
            hf_model = MAKERS[name]()
            randomise(hf_model)
            model = boot(hf_model.to(dtype), tokenizer)
    if compat:
        model.enable_compatibility_mode()
    return model


@functools.cache
def shared(name: str, *, compat: bool = False) -> Any:
    """A model that many tests read and none changes."""
    return build(name, compat=compat)


ALL_MODELS = (*(f"native-{norm}" for norm in NATIVE_NORMS), *MAKERS)


def some_tokens(n_rows: int = 6, seq_len: int = 12, seed: int = 0, *, bos: bool = True) -> torch.Tensor:
    """Random rows, each beginning with BOS; the last one ends in padding."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(4, D_VOCAB, (n_rows, seq_len), generator=generator)
    if bos:
        tokens[:, 0] = BOS
        tokens[-1, -3:] = PAD
    return tokens
