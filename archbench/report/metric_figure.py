"""The figure of any metric: a line for each group over training, or a mark with its spread for each group and case."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from archbench.errors import StorageError, UnknownNameError, UsageError, did_you_mean
from archbench.report.figures import Axis, Figure, Panel, Series, ticks_of
from archbench.report.run_tables import CHANGING, integer
from archbench.report.styles import styles_of

if TYPE_CHECKING:
    import pandas as pd


def metric_figure(rows: pd.DataFrame, metric: str, by: str, place: str) -> Figure:
    """The figure of ``metric`` in tidy ``rows``, with one style for each value of the column ``by``.

    Metrics that change with the step are lines over the tokens seen: the median of a group's runs, and a band from its
    lowest to its highest run. Others have their median and their quartiles, for each phase, batch and prompt.

    Raises:
        StorageError: there are no rows.
        UnknownNameError: none has that metric.
        UsageError: the column ``by`` is empty, or a metric that changes with the step has other phases too.
    """
    if rows.empty:
        raise StorageError(
            place, "there are no such results", "Run archbench run gpt1, or choose other rows with --where"
        )
    own = rows[(rows.metric == metric) & rows.value.notna()]
    if own.empty:
        raise UnknownNameError(f"metric {metric!r}", f"nothing in {place} has it", did_you_mean(metric, {*rows.metric}))
    phases = list(own.phase.drop_duplicates())
    curve = metric in CHANGING and "train" in phases
    if curve and len(phases) > 1:
        raise UsageError(f"metric {metric!r}", f"it is of the phases {', '.join(phases)}", "Add --where phase=train")
    if own[by].isna().all():
        raise UsageError(
            f"--by {by}", f"no row of {metric} has it", "Choose another column; --by architecture always has one"
        )
    own = own.assign(group=own[by].astype("string").fillna("null"))
    architectures = dict(zip(own.group, own.architecture, strict=True))
    styles = styles_of(architectures if by == "architecture" else {name: name for name in architectures})
    unit = str(own.unit.iloc[0])
    panel = _curves(own, metric, unit, styles) if curve else _marks(own, metric, unit, styles)
    caption = "Line: median of runs; band: lowest to highest run." if curve else "Point: median; bar: quartiles."
    return Figure("metric", metric, caption, (panel,), provenance=(("read from", place),))


def _curves(own: pd.DataFrame, metric: str, unit: str, styles: dict[str, Any]) -> Panel:
    step = "tokens_seen" if own.tokens_seen.notna().all() else "repeat"
    series = []
    for name, group in own.groupby("group", sort=False):
        points = group.groupby(step).value.agg(["median", "min", "max"])
        several = group.run_id.nunique() > 1
        ends = [tuple(map(float, points[end])) if several else () for end in ("min", "max")]
        x, y = tuple(map(float, points.index)), tuple(map(float, points["median"]))
        series.append(Series(str(name), styles[str(name)], x, y, low=ends[0], high=ends[1], drawn="curve", band=True))
    x_axis = Axis("tokens seen", "token") if step == "tokens_seen" else Axis("step")
    return Panel(metric, x_axis, Axis(metric, unit), tuple(series))


def _marks(own: pd.DataFrame, metric: str, unit: str, styles: dict[str, Any]) -> Panel:
    keys = ["phase", "batch_size", "prompt_length"]
    varying = [key for key in keys if own[key].nunique(dropna=False) > 1]
    lines = []
    for (*case, name), group in own.groupby([*varying, "group"], sort=False, dropna=False):
        known = [(key, value) for key, value in zip(varying, case, strict=True) if key == "phase" or integer(value)]
        words = [str(value) if key == "phase" else f"{key.partition('_')[0]} {integer(value)}" for key, value in known]
        low, middle, high = (float(group.value.quantile(share)) for share in (0.25, 0.5, 0.75))
        lines.append((" · ".join([*words, str(name)]), str(name), low, middle, high))
    lines.sort(key=lambda line: (line[0].rpartition(" · ")[0], line[3]), reverse=True)
    series = [
        Series(name, styles[name], (middle,), (float(place),), low=(low,), high=(high,), sideways=True, drawn="points")
        for place, (_, name, low, middle, high) in enumerate(lines)
    ]
    ticks = tuple(float(place) for place in range(len(lines)))
    y = Axis("", ticks=ticks, labels=tuple(line[0] for line in lines), limits=(-0.6, len(lines) - 0.4))
    x = Axis(metric, unit, ticks=ticks_of([0.0, *(line[4] for line in lines)], unit, "linear"), zero=True)
    return Panel(metric, x, y, tuple(series))
