"""Both pages in a real Chromium, from disk and without a network: what a reader sees, clicks, types and hears.

Every page that a test opens also fails it by a console message, an error, a dialog, a window or a request.
"""

from __future__ import annotations

import dataclasses
import html
import itertools
import json
import re

import browser
import pytest
from rendering_fixtures import make_features, make_prompt
from test_hostile_tokens import HOSTILE, with_text

from sae_vis import html_fns
from sae_vis._params import Column, Layout
from sae_vis.html_fns import plot_x

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]  # one browser for all

if browser.sync_playwright:
    from playwright.sync_api import expect

SMALL = {"first_group_size": 3, "n_groups": 2, "other_groups_size": 2, "n_bins": 8, "n_logits": 3}
URL = "features.html#feature={feature}"


@pytest.fixture(scope="module")
def features():
    features = make_features(12, dead=(3,), first_group_size=4, n_groups=2, other_groups_size=2)
    features.feature_data_dict[5].label = "import statements"
    table = features[1].feature_tables.correlated_features
    table.indices[:] = [8, 900, 2]
    return features


@pytest.fixture(scope="module")
def features_page(features):
    return features.get_html()


@pytest.fixture(scope="module")
def prompt():
    return make_prompt(20, first_group_size=4)


@pytest.fixture(scope="module")
def prompt_page(prompt):
    return prompt.get_html(seq_pos=5, score_name="act_size", feature_url=URL)


def number(text):
    return float(text.replace("\u2212", "-").replace("%", "").replace(",", ""))


def near(text, value):
    """Whether a text is a number as rounded as it is written."""
    decimals = len(re.sub(r"[^\d.]", "", text).partition(".")[2])
    return number(text) == pytest.approx(value, abs=0.51 * 10**-decimals)


def all_near(texts, values):
    return len(texts) == len(values) and all(map(near, texts, values))


def sequences_of(feature):
    return [sequence for group in feature.sequences.groups for sequence in group.sequences]


def expect_feature(page, feature):
    """The feature, and nothing else, is on the page, and everything that names it says so."""
    expect(page.locator("article.feature")).to_have_count(1)
    expect(page.locator("article.feature")).to_have_attribute("data-feature", str(feature))
    expect(page.locator("article h2 b")).to_have_text(str(feature))
    expect(page.locator(".choose")).to_have_value(str(feature))


# --- the feature page: moving between features -------------------------------------------------------------------


def test_the_first_feature_is_there_at_once(show, features, features_page):
    opened = show(features_page)
    expect_feature(opened.page, 0)
    assert opened.js("document.title") == "Feature 0 · blocks.0.mlp.hook_post · gelu-1l-code"
    assert opened.texts(".selector .count") == ["1 of 12"]
    expect(opened.page.locator(".previous")).to_be_disabled()
    expect(opened.page.locator(".message")).to_be_hidden()
    assert len(opened.boxes(".plot")) == 2


def test_buttons_step_through_the_features(show, features_page):
    opened = show(features_page, "#feature=10")
    page = opened.page
    expect_feature(page, 10)
    page.get_by_role("button", name="Next feature").click()
    expect_feature(page, 11)
    expect(page.locator(".next")).to_be_disabled()
    assert opened.hash == "#feature=11"
    page.get_by_role("button", name="Previous feature").click()
    expect_feature(page, 10)
    page.go_back()
    expect_feature(page, 11)


def test_arrow_keys_step_through_the_features(show, features_page):
    page = show(features_page).page
    page.keyboard.press("ArrowLeft")  # there is none before
    page.keyboard.press("ArrowRight")
    expect_feature(page, 1)
    page.keyboard.press("ArrowRight")
    expect_feature(page, 2)
    page.keyboard.press("ArrowLeft")
    expect_feature(page, 1)
    page.keyboard.press("Alt+Shift+ArrowRight")  # somebody else's key
    expect_feature(page, 1)


@pytest.mark.parametrize(
    ("typed", "feature"), [("8", 8), (" 11 ", 11), ("import statements", 5), ("IMPORT", 5), ("django", 1)]
)
def test_the_field_takes_a_number_or_a_label(show, features_page, typed, feature):
    page = show(features_page).page
    page.get_by_role("combobox", name="Feature").fill(typed)
    page.keyboard.press("Enter")
    expect_feature(page, feature)


def test_the_field_offers_what_fits(show, features_page):
    opened = show(features_page)
    field = opened.page.locator(".choose")
    field.click()
    field.fill("1")
    assert opened.js("[...document.querySelectorAll('.choices option')].map(o => o.value)") == ["1", "10", "11"]
    assert opened.js("document.querySelector('.choose').list.className") == "choices"
    field.fill("import")
    assert opened.js("[...document.querySelectorAll('.choices option')].map(o => o.label)") == ["5 import statements"]
    opened.page.keyboard.press("ArrowLeft")  # moves the cursor in the field
    expect(opened.page.locator("article.feature")).to_have_attribute("data-feature", "0")


def test_the_address_chooses_the_feature(show, features_page):
    opened = show(features_page, "#feature=8")
    expect_feature(opened.page, 8)
    opened.js("location.hash = '#feature=2'")
    expect_feature(opened.page, 2)
    opened.reload()
    expect_feature(opened.page, 2)


def test_links_in_the_tables_lead_to_their_features(show, features_page):
    opened = show(features_page, "#feature=1")
    expect_feature(opened.page, 1)
    link = opened.page.locator(".left-tables a[data-go='8']").first
    link.focus()
    opened.page.keyboard.press("Enter")
    expect_feature(opened.page, 8)
    assert opened.hash == "#feature=8"
    opened.go("#feature=1")
    expect_feature(opened.page, 1)
    assert not opened.texts("a[data-go='900']")  # not in this page


@pytest.mark.parametrize("asked", ["99", "-1", "1e1", "abc", "%3Cimg src=x onerror=alert(1)%3E", "%", "__proto__", ""])
def test_an_unknown_feature_gives_a_message_and_the_page_still_works(show, features_page, asked):
    opened = show(features_page, f"#feature={asked}")
    message = opened.page.locator(".message")
    expect(message).to_be_visible()
    expect(message).to_contain_text("There is no feature")
    expect(message).to_contain_text("holds 12, from 0 to 11")
    expect_feature(opened.page, 0)
    opened.page.locator(".next").click()
    expect_feature(opened.page, 1)
    expect(message).to_be_hidden()


def test_text_that_fits_no_feature_gives_a_message(show, features_page):
    page = show(features_page).page
    page.locator(".choose").fill("<b>no such")
    page.keyboard.press("Enter")
    expect(page.locator(".message")).to_contain_text("There is no feature “<b>no such” in this page")


@pytest.mark.parametrize("feature", [1, 5, 11])
def test_a_packed_feature_is_shown_with_its_own_numbers(show, features, features_page, feature):
    opened = show(features_page, f"#feature={feature}")
    expect_feature(opened.page, feature)
    data = features[feature]
    assert opened.js("document.title").startswith(f"Feature {feature} · ")
    assert opened.texts(".label") == ([data.label] if data.label else [])
    stats = dict(zip(opened.texts(".stats dt"), opened.texts(".stats dd"), strict=True))
    assert number(stats["Density"]) == pytest.approx(100 * data.activations.density, rel=0.01)
    assert number(stats["Active"]) == data.activations.n_active
    assert number(stats["Max"]) == pytest.approx(data.activations.max, rel=0.01)
    printer = html_fns.TokenPrinter(features.vocab, features.vocab_bytes)
    shown = opened.js("[...document.querySelectorAll('.seq')].map(s => [...s.children].map(t => t.innerHTML))")
    expected = [printer.sequence(sequence.token_ids) for sequence in sequences_of(data)]
    assert [[html.unescape(text) for text in line] for line in shown] == [
        [html.unescape(text) for text in line] for line in expected
    ]
    values = opened.js("[...document.querySelectorAll('.seq')].map(s => s.dataset.v)")
    expected = [sequence.feat_acts[sequence.bold_idx] for sequence in sequences_of(data)]
    assert all_near(values, expected)
    assert all_near(opened.texts(".logits.positive td:last-child"), data.logits.top_logits)
    table = data.feature_tables.neuron_alignment
    assert [int(text) for text in opened.texts(".numbers:first-of-type td:first-child")] == table.indices


def test_the_last_of_a_thousand_features(show):
    features = make_features(1, dead=(), **SMALL)
    one = features.feature_data_dict[0]
    many = {index: dataclasses.replace(one, feature_idx=index) for index in range(1000)}
    opened = show(dataclasses.replace(features, feature_data_dict=many).get_html())
    assert opened.texts(".selector .count") == ["1 of 1,000"]
    opened.page.locator(".choose").fill("999")
    opened.page.keyboard.press("Enter")
    expect_feature(opened.page, 999)
    assert opened.texts(".selector .count") == ["1,000 of 1,000"]


# --- hovering ----------------------------------------------------------------------------------------------------


def hovered(opened):
    """What the hover text says, every part that is shown by its name."""
    return opened.js("""(() => {
      const tip = document.querySelector(".hovertext");
      const shown = (e) => e.getClientRects().length > 0;
      const texts = [...tip.querySelectorAll("[data-slot]")].filter((e) => e.tagName !== "TBODY");
      const rows = (name) => [...tip.querySelectorAll(`[data-slot="${name}"] tr`)]
        .filter(shown).map((row) => [row.cells[0].innerHTML, row.cells[1].textContent]);
      return {
        ...Object.fromEntries(texts.filter(shown).map((e) => [e.dataset.slot, e.textContent])),
        html: tip.querySelector('[data-slot="token"]').innerHTML, raised: rows("raised"), lowered: rows("lowered"),
      };
    })()""")


def lines(opened, kind="line", within="article"):
    """The lines on the histograms: which plot, x and label."""
    return opened.js(f"""[...document.querySelector({within!r}).querySelectorAll(".plot .{kind}")].map((g) => [
      g.parentNode.classList[1], Number(/M([^ ]*)/.exec(g.querySelector("path").getAttribute("d"))[1]), g.textContent])""")


def expect_line(line, histogram, value):
    _, x, label = line
    assert x == pytest.approx(plot_x(value, histogram.bar_edges[0], histogram.bar_edges[-1]), abs=0.3)
    assert near(label, value)


def check_hovered(opened, features, data, sequence, place):
    """The hover text and the lines say what the data says of a token."""
    token_id, act, loss = sequence.token_ids[place], sequence.feat_acts[place], sequence.loss_contribution[place]
    logit = data.logits.shown_logits[token_id]
    told = hovered(opened)
    printer = html_fns.TokenPrinter(features.vocab, features.vocab_bytes)
    assert html.unescape(told["html"]) == html.unescape(printer.one(token_id))
    ignored = " · ignored" if token_id in features.provenance.ignored_token_ids else ""
    assert told["where"] == f"id {token_id} · row {sequence.row}, position {sequence.start + place}{ignored}"
    assert near(told["activation"], act)
    assert told["loss"] == "none" if loss is None else near(told["loss"], loss)
    assert near(told["logit"], logit)
    effects = [effect for effect in sequence.effects if effect.at == place]
    assert bool(effects) == bool(told["raised"] or told["lowered"])
    assert bool(effects) == (not told.get("none"))
    for effect in effects:
        for name, ids, changes in (
            ("raised", effect.raised_token_ids, effect.raised_logprobs),
            ("lowered", effect.lowered_token_ids, effect.lowered_logprobs),
        ):
            assert [html.unescape(token) for token, _ in told[name]] == [html.unescape(printer.one(i)) for i in ids]
            assert all_near([text for _, text in told[name]], changes)
    drawn = {line[0]: line for line in lines(opened)}
    assert drawn.keys() == ({"activations", "logits"} if act > 0 else {"logits"})
    expect_line(drawn["logits"], data.logits.histogram, logit)
    if act > 0:
        expect_line(drawn["activations"], data.activations.histogram, act)


def kinds_of_tokens(data):
    """One token of every kind, as (sequence, place): bold, changed, unchanged, and the first of a row where one is shown."""
    found = {}
    for which, sequence in enumerate(sequences_of(data)):
        for place, loss in enumerate(sequence.loss_contribution):
            effect = any(effect.at == place for effect in sequence.effects)
            kind = (place == sequence.bold_idx, loss is None, effect, sequence.feat_acts[place] > 0)
            found.setdefault(kind, (which, place))
    return list(found.values())


def test_hovering_tells_the_numbers_of_the_data(show, features, features_page):
    opened = show(features_page, "#feature=1")
    expect_feature(opened.page, 1)
    places = kinds_of_tokens(features[1])
    assert len(places) >= 4
    for which, place in places:
        token = opened.page.locator(".seq").nth(which).locator("> *").nth(place)
        token.scroll_into_view_if_needed()
        token.hover()
        expect(opened.page.get_by_role("tooltip")).to_be_visible()
        check_hovered(opened, features, features[1], sequences_of(features[1])[which], place)
        opened.page.mouse.move(1, 1)
        expect(opened.page.locator(".hovertext")).to_be_hidden()
        assert lines(opened) == []
        assert not opened.texts(".seq .on")


def test_the_hover_text_is_gone_with_its_feature(show, features_page):
    opened = show(features_page, "#feature=1")
    expect_feature(opened.page, 1)
    opened.page.locator(".seq > .b").first.hover()
    expect(opened.page.locator(".hovertext")).to_be_visible()
    opened.page.mouse.move(1, 1)
    opened.page.locator(".left-tables a").last.focus()
    opened.page.keyboard.press("Tab")
    while opened.js("document.activeElement.className") != "seq":
        opened.page.keyboard.press("Tab")
    expect(opened.page.locator(".hovertext")).to_be_visible()
    opened.go("#feature=2")
    expect_feature(opened.page, 2)
    expect(opened.page.locator(".hovertext")).to_be_hidden()
    opened.go("#feature=1")
    expect_feature(opened.page, 1)
    assert lines(opened) == []


def test_escape_and_scrolling_hide_the_hover_text(show, features_page):
    opened = show(features_page, "#feature=1", size=(700, 500))
    expect_feature(opened.page, 1)
    for leave in (lambda: opened.page.keyboard.press("Escape"), lambda: opened.page.mouse.wheel(0, 2500)):
        opened.page.mouse.move(1, 1)
        opened.page.locator(".seq > .b").first.hover()  # which scrolls there, without hiding it
        settle(opened)
        expect(opened.page.locator(".hovertext")).to_be_visible()
        opened.js("document.querySelector('article').style.paddingBottom = '4000px'")
        leave()
        expect(opened.page.locator(".hovertext")).to_be_hidden()
        assert lines(opened) == []


def settle(opened):
    """Wait until the browser has drawn twice, and so has told of what scrolled."""
    opened.js("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def test_a_sequence_that_is_out_of_sight_shows_its_hover_text_on_focus(show, features, features_page):
    """The browser scrolls to what gets the focus; that once hid the text at once."""
    opened = show(features_page, "#feature=1", size=(700, 400))
    expect_feature(opened.page, 1)
    opened.js("document.querySelectorAll('.seq')[4].focus({ preventScroll: true })")
    opened.page.keyboard.press("Tab")
    settle(opened)
    assert opened.js("scrollY") > 0
    sequence = sequences_of(features[1])[5]
    check_hovered(opened, features, features[1], sequence, sequence.bold_idx)
    expect(opened.page.locator(".hovertext")).to_be_visible()


def test_the_keyboard_shows_the_same_as_the_mouse(show, features, features_page):
    opened = show(features_page, "#feature=1")
    expect_feature(opened.page, 1)
    page, (first, second, *_) = opened.page, sequences_of(features[1])
    page.locator(".left-tables a").last.focus()
    for _ in range(20):  # past what else can have the focus
        page.keyboard.press("Tab")
        if opened.js("document.activeElement.className") == "seq":
            break
    expect(page.locator(".hovertext")).to_be_visible()
    check_hovered(opened, features, features[1], first, first.bold_idx)
    page.keyboard.press("Home")
    for place in range(3):
        check_hovered(opened, features, features[1], first, place)
        spoken = opened.texts(".spoken")[0]
        assert f"row {first.row}, position {first.start + place}" in spoken
        assert "activation" in spoken
        assert opened.js(
            "document.activeElement.getAttribute('aria-describedby') === document.querySelector('.hovertext').id"
        )
        page.keyboard.press("ArrowRight")
    page.keyboard.press("End")
    page.keyboard.press("ArrowRight")  # there is no further one
    check_hovered(opened, features, features[1], first, len(first.token_ids) - 1)
    page.keyboard.press("ArrowLeft")
    check_hovered(opened, features, features[1], first, len(first.token_ids) - 2)
    expect_feature(page, 1)  # the arrow keys were the sequence's
    page.keyboard.press("Tab")  # one stop a sequence
    check_hovered(opened, features, features[1], second, second.bold_idx)
    page.keyboard.press("Escape")
    expect(page.locator(".hovertext")).to_be_hidden()
    assert opened.js("document.querySelector('[aria-describedby]')") is None


def test_reading_by_keyboard_goes_on_where_escape_left_it(show, features, features_page):
    opened = show(features_page, "#feature=1")
    expect_feature(opened.page, 1)
    page, sequence = opened.page, sequences_of(features[1])[0]
    opened.js("document.querySelector('.seq').focus()")
    for key in ("Home", "ArrowRight", "ArrowRight", "Escape"):
        page.keyboard.press(key)
    expect(page.locator(".hovertext")).to_be_hidden()
    page.keyboard.press("ArrowRight")
    check_hovered(opened, features, features[1], sequence, 3)


@pytest.mark.parametrize("size", [(1440, 900), (360, 480)])
def test_the_hover_text_stays_in_the_window(show, features, size):
    layout = Layout([Column("sequences")])
    params = dataclasses.replace(features.params, layout=layout)
    opened = show(dataclasses.replace(features, params=params).get_html(feature=1), size=size)
    width, height = size
    token = ".seq > .b"
    for left, top in itertools.product((0, width - 20), (0, height - 20)):
        opened.js(f"""(() => {{
          const token = document.querySelector({token!r});
          token.style.cssText += "; position: fixed; left: {left}px; top: {top}px; z-index: 5";
          token.parentElement.style.position = "static";
        }})()""")
        opened.page.mouse.move(width / 2, height / 2)
        opened.page.mouse.move(left + 3, top + 4)
        expect(opened.page.locator(".hovertext")).to_be_visible()
        (box,) = opened.boxes(".hovertext")
        assert box["left"] >= 0
        assert box["top"] >= 0
        assert box["right"] <= width
        assert box["bottom"] <= height
        assert not box["left"] <= left + 3 <= box["right"] or not box["top"] <= top + 4 <= box["bottom"]


def test_touching_a_token_shows_its_hover_text(show, features, features_page):
    opened = show(features_page, "#feature=1", size=(390, 844), has_touch=True)
    expect_feature(opened.page, 1)
    opened.page.locator(".seq > .b").first.scroll_into_view_if_needed()
    opened.page.locator(".seq > .b").first.tap()
    expect(opened.page.locator(".hovertext")).to_be_visible()
    sequence = sequences_of(features[1])[0]
    check_hovered(opened, features, features[1], sequence, sequence.bold_idx)


# --- the prompt page ---------------------------------------------------------------------------------------------


def expect_prompt(opened, prompt, metric, position):
    """The columns are those of the data for a metric and a position, with their scores, bold tokens and lines."""
    ranked = prompt.scores[metric][position]
    page = opened.page
    expect(page.locator(f".metrics [data-metric={metric}]")).to_have_attribute("aria-checked", "true")
    expect(page.locator(".strip button").nth(position)).to_have_attribute("aria-checked", "true")
    expect(page.locator(".prompt-columns > article")).to_have_count(len(ranked))
    for group in (".metrics", ".strip"):
        chosen = opened.js(f"[...document.querySelector('{group}').children].map(b => [b.ariaChecked, b.tabIndex])")
        assert sorted(chosen)[:-1] == [["false", -1]] * (len(chosen) - 1)
        assert max(chosen) == ["true", 0]
    shown = opened.js("[...document.querySelectorAll('.prompt-columns > article')].map(a => Number(a.dataset.feature))")
    assert shown == [feature for feature, _ in ranked]
    assert opened.texts("[data-slot=rank]") == [f"#{rank}" for rank in range(1, len(ranked) + 1)]
    for text, (_, score) in zip(opened.texts("[data-slot=score]"), ranked, strict=True):
        assert number(re.sub(r"[a-z]", "", text).replace(" ", "")) == pytest.approx(
            100 * score if metric == "act_quantile" else score, rel=0.02, abs=1e-3
        )
    on_loss = metric == "loss_effect"
    for rank, (feature, _) in enumerate(ranked, 1):
        data = prompt.prompt_data_dict[feature]
        article = f".prompt-columns > article:nth-child({rank})"
        bold = opened.js(f"[...document.querySelector('{article} .prompt .seq').children].map(t => t.matches('.b'))")
        assert [place for place, is_bold in enumerate(bold) if is_bold] == [position]
        drawn = {line[0]: line for line in lines(opened, "pin", article)}
        assert drawn.keys() == ({"activations", "logits"} if on_loss else {"activations"})
        expect_line(drawn["activations"], data.activations.histogram, data.sequence.feat_acts[position - on_loss])
        if on_loss:
            token_id = prompt.prompt_token_ids[position]
            expect_line(drawn["logits"], data.logits.histogram, data.logits.shown_logits[token_id])
    expect(page.locator(".none-ranked")).to_be_visible(visible=not ranked)


def test_back_leads_to_what_the_prompt_page_was_saved_with(show, prompt, prompt_page):
    opened = show(prompt_page)
    opened.page.locator(".strip button").nth(8).click()
    expect_prompt(opened, prompt, "act_size", 8)
    opened.page.go_back()
    expect_prompt(opened, prompt, "act_size", 5)


def test_a_damaged_column_of_a_prompt_is_told(show, prompt_page):
    opened = show(re.sub(r'(data-packed="\d+">)[^<]{40}', r"\1", prompt_page))
    opened.page.locator(".strip button").nth(8).click()
    expect(opened.page.locator(".message")).to_contain_text("cannot be unpacked: what is stored of them is damaged")
    expect(opened.page.locator(".strip button").nth(5)).to_have_attribute("aria-checked", "true")


def test_the_button_that_goes_no_further_hands_the_focus_on(show, features, features_page):
    last = max(features)
    opened = show(features_page, f"#feature={last - 1}")
    expect_feature(opened.page, last - 1)
    opened.page.locator(".next").press("Enter")
    expect_feature(opened.page, last)
    expect(opened.page.locator(".previous")).to_be_focused()


def test_the_prompt_page_shows_what_it_was_saved_with(show, prompt, prompt_page):
    opened = show(prompt_page)
    expect_prompt(opened, prompt, "act_size", 5)
    assert opened.hash == ""


def test_clicks_choose_metric_and_token(show, prompt, prompt_page):
    opened = show(prompt_page)
    for metric in prompt.scores:
        opened.page.locator(f".metrics [data-metric={metric}]").click()
        expect_prompt(opened, prompt, metric, 5)
    for position in (2, 8, 11):
        opened.page.locator(".strip button").nth(position).click()
        expect_prompt(opened, prompt, "loss_effect", position)
    assert opened.hash == "#pos=11&metric=loss_effect"
    opened.page.go_back()
    expect_prompt(opened, prompt, "loss_effect", 8)


def test_arrow_keys_choose_metric_and_token(show, prompt, prompt_page):
    opened = show(prompt_page)
    page, names = opened.page, list(prompt.scores)
    page.locator(".strip [aria-checked=true]").focus()
    for key, position in (("ArrowRight", 6), ("ArrowLeft", 5), ("ArrowLeft", 4), ("Home", 0), ("ArrowLeft", 11)):
        page.keyboard.press(key)
        expect_prompt(opened, prompt, "act_size", position)
        assert opened.js("document.activeElement === document.querySelector('.strip [aria-checked=true]')")
    page.keyboard.press("Tab")
    for metric in (*names[1:], names[0]):
        page.keyboard.press("ArrowRight")
        expect_prompt(opened, prompt, metric, 11)


def test_the_column_that_was_packed_is_the_one_that_would_be_plain(show, prompt, prompt_page):
    """Bold tokens and lines that the script sets are those that Python draws."""
    opened = show(prompt_page)
    plain = show(prompt.get_html(seq_pos=8, score_name="loss_effect", feature_url=URL))
    opened.page.locator("[data-metric=loss_effect]").click()
    opened.page.locator(".strip button").nth(8).click()
    expect_prompt(opened, prompt, "loss_effect", 8)
    tokens = """[...document.querySelectorAll(".prompt-columns .seq > *")].map((token) => [
      token.className, token.style.cssText, token.innerHTML])"""
    assert opened.js(tokens) == plain.js(tokens)
    assert lines(opened, "pin", ".prompt-columns") == [
        [kind, pytest.approx(x, abs=0.3), text] for kind, x, text in lines(plain, "pin", ".prompt-columns")
    ]


def test_no_active_feature_is_a_sentence(show, prompt, prompt_page):
    opened = show(prompt_page)
    opened.page.locator(".strip button").nth(10).click()
    expect_prompt(opened, prompt, "act_size", 10)
    expect(opened.page.locator(".none-ranked")).to_contain_text("is active on this token")
    opened.page.locator("[data-metric=loss_effect]").click()
    opened.page.locator(".strip button").first.click()
    expect_prompt(opened, prompt, "loss_effect", 0)
    expect(opened.page.locator(".none-ranked")).to_contain_text("the token before it")


def test_the_address_keeps_metric_and_token(show, prompt, prompt_page):
    opened = show(prompt_page, "#pos=3&metric=loss_effect")
    expect_prompt(opened, prompt, "loss_effect", 3)
    opened.reload()
    expect_prompt(opened, prompt, "loss_effect", 3)
    opened.js("location.hash = '#metric=act_quantile'")
    expect_prompt(opened, prompt, "act_quantile", 3)
    for wrong, told in (
        ("pos=99", "position “99”"),
        ("pos=-1", "position"),
        ("metric=__proto__", "metric “__proto__”"),
    ):
        opened.js(f"location.hash = '#{wrong}'")
        expect(opened.page.locator(".message")).to_contain_text(f"There is no {told}")
        expect_prompt(opened, prompt, "act_quantile", 3)
    opened.page.locator(".strip button").nth(4).click()
    expect_prompt(opened, prompt, "act_quantile", 4)
    expect(opened.page.locator(".message")).to_be_hidden()


def test_columns_link_to_the_pages_of_their_features(show, prompt, prompt_page):
    opened = show(prompt_page)
    opened.page.locator(".strip button").nth(8).click()
    expect_prompt(opened, prompt, "act_size", 8)
    hrefs = opened.js("[...document.querySelectorAll('.prompt-columns h2 a')].map(a => a.getAttribute('href'))")
    assert hrefs == [f"features.html#feature={feature}" for feature, _ in prompt.scores["act_size"][8]]


def test_hovering_over_the_prompt_leaves_the_lines_of_the_chosen_token(show, prompt, prompt_page):
    opened = show(prompt_page)
    feature, _ = prompt.scores["act_size"][5][0]
    data = prompt.prompt_data_dict[feature]
    place = next(p for p, act in enumerate(data.sequence.feat_acts) if act > 0 and p != 5)
    opened.page.locator("article").first.locator(".prompt .seq > *").nth(place).hover()
    told = hovered(opened)
    assert told["where"].endswith(f"prompt, position {place}")
    assert near(told["activation"], data.sequence.feat_acts[place])
    expect_line(lines(opened)[0], data.activations.histogram, data.sequence.feat_acts[place])
    assert len(lines(opened, "pin")) == 1
    opened.page.mouse.move(1, 1)
    assert lines(opened) == []
    assert len(lines(opened, "pin")) == 1


# --- in a notebook -----------------------------------------------------------------------------------------------


def test_pages_in_a_notebook_are_independent(show, features, prompt):
    feature_frame, prompt_frame = features._repr_html_(), prompt._repr_html_()
    opened = show(f"<!doctype html><title>Notebook</title>{feature_frame}{prompt_frame}{feature_frame}")
    one, middle, two = (opened.page.frame_locator("iframe").nth(place) for place in range(3))
    for frame in (one, two):
        expect(frame.locator("article")).to_have_attribute("data-feature", "0")
    one.locator(".next").click()
    expect_feature(one, 1)
    one.locator("a[data-go='8']").first.click()  # a link inside does not unload the frame
    expect_feature(one, 8)
    expect_feature(two, 0)
    two.locator(".choose").fill("5")
    two.locator(".choose").press("Enter")
    expect_feature(two, 5)
    expect_feature(one, 8)
    one.locator(".seq > .b").first.hover()
    expect(one.locator(".hovertext")).to_be_visible()
    expect(two.locator(".hovertext")).to_be_hidden()
    middle.locator("[data-metric=act_size]").click()
    middle.locator(".strip button").nth(4).click()
    expect(middle.locator("article")).to_have_count(len(prompt.scores["act_size"][4]))
    expect(middle.locator("article").first).to_have_attribute("data-feature", str(prompt.scores["act_size"][4][0][0]))
    expect_feature(one, 8)
    assert opened.hash == ""
    assert opened.js("document.querySelectorAll('[id]').length") == 0  # nothing leaks into the notebook itself


# --- colours and sizes -------------------------------------------------------------------------------------------

# Paints what lies behind the middle of an element, ancestors first, and gives the ratio of the text's luminance to it.
CONTRAST = """((selector) => [...document.querySelectorAll(selector)].filter((e) => e.getClientRects().length).map((e) => {
  const square = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
  const canvas = square.getContext("2d", { willReadFrequently: true });
  const paint = (color) => { canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1); };
  const pixel = () => [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  const above = [];
  for (let at = e; at; at = at.parentElement) above.unshift(at);
  paint(matchMedia("(prefers-color-scheme: dark)").matches ? "black" : "white");
  for (const at of above) {
    const style = getComputedStyle(at);
    paint(style.backgroundColor);
    const image = style.backgroundImage;
    if (image.startsWith("linear-gradient")) paint(image.split("linear-gradient(").at(-1).match(/[a-z]+\\([^)]*\\)/)[0]);
  }
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = luminance(pixel());
  paint(getComputedStyle(e).color);
  const [low, high] = [behind, luminance(pixel())].sort((a, b) => a - b);
  return [(high + 0.05) / (low + 0.05), e.className || e.tagName, e.textContent.slice(0, 40)];
}))"""
MAIN_TEXT = "h1, h2, h3, p, small, dt, dd, td, th, caption, a, button, footer, .label, .count, .seq > *, .text"


def expect_readable(opened, selector=MAIN_TEXT):
    found = opened.js(f"{CONTRAST}({json.dumps(selector)})")
    assert found
    disabled = {"‹", "›"}  # the first feature has none before it
    assert [what for what in found if what[2] and what[0] < 4.5 and what[2] not in disabled] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_both_schemes(show, features_page, prompt_page, scheme):
    for document in (features_page, prompt_page):
        opened = show(document, color_scheme=scheme)
        red, green, blue = (
            int(part) for part in re.findall(r"\d+", opened.js("getComputedStyle(document.body).backgroundColor"))[:3]
        )
        assert max(red, green, blue) < 60 if scheme == "dark" else min(red, green, blue) > 240
        opened.page.locator(".seq > .b").first.hover()
        expect_readable(opened)
        for level in (0, 0.25, 0.5, 0.75, 1):
            opened.js(f"document.querySelectorAll('.seq > *').forEach(t => t.style.setProperty('--a', {level}))")
            expect_readable(opened, ".seq > :not(.x), .seq > :not(.x) i")  # what is ignored has no activation
            opened.js(f"document.querySelectorAll('.logits span').forEach(t => t.style.setProperty('--a', {level}))")
            expect_readable(opened, ".logits span")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_marks_in_ignored_tokens_and_an_open_button_can_be_read(show, features_page, scheme):
    opened = show(features_page, color_scheme=scheme)
    opened.js(
        "document.querySelectorAll('.seq > :has(i)').forEach(t => { t.className = 'x'; t.removeAttribute('style') })"
    )
    expect_readable(opened, ".seq .x i")
    button = opened.page.locator(".what-is").first
    button.click()  # the pointer stays on it
    expect(button).to_have_attribute("aria-expanded", "true")
    expect_readable(opened, ".what-is[aria-expanded='true']")


def test_paper_has_rules_of_its_own(show, features):
    layout = Layout([Column("sequences", width=500, height=200), Column("logits_tables")])
    params = dataclasses.replace(features.params, layout=layout)
    opened = show(dataclasses.replace(features, params=params).get_html(), "#feature=1", size=(703, 1030))
    expect_feature(opened.page, 1)
    style = "(getComputedStyle(document.querySelector('{}')).{})"
    assert opened.js(style.format(".column", "maxHeight")) == "200px"
    opened.page.emulate_media(media="print")
    assert opened.js(style.format(".column", "maxHeight")) == "none"
    assert opened.js(style.format(".groups", "columnWidth")) == "300px"
    assert opened.js(style.format(".group", "breakInside")) == "auto"
    assert opened.js(style.format(".has-sequences", "flexBasis")) == "100%"


@pytest.mark.parametrize("width", [360, 390, 768])
def test_a_narrow_page_does_not_scroll_sideways(show, features_page, prompt_page, width):
    for document, fragment in ((features_page, "#feature=1"), (prompt_page, "#pos=8&metric=loss_effect")):
        opened = show(document, fragment, size=(width, 800))
        expect(opened.page.locator("article").first).to_be_visible()
        assert opened.js("document.documentElement.scrollWidth") <= width


# --- browsers that can less --------------------------------------------------------------------------------------


def test_without_scripts_the_first_feature_is_readable(show, features, features_page):
    opened = show(features_page, java_script_enabled=False)
    assert "Scripts are off" in opened.page.locator("noscript").inner_text()
    assert opened.page.locator("article h2").inner_text() == "Feature 0"
    assert opened.page.locator(".seq").count() == len(sequences_of(features[0]))


def test_without_scripts_the_prompt_is_readable(show, prompt, prompt_page):
    opened = show(prompt_page, java_script_enabled=False)
    assert "Scripts are off" in opened.page.locator("noscript").inner_text()
    assert opened.page.locator("article").count() == len(prompt.scores["act_size"][5])


def test_a_browser_that_cannot_inflate_is_told(show, features, prompt_page):
    init = "delete globalThis.DecompressionStream"
    opened = show(features.get_html(), init=init)
    expect(opened.page.locator(".message")).to_be_visible()
    expect(opened.page.locator(".message")).to_contain_text("cannot unpack the other features")
    opened.page.locator(".next").click()
    expect(opened.page.locator(".message")).to_be_visible()
    expect(opened.page.locator("article")).to_have_attribute("data-feature", "0")
    opened = show(prompt_page, "#pos=8&metric=loss_effect", init=init)
    expect(opened.page.locator(".message")).to_contain_text("cannot unpack the other features")
    assert show(features[1].get_html(), init=init).texts(".message") == [""]  # there is nothing to unpack


# --- hostile text ------------------------------------------------------------------------------------------------

RUNNING = [
    *("<img src=x onerror=alert(1)>", "</script><script>alert(1)</script>", "</title><script>alert(1)</script>"),
    *('" onmouseover="alert(1)" x="', "<svg onload=alert(1)>", "<iframe srcdoc='<script>alert(1)</script>'>"),
    *(
        "<!-- <script>",
        "<style>*{display:none}</style>",
        "${alert(1)}",
        "javascript:alert(1)",
        "<base href=//x.example>",
    ),
    *("<link rel=stylesheet href=//x.example/x.css>", "<meta http-equiv=refresh content='0;url=//x.example'>"),
]

TEXTS = [*RUNNING, *HOSTILE.values()]
TINY = {"first_group_size": 1, "n_groups": 0, "n_bins": 4, "n_logits": 4}
LOADED = (
    "document.querySelectorAll('script:not([type]), style, link, base, meta, img, iframe, object, embed, form').length"
)
RAN = "globalThis.alert = () => console.error('it ran')"


def shown_as_it_is(text):
    """Whether a token's text is shown with no marks, codes or cuts."""
    return text.isprintable() and text == text.strip() != "" and len(text) < 48 and text.isascii() and "  " not in text


def test_hostile_tokens_and_labels_are_inert_in_a_browser(show):
    """One feature for each text, which is its label and titles; the tokens are all of them in turn."""
    features = make_features(len(TEXTS), dead=(), **TINY)
    features.vocab = {token_id: TEXTS[token_id % len(TEXTS)] for token_id in features.vocab}
    features.vocab_bytes = {}
    for text, feature in zip(TEXTS, features.values(), strict=True):
        feature.label = text
        sequences_of(feature)[0].token_ids[sequences_of(feature)[0].bold_idx] = TEXTS.index(text)
        for group in feature.sequences.groups:
            group.title = text
    opened = show(features.get_html(), size=(800, 600), init=RAN)
    before = opened.js(LOADED)
    bold = "document.querySelector('.seq > .b')"
    for index, text in enumerate(TEXTS):
        opened.js(f"location.hash = '#feature={index}'")
        expect(opened.page.locator("article")).to_have_attribute("data-feature", str(index))
        opened.js(f"{bold}.dispatchEvent(new PointerEvent('pointerover', {{ bubbles: true }}))")
        assert opened.js("!document.querySelector('.hovertext').hidden")
        assert opened.js(LOADED) == before
        if shown_as_it_is(text):
            assert opened.js(f"{bold}.textContent") == text
            assert hovered(opened)["token"] == text
            assert opened.texts(".label") == [text]
            assert opened.texts(".group h3")[0].startswith(text)
        assert opened.js("document.documentElement.scrollWidth") <= 800
        assert all(box["height"] < 120 for box in opened.boxes(".seq > *"))


def test_hostile_prompts_are_inert_in_a_browser(show):
    prompt = make_prompt(12, len(TEXTS), **TINY)
    prompt = dataclasses.replace(prompt, vocab=dict(enumerate(TEXTS)), vocab_bytes={})
    prompt.prompt_token_ids[:] = range(len(TEXTS))
    for text, data in zip(itertools.cycle(TEXTS), prompt.prompt_data_dict.values(), strict=False):
        data.label = data.top_group.title = text
        data.sequence.token_ids[:] = range(len(TEXTS))
    opened = show(prompt.get_html(seq_pos=3, score_name="act_size"), size=(800, 600), init=RAN)
    before = opened.js(LOADED)
    for position in range(0, len(TEXTS) - 2, 5):
        opened.page.locator(".strip button").nth(position).click()
        expect(opened.page.locator(".strip button").nth(position)).to_have_attribute("aria-checked", "true")
        assert opened.js(LOADED) == before
        assert opened.js("document.documentElement.scrollWidth") <= 800
    for text, shown in zip(TEXTS, opened.texts(".strip .text"), strict=True):
        assert shown == text or not shown_as_it_is(text)


@pytest.mark.parametrize("name", ["end of title", "image", "attribute", "bidi", "long", "long and hostile"])
def test_hostile_names_and_notes_are_inert_in_a_browser(show, name):
    """The text as every token, label, model name, note and reason."""
    text = HOSTILE[name]
    features, _, prompt = with_text(text)
    opened = show(features, size=(800, 600), init=RAN)
    before = opened.js(LOADED)
    opened.page.locator(".next").click()
    expect_feature(opened.page, 1)
    opened.page.locator(".choose").fill(text)
    opened.page.locator(".choose").press("Enter")
    expect(opened.page.locator("article")).to_have_count(1)
    assert opened.js(LOADED) == before
    assert opened.js("document.documentElement.scrollWidth") <= 800
    opened = show(prompt, size=(800, 600), init=RAN)
    opened.page.locator(".strip button").nth(1).click()
    expect(opened.page.locator(".strip button").nth(1)).to_have_attribute("aria-checked", "true")
    assert opened.js("document.documentElement.scrollWidth") <= 800


# --- other pages -------------------------------------------------------------------------------------------------


def other_pages():
    features = make_features(4, dead=(1,), **SMALL)
    params = features.params
    two = dataclasses.replace(
        params, layout=Layout([Column("sequences"), Column("logits_tables", width=300)], height=500)
    )
    no_logits = dataclasses.replace(features[0], logits=None)
    empty = dataclasses.replace(features, feature_data_dict={})
    return {
        "dead feature": features.get_html(feature=1),
        "no logits": dataclasses.replace(features, feature_data_dict={0: no_logits, 2: features[2]}).get_html(),
        "no ablation": make_features(2, dead=(), effects=False, **SMALL).get_html(),
        "custom layout": dataclasses.replace(features, params=two).get_html(),
        "whole rows": make_features(2, dead=(), buffer=None, **SMALL).get_html(),
        "one feature": features[2].get_html(),
        "no features": empty.get_html(),
        "no vocabulary": dataclasses.replace(features, vocab={}, vocab_bytes={}).get_html(),
    }


@pytest.mark.parametrize("name", other_pages())
def test_other_pages_work(show, name):
    opened = show(other_pages()[name])
    if name != "no features":
        expect(opened.page.locator("article h2")).to_be_visible()
    if opened.page.locator(".next").count():
        opened.page.locator(".next").click()
        expect(opened.page.locator(".previous")).to_be_enabled()
    tokens = opened.page.locator(".seq > .b")
    if tokens.count():
        tokens.first.hover()
        expect(opened.page.locator(".hovertext")).to_be_visible()
        told = hovered(opened)
        assert ("loss" in told) == (name != "no ablation")
        assert ("logit" in told) == (name != "no logits" or opened.hash != "")


# --- what a screen reader finds ----------------------------------------------------------------------------------

NAMELESS = """[...document.querySelectorAll("a, button, input, select, [tabindex], [role=img], table, section, article")].filter(
  (e) => !(e.ariaLabel || e.textContent.trim() || e.labels?.length)).map((e) => e.outerHTML.slice(0, 100))"""


def test_the_structure_of_the_pages(show, features_page, prompt_page):
    for document in (features_page, prompt_page):
        opened = show(document)
        assert opened.js("document.documentElement.lang") == "en"
        assert opened.js("document.title")
        assert opened.page.get_by_role("heading", level=1).count() == 1
        for landmark in ("banner", "main", "contentinfo"):
            assert opened.page.get_by_role(landmark).count() == 1, landmark
        ids = opened.js("[...document.querySelectorAll('[id]')].map(e => e.id)")
        assert len(ids) == len(set(ids))
        assert opened.js(NAMELESS) == []
        levels = opened.js("[...document.querySelectorAll('h1, h2, h3, h4')].map(h => Number(h.tagName[1]))")
        assert all(next_one <= level + 1 for level, next_one in itertools.pairwise(levels))


def test_every_control_has_a_name(show, features_page, prompt_page):
    for document, roles in (
        (features_page, {"button": 2 + 6, "combobox": 1}),  # six panels say what they are
        (prompt_page, {"radiogroup": 2, "radio": 15}),
    ):
        page = show(document).page
        for role, count in roles.items():
            named = page.get_by_role(role, name=re.compile(r"\S")).count()
            assert named == page.get_by_role(role).count() >= count, role
    assert page.get_by_role("radio", name=re.compile(r"^Position 5")).count() == 1
