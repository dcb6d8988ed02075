"""Runs first in the kernel that grades: from then on its Python refuses what an answer has no business to do.

Files can be read where Python and its packages lie, and in FREE, the folder of this run, which is thrown away; they
can be written in FREE only. The folders in CLOSED are shut: the course, with solutions, hidden tests, gradebook and
what others handed in. Programs cannot be started, other processes not signalled, databases not opened, and the
network not used, UDP included.

A fence, not a wall: it stops code that works as Python does, not C code. Whoever grades strangers runs them in a
container (README.md, "Safety").
"""

import importlib.util
import os
import re
import sys

REFUSED = {
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "os.kill",
    "os.killpg",
    "pty.spawn",
    "sqlite3.connect",
    "socket.connect",
    "socket.sendto",
    "socket.sendmsg",
    "socket.bind",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "socket.gethostbyaddr",
    "resource.setrlimit",
    "resource.prlimit",
}
#: Events whose arguments are paths: those that read, and those that change something.
READS = {"os.listdir", "os.scandir", "os.chdir"}
CHANGES = {
    "os.rename",
    "os.link",
    "os.symlink",
    "os.remove",
    "os.rmdir",
    "os.mkdir",
    "os.truncate",
    "os.chmod",
    "os.chown",
    "os.utime",
    "os.setxattr",
}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/sbin", "/opt", "/etc", "/proc", "/sys", "/dev")
DEVICES = ("/dev/null", "/dev/shm")
#: Memory, environment and open files of processes, this one's parent among them.
OF_PROCESSES = re.compile(r"/proc/\d+/(task/\d+/)?(mem|environ|fd|maps|cmdline)(/|$)")


def is_inside(path, folders):
    return any(path == folder or path.startswith(folder.rstrip(os.sep) + os.sep) for folder in folders)


def build(closed, free, readable):
    """The audit hook: a function of one of Python's events and its arguments. Lists of folders: `closed` to everything,
    `free` to everything, `readable` without change; any other place is closed, too."""

    def allowed(path, reads):
        if is_inside(path, free):
            return True
        if is_inside(path, closed) or OF_PROCESSES.match(path):
            return False
        return is_inside(path, readable) if reads else is_inside(path, DEVICES)

    def hook(event, arguments):
        if event in REFUSED:
            raise PermissionError(
                "While grading, a notebook can neither start programs nor use the network or a database."
            )
        if event == "open":
            path, _, flags = arguments
            arguments, reads = [path], not (flags or 0) & WRITING
        elif event in READS or event in CHANGES:
            reads = event in READS
        else:
            return
        for argument in arguments:
            if isinstance(argument, (str, bytes)) or hasattr(argument, "__fspath__"):
                if not allowed(os.path.realpath(os.fsdecode(argument)), reads):
                    raise PermissionError("While grading, files can be read and written beside the notebook only.")

    return hook


def python_folders():
    """Where Python, its packages and prosutils' drawings lie."""
    package = importlib.util.find_spec("prosutils")
    folders = [
        sys.prefix,
        sys.base_prefix,
        os.path.dirname(os.path.realpath(sys.executable)),
        *[path for path in sys.path if path],
        *(package.submodule_search_locations if package else ()),
        os.environ.get("PROSUTILS_CACHE", sys.prefix),
    ]
    return [os.path.realpath(folder) for folder in folders] + list(SYSTEM)


if "FREE" in globals():  # given by whoever starts the kernel
    sys.addaudithook(
        build(
            closed=[os.path.realpath(folder) for folder in CLOSED.split(os.pathsep) if folder],  # noqa: F821
            free=[os.path.realpath(FREE)],  # noqa: F821
            readable=python_folders(),
        )
    )
