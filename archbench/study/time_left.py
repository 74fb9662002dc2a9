"""The time that a study still takes: predicted from pilots, corrected by the cells that it has measured."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Predicted:
    """A cell's predicted seconds; ``sort`` is what is predicted equally well, such as the stage of a comparison."""

    sort: str
    seconds: float


@dataclass
class _Stage:
    """Cells that run side by side, ``jobs`` at a time."""

    jobs: int
    waiting: list[Predicted]
    running: dict[str, tuple[Predicted, float]] = field(default_factory=dict)


class TimeLeft:
    """Time left of the cells that have not been measured.

    What a sort of cells took, relative to its prediction, corrects the prediction of those that follow; a sort of which
    none has been measured is corrected by all others.

    Args:
        stages: planned cells of each call of :meth:`archbench.study.engine.Session.run`, and how many run at a time.
        spare: cells that may follow the first stage, depending on what it finds.
        known: cells that earlier sessions measured, each with its seconds.
        jobs: number of spare cells at a time.
    """

    def __init__(
        self,
        stages: Sequence[tuple[Sequence[Predicted], int]],
        spare: Sequence[Predicted] = (),
        known: Sequence[tuple[Predicted, float]] = (),
        *,
        jobs: int = 1,
    ) -> None:
        self._stages = [_Stage(jobs, list(cells)) for cells, jobs in stages if cells]
        self._now = _Stage(jobs, [])
        self._spare = _Stage(jobs, list(spare))
        self._sums: dict[str, list[float]] = {}  # sort -> predicted and measured seconds
        for predicted, seconds in known:
            self._measured(predicted, seconds)

    def stage(self, cells: Mapping[str, Predicted], jobs: int) -> None:
        """These cells come now; planned stages that came before theirs are over."""
        sorts = {one.sort for one in cells.values()}
        place = next((n for n, one in enumerate(self._stages) if sorts & {cell.sort for cell in one.waiting}), None)
        if place is not None:
            del self._stages[: place + 1]
        if any(one.sort in sorts for one in self._spare.waiting):
            if place is None:
                del self._spare.waiting[: len(cells)]
        else:
            self._spare.waiting.clear()
        self._now = _Stage(jobs, list(cells.values()))

    def started(self, key: str, predicted: Predicted) -> None:
        """A cell has been given to a process."""
        if predicted in self._now.waiting:
            self._now.waiting.remove(predicted)
        self._now.running[key] = predicted, time.monotonic()

    def finished(self, key: str, seconds: float | None) -> None:
        """A cell took these seconds; None if that says nothing, because it failed."""
        predicted, _ = self._now.running.pop(key)
        if seconds is not None:
            self._measured(predicted, seconds)

    @property
    def cells(self) -> int:
        """Number of cells that are sure to come or are running."""
        return sum(len(one.waiting) + len(one.running) for one in (self._now, *self._stages))

    @property
    def is_guess(self) -> bool:
        """Whether most of the time left is of sorts of which none has been measured."""
        cells = [cell for one in self._every() for cell in one.waiting]
        cells += [cell for cell, _ in list(self._now.running.values())]
        unsure = sum(cell.seconds for cell in cells if cell.sort not in self._sums)
        return unsure > sum(cell.seconds for cell in cells) / 2

    def seconds(self) -> float:
        """From now on."""
        now, left = time.monotonic(), 0.0
        for stage in self._every():
            running = [self._rest(cell, now - began) for cell, began in list(stage.running.values())]
            left += together([*running, *(self._corrected(cell) for cell in stage.waiting)], stage.jobs)
        return left

    def _every(self) -> list[_Stage]:
        return [self._now, self._spare, *self._stages]

    def _rest(self, cell: Predicted, elapsed: float) -> float:
        """Of a running cell; one that takes longer than predicted may be far from its end."""
        return max(self._corrected(cell) - elapsed, elapsed / 10)

    def _corrected(self, cell: Predicted) -> float:
        found = self._sums.get(cell.sort)
        predicted, measured = map(sum, zip(*([found] if found else [(0.0, 0.0), *self._sums.values()]), strict=True))
        return cell.seconds * measured / predicted if predicted else cell.seconds

    def _measured(self, predicted: Predicted, seconds: float) -> None:
        sums = self._sums.setdefault(predicted.sort, [0.0, 0.0])
        sums[0] += predicted.seconds
        sums[1] += seconds


def together(seconds: Sequence[float], jobs: int) -> float:
    """Seconds that cells of ``seconds`` take, ``jobs`` at a time: a free process takes the next cell."""
    free = [0.0] * jobs
    for one in seconds:
        free[free.index(min(free))] += one
    return max(free)
