"""Builds the tutorial as a book: the notebooks with their committed outputs, results, guides and the API, by Sphinx.

    python site/build_book.py          # into build/site/book; `make site` builds the page and the book

Nothing is executed, and no page of the book needs another host. A link that leads nowhere fails the build.
(Jupyter Book 2 fetches its theme from the web while it builds; Sphinx with MyST-NB reads the same files offline.)
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import npm

from prosutils.files import UserError

ROOT = Path(__file__).parents[1]
CONFIGURATION = ROOT / "site" / "book"
sys.path.insert(0, str(ROOT / "notebooks"))
from colab import origin, pages_address  # noqa: E402

#: What the book is made of, or links to; other files of the repository are named in it as plain text.
SOURCES = (
    "README.md RESULTS.md CONTRIBUTING.md RELIABILITY.md CHANGELOG.md LICENSE CITATION.cff pyproject.toml Makefile "
    "notebooks assignments prosutils data_scripts studies figures"
).split()
LEFT_OUT = (".*", "__pycache__", "artifacts", "*.zip", "*.pt", "*.safetensors")
PICTURE = "*This is a picture of the widget. The widget itself runs in JupyterLab or Colab.*"
WIDGET = re.compile(r"<(\w+): run this cell")  # what a widget shows as text


def markdown(text: str, name: str) -> dict[str, Any]:
    """A notebook's cell; `name` is not that of another."""
    return dict(cell_type="markdown", id=name, metadata={}, source=text)


def is_widget(cell: dict[str, Any]) -> bool:
    outputs = cell.get("outputs", [])
    return any(WIDGET.match("".join(output.get("data", {}).get("text/plain", ""))) for output in outputs)


def with_links(notebook: dict[str, Any], name: str, repository: str) -> dict[str, Any]:
    """A notebook (as JSON) as the book shows it: without what only Colab needs, with links below its title."""
    title, *others = notebook["cells"]
    lines = [line for line in title["source"] if "colab-badge.svg" not in line]
    links = ['<a href="../../index.html">Draw and retrieve in the browser</a>']
    if repository:
        place = f"blob/main/notebooks/{name}"
        colab = repository.replace("https://github.com/", "https://colab.research.google.com/github/")
        links += [f"[Open in Colab]({colab}/{place})", f"[Notebook on GitHub]({repository}/{place})"]
    heading, rest = "".join(lines).lstrip().split("\n", 1)
    cells = [markdown(f"{heading}\n\n{' · '.join(links)}\n{rest}", "title")]
    for cell in others:
        if "colab" not in cell["metadata"].get("tags", []):
            cells.append(cell)
        if is_widget(cell):
            cells.append(markdown(PICTURE, f"picture-{len(cells)}"))
    for cell in cells:
        if cell["cell_type"] == "markdown":  # Jupyter's anchors keep capitals, the book's have none
            cell["source"] = re.sub(r"\]\(#[^)]*\)", lambda found: found[0].lower(), "".join(cell["source"]))
    return notebook | {"cells": cells}


def lay_out(folder: Path, repository: str) -> None:
    """The sources, as in the repository, so that links between them hold; index and API at the top."""
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns(*LEFT_OUT))
        else:
            shutil.copy(ROOT / name, folder)
    for path in CONFIGURATION.glob("*.md"):
        shutil.copy(path, folder)
    for path in (folder / "notebooks").glob("*.ipynb"):
        path.write_text(json.dumps(with_links(json.loads(path.read_text("utf-8")), path.name, repository)), "utf-8")


def build_book(out: Path, repository: str, address: str) -> None:
    """Write the book into `out`, which is replaced. Raises UserError where Sphinx warns of anything.

    repository: its address on GitHub; address: of the site, for link previews. Both may be "".
    """
    with tempfile.TemporaryDirectory() as work:
        source, built = Path(work) / "source", Path(work) / "built"
        source.mkdir()
        lay_out(source, repository)
        command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet", "--jobs", "auto"]
        command += ["--conf-dir", str(CONFIGURATION), "-A", f"address={address}", "-A", f"repository={repository}"]
        done = subprocess.run([*command, str(source), str(built)], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"The book could not be built:\n{done.stderr.replace(f'{source}/', '').strip()[-3000:]}")
        npm.unpack("mathjax", {"es5/tex-svg.js": "tex-svg.js", "LICENSE": "LICENSE"}, built / "_static" / "mathjax")
        shutil.copy(ROOT / "figures" / "banner.png", built / "_static")
        for name in (".doctrees", "_sources"):  # nothing links to them
            shutil.rmtree(built / name, ignore_errors=True)
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(built, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "site" / "book", help="folder that is replaced")
    out = parser.parse_args().out
    try:
        build_book(out, origin(), pages_address(origin()))
    except UserError as error:
        sys.exit(str(error))
    print(f"{out}: {sum(1 for _ in out.rglob('*.html'))} pages.")


if __name__ == "__main__":
    main()
