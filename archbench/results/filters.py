"""Choosing rows by conditions such as ``phase=decode``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from archbench.errors import UnknownNameError, UsageError, did_you_mean
from archbench.results.schema import COLUMNS, Column, did_you_mean_column

if TYPE_CHECKING:
    import pyarrow as pa

Where = Mapping[str, Any] | Sequence[str]
"""``{"phase": "decode", "batch_size": [1, 8]}`` or ``["phase=decode", "batch_size=1", "batch_size=8"]``."""


def conditions(where: Where | None) -> dict[str, list[Any]]:
    """Column -> accepted values, of the column's type; None means null.

    Raises:
        UsageError: a condition is not COLUMN=VALUE, has an unknown column, or a value of the wrong type.
    """
    if where is None:
        return {}
    if isinstance(where, str):
        where = [where]
    columns = {column.name: column for column in COLUMNS}
    wanted: dict[str, list[Any]] = {}
    for name, value in _pairs(where):
        if name not in columns:
            raise UnknownNameError(f"column {name!r}", "the results have no such column", did_you_mean_column(name))
        wanted.setdefault(name, []).append(_parsed(columns[name], value))
    return wanted


def _pairs(where: Mapping[str, Any] | Sequence[str]) -> list[tuple[str, Any]]:
    if isinstance(where, Mapping):
        listed = {name: value if isinstance(value, list | tuple | set) else [value] for name, value in where.items()}
        return [(name, value) for name, values in listed.items() for value in values]
    pairs = []
    for condition in where:
        name, equals, value = condition.partition("=")
        if not equals:
            raise UsageError(f"--where {condition}", "it is not COLUMN=VALUE", "Write it as in --where phase=decode")
        pairs.append((name.strip(), value.strip() or None))
    return pairs


_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def _parsed(column: Column, value: Any) -> Any:
    """A value, or its text on the command line, as the column's type."""
    if value is None:
        return None
    try:
        match column.type:
            case "string":
                return str(value)
            case "int64":
                number = int(value)
                if abs(number) >= 2**63:
                    raise ValueError
                return number
            case "double":
                return float(value)
            case "bool":
                return _BOOLEANS[str(value).lower()]
            case "timestamp":
                time = value if isinstance(value, datetime) else datetime.fromisoformat(value)
                return time if time.tzinfo else time.replace(tzinfo=UTC)
    except (ValueError, TypeError, KeyError, OverflowError):
        raise UsageError(
            f"{column.name}={value}", f"{value!r} is not a {column.type}", f"It means: {column.description}"
        ) from None


def require_known(known: Mapping[str, Sequence[Any]], wanted: Mapping[str, list[Any]], place: str) -> None:
    """Raise an UnknownNameError for a value that is not among the known ones of its column, if there are any."""
    for name, values in wanted.items():
        found = known[name]
        for value in values:
            if found and value is not None and value not in found:
                step = did_you_mean(str(value), [str(one) for one in found if one is not None])
                raise UnknownNameError(f"{name}={value}", f"no row in {place} has it", step)


def matches(table: pa.Table, wanted: Mapping[str, list[Any]]) -> pa.Array:
    """Boolean mask (rows,): each column has one of its accepted values."""
    import pyarrow as pa
    import pyarrow.compute as pc

    mask = None
    for name, values in wanted.items():
        column = table[name]
        # In is_in a null in the value set matches nulls, as an empty value requests.
        hit = pc.is_in(column, value_set=pa.array(values, type=column.type))
        mask = hit if mask is None else pc.and_(mask, hit)
    return mask
