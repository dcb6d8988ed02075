"""mini-CLIP's pre-training: what it may not see, that it learns, resumes and ships."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "data_scripts"))
pretrain = pytest.importorskip("pretrain_miniclip")

from prosutils import load_clip, pictonet  # noqa: E402
from prosutils.files import UserError  # noqa: E402

SHAPES = {
    "house": '<path d="M2 12L12 2l10 10v10H2z"/>',
    "apple": '<circle cx="12" cy="13" r="9"/>',
    "key": '<path d="M2 10h14V4h6v16h-6v-6H2z"/>',
    "bell": '<path d="M12 2l8 16H4zM10 19h4v3h-4z"/>',
}
OUTLINE = ' fill="none" stroke="#000" stroke-width="2"'


def write_set(folder, name, icons, author, licence="MIT", category="UI 24px"):
    """One icon set of a small stand-in for the icon package."""
    path = folder / "collections.json"
    collections = json.loads(path.read_text()) if path.exists() else {}
    collections[name] = {"author": {"name": author}, "license": {"spdx": licence}, "category": category}
    path.write_text(json.dumps(collections))
    (folder / "json").mkdir(exist_ok=True)
    (folder / "json" / f"{name}.json").write_text(
        json.dumps({"width": 24, "height": 24, "icons": {key: {"body": body} for key, body in icons.items()}})
    )


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """Emoji sets (only their words are read), a benchmark's set, a relative, and designers to learn from."""
    folder = tmp_path_factory.mktemp("package")
    for name in pretrain.EMOJI_SETS:
        write_set(folder, name, SHAPES, "Emoji maker")
    write_set(folder, "lucide", {"house": SHAPES["house"]}, "Benchmark designer")  # feeds outline
    write_set(folder, "uit", SHAPES, "Relative")  # a relative of Unicons
    write_set(folder, "copycat", {"house": SHAPES["house"], "apple": SHAPES["apple"]}, "Copycat")
    for i in range(12):
        drawn = {
            f"{key}-outline": f'<g{OUTLINE} transform="translate({1 + i % 4} {i // 4}) scale(.{8 - i // 2})">{body}</g>'
            for key, body in SHAPES.items()
        }
        drawn["house-colour"] = f'<rect x="3" y="{4 + i}" width="16" height="{15 - i}" fill="#d33"/>'
        drawn["apple"] = f'<circle cx="12" cy="12" r="{3 + i / 2}" fill="#3a3"/>'
        write_set(folder, f"designer{i}", drawn, f"Designer {i}")
    write_set(folder, "shared-alike", SHAPES, "Other", licence="CC-BY-SA-4.0")
    write_set(folder, "brands", SHAPES, "Other", category="Logos")
    return folder


def test_every_set_of_the_benchmark_and_its_relatives_are_withheld():
    withheld = pretrain.withheld_sets()
    drawn = {record["set"] for record in pictonet.manifest()} - {"fluent-emoji-3d"}
    assert drawn and drawn <= withheld
    assert {"noto-v1", "fluent-emoji-high-contrast", "fa-regular", "feather", "streamline-sharp", "la"} <= withheld


def test_only_allowed_sets_are_learned_from(package):
    assert set(pretrain.allowed_sets(package)) == {"copycat"} | {f"designer{i}" for i in range(12)}


@pytest.mark.parametrize(
    "icon, name",
    [
        ("home-2-outline", "home"),
        ("baseline-alarm", "alarm"),
        ("dog-side-24px", "dog side"),
        ("ice_cream-fill", "ice cream"),
        ("key", "key"),
    ],
)
def test_names_lose_what_they_say_of_style(icon, name):
    assert pretrain.base_name(icon) == name


@pytest.fixture(scope="module")
def icons(package, tmp_path_factory):
    return pretrain.load_icons(package, tmp_path_factory.mktemp("cache") / "icons.npz")


def test_near_copies_of_the_benchmarks_drawings_are_left_out(icons):
    assert icons.left_out == 2  # the copycat's house (Lucide's) and apple (a relative's and emoji's)
    assert set(icons.names) >= {"house", "apple", "key", "bell"}
    assert len(icons.ink) + len(icons.colour) == len(icons.label) == len(icons.style)
    assert len(icons.colour) >= 3 and set(icons.style[len(icons.ink) :]) == {"colourful"}


def test_closed_areas_are_what_lines_close_in():
    ink = np.zeros((64, 64), np.uint8)
    ink[10:50, 10:50] = 255
    ink[14:30, 14:46] = ink[34:46, 14:46] = 0  # two rooms
    areas = pretrain.closed_areas(ink)
    assert areas[0, 0] == 0 and areas[20, 20] != 0 and areas[40, 20] != 0 and areas[20, 20] != areas[40, 20]


def test_captions_are_true_of_their_pictures(icons):
    batches = pretrain.Batches(icons, torch.Generator().manual_seed(0), np.random.default_rng(0))
    images, captions, true = batches.draw(32)
    assert images.shape == (32, 3, 56, 56) and len(captions) == 32 and true.diagonal().all()
    for i, j in (~true).nonzero()[:200].tolist():
        assert captions[i] != captions[j] or not torch.equal(images[i], images[j])
    named = [
        next(name for name in ("house colour", "house", "apple", "key", "bell") if name in text) for text in captions
    ]
    assert not any(true[i, j] for i in range(32) for j in range(32) if named[i] != named[j])


def arguments(tmp_path, samples=48):
    return pretrain.parse(
        [
            "--samples",
            str(samples),
            "--batch",
            "16",
            "--device",
            "cpu",
            "--work",
            str(tmp_path),
            "--out",
            str(tmp_path / "mini.safetensors"),
        ]
    )


def test_no_technique_of_the_far_tier_is_in_the_pretraining(icons):
    """Neither a word for one, nor a picture like one: the pre-training's paper is flat, the far tier's never is."""
    words = (
        "chalk|black-?board|slate|blue-?print|cyanotype|(rubber|worn)[ -]stamp|stamped|kraft|mosaic|tessera|"
        "grout|cross[-_ ]?stitch|stitch|embroider|thread|texture|grain|noise"
    )
    assert not re.search(rf"\b({words})", Path(pretrain.__file__).read_text(encoding="utf-8"), re.IGNORECASE)
    assert not set(pictonet.FAR_STRENGTH) & {*pretrain.PALETTE, *icons.style, "colourful"}

    def flat(picture):  # the share of the most frequent colour among the pixels [n, 3]
        return np.unique(np.round(picture, 4), axis=0, return_counts=True)[1].max() / len(picture)

    images = pretrain.Batches(icons, torch.Generator().manual_seed(0), np.random.default_rng(0)).pictures(32)[0]
    assert np.median([flat(image.permute(1, 2, 0).reshape(-1, 3).numpy()) for image in images]) > 0.3
    for domain in pictonet.FAR_DOMAINS:
        record = next(record for record in pictonet.manifest() if record["domain"] == domain)
        assert flat(np.asarray(pictonet.load_drawing(record, 64, "far")).reshape(-1, 3)) < 0.1, domain


def test_it_learns_and_what_it_ships_loads(icons, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "LOG_EVERY", 8)
    args = arguments(tmp_path, samples=16 * 24)
    training = pretrain.Pretraining(icons, args)
    training.run(tmp_path / "checkpoint.pt")
    assert training.log[-1]["loss"] < training.log[0]["loss"]
    images = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        expected = training.clip.eval().encode_image(images)
        recipe = pretrain.export(training, icons, args.out)
        torch.testing.assert_close(load_clip("mini", args.out).encode_image(images), expected, atol=0.05, rtol=0.05)
    assert recipe["samples"] == args.samples and recipe["near_copies_left_out"] == 2
    assert args.out.with_suffix(".csv").exists() and not list(tmp_path.glob("*.part"))


def test_an_interrupted_run_goes_on_to_the_same_weights(icons, tmp_path):
    checkpoint = tmp_path / "checkpoint.pt"
    straight = pretrain.Pretraining(icons, arguments(tmp_path))
    straight.run(checkpoint)
    checkpoint.unlink()
    first = pretrain.Pretraining(icons, arguments(tmp_path))
    for _ in range(2):
        first.train_step()
        first.step += 1
    first.save(checkpoint)
    second = pretrain.Pretraining(icons, arguments(tmp_path))
    second.run(checkpoint)
    for name, value in straight.clip.state_dict().items():
        torch.testing.assert_close(second.clip.state_dict()[name], value, msg=name)
    with pytest.raises(UserError, match="run of 48 samples"):
        pretrain.Pretraining(icons, arguments(tmp_path, samples=128)).run(checkpoint)


def test_shipped_weights_are_small_and_say_how_they_were_made():
    from safetensors import safe_open

    path = ROOT / "prosutils" / "data" / "miniclip.safetensors"
    assert path.stat().st_size <= 16 * 2**20
    with safe_open(path, framework="pt") as file:
        recipe = json.loads(file.metadata()["recipe"])
    assert recipe["packages"] == pretrain.SOURCES["packages"] and recipe["near_copies_left_out"] > 0
