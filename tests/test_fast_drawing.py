"""What is drawn by columns is what plain code draws piece by piece."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sae_vis import TemplateError, _page
from sae_vis._templates import Html, Template, join, template
from sae_vis.html_fns import TokenPrinter, sequence, token_attributes
from sae_vis.utils_fns import decimals_for, largest, level

ORDINARY = st.floats(-50, 50) | st.integers(-1000, 1000).map(lambda number: number / 64) | st.sampled_from([0.0, -0.0])
NUMBERS = ORDINARY | st.floats(allow_nan=False, allow_infinity=False)
MAYBE = NUMBERS | st.none()


def whole(scaled: float) -> int | float:
    """The nearest integer, halves to the even one; beyond 2**53 a float is one already."""
    return round(scaled) if abs(scaled) < 2.0**53 else max(-8e307, min(8e307, scaled))


def at_most(decimals: int, scale: float) -> int:
    return decimals if scale * 10**decimals < 2.0**53 else 0


def plain_largest(values) -> float:
    return max((abs(value) for value in values if value), default=0.0)


@given(NUMBERS, NUMBERS)
def test_a_level(value, scale):
    expected = 0.0
    if value and scale > 0:
        expected = math.copysign(round(min(1.0, abs(value) / scale), 2) or 0.01, value)
    assert str(level(value, scale)) == str(expected)


@given(st.lists(MAYBE))
def test_the_largest(values):
    assert largest(values) == plain_largest(values)
    assert largest(iter(values)) == plain_largest(values)


@given(st.lists(st.tuples(st.lists(NUMBERS, max_size=3), st.lists(NUMBERS, max_size=3)), max_size=4))
@example([([], [])])
@example([([0.0625], []), ([], [-0.0625, -0.5])])
@example([([1e300, 1.0], [-1e300, -1.0])])
def test_effects(pairs):
    lists = [values for pair in pairs for values in pair]
    numbers = _page.effect_numbers([0] * len(pairs), [[7] * len(values) for values in lists], lists)
    strongest = plain_largest([value for values in lists for value in values])
    decimals = at_most(min(4, max(3, decimals_for(strongest, 3))), strongest)
    steps = []
    for raised, lowered in pairs:
        for values, sign in ((raised, 1), (lowered, -1)):
            before = None
            for value in values:
                now = whole(value * sign * 10**decimals)
                steps.append(now if before is None else before - now)
                before = now
    assert numbers["decimals"] == decimals
    assert numbers["steps"] == steps
    assert list(map(type, numbers["steps"])) == list(map(type, steps))
    assert numbers["counts"] == [len(values) for values in lists]
    assert numbers["ids"] == [7] * sum(numbers["counts"])


@given(st.lists(MAYBE, min_size=1), st.lists(ORDINARY, min_size=1), st.integers(0, 8))
def test_numbers_of_tokens(losses, acts, decimals):
    nothing = _page.effect_numbers([], [], [])
    told = json.loads(
        _page.hover_numbers(
            rows=[0],
            starts=[0],
            lengths=[1],
            ids=[1],
            acts=acts,
            losses=losses,
            full_losses=[],
            logits=[],
            effects=nothing,
            full_effects=nothing,
            only="direct",
            act_decimals=decimals,
            logit_decimals=3,
        )
    )
    assert told["acts"] == [whole(act * 10**decimals) for act in acts]
    loss_decimals = at_most(4, plain_largest(losses))
    expected = [None if loss is None else whole(loss * 10**loss_decimals) for loss in losses]
    assert told["losses"] == ([] if set(losses) == {None} else expected)


@pytest.mark.parametrize("decimals", [0, 3, 22, 23, 40, 300])
def test_a_scale_is_what_multiplying_by_the_int_makes_of_it(decimals):
    for value in (0.1, 1.5, 1 / 3, math.pi):
        assert value * _page._scale(decimals) == value * 10**decimals


# --- tokens ----------------------------------------------------------------------------------------------------------

TEXTS = {0: "a", 1: "</b>", 2: "  ", 3: "x" * 60, 4: '"&{{ text }}', 5: "�", 6: "�"}
HALVES = {5: "c3", 6: "a9"}
SHARES = st.sampled_from([0.0, 0.01, 0.5, 1.0])


@given(st.lists(st.integers(0, 8), min_size=1, max_size=6), st.data())
def test_a_sequence(token_ids, data):
    texts = TokenPrinter(TEXTS, HALVES).sequence(token_ids)
    again = TokenPrinter(TEXTS, HALVES)
    for token_id in token_ids:
        again.one(token_id)
    assert again.sequence(token_ids) == texts
    attributes = [
        token_attributes(data.draw(SHARES), -data.draw(SHARES), data.draw(st.booleans()), data.draw(st.booleans()))
        for _ in texts
    ]
    tokens = [
        template("token_template.html").fill(attributes=attribute, text=text)
        for attribute, text in zip(attributes, texts, strict=True)
    ]
    value = data.draw(st.sampled_from(["1.5", '"<', "−2"]))
    expected = template("sequence_template.html").fill(tokens=join(tokens), value=value)
    assert sequence(texts, attributes, value) == expected


def test_no_tokens_are_a_sequence_too():
    assert sequence([], [], "1") == template("sequence_template.html").fill(tokens=Html(""), value="1")


def test_what_the_tokens_of_a_sequence_need_goes_with_them():
    texts = [Html("a", frozenset(["css/a.css"])), Html("b", frozenset(["css/b.css"])), Html("c")]
    assert sequence(texts, [Html("")] * 3, "1").needs == {"css/a.css", "css/b.css"}


def test_only_a_template_of_just_these_holes_is_given_in_pieces():
    assert Template("html/test.html", "<b>{{ a }}-{{ b }}</b>").pieces("a", "b") == ["<b>", "-", "</b>"]
    for text in ("{{ b }}{{ a }}", "{{ a }}", "{{ a }}{{ b }}{{ a }}", "<!-- needs: css/a.css -->\n{{ a }}{{ b }}"):
        with pytest.raises(TemplateError, match=r"has not just the holes a, b in this order"):
            Template("html/test.html", text).pieces("a", "b")


# --- pages -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("title", ["a page", "\0", "a\0b", "<!-- \0 -->"])
@pytest.mark.parametrize("n", [0, 1, 3])
def test_a_page_in_pieces_is_the_page(title, n):
    body = join([title, Html("<b>x</b>", frozenset(["css/general.css"])), "\0é\U0001f3bb"])
    elements = [_page.packed(index, f"{index}") for index in range(n)] + [_page.data("index", {"title": title})]
    pieces = list(_page.document_pieces(title, body, elements))
    assert b"".join(pieces).decode() == _page.document(title, body, elements)
    assert len(pieces) == n + 3
