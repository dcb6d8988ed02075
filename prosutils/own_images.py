"""Your own pictures: what a folder lacks, which split suits it, a stand-in to try, and uploads made files."""

import contextlib
import io
import os
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from . import pictonet
from .domains import ImageDomains, usual_gallery
from .files import UserError, only_one, written_whole
from .image_files import IMAGE_SUFFIXES, SYSTEM_FILES, find_fault, load_image
from .names import code_points, cut_bytes, file_name, look_alikes, readable, told_apart

#: Below this many images of a class in a domain there is little to average over.
FEW = 3
#: Bytes of an unpacked picture above which an upload's member is not even read.
LARGEST = 100 * 2**20
#: The domains of `stand_in`, by those of PictoNet.
STAND_IN = {"emoji": "stickers", "outline": "icons", "sketch": "pencil", "solid": "stencils"}
#: The class that `sketch_search` draws while nobody has drawn anything: the stand-in has it.
EXAMPLE = "umbrella"


# --- A labelled folder --------------------------------------------------------------------------------------------


def advice(data: ImageDomains):
    """Sentences on what an ImageDomains folder lacks for training and measuring; none where nothing is lacking."""
    counts, gallery = data.counts(), usual_gallery(data, data.domains)

    def some(names):
        return _some([told_apart(name, data.classes) for name in names])

    said = [f"{readable(path.relative_to(data.root))} is skipped: {why}." for path, why in data.skipped]
    for kind, known in (("domains", data.domains), ("classes", data.classes)):
        for alike in look_alikes(known):
            said.append(
                f"These {kind} look alike and count as {len(alike)}: {'; '.join(code_points(name) for name in alike)}. "
                "Where they are one, put their images into one folder."
            )
    if len(data.domains) < 3:
        said.append(
            f"There are {len(data.domains)} domains. With one held out a single one would be left to train on: hold "
            "out none (--unseen-domain none), which measures unseen classes. A third allows unseen domains as well."
        )
    absent = sorted(set(data.classes) - set(data.class_names(data.rows([gallery], data.classes))))
    if absent:
        said.append(f"The gallery domain {gallery} has no image of {some(absent)}: these classes cannot be found.")
    for domain in data.domains:
        alone = counts.index[counts[domain] == 1].tolist()
        few = counts.index[(counts[domain] > 1) & (counts[domain] < FEW)].tolist()
        if domain == gallery and alone:
            said.append(
                f"{domain} has a single image of {some(alone)}: none can be kept out for a fair test of a seen class."
            )
        if few or (alone and domain != gallery):
            said.append(
                f"{domain} has fewer than {FEW} images of {some(sorted({*alone, *few}))}: expect noisy numbers."
            )
    if len(data.classes) < 10:
        said.append(
            f"There are {len(data.classes)} classes. Unseen ones are taken out of training, and few are left to "
            "learn from."
        )
    return said


def suggest_split(data: ImageDomains):
    """Options for `make_split`: {"unseen_domain", "gallery_domain"}; and {"protocol": "UcCDR"} for two domains.

    The gallery is the usual one, or the largest domain. Held out is the other domain that shares most classes with the
    gallery, the largest of these: the one that gives most queries. Of two domains none is held out; both train.
    """
    gallery = usual_gallery(data, data.domains)
    if len(data.domains) < 3:
        return dict(protocol="UcCDR", unseen_domain=None, gallery_domain=gallery)
    counts = data.counts()
    there = counts[gallery] > 0
    others = [name for name in data.domains if name != gallery]
    held_out = max(others, key=lambda name: (int((there & (counts[name] > 0)).sum()), int(counts[name].sum())))
    return dict(unseen_domain=held_out, gallery_domain=gallery)


def _some(names: Sequence[str], most: int = 4):
    more = f" and {len(names) - most} more classes" if len(names) > most else ""
    return ", ".join(names[:most]) + more


# --- A stand-in ---------------------------------------------------------------------------------------------------


def stand_in(folder: str | Path, classes: int = 60, each: int = 6):
    """Lay some of PictoNet's drawings out as a reader might have collected them; returns `folder`.

    One picture lies on its side, one has 16 bits, one is transparent and one was only half copied.
    """
    folder = Path(folder)
    chosen = sorted({record["class"] for record in pictonet.manifest()})
    chosen = sorted({EXAMPLE, *chosen[:: len(chosen) // classes][: classes - 1]})
    with only_one(folder):
        if folder.exists():
            return folder
        with written_whole(folder) as part:
            for record in pictonet.manifest():
                if record["class"] in chosen and record["domain"] in STAND_IN:
                    place = part / STAND_IN[record["domain"]] / record["class"]
                    place.mkdir(parents=True, exist_ok=True)
                    number = len(list(place.iterdir()))
                    if number < each:
                        pictonet.load_drawing(record, 128).save(place / f"{number}.png")
            _spoil(part, chosen)
    return folder


def _spoil(folder: Path, classes: Sequence[str]):
    """Add what real folders hold as well, one picture to each of the first four classes."""
    first, second, third, fourth = classes[:4]
    on_its_side = load_image(folder / "pencil" / first / "0.png").rotate(90)
    exif = on_its_side.getexif()
    exif[0x0112] = 6  # "turn me a quarter before you look"
    on_its_side.save(folder / "pencil" / first / "turned.jpg", exif=exif)
    grey = np.asarray(load_image(folder / "icons" / second / "0.png").convert("L"))
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "icons" / second / "deep.png")
    ink = ImageOps.invert(load_image(folder / "stencils" / third / "0.png").convert("L"))
    clear = Image.new("RGBA", ink.size)
    clear.putalpha(ink)  # black where there is ink, nothing elsewhere
    clear.save(folder / "stencils" / third / "transparent.png")
    whole = (folder / "stickers" / fourth / "0.png").read_bytes()
    (folder / "stickers" / fourth / "half_copied.png").write_bytes(whole[: len(whole) // 2])


# --- Uploads ------------------------------------------------------------------------------------------------------


def save_uploads(uploads: Mapping[str, bytes] | Sequence[Mapping[str, Any]], folder: str | Path):
    """Keep uploaded pictures as files; returns (paths, complaints).

    uploads: {name: bytes}, or the value of an ipywidgets.FileUpload. A .zip is unpacked, the last two folders of every
    picture kept: `domain/class/image`. Names of folders stay as they are, but for what a file system refuses (see
    `file_name`), so that two of them never share a folder. A file that is no whole picture (see `find_fault`) is not
    kept; a complaint says why. A picture whose name is taken gets a number, so that nothing is overwritten.
    """
    pairs = uploads.items() if isinstance(uploads, Mapping) else [(item["name"], item["content"]) for item in uploads]
    paths: list[Path] = []
    complaints: list[str] = []
    for name, content in _unpacked(pairs, complaints):
        try:
            paths.append(_kept(Path(folder), name, content))
        except (OSError, UserError) as error:
            why = getattr(error, "strerror", None) or error
            complaints.append(f"{readable('/'.join(name))} is not kept: {why}.")
    return paths, complaints


def _kept(folder: Path, name: Sequence[str], content: bytes):
    """The path of a picture, its folders and name a list, once it is whole on the disk. UserError where it is none."""
    for above in name[:-1]:
        folder = _child(folder, file_name(above))
    folder.mkdir(parents=True, exist_ok=True)
    stem, suffix = _stem(name[-1])
    part = folder / f".part-{os.getpid()}{suffix}"  # hidden from every listing until it is whole
    try:
        part.write_bytes(content)
        if fault := find_fault(part):
            raise UserError(fault)
        path = _free_path(folder, stem, suffix)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # of a folder that holds something
            folder.rmdir()
    return path


def _unpacked(pairs: Iterable[tuple[str, bytes]], complaints: list[str]):
    """(folders and name, bytes) of every upload and of every file in those that are archives."""
    for name, content in pairs:
        content = bytes(content)
        if not name.lower().endswith(".zip"):
            yield (_parts(name) or ["unnamed"])[-1:], content
        elif not zipfile.is_zipfile(io.BytesIO(content)):
            complaints.append(f"{readable(name)} is no whole archive: pack or upload it again.")
        else:
            try:
                yield from _members(zipfile.ZipFile(io.BytesIO(content)), complaints)
            except Exception as error:  # zipfile raises errors of many kinds
                complaints.append(f"{readable(name)} is no whole archive ({error}): pack or upload it again.")


def _members(archive: zipfile.ZipFile, complaints: list[str]):
    """(the last two folders and the name, bytes) of the files in an archive, hidden ones left out."""
    for member in archive.infolist():
        raw = re.split(r"[/\\]", member.filename)  # Windows writes backslashes
        hidden = any(part.startswith(".") or part.lower() in SYSTEM_FILES for part in raw)
        parts = _parts(member.filename)
        if not raw[-1] or hidden or not parts:
            continue  # a folder, .DS_Store, __MACOSX, ..
        try:
            if PurePosixPath(parts[-1]).suffix.lower() not in IMAGE_SUFFIXES:
                raise UserError("not an image file")  # and need not be unpacked
            if member.file_size > LARGEST:
                raise UserError(f"it has {member.file_size / 2**20:.0f} MiB")
            content = archive.read(member)
        except Exception as error:  # zipfile and zlib raise errors of many kinds
            complaints.append(f"{readable('/'.join(parts[-3:]))} is not kept: {str(error) or type(error).__name__}.")
            continue
        yield parts[-3:], content


def _parts(name: str):
    """The folders and the file's name in a path of any system, without its drive and dots."""
    return [
        part for part in re.split(r"[/\\]", name) if part not in ("", ".", "..") and not re.match("^[A-Za-z]:$", part)
    ]


def _child(folder: Path, name: str):
    """A folder of this name in another. Where the file system has one that differs in case or in the spelling of an
    accent, and takes the two names for one, it gets a number."""
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    number, child = 1, folder / name
    while child.name not in there and child.exists():
        number += 1
        child = folder / f"{name}_{number}"
    return child


def _stem(name: str):
    """An uploaded picture's name, whose signs may be any, in two parts: stem and suffix."""
    name = re.sub(r"[^\w.-]+", "_", name).strip(".") or "_"
    stem, dot, suffix = name.rpartition(".")
    stem, suffix = (stem, dot + suffix) if stem else (suffix, "")
    return cut_bytes(stem, 200), cut_bytes(suffix, 20)


def _free_path(folder: Path, stem: str, suffix: str):
    """A path in `folder` that is not taken: stem.suffix, or with a number."""
    path, number = folder / f"{stem}{suffix}", 1
    while path.exists() or path.is_symlink():
        number += 1
        path = folder / f"{stem}_{number}{suffix}"
    return path
