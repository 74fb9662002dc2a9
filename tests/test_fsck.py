"""archbench fsck and archbench results --verify: what is whole, what is damaged, and what can be recovered."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from archbench.files.seal import unsealed
from archbench.results.reading import DIGESTS, read_results
from archbench.runs.integrity import examine
from command_line import archbench
from damages import count, damaged
from golden import studies
from small_runs import UNCHECKED, with_small_corpus


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = with_small_corpus(tmp_path_factory.mktemp("run"))
    done = archbench("run", "gpt1", *UNCHECKED, "--phases", "train,quality", "--out", "results", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def folder(measured: Path, tmp_path: Path) -> Path:
    shutil.copytree(measured / "results", tmp_path / "results")
    return tmp_path


def findings(folder: Path, *options: str) -> tuple[int, dict[str, dict[str, str]]]:
    done = archbench("fsck", "results", "--json", *options, cwd=folder)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return done.returncode, {str(Path(line["path"]).relative_to("results")): line for line in lines}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_fresh_run_is_whole_in_every_file(folder: Path) -> None:
    code, found = findings(folder)
    assert code == 0
    assert {one["state"] for one in found.values()} == {"whole"}
    assert {one["kind"] for one in found.values()} == {"results", "configuration", "rows", "scores", "checkpoint"}
    done = archbench("results", "results", "--verify", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "whole" in done.stdout


@pytest.mark.parametrize(
    ("find", "repairs"),
    [
        (lambda run: run.with_suffix(".parquet"), True),
        (lambda run: run.with_suffix(".json"), True),
        (lambda run: run / "config.json", True),
        (lambda run: run / "rows-train.jsonl", False),
        (lambda run: run / "documents.parquet", False),
        (lambda run: max((run / "checkpoints").glob("step-*")) / "model.safetensors", False),
    ],
)
def test_one_bit_is_found_named_and_repaired_where_it_can_be(
    folder: Path, find: Callable[[Path], Path], repairs: bool
) -> None:
    (results,) = (folder / "results").glob("*.parquet")
    before, run = read_results(results), results.with_suffix("")
    damaged = find(run)
    flip(damaged)
    code, found = findings(folder)
    assert code == 7
    (name,) = [name for name, one in found.items() if one["state"] == "damaged"]
    assert str(damaged.relative_to(folder / "results")).startswith(name)
    assert found[name]["cause"]
    assert found[name]["remedy"]
    verified = archbench("results", "results", "--verify", "--deep", cwd=folder)
    assert (verified.returncode, name in verified.stderr) == (7, True)
    code, _ = findings(folder, "--repair")
    assert code == (0 if repairs else 7)
    if repairs:
        pd.testing.assert_frame_equal(read_results(results), before)
        assert findings(folder)[0] == 0
        assert DIGESTS in unsealed(json.loads(results.with_suffix(".json").read_text()), "required")
        assert damaged.with_name(f"{damaged.name}.damaged").exists()


def test_any_damage_to_any_file_of_a_run_is_found(folder: Path) -> None:
    whole = [one.path for one in examine(folder / "results")]
    files = [file for path in whole for file in ([path] if path.is_file() else sorted(path.iterdir()))]
    for number, file in enumerate(files):
        before = file.read_bytes()
        for damage in damaged(file, count(2), seed=number):
            if damage.content.strip() == before.strip():
                continue  # a line end that JSON does not need
            found = [one.path for one in examine(folder / "results") if one.state == "damaged"]
            assert any(file.is_relative_to(path) for path in found), f"{file.name}: {damage}"


def test_studies_of_earlier_versions_are_readable_and_unverified(tmp_path: Path) -> None:
    shutil.copytree(studies.STUDIES / "comparison", tmp_path / "results")
    code, found = findings(tmp_path)
    assert code == 0
    assert found["comparison.json"]["state"] == "unverified"
    (tmp_path / "results" / "comparison.json").write_text("{")
    code, found = findings(tmp_path)
    assert (code, found["comparison.json"]["state"]) == (7, "damaged")
    assert "finished cells" in found["comparison.json"]["remedy"]


def test_what_a_killed_writer_left_is_named_and_no_damage(folder: Path) -> None:
    (folder / "results" / ".20260101T000000-aaaaaa.parquet.999999-abcdef12.tmp").write_bytes(b"PAR1")
    code, found = findings(folder)
    assert code == 0
    assert [one["kind"] for one in found.values() if one["state"] == "leftover"] == ["temporary"]


def test_a_place_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = archbench("fsck", "nowhere", cwd=tmp_path)
    assert (done.returncode, "nowhere" in done.stderr) == (7, True)
