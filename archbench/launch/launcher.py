"""What a launcher is: a class that an entry point of the group ``archbench.launchers`` names.

It takes orders to machines, says what became of them, and takes them back. It decides nothing about a study: which
cells are measured, by whom, and how often one is tried again is decided in :mod:`archbench.study.dispatch`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """What ``--launcher-set NAME=VALUE`` may set; a launcher subclasses it. An unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Order:
    """Work for one process on one machine. It is pickled, and its modules are imported where it is carried out.

    Attributes:
        name: unique in the study's folder, also over sessions: letters, digits, full stops and hyphens.
        title: for people, such as ``gpt1 seed 3``.
        function: at the top level of a module. It raises nothing that concerns the study: its result has the errors.
        argument: of the function.
        gpus: devices that it needs; 0 on CPUs.
        cpus: threads that it uses.
        exclusive: it measures times, so nothing else may run on that machine.
        seconds: as predicted; None if unknown.
    """

    name: str
    title: str
    function: Callable[[Any], Any]
    argument: Any
    gpus: int = 0
    cpus: int = 1
    exclusive: bool = False
    seconds: float | None = None


@dataclass(frozen=True)
class State:
    """What became of an order.

    Attributes:
        phase: ``lost`` if the engine gives no result: the node died, the job was preempted, its process was killed.
        host: where it runs or ran, as the engine names it; None if unknown.
        since: begin of the phase in seconds since the epoch; None if unknown.
        cause: of the loss: a verb phrase such as ``was preempted``.
        again: of the loss: whether another try may end otherwise. Running out of memory would not.
        crowded: of the loss: memory of the whole machine ran out, perhaps because of what ran beside it. So it is tried
            again with a machine to itself, once.
        result: what the function returned; of ``done``.
    """

    phase: Literal["queued", "running", "done", "lost"]
    host: str | None = None
    since: float | None = None
    cause: str | None = None
    again: bool = True
    crowded: bool = False
    result: Any = None


class FullError(Exception):
    """The engine takes no more orders for now. The message is its reason."""


class Launcher(ABC):
    """One connection to an engine, for one study. The methods stand in the order in which they are called.

    Attributes:
        settings_class: of its ``settings``.
        shared: whether orders see the study's folder, by the same path; otherwise their results bring its files back.
        survives: whether orders go on, or wait, when this process ends. Another process then asks for their states, and
            cancels them, with a launcher of default settings that it does not enter.
        one_machine: whether all orders run on one machine, where those that are timed in turns need not be one order.
        tries: how often an order is begun until a loss counts as a failure.

    Args:
        settings: what the user asks for.
        folder: of the study.
        jobs: most orders at a time that the user asks for; None for as many as the engine takes.
    """

    settings_class: ClassVar[type[Settings]] = Settings
    shared: bool = True
    survives: ClassVar[bool] = False
    one_machine: ClassVar[bool] = False
    tries: ClassVar[int] = 3

    def __init__(self, settings: Any, folder: Path, jobs: int | None) -> None:
        self.settings, self.folder, self.jobs = settings, folder, jobs

    def __enter__(self) -> Self:
        """Connect.

        Raises:
            LauncherError: the engine is not reached, or will not take what is asked for. Nothing is queued yet.
        """
        return self

    def __exit__(  # noqa: B027
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect. Orders that are not done are taken back, unless they survive."""

    def slots(self) -> int:
        """Orders that may be queued or running now; the others wait here."""
        return self.jobs or 1

    @abstractmethod
    def submit(self, order: Order) -> str:
        """Queue an order. Returns the engine's name of it, by which another process can ask for it.

        Raises:
            LauncherError: the engine does not take it.
            FullError: it may take it later. Until :meth:`slots` has room, it is not offered again.
        """

    @abstractmethod
    def states(self, names: Sequence[str]) -> dict[str, State]:
        """Engine's name -> state; one that the engine does not know is ``lost``. One question to the engine for all.

        Raises:
            LauncherError: the engine is not reached. Tell a short failure from a lasting one before.
        """

    @abstractmethod
    def cancel(self, names: Sequence[str]) -> None:
        """Take orders back; those that are done, or unknown, are ignored."""

    def wait(self, seconds: float) -> None:
        """Sleep until something may have changed, for at most so long."""
        time.sleep(seconds)
