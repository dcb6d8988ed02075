"""CLIP through open_clip, with towers that accept prompt tokens.

Two backbones share every line below: mini-CLIP (shipped with this package, for two CPU cores) and open_clip's models
(ViT-B-32-quickgelu with OpenAI's weights is the paper's).
"""

import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip import transformer
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from open_clip.tokenizer import SimpleTokenizer, bytes_to_unicode
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.autograd.function import once_differentiable

from .files import UserError
from .processes import dropout

#: Widths of mini-CLIP. 56 x 56 pixels in patches of 8 give 7 x 7 patches: the same 49 + 1 tokens as ViT-B/32 at 224.
MINI = dict(image_size=56, patch_size=8, width=192, layers=4, text_layers=2, context_length=32, vocab_size=8192)
MINI_MEAN, MINI_STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


class MiniTokenizer(SimpleTokenizer):
    """CLIP's byte-pair encoding, cut after its first merges so that the vocabulary has `vocab_size` entries."""

    bpe_ranks: dict[tuple[str, str], int]

    def __init__(self, vocab_size: int = MINI["vocab_size"], context_length: int = MINI["context_length"]) -> None:
        super().__init__(context_length=context_length)
        merges = list(self.bpe_ranks)[: vocab_size - 2 * 256 - 2]
        letters = list(bytes_to_unicode().values())
        special = ["<start_of_text>", "<end_of_text>"]
        vocabulary = letters + [x + "</w>" for x in letters] + ["".join(pair) for pair in merges] + special
        self.encoder = {token: i for i, token in enumerate(vocabulary)}
        self.decoder = {i: token for token, i in self.encoder.items()}
        self.bpe_ranks = {pair: rank for rank, pair in enumerate(merges)}
        self.cache = {token: token for token in special}
        self.vocab_size = len(vocabulary)
        self.sot_token_id, self.eot_token_id = (self.encoder[token] for token in special)
        self.all_special_ids = [self.sot_token_id, self.eot_token_id]


def convolutional_stem(width: int, normalise: bool = True) -> nn.Sequential:
    """Six 3 x 3 convolutions instead of CLIP's patch convolution: [B, 3, 56, 56] -> [B, width, 7, 7].

    At this size a stem learns several times faster than a single 8 x 8 patch convolution. Batch norm
    (`normalise=True`) is for pre-training; `fold_batch_norm` removes it before the weights are shipped.
    """
    layers: list[nn.Module] = []
    channels = 3
    for out, stride in ((32, 2), (32, 1), (64, 2), (64, 1), (128, 2), (128, 1)):
        layers += [nn.Conv2d(channels, out, 3, stride, 1, bias=not normalise)]
        layers += [nn.BatchNorm2d(out)] if normalise else []
        layers += [nn.ReLU()]
        channels = out
    return nn.Sequential(*layers, nn.Conv2d(channels, width, 1))


def fold_batch_norm(stem: nn.Sequential) -> nn.Sequential:
    """The same function as `stem` in evaluation mode, without batch norm."""
    modules, folded = list(stem), []
    for module, following in zip(modules, modules[1:] + [None], strict=True):
        if isinstance(following, nn.BatchNorm2d):
            assert isinstance(module, nn.Conv2d)
            module = nn.utils.fusion.fuse_conv_bn_eval(module.eval(), following.eval())
        if not isinstance(module, nn.BatchNorm2d):
            folded.append(module)
    return nn.Sequential(*folded)


def build_mini(normalise: bool = False) -> CLIP:
    """mini-CLIP with random weights: open_clip's CLIP, small, with a convolutional stem.

    `normalise=True` keeps batch norm in the stem (pre-training only).
    """
    width = MINI["width"]
    model = CLIP(
        embed_dim=width,
        quick_gelu=True,
        vision_cfg=CLIPVisionCfg(
            image_size=MINI["image_size"],
            patch_size=MINI["patch_size"],
            width=width,
            layers=MINI["layers"],
            head_width=64,
        ),
        text_cfg=CLIPTextCfg(
            context_length=MINI["context_length"],
            vocab_size=MINI["vocab_size"],
            width=width,
            heads=width // 64,
            layers=MINI["text_layers"],
        ),
    )
    model.visual.conv1 = convolutional_stem(width, normalise)
    return model


class QuickGELU(nn.Module):
    """CLIP's activation x sigmoid(1.702 x), as open_clip's class of that name, in half as many passes over memory."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ScaledSiLU.apply(x)


class ScaledSiLU(torch.autograd.Function):
    """silu(c x) / c with c = 1.702, of which only c x is kept for the backward pass: the derivative is silu'(c x)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        scaled = 1.702 * x
        ctx.save_for_backward(scaled)
        return nn.functional.silu(scaled).div_(1.702)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return torch.ops.aten.silu_backward(gradient, *ctx.saved_tensors)


def run_blocks(
    blocks: Sequence[Any], tokens: torch.Tensor, rows: torch.Tensor, attn_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Transformer blocks of which only some positions are read afterwards.

    tokens [B, T, W], rows: [R] (the same positions in every sample) or [B] (one position each).
    Returns [B, R, W], R = 1 in the second case. Same numbers as running everything: the last block computes only
    what is read at `rows`, by `attend`.
    """
    for block in blocks[:-1]:
        tokens = block(tokens, attn_mask=attn_mask)
    last = blocks[-1]
    context = last.ln_1(tokens)  # [B, T, W]
    if rows.ndim == 1 and len(rows) == len(tokens) and attn_mask is not None:
        pick = rows[:, None, None].expand(-1, 1, tokens.shape[-1])
        query, tokens = context.gather(1, pick), tokens.gather(1, pick)  # [B, 1, W]
        attn_mask = attn_mask[rows][:, None]  # a position sees what the causal mask lets it see: [B, 1, T]
    else:
        query, tokens = context[:, rows], tokens[:, rows]  # [B, R, W]
    tokens = tokens + last.ls_1(attend(last.attn, query, context, attn_mask))
    return tokens + last.ls_2(last.mlp(last.ln_2(tokens)))


def attend(
    attn: nn.MultiheadAttention, query: torch.Tensor, context: torch.Tensor, attn_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """`attn(query, context, context)` for a few queries [B, R, W] on many tokens [B, T, W].

    No key and no value is computed per token: q . (K x) = (K^T q) . x, and a mean of values is the value of the mean.

    attn: nn.MultiheadAttention, H heads of width d; attn_mask [B, R, T], 0 or -inf. Keys' biases add the same to all
    scores of a query, which softmax does not see.
    """
    heads = attn.num_heads
    (w_q, w_k, w_v), (b_q, _, b_v) = attn.in_proj_weight.chunk(3), attn.in_proj_bias.chunk(3)
    w_k, w_v = (weight.unflatten(0, (heads, -1)) for weight in (w_k, w_v))  # [H, d, W]
    q = nn.functional.linear(query, w_q, b_q).unflatten(2, (heads, -1))  # [B, R, H, d]
    q = torch.einsum("brhd,hdw->brhw", q * q.shape[-1] ** -0.5, w_k)  # [B, R, H, W]
    scores = torch.einsum("brhw,btw->brht", q, context)
    if attn_mask is not None:
        scores = scores + attn_mask[:, :, None]
    mean = torch.einsum("brht,btw->brhw", scores.softmax(-1).to(context.dtype), context)
    return attn.out_proj(torch.einsum("brhw,hdw->brhd", mean, w_v).flatten(2) + b_v)


def tower_operations(sequences: int, tokens: int, width: int, layers: int, rows: int | None = None) -> int:
    """Operations of a transformer's blocks, forward: of their matrices, 12 W^2 weights a block, multiply and add.

    sequences of T = `tokens` positions of width W; of the last block `rows` positions are read (None: all). The scores
    of attention are left out: with them a block costs T / 6W more.
    """
    rows = tokens if rows is None else rows
    return 24 * width**2 * sequences * (tokens * (layers - 1) + rows)


class PromptableCLIP(nn.Module):
    """A CLIP whose image tower takes prompt tokens between the class token and the patches.

    Attributes: `model` (open_clip's CLIP), `tokenizer`, `image_size` and `patch_size` (pixels), `mean`, `std` (of the
    pixels in [0, 1]), `width` (W, of the image tower), `text_width`, `dim` (D, of the joint space), `name`.
    """

    def __init__(
        self, model: CLIP, tokenizer: SimpleTokenizer, mean: Sequence[float], std: Sequence[float], name: str
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.mean, self.std = tuple(mean), tuple(std)
        visual = model.visual
        for block in (*visual.transformer.resblocks, *model.transformer.resblocks):
            if isinstance(block.mlp.gelu, transformer.QuickGELU):
                block.mlp.gelu = QuickGELU()
        self.image_size, self.patch_size = (
            size[0] if isinstance(size, (tuple, list)) else size for size in (visual.image_size, visual.patch_size)
        )
        self.width, self.dim = visual.proj.shape
        self.text_width = model.token_embedding.weight.shape[1]

    def patches(self, images: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] normalised pixels -> [B, N, W] patch embeddings with their positional embedding."""
        visual = self.model.visual
        return visual.conv1(images).flatten(2).transpose(1, 2) + visual.positional_embedding[1:]

    def encode_tokens(
        self, patches: torch.Tensor, prompts: torch.Tensor | None = None, read_out: int = 0, token_dropout: float = 0.0
    ) -> torch.Tensor:
        """Image features [B, D] of `[cls + pos_0 ; prompts ; patches]`, read at position `read_out`.

        patches [B, N, W] from `patches`; prompts [B, P, W] or None, without positional embedding (released code).
        `token_dropout` is the probability with which an entry of the whole sequence is dropped before ln_pre.
        """
        visual = self.model.visual
        class_token = (visual.class_embedding + visual.positional_embedding[0]).expand(len(patches), 1, -1)
        parts = [class_token, patches] if prompts is None else [class_token, prompts, patches]
        tokens = torch.cat([part.to(patches.dtype) for part in parts], 1)  # [B, 1+P+N, W]
        tokens = dropout(tokens, token_dropout) if token_dropout else tokens
        rows = torch.tensor([read_out], device=tokens.device)
        out = run_blocks(visual.transformer.resblocks, visual.ln_pre(tokens), rows)[:, 0]  # [B, W]
        return visual.ln_post(out) @ visual.proj

    def encode_image(
        self, images: torch.Tensor, prompts: torch.Tensor | None = None, read_out: int = 0
    ) -> torch.Tensor:
        """[B, 3, H, W] normalised pixels (and prompts [B, P, W]) -> features [B, D], not L2-normalised."""
        return self.encode_tokens(self.patches(images), prompts, read_out)

    def read_embeddings(self, embeddings: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        """Token embeddings [C, L, Wt] -> [C, Wt], what the text projection reads; `end` [C] as below.

        Captions are causal: positions after a caption's end are left out, which changes nothing. Captions of about
        the same length are read together, so that few such positions remain.
        """
        model, order = self.model, end.argsort()
        out = []
        for rows in order.chunk(4):
            length = int(end[rows[-1]]) + 1
            tokens = embeddings[rows, :length] + model.positional_embedding[:length]
            mask = model.attn_mask[:length, :length]
            out.append(run_blocks(model.transformer.resblocks, tokens, end[rows], mask)[:, 0])
        return model.ln_final(torch.cat(out)[order.argsort()])

    def encode_embeddings(self, embeddings: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        """Text features [C, D] of token embeddings [C, L, Wt]; `end` [C] is the position of each end-of-text token."""
        return self.read_embeddings(embeddings, end) @ self.model.text_projection

    def read_text(self, captions: Sequence[str]) -> torch.Tensor:
        """Captions (a list of C strings) -> [C, Wt], what the text projection reads.

        Raises UserError for a caption that is longer than the text tower reads: the tokenizer would cut it silently.
        """
        tokens = self.tokenizer(captions)  # [C, 77]
        room = tokens.shape[1]
        for row in tokens[:, -1].nonzero().flatten().tolist():  # it is full, or was cut
            needed = len(self.tokenizer.encode(captions[row])) + 2  # and the marks of its start and end
            if needed > room:
                raise UserError(
                    f"{captions[row][:80]!r}... has {needed} tokens, the text tower takes {room}: shorten it."
                )
        tokens = tokens.to(self.model.token_embedding.weight.device)
        return self.read_embeddings(self.model.token_embedding(tokens), tokens.argmax(1))

    def encode_text(self, captions: Sequence[str]) -> torch.Tensor:
        """Captions (a list of C strings) -> features [C, D], not L2-normalised."""
        return self.read_text(captions) @ self.model.text_projection


def load_clip(name: str = "mini", pretrained: str | Path | None = None) -> PromptableCLIP:
    """A frozen backbone in evaluation mode.

    name: "mini" (shipped weights, or those of the file `pretrained`) or an open_clip model name such as
    "ViT-B-32-quickgelu"; then `pretrained` is an open_clip tag ("openai": downloaded on first use), a local
    checkpoint, or None for random weights (shapes and speed only).
    Raises UserError for an unknown name, an unreadable file, OpenAI's weights in a model with another activation,
    or a failed download.
    """
    clip = _load_mini(pretrained) if name == "mini" else _load_open_clip(name, pretrained)
    return clip.requires_grad_(False).eval()


def _load_mini(path: str | Path | None) -> PromptableCLIP:
    path = Path(path) if path else Path(str(resources.files("prosutils") / "data" / "miniclip.safetensors"))
    model = build_mini()
    try:
        with safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key).float() for key in file.keys()}
        model.load_state_dict(state)
    except FileNotFoundError:
        raise UserError(
            f"There are no mini-CLIP weights at {path}. data_scripts/pretrain_miniclip.py makes them."
        ) from None
    except (SafetensorError, RuntimeError) as error:
        raise UserError(f"{path} does not hold mini-CLIP weights: {str(error)[:300]}") from None
    return PromptableCLIP(model, MiniTokenizer(), MINI_MEAN, MINI_STD, "mini")


def _load_open_clip(name: str, pretrained: str | Path | None) -> PromptableCLIP:
    if name not in open_clip.list_models() or not _takes_prompts(name):
        fault = "Unusable" if name in open_clip.list_models() else "Unknown"
        family = sorted(x for x in open_clip.list_models() if re.match("ViT-[BL]-(16|32)", x) and _takes_prompts(x))
        raise UserError(
            f"{fault} backbone {name!r}. Known: mini, {', '.join(family)} and open_clip's other CLIPs whose image "
            "tower is a ViT with a class token: prompts stand between that token and the patches."
        )
    if str(pretrained) == "openai" and not name.endswith("-quickgelu"):
        raise UserError(
            f"OpenAI's weights were trained with QuickGELU; {name} computes another function with them. "
            f"Use {name}-quickgelu."
        )
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=pretrained)
    except Exception as error:  # of many kinds; torch's may advise to run a file's code
        reason = "it is damaged, or holds more than tensors" if "weights_only" in str(error) else str(error)[:200]
        raise UserError(
            f"The weights {pretrained!r} of {name} could not be loaded ({reason}). They are "
            "downloaded on first use: check the network, or give a local file as `pretrained`."
        ) from None
    normalise = preprocess.transforms[-1]
    return PromptableCLIP(model, open_clip.get_tokenizer(name), normalise.mean, normalise.std, name)


def _takes_prompts(name: str) -> bool:
    """Whether an open_clip model is a CLIP of the kind that `PromptableCLIP` reads: open_clip's own transformers, the
    image feature read from a class token."""
    config = open_clip.get_model_config(name)
    image, text = config["vision_cfg"], config["text_cfg"]
    other_image = {"timm_model_name", "attentional_pool", "attn_pooler_queries", "global_average_pool", "pool_type"}
    other_text = {"hf_model_name", "hf_tokenizer_name", "pool_type", "no_causal_mask", "embed_cls"}
    return (
        not config.get("custom_text")
        and "multimodal_cfg" not in config
        and isinstance(image.get("layers"), int)  # a list: a ResNet
        and not any(image.get(key) for key in other_image)
        and not any(text.get(key) for key in other_text)
    )
