"""Pages of extreme numbers in a real Chromium: what hovering says, and that nothing lies on top of anything else."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from drawing import number
from models import fetch, planted

from sae_vis import get_prompt_data
from sae_vis.utils_fns import decimals_for, format_fixed

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("edges-browser")]  # one browser for all

SCALES = [1e30, 1e12, 2500.7, 1.0, 0.00855, 1.2345e-4, 3e-6, 4e-8, 1e-30, 2.0**-149]


@pytest.fixture(scope="module")
def features():
    """Features of all scales, each with one activation that is a thousandth of its maximum; two more are constant."""
    generator = torch.Generator().manual_seed(0)
    acts = torch.rand(8, 9, len(SCALES) + 2, generator=generator) - 0.5
    acts[2, 3], acts[4, 5] = 1.0, 1e-3
    acts[..., : len(SCALES)] *= torch.tensor(SCALES, dtype=torch.float64).float()
    acts[..., -2], acts[..., -1] = 1e30, 0.0
    return fetch(*planted(acts))


@pytest.mark.parametrize("index", range(len(SCALES) + 1))
def test_hovering_says_what_python_says_of_numbers_of_any_size(show, features, index):
    feature = features[index]
    opened = show(features.get_html(), f"#feature={index}")
    opened.page.locator(f"article[data-feature='{index}']").wait_for()
    decimals = decimals_for(feature.activations.max)
    smallest = min(
        (s for group in feature.sequences.groups for s in group.sequences), key=lambda s: s.feat_acts[s.bold_idx]
    )
    sequences = [s for group in feature.sequences.groups for s in group.sequences]
    for which in {0, sequences.index(smallest)}:
        opened.page.locator(".seq").nth(which).locator(".b").hover()
        act = sequences[which].feat_acts[sequences[which].bold_idx]
        (told,) = opened.texts("[data-slot='activation']")
        assert told == format_fixed(act, decimals)
        assert number(told) > 0
        assert told in opened.texts(".activations .line text")[0]


@pytest.mark.parametrize("index", range(len(SCALES) + 2))
def test_no_number_lies_on_another(show, features, index):
    opened = show(features.get_html(), f"#feature={index}")
    opened.page.locator(f"article[data-feature='{index}']").wait_for()
    for plot in (".activations", ".logits"):
        ticks = sorted(opened.boxes(f"{plot} > text:not(.count)"), key=lambda box: box["left"])
        assert all(a["right"] < b["left"] for a, b in pairwise(ticks))
    lines = opened.js(
        "[...document.querySelectorAll('.seq')].map(e => [parseFloat(getComputedStyle(e, '::before').height),"
        " parseFloat(getComputedStyle(e, '::before').lineHeight)])"
    )
    assert all(height <= line_height for height, line_height in lines), "a value takes one line"
    assert not opened.js("document.documentElement.scrollWidth > innerWidth")


def test_the_count_of_a_bar_as_wide_as_the_plot_can_be_read(show, features):
    opened = show(features.get_html(), f"#feature={len(SCALES)}")
    opened.page.locator(f"article[data-feature='{len(SCALES)}']").wait_for()
    on_top = opened.js(
        "(e => { const b = e.getBoundingClientRect();"
        " return document.elementFromPoint(b.left + b.width / 2, b.top + b.height / 2).className.baseVal; })"
        "(document.querySelector('.activations .count'))"
    )
    assert on_top == "count"


def test_a_prompt_beyond_the_corpus_is_as_strong_as_can_be_and_its_line_has_an_arrow(show):
    acts = torch.rand(3, 6, 1, generator=torch.Generator().manual_seed(1))
    acts[2, 3] = 1000.0
    encoder, model, tokens = planted(acts)
    data = fetch(encoder, model, tokens[:2])
    prompt = get_prompt_data(encoder, model, tokens[2], data)
    opened = show(prompt.get_html(seq_pos=3, score_name="act_size"))
    strengths = opened.js(
        "[...document.querySelectorAll('.prompt .seq > *')].map(e => getComputedStyle(e).getPropertyValue('--a'))"
    )
    assert all(0 < float(strength) <= 1 for strength in strengths)
    assert float(strengths[3]) == 1
    assert opened.texts(".activations .pin text") == ["1000.0000 →"]
    (box,) = opened.boxes(".activations .pin text")
    (plot,) = opened.boxes("svg.activations")
    assert plot["left"] <= box["left"] < box["right"] <= plot["right"]
