"""Where answers run: in a container (Docker or Podman) where there is one, else in a process with a fence around it.

A run gets the notebook and the other files that were handed in, and gives back the notebook with its outputs. It sees
neither `source/` nor the gradebook, in the container not even their disk.
"""

import base64
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import uuid
from pathlib import Path

import platformdirs

HERE = Path(__file__).resolve().parent
IMAGE = "pros-grading"
#: Number of the user in the container whom a kernel belongs to; the one that reads its outputs is another.
STUDENT = 1001
MEMORY = 4 << 30  # bytes that a run may use in the container
ADDRESS_SPACE = 12 << 30  # bytes that a kernel may map; PyTorch maps far more than it uses
FILES = 200 << 20  # bytes of other files in a submission (a `model.pt` has 40 million)
ANSWER = 200 << 20  # bytes of a notebook that comes back
UNPROTECTED = (
    "No container: neither Docker nor Podman answers. Answers run as your own user, behind a fence in Python.\n"
    "Protected, against Python code: files outside of the submission, other programs, the network. Every run has a\n"
    "clean environment and a home that is thrown away; memory, time, file size and output are limited.\n"
    "NOT protected: code in C (ctypes) can read, change and send whatever you can, marks included. Grade strangers in\n"
    'a container (assignments/README.md, "Safety").'
)


class RunFailed(Exception):
    """A notebook could not be run at all; the message says why."""


@functools.cache
def engine():
    """The program that runs containers, "docker" or "podman", or None. PROS_CONTAINER names one, or "none"."""
    wanted = os.environ.get("PROS_CONTAINER", "").lower()
    if wanted == "none":
        return None
    for program in [wanted] if wanted else ["docker", "podman"]:
        if shutil.which(program) and answers([program, "info"]):
            return program
    if wanted:
        raise SystemExit(
            f"PROS_CONTAINER is {wanted!r}, but `{wanted} info` does not answer. Start it, or choose docker, "
            "podman or none."
        )
    return None


def answers(command):
    """Whether a command ends well within a few seconds."""
    try:
        return subprocess.run(command, capture_output=True, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def build_image(program):
    """Builds the image from the package as it is now; quick if nothing has changed. Raises SystemExit if it fails."""
    root = HERE.parent
    with tempfile.TemporaryDirectory() as context:
        context = Path(context)
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(root / name, context)
        shutil.copytree(root / "prosutils", context / "prosutils", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("Containerfile", "inside.py", "fence.py"):
            shutil.copy(HERE / name, context)
        command = [program, "build", "--tag", IMAGE, "--file", str(context / "Containerfile"), str(context)]
        if subprocess.run(command).returncode:
            raise SystemExit(
                f"The image for grading could not be built ({' '.join(command[:2])}, see above). Without it: "
                'PROS_CONTAINER=none, which protects less (assignments/README.md, "Safety").'
            )


def container_command(program, name):
    """The command line of one run. Nothing of this machine is mounted; files go in and out by the standard streams."""
    return [
        program,
        "run",
        "--rm",
        "--interactive",
        "--name",
        name,
        "--network",
        "none",
        "--read-only",
        "--tmpfs",
        "/tmp:rw,mode=1777,size=1g",
        "--memory",
        str(MEMORY),
        "--memory-swap",
        str(MEMORY),
        "--pids-limit",
        "256",
        "--cpus",
        "1",
        "--cap-drop",
        "ALL",
        "--cap-add",
        "SETUID",
        "--cap-add",
        "SETGID",
        "--cap-add",
        "KILL",
        "--security-opt",
        "no-new-privileges",
        "--env",
        "OMP_NUM_THREADS=1",
        IMAGE,
        "--user",
        str(STUDENT),
    ]


def process_environment():
    """The environment of a run without a container: what Python needs, and where the drawings lie."""
    kept = ("PATH", "LANG", "LC_ALL", "PYTHONPATH", "SYSTEMROOT", "LD_LIBRARY_PATH", "TMPDIR")
    cache = os.environ.get("PROSUTILS_CACHE") or platformdirs.user_cache_path("prosutils")
    return {name: os.environ[name] for name in kept if name in os.environ} | {
        "OMP_NUM_THREADS": "1",
        "PROSUTILS_CACHE": str(cache),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


@functools.cache
def lay_out_drawings():
    """Draws PictoNet once: a run may not write into the cache."""
    subprocess.run(
        [
            sys.executable,
            "-c",
            "from prosutils import pictonet\n"
            "pictonet.lay_out(pictonet.default_folder(64, 'far'), tier='far', progress=False)",
        ],
        env=process_environment(),
        check=True,
    )


def files_of(folder, log):
    """What was handed in beside notebooks, {path: base64}. Links are left out: they can lead anywhere."""
    files, size = {}, 0
    for path in sorted(Path(folder).rglob("*")):
        if path.is_symlink() or not path.is_file() or path.suffix == ".ipynb":
            continue
        size += path.stat().st_size
        if size > FILES:
            log.warning(
                "%s: more than %d million bytes beside the notebook; %s and what follows is left out.",
                folder,
                FILES >> 20,
                path.name,
            )
            break
        files[path.relative_to(folder).as_posix()] = base64.b64encode(path.read_bytes()).decode()
    return files


def run(notebook, folder, limits, log):
    """Runs a notebook beside the files in `folder`; returns (notebook with outputs, where the kernel died or None).

    limits: seconds and bytes, see inside.py. Raises RunFailed when no notebook comes back.
    """
    program = engine()
    closed = [] if program else [str(HERE), str(course_of(folder))]
    limits = limits | {"memory_bytes": ADDRESS_SPACE, "file_bytes": FILES, "closed": closed}
    job = json.dumps({"notebook": notebook, "files": files_of(folder, log), "limits": limits}).encode()
    seconds = limits["set_up"] * 2 + limits["total"] * 2 + 120
    if program:
        name = f"pros-{uuid.uuid4().hex[:12]}"
        answer = exchange(container_command(program, name), job, seconds, None, [program, "kill", name])
    else:
        if "pictonet" in json.dumps(notebook["cells"]):
            lay_out_drawings()
        answer = exchange([sys.executable, str(HERE / "inside.py")], job, seconds, process_environment())
    try:
        result = json.loads(answer)
        return result["notebook"], result["died"]
    except (ValueError, KeyError, TypeError):
        raise RunFailed("what the run gave back is not a notebook") from None


def course_of(folder):
    """The folder of the course that a submission's folder COURSE/autograded/STUDENT/ASSIGNMENT lies in."""
    return Path(folder).resolve().parents[2]


def exchange(command, job, seconds, env, kill=None):
    """Sends bytes to a command and returns what it answers, up to a limit of bytes and seconds."""
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, env=env, start_new_session=True
        ) as process,
    ):

        def stop():
            if kill:
                subprocess.run(kill, capture_output=True)
            process.kill()

        timer = threading.Timer(seconds, stop)
        timer.start()
        try:
            with process.stdin:
                process.stdin.write(job)
        except BrokenPipeError:
            pass  # it has ended already; what it said follows
        answer = process.stdout.read(ANSWER + 1)
        if len(answer) > ANSWER:
            stop()
        process.wait()
        timer.cancel()
        said.seek(max(0, said.seek(0, os.SEEK_END) - 1000))
        last = said.read().decode(errors="replace").strip().splitlines()[-1:]
    if len(answer) > ANSWER:
        raise RunFailed(f"the notebook has more than {ANSWER >> 20} million bytes of output")
    if not answer:
        raise RunFailed(f"the run ended without a result ({', '.join(last) or 'its process was killed'})")
    return answer
