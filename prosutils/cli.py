"""ProS without a notebook: draw the benchmark, train, measure, search.

Every setting of a run is a flag (--stage2.epochs 3). `prosutils train --preset NAME --help` shows them all, with the
preset's values.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg, create_mutex_group

from .config import PRESETS, Config, changes, load_preset
from .files import UserError, refuse_unwritable, save_arrays
from .names import print_any_name

if TYPE_CHECKING:
    import pandas as pd

    from .domains import ImageDomains
    from .experiment import Experiment
    from .tuned import TunedCLIP

# The commands import what they need when they run: `--help` does not wait for PyTorch.

COLUMNS = ["method", "protocol", "unseen_domain", "gallery", "seed", "mAP@200", "Prec@200", "mAP@all", "Prec@100"]
ARTIFACTS = Path("artifacts")

Settings = Annotated[Config, arg(name="")]
Imports = Annotated[
    UseAppendAction[tuple[Path, ...]],
    arg(name="import", metavar="FILE", help="a Python file that registers methods of your own"),
]
Preset = Annotated[str, arg(help=f"backbone and data: {', '.join(PRESETS)}; clip (real CLIP, for photographs) is pacs")]
DataFolder = Annotated[
    Path | None,
    arg(metavar="FOLDER", help="a domain/class/image folder", help_behavior_hint="(default: PictoNet)"),
]
Checkpoint = Annotated[
    Path | None,
    arg(metavar="FILE", help="a trained model", help_behavior_hint="(default: zero-shot CLIP of the preset)"),
]
UnseenClasses = Annotated[
    tuple[str, ...],
    arg(
        metavar="NAMES",
        help="classes held out of training: 'cat,dog', or with a comma in a name 'cat,\"Paris, France\"'",
        help_behavior_hint="(default: the data's own)",
    ),
]
Device = Annotated[
    str | None,
    arg(metavar="cuda|mps|cpu", help="what computes", help_behavior_hint="(default: a GPU where there is one)"),
]
QUERY = create_mutex_group(required=True, title="query")


@dataclass(frozen=True)
class Place:
    """Where pictures come from and results go."""

    data: DataFolder = None
    unseen_classes: UnseenClasses = ()
    on_error: Literal["skip", "raise"] = "skip"  # what happens with images that cannot be read
    device: Device = None
    artifacts: Path = ARTIFACTS  # folder of runs and results


def draw(
    size: Annotated[int, arg(help="pixels")] = 64,
    to: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: the user's cache)")] = None,
    tier: Annotated[Literal["near", "far"], arg(help="as designed, or each domain in a technique of its own")] = "far",
    strength: Annotated[
        float | None, arg(help="of the far tier's techniques, 0 to 1", help_behavior_hint="(default: as chosen)")
    ] = None,
) -> None:
    """Lay PictoNet out as domain/class/image.png."""
    from . import pictonet
    from .domains import ImageDomains

    folder = to or pictonet.default_folder(size, tier, strength)
    pictonet.lay_out(folder, size, jobs=os.cpu_count() or 1, tier=tier, strength=strength)
    data = ImageDomains.from_folder(folder)
    print(f"{len(data)} drawings of {len(data.classes)} classes in {len(data.domains)} domains: {folder}")


def experiment(config: Config, place: Place) -> "Experiment":
    """The data, splits and backbone of a run."""
    from .experiment import prepare
    from .names import parse_names

    if config.unseen_domain == "none":
        config = replace(config, unseen_domain=None)
    return prepare(
        config, place.data, parse_names(place.unseen_classes or None), place.artifacts, place.device, place.on_error
    )


def train(
    config: Settings,
    place: Annotated[Place, arg(name="")] = Place(),
    method: Annotated[str, arg(metavar="KEY", help="what is trained; a wrong key lists all")] = "pros",
    resume: Annotated[bool, arg(help="go on with an interrupted run")] = False,
    log: Annotated[
        Literal["tensorboard", "wandb"] | None,
        arg(metavar="tensorboard|wandb", help="where every epoch is told too", help_behavior_hint="(default: nowhere)"),
    ] = None,
    imports: Imports = (),
) -> None:
    """Train a method, measure it beside zero-shot CLIP, add the rows to ARTIFACTS/results.csv."""
    import pandas as pd

    from .experiment import describe
    from .logs import open_log
    from .methods import find_method, import_methods
    from .processes import is_main

    import_methods(imports)
    find_method(method)
    run = experiment(config, place)
    print(describe(run))
    tables = []
    for key in dict.fromkeys(["zero-shot", method]):
        told = open_log(log, run.folder(key)) if log and key == method and is_main() else None
        model, history = run.fit(key, resume=resume, log=told)
        if len(history):
            print(history.round(3).to_string(index=False))
        tables.append(run.evaluate(model))
    report(run, pd.concat(tables))


def report(run: "Experiment", table: "pd.DataFrame") -> None:
    """Print the rows and add them to the results file, where a benchmark has its own name and a folder its folder's."""
    from .experiment import add_results, pictonet_folder
    from .processes import on_main

    drawings = run.config.dataset == "pictonet" and run.data.root == pictonet_folder(run.config)
    table = table.assign(preset=run.config.preset if drawings or run.benchmark else run.data.root.resolve().name)
    path = run.artifacts / "results.csv"
    print(table[COLUMNS].round(3).to_string(index=False))  # first: nothing that was measured is lost
    on_main(add_results, table, path)
    print(f"Written to {path}")


def evaluate(
    checkpoint: Annotated[Positional[Path], arg(metavar="CHECKPOINT", help="model.pt of a run")],
    place: Annotated[Place, arg(name="")] = Place(),
    unseen_domain: Annotated[
        str | None, arg(metavar="NAME", help="domain of the queries", help_behavior_hint="(default: the checkpoint's)")
    ] = None,
    imports: Imports = (),
) -> None:
    """Measure a checkpoint on its protocols, beside zero-shot CLIP."""
    import pandas as pd

    from .experiment import Experiment
    from .methods import import_methods
    from .names import parse_names

    import_methods(imports)
    asked = {} if unseen_domain is None else dict(unseen_domain=None if unseen_domain == "none" else unseen_domain)
    run = Experiment.from_checkpoint(
        checkpoint,
        place.data,
        place.artifacts,
        place.device,
        place.on_error,
        settings=asked,
        unseen_classes=parse_names(place.unseen_classes or None),
    )
    report(run, pd.concat([run.evaluate(run.fit("zero-shot")[0]), run.evaluate(run.load(checkpoint))]))


def searching_model(checkpoint: Path | None, preset: str, imports: Sequence[Path]) -> "TunedCLIP":
    """The checkpoint's model, or zero-shot CLIP of the preset."""
    from .checkpoints import load_checkpoint
    from .methods import import_methods
    from .search import search_model

    import_methods(imports)
    return load_checkpoint(checkpoint) if checkpoint else search_model(preset)


def searched_data(folder: Path | None, config: Config) -> "ImageDomains":
    """The folder of --data, or PictoNet where the preset means it."""
    from .domains import ImageDomains
    from .experiment import lay_out_pictonet

    if folder:
        return ImageDomains.from_folder(folder, decode=True)
    if config.dataset != "pictonet":
        raise UserError(f"The preset {config.preset} needs --data, a folder laid out as domain/class/image.")
    return ImageDomains.from_folder(lay_out_pictonet(config))


def embed(
    data: DataFolder = None,
    checkpoint: Checkpoint = None,
    preset: Preset = "mini",
    out: Path = ARTIFACTS / "features.npz",
    device: Device = None,
    imports: Imports = (),
) -> None:
    """Features of every image of a folder, as .npz: features [n, D], path, domain, class."""
    import torch

    from .evaluation import embed_rows
    from .experiment import find_device
    from .processes import is_main

    refuse_unwritable(out)
    model = searching_model(checkpoint, preset, imports).to(find_device(device))
    images = searched_data(data, model.config)
    features = embed_rows(model, images, torch.arange(len(images)), progress=True).numpy()
    table = images.table()
    if is_main():
        save_arrays(out, {"features": features} | {name: table[name].to_numpy(str) for name in table})
    print(f"{features.shape[0]} features of width {features.shape[1]}: {out}")


def index(
    folder: Annotated[Positional[Path], arg(metavar="FOLDER", help="images in folders of any depth")],
    checkpoint: Checkpoint = None,
    preset: Preset = "mini",
    out: Path = ARTIFACTS / "index.npz",
    imports: Imports = (),
) -> None:
    """Embed every image under a folder, labelled or not, and keep the features for `search --index`."""
    from .search import ImageIndex

    refuse_unwritable(out)
    made = ImageIndex.build(searching_model(checkpoint, preset, imports), folder, progress=True)
    for path, why in made.skipped:
        print(f"Skipped: {path} ({why})")
    print(f"{len(made.paths)} images: {made.save(out)}")


def search(
    image: Annotated[Path | None, QUERY, arg(metavar="FILE", help="query picture", help_behavior_hint="")] = None,
    words: Annotated[str | None, QUERY, arg(metavar="TEXT", help="query in words", help_behavior_hint="")] = None,
    index: Annotated[
        Path | None,
        arg(metavar="FILE", help="rank an index of your own images", help_behavior_hint="(default: the gallery)"),
    ] = None,
    root: Annotated[Path | None, arg(metavar="FOLDER", help="where an index's images are, if they moved")] = None,
    data: DataFolder = None,
    gallery_domain: Annotated[
        str | None, arg(metavar="NAME", help="domain that is ranked", help_behavior_hint="(default: the data's own)")
    ] = None,
    k: Annotated[int, arg(aliases=["-k"], help="number of answers")] = 10,
    checkpoint: Checkpoint = None,
    preset: Preset = "mini",
    imports: Imports = (),
) -> None:
    """Rank the gallery, or an index of your own images, for a query image or for words."""
    from .ranking import check_k
    from .search import ImageIndex, query_feature, search_gallery

    check_k(k)
    model = searching_model(checkpoint, preset, imports)
    query = query_feature(model, image or words or "")
    if index:
        answers = ImageIndex.load(index, model, root).answers(query, k)
    else:
        answers = search_gallery(model, searched_data(data, model.config), query, k, gallery_domain)
    for place, (score, name, path) in enumerate(answers, 1):
        print(f"{place:3d}  {score:.3f}  {name:20s} {path}" if name else f"{place:3d}  {score:.3f}  {path}")


def ablate(
    grids: Annotated[
        Positional[tuple[str, ...]],
        arg(
            metavar="GRID",
            help="baselines, field, ablations, oracles, switches, follower; or keys of methods, each a row",
        ),
    ],
    config: Settings,
    domains: Annotated[
        tuple[str, ...],
        arg(metavar="NAME ...", help="held-out domains, or all", help_behavior_hint="(default: --unseen-domain)"),
    ] = (),
    seeds: Annotated[tuple[int, ...], arg(metavar="INT ...", help_behavior_hint="(default: --seed)")] = (),
    cases: Annotated[
        tuple[str, ...],
        arg(
            metavar="ROW ...",
            help='only these rows, for example ProS "Heads only"',
            help_behavior_hint="(default: all)",
        ),
    ] = (),
    jobs: Annotated[int, arg(help="runs at a time")] = 1,
    table: Annotated[Path, arg(help="where the numbers go")] = ARTIFACTS / "grid.csv",
    artifacts: Path = ARTIFACTS,
    data: DataFolder = None,
    imports: Imports = (),
) -> None:
    """Measure grids of methods, ablations and switches over held-out domains and seeds; goes on where it stopped."""
    from .grid import GRIDS, find_grid, held_out_domains, markdown, run_grid

    if not grids:
        raise UserError(f"What is to be measured? Name grids ({', '.join(GRIDS)}) or methods.")
    rows = run_grid(
        grids,
        config.preset,
        held_out_domains(config, domains, data),
        seeds or (config.seed,),
        table,
        artifacts,
        jobs,
        changes(config, load_preset(config.preset)),
        data,
        cases,
        imports,
    )
    shown: dict[str, Collection[str]] = {name: GRIDS[name] for name in grids if name in GRIDS}
    methods = [name for name in grids if name not in GRIDS]
    if methods:
        shown[", ".join(methods)] = {case for name in methods for case in find_grid(name)}
    for name, part in shown.items():
        print(f"\n{name}: mAP@200, UCDR, unseen gallery, mean and standard deviation of the seeds")
        print(markdown(rows[rows.case.isin(part) & (rows.preset == config.preset)]))
    print(f"Written to {table}")


def cost(
    config: Settings,
    data: Annotated[DataFolder, arg(help_behavior_hint="(default: PictoNet, or a benchmark's published sizes)")] = None,
    device: Device = None,
    artifacts: Path = ARTIFACTS,
) -> None:
    """Operations, memory, disk and hours of one run of ProS, here and on some GPUs."""
    from .cost import report

    print(report(config, data, device, artifacts))


def tutorial(artifacts: Path = ARTIFACTS) -> None:
    """Lay out PictoNet, train both stages, measure, draw figures: what `make tutorial` does."""
    import pandas as pd

    from .experiment import describe, prepare
    from .show import plots

    run = prepare(load_preset("mini"), artifacts=artifacts)
    print(describe(run))
    tables, models = [], {}
    for method in ("zero-shot", "heads", "pros"):
        models[method], history = run.fit(method)
        tables.append(run.evaluate(models[method]))
        if len(history):
            print(
                f"{models[method].label}: loss {history.loss.iloc[-1]:.2f}, best mAP@200 on validation classes "
                f"{history['val_mAP@200'].max():.3f}"
            )
    report(run, pd.concat(tables))
    for path in plots.tutorial_figures(run, models, artifacts / "figures"):
        print(f"Drawn: {path}")
    print("\nNow open the notebooks:  make lab   (or: jupyter lab notebooks/00_start_here.ipynb)")


#: What is left of a command that was interrupted, and how to go on.
INTERRUPTED = {
    "train": "If an epoch has ended, the same command with --resume goes on after it.",
    "ablate": "What was measured is in the table: the same command goes on there.",
    "tutorial": "The same command begins anew, but for models that were finished.",
}


def commands(config: Config) -> dict[str, Callable]:
    """The commands by name; the flags of settings have `config`'s values as defaults."""
    return {
        "draw": draw,
        "train": partial(train, config=config),
        "evaluate": evaluate,
        "embed": embed,
        "index": index,
        "search": search,
        "ablate": partial(ablate, config=config),
        "cost": partial(cost, config=config),
        "tutorial": tutorial,
    }


@contextlib.contextmanager
def launched(command: str) -> Iterator[None]:
    """A command in its process, of which a launcher may have started several."""
    if "LOCAL_RANK" not in os.environ:  # one process: `--help` does not wait for PyTorch
        yield
        return
    from .processes import one_voice

    with one_voice(command):
        yield


def preset_of(words: Sequence[str]) -> Config:
    """The preset that a command line names. Raises UserError for an unknown one."""
    known = argparse.ArgumentParser(prog="prosutils", add_help=False, allow_abbrev=False)
    known.add_argument("--preset", default="mini")
    return load_preset(known.parse_known_args(words)[0].preset)


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command line. A user's error ends it with one line; a flag that does not exist, with exit code 2."""
    words = sys.argv[1:] if argv is None else list(argv)
    print_any_name()
    try:
        with launched("".join(words[:1])):
            tyro.extras.subcommand_cli_from_dict(
                commands(preset_of(words)),
                prog="prosutils",
                description=__doc__,
                args=words,
                config=(FlagCreatePairsOff,),
            )
            sys.stdout.flush()  # a reader that has gone is noticed here
    except UserError as error:
        sys.exit(f"{error}")
    except KeyboardInterrupt:
        sys.exit(f"Interrupted. {INTERRUPTED.get(''.join(words[:1]), 'The same command begins anew.')}")
    except BrokenPipeError:  # what reads the output, `head` say, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
