"""What every contestant measures of itself: time, memory, bytes. The last line that it prints is the result, as JSON."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WATCH_S = 0.2  # looking takes a tenth of a millisecond: reading of every process would slow down what is measured


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


def family_bytes() -> int:
    """What this process and all that it has started, and these in turn, hold now; 0 where /proc does not tell."""
    family = [os.getpid()]
    for pid in family:  # which grows meanwhile
        with contextlib.suppress(OSError):  # it, or a thread of it, has ended
            for told in Path(f"/proc/{pid}/task").glob("*/children"):
                family += map(int, told.read_text(encoding="ascii").split())
    return sum(map(_resident_bytes, family))


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):
        return 0


class _Watch(threading.Thread):
    """Looks at the memory of this process and its workers from time to time; ``most`` is the most that it saw."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(WATCH_S):
            self.most = max(self.most, family_bytes())

    def end(self) -> int:
        self._ended.set()
        self.join()
        return self.most


class Timer:
    """Wall-clock seconds of named stages, and the peak memory at the end of each, with that of workers in other processes."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.peaks: dict[str, int] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what stands inside."""
        watch = _Watch()
        watch.start()
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
        self.peaks[name] = max(peak_bytes(), watch.end())


def task() -> dict[str, Any]:
    """What is to be done: ``folder`` of the material, ``hook_point``, ``features``, ``rows``, ``out`` and more."""
    asked: dict[str, Any] = json.loads(sys.argv[1])
    return asked


def checksum(model: Any, sae: Any, tokens: Any, hook_point: str) -> float:
    """The sum of all activations on two rows: whoever has another model or dictionary has another sum."""
    _, cache = model.run_with_cache(tokens[:2], names_filter=hook_point, return_type=None)
    return float(sae.encode(cache[hook_point]).double().sum())


def report(timer: Timer, html: Path, **more: Any) -> None:
    """Print the result; ``html`` is the page, or the folder of one."""
    files = [html] if html.is_file() else [path for path in html.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    result = {"seconds": timer.seconds, "peak_bytes": timer.peaks, "html_bytes": size, **more}
    print("\n" + json.dumps(result), flush=True)
