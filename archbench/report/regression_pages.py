"""A page of what ``archbench regress --json`` printed: verdict, ratios with bounds, and what they cannot say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from archbench.errors import StorageError
from archbench.presentation.quantities import counted, digits, ratio, ratio_interval
from archbench.presentation.tables import Column, Table, table
from archbench.regression.verdict_table import LIMIT, MEANING
from archbench.report.conclusions import Conclusions
from archbench.report.figures import Axis, Figure, Panel, Rule, Series
from archbench.report.styles import Style, styles_of

SUFFIX = ".jsonl"


def regression_of(file: Path) -> tuple[str, Conclusions, Table, Figure | None, dict[str, Style]]:
    """The command, conclusions, table, figure of times (None without times) and styles.

    Raises:
        StorageError: the file is damaged, or not what ``archbench regress --json`` prints.
    """
    from archbench.files.loader import read_lines

    step = f"Make it again: archbench regress BASE HEAD --json > {file}"
    lines = read_lines(file, error=StorageError, next_step=step)
    if len(lines) < 2 or "conclusion" not in lines[-1]:
        raise StorageError(str(file), "its last line has no conclusion: the command did not finish", step)
    *rows, last = lines
    try:
        styles = styles_of({name: name for name in dict.fromkeys(str(row["architecture"]) for row in rows)})
        figure = _figure([row for row in rows if row["ratio_low"] is not None], styles)
        return str(last["title"]), _conclusions(rows, last), _table(rows), figure, styles
    except (KeyError, TypeError) as error:
        raise StorageError(str(file), f"a line is not one of archbench regress ({error})", step) from error


def _conclusions(rows: Sequence[dict[str, Any]], last: dict[str, Any]) -> Conclusions:
    met = {row["verdict"] for row in rows}
    timed = sum(row["ratio_low"] is not None for row in rows)
    parts = [(len(rows) - timed, "count"), (timed, "time")]
    compared = " and ".join(counted(number, noun) for number, noun in parts if number)
    return Conclusions(
        headline=f"{last['conclusion']}.",
        details=f"Compared: {compared} of base and head.",
        matched=("The machine and its load: base and head are measured in turns.",
                 "The configuration: presets are those of each side, and the inputs are the same."),
        limits=(
            f"Slower code below the gate: a time may grow by {LIMIT - 1:.0%} without a failure.",
            "Quality: nothing is trained. A change that costs nothing can still make a model worse.",
            "Other sizes and machines: what is slower here can be faster on a GPU, or at another size.",
        ),
        meanings=tuple((verdict, meaning) for verdict, meaning in MEANING.items() if verdict in met),
    )  # fmt: skip


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    columns = (
        Column("architecture", "name"), Column("verdict", "verdict"), Column("metric", "text"),
        Column("base", show=digits), Column("head", show=digits), Column("unit", "text"),
        Column("ratio", unit="1", show=ratio),
        Column("95% bounds", unit="1", show=ratio_interval, hint="each one-sided"), Column("note", "text"),
    )  # fmt: skip
    place = {verdict: number for number, verdict in enumerate(("FAIL", "NEW", "unclear", "not confirmed"))}
    ordered = sorted(rows, key=lambda row: (place.get(row["verdict"], len(place)), -(row["ratio"] or 0.0)))
    lines = [
        (
            row["architecture"], row["verdict"], row["metric"].replace("_", " "), row["base"], row["head"],
            "" if row["unit"] == "1" else row["unit"],
            row["ratio"], None if row["ratio_low"] is None else (row["ratio_low"], row["ratio_high"]), row["note"],
        )
        for row in ordered
    ]  # fmt: skip
    caption = "Failures first, then what grew most. Counts are exact; times are multiples of a reference computation's."
    return table("verdict", "Base and head", columns, lines, caption=caption)


def _figure(rows: Sequence[dict[str, Any]], styles: dict[str, Style]) -> Figure | None:
    if not rows:
        return None
    series = tuple(
        Series(
            row["architecture"], styles[row["architecture"]], (row["ratio"],), (float(line),), low=(row["ratio_low"],),
            high=(row["ratio_high"],), sideways=True, drawn="points", heavy=True, role=row["metric"],
            notes=(row["verdict"],),
        )
        for line, row in enumerate(reversed(rows))
    )  # fmt: skip
    names = tuple(f"{row['architecture']}, {row['metric'].removesuffix('_seconds')}" for row in reversed(rows))
    ticks = tuple(float(line) for line in range(len(rows)))
    up = Axis("", ticks=ticks, labels=names, limits=(-0.6, len(rows) - 0.4))
    across = Axis("head / base (left is faster)")
    panel = Panel("times", across, up, series, rules=(Rule(1.0), Rule(LIMIT, text=f"gate {LIMIT:.2f}")))
    return Figure(
        "times", "Times of the head over the base's",
        "Bars reach to both one-sided 95 % bounds. A bar wholly to the right of the gate, twice, is a failure; one "
        "that crosses it decides nothing.",
        (panel,),
    )  # fmt: skip
