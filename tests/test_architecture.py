"""The layers of the package: every import points down the list, and the lower half needs no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sae_vis
from sae_vis import data_storing_fns

PACKAGE = Path(__file__).resolve().parents[1] / "sae_vis"
FILES = sorted(PACKAGE.rglob("*.py"))
BY_FILE = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)

# From the top down: the upper half knows tensors and no page, the lower half pages and no tensor. Between the two stand
# the modules that build the one from the other.
BRIDGE = [
    "__init__",
    "__main__",
    "_demo",
    "data_fetching_fns",
    "_feature_view",
    "_prompt_compare",
    "_prompt_view",
    "_assemble",
    "_run",
]
UPPER = [
    "_prompt_scoring",
    "_reconstruction",
    "_measure",
    "_measure_direct",
    "_shares",
    "_shown",
    "_near_duplicates",
    "_neighbours",
    "_full_ablation",
    "_direct_effects",
    "_linear_changes",
    "_ablation",
    "_ending",
    "_store_file",
    "_directions",
    "_activations",
    "_store",
    "_correlations",
    "_token_statistics",
    "_spilled",
    "_ranking",
    "_statistics",
    "_sae_adapters",
    "_sae_lens",
    "model_fns",
    "_products",
    "_vocabulary",
]
LOWER = [
    "_render_worker",
    "data_storing_fns",
    "_features_page",
    "_feature_data",
    "_prompt_comparison",
    "_prompt_data",
    "_furniture",
    "_columns",
    "_sequence_data",
    "_table_data",
    "_distribution_data",
    "_page_context",
    "_token_data",
    "_neighbours_data",
    "_render_pool",
    "_saved",
    "_site",
    "_overview",
    "_feature_folder",
    "_page",
    "_text",
    "_rows",
    "_prompt_panels",
    "html_fns",
    "_labels",
    "_json",
    "_params",
    "_templates",
    "_checks",
    "utils_fns",
    "_errors",
]
LAYERS = BRIDGE + UPPER + LOWER

FOR_ALL = {"_errors", "utils_fns"}  # they import nothing themselves
# What a module may import of ours at most, beside these, where that is less than everything below it.
AT_MOST = {
    **{module: {*UPPER, "_params"} for module in UPPER},
    "_store_file": {*UPPER, "_json"},
    "data_storing_fns": {
        "_features_page",
        "_feature_data",
        "_prompt_data",
        "_furniture",
        "_columns",
        "_sequence_data",
        "_table_data",
        "_distribution_data",
        "_page_context",
        "_token_data",
        "_neighbours_data",
        "_render_pool",
        "_saved",
        "_site",
        "_feature_folder",
        "_page",
        "_text",
        "_prompt_panels",
        "html_fns",
        "_labels",
        "_json",
        "_params",
        "_templates",
        "_checks",
    },
    "_features_page": {
        "_feature_data",
        "_furniture",
        "_columns",
        "_page_context",
        "_overview",
        "_page",
        "_rows",
        "html_fns",
        "_params",
        "_templates",
    },
    "_feature_data": {
        "_furniture",
        "_columns",
        "_sequence_data",
        "_table_data",
        "_distribution_data",
        "_page_context",
        "_token_data",
        "_neighbours_data",
        "_saved",
        "_overview",
        "_page",
        "_text",
        "_rows",
        "html_fns",
        "_params",
        "_templates",
        "_checks",
    },
    "_prompt_comparison": {
        "_prompt_data",
        "_furniture",
        "_columns",
        "_sequence_data",
        "_distribution_data",
        "_page_context",
        "_saved",
        "_page",
        "_text",
        "_rows",
        "_prompt_panels",
        "html_fns",
        "_json",
        "_params",
        "_templates",
        "_checks",
    },
    "_prompt_data": {
        "_furniture",
        "_columns",
        "_sequence_data",
        "_distribution_data",
        "_page_context",
        "_saved",
        "_page",
        "_text",
        "_rows",
        "_prompt_panels",
        "html_fns",
        "_json",
        "_params",
        "_templates",
        "_checks",
    },
    "_furniture": {"_page_context", "_page", "_rows", "html_fns", "_labels", "_templates"},
    "_columns": {"_sequence_data", "_distribution_data", "_page_context", "html_fns", "_params", "_templates"},
    "_sequence_data": {"_page_context", "_neighbours_data", "_page", "html_fns", "_templates", "_checks"},
    "_table_data": {"_page_context", "html_fns", "_templates", "_checks"},
    "_distribution_data": {"_page_context", "html_fns", "_templates", "_checks"},
    "_page_context": {"html_fns", "_params"},
    "_token_data": {"html_fns", "_checks", "_templates"},
    "_neighbours_data": {"html_fns", "_checks", "_templates"},
    "_prompt_panels": {"html_fns", "_checks", "_templates"},
    "_saved": {"html_fns", "_page", "_json", "_templates"},
    "_render_pool": set(),
    "_page": {"_templates"},
    "html_fns": {"_templates"},
    "_rows": set(),
    "_labels": {"_json"},
    "_overview": {"_page"},
    "_site": {"_page", "_rows", "_json", "_templates"},
    "_feature_folder": {"_json", "_params"},
    "_json": set(),
    "_params": {"_templates"},
    "_templates": set(),
    "_text": set(),
}
# Other people's packages. What is not listed here imports the standard library alone.
ARRAYS = {"torch", "numpy", "jaxtyping", "einops"}
THIRD_PARTY = {
    "_demo": {*ARRAYS, "safetensors", "transformer_lens", "transformers", "tokenizers"},
    **{module: {*ARRAYS, "tqdm"} for module in BRIDGE[3:]},
    **dict.fromkeys(UPPER, ARRAYS),
    "_sae_lens": {*ARRAYS, "safetensors"},
    "_directions": {*ARRAYS, "umap"},
    "_store_file": {*ARRAYS, "safetensors"},
    "model_fns": {*ARRAYS, "safetensors", "huggingface_hub"},
    "data_storing_fns": {"msgspec"},
    "_feature_data": {"msgspec"},
    "_page": {"msgspec", "zlib_ng"},
    "_labels": {"msgspec"},
    "_feature_folder": {"msgspec", "zlib_ng"},
    "_json": {"msgspec", "zlib_ng"},
    "_render_pool": {"msgspec"},
}
MAX_LINES = 60  # of a function


def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text("utf-8"), str(file))


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported anywhere, inside functions too: ``sae_vis._json``, ``torch.nn.functional``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level or node.module is None:
                yield "." * node.level  # relative: nothing here is, so that this test stays simple
            elif node.module == "sae_vis":
                yield from (
                    "sae_vis" if alias.name == "__version__" else f"sae_vis.{alias.name}" for alias in node.names
                )
            else:
                yield node.module


def faults(module: str, tree: ast.AST) -> list[str]:
    """What ``module`` imports and may not."""
    below = LAYERS[LAYERS.index(module) + 1 :]
    allowed = {*FOR_ALL, *AT_MOST[module]} & set(below) if module in AT_MOST else set(below)
    wrong = []
    for name in imports(tree):
        top, _, ours = name.partition(".")
        if top == "sae_vis":
            if ours and ours not in allowed:
                wrong.append(name)
        elif top not in sys.stdlib_module_names and top not in THIRD_PARTY.get(module, ()):
            wrong.append(name)
    return wrong


def test_every_module_has_its_place():
    assert sorted(file.stem for file in FILES) == sorted(LAYERS)


@BY_FILE
def test_every_import_points_down(file):
    assert not faults(file.stem, parsed(file))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("_json", "from sae_vis import _params"),
        ("_json", "import torch"),
        ("html_fns", "def f():\n    from sae_vis.data_storing_fns import FeatureData"),
        ("html_fns", "if x:\n    import sae_vis._json"),
        ("_statistics", "from sae_vis.data_storing_fns import HistogramData"),
        ("model_fns", "import transformer_lens.hook_points"),
        ("_statistics", "from sae_vis import _activations"),
        ("_errors", "from . import utils_fns"),
        ("_params", "from sae_vis import FeatureData"),
    ],
)
def test_a_wrong_import_is_found(module, source):
    assert faults(module, ast.parse(source))


def test_a_right_import_is_none():
    assert not faults("_statistics", ast.parse("import math, numpy as np\nfrom sae_vis._errors import InputError"))
    assert not faults("data_storing_fns", ast.parse("from sae_vis import __version__, _json, _page"))


def test_the_command_line_imports_the_demo_inside_demo_only():
    tree = parsed(PACKAGE / "__main__.py")
    upper = {f"sae_vis.{module}" for module in [*UPPER, *BRIDGE[2:]]}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == "_demo":
            assert upper.intersection(imports(node)) == {"sae_vis._demo"}
        else:
            assert not upper.intersection(imports(node))


# --- the lower half without torch --------------------------------------------------------------------------------

IMPORT_WITHOUT = """
import importlib, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ImportError("absent: " + name)

sys.meta_path.insert(0, Absent())
for name in {modules!r}:
    importlib.import_module(name)
"""
HEAVY = sorted({*ARRAYS, "safetensors", "tqdm", "transformer_lens", "transformers", "tokenizers"})


def imported_without(modules: list[str], absent: list[str]) -> subprocess.CompletedProcess:
    program = IMPORT_WITHOUT.format(modules=modules, absent=set(absent))
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=PACKAGE.parent, check=False
    )


@pytest.mark.parametrize("module", [*LOWER, "__main__"])
def test_the_lower_half_needs_no_torch(module):
    done = imported_without([f"sae_vis.{module}"], HEAVY)
    assert done.returncode == 0, done.stderr


def test_without_torch_the_upper_half_fails_so_the_test_above_tests_something():
    for absent in (["torch"], ["numpy"]):
        done = imported_without(["sae_vis.data_fetching_fns"], absent)
        assert done.returncode == 1
        assert f"absent: {absent[0]}" in done.stderr


def test_importing_the_package_imports_the_standard_library_alone():
    done = imported_without(["sae_vis"], [*HEAVY, "msgspec"])
    assert done.returncode == 0, done.stderr


# --- the public names ----------------------------------------------------------------------------------------------


def test_every_public_name_is_there():
    for name in sae_vis.__all__:
        assert getattr(sae_vis, name) is not None
        assert name in dir(sae_vis)
    assert sorted(set(sae_vis.__all__)) == sorted(sae_vis.__all__)


def test_names_for_type_checkers_and_for_python_are_the_same():
    guarded = next(node for node in parsed(PACKAGE / "__init__.py").body if isinstance(node, ast.If))
    homes = {alias.name: node.module for node in guarded.body for alias in node.names}
    assert sorted({*homes, "__version__"}) == sorted(sae_vis.__all__)
    for name, home in homes.items():
        assert f"sae_vis.{sae_vis._HOMES[name]}" == home
        assert getattr(sae_vis, name).__module__ == home


def test_an_unknown_name_is_an_ordinary_error():
    with pytest.raises(AttributeError, match="module 'sae_vis' has no attribute 'nonsense'"):
        sae_vis.nonsense  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'nonsense'"):
        from sae_vis import nonsense  # noqa: F401
    assert not hasattr(sae_vis, "__wrapped__")


def test_every_dataclass_that_is_stored_is_public():
    stored = {
        node.name
        for module in LOWER
        for node in parsed(PACKAGE / f"{module}.py").body
        if isinstance(node, ast.ClassDef)
        and node.decorator_list
        and node.name.endswith(("Data", "Knots", "Effect", "Provenance"))
    }
    assert {"MultiFeatureData", "SequenceData", "QuantileKnots", "TokenEffect", "Provenance"} <= stored
    assert not stored - set(sae_vis.__all__)


def test_the_dataclasses_of_both_views_can_be_imported_from_one_module():
    for name in data_storing_fns.__all__:
        assert getattr(data_storing_fns, name) is not None
    described = {
        name for name, home in sae_vis._HOMES.items() if name.endswith(("Data", "Knots", "Effect", "Provenance"))
    }
    elsewhere = {"PromptComparisonData", "NearestData", "CoactiveData"}  # never were there
    assert described - elsewhere <= set(data_storing_fns.__all__)


# --- habits ----------------------------------------------------------------------------------------------------------


def habits_broken(tree: ast.AST, *, may_print: bool) -> list[str]:
    """Prints, asserts, star imports, imports by a computed name, functions that are too long."""
    found = []
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id == "__import__" or (node.func.id == "print" and not may_print):
                found.append(f"line {line}: {node.func.id}()")
        elif isinstance(node, ast.Assert):
            found.append(f"line {line}: assert")
        elif isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
            found.append(f"line {line}: import *")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or line) - line + 1
            if length > MAX_LINES:
                found.append(f"line {line}: {node.name} has {length} lines")
    return found


@BY_FILE
def test_habits(file):
    assert not habits_broken(parsed(file), may_print=file.stem == "__main__")


@pytest.mark.parametrize(
    "source", ["print(1)", "assert x", "from x import *", "__import__('x')", "def f():\n" + "    pass\n" * MAX_LINES]
)
def test_a_broken_habit_is_found(source):
    assert habits_broken(ast.parse(source), may_print=False)


@BY_FILE
def test_text_files_are_read_and_written_as_utf_8(file):
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            binary = any(isinstance(arg, ast.Constant) and "b" in str(arg.value) for arg in node.args[:2])
            if name in ("read_text", "write_text") or (name == "open" and not binary):
                given = any(keyword.arg == "encoding" for keyword in node.keywords)
                positional = any(isinstance(arg, ast.Constant) and arg.value == "utf-8" for arg in node.args)
                flags = name == "open" and isinstance(node.func, ast.Attribute) and ast.unparse(node.func) == "os.open"
                assert given or positional or flags, f"line {node.lineno}: {ast.unparse(node)} has no encoding"


def test_no_template_folder_is_a_package():
    for folder in ("html", "css", "js"):  # html/__init__.py would hide the standard library's html
        assert not (PACKAGE.parent / folder / "__init__.py").exists()
