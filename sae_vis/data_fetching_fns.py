"""Fetch the data of both views: run the model, choose the examples, measure the effects, build the dataclasses.

The stages are pure functions in modules of their own: collect (``_activations``), select (``_statistics``), measure
(``_shown`` and ``_ablation``). This module wires them and turns tensors into plain numbers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from tqdm import tqdm

from sae_vis import __version__
from sae_vis._ablation import FormulaTail, Tail, choose_tail
from sae_vis._activations import Collected, CollectPlan, check_finite, check_width, collect, encode
from sae_vis._errors import InputError, ModelError
from sae_vis._params import FeatureVisParams
from sae_vis._prompt_scoring import Ranking, act_quantile, rank_by_score
from sae_vis._sae_adapters import as_encoder
from sae_vis._shown import EffectAt, ShownFeature, Window, measure
from sae_vis._statistics import (
    Aligned,
    Correlated,
    FeatureActivations,
    aligned_neurons,
    histogram,
    interval_examples,
    moments,
    most_correlated,
    quantile_knots,
    top_examples,
)
from sae_vis._vocabulary import token_texts
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
from sae_vis.model_fns import Encoder, FinalNorm, HookPoint, LanguageModel, WritePath, digest_tensors
from sae_vis.utils_fns import round_significant, ticks

STORED_DIGITS = 5
CHECKED_ROWS = 2


def get_feature_data(
    encoder: Any,
    model: Any,
    tokens: Any,
    fvp: FeatureVisParams | None = None,
    encoder_B: Any = None,  # noqa: N803 - the name users know
) -> MultiFeatureData:
    """Everything that the feature-centric view shows of the features asked for.

    Args:
        encoder: an ``AutoEncoder`` or anything that follows the ``Encoder`` protocol.
        model: a TransformerLens model.
        tokens: integer token ids ``[rows, seq]`` (tensor, array or nested lists).
        fvp: the options; ``FeatureVisParams.help()`` explains them.
        encoder_B: a second encoder of the same hook point, for the table of correlated B features.

    Raises:
        InputError: if tokens, features or options cannot be used.
        ModelError: if model or encoder do not fit together, or give NaN or infinity.
    """
    run = _Run.prepare(encoder, model, fvp or FeatureVisParams(), encoder_B)
    token_ids = check_tokens(tokens, run.model)
    ignored = run.ignored_ids()
    counted = ~torch.isin(token_ids, torch.tensor(ignored, dtype=torch.int64))
    if not bool(counted.any()):
        raise InputError(
            f"All {token_ids.numel()} positions hold ignored tokens ({ignored}), so nothing can be counted. "
            "Use FeatureVisParams(ignore_tokens=()) to count every position."
        )
    with run.model.as_for_inference():
        path = run.check_fit(token_ids)
        provenance = run.provenance(token_ids, counted, path, ignored)
        _warn_of_processed_weights(run, provenance)
        fetcher = _Fetcher(run, token_ids, counted, path, provenance)
        features = fetcher.fetch()
    return fetcher.assemble(features)


# --- checking what the user gave -----------------------------------------------------------------------------------


def check_tokens(tokens: Any, model: LanguageModel) -> Int[Tensor, "rows seq"]:
    """The tokens as int64 on the CPU.

    Raises:
        InputError: if they are not 2-D integers, empty, outside the vocabulary, or longer than the context.
    """
    try:
        ids = torch.as_tensor(tokens)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"tokens must be integers of shape [rows, seq]; they do not form an array: {error}") from None
    if ids.ndim != 2 or ids.dtype.is_floating_point or ids.dtype.is_complex or ids.dtype == torch.bool:
        raise InputError(
            f"tokens must be integers of shape [rows, seq], got {ids.dtype} of shape {tuple(ids.shape)}."
            + (" For one row, use tokens[None]." if ids.ndim == 1 else "")
        )
    if ids.numel() == 0:
        raise InputError(f"tokens are empty (shape {tuple(ids.shape)}): give at least one row of at least one token.")
    ids = ids.detach().cpu().long()
    if ids.shape[1] > model.n_ctx:
        raise InputError(
            f"Rows of {ids.shape[1]} tokens are longer than the model's context of {model.n_ctx}. Cut them."
        )
    wrong = (ids < 0) | (ids >= model.d_vocab)
    if bool(wrong.any()):
        row, position = (int(i) for i in wrong.nonzero()[0])
        raise InputError(
            f"Token id {int(ids[row, position])} at row {row}, position {position} is outside the model's vocabulary "
            f"(0 to {model.d_vocab - 1}). Were the tokens made with another tokenizer?"
        )
    return ids


class _Run(NamedTuple):
    """The checked arguments of one call."""

    model: LanguageModel
    encoder: Encoder
    encoder_b: Encoder | None
    fvp: FeatureVisParams
    hook_point: HookPoint

    @classmethod
    def prepare(cls, encoder: Any, model: Any, fvp: FeatureVisParams, encoder_b: Any) -> _Run:
        if not isinstance(fvp, FeatureVisParams):
            raise InputError(f"fvp must be a FeatureVisParams, got {type(fvp).__name__}.")
        wrapped = LanguageModel(model)
        adapted = as_encoder(encoder)
        adapted_b = None if encoder_b is None else as_encoder(encoder_b, "encoder_B")
        name = fvp.hook_point or getattr(adapted, "hook_point", None)
        if not name:
            raise InputError(
                "No hook point: give FeatureVisParams(hook_point='blocks.0.mlp.hook_post') or an encoder that has one."
            )
        return cls(wrapped, adapted, adapted_b, fvp, wrapped.check_hook_point(name))

    def features(self) -> Tensor:
        """The feature ids asked for, in rising order."""
        if self.fvp.features is None:
            return torch.arange(self.encoder.d_hidden)
        check_features(self.fvp.features, self.encoder)
        return torch.tensor(self.fvp.features, dtype=torch.int64)

    def ignored_ids(self) -> list[int]:
        """The token ids whose positions do not count."""
        return list(self.model.special_token_ids() if self.fvp.ignore_tokens is None else self.fvp.ignore_tokens)

    def check_fit(self, tokens: Tensor) -> WritePath:
        """Try the hook point on one row: the widths must fit, and its way to the residual stream is found."""
        self.features()
        x = self.model.activations(tokens[:1], self.hook_point.name)
        check_width(self.encoder, x, self.hook_point.name, "The encoder")
        if self.encoder_b is not None:
            check_width(self.encoder_b, x, self.hook_point.name, "encoder_B")
        return self.model.write_path(self.hook_point, tokens)

    def provenance(self, tokens: Tensor, counted: Tensor, path: WritePath, ignored: list[int]) -> Provenance:
        """What was run on what."""
        first = torch.unique(tokens[:, 0])
        digests = {
            "model": self.model.digest(),
            "encoder": _encoder_digest(self.encoder),
            "tokens": hashlib.blake2b(tokens.numpy().tobytes(), digest_size=16).hexdigest(),
        }
        if self.encoder_b is not None:
            digests["encoder_B"] = _encoder_digest(self.encoder_b)
        return Provenance(
            model=self.model.name,
            hook_point=self.hook_point.name,
            d_in=self.encoder.d_in,
            d_hidden=self.encoder.d_hidden,
            n_rows=len(tokens),
            seq_len=tokens.shape[1],
            n_counted=int(counted.sum()),
            direct_effect="none" if path.missing_because else "exact" if path.exact else "direct path",
            direct_effect_reason=path.missing_because or "",
            first_token_id=int(first[0]) if len(first) == 1 else None,
            ignored_token_ids=ignored,
            versions=_versions(),
            digests=digests,
        )


_READS_NEURONS = {"mlp.hook_pre", "mlp.hook_post"}  # processing leaves these as they are
_CENTRED_NOTE = (
    "The model's writing weights are centred, as TransformerLens leaves them after processing; an encoder must be run on the "
    "variant of the model that it was trained on."
)


def _warn_of_processed_weights(run: _Run, provenance: Provenance) -> None:
    """Processing changes what an encoder of the residual stream of a LayerNorm model reads; nobody notices by looking."""
    if run.hook_point.kind not in _READS_NEURONS and run.model.final_norm().centres and run.model.writes_centred():
        provenance.notes.append(_CENTRED_NOTE)
        warnings.warn(_CENTRED_NOTE, UserWarning, stacklevel=3)


def check_features(features: Sequence[int], encoder: Encoder) -> None:
    """Raise ``InputError`` if a feature is not in the dictionary."""
    wrong = [feature for feature in features if feature >= encoder.d_hidden]
    if wrong:
        raise InputError(
            f"Feature {wrong[0]} is out of range: the encoder has {encoder.d_hidden} (0 to {encoder.d_hidden - 1})."
        )


def _encoder_digest(encoder: Encoder) -> str:
    if isinstance(encoder, torch.nn.Module):
        return digest_tensors(encoder.named_parameters())
    rows = encoder.decoder_rows(torch.arange(min(64, encoder.d_hidden)))
    return digest_tensors([("decoder_rows", rows)])


def _versions() -> dict[str, str]:
    found = {"sae_vis": __version__}
    for package in ("torch", "transformer-lens"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # e.g. run from a source checkout of it
            continue
    return found


def tails_of(
    run: _Run, path: WritePath, norm: FinalNorm, decoder_rows: Tensor, checked: Int[Tensor, "rows seq"]
) -> tuple[FormulaTail | None, Tail | None]:
    """The closed form for these features, and what measures their effects, chosen by a check on some rows.

    Both are None where there is no way to the residual stream; the second also without ablation.
    """
    if path.missing_because:
        return None, None
    rows = decoder_rows.to(run.model.device)
    expected = run.model.d_model if path.matrix is None else len(path.matrix)
    if rows.shape[1] != expected:
        raise ModelError(
            f"The decoder writes vectors of width {rows.shape[1]}, but {run.hook_point.name!r} takes {expected}."
        )
    directions = rows if path.matrix is None else rows @ path.matrix
    formula = FormulaTail(run.model, norm, directions)
    return formula, None if run.fvp.ablation is None else choose_tail(run.model, formula, directions, checked)


# --- the feature-centric view --------------------------------------------------------------------------------------


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


class _Fetcher:
    """Runs the stages for one call of ``get_feature_data``."""

    def __init__(
        self, run: _Run, tokens: Tensor, counted: Bool[Tensor, "rows seq"], path: WritePath, provenance: Provenance
    ) -> None:
        self.run, self.tokens, self.counted, self.path, self.provenance = run, tokens, counted, path, provenance
        self.fvp = run.fvp
        self.norm = run.model.final_norm()
        self.padding = run.model.padding_id()
        self.seq_len = tokens.shape[1]

    def fetch(self) -> dict[int, FeatureData]:
        """All features, round by round."""
        features: dict[int, FeatureData] = {}
        asked = self.run.features()
        with _progress("Collecting activations", "row", self.fvp.verbose) as bar:
            for collected in self._collect(asked, bar):
                for data in self._one_round(collected):
                    features[data.feature_idx] = data
        return features

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
        decoder_rows = self.run.encoder.decoder_rows(store.features).detach().float().flatten(1)
        formula, tail = self._tails(decoder_rows)
        shown = self._measure(tail, chosen)
        weights = None if formula is None else formula.logit_weights().cpu().numpy().astype(np.float64)
        for index, (one, seen) in enumerate(zip(chosen, shown, strict=True)):
            row = decoder_rows[index].cpu().numpy().astype(np.float64)
            yield self._feature(
                one, seen, index, row, None if weights is None else weights[index], tables, tail is not None
            )

    def _note_signed(self, signed: bool) -> None:
        note = "The encoder gives negative activations; they are clamped at 0 here."
        if signed and note not in self.provenance.notes:
            self.provenance.notes.append(note)

    # -- select --

    def _groups(self, acts: FeatureActivations) -> list[tuple[SequenceGroupData, list[Window]]]:
        if not len(acts.values):
            return []
        fvp = self.fvp
        top = top_examples(acts, fvp.first_group_size, fvp.buffer, fvp.allow_overlap)
        groups = (
            [(SequenceGroupData("TOP ACTIVATIONS", 0.0, acts.maximum, None, []), top)] if fvp.first_group_size else []
        )
        for interval in interval_examples(
            acts, fvp.n_groups, fvp.other_groups_size, fvp.seed, fvp.buffer, fvp.allow_overlap
        ):
            title = f"INTERVAL {interval.lower:.4g} – {interval.upper:.4g}"
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

    def _tails(self, decoder_rows: Tensor) -> tuple[FormulaTail | None, Tail | None]:
        """The closed form, which also gives the logit weights, and the way to measure effects; None where there is none."""
        formula, tail = tails_of(self.run, self.path, self.norm, decoder_rows, self.tokens[:CHECKED_ROWS])
        if formula is not None and tail is None and self.fvp.ablation is not None:
            self.provenance.direct_effect = "none"
            self.provenance.direct_effect_reason = (
                "the model's logits are not its unembedding of the final norm, so the direct effect cannot be computed"
            )
        return formula, tail

    def _measure(self, tail: Tail | None, chosen: Sequence[_Chosen]) -> list[ShownFeature]:
        with _progress("Measuring effects", "row", self.fvp.verbose and tail is not None) as bar:

            def on_rows(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            return measure(
                self.run.model,
                tail,
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
        measured: bool,
    ) -> FeatureData:
        groups = []
        for group, windows in one.groups:
            sequences = [self._sequence(window, seen, measured) for window in windows]
            groups.append(dataclasses.replace(group, sequences=sequences))
        shown_ids = sorted({token for group in groups for sequence in group.sequences for token in sequence.token_ids})
        values, ranks = quantile_knots(one.acts.raw)
        return FeatureData(
            feature_idx=one.acts.feature,
            feature_tables=self._feature_tables(index, decoder_row, tables),
            activations=_activations_data(one.acts, self.fvp.n_bins),
            logits=None if weights is None else _logits_data(weights, self.fvp, shown_ids),
            sequences=SequenceMultiGroupData(groups),
            quantiles=QuantileKnots(values, ranks, one.acts.n_counted),
        )

    def _feature_tables(self, index: int, decoder_row: Any, tables: _Tables) -> FeatureTablesData:
        if not self.fvp.include_left_tables:
            return FeatureTablesData()
        aligned: Aligned = aligned_neurons(decoder_row, self.fvp.rows_in_left_tables)

        def correlated(table: list[Correlated] | None) -> CorrelationData | None:
            return None if table is None else CorrelationData(*table[index])

        return FeatureTablesData(
            NeuronAlignmentData(*aligned),
            correlated(tables.neurons),
            correlated(tables.features),
            correlated(tables.b_features),
        )

    def _sequence(self, window: Window, seen: ShownFeature, measured: bool) -> SequenceData:
        token_ids = self.tokens[window.row, window.start : window.stop].tolist()
        places = range(window.row * self.seq_len + window.start, window.row * self.seq_len + window.stop)
        return sequence_data(
            window.row, window.start, window.bold - window.start, token_ids, places, seen, measured, self.padding
        )

    def assemble(self, features: dict[int, FeatureData]) -> MultiFeatureData:
        """The features with the texts of all tokens that occur, and the rows that are shown."""
        rows: dict[int, list[int]] = {}
        for sequence in (s for f in features.values() for g in f.sequences.groups for s in g.sequences):
            if self.fvp.store_rows and sequence.row not in rows:
                rows[sequence.row] = self.tokens[sequence.row].tolist()
        ids = {token for row in rows.values() for token in row}
        ids.update(token for data in features.values() for token in _token_ids(data))
        texts = token_texts(self.run.model.tokenizer, ids)
        return MultiFeatureData(
            features, texts.text, texts.partial, dict(sorted(rows.items())), self.fvp, self.provenance
        )


def sequence_data(
    row: int,
    start: int,
    bold: int,
    token_ids: list[int],
    places: range,
    seen: ShownFeature,
    measured: bool,
    padding: int | None,
) -> SequenceData:
    """A shown sequence, from what was looked up and measured at its places."""
    losses: list[float | None] = []
    effects = []
    for at, (token, place) in enumerate(zip(token_ids, places, strict=True)):
        effect: EffectAt | None = seen.effect.get(place)
        if not measured or start + at == 0 or token == padding:
            losses.append(None)
            continue
        losses.append(effect.loss if effect else 0.0)
        if effect and (effect.raised_ids or effect.lowered_ids):
            effects.append(TokenEffect(at, *effect[1:]))
    acts = [seen.activation.get(place, 0.0) for place in places]
    return SequenceData(row, start, bold, token_ids, acts, losses, effects)


def _activations_data(acts: FeatureActivations, n_bins: int) -> ActivationsData:
    edges, heights = histogram(acts.values, n_bins)
    bars = HistogramData(edges, heights, ticks(edges[0], edges[-1]) if edges else [])
    n_active = len(acts.values)
    density = n_active / acts.n_counted
    if not n_active:
        return ActivationsData(density, 0, None, None, None, None, None, bars)
    mean, variance, skewness, kurtosis = moments(acts.values, acts.n_counted)
    return ActivationsData(density, n_active, acts.maximum, mean, variance, skewness, kurtosis, bars)


def _logits_data(weights: Any, fvp: FeatureVisParams, shown_ids: list[int]) -> LogitsData:
    by_value = np.lexsort((np.arange(len(weights)), weights))
    bottom, top = by_value[: fvp.n_logits], np.lexsort((np.arange(len(weights)), -weights))[: fvp.n_logits]

    def stored(ids: Any) -> list[float]:
        return [round_significant(float(weights[i]), STORED_DIGITS) for i in ids]

    edges, heights = histogram(weights, fvp.n_bins)
    edges = [round_significant(edge, 8) for edge in edges]
    return LogitsData(
        top.tolist(),
        stored(top),
        bottom.tolist(),
        stored(bottom),
        dict(zip(shown_ids, stored(shown_ids), strict=True)),
        HistogramData(edges, heights, ticks(edges[0], edges[-1])),
    )


def _token_ids(data: FeatureData) -> Iterator[int]:
    """Every token id that a feature's panels show."""
    if data.logits is not None:
        yield from (*data.logits.top_token_ids, *data.logits.bottom_token_ids)
    for sequence in (s for group in data.sequences.groups for s in group.sequences):
        yield from _sequence_token_ids(sequence)


def _sequence_token_ids(sequence: SequenceData) -> Iterator[int]:
    yield from sequence.token_ids
    for effect in sequence.effects:
        yield from (*effect.raised_token_ids, *effect.lowered_token_ids)


def _as_numpy(ids: Tensor | None) -> Any:
    return None if ids is None else ids.numpy()


def _as_numpy_range(encoder: Encoder | None) -> Any:
    return None if encoder is None else np.arange(encoder.d_hidden)


@contextmanager
def _progress(title: str, unit: str, verbose: bool) -> Iterator[Any]:
    with tqdm(desc=title, unit=unit, disable=not verbose, total=0) as bar:
        yield bar


# --- the prompt-centric view ---------------------------------------------------------------------------------------


def get_prompt_data(
    encoder: Any,
    model: Any,
    prompt: Any,
    features: MultiFeatureData,
    fvp: FeatureVisParams | None = None,
    num_top_features: int = 10,
    prepend_bos: bool | None = None,
) -> MultiPromptData:
    """Which of the features matter at each token of a prompt, by each of the three scores.

    Args:
        encoder: the one that the features were fetched with.
        model: the one that the features were fetched with.
        prompt: a text, or token ids (1-D).
        features: the fetched features; only these are ranked.
        fvp: the options; None takes those of ``features``.
        num_top_features: how many are ranked for each token and score.
        prepend_bos: whether the prompt gets the token that every row began with; None: if they all began with one.

    Raises:
        InputError: if the prompt is empty or too long, or the features come from another encoder or hook point.
    """
    if not isinstance(num_top_features, int) or isinstance(num_top_features, bool) or num_top_features < 1:
        raise InputError(f"num_top_features must be an int >= 1, got {num_top_features!r}.")
    run = _Run.prepare(encoder, model, fvp or features.params, None)
    _check_same_run(run, features.provenance)
    ids = _prompt_ids(prompt, run.model, features.provenance, prepend_bos)
    with run.model.as_for_inference():
        return _Prompt(run, ids, features, num_top_features).data()


def _check_same_run(run: _Run, provenance: Provenance) -> None:
    for name, now in (
        ("hook_point", run.hook_point.name),
        ("d_in", run.encoder.d_in),
        ("d_hidden", run.encoder.d_hidden),
    ):
        then = getattr(provenance, name)
        if now != then:
            raise InputError(
                f"The features were fetched with {name} {then!r}, but this call has {now!r}. Fetch them again."
            )


def _prompt_ids(prompt: Any, model: LanguageModel, provenance: Provenance, prepend_bos: bool | None) -> Tensor:
    """The prompt's token ids ``[1, seq]``, with the token that the corpus rows begin with in front."""
    if isinstance(prompt, str):
        if model.tokenizer is None:
            raise InputError("The model has no tokenizer, so the prompt must be given as token ids.")
        ids = list(model.tokenizer(prompt, add_special_tokens=False)["input_ids"])
    else:
        ids = _prompt_as_ids(prompt, model)
    if not ids:
        raise InputError("The prompt is empty: give a text or token ids with at least one token.")
    bos = getattr(model.tokenizer, "bos_token_id", None)
    first = provenance.first_token_id if provenance.first_token_id is not None else bos
    wanted = (
        (first is not None and first == bos and provenance.first_token_id == bos)
        if prepend_bos is None
        else prepend_bos
    )
    if wanted and first is None:
        raise InputError(
            "prepend_bos=True, but the tokenizer has no BOS token and the rows do not begin with one token."
        )
    if wanted and ids[0] != first:
        ids = [first, *ids]
    if len(ids) > model.n_ctx:
        raise InputError(f"The prompt has {len(ids)} tokens, the model's context holds {model.n_ctx}. Shorten it.")
    return check_tokens([ids], model)


def _prompt_as_ids(prompt: Any, model: LanguageModel) -> list[int]:
    try:
        ids = torch.as_tensor(prompt)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"prompt must be a text or token ids, got {type(prompt).__name__}.") from None
    if ids.ndim == 2 and len(ids) == 1:
        ids = ids[0]
    if ids.ndim != 1:
        raise InputError(f"prompt must be one sequence of token ids, got shape {tuple(ids.shape)}.")
    return check_tokens(ids[None], model)[0].tolist() if ids.numel() else []


class _Prompt:
    """Runs the stages for one call of ``get_prompt_data``."""

    def __init__(self, run: _Run, ids: Tensor, features: MultiFeatureData, size: int) -> None:
        self.run, self.ids, self.features, self.size = run, ids, features, size
        self.asked = torch.tensor(list(features), dtype=torch.int64)
        self.acts = self._activations()
        self.path = run.check_fit(ids)
        self.seen, self.measured = self._measure()

    def _activations(self) -> list[FeatureActivations]:
        """The features' activations on the prompt, rounded to the same steps as on the corpus."""
        if not len(self.asked):
            return []
        x = self.run.model.activations(self.ids, self.run.hook_point.name)
        check_finite(x, f"The activations at {self.run.hook_point.name!r}", 0)
        check_width(self.run.encoder, x, self.run.hook_point.name, "The encoder")
        check_features(self.asked.tolist(), self.run.encoder)
        acts = encode(self.run.encoder, x, self.asked)[0].clamp_min(0.0).cpu()
        check_finite(acts[None], "The encoder's activations", 0)
        ignored = torch.isin(self.ids[0], torch.tensor(self.run.ignored_ids(), dtype=torch.int64))
        acts[ignored] = 0.0
        result = []
        for column, (feature, data) in enumerate(self.features.items()):
            places = acts[:, column].nonzero()[:, 0]
            own = FeatureActivations.of(
                feature, places.numpy(), acts[places, column].numpy(), len(acts), 0, len(acts), data.activations.max
            )
            result.append(own)
        return result

    def _measure(self) -> tuple[list[ShownFeature], bool]:
        whole = [Window(0, 0, self.ids.shape[1], 0)]
        tail = None
        if len(self.asked):
            rows = self.run.encoder.decoder_rows(self.asked).detach().float().flatten(1)
            _, tail = tails_of(self.run, self.path, self.run.model.final_norm(), rows, self.ids)
        windows = [whole for _ in self.acts]
        seen = measure(self.run.model, tail, self.ids, self.acts, windows, self.run.fvp.n_changes, 1)
        return seen, tail is not None

    def _scores(self) -> dict[Any, list[Ranking]]:
        n = self.ids.shape[1]
        active: list[dict[int, float]] = [{} for _ in range(n)]
        for own in self.acts:
            for position, value in zip(own.positions.tolist(), own.raw.tolist(), strict=True):
                active[position][own.feature] = value
        shown = {own.feature: seen for own, seen in zip(self.acts, self.seen, strict=True)}

        def size(position: int, feature: int, activation: float) -> float:
            return shown[feature].activation[position]

        def quantile(position: int, feature: int, activation: float) -> float:
            knots = self.features[feature].quantiles
            return act_quantile(activation, knots.values, knots.ranks, knots.n)

        def loss(position: int, feature: int, activation: float) -> float:
            return shown[feature].effect[position].loss

        scores = {
            "act_size": rank_by_score(active, size, self.size, largest_first=True),
            "act_quantile": rank_by_score(active, quantile, self.size, largest_first=True),
        }
        if self.measured:
            padding = self.run.model.padding_id()
            before = [{}, *active[:-1]]
            before = [{} if token == padding else at for token, at in zip(self.ids[0].tolist(), before, strict=True)]
            scores["loss_effect"] = rank_by_score(before, loss, self.size, largest_first=False)
        return scores

    def data(self) -> MultiPromptData:
        """The scores, and one column for each feature that is ranked anywhere."""
        scores = self._scores()
        ranked = {feature for rankings in scores.values() for ranking in rankings for feature, _ in ranking}
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
            ids.update(_sequence_token_ids(column.sequence))
        own_texts = token_texts(self.run.model.tokenizer, ids)
        others = {token for column in columns.values() for token in _column_token_ids(column)} - ids
        stored = self.features
        return MultiPromptData(
            self.ids[0].tolist(),
            n_active.tolist(),
            dict(sorted((own_texts.text | {i: stored.vocab[i] for i in others}).items())),
            dict(
                sorted(
                    (own_texts.partial | {i: stored.vocab_bytes[i] for i in others if i in stored.vocab_bytes}).items()
                )
            ),
            columns,
            self.run.fvp,
            stored.provenance,
            scores,
        )

    def _column(self, feature: int, seen: ShownFeature) -> PromptData:
        data = self.features[feature]
        token_ids = self.ids[0].tolist()
        sequence = sequence_data(
            0, 0, 0, token_ids, range(len(token_ids)), seen, self.measured, self.run.model.padding_id()
        )
        groups = data.sequences.groups
        top = groups[0] if groups else SequenceGroupData("TOP ACTIVATIONS", 0.0, 0.0, None, [])
        return PromptData(feature, sequence, data.activations, data.logits, top, data.label)


def _column_token_ids(column: PromptData) -> Iterator[int]:
    if column.logits is not None:
        yield from (*column.logits.top_token_ids, *column.logits.bottom_token_ids)
    for sequence in column.top_group.sequences:
        yield from _sequence_token_ids(sequence)
