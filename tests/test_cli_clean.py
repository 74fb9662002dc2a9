"""``archbench clean`` removes what can go: never a result, never what is in use or not archbench's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from archbench.config import DataConfig
from archbench.data.dataset import prepare
from archbench.results.leftovers import CACHES, leftovers
from archbench.results.lock import locked
from archbench.results.store import write_run
from comparison_files import COMMON
from installations import RunCLI

FINISHED, FAILED, KILLED = (f"20261101T10000{number}-aaaaa{number}" for number in range(3))
MEASURED = {"phase": "train", "metric": "training_seconds", "value": 1.0, "unit": "s"}
ERROR = {"phase": "train", "metric": "failed", "unit": "1", "status": "PhaseError: it died"}


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished, a failed and a killed run, a cache and temporary files of a process that has ended."""
    folder, cache, temporary = (tmp_path / name for name in ("results", "cache", "tmp"))
    common = {**COMMON, "architecture": "bigram", "seed": 0}
    write_run(folder, FINISHED, [MEASURED], {}, common)
    write_run(folder, FAILED, [MEASURED, ERROR], {}, common)
    for run_id in (FINISHED, FAILED, KILLED):
        _write(folder / run_id / "config.json", json.dumps({"run_id": run_id, "run": {}, "model": {}, "facts": {}}))
        _write(folder / run_id / "checkpoints" / "step-00000002" / "model.safetensors", "x" * 100_000)
        _write(folder / run_id / "rows-check.jsonl", "{}\n")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for path in (
        cache / "tokens" / "abc.npy", cache / "tokens" / "abc.json", cache / "tokenizers" / "def.json",
        folder / f".rows.parquet.{ended.pid}-00ff00aa.tmp", temporary / f"archbench-position-{ended.pid}-xyz",
    ):  # fmt: skip
        _write(path, "y" * 5000)
    for path in (folder / f".mine.{os.getpid()}-00ff00aa.tmp", folder / ".hidden", temporary / "archbench-notes"):
        _write(path, "in use, or not archbench's")
    _write(folder / "a-published-model" / "config.json", '{"model_type": "llama"}')
    monkeypatch.setenv("ARCHBENCH_CACHE", str(cache))
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    _age(tmp_path)
    return folder


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _age(folder: Path) -> None:
    for path in folder.rglob("*"):
        os.utime(path, (time.time() - 7200,) * 2)


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def _listed(cli: RunCLI, results: Path, *options: str) -> list[dict[str, Any]]:
    done = cli("clean", str(results), "--json", *options)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_it_shows_everything_with_size_and_age_and_removes_nothing_unasked(cli: RunCLI, results: Path) -> None:
    before = _files(results.parent)
    found = _listed(cli, results)
    assert [one["kind"] for one in found] == [
        "checkpoints", "unfinished", "unfinished", "cache", "cache", "temporary", "temporary",
    ]  # fmt: skip
    assert all(one["bytes"] > 0 and 7000 < one["age_seconds"] < 9000 for one in found)
    assert "check" in found[2]["loses"], "what a killed run has measured is nowhere else"
    shown = cli("clean", str(results))
    assert "--yes" in shown.stdout
    assert FINISHED in shown.stdout
    assert cli("clean", str(results), "--yes", "--dry-run").returncode == 0
    assert _files(results.parent) - {"cwd"} == before - {"cwd"}


def test_a_cache_of_many_files_is_a_row_for_each_of_its_folders(cli: RunCLI, results: Path) -> None:
    for number in range(50):
        _write(results.parent / "cache" / "tokens" / f"{number:032}.json", "y" * 5000)
    _age(results.parent / "cache")
    rows = [line.split() for line in cli("clean", str(results)).stdout.splitlines() if line.startswith("cache")]
    assert sorted(row[1] for row in rows) == ["1", "51"], "files of a pair are one item"
    assert len([one for one in _listed(cli, results) if one["kind"] == "cache"]) == 52, "for programs each is listed"


def test_results_unfinished_runs_and_what_is_not_archbenchs_stay(cli: RunCLI, results: Path) -> None:
    before = _files(results.parent)
    assert cli("clean", str(results), "--yes").returncode == 0
    gone = {path for path in before - _files(results.parent) if not path.startswith("cwd")}
    run = f"results/{FINISHED}/checkpoints"
    assert {path for path in gone if path.startswith("results/2026")} == {
        run, f"{run}/step-00000002", f"{run}/step-00000002/model.safetensors",
    }  # fmt: skip
    assert {Path(path).name.partition(".")[0] or "hidden" for path in gone if not path.startswith(run)} == {
        "abc", "def", "hidden", next(Path(path).name for path in gone if "position" in path),
    }  # fmt: skip
    assert (results / f".mine.{os.getpid()}-00ff00aa.tmp").exists(), "its process lives"
    assert (results / ".hidden").exists()
    assert (results.parent / "tmp" / "archbench-notes").exists()


def test_unfinished_runs_go_when_named_and_their_results_stay(cli: RunCLI, results: Path) -> None:
    assert cli("clean", str(results), "--yes", "--only", "unfinished").returncode == 0
    assert not (results / FAILED).exists()
    assert not (results / KILLED).exists()
    assert (results / f"{FAILED}.parquet").exists()
    assert (results / FINISHED / "checkpoints").exists()
    assert (results / "a-published-model" / "config.json").exists()


def test_a_run_that_another_process_has_is_named_and_stays(cli: RunCLI, results: Path) -> None:
    with locked(results / KILLED):
        _age(results)
        found = _listed(cli, results, "--only", "unfinished", "--yes")
        assert (results / KILLED / "checkpoints").exists()
    owners = {Path(one["paths"][0]).name: one["owner"] for one in found}
    assert str(os.getpid()) in owners[KILLED]
    assert not (results / FAILED).exists()


def test_a_study_that_another_process_has_keeps_its_runs(cli: RunCLI, results: Path) -> None:
    study = results / "compare-1"
    run = study / "runs" / "key" / KILLED
    run.parent.mkdir(parents=True)
    (results / KILLED).rename(run)
    with locked(study):
        _age(results)
        assert cli("clean", str(results), "--only", "unfinished", "--yes").returncode == 0
        assert run.exists()
    assert cli("clean", str(results), "--only", "unfinished", "--yes").returncode == 0
    assert not run.exists()


def test_it_knows_all_that_is_cached(tmp_path: Path) -> None:
    (tmp_path / "small.txt").write_text("First Citizen: before we proceed any further, hear me speak.\n\n" * 40)
    prepare(DataConfig(corpus=str(tmp_path / "small.txt"), tokenizer="bpe:260"), cache=tmp_path / "cache")
    _age(tmp_path / "cache")
    files = {path for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert {path.parent.name for path in files} <= set(CACHES)
    found = [one for one in leftovers(tmp_path / "results", cache=tmp_path / "cache") if one.kind == "cache"]
    assert {path for one in found for path in one.paths} == files
