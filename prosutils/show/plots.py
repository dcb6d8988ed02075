"""What notebooks, the README and the tutorial draw. Every function returns a Figure and shows nothing."""

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import seaborn
import torch
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.patches import Rectangle
from PIL import Image

from ..evaluation import embed_rows, switch_options
from ..experiment import Experiment
from ..files import UserError, scratch_folder, written_whole
from ..metrics import neighbour_purity, query_metrics
from ..ranking import rank
from ..tables import RESULTS, read_table
from ..tuned import TunedCLIP
from .diagrams import mask_matrix, split_map, token_sequence
from .pictures import (
    FAINT,
    INK,
    STYLE,
    WIDTH,
    NotebookFigure,
    benchmark_banner,
    compare_ranks,
    contact_sheet,
    domain_colours,
    rank_strips,
    short,
    show_images,
    styled,
    thumbnail,
)
from .results import BLUE, change_dots, results_bars, results_dots, training_curves

__all__ = [
    "STYLE",
    "benchmark_banner",
    "change_dots",
    "compare_ranks",
    "contact_sheet",
    "domain_colours",
    "feature_map",
    "feature_maps",
    "mask_matrix",
    "principal_plane",
    "rank_strips",
    "results_bars",
    "results_dots",
    "save",
    "show_images",
    "similarity_matrix",
    "split_map",
    "token_sequence",
    "training_curves",
    "tutorial_figures",
    "umap_points",
    "unit_map",
]

# --- Features in a plane ------------------------------------------------------------------------------------


@styled
def similarity_matrix(
    values: torch.Tensor,
    row_images: Sequence[Image.Image],
    column_labels: Sequence[str],
    row_labels: Sequence[str] | None = None,
    title: str | None = None,
):
    """Cosines [r, c] as a heat map, r pictures at the left and c words on top; each row's best is framed."""
    values = np.asarray(values, dtype=float)
    rows, columns = values.shape
    slope = 0.05 * max(len(short(name, 20)) for name in column_labels)  # inches the slanted words take
    left, top, right = 1.9 if row_labels else 0.8, 0.25 + slope + 0.3 * bool(title), slope
    unit = min(0.55, (WIDTH - left - right) / columns)
    width, height = left + columns * unit + right, top + rows * unit + 0.1
    figure = NotebookFigure(figsize=(width, height))
    ax = figure.add_axes([left / width, 0.1 / height, columns * unit / width, rows * unit / height])
    seaborn.heatmap(
        values,
        ax=ax,
        cmap=seaborn.light_palette(BLUE, as_cmap=True),
        cbar=False,
        linewidths=1.5,
        annot=unit > 0.38,
        fmt=".2f",
        annot_kws=dict(fontsize=8),
        linecolor="white",
        xticklabels=False,
        yticklabels=False,
    )
    for row, (best, image) in enumerate(zip(values.argmax(1).tolist(), row_images, strict=True)):
        ax.add_patch(Rectangle((best, row), 1, 1, fill=False, ec=INK, lw=1.2, zorder=5))
        x, y = left - 0.1 - 0.94 * unit, height - top - (row + 0.97) * unit
        place = figure.add_axes([x / width, y / height, 0.94 * unit / width, 0.94 * unit / height])
        place.imshow(thumbnail(image))
        place.axis("off")
        if row_labels:
            ax.text(-1 - 0.2 / unit, row + 0.5, short(row_labels[row], 16), ha="right", va="center", fontsize=8)
    for column, name in enumerate(column_labels):
        ax.text(column + 0.5, -0.12, short(name, 20), fontsize=8, rotation=45, va="bottom", rotation_mode="anchor")
    figure.text(0.1 / width, 1 - 0.12 / height, title or "", fontsize=9, fontweight="bold", va="top")
    return figure


def umap_points(features: torch.Tensor, seed: int = 0, neighbours: int = 15):
    """UMAP of features [n, D] by cosine -> points [n, 2], an array; the same seed gives the same points."""
    features = np.asarray(features, dtype=np.float32)
    if len(features) < 5:
        raise UserError(f"UMAP needs 5 features or more, not {len(features)}.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # What numba compiles is kept beside its package or in HOME, and neither need be writable.
        os.environ.setdefault("NUMBA_CACHE_DIR", str(scratch_folder() / "numba"))
        import umap  # compiles for some seconds: only where it is wanted

        reducer = umap.UMAP(
            n_neighbors=min(neighbours, len(features) - 1),
            metric="cosine",
            low_memory=True,
            init="spectral" if len(features) > 30 else "random",
            random_state=seed,
            n_jobs=1,
        )
        return reducer.fit_transform(features)


@styled
def feature_map(
    points: np.ndarray,
    labels: Sequence[str],
    names: Sequence[str] | None = None,
    images: Sequence[Image.Image] | None = None,
    title: str | None = None,
    number: str | None = None,
):
    """Points [n, 2] coloured by label, some of them as pictures.

    labels: n names, or n indices into `names`; images: n PIL images, or a function that loads the i-th;
    number: a text above the map, for example "neighbour purity by class 0.71".
    """
    return feature_maps([dict(points=points, labels=labels, names=names, images=images, title=title, number=number)])


@styled
def feature_maps(panels: Sequence[dict], columns: int | None = None):
    """Several maps side by side; each panel is a dict of the arguments of `feature_map`."""
    columns = columns or min(3, len(panels))
    rows, side = -(-len(panels) // columns), min(5.2, WIDTH / columns)
    entries = max(len(set(np.asarray(panel["labels"]).tolist())) for panel in panels)
    legend_columns = 4 if side > 4 else 3
    height = side + 0.55 + 0.17 * -(-entries // legend_columns)
    figure = NotebookFigure(figsize=(side * columns, height * rows), layout="constrained")
    for i, panel in enumerate(panels):
        ax = figure.add_subplot(rows, columns, i + 1)
        draw_map(ax, side, **panel)
        ax.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, -0.01),
            ncols=legend_columns,
            columnspacing=0.8,
            handletextpad=0.1,
            fontsize=8,
            scatterpoints=1,
            scatteryoffsets=[0.55],
        )
    return figure


def draw_map(
    ax: Axes,
    side: float,
    points: np.ndarray,
    labels: Sequence[str],
    names: Sequence[str] | None = None,
    images: Sequence[Image.Image] | None = None,
    title: str | None = None,
    number: str | None = None,
):
    """One panel of `feature_maps`, `side` inches wide."""
    points = np.asarray(points)
    labels = [str(x) if names is None else names[int(x)] for x in labels]
    present = [x for x in (names or sorted(set(labels))) if x in set(labels)]
    colours = label_colours(present)
    for name in present:
        mine = [i for i, label in enumerate(labels) if label == name]
        ax.scatter(
            *points[mine].T,
            s=9 if len(points) > 300 else 16,
            color=colours[name],
            alpha=0.75,
            linewidths=0,
            label=short(name, 16),
        )
    ax.set(xticks=[], yticks=[], box_aspect=1)
    ax.spines[:].set(visible=True, color=FAINT)
    ax.margins(0.08)
    ax.set_title(title or "", pad=18 if number else 6)
    ax.text(0, 1.015, number or "", transform=ax.transAxes, fontsize=8, va="bottom")
    if images is not None:
        load = images if callable(images) else images.__getitem__
        for i in spread(points, 0.085 if side > 4 else 0.11):
            small = thumbnail(load(i), 64)
            shown = OffsetImage(small, zoom=0.06 * side * 72 / small.width)
            ax.add_artist(
                AnnotationBbox(
                    shown, points[i], bboxprops=dict(ec=colours[labels[i]], lw=1.1, boxstyle="round,pad=0.12")
                )
            )


def label_colours(names: Sequence[str]):
    """{name: colour}: a domain's own where the names are domains, else hues around the circle, dark and light
    by turns."""
    if len(names) <= 8:
        return domain_colours(names)
    tones = [seaborn.husl_palette(len(names), s=0.8, l=lightness).as_hex() for lightness in (0.45, 0.68)]
    return {name: tones[i % 2][i] for i, name in enumerate(names)}


def spread(points: np.ndarray, distance: float, seed: int = 0):
    """Points that lie `distance` apart or more (in widths of the plot): their positions, in random order."""
    scaled, chosen = points / np.ptp(points, axis=0).clip(1e-9), []
    for i in np.random.default_rng(seed).permutation(len(points)).tolist():
        if all(np.abs(scaled[i] - scaled[j]).max() >= distance for j in chosen):
            chosen.append(i)
    return chosen


def principal_plane(vectors: torch.Tensor):
    """Vectors [n, W] -> (their points [n, 2] in the plane of the first two principal components, an array; the share of
    the variance that each of the min(n, W) components holds)."""
    vectors = torch.as_tensor(vectors).detach().float().cpu()
    u, s, _ = torch.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
    u = u * u.gather(0, u.abs().argmax(0, keepdim=True)).sign()  # a component's sign is arbitrary: fix it
    return (u * s)[:, :2].numpy(), (s.square() / s.square().sum()).tolist()


@styled
def unit_map(units: torch.Tensor, names: Sequence[str], labels: Sequence[str] | None = None, title: str | None = None):
    """Prompt units [n, W] in the plane of their two principal components, names written beside them.

    labels: n groups that set the colour (default: one colour). A name that would cover others is left out.
    """
    points, shares = principal_plane(units)
    figure = NotebookFigure(figsize=(WIDTH * 0.75, WIDTH * 0.55), layout="constrained")
    ax = figure.add_subplot()
    groups = [str(x) for x in labels] if labels is not None else [""] * len(units)
    colours = label_colours(list(dict.fromkeys(groups))) if labels is not None else {"": BLUE}
    for group, colour in colours.items():
        mine = [i for i, x in enumerate(groups) if x == group]
        ax.scatter(*points[mine].T, s=22, color=colour, label=short(group, 20), linewidths=0)
    ax.set(
        xlabel=f"first principal component ({shares[0]:.0%})",
        title=title or "",
        ylabel=f"second principal component ({shares[1]:.0%})",
    )
    ax.margins(0.08)
    if labels is not None:
        ax.legend(loc="best", fontsize=8)
    write_names(figure, ax, points, names)
    return figure


def write_names(figure: Figure, ax: Axes, points: np.ndarray, names: Sequence[str]):
    """Names beside points, each at the first of eight places where it covers no point and no other name."""
    figure.draw_without_rendering()
    taken, dots = [], ax.transData.transform(points)
    for point, name in zip(points, names, strict=True):
        for dx, dy in ((5, 0), (-5, 0), (0, 5), (0, -5), (4, 4), (-4, 4), (4, -4), (-4, -4)):
            text = ax.annotate(
                short(name, 18),
                point,
                (dx, dy),
                textcoords="offset points",
                fontsize=8,
                ha="left" if dx > 0 else "right" if dx else "center",
                va="bottom" if dy > 0 else "top" if dy else "center",
            )
            box = text.get_window_extent().padded(3)
            if not (any(box.overlaps(other) for other in taken) or box.count_contains(dots)):
                text.set_path_effects([patheffects.withStroke(linewidth=2, foreground="white")])
                taken.append(box)
                break
            text.remove()


# --- The tutorial's figures ---------------------------------------------------------------------------------


def tutorial_figures(run: Experiment, models: Mapping[str, TunedCLIP], folder: str | Path):
    """Draw what `python -m prosutils tutorial` promises into `folder`; returns the paths.

    run: Experiment; models: {"zero-shot", "heads", "pros"}. ranks_<domain>.png, umap_<domain>.png,
    training.png, and results.png from the rows of this preset in the run's results.csv.
    """
    results = read_table(run.artifacts / "results.csv", RESULTS)
    results = results[results["switches"] == run.config.switches.differing()]
    figures = {
        f"ranks_{run.split.unseen_domain}": tutorial_ranks(run, models),
        f"umap_{run.split.unseen_domain}": tutorial_umap(run, models["pros"]),
        "training": training_curves(run.fit("pros", progress=False)[1]),
        "results": results_bars(results[results["preset"] == run.config.preset]),
    }
    return [save(figure, Path(folder) / f"{name}.png") for name, figure in figures.items()]


def tutorial_ranks(run: Experiment, models: Mapping[str, TunedCLIP], queries: int = 6, k: int = 9):
    """Ranks of some random queries of the held-out domain, each of another class: zero-shot against ProS."""
    data, split = run.data, run.split
    order = split.query[torch.randperm(len(split.query), generator=torch.Generator().manual_seed(0))]
    one_per_class = {int(data.class_index[row]): int(row) for row in order}
    chosen = torch.tensor(list(one_per_class.values())[:queries])
    labels, gallery_labels = data.class_index[chosen], data.class_index[split.gallery]
    ranked, scores = {}, {}
    for model in (models["zero-shot"], models["pros"]):
        query, gallery = embed_rows(model, data, chosen), embed_rows(model, data, split.gallery)
        options = switch_options(model.config.switches)
        ranked[model.label] = split.gallery[rank(query, gallery, options["similarity"], k)[1]]
        scores[model.label] = query_metrics(query, labels, gallery, gallery_labels, **options)["AP@200"]
    return compare_ranks(data, chosen, ranked, scores)


def tutorial_umap(run: Experiment, model: TunedCLIP, classes: int = 12):
    """Features of the first unseen classes in the held-out domain and the gallery, by domain and by class."""
    data, split = run.data, run.split
    rows = data.rows([split.unseen_domain, split.gallery_domain], split.unseen_classes[:classes])
    features = embed_rows(model, data, rows)
    points, panels = umap_points(features), []
    for kind, index, names in (
        ("domain", data.domain_index[rows], data.domains),
        ("class", data.class_index[rows], data.classes),
    ):
        purity = neighbour_purity(features, index)
        panels.append(
            dict(
                points=points,
                labels=index,
                names=names,
                images=lambda i: data.load(int(rows[i])),
                title=f"{model.label}, unseen classes, by {kind}",
                number=f"neighbour purity by {kind} {purity:.2f}",
            )
        )
    return feature_maps(panels)


def save(figure: NotebookFigure, path: str | Path, dpi: int = 150):
    """Write a figure as PNG; returns the path. UserError without permission."""
    with written_whole(path) as part:
        part.write_bytes(figure.png(dpi))
    return Path(path)
