"""The exercises of notebooks 04 and 05; see `tasks_training.py`."""

import numpy as np
import torch
import torch.nn.functional as F

from .. import metrics
from .tasks_training import exercise, normal, shuffled

# ---- 04 Evaluation -----------------------------------------------------------------------------------------


def best(scores, k):
    """The places of the k largest scores of each row, largest first."""
    return scores.sort(dim=1, descending=True, stable=True).indices[:, :k]


def unit(x):
    return F.normalize(x, dim=1)


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


# ---- 05 UMAP visualisation ---------------------------------------------------------------------------------


def share_of(index, labels):
    """Share of the pictures [n, k] that have the label of their row."""
    return float((labels[index] == labels[:, None]).float().mean())


def near(x, k, distances):
    """The places [n, k] of the k others with the smallest of `distances(x)` [n, n]."""
    return best((-distances(x)).fill_diagonal_(-torch.inf), k)


def by_angle(x):
    return -unit(x) @ unit(x).T


def by_distance(x):
    return torch.cdist(x, x)


def purity_cases():
    """Features [n, W], labels [n] in groups of different sizes, k; in the last case many cosines are negative."""
    cases = [
        (*normal(seed, (40, 3)), (shuffled(seed, 40) % 7).clamp(max=classes - 1), k)
        for seed, classes, k in ((0, 2, 5), (1, 4, 8))
    ]
    return [*cases, (*normal(2, (8, 6)), torch.tensor([0, 0, 0, 1, 1, 0, 2, 1]), 5)]


@exercise(
    cases=purity_cases,
    shape="a single number",
    good_for="It is measured in the feature space, so no choice of picture, seed or plane can improve it.",
    mistakes={
        "Every picture counts itself among its neighbours, and it always has its own label. Leave it out.": lambda x, y, k: (
            share_of(best(-by_angle(x), k), y)
        ),
        "You looked at k + 1 pictures, the picture itself among them. Leave it out, and k are left.": lambda x, y, k: (
            share_of(best(-by_angle(x), k + 1), y)
        ),
        "You took the nearest by the plain product, where long features are near to everybody. Bring them to length "
        "1 first.": lambda x, y, k: share_of(near(x, k, lambda x: -x @ x.T), y),
        "You took the nearest by the distance between the features as they come. Nearest means the largest cosine.": lambda x, y, k: (
            share_of(near(x, k, by_distance), y)
        ),
        "You took the k farthest. Nearest means the largest cosine.": lambda x, y, k: share_of(
            near(x, k, lambda x: -by_angle(x)), y
        ),
        "You set a picture's cosine with itself to 0, but others can be below 0, so it is its own neighbour. Use "
        "`-float('inf')`.": lambda x, y, k: share_of(best((unit(x) @ unit(x).T).fill_diagonal_(0), k), y),
        "You took the mean over the labels. Purity is the mean over the pictures, so large groups count more.": lambda x, y, k: (
            sum(
                float((y[near(x, k, by_angle)] == y[:, None]).float().mean(1)[y == label].mean())
                for label in y.unique()
            )
            / len(y.unique())
        ),
        "You looked at the one nearest picture only. All k count.": lambda x, y, k: share_of(near(x, 1, by_angle), y),
    },
)
def nearest_purity(features, labels, k):
    return metrics.neighbour_purity(features, labels, k)


def sizes(labels):
    """How many pictures have the label of each picture, [n]."""
    return (labels[:, None] == labels).sum(1).float()


@exercise(
    cases=lambda: [(torch.tensor([0, 0, 1, 1, 1, 1, 2]),), (torch.tensor([5, 3, 3, 5, 5, 5, 5, 8, 8, 3]),)],
    shape="a single number",
    good_for="A purity means something only beside this number: with two equal groups half is already chance.",
    mistakes={
        "You divided 1 by the number of labels. That is right only where all groups are equally large, and a "
        "picture's own place must not count.": lambda y: 1 / len(y.unique()),
        "You counted each picture among its own neighbours. Of the n - 1 others, n_c - 1 have its label.": lambda y: (
            float((sizes(y) / len(y)).mean())
        ),
        "You left the picture out above the fraction line but not below: there are n - 1 others.": lambda y: float(
            ((sizes(y) - 1) / len(y)).mean()
        ),
        "You left the picture out below the fraction line but not above: n_c - 1 others have its label.": lambda y: (
            float((sizes(y) / (len(y) - 1)).mean())
        ),
        "You took the share of the largest group, which is what always naming that group would give.": lambda y: float(
            sizes(y).max() / len(y)
        ),
        "You took the mean over the labels. Purity is the mean over the pictures, so large groups count more.": lambda y: (
            float(((y.unique(return_counts=True)[1] - 1) / (len(y) - 1)).mean())
        ),
    },
)
def purity_by_chance(labels):
    # With all others as neighbours it does not matter where the features lie.
    return metrics.neighbour_purity(torch.eye(len(labels)), labels, k=len(labels) - 1)


def shared(a, b):
    """Share of the places of a [n, k] that are among the places of b [n, k] in the same row."""
    return float((a[:, :, None] == b[:, None]).any(2).float().mean())


@exercise(
    cases=lambda: [
        (*normal(seed, (n, 4), (n, 2)), k) for seed, n, k in ((0, 12, 3), (1, 16, 4), (2, 20, 5), (3, 8, 5))
    ],
    shape="a single number",
    good_for="Beside a map it says how many of its neighbours are to be believed.",
    mistakes={
        "Every picture counts itself among its neighbours, on the map and in the space, so some agreement is sure. Leave "
        "it out.": lambda x, p, k: shared(best(-by_angle(x), k), best(-by_distance(p), k)),
        "You took the nearest on the map by cosine. There a point's direction from the middle means nothing: take the "
        "distance, `torch.cdist`.": lambda x, p, k: shared(near(p, k, by_angle), near(x, k, by_angle)),
        "You took the nearest in the space by distance. The map was made by cosine, so compare with that.": lambda x, p, k: (
            shared(near(p, k, by_distance), near(x, k, by_distance))
        ),
        "You took the plain product for the cosine, so long features are near to everybody. Normalise the features first.": lambda x, p, k: (
            shared(near(p, k, by_distance), near(x, k, lambda x: -x @ x.T))
        ),
        "You set a picture's cosine with itself to 0, but others can be below 0, so it is its own neighbour. Use "
        "`-float('inf')`.": lambda x, p, k: shared(
            near(p, k, by_distance), best((unit(x) @ unit(x).T).fill_diagonal_(0), k)
        ),
        "You took the k farthest on the map: `topk` gives the largest unless told `largest=False`.": lambda x, p, k: (
            shared(near(p, k, lambda p: -by_distance(p)), near(x, k, by_angle))
        ),
        "You compare rank by rank: the first with the first, the second with the second. A neighbour counts at whatever "
        "rank it is found.": lambda x, p, k: float((near(p, k, by_distance) == near(x, k, by_angle)).float().mean()),
    },
)
def neighbours_kept(features, points, k):
    return shared(near(points, k, by_distance), near(features, k, by_angle))
