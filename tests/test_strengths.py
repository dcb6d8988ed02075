"""The dial: drawings at another strength, the figure of its table, and the widget without a browser."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from prosutils import ImageDomains, UserError, make_split, pictonet
from prosutils.show.strengths import drawn_at, line_styles, method_dial, spread, strength_curves

CLASSES = ("airplane", "apple", "bicycle", "castle", "cat", "house")


@pytest.fixture(scope="module")
def far(tmp_path_factory):
    """A few classes of PictoNet's far tier: chalk, stamp and emoji, laid out as the package does it."""
    root, names = tmp_path_factory.mktemp("far"), {"sketch": "chalk", "solid": "stamp", "emoji": "emoji"}
    for record in pictonet.manifest():
        if record["class"] in CLASSES and record["domain"] in names:
            path = root / names[record["domain"]] / record["class"] / f"{record['set']}_{record['icon']}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pictonet.load_drawing(record, 32, "far").save(path)
    return ImageDomains.from_folder(root)


@pytest.fixture(scope="module")
def split(far):
    classes = dict(unseen_classes=["cat", "castle"], val_classes=["apple"])
    return make_split(far, unseen_domain="chalk", gallery_domain="emoji", **classes)


def test_a_drawing_at_its_own_strength_is_the_picture_that_is_laid_out(far, split):
    rows = split.query[:2]
    for row, strongest, near in zip(rows, drawn_at(far, rows, 1.0), drawn_at(far, rows, 0.0)):
        assert np.array_equal(strongest, far.load(int(row)))
        assert np.asarray(near).mean() > np.asarray(strongest).mean()  # white paper, black board


def test_only_drawings_of_the_far_tier_have_a_strength(far, toy):
    with pytest.raises(UserError, match="no drawing of PictoNet's far tier"):
        drawn_at(toy, torch.tensor([0]), 0.5)
    with pytest.raises(UserError, match="no drawing of PictoNet's far tier"):
        drawn_at(far, far.rows(["emoji"], ["cat"]), 0.5)


def test_the_widget_follows_its_slider(far, split, toy_model):
    widget = method_dial(far, split, toy_model, split.query[:2], strengths=(0, 0.5, 1), k=4)
    assert "strength 1" in widget.shown.value and widget.shown.value.count('class="pros-cell') == 4
    before = widget.shown.value
    widget.strength.value = 0
    assert "strength 0" in widget.shown.value and widget.shown.value != before
    widget.query.value = 1
    assert repr(widget) == "<method_dial: run this cell, then move the slider>"
    data = widget._repr_mimebundle_()[0]
    assert {"text/plain", "image/png"} <= set(data)


def test_known_gallery_features_are_not_computed_again(far, split, toy_model):
    method_dial(far, split, {"Toy": toy_model}, split.query[:1], strengths=(1,))
    seen = toy_model.seen
    method_dial(
        far, split, {"Toy": toy_model}, split.query[:1], (1,), galleries={"Toy": torch.randn(len(split.gallery), 48)}
    )
    assert toy_model.seen == seen + 1


def test_the_widget_needs_a_query_and_a_strength(far, split, toy_model):
    for queries, strengths in ((split.query[:0], (0, 1)), (split.query[:1], ())):
        with pytest.raises(UserError, match="one query and one strength"):
            method_dial(far, split, toy_model, queries, strengths)


def test_curves(far, split):
    table = pd.DataFrame(
        [
            dict(method=m, strength=x, **{"mAP@200": v - 0.1 * x})
            for m, v in (("ProS", 0.4), ("Mine", 0.4))
            for x in (0, 1)
        ]
    )
    figure = strength_curves(table, far, int(split.query[0]))
    assert len(figure.axes) == 3 and Image.open(__import__("io").BytesIO(figure.png(60))).width > 300
    assert len(figure.axes[0].lines) >= 2


def test_labels_do_not_overlap_and_methods_look_different():
    assert np.diff(spread(np.array([0.4, 0.39, 0.39, 0.1]), 0.05)).max() <= -0.05 + 1e-9
    styles = line_styles(["ProS", "Heads only", "a", "b"])
    assert len({tuple(style.values()) for style in styles.values()}) == 4
