"""Diagrams of the method: which images a split uses, which units a sample meets, what flows where."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle
from PIL import Image

from .. import pictonet
from ..files import UserError
from ..splits import Split
from .pictures import FAINT, FLAME, FROZEN, GREY, HIT, INK, WIDTH, NotebookFigure, arrow, board, short, styled

# --- Who may see what ---------------------------------------------------------------------------------------

PART_COLOURS = {"training": "#9CC7E3", "validation": "#DDE4EB", "gallery": HIT, "queries": FLAME}


@styled
def split_map(splits: Sequence[Split]):
    """Which images a split trains on, validates on, takes queries from and searches; one panel for each of `splits`.

    Rows are domains, columns are groups of classes, as wide as their number; the numbers count images.
    White: unused.
    """
    columns = min(2, len(splits))
    rows = -(-len(splits) // columns)
    figure = NotebookFigure(figsize=(WIDTH, 2.5 * rows + 0.3), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06, hspace=0.08)
    for i, split in enumerate(splits):
        draw_split(figure.add_subplot(rows, columns, i + 1), split)
    handles = [Rectangle((0, 0), 1, 1, fc=colour, label=part) for part, colour in PART_COLOURS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def draw_split(ax: Axes, split: Split):
    """One panel of `split_map`: each block of a domain and a group of classes, filled by its images' use."""
    sources = [domain for domain in split.train_domains if domain != split.gallery_domain]
    domains = [split.gallery_domain, *sources] + ([split.unseen_domain] if split.unseen_domain else [])
    groups = {"seen": split.seen_classes, "validation": split.val_classes, "unseen": split.unseen_classes}
    parts = {
        "training": split.train,
        "validation": torch.cat([split.val_query, split.val_gallery]),
        "gallery": split.gallery,
        "queries": split.query,
    }
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
                    ax.text(
                        x + share / 2,
                        y + 0.5,
                        count,
                        ha="center",
                        va="center",
                        fontsize=8,
                        color="white" if part in ("gallery", "queries") else INK,
                    )
                x += share
            ax.add_patch(Rectangle((left, y + 0.06), width, 0.88, fc="none", ec=FAINT, lw=0.7))
        if classes:
            ax.text(
                left + width / 2, -0.12, f"{len(classes)} {group}", ha="center", va="bottom", fontsize=8, color=GREY
            )
        left += width + 0.025
    ax.set(
        xlim=(0, left),
        ylim=(len(domains), 0),
        xticks=[],
        yticks=np.arange(len(domains)) + 0.5,
        yticklabels=[short(domain) for domain in domains],
    )
    ax.set_title(f"{split.protocol}, {split.gallery_kind} gallery", pad=18)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


# --- Which units a sample meets -----------------------------------------------------------------------------

LEARNED, KEPT = dict(fc=FLAME, ec="none"), dict(fc=FROZEN, ec="none")
COMPUTED = dict(fc="white", ec=GREY)  # depends on the image
MASKED = dict(fc="white", ec="#DDE4EB")  # a unit that is left out
ZERO = dict(fc="white", ec=FAINT, hatch="//////")  # a unit set to zero


@styled
def mask_matrix(
    domain_index: torch.Tensor,
    class_index: torch.Tensor,
    domains: Sequence[str],
    classes: Sequence[str],
    kind: str = "own",
    columns: int = 24,
):
    """Which prompt units (columns) each sample (row) meets.

    domain_index, class_index: the samples' own, into `domains` and `classes`; kind: "own" (stage 1, others
    masked) or "others" (stage 2, its own zero). At most `columns` classes are drawn, the samples' first.
    """
    samples = [(domains[int(d)], classes[int(y)]) for d, y in zip(domain_index, class_index)]
    own = [name for name in classes if name in {y for _, y in samples}]
    fill = [name for name in classes if name not in own][: max(0, columns - len(own))]
    shown = [name for name in classes if name in {*own, *fill}]
    units = [*domains, *shown]
    places = [i + 0.6 * (i >= len(domains)) for i in range(len(units))]
    rows = [f"{short(domain)} · {short(name)}" for domain, name in samples]

    left, top = 1.2 + 0.24 * max(map(len, rows)), 0.8 + 0.21 * max(len(short(name)) for name in units)
    width = left + places[-1] + 2.2
    figure, ax = board(width, top + len(rows) + 0.9, min(0.27, WIDTH / width))
    for y, (text, sample) in enumerate(zip(rows, samples), 1):
        ax.text(left - 0.4, top + y - 0.5, text, ha="right", va="center", fontsize=8)
        for i, x in enumerate(places):
            mine = units[i] == sample[i >= len(domains)]
            look = (LEARNED if mine else MASKED) if kind == "own" else (ZERO if mine else KEPT)
            ax.add_patch(Rectangle((left + x + 0.07, top + y - 0.93), 0.86, 0.86, lw=0.7, **look))
    for x, name in zip(places, units):
        ax.text(left + x + 0.5, top - 0.25, short(name), rotation=60, va="bottom", fontsize=8, rotation_mode="anchor")
    more = f", {len(classes) - len(shown)} more not drawn" if len(classes) > len(shown) else ""
    key = "orange: enters; white: masked" if kind == "own" else "grey: enters; hatched: set to zero"
    for x, text in ((0, "domain units"), (places[len(domains)], f"class units{more} ({key})")):
        ax.text(left + x, top + len(rows) + 0.25, text, fontsize=8, color=GREY, va="top")
    return figure


# --- The data flow ------------------------------------------------------------------------------------------

TOKEN, PITCH = 0.22, 0.25  # inches: a token's width, and from one to the next
LOWER, UPPER, RIGHT = 0.80, 2.33, 5.98  # inches: rows of units and of towers; the right half
DOMAINS = ("blueprint", "cross_stitch", "emoji", "mosaic", "stamp")
FAMOUS = ("bear", "guitar", "robot", "tree", "moon", "cat", "ship", "apple", "key", "castle", "house", "fish")
SEQUENCES = (
    "simulator:  $t_M$ | $t_S$ | $P_M$ | $P_S$ | patches  →  CaDP",
    "image tower:  cls | CaDP$_M$ | CaDP$_S$ | patches",
)
EXPLAIN = {
    1: (
        "Stage 1 · learn the prompt units",
        "Of all units only the sample's own two enter\nthe image tower: its domain's and its class's.\n"
        "All others are masked.",
        "image tower:  cls | $P_M[d]$ | $P_S[y]$ | patches",
    ),
    2: (
        "Stage 2 · learn the simulator",
        "The sample's own two units are set to zero,\nas nobody has units for a test image.\n"
        "From the others and from the patches the\nsimulator writes two prompts (CaDP).",
        "\n".join(SEQUENCES),
    ),
    "test": (
        "Test · an unseen domain, an unseen class",
        "All units are there, none is the query's own.\nThe simulator writes the prompts by what the\n"
        "image looks like. No label is used. The emoji\n"
        "of the query's class (framed) should come first.",
        "\n".join(SEQUENCES),
    ),
}


@styled
def token_sequence(stage: int | str, heads: str = "paper"):
    """What enters which tower in `stage` 1, 2 or "test", from the bottom up. What trains is orange.

    The sample is a drawing of PictoNet's far tier: in training a stamp of a seen class, in the test a chalk drawing of
    an unseen one, which ranks emoji of unseen classes. heads: the switch of that name ("paper": projections frozen).
    """
    if stage not in EXPLAIN:
        raise UserError(f"There is no stage {stage!r}. Known: 1, 2, 'test'.")
    seen, unseen = examples("seen"), examples("unseen")
    own, query = ("stamp", seen[1]), ("chalk", unseen[1])
    trained = heads == "released"
    title, note, sequence = EXPLAIN[stage]
    figure, ax = board(WIDTH, 4.75)
    ax.set_ylim(0, 4.75)  # here y goes up, as the data does
    ax.text(0.3, 4.57, title, fontsize=11, fontweight="bold", va="center")
    ax.text(RIGHT, 1.93, note, fontsize=8, va="top", linespacing=1.5)
    ax.text(RIGHT, 0.72, sequence, fontsize=8, va="bottom", linespacing=1.5, color=GREY)
    legend(ax, stage)

    sample = drawing(*(query if stage == "test" else own))
    ax.imshow(sample, extent=(5.05, 5.83, 1.22, 2.0), aspect="auto", zorder=3)
    ax.add_patch(Rectangle((5.05, 1.22), 0.78, 0.78, fill=False, ec=FAINT, lw=0.8, zorder=4))
    image_tower(ax, sample, stage, trained)
    if stage == 1:
        own_units(ax, seen, own)
    else:
        simulator(ax, sample, seen, own if stage == 2 else ())
    if stage == "test":
        gallery_side(ax, unseen, query[1])
    else:
        text_tower(ax, own[1], trained)
    return figure


def examples(part: str):
    """Four well-known classes of a part ("seen", "unseen") of PictoNet's fixed split."""
    return [name for name in FAMOUS if name in pictonet.classes()[part]][:4]


def drawing(domain: str, name: str):
    """The first drawing of a domain of PictoNet's far tier and a class, 112 x 112 pixels."""
    near = {far: name for name, far in pictonet.FAR_DOMAINS.items()}.get(domain, domain)
    record = next(item for item in pictonet.manifest() if item["domain"] == near and item["class"] == name)
    return pictonet.load_drawing(record, 112, "far")


def legend(ax: Axes, stage: int | str):
    """What the fills of the boxes mean."""
    entries = [
        (0, "trains", LEARNED),
        (0.68, "frozen", KEPT),
        (1.36, "computed", COMPUTED),
        (2.22, "masked", MASKED) if stage == 1 else (2.22, "zero", ZERO),
    ]
    for x, text, look in entries[1:3] if stage == "test" else entries:
        ax.add_patch(Rectangle((RIGHT + x, 0.36), 0.13, 0.13, lw=0.8, **look))
        ax.text(RIGHT + x + 0.19, 0.425, text, fontsize=8, va="center")


def box(
    ax: Axes,
    x: float,
    y: float,
    width: float,
    height: float,
    text: str = "",
    trains: bool = False,
    look: dict | None = None,
    fontsize: float = 7.5,
):
    """A token, tower or function, its lower left corner at (x, y); orange if it trains, or as in `look`."""
    look = look or (LEARNED if trains else KEPT)
    outline = "round,pad=0,rounding_size=0.05"
    ax.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=outline, lw=0.8, zorder=3, **look))
    ax.text(
        x + width / 2,
        y + height / 2,
        text,
        ha="center",
        va="center",
        fontsize=fontsize,
        zorder=4,
        color="white" if trains else INK,
    )


def token(ax: Axes, x: float, y: float, text: str = "", trains: bool = False, look: dict | None = None):
    box(ax, x, y, TOKEN, 0.34, text, trains, look, fontsize=8)


def flow(ax: Axes, *points: tuple[float, float], colour: str = GREY):
    """An arrow along straight pieces."""
    ax.plot(*zip(*points[:-1]), color=colour, lw=1.0, zorder=2)
    arrow(ax, points[-2], points[-1], colour)


def patches(ax: Axes, image: Image.Image, x: float, y: float, numbers: Sequence[int]):
    """Patch tokens: pieces of the image, numbered on its 7 x 7 grid."""
    side = image.width // 7
    for i, number in enumerate(numbers):
        row, column = divmod(number, 7)
        left = x + i * PITCH
        token(ax, left, y, look=COMPUTED)
        piece = image.crop((column * side, row * side, (column + 1) * side, (row + 1) * side))
        ax.imshow(piece, extent=(left + 0.02, left + 0.2, y + 0.08, y + 0.26), aspect="auto", zorder=4)
    dots(ax, x + len(numbers) * PITCH, y)


def dots(ax: Axes, x: float, y: float):
    ax.text(x + 0.06, y + 0.17, "…", va="center", ha="center", fontsize=9, color=GREY)


def image_tower(ax: Axes, sample: Image.Image, stage: int | str, trained: bool):
    """The sequence [cls ; prompts ; patches], the tower above it, and the feature read at the class token."""
    token(ax, 0.30, UPPER, "cls", trains=stage == 2)
    for x, kind in ((0.60, "M"), (0.85, "S")):
        if stage == 1:
            token(ax, x, UPPER, f"$P_{kind}$", trains=True)
        else:
            token(ax, x, UPPER, f"${kind}$", look=COMPUTED)
    patches(ax, sample, 1.20, UPPER, range(14, 28))
    flow(ax, (5.44, 2.0), (5.44, UPPER + 0.17), (4.83, UPPER + 0.17))
    ax.text(5.13, UPPER + 0.23, "49 patches", ha="center", va="bottom", fontsize=8, color=GREY)
    box(ax, 0.30, 3.0, 4.5, 0.36, "image tower" + "   (dropout 0.5 on its input)" * (stage == 1))
    for x in (0.41, 0.71, 0.96, 2.82):
        flow(ax, (x, UPPER + 0.34), (x, 2.99))
    flow(ax, (0.41, 3.36), (0.41, 3.59))
    box(ax, 0.30, 3.6, 0.86, 0.26, "projection", trains=trained and stage == 2)
    flow(ax, (0.41, 3.86), (0.41, 4.11), (5.29, 4.11))
    ax.text(0.5, 4.16, "image feature", fontsize=8, color=GREY, va="bottom")
    goal = "cosine  →  ranks" if stage == "test" else "cosine / 0.07  →  cross-entropy"
    box(ax, 5.3, 3.94, 2.04, 0.34, goal)


def own_units(ax: Axes, classes: Sequence[str], own: Sequence[str]):
    """Stage 1: the racks of units; the sample's own two go up."""
    for x, goal, height in zip(racks(ax, classes, own, "own"), (0.71, 0.96), (1.55, 1.85)):
        flow(ax, (x, LOWER + 0.34), (x, height), (goal, height), (goal, UPPER - 0.01), colour=FLAME)


def racks(ax: Axes, classes: Sequence[str], own: Sequence[str], kind: str):
    """Units; kind: "own" (others masked), "others" (own zero) or "all". Returns where `own` stand."""
    found = []
    for left, names, label in ((1.20, DOMAINS, "domain units $P_M$"), (2.55, classes, "class units $P_S$")):
        for i, name in enumerate(names):
            x, mine = left + i * PITCH, name in own
            if kind == "own":
                token(ax, x, LOWER, trains=mine, look=None if mine else MASKED)
            else:
                token(ax, x, LOWER, "0" if mine else "", look=ZERO if mine else None)
            look = dict(color=INK, fontweight="bold") if mine else dict(color=GREY)
            ax.text(
                x + 0.16,
                LOWER - 0.06,
                short(name),
                rotation=45,
                ha="right",
                va="top",
                fontsize=8,
                rotation_mode="anchor",
                **look,
            )
            found += [x + TOKEN / 2] if mine else []
        ax.text(left, 0.17, label, fontsize=8, va="center")
    dots(ax, 2.55 + len(classes) * PITCH, LOWER)
    return found


def simulator(ax: Axes, sample: Image.Image, classes: Sequence[str], own: Sequence[str]):
    """[templates ; units ; patches], of whose outputs two become the prompts; in a test `own` is empty."""
    trains = bool(own)
    for x, text in ((0.60, "$t_M$"), (0.85, "$t_S$")):
        token(ax, x, LOWER, text, trains)
    ax.text(1.07, 0.17, "templates", fontsize=8, va="center", ha="right")
    racks(ax, classes, own, "others" if own else "all")
    patches(ax, sample, 3.92, LOWER, range(16, 19))
    flow(ax, (5.44, 1.22), (5.44, LOWER + 0.17), (4.83, LOWER + 0.17))
    box(ax, 0.60, 1.4, 4.2, 0.36, "simulator (transformer)", trains)
    for x in (0.71, 0.96, 1.81, 3.04, 4.28):
        flow(ax, (x, LOWER + 0.34), (x, 1.39))
    for x in (0.71, 0.96):
        flow(ax, (x, 1.76), (x, UPPER - 0.01), colour=FLAME if trains else GREY)
    ax.text(1.14, 2.04, "content-aware dynamic prompts (CaDP)", fontsize=8, va="center")


def text_tower(ax: Axes, name: str, trained: bool):
    """The captions with learned context, one for each seen class."""
    x = RIGHT
    for text, width in (
        ("a photo of", 0.64),
        (short(name), 0.44),
        ("from", 0.34),
        ("$v_1$", TOKEN),
        ("…", 0.16),
        ("$v_L$", TOKEN),
        ("domain.", 0.5),
    ):
        box(ax, x, UPPER, width, 0.34, text, trains=text in ("$v_1$", "…", "$v_L$"), fontsize=8)
        x += width + 0.03
    end = x - 0.15
    box(ax, RIGHT, 3.0, x - 0.03 - RIGHT, 0.36, "text tower")
    for place in (RIGHT + 0.32, RIGHT + 0.88, RIGHT + 1.72, end):
        flow(ax, (place, UPPER + 0.34), (place, 2.99))
    flow(ax, (end, 3.36), (end, 3.59))
    box(ax, end - 0.74, 3.6, 0.86, 0.26, "projection", trains=trained)
    flow(ax, (end, 3.86), (end, 4.11), (7.35, 4.11))
    ax.text(end - 0.09, 4.16, "text features", fontsize=8, color=GREY, va="bottom", ha="right")


def gallery_side(ax: Axes, names: Sequence[str], query: str):
    """Test: the gallery's images go the same way and are ranked; the one of the query's class is framed."""
    for i, name in enumerate(names):
        x = RIGHT + 0.71 * i
        emoji = drawing(pictonet.GALLERY_DOMAIN, name)
        ax.imshow(emoji, extent=(x, x + 0.62, 2.2, 2.82), aspect="auto", zorder=3)
        flow(ax, (x + 0.31, 2.84), (x + 0.31, 2.99))
        if name == query:
            ax.add_patch(Rectangle((x - 0.02, 2.18), 0.66, 0.66, fill=False, ec=HIT, lw=1.6))
    end = RIGHT + 0.71 * len(names) - 0.09
    box(ax, RIGHT, 3.0, end - RIGHT, 0.36, "simulator, image tower, projection")
    flow(ax, (end - 0.31, 3.36), (end - 0.31, 4.11), (7.35, 4.11))
    ax.text(end - 0.4, 4.16, "gallery features", fontsize=8, color=GREY, va="bottom", ha="right")
