"""What a worker process of ``_render_pool`` runs: it draws features for another process, and needs no torch for that."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable
from typing import IO

from sae_vis import _json, _page
from sae_vis._feature_data import FeatureData
from sae_vis._page_context import PageContext
from sae_vis._render_pool import GREETING, read_frame, requests_of, write_frame
from sae_vis.data_storing_fns import MultiFeatureData
from sae_vis.html_fns import TokenPrinter


def main() -> None:
    """Serve the process at the other end of standard input and output until it closes them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for that process
    gc.set_threshold(100_000)  # there are no cycles to be found in what is read and drawn, but many small objects
    stdin = sys.stdin.buffer
    # Nothing but answers may stand on the pipe, whatever is printed.
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as stdout:
        sys.stdout = sys.stderr
        try:
            serve(stdin, stdout, GREETING)
        except BrokenPipeError:  # nobody listens any more
            os._exit(0)


def serve(stdin: IO[bytes], stdout: IO[bytes], greeting: bytes) -> None:
    """Greet, read the setup, and answer each batch of requests."""
    stdout.write(greeting)
    stdout.flush()
    setup = read_frame(stdin)
    if setup is None:
        return
    draw = drawer(setup)
    while (batch := read_frame(stdin)) is not None:
        write_frame(stdout, b"\n".join(_answer(draw, request) for request in requests_of(batch)))


def drawer(setup: bytes) -> Callable[[bytes], str]:
    """What draws a feature from its message, on the page that the setup tells of (``data_storing_fns.worker_setup``)."""
    features, _, document = setup.partition(b"\n")
    data: MultiFeatureData = _json.loads(MultiFeatureData, document)
    printer = TokenPrinter(data.vocab, data.vocab_bytes)
    linked = frozenset(map(int, features.split()))
    page = PageContext(printer, data.params, data.provenance, linked)
    read = _json.message_reader(FeatureData)
    return lambda message: _page.pack(read(message).get_html(page))


def _answer(draw: Callable[[bytes], str], request: bytes) -> bytes:
    """What was drawn; nothing if it could not be, so that the other process tries and gets the error itself."""
    try:
        return draw(request).encode() if request else b""
    except Exception:  # noqa: BLE001 - of whatever kind, it will be raised there
        return b""
