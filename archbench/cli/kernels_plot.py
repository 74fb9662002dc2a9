"""``archbench kernels --plot``: the report's figure of kernels, for one run, as an image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from archbench.errors import StorageError, UsageError
from archbench.files.outputs import Output, check_outputs

if TYPE_CHECKING:
    import pandas as pd

FORMATS = (".png", ".svg", ".pdf")


def check_plot(path: str, *, option: str = "--plot", force: bool = False) -> None:
    """Check, before measuring, that a plot can be written there.

    Raises:
        UsageError: vl-convert is missing, or it cannot write such a file, or it would replace another kind of file.
        StorageError: the folder is missing.
    """
    from archbench.report.files import require

    require(option, "plot", "vl_convert")
    file = Path(path)
    if file.suffix.lower() not in FORMATS:
        raise UsageError(
            f"{option} {path}", f"{file.suffix or 'a name without a suffix'} is not a format for plots",
            f"Use a name that ends in {', '.join(FORMATS)}",
        )  # fmt: skip
    if not file.parent.is_dir():
        raise StorageError(f"{option} {path}", f"there is no folder {file.parent}", "Choose another file")
    check_outputs([Output(file, "image", option)], force=force)


def draw(frame: pd.DataFrame, path: str, *, force: bool = False) -> None:
    """Draw the attention rows of one run into ``path``, whole or not at all.

    Raises:
        UsageError: the run has no speed of attention.
        StorageError: the file cannot be written.
    """
    from archbench.report.cost_figures import kernel_figure
    from archbench.report.evidence import of_runs
    from archbench.report.files import write_image

    figure = kernel_figure(of_runs(frame[frame.operation == "causal_attention"], (path,)))
    if figure is None:
        raise UsageError(f"--plot {path}", "there is no speed of attention to draw", "Measure --operations attention")
    first = frame.iloc[0]
    disturbed = ", while other work disturbed the machine" if frame.contaminated.eq(True).any() else ""
    write_image(
        figure,
        path,
        heading=f"Causal attention, {first['dtype']}, {first.device_name}{disturbed}",
        option="--plot",
        force=force,
    )
