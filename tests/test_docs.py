"""The Python blocks of README.md and CONTRIBUTING.md run as they are, and the tables of results are those of the runs."""

import re
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest

from prosutils import METHODS, UserError, cli, load_checkpoint, load_preset
from prosutils.config import PRESETS

ROOT = Path(__file__).parents[1]
SHORT = "--stage1.epochs 1 --stage1.batch-size 9 --stage2.epochs 1 --stage2.batch-size 6".split()


def python_blocks(document):
    """The Python blocks of a Markdown file."""
    return re.findall(r"^```python\n(.*?)^```", (ROOT / document).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture
def own_methods():
    """Methods registered in a test are forgotten after it."""
    known = dict(METHODS)
    yield
    for name in [name for name in sys.modules if name.startswith("imported_")]:
        del sys.modules[name]
    METHODS.clear()
    METHODS.update(known)


def test_ten_lines_of_the_readme_search_and_train(toy_folder, tmp_path, monkeypatch, capsys):
    (block,) = python_blocks("README.md")
    assert len([line for line in block.splitlines() if line]) <= 10
    (tmp_path / "pictures").symlink_to(toy_folder)
    shutil.copy(toy_folder / "sketch" / "house" / "0.png", tmp_path / "sketch.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(PRESETS, "mini", load_preset("mini", stage1=dict(epochs=1), stage2=dict(epochs=1)))
    names = {}
    exec(block, names)
    assert len(names["best"][0]) == 5 and len(names["history"]) == 2 and names["model"].label == "ProS"
    assert "UCDR" in capsys.readouterr().out


def test_a_method_of_ones_own_in_ten_lines(own_methods, toy_folder, tmp_path, monkeypatch, capsys):
    """Trained, saved, loaded, evaluated, and compared by `ablate`, whose runs are processes of their own."""
    (block,) = (block for block in python_blocks("CONTRIBUTING.md") if '@register("mine")' in block)
    assert len([line for line in block.splitlines() if line]) <= 10
    file = tmp_path / "mine.py"
    file.write_text(block)
    data, own = ["--data", str(toy_folder), "--artifacts", str(tmp_path)], ["--import", str(file)]
    split = ["--unseen-domain", "sketch", "--unseen-classes", "gem,stripes"]
    cli.main(["train", "--method", "mine", *own, *data, *split, *SHORT])
    label = METHODS["mine"].label
    assert label in capsys.readouterr().out and label in set(pd.read_csv(tmp_path / "results.csv").method)
    path = tmp_path / "runs" / "mini-mine-sketch-seed0" / "model.pt"
    assert isinstance(load_checkpoint(path), METHODS["mine"])
    cli.main(
        [
            "ablate",
            "mine",
            "zero-shot",
            "--domains",
            "sketch",
            "--table",
            str(tmp_path / "grid.csv"),
            *own,
            *data,
            *SHORT,
        ]
    )
    assert set(pd.read_csv(tmp_path / "grid.csv").method) == {label, "Zero-shot CLIP"}
    assert f"| {label} |" in capsys.readouterr().out

    monkeypatch.delitem(METHODS, "mine")  # as in a new process
    with pytest.raises(UserError, match="--import FILE"):
        load_checkpoint(path)


def test_a_method_without_training_of_ones_own(own_methods, toy_folder, tmp_path, capsys):
    """The way from a paper to a row ends in a row: computed, saved, loaded."""
    (block,) = (block for block in python_blocks("CONTRIBUTING.md") if '@register("standardised")' in block)
    file = tmp_path / "mine.py"
    file.write_text(block)
    data, own = ["--data", str(toy_folder), "--artifacts", str(tmp_path)], ["--import", str(file)]
    cli.main(["train", "--method", "standardised", *own, *data, "--unseen-domain", "sketch"])
    assert "Standardised" in set(pd.read_csv(tmp_path / "results.csv").method)
    model = load_checkpoint(tmp_path / "runs" / "mini-standardised-sketch-seed0" / "model.pt")
    assert isinstance(model, METHODS["standardised"]) and (model.scale < 1).all()


@pytest.mark.parametrize(
    "code, message",
    [
        ("import torch\nclass Mine(ProS):\n    pass\n", r"NameError: name 'ProS' is not defined \(line 2\)"),
        ("def half(:\n", r"SyntaxError: .*line 1"),
        ("import no_such_package\n", r"No module named 'no_such_package' \(line 1\)"),
        ("from prosutils import ProS, register\n@register('pros')\nclass Mine(ProS): pass\n", "'pros' is taken"),
    ],
)
def test_a_file_that_cannot_be_imported_is_named_with_its_line(own_methods, tmp_path, code, message):
    file = tmp_path / "mine.py"
    file.write_text(code)
    with pytest.raises(SystemExit, match=message):
        cli.main(["train", "--method", "mine", "--import", str(file)])


def test_a_file_may_import_from_files_beside_it(own_methods, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "layers_of_mine.py").write_text("label = 'Mine, from two files'\n")
    file = tmp_path / "mine.py"
    file.write_text(
        "from layers_of_mine import label as name\nfrom prosutils import ProS, register\n\n\n"
        "@register('mine')\nclass Mine(ProS):\n    label = name\n"
    )
    with pytest.raises(SystemExit, match="no folder"):
        cli.main(["train", "--method", "mine", "--import", str(file), "--data", str(tmp_path / "none")])
    assert METHODS["mine"].label == "Mine, from two files"


def test_the_tables_of_results_say_what_the_runs_say(tmp_path):
    """Of the documents as they are, and of one whose number is not the runs'."""
    sys.path.insert(0, str(ROOT / "figures"))
    import tables

    for document in tables.DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        assert tables.renewed(text) == text, f"{document.name}: python figures/tables.py renews it"
        assert "<!-- table " in text
        name = next(name for name in tables.TABLES if f"<!-- table {name} -->" in text)
        assert tables.renewed(text.replace(tables.TABLES[name](), "| 0.999 |")) == text
