"""What a page of either view has around its panels: title, notes and footer, and the data that its scripts read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sae_vis import _labels, _page, _rows, html_fns
from sae_vis._page_context import TEXT_LIMIT, PageContext, Provenance
from sae_vis._templates import Html
from sae_vis.utils_fns import count, shorten

NAME_LIMIT = 200  # characters that a page shows of the name of a model or a hook point


def title_of(page: PageContext) -> str:
    """The title of the page, behind what it shows."""
    told = page.provenance
    return f"{shorten(told.hook_point, NAME_LIMIT)} · {shorten(told.model, NAME_LIMIT)}" if told else "sae_vis"


def subtitle_of(provenance: Provenance | None) -> str:
    """Where the features are from, in a line below the heading."""
    if provenance is None:
        return ""
    return f"{shorten(provenance.hook_point, NAME_LIMIT)} of {shorten(provenance.model, NAME_LIMIT)}"


def notes_of(page: PageContext, *first: str) -> Html:
    """What a reader must know of the numbers; ``first`` comes before what the provenance notes."""
    notes = page.provenance.notes if page.provenance else []
    return html_fns.notes([shorten(note, TEXT_LIMIT) for note in (*first, *notes) if note])


def footer_of(page: PageContext) -> str:
    """What was run on how much of what, with which versions."""
    told = page.provenance
    if told is None:
        return "sae_vis"
    parts = [
        f"{count(told.n_rows, 'row')} of {count(told.seq_len, 'token')}, {count(told.n_counted, 'position')} counted",
        f"{count(told.d_hidden, 'feature')} on {count(told.d_in, 'dimension')}",
        ", ".join(f"{shorten(name)} {shorten(version)}" for name, version in sorted(told.versions.items())),
        ", ".join(f"{shorten(name)} {digest[:12]}" for name, digest in sorted(told.digests.items())),
    ]
    return " · ".join(part for part in parts if part)


def origin_of(provenance: Provenance) -> dict[str, str]:
    """Whose features they are: what a file of labels names."""
    return _labels.origin(provenance.model, provenance.hook_point, provenance.digests)


def whose(page: PageContext) -> dict[str, object]:
    """Whose features the page shows: browsers keep what a reader says of them under this key."""
    of = origin_of(page.provenance) if page.provenance else {}
    return {"of": of, "key": _labels.storage_key(of)}


def rows_element(rows: Mapping[int, Sequence[int]]) -> list[Html]:
    """The rows that a reader may open, where there are any."""
    return [_page.data("rows", _rows.packed(rows))] if rows else []


def vocab_element(page: PageContext, token_ids: Iterable[int]) -> Html:
    """How every token that the hover text may name is shown."""
    return _page.data("vocab", vocab_of(page, token_ids))


def vocab_of(page: PageContext, token_ids: Iterable[int]) -> dict[str, Any]:
    """How each of these tokens is shown, as the page holds it."""
    ids = sorted(token_ids)
    parts = page.printer.vocab_bytes
    return {
        "ids": ids,
        "html": [page.printer.one(token_id) for token_id in ids],
        "bytes": {token_id: parts[token_id] for token_id in ids if token_id in parts},
    }
