"""Where a feature's effect on the loss lies: the share of each interval of activation, estimated from examples or exact.

The effect of an active position is the loss contribution on the token after it, 0 where there is none to predict.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sae_vis._shown import EffectAt, Window
from sae_vis._statistics import FeatureActivations, Ints, interval_numbers
from sae_vis.utils_fns import round_significant

SHARE_DIGITS = 6


class LossShare(NamedTuple):
    """An interval's share of what the feature lowers the loss by in all, and of what it raises it by."""

    lowered: float
    raised: float
    n_examples: int
    exact: bool


def measured_windows(windows: Sequence[Window], seq_len: int) -> list[Window]:
    """The windows, each with the token after the bold one, where there is one."""
    return [window._replace(stop=max(window.stop, min(seq_len, window.bold + 2))) for window in windows]


def every_place(acts: FeatureActivations, seq_len: int) -> Ints:
    """Every active place and the one after it, in rising order."""
    own = acts.rows * seq_len + acts.positions
    return np.union1d(own, own[acts.positions + 1 < seq_len] + 1)


class Predicted(NamedTuple):
    """The effects of a feature by place, and which tokens are predicted: those that are not padding."""

    effect_at: Mapping[int, EffectAt]
    tokens: npt.NDArray[np.integer]
    padding: int | None

    def losses_after(self, windows: Sequence[Window]) -> list[float]:
        """The loss contribution on the token after the bold one of each window."""
        return [self._loss(window.row, window.bold + 1) for window in windows]

    def _loss(self, row: int, position: int) -> float:
        seq_len = self.tokens.shape[1]
        if position == seq_len or self.tokens[row, position] == self.padding:
            return 0.0
        effect = self.effect_at.get(row * seq_len + position)
        return effect.loss if effect else 0.0

    def losses_by_interval(self, acts: FeatureActivations, n_groups: int) -> list[list[float]]:
        """The loss contribution after every active position, interval by interval, the highest first."""
        after = zip(acts.rows.tolist(), (acts.positions + 1).tolist(), strict=True)
        losses = np.array([self._loss(row, position) for row, position in after])
        numbers = interval_numbers(acts, n_groups)
        return [losses[numbers == i].tolist() for i in reversed(range(n_groups))]


def loss_shares(losses: Sequence[Sequence[float]], n_positions: Sequence[int]) -> list[LossShare] | None:
    """The share of each interval, from the loss contributions of its examples and the number of its positions.

    An interval's sum is the mean over the examples times the number of positions. None where an interval that has
    positions has no examples, and where the feature changes nothing.
    """
    if any(n and not len(some) for some, n in zip(losses, n_positions, strict=True)):
        return None
    exact = all(len(some) >= n for some, n in zip(losses, n_positions, strict=True))
    lowered, raised = (
        [math.fsum(max(0.0, sign * loss) for loss in some) * n / max(1, len(some)) for some, n in pairs]
        for sign, pairs in ((s, list(zip(losses, n_positions, strict=True))) for s in (-1.0, 1.0))
    )
    totals = math.fsum(lowered), math.fsum(raised)
    if not any(totals):
        return None

    def share(part: float, total: float) -> float:
        return min(1.0, round_significant(part / total, SHARE_DIGITS)) if total else 0.0

    return [
        LossShare(share(low, totals[0]), share(high, totals[1]), len(some), exact)
        for low, high, some in zip(lowered, raised, losses, strict=True)
    ]
