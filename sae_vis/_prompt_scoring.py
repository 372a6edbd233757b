"""The three scores by which the features of a prompt are ranked, as pure functions.

``act_size`` is the activation itself, ``act_quantile`` the share of the corpus with a smaller one, ``loss_effect`` the
change of the loss on a token by the features active one token earlier.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from sae_vis._statistics import count_at_least
from sae_vis.utils_fns import round_significant

TAIL_DIGITS = 6  # so few that storing costs little, so many that they add nothing to the error of the knots
Ranking = list[tuple[int, float]]


def act_quantile(activation: float, knot_values: list[float], ranks: list[int], n_counted: int) -> float:
    """The share (0 to 1) of counted corpus positions with a smaller activation.

    Exact for the 32 largest activations; below, the tail above it is known to 3 %, and pages show fewer digits.
    """
    if n_counted == 0:
        return 0.0
    tail = count_at_least(activation, knot_values, ranks) / n_counted
    return round(1.0 - round_significant(tail, TAIL_DIGITS), 15)  # 15 decimals: no noise from the subtraction


def rank_by_score(
    features_at: Sequence[Mapping[int, float]],
    score: Callable[[int, int, float], float],
    size: int,
    largest_first: bool,
) -> list[Ranking]:
    """For each position, the best features: ``features_at[p]`` maps an active feature to its activation.

    ``score(position, feature, activation)`` gives the score; ties go to the lower feature.
    """
    sign = -1.0 if largest_first else 1.0
    rankings = []
    for position, active in enumerate(features_at):
        scored = [(feature, score(position, feature, activation)) for feature, activation in active.items()]
        scored.sort(key=lambda pair: (sign * pair[1], pair[0]))
        rankings.append(scored[:size])
    return rankings
