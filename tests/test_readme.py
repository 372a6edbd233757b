"""The README's Python, run from top to bottom as a reader would, on fewer tokens."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from sae_vis import get_feature_data

README = Path(__file__).resolve().parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
NEEDS_MORE = "from sae_lens import SAE"  # a package that is not installed beside this TransformerLens, and a hub


def test_every_block_runs_after_those_before_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    left_out = 0
    for block in BLOCKS:
        if NEEDS_MORE in block:
            left_out += 1
            continue
        if "load_activations" in block:
            names["fvp"] = dataclasses.replace(names["fvp"], features=(8, 9))
            get_feature_data(
                names["encoder"], names["model"], names["tokens"], names["fvp"], save_activations="acts.safetensors"
            )
        exec(compile(block.replace("tokens[:64]", "tokens[:4]"), "README.md", "exec"), names)
    assert left_out == 1
    assert len(BLOCKS) >= 7
    written = {path.name for path in tmp_path.iterdir()}
    assert {"features.html", "two_features.html", "again.html", "prompt.html", "two.html", "run", "site"} <= written
    assert len(names["positions"]) == len(names["values"]) > 0


@pytest.mark.parametrize(
    "name", ["docs/numbers.md", "docs/json.md", "docs/panels.md", "docs/site.md", "docs/robustness.md"]
)
def test_what_the_readme_links_to_is_there(name):
    assert f"]({name})" in README.read_text(encoding="utf-8")
    assert (README.parent / name).is_file()
