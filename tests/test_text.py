"""The plain text of features and prompts: what it says, that nothing in it acts on a terminal, and where notebooks show it."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from IPython.core.formatters import DisplayFormatter
from rendering_fixtures import make_features, make_prompt
from test_hostile_tokens import HOSTILE, data_with_text
from xss_vectors import VECTORS

from sae_vis import _text
from sae_vis._errors import InputError
from sae_vis.utils_fns import format_percent

FEW = {"first_group_size": 3, "n_groups": 2, "other_groups_size": 2}


@pytest.fixture(scope="module")
def features():
    features = make_features(12, dead=(3,), **FEW)
    features.feature_data_dict[5].label = "import statements"
    return features


def test_a_feature_as_text_says_what_matters_most(features):
    feature = features[5]
    lines = feature.to_text(examples=2).splitlines()
    density = format_percent(feature.activations.density)
    assert lines[0] == f"Feature 5 · import statements · density {density} · max {feature.activations.max:.3g}"
    names = [line.split()[0] for line in lines[1:4]]
    assert names == ["fires", "promotes", "suppresses"]
    top = feature.sequences.groups[0].sequences
    vocab = features.vocab
    for sequence in top:
        assert vocab[sequence.token_ids[sequence.bold_idx]].strip() in lines[1]
    assert f"{feature.logits.top_logits[0]:+.2f}" in lines[2]
    assert f"{feature.logits.bottom_logits[0]:.2f}".replace("-", "\u2212") in lines[3]
    assert lines[4] == "  TOP ACTIVATIONS"
    assert len(lines) == 7
    for line, sequence in zip(lines[5:], top, strict=False):
        value, text = line.split(maxsplit=1)
        assert float(value) == pytest.approx(sequence.feat_acts[sequence.bold_idx], rel=0.01)
        (bold,) = re.findall("«(.*)»", text)
        assert bold.strip("·") == vocab[sequence.token_ids[sequence.bold_idx]].strip()


def test_a_feature_that_never_fires_is_text_too(features):
    text = features[3].to_text()
    assert text.splitlines()[0] == "Feature 3 · density 0 % · never fires"
    assert "promotes" in text
    assert "«" not in text


def test_many_features_are_some_and_a_count(features):
    text = features.to_text(at_most=3, examples=1)
    assert text.startswith(repr(features))
    assert re.findall(r"^Feature (\d+)", text, re.MULTILINE) == ["0", "1", "2"]
    assert text.endswith("… and 9 others: features[8].to_text() gives one.")
    assert "others" not in features.to_text(at_most=12)
    assert len(features.to_text()) < 8000


@pytest.mark.parametrize("wrong", [-1, "3", None, True, 1.5])
def test_how_much_is_told_is_a_number_from_0_on(features, wrong):
    prompt = make_prompt(3, 6, n_top=2)
    for told in (
        lambda: features.to_text(wrong),
        lambda: features.to_text(examples=wrong),
        lambda: next(iter(features.values())).to_text(wrong),
        lambda: prompt.to_text(at_most=wrong),
    ):
        with pytest.raises(InputError, match=r"(at_most|examples) must be an int >= 0"):
            told()
    assert "features" in features.to_text(0, 0)


def test_an_example_of_a_whole_row_is_cut_around_its_bold_token():
    features = make_features(2, dead=(), buffer=None, **FEW)
    sequence = max(
        features[0].sequences.groups[0].sequences, key=lambda s: min(s.bold_idx, len(s.token_ids) - s.bold_idx)
    )
    line = _text.example(sequence, _text.TokenTexts(features.vocab, features.vocab_bytes))
    assert line.startswith("… ")
    assert line.endswith(" …")
    assert line.count("«") == 1


def test_characters_in_pieces_are_joined():
    texts = _text.TokenTexts({1: "a", 2: "�", 3: "�"}, {2: "e29c", 3: "93"})
    assert texts.line([1, 2, 3, 1]) == ["a", "✓", "", "a"]
    assert texts.one(2) == "[E2 9C]"
    assert texts.one(9) == "[id 9]"


def test_a_prompt_as_text_ranks_features_at_each_token():
    prompt = make_prompt(20, first_group_size=4)
    feature, score = prompt.scores["act_size"][5][0]
    prompt.prompt_data_dict[feature].label = "a label"
    lines = prompt.to_text("act_size", at_most=2).splitlines()
    assert lines[0] == repr(prompt)
    assert "act_size" in lines[1]
    tokens = lines[2:]
    assert len(tokens) == len(prompt.prompt_token_ids)
    assert f"{feature} a label (activation {score:.4g}" in tokens[5]
    assert tokens[-2].endswith("–")  # none is active there
    with pytest.raises(InputError, match="no score 'x'"):
        prompt.to_text("x")


def test_nothing_in_a_text_acts_on_a_terminal():
    for hostile in [*HOSTILE.values(), *VECTORS, "\x1b[2J\x1b]0;title\x07", "a\rb", "\x9b31m", "\u202eabc", "\u2028"]:
        features, prompt = data_with_text(hostile)
        for feature in features.feature_data_dict.values():
            feature.label = hostile
            for group in feature.sequences.groups:
                group.title = hostile
        for text in (features.to_text(), prompt.to_text(), repr(features[next(iter(features))])):
            assert all(char.isprintable() for char in text.replace("\n", ""))
            text.encode()
        assert len(features.to_text(at_most=1).splitlines()) < 20


def test_a_notebook_shows_html_with_the_text_beside_it(features):
    shown = DisplayFormatter()
    for data in (features, make_prompt(5, first_group_size=2), features[5]):
        formats, _ = shown.format(data)
        assert formats["text/plain"] == data.to_text()
        assert formats["text/html"] == data._repr_html_()
        assert formats["text/html"].startswith("<iframe srcdoc=")
        assert len(repr(data)) < 200
        assert "\n" not in repr(data)


def test_text_needs_no_torch():
    code = "import sys; from sae_vis import _text, data_storing_fns; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
