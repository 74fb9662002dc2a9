"""What the SLURM launcher makes of SLURM's answers, and what it says where there is no SLURM."""

from __future__ import annotations

from pathlib import Path

import pytest
from archbench_plugins.launchers.slurm import Slurm, SlurmSettings
from archbench_plugins.launchers.slurm_jobs import minutes, rows_of, state_of
from pydantic import ValidationError

from archbench.errors import LauncherError

# As squeue 22.05 prints them: its exit code is a status of wait(2).
SQUEUE = """\
7|PENDING|PartitionTimeLimit||1795957765|N/A|N/A|4:00:00|0|
8|COMPLETING|None|n1|1795957765|1795957782|1795958982|20:00|0|
9|CANCELLED|None|n2|1795957765|1795957766|1795957787|UNLIMITED|15|
11|FAILED|JobLaunchFailure|n1|1795957788|1795957791|1795957791|1:00:00|4021|
12|FAILED|NonZeroExitCode|n1|1795957803|1795957803|1795957803|1-00:00:00|36608|
"""

# As sacct's manual has its fields; this is written by hand, for no test has slurmdbd.
SACCT = """\
21|CANCELLED by 1000|None|n2|1795957765|1795957766|1795957787|20:00|0:15
22|NODE_FAIL|None|n2|1795957765|1795957766|1795957787|20:00|1:0
23|OUT_OF_MEMORY|OutOfMemory|n2|1795957765|1795957766|1795957787|20:00|0:125
"""


def row(line: str) -> str:
    return f"1|{line}|"


def test_each_job_is_queued_running_or_lost_with_its_cause_and_time() -> None:
    states = {job: state_of(found) for job, found in rows_of(SQUEUE + SACCT).items()}
    assert {job: state.phase for job, state in states.items()} == {
        "7": "queued", "8": "running", "9": "lost", "11": "lost", "12": "lost", "21": "lost", "22": "lost", "23": "lost"
    }  # fmt: skip
    assert (states["7"].since, states["8"].since, states["9"].since) == (1795957765, 1795957782, 1795957787)
    assert "PartitionTimeLimit" in (states["7"].cause or "")
    assert states["8"].host == "n1"
    for job, word in {"9": "cancelled", "11": "output", "12": "SIGTERM", "21": "cancelled", "22": "n2"}.items():
        assert word in (states[job].cause or ""), job


@pytest.mark.parametrize(
    ("state", "said", "again"),
    [
        ("OUT_OF_MEMORY|OutOfMemory|n1|1|2|3|20:00|125", "", False),
        ("FAILED|NonZeroExitCode|n1|1|2|3|20:00|35072", "slurmstepd: error: Detected 1 oom-kill event(s)", False),
        ("UNKNOWN||n1|1|2|3|20:00|0", "srun: error: n1: task 0: Out Of Memory", False),  # SLURM has forgotten it
        ("FAILED|NonZeroExitCode|n1|1|2|3|20:00|35072", "", True),  # killed, by nobody knows whom
        ("PREEMPTED|None|n1|1|2|3|20:00|15", "", True),
        ("TIMEOUT|TimeLimit|n1|1|2|3|20:00|15", "", True),
        ("NODE_FAIL|None|n1|1|2|3|20:00|1", "", True),
    ],
)
def test_only_running_out_of_memory_is_not_tried_again(state: str, said: str, again: bool) -> None:
    found = state_of(rows_of(row(state))["1"], said)
    assert (found.phase, found.again, found.host) == ("lost", again, "n1")


def test_a_run_interrupted_before_the_time_limit_has_reached_it() -> None:
    line = "FAILED|NonZeroExitCode|n1|0|0|{}|20:00|36608"
    early, late = (state_of(rows_of(row(line.format(end)))["1"], delay=120) for end in (600, 1030))
    assert "SIGTERM" in (early.cause or "")
    assert "20 min" in (late.cause or "")


def test_a_job_that_slurm_holds_after_a_failed_launch_is_lost() -> None:
    held = rows_of(row("PENDING|launch failed requeued held||1|N/A|N/A|20:00|0"))["1"]
    assert state_of(held).phase == "lost"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("20:00", 20), ("1:00:00", 60), ("2-12:00:00", 3600), ("infinite", None), ("UNLIMITED", None), ("0:30", 0.5)],
)
def test_time_limits_are_read_as_slurm_prints_them(text: str, expected: float | None) -> None:
    assert minutes(text) == expected


@pytest.mark.parametrize("wrong", [{"timeout_min": 0}, {"mem_gb": "much"}, {"partion": "gpu"}])
def test_settings_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        SlurmSettings.model_validate(wrong)


def test_without_slurm_one_error_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LauncherError, match="sbatch"), Slurm(SlurmSettings(), tmp_path / "study", None):
        pass
    assert not (tmp_path / "study").exists()


def test_without_submitit_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "submitit", None)
    with pytest.raises(LauncherError, match=r"archbench\[slurm\]"), Slurm(SlurmSettings(), tmp_path, None):
        pass


def test_names_that_are_no_jobs_reach_no_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They come from claims in a folder that anybody may have made: scancel --me would end all of one's jobs."""
    names = ["--me", "1 2", "../../1"]
    monkeypatch.setenv("PATH", "")  # any command would raise a LauncherError
    launcher = Slurm(SlurmSettings(), tmp_path, None)
    launcher.cancel(names)
    assert {state.phase for state in launcher.states(names).values()} == {"lost"}
    with pytest.raises(LauncherError):
        launcher.cancel(["1"])
