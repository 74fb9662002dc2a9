"""The tidy table's schema: its dictionary is up to date, and rows that do not fit are refused by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archbench.errors import StorageError
from archbench.results.metrics import METRICS
from archbench.results.reading import read_results
from archbench.results.schema import COLUMNS, SCHEMA_VERSION, arrow_schema, data_dictionary
from archbench.results.store import new_run_id, write_run

README = Path(__file__).parents[1] / "results" / "README.md"
COMMON: dict[str, Any] = {
    "architecture": "gpt1",
    "plugin_package": "archbench",
    "preset": "nano",
    "config_hash": "0123456789ab",
    "seed": 3,
    "device": "cpu",
    "device_name": "a CPU",
    "dtype": "float32",
    "compile": False,
    "threads": 2,
    "archbench_version": "0.1.0",
    "torch_version": "2.13.0",
    "python_version": "3.11.7",
}


def write(out: Path, *rows: dict[str, Any], **common: Any) -> Path:
    return write_run(out, new_run_id(), rows, {}, {**COMMON, **common})


def test_the_end_of_the_data_dictionary_is_generated_from_the_code() -> None:
    assert README.read_text().endswith(data_dictionary()), "python tests/test_results_schema.py writes it anew"


def test_every_metric_of_the_dictionary_is_explained_in_the_documentation() -> None:
    text = (Path(__file__).parent.parent / "docs" / "reference" / "metrics.md").read_text()
    missing = {metric.metric for metric in METRICS if f"`{metric.metric}`" not in text}
    assert not missing


def test_the_arrow_schema_has_exactly_the_documented_columns() -> None:
    assert [field.name for field in arrow_schema()] == [column.name for column in COLUMNS]
    assert [field.nullable for field in arrow_schema()] == [column.nullable for column in COLUMNS]


def test_schema_version_8_has_not_changed_without_a_new_version() -> None:
    # Files of version 8 are on people's disks. A change here needs SCHEMA_VERSION raised and an upgrade on reading.
    assert SCHEMA_VERSION == 8
    assert " ".join(f"{column.name}:{column.type}{'?' if column.nullable else ''}" for column in COLUMNS) == (
        "run_id:string time_utc:timestamp schema_version:int64 architecture:string plugin_package:string "
        "plugin_version:string? plugin_revision:string? preset:string config_hash:string seed:int64 role:string? "
        "phase:string metric:string unit:string value:double? standard_error:double? "
        "repeat:int64 device:string device_name:string host:string? driver:string? "
        "dtype:string attention:string? products:string? compile:bool threads:int64 world_size:int64 batch_size:int64? "
        "context_length:int64? prompt_length:int64? operation:string? query_heads:int64? kv_heads:int64? "
        "head_width:int64? window:int64? model_width:int64? vocab_size:int64? parameters:int64? corpus:string? "
        "task_version:string? shots:int64? "
        "tokenizer:string? lossless:bool? tokens_seen:int64? contaminated:bool? conformance:string? status:string? "
        "malloc:string? archbench_version:string torch_version:string triton_version:string? python_version:string "
        "git_revision:string?"
    )


def test_metric_names_are_unique_within_a_phase() -> None:
    assert len({(metric.phase, metric.metric) for metric in METRICS}) == len(METRICS)


def test_the_schema_is_cheap_to_import() -> None:
    code = "import sys, archbench.results.store; print({'torch', 'pandas', 'pyarrow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_known_metric_gets_its_unit_and_may_have_no_other(tmp_path: Path) -> None:
    write(tmp_path, {"phase": "decode", "metric": "seconds_per_token", "value": 0.1})
    assert read_results(tmp_path).unit.tolist() == ["s"]
    with pytest.raises(StorageError, match=r"row 1 \(decode/seconds_per_token\), column 'unit': 'ms' instead of 's'"):
        write(
            tmp_path,
            {"phase": "decode", "metric": "seconds_per_token", "value": 0.1},
            {"phase": "decode", "metric": "seconds_per_token", "value": 100.0, "unit": "ms"},
        )


def test_a_strangers_metric_is_stored_if_it_has_a_unit(tmp_path: Path) -> None:
    write(tmp_path, {"phase": "my-phase", "metric": "joules_per_token", "value": 2.0, "unit": "J/token"})
    assert read_results(tmp_path).unit.tolist() == ["J/token"]
    with pytest.raises(StorageError, match=r"row 0 \(my-phase/joules_per_token\), column 'unit': it has no unit"):
        write(tmp_path, {"phase": "my-phase", "metric": "joules_per_token", "value": 2.0})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"bach_size": 4}, r"column 'bach_size': there is no such column. Did you mean 'batch_size'"),
        ({"batch_size": 4.5}, r"column 'batch_size': 4.5 is a float, not a int64"),
        ({"batch_size": True}, r"column 'batch_size': True is a bool, not a int64"),
        ({"value": "fast"}, r"column 'value': 'fast' is a str, not a double"),
        ({"contaminated": 1}, r"column 'contaminated': 1 is a int, not a bool"),
        ({"phase": None}, r"row 0 \(None/loss\), column 'phase': it is missing"),
    ],
)
def test_a_row_that_does_not_fit_is_refused_by_row_and_column(
    tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(StorageError, match=message):
        write(tmp_path, {"phase": "quality", "metric": "loss", "unit": "nats/token", "value": 1.0, **row})
    assert list(tmp_path.iterdir()) == [], "nothing is written for a refused run"


def test_a_missing_run_column_is_named_with_its_meaning(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"column 'preset': it is missing"):
        write(tmp_path, {"phase": "quality", "metric": "loss", "value": 1.0}, preset=None)


def test_numpy_scalars_are_stored_as_the_numbers_they_are(tmp_path: Path) -> None:
    write(tmp_path, {"phase": "quality", "metric": "loss", "value": np.float32(0.5), "batch_size": np.int64(7)})
    frame = read_results(tmp_path)
    assert (frame.value[0], frame.batch_size[0]) == (0.5, 7)


if __name__ == "__main__":
    head, _, _ = README.read_text().partition("Schema version")
    README.write_text(head + data_dictionary())
