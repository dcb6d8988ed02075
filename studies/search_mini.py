"""Try hyper-parameters of the preset `mini` on validation classes; appends rows to figures/search_mini.csv.

    python studies/search_mini.py pros stage2.lr=1e-3 stage2.epochs=6      # the preset with these changes
    python studies/search_mini.py heads stage2.lr_heads=3e-3 --unseen-domain pixel

`val` is mAP@200 for queries of the held-out domain and of validation classes, ranked against the emoji of validation
classes: no drawing of a test class takes part in the choice. `val_sources` is the same for queries of the training
domains, which is what a run selects its epoch by. A trial that is in the table already is not run again.
"""

import argparse
import time
from pathlib import Path

import pandas as pd
import tyro

from prosutils import METHODS, Config, load_preset
from prosutils.experiment import prepare
from prosutils.files import only_one
from prosutils.tables import write_table
from prosutils.training import build_model, mean_average_precision, train

TRIAL = ["method", "settings", "unseen_domain", "seed"]


def measure(method, config):
    """Train one trial and measure it: what the table says of it."""
    run = prepare(config, progress=False)
    split, data = run.split, run.data
    model, start = build_model(method, run.clip, split, run.config), time.time()
    history = train(model, split, progress=False) if model.stages else pd.DataFrame(columns=["loss", "images"])
    seconds = round(time.time() - start)
    query = data.rows([split.unseen_domain], split.val_classes)
    return dict(
        val=mean_average_precision(model, data, query, split.val_gallery),
        val_sources=mean_average_precision(model, data, split.val_query, split.val_gallery),
        loss=history.loss.iloc[-1].item() if len(history) else None,
        images=history.images.iloc[-1].item() if len(history) else 0,
        seconds=seconds,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("settings", nargs="*", help="NAME=VALUE: a flag of `prosutils train`, without its dashes")
    parser.add_argument("--unseen-domain", default="pixel")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", type=Path, default=Path("figures/search_mini.csv"))
    args = parser.parse_args()
    trial = dict(zip(TRIAL, (args.method, " ".join(sorted(args.settings)), args.unseen_domain, args.seed), strict=True))

    known = pd.read_csv(args.table, keep_default_na=False) if args.table.exists() else pd.DataFrame(columns=TRIAL)
    if (known[TRIAL].astype(str) == pd.Series(trial).astype(str)).all(axis=1).any():
        return print("Already in the table:", trial)
    usual = load_preset("mini", unseen_domain=args.unseen_domain, seed=args.seed)
    config = tyro.cli(Config, default=usual, args=[f"--{setting}" for setting in args.settings])
    row = trial | measure(args.method, config)
    print({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}, flush=True)
    with only_one(args.table):  # two searches may run side by side
        known = [pd.read_csv(args.table, keep_default_na=False)] if args.table.exists() else []
        write_table(pd.concat([*known, pd.DataFrame([row])]), args.table)


if __name__ == "__main__":
    main()
