"""Fuzz saved files by coverage: what reaches new lines of the library is kept and changed further.

    PYTHONPATH=. python scripts/fuzz_coverage.py --seconds 600

The fuzzing of the test suite changes good files at random, and so seldom gets past two checks at once. Here a file that
reaches a line, or a jump from line to line, that none reached before joins those that are changed. A fault is told as
the tests tell it, with the file that shows it. A case takes some ten times as long, by ``sys.settrace``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fuzzing import LIBRARY, broken_bytes, broken_document, time_limit  # noqa: E402
from rendering_fixtures import make_features, make_prompt  # noqa: E402

from sae_vis import MultiFeatureData, MultiPromptData, SaeVisError, _json  # noqa: E402

TINY = {"first_group_size": 1, "n_groups": 1, "other_groups_size": 1, "n_bins": 3, "n_logits": 2, "buffer": (2, 2)}
MOST_BYTES = 20_000  # of a file that is kept: larger ones are slow, and reach nothing new


class Jumps:
    """The jumps from line to line in the library that a call made."""

    def __init__(self) -> None:
        self.seen: set[tuple[str, int, int]] = set()

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(LIBRARY):
            return None
        before = frame.f_lineno

        def line(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal before
            self.seen.add((name, before, frame.f_lineno))
            before = frame.f_lineno
            return line

        return line

    def __enter__(self) -> Self:
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)


def use(path: Path, data: bytes) -> str:
    """What a user does with a file; the answer tells how far it came."""
    path.write_bytes(data)
    try:
        loaded = _json.load_any([MultiFeatureData, MultiPromptData], path)
        saved = b"".join(_json.document(loaded))
        loaded.get_html().encode()
    except SaeVisError:
        return "refused"
    path.write_bytes(saved)
    again = _json.load_any([type(loaded)], path)
    if again != loaded:
        raise AssertionError("it is another object when it is saved and loaded again")
    return "drawn"


def main() -> None:
    """Fuzz for so many seconds, and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.simplefilter("error")
    random = Random(args.seed)
    corpus = [b"".join(_json.document(data)) for data in (make_features(2, **TINY), make_prompt(2, 4, n_top=1, **TINY))]
    known: set[tuple[str, int, int]] = set()
    faults: dict[str, bytes] = {}
    counts = {"refused": 0, "drawn": 0, "fault": 0}
    began = told = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fuzzed.json"
        while (now := time.monotonic()) - began < args.seconds:
            case = _next_case(random, corpus)
            jumps = Jumps()
            try:
                with time_limit(60.0), jumps:
                    counts[use(path, case)] += 1
            except (Exception, AssertionError) as error:  # noqa: BLE001 - every one is a find
                counts["fault"] += 1
                faults.setdefault(f"{type(error).__name__}: {error}"[:160], case)
            if jumps.seen - known:
                known |= jumps.seen
                if len(case) <= MOST_BYTES:
                    corpus.append(case)
            if now - told > 10:
                told = now
                print(f"{now - began:6.0f} s  {counts}  {len(known)} jumps, {len(corpus)} files kept", flush=True)
    print(f"{sum(counts.values())} cases: {counts}, {len(known)} jumps, {len(corpus)} files kept")
    for fault, case in faults.items():
        print(f"\n{fault}\n{case!r}")
    sys.exit(bool(faults))


def _next_case(random: Random, corpus: list[bytes]) -> bytes:
    """Half of the time a change of a tree, which takes a file that is JSON; those that came last are changed more often."""
    recent = corpus[-20:] if random.random() < 0.5 else corpus
    if random.random() < 0.5:
        try:
            return broken_document(random, [random.choice(recent).decode()])
        except (ValueError, TypeError, IndexError, RecursionError):  # not JSON any more, or no tree
            pass
    return broken_bytes(random, recent)


if __name__ == "__main__":
    main()
