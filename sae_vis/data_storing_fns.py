"""Many features: how they are held, drawn (by several processes, where that is worth it) and saved. No computation.

Every other dataclass of the two views can be imported from here too. Where each of them lives:

- ``_feature_data``: one feature, ``FeatureData``;
- ``_prompt_data``: the features on a prompt, ``PromptData`` and ``MultiPromptData``;
- ``_sequence_data``, ``_distribution_data``, ``_table_data``, ``_token_data``, ``_neighbours_data`` and ``_prompt_panels``: the
  parts of these;
- ``_page_context``: ``Provenance``, and the ``PageContext`` that ``get_html(page)`` of every class that is drawn hands down;
- ``_columns``, ``_furniture`` and ``_features_page``: how parts are put together to columns and pages.

Only ``str``, ``int``, ``float``, ``bool``, ``None``, lists and dicts are inside, so that JSON holds everything needed to
draw a page again, with no model, no tokenizer and no torch. Every class checks its lengths and ranges when it is made.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import operator
import os
from collections.abc import Generator, ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from sae_vis import _feature_folder, _json, _labels, _page, _render_pool, _site, _text
from sae_vis._checks import check, check_hex
from sae_vis._distribution_data import ActivationsData, HistogramData, LogitsData, QuantileKnots
from sae_vis._errors import InputError, shown, some
from sae_vis._feature_data import FeatureData
from sae_vis._features_page import features_body, features_parts, first_title, noted, overview_assets, overview_of
from sae_vis._furniture import (
    origin_of,
    subtitle_of,
    title_of,
    vocab_of,
    whose,
)
from sae_vis._neighbours_data import DirectionData, LossShareData, NeighboursData
from sae_vis._page_context import LOSS_SCORES, SCORE_NAMES, PageContext, Provenance, ScoreName
from sae_vis._params import BUILT_IN, RUN_OPTIONS, FeatureVisParams, Layout
from sae_vis._prompt_data import MultiPromptData, PromptData
from sae_vis._prompt_panels import HeatRow, ReconstructionData
from sae_vis._saved import Saved, TextTwin
from sae_vis._sequence_data import (
    CounterexamplesData,
    FullEffects,
    SequenceData,
    SequenceGroupData,
    SequenceMultiGroupData,
    TokenEffect,
)
from sae_vis._table_data import CorrelationData, FeatureTablesData, NeuronAlignmentData
from sae_vis._templates import Html
from sae_vis._token_data import PositionsData, TokensData
from sae_vis.html_fns import NOTHING, TokenPrinter
from sae_vis.utils_fns import count

__all__ = [
    "LOSS_SCORES",
    "SCORE_NAMES",
    "ActivationsData",
    "CorrelationData",
    "CounterexamplesData",
    "DirectionData",
    "FeatureData",
    "FeatureTablesData",
    "FullEffects",
    "HeatRow",
    "HistogramData",
    "LogitsData",
    "LossShareData",
    "MultiFeatureData",
    "MultiPromptData",
    "NeighboursData",
    "NeuronAlignmentData",
    "PageContext",
    "PositionsData",
    "PromptData",
    "Provenance",
    "QuantileKnots",
    "ReconstructionData",
    "ScoreName",
    "SequenceData",
    "SequenceGroupData",
    "SequenceMultiGroupData",
    "TokenEffect",
    "TokensData",
    "packed_features",
    "worker_setup",
]

V = TypeVar("V")
D = TypeVar("D")


class _Largest(msgspec.Struct):
    max: float | None


class _Distribution(msgspec.Struct):
    """What the prompt-centric view needs of every feature that is active."""

    activations: _Largest
    quantiles: QuantileKnots


class _Said(msgspec.Struct):
    """What a reader said of a feature."""

    label: str | None = None
    note: str | None = None
    starred: bool = False


@dataclass(repr=False)
class MultiFeatureData(Saved, TextTwin):
    """Many features of one encoder on one set of tokens: a mapping from feature index to ``FeatureData``.

    ``vocab`` holds the text of every token id that occurs, ``vocab_bytes`` the bytes (hex) of those that are only part of
    a character, ``rows`` the whole rows that examples come from (empty with ``store_rows=False``).

    What ``load_dir`` opens reads a feature from its file when it is asked for, and lets go of it again. Its ``label``,
    ``note``, ``starred`` and ``extras`` are remembered as they are set, in memory: ``save_labels`` and ``save_json`` write them.
    """

    feature_data_dict: Mapping[int, FeatureData]
    vocab: dict[int, str]
    vocab_bytes: dict[int, str]
    rows: Mapping[int, list[int]]
    params: FeatureVisParams
    provenance: Provenance

    def __post_init__(self) -> None:
        if not isinstance(
            self.feature_data_dict, _feature_folder.LazyMapping
        ):  # which is sorted, and checks what it reads
            self.feature_data_dict = dict(sorted(self.feature_data_dict.items()))
            for index, feature in self.feature_data_dict.items():
                check(index == feature.feature_idx, self, f"key {index} holds feature {feature.feature_idx}.")
        check_hex(self, self.vocab_bytes)

    def __getitem__(self, feature: int) -> FeatureData:
        try:
            return self._with_context(self.feature_data_dict[feature])
        except (KeyError, TypeError):
            raise InputError(_absent_feature(feature, self.feature_data_dict)) from None

    def __iter__(self) -> Iterator[int]:
        return iter(self.feature_data_dict)

    def __len__(self) -> int:
        return len(self.feature_data_dict)

    def __contains__(self, feature: object) -> bool:
        return feature in self.feature_data_dict

    def distribution(self, feature: int) -> tuple[float | None, QuantileKnots]:
        """The largest activation and the quantile knots of a feature; quick where features are read from a folder.

        Raises:
            InputError: if there is no such feature.
        """
        features = self.feature_data_dict
        if isinstance(features, _feature_folder.FolderFeatures) and feature in features:
            found = features.partly(feature, _Distribution)
            return found.activations.max, found.quantiles
        data = self[feature]
        return data.activations.max, data.quantiles

    def get(self, feature: int, default: D | None = None) -> FeatureData | D | None:
        """A feature, or something else where it is not there."""
        found = self.feature_data_dict.get(feature)
        return default if found is None else self._with_context(found)

    def only(self, features: Iterable[int]) -> MultiFeatureData:
        """Some of the features, in memory, with the texts and rows that they show: what would have been fetched of them.

        Raises:
            InputError: if there is no such feature, or none is given.
        """
        try:
            ids = sorted({operator.index(feature) for feature in features})
        except TypeError:
            raise InputError(f"features must be feature indices, e.g. [8, 9], got {shown(features)}.") from None
        if not ids:
            raise InputError("features are none: give at least one feature index.")
        chosen = {index: self[index] for index in ids}
        shown_rows = set[int]().union(*(data.shown_rows() for data in chosen.values()))
        rows = {row: self.rows[row] for row in sorted(shown_rows) if row in self.rows}
        tokens = {token for row in rows.values() for token in row}.union(
            *(data.vocab_ids() for data in chosen.values())
        )
        return MultiFeatureData(
            feature_data_dict=chosen,
            vocab={token: text for token, text in self.vocab.items() if token in tokens},
            vocab_bytes={token: text for token, text in self.vocab_bytes.items() if token in tokens},
            rows=rows,
            params=dataclasses.replace(self.params, features=tuple(ids)),
            provenance=self.provenance,
        )

    def keys(self) -> KeysView[int]:
        """The feature indices, in rising order."""
        return self.feature_data_dict.keys()

    def values(self) -> ValuesView[FeatureData]:
        """The features, in rising order of their index."""
        return ValuesView(self)  # which reads one after the other

    def items(self) -> ItemsView[int, FeatureData]:
        """Pairs of index and feature, in rising order."""
        return ItemsView(self)

    @property
    def labels(self) -> _labels.Labels:
        """The labels of the features that have one: ``features.labels[8] = "import statements"``, or assign a whole mapping.

        A label that is None, empty or deleted is taken away. Assigning a mapping replaces all labels.

        Raises:
            InputError: if a feature is not there, or a label is no text of at most 200 characters.
        """
        return _labels.Labels(
            self.feature_data_dict,
            lambda feature: self._said(feature).label or None,
            lambda feature, text: _feature_folder.change(self.feature_data_dict, feature, {"label": text}),
            lambda feature: _absent_feature(feature, self.feature_data_dict),
        )

    @labels.setter
    def labels(self, labels: Mapping[int, str | None]) -> None:
        self.labels.replace(labels)

    def save_labels(self, path: str | os.PathLike[str]) -> None:
        """Write labels, notes and stars to a JSON file, which ``load_labels`` and the pages in a browser read.

        Raises:
            InputError: if it cannot be written.
        """
        said = {feature: self._said(feature) for feature in self}
        marks = {
            feature: _labels.Marks(one.label or None, one.note or None, one.starred)
            for feature, one in said.items()
            if one.label or one.note or one.starred
        }
        _labels.save(path, origin_of(self.provenance), marks)

    def load_labels(self, path: str | os.PathLike[str], *, any_origin: bool = False) -> list[int]:
        """Take over labels, notes and stars from a file of ``save_labels`` or from one that a page exported.

        What the file says of a feature replaces what was said of it here; other features stay as they are.

        Args:
            path: the file.
            any_origin: whether the features of another encoder, hook point or model will do.

        Returns:
            The features of the file that this data does not hold.

        Raises:
            FileFormatError: if the file is none of labels.
            InputError: if it is about other features.
        """
        absent = []
        for feature, marks in _labels.load(path, origin_of(self.provenance), any_origin).items():
            if feature not in self:
                absent.append(feature)
                continue
            said = {"label": marks.label, "note": marks.note, "starred": marks.star}
            _feature_folder.change(self.feature_data_dict, feature, said)
        return sorted(absent)

    def _said(self, feature: int) -> Any:
        return _feature_folder.some_fields(self.feature_data_dict, feature, _Said)

    def __repr__(self) -> str:
        return f"MultiFeatureData({count(len(self), 'feature')} of {subtitle_of(self.provenance)})"

    def with_layout(self, layout: Layout | None) -> MultiFeatureData:
        """The same data, whose pages have another layout (None: the default); nothing is computed.

        Raises:
            InputError: if a component does not belong in this view.
        """
        return dataclasses.replace(self, params=dataclasses.replace(self.params, layout=layout))

    def get_html(
        self, page: PageContext | None = None, feature: int | None = None, *, layout: Layout | None = None
    ) -> Html:
        """The whole page as one document: every feature, ``feature`` (None: the overview of all) shown at the start.

        Raises:
            InputError: if there is no such feature, or a component of the ``layout`` does not belong in this view.
        """
        if layout is not None:
            return self.with_layout(layout).get_html(page, feature)
        first = self._first(feature)
        parts = self._parts(page or self._context(), list(self), first, opens=_opens(feature))
        return _page.document(*parts)

    def save_html(
        self,
        path: str | os.PathLike[str],
        feature: int | None = None,
        *,
        processes: int | None = None,
        layout: Layout | None = None,
    ) -> None:
        """Write the whole page to one file, which opens from disk with no network.

        Args:
            path: the file.
            feature: the one that is shown at the start; None: the overview of all.
            processes: how many draw; None: as many as there are cores, where the features are enough to be worth it; 1: this
                one alone. The file is the same.
            layout: the arrangement of the panels; None: that of the parameters.

        Raises:
            InputError: if there is no such feature, ``processes`` is no such number, or a component of the layout does not
                belong in this view.
        """
        if layout is not None:
            self.with_layout(layout).save_html(path, feature, processes=processes)
            return
        first, opens = self._first(feature), _opens(feature)
        parts = self._parts(self._context(), list(self), first, processes=processes, opens=opens)
        _json.write_atomic(path, _page.document_pieces(*parts))

    def save_site(
        self,
        folder: str | os.PathLike[str],
        feature: int | None = None,
        processes: int | None = None,
        *,
        layout: Layout | None = None,
    ) -> None:
        """Write a folder, for as many features as there are: its ``index.html`` opens from disk and from any static host.

        The page is that of ``save_html``, but features lie in files of 2 MB at most, which it loads when one is asked for.
        They are drawn one after the other. A site that is there already is replaced.

        Args:
            folder: where the site goes.
            feature: the one that is shown at the start; None: the overview of all.
            processes: how many draw, as for ``save_html``.
            layout: the arrangement of the panels; None: that of the parameters.

        Raises:
            InputError: if there is no such feature, or the folder holds anything else.
        """
        if layout is not None:
            self.with_layout(layout).save_site(folder, feature, processes)
            return
        first, page = self._first(feature), self._context()
        opened = NOTHING if first is None else self.feature_data_dict[first].get_html(page)
        body = features_body(page, first, opened, len(self), opens=_opens(feature))
        overview = overview_of(self, list(self))
        features = noted(overview, (self.feature_data_dict[index] for index in self))
        vocab = vocab_of(page, self.vocab)
        with contextlib.closing(packed_features(features, page, len(self), processes)) as drawn:
            packed = (_site.Packed(data.feature_idx, data.label, text, data.note, data.starred) for data, text in drawn)
            title, assets = first_title(page, first), functools.partial(overview_assets, overview, page, vocab)
            _site.write(folder, title, title_of(page), body, vocab, packed, self.rows, whose(page), assets)

    @classmethod
    def load_dir(cls, folder: str | os.PathLike[str]) -> MultiFeatureData:
        """Open a folder that ``get_feature_data(..., out_dir=folder)`` wrote, finished or not; neither model nor torch is needed.

        A feature is read when it is asked for, and checked then; memory holds few at a time.

        Raises:
            FileFormatError: if the folder is not what it should be; the file is named.
        """
        with _feature_folder.FeatureFolder.existing(cls, folder) as opened:
            return opened.data()

    def _repr_html_(self) -> str:
        shown = list(self)[: _page.NOTEBOOK_FEATURES]
        document = self._notebook_document(shown)
        while len(document) > _page.NOTEBOOK_BYTES and len(shown) > 1:
            shown = shown[: max(1, len(shown) * _page.NOTEBOOK_BYTES // (len(document) + 1))]
            document = self._notebook_document(shown)
        return _page.notebook_frame(document, repr(self))

    def to_text(self, at_most: int = 5, examples: int = 3) -> str:
        """The first features as plain text, for where no HTML is shown; see ``FeatureData.to_text``.

        Raises:
            InputError: if ``at_most`` or ``examples`` is no int from 0 on.
        """
        listed = itertools.islice(self, _text.checked_number("at_most", at_most))
        shown = [self[feature].to_text(examples) for feature in listed]
        left = len(self) - len(shown)
        more = [f"… and {count(left, 'other')}: features[8].to_text() gives one."] if left else []
        return "\n\n".join([_text.plain(repr(self)), *shown, *more])

    def merge(self, other: MultiFeatureData) -> MultiFeatureData:
        """Both sets of features in one; they must be disjoint and come from the same run but for the features asked for.

        Raises:
            InputError: if a feature is in both, or the parameters, the provenance or the vocabularies differ.
        """
        if not isinstance(other, MultiFeatureData):
            raise InputError(f"MultiFeatureData.merge needs another MultiFeatureData, got {type(other).__name__}.")
        common = sorted(self.keys() & other.keys())
        if common:
            raise InputError(f"merge joins disjoint features, but both hold {some(common)}.")
        _check_same_run(self, other)
        features = None
        if self.params.features is not None and other.params.features is not None:
            features = tuple(sorted({*self.params.features, *other.params.features}))
        known = other.provenance if self.provenance.map_variance is None else self.provenance
        return MultiFeatureData(
            feature_data_dict=_feature_folder.joined(self.feature_data_dict, other.feature_data_dict),
            vocab=dict(_merged("vocab", self.vocab, other.vocab)),
            vocab_bytes=dict(_merged("vocab_bytes", self.vocab_bytes, other.vocab_bytes)),
            rows=_merged("rows", self.rows, other.rows),
            params=dataclasses.replace(self.params, features=features),
            provenance=dataclasses.replace(self.provenance, **{name: getattr(known, name) for name in _OF_MAP}),
        )

    def _with_context(self, feature: FeatureData) -> FeatureData:
        """The feature, remembering how to draw itself. That is no field: it is neither saved nor compared."""
        vars(feature)["_context"] = PageContext(
            TokenPrinter(self.vocab, self.vocab_bytes), self.params, self.provenance, rows=self.rows
        )
        return feature

    def _context(self) -> PageContext:
        printer = TokenPrinter(self.vocab, self.vocab_bytes)
        return PageContext(printer, self.params, self.provenance, frozenset(self.feature_data_dict))

    def _parts(
        self,
        page: PageContext,
        shown: list[int],
        first: int | None,
        note: str = "",
        processes: int | None = 1,
        opens: str = "overview",
    ) -> tuple[str, Html, list[Html]]:
        """Title, body and elements of the page, drawn over so many processes."""
        packing = functools.partial(packed_features, processes=processes)
        return features_parts(self, page, shown, first, packing, note, opens)

    def _first(self, feature: int | None) -> int | None:
        if feature is None:
            return next(iter(self), None)
        try:
            return self.feature_data_dict[feature].feature_idx
        except (KeyError, TypeError):
            raise InputError(_absent_feature(feature, self.feature_data_dict)) from None

    def _notebook_document(self, shown: list[int]) -> Html:
        note = ""
        if len(shown) < len(self):
            note = (
                f"Showing {len(shown)} of {count(len(self), 'feature')}. "
                "Write them all to a file with .save_html('features.html'), or choose some: features[8]."
            )
        page = dataclasses.replace(self._context(), features=frozenset(shown))
        return _page.document(*self._parts(page, shown, next(iter(shown), None), note))


# --- each feature drawn and packed, over several processes where that is worth it --------------------------------


def packed_features(
    features: Iterable[FeatureData], page: PageContext, count: int, processes: int | None = None
) -> Generator[tuple[FeatureData, str], None, None]:
    """Each feature with its packed HTML, in order; close it if it is not read to the end.

    Args:
        features: read one by one, few of them held at once.
        page: the page that they are drawn for.
        count: how many there are, about.
        processes: how many draw; None: as many as there are cores, where ``count`` makes that worth it; 1: this one alone.

    Raises:
        InputError: if ``processes`` is no such number.
    """

    def here(feature: FeatureData) -> str:
        return _page.pack(feature.get_html(page))

    n = _render_pool.n_processes(processes, count)
    setup = worker_setup(page) if n > 1 else None
    if setup is None:
        yield from _packed_behind((feature, feature.get_html(page)) for feature in features)
    else:
        yield from _render_pool.ordered_map(features, n, setup, _request, here)


def _packed_behind(drawn: Iterable[tuple[FeatureData, Html]]) -> Generator[tuple[FeatureData, str], None, None]:
    """Each feature with its HTML packed while the next one is drawn: compressing needs no interpreter."""
    last: tuple[FeatureData, Future[str]] | None = None
    with ThreadPoolExecutor(1) as thread:
        for feature, fragment in drawn:
            before, last = last, (feature, thread.submit(_page.pack, fragment))
            if before:
                yield before[0], before[1].result()
        if last:
            yield last[0], last[1].result()


def worker_setup(page: PageContext) -> bytes | None:
    """What a worker process must know of a page: the features in a line, a document without any; None if that is not all."""
    if type(page) is not PageContext or type(page.printer) is not TokenPrinter or page.provenance is None:
        return None
    layout = page.params.feature_layout()
    if any(component.name not in BUILT_IN for component in layout.components()):
        return None  # another process does not know panels that were registered in this one
    printer = page.printer
    data = MultiFeatureData({}, dict(printer.vocab), dict(printer.vocab_bytes), {}, page.params, page.provenance)
    try:
        return b" ".join(b"%d" % feature for feature in sorted(page.features)) + b"\n" + b"".join(_json.document(data))
    except InputError:  # what no file can hold is drawn all the same
        return None


def _request(feature: FeatureData) -> bytes | None:
    try:
        return _json.message(feature) if type(feature) is FeatureData else None
    except InputError:
        return None


# --- helpers of the class ----------------------------------------------------------------------------------------


def _opens(feature: int | None) -> str:
    return "overview" if feature is None else "feature"


# What tells of the map, and so of the encoder, whose digest is compared: older files have it not, and the last digit of the
# variance may be another machine's.
_OF_MAP = ("map_variance", "map_sample")


def _check_same_run(one: MultiFeatureData, other: MultiFeatureData) -> None:
    told = dataclasses.replace(other.provenance, **{name: getattr(one.provenance, name) for name in _OF_MAP})
    for what, mine, others in (
        ("parameters", *(dataclasses.replace(data.params, **RUN_OPTIONS) for data in (one, other))),
        ("provenance", one.provenance, told),
    ):
        names = [f.name for f in dataclasses.fields(mine) if getattr(mine, f.name) != getattr(others, f.name)]  # type: ignore[arg-type]
        if names:
            raise InputError(f"merge joins features of one run, but the {what} differ in: {', '.join(names)}.")


def _merged(what: str, one: Mapping[int, V], other: Mapping[int, V]) -> Mapping[int, V]:
    differing = sorted(key for key in one.keys() & other.keys() if one[key] != other[key])
    if differing:
        raise InputError(f"merge joins features of one run, but {what} differs at {some(differing)}.")
    return _feature_folder.joined(one, other)


def _absent_feature(feature: object, known: Mapping[int, FeatureData]) -> str:
    return f"Feature {feature!r} is not in this data, which holds {count(len(known), 'feature')}: {some(list(known))}."
