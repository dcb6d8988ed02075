"""Draws the README's figures anew: python figures/draw.py [banner] [pros] [sheet] [far_sheet] [dial] [strengths] [results]

banner.png: a chalk drawing and what it retrieves before and after training (by the ProS of `make tutorial`, or the one
that ships). pros.png: the method. pictonet_sheet.png, pictonet_far_sheet.png: the two tiers of the benchmark.
pictonet_dial.png: the far tier from weak to strong. dial_curves.png: what becomes of every method meanwhile (dial.csv).
results_baselines.png: the runs of results_baselines.csv.
"""

import argparse
from pathlib import Path

import pandas as pd

from prosutils import load_preset, pictonet, rank
from prosutils.evaluation import embed_rows
from prosutils.experiment import prepare
from prosutils.metrics import query_metrics
from prosutils.show import plots
from prosutils.show.strengths import strength_curves

HERE = Path(__file__).parent


class Large:
    """Laid-out drawings of the far tier, drawn at 224 pixels when they are shown."""

    def __init__(self, data):
        self.data, far = data, dict(zip(pictonet.PICTONET_DOMAINS, pictonet.tier_domains("far"), strict=True))
        self.records = {
            (far[record["domain"]], record["class"], f"{record['set']}_{record['icon']}"): record
            for record in pictonet.manifest()
        }

    def __getattr__(self, name):
        return getattr(self.data, name)

    def load(self, row):
        path = self.data.paths[row]
        return pictonet.load_drawing(self.records[path.parts[-3], path.parts[-2], path.stem], 224, "far")


def banner(artifacts):
    """One drawing before and after training: of all queries one in twenty gains more than this one."""
    run = prepare(load_preset("mini"), artifacts=artifacts)
    split, data = run.split, run.data
    labels, gallery_labels = data.class_index[split.query], data.class_index[split.gallery]
    precision, ranked = {}, {}
    for method in ("zero-shot", "pros"):
        model = run.fit(method, shipped=True)[0]
        query, gallery = (embed_rows(model, data, rows) for rows in (split.query, split.gallery))
        precision[method] = query_metrics(query, labels, gallery, gallery_labels, ap_norm="relevant")["AP@200"]
        ranked[model.label] = split.gallery[rank(query, gallery, k=8)[1]]
    gain = precision["pros"] - precision["zero-shot"]
    shown = int(gain.argsort(descending=True, stable=True)[len(gain) // 20])
    row = int(split.query[shown])
    before, after = precision["zero-shot"].mean(), precision["pros"].mean()
    subtitle = (
        "Query: a chalk drawing. Neither chalk nor its class was trained on. "
        f"mAP@200 of all {len(gain)} queries: {before:.3f}, after training {after:.3f}."
    )
    figure = plots.benchmark_banner(
        Large(data), row, {name: rows[shown] for name, rows in ranked.items()}, subtitle=subtitle
    )
    plots.save(figure, HERE / "banner.png")


def pros(artifacts):
    """ProS in its second stage: what enters which tower, what trains."""
    plots.save(plots.token_sequence(2), HERE / "pros.png")


def sheet(artifacts):
    """Two dozen classes of the benchmark in all domains."""
    pictonet.contact_sheet().save(HERE / "pictonet_sheet.png", optimize=True)


def far_sheet(artifacts):
    """The same classes in the techniques of the far tier; 32 levels per colour make the file 40 % smaller."""
    picture = pictonet.contact_sheet(tier="far").point(lambda value: min((value + 4) // 8 * 8, 255))
    picture.save(HERE / "pictonet_far_sheet.png", optimize=True)


def dial(artifacts):
    """A drawing of every technique, from the near tier to the full strength."""
    pictonet.dial_sheet().save(HERE / "pictonet_dial.png", optimize=True)


def strengths(artifacts):
    """mAP of every method against the strength of chalk, with a drawing of a bank at each strength."""
    data = prepare(load_preset("mini"), artifacts=artifacts, progress=False).data
    figure = strength_curves(pd.read_csv(HERE / "dial.csv"), data, int(data.rows(["chalk"], ["bank"])[0]))
    plots.save(figure, HERE / "dial_curves.png")


def results(artifacts):
    """Every run of the table of baselines."""
    plots.save(plots.results_dots(pd.read_csv(HERE / "results_baselines.csv")), HERE / "results_baselines.png")


FIGURES = {
    "banner": banner,
    "pros": pros,
    "sheet": sheet,
    "far_sheet": far_sheet,
    "dial": dial,
    "strengths": strengths,
    "results": results,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=f"{', '.join(FIGURES)} (default: all)")
    parser.add_argument("--artifacts", type=Path, default=HERE.parent / "artifacts")
    args = parser.parse_args()
    for name in args.figures or FIGURES:
        if name not in FIGURES:
            parser.error(f"unknown figure {name}; known: {', '.join(FIGURES)}")
        FIGURES[name](args.artifacts)
        print(f"Drawn: {name}")


if __name__ == "__main__":
    main()
