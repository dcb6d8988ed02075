"""What notebooks, the README and the tutorial draw. Every function returns a matplotlib Figure and shows nothing."""
import os
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn
import torch
from matplotlib import patheffects
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.patches import Rectangle

from .config import UserError
from .diagrams import (FAINT, FLAME, GREY, HIT, INK, MISS, STYLE, WIDTH, NotebookFigure, board, domain_colours, mask_matrix, picture, short,
                       styled, thumbnail, token_sequence)
from .domains import Images, inverted_domains
from .evaluation import embed, model_transform, neighbour_purity, query_metrics, rank, switch_options

__all__ = ["STYLE", "benchmark_banner", "compare_ranks", "contact_sheet", "domain_colours", "feature_map", "feature_maps",
           "mask_matrix", "rank_strips", "results_bars", "show_images", "similarity_matrix", "token_sequence",
           "training_curves", "tutorial_figures", "umap_points", "unit_map"]

METHOD_COLOURS = {"Zero-shot CLIP": "#B4BDC6", "Heads only": "#7FB7E0", "VPT + heads": "#3E7FB1", "ProS": FLAME}


# --- Pictures ---------------------------------------------------------------------------------------------------

@styled
def show_images(images, titles=None, columns=8):
    """PIL images in a grid, `titles` below them."""
    columns = min(columns, len(images))
    rows, pitch = -(-len(images) // columns), 1.3 if titles else 1.06
    figure, ax = board(columns * 1.06, rows * pitch, min(0.8, WIDTH / (columns * 1.06)))
    for i, image in enumerate(images):
        x, y = i % columns * 1.06 + 0.03, i // columns * pitch + 0.03
        picture(ax, image, x, y)
        if titles:
            ax.text(x + 0.5, y + 1.05, short(str(titles[i])), ha="center", va="top", fontsize=6.5)
    return figure


@styled
def contact_sheet(data, classes, domains=None, per_cell=1):
    """Classes (columns) as every domain (rows, the gallery first) draws them; `per_cell` pictures each."""
    domains = domains or sorted(data.domains, key=lambda name: name not in ("emoji", "real", "photo"))
    left, top, pitch = 1.5, 0.5, 1.0
    width, height = left + len(classes) * pitch, top + len(domains) * per_cell * pitch
    figure, ax = board(width, height, min(0.72, WIDTH / width))
    colours = domain_colours(data.domains)
    for row, domain in enumerate(domains):
        middle = top + (row + 0.5) * per_cell * pitch
        ax.text(left - 0.25, middle, short(domain), ha="right", va="center", fontweight="bold", color=colours[domain])
        for column, name in enumerate(classes):
            for i, image in enumerate(data.rows([domain], [name])[:per_cell].tolist()):
                picture(ax, data.load(image), left + column * pitch, top + (row * per_cell + i) * pitch, 0.94)
    for column, name in enumerate(classes):
        ax.text(left + column * pitch + 0.47, top - 0.15, short(name), ha="center", va="bottom", fontsize=7)
    return figure


def describe_query(data, query):
    """(picture or words, caption, class row or None) of a query: a row of `data`, words, or a PIL image."""
    if isinstance(query, str):
        return query, "words", None
    if hasattr(query, "size") and hasattr(query, "convert"):
        return query, "your picture", None
    class_index = int(data.class_index[query])
    return data.load(int(query)), f"{short(data.domains[data.domain_index[query]])} · {short(data.classes[class_index])}", class_index


def query_card(ax, shown, caption, x, y, size=1.0):
    """The query at the left of its ranks: a picture, or words in a card, with a caption below."""
    if isinstance(shown, str):
        ax.text(x + size / 2, y + size / 2, f"“{shown}”", ha="center", va="center", fontsize=8, style="italic", wrap=True)
    else:
        picture(ax, shown, x, y, size, INK, 1.4)
    ax.text(x + size / 2, y + size + 0.07, caption, ha="center", va="top", fontsize=6.5, color=GREY)


def strip(ax, data, rows, class_index, x, y, pitch=1.08):
    """Ranked pictures from left to right; framed as hit or miss, misses with their class. Returns the hits."""
    hits = 0
    for place, row in enumerate(rows):
        found = int(data.class_index[row])
        hit = found == class_index
        colour = FAINT if class_index is None else HIT if hit else MISS
        picture(ax, data.load(int(row)), x + place * pitch, y, colour=colour, linewidth=0.8 if class_index is None else 1.6)
        if not hit:
            ax.text(x + place * pitch + 0.5, y + 1.07, short(data.classes[found]), ha="center", va="top", fontsize=6.5,
                    color=INK if class_index is None else MISS)
        hits += hit
    return hits


@styled
def rank_strips(data, queries, ranked, scores=None, names=None):
    """One row per query: its picture and its k best gallery pictures, green where the class is the same, else red.

    queries: q rows of `data`, or words, or PIL images (then the true class is unknown and frames are neutral);
    ranked: [q, k] rows of `data`, best first; scores: q numbers, the average precision, for the row's end (default: the
    hits); names: q captions in the place of domain and class.
    """
    k = len(ranked[0])
    left, pitch = 1.65, 1.36
    width = left + k * 1.08 + 1.0
    figure, ax = board(width, len(queries) * pitch + 0.05, min(0.72, WIDTH / width))
    for i, (query, rows) in enumerate(zip(queries, ranked)):
        y = i * pitch + 0.05
        shown, caption, class_index = describe_query(data, query)
        query_card(ax, shown, names[i] if names else caption, 0.15, y)
        arrow(ax, 1.26, y + 0.5, 1.54)
        hits = strip(ax, data, rows, class_index, left, y)
        text = f"AP {scores[i]:.2f}" if scores is not None else f"{hits} of {k}" if class_index is not None else ""
        ax.text(left + k * 1.08 + 0.05, y + 0.5, text, va="center", fontsize=7.5)
    return figure


def arrow(ax, start, y, end):
    ax.annotate("", (end, y), (start, y), arrowprops=dict(arrowstyle="-|>", color=GREY, lw=1.0, shrinkA=0, shrinkB=0,
                                                          mutation_scale=8))


@styled
def compare_ranks(data, query, ranked_by_method, scores_by_method=None):
    """The same query, or several, under several methods: one strip each.

    query: a row of `data`, or q of them; ranked_by_method: {method: [k] or [q, k] rows of `data`};
    scores_by_method: {method: q numbers}, the average precision, for the row's end (default: the hits).
    """
    queries = np.atleast_1d(np.asarray(query)).tolist()
    ranked = {method: np.atleast_2d(np.asarray(rows)) for method, rows in ranked_by_method.items()}
    k = next(iter(ranked.values())).shape[1]
    left, pitch, block = 3.2, 1.36, 1.36 * len(ranked) + 0.3
    width = left + k * 1.08 + 1.0
    figure, ax = board(width, len(queries) * block - 0.25, min(0.72, WIDTH / width))
    for i, row in enumerate(queries):
        top = i * block + 0.05
        shown, caption, class_index = describe_query(data, row)
        query_card(ax, shown, caption, 0.15, top + (len(ranked) - 1) * pitch / 2)
        for j, (method, rows) in enumerate(ranked.items()):
            y = top + j * pitch
            ax.text(left - 0.2, y + 0.5, method.replace(" ", "\n", 1), ha="right", va="center", fontsize=7.5,
                    fontweight="bold" if method.startswith("ProS") else "normal")
            hits = strip(ax, data, rows[i], class_index, left, y)
            text = f"{hits} of {k}" if scores_by_method is None else f"AP {scores_by_method[method][i]:.2f}"
            ax.text(left + k * 1.08 + 0.05, y + 0.5, text, va="center", fontsize=7.5)
    return figure


@styled
def benchmark_banner(data, query, ranked_by_method, title=None):
    """The README's first picture: one query, and what each method retrieves for it. `data` laid out at 224 pixels looks
    best; a row number means the same drawing at every size."""
    ranked = {method: [int(row) for row in rows] for method, rows in ranked_by_method.items()}
    k = len(next(iter(ranked.values())))
    left, top, pitch = 2.9, 0.75, 1.72
    width, height = left + k * 1.08 + 0.1, top + pitch * len(ranked) + 0.1
    figure, ax = board(width, height, WIDTH / width)
    shown, caption, class_index = describe_query(data, int(query))
    middle = top + (pitch * len(ranked) - 0.35) / 2
    picture(ax, shown, 0.15, middle - 0.95, 1.9, INK, 1.6)
    ax.text(1.1, middle + 1.05, caption, ha="center", va="top", fontsize=9)
    ax.text(0.15, 0.12, title or "Draw it. Find it in another style.", fontsize=13, fontweight="bold", va="top")
    for i, (method, rows) in enumerate(ranked.items()):
        y = top + i * pitch
        hits = strip(ax, data, rows, class_index, left, y + 0.27)
        ax.text(left, y + 0.16, method, fontsize=9, fontweight="bold", va="bottom")
        ax.text(left + k * 1.08 - 0.08, y + 0.16, f"{hits} of {k}", fontsize=9, ha="right", va="bottom", color=GREY)
        arrow(ax, 2.2, middle, 2.65) if not i else None
    return figure


@styled
def similarity_matrix(values, row_images, column_labels, row_labels=None, title=None):
    """Cosines [r, c] as a heat map, pictures at the left and words on top; each row's best is framed."""
    values = np.asarray(values, dtype=float)
    rows, columns = values.shape
    unit = min(0.55, (WIDTH - 2.2) / columns)
    left, top, right = 1.7 if row_labels else 0.8, 0.95 + 0.3 * bool(title), 0.2
    figure = NotebookFigure(figsize=(left + columns * unit + right, top + rows * unit + 0.1))
    width, height = figure.get_size_inches()
    ax = figure.add_axes([left / width, 0.1 / height, columns * unit / width, rows * unit / height])
    seaborn.heatmap(values, ax=ax, cmap=seaborn.light_palette("#0077BB", as_cmap=True), annot=unit > 0.38, fmt=".2f",
                    annot_kws=dict(fontsize=6.5), cbar=False, linewidths=1.5, linecolor="white", xticklabels=False,
                    yticklabels=False)
    for row in range(rows):
        ax.add_patch(Rectangle((int(values[row].argmax()), row), 1, 1, fill=False, ec=INK, lw=1.2, zorder=5))
        pictures = figure.add_axes([(left - 0.1 - 0.94 * unit) / width, 1 - (top + (row + 0.97) * unit) / height,
                                    0.94 * unit / width, 0.94 * unit / height])
        pictures.imshow(thumbnail(row_images[row]))
        pictures.axis("off")
        if row_labels:
            ax.text(-(0.2 + unit) / unit, row + 0.5, short(row_labels[row]), ha="right", va="center", fontsize=7)
    for column, name in enumerate(column_labels):
        ax.text(column + 0.5, -0.12, short(name, 20), rotation=45, ha="left", va="bottom", rotation_mode="anchor", fontsize=7)
    if title:
        figure.text(0.1 / width, 1 - 0.12 / height, title, fontsize=9, fontweight="bold", va="top")
    return figure


# --- Features in a plane ----------------------------------------------------------------------------------------------

def umap_points(features, seed=0, neighbours=15):
    """UMAP of features [n, D] by cosine -> points [n, 2], an array; the same seed gives the same points."""
    features = np.asarray(features, dtype=np.float32)
    if len(features) < 5:
        raise UserError(f"UMAP needs 5 features or more, not {len(features)}.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import umap                                    # compiles for some seconds: only when it is wanted
        reducer = umap.UMAP(n_neighbors=min(neighbours, len(features) - 1), metric="cosine", random_state=seed, n_jobs=1,
                            low_memory=True, init="spectral" if len(features) > 30 else "random")
        return reducer.fit_transform(features)


def label_colours(names):
    """{name: colour}: a domain's own colour where the names are domains, else colours around the circle."""
    if len(names) <= 8:
        return domain_colours(names)
    return dict(zip(names, seaborn.husl_palette(len(names), s=0.75, l=0.58).as_hex()))


@styled
def feature_map(points, labels, names=None, images=None, title=None, number=None):
    """Points [n, 2] coloured by label, some of them as pictures.

    labels: n names, or n indices into `names`; images: n PIL images, or a function of the position that loads one;
    number: a text for the corner, for example "neighbour purity by class 0.71".
    """
    return feature_maps([dict(points=points, labels=labels, names=names, images=images, title=title, number=number)])


@styled
def feature_maps(panels, columns=None):
    """Several maps side by side; each panel is a dict of the arguments of `feature_map`."""
    columns = columns or min(3, len(panels))
    rows = -(-len(panels) // columns)
    side = min(5.2, WIDTH / columns)
    figure = NotebookFigure(figsize=(side * columns, side * 1.06 * rows), layout="constrained")
    figure.get_layout_engine().set(wspace=0.04, hspace=0.04)
    for i, panel in enumerate(panels):
        draw_map(figure.add_subplot(rows, columns, i + 1), side, **panel)
    return figure


def draw_map(ax, side, points, labels, names=None, images=None, title=None, number=None):
    """One panel of `feature_maps`, `side` inches wide."""
    points = np.asarray(points)
    labels = [names[int(x)] if names is not None else str(x) for x in labels]
    present = [x for x in names or sorted(set(labels)) if x in set(labels)]
    colours = label_colours(present)
    ax.scatter(*points.T, s=9 if len(points) > 300 else 16, c=[colours[x] for x in labels], alpha=0.75, linewidths=0)
    ax.set(xticks=[], yticks=[], box_aspect=1, title=title or "")
    ax.margins(0.06)
    for spine in ax.spines.values():
        spine.set(visible=True, color=FAINT)
    if images is not None:
        load = images if callable(images) else images.__getitem__
        for i in spread(points, 0.075 if side > 4 else 0.11):
            zoom = 0.06 * side * 72 / (small := thumbnail(load(i), 64)).width
            ax.add_artist(AnnotationBbox(OffsetImage(small, zoom=zoom), points[i], pad=0.12, frameon=True,
                                         bboxprops=dict(ec=colours[labels[i]], lw=1.1, boxstyle="round,pad=0.12")))
    if number:
        ax.text(0.02, 0.02, number, transform=ax.transAxes, fontsize=7.5, va="bottom", zorder=9,
                bbox=dict(fc="white", ec="none", alpha=0.85, pad=1.5))
    handles = [ax.scatter([], [], s=20, color=colours[x], label=short(x, 16)) for x in present]
    ax.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=4 if side > 4 else 3,
              columnspacing=0.8, handletextpad=0.1, fontsize=6.5)


def spread(points, distance, seed=0):
    """Positions of points that lie at least `distance` apart (in units of the plot's width), in a seeded random order."""
    span = np.ptp(points, axis=0).clip(1e-9)
    scaled, chosen = points / span, []
    for i in np.random.default_rng(seed).permutation(len(points)):
        if all(np.abs(scaled[i] - scaled[j]).max() >= distance for j in chosen):
            chosen.append(int(i))
    return chosen


@styled
def unit_map(units, names, labels=None, title=None):
    """Prompt units [n, W] in the plane of their two principal components, names written beside them.

    labels: n groups that set the colour (default: one colour). A name that would overlap others is left out.
    """
    units = torch.as_tensor(units).detach().float().cpu()
    centred = units - units.mean(0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    u = u * u.gather(0, u.abs().argmax(0, keepdim=True)).sign()      # the sign of a component is arbitrary: fix it
    points = (u * s)[:, :2].numpy()
    shares = (s.square() / s.square().sum()).tolist()

    figure = NotebookFigure(figsize=(WIDTH * 0.75, WIDTH * 0.55), layout="constrained")
    ax = figure.add_subplot()
    groups = [str(x) for x in labels] if labels is not None else [""] * len(units)
    colours = label_colours(list(dict.fromkeys(groups))) if labels is not None else {"": "#0077BB"}
    for group, colour in colours.items():
        mine = [i for i, x in enumerate(groups) if x == group]
        ax.scatter(*points[mine].T, s=22, color=colour, label=short(group, 20), linewidths=0)
    ax.set(xlabel=f"first principal component ({shares[0]:.0%})", ylabel=f"second principal component ({shares[1]:.0%})",
           title=title or "")
    ax.margins(0.08)
    if labels is not None:
        ax.legend(loc="best", fontsize=7)
    write_names(figure, ax, points, names)
    return figure


def write_names(figure, ax, points, names):
    """Names beside points, each at the first of eight places where it covers neither a point nor another name."""
    figure.draw_without_rendering()
    taken, dots = [], ax.transData.transform(points)
    places = [(5, 0, "left", "center"), (-5, 0, "right", "center"), (0, 5, "center", "bottom"), (0, -5, "center", "top"),
              (4, 4, "left", "bottom"), (-4, 4, "right", "bottom"), (4, -4, "left", "top"), (-4, -4, "right", "top")]
    for point, name in zip(points, names):
        for dx, dy, ha, va in places:
            text = ax.annotate(short(name, 18), point, (dx, dy), textcoords="offset points", ha=ha, va=va, fontsize=6.5,
                               color=INK, annotation_clip=False)
            box = text.get_window_extent()
            if not (any(box.overlaps(other) for other in taken) or box.count_contains(dots)):
                text.set_path_effects([patheffects.withStroke(linewidth=2, foreground="white")])
                taken.append(box)
                break
            text.remove()


# --- Training and results -----------------------------------------------------------------------------------------------

@styled
def training_curves(history):
    """Loss, accuracy and validation mAP@200 per epoch over the stages; the kept epoch is ringed."""
    figure = NotebookFigure(figsize=(WIDTH, 2.5), layout="constrained")
    axes = figure.subplots(1, 3)
    epochs = np.arange(1, len(history) + 1)
    stages = history["stage"].to_numpy()
    border = int((stages == stages[0]).sum()) + 0.5
    for ax, column, name in zip(axes, ("loss", "accuracy", "val_mAP@200"),
                                ("Training loss", "Training accuracy", "mAP@200 on validation classes")):
        values = history[column].to_numpy(float)
        for stage in dict.fromkeys(stages):
            mine = stages == stage
            ax.plot(epochs[mine], values[mine], "o-", ms=3.5, color="#0077BB" if stage == 1 else FLAME,
                    label=f"stage {stage}")
        ax.set(title=name, xlabel="epoch", xlim=(0.4, len(history) + 0.6))
        ax.xaxis.get_major_locator().set_params(integer=True)
        if border < len(history):
            ax.axvline(border, color=FAINT, lw=1, ls=(0, (3, 3)), zorder=0)
    best = history["val_mAP@200"].astype(float)
    if best.notna().any():
        place, value = int(best.to_numpy(float, na_value=-1).argmax()) + 1, best.max()
        axes[2].plot(place, value, "o", ms=9, mfc="none", mec=INK, mew=1.2)
        axes[2].annotate(f"kept: {value:.3f}", (place, value), (0, -14), textcoords="offset points", ha="center", fontsize=7.5)
    axes[0].legend(loc="upper right")
    return figure


@styled
def results_bars(results, metric="mAP@200", chance=None):
    """Bars of `metric` per held-out domain and method, one panel per protocol and gallery; seeds as whiskers from the
    least to the best. results: rows of `evaluate`; chance: a number for a dashed line."""
    results = results.assign(case=results["protocol"] + results["gallery"].map(", {} gallery".format),
                             domain=results["unseen_domain"].map(short))
    cases = list(dict.fromkeys(results["case"]))
    methods = sorted(set(results["method"]), key=lambda m: (list(METHOD_COLOURS) + [m]).index(m))
    figure = NotebookFigure(figsize=(WIDTH if len(cases) > 1 else WIDTH * 0.75, 2.7), layout="constrained")
    axes = figure.subplots(1, len(cases), sharey=True, squeeze=False)[0]
    spare = iter(seaborn.color_palette("Set2", len(methods)).as_hex())
    colours = {m: METHOD_COLOURS.get(m) or next(spare) for m in methods}
    for ax, case in zip(axes, cases):
        seaborn.barplot(results[results["case"] == case], x="domain", y=metric, hue="method", hue_order=methods,
                        palette=colours, errorbar=("pi", 100), err_kws=dict(linewidth=1, color=INK), capsize=0.15,
                        saturation=1, gap=0.08, ax=ax, legend=ax is axes[0])
        for bars in ax.containers:
            if hasattr(bars, "patches"):
                ax.bar_label(bars, fmt="%.3f" if len(cases) == 1 else "%.2f", fontsize=6, padding=2, color=GREY)
        ax.set(title=case, xlabel="held-out domain", ylabel=metric if ax is axes[0] else "")
        if chance is not None:
            ax.axhline(chance, color=INK, lw=0.8, ls=(0, (4, 3)))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(methods))
    axes[0].get_legend().remove()
    return figure


# --- The tutorial's figures ---------------------------------------------------------------------------------------------

def tutorial_figures(run, models, folder):
    """Draw what `python -m prosutils tutorial` promises into `folder`; returns the paths.

    run: Experiment; models: {"zero-shot", "heads", "pros"}. ranks_<domain>.png, umap_<domain>.png, training.png, and
    results.png from the rows of this preset in the run's results.csv.
    """
    domain = run.split.unseen_domain
    results = pd.read_csv(run.artifacts / "results.csv")
    figures = {f"ranks_{domain}": tutorial_ranks(run, models), f"umap_{domain}": tutorial_umap(run, models["pros"]),
               "training": training_curves(run.fit("pros", progress=False)[1]),
               "results": results_bars(results[results["preset"] == run.config.preset])}
    return [save(figure, Path(folder) / f"{name}.png") for name, figure in figures.items()]


def embed_rows(model, data, rows):
    """Features [n, D] of some rows of `data`, prepared as the model wants them."""
    return embed(model, Images(data, rows, model_transform(model), inverted_domains(model.config.switches)))


def tutorial_ranks(run, models, queries=6, k=9):
    """The first ranks of some random queries of the held-out domain, each of another class, zero-shot against ProS."""
    data, split = run.data, run.split
    order = split.query[torch.randperm(len(split.query), generator=torch.Generator().manual_seed(0))].tolist()
    chosen = torch.tensor(list({int(data.class_index[row]): row for row in order}.values())[:queries])
    ranked, scores = {}, {}
    for model in (models["zero-shot"], models["pros"]):
        query, gallery = embed_rows(model, data, chosen), embed_rows(model, data, split.gallery)
        options = switch_options(model.config.switches)
        ranked[model.method] = split.gallery[rank(query, gallery, options["similarity"], k)[1]]
        scores[model.method] = query_metrics(query, data.class_index[chosen], gallery, data.class_index[split.gallery],
                                             **options)["AP@200"].tolist()
    return compare_ranks(data, chosen, ranked, scores)


def tutorial_umap(run, model, classes=12):
    """ProS's features of unseen classes, from the held-out domain and the gallery, by domain and by class."""
    data, split = run.data, run.split
    names = split.unseen_classes[:classes]
    rows = data.rows([split.unseen_domain, split.gallery_domain], names)
    features = embed_rows(model, data, rows)
    points, panels = umap_points(features), []
    for kind, index, labels in (("domain", data.domain_index, data.domains), ("class", data.class_index, data.classes)):
        purity = neighbour_purity(features, index[rows])
        panels.append(dict(points=points, labels=index[rows], names=labels, title=f"{model.method}, unseen classes, by {kind}",
                           images=lambda i: data.load(int(rows[i])), number=f"neighbour purity by {kind} {purity:.2f}"))
    return feature_maps(panels)


def save(figure, path):
    """Write a figure as PNG, beside the target first and moved there in one step. UserError without permission."""
    part = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(part, format="png", dpi=figure.dpi)
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): choose another folder.") from None
    return path
