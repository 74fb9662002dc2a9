"""Tables as data: built once, and shown in the terminal, as Markdown and on the page, which also offers CSV."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from archbench.presentation.characters import visible
from archbench.presentation.quantities import ABSENT, number

Kind = Literal["name", "text", "number", "verdict", "code", "list", "path"]


@dataclass(frozen=True)
class Cell:
    """``text`` is shown; ``value``, in base units, is for sorting and downloads; ``look`` is how a page stresses it."""

    text: str
    value: float | str | None = None
    look: str = ""


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        kind: look of the cells: numbers are right-aligned, lists and texts may wrap between words, paths after a
            separator, verdicts are coloured.
        unit: base unit of the values.
        hint: explains the title; shown on hover.
        show: makes the text of a value, or of both ends of an interval; by default, a number with a prefix.
        priority: a narrow terminal leaves out columns with higher numbers first; those with 0 always stay. A column
            with one, whose cells are all the same, is a line below the table there.
    """

    title: str
    kind: Kind = "number"
    unit: str = ""
    hint: str = ""
    show: Callable[..., str] | None = None
    priority: int = 0

    def cell(self, value: Any) -> Cell:
        """``value``, which may be None, as a cell. An interval (a pair) sorts by its lower end."""
        if isinstance(value, Cell):
            return value
        if value is None:
            return Cell(ABSENT)
        if isinstance(value, tuple):
            assert self.show is not None
            return Cell(self.show(*value), value[0])
        if self.show is not None:
            return Cell(self.show(value), value)
        return Cell(value if isinstance(value, str) else number(value, self.unit), value)


@dataclass(frozen=True)
class Table:
    """A table with its heading.

    Attributes:
        key: short name, for files and anchors.
        notes: sentences below the table.
        grouped: number of leading columns in which a terminal shows equal neighbours once.
    """

    key: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    grouped: int = 0


def table(
    key: str,
    title: str,
    columns: Sequence[Column],
    rows: Iterable[Sequence[Any]],
    *,
    caption: str = "",
    notes: Iterable[str] = (),
    grouped: int = 0,
) -> Table:
    """A table of values, each shown by its column; a :class:`Cell` stays as it is."""
    made = tuple(tuple(column.cell(value) for column, value in zip(columns, row, strict=True)) for row in rows)
    return Table(key, title, caption, tuple(columns), made, tuple(notes), grouped)


def markdown(shown: Table, *, heading: bool = True) -> list[str]:
    """The lines of a table in Markdown; verdicts that decide are bold."""
    lines = [f"## {escaped(shown.title)}", ""] if heading and shown.title else []
    lines += [escaped(shown.caption), ""] if shown.caption else []
    lines += ["| " + " | ".join(escaped(column.title) for column in shown.columns) + " |"]
    lines += ["|" + "|".join("---:" if column.kind == "number" else "---" for column in shown.columns) + "|"]
    for row in shown.rows:
        cells = [
            f"**{cell.text}**" if column.kind == "verdict" and cell.text in DECISIVE else escaped(cell.text)
            for column, cell in zip(shown.columns, row, strict=True)
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, "", *(f"- {escaped(note)}" for note in shown.notes), *([""] if shown.notes else [])]


DECISIVE = ("better", "worse", "FAIL", "NEW")
"""Verdicts that a reader should not miss."""


def escaped(text: str) -> str:
    """``text`` as Markdown shows it unchanged, also inside a table's cell."""
    text = visible(" ".join(text.split()))
    text = re.sub(r"([\\`*_\[\]|~#$]|^[-+](?=[-+\s]|$)|(?:(?<=^\d)|(?<=^\d\d))[.)](?=\s|$))", r"\\\1", text)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
