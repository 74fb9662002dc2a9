"""A GPU that others use is noticed, what NVML says of it is in the rows; without NVML they are null, with a reason."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

import pytest

import nvml_stub
from archbench.measure.environment import Environment, contamination, metrics, snapshot
from archbench.measure.gpu_state import GPU, GPUState, find_gpu


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> nvml_stub.State:
    state = nvml_stub.State()
    monkeypatch.setattr(nvml_stub, "GPU", state)
    monkeypatch.setitem(sys.modules, "pynvml", nvml_stub)
    monkeypatch.setenv("PATH", "")  # no nvidia-smi
    return state


def clean(before: Environment, after: Environment) -> list[str]:
    """Reasons without those of this machine's CPUs."""
    return [reason for reason in contamination(before, after) if "GPU" in reason]


def test_a_state_is_in_base_units_and_what_a_gpu_does_not_support_is_unknown(gpu: nvml_stub.State) -> None:
    found = find_gpu("cuda", {})
    assert isinstance(found, GPU)
    assert found.state() == GPUState((), 1.98e9, 2.619e9, 71.5, 33, 4, 0, False)
    gpu.pids = gpu.ecc = gpu.reasons = None
    assert found.state() == GPUState(None, 1.98e9, 2.619e9, 71.5, 33, None, None, False)


def test_visible_devices_choose_the_gpu_and_a_slice_has_no_energy_of_its_own(gpu: nvml_stub.State) -> None:
    second = find_gpu("cuda:1", {"CUDA_VISIBLE_DEVICES": "1,GPU-7f"})
    assert isinstance(second, GPU)
    assert gpu.handles == ["GPU-7f"]
    gpu.millijoules = 4_500
    assert second.joules() == 4.5

    sliced = find_gpu("cuda", {"CUDA_VISIBLE_DEVICES": "MIG-7f"})
    assert isinstance(sliced, GPU)
    assert sliced.state().mig
    assert sliced.joules() is None
    assert "MIG" in sliced.uncounted


def test_why_a_gpu_cannot_be_watched_is_said() -> None:
    without = find_gpu("cuda", {}, module="a_module_that_does_not_exist")
    assert isinstance(without, str)
    assert "nvidia-ml-py" in without
    other = find_gpu("cuda:7", {}, module="nvml_stub")
    assert isinstance(other, str)
    assert "Invalid Argument" in other


def test_another_process_on_the_gpu_contaminates_and_our_own_does_not(gpu: nvml_stub.State) -> None:
    gpu.pids = [os.getpid()]
    before = snapshot("cuda:0")
    assert clean(before, before) == []
    assert metrics(before, before)["gpu_other_processes"] == 0
    gpu.pids = [4242, os.getpid()]
    after = snapshot("cuda:0")
    assert clean(before, after) == ["another process used the GPU (PID 4242)"]
    assert metrics(after, before)["gpu_other_processes"] == 1
    assert metrics(before, after)["contaminated"] == 1


def test_errors_of_the_gpus_memory_contaminate_and_old_ones_do_not(gpu: nvml_stub.State) -> None:
    gpu.ecc = 2
    before = snapshot("cuda:0")
    assert clean(before, before) == []
    gpu.ecc = 3
    after = snapshot("cuda:0")
    assert clean(before, after) == ["the GPU's memory had 1 errors that could not be corrected"]
    assert metrics(before, after)["gpu_ecc_errors"] == 1


def test_what_nobody_tells_is_null_and_a_cpu_has_no_such_rows() -> None:
    here = snapshot("cpu")
    assert not [name for name in metrics(here, here) if name.startswith("gpu_") and name != "gpu_slow_share"]
    unknown = replace(here, gpu=GPUState())
    found = metrics(unknown, unknown)
    assert [found[name] for name in ("gpu_other_processes", "gpu_ecc_errors", "gpu_is_slice")] == [None] * 3
    assert clean(unknown, unknown) == []
