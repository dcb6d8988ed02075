"""Figures: each is drawn from small data without a warning, and the numbers beside them are right."""
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from sklearn.neighbors import NearestNeighbors

from prosutils import UserError, plots
from prosutils.evaluation import neighbour_purity

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(scope="module")
def ranked(toy):
    """Three queries of the toy folder's sketches and their (made up) ranks among its emoji."""
    queries = toy.rows(["sketch"], ["ball", "box", "gem"])[[0, 5, 10]]
    gallery = toy.rows(["emoji"], toy.classes)
    return queries, torch.stack([gallery[:5], gallery[5:10], gallery[10:15]])


def history(stages):
    return pd.DataFrame({"stage": stages, "epoch": range(1, len(stages) + 1), "loss": 1.0, "accuracy": 0.5,
                         "val_mAP@200": [float("nan") if s == 1 else 0.4 + i / 100 for i, s in enumerate(stages)]})


def results(methods=("Zero-shot CLIP", "ProS"), seeds=(0, 1), cases=(("UCDR", "unseen"), ("UcCDR", "unseen"))):
    return pd.DataFrame([{"method": m, "seed": s, "protocol": p, "gallery": g, "unseen_domain": d, "mAP@200": 0.4 + s / 10}
                         for m in methods for s in seeds for p, g in cases for d in ("sketch", "pixel")])


def texts(figure):
    return [text.get_text() for ax in figure.axes for text in ax.texts]


def test_every_figure_is_drawn_and_none_is_shown(toy, ranked, tmp_path):
    queries, rows = ranked
    pictures = [toy.load(i) for i in range(6)]
    points = np.random.default_rng(0).normal(size=(30, 2))
    figures = {
        "images": plots.show_images(pictures, ["a", "b", "c", "d", "e", "f"], columns=4),
        "sheet": plots.contact_sheet(toy, ["ball", "gem"], per_cell=2),
        "strips": plots.rank_strips(toy, queries, rows, scores=[0.1, 0.2, 0.3]),
        "words": plots.rank_strips(toy, ["a ball", pictures[0]], rows[:2]),
        "methods": plots.compare_ranks(toy, int(queries[0]), {"Zero-shot CLIP": rows[0], "ProS": rows[1]}),
        "many": plots.compare_ranks(toy, queries, {"ProS": rows}, {"ProS": [0.1, 0.2, 0.3]}),
        "banner": plots.benchmark_banner(toy, int(queries[0]), {"Zero-shot CLIP": rows[0], "ProS": rows[1]}),
        "cosines": plots.similarity_matrix(torch.rand(3, 4), pictures[:3], ["a", "b", "c", "d"], title="cosines"),
        "map": plots.feature_map(points, ["x", "y", "z"] * 10, number="purity 0.71"),
        "maps": plots.feature_maps([dict(points=points, labels=torch.arange(30) % 6, names=toy.classes, images=pictures * 5)] * 2),
        "units": plots.unit_map(torch.randn(6, 8), toy.classes),
        "groups": plots.unit_map(torch.randn(4, 8), toy.domains, labels=toy.domains),
        "curves": plots.training_curves(history([1, 1, 2, 2, 2])),
        "one stage": plots.training_curves(history([2, 2])),
        "bars": plots.results_bars(results(), chance=0.02),
        "one case": plots.results_bars(results(seeds=(0,), cases=(("UCDR", "unseen"),))),
        "own": plots.mask_matrix([0, 1], [2, 0], toy.domains, toy.classes, "own"),
        "others": plots.mask_matrix(torch.tensor([0]), torch.tensor([30]), toy.domains, [f"c{i}" for i in range(40)], "others"),
    }
    for name, figure in figures.items():
        assert isinstance(figure, Figure), name
        assert plots.save(figure, tmp_path / f"{name}.png").stat().st_size > 1000
    assert not plt.get_fignums() and not list(tmp_path.glob("*.part"))


def test_rank_strips_count_hits_and_name_misses(toy, ranked):
    queries, _ = ranked                                   # a ball, a box, a gem
    ball, gem = (toy.rows(["emoji"], [name])[:2].tolist() for name in ("ball", "gem"))
    written = texts(plots.rank_strips(toy, queries[:1], [[ball[0], gem[0], ball[1], gem[1]]]))
    assert "2 of 4" in written and "sketch · ball" in written and written.count("gem") == 2
    assert "2 of 4" not in texts(plots.rank_strips(toy, ["words"], [[*ball, *gem]]))


def test_a_domain_has_the_same_colour_everywhere():
    assert plots.domain_colours(["sketch", "emoji"])["sketch"] == plots.domain_colours(["photo", "sketch"])["sketch"]
    for domains in (["a", "b", "sketch"], [f"d{i}" for i in range(12)]):
        assert len(set(plots.domain_colours(domains).values())) == len(domains)


def test_umap_points_repeat():
    features = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    first, second = plots.umap_points(features, seed=1), plots.umap_points(features, seed=1)
    assert first.shape == (40, 2) and np.array_equal(first, second)
    with pytest.raises(UserError, match="5 features"):
        plots.umap_points(features[:3])


def test_neighbour_purity_is_scikit_learns_neighbours_with_the_same_label():
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(60, 8, generator=generator), torch.randint(3, (60,), generator=generator)
    index = NearestNeighbors(n_neighbors=11, metric="cosine").fit(features.numpy()).kneighbors(return_distance=False)[:, :10]
    expected = (labels[torch.tensor(index)] == labels[:, None]).float().mean()
    assert neighbour_purity(features, labels) == pytest.approx(float(expected))


def test_neighbour_purity_of_equal_features_and_of_few():
    labels = torch.tensor([0, 0, 1, 1])
    assert neighbour_purity(torch.ones(4, 3), labels, k=10) == pytest.approx(1 / 3)
    assert neighbour_purity(torch.eye(4)[[0, 0, 1, 1]], labels, k=1) == 1.0
    with pytest.raises(UserError, match="no neighbour"):
        neighbour_purity(torch.ones(1, 3), [0])
