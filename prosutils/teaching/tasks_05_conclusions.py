"""The exercises of notebook 05; see `tasks.py`."""

import numpy as np

from .tasks import exercise


def bootstrap_cases():
    """AP of two methods [Q], classes [Q] of different sizes, and classes drawn with repetition [draws, C]."""
    cases = []
    for seed, count, classes in ((0, 30, 6), (1, 45, 8)):
        rng = np.random.default_rng(seed)
        labels = np.concatenate([np.arange(classes), rng.integers(classes, size=count - classes) ** 2 // classes])
        ours, shift = rng.random(count), rng.normal(0, 0.2, classes)[labels]
        theirs = (ours - 0.1 + shift + 0.1 * rng.random(count)).clip(0, 1)
        cases.append((ours, theirs, labels, rng.integers(classes, size=(400, classes))))
    return cases


def middle(values, low=2.5, high=97.5):
    return tuple(np.percentile(values, [low, high]).tolist())


def class_means(values, labels, drawn):
    """The mean over the queries of the drawn classes, one for each draw."""
    sums, counts = np.bincount(labels, values), np.bincount(labels)
    return sums[drawn].sum(1) / counts[drawn].sum(1)


def between_neighbours(ends, ours, theirs, labels, drawn):
    """Whether the ends lie where any rule for percentiles puts them: between two neighbours in the sorted means."""
    means = class_means(ours - theirs, labels, drawn)
    return all(
        np.percentile(means, q, method="lower") - 1e-9 <= float(end) <= np.percentile(means, q, method="higher") + 1e-9
        for end, q in zip(ends, (2.5, 97.5), strict=True)
    )


def per_class(values, labels):
    return np.bincount(labels, values) / np.bincount(labels)


@exercise(
    cases=bootstrap_cases,
    shape="two numbers, the interval's lower and upper end",
    good_for="Zero inside this interval means: with other classes the sign of the difference could turn.",
    allows=between_neighbours,
    mistakes={
        "You took the mean of the classes' means. A class with five queries counts five times in mAP: add up the "
        "differences of all drawn queries and divide by their number.": lambda a, b, y, drawn: middle(
            per_class(a - b, y)[drawn].mean(1)
        ),
        "You used the drawn numbers as queries. They are classes: each brings all its queries.": lambda a, b, y, drawn: (
            middle((a - b)[drawn].mean(1))
        ),
        "That is how much single classes vary. Wanted is how much the MEAN varies: one mean for each draw.": lambda a, b, y, drawn: (
            middle(per_class(a - b, y)[drawn])
        ),
        "You subtracted the wrong way round: the question is how much better `ours` is than `theirs`.": lambda a, b, y, drawn: (
            middle(class_means(b - a, y, drawn))
        ),
        "That is the interval of `ours` alone. Queries that are hard are hard for both: take the difference of each "
        "query.": lambda a, b, y, drawn: middle(class_means(a, y, drawn)),
        "You subtracted the ends of two intervals. Pair first: the difference on each query, then one interval.": lambda a, b, y, drawn: (
            tuple(x - z for x, z in zip(middle(class_means(a, y, drawn)), middle(class_means(b, y, drawn))))
        ),
        "You cut off 5 % at each end: that is an interval of 90 %. For 95 % the ends are the percentiles 2.5 and "
        "97.5.": lambda a, b, y, drawn: middle(class_means(a - b, y, drawn), 5, 95),
        "You took the smallest and the largest mean of all draws. The middle 95 % lies between the percentiles 2.5 "
        "and 97.5.": lambda a, b, y, drawn: middle(class_means(a - b, y, drawn), 0, 100),
        "You divided by the number of queries in the data. Each draw has a number of its own: sum the counts of the "
        "drawn classes.": lambda a, b, y, drawn: middle(np.bincount(y, a - b)[drawn].sum(1) / len(a)),
    },
)
def bootstrap_interval(ours, theirs, labels, drawn):
    return middle(class_means(ours - theirs, labels, drawn))


def step_down(factor, running=True, most=1.0, sort_back=True):
    """p-values [m], each times factor(place in the order of size, m)."""

    def compute(p):
        order, m = np.argsort(p, kind="stable"), len(p)
        values = factor(np.arange(m), m) * np.asarray(p)[order]
        values = np.maximum.accumulate(values) if running else values
        values = np.minimum(values, most)
        return values[np.argsort(order)] if sort_back else values

    return compute


@exercise(
    cases=lambda: [
        (np.array([0.012, 0.2, 0.011, 0.4, 0.03]),),
        (np.array([0.6, 0.001, 0.02, 0.021]),),
        (np.array([0.6, 0.7, 0.5]),),
    ],
    shape="[m], one adjusted p for each comparison, in the order of the input",
    good_for="What is below .05 now may be reported together: one false claim in all of them in at most 5 % of such tables.",
    mistakes={
        "You multiplied all by m. That is Bonferroni: right, but stricter than need be. Holm takes m for the smallest, "
        "m - 1 for the next, and so on.": step_down(lambda i, m: m + 0 * i),
        "A larger p got a smaller adjusted one. Each adjusted value is at least as large as the one before it in the "
        "order of size: take the running maximum.": step_down(lambda i, m: m - i, running=False),
        "Your values are sorted. Wanted is the order of the input.": step_down(lambda i, m: m - i, sort_back=False),
        "You multiplied the largest by m. The SMALLEST p has all m comparisons against it.": step_down(
            lambda i, m: i + 1
        ),
        "A probability cannot exceed 1: cut there.": step_down(lambda i, m: m - i, most=np.inf),
        "You divided by the rank, as for the false discovery rate (Benjamini and Hochberg). Holm multiplies by the "
        "number of comparisons that are left.": step_down(lambda i, m: m / (i + 1)),
        "That is m - 1 for the smallest. It has m comparisons against it, itself included.": step_down(
            lambda i, m: np.maximum(m - 1 - i, 1)
        ),
    },
)
def holm(p):
    return step_down(lambda i, m: m - i)(p)
