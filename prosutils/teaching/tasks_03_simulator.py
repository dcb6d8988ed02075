"""The exercises of notebook 03; see `tasks.py`."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F

from ..prompts import PromptUnits
from .tasks import exercise, normal, unit_cases


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
