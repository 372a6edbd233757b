"""Compare two prompts: align their tokens, and rank the features by how much their scores differ."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from sae_vis import _rows
from sae_vis._assemble import sequence_data, sequence_token_ids
from sae_vis._distribution_data import LogitsData
from sae_vis._page_context import LOSS_SCORES
from sae_vis._prompt_comparison import DIFFERENCE_DIGITS, NOISE, ComparedFeature, Pair, PromptComparisonData
from sae_vis._prompt_panels import HEAT_ROWS, HeatRow, heat_rows
from sae_vis._prompt_scoring import Ranking
from sae_vis._prompt_view import PromptFetcher, joined_texts, kept_rows, with_logits_of
from sae_vis._run import Run, provenance_of_prompt
from sae_vis._sequence_data import SequenceData, SequenceGroupData
from sae_vis._shown import ByPlace, ShownFeature
from sae_vis._vocabulary import token_texts
from sae_vis.data_storing_fns import MultiFeatureData
from sae_vis.utils_fns import round_significant


def aligned(first: Sequence[int], other: Sequence[int]) -> list[Pair]:
    """The positions of both token sequences side by side, in order.

    The longest common stretches are paired (as ``difflib`` finds them), and so are stretches of equal length that stand in each
    other's place. Any other token has no counterpart: None.
    """
    pairs: list[Pair] = []
    for kind, a, a_end, b, b_end in difflib.SequenceMatcher(None, first, other, autojunk=False).get_opcodes():
        if kind == "equal" or a_end - a == b_end - b:
            pairs += zip(range(a, a_end), range(b, b_end), strict=True)
        else:
            pairs += [(at, None) for at in range(a, a_end)]
            pairs += [(None, at) for at in range(b, b_end)]
    return pairs


def ranked_differences(
    first: Sequence[Mapping[int, float]], other: Sequence[Mapping[int, float]], pairs: Iterable[Pair]
) -> tuple[list[Ranking], Ranking]:
    """Of every pair, and summed over all, ``(feature, other - first)``, the largest in size first, ties to the lower feature.

    A feature without a score has 0, and so has every feature where a token has no counterpart: what is active on a token that
    only one prompt has differs. Those that do not differ are left out; a pair of nothing and nothing has no differences.
    """
    of_pairs: list[Ranking] = []
    sums: dict[int, float] = {}
    for at, other_at in pairs:
        own = {} if at is None else first[at]
        others = {} if other_at is None else other[other_at]
        found = {feature: others.get(feature, 0.0) - own.get(feature, 0.0) for feature in sorted({*own, *others})}
        of_pairs.append(_ranked(found))
        for feature, difference in found.items():
            sums[feature] = sums.get(feature, 0.0) + difference
    return of_pairs, _ranked(sums)


def _ranked(found: Mapping[int, float]) -> Ranking:
    rounded = ((feature, round_significant(value, DIFFERENCE_DIGITS)) for feature, value in found.items())
    return sorted((pair for pair in rounded if abs(pair[1]) > NOISE), key=lambda pair: (-abs(pair[1]), pair[0]))


def _scores(fetcher: PromptFetcher) -> dict[str, list[dict[int, float]]]:
    """By name and position, the score of every feature that has one; of losses those of all that are not zero.

    A full effect may come from far before: in a ranking, where it counts for features active one token earlier, it is left out.
    """
    scores = {name: [dict(ranking) for ranking in rankings] for name, rankings in fetcher.all_scores().items()}
    for name, ablation in zip(("loss_effect", "loss_effect_full"), fetcher.measured, strict=False):
        losses: list[dict[int, float]] = [{} for _ in range(fetcher.ids.shape[1])]
        for own, seen in zip(fetcher.acts, fetcher.seen, strict=True):
            for place, effect in seen.effects[ablation].items():
                losses[place][own.feature] = effect.loss
        scores[name] = losses
    return scores


class Comparer:
    """Both prompts, each run as for a view of its own, so that every number is the same as there."""

    def __init__(self, run: Run, ids: Tensor, other_ids: Tensor, features: MultiFeatureData, size: int) -> None:
        self.run, self.features, self.size = run, features, size
        self.ids: list[list[int]] = [ids[0].tolist(), other_ids[0].tolist()]
        self.fetchers = [PromptFetcher(run, one, features, size) for one in (ids, other_ids)]
        self.scores = [_scores(fetcher) for fetcher in self.fetchers]
        self.seen = [
            {own.feature: seen for own, seen in zip(fetcher.acts, fetcher.seen, strict=True)}
            for fetcher in self.fetchers
        ]

    def data(self) -> PromptComparisonData:
        """The differences, their heat map, and the features that either of them names."""
        pairs = aligned(*self.ids)
        differences: dict[Any, list[Ranking]] = {}
        totals: dict[Any, Ranking] = {}
        heat: dict[Any, list[HeatRow]] = {}
        for name in self.scores[0]:
            usable = [self._usable(pair) for pair in pairs] if name in LOSS_SCORES else pairs
            of_pairs, total = ranked_differences(self.scores[0][name], self.scores[1][name], usable)
            differences[name] = [ranking[: self.size] for ranking in of_pairs]
            totals[name] = total[: self.size]
            heat[name] = heat_rows(of_pairs, HEAT_ROWS, "size")
        lists = [*totals.values(), *(ranking for of_pairs in differences.values() for ranking in of_pairs)]
        named = {feature for ranking in lists for feature, _ in ranking}
        named |= {row.feature_idx for rows in heat.values() for row in rows}
        compared = {feature: self._feature(feature) for feature in sorted(named)}
        rows = kept_rows(self.features, [one.example_rows() for one in compared.values()])
        vocab, vocab_bytes = self._vocabulary(compared, rows)
        return PromptComparisonData(
            self.ids[0],
            self.ids[1],
            pairs,
            vocab,
            vocab_bytes,
            compared,
            self.run.fvp,
            provenance_of_prompt(self.run, self.features.provenance),
            differences,
            totals,
            heat,
            rows,
        )

    def _usable(self, pair: Pair) -> Pair:
        """The pair, if its tokens are predicted; the first token and padding are not."""
        padding = self.run.model.padding_id()
        predicted = (at is None or (at > 0 and ids[at] != padding) for at, ids in zip(pair, self.ids, strict=True))
        return pair if all(predicted) else (None, None)

    def _feature(self, feature: int) -> ComparedFeature:
        data = self.features[feature]
        top = data.top_group
        return ComparedFeature(
            feature,
            self._sequence(0, feature),
            self._sequence(1, feature),
            [at.get(feature, 0.0) for at in self.scores[0]["act_quantile"]],
            [at.get(feature, 0.0) for at in self.scores[1]["act_quantile"]],
            data.activations,
            self._logits(data.logits, top),
            top,
            data.label,
        )

    def _sequence(self, which: int, feature: int) -> SequenceData:
        ids, measured = self.ids[which], self.fetchers[which].measured
        nowhere = ShownFeature(
            ByPlace(), {ablation: ByPlace() for ablation in measured}
        )  # not active: its effect is exactly 0
        seen = self.seen[which].get(feature, nowhere)
        return sequence_data(0, 0, 0, ids, range(len(ids)), seen, self.run.model.padding_id())

    def _logits(self, stored: LogitsData | None, top: SequenceGroupData) -> LogitsData | None:
        return None if stored is None else with_logits_of(stored, top, {})

    def _vocabulary(
        self, compared: Mapping[int, ComparedFeature], rows: Mapping[int, Sequence[int]]
    ) -> tuple[dict[int, str], dict[int, str]]:
        own, others = {*self.ids[0], *self.ids[1]}, set[int]()
        for feature in compared.values():
            for sequence in (feature.sequence, feature.other_sequence):
                own.update(sequence_token_ids(sequence))
            for sequence in feature.top_group.sequences:
                others.update(sequence_token_ids(sequence))
            if feature.logits is not None:
                others.update((*feature.logits.top_token_ids, *feature.logits.bottom_token_ids))
        texts = token_texts(self.run.model.tokenizer, own)
        return joined_texts(texts, self.features, others | _rows.token_ids(rows.values()))
