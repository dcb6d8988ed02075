"""Your own pictures: what a folder lacks, which split suits it, uploads made files, an index to search again and again."""
import hashlib
import io
import os
import re
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import Dataset

from . import pictonet
from .backbone import load_clip
from .baselines import ZeroShot
from .config import UserError, load_preset, only_one
from .domains import inverted_domains, usual_gallery
from .evaluation import embed, model_transform, rank
from .image_files import IMAGE_SUFFIXES, SYSTEM_FILES, find_fault, load_image

#: Below this many images of a class in a domain there is little to average over.
FEW = 3
#: Bytes of an unpacked picture above which an upload's member is not even read.
LARGEST = 100 * 2 ** 20
#: The domains of `stand_in`, by those of PictoNet.
STAND_IN = {"emoji": "stickers", "outline": "icons", "sketch": "pencil", "solid": "stencils"}


# --- A labelled folder --------------------------------------------------------------------------------------------

def advice(data):
    """Sentences on what an ImageDomains folder lacks for training and measuring; none where nothing is lacking."""
    counts, gallery = data.counts(), usual_gallery(data, data.domains)
    said = [f"{path.relative_to(data.root)} is skipped: {why}." for path, why in data.skipped]
    if len(data.domains) < 3:
        said.append(f"There are {len(data.domains)} domains. With one held out a single one is left to train on; a third "
                    "teaches what changes between domains and what does not.")
    absent = sorted(set(data.classes) - set(data.class_names(data.rows([gallery], data.classes))))
    if absent:
        said.append(f"The gallery domain {gallery} has no image of {_some(absent)}: these classes cannot be found.")
    for domain in data.domains:
        alone = counts.index[counts[domain] == 1].tolist()
        few = counts.index[(counts[domain] > 1) & (counts[domain] < FEW)].tolist()
        if domain == gallery and alone:
            said.append(f"{domain} has a single image of {_some(alone)}: none can be kept out for a fair test of a seen "
                        "class.")
        if few or (alone and domain != gallery):
            said.append(f"{domain} has fewer than {FEW} images of {_some(sorted({*alone, *few}))}: expect noisy numbers.")
    if len(data.classes) < 10:
        said.append(f"There are {len(data.classes)} classes. Unseen ones are taken out of training, and few are left to "
                    "learn from.")
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
    part, chosen = folder.with_name(f"{folder.name}.part"), sorted({record["class"] for record in pictonet.manifest()})
    chosen = chosen[::len(chosen) // classes][:classes]
    with only_one(folder):
        if folder.exists():
            return folder
        shutil.rmtree(part, ignore_errors=True)
        for record in pictonet.manifest():
            if record["class"] in chosen and record["domain"] in STAND_IN:
                place = part / STAND_IN[record["domain"]] / record["class"]
                place.mkdir(parents=True, exist_ok=True)
                number = len(list(place.iterdir()))
                if number < each:
                    pictonet.load_drawing(record, 128).save(place / f"{number}.png")
        _spoil(part, chosen)
        part.rename(folder)
    return folder


def _spoil(folder, classes):
    """Add what real folders hold as well, one picture to each of the first four classes."""
    first, second, third, fourth = classes[:4]
    on_its_side = load_image(folder / "pencil" / first / "0.png").rotate(90)
    exif = on_its_side.getexif()
    exif[0x0112] = 6                                                    # "turn me a quarter before you look"
    on_its_side.save(folder / "pencil" / first / "turned.jpg", exif=exif)
    grey = np.asarray(load_image(folder / "icons" / second / "0.png").convert("L"))
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "icons" / second / "deep.png")
    ink = ImageOps.invert(load_image(folder / "stencils" / third / "0.png").convert("L"))
    clear = Image.new("RGBA", ink.size)
    clear.putalpha(ink)                                                 # black where there is ink, nothing elsewhere
    clear.save(folder / "stencils" / third / "transparent.png")
    whole = (folder / "stickers" / fourth / "0.png").read_bytes()
    (folder / "stickers" / fourth / "half_copied.png").write_bytes(whole[:len(whole) // 2])


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
        part = path.with_name("." + path.name)                              # hidden from every listing until it is whole
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
            continue                                                    # .DS_Store, __MACOSX, ..
        try:
            if member.file_size > LARGEST:
                raise UserError(f"it has {member.file_size / 2 ** 20:.0f} MiB")
            yield "/".join(parts[-3:]), archive.read(member)
        except Exception as error:                                      # zipfile and zlib raise errors of many kinds
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


# --- An index -----------------------------------------------------------------------------------------------------

class Files(Dataset):
    """Image files as tensors [3, H, W]."""

    def __init__(self, paths, transform):
        self.paths, self.transform = paths, transform

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        return self.transform(load_image(self.paths[i]))


@dataclass(eq=False)
class ImageIndex:
    """Features of all images under a folder, with or without labels, to be searched again without embedding them again."""
    root: Path
    paths: np.ndarray                 # [n] names relative to `root`
    features: torch.Tensor            # [n, D]
    signature: str                    # of the model
    skipped: list = ()                # [(path, why)] of files that are no images, or not whole

    @classmethod
    def build(cls, model, root, progress=False):
        """Embed every image under `root`, in folders of any depth. UserError where there is none."""
        root = Path(root)
        if not root.is_dir():
            raise UserError(f"There is no folder {root}.")
        files = sorted(path for path in root.rglob("*") if path.is_file() and path.name.lower() not in SYSTEM_FILES and
                       not any(part.startswith(".") for part in path.relative_to(root).parts))
        faults = {path: find_fault(path) for path in files}
        good = [path for path in files if not faults[path]]
        if not good:
            raise UserError(f"There is no image under {root}; names end in {', '.join(sorted(IMAGE_SUFFIXES))}.")
        if inverted_domains(model.config.switches):
            raise UserError("The model was trained on inverted sketches (switches.polarity=released); an index of files "
                            "does not know which of them are sketches.")
        features = embed(model, Files(good, model_transform(model)), progress=progress)
        return cls(root, np.array([path.relative_to(root).as_posix() for path in good]), features, signature(model),
                   [(path, why) for path, why in faults.items() if why])

    def search(self, query, k=10):
        """Features [Q, D] (or [D]) of queries -> scores [Q, k] and names [Q, k], the best first."""
        scores, index = rank(torch.atleast_2d(query), self.features, k=k)
        return scores, self.paths[index.numpy()]

    def save(self, path):
        """Write everything but the pictures as .npz, in one step; returns the path."""
        path = Path(path).with_suffix(".npz")
        part = path.with_suffix(".part.npz")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(part, features=self.features.numpy(), path=self.paths.astype(str), signature=self.signature,
                     root=str(self.root.resolve()))
            os.replace(part, path)
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror}): choose another folder.") from None
        return path

    @classmethod
    def load(cls, path, model=None):
        """Read a file of `save`. model: refused where it is not the one that made the index."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                index = cls(Path(str(stored["root"])), stored["path"], torch.from_numpy(stored["features"]),
                            str(stored["signature"]))
        except FileNotFoundError:
            raise UserError(f"There is no index {path}: ImageIndex.build(model, folder).save({str(path)!r}) writes "
                            "one.") from None
        except Exception as error:                   # numpy raises errors of many kinds for a broken file
            raise UserError(f"{path} is not an index of this package: {str(error)[:200]}") from None
        if model is not None:
            index.check(model)
        return index

    def check(self, model):
        """Raises UserError where `model` is not the one that made the index."""
        if signature(model) != self.signature:
            raise UserError(f"The index of {self.root} was made by another model; features of two models do not compare. "
                            "Build it again with this one.")


def search_model(preset="mini"):
    """Zero-shot CLIP of a preset, to search with: it needs no class and no domain, so any names will do."""
    config = load_preset(preset)
    return ZeroShot(load_clip(config.backbone, config.pretrained), ["a", "b"], ["any"], config).eval()


def query_feature(model, query):
    """Feature [1, D] of a query: a PIL image, the path (Path) of a picture, or words (str)."""
    if isinstance(query, Path):
        query = load_image(query)
    if isinstance(query, Image.Image):
        return embed(model, [query])
    if not query.strip():
        raise UserError("The query has no words.")
    with torch.no_grad():
        return model.clip.encode_text([f"a photo of {query}"]).float().cpu()


def signature(model):
    """A short text that two models share only if they give the same features: of all weights and settings."""
    digest = hashlib.sha256(repr((model.method, model.clip.name, model.config.switches)).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
