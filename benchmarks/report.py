"""From what the contestants printed to the figures of each case, the table and the JSON file."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import sae_vis
from benchmarks.cases import Case
from benchmarks.running import Result

KB, GB = 1e3, 1e9
DISTURBED = 0.1  # cores that others take while something is measured

NOTE = (
    "Figures are medians over the rounds, ratios medians of those within a round. The pieces of the roofline were timed on "
    "`sampled` of `n` and multiplied. Seconds are wall-clock, without imports and without loading the model. Peak memory is "
    "that of the whole process (model and libraries included) and of its workers. The peers count the first token of each "
    "row, BOS, as any other; we leave it out."
)


def figures(case: Case, rounds: Sequence[Result], others: Mapping[str, Sequence[Result]]) -> dict[str, float]:
    """The figures of a case: medians over its rounds; each ratio is made within a round.

    ``others``: the rounds of all cases, for the one that memory is compared with.
    """
    good = [one for one in rounds if "error" not in one["ours"]]
    if not good:
        return {}
    found = {
        name: statistics.median(values)
        for name, figure in _FIGURES.items()
        if (values := [value for one in good if (value := figure(one["ours"])) is not None])
    }
    for peer in case.peers:
        results = [(one["ours"], one["peers"][peer]) for one in good if _ran(one["peers"].get(peer))]
        if results:
            found[f"times_faster_than {peer}"] = statistics.median(_total(b) / _total(a) for a, b in results)
    before = [one["ours"] for one in others.get(case.grows_from or "", ()) if "error" not in one["ours"]]
    if before:
        growth = found["peak_gb"] / statistics.median(_peak(one) / GB for one in before) - 1
        found["peak_growth_percent"] = 100 * growth
    return found


def _ran(result: Result | None) -> bool:
    return result is not None and "error" not in result


def _total(result: Result) -> float:
    """Data and HTML, in seconds."""
    return float(result["seconds"]["data"] + result["seconds"]["html"])


def _peak(result: Result) -> float:
    return float(max(result["peak_bytes"].values()))


def _of_files(name: str, unit: float = 1.0) -> Callable[[Result], float | None]:
    def figure(result: Result) -> float | None:
        value = (result["files"] or {}).get(name)
        return None if value is None else value / unit

    return figure


def _per_second(*names: str) -> Callable[[Result], float | None]:
    """Features a second, from the seconds of some pieces of work together."""

    def figure(result: Result) -> float | None:
        values = [(result["files"] or {}).get(name) for name in names]
        known = [value for value in values if value is not None]
        return float(result["features"] / sum(known)) if len(known) == len(names) else None

    return figure


_FIGURES: dict[str, Callable[[Result], float | None]] = {
    "data_s": lambda ours: ours["seconds"]["data"],
    "html_s": lambda ours: ours["seconds"]["html"],
    "minutes": lambda ours: _total(ours) / 60,
    "roofline_s": lambda ours: ours["roofline"]["total_s"],
    "times_roofline": lambda ours: _total(ours) / ours["roofline"]["total_s"],
    "data_times_roofline": lambda ours: ours["seconds"]["data"] / ours["roofline"]["total_s"],
    "peak_gb": lambda ours: _peak(ours) / GB,
    "html_kb_a_feature": lambda ours: ours["html_bytes"] / ours["features"] / KB,
    "html_kb_median_packed": _of_files("html_bytes_median_packed", KB),
    "json_gz_kb_median": _of_files("json_gz_bytes_median", KB),
    "render_features_per_s_one_process": _per_second("render_s_one_process"),
    "render_features_per_s_two_processes": _per_second("render_s_two_processes"),
    "json_features_per_s": _per_second("json_save_s", "json_load_s"),
}


# --- the table ----------------------------------------------------------------------------------------------------

_COLUMNS = ("case", "who", "data s", "HTML s", "total s", "x ours", "peak GB", "KB/feature", "roofline s", "x roofline")


def table(cases: Sequence[Case], rounds: Mapping[str, Sequence[Result]]) -> str:
    """One line for each contestant of each case; below each case its targets, and what went wrong."""
    lines: list[Sequence[str] | str] = [_COLUMNS]
    for case in cases:
        found = figures(case, rounds[case.name], rounds)
        lines += ["", f"{case.name}: {case.title}"]
        lines += [line for line in (_our_line(case, found), *_peer_lines(case, rounds[case.name], found)) if line]
        lines += [f"    {text}" for text in (*_target_lines(case, found), *_faults(rounds[case.name]))]
    widths = [max(len(line[i]) for line in lines if not isinstance(line, str)) for i in range(len(_COLUMNS))]
    return "\n".join(line if isinstance(line, str) else _aligned(line, widths) for line in lines)


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Names on the left of their columns, numbers on the right."""
    who, numbers = zip(cells[:2], widths[:2], strict=True), zip(cells[2:], widths[2:], strict=True)
    return "  ".join([*(text.ljust(w) for text, w in who), *(text.rjust(w) for text, w in numbers)]).rstrip()


def _our_line(case: Case, found: Mapping[str, float]) -> Sequence[str] | None:
    if not found:
        return None
    total = found["minutes"] * 60
    numbers = (found["data_s"], found["html_s"], total, 1.0, found["peak_gb"], found["html_kb_a_feature"])
    return case.name, "ours", *map(_short, (*numbers, found["roofline_s"], found["times_roofline"]))


def _peer_lines(case: Case, rounds: Sequence[Result], found: Mapping[str, float]) -> list[Sequence[str]]:
    lines: list[Sequence[str]] = []
    for peer in case.peers:
        results = [one["peers"][peer] for one in rounds if _ran(one["peers"].get(peer))]
        if results:
            columns: tuple[Callable[[Result], float], ...] = (
                lambda one: one["seconds"]["data"],
                lambda one: one["seconds"]["html"],
                _total,
                lambda one: found.get(f"times_faster_than {peer}", float("nan")),  # noqa: B023 - used here and now
                lambda one: _peak(one) / GB,
                lambda one: one["html_bytes"] / one["features"] / KB,
            )
            values = [_short(statistics.median(map(column, results))) for column in columns]
            lines.append((case.name, peer, *values, "", ""))
    return lines


def _target_lines(case: Case, found: Mapping[str, float]) -> list[str]:
    """Each target beside its figure."""
    lines = []
    for target in case.targets:
        value = found.get(target.figure)
        verdict = "not measured" if value is None else "met" if target.met(value) else "NOT MET"
        bound = f"{'>=' if target.at_least else '<='} {target.bound:g}"
        lines.append(f"{target.figure} {'' if value is None else _short(value) + ' '}({bound}): {verdict}")
    return lines


def _faults(rounds: Sequence[Result]) -> list[str]:
    """Who failed, and who was disturbed."""
    results = [("ours", one["ours"]) for one in rounds] + [item for one in rounds for item in one["peers"].items()]
    told = [f"{who} failed: {result['error'].splitlines()[-1]}" for who, result in results if "error" in result]
    taken = [result.get("cores_taken_by_others") or 0.0 for _, result in results]
    disturbed = [cores for cores in taken if cores > DISTURBED]
    if disturbed:
        told.append(f"disturbed: other programs took up to {max(disturbed):.2g} cores in {len(disturbed)} runs.")
    return told


def _short(value: float) -> str:
    """Three digits that matter, and no exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


# --- the file -----------------------------------------------------------------------------------------------------


def document(cases: Sequence[Case], rounds: Mapping[str, Sequence[Result]]) -> dict[str, Any]:
    """Everything: the machine, and for each case its figures, targets and all rounds as they came."""
    return {
        "sae_vis": sae_vis.__version__,
        "machine": {
            "system": platform.platform(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "torch": version("torch"),
            "transformer_lens": version("transformer-lens"),
        },
        "note": NOTE,
        "cases": {case.name: _case(case, rounds[case.name], rounds) for case in cases},
    }


def _case(case: Case, rounds: Sequence[Result], others: Mapping[str, Sequence[Result]]) -> dict[str, Any]:
    found = figures(case, rounds, others)
    targets = [
        {
            "figure": target.figure,
            "bound": target.bound,
            "at_least": target.at_least,
            "value": found.get(target.figure),
            "met": target.met(found[target.figure]) if target.figure in found else None,
        }
        for target in case.targets
    ]
    sizes = {"features": case.features, "rows": case.rows, "seq_len": case.shape.seq_len, "options": case.options}
    return {"title": case.title, **sizes, "figures": found, "targets": targets, "rounds": list(rounds)}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def save(path: Path, content: dict[str, Any]) -> None:
    """Write the JSON file."""
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
