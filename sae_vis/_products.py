"""Products of matrices on a CPU, by the faster of the two libraries that torch brings along.

For float32 torch asks MKL, which uses no more than AVX2 on processors of other makers than Intel. oneDNN uses AVX-512 there,
and is twice as fast, so it is asked directly. Each library gives an entry the same bits whatever rows and columns stand
beside it, but for products of a few rows or columns (``MIN_PRODUCT_ROWS`` and ``MIN_PRODUCT_COLUMNS`` of ``model_fns``).
"""

from __future__ import annotations

import functools
import platform
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

PIECE = 2**22  # numbers of a result that are computed at a time: the C library gives them memory that was used before
LINEAR = "_linear_pointwise"  # of oneDNN
FEWEST = 32  # rows of a piece: fewer may have other bits


def product(a: Float[Tensor, "*n k"], b: Float[Tensor, "k m"], out: Tensor | None = None) -> Float[Tensor, "*n m"]:
    """``a @ b`` by the faster library, written to ``out`` if that is given."""
    if not has_fast_product(a, b):
        return torch.matmul(a, b, out=out)
    room = None if out is None else out.view(-1, b.shape[1])
    return fast_product(a.reshape(-1, len(b)), b, room).view(*a.shape[:-1], b.shape[1])


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


def fast_products() -> AbstractContextManager[object]:
    """Within it, oneDNN multiplies in the linear layers of a model too, where that is faster."""
    return _FastLayers() if onednn_is_faster() and not torch.is_grad_enabled() else nullcontext()


class _FastLayers(TorchFunctionMode):
    """Takes the linear layers out of what torch is asked for: those with a matrix of weights, and rows enough."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.linear and not kwargs and len(args) in (2, 3):
            x, weight, bias = (*args, None)[:3]
            found = _layer(x, weight.T if isinstance(weight, Tensor) and weight.ndim == 2 else None, bias)
        elif func is torch.addmm and not kwargs and len(args) == 3:
            found = _layer(args[1], args[2], args[0])
        else:
            return func(*args, **(kwargs or {}))
        return func(*args) if found is None else found


def _layer(x: Any, b: Any, bias: Any) -> Tensor | None:
    """``x @ b + bias``; None where oneDNN is not to compute it."""
    kinds = {type(one) for one in (x, b, bias) if one is not None}
    if not kinds <= {Tensor, nn.Parameter} or b is None or b.ndim != 2 or not x.ndim:
        return None
    if x.shape[-1] != len(b) or x.numel() < FEWEST * len(b):
        return None
    fits = bias is None or (bias.shape == b.shape[1:] and (bias.dtype, bias.device) == (b.dtype, b.device))
    if not fits or b.shape[1] < FEWEST or not has_fast_product(x, b):
        return None
    return _multiplied(x.reshape(-1, len(b)), laid_out(b).T, bias).view(*x.shape[:-1], b.shape[1])


def laid_out(b: Float[Tensor, "k m"]) -> Float[Tensor, "k m"]:
    """The same matrix, as products like it: a part of the columns of a wider one is very slow to multiply with."""
    usable = b.is_contiguous() or b.T.is_contiguous() or b.device.type != "cpu"
    return b if usable or not onednn_is_faster() else b.T.contiguous().T


def _multiplied(a: Tensor, weight: Float[Tensor, "m k"], bias: Tensor | None = None) -> Tensor:
    # What torch.compile has linear layers do; nothing public leads there but for other number formats.
    result: Tensor = getattr(torch.ops.mkldnn, LINEAR)(a.contiguous(), weight, bias, "none", [], "")
    return result


@functools.cache
def onednn_is_faster() -> bool:
    """Whether oneDNN is there, and this processor one that MKL does not do its best on."""
    return (
        all(library.is_available() for library in (torch.backends.mkldnn, torch.backends.mkl))
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and "GenuineIntel" not in _maker()
        and _works()
    )


def _works() -> bool:
    """Whether what is asked of oneDNN is there and does what it is taken for: torch may change what has no public name."""
    a = torch.arange(64 * 64, dtype=torch.float32, device="cpu").view(64, 64) % 7  # products of whole numbers are exact
    try:
        return torch.equal(_multiplied(a, a, a[0]), a @ a.T + a[0])
    except Exception:  # noqa: BLE001 - whatever it has become
        return False


def _maker() -> str:
    """What tells who made the processor."""
    try:
        return Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:  # not on Linux
        return platform.processor()
