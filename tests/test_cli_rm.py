"""``archbench rm`` removes the runs that are named, whole; ``archbench where`` says where everything is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from archbench.results.lock import locked
from archbench.results.store import write_run
from comparison_files import COMMON
from installations import RunCLI

FIRST, SECOND = "20261101T100000-aaaaaa", "20261101T100001-bbbbbb"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    for run_id in (FIRST, SECOND):
        row = {"phase": "train", "metric": "training_seconds", "value": 1.0, "unit": "s"}
        write_run(folder, run_id, [row], {}, {**COMMON, "architecture": "bigram", "seed": 0})
        (folder / run_id / "checkpoints").mkdir(parents=True)
        (folder / run_id / "checkpoints" / "model.safetensors").write_bytes(b"x" * 100_000)
    return folder


def named(folder: Path, run_id: str) -> list[Path]:
    return sorted(folder.rglob(f"{run_id}*"))


@pytest.mark.parametrize("given", [FIRST, f"{FIRST}.parquet", f"results/{FIRST}"])
def test_a_run_goes_whole_however_it_is_named(results: Path, cli: RunCLI, given: str) -> None:
    place = results.parent if "/" in given else results
    asked = cli("rm", given, "--in", results, cwd=place)
    assert (asked.returncode, len(named(results, FIRST))) == (0, 3), asked.stderr  # nobody is there to agree
    assert "--yes" in asked.stdout
    done = cli("rm", given, "--in", results, "--yes", "--json", cwd=place)
    removed = json.loads(done.stdout)
    assert removed["removed"]
    assert removed["bytes"] > 100_000
    assert named(results, FIRST) == []
    assert len(named(results, SECOND)) == 3


def test_a_run_in_use_stays_and_so_does_all_that_is_named_with_it(results: Path, cli: RunCLI) -> None:
    with locked(results / FIRST):
        done = cli("rm", SECOND, FIRST, "--in", results, "--yes")
    assert done.returncode == 2
    assert FIRST in done.stderr
    assert "in use" in done.stderr
    assert len(named(results, SECOND)) == 3


@pytest.mark.parametrize("record", ["comparison.json", "cells/llama-1.json"])
def test_a_run_of_a_study_stays(results: Path, cli: RunCLI, record: str) -> None:
    study = results / "compare-1" / "runs" / "llama-1"
    study.mkdir(parents=True)
    for path in named(results, FIRST):
        if path.parent == results:
            path.rename(study / path.name)
    (file := results / "compare-1" / record).parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"run_id": FIRST}))
    done = cli("rm", FIRST, "--in", results, "--yes")
    assert done.returncode == 2
    assert str(file) in done.stderr
    assert len(named(study, FIRST)) == 3


def test_an_id_that_is_nearly_right_is_suggested(results: Path, cli: RunCLI) -> None:
    done = cli("rm", FIRST[:-1] + "b", "--in", results)
    assert done.returncode == 2
    assert f"Did you mean '{FIRST}'?" in done.stderr


def test_where_says_sizes_and_finds_plugins_without_importing_them(
    results: Path, cli: RunCLI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCHBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ARCHBENCH_CONFIG", str(tmp_path / "config"))
    plugin = tmp_path / "broken.py"
    plugin.write_text("import no_such_module\n")
    done = cli("where", results, "--plugin", plugin, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = {one["what"]: one for one in map(json.loads, done.stdout.splitlines())}
    assert found["results"]["bytes"] > 200_000
    assert found["results"]["note"] == "2 runs"
    assert not found["cache: tokens"]["exists"]
    assert found["trusted plugins"]["path"].startswith(str(tmp_path / "config"))
    assert Path(found["architecture gpt1"]["path"]).name == "gpt1.py"
    assert found["plugin file"]["path"] == str(plugin)
    assert "gpt1.py" in cli("where", results).stdout
