"""axe-core, which finds what keeps a page from people who read it by ear, by keyboard or by contrast."""

from __future__ import annotations

import functools
import importlib.resources
import importlib.util
import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from browser import Opened

RUN = """axe.run(document, {resultTypes: ["violations"]}).then((found) => found.violations.map((rule) =>
  `${rule.id}: ${rule.help}: ` + rule.nodes.slice(0, 4).map((node) => node.html.slice(0, 200)).join(" | ")))"""


@functools.cache
def source() -> str:
    """The script, from the package that holds it; without it the test is skipped, unless SAE_VIS_REQUIRE_BROWSER is set."""
    if importlib.util.find_spec("axe_playwright_python") is None:
        reason = "axe-core is not installed: pip install 'sae-vis[test]'"
        (pytest.fail if os.environ.get("SAE_VIS_REQUIRE_BROWSER") else pytest.skip)(reason)
    return (importlib.resources.files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")


def violations(opened: Opened) -> list[str]:
    """What breaks a rule of WCAG 2 (A, AA) or of good practice on the page as it is now, each with where.

    All that axe-core runs by default, and nothing is left out.
    """
    if not opened.js("typeof axe === 'object'"):
        opened.js(source())
    return opened.js(RUN)
