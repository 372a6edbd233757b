"""Draw over several processes: an ordered map over worker processes that are started for it and end with it.

The workers are fresh interpreters that run ``sae_vis._render_worker``. That is neither ``multiprocessing``, which imports the
user's ``__main__`` again and so needs a guard there, nor a fork, which the threads of torch do not survive. A worker gets
what to draw over its standard input and gives it back over its standard output. Whatever a worker cannot do (it does not
start, it dies, it meets an error) is done in this process, where an error is then the caller's: the results are the
same, and the same as without workers.

To a worker goes the module path in one line, then frames; from it comes ``GREETING``, then frames. A frame is its length in 8
bytes and so many bytes: for the worker first a setup, then batches of requests, a list of bytes in MessagePack; from the
worker the batches' answers, one a line, empty where there is none.

This module knows nothing of what is drawn.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

import msgspec

import sae_vis
from sae_vis._errors import InputError, shown

T = TypeVar("T")

GREETING = f"sae_vis {sae_vis.__version__}\n".encode()
WORTH_IT = 200  # fewer are drawn in the time that it takes to start a worker, or not much more
MOST_PROCESSES = 64
_MOST_AUTOMATIC = 8  # this process hands out no more than so many can draw
_BATCH = 4
_AHEAD = 2  # batches on their way to a worker: it reads the next one while this process reads the last one
_WINDOW = 4  # batches for each worker that are held at once
_HEADER = 8  # bytes
_LONGEST_GREETING = 100
_PATIENCE = 120.0  # seconds for a few features: a worker that takes longer was stopped
_POLL = 0.2  # seconds, since on some systems a wait without a limit cannot be interrupted

# The module path first, before anything is imported along another one.
_PROGRAM = (
    "import sys; "
    "sys.path[:] = bytes.fromhex(sys.stdin.buffer.readline().decode()).decode('utf-8', 'surrogatepass').split(chr(0)); "
    "from sae_vis._render_worker import main; main()"
)


def n_processes(asked: int | None, n_items: int) -> int:
    """Over how many processes so many items are drawn; 1 means this one alone.

    Raises:
        InputError: if ``asked`` is not None or a number of processes.
    """
    if asked is None:
        return min(_MOST_AUTOMATIC, _cores()) if n_items >= WORTH_IT else 1
    if not isinstance(asked, int) or isinstance(asked, bool) or not 1 <= asked <= MOST_PROCESSES:
        raise InputError(
            f"processes must be None (automatic) or an int from 1 to {MOST_PROCESSES}, got {shown(asked)}."
        )
    return min(asked, max(1, -(-n_items // _BATCH)))


def _cores() -> int:
    with contextlib.suppress(AttributeError, OSError):
        return len(os.sched_getaffinity(0))  # of this process, which may have less than the machine
    return os.cpu_count() or 1


def ordered_map(
    items: Iterable[T],
    processes: int,
    setup: bytes,
    request: Callable[[T], bytes | None],
    here: Callable[[T], str],
) -> Iterator[tuple[T, str]]:
    """Each item with its result, in order, drawn by so many workers; only a few items are held at once.

    Args:
        items: read one by one, as the results are taken.
        processes: how many workers.
        setup: what each worker gets first.
        request: what a worker needs of an item; None if it cannot be sent.
        here: gives an item's result in this process.
    """
    pool = _Pool(setup, processes)
    try:
        pending: deque[_Batch[T]] = deque()
        rest = iter(items)
        while chunk := list(itertools.islice(rest, _BATCH)):
            pending.append(pool.hand_out(chunk, [request(item) or b"" for item in chunk]))
            if len(pending) >= _WINDOW * processes:
                yield from _results(pool, pending.popleft(), here)
        while pending:
            yield from _results(pool, pending.popleft(), here)
    finally:
        pool.close()


def _results(pool: _Pool, batch: _Batch[T], here: Callable[[T], str]) -> Iterator[tuple[T, str]]:
    answers = pool.answers(batch)
    if len(answers) != len(batch.items):
        answers = [b""] * len(batch.items)
    for item, answer in zip(batch.items, answers, strict=True):
        yield item, answer.decode() if answer else here(item)


@dataclass(eq=False)
class _Batch(Generic[T]):
    """Some items; ``answers`` are there once a worker gave them, and are empty if it never will."""

    items: list[T]
    request: bytes
    taken: bool = False
    answers: list[bytes] | None = None


class _Pool:
    """The workers and the batches that wait for one; every change is made while ``changed`` is held."""

    def __init__(self, setup: bytes, processes: int) -> None:
        self.changed = threading.Condition()
        self.waiting: deque[_Batch[Any]] = deque()
        self.closing = False
        self.workers: list[_Worker] = []
        try:
            for _ in range(processes):
                process = _started()
                if process is None:
                    break
                self.workers.append(_Worker(self, process, setup))
                if not self.workers[-1].start():
                    break
        except BaseException:  # an interrupt between two starts
            self.close()
            raise

    def hand_out(self, items: list[T], requests: list[bytes]) -> _Batch[T]:
        batch = _Batch(items, batch_of(requests))
        with self.changed:
            self.waiting.append(batch)
            self.changed.notify_all()
        return batch

    def answers(self, batch: _Batch[Any]) -> list[bytes]:
        """The answers of the oldest batch; none if it is to be drawn here, since no worker took it or one died of it."""
        with self.changed:
            if not batch.taken:  # the workers have not started yet, or they are all dead
                self.waiting.remove(batch)
                return []
            end = time.monotonic() + _PATIENCE
            while batch.answers is None and time.monotonic() < end:
                self.changed.wait(_POLL)
            return batch.answers or []

    def close(self) -> None:
        """End the workers, whatever they do; nothing of them is left."""
        with self.changed:
            self.closing = True
            self.waiting.clear()
            self.changed.notify_all()
        for worker in self.workers:
            worker.process.kill()
        for worker in self.workers:
            worker.end()


class _Worker:
    """A process, and the two threads that write to it and read from it."""

    def __init__(self, pool: _Pool, process: subprocess.Popen[bytes], setup: bytes) -> None:
        self.pool = pool
        self.process = process
        self.setup = setup
        self.greeted = self.dead = False
        self.sent: deque[_Batch[Any]] = deque()
        self.threads: list[threading.Thread] = []

    def start(self) -> bool:
        """Start the threads; False if there can be none (any more, while Python ends)."""
        try:
            for work in (self._read, self._write):
                thread = threading.Thread(target=work, daemon=True)
                thread.start()
                self.threads.append(thread)
        except RuntimeError:
            self.process.kill()
            return False
        return True

    def end(self) -> None:
        for thread in self.threads:
            thread.join()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what was not written any more
                    pipe.close()

    def _write(self) -> None:
        stdin = _pipe(self.process.stdin)
        with contextlib.suppress(OSError, ValueError):  # the pipe broke: the reader notices too
            stdin.write(_module_path())
            write_frame(stdin, self.setup)
            while (batch := self._next()) is not None:
                write_frame(stdin, batch.request)

    def _next(self) -> _Batch[Any] | None:
        """Wait for a batch that this worker is to do; None when there will be none."""
        pool = self.pool

        def decided() -> bool:
            free = self.greeted and len(self.sent) < _AHEAD
            return pool.closing or self.dead or (free and bool(pool.waiting))

        with pool.changed:
            pool.changed.wait_for(decided)
            if pool.closing or self.dead:
                return None
            batch = pool.waiting.popleft()
            batch.taken = True
            self.sent.append(batch)
            return batch

    def _read(self) -> None:
        stdout = _pipe(self.process.stdout)
        with contextlib.suppress(OSError, ValueError):
            self._greet(stdout.readline(_LONGEST_GREETING))
            while self.greeted and (answers := read_frame(stdout)) is not None and self.sent:
                with self.pool.changed:
                    self.sent.popleft().answers = answers.split(b"\n")
                    self.pool.changed.notify_all()
        with self.pool.changed:
            self.dead = True
            while self.sent:
                self.sent.popleft().answers = []
            self.pool.changed.notify_all()
        self.process.kill()  # whatever it is, it is none of our workers, or no use any more

    def _greet(self, line: bytes) -> None:
        with self.pool.changed:
            self.greeted = line == GREETING
            self.pool.changed.notify_all()


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise ValueError
    return pipe


# --- processes and frames ----------------------------------------------------------------------------------------


def _started() -> subprocess.Popen[bytes] | None:
    """A new worker; None where this process is no ordinary Python that could be started once more."""
    name = Path(sys.executable or "").name.lower()
    if getattr(sys, "frozen", False) or not ("python" in name or "pypy" in name):
        return None
    # A group of its own: Ctrl-C in the terminal is for this process, which then ends its workers.
    options: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        options = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    with contextlib.suppress(OSError):
        return subprocess.Popen(  # noqa: S603 - this very interpreter, and a program of ours
            [sys.executable, *_flags(), "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            **options,
        )
    return None


def _flags() -> list[str]:
    """The flags that decide what a starting Python reads from its surroundings."""
    flags = {"-I": sys.flags.isolated, "-E": sys.flags.ignore_environment, "-s": sys.flags.no_user_site}
    return [flag for flag, given in (flags | {"-S": sys.flags.no_site}).items() if given]


def _module_path() -> bytes:
    """The line with which a worker finds the modules that this process has."""
    ours = str(Path(sae_vis.__file__).parents[1])  # last, for where an import hook found the package
    entries = [entry for entry in sys.path if isinstance(entry, str)]
    return "\0".join([*entries, ours]).encode("utf-8", "surrogatepass").hex().encode() + b"\n"


batch_of: Callable[[list[bytes]], bytes] = msgspec.msgpack.Encoder().encode
requests_of: Callable[[bytes], list[bytes]] = msgspec.msgpack.Decoder(list[bytes]).decode


def write_frame(stream: IO[bytes], content: bytes) -> None:
    """Write some bytes with their length before them."""
    stream.write(len(content).to_bytes(_HEADER, "big"))
    stream.write(content)
    stream.flush()


def read_frame(stream: IO[bytes]) -> bytes | None:
    """Read what ``write_frame`` wrote; None at the end, or where a frame is cut off."""
    header = stream.read(_HEADER)
    if len(header) < _HEADER:
        return None
    length = int.from_bytes(header, "big")
    content = stream.read(length)
    return content if len(content) == length else None
