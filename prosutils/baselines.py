"""What ProS is measured against, in the same loop and with the same loss."""
import torch
from torch import nn

from .pros import ProS, TunedCLIP


class ZeroShot(TunedCLIP):
    """CLIP as it comes: nothing trains."""
    method = "Zero-shot CLIP"
    stages = ()

    def trainable(self, stage):
        return {}


class HeadsOnly(TunedCLIP):
    """Both projections and the text context train, no prompt in the image tower: the control that every claim about
    prompts needs (ProS trains these projections too)."""
    method = "Heads only"

    def trainable(self, stage):
        model = self.clip.model
        return {"prompts": list(self.context.parameters()), "heads": [model.text_projection, model.visual.proj]}


class VPT(TunedCLIP):
    """Static visual prompts at the place of ProS's dynamic ones, plus heads and class token: ProS without units and
    simulator. Two prompts, so that the token sequence has ProS's length."""
    method = "VPT + heads"
    prompts = 2

    def build(self):
        width = self.clip.width
        self.visual_prompts = nn.Parameter(torch.randn(self.prompts, width) * width ** -0.5)

    def trainable(self, stage):
        model = self.clip.model
        return {"prompts": [self.visual_prompts, *self.context.parameters(), model.visual.class_embedding],
                "heads": [model.text_projection, model.visual.proj]}

    def encode_image(self, images):
        return self.clip.encode_image(images, self.visual_prompts.expand(len(images), -1, -1), self.read_out)


METHODS = {"pros": ProS, "zero-shot": ZeroShot, "heads": HeadsOnly, "vpt": VPT}
