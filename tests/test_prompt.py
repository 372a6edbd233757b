"""The prompt-centric view: each score against a plain answer, where tokens stand, and what a prompt may be."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
from brute_force import activations, change_of_log_probs, direction, hook_values, random_encoder, width_at
from hf_models import BOS, D_VOCAB, EOS, N_CTX, PAD, WORDS, build, native, shared, some_tokens

from sae_vis import (
    FeatureVisParams,
    MultiFeatureData,
    MultiPromptData,
    compare_prompts,
    get_feature_data,
    get_prompt_data,
)
from sae_vis._errors import InputError, ModelError
from sae_vis._prompt_panels import HeatRow
from sae_vis._prompt_scoring import act_quantile, rank_by_score
from sae_vis.model_fns import LanguageModel

HOOK_POINT = "blocks.1.mlp.hook_post"
PROMPT = [7, 21, 33, 7, 45, 12, 30]
TEXT = " ".join(WORDS[i] for i in PROMPT)
SMALL = {"verbose": False, "include_left_tables": False, "first_group_size": 3, "n_groups": 2, "other_groups_size": 1}


def options(**changed: Any) -> FeatureVisParams:
    return FeatureVisParams(**{"hook_point": HOOK_POINT, **SMALL, **changed})


def encoder_for(name: str, hook_point: str = HOOK_POINT, d_hidden: int = 8) -> Any:
    return random_encoder(width_at(shared(name), hook_point), d_hidden)


@functools.cache
def corpus(n_rows: int = 30, *, bos: bool = True) -> torch.Tensor:
    return some_tokens(n_rows, N_CTX, seed=4, bos=bos)


@functools.cache
def fetched(name: str = "gpt2", hook_point: str = HOOK_POINT, *, bos: bool = True, **changed: Any) -> MultiFeatureData:
    fvp = options(hook_point=hook_point, **changed)
    return get_feature_data(encoder_for(name, hook_point), shared(name), corpus(bos=bos), fvp)


def prompted(prompt: Any = PROMPT, name: str = "gpt2", features: Any = None, **changed: Any) -> MultiPromptData:
    features = fetched(name) if features is None else features
    return get_prompt_data(encoder_for(name, features.provenance.hook_point), shared(name), prompt, features, **changed)


def prompt_activations(prompt: list[int], name: str = "gpt2", hook_point: str = HOOK_POINT) -> torch.Tensor:
    x = hook_values(shared(name), torch.tensor([prompt]), hook_point)
    acts = activations(encoder_for(name, hook_point), x)[0]
    acts[torch.tensor([token in (BOS, PAD, EOS) for token in prompt])] = 0.0
    return acts


def rounding(feature: int, name: str = "gpt2") -> float:
    """Half the unit that activations of the feature are rounded to: four digits of its maximum; and float32."""
    return 0.5 * 10.0 ** (math.floor(math.log10(fetched(name)[feature].activations.max)) - 3) + 1e-5


def as_pairs(scores: list[list[tuple[int, float]]]) -> list[dict[int, float]]:
    return [dict(ranking) for ranking in scores]


# --- the scores -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "llama", "native-RMS", "neox"])
def test_act_size_ranks_the_active_features_by_activation(name):
    data = prompted(name=name, num_top_features=100)
    acts = prompt_activations([BOS, *PROMPT], name)
    for position, ranking in enumerate(data.scores["act_size"]):
        expected = {f: float(a) for f, a in enumerate(acts[position]) if a > 0}
        assert dict(ranking).keys() == expected.keys()
        for feature, size in ranking:
            assert size == pytest.approx(expected[feature], abs=rounding(feature, name))
        sizes = [score for _, score in ranking]
        assert sizes == sorted(sizes, reverse=True)
        assert data.n_active[position] == len(expected)


def test_act_quantile_is_the_share_of_smaller_activations_of_the_corpus():
    data = prompted(num_top_features=100)
    acts = prompt_activations([BOS, *PROMPT])
    tokens = corpus()
    counted = ~torch.isin(tokens, torch.tensor([BOS, PAD, EOS]))
    on_corpus = activations(encoder_for("gpt2"), hook_values(shared("gpt2"), tokens, HOOK_POINT))[counted]
    checked = 0
    for position, ranking in enumerate(data.scores["act_quantile"]):
        quantiles = [score for _, score in ranking]
        assert quantiles == sorted(quantiles, reverse=True)
        assert {f for f, _ in ranking} == {f for f, a in enumerate(acts[position]) if a > 0}
        for feature, quantile in ranking:
            tail = float((on_corpus[:, feature] >= acts[position, feature]).double().mean())
            assert 1 - quantile == pytest.approx(tail, rel=0.0302)
            checked += 1
    assert checked > 20


def test_loss_effect_ranks_the_features_active_one_token_earlier_most_helpful_first():
    data = prompted(num_top_features=100)
    ids = data.prompt_token_ids
    acts = prompt_activations(ids)
    model, encoder = shared("gpt2"), encoder_for("gpt2")
    final = hook_values(model, torch.tensor([ids]), "blocks.1.hook_resid_post")[0]
    assert data.scores["loss_effect"][0] == []
    for position in range(1, len(ids)):
        ranking = data.scores["loss_effect"][position]
        assert {f for f, _ in ranking} == {f for f, a in enumerate(acts[position - 1]) if a > 0}
        effects = [score for _, score in ranking]
        assert effects == sorted(effects)
        for feature, effect in ranking:
            d = direction(model, encoder, HOOK_POINT, feature)
            change = change_of_log_probs(model, final[position - 1], float(acts[position - 1, feature]), d)
            assert effect == pytest.approx(-float(change[ids[position]]), abs=2e-4)


def test_sizes_are_rounded_like_those_of_the_corpus_and_quantiles_are_of_the_activation_as_it_is():
    tokens = corpus()[:1]  # so few activations that every one of them is a knot
    features = get_feature_data(encoder_for("gpt2"), shared("gpt2"), tokens, options())
    data = prompted(tokens[0].tolist(), features=features, num_top_features=100)
    checked = 0
    for index, column in data.prompt_data_dict.items():
        n, n_active = features[index].quantiles.n, features[index].activations.n_active
        sizes, quantiles = (
            [dict(ranking).get(index) for ranking in data.scores[s]] for s in ("act_size", "act_quantile")
        )
        assert [size or 0.0 for size in sizes] == column.sequence.feat_acts
        found = sorted(quantile for quantile in quantiles if quantile is not None)
        assert found == pytest.approx([1 - rank / n for rank in range(n_active, 0, -1)], abs=1e-6)
        checked += n_active
    assert checked > 50


def test_the_negative_activations_of_a_signed_encoder_are_none_on_a_prompt_too():
    encoder = random_encoder(64, 8)
    with torch.no_grad():
        encoder.b_enc.zero_()

    class Signed:
        d_in, d_hidden = 64, 8

        def encode(self, x, features=None):
            return (x - encoder.b_dec) @ (encoder.W_enc if features is None else encoder.W_enc[:, features])

        def decoder_rows(self, features):
            return encoder.decoder_rows(features)

    data, expected = (
        get_prompt_data(one, shared("gpt2"), PROMPT, get_feature_data(one, shared("gpt2"), corpus(), options()))
        for one in (Signed(), encoder)
    )
    assert data.scores == expected.scores
    assert data.n_active == expected.n_active


@pytest.mark.parametrize("hook_point", ["blocks.0.hook_resid_pre", "blocks.0.attn.hook_z", "blocks.1.hook_mlp_out"])
def test_the_same_token_and_feature_has_the_same_effect_in_both_views(hook_point):
    features = get_feature_data(
        encoder_for("gpt2", hook_point),
        shared("gpt2"),
        corpus(),
        options(hook_point=hook_point, buffer=None, first_group_size=30),
    )
    checked = 0
    for row in (0, 3, 7):
        prompt = prompted(corpus()[row].tolist(), features=features, num_top_features=100)
        effects = as_pairs(prompt.scores["loss_effect"])
        for index, feature in features.items():
            for sequence in (s for group in feature.sequences.groups for s in group.sequences if s.row == row):
                column = prompt.prompt_data_dict.get(index)
                for position, loss in enumerate(sequence.loss_contribution):
                    if index in effects[position]:
                        assert effects[position][index] == pytest.approx(loss, abs=2e-5)
                        checked += 1
                    elif position:
                        assert loss == 0.0
                if column is not None:
                    assert column.sequence.token_ids == sequence.token_ids
                    assert column.sequence.feat_acts == pytest.approx(sequence.feat_acts, rel=1e-3)
                    ours = [e.at for e in column.sequence.effects]
                    assert ours == [e.at for e in sequence.effects]
    assert checked > 50


@pytest.mark.parametrize("size", [1, 3, 100])
def test_at_most_so_many_features_are_ranked_and_they_are_the_best(size):
    whole, some = (prompted(num_top_features=n) for n in (100, size))
    for score_name, rankings in some.scores.items():
        assert rankings == [ranking[:size] for ranking in whole.scores[score_name]]
    named = {f for rankings in some.scores.values() for ranking in rankings for f, _ in ranking}
    named |= {row.feature_idx for rows in some.heat_map.values() for row in rows}
    assert set(some.prompt_data_dict) == named
    assert some.n_active == whole.n_active


def test_only_the_fetched_features_are_ranked():
    some, whole = prompted(features=fetched(features=(1, 4))), prompted(num_top_features=100)
    ranked = {f for rankings in some.scores.values() for ranking in rankings for f, _ in ranking}
    assert ranked <= {1, 4}
    for position, n_active in enumerate(some.n_active):
        active = as_pairs(whole.scores["act_size"])[position]
        assert n_active == len({1, 4} & set(active))


def test_ties_go_to_the_lower_feature():
    active = [{5: 1.0, 2: 1.0, 3: 2.0}, {}]
    assert rank_by_score(active, lambda position, feature, a: a, 2, largest_first=True) == [[(3, 2.0), (2, 1.0)], []]
    assert rank_by_score(active, lambda position, feature, a: a, 9, largest_first=False) == [
        [(2, 1.0), (5, 1.0), (3, 2.0)],
        [],
    ]


def test_the_quantile_of_hand_made_knots():
    knots, ranks = [5.0, 3.0, 1.0], [1, 2, 3]
    assert act_quantile(6.0, knots, ranks, 10) == 1.0
    assert act_quantile(5.0, knots, ranks, 10) == pytest.approx(0.9)
    assert act_quantile(4.0, knots, ranks, 10) == pytest.approx(0.9)
    assert act_quantile(1.0, knots, ranks, 10) == pytest.approx(0.7)
    assert act_quantile(0.5, knots, ranks, 10) == pytest.approx(0.7)
    assert act_quantile(1.0, [], [], 10) == 1.0
    assert act_quantile(1.0, [], [], 0) == 0.0


# --- the columns ----------------------------------------------------------------------------------------------------


def test_a_column_shows_the_whole_prompt_with_the_features_activations():
    data = prompted(num_top_features=100)
    acts = prompt_activations(data.prompt_token_ids)
    for index, column in data.prompt_data_dict.items():
        assert column.feature_idx == index
        assert column.sequence.token_ids == data.prompt_token_ids
        assert column.sequence.feat_acts == pytest.approx(acts[:, index].tolist(), abs=rounding(index))
        assert column.activations == fetched()[index].activations
        assert column.top_group == fetched()[index].sequences.groups[0]
        assert column.logits.top_logits == fetched()[index].logits.top_logits


def test_every_token_of_the_prompt_has_its_logit_in_every_column():
    """For the mark on the logit histogram of the token that is pointed at."""
    everywhere = set(range(D_VOCAB))
    fresh = min(everywhere - set(corpus().flatten().tolist()), default=5)
    data = prompted([fresh, 9, EOS, 10], num_top_features=100)
    rare = get_feature_data(
        encoder_for("gpt2"), shared("gpt2"), corpus()[:1, :6], options(first_group_size=1, n_groups=0)
    )
    on_rare = prompted(features=rare, num_top_features=100)
    for prompt in (data, on_rare):
        assert prompt.prompt_data_dict
        for index, column in prompt.prompt_data_dict.items():
            assert set(column.logits.shown_logits) >= set(prompt.prompt_token_ids)
            theirs = fetched()[index].logits.shown_logits
            both = set(theirs) & set(column.logits.shown_logits)
            assert {t: theirs[t] for t in both} == pytest.approx({t: column.logits.shown_logits[t] for t in both})


def test_every_token_that_is_named_has_a_text():
    data = prompted(num_top_features=100)
    named = set(data.prompt_token_ids)
    for column in data.prompt_data_dict.values():
        named.update(column.logits.top_token_ids, column.logits.bottom_token_ids)
        for sequence in (column.sequence, *column.top_group.sequences):
            named.update(sequence.token_ids)
            for effect in sequence.effects:
                named.update(effect.raised_token_ids, effect.lowered_token_ids)
    assert set(data.vocab) >= named
    assert all(data.vocab[i] == WORDS[i] for i in named)


def test_without_a_top_group_no_interval_takes_its_place():
    prompt = prompted(features=fetched(first_group_size=0))
    assert prompt.prompt_data_dict
    for column in prompt.prompt_data_dict.values():
        assert (column.top_group.title, column.top_group.share) == ("TOP ACTIVATIONS", None)
        assert column.top_group.sequences == []
    assert "INTERVAL" not in prompt.get_html()


def test_the_features_object_is_not_touched():
    features = fetched()
    before = copy.deepcopy(dataclasses.asdict(features))
    prompted(features=features, num_top_features=2)
    prompted([3, 4, 5], features=features)
    assert dataclasses.asdict(features) == before


def test_labels_come_along():
    features = copy.deepcopy(fetched())
    for index, feature in features.items():
        feature.label = f"label {index}"
    for index, column in prompted(features=features).prompt_data_dict.items():
        assert column.label == f"label {index}"


# --- tokens and texts -------------------------------------------------------------------------------------------------


def test_a_text_and_its_ids_are_the_same_prompt():
    by_text, by_ids = prompted(TEXT), prompted(PROMPT)
    assert by_text == by_ids
    assert by_text.prompt_token_ids == [BOS, *PROMPT]


@pytest.mark.parametrize("make", [list, tuple, np.array, torch.tensor, lambda ids: torch.tensor(ids).int()[None]])
def test_ids_may_come_in_any_array(make):
    assert prompted(make(PROMPT)) == prompted(PROMPT)


@pytest.mark.parametrize("prepends", [True, False])
def test_a_tokenizer_that_prepends_bos_itself_shifts_nothing(prepends):
    model = build("gpt2", prepends_bos=prepends)
    encoder = encoder_for("gpt2")
    for bos in (True, False):
        features = get_feature_data(encoder, model, corpus(bos=bos), options())
        data = get_prompt_data(encoder, model, TEXT, features)
        assert data.prompt_token_ids == ([BOS, *PROMPT] if bos else PROMPT)
        acts = prompt_activations(data.prompt_token_ids)
        for index, column in data.prompt_data_dict.items():
            assert column.sequence.feat_acts == pytest.approx(acts[:, index].tolist(), abs=rounding(index))
        without = get_prompt_data(encoder, model, TEXT, features, prepend_bos=False)
        assert without.prompt_token_ids == PROMPT


@pytest.mark.parametrize(
    ("bos", "prepend_bos", "begins_with_bos"),
    [
        (True, None, True),
        (True, True, True),
        (True, False, False),
        (False, None, False),
        (False, True, True),
        (False, False, False),
    ],
)
def test_bos_is_put_in_front_when_the_corpus_has_it_or_when_it_is_asked_for(bos, prepend_bos, begins_with_bos):
    features = fetched(bos=bos)
    for prompt in (TEXT, PROMPT):
        ids = prompted(prompt, features=features, prepend_bos=prepend_bos).prompt_token_ids
        assert ids == ([BOS, *PROMPT] if begins_with_bos else PROMPT)


def test_bos_is_never_there_twice():
    assert prompted([BOS, *PROMPT]).prompt_token_ids == [BOS, *PROMPT]
    assert prompted("<bos> " + TEXT).prompt_token_ids == [BOS, *PROMPT]


def test_a_corpus_of_one_row_does_not_make_its_first_word_a_bos():
    features = get_feature_data(encoder_for("gpt2"), shared("gpt2"), corpus(bos=False)[:1], options())
    assert prompted(features=features).prompt_token_ids == PROMPT
    assert prompted(features=features, prepend_bos=True).prompt_token_ids == [BOS, *PROMPT]


def test_the_last_position_has_its_scores():
    data = prompted(num_top_features=100)
    assert len(data.n_active) == len(data.prompt_token_ids) == len(PROMPT) + 1
    for rankings in data.scores.values():
        assert len(rankings) == len(data.prompt_token_ids)
        assert rankings[-1]


def test_ignored_tokens_are_not_active_and_padding_has_no_loss():
    data = prompted([7, EOS, 9, PAD, 10], num_top_features=100)
    assert data.prompt_token_ids == [BOS, 7, EOS, 9, PAD, 10]
    assert [n == 0 for n in data.n_active] == [True, False, True, False, True, False]
    assert [bool(ranking) for ranking in data.scores["loss_effect"]] == [False, False, True, False, False, False]
    for column in data.prompt_data_dict.values():
        assert [loss is None for loss in column.sequence.loss_contribution] == [True, False, False, False, True, False]


def test_nothing_ignored_counts_bos_too():
    data = prompted(features=fetched(ignore_tokens=()), num_top_features=100)
    assert data.n_active[0] > 0
    assert data.scores["loss_effect"][1]


def test_a_model_without_a_tokenizer_takes_ids_and_refuses_texts():
    model, encoder = native(), random_encoder(24, 4)
    features = get_feature_data(encoder, model, corpus(bos=False), options())
    data = get_prompt_data(encoder, model, PROMPT, features)
    assert data.prompt_token_ids == PROMPT
    with pytest.raises(InputError, match=r"no tokenizer.*token ids"):
        get_prompt_data(encoder, model, TEXT, features)
    with pytest.raises(InputError, match="prepend_bos=True"):
        get_prompt_data(encoder, model, PROMPT, features, prepend_bos=True)


# --- where nothing is there to rank ---------------------------------------------------------------------------------


def never_firing(encoder: Any, features: list[int]) -> Any:
    encoder = copy.deepcopy(encoder)
    with torch.no_grad():
        encoder.b_enc[features] = -1e4
    return encoder


def test_a_prompt_where_nothing_is_active_is_empty_and_has_a_page():
    encoder = never_firing(encoder_for("gpt2"), list(range(8)))
    features = get_feature_data(encoder, shared("gpt2"), corpus(), options())
    data = get_prompt_data(encoder, shared("gpt2"), PROMPT, features)
    assert data.n_active == [0] * 8
    assert data.prompt_data_dict == {}
    assert all(ranking == [] for rankings in data.scores.values() for ranking in rankings)
    assert "<html" in str(data.get_html())


def test_dead_features_are_left_out_and_the_others_do_not_change():
    encoder = never_firing(encoder_for("gpt2"), [2, 5])
    features = get_feature_data(encoder, shared("gpt2"), corpus(), options())
    data = get_prompt_data(encoder, shared("gpt2"), PROMPT, features, num_top_features=100)
    whole = prompted(num_top_features=100)
    for score_name, rankings in data.scores.items():
        expected = [[pair for pair in ranking if pair[0] not in (2, 5)] for ranking in whole.scores[score_name]]
        assert rankings == expected


def test_a_feature_that_fires_only_on_the_prompt_is_above_the_whole_corpus():
    tokens = corpus()[:3, :6]
    encoder = random_encoder(16, 8, seed=2)
    hook_point = "blocks.0.hook_resid_pre"
    x = hook_values(shared("gpt2"), tokens, hook_point)
    on_corpus = activations(encoder, x)[:, 1:].amax((0, 1))
    with torch.no_grad():
        encoder.b_enc -= on_corpus + 1e-3  # no feature fires on the corpus, some do elsewhere
    features = get_feature_data(encoder, shared("gpt2"), tokens, options(hook_point=hook_point))
    assert all(feature.activations.n_active == 0 for feature in features.values())
    data = get_prompt_data(encoder, shared("gpt2"), list(range(4, 24)), features, num_top_features=100)
    assert data.prompt_data_dict
    assert {score for ranking in data.scores["act_quantile"] for _, score in ranking} == {1.0}
    assert all(column.top_group.sequences == [] for column in data.prompt_data_dict.values())
    assert "<html" in str(data.get_html())


def test_a_prompt_of_one_token():
    data = prompted([9], prepend_bos=False, num_top_features=100)
    assert data.prompt_token_ids == [9]
    assert data.scores["loss_effect"] == [[]]
    assert data.scores["act_size"][0]


@pytest.mark.parametrize(
    ("hook_point", "ablation"), [(HOOK_POINT, None), ("blocks.1.mlp.hook_pre", "direct"), ("hook_embed", "direct")]
)
def test_without_effects_there_is_no_loss_score(hook_point, ablation):
    data = prompted(features=fetched(hook_point=hook_point, ablation=ablation), num_top_features=100)
    assert not any(data.scores.get("loss_effect", []))
    assert any(data.scores["act_size"])
    for column in data.prompt_data_dict.values():
        assert set(column.sequence.loss_contribution) == {None}
        assert column.sequence.effects == []


# --- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["", [], torch.zeros(0, dtype=torch.int64), np.zeros((1, 0), dtype=np.int64)])
def test_an_empty_prompt_is_told(prompt):
    with pytest.raises(InputError, match="prompt is empty"):
        prompted(prompt)


def test_a_prompt_longer_than_the_context_is_told():
    assert prompted([5] * (N_CTX - 1)).prompt_token_ids == [BOS, *[5] * (N_CTX - 1)]
    with pytest.raises(InputError, match=rf"{N_CTX + 1} tokens.*context holds {N_CTX}"):
        prompted([5] * N_CTX)
    assert prompted([5] * N_CTX, prepend_bos=False).prompt_token_ids == [5] * N_CTX
    with pytest.raises(InputError, match="context"):
        prompted(" ".join(["w5"] * 100))


@pytest.mark.parametrize(
    "prompt", [5, None, 5.0, [1.5, 2.0], [[1, 2], [3, 4]], ["w5"], {"a": 1}, [True, False], [[1, 2], [3]]]
)
def test_what_is_no_prompt_is_told(prompt):
    with pytest.raises(InputError):
        prompted(prompt)


@pytest.mark.parametrize("wrong", [-1, D_VOCAB, 10**6])
def test_ids_outside_the_vocabulary_are_told(wrong):
    with pytest.raises(InputError, match=rf"{wrong}.*vocabulary"):
        prompted([5, wrong])


@pytest.mark.parametrize("size", [0, -1, 2.0, None, True, "3"])
def test_the_number_of_features_must_be_a_positive_int(size):
    with pytest.raises(InputError, match="num_top_features must be an int >= 1"):
        prompted(num_top_features=size)


def test_features_of_another_run_are_refused():
    features, model = fetched(), shared("gpt2")
    with pytest.raises(InputError, match=r"d_hidden 8.*has 9"):
        get_prompt_data(random_encoder(64, 9), model, PROMPT, features)
    with pytest.raises(InputError, match=r"hook_point 'blocks\.1\.mlp\.hook_post'.*'blocks\.0\.mlp\.hook_post'"):
        get_prompt_data(encoder_for("gpt2"), model, PROMPT, features, options(hook_point="blocks.0.mlp.hook_post"))
    with pytest.raises(InputError, match=r"d_in 64.*has 16"):
        get_prompt_data(random_encoder(16, 8), model, PROMPT, features)


def test_another_encoder_of_the_same_shape_is_refused():
    with pytest.raises(InputError, match="another encoder"):
        get_prompt_data(random_encoder(64, 8, seed=9), shared("gpt2"), PROMPT, fetched())


def test_a_model_of_other_weights_is_told_and_named():
    other = build("gpt2")
    with torch.no_grad():
        other.blocks[0].attn.o.original_component.weight.add_(0.01)
    features = fetched()
    with pytest.warns(UserWarning, match="a model of other weights") as told:
        prompt = get_prompt_data(encoder_for("gpt2"), other, PROMPT, features)
    assert told[0].filename == __file__, "it is the caller's line that is told"
    assert prompt.provenance.digests["model"] == LanguageModel(other).digest() != features.provenance.digests["model"]
    assert any("other weights" in note for note in prompt.provenance.notes)
    assert not features.provenance.notes
    with pytest.warns(UserWarning, match="a model of other weights"):
        both = compare_prompts(encoder_for("gpt2"), other, PROMPT, PROMPT[:3], features)
    assert both.provenance == prompt.provenance
    assert prompted().provenance == features.provenance


def test_activations_that_are_not_finite_are_told():
    encoder = encoder_for("gpt2")
    with torch.no_grad():
        encoder.b_enc[3] = float("nan")
    features = dataclasses.replace(
        fetched(), provenance=dataclasses.replace(fetched().provenance, digests={})
    )  # as from a file that does not tell its encoder
    with pytest.raises(ModelError, match="NaN"):
        get_prompt_data(encoder, shared("gpt2"), PROMPT, features)


# --- no traces ----------------------------------------------------------------------------------------------------------


def test_running_a_prompt_leaves_no_traces():
    model, encoder = build("gpt2").train(), encoder_for("gpt2")
    before = {name: (len(p.fwd_hooks), len(p._forward_hooks)) for name, p in model.hook_dict.items()}
    state = torch.get_rng_state()
    features = fetched()
    data = get_prompt_data(encoder, model, PROMPT, features)
    assert model.training
    assert torch.is_grad_enabled()
    assert torch.equal(state, torch.get_rng_state())
    assert {name: (len(p.fwd_hooks), len(p._forward_hooks)) for name, p in model.hook_dict.items()} == before
    assert data.scores == prompted().scores


def test_a_prompt_survives_saving_and_loading(tmp_path):
    data = prompted()
    data.save_json(tmp_path / "prompt.json")
    assert MultiPromptData.load_json(tmp_path / "prompt.json") == data
    fetched().save_json(tmp_path / "features.json")
    loaded = MultiFeatureData.load_json(tmp_path / "features.json")
    assert prompted(features=loaded) == data


def test_a_prompts_examples_keep_their_whole_rows():
    features = fetched()
    prompt = prompted()
    shown = {row for column in prompt.prompt_data_dict.values() for row in column.example_rows()[:10]}
    assert shown
    assert prompt.rows == {row: features.rows[row] for row in sorted(shown)}
    assert {token for row in prompt.rows.values() for token in row} <= prompt.vocab.keys()
    assert prompted(features=fetched(store_rows=False)).rows == {}


# --- features whose file holds less ------------------------------------------------------------------------------------


def test_texts_and_logit_weights_that_a_file_has_not_are_not_needed():
    """A file may be written by other hands: it loads and draws without them, so it has a prompt view too."""
    features = copy.deepcopy(fetched())
    features.vocab.clear()
    features.vocab_bytes.clear()
    for feature in features.values():
        feature.logits.shown_logits.clear()
    found, whole = prompted(features=features), prompted()
    assert found.scores == whole.scores
    assert {i: found.vocab[i] for i in PROMPT} == {i: whole.vocab[i] for i in PROMPT}
    assert found.get_html()
    both = compare_prompts(encoder_for("gpt2"), shared("gpt2"), PROMPT, [*PROMPT[:-1], 31], features)
    assert both.get_html()


def test_a_column_has_the_logit_weights_of_what_it_shows_alone():
    features, found = fetched(), prompted()
    dropped = 0
    for index, column in found.prompt_data_dict.items():
        shown = {token for sequence in column.top_group.sequences for token in sequence.token_ids}
        shown |= set(found.prompt_token_ids)
        assert set(column.logits.shown_logits) <= shown
        dropped += len(features[index].logits.shown_logits.keys() - shown)
    assert dropped > 0


def test_a_row_of_the_heat_map_needs_its_feature():
    found = prompted()
    with pytest.raises(InputError, match="heat_map names feature 99, which has no data"):
        dataclasses.replace(found, heat_map={"act_size": [HeatRow(99, [0], [1.0])]})
