"""Builds the page on which one draws and retrieves, and beside it the book (build_book.py): `make site`, or

    python site/build.py --out build/site
    python -m http.server --directory build/site

The folder holds static files only: the page (site/page), mini-CLIP and ProS as ONNX (onnx_parts.py), the gallery's
pictures and features, onnxruntime-web, and parity.json, which says how far the page's half-precision weights are from
the package's models. The build fails where that is more than BOUNDS allows. The book is in book/.
"""

import argparse
import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import npm
import numpy as np
import torch
from build_book import build_book, origin, pages_address
from onnx_parts import Blocks, PartsInPython, Simulator, Stem, Words, class_token, export
from PIL import Image
from torch.nn.functional import normalize

from prosutils import pictonet, techniques
from prosutils.backbone import PromptableCLIP
from prosutils.config import load_preset
from prosutils.evaluation import embed_rows, model_transform
from prosutils.experiment import Experiment, prepare
from prosutils.files import UserError
from prosutils.metrics import retrieval_metrics
from prosutils.parts import embed_rows_with_prompts
from prosutils.pros import ProS
from prosutils.tuned import TunedCLIP

ROOT = Path(__file__).parents[1]
RUNTIME_FILES = {f"dist/{name}": name for name in ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")}
#: Largest difference of a feature's value (features have length 1), and least share of equal first tens of ranks.
BOUNDS = {"largest_difference": 0.0005, "equal_first_ten": 0.98}
CHECKED = 100  # drawings that the parity report compares
#: Token embeddings start with a length of 0.28, give or take 0.014, and pre-training lengthens those that it meets.
READ = 0.32
EXAMPLES = 12
TILE, COLUMNS = 64, 24  # of the gallery's pictures
BOARD = techniques.DRAWN_AT  # pixels at which the techniques draw
SEED = 11  # of the chalk: white, and its grain; and of the draw of examples


@dataclass
class Method:
    """A method of the page: its model, and how the page names it."""

    key: str
    label: str
    about: str
    model: TunedCLIP

    @property
    def simulator(self) -> str | None:
        return f"simulator-{self.key}" if isinstance(self.model, ProS) else None

    @property
    def prompts(self) -> tuple[str, ...]:
        """Whose prompts it can be run with; a method without a simulator has none."""
        return ("own", "none") if self.simulator else ("none",)


def load_methods() -> tuple[Experiment, list[Method]]:
    """The far tier's experiment, and the models that come with the package."""
    run = prepare(load_preset("mini"), progress=False)
    trained = prepare(load_preset("mini", switches=dict(heads="released")), progress=False)
    methods = [
        Method("zero-shot", "Zero-shot CLIP", "Nothing is trained.", run.fit("zero-shot")[0]),
        Method("heads", "Heads only", "Both projections are trained; no prompts.", fitted(run, "heads")),
        Method("pros", "ProS", "Prompts are trained; the projections stay frozen.", fitted(run, "pros")),
        Method("pros-heads", "ProS + heads", "Prompts and projections are trained.", fitted(trained, "pros")),
    ]
    return run, methods


def fitted(run: Experiment, method: str) -> TunedCLIP:
    return run.fit(method, shipped=True, progress=False)[0].eval()


# ---- what the page shows and searches ----------------------------------------------------------------------


class Features:
    """Features, of length 1, of the chalk queries and of the gallery by every method, each picture embedded once."""

    def __init__(self, run: Experiment, methods: list[Method]) -> None:
        self.rows = torch.cat([run.split.query, run.splits[1].gallery]).unique()  # [n]
        self.values = {}  # {(method's key, prompts): [n, D]}
        for method in methods:
            for prompts in method.prompts:  # without them, the class token that was trained beside them is left
                if isinstance(method.model, ProS):
                    found = embed_rows_with_prompts(method.model, run.data, self.rows, prompts)
                else:
                    found = embed_rows(method.model, run.data, self.rows)
                self.values[method.key, prompts] = normalize(found, dim=1)

    def of(self, method: Method, prompts: str, rows: torch.Tensor) -> torch.Tensor:
        """[m, D] of rows [m]."""
        return self.values[method.key, prompts][torch.searchsorted(self.rows, rows)]


def sprite(pictures: list[Image.Image], columns: int) -> Image.Image:
    """Pictures of one size, side by side in rows of `columns`."""
    side = pictures[0].width
    sheet = Image.new(pictures[0].mode, (columns * side, math.ceil(len(pictures) / columns) * side))
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % columns * side, i // columns * side))
    return sheet


def example_drawings(run: Experiment) -> tuple[Image.Image, list[str]]:
    """Pencil drawings of unseen classes, drawn at random, as they are before chalk: a strip [RGBA], and their classes."""
    unseen = set(run.split.unseen_classes)
    records = [each for each in pictonet.manifest() if each["domain"] == "sketch" and each["class"] in unseen]
    names = sorted({each["class"] for each in records})
    rng = np.random.default_rng(SEED)
    chosen = sorted(rng.choice(names, EXAMPLES, replace=False).tolist())
    of_class = [[each for each in records if each["class"] == name] for name in chosen]
    picked = [some[rng.integers(len(some))] for some in of_class]
    pictures = [pictonet.rasterise(pictonet.archive().read(each["file"]), BOARD) for each in picked]
    return sprite(pictures, EXAMPLES), chosen


class Recorder:
    """A random generator that keeps what it gives."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng, self.lattices, self.stick = rng, [], 0

    def standard_normal(self, shape: tuple[int, int], dtype: type) -> np.ndarray:
        self.lattices.append(self.rng.standard_normal(shape, dtype=dtype))
        return self.lattices[-1]

    def integers(self, most: int) -> int:
        self.stick = int(self.rng.integers(most))
        return self.stick


def chalk_draws() -> Recorder:
    """The random draws of one picture in chalk, for the page's own chalk to repeat."""
    recorder = Recorder(np.random.default_rng(SEED))
    techniques.chalk(np.zeros((BOARD, BOARD, 4), np.float32), 1.0, recorder)
    return recorder


def page_arrays(features: Features, methods: list[Method], rows: torch.Tensor) -> dict[str, np.ndarray]:
    """{name: float16 array}: the gallery's features, each method's class token and projections, the chalk's grain."""
    arrays = {}
    for method in methods:
        visual = method.model.clip.model.visual
        arrays[f"class_token/{method.key}"] = class_token(method.model)  # [W]
        arrays[f"projection/{method.key}"] = visual.proj.detach()  # [W, D]
        arrays[f"text_projection/{method.key}"] = method.model.clip.model.text_projection.detach()  # [Wt, D]
        for prompts in method.prompts:
            arrays[f"gallery/{method.key}/{prompts}"] = features.of(method, prompts, rows)  # [G, D]
    arrays |= {f"grain/{i}": torch.from_numpy(lattice) for i, lattice in enumerate(chalk_draws().lattices)}
    return {name: values.numpy().astype(np.float16) for name, values in arrays.items()}


def reading(clip: PromptableCLIP) -> dict[str, Any]:
    """What words.js needs to read words: the tokenizer's merges, and the tokens that pre-training never met."""
    tokenizer = clip.tokenizer
    length = clip.model.token_embedding.weight.norm(dim=1)  # [V]
    return {
        "caption": "a photo of",
        "merges": [" ".join(pair) for pair in tokenizer.bpe_ranks],
        "unread": (length < READ).nonzero().flatten().tolist(),
        "ends": [tokenizer.sot_token_id, tokenizer.eot_token_id],
        "length": tokenizer.context_length,
    }


def write_arrays(arrays: Mapping[str, np.ndarray], path: Path) -> dict[str, dict[str, Any]]:
    """One file of float16; returns {name: {"start": in values, "shape"}}."""
    index, start = {}, 0
    with open(path, "wb") as file:
        for name, values in arrays.items():
            file.write(values.astype("<f2").tobytes())
            index[name] = {"start": start, "shape": values.shape}
            start += values.size
    return index


def same_token(method: Method, methods: list[Method]) -> str:
    """The key of the first method with the same class token: without prompts both read the same before the projection."""
    token = class_token(method.model)
    return next(each.key for each in methods if torch.equal(class_token(each.model), token))


def measured(run: Experiment, features: Features, methods: list[Method]) -> list[dict[str, Any]]:
    """UCDR mAP@200 of every method, with and without its prompts: chalk drawings of unseen classes against emoji."""
    split, labels = run.split, run.data.class_index
    table = []
    for method in methods:
        for prompts in method.prompts:
            query, gallery = (features.of(method, prompts, rows) for rows in (split.query, split.gallery))
            metrics = retrieval_metrics(query, labels[split.query], gallery, labels[split.gallery])
            table.append(dict(method=method.key, prompts=prompts, value=round(metrics["mAP@200"], 4)))
    return table


# ---- parity ------------------------------------------------------------------------------------------------


def parity_report(run: Experiment, features: Features, methods: list[Method], parts: PartsInPython) -> dict[str, Any]:
    """How the page's parts, with weights and gallery in half precision, differ from the models on stored drawings."""
    split = run.split
    rows = split.query[torch.linspace(0, len(split.query) - 1, CHECKED).long()]
    transform = model_transform(methods[0].model)
    images = [transform(run.data.load(row)).numpy() for row in rows.tolist()]
    report = {"drawings": CHECKED, "bounds": BOUNDS, "variants": [], "words": word_parity(run, methods, parts)}
    for method in methods:
        for prompts in method.prompts:
            simulator = method.simulator if prompts == "own" else None
            ours = np.stack([parts.feature(image, method.key, simulator) for image in images])  # [n, D]
            theirs, gallery = (features.of(method, prompts, which).numpy() for which in (rows, split.gallery))
            ours_first, theirs_first = (
                np.argsort(-scores, axis=1, kind="stable")[:, :10]
                for scores in (ours @ gallery.astype(np.float16).astype(np.float32).T, theirs @ gallery.T)
            )
            report["variants"].append(
                dict(
                    method=method.key,
                    prompts=prompts,
                    largest_difference=float(np.abs(ours - theirs).max()),
                    equal_first_ten=float((ours_first == theirs_first).mean()),
                    same_ten_in_any_order=float(np.mean([set(a) == set(b) for a, b in zip(ours_first, theirs_first)])),
                )
            )
    return report


def word_parity(run: Experiment, methods: list[Method], parts: PartsInPython) -> dict[str, Any]:
    """How the features of words differ: the names of the unseen classes, by every method."""
    captions = [f"a photo of {name.replace('_', ' ')}" for name in run.split.unseen_classes]
    tokens = run.clip.tokenizer(captions).numpy()  # [n, L]
    worst = 0.0
    for method in methods:
        with torch.no_grad():
            theirs = normalize(method.model.encode_words(captions), dim=1).numpy()  # [n, D]
        ours = np.stack([parts.word_feature(row, method.key) for row in tokens])
        worst = max(worst, float(np.abs(ours - theirs).max()))
    return {"captions": len(captions), "largest_difference": worst}


def refuse_disparity(report: dict[str, Any]) -> None:
    """Raises UserError where a variant, or the features of words, are beyond the bounds."""
    if not report["words"]["largest_difference"] <= BOUNDS["largest_difference"]:
        raise UserError(
            f"Half precision moves a word's feature by {report['words']['largest_difference']:.4f}: too far."
        )
    for variant in report["variants"]:
        name = f"{variant['method']} with {variant['prompts']} prompts"
        if not variant["largest_difference"] <= BOUNDS["largest_difference"]:
            raise UserError(
                f"Half precision moves a feature of {name} by {variant['largest_difference']:.4f}: too far."
            )
        if not variant["equal_first_ten"] >= BOUNDS["equal_first_ten"]:
            raise UserError(f"Only {variant['equal_first_ten']:.0%} of the first ten ranks of {name} stay the same.")


# ---- the folder --------------------------------------------------------------------------------------------


def export_parts(methods: list[Method], folder: Path) -> None:
    """stem.onnx, blocks.onnx, words.onnx and the simulators. All methods share the frozen parts of mini-CLIP."""
    folder.mkdir()
    clip = methods[0].model.clip
    image = torch.zeros(1, 3, clip.image_size, clip.image_size)
    patches = clip.patches(image).detach()
    export(Stem(clip), {"image": image}, folder / "stem.onnx")
    first = torch.zeros(1, 9, clip.width)
    inputs = {"first": first, "patches": patches}
    export(Blocks(clip), inputs, folder / "blocks.onnx", ("output", "attention"), free="first")
    tokens = clip.tokenizer(["a photo of a key"])  # [1, L]
    export(Words(clip), {"tokens": tokens, "end": tokens.argmax(1)}, folder / "words.onnx")
    (folder / "words.json").write_text(json.dumps(reading(clip)))
    for method in methods:
        if method.simulator:
            export(Simulator(method.model), {"patches": patches}, folder / f"{method.simulator}.onnx")


def describe(run: Experiment, features: Features, methods: list[Method], rows: torch.Tensor) -> dict[str, Any]:
    """What the page's scripts need to know, as JSON."""
    data, clip, stick = run.data, run.clip, techniques.CHALKS[chalk_draws().stick]
    names = data.class_names(rows)
    return {
        "pixels": {"side": run.config.pixels, "size": clip.image_size, "mean": clip.mean, "std": clip.std},
        "chalk": {"side": BOARD, "stick": stick},
        "classes": [name.replace("_", " ") for name in names],
        "unseen": sorted(name.replace("_", " ") for name in run.split.unseen_classes),
        "gallery": {
            "tile": TILE,
            "columns": COLUMNS,
            "class": [names.index(data.classes[i]) for i in data.class_index[rows].tolist()],
            "unseen": torch.isin(rows, run.split.gallery).tolist(),
        },
        "methods": [
            dict(
                key=each.key,
                label=each.label,
                about=each.about,
                simulator=each.simulator,
                token=same_token(each, methods),
            )
            for each in methods
        ],
        "measured": {"queries": len(run.split.query), "mAP@200": measured(run, features, methods)},
    }


def hashes(folder: Path) -> dict[str, dict[str, Any]]:
    """{file: {"bytes", "sha256"}} of all files below a folder."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        found[path.relative_to(folder).as_posix()] = dict(
            bytes=len(content), sha256=hashlib.sha256(content).hexdigest()
        )
    return found


def describe_previews(page: Path, address: str) -> None:
    """Write the site's address into the page's links for previews, which need a whole one."""
    text = page.read_text("utf-8")
    page.write_text(text.replace('content="preview.png"', f'content="{address}preview.png"'), "utf-8")


def build_page(folder: Path, address: str = "") -> dict[str, Any]:
    """The page into an empty folder; returns the parity report. Raises UserError where half precision changes ranks.

    address: of the site, for link previews.
    """
    npm.unpack("onnxruntime-web", RUNTIME_FILES, folder / "runtime")  # first: it is what may be missing
    run, methods = load_methods()
    rows = run.splits[1].gallery  # emoji of seen and unseen classes, none of which was trained on
    shutil.copytree(ROOT / "site" / "page", folder, dirs_exist_ok=True)
    shutil.copy(ROOT / "figures" / "banner.png", folder / "preview.png")
    describe_previews(folder / "index.html", address)
    export_parts(methods, folder / "models")
    features = Features(run, methods)
    about, arrays = describe(run, features, methods, rows), page_arrays(features, methods, rows)
    about["arrays"] = write_arrays(arrays, folder / "models" / "arrays.bin")
    report = parity_report(run, features, methods, PartsInPython(folder / "models", arrays))
    (folder / "parity.json").write_text(json.dumps(report, indent=1))
    refuse_disparity(report)
    sprite([run.data.load(row) for row in rows.tolist()], COLUMNS).save(folder / "gallery.webp", quality=88, method=6)
    strip, about["examples"] = example_drawings(run)
    strip.save(folder / "examples.png", optimize=True)
    shutil.copytree(ROOT / "prosutils" / "data" / "licences", folder / "credits")
    shutil.copy(ROOT / "prosutils" / "data" / "ATTRIBUTION.md", folder / "credits" / "ATTRIBUTION.txt")
    worker = folder / "offline.js"  # the last file to be written: it names the version of all others
    about["files"] = {name: known for name, known in hashes(folder).items() if name != worker.name}
    (folder / "site.json").write_text(json.dumps(about))
    version = hashlib.sha256((folder / "site.json").read_bytes()).hexdigest()[:12]
    worker.write_text(worker.read_text().replace("VERSION", version))
    return report


def build(out: Path) -> dict[str, Any]:
    """Page and book as the folder `out`, which is replaced; returns the parity report.

    Raises UserError where `out` holds something else, and as `build_page` and `build_book`.
    """
    repository = origin()
    address = pages_address(repository)
    if out.exists() and not (out.is_dir() and ((out / "site.json").exists() or not any(out.iterdir()))):
        raise UserError(f"{out} exists and is not a site that this command built: choose another folder.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as work:
        new = Path(work) / "site"
        new.mkdir()
        report = build_page(new, address)
        build_book(new / "book", repository, address)
        shutil.rmtree(out, ignore_errors=True)
        os.replace(new, out)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "site", help="folder that is written")
    out = parser.parse_args().out
    try:
        report = build(out)
    except UserError as error:
        sys.exit(str(error))
    worst = max(each["largest_difference"] for each in report["variants"])
    equal = min(each["equal_first_ten"] for each in report["variants"])
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e6
    print(
        f"{out}: {size:.1f} MB. Features differ by {worst:.4f} at most; {equal:.1%} of the first ten ranks are equal."
    )
    print(f"Look at it: python -m http.server --directory {out}")


if __name__ == "__main__":
    main()
