"""One comparison on two SLURM nodes: its workers, jobs and submitters are killed, cancelled and requeued at random.

``ARCHBENCH_KILLS=100 pytest -m slow tests/test_slurm_kills.py`` makes 100 hits; a comparison that ends before begins
anew in another folder. With ``ARCHBENCH_KILLS_LOG=FILE`` each hit is a line of a file, of which
``python tests/test_slurm_kills.py FILE`` prints the table.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import psutil
import pytest

from slurm_cluster import MISSING, Cluster
from small_runs import with_small_corpus
from test_kills import documents, keys, measured, quality

KILLS = int(os.environ.get("ARCHBENCH_KILLS", "10"))
LOG = os.environ.get("ARCHBENCH_KILLS_LOG")
COMPARE = (
    "compare", "gpt1", "gpt2", "--profile", "smoke", "--corpus", "small.txt", "--threads", "1", "--quiet",
    "--config", "training.validate_every=3", "--config", "training.checkpoint_every=2", "--device", "cpu",
    "--match", "tokens", "--tokens", "16384", "--seeds", "5", "--no-tuning", "--sweeps", "1", "--contexts", "none",
    "--out", "out",
)  # fmt: skip
WAYS = ("kill the worker", "terminate the worker", "scancel", "scontrol requeue", "kill the submitter")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("slurm") / "c")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(cluster.configuration))
        cluster.start()
        yield cluster
        cluster.stop()


class Study:
    """A comparison in a folder of its own, and the process that submits its cells."""

    def __init__(self, folder: Path, *launcher: str) -> None:
        folder.mkdir(parents=True)
        self.folder, self.launcher = with_small_corpus(folder), launcher
        self.said: IO[bytes] = (folder / "said").open("wb")
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        script = str(Path(sys.executable).with_name("archbench"))
        self.process = subprocess.Popen(
            [script, *COMPARE, *self.launcher], cwd=self.folder, stdin=-3, stdout=self.said, stderr=self.said
        )
        return self.process

    def finish(self) -> dict[str, Any]:
        """The outcome, after as many further commands as cells need that were lost too often."""
        for _ in range(20):
            code = self.process.wait()
            assert code in (0, 1, 2, -9, 130, 143), (self.folder / "said").read_text()[-3000:]
            outcome: dict[str, Any] = {}
            if code == 0:
                outcome = json.loads((self.folder / "out" / "comparison.json").read_text())
            if outcome and all(cell["outcome"] == "ok" for cell in outcome["cells"]):
                return outcome
            self.start()
        raise AssertionError((self.folder / "said").read_text()[-3000:])


def processes_of(job: str) -> list[psutil.Process]:
    """Python's processes of a job: the worker first, then its guard and its child."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("SLURM_JOB_ID") == job and "python" in process.name():
                found.append(process)
        except psutil.Error:
            continue
    return sorted(found, key=lambda process: process.pid)


def hit(way: str, study: Study, cluster: Cluster, chance: random.Random) -> bool:
    """Whether there was anything to hit."""
    if way == "kill the submitter":
        number = chance.choice([signal.SIGKILL, signal.SIGTERM])
        if study.process.poll() is not None:
            return False
        study.process.send_signal(number)
        study.process.wait()
        study.start()
        return True
    states = "running" if "worker" in way or "requeue" in way else "running,pending"
    jobs = cluster.ask("squeue", "--noheader", f"--states={states}", "--format=%A").split()
    if not jobs:
        return False
    job = chance.choice(jobs)
    if way == "scancel":
        cluster.ask("scancel", job)
    elif way == "scontrol requeue":
        try:
            cluster.ask("scontrol", "requeue", job)
        except subprocess.CalledProcessError:  # it has just ended
            return False
    else:
        processes = processes_of(job)
        if not processes:
            return False
        if way == "kill the worker":
            chance.choice(processes).kill()
        else:
            processes[0].terminate()
    return True


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
def test_nothing_is_lost_or_doubled_and_the_outcome_is_that_of_an_unbroken_comparison(
    cluster: Cluster, tmp_path: Path
) -> None:
    pytest.importorskip("submitit")
    unbroken = Study(tmp_path / "unbroken", "--jobs", "1")
    wanted = unbroken.finish()
    chance, hits, number = random.Random(KILLS), Counter[str](), 0
    while hits.total() < KILLS:
        number += 1
        began = time.monotonic()
        study = Study(tmp_path / str(number), "--launcher", "slurm", "--launcher-set", "timeout_min=30")
        mine: Counter[str] = Counter()
        while study.process.poll() != 0 and (hits + mine).total() < KILLS:
            time.sleep(chance.uniform(1.0, 10.0))
            if study.process.poll() not in (None, 0):
                study.start()
            way = chance.choice(WAYS)
            mine[way] += hit(way, study, cluster, chance)
        outcome = study.finish()
        hits += mine
        found, expected = keys(measured(study.folder)), keys(measured(unbroken.folder))
        result = {
            **mine,
            "lost": (expected - found).total(),
            "doubled": (found - expected).total(),
            "identical": quality(measured(study.folder)) == quality(measured(unbroken.folder))
            and documents(study.folder) == documents(unbroken.folder),
            "cells": len(outcome["cells"]),
            "seconds": time.monotonic() - began,
        }
        if LOG is not None:
            with Path(LOG).open("a") as log:
                log.write(json.dumps(result) + "\n")
        assert [cell["key"] for cell in outcome["cells"]] == [cell["key"] for cell in wanted["cells"]]
        assert (result["lost"], result["doubled"]) == (0, 0), (list(expected - found)[:5], list(found - expected)[:5])
        assert result["identical"]
        assert [row["verdict"] for row in outcome["quality"]] == [row["verdict"] for row in wanted["quality"]]


def table(lines: list[dict[str, Any]]) -> str:
    """Way × hits, and what came of all."""
    rows = [f"| {way} | {sum(line.get(way, 0) for line in lines)} |" for way in WAYS]
    sums = {name: sum(line[name] for line in lines) for name in ("cells", "lost", "doubled", "identical", "seconds")}
    said = ", ".join(f"{name} {value:.0f}" for name, value in sums.items())
    return "\n".join(["| way | hits |", "|---|---|", *rows, "", f"{len(lines)} comparisons: {said}"])


if __name__ == "__main__":
    print(table([json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]))
