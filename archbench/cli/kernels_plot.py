"""TFLOP/s against length, one small plot for each head width, grouping, window and direction."""

from __future__ import annotations

import os
import secrets
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archbench.errors import StorageError, UsageError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

FORMATS = (".png", ".svg", ".pdf")

# Okabe and Ito's palette, which colour-blind readers can tell apart, and a marker each for print without colours.
_STYLES = {
    "triton": ("#D55E00", "o"),
    "sdpa": ("#0072B2", "s"),
    "flex": ("#009E73", "^"),
    "reference": ("#7F7F7F", "D"),
}
_DIRECTIONS = ("forward", "backward")


def check_plot(path: str) -> None:
    """Whether a plot can be drawn there: asked before the work, not after.

    Raises:
        UsageError: matplotlib is missing, or it cannot write such a file.
        StorageError: the folder cannot be written.
    """
    if find_spec("matplotlib") is None:
        raise UsageError("--plot", "matplotlib is not installed", "Install it with: pip install 'archbench[plot]'")
    file = Path(path)
    if file.suffix.lower() not in FORMATS:
        raise UsageError(
            f"--plot {path}", f"{file.suffix or 'a name without a suffix'} is no format for plots here",
            f"Use a name that ends in {', '.join(FORMATS)}",
        )  # fmt: skip
    probe = _beside(file)
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise _unwritable(path, error) from error


def draw(frame: pd.DataFrame, path: str) -> None:
    """Draw the attention rows of one run into ``path``, whole or not at all.

    Raises:
        UsageError: the run has no speed of attention.
        StorageError: the file cannot be written.
    """
    rows = frame[(frame.phase == "kernel") & (frame.operation == "causal_attention") & frame.value.notna()]
    rows = rows[rows.metric.isin([f"{direction}_flops_per_second" for direction in _DIRECTIONS])]
    if rows.empty:
        raise UsageError(f"--plot {path}", "there is no speed of attention to draw", "Measure --operations attention")
    figure = _figure(rows)
    file = Path(path)
    temporary = _beside(file)
    try:
        figure.savefig(temporary, dpi=150, format=file.suffix[1:].lower())
        temporary.replace(file)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _figure(rows: pd.DataFrame) -> Any:
    """A row of plots for each grouping and window, a column for each head width and direction."""
    from matplotlib.figure import Figure

    rows = rows.assign(ratio=rows.query_heads // rows.kv_heads, seen=rows.window.fillna(0))  # 0: all
    kinds = list(dict.fromkeys(zip(rows.ratio.astype(int), rows.seen.astype(int), strict=True)))
    widths = sorted(int(width) for width in rows.head_width.unique())
    columns = [(width, direction) for width in widths for direction in _DIRECTIONS]
    figure = Figure(figsize=(3.0 * len(columns) + 0.6, 2.5 * len(kinds) + 1.1), layout="constrained")
    axes = figure.subplots(len(kinds), len(columns), sharex=True, sharey="row", squeeze=False)
    for line, (ratio, window) in zip(axes, kinds, strict=True):
        for axis, (width, direction) in zip(line, columns, strict=True):
            metric = f"{direction}_flops_per_second"
            here = rows[(rows.ratio == ratio) & (rows.seen == window) & (rows.head_width == width)]
            _draw_backends(axis, here[here.metric == metric])
            if here.empty:
                axis.set_visible(False)
                continue
            heads = int(here.query_heads.iloc[0])
            seen = f", W {window}" if window else ""
            axis.set_title(f"{direction}: D {width}, H {heads}, G {heads // ratio}{seen}", fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("length T (positions)")
    for line in axes:
        line[0].set_ylabel("TFLOP/s")
    _finish(figure, axes, rows)
    return figure


def _draw_backends(axis: Axes, rows: pd.DataFrame) -> None:
    lengths = sorted(int(length) for length in rows.context_length.unique())
    for backend, (colour, marker) in _STYLES.items():
        line = rows[rows.attention.str.removesuffix("-autotuned") == backend].sort_values("context_length")
        if len(line):
            axis.plot(
                line.context_length.astype(int), line.value / 1e12,
                color=colour, marker=marker, markersize=4, linewidth=1.6, label=backend,
            )  # fmt: skip
    axis.set_xscale("log", base=2)
    axis.set_xticks(lengths, [str(length) for length in lengths], fontsize=8)
    axis.minorticks_off()
    axis.margins(x=0.08)
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _finish(figure: Any, axes: Any, rows: pd.DataFrame) -> None:
    first = rows.iloc[0]
    disturbed = ", while other work disturbed the machine" if rows.contaminated.eq(True).any() else ""
    figure.suptitle(
        f"Causal attention, {first['dtype']}, {first.device_name}{disturbed}\n"
        "median TFLOP/s of visible pairs: causal counted as half, backward as 2.5 × forward",
        fontsize=10,
    )
    lines = {
        label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    shown = [backend for backend in _STYLES if backend in lines]
    figure.legend(
        [lines[backend] for backend in shown], shown, loc="outside lower center", ncols=len(shown), frameon=False
    )


def _beside(file: Path) -> Path:
    return file.with_name(f".{file.name}.{os.getpid()}-{secrets.token_hex(3)}.tmp")


def _unwritable(path: str, error: OSError) -> StorageError:
    return StorageError(f"--plot {path}", f"it cannot be written ({error.strerror or error})", "Choose another file")
