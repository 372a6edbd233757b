"""The feature-centric view: collect, select, measure and assemble, in rounds of as many features as memory holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool
from torch import Tensor
from tqdm import tqdm

from sae_vis._ablation import FormulaTail
from sae_vis._activations import Collected, CollectPlan, collect
from sae_vis._activations import decoder_rows as written_by
from sae_vis._assemble import activations_data, feature_token_ids, logits_data, sequence_data
from sae_vis._errors import Interrupted
from sae_vis._measure import Methods, measure
from sae_vis._run import Run, check_feature_rows, methods_of
from sae_vis._shown import ShownFeature, Window
from sae_vis._statistics import (
    Correlated,
    FeatureActivations,
    aligned_neurons,
    interval_examples,
    most_correlated,
    quantile_knots,
    top_examples,
)
from sae_vis._vocabulary import token_texts
from sae_vis.data_storing_fns import (
    CorrelationData,
    FeatureData,
    FeatureTablesData,
    MultiFeatureData,
    NeuronAlignmentData,
    Provenance,
    QuantileKnots,
    SequenceData,
    SequenceGroupData,
    SequenceMultiGroupData,
)
from sae_vis.model_fns import Encoder, WritePath
from sae_vis.utils_fns import decimals_for, format_fixed

CHECKED_ROWS = 2


class _Chosen(NamedTuple):
    """One feature with its examples chosen."""

    acts: FeatureActivations
    groups: list[tuple[SequenceGroupData, list[Window]]]  # groups without their sequences, and the windows to fill them

    def windows(self) -> list[Window]:
        return [window for _, windows in self.groups for window in windows]


class _Tables(NamedTuple):
    """The left-hand tables of the features of one round; None where not asked for."""

    neurons: list[Correlated] | None
    features: list[Correlated] | None
    b_features: list[Correlated] | None


class FeatureFetcher:
    """Runs the stages for one call of ``get_feature_data``."""

    def __init__(
        self, run: Run, tokens: Tensor, counted: Bool[Tensor, "rows seq"], path: WritePath, provenance: Provenance
    ) -> None:
        self.run, self.tokens, self.counted, self.path, self.provenance = run, tokens, counted, path, provenance
        self.fvp = run.fvp
        self.norm = run.model.final_norm()
        self.padding = run.model.padding_id()
        self.seq_len = tokens.shape[1]
        self.doing = "getting ready"

    def fetch(self) -> MultiFeatureData:
        """All features, round by round.

        Raises:
            Interrupted: on Ctrl-C, with what was finished.
        """
        features: dict[int, FeatureData] = {}
        asked = self.run.features()
        try:
            with _progress("Collecting activations", "row", self.fvp.verbose) as bar:
                for collected in self._collect(asked, bar):
                    for data in self._one_round(collected):
                        features[data.feature_idx] = data
        except KeyboardInterrupt:
            told = f"Interrupted while {self.doing}: {len(features):,} of {len(asked):,} features are finished"
            if not features:
                raise Interrupted(f"{told}.") from None
            raise Interrupted(
                f"{told}. The attribute `finished` of this exception holds them.", self._assemble(features)
            ) from None
        return self._assemble(features)

    def _collect(self, asked: Tensor, bar: Any) -> Iterator[Collected]:
        tables = self.fvp.include_left_tables
        plan = CollectPlan(
            hook_point=self.run.hook_point.name,
            minibatch_rows=self.fvp.minibatch_size_tokens,
            memory_bytes=self.fvp.memory_budget_bytes,
            neurons=tables,
            correlate=self.fvp.correlate_features if tables else None,
            max_features=self.fvp.minibatch_size_features,
        )

        def on_batch(done: int, total: int, n_features: int) -> None:
            bar.total = total
            bar.set_postfix_str(f"{n_features} of {len(asked)} features", refresh=False)
            bar.update(done - bar.n)
            self.doing = f"collecting activations ({done:,} of {total:,} rows)"

        encoder_b = self.run.encoder_b if tables else None
        yield from collect(
            self.run.model, self.run.encoder, encoder_b, self.tokens, self.counted, asked, plan, on_batch
        )

    def _one_round(self, collected: Collected) -> Iterator[FeatureData]:
        store = collected.store
        ids = store.features.tolist()
        self._note_signed(collected.signed)
        n_counted = store.n_counted
        chosen = []
        for index, feature in enumerate(ids):
            places, values = store.of(index)
            acts = FeatureActivations.of(
                feature, places.numpy().astype(np.int64), values.numpy(), store.seq_len, store.row_offset, n_counted
            )
            chosen.append(_Chosen(acts, self._groups(acts)))
        tables = self._correlations(collected)
        decoder_rows = written_by(self.run.encoder, store.features)
        check_feature_rows(decoder_rows, ids, "The decoder weights")
        formula, methods = self._methods(decoder_rows)
        weights = None
        if formula is not None:
            logit_weights = formula.logit_weights()
            check_feature_rows(logit_weights, ids, "The logit weights")
            weights = logit_weights.cpu().numpy().astype(np.float64)
        shown = self._measure(methods, chosen)
        for index, (one, seen) in enumerate(zip(chosen, shown, strict=True)):
            row = decoder_rows[index].cpu().numpy().astype(np.float64)
            yield self._feature(one, seen, index, row, None if weights is None else weights[index], tables)

    def _note_signed(self, signed: bool) -> None:
        note = "The encoder gives negative activations; they are clamped at 0 here."
        if signed and note not in self.provenance.notes:
            self.provenance.notes.append(note)

    # -- select --

    def _groups(self, acts: FeatureActivations) -> list[tuple[SequenceGroupData, list[Window]]]:
        if not len(acts.values):
            return []
        fvp = self.fvp
        decimals = decimals_for(acts.maximum)
        top = top_examples(acts, fvp.first_group_size, fvp.buffer, fvp.allow_overlap)
        groups = (
            [(SequenceGroupData("TOP ACTIVATIONS", 0.0, acts.maximum, None, []), top)] if fvp.first_group_size else []
        )
        for interval in interval_examples(
            acts, fvp.n_groups, fvp.other_groups_size, fvp.seed, fvp.buffer, fvp.allow_overlap
        ):
            title = f"INTERVAL {format_fixed(interval.lower, decimals)} – {format_fixed(interval.upper, decimals)}"
            group = SequenceGroupData(title, interval.lower, interval.upper, interval.share, [])
            groups.append((group, interval.examples))
        return [
            (group, [Window.around(example, fvp.buffer, self.seq_len) for example in examples])
            for group, examples in groups
        ]

    def _correlations(self, collected: Collected) -> _Tables:
        size = self.fvp.rows_in_left_tables
        own = collected.store.features.numpy()

        def table(co: Any, ids: Any, not_itself: Any = None) -> list[Correlated] | None:
            return None if co is None else most_correlated(co, ids, size, not_itself)

        return _Tables(
            table(collected.with_neurons, np.arange(self.run.encoder.d_in)),
            table(collected.with_features, _as_numpy(collected.y_features), own),
            table(collected.with_b_features, _as_numpy_range(self.run.encoder_b)),
        )

    # -- measure --

    def _methods(self, decoder_rows: Tensor) -> tuple[FormulaTail | None, Methods]:
        """The closed form, which also gives the logit weights, and what measures the effects."""
        formula, methods = methods_of(self.run, self.path, self.norm, decoder_rows, self.tokens[:CHECKED_ROWS])
        if formula is not None and methods.direct is None and "direct" in self.fvp.ablations:
            self.provenance.direct_effect = "none"
            self.provenance.direct_effect_reason = (
                "the model's logits are not its unembedding of the final norm, so the direct effect cannot be computed"
            )
        return formula, methods

    def _measure(self, methods: Methods, chosen: Sequence[_Chosen]) -> list[ShownFeature]:
        with _progress("Measuring effects", "row", self.fvp.verbose and bool(methods.names)) as bar:

            def on_rows(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)
                self.doing = f"measuring effects ({done:,} of {total:,} rows)"

            return measure(
                self.run.model,
                methods,
                self.run.written,
                self.tokens,
                [one.acts for one in chosen],
                [one.windows() for one in chosen],
                self.fvp.n_changes,
                self.fvp.minibatch_size_tokens,
                on_rows,
            )

    # -- assemble --

    def _feature(
        self,
        one: _Chosen,
        seen: ShownFeature,
        index: int,
        decoder_row: Any,
        weights: Any,
        tables: _Tables,
    ) -> FeatureData:
        groups = []
        for group, windows in one.groups:
            sequences = [self._sequence(window, seen) for window in windows]
            groups.append(dataclasses.replace(group, sequences=sequences))
        shown_ids = sorted({token for group in groups for sequence in group.sequences for token in sequence.token_ids})
        values, ranks = quantile_knots(one.acts.raw)
        return FeatureData(
            feature_idx=one.acts.feature,
            feature_tables=self._feature_tables(index, decoder_row, tables),
            activations=activations_data(one.acts, self.fvp.n_bins),
            logits=None if weights is None else logits_data(weights, self.fvp, shown_ids),
            sequences=SequenceMultiGroupData(groups),
            quantiles=QuantileKnots(values, ranks, one.acts.n_counted),
        )

    def _feature_tables(self, index: int, decoder_row: Any, tables: _Tables) -> FeatureTablesData:
        if not self.fvp.include_left_tables:
            return FeatureTablesData()
        aligned = aligned_neurons(decoder_row, self.fvp.rows_in_left_tables)

        def correlated(table: list[Correlated] | None) -> CorrelationData | None:
            return None if table is None else CorrelationData(*table[index])

        return FeatureTablesData(
            NeuronAlignmentData(*aligned),
            correlated(tables.neurons),
            correlated(tables.features),
            correlated(tables.b_features),
        )

    def _sequence(self, window: Window, seen: ShownFeature) -> SequenceData:
        token_ids = self.tokens[window.row, window.start : window.stop].tolist()
        places = range(window.row * self.seq_len + window.start, window.row * self.seq_len + window.stop)
        return sequence_data(
            window.row, window.start, window.bold - window.start, token_ids, places, seen, self.padding
        )

    def _assemble(self, features: dict[int, FeatureData]) -> MultiFeatureData:
        """The features with the texts of all tokens that occur, and the rows that are shown."""
        rows: dict[int, list[int]] = {}
        for sequence in (s for f in features.values() for g in f.sequences.groups for s in g.sequences):
            if self.fvp.store_rows and sequence.row not in rows:
                rows[sequence.row] = self.tokens[sequence.row].tolist()
        ids = {token for row in rows.values() for token in row}
        ids.update(token for data in features.values() for token in feature_token_ids(data))
        texts = token_texts(self.run.model.tokenizer, ids)
        return MultiFeatureData(
            features, texts.text, texts.partial, dict(sorted(rows.items())), self.fvp, self.provenance
        )


def _as_numpy(ids: Tensor | None) -> Any:
    return None if ids is None else ids.numpy()


def _as_numpy_range(encoder: Encoder | None) -> Any:
    return None if encoder is None else np.arange(encoder.d_hidden)


@contextmanager
def _progress(title: str, unit: str, verbose: bool) -> Iterator[Any]:
    with tqdm(desc=title, unit=unit, disable=not verbose, total=0) as bar:
        yield bar
