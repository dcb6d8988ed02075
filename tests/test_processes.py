"""Two processes give what one gives: losses, features, files. And what a run says when it cannot go on."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import launched
import numpy as np
import pandas as pd
import pytest
import torch

from prosutils import cli, experiment, processes, training
from prosutils.config import load_preset
from prosutils.files import UserError
from prosutils.followers import cross_domain_triplet
from prosutils.training import TrainingRun

ROOT = Path(__file__).parents[1]
#: Ends the second of two processes at the beginning of the last epoch, as the system does when memory is short.
DYING = """
import os
from prosutils import processes
from prosutils.training import TrainingRun

train_epoch = TrainingRun.train_epoch

def dies(self, batches, stage):
    if (stage, self.epoch) == (2, 1) and processes.rank() == 1:
        os._exit(9)
    return train_epoch(self, batches, stage)

TrainingRun.train_epoch = dies
"""


def launch(*words):
    """A command in two processes on the CPU."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, "--main_process_port", "0", *map(str, words)], capture_output=True, text=True, env=environment
    )


def flags(folder, artifacts):
    return ["train", "--data", str(folder), "--artifacts", str(artifacts), *launched.FLAGS]


def same_run(one, other):
    """Histories, results and features of two folders are equal to rounding."""
    for name in ("results.csv", "runs/mini-near-pros-sketch-seed3/history.csv"):
        first, second = (pd.read_csv(folder / name) for folder in (one, other))
        pd.testing.assert_frame_equal(first, second, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def started(toy_folder, tmp_path_factory):
    """Artifacts of a run in one process that was interrupted after its first epoch."""
    artifacts, save = tmp_path_factory.mktemp("started"), TrainingRun.save

    def save_and_stop(self):
        save(self)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit, match="Interrupted"):
        patch.setattr(TrainingRun, "save", save_and_stop)
        cli.main(flags(toy_folder, artifacts))
    return artifacts


@pytest.fixture(scope="module")
def one(toy_folder, started, tmp_path_factory):
    """(artifacts, results) of `launched.work` in one process."""
    artifacts = shutil.copytree(started, tmp_path_factory.mktemp("one") / "artifacts")
    return artifacts, launched.work(toy_folder, artifacts)


def test_two_processes_go_on_where_one_stopped_and_give_the_same(toy_folder, started, one, tmp_path):
    artifacts = shutil.copytree(started, tmp_path / "artifacts")
    done = launch(ROOT / "tests" / "launched.py", toy_folder, artifacts)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Written to") == 1 and done.stdout.count("features of width") == 1
    same_run(one[0], artifacts)
    features = [np.load(folder / "features.npz") for folder in (one[0], artifacts)]
    assert features[0]["path"].tolist() == features[1]["path"].tolist()
    np.testing.assert_allclose(features[0]["features"], features[1]["features"], atol=1e-3)
    results = torch.load(artifacts / "results.pt")
    for name, value in one[1].items():
        torch.testing.assert_close(
            results[name], value, rtol=1e-3, atol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert results["loss"].tolist() == pytest.approx(one[1]["loss"].tolist(), rel=1e-4)
    torch.testing.assert_close(results["tensor"], results["own_loader"])


def test_a_process_that_dies_leaves_the_last_epoch_from_which_one_process_goes_on(toy_folder, one, tmp_path):
    (tmp_path / "dying.py").write_text(DYING)
    done = launch("-m", "prosutils", *flags(toy_folder, tmp_path), "--import", tmp_path / "dying.py")
    assert done.returncode and "Process 1 of 2: Another process of this run has ended" in done.stderr
    folder = tmp_path / "runs" / "mini-near-pros-sketch-seed3"
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint.pt", "history.csv"]
    assert len(pd.read_csv(folder / "history.csv")) == 2
    cli.main([*flags(toy_folder, tmp_path), "--resume"])
    same_run(one[0], tmp_path)


# --- Without starting processes -----------------------------------------------------------------------------------


@pytest.fixture
def second_of(monkeypatch):
    """A function: this process is now the second of so many, which are not started."""

    def become(number, rank=1):
        for name, value in dict(WORLD_SIZE=number, RANK=rank, LOCAL_RANK=rank, LOCAL_WORLD_SIZE=number).items():
            monkeypatch.setenv(name, str(value))

    return become


@pytest.mark.parametrize("size, number", [(50, 1), (50, 4), (9, 2), (7, 7), (400, 8)])
def test_parts_of_a_batch_are_the_batch(second_of, size, number):
    parts = []
    for rank in range(number):
        second_of(number, rank)
        parts.append(list(range(size))[processes.share(size)])
    assert sum(parts, []) == list(range(size)) and max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_batch_smaller_than_the_number_of_processes_is_refused(second_of):
    second_of(8)
    with pytest.raises(UserError, match="A batch of 6 cannot be shared by 8 processes: launch 6 at most"):
        processes.share(6)


def test_dropout_is_the_part_of_the_whole_batch_s(second_of):
    tokens = torch.randn(9, 5, 8)
    torch.manual_seed(1)
    whole = processes.dropout(tokens, 0.4)
    for rank in range(2):
        second_of(2, rank)
        torch.manual_seed(1)
        with processes.one_batch(9):
            part = processes.share(9)
            torch.testing.assert_close(processes.dropout(tokens[part], 0.4), whole[part])


def test_a_number_of_processes_set_by_a_cluster_alone_changes_nothing(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "2")
    assert (processes.count(), processes.rank(), processes.is_main()) == (1, 0, True)


def test_more_processes_than_gpus_are_refused(second_of, monkeypatch):
    second_of(4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="4 processes on this machine need 4 GPUs, and it has 2: launch fewer"):
        experiment.find_device()
    with pytest.raises(UserError, match="4 processes cannot share the device 'cuda:1': use --device cuda or"):
        experiment.find_device("cuda:1")


@pytest.mark.parametrize("command", ["ablate", "search", "tutorial", ""])
def test_commands_that_cannot_be_shared_are_refused(second_of, command):
    second_of(2)
    with pytest.raises(SystemExit, match=f"`prosutils {command}` runs in one process: start it without a launcher"):
        cli.main([command] if command else [])


def test_memory_that_runs_out_names_what_to_lower():
    with pytest.raises(UserError, match=r"\(CUDA out of memory\): lower stage2.batch_size, or share .*--resume"):
        with processes.clear_errors("stage2.batch_size"):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    with pytest.raises(UserError, match="A process that reads pictures was stopped .*: use fewer --workers"):
        with processes.clear_errors("batch_size"):
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
    with pytest.raises(RuntimeError, match="shapes"), processes.clear_errors("batch_size"):
        raise RuntimeError("shapes do not fit")


def test_a_triplet_of_one_process_needs_no_other():
    features, index = torch.randn(6, 4), torch.tensor([0, 0, 1, 1, 2, 2])
    with processes.one_batch(6):
        assert cross_domain_triplet(features, index, torch.tensor([0, 1] * 3), 0.5) >= 0


def test_half_precision_scales_its_gradients(toy_folder, tmp_path, monkeypatch, one):
    """As on a GPU without bfloat16: nearly the same losses."""
    monkeypatch.setattr(training, "fast_type", lambda device: torch.float16)
    scales, state = [], TrainingRun.state
    monkeypatch.setattr(TrainingRun, "state", lambda self: scales.append(self.scaler.get_scale()) or state(self))
    cli.main(flags(toy_folder, tmp_path))
    histories = [pd.read_csv(f / "runs/mini-near-pros-sketch-seed3/history.csv") for f in (tmp_path, one[0])]
    assert histories[0].loss.tolist() == pytest.approx(histories[1].loss.tolist(), rel=0.05)
    assert min(scales) > 1


def test_a_resumed_run_goes_on_with_its_scale(toy_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "fast_type", lambda device: torch.float16)
    settings = load_preset("mini-near", **launched.SETTINGS)
    run = experiment.prepare(settings, toy_folder, launched.UNSEEN, tmp_path, "cpu", progress=False)
    first, second = (
        TrainingRun(training.build_model("heads", run.clip, run.split, run.config), run.split, None, False)
        for _ in "12"
    )
    first.scaler.load_state_dict(first.scaler.state_dict() | dict(scale=128.0))
    second.take(first.state())
    assert second.scaler.get_scale() == 128
