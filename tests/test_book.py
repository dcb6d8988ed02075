"""The book of site/: built once, its links followed, and opened in Chromium behind a plain file server.

Needs npm (for MathJax), a browser and its driver, and is skipped where they are missing. PROSUTILS_SITE=build/site tests the
book in that folder instead of building one; PROSUTILS_SCREENSHOTS=folder keeps pictures of its pages.
"""

import ast
import json
import os
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest

from prosutils.files import UserError

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "site"))
pytest.importorskip("sphinx", reason="the book's packages are missing: pip install -e .[site]")
pytest.importorskip("selenium", reason="selenium is missing: pip install -e .[test]")
import build_book  # noqa: E402
from browsing import BROWSER, DRIVER, accessibility_faults, asked, browser, emulate, served, wait_for  # noqa: E402

NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
REPOSITORY = "https://github.com/someone/copy"


@pytest.fixture(scope="session")
def book(tmp_path_factory, npm_package):
    """The folder of the built book. Sphinx's warnings, dead links among them, have failed the build."""
    if folder := os.environ.get("PROSUTILS_SITE"):
        return Path(folder) / "book"
    npm_package("mathjax")
    folder = tmp_path_factory.mktemp("site") / "book"
    build_book.build_book(folder, "", "")
    return folder


class Page(HTMLParser):
    """What a page links to (`links`), loads (`loads`), and its anchors (`ids`)."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loads, self.ids, self.previews = [], [], set(), []
        self.text = path.read_text("utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids.add(found.get("id"))
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag in ("img", "script", "iframe", "source") and "src" in found:
            self.loads.append(found["src"])
        elif tag == "link" and found["rel"] not in ("canonical", "prev", "next", "index", "search"):
            self.loads.append(found["href"])
        elif found.get("property") == "og:image":
            self.previews.append(found["content"])


@pytest.fixture(scope="session")
def pages(book):
    """{path in the book: Page}"""
    return {path.relative_to(book).as_posix(): Page(path) for path in book.rglob("*.html")}


def test_every_notebook_document_and_public_name_is_in_the_book(book, pages):
    documents = ["RESULTS", "CONTRIBUTING", "CHANGELOG", "assignments/README", "prosutils/data/MINICLIP", "index"]
    names = [*(f"notebooks/{name}" for name in NOTEBOOKS), *documents, "prosutils/data/trained/README", "api"]
    assert len(NOTEBOOKS) == 9 and {f"{name}.html" for name in names} <= set(pages)
    index = json.loads((book / "searchindex.js").read_text().removeprefix("Search.setIndex(").removesuffix(")"))
    assert set(names) <= set(index["docnames"])
    stub = ast.parse((ROOT / "prosutils" / "__init__.pyi").read_text())
    public = {alias.name for node in stub.body for alias in node.names}
    assert {f"prosutils.{name}" for name in public} <= pages["api.html"].ids


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_committed_pictures_are_shown(name, pages):
    """Those of widgets among them, each with a note that it is a picture."""
    notebook = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text("utf-8"))
    outputs = [output.get("data", {}) for cell in notebook["cells"] for output in cell.get("outputs", [])]
    page = pages[f"notebooks/{name}.html"]
    assert len([each for each in page.loads if "_images/" in each]) == sum("image/png" in each for each in outputs) > 0
    widgets = sum("run this cell" in "".join(each.get("text/plain", "")) for each in outputs)
    assert page.text.count("This is a picture of the widget.") == widgets


def test_no_internal_link_is_dead(book, pages):
    for name, page in pages.items():
        for link in page.links + page.loads:
            target = urlsplit(urljoin(f"site:///book/{name}", link))
            if target.scheme != "site" or target.path == "/index.html":  # the page on which one draws
                continue
            path = unquote(target.path).removeprefix("/book/")
            assert (book / path).is_file(), f"{name} links to {link}"
            if target.fragment and path in pages:
                assert unquote(target.fragment) in pages[path].ids, f"{name} links to {link}"


def test_a_dead_link_fails_the_build(tmp_path, monkeypatch):
    text = "# Book\n\n[dead](nowhere.md)\n"
    monkeypatch.setattr(build_book, "lay_out", lambda folder, repository: (folder / "index.md").write_text(text))
    with pytest.raises(UserError, match="index.md:3: WARNING: .*nowhere.md"):
        build_book.build_book(tmp_path / "book", "", "")
    assert not (tmp_path / "book").exists()


def test_nothing_is_loaded_from_another_host(book, pages):
    for name, page in pages.items():
        assert not [each for each in page.loads if urlsplit(each).netloc], name
    for path in book.rglob("*.css"):
        assert not re.search(r"(url\(|@import)[^;)]*https?:", path.read_text("utf-8")), path


def test_every_page_leads_to_the_one_on_which_one_draws(pages):
    for name, page in pages.items():
        assert any(urljoin(f"/book/{name}", link) == "/index.html" for link in page.links), name
        assert page.previews, name


def test_a_known_address_is_linked_to(tmp_path):
    """Colab's badge would be loaded from another host: the book has a link in its place."""
    notebook = json.loads((ROOT / "notebooks" / "04_metrics.ipynb").read_text("utf-8"))
    notebook["cells"][0]["source"][:0] = ["[![Open in Colab](https://colab/colab-badge.svg)](x)\n", "\n"]
    first, *others = build_book.with_links(notebook, "04_metrics.ipynb", REPOSITORY)["cells"]
    place = "someone/copy/blob/main/notebooks/04_metrics.ipynb"
    assert f"https://colab.research.google.com/github/{place}" in first["source"] and "badge" not in first["source"]
    assert first["source"].startswith("# Metrics") and f"https://github.com/{place}" in first["source"]
    assert not [cell for cell in others if "colab" in cell["metadata"].get("tags", [])]


@pytest.fixture(scope="module")
def screen(book):
    """(browser, server)"""
    if not (BROWSER and DRIVER):
        pytest.skip("no browser to test the book in: apt-get install chromium chromium-driver")
    with served(book.parent) as server, browser() as page:
        yield page, server


@pytest.mark.parametrize("width, scheme", [(1280, "light"), (1280, "dark"), (360, "light"), (360, "dark")])
def test_pages_fit_the_screen_and_ask_no_other_host(screen, width, scheme):
    page, server = screen
    emulate(page, width, 1000, scheme)
    for name in ("index", "notebooks/04_metrics", "notebooks/05_conclusions", "RESULTS", "api"):
        page.get(f"{server.address}book/{name}.html")
        assert page.execute_script("return document.documentElement.scrollWidth") <= width, name
        colour = page.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", colour)[:3])) > 600) == (scheme == "light")
        if folder := os.environ.get("PROSUTILS_SCREENSHOTS"):
            page.save_screenshot(str(Path(folder, f"book_{name.replace('/', '_')}_{width}_{scheme}.png")))
    urls = asked(page)
    assert urls and all(url.startswith((server.address, "data:", "blob:")) for url in urls), urls


def test_formulas_are_drawn_by_the_books_own_mathjax(screen):
    page, server = screen
    page.get(f"{server.address}book/notebooks/04_metrics.html")
    count = "return ['.math', '.math mjx-container svg'].map((kind) => document.querySelectorAll(kind).length)"
    wait_for(lambda: len(set(page.execute_script(count))) == 1, 60, "formulas")
    assert page.execute_script(count)[0] > 20
    assert not page.execute_script("return document.querySelector('[data-mml-node=merror]')")


def test_search_finds_a_notebook(screen):
    page, server = screen
    page.get(f"{server.address}book/search.html?q=simulator")
    found = "return [...document.querySelectorAll('#search-results a')].map((link) => link.getAttribute('href')).join()"
    wait_for(lambda: "notebooks/03_stage2_simulator.html" in page.execute_script(found), 60, "results")


@pytest.mark.parametrize("width, scheme", [(1280, "light"), (360, "dark")])
def test_an_accessibility_checker_finds_nothing_serious(screen, npm_package, width, scheme):
    npm_package("axe-core")
    page, server = screen
    emulate(page, width, 1000, scheme)
    for name in ("index", "notebooks/04_metrics", "api"):
        page.get(f"{server.address}book/{name}.html")
        assert not accessibility_faults(page), name
