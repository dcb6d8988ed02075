"""What ProS and everything it is compared with share: a CLIP some of whose parts train. And the registry of methods."""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from .backbone import PromptableCLIP
from .config import Config
from .files import UserError
from .processes import fork_random
from .prompts import LearnedContext


class TunedCLIP(nn.Module):
    """A CLIP some of whose parts train on seen classes: what ProS and its baselines have in common.

    clip: PromptableCLIP (copied, the given one stays as it is); classes: names of the seen classes; domains: names of
    the training domains; config: Config. `stages` lists the training stages; `key` names the method in commands and
    checkpoints, `label` in tables and figures.
    A subclass says which parameters train (`trainable`) and how an image becomes a feature.
    """

    key = ""  # set by `register`
    label = "CLIP"
    stages: tuple[int, ...] = (2,)
    statistics: tuple[str, ...] = ()  # buffers that `fit_features` fills: they are saved with what is trained
    memory: tuple[str, ...] = ()  # buffers that training alone needs, and has to find again where it goes on
    trained_on = None  # `Split.training` of the split that the model is built for

    def __init__(self, clip: PromptableCLIP, classes: Sequence[str], domains: Sequence[str], config: Config) -> None:
        super().__init__()
        if len(set(classes)) < 2 or not domains:
            raise UserError(
                f"Training needs two classes and one domain at least; got {len(set(classes))} and {len(domains)}."
            )
        self.clip = copy.deepcopy(clip).requires_grad_(False)
        self.classes, self.domains, self.config = tuple(classes), tuple(domains), config
        self.read_out = 0 if config.switches.read_out == "paper" else 1
        with fork_random(next(clip.parameters()).device):  # the same seed gives the same start, whatever ran before
            torch.manual_seed(config.seed)
            self.build_text()
            self.build()

    def build_text(self) -> None:
        """Adds what `encode_classes` needs."""
        self.context = LearnedContext(self.clip, self.classes, self.config.context_tokens)

    def build(self) -> None:
        """Adds the subclass's own parameters; the random generator is seeded."""

    def trainable(self, stage: int) -> dict[str, list[nn.Parameter]]:
        """{"prompts" | "simulator" | "heads": parameters that train in `stage`}; each group has its learning rate."""
        raise NotImplementedError

    def fit_features(self, features: torch.Tensor, class_index: torch.Tensor, domain_index: torch.Tensor) -> None:
        """Fills `statistics` from CLIP's own features [n, D] of the training images; indices [n] as in `loss`."""
        raise NotImplementedError

    def heads(self) -> list[nn.Parameter]:
        """Text and image projection."""
        return [self.clip.model.text_projection, self.clip.model.visual.proj]

    def training_features(
        self, images: torch.Tensor, class_index: torch.Tensor, domain_index: torch.Tensor, stage: int
    ) -> torch.Tensor:
        """Features [B, D] that the loss sees. images [B, 3, H, W], indices [B] into `classes` and `domains`."""
        return self.encode_image(images)

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        """Test path: [B, 3, H, W] -> features [B, D], not L2-normalised. No label is used."""
        return self.clip.encode_image(images)

    def encode_words(self, captions: Sequence[str]) -> torch.Tensor:
        """Captions (a list of C strings) -> features [C, D] that compare with those of `encode_image`."""
        return self.clip.encode_text(captions)

    def encode_classes(self) -> torch.Tensor:
        """Text features [S, D] of the seen classes, with the learned context."""
        return self.clip.encode_embeddings(*self.context())

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """cos(image, text) / temperature, [B, D] -> [B, S] in float32 [released code: temperature 0.07]."""
        return self.similarities(features, self.encode_classes()) / self.config.temperature

    @staticmethod
    def similarities(features: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        """Cosines of [B, D] and [S, D] -> [B, S] in float32."""
        with torch.autocast(features.device.type, enabled=False):
            return F.normalize(features.float(), dim=1) @ F.normalize(texts.float(), dim=1).T

    def loss(
        self, images: torch.Tensor, class_index: torch.Tensor, domain_index: torch.Tensor, stage: int
    ) -> torch.Tensor:
        """Training loss of one batch, a scalar: cross-entropy over the seen classes, the same in both stages."""
        if stage not in self.stages:
            raise UserError(f"{self.label} has no stage {stage}; it has {', '.join(map(str, self.stages))}.")
        return self.loss_and_logits(images, class_index, domain_index, stage)[0]

    def loss_and_logits(
        self, images: torch.Tensor, class_index: torch.Tensor, domain_index: torch.Tensor, stage: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss, and the logits [B, S] that it was computed from."""
        logits = self.logits(self.training_features(images, class_index, domain_index, stage))
        return F.cross_entropy(logits, class_index), logits

    def set_stage(self, stage: int) -> dict[str, list[nn.Parameter]]:
        """Let the parameters of `stage` train and freeze all others; returns the groups."""
        self.requires_grad_(False)
        groups = self.trainable(stage)
        for parameters in groups.values():
            for parameter in parameters:
                parameter.requires_grad_(True)
        return groups

    def tuned_state(self, stages: Sequence[int] | None = None) -> dict[str, torch.Tensor]:
        """{name: tensor} of everything that any stage, or those given, trains, and without `stages` of the statistics:
        what a checkpoint has to hold beside the backbone."""
        names = {id(parameter): name for name, parameter in self.named_parameters()}
        parameters = [p for stage in stages or self.stages for group in self.trainable(stage).values() for p in group]
        trained = sorted((names[id(p)], p.detach()) for p in {id(p): p for p in parameters}.values())
        return dict(trained) | ({} if stages else {name: self.get_buffer(name) for name in self.statistics})


#: Every registered method by its key.
METHODS: dict[str, type[TunedCLIP]] = {}


def register(key: str) -> Callable[[type[TunedCLIP]], type[TunedCLIP]]:
    """Makes a subclass of TunedCLIP, or of ProS, a method that can be trained, saved, loaded and compared by its key.

        @register("mine")
        class Mine(ProS):
            label = "My ProS"

    A class without a `label` of its own is labelled with its key. To run the definition again, as a notebook's cell
    does, replaces the class. Raises UserError for a key or label that another class has, and for what is no such
    subclass.
    """

    def add(kind: type[TunedCLIP]) -> type[TunedCLIP]:
        if not (isinstance(kind, type) and issubclass(kind, TunedCLIP)):
            raise UserError(f"@register({key!r}) belongs above a subclass of ProS or TunedCLIP, not {kind!r}.")
        label = vars(kind).get("label", key)
        for other_key, other in METHODS.items():
            if same_definition(other, kind):
                continue
            if key == other_key:
                raise UserError(
                    f"The method key {key!r} is taken by {other.__name__} ({other.label}): choose another. "
                    f"Taken: {', '.join(METHODS)}."
                )
            if label == other.label:
                raise UserError(
                    f"The label {label!r} is taken by the method {other_key!r}: give {kind.__name__} another."
                )
        kind.key, kind.label = key, label
        METHODS[key] = kind
        return kind

    return add


def same_definition(one: type, other: type) -> bool:
    """Whether two classes come from the same place in the code, perhaps run twice."""
    return (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)


def find_method(key: str) -> type[TunedCLIP]:
    """The class registered under `key`. Raises UserError for an unknown key, listing the known ones."""
    if key not in METHODS:
        raise UserError(
            f"Unknown method {key!r}. Known: {', '.join(METHODS)}. A method of your own is known once the "
            "file that registers it is imported (command line: --import FILE)."
        )
    return METHODS[key]


def registered_key(model: TunedCLIP) -> str:
    """The key of a model's method. Raises UserError for a class that is not registered."""
    kind = type(model)
    if not (model.key in METHODS and same_definition(METHODS[model.key], kind)):
        raise UserError(
            f'{kind.__name__} is not registered, so that no file can name it: put @register("a-key") above its class.'
        )
    return model.key
