"""The exercises of notebook 01; see `tasks.py`."""

import torch

from .. import splits
from ..domains import ImageDomains
from .tasks import exercise, shuffled


@exercise(
    cases=lambda: [
        (shuffled(1, 48) % 4, shuffled(2, 48) % 6, 2, torch.tensor([4, 1])),
        (shuffled(3, 60) % 3, shuffled(4, 60) % 5, 0, torch.tensor([0, 2, 3])),
    ],
    shape="[m], one row number for each query",
    good_for="The same two conditions, with other domains and classes, give every protocol of this notebook.",
    mistakes={
        "Your queries are of the held-out domain OR of an unseen class. UCDR asks for both at once: join the two "
        "conditions by `&`.": lambda d, y, out, new: torch.nonzero((d == out) | torch.isin(y, new)).squeeze(1),
        "You took every picture of the held-out domain. Those of seen classes are the queries of UdCDR; UCDR asks "
        "for unseen classes only.": lambda d, y, out, new: torch.nonzero(d == out).squeeze(1),
        "You took every picture of the unseen classes, whatever its domain. The query's domain must be the held-out "
        "one.": lambda d, y, out, new: torch.nonzero(torch.isin(y, new)).squeeze(1),
        "Your queries are of the held-out domain, but of the seen classes: that is UdCDR. Is there a `~` too many?": lambda d, y, out, new: (
            torch.nonzero((d == out) & ~torch.isin(y, new)).squeeze(1)
        ),
        "Your queries are of the unseen classes, but of the training domains: that is UcCDR. Compare with `==`.": lambda d, y, out, new: (
            torch.nonzero((d != out) & torch.isin(y, new)).squeeze(1)
        ),
        "You return a mask with True or False for every picture. Wanted are the numbers of the rows that are True: "
        "`torch.nonzero(mask).squeeze(1)`.": lambda d, y, out, new: (d == out) & torch.isin(y, new),
        "Your rows are right but stand in a column, [m, 1]: that is how `torch.nonzero` gives them. Add "
        "`.squeeze(1)`.": lambda d, y, out, new: torch.nonzero((d == out) & torch.isin(y, new)),
    },
)
def query_rows(domain_index, class_index, held_out, unseen):
    names = [range(int(index.max()) + 1) for index in (domain_index, class_index)]
    data = ImageDomains(None, *map(tuple, names), [], domain_index, class_index, [])
    return data.rows([held_out], unseen.tolist())


@exercise(
    cases=lambda: [
        (100 + shuffled(seed, count), fraction)
        for seed, (count, fraction) in enumerate([(6, 0.08), (13, 0.08), (41, 0.3), (9, 0.4), (50, 0.08), (10, 0.2)])
    ],
    shape="[k], one row number for each picture kept out",
    good_for="Whatever is searched in the test has not been trained on, and no class is without such a picture.",
    mistakes={
        "You rounded the kept-out part down, so a class of six emoji keeps none out and cannot be found in the mixed "
        "gallery. Round the training part down instead.": lambda order, share: order[: int(share * len(order))],
        "You rounded the kept-out part down and then took at least one. It is the training part that is rounded "
        "down: of 13 pictures `int(0.92 * 13)` = 11 train, so 2 are kept out.": lambda order, share: order[
            : max(1, int(share * len(order)))
        ],
        "You rounded the kept-out part to the nearest number. The training part is rounded down, and what is left "
        "is kept out.": lambda order, share: order[: round(share * len(order))],
        "You kept out one picture more than the share, also where it comes out whole: of 50 pictures 8 % are 4, not 5.": (
            lambda order, share: order[: int(share * len(order)) + 1]
        ),
        "You returned the part that trains. Wanted is the other one, which is kept out.": lambda order, share: order[
            splits._kept(len(order), share) :
        ],
        "The number is right, but you took the rows from the end of the order. Those kept out come first.": lambda order, share: (
            order[len(order) - splits._kept(len(order), share) :]
        ),
        "You sorted the rows before you cut, so always the first files are kept out. `order` is shuffled: leave it "
        "so.": lambda order, share: order.sort().values[: splits._kept(len(order), share)],
    },
)
def keep_out(order, fraction):
    return order[: splits._kept(len(order), fraction)]


@exercise(
    cases=lambda: [
        (
            torch.tensor(sum(([i] * n for i, n in sizes.items()), []))[shuffled(1, sum(sizes.values()))],
            shuffled(2, sum(sizes.values())),
            per_domain,
        )
        for sizes, per_domain in (({0: 12, 1: 5, 2: 4, 3: 9}, 3), ({0: 4, 2: 25, 3: 6}, 2))
    ],
    shape="[M * per_domain], the pictures of the first domain, then those of the second, and so on",
    good_for="Every domain's unit gets the same number of lessons, however large the domain is.",
    mistakes={
        "This is a plain shuffle: the first pictures of `order`, whatever their domain. Large domains fill such a "
        "batch. Take `per_domain` pictures of each domain.": lambda d, order, n: order[: n * len(d.unique())],
        "You took the first pictures of each domain as they stand in the list, so every batch would be the same. "
        "Take the first ones as they come in `order`.": lambda d, order, n: torch.cat(
            [torch.nonzero(d == i).squeeze(1)[:n] for i in d.unique()]
        ),
        "You returned places in `order`, not pictures: what stands at place j is the picture `order[j]`.": lambda d, order, n: (
            torch.cat([torch.nonzero(d[order] == i).squeeze(1)[:n] for i in d.unique()])
        ),
        "You compared `domain_index` with pictures in another order. The domain of the picture "
        "`order[j]` is `domain_index[order[j]]`, so compare `domain_index[order]`.": lambda d, order, n: torch.cat(
            [order[d == i][:n] for i in d.unique()]
        ),
        "You took three pictures of each domain, whatever `per_domain` is. Use the argument.": lambda d, order, n: (
            torch.cat([order[d[order] == i][:3] for i in d.unique()])
        ),
        "You took one picture of each domain. A batch holds `per_domain` of each.": lambda d, order, n: torch.cat(
            [order[d[order] == i][:1] for i in d.unique()]
        ),
        "Your pictures are right but stand in a table with one line for each domain. A batch is one list: "
        "`torch.cat` instead of `torch.stack`.": lambda d, order, n: torch.stack(
            [order[d[order] == i][:n] for i in d.unique()]
        ),
    },
)
def balanced_batch(domain_index, order, per_domain):
    return torch.cat([order[domain_index[order] == i][:per_domain] for i in domain_index.unique()])
