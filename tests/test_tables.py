"""Tables are read back as they were written, and no row is lost: not to a name, another program, or another process."""

import multiprocessing
import os

import numpy as np
import pandas as pd
import pytest

from prosutils import UserError, cli, tables
from prosutils.experiment import add_results, by_held_out_domain
from prosutils.tables import GRID, METRICS, RESULTS, add_rows, read_table, write_table

NAMES = ["0", "", "nan", "none", "None", "NA", "1e3", "true", "a,b", 'say "x"', "é 東", " ", "-", "007"]


def row(columns=RESULTS, **values):
    """One row of a table."""
    names = dict.fromkeys(columns.text, "x") | dict.fromkeys(columns.whole, 1) | dict.fromkeys(columns.real, 1 / 3)
    return pd.DataFrame([names | values])


@pytest.mark.parametrize("columns", [RESULTS, GRID])
def test_names_are_read_back_as_text_whatever_they_look_like(tmp_path, columns):
    path = tmp_path / "table.csv"
    rows = pd.concat([row(columns, **{column: name}) for column in columns.text for name in NAMES], ignore_index=True)
    first = add_rows(rows, path, columns)
    again = add_rows(rows, path, columns)  # replaces, and adds none
    assert len(first) == len(rows.drop_duplicates(list(columns.key)))
    pd.testing.assert_frame_equal(first, again)
    pd.testing.assert_frame_equal(read_table(path, columns), first)
    for column in columns.text:
        assert set(NAMES) <= set(first[column]) or column == "settings"


def test_numbers_are_read_back_to_the_last_digit(tmp_path):
    values = np.random.default_rng(0).random(200)
    rows = pd.concat([row(seed=i, **{"mAP@200": value}) for i, value in enumerate(values)])
    add_rows(rows, tmp_path / "table.csv", RESULTS)
    read = read_table(tmp_path / "table.csv", RESULTS)
    assert read["mAP@200"].tolist() == values.tolist() and read.seed.dtype == int
    add_rows(row(seed=0, **{"mAP@all": float("nan")}), tmp_path / "table.csv", RESULTS)
    assert read_table(tmp_path / "table.csv", RESULTS)["mAP@all"].isna().sum() == 1


@pytest.mark.parametrize(
    "write, words",
    [
        (lambda table, path: table.to_csv(path, index=False, sep=";"), "lacks: preset.*has: preset;method"),
        (lambda table, path: table.drop(columns="switches").to_csv(path, index=False), "lacks: switches"),
        (lambda table, path: table.assign(note="mine").to_csv(path, index=False), "has: note"),
        (lambda table, path: table.to_csv(path), "has: Unnamed: 0"),
        (lambda table, path: table.to_csv(path, index=False, decimal=","), "mAP@200 .* does not hold numbers"),
        (lambda table, path: table.assign(seed="first").to_csv(path, index=False), "seed .* does not hold numbers"),
        (lambda table, path: path.write_text(""), "cannot be read"),
        (lambda table, path: path.write_bytes(table.assign(preset="é").to_csv().encode("latin-1")), "cannot be read"),
        (lambda table, path: path.mkdir(), "cannot be read"),
    ],
)
def test_foreign_tables_are_refused_by_name_and_nothing_is_deleted(tmp_path, write, words):
    path = tmp_path / "results.csv"
    write(pd.concat([row(seed=i) for i in range(8)]), path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(UserError, match=words):
        read_table(path, RESULTS)
    with pytest.raises(UserError, match="The new rows are in .*results-unsaved-1.csv"):
        add_rows(row(seed=9), path, RESULTS)
    assert (path.read_bytes() if path.is_file() else None) == before
    assert read_table(tmp_path / "results-unsaved-1.csv", RESULTS).seed.tolist() == [9]
    with pytest.raises(UserError, match="results-unsaved-2.csv"):  # and not over the first
        add_rows(row(seed=10), path, RESULTS)


def test_a_spreadsheet_s_mark_of_its_encoding_and_order_of_columns_do_no_harm(tmp_path):
    path = tmp_path / "results.csv"
    table = pd.concat([row(seed=i) for i in range(3)])[RESULTS.names[::-1]]
    table.to_csv(path, index=False, encoding="utf-8-sig")
    assert add_rows(row(seed=9), path, RESULTS).seed.tolist() == [0, 1, 2, 9]


def add_some(path, start):
    for i in range(15):
        add_rows(row(seed=start + i), path, RESULTS)


def test_two_processes_lose_no_row(tmp_path):
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=add_some, args=(tmp_path / "results.csv", start)) for start in (0, 100)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert len(read_table(tmp_path / "results.csv", RESULTS)) == 30 and len(list(tmp_path.iterdir())) == 1


def test_what_was_measured_is_printed_and_kept_though_the_table_cannot_be_written(tmp_path, monkeypatch, capsys):
    class FakeRun:
        config = type("Config", (), dict(dataset="folder", preset="mini", pixels=64))
        benchmark, artifacts = None, tmp_path
        data = type("Data", (), dict(root=tmp_path))

    def locked(table, path):
        if path.name == "results.csv":
            raise UserError(f"{path} cannot be written (in use).")
        write_table(table, path)

    monkeypatch.setattr(tables, "write_table", locked)
    with pytest.raises(UserError, match="cannot be written .*The new rows are in .*results-unsaved-1.csv"):
        cli.report(FakeRun, row(seed=4, **{"mAP@200": 0.125}).drop(columns="preset"))
    assert "0.125" in capsys.readouterr().out
    kept = read_table(tmp_path / "results-unsaved-1.csv", RESULTS)
    assert kept["mAP@200"].tolist() == [0.125] and kept.preset[0] == tmp_path.name


def test_a_folder_is_never_replaced_by_a_file(tmp_path):
    (tmp_path / "results.csv").mkdir()
    (tmp_path / "results.csv" / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="it is a folder"):
        write_table(row(), tmp_path / "results.csv")
    assert os.listdir(tmp_path / "results.csv") == ["mine.txt"]


def test_measurements_with_other_switches_are_other_rows(tmp_path):
    path = tmp_path / "results.csv"
    for switches in ("", "similarity=released", "", "average_precision=released"):
        table = add_results(row(switches=switches, training_classes="train+val"), path)
    assert sorted(table.switches) == ["", "average_precision=released", "similarity=released"]
    for read in (table, pd.read_csv(path), pd.read_csv(path, keep_default_na=False)):  # as notebooks read it
        assert len(by_held_out_domain(read, "x", "x", "x", "x")) == 1
    rows = table[table.switches != ""].assign(**{"mAP@200": 0.5})
    mixed = pd.concat([table[table.switches == ""], rows])
    assert by_held_out_domain(mixed, "x", "x", "x", "x").tolist() == [1 / 3]
    assert by_held_out_domain(mixed, "x", "x", "x", "x", switches="similarity=released").tolist() == [0.5]
    assert {"mAP@200 by hits", "mAP@200 by min(k, R)", "mAP@200 by R"} <= set(METRICS)
