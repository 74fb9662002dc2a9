"""Ray: the cores of this machine, or the cluster at ``RAY_ADDRESS``.

An order is a task of Ray's, in one of its worker processes. Ray's own retries are off: the dispatcher counts. Orders
end with the process that submitted them, and go on from their last checkpoint when the same command is given again.
Ray kills at once what it takes back, so orders in a shared folder have a permit (:mod:`archbench.launch.permit`).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import Field, Json, PositiveFloat, PositiveInt

from archbench.errors import ArchbenchError, LauncherError, storing
from archbench.launch.host_check import examination, require_reached, require_same
from archbench.launch.launcher import Launcher, Order, Settings, State
from archbench.launch.parcel import Portable, accepted, packed, returned
from archbench.launch.permit import permits_of, permitted

GRACE = 2.5
"""Seconds that an order which is taken back has to write its files."""

STORE = 100 << 20
"""Bytes of shared memory for results on this machine; the least that Ray takes is 75 MiB."""

QUIET = {"RAY_memory_monitor_refresh_ms": "0", "RAY_usage_stats_enabled": "0"}
"""Of a cluster of this machine, unless they are set: no memory monitor kills what is measured, nothing is reported. A
token of its own would be written to the home folder."""


class RaySettings(Settings):
    """``--launcher-set``: Ray's own names where it has one."""

    address: str | None = Field(None, description="HOST:PORT of the cluster; else RAY_ADDRESS, else this machine")
    num_cpus: PositiveFloat | None = Field(None, description="CPUs of each run; else as many as its threads")
    num_gpus: float | None = Field(None, ge=0, description="GPUs of each run; else one if its device is cuda")
    memory_gb: PositiveFloat | None = Field(None, description="memory of each run in GB, which Ray only books")
    resources: Json[dict[str, PositiveFloat]] | None = Field(None, description='Ray\'s own resources, {"a100": 1}')
    max_tasks: PositiveInt | None = Field(None, description="most runs at a time; else as many as there is room for")
    working_dir: str | None = Field(None, description="folder that Ray copies to its workers, for relative paths")
    shared: bool | None = Field(None, description="whether workers see the study's folder; else it is found out")
    grows: bool = Field(False, description="wait for nodes that the cluster does not have yet")
    patience: PositiveFloat = Field(60.0, description="seconds to wait for an answer of the cluster")


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
        self._address = settings.address or os.environ.get("RAY_ADDRESS") or "local"
        self._culprit = f"Ray at {self._address}" if self._address != "local" else "Ray on this machine"
        self._tasks: dict[str, _Task] = {}
        self._permits = permits_of(folder.resolve())
        self._needs: Mapping[str, float] = self._needed(1, 0)
        self._checked: set[str] = set()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        try:
            import ray
        except ModuleNotFoundError as error:
            cause = f"it needs {error.name}, which is not installed"
            raise LauncherError("launcher ray", cause, "Install it with: pip install 'archbench[ray]'") from None
        self._ray = ray
        # Memory of a GPU is free again when the process ends that used it.
        self._functions = [ray.remote(max_calls=calls, max_retries=0)(_carried_out) for calls in (0, 1)]
        with ExitStack() as stack:
            with storing(str(self.folder), "Choose another folder with --out"):
                self._permits.mkdir(parents=True)
            stack.callback(shutil.rmtree, self._permits, ignore_errors=True)
            if self._address == "local":
                stack.enter_context(self._local())
            else:
                stack.enter_context(self._connected(self._address))
                self.shared = self._examined()
            self._require_room(self._needs)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            self.cancel(list(self._tasks))

    def slots(self) -> int:
        return self.jobs or max(1, sum(_room(node, self._needs) for node in self._nodes()))

    def submit(self, order: Order) -> str:
        self._needs = self._needed(order.cpus, order.gpus)
        self._require_room(self._needs)
        needs = dict(self._needs)
        if order.exclusive:  # as many as the largest node has, all at once
            needs["CPU"] = max(node["Resources"]["CPU"] for node in self._nodes() if _room(node, needs))
        argument = order.argument
        parcel, permit = None, None
        if isinstance(argument, Portable):
            if (new := set(argument.outside) - self._checked) and self._address != "local":
                self._examined(sorted(new))
            self._checked |= new
            parcel = None if self.shared else packed(argument.folder, argument.needs, argument.leaves)
        if self.shared:
            permit = self._permits / order.name
            permit.touch()
        own: dict[str, Any] = {"name": order.title, "num_cpus": needs.pop("CPU"), "num_gpus": needs.pop("GPU", 0)}
        own |= {"memory": needs.pop("memory", None), "resources": needs or None}
        function = self._functions[own["num_gpus"] > 0]
        task = function.options(**own, num_returns="streaming", scheduling_strategy="SPREAD")
        stream = task.remote(order.function, argument, permit, parcel)
        self._tasks[order.name] = _Task(order, stream, State("queued", since=time.time()))
        return order.name

    def states(self, names: Sequence[str]) -> dict[str, State]:
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
        if isinstance(error, (known.RpcError, known.RaySystemError)):
            step = "Run the same command again when it is: what is finished is kept"
            raise LauncherError(self._culprit, f"it is not reached any more ({_short(error)})", step) from error
        node, again = host or "its host", not isinstance(error, (known.RayTaskError, known.OutOfMemoryError))
        cause = f"was lost on {node}: {_short(error)}"
        if isinstance(error, known.RayTaskError):
            cause = f"failed on {node} with {_short(error.cause or error)}"
        elif isinstance(error, known.OutOfMemoryError):
            cause = f"was killed on {node} by Ray's memory monitor, because memory ran out there"
        elif isinstance(error, known.TaskCancelledError):
            cause = "was taken back"
        elif isinstance(error, known.WorkerCrashedError):
            cause = f"was lost with its process on {node}"
        elif isinstance(error, (known.NodeDiedError, known.ObjectLostError, known.LocalRayletDiedError)):
            cause = f"was lost with its node, {node}"
        return State("lost", host, time.time(), cause=cause, again=again)

    def _forget(self, name: str) -> None:
        (self._permits / name).unlink(missing_ok=True)
        self._tasks.pop(name, None)

    def _needed(self, cpus: int, gpus: int) -> dict[str, float]:
        """Ray's resources of one order."""
        given = self.settings
        gpus = gpus if given.num_gpus is None else given.num_gpus
        memory = {"memory": given.memory_gb * 1e9} if given.memory_gb else {}
        return {"CPU": given.num_cpus or cpus, **({"GPU": gpus} if gpus else {}), **memory, **(given.resources or {})}

    def _nodes(self) -> list[dict[str, Any]]:
        return [node for node in self._ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]

    def _require_room(self, needs: Mapping[str, float]) -> None:
        """Raises a LauncherError if an order would wait for ever."""
        nodes = self._nodes()
        if self.settings.grows or any(_room(node, needs) for node in nodes):
            return
        largest = {name: max((node["Resources"].get(name, 0) for node in nodes), default=0) for name in needs}
        wanted = ", ".join(f"{name} {amount:g} (at most {largest[name]:g})" for name, amount in needs.items())
        cause = f"none of its {len(nodes)} nodes has what a run needs: {wanted}"
        step = "Ask for less with --launcher-set num_cpus=N, or with grows=true wait for more nodes"
        raise LauncherError(self._culprit, cause, step)

    @contextlib.contextmanager
    def _local(self) -> Iterator[None]:
        """A cluster of this machine, which ends with this context and with this process."""
        # Ray makes sockets below, whose paths have at most 107 bytes.
        place = tempfile.mkdtemp(
            "", f"archbench-ray-{os.getpid()}-", "/tmp" if len(tempfile.gettempdir()) > 20 else None
        )
        for name, value in {**QUIET, "RAY_AUTH_TOKEN": secrets.token_hex(32)}.items():
            os.environ.setdefault(name, value)
        options = {"num_cpus": len(os.sched_getaffinity(0)), "object_store_memory": STORE, "_temp_dir": place}
        try:
            with self._connected("local", **options, include_dashboard=False, _node_ip_address="127.0.0.1"):
                yield
        finally:
            shutil.rmtree(place, ignore_errors=True)

    @contextlib.contextmanager
    def _connected(self, address: str, **options: Any) -> Iterator[None]:
        if self.settings.working_dir is not None:
            options["runtime_env"] = {"working_dir": self.settings.working_dir}
        if "://" in address:
            step = "Run archbench on a machine of the cluster, with address=HOST:PORT of its head"
            raise LauncherError(self._culprit, "only Ray's own protocol is spoken here", step)
        require_reached(address, self.settings.patience, culprit=self._culprit, start="ray start --head")
        handler = signal.getsignal(signal.SIGTERM)
        self._ray._private.worker._worker_logs_enabled = False  # each loss is told as a state
        try:
            self._ray.init(address, logging_level="critical", log_to_driver=False, **options)
        except (self._ray.exceptions.RayError, ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            step = "Compare `ray status` there; archbench has to run on a machine of the cluster, with the same Ray"
            raise LauncherError(self._culprit, f"it does not take us ({_short(error)})", step) from error
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)  # Ray has put its own there
        try:
            yield
        finally:
            self._ray.shutdown()

    def _examined(self, outside: Sequence[str] = ()) -> bool:
        """Ask every node whether it can carry orders out; returns whether all see the study's folder.

        Args:
            outside: paths that have to be there too, with the same content.

        Raises:
            LauncherError: a node does not answer, lacks archbench, has another version, or lacks a path.
        """
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        mark = self._permits / "mark"
        mark.write_text(secrets.token_hex(16))
        examine = examination()
        here = examine(str(mark), outside)
        ask = self._ray.remote(num_cpus=0, max_retries=0)(examine)
        hosts = {}
        for node in self._nodes():
            strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            hosts[ask.options(scheduling_strategy=strategy).remote(str(mark), outside)] = node["NodeManagerHostname"]
        done, late = self._ray.wait(list(hosts), num_returns=len(hosts), timeout=self.settings.patience)
        step = "Look at its logs, or leave that host out"
        for one in late:
            raise LauncherError(f"host {hosts[one]}", f"it has not answered for {self.settings.patience:g} s", step)
        seen = []
        for one in done:
            try:
                there = self._ray.get(one)
            except self._ray.exceptions.RayError as error:
                raise LauncherError(f"host {hosts[one]}", f"it failed ({_short(error)})", step) from error
            require_same(hosts[one], here, there, send="--launcher-set working_dir=.")
            seen.append(there["mark"] == here["mark"])
        return all(seen) if self.settings.shared is None else self.settings.shared


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


def _room(node: Mapping[str, Any], needs: Mapping[str, float]) -> int:
    """Orders that fit on the node at a time."""
    return int(min(node["Resources"].get(name, 0) // amount for name, amount in needs.items()))


def _short(error: BaseException) -> str:
    """The first line of what Ray says, whose errors have pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200].rstrip('.')}" if lines else type(error).__name__
