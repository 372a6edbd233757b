"""Whole runs at the edges of what can come: the numbers against plain loops, and every page drawn, saved and read back."""

from __future__ import annotations

import dataclasses
import decimal
import math
from collections import UserDict
from itertools import pairwise
from xml.etree.ElementTree import Element

import brute_force
import hf_models
import numpy as np
import oracles
import pytest
import torch
from drawing import check_drawn, check_features, check_lines, has_class, numbers
from models import HOOK_POINT, ToyModel, fetch, identity_encoder, planted, random_tokens
from page_reading import parse, text_of

from sae_vis import MultiFeatureData, _assemble, get_prompt_data
from sae_vis._ablation import FormulaTail
from sae_vis._activations import encode
from sae_vis._errors import InputError, ModelError
from sae_vis._run import prompt_ids
from sae_vis._statistics import histogram
from sae_vis.model_fns import MIN_PRODUCT_ROWS, LanguageModel, steady_product

FLOAT32_MAX = float(torch.finfo(torch.float32).max)
FLOAT32_MIN = 2.0**-149  # the smallest subnormal


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def one_active(value: float) -> torch.Tensor:
    acts = torch.zeros(5, 7, 1)
    acts[3, 4] = value
    return acts


def two_active(large: float, small: float) -> torch.Tensor:
    acts = one_active(large)
    acts[1, 0] = small
    return acts


EDGES = {
    "never active": torch.zeros(5, 7, 1),
    "active everywhere": rand(5, 7, 1) + 0.5,
    "active once": one_active(1.5),
    "one value everywhere": torch.full((5, 7, 1), 2.0),
    "one value where active": torch.full((5, 7, 1), 2500.7) * (rand(5, 7, 1) < 0.5),
    "equal but for the last bit": torch.full((5, 7, 1), 1.0) + 2.0**-23 * (rand(5, 7, 1) < 0.5),
    "one counted token": torch.full((1, 1, 1), 0.3),
    "so small beside the largest that it rounds": two_active(1.0, 1e-8),
    "subnormal": two_active(1e-42, FLOAT32_MIN),
    "the smallest number": one_active(FLOAT32_MIN),
    "1e30": two_active(1e30, 3e29),
    "1e30 once": one_active(1e30),
    "1e7 once": one_active(1e7),
    "1e-30": two_active(1e-30, 4e-31),
    "1e30 and 1e-30": two_active(1e30, 1e-30),
    "the largest number": two_active(FLOAT32_MAX, 1.0),
    "the largest number once": one_active(FLOAT32_MAX),
    "millions": rand(5, 7, 1) * 3e6,
    "millionths": rand(5, 7, 1) * 3e-6,
}


def close(found: float | None, expected: float | None, tolerance: float = 1e-9) -> bool:
    if found is None or expected is None:
        return found is expected
    return math.isclose(found, expected, rel_tol=tolerance, abs_tol=1e-12 * abs(expected))


def check_numbers(data: MultiFeatureData, acts: torch.Tensor) -> None:
    """The only feature of the data, against the oracles."""
    n_counted, feature = acts.shape[0] * acts.shape[1], data[0]
    active = oracles.active(acts[..., 0].double().tolist())
    values = list(active.values())
    found = feature.activations
    assert (found.n_active, found.density) == (len(values), len(values) / n_counted)
    assert sum(found.histogram.bar_heights) == len(values)
    raw = sorted((v for v in acts.double().flatten().tolist() if v > 0), reverse=True)
    assert feature.quantiles.values[:32] == raw[:32]
    if not values:
        assert (found.max, found.mean, found.kurtosis, feature.sequences.groups) == (None, None, None, [])
        return
    assert found.max == max(values)
    expected = oracles.moments([*values, *[0.0] * (n_counted - len(values))])
    assert close(found.mean, expected.mean)
    assert close(found.variance, expected.variance)
    assert close(found.skewness, expected.skewness)
    assert close(found.kurtosis, expected.kurtosis)
    edges = found.histogram.bar_edges
    assert all(a < b for a, b in pairwise(edges))
    assert edges[0] <= min(values) <= max(values) <= edges[-1]
    fvp = data.params
    intervals = oracles.interval_groups(active, fvp.n_groups, 5, fvp.seed, 0, fvp.buffer, acts.shape[1])
    top, *groups = feature.sequences.groups
    assert [g.share for g in groups] == [len(i.members) / n_counted for i in intervals]
    assert math.isclose(sum(g.share for g in groups), found.density, rel_tol=1e-12)
    for group, places in zip(
        [top, *groups],
        [oracles.top_group(active, 20, fvp.buffer, acts.shape[1]), *(i.examples for i in intervals)],
        strict=True,
    ):
        assert [(s.row, s.start + s.bold_idx) for s in group.sequences] == places
        assert all(s.feat_acts[s.bold_idx] == active[place] for s, place in zip(group.sequences, places, strict=True))


@pytest.mark.parametrize("ablation", [None, "direct"])
@pytest.mark.parametrize("name", EDGES)
def test_a_feature_at_the_edge_has_its_numbers_and_a_page(name, ablation, tmp_path):
    if ablation and name.startswith("the largest number"):  # its product with the unembedding is none
        with pytest.raises(ModelError, match=r"row 3, position 4 .*ablation=None"):
            fetch(*planted(EDGES[name]), ablation=ablation)
        return
    data = fetch(*planted(EDGES[name]), ablation=ablation)
    check_numbers(data, EDGES[name])
    article = check_features(data, tmp_path)[0]
    assert ("never fires on" in text_of(article)) == (name == "never active")
    assert ("active nowhere" in text_of(article)) == (name == "never active")


def test_features_at_every_edge_share_a_page(tmp_path):
    acts = torch.cat([a for a in EDGES.values() if a.shape == (5, 7, 1)], -1)
    data = fetch(*planted(acts), rows_in_left_tables=5, ablation=None)
    check_features(data, tmp_path)
    columns = dict(enumerate(acts.double().flatten(0, 1).T.tolist()))
    for feature, table in ((f, data[f].feature_tables.correlated_features) for f in data):
        expected = oracles.most_correlated(columns[feature], columns, 5, feature)
        assert table.indices == [index for index, _, _ in expected]
        assert table.pearson == pytest.approx([r for _, r, _ in expected], abs=2e-6)
        assert table.cosine == pytest.approx([c for _, _, c in expected], abs=2e-6)


@pytest.mark.parametrize(("value", "width"), [(2.5, 1.0), (999_999.0, 1.0), (1e7, 1e4), (1e30, 1e27), (-1e9, 1e6)])
def test_values_that_are_all_equal_have_a_bar_that_can_be_drawn(value, width):
    (low, high), heights = histogram(np.array([value] * 3), 40)
    assert low < value < high
    assert (high - low, heights) == (pytest.approx(width), [3])


@pytest.mark.parametrize(("low", "high", "n_bins"), [(0, 40, 40), (3, 11, 4), (-8, 8, 16), (0, 1024, 1)])
def test_a_value_on_an_edge_belongs_to_the_bar_above_it_and_the_last_edge_to_the_last_bar(low, high, n_bins):
    values = np.arange(low, high + 1, dtype=np.float64)
    edges, heights = histogram(values, n_bins)
    each = (high - low) // n_bins
    assert edges == [low + each * i for i in range(n_bins + 1)]
    assert heights == [each] * (n_bins - 1) + [each + 1]


def test_a_share_of_one_token_in_trillions_is_not_written_as_none(tmp_path):
    data = fetch(*planted(one_active(1.0)), ablation=None)
    data.feature_data_dict[0].activations.density = 1 / 10**12
    assert numbers(next(check_drawn(data, tmp_path)[0].iter("dd")).text)[0] == 1e-10


# --- shapes and options --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 8)], ids=str)
@pytest.mark.parametrize("d_hidden", [1, 3])
def test_rows_and_dictionaries_of_any_size(shape, d_hidden, tmp_path):
    acts = rand(*shape, d_hidden, seed=4)
    encoder, model, tokens = planted(acts)
    model.cfg.n_ctx = shape[1]  # the rows fill the context
    data = fetch(encoder, model, tokens)
    check_features(data, tmp_path)
    for feature in data:
        for sequence in (s for group in data[feature].sequences.groups for s in group.sequences):
            assert (sequence.loss_contribution[0] is None) == (sequence.start == 0)
    prompt = get_prompt_data(encoder, model, tokens[-1], data)
    check_drawn(prompt, tmp_path)
    assert prompt.scores["loss_effect"][0] == []
    assert prompt.n_active == [d_hidden] * shape[1]


@pytest.mark.parametrize(
    "params",
    [
        {"n_bins": 1},
        {"n_bins": 10_000},
        {"n_groups": 0},
        {"n_groups": 1000, "other_groups_size": 1},
        {"first_group_size": 0},
        {"other_groups_size": 0},
        {"first_group_size": 0, "n_groups": 0},
        {"first_group_size": 0, "other_groups_size": 0},
        {"n_logits": 10_000, "rows_in_left_tables": 1000},
        {"buffer": (100, 100)},
        {"buffer": (0, 0)},
        {"n_changes": 0},
        {"n_changes": 1000},
        {"store_rows": False, "include_left_tables": False},
    ],
    ids=str,
)
def test_options_at_their_ends(params, tmp_path):
    acts = rand(3, 6, 2) * (rand(3, 6, 2, seed=1) < 0.6)
    encoder, model, tokens = planted(acts)
    data = fetch(encoder, model, tokens, **params)
    articles = check_features(data, tmp_path)
    prompt = get_prompt_data(encoder, model, tokens[1], data)
    check_drawn(prompt, tmp_path, score_name="loss_effect")
    fvp, feature = data.params, data[0]
    groups = feature.sequences.groups
    assert len(groups) == fvp.n_groups + bool(fvp.first_group_size)
    assert len(feature.logits.top_logits) == len(feature.logits.bottom_logits) == min(fvp.n_logits, model.W_U.shape[1])
    assert len(feature.logits.histogram.bar_heights) == fvp.n_bins
    assert len(feature.activations.histogram.bar_heights) == fvp.n_bins
    if fvp.include_left_tables:
        assert len(feature.feature_tables.correlated_features.indices) == 1
        assert len(feature.feature_tables.neuron_alignment.indices) == min(fvp.rows_in_left_tables, 2)
    text = text_of(articles[0])
    assert "active nowhere" not in text, "it is active, whatever is shown of it"
    assert ("No examples were asked for" in text) == (not groups)
    assert ("No example shown" in text) == (not fvp.other_groups_size and fvp.n_groups > 0)
    effects = [e for group in groups for s in group.sequences for e in s.effects]
    assert all(len(e.raised_token_ids) <= fvp.n_changes for e in effects)
    assert bool(effects) == bool(fvp.n_changes and any(group.sequences for group in groups))


@pytest.mark.parametrize("norm", ["LN", "RMS"])
def test_a_hook_point_of_width_one(norm, tmp_path):
    model = hf_models.native(norm, d_mlp=1)
    encoder = identity_encoder(1)
    with torch.no_grad():
        encoder.b_enc.fill_(0.2)
    data = fetch(encoder, model, random_tokens(4, 6, hf_models.D_VOCAB, lowest=3), hook_point="blocks.1.mlp.hook_post")
    check_features(data, tmp_path)
    assert data[0].feature_tables.neuron_alignment.indices == [0]
    assert data[0].feature_tables.correlated_neurons.pearson == [1.0]


def test_a_vocabulary_of_two(tmp_path):
    model = hf_models.native("LN", d_vocab=2)
    encoder = brute_force.random_encoder(24, 3)
    tokens = random_tokens(5, 6, 2)
    hook_point = "blocks.1.mlp.hook_post"
    data = fetch(encoder, model, tokens, hook_point=hook_point, buffer=None)
    check_features(data, tmp_path)
    check_drawn(get_prompt_data(encoder, model, [0, 1, 1, 0], data), tmp_path, score_name="loss_effect")
    final = brute_force.hook_values(model, tokens, "blocks.1.hook_resid_post")
    acts = brute_force.activations(encoder, brute_force.hook_values(model, tokens, hook_point))
    checked = 0
    for index, feature in data.items():
        logits = feature.logits
        assert sorted(logits.top_token_ids) == sorted(logits.bottom_token_ids) == [0, 1]
        assert logits.top_logits[0] == -logits.top_logits[1], "centred"
        d = brute_force.direction(model, encoder, hook_point, index)
        for sequence in (s for group in feature.sequences.groups[:1] for s in group.sequences):
            for at in range(1, 6):
                before = final[sequence.row, at - 1]
                change = brute_force.change_of_log_probs(model, before, float(acts[sequence.row, at - 1, index]), d)
                expected = -float(change[sequence.token_ids[at]])
                assert sequence.loss_contribution[at] == pytest.approx(expected, abs=1e-4)
                checked += 1
    assert checked > 30


@pytest.mark.parametrize("d_hidden", [1, 2, 5, 15])
@pytest.mark.parametrize("shape", [(1, 1), (1, 31), (3, 7), (40, 1), (33, 30)], ids=str)
def test_an_activation_of_a_small_dictionary_has_the_same_bits_in_every_batch(d_hidden, shape):
    x = torch.randn(64, 31, 48, generator=torch.Generator().manual_seed(0))
    encoder = brute_force.random_encoder(48, d_hidden)
    rows, seq = shape
    with torch.no_grad():
        everything = encode(encoder, x, None)[:rows, :seq]
        assert torch.equal(encode(encoder, x[:rows, :seq].contiguous(), None), everything)
        one = encode(encoder, x[:rows, :seq].contiguous(), torch.tensor([d_hidden - 1]))
        assert torch.equal(one, everything[..., -1:])


@pytest.mark.parametrize("n", [1, 2, 15, 33])
def test_a_product_with_few_columns_has_the_same_bits_for_any_number_of_rows(n):
    generator = torch.Generator().manual_seed(0)
    for width in (1, 2, 5):
        a, b = torch.randn(200, 48, generator=generator), torch.randn(48, width, generator=generator)
        whole = steady_product(a, b)
        torch.testing.assert_close(whole, a @ b)
        for rows in (n, 50, 100):
            assert torch.equal(steady_product(a[:rows].contiguous(), b), whole[:rows])


# --- tokens and prompts that are none ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "told"),
    [
        *(
            (texts, r"got texts: tokenise .*to_tokens.*on the right")
            for texts in ("hello", b"hi", ["hello"], [["a", "b"]])
        ),
        (UserDict(input_ids=[[1, 2]]), r"got a UserDict: pass tokens\['input_ids'\]"),
        ({"input_ids": torch.tensor([[1, 2]])}, r"got a dict: pass tokens\['input_ids'\]"),
        ([[1, 2], [3]], "rows have different lengths: pad them on the right with the tokenizer's padding id"),
        ([np.arange(2), np.arange(3)], "rows have different lengths"),
        ([torch.arange(2), torch.arange(3)], "rows have different lengths"),
        ([[1], ["a"]], "does not form an array"),
        ({"ids": [[1]]}, "got dict, which does not form an array"),
        ([1, 2], r"For one row, use tokens\[None\]"),
        ([], "got torch.float32"),
        ([[]], "got torch.float32"),
    ],
    ids=str,
)
def test_what_is_no_tokens_is_told_with_the_way_out(tokens, told):
    encoder, model, _ = planted(rand(3, 5, 2))
    with pytest.raises(InputError, match=rf"^tokens must be integers of shape \[rows, seq\], .*{told}"):
        fetch(encoder, model, tokens)


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        (["hello", "you"], "must be one text or its token ids, got a list of 2: give one of them"),
        (b"hi", "must be one text or its token ids, got bytes: decode them"),
        (UserDict(input_ids=[1, 2]), r"got a UserDict: pass (other_)?prompt\['input_ids'\]"),
        ([[1, 2], [3]], "must be one text or its token ids, got a list of 2: give one of them"),
        ([[1, 2], [3, 4]], r"must be one sequence of token ids, got shape \(2, 2\)"),
        ([0.5, 1.0], r"got numbers of torch\.float32"),
        (torch.tensor([True]), r"got numbers of torch\.bool"),
        ([], "is empty"),
        ([0] * 9, "has 9 tokens, the model's context holds 5"),
        (5, r"got shape \(\)"),
    ],
    ids=str,
)
def test_what_is_no_prompt_is_told_as_such(prompt, told):
    encoder, model, tokens = planted(rand(3, 5, 2))
    data = fetch(encoder, model, tokens)
    wrapped = LanguageModel(model)
    for name in ("prompt", "other_prompt"):
        with pytest.raises(InputError, match=rf"^{name} (must .*)?{told}") as error:
            prompt_ids(prompt, wrapped, data.provenance, None, name)
        assert "rows, seq" not in str(error.value)
    with pytest.raises(InputError, match=rf"^prompt (must .*)?{told}"):
        get_prompt_data(encoder, model, prompt, data)


def test_an_id_of_a_prompt_that_the_model_has_not_is_told_with_its_place():
    encoder, model, tokens = planted(rand(3, 5, 2))
    data = fetch(encoder, model, tokens)
    for prompt in ([1, 2, 99], torch.tensor([[1, 2, 99]]), [1, 2, -1]):
        with pytest.raises(InputError, match=r"Token id (99|-1) at position 2 of prompt is outside .*\(0 to 14\)"):
            get_prompt_data(encoder, model, prompt, data)


# --- number formats --------------------------------------------------------------------------------------------------


def half(acts: torch.Tensor, model_type: torch.dtype, encoder_type: torch.dtype) -> tuple:
    encoder, model, tokens = planted(acts)
    return encoder.to(encoder_type), model.to(model_type), tokens


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_and_encoders_have_pages(dtype, tmp_path):
    acts = (rand(4, 6, 3) * 16).round() / 16
    expected = fetch(*planted(acts))
    data = fetch(*half(acts, dtype, dtype))
    check_features(data, tmp_path)
    for feature in data:
        assert data[feature].activations == expected[feature].activations, "these numbers are exact in any format"
        assert data[feature].quantiles == expected[feature].quantiles


def test_a_float16_model_that_nearly_overflows_works(tmp_path):
    acts = torch.zeros(3, 5, 2)
    acts[1, 2, 0], acts[2, 4, 0], acts[0, 1, 1] = 60_000.0, 65_504.0, 1.0
    data = fetch(*half(acts, torch.float16, torch.float16))
    check_features(data, tmp_path)
    assert data[0].activations.max == 65_500.0
    assert data[0].quantiles.values == [65_504.0, 60_000.0]


def test_a_float16_model_that_overflows_is_told_with_row_and_position():
    acts = torch.zeros(3, 5, 2)
    acts[2, 3, 1] = 70_000.0  # infinity in float16
    with pytest.raises(ModelError, match=r"'blocks\.0\.hook_resid_pre'.*row 2, position 3.*float16"):
        fetch(*half(acts, torch.float16, torch.float32))


def test_a_float16_encoder_that_overflows_is_told_with_row_and_position():
    acts = torch.zeros(3, 5, 2)
    acts[1, 4, 0] = 500.0
    encoder, model, tokens = planted(acts)
    with torch.no_grad():
        encoder.W_enc *= 200
    assert fetch(encoder, model, tokens)[0].activations.max == 100_000.0
    with pytest.raises(ModelError, match=r"encoder's activations.*row 1, position 4.*float16"):
        fetch(encoder.half(), model, tokens)


class GrowingModel(ToyModel):
    """The block doubles the residual stream, and in float16 a row that the hook point shows as finite may overflow."""

    def run_with_hooks(self, tokens, fwd_hooks=(), return_type=None):
        x = self.table[tokens]
        for factor, name in zip((1, 2), self.hook_dict, strict=True):
            x = x * factor
            for wanted, run in fwd_hooks:
                if wanted == name:
                    run(x, hook=None)
        return self.unembed(self.ln_final(x))


def test_a_residual_stream_that_overflows_behind_the_hook_point_is_told_with_row_and_position(tmp_path):
    acts = torch.zeros(4, 5, 2)
    acts[:3, 1:3, 0], acts[3, 2, 0] = 1.0, 40_000.0
    encoder, model, tokens = planted(acts)
    growing = GrowingModel(model.table.detach()).half()
    with pytest.raises(ModelError, match=r"row 3, position 2 .*ablation=None"):
        fetch(encoder, growing, tokens)
    assert fetch(encoder, growing, tokens, ablation=None)[0].activations.max == 40_000.0
    check_features(fetch(encoder, growing.float(), tokens), tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("ablation", [None, "direct"])
def test_a_decoder_that_is_not_finite_is_told_with_its_feature(value, ablation):
    encoder, model, tokens = planted(rand(3, 5, 4))
    with torch.no_grad():
        encoder.W_dec[2, 1] = value
    with pytest.raises(ModelError, match=r"decoder weights of feature 2 hold NaN or infinity.*W_dec"):
        fetch(encoder, model, tokens, ablation=ablation)
    assert list(fetch(encoder, model, tokens, ablation=ablation, features=(0, 1, 3))) == [0, 1, 3]


def test_logit_weights_that_overflow_are_told_with_their_feature():
    encoder, model, tokens = planted(rand(3, 5, 4))
    with torch.no_grad():
        encoder.W_dec[3] = FLOAT32_MAX
    with pytest.raises(ModelError, match=r"logit weights of feature 3 hold NaN or infinity"):
        fetch(encoder, model, tokens)


def test_no_more_logit_weights_are_there_at_once_to_tell_the_feature_than_to_show_them(monkeypatch):
    n = 2 * MIN_PRODUCT_ROWS
    encoder, model, tokens = planted(rand(3, 5, n))
    with torch.no_grad():
        encoder.W_dec[n - 1] = FLOAT32_MAX
    sizes: list[int] = []
    own = FormulaTail.logit_weights

    def noted(self, some=slice(None)):
        weights = own(self, some)
        sizes.append(len(weights))
        return weights

    monkeypatch.setattr(FormulaTail, "logit_weights", noted)
    monkeypatch.setattr(_assemble, "LOGITS_BYTES", 1)
    with pytest.raises(ModelError, match=rf"logit weights of feature {n - 1} hold NaN or infinity"):
        fetch(encoder, model, tokens)
    assert sizes == [MIN_PRODUCT_ROWS] * 2


@pytest.mark.parametrize("size", [1e-38, 1e-6, 1e6, 1e30])
def test_decoder_rows_of_any_size_have_readable_logits(size, tmp_path):
    encoder, model, tokens = planted(rand(3, 5, 4))
    with torch.no_grad():
        encoder.W_dec *= size
    article = check_features(fetch(encoder, model, tokens, features=(1,)), tmp_path)[1]
    weights = (model.ln_final.weight.detach() * (torch.eye(4)[1] - 0.25)).double() * size @ model.W_U.detach().double()
    largest = float((weights - weights.mean()).max())
    (table,) = (e for e in article.iter("table") if text_of(e.find("caption")) == "Positive logits")
    assert numbers(text_of(table.find(".//tr/td[2]")))[0] == pytest.approx(largest, rel=6e-3)


# --- prompts ---------------------------------------------------------------------------------------------------------


def prompted(acts: torch.Tensor, prompt: torch.Tensor, **params):
    """Feature data of activations on a corpus, and the data of a prompt with others."""
    rows = len(acts)
    both = torch.cat([acts, torch.nn.functional.pad(prompt[None], (0, 0, 0, acts.shape[1] - len(prompt)))])
    encoder, model, tokens = planted(both)
    data = fetch(encoder, model, tokens[:rows], **params)
    return data, get_prompt_data(encoder, model, tokens[rows, : len(prompt)], data)


@pytest.mark.parametrize("score_name", ["act_size", "act_quantile", "loss_effect"])
def test_a_prompt_of_one_token_has_a_page(score_name, tmp_path):
    _, prompt = prompted(rand(3, 6, 2), torch.tensor([[0.5, 0.25]]))
    articles = check_drawn(prompt, tmp_path, score_name=score_name)
    assert prompt.n_active == [2]
    assert [f for f, _ in prompt.scores["act_size"][0]] == [0, 1]
    assert prompt.scores["loss_effect"] == [[]]
    assert len(articles) == 2, "at position 0 there is no loss effect to rank by, but the columns are there to turn to"


def test_a_prompt_of_nothing_but_ignored_tokens_says_that_nothing_is_active(tmp_path):
    acts = rand(3, 6, 2)
    encoder, model, tokens = planted(acts)
    data = fetch(encoder, model, tokens, ignore_tokens=(0, 1, 2))
    prompt = get_prompt_data(encoder, model, [0, 1, 2, 0], data)
    assert check_drawn(prompt, tmp_path) == {}
    assert (prompt.n_active, prompt.prompt_data_dict) == ([0] * 4, {})
    assert "none of those that were fetched is active" in prompt.get_html()


@pytest.mark.parametrize(
    ("corpus", "beyond"), [(1.0, 100.0), (1.0, 1.0001), (1e-10, 1e10), (1e-30, 1e30), (FLOAT32_MIN, FLOAT32_MAX)]
)
def test_a_prompt_may_exceed_the_maximum_of_the_corpus(corpus, beyond, tmp_path):
    acts = (rand(3, 6, 1) * corpus).clamp(min=corpus / 1000)
    acts[0, 0] = corpus
    prompt_acts = torch.tensor([corpus / 2, beyond, 0.0, beyond / 3 if beyond > 2 else corpus, corpus]).unsqueeze(1)
    data, prompt = prompted(acts, prompt_acts)
    article = check_drawn(prompt, tmp_path, seq_pos=1, score_name="act_size")[0]
    shown = prompt.prompt_data_dict[0].sequence
    maximum = float(prompt_acts[0:1].new_tensor(corpus))
    with decimal.localcontext(prec=200):
        expected = [oracles.rounded(raw, maximum) if raw else 0.0 for raw in prompt_acts[:, 0].double().tolist()]
    assert shown.feat_acts == pytest.approx(expected, rel=1e-12, abs=0.0)
    quantiles = [dict(ranking).get(0) for ranking in prompt.scores["act_quantile"]]
    assert quantiles[1] == 1.0
    assert quantiles[2] is None
    n_at_maximum = int((acts == acts.max()).sum())
    assert quantiles[4] == pytest.approx(1 - n_at_maximum / 18), "the maximum itself is on the corpus"
    line = next(e for e in article.iter("div") if has_class(e, "seq"))
    alone = Element("article")
    alone.append(line)
    check_lines(alone, [dataclasses.replace(shown, bold_idx=1)], maximum)
    assert "--a:1" in line[1].get("style").split(";")
    arrows = "→" in text_of(article)
    assert arrows == (beyond > corpus * 1.01), "beyond the axis"
    assert data[0].activations.max == pytest.approx(corpus, rel=1e-3)


def test_position_zero_has_no_loss_effect_and_position_one_has_that_of_the_first_token(tmp_path):
    acts = torch.zeros(4, 2)
    acts[0, 0] = acts[3, 1] = 0.5
    _, prompt = prompted(rand(3, 6, 2), acts)
    assert [[f for f, _ in ranking] for ranking in prompt.scores["loss_effect"]] == [[], [0], [], []]
    check_drawn(prompt, tmp_path, seq_pos=0, score_name="loss_effect")
    none = parse(prompt.get_html(seq_pos=0, score_name="loss_effect")).find(".//p[@class='none-ranked empty']")
    assert "token before" in text_of(none)
    loss = prompt.prompt_data_dict[0].sequence.loss_contribution
    assert loss[0] is None
    assert (loss[1], loss[2:]) == (prompt.scores["loss_effect"][1][0][1], [0.0, 0.0])


def test_a_bos_that_is_counted_or_ignored(tmp_path):
    """The BOS of every row is the same token, far hotter than the others."""
    model = hf_models.shared("gpt2")
    encoder = brute_force.random_encoder(16, 4)
    tokens = hf_models.some_tokens(6, 8)
    counts = {}
    for ignored in ((), None):
        data = fetch(encoder, model, tokens, ignore_tokens=ignored, hook_point=HOOK_POINT)
        check_features(data, tmp_path)
        prompt = get_prompt_data(encoder, model, [hf_models.BOS], data)
        assert prompt.prompt_token_ids == [hf_models.BOS]
        check_drawn(prompt, tmp_path)
        counts[ignored] = (data.provenance.n_counted, prompt.n_active[0] > 0)
    assert counts == {(): (48, True), None: (48 - 6 - 3, False)}
