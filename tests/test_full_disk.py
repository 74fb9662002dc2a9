"""A disk that fills up at any write of a command: exit code 7, the file named, nothing half written, all of it resumed.

Every run tries a handful of writes; the slow tests try as many as ARCHBENCH_DISK_WRITES says, of a run's all.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
import subprocess
from typing import Any

import pandas as pd
import pytest

import archbench
from forked_children import ForkedCommand
from full_disk import FullDisk
from small_runs import UNCHECKED, losses, with_small_corpus

WRITES = int(os.environ.get("ARCHBENCH_DISK_WRITES", "40"))
"""Writes of each command that the slow tests refuse; all of them if it has fewer."""

RUN = ("run", "gpt1", *UNCHECKED, "--tokenizer", "bpe:300", "--steps", "4")


def scores(frame: pd.DataFrame) -> list[Any]:
    """What has to be the same to the last bit: losses, scores by split and by position."""
    scored = frame[frame.phase.isin(["quality", "positions"]) & ~frame.metric.str.contains("memory|seconds")]
    return [losses(frame), scored.metric.to_list(), scored.value.to_list()]


class Disk:
    """Commands in a folder on a disk that can be full, with archbench's cache and temporary files on it."""

    def __init__(self, disk: FullDisk) -> None:
        self.disk = disk
        with_small_corpus(disk.folder)
        self._env = {
            **disk.environment,
            "ARCHBENCH_CACHE": str(disk.folder / "cache"),
            "TMPDIR": str(disk.folder / "tmp"),
        }
        self.clear()

    def clear(self) -> None:
        for name in ("cache", "tmp", "results", "study"):
            shutil.rmtree(self.disk.folder / name, ignore_errors=True)
        (self.disk.folder / "tmp").mkdir()

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return ForkedCommand(*arguments, cwd=self.disk.folder, env=self._env).finished()

    def refused(self, command: tuple[str, ...], n: int, number: int) -> subprocess.CompletedProcess[str]:
        """The command when its n-th write fails; then the disk has room again."""
        self.clear()
        self.disk.full_at(n, number)
        done = self.command(*command)
        self.disk.empty()
        place = f"write {n}: {done.stderr}"
        assert "Traceback" not in done.stderr, place
        if done.returncode:
            assert done.returncode == 7, place
            assert len(re.findall("^Error", done.stderr, re.MULTILINE)) == 1, place
            assert str(self.disk.folder) in done.stderr or "results" in done.stderr, place
        return done


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Disk:
    return Disk(FullDisk(tmp_path_factory.mktemp("disk"), tmp_path_factory.mktemp("kept")))


@pytest.fixture(scope="module")
def unbroken(disk: Disk) -> tuple[int, list[Any]]:
    """Writes of a whole run, and its scores."""
    disk.clear()
    disk.disk.empty()
    done = disk.command(*RUN)
    assert done.returncode == 0, done.stderr
    return disk.disk.count, scores(archbench.read_results(disk.disk.folder / "results"))


def resumed(disk: Disk, done: subprocess.CompletedProcess[str]) -> list[Any]:
    """The scores after the command that the error names, or after a new run if none had begun."""
    printed = re.search(r"archbench (run \S+ --resume \S+ --out \S+)", done.stderr)
    again = disk.command(*(RUN if printed is None else [*shlex.split(printed[1].rstrip(".")), "--quiet"]))
    assert again.returncode == 0, f"{done.stderr}\nthen {again.stderr}"
    frame = archbench.read_results(disk.disk.folder / "results")
    assert set(frame.status) == {"ok"}
    return scores(frame)


def spread(total: int, count: int) -> list[int]:
    """Numbers of writes from the first to the last."""
    return sorted({1 + round(part * (total - 1) / max(1, count - 1)) for part in range(min(count, total))})


def test_a_run_whose_disk_fills_up_is_resumed_to_the_same_scores(disk: Disk, unbroken: tuple[int, list[Any]]) -> None:
    total, expected = unbroken
    for n in spread(total, 4)[1:3]:  # amid training, and amid the phases after it
        done = disk.refused(RUN, n, errno.ENOSPC)
        assert done.returncode == 7
        assert resumed(disk, done) == expected, f"write {n} of {total}"


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_run_is_resumed_whichever_write_was_refused(disk: Disk, unbroken: tuple[int, list[Any]], number: int) -> None:
    total, expected = unbroken
    wrong = []
    for n in spread(total, WRITES):
        try:
            done = disk.refused(RUN, n, number)
            assert (resumed(disk, done) if done.returncode else expected) == expected
        except (AssertionError, OSError) as error:
            wrong.append(f"write {n} of {total}: {error}")
    assert wrong == []
