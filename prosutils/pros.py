"""ProS, assembled: both stages and the test path. And what every tuned CLIP here shares with it."""
import copy

import torch
from torch import nn
from torch.nn import functional as F

from .config import UserError
from .prompts import LearnedContext, PromptUnits
from .simulator import PromptSimulator


class TunedCLIP(nn.Module):
    """A CLIP some of whose parts train on seen classes: what ProS and its baselines have in common.

    clip: PromptableCLIP (copied, the given one stays as it is); classes: names of the seen classes; domains: names of
    the training domains; config: Config. `stages` lists the training stages, `method` names it in tables.
    A subclass says which parameters train (`trainable`) and how an image becomes a feature.
    """
    method = "CLIP"
    stages = (2,)
    training_pictures = None        # which these are (Split.training_pictures), where the model is built for a split

    def __init__(self, clip, classes, domains, config):
        super().__init__()
        if len(set(classes)) < 2 or not domains:
            raise UserError(f"Training needs two classes and one domain at least; got {len(set(classes))} and "
                            f"{len(domains)}.")
        self.clip = copy.deepcopy(clip).requires_grad_(False)
        self.classes, self.domains, self.config = tuple(classes), tuple(domains), config
        self.read_out = 0 if config.switches.read_out == "paper" else 1
        with torch.random.fork_rng():           # the same seed gives the same start, whatever ran before
            torch.manual_seed(config.seed)
            self.build_text()
            self.build()

    def build_text(self):
        """Adds what `encode_classes` needs."""
        self.context = LearnedContext(self.clip, self.classes, self.config.context_tokens)

    def build(self):
        """Adds the subclass's own parameters; the random generator is seeded."""

    def trainable(self, stage):
        """{"prompts" | "simulator" | "heads": parameters that train in `stage`}; each group has its learning rate."""
        raise NotImplementedError

    def heads(self):
        """Text and image projection."""
        return [self.clip.model.text_projection, self.clip.model.visual.proj]

    def training_features(self, images, class_index, domain_index, stage):
        """Features [B, D] that the loss sees. images [B, 3, H, W], indices [B] into `classes` and `domains`."""
        return self.encode_image(images)

    def encode_image(self, images):
        """Test path: [B, 3, H, W] -> features [B, D], not L2-normalised. No label is used."""
        return self.clip.encode_image(images)

    def encode_classes(self):
        """Text features [S, D] of the seen classes, with the learned context."""
        return self.clip.encode_embeddings(*self.context())

    def logits(self, features):
        """cos(image, text) / temperature, [B, D] -> [B, S] in float32 [released code: temperature 0.07]."""
        return self.similarities(features, self.encode_classes()) / self.config.temperature

    @staticmethod
    def similarities(features, texts):
        """Cosines of [B, D] and [S, D] -> [B, S] in float32."""
        with torch.autocast(features.device.type, enabled=False):
            return F.normalize(features.float(), dim=1) @ F.normalize(texts.float(), dim=1).T

    def loss(self, images, class_index, domain_index, stage):
        """Training loss of one batch, a scalar: cross-entropy over the seen classes, the same in both stages."""
        if stage not in self.stages:
            raise UserError(f"{self.method} has no stage {stage}; it has {', '.join(map(str, self.stages))}.")
        return self.loss_and_logits(images, class_index, domain_index, stage)[0]

    def loss_and_logits(self, images, class_index, domain_index, stage):
        """The loss, and the logits [B, S] that it was computed from."""
        logits = self.logits(self.training_features(images, class_index, domain_index, stage))
        return F.cross_entropy(logits, class_index), logits

    def set_stage(self, stage):
        """Let the parameters of `stage` train and freeze all others; returns the groups."""
        self.requires_grad_(False)
        groups = self.trainable(stage)
        for parameters in groups.values():
            for parameter in parameters:
                parameter.requires_grad_(True)
        return groups

    def tuned_state(self, stages=None):
        """{name: tensor} of everything that any stage, or those given, trains: what a checkpoint has to hold beside the
        backbone."""
        names = {id(parameter): name for name, parameter in self.named_parameters()}
        parameters = [p for stage in stages or self.stages for group in self.trainable(stage).values() for p in group]
        return dict(sorted((names[id(p)], p.detach()) for p in {id(p): p for p in parameters}.values()))


class ProS(TunedCLIP):
    """Prompting-to-Simulate (CVPR 2024).

    Stage 1 learns the prompt units: the image tower sees its own domain's and its own class's unit, the others are
    masked. Stage 2 learns a simulator that writes both prompts from the image and the other units, as a test image
    would have it, whose domain and class have no unit.
    """
    method = "ProS"
    stages = (1, 2)
    stage1_method = "ProS"        # variants that change stage 2 alone share this one's stage 1

    def build(self):
        clip = self.clip
        self.units = PromptUnits(len(self.domains), len(self.classes), clip.width, clip.patch_size)
        self.simulator = PromptSimulator(clip.image_size, clip.patch_size, clip.width, clip.dim,
                                         self.config.simulator_layers)

    def trainable(self, stage):
        model = self.clip.model
        if stage == 1:
            return {"prompts": [*self.units.parameters(), *self.context.parameters()], "heads": [model.text_projection]}
        return {"simulator": list(self.simulator.parameters()),
                "prompts": [*self.context.parameters(), model.visual.class_embedding],
                "heads": self.heads()}

    def training_features(self, images, class_index, domain_index, stage):
        if stage == 1:
            return self.encode_with_units(images, class_index, domain_index)
        return self.encode_with_prompts(images, self.simulate(images, self.units.others(domain_index, class_index)))

    def encode_with_units(self, images, class_index, domain_index):
        """Stage 1's features [B, D]: `[cls ; P_M[d] ; P_S[y] ; patches]`, with dropout on the sequence."""
        return self.clip.encode_tokens(self.clip.patches(images), self.units.own(domain_index, class_index),
                                       self.read_out, self.dropout_now())

    def dropout_now(self):
        """Stage 1's dropout (paper: in training mode only; released: always)."""
        active = self.training or self.config.switches.dropout == "released"
        return self.config.stage1_dropout if active else 0.0

    def simulate(self, images, units=None):
        """Content-aware dynamic prompts [B, 2, W] of images, read beside `units` [B, M+S, W].

        units: all of them where none are given, as for an image whose domain and class nobody knows.
        """
        return self.simulator(images, self.units.all(len(images)) if units is None else units)

    def encode_with_prompts(self, images, prompts):
        """Features [B, D] of `[cls ; prompts ; patches]`, prompts [B, P, W]."""
        return self.clip.encode_image(images, prompts, self.read_out)

    def encode_image(self, images):
        """Test path: the simulator sees all units, none masked, and no label."""
        return self.encode_with_prompts(images, self.simulate(images))
