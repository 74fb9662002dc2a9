"""``archbench kernels --static``: kernels compiled for chips that are not there, and what their code says."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from archbench.errors import UsageError

if TYPE_CHECKING:
    from archbench.kernels.launch import Launch
    from archbench.kernels.staticcheck.checking import Result

WIDTH = 200
"""Columns of the table, at the least: a narrow terminal had better wrap it than lose digits."""

Launches = Callable[[str], Iterable["Launch"]]
"""The launches to compile for the chip of that name."""


def static_kernels(
    chips: Sequence[str],
    plugin: str | None,
    head_widths: Sequence[int] | None,
    dtype: str | None,
    *,
    json: bool,
    quiet: bool,
) -> int:
    """Print the static figures of the fused kernels, or of a plugin's; 1 if something is wrong with them, else 0.

    Args:
        chips: names of chips; empty for all that are known.
        plugin: a plugin's path, whose module defines ``launches(chip)``; None for archbench's own kernels.
        head_widths: of archbench's own kernels; None for all that the static check looks at.
        dtype: of archbench's own kernels; None for all that the static check looks at.
        json: print JSON lines instead of a table.
        quiet: no progress on standard error.

    Raises:
        UnknownNameError: there is no such chip.
        UsageError, PluginError: the plugin is not there, cannot be loaded, or defines no ``launches``.
        DeviceError: Triton is not installed, or its interpreter is on.
    """
    from archbench.cli.output import console, print_json
    from archbench.kernels.staticcheck.checking import check
    from archbench.kernels.staticcheck.chips import CHIPS, chip_named
    from archbench.kernels.staticcheck.compilation import pretended
    from archbench.kernels.staticcheck.figures import violations
    from archbench.kernels.staticcheck.table import rows, table

    named = [chip_named(name) for name in dict.fromkeys(chips or CHIPS)]
    launches: Launches | None = None
    jobs = []
    for chip in named:
        with pretended(chip):  # Triton decides by its driver what a kernel is, when the module defines it
            launches = launches or (_own(head_widths, dtype) if plugin is None else _of_plugin(plugin))
            jobs += [(chip, launch) for launch in launches(chip.name)]
    results = check(jobs, progress=None if quiet else _Progress(len(jobs)))
    if json:
        for row in rows(results):
            print_json(row)
    else:
        out = console()
        out.width = max(out.width, WIDTH)
        out.print(table(results))
    return int(any(violations(result) for result in results))


class _Progress:
    """A line on standard error for each launch that is done."""

    def __init__(self, total: int) -> None:
        self._done, self._total = 0, total

    def __call__(self, result: Result) -> None:
        self._done += 1
        print(f"[{self._done}/{self._total}] compiled {result.launch} for {result.chip}", file=sys.stderr, flush=True)


def _own(head_widths: Sequence[int] | None, dtype: str | None) -> Launches:
    import torch

    from archbench.kernels.fused.catalogue import HEAD_WIDTHS, table_launches

    dtypes = tuple(HEAD_WIDTHS) if dtype is None else (getattr(torch, dtype),)
    return partial(table_launches, head_widths=head_widths or None, dtypes=dtypes)


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
