"""The method itself: masks, the test path, what trains."""

import pytest
import torch

from prosutils.backbone import MINI_MEAN, MINI_STD, MiniTokenizer, PromptableCLIP, build_mini, load_clip
from prosutils.config import Switches, load_preset
from prosutils.files import UserError
from prosutils.pros import ProS

CLASSES, DOMAINS = ("house", "alarm_clock", "dog", "ice_cream"), ("emoji", "outline", "pixel")


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    return PromptableCLIP(build_mini(), MiniTokenizer(), MINI_MEAN, MINI_STD, "mini").requires_grad_(False).eval()


@pytest.fixture
def batch():
    return torch.randn(4, 3, 56, 56), torch.tensor([0, 1, 3, 1]), torch.tensor([2, 0, 1, 1])


def pros(clip, **settings):
    return ProS(clip, CLASSES, DOMAINS, load_preset("mini-near", **settings)).eval()


# --- Stage 1 ----------------------------------------------------------------------------------------------------


def test_stage1_sees_its_own_units_and_no_other(clip, batch):
    images, labels, domains = batch
    model = pros(clip)
    before = model.encode_with_units(images, labels, domains)
    with torch.no_grad():
        model.units.domain[2] += torch.randn(192)  # the domain of sample 0 alone
        model.units.semantic[2] += torch.randn(192)  # the class of no sample
    after = model.encode_with_units(images, labels, domains)
    assert not torch.allclose(after[0], before[0], atol=1e-3)
    torch.testing.assert_close(after[1:], before[1:])


def test_stage1_dropout_acts_in_training_only_unless_released(clip, batch):
    for choice, mode, varies in (("paper", "train", True), ("paper", "eval", False), ("released", "eval", True)):
        model = getattr(pros(clip, switches=dict(dropout=choice)), mode)()
        assert torch.equal(*(model.encode_with_units(*batch) for _ in range(2))) != varies


# --- Stage 2 ----------------------------------------------------------------------------------------------------


def test_reverse_mask_hides_the_samples_own_units(clip, batch):
    images, labels, domains = batch
    model = pros(clip)
    units = model.units.others(domains, labels)  # [B, M+S, W]
    assert units.shape == (4, 3 + 4, 192)
    for row, (label, domain) in enumerate(zip(labels, domains)):
        assert {i for i in range(7) if not units[row, i].any()} == {int(domain), 3 + int(label)}


def test_stage2_prompts_do_not_depend_on_the_own_units(clip, batch):
    images, labels, domains = batch
    model = pros(clip)
    before = model.training_features(images, labels, domains, stage=2)
    with torch.no_grad():
        model.units.domain[domains[0]] += torch.randn(192)
        model.units.semantic[labels[0]] += torch.randn(192)
    after = model.training_features(images, labels, domains, stage=2)
    torch.testing.assert_close(after[0], before[0])
    assert not torch.allclose(after[1], before[1], atol=1e-4)  # sample 1 has another domain and class


def test_dynamic_prompts_differ_between_images_and_stand_between_class_token_and_patches(clip, batch):
    model, images = pros(clip), batch[0]
    prompts = model.simulate(images)
    assert prompts.shape == (4, 2, 192) and not torch.allclose(prompts[0], prompts[1], atol=1e-4)
    torch.testing.assert_close(model.encode_image(images), clip.encode_image(images, prompts))


def test_simulator_equals_its_full_transformer(clip, batch):
    """Only the two template positions of the last block are computed; running everything gives the same."""
    simulator, images = pros(clip).simulator, batch[0]
    units, body = torch.randn(4, 7, 192), simulator.body
    patches = body.conv1(images).flatten(2).transpose(1, 2) + body.positional_embedding[1:]
    templates = torch.stack([simulator.domain_template[0], simulator.semantic_template[0]]).expand(4, -1, -1)
    full = body.transformer(body.ln_pre(torch.cat([templates, units, patches], 1)))
    torch.testing.assert_close(simulator(images, units), body.ln_post(full[:, :2]) @ simulator.project)


# --- The test path ------------------------------------------------------------------------------------------------


def test_no_label_reaches_the_test_path(clip, batch):
    """A feature is the image's own: it takes no label, and its neighbours in the batch do not change it."""
    model, images = pros(clip), batch[0]
    together = model.encode_image(images)
    torch.testing.assert_close(together, torch.cat([model.encode_image(image[None]) for image in images]))


# --- What trains --------------------------------------------------------------------------------------------------


def trained_names(model, stage):
    model.set_stage(stage)
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_what_trains_in_which_stage(clip):
    model = pros(clip, switches=dict(heads="released"))
    assert trained_names(model, 1) == {
        "units.domain",
        "units.semantic",
        "context.vectors",
        "clip.model.text_projection",
    }
    stage2 = trained_names(model, 2)
    assert {name for name in stage2 if not name.startswith("simulator.")} == {
        "context.vectors",
        "clip.model.text_projection",
        "clip.model.visual.proj",
        "clip.model.visual.class_embedding",
    }
    assert {name for name in stage2 if name.startswith("simulator.")} == {
        name for name, _ in model.named_parameters() if name.startswith("simulator.")
    }
    as_in_fig_2 = pros(clip, switches=dict(heads="paper"))
    assert trained_names(as_in_fig_2, 1) == trained_names(model, 1) - {"clip.model.text_projection"}
    heads = {"clip.model.text_projection", "clip.model.visual.proj"}
    assert trained_names(as_in_fig_2, 2) == trained_names(model, 2) - heads


def test_a_simulator_that_reads_clip_s_patches_writes_as_many_prompts_as_it_has_templates(clip, batch):
    model = pros(clip, simulator_reads="clip", prompt_tokens=3)
    images, class_index, domain_index = batch
    prompts = model.simulate(images)
    assert prompts.shape == (len(images), 6, clip.width)
    units, patches = model.units.all(len(images)), clip.patches(images)
    torch.testing.assert_close(prompts, model.simulator(images * 0, units, patches))  # the pixels are not read again
    model.set_stage(2)
    model.loss(images, class_index, domain_index, 2).backward()
    assert model.simulator.body.conv1.weight.grad is None


def test_gradients_reach_what_trains_and_nothing_else(clip, batch):
    dead = {"simulator.body.class_embedding", "simulator.body.proj"}  # the released code counts them all the same
    for stage in (1, 2):
        model = pros(clip)
        names = trained_names(model, stage)
        model.loss(*batch, stage).backward()
        assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == names - dead


def test_trainable_numbers_at_the_papers_size():
    """504,576 and 18,226,176 numbers for 300 classes and 5 domains at ViT-B/32 [released code]."""
    config = load_preset("pacs", switches=dict(heads="released"))
    model = ProS(load_clip("ViT-B-32-quickgelu"), [f"class_{i}" for i in range(300)], "abcde", config)
    numbers = {stage: sum(p.numel() for group in model.trainable(stage).values() for p in group) for stage in (1, 2)}
    assert numbers == {1: 504_576, 2: 18_226_176}


def test_the_given_clip_stays_as_it_is(clip, batch):
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    model = pros(clip)
    model.set_stage(2)
    model.loss(*batch, 2).backward()
    torch.optim.SGD([p for p in model.parameters() if p.grad is not None], 1.0).step()
    assert all(torch.equal(before[name], value) for name, value in clip.state_dict().items())


# --- Text ---------------------------------------------------------------------------------------------------------


def test_the_learned_context_stands_where_the_placeholders_were(clip):
    model = pros(clip)
    embeddings, end = model.context()
    for row, name in enumerate(("house", "alarm clock", "dog", "ice cream")):
        tokens = clip.tokenizer([f"a photo of {name} from X X X X domain."])[0]
        places = (tokens == clip.tokenizer.encode("X")[0]).nonzero().flatten()
        assert len(places) == 4 and torch.equal(embeddings[row, places], model.context.vectors)
        others = [i for i in range(len(tokens)) if i not in places]
        torch.testing.assert_close(embeddings[row, others], clip.model.token_embedding(tokens)[others])
        assert int(end[row]) == int(tokens.argmax())


def test_a_caption_that_does_not_fit_is_refused(clip):
    with pytest.raises(UserError, match="Use shorter class names"):
        ProS(clip, ["_".join(["very"] * 40), "dog"], DOMAINS, load_preset("mini-near"))


# --- Repeatability and settings -----------------------------------------------------------------------------------


def test_the_seed_fixes_the_start(clip):
    first, second, third = pros(clip), pros(clip), pros(clip, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))
    assert not torch.equal(first.units.domain, third.units.domain)


def test_switches_take_two_values_and_one_call_sets_all():
    assert set(vars(Switches.released()).values()) == {"released"}
    with pytest.raises(UserError, match="it takes: paper, released"):
        load_preset("mini-near", switches=dict(read_out="class token"))
