"""The original sae_vis 0.3 on the material of a case, with all that its feature-centric view shows by default."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import loading  # from this folder: the program runs where our own packages are not
import measuring
import torch


def sae_of(folder: Path, hook_point: str, seq_len: int) -> Any:
    """The dictionary as an object of sae_lens 5."""
    from sae_lens import SAE, SAEConfig

    weights = loading.load_encoder_weights(folder)
    d_in, d_sae = weights["W_enc"].shape
    config = SAEConfig(
        architecture="standard",
        d_in=d_in,
        d_sae=d_sae,
        activation_fn_str="relu",
        apply_b_dec_to_input=True,
        finetuning_scaling_factor=False,
        context_size=seq_len,
        model_name="benchmark",
        hook_name=hook_point,
        hook_layer=int(hook_point.split(".")[1]),
        hook_head_index=None,
        prepend_bos=True,
        dataset_path="",
        dataset_trust_remote_code=False,
        normalize_activations="none",
        dtype="float32",
        device="cpu",
        sae_lens_training_version=None,
    )
    sae = SAE(config)
    sae.load_state_dict(weights)
    return sae


def main() -> None:
    """Run it once and print what it took."""
    from sae_lens import HookedSAETransformer
    from sae_vis.data_config_classes import SaeVisConfig
    from sae_vis.data_storing_fns import SaeVisData

    asked, timer = measuring.task(), measuring.Timer()
    folder, page = Path(asked["folder"]), Path(asked["out"]) / "sae_vis_0_3.html"
    tokens = loading.load_tokens(folder, asked["rows"])
    model = loading.load_hooked(folder, HookedSAETransformer)
    sae = sae_of(folder, asked["hook_point"], tokens.shape[1])
    with contextlib.redirect_stdout(sys.stderr), torch.no_grad():
        with timer.stage("data"):
            data = SaeVisData.create(sae, model, tokens, SaeVisConfig(features=asked["features"]))
        with timer.stage("html"):
            data.save_feature_centric_vis(str(page))
        checksum = measuring.checksum(model, sae, tokens, asked["hook_point"])
    measuring.report(timer, page, features=len(data.feature_data_dict), checksum=checksum)


if __name__ == "__main__":
    main()
