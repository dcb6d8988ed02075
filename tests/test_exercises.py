"""The exercises: what a learner is told for a wrong answer, a broken one, a right one, and none."""

import inspect
import textwrap
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import NOTEBOOKS, notebook_exercises
from IPython.core.interactiveshell import InteractiveShell

from prosutils import load_clip, metrics
from prosutils.domains import BalancedSampler, ImageDomains
from prosutils.files import UserError
from prosutils.parts import partners
from prosutils.simulator import PromptSimulator
from prosutils.teaching import exercises
from prosutils.teaching.tasks import EXERCISES
from prosutils.teaching.tasks_03_simulator import is_control, next_of_domain

IN_NOTEBOOKS = [(path, found) for path in NOTEBOOKS for found in notebook_exercises(path)]

#: Begins an answer to `write_prompts`: x is the simulator's output at every position.
WRITTEN = (
    "x = before(torch.cat([templates.expand(len(units), -1, -1), units, patches], 1))\n"
    "for block in blocks:\n    x = block(x)\n"
)
#: Exercise, a wrong answer (its body), words that the learner reads.
WRONG = [
    (
        "query_rows",
        "out, new = domain_index == held_out, torch.isin(class_index, unseen)\n"
        "source = ~out & (domain_index != gallery)\n"
        "mask = {'UCDR': out & new, 'UcCDR': source & new, 'UdCDR': out & ~new}[protocol]\n"
        "return mask.nonzero().flatten()",
        "what is not unseen for seen",
    ),
    (
        "query_rows",
        "out, old = domain_index == held_out, torch.isin(class_index, seen)\n"
        "source = ~out & (domain_index != gallery)\n"
        "mask = {'UCDR': out & ~old, 'UcCDR': source & ~old, 'UdCDR': out & old}[protocol]\n"
        "return mask.nonzero().flatten()",
        "what is not seen for unseen",
    ),
    (
        "query_rows",
        "out = domain_index == held_out\n"
        "classes = seen if protocol == 'UdCDR' else unseen\n"
        "return torch.where((out if protocol != 'UcCDR' else ~out) & torch.isin(class_index, classes))[0]",
        "would find itself",
    ),
    (
        "query_rows",
        "return torch.where((domain_index == held_out) & torch.isin(class_index, unseen))[0]",
        "whatever the protocol",
    ),
    (
        "query_rows",
        "out = domain_index == held_out\n"
        "source = ~out & (domain_index != gallery)\n"
        "classes = seen if protocol == 'UcCDR' else unseen\n"
        "return torch.where((source if protocol == 'UdCDR' else out) & torch.isin(class_index, classes))[0]",
        "The small letter",
    ),
    ("balanced_batch", "return order[:len(set(domain_index.tolist())) * per_domain]", "plain shuffle"),
    (
        "balanced_batch",
        "return torch.cat([torch.where(domain_index == i)[0][:per_domain]\n"
        "                  for i in sorted(set(domain_index.tolist()))])",
        "every batch would be the same",
    ),
    (
        "balanced_batch",
        "return torch.cat([torch.where(domain_index[order] == i)[0][:per_domain]\n"
        "                  for i in sorted(set(domain_index.tolist()))])",
        "places in `order`",
    ),
    (
        "balanced_batch",
        "return torch.cat([order[domain_index == i][:per_domain]\n"
        "                  for i in sorted(set(domain_index.tolist()))])",
        "another order",
    ),
    (
        "balanced_batch",
        "return torch.stack([order[domain_index[order] == i][:per_domain]\n"
        "                    for i in sorted(set(domain_index.tolist()))])",
        "one line for each domain",
    ),
    (
        "own_drawing_first",
        "c = F.normalize(features) @ F.normalize(drawings).T\n"
        "return (c < c.gather(1, own[:, None])).sum().item() / len(own) / (len(drawings) - 1)",
        "with all other drawings",
    ),
    (
        "own_drawing_first",
        "c = F.normalize(features) @ F.normalize(drawings).T\nsame = labels[own][:, None] == labels\n"
        "return (((c < c.gather(1, own[:, None])) & same).sum(1) / same.sum(1)).mean()",
        "among its rivals",
    ),
    (
        "own_drawing_first",
        "c = F.normalize(features) @ F.normalize(drawings).T\nsame = labels[own][:, None] == labels\n"
        "wins = ((c < c.gather(1, own[:, None])) & same).sum(1)\n"
        "return (wins / (same.sum(1) - 1).clamp(min=1)).mean()",
        "without a rival",
    ),
    (
        "stage1_sequence",
        "first = class_token.repeat(len(patches), 1, 1) + positions[0]\n"
        "return torch.cat([first, prompts + positions[1:3], patches + positions[1:]], 1)",
        "`positions[1:3]`. Compare",
    ),
    (
        "stage1_sequence",
        "first = class_token.repeat(len(patches), 1, 1)\n"
        "return torch.cat([torch.cat([first, prompts], 1) + positions[0], patches + positions[1:]], 1)",
        "the class token's positional embedding",
    ),
    (
        "stage1_sequence",
        "first = class_token.repeat(len(patches), 1, 1)\n"
        "x = torch.cat([first, patches], 1) + positions\n"
        "return torch.cat([prompts, x], 1)",
        "before the class token",
    ),
    (
        "stage1_sequence",
        "first = class_token.repeat(len(patches), 1, 1)\n"
        "return torch.cat([torch.cat([first, patches], 1) + positions, prompts], 1)",
        "behind the patches",
    ),
    (
        "stage1_sequence",
        "return torch.cat([class_token.repeat(len(patches), 1, 1), prompts, patches], 1)",
        "Nothing in your",
    ),
    ("stage1_sequence", "return torch.cat([prompts, patches + positions[1:]], 1)", "class token is missing"),
    ("own_units", "return torch.stack([class_units[class_index], domain_units[domain_index]], 1)", "wrong order"),
    (
        "own_units",
        "keep = torch.zeros(len(domain_index), len(domain_units) + len(class_units), 1)\n"
        "for b, (d, y) in enumerate(zip(domain_index, class_index)):\n"
        "    keep[b, d] = keep[b, len(domain_units) + y] = 1\n"
        "return keep * torch.cat([domain_units, class_units])",
        "A zero is still a token",
    ),
    ("own_units", "return torch.hstack([domain_units[domain_index], class_units[class_index]])", "end to end"),
    (
        "own_units",
        "return torch.stack([domain_units[domain_index], class_units[class_index]])",
        "axis is the kind of unit",
    ),
    ("class_loss", "return F.cross_entropy(features @ texts.T / temperature, class_index)", "long vectors win"),
    (
        "class_loss",
        "c = F.cosine_similarity(features[:, None], texts[None], dim=2)\nreturn F.cross_entropy(c, class_index)",
        "temperature is missing",
    ),
    (
        "class_loss",
        "c = F.cosine_similarity(features[:, None], texts[None], dim=2)\n"
        "return F.cross_entropy(temperature * c, class_index)",
        "Divide",
    ),
    (
        "class_loss",
        "c = F.cosine_similarity(features[:, None], texts[None], dim=2) / temperature\n"
        "return F.cross_entropy(c, class_index) * len(c)",
        "sum over the batch",
    ),
    (
        "class_loss",
        "c = F.cosine_similarity(features[:, None], texts[None], dim=2) / temperature\n"
        "return F.cross_entropy(F.softmax(c, 1), class_index)",
        "softmax before",
    ),
    (
        "class_loss",
        "return F.cross_entropy(F.normalize(features) @ texts.T / temperature, class_index)",
        "not the texts",
    ),
    (
        "reverse_mask",
        "u = torch.zeros(len(domain_index), len(domain_units) + len(class_units), domain_units.shape[1])\n"
        "for b, (d, y) in enumerate(zip(domain_index, class_index)):\n"
        "    u[b, d], u[b, len(domain_units) + y] = domain_units[d], class_units[y]\n"
        "return u",
        "stage 1's mask",
    ),
    (
        "reverse_mask",
        "return torch.cat([domain_units, class_units]).repeat(len(domain_index), 1, 1)",
        "no unit to zero",
    ),
    (
        "reverse_mask",
        "u = torch.cat([domain_units, class_units]).repeat(len(domain_index), 1, 1)\n"
        "u[range(len(u)), domain_index] = 0\nreturn u",
        "class's unit is still there",
    ),
    (
        "reverse_mask",
        "P, S = domain_units.clone(), class_units.clone()\nP[domain_index] = 0\nS[class_index] = 0\n"
        "return torch.cat([P, S]).repeat(len(domain_index), 1, 1)",
        "as soon as one picture",
    ),
    (
        "reverse_mask",
        "u = torch.cat([domain_units, class_units]).repeat(len(domain_index), 1, 1)\n"
        "u[range(len(u)), domain_index] = 0\nu[range(len(u)), class_index] = 0\nreturn u",
        "used row y",
    ),
    ("write_prompts", WRITTEN + "return after(x[:, :2]) @ project", "for each template: read"),
    ("write_prompts", WRITTEN + "return after(x[:, -len(templates):]) @ project", "last positions"),
    ("write_prompts", WRITTEN + "return after(x[:, 1:len(templates) + 1]) @ project", "as if there were a class token"),
    ("write_prompts", WRITTEN + "return after(x) @ project", "all tokens"),
    ("write_prompts", WRITTEN + "return x[:, :len(templates)] @ project", "last layer norm is missing"),
    ("write_prompts", WRITTEN + "return after(x[:, :len(templates)])", "matrix is missing"),
    ("write_prompts", WRITTEN + "return after(x[:, :len(templates)] @ project)", "before the last layer norm"),
    ("write_prompts", WRITTEN + "return F.linear(after(x[:, :len(templates)]), project)", "transposed"),
    (
        "write_prompts",
        WRITTEN.replace("before(", "(") + "return after(x[:, :len(templates)]) @ project",
        "first layer norm is missing",
    ),
    (
        "write_prompts",
        WRITTEN.replace("x = block(x)", "y = block(x)") + "return after(y[:, :len(templates)]) @ project",
        "Only your last block counts",
    ),
    ("another_picture", "return torch.arange(len(domain_index))", "its own partner"),
    ("another_picture", "return torch.arange(len(domain_index)).roll(-1)", "two things at once"),
    (
        "another_picture",
        "return torch.stack([(domain_index == d).nonzero()[0, 0] for d in domain_index])",
        "lends its prompts to all",
    ),
    (
        "another_picture",
        "out = torch.empty_like(domain_index)\nfor d in set(domain_index.tolist()):\n"
        "    n = int((domain_index == d).sum())\n    out[domain_index == d] = torch.arange(n).roll(-1)\nreturn out",
        "places within a domain",
    ),
    (
        "average_precision",
        "hits = hits[:k]\nranks = torch.where(hits)[0] + 1\n"
        "return sum((i + 1) / int(r) for i, r in enumerate(ranks)) / max(1, len(ranks))",
        "released code",
    ),
    (
        "average_precision",
        "ranks = torch.where(hits[:k])[0] + 1\n"
        "return sum((i + 1) / int(r) for i, r in enumerate(ranks)) / max(1, int(hits.sum()))",
        "all relevant pictures",
    ),
    (
        "average_precision",
        "ranks = torch.where(hits[:k])[0] + 1\nreturn sum((i + 1) / int(r) for i, r in enumerate(ranks)) / k",
        "divided by k",
    ),
    ("average_precision", "return hits[:k].float().mean().item()", "precision at k"),
    (
        "average_precision",
        "p = hits[:k].cumsum(0) / torch.arange(1, len(hits[:k]) + 1)\n"
        "return p[hits[:k]].sum() / hits.sum().clamp(max=k)",
        "should score 0",
    ),
    (
        "precision_at_recall",
        "p = hits.cumsum(0) / torch.arange(1, len(hits) + 1)\nr = hits.cumsum(0) / hits.sum()\n"
        "return torch.stack([p[r >= level - 1e-6][0] for level in levels])",
        "A later rank may be better",
    ),
    (
        "precision_at_recall",
        "p = hits.cumsum(0) / torch.arange(1, len(hits) + 1)\nr = hits.cumsum(0) / hits.sum()\n"
        "return torch.stack([p[r >= level - 1e-6].mean() for level in levels])",
        "wanted is the largest",
    ),
    (
        "precision_at_recall",
        "p = hits.cumsum(0) / torch.arange(1, len(hits) + 1)\nr = hits.cumsum(0) / hits.sum()\n"
        "return torch.stack([p[r >= level - 1e-6][-1] for level in levels])",
        "You took the last rank",
    ),
    ("chance_level", "return relevant / size", "chance level of Prec@k"),
    (
        "chance_level",
        "n = min(k, relevant)\nreturn relevant / size / n * sum(1 / r for r in range(1, min(k, size) + 1))",
        "forget the hits above it",
    ),
    (
        "chance_level",
        "p = relevant / size\nreturn p * sum((1 + (r - 1) * p) / r for r in range(1, min(k, size) + 1)) / min(k, relevant)",
        "for independent draws",
    ),
    (
        "chance_level",
        "p, others = relevant / size, (relevant - 1) / (size - 1)\n"
        "return p * sum((1 + (r - 1) * others) / r for r in range(1, k + 1)) / min(k, relevant)",
        "fewer pictures than k",
    ),
    ("bootstrap_interval", "return np.percentile((ours - theirs)[drawn].mean(1), [2.5, 97.5])", "as queries"),
    (
        "bootstrap_interval",
        "m = np.array([(ours - theirs)[labels == c].mean() for c in range(labels.max() + 1)])\n"
        "return np.percentile(m[drawn].mean(1), [2.5, 97.5])",
        "mean of the classes' means",
    ),
    (
        "bootstrap_interval",
        "d, n = np.bincount(labels, theirs - ours)[drawn].sum(1), np.bincount(labels)[drawn].sum(1)\n"
        "return np.percentile(d / n, [2.5, 97.5])",
        "wrong way round",
    ),
    (
        "bootstrap_interval",
        "d, n = np.bincount(labels, ours - theirs)[drawn].sum(1), np.bincount(labels)[drawn].sum(1)\n"
        "return np.percentile(d / n, [5, 95])",
        "90 %",
    ),
    (
        "bootstrap_interval",
        "return np.percentile(np.bincount(labels, ours - theirs)[drawn].sum(1) / len(ours), [2.5, 97.5])",
        "number of queries in the data",
    ),
    ("holm", "return np.minimum(1, len(p) * p)", "Bonferroni"),
    (
        "holm",
        "order = np.argsort(p)\nout = np.empty(len(p))\n"
        "out[order] = np.minimum(1, p[order] * np.arange(len(p), 0, -1))\nreturn out",
        "running maximum",
    ),
    ("holm", "return np.minimum(1, np.maximum.accumulate(np.sort(p) * np.arange(len(p), 0, -1)))", "are sorted"),
    (
        "intra_inter",
        "i = labels.unique(return_inverse=True)[1]\n"
        "x = features\nc = torch.stack([x[i == j].mean(0) for j in range(i.max() + 1)])\n"
        "p = c @ c.T\np = p[~torch.eye(len(c), dtype=torch.bool)]\n"
        "return (x * c[i]).sum(1).mean(), p[p > 0].mean()",
        "as they come",
    ),
    (
        "intra_inter",
        "i = labels.unique(return_inverse=True)[1]\n"
        "x = F.normalize(features)\nc = torch.stack([x[i == j].mean(0) for j in range(i.max() + 1)])\n"
        "c = F.normalize(c)\np = c @ c.T\np = p[~torch.eye(len(c), dtype=torch.bool)]\n"
        "return (x * c[i]).sum(1).mean(), p[p > 0].mean()",
        "A centre is the mean as it is",
    ),
    (
        "intra_inter",
        "i = labels.unique(return_inverse=True)[1]\n"
        "x = F.normalize(features)\nc = torch.stack([x[i == j].mean(0) for j in range(i.max() + 1)])\n"
        "p = c @ c.T\np = p[~torch.eye(len(c), dtype=torch.bool)]\n"
        "return (x * c[i]).sum(1).mean(), p.mean()",
        "Only the positive ones",
    ),
    (
        "intra_inter",
        "i = labels.unique(return_inverse=True)[1]\n"
        "x = F.normalize(features)\nc = torch.stack([x[i == j].mean(0) for j in range(i.max() + 1)])\n"
        "p = c @ c.T\np = p[~torch.eye(len(c), dtype=torch.bool)]\n"
        "return (x * c[i]).sum(1).mean(), p.relu().mean()",
        "Leave them out",
    ),
    (
        "intra_inter",
        "i = labels.unique(return_inverse=True)[1]\n"
        "x = F.normalize(features)\nc = torch.stack([x[i == j].mean(0) for j in range(i.max() + 1)])\n"
        "p = c @ c.T\np = p[~torch.eye(len(c), dtype=torch.bool)]\n"
        "return p[p > 0].mean(), (x * c[i]).sum(1).mean()",
        "other order",
    ),
    (
        "intra_inter",
        "i = labels.unique(return_inverse=True)[1]\n"
        "x = F.normalize(features)\nc = torch.stack([x[i == j].mean(0) for j in range(i.max() + 1)])\n"
        "q = c @ c.T\np = c @ c.T\np = p[~torch.eye(len(c), dtype=torch.bool)]\n"
        "return (x * c[i]).sum(1).mean(), q[q > 0].mean()",
        "with itself",
    ),
    (
        "purity_across",
        "x = F.normalize(features)\nc = (x @ x.T).fill_diagonal_(-9)\n"
        "return (labels[c.topk(k).indices] == labels[:, None]).float().mean(1)",
        "k nearest of all pictures. Those",
    ),
    (
        "purity_across",
        "x = F.normalize(features)\nn = (x @ x.T).fill_diagonal_(-9).topk(k).indices\n"
        "other = domains[n] != domains[:, None]\n"
        "return ((labels[n] == labels[:, None]) & other).sum(1) / other.sum(1).clamp(min=1)",
        "dropped those",
    ),
    (
        "purity_across",
        "c = features @ features.T\nc[domains[:, None] == domains] = -1e9\n"
        "return (labels[c.topk(k).indices] == labels[:, None]).float().mean(1)",
        "plain product",
    ),
    (
        "purity_across",
        "c = torch.cdist(features, features)\nc[domains[:, None] == domains] = 1e9\n"
        "return (labels[c.topk(k, largest=False).indices] == labels[:, None]).float().mean(1)",
        "distance between the features",
    ),
    (
        "purity_across",
        "x = F.normalize(features)\nc = x @ x.T\nc[domains[:, None] == domains] = -9\n"
        "return (labels[c.topk(k).indices] == labels[:, None]).float().mean()",
        "one share for each picture",
    ),
    (
        "neighbours_kept",
        "x = F.normalize(features)\na = (x @ x.T).topk(k).indices\n"
        "b = torch.cdist(points, points).topk(k, largest=False).indices\n"
        "return (b[:, :, None] == a[:, None]).any(2).float().mean()",
        "some agreement is sure",
    ),
    (
        "neighbours_kept",
        "def near(x):\n    x = F.normalize(x)\n    return (x @ x.T).fill_diagonal_(-9).topk(k).indices\n"
        "return (near(points)[:, :, None] == near(features)[:, None]).any(2).float().mean()",
        "by cosine. There",
    ),
    (
        "neighbours_kept",
        "def near(x):\n    return torch.cdist(x, x).fill_diagonal_(1e9).topk(k, largest=False).indices\n"
        "return (near(points)[:, :, None] == near(features)[:, None]).any(2).float().mean()",
        "in the space by distance",
    ),
    (
        "neighbours_kept",
        "a = (features @ features.T).fill_diagonal_(-1e9).topk(k).indices\n"
        "b = torch.cdist(points, points).fill_diagonal_(1e9).topk(k, largest=False).indices\n"
        "return (b[:, :, None] == a[:, None]).any(2).float().mean()",
        "plain product for the cosine",
    ),
    (
        "neighbours_kept",
        "x = F.normalize(features)\na = (x @ x.T).fill_diagonal_(-9).topk(k).indices\n"
        "b = torch.cdist(points, points).fill_diagonal_(-1).topk(k).indices\n"
        "return (b[:, :, None] == a[:, None]).any(2).float().mean()",
        "farthest on the map",
    ),
    (
        "neighbours_kept",
        "x = F.normalize(features)\na = (x @ x.T).fill_diagonal_(-9).topk(k).indices\n"
        "b = torch.cdist(points, points).fill_diagonal_(1e9).topk(k, largest=False).indices\n"
        "return (a == b).float().mean()",
        "rank by rank",
    ),
]

#: Exercise, a whole cell that is broken, words that the learner reads.
BROKEN = {
    "syntax error": (
        "own_units",
        "def own_units(domain_units, class_units, domain_index, class_index)\n    return 1",
        "Line 2 is not valid Python (expected ':'): `def own_units(",
    ),
    "exception in the cell": (
        "own_units",
        "import torch\ntorch.nothing",
        "Line 3 stops with an AttributeError: `torch.nothing`",
    ),
    "no function": ("own_units", "x = 1", "defines no function `own_units`: keep its first line"),
    "no function but a value": ("own_units", "own_units = 3", "is an int, not a function"),
    "function deleted": ("own_units", "del own_units", "is a NoneType, not a function"),
    "other arguments": ("write_prompts", "def write_prompts(tokens):\n    return tokens", "cannot be called"),
    "exception": (
        "stage1_sequence",
        "def stage1_sequence(class_token, positions, prompts, patches):\n"
        "    x = torch.cat([prompts, patches], 1)\n    return x + positions",
        "Line 4 stops with a RuntimeError: `return x + positions`",
    ),
    "no return": (
        "write_prompts",
        "def write_prompts(templates, units, patches, before, blocks, after, project):\n    templates @ project",
        "returns nothing",
    ),
    "wrong type": (
        "own_units",
        "def own_units(domain_units, class_units, domain_index, class_index):\n"
        "    return [domain_units[domain_index], class_units[class_index]]",
        "returns a list. Wanted is a tensor",
    ),
    "wrong type for a number": (
        "average_precision",
        "def average_precision(hits, k):\n    return '0.5'",
        "returns a str. Wanted is a single number",
    ),
    "wrong shape": (
        "precision_at_recall",
        "def precision_at_recall(hits, levels):\n    return torch.zeros(4, 7)",
        "has the shape [4, 7]; for these inputs it should be [11]: [L], one precision for each level",
    ),
    "wrong kind of number": (
        "query_rows",
        "def query_rows(domain_index, class_index, protocol, held_out, gallery, seen, unseen):\n"
        "    out, source = domain_index == held_out, (domain_index != held_out) & (domain_index != gallery)\n"
        "    classes = seen if protocol == 'UdCDR' else unseen\n"
        "    wanted = (source if protocol == 'UcCDR' else out) & torch.isin(class_index, classes)\n"
        "    return torch.where(wanted)[0].float()",
        "torch.float32; they should be torch.int64",
    ),
    "NaN": (
        "reverse_mask",
        "def reverse_mask(domain_units, class_units, domain_index, class_index):\n"
        "    return torch.cat([domain_units, class_units]).repeat(len(domain_index), 1, 1) / 0 * 0",
        "200 of 200 numbers of your result are NaN. Is 0 divided by 0",
    ),
    "change in place": (
        "reverse_mask",
        "def reverse_mask(domain_units, class_units, domain_index, class_index):\n"
        "    class_units[class_index] = 0\n    return class_units",
        "changes its input `class_units`",
    ),
    "other numbers": (
        "write_prompts",
        "def write_prompts(templates, units, patches, before, blocks, after, project):\n"
        + textwrap.indent(WRITTEN + "return 2 * after(x[:, :len(templates)]) @ project", "    "),
        "all numbers are 2 times what they should be",
    ),
}


def written(name, body):
    """A learner's cell: the exercise's first line and a body."""
    first = f"def {name}{inspect.signature(EXERCISES[name].right)}:"
    return f"{first}\n{textwrap.indent(body, '    ')}\n"


@pytest.fixture
def submit(capsys):
    """What the learner is told for a cell, as one line, and the namespace afterwards."""

    def submit(name, cell):
        namespace = {"torch": torch, "F": F, "np": np}
        exercises.run_cell(name, cell, namespace)
        return " ".join(capsys.readouterr().out.split()), namespace

    return submit


# ---- what the learner is told ------------------------------------------------------------------------------


@pytest.mark.parametrize("name, body, words", WRONG, ids=[f"{name}: {words}" for name, _, words in WRONG])
def test_wrong_answer_gets_its_own_message(submit, name, body, words):
    told, namespace = submit(name, written(name, body))
    assert told.startswith("Not yet. ") and words in told
    assert [words in " ".join(message.split()) for message in EXERCISES[name].mistakes].count(True) == 1
    assert namespace[name] is EXERCISES[name].right


@pytest.mark.parametrize("name", EXERCISES)
def test_every_exercise_knows_its_typical_mistakes(name):
    exercise = EXERCISES[name]
    assert len({words for other, _, words in WRONG if other == name}) >= 3
    for message, mistaken in exercise.mistakes.items():
        assert exercises.judge(exercise, mistaken) == (False, message)


@pytest.mark.parametrize("name, cell, words", BROKEN.values(), ids=BROKEN)
def test_broken_answer_is_explained_without_traceback(submit, name, cell, words):
    told, namespace = submit(name, cell)
    assert words in told and "Traceback" not in told
    assert namespace[name] is EXERCISES[name].right


def test_an_endless_loop_is_ended_and_named(submit, monkeypatch):
    monkeypatch.setattr(exercises, "SECONDS", 1)
    told, namespace = submit("write_prompts", written("write_prompts", "while True:\n    pass"))
    assert "Line 3 stops with a TimeoutError" in told or "Line 4 stops with a TimeoutError" in told
    assert "did not end within 1 seconds. Does the loop ever reach its end?" in told
    assert namespace["write_prompts"] is EXERCISES["write_prompts"].right


@pytest.mark.parametrize("body", ["...", '"What it returns."\n...', "pass", "return ...", "raise NotImplementedError"])
def test_empty_answer_is_not_solved(submit, body):
    told, namespace = submit("write_prompts", written("write_prompts", body))
    assert told == exercises.NOT_SOLVED
    assert namespace["write_prompts"] is EXERCISES["write_prompts"].right


def test_corner_that_fails_beside_a_mistake_does_not_hide_it(submit):
    told, _ = submit(
        "average_precision",
        written(
            "average_precision",
            (
                "hits = hits[:k]\nranks = torch.where(hits)[0] + 1\n"
                "return sum((i + 1) / int(r) for i, r in enumerate(ranks)) / len(ranks)"
            ),
        ),
    )  # 0 / 0 without a hit
    assert "released code" in told


def test_mistake_that_nobody_thought_of_is_told_in_numbers(submit):
    told, _ = submit("average_precision", written("average_precision", "return hits[:k].float().std().item()"))
    assert "The shape is right, the numbers are not. yours" in told


def test_unknown_exercise_names_the_known(submit):
    told, _ = submit("own_unit", "x = 1")
    assert "There is no exercise called 'own_unit'" in told and "own_units" in told
    with pytest.raises(UserError, match="own_units"):
        exercises.check("own_unit", print)


def test_check_returns_the_function_to_go_on_with(capsys):
    right, answer = EXERCISES["another_picture"].right, lambda domain_index: next_of_domain(domain_index, step=-1)
    assert exercises.check("another_picture", answer) is answer
    assert exercises.check("another_picture", lambda domain_index: domain_index) is right
    out = capsys.readouterr().out
    assert out.startswith("Right. ") and "Not yet. " in out


#: Exercise, the body of an answer that was once taken for right, words that the learner reads.
ONCE_RIGHT = {
    "units of the last index by one-hot": (
        "own_units",
        "d, y = F.one_hot(domain_index).float() @ domain_units, F.one_hot(class_index).float() @ class_units\n"
        "return torch.stack([d, y], 1)",
        "stops with a RuntimeError",
    ),
    "mask of the last index by one-hot": (
        "reverse_mask",
        "d = domain_units * (1 - F.one_hot(domain_index))[..., None]\n"
        "y = class_units * (1 - F.one_hot(class_index))[..., None]\nreturn torch.cat([d, y], 1)",
        "stops with a RuntimeError",
    ),
    "three of each": (
        "balanced_batch",
        "return torch.cat([order[domain_index[order] == i][:3] for i in domain_index.unique()])",
        "three pictures of each domain",
    ),
    "mean over classes": (
        "intra_inter",
        "i = labels.unique(return_inverse=True)[1]\nx = F.normalize(features)\n"
        "c = torch.stack([x[i == j].mean(0) for j in range(i.max() + 1)])\n"
        "p = (c @ c.T)[~torch.eye(len(c), dtype=torch.bool)]\nown = (x * c[i]).sum(1)\n"
        "return torch.stack([own[i == j].mean() for j in range(len(c))]).mean(), p[p > 0].mean()",
        "mean over pictures, so large classes count more",
    ),
    "0 within the domain": (
        "purity_across",
        "x = F.normalize(features)\nc = x @ x.T\nc[domains[:, None] == domains] = 0\n"
        "n = c.sort(dim=1, descending=True, stable=True).indices[:, :k]\n"
        "return (labels[n] == labels[:, None]).float().mean(1)",
        "others can be below 0",
    ),
    "0 on the diagonal of the space": (
        "neighbours_kept",
        "x = F.normalize(features)\na = (x @ x.T).fill_diagonal_(0).topk(k).indices\n"
        "b = torch.cdist(points, points).fill_diagonal_(1e9).topk(k, largest=False).indices\n"
        "return (b[:, :, None] == a[:, None]).any(2).float().mean()",
        "others can be below 0",
    ),
    "units detached": (
        "own_units",
        "return torch.stack([domain_units.detach()[domain_index], class_units[class_index]], 1)",
        "no gradient reaches `domain_units`",
    ),
    "features detached": (
        "class_loss",
        "c = F.normalize(features.detach()) @ F.normalize(texts).T\n"
        "return F.cross_entropy(c / temperature, class_index)",
        "no gradient reaches `features`",
    ),
    "lengths detached": (
        "class_loss",
        "c = (features / features.detach().norm(dim=1, keepdim=True)) @ F.normalize(texts).T\n"
        "return F.cross_entropy(c / temperature, class_index)",
        "the gradient of `features` is not",
    ),
    "nothing trains": (
        "write_prompts",
        WRITTEN + "with torch.no_grad():\n    return after(x[:, :len(templates)]) @ project",
        "no gradient reaches `templates`",
    ),
}


@pytest.mark.parametrize("name, body, words", ONCE_RIGHT.values(), ids=ONCE_RIGHT)
def test_an_answer_that_only_looks_right_is_not(submit, name, body, words):
    told, namespace = submit(name, written(name, body))
    assert told.startswith("Not yet. ") and words in told
    assert namespace[name] is EXERCISES[name].right


@pytest.mark.parametrize(
    "body",
    [
        "return np.sort(m)[int(0.025 * len(m))], np.sort(m)[int(0.975 * len(m))]",
        "return np.sort(m)[int(0.025 * len(m)) - 1], np.sort(m)[int(0.975 * len(m)) - 1]",
        "return np.percentile(m, [2.5, 97.5], method='lower')",
        "return np.percentile(m, [2.5, 97.5], method='higher')",
    ],
)
def test_any_rule_for_percentiles_is_right(submit, body):
    means = (
        "sums, counts = np.bincount(labels, ours - theirs), np.bincount(labels)\n"
        "m = sums[drawn].sum(1) / counts[drawn].sum(1)\n"
    )
    assert submit("bootstrap_interval", written("bootstrap_interval", means + body))[0].startswith("Right. ")


#: Body of an answer to `reverse_mask`, words that name what is wrong with its numbers.
RELATIONS = {
    "permuted": ("return torch.cat([u[:, 1:], u[:, :1]], 1)", "stand in other places"),
    "sign": ("return -u", "have the wrong sign"),
    "factor": ("return u / 2", "are 0.5 times what they should be"),
    "offset": ("return u + 1", "off by 1."),
    "first picture": ("u[0] = u[0] ** 2\nreturn u", "Of 4 entries along the first axis 3 are right; wrong are 0."),
    "more axes": ("return u[None]", "an axis of length 1 is too many or missing"),
    "other axes": ("return u.transpose(0, 1)", "the axes are in another order"),
    "infinity": ("return u.masked_fill(u == 0, -torch.inf)", "infinity where it should be left out or be 0"),
    "recursion": ("return reverse_mask(domain_units, class_units, domain_index, class_index)", "calls itself"),
}


@pytest.mark.parametrize("body, words", RELATIONS.values(), ids=RELATIONS)
def test_a_mistake_that_nobody_thought_of_is_named_by_what_it_does(submit, body, words):
    right = (
        "u = torch.cat([domain_units, class_units]).repeat(len(domain_index), 1, 1)\n"
        "u[range(len(u)), domain_index] = 0\nu[range(len(u)), len(domain_units) + class_index] = 0\n"
    )
    assert words in submit("reverse_mask", written("reverse_mask", right + body))[0]


# ---- right answers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXERCISES)
def test_right_answer_is_right_within_a_second(name):
    exercise = EXERCISES[name]
    begin = time.perf_counter()
    assert exercises.judge(exercise, lambda *args: exercise.right(*args)) == (True, f"Right. {exercise.good_for}")
    assert time.perf_counter() - begin < 1


def inputs_of(layer, call):
    """What `layer` is given when `call()` runs."""
    given = []
    hook = layer.register_forward_hook(lambda layer, inputs, _: given.append(inputs[0]))
    with torch.no_grad():
        call()
    hook.remove()
    return given[0]


def test_sequence_of_stage_1_is_the_packages():
    clip, images, prompts = load_clip("mini"), torch.randn(2, 3, 56, 56), torch.randn(2, 2, 192)
    visual = clip.model.visual
    entered = inputs_of(visual.ln_pre, lambda: clip.encode_image(images, prompts))
    patches = visual.conv1(images).flatten(2).transpose(1, 2)
    built = EXERCISES["stage1_sequence"].right(visual.class_embedding, visual.positional_embedding, prompts, patches)
    torch.testing.assert_close(built, entered)


@pytest.mark.parametrize("prompts", [1, 3])
def test_prompts_that_are_written_are_the_packages(prompts):
    simulator = PromptSimulator(16, 8, 64, 32, layers=2, prompts=prompts)
    images, units, patches = torch.randn(2, 3, 16, 16), torch.randn(2, 7, 64), torch.randn(2, 4, 64)
    templates = torch.cat([simulator.domain_template, simulator.semantic_template])
    body = simulator.body
    written = EXERCISES["write_prompts"].right(
        templates, units, patches, body.ln_pre, body.transformer.resblocks, body.ln_post, simulator.project
    )
    torch.testing.assert_close(written, simulator(images, units, patches), atol=1e-5, rtol=1e-4)


def test_another_picture_is_any_pairing_within_the_domains():
    domain_index = torch.randint(3, (30,), generator=torch.Generator().manual_seed(0))
    for seed in (0, 1):
        assert is_control(partners(domain_index, same_domain=True, seed=seed), domain_index)
    assert not is_control(partners(domain_index, same_domain=False, seed=0), domain_index)
    assert not is_control(torch.arange(30), domain_index)


def test_balanced_batch_is_the_packages():
    domain_index = torch.randint(3, (60,), generator=torch.Generator().manual_seed(0))
    data = ImageDomains(None, ("a", "b", "c"), ("x",), [], domain_index, torch.zeros(60, dtype=torch.long), [])
    first = next(iter(BalancedSampler(data, torch.arange(60), 12, torch.Generator().manual_seed(1))))
    generator = torch.Generator().manual_seed(1)
    pools = [torch.where(domain_index == i)[0] for i in range(3)]
    order = torch.cat([pool[torch.randperm(len(pool), generator=generator)] for pool in pools])
    assert EXERCISES["balanced_batch"].right(domain_index, order, 4).tolist() == first


def test_chance_level_is_what_random_orders_give():
    generator = torch.Generator().manual_seed(0)
    for relevant, size, k in ((6, 40, 20), (30, 50, 10), (1, 15, 200)):
        hits = torch.stack([torch.randperm(size, generator=generator) < relevant for _ in range(4000)])
        measured = metrics._block_metrics(hits, hits.sum(1), size, (k,), "relevant")[f"AP@{k}"].mean()
        assert EXERCISES["chance_level"].right(relevant, size, k) == pytest.approx(float(measured), rel=0.05)


def test_precision_at_recall_is_never_below_the_curve():
    hits = torch.tensor([True, False, True, True, False, False])
    right = EXERCISES["precision_at_recall"].right(hits, torch.tensor([0.0, 1 / 3, 2 / 3, 1.0]))
    torch.testing.assert_close(right, torch.tensor([1, 1, 3 / 4, 3 / 4]))


def test_bootstrap_interval_is_the_packages():
    labels = torch.randint(9, (80,), generator=torch.Generator().manual_seed(0))
    values = torch.randn(80, generator=torch.Generator().manual_seed(1)) + labels
    found = metrics.class_bootstrap(values, labels)
    drawn = np.random.default_rng(0).integers(9, size=(10_000, 9))
    low, high = EXERCISES["bootstrap_interval"].right(values.numpy(), np.zeros(80), labels.numpy(), drawn)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.1)


def test_neighbours_kept_is_what_a_loop_counts():
    features, points = torch.randn(15, 4, generator=torch.Generator().manual_seed(0)), torch.randn(15, 2)
    kept = 0
    for i in range(15):
        others = [j for j in range(15) if j != i]
        in_space = sorted(others, key=lambda j: -F.cosine_similarity(features[i], features[j], dim=0).item())[:4]
        on_map = sorted(others, key=lambda j: (points[i] - points[j]).norm().item())[:4]
        kept += len({*in_space} & {*on_map})
    assert EXERCISES["neighbours_kept"].right(features, points, 4) == pytest.approx(kept / 60)


def test_purity_across_is_what_a_loop_counts():
    generator = torch.Generator().manual_seed(0)
    features, (labels, domains) = (
        torch.randn(15, 4, generator=generator),
        torch.randint(3, (2, 15), generator=generator),
    )
    for i, share in enumerate(EXERCISES["purity_across"].right(features, labels, domains, 4).tolist()):
        others = [j for j in range(15) if domains[j] != domains[i]]
        nearest = sorted(others, key=lambda j: -F.cosine_similarity(features[i], features[j], dim=0).item())[:4]
        assert share == pytest.approx(sum(int(labels[j] == labels[i]) for j in nearest) / 4)


# ---- the notebooks -----------------------------------------------------------------------------------------


def test_every_exercise_stands_in_one_notebook():
    assert [found.name for _, found in IN_NOTEBOOKS] == list(EXERCISES)
    for path in NOTEBOOKS:
        assert 2 <= len(notebook_exercises(path)) <= 4


@pytest.fixture
def shell(tmp_path, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    shell = InteractiveShell()
    shell.run_cell("%load_ext prosutils.teaching.exercises")
    return shell


@pytest.mark.parametrize("path, found", IN_NOTEBOOKS, ids=[found.name for _, found in IN_NOTEBOOKS])
def test_stub_and_answer_of_the_notebook(shell, capsys, path, found):
    imports = [line for line in found.imports if line.startswith(("import ", "from "))]
    shell.run_cell("\n".join(imports))
    capsys.readouterr()
    assert shell.run_cell(found.stub).success
    assert capsys.readouterr().out.strip() == exercises.NOT_SOLVED
    assert shell.user_ns[found.name] is EXERCISES[found.name].right

    shell.run_cell(found.solved)
    assert capsys.readouterr().out.startswith("Right. ")
    assert shell.user_ns[found.name] is not EXERCISES[found.name].right
    signature = inspect.signature(EXERCISES[found.name].right)
    assert signature == inspect.signature(shell.user_ns[found.name]), "the answer takes other arguments"
    assert f"def {found.name}{signature}:" in found.stub, "the stub takes other arguments"
    assert found.tags == ["nbval-check-output"]
