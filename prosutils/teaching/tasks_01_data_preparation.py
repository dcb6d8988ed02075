"""The exercises of notebook 01; see `tasks.py`."""

import torch

from ..domains import ImageDomains
from .tasks import exercise, shuffled


def _queries(data: ImageDomains, protocol, held_out, gallery, seen, unseen):
    """The queries of a protocol: rows of `data`, whose domains and classes are named by their numbers."""
    sources = [domain for domain in data.domains if domain not in (held_out, gallery)]
    asked = {"UCDR": ([held_out], unseen), "UcCDR": (sources, unseen), "UdCDR": ([held_out], seen)}
    domains, classes = asked[protocol]
    return data.rows(domains, classes.tolist())


def _masks(domain_index, class_index, held_out, gallery, seen, unseen):
    """Masks [n]: of the held-out domain, of a training domain but the gallery's, of seen, of unseen classes."""
    out, source = domain_index == held_out, (domain_index != held_out) & (domain_index != gallery)
    return out, source, torch.isin(class_index, seen), torch.isin(class_index, unseen)


def _mistaken(choose):
    """What somebody returns who takes choose(protocol, out, source, seen, unseen), a mask [n]."""

    def rows(domain_index, class_index, protocol, *others):
        return torch.nonzero(choose(protocol, *_masks(domain_index, class_index, *others))).squeeze(1)

    return rows


def _right_mask(protocol, out, source, seen, unseen):
    return {"UCDR": out & unseen, "UcCDR": source & unseen, "UdCDR": out & seen}[protocol]


@exercise(
    cases=lambda: [
        (shuffled(i, 90) % 5, shuffled(i + 9, 90) % 9, protocol, 2, 1, torch.tensor([0, 3, 5, 6]), torch.tensor([8, 1]))
        for i, protocol in enumerate(("UCDR", "UcCDR", "UdCDR"))
    ],
    shape="[m], one row number for each query",
    good_for="The three protocols are three blocks of one table of domains and classes.",
    mistakes={
        "You take what is not unseen for seen. There is a third group, the validation classes, and they are in no test: "
        "compare with `seen`.": _mistaken(
            lambda p, out, source, seen, unseen: _right_mask(p, out, source, ~unseen, unseen)
        ),
        "You take what is not seen for unseen. There is a third group, the validation classes, and they are in no test: "
        "compare with `unseen`.": _mistaken(
            lambda p, out, source, seen, unseen: _right_mask(p, out, source, seen, ~seen)
        ),
        "Your UcCDR queries include pictures of the gallery's domain. A query would find itself: leave that domain "
        "out.": _mistaken(
            lambda p, out, source, seen, unseen: (
                unseen & ~out if p == "UcCDR" else _right_mask(p, out, source, seen, unseen)
            )
        ),
        "You join the two conditions by OR. A query has to fulfil both at once: `&`.": _mistaken(
            lambda p, out, source, seen, unseen: {"UCDR": out | unseen, "UcCDR": source | unseen, "UdCDR": out | seen}[
                p
            ]
        ),
        "You return UCDR's queries whatever the protocol is.": _mistaken(
            lambda p, out, source, seen, unseen: out & unseen
        ),
        "You have exchanged UcCDR and UdCDR. The small letter names what is new: c, the class; d, the domain.": _mistaken(
            lambda p, *masks: _right_mask({"UcCDR": "UdCDR", "UdCDR": "UcCDR"}.get(p, p), *masks)
        ),
        "You return a mask with True or False for every picture. Wanted are the numbers of the rows that are True: "
        "`torch.nonzero(mask).squeeze(1)`.": lambda d, y, p, *others: _right_mask(p, *_masks(d, y, *others)),
        "Your rows are right but stand in a column, [m, 1]: that is how `torch.nonzero` gives them. Add "
        "`.squeeze(1)`.": lambda d, y, p, *others: torch.nonzero(_right_mask(p, *_masks(d, y, *others))),
    },
)
def query_rows(domain_index, class_index, protocol, held_out, gallery, seen, unseen):
    names = [range(int(index.max()) + 1) for index in (domain_index, class_index)]
    data = ImageDomains(None, *map(tuple, names), [], domain_index, class_index, [])
    return _queries(data, protocol, held_out, gallery, seen, unseen)


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
    good_for="Every domain's unit gets the same number of updates, however large the domain is.",
    mistakes={
        "This is a plain shuffle: the first pictures of `order`, whatever their domain. Large domains fill such a "
        "batch. Take `per_domain` pictures of each domain.": lambda d, order, n: order[: n * len(d.unique())],
        "You took the first pictures of each domain as they stand in the list, so every batch would be the same. "
        "Take the first ones as they come in `order`.": lambda d, order, n: torch.cat(
            [torch.nonzero(d == i).squeeze(1)[:n] for i in d.unique()]
        ),
        "You returned places in `order`, not pictures: the picture at place j is `order[j]`.": lambda d, order, n: (
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
