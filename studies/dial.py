"""What becomes of every method as the held-out technique grows stronger: chalk from 0 (the near tier) to 1.

    python studies/dial.py                    # a few minutes on two cores, no training; figures/dial.csv

The queries are UCDR's: drawings of unseen classes in chalk, drawn anew at each strength. The gallery, emoji, stays. The
models are those that come with the package, trained with chalk held out and the other techniques at the strengths of
the preset `mini`: they never meet chalk at any strength, and what they meet is as strong as ever.
"""

import argparse
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from prosutils import embed, embed_rows, load_preset, prepare
from prosutils.metrics import class_bootstrap, query_metrics
from prosutils.show.strengths import STRENGTHS, drawn_at
from prosutils.tables import write_table

CONTROL = "Heads only"
TABLE = Path(__file__).parents[1] / "figures" / "dial.csv"


def shipped_models(artifacts: Path):
    """(Experiment, {method: model}) of the preset mini with chalk held out; ProS in both settings of its heads."""
    run = prepare(load_preset("mini"), artifacts=artifacts, progress=False)
    released = prepare(load_preset("mini", switches=dict(heads="released")), artifacts=artifacts, progress=False)
    models = {
        "Zero-shot CLIP": run.fit("zero-shot")[0],
        CONTROL: run.fit("heads", shipped=True, progress=False)[0],
        "ProS": run.fit("pros", shipped=True, progress=False)[0],
        "ProS + heads": released.fit("pros", shipped=True, progress=False)[0],
    }
    return run, models


def measure(run, models: dict, strengths: tuple[float, ...]) -> pd.DataFrame:
    """One row per method and strength: the mean AP, and its difference from the control with an interval over classes."""
    data, split, rows = run.data, run.split, []
    labels, gallery_labels = data.class_index[split.query], data.class_index[split.gallery]
    galleries = {name: embed_rows(model, data, split.gallery) for name, model in models.items()}
    for strength in tqdm(strengths, unit=" strengths"):
        pictures = drawn_at(data, split.query, strength)
        ap = {
            name: query_metrics(embed(model, pictures), labels, galleries[name], gallery_labels)["AP@200"]
            for name, model in models.items()
        }
        for name, values in ap.items():
            difference = class_bootstrap(values - ap[CONTROL], labels)
            rows.append(
                {
                    "technique": split.unseen_domain,
                    "method": name,
                    "strength": strength,
                    "queries": len(labels),
                    "classes": len(labels.unique()),
                    "gallery_size": len(gallery_labels),
                    "seed": run.config.seed,
                    "mAP@200": round(float(values.double().mean()), 4),
                    "minus heads only": round(difference.mean, 4),
                    "low": round(difference.low, 4),
                    "high": round(difference.high, 4),
                }
            )
    return pd.DataFrame(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strengths", nargs="+", type=float, default=STRENGTHS, help="0 (near) to 1")
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"))
    args = parser.parse_args()
    table = measure(*shipped_models(args.artifacts), tuple(args.strengths))
    write_table(table, args.table)
    print(table.pivot(index="strength", columns="method", values="mAP@200").round(3).to_string())


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
