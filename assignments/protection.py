"""What nbgrader's steps lack where notebooks are graded that nobody has read: reading, restoring and counting.

nbgrader_config.py puts these between nbgrader's own. Nothing that one student hands in may keep another from being
graded, and nothing that a notebook says about itself is believed: cells come from the gradebook.
"""

import ast
import json
import math
import os
import re
import sys
import tempfile
import warnings
from pathlib import Path

import nbformat
from nbconvert.exporters import NotebookExporter
from nbconvert.preprocessors.sanitize import SanitizeHTML
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output
from nbgrader.api import Gradebook
from nbgrader.converters.base import NbGraderException
from nbgrader.preprocessors import NbGraderPreprocessor, SaveAutoGrades
from nbgrader.utils import is_grade, is_solution
from traitlets import Bool

LARGEST = 50 << 20  # bytes of a notebook as it is handed in
#: What a picture in an output may consist of: base64 and nothing else, for it is written into a page.
BASE64 = re.compile(r"[A-Za-z0-9+/=\s]*")
LARGEST_PICTURE = 1 << 20  # characters
PYTHON = {"display_name": "Python 3", "language": "python", "name": "python3"}
TAG = re.compile(r"<[A-Za-z/!?]")


def find_alembic():
    """Puts the folder of Python on the path: nbgrader calls the program `alembic`, which lies there, for its gradebook,
    and an environment need not be activated for it."""
    folder = str(Path(sys.executable).parent)
    if folder not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"


# ---- the state of a submission -----------------------------------------------------------------------------


def state_file(root, assignment, student):
    return Path(root) / "states" / assignment / f"{student}.json"


def write_state(root, assignment, student, state, note=""):
    """Keeps what became of a submission, whole or not at all: COURSE/states/ASSIGNMENT/STUDENT.json."""
    path = state_file(root, assignment, student)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False, encoding="utf-8") as file:
        json.dump({"state": state, "note": note}, file)
    os.replace(file.name, path)


def read_state(root, assignment, student):
    """{"state", "note"}; state is "" for a submission that was never graded."""
    try:
        return json.loads(state_file(root, assignment, student).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {"state": "", "note": ""}


def course_folder(resources):
    """The course that a submission belongs to, from nbgrader's address of the gradebook."""
    return Path(resources["nbgrader"]["db_url"].removeprefix("sqlite:///")).parent


# ---- reading -----------------------------------------------------------------------------------------------


class NotebookReader(NotebookExporter):
    """Reads a submission. What is no notebook, too large or a link is named, and nbgrader goes on with the others."""

    def from_filename(self, filename, resources=None, **options):
        path = Path(filename)
        try:
            self.refuse(path)
            text = path.read_bytes().decode("utf-8-sig")  # Windows puts a byte order mark before it
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of cells that come twice: RestoreCells sees to them
                notebook = nbformat.reads(text, as_version=4)
            notebook.metadata = NotebookNode(kernelspec=PYTHON)
            notebook.cells = [plain(cell) for cell in notebook.cells]
        except NbGraderException as error:
            self.give_up(resources, str(error))
        except Exception:  # whatever is in the file, it is not a notebook
            self.give_up(
                resources,
                f"{path.name} is not a notebook, whatever its name says: ask for the .ipynb file as Jupyter saves it.",
            )
        resources = resources | {"metadata": {"name": path.stem, "path": str(path.parent)}}
        return self.from_notebook_node(notebook, resources=resources, **options)

    @staticmethod
    def refuse(path):
        """Raises NbGraderException for a link and for a file that is too large."""
        for place in [path, *path.parents[:2]]:  # the file, the assignment's and the student's folder
            if place.is_symlink():
                raise NbGraderException(f"{place.name} is a link and was not read: ask for the file itself.")
        if path.stat().st_size > LARGEST:
            raise NbGraderException(
                f"{path.name} has more than {LARGEST >> 20} million bytes: ask for it with its outputs cleared."
            )

    def give_up(self, resources, message):
        names = resources["nbgrader"]
        write_state(course_folder(resources), names["assignment"], names["student"], "not readable", message)
        raise NbGraderException(f"NOT READABLE: {names['student']}: {message} All others are graded.") from None


def plain(cell):
    """A cell as text of its kind with nbgrader's metadata, and nothing else: tags could keep a test from running.

    Raises AttributeError or TypeError for what is no cell.
    """
    if not isinstance(cell.source, str):
        raise TypeError("a cell without text")
    new = new_code_cell if cell.cell_type == "code" else new_markdown_cell  # raw cells could hold any format
    nbgrader = cell.metadata.get("nbgrader")
    return new(cell.source, metadata=NotebookNode(nbgrader=nbgrader) if isinstance(nbgrader, dict) else NotebookNode())


# ---- restoring ---------------------------------------------------------------------------------------------


class RestoreCells(NbGraderPreprocessor):
    """Makes a submission's cells those of the release again: what a cell is, what it is worth and what a test says
    comes from the gradebook. Of a cell that comes twice the last one counts; what is missing is put back."""

    def preprocess(self, nb, resources):
        names = resources["nbgrader"]
        with Gradebook(names["db_url"]) as gradebook:
            notebook = gradebook.find_notebook(names["notebook"], names["assignment"])
            points = {cell.name: cell.max_score for cell in notebook.grade_cells}
            answers = {cell.name for cell in notebook.solution_cells}
            released = {
                source.name: self.cell(source, points.get(source.name), source.name in answers)
                for source in notebook.source_cells
            }
        changed = [claimed(cell) for cell in nb.cells if claimed(cell) in released and changes_a_test(cell, released)]
        if changed:
            self.log.warning("%s: changed tests were replaced: %s", names["student"], ", ".join(sorted(set(changed))))
        places = {claimed(cell): place for place, cell in enumerate(nb.cells) if claimed(cell) in released}
        nb.cells = [
            restored(cell, released[claimed(cell)] if places.get(claimed(cell)) == place else None)
            for place, cell in enumerate(nb.cells)
        ]
        missing = [name for name in released if name not in places]
        self.put_back(nb, released, missing)
        if missing:
            note = f"The submission lacked these cells; they were put back as released: {', '.join(missing)}."
            self.log.warning("%s: %s", names["student"], note)
            nb.cells.insert(0, new_markdown_cell(f"**{note}**"))
        return nb, resources

    @staticmethod
    def put_back(nb, released, missing):
        """Inserts the missing cells, each behind the released cell that comes before it."""
        place = 0
        for name, cell in released.items():
            if name in missing:
                nb.cells.insert(place, cell)
            place = 1 + next(i for i, other in enumerate(nb.cells) if claimed(other) == name)

    @staticmethod
    def cell(source, points, is_answer):
        """A cell as the gradebook has it: an answer without its solution, a test with its hidden part."""
        nbgrader = {
            "schema_version": 3,
            "grade_id": source.name,
            "grade": points is not None,
            "solution": is_answer,
            "task": False,
            "locked": source.locked,
            "checksum": source.checksum,
            "cell_type": source.cell_type,
        }
        nbgrader |= {} if points is None else {"points": points}
        new = new_code_cell if source.cell_type == "code" else new_markdown_cell
        return new(source.source, metadata=NotebookNode(nbgrader=NotebookNode(nbgrader)))


def claimed(cell):
    """The name that a cell has in nbgrader's metadata, None where there is none or no text."""
    nbgrader = cell.metadata.get("nbgrader")
    name = nbgrader.get("grade_id") if isinstance(nbgrader, dict) else None
    return name if isinstance(name, str) else None


def changes_a_test(cell, released):
    """Whether a locked cell says something else than what was released, hidden tests apart."""
    original = released[claimed(cell)]
    shown = re.sub(r"### BEGIN HIDDEN TESTS\n.*?### END HIDDEN TESTS", "", original.source, flags=re.DOTALL)
    return not is_solution(original) and cell.source.split() != shown.split()


def restored(cell, released):
    """A cell as it will run: a released one with the student's text where that is an answer, or the student's own."""
    if released is None:
        return new_code_cell(cell.source) if cell.cell_type == "code" else new_markdown_cell(cell.source)
    if is_solution(released):
        released.source = cell.source
    return released


# ---- counting ----------------------------------------------------------------------------------------------


class CountFairly(NbGraderPreprocessor):
    """Makes nbgrader's rule count what a test decided: an error costs the points, a warning does not, and a test that
    did not run has not been passed. Points in part are read only where the test gives them."""

    def preprocess_cell(self, cell, resources, index):
        if not is_grade(cell) or cell.cell_type != "code":
            return cell, resources
        for output in cell.outputs:
            if output.output_type == "stream":
                output.name = "stdout"  # nbgrader takes standard error for a failure
        if not is_solution(cell):
            cell.outputs = [
                output
                for output in cell.outputs
                if output.output_type not in ("execute_result",) or gives_part_of_its_points(cell.source)
            ]
            problem = self.problem(cell)
            if problem:
                cell.outputs.append(new_output("error", ename="NotPassed", evalue=problem, traceback=[problem]))
        return cell, resources

    @staticmethod
    def problem(cell):
        """Why a test without an error has not been passed, or None."""
        if not cell.metadata.get("ran"):
            return "This test was not run."
        failed = any(output.output_type == "error" for output in cell.outputs)
        if failed or not gives_part_of_its_points(cell.source):
            return None
        results = [output for output in cell.outputs if output.output_type == "execute_result"]
        try:
            points = float(results[0].data["text/plain"])
        except (IndexError, KeyError, TypeError, ValueError):
            points = math.nan
        right = len(results) == 1 and 0 <= points <= float(cell.metadata.nbgrader["points"])  # never for NaN
        return None if right else "This test gave no number of points."


def gives_part_of_its_points(source):
    """Whether a test ends in an expression that is no call: its value is the points."""
    try:
        last = ast.parse(source).body[-1]
    except (SyntaxError, IndexError):
        return False
    return isinstance(last, ast.Expr) and not isinstance(last.value, (ast.Call, ast.Constant))


class SaveGrades(SaveAutoGrades):
    """Saves the points of tests, but for a run that is not to be trusted: those are left to whoever reads it."""

    def preprocess(self, nb, resources):
        self.flagged = nb.metadata.get("flag", {}).get("state")
        nb, resources = super().preprocess(nb, resources)
        flag = nb.metadata.get("flag", {"state": "graded", "note": ""})
        write_state(course_folder(resources), self.assignment_id, self.student_id, flag["state"], flag["note"])
        return nb, resources

    def _add_score(self, cell, resources):
        super()._add_score(cell, resources)
        if self.flagged:
            grade = self.gradebook.find_grade(
                cell.metadata["nbgrader"]["grade_id"], self.notebook_id, self.assignment_id, self.student_id
            )
            grade.auto_score, grade.needs_manual_grade = None, True
            self.gradebook.db.commit()


# ---- showing -----------------------------------------------------------------------------------------------


class SafeOutputs(SanitizeHTML):
    """Keeps of outputs and text what cannot run in the page of whoever reads it: text, clean HTML, and pictures."""

    enabled = Bool(True).tag(config=True)  # nbconvert leaves a preprocessor out otherwise

    def preprocess(self, nb, resources):
        self.safe_output_keys = {"text/plain", "image/png", "image/jpeg"}
        return super().preprocess(nb, resources)

    def preprocess_cell(self, cell, resources, index):
        cell.pop("attachments", None)
        if cell.cell_type != "code" and not TAG.search(cell.source):
            return cell, resources  # cleaning would spoil `a < b` in code
        for output in cell.get("outputs", []):
            if "data" in output:
                output.metadata = NotebookNode()  # sizes are written into the page as they come
                for kind in ("image/png", "image/jpeg"):
                    picture = output.data.get(kind, "")
                    if not isinstance(picture, str) or len(picture) > LARGEST_PICTURE or not BASE64.fullmatch(picture):
                        del output.data[kind]
                output.data = NotebookNode(
                    {kind: value for kind, value in output.data.items() if isinstance(value, str)}
                )
        return super().preprocess_cell(cell, resources, index)
