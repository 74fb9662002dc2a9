"""One comparison on two SLURM nodes: its workers, jobs and submitters are killed, cancelled and requeued at random.

A hit belongs to a cell, not to the clock: each time that a job begins, it is hit after a random share of the time that
a cell takes, until its cell has had its hits, one to four. So hits reach all cells, and all parts of them.

``ARCHBENCH_KILLS=100 pytest -m slow tests/test_slurm_kills.py`` makes 100 hits; a comparison that ends before begins
anew in another folder. With ``ARCHBENCH_KILLS_LOG=FILE`` each comparison is a line of a file, of which
``python tests/test_slurm_kills.py FILE`` prints the tables.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from slurm_cluster import MISSING, Cluster, Job, running_cluster
from small_runs import with_small_corpus
from test_kills import documents, keys, measured, quality

KILLS = int(os.environ.get("ARCHBENCH_KILLS", "10"))
LOG = os.environ.get("ARCHBENCH_KILLS_LOG")
COMPARE = (
    "compare", "gpt1", "gpt2", "--profile", "smoke", "--corpus", "small.txt", "--threads", "1", "--quiet",
    "--config", "training.validate_every=3", "--config", "training.checkpoint_every=2", "--device", "cpu",
    "--set", "n_layer=1", "--set", "context_length=32", "--config", "checked=false", "--config", "speed.repeats=1",
    "--config", "speed.new_tokens=3", "--match", "tokens", "--tokens", "8192", "--seeds", "6", "--no-tuning",
    "--sweeps", "1", "--contexts", "none", "--out", "out",
)  # fmt: skip
WAYS = (
    "kill the worker", "terminate the worker", "scancel", "scancel one that waits", "scontrol requeue",
    "kill the submitter",
)  # fmt: skip
MOST_OF_A_CELL = 4


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("slurm") / "c") as cluster:
        yield cluster


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


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A finished comparison that nobody has hit."""
    study = Study(tmp_path_factory.mktemp("slurm") / "unbroken", "--jobs", "1")
    study.finish()
    return study


def struck(study: Study, cluster: Cluster, chance: random.Random, usual: float, most: int) -> list[dict[str, Any]]:
    """Hit a comparison's jobs, at most so often, until it ends.

    Args:
        usual: seconds that a cell takes.
    """
    hits: list[dict[str, Any]] = []
    done: Counter[str] = Counter()
    wanted: dict[str, int] = {}
    planned: dict[tuple[str, str], tuple[str, float, float]] = {}  # start of a job -> way, share of a cell, moment
    while study.process.poll() != 0 and len(hits) < most:
        time.sleep(0.3)
        if study.process.poll() not in (None, 0):
            study.start()
        jobs = cluster.jobs()
        for job in (job for job in jobs if job.state == "RUNNING"):
            key = job.number, job.start
            if key not in planned:
                share = chance.uniform(0.0, 1.1)  # a job also starts Python and imports torch
                planned[key] = chance.choice(WAYS), share, time.monotonic() + share * usual
            way, share, moment = planned[key]
            hit_cell = job
            if way == "scancel one that waits":
                waiting = [job for job in jobs if job.state == "PENDING"]
                hit_cell = min(waiting, key=lambda job: done[job.cell], default=job)
            left = wanted.setdefault(hit_cell.cell, chance.randint(1, MOST_OF_A_CELL)) - done[hit_cell.cell]
            if time.monotonic() < moment or left <= 0:
                continue
            planned[key] = way, share, float("inf")  # this start has had its hit
            if hit(way, hit_cell, study, cluster, chance):
                done[hit_cell.cell] += 1
                hits.append({"way": way, "cell": hit_cell.cell, "kind": hit_cell.name, "share": round(share, 2)})
    return hits


def hit(way: str, job: Job, study: Study, cluster: Cluster, chance: random.Random) -> bool:
    """Whether there was anything to hit."""
    if way == "kill the submitter":
        if study.process.poll() is not None:
            return False
        study.process.send_signal(chance.choice([signal.SIGKILL, signal.SIGTERM]))
        study.process.wait()
        study.start()
    elif way.startswith("sc"):
        command = ("scontrol", "requeue") if way == "scontrol requeue" else ("scancel",)
        try:
            cluster.ask(*command, job.number)
        except subprocess.CalledProcessError:  # it has just ended
            return False
    else:
        processes = cluster.processes(job.number)
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
    unbroken: Study, cluster: Cluster, tmp_path: Path
) -> None:
    pytest.importorskip("submitit")
    wanted = unbroken.finish()
    usual = statistics.median(seconds(unbroken.folder))
    chance, hits, number = random.Random(KILLS), 0, 0
    while hits < KILLS:
        number += 1
        began = time.monotonic()
        study = Study(tmp_path / str(number), "--launcher", "slurm", "--launcher-set", "timeout_min=30")
        mine = struck(study, cluster, chance, usual, KILLS - hits)
        outcome = study.finish()
        hits += len(mine)
        found, expected = keys(measured(study.folder)), keys(measured(unbroken.folder))
        result = {
            "hits": mine,
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


def seconds(folder: Path) -> list[float]:
    """That the cells took."""
    return [json.loads(file.read_text())["seconds"] for file in (folder / "out" / "cells").glob("*.json")]


def tables(lines: list[dict[str, Any]]) -> str:
    """Way × kind of cell: hits; and for each comparison, how they were spread and what came of it."""
    hits = [one for line in lines for one in line["hits"]]
    kinds = sorted({one["kind"] for one in hits})
    shown = [f"| way | {' | '.join(kinds)} | all |", "|---|" + "---|" * (len(kinds) + 1)]
    for way in (*WAYS, "all"):
        counts = Counter(one["kind"] for one in hits if way in (one["way"], "all"))
        shown.append(f"| {way} | {' | '.join(str(counts[kind]) for kind in kinds)} | {counts.total()} |")
    names = ("lost", "doubled", "identical", "cells")
    shown += ["", f"| hits | cells hit | most on one | {' | '.join(names)} | minutes |", "|---|" + "---|" * 7]
    for line in lines:
        of = Counter(one["cell"] for one in line["hits"])
        values = [of.total(), len(of), max(of.values(), default=0), *(line[name] for name in names)]
        shown.append(f"| {' | '.join(map(str, values))} | {line['seconds'] / 60:.1f} |")
    return "\n".join(shown)


if __name__ == "__main__":
    print(tables([json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]))
