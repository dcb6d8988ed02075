"""Commands that are killed, disks that are full, folders that are read-only, two processes at one file.

The figures of RELIABILITY.md come from longer runs of the same scripts.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from prosutils import load_preset, pictonet
from prosutils.backbone import MINI_MEAN, MINI_STD, MiniTokenizer, PromptableCLIP, build_mini
from prosutils.checkpoints import save_checkpoint
from prosutils.files import UserError
from prosutils.search import ImageIndex, signature
from prosutils.show import plots
from prosutils.splits import make_split
from prosutils.tables import RESULTS, add_rows, write_table
from prosutils.training import build_model

HERE = Path(__file__).parent


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a killed command is a fork of the script")
def test_a_command_killed_and_run_again_or_run_twice_at_once_leaves_what_it_leaves_undisturbed():
    words = [sys.executable, HERE / "kill_commands.py", "--kills", "5", "--pairs", "5", "--seed", str(os.getpid())]
    done = subprocess.run(words, capture_output=True, text=True, timeout=900)
    told = "5 kills and 5 pairs: 0 left something else"
    assert done.returncode == 0 and told in done.stdout, done.stdout + done.stderr


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("way", ["spawn", "fork"])
def test_the_processes_of_a_killed_pool_end(way, tmp_path):
    """Nothing else would stop them before their list of work is empty."""
    begun = (
        "import multiprocessing as m, os, time\nfrom concurrent.futures import ProcessPoolExecutor\n"
        "from prosutils.files import end_with_parent\n"
        "if __name__ == '__main__':\n"
        f"    pool = ProcessPoolExecutor(2, m.get_context('{way}'), end_with_parent)\n"
        "    [pool.submit(time.sleep, 60) for _ in range(4)]\n"
        "    print(*pool._processes, flush=True)\n    time.sleep(60)\n"
    )
    (tmp_path / "pool.py").write_text(begun)
    with subprocess.Popen([sys.executable, tmp_path / "pool.py"], stdout=subprocess.PIPE, text=True) as parent:
        workers = [int(number) for number in parent.stdout.readline().split()]
        time.sleep(2)  # until they have begun
        parent.kill()
    assert len(workers) == 2
    end = time.monotonic() + 20
    while (left := [worker for worker in workers if goes_on(worker)]) and time.monotonic() < end:
        time.sleep(0.1)
    for worker in left:
        os.kill(worker, signal.SIGKILL)
    assert not left, "the workers went on"


def goes_on(process):
    """Whether a process is there and has not ended, be it collected or not."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


@contextlib.contextmanager
def full_disk(most=1000):
    """No file of this process can grow beyond `most` bytes, as on a disk that is full."""
    resource = pytest.importorskip("resource")
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture(scope="module")
def model(toy):
    torch.manual_seed(0)
    clip = PromptableCLIP(build_mini(), MiniTokenizer(), MINI_MEAN, MINI_STD, "mini").requires_grad_(False).eval()
    split = make_split(toy, unseen_domain="sketch", unseen_classes=["gem"], val_classes=["box"])
    return build_model("heads", clip, split, load_preset("mini-near"))


def large_table():
    row = {name: "x" for name in RESULTS.text} | {name: 1.0 for name in RESULTS.real}
    return pd.DataFrame([row | dict.fromkeys(RESULTS.whole, seed) for seed in range(60)])


def figure():
    history = dict(stage=[1, 2], epoch=[1, 1], loss=[1.0, 0.5], accuracy=[0.1, 0.2], images=[10, 20])
    return plots.training_curves(pd.DataFrame(history | {"val_mAP@200": [np.nan, 0.3]}))


#: What writes a file, given the model and a path.
WRITERS = {
    "checkpoint.pt": lambda model, path: save_checkpoint(model, path),
    "table.csv": lambda model, path: write_table(large_table(), path),
    "index.npz": lambda model, path: ImageIndex(
        path.parent, np.array(["a.png"] * 9), torch.ones(9, 64), signature(model)
    ).save(path),
    "figure.png": lambda model, path: plots.save(figure(), path),
    "drawings": lambda model, path: pictonet.lay_out(path, 64, progress=False),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("there", [False, True])
def test_on_a_full_disk_nothing_is_lost_or_half_written(name, there, model, tmp_path):
    path = tmp_path / name
    if there and name != "drawings":
        WRITERS[name](model, path)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file() and file.suffix != ".lock"}
    with full_disk(), pytest.raises(UserError, match=re.escape(name)):
        WRITERS[name](model, path)
    after = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file() and file.suffix != ".lock"}
    assert after == before


def test_rows_that_do_not_fit_on_the_disk_are_told(tmp_path, monkeypatch):
    """Where no file can be written at all, the numbers are in the message."""
    path = tmp_path / "results.csv"
    add_rows(large_table().iloc[:2], path, RESULTS)
    before = path.read_bytes()
    with full_disk(len(before)), pytest.raises(UserError) as told:
        add_rows(large_table(), path, RESULTS)
    assert path.read_bytes() == before
    assert str(told.value).count("\nx,x,x,x,x,x,x,") == 60
