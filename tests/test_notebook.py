"""demo.ipynb runs from top to bottom on the bundled model, and what is committed of it is light."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.xdist_group("notebook")  # it is run once

NOTEBOOK = Path(__file__).resolve().parents[1] / "demo.ipynb"
MAX_COMMITTED_BYTES = 100_000


@pytest.fixture(scope="module")
def executed() -> nbformat.NotebookNode:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": NOTEBOOK.parent}}
    ).execute()
    return notebook


def outputs(notebook: nbformat.NotebookNode, mime: str) -> list[str]:
    return [
        output.data[mime]
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if mime in output.get("data", {})
    ]


def test_every_cell_runs_and_all_views_are_shown(executed: nbformat.NotebookNode) -> None:
    frames = [html for html in outputs(executed, "text/html") if "<iframe" in html]
    assert len(frames) == 4  # the features, a prompt, two prompts, and the features in another layout
    assert "SAE features on a prompt" in frames[1]
    assert "SAE features on two prompts" in frames[2]


def test_saved_and_loaded_features_are_equal(executed: nbformat.NotebookNode) -> None:
    printed = "".join(
        output.text
        for cell in executed.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "text" in output
    )
    assert "features.json.gz" in printed
    assert "True" in printed


def test_the_committed_notebook_is_light_and_was_run_without_error() -> None:
    committed = nbformat.read(NOTEBOOK, as_version=4)
    assert NOTEBOOK.stat().st_size < MAX_COMMITTED_BYTES
    code = [cell for cell in committed.cells if cell.cell_type == "code"]
    assert any(cell.outputs for cell in code)
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
