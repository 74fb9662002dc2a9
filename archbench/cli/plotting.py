"""``archbench plot``: any metric, in the terminal or as an image."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from archbench.cli.options import Force
from archbench.errors import UnknownNameError
from archbench.presentation.terminal import console, echo


def plot_metric(
    metric: Annotated[str, typer.Argument(help="Name of a metric: bits_per_byte, loss, seconds_per_token …")],
    path: Annotated[str, typer.Argument(help="A results folder, one .parquet file, or a glob pattern")] = "results",
    by: Annotated[str, typer.Option(metavar="COLUMN", help="A line or a bar for each value of it")] = "architecture",
    where: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN=VALUE", help="Only these rows: phase=decode … (repeatable)")
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="Write an image instead: .png, .svg or .pdf")
    ] = None,
    force: Force = False,
) -> None:
    """Plot a metric: a curve for what changes during training, bars for all else. It fits the terminal's width.

    Bars are medians with their quartiles, one for each phase, batch and prompt. An image needs the extra "plot".
    """
    from archbench.cli.kernels_plot import check_plot
    from archbench.report.character_plot import characters
    from archbench.report.metric_figure import metric_figure
    from archbench.results.reading import read_results
    from archbench.results.schema import COLUMNS, did_you_mean_column

    if by not in {column.name for column in COLUMNS}:
        raise UnknownNameError(f"--by {by}", "the results have no such column", did_you_mean_column(by))
    if output is not None:
        check_plot(output, option="--output", force=force)
    figure = metric_figure(read_results(path, where or None, known=True), metric, by, path)
    if output is not None:
        from archbench.report.files import write_image

        echo(str(write_image(figure, output, option="--output", force=force)))
        return
    echo(f"{metric} by {by}")
    plain = "utf" not in (sys.stdout.encoding or "").lower()
    for line in characters(figure.panels[0], console().width, plain=plain):
        echo(line)
