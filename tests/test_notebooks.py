"""The notebooks as they are saved, and the command that saves them."""
import sys
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
sys.path.insert(0, str(NOTEBOOKS))

import execute  # noqa: E402

SAVED = sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))


def write(path, *cells):
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells]), path)


@pytest.mark.parametrize("path", SAVED, ids=lambda path: path.name[:2])
def test_a_saved_notebook_was_run_once_from_its_first_cell(path):
    code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code" and cell.source]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)


@pytest.mark.parametrize("path", SAVED, ids=lambda path: path.name[:2])
def test_a_saved_notebook_holds_pictures_of_its_widgets(path):
    notebook = nbformat.read(path, as_version=4)
    data = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not any(execute.WIDGET in found for found in data) and "widgets" not in notebook.metadata
    shown = [found for found in data if "run this cell" in found.get("text/plain", "")]    # prosutils.widgets' own
    assert all("image/png" in found for found in shown)
    assert shown or path.name[:2] in ("01", "06")


def test_execute_keeps_a_widget_as_its_picture(tmp_path):
    path = tmp_path / "a.ipynb"
    write(path, "import ipywidgets\nipywidgets.IntSlider()",
          f"display({{'image/png': 'iVBORw0KGgo=', 'text/plain': 'a picture', '{execute.WIDGET}': {{'model_id': 'x'}}}}, raw=True)",
          "6 * 7")
    execute.execute(path)
    notebook = nbformat.read(path, as_version=4)
    first, second, third = (cell.outputs for cell in notebook.cells)
    assert not first and set(second[0].data) == {"image/png", "text/plain"} and third[0].data["text/plain"] == "42"
    assert "widgets" not in notebook.metadata and [path.name for path in tmp_path.iterdir()] == ["a.ipynb"]


def test_execute_leaves_a_notebook_that_fails_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "a.ipynb"
    write(path, "1 / 0")
    before = path.read_bytes()
    monkeypatch.setattr("sys.argv", ["execute.py", str(path)])
    with pytest.raises(SystemExit, match="a.ipynb is as it was, for a cell fails:(.|\n)*ZeroDivisionError"):
        execute.main()
    assert path.read_bytes() == before


def test_execute_says_what_is_missing(monkeypatch):
    monkeypatch.setattr("sys.argv", ["execute.py", "99_nothing.ipynb"])
    with pytest.raises(SystemExit, match="There is no notebook .*99_nothing.ipynb"):
        execute.main()
