"""`python -m prosutils draw | train | evaluate | embed | index | search | ablate | tutorial`: all without a notebook."""

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from . import pictonet
from .config import PRESETS, load_preset, parse_settings, setting_names
from .domains import ImageDomains
from .evaluation import embed_rows
from .experiment import add_results, lay_out_pictonet, pictonet_folder, prepare
from .files import UserError, written_whole
from .grid import GRIDS, markdown, run_grid
from .published import benchmark_names, load_benchmark
from .search import ImageIndex, query_feature, search_gallery, search_model
from .show import plots
from .training import load_checkpoint
from .tuned import METHODS

COLUMNS = ["method", "protocol", "unseen_domain", "gallery", "seed", "mAP@200", "Prec@200", "mAP@all", "Prec@100"]


def draw(args):
    """Lay PictoNet out as domain/class/image.png."""
    which = dict(tier=args.tier, strength=args.strength)
    folder = pictonet.lay_out(
        args.to or pictonet.default_folder(args.size, **which), args.size, jobs=os.cpu_count() or 1, **which
    )
    data = ImageDomains.from_folder(folder)
    print(f"{len(data)} drawings of {len(data.classes)} classes in {len(data.domains)} domains: {folder}")


def configuration(args):
    """The preset with the overrides of the command line."""
    settings = parse_settings(args.set)
    for name in ("unseen_domain", "seed"):
        if getattr(args, name) is not None:
            settings[name] = getattr(args, name)
    return load_preset(args.preset, **settings)


def experiment(args):
    unseen = args.unseen_classes.split(",") if args.unseen_classes else None
    return prepare(configuration(args), args.data, unseen, args.artifacts, args.device, args.on_error)


def train(args):
    """Train a method, measure it beside zero-shot CLIP, add the rows to ARTIFACTS/results.csv."""
    run = experiment(args)
    print(describe(run))
    tables = []
    for method in dict.fromkeys(["zero-shot", args.method]):
        model, history = run.fit(method, resume=args.resume)
        if len(history):
            print(history.round(3).to_string(index=False))
        tables.append(run.evaluate(model))
    report(run, pd.concat(tables))


def describe(run):
    """What will be trained on and measured, in a few lines."""
    split, domains = run.split, ", ".join(run.split.train_domains)
    lines = [
        f"{len(run.data)} images; held-out domain {split.unseen_domain}, gallery {split.gallery_domain}; training "
        f"domains {domains}",
        f"{len(split.seen_classes)} seen, {len(split.val_classes)} validation, {len(split.unseen_classes)} unseen "
        f"classes; {len(split.train)} training images; on {run.device}",
        "Parts of the first measurement:",
        split.table().to_string(),
    ]
    if run.benchmark:
        counts, sizes = run.data.counts(), run.benchmark.compare_sizes(run.splits)
        lines += [
            f"Sizes of the protocols of {run.benchmark.name}:",
            sizes.to_string(),
            *run.benchmark.faults(counts),
            *run.benchmark.surplus(counts),
        ]
    if run.config.backbone == "mini" and run.data.root != pictonet_folder(run.config):
        lines.append(
            "Note: mini-CLIP knows icons and drawings. On photographs expect modest numbers; the preset pacs "
            "takes real CLIP."
        )
    return "\n".join(lines)


def report(run, table):
    """Print the rows and add them to the results file, where a benchmark has its own name and a folder its folder's."""
    drawings = run.config.dataset == "pictonet" and run.data.root == pictonet_folder(run.config)
    table = table.assign(preset=run.config.preset if drawings or run.benchmark else run.data.root.name)
    path = run.artifacts / "results.csv"
    add_results(table, path)
    print(table[COLUMNS].round(3).to_string(index=False))
    print(f"Written to {path}")


def evaluate(args):
    """Measure a checkpoint on its protocols, beside zero-shot CLIP."""
    model = load_checkpoint(args.checkpoint)
    args.preset = model.config.preset
    run = experiment(args)
    if set(model.classes) & set(run.split.unseen_classes):
        overlap = ", ".join(sorted(set(model.classes) & set(run.split.unseen_classes)))
        raise UserError(
            f"The checkpoint was trained on classes that are unseen here: {overlap}. Give the unseen classes "
            "of its training with --unseen-classes."
        )
    if run.split.unseen_domain in model.domains:
        raise UserError(
            f"The checkpoint was trained on the domain {run.split.unseen_domain}. Its training domains: "
            f"{', '.join(model.domains)}."
        )
    report(run, pd.concat([run.evaluate(run.fit("zero-shot")[0]), run.evaluate(model.to(run.device))]))


def searching_model(args):
    """The checkpoint's model, or zero-shot CLIP of the preset."""
    return load_checkpoint(args.checkpoint) if args.checkpoint else search_model(args.preset)


def searched_data(args, config):
    """The folder of --data, or PictoNet where the preset means it."""
    folder = args.data or (
        lay_out_pictonet(config)
        if config.dataset == "pictonet"
        else None
    )
    if folder is None:
        raise UserError(f"The preset {config.preset} needs --data, a folder laid out as domain/class/image.")
    return ImageDomains.from_folder(folder)


def embed_command(args):
    """Features of every image of a folder, as .npz: features [n, D], path, domain, class."""
    model = searching_model(args)
    data = searched_data(args, model.config)
    features = embed_rows(model, data, torch.arange(len(data)), progress=True).numpy()
    table = data.table()
    with written_whole(args.out) as part, open(part, "wb") as file:
        np.savez(file, features=features, **{name: table[name].to_numpy(str) for name in table})
    print(f"{features.shape[0]} features of width {features.shape[1]}: {args.out}")


def index(args):
    """Embed every image under a folder, labelled or not, and keep the features for `search --index`."""
    made = ImageIndex.build(searching_model(args), args.folder, progress=True)
    for path, why in made.skipped:
        print(f"Skipped: {path} ({why})")
    print(f"{len(made.paths)} images: {made.save(args.out)}")


def search(args):
    """Rank the gallery, or an index of your own images, for a query image or for words."""
    model = searching_model(args)
    query = query_feature(model, args.image or args.words)
    if args.index:
        answers = ImageIndex.load(args.index, model).answers(query, args.k)
    else:
        answers = search_gallery(model, searched_data(args, model.config), query, args.k, args.gallery_domain)
    for place, (score, name, path) in enumerate(answers, 1):
        print(f"{place:3d}  {score:.3f}  {name:20s} {path}" if name else f"{place:3d}  {score:.3f}  {path}")


def ablate(args):
    """Measure grids of baselines, ablations and switches over held-out domains and seeds; goes on where it stopped."""
    table = run_grid(
        args.grids,
        args.preset,
        held_out_domains(args),
        args.seeds,
        args.table,
        args.artifacts,
        args.jobs,
        parse_settings(args.set),
        args.data,
        args.cases,
    )
    for grid in args.grids:
        rows = table[table.case.isin(GRIDS[grid]) & (table.preset == args.preset)]
        print(f"\n{grid}: mAP@200, UCDR, unseen gallery, mean and standard deviation of the seeds\n{markdown(rows)}")
    print(f"Written to {args.table}")


def held_out_domains(args):
    """The names of --domains, or the preset's; "all" are those that PictoNet or a published benchmark holds out."""
    preset = load_preset(args.preset)
    if not args.domains:
        return [preset.unseen_domain or "none"]
    if args.domains != ["all"]:
        return args.domains
    if preset.dataset == "pictonet" and not args.data:
        return [domain for domain in pictonet.PICTONET_DOMAINS if domain != pictonet.GALLERY_DOMAIN]
    if preset.dataset not in benchmark_names():
        raise UserError(
            "--domains all knows PictoNet's and the published benchmarks' domains: name those of your folder."
        )
    return list(load_benchmark(preset.dataset).query_domain)


def tutorial(args):
    """The main job: lay out PictoNet, train both stages, measure, draw, and say how to go on."""
    run = prepare(load_preset("mini"), artifacts=args.artifacts)
    print(describe(run))
    tables, models = [], {}
    for method in ("zero-shot", "heads", "pros"):
        models[method], history = run.fit(method)
        tables.append(run.evaluate(models[method]))
        if len(history):
            print(
                f"{models[method].method}: loss {history.loss.iloc[-1]:.2f}, best mAP@200 on validation classes "
                f"{history['val_mAP@200'].max():.3f}"
            )
    report(run, pd.concat(tables))
    for path in plots.tutorial_figures(run, models, Path(args.artifacts) / "figures"):
        print(f"Drawn: {path}")
    print("\nNow open the notebooks:  make lab   (or: jupyter lab notebooks/00_start_here.ipynb)")


def parser():
    top = argparse.ArgumentParser(prog="python -m prosutils", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)

    def command(function, name=None):
        name = name or function.__name__
        added = commands.add_parser(name, help=function.__doc__.splitlines()[0], description=function.__doc__)
        added.set_defaults(function=function)
        return added

    def data_options(added):
        added.add_argument("--data", type=Path, help="a domain/class/image folder (default: PictoNet)")
        added.add_argument("--unseen-domain", help="domain held out of training")
        added.add_argument("--unseen-classes", help="comma-separated classes held out of training")
        added.add_argument("--on-error", choices=["skip", "raise"], default="skip", help="images that cannot be read")
        added.add_argument("--seed", type=int)
        added.add_argument("--device", help="cuda or cpu (default: cuda where there is one)")
        added.add_argument("--artifacts", type=Path, default=Path("artifacts"), help="where runs and results go")
        added.add_argument(
            "--set",
            nargs="+",
            default=[],
            metavar="NAME=VALUE",
            help="replace settings: " + ", ".join(setting_names(PRESETS["mini"])),
        )

    drawing = command(draw)
    drawing.add_argument("--size", type=int, default=64, help="pixels (default 64)")
    drawing.add_argument("--tier", default="near", help=", ".join(pictonet.TIERS))
    drawing.add_argument("--strength", type=float, help="of the far tier, 0 (near) to 1 (default: the chosen ones)")
    drawing.add_argument("--to", type=Path, help="folder (default: the user's cache)")

    training = command(train)
    training.add_argument("--preset", default="mini", help=", ".join(PRESETS))
    training.add_argument("--method", default="pros", help=", ".join(METHODS))
    training.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    data_options(training)

    evaluation = command(evaluate)
    evaluation.add_argument("checkpoint", type=Path)
    data_options(evaluation)

    embedding, indexing, searching = command(embed_command, "embed"), command(index), command(search)
    for added in (embedding, indexing, searching):
        added.add_argument("--checkpoint", type=Path, help="a trained model (default: zero-shot CLIP)")
        added.add_argument("--preset", default="mini", help="backbone where no checkpoint is given")
    for added in (embedding, searching):
        added.add_argument("--data", type=Path, help="a domain/class/image folder (default: PictoNet)")
    indexing.add_argument("folder", type=Path, help="images in folders of any depth")
    indexing.add_argument("--out", type=Path, default=Path("artifacts/index.npz"))
    searching.add_argument("--index", type=Path, help="rank an index of your own images instead of a gallery")
    embedding.add_argument("--out", type=Path, default=Path("artifacts/features.npz"))
    query = searching.add_mutually_exclusive_group(required=True)
    query.add_argument("--image", type=Path, help="query picture")
    query.add_argument("--words", help="query in words")
    searching.add_argument("--gallery-domain", help="domain that is ranked")
    searching.add_argument("-k", type=int, default=10, help="answers (default 10)")

    ablation = command(ablate)
    ablation.add_argument("grids", nargs="+", metavar="GRID", help=", ".join(GRIDS))
    ablation.add_argument("--preset", default="mini", help=", ".join(PRESETS))
    ablation.add_argument("--cases", nargs="+", help='only these rows of the grids, for example ProS "Heads only"')
    ablation.add_argument("--domains", nargs="+", help="held-out domains, or all (default: the preset's)")
    ablation.add_argument("--seeds", nargs="+", type=int, default=[0], help="default: 0")
    ablation.add_argument("--jobs", type=int, default=1, help="runs at a time")
    ablation.add_argument("--table", type=Path, default=Path("artifacts/grid.csv"))
    ablation.add_argument("--artifacts", type=Path, default=Path("artifacts"))
    ablation.add_argument("--data", type=Path, help="a domain/class/image folder (default: PictoNet)")
    ablation.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of all runs, as in train"
    )

    command(tutorial).add_argument("--artifacts", type=Path, default=Path("artifacts"))
    return top


def main(argv=None):
    args = parser().parse_args(argv)
    try:
        args.function(args)
    except UserError as error:
        sys.exit(f"{error}")
    except KeyboardInterrupt:
        sys.exit("Interrupted. Finished epochs are kept; --resume goes on from them.")
