"""ProS with one of its parts taken away or replaced: what is each worth?"""

from typing import TypeVar

import torch
from torch import nn

from .pros import ProS
from .tuned import register

Kind = TypeVar("Kind", bound=torch.Tensor)  # a parameter stays one


@register("pros-no-mask")
class NoMask(ProS):
    """Stage 2 without the reverse mask: in training the simulator sees an image's own units, as no test image can."""

    label = "ProS, no mask"

    def training_features(
        self, images: torch.Tensor, class_index: torch.Tensor, domain_index: torch.Tensor, stage: int
    ) -> torch.Tensor:
        if stage == 1:
            return self.encode_with_units(images, class_index, domain_index)
        return self.encode_image(images)


@register("pros-removed-units")
class RemovedUnits(ProS):
    """Stage 2 with an image's own units left out instead of set to zero. Units carry no position, so this equals a mask
    in the attention: the stricter simulation of a test, where they do not exist."""

    label = "ProS, own units left out"

    def training_features(
        self, images: torch.Tensor, class_index: torch.Tensor, domain_index: torch.Tensor, stage: int
    ) -> torch.Tensor:
        if stage == 1:
            return self.encode_with_units(images, class_index, domain_index)
        units = self.units.all(len(images))  # [B, M+S, W]
        own = torch.stack([domain_index, len(self.domains) + class_index], 1)  # [B, 2]
        others = torch.ones(units.shape[:2], dtype=torch.bool, device=units.device).scatter(1, own, False)
        units = units[others].reshape(len(images), -1, self.clip.width)  # [B, M+S-2, W]
        return self.encode_with_prompts(images, self.simulate(images, units))


class OneKindOfUnit(ProS):
    """Units, template and dynamic prompt of one kind only; `kind`: 0 domains, 1 classes."""

    kind = 0

    def trainable(self, stage: int) -> dict[str, list[nn.Parameter]]:
        groups = super().trainable(stage)
        if stage == 1:
            groups["prompts"] = [self.own_kind(self.units.domain, self.units.semantic), *self.context.parameters()]
        else:
            other = self.own_kind(self.simulator.semantic_template, self.simulator.domain_template)
            groups["simulator"] = [p for p in groups["simulator"] if p is not other]
        return groups

    def own_kind(self, domain: Kind, semantic: Kind) -> Kind:
        return (domain, semantic)[self.kind]

    def encode_with_units(
        self, images: torch.Tensor, class_index: torch.Tensor, domain_index: torch.Tensor
    ) -> torch.Tensor:
        unit = self.own_kind(self.units.domain[domain_index], self.units.semantic[class_index])
        return self.clip.encode_tokens(self.clip.patches(images), unit[:, None], self.read_out, self.dropout_now())

    def simulate(self, images: torch.Tensor, units: torch.Tensor | None = None) -> torch.Tensor:
        units = self.units.all(len(images)) if units is None else units
        split = len(self.domains)
        units = self.own_kind(units[:, :split], units[:, split:])
        return super().simulate(images, units).chunk(2, dim=1)[self.kind]


@register("pros-domain-units")
class DomainUnitsOnly(OneKindOfUnit):
    label = "ProS, domain units only"
    stage1_key = "pros-domain-units"


@register("pros-class-units")
class ClassUnitsOnly(OneKindOfUnit):
    label = "ProS, class units only"
    stage1_key = "pros-class-units"
    kind = 1


@register("pros-no-units")
class NoUnits(ProS):
    """A simulator that reads the image alone; without units there is no stage 1."""

    label = "ProS, no units"
    stages = (2,)

    def training_features(
        self, images: torch.Tensor, class_index: torch.Tensor, domain_index: torch.Tensor, stage: int
    ) -> torch.Tensor:
        return self.encode_image(images)

    def simulate(self, images: torch.Tensor, units: torch.Tensor | None = None) -> torch.Tensor:
        return super().simulate(images, self.units.all(len(images))[:, :0])
