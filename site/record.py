"""Records the moving picture of the page that the README shows: draws, switches methods and prompts, types words.

make site && python site/record.py     # writes figures/page.webp; needs Chromium and its driver
"""

import argparse
import io
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from browsing import browser, emulate, served, wait_for
from PIL import Image
from selenium import webdriver

ROOT = Path(__file__).parents[1]
WIDTH, HEIGHT = 1280, 750  # of the part of the page that is recorded
SHOWN = 800  # pixels, the width of the picture
PAUSE = 120  # milliseconds that a frame stays while something moves
MOST_BYTES = 2_000_000
#: A music note: strokes of points from the board's upper left to its lower right, in shares of its side.
NOTE = [
    [(0.42 + 0.11 * math.cos(i / 3), 0.74 + 0.08 * math.sin(i / 3)) for i in range(20)],
    [(0.53, 0.74 - 0.07 * i) for i in range(8)],
    [(0.53 + 0.05 * i, 0.25 + 0.1 * math.sin(i / 2.5)) for i in range(6)],
]


def draw(page: webdriver.Chrome, strokes: list[list[tuple[float, float]]]) -> Iterator[int]:
    """Draw stroke by stroke with the pointer; yields at moments to record."""
    board = page.find_element("id", "board")
    side = board.size["width"]
    for stroke in strokes:
        chain = webdriver.ActionChains(page, duration=20)
        x, y = stroke[0]
        chain.move_to_element_with_offset(board, (x - 0.5) * side, (y - 0.5) * side).click_and_hold().perform()
        for i, (x, y) in enumerate(stroke[1:]):
            chain = webdriver.ActionChains(page, duration=20)
            chain.move_to_element_with_offset(board, (x - 0.5) * side, (y - 0.5) * side).perform()
            if i % 2:
                yield PAUSE
        webdriver.ActionChains(page).release().perform()
        yield PAUSE


def play(page: webdriver.Chrome) -> Iterator[int]:
    """The scene: yields how long each moment stays, in milliseconds."""
    yield 600
    yield from draw(page, NOTE)
    yield 1500
    page.execute_script("document.getElementById('attention').click()")
    yield 2000
    page.execute_script("document.querySelector('input[value=none]').click()")
    yield 1800
    page.execute_script("document.querySelector('input[value=own]').click()")
    yield 1200
    for strength in (0.8, 0.6, 0.4, 0.2, 0):
        page.execute_script(
            "const s = document.getElementById('strength'); s.value = arguments[0]; s.dispatchEvent(new Event('input'))",
            strength,
        )
        yield 3 * PAUSE
    yield 1500
    words = page.find_element("id", "words")
    for letter in "umbrella":
        words.send_keys(letter)
        yield PAUSE
    words.send_keys("\n")
    yield 2500


def settle(page: webdriver.Chrome) -> None:
    """Wait until the last change is answered."""
    time.sleep(0.1)
    busy = "return document.getElementById('strips').getAttribute('aria-busy') === 'true'"
    wait_for(lambda: not page.execute_script(busy), 30, "an answer")


def record(site: Path) -> tuple[list[Image.Image], list[int]]:
    """(frames, milliseconds that each stays)"""
    frames, durations = [], []
    with served(site) as server, browser(size=f"{WIDTH},{HEIGHT}") as page:
        emulate(page, WIDTH, HEIGHT, "light")
        page.get(server.address)
        wait_for(lambda: page.execute_script("return document.body.dataset.complete"), 180, "the models")
        page.execute_script("document.getElementById('tour-close').click(); document.activeElement.blur();")
        page.execute_script("window.scrollTo(0, document.querySelector('main').offsetTop - 12)")
        for duration in play(page):
            settle(page)
            frame = Image.open(io.BytesIO(page.get_screenshot_as_png())).convert("RGB")
            frames.append(frame.resize((SHOWN, round(SHOWN * frame.height / frame.width)), Image.Resampling.LANCZOS))
            durations.append(duration)
    return frames, durations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--site", type=Path, default=ROOT / "build" / "site", help="folder that `make site` wrote")
    parser.add_argument("--out", type=Path, default=ROOT / "figures" / "page.webp", help="picture that is written")
    arguments = parser.parse_args()
    frames, durations = record(arguments.site)
    with tempfile.NamedTemporaryFile(suffix=".webp") as file:
        frames[0].save(
            file.name, save_all=True, append_images=frames[1:], duration=durations, loop=0, quality=60, method=6
        )
        content = Path(file.name).read_bytes()
    if len(content) > MOST_BYTES:
        raise SystemExit(f"The picture has {len(content) / 1e6:.1f} MB; more than {MOST_BYTES / 1e6:.0f} are too many.")
    arguments.out.write_bytes(content)
    print(f"{arguments.out}: {len(frames)} frames, {sum(durations) / 1000:.0f} s, {len(content) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
