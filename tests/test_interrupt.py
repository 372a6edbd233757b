"""Ctrl-C in the middle of fetching: the model is as it was, and what was finished is there."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from brute_force import random_encoder
from hf_models import build, some_tokens

import sae_vis
from sae_vis import FeatureVisParams, Interrupted, get_feature_data

HOOK_POINT = "blocks.1.hook_resid_pre"


def state_of(model: Any) -> Any:
    """Everything of the model that fetching touches on the way: hooks, training flags, replaced methods."""
    hooks = {name: (len(p.fwd_hooks), len(p._forward_hooks)) for name, p in model.hook_dict.items()}
    flags = [module.training for module in [*model.modules(), *model.original_model.modules()]]
    return hooks, flags, ["forward" in vars(block) for block in model.blocks], torch.is_grad_enabled()


def params(**options: Any) -> FeatureVisParams:
    return FeatureVisParams(HOOK_POINT, verbose=False, ablation=("direct", "full"), **options)


def interrupt_at(model: Any, call: int) -> Any:
    """Ctrl-C in the middle of the ``call``-th time that the second block's MLP is run."""
    calls: list[int] = []

    def count(*_: Any) -> None:
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt

    return model.blocks[1].mlp.register_forward_pre_hook(count)


def count_calls(model: Any, encoder: Any, **options: Any) -> int:
    calls: list[int] = []
    handle = model.blocks[1].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    get_feature_data(encoder, model, some_tokens(), params(**options))
    handle.remove()
    return len(calls)


def test_an_interrupt_anywhere_leaves_the_model_as_it_was_and_tells_what_was_finished():
    model, encoder = build("gpt2").train(), random_encoder(16, 6)
    options = {"minibatch_size_features": 2, "minibatch_size_tokens": 3}
    before, whole = state_of(model), get_feature_data(encoder, model, some_tokens(), params(**options))
    n_finished = set()
    total = count_calls(model, encoder, **options)
    assert total > 20
    for call in range(1, total + 1, 3):
        handle = interrupt_at(model, call)
        with pytest.raises(Interrupted) as caught:
            get_feature_data(encoder, model, some_tokens(), params(**options))
        handle.remove()
        assert state_of(model) == before
        finished = caught.value.finished
        n = len(finished) if finished else 0
        assert f": {n} of 6 features are finished" in str(caught.value)
        assert str(caught.value).startswith("Interrupted while ")
        if finished:
            assert finished.feature_data_dict == {i: whole[i] for i in finished}
            assert n in n_finished or finished.get_html()
        n_finished.add(n)
    assert n_finished == {0, 2, 4}
    assert get_feature_data(encoder, model, some_tokens(), params(**options)) == whole


def test_it_is_a_keyboard_interrupt_and_no_error_of_the_library():
    assert issubclass(Interrupted, KeyboardInterrupt)
    assert not issubclass(Interrupted, Exception)


@pytest.mark.slow
def test_a_real_signal_ends_the_command_with_a_sentence(tmp_path: Path):
    command = [sys.executable, "-m", "sae_vis", "demo", "--out", str(tmp_path)]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd=Path(sae_vis.__file__).parents[1]
    )
    told = b""
    deadline = time.monotonic() + 240
    while b"Collecting activations" not in told and time.monotonic() < deadline:
        told += process.stderr.read1()
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=240)[1].decode()
    assert process.returncode == 130
    assert "Traceback" not in rest
    assert "sae-vis: Interrupted while " in rest
    assert "of 256 features are finished" in rest
    assert list(tmp_path.iterdir()) == []
