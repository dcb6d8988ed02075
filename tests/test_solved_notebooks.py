"""Notebooks 01 to 06 with the answers filled in run from top to bottom, as they do unsolved (nbval does that)."""

import nbformat
import pytest
from conftest import NOTEBOOKS, notebook_exercises
from nbclient import NotebookClient

TIMEOUT = 2000  # seconds a cell, nbval's own


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_with_its_answers(path):
    notebook = nbformat.read(path, as_version=4)
    solved = {found.stub: found.solved for found in notebook_exercises(path)}
    cells = [cell for cell in notebook.cells if cell.source in solved]
    for cell in cells:
        cell.source = solved[cell.source]
    NotebookClient(
        notebook, timeout=TIMEOUT, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    ).execute()
    assert len(cells) == len(solved)
    for cell in cells:
        told = "".join(output.get("text", "") for output in cell.outputs)
        assert told.startswith("Right. "), f"{cell.source}\n{told}"
