"""The dial of PictoNet's far tier: the same queries drawn from weak to strong, and what becomes of every method."""

import base64
import html
import io
from collections.abc import Mapping, Sequence

import ipywidgets
import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn

from .. import pictonet
from ..domains import ImageDomains
from ..evaluation import embed, embed_rows
from ..files import UserError
from ..metrics import query_metrics, rank
from ..splits import Split
from .pictures import FAINT, FLAME, INK, STEP, WIDTH, NotebookFigure, board, picture, short, strip, styled
from .widget_parts import asset, complaint, named, strip_html
from .widgets import Keys, WithPicture

#: From the near tier (0) to the far tier's strongest (1).
STRENGTHS = (0.0, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
#: Colours and marks that tell methods apart, in grey print, too.
LINES = {
    "Zero-shot CLIP": ("#7B8794", "o"),
    "Heads only": ("#0077BB", "s"),
    "ProS": (FLAME, "^"),
    "ProS + heads": ("#AA3377", "D"),
}
OTHERS = (("#009988", "v"), ("#44546A", "P"), ("#BBAA00", "X"))


def line_styles(methods: Sequence[str]) -> dict[str, dict]:
    """{method: colour and mark of its line}, a known method's the same in every figure."""
    spare = iter(OTHERS * len(methods))
    return {name: dict(zip(("color", "marker"), LINES.get(name) or next(spare))) for name in methods}


def drawn_at(data: ImageDomains, rows: torch.Tensor, strength: float) -> list[Image.Image]:
    """The pictures in `rows` of PictoNet's far tier as they are at another strength, 0 (near tier) to 1.

    data: PictoNet laid out. Raises UserError for a picture that is no drawing of PictoNet's far tier.
    """
    records = far_records()
    size = data.load(int(rows[0])).width
    found = []
    for row in map(int, rows):
        domain, path = data.domains[data.domain_index[row]], data.paths[row]
        if (domain, path.parent.name, path.stem) not in records:
            raise UserError(f"{path.name} is no drawing of PictoNet's far tier: it has no strength.")
        record = records[domain, path.parent.name, path.stem]
        found.append(pictonet.load_drawing(record, size, "far", strength))
    return found


def far_records() -> dict[tuple[str, str, str], dict]:
    """{(technique, class, name of the file): record of the manifest}."""
    return {
        (pictonet.FAR_DOMAINS[record["domain"]], record["class"], f"{record['set']}_{record['icon']}"): record
        for record in pictonet.manifest()
        if record["domain"] in pictonet.FAR_DOMAINS
    }


@styled
def strength_curves(table: pd.DataFrame, data: ImageDomains, row: int, metric: str = "mAP@200"):
    """`metric` of every method against the strength, with one drawing at each strength above.

    table: columns method, strength and `metric` (studies/dial.py); row: a drawing of the far tier in `data`.
    """
    strengths = sorted(table["strength"].unique())
    figure = NotebookFigure(figsize=(WIDTH * 0.85, 4.4))
    ax = figure.add_axes([0.08, 0.12, 0.68, 0.66])
    styles = line_styles(list(dict.fromkeys(table["method"])))
    for method, rows in table.sort_values("strength").groupby("method", sort=False):
        ax.plot(rows["strength"], rows[metric], label=method, ms=5, **styles[method])
    margin = 0.05
    ax.set(xlim=(-margin, 1 + margin), ylabel=metric)
    ax.set_xlabel("strength of the technique (0: drawings as mini-CLIP knows them)")
    ax.tick_params(labelsize=8)
    last = table[table["strength"] == strengths[-1]].sort_values(metric, ascending=False)
    places = spread(last[metric].to_numpy(), np.ptp(ax.get_ylim()) * 0.06)
    for (method, value), y in zip(last[["method", metric]].itertuples(index=False), places):
        ax.text(1.02 + margin, y, f"{method} {value:.3f}", color=styles[method]["color"], va="center", fontsize=8.5)
    for strength, image in zip(strengths, (drawn_at(data, torch.tensor([row]), x)[0] for x in strengths)):
        x = 0.08 + 0.68 * (strength + margin) / (1 + 2 * margin)
        side = figure.add_axes([x - 0.032, 0.81, 0.064, 0.064 * 0.85 * WIDTH / 4.4])
        side.imshow(image)
        side.set_axis_off()
        ax.axvline(strength, color=FAINT, lw=0.6, zorder=0)
    return figure


def spread(values: np.ndarray, gap: float) -> np.ndarray:
    """Falling values [n] moved apart so that neighbours are at least `gap` from each other, as labels need it."""
    places = np.array(values, dtype=float)
    for i in range(1, len(places)):
        places[i] = min(places[i], places[i - 1] - gap)
    return places + (np.asarray(values).mean() - places.mean())


# --- The widget ---------------------------------------------------------------------------------------------


class MethodDial(WithPicture, ipywidgets.VBox):
    """A slider for the strength, a menu for the query, and the ranks of all methods, which follow."""

    title = "method_dial: run this cell, then move the slider"

    def __init__(
        self,
        data: ImageDomains,
        split: Split,
        models: Mapping[str, nn.Module],
        queries: torch.Tensor,
        strengths: Sequence[float],
        k: int,
        galleries: Mapping[str, torch.Tensor],
    ) -> None:
        self.data, self.split, self.k, self.strengths = data, split, k, tuple(strengths)
        self.queries = [int(row) for row in queries]
        self.drawn = {x: drawn_at(data, torch.tensor(self.queries), x) for x in self.strengths}
        gallery_labels, labels = data.class_index[split.gallery], data.class_index[self.queries]
        self.found: dict[str, dict[float, tuple]] = {}
        for name, model in models.items():
            gallery = galleries[name] if name in galleries else embed_rows(model, data, split.gallery)
            self.found[name] = {}
            for x in self.strengths:
                query = embed(model, self.drawn[x])
                scores = query_metrics(query, labels, gallery, gallery_labels)["AP@200"]
                order = rank(query, gallery)[1]  # [q, G]
                first = (gallery_labels[order] == labels[:, None]).int().argmax(1) + 1  # rank of the first hit
                self.found[name][x] = split.gallery[order[:, :k]], scores.tolist(), first.tolist()
        names = [short(data.classes[data.class_index[row]], 24) for row in self.queries]
        wide = dict(style=dict(description_width="96px"), layout=dict(width="420px"))
        self.strength = ipywidgets.SelectionSlider(
            options=[(f"{x:g}", x) for x in self.strengths], value=self.strengths[-1], description="Strength", **wide
        )
        self.query = ipywidgets.Dropdown(options=[(n, i) for i, n in enumerate(names)], description="Query", **wide)
        self.shown = ipywidgets.HTML()
        for control in (self.strength, self.query):
            control.observe(self.update, "value")
        controls = ipywidgets.Box([self.query, self.strength], layout=dict(flex_flow="row wrap", grid_gap="2px 12px"))
        super().__init__(children=[controls, self.shown, Keys()], layout=dict(max_width="1000px"))
        self.add_class("pros-explorer")
        self.update()

    def update(self, change: dict | None = None):
        try:
            self.shown.value = f'<style>{asset("widgets.css")}</style><div class="pros">{self.page()}</div>'
        except Exception as error:
            self.shown.value = f'<div role="alert" style="color:#CC3311">{html.escape(complaint(error))}</div>'

    def page(self):
        """The query at the chosen strength and, for every method, its first ranks."""
        i, x = self.query.value, self.strength.value
        label, parts = int(self.data.class_index[self.queries[i]]), []
        for name, by_strength in self.found.items():
            rows, scores, first = by_strength[x]
            told = f"AP@200 {scores[i]:.2f}, first hit at rank {first[i]}"
            parts.append(
                f"<h4>{html.escape(name)} <small>{told}</small></h4>"
                + strip_html(self.data, rows[i], label, f"ranks by {name}")
            )
        buffer = io.BytesIO()
        self.drawn[x][i].save(buffer, "PNG")
        address = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        name = html.escape(self.data.classes[label].replace("_", " "))
        query = (
            f'<figure class="pros-query"><img src="{address}" alt="the query"><figcaption><b>{name}</b><br>'
            f"strength {x:g}</figcaption></figure>"
        )
        return f'<div class="pros-row">{query}<div>{"".join(parts)}</div></div>'

    def figure(self):
        return method_dial_figure(self, self.query.value)


@styled
def method_dial_figure(dial: MethodDial, query: int):
    """A query at the weakest, a middle and the strongest strength: its first ranks by every method."""
    ends = min(dial.strengths), max(dial.strengths)
    shown = [ends[0], min(dial.strengths, key=lambda x: abs(x - sum(ends) / 2)), ends[1]]
    k, left, pitch, block = min(8, dial.k), 4.4, 1.1, 1.1 * len(dial.found) + 0.35
    label, width = int(dial.data.class_index[dial.queries[query]]), left + min(8, dial.k) * STEP + 1.2
    figure, ax = board(width, block * len(shown) - 0.2, min(0.72, WIDTH / width))
    for number, x in enumerate(dict.fromkeys(shown)):
        top = number * block + 0.05
        side = 1.5
        middle = top + (pitch * len(dial.found) - side - 0.3) / 2
        picture(ax, dial.drawn[x][query], 0.1, middle, side, INK, 1.4)
        ax.text(0.1 + side / 2, middle + side + 0.06, f"strength {x:g}", ha="center", va="top", fontsize=8)
        for place, (name, by_strength) in enumerate(dial.found.items()):
            rows, scores, _ = by_strength[x]
            y = top + place * pitch
            frames(ax, dial.data, rows[query][:k], label, left, y)
            ax.text(left - 0.2, y + 0.5, name, ha="right", va="center", fontsize=8.5)
            ax.text(left + k * STEP + 0.05, y + 0.5, f"AP {scores[query]:.2f}", va="center", fontsize=8.5)
    return figure


def frames(ax, data: ImageDomains, rows: torch.Tensor, label: int, x: float, y: float):
    """A strip of ranked pictures without the names of misses, for rows that follow each other closely."""
    before = len(ax.texts)
    strip(ax, data, rows, label, x, y)
    for text in list(ax.texts[before:]):
        text.remove()


def method_dial(
    data: ImageDomains,
    split: Split,
    models: nn.Module | Sequence[nn.Module] | Mapping[str, nn.Module],
    queries: torch.Tensor,
    strengths: Sequence[float] = STRENGTHS,
    k: int = 8,
    galleries: Mapping[str, torch.Tensor] | None = None,
):
    """Move the strength of the held-out technique and watch the ranks of all methods change.

    data: PictoNet's far tier; models: a model, several, or {name: model}; queries: rows of `data`, each drawn at every
    strength and embedded once by each model; k: ranks shown; galleries: {name: features [G, D] of the split's gallery} where
    they are known already. Raises UserError for no query, no strength, and a
    picture that is no drawing of the far tier.
    """
    if not len(queries) or not len(strengths):
        raise UserError("The dial needs one query and one strength at least.")
    k = min(k, len(split.gallery))
    return MethodDial(data, split, named(models), torch.as_tensor(queries), strengths, k, galleries or {})
