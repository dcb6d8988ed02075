"""What ProS is measured against, in the same loop, on the same batches.

CoOp: Zhou et al., IJCV 2022. VPT: Jia et al., ECCV 2022.
"""

import torch
from torch import nn

from .backbone import run_blocks
from .prompts import LearnedContext, readable
from .tuned import TunedCLIP, register


@register("zero-shot")
class ZeroShot(TunedCLIP):
    """CLIP as it comes: nothing trains."""

    label = "Zero-shot CLIP"
    stages = ()

    def trainable(self, stage: int) -> dict[str, list[nn.Parameter]]:
        return {}


@register("heads")
class HeadsOnly(TunedCLIP):
    """Both projections train, on fixed captions, without any prompt: the control that every claim about prompts needs
    (ProS trains these projections too). 655,360 numbers at ViT-B/32."""

    label = "Heads only"

    def build_text(self) -> None:
        """The frozen tower reads "a photo of a {class}." once; only its projection is left to compute."""
        with torch.no_grad():
            hidden = self.clip.read_text([f"a photo of a {readable(name)}." for name in self.classes])
        self.register_buffer("text_hidden", hidden, persistent=False)  # [S, Wt]

    def encode_classes(self) -> torch.Tensor:
        return self.text_hidden @ self.clip.model.text_projection

    def trainable(self, stage: int) -> dict[str, list[nn.Parameter]]:
        return {"heads": self.heads()}


@register("coop")
class CoOp(TunedCLIP):
    """Learned words in the captions, nothing else. The image tower stays as it is, so that image retrieval equals
    zero-shot CLIP's exactly."""

    label = "CoOp"

    def trainable(self, stage: int) -> dict[str, list[nn.Parameter]]:
        return {"prompts": list(self.context.parameters())}


@register("coop-heads")
class CoOpHeads(CoOp):
    """CoOp and both projections: all its effect on retrieval is that of the image projection."""

    label = "CoOp + heads"

    def trainable(self, stage: int) -> dict[str, list[nn.Parameter]]:
        return super().trainable(stage) | {"heads": self.heads()}


@register("vpt")
class VPT(TunedCLIP):
    """Static visual prompts at the place of ProS's dynamic ones, plus context, class token and heads: ProS without
    units and simulator. Two prompts, so that the token sequence has ProS's length."""

    label = "VPT + heads"
    prompts = 2

    def build(self) -> None:
        self.visual_prompts = nn.Parameter(torch.randn(self.prompts, self.clip.width) * self.clip.width**-0.5)

    def trainable(self, stage: int) -> dict[str, list[nn.Parameter]]:
        return {
            "prompts": [self.visual_prompts, *self.context.parameters(), self.clip.model.visual.class_embedding],
            "heads": self.heads(),
        }

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        return self.clip.encode_image(images, self.visual_prompts.expand(len(images), -1, -1), self.read_out)


@register("static")
class StaticPrompts(VPT):
    """The strongest static prompts known: 4 + 4 in the image, one word in the captions, class token and heads
    [released code of DePro: its baseline]. 662,784 numbers at ViT-B/32."""

    label = "Static prompts"
    prompts = 8

    def build_text(self) -> None:
        self.context = LearnedContext(self.clip, self.classes, tokens=1)


@register("vpt-deep")
class VPTDeep(VPT):
    """As VPT, with prompts of its own in every block: what the last block wrote there is replaced."""

    label = "VPT deep + heads"

    def build(self) -> None:
        width, layers = self.clip.width, len(self.clip.model.visual.transformer.resblocks)
        self.visual_prompts = nn.Parameter(torch.randn(layers, self.prompts, width) * width**-0.5)

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        visual, first, last = self.clip.model.visual, 1, 1 + self.prompts
        class_token = (visual.class_embedding + visual.positional_embedding[0]).expand(len(images), 1, -1)
        prompts = self.visual_prompts.unsqueeze(1).expand(-1, len(images), -1, -1)  # [layers, B, P, W]
        tokens = visual.ln_pre(torch.cat([class_token, prompts[0], self.clip.patches(images)], 1))
        *blocks, final = visual.transformer.resblocks
        for layer, block in enumerate(blocks, 1):
            tokens = block(tokens)
            tokens = torch.cat([tokens[:, :first], prompts[layer].to(tokens.dtype), tokens[:, last:]], 1)
        rows = torch.tensor([self.read_out], device=tokens.device)
        return visual.ln_post(run_blocks([final], tokens, rows)[:, 0]) @ visual.proj


@register("full")
class FullFineTuning(TunedCLIP):
    """All of CLIP trains, both towers, on fixed captions (released code: CLIP-Full)."""

    label = "Full fine-tuning"

    def build_text(self) -> None:
        self.captions = [f"a photo of a {readable(name)}." for name in self.classes]

    def encode_classes(self) -> torch.Tensor:
        return self.clip.encode_text(self.captions)

    def trainable(self, stage: int) -> dict[str, list[nn.Parameter]]:
        apart = {id(p) for p in (*self.heads(), self.clip.model.logit_scale)}
        return {"prompts": [p for p in self.clip.model.parameters() if id(p) not in apart], "heads": self.heads()}
