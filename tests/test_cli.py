"""The command line: what it prints, its exit codes, what it refuses to overwrite, and that it needs no torch."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest

import sae_vis
from sae_vis import InputError, MultiFeatureData, __main__

CHECKOUT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "numpy", "transformer_lens", "jaxtyping", "safetensors", "tqdm", "transformers")


def command(*args: object, **options) -> subprocess.CompletedProcess:
    """``sae-vis ARGS`` in a process of its own."""
    line = [sys.executable, "-m", "sae_vis", *map(str, args)]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    return subprocess.run(line, capture_output=True, text=True, env=environment, check=False, timeout=120, **options)


def without_torch(*args: object) -> subprocess.CompletedProcess:
    """The same, where importing anything heavy fails; the last line printed says what was imported."""
    program = f"""
import sys
sys.modules.update(dict.fromkeys({HEAVY!r}))  # None there makes the import fail
sys.argv[0] = "sae-vis"
from sae_vis.__main__ import main
sys.exit(main())
"""
    line = [sys.executable, "-c", program, *map(str, args)]
    return subprocess.run(line, capture_output=True, text=True, cwd=CHECKOUT, check=False, timeout=120)


@pytest.fixture
def saved(feature_data, tmp_path) -> Path:
    feature_data.save_json(tmp_path / "some features.json")
    return tmp_path / "some features.json"


def test_version_and_help():
    assert command("--version").stdout == f"sae-vis {sae_vis.__version__}\n"
    help_text = command("--help").stdout
    assert all(name in help_text for name in ("demo", "html", "site", "info"))
    for name in ("demo", "html", "site", "info"):
        done = command(name, "--help")
        assert done.returncode == 0
        assert f"usage: sae-vis {name}" in done.stdout


@pytest.mark.parametrize("args", [("--help",), ("--version",), ("demo", "--help")])
def test_help_needs_no_torch(args):
    assert without_torch(*args).returncode == 0


@pytest.mark.parametrize("args", [(), ("nonsense",), ("html",), ("demo", "--features", "many")])
def test_wrong_usage_is_exit_code_2(args):
    done = command(*args)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: sae-vis")
    assert "Traceback" not in done.stderr


def test_html_draws_the_page_beside_the_file_without_torch(saved, feature_data):
    done = without_torch("html", saved)
    assert done.returncode == 0, done.stderr
    page = saved.with_name("some features.html")
    assert str(page) in done.stdout
    assert page.read_text("utf-8") == feature_data.get_html()


def test_html_of_a_prompt_and_of_a_gzipped_file(prompt_data, tmp_path):
    prompt_data.save_json(tmp_path / "prompt.json.gz")
    assert __main__.main(["html", str(tmp_path / "prompt.json.gz")]) == 0
    assert (tmp_path / "prompt.html").read_text("utf-8").startswith("<!")
    assert __main__.main(["html", str(tmp_path / "prompt.json.gz"), "-o", str(tmp_path / "other.html")]) == 0
    assert (tmp_path / "other.html").read_bytes() == (tmp_path / "prompt.html").read_bytes()


def test_html_to_standard_output_is_the_page_alone(saved):
    done = command("html", saved, "-o", "/dev/stdout")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("<!")
    assert done.stdout.rstrip().endswith("</html>")


def test_info_says_what_a_file_holds_without_torch(saved):
    done = without_torch("info", saved)
    assert done.returncode == 0, done.stderr
    for text in (str(saved), "MultiFeatureData", "2: 2, 8", "toy", "blocks.0.mlp.hook_post", "10 rows of 40", "1.0.0"):
        assert text in done.stdout
    assert "median 0.01, from 0.01 to 0.01; 0 never active" in done.stdout


def test_info_on_a_terminal_that_lacks_characters(prompt_data, tmp_path):
    prompt_data.vocab[6] = "→\ud800\x1b[31m"
    prompt_data.save_json(tmp_path / "p.json")
    line = [sys.executable, "-m", "sae_vis", "info", str(tmp_path / "p.json")]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(line, capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert b"3 tokens" in done.stdout
    assert b"\x1b" not in done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_output_on_a_full_disk_is_an_error_in_one_line(feature_data, tmp_path):
    feature_data.save_json(tmp_path / "x.json")
    line = [sys.executable, "-m", "sae_vis", "info", str(tmp_path / "x.json")]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True, cwd=CHECKOUT, check=False)
    assert done.returncode == 2
    assert done.stderr == "sae-vis: error: the output cannot be written: No space left on device\n"


def test_info_of_a_file_without_features(feature_data, tmp_path, capsys):
    feature_data.feature_data_dict = {}
    feature_data.save_json(tmp_path / "x.json")
    assert __main__.main(["info", str(tmp_path / "x.json")]) == 0
    assert re.search(r"features +none", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"\x89PNG\r\n", "it is not JSON."),
        (b"feature,density", "it is not JSON."),
        (b"features{", "it is not JSON."),
        (b"\0" * 20, "it is not JSON."),
        (b"\x10" + b"\0" * 7 + b'{"__metadata__":', "it is not JSON; load_activations reads files of activations."),
        (b'{"format": "sae_vis", ', "$: Input data was truncated."),
        (b"3", "$: expected object, got int."),
    ],
)
def test_info_of_what_is_no_saved_data_says_what_it_is(content, told, tmp_path, capsys):
    path = tmp_path / "x"
    path.write_bytes(content)
    assert __main__.main(["info", str(path)]) == 2
    assert capsys.readouterr().err == f"sae-vis: error: {path}: not readable as a file of sae_vis: {told}\n"


@pytest.mark.parametrize("name", ["html", "info"])
def test_an_error_is_one_line_and_exit_code_2(name, tmp_path):
    (tmp_path / "x.json").write_text("{}", "utf-8")
    for file, message in (("x.json", "not a file of sae_vis"), ("absent.json", "No such file")):
        done = command(name, tmp_path / file)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.startswith(f"sae-vis: error: {tmp_path / file}: ")
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
        assert sorted(path.name for path in tmp_path.iterdir()) == ["x.json"]


# --- overwriting ---------------------------------------------------------------------------------------------------


def test_a_page_of_ours_is_overwritten(saved):
    assert __main__.main(["html", str(saved)]) == 0
    assert __main__.main(["html", str(saved)]) == 0


def test_a_page_says_who_wrote_it(feature_data, prompt_data):
    for data in (feature_data, prompt_data):
        start = data.get_html().encode()[: __main__.MARK_WITHIN]
        assert __main__.OWN_MARKS["page"] in start


@pytest.mark.parametrize("content", ["<!DOCTYPE html><p>my notes", "x" * 10_000, '{"format": "mine"}'])
def test_a_file_of_somebody_else_is_not(content, saved, capsys):
    page = saved.with_suffix(".html")
    page.write_text(content, "utf-8")
    assert __main__.main(["html", str(saved)]) == 2
    assert "is no page of sae-vis: give --force" in capsys.readouterr().err
    assert page.read_text("utf-8") == content
    assert __main__.main(["html", str(saved), "--force"]) == 0
    assert page.read_text("utf-8") != content


def test_saved_data_is_no_page(saved, tmp_path, capsys):
    """A slip of -o must not cost hours of computing."""
    other = tmp_path / "other.json"
    other.write_bytes(saved.read_bytes())
    zipped = tmp_path / "other.json.gz"
    MultiFeatureData.load_json(saved).save_json(zipped)
    for out, force in ((other, []), (saved, []), (zipped, []), (other, ["--force"]), (zipped, ["--force"])):
        assert __main__.main(["html", str(saved), "-o", str(out), *force]) == 2
        assert "the file holds saved data. Give the page another name" in capsys.readouterr().err
        assert MultiFeatureData.load_json(out)


@pytest.mark.parametrize("command", ["html", "site", "info"])
def test_names_that_no_file_has_are_told(command, capsys):
    for name in (f"{'x' * 300}.json", "x" * 300, "/"):
        assert __main__.main([command, name]) == 2
        told = capsys.readouterr().err
        assert any(text in told for text in ("name too long", "no feature folder", "there is no place beside '/'"))
        assert told.count("\n") == 1


def test_an_empty_file_may_be_filled(saved):
    saved.with_suffix(".html").touch()
    assert __main__.main(["html", str(saved)]) == 0


def test_an_output_in_no_folder(saved, tmp_path, capsys):
    assert __main__.main(["html", str(saved), "-o", str(tmp_path / "no" / "x.html")]) == 2
    assert "its folder does not exist" in capsys.readouterr().err


# --- demo ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def demo(monkeypatch, feature_data) -> list:
    """A stand-in for the real demo, which takes a minute; what it was called with."""
    calls = []

    def run(out_dir: Path, *, features: int | None, quiet: bool) -> list[Path]:
        calls.append((out_dir, features, quiet))
        paths = [out_dir / name for name in __main__.DEMO_FILES]
        for path in paths:
            feature_data.save_json(path) if path.suffix == ".json" else feature_data.save_html(path)
        return paths

    module = types.ModuleType("sae_vis._demo")
    module.run = run
    monkeypatch.setitem(sys.modules, "sae_vis._demo", module)
    monkeypatch.setattr(sae_vis, "_demo", module, raising=False)
    return calls


def test_demo_says_where_the_files_are(demo, tmp_path, capsys):
    assert __main__.main(["demo", "-o", str(tmp_path), "--features", "7", "--quiet"]) == 0
    assert demo == [(tmp_path, 7, True)]
    out = capsys.readouterr().out
    assert all(str(tmp_path / name) in out for name in __main__.DEMO_FILES)
    assert "browser" in out
    assert __main__.main(["demo", "-o", str(tmp_path)]) == 0  # over its own files
    assert demo[1] == (tmp_path, None, False)


def test_demo_writes_here_by_default(demo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert __main__.main(["demo"]) == 0
    assert MultiFeatureData.load_json(tmp_path / "demo_features.json")


def test_demo_does_not_overwrite_what_is_not_its_own(demo, tmp_path, capsys):
    (tmp_path / "demo_features.json").write_text("{}", "utf-8")
    assert __main__.main(["demo", "-o", str(tmp_path)]) == 2
    assert "demo_features.json' is no saved data of sae-vis" in capsys.readouterr().err
    assert demo == []
    assert __main__.main(["demo", "-o", str(tmp_path), "--force"]) == 0


def test_a_page_is_no_saved_data(demo, feature_data, tmp_path, capsys):
    feature_data.save_html(tmp_path / "demo_features.json")
    assert __main__.main(["demo", "-o", str(tmp_path)]) == 2
    assert "is no saved data of sae-vis: give --force" in capsys.readouterr().err
    assert demo == []


def test_demo_makes_its_folder(demo, tmp_path):
    assert __main__.main(["demo", "-o", str(tmp_path / "new")]) == 0
    assert {path.name for path in (tmp_path / "new").iterdir()} == set(__main__.DEMO_FILES)


@pytest.mark.parametrize("args", [["--features", "0"], ["-o", "/no/such/folder"], ["-o", __file__], ["-o", "a\0b"]])
def test_demo_checks_its_arguments_before_it_works(args, demo, capsys):
    assert __main__.main(["demo", *args]) == 2
    assert capsys.readouterr().err.startswith("sae-vis: error: --")
    assert demo == []


# --- how it ends ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (InputError("too bad"), 2)])
def test_exit_codes(error, code, monkeypatch, capsys):
    def fail(_):
        raise error

    monkeypatch.setattr(__main__, "_info", fail)
    assert __main__.main(["info", "x"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err in ("sae-vis: interrupted\n", "sae-vis: error: too bad\n")


def test_a_pipe_that_is_closed_early(saved):
    line = f"{sys.executable} -m sae_vis info '{saved}' 2>&1 >&3 3>&- | cat"
    script = f"exec 3> >(exec true); sleep 0.3; {line}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=CHECKOUT, check=False)
    assert done.stdout == ""  # standard error of sae-vis
    assert done.stderr == ""


def test_an_interrupt_from_outside(tmp_path):
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    line = [sys.executable, "-m", "sae_vis", "info", str(pipe)]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background has programs ignore it
    # opening the pipe waits until the program opens it too
    try:
        process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, cwd=CHECKOUT)
    finally:
        signal.signal(signal.SIGINT, before)
    with process, pipe.open("wb"):
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == "sae-vis: interrupted\n"
    assert process.returncode == 130
