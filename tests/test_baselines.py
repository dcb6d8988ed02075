"""Baselines: what trains in each, and that each computes what its name says."""

import pytest
import torch
import torch.nn.functional as F
from conftest import build

from prosutils import METHODS, UserError, load_clip, load_preset
from prosutils.followers import cross_domain_triplet

HEADS = {"clip.model.text_projection", "clip.model.visual.proj"}


def test_numbers_trained_at_the_papers_size():
    """300 classes, 5 domains, ViT-B/32: the numbers that follow from the methods' own code."""
    clip, config = load_clip("ViT-B-32-quickgelu"), load_preset("pacs")
    expected = {"heads": 655_360, "coop": 8_192, "coop-heads": 663_552, "static": 662_784, "depro": 15_495_424}
    for name, number in expected.items():
        model = METHODS[name](clip, [f"class {i}" for i in range(300)], "abcde", config)
        assert sum(p.numel() for group in model.trainable(2).values() for p in group) == number, name


@pytest.mark.parametrize("name", [name for name in METHODS if name != "zero-shot"])
def test_every_trained_parameter_and_no_other_gets_a_gradient(name, clip, batch):
    dead = {"simulator.body.class_embedding", "simulator.body.proj"}  # the released code counts them all the same
    for stage in METHODS[name].stages:
        model = build(name, clip)
        model.set_stage(stage)
        model.loss(*batch, stage).backward()
        assert all(
            (value.grad is not None) == (value.requires_grad and name not in dead)
            for name, value in model.named_parameters()
        )


def test_what_the_controls_train(clip):
    def trained(name):
        model = build(name, clip)
        model.set_stage(2)
        return {parameter for parameter, value in model.named_parameters() if value.requires_grad}

    assert trained("heads") == HEADS
    assert trained("coop") == {"context.vectors"}
    assert trained("coop-heads") == HEADS | {"context.vectors"}
    assert trained("vpt") == HEADS | {"context.vectors", "visual_prompts", "clip.model.visual.class_embedding"}
    assert trained("full") == {name for name, _ in build("full", clip).named_parameters() if "logit_scale" not in name}


def test_zero_shot_and_coop_retrieve_like_clip_itself(clip, batch):
    for name in ("zero-shot", "coop"):
        torch.testing.assert_close(build(name, clip).encode_image(batch[0]), clip.encode_image(batch[0]))
    with pytest.raises(UserError, match="has no stage 2"):
        build("zero-shot", clip).loss(*batch, stage=2)


def test_heads_only_reads_fixed_captions(clip):
    model = build("heads", clip)
    captions = ["a photo of a house.", "a photo of a alarm clock.", "a photo of a dog.", "a photo of a ice cream."]
    torch.testing.assert_close(model.encode_classes(), clip.encode_text(captions))


def test_static_prompts_stand_between_class_token_and_patches(clip, batch):
    model = build("vpt", clip)
    prompts = model.visual_prompts.expand(4, -1, -1)
    torch.testing.assert_close(model.encode_image(batch[0]), clip.encode_image(batch[0], prompts))
    assert build("static", clip).visual_prompts.shape == (8, 192)


def test_deep_prompts_replace_what_a_block_wrote(clip, batch):
    """With the outputs of plain VPT as prompts of the later blocks, deep VPT computes what VPT computes."""
    deep, shallow, images = build("vpt-deep", clip), build("vpt", clip), batch[0][:1]
    written = []
    hooks = [
        block.register_forward_hook(lambda module, inputs, output: written.append(output[:, 1:3]))
        for block in shallow.clip.model.visual.transformer.resblocks[:-1]
    ]
    expected = shallow.encode_image(images)
    [hook.remove() for hook in hooks]
    with torch.no_grad():
        deep.visual_prompts.copy_(torch.cat([shallow.visual_prompts[None], *written]))
    torch.testing.assert_close(deep.encode_image(images), expected)
    with torch.no_grad():
        deep.visual_prompts[-1] += torch.randn(2, 192)
    assert not torch.allclose(deep.encode_image(images), expected, atol=1e-3)


def test_depro_shows_its_two_views_side_by_side(clip, batch):
    model = build("depro", clip)
    parts = {}
    for model.part in ("x1", "x2", "both"):
        parts[model.part] = model.encode_image(batch[0])
    torch.testing.assert_close(parts["both"], torch.cat([parts["x2"], parts["x1"]], 1))
    cosine = F.cosine_similarity(parts["both"][0], parts["both"][1], dim=0)
    mean = sum(F.cosine_similarity(parts[name][0], parts[name][1], dim=0) for name in ("x1", "x2")) / 2
    torch.testing.assert_close(cosine, mean)


def test_triplet_against_another_domain_by_hand():
    """Anchors 0 and 1 are partners in two domains at cosine 0.6; 2 is another class, at cosine 0.8 and 0.96."""
    features = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.8, 0.6]])
    loss = cross_domain_triplet(features, torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0]), margin=0.5)
    torch.testing.assert_close(loss, torch.tensor(((0.5 - 0.6 + 0.8) + (0.5 - 0.6 + 0.96) + 0) / 3))
    alone = cross_domain_triplet(features, torch.tensor([0, 0, 1]), torch.tensor([0, 0, 0]), margin=0.5)
    assert alone == 0


def test_depro_without_triplet_or_with_frozen_norms_differs_in_that_alone(clip, batch):
    images, labels, domains = batch
    whole, plain, frozen = (build(name, clip) for name in ("depro", "depro-no-triplet", "depro-norms-frozen"))
    x1, x2 = whole.views(images)
    triplets = sum(cross_domain_triplet(x, labels, domains, whole.margin) for x in (x1, x2))
    torch.testing.assert_close(
        plain.loss(images, labels, domains, 2) + triplets, whole.loss(images, labels, domains, 2)
    )
    left_out = set(whole.tuned_state()) - set(frozen.tuned_state())
    assert left_out and all(".ln_" in name for name in left_out)


# --- Ablations ----------------------------------------------------------------------------------------------------


def test_without_mask_a_sample_sees_its_own_units(clip, batch):
    images, labels, domains = batch
    model = build("pros-no-mask", clip)
    torch.testing.assert_close(model.training_features(images, labels, domains, 2), model.encode_image(images))


def test_left_out_units_act_like_units_that_do_not_exist(clip, batch):
    """What a sample sees in training is what a test image sees of a model that has all but the sample's two units."""
    images, labels, domains = batch
    model, smaller = build("pros-removed-units", clip), build("pros", clip)
    smaller.load_state_dict(model.state_dict())
    smaller.units.domain.data = model.units.domain.data[[i for i in range(3) if i != domains[0]]]
    smaller.units.semantic.data = model.units.semantic.data[[i for i in range(4) if i != labels[0]]]
    found = model.training_features(images, labels, domains, 2)
    torch.testing.assert_close(found[:1], smaller.encode_image(images[:1]), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found[:1], model.encode_image(images[:1]), atol=1e-4)


@pytest.mark.parametrize("name, kind", [("pros-domain-units", "domain"), ("pros-class-units", "semantic")])
def test_one_kind_of_unit_is_all_there_is(name, kind, clip, batch):
    images = batch[0]
    model = build(name, clip)
    assert model.simulate(images).shape == (4, 1, 192)
    before = model.encode_image(images), model.encode_with_units(images, batch[1], batch[2])
    other = model.units.domain if kind == "semantic" else model.units.semantic
    with torch.no_grad():
        other += torch.randn_like(other)  # not a constant: layer norm takes that away
    after = model.encode_image(images), model.encode_with_units(images, batch[1], batch[2])
    torch.testing.assert_close(after, before)
    with torch.no_grad():
        getattr(model.units, kind).mul_(-1)
    assert not torch.allclose(model.encode_image(images), before[0], atol=1e-4)


def test_no_units_means_that_only_the_image_is_read(clip, batch):
    model = build("pros-no-units", clip)
    before = model.encode_image(batch[0])
    with torch.no_grad():
        for units in model.units.parameters():
            units += torch.randn_like(units)
    torch.testing.assert_close(model.encode_image(batch[0]), before)
    assert model.stages == (2,)
