"""The rows one phase writes; units and run-wide columns are added when they are stored."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from archbench.measure.memory import PeakMemory


class Rows:
    """Collects a phase's measurements.

    Args:
        phase: the phase's name.
        common: columns every row of the phase shares (device, threads, attention …); a row's own value wins.
    """

    def __init__(self, phase: str, **common: Any) -> None:
        self.phase = phase
        self.common = common
        self._own: list[dict[str, Any]] = []

    def add(self, metric: str, value: float | None, *, repeat: int = 0, **columns: Any) -> None:
        """One measurement; ``value`` in the metric's base unit, None where it cannot be known."""
        number = None if value is None else float(value)
        self._own.append({"phase": self.phase, "metric": metric, "value": number, "repeat": repeat, **columns})

    def extend(self, metric: str, values: Iterable[float], *, first: int = 0, **columns: Any) -> None:
        """One row a value, numbered from ``first``."""
        for repeat, value in enumerate(values, start=first):
            self.add(metric, value, repeat=repeat, **columns)

    def add_memory(self, memory: PeakMemory, **columns: Any) -> None:
        """What a measured block held at most, and before it began."""
        self.add("peak_memory_bytes", memory.peak_bytes, **columns)
        self.add("baseline_memory_bytes", memory.baseline_bytes, **columns)
        self.add("reserved_memory_bytes", memory.reserved_bytes, **columns)

    def finished(self) -> list[dict[str, Any]]:
        """Every row, with the common columns."""
        return [{**self.common, **row} for row in self._own]
