"""Stars, labels and notes in a real Chromium, the files that carry them, and plots that are saved."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from copy import deepcopy

import browser
import pytest
from rendering_fixtures import make_features, make_prompt
from test_hostile_tokens import HOSTILE

from sae_vis import MultiFeatureData
from sae_vis._prompt_panels import PROMPT_HEAT, heat_rows

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser-labels")]  # one browser for all

if browser.sync_playwright:
    from playwright.sync_api import expect

FEW = {"first_group_size": 2, "n_groups": 1, "other_groups_size": 1, "n_bins": 8, "n_logits": 3}
BROKEN_STORAGE = "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('no') } })"


@pytest.fixture(scope="module")
def features():
    features = make_features(4, dead=(), **FEW)
    features[1].feature_tables.correlated_features.indices[:] = [0, 900, 2]
    return features


@pytest.fixture(scope="module")
def page(features):
    return features.get_html()


def edit(opened, label=None, note=None):
    opened.page.locator(".said .edit").click()
    if label is not None:
        opened.page.get_by_role("textbox", name="Label").fill(label)
    if note is not None:
        opened.page.get_by_role("textbox", name="Note").fill(note)
    opened.page.get_by_role("button", name="Done").click()


def go(opened, feature):
    opened.js(f"location.hash = '#feature={feature}'")
    expect(opened.page.locator("article.feature")).to_have_attribute("data-feature", str(feature))


def exported(opened):
    opened.page.get_by_role("button", name="View").click()
    with opened.page.expect_download() as download:
        opened.page.get_by_role("button", name="Export").click()
    opened.page.keyboard.press("Escape")
    return download.value.path()


def take_in(opened, content):
    opened.js(f"saeVis.importLabels({json.dumps(content)})")


def entry(features, said, **of):
    origin = {"model": "gelu-1l-code", "hook_point": "blocks.0.mlp.hook_post", "encoder": "1a2b3c4d5e6f7890"}
    return json.dumps({"format": "sae_vis labels", "version": 1, "of": origin | of, "features": said})


def test_a_label_set_in_the_browser_is_shown_everywhere_and_stays(show, page):
    opened = show(page)
    edit(opened, "commas, \u202eand more", "A note\nof two lines")
    assert opened.texts("h2 .label") == ["commas, [U+202E]and more"]
    assert opened.texts(".reader-note") == ["A note\nof two lines"]
    assert opened.texts("h2 .edited") == ["edited"]
    opened.reload()
    expect(opened.page.locator("h2 .label")).to_contain_text("commas")  # it is drawn after the page is there
    assert opened.texts("h2 .label") == ["commas, [U+202E]and more"]
    go(opened, 1)
    assert opened.texts("h2 .label") == ["Django model fields"]
    assert opened.texts("h2 .edited") == []
    assert opened.js("document.querySelector('a[data-go=\"0\"]').title").startswith("commas")
    field = opened.page.locator(".choose")
    field.fill("commas")
    assert opened.js("[...document.querySelectorAll('.choices option')].map(o => o.value)") == ["0"]
    field.press("Enter")
    expect(opened.page.locator("article.feature")).to_have_attribute("data-feature", "0")


def test_the_readers_label_wins_over_pythons_until_it_is_reset(show, page):
    opened = show(page, "#feature=1")
    edit(opened, "mine")
    assert opened.js("[saeVis.labelOf(1), saeVis.isEdited(1)]") == ["mine", True]
    assert "Django model fields" in opened.js("document.querySelector('.edited').title")
    edit(opened, "")
    assert opened.js("[saeVis.labelOf(1), saeVis.isEdited(1)]") == ["", True]
    opened.page.locator(".said .edit").click()
    opened.page.get_by_role("button", name="Reset").click()
    expect(opened.page.get_by_role("textbox", name="Label")).to_have_value("Django model fields")
    assert opened.js("[saeVis.labelOf(1), saeVis.isEdited(1)]") == ["Django model fields", False]
    assert opened.js("Object.keys(localStorage).filter(key => key.includes('labels'))") == []


def test_stars_are_a_set_and_each_change_is_told(show, page):
    opened = show(page)
    opened.js("globalThis.told = []; document.addEventListener('saevis:labels', e => told.push(e.detail.ids)); 0")
    star = opened.page.get_by_role("button", name="Star feature 0")
    star.focus()
    opened.page.keyboard.press("Enter")
    expect(star).to_have_attribute("aria-pressed", "true")
    expect(star).to_be_focused()
    go(opened, 2)
    opened.page.get_by_role("button", name="Star feature 2").click()
    assert opened.js("[[...saeVis.stars], told]") == [[0, 2], [[0], [2]]]
    opened.page.get_by_role("button", name="Star feature 2").click()
    assert opened.js("[...saeVis.stars]") == [0]
    opened.reload()
    assert opened.js("[...saeVis.stars]") == [0]


def test_the_overview_shows_the_readers_labels(show, page):
    opened = show(page, "#overview")
    row = opened.page.locator('[role="row"]:has([role="gridcell"] a[href="#feature=2"])')
    expect(row).to_be_visible()
    opened.js("saeVis.sayOf(2, { label: 'of the reader' })")
    expect(row).to_contain_text("of the reader")
    opened.js("saeVis.sayOf(2, { label: '' })")
    expect(row).not_to_contain_text("of the reader")


def test_keys_in_the_form_are_its_own(show, page):
    opened = show(page)
    opened.page.locator(".said .edit").focus()
    opened.page.keyboard.press("Enter")
    expect(opened.page.get_by_role("textbox", name="Label")).to_be_focused()
    opened.page.keyboard.type("/jk?")
    for key in ("Tab", "ArrowRight", "ArrowLeft", "ArrowRight"):
        opened.page.keyboard.press(key)
    assert opened.js("document.querySelector('article').dataset.feature") == "0"
    opened.page.keyboard.press("Escape")
    expect(opened.page.locator(".said .edit")).to_be_focused()
    assert opened.texts("h2 .label") == ["/jk?"]


def test_where_storage_throws_labels_last_as_long_as_the_page(show, page):
    opened = show(page, init=BROKEN_STORAGE)
    edit(opened, "kept for now")
    go(opened, 1)
    go(opened, 0)
    assert opened.texts("h2 .label") == ["kept for now"]
    opened.page.locator(".said .edit").click()
    assert "keeps nothing" in opened.texts(".say small")[0]


@pytest.mark.parametrize(
    "stored",
    ["5", "[]", '"x"', "not json", '{"0": 5, "1": {"label": 7, "star": "yes"}, "x": {"label": "y"}, "__proto__": {}}'],
)
def test_whatever_the_storage_holds_the_page_works(show, page, features, stored):
    opened = show(page)
    key = opened.js("`sae_vis:labels:${saeVis.data('index').key}`")
    opened.js(f"localStorage.setItem({json.dumps(key)}, {json.dumps(stored)})")
    opened.reload()
    assert opened.js("[saeVis.labelOf(0), saeVis.labelOf(1), saeVis.stars.size]") == ["", "Django model fields", 0]
    edit(opened, "works")
    assert opened.texts("h2 .label") == ["works"]


def test_two_pages_of_the_same_features_share_labels_and_others_do_not(show, features):
    keys = set()
    for data in (features.get_html(), make_prompt(first_group_size=3).get_html(), features[2].get_html()):
        opened = show(data)
        keys.add(opened.js("(saeVis.data('index') ?? saeVis.data('rankings')).key"))
    assert len(keys) == 1


def test_the_prompt_page_shows_and_keeps_what_is_said(show):
    prompt = make_prompt(first_group_size=3)
    prompt.prompt_data_dict[7].label = "of Python"
    opened = show(prompt.get_html(seq_pos=5, score_name="act_size"))
    assert opened.js("saeVis.labelOf(7)") == "of Python"
    first = opened.page.locator("article.feature").first
    feature = int(first.get_attribute("data-feature"))
    first.locator(".star").click()
    assert opened.js("[...saeVis.stars]") == [feature]
    opened.page.locator(".metrics button").nth(1).click()
    expect(opened.page.locator(f'article[data-feature="{feature}"] .star[aria-pressed="true"]')).to_have_count(1)


def test_the_heat_map_shows_the_readers_labels(show):
    prompt = make_prompt(10, first_group_size=2)
    prompt.heat_map = {name: heat_rows(of, 10, PROMPT_HEAT[name].best) for name, of in prompt.scores.items()}
    feature = prompt.heat_map["act_size"][0].feature_idx
    prompt.prompt_data_dict[feature].label = "of Python"
    opened = show(prompt.get_html(seq_pos=5, score_name="act_size"))
    row = opened.page.locator(f'.heat tr[data-feature="{feature}"]')
    expect(row.locator("bdi")).to_have_text(" of Python")
    opened.js(f"saeVis.sayOf({feature}, {{ label: 'mine' }})")
    expect(row.locator("bdi")).to_have_text(" mine")
    opened.reload()
    expect(row.locator("bdi")).to_have_text(" mine")
    row.locator("td").first.hover()
    expect(opened.page.locator(".heat-tip bdi")).to_have_text(" mine")
    opened.js(f"saeVis.sayOf({feature}, {{ label: undefined }})")
    expect(row.locator("bdi")).to_have_text(" of Python")


def test_a_label_of_a_feature_that_is_not_there_leads_nowhere(show, page):
    opened = show(page)
    opened.js("saeVis.sayOf(900, { label: 'elsewhere' })")
    opened.page.locator(".choose").fill("elsewhere")
    opened.page.keyboard.press("Enter")
    expect(opened.page.locator(".message")).to_contain_text("There is no feature “elsewhere” in this page")


# --- files -----------------------------------------------------------------------------------------------------------------


def test_what_a_browser_exports_python_reads_and_the_other_way_round(show, features, page, tmp_path):
    opened = show(page)
    edit(opened, "of the browser", "a note")
    opened.page.locator(".star").click()
    other = make_features(4, dead=(), **FEW)
    assert other.load_labels(exported(opened)) == []
    assert dict(other.labels) == {0: "of the browser", 1: "Django model fields"}
    assert (other[0].note, other[0].starred) == ("a note", True)
    other.labels[2] = "of Python"
    other.save_labels(tmp_path / "labels.json")
    fresh = show(page)
    fresh.page.get_by_role("button", name="View").click()
    with fresh.page.expect_file_chooser() as chooser:
        fresh.page.get_by_role("button", name="Import").click()
    chooser.value.set_files(tmp_path / "labels.json")
    expect(fresh.page.locator(".message")).to_contain_text("Taken over for 3 features.")
    assert fresh.js("[saeVis.labelOf(0), saeVis.noteOf(0), saeVis.labelOf(2), [...saeVis.stars]]") == [
        *("of the browser", "a note", "of Python", [0]),
    ]
    assert fresh.texts("h2 .label") == ["of the browser"]


@pytest.mark.parametrize("init", ["", BROKEN_STORAGE])
def test_of_two_changes_the_later_one_wins(show, features, page, init):
    opened = show(page, init=init)
    edit(opened, "now")
    said = {
        "0": {"label": "long ago", "changed": "2001-01-01T00:00:00.000Z"},
        "2": {"label": "two", "changed": "2001-01-01T00:00:00.000Z"},
        "3": {"label": "three"},
    }
    take_in(opened, entry(features, said))
    assert opened.js("[0, 1, 2, 3].map(saeVis.labelOf)") == ["now", "Django model fields", "two", "three"]
    assert "1 stay" in opened.texts(".message")[0]
    take_in(
        opened,
        entry(features, {"0": {"label": "later", "changed": "2999-01-01T00:00:00.000Z"}, "2": {"label": "no time"}}),
    )
    assert opened.js("[0, 1, 2, 3].map(saeVis.labelOf)") == ["later", "Django model fields", "two", "three"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nonsense", "no JSON"),
        ("null", "not a file of labels"),
        ('{"format": "sae_vis"}', "not a file of labels"),
        ('{"format": "sae_vis labels", "version": 2}', "another version"),
        (entry(None, {"0": {"label": "x"}}, encoder="other"), "the encoder differs"),
        ('{"format": "sae_vis labels", "version": 1, "of": "x", "features": {}}', "damaged"),
        ('{"format": "sae_vis labels", "version": 1, "of": {}, "features": [{"label": "x"}]}', "damaged"),
        ('{"format": "sae_vis labels", "version": 1, "of": {}, "features": "0"}', "damaged"),
        ('{"format": "sae_vis labels", "version": 1, "of": {}}', "damaged"),
        (entry(None, {"0": {"label": 5}, "1": "x", "2": {"star": 1}}), "0 features. 3 are damaged"),
        (entry(None, {"x": {"label": "x"}, "-1": {"label": "x"}}), "0 features. 2 are damaged"),
    ],
)
def test_a_foreign_file_changes_nothing_and_is_said(show, page, content, message):
    opened = show(page)
    take_in(opened, content)
    assert message in opened.texts(".message")[0]
    assert opened.js("saeVis.labelOf(0)") == ""


def test_a_file_of_more_than_the_page_or_the_browser_holds_is_said(show, features, page):
    opened = show(page)
    take_in(opened, entry(features, {"0": {"label": "zero"}, "99999": {"label": "elsewhere"}}))
    assert opened.texts(".message") == ["Taken over for 2 features. 1 of them is not in this page."]
    opened.js("Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); }")
    take_in(opened, entry(features, {"1": {"label": "one"}}))
    assert "gone when the page is closed" in opened.texts(".message")[0]
    assert opened.js("saeVis.labelOf(1)") == "one"


def test_long_texts_are_cut_as_python_counts_them(show, features, page, tmp_path):
    """A character beyond 16 bits is two in a script; a file with half of one would be none."""
    opened = show(page)
    whole, half = "a" + "😀" * 199, "half \ud83d"
    take_in(opened, entry(features, {"0": {"label": whole + "😀"}, "1": {"label": half}, "2": {"note": "😀" * 10_000}}))
    assert opened.js("[saeVis.labelOf(0), saeVis.labelOf(1)]") == [whole, "half \ufffd"]
    with opened.page.expect_download() as download:
        opened.js("saeVis.exportLabels()")
    download.value.save_as(tmp_path / "labels.json")
    copy = deepcopy(features)
    copy.load_labels(tmp_path / "labels.json")
    assert (copy[0].label, copy[2].note) == (whole, "😀" * 10_000)


def test_hostile_labels_and_notes_stay_text(show, page):
    opened = show(page)
    edit(opened, "x", "x")
    opened.page.locator(".said .edit").click()
    elements = opened.js("document.querySelectorAll('*').length")
    for text in [*HOSTILE.values(), "<img src=x onerror=alert(1)>" * 50]:
        given = json.dumps(text)
        opened.js(f"saeVis.sayOf(0, {{ label: 'y' + {given}, note: 'z' + {given} }})")
        assert opened.js("document.querySelectorAll('*').length") == elements
        seen = opened.js(
            "[document.querySelector('h2 .label').textContent, document.querySelector('.reader-note').textContent]"
        )
        assert all(char.isprintable() or char in "\n\t" for char in "".join(seen))
        if text.isascii() and text.isprintable():
            assert seen == [("y" + text)[:200], ("z" + text)[:10_000]]
    opened.reload()
    expect(opened.page.locator("h2 .label")).to_contain_text("y<img")  # it is drawn after the page is there
    assert opened.texts("h2 .label")[0].startswith("y<img src=x onerror=alert(1)>")


# --- plots -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_saved_plot_stands_alone(show, features, page, scheme):
    opened = show(page, color_scheme=scheme)
    opened.page.locator(".seq .b").first.hover()  # draws a line, which is not saved
    opened.js("saeVis.sayOf(0, { label: '</title><script>alert(1)</script> & \"more\"' })")
    text = opened.js("saeVis.svgText(document.querySelector('.plot'), 'Feature 0: <b> & more')")
    root = ET.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.find("{*}title").text == "Feature 0: <b> & more"
    assert (root.get("viewBox"), root.get("width")) == ("0 0 312 100", "624")
    assert "var(" not in text
    assert "class=" not in text
    assert not list(root.iterfind(".//{*}g"))
    shown = opened.js("getComputedStyle(document.querySelector('.plot .upper')).fill")
    bars = [path for path in root.iterfind("{*}path") if f"fill:{shown}" in path.get("style")]
    assert len(bars) == 2
    assert root.find("{*}rect").get("fill") == opened.js("getComputedStyle(document.body).backgroundColor")
    button = opened.page.get_by_role("button", name="Save as SVG: Activations")
    button.focus()
    expect(button).to_have_css("opacity", "1")
    with opened.page.expect_download() as download:
        opened.page.keyboard.press("Enter")
    assert download.value.suggested_filename == "feature-0-activations.svg"
    saved = ET.fromstring(download.value.path().read_text(encoding="utf-8"))
    assert saved.find("{*}title").text.startswith(
        'Feature 0 (</title><script>alert(1)</script> & "more"): Histogram of'
    )


def test_each_plot_has_one_button_whatever_is_shown(show, page):
    opened = show(page)
    for feature in (1, 0, 1):
        go(opened, feature)
        assert len(opened.texts(".save-plot")) == len(opened.texts(".plot")) == 2


def test_loaded_data_keeps_its_labels_for_pages(features, tmp_path):
    features.save_json(tmp_path / "f.json")
    again = MultiFeatureData.load_json(tmp_path / "f.json")
    assert again.get_html() == features.get_html()
