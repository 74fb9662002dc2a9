"""What studies of runs share: pilots, predicted times, and the search for learning rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import pyarrow as pa

from archbench.config import RunConfig
from archbench.results.schema import ROLES, arrow_schema
from archbench.study.contract import Contender, Quality, Study
from archbench.study.engine import PROCESS_SECONDS, Session
from archbench.study.learning_rates import Point, Tuning, next_factor, tuning
from archbench.study.outcome import Outcome, Record
from archbench.study.run_cells import (
    Budget,
    RunCell,
    RunPlan,
    TuningPlan,
    bits_per_byte,
    check_seconds,
    pilot_cell,
    rows_of,
    tokens_per_update,
    tuning_cells,
    updates_of,
)

SPEED_STEPS = 30
"""Updates of a run that times them."""

COST_NEW_TOKENS = 32

QUALITY_OF = {"tune": "learning rates", "seed": "fresh seeds"}
"""Stage -> name of what its runs, which have the same budget, tell the quality by."""

FORWARD_SHARE = 1 / 3
"""Forward pass / update: a backward pass takes twice as long as a forward one (Kaplan et al. 2020, section 2.1)."""

TOKENS_DECODED_PER_FORWARD = 16
"""Tokens decoded one by one in the time of a forward pass over a batch: a guess that moves predictions by seconds."""


P = TypeVar("P", bound=RunPlan)
T = TypeVar("T", bound=TuningPlan)
O = TypeVar("O", bound=Outcome)  # noqa: E741


@dataclass(frozen=True)
class Pilot:
    """Times of a pilot run.

    Attributes:
        overhead: seconds of everything but updates and checks: processes, scoring.
        checks: seconds of the conformance checks, which other runs of the same model do not repeat.
        update: seconds of one update.
        tokens: in one update.
        scored: tokens of the validation text.
    """

    overhead: float
    checks: float
    update: float
    tokens: int
    scored: int

    @classmethod
    def of(cls, record: Record, frame: pd.DataFrame, tokens: int, checks: float) -> Pilot:
        """Read a pilot's rows; ``tokens`` in one update, ``checks`` in seconds."""
        steps = frame[(frame.phase == "train") & (frame.metric == "step_seconds")].value
        total = float(frame[(frame.phase == "train") & (frame.metric == "training_seconds")].value.iloc[0])
        scored = frame[(frame.phase == "quality") & (frame.metric == "tokens_scored")].value
        checks += PROCESS_SECONDS
        return cls(
            max(0.0, record.seconds - total - checks), checks, float(steps.median()), tokens, int(scored.iloc[0])
        )

    def seconds(self, cell: RunCell, updates: float) -> float:
        """Predicted seconds of a cell; ``updates`` are those of its budget."""
        scoring = self.update * FORWARD_SHARE * self.scored / self.tokens
        if cell.stage in ("tune", "seed", "point"):
            every = cell.config.training.validate_every
            validations = 0.0 if every is None else updates / every
            more = PROCESS_SECONDS + 3 * scoring if cell.stage == "seed" else 0.0
            return self.overhead + updates * self.update + validations * scoring + more
        if cell.stage == "speed":
            return self.overhead + PROCESS_SECONDS + SPEED_STEPS * self.update
        if cell.stage == "cost":
            reads = 8 * self.update * FORWARD_SHARE * cell.context_length / self.tokens
            decoded = 5 * COST_NEW_TOKENS / TOKENS_DECODED_PER_FORWARD * self.update * FORWARD_SHARE
            return self.overhead + self.checks + reads + decoded
        return self.overhead


class RunStudy(Study[P, RunCell, Record, O]):
    """A study whose cells are runs; see :class:`archbench.study.contract.Study`."""

    record = Record

    def __init__(self, plan: P) -> None:
        super().__init__(plan)
        self.admitted: dict[tuple[str, int | None], tuple[Contender, Pilot]] = {}

    def pilots(self, contender: Contender) -> Sequence[RunCell]:
        return [pilot_cell(self.plan, contender)]

    def admit(self, contender: Contender, pilots: Sequence[Record], folder: Path) -> str | None:
        (record,) = pilots
        if record.outcome != "ok":
            return f"its pilot run failed: {record.cause or 'its first updates diverged'}"
        tokens = tokens_per_update(self.plan, contender)
        pilot = Pilot.of(record, rows_of(folder, record), tokens, check_seconds(folder, record))
        self.admitted[contender.key] = contender, pilot
        return None

    def seconds(self, cell: RunCell) -> float:
        contender, pilot = self.admitted[cell.contender]
        recipe = cell.config.training
        amounts = {unit: getattr(recipe, unit) for unit in ("tokens", "flops", "seconds")}
        budget = {unit: amount for unit, amount in amounts.items() if amount is not None}
        updates = updates_of(self.plan, contender, budget)
        return pilot.seconds(cell, budget.get("seconds", 0.0) / pilot.update if updates is None else updates)

    def quality(self, cell: RunCell, record: Record, folder: Path) -> Quality | None:
        among = QUALITY_OF.get(cell.stage)
        bits = bits_per_byte(folder, record) if among is not None and record.outcome == "ok" else None
        return None if among is None or bits is None else Quality(bits, "bit/byte", among)


class TuningStudy(RunStudy[T, O]):
    """A study of runs that searches for learning rates first."""

    def search(
        self, session: Session[T, RunCell, Record, O], budget: Budget, *, spare: bool = False
    ) -> dict[tuple[str, int | None], Tuning]:
        """Search each contender's learning rate, beginning with the same trials for all; key -> search.

        Args:
            budget: of a whole run; a trial gets the plan's share of it.
            spare: predict the time of one further trial each, because some searches extend beyond the first trials.
        """
        plan, rate = self.plan, self.plan.run.training.learning_rate
        contenders = {one.key: one for one in session.taking_part()}
        tried: dict[tuple[str, int | None], list[tuple[RunCell, Record]]] = {key: [] for key in contenders}
        unfinished: set[tuple[str, int | None]] = set()  # only when planning; then the recipe's rate stands in
        asked = {key: list(plan.factors) for key in contenders} if plan.tunes else {}
        while asked:
            cells = {key: tuning_cells(plan, contenders[key], budget, factors) for key, factors in asked.items()}
            records = session.run([cell for own in cells.values() for cell in own])
            for key, own in cells.items():
                known = [(cell, records[cell.key]) for cell in own if cell.key in records]
                tried[key] += known
                if len(known) < len(own):
                    unfinished.add(key)
                    session.spare(own[-1:] if spare else [])
            done = [key for key in asked if key not in unfinished]
            further = {key: next_factor(_points(session.folder, tried[key], rate), plan.factors) for key in done}
            asked = {key: [factor] for key, factor in further.items() if factor is not None}
        return {
            key: tuning(
                one.architecture,
                _points(session.folder, tried[key], rate),
                rate,
                tuned=plan.tunes and key not in unfinished,
            )
            for key, one in contenders.items()
        }


def shared_settings(run: RunConfig, contender: Contender) -> dict[str, Any]:
    """The fields of an outcome's plan that come from the configuration of its runs."""
    data = run.data
    return {
        "profile": run.profile,
        "preset": run.preset,
        "corpus": data.corpus,
        "tokenizer": data.tokenizer,
        "context_length": contender.context_length,
    }


def rows_by_key(folder: Path, cells: Sequence[tuple[RunCell, Record]]) -> dict[str, pd.DataFrame]:
    """Cell key -> rows, for every run that did not fail. Their role is set: runs before version 4 have none.

    Raises:
        StorageError: they cannot be read.
    """
    return {
        cell.key: rows_of(folder, record).assign(role=ROLES[cell.stage])
        for cell, record in cells
        if record.outcome != "failed"
    }


def tables_of(frames: Mapping[str, pd.DataFrame]) -> list[pa.Table]:
    """The rows as Arrow tables, to keep beside an outcome."""
    return [pa.Table.from_pandas(frame, schema=arrow_schema(), preserve_index=False) for frame in frames.values()]


def _points(folder: Path, tried: Sequence[tuple[RunCell, Record]], rate: float) -> list[Point]:
    """The score of each learning rate tried; ``rate`` is the recipe's."""
    found: dict[float, list[float | None]] = {}
    for cell, record in tried:
        assert cell.factor is not None
        found.setdefault(cell.factor, []).append(bits_per_byte(folder, record))
    return [Point(rate * factor, factor, tuple(bits)) for factor, bits in found.items()]
