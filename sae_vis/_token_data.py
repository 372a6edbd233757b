"""The dataclasses of a feature's tokens: which it fires on, and where in the rows.

They are parts of ``_feature_data.FeatureData`` and like the others there: no computation, and everything is checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from sae_vis import html_fns
from sae_vis._checks import MOST, check, check_finite, check_same_length
from sae_vis._templates import Html
from sae_vis.html_fns import NOTHING, TokenPrinter
from sae_vis.utils_fns import decimals_for, format_fixed, format_percent, largest, level, ticks

TICKS = 5  # of the axis of positions, at most


class Page(Protocol):
    """What these parts must know of the page."""

    @property
    def printer(self) -> TokenPrinter:
        """How a token is shown."""


@dataclass(slots=True)
class TokensData:
    """The tokens with the largest share of a feature's total activation, the largest first.

    ``n_active[i]`` of the ``n_occurrences[i]`` counted positions with token ``token_ids[i]`` are active, ``mean[i]`` is the
    mean activation over these, and ``share[i]`` (0 to 1) the part of the sum of all activations that they make up.
    ``n_distinct`` counts the distinct tokens that the feature fires on. All empty, and 0, if it never does.
    """

    token_ids: list[int]
    n_active: list[int]
    n_occurrences: list[int]
    mean: list[float]
    share: list[float]
    n_distinct: int

    def __post_init__(self) -> None:
        check_same_length(
            self,
            token_ids=self.token_ids,
            n_active=self.n_active,
            n_occurrences=self.n_occurrences,
            mean=self.mean,
            share=self.share,
        )
        check(
            all(1 <= n <= of <= MOST for n, of in zip(self.n_active, self.n_occurrences, strict=True)),
            self,
            "n_active must be from 1 to n_occurrences.",
        )
        check_finite(self, mean=self.mean)
        check(all(0.0 <= share <= 1.0 for share in self.share), self, "share must be from 0 to 1.")
        check(
            len(self.token_ids) <= self.n_distinct <= MOST, self, "n_distinct must be no less than the tokens listed."
        )

    def firing_rates(self) -> list[float]:
        """P(fires | token): of each token the share of its occurrences that the feature fires on."""
        return [active / of for active, of in zip(self.n_active, self.n_occurrences, strict=True)]

    def get_html(self, page: Page | None = None, *, rows: int | None = None) -> Html:
        """The table with at most ``rows`` rows below a sentence; nothing of a feature that never fires."""
        if not self.token_ids:
            return NOTHING
        printer = page.printer if page else TokenPrinter({}, {})
        decimals = decimals_for(largest(self.mean), 3)
        shown = slice(rows)
        n = "1 token" if self.n_distinct == 1 else f"{self.n_distinct:,} distinct tokens"
        return html_fns.tokens_table(
            f"fires on {n}",
            self.summary(),
            tokens=[printer.one(token_id) for token_id in self.token_ids[shown]],
            rates=[format_percent(rate, 2) for rate in self.firing_rates()[shown]],
            occurrences=[f"{of:,}" for of in self.n_occurrences[shown]],
            means=[format_fixed(mean, decimals) for mean in self.mean[shown]],
            shares=[format_percent(share, 2) for share in self.share[shown]],
            bars=[level(share, 1.0) for share in self.share[shown]],
        )

    def summary(self) -> str:
        """One sentence that tells a feature of a token from a feature of a context; empty if it never fires."""
        if not self.token_ids:
            return ""
        share, rate = format_percent(self.share[0], 2), format_percent(self.firing_rates()[0], 2)
        return f"Top token: {share} of the activation; fires on {rate} of its occurrences."


@dataclass(slots=True)
class PositionsData:
    """At which positions of the rows a feature fires: bins of positions ``bar_edges[i] <= position < bar_edges[i + 1]``.

    ``n_active`` counts the active positions in each bin, ``n_counted`` all counted ones, so that a feature that fires evenly
    would have ``sum(n_active) * n_counted[i] / sum(n_counted)`` there.
    """

    bar_edges: list[int]
    n_active: list[int]
    n_counted: list[int]

    def __post_init__(self) -> None:
        check_same_length(self, n_active=self.n_active, n_counted=self.n_counted, bins=self.bar_edges[1:])
        check(
            len(self.bar_edges) > 1 and self.bar_edges[0] >= 0 and all(a < b for a, b in pairwise(self.bar_edges)),
            self,
            "bar_edges must be two positions or more, and rise.",
        )
        check(
            all(0 <= n <= of <= MOST for n, of in zip(self.n_active, self.n_counted, strict=True)),
            self,
            "n_active must be from 0 to n_counted.",
        )

    def expected(self) -> list[float]:
        """How many positions would be active in each bin if the feature fired evenly."""
        counted = sum(self.n_counted)
        return [sum(self.n_active) * n / counted if counted else 0.0 for n in self.n_counted]

    def get_html(self, page: Page | None = None) -> Html:
        """A small histogram with the expected counts as a line; nothing of a feature that never fires."""
        if not any(self.n_active):
            return NOTHING
        low, high = self.bar_edges[0], self.bar_edges[-1]
        label = f"Histogram of positions from {low} to {high - 1}"
        plot = html_fns.positions_plot(
            label, self.bar_edges, self.n_active, self.expected(), ticks(float(low), float(high), TICKS)
        )
        return html_fns.positions_histogram(plot)
