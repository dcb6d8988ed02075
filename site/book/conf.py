"""Sphinx's settings for the book. book.py lays out the sources and gives what depends on the repository's address."""

import posixpath
import re

from docutils import nodes
from sphinx import addnodes

project = "ProS, step by step"
author = copyright = "ProS tutorial authors"
language = "en"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax"]
include_patterns = [
    "index.md",
    "api.md",
    "notebooks/*.ipynb",
    "RESULTS.md",
    "CONTRIBUTING.md",
    "RELIABILITY.md",
    "CHANGELOG.md",
    "assignments/README.md",
    "prosutils/data/*.md",
    "prosutils/data/trained/README.md",
]

# The outputs are those that are committed. A widget's committed output is a picture: no script is needed to show it.
nb_execution_mode = "off"
nb_ipywidgets_js = {}
nb_merge_streams = True
nb_mime_priority_overrides = [("html", "text/plain", 100)]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
default_role = "code"
smartquotes = False  # docstrings hold code
add_module_names = False

html_theme = "furo"
html_title = project
html_favicon = "../page/icon.svg"
html_static_path = ["static"]
html_css_files = ["book.css"]
templates_path = ["templates"]
html_copy_source = False
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "sidebar/search.html",
        "sidebar/scroll-start.html",
        "sidebar/draw.html",
        "sidebar/navigation.html",
        "sidebar/scroll-end.html",
    ]
}
mathjax_path = "mathjax/tex-svg.js"


def docstring_as_rst(app, what, name, obj, options, lines):
    """The package's docstrings are plain text with Markdown's `code`, tables and indented examples."""
    blocks = re.split(r"\n\n+|\n(?=[a-z_]+: |Raises |Columns: )", "\n".join(lines))
    lines[:] = "\n\n".join(map(block_as_rst, blocks)).split("\n") + [""]


def block_as_rst(block):
    if block.startswith(("|", " ")):
        return "::\n\n" + re.sub("^", "    ", block, flags=re.MULTILINE)
    parts = block.split("`")  # every second part is code
    parts[::2] = [re.sub(r"([*_|\\])", r"\\\1", part) for part in parts[::2]]
    return "``".join(re.sub(r"\n +", "\n", part) for part in parts)


def link_to_repository(app, document):
    """A link to a file that is no page of the book leads to the repository, where its address is known, else to a copy."""
    repository = app.config.html_context["repository"]
    for link in list(document.findall(addnodes.download_reference)) if repository else []:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(app.env.docname), link["reftarget"]))
        link.replace_self(nodes.reference("", "", *link.children, refuri=f"{repository}/blob/main/{path}"))


def name_levels_and_let_keys_scroll(app, page, template, context, document):
    """What screen readers and keyboards miss in the theme: a level for the sidebar's captions, focus for wide code."""
    context["furo_navigation_tree"] = context["furo_navigation_tree"].replace(
        'role="heading"', 'role="heading" aria-level="2"'
    )
    body = context.get("body", "").replace("<pre>", '<pre tabindex="0">')
    context["body"] = re.sub('<div (?=class="(table-wrapper|output text_html))', '<div tabindex="0" ', body)


def setup(app):
    app.connect("autodoc-process-docstring", docstring_as_rst)
    app.connect("doctree-read", link_to_repository)
    app.connect("html-page-context", name_levels_and_let_keys_scroll, priority=900)  # after the theme's own
