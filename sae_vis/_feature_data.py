"""One feature of the feature-centric view: what was fetched of it, and how it is drawn, alone or on a page. No computation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from sae_vis import _columns, _furniture, _overview, _page, _rows, _text, html_fns
from sae_vis._checks import check_feature_idx, check_finite
from sae_vis._distribution_data import ActivationsData, LogitsData, QuantileKnots
from sae_vis._errors import InputError
from sae_vis._neighbours_data import DirectionData, NeighboursData
from sae_vis._page_context import PageContext
from sae_vis._params import COMPONENTS, Layout
from sae_vis._saved import TextTwin
from sae_vis._sequence_data import (
    CounterexamplesData,
    SequenceData,
    SequenceGroupData,
    SequenceMultiGroupData,
    token_ids_of,
)
from sae_vis._table_data import FeatureTablesData
from sae_vis._templates import Html, join
from sae_vis._token_data import PositionsData, TokensData
from sae_vis.html_fns import NOTHING, TokenPrinter
from sae_vis.utils_fns import format_fixed, format_general, format_percent


@dataclass
class FeatureData(TextTwin):
    """Everything shown of one feature. ``label``, ``note`` and ``starred`` are what a reader says of it."""

    feature_idx: int
    feature_tables: FeatureTablesData
    activations: ActivationsData
    logits: LogitsData | None
    sequences: SequenceMultiGroupData
    quantiles: QuantileKnots
    label: str | None = None
    tokens: TokensData | None = None
    positions: PositionsData | None = None
    counterexamples: CounterexamplesData | None = None
    note: str | None = None
    starred: bool = False
    neighbours: NeighboursData | None = None
    decoder_norm: float | None = None
    direction: DirectionData | None = None
    extras: dict[str, Any] = field(default_factory=dict)  # what panels of one's own draw, by component

    def __post_init__(self) -> None:
        self.extras = {name: _extra(name, value) for name, value in self.extras.items()}
        check_feature_idx(self, self.feature_idx)
        check_finite(self, decoder_norm=self.decoder_norm)

    @property
    def top_group(self) -> SequenceGroupData:
        """The group of top activations, without any example where there is none."""
        return self.sequences.top or SequenceGroupData("TOP ACTIVATIONS", 0.0, self.activations.max or 0.0, None, [])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_context"}

    def __repr__(self) -> str:
        return f"FeatureData({_text.summary(self)})"

    def _repr_html_(self) -> str:
        return _page.notebook_frame(self.get_html(), repr(self))

    def to_text(self, examples: int = 5) -> str:
        """The feature as plain text, for where no HTML is shown: density, maximum, top tokens, logits and examples.

        The bold token of an example stands between « and »; what cannot be printed is named, e.g. ``[U+200B]``.

        Raises:
            InputError: if ``examples`` is no int from 0 on.
        """
        page = vars(self).get("_context") or PageContext()
        return _text.feature_text(self, _token_texts(page.printer), _text.checked_number("examples", examples))

    def get_html(self, page: PageContext | None = None) -> Html:
        """The feature's panels on a page; without ``page``, a whole document of this feature alone.

        A feature that was taken out of a ``MultiFeatureData`` remembers the vocabulary, the parameters and the provenance
        there. One that never was in any shows token ids.
        """
        if page is None:
            return _one_feature_document(self, vars(self).get("_context") or PageContext())
        page = _columns.for_feature(page, self._shown_sequences(), self.activations, self.logits)
        layout = page.params.feature_layout()
        heading = html_fns.label(self.label or "")
        columns = _columns.columns(layout, self, page)
        return html_fns.feature(
            self.feature_idx, heading, self._stats(layout, page), columns, page.params.border, layout.height or 0
        )

    def token_ids(self) -> set[int]:
        """Every token that occurs in the sequences and in their effects."""
        return token_ids_of(self._shown_sequences())

    def vocab_ids(self) -> set[int]:
        """Every token that any panel shows."""
        logits = self.logits
        listed = self.tokens.token_ids if self.tokens else ()
        return self.token_ids().union(listed, *((logits.top_token_ids, logits.bottom_token_ids) if logits else ()))

    def shown_rows(self) -> set[int]:
        """The rows that the examples come from."""
        return set(self.example_rows())

    def example_rows(self) -> list[int]:
        """The row of each example, in the order in which they are shown."""
        return [sequence.row for sequence in self._shown_sequences()]

    def _shown_sequences(self) -> list[SequenceData]:
        against = self.counterexamples.sequences() if self.counterexamples else []
        return [*(sequence for group in self.sequences.groups for sequence in group.sequences), *against]

    def _stats(self, layout: Layout, page: PageContext) -> Html:
        """The numbers beside the title; the moments only where no panel shows them."""
        acts = self.activations
        values: dict[str, str] = {}
        twin, cosine = _overview.twin(self), _overview.nearest_direction(self)[1]
        if twin is not None and cosine is not None:
            link = html_fns.feature_link(twin) if twin in page.features else str(twin)
            values["Duplicate of"] = join([link, f" (cosine {format_fixed(cosine, 3)})"])
        values |= {"Density": format_percent(acts.density), "Active": f"{acts.n_active:,}"}
        numbers = {"Max": acts.max, "Decoder norm": self.decoder_norm}
        if acts.skewness is None or "moments" not in {component.name for component in layout.components()}:
            numbers |= {"Mean": acts.mean, "Skewness": acts.skewness, "Kurtosis": acts.kurtosis}
        values |= {name: format_general(value, 3) for name, value in numbers.items() if value is not None}
        return html_fns.stats(list(values), list(values.values()))


def _extra(name: str, value: Any) -> Any:
    """The data of a panel of one's own: as its dataclass, where that is known, else as it is in the file."""
    spec = COMPONENTS.get(name)
    if spec is None or spec.data is None or isinstance(value, spec.data):
        return value
    try:
        return msgspec.convert(value, spec.data)
    except msgspec.ValidationError as error:
        raise InputError(f"FeatureData.extras[{name!r}] is no {spec.data.__name__}: {error}.") from None


def _token_texts(printer: TokenPrinter) -> _text.TokenTexts:
    return _text.TokenTexts(printer.vocab, printer.vocab_bytes)


def _one_feature_document(feature: FeatureData, page: PageContext) -> Html:
    index = {
        "ids": [feature.feature_idx],
        "labels": {feature.feature_idx: feature.label} if feature.label else {},
        "notes": {feature.feature_idx: feature.note} if feature.note else {},
        "stars": [feature.feature_idx] if feature.starred else [],
        "title": _furniture.title_of(page),
        **_furniture.whose(page),
    }
    body = html_fns.features_page(
        "SAE feature",
        _furniture.subtitle_of(page.provenance),
        NOTHING,
        _furniture.notes_of(page),
        feature.get_html(page),
        _furniture.footer_of(page),
        join([html_fns.hovertext(), _columns.abouts(page.params.feature_layout())]),
    )
    rows = _rows.chosen(page.rows, [feature.example_rows()])
    token_ids = feature.token_ids() | _rows.token_ids(rows.values())
    elements = [_furniture.vocab_element(page, token_ids), _page.data("index", index), *_furniture.rows_element(rows)]
    return _page.document(f"Feature {feature.feature_idx} · {_furniture.title_of(page)}", body, elements)
