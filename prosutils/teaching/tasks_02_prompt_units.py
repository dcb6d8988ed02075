"""The exercises of notebook 02; see `tasks.py`."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F

from ..prompts import PromptUnits
from ..tuned import TunedCLIP
from .tasks import exercise, normal, shuffled, unit, unit_cases


def rivals(features, drawings, own, labels):
    """Cosines [B, n], the very drawing's [B, 1], and which drawings are others of its class, [B, n]."""
    cosines = unit(features) @ unit(drawings).T
    others = labels[None] == labels[own][:, None]
    others[torch.arange(len(own)), own] = False
    return cosines, cosines.gather(1, own[:, None]), others


def share_beaten(beaten, others):
    """Mean over the pictures that have a rival."""
    has = others.any(1)
    return float((beaten.sum(1)[has] / others.sum(1)[has]).mean())


def plain_product(z, x, own, labels):
    _, _, others = rivals(z, x, own, labels)
    scores = z @ x.T
    return share_beaten((scores < scores.gather(1, own[:, None])) & others, others)


def all_rivals(z, x, own, labels):
    cosines, mine, _ = rivals(z, x, own, labels)
    return float(((cosines < mine).sum(1) / (len(x) - 1)).mean())


def own_among_rivals(z, x, own, labels):
    cosines, mine, others = rivals(z, x, own, labels)
    return float((((cosines < mine) & others).sum(1) / (others.sum(1) + 1)).mean())


def without_rival_is_zero(z, x, own, labels):
    cosines, mine, others = rivals(z, x, own, labels)
    return float((((cosines < mine) & others).sum(1) / others.sum(1).clamp(min=1)).mean())


def nearest_of_class(z, x, own, labels):
    cosines, mine, others = rivals(z, x, own, labels)
    has = others.any(1)
    return float((((cosines < mine) | ~others).all(1)[has]).float().mean())


@exercise(
    cases=lambda: [
        (
            *normal(seed, (12, 4), (24, 4)),
            shuffled(seed, 24)[:12],
            torch.tensor([0] * 9 + [1] * 7 + [2] * 5 + [3, 4, 5]),
        )
        for seed in (0, 1, 2)
    ],
    shape="a single number",
    good_for="A unit that only says its class's name cannot raise this number: all rivals have the same name.",
    mistakes={
        "You took the plain product, so long features are near to everything. Normalise both sides first.": plain_product,
        "You compare the very drawing with all other drawings. Of another class it differs by name: only rivals of its "
        "own class separate looking from naming.": all_rivals,
        "You counted the very drawing among its rivals, so it can never beat all of them.": own_among_rivals,
        "A drawing without a rival counts as 0 in your mean. It says nothing either way: leave it out.": (
            without_rival_is_zero
        ),
        "You count how often the very drawing is the nearest of its class. Wanted is the share of the rivals that it "
        "beats, whose chance level is one half however many there are.": nearest_of_class,
    },
)
def own_drawing_first(features, drawings, own, labels):
    cosines, mine, others = rivals(features, drawings, own, labels)
    return share_beaten((cosines < mine) & others, others)


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
