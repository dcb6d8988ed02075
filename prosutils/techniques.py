"""The techniques of PictoNet's far tier: mosaic, blueprint, worn stamp, chalk and cross-stitch.

A technique is a function `(picture, strength, rng) -> picture`. picture [S, S, 4]: red, green, blue and alpha, float32
in [0, 1], not premultiplied. strength: 0 gives the drawing on white as it is, 1 the full technique. The result is
[S, S, 3] in [0, 1]. All lengths are shares of the side S, and the random draws depend neither on S nor on the strength:
at every size and strength the same picture comes out, only finer or stronger.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy import ndimage

from prosutils.files import UserError

VERSION = 1  # raise it with every change of how a technique looks: laid-out folders of another version are drawn again
DRAWN_AT = 128  # pixels of the side at least: smaller pictures are drawn larger and averaged
WHITE = np.ones(3, np.float32)

CHALKS = ((0.96, 0.96, 0.92), (0.96, 0.96, 0.92), (0.98, 0.90, 0.60), (0.99, 0.75, 0.76), (0.66, 0.86, 0.97))
STAMP_INKS = ((0.76, 0.11, 0.13), (0.11, 0.22, 0.56), (0.36, 0.13, 0.47), (0.05, 0.38, 0.30))
THREADS = ((0.73, 0.09, 0.14), (0.10, 0.24, 0.50), (0.07, 0.37, 0.26), (0.48, 0.13, 0.42), (0.76, 0.33, 0.08))
STONES = ((0.93, 0.76, 0.42), (0.58, 0.78, 0.86), (0.90, 0.66, 0.55))  # gold, sky and clay: a mosaic's ground


# ---- parts ------------------------------------------------------------------------------------------------------


def mix(a: np.ndarray, b: np.ndarray, share: np.ndarray | float) -> np.ndarray:
    """From a (share 0) to b (share 1)."""
    return a + (b - a) * share


def lay(ground: np.ndarray, colour: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """A colour [3] or [S, S, 3] over a ground [S, S, 3], as densely as cover [S, S] says."""
    return mix(ground, np.asarray(colour, np.float32), cover[..., None])


def ramp(values: np.ndarray, middle: float, width: float) -> np.ndarray:
    """0 below `middle`, 1 above it, straight in between over `width`."""
    return np.clip((values - middle) / width + 0.5, 0, 1)


def on_white(picture: np.ndarray) -> np.ndarray:
    """[S, S, 4] -> [S, S, 3]: the drawing on white paper."""
    return mix(WHITE, picture[..., :3], picture[..., 3:])


def ink_of(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[S, S, 4] -> (how densely ink lies [S, S], its colour [S, S, 3]); laid on white they give the drawing again."""
    missing = 1 - on_white(picture)
    ink = missing.max(-1)
    return ink, 1 - missing / np.maximum(ink, 1e-6)[..., None]


def places(side: int) -> tuple[np.ndarray, np.ndarray]:
    """(x [1, S], y [S, 1]): where the pixels' centres lie, in shares of the side."""
    centres = ((np.arange(side) + 0.5) / side).astype(np.float32)
    return centres[None], centres[:, None]


def noise(rng: np.random.Generator, rows: int, columns: int, side: int) -> np.ndarray:
    """Random values [S, S] about 0 with a standard deviation near 1: rows x columns of them, smooth in between."""
    lattice = rng.standard_normal((rows, columns), dtype=np.float32)
    return np.asarray(Image.fromarray(lattice).resize((side, side), Image.Resampling.BICUBIC))


def blurred(values: np.ndarray, share: float) -> np.ndarray:
    """[S, S] softened by a Gaussian whose standard deviation is a share of the side."""
    return ndimage.gaussian_filter(values, share * len(values), truncate=2.5)


def line(distance: np.ndarray, width: float, side: int) -> np.ndarray:
    """Cover of a line where `distance` from its middle is known, without steps; both in shares of the side."""
    reach = max(width, 1 / side)  # a line thinner than a pixel is a pixel wide and paler
    return np.clip((reach / 2 - np.abs(distance)) * side + 0.5, 0, 1) * (width / reach)


def eased(strength: float) -> float:
    """0 to 1 as the strength, faster at first."""
    return 1 - (1 - strength) ** 2


def darkened(dark: tuple[float, float, float], strength: float) -> np.ndarray:
    """The ground [3] on its way from white paper to a dark board: it is half dark at a strength of .3."""
    return mix(WHITE, np.asarray(dark, np.float32), eased(strength))


def readable(ground: np.ndarray, drawing: np.ndarray, light: np.ndarray) -> np.ndarray:
    """The ink for a ground [3]: the drawing's own dark colour on a light ground, `light` on a dark one."""
    return drawing if ground.mean() > 0.5 else np.asarray(light, np.float32)


def pick(rng: np.random.Generator, colours: tuple) -> np.ndarray:
    """One of the colours at random, [3]."""
    return np.asarray(colours[rng.integers(len(colours))], np.float32)


# ---- techniques -------------------------------------------------------------------------------------------------


def chalk(picture: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Chalk on a school's slate: strokes that skip over the grain of the board, dust, and what an eraser left."""
    side = len(picture)
    stick = pick(rng, CHALKS)
    wiped, swept = noise(rng, 4, 3, side), noise(rng, 40, 5, side)  # clouds of the eraser, its sweeps
    grain, pressure = noise(rng, 150, 150, side), noise(rng, 9, 9, side)
    ground = darkened((0.13, 0.19, 0.17), strength)
    board = ground + strength * (0.035 * wiped + 0.022 * swept + 0.02 * grain)[..., None]
    ink, colour = ink_of(picture)
    erased = ndimage.uniform_filter1d(np.roll(ink, round(0.07 * side), axis=1), round(0.12 * side), axis=1)
    board = board + 0.16 * strength * (erased * (1 + 0.4 * swept))[..., None]
    broad = np.maximum(ink, 1.6 * blurred(ink, 0.008))
    skips = ramp(grain + 0.7 * pressure + 3.0 * broad, 2.5, 1.6) * np.minimum(broad, 1)
    cover = np.clip(mix(ink, skips, strength) + 0.16 * strength * blurred(ink, 0.03), 0, 1)
    return lay(board, readable(ground, colour, stick), cover)


def blueprint(picture: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """An architect's cyanotype: white lines on blue paper with a grid, centre lines and the marks of folding."""
    side = len(picture)
    x, y = places(side)
    fibres, stains = noise(rng, 110, 110, side), noise(rng, 4, 4, side)
    folds = rng.uniform(0.3, 0.7, 2)
    ground = darkened((0.06, 0.23, 0.53), strength)
    light = 0.018 * fibres + 0.035 * stains + 0.10 * (line(x - folds[0], 0.006, side) + line(y - folds[1], 0.006, side))
    paper = ground + strength * light[..., None]
    for cells, width, density in ((32, 0.004, 0.22), (8, 0.007, 0.42)):
        grid = np.maximum(*(line((place * cells + 0.5) % 1 / cells - 0.5 / cells, width, side) for place in (x, y)))
        paper = lay(paper, (0.62, 0.80, 0.98), strength * density * grid)
    ink, colour = ink_of(picture)
    paper = lay(paper, (0.75, 0.88, 1.0), 0.5 * strength * centre_lines(ink))
    rim = 1 - np.clip(np.abs(blurred(ink, 0.009) - 0.5) / 0.45, 0, 1)
    hatching = line((x + y) * 40 % 1 / 40 - 0.5 / 40, 0.008, side)
    drafted = np.maximum(rim, (0.20 + 0.45 * hatching) * ink) * np.clip(0.95 + 0.06 * fibres, 0, 1)
    cover = np.clip(mix(ink, drafted, eased(strength)) + 0.12 * strength * blurred(ink, 0.012), 0, 1)
    return lay(paper, readable(ground, colour, (0.95, 0.98, 1.0)), cover)


def centre_lines(ink: np.ndarray) -> np.ndarray:
    """Cover [S, S] of the thin lines through the middle of what is drawn, dash and dot."""
    side = len(ink)
    x, y = places(side)
    cover = np.zeros_like(ink)
    for place, along, axis in ((x, y, 0), (y, x, 1)):
        drawn = np.flatnonzero(ink.max(axis) > 0.5)
        middle = (drawn[0] + drawn[-1] + 1) / 2 / side if len(drawn) else 0.5
        turn = along * 14 % 1
        dashes = (turn < 0.6) | ((turn > 0.74) & (turn < 0.86))
        cover = np.maximum(cover, line(place - middle, 0.006, side) * dashes)
    return cover


def stamp(picture: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """A worn rubber stamp on wrapping paper: ink that is missing in spots, thin in the middle and dark at the rim."""
    side = len(picture)
    pad = pick(rng, STAMP_INKS)
    pulp, fibres = noise(rng, 120, 120, side), noise(rng, 90, 14, side) + noise(rng, 14, 90, side)
    spots, press, specks = noise(rng, 34, 34, side), noise(rng, 3, 3, side), noise(rng, 90, 90, side)
    shade = 0.018 * pulp + 0.016 * fibres
    paper = mix(WHITE, np.asarray((0.83, 0.72, 0.56), np.float32), strength) + strength * shade[..., None]
    ink, colour = ink_of(picture)
    wavering = ramp(blurred(ink, 0.008) + 0.10 * specks, 0.5, 0.35)  # the edge of worn rubber
    inside = np.clip(2 * blurred(ink, 0.02) - 1, 0, 1)  # 1 far from the rim
    wear = ramp(0.8 * spots + 0.6 * specks + 0.55 * press + 1.05 - 0.75 * inside, 0.1, 1.1)
    cover = mix(ink, wavering * (0.08 + 0.88 * wear), strength)
    return lay(paper, mix(colour, pad * mix(1, paper, 0.35), strength), cover)


def mosaic(picture: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """A mosaic of glass: irregular tiles of one colour each, every one tilted a little, set in mortar."""
    side, cells = len(picture), 24
    offsets = rng.uniform(-0.30, 0.30, (2, cells, cells)).astype(np.float32)
    tints = rng.standard_normal((cells * cells, 3), dtype=np.float32)
    tilts = rng.standard_normal((cells * cells, 2), dtype=np.float32)
    rough = noise(rng, 128, 128, side)
    tile, joint, away = tiles(offsets, side)
    number = np.maximum(np.bincount(tile.ravel(), minlength=cells * cells), 1)

    def mean(values: np.ndarray) -> np.ndarray:
        return (np.bincount(tile.ravel(), values.ravel(), cells * cells) / number).astype(np.float32)

    alpha = picture[..., 3]
    share = mean(alpha)
    own = np.stack([mean(picture[..., c] * alpha) for c in range(3)], -1) / np.maximum(share, 1e-6)[:, None]
    ground = max(np.asarray(STONES, np.float32), key=lambda stone: (share[:, None] * np.abs(own - stone)).sum())
    glass = np.where(share[:, None] > 0.45, own, ground)  # [tiles, 3]
    glass = 0.05 + 0.92 * glass * (1 + 0.09 * tints[:, :1]) + 0.02 * tints
    shine = (tilts[tile] * away).sum(-1) * 0.12 + 0.012 * rough
    lit = -away.sum(-1) / (np.abs(away).sum(-1) + 0.05)  # from the upper left
    shine = shine + 0.16 * lit * (1 - ramp(joint, 0.16, 0.16))
    faces = np.clip(glass[tile] + shine[..., None], 0, 1)
    open_joint = 1 - ramp(joint, 0.05, max(0.07, 1.2 * cells / side))
    full = lay(faces, (0.30, 0.27, 0.25), open_joint)
    return mix(on_white(picture), full, strength)


def tiles(offsets: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The cells around points that lie off the middles of a grid by offsets [2, C, C], in shares of a grid cell.

    Returns for every pixel: its tile [S, S], the distance from the nearest joint [S, S], and its place in the tile,
    seen from the point [S, S, 2]; lengths in grid cells.
    """
    cells = offsets.shape[1]
    x, y = (place * cells for place in places(side))
    column, row = x.astype(int), y.astype(int)
    first = np.full((side, side), np.inf, np.float32)
    second, tile, away = first.copy(), np.zeros((side, side), int), np.zeros((side, side, 2), np.float32)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            r, c = np.clip(row + down, 0, cells - 1), np.clip(column + right, 0, cells - 1)
            dx, dy = x - c - 0.5 - offsets[0][r, c], y - r - 0.5 - offsets[1][r, c]
            distance = np.hypot(dx, dy)
            distance = np.where((r == row + down) & (c == column + right), distance, np.inf)
            nearer = distance < first
            second = np.where(nearer, first, np.minimum(second, distance))
            first = np.where(nearer, distance, first)
            tile = np.where(nearer, r * cells + c, tile)
            away = np.where(nearer[..., None], np.stack([dx, dy], -1), away)
    return tile, (second - first) / 2, away


def cross_stitch(picture: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Cross-stitch on evenweave cloth: one cross of cotton for every pixel of the pixel art, holes between them."""
    side = len(picture)
    cotton = pick(rng, THREADS)
    dyes = rng.standard_normal((64, 64), dtype=np.float32)  # of each stitch
    slub = noise(rng, 100, 30, side) + noise(rng, 30, 100, side)
    ink, colour = ink_of(picture)
    pitch, left, top = stitches(ink)
    x, y = places(side)
    column, row = (x - left) / pitch + 1, (y - top) / pitch + 1  # [1, S], [S, 1], in stitches
    c, r = column.astype(int), row.astype(int)
    u, v = column - c, row - r  # within the stitch, 0 to 1
    edge = 1.2 / (pitch * side)  # a pixel and a bit, in stitches
    cell = r * 64 + c
    filled = np.bincount(cell.ravel(), ink.ravel(), 4096) / np.maximum(np.bincount(cell.ravel(), minlength=4096), 1)
    stitched = (filled[cell] > 0.5).astype(np.float32)
    weave = 0.5 * (np.cos(4 * np.pi * u) * np.cos(4 * np.pi * v)) + 0.35 * slub
    hole = np.exp(-(np.minimum(u, 1 - u) ** 2 + np.minimum(v, 1 - v) ** 2) / 0.012)
    cloth = mix(WHITE, np.asarray((0.93, 0.88, 0.78), np.float32), strength)
    cloth = cloth + strength * (0.06 * weave - 0.55 * hole)[..., None]
    shadow = blurred(stitched, 0.3 * pitch) * 0.22
    cloth = cloth * (1 - strength * shadow[..., None])
    cloth = lay(cloth, colour, (1 - strength) * ink)
    dyed = cotton * (1 + 0.22 * dyes[r, c])[..., None]
    for across, along in ((u - v, u + v), (u + v - 1, u - v)):  # the under thread, then the upper one
        distance = np.abs(across) / np.sqrt(2)
        body = 1 - ramp(distance, 0.17, max(0.06, edge))
        round_ = np.clip(1 - (distance / 0.20) ** 2, 0, 1)
        twist = 0.10 * np.sin(2 * np.pi * (2.5 * along + 2.2 * across))
        lit = np.clip(dyed * (0.62 + 0.48 * round_ + twist)[..., None], 0, 1)
        cloth = lay(cloth, lit * strength, min(1, 4 * strength) * stitched * body)
    return cloth


def stitches(ink: np.ndarray) -> tuple[float, float, float]:
    """The grid of a piece of pixel art [S, S]: (pitch, left, top) in shares of the side, 18 to 36 stitches a side.

    The edges of the art lie on the lines of its grid: of all pitches the largest is taken at which the edges are
    nearly as much in step as at the best one.
    """
    side = len(ink)
    at = np.arange(1, side) / side
    edges = [np.abs(np.diff(ink, axis=axis)).sum(1 - axis) for axis in (1, 0)]  # across x, across y
    counts = np.arange(10, 36, 0.05)  # stitches a side
    waves = np.exp(2j * np.pi * counts[:, None] * at)  # [counts, S - 1]
    sums = np.stack([waves @ edge for edge in edges])  # [2, counts]
    step = np.abs(sums).sum(0)
    peaks = np.flatnonzero((step >= np.roll(step, 1)) & (step >= np.roll(step, -1)) & (step > 0.9 * step.max()))
    best = peaks[0] if len(peaks) else step.argmax()
    left, top = np.angle(sums[:, best]) / (2 * np.pi) / counts[best]
    pitch = float(1 / counts[best])
    return pitch if counts[best] >= 18 else pitch / 2, float(left) % pitch, float(top) % pitch


TECHNIQUES: dict[str, Callable[[np.ndarray, float, np.random.Generator], np.ndarray]] = {
    "mosaic": mosaic,
    "blueprint": blueprint,
    "stamp": stamp,
    "chalk": chalk,
    "cross_stitch": cross_stitch,
}


def draw(technique: str, picture: Image.Image, size: int, strength: float, seed: int) -> Image.Image:
    """A drawing (RGBA, square) done again in a technique: RGB, size x size pixels.

    The side of `picture` is a multiple of `size`: the technique works at its resolution, and the result is averaged.
    strength: 0 to 1. seed: fixes every random draw. Raises UserError for a technique that does not exist.
    """
    if technique not in TECHNIQUES:
        raise UserError(f"Unknown technique {technique!r}. Known: {', '.join(TECHNIQUES)}.")
    pixels = np.asarray(picture.convert("RGBA"), np.float32) / 255  # [S, S, 4]
    drawn = TECHNIQUES[technique](pixels, strength, np.random.default_rng(seed))  # [S, S, 3]
    times = len(drawn) // size
    drawn = np.clip(drawn, 0, 1).reshape(size, times, size, times, 3).mean((1, 3))
    return Image.fromarray(np.rint(drawn * 255).astype(np.uint8))
