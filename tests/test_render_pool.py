"""Drawing over several processes: the same bytes, nothing left running, and no worker is needed for a page to come out."""

from __future__ import annotations

import dataclasses
import gc
import io
import math
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest
from msgspec import ValidationError
from rendering_fixtures import make_features

from sae_vis import InputError, MultiFeatureData, _json, _render_pool, _render_worker, data_storing_fns
from sae_vis.__main__ import main
from sae_vis._page_context import PageContext
from sae_vis.data_storing_fns import FeatureData, packed_features, worker_setup

CHECKOUT = Path(__file__).resolve().parents[1]
TINY = {"first_group_size": 2, "n_groups": 2, "other_groups_size": 1, "n_bins": 5, "n_logits": 3, "buffer": (2, 2)}
N = 41


@pytest.fixture(scope="module")
def features() -> MultiFeatureData:
    return make_features(N, **TINY)


@pytest.fixture(scope="module")
def expected(features) -> list[tuple[int, str]]:
    return drawn(features, 1)


@pytest.fixture
def started(monkeypatch) -> list[subprocess.Popen]:
    """The workers that a test starts; none may be left, nor a thread."""
    processes, start = [], _render_pool._started

    def recorded():
        processes.append(start())
        return processes[-1]

    monkeypatch.setattr(_render_pool, "_started", recorded)
    threads = threading.active_count()
    yield processes
    assert all(process is None or process.poll() is not None for process in processes)
    assert threading.active_count() == threads


def drawn(features, processes) -> list[tuple[int, str]]:
    chosen = (features[index] for index in features)
    drawing = packed_features(chosen, features._context(), len(features), processes)
    return [(feature.feature_idx, text) for feature, text in drawing]


def as_a_worker(features, page) -> list[str | None]:
    """What a worker makes of each feature, None for those that it never gets."""
    draw = _render_worker.drawer(worker_setup(page))
    requests = [data_storing_fns._request(feature) for feature in features]
    return [None if request is None else draw(request) for request in requests]


def wait_for(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@pytest.fixture
def here(monkeypatch) -> list[int]:
    """The features that this process draws itself, slowly: a worker that works is there before it is through."""
    own, draw = [], FeatureData.get_html

    def slowly(feature, page=None):
        own.append(feature.feature_idx)
        time.sleep(0.1)
        return draw(feature, page)

    monkeypatch.setattr(FeatureData, "get_html", slowly)
    return own


# --- the same, whoever draws -------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_any_number_of_processes_gives_the_same_in_order(processes, features, expected, started):
    assert drawn(features, processes) == expected
    assert [index for index, _ in expected] == list(range(N))
    assert len(started) == (0 if processes == 1 else processes)


def test_the_workers_draw(features, expected, started, here):
    assert drawn(features, 2) == expected
    assert len(here) < N - 8, here


def test_the_file_is_the_same(features, tmp_path, started):
    for processes in (1, 2):
        features.save_html(tmp_path / f"{processes}.html", feature=7, processes=processes)
    assert (tmp_path / "1.html").read_bytes() == (tmp_path / "2.html").read_bytes()
    assert (tmp_path / "1.html").read_text("utf-8") == features.get_html(feature=7)
    assert len(started) == 2


def test_what_cannot_be_sent_is_drawn_here_and_ints_are_drawn_like_floats(tmp_path, started):
    data = make_features(12, **TINY)
    data[2].label = "half a pair: \ud800"
    edges = data[5].activations.histogram
    edges.bar_edges, edges.tick_vals = list(range(len(edges.bar_edges))), [0, 2]
    data[5].activations.max = 3
    numpy = pytest.importorskip("numpy")
    data[6].activations.mean = numpy.float64(0.25)
    data[8].sequences.groups[0].sequences[0].token_ids[:] = [10**6] * len(
        data[8].sequences.groups[0].sequences[0].token_ids
    )
    data.vocab[10**6] = "\udc00"
    one_process = drawn(data, 1)
    assert drawn(data, 2) == one_process
    assert len(started) == 2
    worker = as_a_worker(data.values(), data._context())
    assert [index for index, text in enumerate(worker) if text is None] == [2, 6]
    assert all(text in (None, expected) for text, (_, expected) in zip(worker, one_process, strict=True))


def test_what_is_not_finite_is_drawn_as_it_is(started):
    data = make_features(12, **TINY)
    sequence = data[4].sequences.groups[0].sequences[0]
    sequence.loss_contribution[0] = math.nan  # JSON would make it a missing one
    data[7].activations.mean = math.inf
    assert _json.message_reader(FeatureData)(_json.message(data[3])) == data[3]
    for index in (4, 7):
        with pytest.raises(ValidationError, match="finite"):
            _json.message_reader(FeatureData)(_json.message(data[index]))
    del data.feature_data_dict[4]  # no page can show it
    assert drawn(data, 2) == drawn(data, 1)


def test_a_page_of_another_kind_is_drawn_here(features, started):
    class Page(PageContext):
        """A page of the user's."""

    page = Page(features._context().printer, features.params, features.provenance)
    assert worker_setup(page) is None
    assert worker_setup(PageContext()) is None
    assert [text for _, text in packed_features(iter([features[0]] * 9), page, 9, 2)]
    assert started == []


def test_links_are_those_of_the_page(features, started):
    page = dataclasses.replace(features._context(), features=frozenset([1, 2]))
    chosen = [features[index] for index in range(12)]
    one_process = list(packed_features(chosen, page, 12, 1))
    assert list(packed_features(chosen, page, 12, 2)) == one_process
    assert as_a_worker(chosen, page) == [text for _, text in one_process]


def test_a_features_own_class_is_drawn_here():
    class Own(FeatureData):
        """A feature of the user's."""

    parts = vars(make_features(1, dead=(), **TINY)[0])
    assert data_storing_fns._request(Own(**{k: v for k, v in parts.items() if k != "_context"})) is None


# --- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_in_drawing_is_raised_here(processes, started):
    data = make_features(12, dead=(), **TINY)
    data[9].activations.histogram.bar_edges = []
    with pytest.raises(IndexError):
        drawn(data, processes)


def test_an_error_while_features_are_read_ends_the_workers(features, started):
    def broken():
        yield from (features[index] for index in range(20))
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(packed_features(broken(), features._context(), N, 2))
    assert len(started) == 2


@pytest.mark.parametrize("after", [0, 1, 17])
def test_who_stops_reading_ends_the_workers(after, features, started):
    drawing = packed_features((features[index] for index in features), features._context(), N, 2)
    for _ in range(after):
        next(drawing)
    drawing.close()
    assert len(started) == (2 if after else 0)


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("dying", [1, 2])
def test_workers_that_die_are_not_needed(signal_number, dying, features, expected, started, here):
    results = []
    drawing = packed_features((features[index] for index in features), features._context(), N, 2)
    for feature, text in drawing:
        results.append((feature.feature_idx, text))
        if len(results) == 6:
            for process in started[:dying]:
                process.send_signal(signal_number)
    assert results == expected


@pytest.mark.parametrize(
    "program",
    ["exit 3", "echo 'Python 2.7'; exec cat", "exec sleep 600", "head -c 1000000 /dev/zero", "exec cat > /dev/null"],
)
def test_what_is_no_worker_is_not_needed(program, features, expected, started, tmp_path, monkeypatch):
    executable = tmp_path / "python"
    executable.write_text(f"#!/bin/sh\n{program}\n", "utf-8")
    executable.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(executable))
    assert drawn(features, 2) == expected
    assert len(started) == 2


@pytest.mark.parametrize("executable", ["", None, "/nowhere/python3", "/bin/true", str(CHECKOUT)])
def test_without_a_python_to_start_this_process_draws(executable, features, expected, started, monkeypatch):
    monkeypatch.setattr(sys, "executable", executable)
    assert drawn(features, 2) == expected
    assert started == [None]


def test_a_frozen_program_is_not_started_again(features, expected, started, monkeypatch):
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert drawn(features, 2) == expected
    assert started == [None]


def test_a_worker_that_answers_too_little_is_not_believed(features, expected, started, monkeypatch):
    monkeypatch.setattr(_render_pool._Pool, "answers", lambda pool, batch: [b"eA==", b"eA=="])
    assert drawn(features, 2) == expected


def test_a_worker_that_is_stopped_is_not_waited_for(features, expected, started, here, monkeypatch):
    monkeypatch.setattr(_render_pool, "_PATIENCE", 0.5)
    results = []
    for feature, text in packed_features((features[index] for index in features), features._context(), N, 2):
        results.append((feature.feature_idx, text))
        if len(results) == 6:
            started[0].send_signal(signal.SIGSTOP)
    assert results == expected


def test_without_threads_this_process_draws(features, expected, started, monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert drawn(features, 2) == expected
    assert len(started) == 1


# --- memory ------------------------------------------------------------------------------------------------------


def test_only_a_few_features_are_held_at_once(features, started):
    read = []

    def reading():
        for index in range(400):
            read.append(index)
            yield features[index % N]

    most = 0
    for done, _ in enumerate(packed_features(reading(), features._context(), 400, 2)):
        most = max(most, len(read) - done)
    assert len(read) == 400
    assert most <= 2 * _render_pool._WINDOW * _render_pool._BATCH


# --- how many ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "items", "cores", "used"),
    [
        (None, 199, 8, 1),
        (None, 200, 8, 8),
        (None, 16_384, 2, 2),
        (None, 16_384, 1, 1),
        (None, 16_384, 200, 8),
        (1, 16_384, 8, 1),
        (3, 16_384, 1, 3),
        (64, 16_384, 1, 64),
        (5, 3, 8, 1),
        (5, 9, 8, 3),
        (2, 0, 8, 1),
    ],
)
def test_how_many_processes(asked, items, cores, used, monkeypatch):
    monkeypatch.setattr(_render_pool, "_cores", lambda: cores)
    assert _render_pool.n_processes(asked, items) == used


@pytest.mark.parametrize("processes", [0, -1, 65, 2.0, "2", True, math.nan, [2]])
def test_what_is_no_number_of_processes(processes, features, tmp_path):
    with pytest.raises(InputError, match="processes must be None"):
        features.save_html(tmp_path / "page.html", processes=processes)
    assert not list(tmp_path.iterdir())


def test_there_is_a_core():
    assert 1 <= _render_pool._cores() <= (os.cpu_count() or 1)


# --- the worker, in this process -----------------------------------------------------------------------------------


def test_a_worker_answers_each_request_and_leaves_empty_what_it_cannot_draw(features, expected):
    requests = [_json.message(features[0]), b"", b"rubbish", _json.message(features[1])]
    asked, told = io.BytesIO(), io.BytesIO()
    for frame in (
        worker_setup(features._context()),
        _render_pool.batch_of(requests),
        _render_pool.batch_of(requests[:1]),
    ):
        _render_pool.write_frame(asked, frame)
    asked.seek(0)
    _render_worker.serve(asked, told, b"hello\n")
    told.seek(0)
    assert told.readline() == b"hello\n"
    first, second = expected[0][1].encode(), expected[1][1].encode()
    assert _render_pool.read_frame(told).split(b"\n") == [first, b"", b"", second]
    assert _render_pool.read_frame(told) == first
    assert _render_pool.read_frame(told) is None


def test_drawing_leaves_nothing_to_the_garbage_collector(features):
    """Workers look for garbage seldom: there must be none."""
    requests = [_json.message(features[index]) for index in features]
    draw = _render_worker.drawer(worker_setup(features._context()))
    draw(requests[0])
    gc.collect()
    gc.disable()
    try:
        for request in requests:
            draw(request)
        assert gc.collect() < N
    finally:
        gc.enable()


@pytest.mark.parametrize("cut", [0, 3, 8, 11])
def test_a_frame_that_is_cut_off_is_none(cut):
    stream = io.BytesIO()
    _render_pool.write_frame(stream, b"four")
    assert _render_pool.read_frame(io.BytesIO(stream.getvalue()[:cut])) is None
    assert _render_pool.read_frame(io.BytesIO(stream.getvalue())) == b"four"
    told = io.BytesIO()
    _render_worker.serve(io.BytesIO(stream.getvalue()[:cut]), told, b"hello\n")
    assert told.getvalue() == b"hello\n"


# --- programs ------------------------------------------------------------------------------------------------------

# It has no `if __name__ == "__main__"`, and says how often it was run, and which features it drew itself.
SCRIPT = """
import sys, time
sys.path[:0] = {path!r}
print("run", flush=True)
from sae_vis import MultiFeatureData, _render_pool, data_storing_fns
draw, start = data_storing_fns.FeatureData.get_html, _render_pool._started
def slowly(feature, page=None):
    print("here", feature.feature_idx, flush=True)
    time.sleep({seconds})
    return draw(feature, page)
def told():
    process = start()
    print("worker", process.pid, flush=True)
    return process
data_storing_fns.FeatureData.get_html, _render_pool._started = slowly, told
MultiFeatureData.load_json({file!r}).save_html({out!r}, processes=2)
print("done", _render_pool.sae_vis.__file__)
"""


@pytest.fixture
def script(features, tmp_path):
    """A function that writes the script and gives the command that runs it."""
    features.save_json(tmp_path / "data.json")

    def command(*flags: str, path: list[str] | None = None, seconds: float = 0.1) -> list[str]:
        values = {"file": str(tmp_path / "data.json"), "out": str(tmp_path / "page.html"), "seconds": seconds}
        path = [str(CHECKOUT)] if path is None else path
        (tmp_path / "script.py").write_text(SCRIPT.format(path=path, **values), "utf-8")
        return [sys.executable, *flags, str(tmp_path / "script.py")]

    return command


def told(command: list[str], cwd: Path) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.parametrize("flags", [[], ["-I"], ["-E", "-s"], ["-W", "error"]])
def test_a_script_without_a_guard_is_run_once(flags, script, tmp_path, features):
    lines = told(script(*flags), tmp_path)
    assert lines.count("run") == 1
    assert sum(line.startswith("worker") for line in lines) == 2
    assert 0 < sum(line.startswith("here") for line in lines) < N - 8
    assert (tmp_path / "page.html").read_text("utf-8") == features.get_html()


def zipped(folder: Path) -> Path:
    archive = folder / "sae_vis.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for source in (CHECKOUT / "sae_vis").glob("*.py"):
            file.write(source, f"sae_vis/{source.name}")
        for kind in ("css", "html", "js"):
            for source in (CHECKOUT / kind).iterdir():
                file.write(source, f"sae_vis/{kind}/{source.name}")
    return archive


def test_modules_are_found_where_this_process_found_them(script, tmp_path, features):
    """In a zip, and beside a folder whose modules would be found first by a new Python."""
    archive = zipped(tmp_path)
    elsewhere = tmp_path / "else where\nand é"
    elsewhere.mkdir()
    for name in ("json", "dataclasses", "msgspec"):
        (elsewhere / f"{name}.py").write_text("raise SystemExit", "utf-8")
    lines = told(script(path=[str(archive)]), elsewhere)
    assert "sae_vis.zip" in lines[-1]
    assert 0 < sum(line.startswith("here") for line in lines) < N - 8
    assert (tmp_path / "page.html").read_text("utf-8") == features.get_html()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_program_that_is_stopped(signal_number, script, tmp_path):
    process = subprocess.Popen(
        script(seconds=1.0), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    pids = []
    while len(pids) < 2:
        name, _, value = process.stdout.readline().partition(" ")
        pids += [int(value)] if name == "worker" else []
    assert process.stdout.readline().startswith("here")
    assert all(map(is_running, pids))
    os.killpg(process.pid, signal_number)  # as a terminal does it
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal_number or "KeyboardInterrupt" in errors
    wait_for(lambda: not any(map(is_running, pids)))
    assert not (tmp_path / "page.html").exists()
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]


# --- the command line ----------------------------------------------------------------------------------------------


def test_the_command_line_takes_the_number_of_processes(features, tmp_path, started, capsys):
    features.save_json(tmp_path / "a.json")
    pages = []
    for processes in (["--processes", "1"], ["--processes", "2"], []):
        assert main(["html", str(tmp_path / "a.json"), *processes]) == 0
        pages.append((tmp_path / "a.html").read_bytes())
    assert pages[0] == pages[1] == pages[2]
    assert len(started) == 2
    assert main(["html", str(tmp_path / "a.json"), "--processes", "0"]) == 2
    assert "processes must be" in capsys.readouterr().err


def test_a_prompt_is_drawn_by_one_process_whatever_is_asked_for(prompt_data, tmp_path, started):
    prompt_data.save_json(tmp_path / "a.json")
    assert main(["html", str(tmp_path / "a.json"), "--processes", "2"]) == 0
    assert started == []
