"""Who measures time is alone, and is not made to wait for ever."""

from __future__ import annotations

import contextlib
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

fcntl = pytest.importorskip("fcntl")

from taking_turns import Turns  # noqa: E402

PATIENCE = 30  # seconds


@pytest.fixture
def workers():
    with contextlib.ExitStack() as stack:
        run = uuid.uuid4().hex
        yield [stack.enter_context(contextlib.closing(Turns(run))) for _ in range(3)]


def wait_until_the_gate_is_kept(worker: Turns) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            fcntl.flock(worker._gate, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        fcntl.flock(worker._gate, fcntl.LOCK_UN)
        time.sleep(0.001)
    raise AssertionError


def test_others_share_the_room(workers):
    with workers[0].turn(alone=False), workers[1].turn(alone=False):
        pass  # neither waits for the other


def test_who_measures_waits_for_the_others_and_is_not_overtaken(workers):
    first, measuring, later = workers
    happened = []

    def take(worker, name, alone):
        with worker.turn(alone):
            happened.append(name)
            time.sleep(0.05)  # time enough for another to come in, were it let in
            happened.append(f"{name} ends")

    with ThreadPoolExecutor() as pool:
        with first.turn(alone=False):
            measured = pool.submit(take, measuring, "measuring", alone=True)
            wait_until_the_gate_is_kept(later)
            came = pool.submit(take, later, "later", alone=False)
            time.sleep(0.05)
            happened.append("first ends")
        measured.result(PATIENCE)
        came.result(PATIENCE)
    assert happened == ["first ends", "measuring", "measuring ends", "later", "later ends"]
