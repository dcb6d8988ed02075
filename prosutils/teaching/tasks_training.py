"""The exercises of notebooks 01 to 03: the right function, cases to try it on, and typical mistakes in words.

Each function below is a right answer: the package's own code, or, where that is part of something larger, a line
that tests/test_exercises.py compares with it. `exercises.py` compares the learner's function with the right one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from .. import splits
from ..domains import ImageDomains
from ..prompts import PromptUnits
from ..tuned import TunedCLIP


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


# ---- 01 Data preparation -----------------------------------------------------------------------------------


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


# ---- 02 Stage 1 --------------------------------------------------------------------------------------------


def sequence(class_token, prompts, patches):
    """`[class token [W] ; prompts [B, P, W] ; patches [B, N, W]]`."""
    return torch.cat([class_token.expand(len(patches), 1, -1), prompts, patches], 1)


@exercise(
    cases=lambda: [normal(n, (8,), (n + 1, 8), (batch, 2, 8), (batch, n, 8)) for n, batch in ((6, 3), (9, 2))],
    shape="[B, 3 + N, W]: pictures, tokens, width",
    good_for="This sequence is all that a prompt changes: what comes after it is CLIP as it was.",
    trains=("class_token", "prompts", "patches"),
    mistakes={
        "Your prompts got a positional embedding, `positions[1:3]`. Compare rows 1 and 2 of your sequence with the "
        "units: only the class token and the patches have a place.": lambda cls, pos, prompts, x: sequence(
            cls + pos[0], prompts + pos[1:3], x + pos[1:]
        ),
        "Your prompts got the class token's positional embedding, `positions[0]`. Compare rows 1 and 2 of your "
        "sequence with the units: only the class token and the patches have a place.": lambda cls, pos, prompts, x: (
            sequence(cls + pos[0], prompts + pos[0], x + pos[1:])
        ),
        "Your prompts stand before the class token. The class token comes first, at position 0, where the picture's "
        "feature is read.": lambda cls, pos, prompts, x: torch.cat(
            [prompts, (cls + pos[0]).expand(len(x), 1, -1), x + pos[1:]], 1
        ),
        "Your prompts stand behind the patches. They belong between the class token and the patches.": lambda cls, pos, prompts, x: (
            torch.cat([(cls + pos[0]).expand(len(x), 1, -1), x + pos[1:], prompts], 1)
        ),
        "Your class token has no positional embedding. Its own is `positions[0]`.": lambda cls, pos, prompts, x: (
            sequence(cls, prompts, x + pos[1:])
        ),
        "Your patches have no positional embedding, so the picture is a bag of patches. Theirs is `positions[1:]`.": lambda cls, pos, prompts, x: (
            sequence(cls + pos[0], prompts, x)
        ),
        "Nothing in your sequence has a positional embedding. The class token takes `positions[0]`, the patches "
        "take `positions[1:]`.": lambda cls, pos, prompts, x: sequence(cls, prompts, x),
        "Your patches are shifted by one place: the first patch got `positions[0]`, which is the class token's. "
        "Theirs is `positions[1:]`.": lambda cls, pos, prompts, x: sequence(cls + pos[0], prompts, x + pos[:-1]),
        "The class token is missing: your sequence begins with the prompts.": lambda cls, pos, prompts, x: torch.cat(
            [prompts, x + pos[1:]], 1
        ),
    },
)
def stage1_sequence(class_token, positions, prompts, patches):
    return sequence(class_token + positions[0], prompts, patches + positions[1:])


def unit_cases():
    """Domain units [M, W], class units [S, W], domain [B], class [B]."""
    return [
        (*normal(0, (3, 5), (7, 5)), torch.tensor([2, 0, 2, 1]), torch.tensor([6, 1, 4, 0])),
        (*normal(1, (4, 6), (6, 6)), torch.tensor([1, 3, 0]), torch.tensor([2, 5, 1])),
        (*normal(2, (4, 5), (6, 5)), torch.tensor([1, 0]), torch.tensor([3, 0])),  # the last units belong to nobody
    ]


@exercise(
    cases=unit_cases,
    shape="[B, 2, W]: pictures, the two units, width",
    good_for="Masking all other units and leaving out what is masked is one line of indexing.",
    trains=("domain_units", "class_units"),
    mistakes={
        "You have the right units in the wrong order: the domain's unit comes first, then the class's.": lambda P, S, d, y: (
            torch.stack([S[y], P[d]], 1)
        ),
        "You kept all units and set those of others to zero. A zero is still a token that others attend to: leave "
        "masked units out, so that two are left.": lambda P, S, d, y: torch.cat(
            [P * F.one_hot(d, len(P))[..., None], S * F.one_hot(y, len(S))[..., None]], 1
        ),
        "Your two units of a picture lie end to end in one long vector, [B, 2 W]. They are two tokens: "
        "`torch.stack(..., 1)`.": lambda P, S, d, y: torch.cat([P[d], S[y]], 1),
        "You have all domain units first and all class units below them, [2 B, W]. The pictures come first: "
        "`torch.stack(..., 1)`.": lambda P, S, d, y: torch.cat([P[d], S[y]]),
        "Your first axis is the kind of unit, [2, B, W]. The pictures come first: stack along axis 1.": lambda P, S, d, y: (
            torch.stack([P[d], S[y]])
        ),
        "You added the two units. They are two tokens of their own, not one.": lambda P, S, d, y: (P[d] + S[y])[
            :, None
        ],
        "Every picture got the units of the first picture. Index by the whole `domain_index` and `class_index`.": lambda P, S, d, y: (
            torch.stack([P[d[0]], S[y[0]]]).expand(len(d), -1, -1)
        ),
    },
)
def own_units(domain_units, class_units, domain_index, class_index):
    return PromptUnits.own(SimpleNamespace(domain=domain_units, semantic=class_units), domain_index, class_index)


def cosines(features, texts):
    """[B, S]"""
    return TunedCLIP.similarities(features, texts)


@exercise(
    cases=lambda: [
        (*normal(0, (4, 6), (5, 6)), torch.tensor([3, 0, 4, 1]), 0.07),
        (*normal(1, (3, 8), (4, 8)), torch.tensor([2, 2, 0]), 0.5),
    ],
    shape="a single number",
    good_for="This one number trains everything in this tutorial, in stage 1 and in stage 2.",
    trains=("features", "texts"),
    mistakes={
        "You used the plain product of features and texts, so long vectors win. Bring both to length 1 first: "
        "`F.normalize(..., dim=1)`.": lambda z, t, y, tau: F.cross_entropy(z @ t.T / tau, y),
        "You normalised the features but not the texts.": lambda z, t, y, tau: F.cross_entropy(
            F.normalize(z, dim=1) @ t.T / tau, y
        ),
        "You normalised along axis 0, over the pictures. A vector's length is taken along its width: `dim=1`.": lambda z, t, y, tau: (
            F.cross_entropy(F.normalize(z, dim=0) @ F.normalize(t, dim=0).T / tau, y)
        ),
        "The temperature is missing: cosines as they are give every class nearly the same probability.": lambda z, t, y, tau: (
            F.cross_entropy(cosines(z, t), y)
        ),
        "You multiplied by the temperature. Divide: a small temperature stretches the differences.": lambda z, t, y, tau: (
            F.cross_entropy(cosines(z, t) * tau, y)
        ),
        "You took the sum over the batch. The loss is its mean, so that it does not depend on the batch's size.": lambda z, t, y, tau: (
            F.cross_entropy(cosines(z, t) / tau, y, reduction="sum")
        ),
        "You return a loss for each picture. Take their mean.": lambda z, t, y, tau: F.cross_entropy(
            cosines(z, t) / tau, y, reduction="none"
        ),
        "You took a softmax before the cross-entropy, which takes one itself: give it cosine / temperature.": lambda z, t, y, tau: (
            F.cross_entropy((cosines(z, t) / tau).softmax(1), y)
        ),
        "Your loss only looks at the own class's cosine. The others must be pushed away too: that is the sum below "
        "the fraction line.": lambda z, t, y, tau: -(cosines(z, t) / tau).gather(1, y[:, None]).mean(),
    },
)
def class_loss(features, texts, class_index, temperature):
    return F.cross_entropy(cosines(features, texts) / temperature, class_index)


# ---- 03 Stage 2 --------------------------------------------------------------------------------------------


def masked(units, *masks):
    """Units [K, W] for each picture, those set to zero where a mask [B, K] is 1 -> [B, K, W]."""
    return units * (1 - sum(masks)).clamp(min=0)[..., None]


def marks(domain_units, class_units, domain_index, class_index):
    """All units [M+S, W], and masks [B, M+S] that are 1 at the own domain's and at the own class's unit."""
    count = len(domain_units) + len(class_units)
    return (
        torch.cat([domain_units, class_units]),
        F.one_hot(domain_index, count),
        F.one_hot(len(domain_units) + class_index, count),
    )


def others_mistake(compute):
    """A mistake as a function of units [M+S, W] and the two masks [B, M+S] of `marks`."""
    return lambda *args: compute(*marks(*args))


@exercise(
    cases=unit_cases,
    shape="[B, M + S, W]: pictures, all domain units and then all class units, width",
    good_for="The simulator now meets what a test picture meets: units, but none of its own domain or class.",
    trains=("domain_units", "class_units"),
    mistakes={
        "You kept the own two units and set all others to zero: that is stage 1's mask. The reverse mask is 1 minus "
        "it.": others_mistake(lambda units, d, y: masked(units, 1 - d - y)),
        "You set no unit to zero. The own domain's and the own class's must go: a query of UCDR has neither.": others_mistake(
            lambda units, d, y: masked(units, 0 * d)
        ),
        "The own class's unit is still there. A query of an unseen class has none: set it to zero too.": others_mistake(
            lambda units, d, y: masked(units, d)
        ),
        "The own domain's unit is still there. At test time the domain is new: set it to zero too.": others_mistake(
            lambda units, d, y: masked(units, y)
        ),
        "You set a unit to zero for every picture as soon as one picture of the batch owns it. Each picture has a "
        "mask of its own.": others_mistake(
            lambda units, d, y: masked(units, (d + y).sum(0, keepdim=True).expand_as(d))
        ),
        "You took the own units out of the sequence. They stay in it as zeros, so that it has the same length in "
        "training and in tests.": others_mistake(lambda units, d, y: torch.stack([units[mark == 0] for mark in d + y])),
        "In the joined list the class units stand behind the M domain units, so the own class is row M + y. You "
        "used row y.": lambda P, S, d, y: masked(
            torch.cat([P, S]), F.one_hot(d, len(P) + len(S)), F.one_hot(y, len(P) + len(S))
        ),
        "Your class units stand before the domain units. Domains come first.": lambda P, S, d, y: torch.cat(
            [masked(S, F.one_hot(y, len(S))), masked(P, F.one_hot(d, len(P)))], 1
        ),
    },
)
def reverse_mask(domain_units, class_units, domain_index, class_index):
    return PromptUnits.others(SimpleNamespace(domain=domain_units, semantic=class_units), domain_index, class_index)


def joined(templates, *parts):
    """Templates [2, W] for each picture before the parts [B, ., W]."""
    return torch.cat([templates.expand(len(parts[0]), -1, -1), *parts], 1)


@exercise(
    cases=lambda: [
        normal(n, (2, 8), (batch, units, 8), (batch, n, 8), (n + 1, 8)) for n, batch, units in ((6, 3, 5), (9, 2, 4))
    ],
    shape="[B, 2 + M + S + N, W]: pictures, tokens, width",
    good_for="In this sequence the templates can look at every unit and at every patch of the picture.",
    trains=("templates", "units", "patches", "positions"),
    mistakes={
        "Your units got positional embeddings, all the same `positions[0]`. Only the patches have a place.": lambda t, units, x, pos: (
            joined(t, units + pos[0], x + pos[1:])
        ),
        "Your templates got the positional embedding of row 0. That row is never used: only the patches have a "
        "place.": lambda t, units, x, pos: joined(t + pos[0], units, x + pos[1:]),
        "Your patches have no positional embedding. Theirs is `positions[1:]`.": lambda t, units, x, pos: joined(
            t, units, x
        ),
        "Your patches are shifted by one place: row 0 of `positions` is not used, theirs is `positions[1:]`.": lambda t, units, x, pos: (
            joined(t, units, x + pos[:-1])
        ),
        "Your templates come last. They come first: the prompts are read at positions 0 and 1.": lambda t, units, x, pos: (
            joined(t, units, x + pos[1:]).roll(-2, 1)
        ),
        "Your patches stand before the units. The order is templates, units, patches.": lambda t, units, x, pos: joined(
            t, x + pos[1:], units
        ),
        "The two templates are missing. At their positions the prompts come out.": lambda t, units, x, pos: torch.cat(
            [units, x + pos[1:]], 1
        ),
    },
)
def simulator_input(templates, units, patches, positions):
    return joined(templates, units, patches + positions[1:])


def layer_norm(seed, width):
    """A layer norm with learned scale and shift."""
    norm = torch.nn.LayerNorm(width)
    norm.weight.data, norm.bias.data = normal(seed, (width,), (width,))
    return norm.requires_grad_(False)


@exercise(
    cases=lambda: [
        (normal(n, (batch, n, 8))[0], layer_norm(n, 8), *normal(n + 1, (8, 8))) for n, batch in ((12, 3), (9, 2))
    ],
    shape="[B, 2, W]: pictures, the two prompts, width",
    good_for="These are CaDP_M and CaDP_S. They go where stage 1 had the units, and no label was needed.",
    trains=("tokens", "project"),
    mistakes={
        "You read the last two positions, which are patches. The templates stand at positions 0 and 1.": lambda x, norm, W: (
            norm(x[:, -2:]) @ W
        ),
        "You read positions 1 and 2. There is no class token in this sequence: the templates stand at 0 and 1.": lambda x, norm, W: (
            norm(x[:, 1:3]) @ W
        ),
        "You read the first two pictures, not the first two tokens: the first axis is the batch.": lambda x, norm, W: (
            norm(x[:2]) @ W
        ),
        "You return all tokens. Only those at the template positions become prompts.": lambda x, norm, W: norm(x) @ W,
        "The layer norm is missing.": lambda x, norm, W: x[:, :2] @ W,
        "The matrix is missing: multiply by `project` after the layer norm.": lambda x, norm, W: norm(x[:, :2]),
        "You multiplied by the matrix before the layer norm. First the norm, then the matrix.": lambda x, norm, W: norm(
            x[:, :2] @ W
        ),
        "You multiplied by the transposed matrix. It stands on the right as it is: `... @ project`.": lambda x, norm, W: (
            norm(x[:, :2]) @ W.T
        ),
    },
)
def read_out(tokens, norm, project):
    return norm(tokens[:, :2]) @ project
