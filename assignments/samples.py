"""Sample submissions: what students hand in, right, wrong and hostile, and the points that each should get.

    python assignments/samples.py --only empty,copied         # without --only all of them: make grade

It grades all of them as a course of students would be graded, and compares. Behind every hostile submission
there is another, right one that must be graded all the same.
"""

import argparse
import copy
import csv
import re
import shutil
import sys
import warnings
from pathlib import Path

import attacks
import course
import nbformat
import sandbox
from nbgrader.converters import GenerateAssignment, GenerateFeedback
from protection import claimed, read_state

HERE = Path(__file__).resolve().parent


# ---- the table and the answers -----------------------------------------------------------------------------


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


def right_answers(assignment):
    """The instructor's answers, {cell: text}."""
    source = nbformat.read(HERE / "source" / assignment / f"{assignment}.ipynb", as_version=4)
    return {
        claimed(cell): re.sub(r"^ *### (BEGIN|END) SOLUTION\n?", "", cell.source, flags=re.MULTILINE)
        for cell in source.cells
        if cell.metadata.get("nbgrader", {}).get("solution")
    }


def solved(assignment, released):
    """The released notebook with the instructor's answers: what a perfect student hands in."""
    return answer(released, right_answers(assignment))


def answer(notebook, answers):
    """A copy of a notebook with some answers replaced, {cell: text}."""
    notebook = copy.deepcopy(notebook)
    cells = {claimed(cell): cell for cell in notebook.cells}
    for name, text in answers.items():
        cells[name].source = text
    return notebook


def as_student(number, notebook, answers):
    """Answers as a student with that number would write them, {cell: text}: with the number's own constants."""
    numbers = next(cell.source for cell in notebook.cells if cell.source.startswith("STUDENT = globals()"))
    constants = {"STUDENT": number}
    exec(numbers[numbers.index("VARIANT = ") : numbers.index("HELD_OUT = ")], constants)
    own = {name: repr(constants[name]) for name in constants if name.isupper() and name != "STUDENT"}
    pattern = re.compile(rf"\b({'|'.join(own)})\b")
    return {cell: pattern.sub(lambda match: own[match[1]], text) for cell, text in answers.items()}


def without(notebook, names):
    notebook = copy.deepcopy(notebook)
    notebook.cells = [cell for cell in notebook.cells if claimed(cell) not in names]
    return notebook


def tests(notebook):
    return {
        claimed(cell)
        for cell in notebook.cells
        if cell.metadata.get("nbgrader", {}).get("grade") and not cell.metadata.nbgrader.solution
    }


# ---- handing in --------------------------------------------------------------------------------------------


def hand_in(row, folder):
    """Writes the submission of one row of the table, as a student would who got `folder`/release."""
    name, assignment = row["submission"], row["assignment"]
    target = folder / "submitted" / name / assignment / f"{assignment}.ipynb"
    target.parent.mkdir(parents=True)
    released = nbformat.read(folder / "release" / assignment / f"{assignment}.ipynb", as_version=4)
    perfect = solved(assignment, released)
    if name in attacks.FILES:
        attacks.FILES[name](target, perfect)
        return
    if name == "empty":
        notebook = released
    elif name == "copied":
        notebook = answer(perfect, as_student(1, released, right_answers(assignment)))
    elif name == "tests_deleted":
        notebook = without(perfect, tests(released))
    elif name == "tests_replaced":
        notebook = answer(released, dict.fromkeys(tests(released), "print('all tests passed')"))
    elif name == "cells_missing":
        notebook = without(perfect, {"set_up", "rank_gallery", "rank_visible", "rank_ties"})
    elif name in attacks.NOTEBOOKS:
        notebook = attacks.NOTEBOOKS[name](perfect, answer(released, read_answers(assignment).get(name, {})))
    else:
        notebook = answer(perfect, read_answers(assignment).get(name, {}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of cells that come twice
        nbformat.write(notebook, target)


# ---- grading and comparing ---------------------------------------------------------------------------------


def grade(rows, folder, workers=1, show=print):
    """Hands in, grades and gives feedback for the rows of one assignment in a course of its own; rows with what was
    given: "given" points or None, points "lost" by cell, and "state"."""
    assignment = rows[0]["assignment"]
    (folder / "source").mkdir(parents=True)
    shutil.copytree(HERE / "source" / assignment, folder / "source" / assignment)
    course.log_to(folder / "nbgrader.log")
    course.run(GenerateAssignment, folder, assignment)
    for row in rows:
        hand_in(row, folder)
    course.autograde(folder, assignment, [row["submission"] for row in rows], workers, show=show)
    graded = [result(row, folder) for row in rows]
    course.log_to(folder / "nbgrader.log")
    course.run(GenerateFeedback, folder, assignment)
    return graded


def result(row, folder):
    """A row with what grading gave; points by hand are entered as the table has them."""
    assignment, student = row["assignment"], row["submission"]
    state = read_state(folder, assignment, student)["state"]
    with course.gradebook(folder) as book:
        of = book.find_notebook(assignment, assignment).max_score
        if state != "graded":
            return row | {"given": None, "lost": {}, "state": state, "of": of}
        grades = book.find_submission_notebook(assignment, assignment, student).grades
        for given in grades:
            if given.needs_manual_grade:  # what the lecturer types in the formgrader
                given.manual_score, given.needs_manual_grade = row["by_hand"].get(given.name, 0), False
        book.db.commit()
        lost = {given.name: given.max_score - given.score for given in grades if given.score < given.max_score}
        return row | {"given": sum(given.score for given in grades), "lost": lost, "state": state, "of": of}


def as_expected(row):
    return (
        row["given"] == row["points"]
        and row["state"] == row["ends"]
        and (row["points"] is None or row["lost"] == row["loses"])
    )


def grade_samples(rows, folder, workers=1, show=print):
    """Grades rows of the table, one course per assignment under `folder`, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    by_assignment = [[row for row in rows if row["assignment"] == name] for name in course.ASSIGNMENTS]
    return [
        row for group in by_assignment if group for row in grade(group, folder / group[0]["assignment"], workers, show)
    ]


def neighbour(row):
    """A right submission of the student who comes after that of `row`."""
    return row | {"submission": f"{row['submission']}_next", "ends": "graded", "points": 20.0, "loses": {}}


def check(only, workers):
    """Grades samples, all or those named, prints the table, and returns whether some got other points than they should."""
    rows = [row for row in read_table() if not only or row["submission"] in only]
    if not sandbox.engine():
        rows = [row for row in rows if row["submission"] != "passes_the_fence"]  # it would, and harm this machine
    rows += [neighbour(row) for row in rows if row["submission"] in {**attacks.FILES, **attacks.NOTEBOOKS}]
    listener = attacks.watch()
    graded = grade_samples(rows, HERE / "grading", workers, show=lambda line: None)
    print(f"{'assignment':20} {'submission':28} {'expected':>12} {'given':>12}   of")
    for row in graded:
        expected, given = (
            f"{points:g}" if points is not None else state
            for points, state in ((row["points"], row["ends"]), (row["given"], row["state"]))
        )
        print(
            f"{row['assignment']:20} {row['submission']:28} {expected:>12} {given:>12} "
            f"{row['of']:4g}{'' if as_expected(row) else '   DIFFERS'}"
        )
        if not as_expected(row):
            print(f"    expected to lose {row['loses'] or 'nothing'}\n    loses {row['lost'] or 'nothing'}")
    failed = [row for row in graded if not as_expected(row)]
    traces = attacks.traces(listener)
    print(
        f"{len(graded) - len(failed)} of {len(graded)} submissions got the points they should. Outside of their runs "
        f"the attacks have left: {'; '.join(traces) or 'nothing'}. Feedback and nbgrader's log: assignments/grading/"
    )
    return bool(failed or traces)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="names of submissions, separated by commas")
    course.workers(parser)
    options = parser.parse_args()
    course.use_container()
    return check(options.only.split(",") if options.only else None, options.workers)


if __name__ == "__main__":
    sys.exit(main())
