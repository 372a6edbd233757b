"""Two effects on the loss in one page: the switch between them, in a real Chromium, on data of a real model."""

from __future__ import annotations

import browser
import pytest
from brute_force import random_encoder
from hf_models import shared, some_tokens

from sae_vis import FeatureVisParams, get_feature_data, get_prompt_data
from sae_vis.utils_fns import format_signed

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser-losses")]  # one browser for all


def fetch(ablation):
    fvp = FeatureVisParams("blocks.0.mlp.hook_post", ablation=ablation, verbose=False, n_groups=2, first_group_size=4)
    return get_feature_data(random_encoder(64, 6), shared("gpt2"), some_tokens(), fvp)


@pytest.fixture(scope="module")
def features():
    return fetch(("direct", "full"))


@pytest.fixture(scope="module")
def prompt(features):
    return get_prompt_data(random_encoder(64, 6), shared("gpt2"), some_tokens()[1].tolist(), features)


def first_with_both(features, feature):
    """The first shown token whose two loss contributions differ: its sequence, its place, both numbers."""
    sequences = [s for group in features[feature].sequences.groups for s in group.sequences]
    for which, s in enumerate(sequences):
        for at, (direct, full) in enumerate(zip(s.loss_contribution, s.full.loss_contribution, strict=True)):
            if direct is not None and abs(direct - full) > 0.01 and abs(full) > 0.01:
                return which, at, direct, full
    raise AssertionError


def loss_on_hover(opened, which, at):
    token = opened.page.locator(".seq").nth(which).locator("> *").nth(at)
    opened.page.mouse.move(1, 1)
    token.hover()
    browser.expect(opened.page.get_by_role("tooltip")).to_be_visible()
    return opened.page.locator('[data-slot="loss"]').text_content()


def underline(opened, which, at):
    """What draws the underline of a token: the strength of blue and of red."""
    element = f"document.querySelectorAll('.seq')[{which}].children[{at}]"
    style = f"getComputedStyle({element})"
    return [opened.js(f"Number({style}.getPropertyValue('--{name}') || 0)") for name in "hr"]


def strengths(loss, largest):
    share = pytest.approx(abs(loss) / largest, abs=0.006)
    return [share, 0.0] if loss < 0 else [0.0, share]


def largest(losses):
    return max(abs(loss) for loss in losses if loss is not None)


def test_the_switch_changes_underlines_and_hover_text_for_every_feature(show, features):
    opened = show(features.get_html(), "#feature=0")
    for feature in (0, 2):
        opened.go(f"#feature={feature}")
        browser.expect(opened.page.locator("article h2")).to_contain_text(str(feature))
        sequences = [s for group in features[feature].sequences.groups for s in group.sequences]
        which, at, direct, full = first_with_both(features, feature)
        most_direct = largest(loss for s in sequences for loss in s.loss_contribution)
        most_full = largest(loss for s in sequences for loss in s.full.loss_contribution)
        opened.page.get_by_role("radio", name="direct path").click()
        assert loss_on_hover(opened, which, at) == format_signed(direct, 4)
        assert underline(opened, which, at) == strengths(direct, most_direct)
        opened.page.get_by_role("radio", name="full ablation").click()
        browser.expect(opened.page.locator(".hovertext")).to_be_hidden()
        assert loss_on_hover(opened, which, at) == format_signed(full, 4)
        assert underline(opened, which, at) == strengths(full, most_full)
    opened.go("#feature=1")  # which was not there when the choice was made
    browser.expect(opened.page.locator("article h2")).to_contain_text("1")
    browser.expect(opened.page.get_by_role("radio", name="full ablation")).to_be_checked()


def test_arrow_keys_work_the_switch_and_do_not_leave_the_feature(show, features):
    opened = show(features.get_html(), "#feature=0")
    opened.page.get_by_role("radio", name="direct path").focus()
    opened.page.keyboard.press("ArrowRight")
    browser.expect(opened.page.get_by_role("radio", name="full ablation")).to_be_checked()
    browser.expect(opened.page.get_by_role("radio", name="full ablation")).to_be_focused()
    assert opened.hash == "#feature=0"
    opened.page.keyboard.press("ArrowRight")
    browser.expect(opened.page.get_by_role("radio", name="direct path")).to_be_checked()


@pytest.mark.parametrize(
    ("colours", "outline"), [("none", ["solid", "2px", "-2px"]), ("active", ["double", "4px", "-4px"])]
)
def test_the_focus_on_what_is_chosen_can_be_seen_in_any_colours(show, features, colours, outline):
    opened = show(features.get_html(), forced_colors=colours)
    opened.page.locator(".switch [aria-checked='true']").focus()
    opened.page.keyboard.press("ArrowRight")
    browser.expect(opened.page.get_by_role("radio", name="full ablation")).to_be_focused()
    style = "getComputedStyle(document.activeElement)"
    assert opened.js(f"(s => [s.outlineStyle, s.outlineWidth, s.outlineOffset])({style})") == outline


def test_bars_keep_their_colours_where_others_are_forced(show, features):
    opened = show(features.get_html(), forced_colors="active")
    opened.page.locator(".shares i").first.wait_for()
    opened.go("#overview")
    opened.page.locator(".density > i").first.wait_for()
    for bar in (".shares i", ".density > i", ".plots-key .scale"):
        image = f"getComputedStyle(document.querySelector('{bar}')).backgroundImage"
        assert "linear-gradient" in opened.js(image), bar


@pytest.mark.parametrize(("ablation", "told"), [("direct", "(direct path)"), ("full", "(full ablation)")])
def test_one_effect_alone_has_no_switch_and_is_named(show, ablation, told):
    opened = show(fetch(ablation).get_html())
    assert not opened.texts(".switch")
    assert opened.texts(".legend .how")[0].startswith(f"Loss contribution {told}")


def test_without_an_ablation_the_page_says_that_nothing_was_measured(show):
    opened = show(fetch(None).get_html())
    assert opened.texts(".key-loss") == ["Loss contribution not measured"]


def test_a_metric_of_a_prompt_brings_its_underlines(show, prompt):
    position = max(p for p, ranked in enumerate(prompt.scores["loss_effect_full"]) if ranked)
    opened = show(prompt.get_html(seq_pos=position, score_name="act_size"))
    opened_at_it = show(prompt.get_html(seq_pos=position, score_name="loss_effect_full"))
    browser.expect(opened_at_it.page.get_by_role("radio", name="full ablation")).to_be_checked()
    for metric, chosen in (("loss_effect_full", "full ablation"), ("loss_effect", "direct path")):
        opened.page.locator(f".metrics [data-metric={metric}]").click()
        browser.expect(opened.page.get_by_role("radio", name=chosen)).to_be_checked()
        ranked = prompt.scores[metric][position]
        titles = opened.texts(".prompt-columns [data-slot=score]")
        assert titles == [f"loss {format_signed(score, 3)}" for _, score in ranked]
