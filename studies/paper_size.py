"""What a training step at the paper's size costs on this machine: seconds, memory, and pictures read per second.

    python studies/paper_size.py                    # needs a GPU; about a minute; figures/paper_size.csv

ProS on ViT-B/32 with random weights (speed and memory do not depend on them), DomainNet's 300 classes and five
training domains, batches of the preset `domainnet`. In float32, as the released code trains, and in bfloat16. Reading:
photographs of 400 x 300 pixels as JPEG, decoded and augmented by one process.
"""

import argparse
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from PIL import Image
from tqdm import tqdm

from prosutils import ProS, load_clip, load_preset
from prosutils.domains import Images, train_transform
from prosutils.image_files import load_image
from prosutils.tables import write_table

DOMAINS = ["clipart", "infograph", "painting", "quickdraw", "real"]


def timed(action, repeats, warm_up=3):
    """Median seconds of some calls, after a few that set things up."""
    seconds = []
    for _ in range(warm_up + repeats):
        begin = time.perf_counter()
        action()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return float(np.median(seconds[warm_up:]))


def step(model, stage, batch, half):
    """A training step on random pictures [batch, 3, 224, 224]: a function to call."""
    optimiser = torch.optim.Adam([p for group in model.set_stage(stage).values() for p in group], lr=1e-4)
    places = torch.arange(batch, device="cuda")
    images = torch.randn(batch, 3, model.clip.image_size, model.clip.image_size, device="cuda")

    def run():
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            loss = model.loss(images, places % len(model.classes), places % len(model.domains), stage)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return run


def training_rows(repeats):
    config = load_preset("domainnet")
    model = ProS(load_clip(config.backbone).cuda(), [f"class {i}" for i in range(300)], DOMAINS, config).cuda()
    for stage, settings in ((1, config.stage1), (2, config.stage2)):
        for half in (False, True):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            seconds = timed(step(model.train(), stage, settings.batch_size, half), repeats)
            yield dict(
                what=f"stage {stage}, a step of {settings.batch_size}",
                precision="bfloat16" if half else "float32",
                seconds=seconds,
                images_per_second=settings.batch_size / seconds,
                gib=torch.cuda.max_memory_allocated() / 2**30,
            )
    model.eval()
    images = torch.randn(256, 3, model.clip.image_size, model.clip.image_size, device="cuda")
    with torch.no_grad():
        seconds = timed(lambda: model.encode_image(images), repeats)
    yield dict(
        what="test features, a batch of 256", precision="float32", seconds=seconds, images_per_second=256 / seconds
    )


def reading_row(folder, count=100):
    generator = np.random.default_rng(0)
    for i in range(count):  # low-frequency noise is about as large as a photograph, in bytes
        small = Image.fromarray(generator.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        small.resize((400, 300), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg", quality=90)
    zeros = torch.zeros(count, dtype=torch.long)
    data = SimpleNamespace(
        domains=("real",), domain_index=zeros, class_index=zeros, load=lambda row: load_image(folder / f"{row}.jpg")
    )
    images = Images(data, torch.arange(count), train_transform(224, (0.5,) * 3, (0.25,) * 3))
    seconds = timed(lambda: [images[i] for i in range(count)], repeats=1, warm_up=1) / count
    return dict(
        device="one core of its machine",
        what="reading, one process",
        precision="",
        seconds=seconds,
        images_per_second=1 / seconds,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10, help="steps that are timed")
    parser.add_argument("--table", type=Path, default=Path("figures/paper_size.csv"))
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("There is no GPU. Notebook 07 counts what a step costs without one.")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = [reading_row(Path(folder))]
    rows += tqdm(training_rows(args.repeats), total=5, desc="Timing")
    table = pd.DataFrame([dict(device=torch.cuda.get_device_name()) | row for row in rows])
    write_table(table, args.table)
    print(table.round(4).to_string(index=False))


if __name__ == "__main__":
    main()
