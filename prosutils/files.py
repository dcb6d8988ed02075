"""Errors for people, locks between processes, files that are written whole or not at all, pools that end."""

import contextlib
import getpass
import hashlib
import importlib.util
import multiprocessing
import multiprocessing.connection
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock


class UserError(ValueError):
    """Something the user can mend: the message says what is wrong and what to do. The CLI prints it without a trace."""

    def __init__(self, message: str = ""):
        """message: of an error in a worker process of a DataLoader, which arrives with its traceback, the last part."""
        super().__init__(str(message).rpartition(f"\n{__name__}.UserError: ")[2].strip())


def need(extra: str, *packages: str) -> None:
    """Raises UserError that names the `extra` of pyproject.toml where one of its packages is not installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f'{", ".join(missing)} not installed: pip install "prosutils[{extra}]" brings what is needed.')


def only_one(path: str | Path) -> FileLock:
    """A lock: while one process (a notebook, say) makes or changes `path`, other processes of this user wait.

    The lock is a file in `scratch_folder`: nothing is left beside `path`, and two users never meet at one lock.
    """
    return FileLock(scratch_folder() / f"{hashlib.sha256(str(Path(path).resolve()).encode()).hexdigest()[:16]}.lock")


def scratch_folder() -> Path:
    """A folder of this user alone among the system's temporary files, for locks and what can be made again.

    It is writable where HOME and the installed packages are not. Where another user has taken its name, as happens when
    two users share one HOME and one number, the folder with the next number serves.
    Raises UserError where no temporary folder can be written.
    """
    user = hashlib.sha256(f"{Path.home()} {user_name()}".encode()).hexdigest()[:8]
    for number in range(100):
        folder = Path(tempfile.gettempdir()) / (f"prosutils-{user}-{number}" if number else f"prosutils-{user}")
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, exist_ok=True)
            if os.access(folder, os.W_OK | os.X_OK):
                return folder
    raise UserError(f"No folder can be made in {tempfile.gettempdir()}: set TMPDIR to a folder that you may write to.")


def user_name() -> str:
    """What tells this user from others on the machine: the number, or the login name where users have no number."""
    return str(os.getuid()) if hasattr(os, "getuid") else getpass.getuser()


def refuse_unwritable(path: str | Path) -> None:
    """Raises UserError where a file or folder `path` could not be written: for use before long work."""
    place = Path(os.path.realpath(path))
    while not place.exists() and place != place.parent:
        place = place.parent
    if place != Path(os.path.realpath(path)) and not place.is_dir():
        raise UserError(f"{path} cannot be written: {place} is a file and not a folder. Choose another place.")
    if not os.access(place, os.W_OK):
        raise UserError(f"{path} cannot be written: {place} is read-only for you. Choose another place.")


@contextlib.contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Where to write a file or folder that is to be `path`: it gets there in one step when the block has ended.

        with written_whole("results.csv") as part:
            table.to_csv(part)

    An exception or an interruption leaves what was there before. A link is followed: its target is replaced.
    Raises UserError when the folder or an existing file cannot be written, or the disk is full.
    """
    asked, path = path, Path(os.path.realpath(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(13, "it is read-only")
        with tempfile.TemporaryDirectory(prefix=".part-", dir=path.parent, ignore_cleanup_errors=True) as work:
            part = Path(work) / path.name
            yield part
            if path.is_dir() and not part.is_dir():
                raise IsADirectoryError(21, "it is a folder")
            if path.is_dir():
                os.replace(path, Path(work) / ".old")  # a folder cannot be replaced while it holds something
            os.replace(part, path)
    except OSError as error:
        raise UserError(
            f"{asked} cannot be written ({error.strerror or error}): choose another place, close the program "
            "that has it open, or free some space."
        ) from error


def end_with_parent():
    """Ends this process, one of a pool's, when the process that began it ends: killed, that one cannot tell the pool,
    whose processes would go on until nothing is left to do."""
    if parent := multiprocessing.parent_process():
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(parent: int):
    multiprocessing.connection.wait([parent])
    os._exit(1)
