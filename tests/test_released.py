"""Checkpoints of the released code: read as its trainer writes them, refused where they do not fit."""

import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from prosutils import UserError, load_clip, load_released_checkpoint
from prosutils.prompts import captions
from prosutils.released import released_name

DATA = Path(__file__).parent / "data"
CLASSES = ["aircraft_carrier", "alarm_clock", "ambulance", "teddy-bear", "The_Eiffel_Tower", "t-shirt", "zebra"]
DOMAINS = ["infograph", "quickdraw", "real", "sketch"]
SAMPLES = [
    ("zebra", "real"),
    ("t-shirt", "sketch"),
    ("aircraft_carrier", "quickdraw"),
    ("alarm_clock", "infograph"),
    ("zebra", "quickdraw"),
    ("The_Eiffel_Tower", "real"),
]
#: The released code's name of a part that came from CLIP -> OpenAI's, after which its recipe values are drawn.
FROM_CLIP = {
    "feature_template": "visual.class_embedding",
    "feature_proj": "visual.proj",
    "clip_positional_embedding": "visual.positional_embedding",
    "conv1.": "visual.conv1.",
    "ln_pre.": "visual.ln_pre.",
    "ln_post.": "visual.ln_post.",
    "transformer.": "visual.transformer.",
    "text_encoder.": "",
}
NORMS = ("ln_1.weight", "ln_2.weight", "ln_pre.weight", "ln_post.weight", "ln_final.weight")


def draw(name, shape, std, mean=0.0):
    """A tensor of the recipe: numpy's PCG64 seeded by crc32 of the name."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return torch.from_numpy(np.float32(mean + std * rng.standard_normal(size=tuple(shape), dtype=np.float32)))


def recipe(released_name, shape):
    name = next(
        (new + released_name[len(old) :] for old, new in FROM_CLIP.items() if released_name.startswith(old)),
        released_name,
    )
    if name.endswith(NORMS):
        return draw(name, shape, 0.1, 1.0)
    wide = any(part in name for part in ("positional_embedding", "class_embedding", "token_embedding"))
    return draw(name, shape, 0.02 if name.endswith("bias") else 0.05 if wide else 0.03)


@pytest.fixture(scope="module")
def state():
    """`model_state_dict` of the released code for 7 classes and 4 domains (shapes: tests/data/released_shapes.json)."""
    shapes = json.loads((DATA / "released_shapes.json").read_text())
    tokens = load_clip("ViT-B-32-quickgelu").tokenizer(captions(CLASSES, 16))
    embedding = recipe("text_encoder.token_embedding.weight", (49408, 512))
    return {name: recipe(name, shape) for name, shape in shapes.items()} | {
        "text_prompt_learner.origin_text_embedding": embedding[tokens]
    }


def write(path, state, **more):
    torch.save({"model_state_dict": state, "epoch": 3, "best_map": np.float64(0.5)} | more, path)
    return path


@torch.no_grad()
def test_released_checkpoint_gives_the_released_codes_features(state, tmp_path):
    model = load_released_checkpoint(write(tmp_path / "best.pth", state), CLASSES, DOMAINS)
    images = draw("images", (6, 3, 224, 224), 1.0)
    labels = torch.tensor([CLASSES.index(name) for name, _ in SAMPLES])
    domains = torch.tensor([DOMAINS.index(name) for _, name in SAMPLES])
    expected = np.load(DATA / "released_features.npz")
    found = {
        "stage1_image": F.normalize(model.encode_with_units(images, labels, domains), dim=1),
        "stage1_text": F.normalize(model.encode_classes(), dim=1),
        "stage4_image": model.encode_image(images),
    }
    for name, value in found.items():
        np.testing.assert_allclose(value.numpy(), expected[name], atol=1e-4, err_msg=name)
    assert abs(model.loss(images, labels, domains, 1).item() - expected["stage1_loss"]) < 1e-5


# --- Stage 2, written out once more ------------------------------------------------------------------------------
# The released code's second stage from its tensors, every position computed, nothing shared with prosutils.


def block(x, state, name, heads, mask=None):
    """CLIP's transformer block on x [B, T, W]."""

    def linear(x, part):
        return F.linear(x, state[f"{name}{part}weight"], state[f"{name}{part}bias"])

    def norm(x, part):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}{part}.weight"], state[f"{name}{part}.bias"])

    query, key, value = (
        part.unflatten(2, (heads, -1)).transpose(1, 2)  # [B, heads, T, W / heads]
        for part in linear(norm(x, "ln_1"), "attn.in_proj_").chunk(3, 2)
    )
    scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
    scores = scores if mask is None else scores + mask
    x = x + linear((scores.softmax(3) @ value).transpose(1, 2).flatten(2), "attn.out_proj.")
    hidden = linear(norm(x, "ln_2"), "mlp.c_fc.")
    return x + linear(hidden * torch.sigmoid(1.702 * hidden), "mlp.c_proj.")


def tower(x, state, name, layers, heads, norms=(), mask=None):
    """Layer norm, blocks, layer norm."""

    def norm(x, part):
        return F.layer_norm(x, x.shape[-1:], state[f"{part}.weight"], state[f"{part}.bias"])

    x = norm(x, norms[0]) if norms[0] else x
    for layer in range(layers):
        x = block(x, state, f"{name}transformer.resblocks.{layer}.", heads, mask)
    return norm(x, norms[1])


def released_stage2_loss(state, images, labels, domains):
    """Stage 2's loss written out once more, read at position 1, out of the released code's tensors."""

    def patches(name):
        return F.conv2d(images, state[f"{name}conv1.weight"], stride=32).flatten(2).transpose(1, 2)

    batch = len(images)
    hide_domain = 1 - F.one_hot(domains, len(DOMAINS)).float()[..., None]  # [B, M, 1]
    hide_class = 1 - F.one_hot(labels, len(CLASSES)).float()[..., None]  # [B, S, 1]
    templates = torch.cat([state["ge_dom_prompt_template"], state["ge_cls_prompt_template"]]).expand(batch, -1, -1)
    read = torch.cat(
        [
            templates,
            state["specific_domain_prompts"] * hide_domain,
            state["specific_class_prompts"] * hide_class,
            patches("generator.") + state["generator.positional_embedding"][1:],
        ],
        1,
    )
    prompts = tower(read, state, "generator.", 2, 12, ("generator.ln_pre", "generator.ln_post"))[:, :2]
    places = state["clip_positional_embedding"]
    first = (state["feature_template"] + places[0]).expand(batch, 1, -1)
    tokens = torch.cat([first, prompts @ state["generator_proj"], patches("") + places[1:]], 1)
    image = tower(tokens, state, "", 12, 12, ("ln_pre", "ln_post"))[:, 1] @ state["feature_proj"]

    tokenizer = load_clip("ViT-B-32-quickgelu").tokenizer
    ids = tokenizer(captions(CLASSES, 16))
    placeholder = ids == tokenizer.encode("X")[0]  # [C, 77]
    words = state["text_prompt_learner.origin_text_embedding"].clone()
    words[placeholder] = state["text_prompt_learner.ctx"].repeat(len(CLASSES), 1)
    causal = torch.full((77, 77), float("-inf")).triu(1)
    texts = tower(
        words + state["text_encoder.positional_embedding"],
        state,
        "text_encoder.",
        12,
        8,
        (None, "text_encoder.ln_final"),
        causal,
    )
    text = texts[range(len(CLASSES)), ids.argmax(1)] @ state["text_encoder.text_projection"]
    return F.cross_entropy(F.normalize(image, dim=1) @ F.normalize(text, dim=1).T / 0.07, labels)


def test_stage2_loss_and_gradients_agree_with_the_stage_written_out(state, tmp_path):
    model = load_released_checkpoint(write(tmp_path / "best.pth", state), CLASSES, DOMAINS)
    images = draw("images", (6, 3, 224, 224), 1.0)
    labels = torch.tensor([CLASSES.index(name) for name, _ in SAMPLES])
    domains = torch.tensor([DOMAINS.index(name) for _, name in SAMPLES])
    model.set_stage(2)
    loss = model.loss(images, labels, domains, 2)
    loss.backward()

    leaves = {
        name: tensor.clone().requires_grad_(name != "text_prompt_learner.origin_text_embedding")
        for name, tensor in state.items()
    }
    expected = released_stage2_loss(leaves, images, labels, domains)
    expected.backward()
    assert abs(loss.item() - expected.item()) < 1e-5
    trained = {released_name(name): p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert sum(gradient is not None for gradient in trained.values()) == 37
    for name, gradient in trained.items():
        if gradient is None:
            assert name in ("generator.class_embedding", "generator.proj") and leaves[name].grad is None
        else:
            scale = leaves[name].grad.abs().max()
            torch.testing.assert_close(gradient / scale, leaves[name].grad / scale, atol=1e-4, rtol=0, msg=name)


def test_checkpoint_of_other_classes_or_domains_is_refused_by_name(state, tmp_path):
    path = write(tmp_path / "best.pth", state)
    with pytest.raises(UserError, match=r"specific_class_prompts is \[7, 768\] there, \[6, 768\] here"):
        load_released_checkpoint(path, CLASSES[:6], DOMAINS)
    with pytest.raises(UserError, match=r"specific_domain_prompts is \[4, 768\] there, \[3, 768\] here"):
        load_released_checkpoint(path, CLASSES, DOMAINS[:3])
    with pytest.raises(UserError, match="in another order.*do not fit.*zebra"):
        load_released_checkpoint(path, [CLASSES[-1], *CLASSES[1:-1], CLASSES[0]], DOMAINS)


def test_missing_and_surplus_tensors_are_named(state, tmp_path):
    other = {name: tensor for name, tensor in state.items() if name != "generator_proj"}
    other["head.weight"] = torch.ones(2)
    with pytest.raises(UserError, match=r"missing: generator_proj. surplus: head.weight"):
        load_released_checkpoint(write(tmp_path / "best.pth", other), CLASSES, DOMAINS)


class Code:
    """Pickled, it calls os.mkdir when read."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_code_in_a_checkpoint_is_never_run(state, tmp_path):
    path = write(tmp_path / "evil.pth", {}, options=Code(tmp_path / "ran"))
    with pytest.raises(UserError, match="code in it is never run"):
        load_released_checkpoint(path, CLASSES, DOMAINS)
    assert not (tmp_path / "ran").exists()


def test_other_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="There is no checkpoint"):
        load_released_checkpoint(tmp_path / "absent.pth", CLASSES, DOMAINS)
    (tmp_path / "text.pth").write_text("not a checkpoint")
    with pytest.raises(UserError, match="not a checkpoint of the released code"):
        load_released_checkpoint(tmp_path / "text.pth", CLASSES, DOMAINS)
