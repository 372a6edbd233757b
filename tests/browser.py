"""A real Chromium without a network. It opens pages from disk, and takes down all that they complain of or ask for."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

try:
    from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
except ImportError:
    sync_playwright = None  # type: ignore[assignment]

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
PATIENCE = 15_000  # ms; of a busy machine
DESKTOP = (1440, 900)
FIRST = "#feature=first"


def _why_not() -> str | None:
    if sync_playwright is None:
        return "Playwright for Python is not installed: pip install 'sae-vis[test]'"
    return None if shutil.which("chromium") else "there is no chromium on the PATH"


def launched() -> Iterator[Browser]:
    """The body of a fixture: one browser, or a skip with the reason, which SAE_VIS_REQUIRE_BROWSER makes a failure.

    Keep it to a module: while Playwright runs, no other event loop can run in its thread.
    """
    reason = _why_not()
    if reason:
        (pytest.fail if os.environ.get("SAE_VIS_REQUIRE_BROWSER") else pytest.skip)(reason)
    with sync_playwright() as playwright:
        expect.set_options(timeout=PATIENCE)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        yield browser
        browser.close()


class Opened:
    """A page in a context of its own, with what went wrong in it so far."""

    def __init__(self, context: BrowserContext, file: Path) -> None:
        self.faults: list[str] = []
        self.address = file.as_uri()
        context.on("page", self._watch)
        context.on("request", self._asked)
        self.page: Page = context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self._session = context.new_cdp_session(self.page)

    def _watch(self, page: Page) -> None:
        if page.opener():
            self.faults.append(f"window: {page.url}")
        page.on("console", lambda message: self.faults.append(f"console: {message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        page.on("crash", lambda: self.faults.append("crash"))
        page.on("dialog", self._dialog)

    def _dialog(self, dialog: Any) -> None:
        self.faults.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _asked(self, request: Any) -> None:
        if request.url.split("#")[0] != self.address:
            self.faults.append(f"request: {request.url[:200]}")

    def go(self, fragment: str = "") -> Opened:
        """Open the page, or only change its fragment."""
        self.page.goto(self.address + fragment)
        return self

    def js(self, expression: str) -> Any:
        """What an expression is worth in the page. Unlike Playwright's own evaluation it heeds no policy of the page."""
        answer = self._session.send(
            "Runtime.evaluate", {"expression": expression, "returnByValue": True, "awaitPromise": True}
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def texts(self, selector: str) -> list[str]:
        """The text of every element, even a hidden one."""
        return self.js(f"[...document.querySelectorAll({selector!r})].map(e => e.textContent)")

    def boxes(self, selector: str) -> list[dict[str, float]]:
        """Where every element is drawn."""
        return self.js(f"[...document.querySelectorAll({selector!r})].map(e => e.getBoundingClientRect().toJSON())")

    @property
    def hash(self) -> str:
        """The fragment in the address."""
        return self.js("location.hash")

    @property
    def active(self) -> str:
        """The id, or else the tag and the text, of what has the focus."""
        return self.js("(e => e.id || `${e.tagName} ${e.textContent}`)(document.activeElement)")


Open = Callable[..., Opened]


@contextlib.contextmanager
def opener(browser: Browser, folder: Path) -> Iterator[Open]:
    """A function that opens documents; at the end no page may have complained, nor asked for anything."""
    opened: list[tuple[BrowserContext, Opened]] = []

    def open_document(
        document: str,
        fragment: str | None = None,
        size: tuple[int, int] = DESKTOP,
        init: str = "",
        **options: Any,
    ) -> Opened:
        if fragment is None:  # a page that has an overview opens on its first feature all the same
            fragment = FIRST if 'data-view="overview"' in document else ""
        file = folder / f"page{len(opened)}.html"
        file.write_text(document, encoding="utf-8")
        viewport = {"width": size[0], "height": size[1]}
        context = browser.new_context(offline=True, viewport=viewport, **options)
        if init:
            context.add_init_script(init)
        page = Opened(context, file)
        opened.append((context, page))
        return page.go(fragment)

    try:
        yield open_document
    finally:
        for context, _ in opened:
            context.close()
    faults = [fault for _, page in opened for fault in page.faults]
    assert not faults, "\n".join(faults)
