"""The published benchmarks: fixed classes, the roles of their domains, and the sizes that a complete copy has.

    benchmark = load_benchmark("domainnet")
    data = benchmark.open("DomainNet")
    print(benchmark.faults(data.counts()))                          # missing domains, classes, images
    splits = benchmark.splits(data, "sketch", "train+val")          # UCDR unseen and mixed, UcCDR, UdCDR
    print(benchmark.compare_sizes(splits))                          # found beside published

DomainNet's 55 validation classes lie inside its 300 training classes. A rate or a number of epochs is therefore chosen
in a run on the other 245 (training_classes="train"), and then fixed for a run on all 300 ("train+val"), which has
nothing left to validate on and keeps its last epoch:

    python -m prosutils train --preset domainnet --data DomainNet --set training_classes=train
    python -m prosutils train --preset domainnet --data DomainNet --set stage2.epochs=<the best epoch of that run>
"""

import functools
import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import pandas as pd

from .config import Switches
from .domains import ImageDomains
from .files import UserError
from .splits import Sample, Split, protocol_splits

#: A domain with fewer of its published images is incomplete: public copies differ by less (users of Sketchy
#: and TU-Berlin count 75,481 and 204,070 where papers have 75,471 and 204,489).
COMPLETE = 0.99


def benchmark_names() -> list[str]:
    """Names that `load_benchmark` knows."""
    files = resources.files("prosutils").joinpath("data/splits").iterdir()
    return sorted(file.name.removesuffix(".json") for file in files if file.name.endswith(".json"))


@functools.cache
def load_benchmark(name: str) -> "Benchmark":
    """The `Benchmark` of that name. Raises UserError for an unknown one, listing the known."""
    if name not in benchmark_names():
        raise UserError(f"Unknown benchmark {name!r}. Known: {', '.join(benchmark_names())}.")
    text = resources.files("prosutils").joinpath(f"data/splits/{name}.json").read_text(encoding="utf-8")
    return Benchmark(name, **json.loads(text))


def class_key(name: str):
    """What spellings of a class have in common: "hot-air balloon" and "Hot_Air_Balloon" -> "hotairballoon"."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def listing(names: Sequence[str], most: int = 10):
    """The first names and how many more."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


@dataclass(frozen=True, eq=False)
class Benchmark:
    """A published benchmark, as `data/splits/<name>.json` has it."""

    name: str
    source: str
    images: dict[str, int]  # domain: number of images
    classes: dict[str, list[str]]  # train, val, test, in the order of the released code; or "unsplit"
    gallery_domain: str
    query_domain: dict[str, str] = field(default_factory=dict)  # held-out domain ("none"): UcCDR's query domain
    aliases: dict[str, str] = field(default_factory=dict)  # class_key of a misspelt folder: its class
    udcdr: dict | None = None  # classes: how many of the first; share of their images; share_of a domain
    sizes: dict = field(default_factory=dict)  # held-out domain: {protocol: [queries, gallery]}
    note: str = ""  # what a reader has to know before comparing numbers; `splits` warns of it

    @functools.cached_property
    def spelling(self):
        """class_key: the class as the splits spell it."""
        return {class_key(name): name for names in self.classes.values() for name in names} | self.aliases

    def class_name(self, folder: str):
        """The class of a folder's name, however it is spelt ("T-shirt", "tshirt"); unknown names stay as they are."""
        return self.spelling.get(class_key(folder), folder)

    def open(self, root: str | Path, on_error: str = "skip"):
        """The benchmark's domains in a folder, an `ImageDomains` with the classes spelt as in the splits."""
        return ImageDomains.from_folder(root, on_error, self.class_name, tuple(self.images))

    def faults(self, counts: pd.DataFrame):
        """What a folder lacks, one sentence each; none for a complete one.

        counts: DataFrame class x domain with numbers of images, of `ImageDomains.counts` or `count_images`.
        """
        wanted = [name for names in self.classes.values() for name in names]
        found = []
        for domain, published in self.images.items():
            if domain not in counts:
                found.append(f"Domain {domain} is missing ({published:,} images of {len(wanted)} classes).")
                continue
            missing = [name for name in wanted if not counts[domain].get(name, 0)]
            if missing:
                found.append(f"Domain {domain} lacks {len(missing)} of {len(wanted)} classes: {listing(missing)}.")
            if counts[domain].sum() < COMPLETE * published:
                found.append(f"Domain {domain} holds {counts[domain].sum():,} of {published:,} images.")
        return found

    def surplus(self, counts: pd.DataFrame):
        """What a folder holds beside the benchmark, one sentence each; it is not used."""
        wanted = [name for names in self.classes.values() for name in names]
        unknown = {
            "Domains": [name for name in counts.columns if name not in self.images],
            "Classes": [name for name in counts.index if name not in wanted],
        }
        return [
            f"{kind} that {self.name} does not have: {listing(names)}. They are not used."
            for kind, names in unknown.items()
            if names
        ]

    def splits(
        self,
        data: ImageDomains,
        unseen_domain: str | None,
        training_classes: str = "train+val",
        seed: int = 0,
        switches: Switches | None = None,
    ) -> list[Split]:
        """The splits of the published protocols on a folder, one `Split` each; see `protocol_splits`.

        training_classes: "train+val" (published) or "train", which leaves the validation classes to choose by.
        Classes that the folder lacks are left out. Warns of `note`. Raises UserError for a domain that is not held out
        here.
        """
        if self.note:
            warnings.warn(f"{self.name}: {self.note}", stacklevel=2)
        if not self.query_domain:
            raise UserError(f"{self.name} has no published splits: set dataset=folder, which draws the classes.")
        if str(unseen_domain).lower() not in self.query_domain:
            raise UserError(f"{self.name} holds out one of {', '.join(self.query_domain)}, not {unseen_domain}.")
        train, val, test = (
            [name for name in self.classes[part] if name in data.classes] for part in ("train", "val", "test")
        )
        if training_classes == "train+val":
            train, val = train + val, []
        if missing := [name for name in self.images if name not in data.domains]:
            raise UserError(
                f"{data.root} lacks {len(missing)} of the {len(self.images)} domains of {self.name}: "
                f"{', '.join(f'{name} ({self.images[name]:,} images)' for name in missing)}. It has "
                f"{', '.join(data.domains)}."
            )
        return protocol_splits(
            data,
            unseen_domain,
            unseen_classes=test,
            val_classes=val,
            seen_classes=train,
            seed=seed,
            gallery_domain=self.gallery_domain,
            switches=switches,
            query_domain=self.query_domain[str(unseen_domain).lower()],
            udcdr_sample=self.udcdr_sample(unseen_domain, train),
        )

    def udcdr_sample(self, unseen_domain: str | None, seen_classes: Sequence[str]):
        """The images that UdCDR is measured on, a `Sample`; None where nothing is published."""
        if self.udcdr is None:
            return None
        share = self.udcdr["share_of"].get(unseen_domain, self.udcdr["share"])
        first = self.classes["train"][: self.udcdr["classes"]]
        return Sample(tuple(name for name in first if name in seen_classes), share)

    def compare_sizes(self, splits: Sequence[Split]):
        """DataFrame with one row per split: queries and gallery images, found and published (where they are)."""
        rows = []
        for split in splits:
            kind = f"{split.protocol} {split.gallery_kind}"
            published = self.sizes.get(str(split.unseen_domain).lower(), {}).get(kind, [None, None])
            rows.append(
                {
                    "protocol": kind,
                    "queries": len(split.query),
                    "published queries": published[0],
                    "gallery": len(split.gallery),
                    "published gallery": published[1],
                }
            )
        return pd.DataFrame(rows).set_index("protocol").astype("Int64")
