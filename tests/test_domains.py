"""Folder listing, image decoding, splits, transforms and the balanced sampler."""

import random
import shutil
import warnings

import numpy as np
import pytest
import torch
from conftest import TOY_CLASSES, TOY_DOMAINS, draw_toy
from PIL import Image
from torch.utils.data import DataLoader

from prosutils import pictonet
from prosutils.domains import BalancedSampler, ImageDomains, Images, eval_transform, train_transform
from prosutils.files import UserError
from prosutils.image_files import load_image
from prosutils.splits import make_split, protocol_splits

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)


def write(path, content=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        (content or Image.new("RGB", (8, 8), "red")).save(path)
    return path


@pytest.fixture
def small_folder(tmp_path):
    """2 domains x 2 classes x 1 image, to be spoiled."""
    for domain in ("photo", "sketch"):
        for name in ("cat", "dog"):
            write(tmp_path / domain / name / "a.png")
    return tmp_path


# ---- the folder --------------------------------------------------------------------------------------------


def test_rows_follow_the_folder(toy, toy_folder):
    assert toy.domains == TOY_DOMAINS and toy.classes == TOY_CLASSES and not toy.skipped
    assert len(toy) == len(toy.paths) == len(list(toy_folder.rglob("*.png")))
    for path, domain, name in zip(toy.paths, toy.domain_index, toy.class_index):
        assert path.relative_to(toy_folder).parts[:2] == (toy.domains[domain], toy.classes[name])
    assert toy.paths == sorted(toy.paths)


def test_table_counts_and_rows_agree(toy):
    table, counts = toy.table(), toy.counts()
    assert list(table.columns) == ["domain", "class", "path"]
    assert counts.shape == (6, 4) and counts.to_numpy().sum() == len(toy)
    assert counts.loc["cross", "sketch"] == 4 + (3 + 2) % 3
    rows = toy.rows(["sketch", "emoji"], ["gem"])
    part = table.loc[rows.tolist()]
    assert set(part["domain"]) == {"sketch", "emoji"} and set(part["class"]) == {"gem"}
    assert len(rows) == counts.loc["gem", ["sketch", "emoji"]].sum()


def test_listing_does_not_depend_on_the_order_of_the_file_system(toy, toy_folder, monkeypatch):
    path_type = type(toy_folder)
    listed = path_type.iterdir

    def shuffled(folder):
        entries = list(listed(folder))
        random.Random(str(folder)).shuffle(entries)
        return iter(entries)

    monkeypatch.setattr(path_type, "iterdir", shuffled)
    again = ImageDomains.from_folder(toy_folder)
    assert again.paths == toy.paths
    assert torch.equal(make_split(again, seed=3).gallery, make_split(toy, seed=3).gallery)


def test_suffixes_in_any_case_are_read_and_hidden_and_system_files_ignored(small_folder):
    formats = ["PNG", "jpg", "JPEG", "webp", "bmp", "gif", "tif"]
    for suffix in formats:
        write(small_folder / "photo" / "cat" / f"b.{suffix}")
    for hidden in ("photo/cat/.a.png", "photo/.cat/a.png", ".photo/cat/a.png", "photo/cat/Thumbs.db", "a"):
        write(small_folder / hidden, b"no image")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = ImageDomains.from_folder(small_folder)
    assert len(data) == 4 + len(formats) and data.skipped == [] and data.classes == ("cat", "dog")


def spoil(folder):
    """One file of each kind that cannot be used."""
    photo = Image.effect_noise((64, 64), 80).convert("RGB")
    bad = []
    for suffix in ("png", "jpg", "webp", "bmp", "gif"):
        path = write(folder / "photo" / "cat" / f"cut.{suffix}", photo)
        content = path.read_bytes()
        bad.append(write(path, content[: len(content) * 2 // 3]))
    bad.append(write(folder / "photo" / "cat" / "text.jpg", b"<html>not found</html>"))
    bad.append(write(folder / "photo" / "cat" / "empty.png", b""))
    bad.append(write(folder / "photo" / "cat" / "notes.txt", b"words"))
    return bad


def test_files_that_are_no_whole_images_are_skipped_with_count_and_name(small_folder):
    bad = spoil(small_folder)
    with pytest.warns(UserWarning, match=r"8 of 12 files .* photo/cat/cut\.bmp .* and 3 more"):
        data = ImageDomains.from_folder(small_folder)
    assert sorted(path for path, _ in data.skipped) == sorted(bad) and all(why for _, why in data.skipped)
    assert len(data) == 4


def test_files_that_are_no_whole_images_are_refused_if_wished(small_folder):
    spoil(small_folder)
    with pytest.raises(UserError, match="8 of 12 files"):
        ImageDomains.from_folder(small_folder, on_error="raise")


def test_whole_images_with_bytes_after_their_end_are_kept(small_folder):
    path = write(small_folder / "photo" / "cat" / "trailer.jpg")
    path.write_bytes(path.read_bytes() + b"a camera's note" * 10)
    assert path in ImageDomains.from_folder(small_folder, on_error="raise").paths


@pytest.mark.parametrize(
    "spoiling, message",
    [
        (lambda root: shutil.rmtree(root), "no folder"),
        (lambda root: [shutil.rmtree(folder) for folder in root.iterdir()], "holds no image"),
        (lambda root: shutil.rmtree(root / "photo"), "one domain only"),
        (lambda root: [shutil.rmtree(root / domain / "dog") for domain in ("photo", "sketch")], "one class only"),
    ],
)
def test_folders_that_cannot_be_used(small_folder, spoiling, message):
    spoiling(small_folder)
    with pytest.raises(UserError, match=message):
        ImageDomains.from_folder(small_folder)


def test_a_folder_of_classes_without_domains_is_explained(small_folder):
    with pytest.raises(UserError, match="<domain>/<class>/<image>"):
        ImageDomains.from_folder(small_folder / "photo")


def test_unknown_on_error(small_folder):
    with pytest.raises(UserError, match="skip"):
        ImageDomains.from_folder(small_folder, on_error="ignore")


# ---- decoding ----------------------------------------------------------------------------------------------


def test_transparency_becomes_white(tmp_path):
    rgba = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    rgba.putpixel((0, 0), (255, 0, 0, 255))
    grey = Image.new("LA", (4, 4), (0, 0))
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([255, 0, 0, 0, 0, 0])
    write(tmp_path / "rgba.png", rgba)
    write(tmp_path / "grey.png", grey)
    palette.save(tmp_path / "palette.png", transparency=1)
    assert load_image(tmp_path / "rgba.png").getpixel((0, 0)) == (255, 0, 0)
    for name in ("rgba", "grey", "palette"):
        image = load_image(tmp_path / f"{name}.png")
        assert image.mode == "RGB" and image.getpixel((1, 1)) == (255, 255, 255)


def test_sixteen_bit_grey_is_scaled_and_other_modes_converted(tmp_path):
    ramp = np.array([[0, 0x7FFF, 0xFFFF]], dtype=np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    values = [load_image(tmp_path / "deep.png").getpixel((x, 0)) for x in range(3)]
    assert values == [(0, 0, 0), (127, 127, 127), (255, 255, 255)]
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "print.jpg")
    red, green, blue = load_image(tmp_path / "print.jpg").getpixel((1, 1))
    assert red > 200 and green < 50 and blue < 50


def test_exif_rotation_is_undone(tmp_path):
    image = Image.new("RGB", (30, 10), "blue")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert load_image(tmp_path / "turned.jpg").size == (10, 30)


def test_decompression_bombs_are_refused(small_folder, monkeypatch):
    path = write(small_folder / "photo" / "cat" / "bomb.png", Image.new("RGB", (40, 40)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # 1,600 pixels: Pillow itself would only warn
    with pytest.raises(UserError, match="bomb.png"):
        load_image(path)
    with pytest.warns(UserWarning, match="bomb.png"):
        assert path not in ImageDomains.from_folder(small_folder).paths


def test_damage_in_the_middle_names_the_file_when_loaded(small_folder):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    path = write(small_folder / "photo" / "cat" / "hole.png", noise)
    content = bytearray(path.read_bytes())
    content[5000:6000] = bytes(1000)
    path.write_bytes(content)
    data = ImageDomains.from_folder(small_folder)
    with pytest.raises(UserError, match="hole.png"):
        data.load(data.paths.index(path))


# ---- splits ------------------------------------------------------------------------------------------------


def names(data, rows):
    """(domains, classes) that occur in some rows."""
    return ({data.domains[i] for i in data.domain_index[rows]}, {data.classes[i] for i in data.class_index[rows]})


def disjoint(*parts):
    together = torch.cat(parts)
    return len(together.unique()) == len(together)


@pytest.mark.parametrize("gallery", ["unseen", "mixed"])
def test_ucdr(toy, gallery):
    split = make_split(toy, "UCDR", "sketch", ["gem", "house"], ["ball", "box"], gallery=gallery)
    assert split.gallery_domain == "emoji" and split.seen_classes == ("cross", "stripes")
    assert split.train_domains == ("emoji", "outline", "pixel") and split.query_domains == ("sketch",)
    assert names(toy, split.train) == ({"emoji", "outline", "pixel"}, {"cross", "stripes"})
    assert names(toy, split.val_query) == ({"outline", "pixel"}, {"ball", "box"})
    assert names(toy, split.val_gallery) == ({"emoji"}, {"ball", "box"})
    assert torch.equal(split.query, toy.rows(["sketch"], ["gem", "house"]))
    expected = {"gem", "house"} | ({"cross", "stripes"} if gallery == "mixed" else set())
    assert names(toy, split.gallery) == ({"emoji"}, expected)
    assert disjoint(split.train, split.val_query, split.val_gallery, split.query, split.gallery)


def test_uccdr_queries_seen_domains(toy):
    classes = {"unseen_classes": ["gem", "house"], "val_classes": ["ball", "box"]}
    split = make_split(toy, "UcCDR", "sketch", **classes)
    assert names(toy, split.query) == ({"outline", "pixel"}, {"gem", "house"})
    split = make_split(toy, "UcCDR", "sketch", query_domain="pixel", **classes)
    assert names(toy, split.query) == ({"pixel"}, {"gem", "house"}) and split.query_domains == ("pixel",)
    split = make_split(toy, "UcCDR", None, query_domain="sketch", **classes)  # as Sketchy and TU-Berlin
    assert split.train_domains == TOY_DOMAINS and names(toy, split.query)[0] == {"sketch"}
    assert disjoint(split.train, split.query, split.gallery, split.val_query, split.val_gallery)


def test_udcdr_gallery_is_seen_classes_never_trained_on(toy):
    split = make_split(toy, "UdCDR", "sketch", ["gem", "house"], ["ball", "box"])
    assert split.gallery_kind == "seen"
    assert names(toy, split.query) == ({"sketch"}, {"cross", "stripes"})
    assert names(toy, split.gallery) == ({"emoji"}, {"cross", "stripes"})
    assert disjoint(split.train, split.query, split.gallery)


def test_one_trained_model_serves_all_protocols(toy):
    splits = protocol_splits(toy, "pixel", seed=1)
    assert [(s.protocol, s.gallery_kind) for s in splits] == [
        ("UCDR", "unseen"),
        ("UCDR", "mixed"),
        ("UcCDR", "unseen"),
        ("UdCDR", "seen"),
    ]
    for split in splits[1:]:
        for part in ("train", "val_query", "val_gallery"):
            assert torch.equal(getattr(split, part), getattr(splits[0], part))
    unseen, mixed, _, seen = splits
    assert torch.equal(mixed.gallery, torch.cat([unseen.gallery, seen.gallery]).sort().values)


@pytest.mark.parametrize("fraction, count", [(0.01, 1), (0.5, 5), (0.3, 3)])
def test_share_that_is_kept_out(tmp_path, fraction, count):
    for domain in ("photo", "drawing", "sketch"):
        for name in "abcdef":
            for number in range(10):
                write(tmp_path / domain / name / f"{number}.png")
    data = ImageDomains.from_folder(tmp_path)
    split = make_split(data, "UdCDR", holdout_fraction=fraction)
    assert torch.bincount(data.class_index[split.gallery]).max() == count
    assert len(split.gallery) == count * len(split.seen_classes)
    assert len(split.train) == 20 * len(split.seen_classes) - len(split.gallery)


def test_seed_decides_and_nothing_else(toy):
    parts = ("train", "val_query", "val_gallery", "query", "gallery")

    def rows(seed, **options):
        split = make_split(toy, gallery="mixed", seed=seed, **options)
        return torch.cat([getattr(split, part) for part in parts])

    assert torch.equal(rows(5), rows(5))
    different = [rows(seed) for seed in range(4)]
    assert any(len(a) != len(different[0]) or not torch.equal(a, different[0]) for a in different[1:])
    state = np.random.get_state()[1].copy(), torch.get_rng_state()
    rows(5)
    assert (np.random.get_state()[1] == state[0]).all() and torch.equal(torch.get_rng_state(), state[1])


def test_images_kept_out_depend_on_seed_and_class_only(toy):
    classes = {"unseen_classes": ["gem"], "val_classes": ["ball"]}
    kept = [make_split(toy, "UdCDR", domain, **classes).gallery for domain in ("sketch", "pixel", "outline")]
    assert torch.equal(kept[0], kept[1]) and torch.equal(kept[0], kept[2])
    assert not torch.equal(kept[0], make_split(toy, "UdCDR", **classes, seed=1).gallery)
    fewer = make_split(toy, "UdCDR", unseen_classes=["gem", "box"], val_classes=["ball"]).gallery
    assert set(fewer.tolist()) == set(kept[0].tolist()) - set(toy.rows(["emoji"], ["box"]).tolist())


def test_drawn_classes_leave_something_for_every_part(toy):
    for seed in range(20):
        split = make_split(toy, seed=seed)
        assert [len(split.unseen_classes), len(split.val_classes), len(split.seen_classes)] == [2, 2, 2]
        assert sorted(split.unseen_classes + split.val_classes + split.seen_classes) == list(TOY_CLASSES)
    assert make_split(toy, unseen_classes=["gem"]).val_classes != ()
    assert "gem" not in make_split(toy, val_classes=["gem"]).unseen_classes


def test_pictonet_folder_has_its_fixed_classes(tmp_path):
    fixed = pictonet.classes()
    for name in fixed["seen"] + fixed["val"] + fixed["unseen"]:
        for domain in ("emoji", "outline", "sketch"):
            write(tmp_path / domain / name / "a.png", draw_toy("emoji", "ball", 0, size=8))
    data = ImageDomains.from_folder(tmp_path)
    split = make_split(data, seed=7)
    assert {"seen": split.seen_classes, "val": split.val_classes, "unseen": split.unseen_classes} == {
        part: tuple(sorted(names)) for part, names in fixed.items()
    }
    assert set(make_split(data, unseen_classes=fixed["val"][:3]).val_classes) == set(fixed["val"][3:])
    assert set(make_split(data, val_classes=fixed["unseen"][:3]).unseen_classes) == set(fixed["unseen"][3:])


def test_validation_can_be_left_out(toy):
    split = make_split(toy, unseen_classes=["gem"], val_classes=[])
    assert len(split.seen_classes) == 5 and len(split.val_query) == len(split.val_gallery) == 0


def test_empty_cells(toy_folder, tmp_path):
    root = tmp_path / "toy"
    shutil.copytree(toy_folder, root)
    for cell in ("emoji/gem", "pixel/cross", "emoji/stripes"):
        shutil.rmtree(root / cell)
    data = ImageDomains.from_folder(root)
    assert data.counts().loc["gem", "emoji"] == 0
    with pytest.raises(UserError, match="gem"):
        make_split(data, unseen_classes=["gem", "house"])
    with pytest.raises(UserError, match="gem"):
        make_split(data, unseen_classes=["house"], val_classes=["gem"])
    for seed in range(10):
        split = make_split(data, seed=seed)
        assert not {"gem", "stripes"} & set(split.unseen_classes + split.val_classes)
    split = make_split(data, "UdCDR", unseen_classes=["house"], val_classes=["box"])
    assert names(data, split.query)[1] == {"ball", "cross"}  # what the gallery has of the seen classes


def test_gallery_domain_is_a_known_one_or_the_largest(tmp_path):
    for domain, count in (("drawing", 1), ("painting", 3), ("sketch", 5)):
        for name in "abcdef":
            for number in range(count):
                write(tmp_path / domain / name / f"{number}.png")
    data = ImageDomains.from_folder(tmp_path)
    assert make_split(data).gallery_domain == "painting"  # sketch is held out
    assert make_split(data, gallery_domain="drawing").gallery_domain == "drawing"
    (tmp_path / "drawing").rename(tmp_path / "real")
    assert make_split(ImageDomains.from_folder(tmp_path)).gallery_domain == "real"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"protocol": "ucdr"}, "Unknown protocol: ucdr. Known: UCDR, UcCDR, UdCDR"),
        ({"unseen_domain": "scetch"}, "Unknown unseen domain: scetch. Known: emoji, outline, pixel, sketch"),
        ({"unseen_domain": None}, "Unknown unseen domain: None. Known: emoji"),
        ({"unseen_classes": ["gem", "unicorn"]}, "Unknown class: unicorn. Known: ball"),
        ({"val_classes": ["unicorn"]}, "Unknown class: unicorn"),
        ({"unseen_classes": ["gem"], "val_classes": ["gem"]}, "both unseen and for validation: gem"),
        ({"unseen_classes": list(TOY_CLASSES[:4])}, "would be left to train on"),
        ({"unseen_classes": []}, "leaves no image for: query, gallery"),
        ({"gallery": "all"}, "Unknown gallery: all. Known: unseen, mixed"),
        ({"gallery_domain": "sketch"}, "Unknown gallery domain: sketch. Known: emoji, outline, pixel"),
        ({"protocol": "UcCDR", "query_domain": "emoji"}, "Unknown query domain: emoji. Known: outline, pixel"),
        ({"holdout_fraction": 8}, "between 0 and 1"),
    ],
)
def test_wrong_options(toy, options, message):
    with pytest.raises(UserError, match=message):
        make_split(toy, **options)


def test_two_domains_have_no_validation_queries_when_one_is_held_out(small_folder):
    for domain in ("photo", "sketch"):
        for name in "abcdef":
            for number in range(2):
                write(small_folder / domain / name / f"{number}.png")
    data = ImageDomains.from_folder(small_folder)
    with pytest.raises(UserError, match="no image for: val_query"):
        make_split(data)
    assert len(make_split(data, "UcCDR", None).val_query) > 0


def test_table_of_a_split(toy):
    split = make_split(toy)
    table = split.table()
    assert table.loc["train", "images"] == len(split.train) and table.loc["query", "domains"] == "sketch"


# ---- images, transforms, batches ---------------------------------------------------------------------------


def test_images_carry_indices_into_the_folder_s_names(toy):
    rows = toy.rows(["sketch"], ["gem", "house"])
    images = Images(toy, rows, eval_transform(24, MEAN, STD))
    image, class_index, domain_index = images[len(rows) - 1]
    assert image.shape == (3, 24, 24) and image.dtype == torch.float32 and len(images) == len(rows)
    assert toy.classes[class_index] == "house" and toy.domains[domain_index] == "sketch"


def test_eval_transform_is_clip_s():
    noise = np.random.default_rng(0).integers(0, 256, (40, 100, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    expected = np.asarray(image.resize((50, 20), Image.Resampling.BICUBIC))[:, 15:35] / 255
    expected = (expected - np.array(MEAN)) / np.array(STD)
    result = eval_transform(20, MEAN, STD)(image)
    assert np.allclose(result.permute(1, 2, 0).numpy(), expected, atol=1e-5)
    assert torch.equal(result, eval_transform(20, MEAN, STD)(image))


def test_train_transform_varies_and_repeats_with_the_seed():
    image = draw_toy("emoji", "house", 0, size=64)
    transform = train_transform(56, MEAN, STD)

    def draw(seed):
        torch.manual_seed(seed)
        return torch.stack([transform(image) for _ in range(3)])

    first = draw(0)
    assert first.shape == (3, 3, 56, 56)
    assert torch.equal(first, draw(0))
    assert not torch.equal(first, draw(1)) and not torch.equal(first[0], first[1])
    white = (1 - torch.tensor(MEAN)) / torch.tensor(STD)
    assert (first.amax(dim=(0, 2, 3)) <= white + 1e-5).all()


def sampler(toy, batch_size=12, seed=0):
    return BalancedSampler(toy, make_split(toy).train, batch_size, torch.Generator().manual_seed(seed))


def test_batches_hold_every_training_domain_equally(toy):
    split = make_split(toy)
    images = Images(toy, split.train, eval_transform(8, MEAN, STD))
    batches = sampler(toy, batch_size=6)
    smallest = int(torch.bincount(toy.domain_index[split.train])[:3].min())
    loader = DataLoader(images, batch_sampler=batches)
    domains = [domain_index for _, _, domain_index in loader]
    assert len(domains) == len(batches) == smallest // 2
    for domain_index in domains:
        assert torch.bincount(domain_index).tolist() == [2, 2, 2]  # emoji, outline, pixel; never sketch
    flat = [position for batch in batches for position in batch]
    assert len(set(flat)) == len(flat)  # nothing is drawn twice in an epoch


def test_batches_follow_the_generator(toy):
    first, again, other = sampler(toy), sampler(toy), sampler(toy, seed=1)
    epochs = [list(first) for _ in range(3)]
    assert epochs == [list(again) for _ in range(3)] and epochs[0] != epochs[1] and epochs[0] != list(other)


def test_an_epoch_resumes_from_the_generator_s_state(toy):
    whole = sampler(toy)
    list(whole)
    state = whole.generator.get_state()
    expected = list(whole)
    resumed = sampler(toy, seed=99)
    resumed.generator.set_state(state)
    assert list(resumed) == expected


def test_every_image_comes_up_in_the_long_run(toy):
    batches = sampler(toy, batch_size=3)
    drawn = {position for _ in range(30) for batch in batches for position in batch}
    assert drawn == set(range(len(make_split(toy).train)))


def test_a_domain_smaller_than_its_share_is_drawn_again(toy):
    batches = list(sampler(toy, batch_size=90))
    assert len(batches) == 1 and len(batches[0]) == 90


def test_a_batch_of_few_classes_holds_them_equally_in_every_domain(toy):
    rows = torch.arange(len(toy))
    batches = BalancedSampler(toy, rows, 16, torch.Generator().manual_seed(0), classes_per_batch=2)
    seen = set()
    for batch in [*batches, *batches]:
        pairs = list(zip(toy.class_index[rows[batch]].tolist(), toy.domain_index[rows[batch]].tolist()))
        assert len(set(pairs)) == 8 and all(pairs.count(pair) == 2 for pair in pairs)  # 2 classes x 4 domains
        seen |= set(pairs)
    assert len({name for name, _ in seen}) > 2  # the next has others
    with pytest.raises(UserError, match="4 images of each domain cannot hold 3 classes.*domains share"):
        BalancedSampler(toy, rows, 16, torch.Generator(), classes_per_batch=3)


def test_batch_size_that_cannot_be_shared(toy):
    with pytest.raises(UserError, match="use 48 or 51"):
        sampler(toy, batch_size=50)
    with pytest.raises(UserError, match="use 3 or 6"):
        sampler(toy, batch_size=2)
    with pytest.raises(UserError, match="no image"):
        BalancedSampler(toy, torch.empty(0, dtype=torch.long), 4, torch.Generator())
