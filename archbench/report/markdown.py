"""A summary in Markdown, for a README or a paper's notes: the verdict, the tables, and links to the images."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from archbench.report.contents import NO_VERDICT, Contents
from archbench.report.tables import Table


def markdown(contents: Sequence[Contents], images: Sequence[Mapping[str, str]]) -> str:
    """The summary.

    Args:
        contents: the parts.
        images: for each part, the path of each figure's image by the figure's key, as the Markdown file has to name it;
            figures without one are left out.
    """
    return "\n".join(line for part, own in zip(contents, images, strict=True) for line in _part(part, own))


def _part(part: Contents, images: Mapping[str, str]) -> list[str]:
    lines = [f"# {escaped(part.title)}", "", escaped(part.subtitle), ""]
    if part.verdict is None:
        lines += [NO_VERDICT, ""]
    else:
        lines += [f"**{escaped(part.verdict.headline)}**", "", escaped(part.verdict.details), ""]
    for number, table in enumerate(part.tables):
        lines += _table(table, heading=part.verdict is None or number > 0)
        if number == 0 and part.verdict is not None:
            lines += [f"- {verdict}: {escaped(meaning)}" for verdict, meaning in part.verdict.meanings]
            lines += [""]
            for title, sentences in (
                ("What was held equal", part.verdict.matched),
                ("What this does not show", part.verdict.limits),
            ):
                lines += [f"## {title}", "", *(f"- {escaped(sentence)}" for sentence in sentences), ""]
    for figure in part.figures:
        if figure.key in images:
            lines += [f"## {escaped(figure.title)}", "", f"![{escaped(figure.title)}]({images[figure.key]})", ""]
            lines += [escaped(figure.caption), "", *(f"- {escaped(remark)}" for remark in figure.remarks)]
            lines += [""] if figure.remarks else []
    lines += ["## How it was made", ""]
    if part.missing:
        lines += [f"Not measured: {', '.join(part.missing)}.", ""]
    return [*lines, *(f"- {what}: {_code(value)}" for what, value in part.facts), ""]


def _table(table: Table, *, heading: bool) -> list[str]:
    lines = [f"## {escaped(table.title)}", ""] if heading else []
    lines += [escaped(table.caption), ""] if table.caption else []
    lines += ["| " + " | ".join(escaped(column.title) for column in table.columns) + " |"]
    marks = ("---:" if column.kind == "number" else "---" for column in table.columns)
    lines += ["|" + "|".join(marks) + "|"]
    for row in table.rows:
        cells = [
            f"**{cell.text}**" if column.kind == "verdict" and cell.text in ("better", "worse") else escaped(cell.text)
            for column, cell in zip(table.columns, row, strict=True)
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, "", *(f"- {escaped(note)}" for note in table.notes), *([""] if table.notes else [])]


def escaped(text: str) -> str:
    """``text`` as Markdown shows it unchanged, also inside a table's cell."""
    text = " ".join(text.split())
    text = re.sub(r"([\\`*_\[\]|~#])", r"\\\1", text)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _code(value: str) -> str:
    fence = "`" * (max((len(run) for run in re.findall(r"`+", value)), default=0) + 1)
    return f"{fence}{value}{fence}" if fence == "`" else f"{fence} {value} {fence}"
