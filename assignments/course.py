"""Builds the student versions, and grades the sample submissions to see that each gets the points it should.

    python assignments/course.py release        # make assignments: source/ -> release/
    python assignments/course.py grade          # make grade: samples/ -> grading/, and a table

Both call nbgrader's own steps with nbgrader_config.py; `nbgrader generate_assignment`, `autograde` and
`generate_feedback` do the same when called in this folder.
"""

import argparse
import copy
import csv
import logging
import os
import re
import shutil
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import nbformat
from nbgrader.api import Gradebook
from nbgrader.converters import Autograde, GenerateAssignment, GenerateFeedback
from nbgrader.converters.base import NbGraderException
from nbgrader.coursedir import CourseDirectory
from traitlets.config import PyFileConfigLoader

warnings.filterwarnings("ignore", module="nbgrader")  # its gradebook and a newer SQLAlchemy
HERE = Path(__file__).resolve().parent
ASSIGNMENTS = sorted(path.name for path in (HERE / "source").iterdir() if path.is_dir())


# ---- nbgrader's steps --------------------------------------------------------------------------------------


def run(step, root, assignment):
    """One of nbgrader's converters on the course in `root`, for all submissions; False where some could not be done."""
    config = PyFileConfigLoader("nbgrader_config.py", path=str(HERE)).load_config()
    config.CourseDirectory.root = str(root)
    config.CourseDirectory.assignment_id = assignment
    try:
        step(coursedir=CourseDirectory(config=config), config=config, force=True).start()
    except NbGraderException:
        return False
    return True


def release(root=HERE):
    """source/ -> release/ in `root`; returns [(assignment, points by tests, points by hand)]."""
    for assignment in ASSIGNMENTS:
        if not run(GenerateAssignment, root, assignment):
            raise SystemExit(f"{assignment} could not be released; nbgrader's log above says why.")
    rows = []
    with Gradebook(f"sqlite:///{root}/gradebook.db", "pros") as gradebook:
        for assignment in ASSIGNMENTS:
            notebook = gradebook.find_notebook(assignment, assignment)
            answers = {cell.name for cell in notebook.solution_cells}
            by_hand = sum(cell.max_score for cell in notebook.grade_cells if cell.name in answers)
            rows.append((assignment, notebook.max_score - by_hand, by_hand))
    return rows


# ---- sample submissions ------------------------------------------------------------------------------------


def read_table(path=HERE / "samples" / "points.csv"):
    """samples/points.csv: a list of dicts; `loses` and `by_hand` become {cell: points}, `points` a number or None."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["points"] = float(row["points"]) if row["points"] else None
        for column in ("loses", "by_hand"):
            row[column] = {cell: float(points) for cell, points in re.findall(r"(\w+):([\d.]+)", row[column])}
    return rows


def read_answers(assignment):
    """samples/ASSIGNMENT.py: {submission: {cell: answer}}. A section starts with `# %% submission: cell`."""
    text = (HERE / "samples" / f"{assignment}.py").read_text(encoding="utf-8")
    answers = {}
    for submission, cell, answer in re.findall(r"^# %% (\w+): (\w+)\n((?:(?!# %%).*\n?)*)", text, re.MULTILINE):
        answers.setdefault(submission, {})[cell] = answer.strip("\n")
    return answers


def grade_id(cell):
    return cell.metadata.get("nbgrader", {}).get("grade_id")


def solved(assignment, released):
    """The released notebook with the instructor's answers: what a perfect student hands in."""
    source = nbformat.read(HERE / "source" / assignment / f"{assignment}.ipynb", as_version=4)
    answers = {
        grade_id(cell): re.sub(r"^ *### (BEGIN|END) SOLUTION\n?", "", cell.source, flags=re.MULTILINE)
        for cell in source.cells
        if cell.metadata.get("nbgrader", {}).get("solution")
    }
    return answer(released, answers)


def answer(notebook, answers):
    """A copy of a notebook with some answers replaced, {cell: text}."""
    notebook = copy.deepcopy(notebook)
    cells = {grade_id(cell): cell for cell in notebook.cells}
    for name, text in answers.items():
        cells[name].source = text
    return notebook


def without(notebook, names):
    notebook = copy.deepcopy(notebook)
    notebook.cells = [cell for cell in notebook.cells if grade_id(cell) not in names]
    return notebook


def tests(notebook):
    return {
        grade_id(cell)
        for cell in notebook.cells
        if cell.metadata.get("nbgrader", {}).get("grade") and not cell.metadata.nbgrader.solution
    }


def hand_in(row, folder):
    """Writes the submission of one row of the table, as a student would who got `folder`/release."""
    name, assignment = row["submission"], row["assignment"]
    target = folder / "submitted" / name / assignment / f"{assignment}.ipynb"
    target.parent.mkdir(parents=True)
    released = nbformat.read(folder / "release" / assignment / f"{assignment}.ipynb", as_version=4)
    perfect = solved(assignment, released)
    if name == "not_a_notebook":
        target.write_bytes(b"%PDF-1.7 my solution, printed")
        return
    if name == "another_name":
        target = target.with_name("my solution.ipynb")
    if name == "empty":
        notebook = released
    elif name == "tests_deleted":
        notebook = without(perfect, tests(released))
    elif name == "tests_replaced":
        notebook = answer(released, dict.fromkeys(tests(released), "print('all tests passed')"))
    elif name == "cells_missing":
        notebook = without(perfect, {"set_up", "rank_gallery", "rank_visible", "rank_ties"})
    else:
        notebook = answer(perfect, read_answers(assignment).get(name, {}))
    nbformat.write(notebook, target)


# ---- grading -----------------------------------------------------------------------------------------------


def grade(rows, folder):
    """Hands in, grades and gives feedback for the rows of one assignment in an own course; rows with "given" points."""
    assignment = rows[0]["assignment"]
    (folder / "source").mkdir(parents=True)
    shutil.copytree(HERE / "source" / assignment, folder / "source" / assignment)
    log = logging.FileHandler(folder / "nbgrader.log", encoding="utf-8")
    logger = logging.getLogger("traitlets")
    logger.handlers, logger.propagate = [log], False
    logger.setLevel(logging.INFO)

    run(GenerateAssignment, folder, assignment)
    for row in rows:
        hand_in(row, folder)
    start = time.monotonic()
    run(Autograde, folder, assignment)
    seconds = (time.monotonic() - start) / len(rows)

    graded = []
    with Gradebook(f"sqlite:///{folder}/gradebook.db", "pros") as gradebook:
        for row in rows:
            grades = []
            if (folder / "autograded" / row["submission"] / assignment).exists():
                grades = gradebook.find_submission_notebook(assignment, assignment, row["submission"]).grades
            for given in grades:
                if given.needs_manual_grade:  # what the lecturer types in the formgrader
                    given.manual_score, given.needs_manual_grade = row["by_hand"].get(given.name, 0), False
            gradebook.db.commit()
            lost = {given.name: given.max_score - given.score for given in grades if given.score < given.max_score}
            graded.append(
                row
                | {
                    "given": sum(given.score for given in grades) if grades else None,
                    "lost": lost,
                    "of": gradebook.find_notebook(assignment, assignment).max_score,
                    "seconds": seconds,
                }
            )
    run(GenerateFeedback, folder, assignment)
    return graded


def as_expected(row):
    return row["given"] == row["points"] and row["lost"] == row["loses"]


def show(points):
    return "not graded" if points is None else f"{points:g}"


def grade_samples(rows, folder, workers=1):
    """Grades rows of the table, one course per assignment under `folder`, which is emptied first."""
    from prosutils import pictonet  # here, for its imports take seconds that the other processes need not spend

    shutil.rmtree(folder, ignore_errors=True)
    pictonet.lay_out(pictonet.default_folder(64), progress=False)  # once, not by two kernels at the same time
    by_assignment = [[row for row in rows if row["assignment"] == name] for name in ASSIGNMENTS]
    by_assignment = [group for group in by_assignment if group]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        groups = pool.map(grade, by_assignment, [folder / group[0]["assignment"] for group in by_assignment])
        return [row for group in groups for row in group]


def print_table(graded):
    print(f"{'assignment':20} {'submission':20} {'expected':>10} {'given':>10}   of")
    for row in graded:
        print(
            f"{row['assignment']:20} {row['submission']:20} {show(row['points']):>10} {show(row['given']):>10} "
            f"{row['of']:4g}{'' if as_expected(row) else '   DIFFERS'}"
        )
        if not as_expected(row):
            print(f"    expected to lose {row['loses'] or 'nothing'}\n    loses {row['lost'] or 'nothing'}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("release", "grade"))
    parser.add_argument("--only", help="grade: names of submissions, separated by commas")
    step = parser.parse_args()
    if step.step == "release":
        print(f"{'assignment':20} {'by tests':>8} {'by hand':>8}   student version")
        for assignment, by_tests, by_hand in release():
            print(f"{assignment:20} {by_tests:8g} {by_hand:8g}   assignments/release/{assignment}/{assignment}.ipynb")
        return 0
    rows = [row for row in read_table() if not step.only or row["submission"] in step.only.split(",")]
    graded = grade_samples(rows, HERE / "grading", workers=min(os.cpu_count() or 1, len(ASSIGNMENTS)))
    print_table(graded)
    failed = [row for row in graded if not as_expected(row)]
    print(
        "Seconds a submission: "
        + ", ".join(
            f"{name} {seconds:.0f}" for name, seconds in {row["assignment"]: row["seconds"] for row in graded}.items()
        )
    )
    print(
        f"{len(graded) - len(failed)} of {len(graded)} submissions got the points they should; "
        f"feedback and nbgrader's log: assignments/grading/"
    )
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
