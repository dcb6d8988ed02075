"""The project's own order: one list of packages, targets that work, imports downwards, no machine's paths."""

import ast
import itertools
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
TARGETS = ("help", "tutorial", "test", "lab", "notebooks", "site", "assignments", "grade")
#: A module imports only from those before it: the order in which a learner meets them, room by room.
ORDER = (
    "files",
    "names",
    "config",
    "techniques",
    "pictonet",
    "image_files",
    "domains",
    "splits",
    "published",
    "processes",
    "backbone",
    "prompts",
    "simulator",
    "tuned",
    "pros",
    "ablations",
    "baselines",
    "followers",
    "adapters",
    "training_free",
    "methods",
    "ranking",
    "metrics",
    "tables",
    "checkpoints",
    "evaluation",
    "logs",
    "training",
    "released",
    "experiment",
    "parts",
    "grid",
    "workload",
    "cost",
    "search",
    "own_images",
    "show.pictures",
    "show.attention",
    "show.prompting",
    "show.diagrams",
    "show.overview",
    "show.results",
    "show.plots",
    "show.maps",
    "show.widget_parts",
    "show.widgets",
    "show.dial",
    "show.strengths",
    "teaching.tasks",
    *(f"teaching.{path.stem}" for path in sorted((ROOT / "prosutils" / "teaching").glob("tasks_*.py"))),
    "teaching.differences",
    "teaching.exercises",
    "teaching.leaks",
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


def listed(*extras):
    """{package: lower bound} of the core, and of some extras."""
    bounds = {}
    for requirement in sum((PROJECT["optional-dependencies"][extra] for extra in extras), PROJECT["dependencies"]):
        if own := re.fullmatch(r"prosutils\[([\w,]+)\]", requirement):
            bounds |= listed(*own[1].split(","))
        else:
            name, bound = re.fullmatch(r"([\w-]+)>=([\d.]+)", requirement).groups()
            bounds[name] = bound
    return bounds


#: Folders, and the extras that bring what their files import. `studies/` and `figures/` are for the developers' set-up.
EXTRAS = {
    "prosutils": ("formats",),
    "prosutils/show": ("notebooks",),
    "prosutils/teaching": ("notebooks",),
    "data_scripts": ("data", "notebooks", "formats"),
    "assignments": ("assignments", "test"),
    "tests": ("test", "assignments", "formats", "metrics"),
    "studies": ("test", "metrics"),
    "figures": ("test",),
    "site": ("test",),
    "notebooks": ("test",),
}
IMPORT_NAMES = {
    "faiss": "faiss-cpu",
    "open_clip": "open_clip_torch",
    "PIL": "pillow",
    "pillow_heif": "pillow-heif",
    "sklearn": "scikit-learn",
    "umap": "umap-learn",
    "yaml": "pyyaml",
    "IPython": "ipywidgets",
    "traitlets": "ipywidgets",
    "nbformat": "nbconvert",
    "nbclient": "nbconvert",
    "jupyter_client": "nbconvert",
    "packaging": "pytest",
    "docutils": "sphinx",
    "pytorch_metric_learning": "pytorch-metric-learning",
}


@pytest.mark.parametrize("folder", EXTRAS)
def test_every_imported_package_is_listed_with_a_lower_bound(folder):
    own = {"prosutils", "tomli", "tomllib", "google", "oml"} | {
        path.stem
        for name in ("data_scripts", "assignments", "notebooks", "site", "studies", "figures", "tests")
        for path in (ROOT / name).glob("*.py")
    }
    known = listed(*EXTRAS[folder])
    paths = (ROOT / folder).glob("*.py") if folder == "prosutils" else (ROOT / folder).rglob("*.py")
    for path in paths:
        if path.parent.name == "samples":
            continue
        for name in imported_packages(path) - own - set(sys.stdlib_module_names):
            assert IMPORT_NAMES.get(name, name) in known, f"{path.name} imports {name}"


@pytest.mark.parametrize("room", ["show", "teaching"])
def test_a_room_without_its_packages_names_the_extra(room):
    code = (
        f"import sys; sys.modules.update(dict.fromkeys(['seaborn', 'anywidget', 'IPython']))\nimport prosutils.{room}"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert 'pip install "prosutils[notebooks]"' in done.stderr and "UserError" in done.stderr


def test_the_first_notebook_checks_for_the_listed_versions():
    cells = json.loads((ROOT / "notebooks" / "00_start_here.ipynb").read_text())["cells"]
    (checks,) = ("".join(cell["source"]) for cell in cells if "def check(" in "".join(cell["source"]))
    wanted = dict(re.findall(r'"([\w-]+)": "([\d.]+)"', checks))
    assert "torch" in wanted and wanted.items() <= listed("notebooks").items()


def imported_packages(path):
    """Top-level names of the absolute imports of a file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split(".")[0])
    return names


def test_the_lock_file_is_in_step_with_pyproject():
    """Every requirement as listed, from the public index. `uv lock` writes the file anew."""
    text = (ROOT / "uv.lock").read_text()
    (own,) = (package for package in tomllib.loads(text)["package"] if package["name"] == "prosutils")
    locked = {
        entry["name"].lower().replace("_", "-"): entry["specifier"].removeprefix(">=")
        for entry in own["metadata"]["requires-dist"]
        if "specifier" in entry
    }
    assert own["version"] == PROJECT["version"]
    assert locked == {
        name.lower().replace("_", "-"): bound
        for name, bound in listed("test", "assignments", "formats", "metrics").items()
    }
    assert set(re.findall(r"https?://([^/\"]+)", text)) == {"pypi.org", "files.pythonhosted.org"}


CONFIGURATION = [".pre-commit-config.yaml", *(str(p.relative_to(ROOT)) for p in (ROOT / ".github").rglob("*.yml"))]


@pytest.mark.parametrize("name", CONFIGURATION)
def test_configuration_files_can_be_read(name):
    content = yaml.safe_load((ROOT / name).read_text())
    assert isinstance(content, dict) and content
    for job in content.get("jobs", {}).values():
        assert job["runs-on"] and all("run" in step or "uses" in step for step in job["steps"])
        named = re.findall(r"tests/\w+\.py", " ".join(step.get("run", "") for step in job["steps"]))
        assert all((ROOT / path).exists() for path in named)


def test_the_development_container_builds_what_make_builds():
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    assert container["postCreateCommand"] == "make .venv/installed TORCH=cpu"


def test_the_changelog_has_this_version():
    versions = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[:2] == ["Unreleased", PROJECT["version"]]


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

#: Stands for Python and uv: notes its arguments in calls.txt, copies itself as the .venv's Python, fails on demand.
STUB = """#!/bin/sh
case "$0" in *uv) name="uv ";; esac
echo "$name$*" >> calls.txt
case "$1 $2" in *venv*) mkdir -p .venv/bin; cp stub .venv/bin/python;; esac
if [ -n "$FAILS" ]; then case "$*" in *"$FAILS"*) exit 3;; esac; fi
"""


@pytest.fixture
def checkout(tmp_path):
    """A checkout with the real Makefile and .ci/run: a function of a command: (exit code, calls, output)."""
    for name in ("Makefile", "pyproject.toml", ".ci/run"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    stub = tmp_path / "stub"
    stub.write_text(STUB)
    stub.chmod(0o755)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "uv").symlink_to(stub)
    (tmp_path / "bin" / "chromedriver").symlink_to(stub)  # else .ci/run would install a browser

    def run(*command, fails="", uv=""):
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
                "UV": uv,
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
CPU_TORCH = ["-m pip install --index-url https://download.pytorch.org/whl/cpu torch>=2.6 torchvision>=0.21"]
RUNS = {
    "tutorial": ["-m prosutils tutorial"],
    "test": [
        "-m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --nbval-lax --nbval-current-env "
        "tests notebooks"
    ],
    "lab": ["-m jupyterlab notebooks/00_start_here.ipynb"],
    "notebooks": ["notebooks/execute.py"],
    "site": ["site/build.py"],
    "assignments": ["assignments/course.py release"],
    "grade": ["assignments/samples.py"],
}
INSTALLS = {target: INSTALL + INSTALL_NBGRADER * (target in ("test", "assignments", "grade")) for target in RUNS}


@pytest.mark.parametrize("target", RUNS)
def test_targets_build_the_environment_once(checkout, target):
    assert checkout("make", target)[:2] == (0, INSTALLS[target] + RUNS[target])
    assert checkout("make", "-j1", target)[:2] == (0, RUNS[target])


def test_torch_cpu_takes_pytorchs_cpu_build(checkout):
    assert checkout("make", "lab", "TORCH=cpu")[1] == [INSTALL[0], *CPU_TORCH, INSTALL[1], *RUNS["lab"]]


def test_uv_installs_where_there_is_uv(checkout):
    uv = str(checkout.folder / "bin" / "uv")
    python = checkout.folder / "stub"
    create = f"uv venv --quiet --seed --allow-existing --python {python} .venv"
    install = "uv pip install --python .venv/bin/python --editable .[test]"
    assert checkout("make", "lab", uv=uv)[1] == [create, install, *RUNS["lab"]]
    shutil.rmtree(checkout.folder / ".venv")
    assert checkout("make", "lab", "TORCH=cpu", uv=uv)[1] == [
        create,
        install.replace("--editable", "--torch-backend cpu --editable"),
        *RUNS["lab"],
    ]


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
    assert checkout("bash", ".ci/run")[1] == INSTALLS["test"] + RUNS["test"]
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
    assert len(path.read_text().splitlines()) <= 450


def public_arguments():
    """(module, function, argument, whether it has a type) of everything public in the package. The tasks of exercises
    are left out: they are written as a learner writes them."""
    for path in MODULES:
        if not path.stem.startswith("tasks_"):
            tree = ast.parse(path.read_text())
            classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name[0] != "_"]
            for node in itertools.chain(tree.body, *(kind.body for kind in classes)):
                if isinstance(node, ast.FunctionDef) and (node.name[0] != "_" or node.name == "__init__"):
                    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                    for argument in filter(None, [*arguments, node.args.vararg, node.args.kwarg]):
                        if argument.arg not in ("self", "cls"):
                            yield dotted(path), node.name, argument.arg, argument.annotation is not None


def test_public_arguments_have_types():
    found = list(public_arguments())
    bare = [".".join(where) for *where, typed in found if not typed]
    assert len(found) > 500 and len(bare) <= 0.1 * len(found), bare


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
