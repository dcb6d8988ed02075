"""Methods that came after ProS, under this protocol.

DePro: SIGIR 2025, after its code, github.com/pSGAme/DePro.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .backbone import run_blocks
from .processes import whole_batch
from .prompts import LearnedContext, readable
from .simulator import PromptSimulator
from .tuned import TunedCLIP, register


@register("depro")
class DePro(TunedCLIP):
    """Decoupled prompts (SIGIR 2025) under this protocol [released code of DePro].

    Four static prompts for all domains (UDP) and four class prompts (CP) that a generator of two blocks writes from
    the image: no units, no stage 1. x1 reads the image with CP, x2 with UDP and CP; the feature of a test image is
    both, normalised and side by side, [B, 2D] (`part` = "x1" or "x2": one of them). Loss: cross-entropy of x2 with
    captions that have a learned word and of x1 with CLIP's own, and a triplet of each against other domains.
    """

    label = "DePro"
    prompts = 4
    margin: float | None = 0.5
    train_norms = True
    part = "both"
    parts = ("both", "x1", "x2")
    own_texts: torch.Tensor
    generator: nn.ModuleDict

    def build_text(self) -> None:
        self.context = LearnedContext(self.clip, self.classes, tokens=1)
        with torch.no_grad():
            own = self.clip.encode_text([f"a photo of a {readable(name)}." for name in self.classes])
        self.register_buffer("own_texts", own, persistent=False)  # [S, D]

    def build(self) -> None:
        width, patch = self.clip.width, self.clip.patch_size
        bound = (6 / (3 * patch * patch + width)) ** 0.5
        self.domain_prompts = nn.Parameter(torch.randn(self.prompts, width) * width**-0.5)
        self.queries = nn.Parameter(torch.empty(self.prompts, width).uniform_(-bound, bound))
        body = PromptSimulator(self.clip.image_size, patch, width, self.clip.dim, layers=2)
        self.generator = nn.ModuleDict(dict(blocks=body.body.transformer, ln_post=body.body.ln_post))
        self.project = body.project

    def layer_norms(self) -> list[nn.Parameter]:
        """Scales and shifts of every layer norm of both towers, where they train too."""
        model = self.clip.model
        modules = [*model.visual.modules(), *model.transformer.modules(), model.ln_final]
        return [p for module in modules if isinstance(module, nn.LayerNorm) for p in module.parameters()]

    def trainable(self, stage: int) -> dict[str, list[nn.Parameter]]:
        norms = self.layer_norms() if self.train_norms else []
        return {
            "prompts": [
                self.domain_prompts,
                self.queries,
                *self.context.parameters(),
                *norms,
                self.clip.model.visual.class_embedding,
            ],
            "simulator": [*self.generator.parameters(), self.project],
            "heads": self.heads(),
        }

    def views(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x1 and x2, each [B, D]."""
        patches, batch = self.clip.patches(images), len(images)
        tokens = torch.cat([self.queries.expand(batch, -1, -1).to(patches.dtype), patches], 1)  # [B, 4+N, W]
        rows = torch.arange(self.prompts, device=images.device)
        blocks: Any = self.generator["blocks"]
        written = run_blocks(blocks.resblocks, self.clip.model.visual.ln_pre(tokens), rows)
        own = self.generator["ln_post"](written) @ self.project  # [B, 4, W]
        both = torch.cat([self.domain_prompts.expand(batch, -1, -1).to(own.dtype), own], 1)
        return (
            self.clip.encode_tokens(patches, own, self.read_out),
            self.clip.encode_tokens(patches, both, self.read_out),
        )

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        x1, x2 = (F.normalize(x, dim=1) for x in self.views(images))
        return {"x1": x1, "x2": x2, "both": torch.cat([x2, x1], 1)}[self.part]

    def encode_words(self, captions: Sequence[str]) -> torch.Tensor:
        """As long as the feature of an image: where both views stand side by side, the text is compared with each."""
        texts = F.normalize(super().encode_words(captions), dim=1)
        return torch.cat([texts, texts], 1) if self.part == "both" else texts

    def loss_and_logits(
        self, images: torch.Tensor, class_index: torch.Tensor, domain_index: torch.Tensor, stage: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x1, x2 = self.views(images)
        logits = self.logits(x2)
        loss = F.cross_entropy(logits, class_index)
        loss = loss + F.cross_entropy(self.similarities(x1, self.own_texts) / self.config.temperature, class_index)
        if self.margin is not None:
            for x in (x1, x2):
                loss = loss + cross_domain_triplet(x, class_index, domain_index, self.margin)
        return loss, logits


@register("depro-no-triplet")
class DeProNoTriplet(DePro):
    """DePro by cross-entropy alone."""

    label = "DePro, no triplet"
    margin = None


@register("depro-norms-frozen")
class DeProNormsFrozen(DePro):
    """DePro with CLIP's layer norms as they are."""

    label = "DePro, layer norms frozen"
    train_norms = False


def cross_domain_triplet(
    features: torch.Tensor, class_index: torch.Tensor, domain_index: torch.Tensor, margin: float
) -> torch.Tensor:
    """Mean over a batch of max(0, margin - s+ + s-): s+ the lowest cosine to the same class in another domain, s- the
    highest to another class. features [B, D]. An anchor without such a partner counts 0."""
    features = whole_batch(F.normalize(features.float(), dim=1))
    class_index, domain_index = whole_batch(class_index), whole_batch(domain_index)
    cosines = features @ features.T  # [B, B]
    same = class_index[:, None] == class_index
    partner = same & (domain_index[:, None] != domain_index)
    nearest_other = cosines.masked_fill(same, -1).max(1).values
    farthest_same = cosines.masked_fill(~partner, 1).min(1).values
    return (F.relu(margin - farthest_same + nearest_other) * partner.any(1)).mean()
