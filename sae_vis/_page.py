"""Pack fragments into one self-contained document, or into a frame for a notebook.

Nothing is loaded: style sheets and scripts are written into the page once each, in a fixed order, and its
Content-Security-Policy allows those scripts (by their digests) and no request at all. Data goes to the scripts as JSON in
elements that do not run. Fragments that are not shown at first are deflated, all after the same common markup, and inflated
by the browser on demand: a page of thousands of features stays small, and there is still only one renderer, this one.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import operator
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import msgspec
from zlib_ng import zlib_ng

from sae_vis._templates import UNPRINTABLE, Html, asset, join, template
from sae_vis.utils_fns import decimals_for, largest

NOTEBOOK_FEATURES = 50
NOTEBOOK_BYTES = 2_000_000
NOTEBOOK_HEIGHT = 900

_JSON_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})
_COMPRESSION = 5  # level 6 saves 1 %, and takes a third longer; zlib's own deflate takes twice as long


def json_text(value: object) -> Html:
    """A value as JSON that can stand in a script element: it cannot end it, nor open a comment in it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).translate(_JSON_ESCAPES)
    if not text.isprintable() or "\ufffd" in text:
        text = UNPRINTABLE.sub(lambda match: json.dumps(match[0])[1:-1], text)
    return Html(text)


def data(name: str, value: object) -> Html:
    """An element with JSON for the scripts, which find it by this name."""
    return template("data.html").fill(name=name, json=json_text(value))


def pack(fragment: Html) -> str:
    """A fragment as deflated bytes in base64, about a sixth of its size; ``js/inflate.js`` is the inverse.

    It goes on from ``html/common.html``, the markup that all fragments have, and holds only what is its own: the page has
    the beginning once (``common``). What the fragment needs is forgotten: the page that it is for must need that too.
    """
    text, common = fragment.encode(), _common_markup().encode()
    deflate = zlib_ng.compressobj(_COMPRESSION, zlib.DEFLATED, -zlib.MAX_WBITS, zdict=common)  # blocks alone
    checksum = zlib.adler32(text, zlib.adler32(common)).to_bytes(4, "big")  # of all, which ends the stream
    return base64.b64encode(deflate.compress(text) + deflate.flush() + checksum).decode()


_EMPTY_BLOCK = b"\0\0\0\xff\xff"


@cache
def common() -> Html:
    """An element with the beginning of every packed fragment's stream; its text stands before the fragment's own."""
    deflate = zlib_ng.compressobj()
    markup = _common_markup()
    start = deflate.compress(markup.encode()) + deflate.flush(zlib.Z_SYNC_FLUSH)
    while len(start) % 3:  # so that its base64 has no end, and that of a fragment can follow
        start += _EMPTY_BLOCK
    length = len(markup.encode("utf-16-le")) // 2  # as a script counts
    return template("packed_common.html").fill(length=length, packed=Html(base64.b64encode(start).decode()))


@cache
def _common_markup() -> Html:
    return template("common.html").fill()


def pack_bytes(content: bytes) -> str:
    """Bytes as ``pack`` packs a fragment."""
    return base64.b64encode(zlib_ng.compress(content, _COMPRESSION)).decode()


def packed_asset(name: str, text: str) -> Html:
    """An element that holds what a site has in a file of its own, packed by ``pack_bytes``."""
    return template("packed_asset.html").fill(name=name, packed=Html(text))  # base64 and spaces


def packed(feature: int, text: str) -> Html:
    """An element that holds a fragment as ``pack`` gives it, for a page that holds ``common`` too."""
    return template("packed.html").fill(feature=feature, packed=Html(text))  # base64 has nothing to escape


def all_packed(fragments: Iterable[tuple[int, str]]) -> list[Html]:
    """Such elements, after the one with what all fragments begin with; none for no fragment."""
    elements = [packed(feature, text) for feature, text in fragments]
    return [common(), *elements] if elements else []


def document(title: str, body: Html, elements: Sequence[Html] = (), loads: bool = False) -> Html:
    """The whole page: a body, the data elements after it, and the style sheets and scripts that both need.

    With ``loads``, its scripts, and nothing else, may load others, of the same origin or from disk.
    """
    return _document(title, body, elements, join(elements), loads)


_HERE = Html("\0")  # no text on a page holds it: it would be named instead


def document_pieces(title: str, body: Html, elements: Sequence[Html]) -> Iterator[bytes]:
    """The bytes of the same page, one element after the other: a page of thousands of features is never there as a whole."""
    before, _, after = _document(title, body, elements, _HERE).partition(_HERE)
    yield before.encode()
    for element in elements:
        yield element.encode()
    yield after.encode()


_EARLY = {"js/theme.js"}  # in the head, before anything is painted
_LAST = {"css/modes.css"}  # changes rules of the others


def _place(need: str) -> tuple[bool, str]:
    """What files are ordered by: their names, but for those that come last."""
    return need in _LAST, need


def _document(title: str, body: Html, elements: Sequence[Html], data: Html, loads: bool = False) -> Html:
    page = template("page.html")
    needs = sorted(page.needs.union(body.needs, *{element.needs for element in elements}), key=_place)
    css = [Html(asset(need)) for need in needs if need.startswith("css/")]
    early = [_script(need) for need in needs if need in _EARLY]
    scripts = [_script(need) for need in needs if need.startswith("js/") and need not in _EARLY]
    styles = template("style.html").fill(css=join(css))
    own = [template("own_scripts.html").fill(digests=Html(_digests([*early, *scripts])))] if loads else []
    return page.fill(
        title=title,
        policy=_policy([styles], [*early, *scripts], loads),
        styles=join([*own, styles]),
        early=join(early),
        body=body,
        data=data,
        scripts=join(scripts),
    )


def _script(name: str) -> Html:
    return template("script.html").fill(js=Html(asset(name)))


def _policy(styles: Sequence[Html], scripts: Sequence[Html], loads: bool) -> Html:
    """These style sheets and scripts, style attributes, the empty icon, and nothing else.

    With ``loads``, also the scripts that these scripts add: browsers take no digest for one that is loaded from disk. A second
    policy, ``own_scripts.html``, says where those may come from, which this one cannot. Both must allow a script.

    ``default-src`` covers neither the base of addresses nor where a form goes. A browser that knows no
    ``style-src-elem`` goes by ``style-src``, which the attributes need.
    """
    added = " 'strict-dynamic'" if loads else ""
    return Html(
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; style-src-elem {_digests(styles)}; "
        f"script-src {_digests(scripts)}{added}; base-uri 'none'; form-action 'none'"
    )


def _digests(elements: Sequence[Html]) -> str:
    """What the policy names elements by: the digest of exactly what stands between the tags of each."""
    sources = [element.partition(">")[2].rpartition("</")[0] for element in elements]
    digests = [base64.b64encode(hashlib.sha256(source.encode()).digest()).decode() for source in sources]
    return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"


def notebook_frame(document: Html, title: str) -> Html:
    """The document in a frame of its own, so that nothing in it meets the notebook or another copy of itself."""
    return template("notebook.html").fill(document=str(document), title=title, height=NOTEBOOK_HEIGHT)


# --- the numbers behind the tokens -------------------------------------------------------------------------------

LOSS_DECIMALS = 4
_WHOLE_BELOW = 2.0**53  # larger numbers are their own integers in a script, and beyond 64 bits none in JSON
_LARGEST_STEP = 8e307  # the difference of two such is a finite number still


def hover_numbers(
    *,
    rows: Sequence[int],
    starts: Sequence[int],
    lengths: Sequence[int],
    ids: Sequence[int],
    acts: Sequence[float],
    losses: Sequence[float | None],
    full_losses: Sequence[float | None],
    logits: Sequence[float | None],
    effects: Mapping[str, object],
    full_effects: Mapping[str, object],
    only: str,
    act_decimals: int,
    logit_decimals: int,
) -> Html:
    """What the hover text says of the tokens of some sequences: ``js/tooltip.js`` reads it.

    Column-wise, and as integers of a fixed step, which is short and deflates well. ``rows``, ``starts`` and ``lengths``
    have an item per sequence, ``ids``, ``acts`` and ``losses`` per token, ``logits`` per distinct id in the order in which
    the ids occur. ``effects`` comes from ``effect_numbers``. What is called full is empty unless both effects
    are there; where one is, ``only`` says which ("direct" or "full").
    """
    loss_decimals = _decimals_at_most(LOSS_DECIMALS, max(largest(losses), largest(full_losses)))
    full = {"losses": _losses(full_losses, loss_decimals), "effects": full_effects}
    other: dict[str, object] = {"full": full} if full_losses else {"only": only}
    value = {
        "decimals": [act_decimals, loss_decimals, logit_decimals],
        "rows": rows,
        "starts": starts,
        "lengths": lengths,
        "ids": ids,
        "acts": _integers(acts, act_decimals),
        **other,
        "losses": _losses(losses, loss_decimals),
        "logits": _integers(logits, logit_decimals),
        "effects": effects,
    }
    return Html(msgspec.json.encode(value).decode())  # nothing but numbers: there is nothing to escape


def effect_numbers(at: Sequence[int], ids: Sequence[list[int]], logprobs: Sequence[list[float]]) -> dict[str, Any]:
    """The tokens that are raised and lowered most, for ``hover_numbers``.

    ``at`` are the predicted tokens, counted through all sequences; ``ids`` and ``logprobs`` hold two lists for each, what
    is raised and what is lowered. Log-probabilities become steps from one to the next, downwards where they are raised
    and upwards where they are lowered: small numbers.
    """
    # Three at least: beside the largest change of a feature stand many that are a hundred times smaller.
    flat = list(itertools.chain.from_iterable(logprobs))
    lowest, highest = (min(flat), max(flat)) if flat else (0.0, 0.0)
    strongest = max(highest, -lowest)
    decimals = _decimals_at_most(min(LOSS_DECIMALS, max(3, decimals_for(strongest, 3))), strongest)
    scale = _scale(decimals)
    lengths = list(map(len, logprobs))
    factors = itertools.chain.from_iterable(map(itertools.repeat, itertools.cycle((scale, -scale)), lengths))
    whole: list[int | float] = list(map(_to_whole(strongest * scale), map(operator.mul, flat, factors)))
    steps: list[int | float] = list(map(operator.sub, itertools.chain((0,), whole), whole))
    for first, length in zip(itertools.accumulate(lengths, initial=0), lengths, strict=False):
        if length:
            steps[first] = whole[first]  # there is no step to where a list begins
    return {
        "decimals": decimals,
        "at": at,
        "counts": list(map(len, ids)),
        "ids": list(itertools.chain.from_iterable(ids)),
        "steps": steps,
    }


def _losses(losses: Sequence[float | None], decimals: int) -> list[int | float | None]:
    return _integers(losses, decimals) if any(loss is not None for loss in losses) else []


def _integers(values: Sequence[float | None], decimals: int) -> list[int | float | None]:
    scale = _scale(decimals)
    whole = _to_whole(largest(values) * scale)
    return [whole(value * scale) if value else value if value is None else 0 for value in values]


def _scale(decimals: int) -> float:
    return float(10**decimals)  # what multiplying a float by the int does; a power of floats is another number


def _to_whole(strongest: float) -> Callable[[float], int | float]:
    """What makes scaled numbers whole, the fast way where none is larger than ``strongest``."""
    return _rounded if strongest < _WHOLE_BELOW else _whole


_rounded: Callable[[float], int] = float.__round__  # half the time of round, which looks for this


def _whole(scaled: float) -> int | float:
    """The nearest integer; a float where that is too large for one, as only a broken model's numbers are."""
    if abs(scaled) < _WHOLE_BELOW:
        return round(scaled)
    return max(-_LARGEST_STEP, min(_LARGEST_STEP, scaled))


def _decimals_at_most(decimals: int, scale: float) -> int:
    """So many decimals, none where the numbers are so large that a float has none."""
    return decimals if scale * 10**decimals < _WHOLE_BELOW else 0
