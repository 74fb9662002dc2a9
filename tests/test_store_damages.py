"""Damaged results: whatever happens to a file, no reader shows other numbers than were measured."""

from __future__ import annotations

import json
import math
import os
import random
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from archbench.errors import StorageError
from archbench.files.parquet import read_parquet, sealed_parquet
from archbench.results.reading import DIGESTS, read_results, run_failed
from archbench.results.schema import SCHEMA_VERSION, arrow_schema
from archbench.results.store import write_run
from damages import count, damaged, refusals
from test_results_schema import COMMON

RUN, OTHER = "20260101T000000-aaaaaa", "20260101T000000-bbbbbb"
DAMAGES = count(60)


def rows(steps: int = 200) -> list[dict[str, object]]:
    draw = random.Random(0)
    return [
        {"phase": "train", "metric": metric, "value": draw.random(), "repeat": step}
        for step in range(steps)
        for metric in ("loss", "step_seconds")
    ]


def test_no_damage_to_a_run_is_read_as_other_numbers(tmp_path: Path) -> None:
    path = write_run(tmp_path, RUN, rows(), {"run": {"seed": 0}}, COMMON)
    whole = read_results(path)

    def read() -> bool:
        return read_results(path).equals(whole) and not run_failed(path)

    assert refusals(path, read, DAMAGES) == 1.0


def test_a_file_alone_tells_damage_without_its_json(tmp_path: Path) -> None:
    path = write_run(tmp_path, RUN, rows(), {}, COMMON)
    path.with_suffix(".json").unlink()
    whole = read_results(path)
    assert refusals(path, lambda: read_results(path).equals(whole), DAMAGES) == 1.0


def test_damage_to_the_json_beside_never_changes_the_rows(tmp_path: Path) -> None:
    path = write_run(tmp_path, RUN, rows(5), {"run": {"seed": 0}}, COMMON)
    whole = read_results(path)
    for damage in damaged(path.with_suffix(".json"), DAMAGES):
        assert read_results(path).equals(whole), damage


def test_every_bit_of_the_metadata_counts(tmp_path: Path) -> None:
    # The examiner's eight altered readings were in the footer: every bit of its last 3 kB, each bit in some file.
    path = write_run(tmp_path, RUN, rows(1), {}, COMMON)
    whole = path.read_bytes()
    for place in random.Random(1).sample(range(len(whole) - 3000, len(whole)), DAMAGES):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        with pytest.raises(StorageError):
            read_results(path)


def test_a_whole_file_in_the_place_of_another_is_noticed(tmp_path: Path) -> None:
    path = write_run(tmp_path, RUN, rows(2), {}, COMMON)
    other = write_run(tmp_path, OTHER, rows(3), {}, COMMON)
    path.write_bytes(other.read_bytes())
    with pytest.raises(StorageError) as caught:
        read_results(tmp_path)
    assert caught.value.culprit == str(path)
    assert path.with_suffix(".json").name in caught.value.cause


def test_a_kill_between_json_and_rows_loses_nothing(tmp_path: Path) -> None:
    failed = {"phase": "train", "metric": "failed", "unit": "1", "status": "PhaseError: it died"}
    path = write_run(tmp_path, RUN, [failed], {}, COMMON)
    before = path.read_bytes()
    write_run(tmp_path, RUN, rows(2), {}, COMMON, replace=True)
    after = path.read_bytes()
    path.write_bytes(before)  # as if the writer had been killed after the JSON
    assert run_failed(path)
    path.write_bytes(after)
    assert not run_failed(path)
    assert len(json.loads(path.with_suffix(".json").read_text())[DIGESTS]) == 2


def test_files_without_checksums_are_read_as_before(tmp_path: Path) -> None:
    path = write_run(tmp_path, RUN, rows(2), {}, COMMON)
    whole = read_results(path)
    path.with_suffix(".json").write_text(json.dumps({"run": {}}))
    pq.write_table(pq.read_table(path), path)
    assert b"archbench_sha256" not in path.read_bytes()
    pd.testing.assert_frame_equal(read_results(path), whole)


def test_other_readers_of_parquet_read_a_sealed_file(tmp_path: Path) -> None:
    path = write_run(tmp_path, RUN, rows(2), {}, COMMON)
    duckdb = pytest.importorskip("duckdb")
    values = read_results(path).value.to_list()
    assert pd.read_parquet(path).value.to_list() == values
    assert [value for (value,) in duckdb.sql(f"SELECT value FROM '{path}'").fetchall()] == values
    assert pq.read_schema(path).metadata == {b"archbench_schema_version": str(SCHEMA_VERSION).encode()}


@pytest.mark.parametrize("number", [0, 1, 5000])
def test_any_table_gets_a_seal(tmp_path: Path, number: int) -> None:
    table = pa.table({"document": [f"archbench_sha256 {i}" for i in range(number)], "nats": [math.inf] * number})
    file = tmp_path / "documents.parquet"
    file.write_bytes(sealed_parquet(table))
    assert read_parquet(file, next_step="Restore it")[0].equals(table)
    assert refusals(file, lambda: read_parquet(file, next_step="Restore it")[0], DAMAGES // 2) == 1.0


def test_an_empty_table_of_the_schema_too(tmp_path: Path) -> None:
    file = tmp_path / "runs.parquet"
    file.write_bytes(sealed_parquet(arrow_schema().empty_table()))
    assert read_parquet(file, next_step="Restore it")[0].num_rows == 0
    assert os.listdir(tmp_path) == ["runs.parquet"]
