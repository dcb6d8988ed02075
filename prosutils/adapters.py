"""Methods that adapt CLIP by attention over prompt units, or by scales and shifts, under this protocol.

UCDR-Adapter: WACV 2025, after its code, github.com/fine68/UCDR2024 (6fd4dc6). MAIL: NeurIPS 2025, after its code,
github.com/pSGAme/MAIL (6b8fec0), and the erratum on its project page. Of both papers only the abstracts could be read.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from .backbone import run_blocks
from .files import UserError
from .followers import cross_domain_triplet
from .prompts import PromptUnits, readable
from .tuned import TunedCLIP, register


class UnitAttention(nn.Module):
    """A prompt from the units that resemble an image: attention with one query, whose keys are its values too."""

    temperature, divisor = 0.75, 33.0  # [released code]

    def __init__(self, width: int) -> None:
        super().__init__()
        self.image, self.unit, self.out = (nn.Linear(width, width) for _ in range(3))
        self.norm = nn.LayerNorm(width)

    def forward(
        self, content: torch.Tensor, units: torch.Tensor, own: torch.Tensor | None = None, mask: str = "none"
    ) -> torch.Tensor:
        """content [B, W], units [n, W] -> prompts [B, W]. own: [B], the row of each image's own unit, where there is
        one; mask: what is done with it ("left out", "zero" or "none")."""
        keys = self.unit(units).expand(len(content), -1, -1)  # [B, n, W]
        hidden = torch.zeros(keys.shape[:2], dtype=torch.bool, device=keys.device)
        if own is not None and mask != "none":
            hidden = F.one_hot(own, len(units)).bool()  # [B, n]
        if mask == "zero":  # the projection of a unit that is zero
            keys = torch.where(hidden.unsqueeze(2), self.unit.bias.to(keys.dtype), keys)
        scores = torch.einsum("bnw,bw->bn", keys, self.image(content)) / self.temperature
        if mask == "left out":
            scores = scores.masked_fill(hidden, -torch.inf)
        mixed = torch.einsum("bn,bnw->bw", scores.softmax(1), keys)
        return (mixed + self.norm(self.out(mixed))) / self.divisor


@register("ucdr-adapter")
class UCDRAdapter(TunedCLIP):
    """UCDR-Adapter (WACV 2025) under this protocol [released code of UCDR-Adapter].

    Stage 1 learns one unit per domain and per class and a context for the captions, by cross-entropy and by a triplet
    against a queue of features that a slow copy of the units wrote. Stage 2 freezes them and learns an attention, the
    class token and the image projection. A frozen pass of CLIP embeds the image; this embedding attends to the domains'
    units and to the classes' units, which gives a prompt of each kind.

    Read: the released code (model, losses, trainer), and the paper's abstract; the full paper was not found. The
    abstract speaks of masked source prompts, but the code's mask covers an empty range and hides nothing. Here an
    image's own units are left out of the attention, the frozen pass is read at CLIP's class token (code: at the first
    patch, without a class token), and the slow copy starts as a copy of the units (code: as other random units).
    `ucdr-adapter-released` follows the code in these three. The rates are the preset's (code: 1e-4 in both stages).
    There is one prompt of each kind, as in the code for DomainNet.
    """

    label = "UCDR-Adapter"
    stages: tuple[int, ...] = (1, 2)
    stage1_key = "ucdr-adapter"
    memory = ("slow_domain", "slow_semantic", "queue", "queued")
    mask = "left out"
    content_token = "class"
    slow_copy = True
    momentum, margin, queue_length = 0.999, 0.2, 20
    slow_domain: torch.Tensor
    slow_semantic: torch.Tensor
    queue: torch.Tensor
    queued: torch.Tensor
    own_class_token: torch.Tensor

    def build(self) -> None:
        clip, counts = self.clip, (len(self.domains), len(self.classes))
        if len(self.domains) < 2:
            raise UserError(f"{self.label} leaves an image's own domain out and needs two training domains at least.")
        self.units = PromptUnits(*counts, clip.width, clip.patch_size)
        self.attention = UnitAttention(clip.width)
        slow = self.units if self.slow_copy else PromptUnits(*counts, clip.width, clip.patch_size)
        self.texts: torch.Tensor | None = None  # [S, D], in stage 2, in which they do not change
        for name, value in (
            ("slow_domain", slow.domain.detach().clone()),  # [M, W]
            ("slow_semantic", slow.semantic.detach().clone()),  # [S, W]
            ("queue", torch.zeros(len(self.classes), self.queue_length, clip.dim)),  # the last features of each class
            ("queued", torch.zeros(len(self.classes), dtype=torch.long)),  # how many each class ever had
            ("own_class_token", clip.model.visual.class_embedding.detach().clone()),
        ):
            self.register_buffer(name, value, persistent=False)

    def trainable(self, stage: int) -> dict[str, list[nn.Parameter]]:
        if stage == 1:
            return {"prompts": [*self.units.parameters(), *self.context.parameters()]}
        visual = self.clip.model.visual
        return {
            "simulator": list(self.attention.parameters()),
            "prompts": [visual.class_embedding],
            "heads": [visual.proj],
        }

    def set_stage(self, stage: int) -> dict[str, list[nn.Parameter]]:
        self.texts = None
        groups = super().set_stage(stage)
        if stage == 2:
            with torch.no_grad():
                self.texts = self.encode_classes()
        return groups

    def encode_classes(self) -> torch.Tensor:
        return super().encode_classes() if self.texts is None else self.texts

    def training_features(
        self, images: torch.Tensor, class_index: torch.Tensor, domain_index: torch.Tensor, stage: int
    ) -> torch.Tensor:
        patches = self.clip.patches(images)
        if stage == 1:
            return self.clip.encode_tokens(patches, self.units.own(domain_index, class_index), self.read_out)
        return self.clip.encode_tokens(patches, self.prompts(patches, domain_index, class_index), self.read_out)

    def prompts(
        self, patches: torch.Tensor, domain_index: torch.Tensor | None = None, class_index: torch.Tensor | None = None
    ) -> torch.Tensor:
        """patches [B, N, W] -> a domain's and a class's prompt, [B, 2, W]. The indices [B] say whose units are masked;
        a test image has none."""
        content = self.content(patches)
        domain = self.attention(content, self.units.domain, domain_index, self.mask)
        return torch.stack([domain, self.attention(content, self.units.semantic, class_index, self.mask)], 1)

    @torch.no_grad()
    def content(self, patches: torch.Tensor) -> torch.Tensor:
        """What CLIP's own tower reads in an image: patches [B, N, W] -> [B, W], after ln_post."""
        visual, tokens = self.clip.model.visual, patches
        if self.content_token == "class":
            class_token = self.own_class_token + visual.positional_embedding[0]
            tokens = torch.cat([class_token.expand(len(patches), 1, -1).to(patches.dtype), patches], 1)
        rows = torch.tensor([0], device=patches.device)
        return visual.ln_post(run_blocks(visual.transformer.resblocks, visual.ln_pre(tokens), rows)[:, 0])

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        """Test path: attention over all units, none masked, and no label."""
        patches = self.clip.patches(images)
        return self.clip.encode_tokens(patches, self.prompts(patches), self.read_out)

    def loss_and_logits(
        self, images: torch.Tensor, class_index: torch.Tensor, domain_index: torch.Tensor, stage: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.training_features(images, class_index, domain_index, stage)
        logits = self.logits(features)
        loss = F.cross_entropy(logits, class_index)
        if stage == 1:
            self.remember(self.clip.patches(images), class_index, domain_index)
            loss = loss + self.queue_triplet(features, class_index)
        return loss, logits

    @torch.no_grad()
    def remember(self, patches: torch.Tensor, class_index: torch.Tensor, domain_index: torch.Tensor) -> None:
        """A step of the slow units towards the units; then the features of a batch by the slow units join the queue."""
        for slow, unit in ((self.slow_domain, self.units.domain), (self.slow_semantic, self.units.semantic)):
            slow.lerp_(unit, 1 - self.momentum)
        slow_units = torch.stack([self.slow_domain[domain_index], self.slow_semantic[class_index]], 1)
        features = F.normalize(self.clip.encode_tokens(patches, slow_units, self.read_out).float(), dim=1)
        same = class_index[:, None] == class_index
        before = same.tril(-1).sum(1)  # [B], images of the class that stand before this one in the batch
        kept = before >= same.sum(1) - self.queue_length
        places = (self.queued[class_index] + before) % self.queue_length
        self.queue[class_index[kept], places[kept]] = features[kept]
        self.queued += torch.bincount(class_index, minlength=len(self.queued))

    def queue_triplet(self, features: torch.Tensor, class_index: torch.Tensor) -> torch.Tensor:
        """Mean of max(0, |f - p| - |f - n| + margin) over a batch and two draws each: p from the queue of the image's
        class, n from all others. features [B, D]. Without another class in the queues it is 0."""
        features = F.normalize(features.float(), dim=1).unsqueeze(1)  # [B, 1, D]
        sizes = self.queued.clamp(max=self.queue_length)  # [S]
        filled = torch.arange(self.queue_length, device=sizes.device) < sizes[:, None]
        entries, start = self.queue[filled], (sizes.cumsum(0) - sizes)[class_index, None]  # [n, D], class by class
        own, draws = sizes[class_index, None], (len(class_index), 2)
        others = len(entries) - own
        positive = start + (torch.rand(draws, device=sizes.device) * own).long()
        negative = (torch.rand(draws, device=sizes.device) * others).long()
        negative = torch.where(negative < start, negative, negative + own).clamp(max=len(entries) - 1)
        near, far = ((features - entries[rows]).norm(dim=2) for rows in (positive, negative))  # [B, 2]
        return (F.relu(near - far + self.margin) * (others > 0)).mean()


@register("ucdr-adapter-released")
class UCDRAdapterReleased(UCDRAdapter):
    """UCDR-Adapter as its code runs: no unit is masked in training, an image is read by its first patch in a pass
    without class token, and the slow copy of the units starts from other random ones."""

    label = "UCDR-Adapter, as released"
    stage1_key = "ucdr-adapter-released"
    mask = "none"
    content_token = "patch"
    slow_copy = False


class Agent(nn.Module):
    """A scale and a shift of every channel, which change nothing at the start: x * scale + shift."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def factor(self) -> torch.Tensor:
        """[W], what x is multiplied by."""
        return self.scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor().to(x.dtype) + self.shift.to(x.dtype)


class ImageAgent(Agent):
    """An agent of the image tower. A bridge of low rank adds to its scale a function of a text agent's scale:
    x * (scale + text scale @ down @ up) + shift."""

    def __init__(self, width: int, partner: Agent, rank: int) -> None:
        super().__init__(width)
        text_width = len(partner.scale)
        self.partner = (partner,)  # in a tuple: it is a part of the text tower, not of this module
        self.down = nn.Parameter(torch.randn(text_width, rank) * text_width**-0.5)
        self.up = nn.Parameter(torch.zeros(rank, width))

    def factor(self) -> torch.Tensor:
        return self.scale + self.partner[0].scale @ self.down @ self.up


@register("mail")
class MAIL(TunedCLIP):
    """MAIL (NeurIPS 2025) under this protocol, agents alone, CLIP's projections frozen [released code of MAIL].

    Four agents in every block of both towers (after each layer norm, the attention and the MLP), one after the last
    layer norm and one on the outputs: 637,440 parameters at ViT-B/32. Agents are scales and shifts, so they can be
    folded into the weights before them, and a trained model embeds an image as fast as CLIP does. Captions are fixed.
    The loss is cross-entropy and a triplet with the batch's farthest image of the same class and nearest of another.

    Read: the released code, the abstract, and the erratum on the project page: the paper's 0.50 % of parameters left out
    the final projections; with them, as in `mail-heads`, it is 1.02 %. MAIL++ froze them. The full paper was not found.
    The code trains on two images per class, with an L2 penalty that pulls scales to zero; here all training images of
    a split are used, without the penalty. The code pairs block i of one tower with block i of the other. If the text
    tower has fewer blocks, as in mini-CLIP, neighbouring blocks of the image tower share one (our choice).
    """

    label = "MAIL"
    rank, margin = 8, 0.5

    def build_text(self) -> None:
        self.captions = [f"a photo of a {readable(name)}." for name in self.classes]

    def build(self) -> None:
        model, visual = self.clip.model, self.clip.model.visual
        text_blocks, image_blocks = model.transformer.resblocks, visual.transformer.resblocks
        texts = [insert_agents(block, [Agent(self.clip.text_width) for _ in range(4)]) for block in text_blocks]
        for i, block in enumerate(image_blocks):
            partners = texts[i * len(texts) // len(image_blocks)]
            insert_agents(block, [ImageAgent(self.clip.width, partner, self.rank) for partner in partners])
        last = Agent(self.clip.text_width)
        model.ln_final = nn.Sequential(model.ln_final, last)
        visual.ln_post = nn.Sequential(visual.ln_post, ImageAgent(self.clip.width, last, self.rank))
        self.text_output = Agent(self.clip.dim)
        self.image_output = ImageAgent(self.clip.dim, self.text_output, self.rank)

    def trainable(self, stage: int) -> dict[str, list[nn.Parameter]]:
        agents = [module for module in self.modules() if isinstance(module, Agent)]
        return {"prompts": [parameter for agent in agents for parameter in agent.parameters()]}

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        return self.image_output(self.clip.encode_image(images))

    def encode_words(self, captions: Sequence[str]) -> torch.Tensor:
        return self.text_output(self.clip.encode_text(captions))

    def encode_classes(self) -> torch.Tensor:
        return self.encode_words(self.captions)

    def loss_and_logits(
        self, images: torch.Tensor, class_index: torch.Tensor, domain_index: torch.Tensor, stage: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.encode_image(images)
        logits = self.logits(features)
        every = torch.arange(len(images), device=images.device)  # any other image of the class is a partner
        triplet = cross_domain_triplet(features, class_index, every, self.margin)
        return F.cross_entropy(logits, class_index) + triplet, logits


def insert_agents(block: nn.Module, agents: list[Agent]) -> list[Agent]:
    """Puts four agents into a block of open_clip's transformer; `ls_1` and `ls_2`, otherwise empty, stand where the
    outputs of attention and MLP join the sequence."""
    for place, agent in zip(("ln_1", "ls_1", "ln_2", "ls_2"), agents):
        setattr(block, place, nn.Sequential(getattr(block, place), agent))
    return agents


@register("mail-heads")
class MAILHeads(MAIL):
    """MAIL as it was published, with both of CLIP's projections: 1,292,800 parameters at ViT-B/32."""

    label = "MAIL + heads"

    def trainable(self, stage: int) -> dict[str, list[nn.Parameter]]:
        return super().trainable(stage) | {"heads": self.heads()}
