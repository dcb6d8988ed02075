"""Figures: each is drawn from small data without a warning, and what is written in it is right."""

import io
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from prosutils import UserError, load_preset, make_split, pictonet
from prosutils.backbone import MINI_MEAN, MINI_STD, MiniTokenizer, PromptableCLIP, build_mini
from prosutils.metrics import neighbour_purity
from prosutils.show import plots
from prosutils.show.diagrams import DOMAINS, examples
from prosutils.tables import RESULTS
from prosutils.training import build_model

# An old matplotlib with a new pyparsing warns of names that pyparsing has changed.
pytestmark = pytest.mark.filterwarnings("error", "ignore:.*deprecated.* use:DeprecationWarning")


@pytest.fixture(scope="module")
def ranked(toy):
    """Three queries among the toy folder's sketches, and made-up ranks of its emoji."""
    queries = toy.rows(["sketch"], ["ball", "box", "gem"])[[0, 5, 10]]
    gallery = toy.rows(["emoji"], toy.classes)
    return queries, torch.stack([gallery[:5], gallery[5:10], gallery[10:15]])


def history(stages):
    scores = [float("nan") if stage == 1 else 0.4 + i / 100 for i, stage in enumerate(stages)]
    return pd.DataFrame(
        {"stage": stages, "epoch": range(1, len(stages) + 1), "loss": 1.0, "accuracy": 0.5, "val_mAP@200": scores}
    )


def results(methods=("ProS", "Zero-shot CLIP"), seeds=(0, 1), protocols=("UCDR", "UcCDR")):
    return pd.DataFrame(
        [
            {
                "preset": "mini",
                "method": method,
                "seed": seed,
                "protocol": protocol,
                "gallery": "unseen",
                "unseen_domain": domain,
                "mAP@200": 0.4 + seed / 10,
            }
            for method in methods
            for seed in seeds
            for protocol in protocols
            for domain in ("sketch", "pixel")
        ]
    )


def texts(figure):
    return [text.get_text() for ax in figure.axes for text in ax.texts]


def test_every_figure_is_drawn_and_none_is_shown(toy, ranked, tmp_path):
    queries, rows = ranked
    query, methods = int(queries[0]), {"Zero-shot CLIP": rows[0], "ProS": rows[1]}
    pictures = [toy.load(i) for i in range(6)]
    points = np.random.default_rng(0).normal(size=(30, 2))
    options = dict(unseen_domain="sketch", unseen_classes=["ball", "gem"], val_classes=["box"])
    panel = dict(points=points, labels=torch.arange(30) % 6, names=toy.classes, images=pictures * 5)
    figures = {
        "images": plots.show_images(pictures, ["a", "b", "c", "d", "e", "f"], columns=4),
        "sheet": plots.contact_sheet(toy, ["ball", "gem"], per_cell=2),
        "strips": plots.rank_strips(toy, queries, rows, scores=[0.1, 0.2, 0.3]),
        "words": plots.rank_strips(toy, ["a ball", pictures[0]], rows[:2]),
        "methods": plots.compare_ranks(toy, query, methods),
        "many": plots.compare_ranks(toy, queries, {"ProS": rows}, {"ProS": [0.1, 0.2, 0.3]}),
        "banner": plots.benchmark_banner(toy, query, methods, subtitle="of classes never seen"),
        "cosines": plots.similarity_matrix(torch.rand(3, 4), pictures[:3], list("abcd"), title="cosines"),
        "map": plots.feature_map(points, ["x", "y", "z"] * 10, number="purity 0.71"),
        "maps": plots.feature_maps([panel, panel | dict(images=toy.load)]),
        "units": plots.unit_map(torch.randn(6, 8), toy.classes),
        "groups": plots.unit_map(torch.randn(4, 8), toy.domains, labels=toy.domains),
        "curves": plots.training_curves(history([1, 1, 2, 2, 2])),
        "one stage": plots.training_curves(history([2, 2])),
        "no validation": plots.training_curves(history([1, 1])),
        "bars": plots.results_bars(results(), chance=0.02),
        "one case": plots.results_bars(results(seeds=(0,), protocols=("UCDR",))),
        "splits": plots.split_map([make_split(toy, protocol, **options) for protocol in ("UCDR", "UdCDR")]),
        "own": plots.mask_matrix([0, 1], [2, 0], toy.domains, toy.classes, "own"),
        "others": plots.mask_matrix(
            torch.tensor([0]), torch.tensor([30]), toy.domains, [f"c{i}" for i in range(40)], "others"
        ),
    } | {f"stage {stage}": plots.token_sequence(stage) for stage in (1, 2, "test")}
    for name, figure in figures.items():
        assert isinstance(figure, Figure), name
        assert plots.save(figure, tmp_path / f"{name}.png").stat().st_size > 1000
    assert not plt.get_fignums() and not list(tmp_path.glob("*.part"))


def test_a_notebook_shows_a_figure_at_its_own_size():
    png, size = plots.unit_map(torch.eye(3), ["a", "b", "c"])._repr_png_()
    with Image.open(io.BytesIO(png)) as image:
        assert image.width > size["width"] and image.width / image.height == pytest.approx(
            size["width"] / size["height"], rel=0.01
        )


def test_a_figure_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="cannot be written"):
        plots.save(plots.unit_map(torch.eye(3), ["a", "b", "c"]), tmp_path / "file" / "figure.png")


def test_rank_strips_count_hits_and_name_misses(toy, ranked):
    queries, _ = ranked  # a ball, a box, a gem
    ball, gem = (toy.rows(["emoji"], [name])[:2].tolist() for name in ("ball", "gem"))
    written = texts(plots.rank_strips(toy, queries[:1], [[ball[0], gem[0], ball[1], gem[1]]]))
    assert "2 of 4" in written and "ball\nsketch" in written and written.count("gem") == 2
    assert "2 of 4" not in texts(plots.rank_strips(toy, ["words"], [[*ball, *gem]]))


def test_results_are_means_with_zero_shot_first():
    ax = plots.results_bars(results(protocols=("UCDR",))).axes[0]
    labels = [bars.get_label() for bars in ax.containers if hasattr(bars, "patches")]
    assert labels == ["Zero-shot CLIP", "ProS"]
    assert [patch.get_height() for patch in ax.patches] == pytest.approx([0.45] * 4)  # seeds: 0.4 and 0.5


def test_principal_plane_keeps_what_lies_in_a_plane():
    flat = torch.randn(20, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 1.0])
    turned = flat @ torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)))[0][:2] + 5
    points, shares = plots.principal_plane(turned)
    assert torch.allclose(torch.pdist(torch.as_tensor(points)), torch.pdist(flat), atol=1e-4)
    assert shares[0] > shares[1] > 0 and sum(shares[:2]) == pytest.approx(1) and len(shares) == 6


def test_changes_are_taken_run_by_run():
    """Of the same domain and seed, in the order of their means; a run without its like is left out."""
    values = {
        ("ProS", "sketch", 0): 0.5,
        ("ProS", "pixel", 0): 0.2,
        ("ProS", "pixel", 1): 0.9,
        ("VPT", "sketch", 0): 0.4,
        ("VPT", "pixel", 0): 0.3,
        ("Heads", "sketch", 0): 0.2,
        ("Heads", "pixel", 2): 0.1,
    }
    rows = pd.DataFrame(
        [
            dict(method=method, unseen_domain=domain, seed=seed, protocol="UCDR", gallery="unseen") | {"mAP@200": value}
            for (method, domain, seed), value in values.items()
        ]
    )
    ax = plots.change_dots(rows, "ProS", spread=0.01).axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["Heads  -0.300", "VPT  +0.000"]
    dots = sorted(round(float(x), 6) for dot in ax.collections[:2] for x in dot.get_offsets()[:, 0])
    assert dots == [-0.3, -0.1, 0.1]
    with pytest.raises(UserError, match="nothing to compare with 'CoOp'"):
        plots.change_dots(rows, "CoOp")


def test_a_domain_has_the_same_colour_everywhere():
    first, second = plots.domain_colours(["sketch", "emoji"]), plots.domain_colours(["photo", "sketch"])
    assert first["sketch"] == second["sketch"]
    for domains in (["a", "b", "sketch"], [f"d{i}" for i in range(12)]):
        assert len(set(plots.domain_colours(domains).values())) == len(domains)


def test_the_data_flow_tells_seen_from_unseen():
    assert {*DOMAINS} == {*pictonet.tier_domains("far")} - {"chalk"}
    assert len(examples("seen")) == len(examples("unseen")) == 4
    assert texts(plots.token_sequence(2)).count("0") == 2  # the sample's own two units
    assert "0" not in texts(plots.token_sequence("test"))
    trains = [drawn.get_facecolor() for drawn in plots.token_sequence(2, heads="released").axes[0].patches]
    frozen = [drawn.get_facecolor() for drawn in plots.token_sequence(2).axes[0].patches]
    assert sum(one != other for one, other in zip(trains, frozen, strict=True)) == 2  # the two projections
    with pytest.raises(UserError, match="no stage 3"):
        plots.token_sequence(3)


def test_umap_points_repeat():
    features = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    first, second = plots.umap_points(features, seed=1), plots.umap_points(features, seed=1)
    assert first.shape == (40, 2) and np.array_equal(first, second)
    with pytest.raises(UserError, match="5 features"):
        plots.umap_points(features[:3])


def test_the_tutorial_draws_four_figures(toy, tmp_path):
    split = make_split(toy, unseen_domain="sketch", unseen_classes=["ball", "gem"], val_classes=["box"])
    config = load_preset("mini-near")
    clip = PromptableCLIP(build_mini(), MiniTokenizer(), MINI_MEAN, MINI_STD, "mini")
    models = {name: build_model(name, clip, split, config) for name in ("zero-shot", "heads", "pros")}
    table = results().assign(preset=config.preset, switches=config.switches.differing())
    table = table.assign(**{name: "" for name in RESULTS.text if name not in table})
    table = table.assign(**{name: 1 for name in (*RESULTS.whole, *RESULTS.real) if name not in table})
    table.to_csv(tmp_path / "results.csv", index=False)
    run = SimpleNamespace(
        data=toy,
        split=split,
        config=config,
        artifacts=tmp_path,
        fit=lambda method, progress: (models[method], history([1, 2])),
    )
    paths = plots.tutorial_figures(run, models, tmp_path / "figures")
    assert [path.stem for path in paths] == ["ranks_sketch", "umap_sketch", "training", "results"]
    assert all(path.exists() for path in paths)


def test_neighbour_purity_is_scikit_learns_neighbours_with_the_same_label():
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(60, 8, generator=generator), torch.randint(3, (60,), generator=generator)
    search = NearestNeighbors(n_neighbors=11, metric="cosine").fit(features.numpy())
    index = torch.tensor(search.kneighbors(return_distance=False)[:, :10])
    expected = (labels[index] == labels[:, None]).float().mean()
    assert neighbour_purity(features, labels) == pytest.approx(float(expected))


def test_neighbour_purity_of_equal_features_and_of_few():
    labels = torch.tensor([0, 0, 1, 1])
    assert neighbour_purity(torch.ones(4, 3), labels, k=10) == pytest.approx(1 / 3)
    assert neighbour_purity(torch.eye(4)[[0, 0, 1, 1]], labels, k=1) == 1.0
    with pytest.raises(UserError, match="no neighbour"):
        neighbour_purity(torch.ones(1, 3), [0])
