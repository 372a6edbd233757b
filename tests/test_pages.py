"""Whole pages of both views: parsed strictly, compared with golden files, and every fault of the peers ruled out."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
import pickle
import random
import re
import time
from pathlib import Path

import pytest
from page_reading import data, drawn, inflated, packed, parse, parse_fragment, running_scripts, text_of
from rendering_fixtures import make_comparison, make_features, make_prompt, make_provenance

from sae_vis import _page, _templates
from sae_vis._errors import InputError
from sae_vis._params import COMPONENTS, Column, Component, FeatureVisParams, Layout
from sae_vis._templates import Html
from sae_vis.data_storing_fns import HistogramData, MultiFeatureData, PageContext, Provenance

GOLDEN = Path(__file__).parent / "golden"
SMALL = {"first_group_size": 3, "n_groups": 2, "other_groups_size": 2, "n_bins": 8, "n_logits": 3}


@pytest.fixture(scope="module")
def features():
    return make_features(8)


@pytest.fixture(scope="module")
def prompt():
    return make_prompt(20)


def check_page(document):
    """What holds of every page; its tree."""
    tree = parse(document)
    assert document.startswith('<!doctype html>\n<html lang="en">')
    assert '<meta charset="utf-8">' in document[:200]
    assert text_of(tree.find(".//title"))
    assert tree.find(".//main") is not None
    assert len(tree.findall(".//h1")) == 1
    ids = [element.get("id") for element in tree.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    for element in tree.iter():
        if not isinstance(element.tag, str):
            continue
        assert not any(name.startswith("on") for name in element.attrib), element.attrib
        assert element.tag not in {"iframe", "object", "embed", "base", "img", "form"}
        assert not re.match(r"\s*(javascript|data):", element.get("href", ""), re.IGNORECASE) or element.tag == "link"
    assert "\ufffd" not in document
    return tree


# --- golden pages ------------------------------------------------------------------------------------------------


def golden_pages():
    small = make_features(3, dead=(2,), **SMALL)
    whole_rows = make_features(1, dead=(), buffer=None, layout=Layout([Column("sequences")], height=600), **SMALL)
    prompt = make_prompt(3, 6, n_top=2, **SMALL)
    two = make_comparison(3, n_top=2, **SMALL)
    return {
        "features.html": small.get_html(),
        "feature_alone.html": small[1].get_html(),
        "whole_rows.html": whole_rows.get_html(),
        "prompt.html": prompt.get_html(seq_pos=3, score_name="loss_effect", feature_url="f.html#feature={feature}"),
        "comparison.html": two.get_html(pair=3, score_name="act_size", feature_url="f.html#feature={feature}"),
    }


@pytest.mark.parametrize(
    "name", ["features.html", "feature_alone.html", "whole_rows.html", "prompt.html", "comparison.html"]
)
def test_golden_pages(name):
    """Run with SAE_VIS_UPDATE_GOLDEN=1 to write them anew, and look at what changed."""
    found = inflated(golden_pages()[name])
    path = GOLDEN / name
    if os.environ.get("SAE_VIS_UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(found, encoding="utf-8")
    assert found == path.read_text(encoding="utf-8"), f"{name} changed; see this test's docstring"


# --- the frame of a page -----------------------------------------------------------------------------------------


def test_pages_parse_strictly(features, prompt):
    for document in (features.get_html(), features[3].get_html(), prompt.get_html(), make_comparison(6).get_html()):
        check_page(document)
    for fragment in (*packed(features.get_html()).values(), *packed(prompt.get_html()).values()):
        parse_fragment(fragment)


def test_every_asset_is_there_once_and_nothing_is_loaded(features, prompt):
    for document in (features.get_html(), prompt.get_html()):
        for name in document.needs:
            assert document.count(_templates.asset(name)) == 1, name
        outside = re.sub(r"<script>.*?</script>", "", document, flags=re.DOTALL)
        assert not re.search(r'(?:src|href)="(?!#|data:,)', outside)
        assert "url(" not in outside


def test_the_style_sheet_of_paper_and_forced_colours_stands_after_those_it_changes(features, prompt):
    for document in (features.get_html(), features[0].get_html(), prompt.get_html()):
        (styles,) = parse(document).iter("style")
        assert styles.text.endswith(_templates.asset("css/modes.css"))


def test_scripts_use_nothing_that_older_browsers_lack():
    """Attributes of ARIA as properties, and what stands before a match."""
    scripts = {path.name: path.read_text(encoding="utf-8") for path in _templates.folder("js").iterdir()}
    assert len(scripts) > 20
    found = {name: re.findall(r"\baria[A-Z]\w*|\(\?<[=!]", text) for name, text in scripts.items()}
    assert {name: what for name, what in found.items() if what} == {}


def test_the_policy_allows_these_scripts_and_no_request(features):
    tree = parse(features.get_html())
    policy = tree.find(".//meta[@http-equiv]").get("content")
    assert policy.startswith("default-src 'none'; img-src data:;")
    scripts = running_scripts(tree)
    needs = features.get_html().needs
    assert len(scripts) == sum(need.startswith("js/") for need in needs) >= 5
    elements = [*tree.iter("style"), *scripts]
    digests = [base64.b64encode(hashlib.sha256(element.text.encode()).digest()).decode() for element in elements]
    assert re.findall(r"'sha256-([^']*)'", policy) == digests
    directives = dict(directive.strip().partition(" ")[::2] for directive in policy.split(";"))
    assert directives["base-uri"] == directives["form-action"] == "'none'"
    assert set(directives) == {
        *("default-src", "img-src", "style-src", "style-src-elem", "script-src", "base-uri", "form-action"),
    }


def test_json_cannot_end_its_element():
    hostile = ["</script>", "<!-- <script>", "\u2028\u2029", "&amp;", "]]>"]
    text = _page.json_text(hostile)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == hostile
    with pytest.raises(ValueError, match="JSON"):
        _page.json_text(float("nan"))


def test_the_same_data_gives_the_same_bytes():
    assert make_features(4, seed=5).get_html() == make_features(4, seed=5).get_html()
    assert make_prompt(5, seed=5).get_html() == make_prompt(5, seed=5).get_html()


def test_the_order_of_features_does_not_matter():
    one = make_features(4)
    other = dataclasses.replace(one, feature_data_dict=dict(reversed(one.feature_data_dict.items())))
    assert one.get_html() == other.get_html()


def test_drawing_changes_nothing_global():
    state = random.getstate()
    make_features(1).get_html()
    assert random.getstate() == state


# --- the feature-centric page ------------------------------------------------------------------------------------


def test_one_feature_is_plain_and_the_others_are_packed(features):
    document = features.get_html(feature=4)
    tree = check_page(document)
    assert tree.find(".//main/article").get("data-feature") == "4"
    assert sorted(packed(document)) == [0, 1, 2, 3, 5, 6, 7]
    for index, fragment in packed(document).items():
        article = parse_fragment(fragment).find("article")
        assert article.get("data-feature") == str(index)
    assert data(document, "index")["ids"] == list(range(8))
    assert data(document, "index")["labels"] == {"1": "Django model fields"}
    assert text_of(tree.find(".//title")) == "Feature 4 · blocks.0.mlp.hook_post · gelu-1l-code"


def test_a_packed_feature_is_the_same_as_a_plain_one(features):
    plain = features.get_html(feature=2)
    fragment = packed(features.get_html(feature=0))[2]
    assert f'<main class="shown-feature">{fragment}</main>' in plain


def test_every_panel_is_there(features):
    article = parse(features.get_html(feature=1)).find(".//main/article")
    captions = [text_of(element) for element in article.iter("caption")]
    assert captions == [
        "Neuron alignment",
        "Correlated neurons",
        "Correlated features",
        "Correlated B features",
        "Negative logits",
        "Positive logits",
    ]
    titles = [text_of(element) for element in article.iter("h3")]
    assert [title.split()[0] for title in titles] == ["Activations", "Moments", "Logit", "TOP", *["INTERVAL"] * 10]
    assert re.search(r"Activations density [\d.]+ %, max [\d.]+", titles[0])
    assert all(re.search(r"[\d.]+ % of tokens$", title) for title in titles[4:])
    assert len([e for e in article.iter("div") if e.get("class") == "seq"]) == 20 + 10 * 5
    assert "Loss contribution (exact)" in text_of(article)
    assert "Django model fields" in text_of(article)


def test_the_numbers_behind_the_tokens_are_the_data(features):
    feature = features[1]
    hover = json.loads(parse(features.get_html(feature=1)).find(".//script[@class='hover']").text)
    sequences = [sequence for group in feature.sequences.groups for sequence in group.sequences]
    assert hover["ids"] == [token_id for s in sequences for token_id in s.token_ids]
    assert hover["rows"] == [s.row for s in sequences]
    assert hover["starts"] == [s.start for s in sequences]
    assert hover["lengths"] == [len(s.token_ids) for s in sequences]
    act, loss, logit = (10**decimals for decimals in hover["decimals"])
    assert [a / act for a in hover["acts"]] == pytest.approx(
        [a for s in sequences for a in s.feat_acts], abs=0.51 / act
    )
    assert [x if x is None else x / loss for x in hover["losses"]] == [
        x if x is None else pytest.approx(x, abs=0.51 / loss) for s in sequences for x in s.loss_contribution
    ]
    distinct = list(dict.fromkeys(hover["ids"]))
    assert [x / logit for x in hover["logits"]] == pytest.approx(
        [feature.logits.shown_logits[i] for i in distinct], abs=0.51 / logit
    )


def test_the_effects_behind_the_tokens_are_the_data(features):
    hover = json.loads(parse(features.get_html(feature=1)).find(".//script[@class='hover']").text)["effects"]
    expected, before = [], 0
    for group in features[1].sequences.groups:
        for sequence in group.sequences:
            expected += [(before + effect.at, effect) for effect in sequence.effects]
            before += len(sequence.token_ids)
    assert hover["at"] == [at for at, _ in expected]
    ids, steps = iter(hover["ids"]), iter(hover["steps"])
    for counts, (_, effect) in zip(zip(*[iter(hover["counts"])] * 2, strict=True), expected, strict=True):
        for sign, count, token_ids, logprobs in (
            (1, counts[0], effect.raised_token_ids, effect.raised_logprobs),
            (-1, counts[1], effect.lowered_token_ids, effect.lowered_logprobs),
        ):
            assert [next(ids) for _ in range(count)] == token_ids
            value = 0
            for place, logprob in enumerate(logprobs):
                value = value - next(steps) if place else next(steps)
                assert sign * value / 10 ** hover["decimals"] == pytest.approx(
                    logprob, abs=0.51 / 10 ** hover["decimals"]
                )
    assert next(ids, None) is None


def test_the_vocabulary_covers_every_token_and_is_drawn_by_one_renderer(features):
    for document in (features.get_html(), features[1].get_html()):
        vocab = data(document, "vocab")
        shown = dict(zip(vocab["ids"], vocab["html"], strict=True))
        for article in parse(document).iter("article"):
            hover = json.loads(article.find(".//script[@class='hover']").text)
            assert shown.keys() >= {*hover["ids"], *hover["effects"]["ids"]}
    assert len(data(features[1].get_html(), "vocab")["ids"]) <= len(features.vocab)


def test_a_sequence_shows_activation_effect_bold_and_ignored(features):
    feature = features[1]
    article = parse(features.get_html(feature=1)).find(".//main/article")
    lines = [element for element in article.iter("div") if element.get("class") == "seq"]
    sequences = [sequence for group in feature.sequences.groups for sequence in group.sequences]
    largest = max(abs(loss) for s in sequences for loss in s.loss_contribution if loss)
    for line, sequence in zip(lines, sequences, strict=True):
        assert line.get("tabindex") == "0"
        bold = [place for place, token in enumerate(line) if "b" in token.get("class", "").split()]
        assert bold == [sequence.bold_idx]
        for token, token_id, act, loss in zip(
            line, sequence.token_ids, sequence.feat_acts, sequence.loss_contribution, strict=True
        ):
            style = dict(part.split(":") for part in token.get("style", "").split(";") if part)
            assert float(style.get("--a", 0)) == pytest.approx(act / feature.activations.max, abs=0.01)
            assert ("--a" in style) == (act > 0)
            effect = float(style.get("--r", 0)) - float(style.get("--h", 0))
            assert effect == pytest.approx((loss or 0) / largest, abs=0.01)
            assert ("x" in token.get("class", "").split()) == (token_id in features.provenance.ignored_token_ids)


def test_links_lead_only_to_features_that_are_there(features):
    table = features[1].feature_tables.correlated_features
    table.indices = [2, 500, 7]
    article = parse(features.get_html(feature=1)).find(".//main/article")
    assert [element.get("href") for element in article.iter("a")] == ["#feature=2", "#feature=7"]
    assert not list(parse(features[1].get_html()).find(".//main").iter("a"))


def test_a_dead_feature_says_so_and_keeps_its_logits(features):
    article = parse(features.get_html(feature=3)).find(".//main/article")
    text = text_of(article)
    assert "never fires on the 126,000 counted tokens" in text
    assert "No examples" in text
    assert "Positive logits" in text
    assert "density 0 %" in text
    assert len(drawn(article, "svg")) == 1


def test_a_feature_without_logits_gives_the_reason_once():
    features = make_features(1, dead=())
    features.feature_data_dict[0].logits = None
    reason = "a nonlinearity stands between the hook point and the residual stream"
    features.provenance = make_provenance(direct_effect="none", direct_effect_reason=reason)
    article = check_page(features.get_html()).find(".//main/article")
    assert text_of(article).count(f"no logits here: {reason}") == 1
    assert len(drawn(article, "svg")) == 1


def test_that_reason_is_given_of_nothing_else():
    features = make_features(1, dead=(), layout=Layout([Column("tokens", "neighbours", "logits_tables")]))
    feature = features.feature_data_dict[0]
    feature.logits = feature.tokens = feature.neighbours = None
    features.provenance = make_provenance(direct_effect="none", direct_effect_reason="a nonlinearity")
    text = text_of(check_page(features.get_html()).find(".//main/article"))
    assert "There are no logits here: a nonlinearity" in text
    assert "There are no tokens here." in text
    assert "There are no neighbours here." in text


def test_a_histogram_of_nothing_says_so():
    assert "There is nothing to count." in HistogramData([], [], []).get_html()


def test_without_ablation_nothing_is_underlined_and_the_page_says_so():
    features = make_features(1, dead=(), effects=False)
    article = check_page(features.get_html()).find(".//main/article")
    assert "Loss contribution not measured: ablation=None" in text_of(article)
    assert not any("--h" in e.get("style", "") or "--r" in e.get("style", "") for e in article.iter())
    assert json.loads(article.find(".//script[@class='hover']").text)["losses"] == []


def test_the_direct_path_is_named():
    features = make_features(1, dead=())
    features.provenance = make_provenance(direct_effect="direct path", direct_effect_reason="block 1 reads it too")
    assert "Loss contribution (direct path: block 1 reads it too)" in text_of(check_page(features.get_html()))


def test_notes_are_shown():
    features = make_features(1)
    features.provenance = make_provenance(notes=["Negative activations were set to 0.", "Centred <weights>."])
    notes = check_page(features.get_html()).find(".//aside")
    assert [text_of(note) for note in notes] == ["Negative activations were set to 0.", "Centred <weights>."]


def test_one_bar_and_no_groups():
    features = make_features(1, dead=(), first_group_size=0, n_groups=0)
    feature = features.feature_data_dict[0]
    feature.activations.histogram = HistogramData([0.0, 1.0], [1], [0.5])
    feature.logits.histogram = HistogramData([], [], [])
    tree = check_page(features.get_html())
    assert "no logit weights" in text_of(tree)


def test_no_features():
    empty = dataclasses.replace(make_features(1), feature_data_dict={})
    assert "no features" in text_of(check_page(empty.get_html()))
    assert empty._repr_html_()


def test_without_a_vocabulary_ids_are_shown(features):
    bare = dataclasses.replace(features, vocab={}, vocab_bytes={})
    assert "id 12" in text_of(check_page(bare.get_html()))


def test_whole_rows_and_extreme_numbers():
    features = make_features(1, dead=(), buffer=None)
    acts = features.feature_data_dict[0].activations
    acts.max, acts.kurtosis, acts.skewness, acts.density = 1e30, 1e300, -1e-300, 1e-12
    check_page(features.get_html())


# --- layout ------------------------------------------------------------------------------------------------------


def test_the_layout_is_honoured():
    layout = Layout(
        [
            Column(Component("sequences", {"examples": 2}), width=500),
            Column(Component("logits_tables", {"rows": 4}), "activations_histogram", width=300),
        ],
        height=700,
    )
    article = check_page(make_features(1, dead=(), layout=layout).get_html()).find(".//main/article")
    columns = article.find("div[@class='columns']")
    assert columns.get("style") == "--height:700px"
    assert [column.get("style") for column in columns] == ["--w:500px", "--w:300px"]
    assert len([e for e in columns[0].iter("div") if e.get("class") == "seq"]) == 11 * 2
    assert [len(list(table.iter("tr"))) for table in columns[1].iter("table")] == [4, 4]
    assert len(drawn(columns, "svg")) == 1
    assert not list(columns.iter("caption"))[2:]


def test_the_flat_options_are_honoured():
    plain = parse(make_features(1, dead=(), include_left_tables=False, border=False, seq_width=None).get_html())
    article = plain.find(".//main/article")
    assert article.get("class") == "feature"
    assert len(article.find("div[@class='columns']")) == 2
    assert article.find("div[@class='columns']")[1].get("style") is None
    assert parse(make_features(1).get_html()).find(".//main/article").get("class") == "feature bordered"


def test_a_component_twice_in_a_layout():
    layout = Layout([Column("sequences", Component("sequences", {"examples": 1}))])
    tree = check_page(make_features(1, dead=(), layout=layout).get_html())
    assert len([e for e in tree.iter("script") if e.get("class") == "hover"]) == 2


# --- fragments and documents -------------------------------------------------------------------------------------


def test_a_feature_remembers_its_page(features):
    document = features[1].get_html()
    tree = check_page(document)
    assert "gelu-1l-code" in document
    assert tree.find(".//nav") is None
    assert packed(document) == {}
    for feature in (next(iter(features.values())), dict(features.items())[0]):
        assert feature.get_html().startswith("<!doctype html>")


def test_drawing_in_another_layout_leaves_a_feature_as_it_was(tmp_path):
    features = make_features(2, dead=())
    held = features[0]
    before = held.get_html()
    features.save_html(tmp_path / "page.html", layout=Layout((Column("sequences"),)))
    features.save_site(tmp_path / "site", layout=Layout((Column("sequences"),)))
    assert held.get_html() == before


def test_remembering_is_neither_compared_nor_saved_nor_pickled(features, tmp_path):
    fresh = make_features(8)
    remembered = fresh[2]
    assert remembered == make_features(8).feature_data_dict[2]
    assert "_context" not in vars(pickle.loads(pickle.dumps(remembered)))
    assert "_context" not in [field.name for field in dataclasses.fields(remembered)]
    fresh.save_json(tmp_path / "one.json")
    make_features(8).save_json(tmp_path / "other.json")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "other.json").read_bytes()


def test_a_feature_of_no_page_shows_ids():
    feature = make_features(1, dead=()).feature_data_dict[0]
    assert "id " in text_of(check_page(feature.get_html()))


def test_parts_draw_themselves_alone(features, prompt):
    feature = features.feature_data_dict[1]
    parts = [
        feature.feature_tables,
        feature.feature_tables.neuron_alignment,
        feature.feature_tables.correlated_neurons,
        feature.activations,
        feature.activations.histogram,
        feature.logits,
        feature.sequences,
        feature.sequences.groups[0],
        feature.sequences.groups[0].sequences[0],
        prompt.prompt_data_dict[7],
    ]
    for part in parts:
        for page in (None, PageContext()):
            fragment = part.get_html(page)
            assert isinstance(fragment, Html)
            parse_fragment(fragment)


def test_unknown_features_are_errors_with_choices(features):
    for ask in (
        lambda: features[99],
        lambda: features.get_html(feature=99),
        lambda: features.save_html("x", feature=99),
    ):
        with pytest.raises(InputError, match=r"Feature 99 is not in this data, which holds 8 features: 0, 1, 2, 3"):
            ask()
    with pytest.raises(InputError, match="is not in this data"):
        features[[1]]


def test_mapping(features):
    assert (len(features), list(features), 3 in features, 9 in features) == (8, list(range(8)), True, False)
    assert list(features.keys()) == list(range(8))
    assert [feature.feature_idx for feature in features.values()] == list(range(8))
    assert all(index == feature.feature_idx for index, feature in features.items())
    assert repr(features) == "MultiFeatureData(8 features of blocks.0.mlp.hook_post of gelu-1l-code)"


# --- files -------------------------------------------------------------------------------------------------------


def test_save_html_and_json(features, prompt, tmp_path):
    features.save_html(tmp_path / "f.html", feature=2)
    assert (tmp_path / "f.html").read_bytes() == features.get_html(feature=2).encode()
    prompt.save_html(tmp_path / "p.html", seq_pos=2, score_name="act_size")
    assert (tmp_path / "p.html").read_bytes() == prompt.get_html(seq_pos=2, score_name="act_size").encode()
    features.save_json(tmp_path / "f.json.gz")
    prompt.save_json(tmp_path / "p.json")
    assert MultiFeatureData.load_json(tmp_path / "f.json.gz").get_html() == features.get_html()
    assert type(prompt).load_json(tmp_path / "p.json").get_html() == prompt.get_html()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.html", "f.json.gz", "p.html", "p.json"]


# --- merging -----------------------------------------------------------------------------------------------------


def halves():
    whole = make_features(6)
    data = whole.feature_data_dict
    one = dataclasses.replace(whole, feature_data_dict={i: data[i] for i in (0, 2, 5)})
    other = dataclasses.replace(whole, feature_data_dict={i: data[i] for i in (1, 3, 4)})
    one.params = dataclasses.replace(whole.params, features=[0, 2, 5], verbose=False)
    other.params = dataclasses.replace(whole.params, features=[1, 3, 4], memory_budget="1GB")
    return whole, one, other


def test_merge_joins_disjoint_features():
    whole, one, other = halves()
    merged, reverse = one.merge(other), other.merge(one)
    assert merged.feature_data_dict == reverse.feature_data_dict == whole.feature_data_dict
    assert list(merged) == list(range(6))
    assert merged.params.features == (0, 1, 2, 3, 4, 5)
    assert merged.get_html() == whole.get_html()
    assert (list(one), list(other)) == ([0, 2, 5], [1, 3, 4])


def test_merge_refuses_what_does_not_belong_together():
    _, one, other = halves()
    with pytest.raises(InputError, match="both hold 0, 2, 5"):
        one.merge(one)
    with pytest.raises(InputError, match="parameters differ in: n_bins"):
        one.merge(dataclasses.replace(other, params=dataclasses.replace(other.params, n_bins=7)))
    with pytest.raises(InputError, match="provenance differ in: model"):
        one.merge(dataclasses.replace(other, provenance=make_provenance(model="another")))
    with pytest.raises(InputError, match="vocab differs at 5"):
        one.merge(dataclasses.replace(other, vocab={**other.vocab, 5: "?"}))
    with pytest.raises(InputError, match="got list"):
        one.merge([])


@pytest.mark.parametrize(("own", "others", "kept"), [(0.25, None, 0.25), (None, 0.5, 0.5), (0.25, 0.26, 0.25)])
def test_merge_takes_what_the_map_holds_from_where_it_is_known(own, others, kept):
    """It tells of the encoder, not of the run: files of before it was measured have none."""
    _, one, other = halves()
    one.provenance = dataclasses.replace(one.provenance, map_variance=own, map_sample=own and 3)
    other.provenance = dataclasses.replace(other.provenance, map_variance=others, map_sample=others and 4)
    merged = one.merge(other)
    sample = 3 if own else others and 4
    assert merged.provenance == dataclasses.replace(one.provenance, map_variance=kept, map_sample=sample)
    assert [data.provenance.map_variance for data in (one, other)] == [own, others]


# --- notebooks ---------------------------------------------------------------------------------------------------


def frame_document(frame):
    element = parse_fragment(frame)[0]
    assert (element.tag, len(element)) == ("iframe", 0)
    return element.get("srcdoc")


def test_a_notebook_gets_a_frame_with_the_whole_page(features, prompt):
    assert frame_document(features._repr_html_()) == features.get_html()
    assert frame_document(prompt._repr_html_()) == prompt.get_html()


def test_a_notebook_gets_at_most_fifty_features_and_is_told_so():
    document = frame_document(make_features(53, **SMALL)._repr_html_())
    tree = check_page(document)
    assert data(document, "index")["ids"] == list(range(50))
    assert len(packed(document)) == 49
    assert "Showing 50 of 53 features." in text_of(tree.find(".//aside"))
    assert ".save_html(" in text_of(tree.find(".//aside"))


def test_a_notebook_gets_at_most_two_megabytes(monkeypatch):
    features = make_features(12, dead=())
    monkeypatch.setattr(_page, "NOTEBOOK_BYTES", 200_000)
    document = frame_document(features._repr_html_())
    assert len(document) <= 200_000
    assert 1 <= len(data(document, "index")["ids"]) < 12
    assert "of 12 features" in text_of(parse(document).find(".//aside"))


def test_a_prompt_that_is_too_large_for_a_notebook_says_how_to_save_it(prompt, monkeypatch):
    monkeypatch.setattr(_page, "NOTEBOOK_BYTES", 1000)
    assert "save_html" in prompt._repr_html_()


# --- the prompt-centric page -------------------------------------------------------------------------------------


def test_every_ranked_feature_is_there_once(prompt):
    document = prompt.get_html(seq_pos=4, score_name="act_size")
    tree = check_page(document)
    shown = [int(e.get("data-feature")) for e in tree.iter("article")]
    assert shown == [feature for feature, _ in prompt.scores["act_size"][4]]
    ranked = {feature for positions in prompt.scores.values() for at in positions for feature, _ in at}
    assert set(shown) | packed(document).keys() == ranked
    assert not set(shown) & packed(document).keys()


def test_a_column_names_rank_feature_and_score(prompt):
    tree = parse(prompt.get_html(seq_pos=4, score_name="act_size"))
    heads = [text_of(article.find("header")) for article in tree.iter("article")]
    for rank, (head, (feature, score)) in enumerate(zip(heads, prompt.scores["act_size"][4], strict=True), 1):
        assert head == f"#{rank} Feature {feature}activation {score:.4g}"


@pytest.mark.parametrize(
    ("metric", "pattern"),
    [
        ("act_size", r"activation [\d.]+$"),
        ("act_quantile", r"quantile [\d.]+ %$"),
        ("loss_effect", r"loss [+−]?[\d.]+$"),
    ],
)
def test_scores_are_formatted_by_metric(prompt, metric, pattern):
    rankings = data(prompt.get_html(), "rankings")
    assert list(rankings["scores"]) == list(prompt.scores)
    for at, expected in zip(rankings["scores"][metric], prompt.scores[metric], strict=True):
        assert [feature for feature, _ in at] == [feature for feature, _ in expected]
        assert all(re.match(pattern, text) for _, text in at)


def test_the_chosen_token_is_bold_and_its_lines_are_drawn(prompt):
    for metric, n_lines, offset in (("act_size", 1, 0), ("loss_effect", 2, 1)):
        for article in parse(prompt.get_html(seq_pos=5, score_name=metric)).iter("article"):
            tokens = article.find(".//div[@aria-label='Prompt']/div[@class='seq']")
            assert [i for i, token in enumerate(tokens) if "b" in token.get("class", "").split()] == [5]
            pins = [text_of(element) for element in drawn(article, "g")]
            data = prompt.prompt_data_dict[int(article.get("data-feature"))]
            assert len(pins) == n_lines
            assert float(pins[0]) == pytest.approx(data.sequence.feat_acts[5 - offset], rel=1e-3)


def test_the_strip_counts_the_active_features(prompt):
    tree = parse(prompt.get_html(seq_pos=5))
    buttons = list(tree.find(".//div[@class='strip']"))
    assert [int(text_of(button.find("b"))) for button in buttons] == prompt.n_active
    assert [button.get("aria-checked") for button in buttons].index("true") == 5
    assert [button.get("tabindex") for button in buttons].count("0") == 1


def test_nothing_active_is_a_sentence(prompt):
    position = len(prompt.prompt_token_ids) - 2
    tree = check_page(prompt.get_html(seq_pos=position, score_name="act_size"))
    assert not list(tree.iter("article"))
    none = tree.find(".//p[@class='none-ranked empty']")
    assert none.get("hidden") is None
    assert "none of those that were fetched is active on this token" in text_of(none)
    assert "token before" in text_of(
        parse(prompt.get_html(seq_pos=0, score_name="loss_effect")).find(".//p[@class='none-ranked empty']")
    )


def test_a_prompt_on_which_nothing_is_active():
    prompt = make_prompt(2)
    empty = dataclasses.replace(
        prompt,
        prompt_data_dict={},
        n_active=[0] * 12,
        scores={name: [[] for _ in range(12)] for name in prompt.scores},
    )
    check_page(empty.get_html())
    check_page(dataclasses.replace(empty, scores={}).get_html())


def test_positions_with_a_bar_in_their_token_are_kept():
    """A key such as "act_size|5" would lose or break a token that holds the separator."""
    prompt = make_prompt(5)
    prompt.vocab = dict.fromkeys(prompt.vocab, "a|b")
    rankings = data(prompt.get_html(), "rankings")
    assert [len(positions) for positions in rankings["scores"].values()] == [12, 12, 12]


def test_defaults_and_choices(prompt):
    rankings = data(prompt.get_html(), "rankings")
    assert (rankings["metric"], rankings["position"]) == ("act_quantile", 11)
    with pytest.raises(
        InputError, match=r"no score 'best' in this data\. There is: act_size, act_quantile, loss_effect"
    ):
        prompt.get_html(score_name="best")
    for wrong in (-1, 12, "3", True, 1.0):
        with pytest.raises(InputError, match=r"0 to 11, got .* 0 '<\|endoftext\|>', 1 "):
            prompt.get_html(seq_pos=wrong)


@pytest.mark.parametrize(
    "url",
    [
        "f.html#feature={feature}",
        "https://x.org/{feature}?a=1&b=2",
        "../{feature}.html",
        "?f={feature}",
        "#f={feature}",
    ],
)
def test_feature_url(prompt, url):
    tree = check_page(prompt.get_html(feature_url=url))
    for article in tree.iter("article"):
        link = article.find(".//h2/a")
        assert link.get("href") == url.replace("{feature}", article.get("data-feature"))
        assert link.get("rel") == "noopener"


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert({feature})",
        "JaVaScRiPt:{feature}",
        " javascript:{feature}",
        "java\tscript:{feature}",
        "\x01javascript:{feature}",
        "data:text/html,{feature}",
        "vbscript:{feature}",
        "file:///{feature}",
        "java_script:{feature}",
        "http://[{feature}",
        "features.html",
    ],
)
def test_a_url_that_could_run_or_lacks_the_feature_is_refused(prompt, url):
    with pytest.raises(InputError, match="feature_url"):
        prompt.get_html(feature_url=url)


def test_prompt_repr(prompt):
    assert repr(prompt) == "MultiPromptData(12 tokens, 20 features of blocks.0.mlp.hook_post of gelu-1l-code)"


# --- size and speed ----------------------------------------------------------------------------------------------


def test_a_packed_feature_stays_small():
    features = make_features(12, dead=())
    sizes = [len(_page.pack(feature.get_html(features._context()))) for feature in features.feature_data_dict.values()]
    assert (
        sum(sizes) / len(sizes) <= 20_000 * 1.1
    )  # the synthetic tokens and effects are random; real ones repeat, and take a quarter less


def test_a_prompt_column_stays_small():
    prompt = make_prompt(60, 16)
    assert len(prompt.get_html().encode()) / len(prompt.prompt_data_dict) <= 10_000


def test_a_compared_column_stays_small():
    """Of a real model's features it takes less: their tokens and effects repeat."""
    two = make_comparison(60)
    assert len(two.heat_map["act_size"]) == 50
    assert len(two.get_html().encode()) / len(two.compared_dict) <= 11_000


def test_a_page_of_twenty_thousand_features_has_no_list_of_them():
    features = make_features(1, **SMALL)
    feature = features.feature_data_dict[0]
    many = {index: dataclasses.replace(feature, feature_idx=index) for index in range(300)}
    document = dataclasses.replace(features, feature_data_dict=many).get_html()
    assert not list(parse(document).iter("option"))


@pytest.mark.timed
def test_rendering_is_fast_enough():
    features = make_features(20, dead=())
    best = min(_seconds_per_feature(features) for _ in range(3))
    assert best < 0.05, f"{1 / best:.0f} features/s; 150 are expected on an idle core"


def _seconds_per_feature(features):
    page = features._context()
    start = time.process_time()
    for feature in features.feature_data_dict.values():
        _page.pack(feature.get_html(page))
    return (time.process_time() - start) / len(features)


def test_provenance_is_optional_for_a_page():
    assert PageContext().loss_how("direct") == "direct effect"
    assert isinstance(make_provenance(), Provenance)
    assert FeatureVisParams().feature_layout()


def test_every_component_has_its_template():
    for spec in COMPONENTS.values():
        assert _templates.template(spec.template).names


def test_a_notebook_shows_fifty_features_of_a_large_vocabulary():
    features = make_features(2, dead=(), first_group_size=1, n_groups=1, other_groups_size=1)
    many = {i: dataclasses.replace(features[i % 2], feature_idx=i) for i in range(60)}
    large = features.vocab | {i: f"a token of a large vocabulary {i}" for i in range(10_000, 60_000)}
    frame = dataclasses.replace(features, feature_data_dict=many, vocab=large)._repr_html_()
    assert len(frame) < _page.NOTEBOOK_BYTES * 1.5
    assert "Showing 50 of 60 features" in frame
