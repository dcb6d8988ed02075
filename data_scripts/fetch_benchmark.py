"""Fetch, lay out and check DomainNet, Sketchy (extended), TU-Berlin (extended) and PACS as domain/class/image.

    python data_scripts/fetch_benchmark.py domainnet --to DomainNet                       # download and lay out
    python data_scripts/fetch_benchmark.py domainnet --check DomainNet                    # what is missing, with counts
    python data_scripts/fetch_benchmark.py domainnet --from DomainNet --subset 5 --to DomainNet_small

Addresses, sizes and checksums stand in `benchmarks.json`. Where one address does not answer, the next is tried, and
where none of an archive does, its tables on the Hugging Face hub (parquet, read with the package pyarrow). An
interrupted download goes on where it stopped; an archive is unpacked beside its place and moved there when it is whole;
a damaged one is deleted and fetched again. What was fetched by hand is taken from --archives.
"""

import argparse
import concurrent.futures
import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import textwrap
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import gdown
import pandas as pd
import py7zr
import requests
from gdown.exceptions import DownloadError
from tqdm import tqdm

from prosutils.files import UserError, only_one
from prosutils.image_files import IMAGE_SUFFIXES, find_fault, list_files
from prosutils.names import print_any_name, readable
from prosutils.published import load_benchmark

SOURCES = json.loads(Path(__file__).with_name("benchmarks.json").read_text(encoding="utf-8"))
#: How often a download goes on after a broken connection, and seconds without an answer that count as broken.
RETRIES, TIMEOUT = 3, 60


class Damaged(UserError):
    """A file that is not what was published: it is fetched again once."""


# ---- download ----------------------------------------------------------------------------------------------


def download(archive: dict, store: Path, elsewhere: Sequence[str] = ()) -> Path:
    """The archive's file in the folder `store`: the one that is there, or fetched from the first address that answers.

    archive: an entry of `benchmarks.json`; its `urls` are addresses of the same bytes, so that one goes on where
    another stopped. A file whose size or checksum differs is deleted and fetched from the next address. Raises
    UserError when no address gives the file, with the whole text of each error, and naming all places.
    """
    path, failures = store / archive["file"], []
    store.mkdir(parents=True, exist_ok=True)
    if path.exists():
        try:
            return verified(path, archive)
        except Damaged as error:
            print(error)
    for url in archive["urls"]:
        try:
            get(url, path, archive.get("bytes"))
            return verified(path, archive)
        except (DownloadError, requests.RequestException, OSError, Damaged) as error:
            failures.append(f"{url}:\n{textwrap.indent(str(error).strip() or type(error).__name__, '  ')}")
    places = [f"  {place}" for place in elsewhere]
    raise UserError(
        "\n".join(
            [
                f"{path.name} could not be downloaded:",
                *(textwrap.indent(failure, "  ") for failure in failures),
                f"Run this again to go on where it stopped, or fetch it in a browser and put it at {path}. Also found "
                "at:",
                *places,
            ]
        )
    )


def get(url: str, path: Path, size: int | None = None) -> None:
    """Fetch an address to `path`, which appears when it is whole; what an interrupted try left in `path`.part is used.

    size: bytes of the whole file, where they are known. Raises OSError (requests.RequestException among them) or, for
    Google Drive, DownloadError.
    """
    if "drive.google.com" in url:
        get_from_drive(url, path)
        return
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    url, part = url.replace("https://huggingface.co", hub), path.with_name(f"{path.name}.part")
    for left in reversed(range(RETRIES)):
        try:
            get_rest(url, part, size)
            break
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError):
            if not left:
                raise
    os.replace(part, path)


def get_rest(url: str, part: Path, size: int | None) -> None:
    """Append to a partial file what it lacks; from the beginning, where the server or the file's length wants it so."""
    have = part.stat().st_size if part.exists() else 0
    if size is not None and have == size:
        return  # whole: the caller compares the checksum
    if size is not None and have > size:
        have = 0
    with requests.get(url, headers={"Range": f"bytes={have}-"} if have else {}, stream=True, timeout=TIMEOUT) as answer:
        if have and answer.status_code == 416:  # nothing comes after the last byte: the file is whole or too long
            whole = answer.headers.get("Content-Range", "").rpartition("/")[2]
            if whole == str(have):
                return
            part.unlink()
            return get_rest(url, part, size)
        answer.raise_for_status()
        goes_on = answer.status_code == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        have = have if goes_on else 0  # a server without ranges sends everything
        more = answer.headers.get("Content-Length", "")
        total = size or (have + int(more) if more.isdigit() else None)
        with (
            open(part, "ab" if have else "wb") as file,
            tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=part.stem) as bar,
        ):
            for block in answer.iter_content(1 << 16):  # where the connection ends, a block is lost
                file.write(block)
                bar.update(len(block))
    got = part.stat().st_size
    if total is not None and got < total and "Content-Encoding" not in answer.headers:
        raise requests.ConnectionError(f"the connection ended after {got:,} of {total:,} bytes")


def get_from_drive(url: str, path: Path) -> None:
    """Fetch a file of Google Drive; where a partial file is of no use, once more from the beginning."""
    for resume in (True, False):
        try:
            gdown.download(url, str(path), resume=resume, retries=RETRIES, timeout=TIMEOUT, use_cookies=False)
            return
        except (DownloadError, requests.RequestException, OSError):
            parts = list(path.parent.glob(f"{path.name}*.part"))
            if not (resume and parts):
                raise
            for part in parts:
                part.unlink()


def verified(path: Path, archive: dict) -> Path:
    """The path of a file that has the published size and SHA-256, where these are known; else it is deleted, and
    Damaged raised."""
    size, fault = path.stat().st_size, None
    if size != archive.get("bytes", size):
        fault = f"has {size:,} bytes, not {archive['bytes']:,}: it was cut off or is another version."
    elif "sha256" in archive and (digest := sha256(path)) != archive["sha256"]:
        fault = f"has SHA-256 {digest[:16]}..., not {archive['sha256'][:16]}...: it was damaged or is another version."
    if fault:
        path.unlink()
        raise Damaged(f"{path} {fault} It is deleted, to be fetched again.")
    return path


def sha256(path: Path) -> str:
    """The SHA-256 of a file, with a bar."""
    digest = hashlib.sha256()
    size = path.stat().st_size
    with open(path, "rb") as file, tqdm(total=size, unit="B", unit_scale=True, desc=f"verify {path.name}") as bar:
        while block := file.read(1 << 20):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


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


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """What goes wrong inside is Damaged, naming the archive, unless the disk or the name of a file is at fault."""
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:  # zipfile, zlib, lzma and py7zr raise errors of many kinds for a damaged archive
        why = str(error) or type(error).__name__
        raise Damaged(f"{path} is not a whole archive ({why}). Delete it and run this again.") from None


def contents(path):
    """What an archive holds: [(name, bytes, whether it is a link)]. Raises Damaged for what is no whole archive."""
    with reading(path):
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
    with moved_when_whole(target, path.name) as work:
        extract(path, [name for name, _ in wanted], work / "raw")
        for folder, domain in folders.items():
            lay_out(work / "raw" / folder, work / domain, class_name)
        shutil.rmtree(work / "raw")


@contextlib.contextmanager
def moved_when_whole(target: Path, name: str) -> Iterator[Path]:
    """A folder for domains, which are moved to `target` when the block has ended; one that is there stays."""
    work = target / f".{name}.part"
    if work.exists():
        print(f"{name} was half unpacked; it is unpacked again.")
        shutil.rmtree(work)
    work.mkdir(parents=True)
    try:
        yield work
        for domain in sorted(path.name for path in work.iterdir()):
            if not (target / domain).exists():
                os.replace(work / domain, target / domain)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def extract(path, names, folder):
    """The named files of a verified archive, into a folder. Raises Damaged for a damaged one."""
    with reading(path):
        if path.suffix == ".7z":
            print(f"Unpacking {len(names):,} files of {path.name}: some minutes without a bar")
            with py7zr.SevenZipFile(path) as archive:
                archive.extract(folder, targets=names)
            return
        with zipfile.ZipFile(path) as archive:
            for name in tqdm(names, desc=f"unpack {path.name}", unit=" files"):
                archive.extract(name, folder)


def unpack_tables(paths: Sequence[Path], tables: dict, target: Path, class_name) -> None:
    """Lay the rows of parquet files out as target/domain/class/image, as `unpack` does with an archive.

    tables: an entry of `benchmarks.json`: columns of image and label, the domain or its column, the number of images.
    Raises UserError without the package pyarrow, and Damaged for files that are not those published.
    """
    ask_for_space(target, sum(path.stat().st_size for path in paths), "Unpacking the tables")
    written = 0
    with moved_when_whole(target, paths[0].name) as work:
        for path in paths:
            with reading(path):
                for domain, name, image in rows_of(path, tables):
                    folder = work / domain / class_name(name)
                    folder.mkdir(parents=True, exist_ok=True)
                    (folder / f"{written:06d}{suffix_of(image)}").write_bytes(image)
                    written += 1
        if written != tables["images"]:
            raise Damaged(f"{paths[0].name} and its like hold {written:,} images, not {tables['images']:,}.")


def rows_of(path: Path, tables: dict) -> Iterator[tuple[str, str, bytes]]:
    """(domain, class, bytes of the image) of every row of a parquet file of the hub."""
    parquet = pyarrow_parquet()
    with parquet.ParquetFile(path) as file:
        about = json.loads((file.schema_arrow.metadata or {}).get(b"huggingface", b"{}"))
        names = about.get("info", {}).get("features", {}).get(tables["label"], {}).get("names")
        columns = [tables["image"], tables["label"], *([tables["domain_column"]] if "domain_column" in tables else [])]
        with tqdm(total=file.metadata.num_rows, desc=f"unpack {path.name}", unit=" images") as bar:
            for batch in file.iter_batches(batch_size=64, columns=columns):
                for row in batch.to_pylist():
                    label = row[tables["label"]]
                    name = names[label] if isinstance(label, int) else str(label)
                    yield (
                        row.get(tables.get("domain_column"), tables.get("domain")),
                        name,
                        row[tables["image"]]["bytes"],
                    )
                    bar.update()


def pyarrow_parquet():
    """The module that reads parquet. Raises UserError where it is not installed."""
    try:
        from pyarrow import parquet
    except ImportError:
        raise UserError(
            "The mirror's tables (parquet) are read with the package pyarrow: pip install pyarrow."
        ) from None
    return parquet


def suffix_of(image: bytes) -> str:
    """The ending that suits an image's first bytes."""
    beginnings = {b"\xff\xd8\xff": ".jpg", b"GIF8": ".gif", b"RIFF": ".webp", b"BM": ".bmp"}
    return next((suffix for beginning, suffix in beginnings.items() if image.startswith(beginning)), ".png")


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
    missing = [archive for archive in source["archives"] if not unpacked(archive, target)]
    print(
        f"{name}: {source['page']} (licence: {source['licence']})\n"
        f"{len(missing)} of {len(source['archives'])} archives to unpack"
    )
    new = [not (store / archive["file"]).exists() for archive in missing]
    ask_for_space(target, sum((1 + n) * archive.get("bytes", 0) for n, archive in zip(new, missing, strict=True)), name)
    target.mkdir(parents=True, exist_ok=True)
    for archive in missing:
        install(archive, target, store, benchmark.class_name, (source["page"], *source["elsewhere"]))
    check(name, target)
    print(f"The archives in {store} are no longer needed.")


def unpacked(archive: dict, target: Path) -> bool:
    return all((target / domain).exists() for domain in archive["folders"].values())


def install(archive: dict, target: Path, store: Path, class_name, elsewhere: Sequence[str]) -> None:
    """Download and unpack an archive, once more where it turns out to be damaged; where no address gives it, its tables
    on the hub. Where another process is at it, waits for that one. Raises the first UserError where these fail too, with
    theirs."""

    def from_archive():
        unpack(download(archive, store, elsewhere), archive["folders"], target, class_name)

    def from_tables():
        files = archive["tables"]["files"]
        unpack_tables([download(file, store, elsewhere) for file in files], archive["tables"], target, class_name)

    with only_one(store / archive["file"]):
        if unpacked(archive, target):  # by the process that was waited for
            return
        try:
            twice(from_archive, [store / archive["file"]])
        except UserError as error:
            if "tables" not in archive:
                raise
            print(f"{error}\nThe mirror on the Hugging Face hub is tried.")
            try:
                pyarrow_parquet()  # before hundreds of megabytes are fetched
                twice(from_tables, [store / file["file"] for file in archive["tables"]["files"]])
            except UserError as other:
                raise UserError(f"{error}\nThe mirror failed too: {other}") from None


def twice(work, files: Sequence[Path]) -> None:
    """Do it; where its files turn out to be damaged, delete them and do it once more."""
    try:
        work()
    except Damaged as error:
        print(f"{error}\nIt is deleted and fetched again.")
        for path in files:
            path.unlink(missing_ok=True)
        work()


def checked_images(root: Path) -> tuple[list[Path], list[tuple[Path, str]]]:
    """The image files of a folder that are whole, and the others with their faults, which are looked for with a bar."""
    files = [path for path in list_files(root) if path.suffix.lower() in IMAGE_SUFFIXES]
    with concurrent.futures.ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
        faults = list(tqdm(pool.map(find_fault, files), total=len(files), desc="check", unit=" images", delay=1))
    pairs = list(zip(files, faults, strict=True))
    return [path for path, why in pairs if not why], [(path, why) for path, why in pairs if why]


def table_of(files: Sequence[Path], class_name) -> pd.DataFrame:
    """DataFrame class x domain: numbers of files in domain/class/."""
    return pd.crosstab(
        pd.Series([class_name(readable(path.parts[-2])) for path in files], dtype=object),
        pd.Series([readable(path.parts[-3]) for path in files], dtype=object),
    )


def count_images(root, class_name):
    """DataFrame class x domain: numbers of image files, by their names alone."""
    return table_of([path for path in list_files(root) if path.suffix.lower() in IMAGE_SUFFIXES], class_name)


def check(name, root, most=20):
    """Open the images of a folder and print their counts beside the published ones. Raises UserError naming all that is
    missing, and images that are not whole: empty, cut off."""
    benchmark = load_benchmark(name)
    whole, broken = checked_images(root)
    counts = table_of(whole, benchmark.class_name)
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
    if benchmark.note:
        print(benchmark.note)
    faults = benchmark.faults(counts)
    if broken:
        faults.append(f"{len(broken):,} files are not whole images and are not counted:")
        faults += [f"  {readable(path.relative_to(root))}: {why}" for path, why in broken[:most]]
        faults += [f"  and {len(broken) - most:,} more"] if len(broken) > most else []
    if faults:
        raise UserError(
            "\n".join(
                [
                    f"{root} is not the complete benchmark {name}:",
                    *(f"  {fault}" for fault in faults),
                    "Delete a domain that is incomplete or damaged and run with --to to fetch it again.",
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
    print_any_name()
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
