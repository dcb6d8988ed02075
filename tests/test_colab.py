"""A Colab session: what is missing comes, what is there stays as it is, and every notebook begins with the same cell."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "notebooks"))
import colab  # noqa: E402

#: What Colab's Python has not (with what it brings along), by the names in site-packages.
NOT_IN_COLAB = (
    "open_clip",
    "timm",
    "ftfy",
    "umap",
    "pynndescent",
    "resvg_py",
    "py7zr",
    "gdown",
    "anywidget",
    "prosutils",
    "__editable__",
    "jupyterlab",
    "pybcj",
    "pyppmd",
    "inflate64",
    "multivolumefile",
    "texttable",
)


def test_every_notebook_has_its_badge_and_first_cell():
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        title, first, *_ = notebook["cells"]
        colab.with_badge(notebook, path.name)
        wanted = [cell["source"] for cell in notebook["cells"][:2]]
        assert [title["source"], first["source"]] == wanted, f"{path.name}: run `python notebooks/colab.py write`"
        assert f"/blob/main/notebooks/{path.name})" in title["source"][0] and "# " in title["source"][2]
        assert "google.colab" in "".join(first["source"]) and not first["outputs"]


def test_the_address_is_one_setting(monkeypatch, tmp_path):
    (tmp_path / "pyproject.toml").write_text('[project.urls]\nRepository = "https://github.com/somebody/else"\n')
    monkeypatch.setattr(colab, "ROOT", tmp_path)
    notebook = dict(cells=[dict(cell_type="markdown", source=["# Title\n"])])
    for _ in range(2):  # twice is once
        colab.with_badge(notebook, "00.ipynb")
    title, first = notebook["cells"]
    assert "github/somebody/else/blob" in title["source"][0] and title["source"][2:] == ["# Title\n"]
    assert "git clone -q --depth 1 https://github.com/somebody/else /content/else" in "".join(first["source"])


def test_outside_colab_the_first_cell_does_nothing():
    shell = pytest.importorskip("IPython").core.interactiveshell.InteractiveShell()
    folder = os.getcwd()
    result = shell.run_cell(colab.CELL.format(repository="a/b", folder="b"))
    assert result.success and os.getcwd() == folder


@pytest.fixture
def colab_like(tmp_path):
    """A Python that has Colab's packages, by links to this one's, and not ours."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    packages = next((tmp_path / "env" / "lib").glob("python*")) / "site-packages"
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not entry.name.lower().startswith(NOT_IN_COLAB):
            (packages / entry.name).symlink_to(entry)
    return tmp_path / "env" / "bin" / "python"


@pytest.mark.skipif(sys.platform != "linux", reason="Colab is Linux")
def test_colab_gets_what_is_missing_and_keeps_what_it_has(colab_like, tmp_path):
    """Installs for real, from the package registry."""

    def versions():
        code = (
            "import json; from importlib.metadata import distributions as d; "
            "print(json.dumps({x.metadata['Name']: x.version for x in d()}))"
        )
        return json.loads(
            subprocess.run([colab_like, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        )

    before = versions()
    assert "torch" in before and "open_clip_torch" not in before and "prosutils" not in before
    shutil.copytree(ROOT / "notebooks", tmp_path / "tutorial" / "notebooks", ignore=shutil.ignore_patterns("*.ipynb"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path / "tutorial")
    done = subprocess.run(
        [colab_like, "colab.py", "setup"], cwd=tmp_path / "tutorial" / "notebooks", capture_output=True, text=True
    )
    if "could not be installed" in done.stderr and ("Connection" in done.stderr or "resolve" in done.stderr):
        pytest.skip("the package registry cannot be reached")
    assert done.returncode == 0, done.stderr
    after = versions()
    assert before.items() <= after.items(), "a package that was there has changed"
    assert {"open_clip_torch", "umap-learn", "resvg_py"} <= set(after) and "jupyterlab" not in after
    assert "open_clip_torch" in done.stdout and "computes on" in done.stdout


def test_what_cannot_be_installed_is_named(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: No matching distribution found")
    monkeypatch.setattr(colab.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(SystemExit, match="could not be installed: umap-learn>=9. pip says:\nERROR: No matching"):
        colab.install(["umap-learn>=9"])
