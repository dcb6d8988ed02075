"""The page that a student gets: points by task, what each test says, and nothing of the hidden tests."""

import ast
import builtins
import html
import re

from latex2mathml.converter import convert
from nbformat.v4 import new_output
from nbgrader.preprocessors import ClearHiddenTests, NbGraderPreprocessor
from nbgrader.utils import is_grade, is_locked, is_solution

#: What stands for a value in a test's message, for instance a shape. Short, for the student's code decides it.
VALUE = r"[\w\[\](),.+'\- ]{0,60}"
#: Characters of an error of the student's own code that are shown.
SHORT = 100


class TellTests(ClearHiddenTests):
    """Leaves in a notebook what a student may read: test cells without their hidden part, and what tests say.

    From the first hidden test on every output could carry its text in some disguise. So what comes later is reduced to
    the messages that stand in the tests, and the first words of an error; own output is in the student's own notebook.
    """

    def preprocess(self, nb, resources):
        hidden = next((i for i, cell in enumerate(nb.cells) if self.begin_test_delimeter in cell.source), len(nb.cells))
        allowed = messages(nb)
        for cell in nb.cells[hidden:]:
            if cell.cell_type == "code":
                cell.outputs = [shown for output in cell.outputs if (shown := reduced(output, cell, allowed))]
        return super().preprocess(nb, resources)


def reduced(output, cell, allowed):
    """What a student reads of an output, or None."""
    if output.output_type == "error":
        line = error_line(output, cell, allowed)
        return new_output("error", ename=line, evalue="", traceback=[line])
    if output.output_type == "stream" and is_grade(cell) and not is_solution(cell):
        lines = [line for line in output.text.splitlines() if allowed.fullmatch(line)]
        return new_output("stream", name="stdout", text="\n".join(lines) + "\n") if lines else None
    return None


def error_line(output, cell, allowed):
    """An error in one line: a test's own message, or the kind of error and its first words."""
    said = " ".join(output.evalue.split())
    known = isinstance(getattr(builtins, output.ename, None), type) or output.ename in ("CellTimeoutError", "NotPassed")
    kind = output.ename if known else "An error"
    if kind in ("AssertionError", "NotPassed") and (allowed.fullmatch(said) or kind == "NotPassed"):
        return said
    if kind == "CellTimeoutError":
        return "This cell took too long and was ended."
    if "nbgrader" not in cell.metadata:
        return kind
    return f"{kind}: {said[:SHORT]}{' ...' if len(said) > SHORT else ''}" if said else kind


def messages(nb):
    """A pattern that fits all messages in locked cells, with any short values in their places."""
    patterns = set()
    for cell in nb.cells:
        if cell.cell_type == "code" and is_locked(cell):
            for node in ast.walk(ast.parse(cell.source)):
                if isinstance(node, ast.JoinedStr):
                    patterns.add(
                        "".join(
                            re.escape(" ".join(f" {part.value} ".split(" ")[1:-1]))
                            if isinstance(part, ast.Constant)
                            else VALUE
                            for part in node.values
                        )
                    )
                elif isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) > 12:
                    patterns.add(re.escape(node.value))
    return re.compile("|".join(sorted(patterns)) or r"(?!)")


# ---- the table of points -----------------------------------------------------------------------------------


class TaskNames(NbGraderPreprocessor):
    """Gives each cell with points its task's name and a colour, and the page a table with subtotals."""

    def preprocess(self, nb, resources):
        tasks, task = [], {"name": "Before the first task", "cells": []}
        for cell in nb.cells:
            heading = re.search(r"^## +(.+?)(?: \(.*points?.*\))?$", cell.source, re.MULTILINE)
            if cell.cell_type == "markdown" and heading and not is_grade(cell):
                task = {"name": heading.group(1), "cells": []}
                tasks.append(task)
            if is_grade(cell):
                task["cells"].append(self.describe(cell))
        for task in tasks:
            for column in ("score", "points"):
                task[column] = sum(cell[column] for cell in task["cells"])
            task["colour"] = colour(task["score"], task["points"])
        resources["nbgrader"]["tasks"] = [task for task in tasks if task["cells"]]
        resources["nbgrader"]["flag"] = nb.metadata.get("flag", {}).get("note", "")
        return nb, resources

    @staticmethod
    def describe(cell):
        names = cell.metadata.nbgrader
        score, points = names.get("score") or 0, names["points"]
        comment = (
            " ".join(
                line.strip("# ")
                for line in re.match(r"(#[^\n]*\n?)*", cell.source).group().splitlines()
                if "###" not in line
            )
            if cell.cell_type == "code"
            else ""
        )
        what = "read by your lecturer" if is_solution(cell) else comment.removeprefix("Hidden: ") or "the visible test"
        names["what"], names["colour"] = what, colour(score, points)
        return {"name": names["grade_id"], "what": what, "score": score, "points": points, "colour": names["colour"]}


def colour(score, points):
    return "full" if score >= points else "none" if score <= 0 else "part"


# ---- formulas ----------------------------------------------------------------------------------------------


class FormulasOffline(NbGraderPreprocessor):
    """Writes formulas as MathML, which browsers draw by themselves: the page needs no network."""

    #: Code, which is left alone, or a formula.
    PART = re.compile(
        r"(?P<code>```.*?```|`[^`\n]*`)|\$\$(?P<block>.+?)\$\$|(?<![\\$\w])\$(?P<line>[^$\n]+(?:\n[^$\n]+)?)\$",
        re.DOTALL,
    )

    def preprocess_cell(self, cell, resources, index):
        if cell.cell_type == "markdown":
            cell.source = self.PART.sub(self.formula, cell.source)
        return cell, resources

    @staticmethod
    def formula(match):
        if match["code"]:
            return match["code"]
        text = html.unescape(match["block"] or match["line"]).strip()
        try:
            return convert(text, display="block" if match["block"] else "inline")
        except Exception:  # a student's formula may be anything
            return f"<code>{html.escape(text)}</code>"
