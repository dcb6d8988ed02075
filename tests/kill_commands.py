"""Kills commands at random moments and looks at what is left: nothing may be lost, nothing half-written.

    python tests/kill_commands.py --kills 60            # ten of each command; a table at the end
    python tests/kill_commands.py --kills 0 --pairs 6   # no kill, but each command twice at the same time

Each command runs to its end once. Then it is begun again and again in a fresh folder, killed (SIGKILL) after a random
part of that time, and run once more, as its user would. What it leaves has to be what it left undisturbed, to the bit.
The same holds for a command that two processes begin at the same time in one folder. Processes are forks of this one,
which has imported everything: a kill hits the command and not the imports.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "data_scripts"), str(ROOT / "tests")]

import fetch_benchmark  # noqa: E402

from prosutils import checkpoints, cli, search  # noqa: E402

SHORT = ["--stage1.epochs", "2", "--stage2.epochs", "2", "--stage1.batch-size", "12", "--stage2.batch-size", "12"]
SHORT += ["--workers", "0", "--simulator-layers", "1", "--prompt-tokens", "1"]


SERVERS: list[int] = []


class Command:
    """What is run in a folder, how it is run again, and what it leaves, as something to compare."""

    def __init__(self, place: Path) -> None:
        self.place = place  # holds the folder `pictures`

    def begin(self, folder: Path):
        raise NotImplementedError

    def again(self, folder: Path):
        self.begin(folder)

    def left(self, folder: Path) -> dict:
        raise NotImplementedError


def pictures(folder: Path):
    """3 domains x 5 classes x 6 pictures that a model can tell apart."""
    generator = np.random.default_rng(0)
    for domain in ("photo", "sketch", "print"):
        for number, name in enumerate("abcde"):
            place = folder / domain / name
            place.mkdir(parents=True)
            for i in range(6):
                pixels = generator.integers(0, 80, (32, 32, 3)) + 30 * number
                Image.fromarray(pixels.astype("uint8")).save(place / f"{i}.png")


def tree(folder: Path):
    """Every file under a folder, with its bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


class Train(Command):
    def words(self, folder: Path):
        data = ["--data", str(self.place / "pictures"), "--unseen-domain", "sketch", "--unseen-classes", "a,b"]
        return ["train", "--artifacts", str(folder), *data, *SHORT]

    def begin(self, folder: Path):
        cli.main(self.words(folder))

    def again(self, folder: Path):
        begun = list(folder.glob("runs/*/checkpoint.pt"))
        cli.main([*self.words(folder), *(["--resume"] if begun else [])])

    def left(self, folder: Path):
        (path,) = folder.glob("runs/*pros*/model.pt")
        stored = checkpoints.read_checkpoint(path)
        state = {name: tensor.numpy().tobytes() for name, tensor in stored["state"].items()}
        history = pd.DataFrame(stored["training"]["history"]).to_csv()
        beside = pd.read_csv(path.with_name("history.csv")).to_csv()
        return dict(state=state, history=history, beside=beside, results=pd.read_csv(folder / "results.csv").to_csv())


class Index(Command):
    def begin(self, folder: Path):
        cli.main(["index", str(self.place / "pictures"), "--out", str(folder / "mine.npz")])

    def left(self, folder: Path):
        found = search.ImageIndex.load(folder / "mine.npz")
        return dict(names=found.paths.tolist(), features=found.features.numpy().tobytes(), files=sorted(tree(folder)))


class Draw(Command):
    def begin(self, folder: Path):
        cli.main(["draw", "--size", "16", "--tier", "near", "--to", str(folder / "drawings")])

    def left(self, folder: Path):
        return tree(folder)


class Ablate(Command):
    def begin(self, folder: Path):
        words = ["ablate", "heads", "zero-shot", "--domains", "sketch", "print", "--data", str(self.place / "pictures")]
        cli.main([*words, "--artifacts", str(folder), "--table", str(folder / "grid.csv"), *SHORT])

    def left(self, folder: Path):
        table = pd.read_csv(folder / "grid.csv")
        return dict(rows=table.sort_values(["case", "unseen_domain", "protocol", "gallery"]).to_csv(index=False))


class Fetch(Command):
    def __init__(self, place: Path):
        super().__init__(place)
        path = place / "served" / "pictures.zip"
        path.parent.mkdir()
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted((place / "pictures" / "photo").rglob("*.png")):
                archive.write(file, f"all/{file.parent.name}/{file.name}")
                big = f"all/big/{file.stem}{len(archive.namelist())}.png"
                archive.writestr(big, random.Random(0).randbytes(600_000))
        self.archive = dict(file=path.name, bytes=path.stat().st_size, sha256=fetch_benchmark.sha256(path))
        self.archive |= dict(folders={"all": "photo"}, urls=[f"{serve(path.parent)}/{path.name}"])

    def begin(self, folder: Path):
        fetch_benchmark.install(self.archive, folder / "data", folder / "store", lambda name: name, [])

    def left(self, folder: Path):
        return tree(folder)


class Grade(Command):
    """The course's grading, on three submissions of the toy assignment of test_assignments.py."""

    def __init__(self, place: Path):
        super().__init__(place)
        import test_assignments as toy  # here, for nbgrader may be missing

        self.grading, root = toy.course, place / "course"
        toy.make_toy_course(root, ("d_tags", "i_exit", "n_right"))

    def begin(self, folder: Path):
        if not (folder / "course").exists():
            shutil.copytree(self.place / "course", folder / "copy")
            (folder / "copy").rename(folder / "course")
        root = folder / "course"
        self.grading.autograde(root, "toy", self.grading.students_to_grade(root, "toy"), workers=2)

    def left(self, folder: Path):
        root = folder / "course"
        with self.grading.gradebook(root) as book:
            points = {
                (found.student.id, grade.name): (grade.score, grade.needs_manual_grade)
                for found in book.assignment_submissions("toy")
                for notebook in found.notebooks
                for grade in notebook.grades
            }
        states = {path.name: path.read_text() for path in sorted((root / "states").rglob("*.json"))}
        files = [name for name in tree(root) if name.startswith(("autograded", "submitted"))]
        return dict(points=points, states=states, files=files)


COMMANDS = {kind.__name__.lower(): kind for kind in (Train, Index, Draw, Ablate, Fetch, Grade)}


def serve(folder: Path):
    """The address at which a process of its own serves a folder, slowly and with ranges."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    child = os.fork()
    SERVERS.append(child)
    if child == 0:
        handler = partial(Slow, directory=str(folder))
        ThreadingHTTPServer(("127.0.0.1", port), handler).serve_forever()
    return f"http://127.0.0.1:{port}"


class Slow(SimpleHTTPRequestHandler):
    """A file in small pieces, from where a range asks."""

    def do_GET(self):
        content = Path(self.translate_path(self.path)).read_bytes()
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        with contextlib.suppress(OSError):  # the reader was killed
            for i in range(start, len(content), 200_000):
                self.wfile.write(content[i : i + 200_000])
                time.sleep(0.01)

    def log_message(self, *_):
        pass


def begin(work: Callable, folder: Path):
    """The number of a process that does some work in a folder. What it prints goes to a file beside the folder."""
    child = os.fork()
    if child == 0:
        with open(folder.with_suffix(".log"), "a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        try:
            work(folder)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    return child


def end(child: int):
    """Wait for a process of `begin`: how it ended, "done", "killed", or its exit status."""
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {0: "done", -signal.SIGKILL: "killed"}.get(status, f"status {status}")


def killed(command: Command, folder: Path, seconds: float):
    """Kill a command after some seconds and run it again: how the two ended."""
    first = begin(command.begin, folder)
    time.sleep(seconds)
    os.kill(first, signal.SIGKILL)
    return end(first), end(begin(command.again, folder))


def together(command: Command, folder: Path):
    """Two processes run a command at the same time: how they ended."""
    both = [begin(command.begin, folder) for _ in range(2)]
    return tuple(end(child) for child in both)


def trouble(ended: Sequence[str], command: Command, right: dict, folder: Path) -> str:
    """What is wrong with processes that ended so, or with what they left in the folder; "" if nothing is."""
    log = folder.with_suffix(".log").read_text()[-2000:]
    if set(ended) != {"done"}:
        return f"it ended with {', '.join(ended)}:\n{log}"
    try:
        left = command.left(folder)
    except Exception as error:
        return f"what it left cannot be read: {error!r}\n{log}"
    differing = [name for name in right.keys() | left.keys() if right.get(name) != left.get(name)]
    return f"it left other {', '.join(map(str, differing[:5]))}" if differing else ""


def undisturbed(command: Command, folder: Path):
    """Run a command to its end: what it leaves, and the seconds it took."""
    folder.mkdir()
    start = time.monotonic()
    if end(begin(command.begin, folder)) != "done":
        sys.exit(f"{folder.name} does not run: {folder.with_suffix('.log').read_text()[-3000:]}")
    return command.left(folder), time.monotonic() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60, help="in all, in equal parts")
    parser.add_argument("--pairs", type=int, default=0, help="of processes at the same time, in all, in equal parts")
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.set_num_threads(1)  # threads of the parent would not be there in its forks
    moments, faults = random.Random(args.seed), 0
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        pictures(place / "pictures")
        for number, key in enumerate(args.commands[: max(args.kills, args.pairs)]):
            command = COMMANDS[key](place)
            right, seconds = undisturbed(command, place / f"{key}-whole")
            kills, pairs = (len(range(number, count, len(args.commands))) for count in (args.kills, args.pairs))
            early = 0
            for i in range(kills + pairs):
                folder = place / f"{key}-{i}"
                folder.mkdir()
                if i < kills:
                    first, *ended = killed(command, folder, moments.uniform(0, seconds))
                    early += first == "killed"
                else:
                    ended = together(command, folder)
                if wrong := trouble(ended, command, right, folder):
                    faults += 1
                    print(f"{key}, {'kill' if i < kills else 'pair'} {i}: {wrong}")
                shutil.rmtree(folder)
            print(
                f"{key:7}{seconds:6.1f} s undisturbed, {kills} kills, {early} before its end, {pairs} pairs", flush=True
            )
        print(f"{args.kills} kills and {args.pairs} pairs: {faults} left something else than an undisturbed run")
        for child in SERVERS:
            os.kill(child, signal.SIGKILL)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
