"""One picture, one feature: every way a picture can come in, every kind of file, and folders of every shape."""

import base64
import io
import json
import os
import shutil
import subprocess
import sys
import time
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw_toy
from matplotlib.text import Text
from PIL import Image, ImageDraw

from prosutils import ImageDomains, UserError, cli
from prosutils.domains import Images, eval_transform, train_transform
from prosutils.evaluation import Pictures, embed
from prosutils.image_files import as_rgb, find_fault, load_image, middle, walk
from prosutils.search import ImageIndex, query_feature
from prosutils.show.pictures import drawable, known_characters, short, show_images, thumbnail
from prosutils.show.widget_parts import decode_drawing, place_drawing
from prosutils.show.widgets import rank_explorer, sketch_search
from prosutils.splits import make_split


@pytest.fixture
def toy_model(toy_model):
    """The toy model with what the signature of an index is made of."""
    toy_model.clip.name = "toy"
    return toy_model


BROKEN_EXIF = b"\0\x08\0\2\1\x12\0\3"


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def ink(size=(64, 48)):
    """Black ink on a transparent ground."""
    image = Image.new("RGBA", size, (0, 0, 0, 0))
    ImageDraw.Draw(image).ellipse((10, 5, 40, 40), outline=(0, 0, 0, 255), width=4)
    return image


def turned():
    """A picture with the EXIF tag "turn me a quarter", and the tag."""
    image = draw_toy("emoji", "house", 0, 64).crop((0, 0, 64, 40))
    exif = Image.Exif()
    exif[0x0112] = 6
    return image, exif


# --- One conversion -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ink", "turned", "deep", "palette", "float", "cmyk", "broken exif"])
def test_a_file_and_its_pil_image_have_one_feature(kind, tmp_path, toy_model):
    image, options, name = draw_toy("emoji", "gem", 0, 64), {}, "a.png"
    if kind == "ink":
        image = ink()
    elif kind == "turned":
        (image, options["exif"]), name = turned(), "a.jpg"
    elif kind == "deep":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    elif kind == "palette":
        image, options["transparency"] = image.quantize(16), 0
    elif kind == "float":
        image, name = Image.fromarray(np.asarray(image.convert("L")).astype("f4") / 255), "a.tif"
    elif kind == "cmyk":
        image, name = image.convert("CMYK"), "a.jpg"
    else:
        options["exif"] = BROKEN_EXIF
    path = tmp_path / name
    image.save(path, **options)
    assert find_fault(path) is None
    once = query_feature(toy_model, path)
    with Image.open(path) as opened:
        for other in (opened, opened.copy(), load_image(path), load_image(path.read_bytes())):
            assert torch.equal(query_feature(toy_model, other), once)
    assert torch.equal(embed(toy_model, [str(path)]), once)


def test_what_was_turned_once_is_not_turned_again():
    image, exif = turned()
    once = load_image(encoded(image, "JPEG", exif=exif))
    assert once.size == (40, 64) and as_rgb(as_rgb(once)).size == (40, 64)
    assert load_image(encoded(once, "JPEG")).size == (40, 64)


def test_the_image_that_is_given_stays_as_it_is():
    image = ink()
    before = image.tobytes(), dict(image.info)
    assert as_rgb(image).mode == "RGB" and (image.tobytes(), image.info) == before
    plain = Image.new("RGB", (4, 4))
    plain.info["comment"] = "mine"
    assert as_rgb(plain) is not plain and plain.info == {"comment": "mine"}


def test_widgets_show_and_embed_the_same_picture():
    drawn = ink((280, 280))
    assert thumbnail(drawn).getpixel((0, 0)) == (255, 255, 255)  # not black
    assert place_drawing(drawn).tobytes() == place_drawing(as_rgb(drawn)).tobytes()
    deep = Image.fromarray(np.asarray(draw_toy("sketch", "box", 0, 64).convert("L")).astype(np.uint16) * 257)
    url = "data:image/png;base64," + base64.b64encode(encoded(deep)).decode()
    assert decode_drawing(url).tobytes() == as_rgb(deep).tobytes()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV", "I"])
def test_every_mode_of_pillow_is_converted(mode):
    assert as_rgb(Image.new(mode, (5, 4))).mode == "RGB"


# --- Broken metadata and damage -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif"])
def test_a_broken_exif_block_loses_no_picture(name, tmp_path):
    image = draw_toy("emoji", "gem", 0, 64)
    image.save(tmp_path / "plain.png")
    path = tmp_path / name
    try:
        image.save(path, exif=b"Exif\0\0" + BROKEN_EXIF if name == "a.jpg" else BROKEN_EXIF)
    except Exception:
        pytest.skip("Pillow does not write it")
    assert find_fault(path) is None and find_fault(path, decode=True) is None
    assert abs(np.asarray(load_image(path), float) - np.asarray(image, float)).mean() < 5


def hole(path):
    """A PNG with whole beginning and end and damaged in the middle."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    content = bytearray(encoded(noise))
    content[5000:6000] = bytes(1000)
    path.write_bytes(content)
    return path


def test_an_index_skips_what_cannot_be_decoded_and_names_it(toy_folder, toy_model, tmp_path):
    for number in range(3):
        draw_toy("emoji", "gem", number).save(tmp_path / f"{number}.png")
    bad = hole(tmp_path / "1b.png")
    assert find_fault(bad) is None and "not a readable image" in find_fault(bad, decode=True)
    index = ImageIndex.build(toy_model, tmp_path)
    assert index.paths.tolist() == ["0.png", "1.png", "2.png"] and len(index.features) == 3
    ((path, why),) = index.skipped
    assert path == bad and "cannot be read as an image" in why
    torch.testing.assert_close(index.features, embed(toy_model, [tmp_path / f"{n}.png" for n in range(3)]))
    for number in range(3):
        (tmp_path / f"{number}.png").unlink()
    with pytest.raises(UserError, match="no image under(?s:.*)1b.png"):
        ImageIndex.build(toy_model, tmp_path)


def test_training_on_a_folder_skips_what_cannot_be_decoded(toy_folder, tmp_path, capsys):
    shutil.copytree(toy_folder, tmp_path / "T")
    hole(tmp_path / "T" / "emoji" / "gem" / "hole.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "T" / "emoji" / "gem" / "exif.png", exif=BROKEN_EXIF)
    with pytest.warns(UserWarning, match="1 of .*emoji/gem/hole.png"):
        command = [
            "train",
            "--data",
            tmp_path / "T",
            "--artifacts",
            tmp_path / "out",
            "--unseen-classes",
            "gem, box",
            "--unseen-domain",
            "sketch",
        ]
        command += ["--unseen-domain", "sketch", "--method", "zero-shot"]
        cli.main([str(word) for word in command])
    assert "UCDR" in capsys.readouterr().out


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_that_cannot_be_decoded_is_named_in_plain_words(tmp_path, workers):
    pictures = Pictures([hole(tmp_path / "hole.png")], eval_transform(8, (0,) * 3, (1,) * 3))
    with pytest.raises(UserError) as error:
        list(torch.utils.data.DataLoader(pictures, num_workers=workers))
    assert str(error.value).startswith(str(tmp_path / "hole.png")) and "Traceback" not in str(error.value)


# --- Values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        np.linspace(0, 1, 9600).astype("f4"),
        np.linspace(0, 255, 9600).astype("f4"),
        np.linspace(-1, 1, 9600).astype("f4"),
        np.linspace(0, 1e-6, 9600).astype("f4"),
        np.linspace(-3e38, 3e38, 9600).astype("f4"),
        np.linspace(-1000, 3000, 9600).astype("i4"),
        np.linspace(0, 100_000, 9600).astype("i4"),
        np.linspace(0, 65535, 9600).astype("i4"),
        np.linspace(0, 65535, 9600).astype("u2"),
        np.linspace(0, 4095, 9600).astype("u2"),
    ],
)
def test_deep_values_are_scaled_by_their_range(values, tmp_path):
    path = tmp_path / "a.tif"
    Image.fromarray(values.reshape(80, 120)).save(path)
    assert find_fault(path) is None
    grey = np.asarray(load_image(path))[..., 0]
    assert grey.min() == 0 and grey.max() == 255 and 120 < grey.mean() < 135
    assert (np.diff(grey.flatten().astype(int)) >= 0).all()
    assert np.array_equal(np.asarray(as_rgb(Image.fromarray(values.reshape(80, 120))))[..., 0], grey)


def test_values_that_are_no_numbers(tmp_path):
    values = np.linspace(0, 1, 16, dtype="f4").reshape(4, 4)
    values[0, 3], values[1, 1] = np.nan, np.inf
    Image.fromarray(values).save(tmp_path / "a.tif")
    grey = np.asarray(load_image(tmp_path / "a.tif"))[..., 0]
    assert grey[0, 3] == grey[1, 1] == 0 and grey.max() == 255
    Image.fromarray(np.full((4, 4), np.nan, dtype="f4")).save(tmp_path / "b.tif")
    assert "finite" in find_fault(tmp_path / "b.tif")
    with pytest.raises(UserError, match="b.tif.*finite"):
        load_image(tmp_path / "b.tif")
    for value, expected in ((0.0, 0), (0.5, 128), (7.0, 255), (-3.0, 0)):
        assert as_rgb(Image.fromarray(np.full((4, 4), value, dtype="f4"))).getpixel((0, 0))[0] == expected


# --- Size and shape -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(300_000, 1), (1, 300_000), (100_000, 3)])
def test_a_very_long_picture_takes_little_time_and_room(size, tmp_path, toy_model):
    path, began = tmp_path / "a.png", time.monotonic()
    Image.new("RGB", size, "red").save(path)
    assert find_fault(path) is None
    assert embed(toy_model, [path]).shape == (1, 48) and thumbnail(load_image(path)).width <= 128
    assert train_transform(56, (0,) * 3, (1,) * 3)(load_image(path)).shape == (3, 56, 56)
    assert eval_transform(224, (0,) * 3, (1,) * 3)(load_image(path)).shape == (3, 224, 224)
    assert time.monotonic() - began < 8


def test_ordinary_shapes_are_not_cut():
    image = draw_toy("emoji", "gem", 0, 64)
    assert middle(image) is image and middle(image.resize((160, 10))).size == (160, 10)
    assert middle(image.resize((400, 10))).size == (160, 10) and middle(image.resize((10, 401))).size == (10, 160)


def test_a_list_of_pil_images_is_prepared_by_the_batch(toy_model, tmp_path):
    draw_toy("emoji", "gem", 0, 32).save(tmp_path / "a.png")
    pictures = [draw_toy("emoji", "gem", 0, 32)] * 1500
    tracemalloc.start()
    try:
        embed(toy_model, pictures)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 30e6  # tracemalloc sees Python's and numpy's share
    opened = Image.open(tmp_path / "a.png")
    embed(toy_model, [opened] * 5)
    assert opened.tile  # still not decoded: a list of opened files does not fill with pixels


def test_phone_pictures_of_108_and_200_megapixels_are_read(tmp_path):
    for size, name in (((12000, 9000), "a.jpg"), ((16320, 12240), "b.jpg")):
        path = tmp_path / name
        Image.new("L", size, 200).save(path, quality=75)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert find_fault(path) is None
            picture = load_image(path)
        assert picture.size == (size[0] // 2, size[1] // 2) and picture.getpixel((9, 9)) == (200, 200, 200)


def test_large_pictures_agree_between_paths(tmp_path, monkeypatch):
    path = tmp_path / "a.jpg"
    draw_toy("emoji", "house", 0, 256).save(path, quality=95)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40_000)
    small = load_image(path)
    assert small.size == (128, 128)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 70_000)
    with Image.open(path) as image:
        image.load()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40_000)
    other = as_rgb(image)
    assert other.size == small.size and abs(np.asarray(other, float) - np.asarray(small, float)).mean() < 2


def test_bombs_are_refused_in_words(tmp_path):
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    assert "decompression bomb" in find_fault(tmp_path / "bomb.png")
    with pytest.raises(UserError, match="bomb.png.*decompression bomb"):
        load_image(tmp_path / "bomb.png")


# --- Formats ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jfif", "a.jpe", "a.JFIF", "a.avif"])
def test_endings_of_phones_and_browsers(name, tmp_path):
    path, image = tmp_path / name, draw_toy("emoji", "gem", 0, 64)
    kind = "AVIF" if name.endswith("avif") else "JPEG"
    if kind not in Image.SAVE:
        assert "Pillow 11.3" in find_fault(path.with_name("none.avif")) or pytest.skip("Pillow without AVIF")
    image.save(path, kind, quality=95)
    assert find_fault(path) is None and find_fault(path, decode=True) is None
    assert abs(np.asarray(load_image(path), float) - np.asarray(image, float)).mean() < 6


def test_heic_is_read_where_pillow_heif_is_there_and_else_names_it(tmp_path, monkeypatch):
    heif = None
    try:
        import pillow_heif as heif
    except ImportError:
        pass
    path = tmp_path / "a.heic"
    if heif:
        heif.register_heif_opener()
        image = draw_toy("emoji", "gem", 0, 64)
        image.save(path, "HEIF", quality=95)
        assert find_fault(path) is None
        assert abs(np.asarray(load_image(path), float) - np.asarray(image, float)).mean() < 6
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # not installed
    assert "pip install pillow-heif" in find_fault(path)
    with pytest.raises(UserError, match="pip install pillow-heif"):
        load_image(path)
    path.rename(tmp_path / "a.jpg")  # as some programs name them
    assert "pip install pillow-heif" in find_fault(tmp_path / "a.jpg")


def test_only_formats_of_pictures_are_opened(tmp_path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")  # would start Ghostscript
    (tmp_path / "empty.png").write_bytes(b"")
    assert "it is none of PNG" in find_fault(tmp_path / "a.png") and "0 bytes" in find_fault(tmp_path / "empty.png")


def test_what_is_no_file_is_not_opened(tmp_path):
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere.png")
    assert [find_fault(path) for path in sorted(tmp_path.iterdir())] == ["a folder", "a link to nowhere", "not a file"]


# --- Folders ------------------------------------------------------------------------------------------------------


def test_links_to_folders_are_followed_by_an_index(toy_folder, toy_model, tmp_path):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "2023").symlink_to(toy_folder / "emoji" / "gem")
    (tmp_path / "links" / "again").symlink_to(toy_folder / "emoji" / "gem")  # the same pictures: once
    (tmp_path / "links" / "loop").symlink_to(tmp_path / "links")
    (tmp_path / "links" / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "links" / "__MACOSX").mkdir()
    (tmp_path / "links" / "__MACOSX" / "a.png").write_bytes(b"x")
    index = ImageIndex.build(toy_model, tmp_path / "links")
    names = sorted(path.name for path in (toy_folder / "emoji" / "gem").iterdir())
    assert index.paths.tolist() == [f"2023/{name}" for name in names]
    assert [(path.name, why) for path, why in index.skipped] == [("gone", "a link to nowhere")]


def test_many_links_to_each_other_end(tmp_path):
    folders = [tmp_path / f"f{i}" for i in range(12)]
    for folder in folders:
        folder.mkdir()
        draw_toy("emoji", "gem", 0).save(folder / "a.png")
    for folder in folders:
        for other in folders:
            (folder / f"to_{other.name}").symlink_to(other)
    assert len(list(walk(tmp_path))) == 12


def test_index_and_folder_list_the_same_files(toy_folder, toy, tmp_path):
    (tmp_path / "T").mkdir()
    for domain in toy.domains:
        (tmp_path / "T" / domain).symlink_to(toy_folder / domain)
    again = ImageDomains.from_folder(tmp_path / "T")
    assert len(again) == len(toy) and list(walk(tmp_path / "T")) == again.paths


def two_domains(root, names):
    """photo and sketch with 2 pictures of each class; names are bytes or text."""
    for domain in ("photo", "sketch"):
        for name in names:
            folder = os.path.join(os.fsencode(root / domain), name if isinstance(name, bytes) else name.encode())
            os.makedirs(folder)
            for number in range(2):
                with open(os.path.join(folder, b"%d.png" % number), "wb") as file:
                    file.write(encoded(draw_toy("emoji", "gem", number)))
    return root


def test_a_folder_that_is_not_utf8_is_read_trained_and_searched(tmp_path, capsys):
    try:
        root = two_domains(tmp_path / "T", [b"caf\xe9", "cat", "dog", "\u5b66\u6821", "Ba$$in", "a, b"])
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    data = ImageDomains.from_folder(root)
    assert "caf\\xe9" in data.classes and data.load(data.rows(["photo"], ["caf\\xe9"])[0]).size == (32, 32)
    data.table().to_csv(tmp_path / "table.csv")
    command = ["--data", str(root), "--unseen-domain", "none", "--artifacts", str(tmp_path / "out")]
    cli.main(["train", *command, "--method", "heads", "--unseen-classes", 'caf\\xe9,"a, b"', "--stage2.epochs", "1"])
    cli.main(["index", str(root), "--out", str(tmp_path / "my.photos")])
    picture = str(data.paths[0])
    capsys.readouterr()
    cli.main(["search", "--index", str(tmp_path / "my.photos"), "--image", picture, "-k", "30"])
    assert "caf\\udce9" in capsys.readouterr().out


def test_a_name_that_is_not_utf8_does_not_join_one_that_reads_alike(tmp_path):
    try:
        root = two_domains(tmp_path / "T", [b"caf\xe9", b"caf\\xe9", "cat"])
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(UserError, match="Two folders are named caf"):
        ImageDomains.from_folder(root)


def test_no_name_ends_a_command_whatever_the_terminal(tmp_path):
    try:
        root = two_domains(tmp_path / "T", [b"caf\xe9", "\u5b66\u6821", "\U0001f600"])
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    ran = subprocess.run(
        [sys.executable, "-m", "prosutils", "index", str(root), "--out", str(tmp_path / "i")],
        env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        timeout=300,
    )
    assert ran.returncode == 0 and b"Traceback" not in ran.stderr


# --- An index and its folder --------------------------------------------------------------------------------------


@pytest.fixture
def photos(toy_folder, toy_model, tmp_path):
    shutil.copytree(toy_folder / "emoji", tmp_path / "mine" / "photos")
    return ImageIndex.build(toy_model, tmp_path / "mine" / "photos")


def test_names_of_indexes_are_kept(photos, toy_model, tmp_path):
    assert photos.save(tmp_path / "my.photos").name == "my.photos.npz"
    assert photos.save(tmp_path / "my.npz").name == "my.npz"
    files = {photos.save(tmp_path / name) for name in ("idx.2023", "idx.2024", "idx")}
    assert len(files) == 3 and all(path.is_file() for path in files)
    for name in ("my.photos", "my.photos.npz", "idx.2023"):
        assert ImageIndex.load(tmp_path / name, toy_model).paths.tolist() == photos.paths.tolist()
    with pytest.raises(UserError, match="There is no index"):
        ImageIndex.load(tmp_path / "idx.2025")


def test_an_index_whose_folder_moved_says_so(photos, toy_model, tmp_path):
    path = photos.save(tmp_path / "apart" / "i")
    near = photos.save(tmp_path / "mine" / "i")
    (tmp_path / "mine").rename(tmp_path / "yours")
    moved = tmp_path / "yours" / "photos"
    with pytest.raises(UserError, match="no such folder is there(?s:.*)--root"):
        ImageIndex.load(path, toy_model)
    with pytest.raises(UserError, match="no such folder"):
        ImageIndex.load(path, toy_model, root=tmp_path / "nowhere")
    index = ImageIndex.load(path, toy_model, root=moved)
    assert all(place.is_file() for _, _, place in index.answers(photos.features[:1]))
    assert ImageIndex.load(tmp_path / "yours" / near.name, toy_model).root == moved  # moved together
    (moved / photos.paths[0]).unlink()
    with pytest.warns(UserWarning, match="1 of these .* no longer there"):
        index.answers(photos.features[:1])


def test_images_of_a_table_load_like_files(toy):
    images = Images(toy, torch.arange(3), eval_transform(16, (0,) * 3, (1,) * 3))
    pictures = Pictures(toy.paths[:3], eval_transform(16, (0,) * 3, (1,) * 3))
    assert all(torch.equal(images[i][0], pictures[i]) for i in range(3))


# --- Names in figures ---------------------------------------------------------------------------------------------


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text)]


def test_dollars_and_characters_without_a_font_are_drawn(tmp_path):
    names = ["Ba$$in", "$x^2$", "$", "\u5b66\u6821", "\U00020000", "caf\u00e9", "a_b"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of missing glyphs and fonts
        warnings.filterwarnings("ignore", ".*deprecated.* use")  # an old matplotlib with a new pyparsing
        figure = show_images([draw_toy("emoji", "gem", 0)] * len(names), names)
        figure.png()
    shown = [text.replace("\n", "") for text in texts(figure)]  # long ones take two lines
    assert r"Ba\$\$in" in shown and "caf\u00e9" in shown and "a b" in shown
    if ord("\u5b66") not in known_characters():
        assert r"\u5b66\u6821" in shown
    assert short(short("Ba$$in")) == short("Ba$$in")
    assert drawable("\u5b66") in ("\u5b66", r"\u5b66")


def test_a_widget_shows_any_class_name(tmp_path, toy_model):
    try:
        root = two_domains(tmp_path / "T", ["Ba$$in", "\u5b66\u6821", b"caf\xe9"])
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    data = ImageDomains.from_folder(root)
    explorer = rank_explorer(data, make_split(data, "UcCDR", None, ["Ba$$in"], []), toy_model, k=2)
    explorer.figure().png()
    assert "Ba$$in" in explorer.shown.value and not explorer.note.value
    pad = sketch_search(toy_model, ImageIndex.build(toy_model, root), k=3)
    pad.figure().png()
    pad.words, pad.drawing = "", "data:image/png;base64," + base64.b64encode(encoded(ink((280, 280)))).decode()
    assert json.dumps(pad.answer).encode("ascii") and not pad.answer["message"]
