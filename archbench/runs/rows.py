"""The rows that one phase measures; storing them adds units and run-wide columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from archbench.kernels import record_attention
from archbench.kernels.attention_backends import rules
from archbench.kernels.attention_rules import MEASURED, PUBLISHED
from archbench.measure.energy import Energy
from archbench.measure.memory import PeakMemory
from archbench.presentation.terminal import echo


class Rows:
    """Collects a phase's measurements.

    Args:
        phase: the phase's name.
        common: columns that every row of the phase shares (device, threads, attention …); a row's own value wins.

    Attributes:
        multiplied: what computed products of layers, as long as somebody adds to it; nobody adds torch's on a GPU.
    """

    def __init__(self, phase: str, **common: Any) -> None:
        self.phase = phase
        self.common = common
        self.multiplied: set[str] = set()
        self._own: list[dict[str, Any]] = []

    def add(self, metric: str, value: float | None, *, repeat: int = 0, **columns: Any) -> None:
        """One measurement; ``value`` in the metric's base unit, None if it is unknown."""
        number = None if value is None else float(value)
        self._own.append({"phase": self.phase, "metric": metric, "value": number, "repeat": repeat, **columns})

    def extend(self, metric: str, values: Iterable[float], **columns: Any) -> None:
        """One row a value, numbered from 0."""
        for repeat, value in enumerate(values):
            self.add(metric, value, repeat=repeat, **columns)

    def add_memory(self, memory: PeakMemory, *, quiet: bool, **columns: Any) -> None:
        """Peak memory of a measured block, and the memory in use before it; a line says why it is unknown."""
        if memory.reason and not quiet:
            echo(f"phase {self.phase}: its peak memory is unknown: {memory.reason}", error=True)
        self.add("peak_memory_bytes", memory.peak_bytes, **columns)
        self.add("baseline_memory_bytes", memory.baseline_bytes, **columns)
        self.add("reserved_memory_bytes", memory.reserved_bytes, **columns)

    def add_energy(self, energy: Energy, tokens: int, *, quiet: bool, **columns: Any) -> None:
        """Joules for each of the tokens that were processed in a measured block; no row for a CPU without a counter.

        A line says why they are unknown although there is a counter; that there is none, the phase says once.
        """
        if energy.countable and energy.reason and not quiet:
            echo(f"phase {self.phase}: joules a token are unknown: {energy.reason}", error=True)
        if energy.countable or self.common.get("device") == "cuda":
            known = energy.joules is not None and tokens > 0
            self.add("joules_per_token", energy.joules / tokens if known else None, **columns)  # type: ignore[operator]

    @contextmanager
    def recording_attention(self) -> Iterator[None]:
        """Record in every row the attention backends that run in this context, or ``none``.

        On a GPU a row says by which rule they were chosen, if they were chosen by their speed.
        """
        with record_attention() as ran:
            yield
        self.common["attention"] = "+".join(sorted(ran)) or "none"
        if by_speed := rules & {MEASURED, PUBLISHED}:
            self.add("attention_measured", by_speed == {MEASURED})

    def finished(self) -> list[dict[str, Any]]:
        """Every row, with the common columns."""
        nothing = "none" if self.common.get("device") == "cpu" else None
        products = "+".join(sorted(self.multiplied)) or nothing
        return [{**self.common, "products": products, **row} for row in self._own]
