"""Take the README's pictures of the bundled model's pages, with headless Chromium.

``python scripts/screenshots.py FEATURE FEATURE FEATURE`` writes ``docs/images/``: the whole page of the first feature, the
prompt-centric page, and a close-up of each feature's histograms and top activations.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from sae_vis import FeatureVisParams, get_feature_data, get_prompt_data, load_demo
from sae_vis._demo import PROMPT, label, most_helped

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
HOVERED = ".seq .b"  # the bold token of the first sequence


def write_pages(folder: Path, features: list[int]) -> None:
    """Both pages: the features asked for with all panels, the prompt over the whole dictionary."""
    demo = load_demo()
    fvp = FeatureVisParams(hook_point=demo.hook_point, features=tuple(features), verbose=False)
    data = get_feature_data(demo.encoder, demo.model, demo.tokens, fvp, demo.encoder_B)
    label(data, demo.labels)
    data.save_html(folder / "features.html")
    for_all = FeatureVisParams(hook_point=demo.hook_point, include_left_tables=False, n_groups=0, verbose=False)
    everything = get_feature_data(demo.encoder, demo.model, demo.tokens, for_all)
    label(everything, demo.labels)
    prompt = get_prompt_data(demo.encoder, demo.model, PROMPT, everything, num_top_features=5, reconstruction=True)
    prompt.save_html(folder / "prompt.html", seq_pos=most_helped(prompt), score_name="loss_effect")


def open_page(browser: Browser, path: Path, address: str, width: int, height: int) -> Page:
    """A page in the light theme, at twice the resolution."""
    page = browser.new_page(viewport={"width": width, "height": height}, device_scale_factor=2, color_scheme="light")
    page.goto(f"{path.as_uri()}{address}")
    page.wait_for_timeout(500)
    return page


def main() -> None:
    """Write the pictures."""
    features = [int(argument) for argument in sys.argv[1:]]
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        folder = Path(temporary)
        write_pages(folder, features)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = open_page(browser, folder / "features.html", f"#feature={features[0]}", 1360, 860)
        page.locator(HOVERED).first.hover()
        page.wait_for_timeout(300)
        page.screenshot(path=IMAGES / "feature.png")
        open_page(browser, folder / "prompt.html", "", 1360, 860).screenshot(path=IMAGES / "prompt.png")
        for number, feature in enumerate(features, 1):
            page = open_page(browser, folder / "features.html", f"#feature={feature}", 1000, 470)
            page.screenshot(path=IMAGES / f"feature_{number}.png")
        browser.close()


if __name__ == "__main__":
    main()
