"""Runs the answers of a submission in the sandbox, and finds out whether the run can be trusted."""

import ast
import copy
import json
import secrets
from pathlib import Path

import sandbox
from nbformat import NotebookNode, from_dict
from nbformat.v4 import new_code_cell, new_markdown_cell
from nbgrader.converters.base import NbGraderException
from nbgrader.preprocessors import NbGraderPreprocessor
from nbgrader.utils import is_grade, is_locked, is_solution
from protection import course_folder, write_state
from reports import read_students
from traitlets import Integer

#: First line of a locked cell that only shows something: it costs time and earns nothing.
PICTURE = "# A picture for you: grading leaves this cell out."
#: Modules whose names tests use, looked at where the locked cells of a notebook import them.
LEANS_ON = ("torch", "torch.nn.functional", "torch.testing", "prosutils")
#: Prints what tests lean on: for every place of Python, PyTorch, the package and the kernel, a number that changes when
#: one of its names gets another object. Sent anew before the first and behind all answers, and compared out here.
FINGERPRINT = """
def fingerprint(*modules):
    import builtins, hashlib, importlib, json, sys
    modules, shell, places = [importlib.import_module(name) for name in modules], get_ipython(), {}
    for module in modules:                     # prosutils imports its names when they are first used: that is no change
        if module.__name__ == "prosutils":
            [getattr(module, name) for name in module.__all__]
    modules += [module for name, module in sorted(sys.modules.items()) if name.startswith("prosutils.")]
    for module in (builtins, *modules):
        places[module.__name__] = [(name, id(value), id(getattr(value, "__code__", None)))
                                   for name, value in sorted(vars(module).items()) if name not in ("_", "input")
                                   and not name.startswith("__") and callable(value)]
    classes = [value for module in modules for value in vars(module).values() if isinstance(value, type)
               and value.__module__.startswith("prosutils")]
    if "torch" in sys.modules:
        classes += [sys.modules["torch"].Tensor, sys.modules["torch"].nn.Module]
    for kind in (*classes, type(shell), type(shell.kernel)):
        places[f"the class {kind.__name__}"] = [(name, id(value), id(getattr(value, "__code__", None)))
                                                for name, value in sorted(vars(kind).items())
                                                if callable(value) or isinstance(value, (property, staticmethod))]
    for part in (shell, shell.kernel, shell.displayhook, shell.display_formatter):
        places[f"IPython's {type(part).__name__}"] = [(name, id(value)) for name, value in sorted(vars(part).items())
                                                      if callable(value) and hasattr(type(part), name)]
    places["IPython's transformers"] = [len(getattr(shell, name)) for name in (
        "ast_transformers", "input_transformers_cleanup", "input_transformers_post")] + [repr(shell.custom_exceptions)]
    printers = shell.display_formatter.formatters["text/plain"].type_printers
    places["IPython's printers"] = [id(printers.get(kind)) for kind in (int, float, bool, object)]
    places["sys.settrace"] = [repr(sys.gettrace()), repr(sys.getprofile())]
    sys.stdout.write("FINGERPRINT " + json.dumps({
        name: hashlib.sha256(repr(found).encode()).hexdigest()[:12] for name, found in places.items()}) + "\\n")
fingerprint(MODULES)
del fingerprint
"""


class ExecuteInTime(NbGraderPreprocessor):
    """Runs a notebook in the sandbox, with a limit for the whole notebook: a loop that cannot be interrupted blocks
    every later cell, and each of them would wait for its own time limit."""

    timeout = Integer(30, help="Seconds for a cell: none of a right solution takes ten.").tag(config=True)
    limit = Integer(120, help="Seconds from the first answer on; afterwards a cell has one second.").tag(config=True)
    set_up_timeout = Integer(120, help="Seconds for a cell before the first answer: imports, data.").tag(config=True)
    given_timeout = Integer(60, help="Seconds for a locked cell between answers: it may embed pictures.").tag(
        config=True
    )
    output_bytes = Integer(1 << 20, help="Bytes of output that a cell may have.").tag(config=True)

    def preprocess(self, nb, resources):
        folder = Path(resources["metadata"]["path"])
        drop_links(folder, resources["nbgrader"], self.log)
        (folder / f"{resources['nbgrader']['notebook']}.ipynb").unlink()  # hidden tests; nbgrader writes it again after
        number = number_of(course_folder(resources), resources["nbgrader"]["student"])
        steps = plan(nb, number)
        limits = {
            "set_up": self.set_up_timeout,
            "given": self.given_timeout,
            "answer": self.timeout,
            "total": self.limit,
            "output_bytes": self.output_bytes,
        }
        try:
            ran, died = sandbox.run(notebook_of(steps), folder, limits, self.log)
            cells = [from_dict(cell) for cell in ran["cells"]]
            take_over(steps, cells)
        except (sandbox.RunFailed, KeyError, TypeError, AttributeError) as error:
            self.give_up(resources, error)
        flag = self.flag(steps, cells, died)
        if flag:
            self.log.error("%s: %s: %s", flag["state"].upper(), resources["nbgrader"]["student"], flag["note"])
            nb.metadata["flag"] = NotebookNode(flag)
            nb.cells.insert(0, new_markdown_cell(f"**{flag['note']}**"))
        return nb, resources

    def give_up(self, resources, error):
        names = resources["nbgrader"]
        note = f"The answers of {names['student']} could not be run ({error})."
        write_state(course_folder(resources), names["assignment"], names["student"], "crashed", note)
        raise NbGraderException(f"{note} All other submissions are graded.") from None

    @staticmethod
    def flag(steps, cells, died):
        """What is wrong with a run, {"state", "note"}, or None: the kernel died, or what tests lean on was changed."""
        if died is not None:
            place = next(
                (name_of(step) for step in reversed(steps[: died + 1]) if step["cell"] is not None), "the start"
            )
            return {
                "state": "crashed",
                "note": f"Python ended in {place} (exit, out of memory, or a crash): no points were "
                "given for tests. Look at the answers by hand.",
            }
        changed = changes(steps, cells)
        pairs = zip(steps, cells, strict=True)
        if any("word" in step and not failed_with(cell, step["word"]) for step, cell in pairs):
            changed = ["a test that must fail was passed"]
        if not changed:
            return None
        return {
            "state": "tampered",
            "note": f"The answers change what the tests lean on ({', '.join(changed[:5])}): no "
            "points were given for tests. Look at the answers by hand.",
        }


def drop_links(folder, names, log):
    """Takes out of a submission's copy what came by way of a link: nbgrader copies what a link leads to."""
    handed_in = folder.parents[2] / "submitted" / names["student"] / names["assignment"]
    for path in sorted(handed_in.rglob("*")):
        if path.is_symlink():
            log.warning("%s: %s is a link and was left out.", names["student"], path.name)
            copied = folder / path.relative_to(handed_in)
            if copied.is_file() or copied.is_symlink():
                copied.unlink()


# ---- the plan of a run -------------------------------------------------------------------------------------


def plan(nb, number=None):
    """The steps of a run, [{"source", "kind", "cell"}].

    Between the cells of the notebook come: the student's number; before every test the imports and helpers of the
    locked cells, so that no answer can bring its own; behind every group of tests a canary, which is a test that must
    fail, and a fingerprint.
    """
    probe, answered, helpers = fingerprint_for(nb), False, helpers_of(nb)
    steps = [step(probe, "set_up", probe=True)]
    for cell in nb.cells:
        if cell.cell_type != "code" or (is_locked(cell) and cell.source.startswith(PICTURE)):
            continue
        is_test = is_grade(cell) and not is_solution(cell)
        if not is_test and steps[-1].get("is_test"):
            steps += checks(probe)
        given = is_locked(cell) and not is_test
        before = [helpers] * is_test
        if number is not None and (given or is_test) and "STUDENT" in cell.source:
            before.append(f"STUDENT = {number}")
        answered = answered or is_grade(cell) or is_solution(cell)
        if any(before):
            steps.append(step("\n".join(before), "given" if answered else "set_up"))
        kind = "set_up" if not answered else "given" if given else "answer"
        steps.append(step(cell.source, kind, cell, is_test=is_test))
    return [*steps, *checks(probe)]


def fingerprint_for(nb):
    """The source of a fingerprint of what a notebook's locked cells import."""
    imported = {
        alias.name.split(".")[0] if isinstance(node, ast.Import) else (node.module or "").split(".")[0]
        for cell in nb.cells
        if cell.cell_type == "code" and is_locked(cell)
        for node in ast.walk(ast.parse(cell.source))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    modules = [name for name in LEANS_ON if name.split(".")[0] in imported]
    return FINGERPRINT.replace("MODULES", ", ".join(map(repr, modules)))


def checks(probe):
    """A canary and a fingerprint. The canary's word cannot be known before it runs."""
    word, sum_of = secrets.token_hex(8), secrets.randbelow(90)
    return [
        step(f"assert {sum_of} + 1 == {sum_of + 2 + secrets.randbelow(9)}, {word!r}", "given", word=word),
        step(probe, "given", probe=True),
    ]


def step(source, kind, cell=None, **more):
    return {"source": source, "kind": kind, "cell": cell, **more}


def notebook_of(steps):
    """The steps as a notebook for inside.py."""
    cells = [new_code_cell(each["source"], metadata={"kind": each["kind"]}) for each in steps]
    return {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def helpers_of(nb):
    """Source of the imports and functions in locked cells without points, as far as tests use their names."""
    used = {
        node.id
        for cell in nb.cells
        if cell.cell_type == "code" and is_grade(cell) and not is_solution(cell)
        for node in ast.walk(ast.parse(cell.source))
        if isinstance(node, ast.Name)
    }
    parts = []
    for cell in nb.cells:
        if cell.cell_type == "code" and is_locked(cell) and not is_grade(cell):
            for node in ast.parse(cell.source).body:
                names = {getattr(node, "name", None)} | {
                    (alias.asname or alias.name).split(".")[0]
                    for alias in getattr(node, "names", [])
                    if isinstance(node, (ast.Import, ast.ImportFrom))
                }
                if isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef)) and names & used:
                    parts.append(ast.unparse(node))
    return "\n".join(parts)


def take_over(steps, cells):
    """Gives the notebook's cells the outputs of the run."""
    for each, ran in zip(steps, cells, strict=True):
        if each["cell"] is not None:
            each["cell"].outputs = copy.deepcopy(ran.outputs)
            each["cell"].execution_count = None
            each["cell"].metadata["ran"] = bool(ran.metadata.get("ran"))


def name_of(step):
    nbgrader = step["cell"].metadata.get("nbgrader", {})
    return f"the cell {nbgrader['grade_id']}" if "grade_id" in nbgrader else "a cell of the student's own"


# ---- the checks of a run -----------------------------------------------------------------------------------


def failed_with(cell, word):
    """Whether a canary did what it must: an AssertionError with its own word, or no answer from a blocked kernel."""
    return blocked(cell) or any(
        output.output_type == "error" and output.ename == "AssertionError" and output.evalue == word
        for output in cell.outputs
    )


def blocked(cell):
    """Whether an earlier cell kept this one from running; tests behind it have failed likewise."""
    return any(output.output_type == "error" and output.ename == "CellTimeoutError" for output in cell.outputs)


def fingerprint(cell):
    """What a fingerprint printed, {place: number}, or None."""
    text = "".join(output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout")
    line = next((line for line in text.splitlines() if line.startswith("FINGERPRINT ")), "FINGERPRINT null")
    try:
        found = json.loads(line.removeprefix("FINGERPRINT "))
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def changes(steps, cells):
    """Places that are not in all fingerprints of a run what they were at its start."""
    pairs = zip(steps, cells, strict=True)
    taken = [fingerprint(cell) for step, cell in pairs if step.get("probe") and not blocked(cell)]
    if not taken or None in taken:
        return ["the kernel itself"]
    return list({name: None for later in taken for name, value in taken[0].items() if later.get(name) != value})


# ---- the number of a student -------------------------------------------------------------------------------


def number_of(root, student):
    """The number that the course's list gives a student, or None without a list."""
    return {row["id"]: row["number"] for row in read_students(root)}.get(student)
