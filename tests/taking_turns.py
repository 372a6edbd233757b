"""Tests that measure time run alone: while one does, pytest-xdist's other workers wait between two of their tests.

Two locks, as files. A worker passes the gate, one at a time, to get into the room. Most tests share the room; one that
measures has it for itself, and keeps the gate meanwhile, so that nobody overtakes it while it waits for the others to leave.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

try:
    import fcntl
except ImportError:  # Windows: nobody waits
    fcntl = None  # type: ignore[assignment]


class Turns:
    """The turns of the workers of one run; each worker has an object of its own, which keeps the files open."""

    def __init__(self, run: str) -> None:
        paths = [Path(tempfile.gettempdir()) / f"sae_vis_tests_{run}.{name}" for name in ("gate", "room")]
        self._gate, self._room = (path.open("wb") for path in paths)
        self._paths = paths

    @contextlib.contextmanager
    def turn(self, alone: bool) -> Iterator[None]:
        """The time of one test."""
        with contextlib.ExitStack() as at_the_end:
            fcntl.flock(self._gate, fcntl.LOCK_EX)
            at_the_end.callback(fcntl.flock, self._gate, fcntl.LOCK_UN)
            fcntl.flock(self._room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
            at_the_end.callback(fcntl.flock, self._room, fcntl.LOCK_UN)
            if not alone:
                fcntl.flock(self._gate, fcntl.LOCK_UN)
            yield

    def close(self) -> None:
        for file, path in zip((self._gate, self._room), self._paths, strict=True):
            file.close()
            path.unlink(missing_ok=True)  # who has it open goes on with it


_turns = pytest.StashKey[Turns]()


def pytest_configure(config: pytest.Config) -> None:
    worker = getattr(config, "workerinput", None)  # pytest-xdist's; without it there is nobody to wait for
    if worker and fcntl:
        turns = config.stash[_turns] = Turns(worker["testrunuid"])
        config.add_cleanup(turns.close)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    if turns := item.config.stash.get(_turns, None):
        with turns.turn(alone=item.get_closest_marker("timed") is not None):
            return (yield)
    return (yield)
