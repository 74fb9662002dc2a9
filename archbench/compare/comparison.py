"""A comparison from plan to outcome: match, tune, confirm, time, judge. Killed at any time, it goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from archbench.compare import prediction, stages
from archbench.compare.cells import Cell, Record, known_record, measure
from archbench.compare.contenders import contenders
from archbench.compare.learning_rates import Curve, Point, curve, search
from archbench.compare.outcome import Measured, write_comparison, write_tuning
from archbench.compare.plan import PLAN, ComparePlan
from archbench.compare.pool import Follower, run_cells
from archbench.compare.prediction import Pilot
from archbench.compare.stages import Contender
from archbench.errors import StorageError, UsageError
from archbench.results.lock import locked
from archbench.runs.folder import write_text


def compare(plan: ComparePlan, folder: Path, follower: Follower[Cell, Record], command: str) -> dict[str, Any]:
    """Run what is not known yet of the plan and judge; the outcome, as ``comparison.json`` has it.

    Args:
        plan: what to compare.
        folder: of the comparison; one of the same plan is gone on with.
        command: what the user typed, to be kept.

    Raises:
        UsageError: the folder holds another plan, or another process works on it.
        ArchbenchError: the baseline cannot be measured, or nothing can be stored.
    """
    with locked(folder):
        work = _Work(plan, folder, follower, command)
        work.begin(confirms=True)
        curves = work.tune()
        work.confirm(curves)
        work.measure_speeds()
        work.measure_costs()
        work.look()
        return write_comparison(work.measured(curves))


def tune(plan: ComparePlan, folder: Path, follower: Follower[Cell, Record], command: str) -> dict[str, Any]:
    """Only the search for learning rates, whose cells :func:`compare` takes over; what ``tuning.json`` holds.

    Raises:
        UsageError, ArchbenchError: as :func:`compare`.
    """
    with locked(folder):
        work = _Work(plan, folder, follower, command)
        work.begin(confirms=False)
        return write_tuning(work.measured(work.tune()))


class _Work:
    def __init__(self, plan: ComparePlan, folder: Path, follower: Follower[Cell, Record], command: str) -> None:
        self.plan, self.folder, self.follower, self.command = plan, folder, follower, command
        self.started = time.monotonic()
        self.cells: dict[str, tuple[Cell, Record]] = {}
        self.pilots: dict[str, Pilot] = {}
        self.kept: dict[str, Any] = {}

    def begin(self, *, confirms: bool) -> None:
        """Sizes, pilots, budget and prediction; kept, so that a later session has the same."""
        self.kept = self._kept_plan()
        self.contenders = contenders(self.plan)
        self.follower.piloting(len(self._in()))
        self._run([stages.pilot_cell(self.plan, one) for one in self._in()], quietly=True)
        self.contenders = [self._after_pilot(one) for one in self.contenders]
        for one in self.contenders:
            if one.reason is not None:
                self.follower.note(f"{one.architecture} takes no part: {one.reason}")
        if confirms and len(self._in()) < 2:
            step = "Correct what the notes above say, or name other architectures"
            raise UsageError("archbench compare", "nothing is left to compare the baseline with", step)
        self.budget: dict[str, float] = self.kept.get("budget") or stages.budget_of(
            self.plan, self._baseline, self.pilots[self.plan.baseline].update
        )
        self.kept["budget"] = self.budget
        if self.kept.get("plan") != self.plan.model_dump(mode="json"):  # more seeds, say, than in an earlier session
            self.kept.pop("predicted_seconds", None)
        self._count_time()
        planned = self._planned(confirms)
        left = [([c for c in cells if known_record(self.folder, c.key) is None], jobs) for cells, jobs in planned]
        seconds = self._predicted(left)
        self.kept.setdefault("predicted_seconds", self.kept["measured_seconds"] + seconds)
        self._keep()
        total, known = (sum(len(cells) for cells, _ in groups) for groups in (planned, left))
        self.follower.began(self.kept["predicted_seconds"], seconds, total, total - known)

    def tune(self) -> dict[str, Curve]:
        """The search of each for its learning rate, all with the same trials first."""
        rate = self.plan.run.training.learning_rate
        names = [one.architecture for one in self._in()]
        if self.plan.tunes:
            search(names, self.plan.factors, self._try, self._points)
        return {name: curve(name, self._points(name), rate, tuned=self.plan.tunes) for name in names}

    def confirm(self, curves: Mapping[str, Curve]) -> None:
        """Fresh seeds at the learning rates chosen. One that has no rate at which it learns takes no further part."""
        cells = []
        for number, one in enumerate(self.contenders):
            if not one.matched:
                continue
            found = curves[one.architecture]
            if found.learning_rate is None:
                self.contenders[number] = replace(one, matched=False, reason=found.note)
                self.follower.note(f"{one.architecture} takes no further part: {found.note}")
            else:
                cells.append(stages.seed_cells(self.plan, one, self.budget, found.learning_rate))
        if not self._baseline.matched:
            step = "Give another --baseline, or a recipe at which it learns"
            raise UsageError(f"baseline {self.plan.baseline}", str(self._baseline.reason), step)
        # Seed by seed, so that all get on together.
        self._run([cell for turn in zip(*cells, strict=True) for cell in turn])

    def measure_speeds(self) -> None:
        self._run(stages.speed_cells(self.plan, self._in()), jobs=1)

    def measure_costs(self) -> None:
        self._run([cell for one in self._in() for cell in stages.cost_cells(self.plan, one)], jobs=1)

    def look(self) -> None:
        """Note with how many seeds the verdict is read: p holds for one look, not for the best of several."""
        look = {"seeds": self.plan.seeds, "margin": self.plan.margin}
        self.kept["looks"] = [one for one in self.kept.get("looks", []) if one != look] + [look]

    def measured(self, curves: Mapping[str, Curve]) -> Measured:
        self._count_time()
        return Measured(
            plan=self.plan,
            folder=self.folder,
            command=self.command,
            contenders=self.contenders,
            budget=self.budget,
            curves=curves,
            looks=self.kept.get("looks", []),
            cells=list(self.cells.values()),
            predicted_seconds=float(self.kept["predicted_seconds"]),
            measured_seconds=float(self.kept["measured_seconds"]),
        )

    @property
    def _baseline(self) -> Contender:
        return next(one for one in self.contenders if one.architecture == self.plan.baseline)

    def _in(self) -> list[Contender]:
        return [one for one in self.contenders if one.matched]

    def _run(self, cells: Sequence[Cell], jobs: int | None = None, *, quietly: bool = False) -> None:
        def finished(cell: Cell, record: Record) -> None:
            self._count_time()
            if not quietly:
                self.follower.finished(cell, record)

        records = run_cells(cells, self.folder, jobs or self.plan.jobs, finished, known=known_record, measure=measure)
        self.cells |= {cell.key: (cell, records[cell.key]) for cell in cells}

    def _after_pilot(self, contender: Contender) -> Contender:
        """Without those whose pilot run failed: they would fail each of their runs."""
        if not contender.matched:
            return contender
        cell = stages.pilot_cell(self.plan, contender)
        tokens = stages.tokens_per_update(self.plan, contender)
        found = prediction.read_pilot(self.folder, self.cells[cell.key][1], tokens)
        if isinstance(found, Pilot):
            self.pilots[contender.architecture] = found
            return contender
        if contender.architecture == self.plan.baseline:
            step = f"Find out with: archbench run {contender.architecture} --profile {self.plan.run.profile}"
            raise UsageError(f"baseline {contender.architecture}", found, step)
        return replace(contender, matched=False, reason=found)

    def _try(self, asked: Mapping[str, Sequence[float]]) -> None:
        """Train at these multiples of the recipe's learning rate."""
        trying = [(one, asked[one.architecture]) for one in self._in() if one.architecture in asked]
        cells = [stages.tuning_cells(self.plan, one, self.budget, factors) for one, factors in trying]
        self._run([cell for group in cells for cell in group])

    def _points(self, name: str) -> list[Point]:
        """What each learning rate that was tried came to."""
        tried = [one for one in self.cells.values() if one[0].stage == "tune" and one[0].architecture == name]
        return stages.tuning_points(self.folder, tried, self.plan.run.training.learning_rate)

    def _planned(self, confirms: bool) -> list[tuple[list[Cell], int]]:
        """The cells to come, as far as they are known."""
        plan, jobs = self.plan, self.plan.jobs
        foreseen = [(one, *stages.foreseen(plan, one, self.budget, self.folder)) for one in self._in()]
        tuning = [cell for _, trials, _ in foreseen for cell in trials]
        if not confirms:
            return [(tuning, jobs)]
        seeds = [
            cell
            for one, _, rate in foreseen
            if rate is not None
            for cell in stages.seed_cells(plan, one, self.budget, rate)
        ]
        costs = [cell for one in self._in() for cell in stages.cost_cells(plan, one)]
        return [(tuning, jobs), (seeds, jobs), (stages.speed_cells(plan, self._in()), 1), (costs, 1)]

    def _predicted(self, planned: Sequence[tuple[list[Cell], int]]) -> float:
        by_name = {one.architecture: one for one in self.contenders}
        seconds = {}
        for cells, _ in planned:
            for cell in cells:
                pilot = self.pilots[cell.architecture]
                updates = self._updates(cell, by_name[cell.architecture], pilot)
                seconds[cell.key] = prediction.cell_seconds(cell, pilot, updates)
        return prediction.total_seconds(planned, seconds)

    def _updates(self, cell: Cell, contender: Contender, pilot: Pilot) -> float:
        share = self.plan.tuning_share if cell.stage == "tune" else 1.0
        updates = stages.updates_of(self.plan, contender, self.budget)
        return share * (updates if updates is not None else self.budget["seconds"] / pilot.update)

    def _kept_plan(self) -> dict[str, Any]:
        """What an earlier session kept.

        Raises:
            UsageError: it is of another plan.
            StorageError: it cannot be read.
        """
        file = self.folder / PLAN
        try:
            kept: dict[str, Any] = json.loads(file.read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise StorageError(str(file), f"it cannot be read ({error})", "Delete it; cells are kept") from error
        if kept.get("digest") != self.plan.digest():
            step = "Choose another folder with --out, or leave it out"
            raise UsageError(str(self.folder), "it holds a comparison of another plan", step)
        return kept

    def _count_time(self) -> None:
        """So that a comparison that was killed still knows what it has taken."""
        now = time.monotonic()
        self.kept["measured_seconds"] = float(self.kept.get("measured_seconds", 0.0)) + now - self.started
        self.started = now
        self._keep()

    def _keep(self) -> None:
        values = {
            **self.kept,
            "digest": self.plan.digest(),
            "command": self.command,
            "plan": self.plan.model_dump(mode="json"),
            "contenders": [asdict(one) for one in getattr(self, "contenders", [])],
        }
        try:
            write_text(self.folder / PLAN, json.dumps(values, indent=2) + "\n")
        except OSError as error:
            step = "Make room, and run the same command again"
            raise StorageError(str(self.folder / PLAN), f"it cannot be written ({error.strerror})", step) from error
