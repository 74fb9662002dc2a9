"""A run that SLURM takes back in mid-training ends at once, with a checkpoint, and goes on from it on another node."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from slurm_cluster import MISSING, Cluster, Job, running_cluster
from small_runs import with_small_corpus
from test_slurm_limits import cells, plugin, started

pytest.importorskip("submitit")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")]

SECONDS_TO_END = 5.0
UPDATES = 32


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("slurm") / "c") as cluster:
        yield cluster


def updates(folder: Path, job: str) -> list[int]:
    """The numbers of the updates that a job has begun."""
    file = folder / f"updates-{job}"
    return list(map(int, file.read_text().split())) if file.exists() else []


def training(
    cluster: Cluster, folder: Path, study: subprocess.Popen[str], cell: str = "", but: Sequence[str] = ()
) -> Job:
    """A job of a seed of ``slow``, of this cell if it is given, that has trained for some updates."""
    while study.poll() is None:
        for job in cluster.jobs():
            wanted = (job.name, job.state, cell or job.cell) == ("slow-seed", "RUNNING", job.cell)
            if wanted and job.number not in but and len(updates(folder, job.number)) >= 5:
                return job
        time.sleep(0.1)
    raise AssertionError(study.communicate()[0])


def ends(processes: Sequence[psutil.Process]) -> None:
    """They end within five seconds from now."""
    _, alive = psutil.wait_procs(processes, SECONDS_TO_END)
    assert not alive


def test_it_ends_within_five_seconds_and_makes_no_update_twice(cluster: Cluster, tmp_path: Path) -> None:
    """It is preempted first, with PreemptMode=CANCEL by a job that keeps the node; then a signal comes to it alone."""
    with_small_corpus(tmp_path)
    note = f"    with open(f'{tmp_path}/updates-' + os.environ['SLURM_JOB_ID'], 'a') as file:\n"
    slow = plugin(tmp_path, "slow", f"{note}        print(state.step, file=file)\n    time.sleep(0.4)\n")
    budget = ("--tokens", str(UPDATES * 8 * 32))
    study = started(tmp_path, "gpt1", "slow", *slow, *budget, "--launcher-set", "partition=cheap")
    try:
        first = training(cluster, tmp_path, study)
        processes = cluster.processes(first.number)
        taking = ("--partition=urgent", f"--nodelist={first.node}", "--output=/dev/null", "--wrap=sleep 600")
        urgent = cluster.ask("sbatch", "--parsable", *taking).strip()
        cluster.wait_for(lambda: cluster.state(first.number) != "RUNNING")
        ends(processes)
        second = training(cluster, tmp_path, study, first.cell, but=[first.number])
        processes = cluster.processes(second.number)
        processes[0].terminate()
        ends(processes)
        cluster.wait_for(lambda: cluster.state(second.number) == "FAILED")
        ask = ("squeue", "--noheader", "--states=all", f"--jobs={second.number}")
        status = int(cluster.ask(*ask, "--Format=exit_code"))
        third = training(cluster, tmp_path, study, first.cell, but=[first.number, second.number])
        cluster.ask("scancel", urgent)
        said = study.communicate()[0]
    finally:
        study.kill()
    assert study.returncode == 0, said
    assert status >> 8 == 143
    assert second.node != first.node
    (cell,) = [cell for cell in cells(tmp_path) if cell["key"] == first.cell]
    assert cell["outcome"] == "ok"
    assert [one.split(" on ")[0] for one in cell["attempts"]] == ["was preempted", "was interrupted"]
    made = [updates(tmp_path, job.number) for job in (first, second, third)]
    assert made[0] + made[1] + made[2] == list(range(UPDATES)), made
