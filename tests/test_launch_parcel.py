"""Parcels between machines: what is sent, and what a damaged or hostile one cannot do."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from archbench.errors import LauncherError
from archbench.launch import parcel
from archbench.launch.parcel import accepted, packed, unpacked

OUTCOMES = [("runs/a", "cells/a.json"), ("runs/b", "cells/b.json")]


def filled(folder: Path, *, records: str = "ab") -> Path:
    for name in "ab":
        (folder / "runs" / name / "checkpoints").mkdir(parents=True)
        (folder / "runs" / name / "rows").write_text(name)
        (folder / "runs" / name / "checkpoints" / "weights").write_text("w")
    (folder / "cells").mkdir()
    for name in records:
        (folder / "cells" / f"{name}.json").write_text(f"record {name}")
    return folder


def tar(**files: bytes | str) -> bytes:
    """A parcel of files, and of links where the content is a path."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as made:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            if isinstance(data, str):
                info.type, info.linkname = tarfile.SYMTYPE, data
                made.addfile(info)
            else:
                info.size = len(data)
                made.addfile(info, io.BytesIO(data))
    return hashlib.sha256(content.getvalue()).digest() + content.getvalue()


def contents(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}


def test_runs_come_back_whole_and_only_unfinished_ones_bring_checkpoints(tmp_path: Path) -> None:
    there, here = filled(tmp_path / "there", records="a"), tmp_path / "here"
    here.mkdir()
    accepted(packed(there, [], OUTCOMES), here, OUTCOMES, culprit="host there")
    assert contents(here) == {
        "runs/a/rows": "a",
        "cells/a.json": "record a",
        "runs/b/rows": "b",
        "runs/b/checkpoints/weights": "w",
    }


def test_what_has_a_record_is_not_replaced_and_what_was_interrupted_is(tmp_path: Path) -> None:
    there, here = filled(tmp_path / "there"), filled(tmp_path / "here", records="a")
    (here / "cells" / "a.json").write_text("first")
    (here / "runs" / "a" / "rows").write_text("first")
    (here / "runs" / "b" / "leftover").write_text("old")
    accepted(packed(there, [], OUTCOMES), here, OUTCOMES, culprit="host there")
    found = contents(here)
    assert (found["cells/a.json"], found["runs/a/rows"]) == ("first", "first")
    assert (found["cells/b.json"], found["runs/b/rows"]) == ("record b", "b")
    assert "runs/b/leftover" not in found


def test_only_what_is_needed_is_sent(tmp_path: Path) -> None:
    there, here = filled(tmp_path / "there"), tmp_path / "here"
    unpacked(packed(there, ["runs/a", "cells/missing.json"]), here, ["runs/a"], culprit="the submitter")
    assert contents(here) == {"runs/a/rows": "a"}


@pytest.mark.parametrize(
    "files",
    [
        {"../out": b"x"},
        {"/tmp/out": b"x"},
        {"runs/a/../../../out": b"x"},
        {"runs/c/rows": b"x"},
        {"runs/a/rows": "/etc"},
    ],
    ids=["above", "absolute", "through", "another", "link"],
)
def test_nothing_outside_what_was_agreed_on_is_written(tmp_path: Path, files: dict[str, bytes | str]) -> None:
    here = tmp_path / "here"
    here.mkdir()
    with pytest.raises(LauncherError, match="host there"):
        accepted(tar(**files), here, OUTCOMES, culprit="host there")
    assert contents(tmp_path) == {}
    assert not list(here.iterdir())


def test_a_damaged_or_enormous_parcel_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, here = packed(filled(tmp_path / "there"), [], OUTCOMES), tmp_path / "here"
    here.mkdir()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0xFF
    for content in (b"", b"no parcel", whole[: len(whole) // 2], whole[:-4], bytes(damaged)):
        with pytest.raises(LauncherError, match="host there"):
            accepted(content, here, OUTCOMES, culprit="host there")
    monkeypatch.setattr(parcel, "LIMIT", 10)
    for attempt in (
        lambda: accepted(whole, here, OUTCOMES, culprit="host there"),
        lambda: packed(tmp_path / "there", [], OUTCOMES),
    ):
        with pytest.raises(LauncherError, match="there"):
            attempt()
    assert not list(here.iterdir())
