"""What SLURM enforces while a study runs, for real: memory, by cgroups, and the number of jobs.

Limits of a user's jobs need slurmdbd with its database; those of the controller, ``MaxJobCount``, do not.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from archbench_plugins.launchers.slurm import Slurm, SlurmSettings

import slurm_orders
from archbench.launch.launcher import FullError, Order
from slurm_cluster import MISSING, NO_MEMORY_LIMIT, Cluster, running_cluster
from small_runs import with_small_corpus

pytest.importorskip("submitit")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")]
pytestmark.append(pytest.mark.skipif(bool(NO_MEMORY_LIMIT), reason=NO_MEMORY_LIMIT))

LEFT = Path(__file__).parent / "golden" / "left.py"
COMPARE = (
    "compare", "--profile", "smoke", "--corpus", "small.txt", "--threads", "1", "--device", "cpu", "--set", "n_layer=1",
    "--set", "context_length=32", "--config", "checked=false", "--config", "training.checkpoint_every=1000",
    "--match", "tokens", "--seeds", "2", "--no-tuning", "--sweeps", "0", "--contexts", "none", "--out", "out",
    "--launcher", "slurm",
)  # fmt: skip
MOST_JOBS = 3  # at which SLURM refuses the next: one less is taken


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Its controller knows two jobs at a time, the ended ones of the last seconds included, and no arrays."""
    more = f"MaxJobCount={MOST_JOBS}\nMinJobAge=5\nMaxArraySize=1\n"
    with running_cluster(tmp_path_factory.mktemp("slurm") / "c", more=more, cgroups=True) as cluster:
        yield cluster


def plugin(folder: Path, name: str, in_train_step: str) -> tuple[str, str]:
    """Write an architecture that does something more in each update; returns the option that loads it."""
    source, hook = LEFT.read_text().replace("golden-left", name), "def train_step(state, batch):\n"
    assert hook in source
    file = folder / f"{name}.py"
    more = source.replace(hook, hook + in_train_step)
    file.write_text(f"import os\nimport time\n\n{more}\nHELD = []\n")
    return "--plugin", file.name


def started(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    script = str(Path(sys.executable).with_name("archbench"))
    return subprocess.Popen([script, *COMPARE, *arguments], cwd=folder, stdin=-3, stdout=-1, stderr=-2, text=True)


def cells(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "out" / "comparison.json").read_text())["cells"]


def test_a_job_beyond_its_memory_is_lost_for_good(cluster: Cluster, tmp_path: Path) -> None:
    """The kernel kills its process: the limit is a cgroup's."""
    with Slurm(SlurmSettings(mem_gb=0.5), tmp_path, None) as launcher:
        name = launcher.submit(Order("a.1", "hungry", slurm_orders.hungry, 2000))
        while (state := launcher.states([name])[name]).phase in ("queued", "running"):
            launcher.wait(1.0)
    assert (state.phase, state.again) == ("lost", False)
    assert "memory" in (state.cause or "")


def test_a_run_beyond_its_memory_is_left_out_and_more_jobs_than_the_controller_takes_wait(
    cluster: Cluster, tmp_path: Path
) -> None:
    with_small_corpus(tmp_path)
    greedy = plugin(tmp_path, "greedy", "    HELD.extend(bytearray(b'1') * (1 << 20) for _ in range(4000))\n")
    process = started(tmp_path, "gpt1", "gpt2", "greedy", *greedy, "--tokens", "2048", "--launcher-set", "mem_gb=1.5")
    said = process.communicate()[0]
    assert process.returncode in (0, 1), said
    assert re.search(r"greedy takes no part: .*it ran out of memory.* 1.5 GiB", said)
    assert "MaxJobCount limit" in (cluster.folder / "slurmctld.log").read_text()
    failed = [cell for cell in cells(tmp_path) if cell["outcome"] != "ok"]
    assert [(cell["architecture"], cell["stage"]) for cell in failed] == [("greedy", "pilot")]
    assert not any(cell.get("attempts") for cell in cells(tmp_path))
    jobs = list((tmp_path / "out" / "slurm").glob("*_log.out"))
    assert len(jobs) == len(cells(tmp_path)) == 3 + 4  # pilots and seeds: nothing was queued again


def test_where_others_fill_the_controller_a_study_begins_and_its_runs_wait(cluster: Cluster, tmp_path: Path) -> None:
    """sbatch itself tries for two minutes before it gives up."""
    others = [
        cluster.ask("sbatch", "--parsable", "--mem=100M", "--output=/dev/null", "--wrap=sleep 900").strip()
        for _ in range(MOST_JOBS - 1)
    ]
    with Slurm(SlurmSettings(mem_gb=0.5), tmp_path, None) as launcher:
        with pytest.raises(FullError, match="temporarily un"):
            launcher.submit(Order("a.1", "waits", slurm_orders.double, 1))
        assert launcher.slots() == 0
        cluster.ask("scancel", *others)
        name = launcher.submit(Order("a.1", "waits", slurm_orders.double, 1))
        while (state := launcher.states([name])[name]).phase in ("queued", "running"):
            launcher.wait(1.0)
    assert state.result == 2
