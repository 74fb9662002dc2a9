"""Any number of processes write side by side; whatever is killed, nothing is lost and no torn file is ever seen."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from archbench.errors import StorageError, UsageError
from archbench.files.seal import unsealed
from archbench.results.lock import locked
from archbench.results.reading import DIGESTS, read_results
from archbench.results.store import write_run
from test_results_schema import COMMON

WRITERS = 3
RUNS = 8
ROWS = 3000

# Each run's rows carry random values, so that the file is big enough to be killed in the middle of.
WRITER = """
import json, random, sys, time
from archbench.results.store import new_run_id, write_run
COMMON = json.loads(sys.argv[6])
out, name, rows, runs, pause = sys.argv[1], *map(int, sys.argv[2:5]), float(sys.argv[5])
random.seed(name)
print("ready", flush=True)
sys.stdin.readline()
for _ in range(runs):
    run_id = new_run_id()
    values = [{"phase": "train", "metric": "loss", "value": random.random(), "repeat": i} for i in range(rows)]
    print("begin", run_id, flush=True)
    write_run(out, run_id, values, {"writer": name}, {**COMMON, "seed": name})
    print("done", run_id, flush=True)
    time.sleep(pause)
"""


def start_writer(out: Path, name: int, log: Path) -> subprocess.Popen[str]:
    with log.open("w") as output:
        # The first writer never rests, so that it can be caught in the middle; the folder stays small enough to read.
        runs, pause = (10_000, 0.0) if name == 0 else (RUNS, 0.1)
        arguments = [str(out), str(name), str(ROWS), str(runs), str(pause), json.dumps(COMMON)]
        command = [sys.executable, "-c", WRITER, *arguments]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, text=True)


def complete_runs(out: Path) -> dict[str, int]:
    """Rows by run, after checking that each run visible now is whole."""
    frame = read_results(out)  # raises on any file that is torn
    counts: dict[str, int] = frame.groupby("run_id").size().to_dict() if len(frame) else {}
    assert set(counts.values()) <= {ROWS}
    for run_id in counts:
        assert unsealed(json.loads((out / f"{run_id}.json").read_text())).keys() == {"writer", DIGESTS}
    return counts


def test_three_writers_one_killed_nothing_lost_and_no_torn_file_seen(tmp_path: Path) -> None:
    out = tmp_path / "results"
    out.mkdir()
    logs = [tmp_path / f"writer{name}.log" for name in range(WRITERS)]
    writers = [start_writer(out, name, log) for name, log in enumerate(logs)]
    try:
        while not all(log.read_text().startswith("ready") for log in logs):
            time.sleep(0.05)
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write("go\n")
            writer.stdin.flush()
        reads = 0
        while logs[0].read_text().count("done") < 2 or reads < 3:
            complete_runs(out)
            reads += 1
        _kill_in_mid_write(writers[0], out)
        while any(writer.poll() is None for writer in writers):
            complete_runs(out)
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
    seen = complete_runs(out)
    acknowledged = [line.split()[1] for log in logs for line in log.read_text().splitlines() if line.startswith("done")]
    assert len(acknowledged) >= (WRITERS - 1) * RUNS + 2
    assert set(acknowledged) <= set(seen), "a run was reported as written and is not there"
    assert list(out.glob(f".*.parquet.{writers[0].pid}-*")), "the writer was killed with its file half way"


def _kill_in_mid_write(writer: subprocess.Popen[str], out: Path) -> None:
    """SIGKILL while its file is half way: stop the process first, and let it go on if it is elsewhere."""
    for _ in range(5000):
        writer.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, writer.pid, os.WSTOPPED)
        if list(out.glob(f".*.parquet.{writer.pid}-*")):
            writer.kill()
            writer.wait()
            return
        writer.send_signal(signal.SIGCONT)
        time.sleep(0.002)
    raise AssertionError("never found it writing")


def test_one_run_written_by_many_processes_at_once_is_one_writers_whole(tmp_path: Path) -> None:
    code = """
import json, sys
from archbench.errors import StorageError
from archbench.results.store import write_run
sys.stdin.readline()
row = {"phase": "quality", "metric": "loss", "value": float(sys.argv[2])}
try:
    write_run(sys.argv[1], "20260101T000000-aaaaaa", [row], {}, json.loads(sys.argv[3]))
except StorageError as error:
    print(error)
"""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", code, str(tmp_path)]
    writers = [subprocess.Popen([*command, str(name), json.dumps(COMMON)], **pipes) for name in range(3)]
    answers = [writer.communicate("go\n")[0] for writer in writers]
    refused = [answer for answer in answers if "already written" in answer]
    assert (len(refused), answers.count("")) == (2, 1)
    assert read_results(tmp_path).value.tolist() == [float(answers.index(""))]


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    row = {"phase": "quality", "metric": "loss", "value": 1.0}
    path = write_run(tmp_path, "20260101T000000-aaaaaa", [row], {"first": True}, COMMON)
    before = path.read_bytes()
    with pytest.raises(StorageError, match="already written"):
        write_run(tmp_path, "20260101T000000-aaaaaa", [{**row, "value": 2.0}], {"first": False}, COMMON)
    assert path.read_bytes() == before
    assert json.loads(path.with_suffix(".json").read_text())["first"] is True
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".json", ".parquet"], "no temporary file stays behind"


def test_a_folder_in_use_is_refused_and_the_process_that_has_it_named(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(UsageError, match=f"process {os.getpid()} on "), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass
