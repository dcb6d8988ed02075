"""The drawing style of every figure, its small parts, and the two diagrams that explain the method."""
import functools
import io

import matplotlib
import numpy as np
import seaborn
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from PIL import ImageOps

from . import pictonet

STYLE = {
    "font.family": "DejaVu Sans", "font.size": 8, "text.color": "#22303C", "axes.labelcolor": "#22303C",
    "axes.titlesize": 9, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.titlepad": 8,
    "axes.edgecolor": "#8A97A3", "axes.linewidth": 0.7, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": False, "xtick.color": "#5B6875", "ytick.color": "#5B6875", "xtick.labelsize": 7, "ytick.labelsize": 7,
    "xtick.major.width": 0.7, "ytick.major.width": 0.7, "xtick.major.size": 3, "ytick.major.size": 3,
    "legend.frameon": False, "legend.fontsize": 7.5, "lines.linewidth": 1.6, "hatch.linewidth": 0.6,
    "figure.dpi": 110, "savefig.dpi": 110, "figure.facecolor": "white",
}
WIDTH = 9.0                                            # inches: a notebook's output area
INK, GREY, FAINT = "#22303C", "#7B8794", "#CBD3DA"
HIT, MISS = "#009988", "#CC3311"                       # Paul Tol's vibrant scheme: told apart by every eye
FLAME, FROZEN = "#EE7733", "#DDE4EB"                   # what trains, what does not

#: One colour per domain in every figure; the gallery domains of the known data sets share theirs.
DOMAIN_COLOURS = {"emoji": "#EE7733", "real": "#EE7733", "photo": "#EE7733", "clipart": "#33BBEE", "cartoon": "#33BBEE",
                  "outline": "#0077BB", "quickdraw": "#0077BB", "solid": "#44546A", "infograph": "#44546A",
                  "sketch": "#CC3311", "pixel": "#009988", "painting": "#009988", "art_painting": "#009988"}


class NotebookFigure(Figure):
    """A Figure that a notebook shows when it is a cell's result, and that pyplot neither keeps nor shows a second time."""

    def _repr_png_(self):
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=self.dpi)
        return buffer.getvalue()


def styled(function):
    """The figure function with the shared style applied while it draws."""
    @functools.wraps(function)
    def draw(*args, **kwargs):
        with matplotlib.rc_context(STYLE):
            return function(*args, **kwargs)
    return draw


def domain_colours(domains):
    """{domain: colour}, the same for a known domain in every figure; others take what is left of the palette."""
    taken = {DOMAIN_COLOURS[name] for name in domains if name in DOMAIN_COLOURS}
    spare = [c for c in ["#EE3377", *dict.fromkeys(DOMAIN_COLOURS.values())] if c not in taken]
    others = [name for name in domains if name not in DOMAIN_COLOURS]
    if len(others) > len(spare):
        spare = seaborn.color_palette("husl", len(others)).as_hex()
    return {name: DOMAIN_COLOURS.get(name) or spare[others.index(name)] for name in domains}


# --- Parts ------------------------------------------------------------------------------------------------------

def board(width, height, unit=1.0):
    """(figure, axes) without axis, `width` x `height` units of `unit` inches; x to the right, y down."""
    figure = NotebookFigure(figsize=(width * unit, height * unit))
    ax = figure.add_axes([0, 0, 1, 1])
    ax.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)
    ax.axis("off")
    return figure, ax


def thumbnail(image, side=128):
    """A square picture of at most `side` pixels, the image whole, on white."""
    side = min(max(image.size), side)
    return ImageOps.pad(image.convert("RGB"), (side, side), color="white")


def picture(ax, image, x, y, size=1.0, colour=FAINT, linewidth=0.8):
    """A picture in a rounded frame, its upper left corner at (x, y)."""
    frame = FancyBboxPatch((x, y), size, size, boxstyle=f"round,pad=0,rounding_size={0.08 * size}", fc="white",
                           ec=colour, lw=linewidth, zorder=2)
    ax.add_patch(frame)
    inner = 0.05 * size
    extent = (x + inner, x + size - inner, y + size - inner, y + inner)
    ax.imshow(thumbnail(image), extent=extent, aspect="auto", zorder=3, interpolation="antialiased").set_clip_path(frame)


def short(name, length=13):
    """A class or domain name for a tight place: words for "_", cut with an ellipsis."""
    name = name.replace("_", " ")
    return name if len(name) <= length else name[:length - 1] + "…"


# --- Which units a sample meets ------------------------------------------------------------------------------------

@styled
def mask_matrix(domain_index, class_index, domains, classes, kind="own", columns=24):
    """Which prompt units (columns) each sample (row) meets. kind: "own" (stage 1, the rest masked out) or "others"
    (stage 2, its own zeroed). Of the classes at most `columns` are drawn: those of the samples and the first others.
    """
    domain_index, class_index = [[int(i) for i in index] for index in (domain_index, class_index)]
    first = [i for i in range(len(classes)) if i not in class_index][:max(0, columns - len(set(class_index)))]
    shown = sorted({*class_index, *first})
    own = np.zeros((len(domain_index), len(domains) + len(shown)), bool)
    for row, (d, y) in enumerate(zip(domain_index, class_index)):
        own[row, [d, len(domains) + shown.index(y)]] = True
    kept = own if kind == "own" else ~own

    names = [short(n) for n in domains] + [short(classes[i]) for i in shown]
    x = [i + (0.6 if i >= len(domains) else 0) for i in range(len(names))]
    left, top = 4.2, 3.6
    figure, ax = board(left + x[-1] + 2.4, top + len(kept) + 0.8, min(0.27, WIDTH / (left + x[-1] + 2.4)))
    for row, keep in enumerate(kept):
        ax.text(left - 0.4, top + row + 0.5, f"{short(domains[domain_index[row]])} · {short(classes[class_index[row]])}",
                ha="right", va="center", fontsize=7)
        for column, place in enumerate(x):
            style = dict(fc=FLAME if kind == "own" else FROZEN) if keep[column] else dict(fc="white", hatch="/////")
            ax.add_patch(Rectangle((left + place + 0.06, top + row + 0.06), 0.88, 0.88, ec="white" if keep[column] else FAINT,
                                   lw=0.6, **style))
    for place, name in zip(x, names):
        ax.text(left + place + 0.5, top - 0.25, name, rotation=60, ha="left", va="bottom", fontsize=6.5,
                rotation_mode="anchor")
    ax.text(left, top + len(kept) + 0.25, "domain units", fontsize=6.5, color=GREY, va="top")
    more = f", {len(classes) - len(shown)} more not drawn" if len(classes) > len(shown) else ""
    ax.text(left + x[len(domains)], top + len(kept) + 0.25, f"class units{more}", fontsize=6.5, color=GREY, va="top")
    return figure


# --- The data flow ---------------------------------------------------------------------------------------------------

TOKEN, PITCH = 0.22, 0.25                              # inches: a token's width, and from one to the next
LOWER, UPPER = 0.78, 2.33                              # inches: the row of units, and the row of the towers
DOMAINS = ("clipart", "emoji", "outline", "pixel", "solid")
CLASSES = ("apple", "house", "key", "tree")


@styled
def token_sequence(stage, domain="outline", name="house", query=("sketch", "cat"), gallery=("dog", "cat", "tiger", "fox")):
    """What enters which tower in `stage` 1, 2 or "test", from the bottom up; what trains is orange, what is frozen grey.

    The sample of the training stages is a PictoNet drawing of `domain` and `name`, that of the test `query`, which
    ranks emoji of the classes `gallery`.
    """
    figure, ax = board(WIDTH, 4.75)
    ax.set_ylim(0, 4.75)                               # here y goes up, as the data does
    sample = drawing(*(query if stage == "test" else (domain, name)))
    title, note = TITLES[stage]
    ax.text(0.3, 4.6, title, fontsize=10.5, fontweight="bold", va="center")
    ax.text(5.98, 1.85, note, fontsize=7.5, va="top", linespacing=1.55)
    legend(ax, stage)

    upright_picture(ax, sample, 5.05, 1.22, 0.78)
    ax.text(5.44, 1.13, "49 patches", ha="center", va="top", fontsize=6.5, color=GREY)
    image_tower(ax, sample, stage)
    if stage == 1:
        own_units(ax, domain, name)
    else:
        simulator(ax, sample, (domain, name) if stage == 2 else ())
    if stage == "test":
        gallery_side(ax, gallery)
    else:
        text_tower(ax, name)
    return figure


TITLES = {
    1: ("Stage 1 · learn the prompt units",
        "Of all units only the sample's own two\nenter the image tower: its domain's and\nits class's. The others are masked."),
    2: ("Stage 2 · learn the simulator",
        "The sample's own two units are zero,\nas for a test image nobody has units for.\n"
        "From the other units and the patches the\nsimulator writes two prompts (CaDP)."),
    "test": ("Test · an unseen domain, an unseen class",
             "All units are there, none is the query's own.\nThe simulator writes its prompts from what\n"
             "the image is like. No label is used."),
}


def drawing(domain, name):
    """The first PictoNet drawing of a domain and class."""
    record = next(r for r in pictonet.manifest() if (r["domain"], r["class"]) == (domain, name))
    return pictonet.load_drawing(record, 112)


def legend(ax, stage):
    entries = [("frozen", dict(fc=FROZEN, ec="none")), ("computed", dict(fc="white", ec=GREY))]
    entries = ([] if stage == "test" else [("trains", dict(fc=FLAME, ec="none"))]) + entries
    if stage != "test":
        entries.append(("masked" if stage == 1 else "set to zero", ZERO))
    for i, (text, look) in enumerate(entries):
        x = 5.98 + 0.76 * i
        ax.add_patch(Rectangle((x, 0.32), 0.13, 0.13, lw=0.7, **look))
        ax.text(x + 0.19, 0.385, text, fontsize=6.5, va="center")


ZERO = dict(fc="white", ec=FAINT, hatch="//////")


def token(ax, x, y, text="", trains=False, computed=False, zero=False):
    """One token of a sequence; its lower left corner at (x, y)."""
    look = ZERO if zero else dict(fc="white", ec=GREY) if computed else dict(fc=FLAME if trains else FROZEN, ec="none")
    ax.add_patch(FancyBboxPatch((x, y), TOKEN, 0.34, boxstyle="round,pad=0,rounding_size=0.04", lw=0.8, zorder=3, **look))
    ax.text(x + TOKEN / 2, y + 0.17, text, ha="center", va="center", fontsize=7, zorder=4,
            color="white" if trains and not zero else INK)


def block(ax, x, y, width, height, text, trains=False):
    """A tower, a projection or another function."""
    ax.add_patch(FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=0.06", lw=0, zorder=3,
                                fc=FLAME if trains else FROZEN))
    ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=7.5, zorder=4,
            color="white" if trains else INK)


def flow(ax, *points, colour=GREY):
    """An arrow along straight pieces."""
    xs, ys = zip(*points)
    ax.plot(xs[:-1], ys[:-1], color=colour, lw=1.0, solid_capstyle="butt", zorder=2)
    ax.annotate("", points[-1], points[-2], arrowprops=dict(arrowstyle="-|>", color=colour, lw=1.0, shrinkA=0, shrinkB=0,
                                                            mutation_scale=8), zorder=2)


def upright_picture(ax, image, x, y, size):
    """`picture` where y goes up: lower left corner at (x, y)."""
    ax.add_patch(Rectangle((x, y), size, size, fc="white", ec=FAINT, lw=0.8, zorder=2))
    ax.imshow(image, extent=(x, x + size, y, y + size), aspect="auto", zorder=3)


def patches(ax, image, x, y, numbers):
    """Patch tokens: pieces of the image on a 7 x 7 grid."""
    side = image.width // 7
    for i, number in enumerate(numbers):
        row, column = divmod(number, 7)
        piece = image.crop((column * side, row * side, (column + 1) * side, (row + 1) * side))
        left = x + i * PITCH
        ax.add_patch(FancyBboxPatch((left, y), TOKEN, 0.34, boxstyle="round,pad=0,rounding_size=0.04", fc="white", ec=GREY,
                                    lw=0.8, zorder=3))
        ax.imshow(piece, extent=(left + 0.02, left + TOKEN - 0.02, y + 0.08, y + 0.08 + TOKEN - 0.04), aspect="auto", zorder=4)
    ax.text(x + len(numbers) * PITCH + 0.06, y + 0.17, "…", va="center", ha="center", fontsize=9, color=GREY)


def image_tower(ax, sample, stage):
    """The sequence [cls ; two prompts ; patches], the tower above it, and the feature read at the class token."""
    token(ax, 0.30, UPPER, "cls", trains=stage == 2)
    for x, text in ((0.60, "$M$"), (0.85, "$S$")):
        token(ax, x, UPPER, text, trains=stage == 1, computed=stage != 1)
    patches(ax, sample, 1.20, UPPER, range(14, 28))
    flow(ax, (5.44, 2.0), (5.44, UPPER + 0.17), (4.83, UPPER + 0.17))
    dropout = "   (dropout 0.5 on the sequence)" if stage == 1 else ""
    block(ax, 0.30, 3.0, 4.5, 0.36, f"image tower{dropout}")
    for x in (0.41, 0.71, 0.96, 2.7):
        flow(ax, (x, UPPER + 0.36), (x, 2.99))
    flow(ax, (0.41, 3.36), (0.41, 3.6))
    block(ax, 0.30, 3.6, 0.86, 0.26, "projection", trains=stage == 2)
    goal = "ranks the gallery" if stage == "test" else "cross-entropy"
    flow(ax, (0.41, 3.86), (0.41, 4.14), (5.35, 4.14))
    ax.text(1.3, 4.2, "image feature", fontsize=6.5, color=GREY, va="bottom")
    formula = r"$\cos$" if stage == "test" else r"$\cos\,/\,0.07$"
    block(ax, 5.37, 3.98, 1.95, 0.32, f"{formula}  →  {goal}")


def own_units(ax, domain, name):
    """Stage 1: the racks of units, the sample's own two going up, the others masked."""
    for (x, own), goal, height in zip(racks(ax, (domain, name), "own"), (0.71, 0.96), (1.55, 1.85)):
        flow(ax, (own, LOWER + 0.36), (own, height), (goal, height), (goal, UPPER - 0.01), colour=FLAME)


def racks(ax, own, kind):
    """Domain and class units with their names. kind: "own" (own kept, others masked), "others" (own zeroed) or "all".

    Returns for each rack (its left end, the middle of its own unit)."""
    places = []
    for left, names, label in ((1.20, DOMAINS, "domain units $P_M$"), (2.55, CLASSES, "class units $P_S$")):
        for i, name in enumerate(names):
            mine = name in own
            token(ax, left + i * PITCH, LOWER, trains=kind == "own" and mine, zero=kind != "all" and mine == (kind == "others"))
            ax.text(left + i * PITCH + 0.15, LOWER - 0.07, name, rotation=45, ha="right", va="top", fontsize=6,
                    rotation_mode="anchor", color=INK if mine else GREY, fontweight="bold" if mine else "normal")
        own_place = next((left + i * PITCH + TOKEN / 2 for i, name in enumerate(names) if name in own), None)
        places.append((left, own_place))
        ax.text(left, 0.1, label, fontsize=7, va="center")
    ax.text(2.55 + len(CLASSES) * PITCH + 0.06, LOWER + 0.17, "…", ha="center", va="center", fontsize=9, color=GREY)
    return places


def simulator(ax, sample, own):
    """Stage 2 and test: [templates ; units ; own patches] through the simulator; two outputs become the prompts."""
    trains = bool(own)
    for x, text in ((0.60, "$t_M$"), (0.85, "$t_S$")):
        token(ax, x, LOWER, text, trains=trains)
    ax.text(0.60, 0.1, "templates", fontsize=7, va="center", ha="left")
    racks(ax, own, "others" if own else "all")
    patches(ax, sample, 3.92, LOWER, range(16, 19))
    flow(ax, (5.44, 0.97), (5.44, LOWER + 0.17), (4.83, LOWER + 0.17))
    block(ax, 0.60, 1.4, 4.2, 0.36, "simulator (2 layers)", trains=trains)
    for x in (0.71, 0.96, 1.8, 3.1, 4.3):
        flow(ax, (x, LOWER + 0.36), (x, 1.39))
    for x in (0.71, 0.96):
        flow(ax, (x, 1.76), (x, UPPER - 0.01), colour=FLAME if trains else GREY)
    ax.text(1.12, 2.04, "content-aware dynamic prompts (CaDP)", fontsize=6.5, va="center", color=GREY)


def text_tower(ax, name):
    """The captions with learned context, one per seen class."""
    x = 5.98
    for text, width, trains in (("a photo of", 0.62, False), (name, 0.42, False), ("from", 0.33, False), ("$v_1$", TOKEN, True),
                                ("…", 0.16, True), ("$v_L$", TOKEN, True), ("domain.", 0.5, False)):
        ax.add_patch(FancyBboxPatch((x, UPPER), width, 0.34, boxstyle="round,pad=0,rounding_size=0.04", lw=0, zorder=3,
                                    fc=FLAME if trains else FROZEN))
        ax.text(x + width / 2, UPPER + 0.17, text, ha="center", va="center", fontsize=6.5, zorder=4,
                color="white" if trains else INK)
        x += width + 0.03
    end = x - 0.15
    block(ax, 5.98, 3.0, x - 0.03 - 5.98, 0.36, "text tower")
    for place in (6.29, 7.35, end):
        flow(ax, (place, UPPER + 0.36), (place, 2.99))
    flow(ax, (end, 3.36), (end, 3.6))
    block(ax, end - 0.74, 3.6, 0.86, 0.26, "projection", trains=True)
    flow(ax, (end, 3.86), (end, 4.14), (7.34, 4.14))
    ax.text(7.45, 4.2, "text features, one a class", fontsize=6.5, color=GREY, va="bottom")


def gallery_side(ax, names):
    """Test: gallery images go the same way and are ranked."""
    for i, name in enumerate(names):
        upright_picture(ax, drawing(pictonet.GALLERY_DOMAIN, name), 5.98 + 0.7 * i, 2.2, 0.6)
        flow(ax, (6.28 + 0.7 * i, 2.8), (6.28 + 0.7 * i, 2.99))
    block(ax, 5.98, 3.0, 0.7 * len(names) - 0.1, 0.36, "the same way: simulator, image tower")
    end = 5.98 + 0.7 * len(names) - 0.25
    flow(ax, (end, 3.36), (end, 4.14), (7.34, 4.14))
    ax.text(7.45, 4.2, "gallery features", fontsize=6.5, color=GREY, va="bottom")
