"""Figures of probes: scores by task, and against the decoding state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from archbench.report.evidence import Evidence
from archbench.report.figures import Axis, Figure, HeatMap, Panel, Series, ticks_of

if TYPE_CHECKING:
    import pandas as pd


def probe_figure(evidence: Evidence) -> Figure | None:
    """Accuracy of each architecture on each condition of each task, mean over seeds; None without rows of probes."""
    rows = _probes(evidence, "accuracy")
    if rows.empty:
        return None
    chance = _probes(evidence, "chance").groupby(["corpus", "operation"]).value.first()
    seeds = rows.groupby(["name", "corpus", "operation"]).value.agg(tuple)
    conditions = list(rows[["corpus", "operation"]].drop_duplicates().itertuples(index=False, name=None))
    names = tuple(name for name in evidence.names if name in set(rows["name"]))
    values = tuple(
        tuple(seeds[name, *one] if (name, *one) in seeds.index else () for name in names) for one in conditions
    )
    lines = tuple(f"{task}, {condition}" for task, condition in conditions)
    heat = HeatMap(lines, names, values, tuple(float(chance.get(one, 0.0)) for one in conditions))
    return Figure(
        "probes", "Scores of probes",
        "Accuracy, mean over seeds, each architecture at its best learning rate; the shade begins at chance, so "
        "guessing is pale, which means not learned under this budget. Exploratory: not corrected for the "
        "number of tasks.",
        (Panel("accuracy", Axis("architecture"), Axis("task"), heat=heat),),
        provenance=(("rows", "phase probe"), ("runs", f"{rows.run_id.nunique()}")),
    )  # fmt: skip


def probe_state_figure(evidence: Evidence) -> Figure | None:
    """Accuracy against the bytes of decoding state, one task at a time; None unless states differ."""
    rows = _probes(evidence, "accuracy")
    states = _probes(evidence, "state_bytes").groupby(["name", "corpus"]).value.first()
    if rows.empty or states.nunique() < 2:
        return None
    conditions = rows[["corpus", "operation"]].drop_duplicates().itertuples(index=False, name=None)
    chance = _probes(evidence, "chance").groupby(["corpus", "operation"]).value.first()
    panels = []
    for task, condition in conditions:
        own = rows[(rows.corpus == task) & (rows.operation == condition)]
        series = []
        for name in evidence.names:
            values = own[own["name"] == name].value
            if not len(values) or (name, task) not in states.index:
                continue
            series.append(
                Series(
                    name, evidence.styles[name], (float(states[name, task]),), (float(values.mean()),),
                    (float(values.min()),), (float(values.max()),), drawn="points",
                )
            )  # fmt: skip
        sizes = [series.x[0] for series in series]
        if sizes:
            guess = float(chance.get((task, condition), 0.0))
            ends = min(sizes), max(sizes)
            series.append(Series("chance", None, ends, (guess, guess), drawn="steps", role="chance"))
            axis = Axis("decoding state of one sequence", "B", "log", ticks_of(sizes, "B", "log"))
            panels.append(Panel(f"{task}, {condition}", axis, Axis("accuracy", limits=(0.0, 1.05)), tuple(series)))
    return Figure(
        "probe-state", "Scores of probes against decoding state",
        "Accuracy against the bytes that decoding keeps of one sequence of the task's longest example; bars reach from "
        "the lowest to the highest seed; the dotted line is chance. Equal parameters do not mean equal states.",
        tuple(panels), arrangement="switch",
        provenance=(("rows", "phase probe"),),
    )  # fmt: skip


def _probes(evidence: Evidence, metric: str) -> pd.DataFrame:
    rows = evidence.rows
    chosen = (rows.phase == "probe") & (rows.metric == metric) & rows.value.notna()
    return rows[chosen & rows["name"].isin(evidence.names)]
