"""Facts about the machine that do not change during a run: versions, processor, limits, GPU, git revision.

This module does not import torch, since the process that starts phases uses it.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

import archbench

ROOT = Path(archbench.__file__).resolve().parent.parent


def versions() -> dict[str, str | None]:
    """Versions in the columns of the results: archbench, torch, triton, python, and the git revision."""
    return {
        "archbench_version": archbench.__version__,
        "torch_version": _version("torch"),
        "triton_version": _version("triton") or _version("triton-rocm"),  # AMD's builds of torch bring their own
        "python_version": platform.python_version(),
        "git_revision": git_revision(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_revision(root: Path = ROOT) -> str | None:
    """Commit of the archbench checkout that is running, with ``-dirty`` if files differ from it.

    None if archbench does not run from a checkout: a repository around the virtual environment is another project.
    """
    if not (root / ".git").exists():
        return None
    commit = _output("git", "-C", str(root), "rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _output("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no")
    return f"{commit}-dirty" if changes else commit


def git_remote(root: Path = ROOT) -> str | None:
    """URL that the checkout at ``root`` was cloned from; None if there is none."""
    return _output("git", "-C", str(root), "remote", "get-url", "origin")


def revision_of(file: Path) -> str | None:
    """Commit of the repository that has ``file``, with ``-dirty`` if its files differ from it.

    None if none has it: a repository around a virtual environment does not know what is installed there.
    """
    git = ("git", "-C", str(file.parent))
    if _output(*git, "ls-files", "--error-unmatch", file.name) is None:
        return None
    top = _output(*git, "rev-parse", "--show-toplevel")
    return None if top is None else git_revision(Path(top))


def device_name(device: object) -> str:
    """Model of the CPU or GPU, as its maker spells it."""
    name = str(device)
    if not name.startswith("cuda"):
        return cpu_model()
    import torch

    return torch.cuda.get_device_name(torch.device(name))


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's model name; the architecture (``arm64``) where the system does not say."""
    with contextlib.suppress(OSError):
        for line in cpuinfo.read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if sys.platform == "darwin" and (brand := _output("sysctl", "-n", "machdep.cpu.brand_string")):
        return brand
    if sys.platform == "win32":
        import winreg

        with (
            contextlib.suppress(OSError),
            winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"HARDWARE\DESCRIPTION\System\CentralProcessor\0") as key,
        ):
            return str(winreg.QueryValueEx(key, "ProcessorNameString")[0]).strip()
    return platform.processor() or platform.machine() or "unknown"


def usable_cpus() -> list[int]:
    """The logical CPUs that this process may run on."""
    if sys.platform == "linux":
        return sorted(os.sched_getaffinity(0))
    if sys.platform == "win32":
        import psutil

        return list(psutil.Process().cpu_affinity())
    return list(range(os.cpu_count() or 1))


def cpu_quota(cgroup: Path | None = None) -> float | None:
    """CPUs that the container's quota allows, the smallest of its own and its parents' limits; None: no limit."""
    folder = cgroup or cpu_cgroup()
    limits = []
    for level in [folder, *folder.parents] if folder else []:
        quota = _quota(level)
        if quota is not None:
            limits.append(quota)
        if level.name == "cgroup":
            break
    return min(limits, default=None)


def _quota(level: Path) -> float | None:
    try:
        if (level / "cpu.max").exists():  # version 2: "max 100000" or "200000 100000"
            quota, period = (level / "cpu.max").read_text("utf-8").split()
        else:
            quota = (level / "cpu.cfs_quota_us").read_text("utf-8").strip()
            period = (level / "cpu.cfs_period_us").read_text("utf-8").strip()
    except (OSError, ValueError):
        return None
    return None if quota in ("max", "-1") else int(quota) / int(period)


def cpu_cgroup(membership: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> Path | None:
    """Folder of this process's CPU control group, version 1 or 2 (cgroups(7)); None where there is none."""
    try:
        lines = [line.split(":", 2) for line in membership.read_text("utf-8").splitlines()]
    except OSError:
        return None
    for _, controllers, path in lines:
        if "cpu" in controllers.split(","):
            candidates = [root / "cpu" / path.lstrip("/"), root / "cpu,cpuacct" / path.lstrip("/"), root / "cpu"]
            return next((folder for folder in candidates if (folder / "cpu.stat").exists()), None)
    for _, controllers, path in lines:
        if controllers == "":
            candidates = [root / path.lstrip("/"), root]  # inside a container the path may be the host's
            return next((folder for folder in candidates if (folder / "cpu.stat").exists()), None)
    return None


@cache
def memory_bytes(device: str = "cpu") -> int:
    """Bytes of memory for this process: the GPU's, or the machine's within the limits of its control group and of
    ``ulimit -v``; swap does not count."""
    import psutil

    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.get_device_properties(device).total_memory)
    limits = [psutil.virtual_memory().total, *_memory_limits()]
    if hasattr(psutil, "RLIMIT_AS"):
        limits += [limit for limit in psutil.Process().rlimit(psutil.RLIMIT_AS)[:1] if limit > 0]
    return int(min(limits))


def memory_kills(membership: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """How many processes of this process's control group the kernel has killed because memory ran out; 0 if unknown.

    Lines ``oom_kill`` of version 1's ``memory.oom_control`` and version 2's ``memory.events``.
    """
    for level in _memory_groups(membership, root):
        for name in ("memory.events", "memory.oom_control"):
            with contextlib.suppress(OSError, ValueError, KeyError):
                lines = (level / name).read_text("utf-8").splitlines()
                return int(dict(line.split() for line in lines)["oom_kill"])
    return 0


def _memory_limits(membership: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """Limits of this process's control groups, version 2, or version 1's own one."""
    for level in _memory_groups(membership, root):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with contextlib.suppress(OSError, ValueError):
                yield int((level / name).read_text("utf-8"))


def _memory_groups(membership: Path, root: Path) -> Iterator[Path]:
    """Folders of this process's control groups of memory and, after each, of those around it."""
    try:
        lines = [line.split(":", 2) for line in membership.read_text("utf-8").splitlines()]
    except OSError:
        return
    for _, controllers, path in lines:
        if controllers not in ("", "memory"):
            continue
        top = root / controllers
        own = top / path.strip().lstrip("/")
        for level in [own, *own.parents]:
            yield level
            if level == top:
                break


def describe(device: object = "cpu") -> dict[str, str | int | float | None]:
    """All facts about the machine, for people and for the JSON beside the results.

    Keys end in their unit, if there is one. What cannot be read is None.
    """
    import numpy as np
    import psutil

    frequency = None
    with contextlib.suppress(AttributeError, OSError, RuntimeError):  # no virtual Mac tells it
        frequency = psutil.cpu_freq()
    facts: dict[str, str | int | float | None] = {
        **versions(),
        "numpy_version": np.__version__,
        "system": platform.platform(),
        "cpu": cpu_model(),
        "cpus_in_machine": os.cpu_count(),
        "cpus_usable": len(usable_cpus()),
        "cpu_quota": cpu_quota(),
        "cpu_hertz": round(frequency.current * 1e6) if frequency else None,
        "memory_bytes": psutil.virtual_memory().total,
    }
    if str(device).startswith("cuda"):
        facts |= gpu_facts(device)
    return facts


_GPU_FACTS = {
    "gpu": "name",
    "gpu_driver": "driver_version",
    "gpu_sm_clock_megahertz": "clocks.sm",
    "gpu_sm_clock_max_megahertz": "clocks.max.sm",
    "gpu_memory_clock_megahertz": "clocks.mem",
    "gpu_power_limit_watts": "power.limit",
}


def gpu_facts(device: object) -> dict[str, str | float | None]:
    """Name, driver, clocks and power limit as ``nvidia-smi`` reports them; None where it does not."""
    values = query_gpu(device, list(_GPU_FACTS.values())) or [None] * len(_GPU_FACTS)
    return {name: _number(value) for name, value in zip(_GPU_FACTS, values, strict=True)}


def driver_version(device: object) -> str | None:
    """Of the NVIDIA driver, of the device ``cuda`` or ``cuda:N``; None for others, or where nvidia-smi does not say."""
    values = query_gpu(device, [_GPU_FACTS["gpu_driver"]]) if str(device).startswith("cuda") else None
    return values[0] if values else None


def _number(text: str | None) -> str | float | None:
    return float(text) if text and re.fullmatch(r"\d+(\.\d+)?", text) else text


def query_gpu(device: object, fields: list[str]) -> list[str | None] | None:
    """Fields of ``nvidia-smi --query-gpu`` for one GPU; None without nvidia-smi, or if it lacks one of them."""
    index = gpu_id(str(device), os.environ)
    output = _output("nvidia-smi", "-i", index, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits")
    if output is None:
        return None
    values = [value.strip() for value in output.splitlines()[0].split(",")]
    if len(values) != len(fields):
        return None
    return [None if value.startswith("[") else value for value in values]  # "[N/A]", "[Not Supported]"


def gpu_id(device: str, environment: Mapping[str, str]) -> str:
    """What nvidia-smi calls torch's ``cuda:N``: CUDA_VISIBLE_DEVICES renumbers only for CUDA programs."""
    number = int(device.partition(":")[2] or 0)
    visible = [part.strip() for part in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    return visible[number] if number < len(visible) else str(number)


def _output(*command: str) -> str | None:
    """What a program prints; None if it is missing or fails, since no fact here is worth failing a run."""
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
