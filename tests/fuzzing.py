"""Fuzzing: thousands of broken inputs from one seed, each of which must give a ``SaeVisError`` or a right answer, in time.

``survey`` runs the cases of a target; what makes them is here too. A case depends on its target, the seed and its number
alone, so a failure names all that it takes to see it again::

    SAE_VIS_FUZZ_CASE=1234 pytest tests/test_fuzz_files.py -k tree     # one case, with its whole traceback
    SAE_VIS_FUZZ_SEED=7 SAE_VIS_FUZZ_TIMES=20 pytest tests/test_fuzz_files.py     # other cases, and twenty times as many
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import re
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import sae_vis
from sae_vis import SaeVisError

C = TypeVar("C")
SEED = int(os.environ.get("SAE_VIS_FUZZ_SEED", "0"))
TIMES = float(os.environ.get("SAE_VIS_FUZZ_TIMES", "1"))
CASE_SECONDS = float(os.environ.get("SAE_VIS_FUZZ_SECONDS", "20"))  # a case takes milliseconds; the machine may be busy
LONGEST_MESSAGE = 4000
LIBRARY = str(Path(sae_vis.__file__).parent)


class HangError(BaseException):
    """A case took too long. No ``Exception``, so that nothing on its way takes it for its own."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise ``HangError`` after so many seconds, where the system has alarms."""

    def ring(*_: object) -> None:
        raise HangError(f"took longer than {seconds:g} s")

    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def survey(target: str, n: int, make: Callable[[Random], C], check: Callable[[C], str]) -> Counter[str]:
    """Run ``check`` on ``n`` cases from ``make`` and count its answers; a ``SaeVisError`` counts as "refused".

    Raises:
        AssertionError: if a case did anything else. One case of each kind of fault is told.
    """
    only = os.environ.get("SAE_VIS_FUZZ_CASE")
    numbers = range(int(n * TIMES)) if only is None else [int(only)]
    answers: Counter[str] = Counter()
    faults: dict[str, str] = {}
    faulthandler.dump_traceback_later(
        600 * max(1.0, TIMES), exit=True
    )  # the last resort, of a hang that hears no alarm
    try:
        for number in numbers:
            case = make(Random(f"{target}/{SEED}/{number}"))
            try:
                with time_limit(CASE_SECONDS):
                    answers[check(case)] += 1
            except SaeVisError as error:
                answers["refused"] += 1
                fault = _fault_of_message(str(error))
                if fault:
                    faults.setdefault(fault, _told(target, number, case, error))
            except (Exception, HangError) as error:
                if only is not None:
                    raise
                answers["fault"] += 1
                faults.setdefault(_kind_of(error), _told(target, number, case, error))
    finally:
        faulthandler.cancel_dump_traceback_later()
    assert not faults, f"{len(faults)} kinds of faults, {dict(answers)}:\n\n" + "\n\n".join(faults.values())
    return answers


def _fault_of_message(message: str) -> str:
    if not message.strip():
        return "an error without a message"
    return "a message too long to read" if len(message) > LONGEST_MESSAGE else ""


def _kind_of(error: BaseException) -> str:
    """The type of an error and the last place in the library on its way: faults of one kind are told once."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(LIBRARY)]
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "outside"
    return f"{type(error).__name__} at {place}"


def _told(target: str, number: int, case: object, error: BaseException) -> str:
    shown = ascii(case)
    shown = shown if len(shown) < 1500 else f"{shown[:700]} ... {shown[-700:]}"
    return (
        f"{target}, seed {SEED}, case {number}: {_kind_of(error)}: {ascii(str(error))[:300]}\n"
        f"  case: {shown}\n  again: SAE_VIS_FUZZ_SEED={SEED} SAE_VIS_FUZZ_CASE={number}"
    )


# --- values of every type ----------------------------------------------------------------------------------------

XSS = "</script><script>alert(1)</script>"
TEXTS = [
    *("", " ", "x", "0", "-1", "8", "1e3", "01", "٣", "null", "true", "\x00", "\u2028", "\ud800", "\udfff\ud800"),
    *(
        "\ufeff",
        "\u202e",
        "a\u0301" * 60,
        "é",
        "😀",
        "{{ x }}",
        "${x}",
        XSS,
        "<!--<script>",
        "]]>",
        "x" * 5000,
        "f0",
        "zz",
    ),
    *("MultiFeatureData", "MultiPromptData", "sae_vis", "exact", "none", "direct", "act_size", "sequences", "prompt"),
]
INTS = [
    0,
    1,
    2,
    7,
    -1,
    -2,
    255,
    2**16,
    2**31 - 1,
    2**31,
    2**32,
    2**53,
    2**53 + 1,
    2**63 - 1,
    2**63,
    -(2**63),
    2**64,
    10**30,
]
FLOATS = [
    0.0,
    -0.0,
    0.5,
    1.0,
    1.5,
    -0.5,
    1e-5,
    5e-324,
    1e-300,
    1e-310,
    1e16,
    1e22,
    1e300,
    -1e300,
    1.7976931348623157e308,
]


def any_value(random: Random, depth: int = 2) -> Any:
    """A JSON value of any type."""
    kind = random.randrange(8 if depth else 6)
    if kind == 0:
        return random.choice([None, True, False])
    if kind == 1:
        return random.choice(INTS)
    if kind in (2, 3):
        return random.choice(FLOATS)
    if kind in (4, 5):
        return random.choice(TEXTS)
    if kind == 6:
        return [any_value(random, depth - 1) for _ in range(random.choice([0, 1, 1, 2, 5]))]
    return {random.choice(TEXTS): any_value(random, depth - 1) for _ in range(random.choice([0, 1, 2]))}


# --- broken JSON documents -----------------------------------------------------------------------------------------
# The tree of a real document is changed here and there. What ``json.dumps`` cannot write stands in it as a mark:
# "@@raw:..." is written as it is, and a key that ends in "@@twice" without that.

RAW = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-1e999",
    "1E400",
    "-0",
    "01",
    "+1",
    "0x10",
    "1.",
    ".5",
    "1_000",
    "'x'",
    "9" * 400,
]
RAW += [
    "9" * 4300,
    "[" * 2000 + "]" * 2000,
    "{}" * 2,
    "// x\n1",
    "undefined",
    '"\\ud800"',
    '"\\u0000"',
    '"\x01"',
    '"\\x"',
    ",",
    "1e-400",
    "1.0000",
]
_RAW_MARK = re.compile(r'"@@raw:(\d+)"')


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every place in a tree, as (container, key or index)."""
    found, waiting = [], [tree]
    while waiting:
        at = waiting.pop()
        inside = list(at.items()) if isinstance(at, dict) else list(enumerate(at))
        for key, value in inside:
            found.append((at, key))
            if isinstance(value, dict | list):
                waiting.append(value)
    return found


def break_tree(random: Random, tree: Any) -> None:
    """Change a tree in one place."""
    somewhere = places(tree)
    at, key = random.choice(somewhere)
    change = random.randrange(12)
    if change < 3:
        at[key] = any_value(random)
    elif change < 6:
        at[key] = _nudged(random, at[key])
    elif change == 6:
        other, other_key = random.choice(somewhere)
        at[key] = json.loads(json.dumps(other[other_key]))
    elif change == 7:
        at[key] = f"@@raw:{random.randrange(len(RAW))}"
    elif change == 8:
        del at[key]
    elif isinstance(at, dict):
        name = random.choice([f"{key}@@twice", f"{key}s", str(key).upper(), random.choice(TEXTS)])
        at[name] = at.pop(key) if change == 9 else any_value(random) if change == 10 else at[key]
    elif change == 9:
        at.insert(key, any_value(random))
    elif change == 10:
        at.insert(key, json.loads(json.dumps(at[key])))
    else:
        at.reverse()


def _nudged(random: Random, value: Any) -> Any:
    """A value of the same type, near or far."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int):
        return random.choice([value + 1, value - 1, -value, value * 1000, *INTS])
    if isinstance(value, float):
        return random.choice([-value, value * 1e300, value * 1e-300, value + 1.0, *FLOATS])
    if isinstance(value, str):
        return random.choice([value[:-1], value * 2, value.upper(), value + random.choice(TEXTS), random.choice(TEXTS)])
    if isinstance(value, list):
        return random.choice([value[:-1], value * 2, value[::-1], [], [value]])
    return random.choice([{}, dict(list(value.items())[1:]), list(value), list(value.values())])


def write_tree(random: Random, tree: Any) -> str:
    """The document of a tree, marks and all."""
    text = json.dumps(tree, ensure_ascii=random.random() < 0.5, indent=random.choice([None, None, None, 1]))
    text = text.replace('@@twice"', '"')
    return _RAW_MARK.sub(lambda match: RAW[int(match[1])], text)


def broken_document(random: Random, documents: list[str]) -> bytes:
    """A document with one to a few changes in its tree."""
    tree = json.loads(random.choice(documents))
    for _ in range(random.choice([1, 1, 1, 2, 3, 8])):
        break_tree(random, tree)
        if not tree:
            break
    return write_tree(random, tree).encode("utf-8", "surrogatepass")


# --- broken bytes ----------------------------------------------------------------------------------------------------

TOKENS = [
    *(
        b"null",
        b"true",
        b"[]",
        b"{}",
        b'""',
        b"[",
        b"]",
        b"{",
        b"}",
        b",",
        b":",
        b'"',
        b"\\",
        b"\\u",
        b"\\ud800",
        b"-",
        b".",
    ),
    *(
        b"NaN",
        b"1e999",
        b"1e308",
        b"-1e308",
        b"5e-324",
        b"0",
        b"-1",
        b"18446744073709551616",
        b"9" * 50,
        b"\n",
        b"\x00",
    ),
    *(
        b"\xef\xbb\xbf",
        b"\xff\xfe",
        b"\xff",
        b"\xc0\x80",
        b"\xed\xa0\x80",
        b"\xe2\x80\xa8",
        b'"version": 2',
        b'"version": 0',
    ),
    *(b'"kind": "MultiPromptData"', b'"kind": "MultiFeatureData"', b'"feature_idx":8,', b'"label":"x",', b'"x":1,'),
]
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
ENCODINGS = ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-7"]


def broken_bytes(random: Random, files: list[bytes]) -> bytes:
    """A file with one to a few pieces of it flipped, cut, moved, or taken from another one."""
    data = random.choice(files)
    for _ in range(random.choice([1, 1, 1, 2, 4, 16])):
        data = _break_bytes(random, data, files)
    return data


def _break_bytes(random: Random, data: bytes, files: list[bytes]) -> bytes:
    at = random.randint(0, len(data))
    size = random.choice([1, 1, 2, 4, 16, 100, 1000])
    change = random.randrange(10)
    if change == 0:
        return data[:at]
    if change == 1:
        return data[:at] + data[at + size :]
    if change == 2:
        return data[:at] + data[at : at + size] + data[at:]
    if change == 3:
        return data[:at] + random.choice(TOKENS) + data[at:]
    if change == 4:
        return data[:at] + random.choice(TOKENS) + data[at + size :]
    if change == 5:
        other = random.choice(files)
        return data[:at] + other[random.randint(0, len(other)) :]
    if change == 6:
        return data[:at] + random.randbytes(size) + data[at + size :]
    if change in (7, 8):
        return _another_number(random, data, at)
    return data[:at] + bytes(byte ^ (1 << random.randrange(8)) for byte in data[at : at + 1]) + data[at + 1 :]


def _another_number(random: Random, data: bytes, at: int) -> bytes:
    number = _NUMBER.search(data, at)
    if number is None:
        return data
    other = random.choice([repr(random.choice(INTS)), repr(random.choice(FLOATS)), random.choice(RAW)])
    return data[: number.start()] + other.encode() + data[number.end() :]
