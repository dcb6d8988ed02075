"""One training loop for every method, with validation, checkpoints and resume."""

import copy
import dataclasses
import hashlib
import json
from pathlib import Path

import pandas as pd
import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from .backbone import load_clip
from .config import Config, Stage, Switches
from .domains import BalancedSampler, Images, inverted_domains, train_transform
from .evaluation import embed_rows, switch_options
from .files import UserError, only_one, written_whole
from .metrics import retrieval_metrics
from .tuned import find_method, registered_key

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def build_model(method, clip, split, config):
    """A model of `method`, a key of METHODS, for a split's seen classes and training domains."""
    model = find_method(method)(clip, split.seen_classes, split.train_domains, config)
    model.training_pictures = split.training_pictures()
    return model


def train(model, split, folder=None, resume=False, progress=True, shared=None):
    """Train all stages of `model` on `split.train`; returns the history, a DataFrame with one row per epoch.

    Columns: stage, epoch, loss (mean over the epoch), accuracy (of the batches, over the seen classes), val_mAP@200,
    images (seen so far). The model ends with the parameters of its best epoch (Switches.selection).
    folder: where `checkpoint.pt` is kept after every epoch, written in one step. resume=True goes on from it.
    shared: a folder of finished first stages. A run whose stage 1 is there begins after it, with the same result.
    Raises UserError when the checkpoint is of another run, saying what differs, or the folder cannot be written.
    """
    run = TrainingRun(model, split, folder, progress)
    with torch.random.fork_rng():  # dropout and augmentation draw from torch's own generator
        torch.manual_seed(model.config.seed)
        if resume:
            run.restore()
        for stage in model.stages:
            if stage == 1 and shared and not run.stage:
                run.share_stage1(Path(shared))
            elif stage >= run.stage:
                run.train_stage(stage)
    run.finish()
    return pd.DataFrame(run.history)


class TrainingRun:
    """The state of one training: what a checkpoint holds beside the model."""

    def __init__(self, model, split, folder, progress):
        self.model, self.split, self.progress = model, split, progress
        self.config, self.device = model.config, next(model.parameters()).device
        self.path = Path(folder) / "checkpoint.pt" if folder else None
        self.stage, self.epoch, self.images, self.history = 0, 0, 0, []
        self.optimiser, self.optimiser_state = None, None
        self.best_map, self.best_state, self.stale = -1.0, None, 0
        self.generator = torch.Generator().manual_seed(self.config.seed)
        clip, released = model.clip, self.config.switches.normalisation == "released"
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if released else (clip.mean, clip.std)
        self.data = Images(
            split.data, split.train, train_transform(clip.image_size, mean, std), inverted_domains(self.config.switches)
        )
        self.class_of = lookup(split.data.classes, model.classes)
        self.domain_of = lookup(split.data.domains, model.domains)

    # --- one stage, one epoch ------------------------------------------------------------------------------------

    def train_stage(self, stage):
        """Epochs of one stage until they are done or, in the last stage, validation has not improved for a while."""
        settings = self.config.stage1 if stage == 1 else self.config.stage2
        self.begin_stage(stage, settings)
        sampler = BalancedSampler(
            self.split.data, self.split.train, settings.batch_size, self.generator, settings.classes_per_batch
        )
        loader = DataLoader(self.data, batch_sampler=sampler, num_workers=self.config.workers, generator=self.generator)
        last = stage == self.model.stages[-1]
        while self.epoch < settings.epochs and not (last and self.stale >= settings.patience):
            set_rates(self.optimiser, settings, self.epoch)
            row = self.train_epoch(loader, stage)
            if last:
                row |= self.validate()
            self.epoch += 1
            self.history.append(dict(stage=stage, epoch=self.epoch) | row)
            self.save()

    def share_stage1(self, shared):
        """Stage 1, trained here, or taken from a run that trained it alike and left it in `shared`."""
        path = shared / f"{stage1_key(self.model)}.pt"
        with only_one(path):
            if not path.exists():
                self.train_stage(1)
                save_checkpoint(self.model, path, self.state())
                return
        stored = read_checkpoint(path)
        names = self.model.tuned_state(stages=(1,))
        self.model.load_state_dict({name: stored["state"][name] for name in names}, strict=False)
        self.take(stored["training"])

    def begin_stage(self, stage, settings):
        if stage != self.stage:
            self.stage, self.epoch = stage, 0
        groups = self.model.set_stage(stage)
        self.optimiser = torch.optim.Adam(
            [dict(params=parameters, name=name) for name, parameters in groups.items()], lr=settings.lr
        )
        if self.optimiser_state is not None:
            self.optimiser.load_state_dict(self.optimiser_state)
            self.optimiser_state = None

    def train_epoch(self, loader, stage):
        """One pass of the balanced sampler: {"loss", "accuracy", "images"}."""
        self.model.train()
        total = torch.zeros(3)  # loss, hits, images
        bar = tqdm(
            loader,
            desc=f"{self.model.label} stage {stage} epoch {self.epoch + 1}",
            leave=False,
            disable=not self.progress,
        )
        for images, class_index, domain_index in bar:
            images, labels = images.to(self.device), self.class_of[class_index].to(self.device)
            domains = self.domain_of[domain_index].to(self.device)
            with fast_precision(self.device):
                loss, logits = self.model.loss_and_logits(images, labels, domains, stage)
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
            hits = (logits.argmax(1) == labels).sum().item()
            total += torch.tensor([loss.item() * len(labels), hits, len(labels)])
            bar.set_postfix(loss=f"{total[0] / total[2]:.3f}")
        if not total[0].isfinite():
            raise UserError(f"The training loss is {total[0].item()}: lower the learning rates of stage {stage}.")
        self.images += int(total[2])
        return dict(loss=(total[0] / total[2]).item(), accuracy=(total[1] / total[2]).item(), images=self.images)

    def validate(self):
        """mAP@200 on validation classes (paper) or on the test queries (released); keeps the best epoch's state."""
        split, on_test = self.split, self.config.switches.selection == "released"
        query, gallery = (split.query, split.gallery) if on_test else (split.val_query, split.val_gallery)
        if not len(query):
            return {"val_mAP@200": float("nan")}
        value = mean_average_precision(self.model, split.data, query, gallery)
        self.stale = 0 if value > self.best_map else self.stale + 1
        if value > self.best_map:
            self.best_map, self.best_state = value, copy.deepcopy(self.model.tuned_state())
        return {"val_mAP@200": value}

    def finish(self):
        """Leave the model with the best epoch's parameters, everything frozen, in evaluation mode."""
        if self.best_state is not None:
            self.model.load_state_dict(self.best_state, strict=False)
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
            torch=torch.get_rng_state(),
            cuda=cuda_states(),
        )

    def take(self, state):
        for name in ("stage", "epoch", "images", "history", "best_map", "best_state", "stale"):
            setattr(self, name, state[name])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["torch"])
        if state["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda"])

    def save(self):
        if self.path:
            save_checkpoint(self.model, self.path, self.state() | dict(optimiser=self.optimiser.state_dict()))

    def restore(self):
        if not (self.path and self.path.exists()):
            raise UserError(f"There is nothing to resume in {self.path.parent if self.path else 'no folder'}.")
        stored = read_checkpoint(self.path)
        refuse_other_run(stored["identity"], identity(self.model), self.path)
        self.model.load_state_dict(stored["state"], strict=False)
        self.take(stored["training"])
        self.optimiser_state = stored["training"]["optimiser"]


def cuda_states():
    """States of the GPUs' generators, by which dropout draws there; none where there is no GPU."""
    return torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


def mean_average_precision(model, data, query, gallery):
    """mAP@200 of some rows of `data`, ranked as the model's switches say."""
    features = [embed_rows(model, data, rows) for rows in (query, gallery)]
    return retrieval_metrics(
        features[0],
        data.class_index[query],
        features[1],
        data.class_index[gallery],
        **switch_options(model.config.switches),
    )["mAP@200"]


def lookup(names, known):
    """[len(names)] table from a row of `names` to its row of `known`, -1 where it has none."""
    return torch.tensor([known.index(name) if name in known else -1 for name in names])


def set_rates(optimiser, settings, epoch):
    """Rates of an epoch: a thousandfold fall over `decay_epochs`, floor `min_lr` [released code: trainer.py]."""
    decay = 10 ** (-3 * epoch / settings.decay_epochs)
    rates = dict(prompts=settings.lr, simulator=settings.lr_simulator, heads=settings.lr_heads)
    for group in optimiser.param_groups:
        rate = rates[group["name"]]
        group["lr"] = max(rate * decay, min(settings.min_lr, rate))


def fast_precision(device):
    """Autocast: bfloat16 where the processor has it, else float32 as in the released code."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=native)


# --- Checkpoint files -------------------------------------------------------------------------------------------


def identity(model):
    """What has to be equal for a checkpoint to fit: method, classes, domains, training pictures and every setting."""
    return dict(
        method=registered_key(model),
        classes=list(model.classes),
        domains=list(model.domains),
        training_pictures=model.training_pictures,
        config=dataclasses.asdict(model.config),
    )


def stage1_key(model):
    """A name for all that stage 1 depends on: runs with the same key train it alike."""
    about = identity(model) | dict(method=model.stage1_key)
    about["config"] = {
        key: value for key, value in about["config"].items() if key not in ("stage2", "simulator_layers")
    }
    about["config"]["switches"] = {
        key: value
        for key, value in about["config"]["switches"].items()
        if key not in ("similarity", "average_precision", "selection")
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def save_checkpoint(model, path, training=None):
    """Write what the model tunes (not the backbone, which has its own file) and, while training, the run's state.

    An interruption leaves the old file or the new one.
    """
    about = identity(model)
    with written_whole(path) as part:
        torch.save(dict(identity=about, state=model.tuned_state(), training=training), part)


def read_checkpoint(path):
    """The dict of a checkpoint file. Only tensors and plain values are read, never code."""
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        stored["identity"], stored["state"]
    except FileNotFoundError:
        raise UserError(f"There is no checkpoint {path}. `python -m prosutils train` writes one.") from None
    except Exception as error:  # torch.load raises many kinds for a broken file
        raise UserError(f"{path} is not a checkpoint of prosutils: {str(error)[:200]}") from None
    return stored


def load_checkpoint(path, clip=None):
    """A model ready for `embed`, from a file of `save_checkpoint` or of `train`.

    clip: the backbone, loaded as the checkpoint's configuration says where it is not given. Of a run's file the best
    epoch's parameters are taken. Raises UserError for a file that is not a checkpoint or does not fit the backbone.
    """
    stored = read_checkpoint(path)
    about, training = stored["identity"], stored["training"] or {}
    config = config_from_dict(about["config"])
    model = find_method(about["method"])(
        clip or load_clip(config.backbone, config.pretrained), about["classes"], about["domains"], config
    )
    try:
        unexpected = model.load_state_dict(training.get("best_state") or stored["state"], strict=False).unexpected_keys
    except RuntimeError as error:
        raise UserError(f"{path} does not fit the backbone {model.clip.name}: {str(error)[:300]}") from None
    if unexpected:
        raise UserError(f"{path} holds tensors that {model.label} has not: {', '.join(unexpected[:5])}.")
    model.training_pictures = about.get("training_pictures")
    return model.requires_grad_(False).eval()


def config_from_dict(values):
    """The Config that `dataclasses.asdict` took apart."""
    nested = dict(
        stage1=Stage(**values["stage1"]), stage2=Stage(**values["stage2"]), switches=Switches(**values["switches"])
    )
    return Config(**(values | nested))


def refuse_other_run(found, wanted, path):
    """UserError naming each setting in which a checkpoint differs from the run that should go on from it."""
    flat_found, flat_wanted = (dict(pd.json_normalize(side).iloc[0]) for side in (found, wanted))
    differing = [
        f"{key.removeprefix('config.')}: {flat_found.get(key)} there, {flat_wanted.get(key)} here"
        for key in flat_wanted
        if flat_found.get(key) != flat_wanted[key]
    ]
    if differing:
        raise UserError(
            f"{path} is of another run. Different are "
            + "; ".join(differing)
            + ". Train with the same settings or into another folder."
        )
