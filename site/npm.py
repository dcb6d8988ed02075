"""Packages of the npm registry from which the site takes files: fetched once into the user's cache, checked by hash."""

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

import platformdirs

from prosutils.files import UserError

#: {package: (version, hash)}; `npm view PACKAGE@VERSION dist.integrity` gives the hash.
#: MathJax 3, because one file of it holds all glyphs; MathJax 4 loads them one by one from a second package.
PACKAGES = {
    "onnxruntime-web": (
        "1.30.0",
        "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
    ),
    "mathjax": (
        "3.2.2",
        "sha512-Bt+SSVU8eBG27zChVewOicYs7Xsdt40qm4+UpHyX7k0/O9NliPc+x77k1/FEsPsjKPZGJvtRZM1vO+geW0OhGw==",
    ),
    "axe-core": (
        "4.14.1",
        "sha512-FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==",
    ),
}


def archive(name: str) -> Path:
    """The package as a .tgz file. Raises UserError without npm or network, and for another file of this name."""
    version, integrity = PACKAGES[name]
    cache = Path(os.environ.get("PROSUTILS_CACHE") or platformdirs.user_cache_path("prosutils"))
    path = cache / f"{name}-{version}.tgz"
    if not path.exists():
        npm = shutil.which("npm")
        if npm is None:
            raise UserError(
                f"npm is missing. It fetches {name}, which the site needs: install Node.js (Debian: apt-get install "
                f"npm), or save https://registry.npmjs.org/{name}/-/{path.name} as {path}."
            )
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            command = [npm, "pack", f"{name}@{version}", "--pack-destination", folder]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise UserError(f"npm could not fetch {name} {version}: {done.stderr.strip()[-300:]}")
            os.replace(Path(folder) / path.name, path)
    digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    if f"sha512-{digest}" != integrity:
        raise UserError(f"{path} is not the {name} {version} that this build was tested with: delete it.")
    return path


def read(name: str, path: str) -> bytes:
    """A file of a package."""
    with tarfile.open(archive(name)) as package:
        return package.extractfile(f"package/{path}").read()


def unpack(name: str, files: Mapping[str, str], folder: Path) -> None:
    """Files of a package into a folder. files: {path in the package: name in the folder}"""
    folder.mkdir(parents=True, exist_ok=True)
    for path, target in files.items():
        (folder / target).write_bytes(read(name, path))
