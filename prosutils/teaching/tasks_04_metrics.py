"""The exercises of notebook 04; see `tasks.py`."""

import torch
import torch.nn.functional as F

from .. import metrics
from .tasks import best, exercise, normal, shuffled, unit


@exercise(
    cases=lambda: [(*normal(seed, (4, 3), (12, 3)), k) for seed, k in ((0, 5), (1, 12))],
    shape="[Q, k]: queries, places in the gallery from the best on",
    good_for="Whatever is found in this tutorial is found by these two lines.",
    mistakes={
        "You ranked by the plain product, so long gallery vectors come first for everybody. Bring both sides to "
        "length 1: `normalize(..., dim=1)`.": lambda q, g, k: best(q @ g.T, k),
        "You normalised along axis 0, over the pictures. A vector's length is taken along its width: `dim=1`.": lambda q, g, k: (
            best(F.normalize(q, dim=0) @ F.normalize(g, dim=0).T, k)
        ),
        "Your ranking begins with the worst: sort in descending order.": lambda q, g, k: best(-unit(q) @ unit(g).T, k),
        "You ranked by the distance between the features as they come, which is another order: lengths count there. "
        "Use cosines.": lambda q, g, k: best(-torch.cdist(q, g), k),
        "You return the cosines. Wanted are the places of the gallery pictures that have them.": lambda q, g, k: (
            (unit(q) @ unit(g).T).sort(dim=1, descending=True).values[:, :k]
        ),
        "You ranked the queries for every gallery picture. Wanted is the gallery's order for every query: "
        "`query @ gallery.T`.": lambda q, g, k: best(unit(g) @ unit(q).T, k),
        "Your table lies on its side: one row for each rank. Wanted is one row for each query.": lambda q, g, k: (
            best(unit(q) @ unit(g).T, k).T
        ),
    },
)
def rank_by_cosine(query, gallery, k):
    return metrics.rank(query, gallery, k=k)[1]


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
        "You divided by all relevant pictures. No more than k of them can stand among the first k: n = min(k, R).": average(
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
    return float(metrics._block_metrics(hits[None], (k,), "relevant")[f"AP@{k}"])
