"""How the activations of a feature and its logit weights are distributed: the dataclasses, checked and drawn. No computation."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass

from sae_vis import html_fns
from sae_vis._checks import check, check_counts, check_finite, check_same_length
from sae_vis._page_context import PageContext
from sae_vis._templates import Html, join
from sae_vis.html_fns import NOTHING
from sae_vis.utils_fns import count, decimals_for, format_fixed, format_general, format_percent, format_signed, largest


@dataclass(slots=True)
class HistogramData:
    """Equal bins: ``n + 1`` edges, ``n`` counts, and the ticks of the axis. All empty where there is nothing to count."""

    bar_edges: list[float]
    bar_heights: list[int]
    tick_vals: list[float]

    def __post_init__(self) -> None:
        expected = len(self.bar_heights) + 1 if self.bar_heights else 0
        check(
            len(self.bar_edges) == expected,
            self,
            f"{len(self.bar_heights)} bars need {expected} edges, got {len(self.bar_edges)}.",
        )
        check_counts(self, bar_heights=self.bar_heights)
        check_finite(self, bar_edges=self.bar_edges, tick_vals=self.tick_vals)
        if self.bar_edges:
            low, high = self.bar_edges[0], self.bar_edges[-1]
            check(
                low < high and math.isfinite(high - low),
                self,
                f"bar_edges must rise over a finite range, got {low!r} to {high!r}.",
            )
            check(sorted(self.bar_edges) == self.bar_edges, self, "bar_edges must not fall.")
        check(sorted(set(self.tick_vals)) == self.tick_vals, self, "tick_vals must rise.")

    def get_html(
        self,
        page: PageContext | None = None,
        *,
        kind: str = "activations",
        pin: float | None = None,
        pin_text: str = "",
    ) -> Html:
        """The histogram as a plot; ``kind`` is "activations" or "logits", ``pin`` a value to mark."""
        if not self.bar_heights:
            return html_fns.empty("There is nothing to count.")
        low, high = self.bar_edges[0], self.bar_edges[-1]
        label = f"Histogram of {kind} from {format_general(low)} to {format_general(high)}"
        line = NOTHING if pin is None else html_fns.plot_pin(pin, pin_text, low, high)
        return html_fns.middle_plot(kind, label, self.bar_edges, self.bar_heights, self.tick_vals, line)


@dataclass(slots=True)
class ActivationsData:
    """How often and how strongly a feature fires over the counted positions; the moments are None if it never does."""

    density: float
    n_active: int
    max: float | None
    mean: float | None
    variance: float | None
    skewness: float | None
    kurtosis: float | None
    histogram: HistogramData

    def __post_init__(self) -> None:
        check(0.0 <= self.density <= 1.0, self, f"density must be from 0 to 1, got {self.density!r}.")
        check_counts(self, n_active=[self.n_active])
        check_finite(
            self, max=self.max, mean=self.mean, variance=self.variance, skewness=self.skewness, kurtosis=self.kurtosis
        )

    def get_html(self, page: PageContext | None = None, *, pin: float | None = None) -> Html:
        """The histogram of the active activations, or a sentence where the feature never fires."""
        summary = f"density {format_percent(self.density)}"
        if self.max is None or not self.histogram.bar_heights:
            counted = page.provenance.n_counted if page and page.provenance else None
            where = "these tokens" if counted is None else f"the {count(counted, 'counted token')}"
            text = f"This feature never fires on {where}."
            return html_fns.activations_histogram(summary, html_fns.empty(text))
        summary += f", max {format_fixed(self.max, decimals_for(self.max, 3))}"
        pin_text = "" if pin is None else format_fixed(pin, decimals_for(page.act_max if page else self.max))
        return html_fns.activations_histogram(summary, self.histogram.get_html(page, pin=pin, pin_text=pin_text))

    def moments_html(self, page: PageContext | None = None) -> Html:
        """The moments in one line, or a sentence where the feature never fires."""
        moments = {"Mean": self.mean, "Variance": self.variance, "Skewness": self.skewness, "Kurtosis": self.kurtosis}
        known = {name: format_general(value, 3) for name, value in moments.items() if value is not None}
        return html_fns.moments(list(known), list(known.values())) if known else NOTHING


@dataclass(slots=True)
class LogitsData:
    """The direct effect of one unit of the feature on the logits, centred over the vocabulary.

    ``top_*`` from the largest down, ``bottom_*`` from the smallest up; ``shown_logits`` maps the id of every token that
    is shown in the feature's sequences to its logit weight. ``skewness`` and ``kurtosis`` (not minus 3) are those of the
    logit weights over the vocabulary; None where they are all equal, and in older files.
    """

    top_token_ids: list[int]
    top_logits: list[float]
    bottom_token_ids: list[int]
    bottom_logits: list[float]
    shown_logits: dict[int, float]
    histogram: HistogramData
    skewness: float | None = None
    kurtosis: float | None = None

    def __post_init__(self) -> None:
        check_same_length(self, top_token_ids=self.top_token_ids, top_logits=self.top_logits)
        check_same_length(self, bottom_token_ids=self.bottom_token_ids, bottom_logits=self.bottom_logits)
        check_finite(
            self,
            top_logits=self.top_logits,
            bottom_logits=self.bottom_logits,
            shown_logits=list(self.shown_logits.values()),
            skewness=self.skewness,
            kurtosis=self.kurtosis,
        )

    def get_html(self, page: PageContext | None = None) -> Html:
        """The tables and the histogram."""
        return join([self.tables_html(page), self.histogram_html(page)])

    def tables_html(self, page: PageContext | None = None, *, rows: int | None = None) -> Html:
        """The tokens whose logits the feature lowers most and raises most."""
        printer = (page or PageContext()).printer
        strongest = largest([*self.top_logits, *self.bottom_logits])
        negative, positive = (
            html_fns.logits_table(
                title, kind, [printer.one(token_id) for token_id in ids[:rows]], values[:rows], strongest
            )
            for title, kind, ids, values in (
                ("Negative logits", "negative", self.bottom_token_ids, self.bottom_logits),
                ("Positive logits", "positive", self.top_token_ids, self.top_logits),
            )
        )
        return html_fns.logits_tables(negative, positive)

    def histogram_html(self, page: PageContext | None = None, *, pin: float | None = None) -> Html:
        """The histogram of the logit weights over the vocabulary."""
        if not self.histogram.bar_heights:
            return html_fns.logits_histogram("", html_fns.empty("There are no logit weights to count."))
        pin_text = "" if pin is None else format_signed(pin, page.logit_decimals if page else 3)
        plot = self.histogram.get_html(page, kind="logits", pin=pin, pin_text=pin_text)
        return html_fns.logits_histogram(f"of {count(sum(self.histogram.bar_heights), 'token')}", plot)


@dataclass(slots=True)
class QuantileKnots:
    """Points of a feature's distribution of activations, from which ``act_quantile`` is looked up.

    ``values`` fall, ``ranks`` rise: ``ranks[i]`` of the ``n`` counted positions have an activation >= ``values[i]``.
    """

    values: list[float]
    ranks: list[int]
    n: int

    def __post_init__(self) -> None:
        check_same_length(self, values=self.values, ranks=self.ranks)
        check_finite(self, values=self.values)
        check(
            all(map(operator.ge, self.values, self.values[1:])) and all(map(operator.lt, self.ranks, self.ranks[1:])),
            self,
            "values must fall and ranks must rise.",
        )
        check(
            not self.ranks or (self.ranks[0] >= 1 and self.ranks[-1] <= self.n),
            self,
            f"ranks must be from 1 to {self.n}.",
        )
