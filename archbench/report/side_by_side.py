"""What differs between runs: fields of their configurations, versions and machines, and their numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from archbench.presentation.quantities import ABSENT, percent, quantity
from archbench.presentation.tables import Column, Table, table
from archbench.report.run_limits import COMPARED, value_of

if TYPE_CHECKING:
    import pandas as pd

Field = TypeVar("Field")

MOST = 8
"""Runs, the newest, that have a column each."""

_RECORDED = (
    "device_name", "host", "driver", "dtype", "attention", "products", "threads", "conformance", "git_revision",
    "archbench_version", "torch_version", "python_version", "plugin_version",
)  # fmt: skip
"""Columns of the rows that the configuration does not say."""

_IN_ROWS = ["run_id", "architecture", "preset", "seed", "phase", "metric", "value"]


def difference_table(rows: pd.DataFrame, places: Sequence[str]) -> Table | None:
    """A row for each field that differs and each number, a column for each of the newest runs; None for one run."""
    modelled = rows[(rows.architecture != "none") & (rows.phase != "probe")]
    newest = modelled.groupby("run_id").time_utc.min().sort_values(ascending=False).index[:MOST]
    if len(newest) < 2:
        return None
    known = modelled.run_id.isin(newest)
    by_run = dict(iter(modelled.loc[known, [*_IN_ROWS, *_RECORDED]].groupby("run_id")))
    runs = {str(run): by_run[run] for run in newest}
    described = {run: _described(run, own, places) for run, own in runs.items()}
    lines = [
        (field, *(shown(values[run]) for run in described))
        for field, values in differing(described).items()
    ]  # fmt: skip
    lines += _numbers(runs)
    more = modelled.run_id.nunique() - len(newest)
    columns = (Column("field", "name"), *(Column(run, "list") for run in described))
    caption = (
        "Fields of configuration, code and machine that are not the same in all runs, the newest first; numbers with "
        "their change from the oldest run shown."
    )
    notes = [f"{more} older runs are left out."] if more > 0 else []
    return table("differences", "What differs between the runs", columns, lines, caption=caption, notes=notes)


def differing(described: Mapping[str, Mapping[Field, Any]]) -> dict[Field, dict[str, Any]]:
    """Field -> run -> value (None where the run has no such field), for the fields that are not the same in all."""
    fields = dict.fromkeys(field for one in described.values() for field in one)
    found = {field: {run: one.get(field) for run, one in described.items()} for field in fields}
    return {field: values for field, values in found.items() if len({repr(one) for one in values.values()}) > 1}


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """A nested configuration as dotted names and plain values."""
    if not isinstance(value, dict):
        return {prefix: value}
    inside = (flat(own, f"{prefix}.{key}" if prefix else str(key)) for key, own in value.items())
    return {name: one for fields in inside for name, one in fields.items()}


def _numbers(runs: Mapping[str, pd.DataFrame]) -> Iterator[tuple[str, ...]]:
    for phase, metric, label, unit in COMPARED[:3]:
        values = [value_of(rows, phase, metric) for rows in runs.values()]
        if any(values):
            *newer, oldest = values
            changes = [f" ({percent(value / oldest - 1)})" if value and oldest else "" for value in newer]
            changes = [change.replace(" %", "\u00a0%") for change in changes]
            yield label, *(quantity(value, unit) + change for value, change in zip(values, [*changes, ""], strict=True))


def _described(run: str, rows: pd.DataFrame, places: Sequence[str]) -> dict[str, Any]:
    from archbench.errors import StorageError
    from archbench.files.loader import read_model
    from archbench.results.run_files import description_beside

    first = rows.iloc[0]
    described: dict[str, Any] = {"architecture": first.architecture, "preset": first.preset, "seed": int(first.seed)}
    if beside := description_beside(run, places):
        try:
            content = read_model(dict[str, Any], beside, error=StorageError, sealing="optional", next_step="")
            described |= flat(content.get("run", {})) | flat(content.get("model", {}), "model")
        except StorageError:  # rows have their own checksum; archbench fsck says more
            described["configuration"] = "its file is damaged"
    for column in _RECORDED:
        known = rows[column].dropna().astype(str).unique()
        described[column] = ", ".join(one[:12] if column == "git_revision" else one for one in known) or None
    return {name: value for name, value in described.items() if name not in ("out", "time_limit", "profile")}


def shown(value: Any) -> str:
    return ABSENT if value is None else str(value)
