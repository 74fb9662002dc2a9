"""Results that cannot be written: the error says why and where the rows are, and no partial file appears."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from archbench.errors import StorageError
from archbench.results.reading import read_results, run_failed
from archbench.results.store import prepare_folder, write_run
from test_results_schema import COMMON

ROW = {"phase": "quality", "metric": "loss", "value": 1.0}
RUN = "20260101T000000-aaaaaa"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs file-size limits of POSIX")
def test_a_full_disk_is_an_error_that_says_where_the_rows_are(tmp_path: Path) -> None:
    # A file-size limit fails a write in its middle, as a full disk does, without filling one.
    code = """
import resource, signal, sys, random
from archbench.errors import StorageError
from archbench.results.store import write_run
from test_results_schema import COMMON
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
rows = [{"phase": "train", "metric": "loss", "value": random.random(), "repeat": i} for i in range(20_000)]
try:
    write_run(sys.argv[1], sys.argv[2], rows, {}, COMMON)
except StorageError as error:
    print(error)
"""
    (tmp_path / RUN).mkdir()
    (tmp_path / RUN / "rows-train.jsonl").write_text("{}\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", code, str(tmp_path), RUN]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert f"{RUN}" in done.stdout
    assert f"{tmp_path / RUN}/rows-*.jsonl" in done.stdout
    assert [path.name for path in tmp_path.rglob("*") if path.suffix in (".parquet", ".tmp")] == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"Not a directory"):
        write_run(tmp_path / "file" / "results", RUN, [ROW], {}, COMMON)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that even root cannot write: Linux's /proc")
def test_a_read_only_folder_is_found_out_before_the_work() -> None:
    with pytest.raises(StorageError, match=r"/proc.*--out"):
        prepare_folder("/proc")


def test_a_writable_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    assert list(prepare_folder(tmp_path / "a" / "b").iterdir()) == []


def test_what_a_killed_writer_left_does_not_stop_the_next_try(tmp_path: Path) -> None:
    (tmp_path / f"{RUN}.json").write_text('{"half": true}')
    (tmp_path / f".{RUN}.parquet.1-abc.tmp").write_bytes(b"PAR1")
    path = write_run(tmp_path, RUN, [ROW], {"whole": True}, COMMON)
    assert path.exists()
    assert "whole" in path.with_suffix(".json").read_text()


def test_a_run_replaces_the_record_of_its_failure_and_nothing_else(tmp_path: Path) -> None:
    failed = {"phase": "train", "metric": "failed", "unit": "1", "status": "PhaseError: it died"}
    path = write_run(tmp_path, RUN, [ROW, failed], {}, COMMON)
    assert run_failed(path)
    with pytest.raises(StorageError, match="already written"):
        write_run(tmp_path, RUN, [ROW], {}, COMMON)
    write_run(tmp_path, RUN, [ROW], {}, COMMON, replace=True)
    assert not run_failed(path)
    assert read_results(path).status.to_list() == ["ok"]
    with pytest.raises(StorageError, match="already written"):
        write_run(tmp_path, RUN, [ROW, failed], {}, COMMON, replace=True)
