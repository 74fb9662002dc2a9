"""Numbers as people read them. Results hold base units only; this is for printing."""

from __future__ import annotations

import math
import re

from archbench.errors import UsageError

_SECONDS = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9))
_DECIMAL = (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0))
_BINARY = (("TiB", 2.0**40), ("GiB", 2.0**30), ("MiB", 2.0**20), ("KiB", 2.0**10), ("B", 1.0))


def humanise(value: float | None, unit: str) -> str:
    """``value`` in ``unit`` with about three digits and a fitting prefix; "unknown" where there is none."""
    if value is None or math.isnan(value):
        return "unknown"
    if math.isinf(value):
        return f"{value} {unit}"
    base, slash, per = unit.partition("/")
    if base == "s":
        return _scaled(value, _SECONDS) + slash + per
    if base == "B":
        return _scaled(value, _BINARY) + slash + per
    if base == "FLOP":
        prefix, scale = next(((p, s) for p, s in _DECIMAL if abs(value) >= s), ("", 1.0))
        return f"{_digits(value / scale)} {prefix}{base}{slash}{per}"
    if base == "token":
        return f"{_digits(value)} tokens{slash}{per}"
    if unit == "1":
        return _digits(value)
    return f"{value:.3f} {unit}" if abs(value) < 100 else f"{_digits(value)} {unit}"


def _scaled(value: float, scales: tuple[tuple[str, float], ...]) -> str:
    name, scale = next(((name, scale) for name, scale in scales if abs(value) >= scale), scales[-1])
    return f"{_digits(value / scale)} {name}"


def _digits(value: float) -> str:
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def whole_numbers(text: str, option: str) -> list[int]:
    """``25k,1.5M,300`` as 25000, 1500000 and 300.

    Raises:
        UsageError: it is no list of positive whole numbers.
    """
    numbers = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*([0-9][0-9_]*\.?[0-9]*)([kMG]?)\s*", part)
        value = float(found[1]) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}[found[2]] if found else 0.0
        if value < 1 or value != round(value):
            cause = f"{part.strip()!r} is no positive whole number"
            raise UsageError(f"{option} {text}", cause, f"Write for instance {option} 25k,50k,1.5M")
        numbers.append(round(value))
    return numbers
