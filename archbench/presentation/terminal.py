"""Lines and tables in the terminal. Nothing else prints there: what is printed here cannot command the terminal."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from itertools import groupby
from typing import TYPE_CHECKING, Literal, TextIO

from archbench.presentation.characters import visible
from archbench.presentation.tables import Column, Table

if TYPE_CHECKING:
    from rich.table import Table as RichTable
    from rich.text import Text

    from archbench.presentation.screen import Screen

WIDE = ContextVar("WIDE", default=False)
"""Whether tables have all their columns however narrow the terminal is: ``--wide``."""

PIPE_WIDTH = 160
"""Width of bars and rules that go to a file or a pipe; tables are as wide as they need to be there."""

_GAP = 2
_TEXT_WIDTH = 24
"""Minimum width of a column of texts or lists, which wrap between words."""

_STYLES = {
    "green": ("better", "less", "passed", "noted"),
    "red": ("worse", "more", "failed", "unexpected pass", "FAIL"),
    "yellow": ("inconclusive", "expected failure", "NEW"),
    "dim": ("baseline", "exact", "below noise floor", "not measured", "withheld", "not run", "not applicable", "ok"),
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


def paragraph(text: str, *, style: str = "") -> None:
    """Print sentences: on a terminal they wrap between words, which are never broken."""
    out = console()
    for line in text.split("\n"):
        out.print("\n".join(wrapped(line, out.width)) if _has_width() else line, style=style, soft_wrap=True)


def show(shown: Table, narrow: Table | None = None, *, everything: str = "--wide or --json has all") -> None:
    """Print a table with its caption and notes. Names and numbers are never broken or cut.

    In a terminal, columns with a priority that are the same in every row become a sentence, and others are left out
    by their priority until the rest fits; a line names them. A file or a pipe, and ``--wide``, have all of them.

    Args:
        narrow: shown in a terminal that has no room for the columns without a priority.
        everything: that line's words for where they are.
    """
    out = console()
    room = out.width if _has_width() and not WIDE.get() else None
    needed = [index for index, column in enumerate(shown.columns) if not column.priority]
    if narrow is not None and room is not None and _least_width(shown, needed) > room:
        shown = narrow
    kept, same = list(range(len(shown.columns))), [] if room is None else _same(shown)
    kept = [index for index in kept if index not in same]
    while room is not None and _least_width(shown, kept) > room and any(shown.columns[i].priority for i in kept):
        kept.remove(max(kept, key=lambda index: shown.columns[index].priority))
    if shown.title:
        paragraph(shown.title, style="bold")
    if shown.caption:
        paragraph(shown.caption, style="dim")
    _print_lines(out, drawn(shown, kept, room))
    said = [f"{shown.columns[index].title} {text}" for index in same if (text := shown.rows[0][index].text)]
    if said:
        paragraph(f"The same in every row: {'; '.join(said)}", style="dim")
    left_out = [one.title for index, one in enumerate(shown.columns) if index not in kept and index not in same]
    if left_out:
        names = "; ".join(" ".join(title.split()) for title in dict.fromkeys(left_out))
        paragraph(f"Left out for want of width ({everything}): {names}", style="dim")
    for note in shown.notes:
        paragraph(note)


def drawn(shown: Table, kept: Sequence[int] | None = None, room: int | None = None) -> RichTable:
    """The columns with the indices ``kept`` (by default all), without a frame, ``room`` characters wide at most."""
    from rich.table import Table as RichTable
    from rich.text import Text

    kept = range(len(shown.columns)) if kept is None else kept
    made = RichTable(box=None, pad_edge=False, header_style="bold", padding=(0, _GAP, 0, 0))
    widths = [None] * len(kept) if room is None else _widths(shown, kept, room)
    for column, width in zip((shown.columns[index] for index in kept), widths, strict=True):
        justify: Literal["left", "right"] = "right" if column.kind == "number" else "left"
        title = column.title if width is None else "\n".join(wrapped(column.title, width))
        made.add_column(
            Text(visible(title)), justify=justify, no_wrap=column.kind not in _WRAPPED, overflow="fold", width=width
        )
    above: tuple[str, ...] = ()
    names = _beside_groups(shown, next((width for index, width in zip(kept, widths, strict=True) if index == 0), None))
    for row, name in zip(shown.rows, names, strict=True):
        texts = tuple(cell.text for cell in row)
        same = 0  # leading cells that are equal to those above
        while same < shown.grouped and texts[: same + 1] == above[: same + 1]:
            same += 1
        cells = (name, *("" if index < same else text for index, text in enumerate(texts) if index))
        made.add_row(*(
            _cell(shown.columns[index], cells[index], width) for index, width in zip(kept, widths, strict=True)
        ))  # fmt: skip
        above = texts
    return made


def _beside_groups(shown: Table, width: int | None) -> Iterator[str]:
    """The first cell of each row. Of a group it is shown once, and its lines stand beside the group's rows."""
    if not shown.grouped:
        yield from (row[0].text for row in shown.rows)
        return
    for text, rows in groupby(row[0].text for row in shown.rows):
        count = len(list(rows))
        lines = wrapped(text, width) if width is not None and shown.columns[0].kind in _WRAPPED else [text]
        yield from [*lines, *[""] * count][: count - 1]
        yield "\n".join(lines[count - 1 :])


def _print_lines(out: Screen, made: RichTable) -> None:
    """Print a table without the spaces at the ends of lines, which a narrower terminal would show as empty lines."""
    from rich.text import Text

    options = out.options.update(width=out.measure(made, options=out.options.update(width=_ENDLESS)).maximum)
    for segments in out.render_lines(made, options, pad=False):
        line = Text.assemble(*((segment.text, segment.style or "") for segment in segments))
        line.rstrip()
        out.print(line, soft_wrap=True)


_ENDLESS = 100_000
"""Characters; wider than any table."""

_WRAPPED = ("text", "list")


def wrapped(text: str, width: int) -> list[str]:
    """The lines of ``text``, broken between words only."""
    return [
        part
        for line in text.splitlines()
        for part in textwrap.wrap(line, max(width, 1), break_long_words=False, break_on_hyphens=False) or [""]
    ]


def _same(shown: Table) -> list[int]:
    """Columns that may be left out, and of which one row says all."""
    texts = [{row[index].text for row in shown.rows} for index in range(len(shown.columns))]
    return [
        index
        for index, column in enumerate(shown.columns)
        if column.priority and column.title and len(shown.rows) > 1 and len(texts[index]) == 1
    ]


def _cell(column: Column, text: str, width: int | None) -> Text:
    from rich.text import Text

    text = visible(text, lines=column.kind in (*_WRAPPED, "code"))
    if column.kind == "path" and width is not None:
        lines = [""]
        for part in _path_parts(text):
            if lines[-1] and len(lines[-1] + part) > width:
                lines.append("")
            lines[-1] += part
        text = "\n".join(lines)
    return Text(text, style=_STYLE_OF.get(text, "") if column.kind == "verdict" else "")


def _has_width(stream: TextIO | None = None) -> bool:
    return (stream or sys.stdout).isatty() or "COLUMNS" in os.environ


def error_width() -> int | None:
    """Characters in a line of standard error; None of a file or a pipe."""
    return shutil.get_terminal_size().columns if _has_width(sys.stderr) else None


def _path_parts(path: str) -> list[str]:
    return re.findall(r"[^/\\]*[/\\]|[^/\\]+", path)


def _least_width(shown: Table, kept: Sequence[int]) -> int:
    return sum(_width_range(shown, index)[0] + _GAP for index in kept) - _GAP


def _widths(shown: Table, kept: Sequence[int], room: int) -> list[int]:
    """The width of each column: what it needs, and an equal share of what is left, or less if it needs no more."""
    for text in (_TEXT_WIDTH, 0):
        ranges = [_width_range(shown, index, text) for index in kept]
        widths = [least for least, _ in ranges]
        spare = room - sum(widths) - _GAP * (len(widths) - 1)
        if spare >= 0:
            break
    spare = max(0, spare)
    wanting = sorted(range(len(ranges)), key=lambda place: ranges[place][1] - ranges[place][0])
    for already, place in enumerate(wanting):
        least, most = ranges[place]
        more = min(most - least, spare // (len(wanting) - already))
        widths[place], spare = least + more, spare - more
    return widths


def _width_range(shown: Table, index: int, text: int = _TEXT_WIDTH) -> tuple[int, int]:
    """The narrowest and the widest that serve a column: no word of a text, and nothing else at all, is broken.

    Args:
        text: the least of texts and lists.
    """
    from rich.cells import cell_len

    def longest(parts: Iterable[str]) -> int:
        return max(map(cell_len, parts), default=0)

    column = shown.columns[index]
    cells = [visible(row[index].text) for row in shown.rows]
    lines = longest(line for cell in cells for line in cell.splitlines())
    least = lines
    if column.kind in (*_WRAPPED, "path"):
        split = _path_parts if column.kind == "path" else str.split
        least = max(min(lines, text), longest(word for cell in cells for word in split(cell)))
    return max(least, longest(column.title.split())), max(lines, longest(column.title.splitlines()))
