"""The bundled model: a one-layer transformer, two sparse autoencoders on its MLP, and held-out text to look at."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from sae_vis._errors import InputError, ModelError, check_path
from sae_vis._params import FeatureVisParams
from sae_vis._prompt_data import MultiPromptData
from sae_vis.data_fetching_fns import get_feature_data, get_prompt_data
from sae_vis.data_storing_fns import MultiFeatureData
from sae_vis.model_fns import AutoEncoder

DATA = Path(__file__).parent / "demo_data"
PROMPT = "from django.db import models\n\n\nclass Author(models.Model):\n    name = models.CharField(max_length=100)\n"
N_FEATURES = 256
NAME = "gelu-1l-python"  # what the pages call the model


class Demo(NamedTuple):
    """The bundled parts; ``labels`` name some of the features."""

    model: Any
    encoder: AutoEncoder
    encoder_B: AutoEncoder  # noqa: N815 - the name users know
    tokens: Tensor
    hook_point: str
    labels: dict[int, str]


def load_demo(folder: str | os.PathLike[str] = DATA) -> Demo:
    """Load the bundled model, its two autoencoders and held-out tokens ``[rows, seq]``, to try the library with.

    Raises:
        InputError: if another folder is given that holds no such model.
        ModelError: if there is no TransformerLens, or one older than 2.16.
    """
    folder = Path(check_path(folder, "folder"))
    config = _read_config(folder)
    saes = config["saes"]
    labels = folder / "labels.json"
    return Demo(
        _load_model(folder, config["model"]),
        _load_encoder(folder / saes["sae"]["file"]),
        _load_encoder(folder / saes["sae_b"]["file"]),
        load_file(folder / config["tokens"]["file"])["tokens"].long(),
        saes["sae"]["hook_point"],
        {int(k): v for k, v in json.loads(labels.read_text(encoding="utf-8")).items()} if labels.exists() else {},
    )


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        parts = {name: config[name] for name in ("model", "saes", "tokens")}
    except (OSError, ValueError, LookupError, TypeError):
        raise InputError(
            f"The folder {os.fspath(folder)!r} holds no config.json as scripts/demo_model writes it: call load_demo() without a "
            "folder for the bundled model."
        ) from None
    return parts


def _load_model(folder: Path, config: dict[str, Any]) -> Any:
    weights = {name: weight.float() for name, weight in load_file(folder / "model.safetensors").items()}
    with _quiet_imports(), torch.random.fork_rng(devices=[]):  # torch draws first weights, which are replaced below
        from transformers import PreTrainedTokenizerFast

        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
        model = _as_bridge(config, weights, tokenizer) or _as_hooked_transformer(config, weights, tokenizer)
    model.cfg.model_name = NAME
    return model.eval()


def _as_bridge(config: dict[str, Any], weights: dict[str, Tensor], tokenizer: Any) -> Any:
    """The bundled model in TransformerLens' bridge, which has native models since 3.9; None where it has not."""
    try:
        from transformer_lens.config import TransformerBridgeConfig
        from transformer_lens.model_bridge import TransformerBridge
    except ImportError:
        return None
    bridge: Any = TransformerBridge
    if not hasattr(bridge, "boot_native"):
        return None
    model = bridge.boot_native(TransformerBridgeConfig(**config, init_weights=False), tokenizer=tokenizer)
    model.load_state_dict(weights)
    return model


def _as_hooked_transformer(config: dict[str, Any], weights: dict[str, Tensor], tokenizer: Any) -> Any:
    """The same model in a ``HookedTransformer``, which there is in TransformerLens 2 and 3."""
    try:
        from transformer_lens import HookedTransformer, HookedTransformerConfig
    except ImportError as error:
        raise ModelError(
            "The bundled model needs TransformerLens 2.16 or newer: pip install 'transformer-lens>=2.16'. "
            f"The import said: {error}"
        ) from None
    model = HookedTransformer(HookedTransformerConfig(**config, init_weights=False, device="cpu"), tokenizer=tokenizer)
    model.load_state_dict(_hooked_weights(weights, config["n_heads"]), strict=False)  # it counts its masks as weights
    return model


_HOOKED_NAMES = {
    **{part: f"{{}}_{part.upper()}" for part in ("q", "k", "v", "o")},
    **{part: f"{{}}_{part}" for part in ("in", "out")},
    "embed": "embed.{}_E",
    "pos_embed": "pos_embed.{}_pos",
    "unembed": "unembed.{}_U",
}


def _hooked_weights(weights: dict[str, Tensor], n_heads: int) -> dict[str, Tensor]:
    """The weights under the names and in the shapes of ``HookedTransformer``: inputs before outputs, heads apart."""
    renamed = {}
    for name, stored in weights.items():
        *place, part, kind = name.split(".")
        weight, is_matrix = stored, kind == "weight"
        if is_matrix and part in ("o", "in", "out", "unembed"):
            weight = weight.T
        if part in ("q", "k", "v") or (is_matrix and part == "o"):
            weight = weight.reshape(n_heads, -1, *weight.shape[1:])
        if is_matrix and part in ("q", "k", "v"):
            weight = weight.transpose(1, 2)
        leaf = f"{part}.{kind[0]}" if part.startswith("ln") else _HOOKED_NAMES[part].format("W" if is_matrix else "b")
        renamed[".".join([*place, leaf])] = weight
    return renamed


@contextmanager
def _quiet_imports() -> Iterator[None]:
    """TransformerLens and transformers log and warn on import, of things that have nothing to do with the demo."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _load_encoder(path: Path) -> AutoEncoder:
    """An encoder stored as int8 rows, one per feature, with a scale for each."""
    stored = load_file(path)

    def rows(name: str) -> Tensor:
        return stored[f"{name}.int8"].float() * stored[f"{name}.scale"][:, None]

    return AutoEncoder.from_weights(
        {
            "W_enc": rows("W_enc").T.contiguous(),
            "b_enc": stored["b_enc"],
            "W_dec": rows("W_dec"),
            "b_dec": stored["b_dec"],
        }
    )


def chosen_features(demo: Demo, n_features: int) -> list[int]:
    """The labelled features and, up to ``n_features`` in all, the first others."""
    others = (feature for feature in range(demo.encoder.d_hidden) if feature not in demo.labels)
    return sorted([*demo.labels, *others][:n_features])


def label(features: MultiFeatureData, labels: dict[int, str]) -> None:
    """Put the labels on the features that are there."""
    for feature, text in labels.items():
        if feature in features:
            features[feature].label = text


def most_helped(prompt: MultiPromptData) -> int:
    """The position of the token that some feature helps most to predict."""
    rankings = prompt.scores["loss_effect"]
    return min(range(len(rankings)), key=lambda position: rankings[position][0][1] if rankings[position] else 0.0)


def run(out_dir: Path, *, features: int | None = None, quiet: bool = False) -> list[Path]:
    """Write both views of the bundled model and the JSON of the features; returns the paths."""
    demo = load_demo()
    fvp = FeatureVisParams(
        hook_point=demo.hook_point, features=tuple(chosen_features(demo, features or N_FEATURES)), verbose=not quiet
    )
    data = get_feature_data(demo.encoder, demo.model, demo.tokens, fvp, demo.encoder_B)
    label(data, demo.labels)
    prompt = get_prompt_data(demo.encoder, demo.model, PROMPT, data, fvp, reconstruction=True)
    paths = [out_dir / name for name in ("demo_feature_vis.html", "demo_prompt_vis.html", "demo_features.json")]
    data.save_html(paths[0])
    prompt.save_html(paths[1], most_helped(prompt), "loss_effect", feature_url=f"{paths[0].name}#feature={{feature}}")
    data.save_json(paths[2])
    return paths
