"""From what the last block's MLP reads to what leaves the block, at the places that are looked at and at no other.

The MLP works on each token by itself, and mostly few tokens' predictions are shown: to run it for all of them would take a
good part of a small model's forward pass. That the short cut gives what the model gives is checked on some rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_vis._products import fast_products
from sae_vis.model_fns import MIN_PRODUCT_ROWS, HookPoint, LanguageModel

CLOSE = 1e-5  # relative to each position's length; half precision gets twice the step between its numbers
AT_THE_END = ("hook_mlp_out", "hook_resid_post")  # of a block: where these are read, its MLP is run anyway
_NO_SUCH_BLOCK = (TypeError, ValueError, AttributeError, IndexError, RuntimeError)


class Ending(NamedTuple):
    """What to keep of each position, and the way from there to what leaves the model (None: it is that)."""

    hook: str
    rest: Callable[[Float[Tensor, "1 p d_model"]], Tensor] | None = None
    at_a_time: int = 1

    @classmethod
    def of(cls, model: LanguageModel, hook_point: HookPoint, sample: Int[Tensor, "rows seq"]) -> Ending:
        """The last block's MLP where it can be run by itself; else what leaves the block is kept."""
        whole, last = cls(model.final_hook), model.n_layers - 1
        middle = f"blocks.{last}.hook_resid_mid"
        is_run_anyway = hook_point.block == last and hook_point.kind in AT_THE_END
        if hook_point.block is None or is_run_anyway or middle not in model.model.hook_dict:
            return whole
        captured = model.capture(sample, [middle, model.final_hook])
        try:
            block = model.model.blocks[last]
            ending = cls(middle, lambda residual: residual + block.mlp(block.ln2(residual)), model.rows_a_pass(1))
            found = ending.leaving(captured[middle].flatten(0, 1))
        except _NO_SUCH_BLOCK:
            return whole
        return ending if _close(found, captured[model.final_hook].flatten(0, 1)) else whole

    def leaving(self, kept: Float[Tensor, "p d_model"]) -> Float[Tensor, "p d_model"]:
        """What leaves the model at each position, with the same bits whatever the other positions are."""
        if self.rest is None or not len(kept):
            return kept
        missing = -len(kept) % MIN_PRODUCT_ROWS
        padded = torch.cat([kept, kept[:1].expand(missing, -1)])
        with fast_products():
            parts = [self.rest(some[None])[0] for some in torch.split(padded, self.at_a_time)]
        return torch.cat(parts)[: len(kept)]


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    off, length = (a.float() - b.float()).norm(dim=-1), b.float().norm(dim=-1)
    return bool((off <= max(CLOSE, 2 * torch.finfo(b.dtype).eps) * length).all())
