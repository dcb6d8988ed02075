"""What the tests share: a tiny `domain/class/image` folder of drawings, a model that learns nothing, and the notebooks'
exercises."""

import contextlib
import io
import json
import os
import random
import re
import sys
from collections import namedtuple
from pathlib import Path

import nbformat
import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image, ImageDraw

from prosutils import METHODS, load_clip
from prosutils.config import load_preset
from prosutils.domains import ImageDomains
from prosutils.files import UserError
from prosutils.teaching.exercises import EXERCISES, tell

#: Examples of each property that Hypothesis draws; 0: some.
EXAMPLES = int(os.environ.get("PROSUTILS_FUZZ", "0"))
#: Seconds that one example may take: more is a hang. Generous, for machines that do other work as well.
LONGEST = 20
fuzz = settings(
    max_examples=EXAMPLES or 60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=not EXAMPLES
)

#: The notebooks with exercises.
NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("0[1-6]_*.ipynb"))
TOY_DOMAINS = ("emoji", "outline", "pixel", "sketch")
TOY_CLASSES = ("ball", "box", "cross", "gem", "house", "stripes")


@pytest.fixture(scope="session")
def npm_package():
    """A function that fetches a package of npm, and skips the test if it is not available."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "site"))
    import npm

    def fetch(name):
        try:
            return npm.archive(name)
        except UserError as error:
            pytest.skip(str(error))

    return fetch


def pytest_collection_modifyitems(items):
    """Exercises of notebooks are tried with their answers too. Notebooks, the longest files, go first, so that two
    processes end at about the same time."""
    items[:] = [part for item in items for part in (item, *with_answer(item))]
    items.sort(key=lambda item: item.path.suffix != ".ipynb")


def with_answer(item):
    """[a cell of nbval that runs after the unsolved exercise `item` and must print that its answer is right], or []."""
    source = item.cell.source if hasattr(item, "cell") else ""
    if not source.startswith("%%exercise "):
        return []
    found = next(exercise for exercise in notebook_exercises(item.path) if exercise.stub == source)
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        tell(True, f"Right. {EXERCISES[found.name].good_for}")
    outputs = [nbformat.v4.new_output("stream", text=told.getvalue())]
    cell = nbformat.v4.new_code_cell(found.solved, outputs=outputs, execution_count=1)
    name = f"{item.name}, answered"
    options = item.options | {"check": True}
    return [type(item).from_parent(item.parent, name=name, cell_num=item.cell_num, cell=cell, options=options)]


def draw_toy(domain, name, number, size=32):
    """A drawing of a class in the style of a domain; `number` moves it a little. PIL RGB, size x size."""
    rng = random.Random(f"{domain}/{name}/{number}")
    grid = 16 if domain == "pixel" else 128
    image = Image.new("RGB", (grid, grid), "white")
    draw = ImageDraw.Draw(image)
    left, top = (rng.uniform(0.1, 0.3) * grid for _ in range(2))
    right, bottom = left + 0.6 * grid, top + 0.6 * grid
    middle_x, middle_y = (left + right) / 2, (top + bottom) / 2
    ink = {"emoji": "firebrick", "outline": "black", "pixel": "royalblue", "sketch": "dimgrey"}[domain]
    paint = ink if domain in ("emoji", "pixel") else "white"
    style = {"fill": paint, "outline": ink, "width": max(1, grid // 16)}
    if name == "ball":
        draw.ellipse((left, top, right, bottom), **style)
    elif name == "box":
        draw.rectangle((left, top, right, bottom), **style)
    elif name == "cross":
        draw.line((left, top, right, bottom), fill=ink, width=grid // 8)
        draw.line((left, bottom, right, top), fill=ink, width=grid // 8)
    elif name == "gem":
        draw.polygon(((middle_x, top), (right, middle_y), (middle_x, bottom), (left, middle_y)), **style)
    elif name == "house":
        draw.rectangle((left, middle_y, right, bottom), **style)
        draw.polygon(((left, middle_y), (middle_x, top), (right, middle_y)), **style)
    else:
        for y in (top, middle_y, bottom):
            draw.line((left, y, right, y), fill=ink, width=grid // 8)
    resampling = Image.Resampling.NEAREST if domain == "pixel" else Image.Resampling.LANCZOS
    return image.resize((size, size), resampling)


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory):
    """4 domains x 6 classes x 4 to 6 images of 32 px; the number differs by domain and class. Read only."""
    root = tmp_path_factory.mktemp("toy")
    for i, domain in enumerate(TOY_DOMAINS):
        for j, name in enumerate(TOY_CLASSES):
            folder = root / domain / name
            folder.mkdir(parents=True)
            for number in range(4 + (i + j) % 3):
                draw_toy(domain, name, number).save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def toy(toy_folder):
    return ImageDomains.from_folder(toy_folder)


class ToyClip:
    image_size, mean, std = 16, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


class ToyModel(torch.nn.Module):
    """Embeds an image as itself, made small: [B, 3, 16, 16] -> [B, 48]. Counts the images it sees."""

    label = "Toy"

    def __init__(self):
        super().__init__()
        self.clip, self.config = ToyClip(), load_preset("mini-near")
        self.pool = torch.nn.AvgPool2d(4)
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.seen, self.modes = 0, set()

    def encode_image(self, images):
        self.seen += len(images)
        self.modes.add(self.training)
        return self.pool(images).flatten(1) * self.scale


@pytest.fixture
def toy_model():
    return ToyModel()


#: An exercise of a notebook: the stub's cell, its tags, the same cell with the answer, the lines of the
#: notebook's first code cell.
NotebookExercise = namedtuple("NotebookExercise", "name stub tags solved imports")


def notebook_exercises(path):
    """The exercises of a notebook, from top to bottom."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells]
    imports = next(
        source for cell, source in zip(cells, sources) if cell["cell_type"] == "code" and cell["id"] != "colab"
    ).splitlines()
    found = []
    for cell, stub, hints in zip(cells, sources, sources[1:]):
        if stub.startswith("%%exercise "):
            name = stub.splitlines()[0].split()[1]
            (answer,) = re.findall(r"<summary>Answer</summary>\n\n```python\n(.*?)\n```", hints, re.DOTALL)
            solved = f"%%exercise {name}\n{answer}"
            found.append(NotebookExercise(name, stub, cell["metadata"].get("tags"), solved, imports))
    return found


# --- A model of any method on mini-CLIP, and a batch for it ---

CLASSES, DOMAINS = ("house", "alarm_clock", "dog", "ice_cream"), ("emoji", "outline", "pixel")


@pytest.fixture(scope="module")
def clip():
    return load_clip()


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.randn(4, 3, 56, 56), torch.tensor([0, 1, 3, 1]), torch.tensor([2, 0, 1, 1])


def build(name, clip, **settings):
    """An untrained model of a method for CLASSES and DOMAINS."""
    return METHODS[name](clip, CLASSES, DOMAINS, load_preset("mini-near", **settings)).eval()
