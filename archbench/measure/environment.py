"""Contamination: counters before and after a phase, and the rule by which other work spoils its numbers.

Load averages and the pressure averages of Linux (PSI) are recorded, but do not decide: a benchmark raises them itself,
and so does the phase before. What decides is what happened *between* two snapshots and was not this run: CPU time on
our CPUs beyond that of our own processes, time stolen by the hypervisor, memory stalls, a container's quota or heat.

Sources: proc_stat(5), proc_loadavg(5), the kernel's accounting/psi and cgroup-v2 documents, nvidia-smi's
``--help-query-gpu``.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from archbench.measure.gpu_state import GPU, GPUState, find_gpu
from archbench.measure.machine import cpu_cgroup, query_gpu, usable_cpus

OTHER_CPU_LIMIT = 0.05
"""Other processes' share of our CPUs above which a phase is contaminated; on many CPUs it is half of one CPU."""

OTHER_CPU_SLACK = 0.05
"""Seconds allowed on top: the kernel counts the CPUs' time in ticks of 10 ms, and ours more finely."""

STOLEN_LIMIT = 0.02
"""Share of our CPUs' time that the hypervisor withheld."""

STALL_LIMIT = 0.01
"""Share of the time lost to memory stalls, a quota or heat."""

_GPU_SLOWDOWN_BITS = 0x08 | 0x20 | 0x40 | 0x80  # nvml.h: hardware, thermal by software and hardware, power brake
_GPU_SLOWDOWNS = ("sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown")


@dataclass(frozen=True)
class Environment:
    """Counters at one moment; None where the system has none.

    Attributes:
        seconds: monotonic time.
        cpus: CPUs this process may use.
        busy_seconds: time those CPUs have worked since boot, for anyone.
        stolen_seconds: time the hypervisor withheld from them.
        own_seconds: CPU time of this process and all its descendants, living or waited for.
        load: 1-minute load average.
        psi_cpu: share of the last 10 s in which some task waited for a CPU.
        memory_stall_seconds: time since boot in which some task waited for memory.
        quota_stop_seconds: time, averaged over the CPUs, in which the container's quota stopped it.
        heat_events: times the CPUs were throttled for heat.
        gpu_slow_seconds: time since the driver was loaded in which heat or power supply slowed the GPU; drivers
            since about 590.
        gpu_slow_now: whether they slow it now.
        gpu: what NVML says of the GPU, unknown without it; None: no GPU is measured.
    """

    seconds: float
    cpus: int
    busy_seconds: float
    stolen_seconds: float
    own_seconds: float
    load: float | None
    psi_cpu: float | None
    memory_stall_seconds: float | None
    quota_stop_seconds: float | None
    heat_events: int | None
    gpu_slow_seconds: float | None
    gpu_slow_now: bool | None
    gpu: GPUState | None = None


def snapshot(device: object = "cpu", *, ended: float = 0.0) -> Environment:
    """Read every counter, in a few milliseconds; a CUDA device takes calls of nvidia-smi.

    Take both snapshots in one process: own time is that of the process and its descendants.

    Args:
        device: what is measured.
        ended: CPU seconds of children that have ended since the snapshot before; only Windows does not count them.
    """
    import psutil

    cpus = usable_cpus()
    per_cpu = psutil.cpu_times(percpu=True)
    times = [per_cpu[cpu] for cpu in cpus if cpu < len(per_cpu)]
    # Guest time is part of user time, and Windows' times of interrupts and dpc are part of system time.
    idle_kinds = ("idle", "iowait", "steal", "guest", "guest_nice", "interrupt", "dpc")
    busy = sum(sum(value for kind, value in cpu._asdict().items() if kind not in idle_kinds) for cpu in times)
    pressure = _pressure("cpu")
    memory = _pressure("memory")
    on_gpu = str(device).startswith("cuda")
    return Environment(
        seconds=time.monotonic(),
        cpus=len(cpus),
        busy_seconds=busy,
        stolen_seconds=sum(getattr(cpu, "steal", 0.0) for cpu in times),
        own_seconds=_own_seconds() + (ended if sys.platform == "win32" else 0.0),
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        psi_cpu=pressure["avg10"] / 100 if pressure else None,
        memory_stall_seconds=memory["total"] * 1e-6 if memory else None,
        quota_stop_seconds=_quota_stop_seconds(len(cpus)),
        heat_events=_heat_events(cpus),
        gpu_slow_seconds=_gpu_slow_seconds(device) if on_gpu else None,
        gpu_slow_now=_gpu_slow_now(device) if on_gpu else None,
        gpu=_gpu_state(device) if on_gpu else None,
    )


def _gpu_state(device: object) -> GPUState:
    import psutil

    gpu = find_gpu(str(device))
    ours = [os.getpid(), *(process.pid for process in psutil.Process().children(recursive=True))]
    return gpu.state(ours) if isinstance(gpu, GPU) else GPUState()


def _own_seconds() -> float:
    import psutil

    total = sum(os.times()[:4])  # user and system, own and of children that were waited for
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it ended just now; its parent has its time, or will
            times = process.cpu_times()._asdict()
            total += sum(times.get(kind, 0.0) for kind in ("user", "system", "children_user", "children_system"))
    return total


def _pressure(resource: str, folder: Path = Path("/proc/pressure")) -> dict[str, float] | None:
    """The ``some`` line of a PSI file: averages in percent, total in microseconds."""
    try:
        lines = (folder / resource).read_text("utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        kind, *pairs = line.split()
        if kind == "some":
            return {name: float(value) for name, value in (pair.split("=") for pair in pairs)}
    return None


def _quota_stop_seconds(cpus: int, cgroup: Path | None = None) -> float | None:
    folder = cgroup or cpu_cgroup()
    if folder is None:
        return None
    try:
        counters = dict(line.split() for line in (folder / "cpu.stat").read_text("utf-8").splitlines())
    except (OSError, ValueError):
        return None
    if "throttled_usec" in counters:  # version 2; both are sums over the CPUs
        return int(counters["throttled_usec"]) * 1e-6 / cpus
    return int(counters["throttled_time"]) * 1e-9 / cpus if "throttled_time" in counters else None


def _heat_events(cpus: list[int], folder: Path = Path("/sys/devices/system/cpu")) -> int | None:
    counts = [
        int(path.read_text("utf-8"))
        for cpu in cpus
        for path in (folder / f"cpu{cpu}" / "thermal_throttle").glob("*_throttle_count")
    ]
    return sum(counts) if counts else None


def _gpu_slow_seconds(device: object) -> float | None:
    values = query_gpu(device, [f"clocks_event_reasons_counters.{reason}" for reason in _GPU_SLOWDOWNS])
    if values is None or None in values:
        return None
    return sum(float(value) for value in values if value is not None) * 1e-6


def _gpu_slow_now(device: object) -> bool | None:
    for field in ("clocks_event_reasons.active", "clocks_throttle_reasons.active"):  # the second up to driver 530
        values = query_gpu(device, [field])
        if values and values[0]:
            return bool(int(values[0], 16) & _GPU_SLOWDOWN_BITS)
    return None


@dataclass(frozen=True)
class Interval:
    """What happened between two snapshots, as shares of the interval (heat: a count); None: unknown."""

    seconds: float
    other_cpu_share: float
    stolen_cpu_share: float
    memory_stall_share: float | None
    quota_stop_share: float | None
    heat_events: int | None
    gpu_slow_share: float | None


def interval(before: Environment, after: Environment) -> Interval:
    """The difference of two snapshots of one process."""
    seconds = max(after.seconds - before.seconds, 1e-9)
    capacity = seconds * after.cpus
    other = (after.busy_seconds - before.busy_seconds) - (after.own_seconds - before.own_seconds)

    def share(start: float | None, end: float | None) -> float | None:
        return None if start is None or end is None else (end - start) / seconds

    heat = None if before.heat_events is None or after.heat_events is None else after.heat_events - before.heat_events
    return Interval(
        seconds=seconds,
        other_cpu_share=max(other, 0.0) / capacity,
        stolen_cpu_share=(after.stolen_seconds - before.stolen_seconds) / capacity,
        memory_stall_share=share(before.memory_stall_seconds, after.memory_stall_seconds),
        quota_stop_share=share(before.quota_stop_seconds, after.quota_stop_seconds),
        heat_events=heat,
        gpu_slow_share=share(before.gpu_slow_seconds, after.gpu_slow_seconds),
    )


def contamination(before: Environment, after: Environment) -> list[str]:
    """Why the numbers measured between two snapshots cannot be trusted; empty if they can.

    A phase is contaminated if other processes took more than :data:`OTHER_CPU_LIMIT` of our CPUs or half a CPU,
    whichever is less (plus :data:`OTHER_CPU_SLACK`), if the hypervisor took more than :data:`STOLEN_LIMIT`, if more
    than :data:`STALL_LIMIT` of the time was lost to memory stalls, a quota or a slowed GPU, if a CPU was throttled, if
    another process computed on the GPU before or after, or if its memory had errors that could not be corrected.
    """
    seen = interval(before, after)
    allowed = min(OTHER_CPU_LIMIT * after.cpus, 0.5) * seen.seconds + OTHER_CPU_SLACK
    reasons = []
    if seen.other_cpu_share * after.cpus * seen.seconds > allowed:
        reasons.append(f"other processes used {seen.other_cpu_share:.0%} of the CPUs")
    if seen.stolen_cpu_share > STOLEN_LIMIT:
        reasons.append(f"the hypervisor withheld {seen.stolen_cpu_share:.0%} of the CPUs' time")
    if (seen.memory_stall_share or 0) > STALL_LIMIT:
        reasons.append(f"tasks waited for memory {seen.memory_stall_share:.0%} of the time")
    if (seen.quota_stop_share or 0) > STALL_LIMIT:
        reasons.append(f"the container's CPU quota stopped it {seen.quota_stop_share:.0%} of the time")
    if seen.heat_events:
        reasons.append(f"the CPUs were throttled for heat {seen.heat_events} times")
    if (seen.gpu_slow_share or 0) > STALL_LIMIT:
        reasons.append(f"heat or power slowed the GPU {seen.gpu_slow_share:.0%} of the time")
    elif seen.gpu_slow_share is None and (before.gpu_slow_now or after.gpu_slow_now):
        reasons.append("heat or power slowed the GPU at the beginning or the end")
    if others := _others_on_gpu(before, after):
        one = len(others) == 1
        pids = ", ".join(map(str, sorted(others)))
        reasons.append(f"{'another process' if one else f'{len(others)} other processes'} used the GPU (PID {pids})")
    if errors := _ecc_errors(before, after):
        reasons.append(f"the GPU's memory had {errors} errors that could not be corrected")
    return reasons


def _others_on_gpu(before: Environment, after: Environment) -> set[int] | None:
    known = [state.gpu.others for state in (before, after) if state.gpu is not None and state.gpu.others is not None]
    return {pid for others in known for pid in others} if known else None


def _ecc_errors(before: Environment, after: Environment) -> int | None:
    start, end = (None if one.gpu is None else one.gpu.ecc_errors for one in (before, after))
    return None if start is None or end is None else end - start


def metrics(before: Environment, after: Environment) -> dict[str, float | None]:
    """The rows of the phase ``environment``: metric -> value."""
    seen = interval(before, after)
    others = _others_on_gpu(before, after)
    gpu: dict[str, float | None] = {}
    if after.gpu is not None:
        gpu = {
            "gpu_other_processes": None if others is None else len(others),
            "gpu_ecc_errors": _ecc_errors(before, after),
            "gpu_is_slice": None if after.gpu.mig is None else float(after.gpu.mig),
        }
    return {
        "load_before": before.load,
        "load_after": after.load,
        "psi_cpu_before": before.psi_cpu,
        "psi_cpu_after": after.psi_cpu,
        "other_cpu_share": seen.other_cpu_share,
        "stolen_cpu_share": seen.stolen_cpu_share,
        "memory_stall_share": seen.memory_stall_share,
        "quota_stop_share": seen.quota_stop_share,
        "heat_events": seen.heat_events,
        "gpu_slow_share": seen.gpu_slow_share,
        **gpu,
        "contaminated": float(bool(contamination(before, after))),
    }
