"""What a run costs: counts against PyTorch's own, sizes against the published ones, times against measured steps."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import psutil
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from prosutils import ProS, UserError, cli, load_clip, load_preset, prepare
from prosutils.cost import (
    GPUS,
    HALF_MEMORY,
    MEASURED,
    estimated_speed,
    hours,
    least_seconds,
    measured_seconds,
    operations,
    random_batch,
    report,
    saved_bytes,
    step_bytes,
    verdict,
)
from prosutils.workload import WORK, workload

FIGURES = Path(__file__).parents[1] / "figures"
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["own", "clip"])
def model(request):
    """ProS on mini-CLIP, whose simulator reads patches of its own or CLIP's."""
    config = load_preset("mini-near", simulator_reads=request.param, prompt_tokens=2)
    return ProS(load_clip(), [f"class {i}" for i in range(40)], ["a", "b", "c"], config)


@pytest.mark.parametrize("what", WORK)
def test_operations_are_those_that_torch_counts(model, what):
    with FlopCounterMode(display=False) as counter:
        if what == "features":
            with torch.no_grad():
                model.encode_image(random_batch(model, 6, CPU)[0])
        else:
            model.set_stage(int(what[-1]))
            model.loss(*random_batch(model, 6, CPU), int(what[-1])).backward()
    assert 0.85 < sum(operations(model, what, 6).values()) / counter.get_total_flops() < 1.1


@pytest.mark.parametrize("stage", [1, 2])
def test_memory_scales_from_a_part_to_the_whole_step(model, stage):
    model.set_stage(stage)
    batch = random_batch(model, 30, CPU)
    kept = saved_bytes(model, lambda: model.loss(*batch, stage))
    fixed = step_bytes(model, stage, 0) - step_bytes(model, stage, 30)
    trained = sum(p.numel() for group in model.trainable(stage).values() for p in group)
    counted = step_bytes(model, stage, 30) - 4 * sum(p.numel() for p in model.parameters()) - 12 * trained
    assert fixed < 0 and 0.85 < counted / kept < 1.15


def test_a_step_takes_as_long_as_a_part_of_it_foretells():
    """Generous bounds: the machine may do other work meanwhile."""
    model = ProS(load_clip(), [f"class {i}" for i in range(100)], ["a", "b"], load_preset("mini"))
    part, whole = (measured_seconds(model, "stage 2", images) for images in (16, 64))
    ratio = sum(operations(model, "stage 2", 64).values()) / sum(operations(model, "stage 2", 16).values())
    assert 1 / 3 < whole / (part * ratio) < 3


def test_least_seconds_leave_the_first_call_out():
    calls = []
    assert least_seconds(lambda: calls.append(0), CPU) < 0.1 and len(calls) == 3


# --- What there is to compute -------------------------------------------------------------------------------------


def test_domainnet_from_its_published_sizes():
    """530 and 4,244 steps: clipart, less its unseen classes. 76,569 queries and gallery images of four protocols."""
    work = workload(load_preset("domainnet", unseen_domain="sketch"))
    assert work.steps == {"stage 1": (48_837 - 6_394) // 80, "stage 2": (48_837 - 6_394) // 10}
    assert work.steps == {"stage 1": 530, "stage 2": 4244}
    assert (len(work.classes), len(work.domains), work.images, work.validation) == (300, 5, 596_010, 0)
    assert work.test == 9729 + 36_600 + 22_500 + 1883 + 5857
    choosing = workload(load_preset("domainnet", training_classes="train"))
    assert len(choosing.classes) == 245 and choosing.validation > 0 and choosing.steps["stage 2"] < 4244
    clipart = workload(load_preset("domainnet", unseen_domain="clipart"))
    assert clipart.steps["stage 2"] == (53_201 - 6_354) // 10  # infograph is the smallest then


@pytest.mark.parametrize(
    "preset, classes, test", [("sketchy", 104, 12_694 + 10_453), ("tuberlin", 220, 2_400 + 24_539), ("pacs", 5, 1428)]
)
def test_the_other_benchmarks(preset, classes, test):
    """Where no size is published, images are spread evenly over the classes."""
    work = workload(load_preset(preset))
    assert (len(work.classes), work.test) == (classes, test) and not work.counted


def test_a_folder_is_counted_as_it_is(toy_folder, tmp_path):
    config = load_preset("mini-near", dataset="folder", stage2=dict(batch_size=9))
    work, run = workload(config, toy_folder), prepare(config, toy_folder, artifacts=tmp_path, device="cpu")
    assert work.counted and work.images == len(run.data) and tuple(work.classes) == run.split.seen_classes
    assert work.gigabytes == sum(path.stat().st_size for path in run.data.paths) / 1e9
    _, history = run.fit("heads", progress=False)
    assert history.images.iloc[0] == work.steps["stage 2"] * work.batch("stage 2")


def test_drawings_are_counted_without_laying_them_out():
    config = load_preset("mini")
    work, run = workload(config), prepare(config, device="cpu", progress=False)
    split = run.split
    assert work.images == len(run.data) and tuple(work.classes) == split.seen_classes
    assert work.validation == len(split.val_query) + len(split.val_gallery)
    assert work.pictures()["stage 2"] == config.stage2.epochs * 37 * 50


# --- GPUs ---------------------------------------------------------------------------------------------------------


def test_speeds_of_the_measured_gpu_are_those_of_the_table():
    """Operations at the paper's size, divided by the seconds of figures/paper_size.csv."""
    config = load_preset("domainnet")
    work = workload(config)
    model = ProS(load_clip(config.backbone), work.classes, work.domains, config)
    table = pd.read_csv(FIGURES / "paper_size.csv").set_index(["what", "precision"])
    rows = {
        "stage 1": ("stage 1, a step of 400", "bfloat16", 400),
        "stage 2": ("stage 2, a step of 50", "bfloat16", 50),
        "features": ("test features, a batch of 256", "float32", 256),
    }
    for what, (name, precision, images) in rows.items():
        seconds = table.loc[(name, precision), "seconds"]
        assert sum(operations(model, what, images).values()) / seconds / 1e12 == pytest.approx(
            MEASURED[what], rel=0.005
        )
    speed = {what: estimated_speed(GPUS["H200"], what) for what in WORK}
    row = hours(work, model, speed, reading=1e9, overlapping=True)
    assert row["stage 2"] == pytest.approx(42_440 * table.loc[(rows["stage 2"][:2]), "seconds"] / 3600, rel=0.005)
    gib = table.loc[[rows["stage 1"][:2], rows["stage 2"][:2]], "gib"].to_numpy()
    single = [table.loc[(rows[what][0], "float32"), "gib"] for what in ("stage 1", "stage 2")]
    assert max(gib / single) == pytest.approx(HALF_MEMORY, abs=0.01)


def test_a_slower_card_takes_longer_by_its_scarcer_rate():
    speed = {name: estimated_speed(card, "stage 2") for name, card in GPUS.items()}
    assert speed["T4"] < speed["A100"] < speed["H100"] < speed["H200"]
    assert speed["H200"] / speed["H100"] == pytest.approx(4800 / 3350)  # the same arithmetic, less bandwidth
    assert speed["H200"] / speed["T4"] == pytest.approx(989 / 65)


def test_reading_and_computing_overlap_on_a_gpu_alone(model):
    work = dataclasses.replace(workload(load_preset("mini")), validation=0)
    speed = dict.fromkeys(WORK, 1e12)
    alone, cpu, gpu = (
        hours(work, model, speed, rate, overlap) for rate, overlap in ((1e12, False), (100, False), (100, True))
    )
    for what, pictures in work.pictures().items():
        assert cpu[what] == pytest.approx(alone[what] + pictures / 100 / 3600)
        assert gpu[what] == pytest.approx(max(alone[what], pictures / 100 / 3600))
    assert cpu["together"] == pytest.approx(sum(cpu[what] for what in WORK))


# --- The report ---------------------------------------------------------------------------------------------------


def test_what_is_not_enough_is_said(monkeypatch, tmp_path):
    work = workload(load_preset("domainnet"))
    memory, disk = verdict(work, CPU, 0.1, tmp_path / "not" / "yet")
    assert memory.endswith("enough.") and "37 GB" in disk
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=4e9))
    monkeypatch.setattr("prosutils.cost.shutil.disk_usage", lambda _: SimpleNamespace(free=30e9))
    memory, disk = verdict(work, CPU, 5.0, tmp_path)
    assert "too little. Lower stage1.batch_size" in memory and disk.endswith("too little. Free some.")


def test_the_command_prints_a_report(toy_folder, capsys):
    flags = ["--preset", "mini-near", "--dataset", "folder", "--device", "cpu", "--stage2.batch-size", "9"]
    cli.main(["cost", "--data", str(toy_folder), *flags])
    out = capsys.readouterr().out
    for part in ("a step of 9 pictures", "this machine, cpu", "Memory: ", "Disk: ", "pictures (counted)"):
        assert part in out


def test_a_folder_that_does_not_fit_is_refused(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        report(load_preset("mini"), tmp_path / "nowhere", "cpu")
