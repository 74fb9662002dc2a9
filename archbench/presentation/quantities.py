"""Values as text: a fitting prefix, about three digits, a real minus sign. Results hold base units only.

Base units: s, B, FLOP, J, W, Hz, °C, token, parameter, bit/byte, nats/token, 1 (a plain number), relative (a share,
shown as percent), date (seconds since 1970), and rates of them such as FLOP/s or token/s.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime

ABSENT = "–"
"""Shown for an unknown or meaningless value."""

_SECONDS = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9))
BINARY = (("TiB", 2.0**40), ("GiB", 2.0**30), ("MiB", 2.0**20), ("KiB", 2.0**10), ("B", 1.0))
_JOULES = (("MJ", 1e6), ("kJ", 1e3), ("J", 1.0), ("mJ", 1e-3), ("µJ", 1e-6), ("nJ", 1e-9))
_DECIMAL = (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0))


def quantity(value: float | None, unit: str) -> str:
    """``value`` in the base unit ``unit``, with prefix and unit: ``quantity(0.0041, "s")`` is "4.10 ms"."""
    text = number(value, unit)
    if text == ABSENT:
        return text
    base, slash, per = unit.partition("/")
    if base == "token":
        return f"{text} tokens{slash}{per}"
    return f"{text} {unit}" if unit in ("bit/byte", "nats/token", "parameter") else text


def number(value: float | None, unit: str) -> str:
    """As :func:`quantity`, without units that a heading names: bit/byte, nats/token, tokens, parameters."""
    if value is None or not math.isfinite(value):
        return ABSENT
    base, slash, per = unit.partition("/")
    if base == "s":
        return (duration(value) if abs(value) >= 120 else _scaled(value, _SECONDS)) + slash + per
    if base == "B":
        return _scaled(value, BINARY) + slash + per
    if base == "J":
        return _scaled(value, _JOULES) + slash + per
    if base in ("FLOP", "Hz"):
        prefix, scale = _prefix(value)
        return f"{digits(value / scale)} {prefix}{unit}"
    if unit == "relative":
        return percent(value)
    if unit == "date":
        return f"{datetime.fromtimestamp(value, UTC):%Y-%m-%d %H:%M}"
    if unit in ("bit/byte", "nats/token"):
        return _minus(f"{value:.4f}")
    return digits(value) if unit in ("", "1", "parameter") or base == "token" else f"{digits(value)} {unit}"


def spread(low: float, high: float, unit: str) -> str:
    """``2 – 4 ms``: a range, with the unit once if both ends share it."""
    start, end = quantity(low, unit), quantity(high, unit)
    value, _, scale = start.partition(" ")
    return f"{value if end.endswith(' ' + scale) else start} – {end}"


def duration(seconds: float) -> str:
    """A waiting time: 40 s, 92 min, 2 h 30 min, 30 h."""
    if not math.isfinite(seconds):
        return ABSENT
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes and hours < 24 else f"{hours} h"


def percent(value: float | None, *, signed: bool = True) -> str:
    """A share as per cent with two decimals; signed for differences."""
    if value is None or not math.isfinite(value):
        return ABSENT
    return _minus(f"{100 * value:{'+' if signed else ''}.2f}") + " %"


def percent_interval(low: float | None, high: float | None) -> str:
    """``[−0.21, +0.14]``, in per cent."""
    if low is None or high is None:
        return ABSENT
    return _minus(f"[{100 * low:+.2f}, {100 * high:+.2f}]")


def interval(low: float | None, high: float | None, places: int) -> str:
    """``[2.431, 2.446]``."""
    if low is None or high is None:
        return ABSENT
    return _minus(f"[{low:.{places}f}, {high:.{places}f}]")


def ratio(value: float | None) -> str:
    """Three decimals near one, three digits far from it."""
    if value is None:
        return ABSENT
    return f"{value:.3f}" if 0.1 <= value < 10 else f"{value:.2e}" if not 1e-3 <= value < 1e6 else digits(value)


def ratio_interval(low: float | None, high: float | None) -> str:
    """``[0.975, 1.026]``; no digits of what is beyond a thousandfold: ``[< 0.001, > 1,000]``."""
    if low is None or high is None:
        return ABSENT
    return f"[{', '.join('< 0.001' if one < 1e-3 else '> 1,000' if one > 1e3 else ratio(one) for one in (low, high))}]"


def probability(p: float | None) -> str:
    """A p-value: three decimals, or ``< 0.001``."""
    if p is None:
        return ABSENT
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def count(value: float | None) -> str:
    """Whole numbers with separators: 1,110,912."""
    return ABSENT if value is None else f"{value:,.0f}"


def counted(number: int, noun: str) -> str:
    """``1 figure``, ``2 figures``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def compact(value: float | None) -> str:
    """Large counts: 1.11 M."""
    if value is None:
        return ABSENT
    prefix, scale = _prefix(value)
    return f"{digits(value / scale)} {prefix}".rstrip()


def short(value: float) -> str:
    """A size or a budget as it is typed: 25k, 1.5M."""
    return compact(value).replace(" ", "")


def digits(value: float) -> str:
    """About three significant digits, never in scientific notation for ordinary sizes."""
    if value == int(value) and abs(value) < 1e6:
        return _minus(f"{int(value):,}")
    if abs(value) >= 999.5:
        return _minus(f"{value:,.0f}")
    return _minus(f"{value:#.3g}".rstrip("."))


def _scaled(value: float, scales: tuple[tuple[str, float], ...]) -> str:
    name, scale = next(((name, scale) for name, scale in scales if abs(value) >= scale), scales[-1])
    return f"{digits(value / scale)} {name}"


def _prefix(value: float) -> tuple[str, float]:
    return next(((name, scale) for name, scale in _DECIMAL if abs(value) >= scale), ("", 1.0))


def _minus(text: str) -> str:
    return text.replace("-", "−")
