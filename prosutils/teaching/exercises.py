"""Exercises that answer: the cell magic `%%exercise NAME`, and `check` for use without it.

    %load_ext prosutils.teaching.exercises

    %%exercise own_units
    def own_units(domain_units, class_units, domain_index, class_index):
        ...

The learner's function is tried on small inputs and what is wrong is said in words. Afterwards NAME is the learner's
function if it is right, and the package's own else, so that a notebook runs to its end with exercises unsolved.
"""

import contextlib
import copy
import dis
import importlib
import inspect
import linecache
import signal
import textwrap
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, cell_magic, magics_class

from ..files import UserError
from .differences import as_tensor, difference, same
from .tasks import EXERCISES, Exercise

#: Importing them registers their exercises.
TASKS = sorted(path.stem for path in Path(__file__).parent.glob("tasks_*.py"))
for task in TASKS:
    importlib.import_module(f".{task}", __package__)

GOES_ON = "the notebook goes on with the package's own code."
NOT_SOLVED = f"Not solved yet: {GOES_ON}"
#: What an exception usually means, beside what Python says.
EXPLAINED = {
    RecursionError: "The function calls itself, again and again. Did you mean another function?",
    NameError: "Is it a typing error, or a name that only exists elsewhere?",
    IndexError: "Some number is too large for the axis it indexes.",
    ZeroDivisionError: "What if there is nothing to count?",
    RuntimeError: "Compare the shapes of what stands in this line.",
    TimeoutError: "Does the loop ever reach its end?",
}
#: Longer than any right answer takes on a slow machine.
SECONDS = 20
#: What an empty function consists of.
IDLE = {"RESUME", "NOP", "LOAD_CONST", "RETURN_CONST", "RETURN_VALUE"}


def load_ipython_extension(shell: InteractiveShell):
    """`%load_ext prosutils.teaching.exercises`"""
    shell.register_magics(ExerciseMagics)


@magics_class
class ExerciseMagics(Magics):
    @cell_magic
    def exercise(self, line: str, cell: str):
        """%%exercise NAME: runs the cell, checks the function NAME, and says what is wrong with it."""
        run_cell(line.strip(), cell, self.shell.user_ns)


def check(name: str, function: Callable):
    """Says whether the learner's function solves an exercise, and why not. -> the function to go on with."""
    solved, told = judge(known(name), function)
    tell(solved, told)
    return function if solved else known(name).right


def known(name: str):
    """The exercise of that name. Raises UserError for a name that none has."""
    if name not in EXERCISES:
        raise UserError(f"There is no exercise called {name!r}. There are: {', '.join(EXERCISES)}.")
    return EXERCISES[name]


def run_cell(name: str, cell: str, namespace: dict):
    """Runs a cell that should define the function `name`, and checks it; afterwards `name` works either way."""
    try:
        exercise = known(name)
    except UserError as error:
        print(error)
        return
    namespace[name] = exercise.right
    file, source = f"<exercise {name}>", "\n" + cell  # the magic's line counts, as in the learner's cell
    linecache.cache[file] = len(source), None, source.splitlines(True), file
    try:
        exec(compile(source, file, "exec"), namespace)
        solved, told = judge(exercise, namespace.get(name))
    except SyntaxError as error:
        solved, told = False, f"Line {error.lineno} is not valid Python ({error.msg}){quoted(error.text)}."
    except Exception as error:
        solved, told = False, in_words(error, file)
    finally:
        function, namespace[name] = namespace.get(name), exercise.right
    if solved:
        namespace[name] = function
    tell(solved, told)


def tell(solved: bool, told: str):
    """Prints the verdict, in lines that fit a cell."""
    if not solved and told != NOT_SOLVED:
        told = f"Not yet. {told} Until then {GOES_ON}"
    print(textwrap.fill(told, 110, break_long_words=False, break_on_hyphens=False))


# ---- judging -----------------------------------------------------------------------------------------------


def judge(exercise: Exercise, function: Callable):
    """(True where the function is right, what the learner is told)."""
    name = exercise.right.__name__
    if function is exercise.right:
        return False, f"The cell defines no function `{name}`: keep its first line, `def {signature(exercise)}:`."
    if not callable(function):
        return False, f"`{name}` is {kind_of(function)}, not a function."
    if is_stub(function):
        return False, NOT_SOLVED
    tried, problem = [], None  # (arguments, learner's result, right result)
    for case in exercise.cases():
        right = exercise.right(*copy.deepcopy(case))
        yours, problem = attempt(exercise, function, case, right)
        if problem:
            break
        tried.append((case, yours, as_tensor(right)))
    wrong = [result for result in tried if not accepted(exercise, *result)]
    if wrong:
        return False, known_mistake(exercise, tried, wrong) or difference(exercise, *wrong[0][1:])
    problem = problem or without_gradient(exercise, function)
    return (False, problem) if problem else (True, f"Right. {exercise.good_for}")


def attempt(exercise: Exercise, function: Callable, case: tuple, right: Any):
    """The learner's result for a case as a tensor, and what is wrong with it before its numbers are looked at."""
    given = copy.deepcopy(case)
    try:
        with time_limit(SECONDS):
            result = function(*given)
    except NotImplementedError:
        return None, NOT_SOLVED
    except Exception as error:
        return None, in_words(error, inspect.getfile(function) if hasattr(function, "__code__") else None)
    if result is Ellipsis:
        return None, NOT_SOLVED
    if result is None:
        return None, "Your function returns nothing: its last line should begin with `return`."
    for name, before, after in zip(inspect.signature(exercise.right).parameters, case, given):
        if hasattr(before, "shape") and not np.array_equal(before, after):
            copied = "clone" if torch.is_tensor(before) else "copy"
            return None, (
                f"Your function changes its input `{name}`, which others need as it was. Make a copy first: "
                f"`{name}.{copied}()`."
            )
    yours = comparable(result, right)
    if yours is None:
        wanted = "a tensor" if torch.is_tensor(right) and right.ndim else exercise.shape
        return None, f"Your function returns {kind_of(result)}. Wanted is {wanted}."
    return yours, None


@contextlib.contextmanager
def time_limit(seconds: float):
    """TimeoutError after so many seconds, where the system can interrupt a function (not on Windows or in a thread)."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_):
        raise TimeoutError(f"the function did not end within {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def accepted(exercise: Exercise, case: Any, yours: Any, right: Any):
    """Whether a result is right: equal to the package's, or another answer that the exercise allows."""
    return same(yours, right) or (
        exercise.allows is not None and yours.shape == right.shape and exercise.allows(yours, *copy.deepcopy(case))
    )


def without_gradient(exercise: Exercise, function: Callable):
    """What is wrong with the gradient of a function whose results are right, or None."""
    if not exercise.trains:
        return None
    given = gradients(exercise, function)
    for name, gradient in gradients(exercise, exercise.right).items():
        if given[name] is None:
            return (
                f"The numbers are right, but no gradient reaches `{name}`, so it could not be trained. Is there a "
                "`.detach()`, `.data` or `torch.no_grad()`?"
            )
        if not same(given[name], gradient):
            return f"The numbers are right, but the gradient of `{name}` is not. Is a part of the computation detached?"
    return None


def gradients(exercise: Exercise, function: Callable):
    """{name: gradient or None} of the arguments that are trained, for the first case and a weighted sum of results."""
    names = list(inspect.signature(exercise.right).parameters)
    arguments = [
        value.detach().requires_grad_() if name in exercise.trains else value
        for name, value in zip(names, copy.deepcopy(exercise.cases()[0]), strict=True)
    ]
    result = function(*arguments)
    if result.requires_grad:
        weights = torch.linspace(1, 2, max(1, result.numel())).reshape(result.shape)
        (result * weights).sum().backward()
    return {name: value.grad for name, value in zip(names, arguments, strict=True) if name in exercise.trains}


def known_mistake(exercise: Exercise, tried: Sequence, wrong: Sequence):
    """The message of the mistake that gives the learner's results: in all cases, or else in all wrong ones."""
    for results in (tried, wrong):
        for message, mistaken in exercise.mistakes.items():
            if all(same(yours, as_tensor(mistaken(*copy.deepcopy(case)))) for case, yours, _ in results):
                return message


# ---- helpers -----------------------------------------------------------------------------------------------


def comparable(value: Any, right: Any):
    """A result as a tensor that can be compared with the right one; None where its type is wrong.

    Where a tensor is wanted only a tensor will do, for later cells go on with it. A number may be of any type.
    """
    if torch.is_tensor(right) and right.ndim and not torch.is_tensor(value):
        return None
    try:
        return as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        return None


def kind_of(value: object):
    """A value's type in words."""
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def is_stub(function: Callable):
    """Whether a function does nothing at all."""
    return (
        hasattr(function, "__code__")
        and function.__code__.co_consts[-1] is None
        and {step.opname for step in dis.get_instructions(function)} <= IDLE
    )


def signature(exercise: Exercise):
    return f"{exercise.right.__name__}{inspect.signature(exercise.right)}"


def quoted(line: str):
    return f": `{line.strip()}`" if line and line.strip() else ""


def in_words(error: BaseException, file: str):
    """An exception in one or two sentences, with the learner's line that it came from."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    if not lines:
        return f"The function cannot be called ({error}). Keep its first line as it was."
    says = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else "no reason given"
    hint = next((f" {text}" for kind, text in EXPLAINED.items() if isinstance(error, kind)), "")
    return (
        f"Line {lines[-1]} stops with {kind_of(error)}{quoted(linecache.getline(file, lines[-1]))}. "
        f"Python says: {says}.{hint}"
    )
