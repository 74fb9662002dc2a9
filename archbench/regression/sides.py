"""The sides of a comparison of revisions, each measured by :mod:`archbench.regression.benchmark` in a child process."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from archbench.child.inheritance import clean_environment
from archbench.child.process import Child, LostError
from archbench.errors import ArchbenchError, PhaseError
from archbench.plugin.discovery import PLUGINS_VARIABLE

BENCHMARK_FILES = tuple(
    Path(__file__).with_name(f"{name}.py")
    for name in ("benchmark", "operation_counts", "gpu_requests", "bounded_memory")
)
"""What a side's process runs, whichever archbench it imports: the benchmark, and what it loads from its own folder."""
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")

Samples = dict[str, dict[str, list[tuple[float, float]]]]
"""Architecture -> metric -> (seconds of the reference, seconds of the work) of each sample."""


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        architectures: their names.
        plugins: absolute paths of plugin files and folders.
        preset: of the models.
        overrides: fields of their configurations, as text.
        suite: count also what archbench itself costs.
        device: where models are timed, and a GPU's calls counted; other counts are of the CPU and the meta device.
    """

    architectures: Sequence[str]
    plugins: Sequence[str] = ()
    preset: str = "nano"
    overrides: Mapping[str, str] = field(default_factory=dict)
    device: str = "cpu"
    suite: bool = False


@dataclass(frozen=True)
class Side:
    """What a process measures.

    Attributes:
        name: for errors, as in ``base 1a2b3c4``.
        request: what.
        path: folders that come first when it imports: the tree's own code.
    """

    name: str
    request: Request
    path: tuple[str, ...] = ()


class SideProcess(Child):
    """One side's process; its first answer says whose code it has loaded, and what it could not load."""

    def __init__(self, side: Side) -> None:
        # One thread, the tree's code first, and no plugins that the user's environment names for all trees.
        variables: dict[str, str | None] = {**ONE_THREAD, PLUGINS_VARIABLE: None}
        if side.path:
            variables["PYTHONPATH"] = os.pathsep.join(
                [*side.path, *filter(None, [clean_environment().get("PYTHONPATH")])]
            )
        super().__init__(str(BENCHMARK_FILES[0]), vars(side.request), culprit="the benchmark", variables=variables)
        self._side = side

    def ask_exact(self) -> None:
        """Have it count; :meth:`answer` is architecture -> metric -> count."""
        self.send("exact")

    def turn(self, samples: Mapping[str, int]) -> Samples:
        """Take so many samples of each metric."""
        self.send(dict(samples))
        answer: Samples = self.answer()
        return answer

    def answer(self) -> dict[str, Any]:
        """The next one.

        Raises:
            ArchbenchError: what happened instead.
        """
        try:
            answer: dict[str, Any] = self.receive()
        except LostError as lost:
            cause = f"before it had an answer, its process {lost}"
            raise PhaseError(f"measuring {self._side.name}", cause, "See what it printed above") from None
        except ArchbenchError as error:
            error.culprit = f"{self._side.name}: {error.culprit}"
            raise
        return answer
