"""Widgets of the notebooks: draw a sketch and search, explore ranks, prompt units and feature maps.

Each carries a picture of itself: where no kernel runs (GitHub, a page of nbconvert) the reader sees that.
"""

import base64
import html
import importlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import anywidget
import ipywidgets
import numpy as np
import torch
import torch.nn.functional as F
import traitlets
from torch import nn

from ..domains import ImageDomains, usual_gallery
from ..evaluation import model_transform
from ..files import UserError
from ..metrics import query_metrics
from ..pros import ProS
from ..ranking import rank
from ..splits import Split
from .pictures import compare_ranks, domain_colours, rank_strips, short
from .plots import feature_maps, label_colours
from .widget_parts import (
    Search,
    asset,
    complaint,
    decode_drawing,
    example_drawing,
    named,
    picture_url,
    place_drawing,
    query_html,
    searches_of,
    strip_html,
    unit_features,
    unit_square,
    with_own_units,
)


class WithPicture:
    """A widget that also shows as a picture, `figure()`, and as a line of text that is the same in every run."""

    title = "A widget of prosutils: run this cell to use it."

    def __init__(self, **traits: object) -> None:
        if "google.colab" in sys.modules:  # Colab shows no widget but its own until told to
            importlib.import_module("google.colab.output").enable_custom_widget_manager()
        super().__init__(**traits)

    def __repr__(self):
        return f"<{self.title}>"

    def _repr_mimebundle_(self, **kwargs: Any):
        bundle = super()._repr_mimebundle_(**kwargs)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        png, size = self.figure()._repr_png_()
        return (
            data | {"text/plain": repr(self), "image/png": base64.b64encode(png).decode()},
            metadata | {"image/png": size},
        )


# --- Draw and search ----------------------------------------------------------------------------------------


class SketchSearch(WithPicture, anywidget.AnyWidget):
    """The pad of `sketch_search`. `drawing` and `words` come from the browser, `answer` goes back to it."""

    title = "sketch_search: run this cell, then draw"
    _esm, _css = asset("element.js") + asset("sketch_pad.js"), asset("widgets.css")
    strokes = traitlets.List().tag(sync=True, echo_update=False)  # what is on the canvas: a second view has it too
    drawing = traitlets.Unicode().tag(sync=True, echo_update=False)
    words = traitlets.Unicode().tag(sync=True, echo_update=False)
    answer = traitlets.Dict().tag(sync=True)

    def __init__(self, searches: Mapping[str, Search], k: int) -> None:
        self.searches, self.k = searches, k
        first = next(iter(searches.values()))
        self.data, self.rows, self.cards = first.data, first.gallery, {}
        super().__init__(answer=dict(number=0, strips=[], milliseconds=0, message=""))

    @traitlets.observe("drawing", "words")
    def respond(self, change: dict):
        """Answers a drawing or words with new ranks; what cannot be answered gets a message and the ranks stay."""
        start, number = time.perf_counter(), self.answer["number"] + 1
        try:
            strips = self.strips(change["name"])
            spent = 1000 * (time.perf_counter() - start)
            self.answer = dict(number=number, strips=strips, milliseconds=round(spent, 1), message="")
        except Exception as error:
            self.answer = self.answer | dict(number=number, message=complaint(error))

    def strips(self, kind: str):
        """[{name, scores [k], cards [k]}] of every model, for what is drawn or for the words."""
        if kind == "words":
            query = self.words.strip()
            if not query:
                raise UserError("There are no words: write what you look for, for example “red umbrella”.")
        else:
            query = place_drawing(decode_drawing(self.drawing))
        ask = Search.words if kind == "words" else Search.drawing
        ranks = {name: search.rank(ask(search, query), self.k) for name, search in self.searches.items()}
        return [
            dict(name=name, scores=scores, cards=[self.card(place) for place in places])
            for name, (scores, places) in ranks.items()
        ]

    def card(self, place: int):
        """[address of the picture, class name] of a place in the gallery, made once."""
        if place not in self.cards:
            row = int(self.rows[place])
            name = self.data.classes[self.data.class_index[row]].replace("_", " ")
            self.cards[place] = [picture_url(self.data.load(row)), name]
        return self.cards[place]

    def figure(self):
        image = place_drawing(decode_drawing(self.drawing) if self.strokes else example_drawing())
        ranked = [self.rows[search.rank(search.drawing(image), self.k)[1]] for search in self.searches.values()]
        names = [f"drawn, for\n{name}" for name in self.searches]
        return rank_strips(self.data, [image] * len(ranked), ranked, names=names)


def sketch_search(
    models: nn.Module | Sequence[nn.Module] | Mapping[str, nn.Module],
    data: ImageDomains,
    gallery: torch.Tensor | None = None,
    k: int = 9,
):
    """A pad to draw on, and the `k` gallery pictures nearest to the drawing, which change as one draws.

    models: a model, several, or {name: model}: one strip each; gallery: G rows of `data`, embedded once by each model.
    Or `data` is an `ImageIndex` of the (one) model, and all its pictures are the gallery.
    Pointer, finger or pen; by keyboard: space puts the pen down and lifts it, arrow keys move it (Shift: faster),
    Escape clears, Ctrl+Z undoes. Words can be asked for too. Raises UserError for an empty gallery and an index of
    another model.
    """
    searches = searches_of(models, data, gallery)
    return SketchSearch(searches, min(k, *(len(search.gallery) for search in searches.values())))


# --- Explorers with menus -----------------------------------------------------------------------------------


def menu(label: str, names: Sequence[str], value: object | None = None):
    """A dropdown of names, written without "_"."""
    return ipywidgets.Dropdown(
        options=[(name.replace("_", " "), name) for name in names],
        value=value or names[0],
        description=label,
        style=dict(description_width="96px"),
        layout=dict(width="300px"),
    )


def slider(label: str, kind: type[ipywidgets.Widget] = ipywidgets.FloatSlider, **limits: object):
    return kind(description=label, style=dict(description_width="96px"), layout=dict(width="300px"), **limits)


class Keys(anywidget.AnyWidget):
    """Leaves keys typed on an explorer's menus and sliders to them; JupyterLab would move its cells instead."""

    _esm = asset("keys.js")


class Explorer(WithPicture, ipywidgets.VBox):
    """Menus that choose a picture by domain, class and number, more menus, and a page that follows them.

    A subclass gives `page()`, HTML for `self.row`. An error in it is shown above the last page, which stays.
    """

    def __init__(
        self, data: ImageDomains, domains: Sequence[str], classes: Sequence[str], controls: Sequence[ipywidgets.Widget]
    ) -> None:
        self.data, self.classes, self.busy = data, classes, False
        self.domain, self.class_name = menu("Domain", domains), menu("Class", classes)
        self.number = slider("Drawing", ipywidgets.IntSlider, min=1, max=1)
        self.note, self.shown = ipywidgets.HTML(), ipywidgets.HTML()
        controls = [self.domain, self.class_name, self.number, *controls]
        for control in controls:
            control.observe(self.update, "value")
        grid = ipywidgets.Box(controls, layout=dict(flex_flow="row wrap", grid_gap="2px 12px"))
        super().__init__(children=[grid, self.note, self.shown, Keys()], layout=dict(max_width="1000px"))
        self.add_class("pros-explorer")
        self.update()

    def update(self, change: dict | None = None):
        if self.busy:  # a menu that is refilled reports a change of its own
            return
        self.busy = True
        try:
            self.fit(change)
            self.shown.value = f'<style>{asset("widgets.css")}</style><div class="pros">{self.page()}</div>'
            self.note.value = ""
        except Exception as error:
            self.note.value = f'<div role="alert" style="color:#CC3311">{html.escape(complaint(error))}</div>'
        finally:
            self.busy = False

    def fit(self, change: dict | None):
        """Offers only classes and numbers that the chosen domain has."""
        there = set(self.data.class_names(self.data.rows([self.domain.value], self.classes)))
        names = [name for name in self.classes if name in there]
        if not names:
            raise UserError(f"The domain {self.domain.value} has no picture of these classes: choose another.")
        if [name for _, name in self.class_name.options] != names:
            chosen = self.class_name.value
            self.class_name.options = [(name.replace("_", " "), name) for name in names]
            self.class_name.value = chosen if chosen in there else names[0]
        self.rows = self.data.rows([self.domain.value], [self.class_name.value])
        self.number.max = len(self.rows)

    @property
    def row(self):
        return int(self.rows[self.number.value - 1])


class RankExplorer(Explorer):
    title = "rank_explorer: run this cell, then choose a query"

    def __init__(self, data: ImageDomains, split: Split, models: Mapping[str, nn.Module], k: int) -> None:
        self.split, self.k, self.searches = split, k, searches_of(models, data, split.gallery)
        self.method = menu("Method", [*models, "all, side by side"], "all, side by side")
        self.similarity = menu("Similarity", ["cosine", "euclidean"])
        self.first = slider("From rank", ipywidgets.IntSlider, min=1, max=max(1, len(split.gallery) - k + 1), step=k)
        others = [x for x in data.domains if x not in (*split.query_domains, split.gallery_domain)]
        super().__init__(
            data,
            [*split.query_domains, *others],
            data.class_names(split.gallery),
            [self.method, self.similarity, self.first],
        )

    def ranks(self):
        """{method: (rows [k] from the chosen rank on, AP@200)} of the chosen query."""
        labels, found, before = self.data.class_index, {}, self.first.value - 1
        for name, search in self.searches.items():
            if self.method.value in (name, "all, side by side"):
                query = search.row(self.row)
                places = search.rank(query, before + self.k, self.similarity.value)[1][before:]
                scores = query_metrics(
                    query,
                    labels[[self.row]],
                    search.features,
                    labels[search.gallery],
                    **search.options | dict(similarity=self.similarity.value),
                )
                found[name] = self.split.gallery[places], float(scores["AP@200"])
        return found

    def page(self):
        label, first, parts = int(self.data.class_index[self.row]), self.first.value, []
        for name, (rows, score) in self.ranks().items():
            hits, last = int((self.data.class_index[rows] == label).sum()), first + len(rows) - 1
            told = f"AP@200 {score:.2f}, ranks {first} to {last}: {hits} right"
            parts.append(
                f"<h4>{html.escape(name)} <small>{told}</small></h4>"
                + strip_html(self.data, rows, label, f"ranks by {name}")
            )
        return f'<div class="pros-row">{query_html(self.data, self.row)}<div>{"".join(parts)}</div></div>'

    def figure(self):
        ranked = self.ranks()
        return compare_ranks(
            self.data,
            self.row,
            {name: rows for name, (rows, _) in ranked.items()},
            {name: [score] for name, (_, score) in ranked.items()},
        )


def rank_explorer(
    data: ImageDomains, split: Split, models: nn.Module | Sequence[nn.Module] | Mapping[str, nn.Module], k: int = 9
):
    """Menus for domain, class, drawing, method and similarity of a query; its ranks in the split's gallery, `k` a page.

    models: a model, several, or {name: model}; each embeds the gallery once. Hits are marked ✓, misses ✗.
    """
    return RankExplorer(data, split, named(models), min(k, len(split.gallery)))


# --- Prompt units -------------------------------------------------------------------------------------------


class UnitExplorer(Explorer):
    title = "unit_explorer: run this cell, then swap a unit"

    def __init__(self, model: ProS, data: ImageDomains, split: Split, k: int) -> None:
        self.model, self.k, self.gallery_domain = model, k, usual_gallery(data, model.domains)
        in_gallery = data.rows([self.gallery_domain], model.classes)
        self.gallery = in_gallery[torch.isin(in_gallery, split.train)]
        self.gallery_features = with_own_units(model, data, self.gallery)
        with torch.no_grad():
            self.texts = F.normalize(model.encode_classes().float().cpu(), dim=1)  # [S, D]
        self.units = [menu("Domain unit", ["own", *model.domains]), menu("Class unit", ["own", *model.classes])]
        self.scales = [slider(f"{kind} scale", min=0, max=3, step=0.1, value=1) for kind in ("Domain", "Class")]
        queries = [x for x in model.domains if x != self.gallery_domain] or list(model.domains)
        super().__init__(data, queries, list(model.classes), [*self.units, *self.scales])

    def feature(self, units: torch.Tensor, scales: tuple[float, float]):
        """Feature [1, D] of the chosen picture with these units ("own" or a name) and scales, two each."""
        own = self.domain.value, self.class_name.value
        index = [
            torch.tensor([known.index(mine if unit == "own" else unit)])
            for known, mine, unit in zip((self.model.domains, self.model.classes), own, units)
        ]
        image = model_transform(self.model)(self.data.load(self.row))[None]
        return unit_features(self.model, image, *index, *scales)

    def cases(self):
        """{caption: feature [1, D]}: with its own units, and as the menus say."""
        units, scales = [menu.value for menu in self.units], [scale.value for scale in self.scales]
        changed = ", ".join(
            f"{kind} {unit.replace('_', ' ')} × {scale:.1f}"
            for kind, unit, scale in zip(("domain", "class"), units, scales)
        )
        return {"Own units": self.feature(("own", "own"), (1, 1)), f"Units: {changed}": self.feature(units, scales)}

    def ranks(self, feature: torch.Tensor):
        return self.gallery[rank(feature, self.gallery_features, k=self.k)[1][0]]

    def page(self):
        cases, label = self.cases(), int(self.data.class_index[self.row])
        original, changed = cases.values()
        parts = [
            f"<h4>{html.escape(name)}</h4>" + strip_html(self.data, self.ranks(feature), label, name)
            for name, feature in cases.items()
        ]
        moved = float(F.cosine_similarity(original, changed))
        return (
            f'<div class="pros-row">{query_html(self.data, self.row)}<div><p role="status">Cosine with the '
            f"original feature: <b>{moved:.3f}</b></p>{self.bars(original, changed)}{''.join(parts)}</div></div>"
        )

    def bars(self, original: torch.Tensor, changed: torch.Tensor, count: int = 5):
        """The texts nearest to the changed feature: a bar of the cosine each, and how the change moved it."""
        before, after = ((F.normalize(x, dim=1) @ self.texts.T)[0] for x in (original, changed))  # [S]
        lines = []
        for i in after.topk(min(count, len(after))).indices.tolist():
            name = html.escape(self.model.classes[i].replace("_", " "))
            own = self.model.classes[i] == self.class_name.value
            lines.append(
                f'<tr class="{"hit" if own else ""}"><th scope="row">{"✓ " if own else ""}{name}</th><td>'
                f'<i style="width:{200 * max(0.0, float(after[i])):.0f}px"></i> {after[i]:.3f} '
                f"({after[i] - before[i]:+.3f})</td></tr>"
            )
        return f'<table class="pros-bars"><caption>Nearest class texts</caption>{"".join(lines)}</table>'

    def figure(self):
        """As the menus say; where they say "own", with another class's unit."""
        cases = self.cases()
        if torch.equal(*cases.values()):
            other = self.model.classes[self.model.classes.index(self.class_name.value) - 1]
            cases = {
                "Own units": self.feature(("own", "own"), (1, 1)),
                f"Unit of {short(other)}": self.feature(("own", other), (1, 1)),
            }
        return compare_ranks(self.data, self.row, {name: self.ranks(feature) for name, feature in cases.items()})


def unit_explorer(model: ProS, data: ImageDomains, split: Split, k: int = 9):
    """Menus that exchange or scale (0 to 3) a picture's domain and class unit, and what that does to its feature.

    model: a ProS; the picture and the gallery, whose pictures have their own units, are of training domains and seen
    classes, for no other has a unit. Shows the cosine with the original feature, the nearest class texts and the ranks.
    The tower begins with a layer norm, which takes a token's length away: of the scales, those near 0 change most.
    Raises UserError for a model without units.
    """
    if not isinstance(model, ProS):
        raise UserError(f"{model.label} has no prompt units: give a ProS.")
    return UnitExplorer(model, data, split, k)


# --- Maps ---------------------------------------------------------------------------------------------------


class MapExplorer(WithPicture, anywidget.AnyWidget):
    title = "map_explorer: run this cell, then point at a picture"
    _esm, _css = asset("element.js") + asset("map_explorer.js"), asset("widgets.css")
    pictures = traitlets.List().tag(sync=True)  # n addresses
    maps = traitlets.Dict().tag(sync=True)  # {name: n points, each [x, y] in 0 to 1, y down}
    kinds = traitlets.Dict().tag(sync=True)  # {"class" | "domain": {names, colours, index of each picture}}
    state = traitlets.Dict().tag(sync=True)  # {map, kind, brushed: {kind: [indices]}, point}

    def __init__(self, data: ImageDomains, rows: torch.Tensor, maps: Mapping[str, np.ndarray]) -> None:
        self.data, self.rows, self.points = data, rows, maps
        kinds = {}
        for kind, names, index in (
            ("domain", data.domains, data.domain_index[rows]),
            ("class", data.classes, data.class_index[rows]),
        ):
            present, position = index.unique(return_inverse=True)
            names = [names[i] for i in present]
            colours = domain_colours(names) if kind == "domain" else label_colours(names)
            kinds[kind] = dict(
                names=[x.replace("_", " ") for x in names], colours=[colours[x] for x in names], index=position.tolist()
            )
        state = {"map": next(iter(maps)), "kind": "domain", "brushed": {"domain": [], "class": []}, "point": -1}
        super().__init__(
            pictures=[picture_url(data.load(int(row))) for row in rows],
            kinds=kinds,
            state=state,
            maps={name: unit_square(points).tolist() for name, points in maps.items()},
        )

    def figure(self):
        shared = dict(
            labels=self.data.domain_index[self.rows],
            names=self.data.domains,
            images=lambda i: self.data.load(int(self.rows[i])),
        )
        return feature_maps([dict(points=points, title=name, **shared) for name, points in self.points.items()])


def map_explorer(data: ImageDomains, rows: torch.Tensor, maps: Mapping[str, np.ndarray]):
    """Maps of the same n pictures (rows of `data`): the one under the pointer is shown, classes or domains are brushed.

    maps: {name: points [n, 2]}, for example of `umap_points`. By keyboard: arrow keys step from point to point, the
    legend's entries are buttons. Raises UserError for points that are not finite or not one per row.
    """
    rows = torch.as_tensor(rows)
    for name, points in maps.items():
        points = np.asarray(points)
        if points.shape != (len(rows), 2) or not np.isfinite(points).all():
            raise UserError(f"The map {name!r} needs finite points [{len(rows)}, 2], not {list(points.shape)}.")
    if not maps or not len(rows):
        raise UserError("A map needs one picture and one set of points at least.")
    return MapExplorer(data, rows, maps)
