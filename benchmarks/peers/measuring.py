"""What every contestant measures of itself: time, memory, bytes. The last line that it prints is the result, as JSON."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def peak_bytes() -> int:
    """The most memory that this process has held until now.

    Linux says it of this program alone; ``ru_maxrss`` also counts the moment before it was started from another one.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Timer:
    """Wall-clock seconds of named stages, and the peak memory at the end of each."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.peaks: dict[str, int] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what stands inside."""
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
        self.peaks[name] = peak_bytes()


def task() -> dict[str, Any]:
    """What is to be done: ``folder`` of the material, ``hook_point``, ``features``, ``rows``, ``out`` and more."""
    asked: dict[str, Any] = json.loads(sys.argv[1])
    return asked


def checksum(model: Any, sae: Any, tokens: Any, hook_point: str) -> float:
    """The sum of all activations on two rows: whoever has another model or dictionary has another sum."""
    _, cache = model.run_with_cache(tokens[:2], names_filter=hook_point, return_type=None)
    return float(sae.encode(cache[hook_point]).double().sum())


def report(timer: Timer, html: Path, **more: Any) -> None:
    """Print the result."""
    result = {"seconds": timer.seconds, "peak_bytes": timer.peaks, "html_bytes": html.stat().st_size, **more}
    print("\n" + json.dumps(result), flush=True)
