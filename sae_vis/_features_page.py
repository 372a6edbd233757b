"""The page of many features: its parts, one feature after the other, and the overview that collects them on the way."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from sae_vis import _columns, _furniture, _overview, _page, _rows, html_fns
from sae_vis._feature_data import FeatureData
from sae_vis._page_context import PageContext, Provenance
from sae_vis._params import FeatureVisParams
from sae_vis._templates import Html, join
from sae_vis.html_fns import NOTHING
from sae_vis.utils_fns import format_percent


class Features(Protocol):
    """What a page must know of many features: ``MultiFeatureData``, which draws itself with this module."""

    feature_data_dict: Mapping[int, FeatureData]
    vocab: dict[int, str]
    rows: Mapping[int, list[int]]
    params: FeatureVisParams
    provenance: Provenance


# Features, the page and their number to each feature with its packed HTML, in order.
Packing = Callable[[Iterable[FeatureData], PageContext, int], Generator[tuple[FeatureData, str], None, None]]


def features_parts(
    features: Features,
    page: PageContext,
    shown: list[int],
    first: int | None,
    packing: Packing,
    note: str = "",
    opens: str = "overview",
) -> tuple[str, Html, list[Html]]:
    """Title, body and elements of the feature-centric page: ``first`` in plain HTML, the others packed by ``packing``.

    Every feature is looked at once.
    """
    overview = overview_of(features, shown)
    opened, labels, token_ids = NOTHING, dict[int, str](), set[int]()
    examples: list[list[int]] = []  # the rows of each feature's
    notes: dict[int, str] = {}
    stars: list[int] = []
    every_text = len(shown) == len(features.feature_data_dict)

    def others() -> Iterator[FeatureData]:
        nonlocal opened
        for index in shown:
            feature = features.feature_data_dict[index]
            overview.add(feature)
            if not every_text:
                token_ids.update(feature.token_ids())
            if feature.label:
                labels[index] = feature.label
            if feature.note:
                notes[index] = feature.note
            if feature.starred:
                stars.append(index)
            if features.rows:
                examples.append(feature.example_rows())
            if index == first:
                opened = feature.get_html(page)
            else:
                yield feature

    with contextlib.closing(packing(others(), page, len(shown))) as drawn:
        packed = _page.all_packed((feature.feature_idx, text) for feature, text in drawn)
    said = {"labels": labels, "notes": notes, "stars": stars}
    index = {"ids": shown, **said, "title": _furniture.title_of(page), **_furniture.whose(page)}
    body = features_body(page, first, opened, len(shown), note, opens)
    rows = _rows.chosen(features.rows, examples)
    token_ids |= _rows.token_ids(rows.values()) | overview.token_ids()
    # The texts of a whole vocabulary may be more than a notebook should hold, for fifty features of thousands.
    vocab = _furniture.vocab_of(page, features.vocab if every_text else token_ids)
    assets = overview_assets(overview, page, vocab) if len(shown) > 1 else {}
    elements = [
        _page.data("vocab", vocab),
        _page.data("index", index),
        *_furniture.rows_element(rows),
        *(_page.packed_asset(name, text) for name, text in assets.items()),
        *packed,
    ]
    return first_title(page, first), body, elements


def features_body(
    page: PageContext, first: int | None, opened: Html, count: int, note: str = "", opens: str = "overview"
) -> Html:
    """The body of the feature-centric page: what does not depend on the feature, and ``first`` of ``count``."""
    return html_fns.features_page(
        "SAE features" if count != 1 else "SAE feature",
        _furniture.subtitle_of(page.provenance),
        html_fns.feature_finder(first, count) if first is not None and count > 1 else NOTHING,
        _furniture.notes_of(page, note),
        html_fns.empty("There are no features in this data.") if first is None else opened,
        _furniture.footer_of(page),
        join([html_fns.hovertext(), _columns.abouts(page.params.feature_layout())]),
        html_fns.overview(opens, count) if count > 1 else NOTHING,
    )


def first_title(page: PageContext, first: int | None) -> str:
    """The title of the page, which names the feature that it shows at first."""
    return _furniture.title_of(page) if first is None else f"Feature {first} · {_furniture.title_of(page)}"


# --- the overview of many features -----------------------------------------------------------------------------------


def overview_of(features: Features, shown: Sequence[int]) -> _overview.Overview:
    """What will collect the overview of the features ``shown``; columns that need all of them are given to it here."""
    told, kind = features.provenance, features.params.feature_map
    return _overview.Overview(meta={"map": _MAPS[kind](told)} if kind else None)


def _pca_map(told: Provenance) -> str:
    share = told.map_variance if told.map_variance is not None and 0 <= told.map_variance <= 1 else None
    of, kind, whose = f"{told.d_hidden:,} decoder directions", "PCA", "their"
    if told.map_sample is not None:
        of, kind, whose = f"{told.map_sample:,} of the {of}", "PCA of an evenly spaced sample", "its"
    kept = "" if share is None else f", {format_percent(share)} of {whose} variance"
    return f"By the two main axes of {of} ({kind}{kept}): features far apart differ, near ones may or may not."


def _umap_map(told: Provenance) -> str:
    return (
        f"By UMAP of the {told.d_hidden:,} decoder directions: near features are similar, large distances mean little."
    )


_MAPS: dict[str, Callable[[Provenance], str]] = {"pca": _pca_map, "umap": _umap_map}


def noted(overview: _overview.Overview, features: Iterable[FeatureData]) -> Iterator[FeatureData]:
    """The features, each of which goes into the overview as it passes."""
    for feature in features:
        overview.add(feature)
        yield feature


def overview_assets(overview: _overview.Overview, page: PageContext, vocab: Mapping[str, Any]) -> dict[str, str]:
    """The files of the overview by name, once all features have passed; ``vocab`` is what ``vocab_of`` gave for the page."""
    printer = page.printer
    return overview.assets(_overview.texts_apart(vocab["ids"], vocab["html"], printer.vocab, printer.vocab_bytes))
