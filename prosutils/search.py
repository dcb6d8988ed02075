"""Search: an index of all images under a folder, and queries by picture, drawing or words."""

import hashlib
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .backbone import load_clip
from .baselines import ZeroShot
from .config import load_preset
from .domains import ImageDomains, inverted_domains, usual_gallery
from .evaluation import Pictures, embed, embed_rows, model_transform, switch_options
from .files import UserError, mapped_arrays, save_arrays
from .image_files import IMAGE_SUFFIXES, find_fault, load_image, walk
from .names import readable
from .ranking import check_k, rank
from .tuned import TunedCLIP


@dataclass(eq=False)
class ImageIndex:
    """Features of all images under a folder, with or without labels, searched again without embedding anew."""

    root: Path
    paths: np.ndarray  # [n] names relative to `root`
    features: torch.Tensor  # [n, D]
    signature: str  # of the model
    skipped: list = ()  # [(path, why)] of files that are no images, or not whole
    similarity: str = "cosine"  # by which `search` ranks: "cosine" or "euclidean", as the model's switches say

    @classmethod
    def build(cls, model: TunedCLIP, root: str | Path, progress: bool = False) -> "ImageIndex":
        """Embed every image under `root`, in folders of any depth and behind links. UserError where there is none.

        A file that is no image, or cannot be decoded, is left out and listed in `skipped`.
        """
        if inverted_domains(model.config.switches):
            raise UserError(
                "The model was trained on inverted sketches (switches.polarity=released); an index of files "
                "does not know which of them are sketches."
            )
        root = Path(root)
        faults = {path: find_fault(path) for path in walk(root)}
        good = [path for path, why in faults.items() if not why]
        features = embed_or_blank(model, good, progress) if good else torch.empty(0, 1)
        whole = features.isfinite().all(1)
        faults |= {path: _undecodable(path) for path, fine in zip(good, whole.tolist(), strict=True) if not fine}
        good = [path for path, why in faults.items() if not why]
        skipped = [(path, why) for path, why in faults.items() if why]
        if not good:
            first = "".join(f" {readable(path)}: {why}." for path, why in skipped[:3])
            raise UserError(
                f"There is no image under {readable(root)}; names end in {', '.join(sorted(IMAGE_SUFFIXES))}.{first}"
            )
        names = np.array([path.relative_to(root).as_posix() for path in good])
        similarity = switch_options(model.config.switches)["similarity"]
        return cls(root, names, features[whole], signature(model), skipped, similarity)

    def search(self, query: torch.Tensor, k: int = 10):
        """Features [Q, D] (or [D]) of queries -> scores [Q, k] and names [Q, k], the best first."""
        scores, index = rank(torch.atleast_2d(query), self.features, self.similarity, k)
        return scores, np.asarray(self.paths[index.numpy()])

    def answers(self, query: torch.Tensor, k: int = 10) -> list[tuple[float, str, Path]]:
        """The best k for the feature [1, D] of one query: (score, "", path), the best first.

        Warns where some of these pictures are no longer there.
        """
        scores, names = self.search(query, k)
        paths = [self.root / name for name in names[0].tolist()]
        if gone := [path for path in paths if not path.exists()]:
            warnings.warn(
                f"{len(gone)} of these {len(paths)} pictures are no longer there, for example {readable(gone[0])}: "
                "build the index again.",
                stacklevel=2,
            )
        return [(score, "", path) for score, path in zip(scores[0].tolist(), paths, strict=True)]

    def save(self, path: str | Path):
        """Write everything but the pictures, in one step; returns the path, with .npz added where it lacks it."""
        path, root = index_file(path), self.root.resolve()
        try:
            nearby = os.path.relpath(root, path.resolve().parent)
        except ValueError:  # another drive of Windows
            nearby = ""
        arrays = dict(
            features=self.features.numpy(),
            path=self.paths.astype(str),
            signature=self.signature,
            root=str(root),
            nearby=nearby,
            similarity=self.similarity,
        )
        save_arrays(path, arrays)
        return path

    @classmethod
    def load(cls, path: str | Path, model: TunedCLIP | None = None, root: str | Path | None = None):
        """An index from a file of `save`; .npz may be left out of its name. Features and names of a large one are not
        read but mapped, and searched a part at a time.

        model: refused where it is not the one that made the index. root: the pictures' folder, where it has moved.
        Raises UserError where there is no index, or the folder is neither there nor at its old place beside the index.
        """
        path = Path(path)
        path = path if path.is_file() else index_file(path)
        try:
            stored = mapped_arrays(path)
        except FileNotFoundError:
            raise UserError(
                f"There is no index {path}: ImageIndex.build(model, folder).save({str(path)!r}) writes one."
            ) from None
        index = cls.of_arrays(stored, path, root)
        if model is not None:
            index.check(model)
            index.similarity = switch_options(model.config.switches)["similarity"]
        return index

    @classmethod
    def of_arrays(cls, stored: dict[str, np.ndarray], path: Path, root: str | Path | None):
        """The index that the arrays of a file hold. UserError where they are not those of an index."""
        lacking = {"path", "features", "signature", "root"} - set(stored)
        paths, features = stored.get("path"), stored.get("features")
        if (
            lacking
            or paths.ndim != 1
            or features.ndim != 2
            or features.dtype.kind != "f"
            or len(paths) != len(features)
        ):
            raise UserError(
                f"{path} is not an index of this package: it holds no features with a path each. `prosutils index` makes "
                "one."
            )
        places = [str(stored["root"])]
        if str(stored.get("nearby", "")):
            places.append(os.path.normpath(path.resolve().parent / str(stored["nearby"])))
        folder, similarity = _first_folder(path, root, places), str(stored.get("similarity", "cosine"))
        return cls(folder, paths, torch.from_numpy(features), str(stored["signature"]), similarity=similarity)

    def check(self, model: TunedCLIP):
        """Raises UserError where `model` is not the one that made the index."""
        if signature(model) != self.signature:
            raise UserError(
                f"The index of {self.root} was made by another model; features of two models do not compare. "
                "Build it again with this one."
            )


def index_file(path: str | Path) -> Path:
    """The file of an index: the name given, with .npz added where it lacks it (`my.photos` -> `my.photos.npz`)."""
    path = Path(path)
    return path if path.suffix.lower() == ".npz" else path.with_name(f"{path.name}.npz")


def _first_folder(path: Path, asked: str | Path | None, places: list[str]) -> Path:
    """The folder of an index's pictures: the one asked for, or the first of some places that is there."""
    folders = [Path(place) for place in ([asked] if asked else places)]
    for folder in folders:
        if folder.is_dir():
            return folder
    raise UserError(
        f"{path} is an index of {readable(folders[0])}, and no such folder is there. If it has moved, give its new "
        "place: --root FOLDER, or ImageIndex.load(path, root=folder). Otherwise build the index again."
    )


def embed_or_blank(model: torch.nn.Module, paths: list[Path], progress: bool = False) -> torch.Tensor:
    """Features [n, D] of image files; NaN for one that cannot be decoded, which does not touch the others."""
    size = getattr(model, "clip", model).image_size
    blank = torch.full((3, size, size), torch.nan)
    return embed(model, Pictures(paths, model_transform(model), blank), progress=progress)


def _undecodable(path: Path) -> str:
    """Why a picture has no feature."""
    try:
        load_image(path)
    except UserError as error:
        return str(error).removeprefix(readable(path)).strip()
    return "the model gives no finite feature for it"


def search_gallery(
    model: torch.nn.Module, data: ImageDomains, query: torch.Tensor, k: int = 10, domain: str | None = None
) -> list[tuple[float, str, Path]]:
    """The best k of the images of one domain for the feature [1, D] of a query: (score, class, path), the best first.

    domain: `usual_gallery` where none is given. Raises UserError for an unknown one.
    """
    check_k(k)
    domain = domain or usual_gallery(data, data.domains)
    if domain not in data.domains:
        raise UserError(f"Unknown domain {domain}. Known: {', '.join(data.domains)}.")
    rows = data.rows([domain], data.classes)
    similarity = switch_options(model.config.switches)["similarity"]
    scores, found = rank(query, embed_rows(model, data, rows, progress=True), similarity, k)
    return [
        (score, data.classes[data.class_index[row]], data.paths[row])
        for score, row in zip(scores[0].tolist(), rows[found[0]].tolist(), strict=True)
    ]


def search_model(preset: str = "mini") -> TunedCLIP:
    """Zero-shot CLIP of a preset, to search with: it needs no class and no domain, so any names will do."""
    config = load_preset(preset)
    return ZeroShot(load_clip(config.backbone, config.pretrained), ["a", "b"], ["any"], config).eval()


def query_feature(model: TunedCLIP, query: str | Path | Image.Image) -> torch.Tensor:
    """Feature [1, D] of a query: a PIL image, the path of a picture (a Path, or text that ends like an image file), or
    words. Raises UserError for a picture that cannot be read, and for words that are none or too many."""
    if isinstance(query, str) and Path(query).suffix.lower() in IMAGE_SUFFIXES:
        query = Path(query)
    if isinstance(query, (Path, Image.Image)):
        return embed(model, [query])
    if not isinstance(query, str) or not query.strip():
        raise UserError("The query has no words. A query is a picture (PIL), the path of one, or words.")
    with torch.no_grad():
        return model.encode_words([f"a photo of {query}"]).float().cpu()


def signature(model: TunedCLIP) -> str:
    """A short text that two models share only if they give the same features: of all weights, of the settings that an
    image's feature depends on, and of the part of the model that is read."""
    switches, part = model.config.switches, getattr(model, "part", None)
    about = (model.label, model.clip.name, switches.read_out, switches.polarity, part)
    digest = hashlib.sha256(repr(about).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
