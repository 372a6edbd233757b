"""Two prompts: how their tokens are aligned, every difference against two views of one prompt, and the page."""

from __future__ import annotations

import copy
import dataclasses
import functools
from pathlib import Path
from typing import Any

import browser
import pytest
from hf_models import BOS, PAD, shared
from IPython.core.formatters import DisplayFormatter
from page_reading import data as page_data
from rendering_fixtures import make_comparison
from test_prompt import encoder_for, fetched, prompted

from sae_vis import HeatRow, MultiPromptData, PromptComparisonData, compare_prompts
from sae_vis.__main__ import main
from sae_vis._errors import FileFormatError, InputError
from sae_vis._prompt_compare import aligned, ranked_differences

if browser.sync_playwright:
    from playwright.sync_api import expect

in_browser = pytest.mark.browser

FIRST = [7, 21, 33, 7, 45, 12, 30]
OTHER = [7, 21, 40, 7, 45, 9, 9, 12, 30]
PAIRS = [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (None, 6), (None, 7), (6, 8), (7, 9)]


@functools.cache
def compared(first: tuple[int, ...] = tuple(FIRST), other: tuple[int, ...] = tuple(OTHER), **changed: Any) -> Any:
    size = changed.pop("num_top_features", 100)
    features = fetched("gpt2", **changed)
    return compare_prompts(
        encoder_for("gpt2"), shared("gpt2"), list(first), list(other), features, num_top_features=size
    )


# --- the numbers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "other", "pairs"),
    [
        ([1, 2, 3], [1, 2, 3], [(0, 0), (1, 1), (2, 2)]),
        ([1, 2, 3], [1, 9, 3], [(0, 0), (1, 1), (2, 2)]),
        ([1, 2, 3], [1, 3], [(0, 0), (1, None), (2, 1)]),
        ([1, 3], [1, 2, 3], [(0, 0), (None, 1), (1, 2)]),
        ([1, 2, 3], [1, 8, 9, 3], [(0, 0), (1, None), (None, 1), (None, 2), (2, 3)]),
        ([1, 2], [3, 4], [(0, 0), (1, 1)]),
        # A token that is everywhere is no junk.
        ([5, *[1] * 300], [6, 7, *[1] * 300], [(0, None), (None, 0), (None, 1), *((i, i + 1) for i in range(1, 301))]),
    ],
)
def test_equal_tokens_are_paired_and_stretches_that_replace_each_other(first, other, pairs):
    assert aligned(first, other) == pairs


def test_differences_are_ranked_by_size_and_summed_over_pairs():
    first = [{1: 2.0, 2: 1.0}, {1: 1.0, 7: 5.0}, {9: 4.0}]
    other = [{1: 2.0, 3: 1.0}, {1: 4.0}, {9: 9.0}]
    of_pairs, total = ranked_differences(first, other, [(0, 0), (1, 1), (2, None), (None, 2)])
    assert of_pairs == [[(2, -1.0), (3, 1.0)], [(7, -5.0), (1, 3.0)], [(9, -4.0)], [(9, 9.0)]]
    assert total == [(7, -5.0), (9, 5.0), (1, 3.0), (2, -1.0), (3, 1.0)]


def score(data: MultiPromptData, name: str, position: int | None, feature: int) -> float:
    """A feature's score on one prompt, as its own view has it; 0 where it has none."""
    if position is None:
        return 0.0
    if name == "act_quantile":
        return dict(data.scores[name][position]).get(feature, 0.0)
    if feature not in data.prompt_data_dict:
        return 0.0
    sequence = data.prompt_data_dict[feature].sequence
    if name == "act_size":
        return sequence.feat_acts[position]
    losses = sequence.full_losses() if name == "loss_effect_full" else sequence.loss_contribution
    return losses[position] or 0.0


@pytest.mark.parametrize("ablation", ["direct", ("direct", "full")])
def test_every_difference_is_that_of_the_views_of_both_prompts(ablation):
    data = compared(ablation=ablation)
    features = fetched("gpt2", ablation=ablation)
    views = [prompted(prompt, features=features, num_top_features=100) for prompt in (FIRST, OTHER)]
    assert data.pairs == PAIRS
    assert [data.prompt_token_ids, data.other_token_ids] == [view.prompt_token_ids for view in views]
    assert list(data.totals) == list(views[0].scores)
    for name in data.totals:
        sums = dict.fromkeys(range(8), 0.0)
        for (at, other_at), ranked in zip(data.pairs, data.differences[name], strict=True):
            unmeasured = name.startswith("loss") and 0 in (at, other_at)
            expected = {}
            for feature in range(8) if not unmeasured else ():
                difference = score(views[1], name, other_at, feature) - score(views[0], name, at, feature)
                sums[feature] += difference
                if abs(difference) > 1e-12:
                    expected[feature] = difference
            assert dict(ranked) == pytest.approx(expected, rel=1e-5)
            sizes = [(-abs(difference), feature) for feature, difference in ranked]
            assert sizes == sorted(sizes)
        assert dict(data.totals[name]) == pytest.approx({f: d for f, d in sums.items() if abs(d) > 1e-12}, rel=1e-4)


@pytest.mark.parametrize("ablation", ["direct", ("direct", "full")])
@pytest.mark.parametrize("size", [1, 100])
def test_the_heat_map_has_all_differences_however_few_are_listed(ablation, size):
    data = compared(ablation=ablation, num_top_features=size)
    features = fetched("gpt2", ablation=ablation)
    views = [prompted(prompt, features=features, num_top_features=100) for prompt in (FIRST, OTHER)]
    assert list(data.heat_map) == list(data.totals)
    for name, rows in data.heat_map.items():
        expected: dict[int, dict[int, float]] = {}
        for index, (at, other_at) in enumerate(data.pairs):
            for feature in range(8) if not (name.startswith("loss") and 0 in (at, other_at)) else ():
                difference = score(views[1], name, other_at, feature) - score(views[0], name, at, feature)
                if abs(difference) > 1e-12:
                    expected.setdefault(feature, {})[index] = difference
        found = {row.feature_idx: dict(zip(row.positions, row.scores, strict=True)) for row in rows}
        assert list(found) == sorted(expected, key=lambda f: (-max(map(abs, expected[f].values())), f))
        for feature, differences in found.items():
            assert differences == pytest.approx(expected[feature], rel=1e-5)
            assert feature in data.compared_dict


def test_the_whole_rows_of_the_examples_that_a_column_shows_are_there():
    data, features = compared(num_top_features=1), fetched("gpt2")
    shown = {
        sequence.row
        for feature in data.compared_dict
        for sequence in features[feature].sequences.groups[0].sequences[:8]
    }
    assert data.rows == {row: features.rows[row] for row in sorted(shown)}
    assert all(data.vocab[token] == features.vocab[token] for row in data.rows.values() for token in row)
    for sequence in next(iter(data.compared_dict.values())).top_group.sequences[:8]:
        start = sequence.start
        assert data.rows[sequence.row][start : start + len(sequence.token_ids)] == sequence.token_ids
    assert compared(store_rows=False).rows == {}


def test_a_feature_that_is_active_in_one_prompt_only_has_its_numbers_on_both():
    data = compared()
    views = [prompted(prompt, num_top_features=100) for prompt in (FIRST, OTHER)]
    for feature, one in data.compared_dict.items():
        for view, sequence, quantiles in (
            (views[0], one.sequence, one.quantiles),
            (views[1], one.other_sequence, one.other_quantiles),
        ):
            column = view.prompt_data_dict.get(feature)
            if column is not None:
                assert sequence == column.sequence
            else:
                assert not any(sequence.feat_acts)
            assert quantiles == [dict(at).get(feature, 0.0) for at in view.scores["act_quantile"]]


def test_prompts_with_nothing_in_common_differ_in_all_that_is_active():
    data = compared((7, 21, 33), (45, 12, 30, 9, 9))
    assert data.pairs[1:] == [*((at, None) for at in (1, 2, 3)), *((None, at) for at in (1, 2, 3, 4, 5))]
    views = [prompted(list(data.prompt_token_ids[1:]), num_top_features=100) for data in (data,)]
    views.append(prompted(list(data.other_token_ids[1:]), num_top_features=100))
    for name in ("act_size", "act_quantile"):
        for (at, other_at), ranked in zip(data.pairs[1:], data.differences[name][1:], strict=True):
            view, place, sign = (views[0], at, -1) if other_at is None else (views[1], other_at, 1)
            assert dict(ranked) == pytest.approx({f: sign * value for f, value in view.scores[name][place]}, rel=1e-5)
    assert data.totals["act_size"]
    assert any(ranked for ranked in data.differences["loss_effect"])
    html = data.get_html(pair=1, score_name="act_size")
    assert "→ 0 (" in html


def test_one_prompt_twice_differs_nowhere():
    data = compared(tuple(FIRST), tuple(FIRST))
    assert data.compared_dict == {}
    assert not any(any(of_pairs) for of_pairs in data.differences.values())
    assert "None differs" not in data.get_html()
    assert "No feature to show" in data.get_html()


def test_the_other_way_round_every_difference_has_the_other_sign():
    data, turned = compared(), compared(tuple(OTHER), tuple(FIRST))
    for name, total in data.totals.items():
        assert dict(turned.totals[name]) == pytest.approx({f: -d for f, d in total})


@pytest.mark.parametrize("size", [1, 3])
def test_at_most_so_many_are_listed_and_they_are_the_largest(size):
    whole, some = compared(), compared(num_top_features=size)
    for name in whole.totals:
        assert some.totals[name] == whole.totals[name][:size]
        assert some.differences[name] == [ranked[:size] for ranked in whole.differences[name]]


def test_the_numbers_do_not_depend_on_batches_or_memory():
    assert compared(minibatch_size_tokens=3, memory_budget="1MB").differences == compared().differences


def test_padding_and_the_first_token_have_no_difference_of_loss():
    data = compared((7, PAD, 21, 12), (9, PAD, 33, 12))
    assert data.prompt_token_ids[0] == BOS
    assert [bool(ranked) for ranked in data.differences["loss_effect"]] == [False, False, False, False, True]


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["two.json", "two.json.gz"])
def test_it_is_saved_loaded_and_drawn_by_the_command_line(tmp_path, name, capsys):
    data = compared()
    data.save_json(tmp_path / name)
    assert PromptComparisonData.load_json(tmp_path / name) == data
    assert main(["html", str(tmp_path / name)]) == 0
    assert (tmp_path / "two.html").read_text("utf-8") == data.get_html()
    assert main(["info", str(tmp_path / name)]) == 0
    told = capsys.readouterr().out
    assert "PromptComparisonData" in told
    assert "other prompt" in told
    assert main(["site", str(tmp_path / name)]) == 2
    with pytest.raises(FileFormatError, match="it holds a PromptComparisonData"):
        MultiPromptData.load_json(tmp_path / name)
    assert "<iframe" in data._repr_html_()


def test_a_file_of_before_there_was_a_heat_map_loads_and_has_one_of_its_features():
    """It was written by the code of that time, from what the fixture makes."""
    loaded = PromptComparisonData.load_json(Path(__file__).parent / "old_files" / "comparison_2.json")
    small = {"first_group_size": 2, "n_groups": 1, "other_groups_size": 1, "n_bins": 4, "n_logits": 3, "n_changes": 2}
    now = make_comparison(5, n_top=3, **small)
    assert now.heat_map
    assert now.rows
    assert loaded == dataclasses.replace(now, heat_map={}, rows={})
    document, drawn = loaded.get_html(), now.get_html()
    assert 'data-json="rows">' in drawn
    assert 'data-json="rows">' not in document
    assert page_data(document, "heat") == page_data(drawn, "heat")


def test_the_heat_map_of_an_older_file_is_the_same_where_it_has_all_features():
    for ablation in ("direct", ("direct", "full")):
        data = compared((7, PAD, 21, 12), (9, 33, 21, 12), ablation=ablation)
        assert (2, 2) in data.pairs  # of them only the one is predicted
        older = dataclasses.replace(data, heat_map={}, rows={})
        assert page_data(older.get_html(), "heat") == page_data(data.get_html(), "heat")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heat_map": {"act_size": [HeatRow(1, [0, 10], [1.0, 2.0])]}}, "pair 10 of 10 pairs"),
        ({"heat_map": {"act_size": [HeatRow(99, [0], [1.0])]}}, "heat_map names feature 99, which has no data"),
        ({"heat_map": {"loss_effect_full": []}}, "which totals have not"),
        ({"pairs": PAIRS[:-1]}, "each of the 8 positions once"),
        ({"pairs": [*PAIRS, (None, None)]}, "nothing and nothing"),
        ({"totals": {}}, "scores"),
        (
            {"totals": {"act_size": [(99, 1.0)]}, "differences": {"act_size": [[]] * 10}},
            "feature 99, which has no data",
        ),
        ({"totals": {"act_size": []}, "differences": {"act_size": [[]]}}, "1 pairs, expected 10"),
        (
            {"totals": {"act_size": [(1, 2.0), (1, 1.0)]}, "differences": {"act_size": [[]] * 10}},
            "a ranking by 'act_size' names a feature twice",
        ),
        ({"prompt_token_ids": [1]}, "each of the 1 positions once"),
        ({"vocab_bytes": {3: "xyz"}}, "hexadecimal"),
    ],
)
def test_what_cannot_be_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(compared(), **change)


def test_quantiles_that_cannot_be_are_refused():
    one = next(iter(compared().compared_dict.values()))
    with pytest.raises(InputError, match="other_quantiles has 1 items for 10 tokens"):
        dataclasses.replace(one, other_quantiles=[0.5])
    with pytest.raises(InputError, match="quantiles must be from 0 to 1"):
        dataclasses.replace(one, quantiles=[2.0] * 8)
    with pytest.raises(InputError, match="feature_idx must be from 0"):
        dataclasses.replace(one, feature_idx=-1)


NOT_THERE = [
    *({"pair": pair} for pair in (10, -1, True)),
    *({"score_name": name} for name in ("loss_effect_full", ["act_size"], 3)),
    {"feature_url": Path("features.html#feature={feature}")},
]


@pytest.mark.parametrize("asked", NOT_THERE)
def test_what_is_not_there_cannot_be_shown(asked):
    with pytest.raises(InputError, match=r"There is no score|pair must be|feature_url must be a text"):
        compared().get_html(**asked)


def test_the_text_twin_checks_what_it_is_asked_for():
    for at_most in ("3", -1, True, 1.5):
        with pytest.raises(InputError, match="at_most"):
            compared().to_text(at_most=at_most)
    with pytest.raises(InputError, match="There is no score"):
        compared().to_text(score_name=["act_size"])


def test_full_effects_that_are_ranked_must_be_there():
    data = compared()
    with pytest.raises(InputError, match="loss_effect_full is ranked, but a feature has no full effects"):
        dataclasses.replace(
            data,
            differences={**data.differences, "loss_effect_full": data.differences["loss_effect"]},
            totals={**data.totals, "loss_effect_full": data.totals["loss_effect"]},
        )


def test_options_are_checked():
    for wrong in ({"num_top_features": 0}, {"prepend_bos": "yes"}):
        with pytest.raises(InputError, match="must be"):
            compare_prompts(encoder_for("gpt2"), shared("gpt2"), FIRST, OTHER, fetched("gpt2"), **wrong)
    with pytest.raises(InputError, match="empty"):
        compare_prompts(encoder_for("gpt2"), shared("gpt2"), FIRST, [], fetched("gpt2"))


def test_as_text_it_says_what_differs_at_each_pair():
    data = copy.deepcopy(compared())
    (feature, _), *_ = data.totals["act_size"]
    data.compared_dict[feature].label = "a \x1b[2Jlabel"
    lines = data.to_text("act_size", at_most=2).splitlines()
    assert lines[0] == repr(data)
    assert len(lines) == 3 + len(data.pairs)
    assert lines[2].startswith("  all tokens")
    assert f"{feature} a [U+001B][2Jlabel (activation" in lines[2]
    texts = [data.vocab[i].strip() for i in data.prompt_token_ids]
    for line, (at, other_at), ranked in zip(lines[3:], data.pairs, data.differences["act_size"], strict=True):
        assert all(char.isprintable() for char in line)
        assert line.startswith("  –" if at is None else f"  {texts[at]}")
        assert (line[20:].startswith("–")) == (other_at is None)
        assert line.count("activation") == min(2, len(ranked))
    formats, _ = DisplayFormatter().format(data)
    assert formats["text/plain"] == data.to_text()
    with pytest.raises(InputError, match="no score 'x'"):
        data.to_text("x")


# --- the page -------------------------------------------------------------------------------------------------------


def expect_columns(opened, data, metric, position):
    ranked = [data.totals[metric], *data.differences[metric]][position]
    expect(opened.page.locator(".strip button").nth(position)).to_have_attribute("aria-checked", "true")
    expect(opened.page.locator(".prompt-columns > article")).to_have_count(len(ranked))
    shown = opened.js("[...document.querySelectorAll('.prompt-columns > article')].map(a => Number(a.dataset.feature))")
    assert shown == [feature for feature, _ in ranked]
    for text, (_, difference) in zip(opened.texts("[data-slot=score]"), ranked, strict=True):
        number = text.rpartition("(")[2].strip(")").replace("\u2212", "-").replace("%", "").split()[-1]
        scale = 100 if metric == "act_quantile" else 1
        assert float(number) == pytest.approx(scale * difference, rel=0.06, abs=6e-3)
    bold = opened.js(
        "[...document.querySelectorAll('.prompt-columns > article:first-child .compared .seq')]"
        ".map(s => [...s.children].findIndex(t => t.matches('.b')))"
    )
    pair = data.pairs[position - 1] if position else (None, None)
    if ranked:
        assert bold == [-1 if at is None else at for at in pair]


@in_browser
def test_pairs_and_metrics_are_chosen(show):
    data = copy.deepcopy(compared())
    next(iter(data.compared_dict.values())).label = "<script>alert(1)</script>"
    opened = show(data.get_html(pair=2, score_name="act_size"))
    expect_columns(opened, data, "act_size", 3)
    for metric in data.totals:
        opened.page.locator(f".metrics [data-metric={metric}]").click()
        for position in (0, 5, 7, 9):
            opened.page.locator(".strip button").nth(position).click()
            expect_columns(opened, data, metric, position)
    assert opened.hash == "#pos=9&metric=loss_effect"
    opened.page.locator(".strip button").nth(9).focus()
    opened.page.keyboard.press("Home")
    expect_columns(opened, data, "loss_effect", 0)
    opened.page.locator(".strip button").nth(1).click()
    expect(opened.page.locator(".none-ranked")).to_be_visible()  # nothing predicts the first token


HEAT = """[...document.querySelectorAll('.heat tbody tr')].map(r => [Number(r.dataset.feature),
  [...r.querySelectorAll('td[data-text]')].map(c => [Number(c.dataset.at) - 1, c.className.split(' ')[0], c.dataset.text])])"""


@pytest.fixture(scope="module")
def many() -> PromptComparisonData:
    data = make_comparison(30, n_top=3, first_group_size=4)
    label = data.heat_map["act_size"][1].feature_idx
    data.compared_dict[label].label = "<b>bold & long label of a feature that has no end</b>"
    return data


@in_browser
def test_the_heat_map_shows_every_difference_by_its_sign(show, many):
    opened = show(many.get_html(score_name="act_size"))
    page = opened.page
    for metric, rows in many.heat_map.items():
        page.locator(f".metrics [data-metric={metric}]").click()
        expect(page.locator(".heat tbody tr")).to_have_count(8)
        page.get_by_role("button", name="Show more").click()
        expect(page.locator(".heat tbody tr")).to_have_count(20)
        for (feature, cells), row in zip(opened.js(HEAT), rows[:20], strict=True):
            assert feature == row.feature_idx
            assert [at for at, _, _ in cells] == row.positions
            assert [kind for _, kind, _ in cells] == ["lowers" if score < 0 else "raises" for score in row.scores]
            for (_, _, text), score in zip(cells, row.scores, strict=True):
                number = text.rpartition("(")[2].strip(")").replace("\u2212", "-").split()[0]
                scale = 100 if metric == "act_quantile" else 1
                assert float(number) == pytest.approx(scale * score, rel=0.06, abs=6e-3)
        page.locator(".heat-size").select_option("8")
    heads = opened.texts(".heat thead th:not(.corner)")
    assert len(heads) == len(many.pairs)
    assert [opened.js(f"document.querySelectorAll('.heat thead th')[{n}].children.length") for n in (1, 4, 6)] == [
        1,
        2,
        2,
    ]
    expect(page.get_by_role("grid")).to_have_attribute(
        "aria-label", "Heat map, difference of loss: 8 features by 10 pairs of tokens"
    )
    assert opened.texts(".heat-key")[0].startswith("lower on the second")
    assert opened.js("document.querySelector('.heat-key').querySelectorAll('.lowers, .raises').length") == 6


@in_browser
def test_a_cell_of_the_heat_map_tells_both_scores_and_chooses_its_pair(show, many):
    opened = show(many.get_html(score_name="act_size"), size=(400, 800))
    page, tip = opened.page, opened.page.locator(".heat-tip")
    row = many.heat_map["act_size"][1]
    index = next(index for index in row.positions if None not in many.pairs[index])
    cell = page.locator(f'.heat tr[data-feature="{row.feature_idx}"] td[data-at="{index + 1}"]')
    cell.hover()
    expect(tip).to_be_visible()
    one, (at, other_at) = many.compared_dict[row.feature_idx], many.pairs[index]
    acts = (one.sequence.feat_acts[at], one.other_sequence.feat_acts[other_at])
    told = tip.text_content()
    assert told.startswith(f"Feature {row.feature_idx} <b>bold & long label")
    assert f"({at}, {other_at}): activation {acts[0]:.4g} \u2192 {acts[1]:.4g} (" in told
    assert cell.get_attribute("aria-label").startswith(f"activation {acts[0]:.4g} \u2192 ")
    (box,) = opened.boxes(".heat-tip")
    assert box["left"] >= 0
    assert box["right"] <= 400
    cell.click()
    assert opened.hash == f"#pos={index + 1}&metric=act_size&feature={row.feature_idx}"
    expect(page.locator(f'.prompt-column.marked[data-feature="{row.feature_idx}"]')).to_have_count(1)
    expect(page.locator(".strip button").nth(index + 1)).to_have_attribute("aria-checked", "true")
    assert set(opened.js("[...document.querySelectorAll('.heat .at')].map(c => Number(c.dataset.at))")) == {index + 1}
    here = "[document.activeElement.parentElement.rowIndex - 1, Number(document.activeElement.dataset.at)]"
    cell.focus()
    for key, place in (("Home", 1), ("End", 10), ("ArrowRight", 10), ("Control+Home", 1)):
        page.keyboard.press(key)
        assert opened.js(here)[1] == place
        expect(tip).to_be_visible()
    empty = page.locator(".heat tbody td:not([data-text])").first
    assert empty.get_attribute("aria-label") == "no difference"
    page.keyboard.press("ArrowLeft")
    expect(tip).to_contain_text("go where it is strongest")
    page.keyboard.press("Enter")
    first = many.heat_map["act_size"][0]
    peak = first.positions[first.scores.index(max(first.scores, key=abs))]
    assert opened.hash == f"#pos={peak + 1}&metric=act_size&feature={first.feature_idx}"
    assert opened.js("document.documentElement.scrollWidth") == 400


@in_browser
def test_where_no_pair_is_chosen_the_strongest_difference_is_in_view_and_titles_are_whole(show):
    data = make_comparison(30, n_top=3, first_group_size=4)
    row = data.heat_map["act_size"][0]
    opened = show(data.get_html(score_name="act_size"), size=(320, 800))
    peak = row.positions[row.scores.index(max(row.scores, key=abs))]
    (cell,) = opened.boxes(f'.heat tbody tr:first-child td[data-at="{peak + 1}"]')
    (name,) = opened.boxes(".heat tbody tr:first-child th")
    (scroll,) = opened.boxes(".heat-scroll")
    assert name["right"] <= cell["left"] + 1
    assert cell["right"] <= scroll["right"] + 1
    opened.page.locator(".strip button").nth(4).click()
    expect(opened.page.locator(".strip button").nth(4)).to_have_attribute("aria-checked", "true")
    titles, scores = opened.boxes(".prompt-column h2"), opened.boxes(".prompt-column [data-slot=score]")
    assert titles
    for title, score in zip(titles, scores, strict=True):
        assert title["height"] < 30  # one line, the score below it
        assert score["top"] >= title["bottom"] - 1


@in_browser
def test_whole_rows_open_beside_the_examples_but_not_below_the_prompts(show, many):
    opened = show(many.get_html(score_name="act_size"))
    column = opened.page.locator(".prompt-columns > article").first
    feature, _ = many.totals["act_size"][0]
    sequence = many.compared_dict[feature].top_group.sequences[1]
    example = column.locator(".seqs:not(.prompt) .seq").nth(1)
    example.focus()
    opened.page.keyboard.press("Enter")
    expect(column.locator(".whole .told")).to_contain_text(f"Row {sequence.row}, {len(many.rows[sequence.row])} tokens")
    expect(column.locator(".whole .tokens .t")).to_have_count(len(many.rows[sequence.row]))
    framed = column.locator(".whole .window .t")
    expect(framed).to_have_count(len(sequence.token_ids))
    assert framed.all_text_contents() == example.locator("> *").all_text_contents()
    opened.page.keyboard.press("Escape")
    expect(column.locator(".whole")).to_have_count(0)
    column.locator(".compared .seq").first.click()
    expect(column.locator(".whole")).to_have_count(0)


@in_browser
def test_a_page_without_rows_or_differences_has_neither(show, many):
    opened = show(dataclasses.replace(many, rows={}).get_html())
    opened.page.locator(".seqs:not(.prompt) .seq").first.click()
    expect(opened.page.locator(".whole")).to_have_count(0)
    none: dict[str, list[Any]] = {name: [] for name in many.totals}
    same = {name: [[] for _ in many.pairs] for name in many.totals}
    opened = show(dataclasses.replace(many, compared_dict={}, heat_map={}, totals=none, differences=same).get_html())
    expect(opened.page.locator(".heat")).to_have_count(0)
    expect(opened.page.locator(".none-ranked")).to_be_visible()


@in_browser
def test_the_page_has_the_readers_labels_and_settings_like_every_other(show):
    data = copy.deepcopy(compared())
    feature, _ = data.totals["act_size"][0]
    data.compared_dict[feature].label = "of Python"
    opened = show(data.get_html(score_name="act_size"))
    assert opened.js(f"saeVis.labelOf({feature})") == "of Python"
    opened.js(f"saeVis.sayOf({feature}, {{ label: 'of the reader' }})")
    column = opened.page.locator(f"article[data-feature='{feature}']")
    expect(column.locator("h2")).to_contain_text("of the reader edited")
    opened.page.get_by_role("button", name="View").click()
    opened.page.get_by_role("radio", name="Dark").click()
    assert opened.js("document.documentElement.style.colorScheme") == "dark"
    opened.page.keyboard.press("Escape")
    opened.page.locator(".strip button").nth(2).click()
    opened.page.locator(".strip button").nth(0).click()
    expect(column.locator("h2")).to_contain_text("of the reader")
    sequence = column.locator(".compared .seq").nth(1)
    copied = opened.js(
        f"saeVis.copied.text(document.querySelectorAll('article[data-feature=\"{feature}\"] .compared .seq')[1])"
    )
    assert copied == "".join(data.vocab[i] for i in data.other_token_ids)
    opened.page.keyboard.press("Home")  # by key from here on
    sequence.focus()
    assert "Enter" not in sequence.get_attribute("aria-label")


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_narrow_window_and_tells_of_tokens_of_both_prompts(show, scheme):
    from test_browser import expect_readable

    data = compared()
    opened = show(data.get_html(score_name="act_size"), size=(400, 800), color_scheme=scheme)
    expect_readable(opened)
    assert opened.js("document.documentElement.scrollWidth") == 400
    kinds = opened.js("[...document.querySelectorAll('.strip button')].map(b => b.className)")
    assert kinds == ["all", "same", "same", "same", "other", "same", "same", "gap", "gap", "same", "same"]
    feature, _ = data.totals["act_size"][0]
    for which, sequence in enumerate(
        (data.compared_dict[feature].sequence, data.compared_dict[feature].other_sequence)
    ):
        place = max(range(len(sequence.feat_acts)), key=sequence.feat_acts.__getitem__)
        opened.page.locator("article").first.locator(".compared .seq").nth(which).locator("> *").nth(place).hover()
        expect(opened.page.locator(".hovertext")).to_be_visible()
        told = opened.texts(".hovertext [data-slot=activation]")[0]
        assert float(told) == pytest.approx(sequence.feat_acts[place], abs=6e-3)
