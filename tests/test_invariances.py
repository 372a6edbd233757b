"""What must not depend on how the work is cut up, and what must not be changed by it."""

from __future__ import annotations

import dataclasses
import functools
import random
from itertools import pairwise

import hf_models
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import encoder_for, fetch, planted, random_tokens

from sae_vis import MultiFeatureData, _products, get_prompt_data
from sae_vis._activations import CollectPlan, collect
from sae_vis._assemble import activations_data
from sae_vis._correlations import CoMoments, co_moments, most_correlated
from sae_vis._statistics import FeatureActivations, interval_examples, quantile_knots, top_examples
from sae_vis._store import merge_stores
from sae_vis.data_storing_fns import FeatureData
from sae_vis.model_fns import LanguageModel

D_MLP, D_MODEL, N_FEATURES = 64, 32, 40
HOOK_POINTS = ("blocks.0.mlp.hook_post", "blocks.1.attn.hook_z", "blocks.1.hook_resid_pre")


@functools.cache
def model():
    return hf_models.native("LN", d_model=D_MODEL, d_mlp=D_MLP, n_heads=2, d_head=16)


@functools.cache
def encoders(hook_point: str):
    width = D_MLP if hook_point.endswith("hook_post") else D_MODEL
    return encoder_for(width, N_FEATURES, 0.3, size=0.5), encoder_for(width, 24, 0.3, seed=1, size=0.5)


def tokens() -> torch.Tensor:
    return random_tokens(13, 11, hf_models.D_VOCAB, lowest=2)


def fetched(hook_point: str, **params) -> MultiFeatureData:
    encoder, encoder_b = encoders(hook_point)
    options = {"hook_point": hook_point, "n_groups": 4, "first_group_size": 6, "other_groups_size": 2, "n_changes": 3}
    return fetch(encoder, model(), tokens(), encoder_b, **{**options, "ignore_tokens": (2, 3), **params})


@functools.cache
def reference(hook_point: str) -> MultiFeatureData:
    return fetched(hook_point)


def differing(a: object, b: object, path: str = "") -> list[str]:
    """Where two pieces of data differ; comparing them with ``==`` alone would print all of both."""
    if dataclasses.is_dataclass(a) and type(a) is type(b):
        names = [field.name for field in dataclasses.fields(a)]
        return [d for name in names for d in differing(getattr(a, name), getattr(b, name), f"{path}.{name}")]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differing(x, y, f"{path}[{i}]")]
    if isinstance(a, dict) and isinstance(b, dict) and list(a) == list(b):
        return [d for key in a for d in differing(a[key], b[key], f"{path}[{key}]")]
    return [] if a == b else [f"{path}: {a!r:.100} != {b!r:.100}"]


def without_feature_table(data: FeatureData) -> FeatureData:
    tables = dataclasses.replace(data.feature_tables, correlated_features=None)
    return dataclasses.replace(
        data, feature_tables=tables, neighbours=dataclasses.replace(data.neighbours, coactive=None)
    )


# --- how the work is cut up --------------------------------------------------------------------------------------


def check_equal(hook_point: str, **params) -> None:
    found, expected = fetched(hook_point, **params), reference(hook_point)
    asked = params.get("features")
    assert list(found) == (sorted(asked) if asked else list(range(N_FEATURES)))
    for feature in found:
        assert differing(found[feature], expected[feature]) == []
    if not asked:
        assert found.rows == expected.rows
        assert found.vocab == expected.vocab


@pytest.mark.parametrize("hook_point", HOOK_POINTS)
@settings(max_examples=5)
@given(
    rows=st.sampled_from([1, 2, 3, 5, 64]),
    memory_budget=st.sampled_from(["4GB", 60_000, 90_000]),
    cap=st.sampled_from([None, 11, 16]),
    asked=st.one_of(st.none(), st.sets(st.integers(0, N_FEATURES - 1), min_size=1, max_size=20).map(tuple)),
)
def test_feature_data_is_equal_however_the_work_is_cut_up(hook_point, rows, memory_budget, cap, asked):
    check_equal(
        hook_point,
        minibatch_size_tokens=rows,
        memory_budget=memory_budget,
        minibatch_size_features=cap,
        features=asked,
    )


@pytest.mark.parametrize("hook_point", HOOK_POINTS)
@pytest.mark.parametrize(
    "params",
    [
        {"minibatch_size_tokens": 1, "features": (0, 1, 2, 3)},
        {"minibatch_size_tokens": 5},
        {"memory_budget": 1, "features": (7, 8, 30)},
        {"minibatch_size_features": 13},
        {"features": (39,)},
    ],
    ids=str,
)
def test_feature_data_is_equal_at_the_ends_of_each_option(hook_point, params):
    check_equal(hook_point, **params)


PIECES = {
    "_activations.ENCODED_BYTES": 1,  # a row at a time
    "model_fns.CACHED": 1,
    "_products.PIECE": 1,
    "_correlations.PIECE": 40,
    "_correlations.SORTED": 1,
    "_correlations.TILE_BYTES": 1,
    "_ablation.KEPT_BYTES": 0,
    "_direct_effects.PIECE": 1,  # a pair at a time
    "_direct_effects.ROWS": 3,
    "_linear_changes.BLOCK_PAIRS": 2,
    "_linear_changes.FIRST_LOOK": 1,
    "_assemble.LOGITS_BYTES": 1,
    "_measure_direct.SHARE_OF_RESIDUALS": 10**12,  # a batch of rows at a time
    "_store.CHUNK": 50,
    "_store.JOINED": 1,
    "_neighbours.TILE_BYTES": 1,
    "_neighbours.PIECE": 200,
    "_neighbours.MANY": 1,
    "_neighbours.SPARE": 0,
    "_statistics.CACHED": 1,
    "_statistics.LOOKED_AT": 1,
    "_near_duplicates.PIECE": 200,
}


@pytest.mark.parametrize("hook_point", HOOK_POINTS)
@pytest.mark.parametrize("memory_budget", [60_000, "4GB"])
def test_feature_data_is_equal_whatever_the_pieces_inside(hook_point, memory_budget, monkeypatch):
    expected = reference(hook_point)
    for name, size in PIECES.items():
        monkeypatch.setattr(f"sae_vis.{name}", size)
    found = fetched(hook_point, minibatch_size_tokens=2, memory_budget=memory_budget)
    assert list(found) == list(expected)
    for feature in found:
        assert differing(found[feature], expected[feature]) == []


@pytest.mark.parametrize("hook_point", HOOK_POINTS)
@pytest.mark.parametrize("onednn", [False, True])
def test_feature_data_is_equal_whatever_library_multiplies(hook_point, onednn, monkeypatch):
    if onednn and not hasattr(torch.ops.mkldnn, _products.LINEAR):
        pytest.skip("this build of torch has no oneDNN")
    monkeypatch.setattr(_products, "onednn_is_faster", lambda: onednn)
    expected = fetched(hook_point)
    for name, size in PIECES.items():
        monkeypatch.setattr(f"sae_vis.{name}", size)
    found = fetched(hook_point, minibatch_size_tokens=2, memory_budget=60_000)
    assert list(found) == list(expected)
    for feature in found:
        assert differing(found[feature], expected[feature]) == []


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "neox"])
@pytest.mark.parametrize("seq_len", [5, 11, 13, 24])
def test_a_row_has_the_same_bits_in_every_batch_of_any_model(name, seq_len):
    wrapped = LanguageModel(hf_models.shared(name))
    ids = random_tokens(7, seq_len, hf_models.D_VOCAB, lowest=3)
    with wrapped.as_for_inference():
        together = wrapped.activations(ids, "blocks.1.mlp.hook_post")
        for size in (1, 2, 3, 5):
            apart = torch.cat([wrapped.activations(part, "blocks.1.mlp.hook_post") for part in ids.split(size)])
            assert torch.equal(apart, together), f"{size} rows a batch"


def test_padding_behind_a_row_shows_nowhere():
    """Rows are run longer than they are; the model must give what it gives for the rows themselves."""
    ids = random_tokens(3, 11, hf_models.D_VOCAB, lowest=3)
    wrapped = LanguageModel(model())
    with wrapped.as_for_inference():
        ours = wrapped.activations(ids, "blocks.1.mlp.hook_post")
        logits = wrapped.logits(ids)
    with torch.no_grad():
        own, cache = model().run_with_cache(ids, names_filter="blocks.1.mlp.hook_post", return_cache_object=False)
    torch.testing.assert_close(ours, cache["blocks.1.mlp.hook_post"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits, own, rtol=1e-5, atol=1e-5)


def test_a_model_that_sees_what_comes_later_is_run_on_the_rows_as_they_are():
    bidirectional = hf_models.native("LN", attention_dir="bidirectional")
    ids = random_tokens(3, 11, hf_models.D_VOCAB, lowest=3)
    wrapped = LanguageModel(bidirectional)
    with wrapped.as_for_inference():
        ours = wrapped.activations(ids, "blocks.1.mlp.hook_post")
    with torch.no_grad():
        _, cache = bidirectional.run_with_cache(ids, names_filter="blocks.1.mlp.hook_post", return_cache_object=False)
    torch.testing.assert_close(ours, cache["blocks.1.mlp.hook_post"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("order", [(5, 2, 30), (30, 5, 2), [2, 30, 5], torch.tensor([30, 2, 5]), np.array([5, 30, 2])])
def test_the_order_in_which_features_are_asked_for_does_not_matter(order):
    found = fetched(HOOK_POINTS[0], features=order)
    assert list(found) == [2, 5, 30]
    assert all(differing(found[feature], reference(HOOK_POINTS[0])[feature]) == [] for feature in found)


def test_each_feature_alone_is_as_among_all_the_others():
    hook_point = HOOK_POINTS[0]
    for feature in (0, 17, 39):
        assert differing(fetched(hook_point, features=feature)[feature], reference(hook_point)[feature]) == []


def test_asked_changes_the_table_of_correlated_features_only():
    hook_point = HOOK_POINTS[0]
    found = fetched(hook_point, features=(3, 8, 21, 34), correlate_features="asked")
    for feature in found:
        expected = reference(hook_point)[feature]
        assert differing(without_feature_table(found[feature]), without_feature_table(expected)) == []
        others = found[feature].feature_tables.correlated_features.indices
        assert set(others) == {3, 8, 21, 34} - {feature}


def test_a_feature_does_not_depend_on_tokens_that_do_not_count():
    """Two corpora that differ only where tokens are ignored have the same statistics."""
    acts = torch.rand(6, 8, 3, generator=torch.Generator().manual_seed(0))
    encoder, toy, ids = planted(torch.cat([acts, torch.full((1, 8, 3), 7.0)]))
    first, second = ids[:6].clone(), ids[:6].clone()
    first[:, 0], second[:, 0] = 48, torch.arange(48, 54)
    found = [fetch(encoder, toy, some, ablation=None, ignore_tokens=range(48, 56)) for some in (first, second)]
    for feature in range(3):
        a, b = found[0][feature], found[1][feature]
        assert differing(a.activations, b.activations) == []
        assert differing(a.quantiles, b.quantiles) == []
        assert differing(a.feature_tables, b.feature_tables) == []


@settings(max_examples=5)
@given(cuts=st.sets(st.integers(1, 12), max_size=3), rows=st.sampled_from([1, 3, 64]))
def test_token_shards_merge_to_the_same_features(cuts, rows):
    hook_point = HOOK_POINTS[0]
    encoder, encoder_b = encoders(hook_point)
    wrapped, ids = LanguageModel(model()), tokens()
    counted = ~torch.isin(ids, torch.tensor([2, 3]))
    plan = CollectPlan(hook_point, rows, 10**9, neurons=True, correlate="all")
    bounds = [0, *sorted(cuts), len(ids)]
    parts = []
    with wrapped.as_for_inference():
        for start, stop in pairwise(bounds):
            shard = ids[start:stop], counted[start:stop], torch.arange(N_FEATURES), torch.arange(N_FEATURES), plan
            (part,) = collect(wrapped, encoder, encoder_b, *shard)
            parts.append(dataclasses.replace(part, store=dataclasses.replace(part.store, row_offset=start)))
    store = merge_stores([part.store for part in parts])
    columns = [part.store.columns() for part in parts]
    neurons, features, b_features = (
        functools.reduce(CoMoments.merged, some)
        for some in (
            [part.neurons.co_moments(x.moments()) for part, x in zip(parts, columns, strict=True)],
            [co_moments(x, x) for x in columns],
            [co_moments(x, part.store_b.columns()) for part, x in zip(parts, columns, strict=True)],
        )
    )
    everything = np.arange(N_FEATURES)
    tables = [
        most_correlated(neurons, np.arange(D_MLP), 3),
        most_correlated(features, everything, 3, everything),
        most_correlated(b_features, np.arange(24), 3),
    ]
    for feature in range(N_FEATURES):
        expected = reference(hook_point)[feature]
        places, values = store.of(feature)
        acts = FeatureActivations.of(feature, places.numpy(), values.numpy(), 11, 0, store.n_counted)
        assert activations_data(acts, 40) == expected.activations
        values, ranks = quantile_knots(acts.raw)
        assert (values, ranks) == (expected.quantiles.values, expected.quantiles.ranks)
        shown = [[(s.row, s.start + s.bold_idx) for s in group.sequences] for group in expected.sequences.groups]
        if shown:
            intervals = interval_examples(acts, 4, 2, 0, (5, 5), allow_overlap=False)
            top = top_examples(acts, 6, (5, 5), allow_overlap=False)
            assert [top, *(interval.examples for interval in intervals)] == shown
        stored = expected.feature_tables
        for table, known in zip(
            tables, (stored.correlated_neurons, stored.correlated_features, stored.correlated_b_features), strict=True
        ):
            found = table[feature]
            assert (found.indices, found.pearson, found.cosine) == (known.indices, known.pearson, known.cosine)


# --- the same again ----------------------------------------------------------------------------------------------


def test_the_same_inputs_give_the_same_bytes(tmp_path):
    hook_point = HOOK_POINTS[0]
    again = fetched(hook_point)
    reference(hook_point).save_json(tmp_path / "a.json")
    again.save_json(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    prompts = [get_prompt_data(encoders(hook_point)[0], model(), [5, 9, 11], data) for data in (again, again)]
    for name, prompt in zip("cd", prompts, strict=True):
        prompt.save_json(tmp_path / f"{name}.json")
    assert (tmp_path / "c.json").read_bytes() == (tmp_path / "d.json").read_bytes()


def test_the_seed_of_torch_does_not_matter():
    torch.manual_seed(1)
    first = fetched(HOOK_POINTS[0], features=(1, 2))
    torch.manual_seed(2)
    assert differing(fetched(HOOK_POINTS[0], features=(1, 2)), first) == []


def test_another_seed_changes_the_random_members_only():
    hook_point = HOOK_POINTS[0]
    other = fetched(hook_point, seed=1)
    changed = 0
    for feature in other:
        a, b = other[feature], reference(hook_point)[feature]
        assert differing(a.activations, b.activations) == []
        assert differing(a.feature_tables, b.feature_tables) == []
        assert differing(a.sequences.groups[:1], b.sequences.groups[:1]) == []
        changed += a.sequences.groups[1:] != b.sequences.groups[1:]
    assert changed > N_FEATURES // 2


def test_a_prompt_that_is_a_row_of_the_corpus_has_the_activations_of_the_row():
    hook_point = HOOK_POINTS[2]
    data = reference(hook_point)
    encoder, _ = encoders(hook_point)
    row = next(row for row in data.rows)
    prompt = get_prompt_data(encoder, model(), data.rows[row], data, num_top_features=N_FEATURES)
    compared = 0
    for feature, column in prompt.prompt_data_dict.items():
        for group in data[feature].sequences.groups:
            for sequence in group.sequences:
                if sequence.row == row:
                    stop = sequence.start + len(sequence.token_ids)
                    assert column.sequence.feat_acts[sequence.start : stop] == sequence.feat_acts
                    compared += 1
    assert compared > 3


# --- nothing is changed ------------------------------------------------------------------------------------------


def state_of_everything(bridge, encoder) -> dict[str, object]:
    modules = list(bridge.modules())
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002 - the global state is the point
        "python": random.getstate(),
        "grad": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "training": [module.training for module in modules] + [encoder.training],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules],
        "weights": [weight.detach().clone() for weight in (*bridge.parameters(), *encoder.parameters())],
        "gradients": [weight.grad is None for weight in (*bridge.parameters(), *encoder.parameters())],
        "needs": [weight.requires_grad for weight in (*bridge.parameters(), *encoder.parameters())],
    }


def model_that_has_run():
    """TransformerLens itself leaves hooks in its norms the first time that they run."""
    bridge = hf_models.native("LN", d_model=D_MODEL, d_mlp=D_MLP, n_heads=2, d_head=16)
    with torch.no_grad():
        bridge(tokens()[:1])
    return bridge


def differences(before: dict[str, object], after: dict[str, object]) -> list[str]:
    weights = zip(before.pop("weights"), after.pop("weights"), strict=True)
    changed = [] if all(torch.equal(a, b) for a, b in weights) else ["weights"]
    return changed + [name for name in before if before[name] != after[name]]


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_nothing_of_the_callers_is_changed(grad, training):
    hook_point = HOOK_POINTS[0]
    bridge = model_that_has_run().train(training)
    encoder = encoder_for(D_MLP, 8, 0.3, size=0.5).train(training)
    ids = tokens()
    kept = ids.clone()
    with torch.set_grad_enabled(grad):
        before = state_of_everything(bridge, encoder)
        data = fetch(encoder, bridge, ids, hook_point=hook_point)
        get_prompt_data(encoder, bridge, [4, 5, 6], data)
        after = state_of_everything(bridge, encoder)
    assert differences(before, after) == []
    assert torch.equal(ids, kept)


def test_nothing_is_changed_where_fetching_fails():
    hook_point = HOOK_POINTS[0]
    bridge = model_that_has_run()
    encoder = encoder_for(D_MLP, 8, 0.3, size=0.5)
    with torch.no_grad():
        encoder.b_enc[3] = float("nan")
    before = state_of_everything(bridge, encoder)
    with pytest.raises(Exception, match="NaN"):
        fetch(encoder, bridge, tokens(), hook_point=hook_point)
    after = state_of_everything(bridge, encoder)
    for state in (before, after):
        state["weights"] = [torch.nan_to_num(weight) for weight in state["weights"]]
    assert differences(before, after) == []


def test_every_number_of_the_result_is_a_plain_one():
    def walk(value: object) -> None:
        if dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                walk(getattr(value, field.name))
        elif isinstance(value, dict):
            for key, item in value.items():
                walk(key)
                walk(item)
        elif isinstance(value, list | tuple):
            for item in value:
                walk(item)
        else:
            assert value is None or type(value) in {str, int, float, bool}, type(value)

    hook_point = HOOK_POINTS[0]
    data = fetched(hook_point, features=(0, 1, 2))
    walk(data)
    walk(get_prompt_data(encoders(hook_point)[0], model(), [5, 9, 11], data))
