"""Names of files, classes and domains: readable, comparable, listed on a command line, and safe as file names."""

import csv
import hashlib
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from urllib.parse import quote

from .files import UserError

#: Bytes that a file name may have: the limit of nearly every file system, less room for a number.
LONGEST = 240
#: Names that Windows keeps for devices, with any suffix.
DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def readable(name: str | os.PathLike) -> str:
    """A name as text that can be printed and encoded: bytes that are not UTF-8 become `\\xe9`.

    Python reads such a byte of a file name as half a character (surrogateescape). The path keeps it, so that the file
    is found; labels and messages get this text.
    """
    text = os.fspath(name)
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a character of another kind, as Windows has it
        return text.encode("utf-8", "backslashreplace").decode()


def code_points(name: str) -> str:
    """A name with the code points of its characters: `é (U+0065 U+0301)`. It tells look-alikes apart."""
    points = [f"U+{ord(letter):04X}" for letter in name[:24]]
    return f"{readable(name)} ({' '.join(points)}{' ...' if len(name) > 24 else ''})"


def look_alike_key(name: str) -> str:
    """What names share that a reader takes for one: case, spaces, and the ways to write an accent are left out."""
    plain = unicodedata.normalize("NFKC", readable(name)).casefold()
    return re.sub(r"[\s_\-\u200b-\u200f\ufeff]+", "", unicodedata.normalize("NFKC", plain)) or plain


def look_alikes(names: Iterable[str]) -> list[list[str]]:
    """The groups of two and more names that look alike: `Cat` and `cat`, `é` as one character and as two."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(look_alike_key(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def told_apart(name: str, others: Iterable[str]) -> str:
    """The name, with its code points where another of the names looks like it."""
    alike = any(other != name and look_alike_key(other) == look_alike_key(name) for other in others)
    return code_points(name) if alike else readable(name)


def parse_names(texts: str | Sequence[str] | None) -> list[str] | None:
    """Names from a command line: separated by commas, one or more texts; None where nothing is given.

    A name that holds a comma stands in double quotes: `cat,"Washington, DC"`. Spaces around a name do not count.
    Raises UserError where no name is left.
    """
    if texts is None or texts == "" or texts == []:
        return None
    lines = [texts] if isinstance(texts, str) else list(texts)
    try:
        names = [name.strip() for fields in csv.reader(lines, skipinitialspace=True) for name in fields]
    except csv.Error as error:
        raise UserError(f"{lines} is not a list of names separated by commas ({error}).") from None
    names = list(dict.fromkeys(name for name in names if name))
    if not names:
        raise UserError("The list of names is empty: separate names by commas, for example cat,dog.")
    return names


def unknown_names(kind: str, names: Iterable[object], known: Sequence[str]) -> None:
    """Raises UserError naming those of `names` that are not known, and known ones that look like them."""
    unknown = [name for name in map(str, names) if name not in known]
    if not unknown:
        return
    listed = [", ".join(readable(name) for name in group) for group in (unknown, known)]
    said = f"Unknown {kind}: {listed[0]}. Known: {listed[1]}."
    for name in unknown:
        if alike := [other for other in known if look_alike_key(other) == look_alike_key(name)]:
            said += f" {code_points(name)} is not {' or '.join(code_points(other) for other in alike)}."
    if any("," in name and name.partition(",")[0].strip() in unknown for name in known):
        said += " On the command line a name with a comma stands in double quotes: '\"Washington, DC\",dog'."
    raise UserError(said)


def file_name(name: str) -> str:
    """A name as one that every file system takes, different for different names.

    Letters, digits, spaces and most signs stay. What Windows or Linux refuse (`/ \\ : * ? " < > |`, control characters,
    a dot or space at the end, names of devices), a dot at the beginning, which would hide it, and the percent sign
    become `%` and two digits, as in a web address. A name of more than 240 bytes is cut and ends in a checksum.
    """
    safe = re.sub(r'[\x00-\x1f\x7f"%*/:<>?\\|\ud800-\udfff]', _percent, name)
    safe = re.sub(r"^[. ]|[. ]$", _percent, safe)
    if DEVICES.fullmatch(safe):
        safe = f"%{ord(safe[0]):02X}{safe[1:]}"
    if len(safe.encode()) > LONGEST:
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        safe = f"{cut_bytes(safe, LONGEST - 20)}~{digest}"
    return safe or "%"


def _percent(match: re.Match) -> str:
    sign = match[0]
    return f"%{ord(sign):02X}" if ord(sign) < 128 else quote(sign, safe="", errors="surrogatepass")


def cut_bytes(text: str, most: int) -> str:
    """The beginning of a text that has at most `most` bytes as UTF-8."""
    return text.encode("utf-8", "surrogatepass")[:most].decode("utf-8", "ignore")


def print_any_name() -> None:
    """From now on a character that the terminal cannot show is printed as an escape and ends no command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
