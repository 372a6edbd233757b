"""The shown pieces of rows: which tokens, with which activations, and which effects have to be measured for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sae_vis._ablation import Effects, Pairs, Tail, direct_effects
from sae_vis._errors import ModelError
from sae_vis._statistics import Example, FeatureActivations, Ints
from sae_vis.model_fns import LanguageModel
from sae_vis.utils_fns import round_significant

LOSS_DECIMALS = 5
LOGPROB_DIGITS = 4


class Window(NamedTuple):
    """Tokens ``start .. stop`` of a row (in the whole set of tokens), with one of them bold."""

    row: int
    start: int
    stop: int
    bold: int

    @classmethod
    def around(cls, example: Example, buffer: tuple[int, int] | None, seq_len: int) -> Window:
        """The example with its buffer, clipped at the row's ends; the whole row without a buffer."""
        before, after = buffer or (seq_len, seq_len)
        return cls(
            example.row,
            max(0, example.position - before),
            min(seq_len, example.position + after + 1),
            example.position,
        )


class EffectAt(NamedTuple):
    """One feature's effect on one token, rounded for storing."""

    loss: float
    raised_ids: list[int]
    raised: list[float]
    lowered_ids: list[int]
    lowered: list[float]


class ShownFeature(NamedTuple):
    """A feature's activations and effects by place (``row * seq_len + position``); a missing place has none."""

    activation: dict[int, float]
    effect: dict[int, EffectAt]


def shown_places(windows: Sequence[Window], seq_len: int) -> Ints:
    """All places that the windows show, each once, in rising order."""
    pieces = [np.arange(w.start, w.stop) + w.row * seq_len for w in windows]
    return np.unique(np.concatenate(pieces)) if pieces else np.zeros(0, dtype=np.int64)


def measure(
    model: LanguageModel,
    tail: Tail | None,
    tokens: Tensor,
    features: Sequence[FeatureActivations],
    windows: Sequence[Sequence[Window]],
    n_changes: int,
    rows_a_batch: int,
    on_rows: Callable[[int, int], None] = lambda done, total: None,
) -> list[ShownFeature]:
    """The activations on the shown tokens, and the effects on those whose predecessor the feature is active at.

    Each shown row runs through the model once, for all features that show it; ``tail`` None measures no effects.
    ``on_rows(done, total)`` reports progress.
    """
    seq_len = tokens.shape[1]
    shown = [shown_places(some, seq_len) for some in windows]
    result = [ShownFeature(_lookup(acts, places, seq_len), {}) for acts, places in zip(features, shown, strict=True)]
    if tail is None:
        return result
    pairs, place_of_pair = _pairs_to_measure(tokens, features, shown)
    rows = np.unique(place_of_pair // seq_len)
    for start in range(0, len(rows), rows_a_batch):
        some_rows = rows[start : start + rows_a_batch]
        in_batch = np.flatnonzero(np.isin(place_of_pair // seq_len, some_rows))
        effects = _effects_of(model, tail, tokens, some_rows, place_of_pair[in_batch], pairs, in_batch, n_changes)
        _check_effects(effects, place_of_pair[in_batch], seq_len)
        for feature, place, effect in zip(
            pairs.feature[in_batch].tolist(), place_of_pair[in_batch].tolist(), rounded(effects), strict=True
        ):
            result[feature].effect[place + 1] = effect  # stored at the token that is predicted
        on_rows(min(start + rows_a_batch, len(rows)), len(rows))
    return result


def _lookup(acts: FeatureActivations, places: Ints, seq_len: int) -> dict[int, float]:
    own = acts.rows * seq_len + acts.positions
    found = np.isin(own, places, assume_unique=True)
    return dict(zip(own[found].tolist(), acts.values[found].tolist(), strict=True))


def _pairs_to_measure(
    tokens: Tensor, features: Sequence[FeatureActivations], shown: Sequence[Ints]
) -> tuple[Pairs, Ints]:
    """Active places whose next token is shown, feature by feature, then sorted by place; ``position`` is filled later."""
    seq_len = tokens.shape[1]
    places, owners, activations = [], [], []
    for index, (acts, visible) in enumerate(zip(features, shown, strict=True)):
        own = acts.rows * seq_len + acts.positions
        wanted = np.isin(own + 1, visible) & (acts.positions + 1 < seq_len)
        places.append(own[wanted])
        owners.append(np.full(int(wanted.sum()), index))
        activations.append(acts.raw[wanted])
    place, owner, activation = (np.concatenate(parts) for parts in (places, owners, activations))
    order = np.lexsort((owner, place))
    place, owner, activation = place[order], owner[order], activation[order]
    flat = tokens.reshape(-1)
    pairs = Pairs(
        torch.zeros(len(place), dtype=torch.int64),
        torch.from_numpy(owner.astype(np.int64)),
        torch.from_numpy(activation.astype(np.float32)),
        flat[torch.from_numpy(place + 1)].long(),
    )
    return pairs, place


def _effects_of(
    model: LanguageModel,
    tail: Tail,
    tokens: Tensor,
    rows: Ints,
    places: Ints,
    pairs: Pairs,
    in_batch: Ints,
    n_changes: int,
) -> Effects:
    """The effects of the pairs ``in_batch``, which lie at ``places`` of ``rows``."""
    seq_len = tokens.shape[1]
    residual = model.final_residual(tokens[torch.from_numpy(rows)]).flatten(0, 1)
    position = np.searchsorted(rows, places // seq_len) * seq_len + places % seq_len
    chosen = torch.from_numpy(in_batch)
    device = residual.device
    some = Pairs(
        torch.from_numpy(position).to(device),
        pairs.feature[chosen].to(device),
        pairs.activation[chosen].to(device),
        pairs.next_token[chosen].to(device),
    )
    return direct_effects(tail, residual, some, n_changes, model.d_vocab)


def _check_effects(effects: Effects, places: Ints, seq_len: int) -> None:
    """Raise ``ModelError`` naming row and position of the first effect that is NaN or infinite."""
    finite = torch.isfinite(effects.loss)
    for changes in (effects.raised, effects.lowered):
        finite &= torch.isfinite(changes).all(-1)
    if not bool(finite.all()):
        row, position = divmod(int(places[int((~finite).nonzero()[0])]), seq_len)
        raise ModelError(
            f"The effects on the prediction made at row {row}, position {position} of the tokens are NaN or infinity: the final "
            "residual stream or a feature's share of it is too large there (float16 overflows above 65504; bfloat16 and float32 "
            "do not). Check the model's number format, or leave effects out with FeatureVisParams(ablation=None)."
        )


def rounded(effects: Effects) -> list[EffectAt]:
    """The effects as plain numbers; a token is listed as raised only if it is, and as lowered only if it is."""
    result = []
    columns = zip(*(values.tolist() for values in effects), strict=True)
    for loss, raised_ids, raised, lowered_ids, lowered in columns:
        up = [(i, v) for i, v in zip(raised_ids, map(_short, raised), strict=True) if v > 0]
        down = [(i, v) for i, v in zip(lowered_ids, map(_short, lowered), strict=True) if v < 0]
        result.append(
            EffectAt(
                round(loss, LOSS_DECIMALS) + 0.0,
                [i for i, _ in up],
                [v for _, v in up],
                [i for i, _ in down],
                [v for _, v in down],
            )
        )
    return result


def _short(value: float) -> float:
    return round_significant(round(value, LOSS_DECIMALS), LOGPROB_DIGITS)
