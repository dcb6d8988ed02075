"""A `domain/class/image` folder as a table, its images as tensors, and its batches.

data = ImageDomains.from_folder("my_images")                    # my_images/sketch/house/0001.png ...
split = make_split(data, protocol="UCDR", unseen_domain="sketch")          # splits.py
images = Images(data, split.train, train_transform(56, mean, std))
batches = BalancedSampler(data, split.train, batch_size=50, generator=torch.Generator().manual_seed(0))
loader = DataLoader(images, batch_sampler=batches)              # image, class_index, domain_index
"""

import itertools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from PIL import ImageOps
from torch.utils.data import Dataset, Sampler
from torchvision.transforms import v2
from tqdm.auto import tqdm

from . import pictonet
from .config import Switches
from .files import UserError
from .image_files import IMAGE_SUFFIXES, find_fault, list_files, load_image, middle
from .names import readable

#: Domains that play the gallery where they exist: PictoNet's, DomainNet's, PACS's, Sketchy's, TU-Berlin's.
GALLERY_DOMAINS = (pictonet.GALLERY_DOMAIN, "real", "photo", "extended_photo", "images")


@dataclass(frozen=True, eq=False)
class ImageDomains:
    """All images of a `domain/class/image` folder: one row each, sorted by domain, class and file name."""

    root: Path
    domains: tuple[str, ...]
    classes: tuple[str, ...]
    paths: list[Path]  # n files
    domain_index: torch.Tensor  # [n], into `domains`
    class_index: torch.Tensor  # [n], into `classes`
    skipped: list[tuple[Path, str]]  # files left out, and why

    @classmethod
    def from_folder(
        cls,
        root: str | Path,
        on_error: str = "skip",
        class_name: Callable[[str], str] = str,
        domains: Sequence[str] | None = None,
        decode: bool = False,
    ):
        """Lists the images in `root/domain/class/`. A class may have no image in some domains.

        on_error: "skip" leaves out files that are not whole images, with a warning, and lists them in
        `skipped`; "raise" refuses them.
        class_name: a function that gives the class of a folder's name (see `Benchmark.class_name`).
        domains: names of the domains to read; None: all.
        decode: True decodes every image once, which finds damage in its middle too (see `find_fault`).
        Raises UserError for a folder that is missing, unreadable, without images, or of one domain or class.
        """
        if on_error not in ("skip", "raise"):
            raise UserError(f"on_error is 'skip' or 'raise', not {on_error!r}.")
        root = Path(root)
        files = [path for path in list_files(root) if domains is None or readable(path.parts[-3]) in domains]
        faults = [find_fault(path, decode) for path in tqdm(files, desc="Checking images", delay=5, leave=False)]
        skipped = [(path, why) for path, why in zip(files, faults, strict=True) if why]
        if skipped:
            named = ", ".join(f"{readable(path.relative_to(root))} ({why})" for path, why in skipped[:5])
            more = f" and {len(skipped) - 5} more" if len(skipped) > 5 else ""
            message = f"{len(skipped)} of {len(files)} files in {readable(root)} cannot be used: {named}{more}."
            if on_error == "raise":
                raise UserError(message + " Remove them, or let them be skipped.")
            warnings.warn(message + " They are skipped.", stacklevel=2)

        paths = [path for path, why in zip(files, faults, strict=True) if not why]
        domains, domain_index = _numbered(_labels(paths, -3))
        classes, class_index = _numbered([class_name(name) for name in _labels(paths, -2)])
        for kind, names in (("domain", domains), ("class", classes)):
            if len(names) < 2:
                what = f"one {kind} only ({names[0]})" if len(names) else "no image"
                raise UserError(
                    f"{readable(root)} holds {what}; cross-domain retrieval needs two or more domains and "
                    f"classes. Expected {readable(root)}/<domain>/<class>/<image>, images ending in "
                    f"{', '.join(sorted(IMAGE_SUFFIXES))}."
                )
        return cls(
            root,
            domains,
            classes,
            paths,
            domain_index,
            class_index,
            skipped,
        )

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, row: int):
        """Image of a row as PIL RGB; see `load_image`."""
        return load_image(self.paths[row])

    def rows(self, domains: Sequence[str], classes: Sequence[str]):
        """Row numbers [m] of the images of these domains and classes (names), ascending."""
        in_domains = torch.isin(self.domain_index, torch.tensor([self.domains.index(x) for x in domains]))
        in_classes = torch.isin(self.class_index, torch.tensor([self.classes.index(x) for x in classes]))
        return torch.nonzero(in_domains & in_classes).squeeze(1)

    def class_names(self, rows: torch.Tensor):
        """Names of the classes that occur in some rows, sorted."""
        return [self.classes[i] for i in self.class_index[rows].unique()]

    def domain_names(self, rows: torch.Tensor):
        """Names of the domains that occur in some rows, sorted."""
        return [self.domains[i] for i in self.domain_index[rows].unique()]

    def table(self) -> pd.DataFrame:
        """DataFrame with one row per image: domain, class, path (relative to `root`)."""
        return pd.DataFrame(
            {
                "domain": [self.domains[i] for i in self.domain_index.tolist()],
                "class": [self.classes[i] for i in self.class_index.tolist()],
                "path": [readable(path.relative_to(self.root).as_posix()) for path in self.paths],
            }
        )

    def counts(self) -> pd.DataFrame:
        """DataFrame class x domain with the number of images."""
        table = self.table()
        return pd.crosstab(table["class"], table["domain"])


def _labels(paths: list[Path], part: int) -> list[str]:
    """The readable names [n] of the folders that paths are in. UserError where two folders would have one name."""
    names = {name: readable(name) for name in {path.parts[part] for path in paths}}
    folders = {shown: name for name, shown in names.items()}
    for name, shown in names.items():
        if folders[shown] != name:
            raise UserError(f"Two folders are named {shown}, one of them in bytes that are not UTF-8: rename one.")
    return [names[path.parts[part]] for path in paths]


def _numbered(names: list[str]) -> tuple[tuple[str, ...], torch.Tensor]:
    """The different names, sorted, and the number [n] of each name among them."""
    known = tuple(sorted(set(names)))
    number = {name: i for i, name in enumerate(known)}
    return known, torch.tensor([number[name] for name in names], dtype=torch.long)


def usual_gallery(data: ImageDomains, domains: Sequence[str]) -> str:
    """The domain that is ranked where none is named: the first of GALLERY_DOMAINS there is, else the largest."""
    known = [name for name in GALLERY_DOMAINS if name in domains]
    by_size = sorted(domains, key=lambda name: -len(data.rows([name], data.classes)))
    return (known + by_size)[0]


class Images(Dataset):
    """The images of some rows: item i is (image [3, H, W], class_index, domain_index), as `data` counts them.

    Pictures of the domains `inverted` have their colours inverted first (see `inverted_domains`).
    """

    def __init__(
        self, data: ImageDomains, rows: torch.Tensor, transform: Callable, inverted: Sequence[str] = ()
    ) -> None:
        self.data, self.rows, self.transform, self.inverted = data, rows, transform, frozenset(inverted)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int):
        row = int(self.rows[i])
        domain, image = int(self.data.domain_index[row]), self.data.load(row)
        if self.data.domains[domain] in self.inverted:
            image = ImageOps.invert(image)
        return self.transform(image), int(self.data.class_index[row]), domain


def inverted_domains(switches: Switches):
    """Domains whose pictures are colour-inverted: none (paper), or "sketch" and "quickdraw" by name (released
    code: dataloaders.py), so that TU-Berlin's "sketches" stay as they are."""
    return ("sketch", "quickdraw") if switches.polarity == "released" else ()


def train_transform(size: int, mean: Sequence[float], std: Sequence[float]):
    """PIL RGB -> [3, size, size], augmented by crop, flip and colour [released code: trainer.py].

    torchvision draws from torch's global generator: `torch.manual_seed` makes a run repeatable.
    """
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.8, 1.0)),
            v2.RandomHorizontalFlip(0.5),
            v2.ColorJitter(0.4, 0.4, 0.4, 0.4),
            *_normalised_tensor(mean, std),
        ]
    )


def eval_transform(size: int, mean: Sequence[float], std: Sequence[float]):
    """PIL RGB -> [3, size, size] as CLIP does: shorter side to `size` (bicubic), centre crop."""
    return v2.Compose(
        [
            middle,  # of a picture 16 times as long as wide or more
            v2.Resize(size, v2.InterpolationMode.BICUBIC),
            v2.CenterCrop(size),
            *_normalised_tensor(mean, std),
        ]
    )


def _normalised_tensor(mean: Sequence[float], std: Sequence[float]):
    return [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]


class BalancedSampler(Sampler):
    """Batches with equal numbers of images from every domain: `batch_sampler` of a DataLoader over `Images`.

    Yields lists of positions in `rows`, by which `Images(data, rows, ...)` is indexed. An epoch ends when the
    smallest domain is used up [released code: BalancedSampler, mode 'min'], at the earliest after one batch;
    a domain that runs out before that is shuffled again. Every epoch starts with fresh shuffles and so
    depends on nothing but the generator's state: a run that resumes with that state draws the same batches.

    classes_per_batch: above 0, every batch holds so many classes, the same in all domains and equally often, as a
    loss that compares a class across domains wants them [released code of DePro: 3 classes x 4 images x 5 domains].

    Raises UserError when `batch_size` cannot be shared equally by the domains, or a domain's share by the classes.
    """

    def __init__(
        self,
        data: ImageDomains,
        rows: torch.Tensor,
        batch_size: int,
        generator: torch.Generator,
        classes_per_batch: int = 0,
    ) -> None:
        domain_index = data.domain_index[rows]
        self.pools = [torch.nonzero(domain_index == i).squeeze(1) for i in domain_index.unique()]
        self.generator = generator
        if not self.pools:
            raise UserError("There is no image to draw batches from.")
        self.per_domain, rest = divmod(batch_size, len(self.pools))
        if rest or not self.per_domain:
            fitting = max(1, self.per_domain) * len(self.pools)
            names = ", ".join(data.domain_names(rows))
            raise UserError(
                f"A batch of {batch_size} cannot be shared equally by {len(self.pools)} domains "
                f"({names}): use {fitting} or {fitting + len(self.pools)}."
            )
        self.classes_per_batch, self.class_index = classes_per_batch, data.class_index[rows]
        self.common = [
            i
            for i in self.class_index.unique().tolist()  # classes that every domain has
            if all((self.class_index[pool] == i).any() for pool in self.pools)
        ]
        if classes_per_batch and (self.per_domain % classes_per_batch or len(self.common) < classes_per_batch):
            raise UserError(
                f"A batch with {self.per_domain} images of each domain cannot hold {classes_per_batch} "
                f"classes equally often: classes_per_batch has to divide {self.per_domain}, and the "
                f"domains share {len(self.common)} classes."
            )

    def __len__(self) -> int:
        return max(1, min(len(pool) for pool in self.pools) // self.per_domain)

    def __iter__(self):
        if self.classes_per_batch:
            yield from self._batches_of_classes()
            return
        streams = [self._endless_shuffles(pool) for pool in self.pools]
        for _ in range(len(self)):
            yield [position for stream in streams for position in itertools.islice(stream, self.per_domain)]

    def _batches_of_classes(self):
        classes = self._endless_shuffles(torch.tensor(self.common))
        streams = {
            (i, name): self._endless_shuffles(pool[self.class_index[pool] == name])
            for i, pool in enumerate(self.pools)
            for name in self.common
        }
        for _ in range(len(self)):
            chosen = list(itertools.islice(classes, self.classes_per_batch))
            yield [
                position
                for i in range(len(self.pools))
                for name in chosen
                for position in itertools.islice(streams[i, name], self.per_domain // self.classes_per_batch)
            ]

    def _endless_shuffles(self, pool: torch.Tensor):
        while True:
            yield from pool[torch.randperm(len(pool), generator=self.generator)].tolist()
