"""Several models' features of the same pictures on one map, beside each other."""

from collections.abc import Mapping, Sequence

import numpy as np
import seaborn
import torch
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from ..domains import ImageDomains
from ..files import UserError
from ..ranking import rank
from .pictures import FAINT, GREY, HIT, INK, MISS, WIDTH, NotebookFigure, domain_colours, short, styled
from .plots import umap_points


def joint_umap(features: Mapping[str, torch.Tensor], seed: int = 42, neighbours: int = 15) -> dict[str, np.ndarray]:
    """One UMAP of the features that several models give the same n pictures: {model: [n, D]} -> {model: points [n, 2]}.

    It is fitted on all of them together, so that a place means the same on every map. `neighbours` is for each model:
    a picture's neighbours are its own features from the other models as well. Raises UserError for other shapes.
    """
    shapes = {tuple(found.shape) for found in features.values()}
    if len(shapes) != 1:
        raise UserError(f"One map takes features of the same pictures and width, not of shapes {sorted(shapes)}.")
    together = torch.cat([torch.nn.functional.normalize(found, dim=1) for found in features.values()])
    points = umap_points(together, seed, neighbours * len(features))
    return dict(zip(features, np.split(points, len(features)), strict=True))


@styled
def aligned_maps(
    data: ImageDomains,
    rows: torch.Tensor,
    points: Mapping[str, np.ndarray],
    features: Mapping[str, torch.Tensor],
    query_domain: str,
    gallery_domain: str,
) -> NotebookFigure:
    """A column per model of `points`, domains in the upper row and classes in the lower one, as the paper shows them.

    rows: n rows of `data`; points: {model: [n, 2]} of `joint_umap`; features: {model: [n, D]}, in which the nearest
    picture of the gallery is found for every query (a star): a line leads there, green where it has the query's class.
    """
    side, left, bottom = (WIDTH - 0.25) / len(points), 0.25, 0.42
    figure = NotebookFigure(figsize=(WIDTH, 2 * side + 0.3 + bottom))
    height = figure.get_size_inches()[1]
    everything = np.concatenate(list(points.values()))
    low, high = everything.min(0), everything.max(0)
    for column, (name, places) in enumerate(points.items()):
        for row, kind in enumerate(("domain", "class")):
            box = left + column * side + 0.02, bottom + (1 - row) * side, side - 0.04, side - 0.04
            ax = figure.add_axes([box[0] / WIDTH, box[1] / height, box[2] / WIDTH, box[3] / height])
            ax.set(xticks=[], yticks=[], xlim=around(low[0], high[0]), ylim=around(low[1], high[1]))
            ax.spines[:].set(visible=True, color=FAINT)
            dots(ax, data, rows, places, kind, query_domain)
            if row == 0:
                ax.set_title(name, fontsize=8.5, pad=4, loc="center")
                lines(ax, data, rows, places, features[name], query_domain, gallery_domain)
            else:
                write_classes(ax, classes_of(data, rows), places)
            if column == 0:
                ax.set_ylabel(f"by {kind}", fontsize=8.5, fontweight="bold")
    key = [domain_key(name, colour, name == query_domain) for name, colour in domain_colours(data.domains).items()]
    told = {HIT: f"nearest {gallery_domain}: right class", MISS: "wrong class"}
    key += [Line2D([], [], color=colour, lw=1.4, label=label) for colour, label in told.items()]
    figure.legend(
        handles=key, loc="lower center", ncols=len(key), fontsize=8, columnspacing=1.0, handletextpad=0.3, frameon=False
    )
    return figure


def domains_of(data: ImageDomains, rows: torch.Tensor) -> np.ndarray:
    return np.array(data.domains)[data.domain_index[rows]]


def classes_of(data: ImageDomains, rows: torch.Tensor) -> np.ndarray:
    return np.array(data.classes)[data.class_index[rows]]


def class_colours(names: Sequence[str]) -> dict[str, str]:
    """Hues around the circle, dark and light by turns: no class looks like a domain."""
    tones = [seaborn.husl_palette(len(names), s=0.8, l=lightness).as_hex() for lightness in (0.42, 0.66)]
    return {name: tones[i % 2][i] for i, name in enumerate(names)}


def around(low: float, high: float, margin: float = 0.05) -> tuple[float, float]:
    return low - margin * (high - low), high + margin * (high - low)


def domain_key(name: str, colour: str, is_query: bool) -> Line2D:
    return Line2D(
        [],
        [],
        ls="",
        color=colour,
        marker="*" if is_query else "o",
        ms=9 if is_query else 5,
        mec="white",
        mew=0.3,
        label=f"{short(name)} (queries)" if is_query else short(name),
    )


def dots(ax: Axes, data: ImageDomains, rows: torch.Tensor, places: np.ndarray, kind: str, query_domain: str) -> None:
    """Pictures as dots, queries as stars."""
    names = domains_of(data, rows) if kind == "domain" else classes_of(data, rows)
    known = data.domains if kind == "domain" else sorted(set(names))
    colours = domain_colours(known) if kind == "domain" else class_colours(known)
    query = domains_of(data, rows) == query_domain
    shade = np.array([colours[name] for name in names])
    ax.scatter(*places[~query].T, s=13, c=shade[~query], alpha=0.85, linewidths=0, zorder=2)
    ax.scatter(*places[query].T, s=42, c=shade[query], marker="*", edgecolors="white", linewidths=0.3, zorder=4)


def lines(
    ax: Axes,
    data: ImageDomains,
    rows: torch.Tensor,
    places: np.ndarray,
    features: torch.Tensor,
    query_domain: str,
    gallery_domain: str,
) -> None:
    """From every query to the nearest picture of the gallery in the feature space."""
    domain = data.domain_index[rows]
    query, gallery = ((domain == data.domains.index(name)).nonzero()[:, 0] for name in (query_domain, gallery_domain))
    nearest = gallery[rank(features[query], features[gallery], k=1)[1][:, 0]]
    label = data.class_index[rows]
    for start, end in zip(query.tolist(), nearest.tolist(), strict=True):
        colour = HIT if label[start] == label[end] else MISS
        ax.plot(*places[[start, end]].T, color=colour, lw=0.7, alpha=0.7, zorder=1)


def write_classes(ax: Axes, names: np.ndarray, places: np.ndarray) -> None:
    """Every class's name where most of its pictures lie, moved up or down where it would cover another name."""
    taken: list[Bbox] = []
    ax.figure.draw_without_rendering()
    frame = ax.get_window_extent()
    for name in sorted(set(names.tolist())):
        mine = places[names == name]
        x, y = mine[np.linalg.norm(mine[:, None] - mine, axis=2).mean(1).argmin()]  # the most central picture
        text = ax.text(x, y, short(name, 18), fontsize=8, ha="center", va="center", color=INK, zorder=6)
        text.set_path_effects([patheffects.withStroke(linewidth=2.2, foreground="white")])
        place_free(ax, text, frame, taken)


def place_free(ax: Axes, text: Text, frame: Bbox, taken: list[Bbox]) -> None:
    """Move a text into the frame, and up or down until it covers none of the boxes `taken`; its box joins them."""
    start = ax.transData.transform(text.get_position())
    box = text.get_window_extent()
    shift_x = max(0, frame.x0 + 2 - box.x0) - max(0, box.x1 - frame.x1 + 2)
    for step in (0, 1, -1, 2, -2, 3, -3, 4, -4, 5, -5, 6, -6):
        moved = start + (shift_x, 0.55 * step * box.height)
        text.set_position(ax.transData.inverted().transform(moved))
        now = text.get_window_extent()
        if frame.y0 <= now.y0 and now.y1 <= frame.y1 and not any(now.overlaps(other) for other in taken):
            break
    taken.append(text.get_window_extent())


@styled
def named_maps(panels: Sequence[dict]) -> NotebookFigure:
    """Maps beside each other, every class's name where its pictures lie instead of a legend.

    A panel is a dict: points [n, 2], a title and, where the points have classes, their names [n].
    """
    side = min(3.6, WIDTH / len(panels))
    figure = NotebookFigure(figsize=(side * len(panels), side + 0.35), layout="constrained")
    for column, panel in enumerate(panels):
        ax, places = figure.add_subplot(1, len(panels), column + 1), np.asarray(panel["points"])
        names = np.asarray(panel.get("names", np.repeat("", len(places))))
        known = sorted(set(names.tolist()))
        colours = class_colours(known) if known != [""] else {"": GREY}
        ax.scatter(*places.T, s=16, c=[colours[name] for name in names.tolist()], alpha=0.85, linewidths=0)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set(visible=True, color=FAINT)
        ax.set_title(panel["title"], fontsize=8.5)
        if known != [""]:
            write_classes(ax, names, places)
    return figure
