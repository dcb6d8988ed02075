"""The exercises of notebook 06; see `tasks.py`."""

import torch

from .tasks import best, exercise, normal, shuffled, unit


def near(x, k, distances):
    """The places [n, k] of the k others with the smallest of `distances(x)` [n, n]."""
    return best((-distances(x)).fill_diagonal_(-torch.inf), k)


def by_angle(x):
    return -unit(x) @ unit(x).T


def by_distance(x):
    return torch.cdist(x, x)


def centres_of(x, labels):
    """Means of the rows of each label [C, D], and the label's place for each row [n]."""
    names, place = labels.unique(return_inverse=True)
    return torch.stack([x[labels == name].mean(0) for name in names]), place


def within(x, centres, place):
    return float((x * centres[place]).sum(1).mean())


def products(centres):
    """Inner products of different centres, each pair twice, [C (C - 1)]."""
    return (centres @ centres.T)[~torch.eye(len(centres), dtype=torch.bool)]


def between(centres):
    found = products(centres)
    return float(found[found > 0].mean())


def paper_numbers(normalise=unit, of_centres=lambda x: x, second=between):
    """D_intra and D_inter with a step replaced by another."""

    def compute(features, labels):
        x = normalise(features)
        centres, place = centres_of(x, labels)
        centres = of_centres(centres)
        return within(x, centres, place), second(centres)

    return compute


def intra_by_class(features, labels):
    x = unit(features)
    centres, place = centres_of(x, labels)
    by_picture = (x * centres[place]).sum(1)
    return float(torch.stack([by_picture[place == i].mean() for i in range(len(centres))]).mean()), between(centres)


def positive_with_itself(centres):
    found = centres @ centres.T
    return float(found[found > 0].mean())


@exercise(
    cases=lambda: [(*normal(seed, (30, 4)), (shuffled(seed, 30) % 9).clamp(max=4)) for seed in (0, 1)],
    shape="two numbers, D_intra and D_inter",
    good_for="These are the two numbers of the released plotting code. The next cells ask what they are worth.",
    mistakes={
        "You used the features as they come, so long ones count more. Bring them to length 1 first.": paper_numbers(
            normalise=lambda x: x
        ),
        "You brought the centres to length 1. A centre is the mean as it is; it is short where its class is spread "
        "out.": paper_numbers(of_centres=unit),
        "You counted each centre's product with itself. D_inter compares different classes.": paper_numbers(
            second=positive_with_itself
        ),
        "You took all products between centres. Only the positive ones count here.": paper_numbers(
            second=lambda centres: float(products(centres).mean())
        ),
        "You set negative products to 0, so that they still count in the mean. Leave them out.": paper_numbers(
            second=lambda centres: float(products(centres).clamp(min=0).mean())
        ),
        "You took D_intra's mean class by class. It is the mean over pictures, so large classes count more.": (
            intra_by_class
        ),
        "You returned them in the other order: D_intra comes first.": lambda x, y: paper_numbers()(x, y)[::-1],
    },
)
def intra_inter(features, labels):
    return paper_numbers()(features, labels)


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


def across_cases():
    """Features [n, D], classes [n], domains [n], k; in the last case many cosines are negative."""
    cases = [(*normal(seed, (36, 3)), shuffled(seed, 36) % 4, shuffled(seed + 9, 36) % 3, 5) for seed in (0, 1)]
    return [*cases, (*normal(2, (8, 6)), shuffled(2, 8) % 2, shuffled(3, 8) % 2, 3)]


def in_other_domains(x, k, domains, scores=lambda x: unit(x) @ unit(x).T, instead=-torch.inf):
    """The places [n, k] of the k pictures of other domains with the largest scores."""
    return best(scores(x).masked_fill(domains[:, None] == domains, instead), k)


def shares_of(index, labels):
    """Share [n] of the pictures [n, k] that have the label of their row."""
    return (labels[index] == labels[:, None]).float().mean(1)


def filtered_afterwards(x, y, d, k):
    """The k nearest of all others, of which those of the own domain are dropped."""
    index = near(x, k, by_angle)
    other = d[index] != d[:, None]
    hit = (y[index] == y[:, None]) & other
    return hit.sum(1) / other.sum(1).clamp(min=1)


@exercise(
    cases=across_cases,
    shape="[n], one share for each picture",
    good_for="Its mean is purity across domains. One share for each picture is what an interval needs.",
    mistakes={
        "You took the k nearest of all pictures. Those of the picture's own domain must not be among them.": (
            lambda x, y, d, k: shares_of(near(x, k, by_angle), y)
        ),
        "You took the k nearest of all pictures and dropped those of the own domain afterwards, so fewer than k are "
        "left. Leave the own domain out before you look for the k nearest.": filtered_afterwards,
        "You looked inside the picture's own domain. Wanted are the nearest in OTHER domains.": lambda x, y, d, k: (
            shares_of(best((-by_angle(x)).masked_fill(d[:, None] != d, -torch.inf).fill_diagonal_(-torch.inf), k), y)
        ),
        "You took the k farthest. Nearest means the largest cosine.": lambda x, y, d, k: shares_of(
            in_other_domains(x, k, d, by_angle), y
        ),
        "You took the nearest by the plain product, where long features are near to everybody. Bring them to length "
        "1 first.": lambda x, y, d, k: shares_of(in_other_domains(x, k, d, lambda x: x @ x.T), y),
        "You took the nearest by the distance between the features as they come. Nearest means the largest cosine.": (
            lambda x, y, d, k: shares_of(in_other_domains(x, k, d, lambda x: -by_distance(x)), y)
        ),
        "You set the cosines within a domain to 0, but others can be below 0, so pictures of the own domain come "
        "before them. Use `-float('inf')`.": lambda x, y, d, k: shares_of(in_other_domains(x, k, d, instead=0), y),
        "You compared domains. A neighbour counts where it has the picture's class.": lambda x, y, d, k: shares_of(
            in_other_domains(x, k, d), d
        ),
        "You returned the mean. Wanted is one share for each picture: the mean is taken later.": lambda x, y, d, k: (
            shares_of(in_other_domains(x, k, d), y).mean()
        ),
    },
)
def purity_across(features, labels, domains, k):
    return shares_of(in_other_domains(features, k, domains), labels)
