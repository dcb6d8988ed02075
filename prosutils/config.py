"""Presets: every number of a run, with its source. A learner's laptop and a data-centre GPU differ only here."""

import dataclasses
import math
import numbers
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from .files import UserError

Choice = Literal["paper", "released"]


def set_whole(owner: object, name: str, least: int = 0, most: float = math.inf) -> None:
    """Makes a setting of a frozen dataclass a plain int. UserError, naming it, where it is no whole number in range."""
    value = getattr(owner, name)
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or not least <= int(value) <= most:
        limit = f"{least} or more" if most == math.inf else f"from {least} to {most}"
        raise UserError(f"{name} is {value!r}; it takes a whole number, {limit}.")
    object.__setattr__(owner, name, int(value))


def set_real(owner: object, name: str, above_zero: bool = False, infinite: bool = False) -> None:
    """Makes a setting of a frozen dataclass a plain float, 0 or more. UserError, naming it, for anything else: for NaN
    always, for infinity where it makes no sense."""
    value = getattr(owner, name)
    real = isinstance(value, numbers.Real) and not isinstance(value, bool) and not math.isnan(value)
    if not real or value < 0 or (above_zero and value == 0) or (value == math.inf and not infinite):
        limit = "above 0" if above_zero else "0 or more"
        raise UserError(f"{name} is {value!r}; it takes a{'' if infinite else ' finite'} number, {limit}.")
    object.__setattr__(owner, name, float(value))


def check_text(owner: object, name: str, may_be_none: bool = False) -> None:
    """UserError, naming the setting, where it is not text, or None where that is allowed."""
    value = getattr(owner, name)
    if not (isinstance(value, str) or (value is None and may_be_none)):
        raise UserError(f"{name} is {value!r}; it takes text{' or None' if may_be_none else ''}.")


@dataclass(frozen=True)
class Switches:
    """Where the released code departs from the paper or from good practice; notebook 05 shows each on data.

    "paper" is this project's default. "released" repeats what the authors' code does, to compare published numbers.
    """

    #: CLIP's two projections. paper: frozen (its Fig. 2); released: trained, text in stage 1, both in stage 2
    heads: Choice = "paper"
    #: which token the image feature is read from. paper: the class token; released: position 1, the domain prompt
    read_out: Choice = "paper"
    #: stage 1's token dropout. paper: while training only; released: always when stage 1's path runs
    dropout: Choice = "paper"
    #: pixel statistics. paper: the backbone's own everywhere; released: ImageNet's in training, the backbone's in tests
    normalisation: Choice = "paper"
    #: ranking. paper: cosine, as in the training loss; released: Euclidean distance of features as they come
    similarity: Choice = "paper"
    #: AP@k divides by. paper: min(k, relevant images of the gallery); released: the hits within the first k
    average_precision: Choice = "paper"
    #: which epoch is kept. paper: the best on validation classes, by cosine and min(k, R); released: the best on the
    #: test queries, as the released code ranks them. `similarity` and `average_precision` choose no epoch
    selection: Choice = "paper"
    #: folders named sketch and quickdraw. paper: as they are; released: colours inverted
    polarity: Choice = "paper"
    #: gallery of U^dCDR. paper: images kept out of training; released: as many images that were trained on
    udcdr_gallery: Choice = "paper"
    #: random part of the splits. paper: over sorted file names; released: numpy's legacy seed per class, over the files
    #: as the file system lists them, so that another machine draws others
    file_order: Choice = "paper"

    def __post_init__(self):
        for switch in fields(self):
            if getattr(self, switch.name) not in get_args(Choice):
                raise UserError(f"Switch {switch.name} is {getattr(self, switch.name)!r}; it takes: paper, released.")

    def differing(self) -> str:
        """The switches that are not "paper" as text, "" where none is: "read_out=released similarity=released"."""
        return " ".join(f"{name}={value}" for name, value in vars(self).items() if value != "paper")

    @classmethod
    def released(cls):
        """All switches as the released code has them."""
        return cls(**{switch.name: "released" for switch in fields(cls)})


@dataclass(frozen=True)
class Stage:
    """How one stage trains. An epoch ends when the smallest training domain has been seen once (released code)."""

    epochs: int
    batch_size: int  # drawn in equal parts from every training domain
    lr: float  # Adam: prompt units, text context, class token
    lr_simulator: float = 0.0  # Adam: the simulator and its templates (stage 2)
    lr_heads: float = 0.0  # Adam: text and image projection
    decay_epochs: float = float("inf")  # epochs in which the rates fall a thousandfold (released: 20 in stage 2)
    min_lr: float = 1e-6  # floor of the decay
    patience: int = 2  # epochs without a better validation mAP before stage 2 stops
    classes_per_batch: int = 0  # 0: as they come; else a batch holds so many, the same in every domain

    def __post_init__(self):
        for name, least in (("epochs", 0), ("batch_size", 1), ("patience", 1), ("classes_per_batch", 0)):
            set_whole(self, name, least)
        for name in ("lr", "lr_simulator", "lr_heads", "min_lr"):
            set_real(self, name)
        set_real(self, "decay_epochs", above_zero=True, infinite=True)


#: Other names of presets. clip: real CLIP, to search one's own photographs with; PACS is what the preset trains on.
ALIASES = {"clip": "pacs"}


def preset_name(name: str) -> str:
    """The preset that a name or an alias means; any other value as it is."""
    return ALIASES.get(name, name) if isinstance(name, str) else name


@dataclass(frozen=True)
class Config:
    """One run. Defaults are the released hyper-parameters [released code: options_pros.py, reproduce_runs.sh]."""

    preset: str  # which of PRESETS the values come from; its alias will do: clip (real CLIP, for photographs) is pacs
    dataset: str  # "pictonet" (shipped drawings), a published benchmark, or any "folder"
    backbone: str  # "mini", or a model of open_clip
    pretrained: str | None  # weights of the backbone; None: mini-CLIP's own, or random ones
    gallery_domain: str | None  # None: photographs or emoji where there are such, else the largest
    unseen_domain: str | None  # None: no domain is held out, UcCDR only
    stage1: Stage
    stage2: Stage
    tier: Literal["near", "far"] = "far"  # of PictoNet: drawings as designed, or each domain in a technique of its own
    strength: float | None = None  # of the far tier's techniques, 0 to 1; None: the chosen ones (pictonet.FAR_STRENGTH)
    pixels: int = 224  # side of the pictures that PictoNet is laid out in
    context_tokens: int = 16  # L, learned text tokens
    simulator_layers: int = 2
    simulator_reads: Literal["own", "clip"] = "own"  # patches of its own convolution (paper), or the backbone's
    prompt_tokens: int = 1  # prompts that the simulator writes for each kind of unit (paper: 1)
    stage1_dropout: float = 0.5  # on the whole token sequence of stage 1
    temperature: float = 0.07  # of the training loss
    training_classes: Literal["train", "train+val"] = "train"  # "train": the epoch is chosen on validation classes
    workers: int = 4  # processes that read pictures
    seed: int = 0  # of initial weights, batches and augmentation
    split_seed: int = 0  # of the split: kept-out images, and classes where none are given
    switches: Switches = field(default_factory=Switches)

    def __post_init__(self):
        object.__setattr__(self, "preset", preset_name(self.preset))
        if str(self.unseen_domain).lower() == "none":  # as commands and tables write it
            object.__setattr__(self, "unseen_domain", None)
        for name, kind in (("stage1", Stage), ("stage2", Stage), ("switches", Switches)):
            if not isinstance(getattr(self, name), kind):
                raise UserError(
                    f"{name} is {getattr(self, name)!r}; it is a group of settings, {kind.__name__}(...). Set one of "
                    f"them by its own name, for example {name}.{fields(kind)[0].name}."
                )
        for name in ("preset", "dataset", "backbone"):
            check_text(self, name)
        for name in ("pretrained", "gallery_domain", "unseen_domain"):
            check_text(self, name, may_be_none=True)
        for name, least in (("pixels", 1), ("context_tokens", 1), ("simulator_layers", 1), ("workers", 0)):
            set_whole(self, name, least)
        for name in ("seed", "split_seed"):
            set_whole(self, name, most=2**63 - 1)  # what torch's generators take
        set_real(self, "temperature", above_zero=True)
        set_real(self, "stage1_dropout")
        if not self.stage1_dropout < 1:
            raise UserError(f"stage1_dropout is {self.stage1_dropout}; it is a probability below 1.")
        if self.training_classes not in ("train", "train+val"):
            raise UserError(f"training_classes is {self.training_classes!r}; it takes: train, train+val.")


PAPER_STAGE1 = Stage(epochs=1, batch_size=400, lr=1e-4, lr_heads=1e-4)
PAPER_STAGE2 = Stage(epochs=10, batch_size=50, lr=1e-4, lr_simulator=1e-4, lr_heads=1e-4, decay_epochs=20)
REAL_CLIP: dict[str, Any] = dict(backbone="ViT-B-32-quickgelu", pretrained="openai")
PUBLISHED = REAL_CLIP | dict(training_classes="train+val", workers=8, stage1=PAPER_STAGE1, stage2=PAPER_STAGE2)

MINI = Config(
    "mini",
    "pictonet",
    backbone="mini",
    pretrained=None,
    gallery_domain="emoji",
    unseen_domain="chalk",
    pixels=64,
    context_tokens=4,
    simulator_reads="clip",
    prompt_tokens=4,
    workers=0,
    stage1=Stage(epochs=3, batch_size=100, lr=1e-3, lr_heads=1e-3),
    stage2=Stage(epochs=12, batch_size=50, lr=3e-3, lr_simulator=3e-3, lr_heads=1e-2, decay_epochs=24, patience=12),
)
PICTONET = Config(
    "pictonet",
    "pictonet",
    **REAL_CLIP,
    gallery_domain="emoji",
    unseen_domain="chalk",
    workers=2,
    stage1=replace(PAPER_STAGE1, epochs=4, batch_size=100),
    stage2=replace(PAPER_STAGE2, epochs=10),
)
PRESETS = {
    # PictoNet's far tier on two CPU cores, offline, in minutes. Rates and epochs: studies/search_mini.py.
    "mini": MINI,
    # The near tier: drawings in styles that mini-CLIP was pre-trained on, so that prompts find little to do.
    "mini-near": replace(
        MINI,
        preset="mini-near",
        tier="near",
        unseen_domain="sketch",
        simulator_layers=1,
        simulator_reads="own",
        prompt_tokens=1,
        stage2=Stage(epochs=6, batch_size=50, lr=3e-3, lr_simulator=1e-3, lr_heads=1e-2, decay_epochs=12, patience=6),
        switches=Switches(heads="released"),
    ),
    # PictoNet with real CLIP on a free Colab GPU; the weights are the only download.
    "pictonet": PICTONET,
    "pictonet-near": replace(PICTONET, preset="pictonet-near", tier="near", unseen_domain="sketch"),
    # 9,991 photographs, paintings, cartoons and sketches of 7 classes.
    "pacs": Config(
        "pacs",
        "folder",
        **REAL_CLIP,
        gallery_domain="photo",
        unseen_domain="sketch",
        workers=2,
        stage1=replace(PAPER_STAGE1, epochs=4, batch_size=99),
        stage2=replace(PAPER_STAGE2, batch_size=48),
    ),
    # The paper's benchmarks in their published protocols: every class that is not tested trains, and none is left to
    # choose an epoch. Choose `stage2.epochs` with training_classes=train (benchmarks.py). 10 is the released maximum
    # for DomainNet; for Sketchy and TU-Berlin that is 200, cut short by an early stop on test data.
    "domainnet": Config("domainnet", "domainnet", **PUBLISHED, gallery_domain="real", unseen_domain="sketch"),
    "sketchy": Config("sketchy", "sketchy", **PUBLISHED, gallery_domain="extended_photo", unseen_domain=None),
    "tuberlin": Config("tuberlin", "tuberlin", **PUBLISHED, gallery_domain="images", unseen_domain=None),
}


def load_preset(name: str, **overrides: Any) -> Config:
    """The preset `name`, or the one that an alias means ("clip": "pacs"), with fields replaced:
    load_preset("mini", seed=1, stage2=dict(epochs=3)).

    A dict replaces fields of a nested part. Raises UserError for an unknown preset or field, listing the known ones.
    """
    if preset_name(name) not in PRESETS:
        raise UserError(f"Unknown preset {name!r}. Known: {', '.join([*PRESETS, *ALIASES])}.")
    return override(PRESETS[preset_name(name)], overrides)


def override(config: Any, overrides: dict, within: str = ""):
    """A copy of a (nested) frozen dataclass with some fields replaced. within: "stage2." where it is a part of another.

    Raises UserError for an unknown field, listing the known ones, and for a value that a field does not take.
    """
    known = {f.name: getattr(config, f.name) for f in fields(config)}
    unknown = set(overrides) - set(known)
    if unknown:
        raise UserError(f"Unknown setting {', '.join(sorted(map(str, unknown)))}. Known: {', '.join(known)}.")
    values = {
        key: override(known[key], value, f"{key}.") if isinstance(value, dict) and is_group(known[key]) else value
        for key, value in overrides.items()
    }
    try:
        return replace(config, **values)
    except UserError as error:
        raise UserError(f"{within}{error}") from None


def is_group(value: object) -> bool:
    """Whether a setting is a group of settings, such as stage2."""
    return dataclasses.is_dataclass(value)


def changes(config: Any, default: Any) -> dict:
    """The overrides that make `config` of `default`, both of one (nested) dataclass: what `override` undoes."""
    changed = {}
    for item in fields(config):
        value, usual = getattr(config, item.name), getattr(default, item.name)
        if value != usual:
            changed[item.name] = changes(value, usual) if dataclasses.is_dataclass(value) else value
    return changed


def setting_names(config: Any, prefix: str = ""):
    """Dotted names of all settings of a (nested) config."""
    for item in fields(config):
        value = getattr(config, item.name)
        if is_group(value):
            yield from setting_names(value, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name
