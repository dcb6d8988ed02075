"""The page in site/: built, served by a plain file server, and used in Chromium; its ranks are compared with Python's.

Needs npm (for onnxruntime-web), a browser and its driver, and is skipped where they are missing. PROSUTILS_SITE=build/site
tests that folder instead of building one; PROSUTILS_SCREENSHOTS=folder keeps pictures of the page; PROSUTILS_DRAWINGS=50
compares the ranks of 50 stored drawings, not 10.
"""

import base64
import functools
import io
import json
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from prosutils import pictonet, techniques
from prosutils.domains import eval_transform
from prosutils.evaluation import embed_rows, model_transform
from prosutils.files import UserError
from prosutils.parts import embed_rows_with_prompts
from prosutils.show.attention import class_token_attention

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "site"))
pytest.importorskip("onnxruntime", reason="the page's packages are missing: pip install -e .[site]")
import build  # noqa: E402
import npm  # noqa: E402

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is missing: pip install -e .[test]")
from browsing import (  # noqa: E402
    BROWSER,
    DRIVER,
    Files,
    accessibility_faults,
    asked,
    browser,
    emulate,
    served,
    unemulate,
    wait_for,
)
from selenium.webdriver.common.actions.pointer_input import PointerInput  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

needs_browser = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="no browser to test the page in: apt-get install chromium chromium-driver"
)
#: Stored drawings whose ranks are compared; the page's build compares 100, in Python.
DRAWINGS = int(os.environ.get("PROSUTILS_DRAWINGS", "10"))
VARIANTS = [("zero-shot", "none"), ("heads", "none")] + [
    (m, p) for m in ("pros", "pros-heads") for p in ("own", "none")
]


# ---- the build ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def site(tmp_path_factory, npm_package):
    """The folder of the built page."""
    if folder := os.environ.get("PROSUTILS_SITE"):
        return Path(folder)
    npm_package("onnxruntime-web")
    folder = tmp_path_factory.mktemp("site")
    build.build_page(folder)
    return folder


@pytest.fixture(scope="session")
def about(site):
    return json.loads((site / "site.json").read_text())


@pytest.fixture(scope="session")
def models():
    """(Experiment, {key: Method})."""
    run, methods = build.load_methods()
    return run, {method.key: method for method in methods}


def test_half_precision_keeps_the_ranks(site):
    report = json.loads((site / "parity.json").read_text())
    assert [(each["method"], each["prompts"]) for each in report["variants"]] == VARIANTS
    assert report["drawings"] >= 50
    build.refuse_disparity(report)  # within the bounds


@pytest.mark.parametrize(
    "name, value", [("largest_difference", 0.1), ("equal_first_ten", 0.5), ("equal_first_ten", math.nan)]
)
def test_a_page_beyond_the_bounds_is_refused(name, value):
    variant = dict(method="pros", prompts="own", largest_difference=0.0, equal_first_ten=1.0)
    words = dict(largest_difference=0.0)
    build.refuse_disparity({"variants": [variant], "words": words})
    with pytest.raises(UserError, match="pros with own prompts"):
        build.refuse_disparity({"variants": [variant | {name: value}], "words": words})
    with pytest.raises(UserError, match="a word's feature"):
        build.refuse_disparity({"variants": [variant], "words": dict(largest_difference=0.1)})


def test_the_first_answer_takes_at_most_25_megabytes(site, about):
    worker = (site / "worker.js").read_text()
    first = json.loads(worker.split("const FIRST = ")[1].split(";")[0])
    files = about["files"]
    shell = [name for name in files if name.endswith((".html", ".css", ".js", ".mjs", ".webp", ".png", ".svg"))]
    assert set(first) <= set(files) and "gallery.webp" in shell
    assert sum(files[name]["bytes"] for name in {*first, *shell}) + (site / "site.json").stat().st_size < 25e6


def test_a_build_without_npm_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PROSUTILS_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="npm is missing.*install Node.js"):
        npm.archive("onnxruntime-web")
    version, _ = npm.PACKAGES["onnxruntime-web"]
    (tmp_path / f"onnxruntime-web-{version}.tgz").write_bytes(b"another")
    with pytest.raises(UserError, match="is not the onnxruntime-web"):
        npm.archive("onnxruntime-web")


def test_a_build_keeps_what_is_not_its_own(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="choose another folder"):
        build.build(tmp_path)
    assert (tmp_path / "letter.txt").read_text() == "dear"


# ---- the page ----------------------------------------------------------------------------------------------


class Faulty(Files):
    """Loses files (`missing`) or breaks off in the middle of them (`short`), as the server is told."""

    def do_GET(self):
        name = self.path.lstrip("/").split("?")[0]
        if name in self.server.missing:
            self.send_error(404)
        elif name in self.server.short:
            content = (Path(self.directory) / name).read_bytes()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
        else:
            super().do_GET()


def visit(page, server):
    page.get(server.address)
    wait_for(lambda: page.execute_script("return document.body.dataset.complete"), 180, "the models")


@pytest.fixture(scope="module")
def server(site):
    with served(site) as server:
        yield server


@pytest.fixture(scope="module")
def page(server):
    if not (BROWSER and DRIVER):
        pytest.skip("no browser to test the page in: apt-get install chromium chromium-driver")
    with browser() as page:
        visit(page, server)
        yield page


@pytest.fixture
def board(page):
    """The page with an empty board, all methods chosen, own prompts, the unseen classes, chalk at full strength."""
    page.execute_script("""
        document.getElementById("clear").click();
        for (const input of document.querySelectorAll("#methods input")) input.checked = true;
        for (const value of ["own", "unseen"]) document.querySelector(`input[value=${value}]`).checked = true;
        document.getElementById("methods").dispatchEvent(new Event("change"));
        const strength = document.getElementById("strength");
        strength.value = 1;
        strength.dispatchEvent(new Event("input"));
        window.scrollTo(0, 0);""")
    settle(page)
    return page


def find(page, name):
    return page.find_element(By.ID, name)


def settle(page):
    """Wait until what was changed is drawn and answered."""

    def quiet():
        return page.execute_async_script("""
            const done = arguments[0], strips = document.getElementById("strips");
            requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(() =>
              done(strips.getAttribute("aria-busy") !== "true"))));""")

    wait_for(quiet, 60, "an answer")


def choose(page, value):
    page.execute_script("document.querySelector(`input[value='${arguments[0]}']`).click()", value)
    settle(page)


def take_example(page, number):
    page.execute_script("document.querySelectorAll('#examples button')[arguments[0]].click()", number)
    settle(page)


def ranks(page):
    """{method: [places in the gallery]} that the page shows."""
    return page.execute_script("""
        const strips = [...document.querySelectorAll(".strip")];
        return Object.fromEntries(strips.map((strip) => [strip.dataset.method,
          [...strip.querySelectorAll("li")].map((card) => Number(card.dataset.place))]));""")


def seen(page):
    """What the model sees, a PIL image."""
    url = page.execute_script("return document.getElementById('seen').toDataURL()")
    return Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB")


def stroke(page, points, kind="mouse"):
    """Draw through points [x, y] from the board's middle, in pixels of the screen."""
    chain = webdriver.ActionChains(page, duration=15, devices=[PointerInput(kind, kind)])
    chain.move_to_element_with_offset(find(page, "board"), *points[0]).click_and_hold()
    for point in points[1:]:
        chain.move_to_element_with_offset(find(page, "board"), *point)
    chain.release().perform()


@pytest.fixture(scope="session")
def python_ranks(models, about):
    """A function (key, prompts, image or words, gallery) -> (scores [G], its best ten places) by the package's models."""
    run, methods = models
    rows = run.splits[1].gallery
    unseen = torch.tensor(about["gallery"]["unseen"])

    @functools.cache
    def gallery_features(key, prompts):
        model = methods[key].model
        if methods[key].simulator:
            return normalize(embed_rows_with_prompts(model, run.data, rows, prompts), dim=1)
        return normalize(embed_rows(model, run.data, rows), dim=1)

    def feature(key, prompts, query):
        model = methods[key].model
        if isinstance(query, str):
            return model.encode_words([f"a photo of {query}"])
        pixels = model_transform(model)(query)[None]
        without = methods[key].simulator and prompts == "none"
        return model.encode_with_prompts(pixels, None) if without else model.encode_image(pixels)

    @torch.no_grad()
    def rank(key, prompts, query, gallery="unseen"):
        scores = (normalize(feature(key, prompts, query), dim=1) @ gallery_features(key, prompts).T)[0]  # [G]
        if gallery == "unseen":
            scores = scores.masked_fill(~unseen, -2)
        return scores, scores.argsort(descending=True)[:10].tolist()

    return rank


def same(ranked, scores, expected):
    """Equal ranks; where two emoji change places, their scores are equal up to what half precision changes."""
    return len(ranked) == 10 and np.allclose(scores[ranked], scores[expected], atol=3e-3)


@needs_browser
def test_a_stroke_is_answered_as_python_answers_it(board, python_ranks):
    stroke(board, [(-90, 20), (-60, -50), (0, -80), (60, -50), (90, 20), (-90, 20)])
    stroke(board, [(0, 20), (0, 90), (20, 110), (40, 90)])
    settle(board)
    shown, image = ranks(board), seen(board)
    assert image.size == (64, 64) and set(shown) == {"zero-shot", "heads", "pros", "pros-heads"}
    for key, ranked in shown.items():
        prompts = "own" if "pros" in key else "none"
        scores, expected = python_ranks(key, prompts, image)
        assert same(ranked, scores, expected), key
    assert "Answered in" in find(board, "status").text and find(board, "live").get_attribute("textContent")


@needs_browser
def test_ranks_change_while_one_draws(board):
    chain = webdriver.ActionChains(board, duration=15)
    chain.move_to_element_with_offset(find(board, "board"), -80, -80).click_and_hold()
    chain.move_by_offset(160, 0).perform()
    settle(board)
    first = ranks(board)
    webdriver.ActionChains(board, duration=15).move_by_offset(0, 160).move_by_offset(-160, 0).perform()
    settle(board)
    assert first and ranks(board) != first
    webdriver.ActionChains(board).release().perform()


@needs_browser
def test_stored_drawings_get_pythons_first_ten_by_every_method(board, about, python_ranks):
    shares = []
    for number in range(len(about["examples"])):
        take_example(board, number)
        image = seen(board)
        for prompts in ("own", "none"):
            choose(board, prompts)
            for key, ranked in ranks(board).items():
                with_prompts = prompts if "pros" in key else "none"
                scores, expected = python_ranks(key, with_prompts, image)
                assert same(ranked, scores, expected), (number, key, prompts)
                shares.append(np.mean(np.equal(ranked, expected)))
    assert np.mean(shares) > 0.95


@needs_browser
def test_stored_chalk_drawings_get_pythons_first_ten(board, models, python_ranks, tmp_path):
    """Queries of the benchmark as they are stored, 64 pixels wide, through the page's upload."""
    run, methods = models
    query = run.split.query
    for row in query[torch.linspace(0, len(query) - 1, DRAWINGS).long()].tolist():
        image = run.data.load(row)
        image.save(tmp_path / f"{row}.png")
        upload(board, tmp_path / f"{row}.png")
        shown = ranks(board)
        assert set(shown) == set(methods)
        for key, ranked in shown.items():
            assert same(ranked, *python_ranks(key, "own" if methods[key].simulator else "none", image)), (row, key)


@needs_browser
def test_an_example_looks_as_the_benchmark_draws_it(board, site, about):
    strip = Image.open(site / "examples.png")
    for number in (0, 5, 11):
        take_example(board, number)
        picture = strip.crop((128 * number, 0, 128 * number + 128, 128))
        for strength in (1, 0.5, 0):
            board.execute_script(
                "const s = document.getElementById('strength'); s.value = arguments[0]; s.dispatchEvent(new Event('input'))",
                strength,
            )
            settle(board)
            expected = techniques.draw("chalk", picture, 64, strength, build.SEED)
            difference = np.abs(np.asarray(seen(board), int) - np.asarray(expected, int))
            assert difference.max() <= 3 and difference.mean() < 0.3, (number, strength, difference.max())
    unseen = {name.replace("_", " ") for name in pictonet.classes()["unseen"]}
    assert {name.replace("_", " ") for name in about["examples"]} <= unseen


@needs_browser
@pytest.mark.parametrize("size", [(64, 64), (200, 133), (56, 56), (40, 90), (2000, 60), (57, 301)])
def test_preprocessing_equals_pythons(page, size):
    """To float32's precision; a narrow picture differs by rounding, as Pillow resizes it in the other order."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (size[1] // 3 + 1, size[0] // 3 + 1, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(size, Image.Resampling.BILINEAR)
    mean, std = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
    found = page.execute_async_script(
        """const [data, [width, height], mean, std, done] = arguments;
        const { evalTransform } = await import("./pixels.js");
        const picture = { data: Uint8ClampedArray.from(atob(data), (x) => x.charCodeAt(0)), width, height, channels: 3 };
        done([...evalTransform(picture, { size: 56, mean, std })]);""",
        base64.b64encode(image.tobytes()).decode(),
        size,
        mean,
        std,
    )
    difference = np.abs(np.array(found) - eval_transform(56, mean, std)(image).numpy().ravel())
    assert difference.max() < (0.1 if size == (57, 301) else 1e-4) and difference.mean() < 0.01


@needs_browser
def test_methods_prompts_and_galleries_can_be_switched(board, about, python_ranks):
    take_example(board, 3)
    own = ranks(board)
    choose(board, "heads")  # unchecks it
    assert set(ranks(board)) == {"zero-shot", "pros", "pros-heads"}
    choose(board, "none")
    none = ranks(board)
    assert none["zero-shot"] == own["zero-shot"] and none["pros"] != own["pros"]
    choose(board, "all")
    whole, image = ranks(board), seen(board)
    for key, ranked in whole.items():
        assert same(ranked, *python_ranks(key, "none", image, "all"))
    hits = board.find_elements(By.CSS_SELECTOR, "li.hit")
    name = about["examples"][3].replace("_", " ")
    assert all(name in hit.text for hit in hits) and find(board, "target").get_attribute("value") == name


def ask_words(page, words):
    field = find(page, "words")
    field.clear()
    field.send_keys(words, Keys.ENTER)
    settle(page)


@needs_browser
@pytest.mark.parametrize("words", ["umbrella", "Red music note", "alarm clock 2"])
def test_words_are_answered_as_python_answers_them(board, models, python_ranks, words):
    take_example(board, 0)
    ask_words(board, words)
    assert words in find(board, "status").text and not find(board, "seen").is_displayed()
    for prompts in ("own", "none"):
        choose(board, prompts)
        for key, ranked in ranks(board).items():
            assert same(ranked, *python_ranks(key, prompts if models[1][key].simulator else "none", words)), (
                key,
                prompts,
            )
    stroke(board, [(-80, -80), (0, 0), (60, 90)])  # drawing goes on
    settle(board)
    assert find(board, "seen").is_displayed() and not find(board, "words").get_attribute("value")


@needs_browser
def test_words_that_the_vocabulary_lacks_are_named(board, python_ranks):
    ask_words(board, "zebra Käse")
    status = find(board, "status").text
    assert "never read “zebra”, “käse”" in status and not ranks(board)
    assert find(board, "live").get_attribute("textContent") == status
    ask_words(board, "the umbrella")
    assert "Left out: mini-CLIP has never read “the”" in find(board, "status").text
    assert same(ranks(board)["pros"], *python_ranks("pros", "own", "umbrella"))
    ask_words(board, "!")
    assert "Type a word" in find(board, "status").text
    ask_words(board, "xylophone " * 8)
    assert "more words than the model reads" in alert(board)
    board.execute_script("document.getElementById('alert').hidden = true")


@needs_browser
def test_words_are_cut_into_pythons_tokens(page, models):
    clip = models[0].clip
    words = [name.replace("_", " ") for name in pictonet.classes()["unseen"]] + [
        "internationalisation",
        "xylophone",
        "b2b",
    ]
    found = page.execute_async_script(
        """const [words, done] = arguments, { makeReader } = await import("./words.js");
        const read = makeReader({ ...await (await fetch("models/words.json")).json(), unread: [] });
        done(words.map((each) => [...read(each).tokens].map(Number)));""",
        words,
    )
    assert found == clip.tokenizer([f"a photo of {each}" for each in words]).tolist()


def test_attention_is_that_of_the_tower(site, models):
    run, methods = models
    parts = build.PartsInPython(site / "models", {})
    image = model_transform(methods["pros"].model)(run.data.load(int(run.split.query[0])))[None]
    patches = parts.run("stem", image=image.numpy())
    first = build.class_token(methods["zero-shot"].model)[None, None].numpy()
    _, found = parts.sessions["blocks"].run(None, {"first": first, "patches": patches})
    expected = class_token_attention(run.clip, image)[-1].mean(1)[:, 1:]  # last block, mean of its heads
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)


@needs_browser
def test_attention_is_shown_over_the_drawing(board):
    take_example(board, 0)
    assert not board.find_elements(By.CLASS_NAME, "heat")
    board.execute_script("document.getElementById('attention').click()")
    settle(board)
    try:
        maps = board.find_elements(By.CLASS_NAME, "heat")
        assert len(maps) == 4 and "Zero-shot CLIP looks" in maps[0].get_attribute("aria-label")
        orange = "return arguments[0].getContext('2d').getImageData(0, 0, 80, 80).data"
        red, _, blue = (np.array(board.execute_script(orange, maps[0])).reshape(-1, 4)[:, i] for i in range(3))
        assert (red.astype(int) - blue).max() > 120
    finally:
        board.execute_script("document.getElementById('attention').click()")
        settle(board)


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_an_accessibility_checker_finds_nothing_serious(board, npm_package, scheme):
    npm_package("axe-core")
    take_example(board, 7)
    emulate(board, 1280, 1400, scheme)
    try:
        assert not accessibility_faults(board)
    finally:
        unemulate(board)


@needs_browser
def test_the_board_is_used_by_keyboard_alone(board):
    assert "empty" in find(board, "status").text
    board.execute_script("document.getElementById('board').focus()")
    keys = webdriver.ActionChains(board, duration=15).send_keys(Keys.SPACE)
    for key in (Keys.ARROW_RIGHT, Keys.ARROW_DOWN, Keys.ARROW_LEFT, Keys.ARROW_UP):
        keys.send_keys(key * 12)
    keys.send_keys(Keys.SPACE).perform()
    settle(board)
    drawn = ranks(board)
    assert "Answered" in find(board, "status").text and seen(board).getextrema()[0][1] > 150
    webdriver.ActionChains(board).send_keys(Keys.ESCAPE).perform()
    settle(board)
    assert "empty" in find(board, "status").text and "empty" in find(board, "live").get_attribute("textContent")
    webdriver.ActionChains(board).key_down(Keys.CONTROL).send_keys("z").key_up(Keys.CONTROL).perform()
    settle(board)
    assert ranks(board) == drawn and "Answered" in find(board, "status").text


@needs_browser
def test_the_board_is_drawn_on_with_a_finger(board):
    before = board.execute_script("return window.scrollY")
    stroke(board, [(-80, -80), (0, 0), (60, 90)], "touch")
    settle(board)
    assert "Answered" in find(board, "status").text and board.execute_script("return window.scrollY") == before


@needs_browser
def test_every_control_has_a_name(page):
    unnamed = page.execute_script("""
        const named = (node) => node.textContent.trim() || node.ariaLabel || node.labels?.length;
        return [...document.querySelectorAll("button, input, select, canvas[tabindex], progress, a")]
          .filter((node) => !named(node)).map((node) => node.outerHTML);""")
    assert not unnamed


def upload(page, path):
    page.execute_script("document.getElementById('alert').hidden = true")
    steps = "return document.getElementById('board').dataset.items"
    before = page.execute_script(steps)
    find(page, "upload").send_keys(str(path))
    wait_for(lambda: alert(page) or page.execute_script(steps) != before, 30, "the picture")
    settle(page)


def alert(page):
    node = find(page, "alert")
    return node.text if node.is_displayed() else ""


@needs_browser
def test_a_picture_is_answered_as_python_answers_it(board, python_ranks, tmp_path):
    picture = pictonet.load_drawing(pictonet.manifest()[40], 150)
    picture = picture.resize((230, 150))
    picture.save(tmp_path / "picture.png")
    upload(board, tmp_path / "picture.png")
    assert not alert(board)
    for key, ranked in ranks(board).items():
        assert same(ranked, *python_ranks(key, "own" if "pros" in key else "none", picture)), key
    before = ranks(board)
    stroke(board, [(-80, -80), (0, 0), (60, 90)])  # begins a drawing of its own
    settle(board)
    assert seen(board).size == (64, 64) and ranks(board) != before


@needs_browser
def test_pictures_that_cannot_be_used_are_named(board, tmp_path):
    take_example(board, 0)
    before = ranks(board)
    (tmp_path / "letter.png").write_text("dear")
    upload(board, tmp_path / "letter.png")
    assert "letter.png cannot be used" in alert(board)
    Image.new("1", (10000, 10001)).save(tmp_path / "huge.png")
    upload(board, tmp_path / "huge.png")
    assert "100 million pixels" in alert(board) and ranks(board) == before
    board.execute_script("document.getElementById('alert').hidden = true")


@needs_browser
def test_the_tour_explains_and_sets_the_stage(board):
    titles = []
    while find(board, "tour-next").is_enabled():
        board.execute_script("document.getElementById('tour-next').click()")
        settle(board)
        titles.append(find(board, "tour-title").text)
    assert len(titles) == 4 and len(ranks(board)) == 4
    assert board.execute_script("return document.activeElement.id") == "tour-title"
    board.execute_script("document.getElementById('tour-close').click()")
    assert not find(board, "tour").is_displayed() and find(board, "tour-open").is_displayed()
    board.execute_script("document.getElementById('tour-open').click()")


@needs_browser
@pytest.mark.parametrize("width, scheme", [(1280, "light"), (1280, "dark"), (360, "light"), (360, "dark")])
def test_it_fits_wide_and_narrow_screens_in_both_schemes(board, width, scheme):
    emulate(board, width, 1000, scheme)
    try:
        take_example(board, 7)
        assert board.execute_script("return document.documentElement.scrollWidth") <= width
        colour = board.execute_script("return getComputedStyle(document.body).backgroundColor")
        brightness = sum(map(int, colour[4:-1].split(",")))
        assert (brightness > 600) == (scheme == "light")
        if folder := os.environ.get("PROSUTILS_SCREENSHOTS"):
            shot = board.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
            Path(folder, f"site_{width}_{scheme}.png").write_bytes(base64.b64decode(shot["data"]))
    finally:
        unemulate(board)


@needs_browser
def test_nothing_is_asked_of_another_host_and_nothing_fails(page, server):
    urls = asked(page)
    assert urls and all(url.startswith((server.address, "data:", "blob:")) for url in urls), urls
    severe = [entry["message"] for entry in page.get_log("browser") if entry["level"] == "SEVERE"]
    assert not [message for message in severe if "favicon" not in message]


@needs_browser
def test_after_the_first_visit_it_works_without_network(site, about):
    with browser() as page:
        with served(site) as server:
            visit(page, server)
            wait_for(lambda: "without network" in find(page, "offline").text, 20, "the note")
            wanted = [name for name in about["files"] if name.count("/") == 0 and name != "parity.json"]
            wait_for(lambda: kept(page) >= len(wanted), 30, "the files to be kept")
        page.refresh()  # the server is gone
        wait_for(lambda: page.execute_script("return document.body.dataset.complete"), 120, "the models")
        take_example(page, 2)
        assert all(len(found) == 10 for found in ranks(page).values())


def kept(page):
    """How many files the browser keeps."""
    return page.execute_async_script("""
        const done = arguments[0], sizes = [];
        for (const key of await caches.keys()) sizes.push((await (await caches.open(key)).keys()).length);
        done(sizes.reduce((a, b) => a + b, 0));""")


@needs_browser
def test_a_browser_without_webassembly_is_told_so(server):
    with browser("delete window.WebAssembly") as page:
        page.get(server.address)
        assert "lacks WebAssembly" in wait_for(lambda: alert(page), 30, "a message")


@needs_browser
def test_without_storage_it_works_and_says_what_is_lost(server):
    deny = "navigator.serviceWorker.register = () => Promise.reject(new DOMException('denied', 'SecurityError'))"
    with browser(deny) as page:
        visit(page, server)
        assert "storage is denied" in find(page, "offline").text
        take_example(page, 1)
        assert len(ranks(page)["pros"]) == 10


@needs_browser
def test_a_broken_download_is_named_and_tried_again(site):
    with served(site, Faulty) as server, browser() as page:
        server.missing, server.short = frozenset(), {"models/blocks.onnx"}
        page.get(server.address)
        message = wait_for(lambda: alert(page), 120, "a message")
        assert "models/blocks.onnx could not be downloaded" in message and "Try again" in message
        server.short, server.missing = frozenset(), {"models/blocks.onnx"}
        press_again(page)
        assert "answered 404" in wait_for(lambda: alert(page), 120, "a message")
        server.missing = frozenset()
        press_again(page)
        wait_for(lambda: page.execute_script("return document.body.dataset.complete"), 180, "the models")
        take_example(page, 4)
        assert len(ranks(page)["pros"]) == 10 and not alert(page)


def press_again(page):
    page.execute_script("document.querySelector('#alert button').click()")
    assert not alert(page)
