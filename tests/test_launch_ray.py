"""Ray, for real: a cluster of three nodes on this machine, and kills of workers, nodes and submitters."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from archbench_plugins.launchers.ray import Ray, RaySettings

import archbench
from archbench.errors import LauncherError
from archbench.launch.launcher import Order, State
from archbench.results.claims import Claims, Owner
from archbench.study.dispatch import Dispatch, Unit
from archbench.study.outcome import Record
from archbench.study.records import CELLS

pytest.importorskip("ray", reason="pip install 'archbench[ray]'")

from ray_orders import Doubling, Hungry, cluster_of, doubled, endless, killed, place, raising, slow_place

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with cluster_of(3) as found:
        yield found


def connected(cluster: Any, folder: Path, **settings: Any) -> Ray:
    return Ray(RaySettings(address=cluster.address, **settings), folder, None)


def until(launcher: Ray, name: str, reached: Callable[[State], bool], limit: float = 120.0) -> State:
    end = time.monotonic() + limit
    while not reached(state := launcher.states([name])[name]):
        assert time.monotonic() < end, state
        assert state.phase not in ("done", "lost"), state
        launcher.wait(0.2)
    return state


def ended(launcher: Ray, name: str) -> State:
    return until(launcher, name, lambda state: state.phase in ("done", "lost"))


def begun(launcher: Ray, file: Path, name: str = "endless.1") -> list[str]:
    """Process, child and node of an endless order, once it works."""
    launcher.submit(Order(name, "endless", endless, file))
    until(launcher, name, lambda state: file.exists())
    return file.read_text().split()


def is_running(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def in_time(reached: Callable[[], bool], limit: float = 60.0) -> bool:
    """Whether it is so within a time that only a hang takes."""
    end = time.monotonic() + limit
    while not reached() and time.monotonic() < end:
        time.sleep(0.1)
    return reached()


def all_end(processes: list[str]) -> bool:
    return in_time(lambda: not any(map(is_running, processes)))


def test_orders_spread_over_the_nodes_and_an_exclusive_one_has_a_node_to_itself(cluster: Any, tmp_path: Path) -> None:
    with connected(cluster, tmp_path) as launcher:
        assert launcher.shared
        assert launcher.slots() == 6
        names = [launcher.submit(Order(f"a.{number}", "a", slow_place, 3.0)) for number in range(6)]
        alone = launcher.submit(Order("b.1", "b", slow_place, 0.1, exclusive=True))
        nodes = [ended(launcher, name).result[0] for name in names]
        assert sorted(nodes.count(node) for node in set(nodes)) == [2, 2, 2]
        assert ended(launcher, alone).phase == "done"
        assert launcher.states(["never.1"])["never.1"].phase == "lost"
    assert not list(tmp_path.iterdir())


def test_an_order_whose_process_or_function_fails_is_lost_with_the_cause(cluster: Any, tmp_path: Path) -> None:
    with connected(cluster, tmp_path) as launcher:
        launcher.submit(Order("raising.1", "raising", raising, "luck"))
        state = ended(launcher, "raising.1")
        assert (state.phase, state.again) == ("lost", False)
        assert "no luck" in str(state.cause)
        process, child, _ = begun(launcher, tmp_path / "endless")
        os.kill(int(process), signal.SIGKILL)
        state = ended(launcher, "endless.1")
        assert (state.phase, state.again, state.host) == ("lost", True, socket.gethostname())
        assert all_end([process, child])


def test_what_is_taken_back_has_time_to_put_itself_in_order(cluster: Any, tmp_path: Path) -> None:
    with connected(cluster, tmp_path) as launcher:
        process, child, _ = begun(launcher, tmp_path / "first")
        launcher.cancel(["endless.1", "unknown"])
        assert (tmp_path / "first.signal").read_text() == "SIGTERM"
        assert all_end([process, child])
        others = begun(launcher, tmp_path / "second", "endless.2")[:2]
    assert (tmp_path / "second.signal").read_text() == "SIGTERM"
    assert all_end(others)


def test_an_order_on_a_node_that_dies_is_lost_and_another_node_takes_it(cluster: Any, tmp_path: Path) -> None:
    with connected(cluster, tmp_path) as launcher:
        for number in range(9):  # until it is not on the head, to which this process is connected
            process, child, node = begun(launcher, tmp_path / f"try{number}", f"endless.{number}")
            dying = next((one for one in cluster.worker_nodes if one.node_id == node), None)
            if dying is not None:
                break
        assert dying is not None
        killed(dying)
        state = ended(launcher, f"endless.{number}")
        assert (state.phase, state.again) == ("lost", True), state
        assert all_end([process, child])
        assert in_time(lambda: launcher.slots() == 4)
        launcher.submit(Order("place.2", "place", place, None))
        assert ended(launcher, "place.2").result[0] != node
        cluster.remove_node(dying, allow_graceful=False)
        new = cluster.add_node(num_cpus=2)  # it comes back
        assert in_time(lambda: launcher.slots() == 6)
        names = [launcher.submit(Order(f"c.{number}", "c", slow_place, 3.0)) for number in range(4)]
        assert new.node_id in {ended(launcher, name).result[0] for name in names}


@pytest.mark.parametrize("where", ["cluster", "this machine"])
def test_nothing_runs_on_when_the_submitter_is_killed(cluster: Any, tmp_path: Path, where: str) -> None:
    place = {**os.environ, "RAY_ADDRESS": cluster.address if where == "cluster" else "local"}
    if where != "cluster":
        del place["RAY_AUTH_MODE"]
    submitter = subprocess.Popen([sys.executable, str(TESTS / "ray_orders.py"), str(tmp_path)], env=place)
    files = [tmp_path / "endless0", tmp_path / "endless1"]
    assert in_time(lambda: all(file.exists() for file in files))
    processes = [process for file in files for process in file.read_text().split()[:2]]
    submitter.kill()
    submitter.wait()
    assert all_end(processes)


def test_without_a_shared_folder_what_an_order_reads_and_leaves_is_sent(cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "numbers").mkdir()
    (tmp_path / "numbers" / "one").write_text("21")
    with connected(cluster, tmp_path, shared=False) as launcher:
        launcher.submit(Order("doubled.1", "doubled", doubled, Doubling(tmp_path)))
        place = ended(launcher, "doubled.1").result
        assert place != str(tmp_path)
        assert not Path(place).exists()
    assert (tmp_path / "doubles" / "1" / "one").read_text() == "42"
    assert (tmp_path / "records" / "1.json").exists()
    assert not (tmp_path / "doubles" / "1" / "checkpoints").exists()


def test_what_no_node_has_is_refused_before_anything_is_queued(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(LauncherError, match="100"), connected(cluster, tmp_path, num_cpus=100):
        pass
    with pytest.raises(LauncherError, match="a100"), connected(cluster, tmp_path, resources='{"a100": 1}'):
        pass
    with connected(cluster, tmp_path) as launcher, pytest.raises(LauncherError, match="GPU"):
        launcher.submit(Order("gpu.1", "gpu", place, None, gpus=1))
    with connected(cluster, tmp_path, num_cpus=100, grows=True):
        pass


def test_another_version_here_or_on_a_node_is_refused_before_anything_is_queued(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    other = tmp_path / "other" / "archbench-0.0.1.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: archbench\nVersion: 0.0.1\n")
    node = cluster.add_node(num_cpus=2, env_vars={"PYTHONPATH": f"{other.parent}:{os.environ['PYTHONPATH']}"})
    study = tmp_path / "study"
    study.mkdir()
    with pytest.raises(LauncherError, match=rf"archbench is 0\.0\.1 there, and {archbench.__version__}") as raised:
        connected(cluster, study).__enter__()
    assert "host" in raised.value.culprit
    cluster.remove_node(node)
    own = ray.__version__
    monkeypatch.setattr(ray, "__version__", "1.2.3")
    with pytest.raises(LauncherError, match=own) as raised:
        connected(cluster, study).__enter__()
    assert "1.2.3" in raised.value.cause
    assert not list(study.iterdir())


@pytest.mark.parametrize("kinds", [("gcs_server",), ("raylet",)], ids=["the head", "the node of the submitter"])
def test_what_an_order_can_not_do_without_is_one_error_when_it_dies(kinds: tuple[str, ...], tmp_path: Path) -> None:
    with cluster_of(2) as doomed, connected(doomed, tmp_path) as launcher:
        process, child, _ = begun(launcher, tmp_path / "endless")
        killed(doomed.head_node, *kinds)
        with pytest.raises(LauncherError, match="it is not reached any more") as raised:
            in_time(lambda: not launcher.states(["endless.1"]), limit=120.0)
    assert raised.value.exit_code == 13
    assert all_end([process, child])


def test_a_run_that_eats_its_node_is_a_failed_cell_and_the_runs_beside_it_are_measured(tmp_path: Path) -> None:
    """Ray's monitor ends the newest runs of a full node, whoever has filled it: it sees workers, not their children."""
    import ray

    total, used = ray._private.utils.get_system_memory(), ray._private.utils.get_used_memory()
    if total - used < 9 << 30:
        pytest.skip("it fills 6 GiB, and needs some more")
    limit = {"RAY_memory_usage_threshold": str((used + (3 << 30)) / total), "RAY_memory_monitor_refresh_ms": "100"}
    with cluster_of(1, **limit) as single, connected(single, tmp_path) as launcher:
        dispatch = Dispatch(launcher, Claims(tmp_path, Owner.this_process("ray")), tmp_path, Record, ())
        cells = [Hungry("guilty", 6 << 30, 60.0), Hungry("innocent", 1 << 20, 10.0)]
        found = {cell.key: record for cell, record in dispatch.measured([Unit([one]) for one in cells], None, str)}
        assert found["innocent"].outcome == "ok"
        assert "memory monitor" in " ".join(found["innocent"].attempts)
        assert found["guilty"].outcome == "failed"
        assert "memory monitor" in str(found["guilty"].cause)
        assert not (tmp_path / CELLS / "guilty.json").exists()
