"""``get_feature_data(..., out_dir=...)``: the same features, written as they are finished; a stopped run goes on."""

from __future__ import annotations

import dataclasses
import gc
from typing import Any

import pytest
import torch
from brute_force import random_encoder
from hf_models import build, some_tokens
from models import encoder_for

from sae_vis import (
    FeatureVisParams,
    InputError,
    Interrupted,
    MultiFeatureData,
    _feature_view,
    _prompt_view,
    _run,
    get_feature_data,
    get_prompt_data,
)
from sae_vis._feature_folder import FolderFeatures
from sae_vis.data_storing_fns import SequenceData

HOOK_POINT = "blocks.1.hook_resid_pre"
N = 12
PARAMS = FeatureVisParams(HOOK_POINT, verbose=False)


@pytest.fixture(scope="module")
def model() -> Any:
    return build("gpt2")


@pytest.fixture(scope="module")
def encoder() -> Any:
    return random_encoder(16, N)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(_feature_view, "FEATURES_A_PART", 3)


@pytest.fixture
def fetched(monkeypatch) -> list[int]:
    """The features whose panels are made."""
    made: list[int] = []
    own = _feature_view.FeatureFetcher._feature

    def noted(self, acts, *args):
        made.append(acts.feature)
        return own(self, acts, *args)

    monkeypatch.setattr(_feature_view.FeatureFetcher, "_feature", noted)
    return made


def run(encoder, model, folder, encoder_b=None, tokens=None, **options) -> MultiFeatureData:
    tokens = some_tokens() if tokens is None else tokens
    return get_feature_data(encoder, model, tokens, dataclasses.replace(PARAMS, **options), encoder_b, out_dir=folder)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"store_rows": False},
        {"correlate_features": "asked", "features": (1, 4, 7, 8)},
        {"ablation": ("direct", "full")},
    ],
)
def test_a_folder_holds_what_memory_would(options, model, encoder, tmp_path):
    in_memory = get_feature_data(
        encoder, model, some_tokens(), dataclasses.replace(PARAMS, **options), random_encoder(16, 5)
    )
    in_folder = run(encoder, model, tmp_path / "out", random_encoder(16, 5), **options)
    assert in_folder == in_memory
    assert MultiFeatureData.load_dir(tmp_path / "out") == in_memory
    assert in_folder.get_html() == in_memory.get_html()


def test_few_finished_features_are_in_memory(model, tmp_path, monkeypatch):
    """The part that is made, the one that is written and what is between them, however many features there are."""
    alive, sizes = [], []
    own = _feature_view.FeatureFetcher._feature

    def counted(self, *args):
        made = own(self, *args)
        against = made.counterexamples.sequences() if made.counterexamples else []
        sizes.append(len(against) + sum(len(group.sequences) for group in made.sequences.groups))
        alive.append(sum(type(thing) is SequenceData for thing in gc.get_objects()))
        return made

    gc.collect()
    before = sum(type(thing) is SequenceData for thing in gc.get_objects())
    monkeypatch.setattr(_feature_view.FeatureFetcher, "_feature", counted)
    run(random_encoder(16, 60), model, tmp_path / "out")
    of_three_parts = sum(sizes[-3 * _feature_view.FEATURES_A_PART :])
    assert alive[-1] - before <= of_three_parts < sum(sizes) / 3


def test_a_run_that_was_stopped_goes_on_with_what_is_missing(model, encoder, tmp_path, fetched):
    whole = run(encoder, model, tmp_path / "whole")
    run(encoder, model, tmp_path / "out")
    (tmp_path / "out/features-00001.index.json.gz").unlink()
    fetched.clear()
    assert run(encoder, model, tmp_path / "out") == whole
    assert fetched == [3, 4, 5]


def test_a_finished_run_does_not_collect_again(model, encoder, tmp_path, fetched, monkeypatch):
    whole = run(encoder, model, tmp_path / "out")
    fetched.clear()
    monkeypatch.setattr(_feature_view, "collect", lambda *args: pytest.fail("the model must not run over the tokens"))
    assert run(encoder, model, tmp_path / "out") == whole
    assert not fetched


def test_more_features_can_be_asked_for_later(model, encoder, tmp_path, fetched):
    run(encoder, model, tmp_path / "out", features=(2, 5))
    fetched.clear()
    both = run(encoder, model, tmp_path / "out", features=(2, 3, 9))
    assert list(both) == [2, 3, 5, 9]
    assert fetched == [3, 9]
    assert both == run(encoder, model, tmp_path / "once", features=(2, 3, 5, 9))


@pytest.mark.parametrize("finished", [0, 3, 9])
def test_an_interrupt_leaves_what_was_finished_in_the_folder(finished, model, encoder, tmp_path, monkeypatch):
    whole = run(encoder, model, tmp_path / "whole")
    own = _feature_view.FeatureFetcher._feature

    def interrupted(self, acts, *args):
        if acts.feature == finished + 1:
            raise KeyboardInterrupt
        return own(self, acts, *args)

    with monkeypatch.context() as patch:
        patch.setattr(_feature_view.FeatureFetcher, "_feature", interrupted)
        with pytest.raises(
            Interrupted, match=rf"{finished} of {N} features are finished.*where the same call goes on"
        ) as caught:
            run(encoder, model, tmp_path / "out")
    assert list(caught.value.finished) == list(range(finished))
    assert run(encoder, model, tmp_path / "out") == whole


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"encoder": 1}, "encoder"),
        ({"tokens": 1}, "tokens"),
        ({"model": 1}, "model"),
        ({"n_groups": 3}, "n_groups"),
        ({"ignore_tokens": (5,)}, "ignore"),
    ],
)
def test_another_run_never_mixes_in(change, told, model, encoder, tmp_path):
    whole = run(encoder, model, tmp_path / "out")
    options: dict[str, Any] = dict(change)
    other = random_encoder(16, N, seed=7) if options.pop("encoder", 0) else encoder
    tokens = some_tokens(seed=3) if options.pop("tokens", 0) else some_tokens()
    of_model = build("llama") if options.pop("model", 0) else model
    with pytest.raises(InputError, match=told):
        run(other, of_model, tmp_path / "out", tokens=tokens, **options)
    assert MultiFeatureData.load_dir(tmp_path / "out") == whole


def test_batches_and_budgets_may_differ_between_calls(model, encoder, tmp_path):
    whole = run(encoder, model, tmp_path / "out")
    (tmp_path / "out/features-00000.index.json.gz").unlink()
    options = {"minibatch_size_tokens": 2, "memory_budget": 20_000, "minibatch_size_features": 2}
    assert run(encoder, model, tmp_path / "out", **options).feature_data_dict == whole.feature_data_dict


def test_a_folder_that_cannot_be_is_told_before_the_model_runs(model, encoder, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("years of work")
    monkeypatch.setattr(_feature_view, "collect", lambda *args: pytest.fail("too late"))
    for folder in (tmp_path / "mine", tmp_path / "no/parent"):
        with pytest.raises(InputError, match=str(folder)):
            run(encoder, model, folder)
    assert (tmp_path / "mine/thesis.tex").read_text() == "years of work"


def test_tokens_beyond_the_corpus_are_never_asked_for(model, encoder, tmp_path):
    data = run(encoder, model, tmp_path / "out", tokens=some_tokens()[:1])
    assert set(data.rows) <= {0}
    assert torch.equal(torch.tensor(data.rows.get(0, some_tokens()[0].tolist())), some_tokens()[0])


def test_a_prompt_reads_only_the_features_that_are_active_on_it(model, tmp_path, monkeypatch):
    monkeypatch.setattr(_prompt_view, "HEAT_ROWS", 2)
    encoder = encoder_for(16, 40, density=0.1, size=2.0)
    in_memory = get_feature_data(encoder, model, some_tokens(), PARAMS)
    in_folder = run(encoder, model, tmp_path / "out")
    prompt = some_tokens(seed=5)[0, :6]
    expected = get_prompt_data(encoder, model, prompt, in_memory, num_top_features=2)
    partly, whole = [], []
    own = FolderFeatures.partly
    monkeypatch.setattr(FolderFeatures, "partly", lambda self, key, cls: partly.append(key) or own(self, key, cls))
    read = FolderFeatures._read
    monkeypatch.setattr(FolderFeatures, "_read", lambda self, key: whole.append(key) or read(self, key))
    found = get_prompt_data(encoder, model, prompt, MultiFeatureData.load_dir(tmp_path / "out"), num_top_features=2)
    assert found == expected
    assert 0 < len(found.prompt_data_dict) < len(partly) < 40, "some are active and not ranked, some not active"
    assert sorted(set(whole)) == sorted(found.prompt_data_dict)
    assert list(in_folder) == list(range(40))


class OfMyOwn:
    """An encoder as a user writes one: no module, no digest."""

    def __init__(self, encoder: Any, bias: float = 0.0) -> None:
        self.weights, self.bias = encoder.W_enc.clone(), torch.tensor(bias)
        self.kept = [encoder.W_dec.clone()]  # where no attribute is this tensor
        self.d_in, self.d_hidden = encoder.d_in, encoder.d_hidden

    def encode(self, x, features=None):
        acts = torch.relu(x.float() @ self.weights + self.bias)
        return acts if features is None else acts[..., features]

    def decoder_rows(self, features):
        return self.kept[0][features]


def test_an_encoder_of_ones_own_with_other_numbers_is_another(encoder, model, tmp_path):
    """The decoder alone does not tell them apart."""
    first = OfMyOwn(encoder)
    run(first, model, tmp_path / "run", features=(0, 1))
    again = run(OfMyOwn(encoder), model, tmp_path / "run", features=(0, 1, 2))
    assert list(again) == [0, 1, 2]
    with pytest.raises(InputError, match="encoder"):
        run(OfMyOwn(encoder, bias=-0.5), model, tmp_path / "run", features=(0, 1, 2, 3))
    other = OfMyOwn(encoder)
    other.kept[0][-1] += 1.0
    with pytest.raises(InputError, match="encoder"):
        run(other, model, tmp_path / "run", features=(0, 1, 2, 3))


def test_buffers_of_a_module_tell_it_apart_too():
    module = torch.nn.Linear(3, 4)
    module.register_buffer("threshold", torch.zeros(4))
    before = _run._encoder_digest(module)
    module.threshold[2] = 1.0
    assert _run._encoder_digest(module) != before
