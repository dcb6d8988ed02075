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
import inspect
import linecache
import signal
import textwrap
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, cell_magic, magics_class

from ..files import UserError
from . import tasks_measuring  # noqa: F401  (importing it registers its exercises)
from .tasks_training import EXERCISES, Exercise

GOES_ON = "the notebook goes on with the package's own code."
NOT_SOLVED = f"Not solved yet: {GOES_ON}"
#: What an exception usually means, beside what Python says.
EXPLAINED = {
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
    wrong = [result for result in tried if not same(*result[1:])]
    if wrong:
        return False, known_mistake(exercise, tried, wrong) or difference(exercise, *wrong[0][1:])
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


def known_mistake(exercise: Exercise, tried: Sequence, wrong: Sequence):
    """The message of the mistake that gives the learner's results: in all cases, or else in all wrong ones."""
    for results in (tried, wrong):
        for message, mistaken in exercise.mistakes.items():
            if all(same(yours, as_tensor(mistaken(*copy.deepcopy(case)))) for case, yours, _ in results):
                return message


def difference(exercise: Exercise, yours: Any, right: Any):
    """What differs, where no mistake is known that gives it: the shape, the kind of number, or the first entry."""
    if yours.shape != right.shape:
        return (
            f"Your result has the shape {list(yours.shape)}; for these inputs it should be {list(right.shape)}: "
            f"{exercise.shape}."
        )
    if kind(yours) != kind(right):
        return f"Your result holds numbers of type {yours.dtype}; they should be {right.dtype}: {exercise.shape}."
    if not yours.isfinite().all():
        return (
            f"{int((~yours.isfinite()).sum())} of {yours.numel()} numbers of your result are not finite (NaN or "
            "infinite). Is something divided by zero?"
        )
    apart = ~torch.isclose(yours.double(), right.double(), rtol=1e-4, atol=1e-5)
    first = tuple(apart.nonzero()[0].tolist())
    where = f"{int(apart.sum())} of {apart.numel()} numbers differ, the first at {list(first)}: " if first else ""
    return f"The shape is right, the numbers are not. {where}yours {yours[first]:.4g}, right {right[first]:.4g}."


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


def as_tensor(value: Any):
    """A tensor, array, number or tuple of numbers on the CPU; a single number as float, for 1 is as good as 1.0."""
    value = torch.as_tensor(value).detach().cpu()
    return value if value.ndim else value.double()


def same(a: Any, b: Any):
    return (
        a.shape == b.shape
        and kind(a) == kind(b)
        and torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-5, equal_nan=True)
    )


def kind(tensor: torch.Tensor):
    return "bool" if tensor.dtype == torch.bool else "float" if tensor.is_floating_point() else "int"


def kind_of(value: Any):
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
