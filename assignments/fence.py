"""Runs first in the kernel that grades: from then on its Python refuses what an answer has no business to do.

The folder of the course (solutions, hidden tests, gradebook, what others handed in) is closed, but for reading the
submission's own folder; programs cannot be started, nor the network used. A fence, not a wall: it stops code that reads
files as Python does. Whoever grades strangers runs nbgrader in a container (README.md, "Safety").
"""

import os
import sys

REFUSED = {
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "socket.connect",
    "socket.sendto",
}
#: Events whose arguments are paths: those that read, which the own folder allows, and those that change something.
READS = {"os.listdir", "os.scandir", "os.chdir", "sqlite3.connect"}
CHANGES = {"os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def build(closed, own):
    """The audit hook: a function of one of Python's events and its arguments. It keeps folders `closed`, but for
    reading in `own`."""

    def is_inside(path, folder):
        return path == folder or path.startswith(folder + os.sep)

    def hook(event, arguments):
        if event in REFUSED:
            raise PermissionError("While grading, a notebook can neither start programs nor use the network.")
        if event == "open":
            path, _, flags = arguments
            arguments, reads = [path], not (flags or 0) & WRITING
        elif event in READS or event in CHANGES:
            reads = event in READS
        else:
            return
        for argument in arguments:
            if isinstance(argument, (str, bytes)) or hasattr(argument, "__fspath__"):
                path = os.path.realpath(os.fsdecode(argument))
                if any(is_inside(path, folder) for folder in closed) and not (reads and is_inside(path, own)):
                    raise PermissionError("While grading, the folder of the course is closed.")

    return hook


own = os.path.realpath(os.getcwd())  # COURSE/autograded/STUDENT/ASSIGNMENT
course, autograded, _ = own.partition(f"{os.sep}autograded{os.sep}")
closed = [os.path.dirname(os.path.realpath(__file__))] + ([course] if autograded else [])
sys.addaudithook(build(closed, own))
