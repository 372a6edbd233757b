"""Layouts of saved data, what each panel says of itself, and the panel of docs/panels.md, made and drawn."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from page_reading import packed, parse, parse_fragment, text_of
from rendering_fixtures import make_features, make_prompt

from sae_vis import (
    CoactiveData,
    Column,
    Component,
    CounterexamplesData,
    FeatureVisParams,
    FileFormatError,
    Html,
    InputError,
    Layout,
    LossShareData,
    MultiFeatureData,
    MultiPromptData,
    NearestData,
    NeighboursData,
    PositionsData,
    TemplateError,
    TokensData,
    _params,
    _templates,
    register_component,
)
from sae_vis._params import ABOUTS, COMPONENTS, about
from sae_vis.html_fns import TokenPrinter

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"first_group_size": 4, "n_groups": 2, "other_groups_size": 2, "n_bins": 8, "n_logits": 3}


def with_evidence() -> MultiFeatureData:
    """Synthetic features with everything that the panels show."""
    data = make_features(4, dead=(3,), **SMALL)
    for feature in data.values():
        feature.neighbours = NeighboursData(NearestData([2, 999], [0.75, -0.125]), CoactiveData([1], [0.25], [1234]))
        feature.decoder_norm = 1.25
        if feature.sequences.groups:
            feature.tokens = TokensData([5], [3], [4], [0.5], [0.25], 9)
            feature.positions = PositionsData([0, 4, 8], [3, 1], [40, 40])
            feature.counterexamples = CounterexamplesData(feature.sequences.groups[0].sequences[:1], 7, [])
        for group in feature.sequences.groups:
            group.near_duplicates = [1]
            if group.share is not None:
                group.share_of_activation, group.n_positions = 0.5, 40
                group.share_of_loss = LossShareData(0.25, 0.0, 2, exact=False)
    return data


@pytest.fixture(scope="module")
def features() -> MultiFeatureData:
    return with_evidence()


@pytest.fixture
def registry(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(_templates, "_FOLDERS", [])
    before = dict(COMPONENTS)
    yield
    COMPONENTS.clear()
    COMPONENTS.update(before)
    _templates.template.cache_clear()
    _templates.asset.cache_clear()


# --- the new panels ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "cosine", "told"), [(2, 0.9512, "2 (cosine 0.951)"), (999, 0.99, "999 (cosine 0.990)"), (2, 0.95, None)]
)
def test_a_duplicate_is_named_beside_the_title(other, cosine, told):
    data = with_evidence()
    data[0].neighbours = NeighboursData(NearestData([other], [cosine]))
    head = parse(data.get_html(feature=0)).find(".//article/header")
    shown = dict(zip(map(text_of, head.iter("dt")), map(text_of, head.iter("dd")), strict=True))
    assert shown.get("Duplicate of") == told
    assert [link.get("data-go") for link in head.iter("a")] == (["2"] if told and other == 2 else [])


def test_moments_are_beside_the_title_only_where_no_panel_shows_them(features):
    for layout, there in ((None, False), (Layout([Column("activations_histogram")]), True)):
        head = parse(features.get_html(feature=0, layout=layout)).find(".//article/header")
        assert ("Skewness" in [text_of(name) for name in head.iter("dt")]) == there


def test_neighbours_link_to_the_features_of_the_page_alone(features):
    panel = parse(features.get_html(feature=0)).find(".//section[@aria-label='Neighbours']")
    assert [" ".join(text_of(cell) for cell in row) for row in panel.iter("tr")] == [
        *("Index Cosine", "2 +0.750", "999 −0.125"),
        *("Index Jaccard Tokens", "1 0.250 1,234"),
    ]
    assert [link.get("data-go") for link in panel.iter("a")] == ["2", "1"]


def test_an_interval_says_what_it_holds_of_activation_and_of_the_effect(features):
    lines = [
        " ".join(" ".join(e.itertext()).split())
        for e in parse(features.get_html(feature=0)).iter("p")
        if e.get("class") == "shares"
    ]
    assert lines == ["activation 50 % loss lowered ≈ 25 % raised ≈ 0 %"] * 2


def test_a_small_share_is_not_written_as_none():
    group = make_features(1, dead=(), **SMALL)[0].sequences.groups[1]
    group.share_of_activation = 0.004
    assert "&lt; 1 %" in group.get_html()
    group.share_of_activation = 0.0
    assert "</i> 0 %" in group.get_html()


def test_near_duplicates_are_marked_and_counted(features):
    tree = parse(features.get_html(feature=0))
    assert len([e for e in tree.iter("div") if e.get("class") == "dup"]) == 3
    assert sum(", 1 near-duplicate" in text_of(e) for e in tree.iter("h3")) == 3
    (switch,) = [e for e in tree.iter("button") if e.get("class") == "hide-dups"]
    assert (text_of(switch), switch.get("aria-pressed")) == ("Hide near-duplicates (3)", "false")


def test_a_near_duplicate_that_is_not_drawn_is_not_counted(features):
    layout = Layout([Column(Component("sequences", {"examples": 1}))])
    document = features.get_html(layout=layout)
    assert "near-duplicate" not in text_of(parse(document).find(".//article"))


def test_moments_are_there_where_the_feature_fires(features):
    document = features.get_html(feature=0)
    panel = parse(document).find(".//section[@aria-label='Moments']")
    assert [text_of(item) for item in panel.iter("li")] == [
        "Mean 0.0123",
        "Variance 0.0456",
        "Skewness 9.87",
        "Kurtosis 123",
    ]
    dead = parse_fragment(packed(document)[3])
    assert dead.find(".//section[@aria-label='Moments']") is None


def test_files_without_the_new_numbers_are_drawn_without_the_panel():
    data = make_features(2, dead=(), **SMALL)
    article = parse(data.get_html()).find(".//article")
    assert article.find(".//section[@aria-label='Neighbours']") is None
    assert "neighbours here" not in text_of(article)


def test_what_is_new_is_saved_and_read_again(features, tmp_path):
    features.save_json(tmp_path / "a.json")
    again = MultiFeatureData.load_json(tmp_path / "a.json")
    assert again == features
    assert again.get_html() == features.get_html()


# --- what is this ------------------------------------------------------------------------------------------------


def test_every_component_says_what_it_is():
    assert set(COMPONENTS) <= set(ABOUTS)
    assert all(len(about(name)) > 60 for name in COMPONENTS)


@pytest.mark.parametrize("view", ["feature", "prompt"])
def test_each_text_is_on_the_page_once_and_each_panel_has_its_button(features, view):
    document = features.get_html() if view == "feature" else make_prompt(4, 6, **SMALL).get_html()
    tree = parse(document)
    texts = {e.get("data-about-text"): text_of(e) for e in tree.iter("dd") if e.get("data-about-text")}
    fragments = [tree, *map(parse_fragment, packed(document).values())]
    buttons = [e for part in fragments for e in part.iter("button") if e.get("class") == "what-is"]
    assert {button.get("aria-label") for button in buttons} == {f"About {name}" for name in texts}
    assert {button.get("aria-expanded") for button in buttons} == {"false"}
    for name, text in texts.items():
        whole = about(name.replace(" ", "_"))
        assert text == " ".join(whole.split())
        assert document.count(_templates.escape(whole)) == 1


# --- layouts -----------------------------------------------------------------------------------------------------


def drawn_columns(document: str) -> list[list[str]]:
    columns = [e for e in parse(document).find(".//article").iter("div") if "column" in e.get("class", "").split()]
    buttons = [[b for b in column.iter("button") if b.get("class") == "what-is"] for column in columns]
    return [[b.get("aria-label").removeprefix("About ").replace(" ", "_") for b in some] for some in buttons]


def test_saved_data_is_drawn_in_another_layout_without_computing(features, tmp_path):
    features.save_json(tmp_path / "a.json.gz")
    layout = Layout([Column("sequences", width=500), Column("moments", "activations_histogram", width=200, height=90)])
    MultiFeatureData.load_json(tmp_path / "a.json.gz").save_html(tmp_path / "a.html", layout=layout)
    document = (tmp_path / "a.html").read_text("utf-8")
    assert drawn_columns(document) == [["sequences"], ["moments", "activations_histogram"]]
    assert 'style="--w:200px;--tall:90px"' in document
    changed = features.with_layout(layout)
    assert changed.get_html() == document == features.get_html(layout=layout)
    changed.save_json(tmp_path / "b.json")
    assert MultiFeatureData.load_json(tmp_path / "b.json").params.layout == layout
    assert changed.with_layout(None).get_html() == features.get_html()
    assert len(drawn_columns(features.get_html())) == 3


def test_the_prompt_view_has_a_layout_too(tmp_path):
    prompt = make_prompt(4, 6, **SMALL)
    layout = Layout([Column("top_sequences", "prompt", width=420)])
    assert drawn_columns(prompt.with_layout(layout).get_html()) == [["top_sequences", "prompt"]]
    chosen = dataclasses.replace(prompt, params=FeatureVisParams(prompt_layout=layout))
    chosen.save_json(tmp_path / "p.json")
    assert MultiPromptData.load_json(tmp_path / "p.json").get_html() == chosen.get_html()
    with pytest.raises(InputError, match="'sequences' cannot be shown in the prompt view"):
        prompt.with_layout(Layout([Column("sequences")]))


def test_a_site_takes_a_layout(features, tmp_path):
    features.save_site(tmp_path / "site", layout=Layout([Column("moments")]))
    assert drawn_columns((tmp_path / "site" / "index.html").read_text("utf-8")) == [["moments"]]


def test_help_shows_the_tree_of_both_views_and_every_component():
    text = str(Layout.help())
    assert repr(Layout.help()) == text
    for name, spec in COMPONENTS.items():
        assert f"\n  {name}  (" in text
        assert " ".join(about(name).split()) in " ".join(text.split())
        assert all(f"      {option} = {default!r}" in text for option, default in spec.options.items())
    assert "The default of the feature view:\nLayout\n  Column\n    feature_tables\n    neighbours\n" in text
    assert "    logits_tables  rows=5\n" in text
    assert str(Component.help()).splitlines()[1:] == text.split("The components:\n")[1].splitlines()
    assert str(Layout([Column("prompt", height=300)], height=200).tree()) == (
        "Layout  height=200\n  Column  height=300\n    prompt"
    )


# --- a panel of one's own ----------------------------------------------------------------------------------------


def example_files() -> dict[str, str]:
    text = (ROOT / "docs" / "panels.md").read_text("utf-8")
    return dict(re.findall(r"^\*\*`([\w.]+)`\*\*.*?\n\n```\w+\n(.*?)```$", text, re.DOTALL | re.MULTILINE))


@pytest.fixture(scope="module")
def example(tmp_path_factory) -> Path:
    """The folder of the documented example, after it ran in a process of its own."""
    folder = tmp_path_factory.mktemp("example")
    files = example_files()
    assert sorted(files) == sorted(
        ["bold_tokens.py", "bold_tokens.html", "bold_token.html", "bold_tokens.css", "bold_tokens.js", "use.py"]
    )
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    with_evidence().save_json(folder / "features.json")
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "use.py"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_the_documented_panel_is_drawn_and_works(example, show):
    opened = show((example / "with_panel.html").read_text("utf-8"))
    feature = with_evidence()[0]
    bold = [s.token_ids[s.bold_idx] for group in feature.sequences.groups for s in group.sequences]
    rows = opened.texts(".bold-tokens li")
    assert len(rows) == 3
    assert int(rows[0].split()[-1]) == max(map(bold.count, bold))
    assert opened.texts(".bold-tokens small") == [f"of {len(bold)} examples"]
    opened.page.get_by_role("button", name="Larger").click()
    assert opened.js("getComputedStyle(document.querySelector('.bold-tokens ul')).fontSize") == "20px"
    opened.page.get_by_role("button", name="About bold tokens").click()
    assert opened.texts(".what-it-is") == [
        "The tokens that the shown examples have in bold, and how often each of them."
    ]
    opened.go("#feature=2")
    opened.page.wait_for_selector("[data-feature='2'] .bold-tokens li")


def test_data_of_a_panel_that_is_not_registered_is_kept(example, tmp_path):
    data = MultiFeatureData.load_json(example / "with_panel.json")
    assert set(data[0].extras["bold_tokens"]) == {"token_ids", "counts"}
    data.save_json(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (example / "with_panel.json").read_bytes()


@dataclasses.dataclass
class Doubled:
    value: float

    def get_html(self, page, **options):
        return Html(f"<p class='doubled'>{2 * self.value:g}</p>")


def test_a_panel_may_draw_what_is_there(registry, features):
    register_component(
        "largest", attribute="activations", template="empty.html", help="Largest",
        draw=lambda part, page, options: Html(f"<p class='largest'>{part.max}</p>"), views=("feature", "prompt"),
    )  # fmt: skip
    layout = Layout([Column("largest")])
    assert f"<p class='largest'>{features[0].activations.max}</p>" in features.get_html(layout=layout)
    assert "class='largest'" in make_prompt(3, 5, **SMALL).with_layout(layout).get_html()


def test_a_panel_is_drawn_with_all_its_options(registry, features):
    register_component(
        "counted", attribute="activations", template="empty.html", help="Counted", options={"rows": 2, "wide": None},
        draw=lambda part, page, options: Html(f"<p>{sorted(options.items())}</p>"),
    )  # fmt: skip
    for given, drawn in (({}, 2), ({"rows": 7}, 7)):
        layout = Layout([Column(Component("counted", given))])
        assert f"<p>[('rows', {drawn}), ('wide', None)]</p>" in features.get_html(layout=layout)


def test_a_panel_of_what_is_not_there_or_cannot_draw_itself_is_told(registry, features):
    register_component("none", attribute="activation", template="empty.html", help="None")
    register_component("number", attribute="feature_idx", template="empty.html", help="Number")
    with pytest.raises(InputError, match="Component 'none': FeatureData has no attribute 'activation'"):
        features.get_html(layout=Layout([Column("none")]))
    with pytest.raises(InputError, match="A panel of int needs draw="):
        features.get_html(layout=Layout([Column("number")]))


def test_files_that_were_edited_are_read_again_when_the_panel_is_registered_again(registry, features, tmp_path):
    layout = None
    for text in ("one", "two"):
        (tmp_path / "edited.html").write_text(
            f"<!-- needs: css/edited.css -->\n<p>{text} {{{{ n }}}}</p>", encoding="utf-8"
        )
        (tmp_path / "edited.css").write_text(f".edited-{text} {{ color: red; }}", encoding="utf-8")
        register_component(
            "edited", attribute="activations", template="edited.html", help="Edited", folder=tmp_path,
            draw=lambda part, page, options: _templates.fill_template("edited.html", n=str(part.n_active)),
        )  # fmt: skip
        layout = layout or Layout([Column("edited")])
        document = features.get_html(layout=layout)
        assert f"<p>{text} {features[0].activations.n_active}</p>" in document
        assert f".edited-{text}" in document


def test_data_is_its_dataclass_again_once_the_panel_is_registered(registry, tmp_path):
    data = make_features(2, dead=(), **SMALL)
    data[0].extras["doubled"] = Doubled(1.5)
    data.save_json(tmp_path / "a.json")
    register_component("doubled", data=Doubled, template="empty.html", help="Doubled")
    again = MultiFeatureData.load_json(tmp_path / "a.json")
    assert again[0].extras == {"doubled": Doubled(1.5)}
    documents = [again.with_layout(Layout([Column("doubled")])).get_html(feature=f) for f in (0, 1)]
    assert "<p class='doubled'>3</p>" in documents[0]
    assert len(packed(documents[1])) == 1  # a feature without the data has a page all the same
    (tmp_path / "b.json").write_text(
        (tmp_path / "a.json").read_text("utf-8").replace('"value":1.5', '"value":"x"'), "utf-8"
    )
    with pytest.raises(FileFormatError, match=r"extras.*Doubled"):
        MultiFeatureData.load_json(tmp_path / "b.json")


def test_pages_of_many_features_are_drawn_here_where_other_processes_do_not_know_the_panel(
    registry, features, tmp_path
):
    register_component("doubled", data=Doubled, template="empty.html", help="Doubled")
    features = dataclasses.replace(
        features, params=dataclasses.replace(features.params, layout=Layout([Column("doubled")]))
    )
    features.save_html(tmp_path / "one.html", processes=1)
    features.save_html(tmp_path / "two.html", processes=2)
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


@pytest.mark.parametrize("value", [Doubled(math.nan), {"x": [math.inf]}, object(), {1, 2}.__iter__()])
def test_what_json_cannot_hold_is_not_saved(value, tmp_path):
    data = make_features(1, dead=(), **SMALL)
    data[0].extras["mine"] = value
    with pytest.raises(InputError, match=r"extras\.mine"):
        data.save_json(tmp_path / "a.json")


GOOD = {"template": "empty.html", "help": "Mine", "data": Doubled}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("Mine", {}, "small letters"),
        (3, {}, "small letters"),
        ("sequences", {}, "one of the library"),
        ("mine", {"data": None}, "either data=.*or attribute="),
        ("mine", {"attribute": "logits"}, "either data=.*or attribute="),
        ("mine", {"data": int}, "must be a dataclass"),
        ("mine", {"views": ("page",)}, "'feature', 'prompt' or both"),
        ("mine", {"views": ()}, "'feature', 'prompt' or both"),
        ("mine", {"views": "feature"}, "'feature', 'prompt' or both"),
        ("mine", {"views": 5}, "'feature', 'prompt' or both"),
        ("mine", {"views": ([],)}, "'feature', 'prompt' or both"),
        ("mine", {"options": 5}, "options must be a mapping"),
        ("mine", {"folder": "/no/such"}, "is not there"),
        ("mine", {"folder": __file__}, "is not there"),
        ("mine", {"folder": 3}, "The folder 3 .* is not there"),
        ("mine", {"folder": "a\0b"}, "is not there"),
        ("mine", {"data": Doubled(1.0)}, "data must be a dataclass, got Doubled"),
        ("mine", {"data": None, "attribute": 3}, "attribute must be a text, got 3"),
        ("mine", {"draw": 3}, "draw must be a function, got 3"),
        ("mine", {"help": None}, "help must be a text, got None"),
        ("mine", {"about": 5}, "about must be a text, got 5"),
        ("mine", {"template": []}, r"template must be a text, got \[\]"),
        ("mine", {"options": {1: 2}}, "option 1 must be an int"),
        ("mine", {"options": {"wide": "yes"}}, "option 'wide' must be an int >= 0 or None, got 'yes'"),
        ("mine", {"options": {"on": True}}, "option 'on' must be an int"),
    ],
)
def test_a_panel_that_cannot_be_is_refused(registry, name, changes, message):
    with pytest.raises(InputError, match=message):
        register_component(name, **{**GOOD, **changes})
    assert name not in COMPONENTS or name in _params.BUILT_IN


def test_files_of_a_panel_must_have_new_names_and_be_there(registry, tmp_path):
    with pytest.raises(TemplateError, match="no_such"):
        register_component("mine", **{**GOOD, "template": "no_such.html"})
    (tmp_path / "page.html").write_text("<p></p>", encoding="utf-8")
    with pytest.raises(InputError, match="there is a file of this name already"):
        register_component("mine", folder=tmp_path, **GOOD)


def test_an_unknown_panel_says_what_to_do():
    with pytest.raises(InputError, match="register_component"):
        Component("mine")


# --- in a browser ------------------------------------------------------------------------------------------------


def test_what_is_this_opens_and_closes_by_mouse_and_keyboard(features, show):
    opened = show(features.get_html())
    button = opened.page.get_by_role("button", name="About moments")
    button.click()
    assert opened.texts(".what-it-is") == [about("moments")]
    assert button.get_attribute("aria-expanded") == "true"
    opened.page.keyboard.press("Escape")
    assert opened.texts(".what-it-is") == []
    assert opened.js("document.activeElement.ariaLabel") == "About moments"
    opened.page.keyboard.press("Enter")
    assert opened.texts(".what-it-is") == [about("moments")]
    opened.page.keyboard.press("Space")
    assert opened.texts(".what-it-is") == []


def test_without_scripts_there_are_no_buttons_and_the_texts_open_all_the_same(features, show):
    page = show(features.get_html(), java_script_enabled=False).page
    assert page.locator(".what-is:visible, .hide-dups:visible").count() == 0
    page.get_by_text("What the panels show").click()
    assert page.locator("[data-about-text='neighbours']").is_visible()


def test_near_duplicates_are_hidden_in_every_feature_until_they_are_wanted_again(features, show):
    opened = show(features.get_html())
    page = opened.page
    assert page.locator(".dup:visible").count() == 3
    page.get_by_role("button", name="Hide near-duplicates").click()
    assert page.locator(".dup:visible").count() == 0
    opened.go("#feature=1")
    page.wait_for_selector("[data-feature='1']")
    button = page.get_by_role("button", name="Hide near-duplicates")
    assert page.locator(".dup:visible").count() == 0
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    assert page.locator(".dup:visible").count() == 3


def test_the_text_of_a_near_duplicate_keeps_its_colour(features, show):
    opened = show(features.get_html())
    colours = opened.js(
        "['.dup .seq > span:not(.x)', '.group > .seq > span:not(.x)'].map(s => getComputedStyle(document.querySelector(s)).color)"
    )
    assert colours[0] == colours[1]


def test_a_token_printer_is_what_a_panel_gets(features):
    assert isinstance(features._context().printer, TokenPrinter)
