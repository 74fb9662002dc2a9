"""archbench.files.loader: whatever stands in a file's place, the reader ends at once with an error that names it."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest
from pydantic import BaseModel

from archbench.errors import CheckpointError, StorageError
from archbench.files.loader import read_json, read_model


class Point(BaseModel):
    x: float
    y: float


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "damaged"),
        (b'{"x": 1', "damaged"),
        (b'{"x": \xff}', "UTF-8"),
        (b"[" * 100_000, "damaged"),
        (b"1" * 10_000, "damaged"),
        (b"[1, 2]", "damaged"),
        (b'{"x": 1}', "y"),
        (b'{"x": 1, "y": "far"}', "y"),
        (b" " * 1000, "larger than 900 bytes"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(tmp_path: Path, content: bytes, cause: str) -> None:
    file = tmp_path / "point.json"
    file.write_bytes(content)
    limit = 900 if len(content) == 1000 else 1 << 20
    with pytest.raises(CheckpointError) as caught:
        read_model(Point, file, limit=limit, error=CheckpointError, next_step="Restore it")
    assert caught.value.culprit == str(file)
    assert cause in caught.value.cause
    assert caught.value.next_step == "Restore it"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_devices_and_folders_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path, tmp_path / "missing"):
        with pytest.raises(StorageError) as caught:
            read_json(path, next_step="Name a file")
        assert caught.value.culprit == str(path)


def test_a_huge_file_costs_no_more_memory_than_the_limit(tmp_path: Path) -> None:
    huge = tmp_path / "huge.json"
    with huge.open("wb") as file:
        file.truncate(1 << 34)
    tracemalloc.start()
    with pytest.raises(StorageError, match="larger"):
        read_json(huge, limit=1 << 20, next_step="Name a smaller one")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20  # the content, and the buffer that grows to hold it


def test_a_type_that_is_no_model_is_validated_too(tmp_path: Path) -> None:
    file = tmp_path / "lengths.json"
    file.write_text('{"a": [1, 2], "b": []}')
    assert read_model(dict[str, list[int]], file, next_step="Restore it") == {"a": [1, 2], "b": []}
    file.write_text('{"a": ["x"]}')
    with pytest.raises(StorageError, match=r"a\.0"):
        read_model(dict[str, list[int]], file, next_step="Restore it")
