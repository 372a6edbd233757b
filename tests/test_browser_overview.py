"""The overview in a real Chromium: what it opens on, its table, what narrows it, the search, a whole dictionary's speed."""

from __future__ import annotations

import dataclasses
import json
import random
import time
from collections import Counter

import browser
import pytest
from rendering_fixtures import make_features
from test_browser import expect_feature, expect_readable
from test_hostile_tokens import data_with_text

from sae_vis import Column, Layout, _overview, _page
from sae_vis._features_page import features_body, overview_assets
from sae_vis._furniture import vocab_of
from sae_vis._neighbours_data import NearestData, NeighboursData
from sae_vis.utils_fns import decimals_for, format_fixed, format_percent

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser-overview")]  # one browser for all

if browser.sync_playwright:
    from playwright.sync_api import expect

WHOLE = 16_384
N = 40
ROW = ".overview-rows > .overview-row"


@pytest.fixture(scope="module")
def features():
    features = make_features(N, dead=(3,), first_group_size=4, n_groups=2, other_groups_size=2)
    features.feature_data_dict[5].label = "import statements"
    features.feature_data_dict[6].label = "Imports of <b>modules</b>"
    for index, feature in features.feature_data_dict.items():
        if feature.activations.max:
            feature.activations.density = 0.5 / (1 + (index * 7) % N)
    return features


@pytest.fixture(scope="module")
def document(features):
    return features.get_html()


@pytest.fixture
def overview(show, document):
    """The page, its overview read."""
    return ready(show(document, ""))


def ready(opened):
    opened.js("saeVis.overview.ready.then(() => 0)")
    return opened


def wait_for(opened, expression, expected=True):
    end = time.monotonic() + browser.PATIENCE / 1000
    while (found := opened.js(expression)) != expected:
        assert time.monotonic() < end, (expression, found)
        time.sleep(0.02)


def ids(opened):
    """The features of the table in their order."""
    return opened.js("[...saeVis.overview.rows()].map((row) => saeVis.overview.ids[row])")


def drawn(opened):
    """The features of the rows that are there, from the top down."""
    return opened.js(f"""[...document.querySelectorAll({ROW!r})].sort((a, b) => a.ariaRowIndex - b.ariaRowIndex)
      .map((row) => Number(row.querySelector("a").textContent))""")


def with_features(features, passes):
    return [index for index, feature in features.items() if passes(feature)]


# --- the way between the overview and a feature ------------------------------------------------------------------------


def expect_overview(page):
    expect(page.locator(".overview")).to_be_visible()
    expect(page.locator("article.feature")).to_be_hidden()
    expect(page.locator(".to-overview")).to_have_attribute("aria-current", "page")


def test_a_page_opens_on_the_overview_and_comes_back_to_it(overview):
    page = overview.page
    expect_overview(page)
    assert overview.js("document.title") == "Overview · blocks.0.mlp.hook_post · gelu-1l-code"
    page.locator(ROW).nth(4).click()
    expect_feature(page, 4)
    expect(page.locator("article.feature")).to_be_visible()
    expect(page.locator(".overview")).to_be_hidden()
    assert overview.hash == "#feature=4"
    page.go_back()
    expect_overview(page)
    page.go_forward()
    expect(page.locator("article.feature")).to_be_visible()
    page.get_by_role("link", name="Overview").click()
    expect_overview(page)
    assert overview.hash == "#overview"


def test_numbers_of_a_column_have_as_many_digits_as_each_other(overview):
    expected = {
        ("density", "0.0039"): "0.390\u2009%",
        ("density", "0.0104"): "1.04\u2009%",
        ("density", "1"): "100\u2009%",
        ("density", "1e-9"): "1.0e\u22127\u2009%",
        ("max", "12"): "12.0",
        ("max", "11.96"): "12.0",
        ("max", "9.996"): "10.00",
        ("density", "0.9999"): "100.0\u2009%",
        ("max", "0.5"): "0.500",
        ("max", "123456"): "123,456",
        ("max", "NaN"): "\u2013",
    }
    for (name, value), text in expected.items():
        assert overview.js(f"saeVis.overview.formatCell({name!r}, {value})") == text


def test_the_overview_shows_the_numbers_of_the_features_own_pages(overview):
    """Neither a digit that was left out nor the number format, nor what is done with a 5 at the end, makes another number."""
    rng = random.Random(0)
    maxima = [
        7.035,
        2.125,
        2.135,
        0.3125,
        999.25,
        0.0010625,
        9.996,
        0.09997,
        *(float(f"{10 ** rng.uniform(-3, 2.9):.4g}") for _ in range(2000)),
    ]
    densities = [0.0068549996, 0.00685, 0.125125, 0.9999, *(rng.randrange(1, 32_000) / 32_385 for _ in range(2000))]
    for name, values in (("max", maxima), ("density", densities)):
        kept = [_overview._shortened(value, _overview.NUMBERS[name]) for value in values]
        shown = overview.js(f"{json.dumps(kept)}.map((value) => saeVis.overview.formatCell({name!r}, value))")
        if name == "max":
            expected = [format_fixed(value, decimals_for(value, 3)) for value in values]
        else:
            expected = [format_percent(value).replace(" ", "\u2009") for value in values]
        assert [(v, s) for v, s, e in zip(values, shown, expected, strict=True) if s != e] == []


@pytest.mark.parametrize("key", ["Escape", "o"])
def test_a_key_returns_to_the_overview(key, show, document):
    opened = ready(show(document, "#overview"))
    opened.page.locator(ROW).nth(2).click()
    expect(opened.page.locator("article.feature")).to_be_visible()
    opened.page.mouse.move(1, 1)  # away from a token that came to lie below it
    opened.page.keyboard.press(key)
    expect_overview(opened.page)


def test_escape_closes_the_hover_text_first(show, document):
    opened = show(document)
    opened.page.locator(".seq .b").first.hover()
    expect(opened.page.locator(".hovertext")).to_be_visible()
    opened.page.keyboard.press("Escape")
    expect(opened.page.locator(".hovertext")).to_be_hidden()
    expect(opened.page.locator("article.feature")).to_be_visible()
    opened.page.keyboard.press("Escape")
    expect_overview(opened.page)


def test_a_page_that_was_asked_for_a_feature_opens_on_it(show, features):
    opened = show(features.get_html(feature=8), "")
    expect_feature(opened.page, 8)
    expect(opened.page.locator("article.feature")).to_be_visible()
    opened.page.get_by_role("link", name="Overview").click()
    expect_overview(opened.page)
    opened.page.go_back()
    expect_feature(opened.page, 8)
    expect(opened.page.locator("article.feature")).to_be_visible()


def test_with_scripts_off_the_first_feature_can_be_read(show, document):
    opened = show(document, "", java_script_enabled=False)
    expect(opened.page.locator("article.feature")).to_be_visible()
    expect(opened.page.locator(".overview")).to_be_hidden()


def test_the_list_is_as_it_was_left(show, document):
    opened = ready(show(document, "#overview", size=(1200, 500)))
    page = opened.page
    page.get_by_role("button", name="Density").click()
    page.get_by_label("Largest density in percent").fill("20")
    opened.js("document.querySelector('.overview-scroll').scrollTop = 300")
    page.wait_for_timeout(100)
    before = ids(opened)
    chosen = drawn(opened)[14]
    page.locator(ROW).filter(has=page.get_by_role("link", name=str(chosen), exact=True)).click()
    expect_feature(page, chosen)
    scrolled = opened.js("document.querySelector('.overview-scroll').scrollTop")
    page.keyboard.press("o")
    expect_overview(page)
    assert opened.js("document.querySelector('.overview-scroll').scrollTop") == pytest.approx(300, abs=60)
    assert scrolled in (0, pytest.approx(300, abs=60))
    assert ids(opened) == before
    assert opened.js("document.activeElement.querySelector('a').textContent") == str(chosen)


def test_the_row_of_a_feature_that_had_the_focus_has_it_in_the_overview(show, document):
    opened = show(document, "#feature=20")
    expect_feature(opened.page, 20)
    opened.page.locator("article .seq").first.focus()
    opened.page.keyboard.press("o")
    expect_overview(opened.page)
    wait_for(opened, "document.activeElement.querySelector('a')?.textContent", "20")
    opened.page.keyboard.press("ArrowDown")
    assert opened.js("document.activeElement.querySelector('a').textContent") == "21"


# --- the table ---------------------------------------------------------------------------------------------------------


def test_a_row_tells_of_its_feature(overview, features):
    page = overview.page
    rows = page.locator(ROW)
    expect(rows.nth(5).locator("bdi")).to_have_text("import statements")
    expect(rows.nth(6).locator("bdi")).to_have_text("Imports of <b>modules</b>")
    expect(rows.nth(3)).to_contain_text("never fires")
    shown = overview.js(f"[...document.querySelectorAll({ROW!r})][1].querySelectorAll('.top_tokens').length")
    assert shown == min(8, len(_overview.top_tokens(features[1])))
    promoted = overview.texts(f"{ROW}:nth-child(2) .promoted")
    printed = [overview.js(f"saeVis.overview.tokenHtml({i})") for i in features[1].logits.top_token_ids[:8]]
    assert (
        overview.js(f"[...document.querySelectorAll('{ROW}:nth-child(2) .promoted')].map(e => e.innerHTML)") == printed
    )
    assert len(promoted) == 8
    assert page.locator(".overview-table").get_attribute("aria-rowcount") == str(N + 1)


@pytest.mark.parametrize(
    ("head", "key"),
    [
        ("Id", lambda f: -f.feature_idx),
        ("Density", lambda f: f.activations.density),
        ("Max", lambda f: f.activations.max if f.activations.max is not None else -1),
    ],
)
def test_heads_sort_both_ways(head, key, overview, features):
    button = overview.page.get_by_role("columnheader", name=head).get_by_role("button")
    column = overview.page.get_by_role("columnheader", name=head)
    button.click()
    first = ids(overview)
    order = column.get_attribute("aria-sort")
    assert order == "descending"
    button.click()
    assert column.get_attribute("aria-sort") == "ascending"
    expect(overview.page.locator("[aria-sort]")).to_have_count(1)
    expected = sorted(features.values(), key=lambda f: (-key(f), f.feature_idx))
    if head == "Id":
        expected.reverse()
    assert first == [f.feature_idx for f in expected]
    if head == "Max":
        assert ids(overview)[-1] == 3  # one without a value is last both ways


def test_labels_sort_by_text_with_none_last(overview):
    overview.page.get_by_role("columnheader", name="Label").get_by_role("button").click()
    assert ids(overview)[:4] == [1, 5, 6, 0]  # “Django …”, “import …”, “Imports …”, none


def test_the_column_of_labels_is_there_once_there_is_a_label_or_a_duplicate(show):
    few = make_features(4, first_group_size=4, n_groups=0)
    for feature in few.values():
        feature.label = None
    opened = ready(show(few.get_html(), ""))
    head = opened.page.locator('[data-sort="label"]')
    expect(head).to_be_hidden()
    opened.js("saeVis.sayOf(2, { label: 'mine' })")
    expect(head).to_be_visible()
    assert opened.texts(f"{ROW} bdi") == ["mine"]
    few[1].neighbours = NeighboursData(NearestData([2], [0.99]))
    opened = ready(show(few.get_html(), ""))
    expect(opened.page.locator('[data-sort="label"]')).to_be_visible()
    expect(opened.page.locator(".twin a")).to_have_text("2")


def test_the_link_to_a_twin_goes_there_and_nowhere_else(show):
    few = make_features(4, dead=(), first_group_size=1, n_groups=1, other_groups_size=1)
    few[1].neighbours = NeighboursData(NearestData([2], [0.99]))
    few[3].neighbours = NeighboursData(NearestData([20_000_003], [0.99]))  # beyond what a float32 counts to
    opened = ready(show(few.get_html(), ""))
    assert [text.strip() for text in opened.texts(".twin")] == ["≈ 2", "≈ 20000003"]
    before = opened.js("history.length")
    opened.page.locator(".twin a").click()
    expect_feature(opened.page, 2)
    assert opened.js("history.length") == before + 1
    opened.page.go_back()
    expect(opened.page.locator(".overview")).to_be_visible()


def test_the_link_to_a_twin_says_what_it_is_whatever_is_said_of_the_twin(show):
    few = make_features(4, dead=(), first_group_size=1, n_groups=1, other_groups_size=1)
    few[1].neighbours = NeighboursData(NearestData([2], [0.99]))
    opened = ready(show(few.get_html(), ""))
    link = opened.page.locator(".twin a")
    expect(link).to_have_attribute("title", "Almost the same decoder direction as feature 2")
    opened.js("saeVis.sayOf(2, { star: true })")
    opened.js("saeVis.tellShown()")
    expect(link).to_have_attribute("title", "Almost the same decoder direction as feature 2")


def test_rows_stand_in_the_order_in_which_they_are_seen(overview):
    order = f"[...document.querySelectorAll('{ROW}')].map((row) => row.ariaRowIndex).join()"
    seen = (
        f"[...document.querySelectorAll('{ROW}')].map((row) => Number(row.ariaRowIndex)).sort((a, b) => a - b).join()"
    )
    scroller = "document.querySelector('.overview-scroll')"
    for act in (f"{scroller}.scrollTop = 900", f"{scroller}.scrollTop = 0", "saeVis.overview.sortBy('max')"):
        overview.js(f"({act}, new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))))")
        assert overview.js(order) == overview.js(seen)


def test_a_row_that_is_opened_by_key_hands_the_focus_to_the_feature(overview):
    for _ in range(2):  # another feature, and the one that was shown before
        overview.js("saeVis.overview.focusTable()")
        overview.page.keyboard.press("Enter")
        expect(overview.page.locator("article.feature")).to_be_visible()
        assert overview.js("document.activeElement.tagName") == "H2"
        overview.page.keyboard.press("o")
        expect(overview.page.locator(".overview")).to_be_visible()


def place_of(opened, row, cell):
    """Left and right of a cell; row 0 is the first, None the heads."""
    of = ".overview-heads > .overview-row" if row is None else f'{ROW}[data-row="{row}"]'
    return opened.js(f"(b => [b.left, b.right])(document.querySelector(`{of} > {cell}`).getBoundingClientRect())")


LABEL, DENSITY, MAX, FIRES_ON, PROMOTES = ".label-cell", ".density", ".max-cell", ":nth-child(5)", ":nth-child(6)"


def test_where_few_have_a_label_it_stands_before_the_tokens(overview):
    overview.page.set_viewport_size({"width": 1280, "height": 800})
    label, head = place_of(overview, 5, LABEL), place_of(overview, None, LABEL)
    assert label[0] == head[0]
    assert place_of(overview, 0, FIRES_ON)[0] == head[0]  # one without a label leaves it no room
    assert label[1] < place_of(overview, 5, FIRES_ON)[0]
    assert place_of(overview, 4, MAX)[1] <= head[0]  # behind density and max
    assert len({place_of(overview, row, PROMOTES)[0] for row in (0, 5, 6, None)}) == 1
    overview.js("saeVis.sayOf(5, { label: 'long '.repeat(40) })")
    wait_for(overview, f"document.querySelector(`{ROW}[data-row='5'] bdi`).textContent.length > 100")
    (_, right), (left, end) = place_of(overview, 5, LABEL), place_of(overview, 5, FIRES_ON)
    assert right < left
    assert end - left > 60


ORDER = "[...document.querySelectorAll('.overview-heads [data-sort]')].map(head => head.dataset.sort).join(' ')"


def test_the_order_of_reading_is_that_on_the_screen(overview):
    """Tab goes from head to head, and a screen reader from cell to cell, as they stand."""
    few, many = "id density max label top_tokens promoted", "id label density max top_tokens promoted"
    overview.page.set_viewport_size({"width": 1280, "height": 800})
    assert overview.js(ORDER) == few
    head = overview.page.locator('[data-sort="label"] button')
    head.click()
    assert overview.js(ORDER) == many
    expect(head).to_be_focused()
    overview.page.locator('[data-sort="id"] button').click()
    assert overview.js(ORDER) == few
    for width, order in ((500, many), (1280, few)):
        overview.page.set_viewport_size({"width": width, "height": 800})
        wait_for(overview, ORDER, order)
        heads = [overview.page.locator(f'.overview-heads [data-sort="{name}"]') for name in order.split()[:4]]
        for row in (overview.page.locator(f'{ROW}[data-row="{i}"]') for i in (0, 5)):
            cells = row.locator("> *")
            for place, at in enumerate(heads):
                lefts = [element.bounding_box()["x"] for element in (at, cells.nth(place))]
                assert lefts[0] == pytest.approx(lefts[1], abs=1)
        lefts = [head.bounding_box()["x"] for head in heads]
        assert lefts == sorted(lefts)


def test_the_labels_have_a_column_where_many_have_one_or_those_are_first(overview):
    overview.page.set_viewport_size({"width": 1280, "height": 800})
    overview.page.get_by_label("has a label").check()
    wait_for(overview, "saeVis.overview.rows().length", 3)
    assert place_of(overview, 5, LABEL)[1] < place_of(overview, 5, DENSITY)[0]
    overview.page.get_by_label("has a label").uncheck()
    wait_for(overview, "saeVis.overview.rows().length", N)
    assert place_of(overview, 5, LABEL)[0] > place_of(overview, 5, DENSITY)[0]
    overview.page.get_by_role("columnheader", name="Label").get_by_role("button").click()  # labels first
    assert place_of(overview, 5, LABEL)[1] < place_of(overview, 5, DENSITY)[0]
    overview.page.get_by_role("columnheader", name="Id").get_by_role("button").click()
    assert place_of(overview, 5, LABEL)[0] > place_of(overview, 5, DENSITY)[0]
    overview.js(f"Array.from({{ length: {N} }}, (_, id) => saeVis.sayOf(id, {{ label: 'mine' }}))")
    assert place_of(overview, 5, LABEL)[1] < place_of(overview, 5, DENSITY)[0]


@pytest.mark.parametrize(
    ("fields", "passes"),
    [
        ({"density_min": "10"}, lambda f: f.activations.density >= 0.1),
        ({"density_max": "5", "density_min": "2"}, lambda f: 0.02 <= f.activations.density <= 0.05),
        ({"max_min": "3"}, lambda f: (f.activations.max or 0) >= 3),
        ({"max_max": "3,5"}, lambda f: f.activations.max is not None and f.activations.max <= 3.5),
    ],
)
def test_fields_narrow_the_table(fields, passes, overview, features):
    for name, value in fields.items():
        overview.page.locator(f"[name={name}]").fill(value)
    expected = with_features(features, passes)
    wait_for(overview, "saeVis.overview.rows().length", len(expected))
    assert ids(overview) == expected
    assert 0 < len(expected) < N
    assert overview.texts(".overview-count") == [f"{len(expected)} of {N} features"]


def test_switches_narrow_the_table(overview, features):
    overview.page.get_by_label("fires", exact=True).check()
    wait_for(overview, "saeVis.overview.rows().length", N - 1)
    overview.page.get_by_label("has a label").check()
    wait_for(overview, "saeVis.overview.rows().length", len(with_features(features, lambda f: f.label)))


def test_the_keys_go_through_the_table(show, document):
    opened = ready(show(document, "", size=(1200, 500)))
    page = opened.page
    page.locator(ROW).first.focus()
    focused = lambda: int(opened.js("document.activeElement.querySelector('a').textContent"))  # noqa: E731
    page.keyboard.press("ArrowDown")
    assert focused() == 1
    page.keyboard.press("End")
    assert focused() == N - 1
    page.keyboard.press("PageUp")
    assert 10 < focused() < N - 5
    page.keyboard.press("Home")
    page.keyboard.press("ArrowUp")
    assert focused() == 0
    page.keyboard.press("PageDown")
    reached = focused()
    assert reached > 5
    box = opened.boxes(f"{ROW}:focus")[0]
    assert 0 < box["top"] < box["bottom"] <= 500
    page.keyboard.press("Enter")
    expect_feature(page, reached)


def test_filters_of_others_are_intersected_and_have_chips(overview):
    overview.js("saeVis.changes = 0; saeVis.overview.onChange(() => saeVis.changes++); 0")
    overview.js(
        "saeVis.overview.setFilter('a', new Set([1, 2, 3, 4]), {label: 'mine', onClear: () => saeVis.cleared = 1})"
    )
    overview.js("saeVis.overview.setFilter('b', (row) => row % 2 === 0)")
    assert ids(overview) == [2, 4]
    assert overview.js("saeVis.overview.passesBut(3, 'b')")
    assert not overview.js("saeVis.overview.passes(3)")
    overview.page.get_by_role("button", name="Remove the filter: mine").click()
    assert ids(overview) == list(range(0, N, 2))
    assert overview.js("[saeVis.cleared, saeVis.changes]") == [1, 3]


def test_hovering_a_row_is_told(overview):
    overview.js("saeVis.told = []; saeVis.overview.onHover((row) => saeVis.told.push(row)); 0")
    overview.page.locator(ROW).nth(4).hover()
    overview.js("saeVis.overview.hover(7)")
    expect(overview.page.locator(ROW).nth(7)).to_have_class("overview-row hovered")
    assert overview.js("saeVis.told") == [4, 7]


@pytest.mark.parametrize("size", [(1400, 900), (400, 800)], ids=str)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_leaves_the_window(size, scheme, show, document):
    opened = ready(show(document, "", size=size, color_scheme=scheme))
    assert opened.js("document.documentElement.scrollWidth") <= size[0]
    assert opened.js("document.documentElement.scrollHeight") <= size[1]
    assert all(box["right"] <= size[0] for box in opened.boxes(f".finder *, .overview-tools *, {ROW}"))


def test_a_low_window_has_room_for_the_table(show, document):
    opened = ready(show(document, "", size=(320, 256)))
    (rows,) = opened.boxes(".overview-scroll")
    assert rows["height"] >= 200
    opened.page.locator(ROW).first.focus()
    for _ in range(4):
        opened.page.keyboard.press("ArrowDown")
    (row,) = opened.boxes(f"{ROW}:focus")
    (rows,) = opened.boxes(".overview-scroll")
    assert rows["top"] < row["top"] < row["bottom"] <= rows["bottom"] + 1
    assert 0 <= row["top"] < row["bottom"] <= 257
    assert opened.js("document.documentElement.scrollWidth") <= 320


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_tokens_of_a_feature_that_never_fires_can_be_read(scheme, show, document):
    opened = ready(show(document, "", color_scheme=scheme))
    expect(opened.page.locator(".dead .promoted").first).to_be_visible()
    expect_readable(opened, ".dead .overview-tokens > span")


# --- the search --------------------------------------------------------------------------------------------------------


def search(opened, text):
    opened.page.locator(".search-box").fill(text)


def texts_of(features, token_ids):
    return [features.vocab[i].lower() for i in token_ids]


def lists_of(feature):
    logits = feature.logits
    return {
        "fires": _overview.top_tokens(feature),
        "promotes": logits.top_token_ids,
        "suppresses": logits.bottom_token_ids,
    }


def matches(features, text, kinds):
    """What a search for a text should find, but in examples."""
    found = with_features(
        features,
        lambda f: (
            ("label" in kinds and text in (f.label or "").lower())
            or any(
                text in token for kind, ids in lists_of(f).items() if kind in kinds for token in texts_of(features, ids)
            )
        ),
    )
    assert found
    return found


ALL = ("fires", "promotes", "suppresses", "label")


@pytest.mark.parametrize(
    ("typed", "text", "kinds"),
    [
        ("import", "import", ALL),
        ("IMPORT ", "import", ALL),
        (" name", " name", ALL),
        ("fires:name", "name", ("fires",)),
        ("promotes: path", "path", ("promotes",)),
        ("suppresses:path", "path", ("suppresses",)),
        ("label:import", "import", ("label",)),
        ("é", "é", ALL),
    ],
)
def test_the_search_finds_what_holds_the_text(typed, text, kinds, overview, features):
    search(overview, typed)
    wait_for(overview, "saeVis.overview.rows().length", len(matches(features, text, kinds)))
    assert ids(overview) == matches(features, text, kinds)


def test_an_id_is_found(overview):
    search(overview, "12")
    expect(overview.page.locator(".hit-group").first).to_contain_text("12")
    assert 12 in ids(overview)
    overview.page.keyboard.press("Enter")
    expect_feature(overview.page, 12)
    expect(overview.page.locator(".search-box")).to_have_value("")


def test_a_feature_that_is_chosen_among_the_hits_leaves_the_focus_in_the_box(show, document):
    opened = show(document)
    search(opened, "12")
    hit = opened.page.locator(".hit-group .hit").first
    expect(hit).to_have_text("12")
    opened.page.keyboard.press("ArrowDown")
    expect(hit).to_be_focused()
    opened.page.keyboard.press("Enter")
    expect_feature(opened.page, 12)
    expect(opened.page.locator(".search-box")).to_be_focused()
    expect(opened.page.locator(".search-hits")).to_be_hidden()


def test_what_is_found_is_told_aloud_beside_a_feature(show, document, features):
    opened = show(document)
    spoken = opened.page.locator(".spoken")
    search(opened, "label:import")
    expect(spoken).to_have_text(f"{len(matches(features, 'import', ('label',)))} features")
    search(opened, '"return returned xyzzy"')
    expect(spoken).to_have_text("Nothing found")
    opened.go("#overview")
    expect_overview(opened.page)
    search(opened, "label:xyzzy")  # the table's own count is told
    expect(opened.page.locator(".overview-count")).to_have_text(f"0 of {N} features")
    expect(spoken).to_have_text("Nothing found")


def test_kinds_of_hits_are_told_apart_with_their_counts(overview, features):
    search(overview, "name")
    groups = overview.page.locator(".hit-group h3")
    expect(groups.first).to_have_text("fires on")
    assert overview.texts(".hit-group h3")[:3] == ["fires on", "promotes", "suppresses"]
    html = {overview.js(f"saeVis.overview.tokenHtml({i})"): i for i in features.vocab if "name" in features.vocab[i]}
    for group, kind in enumerate(("fires", "promotes", "suppresses")):
        shown = overview.js(f"""[...document.querySelectorAll('.hit-group')[{group}].querySelectorAll('.hit')]
          .map((hit) => [hit.firstChild.innerHTML, Number(hit.lastChild.textContent)])""")
        counts = Counter(token for feature in features.values() for token in lists_of(feature)[kind])
        assert shown
        assert [counts[html[text]] for text, _ in shown] == [count for _, count in shown]
        exact = [features.vocab[html[text]].strip() == "name" for text, _ in shown]
        assert exact == sorted(exact, reverse=True)


def test_a_choice_becomes_a_filter_and_the_next_narrows_it(overview, features):
    search(overview, "label:import")
    expect(overview.page.locator(".hit")).to_have_count(1)
    overview.page.keyboard.press("ArrowDown")
    overview.page.keyboard.press("Enter")
    expect(overview.page.locator(".chip")).to_have_text("label contains “import”×")
    assert ids(overview) == matches(features, "import", ("label",))
    expect(overview.page.locator(".search-box")).to_have_value("")
    assert overview.js("document.activeElement.className").startswith("overview-row")
    overview.page.get_by_role("button", name="Remove the filter").click()
    assert len(ids(overview)) == N


def in_examples(features, text):
    """The features one of whose examples holds a text, by the plainest code."""
    spelled = lambda s: "".join(features.vocab[i] for i in s.token_ids).lower()  # noqa: E731
    return with_features(features, lambda f: any(text in spelled(s) for g in f.sequences.groups for s in g.sequences))


def phrase(features, length, seed):
    """Some tokens that stand beside each other in an example, none of them part of a character."""
    rng = random.Random(seed)
    sequences = [s for f in features.values() for g in f.sequences.groups for s in g.sequences]
    while True:
        sequence = rng.choice(sequences)
        at = rng.randrange(max(1, len(sequence.token_ids) - length))
        chosen = sequence.token_ids[at : at + length]
        text = "".join(features.vocab[i] for i in chosen)
        if (
            not features.vocab_bytes.keys() & set(chosen)
            and text.isprintable()
            and text == text.strip()
            and '"' not in text
        ):
            return text.lower()


@pytest.mark.parametrize(("length", "cut"), [(1, 0), (2, 0), (3, 0), (3, 1), (4, 2)])
def test_a_phrase_is_found_in_the_examples_that_hold_it(length, cut, overview, features):
    text = phrase(features, length, seed=length + cut)
    text = text[cut : len(text) - cut].strip() or text
    search(overview, f'"{text}"')
    expected = in_examples(features, text)
    assert expected
    wait_for(
        overview,
        "[...saeVis.overview.rows()].map((row) => saeVis.overview.ids[row]).join()",
        ",".join(map(str, expected)),
    )


def test_a_phrase_that_is_kept_is_the_one_that_was_searched(overview, features):
    """With the space before it."""
    words = [" ", "".join(features.vocab[i] for i in features[0].sequences.groups[0].sequences[0].token_ids).strip()]
    text = next(f" {word}" for word in words[1].lower().split() if word.isalpha())
    expected = in_examples(features, text)
    search(overview, f'"{text}"')
    expect(overview.page.locator(".hit-group .hit")).to_have_text(f"“{text}”")
    overview.page.locator(".hit").click()
    expect(overview.page.locator(".chip")).to_contain_text(f"“{text}”")
    row_ids = "[...saeVis.overview.rows()].map((row) => saeVis.overview.ids[row]).join()"
    wait_for(overview, row_ids, ",".join(map(str, expected)))
    wait_for(overview, "document.activeElement.className.startsWith('overview-row')")


def test_a_filter_of_a_phrase_stays_away_once_it_is_removed_and_takes_no_focus(overview, features):
    """The examples may be read for seconds after it."""
    text = phrase(features, 3, seed=3)
    overview.js("""(() => {
      const { featureHtml } = saeVis;
      globalThis.held = new Promise((go) => { globalThis.go = go; });
      saeVis.featureHtml = async (id) => (await held, featureHtml(id));
    })()""")
    for _ in range(2):  # the same again while the first is read
        search(overview, f'"{text}"')
        overview.page.locator(".hit-group .hit").click()
        expect(overview.page.locator(".chip")).to_have_count(1)
    overview.page.get_by_role("button", name="Remove the filter").click()
    overview.page.locator(".search-box").focus()
    overview.js("go()")
    overview.page.wait_for_timeout(300)
    expect(overview.page.locator(".chip")).to_have_count(0)
    expect(overview.page.locator(".search-box")).to_be_focused()
    assert len(ids(overview)) == N


def test_an_id_with_zeros_before_it_is_that_feature(overview):
    for typed in ("012", "id:012"):
        search(overview, typed)
        expect(overview.page.locator(".hit-group .hit").first).to_have_text("12")
        expect(overview.page.locator(".hit-summary")).to_have_text("1 feature")
        assert ids(overview) == [12]


def test_a_phrase_that_is_nowhere_is_found_nowhere(overview):
    search(overview, '"return returned xyzzy"')
    expect(overview.page.locator(".overview-none")).to_be_visible()
    assert ids(overview) == []


def test_what_is_said_of_a_search_is_what_was_done(overview, features):
    said = overview.page.locator(".hit-summary")
    for typed in ("fires:xyzzy", "label:xyzzy", "id:99999"):
        search(overview, typed)
        expect(said).to_have_text("0 features")
        assert ids(overview) == []
    search(overview, '"return returned xyzzy"')
    expect(said).to_have_text("Nothing found")
    text = phrase(features, 3, seed=3)
    n = len(in_examples(features, text))
    search(overview, f"text:{text}")
    expect(said).to_have_text(f"{n} feature{'s show' if n > 1 else ' shows'} it in examples")


def test_the_end_of_a_line_is_searched_as_the_page_shows_it(overview, features):
    search(overview, "fires:↵")
    expected = matches(features, "\n", ("fires",))
    assert 0 < len(expected) < N
    wait_for(overview, "saeVis.overview.rows().length", len(expected))
    assert ids(overview) == expected


def test_a_letter_typed_on_a_hit_goes_on_with_the_search_and_does_nothing_else(show, document):
    opened = show(document)
    search(opened, "import")
    expect(opened.page.locator(".hit").first).to_be_visible()
    for letter in "jsok?":
        opened.page.keyboard.press("ArrowDown")
        assert opened.js("document.activeElement.className") == "hit"
        opened.page.keyboard.press(letter)
        search(opened, opened.js("document.querySelector('.search-box').value")[:6])
    expect(opened.page.locator("article.feature")).to_be_visible()
    assert opened.js("[document.querySelector('article.feature').dataset.feature, saeVis.stars.size]") == ["0", 0]
    opened.page.keyboard.press("ArrowDown")
    opened.page.keyboard.press("j")
    expect(opened.page.locator(".search-box")).to_have_value("importj")


def test_phrases_are_read_in_the_examples_wherever_their_panel_is(features, show):
    text = phrase(features, 3, seed=3)
    for columns in ([Column("counterexamples", "sequences")], [Column("activations_histogram")]):
        opened = ready(show(features.get_html(layout=Layout(columns)), ""))
        search(opened, f"text:{text}")
        expect(opened.page.locator(".hit-summary")).to_contain_text("it in examples")
        assert set(in_examples(features, text)) <= set(ids(opened))


def test_a_character_of_several_tokens_is_found(overview, features):
    violin = "🎻".encode()
    pieces = {i: bytes.fromhex(text) for i, text in features.vocab_bytes.items()}
    text_of = lambda s: b"".join(pieces.get(i, features.vocab[i].encode()) for i in s.token_ids)  # noqa: E731
    expected = with_features(
        features, lambda f: any(violin in text_of(s) for g in f.sequences.groups for s in g.sequences)
    )
    assert expected
    search(overview, "text:🎻")
    wait_for(
        overview,
        "[...saeVis.overview.rows()].map((row) => saeVis.overview.ids[row]).join()",
        ",".join(map(str, expected)),
    )


# Tokens as a byte-level tokenizer has them where a character is rare: parts of É, of é and of Ж, beside whole ones.
PARTS = ["c3", "89", "a9", "7420c3", "89e2", "d0", "96", "b6", "4fc389"]


@pytest.fixture(scope="module")
def in_bytes():
    """Features whose examples spell a text in tokens that are parts of characters, each its own, and that text."""
    features = make_features(12, dead=(), first_group_size=2, n_groups=0)
    first = max(features.vocab) + 1
    part = {text: first + at for at, text in enumerate(PARTS)}
    cole, word = first + len(PARTS), first + len(PARTS) + 1
    features.vocab |= {**dict.fromkeys(part.values(), "\ufffd"), cole: "cole", word: "École"}
    features.vocab_bytes |= {token: text for text, token in part.items()}
    spelled = {
        0: [part["c3"], part["89"], cole],  # École
        1: [part["c3"], part["a9"], cole],  # école
        2: [part["7420c3"], part["89"], cole],  # "t École"
        3: [word],
        4: [part["c3"], part["89"], part["c3"], part["a9"]],  # Éé
        5: [part["d0"], part["96"], part["d0"], part["b6"]],  # Жж
        6: [part["c3"], cole, part["89"]],  # none of it
        7: [part["4fc389"], cole],  # OÉcole
        8: [part["c3"], part["89e2"], cole],  # Éâ…, cut off
    }
    for index, ids in spelled.items():
        sequence = features.feature_data_dict[index].sequences.groups[0].sequences[0]
        sequence.token_ids[: len(ids)] = ids
    return features.get_html()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("école", [0, 1, 2, 3, 7]),
        ("École", [0, 1, 2, 3, 7]),
        ("éc", [0, 1, 2, 3, 7]),
        ("t école", [2]),
        ("éé", [4]),
        ("жж", [5]),
        ("oéc", [7]),
        ("écolé", []),
    ],
)
def test_an_upper_case_letter_of_several_tokens_is_found_by_its_lower_case(text, expected, show, in_bytes):
    opened = ready(show(in_bytes, ""))
    search(opened, f"text:{text}")
    found = "[...saeVis.overview.rows()].map((row) => saeVis.overview.ids[row]).join()"
    wait_for(opened, found, ",".join(map(str, expected)))


def test_a_slash_goes_to_the_search_from_a_feature(show, document):
    opened = show(document)
    opened.page.keyboard.press("/")
    opened.page.keyboard.type("label:import")
    expect(opened.page.locator(".hit")).to_have_count(1)
    expect(opened.page.locator("article.feature")).to_be_visible()
    opened.page.keyboard.press("Enter")
    expect_overview(opened.page)
    assert ids(opened) == [5, 6]
    opened.page.keyboard.press("/")
    opened.page.keyboard.press("Escape")
    opened.page.keyboard.press("Escape")
    wait_for(opened, "saeVis.overview.rows().length", N)


@pytest.mark.parametrize("text", ["<img src=x onerror=alert(1)>", "</script>", "{{ x }}", "\u202e&amp;"])
def test_hostile_text_is_found_as_text(text, show):
    features, _ = data_with_text(text)
    opened = ready(show(features.get_html(), ""))
    search(opened, text)
    expect(opened.page.locator(".hit-group h3").first).to_have_text("fires on")
    assert ids(opened) == list(features)
    expect(opened.page.locator("img")).to_have_count(0)


# --- a site, a whole dictionary ----------------------------------------------------------------------------------------


def test_a_site_finds_the_same(chromium, features, tmp_path):
    features.save_site(tmp_path / "site")
    context = chromium.new_context(offline=True)
    try:
        opened = browser.Opened(context, tmp_path / "site" / "index.html").go()
        ready(opened)
        expect_overview(opened.page)
        assert not any("features/" in fault for fault in opened.faults)
        text = phrase(features, 3, seed=9)
        search(opened, f'"{text}"')
        wait_for(opened, "saeVis.overview.rows().length", len(in_examples(features, text)))
        opened.page.locator(".search-box").fill("")
        opened.page.locator(ROW).nth(2).click()
        expect_feature(opened.page, 2)
        assert not [fault for fault in opened.faults if not fault.startswith("request: file://")]
    finally:
        context.close()


@pytest.fixture(scope="module")
def whole_dictionary():
    """A page whose overview holds a whole dictionary, each feature with its own numbers and tokens; one can be read."""
    few = make_features(64, first_group_size=8, n_groups=2, other_groups_size=3)
    rng = random.Random(0)
    made = [feature for feature in few.values() if feature.activations.max]
    overview = _overview.Overview()
    common = list(few.vocab)
    for index in range(WHOLE):
        feature = rng.choice(made)
        acts = dataclasses.replace(
            feature.activations, density=10 ** -rng.uniform(1, 5), max=rng.expovariate(0.3) + 0.01
        )
        tokens = rng.sample(common, 10)
        logits = dataclasses.replace(feature.logits, top_token_ids=tokens, bottom_token_ids=rng.sample(common, 10))
        overview.add(dataclasses.replace(feature, feature_idx=index, activations=acts, logits=logits))
    page = few._context()
    vocab = vocab_of(page, few.vocab)
    assets = overview_assets(overview, page, vocab)
    body = features_body(page, 0, made[0].get_html(page), WHOLE)
    elements = [
        _page.data("vocab", vocab),
        _page.data("index", {"ranges": [[0, WHOLE - 1]], "labels": {}, "title": "whole"}),
        *(_page.packed_asset(name, text) for name, text in assets.items()),
    ]
    return _page.document("whole", body, elements)


MOST_MS = 100


def fastest(opened, action, times=12):
    """Milliseconds of the fastest of some runs, to the next frame's work; on a busy machine the first ones may be slow."""
    return opened.js(f"""(async () => {{
      let least = Infinity;
      for (let i = 0; i < {times} && least >= {MOST_MS}; i++) {{
        const start = performance.now();
        await ({action})(i);
        least = Math.min(least, performance.now() - start);
      }}
      return least;
    }})()""")


@pytest.mark.timed
def test_a_whole_dictionary_is_fast(show, whole_dictionary, record_property):
    opened = ready(show(whole_dictionary, ""))
    expect(opened.page.locator(ROW).first).to_be_visible()
    key = """async () => {
      const box = document.querySelector(".search-box");
      box.value = "TYPED"; box.dispatchEvent(new Event("input"));
      await new Promise((resolve) => setTimeout(resolve));
    }"""
    opened.page.locator(".search-box").focus()
    opened.js("new Promise((resolve) => setTimeout(resolve, 300))")
    took = {
        "sort": fastest(opened, "(i) => saeVis.overview.sortBy('max', i % 2 === 0)"),
        "sort by text": fastest(opened, "(i) => saeVis.overview.sortBy('promoted', i % 2 === 0)"),
        "scroll": fastest(
            opened,
            """async (i) => {
          document.querySelector(".overview-scroll").scrollTop = 100_000 * (i + 1);
          await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
        }""",
        ),
        "filter": fastest(opened, "(i) => saeVis.overview.setFilter('a', (row) => row % (i + 2) === 0)"),
        **{f"search {typed}": fastest(opened, key.replace("TYPED", typed)) for typed in ("e", "na", "name")},
    }
    for name, ms in took.items():
        record_property(name, ms)
    print(json.dumps(took))
    assert max(took.values()) < MOST_MS, took
    assert opened.js(f"document.querySelectorAll({ROW!r}).length") < 80
    assert opened.texts(".hit-group h3")[:3] == ["fires on", "promotes", "suppresses"]
