"""Where a token looks: attention weights of a tower's blocks, and their maps over a picture."""

from collections.abc import Sequence

import matplotlib
import numpy as np
import torch
from PIL import Image
from torch import nn

from ..backbone import PromptableCLIP
from ..simulator import PromptSimulator
from .pictures import FAINT, GREY, INK, WIDTH, board, picture, plain, short, styled, thumbnail


@torch.no_grad()
def attention_weights(blocks: Sequence[nn.Module], tokens: torch.Tensor, rows: Sequence[int] = (0,)) -> torch.Tensor:
    """How much the tokens at some positions attend to every token, in every block and head: [L, B, H, R, T].

    blocks: L blocks of open_clip's transformer; tokens: [B, T, W], what enters the first; rows: R positions.
    The weights of a token in one head sum to 1.
    """
    weights = []
    for block in blocks:
        context = block.ln_1(tokens)
        query = context[:, list(rows)]
        _, found = block.attn(query, context, context, need_weights=True, average_attn_weights=False)
        weights.append(found)  # [B, H, R, T]
        tokens = block(tokens)
    return torch.stack(weights)


@torch.no_grad()
def class_token_attention(
    clip: PromptableCLIP, images: torch.Tensor, prompts: torch.Tensor | None = None
) -> torch.Tensor:
    """Attention of the image tower's class token: [L, B, H, 1 + P + N], columns `[cls ; prompts ; patches]`.

    images [B, 3, H, W] normalised; prompts [B, P, W] or None, as `clip.encode_image` takes them.
    """
    visual = clip.model.visual
    class_token = (visual.class_embedding + visual.positional_embedding[0]).expand(len(images), 1, -1)
    patches = clip.patches(images)
    parts = [class_token, patches] if prompts is None else [class_token, prompts, patches]
    tokens = visual.ln_pre(torch.cat(parts, 1))
    return attention_weights(visual.transformer.resblocks, tokens)[:, :, :, 0]


@torch.no_grad()
def template_attention(
    simulator: PromptSimulator, images: torch.Tensor, units: torch.Tensor, patches: torch.Tensor | None = None
) -> torch.Tensor:
    """Attention of the simulator's templates: [L, B, H, 2K, 2K + U + N], columns `[templates ; units ; patches]`.

    Arguments as `simulator` takes them: images [B, 3, H, W], units [B, U, W], patches [B, N, W] or None. K is the
    number of templates of each kind; the first K rows are the domain's.
    """
    rows = range(len(simulator.domain_template) + len(simulator.semantic_template))
    tokens = simulator.tokens(images, units, patches)
    return attention_weights(simulator.body.transformer.resblocks, tokens, rows)


def patch_maps(weights: torch.Tensor, patches: int = 49) -> torch.Tensor:
    """The last `patches` columns of weights [..., T] as maps over the picture: [..., side, side]."""
    side = round(patches**0.5)
    return weights[..., -patches:].unflatten(-1, (side, side))


def heat(image: Image.Image, values: torch.Tensor, top: float, side: int = 224):
    """A picture under a map [h, w] of weights: grey where the weight is 0, in full orange where it is `top`."""
    values = np.asarray(values, dtype=np.float32) / max(top, 1e-9)
    smooth = Image.fromarray(values.clip(0, 1)).resize((side, side), Image.Resampling.BICUBIC)
    strength = np.asarray(smooth).clip(0, 1)[..., None]
    grey = np.asarray(thumbnail(image, side).resize((side, side)).convert("L"), dtype=np.float32)[..., None] / 255
    colour = matplotlib.colormaps["inferno"](strength[..., 0])[..., :3]
    mixed = (1 - 0.75 * strength**0.6) * (0.55 * grey + 0.1) + 0.75 * strength**0.6 * (0.35 * grey + 0.65 * colour)
    return Image.fromarray((mixed.clip(0, 1) * 255).astype(np.uint8))


@styled
def attention_maps(
    images: Sequence[Image.Image],
    maps: Sequence[Sequence[torch.Tensor]],
    titles: Sequence[str],
    captions: Sequence[Sequence[str]] | None = None,
    labels: Sequence[str] | None = None,
):
    """Pictures (rows) and what a token attends to in them under several conditions (columns).

    maps: for each picture c maps [h, w], drawn on one scale per picture; titles: c texts above the columns;
    captions: for each picture c texts below its maps; labels: texts below the pictures themselves.
    """
    columns, gap = len(titles), 0.1
    pitch, left = 1.12 + 0.2 * (captions is not None or labels is not None), 1.25
    width, height = left + columns * (1 + gap), 0.32 + len(images) * pitch
    unit = min(1.35, WIDTH / width)
    figure, ax = board(width, height, unit)
    for column, title in enumerate(titles):
        ax.text(left + column * (1 + gap) + 0.5, 0.22, plain(title), ha="center", fontweight="bold", fontsize=9)
    for row, (image, shown) in enumerate(zip(images, maps, strict=True)):
        y = 0.32 + row * pitch
        picture(ax, image, 0.05, y)
        top = max(float(values.max()) for values in shown)
        if labels is not None:
            ax.text(0.55, y + 1.06, plain(labels[row]), ha="center", va="top", fontsize=8, color=GREY)
        for column, values in enumerate(shown):
            x = left + column * (1 + gap)
            ax.imshow(heat(image, values, top), extent=(x, x + 1, y + 1, y), aspect="auto", zorder=3)
            if captions is not None:
                ax.text(x + 0.5, y + 1.06, plain(captions[row][column]), ha="center", va="top", fontsize=8, color=INK)
    return figure


@styled
def attention_and_words(
    images: Sequence[Image.Image],
    maps: Sequence[Sequence[torch.Tensor]],
    words: Sequence[Sequence[tuple[str, float]]],
    titles: Sequence[str],
    captions: Sequence[str],
    colours: dict[str, str],
):
    """Pictures that a tower reads together, under several conditions (columns): where it looks and what it says.

    maps: for each condition a map [h, w] for each picture, all on one scale; words: for each condition its nearest
    texts and their cosines; captions: a text between both; colours: of words, others are grey.
    """
    gap, bar = 0.55, 0.3
    pitch, most = len(images) + gap, max(cosine for column in words for _, cosine in column)
    width, height = len(titles) * pitch - gap + 0.1, 1.95 + bar * max(map(len, words))
    figure, ax = board(width, height, min(1.1, WIDTH / width))
    top = max(float(values.max()) for column in maps for values in column)
    for column, (title, shown, found) in enumerate(zip(titles, maps, words, strict=True)):
        left = 0.05 + column * pitch
        middle = left + len(images) / 2
        ax.text(middle, 0.22, plain(title), ha="center", fontweight="bold", fontsize=9)
        for i, (image, values) in enumerate(zip(images, shown, strict=True)):
            ax.imshow(heat(image, values, top), extent=(left + i, left + i + 0.97, 1.34, 0.37), aspect="auto", zorder=3)
        ax.text(middle, 1.42, plain(captions[column]), ha="center", va="top", fontsize=8, color=GREY)
        for row, (name, cosine) in enumerate(found):
            y, length = 1.85 + row * bar, max(0.0, cosine / most) * 0.85
            colour = colours.get(name, FAINT)
            ax.barh(y, length, height=0.2, left=left + 1.0, color=colour, zorder=3)
            ax.text(left + 0.95, y, short(name, 14), ha="right", va="center", fontsize=8)
            ax.text(left + 1.04 + length, y, f"{cosine:.2f}", va="center", fontsize=8, color=GREY)
    return figure
