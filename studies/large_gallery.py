"""Search and exact metrics in a gallery of a million pictures: seconds and memory, on this machine.

    python studies/large_gallery.py                    # about two minutes on two cores; figures/large_gallery.csv

The features are made up: a centre for each of 1,000 classes, and noise. They are laid out as `prosutils index` leaves
them, in a temporary file of 2 GB. Each row is measured in a process of its own. "own" is the most memory that the process
had for itself, less what it had after its imports; "mapped" is the most that it had of the file, which the system takes
back when somebody else needs the room. "first" is a query when nothing of the file is in the system's cache. The time of
10 million is ten times as much: every feature is read once for each block of queries.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch

from prosutils import rank, retrieval_metrics
from prosutils.search import ImageIndex
from prosutils.tables import write_table

CLASSES = 1000
TABLE = Path(__file__).parents[1] / "figures" / "large_gallery.csv"


def made_up(number: int, width: int, seed: int) -> torch.Tensor:
    """Features [n, D]; row i is of class i % CLASSES."""
    centres = torch.randn(CLASSES, width, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(number, width, generator=torch.Generator().manual_seed(seed))
    return noise.mul_(2).add_(centres[torch.arange(number) % CLASSES])


def write_index(folder: Path, number: int, width: int) -> Path:
    """An index of pictures that do not exist."""
    paths = np.array([f"album_{i % CLASSES}/picture_{i:07d}.jpg" for i in range(number)])
    return ImageIndex(folder, paths, made_up(number, width, seed=1), signature="").save(folder / "index.npz")


class Memory:
    """The most memory of this process while the block runs, in MB: `own` (less that at the beginning) and `mapped`."""

    def __enter__(self):
        self.own, self.mapped, self.ended = 0.0, 0.0, threading.Event()
        self.before = self.now()[0]
        self.watch = threading.Thread(target=self.look)
        self.watch.start()
        return self

    def now(self):
        info = psutil.Process().memory_info()
        return (info.rss - info.shared) / 2**20, info.shared / 2**20  # shared counts what is mapped of files (Linux)

    def look(self):
        while not self.ended.wait(0.01):
            own, mapped = self.now()
            self.own, self.mapped = max(self.own, own - self.before), max(self.mapped, mapped)

    def __exit__(self, *_):
        self.ended.set()
        self.watch.join()


def forget(path: Path) -> None:
    """Let the system take a file out of its cache, where it can be asked to."""
    if hasattr(os, "posix_fadvise"):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def seconds_of(action) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def search_row(path: Path, repeats: int) -> dict:
    """One query after another, the ten best pictures of each."""
    forget(path)
    with Memory() as memory:
        load = seconds_of(lambda: ImageIndex.load(path))
        index = ImageIndex.load(path)
        queries = made_up(repeats + 1, index.features.shape[1], seed=2)
        first, *others = [seconds_of(lambda query=query: index.search(query, 10)) for query in queries]
    return dict(
        what="search, 10 answers",
        queries=1,
        gallery=len(index.paths),
        seconds=statistics.median(others),
        least=min(others),
        first=load + first,
        own_mb=memory.own,
        mapped_mb=memory.mapped,
    )


def metric_row(path: Path, queries: int) -> dict:
    """Exact mAP@200 and precision of some queries."""
    with Memory() as memory:
        index = ImageIndex.load(path)
        query, labels = made_up(queries, index.features.shape[1], seed=2), torch.arange(len(index.paths)) % CLASSES
        seconds = seconds_of(
            lambda: retrieval_metrics(query, labels[:queries], index.features, labels, ks=(200,), whole=False)
        )
    return dict(
        what="exact mAP@200",
        queries=queries,
        gallery=len(index.paths),
        seconds=seconds,
        own_mb=memory.own,
        mapped_mb=memory.mapped,
    )


def engine_rows(queries: int, gallery: int, width: int) -> list[dict]:
    """`rank` by both engines, the least of three."""
    query, features = made_up(queries, width, seed=2), made_up(gallery, width, seed=1)
    return [
        dict(
            what=f"rank, 200 answers, engine {engine}",
            queries=queries,
            gallery=gallery,
            seconds=min(
                seconds_of(lambda engine=engine: rank(query, features, k=200, engine=engine)) for _ in range(3)
            ),
        )
        for engine in ("torch", "faiss")
    ]


def apart(function, *arguments):
    """What a function returns in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gallery", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--queries", type=int, nargs="+", default=[200, 2000], help="of the exact metrics")
    parser.add_argument("--table", type=Path, default=TABLE)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = apart(write_index, Path(folder), args.gallery, args.width)
        rows = [apart(search_row, path, 10), *(apart(metric_row, path, queries) for queries in args.queries)]
    rows += apart(engine_rows, min(2000, args.gallery), min(20_000, args.gallery), args.width)
    table = pd.DataFrame(rows).assign(width=args.width, threads=torch.get_num_threads())
    write_table(table.round({"seconds": 3, "least": 3, "first": 2, "own_mb": 0, "mapped_mb": 0}), args.table)
    print(table.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
