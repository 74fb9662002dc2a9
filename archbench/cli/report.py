"""``archbench report``: results on one page that needs no network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from archbench.cli.options import Force
from archbench.presentation.terminal import echo, paragraph


def report(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUNS",
            help="Folders of studies, results folders (with the studies in them) or .parquet files",
            show_default="results",
        ),
    ] = None,
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="The page to write")] = "report.html",
    png: Annotated[
        str | None, typer.Option(metavar="DIR", help="Also write each figure into this folder, as a PNG of 300 dpi")
    ] = None,
    md: Annotated[
        str | None, typer.Option(metavar="FILE", help="Also write a Markdown summary, with the images of --png")
    ] = None,
    peaks: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="What archbench doctor --json printed here: one run is shown beside it"),
    ] = None,
    references: Annotated[
        str, typer.Option(metavar="DIR", help="Runs beside which one run of the same kind is shown, if there are any")
    ] = "results/reference",
    force: Force = False,
) -> None:
    """Show studies and runs on one self-contained HTML page: the verdict first, then tables and interactive figures.

    The page opens from the disk and needs no network. Each figure shows its data and provenance on request. Runs
    without a comparison are shown without a verdict. Needs the extra "report".
    """
    from archbench.files.outputs import Output, check_outputs
    from archbench.presentation.quantities import counted
    from archbench.report.contents import read
    from archbench.report.files import image_files, require, title_of, write_images, write_markdown, write_page
    from archbench.report.run_limits import peaks_in

    require("archbench report", "report", "vl_convert", "jinja2")
    contents = read(runs or ["results"], peaks=None if peaks is None else peaks_in(peaks), references=Path(references))
    outputs = [Output(Path(output), "page", "--output"), *([] if md is None else [Output(Path(md), "summary", "--md")])]
    drawn = [] if png is None else image_files(contents, png)
    outputs += [Output(file, "image", "--png") for part in drawn for file in part.values()]
    check_outputs(outputs, force=force)
    page = write_page(contents, output, title=title_of(contents), force=force)
    images = [] if png is None else write_images(contents, png, force=force)
    size = page.stat().st_size / 1e6
    for part in contents:
        paragraph(part.title if part.verdict is None else part.verdict.headline)
    echo(f"{page} ({size:.1f} MB, {counted(sum(len(part.figures) for part in contents), 'figure')})")
    if png is not None:
        echo(f"{Path(png)}: {counted(sum(len(part) for part in images), 'PNG file')}")
    if md is not None:
        echo(str(write_markdown(contents, md, images, force=force)))
