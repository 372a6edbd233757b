"""Both pages and a site in a real Chromium as axe-core, a keyboard, a screen reader and colour-blind eyes find them."""

from __future__ import annotations

import dataclasses
import itertools

import axe
import browser
import colours
import pytest
from rendering_fixtures import make_comparison, make_features, make_prompt
from test_browser import CONTRAST, expect_feature
from test_browser_site import visit  # noqa: F401

from sae_vis._params import Column, Layout

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("accessibility")]  # one browser for all

if browser.sync_playwright:
    from playwright.sync_api import expect

WIDE, NARROW = (1400, 900), (400, 800)
THEMES = pytest.mark.parametrize("theme", ["light", "dark"])
LOOKS = pytest.mark.parametrize(
    ("theme", "size"), [("light", WIDE), ("dark", NARROW)], ids=["wide light", "narrow dark"]
)
ACT_SCALES = ["orange", "blue", "viridis", "grey"]
LOSS_SCALES = ["blue-red", "purple-green", "teal-orange"]
LEVELS = [place / 20 for place in range(21)]


@pytest.fixture(scope="module")
def features():
    features = make_features(6, dead=(3,), first_group_size=4, n_groups=2, other_groups_size=2)
    features.feature_data_dict[5].label = "import statements"
    features[1].feature_tables.correlated_features.indices[:] = [4, 900, 2]
    return features


@pytest.fixture(scope="module")
def features_page(features):
    return features.get_html()


@pytest.fixture(scope="module")
def prompt_page():
    return make_prompt(10, first_group_size=4).get_html(seq_pos=5, score_name="act_size")


@pytest.fixture(scope="module")
def comparison_page():
    return make_comparison(12, first_group_size=4).get_html(pair=3, score_name="act_size")


def hover(opened):
    """The hover text of a token is on the page."""
    opened.page.locator(".seq > .b").first.hover()
    expect(opened.page.get_by_role("tooltip")).to_be_visible()


# --- axe-core ----------------------------------------------------------------------------------------------------


def test_axe_finds_what_is_wrong(show):
    wrong = '<!doctype html><html lang="en"><title>x</title><main><h1>x</h1><p style="color: #bbb">faint</p><input>'
    found = {text.partition(":")[0] for text in axe.violations(show(wrong))}
    assert found == {"color-contrast", "label"}


@LOOKS
def test_axe_finds_nothing_wrong_with_a_feature(show, features_page, theme, size):
    opened = show(features_page, "#feature=1", size=size, color_scheme=theme)
    expect_feature(opened.page, 1)
    assert axe.violations(opened) == []
    hover(opened)
    assert axe.violations(opened) == []
    opened.js("saeVis.say('Something is said.')")
    assert axe.violations(opened) == []
    opened.page.keyboard.press("k")
    opened.page.keyboard.press("?")
    expect(opened.page.get_by_role("dialog", name="Keys")).to_be_visible()
    assert axe.violations(opened) == []


@LOOKS
def test_axe_finds_nothing_wrong_with_a_prompt(show, prompt_page, theme, size):
    opened = show(prompt_page, size=size, color_scheme=theme)
    assert axe.violations(opened) == []
    hover(opened)
    assert axe.violations(opened) == []


@LOOKS
def test_axe_finds_nothing_wrong_with_two_prompts(show, comparison_page, theme, size):
    opened = show(comparison_page, size=size, color_scheme=theme)
    assert axe.violations(opened) == []
    opened.page.locator(".heat td[data-text]").first.hover()
    expect(opened.page.locator(".heat-tip")).to_be_visible()
    assert axe.violations(opened) == []
    opened.page.locator(".seqs:not(.prompt) .seq").first.press("Enter")
    expect(opened.page.locator(".whole .tokens")).to_be_visible()
    assert axe.violations(opened) == []


@THEMES
def test_axe_finds_nothing_wrong_with_a_feature_that_never_fires(show, features_page, theme):
    opened = show(features_page, "#feature=3", color_scheme=theme)
    expect_feature(opened.page, 3)
    assert axe.violations(opened) == []


@LOOKS
def test_axe_finds_nothing_wrong_with_the_overview(show, features_page, theme, size):
    opened = show(features_page, "#overview", size=size, color_scheme=theme)
    expect(opened.page.get_by_role("grid", name="Features").get_by_role("row").nth(2)).to_be_visible()
    assert axe.violations(opened) == []


@THEMES
def test_axe_finds_nothing_wrong_with_the_menu(show, features_page, theme):
    opened = show(features_page, color_scheme=theme)
    opened.page.get_by_role("button", name="View").click()
    assert axe.violations(opened) == []


def test_axe_finds_nothing_wrong_with_other_pages(show, features):
    assert axe.violations(show(features[2].get_html())) == []
    empty = type(features)(
        {}, features.vocab, features.vocab_bytes, features.rows, features.params, features.provenance
    )
    assert axe.violations(show(empty.get_html())) == []


@THEMES
def test_axe_finds_nothing_wrong_with_a_site(visit, features, tmp_path, theme):  # noqa: F811
    features.save_site(tmp_path / "site")
    opened = visit(tmp_path / "site", "#feature=1", color_scheme=theme)
    expect_feature(opened.page, 1)
    hover(opened)
    assert axe.violations(opened) == []


@pytest.fixture(scope="module")
def real_pages():
    """Three features of the bundled model with every panel that there is, a prompt and a comparison of two."""
    from sae_vis import FeatureVisParams, compare_prompts, get_feature_data, get_prompt_data, load_demo
    from sae_vis._demo import PROMPT

    demo = load_demo()
    fvp = FeatureVisParams(
        hook_point=demo.hook_point, features=(0, 1, 2), ablation=("direct", "full"), n_groups=3, verbose=False
    )
    data = get_feature_data(demo.encoder, demo.model, demo.tokens[:48], fvp, demo.encoder_B)
    first = next(i for i, feature in data.items() if feature.activations.n_active > 50)
    return {
        "features": data.get_html(feature=first),
        "prompt": get_prompt_data(demo.encoder, demo.model, PROMPT, data).get_html(),
        "comparison": compare_prompts(demo.encoder, demo.model, PROMPT, PROMPT.replace("_", " "), data).get_html(),
    }


@THEMES
@pytest.mark.parametrize(("name", "fragment"), [("features", "#overview"), ("prompt", ""), ("comparison", "")])
def test_axe_finds_nothing_wrong_with_other_views_of_real_data(show, real_pages, theme, name, fragment):
    opened = show(real_pages[name], fragment, color_scheme=theme)
    expect(opened.page.locator("main:visible, [role=main]:visible").first).to_be_visible()
    assert axe.violations(opened) == []


@THEMES
def test_axe_finds_nothing_wrong_with_what_can_be_opened(show, real_pages, theme):
    """Every panel of a real feature, and one after the other what opens over it."""
    opened = show(real_pages["features"], color_scheme=theme)
    assert axe.violations(opened) == []
    page, first = opened.page, opened.page.locator(".seq").first
    first.press("Enter")
    expect(page.locator(".whole")).to_be_visible()
    assert axe.violations(opened) == []
    first.press("m")
    expect(page.get_by_role("menu").or_(page.get_by_role("dialog")).first).to_be_visible()
    assert axe.violations(opened) == []
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Star").first.click()
    page.locator(".said button").last.click()
    expect(page.get_by_role("textbox").first).to_be_visible()
    assert axe.violations(opened) == []


# --- colours -----------------------------------------------------------------------------------------------------


def chosen(opened, **settings):
    for name, value in settings.items():
        assert opened.js(f"saeVis.choose({name.replace('_', '-')!r}, {value!r})")


def color(opened, name):
    """A colour of a custom property, whatever its notation."""
    return opened.js(f"""((name) => {{
      const value = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
      const square = Object.assign(document.createElement("canvas"), {{ width: 1, height: 1 }});
      const canvas = square.getContext("2d", {{ willReadFrequently: true }});
      canvas.fillStyle = /^[\\d. ]+$/.test(value) ? `rgb(${{value}})` : value;
      canvas.fillRect(0, 0, 1, 1);
      return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
    }})({name!r})""")


# The tokens of one sequence at every strength: contrast of their text, of the marks in it, and how they look.
AT_LEVELS = """((levels, contrast) => {
  const sequence = [...document.querySelectorAll(".seq")].find((s) => s.children.length >= 3);
  sequence.replaceChildren(...levels.map((level) => {
    const token = document.createElement("span");
    token.innerHTML = "x<i>·</i><samp>E2</samp>";
    token.style.setProperty("--a", level);
    return token;
  }));
  sequence.classList.add("at-levels");
  const square = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
  const canvas = square.getContext("2d", { willReadFrequently: true });
  const shown = [...sequence.children].map((token) => {
    const paint = (color) => { canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1); };
    paint(getComputedStyle(document.body).backgroundColor);
    paint(getComputedStyle(token).backgroundImage.split("linear-gradient(").at(-1).match(/[a-z]+\\([^)]*\\)/)[0]);
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  });
  return { texts: contrast(".at-levels > span, .at-levels samp"), marks: contrast(".at-levels i"), shown };
})"""


@THEMES
@pytest.mark.parametrize("scale", ACT_SCALES)
def test_text_is_readable_on_every_strength_of_every_activation_scale(show, features_page, theme, scale):
    opened = show(features_page, color_scheme=theme)
    chosen(opened, act_scale=scale)
    found = opened.js(f"{AT_LEVELS}({LEVELS}, {CONTRAST})")
    assert len(found["texts"]) == 2 * len(found["marks"]) == 2 * len(LEVELS)
    assert min(ratio for ratio, *_ in found["texts"]) >= 4.5
    assert found["marks"][0][0] >= 4.5  # where a token is not coloured
    assert min(ratio for ratio, *_ in found["marks"]) >= 3  # signs, not letters


@THEMES
@pytest.mark.parametrize("scale", ACT_SCALES)
@pytest.mark.parametrize("deficiency", [None, *colours.DEFICIENCIES])
def test_more_activation_is_told_from_less_by_everyone(scale_of, theme, scale, deficiency):
    """Evenly: each quarter of the scale is a clear step, and each step of a twentieth leads away from the paper's lightness."""
    shown = scale_of(theme, scale)
    quarters = shown[::5]
    steps = [colours.distance(a, b, deficiency) for a, b in itertools.pairwise(quarters)]
    assert min(steps) > 5
    lightness = [colours.lab(colours.seen(color, deficiency))[0] for color in shown]
    assert lightness == sorted(lightness, reverse=theme == "light")
    assert colours.distance(shown[0], shown[-1], deficiency) > 30


@pytest.fixture(scope="module")
def scale_of(chromium, features_page, tmp_path_factory):
    """A function that gives the colours of a scale, none to most."""
    found = {}
    with browser.opener(chromium, tmp_path_factory.mktemp("scales")) as show:
        for theme in ("light", "dark"):
            opened = show(features_page, color_scheme=theme)
            for scale in ACT_SCALES:
                chosen(opened, act_scale=scale)
                found[theme, scale] = opened.js(f"{AT_LEVELS}({LEVELS}, {CONTRAST})")["shown"]
    return lambda theme, scale: found[theme, scale]


@THEMES
@pytest.mark.parametrize("scale", LOSS_SCALES)
def test_what_helps_is_told_from_what_hurts_by_everyone(show, features_page, theme, scale):
    opened = show(features_page, color_scheme=theme)
    chosen(opened, loss_scale=scale)
    helps, hurts, paper, raised, text = (
        color(opened, name) for name in ("--blue", "--red", "--paper", "--raised", "--text")
    )
    for deficiency in (None, *colours.DEFICIENCIES):
        assert colours.distance(helps, hurts, deficiency) > 30, deficiency
        assert min(colours.distance(one, paper, deficiency) for one in (helps, hurts)) > 30, deficiency
    for one in (helps, hurts):
        assert min(colours.contrast(one, ground) for ground in (paper, raised)) >= 4.5
        for level in LEVELS:  # the tables of logit weights
            ground = colours.over(one, 0.45 * level, paper)
            assert colours.contrast(text, ground) >= 4.5
            assert colours.contrast(colours.over(text, 0.88, ground), ground) >= 4.5  # the marks there


HEAT_AT_LEVELS = """((levels) => {
  const cell = document.querySelector(".heat td");
  const square = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
  const canvas = square.getContext("2d", { willReadFrequently: true });
  return levels.map((level) => {
    cell.className = level < 0 ? "lowers" : level > 0 ? "raises" : "";
    cell.style.setProperty("--s", Math.abs(level));
    for (const color of [getComputedStyle(document.body).backgroundColor, getComputedStyle(cell).backgroundColor]) {
      canvas.fillStyle = color;
      canvas.fillRect(0, 0, 1, 1);
    }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  });
})"""


@THEMES
@pytest.mark.parametrize("scale", LOSS_SCALES)
def test_differences_are_told_from_none_and_by_their_sign_by_everyone(show, comparison_page, theme, scale):
    """From the lowest through zero to the highest: each step is a clear one, and strength grows with the distance from zero."""
    opened = show(comparison_page, color_scheme=theme)
    chosen(opened, loss_scale=scale)
    shown = opened.js(f"{HEAT_AT_LEVELS}({[place / 4 for place in range(-4, 5)]})")
    for deficiency in (None, *colours.DEFICIENCIES):
        steps = [colours.distance(a, b, deficiency) for a, b in itertools.pairwise(shown)]
        assert min(steps) > 5, deficiency
        from_none = [colours.distance(shown[4], one, deficiency) for one in shown]
        assert from_none[:5] == sorted(from_none[:5], reverse=True)
        assert from_none[4:] == sorted(from_none[4:])
        for less, more in zip(shown[:3], reversed(shown[6:]), strict=True):
            assert colours.distance(less, more, deficiency) > 10, deficiency


def test_the_simulation_tells_apart_what_it_should():
    """Red and green of one lightness are one colour to people without red or green cones; blue and yellow are not."""
    red, green, blue, yellow = (200, 80, 60), (110, 125, 50), (60, 90, 220), (220, 200, 40)
    assert colours.distance(red, green) > 50
    assert colours.distance(red, green, "deuteranopia") < 25
    for deficiency in ("protanopia", "deuteranopia"):
        assert colours.distance(blue, yellow, deficiency) > 80
    assert colours.contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert colours.lab(colours.seen((255, 255, 255), None))[0] == pytest.approx(100)


# --- settings ----------------------------------------------------------------------------------------------------


def paper(opened):
    return opened.js("getComputedStyle(document.body).backgroundColor")


DARK_PAPER, LIGHT_PAPER = "rgb(21, 24, 28)", "rgb(255, 255, 255)"


def test_the_theme_is_the_systems_until_one_is_chosen(show, features_page):
    opened = show(features_page, color_scheme="light")
    page = opened.page
    assert paper(opened) == LIGHT_PAPER
    page.emulate_media(color_scheme="dark")
    assert paper(opened) == DARK_PAPER
    for choice, expected in (
        ("Light", LIGHT_PAPER),
        ("Dark", DARK_PAPER),
        ("System", DARK_PAPER),
        ("Light", LIGHT_PAPER),
    ):
        page.get_by_role("button", name="View").click()
        page.get_by_role("radiogroup", name="Theme").get_by_role("radio", name=choice).click()
        page.keyboard.press("Escape")
        assert paper(opened) == expected
    page.emulate_media(color_scheme="light")
    assert paper(opened) == LIGHT_PAPER
    chosen(opened, theme="dark")
    assert paper(opened) == DARK_PAPER
    assert opened.js("getComputedStyle(document.documentElement).colorScheme") == "dark"
    chosen(opened, theme="system")
    assert paper(opened) == LIGHT_PAPER


FIRST_FRAME = """addEventListener("DOMContentLoaded", () => {
  globalThis.atFirst = [getComputedStyle(document.body).backgroundColor, document.documentElement.dataset.actScale];
}, { capture: true });"""


KEEP = "if (location.protocol === 'file:') Object.assign(localStorage, %s);"


def test_choices_are_kept_and_hold_before_anything_is_painted(show, features_page):
    opened = show(features_page, color_scheme="light", init=FIRST_FRAME)
    assert opened.js("atFirst") == [LIGHT_PAPER, "orange"]
    chosen(opened, theme="dark", act_scale="viridis", loss_scale="teal-orange")
    kept = opened.js("JSON.stringify(localStorage)")
    # No reload: a busy Chromium loses now and then, even for good, what a page from disk stored right before one, as it does
    # with a page of a single line of script. Another page gets the same storage instead.
    opened = show(features_page, color_scheme="light", init=f"{KEEP % kept} {FIRST_FRAME}")
    assert opened.js("atFirst") == [DARK_PAPER, "viridis"]
    assert opened.js("saeVis.chosen('loss-scale')") == "teal-orange"
    assert colours.distance(color(opened, "--red"), (240, 140, 60)) < 1


@pytest.mark.parametrize("kept", ["{", '"no such"', "7", "null", '["dark"]', '{"a": 1}'])
def test_anything_else_in_the_storage_is_no_choice(show, features_page, kept):
    init = f"if (location.protocol === 'file:') localStorage.setItem('sae_vis:view:theme', {kept!r}); {FIRST_FRAME}"
    opened = show(features_page, color_scheme="light", init=init)
    assert opened.js("atFirst") == [LIGHT_PAPER, "orange"]
    assert opened.js("saeVis.chosen('theme')") == "system"


def test_the_prompt_has_the_same_choices(show, prompt_page):
    opened = show(prompt_page, color_scheme="light")
    chosen(opened, theme="dark", act_scale="grey")
    assert paper(opened) == DARK_PAPER
    opened.page.get_by_role("button", name="View").click()
    for name in ("Theme", "Activations", "Loss"):
        expect(opened.page.get_by_role("radiogroup", name=name, exact=True)).to_be_visible()


# --- the keyboard ------------------------------------------------------------------------------------------------


def test_j_and_k_step_through_the_features(show, features_page):
    page = show(features_page).page
    for key, feature in (("k", 0), ("j", 1), ("j", 2), ("k", 1), ("ArrowRight", 2), ("ArrowLeft", 1)):
        page.keyboard.press(key)
        expect_feature(page, feature)


def test_s_stars_the_feature_and_takes_the_star_away(show, features_page):
    opened = show(features_page, "#feature=1")
    expect_feature(opened.page, 1)
    for starred in ([1], []):
        opened.page.keyboard.press("s")
        assert opened.js("[...saeVis.stars]") == starred


@pytest.mark.parametrize("pressed", ["Control+j", "Alt+j", "Meta+j", "Shift+J", "x"])
def test_keys_of_somebody_else_are_left_alone(show, features_page, pressed):
    opened = show(features_page)
    opened.js("addEventListener('keydown', (event) => { globalThis.prevented = event.defaultPrevented; })")
    opened.page.keyboard.press(pressed)
    assert opened.js("prevented") is False
    expect_feature(opened.page, 0)


def test_what_is_typed_is_no_key(show, features_page):
    page = show(features_page).page
    search = page.get_by_role("searchbox", name="Search the features")
    page.keyboard.press("/")
    expect(search).to_be_focused()
    for field in (search, page.get_by_role("combobox", name="Feature")):
        field.focus()
        page.keyboard.type("jkos/?")
        expect(field).to_have_value("jkos/?")
        expect(field).to_be_focused()
        expect(page.get_by_role("dialog")).to_have_count(0)
        expect(page.locator("article.feature")).to_be_visible()  # nor the overview
        expect(page.locator("article.feature")).to_have_attribute("data-feature", "0")


def test_the_help_lists_the_keys_and_gives_the_focus_back(show, features_page):
    opened = show(features_page)
    page, dialog = opened.page, opened.page.get_by_role("dialog", name="Keys")
    page.locator(".left-tables a").first.focus()
    before = opened.active
    page.keyboard.press("?")
    expect(dialog).to_be_visible()
    listed = opened.js("[...document.querySelectorAll('.help kbd')].map((key) => key.textContent)")
    assert {"?", "j", "k", "/", "←", "→", "Home", "Esc"} <= set(listed)
    assert all(opened.texts(".help dd"))
    for _ in range(4):  # the focus stays inside, or goes to the browser's own controls
        page.keyboard.press("Tab")
        assert opened.js(
            "document.activeElement === document.body || Boolean(document.activeElement.closest('dialog'))"
        )
    page.keyboard.press("j")
    page.keyboard.press("ArrowRight")
    expect(page.locator("article.feature")).to_have_attribute("data-feature", "0")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    assert opened.active == before
    page.get_by_role("button", name="Keys").click()  # by touch
    page.get_by_role("button", name="Close").click()
    expect(dialog).to_be_hidden()
    page.keyboard.press("j")
    expect_feature(page, 1)


def test_a_key_may_be_added_and_may_decline(show, features_page):
    opened = show(features_page)
    opened.js("""saeVis.key({ keys: ["x"], description: "Decline", view: "Mine", run: () => false });
      saeVis.key({ keys: ["x", "y"], description: "Count", view: "Mine", run: () => void globalThis.runs++ });
      globalThis.runs = 0;""")
    opened.page.keyboard.press("x")
    opened.page.keyboard.press("y")
    assert opened.js("runs") == 2
    opened.page.keyboard.press("?")
    help_text = opened.page.get_by_role("dialog", name="Keys")
    expect(help_text.get_by_role("heading", name="Mine")).to_be_visible()
    expect(help_text).to_contain_text("Count")


def test_the_focus_follows_a_feature_that_is_replaced(show, features_page):
    opened = show(features_page, "#feature=1")
    page = opened.page
    expect_feature(page, 1)
    page.locator(".left-tables a[data-go='4']").first.focus()
    page.keyboard.press("Enter")
    expect_feature(page, 4)
    assert opened.active == "H2 Feature 4"
    page.keyboard.press("j")
    expect_feature(page, 5)
    assert opened.active.startswith("H2 Feature 5")
    assert opened.texts(".spoken") == ["Feature 5, 6 of 6"] or "import statements" in opened.texts(".spoken")[0]
    page.locator(".previous").focus()
    page.keyboard.press("Enter")
    expect_feature(page, 4)
    assert opened.js("document.activeElement.matches('.previous')")  # what was outside keeps the focus


def test_the_first_tab_stop_skips_to_the_content(show, features_page, prompt_page):
    for document in (features_page, prompt_page):
        opened = show(document)
        opened.page.keyboard.press("Tab")
        skipper = opened.page.get_by_role("button", name="Skip to the content")
        expect(skipper).to_be_focused()
        opened.page.keyboard.press("Enter")
        assert opened.js("document.activeElement.tagName") == "MAIN"
        opened.page.keyboard.press("Tab")
        assert opened.js("Boolean(document.activeElement.closest('main'))")


LANDMARKS = """[...document.querySelectorAll("header.top, main, footer, nav, aside, section[aria-label]")].map(
  (e) => `${e.tagName} ${e.ariaLabel ?? ""}`)"""


def test_every_landmark_is_the_only_one_of_its_name(show, features_page, prompt_page, comparison_page):
    for document in (features_page, prompt_page, comparison_page):
        found = show(document).js(LANDMARKS)
        assert len(found) == len(set(found)) >= 4


def test_what_a_screen_reader_finds(show, features_page):
    opened = show(features_page, "#feature=1")
    expect_feature(opened.page, 1)
    expect(opened.page.get_by_role("banner")).to_match_aria_snapshot("""
      - banner:
        - button "Skip to the content"
        - heading [level=1]
        - paragraph
        - navigation "Features":
          - button "Previous feature"
          - text: Feature
          - combobox "Feature": "1"
          - button "Next feature"
          - text: 2 of 6
        - button "View"
        - button "Keys"
    """)
    article = opened.page.get_by_role("article", name="Feature 1")
    expect(article.get_by_role("heading", level=2, name="Feature 1")).to_be_visible()
    for name in ("Tables", "Examples"):
        expect(article.get_by_role("region", name=name)).to_be_visible()
    expect(article.get_by_role("group", name="Logits")).to_be_visible()
    assert article.get_by_role("img", name="Histogram").count() == 2
    table = article.get_by_role("table").first
    assert table.get_by_role("columnheader").count() == 3


# --- paper, and windows of every size ----------------------------------------------------------------------------

A4 = (703, 1030)  # px, without margins
# What does not fit, but for what can be scrolled.
CUT_OFF = """((width) => {
  const scrolls = (e) => e && (/auto|scroll/.test(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
  return [...document.querySelectorAll("main *")].filter((e) => e.getClientRects().length && !e.closest("svg, .unseen") &&
    e.getBoundingClientRect().right > width + 1 && !scrolls(e.parentElement)).map((e) => e.outerHTML.slice(0, 80));
})"""


def test_a_feature_prints_on_white_with_its_colours_and_without_controls(show, features_page):
    opened = show(features_page, "#feature=1", size=A4, color_scheme="dark")
    page = opened.page
    expect_feature(page, 1)
    page.keyboard.press("?")
    chosen(opened, theme="dark", act_scale="blue")
    for choice in ("dark", "system"):
        chosen(opened, theme=choice)
        page.emulate_media(media="print", color_scheme="dark")
        assert opened.js("getComputedStyle(document.documentElement).colorScheme") == "light"
        assert colours.distance(color(opened, "--paper"), (255, 255, 255)) < 1
        assert colours.luminance(color(opened, "--text")) < 0.05
        assert colours.distance(color(opened, "--act"), (79, 155, 232)) < 1
    for name in ("Keys", "View", "Next feature", "Skip to the content"):
        expect(page.get_by_role("button", name=name)).to_have_count(0)
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert opened.js("getComputedStyle(document.querySelector('.seq > .b')).printColorAdjust") == "exact"
    assert opened.js("document.documentElement.scrollWidth") <= A4[0]
    assert opened.js(f"{CUT_OFF}({A4[0]})") == []
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_what_scrolls_on_the_screen_is_whole_on_paper(show, features):
    params = dataclasses.replace(
        features.params, layout=Layout([Column("sequences"), Column("logits_tables")], height=200)
    )
    opened = show(dataclasses.replace(features, params=params).get_html(), size=A4)
    scrolls = "[...document.querySelectorAll('.column')].filter((c) => c.scrollHeight > c.clientHeight + 1).length"
    assert opened.js(scrolls) >= 1
    opened.page.emulate_media(media="print")
    assert opened.js(scrolls) == 0


@pytest.mark.parametrize("width", [320, 400, 1024, 3840])
def test_no_window_is_too_narrow_or_too_wide(show, features_page, prompt_page, comparison_page, width):
    for document, fragment in ((features_page, "#feature=1"), (prompt_page, ""), (comparison_page, "")):
        opened = show(document, fragment, size=(width, 900))
        expect(opened.page.locator("article").first).to_be_visible()
        assert opened.js("document.documentElement.scrollWidth") <= width
        assert opened.js(f"{CUT_OFF}({width})") == []
        opened.page.get_by_role("button", name="View").click()
        opened.page.keyboard.press("Escape")
        opened.page.get_by_role("button", name="Keys").click()
        (dialog,) = opened.boxes("dialog")
        assert dialog["left"] >= 0
        assert dialog["right"] <= width
        assert max(box["width"] for box in opened.boxes(".seq")) < 1200
        assert max(box["width"] for box in opened.boxes("footer, .notes p")) < 1300


def test_the_usual_windows_show_examples_in_two_columns(show, features_page):
    opened = show(features_page, "#feature=1")
    for width in (1280, 1366, 1440, 1536):
        opened.page.set_viewport_size({"width": width, "height": 800})
        assert len({box["left"] for box in opened.boxes(".group")}) == 2
        (tables,), (plots,) = opened.boxes(".has-feature-tables"), opened.boxes(".has-activations-histogram")
        below = tables["top"] > plots["bottom"] and tables["left"] == plots["left"]
        assert below == (width < 1500)


def test_a_wide_window_has_more_columns_of_groups(show, features_page):
    columns = []
    for width in (1000, 3840):
        opened = show(features_page, "#feature=1", size=(width, 900))
        expect_feature(opened.page, 1)
        columns.append(len({box["left"] for box in opened.boxes(".group")}))
    assert columns == [1, 3]  # as many as there are groups


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_forced_colours_leave_the_data_its_colours_and_its_text(show, features_page, theme):
    opened = show(features_page, "#feature=1", color_scheme=theme, forced_colors="active")
    expect_feature(opened.page, 1)
    assert opened.js("matchMedia('(forced-colors: active)').matches")
    style = "getComputedStyle(document.querySelector('{}')).{}"
    assert "linear-gradient" in opened.js(style.format(".seq > .b", "backgroundImage"))
    text, ground = (
        ("rgb(0, 0, 0)", "rgb(255, 255, 255)") if theme == "light" else ("rgb(255, 255, 255)", "rgb(0, 0, 0)")
    )
    assert opened.js(style.format("body", "backgroundColor")) == ground
    for selector in (".seq > .b", ".logits span"):
        assert opened.js(style.format(selector, "color")) == text
    assert opened.js(style.format(".plot text", "fill")) == text
    found = opened.js(f"{AT_LEVELS}({LEVELS}, {CONTRAST})")
    assert min(ratio for ratio, *_ in found["texts"]) >= 4.5


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_forced_colours_leave_the_heat_map_and_whole_rows_their_colours(show, comparison_page, theme):
    opened = show(comparison_page, color_scheme=theme, forced_colors="active")
    cells = "[...document.querySelectorAll('.heat td[data-text]')].map(c => getComputedStyle(c).backgroundColor)"
    assert len(set(opened.js(cells))) > 5
    opened.page.locator(".seqs:not(.prompt) .seq").first.press("Enter")
    expect(opened.page.locator(".whole .tokens .b")).to_be_visible()
    row = "getComputedStyle(document.querySelector('.whole .b'))"
    assert "linear-gradient" in opened.js(f"{row}.backgroundImage")
    assert opened.js(f"{row}.color") == ("rgb(0, 0, 0)" if theme == "light" else "rgb(255, 255, 255)")


def test_nothing_moves_for_those_who_asked_for_that(show, features_page):
    opened = show(features_page, reduced_motion="reduce")
    moving = """[...document.querySelectorAll("*")].filter((e) => {
      const { animationDuration, transitionDuration, scrollBehavior } = getComputedStyle(e);
      return parseFloat(animationDuration) > 0.001 || parseFloat(transitionDuration) > 0.001 || scrollBehavior === "smooth";
    }).length"""
    opened.js("document.body.style.cssText = 'transition: all 1s; scroll-behavior: smooth'")
    assert opened.js(moving) == 0


@pytest.mark.parametrize("fragment", ["#feature=1", "#overview"])
def test_nothing_to_press_or_to_fill_in_is_printed(show, features_page, fragment):
    opened = show(features_page, fragment, size=A4)
    expect(opened.page.locator(".seqs" if "feature" in fragment else ".overview-count")).to_be_visible()
    opened.page.emulate_media(media="print")
    visible = (
        "[...document.querySelectorAll('button, input, select, textarea')].filter((e) => e.getClientRects().length)"
    )
    assert (
        opened.js(
            f"{visible}.filter((e) => !e.closest('th, [role=columnheader]')).map((e) => e.outerHTML.slice(0, 120))"
        )
        == []
    )
    assert opened.js(f"{visible}.length") == (0 if "feature" in fragment else 4), "the names of the columns"
