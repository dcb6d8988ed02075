"""The style of every figure, and the figures made of pictures: grids, the contact sheet, ranks."""

import functools
import io
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import seaborn
import torch
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.text import Text
from PIL import Image, ImageOps

from ..domains import GALLERY_DOMAINS, ImageDomains
from ..image_files import as_rgb, middle
from ..names import readable

#: Fonts for the writing systems that DejaVu Sans lacks, as systems name them; those that are there are used.
OTHER_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans SC", "Noto Sans JP", "Noto Sans KR"),
    *("Source Han Sans SC", "Source Han Sans", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback"),
    *("PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo", "Arial Unicode MS"),
    *("Microsoft YaHei", "Yu Gothic", "MS Gothic", "Malgun Gothic", "Segoe UI Symbol", "Segoe UI Emoji", "SimHei"),
    *("Noto Sans Devanagari", "Noto Sans Thai", "Noto Sans Bengali", "Noto Sans Tamil", "Noto Emoji", "Symbola"),
)
STYLE = {
    "font.family": ["DejaVu Sans", *(name for name in OTHER_FONTS if name in font_manager.get_font_names())],
    "font.size": 8,
    "text.color": "#22303C",
    "axes.labelcolor": "#22303C",
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.edgecolor": "#8A97A3",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "xtick.color": "#5B6875",
    "ytick.color": "#5B6875",
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "figure.dpi": 110,
    "figure.facecolor": "white",
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "hatch.linewidth": 0.6,
}
WIDTH = 9.0  # inches: a notebook's output area
INK, GREY, FAINT = "#22303C", "#7B8794", "#CBD3DA"
HIT, MISS = "#009988", "#CC3311"  # Paul Tol's vibrant scheme: told apart by every eye
FLAME, FROZEN = "#EE7733", "#DDE4EB"  # what trains, what does not

#: One colour per domain in every figure; the gallery domains of the known data sets share theirs.
DOMAIN_COLOURS = {
    "emoji": "#EE7733",
    "real": "#EE7733",
    "photo": "#EE7733",
    "clipart": "#33BBEE",
    "cartoon": "#33BBEE",
    "outline": "#0077BB",
    "quickdraw": "#0077BB",
    "solid": "#44546A",
    "infograph": "#44546A",
    "sketch": "#CC3311",
    "pixel": "#009988",
    "painting": "#009988",
    "art_painting": "#009988",
    "mosaic": "#009988",
    "blueprint": "#0077BB",
    "stamp": "#44546A",
    "chalk": "#EE3377",
    "cross_stitch": "#33BBEE",
}

OWN_COLOURS = list(dict.fromkeys(["#FFFFFF", INK, GREY, FAINT, HIT, MISS, FLAME, FROZEN, *DOMAIN_COLOURS.values()]))


class NotebookFigure(Figure):
    """A Figure that a notebook shows as a cell's result, and that pyplot neither keeps nor shows again."""

    def savefig(self, *args: Any, **kwargs: Any):
        """`Figure.savefig`; characters that no font here can draw, which would become boxes, are written as escapes."""
        for text in self.findobj(Text):
            if (shown := drawable(text.get_text())) != text.get_text():
                text.set_text(shown)
        super().savefig(*args, **kwargs)

    def png(self, dpi: int = 150) -> bytes:
        """The figure as PNG bytes; a palette of 256 colours takes a third of the room in a notebook. The style's own
        colours are in every palette, so that a domain looks the same in every figure."""
        buffer, small = io.BytesIO(), io.BytesIO()
        self.savefig(buffer, format="png", dpi=dpi)
        own = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in OWN_COLOURS], np.uint8)
        with Image.open(buffer) as image:
            image = image.convert("RGB")
            few, pixels = image.quantize(256 - len(own)), np.asarray(image)
            places = np.asarray(few) + len(own)
            for place, colour in enumerate(own):
                places[(pixels == colour).all(-1)] = place
            reduced = Image.fromarray(places.astype(np.uint8))
            reduced.putpalette([*own.ravel().tolist(), *few.getpalette()])
            reduced.save(small, "PNG", optimize=True)
        return small.getvalue()

    def _repr_png_(self) -> tuple[bytes, dict]:
        width, height = (self.get_size_inches() * self.dpi).astype(int).tolist()
        return self.png(), dict(width=width, height=height)


def styled(function: Callable) -> Callable:
    """The figure function with the shared style applied while it draws."""

    @functools.wraps(function)
    def draw(*args, **kwargs):
        with matplotlib.rc_context(STYLE):
            return function(*args, **kwargs)

    return draw


def domain_colours(domains: Sequence[str]) -> dict[str, str]:
    """{domain: colour}, a known domain's the same in every figure; others take what is left."""
    taken = {DOMAIN_COLOURS[name] for name in domains if name in DOMAIN_COLOURS}
    spare = [c for c in dict.fromkeys(["#EE3377", *DOMAIN_COLOURS.values()]) if c not in taken]
    others = [name for name in domains if name not in DOMAIN_COLOURS]
    if len(others) > len(spare):
        spare = seaborn.color_palette("husl", len(others)).as_hex()
    return {name: DOMAIN_COLOURS.get(name) or spare[others.index(name)] for name in domains}


# --- Parts --------------------------------------------------------------------------------------------------


def board(width: float, height: float, unit: float = 1.0):
    """(figure, axes) without axis, `width` x `height` units of `unit` inches; x to the right, y down."""
    figure = NotebookFigure(figsize=(width * unit, height * unit))
    ax = figure.add_axes([0, 0, 1, 1])
    ax.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)
    ax.axis("off")
    return figure, ax


def thumbnail(image: Image.Image, side: int = 128):
    """A square picture of at most `side` pixels, the image whole (of a very long one the middle), on white."""
    image = middle(as_rgb(image))
    side = min(max(image.size), side)
    return ImageOps.pad(image, (side, side), color="white")


def card(ax: Axes, x: float, y: float, size: float = 1.0, colour: str = FAINT, linewidth: float = 0.8):
    """An empty rounded frame, its upper left corner at (x, y)."""
    outline = f"round,pad=0,rounding_size={0.08 * size}"
    ax.add_patch(FancyBboxPatch((x, y), size, size, boxstyle=outline, fc="white", ec=colour, lw=linewidth, zorder=2))


def picture(
    ax: Axes, image: Image.Image, x: float, y: float, size: float = 1.0, colour: str = FAINT, linewidth: float = 0.8
):
    """A picture in such a frame."""
    card(ax, x, y, size, colour, linewidth)
    near, far = 0.05 * size, 0.95 * size
    ax.imshow(thumbnail(image), extent=(x + near, x + far, y + far, y + near), aspect="auto", zorder=3)


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = GREY):
    ax.annotate(
        "",
        end,
        start,
        zorder=2,
        arrowprops=dict(arrowstyle="-|>", color=colour, lw=1.0, shrinkA=0, shrinkB=0, mutation_scale=8),
    )


def short(name: str, length: int = 13):
    """A class or domain name for a tight place in a figure: words for "_", cut with an ellipsis, no formula."""
    name = readable(name).replace("_", " ")
    return plain(drawable(name if len(name) <= length else name[: length - 1] + "…"))


def in_two_lines(name: str, length: int = 11):
    """A class name below a picture: broken at a space where it is longer than `length`, cut where it still is."""
    lines = textwrap.wrap(short(name, 2 * length + 1), length)
    return "\n".join([*lines[:1], *(line + "…" * (len(lines) > 2) for line in lines[1:2])])


def plain(text: str):
    """A text as matplotlib shows it as it is: two dollar signs would begin a formula."""
    return re.sub(r"(?<!\\)\$", r"\\$", text)


@functools.cache
def known_characters():
    """Code points that the fonts of the figures can draw."""
    fonts = [font_manager.get_font(font_manager.findfont(name)) for name in STYLE["font.family"]]
    return frozenset().union(*(font.get_charmap() for font in fonts))


def drawable(text: str):
    """A text in which characters that no font of the figures can draw are escapes, `\\u5b66`."""
    if text.isascii():
        return text
    known = known_characters()
    return "".join(
        letter if ord(letter) in known or letter.isspace() else letter.encode("ascii", "backslashreplace").decode()
        for letter in text
    )


# --- Grids --------------------------------------------------------------------------------------------------


@styled
def show_images(images: Sequence[Image.Image], titles: Sequence[str] | None = None, columns: int = 8):
    """PIL images in a grid, `titles` below them."""
    columns = min(columns, len(images))
    unit = min(0.8, WIDTH / (columns * 1.06))
    texts = [in_two_lines(str(title), max(8, int(13.5 * unit))) for title in titles or []]
    lines = 1 + max(text.count("\n") for text in texts) if texts else 0
    rows, pitch = -(-len(images) // columns), 1.06 + (0.06 + 0.13 * lines) / unit if lines else 1.06
    figure, ax = board(columns * 1.06, rows * pitch, unit)
    for i, image in enumerate(images):
        x, y = i % columns * 1.06 + 0.03, i // columns * pitch + 0.03
        picture(ax, image, x, y)
        if titles:
            ax.text(x + 0.5, y + 1.05, texts[i], ha="center", va="top", fontsize=8, linespacing=1.0)
    return figure


@styled
def contact_sheet(data: ImageDomains, classes: Sequence[str], domains: Sequence[str] | None = None, per_cell: int = 1):
    """Classes (columns) as every domain (rows, the gallery first) draws them; `per_cell` pictures each."""
    domains = domains or sorted(data.domains, key=lambda name: name not in GALLERY_DOMAINS)
    left, top, colours = 1.6, 0.6, domain_colours(data.domains)
    width, height = left + len(classes), top + len(domains) * per_cell
    figure, ax = board(width, height, min(0.72, WIDTH / width))
    for row, domain in enumerate(domains):
        ax.text(
            left - 0.25,
            top + (row + 0.5) * per_cell,
            short(domain),
            ha="right",
            va="center",
            fontweight="bold",
            color=colours[domain],
        )
        for column, name in enumerate(classes):
            for i, image in enumerate(data.rows([domain], [name])[:per_cell].tolist()):
                picture(ax, data.load(image), left + column, top + row * per_cell + i, 0.94)
    for column, name in enumerate(classes):
        ax.text(left + column + 0.47, top - 0.1, in_two_lines(name), ha="center", va="bottom", fontsize=8)
    return figure


# --- Ranks --------------------------------------------------------------------------------------------------

STEP = 1.08  # from one ranked picture to the next, in pictures


def describe_query(data: ImageDomains, query: int):
    """(picture or words, caption, class index or None) of a query: a row of `data`, words, or a PIL image."""
    if isinstance(query, str):
        return query, "words", None
    if isinstance(query, Image.Image):
        return query, "a picture", None
    domain, name = data.domains[data.domain_index[query]], data.classes[data.class_index[query]]
    return data.load(int(query)), f"{short(name, 16)}\n{short(domain, 16)}", int(data.class_index[query])


def query_card(ax: Axes, shown: Image.Image, caption: str, x: float, y: float, size: float = 1.0, fontsize: float = 8):
    """The query at the left of its ranks: a picture, or words in quotes, with a caption below."""
    if isinstance(shown, str):
        card(ax, x, y, size, INK, 1.4)
        ax.text(
            x + size / 2,
            y + size / 2,
            plain(textwrap.fill(f"“{shown}”", 12)),
            ha="center",
            va="center",
            fontsize=fontsize,
            style="italic",
        )
    else:
        picture(ax, shown, x, y, size, INK, 1.4)
    ax.text(x + size / 2, y + size + 0.07, caption, ha="center", va="top", fontsize=fontsize, color=GREY)


def strip(ax: Axes, data: ImageDomains, rows: torch.Tensor, class_index: torch.Tensor, x: float, y: float):
    """Ranked pictures from left to right in the frames of hits and misses. Returns the number of hits."""
    found = [int(data.class_index[row]) for row in rows]
    for place, (row, name) in enumerate(zip(rows, found, strict=True)):
        left, known = x + place * STEP, class_index is not None
        colour = FAINT if not known else HIT if name == class_index else MISS
        picture(ax, data.load(int(row)), left, y, colour=colour, linewidth=1.6 if known else 0.8)
        if name != class_index:
            ax.text(
                left + 0.5,
                y + 1.07,
                in_two_lines(data.classes[name]),
                ha="center",
                va="top",
                fontsize=8,
                linespacing=0.95,
                color=MISS if known else INK,
            )
    return found.count(class_index)


@styled
def rank_strips(
    data: ImageDomains,
    queries: torch.Tensor,
    ranked: torch.Tensor,
    scores: torch.Tensor | None = None,
    names: Sequence[str] | None = None,
):
    """One row per query: its picture and its k best gallery pictures, green where the class is right.

    queries: q rows of `data`, or words, or PIL images (then the class is unknown and frames are neutral);
    ranked: [q, k] rows of `data`, best first; scores: q average precisions for the row's end (default: hits);
    names: q captions instead of class and domain.
    """
    k, left, pitch = len(ranked[0]), 1.65, 1.5
    width = left + k * STEP + 1.0
    figure, ax = board(width, len(queries) * pitch + 0.05, min(0.72, WIDTH / width))
    for i, (query, rows) in enumerate(zip(queries, ranked, strict=True)):
        y = i * pitch + 0.05
        shown, caption, class_index = describe_query(data, query)
        query_card(ax, shown, names[i] if names else caption, 0.15, y)
        arrow(ax, (1.28, y + 0.5), (1.54, y + 0.5))
        hits = strip(ax, data, rows, class_index, left, y)
        if scores is not None or class_index is not None:
            text = f"{hits} of {k}" if scores is None else f"AP {scores[i]:.2f}"
            ax.text(left + k * STEP + 0.05, y + 0.5, text, va="center", fontsize=8)
    return figure


@styled
def compare_ranks(
    data: ImageDomains,
    query: int,
    ranked_by_method: Mapping[str, torch.Tensor],
    scores_by_method: Mapping[str, torch.Tensor] | None = None,
):
    """The same query, or several, under several methods: one strip each.

    query: a row of `data`, or q of them; ranked_by_method: {method: [k] or [q, k] rows of `data`};
    scores_by_method: {method: q average precisions} for the row's end (default: the hits).
    """
    queries = np.atleast_1d(np.asarray(query)).tolist()
    ranked = {method: np.atleast_2d(np.asarray(rows)) for method, rows in ranked_by_method.items()}
    k = next(iter(ranked.values())).shape[1]
    left, pitch, size = 3.2, 1.46, 1.45 if len(ranked) > 1 else 1.0
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
            ax.text(left + k * STEP + 0.05, y + 0.5, text, va="center", fontsize=8)
            ax.text(
                left - 0.2,
                y + 0.5,
                method.replace(" ", "\n", 1),
                ha="right",
                va="center",
                fontsize=8,
                **emphasis(method),
            )
    return figure


def emphasis(method: str):
    """How a method's name is written: ProS stands out."""
    return dict(fontweight="bold", color=FLAME) if method.startswith("ProS") else dict(color=INK)


@styled
def benchmark_banner(
    data: ImageDomains,
    query: int,
    ranked_by_method: Mapping[str, torch.Tensor],
    title: str = "Draw it. Find it in another style.",
    subtitle: str = "",
):
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
        ax.text(left + k * STEP - 0.1, y + 0.17, f"{hits} of {k}", fontsize=9, ha="right", va="bottom", color=GREY)
    return figure
