"""A `domain/class/image` folder as a table, its splits for universal cross-domain retrieval, and its batches.

    data = ImageDomains.from_folder("my_images")                    # my_images/sketch/house/0001.png ...
    split = make_split(data, protocol="UCDR", unseen_domain="sketch")
    images = Images(data, split.train, train_transform(56, mean, std))
    batches = BalancedSampler(data, split.train, batch_size=50, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(images, batch_sampler=batches)              # image, class_index, domain_index
"""
import itertools
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import ImageOps
from torch.utils.data import Dataset, Sampler
from torchvision.transforms import v2
from tqdm.auto import tqdm

from . import pictonet
from .config import UserError
from .image_files import IMAGE_SUFFIXES, find_fault, list_files, load_image

PROTOCOLS = ("UCDR", "UcCDR", "UdCDR")
GALLERIES = ("unseen", "mixed")
#: Domains that play the gallery where they exist: PictoNet's, DomainNet's, PACS's, Sketchy's.
GALLERY_DOMAINS = (pictonet.GALLERY_DOMAIN, "real", "photo", "extended_photo")
#: Share of the classes that is unseen, and of the rest that validates: as in DomainNet [METHOD].
UNSEEN_SHARE, VAL_SHARE = 45 / 345, 55 / 300


@dataclass(frozen=True, eq=False)
class ImageDomains:
    """All images of a `domain/class/image` folder: one row each, sorted by domain, class and file name."""

    root: Path
    domains: tuple[str, ...]
    classes: tuple[str, ...]
    paths: list[Path]                   # n files
    domain_index: torch.Tensor          # [n], into `domains`
    class_index: torch.Tensor           # [n], into `classes`
    skipped: list[tuple[Path, str]]     # files left out, and why

    @classmethod
    def from_folder(cls, root, on_error="skip"):
        """Lists the images in `root/domain/class/`. A class may have no image in some domains.

        on_error: "skip" leaves out files that are not whole images, with a warning, and lists them in
        `skipped`; "raise" refuses them.
        Raises UserError for a folder that is missing, unreadable, without images, or of one domain or class.
        """
        if on_error not in ("skip", "raise"):
            raise UserError(f"on_error is 'skip' or 'raise', not {on_error!r}.")
        root = Path(root)
        files = list_files(root)
        faults = [find_fault(path) for path in tqdm(files, desc="Checking images", delay=5, leave=False)]
        skipped = [(path, why) for path, why in zip(files, faults) if why]
        if skipped:
            named = ", ".join(f"{path.relative_to(root)} ({why})" for path, why in skipped[:5])
            more = f" and {len(skipped) - 5} more" if len(skipped) > 5 else ""
            message = f"{len(skipped)} of {len(files)} files in {root} cannot be used: {named}{more}."
            if on_error == "raise":
                raise UserError(message + " Remove them, or let them be skipped.")
            warnings.warn(message + " They are skipped.", stacklevel=2)

        paths = [path for path, why in zip(files, faults) if not why]
        domains, domain_index = np.unique([path.parts[-3] for path in paths], return_inverse=True)
        classes, class_index = np.unique([path.parts[-2] for path in paths], return_inverse=True)
        for kind, names in (("domain", domains), ("class", classes)):
            if len(names) < 2:
                what = f"one {kind} only ({names[0]})" if len(names) else "no image"
                raise UserError(f"{root} holds {what}; cross-domain retrieval needs two or more domains and "
                                f"classes. Expected {root}/<domain>/<class>/<image>, images ending in "
                                f"{', '.join(sorted(IMAGE_SUFFIXES))}.")
        return cls(root, tuple(domains.tolist()), tuple(classes.tolist()), paths,
                   torch.from_numpy(domain_index).long(), torch.from_numpy(class_index).long(), skipped)

    def __len__(self):
        return len(self.paths)

    def load(self, row):
        """Image of a row as PIL RGB; see `load_image`."""
        return load_image(self.paths[row])

    def rows(self, domains, classes):
        """Row numbers [m] of the images of these domains and classes (names), ascending."""
        in_domains = torch.isin(self.domain_index, torch.tensor([self.domains.index(x) for x in domains]))
        in_classes = torch.isin(self.class_index, torch.tensor([self.classes.index(x) for x in classes]))
        return torch.nonzero(in_domains & in_classes).squeeze(1)

    def class_names(self, rows):
        """Names of the classes that occur in some rows, sorted."""
        return [self.classes[i] for i in self.class_index[rows].unique()]

    def domain_names(self, rows):
        """Names of the domains that occur in some rows, sorted."""
        return [self.domains[i] for i in self.domain_index[rows].unique()]

    def table(self):
        """DataFrame with one row per image: domain, class, path (relative to `root`)."""
        return pd.DataFrame({"domain": [self.domains[i] for i in self.domain_index.tolist()],
                             "class": [self.classes[i] for i in self.class_index.tolist()],
                             "path": [path.relative_to(self.root).as_posix() for path in self.paths]})

    def counts(self):
        """DataFrame class x domain with the number of images."""
        table = self.table()
        return pd.crosstab(table["class"], table["domain"])


@dataclass(frozen=True, eq=False)
class Split:
    """What is trained on, validated on and tested on: row numbers into `data`, each [m] and ascending."""

    data: ImageDomains
    protocol: str                       # UCDR, UcCDR or UdCDR
    seed: int
    unseen_domain: str | None           # held out of training; None: every domain trains (UcCDR only)
    train_domains: tuple[str, ...]
    query_domains: tuple[str, ...]
    gallery_domain: str
    gallery_kind: str                   # "unseen" or "mixed" classes; "seen" for UdCDR
    seen_classes: tuple[str, ...]
    val_classes: tuple[str, ...]
    unseen_classes: tuple[str, ...]
    train: torch.Tensor
    val_query: torch.Tensor
    val_gallery: torch.Tensor
    query: torch.Tensor
    gallery: torch.Tensor

    def table(self):
        """DataFrame with one row per part: its domains and its numbers of classes and images."""
        names = ("train", "val_query", "val_gallery", "query", "gallery")
        parts = {name: getattr(self, name) for name in names}
        return pd.DataFrame([{"part": name, "domains": ", ".join(self.data.domain_names(rows)),
                              "classes": len(self.data.class_names(rows)), "images": len(rows)}
                             for name, rows in parts.items()]).set_index("part")


def make_split(data, protocol="UCDR", unseen_domain="sketch", unseen_classes=None, val_classes=None,
               gallery="unseen", gallery_domain=None, query_domain=None, holdout_fraction=0.08, seed=0):
    """A protocol of universal cross-domain retrieval on a folder [METHOD, "The task"].

    | protocol | query: domain, classes | gallery: images of the gallery domain                          |
    |----------|------------------------|----------------------------------------------------------------|
    | UCDR     | held out, unseen       | unseen classes; gallery="mixed" adds seen ones, kept-out part  |
    | UcCDR    | seen, unseen           | the same                                                       |
    | UdCDR    | held out, seen         | seen classes, kept-out part                                    |

    Kept out of training is `holdout_fraction` of the gallery domain's images of each seen class, at least
    one. It depends on the seed and the class alone, so one trained model serves every protocol, and no image
    of a gallery was trained on. (The released code keeps 8 % out for the mixed gallery, but its U^dCDR
    gallery is drawn from training images.) Validation ranks the gallery domain's images of the validation
    classes for queries from the other training domains: neither the held-out domain nor the unseen classes
    take part.

    unseen_domain: the domain held out of training; None (UcCDR only) trains on every domain.
    unseen_classes, val_classes: class names; None: PictoNet's own, or a draw by `seed` from the classes that
        the gallery domain has. val_classes=[] leaves validation out.
    gallery_domain: None: the first of GALLERY_DOMAINS that the folder has, or else its largest domain.
    query_domain: UcCDR's query domain; None: all training domains but the gallery's.

    Raises UserError for unknown names (listing the known), classes without gallery image, and empty parts.
    """
    _check_known("protocol", [protocol], PROTOCOLS)
    _check_known("gallery", [gallery], GALLERIES)
    if not 0 < holdout_fraction < 1:
        raise UserError(f"holdout_fraction is a share between 0 and 1, not {holdout_fraction}.")
    train_domains, gallery_domain, query_domains = _domain_roles(
        data, protocol, unseen_domain, gallery_domain, query_domain)
    source_domains = [name for name in train_domains if name != gallery_domain]
    seen, val, unseen = split_classes(data, gallery_domain, unseen_classes, val_classes, seed)

    kept_out = _keep_out(data, gallery_domain, seen, holdout_fraction, seed)
    train = data.rows(train_domains, seen)
    if protocol == "UdCDR":
        gallery_kind, gallery_rows, query_classes = "seen", kept_out, data.class_names(kept_out)
    else:
        gallery_kind, gallery_rows, query_classes = gallery, data.rows([gallery_domain], unseen), unseen
    if gallery_kind == "mixed":
        gallery_rows = torch.cat([gallery_rows, kept_out]).sort().values
    split = Split(data, protocol, seed, unseen_domain, train_domains, query_domains, gallery_domain,
                  gallery_kind, seen, val, unseen, train=train[~torch.isin(train, kept_out)],
                  val_query=data.rows(source_domains, val), val_gallery=data.rows([gallery_domain], val),
                  query=data.rows(query_domains, query_classes), gallery=gallery_rows)
    _check_no_part_is_empty(split)
    return split


def protocol_splits(data, unseen_domain, **options):
    """Four splits for one model: UCDR with unseen and with mixed gallery, UcCDR, UdCDR; see `make_split`."""
    cases = [("UCDR", "unseen"), ("UCDR", "mixed"), ("UcCDR", "unseen"), ("UdCDR", "unseen")]
    return [make_split(data, protocol, unseen_domain, gallery=gallery, **options)
            for protocol, gallery in cases]


def _domain_roles(data, protocol, unseen_domain, gallery_domain, query_domain):
    """Checked domain names: (those that train, the gallery's, those that query)."""
    if unseen_domain is not None or protocol != "UcCDR":
        _check_known("unseen domain", [unseen_domain], data.domains)
    train_domains = tuple(name for name in data.domains if name != unseen_domain)
    if gallery_domain is None:
        gallery_domain = usual_gallery(data, train_domains)
    _check_known("gallery domain", [gallery_domain], train_domains)
    if protocol != "UcCDR":
        return train_domains, gallery_domain, (unseen_domain,)
    source_domains = tuple(name for name in train_domains if name != gallery_domain)
    if query_domain is None:
        return train_domains, gallery_domain, source_domains
    _check_known("query domain", [query_domain], source_domains)
    return train_domains, gallery_domain, (query_domain,)


def usual_gallery(data, domains):
    """The domain that is ranked where none is named: the first of GALLERY_DOMAINS there is, else the largest."""
    known = [name for name in GALLERY_DOMAINS if name in domains]
    by_size = sorted(domains, key=lambda name: -len(data.rows([name], data.classes)))
    return (known + by_size)[0]


def split_classes(data, gallery_domain, unseen_classes=None, val_classes=None, seed=0):
    """Class names (seen, validation, unseen), sorted; a list that is None is filled as `make_split` says."""
    for names in (unseen_classes, val_classes):
        _check_known("class", names or [], data.classes)
    in_gallery = data.class_names(data.rows([gallery_domain], data.classes))
    rng = np.random.default_rng(seed)
    fixed = pictonet.classes()
    is_pictonet = set(data.classes) == {name for names in fixed.values() for name in names}
    if unseen_classes is None:
        free = [name for name in in_gallery if name not in (val_classes or [])]
        unseen_classes = set(fixed["unseen"]) & set(free) if is_pictonet else _draw(free, UNSEEN_SHARE, rng)
    if val_classes is None:
        free = [name for name in in_gallery if name not in unseen_classes]
        val_classes = set(fixed["val"]) & set(free) if is_pictonet else _draw(free, VAL_SHARE, rng)
    unseen, val = set(unseen_classes), set(val_classes)
    seen = set(data.classes) - unseen - val

    if unseen & val:
        raise UserError(f"Classes both unseen and for validation: {', '.join(sorted(unseen & val))}.")
    missing = sorted((unseen | val) - set(in_gallery))
    if missing:
        raise UserError(f"The gallery domain {gallery_domain} has no image of {', '.join(missing)}: name "
                        "other unseen_classes and val_classes, or another gallery_domain.")
    if len(seen) < 2:
        raise UserError(f"{len(seen)} of {len(data.classes)} classes would be left to train on, not two: "
                        "name fewer unseen_classes and val_classes, or take a folder with more classes.")
    return tuple(sorted(seen)), tuple(sorted(val)), tuple(sorted(unseen))


def _draw(names, share, rng):
    """About `share` of the names, two where that leaves two: ranking images of one class says nothing."""
    count = max(round(share * len(names)), min(2, len(names) // 2))
    return [names[i] for i in rng.permutation(len(names))[:count]]


def _keep_out(data, gallery_domain, classes, fraction, seed):
    """Rows [m] of the gallery domain to keep out of training: a share of each class, at least one image."""
    kept = []
    for name in classes:
        rows = data.rows([gallery_domain], [name])
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])  # whatever the other classes are
        kept.append(rows[rng.permutation(len(rows))[:max(1, round(fraction * len(rows)))]])
    return torch.cat(kept).sort().values


def _check_known(kind, names, known):
    unknown = [str(name) for name in names if name not in known]
    if unknown:
        raise UserError(f"Unknown {kind}: {', '.join(unknown)}. Known: {', '.join(known)}.")


def _check_no_part_is_empty(split):
    parts = ["train", "query", "gallery"] + (["val_query", "val_gallery"] if split.val_classes else [])
    empty = [part for part in parts if not len(getattr(split, part))]
    if empty:
        raise UserError(f"{split.protocol} with unseen domain {split.unseen_domain} and gallery domain "
                        f"{split.gallery_domain} leaves no image for: {', '.join(empty)}. "
                        f"Choose other domains or classes; domains: {', '.join(split.data.domains)}.")


class Images(Dataset):
    """The images of some rows: item i is (image [3, H, W], class_index, domain_index), as `data` counts them.

    Pictures of the domains `inverted` have their colours inverted first (see `inverted_domains`).
    """

    def __init__(self, data, rows, transform, inverted=()):
        self.data, self.rows, self.transform, self.inverted = data, rows, transform, frozenset(inverted)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        row = int(self.rows[i])
        domain, image = int(self.data.domain_index[row]), self.data.load(row)
        if self.data.domains[domain] in self.inverted:
            image = ImageOps.invert(image)
        return self.transform(image), int(self.data.class_index[row]), domain


def inverted_domains(switches):
    """Domains whose pictures are colour-inverted: none (paper), or "sketch" and "quickdraw" by name (released
    code: dataloaders.py), so that TU-Berlin's "sketches" stay as they are."""
    return ("sketch", "quickdraw") if switches.polarity == "released" else ()


def train_transform(size, mean, std):
    """PIL RGB -> [3, size, size], augmented by crop, flip and colour [released code: trainer.py].

    torchvision draws from torch's global generator: `torch.manual_seed` makes a run repeatable.
    """
    return v2.Compose([v2.RandomResizedCrop(size, scale=(0.8, 1.0)), v2.RandomHorizontalFlip(0.5),
                       v2.ColorJitter(0.4, 0.4, 0.4, 0.4), *_normalised_tensor(mean, std)])


def eval_transform(size, mean, std):
    """PIL RGB -> [3, size, size] as CLIP does: shorter side to `size` (bicubic), centre crop."""
    return v2.Compose([v2.Resize(size, v2.InterpolationMode.BICUBIC), v2.CenterCrop(size),
                       *_normalised_tensor(mean, std)])


def _normalised_tensor(mean, std):
    return [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]


class BalancedSampler(Sampler):
    """Batches with equal numbers of images from every domain: `batch_sampler` of a DataLoader over `Images`.

    Yields lists of positions in `rows`, by which `Images(data, rows, ...)` is indexed. An epoch ends when the
    smallest domain is used up [released code: BalancedSampler, mode 'min'], at the earliest after one batch;
    a domain that runs out before that is shuffled again. Every epoch starts with fresh shuffles and so
    depends on nothing but the generator's state: a run that resumes with that state draws the same batches.

    Raises UserError when `batch_size` cannot be shared equally by the domains.
    """

    def __init__(self, data, rows, batch_size, generator):
        domain_index = data.domain_index[rows]
        self.pools = [torch.nonzero(domain_index == i).squeeze(1) for i in domain_index.unique()]
        self.generator = generator
        if not self.pools:
            raise UserError("There is no image to draw batches from.")
        self.per_domain, rest = divmod(batch_size, len(self.pools))
        if rest or not self.per_domain:
            fitting = max(1, self.per_domain) * len(self.pools)
            names = ", ".join(data.domain_names(rows))
            raise UserError(f"A batch of {batch_size} cannot be shared equally by {len(self.pools)} domains "
                            f"({names}): use {fitting} or {fitting + len(self.pools)}.")

    def __len__(self):
        return max(1, min(len(pool) for pool in self.pools) // self.per_domain)

    def __iter__(self):
        streams = [self._endless_shuffles(pool) for pool in self.pools]
        for _ in range(len(self)):
            yield [position for stream in streams for position in itertools.islice(stream, self.per_domain)]

    def _endless_shuffles(self, pool):
        while True:
            yield from pool[torch.randperm(len(pool), generator=self.generator)].tolist()
