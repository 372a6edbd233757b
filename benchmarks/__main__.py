"""``python -m benchmarks``: run the cases, print the table, write the JSON file."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks import environments, material, report, running
from benchmarks.cases import CASES, Case, chosen


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 0 if every contestant ran, 1 if one failed or is left out, 2 if the arguments are wrong."""
    asked = _parser().parse_args(arguments)
    cache = asked.cache or material.default_cache()
    try:
        cases = chosen(asked.cases, small=asked.tiny)
    except ValueError as error:
        _say(f"benchmarks: {error}")
        return 2
    if not asked.json.parent.is_dir():
        _say(f"benchmarks: --json: there is no folder {str(asked.json.parent)!r}.")
        return 2
    peers = {} if asked.no_peers else _peers(cases, cache)
    for shape in dict.fromkeys(case.shape for case in cases):
        material.prepare(shape, cache)
    if asked.prepare:
        return 0
    rounds = running.run_all(cases, cache, asked.repeat, peers, asked.tiny, _say)
    print(report.table(cases, rounds), flush=True)  # before the file, which may fail
    report.save(asked.json, report.document(cases, rounds))
    results = [result for case in rounds.values() for one in case for result in (one["ours"], *one["peers"].values())]
    left_out = not asked.no_peers and any(peer not in peers for case in cases for peer in case.peers)
    return int(left_out or any("error" in result for result in results))


def _peers(cases: list[Case], cache: Path) -> dict[str, Path]:
    """The interpreters of the peers that the cases need; one that cannot be installed is left out, and that is said."""
    found = {}
    for peer in environments.PEERS:
        if any(peer.name in case.peers for case in cases):
            _say(f"environment of {peer.name}")
            try:
                found[peer.name] = environments.prepare(peer, cache)
            except subprocess.CalledProcessError as error:
                _say(f"benchmarks: {peer.name} is left out: {error}")
    return found


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="sae_vis beside its peers and beside what the machine can do.",
        epilog="Cases: " + "; ".join(f"{case.name}: {case.title}" for case in CASES),
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help="names, or letters such as S (default: all)")
    parser.add_argument(
        "--repeat",
        type=int,
        choices=range(1, 101),
        metavar="N",
        default=3,
        help="rounds at most; long cases have one (default: 3)",
    )
    parser.add_argument("--no-peers", action="store_true", help="leave the other libraries out")
    parser.add_argument("--prepare", action="store_true", help="only make the environments and the models")
    parser.add_argument("--tiny", action="store_true", help="models of a moment, to try everything out")
    parser.add_argument(
        "--cache", type=Path, help=f"where these are kept (default: {_for_reading(material.default_cache())})"
    )
    parser.add_argument("--json", type=Path, default=Path("benchmark.json"), help="the file (default: benchmark.json)")
    return parser


def _for_reading(path: Path) -> str:
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


if __name__ == "__main__":
    sys.exit(main())
