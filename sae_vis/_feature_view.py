"""The feature-centric view: collect, select, measure and assemble, in rounds of as many features as memory holds."""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor
from tqdm import tqdm

from sae_vis import _store_file
from sae_vis._ablation import FormulaTail
from sae_vis._activations import Collected, CollectPlan, collect
from sae_vis._activations import decoder_rows as written_by
from sae_vis._assemble import (
    LogitPanel,
    LogitPanels,
    activations_data,
    logits_at_a_time,
    sequence_data,
)
from sae_vis._correlations import (
    Coactive,
    Correlated,
    co_moments_by_tile,
    column_pieces,
    most_coactive,
    most_correlated,
)
from sae_vis._directions import DirectionMap, Place
from sae_vis._distribution_data import QuantileKnots
from sae_vis._ending import Ending
from sae_vis._errors import Interrupted, ModelError
from sae_vis._feature_data import FeatureData
from sae_vis._feature_folder import FeatureFolder
from sae_vis._full_ablation import Start
from sae_vis._json import garbage_collection_paused
from sae_vis._measure import Measured, Methods, measure
from sae_vis._measure_direct import SHARE_OF_RESIDUALS
from sae_vis._near_duplicates import Distinct, near_duplicates
from sae_vis._neighbours import Nearest, decoder_norms, nearest_directions
from sae_vis._neighbours_data import CoactiveData, DirectionData, LossShareData, NearestData, NeighboursData
from sae_vis._page_context import Provenance
from sae_vis._run import Run, check_feature_rows, methods_of
from sae_vis._sequence_data import CounterexamplesData, SequenceData, SequenceGroupData, SequenceMultiGroupData
from sae_vis._shares import Predicted, every_place, loss_shares, measured_windows
from sae_vis._shown import ShownFeature, Window, shown_places
from sae_vis._statistics import (
    Aligned,
    FeatureActivations,
    Ints,
    aligned_neurons,
    interval_examples,
    quantile_knots,
    top_examples,
)
from sae_vis._store import ActivationStore
from sae_vis._table_data import CorrelationData, FeatureTablesData, NeuronAlignmentData
from sae_vis._token_data import PositionsData, TokensData
from sae_vis._token_statistics import NEAR_MISS_TOKENS, RowPositions, TokenIndex, TopTokens, counterexamples, top_tokens
from sae_vis._vocabulary import token_texts
from sae_vis.data_storing_fns import MultiFeatureData
from sae_vis.model_fns import WritePath
from sae_vis.utils_fns import decimals_for, format_fixed, round_significant

CHECKED_ROWS = 2

FEATURES_A_PART = 128  # of a folder that they are written to
ENTRIES_A_PIECE = 2**16  # activations that are worked with together


class _Chosen(NamedTuple):
    """One feature with its examples chosen. ``acts`` are its activations on the rows that are shown."""

    acts: FeatureActivations
    groups: list[tuple[SequenceGroupData, list[Window]]]  # groups without their sequences, and the windows to fill them
    tokens: TokensData | None
    positions: PositionsData | None
    against: _Against | None

    def windows(self) -> list[Window]:
        return [window for _, windows in self.groups for window in windows] + (
            self.against.windows() if self.against else []
        )


class _Against(NamedTuple):
    """Where a feature does not fire: the windows of its counterexamples."""

    near_misses: list[Window]
    n_near_misses: int
    negatives: list[Window]

    def windows(self) -> list[Window]:
        return self.near_misses + self.negatives


class _Tables(NamedTuple):
    """The left-hand tables of the features of one round; None where not asked for."""

    neurons: list[Correlated] | None
    features: list[Correlated] | None
    b_features: list[Correlated] | None
    coactive: list[Coactive] | None = None
    nearest: list[Nearest] | None = None


class FeatureFetcher:
    """Runs the stages for one call of ``get_feature_data``."""

    def __init__(
        self,
        run: Run,
        tokens: Tensor,
        counted: Bool[Tensor, "rows seq"],
        path: WritePath,
        provenance: Provenance,
        activations_file: str | os.PathLike[str] | None,
    ) -> None:
        self.run, self.tokens, self.counted, self.path, self.provenance = run, tokens, counted, path, provenance
        self.activations_file = activations_file
        self.fvp = run.fvp
        self.norm = run.model.final_norm()
        self.ending: Ending | None = None
        self.start: Start | None = None
        self.padding = run.model.padding_id()
        self.seq_len = tokens.shape[1]
        self.tokens_array = tokens.numpy()  # many times faster to take pieces of
        self.doing = "getting ready"
        self.places: dict[int, Place] = {}
        if self.fvp.feature_map == "pca":
            provenance.map_variance, provenance.map_sample = self.map.variance, self.map.sample

    @functools.cached_property
    def map(self) -> DirectionMap:
        """The map of the whole dictionary, made at the first need."""
        return DirectionMap(self.run.encoder, self.fvp.feature_map)

    def fetch(self) -> MultiFeatureData:
        """All features, in memory.

        Raises:
            Interrupted: on Ctrl-C, with what was finished.
        """
        features: dict[int, FeatureData] = {}
        asked = self.run.features()
        try:
            features.update((data.feature_idx, data) for data in self._features(asked, asked))
        except KeyboardInterrupt:
            told = self._told(len(features), len(asked))
            if not features:
                raise Interrupted(f"{told}.") from None
            told += ". The attribute `finished` of this exception holds them"
            raise Interrupted(f"{told}.", self._assemble(features)) from None
        return self._assemble(features)

    def fetch_into(self, out_dir: str | os.PathLike[str]) -> MultiFeatureData:
        """All features, written to a folder a part at a time; those that are there already are not fetched again.

        Raises:
            InputError: if the folder holds another run.
            Interrupted: on Ctrl-C; what was finished is in the folder.
        """
        texts = token_texts(self.run.model.tokenizer, range(self.run.model.d_vocab))
        rows = self.tokens_array.astype("<u4").tobytes() if self.fvp.store_rows else None
        with FeatureFolder.create_or_resume(
            MultiFeatureData, out_dir, self.fvp, self.provenance, texts.text, texts.partial, rows
        ) as folder:
            asked = self.run.features()
            missing = asked[~torch.isin(asked, torch.tensor(folder.finished, dtype=torch.int64))]
            features = self._features(missing, asked)
            try:
                with _Writer(folder.add) as writer:
                    while part := list(itertools.islice(features, FEATURES_A_PART)):
                        writer.write(part)
            except KeyboardInterrupt:
                told = self._told(len(folder.finished), len(asked))
                raise Interrupted(
                    f"{told}. They are in {os.fspath(out_dir)}, where the same call goes on.", folder.data()
                ) from None
            return folder.data()

    def _told(self, finished: int, asked: int) -> str:
        return f"Interrupted while {self.doing}: {finished:,} of {asked:,} features are finished"

    def _features(self, wanted: Tensor, asked: Tensor) -> Iterator[FeatureData]:
        """Some of the features asked for, round by round."""
        if not len(wanted):
            return
        self.ending, self.start = self._ending(), self._start()
        places = self.map.of(wanted)
        self.places = dict(zip(wanted.tolist(), places, strict=True))
        plan = self._plan(len(wanted))
        if self.activations_file is not None and Path(self.activations_file).exists():
            found = _store_file.load_collected(self.activations_file, self._identity())
            stored = plan.stored(self.run.encoder, asked, wanted)
            tables = {"neurons": plan.neurons, "b": plan.neurons and self.run.encoder_b is not None}
            if found.holds(wanted, stored, **tables):
                yield from self._one_round(found.only(wanted, stored, **tables))
                return
        with _progress("Collecting activations", "row", self.fvp.verbose) as bar:
            rounds = self._collect(plan, wanted, asked, bar)
            while (collected := next(rounds, None)) is not None:
                if self.activations_file is not None:
                    _store_file.save_collected(collected, self.activations_file, self._identity())
                handed_over = [collected]
                del collected  # the round lets go of what it has used up
                yield from self._one_round(handed_over.pop())

    def _identity(self) -> dict[str, Any]:
        """What tells the activations of this run from those of another."""
        told = self.provenance
        names = ("hook_point", "d_in", "d_hidden", "n_rows", "seq_len", "n_counted", "ignored_token_ids", "digests")
        places = (
            {"ignored_positions": told.ignored_positions} if told.ignored_positions else {}
        )  # older files have none
        return {name: getattr(told, name) for name in names} | places

    def _plan(self, n_features: int) -> CollectPlan:
        tables = self.fvp.include_left_tables
        return CollectPlan(
            hook_point=self.run.hook_point.name,
            minibatch_rows=self.fvp.minibatch_size_tokens,
            memory_bytes=self.fvp.memory_budget_bytes,
            neurons=tables,
            correlate=self.fvp.correlate_features if tables else None,
            max_features=self.fvp.minibatch_size_features,
            kept_hooks=self._kept_hooks(n_features),
            one_round=self.activations_file is not None,
        )

    def _collect(self, plan: CollectPlan, wanted: Tensor, asked: Tensor, bar: Any) -> Iterator[Collected]:

        def on_batch(done: int, total: int, n_features: int) -> None:
            bar.total = total
            bar.set_postfix_str(f"{n_features} of {len(wanted)} features", refresh=False)
            bar.update(done - bar.n)
            self.doing = f"collecting activations ({done:,} of {total:,} rows)"

        run, encoder_b = self.run, self.run.encoder_b if plan.neurons else None
        yield from collect(run.model, run.encoder, encoder_b, self.tokens, self.counted, wanted, asked, plan, on_batch)

    def _ending(self) -> Ending | None:
        """How what leaves the model is come by where direct effects are measured; None where none are."""
        if "direct" not in self.fvp.ablations or self.path.missing_because:
            return None
        return Ending.of(self.run.model, self.run.hook_point, self.tokens[:CHECKED_ROWS])

    def _start(self) -> Start | None:
        """Where full ablations begin; None where none are measured."""
        if "full" not in self.fvp.ablations:
            return None
        return Start.behind(self.run.model, self.run.write_point, self.tokens[:CHECKED_ROWS])

    def _kept_hooks(self, n_features: int) -> tuple[str, ...]:
        """What to keep while collecting, rather than run the model to it once more on the rows that will be shown.

        It is worth it where it lies so early behind the hook point, or so many rows will be shown, that fewer blocks are run.
        """
        model, hook_point = self.run.model, self.run.hook_point
        if hook_point.block is None:
            return ()
        n_run = hook_point.block + (hook_point.kind != "hook_resid_pre")
        again = self._share_shown(n_features)
        hooks = []
        if self.ending is not None and model.n_layers - n_run <= again * model.n_layers:
            hooks.append(self.ending.hook)
        if self.start is not None and self.start.block and self.start.block - n_run <= again * self.start.block:
            hooks.append(self.start.entry)
        size = self.tokens.numel() * 4 * model.d_model
        return tuple(hooks[: self.fvp.memory_budget_bytes // SHARE_OF_RESIDUALS // size])

    def _share_shown(self, n_features: int) -> float:
        """The share of the rows that will be shown, about."""
        fvp = self.fvp
        if fvp.loss_shares == "exact":
            return 1.0
        n_windows = n_features * (fvp.first_group_size + fvp.n_groups * fvp.other_groups_size)
        return 1 - math.exp(-n_windows / 2 / len(self.tokens))  # intervals are often not full

    def _one_round(self, collected: Collected) -> Iterator[FeatureData]:
        store = collected.store.only(collected.features)
        ids = store.features.tolist()
        self._note_signed(collected.signed)
        with garbage_collection_paused():
            chosen = deque(map(self._chosen, self._activations(store, slice(0, len(ids)))))
        tables = self._correlations(collected, store)
        kept = collected.kept
        del collected  # the products with the neurons, and the features that were only correlated with
        decoder_rows = written_by(self.run.encoder, store.features)
        check_feature_rows(decoder_rows, ids, "The decoder weights")
        tables = tables._replace(nearest=self._nearest(store.features, decoder_rows))
        norms = decoder_norms(decoder_rows).tolist()
        formula, methods = self._methods(decoder_rows)
        try:
            measured = self._measure(methods, chosen, kept)
        except ModelError:
            for some in self._pieces(len(ids)):  # the reason may be a feature, and that is easier to understand
                _logit_weights(formula, ids, some)
            raise
        del kept
        for some, panels in self._panels(formula, ids):
            aligned = self._aligned(decoder_rows[some])
            for index, acts in enumerate(self._activations(store, some), some.start):
                with garbage_collection_paused():
                    at = index - some.start
                    left, near = self._feature_tables(index, aligned[at], tables), self._neighbours(index, tables)
                    # Whatever was chosen is let go of: what is shown of all features would take gigabytes.
                    feature = self._feature(acts, chosen.popleft(), measured.of(index), panels.at(at), left, near)
                    feature.decoder_norm = round_significant(norms[index], 6)
                yield feature
            store.release()

    def _pieces(self, n_features: int) -> Iterator[slice]:
        """The features in pieces whose logit weights may be in memory together."""
        step = logits_at_a_time(self.run.model.d_vocab)
        return (slice(start, min(start + step, n_features)) for start in range(0, n_features, step))

    def _panels(self, formula: FormulaTail | None, ids: Sequence[int]) -> Iterator[tuple[slice, LogitPanels]]:
        """Some of the features, and their logit panels, which are made while what is done with those before goes on.

        Not so the product: its threads wait for each other, and so for whatever runs beside any of them.
        """
        panels_of = torch.no_grad()(LogitPanels.of)  # a thread has a mode of its own
        with ThreadPoolExecutor(1) as thread:
            before: tuple[slice, Future[LogitPanels]] | None = None
            for some in self._pieces(len(ids)):
                coming = thread.submit(panels_of, _logit_weights(formula, ids, some), self.fvp)
                if before is not None:
                    yield before[0], before[1].result()
                before = some, coming
            if before is not None:
                yield before[0], before[1].result()

    def _activations(self, store: ActivationStore, some: slice) -> Iterator[FeatureActivations]:
        """Of some features of the store, from a piece of it at a time."""
        ids, offsets = store.features[some].tolist(), store.offsets[some.start : some.stop + 1]
        for columns, span in column_pieces(offsets, ENTRIES_A_PIECE):
            yield from FeatureActivations.of_columns(
                ids[columns],
                (offsets[columns.start : columns.stop + 1] - span.start).numpy(),
                store.positions[span].numpy(),
                store.values[span].numpy(),
                store.seq_len,
                store.row_offset,
                self.provenance.n_counted,
            )

    def _chosen(self, acts: FeatureActivations) -> _Chosen:
        fvp = self.fvp
        top, tokens, positions = None, None, None
        if fvp.n_tokens or fvp.n_counterexamples:
            top = top_tokens(acts, self._token_index, max(fvp.n_tokens, NEAR_MISS_TOKENS))
        if top is not None and fvp.n_tokens:
            tokens = TokensData(*top.first(fvp.n_tokens)[2:])
        if fvp.n_position_bins:
            bins = self._row_positions
            positions = PositionsData(bins.edges, bins.counts(acts), bins.n_counted)
        chosen = _Chosen(acts, self._groups(acts), tokens, positions, self._against(acts, top))
        if fvp.loss_shares == "exact":
            return chosen
        rows = np.unique([window.row for window in chosen.windows()])
        return chosen._replace(acts=acts.on_rows(rows))

    @functools.cached_property
    def _token_index(self) -> TokenIndex:
        return TokenIndex.of(self.tokens_array, self.counted.numpy())

    @functools.cached_property
    def _row_positions(self) -> RowPositions:
        return RowPositions.of(self.counted.numpy(), self.fvp.n_position_bins)

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
        is_new = Distinct(self.tokens_array, fvp.buffer).take if fvp.near_duplicates == "drop" else None
        top = top_examples(acts, fvp.first_group_size, fvp.buffer, fvp.allow_overlap, is_new)
        groups = (
            [(SequenceGroupData("TOP ACTIVATIONS", 0.0, acts.maximum, None, []), top)] if fvp.first_group_size else []
        )
        for interval in interval_examples(
            acts, fvp.n_groups, fvp.other_groups_size, fvp.seed, fvp.buffer, fvp.allow_overlap, is_new
        ):
            title = f"INTERVAL {format_fixed(interval.lower, decimals)} – {format_fixed(interval.upper, decimals)}"
            group = SequenceGroupData(title, interval.lower, interval.upper, interval.share, [])
            group.share_of_activation = round_significant(interval.share_of_activation, 6)
            group.n_positions = interval.n_positions
            groups.append((group, interval.examples))
        repeats = near_duplicates([examples for _, examples in groups], self.tokens_array, fvp.buffer)
        for (group, _), found in zip(groups, repeats, strict=True):
            group.near_duplicates = found
        return [
            (group, [Window.around(example, fvp.buffer, self.seq_len) for example in examples])
            for group, examples in groups
        ]

    def _against(self, acts: FeatureActivations, top: TopTokens | None) -> _Against | None:
        fvp = self.fvp
        if top is None or not fvp.n_counterexamples:
            return None
        found = counterexamples(
            acts, self._token_index, top, fvp.n_counterexamples, fvp.seed, fvp.buffer, fvp.allow_overlap
        )
        near_misses, negatives = (
            [Window.around(example, fvp.buffer, self.seq_len) for example in examples]
            for examples in (found.near_misses, found.negatives)
        )
        return _Against(near_misses, found.n_near_misses, negatives)

    def _correlations(self, collected: Collected, store: ActivationStore) -> _Tables:
        if not self.fvp.include_left_tables:
            return _Tables(None, None, None)
        x, size = store.columns(), self.fvp.rows_in_left_tables
        neurons = None
        if collected.neurons is not None:
            ids = np.arange(self.run.encoder.d_in)
            by_tile = collected.neurons.co_moments_by_tile(x.moments())
            neurons = [one for co in by_tile for one in most_correlated(co, ids, size)]

        def table(others: ActivationStore | None, not_itself: Ints | None = None) -> list[Correlated] | None:
            if others is None:
                return None
            found: list[Correlated] = []
            y = others.columns()
            for co in co_moments_by_tile(x, y, self.fvp.memory_budget_bytes, counting=not_itself is not None):
                some = slice(len(found), len(found) + len(co.products))
                excluded = None if not_itself is None else not_itself[some]
                found += most_correlated(co, others.features.numpy(), size, excluded)
                if co.both is not None and excluded is not None:
                    n_x, n_y = x.offsets.diff()[some], y.offsets.diff()
                    coactive.extend(most_coactive(co.both, n_x, n_y, others.features.numpy(), size, excluded))
                others.release()
            return found

        coactive: list[Coactive] = []
        with_features = table(collected.store, store.features.numpy()) if self.fvp.correlate_features else None
        together = None if with_features is None else coactive
        return _Tables(neurons, with_features, table(collected.store_b), together)

    def _nearest(self, features: Tensor, own_rows: Tensor) -> list[Nearest] | None:
        """The nearest directions of the whole dictionary, which every round reads anew rather than keep."""
        if not self.fvp.include_left_tables:
            return None
        encoder, fvp = self.run.encoder, self.fvp
        return nearest_directions(
            lambda ids: written_by(encoder, ids),
            features,
            own_rows,
            encoder.d_hidden,
            fvp.rows_in_left_tables,
            fvp.memory_budget_bytes,
        )

    # -- measure --

    def _methods(self, decoder_rows: Tensor) -> tuple[FormulaTail | None, Methods]:
        """The closed form, which also gives the logit weights, and what measures the effects."""
        formula, methods = methods_of(
            self.run, self.path, self.norm, decoder_rows, self.tokens[:CHECKED_ROWS], self.start
        )
        if formula is not None and methods.direct is None and "direct" in self.fvp.ablations:
            self.provenance.direct_effect = "none"
            self.provenance.direct_effect_reason = (
                "the model's logits are not its unembedding of the final norm, so the direct effect cannot be computed"
            )
        return formula, methods

    def _measure(self, methods: Methods, chosen: Sequence[_Chosen], kept: Mapping[str, Tensor]) -> Measured:
        with _progress("Measuring effects", "row", self.fvp.verbose and bool(methods.names)) as bar:

            def on_rows(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)
                self.doing = f"measuring effects ({done:,} of {total:,} rows)"

            return measure(
                self.run.corpus(self.tokens, self.ending, kept),
                methods,
                [one.acts for one in chosen],
                [self._to_measure(one) for one in chosen],
                self.fvp.n_changes,
                self.fvp.memory_budget_bytes,
                on_rows,
            )

    def _to_measure(self, one: _Chosen) -> Ints:
        """What is shown, and the token after each bold one, on which the effect of the activation there is."""
        places = shown_places(measured_windows(one.windows(), self.seq_len), self.seq_len)
        return np.union1d(places, every_place(one.acts, self.seq_len)) if self.fvp.loss_shares == "exact" else places

    # -- assemble --

    def _feature(
        self,
        acts: FeatureActivations,
        one: _Chosen,
        seen: ShownFeature,
        panel: LogitPanel | None,
        tables: FeatureTablesData,
        neighbours: NeighboursData | None,
    ) -> FeatureData:
        groups = [group for group, _ in one.groups]
        for group, windows in one.groups:
            group.sequences = [self._sequence(window, seen) for window in windows]
        against = self._counterexamples(one.against, seen)
        shown = [sequence for group in groups for sequence in group.sequences] + (
            against.sequences() if against else []
        )
        self._add_loss_shares(groups, acts, one, seen)
        shown_ids = sorted({token for sequence in shown for token in sequence.token_ids})
        values, ranks = quantile_knots(acts.raw)
        place = self.places[acts.feature]
        return FeatureData(
            feature_idx=acts.feature,
            feature_tables=tables,
            activations=activations_data(acts, self.fvp.n_bins),
            logits=None if panel is None else panel.data(shown_ids),
            sequences=SequenceMultiGroupData(groups),
            quantiles=QuantileKnots(values, ranks, acts.n_counted),
            tokens=one.tokens,
            positions=one.positions,
            counterexamples=against,
            neighbours=neighbours,
            direction=None if place is None else DirectionData(*place),
        )

    def _counterexamples(self, against: _Against | None, seen: ShownFeature) -> CounterexamplesData | None:
        if against is None:
            return None
        near_misses, negatives = (
            [self._sequence(window, seen) for window in windows] for windows in (against.near_misses, against.negatives)
        )
        return CounterexamplesData(near_misses, against.n_near_misses, negatives)

    def _add_loss_shares(
        self, groups: list[SequenceGroupData], acts: FeatureActivations, one: _Chosen, seen: ShownFeature
    ) -> None:
        """Each interval's share of the effect on the loss: of the first effect that was measured, if any was."""
        effect_at = next(iter(seen.effects.values()), None)
        intervals = [
            (group, windows) for group, (_, windows) in zip(groups, one.groups, strict=True) if group.share is not None
        ]
        if effect_at is None or not intervals:
            return
        predicted = Predicted(effect_at, self.tokens_array, self.padding)
        if self.fvp.loss_shares == "exact":
            losses = predicted.losses_by_interval(acts, self.fvp.n_groups)
        else:
            losses = [predicted.losses_after(windows) for _, windows in intervals]
        shares = loss_shares(losses, [group.n_positions or 0 for group, _ in intervals])
        for (group, _), share in zip(intervals, shares or (), strict=shares is not None):
            group.share_of_loss = LossShareData(*share)

    @staticmethod
    def _neighbours(index: int, tables: _Tables) -> NeighboursData | None:
        if tables.nearest is None:
            return None
        coactive = None if tables.coactive is None else CoactiveData(*tables.coactive[index])
        return NeighboursData(NearestData(*tables.nearest[index]), coactive)

    def _aligned(self, decoder_rows: Tensor) -> list[Aligned | None]:
        """The neurons that each of some features writes to most; None where they are not asked for."""
        if not self.fvp.include_left_tables:
            return [None] * len(decoder_rows)
        return [*aligned_neurons(decoder_rows.cpu().numpy().astype(np.float64), self.fvp.rows_in_left_tables)]

    def _feature_tables(self, index: int, aligned: Aligned | None, tables: _Tables) -> FeatureTablesData:
        if aligned is None:
            return FeatureTablesData()

        def correlated(table: list[Correlated] | None) -> CorrelationData | None:
            return None if table is None else CorrelationData(*table[index])

        return FeatureTablesData(
            NeuronAlignmentData(*aligned),
            correlated(tables.neurons),
            correlated(tables.features),
            correlated(tables.b_features),
        )

    def _sequence(self, window: Window, seen: ShownFeature) -> SequenceData:
        token_ids = self.tokens_array[window.row, window.start : window.stop].tolist()
        places = range(window.row * self.seq_len + window.start, window.row * self.seq_len + window.stop)
        return sequence_data(
            window.row, window.start, window.bold - window.start, token_ids, places, seen, self.padding
        )

    def _assemble(self, features: dict[int, FeatureData]) -> MultiFeatureData:
        """The features with the texts of all tokens that occur, and the rows that are shown."""
        rows: dict[int, list[int]] = {}
        for row in (row for data in features.values() for row in data.shown_rows() if self.fvp.store_rows):
            if row not in rows:
                rows[row] = self.tokens_array[row].tolist()
        ids = {token for row in rows.values() for token in row}
        for data in features.values():
            ids |= data.vocab_ids()
        texts = token_texts(self.run.model.tokenizer, ids)
        return MultiFeatureData(
            features, texts.text, texts.partial, dict(sorted(rows.items())), self.fvp, self.provenance
        )


class _Writer:
    """Writes finished features while the next ones are made: most of it is compressing, which needs no interpreter."""

    def __init__(self, write: Callable[[list[FeatureData]], None]) -> None:
        self._write, self._thread = write, ThreadPoolExecutor(1)
        self._last: Future[None] | None = None

    def write(self, part: list[FeatureData]) -> None:
        """Write a part when the one before is written; what went wrong with that one is raised here."""
        self._wait()
        self._last = self._thread.submit(self._write, part)

    def _wait(self) -> None:
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        """What was given is written, also when something else went wrong."""
        with self._thread:
            self._wait()


def _logit_weights(formula: FormulaTail | None, ids: Sequence[int], some: slice) -> Tensor | None:
    """Of some of the features ``ids``; None where there is no closed form.

    Raises:
        ModelError: if a feature's hold NaN or infinity; the feature is named.
    """
    if formula is None:
        return None
    weights = formula.logit_weights(some)
    check_feature_rows(weights, ids[some], "The logit weights")
    return weights


@contextmanager
def _progress(title: str, unit: str, verbose: bool) -> Iterator[Any]:
    with tqdm(desc=title, unit=unit, disable=not verbose, total=0) as bar:
        yield bar
