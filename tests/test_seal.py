"""archbench.files.seal: whatever happens to a sealed file, it is read as it was written or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from archbench.errors import StorageError
from archbench.files.loader import read_json, read_lines
from archbench.files.seal import sealed, sealed_lines
from damages import count, refusals

CONTENT: dict[str, Any] = {
    "run_id": "20260101T000000-aaaaaa",
    "run": {"seed": 0, "lengths": [128, 512], "rate": 3e-4, "corpus": None, "compile": False},
    "model": {10: "ten", 9: "nine"},
    "facts": {"text": 'a "quoted\\" text: ±½ \ud800', "loss": float("inf")},
}
ROWS = [{"metric": "loss", "value": 0.1 + 0.2, "repeat": step} for step in range(5)]


@pytest.mark.parametrize("indent", [None, 2])
def test_no_damage_to_a_sealed_object_is_read_as_data(tmp_path: Path, indent: int | None) -> None:
    file = tmp_path / "config.json"
    file.write_text(sealed(CONTENT, indent=indent))
    whole = read_json(file, next_step="Restore it", sealing="optional")
    assert whole == json.loads(json.dumps(CONTENT))
    assert refusals(file, lambda: read_json(file, next_step="Restore it", sealing="optional"), count(150)) > 0.9


def test_no_damage_to_sealed_lines_is_read_as_data(tmp_path: Path) -> None:
    file = tmp_path / "rows-train.jsonl"
    file.write_text(sealed_lines(ROWS))
    assert read_lines(file, next_step="Restore it", sealing="required") == ROWS
    assert refusals(file, lambda: read_lines(file, next_step="Restore it", sealing="required"), count(150)) > 0.9


@pytest.mark.parametrize("rows", [[], ROWS])
def test_files_of_earlier_archbenches_have_no_seal_and_are_read(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    (tmp_path / "rows").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "config").write_text(json.dumps(CONTENT))
    assert read_lines(tmp_path / "rows", next_step="Restore it", sealing="optional") == rows
    assert read_json(tmp_path / "config", next_step="Restore it", sealing="optional").keys() == CONTENT.keys()
    for name, read in (("rows", read_lines), ("config", read_json)):
        with pytest.raises(StorageError, match="missing"):
            read(tmp_path / name, next_step="Restore it", sealing="required")


def test_a_sealed_file_may_be_indented_anew(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(sealed(CONTENT)), indent=7, sort_keys=True))
    assert read_json(file, next_step="Restore it", sealing="required")["run_id"] == CONTENT["run_id"]
