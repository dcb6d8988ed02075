"""Attention weights: they sum to 1, and are those that the towers compute with."""

import numpy as np
import pytest
import torch
from PIL import Image

from prosutils import load_clip
from prosutils.show.attention import (
    attention_maps,
    attention_weights,
    class_token_attention,
    patch_maps,
    template_attention,
)
from prosutils.simulator import PromptSimulator

CLIP = load_clip("mini")


@pytest.mark.parametrize("prompts", [None, torch.randn(2, 3, 192)], ids=["none", "three prompts"])
def test_the_class_token_attends_to_every_token_with_weights_that_sum_to_1(prompts):
    weights = class_token_attention(CLIP, torch.randn(2, 3, 56, 56), prompts)
    assert weights.shape == (4, 2, 3, 1 + (0 if prompts is None else 3) + 49)
    torch.testing.assert_close(weights.sum(-1), torch.ones(4, 2, 3))


def test_the_weights_are_those_of_the_tower():
    """The last block's output at the class token, computed from the weights, is the feature."""
    images = torch.randn(2, 3, 56, 56)
    visual = CLIP.model.visual
    class_token = (visual.class_embedding + visual.positional_embedding[0]).expand(2, 1, -1)
    tokens = visual.ln_pre(torch.cat([class_token, CLIP.patches(images)], 1))
    for block in visual.transformer.resblocks[:-1]:
        tokens = block(tokens)
    last = visual.transformer.resblocks[-1]
    (weights,) = attention_weights([last], tokens)  # [B, H, 1, T]
    value = last.ln_1(tokens) @ last.attn.in_proj_weight[2 * 192 :].T + last.attn.in_proj_bias[2 * 192 :]
    mixed = torch.einsum("bhrt,bthd->brhd", weights, value.unflatten(2, (3, 64))).flatten(2)
    token = tokens[:, :1] + last.attn.out_proj(mixed)
    feature = visual.ln_post(token + last.mlp(last.ln_2(token)))[:, 0] @ visual.proj
    torch.testing.assert_close(feature, CLIP.encode_image(images), atol=1e-4, rtol=1e-4)


def test_templates_attend_to_units_and_patches():
    simulator = PromptSimulator(16, 8, 64, 32, layers=2, prompts=2)
    weights = template_attention(simulator, torch.randn(3, 3, 16, 16), torch.randn(3, 7, 64))
    assert weights.shape == (2, 3, 1, 4, 4 + 7 + 4)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 1, 4))


def test_maps_have_the_patches_in_their_places():
    weights = torch.cat([torch.rand(5, 3), torch.arange(49.0).expand(5, -1)], 1)
    assert patch_maps(weights).shape == (5, 7, 7)
    assert torch.equal(patch_maps(weights)[0, 2], torch.arange(14.0, 21.0))


def test_the_figure_of_maps_is_drawn():
    image = Image.fromarray(np.full((64, 64, 3), 255, dtype=np.uint8))
    maps = [[torch.rand(7, 7), torch.zeros(7, 7)]] * 2
    figure = attention_maps([image] * 2, maps, ["left", "right"], [["a", "b"]] * 2, ["one", "two"])
    texts = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert {"left", "right", "a", "b", "one", "two"} <= set(texts) and len(figure.png()) > 1000
