"""The SLURM launcher on a real cluster: two nodes on the loopback address."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from archbench_plugins.launchers import slurm
from archbench_plugins.launchers.slurm import Slurm, SlurmSettings

import archbench
import slurm_orders
from archbench.errors import LauncherError
from archbench.launch.launcher import FullError, Order, State
from slurm_cluster import MISSING, Cluster, running_cluster

pytest.importorskip("submitit")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")]

OTHER_PROCESS = """
import dataclasses, json, sys
from pathlib import Path
from archbench_plugins.launchers.slurm import Slurm, SlurmSettings
launcher = Slurm(SlurmSettings(), Path(sys.argv[1]), None)  # not entered: it queues nothing
if sys.argv[2] == "cancel":
    launcher.cancel(sys.argv[3:])
print(json.dumps({name: dataclasses.asdict(state) for name, state in launcher.states(sys.argv[3:]).items()}))
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("slurm") / "c") as cluster, pytest.MonkeyPatch.context() as patch:
        patch.setattr(slurm, "POLL", 0.5)
        yield cluster


@pytest.fixture
def folder(cluster: Cluster, tmp_path: Path) -> Iterator[Path]:
    """Of a study. Afterwards both nodes are idle, and the queue is empty."""
    yield tmp_path / "study"
    if jobs := cluster.ask("squeue", "--noheader", "--format=%A").split():
        cluster.ask("scancel", *jobs)
    idle = ("sinfo", "--noheader", "--partition=main", "--states=idle", "--format=%D")
    cluster.wait_for(lambda: cluster.ask(*idle).strip() == "2" and not cluster.ask("squeue", "--noheader"))


def order(name: str, function: Callable[[Any], Any], argument: Any, **more: Any) -> Order:
    return Order(name, f"test {name}", function, argument, **more)


def until(launcher: Slurm, name: str, wanted: Callable[[State], bool], limit: float = 120.0) -> State:
    end = time.monotonic() + limit
    while not wanted(state := launcher.states([name])[name]):
        assert time.monotonic() < end, state
        launcher.wait(1.0)
    return state


def ended(state: State) -> bool:
    return state.phase in ("done", "lost")


def started(folder: Path, times: int = 1) -> Callable[[State], bool]:
    """Whether the function of :func:`slurm_orders.resumed` has begun so often."""
    file = folder / "starts"
    return lambda state: file.exists() and len(file.read_text().split()) >= times


def other_process(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-c", OTHER_PROCESS, *arguments]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_results_come_back_and_a_process_that_knows_only_the_names_sees_the_states(folder: Path) -> None:
    with Slurm(SlurmSettings(), folder, None) as launcher:
        first = launcher.submit(order("a.1", slurm_orders.resumed, folder))
        until(launcher, first, started(folder))
        wrong = launcher.submit(order("b.1", slurm_orders.refused, "no such thing"))
        others = [launcher.submit(order(f"c{n}.1", slurm_orders.double, n)) for n in (1, 2)]
        assert [until(launcher, name, ended).result for name in others] == [2, 4]
        assert "no such thing" in (until(launcher, wrong, ended).cause or "")
        seen = other_process(str(folder), "states", first, others[0], "999999")
        assert seen[first]["phase"] == "running"
        assert seen[first]["host"] in ("n1", "n2")
        assert 0 <= time.time() - seen[first]["since"] < 600
        assert (seen[others[0]]["phase"], seen["999999"]["phase"]) == ("done", "lost")
        other_process(str(folder), "cancel", first, others[0], "999999")
        lost = until(launcher, first, ended)
    assert (lost.phase, lost.again) == ("lost", True)
    assert "cancelled" in (lost.cause or "")
    assert (folder / "checkpoint").read_text() == "SIGTERM"


def test_a_requeued_job_keeps_its_name_and_goes_on_from_its_checkpoint(cluster: Cluster, folder: Path) -> None:
    with Slurm(SlurmSettings(), folder, None) as launcher:
        name = launcher.submit(order("a.1", slurm_orders.resumed, folder))
        until(launcher, name, started(folder))
        cluster.ask("scontrol", "requeue", name)
        assert "BeginTime" in (until(launcher, name, lambda state: state.phase == "queued").cause or "")
        assert len(set(until(launcher, name, ended).result)) == 2


@pytest.mark.parametrize(("partition", "phase"), [("main", "done"), ("cheap", "lost")])
def test_a_preempted_job_is_queued_again_or_lost_as_its_partition_has_it(
    cluster: Cluster, folder: Path, partition: str, phase: str
) -> None:
    with Slurm(SlurmSettings(partition=partition, nodelist="n1"), folder, None) as launcher:
        name = launcher.submit(order("a.1", slurm_orders.resumed, folder))
        until(launcher, name, started(folder))
        cluster.ask("sbatch", "--partition=urgent", "--nodelist=n1", "--output=/dev/null", "--wrap=sleep 1")
        state = until(launcher, name, ended)
    assert state.phase == phase
    assert state.cause == (None if phase == "done" else "was preempted")
    assert (folder / "checkpoint").read_text() == "SIGTERM"


def test_the_time_limit_is_a_cause_and_leaves_a_checkpoint(folder: Path) -> None:
    with Slurm(SlurmSettings(partition="short", timeout_min=1), folder, None) as launcher:
        name = launcher.submit(order("a.1", slurm_orders.resumed, folder))
        state = until(launcher, name, ended, 240)
    assert (state.phase, state.again) == ("lost", True)
    assert "1 min" in (state.cause or "")
    assert (folder / "checkpoint").exists()


def test_a_killed_process_is_lost_and_out_of_memory_is_not_supposed(folder: Path) -> None:
    with Slurm(SlurmSettings(), folder, None) as launcher:
        name = launcher.submit(order("a.1", slurm_orders.resumed, folder))
        until(launcher, name, started(folder))
        os.kill(int((folder / "starts").read_text()), signal.SIGKILL)
        state = until(launcher, name, ended)
    assert (state.phase, state.again) == ("lost", True)
    assert "SIGKILL" in (state.cause or "")


def test_a_lost_node_is_left_for_another_and_its_living_process_gives_way(cluster: Cluster, folder: Path) -> None:
    with Slurm(SlurmSettings(), folder, None) as launcher:
        name = launcher.submit(order("a.1", slurm_orders.resumed, folder))
        state = until(launcher, name, lambda state: state.phase == "running" and started(folder)(state))
        assert state.host is not None
        cluster.kill(state.host)
        process = psutil.Process(int((folder / "starts").read_text()))
        assert process.is_running()
        result = until(launcher, name, ended, 300).result
        cluster.start_node(state.host)
    assert len(set(result)) == 2
    assert not process.is_running()
    assert (folder / "checkpoint").read_text() == "SIGTERM"


def test_the_controller_may_be_restarted(cluster: Cluster, folder: Path) -> None:
    with Slurm(SlurmSettings(), folder, None) as launcher:
        name = launcher.submit(order("a.1", slurm_orders.resumed, folder))
        until(launcher, name, lambda state: state.phase == "running" and started(folder)(state))
        cluster.kill("slurmctld", signal.SIGTERM)
        time.sleep(slurm.POLL)
        assert launcher.states([name])[name].phase == "running"
        with pytest.raises(LauncherError, match="not reached"), Slurm(SlurmSettings(), folder, None):
            pass
        with pytest.raises(FullError, match="controller"):
            launcher.submit(order("b.1", slurm_orders.double, 1))
        cluster.start_controller()
        cluster.wait_for(lambda: cluster.state(name) == "RUNNING")
        cluster.ask("scontrol", "requeue", name)
        assert len(until(launcher, name, ended).result) == 2


@pytest.mark.parametrize(
    ("settings", "culprit", "cause"),
    [
        ({"partition": "tpu"}, "tpu", "name"),
        ({"partition": "short", "timeout_min": 2}, "timeout_min=2", "1 min"),
        ({"gpus_per_node": 2}, "slurm", "configuration"),
        ({"constraint": "a100"}, "slurm", "feature"),
        ({"mem_gb": 9000}, "slurm", "configuration"),
    ],
)
def test_what_the_cluster_does_not_have_is_said_before_anything_is_queued(
    cluster: Cluster, folder: Path, settings: dict[str, Any], culprit: str, cause: str
) -> None:
    before = cluster.ask("squeue", "--noheader", "--states=all", "--format=%A")
    with pytest.raises(LauncherError) as caught, Slurm(SlurmSettings(**settings), folder, None):
        pass
    assert culprit in caught.value.culprit
    assert cause in caught.value.cause
    assert cluster.ask("squeue", "--noheader", "--states=all", "--format=%A") == before


def test_a_folder_that_cannot_be_written_or_that_a_node_does_not_see_ends_the_study(
    cluster: Cluster, folder: Path
) -> None:
    folder.write_text("")
    with pytest.raises(LauncherError, match="cannot be written"), Slurm(SlurmSettings(), folder, None):
        pass
    folder.unlink()
    with Slurm(SlurmSettings(setup="true"), folder, None) as launcher:
        (folder / "slurm" / "here").write_text("another file system's")
        name = launcher.submit(order("a.1", slurm_orders.double, 1))
        with pytest.raises(LauncherError, match=r"node n\d") as caught:
            until(launcher, name, ended)
        assert str(folder) in caught.value.culprit
    with Slurm(SlurmSettings(setup="echo no module && false"), folder, None) as launcher:
        name = launcher.submit(order("b.1", slurm_orders.double, 1))
        with pytest.raises(LauncherError, match="no module"):
            until(launcher, name, ended)


def test_where_a_user_may_queue_no_more_jobs_the_next_waits_for_one_to_end(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Limits of a user's jobs need slurmdbd, so sbatch's refusal is played; those of the controller are real in
    tests/test_slurm_limits.py."""
    real = shutil.which("sbatch")
    script = tmp_path / "bin" / "sbatch"
    script.parent.mkdir()
    refusal = (
        "sbatch: error: QOSMaxSubmitJobPerUserLimit\\nsbatch: error: Batch job submission failed: job submit limit"
    )
    script.write_text(
        f'#!/bin/sh\nif [ "$1" != --test-only ] && [ -n "$(squeue --noheader)" ]; then\n'
        f'printf "{refusal}\\n" >&2; exit 1; fi\nexec {real} "$@"\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    with Slurm(SlurmSettings(), folder, None) as launcher:
        first = launcher.submit(order("a1.1", slurm_orders.double, 1))
        with pytest.raises(FullError, match="QOSMaxSubmitJobPerUserLimit"):
            launcher.submit(order("a2.1", slurm_orders.double, 2))
        assert launcher.slots() == 1
        assert until(launcher, first, ended).result == 2
        monkeypatch.setattr(slurm, "RETRY", 0.0)
        assert launcher.slots() == SlurmSettings().max_jobs


def test_a_job_gets_the_gpus_that_are_asked_for(folder: Path) -> None:
    with Slurm(SlurmSettings(partition="gpu"), folder, None) as launcher:
        names = [launcher.submit(order(f"a{n}.1", slurm_orders.visible_gpus, None, gpus=n)) for n in (0, 1)]
        assert [until(launcher, name, ended).result for name in names] == [None, "0"]


def test_a_run_that_measures_times_has_a_node_to_itself(cluster: Cluster, folder: Path) -> None:
    with Slurm(SlurmSettings(), folder, None) as launcher:
        names = [launcher.submit(order(f"a{n}.1", slurm_orders.double, n, exclusive=n == 1)) for n in (1, 2)]
        shared = [
            cluster.ask("squeue", "--noheader", "--states=all", f"--jobs={name}", "--Format=OverSubscribe")
            for name in names
        ]
        assert ["NO" in one for one in shared] == [True, False]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--out", "out", "--launcher-set", "partition=mian"), ("'mian'", "'main'")),
        (("--out", "file/out"), ("file/out",)),
        (("--out", "out", "--launcher-set", "setup=export PYTHONPATH=$PWD/other"), ("archbench is", "(", "where the")),
    ],
    ids=["wrong partition", "folder that cannot be written", "other version"],
)
def test_at_the_command_line_it_is_one_error_that_names_what_is_wrong(
    cluster: Cluster, tmp_path: Path, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    """A job has to begin before its archbench can be compared; the study ends with the first."""
    (tmp_path / "file").write_text("")
    shutil.copytree(Path(archbench.__file__).parent, tmp_path / "other" / "archbench")
    with (tmp_path / "other" / "archbench" / "bounds.py").open("a") as file:
        file.write("# another version\n")
    script = str(Path(sys.executable).with_name("archbench"))
    command = [script, "compare", "gpt1", "gpt2", "--profile", "smoke", "--launcher", "slurm", "--quiet", *options]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == LauncherError.exit_code or "file" in options[1], ended.stderr
    assert (ended.stderr.count("Error: "), "Traceback" in ended.stderr) == (1, False), ended.stderr
    assert all(word in ended.stderr for word in words), ended.stderr
    cluster.wait_for(lambda: not cluster.jobs())
