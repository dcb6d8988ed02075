"""What nbgrader's steps lack where code is graded that nobody has read: nbgrader_config.py puts these between them."""

import re
import time
from pathlib import Path

from nbclient.exceptions import DeadKernelError
from nbconvert.exporters import NotebookExporter
from nbformat import NotebookNode
from nbformat.reader import NotJSONError
from nbformat.v4 import new_code_cell, new_markdown_cell
from nbgrader.api import Gradebook
from nbgrader.converters.base import NbGraderException
from nbgrader.preprocessors import ClearHiddenTests, Execute, NbGraderPreprocessor
from nbgrader.utils import is_grade, is_locked, is_solution
from traitlets import Integer


class NotebookReader(NotebookExporter):
    """Says in words that a file is no notebook; nbgrader goes on with the other submissions."""

    def from_filename(self, filename, resources=None, **options):
        try:
            return super().from_filename(filename, resources=resources, **options)
        except (NotJSONError, UnicodeDecodeError):
            raise NbGraderException(
                f"{filename} is not a notebook, whatever its name says: ask for the .ipynb file as "
                "Jupyter saves it. All other submissions are graded."
            ) from None


class RestoreCells(NbGraderPreprocessor):
    """Puts back what a submission lacks of the released cells, tests and answers alike, each in its place.

    nbgrader's own `add_missing_cells` puts back tests, and gives up where the cell before them is gone as well.
    """

    def preprocess(self, nb, resources):
        names = resources["nbgrader"]
        present = {cell.metadata.get("nbgrader", {}).get("grade_id") for cell in nb.cells}
        restored, place = [], 0
        with Gradebook(names["db_url"]) as gradebook:
            notebook = gradebook.find_notebook(names["notebook"], names["assignment"])
            points = {cell.name: cell.max_score for cell in notebook.grade_cells}
            answers = {cell.name for cell in notebook.solution_cells}
            for source in notebook.source_cells:
                if source.name not in present:
                    nb.cells.insert(place, self.cell(source, points.get(source.name), source.name in answers))
                    restored.append(source.name)
                place = 1 + next(
                    i
                    for i, cell in enumerate(nb.cells)
                    if cell.metadata.get("nbgrader", {}).get("grade_id") == source.name
                )
        if restored:
            note = f"The submission lacked these cells; they were put back as released: {', '.join(restored)}."
            self.log.warning(note)
            nb.cells.insert(0, new_markdown_cell(f"**{note}**"))
        return nb, resources

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


class TakeTestsAway(NbGraderPreprocessor):
    """Removes the sanitised notebook, hidden tests and all, before the answers run; nbgrader writes it again after."""

    def preprocess(self, nb, resources):
        (Path(resources["metadata"]["path"]) / f"{resources['nbgrader']['notebook']}.ipynb").unlink()
        return nb, resources


class ExecuteInTime(Execute):
    """nbgrader's execution with a limit for the whole notebook: a loop that cannot be interrupted blocks every later
    cell, and each of them would wait for its own time limit."""

    limit = Integer(120, help="Seconds from the first answer on; afterwards a cell has one second.").tag(config=True)
    set_up_timeout = Integer(120, help="Seconds for a cell before the first answer: imports, data.").tag(config=True)
    given_timeout = Integer(60, help="Seconds for a locked cell between answers: it may embed pictures.").tag(
        config=True
    )

    def preprocess(self, nb, resources, **options):
        end = None

        def seconds(cell):
            nonlocal end
            given = not (is_solution(cell) or is_grade(cell))
            if end is None and given:
                return self.set_up_timeout
            end = end or time.monotonic() + self.limit
            return max(
                1, min(self.given_timeout if given and is_locked(cell) else self.timeout, end - time.monotonic())
            )

        self.timeout_func = seconds
        try:
            return super().preprocess(nb, resources, **options)
        except DeadKernelError:
            student = resources["nbgrader"]["student"]
            raise NbGraderException(
                f"The kernel died while answers of {student} ran (exit(), or out of memory): look "
                "at them by hand. All other submissions are graded."
            ) from None


class HideTests(ClearHiddenTests):
    """Feedback without hidden tests: they are cut out of the cells, and so is every output that quotes them."""

    def preprocess(self, nb, resources):
        secrets = {secret for cell in nb.cells for secret in self.secrets(cell.source)}
        for cell in nb.cells:
            for output in cell.get("outputs", []):
                text = squeeze(" ".join(strings(output)))
                if any(secret in text for secret in secrets):
                    output.clear()
                    output.update(output_type="stream", name="stdout", text="(This output quoted hidden tests.)\n")
        return super().preprocess(nb, resources)

    def secrets(self, source):
        """Lines of code in the hidden regions, squeezed. A line of text alone may be a test's message: no secret."""
        pattern = f"{self.begin_test_delimeter}(.*?){self.end_test_delimeter}"
        for region in re.findall(pattern, source, re.DOTALL):
            for line in region.splitlines():
                if len(squeeze(re.sub(r'"[^"]*"', "", line))) > 15:
                    yield squeeze(line)


def squeeze(text):
    """Text without spaces, quotes and backslashes: the same for a line and for its repr()."""
    return re.sub(r"[\s'\"\\]", "", text)


def strings(value):
    """All strings in an output, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings(item)
