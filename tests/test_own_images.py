"""Your own pictures: every fault of a folder is named, uploads never break anything, an index finds what it should."""

import io
import re
import shutil
import zipfile

import numpy as np
import pytest
import torch
from conftest import draw_toy
from PIL import Image

from prosutils import ImageDomains, UserError, cli, embed, files, load_preset, make_split, own_images
from prosutils.image_files import load_image
from prosutils.names import file_name, parse_names
from prosutils.own_images import advice, save_uploads, stand_in, suggest_split
from prosutils.search import ImageIndex, query_feature, search_model, signature


@pytest.fixture(scope="module")
def model():
    return search_model()


def encoded(image, kind="PNG", **options):
    """The bytes of a picture as a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


# --- A labelled folder --------------------------------------------------------------------------------------------


def test_a_good_folder_needs_no_advice_and_its_split_works(toy):
    assert [sentence for sentence in advice(toy) if "classes" not in sentence] == []
    suggested = suggest_split(toy)
    assert suggested["gallery_domain"] == "emoji" and suggested["unseen_domain"] in toy.domains
    split = make_split(toy, **suggested)
    assert len(split.query) and len(split.gallery) and suggested["unseen_domain"] not in split.train_domains


def test_what_a_folder_lacks_is_said(toy_folder, tmp_path):
    root = tmp_path / "mine"
    shutil.copytree(toy_folder / "emoji", root / "photo")
    shutil.copytree(toy_folder / "sketch", root / "sketch")
    for path in sorted((root / "photo" / "ball").iterdir())[1:]:
        path.unlink()
    for path in sorted((root / "sketch" / "box").iterdir())[2:]:
        path.unlink()
    shutil.rmtree(root / "photo" / "gem")
    (root / "sketch" / "gem" / "broken.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match="broken.png"):
        data = ImageDomains.from_folder(root)
    said = "\n".join(advice(data))
    assert "broken.png is skipped: not a readable image" in said
    assert "There are 2 domains" in said
    assert "gallery domain photo has no image of gem: these classes cannot be found" in said
    assert "photo has a single image of ball" in said
    assert "sketch has fewer than 3 images of box" in said


def test_one_image_per_class_gets_words_and_not_a_crash(tmp_path):
    for domain in ("photo", "sketch"):
        for name in ("ball", "box", "cross"):
            (tmp_path / domain / name).mkdir(parents=True)
            draw_toy("emoji", name, 0).save(tmp_path / domain / name / "1.png")
    data = ImageDomains.from_folder(tmp_path)
    said = "\n".join(advice(data))
    assert "photo has a single image of ball, box, cross" in said
    assert "sketch has fewer than 3 images of ball, box, cross" in said
    assert suggest_split(data) == dict(protocol="UcCDR", unseen_domain=None, gallery_domain="photo")


# --- Uploads ------------------------------------------------------------------------------------------------------


def test_uploads_of_every_kind(tmp_path):
    """Whole pictures are kept and read as they look; what is none is not kept and named; nothing is overwritten."""
    turned = Image.new("RGB", (20, 10), "red")
    exif = turned.getexif()
    exif[0x0112] = 6  # turn a quarter to look at it
    shallow = Image.fromarray(np.full((8, 8), 257 * 128, dtype=np.uint16))  # 16 bits, mid grey
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    uploads = {
        "turned.jpg": encoded(turned, "JPEG", exif=exif),
        "deep.png": encoded(shallow),
        "clear.png": encoded(clear),
        "text.png": b"I am no picture",
        "cut.png": encoded(draw_toy("emoji", "gem", 0))[:400],
        "../../bad name.png": encoded(turned),
        "huge.png": encoded(Image.new("1", (10_000, 10_000))),
    }
    paths, complaints = save_uploads(uploads, tmp_path / "mine")
    assert sorted(path.name for path in paths) == ["bad_name.png", "clear.png", "deep.png", "turned.jpg"]
    assert all(path.parent == tmp_path / "mine" for path in paths)
    assert sorted(sentence.split()[0] for sentence in complaints) == ["cut.png", "huge.png", "text.png"]
    assert "exceeds limit" in next(sentence for sentence in complaints if sentence.startswith("huge"))
    read = {path.name: load_image(path) for path in paths}
    assert read["turned.jpg"].size == (10, 20)
    assert read["deep.png"].getpixel((0, 0)) == (128, 128, 128)
    assert read["clear.png"].getpixel((0, 0)) == (255, 255, 255)
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == sorted(read)  # no rest of the others

    again, _ = save_uploads([dict(name="clear.png", content=memoryview(encoded(turned)))], tmp_path / "mine")
    assert again[0].name == "clear_2.png" and load_image(tmp_path / "mine" / "clear.png").getpixel((0, 0))[0] == 255


def archive(files):
    """The bytes of a .zip of {name: bytes}."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    return file.getvalue()


def test_an_uploaded_archive_becomes_a_labelled_folder(toy_folder, tmp_path):
    files = {
        f"my pictures/{path.relative_to(toy_folder).as_posix()}": path.read_bytes()
        for path in sorted(toy_folder.glob("*/*/*.png"))
    }
    odd = {
        "my pictures/emoji/ball/../../../../out.png": b"x",
        "__MACOSX/emoji/ball/._0.png": b"x",
        "emoji/ball/notes.txt": b"x",
        "flat.png": files["my pictures/emoji/ball/0.png"],
    }
    paths, complaints = save_uploads({"mine.zip": archive(files | odd)}, tmp_path / "up" / "mine")
    assert len(paths) == len(files) + 1 and [sentence.split()[0] for sentence in complaints] == ["emoji/ball/notes.txt"]
    data = ImageDomains.from_folder(tmp_path / "up" / "mine")
    assert data.counts().equals(ImageDomains.from_folder(toy_folder).counts())
    assert [path.name for path in (tmp_path / "up").iterdir()] == ["mine"]  # nothing outside


PICTURE = encoded(draw_toy("emoji", "gem", 0))


def kept(uploads, folder):
    """{folders and name below `folder`} of what is kept, and the complaints."""
    paths, complaints = save_uploads(uploads, folder)
    assert len(set(paths)) == len(paths) and all(load_image(path).size == (32, 32) for path in paths)
    assert not [path for path in folder.rglob(".*")]  # no rest
    return [path.relative_to(folder).as_posix() for path in paths], complaints


def test_an_archive_from_windows_keeps_its_labels(tmp_path):
    found, complaints = kept(
        {"mine.zip": archive({r"my\photo\cat\1.png": PICTURE, r"my\sketch\cat\1.png": PICTURE})}, tmp_path
    )
    assert found == ["photo/cat/1.png", "sketch/cat/1.png"] and not complaints


def test_two_names_never_share_a_folder(tmp_path):
    names = [
        "C",
        "C+",
        "C++",
        "C#",
        "C_",
        "C ",
        " C",
        "C.",
        "C%23",
        "C?",
        "C*",
        "a:b",
        "a b",
        "a_b",
        "CON",
        "con.x",
        "cafe\u0301",
    ]
    names += [
        "caf\u00e9",
        "Cat",
        "cat",
        "\u5b66\u6821",
        "x" * 300,
        "x" * 299 + "y",
        "\u5b66" * 200,
        '"',
        "$$",
        "~",
        "a%b",
        "lost+found",
    ]
    packed = archive({f"photo/{name}/1.png": PICTURE for name in names})
    found, complaints = kept({"mine.zip": packed}, tmp_path)
    hidden = 1  # lost+found belongs to the system
    assert not complaints and len({name.split("/")[1] for name in found}) == len(found) == len(names) - hidden
    folders = {name.split("/")[1] for name in found}
    assert {"C++", "C#", "C", "a b", "a_b", "Cat", "cat", "\u5b66\u6821"} <= folders
    assert not folders & {"CON", "con.x", "C.", "C ", "C?"} and all(len(name.encode()) < 256 for name in folders)
    again, _ = kept({"mine.zip": packed}, tmp_path)  # the same names: the same folders
    assert {name.split("/")[1] for name in again} == folders and all(name.endswith("/1_2.png") for name in again)


def test_names_become_file_names_that_differ():
    names = [
        "C",
        "C%",
        "C%25",
        "",
        ".",
        "..",
        "...",
        " ",
        "con",
        "Con",
        "nul.txt",
        "a/b",
        "a\\b",
        "a\x00b",
        "\udce9",
        "\ud83d",
        "%",
        ".",
    ]
    made = [file_name(name) for name in dict.fromkeys(names)]
    assert len(set(made)) == len(made) and not any(re.search(r'[\x00-\x1f/\\:*?"<>|]', name) for name in made)
    assert not set(made) & {"", ".", ".."} and file_name("Caf\u00e9 (old)") == "Caf\u00e9 (old)"


def test_two_uploads_of_one_name_are_both_kept(tmp_path):
    other = encoded(draw_toy("emoji", "ball", 0))
    item = dict(name="a.png", content=PICTURE)
    found, complaints = kept([item, dict(name="a.png", content=memoryview(other))], tmp_path / "flat")
    assert found == ["a.png", "a_2.png"] and not complaints
    zips = [dict(name="m.zip", content=archive({"p/c/a.png": content})) for content in (PICTURE, other)]
    assert kept(zips, tmp_path / "zips")[0] == ["p/c/a.png", "p/c/a_2.png"]


def test_what_cannot_be_kept_is_listed_and_the_rest_goes_on(tmp_path, monkeypatch):
    real = own_images._free_path

    def full(folder, stem, suffix):
        if stem == "b":
            raise OSError(28, "No space left on device")
        return real(folder, stem, suffix)

    monkeypatch.setattr(own_images, "_free_path", full)
    uploads = {"m" * 300 + ".png": PICTURE, "a.png": PICTURE, "b.png": PICTURE, "c.heic": b"x", "d.png": PICTURE}
    found, complaints = kept(uploads, tmp_path)
    assert len(found) == 3 and found[1:] == ["a.png", "d.png"] and "No space left" in complaints[0]
    assert complaints[1].startswith("c.heic is not kept")


def test_names_that_look_alike_are_told_apart(tmp_path):
    names = ["caf\u00e9", "cafe\u0301", "Cat", "cat", "dog"]
    for domain in ("photo", "sketch"):
        for name in names:
            (tmp_path / domain / name).mkdir(parents=True)
            (tmp_path / domain / name / "1.png").write_bytes(PICTURE)
    data = ImageDomains.from_folder(tmp_path)
    if len(data.classes) < 5:
        pytest.skip("this file system takes some of these names for one")
    said = "\n".join(advice(data))
    assert "U+00E9" in said and "U+0065 U+0301" in said and "U+0043 U+0061 U+0074" in said
    assert "look alike" in said and "dog (U+" not in said
    with pytest.raises(UserError, match=r"Unknown class: CAT.*CAT \(U\+0043 U\+0041 U\+0054\) is not Cat"):
        make_split(data, "UcCDR", None, ["CAT"], [])


@pytest.mark.parametrize(
    "given, names",
    [
        (None, None),
        ("cat,dog", ["cat", "dog"]),
        ("cat, dog ,cat,", ["cat", "dog"]),
        ('cat,"Washington, DC", dog', ["cat", "Washington, DC", "dog"]),
        (["cat,dog", '"a, b"', "the cat"], ["cat", "dog", "a, b", "the cat"]),
        ('"say ""hi"""', ['say "hi"']),
    ],
)
def test_names_on_a_command_line(given, names):
    assert parse_names(given) == names


@pytest.mark.parametrize("given", [",", "  ", [" ", ","]])
def test_no_name_on_a_command_line(given):
    with pytest.raises(UserError, match="is empty"):
        parse_names(given)


def test_a_folder_of_two_domains_says_how_and_runs(toy_folder, tmp_path, capsys):
    for domain, source in (("photo", "emoji"), ("sketch", "sketch")):
        shutil.copytree(toy_folder / source, tmp_path / "T" / domain)
    (tmp_path / "T" / "photo" / "gem").rename(tmp_path / "T" / "photo" / "gem, red")
    (tmp_path / "T" / "sketch" / "gem").rename(tmp_path / "T" / "sketch" / "gem, red")
    data = ImageDomains.from_folder(tmp_path / "T")
    split = make_split(data, **suggest_split(data))
    assert split.train_domains == ("photo", "sketch") and len(split.query)
    assert "--unseen-domain none" in " ".join(advice(data))
    command = ["train", "--data", str(tmp_path / "T"), "--artifacts", str(tmp_path / "out"), "--method", "zero-shot"]
    with pytest.raises(SystemExit, match="--unseen-domain none"):
        cli.main([*command, "--unseen-domain", "sketch"])
    with pytest.raises(SystemExit, match="double quotes"):
        cli.main([*command, "--unseen-domain", "none", "--unseen-classes", "gem, red"])
    cli.main([*command, "--unseen-domain", "none", "--unseen-classes", '"gem, red", box'])
    assert "UcCDR" in capsys.readouterr().out


def test_a_damaged_archive_keeps_what_could_be_read(tmp_path, monkeypatch):
    picture = encoded(draw_toy("emoji", "gem", 0))
    whole = archive({"a.png": picture, "b.png": picture})
    for content in (whole[:-30], b"no archive"):
        assert save_uploads({"mine.zip": content}, tmp_path) == (
            [],
            ["mine.zip is no whole archive: pack or upload it again."],
        )
    place = whole.index(picture) + 20
    damaged = whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :]  # within a.png
    paths, (complaint,) = save_uploads({"mine.zip": damaged}, tmp_path)
    assert complaint.startswith("a.png is not kept: Bad CRC") and [path.name for path in paths] == ["b.png"]
    paths[0].unlink()
    monkeypatch.setattr(own_images, "LARGEST", 10)
    assert "a.png is not kept: it has 0 MiB." in save_uploads({"mine.zip": whole}, tmp_path)[1]
    assert not list(tmp_path.iterdir())


# --- A stand-in ---------------------------------------------------------------------------------------------------


def test_the_stand_in_has_what_real_folders_have(tmp_path):
    folder = stand_in(tmp_path / "mine", classes=5, each=2)
    with pytest.warns(UserWarning, match="half_copied.png"):
        data = ImageDomains.from_folder(folder)
    assert data.domains == ("icons", "pencil", "stencils", "stickers") and len(data.classes) == 5
    assert "umbrella" in data.classes  # which the notebook's pad draws where nobody does
    odd = {path.stem: load_image(path) for path in data.paths if path.stem in ("turned", "deep", "transparent")}
    plain = {"turned": "pencil", "deep": "icons", "transparent": "stencils"}
    for number, name in enumerate(("turned", "deep", "transparent")):
        there = np.asarray(load_image(folder / plain[name] / data.classes[number] / "0.png"), dtype=float)
        assert abs(np.asarray(odd[name], dtype=float) - there).mean() < 4  # as they look; JPEG loses a little
    before = (folder / "icons").stat().st_mtime_ns
    assert stand_in(folder) == folder and (folder / "icons").stat().st_mtime_ns == before
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


# --- An index -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unlabelled(toy_folder, tmp_path_factory):
    """Pictures without labels, in folders of two depths, one of them broken."""
    root = tmp_path_factory.mktemp("unlabelled")
    (root / "deep" / "er").mkdir(parents=True)
    shutil.copy(toy_folder / "emoji" / "gem" / "0.png", root / "a.png")
    shutil.copy(toy_folder / "emoji" / "ball" / "0.png", root / "deep" / "er" / "b.png")
    shutil.copy(toy_folder / "sketch" / "box" / "0.png", root / "deep" / "c.png")
    (root / "broken.jpg").write_bytes(b"\xff\xd8 no")
    return root


def test_an_index_finds_the_picture_itself_and_lives_on_in_its_file(model, unlabelled, tmp_path):
    index = ImageIndex.build(model, unlabelled)
    assert sorted(index.paths) == ["a.png", "deep/c.png", "deep/er/b.png"]
    assert [path.name for path, _ in index.skipped] == ["broken.jpg"]
    scores, names = index.search(query_feature(model, unlabelled / "deep" / "c.png"), k=2)
    assert names[0, 0] == "deep/c.png" and scores[0, 0] > 0.9999 and names.shape == (1, 2)
    torch.testing.assert_close(
        index.features[index.paths.tolist().index("a.png")][None],
        embed(model, [load_image(unlabelled / "a.png")]),
        atol=1e-4,
        rtol=1e-4,
    )
    stored = ImageIndex.load(index.save(tmp_path / "sub" / "mine"), model)
    assert stored.root == unlabelled and torch.equal(stored.features, index.features)
    assert stored.paths.tolist() == index.paths.tolist()
    assert query_feature(model, "a red ball").shape == (1, index.features.shape[1])


def test_an_index_refuses_what_it_cannot_answer(model, unlabelled, tmp_path):
    path = ImageIndex.build(model, unlabelled).save(tmp_path / "mine.npz")
    other = search_model()
    ImageIndex.load(path, other)  # the same weights: the same model
    with torch.no_grad():
        other.clip.model.visual.proj += 0.01
    with pytest.raises(UserError, match="made by another model"):
        ImageIndex.load(path, other)
    with pytest.raises(UserError, match="There is no index"):
        ImageIndex.load(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("no")
    with pytest.raises(UserError, match="text.npz is not an .npz file of features"):
        ImageIndex.load(tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", features=np.eye(3))
    with pytest.raises(UserError, match="is not an index of this package: it holds no features with a path each"):
        ImageIndex.load(tmp_path / "other.npz")
    for size in (100, path.stat().st_size // 2, path.stat().st_size - 30):
        (tmp_path / "cut.npz").write_bytes(path.read_bytes()[:size])
        with pytest.raises(UserError, match="cut.npz .*its end is missing: it was cut short"):
            ImageIndex.load(tmp_path / "cut.npz")
    with pytest.raises(UserError, match="There is no folder"):
        ImageIndex.build(model, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="There is no image under"):
        ImageIndex.build(model, tmp_path / "empty")
    with pytest.raises(UserError, match="no words"):
        query_feature(model, "  ")
    with pytest.raises(UserError, match="cannot be read as an image"):
        query_feature(model, unlabelled / "broken.jpg")


def test_a_large_index_is_mapped_and_an_old_one_still_read(model, unlabelled, tmp_path, monkeypatch):
    """The features are searched where they lie; a file of version 0.1 has neither `nearby` nor `similarity`."""
    index, query = ImageIndex.build(model, unlabelled), query_feature(model, unlabelled / "a.png")
    path = index.save(tmp_path / "mine.npz")
    monkeypatch.setattr(files, "MAPPED_ABOVE", 0)
    arrays = files.mapped_arrays(path)
    assert isinstance(arrays["features"], np.memmap) and isinstance(arrays["path"], np.memmap)
    stored = ImageIndex.load(path, model)
    assert torch.equal(stored.features, index.features) and stored.answers(query, 2) == index.answers(query, 2)
    arrays["features"][:] = 0  # a change stays in memory
    assert torch.equal(ImageIndex.load(path).features, index.features)
    old = {name: arrays[name] for name in ("path", "signature", "root")} | dict(features=index.features.numpy())
    np.savez_compressed(tmp_path / "old.npz", **old)
    assert ImageIndex.load(tmp_path / "old.npz", model).answers(query, 2) == index.answers(query, 2)


def test_saved_arrays_begin_where_a_line_of_the_cache_begins(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAPPED_ABOVE", 0)
    for size in range(1, 9):  # names of all lengths before it
        arrays = {"n" * size: np.array(["x" * size]), "features": np.arange(size, dtype="float32"), "word": "é"}
        files.save_arrays(tmp_path / "x.npz", arrays)
        found, read = files.mapped_arrays(tmp_path / "x.npz"), np.load(tmp_path / "x.npz")
        assert {found[name].offset % 64 for name in arrays} == {0}
        assert all(
            np.array_equal(read[name], arrays[name]) and np.array_equal(found[name], arrays[name]) for name in read
        )
        with zipfile.ZipFile(tmp_path / "x.npz") as archive:
            assert archive.testzip() is None


@pytest.mark.parametrize("columns_first", [False, True])
def test_mapped_arrays_are_those_that_were_saved(columns_first, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAPPED_ABOVE", 0)
    numbers = np.asarray(np.arange(12.0).reshape(3, 4), order="F" if columns_first else "C")
    np.savez(tmp_path / "x.npz", numbers=numbers, names=np.array(["a", "éö"]), one=np.array(3), none=np.empty((0, 5)))
    found = files.mapped_arrays(tmp_path / "x.npz")
    assert np.array_equal(found["numbers"], numbers) and found["names"].tolist() == ["a", "éö"]
    assert found["one"] == 3 and found["none"].shape == (0, 5)
    content = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(content.replace(b"'shape': (3, 4)", b"'shape': (9, 4)"))
    with pytest.raises(UserError, match="the size of numbers.npy is not that of its numbers"):
        files.mapped_arrays(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", objects=np.array([{}]))
    with pytest.raises(UserError, match="is not an .npz file of features"):
        files.mapped_arrays(tmp_path / "x.npz")


def test_the_command_line_indexes_and_searches(unlabelled, tmp_path, capsys):
    out = tmp_path / "index.npz"
    cli.main(["index", str(unlabelled), "--out", str(out)])
    assert "Skipped" in capsys.readouterr().out
    cli.main(["search", "--index", str(out), "--image", str(unlabelled / "a.png"), "-k", "1"])
    assert capsys.readouterr().out.strip().endswith("a.png")


def test_an_index_is_any_model_s_that_gives_the_same_features(model):
    """What only ranks, trains or splits is no part of a feature; what is read, and from which colours, is."""
    same, first = search_model(), signature(model)
    for name in ("similarity", "average_precision", "selection", "dropout", "normalisation", "udcdr_gallery", "heads"):
        same.config = load_preset("mini", switches={name: "released"})
        assert signature(same) == first, name
    for name in ("read_out", "polarity"):
        same.config = load_preset("mini", switches={name: "released"})
        assert signature(same) != first, name
