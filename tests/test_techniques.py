"""The techniques of the far tier: the same picture at every size, from the drawing on white to the full technique."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from prosutils import pictonet, techniques
from prosutils.config import UserError


def figure(side):
    """A red disc with a black rim and a bar, transparent around it, RGBA."""
    image = Image.new("RGBA", (side * 4, side * 4))
    draw, unit = ImageDraw.Draw(image), side * 4 / 24
    draw.ellipse((3 * unit, 3 * unit, 21 * unit, 21 * unit), (200, 30, 30, 255), "black", round(2 * unit))
    draw.rectangle((6 * unit, 11 * unit, 18 * unit, 13 * unit), "black")
    return image.resize((side, side), Image.Resampling.BOX)


def pixel_art(side):
    """A black figure on a grid of 20 x 20 cells."""
    cells = Image.new("RGBA", (20, 20))
    ImageDraw.Draw(cells).polygon([(10, 2), (17, 9), (14, 9), (14, 17), (6, 17), (6, 9), (3, 9)], "black")
    return cells.resize((side, side), Image.Resampling.NEAREST)


@pytest.fixture(params=techniques.TECHNIQUES)
def technique(request):
    return request.param


def drawn(technique, side, size, strength, seed=3):
    source = pixel_art if technique == "cross_stitch" else figure
    return np.asarray(techniques.draw(technique, source(side), size, strength, seed), dtype=float) / 255


def test_every_technique_is_used():
    assert set(techniques.TECHNIQUES) == set(pictonet.FAR_DOMAINS.values())


def test_a_seed_fixes_the_picture(technique):
    first = drawn(technique, 128, 64, 0.8)
    assert first.shape == (64, 64, 3) and np.array_equal(first, drawn(technique, 128, 64, 0.8))
    assert not np.array_equal(first, drawn(technique, 128, 64, 0.8, seed=4))


def test_64_and_224_pixels_show_the_same_picture(technique):
    small, large = drawn(technique, 128, 64, 1), drawn(technique, 224, 224, 1)
    other = drawn(technique, 224, 224, 1, seed=4)

    def coarse(picture):  # [32, 32, 3]
        return picture.reshape(32, len(picture) // 32, 32, -1, 3).mean((1, 3))

    same, different = (np.abs(coarse(small) - coarse(picture)).mean() for picture in (large, other))
    assert same < 0.03 and same < different / 2


def test_a_small_strength_is_nearly_the_drawing_on_white(technique):
    source = (pixel_art if technique == "cross_stitch" else figure)(128)
    white = np.asarray(Image.alpha_composite(Image.new("RGBA", source.size, "white"), source).convert("RGB")) / 255
    assert np.abs(drawn(technique, 128, 128, 0.001) - white).max() < 0.02
    distances = [np.abs(drawn(technique, 128, 128, strength) - white).mean() for strength in np.linspace(0, 1, 11)]
    assert distances == sorted(distances)


def test_the_drawing_stands_out_at_every_strength(technique):
    """Between white paper and a dark board the ink never has the ground's grey."""
    source = (pixel_art if technique == "cross_stitch" else figure)(128)
    inked = np.asarray(source).astype(int)[..., :3].sum(-1) < 30  # the black parts
    inked &= np.asarray(source)[..., 3] == 255
    paper = np.asarray(source)[..., 3] == 0
    for strength in np.linspace(0, 1, 21):
        picture = drawn(technique, 128, 128, strength)
        assert np.abs(picture[inked].mean(0) - picture[paper].mean(0)).max() > 0.25, strength


@pytest.mark.parametrize("cells", [20, 23, 30])
def test_stitches_lie_on_the_grid_of_the_pixel_art(cells):
    rng = np.random.default_rng(0)
    ink = np.kron(rng.integers(0, 2, (cells, cells)), np.ones((8, 8))).astype(np.float32)
    pitch, left, top = techniques.stitches(ink)
    assert pitch == pytest.approx(1 / cells, rel=0.01)
    assert min(left, pitch - left) < 0.1 * pitch and min(top, pitch - top) < 0.1 * pitch


def test_an_empty_drawing_is_drawn(technique):
    empty = Image.new("RGBA", (64, 64))
    assert techniques.draw(technique, empty, 64, 1, 0).size == (64, 64)


def test_an_unknown_technique():
    with pytest.raises(UserError, match="Unknown technique 'fresco'. Known: mosaic, blueprint"):
        techniques.draw("fresco", figure(64), 64, 1, 0)
