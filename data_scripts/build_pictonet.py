"""Build PictoNet, the embedded benchmark, out of two npm packages of open icon sets.

    python data_scripts/build_pictonet.py --cache ~/.cache/pictonet

Which sets feed which domain stands in `pictonet_sources.json`, the classes with the names designers give them in
`pictonet_classes.json`, drawings left out by eye, with the reason, in `pictonet_exclusions.json`. The result,
`prosutils/data/pictonet.zip` and `ATTRIBUTION.md`, is the same to the byte at every run.
"""

import argparse
import functools
import io
import json
import os
import re
import sys
import zipfile
import zlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image
from scipy.ndimage import gaussian_filter
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from icon_packages import SOURCES, fetch_packages  # noqa: E402

from prosutils.files import UserError  # noqa: E402
from prosutils.pictonet import PICTONET_DOMAINS, render  # noqa: E402

HERE = Path(__file__).parent
DATA = HERE.parent / "prosutils" / "data"
CLASSES = json.loads((HERE / "pictonet_classes.json").read_text(encoding="utf-8"))
EXCLUSIONS = json.loads((HERE / "pictonet_exclusions.json").read_text(encoding="utf-8"))
# Drawn once, with numpy's default_rng(0), among the classes that had three drawings in every domain: 15 % and 25 %.
SPLIT = json.loads((HERE / "pictonet_split.json").read_text(encoding="utf-8"))
ALLOWED_LICENCES = {
    "MIT",
    "Apache-2.0",
    "ISC",
    "BSD-3-Clause",
    "MPL-2.0",
    "OFL-1.1",
    "CC0-1.0",
    "CC-BY-3.0",
    "CC-BY-4.0",
}
FLUENT_3D = "@lobehub/fluent-emoji-3d"
PER_CELL = 6  # drawings of one class in one domain, at most
MARGIN = 0.06  # of the side, on every edge of a drawing
SAME_DRAWING = 0.98  # likeness (1 = equal) at which two drawings count as one
ENOUGH = 3  # drawings in a cell that does without second tints

# Words that name a style and not a thing: dropped from the end of an icon's name before it is looked up.
STYLE = re.compile(
    r"-(outline|outlined|line|filled|fill|solid|duotone|duo|flat|o|alt|simple|bold|small|sharp|glyph|"
    r"rounded|round|stroke|icon|one|two|three|four|five|\d+)$"
)
# Styles that do not belong in a domain ("duo" is Kameleon's small drawing on a large disc).
WRONG_STYLE = {
    "clipart": re.compile(r"-duo$"),
    "outline": re.compile(r"-(filled|fill|solid|thin|light|bold|duotone)(-|$)"),
    "solid": re.compile(r"-(o|outline|outlined|line)$"),
    "sketch": re.compile(r"-(filled|fill|thin|light|bold|duotone)$"),
}
# Sets that name a drawing by its place in a catalogue: "modern-music-bass-guitar" is found as "bass-guitar".
CATALOGUED = {"streamline-freehand", "streamline-freehand-color", "streamline-pixel", "streamline-ultimate-color"}
# At the end of such a name these are a badge on something else: "laptop-action-search" is a laptop.
BADGES = {
    "search",
    "lock",
    "hand",
    "cloud",
    "heart",
    "star",
    "flash",
    "mail",
    "basket",
    "shield",
    "mobile",
    "smartphone",
    "clock",
    "target",
    "email",
    "letter",
    "phone",
    "home",
    "camera",
    "music",
    "magnet",
    "wand",
}
# Sets that run words together: "alarmclock".
RUN_TOGETHER = {"fxemoji", "whh", "raphael"}
# Two tints of the same drawings: one of the two is taken, at random, and the other only where drawings are few.
TWINS = {"icon-park": "icon-park-twotone", "streamline-freehand": "streamline-freehand-color"}
PALETTE = ("#e84c3d", "#3399db", "#2ecc71", "#f2c40f", "#9c59b5", "#e67e21", "#1abc9c", "#34495e")


@dataclass(frozen=True)
class Icon:
    """One drawing as its designer made it: body and box of an SVG, or the bytes of a WebP."""

    domain: str
    family: str
    set: str
    name: str
    licence: str
    body: str = ""
    box: tuple[float, float, float, float] = (0, 0, 0, 0)  # x, y, width, height
    webp: bytes = b""

    @property
    def seed(self) -> int:
        """A number of this drawing's own, the same on every machine."""
        return zlib.crc32(f"{self.set}:{self.name}".encode())


# ---- the icons of a domain, and their classes -------------------------------------------------------------------


def read_icons(packages: dict[str, Path]) -> list[Icon]:
    """Every visible icon of every set in SOURCES, in the order of that file."""
    iconify, fluent = packages["@iconify/json"], packages[FLUENT_3D]
    licences = json.loads((iconify / "collections.json").read_text(encoding="utf-8"))
    icons = []
    for domain, families in SOURCES["domains"].items():
        for family, sets in families.items():
            for name in sets:
                if name == FLUENT_3D:
                    icons += read_fluent_3d(fluent, iconify, domain, family)
                else:
                    icons += read_set(iconify, domain, family, name, licences[name]["license"]["spdx"])
    return icons


def read_set(iconify: Path, domain: str, family: str, name: str, licence: str) -> list[Icon]:
    """The icons of one iconify set."""
    content = json.loads((iconify / "json" / f"{name}.json").read_text(encoding="utf-8"))

    def box(icon):
        return tuple(
            icon.get(key, content.get(key, default))
            for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
        )

    return [
        Icon(domain, family, name, key, licence, icon["body"], box(icon))
        for key, icon in content["icons"].items()
        if not icon.get("hidden")
    ]


def read_fluent_3d(fluent: Path, iconify: Path, domain: str, family: str) -> list[Icon]:
    """Fluent's 3-D renders: files named by code point, given the names that the flat set of the same family has."""
    flat = json.loads((iconify / "json" / "fluent-emoji-flat.json").read_text(encoding="utf-8"))
    files = [(fluent / "assets" / f"{code}.webp", name) for code, name in sorted(flat["chars"].items())]
    return [
        Icon(domain, family, "fluent-emoji-3d", name, "MIT", webp=path.read_bytes())
        for path, name in files
        if path.exists()
    ]


def vocabulary() -> dict[str, tuple[str, int]]:
    """{name or "set:name": (class, rank)}; the class's own name has rank 0."""
    words = {}
    for label, names in CLASSES.items():
        for rank, name in enumerate([label.replace("_", "-"), *names]):
            words.setdefault(name, (label, rank))
    return words


def plain(name: str) -> str:
    """An icon's name without the words of style at its end."""
    while (shorter := STYLE.sub("", name)) != name and shorter:
        name = shorter
    return name


def classify(icon: Icon, words: dict, run_together: dict) -> tuple[str, int] | None:
    """(class, rank) of an icon by its name, or None. Rank 0 is the best match."""
    if f"{icon.set}:{icon.name}" in words:
        return words[f"{icon.set}:{icon.name}"][0], 0
    if f"{icon.set}:{icon.name}" in EXCLUSIONS or (
        icon.domain in WRONG_STYLE and WRONG_STYLE[icon.domain].search(icon.name)
    ):
        return None
    name = plain(icon.name)
    names = [icon.name, name]
    if icon.set in CATALOGUED:
        parts = name.split("-")
        last = len(parts) - (icon.domain != "pixel" and parts[-1] in BADGES)
        names += ["-".join(parts[i:]) for i in range(1, last)]
    if icon.set in RUN_TOGETHER:
        return run_together.get(name.replace("-", ""))
    return next((words[n] for n in names if n in words), None)


def candidates(icons: list[Icon]) -> dict[str, dict[str, list[Icon]]]:
    """{class: {domain: icons}}; in each list every set shows its best match first, then its second, and so on."""
    words = vocabulary()
    run_together = {name.replace("-", ""): found for name, found in reversed(words.items())}
    ranked = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for icon in icons:
        if found := classify(icon, words, run_together):
            label, rank = found
            ranked[label][icon.domain][icon.set].append((rank, len(icon.name), icon.name, icon))
    return {
        label: {domain: in_turn([sorted(entries) for entries in sets.values()]) for domain, sets in domains.items()}
        for label, domains in ranked.items()
    }


def in_turn(queues: list[list[tuple]]) -> list[Icon]:
    """The first of every queue, then the second of every queue..."""
    longest = max(map(len, queues))
    return [queue[turn][-1] for turn in range(longest) for queue in queues if turn < len(queue)]


# ---- drawing ----------------------------------------------------------------------------------------------------


def svg(body: str, box: tuple, defs: str = "", attributes: str = "", ink: str = "#000") -> bytes:
    """An SVG document; ink is the colour that an icon set leaves to the reader."""
    view = " ".join(f"{value:.5g}" for value in box)
    defs = f"<defs>{defs}</defs>" if defs else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{view}" '
        f'color="{ink}">{defs}<g{attributes}>{body}</g></svg>'
    ).encode()


def ink_box(alpha: np.ndarray) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of what is drawn in an alpha picture [H, W]."""
    rows, columns = np.flatnonzero(alpha.max(1) > 20), np.flatnonzero(alpha.max(0) > 20)
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


@functools.cache
def framed(icon: Icon, margin: float = MARGIN) -> tuple:
    """The square box around what is drawn, with a margin; ValueError where nothing is drawn."""
    x, y, w, h = icon.box
    side, pixels = max(w, h) * 1.2, 192
    corner = x + w / 2 - side / 2, y + h / 2 - side / 2
    alpha = rasterise(svg(icon.body, (*corner, side, side)), pixels)[..., 3]
    if alpha.max() <= 20:
        raise ValueError(f"{icon.set}:{icon.name} is empty")
    left, top, right, bottom = (value * side / pixels for value in ink_box(alpha))
    inner = max(right - left, bottom - top)
    outer = inner / (1 - 2 * margin)
    return (corner[0] + (left + right - outer) / 2, corner[1] + (top + bottom - outer) / 2, outer, outer)


def rasterise(document: bytes, size: int) -> np.ndarray:
    """RGBA [size, size, 4] of an SVG, transparent where nothing is drawn."""
    sized = document.decode().replace("<svg", f'<svg width="{size}" height="{size}"', 1)
    try:
        png = bytes(resvg_py.svg_to_bytes(svg_string=sized))
    except BaseException as error:  # resvg panics on a few malformed paths, and a panic is not an Exception
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"resvg cannot draw it: {error}") from None
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))


def draw_plain(icon: Icon) -> bytes:
    """The icon as it is, framed."""
    return svg(icon.body, framed(icon))


def draw_webp(icon: Icon, size: int = 224) -> bytes:
    """A render, framed and re-encoded."""
    picture = Image.open(io.BytesIO(icon.webp)).convert("RGBA")
    cut = picture.crop(ink_box(np.asarray(picture)[..., 3]))
    side = round(max(cut.size) / (1 - 2 * MARGIN))
    square = Image.new("RGBA", (side, side))
    square.paste(cut, ((side - cut.width) // 2, (side - cut.height) // 2))
    file = io.BytesIO()
    square.resize((size, size), Image.Resampling.LANCZOS).save(file, "WEBP", quality=80, method=6)
    return file.getvalue()


def draw_palette(icon: Icon) -> bytes:
    """A two-tone icon with its light tone (alpha about 1/3) and its dark tone filled from a palette."""
    light, dark = np.random.default_rng(icon.seed).choice(PALETTE, 2, replace=False)
    light, dark = mix(light, "#ffffff", 0.35), mix(dark, "#000000", 0.15)
    functions = "".join(
        f'<feFunc{c} type="table" tableValues="{a:.3g} {a:.3g} {b:.3g} {b:.3g}"/>'
        for c, a, b in zip("RGB", light, dark)
    )
    tones = (
        '<filter id="palette" color-interpolation-filters="sRGB"><feColorMatrix values="0 0 0 1 0 0 0 0 1 0 0 0 0 '
        f'1 0 0 0 0 1 0"/><feComponentTransfer>{functions}<feFuncA type="table" tableValues="0 1 1 1"/>'
        "</feComponentTransfer></filter>"
    )
    return svg(icon.body, framed(icon), tones, ' filter="url(#palette)"')


def mix(colour: str, other: str, share: float) -> np.ndarray:
    """Two colours as "#rrggbb" mixed, RGB in [0, 1]."""
    a, b = (np.array([int(c[i : i + 2], 16) for i in (1, 3, 5)]) / 255 for c in (colour, other))
    return (1 - share) * a + share * b


def draw_pencil(icon: Icon) -> bytes:
    """A line icon drawn again with a pencil: two unsteady strokes and the grain of paper, as an SVG filter.

    The drawing is scaled to a box of 16 units and all lengths are shares of it, so that the pencil is the same in
    every set and at every resolution.
    """
    rng = np.random.default_rng(icon.seed)
    x, y, side, _ = framed(icon, margin=0.1)
    seed = int(rng.integers(1, 10_000))
    wobble, waves = rng.uniform(1.4, 2.3), rng.uniform(1.8, 3.0)  # units; waves of the hand across the drawing
    pencil = (
        '<filter id="pencil" filterUnits="userSpaceOnUse" x="0" y="0" width="16" height="16" '
        'color-interpolation-filters="sRGB">'
        f'<feTurbulence type="fractalNoise" baseFrequency="{waves / 16:.3g}" numOctaves="2" seed="{seed}"/>'
        '<feColorMatrix values="1 0 0 0 0 0 1 0 0 0 0 0 1 0 0 0 0 0 0 1" result="hand"/>'
        f'<feDisplacementMap in="SourceGraphic" in2="hand" scale="{wobble:.3g}" xChannelSelector="R" '
        'yChannelSelector="G" result="first"/>'
        f'<feDisplacementMap in="SourceGraphic" in2="hand" scale="{0.75 * wobble:.3g}" xChannelSelector="B" '
        'yChannelSelector="R" result="again"/>'
        '<feComponentTransfer in="again" result="faint"><feFuncA type="linear" slope="0.6"/></feComponentTransfer>'
        '<feMerge result="strokes"><feMergeNode in="faint"/><feMergeNode in="first"/></feMerge>'
        f'<feTurbulence type="fractalNoise" baseFrequency="1.6" numOctaves="1" seed="{seed + 1}"/>'
        '<feColorMatrix values="0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 -1.6 1.75" result="grain"/>'
        '<feComposite in="strokes" in2="grain" operator="in"/></filter>'
    )
    scale = 16 / side
    body = icon.body.replace('stroke-width="2"', 'stroke-width="1.3"')
    body = f'<g transform="scale({scale:.5g}) translate({-x:.5g} {-y:.5g})">{body}</g>'
    return svg(body, (0, 0, 16, 16), pencil, ' filter="url(#pencil)"', ink="#222")


def draw_crisp(icon: Icon) -> bytes:
    """Pixel art as it is, with hard edges."""
    return svg(icon.body, framed(icon), attributes=' shape-rendering="crispEdges"')


def draw_grid(icon: Icon) -> bytes:
    """A silhouette drawn again on a grid of 16 to 20 cells a side, one rectangle per run of filled cells."""
    cells = int(np.random.default_rng(icon.seed).choice([16, 18, 20]))
    alpha = rasterise(svg(icon.body, framed(icon, margin=0)), cells * 8)[..., 3].astype(float)
    filled = alpha.reshape(cells, 8, cells, 8).mean((1, 3)) > 105  # [cells, cells]
    runs = [
        f"M{run.start()} {row}h{len(run[0])}v1h-{len(run[0])}z"
        for row, line in enumerate(filled)
        for run in re.finditer("#+", "".join(".#"[int(cell)] for cell in line))
    ]
    border = cells * MARGIN / (1 - 2 * MARGIN)
    box = (-border, -border, cells + 2 * border, cells + 2 * border)
    return svg(f'<path d="{"".join(runs)}"/>', box, attributes=' shape-rendering="crispEdges"')


def drawer(icon: Icon):
    """(function that draws the icon for its domain, what it does in the manifest's words)."""
    if icon.webp:
        return draw_webp, "3-D render"
    if icon.set in ("icon-park-twotone", "duo-icons"):
        return draw_palette, "two tones filled from a palette"
    if icon.domain == "sketch" and icon.family != "Streamline Freehand":
        return draw_pencil, "line icon drawn again with a pencil"
    if icon.set == "game-icons":
        return draw_grid, "silhouette drawn again on a pixel grid"
    if icon.domain == "pixel":
        return draw_crisp, "pixel art as it is"
    return draw_plain, "as it is"


# ---- choosing ---------------------------------------------------------------------------------------------------


def fingerprint(icon: Icon) -> np.ndarray:
    """What an icon looks like before it is re-drawn: RGB of 24 x 24, softened, centred and of unit length, flat."""
    document = icon.webp or svg(icon.body, framed(icon))
    picture = 255.0 - np.asarray(render(document, 48), dtype=float)
    soft = gaussian_filter(picture, (1.2, 1.2, 0))[::2, ::2].ravel()
    soft -= soft.mean()
    return soft / max(np.linalg.norm(soft), 1e-9)


def second_tint(icon: Icon, cell: list[Icon]) -> bool:
    """Whether the cell has this drawing's other tint too, and that one goes first."""
    pairs = TWINS.items() if zlib.crc32(icon.name.encode()) % 2 else [(b, a) for a, b in TWINS.items()]
    return any(
        icon.set == later and any(other.set == earlier and other.name == icon.name for other in cell)
        for earlier, later in pairs
    )


def choose(by_domain: dict[str, list[Icon]]) -> list[tuple[Icon, bytes]]:
    """One class: up to PER_CELL drawings of each domain, no two of them the same drawing."""
    chosen, prints = [], []
    for domain in PICTONET_DOMAINS:
        cell = by_domain.get(domain, [])
        second = [icon for icon in cell if second_tint(icon, cell)]
        count = 0
        for icon in [icon for icon in cell if icon not in second] + second:
            if count >= (ENOUGH if icon in second else PER_CELL):
                break
            try:
                mark = fingerprint(icon)
                if any(mark @ other > SAME_DRAWING for other in prints):
                    continue
                chosen.append((icon, drawer(icon)[0](icon)))
            except ValueError:  # nothing is drawn
                continue
            prints.append(mark)
            count += 1
    return chosen


def split_classes() -> dict[str, list[str]]:
    """Seen, val and unseen classes, sorted; val and unseen as SPLIT fixes them, seen all others."""
    return {
        "seen": sorted(set(CLASSES) - {*SPLIT["val"], *SPLIT["unseen"]}),
        "val": sorted(SPLIT["val"]),
        "unseen": sorted(SPLIT["unseen"]),
    }


# ---- writing ----------------------------------------------------------------------------------------------------


def build(packages: dict[str, Path], target: Path) -> dict:
    """Write target/pictonet.zip and target/ATTRIBUTION.md; returns the manifest."""
    found = candidates(read_icons(packages))
    drawings, files = [], {}
    for label in tqdm(sorted(CLASSES), desc="draw", unit=" classes"):
        for icon, data in choose(found.get(label, {})):
            extension = "webp" if icon.webp else "svg"
            file = f"{icon.domain}/{label}/{icon.set}_{icon.name}.{extension}"
            files[file] = data
            drawings.append(
                {
                    "domain": icon.domain,
                    "class": label,
                    "family": icon.family,
                    "set": icon.set,
                    "icon": icon.name,
                    "licence": icon.licence,
                    "drawn": drawer(icon)[1],
                    "file": file,
                }
            )
    counts = {label: {domain: 0 for domain in PICTONET_DOMAINS} for label in CLASSES}
    for record in drawings:
        counts[record["class"]][record["domain"]] += 1
    check(drawings, counts)
    content = {
        "packages": {name: pin["version"] for name, pin in SOURCES["packages"].items()},
        "classes": split_classes(),
        "drawings": drawings,
    }
    target.mkdir(parents=True, exist_ok=True)
    write_archive(target / "pictonet.zip", content, files)
    write(target / "ATTRIBUTION.md", attribution(packages["@iconify/json"], drawings).encode())
    return content


def check(drawings: list[dict], counts: dict) -> None:
    """UserError where a class lacks a domain, the gallery is thin, or a licence is not allowed."""
    for label, row in counts.items():
        if min(row.values()) < 1 or row["emoji"] < 4:
            raise UserError(f"Class {label} has too few drawings: {row}")
    if wrong := {(r["set"], r["licence"]) for r in drawings if r["licence"] not in ALLOWED_LICENCES}:
        raise UserError(f"Not an allowed licence: {sorted(wrong)}")


def write_archive(path: Path, content: dict, files: dict[str, bytes]) -> None:
    """A zip with sorted entries and one fixed date, so that the same drawings give the same bytes."""
    entries = {"manifest.json": json.dumps(content, indent=0).encode(), **dict(sorted(files.items()))}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, data in entries.items():
            archive.writestr(zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED, 9)
    write(path, buffer.getvalue())


def write(path: Path, data: bytes) -> None:
    """Write a file in one step."""
    path.with_name(path.name + ".part").write_bytes(data)
    os.replace(path.with_name(path.name + ".part"), path)


def attribution(iconify: Path, drawings: list[dict]) -> str:
    """ATTRIBUTION.md: every set that is used, with family, author, licence, source and number of drawings."""
    collections = json.loads((iconify / "collections.json").read_text(encoding="utf-8"))
    collections["fluent-emoji-3d"] = {
        "name": "Fluent Emoji 3D",
        "author": {
            "name": "Microsoft Corporation, packed by LobeHub",
            "url": "https://github.com/lobehub/fluent-emoji",
        },
        "license": {"title": "MIT", "url": "https://github.com/microsoft/fluentui-emoji/blob/main/LICENSE"},
    }
    lines = [
        "# Who drew PictoNet",
        "",
        "Every drawing belongs to its designers and stands under their licence; `licences/` holds the texts.",
        "Changed by this project: framing to a square; two-tone sets filled with colours; the line icons of the",
        "sketch domain drawn again with a pencil filter; the silhouettes of Game Icons drawn again on a pixel grid.",
        "",
        "| domain | family | set | author | licence | drawings |",
        "|---|---|---|---|---|---|",
    ]
    used = defaultdict(int)
    for record in drawings:
        used[PICTONET_DOMAINS.index(record["domain"]), record["family"], record["set"]] += 1
    for (domain, family, name), count in sorted(used.items()):
        info = collections[name]
        author, licence = info["author"], info["license"]
        cells = (
            PICTONET_DOMAINS[domain],
            family,
            f"{info['name']} (`{name}`)",
            link(author["name"], author.get("url")),
            link(licence["title"], licence.get("url")),
            str(count),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def link(text: str, url: str | None) -> str:
    """Markdown for a text with or without an address."""
    return f"[{text}]({url})" if url else text


def main() -> None:
    parser = argparse.ArgumentParser(description="Build prosutils/data/pictonet.zip out of two npm packages.")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path.home() / ".cache" / "pictonet",
        help="where the packages are kept (120 MB packed, 500 MB unpacked; default: %(default)s)",
    )
    parser.add_argument(
        "--tarballs", type=Path, help="a folder that holds the packages' .tgz files: nothing is fetched"
    )
    parser.add_argument("--output", type=Path, default=DATA, help="where the archive goes (default: %(default)s)")
    options = parser.parse_args()
    try:
        content = build(fetch_packages(options.cache, options.tarballs), options.output)
    except UserError as error:
        sys.exit(str(error))
    archive = options.output / "pictonet.zip"
    print(
        f"{archive}: {len(content['drawings'])} drawings of {sum(map(len, content['classes'].values()))} classes, "
        f"{archive.stat().st_size / 1e6:.1f} MB"
    )


if __name__ == "__main__":
    main()
