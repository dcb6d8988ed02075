"""Checkpoint files: what a model is, all that its experiment is made again from, and the tensors that it trains."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from .backbone import PromptableCLIP, load_clip
from .config import PRESETS, Config, Stage, Switches, setting_names
from .files import UserError, written_whole
from .methods import METHODS, find_method, registered_key
from .tuned import TunedCLIP

#: The layout of checkpoint files; 1 had no version, no gallery domain, and no validation and unseen classes.
VERSION = 2
#: Settings that came after the first checkpoints, by their dotted names: what a file without them was trained with.
EARLIER_SETTINGS: dict[str, object] = {
    "tier": "near",
    "strength": None,
    "simulator_reads": "own",
    "prompt_tokens": 1,
    "switches.heads": "released",
}
#: Settings that do not change what a run trains: how it is named and carried out, and how the split is made, for the
#: classes, domains and training pictures that come of it are compared themselves.
NOT_TRAINED_BY = {"preset", "dataset", "workers", "unseen_domain", "gallery_domain", "training_classes", "split_seed"}
#: Switches that only measure, or are part of the split.
NOT_TRAINED_BY |= {f"switches.{name}" for name in ("similarity", "average_precision", "udcdr_gallery", "file_order")}

#: What only stage 2 depends on, beside its own settings.
NOT_IN_STAGE1 = ("simulator_layers", "simulator_reads", "prompt_tokens", "switches.selection", "unseen_classes")


def identity(model: TunedCLIP, config: Config | None = None):
    """What a checkpoint says about its model: method, classes, domains, all that makes the split again
    (`Split.training`) and every setting (those of `config` where it is given)."""
    return dict(
        method=registered_key(model),
        classes=list(model.classes),
        domains=list(model.domains),
        config=dataclasses.asdict(config or model.config),
    ) | (model.trained_on or {})


def what_trains(about: dict):
    """The part of an `identity` that its parameters depend on, {dotted name: value}: equal for runs that train
    alike."""
    settings = {name: value for name, value in flat(about["config"]).items() if name not in NOT_TRAINED_BY}
    for stage in {1, 2} - set(METHODS[about["method"]].stages):
        settings = {name: value for name, value in settings.items() if not name.startswith(f"stage{stage}")}
    if settings.get("switches.selection") == "released":  # an epoch is chosen on the test
        settings["unseen_classes"] = about.get("unseen_classes")
    return {name: about.get(name) for name in ("method", "classes", "domains", "training_pictures")} | settings


def flat(values: dict, prefix: str = ""):
    """{"stage1": {"epochs": 3}} -> {"stage1.epochs": 3}."""
    found: dict[str, object] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def stage1_key(model: TunedCLIP):
    """A name for all that stage 1 depends on: runs with the same key train it alike."""
    about = {
        name: value
        for name, value in what_trains(identity(model)).items()
        if not name.startswith("stage2") and name not in NOT_IN_STAGE1
    } | dict(method=model.stage1_key)
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def save_checkpoint(model: TunedCLIP, path: str | Path, training: dict | None = None) -> None:
    """Write what the model tunes (not the backbone, which has its own file) and, while training, the run's state.

    An interruption leaves the old file or the new one.
    """
    content = dict(version=VERSION, identity=identity(model), state=model.tuned_state(), training=training)
    with written_whole(path) as part:
        try:
            torch.save(content, part)
        except RuntimeError as error:  # as torch says that a disk is full
            raise OSError(5, str(error)[:200]) from error


def other_version(path: str | Path, what: object):
    """The message for a file whose content this version does not know."""
    return (
        f"{path} was made by another version of prosutils: {what}. Train the model anew with this version "
        "(python -m prosutils train), or read the file with the version that made it."
    )


def read_checkpoint(path: str | Path):
    """The checked dict of a checkpoint file. Only tensors and plain values are read, never code.

    Keys: identity (see `identity`), state ({name: tensor}) and training (the run's state, or None). Raises UserError
    for a file that is missing, damaged, no checkpoint, or of another version.
    """
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"There is no checkpoint {path}. `python -m prosutils train` writes one.") from None
    except OSError as error:
        raise UserError(f"The checkpoint {path} cannot be read: {error.strerror or 'it is damaged'}.") from None
    except Exception:  # torch raises many kinds for a broken file; what it advises is to run the code in it
        raise UserError(
            f"{path} is not a checkpoint of prosutils, or it is damaged: it does not hold tensors and plain values "
            "alone. Choose a file that `python -m prosutils train` has written."
        ) from None
    if not (isinstance(stored, dict) and {"identity", "state"} <= set(stored)):
        raise UserError(f"{path} is not a checkpoint of prosutils: it lacks identity and state.")
    if stored.get("version", 1) not in (1, VERSION):
        raise UserError(
            other_version(path, f"its layout is number {stored['version']}, this one reads 1 and {VERSION}")
        )
    stored["training"] = stored.get("training")
    stored["identity"] = checked_identity(stored["identity"], path)
    if not is_mapping(stored["state"], torch.Tensor) or not isinstance(stored["training"], dict | None):
        raise UserError(other_version(path, "its state is no list of tensors"))
    return stored


def is_mapping(value: object, kind: type):
    """Whether `value` is a dict of text to `kind`."""
    return isinstance(value, dict) and all(isinstance(k, str) and isinstance(v, kind) for k, v in value.items())


def checked_identity(about: object, path: str | Path):
    """The `identity` of a file, complete. Raises UserError where this version does not know its method or settings."""
    if not isinstance(about, dict):
        raise UserError(other_version(path, "it does not name its model"))
    missing = [name for name in ("method", "classes", "domains", "config") if name not in about]
    if missing:
        raise UserError(other_version(path, f"it lacks {', '.join(missing)}"))
    for name in ("classes", "domains"):
        if not (isinstance(about[name], list | tuple) and all(isinstance(x, str) for x in about[name])):
            raise UserError(other_version(path, f"its {name} are no list of names"))
    if not isinstance(about["method"], str) or about["method"] not in METHODS:
        raise UserError(
            f"{path} holds the method {about['method']!r}, which is unknown here: it was made by another version of "
            "prosutils, or is a method of your own, and the file that registers it has to be imported first (command "
            "line: --import FILE). "
            f"Known: {', '.join(METHODS)}."
        )
    config = config_from_dict(about["config"], path)
    return about | dict(config=dataclasses.asdict(config))


def load_tuned(model: TunedCLIP, state: dict[str, torch.Tensor], path: str | Path, stages: Sequence[int] | None = None):
    """Put `state` {name: tensor} into a model: exactly the tensors of `tuned_state(stages)`, no more and no fewer.

    Raises UserError, naming tensors that are missing, too many or of another shape.
    """
    wanted = model.tuned_state(stages)
    faults = [
        f"{kind} {', '.join(names[:5])}{' and more' if len(names) > 5 else ''}"
        for kind, names in (
            ("lacks", sorted(set(wanted) - set(state))),
            ("holds besides", sorted(set(state) - set(wanted))),
        )
        if names
    ]
    if faults:
        raise UserError(
            f"{path} does not hold the tensors that {model.label} trains: it {'; it '.join(faults)}. It is damaged or "
            "was made by another version of prosutils; train the model anew."
        )
    shapes = [name for name in wanted if state[name].shape != wanted[name].shape]
    if shapes:
        raise UserError(
            f"{path} does not fit the backbone {model.clip.name} and its classes: {shapes[0]} is "
            f"{list(state[shapes[0]].shape)} there, {list(wanted[shapes[0]].shape)} here."
        )
    model.load_state_dict(state, strict=False)


def load_checkpoint(path: str | Path, clip: PromptableCLIP | None = None) -> TunedCLIP:
    """A model ready for `embed`, from a file of `save_checkpoint` or of `train`.

    clip: the backbone, loaded as the checkpoint's configuration says where it is not given. Of a run's file the best
    epoch's parameters are taken. Raises UserError for a file that is not a checkpoint or does not fit the backbone.
    """
    stored = read_checkpoint(path)
    about, training = stored["identity"], stored["training"] or {}
    config = config_from_dict(about["config"], path)
    model = find_method(about["method"])(
        clip or load_clip(config.backbone, config.pretrained), about["classes"], about["domains"], config
    )
    load_tuned(model, training.get("best_state") or stored["state"], path)
    model.trained_on = trained_on(about)
    return model.requires_grad_(False).eval()


def trained_on(about: dict):
    """What `Split.training` gave, of an `identity`; None for what a file of version 1 does not hold."""
    names = ("training_pictures", "gallery_domain", "val_classes", "unseen_classes")
    return {name: about.get(name) for name in names}


def config_from_dict(values: dict, path: str | Path):
    """The Config that `dataclasses.asdict` took apart.

    Raises UserError where its settings are not those of this version.
    """
    if not isinstance(values, dict):
        raise UserError(other_version(path, "it holds no settings"))
    found, known = EARLIER_SETTINGS | flat(values), set(setting_names(PRESETS["mini"]))
    differing = [
        f"it {kind} the setting {', '.join(sorted(names))}"
        for kind, names in (("lacks", known - set(found)), ("has", set(found) - known))
        if names
    ]
    if differing:
        raise UserError(other_version(path, " and ".join(differing)))
    groups = {
        group: kind(**{name.split(".")[1]: found[name] for name in found if name.startswith(f"{group}.")})
        for group, kind in (("stage1", Stage), ("stage2", Stage), ("switches", Switches))
    }
    return Config(**{name: value for name, value in found.items() if "." not in name} | groups)


def differences(found: dict, wanted: dict):
    """{name: (there, here)} of two {name: value} that differ."""
    return {
        name: (found.get(name), wanted.get(name))
        for name in [*wanted, *(set(found) - set(wanted))]
        if found.get(name) != wanted.get(name)
    }


def refuse_other_run(found: dict, wanted: dict, path: str | Path):
    """UserError naming each setting in which a checkpoint differs from the run that should go on from it.

    found, wanted: two `identity`; what does not change the trained parameters may differ.
    """
    differing = differences(what_trains(found), what_trains(wanted))
    if differing:
        named = "; ".join(f"{name}: {there} there, {here} here" for name, (there, here) in differing.items())
        raise UserError(
            f"{path} is of another run. Different are {named}. Train with the same settings or into another folder."
        )
