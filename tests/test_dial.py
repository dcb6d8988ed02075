"""The domain gap's figures and slider, and the diagrams of notebook 00, on a small far tier drawn for the test."""

import pandas as pd
import pytest

from prosutils import ImageDomains, make_split, pictonet
from prosutils.show import dial, overview

CLASSES = ("castle", "cat", "house", "lock", "rocket", "umbrella")


@pytest.fixture(scope="module")
def far(tmp_path_factory):
    """Six classes of the far tier, two drawings each at most, 32 px."""
    root = tmp_path_factory.mktemp("far")
    for name in CLASSES:
        for near, domain in zip(pictonet.PICTONET_DOMAINS, pictonet.tier_domains("far")):
            found = [r for r in pictonet.manifest() if (r["domain"], r["class"]) == (near, name)][:2]
            (root / domain / name).mkdir(parents=True)
            for record in found:
                path = root / domain / name / f"{record['set']}_{record['icon']}.png"
                pictonet.load_drawing(record, 32, "far").save(path)
    return ImageDomains.from_folder(root)


def is_png(figure):
    return figure.png(60).startswith(b"\x89PNG")


def test_the_slider_redraws_and_ranks(far, toy_model):
    gallery = far.rows(["emoji"], CLASSES)
    widget = dial.strength_dial(toy_model, far, gallery, "chalk", "lock", k=4)
    assert 'alt="lock at strength 1.00"' in widget.shown.value
    before = widget.shown.value
    widget.strength.value = 0.25
    assert "strength 0.25" in widget.shown.value and widget.shown.value != before
    widget.technique.value = "mosaic"
    assert widget.record()["domain"] == "clipart" and widget.class_name.value == "lock"
    assert is_png(widget.figure()) and "run this cell" in repr(widget)


def test_an_error_of_the_slider_is_shown_in_its_place(far, toy_model, monkeypatch):
    widget = dial.strength_dial(toy_model, far, far.rows(["emoji"], CLASSES), "chalk", "lock", k=4)
    monkeypatch.setattr(widget, "page", lambda: 1 / 0)
    widget.strength.value = 0.5
    assert 'role="alert"' in widget.shown.value and "ZeroDivisionError" in widget.shown.value


def test_the_figures_are_drawn(far):
    table = pd.DataFrame(
        {"technique": ["chalk"] * 2, "strength": [0.0, 1.0], "chosen": [False, True], "mAP@200": [0.5, 0.3]}
    )
    assert is_png(dial.gap_curves(table, chance=0.05))
    assert is_png(dial.drawn_at([pictonet.shown("sketch", "castle")], strengths=(0, 1), size=32))
    split = make_split(far, unseen_domain="chalk", unseen_classes=["lock", "umbrella"], val_classes=["cat"])
    assert is_png(overview.task_picture(far, split, ["castle", "house"], ["lock", "umbrella"], query=1))
    row = {domain: int(far.rows([domain], ["lock"])[0]) for domain in ("blueprint", "chalk", "emoji")}
    assert is_png(overview.stage_strip(far, row["blueprint"], row["chalk"], [row["emoji"]]))


def test_names_at_the_ends_of_curves_do_not_overlap():
    moved = dial.apart({"a": 0.3, "b": 0.31, "c": 0.5}, 0.03)
    assert moved["a"] == 0.3 and moved["b"] == pytest.approx(0.33) and moved["c"] == 0.5
