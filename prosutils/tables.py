"""Tables of results as CSV files: read back as they were written, and added to without a loss."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from .files import UserError, only_one, scratch_folder, written_whole
from .metrics import AP_RULES

METRICS = ("mAP@200", "Prec@200", "mAP@all", "Prec@100", *(f"mAP@200 by {rule}" for rule in AP_RULES))


@dataclass(frozen=True)
class Columns:
    """The columns of a kind of table: names (text, whatever they look like), whole numbers and numbers.

    key: the columns by which a newer row replaces an older one, and by which the table is sorted.
    """

    text: tuple[str, ...]
    whole: tuple[str, ...]
    real: tuple[str, ...]
    key: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """All of them, the names first."""
        return [*self.text, *self.whole, *self.real]


#: results.csv: what `train` and `evaluate` have measured.
RESULTS = Columns(
    text=("preset", "method", "protocol", "unseen_domain", "gallery", "training_classes", "switches"),
    whole=("seed", "queries", "gallery_size"),
    real=METRICS,
    key=("preset", "method", "protocol", "unseen_domain", "gallery", "training_classes", "seed", "switches"),
)
#: What a grid has measured (grid.py). settings: what replaced the preset's; data: the folder's name, "" for PictoNet.
GRID = Columns(
    text=("preset", "data", "settings", "case", "method", "protocol", "unseen_domain", "gallery", "switches"),
    whole=("seed", "queries", "gallery_size", "images"),
    real=METRICS,
    key=(
        *("preset", "data", "settings", "case", "unseen_domain", "seed", "switches"),
        *("method", "protocol", "gallery"),
    ),
)


def write_table(table: pd.DataFrame, path: str | Path) -> None:
    """A DataFrame as CSV, whole or not at all. Raises UserError where it cannot be written."""
    text = table.select_dtypes(exclude="number").astype(str)
    returns = any(column.str.contains("\r", regex=False).any() for _, column in text.items())
    with written_whole(path) as part:  # a carriage return in a name is put in quotes only where lines end with one
        table.to_csv(part, index=False, lineterminator="\r\n" if returns else "\n")


def read_table(path: str | Path, columns: Columns) -> pd.DataFrame:
    """A table of `write_table` with the types of its kind; an empty one where there is no file.

    A name stays text: a domain "0", a preset "", a class "nan". Raises UserError where columns are missing or foreign,
    naming them, and where a number is none: the file is left as it is.
    """
    try:
        table = pd.read_csv(path, dtype=str, na_filter=False, encoding="utf-8-sig")
    except FileNotFoundError:
        return pd.DataFrame(columns=columns.names)
    except (OSError, UnicodeDecodeError, pd.errors.EmptyDataError, pd.errors.ParserError) as error:
        raise UserError(f"The table {path} cannot be read ({str(error).strip()}). {MOVE_AWAY}") from None
    refuse_other_columns(table, path, columns)
    for kind, names in ((int, columns.whole), (float, columns.real)):
        for name in names:
            try:
                table[name] = [kind(value or "nan") for value in table[name]]
            except ValueError as error:
                raise UserError(f"The column {name} of {path} does not hold numbers ({error}). {MOVE_AWAY}") from None
    return table


MOVE_AWAY = "Nothing was changed. Move the file away, save it as CSV with commas, or name another."


def refuse_other_columns(table: pd.DataFrame, path: str | Path, columns: Columns) -> None:
    """UserError naming the columns that a table lacks and those that it should not have."""
    missing = [name for name in columns.names if name not in table]
    foreign = [str(name) for name in table if name not in columns.names]
    if missing or foreign:
        faults = [f"it {kind}: {', '.join(names)}" for kind, names in (("lacks", missing), ("has", foreign)) if names]
        raise UserError(
            f"{path} is a table with other columns ({'; '.join(faults)}), as another program or an earlier version of "
            f"prosutils writes it. {MOVE_AWAY}"
        )


def add_rows(rows: pd.DataFrame, path: str | Path, columns: Columns) -> pd.DataFrame:
    """Add rows to the table at `path`, replacing older ones of the same key; returns the whole table, sorted by it.

    Other processes wait meanwhile, so that no row is lost. Raises UserError where the table cannot be read or written:
    the rows are then in a file of their own, which the message names.
    """
    try:
        rows = rows.reset_index(drop=True)
        refuse_other_columns(rows, "What was measured", columns)
        with only_one(path):
            table = pd.concat([read_table(path, columns), rows]) if Path(path).exists() else rows
            table = table[columns.names].drop_duplicates(list(columns.key), keep="last")
            table = table.sort_values(list(columns.key), ignore_index=True)
            write_table(table, path)
        return table
    except UserError as error:
        raise UserError(f"{error} {rescued(rows, Path(path))}") from error


def rescued(rows: pd.DataFrame, path: Path) -> str:
    """Writes rows that did not get into the table at `path` beside it, or among the temporary files; says where."""
    for folder in (path.parent, scratch_folder()):
        for number in range(1, 1000):
            place = folder / f"{path.stem}-unsaved-{number}.csv"
            if not place.exists():
                break
        with contextlib.suppress(UserError):
            write_table(rows, place)
            return f"The new rows are in {place}."
    return f"The new rows could not be written anywhere:\n{rows.to_csv(index=False)}"
