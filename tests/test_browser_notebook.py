"""The pages in the frames of notebooks, as JupyterLab, VS Code and Colab make them: nothing is global, nothing is needed.

JupyterLab puts the output into its own page, in which the frame is a document of the same origin. VS Code and Colab put all
outputs into frames of their own, sandboxed and of no origin: there, touching storage throws. All add it by innerHTML, so that
the frame is parsed after the page around it.
"""

from __future__ import annotations

import html
import json

import browser
import pytest
from rendering_fixtures import make_features, make_prompt

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser-notebook")]  # one browser for all

if browser.sync_playwright:
    from playwright.sync_api import expect


@pytest.fixture(scope="module")
def outputs():
    """What two cells put out: features, and a prompt."""
    features = make_features(4, dead=(3,), first_group_size=3, n_groups=1, other_groups_size=2)
    features[1].feature_tables.correlated_features.indices[:] = [2, 900, 3]
    return [features._repr_html_(), make_prompt(8, first_group_size=3)._repr_html_()]


def jupyterlab(outputs):
    """Outputs added by innerHTML to a page of its own origin."""
    cells = json.dumps(outputs).replace("<", "\\u003c")
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>JupyterLab</title><body><script>
      for (const output of {cells}) {{
        const cell = document.createElement("div");
        cell.className = "jp-RenderedHTMLCommon";
        cell.innerHTML = output;
        document.body.append(cell);
      }}
      globalThis.before = Object.keys(globalThis).length;
    </script>"""


def sandboxed(sandbox):
    """Every output in a frame of no origin, as a host makes it that trusts no output."""

    def notebook(outputs):
        cell = '<iframe sandbox="{}" srcdoc="{}" style="width: 1200px; height: 900px"></iframe>'
        cells = "".join(
            cell.format(sandbox, html.escape(f"<!doctype html><title>Output</title>{output}")) for output in outputs
        )
        return f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Notebook</title><body>{cells}'

    return notebook


def in_jupyterlab(page, which):
    return page.locator(".jp-RenderedHTMLCommon").nth(which).frame_locator("iframe")


def in_sandbox(page, which):
    return page.locator("body > iframe").nth(which).content_frame.frame_locator("iframe")


HOSTS = {
    "JupyterLab": (jupyterlab, in_jupyterlab),
    "VS Code": (sandboxed("allow-scripts allow-forms allow-downloads"), in_sandbox),
    "Colab": (sandboxed("allow-scripts allow-popups"), in_sandbox),
}


@pytest.fixture(params=HOSTS)
def host(request, show, outputs):
    """The notebook with features, a prompt and the same features again; and a function that gives the document of a cell."""
    notebook, document_of = HOSTS[request.param]
    opened = show(notebook([*outputs, outputs[0]]))
    frames = [document_of(opened.page, which) for which in range(3)]
    for which in (0, 2):  # of several features: the overview first
        opened.page.locator("body > :is(div, iframe)").nth(which).scroll_into_view_if_needed()  # out of sight it waits
        frames[which].get_by_role("grid", name="Features").get_by_role("link", name="0", exact=True).click()
    for frame in frames:
        expect(frame.locator("article").first).to_be_visible()
    return request.param, opened, frames


def test_pages_work_and_are_independent_in_every_host(host):
    _, opened, (one, prompt, two) = host
    one.get_by_role("button", name="Next feature").click()
    expect(one.locator("article")).to_have_attribute("data-feature", "1")
    one.locator("a[data-go='2']").first.click()  # a link does not unload the frame
    expect(one.locator("article")).to_have_attribute("data-feature", "2")
    one.locator("body").press("k")
    expect(one.locator("article")).to_have_attribute("data-feature", "1")
    expect(two.locator("article")).to_have_attribute("data-feature", "0")
    one.locator(".seq > .b").first.hover()
    expect(one.get_by_role("tooltip")).to_be_visible()
    expect(two.get_by_role("tooltip")).to_have_count(0)
    prompt.get_by_role("radio", name="Position 5").click()
    expect(prompt.get_by_role("radio", name="Position 5")).to_be_checked()
    expect(two.locator("article")).to_have_attribute("data-feature", "0")
    one.locator("h1").click()  # the frame has the focus again
    one.locator("body").press("?")
    expect(one.get_by_role("dialog", name="Keys")).to_be_visible()
    expect(two.get_by_role("dialog", name="Keys")).to_have_count(0)
    one.get_by_role("button", name="Close").click()
    assert opened.hash == ""
    assert opened.js("document.querySelectorAll('[id]').length") == 0  # nothing leaks into the notebook itself
    assert opened.js("typeof saeVis") == "undefined"


def test_choices_work_even_where_nothing_can_be_kept(host):
    name, opened, (one, _, two) = host
    can_store = """() => { try { localStorage.setItem("x", "1"); return true; } catch { return false; } }"""
    frame = next(frame for frame in opened.page.frames if frame.parent_frame and not frame.child_frames)
    assert frame.evaluate(can_store) == (name == "JupyterLab")
    one.get_by_role("button", name="View").click()
    one.get_by_role("radio", name="Dark").click()
    one.get_by_role("radio", name="Viridis").click()
    expect(one.locator("body")).to_have_css("background-color", "rgb(21, 24, 28)")
    expect(two.locator("body")).to_have_css("background-color", "rgb(255, 255, 255)")
    one.locator("body").press("Escape")
    one.get_by_role("button", name="Next feature").click()
    expect(one.locator("html")).to_have_attribute("data-act-scale", "viridis")
