"""The project's own order: one list of packages, targets that work, imports downwards, no machine's paths."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pytest

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
TARGETS = ("help", "tutorial", "test", "solved", "lab", "notebooks", "assignments", "grade")
#: A module imports only from those before it: the order in which a learner meets them, room by room.
ORDER = (
    "files",
    "config",
    "techniques",
    "pictonet",
    "image_files",
    "domains",
    "splits",
    "published",
    "backbone",
    "prompts",
    "simulator",
    "tuned",
    "pros",
    "ablations",
    "baselines",
    "followers",
    "metrics",
    "tables",
    "evaluation",
    "training",
    "released",
    "experiment",
    "grid",
    "search",
    "own_images",
    "show.pictures",
    "show.diagrams",
    "show.results",
    "show.plots",
    "show.widget_parts",
    "show.widgets",
    "teaching.tasks_training",
    "teaching.tasks_measuring",
    "teaching.differences",
    "teaching.exercises",
    "cli",
    "__main__",
)
MODULES = sorted(path for path in (ROOT / "prosutils").rglob("*.py") if path.stem != "__init__")


# ---- packages ----------------------------------------------------------------------------------------------


def test_conda_environment_is_in_step_with_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == PROJECT["name"]
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert f"python{PROJECT['requires-python']}" in conda and "pip" in conda
    assert pip == ["--editable .[test]"] and "test" in PROJECT["optional-dependencies"]


def test_every_imported_package_is_listed_with_a_lower_bound():
    listed = {}
    for requirement in sum(PROJECT["optional-dependencies"].values(), PROJECT["dependencies"]):
        name, bound = re.fullmatch(r"([\w-]+)>=([\d.]+)", requirement).groups()
        listed[name] = bound
    import_names = {
        "open_clip": "open_clip_torch",
        "PIL": "pillow",
        "sklearn": "scikit-learn",
        "umap": "umap-learn",
        "yaml": "pyyaml",
        "IPython": "ipywidgets",
        "traitlets": "nbgrader",
        "nbformat": "nbconvert",
        "nbclient": "nbconvert",
        "jupyter_client": "nbconvert",
    }
    own = {"prosutils", "conftest", "tomli"} | {
        path.stem for folder in ("data_scripts", "assignments", "notebooks") for path in (ROOT / folder).glob("*.py")
    }
    for folder in ("prosutils", "data_scripts", "assignments", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.parent.name == "samples":
                continue
            for name in imported_packages(path) - own - set(sys.stdlib_module_names):
                assert import_names.get(name, name) in listed, f"{path.name} imports {name}"


def test_the_first_notebook_checks_for_the_listed_versions():
    listed = dict(re.fullmatch(r"([\w-]+)>=([\d.]+)", requirement).groups() for requirement in PROJECT["dependencies"])
    cells = json.loads((ROOT / "notebooks" / "00_start_here.ipynb").read_text())["cells"]
    (checks,) = ("".join(cell["source"]) for cell in cells if "def check(" in "".join(cell["source"]))
    wanted = dict(re.findall(r'"([\w-]+)": "([\d.]+)"', checks))
    assert "torch" in wanted and wanted.items() <= listed.items()


def imported_packages(path):
    """Top-level names of the absolute imports of a file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split(".")[0])
    return names


def test_citation_names_this_version_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    (paper,) = citation["references"]
    assert citation["version"] == PROJECT["version"] and citation["license"] == PROJECT["license"]
    assert paper["authors"][0]["family-names"] == "Fang"
    assert (paper["start"], paper["end"]) == ("17292", "17301")


def test_all_data_of_the_package_is_shipped():
    settings = PYPROJECT["tool"]["setuptools"]
    assert {"prosutils", "prosutils.show", "prosutils.teaching", "prosutils.data"} == set(settings["packages"])
    shipped = {
        path
        for package, patterns in settings["package-data"].items()
        for pattern in patterns
        for path in ROOT.joinpath(*package.split(".")).glob(pattern)
    }
    assert {
        path for path in (ROOT / "prosutils").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")
    } <= shipped


# ---- Makefile and CI ---------------------------------------------------------------------------------------

#: Stands for Python: notes its arguments in calls.txt, copies itself as the .venv's Python, fails on demand.
PYTHON_STUB = """#!/bin/sh
echo "$*" >> calls.txt
if [ "$2" = venv ]; then mkdir -p .venv/bin; cp "$0" .venv/bin/python; fi
if [ -n "$FAILS" ]; then case "$*" in *"$FAILS"*) exit 3;; esac; fi
"""


@pytest.fixture
def checkout(tmp_path):
    """A checkout with the real Makefile and .ci/run: a function of a command: (exit code, calls, output)."""
    for name in ("Makefile", "pyproject.toml", ".ci/run"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    stub = tmp_path / "stub"
    stub.write_text(PYTHON_STUB)
    stub.chmod(0o755)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "chromedriver").symlink_to(stub)  # else .ci/run would install a browser

    def run(*command, fails=""):
        calls = tmp_path / "calls.txt"
        calls.write_text("")
        result = subprocess.run(
            command,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env=os.environ
            | {
                "PYTHON": str(stub),
                "FAILS": fails,
                "MAKEFLAGS": "",
                "MAKELEVEL": "0",
                "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
            },
        )
        return result.returncode, calls.read_text().splitlines(), result.stdout

    run.folder = tmp_path
    return run


INSTALL = ["-m venv .venv", "-m pip install --editable .[test]"]
INSTALL_NBGRADER = ["-m pip install --editable .[assignments]"]
RUNS = {
    "tutorial": ["-m prosutils tutorial"],
    "test": [
        "-m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --nbval-lax --nbval-current-env "
        "tests notebooks --ignore tests/test_solved_notebooks.py"
    ],
    "solved": ["-m pytest --numprocesses 2 tests/test_solved_notebooks.py"],
    "lab": ["-m jupyterlab notebooks/00_start_here.ipynb"],
    "notebooks": ["notebooks/execute.py"],
    "assignments": ["assignments/course.py release"],
    "grade": ["assignments/course.py grade"],
}
INSTALLS = {target: INSTALL + INSTALL_NBGRADER * (target in ("test", "assignments", "grade")) for target in RUNS}


@pytest.mark.parametrize("target", RUNS)
def test_targets_build_the_environment_once(checkout, target):
    assert checkout("make", target)[:2] == (0, INSTALLS[target] + RUNS[target])
    assert checkout("make", "-j1", target)[:2] == (0, RUNS[target])


def test_changed_pyproject_is_installed_again(checkout):
    checkout("make", "lab")
    installed = (checkout.folder / ".venv" / "installed").stat().st_mtime
    os.utime(checkout.folder / "pyproject.toml", (installed + 5, installed + 5))
    assert checkout("make", "lab")[1] == INSTALL + RUNS["lab"]


def test_failed_installation_is_tried_again(checkout):
    code, calls, _ = checkout("make", "tutorial", fails="pip install")
    assert code != 0 and calls == INSTALL
    assert checkout("make", "tutorial")[:2] == (0, INSTALL + RUNS["tutorial"])


@pytest.mark.parametrize("command", [["make", "test"], ["bash", ".ci/run"]])
def test_failing_tests_fail_the_command(checkout, command):
    assert checkout(*command)[0] == 0
    assert checkout(*command, fails="--nbval-lax")[0] != 0


def test_ci_runs_the_tests(checkout):
    assert checkout("bash", ".ci/run")[1] == INSTALLS["test"] + RUNS["test"] + RUNS["solved"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_help_lists_every_target(checkout):
    code, calls, output = checkout("make")
    assert code == 0 and not calls
    assert [line.split()[1] for line in output.splitlines()] == list(TARGETS)


# ---- code --------------------------------------------------------------------------------------------------


def dotted(path):
    """prosutils/show/plots.py -> "show.plots"."""
    return ".".join(path.relative_to(ROOT / "prosutils").with_suffix("").parts)


def own_imports(path):
    """The modules of the package that a file imports, dotted, below `prosutils`."""
    room = dotted(path).split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.level or node.module.split(".")[0] == "prosutils"):
            base = room[: len(room) - node.level + 1] if node.level else []
            module = base + [part for part in (node.module or "").removeprefix("prosutils").split(".") if part]
            if (ROOT / "prosutils").joinpath(*module).is_dir():
                yield from (".".join([*module, alias.name]) for alias in node.names)
            else:
                yield ".".join(module)
        elif isinstance(node, ast.Import):
            yield from (
                alias.name.removeprefix("prosutils.") for alias in node.names if alias.name.startswith("prosutils.")
            )


def test_every_module_has_its_place_in_the_order():
    assert sorted(ORDER) == sorted(map(dotted, MODULES))


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_modules_import_from_those_before_them(path):
    allowed = ORDER[: ORDER.index(dotted(path))]
    for name in own_imports(path):
        assert name in allowed, f"{dotted(path)} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_modules_are_short_enough_to_read(path):
    assert len(path.read_text().splitlines()) <= 430


def test_no_path_of_a_machine_in_tracked_files():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    texts = {"", ".py", ".md", ".toml", ".yml", ".json", ".csv", ".cff", ".ipynb", ".svg"}
    pattern = re.compile(rb"(?<![\w./-])/(home|Users|root|tmp|work)/")
    for name in filter(None, os.fsdecode(listing).split("\0")):
        path = ROOT / name
        if path.is_file() and path.suffix in texts:
            found = pattern.search(path.read_bytes())
            assert not found, f"{name}: {found.group().decode()}"
