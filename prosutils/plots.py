"""What notebooks, the README and the tutorial draw. Every function returns a Figure and shows nothing."""
import os
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn
import torch
from matplotlib import patheffects
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.patches import Rectangle
from PIL import Image

from .config import UserError
from .diagrams import (FAINT, FLAME, GREY, HIT, INK, MISS, STYLE, WIDTH, NotebookFigure, arrow, board, card,
                       contact_sheet, domain_colours, mask_matrix, picture, short, show_images, styled,
                       thumbnail, token_sequence)
from .domains import Images, inverted_domains
from .evaluation import embed, model_transform, neighbour_purity, query_metrics, rank, switch_options

__all__ = ["STYLE", "benchmark_banner", "compare_ranks", "contact_sheet", "domain_colours", "feature_map",
           "feature_maps", "mask_matrix", "rank_strips", "results_bars", "save", "show_images",
           "similarity_matrix", "split_map", "token_sequence", "training_curves", "tutorial_figures", "umap_points",
           "unit_map"]

BLUE = "#0077BB"
METHOD_COLOURS = {"Zero-shot CLIP": "#B4BDC6", "Heads only": "#7FB7E0", "VPT + heads": "#3E7FB1",
                  "ProS": FLAME}


# --- Ranks --------------------------------------------------------------------------------------------------

STEP = 1.08                                            # from one ranked picture to the next, in pictures


def describe_query(data, query):
    """(picture or words, caption, class index or None) of a query: a row of `data`, words, or a PIL image."""
    if isinstance(query, str):
        return query, "words", None
    if isinstance(query, Image.Image):
        return query, "a picture", None
    domain, name = data.domains[data.domain_index[query]], data.classes[data.class_index[query]]
    return data.load(int(query)), f"{short(name, 16)}\n{short(domain, 16)}", int(data.class_index[query])


def query_card(ax, shown, caption, x, y, size=1.0, fontsize=6.5):
    """The query at the left of its ranks: a picture, or words in quotes, with a caption below."""
    if isinstance(shown, str):
        card(ax, x, y, size, INK, 1.4)
        ax.text(x + size / 2, y + size / 2, textwrap.fill(f"“{shown}”", 12), ha="center", va="center",
                fontsize=fontsize + 0.5, style="italic")
    else:
        picture(ax, shown, x, y, size, INK, 1.4)
    ax.text(x + size / 2, y + size + 0.07, caption, ha="center", va="top", fontsize=fontsize, color=GREY)


def strip(ax, data, rows, class_index, x, y):
    """Ranked pictures from left to right in the frames of hits and misses. Returns the number of hits."""
    found = [int(data.class_index[row]) for row in rows]
    for place, (row, name) in enumerate(zip(rows, found)):
        left, known = x + place * STEP, class_index is not None
        colour = FAINT if not known else HIT if name == class_index else MISS
        picture(ax, data.load(int(row)), left, y, colour=colour, linewidth=1.6 if known else 0.8)
        if name != class_index:
            ax.text(left + 0.5, y + 1.07, short(data.classes[name]), ha="center", va="top", fontsize=6.5,
                    color=MISS if known else INK)
    return found.count(class_index)


@styled
def rank_strips(data, queries, ranked, scores=None, names=None):
    """One row per query: its picture and its k best gallery pictures, green where the class is right.

    queries: q rows of `data`, or words, or PIL images (then the class is unknown and frames are neutral);
    ranked: [q, k] rows of `data`, best first; scores: q average precisions for the row's end (default: hits);
    names: q captions in the place of class and domain.
    """
    k, left, pitch = len(ranked[0]), 1.65, 1.45
    width = left + k * STEP + 1.0
    figure, ax = board(width, len(queries) * pitch + 0.05, min(0.72, WIDTH / width))
    for i, (query, rows) in enumerate(zip(queries, ranked)):
        y = i * pitch + 0.05
        shown, caption, class_index = describe_query(data, query)
        query_card(ax, shown, names[i] if names else caption, 0.15, y)
        arrow(ax, (1.28, y + 0.5), (1.54, y + 0.5))
        hits = strip(ax, data, rows, class_index, left, y)
        if scores is not None or class_index is not None:
            text = f"{hits} of {k}" if scores is None else f"AP {scores[i]:.2f}"
            ax.text(left + k * STEP + 0.05, y + 0.5, text, va="center", fontsize=7.5)
    return figure


@styled
def compare_ranks(data, query, ranked_by_method, scores_by_method=None):
    """The same query, or several, under several methods: one strip each.

    query: a row of `data`, or q of them; ranked_by_method: {method: [k] or [q, k] rows of `data`};
    scores_by_method: {method: q average precisions} for the row's end (default: the hits).
    """
    queries = np.atleast_1d(np.asarray(query)).tolist()
    ranked = {method: np.atleast_2d(np.asarray(rows)) for method, rows in ranked_by_method.items()}
    k = next(iter(ranked.values())).shape[1]
    left, pitch, size = 3.2, 1.36, 1.45 if len(ranked) > 1 else 1.0
    block, width = pitch * len(ranked) + 0.3, left + k * STEP + 1.0
    figure, ax = board(width, len(queries) * block - 0.25, min(0.72, WIDTH / width))
    for i, row in enumerate(queries):
        top = i * block + 0.05
        shown, caption, class_index = describe_query(data, row)
        query_card(ax, shown, caption, 0.15, top + (pitch * len(ranked) - 0.36 - size) / 2, size)
        for j, (method, rows) in enumerate(ranked.items()):
            y = top + j * pitch
            hits = strip(ax, data, rows[i], class_index, left, y)
            text = f"{hits} of {k}" if scores_by_method is None else f"AP {scores_by_method[method][i]:.2f}"
            ax.text(left + k * STEP + 0.05, y + 0.5, text, va="center", fontsize=7.5)
            ax.text(left - 0.2, y + 0.5, method.replace(" ", "\n", 1), ha="right", va="center", fontsize=7.5,
                    **emphasis(method))
    return figure


def emphasis(method):
    """How a method's name is written: ProS stands out."""
    return dict(fontweight="bold", color=FLAME) if method.startswith("ProS") else dict(color=INK)


@styled
def benchmark_banner(data, query, ranked_by_method, title="Draw it. Find it in another style.", subtitle=""):
    """The README's first picture: one query, and what each method retrieves for it.

    query: a row of `data`; ranked_by_method: {method: k rows}. PictoNet laid out at 224 pixels looks best; a
    row number means the same drawing at every size.
    """
    k, left, top, pitch = len(next(iter(ranked_by_method.values()))), 2.95, 1.15, 1.78
    width, height = left + k * STEP + 0.1, top + pitch * len(ranked_by_method)
    figure, ax = board(width, height, WIDTH / width)
    ax.text(0.15, 0.15, title, fontsize=14, fontweight="bold", va="top")
    ax.text(0.15, 0.6, subtitle, fontsize=9, va="top", color=GREY)
    middle = top + 0.27 + (pitch * (len(ranked_by_method) - 1) + 1) / 2
    shown, caption, class_index = describe_query(data, int(query))
    query_card(ax, shown, caption, 0.15, middle - 0.95, 1.9, fontsize=9)
    arrow(ax, (2.25, middle), (2.7, middle))
    for i, (method, rows) in enumerate(ranked_by_method.items()):
        y = top + i * pitch
        hits = strip(ax, data, rows, class_index, left, y + 0.27)
        ax.text(left + 0.02, y + 0.17, method, fontsize=9.5, va="bottom", **emphasis(method))
        ax.text(left + k * STEP - 0.1, y + 0.17, f"{hits} of {k}", fontsize=9, ha="right", va="bottom",
                color=GREY)
    return figure


@styled
def similarity_matrix(values, row_images, column_labels, row_labels=None, title=None):
    """Cosines [r, c] as a heat map, r pictures at the left and c words on top; each row's best is framed."""
    values = np.asarray(values, dtype=float)
    rows, columns = values.shape
    slope = 0.05 * max(len(short(name, 20)) for name in column_labels)     # inches the slanted words take
    left, top, right = 1.7 if row_labels else 0.8, 0.25 + slope + 0.3 * bool(title), slope
    unit = min(0.55, (WIDTH - left - right) / columns)
    width, height = left + columns * unit + right, top + rows * unit + 0.1
    figure = NotebookFigure(figsize=(width, height))
    ax = figure.add_axes([left / width, 0.1 / height, columns * unit / width, rows * unit / height])
    seaborn.heatmap(values, ax=ax, cmap=seaborn.light_palette(BLUE, as_cmap=True), cbar=False, linewidths=1.5,
                    annot=unit > 0.38, fmt=".2f", annot_kws=dict(fontsize=6.5), linecolor="white",
                    xticklabels=False, yticklabels=False)
    for row, (best, image) in enumerate(zip(values.argmax(1).tolist(), row_images)):
        ax.add_patch(Rectangle((best, row), 1, 1, fill=False, ec=INK, lw=1.2, zorder=5))
        x, y = left - 0.1 - 0.94 * unit, height - top - (row + 0.97) * unit
        place = figure.add_axes([x / width, y / height, 0.94 * unit / width, 0.94 * unit / height])
        place.imshow(thumbnail(image))
        place.axis("off")
        if row_labels:
            ax.text(-1 - 0.2 / unit, row + 0.5, short(row_labels[row]), ha="right", va="center", fontsize=7)
    for column, name in enumerate(column_labels):
        ax.text(column + 0.5, -0.12, short(name, 20), fontsize=7, rotation=45, va="bottom",
                rotation_mode="anchor")
    figure.text(0.1 / width, 1 - 0.12 / height, title or "", fontsize=9, fontweight="bold", va="top")
    return figure


# --- Who may see what ---------------------------------------------------------------------------------------

PART_COLOURS = {"training": "#9CC7E3", "validation": "#DDE4EB", "gallery": HIT, "queries": FLAME}


@styled
def split_map(splits):
    """Which images a split trains on, validates on, asks with and searches; one panel for each of `splits`.

    Rows are domains, columns are groups of classes, as wide as their number; the numbers count images. White: unused.
    """
    columns = min(2, len(splits))
    rows = -(-len(splits) // columns)
    figure = NotebookFigure(figsize=(WIDTH, 2.3 * rows + 0.3), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06, hspace=0.08)
    for i, split in enumerate(splits):
        draw_split(figure.add_subplot(rows, columns, i + 1), split)
    handles = [Rectangle((0, 0), 1, 1, fc=colour, label=part) for part, colour in PART_COLOURS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def draw_split(ax, split):
    """One panel of `split_map`: every block of a domain and a group of classes, filled by what its images are for."""
    sources = [domain for domain in split.train_domains if domain != split.gallery_domain]
    domains = [split.gallery_domain, *sources] + ([split.unseen_domain] if split.unseen_domain else [])
    groups = {"seen": split.seen_classes, "validation": split.val_classes, "unseen": split.unseen_classes}
    parts = {"training": split.train, "validation": torch.cat([split.val_query, split.val_gallery]),
             "gallery": split.gallery, "queries": split.query}
    total, left = sum(map(len, groups.values())), 0.0
    for group, classes in groups.items():
        width = len(classes) / total
        for y, domain in enumerate(domains):
            rows, x = split.data.rows([domain], classes), left
            for part, members in parts.items():
                count = int(torch.isin(rows, members).sum())
                share = width * count / max(1, len(rows))
                ax.add_patch(Rectangle((x, y + 0.06), share, 0.88, fc=PART_COLOURS[part], ec="none"))
                if share > 0.02:
                    ax.text(x + share / 2, y + 0.5, count, ha="center", va="center", fontsize=6.5, rotation=90 * (share < 0.06),
                            color="white" if part in ("gallery", "queries") else INK)
                x += share
            ax.add_patch(Rectangle((left, y + 0.06), width, 0.88, fc="none", ec=FAINT, lw=0.7))
        if classes:
            ax.text(left + width / 2, -0.12, f"{len(classes)} {group}", ha="center", va="bottom", fontsize=7, color=GREY)
        left += width + 0.025
    ax.set(xlim=(0, left), ylim=(len(domains), 0), xticks=[], yticks=np.arange(len(domains)) + 0.5,
           yticklabels=[short(domain) for domain in domains])
    ax.set_title(f"{split.protocol}, {split.gallery_kind} gallery", pad=18)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


# --- Features in a plane ------------------------------------------------------------------------------------

def umap_points(features, seed=0, neighbours=15):
    """UMAP of features [n, D] by cosine -> points [n, 2], an array; the same seed gives the same points."""
    features = np.asarray(features, dtype=np.float32)
    if len(features) < 5:
        raise UserError(f"UMAP needs 5 features or more, not {len(features)}.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import umap                                    # compiles for some seconds: only where it is wanted
        reducer = umap.UMAP(n_neighbors=min(neighbours, len(features) - 1), metric="cosine", low_memory=True,
                            init="spectral" if len(features) > 30 else "random", random_state=seed, n_jobs=1)
        return reducer.fit_transform(features)


@styled
def feature_map(points, labels, names=None, images=None, title=None, number=None):
    """Points [n, 2] coloured by label, some of them as pictures.

    labels: n names, or n indices into `names`; images: n PIL images, or a function that loads the i-th;
    number: a text above the map, for example "neighbour purity by class 0.71".
    """
    return feature_maps([dict(points=points, labels=labels, names=names, images=images, title=title,
                              number=number)])


@styled
def feature_maps(panels, columns=None):
    """Several maps side by side; each panel is a dict of the arguments of `feature_map`."""
    columns = columns or min(3, len(panels))
    rows, side = -(-len(panels) // columns), min(5.2, WIDTH / columns)
    entries = max(len(set(np.asarray(panel["labels"]).tolist())) for panel in panels)
    legend_columns = 4 if side > 4 else 3
    height = side + 0.55 + 0.15 * -(-entries // legend_columns)
    figure = NotebookFigure(figsize=(side * columns, height * rows), layout="constrained")
    for i, panel in enumerate(panels):
        ax = figure.add_subplot(rows, columns, i + 1)
        draw_map(ax, side, **panel)
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=legend_columns, columnspacing=0.8,
                  handletextpad=0.1, fontsize=6.5, scatterpoints=1, scatteryoffsets=[0.55])
    return figure


def draw_map(ax, side, points, labels, names=None, images=None, title=None, number=None):
    """One panel of `feature_maps`, `side` inches wide."""
    points = np.asarray(points)
    labels = [str(x) if names is None else names[int(x)] for x in labels]
    present = [x for x in (names or sorted(set(labels))) if x in set(labels)]
    colours = label_colours(present)
    for name in present:
        mine = [i for i, label in enumerate(labels) if label == name]
        ax.scatter(*points[mine].T, s=9 if len(points) > 300 else 16, color=colours[name], alpha=0.75,
                   linewidths=0, label=short(name, 16))
    ax.set(xticks=[], yticks=[], box_aspect=1)
    ax.spines[:].set(visible=True, color=FAINT)
    ax.margins(0.08)
    ax.set_title(title or "", pad=18 if number else 6)
    ax.text(0, 1.015, number or "", transform=ax.transAxes, fontsize=7.5, va="bottom")
    if images is not None:
        load = images if callable(images) else images.__getitem__
        for i in spread(points, 0.085 if side > 4 else 0.11):
            small = thumbnail(load(i), 64)
            shown = OffsetImage(small, zoom=0.06 * side * 72 / small.width)
            ax.add_artist(AnnotationBbox(shown, points[i], bboxprops=dict(ec=colours[labels[i]], lw=1.1,
                                                                          boxstyle="round,pad=0.12")))


def label_colours(names):
    """{name: colour}: a domain's own colour where the names are domains, else colours around the circle."""
    if len(names) <= 8:
        return domain_colours(names)
    return dict(zip(names, seaborn.husl_palette(len(names), s=0.75, l=0.58).as_hex()))


def spread(points, distance, seed=0):
    """Points that lie `distance` apart or more (in widths of the plot): their positions, in random order."""
    scaled, chosen = points / np.ptp(points, axis=0).clip(1e-9), []
    for i in np.random.default_rng(seed).permutation(len(points)).tolist():
        if all(np.abs(scaled[i] - scaled[j]).max() >= distance for j in chosen):
            chosen.append(i)
    return chosen


@styled
def unit_map(units, names, labels=None, title=None):
    """Prompt units [n, W] in the plane of their two principal components, names written beside them.

    labels: n groups that set the colour (default: one colour). A name that would cover others is left out.
    """
    units = torch.as_tensor(units).detach().float().cpu()
    u, s, _ = torch.linalg.svd(units - units.mean(0), full_matrices=False)
    u = u * u.gather(0, u.abs().argmax(0, keepdim=True)).sign()  # a component's sign is arbitrary: fix it
    points, shares = (u * s)[:, :2].numpy(), (s.square() / s.square().sum()).tolist()

    figure = NotebookFigure(figsize=(WIDTH * 0.75, WIDTH * 0.55), layout="constrained")
    ax = figure.add_subplot()
    groups = [str(x) for x in labels] if labels is not None else [""] * len(units)
    colours = label_colours(list(dict.fromkeys(groups))) if labels is not None else {"": BLUE}
    for group, colour in colours.items():
        mine = [i for i, x in enumerate(groups) if x == group]
        ax.scatter(*points[mine].T, s=22, color=colour, label=short(group, 20), linewidths=0)
    ax.set(xlabel=f"first principal component ({shares[0]:.0%})", title=title or "",
           ylabel=f"second principal component ({shares[1]:.0%})")
    ax.margins(0.08)
    if labels is not None:
        ax.legend(loc="best", fontsize=7)
    write_names(figure, ax, points, names)
    return figure


def write_names(figure, ax, points, names):
    """Names beside points, each at the first of eight places where it covers no point and no other name."""
    figure.draw_without_rendering()
    taken, dots = [], ax.transData.transform(points)
    for point, name in zip(points, names):
        for dx, dy in ((5, 0), (-5, 0), (0, 5), (0, -5), (4, 4), (-4, 4), (4, -4), (-4, -4)):
            text = ax.annotate(short(name, 18), point, (dx, dy), textcoords="offset points", fontsize=6.5,
                               ha="left" if dx > 0 else "right" if dx else "center",
                               va="bottom" if dy > 0 else "top" if dy else "center")
            box = text.get_window_extent()
            if not (any(box.overlaps(other) for other in taken) or box.count_contains(dots)):
                text.set_path_effects([patheffects.withStroke(linewidth=2, foreground="white")])
                taken.append(box)
                break
            text.remove()


# --- Training and results -----------------------------------------------------------------------------------

@styled
def training_curves(history):
    """Loss, accuracy and validation mAP@200 per epoch of `train`'s history; the kept epoch is ringed."""
    figure = NotebookFigure(figsize=(WIDTH, 2.5), layout="constrained")
    epochs, stages = np.arange(1, len(history) + 1), history["stage"].to_numpy()
    panels = {"loss": "Training loss", "accuracy": "Training accuracy",
              "val_mAP@200": "mAP@200 on validation classes"}
    for ax, (column, title) in zip(figure.subplots(1, 3), panels.items()):
        values = history[column].to_numpy(float)
        for stage, colour, learns in ((1, BLUE, "prompt units"), (2, FLAME, "simulator")):
            mine = stages == stage
            ax.plot(epochs[mine], values[mine], "o-", ms=3.5, color=colour, label=f"stage {stage}: {learns}")
        ax.set(title=title, xlabel="epoch", xlim=(0.4, len(history) + 0.6))
        ax.xaxis.get_major_locator().set_params(integer=True)
        if {1, 2} <= set(stages):
            ax.axvline((stages == 1).sum() + 0.5, color=FAINT, lw=1, ls=(0, (3, 3)), zorder=0)
        if column == "loss" and 1 in stages:
            ax.legend(loc="upper right")
    if np.isfinite(values).any():                      # a folder may have no validation classes
        best = int(np.nanargmax(values))
        ax.plot(epochs[best], values[best], "o", ms=9, mfc="none", mec=INK, mew=1.2)
        kept = f"kept: {history['epoch'].iloc[best]} of stage {stages[best]}, {values[best]:.3f}"
        ax.set_xlabel(f"epoch ({kept})")
    return figure


@styled
def results_bars(results, metric="mAP@200", chance=None):
    """Bars of `metric` per held-out domain and method, zero-shot first; one panel per protocol and gallery.

    results: rows of `evaluate`. A bar is the mean over seeds, its whisker reaches from the least to the best.
    chance: a number for a dashed line.
    """
    known = list(METHOD_COLOURS)
    methods = sorted(set(results["method"]), key=lambda m: (known.index(m) if m in known else len(known), m))
    others = [m for m in methods if m not in known]
    palette = METHOD_COLOURS | dict(zip(others, seaborn.color_palette("Set2", len(others)).as_hex()))
    domains = list(dict.fromkeys(results["unseen_domain"]))
    cases = list(results.groupby(["protocol", "gallery"], sort=False))
    figure = NotebookFigure(figsize=(WIDTH if len(cases) > 1 else WIDTH * 0.75, 2.8), layout="constrained")
    axes = figure.subplots(1, len(cases), sharey=True, squeeze=False)[0]
    width = 0.8 / len(methods)
    for ax, ((protocol, gallery), rows) in zip(axes, cases):
        for i, method in enumerate(methods):
            seeds = rows[rows["method"] == method].groupby("unseen_domain")[metric]
            low, mean, high = seeds.agg(["min", "mean", "max"]).reindex(domains).to_numpy().T
            bars = ax.bar(np.arange(len(domains)) + (i - (len(methods) - 1) / 2) * width, mean, width * 0.9,
                          yerr=[mean - low, high - mean] if (high > low).any() else None, label=method,
                          color=palette[method], capsize=2, error_kw=dict(lw=0.9, ecolor=INK, capthick=0.9))
            if len(cases) * len(domains) * len(methods) <= 18:
                ax.bar_label(bars, fmt="%.3f" if len(cases) == 1 else "%.2f", fontsize=6.5, padding=2)
        ax.set(title=f"{protocol}, {gallery} gallery", xlabel="held-out domain")
        ax.set_xticks(range(len(domains)), [short(name) for name in domains])
        ax.set_xlim(-0.6, len(domains) - 0.4)
        if chance is not None:
            ax.axhline(chance, color=INK, lw=0.8, ls=(0, (4, 3)), label="chance")
    axes[0].set_ylabel(metric)
    handles = dict(zip(*axes[0].get_legend_handles_labels()[::-1]))
    names = [*methods, *(["chance"] if chance is not None else [])]
    figure.legend([handles[x] for x in names], names, loc="outside lower center", ncols=len(names))
    return figure


# --- The tutorial's figures ---------------------------------------------------------------------------------

def tutorial_figures(run, models, folder):
    """Draw what `python -m prosutils tutorial` promises into `folder`; returns the paths.

    run: Experiment; models: {"zero-shot", "heads", "pros"}. ranks_<domain>.png, umap_<domain>.png,
    training.png, and results.png from the rows of this preset in the run's results.csv.
    """
    results = pd.read_csv(run.artifacts / "results.csv")
    figures = {f"ranks_{run.split.unseen_domain}": tutorial_ranks(run, models),
               f"umap_{run.split.unseen_domain}": tutorial_umap(run, models["pros"]),
               "training": training_curves(run.fit("pros", progress=False)[1]),
               "results": results_bars(results[results["preset"] == run.config.preset])}
    return [save(figure, Path(folder) / f"{name}.png") for name, figure in figures.items()]


def embed_rows(model, data, rows):
    """Features [n, D] of some rows of `data`, prepared as the model wants them."""
    return embed(model, Images(data, rows, model_transform(model), inverted_domains(model.config.switches)))


def tutorial_ranks(run, models, queries=6, k=9):
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
        ranked[model.method] = split.gallery[rank(query, gallery, options["similarity"], k)[1]]
        scores[model.method] = query_metrics(query, labels, gallery, gallery_labels, **options)["AP@200"]
    return compare_ranks(data, chosen, ranked, scores)


def tutorial_umap(run, model, classes=12):
    """Features of the first unseen classes in the held-out domain and the gallery, by domain and by class."""
    data, split = run.data, run.split
    rows = data.rows([split.unseen_domain, split.gallery_domain], split.unseen_classes[:classes])
    features = embed_rows(model, data, rows)
    points, panels = umap_points(features), []
    for kind, index, names in (("domain", data.domain_index[rows], data.domains),
                               ("class", data.class_index[rows], data.classes)):
        purity = neighbour_purity(features, index)
        panels.append(dict(points=points, labels=index, names=names, images=lambda i: data.load(int(rows[i])),
                           title=f"{model.method}, unseen classes, by {kind}",
                           number=f"neighbour purity by {kind} {purity:.2f}"))
    return feature_maps(panels)


def save(figure, path, dpi=150):
    """Write a figure as PNG, beside the target and moved there in one step. UserError without permission."""
    path = Path(path)
    part = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(figure.png(dpi))
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): choose another folder.") from None
    return path
