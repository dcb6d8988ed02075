"""The widgets without a browser: what comes from it is set as it would send it, what goes back is looked at."""

import base64
import html
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from prosutils import UserError, load_clip, load_preset, make_split
from prosutils.search import ImageIndex
from prosutils.show.widget_parts import (
    BLANK,
    FILL,
    SIDE,
    Search,
    decode_drawing,
    example_drawing,
    place_drawing,
    strip_html,
    unit_features,
    unit_square,
    with_own_units,
)
from prosutils.show.widgets import map_explorer, rank_explorer, sketch_search, unit_explorer
from prosutils.training import build_model

OPTIONS = dict(unseen_domain="sketch", unseen_classes=["ball", "gem"], val_classes=["box"])


@pytest.fixture(scope="module")
def split(toy):
    return make_split(toy, **OPTIONS)


@pytest.fixture(scope="module")
def models(split):
    clip = load_clip()  # a tower of random weights does not feel its prompts
    return {name: build_model(name, clip, split, load_preset("mini-near")).eval() for name in ("zero-shot", "pros")}


@pytest.fixture
def pad(toy, toy_model):
    return sketch_search(toy_model, toy, toy.rows(["outline"], toy.classes), k=5)


def address(image):
    """A picture as a canvas sends it."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def canvas(draw=None, *args, **options):
    image = Image.new("RGB", (280, 280), "white")
    if draw:
        getattr(ImageDraw.Draw(image), draw)(*args, **options)
    return image


CROSS = canvas("line", (20, 20, 260, 260, 140, 140, 260, 20, 20, 260), "#222222", 16)
BOX = canvas("rectangle", (40, 40, 240, 240), outline="#222222", width=16)


# --- Drawings -----------------------------------------------------------------------------------------------


def test_drawing_is_cropped_and_centred():
    placed = place_drawing(canvas("rectangle", (10, 150, 109, 199), fill="black"))
    left, top, right, bottom = Image.eval(placed.convert("L"), lambda x: 255 - x).getbbox()
    assert placed.size == (SIDE, SIDE) and right - left == pytest.approx(FILL * SIDE, abs=2)
    assert (left + right) / 2 == pytest.approx(SIDE / 2, abs=1) and (top + bottom) / 2 == pytest.approx(SIDE / 2, abs=1)
    assert (right - left) / (bottom - top) == pytest.approx(2, abs=0.05)
    moved = place_drawing(canvas("rectangle", (160, 20, 259, 69), fill="black"))
    assert np.array_equal(placed, moved)


def test_a_dot_stays_a_dot():
    dot = place_drawing(canvas("ellipse", (136, 136, 144, 144), fill="black"))
    assert (np.asarray(dot.convert("L")) < 128).mean() < 0.02


def test_transparent_canvas_is_white():
    image = Image.new("RGBA", (280, 280), (0, 0, 0, 0))
    assert decode_drawing(address(image)).getextrema() == ((255, 255),) * 3
    with pytest.raises(UserError, match="canvas is empty"):
        place_drawing(decode_drawing(address(image)))


@pytest.mark.parametrize(
    "url",
    [
        "",
        "data:image/jpeg;base64,AAAA",
        "data:image/png;base64,%%%",
        "https://example.org/a.png",
        address(CROSS)[:-400],
        "data:image/png;base64," + base64.b64encode(b"no picture").decode(),
    ],
)
def test_what_is_no_drawing_is_refused(url):
    with pytest.raises(UserError, match="drawing"):
        decode_drawing(url)


# --- Draw and search ----------------------------------------------------------------------------------------


def test_ranks_change_with_the_drawing(pad, toy):
    pad.drawing = address(CROSS)
    first = pad.answer
    (strip,) = first["strips"]
    assert first["message"] == "" and first["number"] == 1 and first["milliseconds"] > 0
    assert len(strip["cards"]) == 5 and strip["scores"] == sorted(strip["scores"], reverse=True)
    assert all(
        Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) and name in pad.data.classes
        for url, name in strip["cards"]
    )
    pad.drawing = address(BOX)
    assert pad.answer["number"] == 2 and pad.answer["strips"] != first["strips"]


def test_gallery_is_embedded_once(pad, toy_model):
    seen = toy_model.seen
    for image in (CROSS, BOX, CROSS):
        pad.drawing = address(image)
    assert toy_model.seen == seen + 3


@pytest.mark.parametrize("drawing, message", [(address(canvas()), BLANK), ("data:nonsense", "A drawing has to come")])
def test_bad_drawing_gets_a_message_and_the_ranks_stay(pad, drawing, message):
    pad.drawing = address(CROSS)
    before = pad.answer
    pad.drawing = drawing
    assert message in pad.answer["message"] and pad.answer["strips"] == before["strips"]
    assert pad.answer["number"] == before["number"] + 1  # the browser waits for an answer of some kind


def test_an_error_in_the_model_is_shown(pad, toy_model, monkeypatch):
    monkeypatch.setattr(toy_model, "encode_image", lambda images: images.missing)
    pad.drawing = address(CROSS)
    assert pad.answer["message"].startswith("AttributeError: ")


def test_words_rank_and_no_words_say_so(toy, models, split):
    pad = sketch_search(models, toy, split.gallery, k=4)
    pad.words = "a ball"
    assert [strip["name"] for strip in pad.answer["strips"]] == list(models) and not pad.answer["message"]
    pad.words = "  "
    assert "no words" in pad.answer["message"] and len(pad.answer["strips"]) == 2


def test_empty_gallery_is_refused(toy, toy_model):
    with pytest.raises(UserError, match="gallery is empty"):
        sketch_search(toy_model, toy, [])


def test_a_drawing_searches_an_index_of_own_pictures(toy_folder, models):
    model = models["zero-shot"]
    index = ImageIndex.build(model, toy_folder / "outline")
    pad = sketch_search(model, index, k=3)
    (search,) = pad.searches.values()
    assert search.features is index.features  # nothing is embedded again
    pad.drawing = address(CROSS)
    (strip,) = pad.answer["strips"]
    scores, names = index.search(search.drawing(place_drawing(CROSS)), 3)
    assert [name for _, name in strip["cards"]] == names[0].tolist()
    assert strip["scores"] == pytest.approx(scores[0].tolist()) and pad.figure()
    with pytest.raises(UserError, match="made by another model"):
        sketch_search(models["pros"], index)


def test_inverted_polarity_inverts_drawings(toy, toy_model):
    search = Search(toy_model, toy, toy.rows(["outline"], toy.classes))
    plain = search.drawing(CROSS)
    toy_model.config = load_preset("mini-near", switches=dict(polarity="released"))
    assert torch.allclose(search.drawing(CROSS), -plain, atol=0.02)  # normalised pixels: black is -2, white 2


# --- Explorers with menus -----------------------------------------------------------------------------------


def text_of(explorer):
    return re.sub(r"<style>.*?</style>", "", explorer.shown.value, flags=re.S)


def test_hits_and_misses_have_signs_colours_and_names(toy):
    ball, gem = (toy.rows(["emoji"], [name])[:1].tolist() for name in ("ball", "gem"))
    page = strip_html(toy, ball + gem, toy.classes.index("ball"), 'a "label"')
    assert re.findall(r'class="pros-cell (\w+)"', page) == ["hit", "miss"]
    assert re.findall(r">(✓|✗)</b> (\w+)", page) == [("✓", "ball"), ("✗", "gem")]
    assert html.escape('a "label"') in page


def test_rank_explorer_follows_its_menus(toy, split, toy_model):
    explorer = rank_explorer(toy, split, toy_model, k=4)
    controls = [explorer.domain, explorer.class_name, explorer.number, explorer.method, explorer.similarity]
    assert all(control.description for control in controls)
    assert set(explorer.class_name.options) == {("ball", "ball"), ("gem", "gem")} and explorer.domain.value == "sketch"
    first = text_of(explorer)
    assert first.count("pros-cell") == 4 and "AP@200" in first
    for control, value in (
        (explorer.class_name, "gem"),
        (explorer.number, 2),
        (explorer.domain, "pixel"),
        (explorer.similarity, "euclidean"),
    ):
        before = text_of(explorer)
        control.value = value
        assert not explorer.note.value and (text_of(explorer) != before or control is explorer.similarity)
    assert toy.domains[toy.domain_index[explorer.row]] == "pixel"


def test_rank_explorer_pages_through_the_whole_gallery(toy, split, toy_model):
    explorer, pages = rank_explorer(toy, split, toy_model, k=2), []
    for first in range(1, len(split.gallery), explorer.first.step):
        explorer.first.value = first
        assert f"ranks {first} to {first + 1}" in text_of(explorer)
        pages += explorer.ranks()[toy_model.label][0].tolist()
    whole = rank_explorer(toy, split, toy_model, k=len(split.gallery)).ranks()[toy_model.label][0].tolist()
    assert pages == whole[: len(pages)] and len(pages) >= 4
    assert explorer.first.max == len(whole) - 1  # the last page ends with the last rank


def test_an_error_is_shown_and_the_last_page_stays(toy, split, toy_model, monkeypatch):
    explorer = rank_explorer(toy, split, toy_model, k=4)
    before = text_of(explorer)
    monkeypatch.setattr(toy_model, "encode_image", lambda images: images.missing)
    explorer.number.value = 2
    assert "AttributeError" in explorer.note.value and 'role="alert"' in explorer.note.value
    assert text_of(explorer) == before
    monkeypatch.undo()
    explorer.number.value = 1
    assert not explorer.note.value


# --- Prompt units -------------------------------------------------------------------------------------------


def test_own_units_at_scale_one_are_stage_one(models):
    model, images = models["pros"], torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    domains, classes = torch.tensor([0, 1, 2]), torch.tensor([2, 0, 1])
    features = unit_features(model, images, domains, classes)
    with torch.no_grad():
        torch.testing.assert_close(features, model.encode_with_units(images, classes, domains))
    for scales, moved in (((0, 1), True), ((1, 0), True), ((3, 3), False)):  # layer norm takes the length away
        changed = unit_features(model, images, domains, classes, *scales)
        assert (torch.cosine_similarity(changed, features).min() < 0.9995) == moved


def test_unit_explorer_moves_the_feature_and_comes_back(toy, split, models):
    explorer = unit_explorer(models["pros"], toy, split, k=4)
    assert "1.000" in text_of(explorer) and "✓" in text_of(explorer)
    assert all(control.description for control in [*explorer.units, *explorer.scales])
    assert [scale.max for scale in explorer.scales] == [3, 3]
    torch.testing.assert_close(*explorer.cases().values())
    own = explorer.feature(("own", "own"), (1, 1))
    torch.testing.assert_close(own, with_own_units(models["pros"], toy, [explorer.row]))
    explorer.units[1].value, explorer.scales[0].value = models["pros"].classes[-1], 0.0
    assert "1.000</b>" not in text_of(explorer) and not explorer.note.value
    explorer.units[1].value, explorer.scales[0].value = "own", 1.0
    assert "1.000</b>" in text_of(explorer)
    assert set(toy.class_names(explorer.gallery)) <= set(models["pros"].classes)


def test_a_model_without_units_is_refused(toy, split, models):
    with pytest.raises(UserError, match="no prompt units"):
        unit_explorer(models["zero-shot"], toy, split)


# --- Maps ---------------------------------------------------------------------------------------------------


@pytest.fixture
def maps(toy):
    rows = toy.rows(["emoji", "sketch"], ["ball", "gem"])
    points = np.random.default_rng(0).normal(size=(len(rows), 2))
    return map_explorer(toy, rows, {"first": points, "second": 3 * points[:, ::-1]})


def test_map_has_a_picture_a_place_and_two_labels_for_every_row(maps, toy):
    n = len(maps.rows)
    assert len(maps.pictures) == n and list(maps.maps) == ["first", "second"] == list(maps.points)
    for kind, names in (("class", ["ball", "gem"]), ("domain", ["emoji", "sketch"])):
        assert maps.kinds[kind]["names"] == names and len(maps.kinds[kind]["colours"]) == 2
        assert len(maps.kinds[kind]["index"]) == n and set(maps.kinds[kind]["index"]) == {0, 1}
    assert maps.state["brushed"] == {"domain": [], "class": []}


def test_points_keep_their_proportions_in_the_unit_square():
    square = unit_square([[0, 0], [4, 2], [2, 1]])
    assert square.tolist() == [[0, 0.75], [1, 0.25], [0.5, 0.5]]


@pytest.mark.parametrize("points", [np.zeros((3, 2)), np.full((2, 2), np.nan), np.zeros((2, 3))])
def test_map_refuses_points_that_do_not_fit(toy, points):
    with pytest.raises(UserError, match=r"'bad' needs finite points \[2, 2\]"):
        map_explorer(toy, [0, 1], {"bad": points})


# --- Without a kernel ---------------------------------------------------------------------------------------


def test_every_widget_shows_a_picture_and_the_same_text_in_every_run(toy, split, models, pad, maps):
    pad.strokes, pad.drawing = [{}], address(CROSS)
    for widget in (pad, maps, rank_explorer(toy, split, models, k=3), unit_explorer(models["pros"], toy, split, k=3)):
        data, metadata = widget._repr_mimebundle_()
        assert "application/vnd.jupyter.widget-view+json" in data and metadata["image/png"]["width"] > 300
        assert Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).format == "PNG"
        assert data["text/plain"] == repr(widget) and "0x" not in data["text/plain"]


def test_picture_of_an_unused_pad_is_an_umbrella(pad):
    assert pad.figure() and np.asarray(place_drawing(example_drawing())).min() < 60
