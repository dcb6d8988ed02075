"""What an exercise is: the right function, cases to try it on, and typical mistakes in words.

The modules `tasks_NN_*` hold those of one notebook each. Each function there is a right answer: the package's own code,
or, where that is part of something larger, a line that tests/test_exercises.py compares with it. `exercises.py`
compares the learner's function with the right one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Exercise:
    """A function that the learner writes."""

    right: Callable  # the package's answer
    cases: Callable  # () -> argument tuples, small and the same every time
    shape: str  # the result's axes, in words
    good_for: str  # told when it is solved
    mistakes: dict[str, Callable]  # {what the learner is told: what somebody with this mistake computes}
    trains: tuple[str, ...] = ()  # arguments that a gradient has to reach
    allows: Callable | None = None  # (result, *case) -> whether it is right, too; None: only the package's is


#: {name: Exercise}, in the order of the notebooks.
EXERCISES: dict[str, Exercise] = {}


def exercise(**parts):
    """Makes an `Exercise` of the right function."""

    def register(right):
        EXERCISES[right.__name__] = Exercise(right, **parts)
        return right

    return register


def normal(seed, *shapes):
    """A tensor of each shape, the same every time."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def shuffled(seed, count):
    """The numbers below `count` in an order that is the same every time, [count]."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def best(scores, k):
    """The places of the k largest scores of each row, largest first."""
    return scores.sort(dim=1, descending=True, stable=True).indices[:, :k]


def unit(x):
    return F.normalize(x, dim=1)


def unit_cases():
    """Domain units [M, W], class units [S, W], domain [B], class [B]."""
    return [
        (*normal(0, (3, 5), (7, 5)), torch.tensor([2, 0, 2, 1]), torch.tensor([6, 1, 4, 0])),
        (*normal(1, (4, 6), (6, 6)), torch.tensor([1, 3, 0]), torch.tensor([2, 5, 1])),
        (*normal(2, (4, 5), (6, 5)), torch.tensor([1, 0]), torch.tensor([3, 0])),  # the last units belong to nobody
    ]
