"""How sequences are read, in a real Chromium: whole rows, raw tokens, whitespace, colours, and what is copied."""

from __future__ import annotations

import dataclasses
import html.parser
import re

import browser
import pytest
from rendering_fixtures import make_features, make_prompt
from test_hostile_tokens import HOSTILE

from sae_vis.data_storing_fns import SequenceData

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser-reading")]  # one browser for all

if browser.sync_playwright:
    from playwright.sync_api import expect

FEW = {"first_group_size": 4, "n_groups": 2, "other_groups_size": 2}
NO_CLIPBOARD = "Object.defineProperty(navigator, 'clipboard', { value: undefined })"
BROKEN_STORAGE = "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('no') } })"


@pytest.fixture(scope="module")
def features():
    features = make_features(4, dead=(3,), **FEW)
    split = sorted(features.vocab_bytes)  # a violin and a tick, each in three tokens
    ids = [7, *split, 9, 1, 2]
    shown = SequenceData(2000, 1, 3, ids, [0.0, 0.0, 0.1, 0.4, 0.0, 0.2, 0.0, 0.0, 0.0, 0.0], [None] * 10)
    features[0].sequences.groups[0].sequences[1] = shown
    features.rows[2000] = [0, *ids, *split[:3], 40, 41]
    return features


@pytest.fixture(scope="module")
def page(features):
    return features.get_html()


def choose(opened, name, value):
    opened.page.get_by_role("button", name="View").click()
    opened.page.locator(f'[data-setting="{name}"] [data-value="{value}"]').click()
    opened.page.keyboard.press("Escape")


def tokens(opened, number):
    return opened.js(f"[...document.querySelectorAll('.seq')[{number}].children].map(e => e.textContent)")


LEVEL = "Number(getComputedStyle(token).getPropertyValue('--a'))"


def levels(opened):
    """How strongly each token of each sequence is coloured."""
    return opened.js(f"[...document.querySelectorAll('.seq')].map(s => [...s.children].map(token => {LEVEL}))")


def shown_sequences(features, index=0):
    return [sequence for group in features[index].sequences.groups for sequence in group.sequences]


# --- where lines break -------------------------------------------------------------------------------------------------

WORDS = [
    " class",
    "Con",
    "crete",
    "Model",
    "(",
    "self",
    "):",
    "\n\n   ",
    " for",
    "ward",
    " in",
    "visible",
    " a",
    "b",
    "c",
    "_",
    "d",
]
CHINESE = ["你好", "世", "界", "中文", "的", "句子"]
# Of each sequence the tokens of each line, and of every token on how many lines it is.
LINES = """[...document.querySelectorAll(SELECTOR)].map((sequence) => {
  const tokens = [...sequence.querySelectorAll("span:not(.window)")];
  const lines = [];
  const tops = new Set();
  let top = null;
  tokens.forEach((token, place) => {
    const boxes = [...token.getClientRects()].filter((box) => box.width);
    if (top === null || boxes[0].top > top + 11) lines.push([]);
    lines.at(-1).push(place);
    top = boxes.at(-1).top;
    for (const box of boxes) tops.add(Math.round(box.top));
  });
  return { lines, rows: tops.size, pieces: tokens.map((token) => token.getClientRects().length),
    right: Math.max(...tokens.flatMap((token) => [...token.getClientRects()].map((box) => box.right))) };
})"""


@pytest.fixture(scope="module")
def breaking():
    """A feature whose examples are words in pieces, a word without an end, and Chinese."""
    data = make_features(1, dead=(), first_group_size=3, n_groups=0)
    first = len(data.vocab) + 10
    vocab = [*WORDS, *CHINESE, "abcdefg"]
    data.vocab |= {first + place: text for place, text in enumerate(vocab)}
    words = [first + place for place in range(len(WORDS))] * 6
    chinese = [first + len(WORDS) + place for place in range(len(CHINESE))] * 20
    endless = [first + len(vocab) - 1] * 40
    for index, ids in enumerate((words, endless, chinese)):
        acts = [0.0, 0.5, *[0.0] * (len(ids) - 2)]
        data.rows[3000 + index] = ids
        data[0].sequences.groups[0].sequences[index] = SequenceData(3000 + index, 0, 1, ids, acts, [None] * len(ids))
    return data


@pytest.mark.parametrize("width", [400, 1440])
@pytest.mark.parametrize("where", [".seq", ".whole .tokens"])
def test_lines_break_at_the_beginning_of_words(show, breaking, width, where):
    opened = show(breaking.get_html(), size=(width, 900))
    for _ in range(3 if where != ".seq" else 0):
        opened.page.locator(".seq:not(.open)").first.press("Enter")
        opened.js("document.activeElement.blur()")
    expect(opened.page.locator(where)).to_have_count(3)
    words, endless, chinese = opened.js(LINES.replace("SELECTOR", repr(where)))
    assert len(words["lines"]) > 2
    starts = [WORDS[line[0] % len(WORDS)] for line in words["lines"]]
    assert all(text[0].isspace() for text in starts)
    if where == ".seq":  # an outline is drawn around each piece of a token, even one of no width
        assert set(words["pieces"]) == {1}
    assert endless["rows"] > 1  # longer than any line, and without a place to break
    assert chinese["rows"] > 1
    for box, found in zip(opened.boxes(where), (words, endless, chinese), strict=True):
        assert found["right"] <= box["right"] + 1
    assert opened.js("document.documentElement.scrollWidth") <= width


def test_raw_tokens_are_each_in_one_piece(show, breaking):
    opened = show(breaking.get_html(), size=(400, 900))
    choose(opened, "tokens", "raw")
    for found in opened.js(LINES.replace("SELECTOR", "'.seq'")):
        assert len(found["lines"]) > 2
        assert set(found["pieces"]) == {1}
    starts = [WORDS[line[0] % len(WORDS)] for line in opened.js(LINES.replace("SELECTOR", "'.seq'"))[0]["lines"]]
    assert not all(text[0].isspace() for text in starts)
    assert opened.js("document.documentElement.scrollWidth") == 400


def test_what_a_line_may_break_at_is_in_no_text(show, breaking):
    opened = show(breaking.get_html())
    for kind in ("text", "html", "latex"):
        assert "\u200b" not in opened.js(f"saeVis.copied.{kind}(document.querySelector('.seq'))")
    assert opened.js("saeVis.copied.text(document.querySelector('.seq'))") == "".join(WORDS * 6)
    selected = opened.js("""(() => {
      getSelection().selectAllChildren(document.querySelector(".seq"));
      return String(getSelection());
    })()""")
    assert "\u200b" not in selected
    assert "Concrete" in selected


# --- the menu of settings ----------------------------------------------------------------------------------------------


def test_a_setting_is_kept_in_the_browser_and_holds_for_the_next_feature(show, page):
    opened = show(page)
    choose(opened, "tokens", "raw")
    opened.reload()
    expect(opened.page.locator(".seq").first).to_be_visible()
    assert opened.js("document.documentElement.dataset.tokens") == "raw"
    assert tokens(opened, 1)[1:4] == ["F0", "9F", "8EBB"]
    opened.js("location.hash = '#feature=1'")
    expect(opened.page.locator("article.feature")).to_have_attribute("data-feature", "1")
    opened.js("location.hash = '#feature=0'")
    expect(opened.page.locator("article.feature")).to_have_attribute("data-feature", "0")
    assert tokens(opened, 1)[1:4] == ["F0", "9F", "8EBB"]


def test_settings_work_where_storage_throws(show, page):
    opened = show(page, init=BROKEN_STORAGE)
    choose(opened, "tokens", "raw")
    assert tokens(opened, 1)[1:4] == ["F0", "9F", "8EBB"]


def test_the_menu_is_used_by_keyboard_and_gives_the_focus_back(show, page):
    opened = show(page)
    button = opened.page.get_by_role("button", name="View")
    button.focus()
    opened.page.keyboard.press("Enter")
    expect(opened.page.get_by_role("dialog", name="View")).to_be_visible()
    rows = opened.page.locator(".view-panel [role=radiogroup]:visible")
    expect(rows.first.get_by_role("radio", checked=True)).to_be_focused()
    for place in range(1, rows.count()):  # one stop in each row
        opened.page.keyboard.press("Tab")
        expect(rows.nth(place).get_by_role("radio", checked=True)).to_be_focused()
    for _ in range(rows.count()):
        if opened.js("document.activeElement.dataset.value") == "joined":
            break
        opened.page.keyboard.press("Shift+Tab")
    opened.page.keyboard.press("ArrowRight")
    expect(opened.page.get_by_role("radio", name="raw")).to_have_attribute("aria-checked", "true")
    expect(opened.page.get_by_role("radio", name="raw")).to_be_focused()
    opened.page.keyboard.press("Escape")
    expect(opened.page.get_by_role("dialog", name="View")).to_be_hidden()
    expect(button).to_be_focused()
    expect(opened.page.locator("article.feature")).to_have_attribute("data-feature", "0")


@pytest.mark.parametrize("width", [1440, 400])
def test_the_menu_is_never_outside_the_window(show, page, width):
    opened = show(page, size=(width, 800))
    opened.page.get_by_role("button", name="View").click()
    (box,) = opened.boxes(".view-panel")
    assert box["left"] >= 0
    assert box["right"] <= width


# --- how tokens are shown ------------------------------------------------------------------------------------------------


def test_raw_tokens_are_bytes_and_joined_ones_characters(show, page):
    opened = show(page)
    joined = tokens(opened, 1)
    assert joined[1:7] == ["\U0001f3bb", "‹", "‹", "✓", "‹", "‹"]
    choose(opened, "tokens", "raw")
    assert tokens(opened, 1)[1:7] == ["F0", "9F", "8EBB", "E2", "9C", "93"]
    choose(opened, "tokens", "joined")
    assert tokens(opened, 1) == joined


def test_natural_whitespace_is_the_text_itself(show, page):
    opened = show(page)
    marked = tokens(opened, 1)
    assert marked[8:] == ["↵", "→"]
    choose(opened, "whitespace", "natural")
    assert tokens(opened, 1)[8:] == ["\n", "\t"]
    choose(opened, "whitespace", "visible")
    assert tokens(opened, 1) == marked


def test_colours_to_each_sequences_own_maximum(show, features, page):
    opened = show(page)
    choose(opened, "scale", "sequence")
    for sequence, seen in zip(shown_sequences(features), levels(opened), strict=True):
        expected = [act / max(sequence.feat_acts) for act in sequence.feat_acts]
        assert seen == pytest.approx(expected, abs=0.002)
    assert opened.texts(".key-act") == ["Activation 0each sequence’s largest"]
    choose(opened, "scale", "feature")
    assert levels(opened)[1][3] == pytest.approx(0.4 / features[0].activations.max, abs=0.006)
    assert "each sequence" not in opened.texts(".key-act")[0]


def test_the_prompt_page_has_the_same_settings(show):
    opened = show(make_prompt(first_group_size=3).get_html(seq_pos=5, score_name="act_size"))
    choose(opened, "scale", "sequence")
    assert {max(seen) for seen in levels(opened)} <= {0, 1}
    expect(opened.page.locator(".prompt .seq").first).to_be_visible()


# --- whole rows ----------------------------------------------------------------------------------------------------------


def test_a_click_shows_the_whole_row_and_another_hides_it(show, features, page):
    opened = show(page)
    sequence, number = shown_sequences(features)[0], 0
    place = opened.page.locator(".seq").nth(number)
    place.click(position={"x": 20, "y": 8})
    expect(opened.page.locator(".whole .t")).to_have_count(len(features.rows[sequence.row]))
    assert opened.texts(".whole .window") == ["".join(tokens(opened, number))]
    assert opened.texts(".whole .b") == [tokens(opened, number)[sequence.bold_idx]]
    assert opened.js("[...document.querySelectorAll('.whole .t')].findIndex(t => t.matches('.b'))") == (
        sequence.start + sequence.bold_idx
    )
    coloured = opened.js(
        "[...document.querySelectorAll('.whole .t')].flatMap((t, i) => t.style.getPropertyValue('--a') ? [i] : [])"
    )
    assert all(sequence.start <= place < sequence.start + len(sequence.token_ids) for place in coloured)
    assert "not in this page" in opened.texts(".whole .told")[0]
    place.click(position={"x": 20, "y": 8})
    expect(opened.page.locator(".whole")).to_have_count(0)


def test_a_row_is_opened_and_closed_by_keyboard_and_the_focus_stays(show, page):
    opened = show(page)
    place = opened.page.locator(".seq").nth(1)
    place.focus()
    opened.page.keyboard.press("Enter")
    expect(opened.page.locator(".whole .t")).to_have_count(15 + 1)
    expect(place).to_be_focused()
    opened.page.keyboard.press("Escape")  # the hover text, which the focus shows
    expect(opened.page.locator(".hovertext")).to_be_hidden()
    expect(opened.page.locator(".whole")).to_have_count(1)
    opened.page.keyboard.press("Escape")
    expect(opened.page.locator(".whole")).to_have_count(0)
    expect(place).to_be_focused()
    opened.page.keyboard.press("Enter")
    opened.page.locator(".whole .tokens").focus()
    opened.page.keyboard.press("Escape")
    expect(place).to_be_focused()


def test_a_row_joins_characters_over_the_edges_of_what_is_known(show, page):
    opened = show(page)
    opened.page.locator(".seq").nth(1).click(position={"x": 20, "y": 8})
    expect(opened.page.locator(".whole .t")).to_have_count(16)
    shown = opened.texts(".whole .t")
    assert shown[2:8] == ["\U0001f3bb", "‹", "‹", "✓", "‹", "‹"]
    assert shown[-5:-2] == ["\U0001f3bb", "‹", "‹"]
    choose(opened, "tokens", "raw")
    expect(opened.page.locator(".whole .t").nth(2)).to_have_text("F0")


def test_the_bold_token_of_a_long_row_is_in_sight(show, features):
    long = dataclasses.replace(features, rows={row: ids * 60 for row, ids in features.rows.items()})
    opened = show(long.get_html(), size=(700, 700))
    opened.js("document.querySelector('.seq').click()")
    expect(opened.page.locator(".whole .b")).to_be_in_viewport()
    assert opened.js("(e => e.scrollHeight > e.clientHeight)(document.querySelector('.whole .tokens'))")


def test_an_open_row_has_the_colours_of_its_sequence(show, features, page):
    opened = show(page)
    opened.page.locator(".seq").nth(1).press("Enter")
    expect(opened.page.locator(".whole .t")).to_have_count(16)
    for value in ("feature", "sequence"):
        choose(opened, "scale", value)
        expect(opened.page.locator(".whole .window .t")).to_have_count(10)
        seen = opened.js(f"[...document.querySelectorAll('.whole .window .t')].map(token => {LEVEL})")
        assert seen == levels(opened)[1]
        assert (max(seen) == 1) == (value == "sequence")


def test_without_stored_rows_nothing_opens(show):
    opened = show(make_features(2, dead=(), store_rows=False, **FEW).get_html())
    opened.page.locator(".seq").first.click(position={"x": 20, "y": 8})
    opened.page.locator(".seq").first.press("Enter")
    assert opened.texts(".whole") == []


def test_an_example_beside_a_prompt_shows_its_row_and_the_prompt_is_its_own(show):
    prompt = make_prompt(6, first_group_size=2)
    ranked = prompt.scores["act_size"]
    position = next(position for position, found in enumerate(ranked) if found)
    feature, _ = ranked[position][0]
    top = prompt.prompt_data_dict[feature].top_group.sequences[0]
    row = [*[top.token_ids[0]] * top.start, *top.token_ids, *top.token_ids[:2]]
    prompt.rows[top.row] = row
    opened = show(prompt.get_html(seq_pos=position, score_name="act_size"))
    column = opened.page.locator(f"article[data-feature='{feature}']")
    example, own = column.locator(".seqs:not(.prompt) .seq").first, column.locator(".prompt .seq").first
    opened.page.keyboard.press("Tab")  # by key from here on
    example.focus()
    assert "Enter shows its row" in example.get_attribute("aria-label")
    opened.page.keyboard.press("Enter")
    expect(column.locator("div.whole .t")).to_have_count(len(row))
    expect(column.locator("div.whole .told")).to_contain_text(f"Row {top.row}, {len(row)} tokens")
    opened.page.keyboard.press("Escape")  # the hover text
    opened.page.keyboard.press("Escape")
    expect(column.locator("div.whole")).to_have_count(0)
    own.focus()
    assert "Enter" not in own.get_attribute("aria-label")
    opened.page.keyboard.press("Enter")
    expect(column.locator("div.whole")).to_have_count(0)


def test_another_feature_has_no_open_row(show, page):
    opened = show(page)
    opened.page.locator(".seq").first.click(position={"x": 20, "y": 8})
    expect(opened.page.locator(".whole .t").first).to_be_visible()
    opened.js("location.hash = '#feature=1'")
    expect(opened.page.locator("article.feature")).to_have_attribute("data-feature", "1")
    expect(opened.page.locator(".whole")).to_have_count(0)


# --- copying ---------------------------------------------------------------------------------------------------------------


def copied(opened, kind, number=0):
    return opened.js(f"saeVis.copied.{kind}(document.querySelectorAll('.seq')[{number}])")


def test_a_sequence_is_copied_as_its_exact_text(show, features, page):
    opened = show(page)
    expected = "".join(features.vocab[i] for i in shown_sequences(features)[0].token_ids)
    assert copied(opened, "text") == expected
    assert copied(opened, "text", 1) == f"{features.vocab[7]}\U0001f3bb✓{features.vocab[9]}\n\t"


def test_without_a_clipboard_the_text_is_shown_to_be_copied(show, features, page):
    opened = show(page, init=NO_CLIPBOARD)
    place = opened.page.locator(".seq").first
    place.focus()
    opened.page.keyboard.press("m")
    expect(opened.page.get_by_role("menuitem", name="Whole row")).to_be_focused()
    opened.page.keyboard.press("ArrowRight")  # not to another feature
    opened.page.keyboard.press("ArrowDown")
    opened.page.keyboard.press("Enter")
    area = opened.page.get_by_role("textbox", name="Sequence as text")
    expect(area).to_be_focused()
    chosen = opened.js("(e => e.value.slice(e.selectionStart, e.selectionEnd))(document.activeElement)")
    assert chosen == copied(opened, "text")
    opened.page.keyboard.press("Escape")
    expect(area).to_have_count(0)
    expect(place).to_be_focused()
    expect(opened.page.locator("article.feature")).to_have_attribute("data-feature", "0")


def test_the_clipboard_holds_what_was_copied(show, page):
    opened = show(page, permissions=["clipboard-read", "clipboard-write"])
    for number, (item, kind) in enumerate((("text", "text"), ("HTML", "html"), ("LaTeX", "latex"))):
        copy(opened, number, item)
        # What is said stays, while the tick is there for a moment, which a busy browser may pass over.
        expect(opened.page.locator(".spoken")).to_have_text(f"Sequence as {item}: copied.")
        assert opened.js("navigator.clipboard.readText()").replace("\r\n", "\n") == copied(opened, kind, number)


def copy(opened, number, item):
    opened.page.locator(".seq").nth(number).hover()
    opened.page.get_by_role("button", name="Sequence menu").click()
    opened.page.get_by_role("menuitem", name=f"Copy {item}").click()


# A clipboard that is done when it is told so, and the timers of the tick, which fire when they are told so.
BY_HAND = """
  const timers = new Map(), start = setTimeout, stop = clearTimeout;
  globalThis.written = [];
  Object.defineProperty(navigator, "clipboard", { value: { writeText: () => new Promise((done) => written.push(done)) } });
  globalThis.setTimeout = (run, ms, ...rest) => {
    if (ms !== 1200) return start(run, ms, ...rest);
    timers.set(-timers.size - 1, () => run(...rest));
    return -timers.size;
  };
  globalThis.clearTimeout = (timer) => (timers.has(timer) ? timers.set(timer, () => {}) : stop(timer));
  globalThis.fire = (which) => timers.get(-which)();
"""


def test_the_tick_of_a_copy_has_its_time(show, page):
    opened = show(page, init=BY_HAND)
    button = opened.page.locator(".seq-button")
    copy(opened, 0, "text")
    expect(button).to_have_text("⋯")  # nothing is copied yet
    opened.js("written[0]()")
    expect(button).to_have_text("✓")
    opened.page.locator(".seq").nth(3).hover()  # as where the menu closes below the mouse
    expect(
        opened.page.locator(".seq").nth(3).locator("xpath=following-sibling::*[1]").locator(".seq-button")
    ).to_have_text("✓")
    copy(opened, 1, "text")
    expect(button).to_have_text("⋯")  # of another sequence
    opened.js("written[1]()")
    expect(button).to_have_text("✓")
    opened.js("fire(1)")  # the first one's time is over
    assert button.text_content() == "✓"
    opened.js("fire(2)")
    assert button.text_content() == "⋯"


class Shown(html.parser.HTMLParser):
    """The tags, attributes and text of copied HTML."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.names, self.text = [], set(), ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.names |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.text += data


COMMANDS = {
    *(
        "ttfamily",
        "setlength",
        "fboxsep",
        "colorbox",
        "mbox",
        "strut",
        "textbf",
        "allowbreak",
        "textbackslash",
        "textbar",
    ),
    *("textasciicircum", "textasciitilde", "textless", "textgreater", "textquotedbl", "hookleftarrow", "rightarrow"),
}


def check_latex(text):
    """By TeX's own rules of reading: no command but ours, braces balanced, no special character left, no line ended early."""
    head, _, body = text.partition("\n")
    assert head == "% \\usepackage[T1]{fontenc} \\usepackage{xcolor}"
    depth, math, at = 0, False, 0
    while at < len(body):
        char = body[at]
        if char == "\\":
            name = re.compile(r"\\([a-zA-Z]+|.)", re.DOTALL).match(body, at)
            assert name[1] in COMMANDS or name[1] in "{}#$%&_ ", name[1]
            at = name.end()
            continue
        if char == "%":
            assert body[at : at + 2] == "%\n"
            at += 2
            continue
        depth += (char == "{") - (char == "}")
        assert depth >= 0
        math ^= char == "$"
        assert char not in "#&_^~"
        assert char.isprintable() or (char == "\n" and at == len(body) - 1)
        at += 1
    assert depth == 0
    assert not math


MORE_HOSTILE = [
    "\\input{x}}{%",
    "^^5cinput",
    "$\\write18{x}$",
    "#1 & ~_^",
    "\\\n\n\\par",
    "`` -- ?` !`",
    "}}}",
    "{",
    "%",
]


def test_hostile_tokens_stay_text_in_what_is_copied(show):
    texts = [*HOSTILE.values(), *MORE_HOSTILE]
    features = make_features(1, dead=(), **FEW)
    features.vocab.update(enumerate(texts))
    ids = list(range(len(texts)))
    everything = SequenceData(2000, 0, 1, ids, [0.1] * len(ids), [None] * len(ids))
    features[0].sequences.groups[0].sequences[0] = everything
    features.rows[2000] = [*ids, *ids]
    opened = show(features.get_html())
    latex = copied(opened, "latex")
    check_latex(latex)
    for text in ("input", "textbackslash", "write18"):
        assert text in latex  # it is there, as text
    seen = Shown(copied(opened, "html"))
    assert set(seen.tags) == {"code", "span"}
    assert seen.names <= {"style", "dir"}
    assert all(char.isprintable() for char in seen.text)
    for name in ("end of script", "image", "attribute", "entity", "Hebrew", "hole"):
        assert HOSTILE[name] in seen.text
    for name, value in (("tokens", "raw"), ("whitespace", "natural")):
        choose(opened, name, value)
        check_latex(copied(opened, "latex"))
    opened.page.locator(".seq").first.press("Enter")
    expect(opened.page.locator(".whole .t")).to_have_count(2 * len(ids))
    assert opened.js(
        "[...document.querySelectorAll('.whole *')].every(e => 'SPAN DIV P SMALL BUTTON I SAMP ABBR'.includes(e.tagName))"
    )


def test_copied_latex_and_html_show_the_tokens_in_their_colours(show, features, page):
    opened = show(page)
    sequence = shown_sequences(features)[0]
    strong = max(range(len(sequence.feat_acts)), key=sequence.feat_acts.__getitem__)
    assert strong == sequence.bold_idx
    assert "\\colorbox[rgb]{1,0.549,0}{\\strut \\textbf{" in copied(opened, "latex")
    assert "background-color:rgb(255,140,0);color:#000;font-weight:700" in copied(opened, "html")
    seen = Shown(copied(opened, "html")).text
    assert seen == "".join(features.vocab[i] for i in sequence.token_ids).replace("\n", "↵").replace("\t", "→")


# --- in a notebook, and in a site --------------------------------------------------------------------------------------------


def test_everything_works_in_a_notebooks_frame(show, features):
    opened = show(f"<!doctype html><title>Notebook</title>{features._repr_html_() * 2}", init=NO_CLIPBOARD)
    one, other = (opened.page.frame_locator("iframe").nth(place) for place in range(2))
    for frame in (one, other):
        frame.locator('[role="gridcell"] a[href="#feature=0"]').click()  # from the overview
    one.locator(".seq").nth(1).click(position={"x": 20, "y": 8})
    expect(one.locator(".whole .t")).to_have_count(16)
    one.locator(".seq").first.press("m")
    one.get_by_role("menuitem", name="Copy LaTeX").click()
    expect(one.get_by_role("textbox", name="Sequence as LaTeX")).to_be_focused()
    one.get_by_role("button", name="Close", exact=True).click()
    one.get_by_role("button", name="View").click()
    one.get_by_role("radio", name="raw").click()
    expect(one.locator(".seq").nth(1).locator("> *").nth(1)).to_have_text("F0")
    one.locator(".said .edit").click()
    one.get_by_role("textbox", name="Label").fill("a label")
    one.get_by_role("textbox", name="Label").press("Enter")
    expect(one.locator("h2 .label")).to_have_text("a label")
    expect(other.locator("h2 .label")).to_have_text("a label")  # the same features in another frame
    expect(other.locator(".whole")).to_have_count(0)
    with opened.page.expect_download() as download:
        one.get_by_role("button", name="Save as SVG: Activations").click()
    assert download.value.suggested_filename == "feature-0-activations.svg"
