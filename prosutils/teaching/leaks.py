"""The investigation of notebook 01: four small splits, of which one leaks in a way that names and rows do not show."""

import textwrap
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ..domains import ImageDomains
from .exercises import is_stub

SIDE, COPIES, QUARTETS = 32, 3, 8  # pixels; altered copies in each split; quartets that a check is tried on


@dataclass(frozen=True)
class Pictures:
    """n pictures of a small split, and what their folders say about them."""

    images: torch.Tensor  # [n, 3, 32, 32], colours from 0 to 1
    domains: list[str]
    classes: list[str]


@dataclass(frozen=True)
class SmallSplit:
    train: Pictures
    test: Pictures


def four_splits(data: ImageDomains, seed: int = 0) -> list[SmallSplit]:
    """Four small splits of a laid-out PictoNet. One of them leaks; the same seed gives the same four."""
    return _quartet(data, seed)[0]


def judge_leak_check(check: Callable[[list[SmallSplit]], int], data: ImageDomains) -> bool:
    """Tries a check on new quartets and says in how many it names the split that leaks. -> whether in all of them."""
    if is_stub(check):
        print("Not solved yet. This is an investigation: the notebook goes on without it.")
        return False
    found = 0
    for seed in range(1, QUARTETS + 1):
        splits, leaking = _quartet(data, seed)
        answer = check(splits)
        if answer is None or answer is Ellipsis:
            print("Your check returns no answer: return 0, 1, 2 or 3.")
            return False
        found += int(answer) == leaking
    told = (
        f"Your check names the leaking split in {found} of {QUARTETS} new quartets; guessing would in {QUARTETS // 4}."
    )
    if found == QUARTETS:
        told += " Right. Now write down in one sentence what leaked, and how you would keep it out of a data set."
    else:
        told += (
            " Not yet. Look at a quartet in which it fails: what does it take for a leak, and what does it overlook?"
        )
    print(textwrap.fill(told, 110))
    return found == QUARTETS


# The answer is below. It is more fun to find it without reading on.


def _quartet(data: ImageDomains, seed: int):
    """(four splits, the index of the one that leaks)."""
    rng = np.random.default_rng([7, seed])
    leaking = int(rng.integers(4))
    return [_small_split(data, rng, leaks=i == leaking) for i in range(4)], leaking


def _small_split(data: ImageDomains, rng: np.random.Generator, leaks: bool):
    """A split without a fault by rows, classes and domains, in which some training pictures are altered copies."""
    emoji = data.domains.index("emoji")
    held_out = int(rng.choice([i for i in range(len(data.domains)) if i != emoji]))
    classes = torch.from_numpy(rng.permutation(len(data.classes)))
    domain, seen, unseen = data.domain_index, classes[:12], classes[12:17]
    in_test = torch.isin(data.class_index, unseen) & ((domain == held_out) | (domain == emoji))
    in_train = torch.isin(data.class_index, seen) & (domain != held_out)
    train, test = (_pictures(data, _some(mask, n, rng)) for mask, n in ((in_train, 36), (in_test, 20)))
    places = rng.permutation(len(train.domains))
    copied = rng.permutation(len(test.domains))[:COPIES] if leaks else places[COPIES : 2 * COPIES]
    source = test if leaks else train
    for place, original in zip(places[:COPIES].tolist(), copied.tolist()):
        train.images[place] = _altered(source.images[original], rng)
    return SmallSplit(train, test)


def _some(mask: torch.Tensor, count: int, rng: np.random.Generator):
    rows = torch.nonzero(mask).squeeze(1)
    return rows[torch.from_numpy(rng.permutation(len(rows))[:count])]


def _pictures(data: ImageDomains, rows: torch.Tensor):
    images = [np.asarray(data.load(int(row)).resize((SIDE, SIDE)), np.float32) / 255 for row in rows]
    domains = [data.domains[i] for i in data.domain_index[rows]]
    classes = [data.classes[i] for i in data.class_index[rows]]
    return Pictures(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), domains, classes)


def _altered(image: torch.Tensor, rng: np.random.Generator):
    """The picture turned by a quarter to the left or right, mirrored or not, paler and a little noisy: no pixel is
    equal, and yet it is the same drawing."""
    turned = torch.rot90(image, int(rng.choice([1, 3])), (1, 2))
    turned = turned.flip(2) if rng.random() < 0.5 else turned
    noise = torch.from_numpy(rng.normal(0, 0.02, image.shape).astype(np.float32))
    return (0.3 + 0.65 * turned + noise).clamp(0, 1)
