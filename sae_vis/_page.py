"""Pack fragments into one self-contained document, or into a frame for a notebook.

Nothing is loaded: style sheets and scripts are written into the page once each, in a fixed order, and its
Content-Security-Policy allows those scripts (by their digests) and no request at all. Data goes to the scripts as JSON in
elements that do not run. Fragments that are not shown at first are deflated, and inflated by the browser on demand: a page
of thousands of features stays small, and there is still only one renderer, this one.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Sequence
from typing import Any

import msgspec

from sae_vis._templates import UNPRINTABLE, Html, asset, join, template

NOTEBOOK_FEATURES = 50
NOTEBOOK_BYTES = 2_000_000

_JSON_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})
_COMPRESSION = 6  # level 9 saves another 1 % and takes three times as long


def json_text(value: object) -> Html:
    """A value as JSON that can stand in a script element: it cannot end it, nor open a comment in it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).translate(_JSON_ESCAPES)
    if not text.isprintable() or "\ufffd" in text:
        text = UNPRINTABLE.sub(lambda match: json.dumps(match[0])[1:-1], text)
    return Html(text)


def json_numbers(value: dict[str, Any]) -> Html:
    """The same for what holds nothing but numbers, in a tenth of the time."""
    return Html(msgspec.json.encode(value).decode())


def data(element_id: str, value: object) -> Html:
    """An element with JSON for the scripts."""
    return template("data.html").fill(id=element_id, json=json_text(value))


def pack(fragment: Html) -> str:
    """A fragment as deflated bytes in base64, about a sixth of its size; ``js/inflate.js`` is the inverse."""
    return base64.b64encode(zlib.compress(fragment.encode(), _COMPRESSION)).decode()


def packed(feature: int, text: str) -> Html:
    """An element that holds a packed fragment."""
    return template("packed.html").fill(feature=feature, packed=text)


def document(title: str, body: Html, elements: Sequence[Html] = ()) -> Html:
    """The whole page: a body, the data elements after it, and the style sheets and scripts that both need."""
    page = template("page.html")
    needs = sorted(page.needs.union(body.needs, *(element.needs for element in elements)))
    css = [Html(asset(need)) for need in needs if need.startswith("css/")]
    scripts = [_script(need) for need in needs if need.startswith("js/")]
    # No script of ours evaluates text; a driver that tests the page does, to wait for something.
    allowed = " ".join(["'unsafe-eval'", *(f"'sha256-{_digest(script)}'" for script in scripts)])
    return page.fill(
        title=title,
        policy=Html(f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}"),
        styles=template("style.html").fill(css=join(css)),
        body=body,
        data=join(elements),
        scripts=join(scripts),
    )


def _script(name: str) -> Html:
    return template("script.html").fill(js=Html(asset(name)))


def _digest(element: Html) -> str:
    """What the policy names a script by: the digest of exactly what stands between its tags."""
    source = element.removeprefix("<script>").removesuffix("</script>")
    return base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


def notebook_frame(document: Html, title: str, height: int) -> Html:
    """The document in a frame of its own, so that nothing in it meets the notebook or another copy of itself."""
    return template("notebook.html").fill(document=str(document), title=title, height=height)
