"""The list of mutants fits the present sources, its report is the list's, and what makes mutants makes the right ones."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import mutants  # noqa: E402 - from the folder of scripts
import mutation_check  # noqa: E402

sys.path.remove(str(ROOT / "scripts"))


def test_every_mutant_is_one_change_of_the_present_source_that_still_compiles():
    for mutant in mutants.MUTANTS:
        broken = mutation_check.mutated((ROOT / mutant.file).read_text("utf-8"), mutant)
        compile(broken, f"{mutant.file} with {mutant.name}", "exec")


def test_the_tests_of_every_mutant_are_there():
    for named in {test for mutant in mutants.MUTANTS for test in mutant.tests}:
        file, _, function = named.partition("::")
        tree = ast.parse((ROOT / file).read_text("utf-8"))
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert any(name.startswith("test_") for name in names)
        assert not function or function in names


def test_no_name_is_there_twice():
    names = [mutant.name for mutant in mutants.MUTANTS]
    assert sorted(set(names)) == sorted(names)


def test_the_report_is_that_of_the_list_and_nothing_is_left():
    by_hand, _, automatic = mutation_check.REPORT.read_text("utf-8").partition(mutation_check.AUTOMATIC_TITLE)
    assert re.findall(r"^\| `([a-z0-9-]+)` \|", by_hand, re.MULTILINE) == [
        mutant.name
        for file in dict.fromkeys(mutant.file for mutant in mutants.MUTANTS)
        for mutant in mutants.MUTANTS
        if mutant.file == file
    ]
    assert "## Left" not in by_hand
    assert "- left:" not in automatic


# --- the script itself -----------------------------------------------------------------------------------------------


def mutant(old: str, new: str) -> mutants.Mutant:
    return mutants.Mutant("name", "what", "file.py", old, new, ("tests/test_x.py",))


@pytest.mark.parametrize(("old", "new", "told"), [("d", "e", "0 times"), ("a", "b", "2 times"), ("b", "b", "the same")])
def test_a_mutant_that_does_not_apply_is_an_error(old, new, told):
    with pytest.raises(ValueError, match=told):
        mutation_check.mutated("a b a", mutant(old, new))


@pytest.mark.parametrize(
    ("status", "output", "expected"),
    [
        (0, "1 passed", ("survived", "")),
        (None, "", ("caught", "the time limit of 5 s")),
        (1, "FAILED tests/test_x.py::test_a[1 - 2] - assert 0", ("caught", "tests/test_x.py::test_a[1 - 2]")),
        (1, "FAILED tests/test_x.py::test_a", ("caught", "tests/test_x.py::test_a")),
        (1, "ERROR tests/test_x.py::test_a - no fixture", ("caught", "tests/test_x.py::test_a")),
    ],
)
def test_what_pytest_says_is_read(status, output, expected):
    assert mutation_check._outcome(status, f"...\n{output}\n", 5.0) == expected


@pytest.mark.parametrize(
    ("status", "output"), [(2, "ERROR tests/test_x.py - SyntaxError"), (5, "no tests ran"), (99, ""), (-9, "")]
)
def test_where_no_test_ran_nothing_was_caught(status, output):
    assert mutation_check._outcome(status, output, 5.0)[0] == "broken"


@pytest.mark.parametrize(
    ("line", "changes"),
    [
        ("x = a < b", ["x = a <= b", "x = a >= b"]),
        ("x = (a) - (b * c)", ["x = (a) + (b * c)", "x = (a) - (b / c)"]),
        ("x = ä + 2", ["x = ä - 2", "x = ä + 3", "x = ä + 1"]),
        ("x = not a", ["x = a"]),
        ("x = -a", ["x = a"]),
        ("x = f(True)", ["x = f(False)"]),
        ("x = a and b", ["x = a or b"]),
        ("x = a if b else c", ["x = a if (not (b)) else c"]),
        ("x = [a for a in b if c]", ["x = [a for a in b if (not (c))]"]),
        ("x = a not in b", ["x = a in b"]),
        ("x: f(1) = a", []),
        ("x = f'{a + 1}'", []),
    ],
)
def test_automatic_mutants(line, changes, tmp_path, monkeypatch):
    (tmp_path / "module.py").write_text(f"{line}\n", "utf-8")
    monkeypatch.setattr(mutation_check, "ROOT", tmp_path)
    found = list(mutation_check.automatic_mutants("module.py", ("tests/test_x.py",)))
    assert [one.new for one in found] == [f"{change}\n" for change in changes]
    assert [one.breaks for one in found] == [f"{line}  ->  {change}" for change in changes]


def test_the_report_lists_what_is_left_first():
    results = [
        mutation_check.Result(mutant("a", "b"), "caught", "tests/test_x.py::test_a[0]"),
        mutation_check.Result(mutant("a", "b")._replace(name="other"), "survived"),
    ]
    report = mutation_check.hand_made_part(results)
    assert "2 mutants by hand, 1 caught, 1 left." in report
    assert report.index("| `other` | what | survived |") < report.index("| `name` | what | `test_x.py::test_a` |")


def test_a_report_can_be_read_again_to_keep_what_is_not_run():
    first, second = mutants.MUTANTS[:2]
    results = [
        mutation_check.Result(first, "caught", "tests/test_x.py::test_a[0]"),
        mutation_check.Result(second, "survived"),
    ]
    report = mutation_check.hand_made_part(results)
    again = list(mutation_check.told_before(report))
    assert {result.mutant.name: result[1:] for result in again} == {
        first.name: ("caught", "test_x.py::test_a"),
        second.name: ("survived", ""),
    }
    assert mutation_check.hand_made_part(again[::-1]) == report


def test_every_equivalent_mutant_is_one_that_is_made():
    made = {
        (one.file, one.breaks.partition(mutation_check.CHANGE)[2])
        for file, tests in mutants.AUTOMATIC.items()
        for one in mutation_check.automatic_mutants(file, tests)
    }
    assert set(mutants.EQUIVALENT) <= made
