"""The model, the dictionary, the tokens and the tokenizer of the benchmarks: random, seeded, written once for everybody."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.peers import loading
from sae_vis import AutoEncoder
from sae_vis.model_fns import LanguageModel

BOS, EOS, PAD, UNKNOWN = range(4)
SPECIAL = ("<|bos|>", "<|eos|>", "<|pad|>", "<|unk|>")
DENSITY = 0.005
N_CTX = 256
SAMPLED_POSITIONS = 8192
VERSION = 2  # of what is written: part of the folder's name, so that older files are not taken for new ones


@dataclass(frozen=True)
class Shape:
    """The sizes of a model, and of the dictionary at one of its hook points."""

    name: str
    hook_point: str
    n_layers: int = 1
    d_model: int = 512
    d_mlp: int = 2048
    n_heads: int = 8
    d_vocab: int = 49_152
    d_hidden: int = 16_384
    rows: int = 2048
    seq_len: int = 128
    n_ctx: int = N_CTX

    @property
    def d_in(self) -> int:
        """Width of the hook point."""
        return self.d_mlp if self.hook_point.endswith("mlp.hook_post") else self.d_model


GELU_1L = Shape("gelu-1l", "blocks.0.mlp.hook_post")
FOUR_LAYERS = Shape("four-layers", "blocks.1.hook_resid_post", n_layers=4, d_hidden=4096, rows=1024)
_TINY = {"d_model": 32, "d_mlp": 64, "n_heads": 2, "d_vocab": 400, "d_hidden": 256, "rows": 128, "seq_len": 32}
TINY_GELU_1L = Shape("tiny-gelu-1l", "blocks.0.mlp.hook_post", **_TINY)
TINY_FOUR_LAYERS = Shape("tiny-four-layers", "blocks.1.hook_resid_post", n_layers=4, **_TINY)


class Material(NamedTuple):
    """What every contestant is given."""

    model: Any
    encoder: AutoEncoder
    tokens: Tensor
    tokenizer: Any


def default_cache() -> Path:
    """The folder of the benchmarks under the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sae_vis-benchmarks"


def load(shape: Shape = GELU_1L, cache: Path | None = None, rows: int | None = None) -> Material:
    """Model, encoder, tokens ``[rows, seq_len]`` and tokenizer of a shape, in this environment; written first if need be."""
    folder = prepare(shape, cache or default_cache())
    model = load_model(folder)
    encoder = AutoEncoder.from_weights(loading.load_encoder_weights(folder))
    return Material(model, encoder, loading.load_tokens(folder, shape.rows if rows is None else rows), model.tokenizer)


def load_model(folder: Path) -> Any:
    """The model in the bridge where TransformerLens has one, else as a HookedTransformer."""
    try:
        return loading.load_bridge(folder)
    except ImportError:
        from transformer_lens import HookedTransformer

        return loading.load_hooked(folder, HookedTransformer)


def prepare(shape: Shape, cache: Path) -> Path:
    """The folder with all files of a shape, written if it is not there; a stopped attempt leaves nothing behind."""
    folder = cache / f"{shape.name}-{VERSION}"
    if (folder / "shape.json").exists() and loading.load_shape(folder) == asdict(shape):
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as unfinished:
        made = Path(unfinished) / "material"
        made.mkdir()
        _write(shape, made)
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    return folder


def _write(shape: Shape, folder: Path) -> None:
    (folder / "shape.json").write_text(json.dumps(asdict(shape), indent=1) + "\n", encoding="utf-8")
    save_tokenizer(shape.d_vocab, folder / "tokenizer")
    tokens = random_tokens(shape)
    save_file({"tokens": tokens}, folder / "tokens.safetensors")
    save_file(dict(random_weights(shape)), folder / "model.safetensors")
    random_encoder(shape, load_model(folder), tokens).save(folder / "encoder.safetensors")


def random_weights(shape: Shape) -> Iterator[tuple[str, Tensor]]:
    """Weights of GPT-2's names whose residual stream, neurons and logits have the sizes of a trained model's.

    The logits have a standard deviation of about 2.5, and the largest logit weight of a feature is well above 0.3: below
    it both peers draw a million ticks on the axis of its histogram, which would say nothing about their usual pages. The
    unembedding is centred and the norms do nothing but normalise, as processing leaves them, for all contestants alike.
    """
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int, std: float) -> Tensor:
        return torch.randn(size, generator=generator) * std

    d_model, d_mlp = shape.d_model, shape.d_mlp
    yield "transformer.wte.weight", normal(shape.d_vocab, d_model, std=0.5)
    yield "transformer.wpe.weight", normal(shape.n_ctx, d_model, std=0.2)
    for layer in range(shape.n_layers):
        block = f"transformer.h.{layer}"
        yield f"{block}.attn.c_attn.weight", normal(d_model, 3 * d_model, std=1.2 / d_model**0.5)
        yield f"{block}.attn.c_attn.bias", normal(3 * d_model, std=0.05)
        yield f"{block}.attn.c_proj.weight", normal(d_model, d_model, std=0.5 / d_model**0.5)
        yield f"{block}.attn.c_proj.bias", normal(d_model, std=0.05)
        yield f"{block}.mlp.c_fc.weight", normal(d_model, d_mlp, std=1.0 / d_model**0.5)
        yield f"{block}.mlp.c_fc.bias", normal(d_mlp, std=0.2) - 0.3
        yield f"{block}.mlp.c_proj.weight", normal(d_mlp, d_model, std=3.0 / d_mlp**0.5)
        yield f"{block}.mlp.c_proj.bias", normal(d_model, std=0.05)
        for number in (1, 2):
            yield f"{block}.ln_{number}.weight", torch.ones(d_model)
            yield f"{block}.ln_{number}.bias", torch.zeros(d_model)
    yield "transformer.ln_f.weight", torch.ones(d_model)
    yield "transformer.ln_f.bias", torch.zeros(d_model)
    unembedding = normal(shape.d_vocab, d_model, std=2.5 / d_model**0.5)
    yield "lm_head.weight", unembedding - unembedding.mean(0)


def random_tokens(shape: Shape) -> Tensor:
    """Rows that begin with BOS; the others follow Zipf's law, rank by id, as a tokenizer's merges leave them."""
    generator = torch.Generator().manual_seed(1)
    ranks = torch.arange(shape.d_vocab - len(SPECIAL), dtype=torch.float64)
    cumulative = (1.0 / (ranks + 2.7)).cumsum(0)
    drawn = torch.rand(shape.rows, shape.seq_len, generator=generator, dtype=torch.float64) * cumulative[-1]
    tokens = torch.searchsorted(cumulative, drawn).clamp_max(len(ranks) - 1) + len(SPECIAL)
    tokens[:, 0] = BOS
    return tokens


def random_encoder(shape: Shape, model: Any, tokens: Tensor) -> AutoEncoder:
    """Unit decoder rows, encoder columns equal to them, and the bias that makes each feature fire on 0.5 % of a sample."""
    n_rows = max(1, SAMPLED_POSITIONS // shape.seq_len)
    lm = LanguageModel(model)
    with lm.as_for_inference():
        rows = [lm.activations(row, shape.hook_point) for row in tokens[:n_rows].split(16)]
    acts = torch.cat(rows)[:, 1:].flatten(0, 1)
    decoder = torch.randn(shape.d_hidden, shape.d_in, generator=torch.Generator().manual_seed(2))
    decoder /= decoder.norm(dim=1, keepdim=True)
    centre = acts.mean(0)
    acts -= centre
    rank = max(1, round(len(acts) * DENSITY))
    # In pieces: all features at once would be more memory than any contestant needs.
    bias = torch.cat([-(acts @ part.T).topk(rank + 1, dim=0).values[-1] for part in decoder.split(1024)])
    return AutoEncoder.from_weights({"W_enc": decoder.T.contiguous(), "b_enc": bias, "W_dec": decoder, "b_dec": centre})


def save_tokenizer(d_vocab: int, folder: Path) -> None:
    """A byte-level tokenizer of whole made-up words, most of them with a space in front."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(words(d_vocab))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL[UNKNOWN]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    fast: Any = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=SPECIAL[BOS],
        eos_token=SPECIAL[EOS],
        pad_token=SPECIAL[PAD],
        unk_token=SPECIAL[UNKNOWN],
    )
    fast.save_pretrained(folder)
    # Newer versions of transformers write a class name that older ones do not know; all know this one.
    config = folder / "tokenizer_config.json"
    settings = json.loads(config.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    config.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def words(d_vocab: int) -> list[str]:
    """Distinct tokens, short ones first: the special ones, punctuation, then syllables; ``Ġ`` is a space."""
    found = [*SPECIAL, *".,:;!?()", "Ġ", "Ċ"]
    syllables = [start + vowel for start in ("", *"bdfglmnrst", "th", "st") for vowel in "aeiou"]
    longest = syllables
    while len(found) < d_vocab:
        found += [word if i % 5 == 0 else f"Ġ{word}" for i, word in enumerate(longest)]
        found = list(dict.fromkeys(found))  # a + ia = ai + a
        longest = [word + syllable for word in longest for syllable in syllables]
    return found[:d_vocab]
