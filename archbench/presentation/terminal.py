"""Lines and tables in the terminal. Nothing else prints there: what is printed here cannot command the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TextIO

from archbench.presentation.characters import visible
from archbench.presentation.tables import Column, Table

if TYPE_CHECKING:
    from rich.table import Table as RichTable
    from rich.text import Text

    from archbench.presentation.screen import Screen

PIPE_WIDTH = 160
"""Width of a table that goes to a file or a pipe."""

_GAP = 2
_TEXT_WIDTH = 24
"""Minimum width of a text column; longer texts wrap."""

_STYLES = {
    "green": ("better", "less", "passed", "noted"),
    "red": ("worse", "more", "failed", "unexpected pass", "FAIL"),
    "yellow": ("inconclusive", "expected failure", "NEW"),
    "dim": ("baseline", "exact", "below noise floor", "not measured", "not run", "not applicable", "ok"),
}
_STYLE_OF = {text: style for style, texts in _STYLES.items() for text in texts}


def echo(text: str = "", *, error: bool = False, stream: TextIO | None = None) -> None:
    """Print a line, on standard output, on standard error (``error``) or on ``stream``."""
    print(visible(text), file=stream or (sys.stderr if error else sys.stdout), flush=True)


def put(text: str) -> None:
    """Write text that programs may read to standard output: as it is, but made visible where it is a terminal."""
    sys.stdout.write(visible(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def console(stream: TextIO | None = None, *, width: int | None = None) -> Screen:
    """Standard output for tables, or ``stream``: as wide as the terminal, or :data:`PIPE_WIDTH` without one."""
    from archbench.presentation.screen import Screen

    if width is None and stream is None and not _has_width():
        width = PIPE_WIDTH
    return Screen(file=stream, width=width, highlight=False, markup=False, emoji=False)


def show(shown: Table) -> None:
    """Print a table with its caption and notes.

    A narrow terminal leaves out columns by their priority, and names them; numbers are never cut.
    """
    out = console()
    kept = list(range(len(shown.columns)))
    while _has_width() and _width(shown, kept) > out.width and any(shown.columns[index].priority for index in kept):
        kept.remove(max(kept, key=lambda index: shown.columns[index].priority))
    out.width = max(out.width, _width(shown, kept))
    if shown.title:
        out.print(shown.title, style="bold", soft_wrap=True)
    if shown.caption:
        out.print(shown.caption, style="dim", soft_wrap=True)
    out.print(drawn(shown, kept))
    left_out = [column.title for index, column in enumerate(shown.columns) if index not in kept]
    if left_out:
        out.print(f"Left out, for a wider terminal: {', '.join(left_out)}", style="dim", soft_wrap=True)
    for note in shown.notes:
        out.print(note, soft_wrap=True)


def drawn(shown: Table, kept: Sequence[int] | None = None) -> RichTable:
    """The columns with the indices ``kept`` (by default all), without a frame."""
    from rich.table import Table as RichTable
    from rich.text import Text

    kept = range(len(shown.columns)) if kept is None else kept
    made = RichTable(box=None, pad_edge=False, header_style="bold", padding=(0, _GAP, 0, 0))
    for column in (shown.columns[index] for index in kept):
        justify: Literal["left", "right"] = "right" if column.kind == "number" else "left"
        fixed = column.kind in ("number", "name", "verdict")
        made.add_column(Text(visible(column.title)), justify=justify, no_wrap=fixed, overflow="fold")
    above: tuple[str, ...] = ()
    for row in shown.rows:
        texts = tuple(cell.text for cell in row)
        same = 0  # leading cells that are equal to those above
        while same < shown.grouped and texts[: same + 1] == above[: same + 1]:
            same += 1
        made.add_row(*(_cell(shown.columns[index], "" if index < same else texts[index]) for index in kept))
        above = texts
    return made


def _cell(column: Column, text: str) -> Text:
    from rich.text import Text

    text = visible(text, lines=column.kind in ("text", "list", "code"))
    return Text(text, style=_STYLE_OF.get(text, "") if column.kind == "verdict" else "")


def _has_width() -> bool:
    return sys.stdout.isatty() or "COLUMNS" in os.environ


def _width(shown: Table, kept: Sequence[int]) -> int:
    return sum(_column_width(shown.columns[index], [row[index].text for row in shown.rows]) + _GAP for index in kept)


def _column_width(column: Column, texts: list[str]) -> int:
    longest = max((len(line) for text in (column.title, *texts) for line in text.splitlines()), default=0)
    return min(longest, _TEXT_WIDTH) if column.kind in ("text", "list", "code") else longest
