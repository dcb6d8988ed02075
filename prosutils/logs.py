"""Where the epochs of a training are told: the log of Python, TensorBoard, Weights & Biases."""

import importlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .files import UserError

#: `logging.getLogger("prosutils")` tells every epoch (level INFO); what shows or keeps it is the program's own choice.
LOGGER = logging.getLogger("prosutils")
#: A function that takes an epoch's row, {"stage", "epoch", "loss", "accuracy", "images", "val_mAP@200"}.
EpochLog = Callable[[Mapping[str, Any]], None]
VALUES = ("loss", "accuracy", "val_mAP@200")
PACKAGES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}


def log_epoch(name: str, row: Mapping[str, Any]) -> None:
    """One line of an epoch in Python's log: "ProS: stage 2, epoch 3: loss 1.512, accuracy 0.641, val_mAP@200 0.337"."""
    values = ", ".join(f"{key} {row[key]:.3f}" for key in VALUES if key in row)
    LOGGER.info("%s: stage %d, epoch %d: %s", name, row["stage"], row["epoch"], values)


def open_log(kind: str, folder: str | Path) -> EpochLog:
    """A log of `kind`, "tensorboard" (files in `folder`) or "wandb" (a run named like the folder).

    The x axis is the number of images seen. Raises UserError for an unknown kind, and where its package is missing.
    """
    if kind not in PACKAGES:
        raise UserError(f"Unknown log {kind!r}. Known: {', '.join(PACKAGES)}.")
    try:
        package = importlib.import_module(PACKAGES[kind])
    except ImportError:
        raise UserError(f"The log {kind} needs a package that is not installed: pip install {kind}.") from None
    folder = Path(folder)
    if kind == "wandb":
        run = package.init(project="prosutils", name=folder.name, dir=str(folder))
        return lambda row: run.log(dict(row), step=row["images"])
    writer = package.SummaryWriter(str(folder))

    def write(row: Mapping[str, Any]) -> None:
        for key in VALUES:
            if key in row:
                writer.add_scalar(f"stage {row['stage']}/{key}", row[key], row["images"])
        writer.flush()

    return write
