"""CLIP's towers: the same numbers as open_clip's own, and clear words for what cannot be loaded."""

import open_clip.transformer
import pytest
import torch
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from prosutils.backbone import (
    MINI_MEAN,
    MINI_STD,
    MiniTokenizer,
    PromptableCLIP,
    QuickGELU,
    build_mini,
    convolutional_stem,
    fold_batch_norm,
    load_clip,
    run_blocks,
    tower_operations,
)
from prosutils.files import UserError

CAPTIONS = ["a photo of a house", "a dog from some other kind of domain.", "zebra"]


@pytest.fixture(scope="module")
def mini():
    torch.manual_seed(0)
    return PromptableCLIP(build_mini(), MiniTokenizer(), MINI_MEAN, MINI_STD, "mini").eval()


@torch.no_grad()
def test_both_towers_agree_with_open_clip(mini):
    images = torch.randn(4, 3, 56, 56)
    torch.testing.assert_close(mini.encode_image(images), mini.model.encode_image(images), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        mini.encode_text(CAPTIONS), mini.model.encode_text(mini.tokenizer(CAPTIONS)), atol=1e-5, rtol=1e-5
    )


@torch.no_grad()
def test_prompts_change_the_feature_and_carry_no_position(mini):
    images, prompts = torch.randn(2, 3, 56, 56), torch.randn(2, 2, 192)
    with_prompts = mini.encode_image(images, prompts)
    assert not torch.allclose(with_prompts, mini.encode_image(images), atol=1e-3)
    torch.testing.assert_close(with_prompts, mini.encode_image(images, prompts.flip(1)), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_read_out_picks_the_token(mini):
    images, prompts = torch.randn(2, 3, 56, 56), torch.randn(2, 2, 192)
    visual = mini.model.visual
    class_token = (visual.class_embedding + visual.positional_embedding[0]).expand(2, 1, -1)
    tokens = torch.cat([class_token, prompts, mini.patches(images)], 1)
    every = visual.ln_post(visual.transformer(visual.ln_pre(tokens))) @ visual.proj
    for position in (0, 1, 2):
        found = mini.encode_image(images, prompts, position)
        torch.testing.assert_close(found, every[:, position], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_batch_norm_folds_away():
    stem, images = convolutional_stem(32), torch.randn(2, 3, 56, 56)
    for _ in range(3):
        stem(torch.randn(8, 3, 56, 56) * 2 + 1)  # running statistics that are not the initial ones
    folded = fold_batch_norm(stem.eval())
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded)
    torch.testing.assert_close(folded(images), stem(images), atol=1e-4, rtol=1e-4)


def test_tokenizer_is_clips_with_a_smaller_vocabulary(mini):
    tokens = mini.tokenizer(CAPTIONS)
    assert tokens.shape == (3, 32) and int(tokens.max()) == mini.tokenizer.eot_token_id == 8191
    assert mini.tokenizer.decode(mini.tokenizer.encode("alarm clock")).strip() == "alarm clock"


def test_random_weights_of_a_real_model_have_the_papers_widths():
    clip = load_clip("ViT-B-32-quickgelu")
    assert (clip.width, clip.dim, clip.text_width, clip.image_size, clip.patch_size) == (768, 512, 512, 224, 32)
    assert not any(parameter.requires_grad for parameter in clip.parameters())


def test_a_local_file_loads_and_others_are_refused(tmp_path, mini):
    path = tmp_path / "mini.safetensors"
    save_file({name: value.contiguous() for name, value in mini.model.state_dict().items()}, path)
    images = torch.randn(1, 3, 56, 56)
    with torch.no_grad():
        torch.testing.assert_close(load_clip("mini", path).encode_image(images), mini.encode_image(images))
    for content, words in ((None, "no mini-CLIP weights"), (b"not weights", "does not hold")):
        wrong = tmp_path / "wrong.safetensors"
        if content:
            wrong.write_bytes(content)
        with pytest.raises(UserError, match=words):
            load_clip("mini", wrong)


def test_unknown_name_and_wrong_activation_are_refused():
    with pytest.raises(UserError, match="Known: mini, .*ViT-B-32"):
        load_clip("ViT-B-33")
    with pytest.raises(UserError, match="ViT-B-32-quickgelu"):
        load_clip("ViT-B-32", "openai")
    with pytest.raises(UserError, match="could not be loaded"):
        load_clip("ViT-B-32-quickgelu", "no/such/file.pt")


@pytest.mark.parametrize("rows", [None, 2])
def test_operations_are_those_that_torch_counts(rows):
    """The formula leaves out the scores: T / 6W = 3 % at all positions, and what the few templates ask at the end."""
    torch.manual_seed(0)
    blocks = open_clip.transformer.Transformer(width=192, layers=2, heads=3).resblocks
    tokens = torch.randn(4, 40, 192)
    with FlopCounterMode(display=False) as counter:
        run_blocks(blocks, tokens, torch.arange(rows or 40))
    assert 0.9 < tower_operations(4, 40, 192, 2, rows) / counter.get_total_flops() < 1


def test_the_activation_and_its_gradient_are_open_clips():
    x = torch.linspace(-30, 30, 1001, dtype=torch.double, requires_grad=True)
    gradients = []
    for activation in (QuickGELU(), open_clip.transformer.QuickGELU()):
        y = activation(x)
        gradients.append(torch.autograd.grad((y * x.detach().cos()).sum(), x)[0])
        torch.testing.assert_close(y, x * torch.sigmoid(1.702 * x))
    torch.testing.assert_close(*gradients)


def test_both_towers_have_it(mini):
    kinds = [type(block.mlp.gelu) for tower in (mini.model.visual, mini.model) for block in tower.transformer.resblocks]
    assert kinds == [QuickGELU] * 6
