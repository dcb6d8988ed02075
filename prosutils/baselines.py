"""What ProS is measured against, in the same loop, on the same batches.

CoOp: Zhou et al., IJCV 2022. VPT: Jia et al., ECCV 2022. DePro: SIGIR 2025, after its code, github.com/pSGAme/DePro.
"""
import torch
from torch import nn
from torch.nn import functional as F

from .ablations import ABLATIONS
from .backbone import run_blocks
from .prompts import LearnedContext, readable
from .pros import ProS, TunedCLIP
from .simulator import PromptSimulator


class ZeroShot(TunedCLIP):
    """CLIP as it comes: nothing trains."""
    method = "Zero-shot CLIP"
    stages = ()

    def trainable(self, stage):
        return {}


class HeadsOnly(TunedCLIP):
    """Both projections train, on fixed captions, without any prompt: the control that every claim about prompts needs
    (ProS trains these projections too). 655,360 numbers at ViT-B/32."""
    method = "Heads only"

    def build_text(self):
        """The frozen tower reads "a photo of a {class}." once; only its projection is left to compute."""
        with torch.no_grad():
            hidden = self.clip.read_text([f"a photo of a {readable(name)}." for name in self.classes])
        self.register_buffer("text_hidden", hidden, persistent=False)                       # [S, Wt]

    def encode_classes(self):
        return self.text_hidden @ self.clip.model.text_projection

    def trainable(self, stage):
        return {"heads": self.heads()}


class CoOp(TunedCLIP):
    """Learned words in the captions, nothing else. The image tower stays as it is, so that image retrieval equals
    zero-shot CLIP's exactly."""
    method = "CoOp"

    def trainable(self, stage):
        return {"prompts": list(self.context.parameters())}


class CoOpHeads(CoOp):
    """CoOp and both projections: all its effect on retrieval is that of the image projection."""
    method = "CoOp + heads"

    def trainable(self, stage):
        return super().trainable(stage) | {"heads": self.heads()}


class VPT(TunedCLIP):
    """Static visual prompts at the place of ProS's dynamic ones, plus context, class token and heads: ProS without
    units and simulator. Two prompts, so that the token sequence has ProS's length."""
    method = "VPT + heads"
    prompts = 2

    def build(self):
        self.visual_prompts = nn.Parameter(torch.randn(self.prompts, self.clip.width) * self.clip.width ** -0.5)

    def trainable(self, stage):
        return {"prompts": [self.visual_prompts, *self.context.parameters(), self.clip.model.visual.class_embedding],
                "heads": self.heads()}

    def encode_image(self, images):
        return self.clip.encode_image(images, self.visual_prompts.expand(len(images), -1, -1), self.read_out)


class StaticPrompts(VPT):
    """The strongest static prompts known: 4 + 4 in the image, one word in the captions, class token and heads
    [released code of DePro: its baseline]. 662,784 numbers at ViT-B/32."""
    method = "Static prompts"
    prompts = 8

    def build_text(self):
        self.context = LearnedContext(self.clip, self.classes, tokens=1)


class VPTDeep(VPT):
    """As VPT, with prompts of its own in every block: what the last block wrote there is replaced."""
    method = "VPT deep + heads"

    def build(self):
        width, layers = self.clip.width, len(self.clip.model.visual.transformer.resblocks)
        self.visual_prompts = nn.Parameter(torch.randn(layers, self.prompts, width) * width ** -0.5)

    def encode_image(self, images):
        visual, first, last = self.clip.model.visual, 1, 1 + self.prompts
        class_token = (visual.class_embedding + visual.positional_embedding[0]).expand(len(images), 1, -1)
        prompts = self.visual_prompts.unsqueeze(1).expand(-1, len(images), -1, -1)          # [layers, B, P, W]
        tokens = visual.ln_pre(torch.cat([class_token, prompts[0], self.clip.patches(images)], 1))
        *blocks, final = visual.transformer.resblocks
        for layer, block in enumerate(blocks, 1):
            tokens = block(tokens)
            tokens = torch.cat([tokens[:, :first], prompts[layer].to(tokens.dtype), tokens[:, last:]], 1)
        rows = torch.tensor([self.read_out], device=tokens.device)
        return visual.ln_post(run_blocks([final], tokens, rows)[:, 0]) @ visual.proj


class FullFineTuning(TunedCLIP):
    """All of CLIP trains, both towers, on fixed captions (released code: CLIP-Full)."""
    method = "Full fine-tuning"

    def build_text(self):
        self.captions = [f"a photo of a {readable(name)}." for name in self.classes]

    def encode_classes(self):
        return self.clip.encode_text(self.captions)

    def trainable(self, stage):
        apart = {id(p) for p in (*self.heads(), self.clip.model.logit_scale)}
        return {"prompts": [p for p in self.clip.model.parameters() if id(p) not in apart], "heads": self.heads()}


class DePro(TunedCLIP):
    """Decoupled prompts (SIGIR 2025) under this protocol [released code of DePro].

    Four static prompts for all domains (UDP) and four class prompts (CP) that a generator of two blocks writes from
    the image: no units, no stage 1. x1 reads the image with CP, x2 with UDP and CP; the feature of a test image is
    both, normalised and side by side, [B, 2D] (`part` = "x1" or "x2": one of them). Loss: cross-entropy of x2 with
    captions that have a learned word and of x1 with CLIP's own, and a triplet of each against other domains.
    """
    method = "DePro"
    prompts = 4
    margin = 0.5
    train_norms = True
    part = "both"
    parts = ("both", "x1", "x2")

    def build_text(self):
        self.context = LearnedContext(self.clip, self.classes, tokens=1)
        with torch.no_grad():
            own = self.clip.encode_text([f"a photo of a {readable(name)}." for name in self.classes])
        self.register_buffer("own_texts", own, persistent=False)                            # [S, D]

    def build(self):
        width, patch = self.clip.width, self.clip.patch_size
        bound = (6 / (3 * patch * patch + width)) ** 0.5
        self.domain_prompts = nn.Parameter(torch.randn(self.prompts, width) * width ** -0.5)
        self.queries = nn.Parameter(torch.empty(self.prompts, width).uniform_(-bound, bound))
        body = PromptSimulator(self.clip.image_size, patch, width, self.clip.dim, layers=2)
        self.generator = nn.ModuleDict(dict(blocks=body.body.transformer, ln_post=body.body.ln_post))
        self.project = body.project

    def layer_norms(self):
        """Scales and shifts of every layer norm of both towers, where they train too."""
        model = self.clip.model
        modules = [*model.visual.modules(), *model.transformer.modules(), model.ln_final]
        return [p for module in modules if isinstance(module, nn.LayerNorm) for p in module.parameters()]

    def trainable(self, stage):
        norms = self.layer_norms() if self.train_norms else []
        return {"prompts": [self.domain_prompts, self.queries, *self.context.parameters(), *norms,
                            self.clip.model.visual.class_embedding],
                "simulator": [*self.generator.parameters(), self.project], "heads": self.heads()}

    def views(self, images):
        """x1 and x2, each [B, D]."""
        patches, batch = self.clip.patches(images), len(images)
        tokens = torch.cat([self.queries.expand(batch, -1, -1).to(patches.dtype), patches], 1)      # [B, 4+N, W]
        rows = torch.arange(self.prompts, device=images.device)
        written = run_blocks(self.generator["blocks"].resblocks, self.clip.model.visual.ln_pre(tokens), rows)
        own = self.generator["ln_post"](written) @ self.project                                     # [B, 4, W]
        both = torch.cat([self.domain_prompts.expand(batch, -1, -1).to(own.dtype), own], 1)
        return (self.clip.encode_tokens(patches, own, self.read_out),
                self.clip.encode_tokens(patches, both, self.read_out))

    def encode_image(self, images):
        x1, x2 = (F.normalize(x, dim=1) for x in self.views(images))
        return {"x1": x1, "x2": x2, "both": torch.cat([x2, x1], 1)}[self.part]

    def loss_and_logits(self, images, class_index, domain_index, stage):
        x1, x2 = self.views(images)
        logits = self.logits(x2)
        loss = F.cross_entropy(logits, class_index)
        loss = loss + F.cross_entropy(self.similarities(x1, self.own_texts) / self.config.temperature, class_index)
        for x in (x1, x2) if self.margin else ():
            loss = loss + cross_domain_triplet(x, class_index, domain_index, self.margin)
        return loss, logits


class DeProNoTriplet(DePro):
    """DePro by cross-entropy alone."""
    method = "DePro, no triplet"
    margin = None


class DeProNormsFrozen(DePro):
    """DePro with CLIP's layer norms as they are."""
    method = "DePro, layer norms frozen"
    train_norms = False


def cross_domain_triplet(features, class_index, domain_index, margin):
    """Mean over a batch of max(0, margin - s+ + s-): s+ the lowest cosine to the same class in another domain, s- the
    highest to another class. features [B, D]. An anchor without such a partner counts 0."""
    features = F.normalize(features.float(), dim=1)
    cosines = features @ features.T                                                                 # [B, B]
    same = class_index[:, None] == class_index
    partner = same & (domain_index[:, None] != domain_index)
    nearest_other = cosines.masked_fill(same, -1).max(1).values
    farthest_same = cosines.masked_fill(~partner, 1).min(1).values
    return (F.relu(margin - farthest_same + nearest_other) * partner.any(1)).mean()


METHODS = {"pros": ProS, "zero-shot": ZeroShot, "heads": HeadsOnly, "coop": CoOp, "coop-heads": CoOpHeads, "vpt": VPT,
           "vpt-deep": VPTDeep, "static": StaticPrompts, "full": FullFineTuning, "depro": DePro,
           "depro-no-triplet": DeProNoTriplet, "depro-norms-frozen": DeProNormsFrozen, **ABLATIONS}
