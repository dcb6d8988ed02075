"""The exercises of notebook 04; see `tasks.py`."""

import torch

from .. import metrics
from .tasks import exercise, shuffled


def average_precision_cases():
    """Rankings [G] of hits and misses: fewer and more relevant pictures than k, and none."""
    cases = [
        (shuffled(seed, size) < relevant, k)
        for seed, size, relevant, k in ((0, 12, 5, 20), (1, 30, 6, 10), (2, 30, 20, 8))
    ]
    return cases + [(torch.zeros(6, dtype=torch.bool), 5)]


def average(divisor, places=lambda hits: hits, cut=True):
    """AP@k with sum of Prec@r over `places(hits)`, divided by divisor(hits, k); 0 where there is no hit."""

    def compute(hits, k):
        h = hits.float()
        precision = h.cumsum(0) / torch.arange(1, len(h) + 1)
        total = (precision * places(h))[: k if cut else None].sum()
        return float(total / max(1, float(divisor(hits, k)))) if hits.any() else 0.0

    return compute


def possible(hits, k):
    return min(k, int(hits.sum()))


@exercise(
    cases=average_precision_cases,
    shape="a single number",
    good_for="mAP@200 is its mean over all queries, with k = 200.",
    mistakes={
        "You divided by the hits that were found within k (the released code does that). Here n = min(k, R), with R "
        "all hits of the whole list.": average(lambda hits, k: hits[:k].sum()),
        "You divided by all relevant pictures. At most k of them fit among the first k: n = min(k, R).": average(
            lambda hits, k: hits.sum()
        ),
        "You divided by k. A query with few relevant pictures could then never reach 1: n = min(k, R).": average(
            lambda hits, k: k
        ),
        "You added up the precision at every rank. Only the ranks of hits count.": average(
            possible, places=torch.ones_like
        ),
        "You went through the whole list. Only hits among the first k count.": average(possible, cut=False),
        "That is the precision at k, the share of hits among the first k, not the average precision.": lambda hits, k: (
            float(hits[:k].float().mean())
        ),
        "That is the share of relevant pictures found within k (recall). It does not see at which ranks they came.": lambda hits, k: (
            float(hits[:k].sum() / max(1, possible(hits, k)))
        ),
        "A query that has nothing to find should score 0; your sum is divided by 0 there.": lambda hits, k: (
            average_precision(hits, k) if hits.any() else float("nan")
        ),
    },
)
def average_precision(hits, k):
    return float(metrics._block_metrics(hits[None], hits.sum()[None], len(hits), (k,), "relevant")[f"AP@{k}"])


def interpolated(
    best=lambda precision, enough: precision[enough].max(), divisor=lambda hits: hits.sum(), at_least=True
):
    """Precision at levels of recall: `best` of the precisions at the ranks where recall has reached the level."""

    def compute(hits, levels):
        found = hits.cumsum(0).float()
        precision, recall = found / torch.arange(1, len(hits) + 1), found / divisor(hits)
        reached = [recall >= level - 1e-6 if at_least else recall <= level + 1e-6 for level in levels]
        return torch.stack([best(precision, enough) if enough.any() else torch.tensor(0.0) for enough in reached])

    return compute


@exercise(
    cases=lambda: [
        (shuffled(seed, size) < hits, torch.linspace(0, 1, 11)) for seed, size, hits in ((3, 14, 4), (4, 25, 7))
    ],
    shape="[L], one precision for each level",
    good_for="Curves of different queries can now be averaged: all have a value at the same levels.",
    mistakes={
        "You took the precision at the first rank where the level is reached. A later rank may be better, and it has "
        "reached the level, too: take the largest from there on.": interpolated(lambda p, enough: p[enough][0]),
        "You looked at the ranks before the level is reached. Wanted are those where recall is at least the level.": interpolated(
            at_least=False
        ),
        "You took the mean of the precisions from there on; wanted is the largest.": interpolated(
            lambda p, enough: p[enough].mean()
        ),
        "Your recall is divided by the length of the list. It is the share of the RELEVANT pictures that are found: "
        "divide by all hits.": interpolated(divisor=len),
        "You took the last rank, where the level is reached for certain. Wanted is the largest precision of all ranks "
        "where it is reached.": interpolated(lambda p, enough: p[enough][-1]),
    },
)
def precision_at_recall(hits, levels):
    return interpolated()(hits, levels)


def expected(before=lambda r, relevant, size: (r - 1) * (relevant - 1) / (size - 1), divisor=min, last=min):
    """Expected AP@k of a random order: `before` hits are expected above a hit at rank r; divided by divisor(k, R)."""

    def compute(relevant, size, k):
        r = torch.arange(1, last(k, size) + 1, dtype=torch.float64)
        return float(relevant / size * ((1 + before(r, relevant, size)) / r).sum() / divisor(k, relevant))

    return compute


@exercise(
    cases=lambda: [(6, 328, 200), (1, 133, 200), (300, 1000, 200), (5, 461, 200), (40, 60, 10)],
    shape="a single number",
    good_for="Every mAP has such a floor, and you can name it without a single picture.",
    mistakes={
        "That is the share of relevant pictures in the gallery: chance level of Prec@k. AP is higher, because the hits "
        "themselves count in the precision at their ranks.": lambda relevant, size, k: relevant / size,
        "You count the hit at rank r itself and forget the hits above it: each of the r - 1 ranks above holds one of "
        "the other R - 1.": expected(before=lambda r, relevant, size: 0 * r),
        "You took the ranks above for independent draws. One relevant picture is already used up at rank r: R - 1 are "
        "left among G - 1.": expected(before=lambda r, relevant, size: (r - 1) * relevant / size),
        "You divided by R. At most k pictures can be hit within k: n = min(k, R).": expected(
            divisor=lambda k, relevant: relevant
        ),
        "You went through the whole gallery. Only the first k ranks count.": expected(last=lambda k, size: size),
        "You went on to rank k where the gallery has fewer pictures than k.": expected(last=lambda k, size: k),
        "That is the sum over the first k ranks; divide it by n = min(k, R).": expected(divisor=lambda k, relevant: 1),
    },
)
def chance_level(relevant, size, k):
    return expected()(relevant, size, k)
