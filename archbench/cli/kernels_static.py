"""``archbench kernels --static``: compile kernels for chips that need not be present, and report on their code."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from archbench.errors import UsageError
from archbench.presentation.step_view import StepView
from archbench.presentation.tables import Cell, Column, Table, table

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from archbench_kernelcheck import Result
    from archbench_kernelcheck.checking import Launches


def static_kernels(
    chips: Sequence[str],
    plugin: str | None,
    head_widths: Sequence[int] | None,
    dtype: str | None,
    *,
    json: bool,
    quiet: bool,
) -> int:
    """Print the static figures of the fused kernels, or of a plugin's. Returns 1 if they show a fault, else 0.

    Args:
        chips: names of chips; empty for all known ones.
        plugin: a plugin's path, whose module defines ``launches(chip)``; None for archbench's own kernels.
        head_widths: of archbench's own kernels; None for all that the static check covers.
        dtype: of archbench's own kernels; None for all that the static check covers.
        json: print JSON lines instead of a table.
        quiet: no progress on standard error.

    Raises:
        UnknownNameError: there is no such chip.
        UsageError, PluginError: the plugin does not exist, cannot be loaded, or defines no ``launches``.
        DeviceError: Triton is not installed, or its interpreter is on.
    """
    from archbench.cli.output import print_json
    from archbench.presentation.terminal import show
    from archbench_kernelcheck import check_on, rows, violations
    from archbench_kernelcheck import table as static_table

    load = partial(_own, head_widths, dtype) if plugin is None else partial(_of_plugin, plugin)
    with _Compiling(shown=not quiet, json=json) as progress:
        results = check_on(chips, load, progress=progress.compiled)
    if json:
        for row in rows(results):
            print_json(row)
    else:
        show(_shown(static_table(results)))
    return int(any(violations(result) for result in results))


def _shown(static: RichTable) -> Table:
    """The static check's table; a narrow terminal leaves out its figures from the right, and never what is wrong."""
    columns = [
        Column(
            str(one.header),
            "number" if one.justify == "right" else "code" if one.no_wrap else "name",
            priority=place if one.justify == "right" or one.no_wrap else 0,
        )
        for place, one in enumerate(static.columns)
    ]
    cells = ([Cell(str(cell)) for cell in one.cells] for one in static.columns)
    return table("static", str(static.title), columns, zip(*cells, strict=True))


class _Compiling(StepView):
    """Progress of the compiler; a log gets a line for each launch."""

    def compiled(self, result: Result, count: int) -> None:
        """``result`` is there, the next of ``count``."""
        text = f"compiled {result.launch} for {result.chip}"
        self.begun(text, self.number + 1, count)
        if not self.view.redrawn:
            self.view.say(f"[{self.number}/{count}] {text}")


def _own(head_widths: Sequence[int] | None, dtype: str | None) -> Launches:
    import torch

    from archbench.kernels.fused.catalogue import HEAD_WIDTHS, persistent_launches, table_launches

    dtypes = tuple(HEAD_WIDTHS) if dtype is None else (getattr(torch, dtype),)
    widths = head_widths or None
    return lambda chip: [*table_launches(chip, widths, dtypes), *persistent_launches(chip, widths, dtypes)]


def _of_plugin(plugin: str) -> Launches:
    from archbench.plugin.discovery import plugin_files, plugin_paths
    from archbench.plugin.importing import import_file

    (path, *_) = plugin_paths([plugin])
    modules = [import_file(file) for file in plugin_files(path)]
    found: list[Launches] = [module.launches for module in modules if hasattr(module, "launches")]
    if not found:
        raise UsageError(
            f"--plugin {plugin}",
            "it defines no launches(chip)",
            "Define launches(chip: str), which returns a list of archbench.kernels.launch.Launch",
        )
    return lambda chip: [launch for launches in found for launch in launches(chip)]
