"""Contamination: what others did between two snapshots is flagged, what the run itself did is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from archbench.measure.environment import Environment, contamination, interval, metrics, snapshot
from archbench.measure.machine import driver_version
from archbench.results.metrics import METRICS

BEFORE = Environment(
    seconds=1000.0,
    cpus=2,
    busy_seconds=500.0,
    stolen_seconds=1.0,
    own_seconds=20.0,
    load=0.5,
    psi_cpu=0.0,
    memory_stall_seconds=0.0,
    quota_stop_seconds=0.0,
    heat_events=7,
    gpu_slow_seconds=None,
    gpu_slow_now=None,
)


def after(seconds: float = 100.0, **changes: object) -> Environment:
    """A snapshot ``seconds`` later; numbers are added to those before."""
    added = {name: getattr(BEFORE, name) + value for name, value in changes.items() if name not in ("load", "psi_cpu")}
    set_to = {name: value for name, value in changes.items() if name in ("load", "psi_cpu")}
    return replace(BEFORE, seconds=BEFORE.seconds + seconds, **added, **set_to)  # type: ignore[arg-type]


def test_a_run_that_keeps_every_cpu_busy_itself_is_clean() -> None:
    # Its own work raises load and pressure as much as anyone's would; two ticks of the kernel's are not ours.
    assert contamination(BEFORE, after(busy_seconds=195.0, own_seconds=194.98, load=4.0, psi_cpu=0.6)) == []


def test_others_work_on_our_cpus_is_flagged_from_a_twentieth_on() -> None:
    assert contamination(BEFORE, after(busy_seconds=100.0 + 9.0, own_seconds=100.0)) == []
    reasons = contamination(BEFORE, after(busy_seconds=100.0 + 20.0, own_seconds=100.0))
    assert reasons == ["other processes used 10% of the CPUs"]


def test_on_many_cpus_one_busy_stranger_is_enough() -> None:
    many = replace(BEFORE, cpus=64)
    later = replace(after(busy_seconds=6000.0 + 100.0, own_seconds=6000.0), cpus=64)
    assert contamination(many, later) == ["other processes used 2% of the CPUs"]


def test_clock_ticks_of_a_short_phase_are_no_contamination() -> None:
    assert contamination(BEFORE, after(seconds=0.1, busy_seconds=0.15, own_seconds=0.12)) == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"stolen_seconds": 10.0}, "the hypervisor withheld 5% of the CPUs' time"),
        ({"memory_stall_seconds": 5.0}, "tasks waited for memory 5% of the time"),
        ({"quota_stop_seconds": 30.0}, "the container's CPU quota stopped it 30% of the time"),
        ({"heat_events": 2}, "the CPUs were throttled for heat 2 times"),
    ],
)
def test_every_other_disturbance_is_named(changes: dict[str, float], reason: str) -> None:
    assert contamination(BEFORE, after(**changes)) == [reason]


def test_a_hot_gpu_is_named_from_its_counters_or_else_from_its_state() -> None:
    start, end = replace(BEFORE, gpu_slow_seconds=5.0), replace(after(), gpu_slow_seconds=15.0)
    assert contamination(start, end) == ["heat or power slowed the GPU 10% of the time"]
    assert contamination(BEFORE, replace(after(), gpu_slow_now=True)) == [
        "heat or power slowed the GPU at the beginning or the end"
    ]


def test_what_the_system_does_not_tell_is_no_reason() -> None:
    silent = {"memory_stall_seconds": None, "quota_stop_seconds": None, "heat_events": None, "load": None}
    assert contamination(replace(BEFORE, **silent), replace(after(), **silent)) == []  # type: ignore[arg-type]


BURN = "import time\nend = time.time() + {seconds}\nwhile time.time() < end: pass"


def test_a_stranger_burning_cpu_is_seen_as_other_and_flagged() -> None:
    # Started by a process that ends at once, so that it is nobody's child here, as a stranger's process would be.
    burn = BURN.format(seconds=20)
    launch = f"""
from subprocess import DEVNULL, Popen
import sys
print(Popen([sys.executable, "-c", {burn!r}], stdout=DEVNULL, stderr=DEVNULL).pid)
"""
    done = subprocess.run([sys.executable, "-c", launch], capture_output=True, text=True, check=True)
    stranger = int(done.stdout)
    try:
        before = snapshot()
        time.sleep(1.5)
        end = snapshot()
    finally:
        os.kill(stranger, signal.SIGKILL)
    assert interval(before, end).other_cpu_share * end.cpus > 0.1, "at least a tenth of a CPU on a machine however busy"
    assert any(reason.startswith("other processes used") for reason in contamination(before, end))


def test_what_this_process_and_its_children_burn_is_their_own() -> None:
    before = snapshot()
    start = time.process_time()
    while time.process_time() - start < 0.5:
        pass
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.5: pass"], check=True)
    living = subprocess.Popen([sys.executable, "-c", BURN.format(seconds=30)])
    try:
        time.sleep(1.0)
        own = snapshot().own_seconds - before.own_seconds
    finally:
        living.kill()
        living.wait()
    # 0.5 here, 0.5 in the child that ended, and what the living one got of a second on a machine however busy.
    assert 1.05 < own < 3.0


def test_a_snapshot_costs_little_beside_a_phase() -> None:
    snapshot()
    start = time.process_time()
    for _ in range(10):
        snapshot()
    assert (time.process_time() - start) / 10 < 0.05


def test_every_environment_row_is_in_the_dictionary() -> None:
    known = {metric.metric for metric in METRICS if metric.phase == "environment"}
    assert set(metrics(BEFORE, after())) <= known


def test_a_snapshot_needs_no_torch() -> None:
    code = "import sys; from archbench.measure.environment import snapshot; snapshot(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_gpus_counters_come_from_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        "clocks_event_reasons.active": "0x0000000000000040",
        "clocks_event_reasons_counters.sw_thermal_slowdown,clocks_event_reasons_counters.hw_thermal_slowdown,"
        "clocks_event_reasons_counters.hw_power_brake_slowdown": "1000000, 500000, 0",
    }
    _fake_nvidia_smi(tmp_path, monkeypatch, answers)
    reading = snapshot("cuda:0")
    assert (reading.gpu_slow_now, reading.gpu_slow_seconds) == (True, 1.5)


def test_an_older_driver_without_counters_still_tells_its_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fake_nvidia_smi(tmp_path, monkeypatch, {"clocks_throttle_reasons.active": "0x0000000000000004"})
    reading = snapshot("cuda")
    assert (reading.gpu_slow_now, reading.gpu_slow_seconds) == (False, None), "a power cap at full load is no fault"


def test_the_driver_is_that_of_the_gpu_or_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_nvidia_smi(tmp_path, monkeypatch, {"driver_version": "570.86.15"})
    assert [driver_version(device) for device in ("cuda", "cuda:1", "cpu")] == ["570.86.15", "570.86.15", None]
    _fake_nvidia_smi(tmp_path, monkeypatch, {})
    assert driver_version("cuda") is None


def _fake_nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, answers: dict[str, str]) -> None:
    """A program of that name that answers these queries and fails on others, as nvidia-smi does on unknown fields."""
    cases = "\n".join(f"  *--query-gpu={fields}' '*) echo '{answer}'; exit 0;;" for fields, answer in answers.items())
    program = folder / "nvidia-smi"
    program.write_text(f'#!/bin/sh\ncase "$*" in\n{cases}\nesac\nexit 2\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
