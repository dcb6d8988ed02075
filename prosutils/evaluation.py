"""Images to features, and a model to its numbers on the protocols."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from tqdm.auto import tqdm

from .config import Switches
from .domains import ImageDomains, Images, eval_transform, inverted_domains
from .files import UserError
from .image_files import as_rgb, load_image
from .metrics import retrieval_metrics


class Pictures(Dataset):
    """Pictures as tensors [3, H, W]: PIL images, or paths of image files, which are read when they are wanted.

    blank: the tensor [3, H, W] of a picture that cannot be decoded; None raises UserError, naming the file.
    """

    def __init__(
        self, pictures: Sequence[Image.Image | str | Path], transform: Callable, blank: torch.Tensor | None = None
    ):
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


@torch.no_grad()
def embed(
    model: nn.Module, images: torch.Tensor | Dataset | Sequence, batch_size: int | None = None, progress: bool = False
) -> torch.Tensor:
    """Features [n, D] (float32, on the CPU) by `model.encode_image` in evaluation mode; the mode is restored.

    model: a TunedCLIP (ProS, a baseline) or a PromptableCLIP (`load_clip`).
    images: normalised images [n, 3, H, W]; a Dataset of such images, alone or first in a tuple (`Images`); or a list of
    PIL images or paths of image files, of any size and mode, which are read and prepared a batch at a time.
    batch_size: None for what is fast, 32 on a CPU (mini-CLIP's activations stay in its cache) and 256 on a GPU.
    Raises UserError when there is no image, or one cannot be read.
    """
    if not len(images):
        raise UserError("There is no image to embed.")
    device = next(model.parameters()).device
    batch_size = batch_size or (32 if device.type == "cpu" else 256)
    if torch.is_tensor(images):
        batches = images.split(batch_size)
    else:
        if not isinstance(images, Dataset):
            images = Pictures(images, model_transform(model))
        workers = model.config.workers if hasattr(model, "config") else 0
        batches = DataLoader(images, batch_size, num_workers=workers if len(images) > batch_size else 0)
    was_training = model.training
    model.eval()
    try:
        batches = (
            batch if torch.is_tensor(batch) else batch[0]
            for batch in tqdm(batches, desc="Embedding", disable=not progress)
        )
        features = [model.encode_image(batch.to(device)).float().cpu() for batch in batches]
    finally:
        model.train(was_training)
    return torch.cat(features)


def embed_rows(
    model: nn.Module, data: ImageDomains, rows: torch.Tensor, switches: Switches | None = None, progress: bool = False
) -> torch.Tensor:
    """Features [m, D] of the images in `rows` [m] of `data`, prepared as the model's CLIP and the switches want them.

    switches: the model's where none are given; `polarity` inverts the colours of some domains.
    """
    switches = switches or (model.config.switches if hasattr(model, "config") else Switches())
    return embed(model, Images(data, rows, model_transform(model), inverted_domains(switches)), progress=progress)


def model_transform(model: nn.Module) -> v2.Compose:
    """The evaluation transform with the size, mean and standard deviation of the model's CLIP; a CLIP is its own."""
    clip = getattr(model, "clip", model)
    return eval_transform(clip.image_size, clip.mean, clip.std)


def switch_options(switches):
    """`Switches` as options of `retrieval_metrics`: {"similarity", "ap_norm"}."""
    return dict(
        similarity="cosine" if switches.similarity == "paper" else "euclidean",
        ap_norm="relevant" if switches.average_precision == "paper" else "hits",
    )


def evaluate(model, split, switches=None, extra=None, progress=False):
    """Metrics of a model on a split: DataFrame of one row; see `evaluate_all`."""
    return evaluate_all(model, [split], switches, extra, progress)


def evaluate_all(model, splits, switches=None, extra=None, progress=False):
    """Metrics of a model on splits of the same folder, one row each; every image is embedded once.

    Columns: method, protocol, unseen_domain, gallery, seed, queries, gallery_size, mAP@200, Prec@200,
    mAP@all, Prec@100, and those of the dict `extra`, which wins where names are the same. `switches`
    (default: the model's) say how to rank and what AP is divided by.
    """
    switches = switches or model.config.switches
    data = splits[0].data
    rows = torch.cat([rows for split in splits for rows in (split.query, split.gallery)]).unique()
    features = embed_rows(model, data, rows, switches, progress)
    features = features.to(next(model.parameters()).device)  # a GPU ranks faster

    table = []
    for split in splits:
        query, gallery = torch.searchsorted(rows, split.query), torch.searchsorted(rows, split.gallery)
        metrics = retrieval_metrics(
            features[query],
            data.class_index[split.query],
            features[gallery],
            data.class_index[split.gallery],
            **switch_options(switches),
        )
        case = {
            "method": model.label,
            "protocol": split.protocol,
            "unseen_domain": split.unseen_domain,
            "gallery": split.gallery_kind,
            "seed": split.seed,
            "queries": len(query),
            "gallery_size": len(gallery),
        }
        table.append(case | metrics | (extra or {}))
    return pd.DataFrame(table)
