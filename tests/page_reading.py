"""Read a page back as a browser would: strictly parsed, its data decoded, its packed parts inflated."""

from __future__ import annotations

import base64
import json
import re
import zlib
from typing import Any
from xml.etree.ElementTree import Element

import html5lib

RUNS = {"", "text/javascript", "module"}
COMMON = re.compile(r'<script type="text/plain" data-common="(\d+)">([^<]*)</script>')
MARKS = {"i", "samp", "abbr"}  # what a token's text may add


def parse(document: str) -> Element:
    """The tree of a whole document; any parse error is a failure."""
    parser = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False)
    return parser.parse(document)


def parse_fragment(fragment: str) -> Element:
    """The tree of a fragment; any parse error is a failure."""
    parser = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False)
    return parser.parseFragment(fragment, container="main")


def data(document: str, name: str) -> Any:
    """The JSON of a data element."""
    return json.loads(parse(document).find(f".//script[@data-json='{name}']").text)


def packed(document: str) -> dict[int, str]:
    """The packed fragments of a page, inflated."""
    return {
        int(element.get("data-packed")): unpacked(element.text, document)
        for element in parse(document).iter("script")
        if element.get("data-packed")
    }


def unpacked(text: str, document: str) -> str:
    """A packed fragment of a page, which holds what it begins with."""
    length, start = COMMON.search(document).groups()
    return zlib.decompress(base64.b64decode(start + text, validate=True)).decode()[int(length) :]


def drawn(tree: Element, name: str) -> list[Element]:
    """The SVG elements of a name."""
    return list(tree.iter(f"{{http://www.w3.org/2000/svg}}{name}"))


def running_scripts(tree: Element) -> list[Element]:
    """The script elements that a browser would run."""
    return [element for element in tree.iter("script") if element.get("type", "") in RUNS]


def text_of(element: Element) -> str:
    """All text in an element."""
    return "".join(element.itertext())


def skeleton(tree: Element) -> list[Any]:
    """The elements and their attributes' names, depth first, without the marks that a token's text adds."""
    if not isinstance(tree.tag, str):
        return []
    inside = [item for child in tree for item in skeleton(child)]
    return inside if tree.tag in MARKS else [(tree.tag, sorted(tree.attrib)), *inside]


def inflated(document: str) -> str:
    """A page with its packed parts as they are and without the files that it includes, for comparing it with another."""
    document = re.sub(r"(<style>\n).*?(</style>)", r"\1…\2", document, flags=re.DOTALL)
    document = re.sub(r"(<script>\n)(/\*.*?\n).*?(</script>)", r"\1\2…\3", document, flags=re.DOTALL)
    document = re.sub(r"'sha256-[^']*'", "'sha256-…'", document)
    unpack = lambda match: f"{match[1]}{unpacked(match[2], document)}</script>"  # noqa: E731
    told = re.sub(r'(<script type="text/plain" data-packed="\d+">)([^<]*)</script>', unpack, document)
    document = COMMON.sub('<script type="text/plain" data-common="…">…</script>', told)
    binary = lambda match: f"{match[1]}{' '.join(map(_asset, match[2].split()))}</script>"  # noqa: E731
    document = re.sub(r'(<script type="text/plain" data-asset="\w+">)([^<]*)</script>', binary, document)
    return document.replace("><", ">\n<")


def _asset(text: str) -> str:
    """JSON, or the bytes of a block."""
    content = zlib.decompress(base64.b64decode(text))
    return content.decode() if content.startswith(b"{") else content.hex()
