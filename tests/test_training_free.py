"""Methods without training: what their statistics are, that nothing of the test gets into them, and that they last."""

import pytest
import torch
import torch.nn.functional as F

from prosutils import METHODS, UserError, load_checkpoint, load_clip, load_preset
from prosutils.evaluation import embed_rows, other_training
from prosutils.experiment import prepare
from prosutils.grid import SAME_WITH_EVERY_SEED
from prosutils.splits import make_split
from prosutils.training import build_model, train
from prosutils.training_free import STYLES

NAMES = ("centred", "domain-centroids", "contrastive-pca", "text-map")
CLASSES, DOMAINS = ("house", "alarm_clock", "dog", "ice_cream"), ("emoji", "outline")


@pytest.fixture(scope="module")
def clip():
    return load_clip()


@pytest.fixture(scope="module")
def split(toy):
    return make_split(toy, unseen_classes=["gem", "stripes"], val_classes=["ball", "box"])


def build(name, clip):
    return METHODS[name](clip, CLASSES, DOMAINS, load_preset("mini-near"))


def fitted(name, clip, features):
    """A model whose statistics come of features [n, D], of the two domains in turn."""
    model = build(name, clip)
    index = torch.arange(len(features))
    if model.statistics:
        model.fit_features(features, index % 4, index % 2)
    return model


def test_centred_features_have_mean_zero(clip):
    features = 3 + torch.randn(40, 192, generator=torch.Generator().manual_seed(0))
    model = fitted("centred", clip, features)
    moved = model.move(F.normalize(features, dim=1))
    torch.testing.assert_close(moved.mean(0), torch.zeros(192), atol=1e-6, rtol=0)
    texts = model.encode_classes()
    torch.testing.assert_close(texts.mean(0), torch.zeros(192), atol=1e-6, rtol=0)


def test_centroids_are_those_of_the_domains_and_near_ones_weigh_more(clip):
    generator = torch.Generator().manual_seed(0)
    styles = torch.randn(2, 192, generator=generator).repeat(20, 1)
    features = F.normalize(styles + 0.1 * torch.randn(40, 192, generator=generator), dim=1)
    model = fitted("domain-centroids", clip, features)
    torch.testing.assert_close(model.centroids[1], features[1::2].mean(0))
    moved = model.move(features)
    torch.testing.assert_close(moved, features - model.centroids.repeat(20, 1), atol=1e-3, rtol=0)
    between = F.normalize(model.centroids.sum(0), dim=0)[None]
    assert F.cosine_similarity(between - model.move(between), between) > 0.99


def test_contrastive_pca_projects_on_what_words_for_things_span(clip):
    model = fitted("contrastive-pca", clip, torch.randn(40, 192, generator=torch.Generator().manual_seed(0)))
    projection = model.projection
    torch.testing.assert_close(projection @ projection, projection, atol=1e-5, rtol=0)
    assert 1 <= round(projection.trace().item()) <= len(CLASSES) - 1  # centred words of S classes span no more
    things, styles = model.read_words([name.replace("_", " ") for name in CLASSES]), model.read_words(STYLES)
    kept = [((x - things.mean(0)) @ projection).norm() / (x - things.mean(0)).norm() for x in (things, styles)]
    assert kept[0] > 2 * kept[1]


def test_the_text_map_brings_the_styles_of_a_class_together(clip):
    model = build("text-map", clip)

    def spread(words):
        """Variance within the classes, as a share of all."""
        words = words.reshape(len(CLASSES), len(STYLES), -1)
        return ((words - words.mean(1, keepdim=True)).var() / (words - words.mean((0, 1))).var()).item()

    words = model.read_words([f"a {style} of a {name.replace('_', ' ')}." for name in CLASSES for style in STYLES])
    assert spread(model.move(words)) < 0.8 * spread(words)
    assert not model.statistics  # no image takes part


def test_no_technique_of_the_far_tier_is_named():
    assert not {"chalk", "blueprint", "stamp", "mosaic", "cross-stitch"} & {w for s in STYLES for w in s.split()}


@pytest.mark.parametrize("name", [name for name in NAMES if METHODS[name].statistics])
def test_statistics_are_of_the_training_images_alone(name, clip, split, toy):
    model = build_model(name, clip, split, load_preset("mini-near"))
    seen = []
    fit = model.fit_features
    model.fit_features = lambda *arguments: (seen.append(arguments), fit(*arguments))
    train(model, split, progress=False)
    ((features, class_index, domain_index),) = seen
    torch.testing.assert_close(features, embed_rows(clip, toy, split.train))
    names = [split.seen_classes[i] for i in class_index], [split.train_domains[i] for i in domain_index]
    assert names == (
        [toy.classes[i] for i in toy.class_index[split.train]],
        [toy.domains[i] for i in toy.domain_index[split.train]],
    )


@pytest.mark.parametrize("name", NAMES)
def test_trained_saved_loaded_and_measured(name, toy_folder, tmp_path):
    config = load_preset("mini-near", unseen_domain="sketch")
    run = prepare(config, toy_folder, ["gem", "stripes"], tmp_path, progress=False)
    model, history = run.fit(name, progress=False)
    table = run.evaluate(model)
    assert not len(history) and (table.method == METHODS[name].label).all() and len(table) == 4
    path = run.folder(name) / "model.pt"
    assert path.exists() == bool(model.statistics)
    if path.exists():
        assert table.equals(run.evaluate(run.load(path))) and table.equals(
            run.evaluate(load_checkpoint(path, run.clip))
        )
        assert set(model.tuned_state()) == set(model.statistics) and all(x.any() for x in model.tuned_state().values())
        again, _ = run.fit(name, progress=False, resume=True)
        assert table.equals(run.evaluate(again))


def test_statistics_of_other_pictures_are_noticed(clip, split, toy):
    other = make_split(toy, unseen_domain="pixel", unseen_classes=["gem", "stripes"], val_classes=["ball", "box"])
    model = build_model("centred", clip, split, load_preset("mini-near"))
    assert not other_training(model, split) and "Centred was trained on" in other_training(model, other)


def test_they_have_no_stage_and_no_seed(clip):
    assert set(NAMES) < SAME_WITH_EVERY_SEED
    for name in NAMES:
        with pytest.raises(UserError, match="has no stage 2"):
            build(name, clip).loss(torch.zeros(1, 3, 56, 56), torch.tensor([0]), torch.tensor([0]), stage=2)
