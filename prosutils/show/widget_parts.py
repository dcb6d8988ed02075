"""What the widgets are made of, without a browser: searches, drawings, prompt units, pictures as HTML."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from importlib import resources

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps
from torch import nn

from ..domains import ImageDomains, inverted_domains
from ..evaluation import embed, embed_rows, model_transform, switch_options
from ..files import UserError
from ..image_files import as_rgb, load_image
from ..names import readable
from ..pros import ProS
from ..ranking import rank
from ..search import ImageIndex, query_feature
from .pictures import thumbnail

#: Pixels of a drawing as the models get it, and how much of them its longer side takes: the median of PictoNet's
#: sketches. What is smaller than `LEAST` of the canvas is enlarged as if it were as large: a dot stays a dot.
SIDE, FILL, LEAST = 224, 0.83, 0.3
BLANK = "The canvas is empty: draw on it with the pointer, or press space on it and use the arrow keys."


def asset(name: str):
    """A text file that ships with the package."""
    return resources.files("prosutils.show").joinpath(name).read_text(encoding="utf-8")


def complaint(error: Exception):
    """An exception as a reader should see it: a UserError says all, of others the kind helps."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


# --- Searches -----------------------------------------------------------------------------------------------


def named(models: nn.Module | Sequence[nn.Module] | Mapping[str, nn.Module]):
    """{name: model} of a model, of several, or of such a dict."""
    if isinstance(models, dict):
        return models
    models = models if isinstance(models, (list, tuple)) else [models]
    return {model.label: model for model in models}


class Search:
    """A gallery of G pictures (rows of `data`) whose features by `model` are computed once.

    Queries are features [1, D]; answers are scores [k] and places [k] in the gallery, lists, best first.
    """

    def __init__(self, model: nn.Module, data: ImageDomains, gallery: torch.Tensor) -> None:
        self.model, self.data, self.gallery = model, data, torch.as_tensor(gallery)
        self.features = embed_rows(model, data, self.gallery)  # [G, D]
        self.options = switch_options(model.config.switches)

    def row(self, row: int):
        """Feature of a row of `data`."""
        return embed_rows(self.model, self.data, torch.tensor([row]))

    def drawing(self, image: Image.Image):
        """Feature of a drawing; a model that was trained on inverted sketches gets it inverted."""
        inverted = inverted_domains(self.model.config.switches)
        return embed(self.model, [ImageOps.invert(as_rgb(image)) if inverted else image])

    def words(self, words: str):
        """Feature of words, asked for as in the training captions."""
        return query_feature(self.model, words)

    def rank(self, query: torch.Tensor, k: int, similarity: str | None = None):
        scores, places = rank(query, self.features, similarity or self.options["similarity"], k)
        return scores[0].tolist(), places[0].tolist()


class IndexSearch(Search):
    """A search of all pictures of an `ImageIndex`, which has their features. Each is a class, named by its file."""

    def __init__(self, model: nn.Module, index: ImageIndex) -> None:
        index.check(model)
        self.model, self.gallery, self.features = model, torch.arange(len(index.paths)), index.features
        paths = [index.root / name for name in index.paths.tolist()]
        names = tuple(readable("/".join(path.relative_to(index.root).parts[-2:])) for path in paths)
        self.data = ImageDomains(index.root, ("any",), names, paths, torch.zeros_like(self.gallery), self.gallery, [])
        self.options = switch_options(model.config.switches)


def searches_of(
    models: nn.Module | Sequence[nn.Module] | Mapping[str, nn.Module],
    data: ImageDomains,
    gallery: torch.Tensor | None = None,
):
    """{name: Search} of a model, of several or {name: model}: in rows of `data`, or in all pictures of an `ImageIndex`.

    Raises UserError for an empty gallery and for an index of another model.
    """
    if isinstance(data, ImageIndex):
        return {name: IndexSearch(model, data) for name, model in named(models).items()}
    if gallery is None or not len(gallery):
        raise UserError("The gallery is empty: there is nothing to search.")
    return {name: Search(model, data, gallery) for name, model in named(models).items()}


# --- Drawings -----------------------------------------------------------------------------------------------


def decode_drawing(url: str):
    """The drawing in a canvas's `data:image/png;base64,...` address, on white, RGB. UserError where it is none."""
    head, _, body = url.partition(",")
    if head != "data:image/png;base64":
        raise UserError("A drawing has to come as data:image/png;base64,...")
    try:
        return load_image(base64.b64decode(body, validate=True))
    except ValueError as error:  # no base64, or no picture
        raise UserError(f"The drawing did not arrive whole: draw on, and it is sent again. ({error})") from None


def place_drawing(image: Image.Image):
    """A drawing, dark on white, cropped and centred as the benchmark's sketches are: RGB, SIDE x SIDE pixels.

    Raises UserError where nothing is drawn.
    """
    image = as_rgb(image)
    box = ImageOps.invert(image.convert("L")).point(lambda ink: 255 * (ink > 40)).getbbox()
    if box is None:
        raise UserError(BLANK)
    cut = image.crop(box)
    factor = FILL * SIDE / max(*cut.size, LEAST * max(image.size))
    cut = cut.resize([max(1, round(factor * length)) for length in cut.size], Image.Resampling.LANCZOS)
    placed = Image.new("RGB", (SIDE, SIDE), "white")
    placed.paste(cut, [(SIDE - length) // 2 for length in cut.size])
    return placed


def example_drawing():
    """An umbrella in a few strokes: what the picture of a pad shows that nobody has drawn on."""
    image = Image.new("RGB", (280, 280), "white")
    draw = ImageDraw.Draw(image)
    draw.arc((30, 40, 250, 260), 180, 360, "#222222", 14)
    for left in (30, 103, 176):
        draw.arc((left, 118, left + 74, 182), 180, 360, "#222222", 12)
    draw.line((140, 40, 140, 232), "#222222", 14)
    draw.arc((140, 206, 190, 260), 0, 180, "#222222", 14)
    return image


# --- Prompt units -------------------------------------------------------------------------------------------


@torch.no_grad()
def unit_features(
    model: ProS,
    images: torch.Tensor,
    domain_index: torch.Tensor,
    class_index: torch.Tensor,
    domain_scale: float = 1.0,
    class_scale: float = 1.0,
):
    """Features [B, D] by stage 1's path, each picture's two units multiplied by a number, without dropout.

    images [B, 3, H, W], normalised; indices [B] into the model's domains and classes.
    """
    device, factors = model.units.domain.device, torch.tensor([domain_scale, class_scale])[:, None]
    units = model.units.own(domain_index.to(device), class_index.to(device)) * factors.to(device)
    was_training = model.training
    model.eval()
    features = model.encode_with_prompts(images.to(device), units)
    model.train(was_training)
    return features.float().cpu()


def with_own_units(model: ProS, data: ImageDomains, rows: torch.Tensor, batch_size: int = 128):
    """Features [n, D] of rows of training domains and seen classes, each with its own units."""
    transform, features = model_transform(model), []
    for batch in torch.as_tensor(rows).split(batch_size):
        images = torch.stack([transform(data.load(row)) for row in batch.tolist()])
        domains, classes = (
            [known.index(names[i]) for i in index[batch]]
            for known, names, index in (
                (model.domains, data.domains, data.domain_index),
                (model.classes, data.classes, data.class_index),
            )
        )
        features.append(unit_features(model, images, torch.tensor(domains), torch.tensor(classes)))
    return torch.cat(features)


# --- Pictures and points for a page -------------------------------------------------------------------------


def picture_url(image: Image.Image, side: int = 48):
    """A picture, at most `side` pixels wide, as a `data:` address; 64 colours take a third of the room."""
    buffer = io.BytesIO()
    thumbnail(image, side).quantize(64).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def strip_html(data: ImageDomains, rows: torch.Tensor, class_index: int, label: str):
    """Ranked rows of `data` as a list of pictures, each marked as a hit (✓) or a miss (✗) and with its class."""
    cells = []
    for row in map(int, rows):
        hit, name = int(data.class_index[row]) == class_index, data.classes[data.class_index[row]].replace("_", " ")
        cells.append(
            f'<figure role="listitem" class="pros-cell {"hit" if hit else "miss"}">'
            f'<img src="{picture_url(data.load(row), 64)}" alt=""><figcaption>'
            f'<b aria-label="{"hit" if hit else "miss"}">{"✓" if hit else "✗"}</b> {html.escape(name)}'
            "</figcaption></figure>"
        )
    return f'<div role="list" class="pros-strip" aria-label="{html.escape(label)}">{"".join(cells)}</div>'


def query_html(data: ImageDomains, row: int):
    """The query: its picture with class and domain."""
    name, domain = (
        html.escape(x.replace("_", " "))
        for x in (data.classes[data.class_index[row]], data.domains[data.domain_index[row]])
    )
    return (
        f'<figure class="pros-query"><img src="{picture_url(data.load(row), 96)}" alt="the query"><figcaption>'
        f"<b>{name}</b><br>{domain}</figcaption></figure>"
    )


def unit_square(points: np.ndarray):
    """Points [n, 2] moved and scaled into 0 to 1, their proportions kept, y turned down as on a screen; 4 digits."""
    points = np.asarray(points, dtype=float)
    middle, reach = (points.max(0) + points.min(0)) / 2, max(np.ptp(points, axis=0).max(), 1e-9)
    return ((points - middle) / reach * [1, -1] + 0.5).round(4)
