"""Hostile pictures, folder names, archives and lists of names, drawn by Hypothesis: a UserError or success.

By default about 20 seconds; PROSUTILS_FUZZ=10000 sets the number of examples of each property and lifts the time limit.
"""

import io
import os
import re
import tempfile
import time
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import LONGEST, fuzz
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from prosutils import ImageDomains, UserError
from prosutils.domains import eval_transform
from prosutils.image_files import FORMATS, as_rgb, find_fault, load_image, middle
from prosutils.names import code_points, file_name, look_alikes, parse_names, readable, told_apart
from prosutils.own_images import advice, save_uploads
from prosutils.show.pictures import drawable, short, thumbnail

TRANSFORM = eval_transform(16, (0.5,) * 3, (0.5,) * 3)


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# --- Pictures -----------------------------------------------------------------------------------------------------

MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "I;16", "F", "HSV", "La", "RGBa", "PA")
SUFFIXES = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "BMP": "bmp", "GIF": "gif", "TIFF": "tif", "AVIF": "avif"}
sizes = st.one_of(
    st.tuples(st.integers(1, 40), st.integers(1, 40)), st.tuples(st.integers(1, 3), st.integers(5000, 60_000))
)


@st.composite
def images(draw):
    """A PIL image of any mode and shape, with values of any kind and broken metadata."""
    mode, (width, height) = draw(st.sampled_from(MODES)), draw(sizes)
    if draw(st.booleans()):
        width, height = height, width
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    if mode in ("I", "I;16", "F"):
        kind = {"I": "i4", "I;16": "u2", "F": "f4"}[mode]
        edges = draw(st.lists(st.sampled_from([0, 1, -5, 255, 4095, 65535, 2**31 - 1, 1e-9, 3e38]), min_size=2))
        with np.errstate(all="ignore"):
            values = rng.choice(np.array(edges), (height, width)).astype("f8")
            values = values if kind == "f4" else values.clip(*((0, 65535) if kind == "u2" else (-(2**31), 2**31 - 1)))
            if kind == "f4" and draw(st.booleans()):
                values[0, 0] = draw(st.sampled_from([np.nan, np.inf, -np.inf]))
            image = Image.fromarray(values.astype(kind))
    else:
        image = Image.new(mode, (width, height))
        if mode in ("L", "RGB", "RGBA", "CMYK"):
            image.putdata(
                [tuple(x) if len(x) > 1 else x[0] for x in rng.integers(0, 256, (9, len(image.getbands()))).tolist()][
                    : width * height
                ]
            )
    if draw(st.booleans()):
        image.info[draw(st.sampled_from(["exif", "xmp", "transparency", "icc_profile", "Raw profile type exif"]))] = (
            draw(st.one_of(st.binary(max_size=40), st.integers(0, 255), st.just((1, 2, 3)), st.text(max_size=9)))
        )
    return image


@st.composite
def picture_files(draw):
    """(suffix, bytes) of a file that is, was or pretends to be a picture."""
    kind = draw(st.sampled_from(sorted(SUFFIXES)))
    content, options = io.BytesIO(), {}
    if draw(st.booleans()):
        options["exif"] = draw(
            st.one_of(st.binary(max_size=60), st.binary(max_size=30).map(lambda x: b"Exif\0\0MM\0*" + x))
        )
    try:
        draw(images()).save(content, kind, **options)
    except Exception:  # Pillow cannot write this mode, size or EXIF block so
        Image.new("RGB", (9, 7), "red").save(content, "PNG")
    content = bytearray(content.getvalue())
    harm = draw(st.sampled_from(["none", "flip", "cut", "append", "hole", "noise"]))
    if harm == "flip":
        for _ in range(draw(st.integers(1, 4))):
            content[draw(st.integers(0, len(content) - 1))] ^= draw(st.integers(1, 255))
    elif harm == "cut":
        content = content[: draw(st.integers(0, len(content)))]
    elif harm == "append":
        content += draw(st.binary(max_size=50))
    elif harm == "hole":
        start = draw(st.integers(0, len(content) - 1))
        content[start : start + 40] = bytes(min(40, len(content) - start))
    elif harm == "noise":
        content = bytearray(draw(st.binary(max_size=200)))
    return draw(st.sampled_from([*SUFFIXES.values(), "jfif", "heic", "JPG"])), bytes(content)


def png_of(width, height, depth, colour):
    """A PNG that announces any size: a bomb, where its few bytes are all there is."""

    def chunk(kind, body):
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([depth, colour, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(5000))) + chunk(b"IEND", b"")
    )


def loaded(source):
    """The picture, or None where there was a UserError; anything else is a failure."""
    try:
        picture = load_image(source)
    except UserError as error:
        assert str(error)
        return None
    assert picture.mode == "RGB" and min(picture.size) > 0
    return picture


@fuzz
@given(picture_files())
def test_files(file):
    suffix, content = file
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a.{suffix}"
        path.write_bytes(content)
        quick, thorough = find_fault(path), find_fault(path, decode=True)
        picture = loaded(path)
        assert (picture is None) == (thorough is not None) or "pillow-heif" in str(thorough)
        assert thorough if quick else True  # the thorough check finds what the quick one finds
        if picture is not None:
            assert TRANSFORM(picture).shape == (3, 16, 16) and thumbnail(picture).width <= 128
            assert picture.tobytes() == loaded(content).tobytes() == as_rgb(picture).tobytes()
            with Image.open(path) as opened:
                assert as_rgb(opened).tobytes() == picture.tobytes()
    assert time.monotonic() - began < LONGEST


@fuzz
@given(images())
def test_pil_images(image):
    began = time.monotonic()
    before = image.tobytes()
    try:
        picture = as_rgb(image)
    except UserError:
        return
    assert picture.mode == "RGB" and picture.info == {} and image.tobytes() == before
    assert TRANSFORM(picture).isfinite().all() and max(middle(picture).size) <= max(16 * min(picture.size), 1)
    assert torch.equal(TRANSFORM(picture), TRANSFORM(as_rgb(picture)))
    assert time.monotonic() - began < LONGEST


@fuzz
@given(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1), st.sampled_from([1, 8, 16]), st.sampled_from([0, 2, 3, 6]))
def test_announced_sizes(width, height, depth, colour):
    began = time.monotonic()
    assert loaded(png_of(width, height, depth, colour)) is None or width * height < 1.5 * Image.MAX_IMAGE_PIXELS
    assert time.monotonic() - began < LONGEST


# --- Names --------------------------------------------------------------------------------------------------------

names = st.one_of(
    st.text(max_size=30),
    st.text('Cc+#_. %~-/\\:*?"<>|$\0\n\u00e9\u0301', max_size=8),
    st.sampled_from(
        ["CON", "nul.txt", "..", ".", "", "x" * 300, "\u5b66" * 120, "caf\u00e9", "cafe\u0301", "a\udce9", "\ud83d"]
    ),
)


@fuzz
@given(st.lists(names, max_size=6))
def test_names(several):
    different = list(dict.fromkeys(several))
    made = [file_name(name) for name in different]
    assert len(set(made)) == len(different)
    for name, safe in zip(different, made, strict=True):
        assert 0 < len(safe.encode()) <= 255 and not set(safe) & set('/\\:*?"<>|\0\n') and safe not in (".", "..")
        for text in (readable(name), told_apart(name, different), code_points(name)):
            text.encode("utf-8")
        assert drawable(short(name)) == short(name) and not re.search(r"(?<!\\)\$", short(name))
    assert sum(map(len, look_alikes(different))) <= len(different)
    try:
        assert all(name == name.strip() and name for name in parse_names(several) or ["a"])
    except UserError:
        pass


@fuzz
@given(st.lists(st.tuples(names, st.binary(min_size=1, max_size=12)), min_size=1, max_size=3), st.integers(0, 2))
def test_folders_of_any_name(several, broken):
    """Class folders named in bytes, as a disk from elsewhere has them."""
    with tempfile.TemporaryDirectory() as root:
        for domain in (b"photo", b"sketch"):
            for number, name in enumerate(part for pair in several for part in pair):
                name = (
                    os.fsencode(file_name(name))
                    if isinstance(name, str)
                    else name.translate(None, b"/\0").strip(b".") or b"a"
                )
                folder = os.path.join(os.fsencode(root), domain, name)
                try:
                    os.makedirs(folder, exist_ok=True)
                except OSError:  # a file system of UTF-8 names only
                    continue
                with open(os.path.join(folder, b"%d.png" % number), "wb") as file:
                    file.write(PICTURE if number != broken else PICTURE[:40])
        try:
            data = ImageDomains.from_folder(root)
        except UserError:
            return
        assert data.table().to_csv().encode("utf-8") and "\n".join(advice(data)).encode("utf-8") is not None
        assert data.load(0).size == (8, 8)


# --- Archives -----------------------------------------------------------------------------------------------------


def _encoded(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


PICTURE = _encoded(Image.new("RGB", (8, 8), "red"))
members = st.lists(
    st.tuples(st.lists(names, max_size=4), names, st.sampled_from([".png", ".PNG", "", ".txt"])), max_size=5
)


@fuzz
@given(members, st.sampled_from(["/", "\\"]), st.sampled_from(["none", "flip", "cut"]), st.integers(0, 10_000), names)
def test_archives(listed, separator, harm, place, name):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for folders, last, suffix in listed:
            member = separator.join([*folders, f"{last}{suffix}"]).encode("utf-8", "replace").decode()
            packed.writestr(member.partition("\0")[0] or "a", PICTURE)  # zipfile ends a name there
    content = bytearray(file.getvalue())
    if harm == "flip":
        content[place % len(content)] ^= 255
    elif harm == "cut":
        content = content[: place % len(content)]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder) / "up"
        uploads = [dict(name=f"{name}.zip", content=content), dict(name=name, content=PICTURE)] * 2
        paths, complaints = save_uploads(uploads, folder)
        assert len(set(paths)) == len(paths) and all(isinstance(said, str) for said in complaints)
        assert all(path.resolve().is_relative_to(folder.resolve()) and loaded(path) is not None for path in paths)
        kept = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.exists() else []
        assert kept == sorted(paths) and [path.name for path in folder.parent.iterdir()] in ([], ["up"])
    assert time.monotonic() - began < LONGEST


def test_formats_are_those_of_the_package():
    assert set(SUFFIXES) <= set(FORMATS)
