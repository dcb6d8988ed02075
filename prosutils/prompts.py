"""What stage 1 learns: the text context, and the domain and semantic prompt units."""

from collections.abc import Sequence

import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import nn

from .backbone import PromptableCLIP
from .files import UserError


def readable(class_name: str) -> str:
    """A class as captions spell it: "alarm_clock" -> "alarm clock" (released code)."""
    return class_name.replace("_", " ")


def captions(classes: Sequence[str], tokens: int) -> list[str]:
    """A caption per class, with `tokens` placeholders "X" where the context will stand."""
    return [f"a photo of {readable(name)} from {'X ' * tokens}domain." for name in classes]


class LearnedContext(nn.Module):
    """Captions "a photo of {class} from [v_1]...[v_L] domain." with v shared by all classes [released code].

    clip: PromptableCLIP; classes: C names; tokens: L. `forward()` gives the input of `clip.encode_embeddings`:
    embeddings [C, T, Wt] and the position [C] of each end-of-text token.
    Raises UserError when a caption does not fit the text tower.
    """

    embeddings: torch.Tensor
    places: torch.Tensor
    end: torch.Tensor

    def __init__(self, clip: PromptableCLIP, classes: Sequence[str], tokens: int) -> None:
        super().__init__()
        texts = captions(classes, tokens)
        token_ids = clip.tokenizer(texts)  # [C, T]
        self._check_length(clip.tokenizer, texts, token_ids.shape[1])
        heads = [clip.tokenizer.encode(f"a photo of {readable(name)} from") for name in classes]
        start = torch.tensor([1 + len(head) for head in heads])  # after start-of-text
        with torch.no_grad():
            device = clip.model.token_embedding.weight.device
            embeddings = clip.model.token_embedding(token_ids.to(device))  # [C, T, Wt]
        self.register_buffer("embeddings", embeddings, persistent=False)
        self.register_buffer("places", start[:, None] + torch.arange(tokens), persistent=False)  # [C, L]
        self.register_buffer("end", token_ids.argmax(1), persistent=False)  # [C]
        self.vectors = nn.Parameter(torch.randn(tokens, clip.text_width) * 0.02)  # [L, Wt]
        self.to(device)

    @staticmethod
    def _check_length(tokenizer: SimpleTokenizer, texts: Sequence[str], room: int) -> None:
        for caption in texts:
            needed = len(tokenizer.encode(caption)) + 2
            if needed > room:
                raise UserError(
                    f"The caption {caption!r} has {needed} tokens, the text tower takes {room}. "
                    "Use shorter class names or a smaller context_tokens."
                )

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        embeddings = self.embeddings.clone()
        rows = torch.arange(len(embeddings), device=embeddings.device)[:, None]
        embeddings[rows, self.places] = self.vectors.to(embeddings.dtype)
        return embeddings, self.end


class PromptUnits(nn.Module):
    """One vector per training domain, P_M [M, W], and one per seen class, P_S [S, W].

    Initialised uniformly in +-sqrt(6 / (3 p^2 + W)), p the patch size: VPT's range, which the released code takes.
    """

    def __init__(self, domains: int, classes: int, width: int, patch_size: int) -> None:
        super().__init__()
        bound = (6 / (3 * patch_size * patch_size + width)) ** 0.5
        self.domain = nn.Parameter(torch.empty(domains, width).uniform_(-bound, bound))
        self.semantic = nn.Parameter(torch.empty(classes, width).uniform_(-bound, bound))

    def own(self, domain_index: torch.Tensor, class_index: torch.Tensor) -> torch.Tensor:
        """Stage 1, mask and align: every unit but the sample's own two is masked out. [B], [B] -> [B, 2, W].

        The paper multiplies all units by a 0/1 mask; what is masked out is left out of the sequence (released code).
        """
        return torch.stack([self.domain[domain_index], self.semantic[class_index]], 1)

    def others(self, domain_index: torch.Tensor, class_index: torch.Tensor) -> torch.Tensor:
        """Stage 2, reverse mask: the sample's own two units are set to zero. [B], [B] -> [B, M+S, W].

        What is left is what a test image meets: units, but none of its own domain or class.
        """
        keep_domain = torch.ones(len(domain_index), len(self.domain), 1, device=self.domain.device)
        keep_class = torch.ones(len(class_index), len(self.semantic), 1, device=self.domain.device)
        rows = torch.arange(len(domain_index), device=self.domain.device)
        keep_domain[rows, domain_index] = 0
        keep_class[rows, class_index] = 0
        return torch.cat([self.domain * keep_domain, self.semantic * keep_class], 1)

    def all(self, batch: int) -> torch.Tensor:
        """Test: no label is known, no unit is masked. -> [B, M+S, W]."""
        return torch.cat([self.domain, self.semantic]).expand(batch, -1, -1)
