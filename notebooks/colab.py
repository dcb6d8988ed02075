"""The notebooks in Colab: `setup` prepares a session, `write` puts badge and first cell into every notebook.

%run colab.py setup                 # in a notebook's first cell, in Colab
python notebooks/colab.py write     # after `Repository` in pyproject.toml has changed
"""

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

NOTEBOOKS = Path(__file__).resolve().parent
ROOT = NOTEBOOKS.parent
#: Colab is the laboratory already.
NOT_IN_COLAB = {"jupyterlab"}
BADGE = (
    "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    "(https://colab.research.google.com/github/{repository}/blob/main/notebooks/{name})"
)
CELL = """# In Colab: fetches the tutorial and installs what is missing, never torch, torchvision or numpy. Elsewhere: nothing.
import sys

if "google.colab" in sys.modules:
    ![ -d /content/{folder} ] || git clone -q --depth 1 https://github.com/{repository} /content/{folder}
    %cd -q /content/{folder}/notebooks
    %run colab.py setup"""


# --- In Colab -----------------------------------------------------------------------------------------------------


def setup():
    """Install what is missing, make `prosutils` importable, let widgets be shown, say what this session computes on."""
    start = time.time()
    wanted = missing()
    if wanted:
        install(wanted)
    sys.path.insert(0, str(ROOT))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])  # for !python
    if "google.colab" in sys.modules:
        sys.modules["google.colab"].output.enable_custom_widget_manager()
    import torch

    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else ("the CPU (Runtime > Change runtime type offers GPUs)")
    )
    print(
        f"Installed: {', '.join(wanted) or 'nothing, all is here'} ({time.time() - start:.0f} s)\n"
        f"PyTorch {torch.__version__} computes on {device}"
    )


def missing():
    """Requirements of pyproject.toml that this Python lacks, or has too old."""
    from packaging.requirements import Requirement

    text = (ROOT / "pyproject.toml").read_text()
    listed = re.findall(r'"([^"]+)"', re.search(r"^dependencies = \[(.*?)^\]", text, re.DOTALL | re.MULTILINE)[1])
    wanted = []
    for requirement in map(Requirement, listed):
        try:
            there = requirement.specifier.contains(metadata.version(requirement.name), prereleases=True)
        except metadata.PackageNotFoundError:
            there = False
        if not there and requirement.name not in NOT_IN_COLAB:
            wanted.append(str(requirement))
    return wanted


def install(requirements):
    """pip install, with all that is installed held at its version; exits with pip's words where that is impossible."""
    held = {dist.metadata["Name"].lower(): dist.version for dist in metadata.distributions() if dist.metadata["Name"]}
    for requirement in requirements:
        held.pop(re.match(r"[\w-]+", requirement)[0].lower(), None)
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in held.items() if "+" not in version))
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--constraint",
                str(constraints),
                *requirements,
            ],
            capture_output=True,
            text=True,
        )
    if done.returncode:
        sys.exit(f"These packages could not be installed: {', '.join(requirements)}. pip says:\n{done.stderr[-1500:]}")
    importlib.invalidate_caches()


# --- At home ------------------------------------------------------------------------------------------------------


def write():
    """Put badge and first cell into every notebook; returns the names of those that changed."""
    changed = []
    for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb")):
        before = path.read_text(encoding="utf-8")
        notebook = json.loads(before)
        with_badge(notebook, path.name)
        after = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
        if after != before:
            path.write_text(after, encoding="utf-8")
            changed.append(path.name)
    return changed


def with_badge(notebook, name):
    """A notebook (as JSON) whose title cell begins with the badge and is followed by Colab's cell."""
    settings = (ROOT / "pyproject.toml").read_text()
    repository = re.search(r'^Repository = "https://github.com/([^"]+)"', settings, re.MULTILINE)[1]
    title, *others = notebook["cells"]
    lines = [line for line in title["source"] if "colab-badge.svg" not in line]
    while not lines[0].strip():
        lines.pop(0)
    title["source"] = [BADGE.format(repository=repository, name=name) + "\n", "\n", *lines]
    source = CELL.format(repository=repository, folder=repository.split("/")[1]).splitlines(keepends=True)
    before = next((other for other in others if other.get("id") == "colab"), {})
    cell = dict(
        cell_type="code",
        execution_count=before.get("execution_count"),
        id="colab",
        metadata=dict(tags=["colab"]),
        outputs=[],
        source=source,
    )
    notebook["cells"] = [title, cell, *(other for other in others if other.get("id") != "colab")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["setup", "write"])
    if parser.parse_args().command == "setup":
        setup()
    else:
        print("\n".join(write()) or "Every notebook has its badge and first cell already.")


if __name__ == "__main__":
    main()
