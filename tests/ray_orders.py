"""What orders of tests do, where Ray's workers can import it; run as a script, it is a submitter that can be killed."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from archbench_plugins.launchers.ray import Ray, RaySettings

from archbench.interruption import exit_code, interruptible, underway
from archbench.launch.launcher import Order
from archbench.study.outcome import Record


def place(argument: object) -> tuple[str, str | None]:
    """The node, and the GPUs that this process may use."""
    import ray

    return ray.get_runtime_context().get_node_id(), os.environ.get("CUDA_VISIBLE_DEVICES")


def slow_place(seconds: float) -> tuple[str, str | None]:
    time.sleep(seconds)
    return place(None)


def raising(argument: object) -> None:
    raise RuntimeError(f"no {argument}")


def endless(file: Path) -> None:
    """Works for ever, with a child, until a signal comes, and then ends as a run does.

    ``file`` gets this process, its child and the node; a file beside it the signal.
    """
    child = subprocess.Popen(["sleep", "1000"])
    try:
        with interruptible(), underway():
            written = file.with_suffix(".new")
            written.write_text(f"{os.getpid()} {child.pid} {place(None)[0]}")
            written.rename(file)
            time.sleep(1000)
    except KeyboardInterrupt as interruption:
        file.with_suffix(".signal").write_text(str(interruption))
        child.kill()
        os._exit(exit_code(interruption))


@dataclass(frozen=True)
class Doubling:
    """Reads a number in its folder and leaves its double, with a record."""

    folder: Path
    outside: Sequence[str] = ()
    needs: Sequence[str] = ("numbers",)
    leaves: Sequence[tuple[str, str]] = (("doubles/1", "records/1.json"),)

    def in_folder(self, folder: Path) -> Doubling:
        return replace(self, folder=folder)


def doubled(work: Doubling) -> str:
    number = int((work.folder / "numbers" / "one").read_text())
    own = work.folder / "doubles" / "1"
    (own / "checkpoints").mkdir(parents=True)
    (own / "checkpoints" / "weights").write_bytes(bytes(1000))
    (own / "one").write_text(str(2 * number))
    (work.folder / "records").mkdir()
    (work.folder / "records" / "1.json").write_text("{}")
    return str(work.folder)


@dataclass(frozen=True)
class Hungry:
    """A cell that holds memory in a child, as a run does.

    Attributes:
        size: bytes.
        seconds: how long.
    """

    key: str
    size: int
    seconds: float
    architecture: str = "hungry"

    def measure(self, folder: Path, trackers: Sequence[str]) -> Record:
        held = f"import time; held = b'x' * {self.size}; time.sleep({self.seconds})"
        subprocess.run([sys.executable, "-c", held], check=True)
        return Record(key=self.key, run_id=None, outcome="ok")


@contextlib.contextmanager
def cluster_of(count: int, **variables: str) -> Iterator[Any]:
    """A cluster of nodes of two CPUs each on this machine, the head among them, with these environment variables."""
    import pytest
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        for name, value in {"RAY_usage_stats_enabled": "0", **variables}.items():
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # where its workers find this file
        found = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        for _ in range(count - 1):
            found.add_node(num_cpus=2)
        try:
            yield found
        finally:
            found.shutdown()


def killed(node: Any, *kinds: str) -> None:
    """Kill a node of the cluster as a failure of its machine would, or only these of its processes."""
    for kind in kinds or ("gcs_server", "raylet"):
        for one in node.all_processes.get(kind, []):
            one.process.kill()
            one.process.wait()  # workers take a zombie for alive


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    with Ray(RaySettings(), folder, None) as launcher:
        for number in range(2):
            launcher.submit(Order(f"endless.{number}", "endless", endless, folder / f"endless{number}"))
        launcher.wait(1000.0)
        time.sleep(1000)
