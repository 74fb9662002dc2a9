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
from collections.abc import Callable
from pathlib import Path
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
            assert re.search(rf"Error: .*({self.disk.folder}|results|study|page|summary).*: ", done.stderr), place
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
    shutil.copytree(disk.disk.folder / "results", disk.disk.folder / "source")  # for the report
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


@pytest.mark.slow
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


# Studies, reports and the rest: the same command again finishes what was begun


STUDY = ("--corpus", "small.txt", "--profile", "smoke", "--out", "study", "--quiet", "--jobs", "1", "--threads", "1")
TINY = ("--config", "checked=false", "--set", "n_layer=1", "--set", "context_length=32")
STUDIES: dict[str, tuple[str, ...]] = {
    "probe": (
        "probe", "gpt1", "--parameters", "0", "--set", "n_layer=1", "--updates", "4", "--examples", "64", "--seeds",
        "1", "--jobs", "1", "--task", "state-parity", "--learning-rate", "0.01", "--unchecked", "--out", "study",
        "--quiet",
    ),
    "compare": (
        "compare", "gpt1", "llama", *STUDY, *TINY, "--match", "tokens", "--tokens", "1024", "--seeds", "2",
        "--no-tuning", "--sweeps", "0", "--contexts", "none",
    ),
    "tune": ("tune", "gpt1", "llama", *STUDY, *TINY, "--match", "tokens", "--tokens", "1024"),
    "scale": (
        "scale", "gpt1", *STUDY, "--config", "checked=false", "--sizes", "25k", "--budgets", "4k,8k", "--no-tuning",
    ),
}  # fmt: skip


def study_scores(folder: Path) -> list[tuple[str, float]]:
    """Of every run of the study, in an order that does not depend on when it was measured."""
    frame = archbench.read_results(folder / "study" / "runs.parquet", trials=True)
    kept = frame[frame.metric.isin(["bits_per_byte", "accuracy", "loss"]) & frame.phase.isin(["quality", "probe"])]
    return sorted(zip(kept.architecture, kept.seed, kept.metric, kept.value, strict=True))


def wrong_writes(disk: Disk, command: tuple[str, ...], number: int, read: Callable[[Path], Any]) -> list[str]:
    """Each refused write after which the command ends badly, or cannot be finished to what an unbroken one gives."""
    folder = disk.disk.folder
    disk.clear()
    disk.disk.empty()
    whole = disk.command(*command)
    assert whole.returncode == 0, whole.stderr
    total, expected = disk.disk.count, read(folder)
    wrong = []
    for n in spread(total, WRITES):
        try:
            done = disk.refused(command, n, number)
            assert "--resume" not in done.stderr, "the study's command, and not one of its runs', is the way on"
            if done.returncode:
                again = disk.command(*command)
                assert again.returncode == 0, f"then: {again.stderr}"
            assert read(folder) == expected
        except (AssertionError, OSError) as error:
            wrong.append(f"write {n} of {total}: {error}")
    return wrong


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES)
def test_a_study_is_finished_whichever_write_was_refused(disk: Disk, study: str) -> None:
    assert wrong_writes(disk, STUDIES[study], errno.ENOSPC, study_scores) == []


@pytest.mark.slow
def test_a_new_package_is_whole_whichever_write_was_refused(disk: Disk) -> None:
    def files(folder: Path) -> dict[str, str]:
        return {str(path): path.read_text() for path in (folder / "results").rglob("*") if path.is_file()}

    assert wrong_writes(disk, ("new", "my-arch", "--out", "results"), errno.ENOSPC, files) == []


@pytest.mark.slow
def test_a_report_is_whole_or_absent_whichever_write_was_refused(disk: Disk, unbroken: tuple[int, list[Any]]) -> None:
    def ends(folder: Path) -> dict[str, bytes]:
        found = {path.name: path.read_bytes() for path in (folder / "results").iterdir()}
        return {name: content[-8:] if name.endswith((".html", ".png")) else content for name, content in found.items()}

    place = disk.disk.folder / "results"
    command = ("report", "source", "-o", f"{place}/page.html", "--png", str(place), "--md", f"{place}/summary.md")
    assert wrong_writes(disk, command, errno.ENOSPC, ends) == []
