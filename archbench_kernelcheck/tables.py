"""The static figures as a table and as tidy rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from archbench_kernelcheck.figures import Failure, Figures, LoopFigures, violations

TITLE = "Static check: compiled and read, nothing was run. Of speed it says nothing."
NUMBERS = ("regs", "stack B", "loop spills", "shared KiB", "tensor", "narrow", "atomic", "warps", "blocks/SM")
LOOP = "per iteration: instr\n(tensor, exp, select)"


def table(results: Sequence[Figures | Failure]) -> Table:
    """One line per launch and chip, and within it one per innermost loop with tensor-core instructions.

    *stack* is where spilled registers go; *loop spills* counts instructions in loops; *narrow* are global loads of one
    or two bytes; *tensor* are tensor-core instructions.
    """
    made = Table(title=TITLE, title_justify="left", box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("chip", "launch"):
        made.add_column(name, overflow="fold")
    for name in NUMBERS:
        made.add_column(name, justify="right")
    made.add_column(LOOP, no_wrap=True)
    made.add_column("wrong", overflow="fold")
    for result in results:
        wrong = "; ".join(violations(result))
        if isinstance(result, Failure):
            made.add_row(result.chip, result.launch, *[""] * (len(NUMBERS) + 1), wrong)
            continue
        made.add_row(
            result.chip,
            result.launch,
            str(result.registers),
            str(result.stack_bytes),
            str(result.loop_spills),
            f"{result.shared_bytes / 1024:.0f}/{result.shared_limit / 1024:.0f}",
            str(result.tensor_instructions),
            str(result.narrow_loads),
            str(result.atomics),
            str(result.warps),
            str(result.blocks_per_multiprocessor),
            "\n".join(map(_iteration, result.tensor_loops)),
            wrong,
        )
    return made


def rows(results: Sequence[Figures | Failure]) -> list[dict[str, Any]]:
    """Tidy rows: one per launch and chip, followed by one per innermost loop, numbered from 1 in ``loop``."""
    made: list[dict[str, Any]] = []
    for result in results:
        if isinstance(result, Failure):
            made.append({"chip": result.chip, "launch": result.launch, "loop": None, "failure": result.cause})
            continue
        whole = asdict(result)
        del whole["loops"]
        whole |= {"loop": None, "violations": violations(result)}
        made.append(whole)
        for number, loop in enumerate(result.loops, 1):
            made.append({"chip": result.chip, "launch": result.launch, "loop": number, **asdict(loop)})
    return made


def _iteration(loop: LoopFigures) -> str:
    serialised = " one by one" if loop.serialised else ""
    return f"{loop.instructions} ({loop.tensor_instructions}{serialised}, {loop.exponentials}, {loop.masks})"
