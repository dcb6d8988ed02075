"""What notebook 03 draws: what each stage reads, the toy's attention, and what prompts do to a trained model."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import FancyBboxPatch, Rectangle
from PIL import Image

from ..domains import ImageDomains
from .pictures import (
    FAINT,
    FLAME,
    FROZEN,
    GREY,
    HIT,
    INK,
    MISS,
    STEP,
    WIDTH,
    NotebookFigure,
    arrow,
    board,
    describe_query,
    picture,
    query_card,
    short,
    styled,
    thumbnail,
)

SMALL = 8  # points; nothing here is smaller

# --- What each stage reads ----------------------------------------------------------------------------------

#: (heading, which units are there, who reads them, note) of a picture in training, twice, and of a query.
PASSES = (
    ("stage 1", "own", "The picture's own two units enter the image tower."),
    ("stage 2", "others", "The simulator reads the picture and all units; the picture's own two are zero."),
    ("test", "all", "The simulator reads the picture and all units; none is the picture's own."),
)


@styled
def three_passes(data: ImageDomains, trained: int, query: int, domains: Sequence[str], classes: Sequence[str]):
    """Which units a picture meets in stage 1, in stage 2 and in a test, and who reads them.

    trained: a row of `data` in a training domain and a seen class, both among the names; query: a row that has
    neither; domains, classes: some names, whose units are drawn.
    """
    figure, ax = board(12.6, 6.1, WIDTH / 12.6)
    starts = {"picture": 1.35, "domains": 2.85, "classes": 5.25}
    for key, text in (("domains", "domain units"), ("classes", "class units")):
        ax.text(starts[key], 0.25, text, fontsize=9, fontweight="bold", va="center")
    for i, (heading, kind, note) in enumerate(PASSES):
        y, row = 0.55 + i * 1.9, trained if kind != "all" else query
        shown, caption, _ = describe_query(data, row)
        ax.text(0.1, y + 0.5, heading, fontsize=9.5, fontweight="bold", va="center")
        query_card(ax, shown, caption, starts["picture"], y, 1.0, SMALL)
        own = (data.domains[data.domain_index[row]], data.classes[data.class_index[row]])
        for key, names in (("domains", domains), ("classes", classes)):
            rack(ax, starts[key], y + 0.1, names, own, kind)
        ax.text(starts["classes"] + 0.42 * len(classes) + 0.02, y + 0.27, "…", fontsize=10, va="center", color=GREY)
        ax.text(starts["domains"], y + 1.58, note, fontsize=SMALL, color=INK, va="center")
        readers(ax, y + 0.15, simulator=kind != "own", trains=kind == "others")
    return figure


def rack(ax: Axes, x: float, y: float, names: Sequence[str], own: Sequence[str], kind: str):
    """Units side by side with their names: kind "own" (others left out), "others" (the own ones zero) or "all"."""
    for i, name in enumerate(names):
        left, mine = x + 0.42 * i, name in own
        look: dict = dict(fc=FROZEN, ec=GREY)
        if kind == "own":
            look = dict(fc=FLAME, ec=INK) if mine else dict(fc="white", ec=FAINT, ls=(0, (2, 2)))
        elif mine and kind == "others":
            look = dict(fc="white", ec=INK, hatch="////")
        ax.add_patch(Rectangle((left, y), 0.34, 0.34, lw=1.0, **look))
        if mine and kind == "others":
            ax.text(
                left + 0.17,
                y + 0.17,
                "0",
                ha="center",
                va="center",
                fontsize=9,
                fontweight="bold",
                backgroundcolor="white",
            ).set_bbox(dict(fc="white", ec="none", pad=0.8))
        weight = dict(fontweight="bold", color=INK) if mine else dict(color=GREY)
        ax.text(
            left + 0.26,
            y + 0.44,
            short(name, 11),
            rotation=45,
            ha="right",
            va="top",
            fontsize=SMALL,
            rotation_mode="anchor",
            **weight,
        )


def readers(ax: Axes, y: float, simulator: bool, trains: bool):
    """The boxes at the right: units go into the image tower, or into the simulator, whose prompts go there."""

    def box(x, width, text, colour):
        ax.add_patch(
            FancyBboxPatch((x, y), width, 0.7, boxstyle="round,pad=0,rounding_size=0.08", fc=colour, ec=INK, lw=0.9)
        )
        ax.text(
            x + width / 2,
            y + 0.35,
            text,
            ha="center",
            va="center",
            fontsize=9,
            color="white" if colour == FLAME else INK,
        )

    if simulator:
        arrow(ax, (8.1, y + 0.35), (8.5, y + 0.35))
        box(8.5, 1.3, "simulator", FLAME if trains else FROZEN)
        arrow(ax, (9.8, y + 0.35), (10.75, y + 0.35), FLAME if trains else GREY)
        ax.text(10.27, y + 0.18, "prompts", ha="center", va="bottom", fontsize=SMALL)
    else:
        arrow(ax, (8.1, y + 0.35), (10.75, y + 0.35), FLAME)
    box(10.75, 1.6, "image tower", FROZEN)


# --- The toy ------------------------------------------------------------------------------------------------

#: Names, and how matplotlib draws them.
TOY_COLOURS = {
    "orange": "#EE7733", "blue": "#0077BB", "cyan": "#33BBEE", "pink": "#EE3377", "green": "#009944", "grey": "#666666",
}  # fmt: skip
TOY_SHAPES = {"circle": "o", "square": "s", "triangle": "^", "star": "*", "cross": "X", "diamond": "D"}


@styled
def toy_attention(
    attention: Mapping[str, torch.Tensor], seen: torch.Tensor, asked: int, scores: pd.DataFrame | None = None
):
    """Attention to every class unit of the toy, a colour (row) and a shape (column) each, one grid per simulator.

    attention: {title: [classes]}, any number where a class has no unit; seen: [classes], whether it has one; asked:
    the class of the pictures, framed; scores: rows of (simulator, seed, score), the share of right answers on unseen
    classes, drawn beside the grids.
    """
    side = 2.35
    figure = NotebookFigure(figsize=(WIDTH, side + 0.75), layout="constrained")
    ratios = [1] * len(attention) + [0.85] * (scores is not None)
    axes = figure.subplots(1, len(ratios), width_ratios=ratios, squeeze=False)[0]
    top = max(float(values[seen].max()) for values in attention.values())
    for ax, (title, values) in zip(axes, attention.items()):
        for k, has_unit in enumerate(seen.tolist()):
            row, column = divmod(k, len(TOY_SHAPES))
            colour, marker = list(TOY_COLOURS.values())[row], list(TOY_SHAPES.values())[column]
            if has_unit:
                shade = float(values[k]) / top
                ax.add_patch(Rectangle((column, row), 1, 1, fc=INK, alpha=0.85 * shade, ec="none"))
                ax.plot(column + 0.5, row + 0.5, marker, color=colour, ms=9, mec="white", mew=0.8)
            else:
                ax.plot(column + 0.5, row + 0.5, marker, mfc="none", mec=FAINT, ms=7, mew=0.9)
            if k == asked:
                ax.add_patch(Rectangle((column, row), 1, 1, fill=False, ec=HIT, lw=2.4, zorder=5))
                ax.plot(column + 0.5, row + 0.5, marker, color=colour, ms=9, alpha=0.9)
        ax.set(xlim=(0, 6), ylim=(6, 0), aspect="equal", title=title)
        ax.set_xticks(np.arange(6) + 0.5, TOY_SHAPES, rotation=45, fontsize=SMALL, ha="right", rotation_mode="anchor")
        ax.set_yticks(np.arange(6) + 0.5, TOY_COLOURS if ax is axes[0] else [""] * 6, fontsize=SMALL)
        ax.tick_params(length=0)
        ax.spines[:].set(visible=True, color=FAINT)
    if scores is not None:
        toy_scores(axes[-1], scores, list(attention))
    return figure


def toy_scores(ax: Axes, scores: pd.DataFrame, order: Sequence[str]):
    """A dot for each seed, a line at their mean, the mean in figures."""
    for place, name in enumerate(order):
        values = scores[scores.simulator == name].score.to_numpy()
        ax.plot([place] * len(values), values, "o", ms=5, color=FLAME if "reverse" in name else GREY, alpha=0.8)
        ax.hlines(values.mean(), place - 0.28, place + 0.28, INK, lw=1.4)
        ax.text(place, values.max() + 0.05, f"{values.mean():.2f}", ha="center", fontsize=9, fontweight="bold")
    ax.axhline(1 / 36, color=INK, lw=0.8, ls=(0, (4, 3)))
    ax.text(len(order) - 0.55, 1 / 36 + 0.01, "chance", fontsize=SMALL, ha="right", va="bottom")
    ax.set(title="unseen classes, right", ylim=(0, 1), xlim=(-0.5, len(order) - 0.5))
    ax.set_xticks(range(len(order)), [name.replace(" ", "\n", 1) for name in order], fontsize=SMALL)
    ax.tick_params(axis="y", labelsize=SMALL)


# --- What prompts do to a trained model ---------------------------------------------------------------------


@styled
def prompt_effects(table: pd.DataFrame, controls: Mapping[str, float]):
    """mAP@200 of a model that is read with its own prompts, with others and with none; a panel per setting.

    table: rows of (setting, prompts, mAP, difference, low, high), the difference from "own" and its paired interval;
    controls: {name: mAP} for dashed lines. A whisker is the interval of the difference, drawn from the line of "own".
    """
    settings, kinds = list(dict.fromkeys(table.setting)), list(dict.fromkeys(table.prompts))
    figure = NotebookFigure(figsize=(WIDTH, 1.3 + 0.3 * len(kinds)), layout="constrained")
    axes = figure.subplots(1, len(settings), sharex=True, sharey=True, squeeze=False)[0]
    for ax, setting in zip(axes, settings):
        rows = table[table.setting == setting].set_index("prompts")
        own = rows.loc["own", "mAP"]
        ax.axvline(own, color=FLAME, lw=1.2, zorder=0)
        for place, kind in enumerate(kinds):
            row = rows.loc[kind]
            apart = row.high < 0 or row.low > 0
            if kind != "own":
                ax.hlines(place, own + row.low, own + row.high, INK if apart else GREY, lw=1.6)
            ax.plot(row.mAP, place, "o", ms=7, color=FLAME if kind == "own" else INK if apart else "white", mec=INK)
            ax.annotate(
                f"{row.mAP:.3f}", (row.mAP, place), (0, 6), textcoords="offset points", ha="center", fontsize=SMALL
            )
        for name, value in controls.items():
            ax.axvline(value, color=GREY, lw=1, ls=(0, (4, 3)), zorder=0)
            ax.annotate(name, (value, len(kinds) - 0.42), fontsize=SMALL, ha="center", va="center", color=INK).set_bbox(
                dict(fc="white", ec="none", pad=1)
            )
        ax.set(title=setting, xlabel="UCDR mAP@200", ylim=(len(kinds) - 0.2, -0.7))
        ax.set_yticks(range(len(kinds)), kinds, fontsize=9)
        ax.tick_params(axis="x", labelsize=SMALL)
    return figure


@styled
def ranks_and_attention(data: ImageDomains, queries: Sequence[Mapping]):
    """Queries read with several prompts: where the class token looks, and the ranks that come of it.

    queries: dicts of `row` (of `data`), `label`, and `readings`, {name: dict of map [h, w], share, ranked [k] rows, ap,
    lender}: share of the attention that goes to the prompts; lender is the row of the picture whose prompts were used,
    or None.
    """
    first = next(iter(queries[0]["readings"].values()))
    left, k, count = 5.3, len(first["ranked"]), len(queries[0]["readings"])
    block, width = LINE * count + 0.3, left + k * STEP + 1.3
    figure, ax = board(width, len(queries) * block + 0.2, WIDTH / width)
    for x, text in ((left - 1.5, "attention"), (left, "ranks")):
        ax.text(x, 0.12, text, fontsize=9, fontweight="bold", va="center")
    for i, query in enumerate(queries):
        top, (shown, caption, _) = i * block + 0.35, describe_query(data, query["row"])
        query_card(ax, shown, f"{caption}\n{query['label']}", 0.15, top + (LINE * count - 3.0) / 2, 1.6, SMALL)
        highest = max(float(reading["map"].max()) for reading in query["readings"].values())
        for j, (name, reading) in enumerate(query["readings"].items()):
            one_reading(ax, data, shown, query["row"], name, reading, left, top + j * LINE, highest)
    return figure


LINE = 1.42  # from one reading to the next


def one_reading(
    ax: Axes,
    data: ImageDomains,
    shown: Image.Image,
    row: int,
    name: str,
    reading: Mapping,
    x: float,
    y: float,
    highest: float,
):
    """One line of `ranks_and_attention`: whose prompts, the attention map, the ranks and their AP."""
    lender, weight = reading["lender"], "bold" if name == "own" else "normal"
    ax.text(x - 1.6 - 0.7 * (lender is not None), y + 0.5, name.replace(" ", "\n", 1), ha="right", va="center")
    ax.texts[-1].set(fontsize=9, fontweight=weight)
    if lender is not None:
        picture(ax, data.load(int(lender)), x - 2.25, y + 0.2, 0.6)
    ax.imshow(glow(shown, reading["map"], highest), extent=(x - 1.5, x - 0.5, y + 1, y), aspect="auto", zorder=3)
    ax.text(x - 1.0, y + 1.05, f"prompts {reading['share']:.0%}", ha="center", va="top", fontsize=SMALL)
    wanted = int(data.class_index[row])
    for place, found in enumerate(reading["ranked"].tolist()):
        left, known = x + place * STEP, int(data.class_index[found])
        picture(ax, data.load(found), left, y, colour=HIT if known == wanted else MISS, linewidth=1.6)
        if known != wanted:
            ax.text(left + 0.5, y + 1.05, short(data.classes[known], 10), ha="center", va="top")
            ax.texts[-1].set(fontsize=SMALL, color=MISS)
    ax.text(x + len(reading["ranked"]) * STEP + 0.1, y + 0.5, f"AP {reading['ap']:.2f}", va="center", fontsize=9)


def glow(shown: Image.Image, values: torch.Tensor, highest: float, side: int = 224):
    """A picture, pale, under a map [h, w] of weights in orange, which is full where the weight is `highest`."""
    small = Image.fromarray(np.asarray(values, dtype=np.float32) / max(highest, 1e-9))
    strength = np.asarray(small.resize((side, side), Image.Resampling.BILINEAR)).clip(0, 1)[..., None] ** 0.8
    pale = 0.45 + 0.55 * np.asarray(thumbnail(shown, side).resize((side, side)).convert("L"))[..., None] / 255
    mixed = (1 - 0.9 * strength) * pale + 0.9 * strength * np.array(to_rgb(FLAME))
    return Image.fromarray((mixed.clip(0, 1) * 255).astype(np.uint8))
