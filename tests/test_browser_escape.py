"""Escape closes what is innermost, one thing a time, and gives the focus back; keys of a menu or a dialog are its own."""

from __future__ import annotations

import browser
import pytest
from rendering_fixtures import make_features
from test_browser import expect_feature

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser-escape")]  # one browser for all

if browser.sync_playwright:
    from playwright.sync_api import expect

FOCUSED = "document.activeElement.className"


@pytest.fixture(scope="module")
def document():
    return make_features(4, dead=(), first_group_size=4, n_groups=2, other_groups_size=2).get_html()


def test_escape_closes_one_thing_after_the_other(show, document):
    opened = show(document)
    page = opened.page
    page.locator(".what-is").first.click()
    expect(page.locator(".what-it-is")).to_be_visible()
    page.locator(".seq").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator(".seqs .whole")).to_be_visible()
    page.keyboard.press("ArrowRight")
    tip, whole, about = (page.locator(name) for name in (".hovertext", ".seqs .whole", ".what-it-is"))
    expect(tip).to_be_visible()
    left = [tip, whole, about]
    while left:
        page.keyboard.press("Escape")
        gone = [one for one in left if not one.is_visible()]
        assert len(gone) == 1
        left.remove(gone[0])
        if len(left) == 2:
            assert gone == [tip]
        expect_feature(page, 0)
        expect(page.locator("article.feature")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator(".overview")).to_be_visible()


def test_escape_hides_the_hover_text_before_a_menu_and_leaves_a_field_at_once(show, document):
    opened = show(document)
    page = opened.page
    page.locator(".seq").first.focus()
    page.keyboard.press("m")
    expect(page.locator(".seq-menu")).to_be_visible()
    page.locator(".seq").nth(2).locator("span").first.hover()
    expect(page.locator(".hovertext")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator(".hovertext")).to_be_hidden()
    expect(page.locator(".seq-menu")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator(".seq-menu")).to_be_hidden()
    assert opened.js(f"{FOCUSED}.split(' ')[0]") == "seq"
    page.locator(".said .edit").click()
    page.locator(".seq").nth(2).locator("span").first.hover()
    expect(page.locator(".hovertext")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator(".hovertext")).to_be_hidden()
    expect(page.locator(".say")).to_have_count(0)
    assert opened.js(FOCUSED) == "edit"
    expect(page.locator("article.feature")).to_be_visible()


def test_the_box_of_what_cannot_be_copied_closes_alone(show, document):
    opened = show(document, init="navigator.clipboard && (navigator.clipboard.writeText = () => Promise.reject())")
    page = opened.page
    page.locator(".seq").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator(".seqs .whole")).to_be_visible()
    page.keyboard.press("m")
    page.get_by_role("menuitem", name="Copy text").click()
    expect(page.locator(".copy-box textarea")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator(".copy-box")).to_have_count(0)
    expect(page.locator(".seqs .whole")).to_be_visible()
    expect(page.locator("article.feature")).to_be_visible()
    expect(page.locator(".seq").first).to_be_focused()


def test_keys_of_a_menu_and_of_a_dialog_are_its_own(show, document):
    opened = show(document)
    page = opened.page
    page.get_by_role("button", name="View").click()
    expect(page.locator(".view-panel")).to_be_visible()
    for key in "jkso":
        page.keyboard.press(key)
    page.keyboard.press("Escape")
    expect(page.locator(".view-panel")).to_be_hidden()
    assert opened.js(FOCUSED) == "view-button"
    page.locator(".seq").first.focus()
    page.keyboard.press("m")
    for key in "jkso":
        page.keyboard.press(key)
    expect(page.locator(".seq-menu")).to_be_visible()
    expect_feature(page, 0)
    expect(page.locator("article.feature")).to_be_visible()
    assert opened.js("saeVis.stars.size") == 0


def test_no_more_is_promised_of_an_example_than_it_can_do(show):
    features = make_features(2, dead=(), first_group_size=4, n_groups=1, other_groups_size=2)
    features.rows.clear()
    opened = show(features.get_html())
    opened.page.locator(".seq").first.focus()
    opened.page.keyboard.press("ArrowRight")
    label = opened.page.locator(".seq").first.get_attribute("aria-label")
    assert "Enter" not in label
    assert "M opens its menu" in label
    opened.page.keyboard.press("?")
    expect(opened.page.locator("dialog.help")).not_to_contain_text("whole row")
