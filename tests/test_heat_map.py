"""The heat map of a prompt: its rows against the definition, and how a page shows them, chooses by them and tells of them."""

from __future__ import annotations

import dataclasses
import re

import browser
import pytest
from rendering_fixtures import make_prompt
from test_prompt import as_pairs, prompted

from sae_vis import HeatRow, MultiPromptData
from sae_vis._errors import InputError
from sae_vis._prompt_panels import HEAT_ROWS, PROMPT_HEAT, difference_metric, heat_data, heat_rows

if browser.sync_playwright:
    from playwright.sync_api import expect

in_browser = pytest.mark.browser


# --- the rows -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 100])
def test_rows_are_the_features_with_the_best_score_anywhere_with_all_their_scores(size):
    whole, some = (prompted(num_top_features=n) for n in (100, size))
    assert some.heat_map == whole.heat_map  # however few are ranked at each token
    for name, rankings in whole.scores.items():
        at = as_pairs(rankings)
        found: dict[int, dict[int, float]] = {}
        for position, scores in enumerate(at):
            for feature, score in scores.items():
                found.setdefault(feature, {})[position] = score
        sign = 1 if name == "loss_effect" else -1
        order = sorted(found, key=lambda f: (min(sign * s for s in found[f].values()), f))
        rows = whole.heat_map[name]
        assert [row.feature_idx for row in rows] == order
        assert [dict(zip(row.positions, row.scores, strict=True)) for row in rows] == [found[f] for f in order]


def test_no_more_rows_than_there_may_be():
    ranked = [[(feature, float(feature % 70)) for feature in range(200)]]
    rows = heat_rows(ranked, HEAT_ROWS, "largest")
    assert [row.feature_idx for row in rows[:4]] == [69, 139, 68, 138]
    assert len(rows) == HEAT_ROWS
    assert heat_rows([[], []], 5, "largest") == []


@pytest.mark.parametrize(("best", "order"), [("largest", [7, 3, 5]), ("lowest", [5, 3, 7]), ("size", [5, 7, 3])])
def test_rows_are_ranked_by_the_largest_score_the_lowest_or_the_largest_in_size(best, order):
    ranked = [[(3, 1.0), (7, 2.0)], [(5, -9.0), (3, -1.5)]]
    rows = heat_rows(ranked, 9, best)
    assert [row.feature_idx for row in rows] == order
    assert rows[order.index(3)] == HeatRow(3, [0, 1], [1.0, -1.5])


def test_the_strongest_feature_of_any_token_has_a_row_and_every_row_a_column():
    data = prompted(num_top_features=1)
    for name, rankings in data.scores.items():
        features = {row.feature_idx for row in data.heat_map[name]}
        assert features <= set(data.prompt_data_dict)
        assert {f for ranking in rankings for f, _ in ranking} <= features


def test_colours_are_shares_of_the_largest_and_nines_of_a_quantile():
    rows = {
        "act_size": [HeatRow(4, [0, 2], [8.0, 2.0])],
        "act_quantile": [HeatRow(4, [0, 1, 2, 3], [0.0, 0.9, 0.99999, 1.0])],
        "loss_effect": [HeatRow(7, [1, 2], [-1.0, 0.25])],
    }
    drawn = heat_data(rows, PROMPT_HEAT, {4: "x", 7: None}, lambda *cell: " ".join(map(str, cell)))
    assert drawn["labels"] == {4: "x"}
    found = {name: metric["rows"] for name, metric in drawn["metrics"].items()}
    assert found["act_size"] == [[4, [0, 2], [100, 25], ["act_size 4 0 8.0", "act_size 4 2 2.0"], 0]]
    assert found["act_quantile"][0][2] == [1, 20, 100, 100]
    assert found["loss_effect"] == [[7, [1, 2], [-100, 50], ["loss_effect 7 1 -1.0", "loss_effect 7 2 0.25"], 1]]
    assert [metric["signed"] for metric in drawn["metrics"].values()] == [False, False, True]


def test_differences_have_a_colour_by_their_sign_and_their_place_in_a_strip_that_begins_with_all_tokens():
    rows = {"act_size": [HeatRow(4, [0, 2], [1.0, -4.0])], "act_quantile": [HeatRow(4, [1], [0.25])]}
    metrics = {
        "act_size": difference_metric("activation", "activation", rooted=False),
        "act_quantile": difference_metric("quantile", "quantile", rooted=True),
    }
    rows["act_quantile"].append(HeatRow(5, [2], [-1.0]))
    drawn = heat_data(rows, metrics, {}, lambda name, feature, at, score: f"{score:g}", first=1)
    assert drawn["first"] == 1
    assert drawn["metrics"]["act_size"]["rows"] == [[4, [1, 3], [25, -100], ["1", "-4"], 3]]
    assert [row[2] for row in drawn["metrics"]["act_quantile"]["rows"]] == [[50], [-100]]
    assert all(metric["signed"] for metric in drawn["metrics"].values())


@pytest.mark.parametrize(
    ("positions", "scores"), [([1, 1], [1.0, 2.0]), ([-1], [1.0]), ([1], [1.0, 2.0]), ([], []), ([2], [float("nan")])]
)
def test_rows_that_cannot_be_are_refused(positions, scores):
    with pytest.raises(InputError, match="HeatRow"):
        HeatRow(3, positions, scores)
    with pytest.raises(InputError, match="HeatRow: feature_idx must be from 0"):
        HeatRow(-1, [0], [1.0])


def test_a_map_of_another_prompt_is_refused():
    data = make_prompt(3, 4)
    with pytest.raises(InputError, match="position 4 of a prompt of 4 tokens"):
        dataclasses.replace(data, heat_map={"act_size": [HeatRow(0, [4], [1.0])]})
    with pytest.raises(InputError, match="which scores have not"):
        dataclasses.replace(data, heat_map={"loss_effect_full": []})


# --- the page -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prompt() -> MultiPromptData:
    data = make_prompt(30, 14, n_top=3, first_group_size=2)
    full = make_prompt(30, 14, n_top=100, first_group_size=2)
    data.heat_map = {name: heat_rows(of, HEAT_ROWS, PROMPT_HEAT[name].best) for name, of in full.scores.items()}
    label = data.heat_map["act_size"][2].feature_idx
    data.prompt_data_dict[label].label = "<b>bold & long label of a feature that has no end</b>"
    return data


@pytest.fixture(scope="module")
def page(prompt):
    return prompt.get_html(seq_pos=5, score_name="act_size")


def drawn(opened):
    """The features of the rows, and the positions of the coloured cells of each."""
    return opened.js(
        "[...document.querySelectorAll('.heat tbody tr')].map(r => [Number(r.dataset.feature),"
        "[...r.querySelectorAll('td[data-text]')].map(c => [Number(c.dataset.at), c.dataset.text])])"
    )


@in_browser
def test_rows_of_every_metric_are_drawn_in_both_orders_and_sizes(show, prompt, page):
    opened = show(page)
    for metric, rows in prompt.heat_map.items():
        opened.page.locator(f".metrics [data-metric={metric}]").click()
        expect(opened.page.locator(".heat tbody tr")).to_have_count(min(8, len(rows)))
        assert [feature for feature, _ in drawn(opened)] == [row.feature_idx for row in rows[:8]]
        opened.page.get_by_role("button", name="Show more").click()
        expect(opened.page.locator(".heat tbody tr")).to_have_count(min(20, len(rows)))
        shown = drawn(opened)
        assert [feature for feature, _ in shown] == [row.feature_idx for row in rows[:20]]
        assert [[at for at, _ in cells] for _, cells in shown] == [row.positions for row in rows[:20]]
        opened.page.locator(".heat-size").select_option("8")
        opened.page.locator(".heat-order").select_option("place")
        best = min if metric == "loss_effect" else max
        peaks = {row.feature_idx: row.positions[row.scores.index(best(row.scores))] for row in rows}
        by_place = [feature for feature, _ in drawn(opened)]
        assert by_place == sorted([row.feature_idx for row in rows[:8]], key=lambda f: peaks[f])
        opened.page.locator(".heat-order").select_option("best")


@in_browser
def test_a_cell_chooses_its_token_and_marks_its_features_column(show, prompt, page):
    opened = show(page)
    row = prompt.heat_map["act_size"][2]
    position = row.positions[-1]
    opened.page.locator(f'.heat tr[data-feature="{row.feature_idx}"] td[data-at="{position}"]').click()
    expect(opened.page.locator(".strip button").nth(position)).to_have_attribute("aria-checked", "true")
    expect(opened.page.locator(".prompt-column.marked")).to_have_count(1)
    assert opened.hash == f"#pos={position}&metric=act_size&feature={row.feature_idx}"
    assert opened.js("Number(document.querySelector('.marked').dataset.feature)") == row.feature_idx
    assert opened.texts('.heat [aria-selected="true"] th b') == [str(row.feature_idx)]
    assert set(opened.js("[...document.querySelectorAll('.heat .at')].map(c => c.dataset.at)")) == {str(position)}
    # One that is not ranked there gets a column of its own behind the others.
    ranked = {feature for feature, _ in prompt.scores["act_size"][position]}
    other = next(r.feature_idx for r in prompt.heat_map["act_size"] if r.feature_idx not in ranked)
    opened.page.locator(f'.heat tr[data-feature="{other}"] td[data-at="{position}"]').click()
    expect(opened.page.locator(f'.prompt-column.marked[data-feature="{other}"] [data-slot=rank]')).to_have_text(
        "not ranked here:"
    )
    expect(opened.page.locator(".prompt-columns > article")).to_have_count(len(ranked) + 1)
    # The strip chooses a token without a feature.
    opened.page.locator(".strip button").nth(3).click()
    expect(opened.page.locator(".marked")).to_have_count(0)
    assert opened.hash == "#pos=3&metric=act_size"


@in_browser
def test_hovering_tells_the_number_in_the_window(show, prompt, page):
    opened = show(page, size=(400, 800))
    row = prompt.heat_map["act_size"][2]
    for position in (row.positions[0], row.positions[-1]):
        opened.page.locator(f'.heat tr[data-feature="{row.feature_idx}"] td[data-at="{position}"]').hover()
        tip = opened.page.locator(".heat-tip")
        expect(tip).to_be_visible()
        text = tip.text_content()
        assert text.startswith(f"Feature {row.feature_idx} <b>bold & long label")
        score = float(text.rpartition(" ")[2])
        assert score == pytest.approx(row.scores[row.positions.index(position)], rel=1e-3)
        (box,) = opened.boxes(".heat-tip")
        assert box["left"] >= 0
        assert box["right"] <= 400
    opened.page.mouse.move(5, 5)
    expect(tip).to_be_hidden()


@in_browser
def test_keys_move_from_cell_to_cell_and_choose(show, prompt, page):
    opened = show(page)
    key = opened.page.keyboard.press
    assert opened.js("document.querySelectorAll('.heat [tabindex=\"0\"]').length") == 1
    opened.page.locator('.heat td[tabindex="0"]').focus()
    here = "[document.activeElement.parentElement.rowIndex - 1, Number(document.activeElement.dataset.at)]"
    assert opened.js(here) == [0, 5]
    moves = [("ArrowDown", [1, 5]), ("ArrowRight", [1, 6]), ("End", [1, 13]), ("ArrowRight", [1, 13])]
    moves += [
        ("PageDown", [7, 13]),
        ("PageUp", [0, 13]),
        ("Control+End", [7, 13]),
        ("Control+Home", [0, 0]),
        ("ArrowUp", [0, 0]),
    ]
    for pressed, place in moves:
        key(pressed)
        assert opened.js(here) == place
        assert opened.js("document.querySelectorAll('.heat [tabindex=\"0\"]').length") == 1
        expect(opened.page.locator(".heat-tip")).to_be_visible()
    key("ArrowRight")
    key("Enter")
    first = prompt.heat_map["act_size"][0].feature_idx
    expect(opened.page.locator(f'.marked[data-feature="{first}"]')).to_have_count(1)
    assert opened.hash == f"#pos=1&metric=act_size&feature={first}"
    key("Escape")
    expect(opened.page.locator(".heat-tip")).to_be_hidden()


@in_browser
def test_the_name_of_a_feature_goes_by_keyboard_where_it_is_strongest(show, prompt, page):
    opened = show(page, size=(400, 800))
    key = opened.page.keyboard.press
    opened.page.locator('.heat td[tabindex="0"]').focus()
    key("Home")
    key("ArrowLeft")
    key("ArrowDown")
    row = prompt.heat_map["act_size"][1]
    told = opened.page.locator(".heat-tip")
    expect(told).to_have_text(re.compile(rf"Feature {row.feature_idx}\b.*: go where it is strongest"))
    (box,) = opened.boxes(".heat-tip")
    assert box["left"] >= 0
    assert box["right"] <= 400
    key("Enter")
    expect(opened.page.locator(f'.marked[data-feature="{row.feature_idx}"]')).to_have_count(1)
    peak = row.positions[row.scores.index(max(row.scores))]
    assert opened.hash == f"#pos={peak}&metric=act_size&feature={row.feature_idx}"
    assert opened.js("document.activeElement.tagName") == "TH"
    key("ArrowRight")
    assert opened.js("document.activeElement.dataset.at") == "0"
    assert opened.js("document.querySelectorAll('.heat [tabindex=\"0\"]').length") == 1


@in_browser
def test_a_long_prompt_scrolls_inside_with_its_names_in_view(show):
    data = make_prompt(40, 64, n_top=40, first_group_size=1)
    opened = show(data.get_html(seq_pos=60, score_name="act_size"), size=(400, 800))
    assert opened.js("document.documentElement.scrollWidth") == 400
    scrolled = opened.js("document.querySelector('.heat-scroll').scrollLeft")
    assert scrolled > 0  # the chosen token is in view
    (name,) = opened.boxes(".heat tbody tr:first-child th")
    (chosen,) = opened.boxes(".heat thead .at")
    (box,) = opened.boxes(".heat-scroll")
    assert name["left"] == pytest.approx(box["left"], abs=2)
    assert name["right"] <= chosen["left"] + 1
    assert chosen["right"] <= box["right"] + 1


@in_browser
def test_a_page_that_begins_with_no_column_can_draw_the_others(show, prompt):
    opened = show(prompt.get_html(seq_pos=12, score_name="act_size"))  # where no feature is active
    expect(opened.page.locator(".none-ranked")).to_be_visible()
    opened.page.locator(".metrics [data-metric=loss_effect]").click()
    opened.page.locator(".strip button").nth(5).click()
    expect(opened.page.locator(".prompt-columns > article")).to_have_count(len(prompt.scores["loss_effect"][5]))
    opened.page.locator("article .prompt .seq > *").nth(3).hover()
    expect(opened.page.locator(".hovertext")).to_be_visible()
    assert opened.js("getComputedStyle(document.querySelector('article .plot')).display") == "block"


@in_browser
def test_a_cell_that_has_the_focus_or_is_chosen_is_never_behind_names_or_tokens(show):
    data = make_prompt(30, 40, n_top=100, first_group_size=2)
    data.heat_map = {name: heat_rows(of, HEAT_ROWS, PROMPT_HEAT[name].best) for name, of in data.scores.items()}
    opened = show(data.get_html(seq_pos=5, score_name="act_size"), size=(700, 500))
    covered = """((cell) => {
      const box = cell.getBoundingClientRect(), corner = document.querySelector(".heat .corner").getBoundingClientRect();
      return box.left < corner.right - 1 || (cell.closest("tbody") && box.top < corner.bottom - 1);
    })"""
    opened.page.locator(".heat tbody td").nth(30).focus()
    opened.page.keyboard.press("End")
    for key in ["ArrowLeft"] * 12 + ["ArrowRight"] * 4 + ["ArrowDown"] * 9 + ["ArrowUp"] * 9:
        opened.page.keyboard.press(key)
        assert not opened.js(f"{covered}(document.activeElement)")
    opened.js("document.querySelector('.heat-scroll').scrollLeft = 1e6")
    for token in (3, 20, 8):
        opened.page.locator(".strip button").nth(token).click()
        expect(opened.page.locator(".strip button").nth(token)).to_have_attribute("aria-checked", "true")
        assert not opened.js(f"{covered}(document.querySelector('.heat thead .at'))")
