"""Run notebooks in place and save them as a reader without a kernel should see them.

    python notebooks/execute.py                       # all of them, or those that are named
    python notebooks/execute.py 03_stage2_simulator.ipynb

A widget is saved as its picture alone: a page that finds a widget without a kernel shows an error in its place. A
notebook with a cell that fails stays as it was.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NOTEBOOKS = Path(__file__).resolve().parent
WIDGET = "application/vnd.jupyter.widget-view+json"


def execute(path):
    """Run one notebook from its first cell and write it back in one step. Raises CellExecutionError."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        store_widget_state=False,
        record_timing=False,
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in map(still, cell.outputs) if output]
    part = path.with_suffix(".part")
    nbformat.write(notebook, part)
    os.replace(part, path)


def still(output):
    """An output without its widget; None where no picture is left of it."""
    data = output.get("data", {})
    if data.pop(WIDGET, None) and set(data) == {"text/plain"}:
        return None
    return output


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, default=sorted(NOTEBOOKS.glob("[0-9]*.ipynb")))
    for path in parser.parse_args().notebooks:
        path = path if path.exists() else NOTEBOOKS / path.name
        start = time.monotonic()
        try:
            execute(path)
        except FileNotFoundError:
            sys.exit(f"There is no notebook {path}.")
        except CellExecutionError as error:
            sys.exit(f"{path.name} is as it was, for a cell fails:\n{error}")
        print(f"{path.name}: {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
