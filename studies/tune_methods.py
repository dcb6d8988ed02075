"""The same budget for every method: so many sets of learning rates, chosen on validation classes.

    python studies/tune_methods.py --jobs 2                 # goes on where it stopped; figures/search_rates.csv
    python studies/tune_methods.py --preset mini-near       # the near tier, pixel held out, full length

A trial of the preset `mini` takes a quarter of its epochs of stage 2, with every far domain held out in turn. `val` is
that of search_mini.py: queries of the held-out domain and of validation classes, ranked against the emoji of validation
classes. `prosutils.grid.RATES` holds, for each method, the rates with the best mean.
"""

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import pandas as pd
import torch
from search_mini import measure
from tqdm import tqdm

from prosutils import load_preset
from prosutils.grid import begin_worker
from prosutils.tables import write_table

TRIAL = ["preset", "method", "lr", "lr_simulator", "lr_heads", "unseen_domain"]
GROUPS = TRIAL[2:5]
SIMULATE = ("depro", "pros")  # methods with a simulator
NONE = 0.0  # a group that the method does not have
#: preset: {method: sets of rates (prompts and the like, simulator, heads)}
RATES = {
    "mini": {
        "heads": [(NONE, NONE, rate) for rate in (1e-3, 3e-3, 1e-2, 3e-2)],
        "static": [(lr, NONE, heads) for lr in (3e-4, 3e-3) for heads in (3e-3, 1e-2)],
        "full": [(lr, NONE, 1e-3) for lr in (3e-5, 1e-4, 3e-4, 1e-3)],
        "pros": [(3e-4, 1e-3, NONE)] + [(lr, 3e-3, NONE) for lr in (3e-4, 1e-3, 3e-3)],
        "ucdr-adapter": [(3e-4, simulator, heads) for simulator in (1e-3, 3e-3) for heads in (3e-3, 1e-2)],
        "mail": [(lr, NONE, NONE) for lr in (1e-4, 3e-4, 1e-3, 3e-3)],
        "mail-heads": [(lr, NONE, heads) for lr in (3e-4, 3e-3) for heads in (3e-3, 1e-2)],
    },
    "mini-near": {
        method: [
            tuple(round(factor * rate, 6) for rate in (3e-3 * (method != "heads"), 1e-3 * (method in SIMULATE), 1e-2))
            for factor in ((0.01, 1 / 30, 0.1, 1 / 3, 1.0) if method == "full" else (1 / 3, 1.0, 3.0))
        ]
        for method in ("heads", "coop-heads", "vpt", "vpt-deep", "static", "full", "depro", "pros")
    },
}
#: Epochs of a trial's second stage, and those in which the rates fall: the shape of the preset's own.
LENGTH = {"mini": dict(epochs=3, decay_epochs=6, patience=3), "mini-near": {}}
DOMAINS = {"mini": ("chalk", "stamp", "blueprint", "cross_stitch", "mosaic"), "mini-near": ("pixel",)}


def trial(preset, method, *rates_and_domain):
    *rates, domain = rates_and_domain
    stage2 = dict(zip(GROUPS, rates, strict=True)) | LENGTH[preset]
    config = load_preset(preset, unseen_domain=domain, stage2=stage2)
    return dict(zip(TRIAL, (preset, method, *rates, domain), strict=True)) | measure(method, config)


def read(path):
    return pd.read_csv(path) if path.exists() else pd.DataFrame(columns=TRIAL)


def best_rates(table, preset):
    """{method: its rates with the best mean over the held-out domains}, of the trials of one preset."""
    mean = table[table.preset == preset].groupby(["method", *GROUPS]).val.mean()
    return {method: best[1:] for method, best in mean.groupby("method").idxmax().items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=RATES, default="mini")
    parser.add_argument("--methods", nargs="+", help="default: all of the preset's")
    parser.add_argument("--domains", nargs="+", help="held out in turn; default: all of the far tier")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--table", type=Path, default=Path("figures/search_rates.csv"))
    args = parser.parse_args()

    done = set(read(args.table)[TRIAL].itertuples(index=False, name=None))
    wanted = [
        (args.preset, method, *rates, domain)
        for method in args.methods or RATES[args.preset]
        for rates in RATES[args.preset][method]
        for domain in args.domains or DOMAINS[args.preset]
    ]
    left = [case for case in wanted if case not in done]
    threads = max(1, torch.get_num_threads() // args.jobs)
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn"), begin_worker, (threads, ())) as pool:
        for run in tqdm(as_completed([pool.submit(trial, *case) for case in left]), total=len(left), unit=" trials"):
            table = pd.concat([read(args.table), pd.DataFrame([run.result()])]).sort_values(TRIAL, ignore_index=True)
            write_table(table, args.table)
    table = read(args.table)
    print(table[table.preset == args.preset].groupby(["method", *GROUPS]).val.agg(["mean", "count"]).round(4))
    print("best:", best_rates(table, args.preset))


if __name__ == "__main__":
    main()
