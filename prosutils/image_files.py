"""Image files: found in folders, checked, and read as RGB pictures."""

import contextlib
import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, JpegImagePlugin, UnidentifiedImageError, features

from .files import UserError
from .names import readable

#: Endings of image files, and Pillow's names of what may be in them. Pillow would try every format it knows, whatever
#: the ending, and start another program (Ghostscript) for some.
IMAGE_SUFFIXES = {
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".avif", ".heic", ".heif"),
}
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "HEIF")
HEIF_SUFFIXES = {".heic", ".heif"}
#: Files and folders that systems and programs leave behind. Hidden ones begin with a dot.
SYSTEM_FILES = {
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "$recycle.bin", "system volume information"),
    *("lost+found", "@eadir"),
}
#: What a whole file of these formats ends with. A file that does not end so is decoded to find out.
LAST_BYTES = {"PNG": b"IEND\xaeB`\x82", "JPEG": b"\xff\xd9", "MPO": b"\xff\xd9"}
#: Largest values of pictures of 1 (a mask), 8, 10, 12, 14 and 16 bits in a wider type.
FULL_SCALES = (1, 255, 1023, 4095, 16383, 65535)
#: A picture this many times as long as wide is cut to its middle before it is resized.
LONGEST_RATIO = 16
#: Pixels that one byte of a file stands for at most in pictures above Pillow's limit (`Image.MAX_IMAGE_PIXELS`).
DENSEST = 200

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


# --- One picture --------------------------------------------------------------------------------------------------


def load_image(source: str | Path | bytes) -> Image.Image:
    """The picture in a file, or in the bytes of one, as PIL RGB; see `as_rgb`.

    Raises UserError, naming the file, when it cannot be decoded or is a decompression bomb.
    """
    name = "The picture" if isinstance(source, bytes) else readable(source)
    try:
        with _opened(source) as file:
            return _converted(open_image(file))
    except UserError as error:
        raise UserError(f"{name} cannot be read as an image: {error}") from error
    except Exception as error:  # Pillow's decoders raise errors of many kinds
        raise UserError(f"{name} cannot be read as an image ({_reason(error)}): replace or remove it.") from error


def as_rgb(image: Image.Image) -> Image.Image:
    """Any PIL image as RGB, the same as `load_image` gives for its file; `image` itself stays as it is.

    It is turned upright by its EXIF tag (a broken one is ignored) and laid on white where it is transparent. Grey
    values of 16 or 32 bits and floating-point ones are scaled to 8 bits: by the full scale of the smallest bit depth
    that holds them, else by their range; NaN becomes black. Above `Image.MAX_IMAGE_PIXELS` pixels it is made smaller
    by whole factors. Raises UserError when it cannot be decoded.
    """
    try:
        source, known = getattr(image, "filename", None), (*FORMATS, "MPO")
        if getattr(image, "tile", None) and source and image.format in known and not image.tell():
            return load_image(source)  # anew: decoded pixels would stay in the caller's image, and fill a list
        return _converted(image)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"The picture cannot be decoded ({_reason(error)}): replace or remove it.") from error


def open_image(file: BinaryIO) -> Image.Image:
    """`Image.open` for the formats of this package, with other limits of size.

    Pillow warns above `Image.MAX_IMAGE_PIXELS` (89 million) and refuses the double. Cameras of telephones have 108 and
    200. So three times the limit is read of a JPEG, which is decoded at half its size, and 1.5 times of others; a file
    of a few bytes that becomes so many pixels is refused as a decompression bomb.
    Raises UserError for a bomb or an unknown format, and Pillow's many errors for a broken file.
    """
    beginning, missing = file.read(16), None
    file.seek(0)
    if beginning[4:8] == b"ftyp" and beginning[8:12] != b"avif":
        try:
            register_heif()
        except UserError as error:  # but there are AVIF pictures that begin so
            missing = error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            if beginning.startswith(b"\xff\xd8\xff"):  # past Pillow's own limit
                image = JpegImagePlugin.jpeg_factory(file)
            else:
                Image.init()
                image = Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])
        except UnidentifiedImageError:
            whole = f"it is none of {', '.join(FORMATS)}, or its beginning is damaged: save it as one of these."
            raise missing or UserError(whole if beginning else "it is empty (0 bytes).") from None
        except Image.DecompressionBombError:
            raise UserError("it has so many pixels that its size exceeds limits (a decompression bomb).") from None
    _refuse_bomb(image, file, 3 if image.format in ("JPEG", "MPO") else 1.5)
    return image


def _refuse_bomb(image: Image.Image, file: BinaryIO, times: float) -> None:
    """UserError for more than `times` Pillow's limit of pixels, or more than the limit out of very few bytes."""
    limit, pixels = Image.MAX_IMAGE_PIXELS, image.width * image.height
    if limit is None or pixels <= limit:  # None: somebody has lifted the limit
        return
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if pixels > times * limit or pixels > DENSEST * size:
        raise UserError(
            f"its size, {image.width} x {image.height} pixels in a file of {size:,} bytes, exceeds limits (a "
            "decompression bomb): save it smaller."
        )


@contextlib.contextmanager
def _opened(source: str | Path | bytes) -> Iterator[BinaryIO]:
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
        yield file


def _converted(image: Image.Image) -> Image.Image:
    """What `load_image` and `as_rgb` give, before errors get words."""
    limit = Image.MAX_IMAGE_PIXELS or image.width * image.height
    if image.format in ("JPEG", "MPO") and getattr(image, "tile", None) and image.width * image.height > limit:
        image.draft(None, (image.width // 2, image.height // 2))  # decodes a quarter of the pixels
    image.load()
    turn = TURNS.get(_orientation(image))
    if image.mode.startswith(("I", "F")):  # Pillow would clip their values at 255 instead of scaling them
        image = Image.fromarray(_eight_bits(np.asarray(image)))
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")  # a copy, where it is one already
    image.info = {}  # its orientation among others, which would turn it once more
    if (pixels := image.width * image.height) > limit:
        image = image.reduce(int(np.ceil((pixels / limit) ** 0.5)))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """The EXIF tag of this name; 1, upright, where there is none or the block is broken."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a broken block raises errors of many kinds, and the pixels are whole
        return 1


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Grey values [H, W] of any type as uint8: see `as_rgb`. UserError where none is a finite number."""
    finite = np.isfinite(values)
    if not finite.any():
        raise UserError("none of its values is a finite number.")
    low = float(values.min(where=finite, initial=values[finite][0]))
    high = float(values.max(where=finite, initial=values[finite][0]))
    scale = next((scale for scale in FULL_SCALES if scale / 4 <= high <= scale), None)
    if low >= 0 and scale:
        low = 0.0
    elif high > low:
        scale = high - low
    else:  # one grey: black where it is 0 or less, white above
        low, scale = 0.0, max(high, 1.0)
    grey = np.empty(values.shape, np.uint8)
    for rows in range(0, len(values), 256):  # by parts: a large picture takes little more room than it has
        part = values[rows : rows + 256].astype(np.float64) / scale - low / scale
        grey[rows : rows + 256] = np.where(finite[rows : rows + 256], 255 * part, 0).round().clip(0, 255)
    return grey


def _reason(error: Exception) -> str:
    """An error of a decoder in words: its text, or its kind where it has none."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return readable(str(error)) or type(error).__name__


def middle(image: Image.Image) -> Image.Image:
    """The image, or the middle of one that is more than 16 times as long as wide.

    A transform that takes the middle square after resizing the shorter side would resize a line of 300,000 pixels to
    224 x 67,200,000 first.
    """
    width, height = image.size
    most = LONGEST_RATIO * min(width, height)
    if max(width, height) <= most:
        return image
    left, top = (max(0, (length - most) // 2) for length in (width, height))
    return image.crop((left, top, left + min(width, most), top + min(height, most)))


# --- HEIF ---------------------------------------------------------------------------------------------------------


def register_heif() -> None:
    """Let Pillow read .heic and .heif. Raises UserError where the package pillow-heif is not installed."""
    if "HEIF" in Image.OPEN:
        return
    try:
        import pillow_heif
    except ImportError:
        raise UserError(
            "HEIF pictures (.heic, .heif) are read with the package pillow-heif: pip install pillow-heif, or save them "
            "as JPEG."
        ) from None
    pillow_heif.register_heif_opener()


def missing_decoder(path: Path) -> str | None:
    """What has to be installed to read a file of this ending, or None."""
    suffix = path.suffix.lower()
    if suffix == ".avif" and not features.check("avif"):
        return ".avif needs Pillow 11.3 or newer: pip install --upgrade pillow"
    if suffix in HEIF_SUFFIXES:
        try:
            register_heif()
        except UserError as error:
            return str(error)
    return None


# --- Checks -------------------------------------------------------------------------------------------------------


def find_fault(path: Path, decode: bool = False) -> str | None:
    """Why a file is not a whole image, or None.

    Reads its header and last bytes, and decodes only where these leave doubt: to decode all of DomainNet's
    600,000 images takes an hour, this takes minutes, and an interrupted copy or download, the usual damage,
    shows at the end of a file. decode=True decodes every file, and so finds damage in the middle, which is otherwise
    reported by `load_image`.
    """
    try:
        if not path.is_file():  # to open a pipe would wait for ever
            return "a folder" if path.is_dir() else "not a file" if path.exists() else "a link to nowhere"
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            return "not an image file"
        if missing := missing_decoder(path):
            return missing
        with open(path, "rb") as file:
            image = open_image(file)
            ending = LAST_BYTES.get(image.format)
            if decode or ending is None or not _ends_with(file, ending):
                file.seek(0)
                _converted(open_image(file))
    except Exception as error:  # Pillow's decoders raise errors of many kinds
        return f"not a readable image: {_reason(error)}"
    return None


def _ends_with(file: BinaryIO, ending: bytes) -> bool:
    """Whether the last 16 bytes of a file end so; its place is moved."""
    file.seek(-min(16, file.seek(0, os.SEEK_END)), os.SEEK_END)
    return file.read().endswith(ending)


# --- Folders ------------------------------------------------------------------------------------------------------


def visible(folder: Path) -> list[Path]:
    """What a folder holds, sorted by name, without hidden files and folders and those of the system."""
    entries = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return sorted((path for path in entries if path.name.lower() not in SYSTEM_FILES), key=lambda path: path.name)


def walk(root: Path, depth: int | None = None) -> Iterator[Path]:
    """The files below a folder, sorted by folder and name; links to folders are followed.

    depth: 3 gives what lies in `root/*/*/`, folders there included, and nothing else. None: files at every depth, and
    folders that cannot be listed; each folder is read once, under its first name, so that links that lead back to it do
    not go round for ever. Raises UserError when a folder cannot be listed.
    """
    seen = set()

    def below(folder: Path, level: int) -> Iterator[Path]:
        if depth is None:
            if (real := os.path.realpath(folder)) in seen:
                return
            seen.add(real)
        try:
            entries = visible(folder)
        except OSError as error:
            if depth is None and level > 1:
                yield folder
                return
            raise UserError(f"{readable(folder)} cannot be listed ({error.strerror}).") from error
        for path in entries:
            if level == depth:
                yield path
            elif path.is_dir():
                yield from below(path, level + 1)
            elif depth is None:
                yield path

    if not root.is_dir():
        raise UserError(f"There is no folder {readable(root)}.")
    yield from below(root, 1)


def list_files(root: Path) -> list[Path]:
    """What lies in `root/*/*/`, sorted by domain, class and name, without hidden files and folders."""
    if not root.is_dir():
        raise UserError(f"There is no folder {readable(root)}. Expected {readable(root)}/<domain>/<class>/<image>.")
    return list(walk(root, depth=3))
