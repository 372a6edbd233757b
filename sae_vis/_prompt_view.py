"""The prompt-centric view: one forward pass of a prompt, and the features that matter at each of its tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae_vis import _rows
from sae_vis._ablation import FormulaTail
from sae_vis._activations import check_finite, decoder_rows, encode
from sae_vis._assemble import logits_at_a_time, sequence_data, sequence_token_ids, stored_logits
from sae_vis._distribution_data import LogitsData, QuantileKnots
from sae_vis._measure import Methods, measure
from sae_vis._params import Ablation
from sae_vis._prompt_data import MultiPromptData, PromptData
from sae_vis._prompt_panels import HEAT_ROWS, PROMPT_HEAT, ReconstructionData, heat_rows
from sae_vis._prompt_scoring import Ranking, act_quantile, rank_by_score
from sae_vis._reconstruction import Splicer, as_decoder, reconstruct
from sae_vis._run import Run, check_features, methods_of, provenance_of_prompt
from sae_vis._sequence_data import SequenceGroupData
from sae_vis._shown import LOSS_DECIMALS, ShownFeature
from sae_vis._statistics import FeatureActivations
from sae_vis._vocabulary import TokenTexts, token_texts
from sae_vis.data_storing_fns import MultiFeatureData
from sae_vis.utils_fns import round_significant

ALL = 2**31  # more than any dictionary has
SHARE_DIGITS = 5


EXAMPLE_ROWS = 10  # of each column; what the default layout shows


class PromptFetcher:
    """Runs the stages for one call of ``get_prompt_data``.

    What is computed and read is that of the features that are active on the prompt, however many there are in all.
    """

    def __init__(self, run: Run, ids: Tensor, features: MultiFeatureData, size: int) -> None:
        self.run, self.ids, self.features, self.size = run, ids, features, size
        self.path = run.check_fit(ids)
        self.knots: dict[int, QuantileKnots] = {}
        self.acts = self._activations()
        self.formula, self.seen, self.measured = self._measure()

    def _activations(self) -> list[FeatureActivations]:
        """The active features' activations on the prompt, rounded to the same steps as on the corpus."""
        asked = torch.tensor(list(self.features), dtype=torch.int64)
        if not len(asked):
            return []
        x = self.run.model.activations(self.ids, self.run.hook_point.name)
        check_finite(x, f"The activations at {self.run.hook_point.name!r}", 0)
        check_features(asked.tolist(), self.run.encoder)
        acts = encode(self.run.encoder, x, asked)[0].clamp_min(0.0).cpu()
        check_finite(acts[None], "The encoder's activations", 0)
        acts[~self.run.counted(self.ids)[0]] = 0.0
        result = []
        for column in acts.any(0).nonzero()[:, 0].tolist():
            feature = int(asked[column])
            places = acts[:, column].nonzero()[:, 0]
            maximum, self.knots[feature] = self.features.distribution(feature)
            own = FeatureActivations.of(
                feature, places.numpy(), acts[places, column].numpy(), len(acts), 0, len(acts), maximum
            )
            result.append(own)
        return result

    def _directions(self, features: list[int]) -> tuple[FormulaTail | None, Methods]:
        rows = decoder_rows(self.run.encoder, torch.tensor(features, dtype=torch.int64))
        return methods_of(self.run, self.path, self.run.model.final_norm(), rows, self.ids)

    def _measure(self) -> tuple[FormulaTail | None, list[ShownFeature], tuple[Ablation, ...]]:
        """The closed form for the active features, what is shown of each, and how effects were measured."""
        if not self.acts:
            return None, [], self._measured_ways()
        formula, methods = self._directions([own.feature for own in self.acts])
        whole = np.arange(self.ids.shape[1])
        fvp = self.run.fvp
        measured = measure(
            self.run.corpus(self.ids),
            methods,
            self.acts,
            [whole for _ in self.acts],
            fvp.n_changes,
            fvp.memory_budget_bytes,
        )
        return formula, [measured.of(index) for index in range(len(self.acts))], methods.names

    def _measured_ways(self) -> tuple[Ablation, ...]:
        """How effects would be measured, if a feature were active."""
        some = list(self.features)[:1]
        return self._directions(some)[1].names if some else ()

    def _logit_weights(self, ranked: set[int]) -> dict[int, dict[int, float]]:
        """The logit weights of the prompt's tokens, of each feature that is ranked."""
        found: dict[int, dict[int, float]] = {}
        if self.formula is None:
            return found
        shown_ids = sorted(set(self.ids[0].tolist()))
        indices = [index for index, own in enumerate(self.acts) if own.feature in ranked]
        for some in torch.split(torch.tensor(indices, dtype=torch.int64), logits_at_a_time(self.run.model.d_vocab)):
            weights = self.formula.logit_weights(some)[:, shown_ids].cpu().numpy()
            for index, row in zip(some.tolist(), weights, strict=True):
                found[self.acts[index].feature] = dict(zip(shown_ids, stored_logits(row), strict=True))
        return found

    def all_scores(self) -> dict[Any, list[Ranking]]:
        """Of every position, the features that have a score there, the best first: not only those that are shown."""
        n = self.ids.shape[1]
        active: list[dict[int, float]] = [{} for _ in range(n)]
        for own in self.acts:
            for position, value in zip(own.positions.tolist(), own.raw.tolist(), strict=True):
                active[position][own.feature] = value
        shown = {own.feature: seen for own, seen in zip(self.acts, self.seen, strict=True)}

        def size(position: int, feature: int, activation: float) -> float:
            return shown[feature].activation[position]

        def quantile(position: int, feature: int, activation: float) -> float:
            knots = self.knots[feature]
            return act_quantile(activation, knots.values, knots.ranks, knots.n)

        scores = {
            "act_size": rank_by_score(active, size, ALL, largest_first=True),
            "act_quantile": rank_by_score(active, quantile, ALL, largest_first=True),
        }
        padding = self.run.model.padding_id()
        before = [{}, *active[:-1]]
        before = [{} if token == padding else at for token, at in zip(self.ids[0].tolist(), before, strict=True)]
        for score_name, ablation in zip(("loss_effect", "loss_effect_full"), self.measured, strict=False):

            def loss(position: int, feature: int, activation: float, ablation: Ablation = ablation) -> float:
                return shown[feature].effects[ablation][position].loss

            scores[score_name] = rank_by_score(before, loss, ALL, largest_first=False)
        return scores

    def data(self) -> MultiPromptData:
        """The scores and the heat map, and one column for each feature that either of them names."""
        every = self.all_scores()
        scores = {name: [ranking[: self.size] for ranking in rankings] for name, rankings in every.items()}
        heat = {name: heat_rows(of, HEAT_ROWS, PROMPT_HEAT[name].best) for name, of in every.items()}
        ranked = {feature for rankings in scores.values() for ranking in rankings for feature, _ in ranking}
        ranked |= {row.feature_idx for rows in heat.values() for row in rows}
        self.logits = self._logit_weights(ranked)
        columns = {
            own.feature: self._column(own.feature, seen)
            for own, seen in zip(self.acts, self.seen, strict=True)
            if own.feature in ranked
        }
        n_active = np.zeros(self.ids.shape[1], dtype=np.int64)
        for own in self.acts:
            n_active[own.positions] += 1
        ids = set(self.ids[0].tolist())
        for column in columns.values():
            ids.update(sequence_token_ids(column.sequence))
        own_texts = token_texts(self.run.model.tokenizer, ids)
        stored = self.features
        rows = kept_rows(stored, [column.example_rows()[:EXAMPLE_ROWS] for column in columns.values()])
        others = {token for column in columns.values() for token in _column_token_ids(column)}
        vocab, vocab_bytes = joined_texts(own_texts, stored, others | _rows.token_ids(rows.values()))
        return MultiPromptData(
            self.ids[0].tolist(),
            n_active.tolist(),
            vocab,
            vocab_bytes,
            columns,
            self.run.fvp,
            provenance_of_prompt(self.run, stored.provenance),
            scores,
            heat,
            rows=rows,
        )

    def _column(self, feature: int, seen: ShownFeature) -> PromptData:
        data = self.features[feature]
        token_ids = self.ids[0].tolist()
        sequence = sequence_data(0, 0, 0, token_ids, range(len(token_ids)), seen, self.run.model.padding_id())
        top = data.top_group
        return PromptData(feature, sequence, data.activations, self._logits(feature, data.logits, top), top, data.label)

    def _logits(self, feature: int, stored: LogitsData | None, top: SequenceGroupData) -> LogitsData | None:
        """The stored panel, with the logit weights of the tokens that this column shows: the prompt's and the examples'."""
        if stored is None:
            return None
        return with_logits_of(stored, top, self.logits.get(feature, {}))


def kept_rows(features: MultiFeatureData, examples: Sequence[Sequence[int]]) -> dict[int, list[int]]:
    """The whole rows of each column's examples, as many as a page would hold."""
    kept = _rows.chosen(features.rows, examples)
    return {row: list(kept[row]) for row in sorted(kept)}


def joined_texts(own: TokenTexts, stored: MultiFeatureData, others: set[int]) -> tuple[dict[int, str], dict[int, str]]:
    """The texts and bytes of a prompt's own tokens, and of others as the features' data has them, where it does."""
    rest = others - own.text.keys()
    texts = own.text | {i: stored.vocab[i] for i in rest if i in stored.vocab}
    partial = own.partial | {i: stored.vocab_bytes[i] for i in rest if i in stored.vocab_bytes}
    return dict(sorted(texts.items())), dict(sorted(partial.items()))


def with_logits_of(stored: LogitsData, top: SequenceGroupData, own: Mapping[int, float]) -> LogitsData:
    """The stored panel, with the logit weights of the examples' tokens alone, and ``own``."""
    of_examples = {token for sequence in top.sequences for token in sequence.token_ids}
    shown = {token: logit for token, logit in stored.shown_logits.items() if token in of_examples} | dict(own)
    return dataclasses.replace(stored, shown_logits=dict(sorted(shown.items())))


def _column_token_ids(column: PromptData) -> Iterator[int]:
    if column.logits is not None:
        yield from (*column.logits.top_token_ids, *column.logits.bottom_token_ids)
    for sequence in column.top_group.sequences:
        yield from sequence_token_ids(sequence)


def reconstruction_data(run: Run, ids: Tensor, features: MultiFeatureData) -> ReconstructionData:
    """How well the encoder reconstructs a prompt, or why that cannot be said."""
    encoder = as_decoder(run.encoder)
    if isinstance(encoder, str):
        return ReconstructionData(reason=encoder)
    x = run.model.activations(ids, run.hook_point.name)
    check_finite(x, f"The activations at {run.hook_point.name!r}", 0)
    chosen = torch.tensor(list(features), dtype=torch.int64)
    counted = run.counted(ids)[0]
    splicer = Splicer(run.model, run.write_point, ids, x if run.write_point == run.hook_point else None)
    found = reconstruct(splicer, encoder, x, chosen, counted)

    def share(value: float | None) -> float | None:
        return None if value is None else round_significant(value, SHARE_DIGITS)

    def nats(losses: list[float | None]) -> list[float | None]:
        return [None if loss is None else round(loss, LOSS_DECIMALS) + 0.0 for loss in losses]

    return ReconstructionData(
        [share(error) for error in found.error],
        found.l0,
        nats(found.loss),
        nats(found.loss_spliced),
        nats(found.loss_chosen),
        nats(found.loss_ablated),
        share(found.fvu),
        share(found.fvu_chosen),
        len(chosen),
        kl=nats(found.kl),
    )
