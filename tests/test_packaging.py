"""What is installed is what is in the checkout, however it is installed, and it works with msgspec and zlib-ng alone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import sae_vis

CHECKOUT = Path(__file__).resolve().parents[1]
TEMPLATES = ("css", "html", "js")
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text("utf-8"))["project"]
MAX_WHEEL = 14_000_000  # bytes
ALL_WAYS = pytest.mark.parametrize("way", ["wheel", "sdist", "editable", "checkout"])

pytestmark = pytest.mark.xdist_group("packaging")  # the builds are shared


def run(*line: object, **options) -> str:
    """Run a program that must succeed; what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | options.pop("env", {})
    done = subprocess.run(
        list(map(str, line)), capture_output=True, text=True, check=False, env=environment, timeout=300, **options
    )
    assert done.returncode == 0, f"{' '.join(map(str, line))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def files_below(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }


def expected_files() -> set[str]:
    """The files of an installed sae_vis, from those in the checkout."""
    package = {f"sae_vis/{name}" for name in files_below(CHECKOUT / "sae_vis")}
    return package | {f"sae_vis/{kind}/{name}" for kind in TEMPLATES for name in files_below(CHECKOUT / kind)}


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A copy of the checkout, so that building leaves nothing in the original."""
    copy = tmp_path_factory.mktemp("packaging") / "checkout"
    leave_out = shutil.ignore_patterns(
        ".venv*", ".git", "__pycache__", "*.egg-info", "build", "dist", ".*_cache", ".hypothesis"
    )
    shutil.copytree(CHECKOUT, copy, ignore=leave_out)
    return copy


@pytest.fixture(scope="module")
def tools(tmp_path_factory) -> Path:
    """A folder with hatchling and what it needs, and with no sae_vis."""
    tools = tmp_path_factory.mktemp("tools")
    for name in ("hatchling", "packaging", "pathspec", "pluggy", "trove_classifiers", "editables"):
        for found in Path(sysconfig.get_path("purelib")).glob(f"{name}*"):
            (tools / found.name).symlink_to(found)
    return tools


@pytest.fixture(scope="module")
def built(copy, tmp_path_factory) -> dict[str, Path]:
    """The sdist, the wheel that is made from it, and the wheel that is made from the checkout."""
    out = tmp_path_factory.mktemp("built")
    for arguments in (["--outdir", out], ["--wheel", "--outdir", out / "direct"]):
        run(sys.executable, "-m", "build", "--no-isolation", *arguments, copy)
    (sdist,) = out.glob("*.tar.gz")
    (wheel,) = out.glob("*.whl")
    (direct,) = out.glob("direct/*.whl")
    return {"sdist": sdist, "wheel": wheel, "direct": direct}


@pytest.fixture(scope="module")
def installed(copy, tools, built, tmp_path_factory):
    """way -> the Python of a new environment that has sae_vis, msgspec, zlib-ng and nothing else."""
    made: dict[str, Path] = {}

    def install(way: str) -> Path:
        if way not in made:
            folder = tmp_path_factory.mktemp(way) / "environment"
            venv.create(folder, with_pip=False, symlinks=True)
            python = folder / "bin" / "python"
            what = {"wheel": [built["wheel"]], "sdist": [built["sdist"]], "editable": ["--editable", copy]}.get(way)
            if what:
                pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "install"]
                run(*pip, "--no-deps", "--no-index", "--no-build-isolation", *what, env={"PYTHONPATH": str(tools)})
            packages = site_packages(python)
            for package in ("msgspec", "zlib_ng"):
                (packages / package).symlink_to(Path(sysconfig.get_path("platlib")) / package)
            if way == "checkout":
                (packages / "checkout.pth").write_text(str(copy), "utf-8")
            made[way] = python
        return made[way]

    return install


def site_packages(python: Path) -> Path:
    return Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())


# --- what is inside ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["wheel", "direct"])
def test_the_wheel_holds_every_file_and_no_other(which, built):
    with zipfile.ZipFile(built[which]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == expected_files()


def test_the_wheel_from_the_sdist_is_the_wheel_from_the_checkout(built):
    with zipfile.ZipFile(built["wheel"]) as one, zipfile.ZipFile(built["direct"]) as other:
        assert {name: one.read(name) for name in one.namelist()} == {
            name: other.read(name) for name in other.namelist()
        }


def test_the_wheel_is_not_too_large(built):
    assert built["wheel"].stat().st_size <= MAX_WHEEL


def test_the_sdist_can_be_tested(built):
    with tarfile.open(built["sdist"]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    wanted = {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "Makefile",
        "constraints.txt",
        "constraints-tl3.txt",
        "tests/test_packaging.py",
    }
    assert not wanted - names
    assert not any(name.startswith((".venv", "dist")) for name in names)


def test_the_metadata(built):
    with zipfile.ZipFile(built["wheel"]) as wheel:
        folder = f"sae_vis-{sae_vis.__version__}.dist-info"
        metadata = wheel.read(f"{folder}/METADATA").decode()
        entry_points = wheel.read(f"{folder}/entry_points.txt").decode()
        assert any(name.endswith("LICENSE") for name in wheel.namelist())
    assert f"Version: {sae_vis.__version__}\n" in metadata
    assert "Requires-Python: >=3.11\n" in metadata
    assert "sae-vis = sae_vis.__main__:main" in entry_points


# --- every way to install it ---------------------------------------------------------------------------------------

CHECK = """
import sys
from importlib.util import find_spec
from pathlib import Path

import sae_vis
from sae_vis import MultiFeatureData
from sae_vis._templates import folder

saved, page, *names = sys.argv[1:]
for name in names:
    kind, _, rest = name.partition("/")
    assert (folder(kind) / rest).read_bytes(), name
assert find_spec("torch") is None and find_spec("numpy") is None, sys.path
assert MultiFeatureData.load_json(saved).get_html() == Path(page).read_text("utf-8")
print(sae_vis.__file__)
"""


@ALL_WAYS
def test_every_template_is_found_and_a_page_is_made(way, installed, feature_data, copy, tmp_path):
    feature_data.save_json(tmp_path / "x.json")
    feature_data.save_html(tmp_path / "x.html")
    templates = [f"{kind}/{name}" for kind in TEMPLATES for name in sorted(files_below(CHECKOUT / kind))]
    arguments = ["-c", CHECK, tmp_path / "x.json", tmp_path / "x.html", *templates]
    python = installed(way)
    for here in (Path("/"), tmp_path):
        where = Path(run(python, *arguments, cwd=here).strip())
        expected = site_packages(python) if way in ("wheel", "sdist") else copy
        assert where == expected / "sae_vis" / "__init__.py"


@ALL_WAYS
def test_the_command_line_draws_a_page(way, installed, feature_data, tmp_path):
    feature_data.save_json(tmp_path / "x.json.gz")
    python = installed(way)
    program = [python.with_name("sae-vis")] if way != "checkout" else [python, "-m", "sae_vis"]
    assert run(*program, "--version", cwd="/") == f"sae-vis {sae_vis.__version__}\n"
    run(*program, "html", tmp_path / "x.json.gz", cwd="/")
    assert (tmp_path / "x.html").read_text("utf-8") == feature_data.get_html()


@ALL_WAYS
def test_the_demo_data_is_found(way, installed):
    program = "from importlib.resources import files; print(*sorted(p.name for p in (files('sae_vis') / 'demo_data').iterdir()))"
    expected = sorted(
        path.name for path in (CHECKOUT / "sae_vis" / "demo_data").iterdir() if path.name != "__pycache__"
    )
    assert run(installed(way), "-c", program, cwd="/").split() == expected


def test_uninstalling_leaves_nothing(built, tmp_path):
    venv.create(tmp_path / "environment", with_pip=False, symlinks=True)
    python = tmp_path / "environment" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    before = files_below(tmp_path)
    run(*pip, "install", "--no-deps", "--no-index", built["wheel"])
    run(*pip, "uninstall", "--yes", "sae-vis")
    assert files_below(tmp_path) == before
    assert not (site_packages(python) / "sae_vis").exists()


# --- the project file ------------------------------------------------------------------------------------------------


def requirements() -> list[Requirement]:
    extras = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    parsed = map(Requirement, [*PROJECT["dependencies"], *extras])
    return [requirement for requirement in parsed if requirement.name != PROJECT["name"]]


def pins(file: str = "constraints.txt") -> dict[str, str]:
    lines = (CHECKOUT / file).read_text("utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


@pytest.mark.parametrize("requirement", requirements(), ids=lambda requirement: requirement.name)
def test_every_requirement_has_a_pin_that_fits(requirement):
    pin = {canonicalize_name(name): version for name, version in pins().items()}[canonicalize_name(requirement.name)]
    assert pin in requirement.specifier
    assert not requirement.marker


@pytest.mark.parametrize(("file", "version"), [("constraints-tl2.txt", "2."), ("constraints-tl3.txt", "3.")])
def test_other_versions_of_transformerlens_are_pinned_to_what_the_project_allows(file, version):
    assert pins(file)["transformer-lens"].startswith(version)
    for requirement in map(Requirement, PROJECT["dependencies"]):
        assert pins(file)[requirement.name] in requirement.specifier


def test_the_tests_of_other_versions_exist_and_the_check_runs_them():
    makefile = (CHECKOUT / "Makefile").read_text("utf-8").replace("\\\n", "")
    lists = re.findall(r"^TESTS_tl\d := \$\(patsubst %,tests/test_%.py,(.*)\)$", makefile, re.MULTILINE)
    assert len(lists) == 2
    for name in " ".join(lists).split():
        assert (CHECKOUT / "tests" / f"test_{name}.py").is_file()
    check = (CHECKOUT / ".ci" / "run").read_text("utf-8").splitlines()
    assert "make test-tl2 test-tl3" in check
    assert " make test " in check[-1]


def test_the_changelog_begins_with_this_version():
    versions = re.findall(r"^## (\S+)", (CHECKOUT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert versions[0] == sae_vis.__version__


# --- make ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def make(tmp_path):
    """Run make in a folder that has no environment yet; its exit status and all that it said."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(CHECKOUT / name, tmp_path)

    def make(*arguments: str) -> tuple[int, str]:
        line = ["make", "-C", str(tmp_path), *arguments]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        done = subprocess.run(line, capture_output=True, text=True, check=False, env=environment, timeout=120)
        return done.returncode, done.stdout + done.stderr

    return make


def fake_python(tmp_path: Path, *, old: bool) -> str:
    """A "Python" that is too old, or one like Debian's without python3-venv."""
    refused = "sys.version_info" if old else "ensurepip"
    script = tmp_path / "fake-python"
    script.write_text(
        f'#!/bin/sh\ncase "$*" in *{refused}*) exit 1;; *--version*) echo "Python 3.9.2";; esac\n', "utf-8"
    )
    script.chmod(0o755)
    return f"PYTHON={script}"


def test_make_alone_says_what_there_is(make):
    status, said = make()
    assert status == 0
    for target in ("demo", "test", "lint", "schema", "clean"):
        assert f"make {target}" in said


@pytest.mark.parametrize("target", ["demo", "test", "lint"])
def test_make_says_which_python_is_missing(target, make, tmp_path):
    status, said = make(target, "PYTHON=no-such-python")
    assert status != 0
    assert "there is no 'no-such-python'. Install Python 3.11 or newer" in said
    status, said = make(target, fake_python(tmp_path, old=True))
    assert status != 0
    assert "is Python 3.9.2, but 3.11 or newer is needed" in said
    status, said = make(target, fake_python(tmp_path, old=False))
    assert status != 0
    assert "Install its venv module (Debian: apt install python3-venv)" in said
    assert not (tmp_path / ".venv").exists()


def test_make_says_that_an_old_environment_is_too_old(make, tmp_path):
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    fake_python(tmp_path, old=True)
    (tmp_path / "fake-python").rename(tmp_path / ".venv" / "bin" / "python")
    status, said = make("demo")
    assert status != 0
    assert "Remove .venv and try again" in said


def test_the_check_for_a_bare_machine_is_a_program():
    script = CHECKOUT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    run("bash", "-n", script)
    assert ".ci/run" in (CHECKOUT / ".github" / "workflows" / "ci.yml").read_text("utf-8")
