"""Errors for people, locks between processes, files that are written whole or not at all, pools that end."""

import contextlib
import getpass
import hashlib
import importlib.util
import multiprocessing
import multiprocessing.connection
import os
import struct
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock

#: Bytes above which an array in a file is mapped instead of read.
MAPPED_ABOVE = 2**20
#: Bytes of a line of the processor's cache. numpy pads an array's header to a multiple of it.
ALIGNMENT = 64
#: What Python's zipfile and numpy raise for a file with wrong content, beside BadZipFile.
HARM = (OSError, EOFError, RuntimeError, ValueError, TypeError, OverflowError, MemoryError, struct.error, zlib.error)


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


def end_with_parent() -> None:
    """Ends this process, one of a pool's, when the process that began it ends: killed, that one cannot tell the pool,
    whose processes would go on until nothing is left to do."""
    if parent := multiprocessing.parent_process():
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(parent: int) -> None:
    multiprocessing.connection.wait([parent])
    os._exit(1)


def save_arrays(path: str | Path, arrays: Mapping[str, np.ndarray | str]) -> None:
    """Write an .npz file as numpy.savez does, with every array at a multiple of ALIGNMENT bytes: what is computed on a mapped
    array takes half the time then. In one step; raises UserError where it cannot be written."""
    with written_whole(path) as part, zipfile.ZipFile(part, "w") as archive:
        for name, array in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy")
            # Before the array come 30 bytes, the name, 20 bytes for sizes above 4 GB, and this padding: its kind and length.
            begin = archive.start_dir + 30 + len(info.filename) + 20 + 4
            info.extra = struct.pack("<HH", 0xD935, -begin % ALIGNMENT) + bytes(-begin % ALIGNMENT)
            with archive.open(info, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


def mapped_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name. Large ones are mapped: what is read of them is read when it is used, and never
    kept, so that a file may be larger than the memory.

        features = torch.from_numpy(mapped_arrays("features.npz")["features"])

    A file of `save_arrays` or numpy.savez; what numpy.savez_compressed has packed is read whole. Changes of an array do
    not reach the file.
    Raises UserError for a file that is cut short or is none of these, FileNotFoundError where there is none.
    """
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            return {info.filename.removesuffix(".npy"): _member(file, archive, info) for info in archive.infolist()}
    except zipfile.BadZipFile as error:
        with open(path, "rb") as file:
            begins = file.read(4) == b"PK\x03\x04"  # the list of the arrays is at the end of the file
        reason = "its end is missing: it was cut short. Copy or make it again" if begins else f"{error}"
        raise UserError(f"{path} is not an .npz file of features: {reason}.") from None
    except FileNotFoundError:
        raise
    except HARM as error:
        raise UserError(f"{path} is not an .npz file of features: {str(error)[:200]}.") from None


def _member(file: BinaryIO, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """An array of an .npz file, mapped if it is large and not compressed. ValueError for objects, and for wrong sizes."""
    if info.compress_type != zipfile.ZIP_STORED or info.file_size < MAPPED_ABOVE:
        with archive.open(info) as member:
            return np.lib.format.read_array(member, allow_pickle=False)
    file.seek(info.header_offset + 26)  # the lengths of a name and of a field, which stand before the array
    file.seek(info.header_offset + 30 + sum(struct.unpack("<HH", file.read(4))))
    begin, version = file.tell(), np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, columns_first, kind = header(file)
    size = kind.itemsize * int(np.prod(shape, dtype=object))
    if kind.hasobject or file.tell() + size != begin + info.file_size:
        raise ValueError(f"the size of {info.filename} is not that of its numbers")
    return np.memmap(file, kind, "c", file.tell(), shape, "F" if columns_first else "C")
