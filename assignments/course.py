"""The course: builds the student versions, grades what was handed in, and writes feedback and lists.

    python assignments/course.py release                      # source/ -> release/ (make assignments)
    python assignments/course.py students                     # students.csv -> numbers and the gradebook
    python assignments/course.py due NAME "2027-01-31 23:59 +0100"
    python assignments/course.py autograde NAME               # submitted/ -> autograded/, new and changed ones only
    python assignments/course.py feedback NAME                # autograded/ -> feedback/
    python assignments/course.py export --form moodle         # grades, moodle, canvas or gradescope
    python assignments/course.py similar NAME                 # pairs of answers that are alike
    python assignments/samples.py                             # make grade: the sample submissions, and a table

All call nbgrader's own steps with nbgrader_config.py; `nbgrader generate_assignment`, `autograde`,
`generate_feedback` and `export` do the same when called in this folder, one submission after the other.
"""

import argparse
import glob
import logging
import os
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import reports
import sandbox
from nbgrader.api import Gradebook, MissingEntry
from nbgrader.converters import Autograde, GenerateAssignment, GenerateFeedback
from nbgrader.converters.base import NbGraderException
from nbgrader.coursedir import CourseDirectory
from protection import find_alembic, read_state, write_state
from traitlets.config import Config, PyFileConfigLoader

from prosutils.files import end_with_parent

warnings.filterwarnings("ignore", module="nbgrader")  # its gradebook and a newer SQLAlchemy
HERE = Path(__file__).resolve().parent
ASSIGNMENTS = sorted(path.name for path in (HERE / "source").iterdir() if path.is_dir())
#: States that a lecturer has to look at.
TO_LOOK_AT = ("crashed", "tampered", "not readable", "not graded")


# ---- nbgrader's steps --------------------------------------------------------------------------------------


def run(step, root, assignment, student="*", settings=None):
    """One of nbgrader's converters on the course in `root`; False where some submissions could not be done."""
    config = PyFileConfigLoader("nbgrader_config.py", path=str(HERE)).load_config()
    config.merge(settings or Config())
    config.CourseDirectory.root = str(root)
    config.CourseDirectory.assignment_id = assignment
    config.CourseDirectory.student_id = student
    try:
        step(coursedir=CourseDirectory(config=config), config=config, force=True).start()
    except NbGraderException:
        return False
    return True


def log_to(path):
    """nbgrader's log goes into a file; the screen shows what became of every submission."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logger = logging.getLogger("traitlets")
    for old in logger.handlers:
        old.close()
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)


def gradebook(root):
    """The gradebook of the course in `root`; made where there is none."""
    find_alembic()
    return Gradebook(f"sqlite:///{Path(root).resolve()}/gradebook.db", "pros")


def release(root=HERE):
    """source/ -> release/ in `root`; returns [(assignment, points by tests, points by hand)]."""
    for assignment in ASSIGNMENTS:
        if not run(GenerateAssignment, root, assignment):
            raise SystemExit(f"{assignment} could not be released; nbgrader's log above says why.")
    rows = []
    with gradebook(root) as book:
        for assignment in ASSIGNMENTS:
            notebook = book.find_notebook(assignment, assignment)
            answers = {cell.name for cell in notebook.solution_cells}
            by_hand = sum(cell.max_score for cell in notebook.grade_cells if cell.name in answers)
            rows.append((assignment, notebook.max_score - by_hand, by_hand))
    return rows


# ---- grading -----------------------------------------------------------------------------------------------


def students_to_grade(root, assignment, again=False):
    """Students who have handed in an assignment; without `again` only those who are new or have changed it since."""
    students = []
    for folder in sorted(Path(root, "submitted").glob(f"*/{glob.escape(assignment)}")):
        graded = Path(root, "autograded", folder.parent.name, assignment, f"{assignment}.ipynb")
        changed = max((path.lstat().st_mtime for path in [folder, *folder.rglob("*")]), default=0)
        if again or not graded.exists() or graded.stat().st_mtime < changed:
            students.append(folder.parent.name)
    return students


def autograde_one(root, assignment, student, settings=None):
    """Grades one submission, whatever is in it; returns what became of it, {"state", "note"}.

    The log of this submission is nbgrader.log of its own folder in states/, and is put together by `autograde`.
    """
    warnings.filterwarnings("ignore", module="nbgrader")
    write_state(root, assignment, student, "not graded", "Grading was interrupted.")
    log = Path(root, "states", assignment, f"{student}.log")
    log.unlink(missing_ok=True)
    log_to(log)
    name = Path(root, "submitted", student, assignment, f"{assignment}.ipynb")
    if not os.path.lexists(name):
        write_state(
            root,
            assignment,
            student,
            "not readable",
            f"There is no file {assignment}.ipynb; look for it under another name.",
        )
    try:
        run(Autograde, root, assignment, glob.escape(student), settings)
    except Exception as error:  # one submission keeps no other from being graded
        logging.getLogger("traitlets").exception("%s could not be graded", student)
        write_state(root, assignment, student, "not graded", f"{type(error).__name__}: see the log.")
    found = read_state(root, assignment, student)
    if found["note"] == "Grading was interrupted.":
        write_state(root, assignment, student, "not graded", "nbgrader stopped: see the log.")
    return read_state(root, assignment, student)


def autograde(root, assignment, students, workers=1, settings=None, show=print):
    """Grades submissions, `workers` at a time, each by itself. Calls `show` with a line for each as it ends."""
    root = Path(root).resolve()
    with ProcessPoolExecutor(workers, get_context("spawn"), end_with_parent) as pool:
        waiting = {pool.submit(autograde_one, root, assignment, student, settings): student for student in students}
        for done in as_completed(waiting):
            student = waiting[done]
            try:
                found = done.result()
            except Exception as error:  # a worker that died takes others with it: they are named
                write_state(root, assignment, student, "not graded", f"{type(error).__name__}; grade again.")
                found = read_state(root, assignment, student)
            show(f"{student:24} {points_of(root, assignment, student, found)}")
    with open(root / "nbgrader.log", "a", encoding="utf-8") as log:
        for student in students:
            part = root / "states" / assignment / f"{student}.log"
            if part.exists():
                log.write(part.read_text(encoding="utf-8", errors="replace"))
                part.unlink()


def points_of(root, assignment, student, found):
    """A line about a submission: its points, or what there is to look at."""
    if found["state"] in TO_LOOK_AT:
        return f"{found['state'].upper()}: {found['note']}"
    with gradebook(root) as book:
        try:
            submission = book.find_submission(assignment, student)
        except MissingEntry:
            return "not in the gradebook"
        waiting = sum(
            grade.max_score
            for notebook in submission.notebooks
            for grade in notebook.grades
            if grade.needs_manual_grade
        )
        by_hand = f", {waiting:g} points to give by hand" if waiting else ""
        late = f", {submission.late_submission_penalty:g} less for late" if submission.late_submission_penalty else ""
        return f"{submission.score:g} of {submission.max_score:g}{late}{by_hand}"


def use_container():
    """Builds the image where there is an engine, and says what is not protected where there is none."""
    if sandbox.engine():
        print(f"Answers run in containers of {sandbox.engine()}.")
        sandbox.build_image(sandbox.engine())
    else:
        print(sandbox.UNPROTECTED)


# ---- commands ----------------------------------------------------------------------------------------------


def do_release(_):
    print(f"{'assignment':20} {'by tests':>8} {'by hand':>8}   student version")
    for assignment, by_tests, by_hand in release():
        print(f"{assignment:20} {by_tests:8g} {by_hand:8g}   assignments/release/{assignment}/{assignment}.ipynb")


def do_students(options):
    with gradebook(options.course) as book:
        students = reports.enrol(options.course, book)
    print(
        f"{len(students)} students in students.csv have a number each and are in the gradebook."
        if students
        else f"There is no students.csv in {options.course}. Write one with the columns "
        f"{', '.join(reports.STUDENTS)}; numbers may be left open."
    )


def do_due(options):
    with gradebook(options.course) as book:
        book.update_or_create_assignment(options.assignment, duedate=options.date)
    print(f"{options.assignment} is due {options.date}.")


def do_autograde(options):
    use_container()
    students = options.student or students_to_grade(options.course, options.assignment, options.again)
    start = time.monotonic()
    autograde(options.course, options.assignment, students, options.workers)
    print(
        f"{len(students)} graded in {time.monotonic() - start:.0f} s; log: {Path(options.course) / 'nbgrader.log'}"
        if students
        else "Nothing is new since the last time; --again grades everything anew."
    )


def do_feedback(options):
    log_to(Path(options.course) / "nbgrader.log")
    run(GenerateFeedback, options.course, options.assignment)
    pages = len(list(Path(options.course, "feedback").glob(f"*/{options.assignment}/*.html")))
    print(f"{pages} pages of feedback in {Path(options.course) / 'feedback'}")


def do_export(options):
    with gradebook(options.course) as book:
        table = reports.grades(book, options.course)
    to = options.to or f"{options.form}.csv"
    reports.write_whole(to, reports.as_form(table, options.form).to_csv(index=False))
    empty = int(table["score"].isna().sum())
    print(f"{to}: {len(table)} rows" + (f"; {empty} scores are empty, for somebody has to look first" if empty else ""))


def do_similar(options):
    pairs = reports.similar(options.course, options.assignment, options.at_least)
    print(pairs.to_string(index=False) if len(pairs) else f"No two answers are alike to {options.at_least:g} or more.")
    print("Alike is no proof: read both.")


def parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--course", default=str(HERE), help="folder of the course (default: this one)")
    steps = parser.add_subparsers(required=True, metavar="command")

    def command(name, function, help, assignment=True):
        step = steps.add_parser(name, help=help)
        step.set_defaults(function=function)
        if assignment:
            step.add_argument("assignment", choices=ASSIGNMENTS)
        return step

    command("release", do_release, "build the student versions", assignment=False)
    command("students", do_students, "number the students of students.csv", assignment=False)
    command("due", do_due, "set the date from which on submissions are late").add_argument("date")
    step = command("autograde", do_autograde, "grade what is new or changed")
    step.add_argument("--student", nargs="+", help="these only, again")
    step.add_argument("--again", action="store_true", help="all, whether changed or not")
    workers(step)
    command("feedback", do_feedback, "write the pages for students")
    step = command("export", do_export, "write grades as CSV", assignment=False)
    step.add_argument("--form", choices=reports.FORMS, default="grades")
    step.add_argument("--to", help="file (default: FORM.csv)")
    step = command("similar", do_similar, "list answers that are alike")
    step.add_argument("--at-least", type=float, default=0.8, help="likeness from 0 to 1 (default: 0.8)")
    return parser


def workers(step):
    step.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="submissions at a time (default: as cores)"
    )


def main():
    options = parser().parse_args()
    return options.function(options)


if __name__ == "__main__":
    sys.exit(main())
