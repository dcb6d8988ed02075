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


class Mixer(torch.nn.Module):
    """Stands for a block: every token takes something of all others. Not linear, so that order matters."""

    def __init__(self, seed, width):
        super().__init__()
        self.register_buffer("weight", normal(seed, (width, width))[0] / width**0.5)

    def forward(self, tokens):
        return tokens + torch.tanh((tokens + tokens.mean(1, keepdim=True)) @ self.weight)


def layer_norm(seed, width):
    """A layer norm with learned scale and shift."""
    norm = torch.nn.LayerNorm(width)
    norm.weight.data, norm.bias.data = normal(seed, (width,), (width,))
    return norm.requires_grad_(False)


def simulator_cases():
    """Templates, units, patches, layer norm, blocks, layer norm, matrix; 4 or 2 templates."""
    for n, count, batch, units in ((6, 4, 3, 5), (9, 2, 2, 4)):
        tensors = normal(n, (count, 8), (batch, units, 8), (batch, n, 8), (8, 8))
        blocks = [Mixer(n + 1, 8), Mixer(n + 2, 8)]
        yield (*tensors[:3], layer_norm(n + 3, 8), blocks, layer_norm(n + 4, 8), tensors[3])


def run(templates, units, patches, before, blocks, after, project, order=(0, 1, 2)):
    """The simulator's output at every position [B, T, W], with its three parts in some order, before the read-out."""
    parts = [templates.expand(len(units), -1, -1), units, patches]
    tokens = before(torch.cat([parts[i] for i in order], 1))
    for block in blocks:
        tokens = block(tokens)
    return tokens


def same_input(*blocks):
    """Blocks that are all given the first one's input; the last one's output counts."""
    return [blocks[-1]]


@exercise(
    cases=lambda: list(simulator_cases()),
    shape="[B, K, W]: pictures, a prompt for each template, width",
    good_for="From here on the notebook's own ProS writes its prompts with your function.",
    trains=("templates", "units", "patches", "project"),
    mistakes={
        "You read two positions whatever the number of templates. There is a prompt for each template: read "
        "`len(templates)` positions.": lambda *a: a[5](run(*a)[:, :2]) @ a[6],
        "You read the last positions, which are patches. A token's output stands where its input stood, and the "
        "templates come first.": lambda *a: a[5](run(*a)[:, -len(a[0]) :]) @ a[6],
        "You read from position 1 on, as if there were a class token. The simulator has none.": lambda *a: (
            a[5](run(*a)[:, 1 : len(a[0]) + 1]) @ a[6]
        ),
        "You return the outputs of all tokens. Only those of the templates become prompts.": lambda *a: (
            a[5](run(*a)) @ a[6]
        ),
        "The first layer norm is missing: it is applied to the whole sequence before the first block.": lambda *a: (
            a[5](run(*a[:3], lambda x: x, *a[4:])[:, : len(a[0])]) @ a[6]
        ),
        "The last layer norm is missing.": lambda *a: run(*a)[:, : len(a[0])] @ a[6],
        "The matrix is missing: after the last layer norm comes `@ project`.": lambda *a: a[5](run(*a)[:, : len(a[0])]),
        "You multiplied by the matrix before the last layer norm. First the norm, then the matrix.": lambda *a: a[5](
            run(*a)[:, : len(a[0])] @ a[6]
        ),
        "You multiplied by the transposed matrix. It stands on the right as it is: `... @ project`.": lambda *a: (
            a[5](run(*a)[:, : len(a[0])]) @ a[6].T
        ),
        "Only your last block counts. Each block takes what the one before it returned.": lambda *a: (
            a[5](run(*a[:4], same_input(*a[4]), *a[5:])[:, : len(a[0])]) @ a[6]
        ),
        "No block has run: the prompts would not depend on the picture at all.": lambda *a: (
            a[5](run(*a[:4], [], *a[5:])[:, : len(a[0])]) @ a[6]
        ),
        "Your blocks run in the wrong order.": lambda *a: a[5](run(*a[:4], a[4][::-1], *a[5:])[:, : len(a[0])]) @ a[6],
        "You swapped the two layer norms.": lambda *a: a[3](run(*a[:3], a[5], a[4], a[3], a[6])[:, : len(a[0])]) @ a[6],
        "The units are missing in your sequence.": lambda *a: a[5](run(*a, order=(0, 2))[:, : len(a[0])]) @ a[6],
        "The patches are missing in your sequence: the simulator has to see the picture.": lambda *a: (
            a[5](run(*a, order=(0, 1))[:, : len(a[0])]) @ a[6]
        ),
    },
)
def write_prompts(templates, units, patches, before, blocks, after, project):
    return after(run(templates, units, patches, before, blocks, after, project)[:, : len(templates)]) @ project


def next_of_domain(domain_index, step=1):
    """The next picture of the same domain; the last one's is the first."""
    found = torch.empty_like(domain_index)
    for domain in domain_index.unique():
        here = torch.where(domain_index == domain)[0]
        found[here] = here.roll(-step)
    return found


def is_control(partner, domain_index):
    """Whether every picture has another one of its own domain for a partner, and every picture is one."""
    count = torch.arange(len(domain_index))
    return bool(
        torch.equal(partner.long().sort().values, count)
        and (partner != count).all()
        and (domain_index[partner.long()] == domain_index).all()
    )


@exercise(
    cases=lambda: [(torch.tensor([2, 0, 2, 1, 0, 1, 2, 0]),), (torch.tensor([0, 0, 1, 1, 1, 0]),)],
    shape="[n] whole numbers: for each picture the position of its partner",
    good_for="Only who gets which prompts changes: the domain, and the prompts as a set, stay the same.",
    allows=is_control,
    mistakes={
        "Every picture is its own partner: it would be read with its own prompts.": lambda d: torch.arange(len(d)),
        "A partner may be of another domain. Then you change two things at once: the picture and the domain whose "
        "prompts are used.": lambda d: torch.arange(len(d)).roll(-1),
        "One picture of each domain lends its prompts to all others, and is read with its own. Every picture should "
        "lend once, and none to itself.": lambda d: torch.stack([torch.where(d == k)[0][0] for k in d]),
        "Your partners are places within a domain. Wanted are positions among all pictures.": lambda d: torch.stack(
            [(int((d[:i] == d[i]).sum()) + 1) % (d == d[i]).sum() for i in range(len(d))]
        ),
    },
)
def another_picture(domain_index):
    return next_of_domain(domain_index)
