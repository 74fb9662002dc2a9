"""The files of a study's folder: its plan, and a record of each finished cell."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from archbench import __version__
from archbench.errors import ConfigError, StorageError, storing
from archbench.files.loader import read_model, validated
from archbench.files.seal import sealed
from archbench.files.writing import create_once, write_text
from archbench.study.outcome import Elapsed, Record

R = TypeVar("R", bound=Record)

PLANNED = "planned.json"
"""What a study plans to measure."""

CELLS = "cells"
"""Folder of the records within that of a study."""

MAKE_ROOM = "Make room and run the same command again"


def identity_key(**identity: Any) -> str:
    """16 hex digits of everything that a cell depends on, including the versions of archbench and torch."""
    whole = {"archbench": __version__, "torch": _torch_version(), **identity}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]


@cache
def _torch_version() -> str:  # it is read from a file, and a ladder has hundreds of cells
    return metadata.version("torch")


def plan_digest(values: dict[str, Any]) -> str:
    """Eight hex digits of the part of a plan that must stay the same in one folder."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def named_once(**values: Sequence[str | float] | None) -> None:
    """Refuse a plan that names something twice: its cells would be counted twice.

    Args:
        values: what they are, with ``_`` for a space -> the values.

    Raises:
        ConfigError: a value occurs twice.
    """
    for what, given in values.items():
        if twice := [value for value, count in Counter(given or ()).items() if count > 1]:
            what = what.replace("_", " ")
            shown = f"{twice[0]:g}" if isinstance(twice[0], float) else repr(twice[0])
            raise ConfigError(f"{what} {shown}", "it is named twice", f"Name each {what} once")


def read_record(kind: type[R], folder: Path, key: str) -> R | None:
    """The record of a finished cell; None if the cell is not measured yet.

    Raises:
        StorageError: the record cannot be read.
    """
    file = _record_file(folder, key)
    if not file.exists():
        return None
    step = "Delete it to measure that cell again"
    record = read_model(kind, file, next_step=step, sealing="optional")
    if record.key != key:
        raise StorageError(str(file), f"it is damaged (its key is {record.key!r}, unlike its name)", step)
    return record


def write_record(folder: Path, record: R) -> R:
    """Keep the record of a cell. Returns the one that is kept: of several processes that measured it, the first's.

    Raises:
        StorageError: the folder cannot be written.
    """
    file = _record_file(folder, record.key)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if create_once(file, sealed(record.model_dump(), indent=None).encode()):
            return record
    except OSError as error:
        raise StorageError(str(file), f"it cannot be written ({error.strerror})", MAKE_ROOM) from error
    kept = read_record(type(record), folder, record.key)
    assert kept is not None
    return kept


class PlannedCell(BaseModel):
    """A cell that is planned: its key, its architecture, what it is for, and its predicted seconds."""

    key: str
    architecture: str
    sort: str
    seconds: Elapsed


class PlannedStage(BaseModel):
    """Cells that are measured side by side, or by one process in turns; they come after those of earlier stages."""

    turns: bool
    cells: list[PlannedCell]


class _Planned(BaseModel):
    stages: list[PlannedStage]


def write_planned(folder: Path, stages: list[PlannedStage]) -> None:
    """Keep what is planned, for ``archbench status``.

    Raises:
        StorageError: the folder cannot be written.
    """
    file = folder / PLANNED
    with storing(str(file), MAKE_ROOM):
        write_text(file, sealed(_Planned(stages=stages).model_dump(), indent=None))


def read_planned(folder: Path) -> list[PlannedStage]:
    """What is planned; empty before the first prediction.

    Raises:
        StorageError: the file is damaged.
    """
    file = folder / PLANNED
    if not file.exists():
        return []
    step = "Delete it; the command that began the study writes it again"
    return read_model(_Planned, file, next_step=step, sealing="optional").stages


class _Plan(BaseModel):
    """What is asked of the plan of an earlier session, whatever the study."""

    architectures: list[str]


class _Analysis(BaseModel):
    seeds: PositiveInt
    margin: Annotated[float, Field(gt=0, lt=1)]


class _Kept(BaseModel):
    """The types of a plan file. All but the first two may be missing: not every study or session has them."""

    model_config = ConfigDict(strict=True)

    digest: str
    plan: _Plan
    command: str = ""
    outcome: str | None = None
    predicted_seconds: Elapsed = 0.0
    measured_seconds: Elapsed = 0.0
    budget: Annotated[
        dict[Literal["flops", "tokens", "seconds"], Annotated[float, Field(gt=0, allow_inf_nan=False)]],
        Field(min_length=1, max_length=1),
    ] = {}
    turns: list[list[str]] = []
    looks: list[_Analysis] = []


@dataclass(frozen=True)
class PlanFile:
    """The plan of a folder, and what its sessions keep for the next one."""

    path: Path

    def read(self) -> dict[str, Any]:
        """Its content; empty if there is no file.

        Raises:
            StorageError: it cannot be read.
        """
        if not self.path.exists():
            return {}
        step = "Delete it; what was measured is kept"
        content = read_model(dict[str, Any], self.path, next_step=step, sealing="optional")
        validated(_Kept, content, error=StorageError, culprit=str(self.path), next_step=step)
        return content

    def write(self, content: dict[str, Any]) -> None:
        """Replace the content.

        Raises:
            StorageError: it cannot be written.
        """
        try:
            write_text(self.path, sealed(content))
        except OSError as error:
            raise StorageError(str(self.path), f"it cannot be written ({error.strerror})", MAKE_ROOM) from error


def _record_file(folder: Path, key: str) -> Path:
    return folder / CELLS / f"{key}.json"
