"""Synthetic data that looks like a real run: code tokens, skewed activations, everything made from a seed."""

from __future__ import annotations

import random

from sae_vis._params import FeatureVisParams
from sae_vis._prompt_comparison import ComparedFeature, PromptComparisonData
from sae_vis._prompt_panels import heat_rows
from sae_vis.data_storing_fns import (
    ActivationsData,
    CorrelationData,
    FeatureData,
    FeatureTablesData,
    HistogramData,
    LogitsData,
    MultiFeatureData,
    MultiPromptData,
    NeuronAlignmentData,
    PromptData,
    Provenance,
    QuantileKnots,
    SequenceData,
    SequenceGroupData,
    SequenceMultiGroupData,
    TokenEffect,
)
from sae_vis.utils_fns import ticks

BOS = 0
TEXT = """import from def class return self None True False if else elif for in not and or with as try except raise lambda
django models forms views urls admin db CharField ForeignKey max_length null blank default verbose_name related_name objects
filter get queryset request response render context template user password email first_name last_name created updated path
include migrations operations migrations.AddField model_name field name options ordering Meta str int float list dict tuple
os sys re json time datetime random math collections itertools functools typing Optional Callable Iterable test assert
assertEqual setUp mock patch index value key item items result data file line text error message code type object"""
WORDS = TEXT.split()
SYMBOLS = [
    *"()[]{}:,.=+-*/<>|&%@#'\"_\\`~^!?;",
    "==",
    "!=",
    "->",
    "**",
    "():",
    "('",
    "')",
    "',",
    "\n\n",
    "    ",
    "'",
]
ENDINGS = [
    "s",
    "ed",
    "ing",
    "er",
    "ion",
    "able",
    "ment",
    "_id",
    "0",
    "1",
    "é",
    "ß",
    "你好",
    "Привет",
    "—",
    "’",
    "\u00a0",
]
EMOJI_BYTES = ["f0", "9f", "8ebb", "e2", "9c", "93"]  # 🎻 and ✓ split over byte-level tokens


def make_vocab() -> tuple[dict[int, str], dict[int, str]]:
    """The vocabulary of the synthetic data, and the bytes of its byte-level tokens."""
    texts = ["<|endoftext|>", "\n", "\t", *SYMBOLS, *ENDINGS, *WORDS, *(f" {word}" for word in WORDS)]
    texts += [f"\n{' ' * (4 * depth - 1)}" for depth in range(1, 4)]
    vocab = dict(enumerate(dict.fromkeys(texts)))
    vocab_bytes = {len(vocab) + place: text for place, text in enumerate(EMOJI_BYTES)}
    vocab |= dict.fromkeys(vocab_bytes, "�")
    return vocab, vocab_bytes


def make_histogram(values: list[float], n_bins: int) -> HistogramData:
    """The histogram of some values, by the plainest code."""
    if not values:
        return HistogramData([], [], [])
    low, high = min(values), max(values)
    if low == high:
        return HistogramData([low - 0.5, high + 0.5], [len(values)], [low])
    edges = [low + (high - low) * place / n_bins for place in range(n_bins)] + [high]
    heights = [0] * n_bins
    for value in values:
        heights[min(n_bins - 1, int((value - low) / (high - low) * n_bins))] += 1
    return HistogramData(edges, heights, ticks(low, high))


class Maker:
    """Makes the parts of features from one random stream."""

    def __init__(self, seed: int, params: FeatureVisParams, effects: bool = True) -> None:
        self.random = random.Random(seed)
        self.params = params
        self.effects = effects
        self.vocab, self.vocab_bytes = make_vocab()
        self.common = [self.random.randrange(1, len(self.vocab)) for _ in range(400)]
        self.rows: dict[int, list[int]] = {}

    def token_ids(self, n: int) -> list[int]:
        """A row of tokens, some of them an emoji in pieces."""
        ids = [self.random.choice(self.common) for _ in range(n)]
        if n > 8 and self.random.random() < 0.2:
            at, pieces = self.random.randrange(1, n - 3), sorted(self.vocab_bytes)
            ids[at : at + 3] = pieces[:3] if self.random.random() < 0.5 else pieces[3:]
        return ids

    def row(self, index: int) -> list[int]:
        """A row of the corpus, the same at every call."""
        if index not in self.rows:
            self.rows[index] = [BOS, *self.token_ids(63)]
        return self.rows[index]

    def changes(self, at: int) -> TokenEffect:
        """The most raised and lowered tokens of one prediction."""
        n = self.params.n_changes
        raised = sorted((abs(self.random.gauss(0.3, 0.5)) for _ in range(n)), reverse=True)
        lowered = sorted(-abs(self.random.gauss(0.2, 0.3)) for _ in range(n))
        ids = [self.random.choice(self.common[:60]) for _ in range(2 * n)]
        return TokenEffect(at, ids[:n], raised, ids[n:], lowered)

    def sequence(self, act: float, whole: list[int] | None = None) -> SequenceData:
        """A window of a row whose bold token has this activation."""
        before, after = self.params.buffer or (64, 64)
        row = self.random.randrange(1000)
        ids = whole or self.row(row)
        at = self.random.randrange(1, len(ids))
        start, stop = (0, len(ids)) if whole else (max(0, at - before), min(len(ids), at + after + 1))
        acts = [
            round(act * self.random.random() ** 3, 3) if self.random.random() < 0.25 else 0.0
            for _ in range(start, stop)
        ]
        acts[at - start] = act
        if start == 0:
            acts[0] = 0.0
        losses: list[float | None] = []
        effects = []
        for place in range(len(acts)):
            if not self.effects or start + place == 0:
                losses.append(None)
            elif place and acts[place - 1] > 0:
                losses.append(round(self.random.gauss(-0.1, 0.2) * acts[place - 1], 5))
                effects.append(self.changes(place))
            else:
                losses.append(0.0)
        return SequenceData(0 if whole else row, start, at - start, ids[start:stop], acts, losses, effects)

    def groups(self, largest: float) -> list[SequenceGroupData]:
        """The top activations and the intervals."""
        p = self.params
        acts = sorted((largest * (1 - 0.3 * self.random.random()) for _ in range(p.first_group_size)), reverse=True)
        top = [self.sequence(round(act, 3)) for act in [largest, *acts[1:]]]
        groups = [SequenceGroupData("TOP ACTIVATIONS", 0.0, largest, None, top)]
        for index in reversed(range(p.n_groups)):
            lower, upper = largest * index / p.n_groups, largest * (index + 1) / p.n_groups
            acts = [round(self.random.uniform(lower, upper), 3) for _ in range(p.other_groups_size)]
            share = 0.004 * 0.4**index
            groups.append(
                SequenceGroupData(
                    f"INTERVAL {lower:.4g} – {upper:.4g}", lower, upper, share, [self.sequence(a) for a in acts]
                )
            )
        return groups

    def activations(self, largest: float) -> ActivationsData:
        """A skewed distribution up to ``largest``; 0 is a feature that never fires."""
        if not largest:
            return ActivationsData(0.0, 0, None, None, None, None, None, HistogramData([], [], []))
        values = [min(largest, largest * self.random.expovariate(4)) for _ in range(1500)] + [largest]
        histogram = make_histogram(values, self.params.n_bins)
        return ActivationsData(len(values) / 126_000, len(values), largest, 0.0123, 0.0456, 9.87, 123.4, histogram)

    def logits(self, groups: list[SequenceGroupData]) -> LogitsData:
        """Logit weights over the vocabulary."""
        n = self.params.n_logits
        weights = {
            token_id: round(self.random.gauss(0, 0.5) + self.random.random() ** 20 * 2, 4) for token_id in self.vocab
        }
        order = sorted(weights, key=weights.__getitem__)
        top, bottom = order[::-1][:n], order[:n]
        shown = {token_id: weights[token_id] for group in groups for s in group.sequences for token_id in s.token_ids}
        histogram = make_histogram(list(weights.values()), self.params.n_bins)
        return LogitsData(top, [weights[i] for i in top], bottom, [weights[i] for i in bottom], shown, histogram)

    def correlation(self, n_columns: int) -> CorrelationData:
        """A table of correlated columns."""
        n = self.params.rows_in_left_tables
        pearson = sorted((round(self.random.random(), 4) for _ in range(n)), reverse=True)
        return CorrelationData(
            [self.random.randrange(n_columns) for _ in range(n)], pearson, [value * 0.9 for value in pearson]
        )

    def feature(self, index: int, largest: float, n_features: int) -> FeatureData:
        """A whole feature; ``largest`` 0 makes one that never fires."""
        n = self.params.rows_in_left_tables
        values = sorted((round(self.random.random(), 4) for _ in range(n)), reverse=True)
        neurons = NeuronAlignmentData([self.random.randrange(1024) for _ in range(n)], values, [v / 40 for v in values])
        correlated = [self.correlation(n_columns) if largest else None for n_columns in (1024, n_features, 2048)]
        groups = self.groups(largest) if largest else []
        knots = QuantileKnots([largest], [1], 126_000) if largest else QuantileKnots([], [], 126_000)
        return FeatureData(
            index,
            FeatureTablesData(neurons, *correlated),
            self.activations(largest),
            self.logits(groups),
            SequenceMultiGroupData(groups),
            knots,
        )


def make_provenance(**changes: object) -> Provenance:
    """The provenance of the synthetic run."""
    values: dict[str, object] = {
        "model": "gelu-1l-code",
        "hook_point": "blocks.0.mlp.hook_post",
        "d_in": 1024,
        "d_hidden": 2048,
        "n_rows": 1000,
        "seq_len": 128,
        "n_counted": 126_000,
        "direct_effect": "exact",
        "first_token_id": BOS,
        "ignored_token_ids": [BOS],
        "versions": {"sae_vis": "1.0.0", "torch": "2.8.0", "transformer_lens": "4.0.0"},
        "digests": {"encoder": "1a2b3c4d5e6f7890", "tokens": "0f1e2d3c4b5a6978"},
    }
    return Provenance(**{**values, **changes})  # type: ignore[arg-type]


def make_features(
    n_features: int = 8, seed: int = 0, dead: tuple[int, ...] = (3,), effects: bool = True, **params: object
) -> MultiFeatureData:
    """Some features, those in ``dead`` never firing."""
    fvp = FeatureVisParams(**params)  # type: ignore[arg-type]
    maker = Maker(seed, fvp, effects)
    features = {}
    for index in range(n_features):
        largest = 0.0 if index in dead else round(0.5 + maker.random.expovariate(0.3), 3)
        features[index] = maker.feature(index, largest, n_features)
    if 1 in features:
        features[1].label = "Django model fields"
    rows = dict(sorted(maker.rows.items())) if fvp.store_rows else {}
    reason = "" if effects else "ablation=None"
    provenance = make_provenance() if effects else make_provenance(direct_effect="none", direct_effect_reason=reason)
    return MultiFeatureData(features, maker.vocab, maker.vocab_bytes, rows, fvp, provenance)


def make_prompt(
    n_features: int = 30, n_tokens: int = 12, seed: int = 0, n_top: int = 10, **params: object
) -> MultiPromptData:
    """A prompt with features of which a few are active at each position; at the last but one, none is."""
    maker = Maker(seed, FeatureVisParams(**params))  # type: ignore[arg-type]
    ids = [BOS, *maker.token_ids(n_tokens - 1)]
    data = {}
    for feature in range(0, 7 * n_features, 7):
        largest = round(0.5 + maker.random.expovariate(0.3), 3)
        sequence = maker.sequence(round(largest * 0.8, 3), ids)
        sequence.feat_acts[-2] = 0.0
        top = maker.groups(largest)[0]
        top.sequences = top.sequences[:10]
        logits = maker.logits([top, SequenceGroupData("", 0.0, 1.0, None, [sequence])])
        data[feature] = PromptData(feature, sequence, maker.activations(largest), logits, top)
    scores = {
        "act_size": [_ranked(data, p, n_top, lambda d, p: d.sequence.feat_acts[p], p) for p in range(n_tokens)],
        "act_quantile": [
            _ranked(data, p, n_top, lambda d, p: 1 - 0.01 * (1 - d.sequence.feat_acts[p] / 60), p)
            for p in range(n_tokens)
        ],
        "loss_effect": [
            _ranked(data, p, n_top, lambda d, p: -(d.sequence.loss_contribution[p] or 0.0), p - 1)
            for p in range(n_tokens)
        ],
    }
    scores["loss_effect"] = [[(f, -score) for f, score in ranked] for ranked in scores["loss_effect"]]
    active = [sum(d.sequence.feat_acts[p] > 0 for d in data.values()) for p in range(n_tokens)]
    return MultiPromptData(ids, active, maker.vocab, maker.vocab_bytes, data, maker.params, make_provenance(), scores)  # type: ignore[arg-type]


def _ranked(data, p, n_top, score, active_at):  # type: ignore[no-untyped-def]
    if active_at < 0:
        return []
    found = [(feature, score(d, p)) for feature, d in data.items() if d.sequence.feat_acts[active_at] > 0]
    return sorted(found, key=lambda pair: (-pair[1], pair[0]))[:n_top]


def make_comparison(n_features: int = 12, seed: int = 0, n_top: int = 10, **params: object) -> PromptComparisonData:
    """Two prompts that differ in one token, and of which the other has two more."""
    maker = Maker(seed, FeatureVisParams(**params))  # type: ignore[arg-type]
    first = [BOS, *maker.token_ids(7)]
    other = [*first[:3], maker.common[0], first[4], *maker.token_ids(2), *first[5:]]
    pairs = [*((at, at) for at in range(5)), (None, 5), (None, 6), (5, 7), (6, 8), (7, 9)]
    compared = {}
    for feature in range(0, 7 * n_features, 7):
        largest = round(0.5 + maker.random.expovariate(0.3), 3)
        sequences = [maker.sequence(round(largest * maker.random.random(), 3), ids) for ids in (first, other)]
        quantiles = [
            [min(1.0, 0.9 + act / 100) if act else 0.0 for act in sequence.feat_acts] for sequence in sequences
        ]
        top = maker.groups(largest)[0]
        top.sequences = top.sequences[:10]
        logits = maker.logits([top, SequenceGroupData("", 0.0, 1.0, None, sequences)])
        compared[feature] = ComparedFeature(feature, *sequences, *quantiles, maker.activations(largest), logits, top)
    scores = {
        "act_size": lambda one: (one.sequence.feat_acts, one.other_sequence.feat_acts),
        "act_quantile": lambda one: (one.quantiles, one.other_quantiles),
        "loss_effect": lambda one: (one.sequence.loss_contribution, one.other_sequence.loss_contribution),
    }
    found = {
        name: {f: _differences(pairs, *score(one)) for f, one in compared.items()} for name, score in scores.items()
    }
    differences = {
        name: [_largest({f: of[place] for f, of in by.items()}, n_top) for place in range(len(pairs))]
        for name, by in found.items()
    }
    totals = {name: _largest({f: sum(of) for f, of in by.items()}, n_top) for name, by in found.items()}
    heat = {
        name: heat_rows(
            [[(f, of[place]) for f, of in by.items() if of[place]] for place in range(len(pairs))], 50, "size"
        )
        for name, by in found.items()
    }
    rows = {row: maker.row(row) for one in compared.values() for row in one.example_rows()}
    data = (maker.vocab, maker.vocab_bytes, compared, maker.params, make_provenance())
    return PromptComparisonData(first, other, pairs, *data, differences, totals, heat, dict(sorted(rows.items())))  # type: ignore[arg-type]


def _differences(pairs, first, other):  # type: ignore[no-untyped-def]
    def score(of, at):  # type: ignore[no-untyped-def]
        return 0.0 if at is None else of[at] or 0.0

    return [round(score(other, b) - score(first, a), 6) for a, b in pairs]


def _largest(found, n_top):  # type: ignore[no-untyped-def]
    ranked = [(feature, difference) for feature, difference in found.items() if difference]
    return sorted(ranked, key=lambda pair: (-abs(pair[1]), pair[0]))[:n_top]
