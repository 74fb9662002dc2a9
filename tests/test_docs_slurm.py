"""The section on SLURM of docs/how-to/cluster.md cannot drift: its settings are all there are, its commands run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
from archbench_plugins.launchers.slurm import SlurmSettings

from archbench.results.reading import read_results
from slurm_cluster import MISSING, running_cluster
from test_docs_cluster import SMALLEST, section


def test_every_setting_of_slurm_is_on_the_page() -> None:
    table = re.findall(r"(?m)^\| (`\w+`.*?) \|", section("SLURM"))
    assert set(re.findall(r"`(\w+)`", " ".join(table))) == set(SlurmSettings.model_fields)


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
def test_the_commands_for_slurm_run(tmp_path: Path) -> None:
    """As on the page, but on the smallest budget, and the nodes are this machine, whose GPUs are not used."""
    pytest.importorskip("submitit")
    said = {}
    with running_cluster(tmp_path / "cluster"):
        variables = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        for command in re.findall(r"(?m)^\$ (.+)$", section("SLURM") + section("Single runs")):
            words = shlex.split(command)
            if words[0] == "pip":
                continue  # this environment has it
            if words[:2] == ["archbench", "compare"]:
                words += [*SMALLEST, "--device", "cpu"]
            if words[:2] == ["archbench", "run"]:
                words += ["--profile", "smoke", "--unchecked", "--device", "cpu", "--threads", "1"]
            ended = subprocess.run(words, env=variables, cwd=tmp_path, capture_output=True, text=True, check=False)
            assert ended.returncode == 0, (command, ended.stdout, ended.stderr)
            said[words[1] if len(words) > 1 else words[0]] = ended.stdout
    assert "gpu" in said["sinfo"]
    assert "is finished" in said["status"]
    assert list(said) == ["sinfo", "compare", "status", "cancel", "run"]
    runs = read_results(tmp_path / "results")
    assert set(zip(runs.architecture, runs.seed, strict=True)) == set(product(("gpt1", "llama"), (0, 1)))
    assert runs[runs.metric == "failed"].empty
