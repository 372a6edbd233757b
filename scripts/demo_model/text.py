"""Stage ``tokenizer``: a byte-level BPE, and the corpus as rows of token ids."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from .corpus import read_corpus
from .settings import BOS, BOS_ID, EOS, EOS_ID, PAD, PAD_ID, ROW_LENGTH, VOCAB_SIZE

SPLITS = ("train", "held_out")


def train_tokenizer(work: Path) -> None:
    """Train the BPE on the training documents and encode the whole corpus with it."""
    documents = read_corpus(work)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((d.text for d in documents if not d.held_out), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, model_max_length=ROW_LENGTH
    )
    assert len(fast) == VOCAB_SIZE
    assert fast.convert_tokens_to_ids([BOS, EOS, PAD]) == [BOS_ID, EOS_ID, PAD_ID]
    fast.save_pretrained(work / "tokenizer")

    sources = sorted({d.source for d in documents})
    for split in SPLITS:
        chosen = [d for d in documents if d.held_out == (split == "held_out")]
        encoded = tokenizer.encode_batch_fast([d.text for d in chosen])
        ids = [np.array([*e.ids, EOS_ID], dtype=np.uint16) for e in encoded]
        np.savez(
            work / f"{split}.npz",
            tokens=np.concatenate(ids),
            ends=np.cumsum([len(i) for i in ids]),
            source=np.array([sources.index(d.source) for d in chosen], dtype=np.uint8),
        )
        n_bytes = sum(len(d.text.encode()) for d in chosen)
        n_tokens = sum(map(len, ids))
        print(
            f"{split}: {len(chosen)} documents, {n_tokens} tokens, {n_bytes / n_tokens:.2f} bytes a token", flush=True
        )
    (work / "sources.json").write_text(json.dumps(sources))


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the saved tokenizer the way a user does."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return tokenizer


def rows(work: Path, split: str, seed: int | None) -> np.ndarray:
    """Return the split as rows of BOS + 127 running tokens, documents and rows shuffled by ``seed`` (None: in order)."""
    with np.load(work / f"{split}.npz") as data:
        tokens, ends = data["tokens"], data["ends"]
    rng = None if seed is None else np.random.default_rng(seed)
    if rng is not None:
        pieces = np.split(tokens, ends[:-1])
        tokens = np.concatenate([pieces[i] for i in rng.permutation(len(pieces))])
    body = ROW_LENGTH - 1
    n_rows = len(tokens) // body
    out = np.full((n_rows, ROW_LENGTH), BOS_ID, dtype=np.int64)
    out[:, 1:] = tokens[: n_rows * body].reshape(n_rows, body)
    if rng is not None:
        rng.shuffle(out)
    return out
