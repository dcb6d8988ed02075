"""Maps of several models beside each other."""

import numpy as np
import pytest
import torch
from conftest import TOY_CLASSES

from prosutils.files import UserError
from prosutils.show import maps
from prosutils.show.pictures import HIT, MISS


def features_of(toy, noise=0.01):
    """Features that are the class, and others that are the domain, [n, 10] each."""
    rows = torch.arange(len(toy))
    generator = torch.Generator().manual_seed(0)
    index = {"by class": toy.class_index[rows], "by domain": toy.domain_index[rows] + len(TOY_CLASSES)}
    return rows, {
        name: torch.eye(10)[places] + noise * torch.randn(len(rows), 10, generator=generator)
        for name, places in index.items()
    }


def test_one_map_holds_the_features_of_all_models(toy):
    rows, features = features_of(toy)
    points = maps.joint_umap(features, neighbours=5)
    assert list(points) == list(features) and {found.shape for found in points.values()} == {(len(rows), 2)}
    again = maps.joint_umap(features, neighbours=5)
    assert all(np.array_equal(points[name], again[name]) for name in points)
    with pytest.raises(UserError, match="of the same pictures and width"):
        maps.joint_umap({"a": torch.randn(8, 3), "b": torch.randn(9, 3)})


def test_a_line_leads_from_every_query_to_its_nearest_picture_of_the_gallery(toy):
    rows, features = features_of(toy)
    points = {name: found[:, :2].numpy() for name, found in features.items()}
    figure = maps.aligned_maps(toy, rows, points, features, "sketch", "emoji")
    queries = int((toy.domain_index == toy.domains.index("sketch")).sum())
    by_class, by_domain = figure.axes[0], figure.axes[2]
    assert [ax.get_title() for ax in (by_class, by_domain)] == ["by class", "by domain"]
    assert [line.get_color() for line in by_class.lines] == [HIT] * queries
    assert {line.get_color() for line in by_domain.lines} == {HIT, MISS} and len(by_domain.lines) == queries
    assert {text.get_text() for text in figure.axes[1].texts} == set(TOY_CLASSES)
    assert all(text.get_fontsize() >= 8 for ax in figure.axes for text in ax.texts)
    assert figure.png()


def test_names_of_classes_stand_in_the_map_and_cover_no_other(toy):
    rows, features = features_of(toy)
    names = maps.classes_of(toy, rows)
    figure = maps.named_maps(
        [dict(points=features["by class"][:, :2].numpy(), names=names, title="a"), dict(points=np.eye(2), title="b")]
    )
    first, second = figure.axes
    assert len(first.texts) == len(TOY_CLASSES) and not second.texts
    boxes = [text.get_window_extent() for text in first.texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
