"""``archbench doctor`` measures this machine: peaks, bandwidth and the noise of two equal things."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from archbench.measure import peaks
from installations import RunCLI


def test_doctor_measures_peaks_and_noise_and_says_what_is_installed(
    cli: RunCLI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also beside a plugin that ends the process that imports it."""
    (tmp_path / "exits.py").write_text("import os\nos._exit(0)\n")
    monkeypatch.setenv("ARCHBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(peaks, "last_level_cache_bytes", lambda device: 2**20)  # of a server's, buffers are gigabytes
    done = cli("doctor", "--json", "--device", "cpu", "--plugin", tmp_path / "exits.py")
    assert done.returncode == 0, done.stderr
    facts = [json.loads(line) for line in done.stdout.splitlines()]
    (machine,) = (fact for fact in facts if fact["kind"] == "environment")
    assert machine["torch_version"]
    assert machine["cpus_usable"] >= 1
    measured = {fact["what"]: fact for fact in facts if fact["kind"] == "peak"}
    assert measured["matrix product, float32"]["measured"] > 1e9
    assert measured["memory bandwidth"]["measured"] > 1e8
    assert peaks.known_bandwidth("cpu") == measured["memory bandwidth"]["measured"], "later runs know it"
    assert (
        measured["matrix product, float32"]["published"] is None
    )  # no data sheet gives a CPU's in this clock and load
    (noise,) = (fact for fact in facts if fact["kind"] == "noise")
    assert noise["low"] <= noise["median_low"] <= noise["median"] <= noise["median_high"] <= noise["high"]
    attention = {fact["backend"]: fact for fact in facts if fact["kind"] == "attention"}
    assert attention["triton"]["why_not_inference"].endswith("runs only on NVIDIA and AMD GPUs, but q is on cpu")
    assert attention["flex"]["why_not_training"]
    assert [name for name in attention if attention[name]["automatic"]] == ["sdpa"]
    plugins = {fact["name"]: fact for fact in facts if fact["kind"] == "plugin"}
    assert "gpt1" in plugins
    assert [name for name in plugins if name.endswith("exits.py")]
    assert {fact["package"] for fact in facts if fact["kind"] == "extra"} >= {"datasets", "vl-convert-python"}


def test_a_device_that_is_not_there_is_one_paragraph(cli: RunCLI) -> None:
    done = cli("doctor", "--device", "cuda:99")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (5, "", 1)
    assert "cuda:99" in done.stderr
