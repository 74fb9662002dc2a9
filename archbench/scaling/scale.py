"""A ladder from plan to outcome: match, predict, tune, train, fit. Killed at any time, it goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from archbench.compare import prediction
from archbench.compare.cells import Cell, Record, known_record, measure
from archbench.compare.files import require_same_plan
from archbench.compare.learning_rates import Curve, Point, curve, search
from archbench.compare.pool import Follower, run_cells
from archbench.compare.prediction import Pilot
from archbench.compare.stages import pilot_cell, tokens_per_update, tuning_points
from archbench.errors import UsageError
from archbench.results.lock import locked
from archbench.scaling import ladder
from archbench.scaling.ladder import Rung
from archbench.scaling.outcome import Measured, write_scale
from archbench.scaling.plan import PLAN, ScalePlan

RungKey = tuple[str, int]
"""Architecture and size."""


def scale(plan: ScalePlan, folder: Path, follower: Follower[Cell, Record], command: str) -> dict[str, Any]:
    """Run what is not known yet of the plan, and fit; the outcome, as ``scale.json`` has it.

    Args:
        plan: the ladder.
        folder: of the ladder; one of the same digest is gone on with.
        command: what the user typed, to be kept.

    Raises:
        UnknownNameError: there is no such architecture or preset.
        UsageError: the folder holds another plan, another process works on it, or no architecture takes part.
        ArchbenchError: the text cannot be had, or nothing can be stored.
    """
    with locked(folder):
        require_same_plan(folder / PLAN, plan.digest(), plan.model_dump(mode="json"), "a ladder")
        work = _Work(plan, folder, follower)
        work.begin()
        curves = work.tune()
        work.climb(curves)
        return write_scale(work.measured(command, curves))


class _Work:
    def __init__(self, plan: ScalePlan, folder: Path, follower: Follower[Cell, Record]) -> None:
        self.plan, self.folder, self.follower = plan, folder, follower
        self.started = time.monotonic()
        self.seconds_before = 0.0
        self.rungs: dict[RungKey, Rung] = {}
        self.pilots: dict[RungKey, Pilot] = {}
        self.trials: dict[RungKey, list[tuple[Cell, Record]]] = {}
        self.points: dict[RungKey, list[tuple[Cell, Record]]] = {}

    def begin(self) -> None:
        """Sizes, pilots and prediction."""
        self.rungs = {rung.key: rung for rung in ladder.rungs(self.plan)}
        self._pilot()
        for rung in self.rungs.values():
            if rung.contender.reason is not None:
                self.follower.note(f"{_called(rung)} takes no part: {rung.contender.reason}")
        if not self._in():
            step = "Correct what the notes above say, or name other architectures or --sizes"
            raise UsageError("archbench scale", "nothing is left to train", step)
        cells = self._planned()
        left = [(rung, cell) for rung, cell in cells if known_record(self.folder, cell.key) is None]
        seconds = self._predicted(left)
        self.predicted = time.monotonic() - self.started + self._predicted(cells)
        self.follower.began(self.predicted, seconds, len(cells), len(cells) - len(left))

    def tune(self) -> dict[RungKey, Curve]:
        """The search of each rung for its learning rate, all with the same trials first."""
        if self.plan.tunes:
            search([rung.key for rung in self._in()], self.plan.factors, self._try, self._tried)
        rate = self.plan.run.training.learning_rate
        return {
            rung.key: curve(rung.architecture, self._tried(rung.key), rate, tuned=self.plan.tunes)
            for rung in self._in()
        }

    def climb(self, curves: Mapping[RungKey, Curve]) -> None:
        """Every budget of every rung, the small ones first: a ladder that is stopped has some of all architectures."""
        cells: list[tuple[Rung, Cell]] = []
        for rung in self._in():
            found = curves[rung.key]
            if found.learning_rate is None:
                self._leave_out(rung, found.note)
                self.follower.note(f"{_called(rung)} takes no further part: {found.note}")
            else:
                cells += [(rung, cell) for cell in ladder.points(self.plan, rung, found.learning_rate)]
        self.points = self._run(cells, self.follower.finished)

    def measured(self, command: str, curves: Mapping[RungKey, Curve]) -> Measured:
        return Measured(
            plan=self.plan,
            folder=self.folder,
            command=command,
            rungs=list(self.rungs.values()),
            curves=curves,
            trials=self.trials,
            points=self.points,
            predicted_seconds=self.predicted,
            measured_seconds=self.seconds_before + time.monotonic() - self.started,
        )

    def _in(self) -> list[Rung]:
        return [rung for rung in self.rungs.values() if rung.contender.matched]

    def _leave_out(self, rung: Rung, reason: str | None) -> None:
        self.rungs[rung.key] = replace(rung, contender=replace(rung.contender, matched=False, reason=reason))

    def _pilot(self) -> None:
        """One of each rung; a model that fails it, or the checks, takes no part."""
        if self._in():
            ladder.check_budgets(self.plan, self._in()[0])
        self.follower.piloting(len(self._in()))
        pilots = self._run(
            [(rung, pilot_cell(self.plan, rung.contender)) for rung in self._in()], lambda cell, record: None
        )
        for key, ((_, record),) in pilots.items():
            rung = self.rungs[key]
            found = prediction.read_pilot(self.folder, record, tokens_per_update(self.plan, rung.contender))
            if isinstance(found, Pilot):
                self.pilots[key] = found
            else:
                self._leave_out(rung, found)

    def _try(self, asked: Mapping[RungKey, Sequence[float]]) -> None:
        cells = [
            (self.rungs[key], cell)
            for key, factors in asked.items()
            for cell in ladder.trials(self.plan, self.rungs[key], factors)
        ]
        for key, tried in self._run(cells, self.follower.finished).items():
            self.trials.setdefault(key, []).extend(tried)

    def _tried(self, key: RungKey) -> list[Point]:
        """What each learning rate that was tried came to."""
        return tuning_points(self.folder, self.trials.get(key, []), self.plan.run.training.learning_rate)

    def _run(
        self, cells: Sequence[tuple[Rung, Cell]], finished: Callable[[Cell, Record], None]
    ) -> dict[RungKey, list[tuple[Cell, Record]]]:
        """The cells with their records, by rung."""
        own = [cell for _, cell in cells]
        known = [record for cell in own if (record := known_record(self.folder, cell.key)) is not None]
        self.seconds_before += sum(record.seconds for record in known) / self.plan.jobs
        records = run_cells(own, self.folder, self.plan.jobs, finished, known=known_record, measure=measure)
        by_rung: dict[RungKey, list[tuple[Cell, Record]]] = {}
        for rung, cell in cells:
            by_rung.setdefault(rung.key, []).append((cell, records[cell.key]))
        return by_rung

    def _planned(self) -> list[tuple[Rung, Cell]]:
        """The cells to come, as far as they are known."""
        trials, points = [], []
        for rung in self._in():
            tried, rate = ladder.foreseen_trials(self.plan, rung, self.folder)
            trials += [(rung, cell) for cell in tried]
            if rate is not None:
                points += [(rung, cell) for cell in ladder.points(self.plan, rung, rate)]
        return trials + points

    def _predicted(self, cells: Sequence[tuple[Rung, Cell]]) -> float:
        seconds, trials = [], {}
        for rung, cell in cells:
            tokens = cell.config.training.tokens
            assert tokens is not None
            updates = tokens / tokens_per_update(self.plan, rung.contender)
            seconds.append(prediction.cell_seconds(cell, self.pilots[rung.key], updates))
            if cell.stage == "tune":
                trials[rung.key] = seconds[-1]
        seconds += trials.values()  # one more of each: some searches go on past their edge, by up to two
        return prediction.together(seconds, self.plan.jobs) if seconds else 0.0


def _called(rung: Rung) -> str:
    return f"{rung.architecture} of {rung.size:,} parameters"
