"""From a preset to a trained and measured model: what the command line and the notebooks do alike."""

import dataclasses
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import pandas as pd
import torch

from . import pictonet
from .backbone import PromptableCLIP, load_clip
from .config import Config
from .domains import ImageDomains
from .evaluation import evaluate_all
from .files import UserError, only_one
from .published import Benchmark, load_benchmark
from .splits import protocol_splits
from .tables import write_table
from .training import build_model, identity, load_checkpoint, read_checkpoint, refuse_other_run, save_checkpoint, train


@dataclass
class Experiment:
    """A configuration, its images and its splits; `fit` gives a model of any method, trained once and kept."""

    config: Config
    data: ImageDomains
    splits: list  # the measurements: UCDR unseen and mixed gallery, UcCDR, UdCDR; or UcCDR alone
    clip: PromptableCLIP
    artifacts: Path
    device: torch.device
    benchmark: Benchmark | None = None  # whose published sizes the splits have

    @property
    def split(self):
        """The split that training and the first measurement use: UCDR, unseen gallery, where a domain is held out."""
        return self.splits[0]

    def folder(self, method):
        """Where a method's run is kept."""
        name = f"{self.config.preset}-{method}-{self.split.unseen_domain or 'none'}-seed{self.config.seed}"
        return self.artifacts / "runs" / name

    def fit(self, method="pros", resume=False, progress=True, shared=None, shipped=False):
        """(model, history) of `method`: loaded where the same run is finished, else trained and saved.

        history: one row per epoch; empty for zero-shot. shared: see `train`. shipped: where the same run comes with the
        package (data_scripts/ship_models.py trained it) that one will do. Raises UserError when the folder holds
        another run and `resume` is asked; without it another run is replaced.
        """
        model = build_model(method, self.clip, self.split, self.config).to(self.device)
        if not model.stages:
            return model.requires_grad_(False).eval(), pd.DataFrame()
        folder = self.folder(method)
        finished, history = folder / "model.pt", folder / "history.csv"
        with only_one(folder):
            if finished.exists() and history.exists() and same_run(finished, model):
                return load_checkpoint(finished, self.clip).to(self.device), pd.read_csv(history)
            packed = shipped_model(folder.name)
            if shipped and same_run(packed, model):
                rows = read_checkpoint(packed)["training"]["history"]
                return load_checkpoint(packed, self.clip).to(self.device), pd.DataFrame(rows)
            table = train(model, self.split, folder, resume, progress, shared)
            write_table(table, history)
            save_checkpoint(model, finished)
        return model, table

    def evaluate(self, model, progress=False):
        """The measurements of a model, one row each, with the seed, held-out domain and training classes of the run."""
        extra = {
            "seed": self.config.seed,
            "unseen_domain": self.split.unseen_domain or "none",
            "training_classes": self.config.training_classes,
        }
        return evaluate_all(model, self.splits, extra=extra, progress=progress)


def shipped_model(name):
    """Path of a trained model that comes with the package, by the name of its run's folder; it need not exist."""
    return Path(str(resources.files("prosutils") / "data" / "trained" / f"{name}.pt"))


def same_run(path, model):
    """Whether a checkpoint is of this model's method, classes, domains, training pictures and settings."""
    try:
        refuse_other_run(read_checkpoint(path)["identity"], identity(model), path)
    except UserError:
        return False
    return True


def prepare(
    config, folder=None, unseen_classes=None, artifacts="artifacts", device=None, on_error="skip", progress=True
):
    """An Experiment: images laid out or read, splits made, backbone loaded.

    folder: a `domain/class/image` folder; None lays out PictoNet at the size the preset wants. device: "cuda", "cpu" or
    None for what there is. Raises UserError for data, domains or classes that do not fit.
    """
    if folder is None and config.dataset != "pictonet":
        raise UserError(f"The preset {config.preset} needs --data, a folder laid out as domain/class/image.")
    own = folder is not None  # its images are decoded once, so that damage does not end the training
    if folder is None:
        folder = lay_out_pictonet(config, progress)
    benchmark = None if config.dataset in ("pictonet", "folder") else load_benchmark(config.dataset)
    if benchmark and unseen_classes:
        raise UserError(
            f"{benchmark.name} has fixed unseen classes: leave --unseen-classes away, or give "
            "--dataset folder and name them all."
        )
    data = benchmark.open(folder, on_error) if benchmark else ImageDomains.from_folder(folder, on_error, decode=own)
    splits = benchmark_splits(config, data, benchmark) if benchmark else drawn_splits(config, data, unseen_classes)
    config = fit_batches(config, len(splits[0].train_domains))
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    clip = load_clip(config.backbone, config.pretrained).to(device)
    return Experiment(config, data, splits, clip, Path(artifacts), device, benchmark)


def pictonet_folder(config):
    """Where PictoNet lies as a configuration wants it: its tier, strength and size in pixels."""
    return pictonet.default_folder(config.pixels, config.tier, config.strength)


def lay_out_pictonet(config, progress=True):
    """Draw PictoNet as a configuration wants it, where that is not done yet; returns the folder."""
    folder, tier, strength = pictonet_folder(config), config.tier, config.strength
    return pictonet.lay_out(folder, config.pixels, progress, tier=tier, strength=strength)


def benchmark_splits(config, data, benchmark):
    """The splits of a published benchmark, as a configuration wants them."""
    return benchmark.splits(data, config.unseen_domain, config.training_classes, config.split_seed, config.switches)


def drawn_splits(config, data, unseen_classes=None):
    """The splits of PictoNet or of any folder: classes that are not given are drawn."""
    gallery = config.gallery_domain if config.gallery_domain in data.domains else None
    return protocol_splits(
        data,
        config.unseen_domain,
        unseen_classes=unseen_classes,
        gallery_domain=gallery,
        val_classes=[] if config.training_classes == "train+val" else None,
        seed=config.split_seed,
        switches=config.switches,
    )


def fit_batches(config, domains):
    """The configuration with batch sizes rounded to a multiple of the number of training domains."""

    def rounded(stage):
        return dataclasses.replace(stage, batch_size=max(1, round(stage.batch_size / domains)) * domains)

    return dataclasses.replace(config, stage1=rounded(config.stage1), stage2=rounded(config.stage2))


def add_results(table, path):
    """Rows of `table` into the results at `path`, replacing older rows of the same case; returns all rows."""
    case = ["preset", "method", "protocol", "unseen_domain", "gallery", "training_classes", "seed"]
    if Path(path).exists():
        table = pd.concat([pd.read_csv(path), table])
    table = table.drop_duplicates(case, keep="last").sort_values(case, ignore_index=True)
    write_table(table, path)
    return table


def by_held_out_domain(results, preset, method, protocol, gallery, metric="mAP@200"):
    """A benchmark's rows of `add_results` as papers count them: the mean over seeds of each held-out domain, a Series.

    Only runs on all classes that are not tested (training_classes="train+val"): the others choose the number of epochs.
    """
    wanted = dict(preset=preset, method=method, protocol=protocol, gallery=gallery, training_classes="train+val")
    rows = results[(results[list(wanted)] == pd.Series(wanted)).all(axis=1)]
    return rows.groupby("unseen_domain")[metric].mean()
