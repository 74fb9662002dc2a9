"""What the machine is: names, limits and revisions are read from where the system keeps them, never guessed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from archbench.measure.machine import (
    cpu_cgroup,
    cpu_model,
    cpu_quota,
    describe,
    git_revision,
    gpu_id,
    memory_kills,
    usable_cpus,
    versions,
)
from archbench.results.schema import COLUMNS


def test_the_versions_are_columns_of_the_table() -> None:
    found = versions()
    assert set(found) <= {column.name for column in COLUMNS}
    assert all(found[name] for name in ("archbench_version", "torch_version", "python_version"))


def test_this_machine_is_described_in_base_units() -> None:
    facts = describe()
    assert facts["cpus_usable"] == len(usable_cpus()) >= 1
    assert isinstance(facts["memory_bytes"], int)
    assert facts["memory_bytes"] > 10**8
    assert facts["cpu"]


def test_the_cpu_is_called_what_its_maker_calls_it(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Fast CPU @ 3 GHz\nflags\t: fpu\n")
    assert cpu_model(tmp_path / "cpuinfo") == "Fast CPU @ 3 GHz"
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nFeatures\t: asimd\n")
    assert cpu_model(tmp_path / "cpuinfo") != ""


def test_a_containers_cpu_limit_is_the_smallest_above_it(tmp_path: Path) -> None:
    leaf = tmp_path / "cgroup" / "pod" / "container"
    leaf.mkdir(parents=True)
    (leaf / "cpu.max").write_text("max 100000\n")
    assert cpu_quota(leaf) is None
    (leaf.parent / "cpu.max").write_text("150000 100000\n")
    assert cpu_quota(leaf) == 1.5


def test_version_1_control_groups_are_read_too(tmp_path: Path) -> None:
    group = tmp_path / "cgroup" / "cpu,cpuacct" / "job"
    group.mkdir(parents=True)
    (group / "cpu.stat").write_text("nr_throttled 0\nthrottled_time 0\n")
    (group / "cpu.cfs_quota_us").write_text("50000\n")
    (group / "cpu.cfs_period_us").write_text("100000\n")
    membership = tmp_path / "membership"
    membership.write_text("5:memory:/job\n2:cpu,cpuacct:/job\n0::/\n")
    assert cpu_cgroup(membership, tmp_path / "cgroup") == group
    assert cpu_quota(group) == 0.5


@pytest.mark.parametrize(
    ("line", "file", "content"),
    [
        ("5:memory:/job", "memory/job/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"),
        ("0::/job", "job/memory.events", "low 0\nhigh 0\nmax 12\noom 3\noom_kill 3\noom_group_kill 0\n"),
    ],
)
def test_processes_that_the_kernel_killed_for_memory_are_counted(
    line: str, file: str, content: str, tmp_path: Path
) -> None:
    membership = tmp_path / "membership"
    membership.write_text(f"2:cpu:/other\n{line}\n")
    assert memory_kills(membership, tmp_path / "cgroup") == 0
    (tmp_path / "cgroup" / file).parent.mkdir(parents=True)
    (tmp_path / "cgroup" / file).write_text(content)
    assert memory_kills(membership, tmp_path / "cgroup") == 3


def test_nvidia_smi_is_asked_for_the_gpu_that_torch_uses() -> None:
    assert gpu_id("cuda", {}) == "0"
    assert gpu_id("cuda:1", {"CUDA_VISIBLE_DEVICES": "3,GPU-1234"}) == "GPU-1234"


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=tester", "-c", "user.email=tester@example.org"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_a_checkout_says_its_commit_and_whether_it_was_changed(tmp_path: Path) -> None:
    try:
        git(tmp_path, "init")
    except FileNotFoundError:
        pytest.skip("git is not installed")
    (tmp_path / "file").write_text("one")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-m", "first")
    clean = git_revision(tmp_path)
    assert clean is not None
    assert len(clean) == 40
    (tmp_path / "file").write_text("two")
    assert git_revision(tmp_path) == f"{clean}-dirty"


def test_a_repository_around_an_installed_archbench_is_not_its_revision(tmp_path: Path) -> None:
    (tmp_path / "venv").mkdir()
    (tmp_path / ".git").mkdir()
    assert git_revision(tmp_path / "venv") is None
