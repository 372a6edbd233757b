"""Sites: which files there are and what is in them, and what happens to a folder that is not empty."""

from __future__ import annotations

import dataclasses
import errno
import json
import re
from pathlib import Path

import page_reading
import pytest
from rendering_fixtures import make_features, make_prompt
from test_feature_folder import trimmed, write
from test_hostile_tokens import HOSTILE, data_with_text

from sae_vis import Column, InputError, Layout, MultiFeatureData, _json, _page, _site
from sae_vis.__main__ import main
from sae_vis._furniture import title_of
from sae_vis._templates import asset

FEW = {"first_group_size": 3, "n_groups": 2, "other_groups_size": 2}


@pytest.fixture(scope="module")
def features() -> MultiFeatureData:
    return make_features(12, dead=(3,), **FEW)


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "site"


@pytest.fixture
def small_shards(monkeypatch) -> int:
    monkeypatch.setattr(_site, "SHARD_BYTES", 15_000)
    return 15_000


def index(folder: Path) -> str:
    return (folder / "index.html").read_text(encoding="utf-8")


def handed_over(path: Path) -> tuple[str, object]:
    """What a file of a site hands to the page: its name there, and the value."""
    found = re.fullmatch(r'saeVis\.receive\("([a-z0-9]+)",(.*)\);\n', path.read_text(encoding="ascii"), re.DOTALL)
    assert found, path
    return found[1], json.loads(found[2])


def shards(folder: Path) -> list[tuple[str, int]]:
    return [tuple(shard) for shard in page_reading.data(index(folder), "site")["shards"]]


def packed(folder: Path) -> dict[int, str]:
    """The fragments of all shards, inflated."""
    found = {}
    for number, (file, _) in enumerate(shards(folder)):
        name, fragments = handed_over(folder / file)
        assert name == f"{number:05d}"
        found |= {int(i): page_reading.unpacked(text, index(folder)) for i, text in fragments.items()}
    return found


def ids(folder: Path) -> list[int]:
    ranges = page_reading.data(index(folder), "index")["ranges"]
    return [i for low, high in ranges for i in range(low, high + 1)]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- what is in it -------------------------------------------------------------------------------------------------------


def test_every_feature_is_in_a_shard_as_in_the_single_page(features, folder, small_shards):
    features.save_site(folder)
    page = features._context()
    assert packed(folder) == {i: features[i].get_html(page) for i in features}
    assert ids(folder) == list(features)
    found = shards(folder)
    assert len(found) > 3
    for number, (file, first) in enumerate(found):
        fragments = list(map(int, handed_over(folder / file)[1]))
        end = found[number + 1][1] if number + 1 < len(found) else len(features)
        assert fragments == list(features)[first:end]
        assert (folder / file).stat().st_size <= small_shards or len(fragments) == 1


@pytest.mark.parametrize("size", [1, 1000, 10**9])
def test_shards_of_any_size(size, features, folder, monkeypatch):
    monkeypatch.setattr(_site, "SHARD_BYTES", size)
    features.save_site(folder)
    assert list(packed(folder)) == list(features)
    assert len(shards(folder)) == (1 if size == 10**9 else 12)


def test_shards_are_of_two_megabytes(folder):
    text = "A" * 300_000
    _site.write(folder, "t", "T", _page.Html(), {}, (_site.Packed(i, None, text) for i in range(40)))
    sizes = [(folder / file).stat().st_size for file, _ in shards(folder)]
    assert all(1_700_000 < size <= 2_000_000 for size in sizes[:-1])


def test_the_page_is_that_of_the_single_file_but_for_where_the_features_are(features, folder):
    features.save_site(folder, feature=5)
    site, single = page_reading.parse(index(folder)), page_reading.parse(features.get_html(feature=5))
    for part in ("main", "header", "footer"):
        ours, theirs = site.find(f".//{part}"), single.find(f".//{part}")
        assert page_reading.text_of(ours) == page_reading.text_of(theirs)
        assert page_reading.skeleton(ours) == page_reading.skeleton(theirs)
    assert site.find(".//title").text == single.find(".//title").text == "Feature 5 · " + title_of(features._context())
    assert not page_reading.packed(index(folder))


def test_the_tokens_and_the_labels_have_files_of_their_own(features, folder):
    features.save_site(folder)
    told = page_reading.data(index(folder), "site")
    name, text = handed_over(folder / told["vocab"])
    assert (name, json.loads(text)) == ("vocab", page_reading.data(features.get_html(), "vocab"))
    name, text = handed_over(folder / told["labels"])
    assert (name, json.loads(text)) == ("labels", {"1": "Django model fields"})
    features = make_features(2, **FEW)
    features[1].label = None
    features.save_site(folder)
    assert "labels" not in page_reading.data(index(folder), "site")
    kinds = {file.name.partition("-")[0] for file in (folder / "assets").iterdir()}
    assert kinds == {"vocab", "overview", "examples0", "rows00000"}


def test_equal_data_gives_equal_files(features, tmp_path):
    for name in ("one", "other"):
        features.save_site(tmp_path / name)
    assert files(tmp_path / "one") == files(tmp_path / "other")


def test_several_processes_give_the_same_files(features, tmp_path):
    features.save_site(tmp_path / "one", processes=1)
    features.save_site(tmp_path / "other", processes=2)
    assert files(tmp_path / "one") == files(tmp_path / "other")
    with pytest.raises(InputError, match="processes"):
        features.save_site(tmp_path / "third", processes=0)


def test_a_feature_folder_gives_the_same_site(tmp_path):
    data = trimmed(make_features(7, **FEW))
    data.save_site(tmp_path / "one")
    write(data, tmp_path / "run").save_site(tmp_path / "other")
    assert files(tmp_path / "one") == files(tmp_path / "other")


def test_the_index_of_a_whole_dictionary_stays_small(features, folder):
    def many():
        for i in range(16_384):
            yield _site.Packed(i, f"label {i}", "eJwDAAAAAAE=")

    _site.write(folder, "t", "T", _page.Html("<p></p>"), {}, many())
    assert len(index(folder)) < 60_000
    assert ids(folder) == list(range(16_384))


def test_ids_with_gaps():
    assert _site._ranges([]) == []
    assert _site._ranges([0]) == [[0, 0]]
    assert _site._ranges([0, 1, 2, 5, 7, 8]) == [[0, 2], [5, 5], [7, 8]]


def test_no_features(features, folder):
    dataclasses.replace(features, feature_data_dict={}).save_site(folder)
    assert "There are no features in this data" in index(folder)
    assert shards(folder) == []


def test_one_feature(features, folder):
    dataclasses.replace(features, feature_data_dict={7: features[7]}).save_site(folder)
    assert list(packed(folder)) == ids(folder) == [7]


def test_an_absent_feature_is_an_error_before_anything_is_written(features, folder):
    with pytest.raises(InputError, match="Feature 99 is not in this data"):
        features.save_site(folder, feature=99)
    assert not folder.exists()


def test_features_are_taken_one_after_the_other(features, folder, small_shards):
    """When one is drawn, all that came before and fill a shard are on disk."""
    page = features._context()

    def watched():
        drawn = 0
        for i in features:
            packed = _site.Packed(i, None, _page.pack(features[i].get_html(page)))
            written = sum(path.stat().st_size for path in (folder / "features").glob("*.js"))
            assert drawn - written < 2 * small_shards
            drawn += len(packed.fragment)
            yield packed

    _site.write(folder, "t", "T", features.get_html(), {}, watched())


def test_style_and_script_of_features_that_are_not_shown_at_first_are_there(folder):
    """The first feature never fires, so it has no plot."""
    layout = Layout([Column("activations_histogram")])
    features = make_features(2, dead=(0,), layout=layout, **FEW)
    features.save_site(folder)
    for document in (index(folder), features.get_html()):
        assert asset("css/plots.css") in document


# --- hostile text --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_text_stays_text(text, folder):
    features, _ = data_with_text(text)
    features.save_site(folder)
    page_reading.parse(index(folder))
    told = page_reading.data(index(folder), "site")
    for file in (folder / "features").iterdir():
        assert re.fullmatch(
            r'saeVis\.receive\("\d{5}",\{("\d+":"[A-Za-z0-9+/=]*"(,\n)?)*\}\);\n', file.read_text("ascii")
        )
    for kind in ("vocab", "labels"):
        if kind in told:
            content = (folder / told[kind]).read_bytes()
            assert content.isascii()
            assert content.count(b"\n") == 1
            json.loads(handed_over(folder / told[kind])[1])


def test_the_policy_lets_only_the_scripts_of_the_page_add_one(features, folder):
    features.save_site(folder)
    found, second = re.findall(r'Content-Security-Policy" content="([^"]*)"', index(folder))
    policy = dict(part.split(" ", 1) for part in found.split("; "))
    assert policy["default-src"] == "'none'"
    sources = policy["script-src"].split()
    assert sources[-1] == "'strict-dynamic'"
    assert second == f"script-src {' '.join(sources[:-1])} 'self' file:"
    assert all(source.startswith("'sha256-") for source in sources[:-1])
    assert len(sources) - 1 == len(page_reading.running_scripts(page_reading.parse(index(folder))))
    assert "strict-dynamic" not in features.get_html()


# --- the folder ------------------------------------------------------------------------------------------------------------


def test_an_older_site_is_replaced_and_what_only_it_used_is_removed(features, folder, small_shards):
    features.save_site(folder)
    (folder / "CNAME").write_text("mine", encoding="utf-8")
    (folder / "features" / "mine.js").write_text("mine", encoding="utf-8")
    before = files(folder)
    other = dataclasses.replace(features, feature_data_dict={i: features[i] for i in (0, 1)})
    other.save_site(folder)
    assert list(packed(folder)) == [0, 1]
    told = page_reading.data(index(folder), "site")
    used = {
        "index.html",
        told["vocab"],
        told["labels"],
        *told["assets"].values(),
        *(file for file, _ in (*told["shards"], *told["rows"])),
    }
    assert set(files(folder)) == {*used, "CNAME", "features/mine.js"}
    features.save_site(folder)
    assert files(folder) == before
    (folder / "index.html").write_text(index(folder).replace('data-json="site"', 'id="site"'), encoding="utf-8")
    features.save_site(folder)  # as sites were marked once
    assert files(folder) == before


def test_a_file_that_cannot_be_removed_keeps_no_other_one(features, folder, small_shards):
    features.save_site(folder)
    (folder / "features" / "00000-0000000000000000.js").mkdir()  # as one that another program holds
    dataclasses.replace(features, feature_data_dict={0: features[0]}).save_site(folder)
    left = [path.name for path in (folder / "features").iterdir() if path.is_file()]
    assert left == [file.partition("/")[2] for file, _ in shards(folder)]


@pytest.mark.parametrize(
    "foreign", ["index.html", "thesis.tex", "features/mine.js", "assets/vocab.js", "features/00000-0123456789abcdeg.js"]
)
def test_a_folder_with_other_files_is_refused_and_left_alone(foreign, features, folder):
    (folder / foreign).parent.mkdir(parents=True)
    (folder / foreign).write_text("<!doctype html>mine", encoding="utf-8")
    with pytest.raises(InputError, match=rf"^The folder .*{re.escape(repr(foreign))}.* or a new folder\.$"):
        features.save_site(folder)
    assert files(folder) == {foreign: b"<!doctype html>mine"}


def test_a_single_page_is_no_site(features, folder):
    folder.mkdir()
    features.save_html(folder / "index.html")
    with pytest.raises(InputError, match=r"holds other files \('index.html'\)"):
        features.save_site(folder)


def test_a_folder_that_cannot_be_made_is_a_clear_error(features, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "features").write_bytes(b"")
    cases = {
        "file": "File exists|Not a directory",
        "no/such": "its parent does not exist",
        "a\0b": "null",
        "taken": "directory|exists",
    }
    for name, message in cases.items():
        with pytest.raises(InputError, match=message):
            features.save_site(tmp_path / name)


@pytest.mark.parametrize("stop_at", ["00002", "vocab", "labels", "rows", "index"])
@pytest.mark.parametrize("older", [True, False])
def test_a_site_that_is_interrupted_leaves_the_older_one_whole(
    stop_at, older, features, folder, small_shards, monkeypatch
):
    if older:
        make_features(5, seed=1, **FEW).save_site(folder)
    before = files(folder)
    write_atomic = _json.write_atomic

    def dying(path, content):
        if Path(path).name.startswith(stop_at):
            raise KeyboardInterrupt
        write_atomic(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(_json, "write_atomic", dying)
        with pytest.raises(KeyboardInterrupt):
            features.save_site(folder)
    assert before.items() <= files(folder).items()
    features.save_site(folder)
    assert list(packed(folder)) == list(features)
    assert len(files(folder)) == len(shards(folder)) + 6  # vocab, labels, rows, overview, examples, index


def test_a_full_disk_is_a_clear_error(features, folder, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match="No space left"):
        features.save_site(folder)
    assert files(folder) == {}


# --- the command line --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["json", "json.gz", "folder"])
def test_the_command_makes_a_site_of_anything_that_is_saved(kind, tmp_path, capsys):
    data = trimmed(make_features(4, **FEW))
    source = tmp_path / ("run" if kind == "folder" else f"run.{kind}")
    if kind == "folder":
        write(data, source)
    else:
        data.save_json(source)
    data.save_site(tmp_path / "expected")
    assert main(["site", str(source)]) == 0
    told = capsys.readouterr().out
    assert str(tmp_path / "run_site") in told
    assert "7 files" in told
    assert main(["site", str(source), "-o", str(tmp_path / "other"), "--processes", "2"]) == 0
    assert files(tmp_path / "run_site") == files(tmp_path / "other") == files(tmp_path / "expected")


def test_the_command_says_what_it_cannot_do(tmp_path, capsys):
    make_prompt(3, **FEW).save_json(tmp_path / "prompt.json")
    assert main(["site", str(tmp_path / "prompt.json")]) == 2
    assert "sae-vis html" in capsys.readouterr().err
    make_features(2, **FEW).save_json(tmp_path / "run.json")
    (tmp_path / "run_site").mkdir()
    (tmp_path / "run_site" / "mine.txt").write_text("mine", encoding="utf-8")
    assert main(["site", str(tmp_path / "run.json")]) == 2
    assert "mine.txt" in capsys.readouterr().err
