"""The notebooks as they are saved, and the command that saves them."""

import re
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

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
    shown = [found for found in data if "run this cell" in found.get("text/plain", "")]  # prosutils.show.widgets' own
    assert all("image/png" in found for found in shown)
    assert shown or path.name[:2] == "07"


def test_execute_keeps_a_widget_as_its_picture(tmp_path):
    path = tmp_path / "a.ipynb"
    write(
        path,
        "import ipywidgets\nipywidgets.IntSlider()",
        "display({'image/png': 'iVBORw0KGgo=', 'text/plain': 'a picture', "
        f"'{execute.WIDGET}': {{'model_id': 'x'}}}}, raw=True)",
        "6 * 7",
    )
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


# --- Notebook 08 on somebody's own pictures -----------------------------------------------------------------------


def run_with(folder, settings, until=None):
    """The outputs' texts of notebook 08, run in `folder` with other lines in its cell of settings, up to a heading."""
    notebook = nbformat.read(NOTEBOOKS / "08_your_own_images.ipynb", as_version=4)
    cells = notebook.cells
    if until:
        notebook.cells = cells = cells[: [cell.source.startswith(until) for cell in cells].index(True)]
    (mine,) = (cell for cell in cells if cell.source.startswith("# --- change these"))
    mine.source = f"{mine.source}\n{settings}"
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    return "\n".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))


def test_notebook_08_takes_a_labelled_folder_of_photographs(toy_folder, tmp_path):
    for path in toy_folder.rglob("*.png"):
        copy = tmp_path / "mine" / path.relative_to(toy_folder).with_suffix(".JPG")
        copy.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).save(copy, "JPEG")
    told = run_with(
        tmp_path, 'LABELLED, HELD_OUT, UNSEEN = "mine", "pixel", ["gem", "ball"]', until="### What to remember"
    )
    assert "Searched in section 2: mine" in told and "stand-in" not in told
    assert "held out: pixel; gallery: emoji; unseen classes: ball, gem" in told
    assert "Best for unseen classes of the held-out domain:" in told and "95 % interval" in told
    assert "'protocol': 'UcCDR', 'unseen_domain': None" in told  # section 7, with two of its domains
    assert "Best for unseen classes:" in told


def test_notebook_08_takes_a_folder_of_two_domains(toy_folder, tmp_path):
    for domain in ("emoji", "sketch"):
        shutil.copytree(toy_folder / domain, tmp_path / "mine" / domain)
    told = run_with(tmp_path, 'LABELLED, UNSEEN = "mine", ["gem", "ball"]', until="## 7.")
    assert "held out: no domain; gallery: emoji; unseen classes: ball, gem" in told
    assert "There are 2 domains" in told and "Best for unseen classes:" in told and "2 classes" in told


def test_notebook_08_searches_a_folder_without_labels(toy_folder, tmp_path):
    (tmp_path / "mine").mkdir()
    for number, path in enumerate(sorted(toy_folder.glob("emoji/*/*.png"))):
        shutil.copy(path, tmp_path / "mine" / f"{number}.png")
    told = run_with(tmp_path, 'PICTURES = "mine"', until="## 3.")
    assert "Sections 3 to 7 use the stand-in." in told and f"{number + 1} pictures" in told
    assert re.search("Query: (.*)", told)[1].startswith("mine/")  # of the folder, not of the stand-in
