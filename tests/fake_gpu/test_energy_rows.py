"""A whole run on a GPU whose counters a stub binds: rows say what the GPU did, the summary joules a token."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import nvml_stub


@pytest.mark.slow
def test_a_runs_rows_and_summary_have_its_energy(tmp_path: Path) -> None:
    shutil.copy(nvml_stub.__file__, tmp_path / "pynvml.py")
    options = ["--preset", "nano", "--profile", "smoke", "--device", "cuda", "--unchecked", "--out", str(tmp_path)]
    # Over the stubs 100 updates end before there is enough energy to tell of a token.
    options += ["--phases", "train", "--config", "training.steps=1000"]
    command = [sys.executable, "-m", "archbench", "run", "gpt1", *options]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    rows = pd.read_parquet(next(tmp_path.glob("*.parquet"))).set_index("metric").value
    assert rows["joules"] > 0
    assert rows["idle_watts"] == pytest.approx(nvml_stub.WATTS, rel=0.05)
    assert rows["gpu_other_processes"] == 0
    assert rows["gpu_sm_hertz_before"] == rows["gpu_sm_hertz_after"] == 1.98e9
    assert 0 < rows["joules_per_token"] < rows["joules"]
    assert "J/token" in done.stdout
    assert "100 W" in done.stdout
