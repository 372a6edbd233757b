"""SAEDashboard 0.8 on the material of a case, with all that its feature-centric view shows by default."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import loading  # from this folder: the program runs where our own packages are not
import measuring
import torch


def sae_of(folder: Path, hook_point: str) -> Any:
    """The dictionary as an object of sae_lens 6."""
    from sae_lens import StandardSAE, StandardSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    weights = loading.load_encoder_weights(folder)
    d_in, d_sae = weights["W_enc"].shape
    metadata = SAEMetadata(model_name="benchmark", hook_name=hook_point)
    sae = StandardSAE(StandardSAEConfig(d_in=d_in, d_sae=d_sae, apply_b_dec_to_input=True, metadata=metadata))
    sae.load_state_dict(weights)
    return sae


def main() -> None:
    """Run it once and print what it took."""
    from sae_dashboard.data_writing_fns import save_feature_centric_vis
    from sae_dashboard.sae_vis_data import SaeVisConfig
    from sae_dashboard.sae_vis_runner import SaeVisRunner
    from sae_lens import HookedSAETransformer

    asked, timer = measuring.task(), measuring.Timer()
    folder, page = Path(asked["folder"]), Path(asked["out"]) / "sae_dashboard.html"
    tokens = loading.load_tokens(folder, asked["rows"])
    model = loading.load_hooked(folder, HookedSAETransformer)
    sae = sae_of(folder, asked["hook_point"])
    config = SaeVisConfig(hook_point=asked["hook_point"], features=asked["features"], device="cpu")
    with contextlib.redirect_stdout(sys.stderr), torch.no_grad():
        with timer.stage("data"):
            data = SaeVisRunner(config).run(encoder=sae, model=model, tokens=tokens)
        with timer.stage("html"):
            save_feature_centric_vis(data, page)
        checksum = measuring.checksum(model, sae, tokens, asked["hook_point"])
    measuring.report(timer, page, features=len(data.feature_data_dict), checksum=checksum)


if __name__ == "__main__":
    main()
