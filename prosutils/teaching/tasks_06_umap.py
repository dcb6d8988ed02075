"""The exercises of notebook 06; see `tasks.py`."""

import torch

from .. import metrics
from .tasks import best, exercise, normal, shuffled, unit


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
