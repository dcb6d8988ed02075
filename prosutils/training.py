"""One training loop for every method, with validation, checkpoints and resume."""

import copy
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm.auto import tqdm

from . import processes
from .backbone import PromptableCLIP
from .checkpoints import (
    identity,
    load_tuned,
    other_version,
    read_checkpoint,
    refuse_other_run,
    save_checkpoint,
    stage1_key,
)
from .config import Config, Stage, Switches
from .domains import BalancedSampler, ImageDomains, Images, inverted_domains, train_transform
from .evaluation import embed, fast_batch, loader, once, own_part, rows_as_images, switch_options
from .files import UserError
from .logs import EpochLog, log_epoch
from .methods import find_method
from .metrics import retrieval_metrics
from .splits import Split
from .tables import write_table
from .tuned import TunedCLIP

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: Columns of a run's history.
HISTORY = ["stage", "epoch", "loss", "accuracy", "images", "val_mAP@200"]
#: Steps after which a GPU is asked for the loss: each time it has to finish its work first. A CPU is asked at every
#: step.
STEPS_UNASKED = 20


def build_model(method: str, clip: PromptableCLIP, split: Split, config: Config) -> TunedCLIP:
    """A model of `method`, a key of METHODS, for a split's seen classes and training domains."""
    model = find_method(method)(clip, split.seen_classes, split.train_domains, config)
    model.trained_on = split.training()
    return model


def train(
    model: TunedCLIP,
    split: Split,
    folder: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    shared: str | Path | None = None,
    log: EpochLog | None = None,
) -> pd.DataFrame:
    """Train all stages of `model` on `split.train` and fill its statistics; returns the history, a DataFrame with one
    row per epoch.

    Columns: stage, epoch, loss (mean over the epoch), accuracy (of the batches, over the seen classes), val_mAP@200,
    images (seen so far). The model ends with the parameters of its best epoch (Switches.selection).
    folder: where `checkpoint.pt` and `history.csv` are kept after every epoch, each written in one step. resume=True
    goes on from the checkpoint.
    shared: a folder of finished first stages. A run whose stage 1 is there begins after it, with the same result.
    log: a function that is given every epoch's row (`open_log`); Python's log, "prosutils", is told in any case.
    In a run of several processes (`processes`) all of them call `train` alike; each computes its part of every batch, and
    the main process writes.
    Raises UserError when the checkpoint is of another run, saying what differs, the folder cannot be written, the loss
    is no longer a number, or memory runs out: the last epoch is then in the checkpoint.
    """
    run = TrainingRun(model, split, folder, progress, log)
    with processes.fork_random(run.device):  # dropout and augmentation draw from torch's own generator
        torch.manual_seed(model.config.seed)
        if resume and model.stages:
            run.restore()
        for stage in model.stages:
            if stage == 1 and shared and not run.stage:
                run.share_stage1(Path(shared))
            elif stage >= run.stage:
                run.train_stage(stage)
    run.finish()
    if model.statistics:
        fit_statistics(model, split)
    return run.table()


def fit_statistics(model: TunedCLIP, split: Split) -> None:
    """Fill the statistics of a model from CLIP's features of `split.train`, read as a test reads pictures."""
    features = embed(model.clip, rows_loader(model, split.data, split.train))
    class_index = lookup(split.data.classes, model.classes)[split.data.class_index[split.train]]
    domain_index = lookup(split.data.domains, model.domains)[split.data.domain_index[split.train]]
    device = next(model.parameters()).device
    model.fit_features(features.to(device), class_index.to(device), domain_index.to(device))


class SeededImages(Dataset):
    """Images whose augmentation is drawn from the seed that comes with a position: `images[(position, seed)]`.

    So it is the same in whichever process an image is read.
    """

    def __init__(self, images: Dataset) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position_and_seed: tuple[int, int]):
        position, seed = position_and_seed
        before = torch.get_rng_state()
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would set the GPU's generators too
        try:
            return self.images[position]
        finally:
            torch.set_rng_state(before)


class SeededBatches(Sampler):
    """The batches of a sampler as lists of (position, seed), the seeds drawn from `generator`.

    Every process draws whole batches, all the same, and yields its own part of each.
    """

    def __init__(self, batches: Sampler, generator: torch.Generator) -> None:
        self.batches, self.generator = batches, generator

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self):
        for batch in self.batches:
            seeds = torch.randint(2**62, (len(batch),), generator=self.generator).tolist()
            yield list(zip(batch, seeds, strict=True))[processes.share(len(batch))]


class TrainingRun:
    """The state of one training: what a checkpoint holds beside the model."""

    def __init__(
        self,
        model: TunedCLIP,
        split: Split,
        folder: str | Path | None,
        progress: bool,
        log: EpochLog | None = None,
    ) -> None:
        self.model, self.split, self.log = model, split, log
        self.progress = progress and processes.is_main()
        self.config, self.device = model.config, next(model.parameters()).device
        self.path = Path(folder) / "checkpoint.pt" if folder else None
        self.stage, self.epoch, self.images, self.history = 0, 0, 0, []
        self.optimiser, self.optimiser_state, self.batch_size = None, None, 0
        self.best_map, self.best_state, self.stale = -1.0, None, 0
        self.validation = None  # made when it is first wanted, and kept: its processes are started once
        self.generator = torch.Generator().manual_seed(self.config.seed)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=fast_type(self.device) == torch.float16)
        clip, released = model.clip, self.config.switches.normalisation == "released"
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if released else (clip.mean, clip.std)
        self.data = Images(
            split.data, split.train, train_transform(clip.image_size, mean, std), inverted_domains(self.config.switches)
        )
        self.class_of = lookup(split.data.classes, model.classes)
        self.domain_of = lookup(split.data.domains, model.domains)

    # --- one stage, one epoch ------------------------------------------------------------------------------------

    def train_stage(self, stage: int):
        """Epochs of one stage until they are done or, in the last stage, validation has not improved for a while."""
        settings = self.config.stage1 if stage == 1 else self.config.stage2
        self.begin_stage(stage, settings)
        sampler = BalancedSampler(
            self.split.data, self.split.train, settings.batch_size, self.generator, settings.classes_per_batch
        )
        batches = loader(
            SeededImages(self.data),
            self.config.workers,
            batch_sampler=SeededBatches(sampler, self.generator),
            pin_memory=self.device.type == "cuda",
        )
        last = stage == self.model.stages[-1]
        while self.epoch < settings.epochs and not (last and self.stale >= settings.patience):
            set_rates(self.optimiser, settings, self.epoch)
            with processes.clear_errors(f"stage{stage}.batch_size"):
                row = self.train_epoch(batches, stage)
            if last:
                row |= self.validate()
            self.epoch += 1
            self.history.append(dict(stage=stage, epoch=self.epoch) | row)
            processes.on_main(self.save)
            if processes.is_main():
                log_epoch(self.model.label, self.history[-1])
                if self.log:
                    self.log(self.history[-1])

    def share_stage1(self, shared: Path):
        """Stage 1, trained here, or taken from a run that trained it alike and left it in `shared`."""
        path = shared / f"{stage1_key(self.model)}.pt"
        with processes.only_one(path):
            if not processes.on_main(path.exists):
                self.train_stage(1)
                processes.on_main(save_checkpoint, self.model, path, self.state())
                return
        stored = read_checkpoint(path)
        wanted = self.model.tuned_state(stages=(1,))  # a variant of the method may have left more
        load_tuned(self.model, {k: v for k, v in stored["state"].items() if k in wanted}, path, stages=(1,))
        self.take(stored["training"])

    def begin_stage(self, stage: int, settings: Stage):
        if stage != self.stage:
            self.stage, self.epoch = stage, 0
        self.batch_size = settings.batch_size
        groups = self.model.set_stage(stage)
        self.optimiser = torch.optim.Adam(
            [dict(params=parameters, name=name) for name, parameters in groups.items()], lr=settings.lr
        )
        if self.optimiser_state is not None:
            self.optimiser.load_state_dict(self.optimiser_state)
            self.optimiser_state = None

    def train_epoch(self, batches: DataLoader, stage: int):
        """One pass of the balanced sampler: {"loss", "accuracy", "images"}."""
        self.model.train()
        total = torch.zeros(3, device=self.device)  # loss, hits, images
        unasked = 1 if self.device.type == "cpu" else STEPS_UNASKED
        name = f"{self.model.label} stage {stage} epoch {self.epoch + 1}"
        bar = tqdm(once(batches), desc=name, total=len(batches), leave=False, disable=not self.progress)
        for step, batch in enumerate(bar, 1):
            loss, hits = self.train_step(batch, stage)
            total += torch.stack([loss * self.batch_size, hits, torch.full_like(loss, self.batch_size)])
            if step % unasked == 0:
                self.refuse_broken(total[0], stage, step)
                bar.set_postfix(loss=f"{total[0] / total[2]:.3f}")
        self.refuse_broken(total[0] + self.parameter_sum(), stage, step)
        loss, hits, images = total.tolist()
        self.images += int(images)
        return dict(loss=loss / images, accuracy=hits / images, images=self.images)

    def train_step(self, batch: Sequence[torch.Tensor], stage: int):
        """One step of the optimiser on (images, class_index, domain_index), this process's part of the batch: the loss of
        the whole batch and how many of its images were right, scalars that are left on the device."""
        images, labels, domains = batch[0], self.class_of[batch[1]], self.domain_of[batch[2]]
        images, labels, domains = (x.to(self.device, non_blocking=True) for x in (images, labels, domains))
        with fast_precision(self.device), processes.one_batch(self.batch_size):
            loss, logits = self.model.loss_and_logits(images, labels, domains, stage)
        loss = loss * (len(images) / self.batch_size)  # the parts add up to the mean over the batch
        self.optimiser.zero_grad()
        self.scaler.scale(loss).backward()
        loss, hits = loss.detach().float(), (logits.argmax(1) == labels).float().sum()
        processes.add_up([loss, hits, *(p.grad for p in self.trained() if p.grad is not None)])
        self.scaler.step(self.optimiser)
        self.scaler.update()
        return loss, hits

    def trained(self):
        """The parameters that train in this stage."""
        return [p for group in self.optimiser.param_groups for p in group["params"]]

    def parameter_sum(self):
        """A scalar that is no number where a parameter that trains is none."""
        return torch.stack([p.detach().float().sum() for p in self.trained()]).sum()

    def refuse_broken(self, value: torch.Tensor, stage: int, step: int):
        """UserError where a loss, or what came of it, is not a finite number: before it gets into a checkpoint."""
        if not value.isfinite():
            raise UserError(
                f"The training loss is {value.item()} at step {step} or shortly before, in epoch {self.epoch + 1} of "
                f"stage {stage}: lower the learning rates of stage {stage}."
            )

    def validate(self):
        """mAP@200 on validation classes (paper) or on the test queries (released); keeps the best epoch's state.

        It is ranked and divided as the same side does it: `similarity` and `average_precision` choose no epoch.
        """
        split, on_test = self.split, self.config.switches.selection == "released"
        query, gallery = (split.query, split.gallery) if on_test else (split.val_query, split.val_gallery)
        if not len(query):
            return {"val_mAP@200": float("nan")}
        if self.validation is None:
            self.validation = rows_loader(self.model, split.data, torch.cat([query, gallery]))
        switches = Switches.released() if on_test else Switches()
        value = mean_average_precision(self.model, split.data, query, gallery, switches, self.validation)
        self.stale = 0 if value > self.best_map else self.stale + 1
        if value > self.best_map:
            self.best_map, self.best_state = value, copy.deepcopy(self.model.tuned_state())
        return {"val_mAP@200": value}

    def finish(self):
        """Leave the model with the best epoch's parameters, everything frozen, in evaluation mode."""
        if self.best_state is not None:
            load_tuned(self.model, self.best_state, self.path or "the best epoch")
        self.model.requires_grad_(False).eval()

    # --- checkpoints ---------------------------------------------------------------------------------------------

    def state(self):
        """Where the run stands: what `take` goes on from, the optimiser aside."""
        return dict(
            stage=self.stage,
            epoch=self.epoch,
            images=self.images,
            history=self.history,
            best_map=self.best_map,
            best_state=self.best_state,
            stale=self.stale,
            generator=self.generator.get_state(),
            memory={name: self.model.get_buffer(name) for name in self.model.memory},
            torch=torch.get_rng_state(),
            cuda=[torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else [],
            mps=torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
            scaler=self.scaler.state_dict(),
        )

    def take(self, state: dict):
        for name in ("stage", "epoch", "images", "history", "best_map", "best_state", "stale"):
            setattr(self, name, state[name])
        for name, value in state.get("memory", {}).items():
            self.model.get_buffer(name).copy_(value)
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["torch"])
        if state["cuda"] and self.device.type == "cuda":  # by which dropout draws there
            torch.cuda.set_rng_state(state["cuda"][0], self.device)
        if state.get("mps") is not None and torch.backends.mps.is_available():
            torch.mps.set_rng_state(state["mps"])
        if state.get("scaler") and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])

    def save(self):
        if self.path:
            save_checkpoint(self.model, self.path, self.state() | dict(optimiser=self.optimiser.state_dict()))
            write_table(self.table(), self.path.with_name("history.csv"))

    def table(self):
        """The history as a DataFrame, one row per epoch."""
        return pd.DataFrame(self.history, columns=HISTORY)

    def restore(self):
        if not (self.path and self.path.exists()):
            raise UserError(f"There is nothing to resume in {self.path.parent if self.path else 'no folder'}.")
        stored = read_checkpoint(self.path)
        refuse_other_run(stored["identity"], identity(self.model), self.path)
        training = stored["training"] or {}
        if missing := {*self.state(), "optimiser"} - {"mps", "scaler", "memory"} - set(training):
            raise UserError(other_version(self.path, f"it lacks {', '.join(sorted(missing))} of a run to go on with"))
        load_tuned(self.model, stored["state"], self.path)
        self.take(training)
        self.optimiser_state = training["optimiser"]


def mean_average_precision(
    model: TunedCLIP,
    data: ImageDomains,
    query: torch.Tensor,
    gallery: torch.Tensor,
    switches: Switches | None = None,
    batches: DataLoader | None = None,
):
    """mAP@200 of some rows of `data`, ranked as `switches` say (default: the model's).

    query [Q], gallery [G]: rows; batches: a loader of both, the queries first, where it is kept (`rows_loader`).
    """
    features = embed(model, batches or rows_loader(model, data, torch.cat([query, gallery])))
    return processes.on_main(
        retrieval_metrics,
        features[: len(query)],
        data.class_index[query],
        features[len(query) :],
        data.class_index[gallery],
        **switch_options(switches or model.config.switches),
        whole=False,
    )["mAP@200"]


def rows_loader(model: TunedCLIP, data: ImageDomains, rows: torch.Tensor):
    """A DataLoader of some rows of `data` for `embed`, which may go through it again and again."""
    images, device = rows_as_images(model, data, rows), next(model.parameters()).device
    return loader(own_part(images), model.config.workers, batch_size=fast_batch(device))


def lookup(names: Sequence[str], known: Sequence[str]):
    """[len(names)] table from a row of `names` to its row of `known`, -1 where it has none."""
    return torch.tensor([known.index(name) if name in known else -1 for name in names])


def set_rates(optimiser: torch.optim.Optimizer, settings: Stage, epoch: int):
    """Rates of an epoch: a thousandfold fall over `decay_epochs`, floor `min_lr` [released code: trainer.py]."""
    decay = 10 ** (-3 * epoch / settings.decay_epochs)
    rates = dict(prompts=settings.lr, simulator=settings.lr_simulator, heads=settings.lr_heads)
    for group in optimiser.param_groups:
        rate = rates[group["name"]]
        group["lr"] = max(rate * decay, min(settings.min_lr, rate))


def has_bfloat16(device: torch.device):
    """Whether a device computes in bfloat16 itself; a processor without it takes many times float32's time."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def fast_type(device: torch.device):
    """The short type that a training computes in: bfloat16 on an Nvidia GPU that has it, float16 on an older one (a T4).

    None, which is float32 as in the released code, everywhere else: a run gives the same numbers on every processor.
    """
    if device.type != "cuda":
        return None
    return torch.bfloat16 if has_bfloat16(device) else torch.float16


def fast_precision(device: torch.device):
    """Autocast to `fast_type`. In float16 gradients have to be scaled, or small ones become 0 (torch.amp.GradScaler)."""
    kind = fast_type(device)
    return torch.autocast(device.type, kind or torch.bfloat16, enabled=kind is not None)
