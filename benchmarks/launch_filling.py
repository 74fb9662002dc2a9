"""How a study of many cells fills 1, 8 and 64 workers, and what the submitter's own work costs.

The dispatcher is the real one, with its claims and records in a folder; only the engine is simulated: its clock jumps
to the next end of an order, and cells take the seconds that those of a recorded comparison took.

    python benchmarks/launch_filling.py [--cells 1000] [--workers 1,8,64] [--study results/reference/compare-nano]

Prints, for each number of workers: the makespan in simulated seconds; the bound, which is the larger of all seconds
divided by the workers and the longest cell; and the submitter's CPU seconds as a share of the makespan.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from archbench.launch.launcher import Launcher, Order, Settings, State
from archbench.results.claims import Claims, Owner
from archbench.study.dispatch import Dispatch, Unit
from archbench.study.outcome import Record


@dataclass(frozen=True)
class Recorded:
    """A cell that took ``seconds`` once."""

    key: str
    seconds: float
    architecture: str = "recorded"

    def measure(self, folder: Path, trackers: Sequence[str]) -> Record:
        return Record(key=self.key, run_id=None, outcome="ok", seconds=self.seconds)


class Simulated(Launcher):
    """``workers`` machines with a clock of their own; every order carries one cell."""

    def __init__(self, folder: Path, workers: int) -> None:
        super().__init__(Settings(), folder, 2 * workers)  # a queue as long as what runs, as a cluster has
        self.now, self.free, self.workers = 0.0, workers, workers
        self.ends: list[tuple[float, str]] = []
        self.queue: list[str] = []
        self.orders: dict[str, Order] = {}
        self.ended: set[str] = set()
        self.away = 0.0

    def submit(self, order: Order) -> str:
        self.orders[order.name] = order
        self.queue.append(order.name)
        self._fill()
        return order.name

    def states(self, names: Sequence[str]) -> dict[str, State]:
        running = {name for _, name in self.ends}
        return {name: self._state(name, running) for name in names}

    def cancel(self, names: Sequence[str]) -> None:
        """Nothing is taken back here."""

    def wait(self, seconds: float) -> None:
        """Until the next end, which the submitter notices within ``seconds``."""
        if self.ends:
            self.now = max(self.now, self.ends[0][0])
            while self.ends and self.ends[0][0] <= self.now:
                self.ended.add(heapq.heappop(self.ends)[1])
                self.free += 1
            self._fill()

    def _fill(self) -> None:
        while self.free and self.queue:
            name = self.queue.pop(0)
            self.free -= 1
            heapq.heappush(self.ends, (self.now + self.orders[name].argument.cells[0].seconds, name))

    def _state(self, name: str, running: set[str]) -> State:
        if name not in self.ended:
            return State("running" if name in running else "queued")
        order, start = self.orders.pop(name), time.process_time()
        result = order.function(order.argument)
        self.away += time.process_time() - start  # that is the worker's, not the submitter's
        return State("done", result=result)


def recorded_seconds(study: Path) -> list[float]:
    """Seconds of the finished cells of a comparison."""
    cells = json.loads((study / "comparison.json").read_text())["cells"]
    return [cell["seconds"] for cell in cells if cell["outcome"] == "ok"]


def simulate(seconds: Sequence[float], workers: int) -> tuple[float, float]:
    """Makespan in simulated seconds, and CPU seconds of the submitter."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        launcher = Simulated(folder, workers)
        dispatch = Dispatch(launcher, Claims(folder, Owner.this_process("simulated")), folder, Record, ())
        units = [Unit([Recorded(f"{number:016x}", one)]) for number, one in enumerate(seconds)]
        start = time.process_time()
        found = sum(1 for _ in dispatch.measured(units, None, lambda cell: None))
        own = time.process_time() - start - launcher.away
        assert found == len(seconds)
        return launcher.now, own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--workers", default="1,8,64")
    parser.add_argument("--study", type=Path, default=Path("results/reference/compare-nano"))
    options = parser.parse_args()
    seconds = random.Random(0).choices(recorded_seconds(options.study), k=options.cells)
    print(f"{len(seconds):,} cells, {sum(seconds) / len(seconds):.1f} s on average, {max(seconds):.1f} s at most")
    print("workers  makespan  bound     makespan/bound  submitter  share")
    for workers in map(int, options.workers.split(",")):
        makespan, own = simulate(seconds, workers)
        bound = max(sum(seconds) / workers, max(seconds))
        print(
            f"{workers:7d} {makespan:8.0f} s {bound:6.0f} s {makespan / bound:15.3f} {own:8.2f} s {own / makespan:8.2%}"
        )


if __name__ == "__main__":
    main()
