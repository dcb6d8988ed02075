"""The exercises of notebook 05; see `tasks.py`."""

import numpy as np

from .tasks import exercise


def bootstrap_cases():
    """AP of two methods [Q], and queries drawn with repetition [draws, Q]."""
    cases = []
    for seed, count in ((0, 20), (1, 35)):
        rng = np.random.default_rng(seed)
        ours = rng.random(count)
        cases.append((ours, (ours - 0.1 + 0.2 * rng.random(count)).clip(0, 1), rng.integers(count, size=(400, count))))
    return cases


def middle(values, low=2.5, high=97.5):
    return tuple(np.percentile(values, [low, high]).tolist())


def between_neighbours(ends, ours, theirs, drawn):
    """Whether the ends lie where any rule for percentiles puts them: between two neighbours in the sorted means."""
    means = (ours - theirs)[drawn].mean(1)
    return all(
        np.percentile(means, q, method="lower") - 1e-9 <= float(end) <= np.percentile(means, q, method="higher") + 1e-9
        for end, q in zip(ends, (2.5, 97.5), strict=True)
    )


@exercise(
    cases=bootstrap_cases,
    shape="two numbers, the interval's lower and upper end",
    good_for="Zero inside this interval means: on other queries the sign of the difference could turn.",
    allows=between_neighbours,
    mistakes={
        "That is the middle of single differences, how much queries vary. Wanted is how much their MEAN varies: take "
        "the mean of each draw first, `.mean(1)`.": lambda a, b, drawn: middle((a - b)[drawn]),
        "You took means over the draws, one for each place. Every draw is a row: its mean is `.mean(1)`.": lambda a, b, drawn: (
            middle((a - b)[drawn].mean(0))
        ),
        "You subtracted the wrong way round: the question is how much better `ours` is than `theirs`.": lambda a, b, drawn: (
            middle((b - a)[drawn].mean(1))
        ),
        "That is the interval of `ours` alone. Queries that are hard are hard for both: take the difference of each "
        "query.": lambda a, b, drawn: middle(a[drawn].mean(1)),
        "You subtracted the ends of two intervals. Pair first: the difference on each query, then one interval.": lambda a, b, drawn: (
            tuple(x - y for x, y in zip(middle(a[drawn].mean(1)), middle(b[drawn].mean(1))))
        ),
        "You cut off 5 % at each end: that is an interval of 90 %. For 95 % the ends are the percentiles 2.5 and "
        "97.5.": lambda a, b, drawn: middle((a - b)[drawn].mean(1), 5, 95),
        "You took the smallest and the largest mean of all draws. The middle 95 % lies between the percentiles 2.5 "
        "and 97.5.": lambda a, b, drawn: middle((a - b)[drawn].mean(1), 0, 100),
    },
)
def bootstrap_interval(ours, theirs, drawn):
    return middle((ours - theirs)[drawn].mean(1))
