"""A small Parquet file does not become gigabytes: its size in memory is bounded before it is read."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from archbench.cli.app import main
from archbench.errors import StorageError
from archbench.files.parquet_size import LIMIT_VARIABLE, MOST_ROWS, most_rows
from archbench.results.reading import read_results
from archbench.results.schema import COLUMNS, arrow_schema
from archbench.results.store import write_run
from test_cli_results import COMMON, rows

ROOT = Path(__file__).parents[1]


def bomb(rows: int, **columns: Any) -> pa.Table:
    """A table of the tidy schema in which every column repeats one value."""
    kinds = {"string": "x", "int64": 1, "double": 1.0, "bool": True, "timestamp": 0}
    values = {column.name: columns.get(column.name, kinds[column.type]) for column in COLUMNS}
    schema = arrow_schema()
    arrays = [
        pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([value], schema.field(name).type))
        for name, value in values.items()
    ]
    names = [pa.field(name, array.type) for name, array in zip(values, arrays, strict=True)]
    return pa.Table.from_arrays(arrays, schema=pa.schema(names, metadata=schema.metadata))


def write(table: pa.Table, file: Path) -> Path:
    pq.write_table(table, file, compression="zstd", row_group_size=1 << 20, store_schema=False)
    return file


def many_rows(file: Path, rows: int = 1_100_000) -> None:
    write(bomb(rows), file)


def long_text(file: Path) -> None:
    write(bomb(20_000, status="x" * 1_000_000), file)


def plain_text(file: Path) -> None:
    table = bomb(100).set_column(0, "run_id", pa.array(["x" * 3_000_000] * 100))
    pq.write_table(
        table.replace_schema_metadata(arrow_schema().metadata), file, compression="zstd", use_dictionary=False
    )


def nested(file: Path) -> None:
    table = bomb(10)
    place = table.column_names.index("value")
    write(table.set_column(place, "value", pa.array([[1.0] * 1000] * 10)), file)


BOMBS: dict[str, tuple[Callable[[Path], None], str]] = {
    "many rows": (many_rows, "1,100,000 rows"),
    "a long text in every row": (long_text, "19,074 MiB"),
    "long texts, one by one": (plain_text, "286 MiB"),
    "a nested column": (nested, "'value' is nested"),
}


@pytest.mark.parametrize(("make", "said"), BOMBS.values(), ids=BOMBS)
def test_a_bomb_is_refused_and_warned_of(
    make: Callable[[Path], None], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bomb.parquet"
    make(file)
    assert file.stat().st_size < 4_000_000
    assert main(["results", str(file)]) == 7
    assert "bomb.parquet" in capsys.readouterr().err
    with pytest.raises(
        StorageError, match=r"bomb\.parquet"
    ) as refused:  # the command may stop at less than all columns
        read_results(file)
    error = str(refused.value)
    assert said in error
    assert LIMIT_VARIABLE in error or "nested" in error, "the way out, of an honest file"


def test_columns_that_archbench_does_not_write_are_not_read(tmp_path: Path) -> None:
    write_run(tmp_path, "20260101T000000-000001", rows(), {}, COMMON)
    (file,) = tmp_path.glob("*.parquet")
    file.with_suffix(".json").unlink()  # it describes what is replaced here
    table = pq.read_table(file)
    expected = read_results(file)
    for number in range(1000):
        table = table.append_column(f"more{number}", pa.array([[{"a": "x"}]] * len(table)))
    pq.write_table(table, file)
    assert read_results(file).equals(expected)


def test_text_that_is_not_utf_8_is_damage(tmp_path: Path) -> None:
    write_run(tmp_path, "20260101T000000-000001", rows(), {}, COMMON)
    (file,) = tmp_path.glob("*.parquet")
    file.with_suffix(".json").unlink()  # it describes what is replaced here
    table = pq.read_table(file)
    place = table.column_names.index("preset")
    wrong = pa.Array.from_buffers(pa.string(), len(table), pa.array([b"\xff"] * len(table)).buffers())
    pq.write_table(table.set_column(place, "preset", wrong), file)
    with pytest.raises(StorageError, match="corrupt"):
        read_results(file)


def test_a_large_file_may_have_many_rows_and_the_user_any_number(monkeypatch: pytest.MonkeyPatch) -> None:
    assert most_rows(1000) == MOST_ROWS
    assert most_rows(28_000_000) > 4_000_000, "a training of a million updates"
    monkeypatch.setenv(LIMIT_VARIABLE, "7")
    assert most_rows(1000) == 7


@pytest.mark.parametrize("name", ["scale-nano", "compare-nano"])
def test_committed_studies_are_far_from_the_bounds(name: str) -> None:
    file = ROOT / "results" / "reference" / name / "runs.parquet"
    metadata = pq.read_metadata(file)
    stated = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
    assert metadata.num_rows < MOST_ROWS / 3
    assert file.stat().st_size > 7 * metadata.num_rows
    assert stated < 2 * file.stat().st_size
    assert pq.read_table(file).nbytes < 600 * metadata.num_rows


@pytest.mark.slow
def test_reading_a_bomb_takes_little_memory_in_a_real_process(tmp_path: Path) -> None:
    many_rows(tmp_path / "bomb.parquet", 5_000_000)
    code = (
        "import json, resource, sys; from archbench.cli.app import main;"
        "from archbench.results.reading import read_results;"
        f"read_results({str(ROOT / 'results/reference/20261123T112407-da218d.parquet')!r});"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; before = peak();"
        "code = main(['results', sys.argv[1]]); print(json.dumps([code, peak() - before]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "bomb.parquet")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    exit_code, kibibytes = json.loads(done.stdout)
    assert exit_code == 7, done.stderr
    assert kibibytes < 100 << 10
