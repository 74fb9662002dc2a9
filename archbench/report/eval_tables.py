"""The table of a run's evaluations."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

from archbench.presentation.tables import Column, Table, table

if TYPE_CHECKING:
    import pandas as pd

_SIDE = ("questions", "cut")
_FIRST = "_first_of_ties"


def eval_table(frame: pd.DataFrame, *, title: str = "") -> Table | None:
    """The scores in rows of the phase ``eval``, a line a metric of a run; None if there are none."""
    frame = frame[frame.phase == "eval"].drop_duplicates(["run_id", "corpus", "shots", "metric", "operation"])
    if frame.empty:
        return None
    lines = frame.astype(object).where(frame.notna(), None).to_dict("records")
    questions = {_asked(one): one["value"] for one in lines if one["metric"] == "questions"}
    several = frame.run_id.nunique() > 1
    if several:
        lines.sort(key=lambda one: (str(one["corpus"]), str(one["metric"]), str(one["operation"]), -one["value"]))
    columns = (
        Column("task", "name"),
        *([Column("architecture", "name"), Column("seed", show="{:.0f}".format, priority=3)] if several else []),
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
            *([one.get("name") or one["architecture"], one["seed"]] if several else []),
            one["metric"] if one["operation"] is None else f"{one['metric']} ({one['operation']})",
            one["value"],
            one["standard_error"],
            questions.get(_asked(one)),
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
    return table("evaluations", title, columns, rows, notes=notes, grouped=1)


def _asked(row: Mapping[Hashable, Any]) -> tuple[Any, ...]:
    return row["run_id"], row["corpus"], row["shots"]


def _figure(value: float) -> str:
    return f"{value:.4f}"
