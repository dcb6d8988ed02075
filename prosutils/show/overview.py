"""The two diagrams of notebook 00: the task in one picture, and the three stages of ProS in one strip."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle
from PIL import Image

from ..domains import ImageDomains
from ..splits import Split
from .diagrams import COMPUTED, KEPT, LEARNED, MASKED, ZERO, box, flow
from .pictures import (
    FLAME,
    GREY,
    HIT,
    WIDTH,
    board,
    domain_colours,
    in_two_lines,
    picture,
    short,
    styled,
    thumbnail,
)

TRAINING = "#0077BB"  # the frame of what trains

# --- The task -----------------------------------------------------------------------------------------------


@styled
def task_picture(data: ImageDomains, split: Split, seen: Sequence[str], unseen: Sequence[str], query: int = 1):
    """Domains (rows) x classes (columns): what trains, one query and its gallery in frames; the rest is faded.

    seen, unseen: classes to show of either kind; query: which of `unseen` is drawn as the query.
    """
    sources = [name for name in split.train_domains if name != split.gallery_domain]
    domains, gap = [split.gallery_domain, *sources, str(split.unseen_domain)], 0.7
    left, top, colours = 1.75, 1.25, domain_colours(data.domains)
    xs = [left + i + gap * (i >= len(seen)) for i in range(len(seen) + len(unseen))]
    ys = [top + i + gap * (i == len(domains) - 1) for i in range(len(domains))]
    width = xs[-1] + 1.35
    figure, ax = board(width, ys[-1] + 1.5, WIDTH / width)
    for y, domain in zip(ys, domains):
        label = dict(ha="right", va="center", fontweight="bold", fontsize=9, color=colours[domain])
        ax.text(left - 0.3, y + 0.47, short(domain), **label)
        for i, (x, name) in enumerate(zip(xs, [*seen, *unseen])):
            trains = i < len(seen) and domain != split.unseen_domain
            tested = i >= len(seen) and domain in (split.gallery_domain, split.unseen_domain)
            row = int(data.rows([domain], [name])[0])
            picture(ax, faded(data.load(row), trains or tested), x, y, 0.94)
    for x, name in zip(xs, [*seen, *unseen]):
        ax.text(x + 0.47, top - 0.14, in_two_lines(name), ha="center", va="bottom", fontsize=8, linespacing=0.95)
    last = len(seen) - 1
    frame(ax, xs[0], ys[0], xs[last], ys[-2], TRAINING, "1  training: seen classes, all domains but one", top - 0.68)
    frame(ax, xs[last + 1], ys[0], xs[-1], ys[0], HIT, "3  gallery: emoji of unseen classes", top - 0.68)
    x, bottom = xs[last + 1 + query], ys[-1] + 1.32
    frame(ax, x, ys[-1], x, ys[-1], FLAME, "2  query: the unseen domain, an unseen class", bottom, xs[last + 1])
    ax.text(xs[0] - 0.05, bottom, "faded: not used in this test", fontsize=9, color=GREY, va="bottom")
    start, end = (x + 0.47, ys[-1] - 0.07), (x + 0.47, ys[0] + 1.03)
    ax.plot(*zip(start, (end[0], end[1] + 0.12)), color=FLAME, lw=2.5, zorder=6)
    point = dict(arrowstyle="-|>", color=FLAME, lw=2.5, shrinkA=0, shrinkB=0, mutation_scale=16)
    ax.annotate("", end, (end[0], end[1] + 0.3), zorder=6, arrowprops=point)
    return figure


def faded(image: Image.Image, used: bool):
    """The image, nearly white where it is not used."""
    image = thumbnail(image)
    return image if used else Image.blend(image, Image.new("RGB", image.size, "white"), 0.8)


def frame(
    ax: Axes, x0: float, y0: float, x1: float, y1: float, colour: str, label: str, at: float, start: float | None = None
):
    """A frame around the cells from (x0, y0) to (x1, y1), and its label at the height `at`."""
    size = (x1 - x0 + 1.08, y1 - y0 + 1.08)
    outline = "round,pad=0,rounding_size=0.12"
    ax.add_patch(FancyBboxPatch((x0 - 0.07, y0 - 0.07), *size, boxstyle=outline, fc="none", ec=colour, lw=2, zorder=5))
    place = x0 if start is None else start
    ax.text(place - 0.05, at, label, fontsize=9, fontweight="bold", color=colour, va="bottom")


# --- The stages ---------------------------------------------------------------------------------------------

PANEL, HEIGHT = 3.02, 3.62  # inches
STAGES = (
    (1, "Stage 1: learn prompt units", "The picture's own two units enter the\ntower; all others are masked."),
    (
        2,
        "Stage 2: learn the simulator",
        "It reads the picture and all units but the\npicture's own, and writes the prompts.",
    ),
    ("test", "Test: no labels", "The simulator writes prompts from the\npicture and all units."),
)


@styled
def stage_strip(data: ImageDomains, train_row: int, test_row: int, gallery_rows: Sequence[int]):
    """The three stages of ProS side by side, from the bottom up. What is trained is orange.

    train_row, test_row: a training picture and a query, rows of `data`; gallery_rows: up to four emoji, the first is
    the right one.
    """
    figure, ax = board(3 * PANEL, HEIGHT, WIDTH / (3 * PANEL))
    ax.set_ylim(0, HEIGHT)  # here y goes up, as the data does
    for i, (stage, title, note) in enumerate(STAGES):
        x, row = i * PANEL + 0.08, test_row if stage == "test" else train_row
        ax.text(x, HEIGHT - 0.08, title, fontsize=9.5, fontweight="bold", va="top")
        ax.text(x, HEIGHT - 0.30, note, fontsize=8, va="top", color=GREY, linespacing=1.25)
        ax.imshow(thumbnail(data.load(row)), extent=(x, x + 0.56, 0.32, 0.88), aspect="auto", zorder=3)
        domain, name = data.domains[data.domain_index[row]], data.classes[data.class_index[row]]
        ax.text(x, 0.26, f"{short(domain)}, {short(name)}", fontsize=8, va="top")
        units(ax, x + 0.86, stage)
        tower(ax, x, stage, data.load(row))
        goal(ax, x, stage, short(name), [data.load(int(r)) for r in gallery_rows])
        if i:
            ax.plot([x - 0.12] * 2, [0.1, HEIGHT - 0.1], color=KEPT["fc"], lw=1)
    return figure


def units(ax: Axes, x: float, stage: int | str):
    """The racks of domain and class units, and the simulator above them."""
    for left, count, own, label in ((x, 5, 1, "domain units"), (x + 0.98, 6, 2, "class units")):
        for i in range(count):
            mine = LEARNED if stage == 1 else ZERO if stage == 2 else KEPT
            look = mine if i == own else MASKED if stage == 1 else KEPT
            ax.add_patch(Rectangle((left + 0.16 * i, 0.56), 0.13, 0.26, lw=0.8, zorder=3, **look))
        ax.text(left, 0.5, label, fontsize=8, va="top")
    if stage != 1:
        box(ax, x - 0.42, 1.08, 2.36, 0.28, "simulator", trains=stage == 2, fontsize=8)
        for place in (x - 0.36, x + 0.38, x + 1.45):
            flow(ax, (place, 0.9 if place < x else 0.83), (place, 1.07))


def tower(ax: Axes, x: float, stage: int | str, image: Image.Image):
    """[cls, prompts, patches] and the image tower above them."""
    look = LEARNED if stage == 1 else COMPUTED
    tokens = [("cls", LEARNED if stage == 2 else KEPT), ("P", look), ("P", look)]
    for i, (text, fill) in enumerate(tokens):
        place = x + 0.05 + 0.31 * i
        box(ax, place, 1.62, 0.28, 0.27, text, look=fill, fontsize=8)
        flow(ax, (place + 0.14, 1.9), (place + 0.14, 2.05))
    piece = thumbnail(image).resize((112, 112))
    for i in range(5):
        cut = piece.crop((16 * i + 16, 48, 16 * i + 32, 64))
        place = x + 1.08 + 0.31 * i
        box(ax, place, 1.62, 0.28, 0.27, look=COMPUTED)
        ax.imshow(cut, extent=(place + 0.05, place + 0.23, 1.665, 1.845), aspect="auto", zorder=4)
    ax.text(x + 2.66, 1.75, "…", color=GREY, va="center")
    flow(ax, (x + 1.86, 1.9), (x + 1.86, 2.05))
    box(ax, x, 2.06, 2.8, 0.28, "CLIP's image tower", fontsize=8)
    if stage == 1:
        for start, end in ((x + 0.86 + 0.225, x + 0.5), (x + 0.86 + 0.98 + 0.385, x + 0.81)):
            height = 1.2 if end < x + 0.6 else 1.36
            flow(ax, (start, 0.83), (start, height), (end, height), (end, 1.61), colour=FLAME)
    else:
        for place in (x + 0.5, x + 0.81):
            flow(ax, (place, 1.37), (place, 1.61), colour=FLAME if stage == 2 else GREY)


def goal(ax: Axes, x: float, stage: int | str, name: str, gallery: Sequence[Image.Image]):
    """What the feature is compared with."""
    flow(ax, (x + 0.19, 2.35), (x + 0.19, 2.5))
    if stage != "test":
        ax.text(x, 2.76, "feature, trained to match its caption:", fontsize=8, va="bottom")
        ax.text(x, 2.54, f"“a photo of {name} from", fontsize=8, va="bottom", style="italic")
        end = x + 0.056 * len(f"“a photo of {name} from") + 0.1
        box(ax, end, 2.53, 0.5, 0.2, "learned", look=LEARNED, fontsize=8)
        ax.text(end + 0.55, 2.54, "domain”", fontsize=8, va="bottom", style="italic")
        return
    ax.text(x, 2.54, "feature, ranks the emoji:", fontsize=8, va="bottom")
    for i, image in enumerate(gallery):
        left = x + 1.5 + 0.35 * i
        ax.imshow(thumbnail(image), extent=(left, left + 0.33, 2.43, 2.76), aspect="auto", zorder=3)
        if not i:
            ax.add_patch(Rectangle((left - 0.02, 2.41), 0.37, 0.37, fill=False, ec=HIT, lw=1.6, zorder=4))
