"""Search: an index of all images under a folder, and queries by picture, drawing or words."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .backbone import load_clip
from .baselines import ZeroShot
from .config import load_preset
from .domains import ImageDomains, inverted_domains, usual_gallery
from .evaluation import embed, embed_rows
from .files import UserError, written_whole
from .image_files import IMAGE_SUFFIXES, SYSTEM_FILES, find_fault
from .metrics import rank


@dataclass(eq=False)
class ImageIndex:
    """Features of all images under a folder, with or without labels, to be searched again without embedding them again."""

    root: Path
    paths: np.ndarray  # [n] names relative to `root`
    features: torch.Tensor  # [n, D]
    signature: str  # of the model
    skipped: Sequence[tuple[Path, str]] = ()  # [(path, why)] of files that are no images, or not whole

    @classmethod
    def build(cls, model, root, progress=False):
        """Embed every image under `root`, in folders of any depth. UserError where there is none."""
        root = Path(root)
        if not root.is_dir():
            raise UserError(f"There is no folder {root}.")
        files = sorted(
            path
            for path in root.rglob("*")
            if path.is_file()
            and path.name.lower() not in SYSTEM_FILES
            and not any(part.startswith(".") for part in path.relative_to(root).parts)
        )
        faults = {path: find_fault(path) for path in files}
        good = [path for path in files if not faults[path]]
        if not good:
            raise UserError(f"There is no image under {root}; names end in {', '.join(sorted(IMAGE_SUFFIXES))}.")
        if inverted_domains(model.config.switches):
            raise UserError(
                "The model was trained on inverted sketches (switches.polarity=released); an index of files "
                "does not know which of them are sketches."
            )
        features = embed(model, good, progress=progress)
        return cls(
            root,
            np.array([path.relative_to(root).as_posix() for path in good]),
            features,
            signature(model),
            [(path, why) for path, why in faults.items() if why],
        )

    def search(self, query, k=10):
        """Features [Q, D] (or [D]) of queries -> scores [Q, k] and names [Q, k], the best first."""
        scores, index = rank(torch.atleast_2d(query), self.features, k=k)
        return scores, self.paths[index.numpy()]

    def answers(self, query: torch.Tensor, k: int = 10) -> list[tuple[float, str, Path]]:
        """The best k for the feature [1, D] of one query: (score, "", path), the best first."""
        scores, names = self.search(query, k)
        return [(score, "", self.root / name) for score, name in zip(scores[0].tolist(), names[0], strict=True)]

    def save(self, path):
        """Write everything but the pictures as .npz, in one step; returns the path."""
        path = Path(path).with_suffix(".npz")
        with written_whole(path) as part:
            np.savez(
                part,
                features=self.features.numpy(),
                path=self.paths.astype(str),
                signature=self.signature,
                root=str(self.root.resolve()),
            )
        return path

    @classmethod
    def load(cls, path, model=None):
        """Read a file of `save`. model: refused where it is not the one that made the index."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                index = cls(
                    Path(str(stored["root"])),
                    stored["path"],
                    torch.from_numpy(stored["features"]),
                    str(stored["signature"]),
                )
        except FileNotFoundError:
            raise UserError(
                f"There is no index {path}: ImageIndex.build(model, folder).save({str(path)!r}) writes one."
            ) from None
        except Exception as error:  # numpy raises errors of many kinds for a broken file
            raise UserError(f"{path} is not an index of this package: {str(error)[:200]}") from None
        if model is not None:
            index.check(model)
        return index

    def check(self, model):
        """Raises UserError where `model` is not the one that made the index."""
        if signature(model) != self.signature:
            raise UserError(
                f"The index of {self.root} was made by another model; features of two models do not compare. "
                "Build it again with this one."
            )


def search_gallery(
    model: torch.nn.Module, data: ImageDomains, query: torch.Tensor, k: int = 10, domain: str | None = None
) -> list[tuple[float, str, Path]]:
    """The best k of the images of one domain for the feature [1, D] of a query: (score, class, path), the best first.

    domain: `usual_gallery` where none is given. Raises UserError for an unknown one.
    """
    domain = domain or usual_gallery(data, data.domains)
    if domain not in data.domains:
        raise UserError(f"Unknown domain {domain}. Known: {', '.join(data.domains)}.")
    rows = data.rows([domain], data.classes)
    scores, found = rank(query, embed_rows(model, data, rows, progress=True), k=k)
    return [
        (score, data.classes[data.class_index[row]], data.paths[row])
        for score, row in zip(scores[0].tolist(), rows[found[0]].tolist(), strict=True)
    ]


def search_model(preset="mini"):
    """Zero-shot CLIP of a preset, to search with: it needs no class and no domain, so any names will do."""
    config = load_preset(preset)
    return ZeroShot(load_clip(config.backbone, config.pretrained), ["a", "b"], ["any"], config).eval()


def query_feature(model, query):
    """Feature [1, D] of a query: a PIL image, the path (Path) of a picture, or words (str)."""
    if isinstance(query, (Path, Image.Image)):
        return embed(model, [query])
    if not query.strip():
        raise UserError("The query has no words.")
    with torch.no_grad():
        return model.clip.encode_text([f"a photo of {query}"]).float().cpu()


def signature(model):
    """A short text that two models share only if they give the same features: of all weights and settings."""
    digest = hashlib.sha256(repr((model.label, model.clip.name, model.config.switches)).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
