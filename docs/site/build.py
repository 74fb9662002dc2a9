"""Build the documentation site: ``pip install -e '.[docs]' && python docs/site/build.py`` writes ``build/site``.

Pages come from ``docs/`` and a few from elsewhere. A line ``<!-- generated: NAME -->`` becomes what
``reference_pages.py`` makes of the code; notebooks are executed; the gallery is made from the committed references.
A warning, a notebook that raises, a link or anchor that leads nowhere, or anything that a page would fetch from
elsewhere, fails the build.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

from reference_pages import GENERATED

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES, SITE = ROOT / "build" / "pages", ROOT / "build" / "site"
ELSEWHERE = {
    "results/README.md": "reference/results.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
    "CHANGELOG.md": "project/changes.md",
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
REPOSITORY = PROJECT["urls"]["Repository"]
GALLERY = {
    PAGES / "gallery" / f"{page['name']}.html": page["command"]
    for page in tomllib.loads((Path(__file__).parent / "gallery.toml").read_text("utf-8"))["page"]
}
LINK = re.compile(r"(\]\()([^)#\s]+)(?=(?:#[^)\s]*)?\))")


def main() -> int:
    shutil.rmtree(PAGES, ignore_errors=True)
    shutil.rmtree(SITE, ignore_errors=True)
    pages = [DOCS / "index.md", DOCS / "gallery.md", *DOCS.glob("*/*.md"), *DOCS.glob("schema/*.json")]
    places = {page: PAGES / page.relative_to(DOCS) for page in pages}
    places |= {ROOT / page: PAGES / place for page, place in ELSEWHERE.items()}
    places |= {book: PAGES / book.relative_to(DOCS).with_suffix(".md") for book in DOCS.glob("*/*.ipynb")}
    gallery = {DOCS / place.relative_to(PAGES): place for place in GALLERY}
    for page, place in places.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        if page.suffix == ".ipynb":
            execute(page, place)
        else:
            place.write_text(text_of(page, places | gallery), "utf-8")
    make_gallery()
    subprocess.run([sys.executable, "-m", "zensical", "build", "--clean", "--strict"], cwd=ROOT, check=True)
    faults = [fault for page in sorted(SITE.rglob("*.html")) for fault in faults_of(page)]
    print("\n".join(faults) or f"{len(list(SITE.rglob('*.html')))} pages in {SITE.relative_to(ROOT)}")
    return int(bool(faults))


def text_of(page: Path, places: dict[Path, Path]) -> str:
    text = re.sub(r"<!-- generated: (.+?) -->", lambda match: GENERATED[match[1]](), page.read_text("utf-8"))
    return text if page.suffix == ".json" else LINK.sub(lambda found: found[1] + moved(page, found[2], places), text)


def moved(page: Path, target: str, places: dict[Path, Path]) -> str:
    """The relative link ``target`` of ``page``, from where the page stands on the site."""
    if ":" in target:
        return target
    found = Path(os.path.normpath(page.parent / target))
    if found.suffix in {".png", ".svg"}:
        places = {found: PAGES / "images" / found.name}
        places[found].parent.mkdir(exist_ok=True)
        shutil.copy(found, places[found])
    if found in places:
        here = PAGES / (ELSEWHERE.get(page.relative_to(ROOT).as_posix()) or page.relative_to(DOCS))
        return Path(os.path.relpath(places[found], here.parent)).as_posix()
    if not found.exists():
        raise SystemExit(f"{page.relative_to(ROOT)}: {target} does not exist")
    return f"{REPOSITORY}/blob/main/{found.relative_to(ROOT).as_posix()}"


def execute(notebook: Path, place: Path) -> None:
    """Run a notebook from the root of the repository, and write what it shows as Markdown."""
    import nbformat
    from nbconvert import MarkdownExporter
    from nbconvert.preprocessors import ExecutePreprocessor

    book = nbformat.read(notebook, as_version=4)
    ExecutePreprocessor(timeout=300, kernel_name="python3").preprocess(book, {"metadata": {"path": ROOT}})
    names = {"unique_key": place.stem, "output_files_dir": place.stem}
    text, resources = MarkdownExporter().from_notebook_node(book, names)
    for name, content in resources["outputs"].items():
        (place.parent / name).parent.mkdir(exist_ok=True)
        (place.parent / name).write_bytes(content)
    place.write_text(text.replace('<table border="1" class="dataframe">', "<table>"), "utf-8")


def make_gallery() -> None:
    from archbench.cli.app import main as archbench

    (PAGES / "gallery").mkdir()
    for page, command in GALLERY.items():
        if archbench(command.replace("PAGE", str(page)).split()[1:]) != 0:
            raise SystemExit(f"{page.name} of the gallery could not be made: {command}")


class Links(HTMLParser):
    """What a page links to, what it would fetch, and the anchors that it offers."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.anchors: set[str] = {""}
        self.feed(page.read_text("utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        fetches = "src" in given or (tag == "link" and given.get("rel") != "canonical")
        (self.fetched if fetches else self.links).extend(given[name] for name in ("href", "src") if name in given)


@cache
def links_of(page: Path) -> Links:
    return Links(page)


def faults_of(page: Path) -> list[str]:
    links, faults = links_of(page), []
    for link in (*links.links, *links.fetched):
        target, anchor = urldefrag(link)
        if target.startswith(("http://", "https://", "//")):
            if link in links.fetched:
                faults.append(f"{page.relative_to(SITE)} fetches {link}")
            continue
        if ":" in target or "gallery/" in str(page):
            continue
        folder = SITE if target.startswith("/") else page.parent
        found = (folder / unquote(target).lstrip("/")).resolve() if target else page
        if not found.exists():
            faults.append(f"{page.relative_to(SITE)}: {link} leads nowhere")
        elif found.suffix != ".html" or found.is_relative_to(SITE / "gallery"):
            continue
        elif unquote(anchor) not in links_of(found).anchors:
            faults.append(f"{page.relative_to(SITE)}: {link} has no such anchor")
    return faults


if __name__ == "__main__":
    sys.exit(main())
