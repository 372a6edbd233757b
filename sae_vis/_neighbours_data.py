"""Where a feature lies, what lies near it, and where its effect is: the dataclasses, checked and drawn. No computation.

They are parts of ``_feature_data.FeatureData`` and of its groups of sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from sae_vis import html_fns
from sae_vis._checks import check, check_counts, check_finite, check_same_length
from sae_vis._templates import Html
from sae_vis.utils_fns import format_fixed, format_signed


class Linked(Protocol):
    """What a table must know of the page: the features that a link can reach."""

    @property
    def features(self) -> frozenset[int]:
        """Their ids."""


def _indices(indices: Sequence[int], page: Linked | None) -> list[Html | str]:
    reachable = page.features if page else frozenset[int]()
    return [html_fns.feature_link(index) if index in reachable else str(index) for index in indices]


@dataclass(slots=True)
class NearestData:
    """The features of the whole dictionary whose decoder directions have the largest cosine with a feature's own."""

    indices: list[int]
    cosine: list[float]

    def __post_init__(self) -> None:
        check_same_length(self, indices=self.indices, cosine=self.cosine)
        check_finite(self, cosine=self.cosine)

    def get_html(self, page: Linked | None = None, *, rows: int | None = None) -> Html:
        """The table, with at most ``rows`` rows."""
        cosines = [format_signed(value) for value in self.cosine[:rows]]
        indices = _indices(self.indices[:rows], page)
        return html_fns.numbers_table("Nearest directions", ["Index", "Cosine"], indices, cosines)


@dataclass(slots=True)
class CoactiveData:
    """The features that are active together with a feature most: the Jaccard index, and at how many counted positions."""

    indices: list[int]
    jaccard: list[float]
    n_both: list[int]

    def __post_init__(self) -> None:
        check_same_length(self, indices=self.indices, jaccard=self.jaccard, n_both=self.n_both)
        check(all(0.0 <= value <= 1.0 for value in self.jaccard), self, "jaccard must be from 0 to 1.")
        check_counts(self, n_both=self.n_both)

    def get_html(self, page: Linked | None = None, *, rows: int | None = None) -> Html:
        """The table, with at most ``rows`` rows."""
        return html_fns.numbers_table(
            "Active together",
            ["Index", "Jaccard", "Tokens"],
            _indices(self.indices[:rows], page),
            [format_fixed(value, 3) for value in self.jaccard[:rows]],
            [f"{n:,}" for n in self.n_both[:rows]],
        )


@dataclass(slots=True)
class NeighboursData:
    """The features that are nearest to one, by direction and by co-activation (None where that was not counted)."""

    nearest: NearestData
    coactive: CoactiveData | None = None

    def get_html(self, page: Linked | None = None, *, rows: int | None = None) -> Html:
        """The tables below each other."""
        tables = [self.nearest.get_html(page, rows=rows)]
        if self.coactive is not None:
            tables.append(self.coactive.get_html(page, rows=rows))
        return html_fns.neighbours(tables)


@dataclass(slots=True)
class DirectionData:
    """Where a feature's decoder direction lies on the map of the dictionary (``FeatureVisParams.feature_map``)."""

    x: float
    y: float

    def __post_init__(self) -> None:
        check_finite(self, x=self.x, y=self.y)


@dataclass(slots=True)
class LossShareData:
    """An interval's share of all that the feature lowers the loss by, and of all that it raises it by (0 to 1 each).

    Estimated from ``n_examples`` random positions of the interval; ``exact`` where every interval's positions were measured.
    """

    lowered: float
    raised: float
    n_examples: int
    exact: bool

    def __post_init__(self) -> None:
        in_range = 0.0 <= self.lowered <= 1.0 and 0.0 <= self.raised <= 1.0
        check(in_range, self, f"shares must be from 0 to 1, got {self.lowered!r} and {self.raised!r}.")
        check_counts(self, n_examples=[self.n_examples])
