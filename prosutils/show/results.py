"""Training curves and tables of results as figures."""

import numpy as np
import pandas as pd
import seaborn

from ..files import UserError
from ..grid import summary
from .pictures import FAINT, FLAME, INK, WIDTH, NotebookFigure, domain_colours, emphasis, short, styled

BLUE = "#0077BB"
METHOD_COLOURS = {"Zero-shot CLIP": "#B4BDC6", "Heads only": "#7FB7E0", "VPT + heads": "#3E7FB1", "ProS": FLAME}


@styled
def training_curves(history: pd.DataFrame):
    """Loss, accuracy and validation mAP@200 per epoch of `train`'s history; the kept epoch is ringed."""
    figure = NotebookFigure(figsize=(WIDTH, 2.5), layout="constrained")
    epochs, stages = np.arange(1, len(history) + 1), history["stage"].to_numpy()
    panels = {"loss": "Training loss", "accuracy": "Training accuracy", "val_mAP@200": "mAP@200 on validation classes"}
    for ax, (column, title) in zip(figure.subplots(1, 3), panels.items()):
        values = history[column].to_numpy(float)
        for stage, colour, learns in ((1, BLUE, "prompt units"), (2, FLAME, "simulator")):
            mine = stages == stage
            ax.plot(epochs[mine], values[mine], "o-", ms=3.5, color=colour, label=f"stage {stage}: {learns}")
        ax.set(title=title, xlabel="epoch", xlim=(0.4, len(history) + 0.6))
        ax.xaxis.get_major_locator().set_params(integer=True)
        if {1, 2} <= set(stages):
            ax.axvline((stages == 1).sum() + 0.5, color=FAINT, lw=1, ls=(0, (3, 3)), zorder=0)
        if column == "loss" and 1 in stages:
            ax.legend(loc="upper right")
    if np.isfinite(values).any():  # a folder may have no validation classes
        best = int(np.nanargmax(values))
        ax.plot(epochs[best], values[best], "o", ms=9, mfc="none", mec=INK, mew=1.2)
        kept = f"kept: {history['epoch'].iloc[best]} of stage {stages[best]}, {values[best]:.3f}"
        ax.set_xlabel(f"epoch ({kept})")
    return figure


@styled
def results_bars(results: pd.DataFrame, metric: str = "mAP@200", chance: float | None = None):
    """Bars of `metric` per held-out domain and method, zero-shot first; one panel per protocol and gallery.

    results: rows of `evaluate`. A bar is the mean over seeds, its whisker reaches from the least to the best.
    chance: a number for a dashed line.
    """
    known = list(METHOD_COLOURS)
    methods = sorted(set(results["method"]), key=lambda m: (known.index(m) if m in known else len(known), m))
    others = [m for m in methods if m not in known]
    palette = METHOD_COLOURS | dict(zip(others, seaborn.color_palette("Set2", len(others)).as_hex()))
    domains = list(dict.fromkeys(results["unseen_domain"]))
    by_case = results.groupby(["protocol", "gallery"])
    cases = sorted(by_case, key=lambda case: (case[0][0], case[0][1] == "mixed"))
    figure = NotebookFigure(figsize=(WIDTH if len(cases) > 1 else WIDTH * 0.75, 2.8), layout="constrained")
    axes = figure.subplots(1, len(cases), sharey=True, squeeze=False)[0]
    width = 0.8 / len(methods)
    for ax, ((protocol, gallery), rows) in zip(axes, cases):
        for i, method in enumerate(methods):
            seeds = rows[rows["method"] == method].groupby("unseen_domain")[metric]
            low, mean, high = seeds.agg(["min", "mean", "max"]).reindex(domains).to_numpy().T
            bars = ax.bar(
                np.arange(len(domains)) + (i - (len(methods) - 1) / 2) * width,
                mean,
                width * 0.9,
                yerr=[mean - low, high - mean] if (high > low).any() else None,
                label=method,
                color=palette[method],
                capsize=2,
                error_kw=dict(lw=0.9, ecolor=INK, capthick=0.9),
            )
            if len(cases) * len(domains) * len(methods) <= 18:
                ax.bar_label(bars, fmt="%.3f", fontsize=6, padding=2)
        ax.set(title=f"{protocol}, {gallery} gallery", xlabel="held-out domain")
        ax.set_xticks(range(len(domains)), [short(name) for name in domains])
        ax.set_xlim(-0.6, len(domains) - 0.4)
        ax.margins(y=0.09)  # room for the labels
        if chance is not None:
            ax.axhline(chance, color=INK, lw=0.8, ls=(0, (4, 3)), label="chance")
    axes[0].set_ylabel(metric)
    handles = dict(zip(*axes[0].get_legend_handles_labels()[::-1]))
    names = [*methods, *(["chance"] if chance is not None else [])]
    figure.legend([handles[x] for x in names], names, loc="outside lower center", ncols=len(names))
    return figure


@styled
def results_dots(table: pd.DataFrame, protocol: str = "UCDR", gallery: str = "unseen", metric: str = "mAP@200"):
    """Every run as a dot and the mean of the seeds as a line: one panel per held-out domain, one row per method.

    table: rows of a grid (`prosutils.grid`). Methods are in the order of their mean over the domains; all panels are
    equally wide in `metric`.
    """
    mean = summary(table, protocol, gallery, metric)[0]
    rows = table[(table.protocol == protocol) & (table.gallery == gallery)]
    domains, methods = [name for name in mean.columns if name != "mean"], list(mean.index)
    figure = NotebookFigure(figsize=(WIDTH, 0.9 + 0.24 * len(methods)), layout="constrained")
    axes = figure.subplots(1, len(domains), sharey=True, squeeze=False)[0]
    colours = {name: METHOD_COLOURS.get(name, FLAME if name.startswith("ProS") else BLUE) for name in methods}
    ends = rows.groupby("unseen_domain")[metric].agg(["min", "max"])
    span = max(0.06, (ends["max"] - ends["min"]).max() * 1.15)  # one scale: a length means the same everywhere
    for ax, domain in zip(axes, domains):
        here = rows[rows.unseen_domain == domain]
        seaborn.stripplot(
            here,
            x=metric,
            y="method",
            order=methods,
            hue="method",
            palette=colours,
            size=4,
            alpha=0.8,
            jitter=False,
            legend=False,
            ax=ax,
        )
        place = np.arange(len(methods))
        ax.vlines(mean.loc[methods, domain], place - 0.32, place + 0.32, INK, lw=1.2)
        if "Zero-shot CLIP" in methods:
            ax.axvline(mean.loc["Zero-shot CLIP", domain], color=FAINT, lw=1, zorder=0)
        middle = ends.loc[domain].mean()
        ax.set(title=domain, ylabel="", xlabel=metric, xlim=(middle - span / 2, middle + span / 2))
    for label in axes[0].get_yticklabels():
        label.set(**emphasis(label.get_text()))
    return figure


@styled
def change_dots(
    table: pd.DataFrame,
    reference: str,
    spread: float | None = None,
    protocol: str = "UCDR",
    gallery: str = "unseen",
    metric: str = "mAP@200",
):
    """What each method of a table changes against the method `reference`, run by run: a dot per held-out domain and
    seed, a line at the mean, which the label has as a number; one row per method, in the order of the means.

    table: rows of a grid; a run is compared with the reference's of the same domain and seed. spread: the change that
    another seed alone makes in one run; shaded are ± so much, and darker ± what is left of it in the mean of all runs.
    Raises UserError where no run can be compared.
    """
    rows = table[(table.protocol == protocol) & (table.gallery == gallery)]
    runs = rows.pivot_table(index=["unseen_domain", "seed"], columns="method", values=metric)
    if reference not in runs or runs.shape[1] < 2:
        raise UserError(f"There is nothing to compare with {reference!r}: the table has {', '.join(runs.columns)}.")
    change = runs.drop(columns=reference).sub(runs[reference], axis=0).dropna(how="all", axis=1)
    change.columns = [f"{name.removeprefix(f'{reference}, ')}  {change[name].mean():+.3f}" for name in change]
    mean = change.mean().sort_values()
    long = change.melt(ignore_index=False, var_name="method", value_name="change").dropna().reset_index()
    figure = NotebookFigure(figsize=(0.8 * WIDTH, 0.8 + 0.24 * len(mean)), layout="constrained")
    ax = figure.subplots()
    for reach in (spread, spread / change.count().max() ** 0.5) if spread else ():
        ax.axvspan(-reach, reach, color=FAINT, alpha=0.25, lw=0, zorder=0)
    ax.axvline(0, color=FAINT, lw=1, zorder=0)
    seaborn.stripplot(
        long,
        x="change",
        y="method",
        order=mean.index,
        hue="unseen_domain",
        size=5,
        alpha=0.9,
        jitter=False,
        palette=domain_colours(sorted(set(long.unseen_domain))),
        ax=ax,
    )
    place = np.arange(len(mean))
    ax.vlines(mean, place - 0.34, place + 0.34, INK, lw=1.4)
    ax.set(ylabel="", xlabel=f"change of {metric} against {reference}")
    ax.legend(title="held out", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
