"""The course: nothing leaks into student versions, and sample submissions get the points they should.

A subset of `make grade`, which runs them all.
"""

import html
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("nbgrader", reason="nbgrader is not installed: make grade, or pip install -e '.[assignments]'")

COURSE = Path(__file__).parents[1] / "assignments"
sys.path.insert(0, str(COURSE))

import course  # noqa: E402

SOLUTION = re.compile(r"### BEGIN SOLUTION\n(.*?)### END SOLUTION", re.DOTALL)
HIDDEN = re.compile(r"### BEGIN HIDDEN TESTS\n(.*?)### END HIDDEN TESTS", re.DOTALL)


def cells(path):
    """[(source, nbgrader's metadata)] of a notebook."""
    return [
        ("".join(cell["source"]), cell["metadata"].get("nbgrader", {}))
        for cell in json.loads(path.read_text())["cells"]
    ]


def source(assignment):
    return cells(COURSE / "source" / assignment / f"{assignment}.ipynb")


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """{assignment: text of the student version}, built in a course of its own."""
    root = tmp_path_factory.mktemp("course")
    (root / "source").symlink_to(COURSE / "source")
    course.release(root)
    return {name: root / "release" / name / f"{name}.ipynb" for name in course.ASSIGNMENTS}


@pytest.mark.parametrize("assignment", course.ASSIGNMENTS)
def test_student_versions_hold_no_solution_and_no_hidden_test(released, assignment):
    text = "\n".join(source for source, _ in cells(released[assignment]))
    assert "YOUR CODE HERE" in text and not re.search("BEGIN|END (SOLUTION|HIDDEN|MARK)", text)
    visible = {
        line.strip() for text, _ in source(assignment) for line in HIDDEN.sub("", SOLUTION.sub("", text)).splitlines()
    }
    secrets = [
        line.strip()
        for text, _ in source(assignment)
        for pattern in (SOLUTION, HIDDEN)
        for region in pattern.findall(text)
        for line in region.splitlines()
    ]
    secrets = [line for line in secrets if len(line) > 12 and line not in visible]
    assert len(secrets) > 60
    given_away = {line.strip() for line in text.splitlines()} & set(secrets)
    assert not given_away, f"{assignment} gives away: {given_away}"
    assert not any(cell.get("outputs") for cell in json.loads(released[assignment].read_text())["cells"])


@pytest.mark.parametrize("assignment", course.ASSIGNMENTS)
def test_source_is_what_nbgrader_expects(assignment):
    names = [meta["grade_id"] for _, meta in source(assignment) if meta]
    assert len(names) == len(set(names))
    for text, meta in source(assignment):
        if meta.get("solution"):
            assert SOLUTION.search(text), f"{meta['grade_id']} has no solution"
        assert not HIDDEN.search(text) or meta.get("grade"), "a hidden test outside of a test cell"
        if meta.get("grade") and not meta["solution"]:
            shown = HIDDEN.sub("", text).strip()
            assert shown, f"{meta['grade_id']} would be an empty cell for students"


def test_table_and_samples_belong_together():
    table = course.read_table()
    for assignment in course.ASSIGNMENTS:
        points = {meta["grade_id"]: meta["points"] for _, meta in source(assignment) if meta.get("grade")}
        rows = {row["submission"]: row for row in table if row["assignment"] == assignment}
        assert {"perfect", "empty", "loops_for_ever", "reads_the_tests"} < set(rows)
        assert set(course.read_answers(assignment)) <= set(rows), "a sample without a row"
        wrong = set(course.read_answers(assignment)) - {"loops_for_ever", "reads_the_tests", "kills_the_kernel"}
        assert len(wrong) >= 5
        assert rows["empty"]["loses"] == points and rows["empty"]["points"] == 0
        for row in rows.values():
            assert all(lost <= points[cell] for cell, lost in row["loses"].items()), row
            assert row["points"] is None or row["points"] == sum(points.values()) - sum(row["loses"].values()), row


def test_fence_refuses_and_allows(tmp_path):
    """In a process of its own, for the fence cannot be taken down. The course has its root elsewhere."""
    own = tmp_path / "autograded" / "student" / "assignment"
    own.mkdir(parents=True)
    (own / "mine.txt").write_text("mine")
    (tmp_path / "solution.txt").write_text("42")
    program = """
import os, runpy, socket, sqlite3, subprocess, sys, tempfile
runpy.run_path(sys.argv[1])
assert open("mine.txt").read() == "mine" and os.listdir(".") == ["mine.txt"]
with tempfile.TemporaryFile("w") as file:
    file.write("free")
sqlite3.connect(":memory:")
secret = "../../../solution.txt"
for attempt in (lambda: open(secret), lambda: os.open(secret, os.O_RDONLY), lambda: sqlite3.connect(secret),
                lambda: os.rename(secret, "/solution.txt"), lambda: os.symlink(secret, "x"), lambda: os.listdir(".."),
                lambda: os.listdir(os.path.dirname(sys.argv[1])), lambda: open("mine.txt", "w"),
                lambda: subprocess.run(["cat", secret]), lambda: os.system("true"),
                lambda: socket.create_connection(("127.0.0.1", 9))):
    try:
        attempt()
    except PermissionError as error:
        assert "While grading" in str(error), error
    else:
        raise AssertionError("not refused")
print("fenced")
"""
    result = subprocess.run(
        [sys.executable, "-c", program, str(COURSE / "fence.py")], cwd=own, capture_output=True, text=True
    )
    assert result.stdout == "fenced\n", result.stderr


def test_some_samples_get_their_points_and_nothing_leaks(tmp_path):
    wanted = [
        ("1_data_and_metrics", "reads_the_tests"),
        ("1_data_and_metrics", "not_a_notebook"),
        ("3_simulator", "perfect"),
    ]
    rows = [row for row in course.read_table() if (row["assignment"], row["submission"]) in wanted]
    graded = course.grade_samples(rows, tmp_path, workers=2)
    assert len(graded) == 3
    for row in graded:
        assert course.as_expected(row), f"{row['submission']} gets {row['given']}, loses {row['lost']}"
    log = (tmp_path / "1_data_and_metrics" / "nbgrader.log").read_text()
    assert "not_a_notebook/1_data_and_metrics/1_data_and_metrics.ipynb is not a notebook" in log

    folder = tmp_path / "1_data_and_metrics" / "feedback" / "reads_the_tests" / "1_data_and_metrics"
    assert [path.name for path in folder.iterdir()] == ["1_data_and_metrics.html"], "it has left a file behind"
    page = html.unescape(re.sub("<[^>]+>", "", (folder / "1_data_and_metrics.html").read_text()))
    assert "refused: While grading, the folder of the course is closed." in page
    assert page.count("(This output quoted hidden tests.)") >= 2
    secrets = [text for text, meta in source("1_data_and_metrics") if meta.get("grade_id") == "ucdr_rows"]
    secrets = SOLUTION.findall(secrets[0]) + [
        region for text, _ in source("1_data_and_metrics") for region in HIDDEN.findall(text)
    ]
    for line in (line.strip() for region in secrets for line in region.splitlines()):
        if len(line) > 40 and not line.startswith(('f"', '"')):  # a line of text is a message, for the student
            assert line not in page, f"the feedback gives away: {line}"
