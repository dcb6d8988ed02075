"""PictoNet, the embedded benchmark: real drawings by real designers, from the shipped archive to images.

The archive `data/pictonet.zip` (made by `data_scripts/build_pictonet.py`) holds one small SVG or WebP per drawing
and `manifest.json`. An SVG is the complete picture: the pencil of the sketch domain, the grid of the pixel domain
and the palette of two-tone clipart are written into it, so a drawing comes out alike at every size.

The benchmark has two tiers of the same drawings, classes and splits. Near: plain on white, as mini-CLIP was
pre-trained. Far: every domain but the gallery is drawn again in a technique that mini-CLIP never met
(`techniques.py`), with a strength from 0, the near tier, to 1.
"""

import contextlib
import functools
import hashlib
import io
import json
import math
import multiprocessing
import numbers
import os
import shutil
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import resources
from pathlib import Path

import platformdirs
import resvg_py
from matplotlib import font_manager
from PIL import Image, ImageChops, ImageDraw, ImageFont
from tqdm import tqdm

from prosutils import techniques
from prosutils.files import UserError, end_with_parent, only_one

PICTONET_DOMAINS = ("emoji", "clipart", "outline", "solid", "sketch", "pixel")
GALLERY_DOMAIN = "emoji"
TIERS = ("near", "far")
FAR_DOMAINS = {
    "clipart": "mosaic",
    "outline": "blueprint",
    "solid": "stamp",
    "sketch": "chalk",
    "pixel": "cross_stitch",
}  # near tier's domain: technique
# The far tier's strengths, chosen on validation classes by studies/far_strength.py before any method was compared.
FAR_STRENGTH = {"mosaic": 0.75, "blueprint": 1.0, "stamp": 1.0, "chalk": 1.0, "cross_stitch": 1.0}
SIZES = (16, 2048)  # pixels of a drawing's side, smallest and largest
TINTS = {
    "emoji": "#fdf1e3",
    "clipart": "#fbe9ea",
    "outline": "#e9f2fb",
    "solid": "#eef0f3",
    "sketch": "#f6f2e6",
    "pixel": "#e8f4ee",
    "mosaic": "#5f5a55",
    "blueprint": "#123a80",
    "stamp": "#d2b68d",
    "chalk": "#1f2a26",
    "cross_stitch": "#ebdfc8",
}  # behind a domain's row in the contact sheet
SHEET = {  # class: which drawing of each domain the contact sheet shows
    "airplane": (2, 0, 1, 2, 1, 2),
    "apple": (1, 0, 0, 0, 0, 1),
    "bicycle": (3, 0, 1, 1, 1, 0),
    "burger": (0, 0, 0, 0, 1, 1),
    "camera": (0, 1, 0, 1, 0, 1),
    "castle": (1, 1, 0, 0, 0, 1),
    "cat": (2, 2, 0, 0, 1, 1),
    "flower": (3, 0, 1, 2, 2, 1),
    "ghost": (5, 1, 1, 1, 1, 0),
    "guitar": (3, 0, 0, 0, 1, 1),
    "house": (2, 4, 0, 2, 0, 1),
    "robot": (1, 2, 1, 0, 0, 1),
    "rocket": (4, 1, 0, 0, 0, 1),
    "sailboat": (1, 2, 0, 0, 1, 0),
    "umbrella": (2, 0, 3, 1, 0, 1),
}
DIAL = {"clipart": "guitar", "outline": "rocket", "solid": "cat", "sketch": "castle", "pixel": "house"}  # domain: class
PENCIL_PIXELS = 128  # the pencil's filter costs time by the pixel and draws nothing finer than this
STAMP = "pictonet.json"  # in a laid-out folder: which drawings it holds, and at what size


@functools.cache
def archive() -> zipfile.ZipFile:
    """The shipped archive, opened once."""
    return zipfile.ZipFile(io.BytesIO(resources.files("prosutils").joinpath("data/pictonet.zip").read_bytes()))


@functools.cache
def _manifest_bytes() -> bytes:
    return archive().read("manifest.json")


def manifest() -> list[dict]:
    """One record per drawing, in the order of the archive.

    Keys: domain, class, family (the designer's hand: it feeds this domain only), set and icon (its name in the
    package it comes from), licence (SPDX identifier), drawn (how the picture was made from the icon), file (its
    name in the archive).
    """
    return json.loads(_manifest_bytes())["drawings"]


def classes() -> dict[str, list[str]]:
    """The fixed split: {"seen": [...], "val": [...], "unseen": [...]}, sorted, disjoint, complete."""
    return json.loads(_manifest_bytes())["classes"]


def tier_domains(tier: str = "near") -> tuple[str, ...]:
    """The domains of a tier, the gallery first; in the far tier they are named after the techniques."""
    check_tier(tier)
    if tier == "near":
        return PICTONET_DOMAINS
    return tuple(FAR_DOMAINS.get(domain, domain) for domain in PICTONET_DOMAINS)


def far_strengths(strength: float | None = None) -> dict[str, float]:
    """{technique: strength} of the far tier: the chosen ones, or one for all. Raises UserError outside 0 to 1."""
    if strength is None:
        return FAR_STRENGTH
    if isinstance(strength, bool) or not isinstance(strength, numbers.Real) or not 0 <= strength <= 1:  # nan is not
        raise UserError(f"The far tier's strength is a number from 0 (the near tier) to 1, not {strength!r}.")
    return dict.fromkeys(FAR_DOMAINS.values(), float(strength))


def check_tier(tier: str, strength: float | None = None) -> None:
    """Raises UserError for an unknown tier, a strength outside 0 to 1, and a strength for the near tier."""
    if tier not in TIERS:
        raise UserError(f"Unknown tier {tier!r}. Known: {', '.join(TIERS)}.")
    if strength is not None:
        far_strengths(strength)
        if tier == "near":
            raise UserError("The near tier has no strength; leave it out, or ask for the far tier.")


def check_size(size: int) -> None:
    """Raises UserError for a size that PictoNet is not drawn at."""
    low, high = SIZES
    if not isinstance(size, numbers.Integral) or not low <= size <= high:
        raise UserError(
            f"PictoNet cannot be drawn at {size} pixels; ask for {low} or more, at most {high:,} "
            "(mini-CLIP: 64, CLIP: 224)."
        )


def rasterise(data: bytes, size: int) -> Image.Image:
    """A drawing's SVG or WebP bytes as an RGBA image of size x size pixels, transparent where nothing is drawn."""
    if data.startswith(b"<svg"):
        side = min(size, PENCIL_PIXELS) if b'id="pencil"' in data else size
        svg = data.decode().replace("<svg", f'<svg width="{side}" height="{side}"', 1)
        data = bytes(resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True))
    picture = Image.open(io.BytesIO(data)).convert("RGBA")
    return picture if picture.size == (size, size) else picture.resize((size, size), Image.Resampling.LANCZOS)


def render(data: bytes, size: int) -> Image.Image:
    """A drawing's SVG or WebP bytes as an RGB image of size x size pixels on white."""
    picture = rasterise(data, size)
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def load_drawing(record: dict, size: int = 64, tier: str = "near", strength: float | None = None) -> Image.Image:
    """The picture of one record of `manifest()`, RGB, size x size pixels.

    tier: "near" or "far". strength, of the far tier: 0 (the near tier's picture) to 1, or None for the chosen ones.
    Raises UserError for another tier, strength or size (16 to 2,048).
    """
    check_tier(tier, strength)
    check_size(size)
    data = archive().read(record["file"])
    technique = FAR_DOMAINS.get(record["domain"]) if tier == "far" else None
    share = far_strengths(strength)[technique] if technique else 0
    if technique is None or not share:
        return render(data, size)
    drawn_at = size * math.ceil(techniques.DRAWN_AT / size)
    return techniques.draw(technique, rasterise(data, drawn_at), size, share, zlib.crc32(record["file"].encode()))


def default_folder(size: int, tier: str = "near", strength: float | None = None) -> Path:
    """Where PictoNet is laid out unless told otherwise: in PROSUTILS_CACHE if that is set, else the user's cache.

    Raises UserError for an unknown tier or strength.
    """
    check_tier(tier, strength)
    cache = os.environ.get("PROSUTILS_CACHE") or platformdirs.user_cache_path("prosutils")
    parts = ["pictonet", *(["far"] if tier == "far" else []), *([str(float(strength))] if strength is not None else [])]
    return Path(cache) / "-".join([*parts, str(size)])


def stamp(size: int, tier: str = "near", strength: float | None = None) -> dict:
    """What a folder laid out by this version carries in its stamp file: all that its pictures depend on."""
    found = {"benchmark": "PictoNet", "size": size, "manifest": hashlib.sha256(_manifest_bytes()).hexdigest()}
    if tier == "far":
        found |= {"tier": tier, "strength": far_strengths(strength), "techniques": techniques.VERSION}
    return found


def lay_out(
    folder: Path | str,
    size: int = 64,
    progress: bool = True,
    jobs: int = 1,
    tier: str = "near",
    strength: float | None = None,
) -> Path:
    """Draw PictoNet into `folder`/domain/class/<set>_<icon>.png (RGB, size x size) and return the folder.

    Atomic: the folder appears when it is complete. A second call with the same arguments returns at once; a folder of
    another size, tier, strength or version of PictoNet, or one that lacks drawings, is replaced. tier, strength: as for
    `load_drawing`. jobs: processes that draw; above 1 only in a program whose start is under
    `if __name__ == "__main__"`, as the processes import it.
    Raises UserError: the folder holds something else, it cannot be written, or an argument is none of those allowed.
    """
    folder = Path(folder)
    check_tier(tier, strength)
    check_size(size)
    if is_laid_out(folder, size, tier, strength):
        return folder
    with only_one(folder):
        if not is_laid_out(folder, size, tier, strength):  # nobody else has drawn it meanwhile
            replace_folder(folder, size, progress, jobs, tier, strength)
    return folder


def is_laid_out(folder: Path, size: int, tier: str = "near", strength: float | None = None) -> bool:
    """Whether the folder is this version's, and as many drawings as PictoNet has are in it."""
    return read_stamp(folder) == stamp(size, tier, strength) and sum(1 for _ in folder.glob("*/*/*.png")) == len(
        manifest()
    )


def replace_folder(folder: Path, size: int, progress: bool, jobs: int, tier: str, strength: float | None) -> None:
    """Draw beside `folder` and move it there in one step, if nothing of the user's is lost by that."""
    check_replaceable(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        own = f".pictonet-{folder.name}-"
        for left in folder.parent.glob(f"{own}*"):  # by a process that was killed: we hold the lock
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=own, dir=folder.parent) as work:
            draw_all(Path(work) / "new", size, progress, jobs, tier, strength)
            if folder.exists():
                os.replace(folder, Path(work) / "old")
            os.replace(Path(work) / "new", folder)
    except OSError as error:
        raise UserError(f"Cannot write PictoNet to {folder} ({error.strerror}); choose another folder.") from error


def check_replaceable(folder: Path) -> None:
    """Raises UserError where a folder holds anything but PictoNet: it is to be kept."""
    if not folder.exists() or folder.is_dir() and not any(folder.iterdir()):
        return
    if read_stamp(folder) is None:
        if (folder / STAMP).exists():
            raise UserError(
                f"{folder} holds a damaged copy of PictoNet ({STAMP} cannot be read); delete the folder, "
                "or choose another."
            )
        raise UserError(f"{folder} exists and is not PictoNet; choose a new or empty folder.")
    drawings, files = set(folder.glob("*/*/*.png")), (path for path in folder.rglob("*") if path.is_file())
    others = [path for path in files if path not in drawings and path.name != STAMP and not path.name.startswith(".")]
    if others:
        raise UserError(
            f"{folder} is PictoNet of another version, size or strength, and {min(others).name} in it is "
            "not part of it; move that file, or choose another folder."
        )


def read_stamp(folder: Path) -> dict | None:
    """The stamp of a folder that `lay_out` made, None for any other folder."""
    try:
        found = json.loads((folder / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("benchmark") == "PictoNet" else None


def draw_all(
    folder: Path, size: int, progress: bool, jobs: int = 1, tier: str = "near", strength: float | None = None
) -> None:
    """Every drawing as domain/class/<set>_<icon>.png, and the stamp."""
    parts = [manifest()[start : start + 100] for start in range(0, len(manifest()), 100)]
    names = dict(zip(PICTONET_DOMAINS, tier_domains(tier), strict=True))
    for domain, name in {(record["domain"], record["class"]) for record in manifest()}:
        (folder / names[domain] / name).mkdir(parents=True, exist_ok=True)
    draw = functools.partial(draw_some, folder, size, tier, strength)
    with contextlib.ExitStack() as stack:
        run: Callable = map
        if jobs > 1:
            # A forked process has everything imported; starting anew (other systems) takes it several seconds.
            way = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
            run = stack.enter_context(ProcessPoolExecutor(jobs, way, end_with_parent)).map
        drawn = run(draw, parts)
        with tqdm(total=len(manifest()), desc=f"PictoNet at {size} px", unit=" drawings", disable=not progress) as bar:
            for number in drawn:
                bar.update(number)
    (folder / STAMP).write_text(json.dumps(stamp(size, tier, strength)), encoding="utf-8")


def draw_some(folder: Path, size: int, tier: str, strength: float | None, records: Sequence[dict]) -> int:
    """Some records as files in folders that are there; returns their number. Where this process was killed, those that
    it had begun find their folders removed, and end."""
    names = dict(zip(PICTONET_DOMAINS, tier_domains(tier)))
    for record in records:
        path = folder / names[record["domain"]] / record["class"] / f"{record['set']}_{record['icon']}.png"
        load_drawing(record, size, tier, strength).save(path, compress_level=1)  # a cache: packed fast, not small
    return len(records)


def contact_sheet(
    names: Sequence[str] = tuple(SHEET), size: int = 96, tier: str = "near", strength: float | None = None
) -> Image.Image:
    """A picture of PictoNet: one row per domain, one column per class of `names`, labelled.

    size: side of one drawing in pixels. tier, strength: as for `load_drawing`. Raises UserError for a class that
    PictoNet does not have, and as `load_drawing`.
    """
    known = sorted(name for group in classes().values() for name in group)
    if unknown := sorted(set(names) - set(known)):
        raise UserError(f"PictoNet has no class {', '.join(unknown)}. It has: {', '.join(known)}.")
    sides = {label: size if label in PICTONET_DOMAINS else round(size * 1.24) for label in tier_domains(tier)}
    rows = [
        (label, TINTS[label], [load_drawing(shown(domain, name), sides[label], tier, strength) for name in names])
        for domain, label in zip(PICTONET_DOMAINS, tier_domains(tier))
    ]
    return table_of_pictures([name.replace("_", " ") for name in names], rows, size)


def dial_sheet(strengths: Sequence[float] = (0, 0.25, 0.5, 0.75, 1), size: int = 144) -> Image.Image:
    """A picture of the far tier's dial: one drawing per technique, in one column per strength."""
    rows = [
        (
            technique,
            "#eef0f3",
            [load_drawing(shown(domain, DIAL[domain]), size, "far", strength) for strength in strengths],
        )
        for domain, technique in FAR_DOMAINS.items()
    ]
    return table_of_pictures([f"{strength:g}" for strength in strengths], rows, size)


def shown(domain: str, name: str) -> dict:
    """The record of the drawing that stands for a class in the sheets; domain: of the near tier."""
    found = [record for record in manifest() if (record["domain"], record["class"]) == (domain, name)]
    return found[SHEET[name][PICTONET_DOMAINS.index(domain)] if name in SHEET else 0]


def table_of_pictures(
    heads: Sequence[str], rows: Sequence[tuple[str, str, list[Image.Image]]], size: int
) -> Image.Image:
    """Pictures in cells of size x size pixels, or a little larger, with a head over each column.

    A row is (label, colour of its band, pictures).
    """
    gap, head, bold = size // 3, round(size * 0.62), _font(size, 0.21, "bold")
    labels = [label.replace("_", "-") for label, *_ in rows]
    side = max(round(size * 1.35), *(round(bold.getlength(label) + gap * 1.2) for label in labels))
    step = size + gap
    width, height = side + len(heads) * step + gap, head + len(rows) * (step + gap // 3)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for column, text in enumerate(heads):
        draw.text(
            (side + gap // 4 + column * step + step / 2, head * 0.62),
            text,
            "#444444",
            _font(size, 0.17, "normal"),
            "mm",
        )
    for row, (label, (domain, tint, pictures)) in enumerate(zip(labels, rows)):
        top = head + row * (step + gap // 3)
        draw.rounded_rectangle((side, top, sheet.width - gap // 2, top + step - 1), size // 5, tint)
        draw.text((side - gap * 0.7, top + step / 2), label, "#222222", bold, "rm")
        for column, picture in enumerate(pictures):
            wider = (picture.width - size) // 2
            place = (side + gap // 4 + column * step + gap // 2 - wider, top + gap // 2 - wider)
            if domain in PICTONET_DOMAINS:  # on white: let the band's colour through
                band = sheet.crop((*place, place[0] + size, place[1] + size))
                sheet.paste(ImageChops.multiply(band, picture), place)
            else:
                corners = Image.new("L", picture.size)
                ImageDraw.Draw(corners).rounded_rectangle((0, 0, picture.width - 1, picture.height - 1), size // 9, 255)
                sheet.paste(picture, place, corners)
    return sheet


def _font(size: int, share: float, weight: str) -> ImageFont.FreeTypeFont:
    """matplotlib's own typeface, the same on every machine."""
    path = font_manager.findfont(font_manager.FontProperties(family="DejaVu Sans", weight=weight))
    return ImageFont.truetype(path, round(size * share))
