"""The protocols of universal cross-domain retrieval: what of a folder is trained on, validated on and tested on."""

import hashlib
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from . import pictonet
from .config import Switches
from .domains import ImageDomains, usual_gallery
from .files import UserError
from .names import unknown_names

PROTOCOLS = ("UCDR", "UcCDR", "UdCDR")
GALLERIES = ("unseen", "mixed")
#: Share of the classes that is unseen, and of the rest that validates: as in DomainNet, 245 / 55 / 45.
UNSEEN_SHARE, VAL_SHARE = 45 / 345, 55 / 300


@dataclass(frozen=True, eq=False)
class Split:
    """What is trained on, validated on and tested on: row numbers into `data`, each [m] and ascending."""

    data: ImageDomains
    protocol: str  # UCDR, UcCDR or UdCDR
    seed: int
    unseen_domain: str | None  # held out of training; None: every domain trains (UcCDR only)
    train_domains: tuple[str, ...]
    query_domains: tuple[str, ...]
    gallery_domain: str
    gallery_kind: str  # "unseen" or "mixed" classes; "seen" for UdCDR
    seen_classes: tuple[str, ...]
    val_classes: tuple[str, ...]
    unseen_classes: tuple[str, ...]
    train: torch.Tensor
    val_query: torch.Tensor
    val_gallery: torch.Tensor
    query: torch.Tensor
    gallery: torch.Tensor

    def table(self) -> pd.DataFrame:
        """DataFrame with one row per part: its domains and its numbers of classes and images."""
        names = ("train", "val_query", "val_gallery", "query", "gallery")
        parts = {name: getattr(self, name) for name in names}
        return pd.DataFrame(
            [
                {
                    "part": name,
                    "domains": ", ".join(self.data.domain_names(rows)),
                    "classes": len(self.data.class_names(rows)),
                    "images": len(rows),
                }
                for name, rows in parts.items()
            ]
        ).set_index("part")

    def training_pictures(self):
        """What trains and validates, by name, as a short text: equal for two splits of the same pictures only."""
        rows = [*self.train.tolist(), *self.val_query.tolist(), *self.val_gallery.tolist()]
        names = "\n".join(self.data.paths[row].relative_to(self.data.root).as_posix() for row in rows)
        digest = hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()  # names need not be UTF-8
        return f"{len(self.train)} ({digest[:8]})"

    def training(self):
        """What a checkpoint has to hold, beside the seen classes and the training domains, so that this split can be
        made again and its training pictures compared: a dict of plain values."""
        return dict(
            training_pictures=self.training_pictures(),
            gallery_domain=self.gallery_domain,
            val_classes=list(self.val_classes),
            unseen_classes=list(self.unseen_classes),
        )


@dataclass(frozen=True)
class Sample:
    """A published U^dCDR measures a share of the images of some seen classes, of queries and gallery alike."""

    classes: tuple[str, ...]
    share: float  # rounded down for each class, one image at least


def make_split(
    data: ImageDomains,
    protocol: str = "UCDR",
    unseen_domain: str | None = "sketch",
    unseen_classes: Sequence[str] | None = None,
    val_classes: Sequence[str] | None = None,
    gallery: str = "unseen",
    gallery_domain: str | None = None,
    query_domain: str | None = None,
    holdout_fraction: float = 0.08,
    seed: int = 0,
    seen_classes: Sequence[str] | None = None,
    udcdr_sample: Sample | None = None,
    switches: Switches | None = None,
) -> Split:
    """A protocol of universal cross-domain retrieval on a folder [Paul et al., ICCV 2021; ProS].

    | protocol | query: domain, classes | gallery: images of the gallery domain                          |
    |----------|------------------------|----------------------------------------------------------------|
    | UCDR     | held out, unseen       | unseen classes; gallery="mixed" adds seen ones, kept-out part  |
    | UcCDR    | seen, unseen           | the same                                                       |
    | UdCDR    | held out, seen         | seen classes, kept-out part                                    |

    Kept out of training is `holdout_fraction` of the gallery domain's images of each seen class (the training
    part is rounded down, as in the released code), so that no image of a gallery was trained on. It depends on
    the seed and the class alone: one trained model serves every protocol. Validation ranks the gallery
    domain's images of the validation classes for queries from the other training domains: neither the held-out
    domain nor the unseen classes take part.

    unseen_domain: the domain held out of training; None (UcCDR only) trains on every domain.
    unseen_classes, val_classes: class names; None: PictoNet's own, or a draw by `seed` from the classes that
        the gallery domain has. val_classes=[] leaves validation out.
    seen_classes: class names; None: all others.
    gallery_domain: None: the first of GALLERY_DOMAINS that the folder has, or else its largest domain.
    query_domain: UcCDR's query domain; None: all training domains but the gallery's.
    udcdr_sample: a `Sample` that UdCDR measures; None: all images of the query domain, and the kept-out part.
    switches: None for the paper's; `udcdr_gallery` and `file_order` say whether the released code's leaks are repeated.

    Raises UserError for unknown names (listing the known), classes without gallery image, and empty parts.
    """
    switches = switches or Switches()
    unknown_names("protocol", [protocol], PROTOCOLS)
    unknown_names("gallery", [gallery], GALLERIES)
    if not 0 < holdout_fraction < 1:
        raise UserError(f"holdout_fraction is a share between 0 and 1, not {holdout_fraction}.")
    train_domains, gallery_domain, query_domains = _domain_roles(
        data, protocol, unseen_domain, gallery_domain, query_domain
    )
    source_domains = [name for name in train_domains if name != gallery_domain]
    seen, val, unseen = split_classes(data, gallery_domain, unseen_classes, val_classes, seed, seen_classes)
    draws = Draws(data, seen_classes or seen, seed, switches)

    kept_out = draws.kept_out(gallery_domain, holdout_fraction)
    seen_gallery = draws.seen_gallery(gallery_domain, holdout_fraction, udcdr_sample)
    trained_on = switches.udcdr_gallery == "released"
    out = kept_out if trained_on else torch.cat([kept_out, seen_gallery]).unique()
    train = data.rows(train_domains, seen)
    if protocol == "UdCDR":
        gallery_kind, gallery_rows = "seen", seen_gallery
        query_rows = draws.seen_queries(query_domains, data.class_names(seen_gallery), udcdr_sample)
    else:
        gallery_kind, gallery_rows = gallery, data.rows([gallery_domain], unseen)
        query_rows = data.rows(query_domains, unseen)
    if gallery_kind == "mixed":
        gallery_rows = torch.cat([gallery_rows, kept_out]).sort().values
    split = Split(
        data,
        protocol,
        seed,
        unseen_domain,
        train_domains,
        query_domains,
        gallery_domain,
        gallery_kind,
        seen,
        val,
        unseen,
        train=train[~torch.isin(train, out)],
        val_query=data.rows(source_domains, val),
        val_gallery=data.rows([gallery_domain], val),
        query=query_rows,
        gallery=gallery_rows,
    )
    _check_no_part_is_empty(split)
    return split


def protocol_splits(data: ImageDomains, unseen_domain: str | None, **options: Any) -> list[Split]:
    """The splits that one model is measured on: UCDR, unseen and mixed gallery, UcCDR, UdCDR; see `make_split`.

    Where no domain is held out (unseen_domain=None: Sketchy, TU-Berlin) UcCDR is the only one.
    """
    cases = [("UCDR", "unseen"), ("UCDR", "mixed"), ("UcCDR", "unseen"), ("UdCDR", "unseen")]
    if unseen_domain is None:
        cases = [("UcCDR", "unseen")]
    return [make_split(data, protocol, unseen_domain, gallery=gallery, **options) for protocol, gallery in cases]


def _domain_roles(
    data: ImageDomains, protocol: str, unseen_domain: str | None, gallery_domain: str | None, query_domain: str | None
):
    """Checked domain names: (those that train, the gallery's, those that query)."""
    if unseen_domain is not None or protocol != "UcCDR":
        unknown_names("unseen domain", [unseen_domain], data.domains)
    train_domains = tuple(name for name in data.domains if name != unseen_domain)
    if gallery_domain is None:
        gallery_domain = usual_gallery(data, train_domains)
    unknown_names("gallery domain", [gallery_domain], train_domains)
    if protocol != "UcCDR":
        return train_domains, gallery_domain, (unseen_domain,)
    source_domains = tuple(name for name in train_domains if name != gallery_domain)
    if query_domain is None:
        return train_domains, gallery_domain, source_domains
    unknown_names("query domain", [query_domain], source_domains)
    return train_domains, gallery_domain, (query_domain,)


def split_classes(
    data: ImageDomains,
    gallery_domain: str,
    unseen_classes: Sequence[str] | None = None,
    val_classes: Sequence[str] | None = None,
    seed: int = 0,
    seen_classes: Sequence[str] | None = None,
):
    """Class names (seen, validation, unseen), sorted; a list that is None is filled as `make_split` says."""
    for names in (unseen_classes, val_classes, seen_classes):
        unknown_names("class", names or [], data.classes)
    in_gallery = data.class_names(data.rows([gallery_domain], data.classes))
    rng = np.random.default_rng(seed)
    fixed = pictonet.classes()
    is_pictonet = set(data.classes) == {name for names in fixed.values() for name in names}
    if unseen_classes is None:
        free = [name for name in in_gallery if name not in (val_classes or [])]
        unseen_classes = sorted(set(fixed["unseen"]) & set(free)) if is_pictonet else _draw(free, UNSEEN_SHARE, rng)
    if val_classes is None:
        free = [name for name in in_gallery if name not in unseen_classes]
        val_classes = sorted(set(fixed["val"]) & set(free)) if is_pictonet else _draw(free, VAL_SHARE, rng)
    unseen, val = set(unseen_classes), set(val_classes)
    seen = set(data.classes) - unseen - val if seen_classes is None else set(seen_classes)

    if unseen & val:
        raise UserError(f"Classes both unseen and for validation: {', '.join(sorted(unseen & val))}.")
    if seen & (unseen | val):
        raise UserError(f"Classes both seen and not: {', '.join(sorted(seen & (unseen | val)))}.")
    missing = sorted((unseen | val) - set(in_gallery))
    if missing:
        raise UserError(
            f"The gallery domain {gallery_domain} has no image of {', '.join(missing)}: name "
            "other unseen_classes and val_classes, or another gallery_domain."
        )
    if len(seen) < 2:
        raise UserError(
            f"{len(seen)} of {len(data.classes)} classes would be left to train on, not two: "
            "name fewer unseen_classes and val_classes, or take a folder with more classes."
        )
    return tuple(sorted(seen)), tuple(sorted(val)), tuple(sorted(unseen))


def _draw(names: Sequence[str], share: float, rng: np.random.Generator):
    """About `share` of the names, two where that leaves two: ranking images of one class says nothing."""
    count = max(round(share * len(names)), min(2, len(names) // 2))
    return [names[i] for i in rng.permutation(len(names))[:count]]


class Draws:
    """The random part of the splits: which images of a seen class are kept out of training, and which are sampled.

    The images of a class stand in a random order that starts with those kept out. Row numbers are [m], ascending.
    """

    def __init__(self, data: ImageDomains, classes: Sequence[str], seed: int, switches: Switches) -> None:
        self.data, self.classes, self.seed, self.switches = data, classes, seed, switches
        self.by_class: dict[str, tuple[torch.Tensor, ...]] = {}  # domain: one tensor of rows per class

    def rows(self, domain: str, name: str) -> torch.Tensor:
        """Rows [n] of a class in a domain, ascending; the domain's are sorted out once."""
        if domain not in self.by_class:
            rows = self.data.rows([domain], self.data.classes)
            classes, order = self.data.class_index[rows].sort(stable=True)
            counts = torch.bincount(classes, minlength=len(self.data.classes))
            self.by_class[domain] = rows[order].split(counts.tolist())
        return self.by_class[domain][self.data.classes.index(name)]

    def order(self, domain: str, name: str):
        """Rows [n] of a class in random order. paper: by seed and class name alone, over sorted file names; released:
        numpy's legacy seed is the class's number, over the files as the file system lists them."""
        rows = self.rows(domain, name)
        if self.switches.file_order == "released":
            folders = {self.data.paths[row].parent for row in rows}
            place = {path: i for folder in folders for i, path in enumerate(folder.iterdir())}
            listed = rows[np.argsort([place[self.data.paths[row]] for row in rows])]
            numbers = np.random.RandomState(self.classes.index(name)).permutation(len(rows))
            return listed[numbers[::-1].copy()]  # it trains on the first 92 %
        rng = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
        return rows[rng.permutation(len(rows))]

    def kept_out(self, domain: str, fraction: float):
        """The mixed gallery's images of seen classes."""
        orders = [self.order(domain, name) for name in self.classes]
        return _ascending(order[: _kept(len(order), fraction)] for order in orders)

    def seen_gallery(self, domain: str, fraction: float, sample: Sample | None):
        """UdCDR's gallery: images kept out of training (paper), or as many training images (released)."""
        parts = []
        for name in self.classes if sample is None else sample.classes:
            order = self.order(domain, name)
            count = _kept(len(order), fraction) if sample is None else _sampled(len(order), sample.share)
            from_training = self.switches.udcdr_gallery == "released"
            parts.append(order[len(order) - count :] if from_training else order[:count])
        return _ascending(parts)

    def seen_queries(self, domains: Sequence[str], names: Sequence[str], sample: Sample | None):
        """UdCDR's queries: the images of the gallery's classes, or a sample of them."""
        if sample is None:
            return self.data.rows(domains, names)
        orders = [self.order(domain, name) for domain in domains for name in names]
        return _ascending(order[len(order) - _sampled(len(order), sample.share) :] for order in orders)


def _kept(count: int, fraction: float):
    return count - int((1 - fraction) * count)


def _sampled(count: int, share: float):
    return min(count, max(1, int(share * count)))


def _ascending(parts: Iterable[torch.Tensor]):
    return torch.cat([torch.empty(0, dtype=torch.long), *parts]).sort().values


def _check_no_part_is_empty(split: Split):
    parts = ["train", "query", "gallery"] + (["val_query", "val_gallery"] if split.val_classes else [])
    empty = [part for part in parts if not len(getattr(split, part))]
    if empty:
        advice = f"Choose other domains or classes; domains: {', '.join(split.data.domains)}."
        if len(split.train_domains) < 2:
            advice = (
                f"{split.gallery_domain} is the only domain left to train on, and training needs two. With two domains "
                'hold out none: --unseen-domain none, in Python make_split(data, "UcCDR", unseen_domain=None). It '
                "measures unseen classes. Or add a third domain."
            )
        raise UserError(
            f"{split.protocol} with unseen domain {split.unseen_domain} and gallery domain "
            f"{split.gallery_domain} leaves no image for: {', '.join(empty)}. {advice}"
        )
