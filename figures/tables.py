"""Writes the result tables of README.md and RESULTS.md anew, from the runs in the CSV files of this folder.

    python figures/tables.py            # what stands between <!-- table NAME --> and <!-- /table -->
    python figures/tables.py --check    # says whether a table is not what the runs say, and changes nothing

Columns are held-out domains. A cell is the mean of the seeds, with their standard deviation where there are several; a
dash stands for what was not measured, and for the mean of a row in which something is missing.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from prosutils.files import written_whole
from prosutils.grid import PARTS, as_markdown, cells, markdown, summary
from prosutils.tables import GRID, read_table

HERE = Path(__file__).parent
DOCUMENTS = [HERE.parent / name for name in ("README.md", "RESULTS.md")]
BLOCK = re.compile(r"(<!-- table ([\w-]+) -->\n).*?(\n<!-- /table -->)", re.DOTALL)
#: The far tier's domains and methods, in the order of reading.
DOMAINS = ("chalk", "stamp", "blueprint", "cross_stitch", "mosaic")
METHODS = ("Zero-shot CLIP", "Heads only", "Static prompts", "ProS", "ProS + heads", "Full fine-tuning")


def runs(file: str, names=None, **which: str) -> pd.DataFrame:
    """The rows of a table of runs that have these values; of the methods `names` only, if given."""
    table = read_table(HERE / file, GRID)
    table = table[(table[list(which)] == pd.Series(which)).all(axis=1)]
    return table[table.method.isin(names)] if names else table


def far_table(
    file: str, names: Sequence[str], title: str = "method", protocol: str = "UCDR", gallery: str = "unseen"
) -> str:
    """The far tier's runs of some methods, in the order of reading."""
    table = runs(file, names, preset="mini", protocol=protocol, gallery=gallery)
    mean, spread = summary(table, protocol, gallery)
    mean = mean.loc[[name for name in names if name in mean.index], [*(d for d in DOMAINS if d in mean), "mean"]]
    return as_markdown(cells(mean, spread), title).replace("| ProS |", "| **ProS** |")


def parts(of: str, title: str) -> str:
    names = [name for name in PARTS if name == of or name.startswith(f"{of}, ")]
    return far_table("results_parts.csv", names, title)


TABLES = {
    "far-ucdr": lambda: far_table("results_baselines.csv", METHODS),
    "far-udcdr": lambda: far_table("results_baselines.csv", METHODS, protocol="UdCDR", gallery="seen"),
    "parts-frozen": lambda: parts("ProS", "ProS, projections frozen"),
    "parts-trained": lambda: parts("ProS + heads", "ProS, projections trained"),
    "near-ucdr": lambda: markdown(runs("results_baselines.csv", preset="mini-near")),
}


def renewed(text: str) -> str:
    """A document with its tables as the runs have them."""
    return BLOCK.sub(lambda block: f"{block[1]}{TABLES[block[2]]()}{block[3]}", text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where a table is not up to date")
    args = parser.parse_args()
    old = {path: path.read_text(encoding="utf-8") for path in DOCUMENTS}
    new = {path: renewed(text) for path, text in old.items()}
    changed = [path.name for path in DOCUMENTS if new[path] != old[path]]
    if args.check:
        sys.exit(f"Not what the runs say: {', '.join(changed)}. python figures/tables.py mends it." if changed else 0)
    for path in DOCUMENTS:
        with written_whole(path) as part:
            part.write_text(new[path], encoding="utf-8")
    print(f"Changed: {', '.join(changed) or 'nothing'}")


if __name__ == "__main__":
    main()
