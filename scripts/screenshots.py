"""Take the README's pictures of the bundled model's pages, with headless Chromium: ``python scripts/screenshots.py``.

It writes ``docs/images/``: the overview, a feature, a prompt and two prompts, each light, dark and in a narrow window. Names of
pictures after it take these alone: ``python scripts/screenshots.py overview prompt-dark``.
"""

from __future__ import annotations

import base64
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from playwright.sync_api import Browser, Page, sync_playwright
from small_png import palette_png

from sae_vis import FeatureVisParams, MultiFeatureData, compare_prompts, get_feature_data, get_prompt_data, load_demo
from sae_vis._demo import PROMPT, Demo, label, most_helped

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
FEATURE = 320
TWO = (
    "class Book(models.Model):\n    title = models.CharField(max_length=100)\n",
    "class Book(models.Model):\n    author = models.ForeignKey(Author, on_delete=models.CASCADE)\n",
)


def write_pages(folder: Path) -> None:
    """A site of the whole dictionary, a prompt, and two prompts."""
    demo = load_demo()
    fvp = FeatureVisParams(hook_point=demo.hook_point, verbose=False)
    data = get_feature_data(demo.encoder, demo.model, demo.tokens, fvp, demo.encoder_B)
    label(data, demo.labels)
    data.save_site(folder / "site")
    write_prompts(folder, demo, data)


def write_prompts(folder: Path, demo: Demo, data: MultiFeatureData) -> None:
    """The pages of one prompt and of two."""
    url = "site/index.html#feature={feature}"
    prompt = get_prompt_data(demo.encoder, demo.model, PROMPT, data, reconstruction=True)
    prompt.save_html(folder / "prompt.html", most_helped(prompt), "loss_effect", feature_url=url)
    two = compare_prompts(demo.encoder, demo.model, *TWO, data)
    two.save_html(folder / "two.html", feature_url=url)


class View(NamedTuple):
    """A page, and what is done on it before its picture is taken."""

    address: str
    prepare: Callable[[Page], None] = lambda page: None


def sort_by_label(page: Page) -> None:
    """The features that have a label come first."""
    page.locator('.overview-heads [data-sort="label"] button').click()
    page.evaluate("document.activeElement.blur()")
    page.mouse.move(0, 0)


def hover_bold(page: Page) -> None:
    """Show the hover text of the first example's bold token, where there is room for it."""
    if page.viewport_size["width"] > 640:
        page.locator(".has-sequences .seq .b").first.hover()


VIEWS = {
    "overview": View("site/index.html", sort_by_label),
    "feature": View(f"site/index.html#feature={FEATURE}", hover_bold),
    "prompt": View("prompt.html"),
    "two-prompts": View("two.html"),
}
LOOKS = {"": ("light", 1400, 860, 1.5), "-dark": ("dark", 1400, 860, 1.5), "-narrow": ("light", 400, 860, 1.5)}


def take(browser: Browser, folder: Path, view: View, look: tuple[str, int, int, float]) -> NDArray[np.uint8]:
    """The pixels of a page, ``[height, width, 3]``."""
    scheme, width, height, scale = look
    page = browser.new_page(
        viewport={"width": width, "height": height}, device_scale_factor=scale, color_scheme=scheme, bypass_csp=True
    )
    page.goto(f"{folder.as_uri()}/{view.address}")
    page.wait_for_timeout(800)
    view.prepare(page)
    page.wait_for_timeout(400)
    taken = page.screenshot()
    page.close()
    return pixels_of(browser, taken)


def pixels_of(browser: Browser, png: bytes) -> NDArray[np.uint8]:
    """What a PNG file shows, unpacked by the browser."""
    page = browser.new_page()
    text = page.evaluate(
        """async (source) => {
             const bitmap = await createImageBitmap(await (await fetch(source)).blob());
             const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d");
             context.drawImage(bitmap, 0, 0);
             const { data } = context.getImageData(0, 0, bitmap.width, bitmap.height);
             const parts = [`${bitmap.width} `];
             const size = 30_000; // a multiple of three, so that what is encoded can be joined
             for (let at = 0; at < data.length; at += size) {
               parts.push(btoa(String.fromCharCode(...data.subarray(at, at + size))));
             }
             return parts.join("");
           }""",
        f"data:image/png;base64,{base64.b64encode(png).decode()}",
    )
    page.close()
    width, _, packed = text.partition(" ")
    return np.frombuffer(base64.b64decode(packed), np.uint8).reshape(-1, int(width), 4)[:, :, :3]


def main() -> None:
    """Write the pictures."""
    wanted = sys.argv[1:]
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        folder = Path(temporary)
        write_pages(folder)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, view in VIEWS.items():
            for ending, look in LOOKS.items():
                if not wanted or name + ending in wanted:
                    png = palette_png(take(browser, folder, view, look))
                    (IMAGES / f"{name}{ending}.png").write_bytes(png)
        browser.close()


if __name__ == "__main__":
    main()
