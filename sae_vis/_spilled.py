"""Arrays that lie in temporary files because memory has no room for them. The files have no names and go with the arrays."""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import numpy as np

from sae_vis._errors import InputError


class Mapped(NamedTuple):
    """An array that lies in a file, not in memory."""

    file: mmap.mmap
    array: Any


def mapped(n: int, kind: np.dtype[Any]) -> Mapped:
    """An array of ``n`` zeros.

    Raises:
        InputError: if there is no room for it on the disk.
    """
    with temporary() as file:
        size = max(1, n) * kind.itemsize
        _grown(file, size)
        pages = mmap.mmap(file.fileno(), size)
    return Mapped(pages, np.frombuffer(pages, dtype=kind)[:n])


def release(file: mmap.mmap) -> None:
    """Give back the memory of the pages that were touched; they are in the file."""
    if hasattr(file, "madvise"):  # not on Windows
        file.madvise(mmap.MADV_DONTNEED)


def temporary() -> IO[bytes]:
    """A file without a name, which is gone when it is closed."""
    return tempfile.TemporaryFile(prefix="sae_vis-")


def write(file: IO[bytes], array: Any) -> None:
    """Add the numbers of an array to a file.

    Raises:
        InputError: if there is no room for them on the disk.
    """
    with _told_if_full():
        file.write(array.tobytes())


def _grown(file: IO[bytes], size: int) -> None:
    """Make the file as long as this, with room for all of it on the disk: a full disk would end the program later."""
    with _told_if_full():
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)


@contextlib.contextmanager
def _told_if_full() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"The activations do not fit into the memory budget, and there is no room for them in the folder of temporary files "
            f"({tempfile.gettempdir()}: {error.strerror}). Set TMPDIR to a folder with more room, raise "
            "FeatureVisParams(memory_budget=...), or ask for fewer features or tokens."
        ) from None
