"""Images to features, and a model to its numbers on the protocols."""

import multiprocessing
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.transforms import v2
from tqdm.auto import tqdm

from . import processes
from .config import Switches
from .domains import ImageDomains, Images, eval_transform, inverted_domains
from .files import UserError
from .image_files import as_rgb, load_image
from .metrics import retrieval_metrics
from .splits import Split


class Pictures(Dataset):
    """Pictures as tensors [3, H, W]: PIL images, or paths of image files, which are read when they are wanted.

    blank: the tensor [3, H, W] of a picture that cannot be decoded; None raises UserError, naming the file.
    """

    def __init__(
        self, pictures: Sequence[Image.Image | str | Path], transform: Callable, blank: torch.Tensor | None = None
    ) -> None:
        self.pictures, self.transform, self.blank = pictures, transform, blank

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, i: int) -> torch.Tensor:
        picture = self.pictures[i]
        try:
            return self.transform(as_rgb(picture) if isinstance(picture, Image.Image) else load_image(picture))
        except UserError:
            if self.blank is None:
                raise
            return self.blank


#: Below so many images it takes longer to start processes that read them than to read them: where a process begins as a
#: copy of this one (fork), and where it has to import everything anew (spawn, forkserver: some seconds each).
FEW_IMAGES = {"fork": 256, "spawn": 2000, "forkserver": 2000}


def loader(dataset: Dataset, workers: int, **options: Any) -> DataLoader:
    """A DataLoader whose `workers` processes live on from epoch to epoch; none for a set that is read sooner.

    It leaves torch's own random generator alone, so that the number of processes changes no result.
    """
    start = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    workers = workers if len(dataset) >= FEW_IMAGES[start] else 0
    generator = torch.Generator().manual_seed(0)
    return DataLoader(
        dataset, num_workers=workers, persistent_workers=workers > 0, generator=generator, **options
    )  # a copy of the data goes to every process: it has to be picklable


@torch.no_grad()
def embed(
    model: nn.Module,
    images: torch.Tensor | Dataset | DataLoader | Sequence,
    batch_size: int | None = None,
    progress: bool = False,
) -> torch.Tensor:
    """Features [n, D] (float32, on the CPU) by `model.encode_image` in evaluation mode; the mode is restored.

    model: a TunedCLIP (ProS, a baseline) or a PromptableCLIP (`load_clip`).
    images: normalised images [n, 3, H, W]; a Dataset of such images, alone or first in a tuple (`Images`), or a
    DataLoader of one; or a list of PIL images or paths of image files, of any size and mode, which are read and
    prepared a batch at a time.
    batch_size: None for what is fast, 32 on a CPU (mini-CLIP's activations stay in its cache) and 256 on a GPU.
    In a run of several processes each one embeds a part of the images, and all of them return all features. (A
    DataLoader of your own is not shared: every process goes through it.)
    Raises UserError when there is no image, one cannot be read, or the GPU's memory is not enough.
    """
    if not len(images):
        raise UserError("There is no image to embed.")
    device = next(model.parameters()).device
    progress = progress and processes.is_main()
    if torch.is_tensor(images):
        batches = images[processes.own_items(len(images))].split(fast_batch(device, batch_size))
    elif isinstance(images, DataLoader):
        batches = images
    else:
        if not isinstance(images, Dataset):
            images = Pictures(images, model_transform(model))
        workers = model.config.workers if hasattr(model, "config") else 0
        batches = loader(own_part(images), workers, batch_size=fast_batch(device, batch_size))
    was_training = model.training
    model.eval()
    try:
        batches = (
            batch if torch.is_tensor(batch) else batch[0]
            for batch in tqdm(once(batches), desc="Embedding", total=len(batches), disable=not progress)
        )
        with processes.clear_errors("batch_size"):
            features = torch.cat([model.encode_image(batch.to(device)).float().cpu() for batch in batches])
    finally:
        model.train(was_training)
    if isinstance(images, DataLoader):
        images = images.dataset.dataset if isinstance(images.dataset, OwnPart) else features
    return processes.gathered(features, len(images))


class OwnPart(Subset):
    """The images of `dataset` that this process embeds."""


def own_part(images: Dataset) -> Dataset:
    """What this process embeds of a dataset: all of it in a run of one process."""
    if processes.count() == 1:
        return images
    return OwnPart(images, range(len(images))[processes.own_items(len(images))])


def once(batches: Iterable) -> Iterator:
    """The batches for tqdm, which begins twice with what it is given: a DataLoader would start its processes twice."""
    yield from batches


def fast_batch(device: torch.device, batch_size: int | None = None) -> int:
    """The images of a batch: those asked for, or what is fast on the device. Raises UserError below 1."""
    if batch_size is None:
        return 32 if device.type == "cpu" else 256
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it takes 1 or more.")
    return batch_size


def embed_rows(
    model: nn.Module, data: ImageDomains, rows: torch.Tensor, switches: Switches | None = None, progress: bool = False
) -> torch.Tensor:
    """Features [m, D] of the images in `rows` [m] of `data`, prepared as the model's CLIP and the switches want them.

    switches: the model's where none are given; `polarity` inverts the colours of some domains.
    """
    return embed(model, rows_as_images(model, data, rows, switches), progress=progress)


def rows_as_images(
    model: nn.Module, data: ImageDomains, rows: torch.Tensor, switches: Switches | None = None
) -> Images:
    """The images in `rows` [m] of `data` as `embed_rows` prepares them."""
    switches = switches or (model.config.switches if hasattr(model, "config") else Switches())
    return Images(data, rows, model_transform(model), inverted_domains(switches))


def model_transform(model: nn.Module) -> v2.Compose:
    """The evaluation transform with the size, mean and standard deviation of the model's CLIP; a CLIP is its own."""
    clip = getattr(model, "clip", model)
    return eval_transform(clip.image_size, clip.mean, clip.std)


def switch_options(switches: Switches) -> dict[str, str]:
    """`Switches` as options of `retrieval_metrics`: {"similarity", "ap_norm"}."""
    return dict(
        similarity="cosine" if switches.similarity == "paper" else "euclidean",
        ap_norm="relevant" if switches.average_precision == "paper" else "hits",
    )


def evaluate(
    model: nn.Module, split: Split, switches: Switches | None = None, extra: dict | None = None, progress: bool = False
) -> pd.DataFrame:
    """Metrics of a model on a split: DataFrame of one row; see `evaluate_all`."""
    return evaluate_all(model, [split], switches, extra, progress)


def evaluate_all(
    model: nn.Module,
    splits: Sequence[Split],
    switches: Switches | None = None,
    extra: dict | None = None,
    progress: bool = False,
    features_of: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> pd.DataFrame:
    """Metrics of a model on splits of the same folder, one row each; every image is embedded once.

    Columns: method, protocol, unseen_domain ("none" where no domain is held out), gallery, seed, queries, gallery_size,
    switches (those that are not "paper", as text), mAP@200, Prec@200, mAP@all, Prec@100, mAP@200 by every rule of
    average precision (`metrics.AP_RULES`), and those of the dict `extra`, which wins where names are the same.
    `switches` (default: the model's) say how to rank and what AP is divided by. features_of: rows [m] -> features
    [m, D], where they are not those of `embed_rows` (`parts`).
    Warns where the model was trained on other pictures than those that a split means for training.
    """
    switches = switches or model.config.switches
    data = splits[0].data
    for split in splits:
        warn_of_other_training(model, split)
    rows = torch.cat([rows for split in splits for rows in (split.query, split.gallery)]).unique()
    features = features_of(rows) if features_of else embed_rows(model, data, rows, switches, progress)
    features = features.to(next(model.parameters()).device)  # a GPU ranks faster

    table = []
    for split in splits:
        query, gallery = torch.searchsorted(rows, split.query), torch.searchsorted(rows, split.gallery)
        metrics = processes.on_main(
            retrieval_metrics,
            features[query],
            data.class_index[split.query],
            features[gallery],
            data.class_index[split.gallery],
            **switch_options(switches),
            all_rules=True,
        )
        case = {
            "method": model.label,
            "protocol": split.protocol,
            "unseen_domain": split.unseen_domain or "none",
            "gallery": split.gallery_kind,
            "seed": split.seed,
            "queries": len(query),
            "gallery_size": len(gallery),
            "switches": switches.differing(),
        }
        table.append(case | metrics | (extra or {}))
    return pd.DataFrame(table)


def other_training(model: nn.Module, split: Split) -> str:
    """How the pictures that a model was trained on differ from a split's, as text; "" where they are the same, where
    nothing was trained, and where the model does not know them."""
    known = (getattr(model, "trained_on", None) or {}).get("training_pictures")
    if not known or not (model.stages or model.statistics) or known == split.training_pictures():
        return ""
    return (
        f"{model.label} was trained on {known} pictures, and this split means {split.training_pictures()} for training "
        "(their number, and a short text that only the same pictures have)"
    )


def warn_of_other_training(model: nn.Module, split: Split) -> None:
    """A warning where a model may have been trained on what it is measured on, unless the split itself repeats that
    leak of the released code (Switches.udcdr_gallery)."""
    differing = other_training(model, split)
    if differing and not torch.isin(split.gallery, split.train).any():
        warnings.warn(f"{differing}: it may be measured on pictures that it was trained on.", stacklevel=3)
