"""``archbench kernels``: attention backends and losses against each other, measured here or compiled for elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from archbench.cli.options import Json
from archbench.errors import UnknownNameError, UsageError, did_you_mean

if TYPE_CHECKING:
    from archbench.config import KernelConfig

_SIZES = "128,512,2048 on a CPU, 512 to 16384 on a GPU"


def kernels(
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    operations: Annotated[
        str | None, typer.Option(help="What is measured: attention, loss.", show_default="attention,loss")
    ] = None,
    backends: Annotated[
        str | None, typer.Option(help="Attention backends.", show_default="triton,sdpa,flex,reference")
    ] = None,
    lengths: Annotated[str | None, typer.Option(help="T, positions.", show_default=_SIZES)] = None,
    head_widths: Annotated[
        str | None, typer.Option(help="D, 16 to 256; also with --static.", show_default="64; 64,128 on a GPU")
    ] = None,
    heads: Annotated[int | None, typer.Option(help="H, query heads.", show_default="12; 2048 / D on a GPU")] = None,
    groups: Annotated[
        str | None, typer.Option(help="H/G, query heads to a key/value head.", show_default="1,3; 1,4 on a GPU")
    ] = None,
    windows: Annotated[
        str | None, typer.Option(help="W, positions each sees; none for all.", show_default="none; none,1024 on a GPU")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="B, sequences.", show_default="1; 16384 / T on a GPU")] = None,
    losses: Annotated[
        str | None,
        typer.Option(
            metavar="NxCxV",
            help="Positions, width and vocabulary of each loss.",
            show_default="1024x768x40478; two larger ones on a GPU",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float32, bfloat16 or float16; also with --static.", show_default="float32; bfloat16 on a GPU"
        ),
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(help="Timed repeats of each case.", show_default="10; 30 on a GPU")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.", show_default="one a core")] = None,
    seed: Annotated[int, typer.Option(help="Of the inputs.")] = 0,
    out: Annotated[str, typer.Option(help="Folder for the results.")] = "results",
    plot: Annotated[
        str | None, typer.Option(metavar="FILE.png", help="Also draw TFLOP/s against length; .svg and .pdf too.")
    ] = None,
    static: Annotated[
        bool, typer.Option("--static", help="Run nothing: compile for chips that are not there, and read the code.")
    ] = False,
    chip: Annotated[
        list[str] | None, typer.Option(help="With --static: sm_90 ... (repeatable).", show_default="all known")
    ] = None,
    plugin: Annotated[
        str | None,
        typer.Option(
            metavar="FILE_OR_DIR", help="With --static: kernels of your own, from a module with launches(chip)."
        ),
    ] = None,
    json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on standard error.")] = False,
) -> None:
    """Measure attention backends and losses against each other: seconds, TFLOP/s, memory and error. Lists take commas.

    The backends alternate within each case, on the same inputs. TFLOP/s count visible (query, key) pairs only: causal
    attention counts as half a square, and 2.5 times as much backward as forward. A backend that cannot run is listed
    with the reason. With --static nothing is run, and every speed is a prediction.
    """
    given: dict[str, Any] = {
        "operations": _names(operations, "--operations", "OperationName"),
        "backends": _names(backends, "--backends", "BackendName"),
        "lengths": _integers(lengths, "--lengths"),
        "head_widths": _integers(head_widths, "--head-widths", least=16, most=256),
        "query_heads": _at_least_one(heads, "--heads"),
        "groups": _integers(groups, "--groups"),
        "windows": _integers(windows, "--windows", none=True),
        "batch_size": _at_least_one(batch_size, "--batch-size"),
        "losses": _sizes(losses),
        "dtype": _one_of(dtype, "--dtype", "DTypeName"),
        "repeats": _at_least_one(repeats, "--repeats"),
        "threads": _at_least_one(threads, "--threads"),
    }
    given = {name: value for name, value in given.items() if value is not None}
    if static:
        _check_static(given, plugin, plot)
        from archbench.cli.kernels_static import static_kernels

        chosen = given.get("head_widths"), given.get("dtype")
        raise typer.Exit(static_kernels(chip or [], plugin, *chosen, json=json, quiet=quiet))
    for option, value in (("--chip", chip), ("--plugin", plugin)):
        if value:
            raise UsageError(option, "it is for compiling, and nothing is compiled here", "Add --static")
    if plot is not None:
        from archbench.cli.kernels_plot import check_plot

        if "attention" not in given.get("operations", ("attention",)):
            raise UsageError(
                f"--plot {plot}", "it draws attention, which is not measured here", "Leave one of them out"
            )
        check_plot(plot)

    from archbench.phases.kernel_process import measure_kernels

    run = measure_kernels(_config(device, {**given, "seed": seed, "out": out}), quiet=quiet)

    from archbench.cli.kernels_plot import draw
    from archbench.cli.kernels_table import print_kernels
    from archbench.cli.summary import print_rows
    from archbench.results.store import read_results

    frame = read_results(run.path)
    if plot is not None:
        draw(frame, plot)
    if json:
        print_rows(frame, out)
    else:
        print_kernels(frame, run.left_out, run.path, plot)


def _config(device: str, given: dict[str, Any]) -> KernelConfig:
    """The frozen configuration: what was given, over the defaults of the kind of device."""
    from archbench.config import KernelConfig
    from archbench.phases.device import default_device, resolve_device
    from archbench.phases.kernel_cases import DEFAULTS

    name = default_device() if device == "auto" else device
    return KernelConfig(**{**DEFAULTS[resolve_device(name).type], **given, "device": name})


def _check_static(given: dict[str, Any], plugin: str | None, plot: str | None) -> None:
    """Refuse what belongs to a measurement: the launches that are compiled have sizes of their own.

    Raises:
        UsageError: naming the option.
    """
    options = {name: f"--{name.replace('query_', '').replace('_', '-')}" for name in given}
    if plot is not None:
        options["plot"] = "--plot"
    for name, option in options.items():
        if name not in ("head_widths", "dtype"):
            raise UsageError(option, "it is for measuring, and --static runs nothing", "Leave one of them out")
        if plugin is not None:
            raise UsageError(option, "a plugin's launches have sizes of their own", "Leave it out, or --plugin")


def _integers(
    text: str | None, option: str, *, least: int = 1, most: int | None = None, none: bool = False
) -> tuple[int | None, ...] | None:
    """``128,512`` as numbers, ``none`` as None where that is allowed.

    Raises:
        UsageError: something else, or a number out of range.
    """
    if text is None:
        return None
    numbers: list[int | None] = []
    for part in text.split(","):
        word = part.strip()
        if none and word == "none":
            numbers.append(None)
            continue
        try:
            number = int(word)
        except ValueError:
            also = " and none" if none else ""
            raise UsageError(
                f"{option} {text}", f"{word!r} is no whole number", f"Write whole numbers{also}, separated by commas"
            ) from None
        if number < least or (most is not None and number > most):
            range_ = f"at least {least}" if most is None else f"{least} to {most}"
            raise UsageError(f"{option} {text}", f"{number} is out of range", f"Give {range_}")
        numbers.append(number)
    return tuple(dict.fromkeys(numbers))


def _at_least_one(number: int | None, option: str) -> int | None:
    if number is not None and number < 1:
        raise UsageError(f"{option} {number}", "it is out of range", "Give at least 1")
    return number


def _sizes(text: str | None) -> tuple[tuple[int, ...], ...] | None:
    """``1024x768x40478`` as (N, C, V), one or several of them.

    Raises:
        UsageError: something else.
    """
    if text is None:
        return None
    sizes = []
    for part in text.split(","):
        words = part.strip().lower().split("x")
        if len(words) != 3 or not all(word.isdigit() and int(word) > 0 for word in words):
            raise UsageError(
                f"--losses {text}",
                f"{part.strip()!r} is not of the form NxCxV",
                "Write positions, width and vocabulary, as in --losses 4096x768x40478",
            )
        sizes.append(tuple(map(int, words)))
    return tuple(dict.fromkeys(sizes))


def _names(text: str | None, option: str, kind: str) -> tuple[str, ...] | None:
    """Comma-separated names, each one of a Literal's of :mod:`archbench.config`.

    Raises:
        UnknownNameError: it has no such name.
    """
    if text is None:
        return None
    from archbench import config

    known = get_args(getattr(config, kind))
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        if name not in known:
            raise UnknownNameError(f"{option} {text}", f"there is no {name!r}", did_you_mean(name, known))
    return names


def _one_of(text: str | None, option: str, kind: str) -> str | None:
    """A single name, checked as :func:`_names` does."""
    names = _names(text, option, kind)
    if names is not None and len(names) > 1:
        raise UsageError(f"{option} {text}", "it takes one name", "Run the command once for each")
    return None if names is None else names[0]
