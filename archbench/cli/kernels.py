"""``archbench kernels``: attention backends and losses against each other, measured here or compiled for elsewhere."""

from __future__ import annotations

from typing import Annotated

import typer

from archbench.cli.fields import DEVICE, FieldOption, Given, options_given, with_fields
from archbench.cli.options import Force, Json, Quiet, chosen_device
from archbench.errors import UsageError

FREE = ("--device", "--head-widths", "--dtype", "--seed", "--out")
"""Options that --static accepts."""


@with_fields(
    "archbench.config:KernelConfig",
    DEVICE,
    FieldOption("operations"),
    FieldOption("backends"),
    FieldOption("lengths", shown="128,512,2048 on a CPU, 512 to 16384 on a GPU"),
    FieldOption("head_widths", shown="64; 64,128 on a GPU"),
    FieldOption("query_heads", "--heads", shown="12; 2048 / D on a GPU"),
    FieldOption("groups", shown="1,3; 1,4 on a GPU"),
    FieldOption("windows", shown="none; none,1024 on a GPU"),
    FieldOption("batch_size", shown="1; 16384 / T on a GPU"),
    FieldOption("losses", shown="1024x768x40478; two larger ones on a GPU"),
    FieldOption("dtype", shown="float32; bfloat16 on a GPU"),
    FieldOption("repeats", shown="10; 30 on a GPU"),
    FieldOption("threads"),
    FieldOption("seed"),
    FieldOption("out"),
)
def kernels(
    *,
    given: Given,
    plot: Annotated[
        str | None, typer.Option(metavar="FILE.png", help="Also draw TFLOP/s against length; .png, .svg or .pdf")
    ] = None,
    static: Annotated[
        bool,
        typer.Option("--static", help="Run nothing: compile for chips that need not be there, and inspect the code"),
    ] = False,
    chip: Annotated[
        list[str] | None, typer.Option(help="With --static: sm_90 ... (repeatable)", show_default="all known")
    ] = None,
    plugin: Annotated[
        str | None,
        typer.Option(
            metavar="FILE_OR_DIR", help="With --static: kernels of your own, from a module with launches(chip)"
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    force: Force = False,
) -> None:
    """Measure attention backends and losses against each other: seconds, TFLOP/s, memory and error. Lists take commas.

    The backends alternate within each case, on the same inputs. TFLOP/s count only visible (query, key) pairs: causal
    attention counts half of a square, and backward counts 2.5 times forward. A backend that cannot run is listed with
    the reason. With --static nothing runs, and nothing is said of speed.
    """
    given = {name: tuple(dict.fromkeys(value)) if type(value) is tuple else value for name, value in given.items()}
    if static:
        _check_static(given, plugin, plot)
        from archbench.cli.kernels_static import static_kernels

        chosen = given.get("head_widths"), given.get("dtype")
        raise typer.Exit(static_kernels(chip or [], plugin, *chosen, json=json, quiet=quiet))
    for option, value in (("--chip", chip), ("--plugin", plugin)):
        if value:
            raise UsageError(option, "it needs --static: nothing is compiled otherwise", "Add --static")
    if plot is not None:
        from archbench.cli.kernels_plot import check_plot

        if "attention" not in given.get("operations", ("attention",)):
            cause = "it draws attention, which is not among the operations measured"
            raise UsageError(f"--plot {plot}", cause, "Leave one of them out")
        check_plot(plot, force=force)

    from archbench.config import KernelConfig
    from archbench.runs.kernel_cases import DEFAULTS
    from archbench.runs.kernel_run import measure_kernels

    kind = "cuda" if chosen_device(given) else "cpu"
    config = KernelConfig(**{**DEFAULTS[kind], **given})
    run = measure_kernels(config, quiet=quiet)

    from archbench.cli.kernels_plot import draw
    from archbench.cli.summary import print_kernels, print_rows
    from archbench.results.reading import read_results

    frame = read_results(run.path)
    if plot is not None:
        draw(frame, plot, force=force)
    if json:
        print_rows(frame, config.out)
    else:
        print_kernels(frame, run.left_out, run.path, plot)


def _check_static(given: Given, plugin: str | None, plot: str | None) -> None:
    """Refuse options of a measurement, because compiled launches have their own sizes.

    Raises:
        UsageError: such an option is given.
    """
    for option in [*options_given(kernels, given), *(["--plot"] if plot is not None else [])]:
        if option not in FREE:
            raise UsageError(option, "it is for measurements, and --static runs nothing", "Leave one of them out")
        if plugin is not None and option in ("--head-widths", "--dtype"):
            raise UsageError(option, "a plugin's launches have their own sizes", "Leave it out, or --plugin")
