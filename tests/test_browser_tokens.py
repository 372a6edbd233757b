"""The panels of tokens, positions and counterexamples in a real browser."""

from __future__ import annotations

import pytest
import torch
from models import ToyModel, fetch, identity_encoder, random_tokens
from test_browser import expect_readable


@pytest.fixture(scope="module")
def data():
    table = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    return fetch(identity_encoder(8, 3), ToyModel(table), random_tokens(9, 14, 12), buffer=(2, 2), n_groups=2)


def test_a_counterexample_has_its_hover_text_and_no_line_on_the_positions(show, data):
    opened = show(data.get_html(feature=2))
    example = data[2].counterexamples.negatives[0]
    (at,) = [i for i, act in enumerate(example.feat_acts) if act > 0][:1] or [example.bold_idx]
    negatives = opened.page.locator("[aria-label=Counterexamples] .group").nth(1)
    negatives.locator(".seq").first.locator("> span").nth(at).hover()
    where = opened.texts(".hovertext [data-slot=where]")[0]
    assert f"row {example.row}, position {example.start + at}" in where
    assert opened.js("document.querySelectorAll('.plot:not(.positions)').length") == 2
    assert opened.js("document.querySelectorAll('.plot.logits .line').length") == 1
    assert opened.js("document.querySelectorAll('.plot.positions .line').length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_counts_of_tokens_can_be_read(show, data, scheme):
    expect_readable(show(data.get_html(feature=2), color_scheme=scheme), ".tokens td, .tokens td small")


@pytest.mark.parametrize("width", [390, 1440])
def test_the_button_of_the_positions_covers_none_of_their_numbers_where_it_always_shows(show, data, width):
    opened = show(data.get_html(feature=2), size=(width, 900), has_touch=True, is_mobile=True)
    opened.page.locator(".panel:has(> .positions) > .save-plot").wait_for()
    (button,) = opened.boxes(".panel:has(> .positions) > .save-plot")
    (count,) = opened.boxes(".positions > .count")
    assert button["bottom"] <= count["top"]
