"""A real Chromium without a network. It opens pages from disk, and takes down all that they complain of or ask for."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

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


STORED = "(() => { try { return JSON.stringify(Object.entries(localStorage).sort()) } catch { return null } })()"
RELOADS = 5  # at most, until what was stored is there
MOST_USES = 10  # of a window; a browser's history has an end


class Opened:
    """A page in a window whose context is its own, with what went wrong in it so far."""

    def __init__(self, context: BrowserContext, file: Path) -> None:
        self.context, self.uses, self.spoiled = context, 0, False
        self.show(file)
        context.on("page", self._watch)
        context.on("request", self._asked)
        self.page: Page = context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self._session = context.new_cdp_session(self.page)
        for owner, name in (
            (self.page, "emulate_media"),
            (self.page, "set_viewport_size"),
            (context, "on"),
            (context, "new_cdp_session"),
        ):
            self._spoiling(owner, name)

    def _spoiling(self, owner: Any, name: str) -> None:
        """Have the window be closed after a test that changes it in this way."""
        real = getattr(owner, name)

        def call(*args: Any, **options: Any) -> Any:
            self.spoiled = True
            return real(*args, **options)

        setattr(owner, name, call)

    def show(self, file: Path) -> None:
        """From now on the page is that of a file."""
        self.faults: list[str] = []
        self.address = file.as_uri()
        self.uses += 1

    def cleared(self) -> bool:
        """Leave the page and all that it has kept; False if the window is not as good as a new one."""
        if (
            self.spoiled
            or self.faults
            or self.uses >= MOST_USES
            or len(self.context.pages) != 1
            or self.page.is_closed()
        ):
            return False
        self.js("sessionStorage.clear()")
        self.page.mouse.move(-10, -10)
        self.page.goto("about:blank")
        self._session.send("Storage.clearDataForOrigin", {"origin": "file://", "storageTypes": "all"})
        return True

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

    def reload(self) -> None:
        """Load the page anew, with what it has stored.

        Chromium (156) now and then shows a new document what was stored before the last changes, and the one after it the
        truth: a page of one script that writes and reads a number is enough to see it.
        """
        stored = self.js(STORED)
        for _ in range(RELOADS):
            self.page.reload()
            if self.js(STORED) == stored:
                break

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
MOST_KEPT = 4
_KEPT: WeakKeyDictionary[Browser, dict[str, Opened]] = WeakKeyDictionary()  # by their options


@contextlib.contextmanager
def opener(browser: Browser, folder: Path) -> Iterator[Open]:
    """A function that opens documents; at the end no page may have complained, nor asked for anything.

    Windows of the same options are used again: to make one takes as long as to show a page.
    """
    opened: list[tuple[str, Opened]] = []
    kept: dict[str, Opened] = _KEPT.setdefault(browser, {})

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
        options |= {"viewport": {"width": size[0], "height": size[1]}}
        key = repr((init, sorted(options.items())))
        page = kept.pop(key, None)
        if page is not None:
            page.show(file)
        else:
            context = browser.new_context(offline=True, **options)
            if init:
                context.add_init_script(init)
            page = Opened(context, file)
        opened.append((key, page))
        return page.go(fragment)

    try:
        yield open_document
    finally:
        faults = [fault for _, page in opened for fault in page.faults]
        for key, page in opened:
            if key in kept or not page.cleared():
                page.context.close()
            else:
                kept[key] = page
        while len(kept) > MOST_KEPT:
            kept.pop(next(iter(kept))).context.close()
    assert not faults, "\n".join(faults)
