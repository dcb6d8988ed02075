"""Fetch, lay out and check DomainNet, Sketchy (extended), TU-Berlin (extended) and PACS as domain/class/image.

    python data_scripts/fetch_benchmark.py domainnet --to DomainNet                       # download and lay out
    python data_scripts/fetch_benchmark.py domainnet --check DomainNet                    # what is missing, with counts
    python data_scripts/fetch_benchmark.py domainnet --from DomainNet --subset 5 --to DomainNet_small

Addresses, sizes and checksums stand in `benchmarks.json`. An interrupted download goes on where it stopped; an archive
is unpacked beside its place and moved there when it is whole. What was fetched by hand is taken from --archives.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import zipfile
from pathlib import Path

import gdown
import pandas as pd
import py7zr
from gdown.exceptions import DownloadError
from tqdm import tqdm

from prosutils.files import UserError
from prosutils.image_files import IMAGE_SUFFIXES, list_files
from prosutils.published import load_benchmark

SOURCES = json.loads(Path(__file__).with_name("benchmarks.json").read_text(encoding="utf-8"))


# ---- download ----------------------------------------------------------------------------------------------


def download(archive, store, elsewhere=()):
    """The archive's file in the folder `store`: the one that is there, or fetched from the first address that answers.

    archive: an entry of `benchmarks.json`; its `urls` are addresses of the same bytes, so that one goes on where
    another stopped. Raises UserError when none answers, naming all places, or when size or checksum differ.
    """
    path, failures = store / archive["file"], []
    for url in archive["urls"]:
        if path.exists():
            break
        try:
            store.mkdir(parents=True, exist_ok=True)
            gdown.download(url, str(path), resume=True, retries=3, timeout=60, use_cookies=False)
        except (DownloadError, OSError) as error:
            failures.append(f"  {url}: {str(error).strip().splitlines()[0]}")
    if not path.exists():
        raise UserError(
            "\n".join(
                [
                    f"{path.name} could not be downloaded:",
                    *failures,
                    "Run this again to go on where "
                    f"it stopped, or fetch it in a browser and put it at {path}. Also found at:",
                    *(f"  {place}" for place in elsewhere),
                ]
            )
        )
    verify(path, archive)
    return path


def verify(path, archive):
    """Raises UserError unless the file has the published size and SHA-256, where these are known."""
    size = path.stat().st_size
    if size != archive.get("bytes", size):
        raise UserError(
            f"{path} has {size:,} bytes, not {archive['bytes']:,}: it is cut off or another version. "
            "Delete it and run this again."
        )
    if "sha256" not in archive:
        return
    digest = hashlib.sha256()
    with open(path, "rb") as file, tqdm(total=size, unit="B", unit_scale=True, desc=f"verify {path.name}") as bar:
        while block := file.read(1 << 20):
            digest.update(block)
            bar.update(len(block))
    if digest.hexdigest() != archive["sha256"]:
        raise UserError(
            f"{path} has SHA-256 {digest.hexdigest()[:16]}..., not {archive['sha256'][:16]}...: it is "
            "damaged or another version. Delete it and run this again."
        )


def ask_for_space(folder, needed, what):
    """Raises UserError when the disk of `folder` has not `needed` bytes free."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise UserError(
            f"{what} takes {needed / 1e9:.1f} GB and {there} has {free / 1e9:.1f} GB free: free some "
            "space or choose another disk."
        )


# ---- unpacking ---------------------------------------------------------------------------------------------


def contents(path):
    """What an archive holds: [(name, bytes, whether it is a link)]. Raises UserError for what is no whole archive."""
    try:
        if path.suffix == ".7z":
            with py7zr.SevenZipFile(path) as archive:
                return [
                    (item.filename, item.uncompressed or 0, item.is_symlink)
                    for item in archive.list()
                    if not item.is_directory
                ]
        with zipfile.ZipFile(path) as archive:
            return [
                (item.filename, item.file_size, stat.S_ISLNK(item.external_attr >> 16))
                for item in archive.infolist()
                if not item.is_dir()
            ]
    except (zipfile.BadZipFile, py7zr.exceptions.ArchiveError) as error:
        raise UserError(f"{path} is not a whole archive ({error}). Delete it and run this again.") from None


def refuse_unsafe(path, entries):
    """UserError where an archive holds a link or a name that leaves its folder: it is not the published one."""
    for name, _, is_link in entries:
        if is_link or name.startswith(("/", "\\")) or re.match("[A-Za-z]:", name) or ".." in re.split(r"[/\\]", name):
            why = "a link" if is_link else "a name that leaves the folder"
            raise UserError(
                f"{path} holds {name!r}, {why}: it is not the published archive. Nothing of it was unpacked; delete it."
            )


def unpack(path, folders, target, class_name):
    """Unpack an archive to target/domain/class/image: a domain appears when it is whole, and one that is there stays.

    folders: {folder in the archive: domain}. class_name: gives the class of a folder's name.
    Raises UserError for an unsafe or broken archive, one without these folders, or too little space.
    """
    entries = contents(path)
    refuse_unsafe(path, entries)
    wanted = [(name, size) for name, size, _ in entries if name.startswith(tuple(f"{folder}/" for folder in folders))]
    if not wanted:
        raise UserError(f"{path} has none of the folders {', '.join(folders)}: it is not the published archive.")
    ask_for_space(target, sum(size for _, size in wanted), f"Unpacking {path.name}")
    work = target / f".{path.name}.part"
    if work.exists():
        print(f"{path.name} was half unpacked; it is unpacked again.")
        shutil.rmtree(work)
    try:
        extract(path, [name for name, _ in wanted], work / "raw")
        for folder, domain in folders.items():
            lay_out(work / "raw" / folder, work / domain, class_name)
        for domain in dict.fromkeys(folders.values()):
            if (work / domain).exists() and not (target / domain).exists():
                os.replace(work / domain, target / domain)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def extract(path, names, folder):
    """The named files of a verified archive, into a folder."""
    try:
        if path.suffix == ".7z":
            print(f"Unpacking {len(names):,} files of {path.name}: some minutes without a bar")
            with py7zr.SevenZipFile(path) as archive:
                archive.extract(folder, targets=names)
            return
        with zipfile.ZipFile(path) as archive:
            for name in tqdm(names, desc=f"unpack {path.name}", unit=" files"):
                archive.extract(name, folder)
    except (zipfile.BadZipFile, py7zr.exceptions.ArchiveError) as error:
        raise UserError(f"{path} is damaged ({error}). Delete it and run this again.") from None


def lay_out(source, domain, class_name):
    """Move source/<folder>/<image> to domain/<class>/<image>, classes spelt as in the splits."""
    for folder in sorted(source.iterdir()) if source.is_dir() else []:
        if folder.is_dir():
            place = domain / class_name(folder.name)
            place.mkdir(parents=True, exist_ok=True)
            for image in folder.iterdir():
                os.replace(image, place / image.name)


# ---- commands ----------------------------------------------------------------------------------------------


def fetch(name, target, store):
    """Download what is missing of a benchmark and lay it out in `target`; domains that are there stay."""
    source, benchmark = SOURCES[name], load_benchmark(name)
    missing = [
        archive
        for archive in source["archives"]
        if not all((target / domain).exists() for domain in archive["folders"].values())
    ]
    print(
        f"{name}: {source['page']} (licence: {source['licence']})\n"
        f"{len(missing)} of {len(source['archives'])} archives to unpack"
    )
    new = [not (store / archive["file"]).exists() for archive in missing]
    ask_for_space(target, sum((1 + n) * archive.get("bytes", 0) for n, archive in zip(new, missing)), name)
    target.mkdir(parents=True, exist_ok=True)
    for archive in missing:
        path = download(archive, store, (source["page"], *source["elsewhere"]))
        unpack(path, archive["folders"], target, benchmark.class_name)
    check(name, target)
    print(f"The archives in {store} are no longer needed.")


def count_images(root, class_name):
    """DataFrame class x domain: numbers of image files, by their names alone."""
    files = [path for path in list_files(root) if path.suffix.lower() in IMAGE_SUFFIXES]
    return pd.crosstab(
        pd.Series([class_name(path.parts[-2]) for path in files], dtype=object),
        pd.Series([path.parts[-3] for path in files], dtype=object),
    )


def check(name, root):
    """Print the counts of a folder beside the published ones. Raises UserError naming all that is missing."""
    benchmark = load_benchmark(name)
    counts = count_images(root, benchmark.class_name)
    classes = sum(len(names) for names in benchmark.classes.values())
    rows = [
        {
            "domain": domain,
            "images": counts[domain].sum() if domain in counts else 0,
            "published": published,
            "classes": (counts[domain] > 0).sum() if domain in counts else 0,
            "of": classes,
        }
        for domain, published in benchmark.images.items()
    ]
    print("\n".join([pd.DataFrame(rows).to_string(index=False), *benchmark.surplus(counts)]))
    if faults := benchmark.faults(counts):
        raise UserError(
            "\n".join(
                [
                    f"{root} is not the complete benchmark {name}:",
                    *(f"  {fault}" for fault in faults),
                    "Delete a domain that is incomplete and run with --to to fetch it again.",
                ]
            )
        )
    print(f"{root} is complete.")


def subset(name, source, target, number):
    """Copy `number` images of every class and domain, spread evenly over the sorted names, to a new folder."""
    if number < 1 or target.exists():
        raise UserError(
            f"--subset takes 1 or more images and, with --to, a folder that is not there yet: not {number} "
            f"and {target}."
        )
    benchmark, cells = load_benchmark(name), {}
    for path in list_files(source):
        if path.suffix.lower() in IMAGE_SUFFIXES and path.parts[-3] in benchmark.images:
            cells.setdefault((path.parts[-3], benchmark.class_name(path.parts[-2])), []).append(path)
    if not cells:
        raise UserError(f"{source} has none of the domains {', '.join(benchmark.images)}.")
    work = target.with_name(f".{target.name}.part")
    shutil.rmtree(work, ignore_errors=True)
    for (domain, class_name), paths in tqdm(cells.items(), desc="copy", unit=" folders"):
        (work / domain / class_name).mkdir(parents=True)
        for i in range(min(number, len(paths))):
            shutil.copy(paths[i * len(paths) // min(number, len(paths))], work / domain / class_name)
    os.replace(work, target)
    print(f"{len(cells)} folders of up to {number} images: {target}")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=SOURCES)
    parser.add_argument("--to", type=Path, help="folder to lay the benchmark out in")
    parser.add_argument("--check", type=Path, metavar="FOLDER", help="compare a folder with the published counts")
    parser.add_argument("--archives", type=Path, help="folder of the downloaded archives (default: TO-archives)")
    parser.add_argument("--subset", type=int, metavar="N", help="copy N images a class and domain of --from to --to")
    parser.add_argument("--from", type=Path, dest="source", metavar="FOLDER", help="a laid-out benchmark, for --subset")
    args = parser.parse_args(argv)
    if not (args.check or args.to) or (args.subset is None) != (args.source is None):
        parser.error("give --to FOLDER, or --check FOLDER, or --from FOLDER --subset N --to FOLDER")
    try:
        if args.check:
            check(args.name, args.check)
        elif args.source:
            subset(args.name, args.source, args.to, args.subset)
        else:
            fetch(args.name, args.to, args.archives or args.to.with_name(f"{args.to.name}-archives"))
    except UserError as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(f"{error}. Choose another folder or free some space.")


if __name__ == "__main__":
    main()
