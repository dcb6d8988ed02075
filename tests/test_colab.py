"""A Colab session: what is missing comes, what is there stays, and every notebook begins with the same cell."""

import json
import os
import re
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
    "tyro",
    "docstring_parser",
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
    addresses = set()
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        title, first, *_ = notebook["cells"]
        (address,) = re.findall(r'^REPOSITORY = "(.*?)"', "".join(first["source"]), re.MULTILINE)
        addresses.add(address)
        colab.with_badge(notebook, path.name, address)
        wanted = [cell["source"] for cell in notebook["cells"][:2]]
        assert [title["source"], first["source"]] == wanted, f"{path.name}: run `python notebooks/colab.py write`"
        badge = title["source"][0] if address else "colab-badge"
        assert "colab-badge" in badge and (not address or f"/blob/main/notebooks/{path.name})" in badge)
        assert "google.colab" in "".join(first["source"]) and not first["outputs"]
    assert len(addresses) == 1 and "OWNER" not in addresses.pop()


def test_one_command_changes_the_address_in_every_notebook(monkeypatch, tmp_path):
    monkeypatch.setattr(colab, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(colab, "README", tmp_path / "README.md")
    colab.README.write_text("Draw: <!-- page -->here<!-- /page -->.\n")
    path = tmp_path / "00.ipynb"
    text = json.dumps(dict(cells=[dict(cell_type="markdown", source=["# Title\n"])]))
    path.write_text(text)
    for address in ("https://github.com/somebody/else", "https://github.com/you/copy", ""):
        monkeypatch.setattr(sys, "argv", ["colab.py", "write", *([address] if address else [])])
        monkeypatch.setattr(colab, "origin", lambda: "")
        colab.main()
        assert colab.write(address) == []  # twice is once
        page = f"[{colab.pages_address(address)}]({colab.pages_address(address)})" if address else colab.BUILD_PAGE
        assert colab.README.read_text() == f"Draw: <!-- page -->{page}<!-- /page -->.\n"
        title, first = json.loads(path.read_text())["cells"]
        assert f'REPOSITORY = "{address}"' in "".join(first["source"])
        assert ("colab-badge" in title["source"][0]) == bool(address) and title["source"][-1] == "# Title\n"
        assert not address or f"github/{address[19:]}/blob/main/notebooks/00.ipynb" in title["source"][0]
    monkeypatch.setattr(sys, "argv", ["colab.py", "write", "https://example.org/a"])
    with pytest.raises(SystemExit, match="not the address"):
        colab.main()


def test_the_readme_has_a_place_for_the_link():
    assert len(colab.PAGE.findall((ROOT / "README.md").read_text())) == 1
    assert colab.pages_address("https://github.com/You/copy") == "https://you.github.io/copy/"
    assert colab.pages_address("") == ""


def test_the_address_comes_from_the_remote_origin(monkeypatch, tmp_path):
    monkeypatch.setattr(colab, "ROOT", tmp_path)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    assert colab.origin() == ""
    subprocess.run(["git", "remote", "add", "origin", "git@github.com:you/copy.git"], cwd=tmp_path, check=True)
    assert colab.origin() == "https://github.com/you/copy"
    assert colab.browsable("https://github.com/you/copy.v2.git") == "https://github.com/you/copy.v2"
    assert colab.browsable("https://example.org/you/copy") == ""


def test_outside_colab_the_first_cell_does_nothing():
    shell = pytest.importorskip("IPython").core.interactiveshell.InteractiveShell()
    folder = os.getcwd()
    result = shell.run_cell(colab.CELL.format(address=""))
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
    assert {"open_clip_torch", "umap-learn", "resvg_py", "tyro"} <= set(after)
    assert not {"jupyterlab", "gdown", "py7zr"} & set(after)
    assert "open_clip_torch" in done.stdout and "computes on" in done.stdout


def test_what_cannot_be_installed_is_named(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: No matching distribution found")
    monkeypatch.setattr(colab.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(SystemExit, match="could not be installed: umap-learn>=9. pip says:\nERROR: No matching"):
        colab.install(["umap-learn>=9"])
