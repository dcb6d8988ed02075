"""PictoNet, the embedded benchmark: real drawings by real designers, from the shipped archive to images.

The archive `data/pictonet.zip` (made by `data_scripts/build_pictonet.py`) holds one small SVG or WebP per drawing
and `manifest.json`. An SVG is the complete picture: the pencil of the sketch domain, the grid of the pixel domain
and the palette of two-tone clipart are written into it, so a drawing comes out alike at every size.
"""

import contextlib
import functools
import hashlib
import io
import itertools
import json
import multiprocessing
import os
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import resources
from pathlib import Path

import platformdirs
import resvg_py
from matplotlib import font_manager
from PIL import Image, ImageChops, ImageDraw, ImageFont
from tqdm import tqdm

from prosutils.files import UserError, only_one

PICTONET_DOMAINS = ("emoji", "clipart", "outline", "solid", "sketch", "pixel")
GALLERY_DOMAIN = "emoji"
TINTS = ("#fdf1e3", "#fbe9ea", "#e9f2fb", "#eef0f3", "#f6f2e6", "#e8f4ee")  # one per domain, in the contact sheet
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


def render(data: bytes, size: int) -> Image.Image:
    """A drawing's SVG or WebP bytes as an RGB image of size x size pixels on white."""
    if data.startswith(b"<svg"):
        side = min(size, PENCIL_PIXELS) if b'id="pencil"' in data else size
        svg = data.decode().replace("<svg", f'<svg width="{side}" height="{side}"', 1)
        data = bytes(resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True))
    picture = Image.open(io.BytesIO(data)).convert("RGBA")
    if picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.LANCZOS)
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def load_drawing(record: dict, size: int = 64) -> Image.Image:
    """The picture of one record of `manifest()`, RGB, size x size pixels."""
    return render(archive().read(record["file"]), size)


def default_folder(size: int) -> Path:
    """Where PictoNet is laid out unless told otherwise: in PROSUTILS_CACHE if that is set, else the user's cache."""
    cache = os.environ.get("PROSUTILS_CACHE") or platformdirs.user_cache_path("prosutils")
    return Path(cache) / f"pictonet-{size}"


def stamp(size: int) -> dict:
    """What a folder laid out by this version at this size carries in its stamp file."""
    return {"benchmark": "PictoNet", "size": size, "manifest": hashlib.sha256(_manifest_bytes()).hexdigest()}


def lay_out(folder: Path | str, size: int = 64, progress: bool = True, jobs: int = 1) -> Path:
    """Draw PictoNet into `folder`/domain/class/<set>_<icon>.png (RGB on white, size x size) and return the folder.

    Atomic: the folder appears when it is complete. A second call with the same size returns at once; a folder of
    another size or version of PictoNet is replaced. jobs: processes that draw; above 1 only in a program whose start is
    under `if __name__ == "__main__"`, as the processes import it.
    Raises UserError: the folder holds something else, it cannot be written, or the size is below 16.
    """
    folder = Path(folder)
    if size < 16:
        raise UserError(f"PictoNet cannot be drawn at {size} pixels; ask for 16 or more (mini-CLIP: 64, CLIP: 224).")
    if read_stamp(folder) == stamp(size):
        return folder
    with only_one(folder):
        if read_stamp(folder) != stamp(size):  # nobody else has drawn it meanwhile
            replace_folder(folder, size, progress, jobs)
    return folder


def replace_folder(folder: Path, size: int, progress: bool, jobs: int) -> None:
    """Draw beside `folder` and move it there in one step."""
    if folder.exists() and read_stamp(folder) is None and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not PictoNet; choose a new or empty folder.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".pictonet-", dir=folder.parent) as work:
            draw_all(Path(work) / "new", size, progress, jobs)
            if folder.exists():
                os.replace(folder, Path(work) / "old")
            os.replace(Path(work) / "new", folder)
    except OSError as error:
        raise UserError(f"Cannot write PictoNet to {folder} ({error.strerror}); choose another folder.") from error


def read_stamp(folder: Path) -> dict | None:
    """The stamp of a folder that `lay_out` made, None for any other folder."""
    try:
        found = json.loads((folder / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("benchmark") == "PictoNet" else None


def draw_all(folder: Path, size: int, progress: bool, jobs: int = 1) -> None:
    """Every drawing as domain/class/<set>_<icon>.png, and the stamp."""
    parts = [manifest()[start : start + 100] for start in range(0, len(manifest()), 100)]
    with contextlib.ExitStack() as stack:
        run: Callable = map
        if jobs > 1:
            # A forked process has everything imported; starting anew (other systems) takes it several seconds.
            way = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
            run = stack.enter_context(ProcessPoolExecutor(jobs, way)).map
        drawn = run(draw_some, itertools.repeat(folder), itertools.repeat(size), parts)
        with tqdm(total=len(manifest()), desc=f"PictoNet at {size} px", unit=" drawings", disable=not progress) as bar:
            for number in drawn:
                bar.update(number)
    (folder / STAMP).write_text(json.dumps(stamp(size)), encoding="utf-8")


def draw_some(folder: Path, size: int, records: Sequence[dict]) -> int:
    """Some records as files; returns their number."""
    for record in records:
        path = folder / record["domain"] / record["class"] / f"{record['set']}_{record['icon']}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        load_drawing(record, size).save(path, compress_level=1)  # a cache: packed fast, not small
    return len(records)


def contact_sheet(names: Sequence[str] = tuple(SHEET), size: int = 96) -> Image.Image:
    """A picture of PictoNet: one row per domain, one column per class of `names`, labelled.

    size: side of one drawing in pixels. Raises UserError for a class that PictoNet does not have.
    """
    known = sorted(name for group in classes().values() for name in group)
    if unknown := sorted(set(names) - set(known)):
        raise UserError(f"PictoNet has no class {', '.join(unknown)}. It has: {', '.join(known)}.")
    gap, head, side = size // 3, round(size * 0.62), round(size * 1.35)
    step = size + gap
    width, height = side + len(names) * step + gap, head + len(PICTONET_DOMAINS) * (step + gap // 3)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(names):
        draw.text(
            (side + gap // 2 + column * step + step / 2, head * 0.62),
            name.replace("_", " "),
            "#444444",
            _font(size, 0.17, "normal"),
            "mm",
        )
    for row, (domain, tint) in enumerate(zip(PICTONET_DOMAINS, TINTS)):
        top = head + row * (step + gap // 3)
        draw.rounded_rectangle((side, top, sheet.width - gap // 2, top + step - 1), size // 5, tint)
        draw.text((side - gap * 0.7, top + step / 2), domain, "#222222", _font(size, 0.21, "bold"), "rm")
        for column, name in enumerate(names):
            number = SHEET[name][row] if name in SHEET else 0
            found = [record for record in manifest() if (record["domain"], record["class"]) == (domain, name)]
            place = (side + gap // 2 + column * step + gap // 2, top + gap // 2)
            band = sheet.crop((*place, place[0] + size, place[1] + size))
            sheet.paste(ImageChops.multiply(band, load_drawing(found[number], size)), place)
    return sheet


def _font(size: int, share: float, weight: str) -> ImageFont.FreeTypeFont:
    """matplotlib's own typeface, the same on every machine."""
    path = font_manager.findfont(font_manager.FontProperties(family="DejaVu Sans", weight=weight))
    return ImageFont.truetype(path, round(size * share))
