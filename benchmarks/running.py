"""Run contestants, each in a fresh process, with a time limit."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import environments, material
from benchmarks.cases import Case

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = Path(__file__).resolve().parent / "peers"
SAME = 1e-3  # relative: how far the activations of two versions of a model may be apart
TOLD = 2000  # characters of what a failed program said last

Result = dict[str, Any]  # what a contestant printed, or {"error": why there is nothing}


def run_all(
    cases: Sequence[Case], cache: Path, repeat: int, peers: Mapping[str, Path], small: bool, say: Callable[[str], None]
) -> dict[str, list[Result]]:
    """The rounds of each case: ``{"ours": result, "peers": {name: result}}``. All that is compared ran in one round.

    ``peers``: the interpreters of those that take part. Where two cases ask a peer for the same, it runs once a round.
    """
    rounds: dict[str, list[Result]] = {case.name: [] for case in cases}
    for number in range(repeat):
        done: dict[tuple[object, ...], Result] = {}
        for case in cases:
            if number >= case.repeats:
                continue
            say(f"{case.name}, round {number + 1} of {min(repeat, case.repeats)}: ours")
            ours = run_ours(case, cache, small)
            others = {}
            for peer in environments.PEERS:
                if peer.name in case.peers and peer.name in peers:
                    key = (peer.name, case.shape, case.features, case.rows)
                    if key not in done:
                        say(f"{case.name}, round {number + 1} of {min(repeat, case.repeats)}: {peer.name}")
                        done[key] = run_peer(peer, peers[peer.name], case, cache)
                    others[peer.name] = compared(done[key], ours)
            rounds[case.name].append({"ours": ours, "peers": others})
    return rounds


def run_ours(case: Case, cache: Path, small: bool) -> Result:
    """Our own run of a case, with the roofline."""
    with tempfile.TemporaryDirectory(prefix="sae_vis-benchmark-") as out:
        task = {"case": case.name, "tiny": small, "cache": str(cache), "out": out}
        command = [sys.executable, "-m", "benchmarks.ours", json.dumps(task)]
        return _run(command, case.limit_s)


def run_peer(peer: environments.Peer, python: Path, case: Case, cache: Path) -> Result:
    """A peer's run of a case."""
    folder = material.prepare(case.shape, cache)
    with tempfile.TemporaryDirectory(prefix="sae_vis-benchmark-") as out:
        task = {
            "folder": str(folder),
            "hook_point": case.shape.hook_point,
            "features": list(range(case.features)),
            "rows": case.rows,
            "out": out,
        }
        command = [str(python), str(PROGRAMS / peer.program), json.dumps(task)]
        return _run(command, case.limit_s, environments.clean_environment())


def compared(peer: Result, ours: Result) -> Result:
    """The peer's result, or an error if it had another model or dictionary than we had."""
    if "error" in peer or "error" in ours:
        return peer
    theirs, own = peer["checksum"], ours["checksum"]
    if abs(theirs - own) <= SAME * abs(own):
        return peer
    return {"error": f"Its activations are not ours: they sum to {theirs} where ours sum to {own}."}


def _run(command: list[str], limit_s: float, environment: Mapping[str, str] | None = None) -> Result:
    others = _Others()
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=limit_s, env=environment, cwd=ROOT
        )
    except subprocess.TimeoutExpired:
        return {"error": f"It took longer than {limit_s:g} s."}
    taken = others.cores_taken()
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        return {"error": f"It ended with status {done.returncode}: {done.stderr.strip()[-TOLD:]}"}
    try:
        result = json.loads(lines[-1])
    except ValueError:
        return {"error": f"Its last line is no result: {lines[-1][:TOLD]}"}
    if not isinstance(result, dict):
        return {"error": f"Its last line is no result: {lines[-1][:TOLD]}"}
    return {**result, "cores_taken_by_others": taken}


class _Others:
    """How much of the machine others take from now on: a disturbed run can be told by it."""

    def __init__(self) -> None:
        self._start = time.perf_counter(), _others_s()

    def cores_taken(self) -> float | None:
        """Cores, on average; None where /proc does not tell."""
        start, before = self._start
        now = _others_s()
        return None if before is None or now is None else max(0.0, now - before) / (time.perf_counter() - start)


def _others_s() -> float | None:
    """Seconds that the cores have worked since the machine was started, but for programs that were started here and ended."""
    try:
        times = [int(value) for value in Path("/proc/stat").read_text(encoding="ascii").split()[1:9]]
        user, nice, system, _, _, interrupts, soft_interrupts, stolen = times
    except (OSError, ValueError):
        return None
    own = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = (user + nice + system + interrupts + soft_interrupts + stolen) / os.sysconf("SC_CLK_TCK")
    return busy - own.ru_utime - own.ru_stime
