"""The launcher of this machine: processes side by side, one for each core's share or for each GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from pydantic import Field

from archbench.child.pool import Pool
from archbench.launch.launcher import Launcher, Order, Settings, State


class LocalSettings(Settings):
    """``--launcher-set gpus=0,1,2,3``; ``--gpus`` is short for it."""

    gpus: str | None = Field(None, pattern=r"^\d+(,\d+)*$", description="GPUs by number: one run at a time on each")


class Local(Launcher):
    """A pool of child processes. Orders end with this process, and a lost one is not tried again by the same command:
    its cause is here, as running out of memory is."""

    settings_class = LocalSettings
    one_machine: ClassVar[bool] = True
    tries: ClassVar[int] = 1

    def __init__(self, settings: LocalSettings, folder: Path, jobs: int | None) -> None:
        gpus = settings.gpus.split(",") if settings.gpus is not None else []
        super().__init__(settings, folder, len(gpus) or jobs)
        self._pool = Pool(self.slots(), culprit=str(folder), variables=[{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus])
        self._ended: dict[str, State] = {}

    def __enter__(self) -> Self:
        self._pool.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.__exit__(kind, error, trace)

    def submit(self, order: Order) -> str:
        self._pool.call(order.name, order.function, order.argument)
        return order.name

    def states(self, names: Sequence[str]) -> dict[str, State]:
        self._collect(0.0)
        running = dict.fromkeys(self._pool.running, State("running"))
        unknown = State("lost", cause="is not known here")
        return {name: running.get(name) or self._ended.pop(name, unknown) for name in names}

    def cancel(self, names: Sequence[str]) -> None:
        for name in names:
            self._pool.end(name)

    def wait(self, seconds: float) -> None:
        if not self._ended:
            self._collect(seconds)

    def _collect(self, limit: float) -> None:
        ended = self._pool.ended(limit)
        while ended is not None:
            lost = ended.lost and f"its process {ended.lost}"
            self._ended[ended.name] = State("lost", cause=lost) if lost else State("done", result=ended.result)
            ended = self._pool.ended(0.0)
