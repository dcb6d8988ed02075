"""Every method on every held-out domain of PictoNet, over seeds: figures/results_pictonet.csv and a table for the README.

    python benchmarks/pictonet_results.py --seeds 0 1 2          # goes on where an earlier call stopped

Runs are kept in artifacts/runs and results added row by row. Without anything to train it prints the table of what is
there: mAP@200 of UCDR, unseen gallery, mean over the seeds and, from two seeds on, their standard deviation.
"""
import argparse
from pathlib import Path

import pandas as pd

from prosutils import load_preset
from prosutils.baselines import METHODS
from prosutils.experiment import add_results, prepare
from prosutils.pictonet import GALLERY_DOMAIN, PICTONET_DOMAINS

HELD_OUT = [domain for domain in PICTONET_DOMAINS if domain != GALLERY_DOMAIN]


def measured(path, case):
    """Whether the results at `path` hold the four rows of a case."""
    if not path.exists():
        return False
    table = pd.read_csv(path)
    return (table[list(case)] == pd.Series(case)).all(axis=1).sum() == 4


def markdown(table):
    """Mean (and spread) of UCDR's mAP@200 per method and held-out domain, as a Markdown table."""
    ucdr = table[(table.protocol == "UCDR") & (table.gallery == "unseen")]
    grouped = ucdr.groupby(["method", "unseen_domain"])["mAP@200"]
    mean, spread = grouped.mean().unstack(), grouped.std().unstack()
    mean["mean"] = mean.mean(axis=1)
    lines = ["| method | " + " | ".join(mean.columns) + " |", "|---" * (len(mean.columns) + 1) + "|"]
    for method, row in mean.sort_values("mean").iterrows():
        cells = [f"{value:.3f}" + (f" ± {spread.loc[method].get(name):.3f}" if pd.notna(spread.loc[method].get(name)) else "")
                 for name, value in row.items()]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="*", default=["zero-shot", "heads", "vpt", "pros"])
    parser.add_argument("--domains", nargs="*", default=HELD_OUT)
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"))
    parser.add_argument("--table", type=Path, default=Path("figures/results_pictonet.csv"))
    args = parser.parse_args()
    names = {key: kind.method for key, kind in METHODS.items()}
    for seed in args.seeds:
        for domain in args.domains:
            for method in args.methods:
                if method == "zero-shot" and seed != args.seeds[0]:
                    continue                                            # nothing in it is random
                if measured(args.table, dict(method=names[method], unseen_domain=domain, seed=seed)):
                    continue
                run = prepare(load_preset("mini", unseen_domain=domain, seed=seed), artifacts=args.artifacts, progress=False)
                model, history = run.fit(method, progress=False)
                images = int(history.images.iloc[-1]) if len(history) else 0
                rows = run.evaluate(model).assign(preset="mini", images=images)
                add_results(rows, args.table)
                print(f"{names[method]}, {domain}, seed {seed}: {rows['mAP@200'].iloc[0]:.3f} after {images} images", flush=True)
    print(markdown(pd.read_csv(args.table)))


if __name__ == "__main__":
    main()
