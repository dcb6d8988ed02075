"""What stage 2 learns: the content-aware prompt simulator."""

import torch
from open_clip.transformer import VisionTransformer
from torch import nn

from .backbone import QuickGELU, run_blocks


class PromptSimulator(nn.Module):
    """A small transformer that reads the image beside all prompt units and writes prompts for it (CaDP).

    Input `[t_M ; t_S ; domain units ; semantic units ; own patches + own pos_1..N]`, output: the template positions
    after ln_post and a W x W matrix, [B, 2, W] [paper: content-aware simulator]. With `prompts` above 1 there are so
    many templates, and prompts, of each kind: [B, 2 prompts, W].

    The body is open_clip's VisionTransformer as in the released code. Its class token, projection and row 0 of its
    positional embedding are never used, yet they are among the released code's 18,226,176 trainable parameters; so is
    its patch convolution where patches are given.
    """

    def __init__(
        self, image_size: int, patch_size: int, width: int, output_dim: int, layers: int = 2, prompts: int = 1
    ) -> None:
        super().__init__()
        self.body = VisionTransformer(
            image_size=image_size,
            patch_size=patch_size,
            width=width,
            layers=layers,
            heads=width // 64,
            mlp_ratio=4.0,
            output_dim=output_dim,
            act_layer=QuickGELU,
        )
        scale = width**-0.5
        self.project = nn.Parameter(scale * torch.randn(width, width))
        self.domain_template = nn.Parameter(scale * torch.randn(prompts, width))
        self.semantic_template = nn.Parameter(scale * torch.randn(prompts, width))

    def tokens(self, images: torch.Tensor, units: torch.Tensor, patches: torch.Tensor | None = None) -> torch.Tensor:
        """What enters the blocks, [B, 2+M+S+N, W]; arguments as in `forward`."""
        body = self.body
        if patches is None:
            patches = body.conv1(images).flatten(2).transpose(1, 2) + body.positional_embedding[1:]  # [B, N, W]
        templates = torch.cat([self.domain_template, self.semantic_template]).expand(len(images), -1, -1)
        return body.ln_pre(torch.cat([templates.to(patches.dtype), units.to(patches.dtype), patches], 1))

    def forward(self, images: torch.Tensor, units: torch.Tensor, patches: torch.Tensor | None = None) -> torch.Tensor:
        """images [B, 3, H, W] and units [B, M+S, W], own ones zero while training -> prompts [B, 2, W].

        patches: [B, N, W] of another tower, read instead of those of the simulator's own convolution.
        """
        rows = torch.arange(len(self.domain_template) + len(self.semantic_template), device=images.device)
        read = run_blocks(self.body.transformer.resblocks, self.tokens(images, units, patches), rows)
        return self.body.ln_post(read) @ self.project
