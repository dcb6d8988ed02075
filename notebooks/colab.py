"""The notebooks in Colab: `setup` prepares a session, `write` puts badge and first cell into every notebook, and the
link to the page on which one draws into README.md.

    %run colab.py setup                  # in a notebook's first cell, in Colab
    python notebooks/colab.py write      # with the address of the git remote `origin`
    python notebooks/colab.py write URL  # with another address: https://github.com/you/your-copy

Without an address there is no badge, and the first cell's REPOSITORY is empty.
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
README = ROOT / "README.md"
#: Where README.md has the link to the page that GitHub Pages serves, or says how to build it.
PAGE = re.compile(r"(?<=<!-- page -->).*?(?=<!-- /page -->)", re.DOTALL)
BUILD_PAGE = "`make site`, then `python -m http.server --directory build/site`"
#: Colab is the laboratory already.
NOT_IN_COLAB = {"jupyterlab"}
BADGE = (
    "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    "(https://colab.research.google.com/github/{repository}/blob/main/notebooks/{name})"
)
CELL = """# In Colab: fetches the tutorial and installs what is missing, never torch, torchvision or numpy.
# Elsewhere: nothing.
import sys

REPOSITORY = "{address}"  # of the tutorial; `python notebooks/colab.py write URL` sets it in every notebook
if "google.colab" in sys.modules:
    ![ -d /content/tutorial ] || git clone -q --depth 1 {{REPOSITORY}} /content/tutorial
    %cd -q /content/tutorial/notebooks
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
    """Requirements of the package and of its notebooks (pyproject.toml) that this Python lacks, or has too old."""
    from packaging.requirements import Requirement

    text = (ROOT / "pyproject.toml").read_text()
    lists = re.findall(r"^(?:dependencies|notebooks) = \[(.*?)^\]", text, re.DOTALL | re.MULTILINE)
    wanted = []
    for requirement in map(Requirement, re.findall(r'"([^"]+)"', "".join(lists))):
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


def origin():
    """Address of the git remote `origin` as a browser has it; "" where there is none, or it is not on GitHub."""
    try:
        done = subprocess.run(["git", "remote", "get-url", "origin"], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:  # git is not installed
        return ""
    return browsable(done.stdout.strip())


def browsable(address):
    """A remote's address (git@github.com:a/b.git, https://github.com/a/b.git) as https://github.com/a/b; else ""."""
    found = re.fullmatch(r"(?:https://|ssh://git@|git@)github\.com[:/]([\w.-]+/[\w.-]+?)(?:\.git)?/?", address)
    return f"https://github.com/{found[1]}" if found else ""


def pages_address(address):
    """Where GitHub Pages serves a repository's site, with a slash at its end; "" where the repository is not known."""
    owner, _, name = address.removeprefix("https://github.com/").partition("/")
    return f"https://{owner.lower()}.github.io/{name}/" if name else ""


def write(address):
    """Put badge and first cell into every notebook, and the link into README.md; returns the names of what changed."""
    changed = []
    before = README.read_text(encoding="utf-8")
    link = f"[{pages_address(address)}]({pages_address(address)})" if address else BUILD_PAGE
    after = PAGE.sub(lambda found: link, before)
    if after != before:
        README.write_text(after, encoding="utf-8")
        changed.append(README.name)
    for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb")):
        before = path.read_text(encoding="utf-8")
        notebook = json.loads(before)
        with_badge(notebook, path.name, address)
        after = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
        if after != before:
            path.write_text(after, encoding="utf-8")
            changed.append(path.name)
    return changed


def with_badge(notebook, name, address):
    """A notebook (as JSON) whose title cell begins with the badge, where there is an address, and is followed by
    Colab's cell."""
    title, *others = notebook["cells"]
    lines = [line for line in title["source"] if "colab-badge.svg" not in line]
    while not lines[0].strip():
        lines.pop(0)
    repository = address.removeprefix("https://github.com/")
    badge = [BADGE.format(repository=repository, name=name) + "\n", "\n"] if address else []
    title["source"] = badge + lines
    before = next((other for other in others if other.get("id") == "colab"), {})
    cell = dict(
        cell_type="code",
        execution_count=before.get("execution_count"),
        id="colab",
        metadata=dict(tags=["colab"]),
        outputs=[],
        source=CELL.format(address=address).splitlines(keepends=True),
    )
    notebook["cells"] = [title, cell, *(other for other in others if other.get("id") != "colab")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("setup", help="in Colab: install what is missing")
    writing = commands.add_parser(
        "write", help="put badge and first cell into every notebook, the page's link into README.md"
    )
    writing.add_argument("address", nargs="?", metavar="URL", help="of the repository (default: the remote origin's)")
    args = parser.parse_args()
    if args.command == "setup":
        return setup()
    address = browsable(args.address) if args.address else origin()
    if args.address and not address:
        sys.exit(f"{args.address} is not the address of a repository on GitHub: https://github.com/you/your-copy.")
    print("\n".join(write(address)) or "README.md has its link, and every notebook its badge and first cell already.")
    if not address:
        print("No address: the notebooks have no badge. Give one: python notebooks/colab.py write URL")


if __name__ == "__main__":
    main()
