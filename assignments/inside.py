"""Runs a notebook that nobody has read: inside the container, or in a process of its own where there is none.

Standard input: a job as JSON, {"notebook", "files", "limits"} (sandbox.py writes it). Standard output: the notebook
with its outputs, and what became of it, as JSON. Everything else that is printed goes to standard error. Needs
nbclient and ipykernel, and nothing of the course: neither source, nor gradebook, nor nbgrader.
"""

import argparse
import asyncio
import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError

try:
    import resource
except ImportError:  # Windows: no limits for a process
    resource = None

FENCE = Path(__file__).resolve().parent / "fence.py"
#: What a kernel keeps of the environment of whoever grades; everything else, tokens and paths, stays outside.
KEPT = ("PATH", "LANG", "LC_ALL", "PYTHONPATH", "PROSUTILS_CACHE", "OMP_NUM_THREADS", "SYSTEMROOT", "LD_LIBRARY_PATH")
KERNEL = [
    "--HistoryManager.enabled=False",  # its database would be an open door
    "--HistoryManager.hist_file=:memory:",
    "--IPKernelApp.log_level=40",  # errors only: not a word about every kernel's transport
    "--InteractiveShell.xmode=Minimal",  # a failed test shows its message, not the lines of the test
]


class Kernel(AsyncKernelManager):
    """A kernel whose connection file another user may read: in the container the kernel is not the user who grades."""

    def write_connection_file(self, **options):
        super().write_connection_file(**options)
        os.chmod(self.connection_file, 0o644)


class Client(NotebookClient):
    """Runs cells with a time limit for each kind of cell and for all answers, and keeps so many bytes of output."""

    def __init__(self, notebook, limits, **options):
        super().__init__(
            notebook,
            allow_errors=True,
            interrupt_on_timeout=True,
            raise_on_iopub_timeout=False,
            record_timing=False,
            shutdown_kernel="immediate",
            skip_cells_with_tag="no tag skips a cell",
            error_on_timeout={
                "ename": "CellTimeoutError",
                "evalue": "",
                "traceback": ["CellTimeoutError: the cell took too long."],
            },
            iopub_timeout=10,  # on a busy machine an output comes late; a lost one looks like tampering
            timeout_func=self.seconds,
            on_cell_executed=self.record_failure,
            **options,
        )
        self.limits, self.end, self.bytes = limits, None, 0

    def seconds(self, cell):
        """How long a cell may run. Answers and tests share a limit, for a loop that cannot be interrupted blocks all
        later cells."""
        kind = cell.metadata.get("kind", "answer")
        if kind == "set_up":
            return self.limits["set_up"]
        self.end = self.end or time.monotonic() + self.limits["total"]
        return max(1, min(self.limits["given" if kind == "given" else "answer"], self.end - time.monotonic()))

    @staticmethod
    def record_failure(cell, cell_index, execute_reply):
        """Keeps the error of a reply that no output shows: a cell that did not end in time."""
        reply = execute_reply["content"]
        if reply["status"] == "error" and not any(output.output_type == "error" for output in cell.outputs):
            cell.outputs.append(
                nbformat.v4.new_output(
                    "error",
                    **{
                        name: reply.get(name) or empty
                        for name, empty in (("ename", "Error"), ("evalue", ""), ("traceback", []))
                    },
                )
            )

    async def async_execute_cell(self, cell, cell_index, **options):
        self.bytes = 0
        await super().async_execute_cell(cell, cell_index, **options)
        cell.metadata["ran"] = True
        return cell

    def output(self, outs, msg, display_id, cell_index):
        """Keeps an output while the cell has printed less than `output_bytes`; one note takes the place of the rest."""
        size, before = len(json.dumps(msg["content"], default=str)), self.bytes
        self.bytes += size
        if self.bytes <= self.limits["output_bytes"]:
            return super().output(outs, msg, display_id, cell_index)
        if msg["msg_type"] == "error":  # a failed test stays failed, however much was printed
            content = {key: str(msg["content"].get(key, ""))[:2000] for key in ("ename", "evalue")}
            outs.append(nbformat.v4.new_output("error", traceback=[], **content))
        elif before <= self.limits["output_bytes"]:
            outs.append(nbformat.v4.new_output("stream", name="stdout", text="\n(The rest of the output was cut.)\n"))
        return None

    async def run_all(self, **start):
        """Runs all code cells; returns the place of the cell at which the kernel died, or None."""
        index = None
        try:
            async with self.async_setup_kernel(**start):
                for index, cell in enumerate(self.nb.cells):
                    await self.async_execute_cell(cell, index)
        except DeadKernelError:
            return index
        return None


def environment(folder):
    """The environment of a kernel: no secrets, and a home that is thrown away with `folder`."""
    home = folder / "home"
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    return kept | {
        "HOME": str(home),
        "USERPROFILE": str(home),
        "TMPDIR": str(folder / "tmp"),
        "USER": "student",
        "IPYTHONDIR": str(home / "ipython"),
        "MPLCONFIGDIR": str(home / "matplotlib"),
        "XDG_CACHE_HOME": str(home / "cache"),
        "PYTHONNOUSERSITE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "JUPYTER_PLATFORM_DIRS": "1",
    }


def lay_out(files, folder):
    """Folders for one run, open to any user of the container; writes the files that were handed in, {path: base64}."""
    for name in ("home", "tmp", "work"):
        (folder / name).mkdir()
        (folder / name).chmod(0o777)
    for name, content in files.items():
        path = folder / "work" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(content))
        path.chmod(0o666)


def restrict(limits):
    """Limits of the kernel's process, set in it before it starts."""
    for name, value in (
        ("RLIMIT_AS", limits["memory_bytes"]),
        ("RLIMIT_FSIZE", limits["file_bytes"]),
        ("RLIMIT_CORE", 0),
        ("RLIMIT_CPU", 4 * limits["total"] + limits["set_up"]),
    ):
        hard = resource.getrlimit(getattr(resource, name))[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(getattr(resource, name), (value, value))
        except (OSError, ValueError):  # macOS has some of them by name only
            pass


def run(job, folder, user=None):
    """Runs the notebook of a job in `folder`; returns {"notebook", "died": place of a cell or None}."""
    lay_out(job["files"], folder)
    notebook = nbformat.from_dict(job["notebook"])
    env = environment(folder)
    closed = os.pathsep.join(job["limits"]["closed"])
    fence = f"__import__('runpy').run_path({str(FENCE)!r}, {{'CLOSED': {closed!r}, 'FREE': {str(folder)!r}}})"
    client = Client(
        notebook,
        job["limits"],
        kernel_name="python3",
        kernel_manager_class=Kernel,
        extra_arguments=[*KERNEL, f"--IPKernelApp.exec_lines={fence}"],
        resources={"metadata": {"path": str(folder / "work")}},
    )
    start = {"env": env, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    if resource:
        start["preexec_fn"] = lambda: restrict(job["limits"])  # in the kernel's process, before Python starts
    if user is not None:
        start |= {"user": user, "group": user, "extra_groups": []}
    died = asyncio.run(client.run_all(**start))
    return {"notebook": client.nb, "died": died}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--user", type=int, help="the number of the user whom the kernel belongs to (in the container)")
    user = parser.parse_args().user
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not mix with the answer
    job = json.load(sys.stdin)
    folder = Path(tempfile.mkdtemp(prefix="grading-"))
    folder.chmod(0o755)
    # Neither a kernel of the user's own choice, nor a connection file in a home that may be read-only.
    os.environ |= {
        "HOME": str(folder),
        "JUPYTER_RUNTIME_DIR": str(folder),
        "JUPYTER_DATA_DIR": str(folder),
        "JUPYTER_CONFIG_DIR": str(folder),
        "JUPYTER_PLATFORM_DIRS": "1",
        "IPYTHONDIR": str(folder),
    }
    try:
        result = run(job, folder, user)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    json.dump(result, answer)
    answer.close()


if __name__ == "__main__":
    main()
