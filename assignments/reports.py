"""Lists around a course: students and numbers, grades for a learning platform, late penalties, similar answers."""

import csv
import io
import itertools
import os
import re
import tempfile
import tokenize
from pathlib import Path

import nbformat
import pandas as pd
from nbgrader.api import MissingEntry
from nbgrader.plugins import ExportPlugin, LateSubmissionPlugin
from protection import claimed, read_state
from traitlets import Enum, Float

FORMS = ("grades", "moodle", "canvas", "gradescope")
STUDENTS = ("id", "last_name", "first_name", "email", "number")


# ---- students ----------------------------------------------------------------------------------------------


def read_students(root):
    """COURSE/students.csv: [{"id", "last_name", "first_name", "email", "number"}], [] where there is no list.

    `number` is an int, or None where the list leaves it open. Raises ValueError naming the line that is wrong.
    """
    path = Path(root) / "students.csv"
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    students = []
    for line, row in enumerate(rows, 2):
        number = (row.get("number") or "").strip()
        if not (row.get("id") or "").strip() or not re.fullmatch(r"\d*", number):
            raise ValueError(
                f"students.csv, line {line}: an id and a whole number (or none) are needed; columns: "
                f"{', '.join(STUDENTS)}."
            )
        students.append(
            {name: (row.get(name) or "").strip() for name in STUDENTS} | {"number": int(number) if number else None}
        )
    return students


def enrol(root, gradebook):
    """Gives every student of students.csv a number of its own, writes the list again, and fills the gradebook."""
    students = read_students(root)
    taken = {student["number"] for student in students}
    free = (number for number in itertools.count(1) if number not in taken)
    for student in students:
        if student["number"] is None:
            student["number"] = next(free)
        gradebook.update_or_create_student(student["id"], **{name: student[name] or None for name in STUDENTS[1:4]})
    write_whole(Path(root) / "students.csv", pd.DataFrame(students, columns=list(STUDENTS)).to_csv(index=False))
    return students


def write_whole(path, text):
    """Writes a file so that it is there whole or as it was."""
    path = Path(path).absolute()
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, suffix=".part", delete=False, encoding="utf-8", newline=""
    ) as file:
        file.write(text)
    os.replace(file.name, path)


# ---- late submissions --------------------------------------------------------------------------------------


class LatePenalty(LateSubmissionPlugin):
    """Takes a share of the points for every day that has begun after the due date, up to a limit."""

    per_day = Float(0.1, help="Share of the points that a day costs.").tag(config=True)
    most = Float(0.5, help="The largest share that is taken.").tag(config=True)
    grace = Float(15, help="Minutes that are not counted.").tag(config=True)

    def late_submission_penalty(self, student_id, score, total_seconds_late):
        late = total_seconds_late - 60 * self.grace
        if late <= 0:
            return None
        return round(score * min(self.most, self.per_day * (1 + late // 86400)), 2)


# ---- grades ------------------------------------------------------------------------------------------------


def grades(gradebook, root):
    """One row for every student and assignment: state, points by tests and by hand, penalty, score.

    The score is empty where there is something to look at first: a run that crashed or was tampered with, a file that
    could not be read, an answer that is read by hand.
    """
    rows = []
    for assignment in gradebook.assignments:
        for student in gradebook.students:
            row = {
                "assignment": assignment.name,
                "student_id": student.id,
                "last_name": student.last_name,
                "first_name": student.first_name,
                "email": student.email,
                "of": assignment.max_score,
            }
            rows.append(row | standing(gradebook, root, assignment, student))
    columns = [
        "assignment",
        "student_id",
        "last_name",
        "first_name",
        "email",
        "state",
        "raw_score",
        "late_submission_penalty",
        "score",
        "of",
        "submitted",
        "note",
    ]
    return pd.DataFrame(rows, columns=columns)


def standing(gradebook, root, assignment, student):
    """State, points and note of one student in one assignment."""
    try:
        submission = gradebook.find_submission(assignment.name, student.id)
    except MissingEntry:
        return {
            "state": "not handed in",
            "raw_score": 0.0,
            "late_submission_penalty": 0.0,
            "score": 0.0,
            "submitted": "",
            "note": "",
        }
    found = read_state(root, assignment.name, student.id)
    row = {"state": found["state"] or "not graded", "note": found["note"], "submitted": submission.timestamp}
    waiting = any(grade.needs_manual_grade for notebook in submission.notebooks for grade in notebook.grades)
    if waiting and row["state"] == "graded":
        row["state"] = "to be read by hand"
    if (
        not waiting
        and row["state"] in ("crashed", "tampered")
        and any(grade.manual_score is not None for notebook in submission.notebooks for grade in notebook.grades)
    ):
        row["state"] = "graded by hand"
    if row["state"] not in ("graded", "graded by hand"):
        return row | {"raw_score": None, "late_submission_penalty": None, "score": None}
    penalty = submission.late_submission_penalty or 0.0
    return row | {
        "raw_score": submission.score,
        "late_submission_penalty": penalty,
        "score": max(0.0, submission.score - penalty),
    }


def as_form(table, form):
    """The table of `grades` in the columns that a platform reads; there a score that is missing stays empty."""
    if form == "grades":
        return table
    wide = table.pivot(index="student_id", columns="assignment", values="score")
    people = table.drop_duplicates("student_id").set_index("student_id").loc[wide.index].fillna("")
    points = table.drop_duplicates("assignment").set_index("assignment")["of"]
    if form == "moodle":
        frame = pd.DataFrame({"Username": wide.index, "Email address": people["email"].values})
        return pd.concat([frame, wide.reset_index(drop=True)], axis=1)
    if form == "canvas":
        names = [", ".join(filter(None, pair)) for pair in zip(people["last_name"], people["first_name"], strict=True)]
        frame = pd.DataFrame(
            {
                "Student": names,
                "ID": "",
                "SIS User ID": wide.index,
                "SIS Login ID": people["email"].values,
                "Section": "",
            }
        )
        frame = pd.concat([frame, wide.reset_index(drop=True)], axis=1)
        possible = {"Student": "    Points Possible"} | points.to_dict()
        return pd.concat([pd.DataFrame([possible], columns=frame.columns), frame], ignore_index=True)
    frame = pd.DataFrame(
        {
            "First Name": people["first_name"].values,
            "Last Name": people["last_name"].values,
            "SID": wide.index,
            "Email": people["email"].values,
        }
    )
    for assignment in wide.columns:
        frame[assignment], frame[f"{assignment} - Max Points"] = wide[assignment].values, points[assignment]
    return frame


class GradesExport(ExportPlugin):
    """`nbgrader export`: grades as CSV, for reading or for Moodle, Canvas or Gradescope."""

    form = Enum(FORMS, "grades", help="Whose columns.").tag(config=True)

    def export(self, gradebook):
        root = Path(str(gradebook.engine.url.database)).parent
        table = grades(gradebook, root)
        for column, wanted in (("student_id", self.student), ("assignment", self.assignment)):
            if wanted:
                table = table[table[column].isin([str(name) for name in wanted])]
        to = self.to or f"{self.form}.csv"
        write_whole(to, as_form(table, self.form).to_csv(index=False))
        self.log.info("%d rows written to %s", len(table), to)


# ---- similar answers ---------------------------------------------------------------------------------------


def code_words(source):
    """The words of code without names, comments and layout: renaming variables or moving spaces changes nothing."""
    words, names = [], {}
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.NAME:
                known = token.string in KEYWORDS
                words.append(token.string if known else f"name{names.setdefault(token.string, len(names))}")
            elif token.type in (tokenize.OP, tokenize.NUMBER, tokenize.STRING):
                words.append(token.string)
    except (tokenize.TokenError, SyntaxError):
        return source.split()
    return words


#: Words that mean the same in every answer: Python's own, and those of the libraries that the answers use most.
KEYWORDS = set(
    "False None True and as assert break class continue def del elif else except finally for from global "
    "if import in is lambda nonlocal not or pass raise return try while with yield torch len range int "
    "float min max sum set list dict zip enumerate sorted stack cat clone expand nonzero isin argsort "
    "cumsum normalize cross_entropy ".split()
)


def own_words(root, assignment, student):
    """The words of all that a student has written into a notebook: answers and own cells, without what was released."""
    try:
        handed_in = nbformat.read(Path(root) / "submitted" / student / assignment / f"{assignment}.ipynb", as_version=4)
    except Exception:  # grading has named what is no notebook
        return []
    release = nbformat.read(Path(root) / "release" / assignment / f"{assignment}.ipynb", as_version=4)
    given = {cell.source for cell in release.cells}
    locked = {claimed(cell) for cell in release.cells if cell.metadata.get("nbgrader", {}).get("locked")}
    words = []
    for cell in handed_in.cells:
        if cell.source not in given and (claimed(cell) is None or claimed(cell) not in locked):
            words += code_words(cell.source) if cell.cell_type == "code" else cell.source.lower().split()
    return words


def similar(root, assignment, at_least=0.8):
    """Pairs of students whose answers are alike, the most alike first: DataFrame of student, other, likeness (0 to 1).

    Runs of five words are compared, and runs that many students have count little: short right answers look alike.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    folders = sorted((Path(root) / "submitted").glob(f"*/{assignment}/{assignment}.ipynb"))
    students = [path.parts[-3] for path in folders if not path.is_symlink()]
    words = {student: own_words(root, assignment, student) for student in students}
    students = [student for student in students if len(words[student]) >= 20]
    columns = ["student", "other", "likeness"]
    if len(students) < 2:
        return pd.DataFrame(columns=columns)
    weights = TfidfVectorizer(
        analyzer=lambda text: [" ".join(text[i : i + 5]) for i in range(len(text) - 4)], sublinear_tf=True
    ).fit_transform([words[student] for student in students])
    likeness = (weights @ weights.T).toarray()
    pairs = [
        (students[i], students[j], round(float(likeness[i, j]), 3))
        for i, j in itertools.combinations(range(len(students)), 2)
        if likeness[i, j] >= at_least
    ]
    return pd.DataFrame(sorted(pairs, key=lambda pair: -pair[2]), columns=columns)
