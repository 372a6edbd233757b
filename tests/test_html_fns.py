"""One function per template: what each makes of plain values."""

from __future__ import annotations

import inspect
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sae_vis import _page, _prompt_comparison, _prompt_panels, _site, _templates, html_fns, utils_fns
from sae_vis._templates import Html


def numbers(path):
    return [float(text) for text in re.findall(r"-?\d+\.?\d*", path)]


# --- tokens ------------------------------------------------------------------------------------------------------


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7F), max_size=60))
@example("a  b")
@example(" ")
@example("a ")
def test_plain_tokens_look_as_any_text_does(text):
    pieces = html_fns._pieces(utils_fns.printable(text))
    assert html_fns.token_text(text) == pieces or len(text) > html_fns.TOKEN_LIMIT
    assert isinstance(html_fns.token_text(text), Html)


def test_token_text_marks_whitespace_apart_from_text():
    assert html_fns.token_text(" a") == "<i>·</i>a"
    assert html_fns.token_text("·a") == "·a"
    assert html_fns.token_text("\u200b") == "<samp>U+200B</samp>"
    assert html_fns.token_text("<i>") == "&lt;i&gt;"


def test_a_long_token_is_shortened_and_its_title_tells_more():
    shown = html_fns.token_text("x" * 10_000)
    assert len(shown) < 1000
    assert 'title="10,000 characters: xxx' in shown
    assert shown.endswith("…</abbr>")


def test_joined_tokens():
    alone = [Html("a"), Html("E2"), Html("9C93"), Html("E2")]
    shown = html_fns.joined_tokens(alone, ["", "e2", "9c93", "e2"])
    assert shown == ["a", "✓", '<i class="in">‹</i>', "E2"]


def test_the_printer_knows_texts_bytes_and_neither():
    printer = html_fns.TokenPrinter({1: " a", 2: "\ufffd"}, {2: "e2"})
    assert [printer.one(token_id) for token_id in (1, 2, 3)] == [
        "<i>·</i>a",
        "<samp>E2</samp>",
        "<samp>id 3</samp>",
    ]
    assert printer.text(1) == "' a'"
    assert printer.text(3) == "id 3"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((0.0, 0.0, False, False), "<span>x</span>"),
        ((0.5, 0.0, False, False), '<span style="--a:.5">x</span>'),
        ((1.0, -0.25, True, False), '<span class="b" style="--a:1;--h:.25">x</span>'),
        ((0.0, 0.3, False, True), '<span class="x" style="--r:.3">x</span>'),
        ((0.0, 0.0, True, True), '<span class="b x">x</span>'),
    ],
)
def test_token(arguments, expected):
    line = html_fns.sequence([Html("x")], [html_fns.token_attributes(*arguments)], "1")
    assert line == f'<div class="seq" tabindex="0" data-v="1">{expected}</div>'


def test_a_sequence_takes_no_text_for_html():
    assert "<b>" in html_fns.sequence([Html("<b>")], [html_fns.NOTHING], "1")
    with pytest.raises(AttributeError):
        html_fns.sequence(["<b>"], [html_fns.NOTHING], "1")


# --- plots -------------------------------------------------------------------------------------------------------


def plot(edges, heights, ticks=(), kind="logits", pin=html_fns.NOTHING):
    svg = html_fns.middle_plot(kind, "label", edges, heights, ticks, pin)
    return svg, *re.findall(r'class="(?:lower|upper)" d="([^"]*)"', svg)


def test_bars_below_zero_and_above_are_two_paths():
    _, lower, upper = plot([-2.0, -1.0, 0.0, 1.0], [1, 2, 4])
    assert lower.count("M") == 2
    assert upper.count("M") == 1
    assert numbers(upper)[2] == pytest.approx(-(html_fns.PLOT_BOTTOM - html_fns.PLOT_TOP))


def test_a_bar_across_zero_belongs_to_the_side_of_its_middle():
    _, lower, upper = plot([-3.0, 1.0, 5.0], [1, 1])
    assert (lower.count("M"), upper.count("M")) == (1, 1)
    _, lower, upper = plot([-1.0, 1.0], [1])
    assert (lower.count("M"), upper.count("M")) == (0, 1)


def test_empty_bars_are_left_out_and_small_ones_are_seen():
    _, _, upper = plot([0.0, 1.0, 2.0, 3.0], [100_000, 0, 1])
    assert upper.count("M") == 2
    assert "v-1h" in upper


def test_one_bar_and_no_counts():
    svg, _, upper = plot([2.5, 3.5], [7], [3.0])
    assert upper.count("M") == 1
    assert ">3</text>" in svg
    _, lower, upper = plot([0.0, 1.0], [0])
    assert lower == upper == ""


def test_bars_fill_the_axis_and_never_leave_it():
    for n in (1, 2, 40, 1000):
        _, _, upper = plot([float(i) for i in range(n + 1)], [1] * n)
        xs = [float(x) for x in re.findall(r"M([\d.]+)", upper)]
        widths = [float(w) for w in re.findall(r"h([\d.]+)", upper)]
        assert xs[0] >= html_fns.PLOT_LEFT
        assert xs[-1] + widths[-1] <= html_fns.PLOT_RIGHT + 0.1


def test_ticks_outside_the_axis_are_left_out():
    svg, *_ = plot([0.0, 1.0], [1], [-1.0, 0.0, 0.5, 1.0, 2.0])
    assert re.findall(r'y="96">([^<]*)<', svg) == ["0", "0.5", "1"]


@pytest.mark.parametrize(("value", "anchor"), [(0.1, "start"), (0.9, "end")])
def test_a_pin_keeps_its_label_inside(value, anchor):
    pin = html_fns.plot_pin(value, "0.1", 0.0, 1.0)
    assert f'text-anchor="{anchor}"' in pin
    assert "pin" in plot([0.0, 1.0], [1], pin=pin)[0]


def test_a_pin_beyond_the_axis_stands_at_its_end_with_an_arrow():
    assert html_fns.plot_pin(2.0, "2", 0.0, 1.0) == html_fns.plot_pin(1.0, "2 →", 0.0, 1.0)
    assert html_fns.plot_pin(-2.0, "−2", 0.0, 1.0) == html_fns.plot_pin(0.0, "← −2", 0.0, 1.0)


def test_a_pin_that_rounding_put_past_the_end_has_no_arrow():
    assert html_fns.plot_pin(1.0005, "1", 0.0, 1.0) == html_fns.plot_pin(1.0, "1", 0.0, 1.0)


# --- tables and the rest -----------------------------------------------------------------------------------------


def test_numbers_table():
    table = html_fns.numbers_table("Title", ["A", "B", "C"], ["1", html_fns.feature_link(2)], ["x", "y"], ["z", "w"])
    assert table.count("<tr>") == 3
    assert '<a href="#feature=2" data-go="2">2</a>' in table


def test_logits_table_shades_by_size_and_signs():
    table = html_fns.logits_table("Positive", "positive", [Html("a"), Html("b")], [2.0, 1.0], 2.0)
    assert re.findall(r"--a:([\d.]+)", table) == ["1", ".5"]
    assert re.findall(r"<td>([+−][\d.]+)</td>", table) == ["+2.00", "+1.00"]


def test_logits_table_of_zeros():
    assert "--a:0" in html_fns.logits_table("Positive", "positive", [Html("a")], [0.0], 0.0)


def test_sizes_are_numbers_only():
    assert 'style="--w:420px"' in html_fns.column(["a"], [], 420)
    assert "style" not in html_fns.column(["a"], [], 0)
    with pytest.raises(ValueError, match="invalid literal"):
        html_fns.column(["a"], [], '"><script>')  # type: ignore[arg-type]


def test_a_long_label_is_shortened():
    assert len(html_fns.label("x" * 10_000)) < 300
    assert html_fns.label("") == ""


def test_every_function_takes_plain_values_only():
    plain = {"str", "int", "float", "bool", "Html"}
    for name, function in inspect.getmembers(html_fns, inspect.isfunction):
        if function.__module__ != html_fns.__name__ or name.startswith("_"):
            continue
        for parameter in inspect.signature(function).parameters.values():
            inner = re.sub(r"^Sequence\[(.*)\]$", r"\1", parameter.annotation)
            assert inner in plain, (name, parameter)


def test_every_template_is_used():
    source = "".join(
        inspect.getsource(module) for module in (html_fns, _page, _site, _prompt_panels, _prompt_comparison)
    )
    names = {path.name for path in _templates.folder("html").iterdir()}
    assert names == set(re.findall(r'template\("([a-z_]+\.html)"\)', source))
