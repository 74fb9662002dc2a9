"""``archbench open``: the report in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from archbench.cli.options import Force, Results
from archbench.errors import StorageError
from archbench.presentation.terminal import echo

PAGE = "report.html"


def open_report(
    what: Annotated[
        str,
        typer.Argument(metavar="[PATH|RUN]", help="Folder of results or of a study, .parquet file, or a run's id"),
    ] = "results",
    results: Results = "results",
    browser: Annotated[bool, typer.Option(help="Open it; otherwise only make it and print its path")] = True,
    force: Force = False,
) -> None:
    """Open the report of results in a browser. It is made if it is not there, or older than what it shows.

    Without a browser the path of the page is printed, as always.
    """
    sources, page = _page(what, results)
    if _is_old(sources, page):
        from archbench.report.contents import read
        from archbench.report.files import require, title_of, write_page

        require("archbench open", "report", "vl_convert", "jinja2")
        contents = read([str(source) for source in sources])
        write_page(contents, page, title=title_of(contents), force=force)
    echo(str(page))
    if browser and not _opened(page):
        echo("There is no browser here. Open the page where there is one.", error=True)


def _page(what: str, results: str) -> tuple[list[Path], Path]:
    """What is shown, and the file of the page."""
    place = Path(what)
    if place.suffix in (".html", ".htm") and place.is_file():
        return [], place
    from archbench.results.run_files import RunFiles, run_files
    from archbench.results.store import RUN_ID

    is_run = RUN_ID.fullmatch(place.name.removesuffix(".parquet")) is not None
    if place.is_dir() and not is_run:
        return [place], place / PAGE
    if place.is_file() and not is_run:
        return [place], place.with_suffix(".html")
    run = RunFiles.at(place) if place.exists() else run_files(what, results)
    if not run.rows.exists():
        raise StorageError(str(run.rows), "the run has no rows yet", "Finish it: archbench run --resume names it")
    return [run.rows], run.folder / PAGE if run.folder.is_dir() else run.rows.with_suffix(".html")


def _is_old(sources: list[Path], page: Path) -> bool:
    from archbench.results.schema import OUTCOMES

    files = [
        file
        for source in sources
        for file in (source.rglob("*") if source.is_dir() else [source])
        if file.suffix == ".parquet" or file.name in OUTCOMES
    ]
    made = page.stat().st_mtime if page.exists() else 0.0
    return bool(sources) and (not page.exists() or any(file.stat().st_mtime > made for file in files))


def _opened(page: Path) -> bool:
    import webbrowser

    try:
        return webbrowser.open(page.resolve().as_uri())
    except webbrowser.Error:
        return False
