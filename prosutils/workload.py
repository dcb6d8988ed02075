"""How much a run of ProS computes, from its images or from a benchmark's published sizes: classes, steps, pictures."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from . import pictonet
from .config import Config
from .domains import BalancedSampler, ImageDomains
from .experiment import benchmark_splits, drawn_splits, fit_batches, open_images
from .published import Benchmark, load_benchmark
from .splits import UNSEEN_SHARE, VAL_SHARE, Split

#: What a run computes: training steps, and the features of validation and test images.
WORK = ("stage 1", "stage 2", "features")
#: Bytes of a picture in the published archives: DomainNet's 18.4 GB hold 596,010 pictures.
BYTES_PER_PICTURE = 31_000


@dataclass(frozen=True)
class Workload:
    """What a run computes: one held-out domain and one seed."""

    config: Config
    classes: Sequence[str]  # seen
    domains: Sequence[str]  # that train
    steps: dict[str, int]  # of an epoch, by stage
    validation: int  # images that are embedded after every epoch of stage 2
    test: int  # images of all queries and galleries
    images: int  # of the whole data set
    gigabytes: float  # that they take on disk, archives included
    counted: bool  # from the images themselves; else from published sizes

    def pictures(self) -> dict[str, int]:
        """How many pictures each part of WORK reads."""
        one, two = self.config.stage1, self.config.stage2
        return {
            "stage 1": one.epochs * self.steps["stage 1"] * one.batch_size,
            "stage 2": two.epochs * self.steps["stage 2"] * two.batch_size,
            "features": two.epochs * self.validation + self.test,
        }

    def batch(self, what: str) -> int:
        """Images of a step; 1 for features, which are counted one by one."""
        return {"stage 1": self.config.stage1.batch_size, "stage 2": self.config.stage2.batch_size}.get(what, 1)


def workload(config: Config, folder: str | Path | None = None) -> Workload:
    """The `Workload` of a configuration on a `domain/class/image` folder; without one by PictoNet or published sizes.

    The preset pacs, for any folder, is counted as PACS where no folder is given. Raises UserError for a folder that does
    not fit.
    """
    if folder is None and config.dataset != "pictonet":
        return published_workload(config, load_benchmark("pacs" if config.dataset == "folder" else config.dataset))
    if folder is None:
        data, benchmark, size = drawings(config), None, drawn_bytes(config) * len(pictonet.manifest())
    else:
        data, benchmark = open_images(config, folder, "skip", progress=False)
        size = sum(path.stat().st_size for path in data.paths)
    splits = benchmark_splits(config, data, benchmark) if benchmark else drawn_splits(config, data)
    split = splits[0]
    config = fit_batches(config, len(split.train_domains))
    return Workload(
        config,
        split.seen_classes,
        split.train_domains,
        {
            "stage 1": epoch_steps(split, config.stage1.batch_size),
            "stage 2": epoch_steps(split, config.stage2.batch_size),
        },
        len(split.val_query) + len(split.val_gallery),
        len(torch.cat([rows for split in splits for rows in (split.query, split.gallery)]).unique()),
        len(data),
        size / 1e9,
        counted=True,
    )


def epoch_steps(split: Split, batch: int) -> int:
    """Steps of an epoch on a split's training images."""
    return len(BalancedSampler(split.data, split.train, batch, torch.Generator()))


def drawings(config: Config) -> ImageDomains:
    """PictoNet as it would be laid out, without a file."""
    far = dict(zip(pictonet.PICTONET_DOMAINS, pictonet.tier_domains(config.tier), strict=True))
    names = sorted((far[r["domain"]], r["class"], f"{r['set']}_{r['icon']}.png") for r in pictonet.manifest())
    domain_index, domains = pd.factorize(np.array([name[0] for name in names]), sort=True)
    class_index, classes = pd.factorize(np.array([name[1] for name in names]), sort=True)
    return ImageDomains(
        Path(),
        tuple(domains.tolist()),
        tuple(classes.tolist()),
        [Path(*name) for name in names],
        torch.from_numpy(domain_index),
        torch.from_numpy(class_index),
        [],
    )


def drawn_bytes(config: Config) -> float:
    """Bytes of a laid-out drawing, the mean of a few."""
    records = pictonet.manifest()[:: len(pictonet.manifest()) // 20]
    return float(np.mean([len(encoded(drawing(config, record), "PNG")) for record in records]))


def drawing(config: Config, record: dict) -> Image.Image:
    """A drawing of PictoNet as a configuration wants it."""
    return pictonet.load_drawing(record, config.pixels, config.tier, config.strength)


def published_workload(config: Config, benchmark: Benchmark) -> Workload:
    """The `Workload` of a benchmark that is not at hand, from its published sizes.

    Where a size is not published, images are taken to be spread evenly over the classes.
    """
    parts = benchmark.classes
    if "unsplit" in parts:  # its classes are drawn
        names, last = parts["unsplit"], round(len(parts["unsplit"]) * (1 - UNSEEN_SHARE))
        parts = dict(train=names[: round(last * (1 - VAL_SHARE))], val=names[:last], test=names[last:])
        parts["val"] = parts["val"][len(parts["train"]) :]
    validates = config.training_classes == "train"
    seen = parts["train"] if validates else parts["train"] + parts["val"]
    known, total = len(parts["train"] + parts["val"]), len(sum(parts.values(), []))
    domains = [name for name in benchmark.images if name != config.unseen_domain]
    config = fit_batches(config, len(domains))
    tested = {name: unseen_images(benchmark, name, 1 - known / total) for name in benchmark.images}
    least = min((benchmark.images[name] - tested[name]) * len(seen) // known for name in domains)
    validation = sum(benchmark.images[name] for name in domains) * (known - len(seen)) // total
    return Workload(
        config,
        seen,
        domains,
        {
            "stage 1": max(1, least // (config.stage1.batch_size // len(domains))),
            "stage 2": max(1, least // (config.stage2.batch_size // len(domains))),
        },
        validation if validates else 0,
        test_images(benchmark, str(config.unseen_domain).lower(), tested),
        sum(benchmark.images.values()),
        2 * BYTES_PER_PICTURE * sum(benchmark.images.values()) / 1e9,
        counted=False,
    )


def unseen_images(benchmark: Benchmark, domain: str, share: float) -> int:
    """Images of a domain's unseen classes: published as queries or gallery of a protocol, or a share of the domain."""
    for held_out, sizes in benchmark.sizes.items():
        for name, (queries, gallery) in sizes.items():
            asks = benchmark.query_domain[held_out] if name.startswith("UcCDR") else held_out
            if name.endswith("unseen") and domain in (asks, benchmark.gallery_domain):
                number = gallery if domain == benchmark.gallery_domain else queries
                if number is not None:
                    return number
    return round(benchmark.images[domain] * share)


def test_images(benchmark: Benchmark, held_out: str, tested: dict[str, int]) -> int:
    """Images that are embedded to measure every protocol; at most, where two protocols share some."""
    sizes = benchmark.sizes.get(held_out, {})
    if not sizes or None in sum(sizes.values(), []):
        return sum(tested.values())
    galleries = {"UCDR mixed", "UdCDR seen"} if "UCDR mixed" in sizes else set(sizes)
    queries = sum(number[0] for name, number in sizes.items() if name != "UCDR mixed")
    return queries + sum(sizes[name][1] for name in galleries)


def encoded(image: Image.Image, kind: str) -> bytes:
    """A picture as the bytes of a file."""
    with io.BytesIO() as file:
        image.save(file, kind, quality=90)
        return file.getvalue()
