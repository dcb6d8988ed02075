"""Image files: found in a `domain/class/image` folder, checked, and read as RGB pictures."""

import warnings

import numpy as np
from PIL import Image, ImageOps

from .files import UserError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
SYSTEM_FILES = {"thumbs.db", "desktop.ini"}
#: What a whole file of these formats ends with. A file that does not end so is decoded to find out.
LAST_BYTES = {"PNG": b"IEND\xaeB\x60\x82", "JPEG": b"\xff\xd9"}


def open_image(path):
    """`Image.open` that refuses what Pillow only warns of: more pixels than its safety limit."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(path)


def load_image(path):
    """The image in a file as PIL RGB; see `as_rgb`.

    Raises UserError, naming the file, when it cannot be decoded or is a decompression bomb.
    """
    try:
        with open_image(path) as file:
            return as_rgb(file)
    except Exception as error:  # Pillow's decoders raise errors of many kinds
        raise UserError(f"{path} cannot be read as an image ({error}): replace or remove it.") from error


def as_rgb(image: Image.Image) -> Image.Image:
    """Any picture as PIL RGB: upright by its EXIF tag, transparency on white, 16-bit grey as 8-bit."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # Pillow would clip 16-bit grey at 255 instead of scaling it
        image = Image.fromarray((np.asarray(image) / 257).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def find_fault(path):
    """Why a file is not a whole image, or None.

    Reads its header and last bytes, and decodes only where these leave doubt: to decode all of DomainNet's
    600,000 images takes an hour, this takes minutes, and an interrupted copy or download, the usual damage,
    shows at the end of a file. Damage in the middle is reported by `load_image`.
    """
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        return "not an image file"
    try:
        with open_image(path) as image, open(path, "rb") as file:
            file.seek(-min(16, path.stat().st_size), 2)
            ending = LAST_BYTES.get(image.format)
            if ending is None or not file.read().endswith(ending):
                image.load()
    except Exception as error:  # Pillow's decoders raise errors of many kinds
        return f"not a readable image: {error}"
    return None


def list_files(root):
    """The files in `root/*/*/`, sorted by domain, class and name, without hidden files and folders."""

    def visible(folder):
        entries = [path for path in folder.iterdir() if not path.name.startswith(".")]
        return sorted(entries, key=lambda path: path.name)

    try:
        if not root.is_dir():
            raise UserError(f"There is no folder {root}. Expected {root}/<domain>/<class>/<image>.")
        return [
            path
            for domain in visible(root)
            if domain.is_dir()
            for folder in visible(domain)
            if folder.is_dir()
            for path in visible(folder)
            if path.name.lower() not in SYSTEM_FILES
        ]
    except OSError as error:
        raise UserError(f"{root} cannot be listed: {error}.") from error
