"""The tables on the left of a feature, of neurons and of other features: the dataclasses, checked and drawn. No computation."""

from __future__ import annotations

from dataclasses import dataclass

from sae_vis import html_fns
from sae_vis._checks import check, check_finite, check_same_length
from sae_vis._page_context import PageContext
from sae_vis._templates import Html
from sae_vis.utils_fns import decimals_for, format_percent, format_signed, largest


@dataclass(slots=True)
class NeuronAlignmentData:
    """The neurons of the hook point with the largest decoder weights, and each weight's share of the L1 norm (0 to 1)."""

    indices: list[int]
    values: list[float]
    share_of_l1: list[float]

    def __post_init__(self) -> None:
        check_same_length(self, indices=self.indices, values=self.values, share_of_l1=self.share_of_l1)
        check_finite(self, values=self.values, share_of_l1=self.share_of_l1)
        check(all(0.0 <= share <= 1.0 for share in self.share_of_l1), self, "share_of_l1 must be from 0 to 1.")

    def get_html(self, page: PageContext | None = None, *, rows: int | None = None) -> Html:
        """The table, with at most ``rows`` rows."""
        most = largest(self.values)
        return html_fns.numbers_table(
            "Neuron alignment",
            ["Index", "Value", "% of L1"],
            [str(index) for index in self.indices[:rows]],
            [format_signed(value, decimals_for(most, 3) if 0 < most < 0.01 else 3) for value in self.values[:rows]],
            [format_percent(share, 2) for share in self.share_of_l1[:rows]],
        )


@dataclass(slots=True)
class CorrelationData:
    """The columns that correlate most with a feature: Pearson's r, and the cosine similarity of the activations."""

    indices: list[int]
    pearson: list[float]
    cosine: list[float]

    def __post_init__(self) -> None:
        check_same_length(self, indices=self.indices, pearson=self.pearson, cosine=self.cosine)
        check_finite(self, pearson=self.pearson, cosine=self.cosine)

    def get_html(
        self,
        page: PageContext | None = None,
        *,
        title: str = "Correlated neurons",
        rows: int | None = None,
        links: bool = False,
    ) -> Html:
        """The table, with at most ``rows`` rows; ``links`` where an index is a feature that the page may hold."""
        reachable = page.features if page and links else frozenset()
        return html_fns.numbers_table(
            title,
            ["Index", "Pearson", "Cosine"],
            [html_fns.feature_link(index) if index in reachable else str(index) for index in self.indices[:rows]],
            [format_signed(value) for value in self.pearson[:rows]],
            [format_signed(value) for value in self.cosine[:rows]],
        )


@dataclass(slots=True)
class FeatureTablesData:
    """The left-hand tables; None where a table was not computed."""

    neuron_alignment: NeuronAlignmentData | None = None
    correlated_neurons: CorrelationData | None = None
    correlated_features: CorrelationData | None = None
    correlated_b_features: CorrelationData | None = None

    def get_html(self, page: PageContext | None = None, *, rows: int | None = None) -> Html:
        """The tables that there are, below each other."""
        tables = [self.neuron_alignment.get_html(page, rows=rows)] if self.neuron_alignment else []
        for title, table, links in (
            ("Correlated neurons", self.correlated_neurons, False),
            ("Correlated features", self.correlated_features, True),
            ("Correlated B features", self.correlated_b_features, False),
        ):
            if table is not None:
                tables.append(table.get_html(page, title=title, rows=rows, links=links))
        return html_fns.left_tables(tables)
