"""The connection to a Ray cluster: who answers, whether all are alike, and what is said when it is gone."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from pydantic import Field, Json, PositiveFloat, PositiveInt

from archbench.errors import LauncherError, one_line
from archbench.launch.host_check import examination, require_reached, require_same
from archbench.launch.launcher import Settings

SILENCE = 30.0
"""Seconds that Ray's head may be away. After 60 s Ray ends this process by itself, with no error of ours."""

STORE = 100 << 20
"""Bytes of shared memory for results on this machine; the least that Ray takes is 75 MiB."""

QUIET = {"RAY_memory_monitor_refresh_ms": "0", "RAY_usage_stats_enabled": "0"}
"""Of a cluster of this machine, unless they are set: no memory monitor kills what is measured, nothing is reported. A
token of its own would be written to the home folder."""

START = "ray start --head"


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


class RayCluster:
    """The cluster of these settings, or Ray on this machine.

    Attributes:
        is_local: whether it is of this machine, and begins and ends with the connection.
        culprit: its name in errors.
    """

    def __init__(self, settings: RaySettings) -> None:
        self._settings = settings
        self._address = settings.address or os.environ.get("RAY_ADDRESS") or "local"
        self.is_local = self._address == "local"
        self.culprit = "Ray on this machine" if self.is_local else f"Ray at {self._address}"

    def connected(self) -> AbstractContextManager[None]:
        """Within this context the cluster is reached.

        Raises:
            LauncherError: Ray is not installed, or the cluster is not there or of another version.
        """
        try:
            import ray
        except ModuleNotFoundError as error:
            cause = f"it needs {error.name}, which is not installed"
            raise LauncherError("launcher ray", cause, "Install it with: pip install 'archbench[ray]'") from None
        self._ray = ray
        return self._started() if self.is_local else self._joined(self._address)

    def nodes(self) -> list[dict[str, Any]]:
        """The nodes that have CPUs.

        Raises:
            LauncherError: the head is away, or the Ray of this machine has ended.
        """
        here, end = self._ray.get_runtime_context(), time.monotonic() + SILENCE
        while True:
            try:
                require_reached(here.gcs_address, SILENCE, culprit=self.culprit, start=START)
                break
            except LauncherError as error:
                if time.monotonic() > end:
                    raise self.away(f"its head has not answered for {SILENCE:g} s") from error
                time.sleep(1.0)
        with self.asked():
            alive = [node for node in self._ray.nodes() if node["Alive"]]
        if here.get_node_id() not in [node["NodeID"] for node in alive]:
            raise self.away("its node on this machine has ended")
        return [node for node in alive if node["Resources"].get("CPU")]

    def require_room(self, needs: Mapping[str, float]) -> None:
        """Raises a LauncherError if an order would wait for ever."""
        nodes = self.nodes()
        if self._settings.grows or any(room(node, needs) for node in nodes):
            return
        largest = {name: max((node["Resources"].get(name, 0) for node in nodes), default=0) for name in needs}
        wanted = ", ".join(f"{name} {amount:g} (at most {largest[name]:g})" for name, amount in needs.items())
        cause = f"none of its {len(nodes)} nodes has what a run needs: {wanted}"
        step = "Ask for less with --launcher-set num_cpus=N, or with grows=true wait for more nodes"
        raise LauncherError(self.culprit, cause, step)

    def examined(self, mark: Path, outside: Sequence[str] = ()) -> bool:
        """Ask every node whether it can carry orders out; returns whether all see the study's folder.

        Args:
            mark: file in the study's folder; it is written.
            outside: paths that have to be there too, with the same content.

        Raises:
            LauncherError: a node does not answer, lacks archbench, has another version, or lacks a path.
        """
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        mark.write_text(secrets.token_hex(16))
        examine, patience = examination(), self._settings.patience
        here = examine(str(mark), outside)
        ask = self._ray.remote(num_cpus=0, max_retries=0)(examine)
        hosts = {}
        nodes = self.nodes()
        with self.asked():
            for node in nodes:
                strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                answer = ask.options(scheduling_strategy=strategy).remote(str(mark), outside)
                hosts[answer] = node["NodeManagerHostname"]
            done, late = self._ray.wait(list(hosts), num_returns=len(hosts), timeout=patience)
        step = "Look at its logs, or leave that host out"
        for one in late:
            raise LauncherError(f"host {hosts[one]}", f"it has not answered for {patience:g} s", step)
        seen = []
        for one in done:
            try:
                there = self._ray.get(one)
            except self._ray.exceptions.RayError as error:
                raise LauncherError(f"host {hosts[one]}", f"it failed ({short(error)})", step) from error
            require_same(hosts[one], here, there, send="--launcher-set working_dir=.")
            seen.append(there["mark"] == here["mark"])
        return all(seen) if self._settings.shared is None else self._settings.shared

    @contextlib.contextmanager
    def asked(self) -> Iterator[None]:
        """Within this context an error of Ray's is a LauncherError."""
        try:
            yield
        except self._ray.exceptions.RayError as error:
            raise self.away(short(error)) from error

    def away(self, cause: str) -> LauncherError:
        """The error for a cluster that was there before."""
        step = "Start Ray again, and run the same command again: what is finished is kept"
        return LauncherError(self.culprit, f"it is not reached any more: {cause}", step)

    @contextlib.contextmanager
    def _started(self) -> Iterator[None]:
        """A cluster of this machine, which ends with this context and with this process."""
        # Ray makes sockets below, whose paths have at most 107 bytes.
        place = tempfile.mkdtemp(
            "", f"archbench-ray-{os.getpid()}-", "/tmp" if len(tempfile.gettempdir()) > 20 else None
        )
        for name, value in {**QUIET, "RAY_AUTH_TOKEN": secrets.token_hex(32)}.items():
            os.environ.setdefault(name, value)
        options = {"num_cpus": len(os.sched_getaffinity(0)), "object_store_memory": STORE, "_temp_dir": place}
        try:
            with self._joined("local", **options, include_dashboard=False, _node_ip_address="127.0.0.1"):
                yield
        finally:
            shutil.rmtree(place, ignore_errors=True)

    @contextlib.contextmanager
    def _joined(self, address: str, **options: Any) -> Iterator[None]:
        if self._settings.working_dir is not None:
            options["runtime_env"] = {"working_dir": self._settings.working_dir}
        if "://" in address:
            step = "Run archbench on a machine of the cluster, with address=HOST:PORT of its head"
            raise LauncherError(self.culprit, "only Ray's own protocol is spoken here", step)
        require_reached(address, self._settings.patience, culprit=self.culprit, start=START)
        handler = signal.getsignal(signal.SIGTERM)
        self._ray._private.worker._worker_logs_enabled = False  # each loss is told as a state
        try:
            self._ray.init(address, logging_level="critical", log_to_driver=False, **options)
        except (self._ray.exceptions.RayError, ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            self._ray.shutdown()  # of what it had begun
            step = "Compare `ray status` there; archbench has to run on a machine of the cluster, with the same Ray"
            raise LauncherError(self.culprit, f"it does not take us ({one_line(error)})", step) from error
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)  # Ray has put its own there
        try:
            yield
        finally:
            self._ray.shutdown()


def room(node: Mapping[str, Any], needs: Mapping[str, float]) -> int:
    """Orders that fit on the node at a time."""
    return int(min(node["Resources"].get(name, 0) // amount for name, amount in needs.items()))


def short(error: BaseException) -> str:
    """The first line of what Ray says, whose errors have pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200].rstrip('.')}" if lines else type(error).__name__
