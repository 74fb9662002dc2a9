"""Folders that are full, read-only, no folders, or gone: exit code 7 and the culprit, and nothing half written."""

from __future__ import annotations

import contextlib
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from archbench.config import RunConfig
from archbench.data.cache import write_atomically
from archbench.errors import ArchbenchWarning, StorageError
from archbench.files.outputs import Output, write_output
from archbench.plugin.registry import load
from archbench.results.store import prepare_folder, write_run
from archbench.runs.conformance import Findings
from archbench.runs.folder import RunFolder
from archbench.study.outcome import Record
from archbench.study.probe_outcome import ProbeOutcome
from archbench.study.records import PlanFile, write_record
from archbench.testing.checks.save_load import check_save_load
from archbench.testing.evaluation import run_check
from archbench.testing.subject import Subject
from archbench.trackers.feed import Feed, FeedReader
from archbench.training.checkpoints import load_latest, save_checkpoint
from command_line import archbench
from small_runs import SMALL, UNCHECKED, with_small_corpus
from test_results_schema import COMMON

RUN = "20260101T000000-aaaaaa"
RUN_COMMAND = ("run", "gpt1", *UNCHECKED, "--phases", "train")
EXAMPLE = Path(__file__).parent / "example_plugins" / "bigram.py"


@contextlib.contextmanager
def files_of(size: int) -> Iterator[None]:
    """Within this context no file of this process gets more bytes: such a write is refused, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def run_folder(folder: Path) -> RunFolder:
    return RunFolder(folder / "out" / RUN, RunConfig(architecture="gpt1"), {}, {})


def outcome(folder: Path) -> None:
    class Small(ProbeOutcome):
        def as_json(self) -> dict[str, Any]:
            return {"format": 1}

    Small.model_construct().write(folder, [pa.table({"value": [float(number) for number in range(1000)]})])


def checkpoint(folder: Path) -> None:
    save_checkpoint(folder / "checkpoints", 2, torch.nn.Linear(20, 20).state_dict(), {"numbers": torch.zeros(100)})


WRITERS: dict[str, Callable[[Path], object]] = {
    "results": lambda folder: write_run(
        folder / "out", RUN, [{"phase": "quality", "metric": "loss", "value": 1.0}], {"x": "y" * 200}, COMMON
    ),
    "rows of a phase": lambda folder: run_folder(folder).write_rows("train", [{"metric": "loss", "value": 1.0}] * 9),
    "findings": lambda folder: Findings([{"status": "passed", "name": "x" * 200}]).write(run_folder(folder)),
    "a checkpoint": checkpoint,
    "a record": lambda folder: write_record(folder, Record(key="ab" * 8, run_id=RUN, outcome="ok", cause="x" * 200)),
    "a plan": lambda folder: PlanFile(folder / "plan.json").write({"plan": "x" * 200}),
    "an outcome": outcome,
    "the cache": lambda folder: write_atomically(folder / "cache" / "text.npy", lambda file: file.write(b"x" * 200)),
    "a report": lambda folder: write_output(Output(folder / "report.html", "page"), b"x" * 200),
}


@pytest.mark.parametrize("size", [0, 30])
@pytest.mark.parametrize("what", WRITERS)
def test_what_finds_no_room_is_named_and_leaves_nothing_half_written(what: str, size: int, tmp_path: Path) -> None:
    (tmp_path / "out" / RUN).mkdir(parents=True)
    with files_of(size), pytest.raises(StorageError) as raised:
        WRITERS[what](tmp_path)
    assert str(tmp_path) in raised.value.culprit
    assert raised.value.exit_code == 7
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    WRITERS[what](tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_folder_without_room_is_found_out_before_the_work(tmp_path: Path) -> None:
    with files_of(0), pytest.raises(StorageError, match="--out"):
        prepare_folder(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_finds_no_room_leaves_the_last_one(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoints", 1, torch.nn.Linear(20, 20).state_dict(), {"numbers": torch.zeros(100)})
    with files_of(500), pytest.raises(StorageError, match="step-00000001 is intact"):
        checkpoint(tmp_path)
    found = load_latest(tmp_path / "checkpoints")
    assert found is not None
    assert found.step == 1


def test_trackers_lose_a_feed_that_finds_no_room_and_no_line_is_torn(tmp_path: Path) -> None:
    with Feed(tmp_path) as feed:
        feed.log(1, 10, {"loss": 1.0})
        with files_of(100), pytest.warns(ArchbenchWarning, match="training.jsonl"):
            feed.log(2, 20, {"loss": 0.9})
        feed.log(3, 30, {"loss": 0.8})
    with Feed(tmp_path) as feed:  # the run is resumed
        feed.log(2, 20, {"loss": 0.9})
    assert [step for step, _, _ in FeedReader(tmp_path).read()] == [1, 2]


# Folders that are none


def test_a_file_and_a_link_to_nowhere_are_said_to_be_such(tmp_path: Path) -> None:
    with_small_corpus(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    for name, reason in (("file", "it is a file"), ("link", "absent"), ("file/below", "Not a directory")):
        done = archbench(*RUN_COMMAND, "--out", name, cwd=tmp_path)
        assert done.returncode == 7
        assert done.stderr.count("\n") == 1
        assert name in done.stderr
        assert reason in done.stderr


@pytest.mark.parametrize(
    "variables",
    [
        {"ARCHBENCH_CACHE": "file"},
        {"ARCHBENCH_CACHE": "/proc/archbench"},
        {"ARCHBENCH_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "/proc"},
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="/proc is a folder that even root cannot write")
def test_a_cache_that_cannot_be_written_is_named_before_the_run(variables: dict[str, str], tmp_path: Path) -> None:
    (with_small_corpus(tmp_path) / "file").touch()
    done = archbench(*RUN_COMMAND, "--tokenizer", "bpe:300", cwd=tmp_path, env=variables)
    assert done.returncode == 7, done.stderr
    assert "cache folder" in done.stderr
    assert "ARCHBENCH_CACHE" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is a folder that even root cannot write")
def test_no_folder_for_temporary_files_fails_no_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    architecture = load("gpt1", ())
    subject = Subject(architecture, architecture.config("nano", n_layer=1, context_length=32), torch.device("cpu"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc", "/absent"])
    with pytest.raises(StorageError, match="TMPDIR"):
        run_check(check_save_load, subject)


def test_a_deleted_working_directory_is_named(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    code = (
        "import os, shutil, sys\nfrom archbench.cli import main\nshutil.rmtree(os.getcwd())\n"
        "print(main(['results']), main(['run', 'gpt1', '--profile', 'smoke', '--corpus', 'text.txt']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=gone, capture_output=True, text=True, check=False)
    assert done.stdout == "7 7\n", done.stderr
    assert "the working directory" in done.stderr
    assert "Traceback" not in done.stderr


# Folders that vanish, or cannot be written any more, while a run is measured


def vandal(folder: Path, deed: str) -> tuple[str, ...]:
    """A run of a plugin that does something to the results in its second update, until there is a file ``done``."""
    source = EXAMPLE.read_text().replace('"bigram"', '"vandal"')
    place = "    return next_token_step("
    lines = f"    if state.step == 1 and not OUT.with_name('done').exists():\n        {deed}\n"
    head = f"import shutil\nfrom pathlib import Path\n\nOUT = Path({str(folder / 'results')!r})\n"
    (folder / "vandal.py").write_text(head + source.replace(place, lines + place))
    options = ("--profile", "smoke", "--corpus", "small.txt", "--steps", "3", "--threads", "1", "--quiet")
    with_small_corpus(folder)
    return "run", "vandal", "--plugin", "vandal.py", *options, "--unchecked"


@pytest.mark.parametrize("deed", ["shutil.rmtree(OUT)", "OUT.rename(OUT.with_name('renamed'))"])
def test_a_folder_that_vanishes_ends_the_run_and_is_not_made_again(deed: str, tmp_path: Path) -> None:
    done = archbench(*vandal(tmp_path, deed), cwd=tmp_path)
    assert done.returncode == 7, done.stderr
    assert "results/" in done.stderr
    assert "vanished" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("results/*.parquet"))


def test_a_folder_that_cannot_be_written_any_more_ends_the_run_which_is_resumed(tmp_path: Path) -> None:
    """A file where the checkpoints would be: unlike a folder's mode it stops root too."""
    command = vandal(tmp_path, "next(OUT.glob('*/config.json')).with_name('checkpoints').touch()")
    done = archbench(*command, cwd=tmp_path)
    assert done.returncode == 7, done.stderr
    assert "checkpoints" in done.stderr
    assert "archbench run vandal --resume" in done.stderr
    next((tmp_path / "results").glob("*/checkpoints")).unlink()
    (tmp_path / "done").touch()
    again = archbench("run", "vandal", "--resume", "last", "--quiet", cwd=tmp_path)
    assert again.returncode == 0, again.stderr


@pytest.mark.slow
def test_a_file_system_that_becomes_read_only_ends_the_run_which_is_resumed_where_it_can_be_written(
    tmp_path: Path,
) -> None:
    """A mount of its own over ``results``, as a kernel remounts a disk that fails. Reading needs no writing."""

    def mounted(*arguments: str, only_reading: bool = False) -> subprocess.CompletedProcess[str]:
        remount = "mount -o remount,bind,ro results && " if only_reading else ""
        script = f'mount --bind results results && {remount}exec "$@"'
        command = [Path(sys.executable).with_name("archbench"), *arguments]
        inside = ["unshare", "--mount", "sh", "-c", script, "sh", *command]
        return subprocess.run(inside, cwd=tmp_path, capture_output=True, text=True, check=False)

    (tmp_path / "results").mkdir()
    if mounted("--version").returncode != 0:
        pytest.skip("needs the right to mount")
    # Mounted anew on top, because files that are open for writing keep a mount from becoming read-only.
    deed = "__import__('os').system(f'mount --bind {OUT} {OUT} && mount -o remount,bind,ro {OUT}')"
    done = mounted(*vandal(tmp_path, deed))
    assert done.returncode == 7, done.stderr
    assert "Read-only file system" in done.stderr
    assert "archbench run vandal --resume" in done.stderr
    assert not list(tmp_path.glob("results/*.parquet"))
    refused = mounted("run", "gpt1", *SMALL, only_reading=True)
    assert refused.returncode == 7
    assert "results" in refused.stderr
    (tmp_path / "done").touch()
    again = archbench("run", "vandal", "--resume", "last", "--quiet", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    for reading in (
        ("results",),
        ("report", "results", "-o", "page.html"),
        ("fsck", "results"),
        ("clean", "--dry-run"),
    ):
        read = mounted(*reading, only_reading=True)
        assert read.returncode == 0, (reading, read.stderr)
