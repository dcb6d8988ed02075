"""The domain gap of PictoNet's far tier: a curve of scores, and a slider that redraws a drawing as strongly as wanted."""

import html
from collections.abc import Sequence

import ipywidgets
import pandas as pd
import torch
from torch import nn

from .. import pictonet
from ..domains import ImageDomains
from ..evaluation import embed
from ..metrics import query_metrics, rank
from .pictures import (
    FAINT,
    GREY,
    INK,
    STEP,
    WIDTH,
    NotebookFigure,
    arrow,
    board,
    domain_colours,
    query_card,
    short,
    strip,
    styled,
)
from .widget_parts import Search, asset, complaint, picture_url, strip_html
from .widgets import Keys, WithPicture, menu, slider

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


@styled
def gap_curves(table: pd.DataFrame, chance: float | None = None, metric: str = "mAP@200"):
    """A score against the strength: one curve per technique, a ring at the chosen strength, the name at its end.

    table: technique, strength, chosen and the metric, as studies/far_strength.py writes it; chance: a dashed line.
    """
    figure = NotebookFigure(figsize=(0.72 * WIDTH, 3.5), layout="constrained")
    ax, colours = figure.subplots(), domain_colours(sorted(set(table["technique"])))
    ends = {}
    for technique, rows in table.groupby("technique"):
        rows = rows.sort_values("strength")
        ax.plot(rows["strength"], rows[metric], "o-", ms=3.5, color=colours[technique])
        chosen = rows[rows["chosen"]]
        ax.plot(chosen["strength"], chosen[metric], "o", ms=10, mfc="none", mec=INK, mew=1.4, zorder=4)
        ends[technique] = float(rows[metric].iloc[-1])
    for technique, y in apart(ends, 0.028).items():
        ax.text(1.03, y, short(technique), color=colours[technique], va="center", fontweight="bold", fontsize=9)
    if chance is not None:
        ax.axhline(chance, color=GREY, lw=1, ls=(0, (4, 3)))
        ax.text(0, chance + 0.008, "chance level", color=GREY, va="bottom")
    ax.set(xlabel="strength of the technique (ring: the far tier's)", ylabel=f"zero-shot {metric}", xlim=(-0.02, 1.24))
    ax.set_ylim(0)
    ax.set_xticks(STRENGTHS)
    ax.grid(axis="y", color=FAINT, lw=0.5)
    return figure


def apart(places: dict[str, float], distance: float):
    """{name: place} moved up where two are nearer than `distance`, in their order."""
    moved, last = {}, -1.0
    for name, place in sorted(places.items(), key=lambda item: item[1]):
        last = moved[name] = max(place, last + distance)
    return moved


class StrengthDial(WithPicture, ipywidgets.VBox):
    """The dial of `strength_dial`: menus for technique and class, a slider for the strength, and what is found."""

    title = "strength_dial: run this cell, then move the slider"

    def __init__(self, search: Search, data: ImageDomains, k: int) -> None:
        self.search, self.data, self.k = search, data, k
        techniques = list(pictonet.FAR_DOMAINS.values())
        self.technique, self.class_name = menu("Technique", techniques, "chalk"), menu("Class", self.names("chalk"))
        self.strength = slider("Strength", min=0, max=1, step=0.05, value=1.0)
        self.shown = ipywidgets.HTML()
        controls = [self.technique, self.class_name, self.strength]
        for control in controls:
            control.observe(self.update, "value")
        grid = ipywidgets.Box(controls, layout=dict(flex_flow="row wrap", grid_gap="2px 12px"))
        super().__init__(children=[grid, self.shown, Keys()], layout=dict(max_width="1000px"))
        self.add_class("pros-explorer")
        self.update()

    def names(self, technique: str):
        """Classes of the gallery that the technique draws."""
        rows = self.data.rows([technique], self.data.class_names(self.search.gallery))
        return self.data.class_names(rows)

    def record(self):
        """The manifest's record of the chosen class's first drawing."""
        domain = next(near for near, far in pictonet.FAR_DOMAINS.items() if far == self.technique.value)
        wanted = domain, self.class_name.value
        return next(r for r in pictonet.manifest() if (r["domain"], r["class"]) == wanted)

    def answer(self, strength: float):
        """(rows [k] of the best emoji, AP@200) for the drawing at a strength, as the model sees it."""
        picture = pictonet.load_drawing(self.record(), 64, "far", strength)
        feature, labels = embed(self.search.model, [picture]), self.data.class_index
        places = rank(feature, self.search.features, k=self.k)[1][0]
        label = torch.tensor([self.data.classes.index(self.class_name.value)])
        found = labels[self.search.gallery]
        score = query_metrics(feature, label, self.search.features, found, ap_norm="relevant")["AP@200"]
        return self.search.gallery[places], float(score)

    def update(self, change: dict | None = None):
        if change and change["owner"] is self.technique:
            chosen, names = self.class_name.value, self.names(self.technique.value)
            self.class_name.options = [(short(name, 30), name) for name in names]
            self.class_name.value = chosen if chosen in names else names[0]
        try:
            self.shown.value = f'<style>{asset("widgets.css")}</style><div class="pros">{self.page()}</div>'
        except Exception as error:
            self.shown.value = f'<div role="alert" style="color:#CC3311">{html.escape(complaint(error))}</div>'

    def page(self):
        strength = self.strength.value
        rows, score = self.answer(strength)
        label = self.data.classes.index(self.class_name.value)
        large = picture_url(pictonet.load_drawing(self.record(), 192, "far", strength), 192)
        name = html.escape(self.class_name.value.replace("_", " "))
        return (
            f'<div class="pros-row"><img src="{large}" alt="{name} at strength {strength:.2f}" width="192" height="192">'
            f"<div><h4>{html.escape(self.search.model.label)} <small>strength {strength:.2f}: AP@200 {score:.2f}</small>"
            f"</h4>{strip_html(self.data, rows, label, 'nearest emoji')}</div></div>"
        )

    @styled
    def figure(self):
        """The drawing at five strengths, and the nearest emoji of each."""
        left, pitch = 1.65, 1.42
        width = left + self.k * STEP + 1.0
        figure, ax = board(width, len(STRENGTHS) * pitch + 0.05, min(0.72, WIDTH / width))
        label = self.data.classes.index(self.class_name.value)
        for i, strength in enumerate(STRENGTHS):
            y = i * pitch + 0.05
            picture, (rows, score) = pictonet.load_drawing(self.record(), 128, "far", strength), self.answer(strength)
            query_card(ax, picture, f"strength {strength:g}", 0.15, y)
            arrow(ax, (1.28, y + 0.5), (1.54, y + 0.5))
            strip(ax, self.data, rows, label, left, y)
            ax.text(left + self.k * STEP + 0.05, y + 0.5, f"AP {score:.2f}", va="center", fontsize=8)
        return figure


def strength_dial(model: nn.Module, data: ImageDomains, gallery: torch.Tensor, technique: str, name: str, k: int = 8):
    """Menus for technique and class and a slider for the strength: redraws the drawing, and ranks the gallery by it.

    data: PictoNet's far tier; gallery: rows of `data`, embedded once; technique, name: what is chosen first.
    """
    dial = StrengthDial(Search(model, data, gallery), data, min(k, len(gallery)))
    dial.technique.value, dial.class_name.value = technique, name
    return dial


@styled
def drawn_at(records: Sequence[dict], strengths: Sequence[float] = STRENGTHS, size: int = 128):
    """One row per drawing (a record of PictoNet's manifest) and one column per strength of its technique."""
    figure, ax = board(1.8 + 1.1 * len(strengths), 0.35 + 1.1 * len(records), 1.0)
    colours = domain_colours(sorted(pictonet.FAR_DOMAINS.values()))
    for column, strength in enumerate(strengths):
        ax.text(2.3 + 1.1 * column, 0.28, f"strength {strength:g}", ha="center", va="bottom", fontsize=9)
    for row, record in enumerate(records):
        technique, y = pictonet.FAR_DOMAINS[record["domain"]], 0.35 + 1.1 * row
        note = dict(ha="right", va="center")
        ax.text(1.65, y + 0.45, short(technique), fontweight="bold", fontsize=10, color=colours[technique], **note)
        ax.text(1.65, y + 0.68, f"from {record['domain']}", fontsize=8, color=GREY, **note)
        for column, strength in enumerate(strengths):
            x = 1.8 + 1.1 * column
            image = pictonet.load_drawing(record, size, "far", strength)
            ax.imshow(image, extent=(x, x + 1, y + 1, y), aspect="auto", zorder=3)
    return figure
