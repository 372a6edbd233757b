"""Fetch the data of both views: one function each, from a model, an encoder and tokens to the dataclasses.

The stages are modules of their own: collect (``_activations``), select (``_statistics``), measure (``_shown`` and
``_ablation``), assemble (``_assemble``); ``_feature_view`` and ``_prompt_view`` wire them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sae_vis._errors import InputError, check_path, shown
from sae_vis._feature_view import FeatureFetcher
from sae_vis._json import check_writable
from sae_vis._params import FeatureVisParams
from sae_vis._prompt_compare import Comparer
from sae_vis._prompt_comparison import PromptComparisonData
from sae_vis._prompt_data import MultiPromptData
from sae_vis._prompt_view import PromptFetcher, reconstruction_data
from sae_vis._run import (
    Run,
    check_same_run,
    check_tokens,
    prompt_ids,
    warn_of_padding_in_front,
    warn_of_processed_weights,
)
from sae_vis.data_storing_fns import MultiFeatureData

P = ParamSpec("P")
R = TypeVar("R")


def _on_the_usual_device(function: Callable[P, R]) -> Callable[P, R]:
    """New tensors of the function are on the CPU, whatever ``torch.set_default_device`` says: it knows where they belong."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        is_usual = torch.get_default_device().type == "cpu"  # where it is, nothing is made slower
        with contextlib.nullcontext() if is_usual else torch.device("cpu"):
            return function(*args, **kwargs)

    return run


@_on_the_usual_device
def get_feature_data(
    encoder: Any,
    model: Any,
    tokens: Any,
    fvp: FeatureVisParams | None = None,
    encoder_B: Any = None,  # noqa: N803 - the name users know
    *,
    out_dir: str | os.PathLike[str] | None = None,
    save_activations: str | os.PathLike[str] | None = None,
) -> MultiFeatureData:
    """Everything that the feature-centric view shows of the features asked for.

    Args:
        encoder: an ``AutoEncoder``, a SAELens object or the path of its folder, or what follows the ``Encoder`` protocol.
        model: a TransformerLens model.
        tokens: integer token ids ``[rows, seq]`` (tensor, array or nested lists).
        fvp: the options; ``FeatureVisParams.help()`` explains them.
        encoder_B: a second encoder of the same hook point, for the table of correlated B features.
        out_dir: a folder that features are written to as they are finished, so that memory holds few of them; what is
            given back reads them from there. A run that was stopped goes on with those that are missing.
        save_activations: a file (safetensors) that the activations are kept in. If it is there and holds what is asked for,
            the model does not run over the tokens again: other groups, buffers or layouts cost their own stages alone.

    Raises:
        InputError: if tokens, features or options cannot be used.
        ModelError: if model or encoder do not fit together, or give NaN or infinity.
        Interrupted: on Ctrl-C; its ``finished`` holds the features that were done.
    """
    for name, path in (("out_dir", out_dir), ("save_activations", save_activations)):
        if path is not None:
            check_path(path, name)
    if save_activations is not None:
        check_writable(save_activations)
    run = Run.prepare(encoder, model, FeatureVisParams() if fvp is None else fvp, encoder_B)
    token_ids = check_tokens(tokens, run.model)
    counted = _counted(run, token_ids)
    with run.model.as_for_inference():
        write_path = run.check_fit(token_ids)
        provenance = run.provenance(token_ids, counted, write_path)
        warn_of_processed_weights(run, provenance)
        warn_of_padding_in_front(run, token_ids, provenance)
        fetcher = FeatureFetcher(run, token_ids, counted, write_path, provenance, save_activations)
        return fetcher.fetch() if out_dir is None else fetcher.fetch_into(out_dir)


def _counted(run: Run, token_ids: Int[Tensor, "rows seq"]) -> Bool[Tensor, "rows seq"]:
    """Which positions count: there must be one, and each that is named must be there."""
    places, seq_len = run.fvp.ignore_positions, token_ids.shape[1]
    if places and places[-1] >= seq_len:
        raise InputError(
            f"FeatureVisParams.ignore_positions names position {places[-1]}, but the rows have {seq_len} tokens, at "
            f"positions 0 to {seq_len - 1}."
        )
    counted = run.counted(token_ids)
    if not bool(counted.any()):
        also = " or stand at positions of ignore_positions" if places else ""
        raise InputError(
            f"All {token_ids.numel()} positions hold ignored tokens ({run.ignored_ids()}){also}, so nothing can be counted. "
            "Use FeatureVisParams(ignore_tokens=()) to count every position."
        )
    return counted


@_on_the_usual_device
def get_prompt_data(
    encoder: Any,
    model: Any,
    prompt: Any,
    features: MultiFeatureData,
    fvp: FeatureVisParams | None = None,
    num_top_features: int = 10,
    prepend_bos: bool | None = None,
    *,
    reconstruction: bool = False,
) -> MultiPromptData:
    """Which of the features matter at each token of a prompt, by each of the three scores.

    Args:
        encoder: the one that the features were fetched with.
        model: the one that the features were fetched with.
        prompt: a text, or token ids (1-D).
        features: the fetched features; only these are ranked.
        fvp: the options; None takes those of ``features``.
        num_top_features: how many are ranked for each token and score.
        prepend_bos: whether the prompt gets the token that every row began with; None: if they all began with one.
        reconstruction: whether to measure how well the whole encoder reconstructs the prompt, and what the model predicts
            with the reconstruction, or that by ``features`` alone, in place;
            it takes up to six more forward passes, two of them to the hook point only.

    Raises:
        InputError: if the prompt is empty or too long, or the features come from another encoder or hook point. A model of
            other weights is a warning: the same ones in another class may differ in the last digits.
    """
    _check_prompt_options(features, num_top_features, prepend_bos)
    if not isinstance(reconstruction, bool):
        raise InputError(f"reconstruction must be True or False, got {shown(reconstruction)}.")
    run = Run.prepare(encoder, model, features.params if fvp is None else fvp, None)
    check_same_run(run, features.provenance)
    ids = prompt_ids(prompt, run.model, features.provenance, prepend_bos)
    with run.model.as_for_inference():
        data = PromptFetcher(run, ids, features, num_top_features).data()
        if reconstruction:
            data = dataclasses.replace(data, reconstruction=reconstruction_data(run, ids, features))
        return data


@_on_the_usual_device
def compare_prompts(
    encoder: Any,
    model: Any,
    prompt: Any,
    other_prompt: Any,
    features: MultiFeatureData,
    fvp: FeatureVisParams | None = None,
    num_top_features: int = 10,
    prepend_bos: bool | None = None,
) -> PromptComparisonData:
    """Which of the features differ between two prompts, token by aligned token and in all, by each of the scores.

    Args:
        encoder: the one that the features were fetched with.
        model: the one that the features were fetched with.
        prompt: a text, or token ids (1-D).
        other_prompt: likewise; differences are its scores less those of ``prompt``.
        features: the fetched features; only these are compared.
        fvp: the options; None takes those of ``features``.
        num_top_features: how many are listed for each pair of tokens, and in all, by each score.
        prepend_bos: whether the prompts get the token that every row began with; None: if they all began with one.

    Raises:
        InputError: if a prompt is empty or too long, or the features come from another encoder or hook point. A model of
            other weights is a warning.
    """
    _check_prompt_options(features, num_top_features, prepend_bos)
    run = Run.prepare(encoder, model, features.params if fvp is None else fvp, None)
    check_same_run(run, features.provenance)
    ids, other_ids = (
        prompt_ids(one, run.model, features.provenance, prepend_bos, name)
        for name, one in (("prompt", prompt), ("other_prompt", other_prompt))
    )
    with run.model.as_for_inference():
        return Comparer(run, ids, other_ids, features, num_top_features).data()


def _check_prompt_options(features: Any, num_top_features: Any, prepend_bos: Any) -> None:
    if not isinstance(num_top_features, int) or isinstance(num_top_features, bool) or num_top_features < 1:
        raise InputError(f"num_top_features must be an int >= 1, got {shown(num_top_features)}.")
    if not isinstance(features, MultiFeatureData):
        raise InputError(
            f"features must be what get_feature_data gave, a MultiFeatureData, got {type(features).__name__}."
        )
    if prepend_bos is not None and not isinstance(prepend_bos, bool):
        raise InputError(f"prepend_bos must be True, False or None, got {shown(prepend_bos)}.")
