"""How long a comparison will take, from a pilot of each architecture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from archbench.compare.cells import Cell, Record, check_seconds, rows_of
from archbench.compare.stages import COST_NEW_TOKENS, SPEED_STEPS

PROCESS_SECONDS = 3.0
"""Of a phase in a process of its own that does nothing: Python and torch are loaded, the text is read."""

FORWARD_SHARE = 1 / 3
"""Of an update, that a forward pass alone takes: half of the backward pass (Kaplan et al. 2020, section 2.1)."""

TOKENS_DECODED_PER_FORWARD = 16
"""Tokens decoded one by one in the time of one forward pass over a whole batch; a guess that a few seconds hang on."""


@dataclass(frozen=True)
class Pilot:
    """What a pilot run took.

    Attributes:
        overhead: seconds of all but its updates and its checks: processes, scoring.
        checks: seconds of the conformance checks, which other runs of the same model take over.
        update: seconds of one update.
        tokens: of one update.
        scored: tokens of the validation text.
    """

    overhead: float
    checks: float
    update: float
    tokens: int
    scored: int

    @property
    def scoring(self) -> float:
        """Seconds of scoring the validation text once."""
        return self.update * FORWARD_SHARE * self.scored / self.tokens


def read_pilot(folder: Path, record: Record, tokens: int) -> Pilot | str:
    """What a pilot run took, or why its model takes no part: it would fail each of its runs.

    Args:
        tokens: of one update.

    Raises:
        StorageError: its rows cannot be read.
    """
    if record.outcome == "ok":
        return pilot_of(record, rows_of(folder, record), tokens, check_seconds(folder, record))
    return f"its pilot run failed: {record.cause or 'its first updates diverged'}"


def pilot_of(record: Record, frame: pd.DataFrame, tokens: int, checks: float) -> Pilot:
    """Read a pilot's rows.

    Args:
        tokens: of one update.
        checks: seconds that the conformance checks took, without their process.
    """
    steps = frame[(frame.phase == "train") & (frame.metric == "step_seconds")].value
    total = float(frame[(frame.phase == "train") & (frame.metric == "training_seconds")].value.iloc[0])
    scored = frame[(frame.phase == "quality") & (frame.metric == "tokens_scored")].value
    checks += PROCESS_SECONDS
    return Pilot(max(0.0, record.seconds - total - checks), checks, float(steps.median()), tokens, int(scored.iloc[0]))


def cell_seconds(cell: Cell, pilot: Pilot, updates: float) -> float:
    """Seconds of a cell: one that trains on a budget (``tune``, ``seed``, ``point``) for so many updates."""
    if cell.stage in ("tune", "seed", "point"):
        every = cell.config.training.validate_every
        validations = 0.0 if every is None else updates / every
        more = PROCESS_SECONDS + 3 * pilot.scoring if cell.stage == "seed" else 0.0
        return pilot.overhead + updates * pilot.update + validations * pilot.scoring + more
    if cell.stage == "speed":
        return pilot.overhead + PROCESS_SECONDS + SPEED_STEPS * pilot.update
    if cell.stage == "cost":
        reads = 8 * pilot.update * FORWARD_SHARE * cell.context_length / pilot.tokens
        decoded = 5 * COST_NEW_TOKENS / TOKENS_DECODED_PER_FORWARD * pilot.update * FORWARD_SHARE
        return pilot.overhead + pilot.checks + reads + decoded
    return pilot.overhead


def total_seconds(stages: Sequence[tuple[Sequence[Cell], int]], seconds: Mapping[str, float]) -> float:
    """Of stages one after the other, each of cells ``jobs`` at a time; ``seconds`` of each cell by its key."""
    return sum(together([seconds[cell.key] for cell in cells], jobs) for cells, jobs in stages if cells)


def together(seconds: Sequence[float], jobs: int) -> float:
    """Seconds that cells of ``seconds`` take, ``jobs`` at a time: each process takes the next as soon as it is free."""
    free = [0.0] * jobs
    for one in seconds:
        first = free.index(min(free))
        free[first] += one
    return max(free)
