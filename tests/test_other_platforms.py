"""``run``, ``compare`` and the commands that read, with what Windows and macOS have (tests/other_platforms)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from archbench import read_results
from archbench.measure import environment
from small_runs import SMALL, with_small_corpus

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux stands in for the others")

COMMANDS = "import json, sys\nfrom archbench.cli import main\nprint([main(one) for one in json.loads(sys.argv[1])])"
QUICK = [*SMALL, "--steps", "1", "--unchecked", "--config", 'phases=["train"]']


def on(platform: str, folder: Path, *commands: list[str]) -> list[int]:
    """The exit codes of these commands, which one process calls one after the other in the folder."""
    variables = {
        "ARCHBENCH_TEST_PLATFORM": platform,
        "PYTHONPATH": str(Path(__file__).with_name("other_platforms")),
        "PYTHONWARNDEFAULTENCODING": "1",
    }
    done = subprocess.run(
        [sys.executable, "-P", "-c", COMMANDS, json.dumps(commands)],
        cwd=with_small_corpus(folder),
        env={**os.environ, **variables},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    codes: list[int] = json.loads(done.stdout.splitlines()[-1])
    assert codes.count(0) == len(codes), done.stderr
    return codes


@pytest.mark.slow
def test_without_what_windows_lacks_a_run_is_measured_and_read(tmp_path: Path) -> None:
    on("win32", tmp_path, ["list"], ["run", "gpt1", *QUICK], ["results", "--json"], ["clean", "--dry-run"])
    rows = read_results(tmp_path / "results")
    assert rows[(rows.phase == "train") & (rows.metric == "loss")].value.gt(0).all()
    memory = rows[rows.metric == "peak_memory_bytes"].value
    assert memory.gt(100 << 20).all(), "the peak of the working set"
    assert set(rows.malloc) == {"default"}
    assert not list(tmp_path.rglob(".*.tmp")), "nothing could be removed while it was open, and all of it was removed"


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_whole_runs_and_comparisons_work_with_what_a_platform_has(platform: str, tmp_path: Path) -> None:
    small = ["--profile", "smoke", "--corpus", "small.txt", "--tokens", "2048", "--set", "n_layer=1", "--threads", "1"]
    compare = ["compare", "gpt1", "llama", *small, "--seeds", "3", "--sweeps", "2", "--jobs", "2", "--out", "compared"]
    kept = ["results", "compared/runs.parquet"]
    on(
        platform,
        tmp_path,
        ["run", "gpt1", *SMALL],
        compare,
        compare,
        kept,
        ["report", "compared"],
        ["fsck", "compared"],
    )


def test_the_time_of_a_child_that_has_ended_counts_where_the_system_forgets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = environment.snapshot().own_seconds
    assert environment.snapshot(ended=1000.0).own_seconds - before < 900
    monkeypatch.setattr(environment.sys, "platform", "win32")
    assert environment.snapshot(ended=1000.0).own_seconds - before > 900
