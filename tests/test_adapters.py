"""UCDR-Adapter and MAIL: what their masks, queues and agents do, what trains, and that a run can be saved and resumed."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import CLASSES, DOMAINS, build

from prosutils import METHODS, UserError, load_checkpoint, load_clip, load_preset
from prosutils.adapters import Agent, UnitAttention
from prosutils.evaluation import evaluate
from prosutils.splits import make_split
from prosutils.training import build_model, train

SHORT = dict(stage1=dict(epochs=2, batch_size=9), stage2=dict(epochs=1, batch_size=6))


def parameters_of(model, stage):
    return sum(p.numel() for group in model.trainable(stage).values() for p in group)


def test_parameters_at_the_papers_size():
    """300 classes, 5 domains, ViT-B/32: the numbers that follow from the methods' own code."""
    clip, config = load_clip("ViT-B-32-quickgelu"), load_preset("pacs", context_tokens=16)
    expected = {
        "ucdr-adapter": {1: 242_432, 2: 2_167_296},
        "ucdr-adapter-released": {1: 242_432, 2: 2_167_296},
        "mail": {2: 637_440},
        "mail-heads": {2: 1_292_800},
    }
    for name, numbers in expected.items():
        model = METHODS[name](clip, [f"class {i}" for i in range(300)], "abcde", config)
        assert {stage: parameters_of(model, stage) for stage in model.stages} == numbers, name


# --- UCDR-Adapter: the mask -------------------------------------------------------------------------------------


def changed_rows(model, batch):
    """Which images' training features change where the units of image 0's domain and class change: four truths."""
    images, labels, domains = batch
    before = model.training_features(images, labels, domains, stage=2)
    with torch.no_grad():
        model.units.domain[domains[0]] += torch.randn(192)
        model.units.semantic[labels[0]] += torch.randn(192)
    after = model.training_features(images, labels, domains, stage=2)
    return [not torch.allclose(a, b, atol=1e-5) for a, b in zip(after, before)]


def test_own_units_are_hidden_in_training_and_not_in_the_released_code(clip, batch):
    assert changed_rows(build("ucdr-adapter", clip), batch) == [False, True, True, True]
    assert changed_rows(build("ucdr-adapter-released", clip), batch) == [True, True, True, True]
    zero = build("ucdr-adapter", clip)
    zero.mask = "zero"
    assert changed_rows(zero, batch) == [False, True, True, True]


def test_a_unit_that_is_left_out_is_one_that_does_not_exist(clip):
    torch.manual_seed(0)
    attention, content, units = UnitAttention(192), torch.randn(3, 192), torch.randn(5, 192)
    own = torch.tensor([4, 0, 2])
    found = attention(content, units, own, "left out")
    for i in range(3):
        others = units[[row for row in range(5) if row != own[i]]]
        torch.testing.assert_close(found[i : i + 1], attention(content[i : i + 1], others))
    zeroed = units.clone()
    zeroed[own[0]] = 0
    torch.testing.assert_close(attention(content, units, own, "zero")[:1], attention(content[:1], zeroed))
    torch.testing.assert_close(attention(content, units, own, "none"), attention(content, units))


def test_attention_by_hand():
    attention = UnitAttention(2)
    with torch.no_grad():
        for layer in (attention.image, attention.unit, attention.out):
            layer.weight.copy_(torch.eye(2))
            layer.bias.zero_()
    weights = torch.tensor([1.0, 0.0]).div(0.75).softmax(0)
    mixed = weights  # the units are the two axes
    expected = (mixed + F.layer_norm(mixed, [2])) / 33
    torch.testing.assert_close(attention(torch.tensor([[1.0, 0.0]]), torch.eye(2))[0], expected)


def test_one_domain_is_refused(clip):
    with pytest.raises(UserError, match="needs two training domains"):
        METHODS["ucdr-adapter"](clip, CLASSES, DOMAINS[:1], load_preset("mini-near"))


def test_what_reads_an_image_is_clip_as_it_was(clip, batch):
    """The class token trains in stage 2; what attends to the units does not see that."""
    model = build("ucdr-adapter", clip)
    patches, visual = clip.patches(batch[0]), clip.model.visual
    with torch.no_grad():
        model.clip.model.visual.class_embedding += 1
    torch.testing.assert_close(model.content(patches) @ visual.proj, clip.encode_image(batch[0]))
    released = build("ucdr-adapter-released", clip)
    without_class_token = visual.transformer(visual.ln_pre(patches))[:, 0]
    torch.testing.assert_close(released.content(patches), visual.ln_post(without_class_token))


def test_prompts_stand_between_class_token_and_patches_and_no_label_reaches_them(clip, batch):
    model, images = build("ucdr-adapter", clip), batch[0]
    prompts = model.prompts(clip.patches(images))
    assert prompts.shape == (4, 2, 192) and not torch.allclose(prompts[0], prompts[1], atol=1e-6)
    torch.testing.assert_close(model.encode_image(images), clip.encode_image(images, prompts))


# --- UCDR-Adapter: the queue ------------------------------------------------------------------------------------


def test_slow_units_start_as_a_copy_and_follow_slowly(clip, batch):
    model, released = build("ucdr-adapter", clip), build("ucdr-adapter-released", clip)
    assert torch.equal(model.slow_domain, model.units.domain) and torch.equal(model.slow_semantic, model.units.semantic)
    assert not torch.allclose(released.slow_domain, released.units.domain, atol=1e-3)
    with torch.no_grad():
        model.units.domain += 1
    model.loss(*batch, stage=1)
    torch.testing.assert_close(model.units.domain - model.slow_domain, torch.full((3, 192), 0.999))


def test_the_queue_holds_the_last_features_of_each_class(clip, batch):
    images, labels, domains = batch
    model = build("ucdr-adapter", clip)
    patches = clip.patches(images)
    features = F.normalize(model.training_features(images, labels, domains, stage=1), dim=1)
    model.remember(patches, labels, domains)
    assert model.queued.tolist() == [1, 2, 0, 1]
    torch.testing.assert_close(model.queue[1, :2], features[[1, 3]])
    for _ in range(30):
        model.remember(patches, labels, domains)
    assert model.queued.tolist() == [31, 62, 0, 31] and not model.queue[2].any()
    torch.testing.assert_close(model.queue[3], features[2].expand(20, -1))
    model.remember(patches[:1].expand(25, -1, -1), torch.full((25,), 2), torch.zeros(25, dtype=torch.long))
    assert model.queue[2].any(1).all() and model.queued[2] == 25


def test_triplet_against_the_queue_by_hand(clip):
    model = build("ucdr-adapter", clip)
    axes = torch.eye(192)
    for name, axis in ((0, 0), (2, 1)):
        model.queue[name, :3], model.queued[name] = axes[axis], 3
    near, far = torch.tensor([0]), torch.tensor([2])
    assert model.queue_triplet(5 * axes[:1], near) == 0  # 0 - sqrt(2) + .2 is below 0
    torch.testing.assert_close(model.queue_triplet(axes[:1], far), torch.tensor(2**0.5 + 0.2))
    model.queued[2] = 0
    assert model.queue_triplet(axes[:1], near) == 0  # no other class


def test_text_is_read_once_in_stage_2(clip, batch, monkeypatch):
    model = build("ucdr-adapter", clip)
    texts = model.encode_classes()
    model.set_stage(2)
    monkeypatch.setattr(model.clip, "read_embeddings", None)
    torch.testing.assert_close(model.encode_classes(), texts)
    model.loss(*batch, 2).backward()


# --- MAIL -------------------------------------------------------------------------------------------------------


def agents_drawn(model):
    """The model with agents that do something."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Agent):
                module.scale.normal_(1, 0.2)
                module.shift.normal_(0, 0.2)
                if hasattr(module, "up"):
                    module.up.normal_(0, 0.2)
    return model


def test_agents_change_nothing_at_the_start(clip, batch):
    model = build("mail", clip)
    torch.testing.assert_close(model.encode_image(batch[0]), clip.encode_image(batch[0]))
    captions = [f"a photo of a {name.replace('_', ' ')}." for name in CLASSES]
    torch.testing.assert_close(model.encode_classes(), clip.encode_text(captions))


def folded(model, clip):
    """A CLIP without agents, whose weights hold what the agents do but for the shift of the outputs."""
    merged = copy.deepcopy(clip)
    towers = [(c.model.visual, c.model) for c in (model.clip, merged)]
    for ours, theirs, last in zip(*towers, ("ln_post", "ln_final")):
        pairs = [(getattr(ours, last)[1], [getattr(theirs, last)])]
        for block, plain in zip(ours.transformer.resblocks, theirs.transformer.resblocks):
            pairs += [(block.ln_1[1], [plain.ln_1]), (block.ln_2[1], [plain.ln_2])]
            pairs += [(block.ls_1[1], [plain.attn.out_proj]), (block.ls_2[1], [plain.mlp.c_proj])]
        for agent, (layer,) in pairs:
            factor = agent.factor()
            layer.weight.data = layer.weight * (factor[:, None] if layer.weight.ndim == 2 else factor)
            layer.bias.data = layer.bias * factor + agent.shift
    merged.model.visual.proj.data *= model.image_output.factor()
    merged.model.text_projection.data *= model.text_output.factor()
    return merged


def test_agents_fold_into_the_weights_before_them(clip, batch):
    model = agents_drawn(build("mail", clip))
    with torch.no_grad():
        plain = folded(model, clip)
        found = plain.encode_image(batch[0]) + model.image_output.shift
        torch.testing.assert_close(model.encode_image(batch[0]), found, atol=1e-3, rtol=1e-3)
        texts = plain.encode_text(["a photo of a dog."]) + model.text_output.shift
    torch.testing.assert_close(model.encode_words(["a photo of a dog."]), texts, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(model.encode_image(batch[0]), clip.encode_image(batch[0]), atol=0.1)


def test_the_bridge_leads_from_text_to_image_only(clip, batch):
    model = agents_drawn(build("mail", clip))
    image, text = model.encode_image(batch[0]), model.encode_classes()
    visual, partner = model.clip.model.visual, model.clip.model.ln_final[1]
    with torch.no_grad():
        visual.ln_post[1].scale += 1
        torch.testing.assert_close(model.encode_classes(), text)
        visual.ln_post[1].scale -= 1
        partner.scale += torch.randn(192)
    assert not torch.allclose(model.encode_image(batch[0]), image, atol=1e-3)
    with torch.no_grad():
        visual.ln_post[1].up.zero_()
        before = model.encode_image(batch[0])
        partner.scale += torch.randn(192)
        torch.testing.assert_close(model.encode_image(batch[0]), before)


def test_mail_trains_agents_and_its_variant_the_heads_too(clip):
    agents = set(build("mail", clip).tuned_state())
    assert all(name.split(".")[-1] in ("scale", "shift", "down", "up") for name in agents)
    assert set(build("mail-heads", clip).tuned_state()) - agents == {
        "clip.model.text_projection",
        "clip.model.visual.proj",
    }


# --- A run ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ucdr-adapter", "ucdr-adapter-released", "mail", "mail-heads"])
def test_trained_saved_loaded_and_measured(name, clip, toy, tmp_path):
    split = make_split(toy, unseen_classes=["gem", "stripes"], val_classes=["ball", "box"])
    model = build_model(name, clip, split, load_preset("mini-near", **SHORT))
    history = train(model, split, tmp_path, progress=False)
    assert len(history) == (3 if 1 in model.stages else 1) and history.loss.notna().all()
    table = evaluate(model, split)
    again = evaluate(load_checkpoint(tmp_path / "checkpoint.pt", clip), split)
    assert table.equals(again) and table.method[0] == METHODS[name].label


def test_a_resumed_run_finds_its_queue_again(clip, toy, tmp_path, monkeypatch):
    split = make_split(toy, unseen_classes=["gem", "stripes"], val_classes=["ball", "box"])
    config = load_preset("mini-near", **SHORT)
    whole = build_model("ucdr-adapter", clip, split, config)
    train(whole, split, tmp_path / "whole", progress=False)

    kind = METHODS["ucdr-adapter"]
    stopped, remember = build_model("ucdr-adapter", clip, split, config), kind.remember
    steps = []

    def stop_in_the_second_epoch(model, *batch):
        steps.append(1)
        if len(steps) > len(steps_of_an_epoch):
            raise KeyboardInterrupt
        remember(model, *batch)

    steps_of_an_epoch = range(int(whole.queued.sum()) // 9 // 2)
    monkeypatch.setattr(kind, "remember", stop_in_the_second_epoch)
    with pytest.raises(KeyboardInterrupt):
        train(stopped, split, tmp_path / "stopped", progress=False)
    monkeypatch.setattr(kind, "remember", remember)
    resumed = build_model("ucdr-adapter", clip, split, config)
    train(resumed, split, tmp_path / "stopped", resume=True, progress=False)
    assert torch.equal(resumed.queue, whole.queue) and torch.equal(resumed.slow_domain, whole.slow_domain)
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters()))
