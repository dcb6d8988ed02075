"""Errors for people, locks between processes, and files that are written whole or not at all."""

import contextlib
import hashlib
import importlib.util
import os
import tempfile
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

    The lock is a file among the system's temporary files, in a folder of this user's own: nothing is left beside
    `path`, and two users never meet at one lock.
    """
    user = hashlib.sha256(f"{Path.home()} {getattr(os, 'getuid', str)()}".encode()).hexdigest()[:8]
    folder = Path(tempfile.gettempdir()) / f"prosutils-{user}"
    folder.mkdir(exist_ok=True)
    return FileLock(folder / f"{hashlib.sha256(str(Path(path).resolve()).encode()).hexdigest()[:16]}.lock")


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
            yield Path(work) / path.name
            if path.is_dir():
                os.replace(path, Path(work) / ".old")  # a folder cannot be replaced while it holds something
            os.replace(Path(work) / path.name, path)
    except OSError as error:
        raise UserError(
            f"{asked} cannot be written ({error.strerror or error}): choose another place, close the program "
            "that has it open, or free some space."
        ) from error
