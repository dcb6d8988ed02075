"""ProS, assembled: both stages and the test path."""

import torch
from torch import nn

from .prompts import PromptUnits
from .simulator import PromptSimulator
from .tuned import TunedCLIP, register


@register("pros")
class ProS(TunedCLIP):
    """Prompting-to-Simulate (CVPR 2024).

    Stage 1 learns the prompt units: the image tower sees its own domain's and its own class's unit, the others are
    masked. Stage 2 learns a simulator that writes both prompts from the image and the other units, as a test image
    would have it, whose domain and class have no unit.
    """

    label = "ProS"
    stages: tuple[int, ...] = (1, 2)
    stage1_key = "pros"  # variants that change stage 2 alone share this one's stage 1

    def build(self) -> None:
        clip = self.clip
        self.units = PromptUnits(len(self.domains), len(self.classes), clip.width, clip.patch_size)
        self.simulator = PromptSimulator(
            clip.image_size,
            clip.patch_size,
            clip.width,
            clip.dim,
            self.config.simulator_layers,
            self.config.prompt_tokens,
        )

    def trainable(self, stage: int) -> dict[str, list[nn.Parameter]]:
        model, frozen = self.clip.model, self.config.switches.heads == "paper"
        if stage == 1:
            groups = {"prompts": [*self.units.parameters(), *self.context.parameters()]}
            return groups if frozen else groups | {"heads": [model.text_projection]}
        groups = {
            "simulator": list(self.simulator.parameters()),
            "prompts": [*self.context.parameters(), model.visual.class_embedding],
        }
        return groups if frozen else groups | {"heads": self.heads()}

    def training_features(
        self, images: torch.Tensor, class_index: torch.Tensor, domain_index: torch.Tensor, stage: int
    ) -> torch.Tensor:
        if stage == 1:
            return self.encode_with_units(images, class_index, domain_index)
        return self.encode_with_prompts(images, self.simulate(images, self.units.others(domain_index, class_index)))

    def encode_with_units(
        self, images: torch.Tensor, class_index: torch.Tensor, domain_index: torch.Tensor
    ) -> torch.Tensor:
        """Stage 1's features [B, D]: `[cls ; P_M[d] ; P_S[y] ; patches]`, with dropout on the sequence."""
        return self.clip.encode_tokens(
            self.clip.patches(images), self.units.own(domain_index, class_index), self.read_out, self.dropout_now()
        )

    def dropout_now(self) -> float:
        """Stage 1's dropout (paper: in training mode only; released: always)."""
        active = self.training or self.config.switches.dropout == "released"
        return self.config.stage1_dropout if active else 0.0

    def simulate(self, images: torch.Tensor, units: torch.Tensor | None = None) -> torch.Tensor:
        """Content-aware dynamic prompts [B, 2, W] of images, written beside `units` [B, M+S, W].

        units: all of them where none are given, as for an image whose domain and class nobody knows.
        """
        units = self.units.all(len(images)) if units is None else units
        patches = self.clip.patches(images) if self.config.simulator_reads == "clip" else None
        return self.simulator(images, units, patches)

    def encode_with_prompts(self, images: torch.Tensor, prompts: torch.Tensor | None) -> torch.Tensor:
        """Features [B, D] of `[cls ; prompts ; patches]`, prompts [B, P, W] or None."""
        return self.clip.encode_image(images, prompts, self.read_out)

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        """Test path: the simulator sees all units, none masked, and no label."""
        return self.encode_with_prompts(images, self.simulate(images))
