"""Memory, threads or files that the system does not give: an error that says so, and no quality of an architecture."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from safetensors import SafetensorError

from archbench import read_results
from archbench.child.process import Child
from archbench.config import RunConfig
from archbench.errors import HookFailedError, PhaseError, ResourceError, StorageError, refusal
from archbench.study.outcome import Record
from archbench.study.records import read_record
from archbench.study.run_cells import RunCell, cell_key
from archbench.study.work import Work, carried_out
from archbench.testing.evaluation import Check, run_check
from command_line import archbench
from forked_children import forked_children
from small_runs import losses, with_small_corpus

EXAMPLE = Path(__file__).parent / "example_plugins" / "bigram.py"
TOO_MUCH = 1 << 50
"""Bytes; no machine has that much address space to give."""

PHASES = ("train", "quality", "positions", "prefill", "decode")


def raised(call: Callable[[], object]) -> BaseException:
    try:
        call()
    except Exception as error:  # noqa: BLE001  any is what is asked for
        return error
    raise AssertionError("it raised nothing")


def wrapped() -> None:
    try:
        torch.empty(TOO_MUCH, dtype=torch.uint8)
    except RuntimeError as error:
        raise HookFailedError("plugin 'x'", "its build hook raised", "Repair it") from error


def exception(kind: type[BaseException], *arguments: object) -> Callable[[], object]:
    def call() -> None:
        raise kind(*arguments)

    return call


@pytest.mark.parametrize(
    "call",
    [
        lambda: torch.empty(TOO_MUCH, dtype=torch.uint8),
        lambda: np.zeros(TOO_MUCH, dtype=np.uint8),
        lambda: bytearray(TOO_MUCH),
        lambda: pa.allocate_buffer(TOO_MUCH),
        wrapped,
        exception(torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 20.00 GiB"),
        exception(RuntimeError, "std::bad_alloc"),
        exception(OSError, errno.ENOMEM, "Cannot allocate memory"),
        exception(ImportError, "libtorch.so: failed to map segment from shared object"),
        exception(RuntimeError, "can't start new thread"),
        exception(BlockingIOError, errno.EAGAIN, "Resource temporarily unavailable"),
        exception(OSError, errno.EMFILE, "Too many open files"),
    ],
)
def test_what_the_system_does_not_give_is_known_in_the_words_of_each_library(call: Callable[[], object]) -> None:
    found = refusal(raised(call), "phase train")
    assert isinstance(found, ResourceError)
    assert found.exit_code == 5
    assert found.culprit == "phase train"


def test_it_says_how_much_was_asked_for() -> None:
    found = refusal(raised(lambda: torch.empty(TOO_MUCH, dtype=torch.uint8)), "phase train")
    assert found is not None
    assert f"{TOO_MUCH / 2**30:.3g} GiB" in found.cause


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_a_full_or_broken_disk_is_named_with_its_file(number: int) -> None:
    found = refusal(raised(exception(OSError, number, os.strerror(number), "disk.bin")), "phase train")
    assert isinstance(found, StorageError)
    assert found.culprit == "disk.bin"
    rust = SafetensorError(f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})")
    assert isinstance(refusal(rust, "the check save_load"), StorageError)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "absent.txt"),
        ValueError("the text is about memory: out of memory"),
        PhaseError("phase train", "it failed", "Repair it"),
    ],
)
def test_a_fault_is_nobody_elses(error: Exception) -> None:
    assert refusal(error, "phase train") is None


def test_a_check_that_runs_out_of_memory_fails_no_architecture() -> None:
    class Subject:
        notes: list[str] = []  # noqa: RUF012

    def run(subject: object) -> str:
        return str(torch.empty(TOO_MUCH, dtype=torch.uint8))

    with pytest.raises(ResourceError, match="save_load"):
        run_check(Check("save_load", "why", run), Subject())  # type: ignore[arg-type]


# One run whose memory runs out in one phase after the other, and that is resumed after each.


def write_hungry(folder: Path) -> Path:
    """A plugin that asks for too much in the phase whose name the file ``hungry`` holds."""
    source = EXAMPLE.read_text().replace('"bigram"', '"hungry"')
    place = "        self.config = config\n"
    assert place in source
    asks = (
        "\n    def forward(self, tokens):\n"
        f"        wanted = Path({str(folder / 'hungry')!r}).read_text()\n"
        "        if wanted and any(f.f_code.co_name == 'run_' + wanted for f, _ in traceback.walk_stack(None)):\n"
        f"            torch.empty({TOO_MUCH}, dtype=torch.uint8)\n"
        "        return super().forward(tokens)\n"
    )
    head = "import traceback\nfrom pathlib import Path\n\nimport torch\n"
    (folder / "hungry").write_text("")
    (folder / "hungry.py").write_text(head + source.replace(place, place + asks))
    return folder / "hungry.py"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, list[pd.DataFrame], list[str]]:
    """An unbroken run's rows; those of a run after each phase in which memory ran out, and at its end; the errors."""
    folder = with_small_corpus(tmp_path_factory.mktemp("hungry"))
    plugin = write_hungry(folder)
    options = ("--profile", "smoke", "--corpus", "small.txt", "--steps", "3", "--threads", "1", "--quiet")
    command = ("run", "hungry", "--plugin", plugin, *options, "--unchecked", "--phases", ",".join(PHASES))
    frames, errors = [], []
    for phase in PHASES:
        (folder / "hungry").write_text(phase)
        done = archbench(*(command if not errors else ("run", "hungry", "--resume", "last", "--quiet")), cwd=folder)
        assert done.returncode == 5, done.stderr
        errors.append(done.stderr)
        frames.append(read_results(folder / "results"))
    (folder / "hungry").write_text("")
    assert archbench("run", "hungry", "--resume", "last", "--quiet", cwd=folder).returncode == 0
    frames.append(read_results(folder / "results"))
    done = archbench(*command, "--out", "unbroken", cwd=folder)
    assert done.returncode == 0, done.stderr
    return read_results(folder / "unbroken"), frames, errors


def scores(frame: pd.DataFrame) -> list[float]:
    """Of quality and positions, in order."""
    scored = frame.phase.isin(["quality", "positions"]) & ~frame.metric.str.contains("memory")
    return frame[scored].value.to_list()


def test_in_each_phase_a_row_and_an_error_say_so(
    runs: tuple[pd.DataFrame, list[pd.DataFrame], list[str]],
) -> None:
    _, frames, errors = runs
    for phase, frame, error in zip(PHASES, frames, errors, strict=False):
        (row,) = frame[frame.metric == "failed"].to_dict("records")
        assert row["phase"] == phase
        assert row["status"].startswith("ResourceError: ")
        assert "ran out of memory" in row["status"]
        assert f"{TOO_MUCH / 2**30:.3g} GiB" in error
        assert "archbench run hungry --resume" in error
        assert error.count("\n") == 1


def test_resumed_it_is_bit_identical_with_the_unbroken_run(
    runs: tuple[pd.DataFrame, list[pd.DataFrame], list[str]],
) -> None:
    unbroken, (*_, resumed), _ = runs
    assert losses(resumed) == losses(unbroken)
    assert scores(resumed) == scores(unbroken)


def test_a_cell_without_memory_is_a_record_and_the_same_command_measures_it_again(tmp_path: Path) -> None:
    plugin = write_hungry(with_small_corpus(tmp_path))
    (tmp_path / "hungry").write_text("quality")
    config = RunConfig(
        architecture="hungry", profile="smoke", checked=False, phases=["train", "quality"], plugins=[str(plugin)],
        data={"corpus": str(tmp_path / "small.txt")}, training={"steps": 3, "tokens": None}, threads=1,
    )  # fmt: skip
    cell = RunCell("seed", config, cell_key(config, "source"), 64)
    work = Work((cell,), tmp_path, (), Record)
    with forked_children():
        (lost,) = carried_out(work).records
        assert lost.outcome == "failed"
        assert "ran out of memory" in (lost.cause or "")
        assert read_record(Record, tmp_path, cell.key) is None
        (trained,) = (tmp_path / "runs" / cell.key).glob("*/rows-train.jsonl")
        before = trained.stat()
        (tmp_path / "hungry").write_text("")
        assert [record.outcome for record in carried_out(work).records] == ["ok"]
        assert trained.stat() == before, "it was trained once"


# Real limits, in processes of their own.

SCRIPT = "import sys; from archbench.cli import main; sys.exit(main(sys.argv[1:]))"


def limited(folder: Path, kind: int, limit: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process that the system gives no more than ``limit``."""

    def before() -> None:
        resource.setrlimit(kind, (limit, limit))

    return subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT, *arguments],
        cwd=folder,
        preexec_fn=before,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not keep to RLIMIT_AS")
def test_a_command_without_memory_ends_with_one_line(tmp_path: Path) -> None:
    done = limited(tmp_path, resource.RLIMIT_AS, 300 << 20, "run", "gpt1", "--profile", "smoke", "--quiet")
    assert done.returncode == 5, done.stderr
    assert "Traceback" not in done.stderr
    assert "ulimit -v" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not keep to RLIMIT_AS")
@pytest.mark.slow
@pytest.mark.parametrize("mebibytes", [500, 900, *range(1100, 1700, 100), 2000, 3000])
def test_any_limit_on_memory_ends_in_a_result_or_an_error(tmp_path: Path, mebibytes: int) -> None:
    with_small_corpus(tmp_path)
    command = ("run", "gpt1", "--profile", "smoke", "--corpus", "small.txt", "--quiet")
    done = limited(tmp_path, resource.RLIMIT_AS, mebibytes << 20, *command)
    assert done.returncode in (0, 5, 8), done.stderr
    assert "Traceback" not in done.stderr
    if done.returncode:
        assert "memory" in done.stderr


def memory_group() -> tuple[Path, str]:
    """The folder of a new memory cgroup, and the name of the file with its limit; skips where none can be made."""
    versions = {"/sys/fs/cgroup/memory": "memory.limit_in_bytes", "/sys/fs/cgroup": "memory.max"}
    for parent, limit in versions.items():
        group = Path(parent) / f"archbench-test-{os.getpid()}"
        with contextlib.suppress(OSError):
            group.mkdir()
            if (group / limit).exists():
                return group, limit
            group.rmdir()
    pytest.skip("this process may make no memory cgroup")


@pytest.mark.slow
def test_a_phase_that_its_cgroup_kills_is_a_row_and_is_resumed(tmp_path: Path) -> None:
    plugin = write_hungry(with_small_corpus(tmp_path))
    source = plugin.read_text().replace(f"torch.empty({TOO_MUCH}, dtype=torch.uint8)", f"torch.ones({2 << 30} // 4)")
    plugin.write_text(source)
    (tmp_path / "hungry").write_text("train")
    options = ("--profile", "smoke", "--corpus", "small.txt", "--steps", "3", "--threads", "1", "--quiet")
    group, limit = memory_group()
    try:
        (group / limit).write_text(str(1 << 30))
        done = subprocess.run(
            [sys.executable, "-P", "-c", SCRIPT, "run", "hungry", "--plugin", plugin, *options, "--unchecked"],
            cwd=tmp_path,
            preexec_fn=lambda: (group / "cgroup.procs").write_text(str(os.getpid())),
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        group.rmdir()
    assert done.returncode == 8, done.stderr
    (row,) = read_results(tmp_path / "results").to_dict("records")
    assert row["status"].startswith("KilledError: ")
    assert "memory" in row["status"]
    (tmp_path / "hungry").write_text("")
    assert archbench("run", "hungry", "--resume", "last", "--quiet", cwd=tmp_path).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("files", [8, 12, 16, 20, 30, 40])
def test_any_limit_on_open_files_ends_in_a_result_or_an_error(tmp_path: Path, files: int) -> None:
    command = ("run", "gpt1", "--profile", "smoke", "--corpus", "small.txt", "--quiet")
    done = limited(with_small_corpus(tmp_path), resource.RLIMIT_NOFILE, files, *command)
    assert done.returncode in (0, 5, 8), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform != "linux" or os.getuid() == 0, reason="root's processes are not limited in number")
def test_a_command_that_may_start_no_process_says_so(tmp_path: Path) -> None:
    done = limited(with_small_corpus(tmp_path), resource.RLIMIT_NPROC, 1, "check", "gpt1", "--quiet")
    assert done.returncode == 5, done.stderr
    assert "ulimit -u" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_child_that_cannot_be_started_for_want_of_files_says_so() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 2, hard))
    try:
        error = raised(lambda: Child("archbench.runs.worker", {}, culprit="phase train"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    found = refusal(error, "phase train")
    assert isinstance(found, ResourceError)
    assert "ulimit -n" in found.next_step
