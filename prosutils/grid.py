"""Grids of runs: every baseline, every ablation, every switch, over held-out domains and seeds, into one table."""

import dataclasses
import multiprocessing
import shutil
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from tqdm import tqdm

from .config import Config, load_preset
from .evaluation import evaluate_all
from .experiment import fit_batches, prepare
from .files import UserError
from .methods import METHODS, import_methods
from .tables import write_table

#: What one row of the table measured; a case is done when its rows are there.
CASE = ["preset", "case", "unseen_domain", "seed"]


class Training(NamedTuple):
    """What is trained: cases with the same training share a model."""

    method: str
    config: Config
    oracle: bool  # the held-out domain's images of seen classes train too


@dataclass(frozen=True)
class Case:
    """One run of a grid. `settings` replace those of the preset, `at_test` are switches that only the ranking knows."""

    method: str
    settings: dict = field(default_factory=dict)
    at_test: dict = field(default_factory=dict)
    oracle: bool = False  # see Training
    rates: float = 1.0  # factor of all learning rates


#: Nothing that trains here takes part in ranking images by images.
SAME_WITH_EVERY_SEED = ("zero-shot", "coop")
#: Factor of the preset's rates where it is not 1, by the same budget for every method (studies/tune_methods.py).
RATES = {"full": 0.1, "static": 1 / 3}
BASELINES = {
    METHODS[key].label: Case(key, rates=RATES.get(key, 1.0))
    for key in ("zero-shot", "heads", "coop", "coop-heads", "vpt", "vpt-deep", "static", "full", "depro", "pros")
}
PROS = {"ProS": BASELINES["ProS"]}  # every table holds what it compares with
ABLATIONS = (
    PROS
    | {
        METHODS[key].label: Case(key)
        for key in ("pros-no-mask", "pros-removed-units", "pros-domain-units", "pros-class-units", "pros-no-units")
    }
    | {
        "ProS, random units": Case("pros", dict(stage1=dict(epochs=0))),
        "ProS, heads frozen": Case("pros", dict(stage1=dict(lr_heads=0.0), stage2=dict(lr_heads=0.0))),
        "ProS, simulator frozen": Case("pros", dict(stage2=dict(lr_simulator=0.0))),
    }
    | {f"ProS, simulator of depth {depth}": Case("pros", dict(simulator_layers=depth)) for depth in (1, 2, 3, 4)}
)
ORACLES = {
    f"{METHODS[key].label}, held-out domain trained too": Case(key, oracle=True, rates=RATES.get(key, 1.0))
    for key in ("heads", "full", "pros")
}
SWITCHES = (
    PROS
    | {
        f"ProS, {name}=released": Case("pros", at_test={name: "released"})
        for name in ("similarity", "average_precision")
    }
    | {
        f"ProS, {name}=released": Case("pros", dict(switches={name: "released"}))
        for name in ("read_out", "dropout", "normalisation", "selection", "polarity")
    }
    | {
        "ProS, all switches released": Case(
            "pros",
            dict(
                switches={
                    name: "released"
                    for name in (
                        "read_out",
                        "dropout",
                        "normalisation",
                        "similarity",
                        "average_precision",
                        "selection",
                        "polarity",
                    )
                }
            ),
        )
    }
)
#: DePro's batches: 3 classes x 4 images x 5 domains
THREE_CLASSES = dict(stage2=dict(batch_size=60, classes_per_batch=3))
FOLLOWER = (
    {f"{METHODS[key].label}, batches of 3 classes": Case(key, THREE_CLASSES) for key in ("heads", "pros", "depro")}
    | {METHODS[key].label: Case(key) for key in ("depro-no-triplet", "depro-norms-frozen")}
    | {"DePro, read_out=released": Case("depro", dict(switches=dict(read_out="released")))}
)
GRIDS = {"baselines": BASELINES, "ablations": ABLATIONS, "oracles": ORACLES, "switches": SWITCHES, "follower": FOLLOWER}


def run_grid(names, preset, domains, seeds, table, artifacts, jobs=1, settings=None, data=None, cases=None, imports=()):
    """Measure every case of the grids `names` (or those named in `cases`) that `table` lacks; returns the table.

    names: of grids, or keys of methods, each a row; preset: its name; settings: {name: value} for all cases
    (`load_preset`); data: a folder, None for PictoNet; imports: files that register methods (`import_methods`);
    jobs: runs at a time, each with its share of the cores. A row is added to `table` (a CSV file) as soon as it is
    measured, so that an interrupted grid goes on where it stopped. Trained models are not kept; a first stage that
    several cases share is trained once.
    """
    import_methods(imports)
    chosen = choose(names, cases)
    wanted = [
        (name, domain, seed)
        for seed in seeds
        for domain in domains
        for name in chosen
        if seed == seeds[0] or find_case(name).method not in SAME_WITH_EVERY_SEED
    ]
    done = measured_cases(table, preset)
    left = [case for case in wanted if case not in done]
    bar = tqdm(total=len(wanted), initial=len(wanted) - len(left), desc="Grid", unit=" cases")
    threads = max(1, torch.get_num_threads() // jobs)
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), begin_worker, (threads, imports)) as pool:
        runs = {
            pool.submit(measure, training, names, Path(artifacts) / "grid", data): names
            for training, names in by_training(left, preset, settings or {}).items()
        }
        try:
            for run in as_completed(runs):
                add_rows(run.result(), table)
                bar.set_postfix_str(run.result().case.iloc[0])
                bar.update(len(runs[run]))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    bar.close()
    shutil.rmtree(Path(artifacts) / "grid" / "stage1", ignore_errors=True)
    return pd.read_csv(table)


def begin_worker(threads, imports):
    """What a process of `run_grid` does first: its share of the cores, and the methods of one's own."""
    torch.set_num_threads(threads)
    import_methods(imports)


def choose(names, cases=None):
    """Names of the cases of some grids or methods, all or those named, each once. UserError for unknown names."""
    check_known("case", cases or [], {case for grid in GRIDS.values() for case in grid} | set(labels()))
    return list(dict.fromkeys(case for name in names for case in find_grid(name) if not cases or case in cases))


def find_grid(name):
    """{case: Case} of the grid `name`, or of the one method with this key. UserError for neither."""
    check_known("grid", [name], {*GRIDS, *METHODS})
    if name in GRIDS:
        return GRIDS[name]
    return {METHODS[name].label: Case(name, rates=RATES.get(name, 1.0))}


def check_known(kind, names, known):
    unknown = [repr(name) for name in names if name not in known]
    if unknown:
        raise UserError(f"Unknown {kind} {', '.join(unknown)}. Known: {', '.join(sorted(known))}.")


def labels():
    """{label: key} of the registered methods."""
    return {kind.label: key for key, kind in METHODS.items()}


def find_case(name):
    """The Case of a grid's row or of a method's label."""
    for grid in GRIDS.values():
        if name in grid:
            return grid[name]
    return find_grid(labels()[name])[name]


def measured_cases(path, preset):
    """{(case, unseen domain, seed)} that the table holds."""
    if not Path(path).exists():
        return set()
    table = pd.read_csv(path)
    return set(table[table.preset == preset][CASE[1:]].itertuples(index=False, name=None))


def add_rows(rows, path):
    """Add rows to the table in one step, sorted, so that the file depends on what was measured and not on when."""
    if Path(path).exists():
        rows = pd.concat([pd.read_csv(path), rows])
    write_table(rows.sort_values([*CASE, "method", "protocol", "gallery"], ignore_index=True), path)


def by_training(cases, preset, settings):
    """{Training: names of the cases that it answers}: switches that only the ranking knows share one model. What trains
    longest comes first: begun last, it would leave the other processes idle."""
    groups = {}
    for name, domain, seed in cases:
        case = find_case(name)
        config = load_preset(preset, **merged(settings, case.settings | dict(unseen_domain=domain, seed=seed)))
        groups.setdefault(Training(case.method, with_rates(config, case.rates), case.oracle), []).append(name)
    return dict(sorted(groups.items(), key=lambda group: -expected_length(group[0])))


def expected_length(training):
    """What orders trainings by their length: the depth of the simulator. DePro reads each image twice; it comes second,
    so that the first two runs do not begin with one first stage, for which one of them would wait."""
    return 3.5 if training.method == "depro" else training.config.simulator_layers


def with_rates(config, factor):
    """A configuration with all learning rates multiplied."""

    def scaled(stage):
        return dataclasses.replace(
            stage, **{name: getattr(stage, name) * factor for name in ("lr", "lr_simulator", "lr_heads")}
        )

    return dataclasses.replace(config, stage1=scaled(config.stage1), stage2=scaled(config.stage2))


def measure(training, names, artifacts, data):
    """Train once and measure the cases `names`: their rows, with the images seen."""
    config = training.config
    folder = artifacts / f"{names[0]}-{config.unseen_domain}-{config.seed}".replace(" ", "-")
    run = prepare(config, data, artifacts=folder, progress=False)
    if training.oracle:
        # UdCDR asks with images that would have been trained on
        run.splits = [with_held_out_domain(split) for split in run.splits if split.protocol != "UdCDR"]
        run.config = fit_batches(run.config, len(run.split.train_domains))
    model, history = run.fit(training.method, progress=False, shared=artifacts / "stage1")
    rows = []
    for name in names:
        about = dict(
            preset=config.preset,
            case=name,
            seed=config.seed,
            images=int(history.images.iloc[-1]) if len(history) else 0,
        )
        switches = dataclasses.replace(run.config.switches, **find_case(name).at_test)
        for part in getattr(model, "parts", [None]):  # DePro: one training, three readings
            label = name
            if part:
                model.part, label = part, f"{name} ({part})"
            rows.append(evaluate_all(model, run.splits, switches, extra=about | dict(method=label)))
    shutil.rmtree(folder, ignore_errors=True)
    return pd.concat(rows)


def merged(first, second):
    """Two settings of `load_preset`, the second winning; nested parts are merged too."""
    both = {
        key: merged(first[key], second[key]) for key in first.keys() & second.keys() if isinstance(first[key], dict)
    }
    return first | second | both


def with_held_out_domain(split):
    """The split with the held-out domain's images of seen classes among the training images: the ceiling of what
    training can bring. Queries and gallery stay as they are."""
    data = split.data
    extra = data.rows([split.unseen_domain], split.seen_classes)
    domains = {*split.train_domains, split.unseen_domain}
    return dataclasses.replace(
        split,
        train=torch.cat([split.train, extra]).sort().values,
        train_domains=tuple(name for name in data.domains if name in domains),
    )


def summary(table, protocol="UCDR", gallery="unseen", metric="mAP@200"):
    """Mean and standard deviation over the seeds: one row per method, one column per held-out domain, and `mean`."""
    part = table[(table.protocol == protocol) & (table.gallery == gallery)]
    by_case = part.groupby(["method", "unseen_domain"])[metric]
    mean, spread = by_case.mean().unstack(), by_case.std().unstack()
    mean["mean"] = mean.mean(axis=1)
    return mean.sort_values("mean"), spread


def markdown(table, **which):
    """`summary` as a Markdown table: mean ± standard deviation where there are two seeds or more, and the images that
    a run trains on (mean of the runs)."""
    mean, spread = summary(table, **which)
    images = table.groupby("method").images.mean()
    lines = ["| method | " + " | ".join(mean.columns) + " | images |", "|---" * (len(mean.columns) + 2) + "|"]
    for method, row in mean.iterrows():
        deviation = spread.loc[method]
        cells = [
            f"{value:.3f}" + (f" ± {deviation[name]:.3f}" if pd.notna(deviation.get(name)) else "")
            for name, value in row.items()
        ]
        lines.append(f"| {method} | " + " | ".join(cells) + f" | {images[method]:,.0f} |")
    return "\n".join(lines)
