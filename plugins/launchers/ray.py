"""Ray: the cores of this machine, or the cluster at ``RAY_ADDRESS``.

An order is a task of Ray's, in one of its worker processes. Ray's own retries are off: the dispatcher counts. Orders
end with the process that submitted them, and go on from their last checkpoint when the same command is given again.
Ray kills at once what it takes back, so orders in a shared folder have a permit (:mod:`archbench.launch.permit`).
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from archbench.errors import ArchbenchError, storing
from archbench.launch.launcher import Launcher, Order, State
from archbench.launch.parcel import Portable, accepted, packed, returned
from archbench.launch.permit import permits_of, permitted

from .ray_cluster import RayCluster, RaySettings, room, short

GRACE = 2.5
"""Seconds that an order which is taken back has to write its files."""


@dataclass
class _Task:
    """An order that Ray has: what it yields first is where it runs, and then its result."""

    order: Order
    stream: Any
    state: State
    next: Any = None


class Ray(Launcher):
    """Tasks of Ray's; a task without GPUs leaves its worker process to the next one."""

    settings_class = RaySettings

    def __init__(self, settings: RaySettings, folder: Path, jobs: int | None) -> None:
        super().__init__(settings, folder, settings.max_tasks or jobs)
        self._cluster = RayCluster(settings)
        self._tasks: dict[str, _Task] = {}
        self._permits = permits_of(folder.resolve())
        self._needs: Mapping[str, float] = self._needed(1, 0)
        self._checked: set[str] = set()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            connection = self._cluster.connected()
            with storing(str(self.folder), "Choose another folder with --out"):
                self._permits.mkdir(parents=True)
            stack.callback(shutil.rmtree, self._permits, ignore_errors=True)
            stack.enter_context(connection)
            import ray

            self._ray = ray
            # Memory of a GPU is free again when the process ends that used it.
            self._functions = [ray.remote(max_calls=calls, max_retries=0)(_carried_out) for calls in (0, 1)]
            if not self._cluster.is_local:
                self.shared = self._cluster.examined(self._permits / "mark")
            self._cluster.require_room(self._needs)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            self.cancel(list(self._tasks))

    def slots(self) -> int:
        return self.jobs or max(1, sum(room(node, self._needs) for node in self._cluster.nodes()))

    def submit(self, order: Order) -> str:
        self._needs = self._needed(order.cpus, order.gpus)
        self._cluster.require_room(self._needs)
        needs = dict(self._needs)
        if order.exclusive:  # as many as the largest node has, all at once
            needs["CPU"] = max(node["Resources"]["CPU"] for node in self._cluster.nodes() if room(node, needs))
        argument = order.argument
        parcel, permit = None, None
        if isinstance(argument, Portable):
            if (new := set(argument.outside) - self._checked) and not self._cluster.is_local:
                self._cluster.examined(self._permits / "mark", sorted(new))
            self._checked |= new
            parcel = None if self.shared else packed(argument.folder, argument.needs, argument.leaves)
        if self.shared:
            permit = self._permits / order.name
            permit.touch()
        own: dict[str, Any] = {"name": order.title, "num_cpus": needs.pop("CPU"), "num_gpus": needs.pop("GPU", 0)}
        own |= {"memory": needs.pop("memory", None), "resources": needs or None}
        function = self._functions[own["num_gpus"] > 0]
        task = function.options(**own, num_returns="streaming", scheduling_strategy="SPREAD")
        with self._cluster.asked():
            stream = task.remote(order.function, argument, permit, parcel)
        self._tasks[order.name] = _Task(order, stream, State("queued", since=time.time()))
        return order.name

    def states(self, names: Sequence[str]) -> dict[str, State]:
        self._cluster.nodes()  # an order of a cluster that is away is neither lost nor running
        unknown = State("lost", cause="is not known to this process")
        return {name: self._state(self._tasks[name]) if name in self._tasks else unknown for name in names}

    def cancel(self, names: Sequence[str]) -> None:
        for name in names:
            (self._permits / name).unlink(missing_ok=True)
        tasks = [self._tasks[name] for name in names if name in self._tasks]
        self._kill(task for task in tasks if task.state.phase == "queued")
        end = time.monotonic() + GRACE
        with contextlib.suppress(ArchbenchError):
            while self.shared and time.monotonic() < end and any(map(self._runs, tasks)):
                time.sleep(0.05)
        self._kill(task for task in tasks if task.order.name in self._tasks)

    def _runs(self, task: _Task) -> bool:
        return task.order.name in self._tasks and self._state(task).phase == "running"

    def _kill(self, tasks: Iterable[_Task]) -> None:
        for task in tasks:
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.cancel(task.stream, force=True)
            self._forget(task.order.name)

    def wait(self, seconds: float) -> None:
        waiting = [task.stream if task.next is None else task.next for task in self._tasks.values()]
        if waiting:
            with self._cluster.asked():
                self._ray.wait(waiting, timeout=seconds, fetch_local=False)
        else:
            time.sleep(seconds)

    def _state(self, task: _Task) -> State:
        """What became of an order since the last look."""
        ray = self._ray
        try:
            while True:
                if task.next is None:
                    if not ray.wait([task.stream], timeout=0, fetch_local=False)[0]:
                        return task.state
                    task.next = next(task.stream)
                if not ray.wait([task.next], timeout=0)[0]:
                    return task.state
                found, task.next = ray.get(task.next), None
                if task.state.phase == "running":
                    return self._done(task, *found)
                task.state = State("running", *found)
        except (ray.exceptions.RayError, StopIteration) as error:
            self._forget(task.order.name)
            return self._lost(error, task.state.host)

    def _done(self, task: _Task, result: Any, parcel: bytes | None) -> State:
        self._forget(task.order.name)
        argument = task.order.argument
        if parcel is not None:
            accepted(parcel, argument.folder, argument.leaves, culprit=f"host {task.state.host}")
        return State("done", task.state.host, time.time(), result=result)

    def _lost(self, error: Exception, host: str | None) -> State:
        """The loss that Ray tells as this error.

        Raises:
            ArchbenchError: it was one that ends the study.
            LauncherError: the cluster is not reached any more.
        """
        known = self._ray.exceptions
        if isinstance(error, known.RayTaskError) and isinstance(error.cause, ArchbenchError):
            raise error.cause
        if isinstance(error, (known.RpcError, known.RaySystemError, known.LocalRayletDiedError)):
            raise self._cluster.away(short(error)) from error
        node, crowded = host or "its host", isinstance(error, known.OutOfMemoryError)
        cause = f"was lost on {node}: {short(error)}"
        if isinstance(error, known.RayTaskError):
            cause = f"failed on {node} with {short(error.cause or error)}"
        elif crowded:
            cause = f"was killed on {node} by Ray's memory monitor, because memory ran out there"
        elif isinstance(error, known.TaskCancelledError):
            cause = "was taken back"
        elif isinstance(error, known.WorkerCrashedError):
            cause = f"was lost with its process on {node}"
        elif isinstance(error, (known.NodeDiedError, known.ObjectLostError)):
            cause = f"was lost with its node, {node}"
        return State(
            "lost", host, time.time(), cause=cause, again=not isinstance(error, known.RayTaskError), crowded=crowded
        )

    def _forget(self, name: str) -> None:
        (self._permits / name).unlink(missing_ok=True)
        self._tasks.pop(name, None)

    def _needed(self, cpus: int, gpus: int) -> dict[str, float]:
        """Ray's resources of one order."""
        given = self.settings
        gpus = gpus if given.num_gpus is None else given.num_gpus
        memory = {"memory": given.memory_gb * 1e9} if given.memory_gb else {}
        return {"CPU": given.num_cpus or cpus, **({"GPU": gpus} if gpus else {}), **memory, **(given.resources or {})}


def _carried_out(
    function: Callable[[Any], Any], argument: Any, permit: Path | None, parcel: bytes | None
) -> Iterator[Any]:
    """On the worker: yields its host and the time, then the result and what was left behind.

    Args:
        permit: file that goes when the order is taken back.
        parcel: what the argument needs, where the study's folder is not to be seen.
    """
    yield socket.gethostname(), time.time()
    if parcel is not None:
        yield returned(function, argument, parcel)
        return
    with permitted(permit) if permit is not None else contextlib.nullcontext():
        result = function(argument)
    yield result, None
