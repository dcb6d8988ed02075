"""Fetching the benchmarks: small archives of the published shape, served by a local server, and every bad input."""

import hashlib
import http.server
import io
import json
import os
import re
import stat
import sys
import threading
import zipfile
from pathlib import Path

import py7zr
import pytest
from PIL import Image

from prosutils.files import UserError
from prosutils.image_files import list_files
from prosutils.published import load_benchmark

sys.path.insert(0, str(Path(__file__).parents[1] / "data_scripts"))
import fetch_benchmark as fetcher  # noqa: E402


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `files`, honours Range unless `whole`, and breaks the connection after `limit` bytes."""

    files, limit, ranges, whole = {}, None, [], False

    def do_GET(self):
        content = self.files.get(self.path)
        if content is None:
            self.send_error(404, "Not here")
            return
        start, wanted = 0, None if self.whole else self.headers.get("Range")
        if wanted:
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            self.ranges.append(start)
        if start >= len(content) > 0 and wanted:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(content[start:][: self.limit])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    """A local server: `files` maps paths to bytes; `url` is its address."""
    handler = type("Local", (Handler,), {"files": {}, "limit": None, "ranges": [], "whole": False})
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    handler.url = f"http://127.0.0.1:{httpd.server_port}"
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield handler
    httpd.shutdown()
    httpd.server_close()


def png(size=(2, 2)):
    """The bytes of a small picture."""
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, "PNG")
    return file.getvalue()


PICTURE = png()


def zipped(path, names, content=PICTURE):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, content)
    return path


def folders_in_archive(name):
    """Each benchmark's class folders as its own archives spell them."""
    classes = [x for names in load_benchmark(name).classes.values() for x in names]
    spelt = {"hot_air_balloon": "hot-air_balloon", "jack_o_lantern": "jack-o-lantern"} if name == "sketchy" else {}
    misspelt = {right: wrong for wrong, right in load_benchmark(name).aliases.items()}
    for archive in fetcher.SOURCES[name]["archives"]:
        plain = archive["file"] == "images.zip"
        for folder in archive["folders"]:
            for x in classes:
                other = misspelt.get(x, x.replace("_", "")) if plain else spelt.get(x, x)
                yield archive["file"], f"{folder}/{other}/a.jpg"


@pytest.fixture
def published(server, tmp_path, monkeypatch):
    """A function that serves a benchmark in miniature at the addresses of the table, with its checksums."""

    def serve(name):
        source = json.loads(json.dumps(fetcher.SOURCES[name]))
        for archive in source["archives"]:
            names = [path for file, path in folders_in_archive(name) if file == archive["file"]]
            path = tmp_path / "origin" / archive["file"]
            if path.suffix == ".7z":
                path.parent.mkdir(parents=True, exist_ok=True)
                with py7zr.SevenZipFile(path, "w") as packed:
                    for member in [*names, "256x256/photo/other/a.jpg", "README.txt"]:
                        packed.writestr(PICTURE, member)
            else:
                zipped(path, [*names, "__MACOSX/x", "list.txt"])
            content = path.read_bytes()
            server.files[f"/{path.name}"] = content
            archive |= {
                "urls": [f"{server.url}/gone/{path.name}", f"{server.url}/{path.name}"],
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            }
        monkeypatch.setitem(fetcher.SOURCES, name, source)
        return source

    return serve


@pytest.fixture
def any_number(monkeypatch):
    """Miniatures count as complete: only classes and domains are asked for."""
    monkeypatch.setattr("prosutils.published.COMPLETE", 0)


def said(capsys, *arguments):
    """What the program ends with; a message, not a traceback."""
    with pytest.raises(SystemExit) as stop:
        fetcher.main([str(x) for x in arguments])
    assert isinstance(stop.value.code, str), capsys.readouterr().err
    return stop.value.code


@pytest.mark.parametrize("name", ["domainnet", "sketchy", "tuberlin"])
def test_a_benchmark_is_fetched_laid_out_and_complete(name, published, any_number, tmp_path, capsys):
    published(name)
    target = tmp_path / "data"
    fetcher.main([name, "--to", str(target)])
    assert f"{target} is complete" in capsys.readouterr().out
    benchmark = load_benchmark(name)
    counts = fetcher.count_images(target, str)  # folder names as they are: repaired
    assert set(counts.columns) == set(benchmark.images)
    assert set(counts.index) == {x for names in benchmark.classes.values() for x in names}
    assert (counts == 1).all(axis=None)
    assert not [path for path in target.iterdir() if path.name.startswith(".")]
    fetcher.main([name, "--to", str(target)])  # nothing left to do
    assert "0 of" in capsys.readouterr().out


def test_pacs_has_two_layouts(tmp_path, any_number):
    (archive,) = fetcher.SOURCES["pacs"]["archives"]
    for top in ("kfold", "pacs/images"):
        names = [f"{top}/{domain}/{x}/1.jpg" for domain in load_benchmark("pacs").images for x in ("dog", "house")]
        target = tmp_path / top.replace("/", "-")
        target.mkdir()
        fetcher.unpack(zipped(tmp_path / "PACS.zip", names), archive["folders"], target, str)
        assert len(list_files(target)) == 8


def test_an_interrupted_download_goes_on_where_it_stopped(server, tmp_path, monkeypatch):
    content = os.urandom(3_000_000)
    server.files["/a.zip"], server.limit = content, 1_000_000
    archive = {
        "file": "a.zip",
        "urls": [f"{server.url}/a.zip"],
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    monkeypatch.setattr(fetcher, "RETRIES", 1)
    with pytest.raises(UserError, match="could not be downloaded(?s:.*)fetch it in a browser(?s:.*)the page"):
        fetcher.download(archive, tmp_path, ["the page"])
    assert not (tmp_path / "a.zip").exists()
    server.limit = None
    assert fetcher.download(archive, tmp_path).read_bytes() == content
    assert server.ranges and server.ranges[-1] > 0


CONTENT = bytes(range(256)) * 40


@pytest.mark.parametrize("known", ["checksum", "nothing"])
@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("there", [b"", CONTENT[:100], CONTENT, CONTENT + b"more", b"another file" * 900, b"x" * 10])
def test_whatever_a_partial_file_holds_the_download_ends(server, tmp_path, known, ranges, there):
    server.files["/a.zip"], server.whole = CONTENT, not ranges
    archive = {"file": "a.zip", "urls": [f"{server.url}/a.zip"] * 2}
    if known == "checksum":
        archive |= {"bytes": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest()}
    (tmp_path / "a.zip.part").write_bytes(there)
    foreign = not CONTENT.startswith(there) and len(there) < len(CONTENT)
    if known == "nothing" and ranges and foreign:
        pytest.skip("nothing tells these bytes from the file's; unpacking finds it and fetches again")
    assert fetcher.download(archive, tmp_path).read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_a_drive_quota_is_told_in_full(tmp_path, monkeypatch):
    calls = []

    def refuse(url, path, **options):
        calls.append(options["resume"])
        raise fetcher.DownloadError("Failed to retrieve file url:\n\n\tToo many users have viewed this file recently.")

    monkeypatch.setattr(fetcher.gdown, "download", refuse)
    archive = {"file": "a.zip", "urls": ["https://drive.google.com/uc?id=1", "https://drive.google.com/uc?id=2"]}
    with pytest.raises(UserError, match="id=1(?s:.*)Too many users(?s:.*)id=2(?s:.*)Too many users"):
        fetcher.download(archive, tmp_path)
    assert calls == [True, True]
    (tmp_path / "a.zip.part").write_bytes(b"stale")  # a partial file of no use: once more without it
    with pytest.raises(UserError):
        fetcher.download(archive, tmp_path)
    assert calls[2:] == [True, False, True] and not list(tmp_path.iterdir())


def damaged(content, kind):
    """A zip whose directory or data are damaged."""
    content = bytearray(content)
    if kind == "data":
        place = bytes(content).index(b"png/ant/1.png") + 20
        content[place : place + 30] = bytes(30)
    elif kind == "method":
        place = bytes(content).rindex(b"PK\x01\x02")
        content[place + 10] = 77
    else:
        content = content[:-10]
    return bytes(content)


@pytest.mark.parametrize("kind", ["data", "method", "end"])
def test_a_damaged_zip_is_named_deleted_and_fetched_again(server, tmp_path, kind, capsys, any_number):
    path = tmp_path / "origin.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for number in range(3):
            packed.writestr(f"png/ant/{number}.png", png((40 + number, 40)) + os.urandom(200))
    store, target = tmp_path / "store", tmp_path / "data"
    store.mkdir(), target.mkdir()
    archive = {"file": "a.zip", "folders": {"png": "sketches"}, "urls": [f"{server.url}/a.zip"]}
    server.files["/a.zip"] = path.read_bytes()
    (store / "a.zip").write_bytes(damaged(path.read_bytes(), kind))
    fetcher.install(archive, target, store, str, [])
    assert len(list((target / "sketches" / "ant").iterdir())) == 3
    assert f"{store / 'a.zip'} is not a whole archive" in capsys.readouterr().out
    server.files["/a.zip"] = damaged(path.read_bytes(), kind)  # damaged at its source
    fetcher.shutil.rmtree(target / "sketches")
    (store / "a.zip").unlink()
    with pytest.raises(UserError, match="is not a whole archive"):
        fetcher.install(archive, target, store, str, [])
    assert not list(target.iterdir())


@pytest.mark.parametrize("name", ["pacs", "tuberlin"])
def test_where_the_archive_is_gone_its_tables_are_laid_out(name, server, tmp_path, monkeypatch, any_number, capsys):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    benchmark = load_benchmark(name)
    source = json.loads(json.dumps(fetcher.SOURCES[name]))
    archive = next(archive for archive in source["archives"] if "tables" in archive)
    tables, monkey = archive["tables"], [x.replace("_", " ") for names in benchmark.classes.values() for x in names]
    rows = [(domain, i) for domain in dict.fromkeys(archive["folders"].values()) for i in range(len(monkey))]
    tables["images"], archive["urls"] = len(rows), [f"{server.url}/gone.zip"]
    about = {"info": {"features": {"label": {"names": monkey}}}}
    share = -(-len(rows) // len(tables["files"]))
    for number, file in enumerate(tables["files"]):
        mine = rows[number * share : (number + 1) * share]
        columns = {"image": [{"bytes": PICTURE, "path": None} for _ in mine], "label": [i for _, i in mine]}
        if "domain_column" in tables:
            columns["domain"] = [domain for domain, _ in mine]
        table = pyarrow.table(columns).replace_schema_metadata({"huggingface": json.dumps(about)})
        parquet.write_table(table, tmp_path / "p")
        content = (tmp_path / "p").read_bytes()
        file |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for url in file["urls"]:
            server.files[url.removeprefix("https://huggingface.co")] = content
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setitem(fetcher.SOURCES, name, source | {"archives": [archive]})
    target = tmp_path / "data"
    if name == "pacs":
        fetcher.main([name, "--to", str(target)])
        assert "is complete" in capsys.readouterr().out
    else:
        assert "Domain images is missing" in said(capsys, name, "--to", target)
    assert len(list_files(target)) == len(rows)
    assert {path.parts[-2] for path in list_files(target)} == {x for names in benchmark.classes.values() for x in names}
    tables["images"] += 1
    fetcher.shutil.rmtree(target)
    assert "mirror failed too" in said(capsys, name, "--to", target)


def test_without_pyarrow_the_mirror_names_it(server, tmp_path, monkeypatch):
    (archive,) = json.loads(json.dumps(fetcher.SOURCES["pacs"]))["archives"]
    archive["urls"] = [f"{server.url}/gone.zip"]
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="404 Client Error: Not here(?s:.*)pip install pyarrow"):
        fetcher.install(archive, tmp_path / "data", tmp_path / "store", str, [])


def test_addresses_of_the_hub_follow_its_scheme():
    for source in fetcher.SOURCES.values():
        for archive in source["archives"]:
            files = [archive, *archive.get("tables", {}).get("files", [])]
            hub = [url for file in files for url in file["urls"] if "huggingface" in url]
            assert all(
                re.fullmatch(r"https://huggingface\.co/datasets/[\w-]+/[\w-]+/resolve/\w+/\S+", url) for url in hub
            )
    assert all(
        "huggingface" in json.dumps(fetcher.SOURCES[name]["archives"]) for name in ("domainnet", "pacs", "tuberlin")
    )


@pytest.mark.parametrize("change, message", [(b"other content!", "14 bytes, not 13"), (b"other content", "SHA-256")])
def test_a_wrong_file_is_deleted_and_fetched_again(server, tmp_path, change, message, capsys):
    server.files["/a.zip"] = change
    archive = {
        "file": "a.zip",
        "urls": [f"{server.url}/a.zip"],
        "bytes": 13,
        "sha256": hashlib.sha256(b"right content").hexdigest(),
    }
    with pytest.raises(UserError, match=f"{message}(?s:.*)It is deleted"):
        fetcher.download(archive, tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "a.zip").write_bytes(change)  # by hand
    server.files["/a.zip"] = b"right content"
    assert fetcher.download(archive, tmp_path).read_bytes() == b"right content"
    assert message in capsys.readouterr().out


def test_a_file_fetched_by_hand_is_taken(published, any_number, tmp_path, server, capsys):
    published("tuberlin")
    (tmp_path / "origin").rename(tmp_path / "mine")
    server.files.clear()
    fetcher.main(["tuberlin", "--to", str(tmp_path / "data"), "--archives", str(tmp_path / "mine")])
    assert "is complete" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["../evil.jpg", "png/../../evil.jpg", "/evil.jpg", "png\\..\\evil.jpg", "C:/evil.jpg"])
def test_an_archive_that_leaves_its_folder_is_refused_whole(tmp_path, name):
    target = tmp_path / "data"
    target.mkdir()
    path = zipped(tmp_path / "a.zip", ["png/ant/1.png", name])
    with pytest.raises(UserError, match="leaves the folder(?s:.*)Nothing of it was unpacked"):
        fetcher.unpack(path, {"png": "sketches"}, target, str)
    assert not list(target.iterdir()) and not list(tmp_path.rglob("evil*"))


def test_links_in_an_archive_are_refused(tmp_path):
    path = zipped(tmp_path / "a.zip", ["png/ant/1.png"])
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("png/ant/2.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "elsewhere")
    with pytest.raises(UserError, match="a link"):
        fetcher.unpack(path, {"png": "sketches"}, tmp_path, str)
    assert not (tmp_path / "sketches").exists()


@pytest.mark.parametrize("suffix", [".zip", ".7z"])
def test_half_an_archive_is_refused(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(UserError, match="not a whole archive"):
        fetcher.unpack(path, {"png": "sketches"}, tmp_path, str)
    with pytest.raises(UserError, match="none of the folders png"):
        fetcher.unpack(zipped(tmp_path / "b.zip", ["other/1.png"]), {"png": "sketches"}, tmp_path, str)


def test_a_half_unpacked_archive_is_unpacked_again(tmp_path, monkeypatch, capsys):
    path, target = zipped(tmp_path / "a.zip", [f"png/ant/{i}.png" for i in range(5)]), tmp_path / "data"
    target.mkdir()
    monkeypatch.setattr(fetcher, "lay_out", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        fetcher.unpack(path, {"png": "sketches"}, target, str)
    assert not list(target.iterdir())  # interrupted: nothing is half there
    monkeypatch.undo()
    (target / ".a.zip.part" / "raw").mkdir(parents=True)  # killed: the part is there, the domain is not
    fetcher.unpack(path, {"png": "sketches"}, target, str)
    assert "half unpacked" in capsys.readouterr().out
    assert len(list((target / "sketches" / "ant").iterdir())) == 5
    assert [x.name for x in target.iterdir()] == ["sketches"]


def test_space_is_asked_for_first(published, tmp_path, monkeypatch, capsys, server):
    published("domainnet")
    monkeypatch.setattr(fetcher.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    assert "free some space" in said(capsys, "domainnet", "--to", tmp_path / "data")
    assert not (tmp_path / "data").exists() and not (tmp_path / "data-archives").exists()


def test_check_names_what_is_missing_with_counts(tmp_path, capsys):
    for domain, x in (("sketch", "hot-air_balloon"), ("sketch", "ant"), ("photo", "ant")):
        folder = tmp_path / domain / x
        folder.mkdir(parents=True)
        (folder / "a.png").write_bytes(PICTURE)
    told = said(capsys, "sketchy", "--check", tmp_path)
    assert "Domain extended_photo is missing (73,002 images of 125 classes)." in told
    assert "Domain sketch lacks 123 of 125 classes: airplane" in told and "hot_air_balloon" not in told
    assert "Domain sketch holds 2 of 75,471 images." in told
    assert "does not have: photo" in capsys.readouterr().out
    assert "no folder" in said(capsys, "sketchy", "--check", tmp_path / "nowhere")


def test_check_opens_pictures_and_finds_empty_ones(tmp_path, capsys):
    for number, content in enumerate([PICTURE, b"", PICTURE[:50], b"<html>"]):
        folder = tmp_path / "sketch" / "ant"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(content)
    told = said(capsys, "sketchy", "--check", tmp_path)
    assert "Domain sketch holds 1 of 75,471 images." in told and "3 files are not whole images" in told
    assert "sketch/ant/1.png: not a readable image: it is empty (0 bytes)." in told and "sketch/ant/2.png" in told


def test_check_warns_of_the_two_random_splits(tmp_path, capsys, any_number):
    benchmark = load_benchmark("tuberlin")
    for domain in benchmark.images:
        for names in benchmark.classes.values():
            for x in names:
                (tmp_path / domain / x).mkdir(parents=True)
                (tmp_path / domain / x / "1.png").write_bytes(PICTURE)
    fetcher.main(["tuberlin", "--check", str(tmp_path)])
    assert "shares 1 of 30 (rollerblades)" in capsys.readouterr().out


def test_a_small_subset_is_copied(tmp_path, capsys):
    for x in ("ant", "t-shirt"):
        for i in range(9):
            folder = tmp_path / "full" / "sketches" / x
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{i}.png").write_bytes(PICTURE)
    command = ["tuberlin", "--from", tmp_path / "full", "--subset", 3, "--to", tmp_path / "small"]
    fetcher.main([str(x) for x in command])
    copied = (tmp_path / "small" / "sketches" / "t_shirt").iterdir()
    assert sorted(path.name for path in copied) == ["0.png", "3.png", "6.png"]
    assert "not there yet" in said(capsys, *command)
    command[0], command[-1] = "pacs", tmp_path / "other"
    assert "none of the domains" in said(capsys, *command)


def test_usage_is_explained(capsys):
    with pytest.raises(SystemExit):
        fetcher.main(["pacs"])
    assert "give --to FOLDER" in capsys.readouterr().err
    for source in fetcher.SOURCES.values():
        assert source["page"] and source["licence"] and all(archive["urls"] for archive in source["archives"])
