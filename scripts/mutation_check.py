"""Break the library on purpose, one place at a time, and see that a test fails each time.

``python scripts/mutation_check.py`` applies each mutant of ``scripts/mutants.py`` in a copy of the repository in a
temporary folder, runs the tests that should catch it, and writes which test did to ``docs/mutants.md``. With ``--auto`` it
also makes mutants itself: it swaps comparisons and arithmetic, moves constants by one, negates conditions and drops ``not``
in the modules of ``mutants.AUTOMATIC``. ``--only PATTERN`` runs the mutants of these names, and leaves the others in the
report as they are.

The exit status is 1 if a mutant survives: then a test is missing.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.util
import multiprocessing
import os
import queue
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from mutants import AUTOMATIC, EQUIVALENT, MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[1]
REPORT = ROOT / "docs" / "mutants.md"
COPIED = ("sae_vis", "css", "html", "js", "tests", "docs", "pyproject.toml")
# What takes long to import is imported once, in the process that all others are forked from; nothing of ours is.
PRELOADED = ["torch", "numpy", "msgspec", "tqdm", "safetensors.torch", "transformers", "transformer_lens.model_bridge"]
# No browser runs within the limit of memory below.
PYTEST = [
    "-q",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:cov",
    "-W",
    "ignore::pytest.PytestAssertRewriteWarning",
    "-m",
    "not browser",
]
AUTOMATIC_TITLE = "## Automatic mutants"
MEMORY_LIMIT = 16 * 2**30  # of address space, of which torch takes much and uses little
CHANGE = "  ->  "  # between a line as it is and as an automatic mutant has it
WRONG_SOURCES = 99  # exit status of a child that would test other files than the mutant's


class Result(NamedTuple):
    """What became of a mutant: ``caught`` by a test, by the time limit, ``survived``, or ``broken``: no test ran."""

    mutant: Mutant
    outcome: str
    by: str = ""


# --- applying ----------------------------------------------------------------------------------------------------


def mutated(source: str, mutant: Mutant) -> str:
    """The source with the mutant in it.

    Raises:
        ValueError: if the old text is not there exactly once, or the new text changes nothing.
    """
    found = source.count(mutant.old)
    if found != 1:
        raise ValueError(f"{mutant.name}: {mutant.old!r} is {found} times in {mutant.file}, expected once.")
    if mutant.old == mutant.new:
        raise ValueError(f"{mutant.name}: old and new text are the same.")
    return source.replace(mutant.old, mutant.new)


def copy_repository(folder: Path) -> None:
    """What the tests need of the repository; no compiled files, which could outlive the source that they were made of."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "images"))
        else:
            shutil.copy2(source, folder / name)


# --- running -----------------------------------------------------------------------------------------------------


def _child(tree: str, arguments: list[str], log: str, time_limit: float) -> None:
    """In a process of its own: pytest on the copy."""
    os.setsid()
    signal.alarm(int(time_limit) + 10)  # a mutant that never ends does not outlive this program
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))  # nor does one that never ends take all memory
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(tree)
    os.environ |= {"PYTHONPATH": tree, "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True
    sys.path.insert(0, tree)
    import pytest

    spec = importlib.util.find_spec("sae_vis")
    if spec is None or not str(spec.origin).startswith(tree):
        sys.exit(WRONG_SOURCES)
    sys.exit(int(pytest.main([*PYTEST, *arguments])))


class Runner:
    """Runs tests on copies of the repository, ``jobs`` at a time."""

    def __init__(self, folder: Path, jobs: int, time_limit: float) -> None:
        self.jobs, self.time_limit = jobs, time_limit
        self.processes = multiprocessing.get_context("forkserver")
        self.processes.set_forkserver_preload(PRELOADED)
        self.trees: queue.Queue[Path] = queue.Queue()
        for number in range(jobs):
            tree = folder.resolve() / f"copy_{number}"
            copy_repository(tree)
            self.trees.put(tree)

    def tests(self, tree: Path, arguments: Sequence[str], time_limit: float) -> tuple[int | None, str]:
        """Pytest's exit status (None: it took too long) and output."""
        log = tree.with_suffix(".log")
        log.unlink(missing_ok=True)  # what an earlier mutant made fail is not this one's
        process = self.processes.Process(target=_child, args=(str(tree), list(arguments), str(log), time_limit))
        process.start()
        process.join(time_limit)
        status = process.exitcode
        if status is None and process.pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with what its tests have started
            process.kill()
            process.join()
        return status, log.read_text("utf-8", errors="replace") if log.exists() else ""

    def check(self, mutant: Mutant) -> Result:
        """Apply a mutant to a copy, run its tests, put the copy right again."""
        tree = self.trees.get()
        try:
            path = tree / mutant.file
            original = path.read_text("utf-8")
            path.write_text(mutated(original, mutant), "utf-8")
            try:
                status, output = self.tests(tree, ["-x", *mutant.tests], self.time_limit)
            finally:
                path.write_text(original, "utf-8")
        finally:
            self.trees.put(tree)
        return Result(mutant, *_outcome(status, output, self.time_limit))

    def check_all(self, mutants: Sequence[Mutant]) -> list[Result]:
        """All of them, in their order, told as they come."""
        with ThreadPoolExecutor(self.jobs) as pool:
            results = []
            for number, result in enumerate(pool.map(self.check, mutants), 1):
                results.append(result)
                by = result.by or result.mutant.breaks
                print(f"{number}/{len(mutants)} {result.mutant.name}: {result.outcome} {by}", flush=True)
        return results


def _outcome(status: int | None, output: str, time_limit: float) -> tuple[str, str]:
    if status is None:
        return "caught", f"the time limit of {time_limit:g} s"
    if status == 0:
        return "survived", ""
    failed = re.search(r"^(?:FAILED|ERROR) (\S+?\.py::[^\s\[]+(?:\[.*\])?)(?: - .*)?$", output, re.MULTILINE)
    if status == 1 and failed:
        return "caught", failed[1]
    return "broken", f"pytest ended with status {status}: {output.strip()[-600:]}"


# --- automatic mutants -------------------------------------------------------------------------------------------

COMPARISONS = {
    ast.Lt: ("<", ["<=", ">="]),
    ast.LtE: ("<=", ["<", ">"]),
    ast.Gt: (">", [">=", "<="]),
    ast.GtE: (">=", [">", "<"]),
    ast.Eq: ("==", ["!="]),
    ast.NotEq: ("!=", ["=="]),
    ast.Is: ("is", ["is not"]),
    ast.IsNot: ("is not", ["is"]),
    ast.In: ("in", ["not in"]),
    ast.NotIn: ("not in", ["in"]),
}
ARITHMETIC = {
    ast.Add: ("+", ["-"]),
    ast.Sub: ("-", ["+"]),
    ast.Mult: ("*", ["/"]),
    ast.Div: ("/", ["*"]),
    ast.FloorDiv: ("//", ["/"]),
    ast.Mod: ("%", ["//"]),
    ast.Pow: ("**", ["*"]),
    ast.BitAnd: ("&", ["|"]),
    ast.BitOr: ("|", ["&"]),
    ast.BitXor: ("^", ["|"]),
    ast.RShift: (">>", ["<<"]),
    ast.MatMult: ("@", ["*"]),
}
LOGIC = {ast.And: ("and", ["or"]), ast.Or: ("or", ["and"])}
Span = tuple[int, int]  # of bytes of the source


class _Places:
    """Where the nodes of a module are in its source, in bytes."""

    def __init__(self, source: bytes) -> None:
        self.source = source
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))

    def of(self, node: ast.expr) -> Span:
        end_line, end_column = node.end_lineno or 0, node.end_col_offset or 0
        return self.starts[node.lineno - 1] + node.col_offset, self.starts[end_line - 1] + end_column

    def operator(self, left: ast.expr, right: ast.expr, text: str) -> Span:
        """The operator between two operands, which may stand in parentheses."""
        start, stop = self.of(left)[1], self.of(right)[0]
        at = self.source.index(text.encode(), start, stop)
        return at, at + len(text)


def _of_operators(node: ast.AST, places: _Places) -> Iterator[tuple[Span, str]]:
    """Operators swapped, or dropped where they stand before their operand: what to replace, by what."""
    swaps: list[tuple[ast.expr, ast.expr, tuple[str, list[str]]]] = []
    if isinstance(node, ast.Compare):
        operands = [node.left, *node.comparators]
        swaps = [(operands[i], operands[i + 1], COMPARISONS[type(op)]) for i, op in enumerate(node.ops)]
    elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        swaps = [(node.left, node.right, ARITHMETIC[type(node.op)])]
    elif isinstance(node, ast.BoolOp):
        swaps = [(left, right, LOGIC[type(node.op)]) for left, right in pairwise(node.values)]
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub | ast.Invert):
        yield (places.of(node)[0], places.of(node.operand)[0]), ""
    for left, right, (text, others) in swaps:
        yield from ((places.operator(left, right, text), other) for other in others)


def _of_values(node: ast.AST, places: _Places) -> Iterator[tuple[Span, str]]:
    """Constants moved by one, and conditions negated."""
    conditions: list[ast.expr] = []
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield places.of(node), str(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield from ((places.of(node), repr(node.value + step)) for step in (1, -1))
    elif isinstance(node, ast.If | ast.IfExp | ast.While):
        conditions = [node.test]
    elif isinstance(node, ast.comprehension):
        conditions = node.ifs
    for test in conditions:
        if not isinstance(test, ast.Compare | ast.UnaryOp):  # of those the operator is changed, which is the same
            start, stop = places.of(test)
            yield (start, stop), f"(not ({places.source[start:stop].decode()}))"


def _nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Every node that runs: no type hints, and no f-strings, whose parts have no places of their own before Python 3.12."""
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns") or isinstance(node, ast.JoinedStr):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _nodes(child)


def automatic_mutants(file: str, tests: tuple[str, ...]) -> Iterator[Mutant]:
    """Every mutant of a module that the tables above make; each replaces the whole source."""
    text = (ROOT / file).read_text("utf-8")
    source = text.encode()
    places = _Places(source)
    for node in _nodes(ast.parse(source)):
        for (start, stop), other in (*_of_operators(node, places), *_of_values(node, places)):
            new = (source[:start] + other.encode() + source[stop:]).decode()
            line = source.count(b"\n", 0, start)
            before, after = text.splitlines()[line].strip(), new.splitlines()[line].strip()
            yield Mutant(f"{file}:{line + 1}", f"{before}{CHANGE}{after}", file, text, new, tests)


def why_equivalent(mutant: Mutant) -> str | None:
    """Why the mutant is known to change nothing that anybody can see; None if it is not."""
    return EQUIVALENT.get((mutant.file, mutant.breaks.partition(CHANGE)[2]))


def is_equivalent(mutant: Mutant) -> bool:
    """Whether the mutant is known to change nothing that anybody can see."""
    return why_equivalent(mutant) is not None


# --- the report --------------------------------------------------------------------------------------------------

INTRODUCTION = """\
# What the tests catch

Each mutant breaks the library in one place, as a mistake would; the tests named for it must fail. `scripts/mutants.py` holds
the mutants, `python scripts/mutation_check.py` applies them one at a time to a copy of the repository and writes this file.
"""


def hand_made_part(results: Sequence[Result]) -> str:
    """The table of mutants, those that survive first."""
    caught = [result for result in results if result.outcome == "caught"]
    left = [result for result in results if result.outcome != "caught"]
    lines = [INTRODUCTION, f"{len(results)} mutants by hand, {len(caught)} caught, {len(left)} left.", ""]
    if left:
        lines += ["## Left", "", "| mutant | what it breaks | outcome |", "|---|---|---|"]
        lines += [f"| `{r.mutant.name}` | {_cell(r.mutant.breaks)} | {r.outcome} |" for r in left] + [""]
    for file in dict.fromkeys(result.mutant.file for result in caught):
        lines += [f"## `{file}`", "", "| mutant | what it breaks | caught by |", "|---|---|---|"]
        own = (result for result in caught if result.mutant.file == file)
        lines += [f"| `{r.mutant.name}` | {_cell(r.mutant.breaks)} | {_caught_by(r.by)} |" for r in own] + [""]
    return "\n".join(lines)


def automatic_part(results: Sequence[Result]) -> str:
    """Counts for each module, what is left, and why the equivalent ones are."""
    lines = [
        AUTOMATIC_TITLE,
        "",
        "`--auto` swaps comparisons and arithmetic, moves constants by one, negates conditions",
    ]
    lines += [
        "and drops `not`. A mutant that no test can catch, because it changes nothing, is listed with the reason.",
        "",
    ]
    lines += ["| module | made | caught | equivalent | left |", "|---|---|---|---|---|"]
    survivors = [result for result in results if result.outcome != "caught"]
    for file in dict.fromkeys(result.mutant.file for result in results):
        made = sum(result.mutant.file == file for result in results)
        own = [result for result in survivors if result.mutant.file == file]
        equivalent = sum(is_equivalent(result.mutant) for result in own)
        lines.append(f"| `{file}` | {made} | {made - len(own)} | {equivalent} | {len(own) - equivalent} |")
    left = [result.mutant for result in survivors if not is_equivalent(result.mutant)]
    lines += ["", *(f"- left: `{mutant.name}`: `{mutant.breaks}`" for mutant in left)] if left else []
    reasons: dict[str, list[str]] = {}
    for mutant in (result.mutant for result in survivors):
        reason = why_equivalent(mutant)
        if reason:
            reasons.setdefault(reason, []).append(mutant.breaks)
    for reason, changes in reasons.items():
        lines += ["", f"{reason}", "", *(f"- `{change}`" for change in dict.fromkeys(changes))]
    return "\n".join(lines) + "\n"


def told_before(report: str) -> Iterator[Result]:
    """What a report tells of the mutants by hand that still break what it says."""
    known = {(mutant.name, _cell(mutant.breaks)): mutant for mutant in MUTANTS}
    for name, breaks, told in re.findall(r"^\| `(\S+)` \| (.*) \| (.*) \|$", report, re.MULTILINE):
        if (name, breaks) in known:
            outcome = told if told in ("survived", "broken") else "caught"
            yield Result(known[name, breaks], outcome, told.strip("`") if outcome == "caught" else "")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _caught_by(test: str) -> str:
    """A test without its parameters, which may be long, and without the folder."""
    return f"`{test.partition('[')[0].removeprefix('tests/')}`" if "::" in test else test


# --- the command -------------------------------------------------------------------------------------------------


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="tests at the same time (2)")
    parser.add_argument(
        "--time-limit", type=float, default=300.0, help="seconds that the tests of a mutant may take (300)"
    )
    parser.add_argument("--only", metavar="PATTERN", action="append", help="only the mutants of these names")
    parser.add_argument("--auto", action="store_true", help="automatic mutants too")
    return parser.parse_args(given)


def passes_unbroken(runner: Runner, mutants: Iterable[Mutant]) -> bool:
    """A test that fails anyway would catch everything."""
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    tree = runner.trees.get()
    status, output = runner.tests(tree, tests, 20 * runner.time_limit)
    runner.trees.put(tree)
    if status != 0:
        print(f"The tests do not pass as they are (status {status}):\n{output[-3000:]}")
    return status == 0


def chosen(mutants: Iterable[Mutant], patterns: Sequence[str] | None) -> list[Mutant]:
    """The mutants of these names; all without patterns."""
    return [mutant for mutant in mutants if not patterns or any(fnmatchcase(mutant.name, p) for p in patterns)]


def write_report(by_hand: Sequence[Result], automatic: Sequence[Result] | None) -> None:
    """The report with what was run now; what was not run stays as it was told there."""
    old = REPORT.read_text("utf-8") if REPORT.exists() else ""
    told, title, rest = old.partition(AUTOMATIC_TITLE)
    results = {result.mutant.name: result for result in [*told_before(told), *by_hand]}
    in_order = [results[mutant.name] for mutant in MUTANTS if mutant.name in results]
    end = title + rest if automatic is None else automatic_part(automatic)
    REPORT.write_text(f"{hand_made_part(in_order)}\n{end}".rstrip() + "\n", "utf-8")


def main(given: Sequence[str] | None = None) -> int:
    """Run the mutants; 0 if every one is caught."""
    options = arguments(given)
    made = (mutant for file, tests in AUTOMATIC.items() for mutant in automatic_mutants(file, tests))
    by_hand, automatic = chosen(MUTANTS, options.only), chosen(made, options.only) if options.auto else []
    for mutant in by_hand:
        mutated((ROOT / mutant.file).read_text("utf-8"), mutant)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sae_vis_mutants_") as folder:
        runner = Runner(Path(folder), options.jobs, options.time_limit)
        if not passes_unbroken(runner, [*by_hand, *automatic]):
            return 2
        hand_results, automatic_results = runner.check_all(by_hand), runner.check_all(automatic)
    write_report(hand_results, automatic_results if options.auto and not options.only else None)
    left = [r for r in [*hand_results, *automatic_results] if r.outcome != "caught" and not is_equivalent(r.mutant)]
    for result in left:
        print(f"LEFT {result.mutant.name}: {result.mutant.breaks} ({result.outcome} {result.by})")
    total = len(hand_results) + len(automatic_results)
    print(f"{total} mutants, {len(left)} left, in {time.monotonic() - started:.0f} s.")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
