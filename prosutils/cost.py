"""What a run of ProS costs, before it starts: operations, memory, disk and hours, on this machine and on GPUs.

    print(report(load_preset("domainnet")))

Operations are counted by formula. This machine's speed and memory are measured on a step, or on a part of one that is
scaled by its operations. The hours of other GPUs are estimates: the speed that one of them reached (MEASURED), scaled by
documented peak rates.
"""

import logging
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch
from PIL import Image
from torch import nn

from . import pictonet
from .backbone import PromptableCLIP, load_clip, tower_operations
from .config import Config
from .domains import train_transform
from .experiment import find_device
from .image_files import load_image
from .processes import clear_errors
from .prompts import LearnedContext
from .pros import ProS
from .training import fast_precision
from .workload import WORK, Workload, drawing, encoded, workload


@dataclass(frozen=True)
class GPU:
    """Peak rates of a card as its maker documents them, without sparsity."""

    gigabytes: float
    bandwidth: float  # of its memory, GB per second
    half: float  # TFLOP per second in bfloat16 (T4: float16), in which stages train
    single: float  # TFLOP per second in float32, in which features are computed


#: From Nvidia's data sheets of these cards (A100: 40 GB, SXM; H100 and H200: SXM).
GPUS = {
    "T4": GPU(16, 320, 65, 8.1),
    "A100": GPU(40, 1555, 312, 19.5),
    "H100": GPU(80, 3350, 989, 67),
    "H200": GPU(141, 4800, 989, 67),
}
#: TFLOP per second on one H200: `operations` of the preset domainnet, divided by the seconds in figures/paper_size.csv
#: (studies/paper_size.py). The version that was measured there did a twentieth more work than is counted.
MEASURED_ON = "H200"
MEASURED = {"stage 1": 125.0, "stage 2": 53.5, "features": 35.9}
#: Memory of a step in bfloat16 as a share of float32's: the larger of the two stages in the same table.
HALF_MEMORY = 0.7
#: What a GPU takes beside what `step_bytes` counts: buffers, and gaps between tensors. In that table it was 5 %; the rest
#: is room to spare.
MARGIN = 1.15
#: Pictures per second that one process reads and augments, in the same table.
READING = 162
#: Operations above which a step is measured in part on a CPU: a few seconds.
PART_ABOVE = 0.4e12


# --- Operations and memory ----------------------------------------------------------------------------------------


def stem_operations(stem: nn.Module, size: int) -> int:
    """Operations of a tower's convolutions on one image of size x size pixels, forward."""
    total = 0
    for layer in stem.modules():
        if isinstance(layer, nn.Conv2d):
            size //= layer.stride[0]
            total += 2 * size**2 * layer.weight.numel()
    return total


def operations(model: ProS, what: str, images: int) -> dict[str, int]:
    """Operations of each tower for `images` pictures: forward and backward for "stage 1" and "stage 2", forward for
    "features".

    The gradient passes a frozen tower for the price of one more forward pass; weights that train take another.
    """
    clip, config, visual = model.clip, model.config, model.clip.model.visual
    patches = (clip.image_size // clip.patch_size) ** 2
    prompts = 2 if what == "stage 1" else 2 * config.prompt_tokens
    units = len(model.domains) + len(model.classes)
    image = tower_operations(images, 1 + prompts + patches, clip.width, len(visual.transformer.resblocks), rows=1)
    written = tower_operations(images, prompts + units + patches, clip.width, config.simulator_layers, rows=prompts)
    stem = images * stem_operations(visual.conv1, clip.image_size)
    own = config.simulator_reads == "own"  # else the simulator reads CLIP's patches, which are computed once more
    read = images * stem_operations(model.simulator.body.conv1, clip.image_size) if own else stem
    if what == "features":
        return {"simulator": written + read, "image tower": image + stem}
    text = {"text tower": 2 * text_operations(clip, model.context.end)}
    if what == "stage 1":
        return text | {"image tower": 2 * image + stem}
    return text | {"simulator": 3 * written + (2 if own else 1) * read, "image tower": 2 * image + stem}


def text_operations(clip: PromptableCLIP, end: torch.Tensor) -> int:
    """Operations of the text tower on captions that end at the positions `end` [C], forward: as `read_embeddings` reads
    them, in four groups of about the same length."""
    layers, groups = len(clip.model.transformer.resblocks), end[end.argsort()].chunk(4)
    return sum(tower_operations(len(group), int(group[-1]) + 1, clip.text_width, layers, rows=1) for group in groups)


def saved_bytes(model: nn.Module, forward: Callable[[], torch.Tensor]) -> int:
    """Bytes that `forward` keeps for the backward pass: shared storage counts once, the model's own weights do not."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = forward()  # alive until all is counted, so that no storage is used twice
    del out
    return sum(kept.values())


def step_bytes(model: ProS, stage: int, batch: int) -> float:
    """Memory of a training step in float32: weights, gradients, Adam's two moments, and what is kept for the backward
    pass, measured on three pictures and every tenth caption."""
    trained = sum(p.numel() for group in model.set_stage(stage).values() for p in group)
    device = model.context.vectors.device

    def features(images: int) -> Callable[[], torch.Tensor]:
        return lambda: model.training_features(*random_batch(model, images, device), stage)

    per_picture = (saved_bytes(model, features(3)) - saved_bytes(model, features(1))) / 2
    some = LearnedContext(model.clip, model.classes[::10], model.config.context_tokens)
    per_caption = saved_bytes(model, lambda: model.clip.encode_embeddings(*some())) / len(some.end)
    weights = sum(p.numel() for p in model.parameters())
    return 4 * weights + 12 * trained + per_picture * batch + per_caption * len(model.classes)


# --- This machine -------------------------------------------------------------------------------------------------


def random_batch(model: ProS, images: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random pictures [B, 3, H, W] with classes [B] and domains [B]."""
    size, places = model.clip.image_size, torch.arange(images, device=device)
    pictures = torch.randn(images, 3, size, size, device=device)
    return pictures, places % len(model.classes), places % len(model.domains)


def least_seconds(action: Callable[[], object], device: torch.device, repeats: int = 2) -> float:
    """The least seconds of some calls, after one that sets things up."""
    seconds = []
    for _ in range(1 + repeats):
        begin = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begin)
    return min(seconds[1:])


def measured_seconds(model: ProS, what: str, images: int) -> float:
    """Seconds of a training step, or of features, of `images` random pictures on the model's device.

    Raises UserError where a GPU's memory is not enough.
    """
    device = model.context.vectors.device
    batch = random_batch(model, images, device)
    if what == "features":
        with torch.no_grad():
            return least_seconds(lambda: model.encode_image(batch[0]), device)
    stage = int(what[-1])
    optimiser = torch.optim.Adam([p for group in model.set_stage(stage).values() for p in group], lr=1e-4)

    def step() -> None:
        with fast_precision(device):
            loss = model.loss(*batch, stage)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    with clear_errors(f"stage{stage}.batch_size"):
        return least_seconds(step, device)


def measured_speed(model: ProS, work: Workload) -> dict[str, float]:
    """Operations per second of each part of WORK on the model's device.

    A step that would take long is measured in part: ten pictures and thirty captions.
    """
    device, speed = model.context.vectors.device, {}
    part = ProS(model.clip, model.classes[:30], model.domains, model.config).to(device)
    for what in WORK:
        tried, images = model, work.batch(what) if what != "features" else 32
        if device.type == "cpu" and sum(operations(model, what, images).values()) > PART_ABOVE:
            tried, images = part, 10
        speed[what] = sum(operations(tried, what, images).values()) / measured_seconds(tried, what, images)
    return speed


def measured_reading(model: ProS) -> float:
    """Pictures per second that one process decodes and augments: drawings of PictoNet, or photographs of 400 x 300."""
    config, clip = model.config, model.clip
    if config.dataset == "pictonet":
        some = pictonet.manifest()[:: len(pictonet.manifest()) // 10]
        files = [encoded(drawing(config, record), "PNG") for record in some]
    else:  # low-frequency noise is about as large as a photograph, in bytes
        noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        files = [encoded(Image.fromarray(noise).resize((400, 300), Image.Resampling.BICUBIC), "JPEG")] * 10
    prepare = train_transform(clip.image_size, clip.mean, clip.std)
    seconds = least_seconds(lambda: [prepare(load_image(file)) for file in files], torch.device("cpu"))
    return len(files) / seconds


# --- The report ---------------------------------------------------------------------------------------------------


def hours(work: Workload, model: ProS, speed: dict[str, float], reading: float, overlapping: bool) -> dict[str, float]:
    """Hours of each part of WORK, and together.

    speed: operations per second; reading: pictures per second of all reading processes. overlapping: a GPU computes
    while the CPU reads; otherwise both take the same cores.
    """
    row = {}
    for what, pictures in work.pictures().items():
        each = sum(operations(model, what, work.batch(what)).values()) / work.batch(what)
        both = pictures * each / speed[what] / 3600, pictures / reading / 3600
        row[what] = max(both) if overlapping else sum(both)
    return row | {"together": sum(row.values())}


def estimated_speed(card: GPU, what: str) -> float:
    """Operations per second of a card: those of the measured one, divided by the larger ratio of peak rates.

    So neither the arithmetic nor the memory is taken to be used better than on the measured card.
    """
    known = GPUS[MEASURED_ON]
    peak = known.single / card.single if what == "features" else known.half / card.half
    return MEASURED[what] * 1e12 / max(peak, known.bandwidth / card.bandwidth)


def gpu_table(work: Workload, model: ProS, need: float) -> pd.DataFrame:
    """Hours on each of GPUS, and whether a step fits into its memory. need: GB of a step in float32."""
    rows = {}
    for name, card in GPUS.items():
        speed = {what: estimated_speed(card, what) for what in WORK}
        taken = need * HALF_MEMORY * MARGIN
        row = hours(work, model, speed, READING * max(1, work.config.workers), overlapping=True)
        rows[f"{name} (estimate)"] = {
            "GB": card.gigabytes,
            "step, GB": taken,
            "fits": taken < 0.95 * card.gigabytes,
        } | row
    return pd.DataFrame(rows).T


def operation_table(work: Workload, model: ProS) -> pd.DataFrame:
    """GFLOP of each tower, one row for each thing that is computed."""
    one, two = work.batch("stage 1"), work.batch("stage 2")
    rows = {
        "forward: features of one picture": operations(model, "features", 1),
        f"stage 1: a step of {one} pictures": operations(model, "stage 1", one),
        f"stage 2: a step of {two} pictures": operations(model, "stage 2", two),
        f"features of all {work.images:,} pictures": operations(model, "features", work.images),
    }
    table = pd.DataFrame(rows).T.reindex(columns=["text tower", "simulator", "image tower"]).fillna(0) / 1e9
    return table.assign(together=table.sum(axis=1))


def verdict(work: Workload, device: torch.device, need: float, folder: Path) -> list[str]:
    """Whether this machine has the memory and the disk, in sentences. need: GB of a step in float32; folder: where the
    run would write."""
    if device.type == "cuda":
        free, need = torch.cuda.mem_get_info(device)[0] / 1e9, need * HALF_MEMORY
    else:
        free = psutil.virtual_memory().available / 1e9
    place = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    room, taken = shutil.disk_usage(place).free / 1e9, need * MARGIN
    return [
        f"Memory: a step takes about {taken:.1f} GB and {free:.1f} GB are free: "
        + ("enough." if taken < free else "too little. Lower stage1.batch_size and stage2.batch_size."),
        f"Disk: pictures take about {work.gigabytes:.2g} GB (archives included, where they are downloaded) and "
        f"{room:.0f} GB are free: " + ("enough." if work.gigabytes < room else "too little. Free some."),
    ]


def report(
    config: Config, folder: str | Path | None = None, device: str | None = None, artifacts: Path = Path("artifacts")
) -> str:
    """Operations, memory, disk and hours of one run of ProS (one held-out domain, one seed), as text of some lines.

    folder: the pictures, which are then counted; device: what is measured, by default a GPU where there is one. Weights
    are random: no cost depends on them, and nothing is downloaded. Raises UserError as `prepare` does.
    """
    found, work = find_device(device), workload(config, folder)
    config, before = work.config, logging.root.manager.disable
    logging.disable(logging.WARNING)  # open_clip warns that weights are random
    model = ProS(load_clip(config.backbone), work.classes, work.domains, config).to(found)
    logging.disable(before)
    need = max(step_bytes(model, 1, work.batch("stage 1")), step_bytes(model, 2, work.batch("stage 2"))) / 1e9
    speed, reading = measured_speed(model, work), measured_reading(model)
    readers = min(max(1, config.workers), os.cpu_count() or 1)
    here = hours(work, model, speed, reading * readers, found.type != "cpu")
    here_table = pd.DataFrame({f"this machine, {found}": here}).T
    lines = [
        f"One run of ProS (one held-out domain, one seed), preset {config.preset}: {len(work.classes)} classes, "
        f"{len(work.domains)} training domains, {work.images:,} pictures ({'counted' if work.counted else 'published sizes'})",
        f"Steps of an epoch: {work.steps['stage 1']:,} of {work.batch('stage 1')} (stage 1, {config.stage1.epochs} "
        f"epochs), {work.steps['stage 2']:,} of {work.batch('stage 2')} (stage 2, {config.stage2.epochs} epochs)",
        "\nOperations, GFLOP (counted; a step forward and backward)",
        operation_table(work, model).to_string(float_format=lambda x: f"{x:,.1f}"),
        "\nHours here (a step or a part of one measured, and scaled)",
        here_table.to_string(float_format=lambda x: f"{x:,.2f}"),
        f"Measured: {', '.join(f'{what} {rate / 1e12:.3f} TFLOP/s' for what, rate in speed.items())}; one process reads "
        f"{reading:.0f} pictures/s",
        *verdict(work, found, need, artifacts),
    ]
    if config.backbone == "mini":
        return "\n".join([*lines, "A GPU's peak rates say nothing about a backbone as small as mini-CLIP."])
    lines += [
        f"\nHours on GPUs, estimated from steps measured on an {MEASURED_ON} and peak rates; {config.workers} processes read",
        gpu_table(work, model, need).to_string(float_format=lambda x: f"{x:,.2f}"),
    ]
    return "\n".join(lines)
