"""``FeatureVisParams(ignore_positions=...)``: places in the row that count no more than ignored tokens."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import page_reading
import pytest
import torch
from hf_models import shared
from test_prompt import HOOK_POINT, PROMPT, corpus, encoder_for, options, prompted

from sae_vis import InputError, MultiFeatureData, get_feature_data, load_activations

MARK = 5  # a token that stands at the ignored places, and nowhere else
PLACES = (0, 3)


@functools.cache
def marked() -> torch.Tensor:
    tokens = corpus().clone()
    tokens[tokens == MARK] = MARK + 1
    tokens[:, PLACES] = MARK
    return tokens


def fetched(**changed: Any) -> MultiFeatureData:
    kept = {name: changed.pop(name) for name in ("out_dir", "save_activations") if name in changed}
    fvp = options(**{"include_left_tables": True, "ignore_tokens": (), **changed})
    return get_feature_data(encoder_for("gpt2"), shared("gpt2"), marked(), fvp, **kept)


@pytest.mark.parametrize("ablation", ["direct", "full"])
def test_a_place_is_ignored_as_a_token_that_stands_only_there(ablation):
    by_place, by_token = (
        fetched(ablation=ablation, ignore_positions=PLACES),
        fetched(ablation=ablation, ignore_tokens=(MARK,)),
    )
    assert by_place.provenance.n_counted == by_token.provenance.n_counted == 30 * 22
    assert by_place.provenance.ignored_positions == list(PLACES)
    for feature in by_token:
        assert dataclasses.asdict(by_place[feature]) == dataclasses.asdict(by_token[feature])
    pages = [data.get_html(feature=1) for data in (by_place, by_token)]
    grey = [page.count(' class="x"') for page in pages]
    assert grey[0] == grey[1] > 0
    assert any(feature.activations.density > 0 for feature in by_token.values())
    counting = fetched(ablation=ablation)
    assert dataclasses.asdict(counting[1].activations) != dataclasses.asdict(by_place[1].activations)


def test_a_prompt_has_the_places_too():
    features = fetched(ignore_positions=(1, 6, 7))
    prompt = prompted(features=features, prepend_bos=False, reconstruction=True)
    counting = prompted(features=fetched(), prepend_bos=False)
    assert (prompt.n_active[1], prompt.n_active[6]) == (0, 0)
    assert [counting.n_active[place] for place in range(7) if place not in (1, 6)] == [
        prompt.n_active[place] for place in range(7) if place not in (1, 6)
    ]
    assert counting.n_active[1] > 0
    assert prompt.reconstruction.l0[1] is None
    page = page_reading.parse(prompt.get_html())
    strip = next(element for element in page.iter() if element.get("class", "").startswith("strip"))
    greyed = [index for index, token in enumerate(strip.iter("button")) if token.get("class") == "x"]
    assert greyed == [1, 6]
    assert len(PROMPT) == 7


@pytest.mark.parametrize(
    ("places", "match"),
    [
        ((24,), "names position 24, but the rows have 24 tokens, at positions 0 to 23"),
        (range(24), "or stand at positions of ignore_positions"),
    ],
)
def test_places_that_cannot_be_left_out_are_told(places, match):
    with pytest.raises(InputError, match=match):
        fetched(ignore_positions=places)


@pytest.mark.parametrize("places", [(-1,), (0.5,), "0", (True,), (2**31,)])
def test_what_is_no_place_is_told(places):
    with pytest.raises(InputError, match="ignore_positions"):
        options(ignore_positions=places)


def test_other_places_are_another_run(tmp_path):
    folder, file = tmp_path / "run", tmp_path / "acts.safetensors"
    first = fetched(ignore_positions=PLACES, out_dir=folder, save_activations=file)
    again = fetched(ignore_positions=(3, 0, 0), out_dir=folder, save_activations=file)
    assert dataclasses.asdict(first[1]) == dataclasses.asdict(again[1])
    assert load_activations(file).n_counted == first.provenance.n_counted
    with pytest.raises(InputError, match=r"params\.ignore_positions"):
        fetched(ignore_positions=(0, 4), out_dir=folder)
    with pytest.raises(InputError, match="ignored_positions"):
        fetched(ignore_positions=(0, 4), save_activations=file)
    with pytest.raises(InputError, match="another run: n_counted differ"):
        fetched(save_activations=file)


def test_places_come_back_from_json(tmp_path):
    fetched(ignore_positions=range(2)).save_json(tmp_path / "f.json")
    loaded = MultiFeatureData.load_json(tmp_path / "f.json")
    assert (loaded.params.ignore_positions, loaded.provenance.ignored_positions) == ((0, 1), [0, 1])
    assert loaded.provenance.hook_point == HOOK_POINT
