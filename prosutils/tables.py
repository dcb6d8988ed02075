"""Tables of results as CSV files."""

from pathlib import Path

import pandas as pd

from .files import written_whole


def write_table(table: pd.DataFrame, path: str | Path) -> None:
    """A DataFrame as CSV, whole or not at all. Raises UserError where it cannot be written."""
    with written_whole(path) as part:
        table.to_csv(part, index=False)
