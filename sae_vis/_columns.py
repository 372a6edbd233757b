"""How one feature is drawn, in either view: the scales of its colours, and its columns from the components of a layout."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sae_vis import html_fns
from sae_vis._distribution_data import ActivationsData, LogitsData
from sae_vis._errors import InputError
from sae_vis._page_context import TEXT_LIMIT, PageContext
from sae_vis._params import COMPONENTS, Component, Layout, OptionValue, about
from sae_vis._sequence_data import SequenceData
from sae_vis._templates import Html, template
from sae_vis.utils_fns import decimals_for, largest, shorten


def for_feature(
    page: PageContext, sequences: Iterable[SequenceData], activations: ActivationsData, logits: LogitsData | None
) -> PageContext:
    """The same page, for one feature: the scales of its colours and its logit weights."""
    shown, flat = list(sequences), itertools.chain.from_iterable
    largest_act = max((max(sequence.feat_acts) for sequence in shown), default=0.0)
    return dataclasses.replace(
        page,
        act_max=activations.max or largest_act,  # a prompt may exceed it: its colours are as strong as can be
        loss_max=largest(flat(sequence.loss_contribution for sequence in shown)),
        full_loss_max=largest(flat(sequence.full_losses() for sequence in shown)),
        shown_logits=logits.shown_logits if logits else {},
        logit_decimals=decimals_for(largest(logits.shown_logits.values())) if logits else 3,
    )


# --- from components to columns ----------------------------------------------------------------------------------

Drawer = Callable[[Any, PageContext, Mapping[str, Any]], Html]

DRAWERS: dict[str, Drawer] = {
    "feature_tables": lambda part, page, options: part.get_html(page, rows=options.get("rows")),
    "activations_histogram": lambda part, page, options: part.get_html(page),
    "logits_tables": lambda part, page, options: part.tables_html(page, rows=options.get("rows")),
    "logits_histogram": lambda part, page, options: part.histogram_html(page),
    "sequences": lambda part, page, options: part.get_html(page, examples=options.get("examples")),
    "tokens": lambda part, page, options: part.get_html(page, rows=options.get("rows")),
    "positions": lambda part, page, options: part.get_html(page),
    "counterexamples": lambda part, page, options: part.get_html(page, examples=options.get("examples")),
    "neighbours": lambda part, page, options: part.get_html(page, rows=options.get("rows")),
    "moments": lambda part, page, options: part.moments_html(page),
}


def columns(layout: Layout, data: object, page: PageContext, drawers: Mapping[str, Drawer] = DRAWERS) -> list[Html]:
    """The columns of a layout, drawn from the attributes of ``data`` that their components name.

    Where an attribute is None, the reason is shown once and its other components are left out. Nothing is said of a part
    that older files have not, unless the layout was given.
    """
    missing: set[str] = set()
    made = []
    for column in layout.columns:
        drawn = []
        for component in column.components:
            attribute = COMPONENTS[component.name].attribute
            part = _part_of(data, component.name)
            if part is not None:
                panel = _drawer(component.name, drawers)(part, page, _all_options(component))
                drawn += [html_fns.part(component.name, panel)] if panel else []
            elif attribute not in missing and (page.params.layout or not COMPONENTS[component.name].optional):
                missing.add(attribute)
                drawn.append(html_fns.empty(_missing_reason(attribute, page)))
        names = [component.name.replace("_", "-") for component in column.components]
        made.append(html_fns.column([f"has-{name}" for name in names], drawn, column.width or 0, column.height or 0))
    return made


def _all_options(component: Component) -> Mapping[str, OptionValue]:
    """Those that the layout gives; to a panel of one's own also the defaults of the others, which the library's have."""
    spec = COMPONENTS[component.name]
    return {**spec.options, **component.options} if spec.draw else component.options


def _part_of(data: object, component: str) -> Any:
    """What a component draws of a feature; None where it is not there."""
    spec = COMPONENTS[component]
    if spec.data is None and not hasattr(data, spec.attribute):
        raise InputError(f"Component {component!r}: {type(data).__name__} has no attribute {spec.attribute!r}.")
    part = getattr(data, spec.attribute, None)
    return part.get(component) if spec.data is not None and part is not None else part


def _drawer(component: str, drawers: Mapping[str, Drawer]) -> Drawer:
    return COMPONENTS[component].draw or drawers[component]


def abouts(layout: Layout) -> Html:
    """What the panels of a layout are, once for the whole page, which needs all that these panels need."""
    names = list(dict.fromkeys(component.name for component in layout.components()))
    needs = frozenset[str]().union(*(template(COMPONENTS[name].template).needs for name in names))
    return html_fns.abouts(
        names, [COMPONENTS[name].help for name in names], [about(name) for name in names], sorted(needs)
    )


def _missing_reason(attribute: str, page: PageContext) -> str:
    told = page.provenance if attribute == "logits" else None  # the reason is that of the direct effect alone
    reason = shorten(told.direct_effect_reason, TEXT_LIMIT) if told else ""
    return f"There are no {attribute.replace('_', ' ')} here{f': {reason}' if reason else '.'}"
