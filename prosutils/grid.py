"""Grids of runs: every baseline, every ablation, every switch, over held-out domains and seeds, into one table."""

import dataclasses
import multiprocessing
import shutil
import tempfile
from collections.abc import Collection, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from tqdm import tqdm

from . import pictonet
from .checkpoints import differences, flat
from .config import Config, load_preset
from .evaluation import evaluate_all
from .experiment import fit_batches, prepare
from .files import UserError, end_with_parent, refuse_unwritable
from .methods import METHODS, import_methods
from .parts import embed_rows_in_part
from .pros import ProS
from .published import benchmark_names, load_benchmark
from .splits import Split
from .tables import GRID, add_rows, read_table

#: What one row of the table measured; a case is done when its rows are there. Beside them are the preset, the settings
#: that replaced its own, and the folder.
CASE = ["case", "unseen_domain", "seed", "switches"]


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
    part: str = ""  # what is replaced at the test, of parts.PROMPTS and parts.RESTORED


#: Methods that rank images by images alike with every seed: nothing in them is trained, or nothing in the image tower.
SAME_WITH_EVERY_SEED = {key for key, kind in METHODS.items() if not kind.stages} | {"coop"}
#: {preset: {method: its own settings of stage 2}}: the best of the same number of trials for every method
#: (studies/tune_methods.py; VPT and CoOp + heads take those
#: of static prompts on the far tier); what is not here takes the preset's.
RATES: dict[str, dict[str, dict]] = {
    "mini": {"full": dict(lr=3e-4, lr_heads=1e-3)},
    "mini-near": {"static": dict(lr=1e-3, lr_heads=1e-2 / 3), "full": dict(lr=3e-4, lr_heads=1e-3)},
}
#: ProS as in the paper's Fig. 2, heads frozen, whichever setting the preset has.
PAPER = dict(switches=dict(heads="paper"))
BASELINES = {
    METHODS[key].label: Case(key)
    for key in ("zero-shot", "heads", "coop", "coop-heads", "vpt", "vpt-deep", "static", "full", "depro")
} | {  # in both settings, whichever the preset has
    "ProS": Case("pros", PAPER),
    "ProS + heads": Case("pros", dict(switches=dict(heads="released"))),
}
PROS = {"ProS": BASELINES["ProS"]}  # every table holds what it compares with
ABLATIONS = (
    PROS
    | {
        METHODS[key].label: Case(key, PAPER)
        for key in ("pros-no-mask", "pros-removed-units", "pros-domain-units", "pros-class-units", "pros-no-units")
    }
    | {
        "ProS, random units": Case("pros", PAPER | dict(stage1=dict(epochs=0))),
        "ProS, patches of its own": Case("pros", PAPER | dict(simulator_reads="own")),
        "ProS, one prompt of each kind": Case("pros", PAPER | dict(prompt_tokens=1)),
        "ProS, simulator frozen": Case("pros", PAPER | dict(stage2=dict(lr_simulator=0.0))),
    }
    | {
        f"ProS, simulator of depth {depth}": Case("pros", PAPER | dict(simulator_layers=depth))
        for depth in (1, 2, 3, 4)
    }
)
ORACLES = {
    f"{METHODS[key].label}, held-out domain trained too": Case(key, oracle=True) for key in ("heads", "full", "pros")
}
SWITCHES = (
    PROS
    | {
        f"ProS, {name}=released": Case("pros", PAPER, at_test={name: "released"})
        for name in ("similarity", "average_precision")
    }
    | {
        f"ProS, {name}=released": Case("pros", dict(switches={"heads": "paper", name: "released"}))
        for name in ("read_out", "dropout", "normalisation", "selection", "polarity")
    }
    | {
        "ProS, all switches released": Case(
            "pros",
            dict(
                switches={"heads": "released"}
                | {
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
#: What does the work: a trained ProS in both settings, read with other prompts, or with a part put back to CLIP's own.
REPLACED = {
    "another picture's prompts": "another picture's",
    "another domain's prompts": "another domain's",
    "the mean prompt": "mean",
    "no prompt": "none",
    "class token put back": "class token",
}
PARTS = (
    {setting: BASELINES[setting] for setting in ("ProS", "ProS + heads")}
    | {
        f"{setting}, {text}": dataclasses.replace(BASELINES[setting], part=part)
        for setting in ("ProS", "ProS + heads")
        for text, part in REPLACED.items()
    }
    | {"ProS + heads, heads put back": dataclasses.replace(BASELINES["ProS + heads"], part="heads")}
)
#: DePro's batches: 3 classes x 4 images x 5 domains
THREE_CLASSES = dict(stage2=dict(batch_size=60, classes_per_batch=3))
FOLLOWER = (
    {f"{METHODS[key].label}, batches of 3 classes": Case(key, THREE_CLASSES) for key in ("heads", "pros", "depro")}
    | {METHODS[key].label: Case(key) for key in ("depro-no-triplet", "depro-norms-frozen")}
    | {"DePro, read_out=released": Case("depro", dict(switches=dict(read_out="released")))}
)
#: Every published method, and the cheap ones, under one protocol.
FIELD = BASELINES | {
    METHODS[key].label: Case(key)
    for key in (
        *("centred", "domain-centroids", "contrastive-pca", "text-map"),
        *("ucdr-adapter", "ucdr-adapter-released", "mail", "mail-heads"),
    )
}
GRIDS = {
    "baselines": BASELINES,
    "field": FIELD,
    "parts": PARTS,
    "ablations": ABLATIONS,
    "oracles": ORACLES,
    "switches": SWITCHES,
    "follower": FOLLOWER,
}


def run_grid(
    names: Sequence[str],
    preset: str,
    domains: Sequence[str],
    seeds: Sequence[int],
    table: str | Path,
    artifacts: str | Path,
    jobs: int = 1,
    settings: dict | None = None,
    data: str | Path | None = None,
    cases: Sequence[str] | None = None,
    imports: Sequence[str | Path] = (),
) -> pd.DataFrame:
    """Measure every case of the grids `names` (or those named in `cases`) that `table` lacks; returns the rows that it
    holds of these cases, with all held-out domains and seeds.

    names: of grids, or keys of methods, each a row; preset: its name; domains: held-out domains, None (or "none") where
    no domain is held out; settings: {name: value} for all cases (`load_preset`); data: a folder, None for PictoNet;
    imports: files that register methods (`import_methods`); jobs: runs at a time, each with its share of the cores.
    Rows are added to `table` (a CSV file, `tables.GRID`) as soon as they are measured, so that an interrupted grid
    goes on where it stopped. Trained models are not kept; a first stage that several cases share is trained once,
    in a folder of this grid's own, so that two grids may run side by side.
    Raises UserError for unknown names, values that no setting takes, and a table that is of another kind.
    """
    if jobs < 1:
        raise UserError(f"jobs is {jobs}; it is a number of runs at a time, 1 or more.")
    import_methods(imports)
    settings = settings or {}
    about = about_grid(preset, settings, data)
    wanted = wanted_cases(choose(names, cases), preset, [domain or "none" for domain in domains], seeds, settings)
    done = measured_cases(table, about)
    left = [
        (name, domain, seed) for name, domain, seed, switches in wanted if (name, domain, seed, switches) not in done
    ]
    refuse_unwritable(table)
    measure_all(by_training(left, preset, settings), about, len(wanted), table, Path(artifacts), jobs, data, imports)
    rows = read_rows(table, about)
    asked = {(name, switches) for name, _, _, switches in wanted}
    return rows[[pair in asked for pair in zip(rows.case, rows.switches, strict=True)]].reset_index(drop=True)


def about_grid(preset: str, settings: dict, data: str | Path | None):
    """What all rows of a grid share, as its table names it: preset, settings, data."""
    before, after = (flat(dataclasses.asdict(load_preset(preset, **some))) for some in ({}, settings))
    changed = [
        f"{name}={value}"
        for name, (_, value) in sorted(differences(before, after).items())
        if name not in ("workers", "unseen_domain", "seed") and not name.startswith("switches")  # no change, or columns
    ]
    return dict(
        preset=preset,
        settings=" ".join(changed),
        data=Path(data).resolve().name if data else "",
    )


def wanted_cases(names: Sequence[str], preset: str, domains: Sequence[str], seeds: Sequence[int], settings: dict):
    """[(case, held-out domain, seed, switches of its measurement as text)] of all cases of a grid."""
    switches = {}
    for name in names:
        config = load_preset(preset, **merged(settings, find_case(name).settings))
        switches[name] = dataclasses.replace(config.switches, **find_case(name).at_test).differing()
    return [
        (name, domain, seed, switches[name])
        for seed in seeds
        for domain in domains
        for name in names
        if seed == seeds[0] or find_case(name).method not in SAME_WITH_EVERY_SEED
    ]


def measure_all(
    trainings: dict[Training, list[str]],
    about: dict,
    total: int,
    table: pd.DataFrame,
    artifacts: Path,
    jobs: int,
    data: str | Path | None,
    imports: Sequence[str | Path] = (),
):
    """Train and measure {Training: names of its cases}, `jobs` at a time, and add the rows to the table one by one."""
    left = sum(len(names) for names in trainings.values())
    bar = tqdm(total=total, initial=total - left, desc="Grid", unit=" cases")
    threads = max(1, torch.get_num_threads() // jobs)
    artifacts.mkdir(parents=True, exist_ok=True)
    with (
        bar,
        tempfile.TemporaryDirectory(prefix="grid-", dir=artifacts, ignore_cleanup_errors=True) as work,
        ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), begin_worker, (threads, imports)) as pool,
    ):
        runs = {pool.submit(measure, training, names, Path(work), data): names for training, names in trainings.items()}
        try:
            for run in as_completed(runs):
                rows = run.result().assign(**about)
                add_rows(rows, table, GRID)
                bar.set_postfix_str(rows.case.iloc[0])
                bar.update(len(runs[run]))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def begin_worker(threads: int, imports: Sequence[str | Path]):
    """What a process of `run_grid` does first: its share of the cores, and the methods of one's own."""
    end_with_parent()
    torch.set_num_threads(threads)
    import_methods(imports)


def choose(names: Sequence[str], cases: Sequence[str] | None = None):
    """Names of the cases of some grids or methods, all or those named, each once. UserError for unknown names."""
    check_known("case", cases or [], {case for grid in GRIDS.values() for case in grid} | set(labels()))
    return list(dict.fromkeys(case for name in names for case in find_grid(name) if not cases or case in cases))


def find_grid(name: str):
    """{case: Case} of the grid `name`, or of the one method with this key. UserError for neither."""
    check_known("grid", [name], {*GRIDS, *METHODS})
    if name in GRIDS:
        return GRIDS[name]
    return {METHODS[name].label: Case(name)}


def check_known(kind: str, names: Sequence[str], known: Collection[str]):
    unknown = [repr(name) for name in names if name not in known]
    if unknown:
        raise UserError(f"Unknown {kind} {', '.join(unknown)}. Known: {', '.join(sorted(known))}.")


def labels():
    """{label: key} of the registered methods."""
    return {kind.label: key for key, kind in METHODS.items()}


def find_case(name: str):
    """The Case of a grid's row or of a method's label."""
    for grid in GRIDS.values():
        if name in grid:
            return grid[name]
    return find_grid(labels()[name])[name]


def measured_cases(path: str | Path, about: dict):
    """{(case, held-out domain, seed, switches)} that the table holds of one preset, its settings and a folder."""
    return set(read_rows(path, about)[CASE].itertuples(index=False, name=None))


def read_rows(path: str | Path, about: dict):
    """The rows of a grid's table with the preset, settings and folder of `about`."""
    table = read_table(path, GRID)
    return table[(table[list(about)] == pd.Series(about)).all(axis=1)]


def by_training(cases: Sequence[tuple[str, str, int]], preset: str, settings: dict):
    """{Training: names of the cases that it answers}: switches that only the ranking knows share one model. What trains
    longest comes first: begun last, it would leave the other processes idle."""
    groups: dict[Training, list[str]] = {}
    for name, domain, seed in cases:
        case = find_case(name)
        own = merged(own_rates(preset, case.method), merged(settings, case.settings))
        config = load_preset(preset, **own | dict(unseen_domain=domain, seed=seed))
        groups.setdefault(Training(case.method, config, case.oracle), []).append(name)
    return dict(sorted(groups.items(), key=lambda group: -expected_length(group[0])))


def expected_length(training: Training):
    """What orders trainings by their length: the depth of the simulator. DePro reads each image twice; it comes second,
    so that the first two runs do not begin with one first stage, for which one of them would wait."""
    return 3.5 if training.method == "depro" else training.config.simulator_layers


def own_rates(preset: str, method: str):
    """The settings that hold a method's own rates with a preset: {} or {"stage2": {...}}."""
    rates = RATES.get(preset, {}).get(method)
    return dict(stage2=rates) if rates else {}


def measure(training: Training, names: Sequence[str], artifacts: Path, data: str | Path | None):
    """Train once and measure the cases `names`: their rows, with the images seen. All files go to `artifacts`."""
    config = training.config
    folder = artifacts / f"{names[0]}-{config.unseen_domain}-{config.seed}".replace(" ", "-")
    run = prepare(config, data, artifacts=folder, progress=False)
    if training.oracle:
        # UdCDR has queries that would have been trained on
        run.splits = [with_held_out_domain(split) for split in run.splits if split.protocol != "UdCDR"]
        run.config = fit_batches(run.config, len(run.split.train_domains))
    model, history = run.fit(training.method, progress=False, shared=artifacts / "stage1")
    rows = []
    for name in names:
        about = dict(case=name, seed=config.seed, images=int(history.images.iloc[-1]) if len(history) else 0)
        switches = dataclasses.replace(run.config.switches, **find_case(name).at_test)
        if replaced := find_case(name).part:
            assert isinstance(model, ProS)  # no other has these parts
            read = partial(embed_rows_in_part, model, run.clip, run.data, part=replaced)
            rows.append(evaluate_all(model, run.splits, switches, about | dict(method=name), features_of=read))
            continue
        for part in getattr(model, "parts", [None]):  # DePro: one training, three readings
            label = name
            if part:
                model.part, label = part, f"{name} ({part})"
            rows.append(evaluate_all(model, run.splits, switches, extra=about | dict(method=label)))
    shutil.rmtree(folder, ignore_errors=True)
    return pd.concat(rows)


def merged(first: dict, second: dict):
    """Two settings of `load_preset`, the second winning; nested parts are merged too."""
    both = {
        key: merged(first[key], second[key]) for key in first.keys() & second.keys() if isinstance(first[key], dict)
    }
    return first | second | both


def with_held_out_domain(split: Split):
    """The split with the held-out domain's images of seen classes among the training images: the ceiling of what
    training can bring. Queries and gallery stay as they are."""
    data = split.data
    assert split.unseen_domain is not None  # the grid's oracles hold one out
    extra = data.rows([split.unseen_domain], split.seen_classes)
    domains = {*split.train_domains, split.unseen_domain}
    return dataclasses.replace(
        split,
        train=torch.cat([split.train, extra]).sort().values,
        train_domains=tuple(name for name in data.domains if name in domains),
    )


def summary(table: pd.DataFrame, protocol: str = "UCDR", gallery: str = "unseen", metric: str = "mAP@200"):
    """Mean and standard deviation over the seeds: one row per method, one column per held-out domain, and `mean`, which
    is NaN where a domain was not measured: the mean of other domains compares with nothing."""
    part = table[(table.protocol == protocol) & (table.gallery == gallery)]
    by_case = part.groupby(["method", "unseen_domain"])[metric]
    mean, spread = by_case.mean().unstack(), by_case.std().unstack()
    mean["mean"] = mean.mean(axis=1, skipna=False)
    return mean.sort_values("mean"), spread


def markdown(table: pd.DataFrame, **which: str) -> str:
    """`summary` as a Markdown table: mean ± standard deviation where there are two seeds or more, and the images that
    a run trains on (mean of the runs); a dash for what was not measured."""
    text, images = cells(*summary(table, **which)), table.groupby("method").images.mean()
    return as_markdown(text.assign(images=[f"{images[method]:,.0f}" for method in text.index]))


def cells(mean: pd.DataFrame, spread: pd.DataFrame) -> pd.DataFrame:
    """What `summary` gives, as text: mean ± standard deviation."""
    deviation = spread.reindex(index=mean.index, columns=mean.columns)
    return mean.map(lambda value: "–" if pd.isna(value) else f"{value:.3f}") + deviation.map(
        lambda value: "" if pd.isna(value) else f" ± {value:.3f}"
    )


def as_markdown(text: pd.DataFrame, title: str = "method") -> str:
    """Text as a Markdown table, with the index as the first column."""
    lines = [f"| {title} | {' | '.join(text)} |", "|---" * (len(text.columns) + 1) + "|"]
    return "\n".join(lines + [f"| {name} | {' | '.join(row)} |" for name, row in text.T.items()])


def held_out_domains(config: Config, domains: Sequence[str] = (), data: Path | None = None) -> list[str]:
    """The domains named, or the configuration's; "all" are those that PictoNet or a published benchmark holds out."""
    if not domains:
        return [config.unseen_domain or "none"]
    if list(domains) != ["all"]:
        return list(domains)
    if config.dataset == "pictonet" and not data:
        return [domain for domain in pictonet.tier_domains(config.tier) if domain != pictonet.GALLERY_DOMAIN]
    if config.dataset not in benchmark_names():
        raise UserError(
            "--domains all knows PictoNet's and the published benchmarks' domains: name those of your folder."
        )
    return list(load_benchmark(config.dataset).query_domain)
