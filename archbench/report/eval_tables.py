"""The table of a run's evaluations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from archbench.presentation.tables import Column, Table, table

if TYPE_CHECKING:
    import pandas as pd

_SIDE = ("questions", "cut")
_FIRST = "_first_of_ties"


def eval_table(frame: pd.DataFrame) -> Table:
    """The scores in rows of the phase ``eval``, a line a metric."""
    lines = frame.astype(object).where(frame.notna(), None).to_dict("records")
    questions = {(one["corpus"], one["shots"]): one["value"] for one in lines if one["metric"] == "questions"}
    columns = (
        Column("task", "name"),
        Column("metric", "name"),
        Column("score", show=_figure),
        Column("± standard error", show=_figure, hint="over the questions", priority=1),
        Column("questions", show="{:,.0f}".format, priority=1),
        Column("shots", show="{:.0f}".format, priority=1),
        Column("version", "text", priority=2),
    )
    shown = [one for one in lines if one["metric"] not in _SIDE]
    rows = [
        (
            one["corpus"],
            one["metric"] if one["operation"] is None else f"{one['metric']} ({one['operation']})",
            one["value"],
            one["standard_error"],
            questions.get((one["corpus"], one["shots"])),
            one["shots"],
            one["task_version"],
        )
        for one in shown
    ]
    notes = []
    if any(one["metric"].endswith(_FIRST) for one in shown):
        notes.append(
            f"Some choices tied: a random one among them counts. …{_FIRST} is lm-eval's own figure, which takes the "
            "first of them."
        )
    return table("evaluations", "", columns, rows, notes=notes, grouped=1)


def _figure(value: float) -> str:
    return f"{value:.4f}"
