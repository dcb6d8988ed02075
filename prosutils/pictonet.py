"""PictoNet, the embedded benchmark: real drawings by real designers, from the shipped archive to a folder of images.

The archive `data/pictonet.zip` (made by `data_scripts/build_pictonet.py`) holds one small SVG or WebP per drawing
and `manifest.json`. An SVG is the complete picture: the pencil of the sketch domain, the grid of the pixel domain
and the palette of two-tone clipart are written into it, so a drawing comes out alike at every size.
"""
import functools
import hashlib
import io
import json
import os
import tempfile
import zipfile
from importlib import resources
from pathlib import Path

import platformdirs
import resvg_py
from PIL import Image
from tqdm import tqdm

from prosutils.config import UserError

PICTONET_DOMAINS = ("emoji", "clipart", "outline", "solid", "sketch", "pixel")
GALLERY_DOMAIN = "emoji"
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
    """The fixed split: {"seen": [...], "val": [...], "unseen": [...]}, each sorted, disjoint, together all classes."""
    return json.loads(_manifest_bytes())["classes"]


def render(data: bytes, size: int) -> Image.Image:
    """A drawing's SVG or WebP bytes as an RGB image of size x size pixels on white."""
    if data.startswith(b"<svg"):
        svg = data.decode().replace("<svg", f'<svg width="{size}" height="{size}"', 1)
        data = bytes(resvg_py.svg_to_bytes(svg_string=svg))
    picture = Image.open(io.BytesIO(data)).convert("RGBA")
    if picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.LANCZOS)
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def load_drawing(record: dict, size: int = 64) -> Image.Image:
    """The picture of one record of `manifest()`, RGB, size x size pixels."""
    return render(archive().read(record["file"]), size)


def default_folder(size: int) -> Path:
    """Where `lay_out` puts PictoNet unless told otherwise: the user's cache, or below PROSUTILS_CACHE if that is set."""
    cache = os.environ.get("PROSUTILS_CACHE") or platformdirs.user_cache_path("prosutils")
    return Path(cache) / f"pictonet-{size}"


def stamp(size: int) -> dict:
    """What a folder laid out by this version at this size carries in its stamp file."""
    return {"benchmark": "PictoNet", "size": size, "manifest": hashlib.sha256(_manifest_bytes()).hexdigest()}


def lay_out(folder: Path | str, size: int = 64, progress: bool = True) -> Path:
    """Draw PictoNet into `folder`/domain/class/<set>_<icon>.png (RGB on white, size x size) and return the folder.

    Atomic: the folder appears when it is complete. A second call with the same size returns at once; a folder of
    another size or version of PictoNet is replaced.
    Raises UserError: the folder holds something else, it cannot be written, or the size is below 16.
    """
    folder = Path(folder)
    if size < 16:
        raise UserError(f"PictoNet cannot be drawn at {size} pixels; ask for 16 or more (64 for mini-CLIP, 224 for CLIP).")
    if read_stamp(folder) == stamp(size):
        return folder
    if folder.exists() and read_stamp(folder) is None and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not PictoNet; choose a new or empty folder.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".pictonet-", dir=folder.parent) as work:
            draw_all(Path(work) / "new", size, progress)
            if folder.exists():
                os.replace(folder, Path(work) / "old")
            os.replace(Path(work) / "new", folder)
    except OSError as error:
        raise UserError(f"Cannot write PictoNet to {folder} ({error.strerror}); choose another folder.") from error
    return folder


def read_stamp(folder: Path) -> dict | None:
    """The stamp of a folder that `lay_out` made, None for any other folder."""
    try:
        found = json.loads((folder / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("benchmark") == "PictoNet" else None


def draw_all(folder: Path, size: int, progress: bool) -> None:
    """Every drawing as domain/class/<set>_<icon>.png, and the stamp."""
    for record in tqdm(manifest(), desc=f"PictoNet at {size} px", unit=" drawings", disable=not progress):
        path = folder / record["domain"] / record["class"] / f"{record['set']}_{record['icon']}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        load_drawing(record, size).save(path)
    (folder / STAMP).write_text(json.dumps(stamp(size)), encoding="utf-8")
