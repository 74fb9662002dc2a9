"""Reading results: what was written comes back, chosen and ordered as asked, and a bad file is named."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from archbench.errors import ArchbenchWarning, StorageError, UnknownNameError, UsageError
from archbench.results.reading import read_results
from archbench.results.schema import COLUMNS, arrow_schema
from archbench.results.store import new_run_id, write_run
from test_results_schema import COMMON

LOSS = {"phase": "quality", "metric": "loss", "value": 1.5}
STEPS = [
    {"phase": "train", "metric": "step_seconds", "value": 0.1 + i, "repeat": i + 1, "batch_size": 8} for i in range(3)
]


def write(out: Path, run_id: str, *rows: dict[str, Any], **common: Any) -> Path:
    return write_run(out, run_id, rows or [LOSS, *STEPS], {"seed": 0}, {**COMMON, **common})


def test_what_is_written_is_read_with_types_and_nulls(tmp_path: Path) -> None:
    run_id = new_run_id()
    path = write(tmp_path, run_id, {**LOSS, "contaminated": False}, {"phase": "train", "metric": "mfu", "value": None})
    frame = read_results(path)
    assert list(frame.columns) == [column.name for column in COLUMNS]
    first, second = frame.iloc[0], frame.iloc[1]
    assert (first.run_id, first.value, first.unit, first["repeat"]) == (run_id, 1.5, "nats/token", 0)
    assert first.time_utc.to_pydatetime().strftime("%Y%m%dT%H%M%S") == run_id.split("-")[0]
    assert math.isnan(second.value)
    assert second.batch_size is pd.NA
    assert (first.contaminated, second.contaminated) == (False, pd.NA)
    assert frame.dtypes[["seed", "batch_size", "contaminated", "value"]].astype(str).tolist() == [
        "Int64",
        "Int64",
        "boolean",
        "float64",
    ]


def test_a_loss_that_is_not_finite_stays_what_it_was(tmp_path: Path) -> None:
    write(tmp_path, new_run_id(), {**LOSS, "value": math.inf})
    assert read_results(tmp_path).value.tolist() == [math.inf]


def test_run_ids_sort_by_time_and_differ_within_a_second() -> None:
    ids = {new_run_id() for _ in range(200)}
    assert len(ids) == 200
    age = datetime.now(UTC) - datetime.strptime(min(ids)[:15], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
    assert 0 <= age.total_seconds() < 30


def test_the_newest_run_comes_first_and_its_rows_stay_in_order(tmp_path: Path) -> None:
    for run_id in ("20260102T000000-aaaaaa", "20260103T000000-bbbbbb", "20260101T000000-cccccc"):
        write(tmp_path, run_id)
    frame = read_results(tmp_path)
    assert frame.run_id.unique().tolist() == [
        "20260103T000000-bbbbbb",
        "20260102T000000-aaaaaa",
        "20260101T000000-cccccc",
    ]
    assert frame[frame.metric == "step_seconds"]["repeat"].tolist() == [1, 2, 3] * 3


def test_a_folder_a_file_a_pattern_and_a_list_can_be_read(tmp_path: Path) -> None:
    first, second = write(tmp_path, "20260101T000000-aaaaaa"), write(tmp_path, "20260102T000000-bbbbbb")
    assert read_results(first).run_id.nunique() == 1
    assert read_results(str(tmp_path / "2026*.parquet")).run_id.nunique() == 2
    assert read_results([first, second]).run_id.nunique() == 2


def test_a_folder_whose_name_looks_like_a_pattern_is_a_folder(tmp_path: Path) -> None:
    write(tmp_path / "lr[1]", new_run_id())
    assert len(read_results(tmp_path / "lr[1]")) == 4


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ({"phase": "train"}, 3),
        (["phase=train"], 3),
        (["phase=train", "repeat=2"], 1),
        (["repeat=1", "repeat=2"], 2),
        ({"repeat": [1, 2]}, 2),
        (["batch_size="], 1),
        ({"batch_size": None}, 1),
        (["compile=false", "value=1.5"], 1),
        ({"architecture": "gpt2"}, 0),
    ],
)
def test_where_chooses_rows(tmp_path: Path, where: Any, rows: int) -> None:
    write(tmp_path, new_run_id())
    assert len(read_results(tmp_path, where)) == rows


def test_bad_conditions_are_named(tmp_path: Path) -> None:
    write(tmp_path, new_run_id())
    with pytest.raises(UnknownNameError, match=r"column 'fase'.*Did you mean 'phase'"):
        read_results(tmp_path, ["fase=train"])
    with pytest.raises(UsageError, match="it is not COLUMN=VALUE"):
        read_results(tmp_path, ["phase"])
    with pytest.raises(UsageError, match="'many' is not a int64"):
        read_results(tmp_path, ["batch_size=many"])


def test_an_empty_folder_is_an_empty_table_and_a_missing_one_an_error(tmp_path: Path) -> None:
    frame = read_results(tmp_path)
    assert len(frame) == 0
    assert list(frame.columns) == [column.name for column in COLUMNS]
    with pytest.raises(StorageError, match=r"nowhere: there are no results. Run archbench run"):
        read_results(tmp_path / "nowhere")


def test_unfinished_files_and_run_folders_are_not_read(tmp_path: Path) -> None:
    path = write(tmp_path, new_run_id())
    (tmp_path / ".20260101T000000-dddddd.parquet.77-abc.tmp").write_bytes(path.read_bytes()[:100])
    (tmp_path / ".hidden.parquet").write_bytes(b"half")
    (tmp_path / path.stem).mkdir()
    (tmp_path / path.stem / "documents.parquet").write_bytes(b"not a results file")
    assert len(read_results(tmp_path)) == 4


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:4] + b"\xff" * (len(content) - 4),
        lambda content: b"",
        lambda content: b"hello",
    ],
    ids=["truncated", "overwritten", "empty", "text"],
)
def test_a_corrupt_file_is_named_or_left_out_with_a_warning(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    write(tmp_path, "20260101T000000-aaaaaa")
    bad = write(tmp_path, "20260102T000000-bbbbbb")
    bad.write_bytes(damage(bad.read_bytes()))
    with pytest.raises(StorageError, match=r"bbbbbb\.parquet: it is corrupt or not a Parquet file"):
        read_results(tmp_path)
    with pytest.warns(ArchbenchWarning, match=r"bbbbbb\.parquet.*Left out"):
        frame = read_results(tmp_path, errors="warn")
    assert frame.run_id.unique().tolist() == ["20260101T000000-aaaaaa"]


def test_someone_elses_parquet_file_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1]}), tmp_path / "mine.parquet")
    with pytest.raises(StorageError, match=r"mine\.parquet: archbench did not write it"):
        read_results(tmp_path)


def test_a_file_from_the_future_says_what_to_install(tmp_path: Path) -> None:
    path = write(tmp_path, new_run_id())
    _rewrite(path, pq.read_table(path), version=99)
    with pytest.raises(StorageError, match=r"schema version is 99.*Install the newest archbench"):
        read_results(tmp_path)


def test_an_older_file_gets_todays_columns(tmp_path: Path) -> None:
    path = write(tmp_path, new_run_id())
    _rewrite(path, pq.read_table(path).drop_columns(["malloc", "lossless", "host", "driver", "products"]), version=1)
    frame = read_results(tmp_path)
    assert list(frame.columns) == [column.name for column in COLUMNS]
    assert frame[["malloc", "host", "driver", "products"]].isna().all(axis=None)
    assert frame.value.tolist() == [1.5, 0.1, 1.1, 2.1]


@pytest.mark.parametrize("version", [1, 2])
def test_files_of_earlier_versions_are_all_measurements_of_what_nobody_checked(version: int) -> None:
    frame = read_results(Path(__file__).with_name(f"results_of_version_{version}"))
    assert set(frame.schema_version) == {version}
    assert set(frame.status) == {"ok"}
    assert frame.conformance.isna().all()
    assert len(read_results(Path(__file__).with_name(f"results_of_version_{version}"), {"status": "ok"})) == len(frame)


def test_the_file_says_its_schema_to_any_reader_of_parquet(tmp_path: Path) -> None:
    assert pq.read_schema(write(tmp_path, new_run_id())).equals(arrow_schema(), check_metadata=True)


def _rewrite(path: Path, table: pa.Table, version: int) -> None:
    metadata = {**table.schema.metadata, b"archbench_schema_version": str(version).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    path.with_suffix(".json").unlink()  # it has the digest of the file that was
