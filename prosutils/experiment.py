"""From a preset to a trained and measured model: what the command line and the notebooks do alike."""

import dataclasses
import glob
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import pandas as pd
import torch

from . import pictonet, processes
from .backbone import PromptableCLIP, load_clip
from .checkpoints import (
    config_from_dict,
    differences,
    flat,
    identity,
    load_checkpoint,
    read_checkpoint,
    refuse_other_run,
    save_checkpoint,
    what_trains,
)
from .config import Config, override
from .domains import ImageDomains
from .evaluation import evaluate_all, other_training
from .files import UserError, refuse_unwritable
from .logs import EpochLog
from .published import Benchmark, load_benchmark
from .splits import protocol_splits
from .tables import RESULTS, add_rows
from .training import build_model, train
from .tuned import TunedCLIP

#: Settings that a checkpoint may be measured with though it was trained with others.
FREE_TO_MEASURE = {"preset", "workers", "switches.similarity", "switches.average_precision"}


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

    def folder(self, method: str):
        """Where a method's run is kept."""
        name = f"{self.config.preset}-{method}-{self.split.unseen_domain or 'none'}-seed{self.config.seed}"
        return self.artifacts / "runs" / name

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        data: str | Path | None = None,
        artifacts: str | Path = "artifacts",
        device: str | None = None,
        on_error: str = "skip",
        progress: bool = True,
        settings: dict | None = None,
        unseen_classes: Sequence[str] | None = None,
    ):
        """The experiment that a checkpoint was trained in: its settings, seed, held-out domain and classes.

            run = Experiment.from_checkpoint("model.pt", data="my_images")
            table = run.evaluate(run.load("model.pt"))

        data: the `domain/class/image` folder that it was trained on; None lays out PictoNet. settings: as of
        `override`, what is asked for beside; unseen_classes: the same for classes. Free are settings that only name,
        carry out or measure (FREE_TO_MEASURE). Raises UserError where anything else contradicts the checkpoint, naming
        both, and where the folder does not give its classes, domains and training pictures.
        """
        about = read_checkpoint(path)["identity"]
        refuse_contradiction(about, settings or {}, unseen_classes, path)
        config = override(config_from_dict(about["config"], path), settings or {})
        images, benchmark = open_images(config, data, on_error, progress)
        found = find_device(device)
        splits = splits_of_checkpoint(about, config, images, benchmark, unseen_classes, path)
        clip = load_clip(config.backbone, config.pretrained).to(found)
        return cls(config, images, splits, clip, Path(artifacts), found, benchmark)

    def load(self, path: str | Path):
        """The model of a checkpoint that was trained in this experiment. Raises UserError for another one."""
        model = load_checkpoint(path, self.clip).to(self.device)
        self.refuse_other_training(model)
        if not differences(what_trains(identity(model)), what_trains(identity(model, self.config))):
            model.config = self.config  # what only names, carries out or measures is this experiment's
        return model

    def fit(
        self,
        method: str = "pros",
        resume: bool = False,
        progress: bool = True,
        shared: str | Path | None = None,
        shipped: bool = False,
        log: EpochLog | None = None,
    ) -> tuple[TunedCLIP, pd.DataFrame]:
        """(model, history) of `method`: loaded where the same run is finished, else trained and saved.

        history: one row per epoch; empty where no stage is trained. shared, log: see `train`. shipped: where the same
        run comes with the package (data_scripts/ship_models.py trained it) that one will do. Raises UserError when the
        folder holds another run and `resume` is asked, and when it cannot be written; without `resume` another run is
        replaced.
        """
        model = build_model(method, self.clip, self.split, self.config).to(self.device)
        if not (model.stages or model.statistics):
            return model.requires_grad_(False).eval(), pd.DataFrame()
        folder = processes.on_main(self.same_folder, method, model)
        finished = folder / "model.pt"
        with processes.only_one(folder):
            if kept := processes.on_main(finished_run, finished, method, model, shipped):
                return self.load(kept), stored_history(kept)
            processes.on_main(refuse_unwritable, finished)
            table = train(model, self.split, folder, resume, progress, shared, log)
            processes.on_main(save_checkpoint, model, finished, dict(history=table.to_dict("records")))
        return model, table

    def same_folder(self, method: str, model: TunedCLIP):
        """The folder of a method's run, or one of the same run under another preset's name."""
        own = self.folder(method)
        others = own.parent.glob(f"*{glob.escape(own.name.removeprefix(self.config.preset))}")
        holds = [folder for folder in sorted(others) if any(same_run(folder / name, model) for name in RUN_FILES)]
        return own if own in holds or not holds else holds[0]

    def evaluate(self, model: TunedCLIP, progress: bool = False) -> pd.DataFrame:
        """The measurements of a model, one row each, with the seed and training classes of its training.

        Raises UserError where the model was trained on other pictures than this experiment's: it might be measured on
        them.
        """
        self.refuse_other_training(model)
        extra = {"seed": model.config.seed, "training_classes": model.config.training_classes}
        return evaluate_all(model, self.splits, extra=extra, progress=progress)

    def refuse_other_training(self, model: TunedCLIP):
        """UserError where a model was trained on other pictures than those of this experiment's splits."""
        if differing := other_training(model, self.split):
            raise UserError(
                f"{differing}: it may be measured on pictures that it was trained on. "
                "Experiment.from_checkpoint(path, data) makes the experiment that it was trained in."
            )


#: What `fit` leaves in a run's folder: the finished model, and the state after the last epoch.
RUN_FILES = ("model.pt", "checkpoint.pt")


def finished_run(finished: Path, method: str, model: TunedCLIP, shipped: bool):
    """Path of a model, with its history, that the same run has left or, if wanted, that is shipped; None if there is none."""
    there = [finished] if finished.exists() and same_run(finished, model) else []
    packed = shipped_model(method, model) if shipped else None
    return next((path for path in filter(None, [*there, packed]) if stored_history(path) is not None), None)


def stored_history(path: Path):
    """The history, a DataFrame, of a finished model; None where nothing tells it. Version 0.1 kept it beside the file."""
    rows = (read_checkpoint(path)["training"] or {}).get("history")
    if rows is not None:
        return pd.DataFrame(rows)
    beside = path.with_name("history.csv")
    return pd.read_csv(beside) if beside.exists() else None


def shipped_path(name: str):
    """Path of a trained model that comes with the package, by the name of its run's folder; it need not exist."""
    return Path(str(resources.files("prosutils") / "data" / "trained" / f"{name}.pt"))


def shipped_model(method: str, model: TunedCLIP):
    """Path of the trained model of the same run that comes with the package; None where there is none."""
    files = sorted(shipped_path("any").parent.glob(f"*-{method}-*.pt"))
    return next((path for path in files if same_run(path, model)), None)


def same_run(path: str | Path, model: TunedCLIP):
    """Whether a checkpoint has the method, classes, domains, training pictures and settings that train this model."""
    try:
        refuse_other_run(read_checkpoint(path)["identity"], identity(model), path)
    except UserError:
        return False
    return True


def find_device(name: str | None = None):
    """The torch.device of that name; without a name a GPU (cuda, or Apple's mps) where there is one, else the CPU. In a run
    of several processes the one that belongs to this process.

    Raises UserError for a name that is none, and for a device that this machine lacks.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    found = ", ".join(kind for kind, is_there in there.items() if is_there)
    if name is None:
        return processes.connect() if processes.count() > 1 else torch.device(found.split(", ")[0])
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in there:
        raise UserError(f"Unknown device {str(name)!r}. This machine has: {found}.")
    if not there[device.type] or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        raise UserError(f"There is no device {device} here: no such GPU, or a PyTorch without it. There is: {found}.")
    return processes.connect(name) if processes.count() > 1 else device


def prepare(
    config: Config,
    folder: str | Path | None = None,
    unseen_classes: Sequence[str] | None = None,
    artifacts: str | Path = "artifacts",
    device: str | None = None,
    on_error: str = "skip",
    progress: bool = True,
) -> Experiment:
    """An Experiment: images laid out or read, splits made, backbone loaded.

    folder: a `domain/class/image` folder; None lays out PictoNet at the size the preset wants. device: "cuda", "mps",
    "cpu" or None for what there is. Raises UserError for data, domains, classes or a device that do not fit.
    """
    found = find_device(device)
    data, benchmark = open_images(config, folder, on_error, progress, unseen_classes)
    splits = benchmark_splits(config, data, benchmark) if benchmark else drawn_splits(config, data, unseen_classes)
    config = fit_batches(config, len(splits[0].train_domains))
    clip = load_clip(config.backbone, config.pretrained).to(found)
    return Experiment(config, data, splits, clip, Path(artifacts), found, benchmark)


def open_images(
    config: Config,
    folder: str | Path | None,
    on_error: str,
    progress: bool,
    unseen_classes: Sequence[str] | None = None,
):
    """(ImageDomains, Benchmark or None) of a configuration: of a folder, or PictoNet laid out."""
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
    return data, benchmark


def refuse_contradiction(about: dict, settings: dict, unseen_classes: Sequence[str] | None, path: str | Path):
    """UserError where settings or unseen classes that are asked for are not those of a checkpoint, naming both."""
    there = config_from_dict(about["config"], path)
    here = fit_batches(override(there, settings), len(about["domains"]))
    differing = differences(flat(dataclasses.asdict(there)), flat(dataclasses.asdict(here)))
    told = [
        f"{name}={was}, and you ask for {name}={now}"
        for name, (was, now) in differing.items()
        if name not in FREE_TO_MEASURE
    ]
    known = about.get("unseen_classes")
    if unseen_classes and known is not None and set(unseen_classes) != set(known):
        told.append(f"the unseen classes {', '.join(known)}, and you ask for {', '.join(sorted(unseen_classes))}")
    overlap = sorted(set(unseen_classes or []) & set(about["classes"]))
    if overlap:
        told.append(f"the classes {', '.join(overlap)} among the seen ones, and you ask for them as unseen")
    if told:
        raise UserError(
            f"{path} was trained with {'; with '.join(told)}. Leave the option away, or give the checkpoint that was "
            "trained so."
        )


def splits_of_checkpoint(
    about: dict,
    config: Config,
    data: ImageDomains,
    benchmark: Benchmark | None,
    unseen_classes: Sequence[str] | None,
    path: str | Path,
):
    """The splits that a checkpoint was trained and is measured on, made again on a folder.

    unseen_classes: for a file of an earlier version, which does not hold them. Raises UserError where the folder gives
    other classes, domains or training pictures.
    """
    lacking = sorted({*about["classes"], *(about.get("val_classes") or [])} - set(data.classes))
    if lacking and not benchmark:
        raise UserError(
            f"{path} was trained on {len(lacking)} classes that {data.root} does not have ({', '.join(lacking[:5])}): "
            "give the folder of its training with --data."
        )
    if benchmark:
        splits = benchmark_splits(config, data, benchmark)
    elif about.get("unseen_classes") is None:
        splits = drawn_splits(config, data, unseen_classes)
    else:
        splits = protocol_splits(
            data,
            config.unseen_domain,
            unseen_classes=about["unseen_classes"],
            val_classes=about["val_classes"],
            seen_classes=about["classes"],
            gallery_domain=about["gallery_domain"],
            seed=config.split_seed,
            switches=config.switches,
        )
    split = splits[0]
    here = dict(classes=list(split.seen_classes), domains=list(split.train_domains)) | split.training()
    compared = ("classes", "domains", "training_pictures")
    differing = differences({name: about.get(name) for name in compared}, {name: here[name] for name in compared})
    if about.get("training_pictures") is None:
        differing.pop("training_pictures", None)
    if differing:
        told = "; ".join(f"{name}: {there} there, {now} here" for name, (there, now) in differing.items())
        raise UserError(
            f"{path} was not trained on what {data.root} gives ({told}), so that it might be measured on pictures that "
            "it was trained on. Give the folder as it was at its training"
            + (", and its --unseen-classes." if about.get("unseen_classes") is None else ".")
        )
    return splits


def pictonet_folder(config: Config):
    """Where PictoNet lies as a configuration wants it: its tier, strength and size in pixels."""
    return pictonet.default_folder(config.pixels, config.tier, config.strength)


def lay_out_pictonet(config: Config, progress: bool = True):
    """Draw PictoNet as a configuration wants it, where that is not done yet; returns the folder."""
    folder, tier, strength = pictonet_folder(config), config.tier, config.strength
    return pictonet.lay_out(folder, config.pixels, progress, tier=tier, strength=strength)


def benchmark_splits(config: Config, data: ImageDomains, benchmark: Benchmark):
    """The splits of a published benchmark, as a configuration wants them."""
    return benchmark.splits(data, config.unseen_domain, config.training_classes, config.split_seed, config.switches)


def drawn_splits(config: Config, data: ImageDomains, unseen_classes: Sequence[str] | None = None):
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


def fit_batches(config: Config, domains: int):
    """The configuration with batch sizes rounded to a multiple of the number of training domains."""

    def rounded(stage):
        return dataclasses.replace(stage, batch_size=max(1, round(stage.batch_size / domains)) * domains)

    return dataclasses.replace(config, stage1=rounded(config.stage1), stage2=rounded(config.stage2))


def describe(run: Experiment) -> str:
    """What will be trained on and measured, in a few lines."""
    split, domains = run.split, ", ".join(run.split.train_domains)
    lines = [
        f"{len(run.data)} images; held-out domain {split.unseen_domain}, gallery {split.gallery_domain}; training "
        f"domains {domains}",
        f"{len(split.seen_classes)} seen, {len(split.val_classes)} validation, {len(split.unseen_classes)} unseen "
        f"classes; {len(split.train)} training images; on {run.device}",
        "Parts of the first measurement:",
        split.table().to_string(),
    ]
    if run.benchmark:
        counts, sizes = run.data.counts(), run.benchmark.compare_sizes(run.splits)
        lines += [
            f"Sizes of the protocols of {run.benchmark.name}:",
            sizes.to_string(),
            *run.benchmark.faults(counts),
            *run.benchmark.surplus(counts),
        ]
    if run.config.backbone == "mini" and run.data.root != pictonet_folder(run.config):
        lines.append(
            "Note: mini-CLIP knows icons and drawings. On photographs expect modest numbers; the preset clip "
            "(pacs) takes real CLIP."
        )
    return "\n".join(lines)


def add_results(table: pd.DataFrame, path: str | Path):
    """Rows of `table` into the results at `path`, replacing older rows of the same case; returns all rows.

    See `tables.add_rows`; the columns are `tables.RESULTS`.
    """
    return add_rows(table, path, RESULTS)


def by_held_out_domain(
    results: pd.DataFrame,
    preset: str,
    method: str,
    protocol: str,
    gallery: str,
    metric: str = "mAP@200",
    switches: str = "",
):
    """A benchmark's rows of `add_results` as papers count them: the mean over seeds of each held-out domain, a Series.

    Only runs on all classes that are not tested (training_classes="train+val"): the others choose the number of epochs.
    switches: as in the table's column, "" where all are the paper's.
    """
    wanted = dict(preset=preset, method=method, protocol=protocol, gallery=gallery, training_classes="train+val")
    if "switches" in results:
        results = results.assign(switches=results["switches"].astype(object).fillna(""))
        wanted["switches"] = switches
    rows = results[(results[list(wanted)] == pd.Series(wanted)).all(axis=1)]
    return rows.groupby("unseen_domain")[metric].mean()
