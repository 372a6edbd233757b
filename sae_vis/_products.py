"""Products of matrices on a CPU, by the faster of the two libraries that torch brings along.

For float32 torch asks MKL, which uses no more than AVX2 on processors of other makers than Intel. oneDNN uses AVX-512 there,
and is twice as fast, so it is asked directly. Each library gives an entry the same bits whatever rows and columns stand
beside it, but for products of a few rows or columns (``MIN_PRODUCT_ROWS`` and ``MIN_PRODUCT_COLUMNS`` of ``model_fns``).
"""

from __future__ import annotations

import functools
import platform
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

PIECE = 2**22  # numbers of a result that are computed at a time: the C library gives them memory that was used before
LINEAR = "_linear_pointwise"  # of oneDNN
FEWEST = 32  # rows of a piece: fewer may have other bits


def has_fast_product(a: Float[Tensor, "*n k"], b: Float[Tensor, "k m"]) -> bool:
    """Whether oneDNN is to multiply them."""
    usual = all(one.device.type == "cpu" and one.dtype == torch.float32 and one.numel() for one in (a, b))
    recorded = torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)
    return usual and not recorded and onednn_is_faster()


def fast_product(a: Float[Tensor, "n k"], b: Float[Tensor, "k m"], out: Tensor | None = None) -> Float[Tensor, "n m"]:
    """``a @ b`` by oneDNN."""
    weight, n = laid_out(b).T, len(a)
    if out is None:
        return _multiplied(a, weight)
    step = max(FEWEST, PIECE // len(weight))
    ends = [*range(step, n - FEWEST + 1, step), n]  # no piece is smaller than FEWEST, if there are as many rows
    for start, stop in pairwise([0, *ends]):
        out[start:stop] = _multiplied(a[start:stop], weight)
    return out


def laid_out(b: Float[Tensor, "k m"]) -> Float[Tensor, "k m"]:
    """The same matrix, as products like it: a part of the columns of a wider one is very slow to multiply with."""
    usable = b.is_contiguous() or b.T.is_contiguous() or b.device.type != "cpu"
    return b if usable or not onednn_is_faster() else b.T.contiguous().T


def _multiplied(a: Tensor, weight: Float[Tensor, "m k"]) -> Tensor:
    # What torch.compile has linear layers do; nothing public leads there but for other number formats.
    result: Tensor = getattr(torch.ops.mkldnn, LINEAR)(a.contiguous(), weight, None, "none", [], "")
    return result


@functools.cache
def onednn_is_faster() -> bool:
    """Whether oneDNN is there, and this processor one that MKL does not do its best on."""
    return (
        all(library.is_available() for library in (torch.backends.mkldnn, torch.backends.mkl))
        and hasattr(torch.ops.mkldnn, LINEAR)
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and "GenuineIntel" not in _maker()
    )


def _maker() -> str:
    """What tells who made the processor."""
    try:
        return Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:  # not on Linux
        return platform.processor()
