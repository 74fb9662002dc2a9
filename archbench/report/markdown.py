"""A summary in Markdown: the verdict, the tables, and links to the images."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from archbench.presentation import tables
from archbench.presentation.characters import visible
from archbench.presentation.tables import escaped
from archbench.report.contents import Contents


def markdown(contents: Sequence[Contents], images: Sequence[Mapping[str, str]]) -> str:
    """The summary.

    Args:
        contents: the parts.
        images: figure key -> path of its image as the Markdown file names it, for each part. Figures without an image
            are left out.
    """
    return "\n".join(line for part, own in zip(contents, images, strict=True) for line in _part(part, own))


def _part(part: Contents, images: Mapping[str, str]) -> list[str]:
    lines = [f"# {escaped(part.title)}", "", escaped(part.subtitle), ""]
    if part.verdict is None:
        lines += [escaped(part.said), "", *_listed("What this does not show", part.limits)]
    else:
        lines += [f"**{escaped(part.verdict.headline)}**", "", escaped(part.verdict.details), ""]
    for number, table in enumerate(part.tables):
        lines += tables.markdown(table, heading=part.verdict is None or number > 0)
        if number == 0 and part.verdict is not None:
            lines += [f"- {verdict}: {escaped(meaning)}" for verdict, meaning in part.verdict.meanings]
            lines += [""]
            lines += _listed("What was held equal", part.verdict.matched)
            lines += _listed("What this does not show", part.verdict.limits)
    for figure in part.figures:
        if figure.key in images:
            lines += [f"## {escaped(figure.title)}", "", f"![{escaped(figure.title)}]({images[figure.key]})", ""]
            lines += [
                escaped(" ".join((figure.caption, *figure.basis))),
                "",
                *(f"- {escaped(remark)}" for remark in figure.remarks),
            ]
            lines += [""] if figure.remarks else []
    lines += ["## How it was made", ""]
    if part.missing:
        lines += [f"Not measured: {', '.join(part.missing)}.", ""]
    return [*lines, *(f"- {what}: {_code(value)}" for what, value in part.facts), ""]


def _listed(title: str, sentences: Sequence[str]) -> list[str]:
    return [f"## {title}", "", *(f"- {escaped(sentence)}" for sentence in sentences), ""]


def _code(value: str) -> str:
    value = visible(" ".join(value.split()))
    fence = "`" * (max((len(run) for run in re.findall(r"`+", value)), default=0) + 1)
    return f"{fence}{value}{fence}" if fence == "`" else f"{fence} {value} {fence}"
