"""Broken files: whatever a file holds, it is refused with a ``SaeVisError``, or it loads, saves again and draws."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import re
import struct
import tempfile
import zlib
from pathlib import Path

import pytest
from fuzzing import (
    ENCODINGS,
    FLOATS,
    INTS,
    any_value,
    broken_bytes,
    broken_document,
    places,
    survey,
)
from page_reading import inflated, packed, parse, parse_fragment
from rendering_fixtures import make_features, make_prompt

from sae_vis import FileFormatError, MultiFeatureData, MultiPromptData, _json
from sae_vis.__main__ import main

BOTH = [MultiFeatureData, MultiPromptData]
TINY = {"first_group_size": 1, "n_groups": 1, "other_groups_size": 1, "n_bins": 3, "n_logits": 2, "buffer": (2, 2)}
NOT_A_NUMBER = re.compile(r"(?<![A-Za-z-])(?:nan|inf)(?![A-Za-z])")
STRICTLY = 400  # one page in so many is parsed as a browser would, packed parts and all


@pytest.fixture
def files(feature_data, prompt_data):
    """Small files of both kinds: by hand, and like a real run."""
    real = [make_features(3, dead=(1,), **TINY), make_prompt(2, 4, n_top=1, **TINY)]
    for one in real:
        one.vocab_bytes = {}
        one.vocab = {token_id: text for token_id, text in one.vocab.items() if token_id < 12}
    return [b"".join(_json.document(data)) for data in (feature_data, prompt_data, *real)]


@pytest.fixture
def documents(files):
    return [data.decode() for data in files]


@pytest.fixture
def fast_folder(tmp_path):
    """A folder in memory where there is one: on a disk, writing a file over and over takes most of the time."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.fixture
def check(fast_folder):
    return Checker(fast_folder)


class Checker:
    """Writes a broken file and does with it what a user would."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "broken.json"
        self.drawn = 0

    def __call__(self, data: bytes) -> str:
        self.path.write_bytes(data)
        loaded = _json.load_any(BOTH, self.path)
        saved = b"".join(_json.document(loaded))
        self.path.write_bytes(saved)
        again = type(loaded).load_json(self.path)
        assert again == loaded
        assert b"".join(_json.document(again)) == saved
        page = loaded.get_html()
        page.encode()
        assert not NOT_A_NUMBER.search(without_texts(page)), NOT_A_NUMBER.search(without_texts(page))
        self.drawn += 1
        if self.drawn % STRICTLY == 1:
            parse(page)
            for fragment in packed(page).values():
                parse_fragment(fragment)
                assert not NOT_A_NUMBER.search(without_texts(fragment))
        return "drawn"


def without_texts(page):
    """What the page says, without what it includes and what is packed."""
    return re.sub(r"<(style|script)(?: type=\"text/plain\"[^>]*)?>.*?</\1>", "", page, flags=re.DOTALL)


# --- the whole file --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", range(4))
def test_any_change_of_the_tree_is_refused_or_right(part, documents, check):
    answers = survey(f"tree {part}", 2000, lambda random: broken_document(random, documents), check)
    assert answers["drawn"] > 0.02 * answers.total()
    assert answers["refused"] > 0.2 * answers.total()


@pytest.mark.parametrize("part", range(2))
def test_any_change_of_the_bytes_is_refused_or_right(part, files, check):
    answers = survey(f"bytes {part}", 10_000, lambda random: broken_bytes(random, files), check)
    assert answers["drawn"] > 0.02 * answers.total()
    assert answers["refused"] > 0.2 * answers.total()


def other_numbers(random, documents):
    """A document whose numbers are others of their type: most of these load, and have to be drawn."""
    tree = json.loads(random.choice(documents))
    numbers = [(at, key) for at, key in places(tree) if type(at[key]) in (int, float) and key != "version"]
    for at, key in random.sample(numbers, random.choice([1, 1, 2, 3])):
        whole = type(at[key]) is int
        near = [at[key] * 2, at[key] + 1] if whole else [-at[key], at[key] * 1e-300, at[key] * 1e300, at[key] / 3]
        at[key] = random.choice([*near, *(INTS if whole else FLOATS)])
    return json.dumps(tree).encode()


@pytest.mark.parametrize("part", range(2))
def test_any_numbers_are_refused_or_drawn(part, documents, check):
    answers = survey(f"numbers {part}", 1000, lambda random: other_numbers(random, documents), check)
    assert answers["drawn"] > 0.02 * answers.total()


def foreign(random, files):
    """JSON or text that never was a file of ours, or one in another encoding."""
    kind = random.randrange(4)
    if kind == 0:
        return json.dumps(any_value(random, 3)).encode()
    if kind == 1:
        return random.randbytes(random.choice([0, 1, 2, 10, 300]))
    if kind == 2:
        text = random.choice(files).decode()[: random.choice([10, 300, 10_000])]
        return text.encode(random.choice(ENCODINGS))
    envelope = {"format": "sae_vis", "kind": "MultiFeatureData", "version": 1, "header": {}, "features": []}
    for key in random.sample(sorted(envelope), random.choice([1, 2, 5])):
        envelope[key] = any_value(random)
    return json.dumps(envelope).encode("utf-8", "surrogatepass")


def test_what_never_was_a_file_of_ours_is_refused(files, check):
    answers = survey("foreign", 10_000, lambda random: foreign(random, files), check)
    assert answers["refused"] > 0.2 * answers.total()


# --- gzip ------------------------------------------------------------------------------------------------------------


def header_of_gzip(random):
    """A header with any flags: extra fields, a name, a comment, a checksum of its own."""
    flags = random.randrange(32)
    extra = struct.pack("<H", 5) + b"extra" if flags & 4 else b""
    names = b"name\x00" * bool(flags & 8) + b"comment\x00" * bool(flags & 16)
    head = b"\x1f\x8b\x08" + bytes([flags]) + b"\x00\x00\x00\x00\x00\xff" + extra + names
    return head + (struct.pack("<H", zlib.crc32(head) & 0xFFFF) if flags & 2 else b"")


def broken_gzip(random, files):
    data = random.choice(files)
    kind = random.randrange(9)
    if kind == 0:  # in several streams, one after the other
        cut = random.randint(0, len(data))
        return gzip.compress(data[:cut]) + gzip.compress(data[cut:])
    packed_data = gzip.compress(data, random.choice([0, 1, 9]))
    if kind == 1:
        return packed_data + random.choice([b"\x00" * 9, b"x", gzip.compress(b""), gzip.compress(b" \n"), packed_data])
    if kind == 2:
        return gzip.compress(packed_data)
    if kind == 3:
        raw = zlib.compressobj(6, zlib.DEFLATED, -15)
        body = raw.compress(data) + raw.flush()
        return header_of_gzip(random) + body + struct.pack("<II", zlib.crc32(data), random.choice([len(data), 0]))
    if kind == 4:
        return random.choice(
            [data[:50] + packed_data, b"\x1f\x8b" + data, b"\x1f\x8b", b"\x1f\x8b\x08" + random.randbytes(30)]
        )
    if kind == 5:
        return gzip.compress(broken_bytes(random, files), 1)
    return broken_bytes(random, [packed_data, gzip.compress(random.choice(files), 1)])


def test_any_gzip_is_refused_or_right(files, check):
    answers = survey("gzip", 3000, lambda random: broken_gzip(random, files), check)
    assert answers["drawn"] > 0.02 * answers.total()
    assert answers["refused"] > 0.2 * answers.total()


@pytest.mark.parametrize("bomb", ["spaces", "brackets", "many streams", "digits", "a long text"])
def test_a_bomb_is_refused_at_the_limit(bomb, files, tmp_path):
    content = {
        "spaces": b" " * 50_000_000,
        "brackets": b"[" * 50_000_000,
        "many streams": b"",
        "digits": b"9" * 50_000_000,
        "a long text": files[0].replace(b" the", b"x" * 50_000_000),
    }[bomb]
    path = tmp_path / "bomb.json.gz"
    path.write_bytes(gzip.compress(content, 1) if content else gzip.compress(b" " * 10_000_000, 1) * 100)
    assert path.stat().st_size < 5_000_000
    with pytest.raises(FileFormatError, match=r"bomb\.json\.gz: larger than 20,000,000 bytes"):
        MultiFeatureData.load_json(path, max_bytes=20_000_000)
    with pytest.raises(FileFormatError, match="larger than"):
        MultiPromptData.load_json(path, max_bytes=20_000_000)


def test_what_a_bomb_would_be_loads_where_it_is_allowed(files, tmp_path):
    path = tmp_path / "large.json.gz"
    path.write_bytes(gzip.compress(files[0].replace(b" the", b"x" * 5_000_000)))
    with pytest.raises(FileFormatError, match="give a larger max_bytes"):
        MultiFeatureData.load_json(path, max_bytes=5_000_000)
    assert len(MultiFeatureData.load_json(path, max_bytes=6_000_000).vocab[5]) == 5_000_000


# --- what is no file at all ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1"])
def test_text_in_another_encoding_is_refused(encoding, feature_data, tmp_path):
    path = tmp_path / "data.json"
    feature_data.vocab[5] = "é"
    path.write_bytes(b"".join(_json.document(feature_data)).decode().replace("\u2028", "").encode(encoding))
    with pytest.raises(FileFormatError, match=r"data\.json"):
        MultiFeatureData.load_json(path)


@pytest.mark.parametrize(
    "name", ["", ".", "nowhere.json", "a\x00b.json", "x" * 300, "folder", "folder/", "file/inside.json"]
)
def test_what_is_no_file_is_refused(name, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"{}")
    for cls in BOTH:
        with pytest.raises(FileFormatError):
            cls.load_json(f"{tmp_path}/{name}")
        with pytest.raises(FileFormatError):
            cls.load_json(Path(str(tmp_path)) / name)


def test_a_link_to_itself_and_a_link_to_nothing_are_refused(tmp_path):
    (tmp_path / "loop.json").symlink_to("loop.json")
    (tmp_path / "lost.json").symlink_to("nowhere.json")
    for name in ("loop.json", "lost.json"):
        with pytest.raises(FileFormatError, match="cannot be read"):
            MultiFeatureData.load_json(tmp_path / name)


# --- the command line ------------------------------------------------------------------------------------------------


def test_the_command_line_says_in_one_line_what_is_wrong(files, documents, fast_folder):
    path, out = fast_folder / "broken.json", fast_folder / "out.html"

    def commands(data):
        path.write_bytes(data)
        codes = set()
        for arguments in (["info", str(path)], ["html", str(path), "-o", str(out), "--force"]):
            told, errors = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(told), contextlib.redirect_stderr(errors):
                codes.add(main(arguments))
            assert "Traceback" not in errors.getvalue()
            if 2 in codes:
                assert errors.getvalue().startswith("sae-vis: error: ")
                assert not told.getvalue()
            told.getvalue().encode("ascii", "backslashreplace")
        (code,) = codes  # what one command can read, the other can too
        assert code in {0, 2}
        return "shown" if code == 0 else "told"

    def case(random):
        return broken_document(random, documents) if random.random() < 0.5 else broken_bytes(random, files)

    answers = survey("command line", 1500, case, commands)
    assert answers["shown"] > 0.02 * answers.total()
    assert answers["told"] > 0.2 * answers.total()
    assert inflated(out.read_text(encoding="utf-8"))
