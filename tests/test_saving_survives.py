"""What was saved stays: the old file is whole after kill -9, on a full disk and in a folder that cannot be written to."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest
from rendering_fixtures import make_features, make_prompt

from sae_vis import InputError, MultiFeatureData
from sae_vis._json import STALE_SECONDS

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals, limits and users are those of POSIX")

NAMES = ["data.json", "data.json.gz", "page.html"]
NOBODY = 65534


@pytest.fixture(scope="module")
def old():
    return make_features(2, dead=(), first_group_size=2, n_groups=1, other_groups_size=1)


@pytest.fixture(scope="module")
def large():
    """A megabyte or so, of which the two states are saved in turn."""
    return make_features(12, dead=(), first_group_size=10, n_groups=3)


def save(data, path):
    (data.save_html if path.suffix == ".html" else data.save_json)(path)


def saved_bytes(data, folder, name):
    path = folder / name
    save(data, path)
    content = path.read_bytes()
    path.unlink()
    return content


def expect_whole(path, contents):
    """The file is one of these, byte for byte, and loads if it can."""
    assert path.read_bytes() in contents
    if path.suffix != ".html":
        MultiFeatureData.load_json(path)


def run_child(code, *arguments, **options):
    """A Python of its own that has the library and a script."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path]), "COVERAGE_PROCESS_START": ""}
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


LOOP = """
    import sys
    from pathlib import Path
    from sae_vis import MultiFeatureData
    one, other = (MultiFeatureData.load_json(path) for path in sys.argv[1:3])
    print("ready", flush=True)
    while True:
        for data in (other, one):
            for path in map(Path, sys.argv[3:]):
                (data.save_html if path.suffix == ".html" else data.save_json)(path)
"""


@pytest.mark.slow
def test_kill_9_at_any_moment_leaves_a_whole_file(old, large, tmp_path):
    """Processes that save in a loop, killed at moments of their own: eight, and more until one was in the middle of a file."""
    inputs = [tmp_path / "old.json", tmp_path / "large.json"]
    for data, path in zip((old, large), inputs, strict=True):
        data.save_json(path)
    folder = tmp_path / "saved"
    folder.mkdir()
    paths = [folder / name for name in NAMES]
    allowed = {name: [saved_bytes(data, tmp_path, name) for data in (old, large)] for name in NAMES}
    for path in paths:
        save(old, path)
    chance = random.Random(0)
    left, in_the_middle, tries, deadline = set(), 0, 0, time.monotonic() + 120
    while tries < 8 or (not in_the_middle and time.monotonic() < deadline):
        tries += 1
        child = run_child(LOOP, *inputs, *paths)
        assert child.stdout.readline() == "ready\n", child.communicate()[1]
        time.sleep(chance.uniform(0.01, 0.3))
        child.kill()
        child.communicate()
        assert child.returncode == -signal.SIGKILL
        for path in paths:
            expect_whole(path, allowed[path.name])
        now = set(folder.glob(".sae_vis-*.tmp"))
        in_the_middle += bool(now - left)
        left = now
    assert in_the_middle  # at least one was killed while a file was half written
    for path in paths:  # what is left behind is in nobody's way
        save(large, path)
        expect_whole(path, [allowed[path.name][1]])
    assert set(folder.glob(".sae_vis-*.tmp")) == left  # young: another process may be writing it


def test_files_that_a_killed_save_left_behind_are_removed_when_they_are_old(old, tmp_path):
    stale, young, foreign = (tmp_path / f".sae_vis-{name}.tmp" for name in ("0" * 16, "1" * 16, "mine"))
    for path in (stale, young, foreign):
        path.write_text("half of a file")
    folder = tmp_path / f".sae_vis-{'2' * 16}.tmp"
    folder.mkdir()
    long_ago = time.time() - STALE_SECONDS - 60
    for path in (stale, foreign, folder):
        os.utime(path, (long_ago, long_ago))
    old.save_json(tmp_path / "data.json")
    assert {path.name for path in tmp_path.iterdir()} == {"data.json", young.name, foreign.name, folder.name}


def test_a_stale_file_that_cannot_be_removed_is_no_error(old, tmp_path, monkeypatch):
    stale = tmp_path / f".sae_vis-{'0' * 16}.tmp"
    stale.write_text("half")
    os.utime(stale, (0, 0))
    unlink = Path.unlink

    def refuse(path, missing_ok=False):
        if path == stale:
            raise PermissionError(1, "not yours")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    old.save_json(tmp_path / "data.json")
    assert MultiFeatureData.load_json(tmp_path / "data.json") == old
    assert stale.exists()


# --- a page in place of data -------------------------------------------------------------------------------------------


def laid_out_otherwise(data, path):
    data.save_json(path)
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")), indent=1), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("data.json", MultiFeatureData.save_json),
        ("data.json.gz", MultiFeatureData.save_json),
        ("page.html", MultiFeatureData.save_json),
        ("indented.json", laid_out_otherwise),
        ("labels.json", MultiFeatureData.save_labels),
    ],
)
def test_no_page_takes_the_place_of_saved_data(name, write, old, tmp_path):
    path, link = tmp_path / name, tmp_path / "link"
    write(old, path)
    link.symlink_to(path)
    before = path.read_bytes()
    for data, place in ((old, path), (old, str(link)), (make_prompt(2), path)):
        with pytest.raises(
            InputError, match=rf"Cannot write a page to .*{name if place == path else 'link'}.*saved data"
        ):
            data.save_html(place)
    assert path.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == sorted([path, link])


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"<!doctype html>", b"\x1f\x8bno gzip", b'{"format": "mine"}', b"\0" * 9000]
)
def test_a_page_takes_the_place_of_anything_else(content, old, tmp_path):
    path = tmp_path / "data.json"
    path.write_bytes(content)
    old.save_html(path)
    assert path.read_text(encoding="utf-8") == old.get_html()
    old.save_json(path)
    assert MultiFeatureData.load_json(path) == old


# --- a full disk -------------------------------------------------------------------------------------------------------


def full_as_soon_as_one_file_is_larger(limit):
    """Before a child runs: no file may become larger. Writing beyond it is an error, as on a disk that is full."""

    def set_limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return set_limit


SAVE = """
    import os, sys
    from pathlib import Path
    from sae_vis import InputError, MultiFeatureData
    data = MultiFeatureData.load_json(sys.argv[1])

    def save(path, tell):
        try:
            (data.save_html if path.suffix == ".html" else data.save_json)(path)
        except InputError as error:
            tell(error, flush=True)

    for name in ("once.json", "once.json.gz", "once.html"):  # another user may not read what Python imports later
        save(Path(sys.argv[2], name), lambda *_, **__: None)
    if sys.argv[3] != "0":
        os.setgroups([])
        os.setgid(int(sys.argv[3]))
        os.setuid(int(sys.argv[3]))
    for path in map(Path, sys.argv[4:]):
        save(path, print)
"""


@pytest.mark.parametrize("limit", [0, 1, 4096, 50_000])
def test_a_full_disk_leaves_the_old_files(limit, old, large, tmp_path):
    large.save_json(tmp_path / "large.json")
    folder = tmp_path / "saved"
    folder.mkdir()
    paths = [folder / name for name in NAMES]
    for path in paths:
        save(old, path)
    before = {path: path.read_bytes() for path in paths}
    child = run_child(
        SAVE, tmp_path / "large.json", tmp_path, 0, *paths, preexec_fn=full_as_soon_as_one_file_is_larger(limit)
    )
    told, errors = child.communicate(timeout=60)
    assert child.returncode == 0, errors
    assert [line.partition(": ")[2] for line in told.splitlines()] == ["File too large."] * 3
    for path in paths:
        expect_whole(path, [before[path]])
    assert set(folder.iterdir()) == set(paths)  # and no half of a file beside them


def fill(path):
    """Write a file until there is no room for more."""
    with path.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(b"x" * 4096)
    assert os.statvfs(path.parent).f_bavail == 0


@pytest.fixture
def small_disk(tmp_path):
    """A real disk of 1 MB, with room for a page and the next one beside it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        made = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if made.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_disk_that_is_really_full_leaves_the_old_file(name, old, large, small_disk):
    path = small_disk / name
    save(old, path)
    before = path.read_bytes()
    filler = small_disk / "filler"
    fill(filler)
    with pytest.raises(InputError, match="No space left on device"):
        save(large, path)
    expect_whole(path, [before])
    assert {one.name for one in small_disk.iterdir()} == {name, "filler"}
    filler.unlink()
    save(old, path)
    expect_whole(path, [before])


# --- a folder that cannot be written to ------------------------------------------------------------------------------


@pytest.fixture
def shared_folder():
    """A folder that other users come to; pytest's own are for one user alone."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        closed = [above for above in folder.parents if not above.stat().st_mode & 0o001]
        if closed:
            pytest.skip(f"no other user comes into {closed[0]}")
        yield folder


def test_a_folder_that_cannot_be_written_to_leaves_the_old_files(large, tmp_path, shared_folder):
    """Where we are root, whom no permission stops, another user saves."""
    large.save_json(tmp_path / "large.json")
    folder = shared_folder
    paths = [folder / name for name in NAMES]
    for path in paths:
        save(large, path)
        path.chmod(0o666)  # only the folder forbids it
    before = {path: path.read_bytes() for path in paths}
    folder.chmod(0o555)
    try:
        user = NOBODY if os.geteuid() == 0 else 0
        child = run_child(SAVE, tmp_path / "large.json", tmp_path, user, *paths, folder / "new.json")
        told, errors = child.communicate(timeout=60)
    finally:
        folder.chmod(0o755)
    assert child.returncode == 0, errors
    assert [line.partition(": ")[2] for line in told.splitlines()] == ["Permission denied."] * 4
    for path in paths:
        expect_whole(path, [before[path]])
    assert set(folder.iterdir()) == set(paths)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_link_to_a_device_that_is_full_stays_a_link(name, old, tmp_path):
    link = tmp_path / name
    link.symlink_to("/dev/full")
    with pytest.raises(InputError, match="No space left on device"):
        save(old, link)
    assert link.readlink() == Path("/dev/full")
    assert list(tmp_path.iterdir()) == [link]


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="there is no /dev/shm")
def test_a_file_in_memory_survives_a_save_that_fails(old):
    """Not all that lies below /dev is a stream."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        file = Path(folder) / "data.json"
        old.save_json(file)
        before = file.read_bytes()
        broken = copy.deepcopy(old)
        next(iter(broken.values())).decoder_norm = float("nan")
        with pytest.raises(InputError):
            broken.save_json(file)
        assert file.read_bytes() == before
        assert os.listdir(folder) == ["data.json"]
