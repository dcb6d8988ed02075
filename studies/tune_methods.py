"""The same budget for every method: three rates, chosen on validation classes.

    python studies/tune_methods.py --jobs 2          # goes on where it stopped; figures/search_methods.csv

All rates of the preset `mini` are multiplied by a third, one and three (full fine-tuning, which moves the whole
network: by a hundredth, a thirtieth and a tenth, and as the last was its best, by a third and one too).
`val` is that of search_mini.py: queries of the held-out domain and of validation classes. `prosutils.grid.RATES` holds
the best factor, unless it beats 1 by less than seeds differ (0.003).
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
from prosutils.grid import with_rates
from prosutils.tables import write_table

FACTORS = {
    method: (1 / 3, 1.0, 3.0) for method in ("heads", "coop-heads", "vpt", "vpt-deep", "static", "depro", "pros")
} | {"full": (0.01, 1 / 30, 0.1, 1 / 3, 1.0)}
TRIAL = ["method", "factor", "unseen_domain"]


def trial(method, factor, unseen_domain):
    config = with_rates(load_preset("mini", unseen_domain=unseen_domain), factor)
    return dict(zip(TRIAL, (method, round(factor, 4), unseen_domain))) | measure(method, config)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=FACTORS, default=list(FACTORS))
    parser.add_argument("--domains", nargs="+", default=["pixel"])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--table", type=Path, default=Path("figures/search_methods.csv"))
    args = parser.parse_args()

    table = pd.read_csv(args.table) if args.table.exists() else pd.DataFrame(columns=TRIAL)
    done = set(table[TRIAL].itertuples(index=False, name=None))
    left = [
        (method, factor, domain)
        for domain in args.domains
        for method in args.methods
        for factor in FACTORS[method]
        if (method, round(factor, 4), domain) not in done
    ]
    threads = max(1, torch.get_num_threads() // args.jobs)
    with ProcessPoolExecutor(
        args.jobs, multiprocessing.get_context("spawn"), torch.set_num_threads, (threads,)
    ) as pool:
        for run in tqdm(as_completed([pool.submit(trial, *case) for case in left]), total=len(left), unit=" trials"):
            table = pd.concat([table, pd.DataFrame([run.result()])]).sort_values(TRIAL, ignore_index=True)
            write_table(table, args.table)
    mean = table.pivot_table(index="method", columns="factor", values="val").round(4)
    print(mean.to_string(), "\n\nbest:", mean.idxmax(axis=1).to_dict())


if __name__ == "__main__":
    main()
