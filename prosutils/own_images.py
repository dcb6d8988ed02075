"""Your own pictures: what a folder lacks, which split suits it, a stand-in to try, and uploads made files."""

import io
import os
import re
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps

from . import pictonet
from .domains import usual_gallery
from .files import UserError, only_one, written_whole
from .image_files import find_fault, load_image

#: Below this many images of a class in a domain there is little to average over.
FEW = 3
#: Bytes of an unpacked picture above which an upload's member is not even read.
LARGEST = 100 * 2**20
#: The domains of `stand_in`, by those of PictoNet.
STAND_IN = {"emoji": "stickers", "outline": "icons", "sketch": "pencil", "solid": "stencils"}


# --- A labelled folder --------------------------------------------------------------------------------------------


def advice(data):
    """Sentences on what an ImageDomains folder lacks for training and measuring; none where nothing is lacking."""
    counts, gallery = data.counts(), usual_gallery(data, data.domains)
    said = [f"{path.relative_to(data.root)} is skipped: {why}." for path, why in data.skipped]
    if len(data.domains) < 3:
        said.append(
            f"There are {len(data.domains)} domains. With one held out a single one is left to train on; a third "
            "teaches what changes between domains and what does not."
        )
    absent = sorted(set(data.classes) - set(data.class_names(data.rows([gallery], data.classes))))
    if absent:
        said.append(f"The gallery domain {gallery} has no image of {_some(absent)}: these classes cannot be found.")
    for domain in data.domains:
        alone = counts.index[counts[domain] == 1].tolist()
        few = counts.index[(counts[domain] > 1) & (counts[domain] < FEW)].tolist()
        if domain == gallery and alone:
            said.append(
                f"{domain} has a single image of {_some(alone)}: none can be kept out for a fair test of a seen class."
            )
        if few or (alone and domain != gallery):
            said.append(
                f"{domain} has fewer than {FEW} images of {_some(sorted({*alone, *few}))}: expect noisy numbers."
            )
    if len(data.classes) < 10:
        said.append(
            f"There are {len(data.classes)} classes. Unseen ones are taken out of training, and few are left to "
            "learn from."
        )
    return said


def suggest_split(data):
    """Options for `make_split`: {"unseen_domain", "gallery_domain"}.

    The gallery is the usual one, or the largest domain. Held out is the other domain that shares most classes with the
    gallery, the largest of these: the one that can ask most questions.
    """
    gallery = usual_gallery(data, data.domains)
    counts = data.counts()
    there = counts[gallery] > 0
    others = [name for name in data.domains if name != gallery]
    held_out = max(others, key=lambda name: (int((there & (counts[name] > 0)).sum()), int(counts[name].sum())))
    return dict(unseen_domain=held_out, gallery_domain=gallery)


def _some(names, most=4):
    more = f" and {len(names) - most} more classes" if len(names) > most else ""
    return ", ".join(names[:most]) + more


# --- A stand-in ---------------------------------------------------------------------------------------------------


def stand_in(folder, classes=60, each=6):
    """Lay some of PictoNet's drawings out as somebody might have collected them, `domain/class/image`; returns `folder`.

    One picture lies on its side, one has 16 bits, one is transparent and one was only half copied.
    """
    folder = Path(folder)
    chosen = sorted({record["class"] for record in pictonet.manifest()})
    chosen = chosen[:: len(chosen) // classes][:classes]
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


def _spoil(folder, classes):
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


def save_uploads(uploads, folder):
    """Keep uploaded pictures as files; returns (paths, complaints).

    uploads: {name: bytes}, or the value of an ipywidgets.FileUpload. A .zip is unpacked, the last two folders of every
    picture kept: `domain/class/image`. A file that is no whole picture, or a picture of more pixels than Pillow takes for
    safe (about 89 million), is not kept; a complaint says why. A name that is taken gets a number, so that nothing is
    overwritten.
    """
    if not isinstance(uploads, dict):
        uploads = {item["name"]: bytes(item["content"]) for item in uploads}
    folder, paths, complaints = Path(folder), [], []
    for name, content in _unpacked(uploads, complaints):
        path = _free_path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name("." + path.name)  # hidden from every listing until it is whole
        part.write_bytes(content)
        fault = find_fault(part)
        if fault:
            part.unlink()
            complaints.append(f"{name} is not kept: {fault}.")
        else:
            os.replace(part, path)
            paths.append(path)
    return paths, complaints


def _unpacked(uploads, complaints):
    """(name, bytes) of every upload and of every file in those that are archives."""
    for name, content in uploads.items():
        if not name.lower().endswith(".zip"):
            yield PurePosixPath(name.replace("\\", "/")).name, content
        elif not zipfile.is_zipfile(io.BytesIO(content)):
            complaints.append(f"{name} is no whole archive: pack or upload it again.")
        else:
            yield from _members(zipfile.ZipFile(io.BytesIO(content)), complaints)


def _members(archive, complaints):
    """(the last two folders and the name, bytes) of the files in an archive, hidden ones left out."""
    for member in archive.infolist():
        parts = PurePosixPath(member.filename).parts
        if member.is_dir() or any(part.startswith((".", "__")) for part in parts):
            continue  # .DS_Store, __MACOSX, ..
        try:
            if member.file_size > LARGEST:
                raise UserError(f"it has {member.file_size / 2**20:.0f} MiB")
            yield "/".join(parts[-3:]), archive.read(member)
        except Exception as error:  # zipfile and zlib raise errors of many kinds
            complaints.append(f"{member.filename} is not kept: {error}.")


def _free_path(folder, name):
    """A path in `folder` for an uploaded name, whose parts may hold anything: dots, spaces, other signs."""
    *folders, last = (re.sub(r"[^\w.-]+", "_", part).strip(".") or "_" for part in name.split("/"))
    folder = folder.joinpath(*folders)
    stem, dot, suffix = last.rpartition(".")
    stem, suffix = (stem or suffix, dot + suffix if stem else "")
    path, number = folder / f"{stem}{suffix}", 1
    while path.exists():
        number += 1
        path = folder / f"{stem}_{number}{suffix}"
    return path
