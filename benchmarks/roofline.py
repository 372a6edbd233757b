"""The least that the numbers of a case cost on this machine, in straightforward PyTorch: what ours is compared with.

For direct effects that is

1. the forward pass of all tokens to the hook point, stopped there (as sae_vis has TransformerLens run it),
2. the encoder's product for the features that are encoded,
3. one unembedding for each distinct position whose prediction is shown with an effect,
4. for each pair of a feature and such a position one log-softmax over the vocabulary, its 5 largest and 5 smallest.

For the full ablation 3 and 4 are replaced by one forward pass of the blocks behind the hook point for each pair of a
feature and a shown row that it changes, and for each of these rows as it is; one unembedding for each prediction that is
shown with an effect, changed and as it is; and 4 where the tokens that change most are listed.

Choosing examples, statistics, rendering and memory are free. How often each piece is needed is counted in the data that was
fetched; each is timed on a part of that, and multiplied.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from benchmarks.cases import Case
from benchmarks.material import Material
from benchmarks.peers.loading import EPS, load_shape
from sae_vis import FeatureData, MultiFeatureData, SequenceData
from sae_vis.model_fns import LanguageModel

# Of what is timed at most: some seconds, as the speed of a machine changes from one to the next; a whole number of chunks.
# Sizes of chunks that were fast where this was written.
SAMPLED_ROWS, CHUNK_ROWS = 256, 8
SAMPLED_POSITIONS, CHUNK_POSITIONS = 16384, 256
SAMPLED_PAIRS, CHUNK_PAIRS = 32768, 16
SAMPLED_PASSES, CHUNK_PASSES = 512, 8
LISTED = 5


class Counts(NamedTuple):
    """How often each piece is needed: ``positions`` unembedded, ``pairs`` looked at, rows that pass the blocks once more."""

    rows: int
    positions: int
    pairs: int
    passes: int = 0


class Piece(NamedTuple):
    """One piece of the roofline: seconds for ``n`` of something, timed on ``sampled`` of them."""

    seconds: float
    n: int
    sampled: int


# --- counting -----------------------------------------------------------------------------------------------------


def shown_sequences(feature: FeatureData) -> list[SequenceData]:
    """All examples of a feature, those where it does not fire too."""
    against = feature.counterexamples.sequences() if feature.counterexamples else []
    return [*(sequence for group in feature.sequences.groups for sequence in group.sequences), *against]


def effects_of(feature: FeatureData, seq_len: int) -> set[int]:
    """The places (``row * seq_len + position``) of the predictions that the feature is shown to change."""
    return {
        sequence.row * seq_len + sequence.start + effect.at - 1
        for sequence in shown_sequences(feature)
        for effect in sequence.effects
    }


def count_pairs(features: Iterable[FeatureData], seq_len: int) -> tuple[int, int]:
    """Distinct positions, and pairs of a feature and a position, that have an effect; one feature at a time."""
    pairs, positions = 0, set[int]()
    for feature in features:
        places = effects_of(feature, seq_len)
        pairs += len(places)
        positions |= places
    return len(positions), pairs


class Ablations(NamedTuple):
    """Pairs of a feature and a shown row whose predictions it changes, and these predictions; the distinct ones of both."""

    rows: int
    predictions: int
    distinct_rows: int
    distinct_predictions: int


def count_ablations(features: Iterable[FeatureData], acts: Callable[[int, list[int]], Tensor]) -> Ablations:
    """What the full ablation needs.

    A feature changes the shown tokens behind the first one on which it is active. ``acts(feature, rows)`` gives the
    activations ``[rows, seq]``.
    """
    n_rows = n_predictions = 0
    distinct: dict[int, set[int]] = {}
    for feature in features:
        tokens: dict[int, set[int]] = {}
        for one in shown_sequences(feature):
            tokens.setdefault(one.row, set()).update(range(one.start, one.start + len(one.token_ids)))
        rows = sorted(tokens)
        active = acts(feature.feature_idx, rows) > 0 if rows else ()
        for row, own in zip(rows, active, strict=True):
            first = int(own.long().argmax()) if bool(own.any()) else len(own)
            changed = {token for token in tokens[row] if token > first}
            if changed:
                n_rows += 1
                n_predictions += len(changed)
                distinct.setdefault(row, set()).update(changed)
    return Ablations(n_rows, n_predictions, len(distinct), sum(map(len, distinct.values())))


def _counts(case: Case, given: Material, data: MultiFeatureData) -> Counts:
    seq_len = case.shape.seq_len
    if case.ablation != "full":
        return Counts(case.rows, *count_pairs(data.values(), seq_len))
    lm, asked = LanguageModel(given.model), torch.tensor(list(data))
    ignored = torch.isin(given.tokens, torch.tensor(data.provenance.ignored_token_ids))
    rows = given.tokens.split(CHUNK_ROWS)
    # Of all rows at once, as most are shown for some feature.
    acts = torch.cat([given.encoder.encode(lm.activations(some, case.shape.hook_point), asked) for some in rows])
    acts = acts.masked_fill_(ignored[..., None], 0.0)
    columns = {feature: index for index, feature in enumerate(data)}
    full = count_ablations(data.values(), lambda feature, rows: acts[rows, :, columns[feature]])
    return Counts(
        rows=case.rows,
        positions=full.predictions + full.distinct_predictions,
        pairs=count_pairs(data.values(), seq_len)[1],
        passes=full.rows + full.distinct_rows,
    )


# --- timing -------------------------------------------------------------------------------------------------------


def timed(run: Callable[[Tensor], object], values: Tensor, chunk: int, n: int) -> Piece:
    """Run all values in chunks, after one chunk to warm up, and multiply to ``n``."""
    if not n or not len(values):
        return Piece(0.0, n, 0)
    run(values[:chunk])
    start = time.perf_counter()
    for part in values.split(chunk):
        run(part)
    return Piece((time.perf_counter() - start) * n / len(values), n, len(values))


def repeated(values: Tensor, n: int) -> Tensor:
    """``n`` rows of values, again from the first where there are fewer."""
    return values[torch.arange(n) % len(values)]


class Blocks:
    """The blocks of the model behind a hook point in plain torch, from its weights: no hooks, no wrappers."""

    def __init__(self, folder: Path, hook_point: str) -> None:
        if not hook_point.endswith("hook_resid_post"):
            raise ValueError(f"The roofline of the full ablation is known for hook_resid_post, not for {hook_point}.")
        shape = load_shape(folder)
        self.heads = shape["n_heads"]
        self.layers = range(int(hook_point.split(".")[1]) + 1, shape["n_layers"])
        self.weights = load_file(folder / "model.safetensors")

    def __call__(self, x: Tensor) -> Tensor:
        """The final residual stream ``[rows, seq, d_model]`` from that at the hook point."""
        for layer in self.layers:
            x = x + self._attention(self._norm(x, f"{layer}.ln_1"), f"{layer}.attn")
            hidden = self._linear(self._norm(x, f"{layer}.ln_2"), f"{layer}.mlp.c_fc")
            x = x + self._linear(functional.gelu(hidden), f"{layer}.mlp.c_proj")
        return x

    def _weight(self, name: str) -> Tensor:
        return self.weights[f"transformer.h.{name}"]

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], self._weight(f"{name}.weight"), self._weight(f"{name}.bias"), EPS)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return torch.addmm(self._weight(f"{name}.bias"), x.flatten(0, 1), self._weight(f"{name}.weight")).view(
            *x.shape[:2], -1
        )

    def _attention(self, x: Tensor, name: str) -> Tensor:
        rows, seq, width = x.shape
        q, k, v = (
            part.view(rows, seq, self.heads, -1).transpose(1, 2)
            for part in self._linear(x, f"{name}.c_attn").split(width, -1)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self._linear(mixed.transpose(1, 2).reshape(rows, seq, width), f"{name}.c_proj")


def _product(weight: Tensor, bias: Tensor) -> Callable[[Tensor], Tensor]:
    """``x @ weight + bias``, always into the same memory: new memory for each chunk would cost as much as the product."""
    memory = bias.new_empty(0)

    def product(x: Tensor) -> Tensor:
        nonlocal memory
        if len(memory) < len(x):
            memory = bias.new_empty(len(x), len(bias))
        return torch.addmm(bias, x, weight, out=memory[: len(x)])

    return product


def _listed(logits: Tensor) -> tuple[Tensor, Tensor]:
    log_probs = torch.log_softmax(logits, -1)
    return log_probs.topk(LISTED).values, log_probs.topk(LISTED, largest=False).values


def measure(case: Case, given: Material, data: MultiFeatureData, folder: Path) -> dict[str, Any]:
    """The pieces of the roofline of a case, whose data was fetched, and their sum in seconds."""
    lm = LanguageModel(given.model)
    with lm.as_for_inference():
        counts = _counts(case, given, data)
        pieces = _shared_pieces(case, given, lm)
        if case.ablation == "full":
            pieces["downstream"] = _downstream(case, given, lm, counts, folder)
        pieces |= _prediction_pieces(given, lm, counts)
    return {
        "total_s": sum(piece.seconds for piece in pieces.values()),
        "pieces": {name: piece._asdict() for name, piece in pieces.items()},
        "counts": counts._asdict(),
    }


def _shared_pieces(case: Case, given: Material, lm: LanguageModel) -> dict[str, Piece]:
    """The forward pass to the hook point, and the encoder's product."""
    hook_point, seq_len = case.shape.hook_point, case.shape.seq_len
    sample = given.tokens[:SAMPLED_ROWS]
    forward = timed(lambda rows: lm.activations(rows, hook_point), sample, CHUNK_ROWS, case.rows)
    encoder, asked = given.encoder, slice(None if case.correlates_all else case.features)
    weight, bias = encoder.W_enc[:, asked].contiguous(), encoder.b_enc[asked].contiguous()
    acts = torch.cat([lm.activations(rows, hook_point) for rows in sample[: 4 * CHUNK_ROWS].split(CHUNK_ROWS)])
    x = repeated(acts.flatten(0, 1), min(SAMPLED_ROWS, case.rows) * seq_len)
    encoded = timed(_product(weight, bias), x, CHUNK_ROWS * seq_len, case.rows * seq_len)
    return {"forward": forward, "encoder": encoded}


def _prediction_pieces(given: Material, lm: LanguageModel, counts: Counts) -> dict[str, Piece]:
    """The unembeddings, and what is found in the logits of each pair."""
    weight, bias = lm.unembedding()
    residual = lm.final_residual(given.tokens[:CHUNK_ROWS]).flatten(0, 1)
    residual = residual / residual.std(-1, keepdim=True)
    unembedded = _product(weight, bias)
    sample = repeated(residual, min(SAMPLED_POSITIONS, counts.positions))
    logits = unembedded(residual[:CHUNK_PAIRS]).clone()
    n_pairs = min(SAMPLED_PAIRS, counts.pairs)
    return {
        "unembedding": timed(unembedded, sample, CHUNK_POSITIONS, counts.positions),
        # Always the same logits: those of a pair cost nothing to make, and lie in the cache, at best.
        "pairs": timed(lambda part: _listed(logits[: len(part)]), torch.arange(n_pairs), CHUNK_PAIRS, counts.pairs),
    }


def _downstream(case: Case, given: Material, lm: LanguageModel, counts: Counts, folder: Path) -> Piece:
    """The forward passes of one row each from the hook point on."""
    blocks = Blocks(folder, case.shape.hook_point)
    entering = lm.activations(given.tokens[:CHUNK_PASSES], case.shape.hook_point)
    sample = repeated(entering, min(SAMPLED_PASSES, counts.passes))
    return timed(blocks, sample, CHUNK_PASSES, counts.passes)
