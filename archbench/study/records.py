"""The files of a study's folder: its plan, and a record of each finished cell."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from archbench import __version__
from archbench.errors import StorageError
from archbench.files.loader import read_model
from archbench.files.writing import write_text
from archbench.study.outcome import Record

R = TypeVar("R", bound=Record)

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


def read_record(kind: type[R], folder: Path, key: str) -> R | None:
    """The record of a finished cell; None if the cell is not measured yet.

    Raises:
        StorageError: the record cannot be read.
    """
    file = _record_file(folder, key)
    if not file.exists():
        return None
    return read_model(kind, file, next_step="Delete it to measure that cell again")


def write_record(folder: Path, record: Record) -> None:
    """Keep the record of a cell.

    Raises:
        StorageError: the folder cannot be written.
    """
    file = _record_file(folder, record.key)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(record.model_dump()) + "\n")
    except OSError as error:
        raise StorageError(str(file), f"it cannot be written ({error.strerror})", MAKE_ROOM) from error


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
        return read_model(dict[str, Any], self.path, next_step="Delete it; what was measured is kept")

    def write(self, content: dict[str, Any]) -> None:
        """Replace the content.

        Raises:
            StorageError: it cannot be written.
        """
        try:
            write_text(self.path, json.dumps(content, indent=2) + "\n")
        except OSError as error:
            raise StorageError(str(self.path), f"it cannot be written ({error.strerror})", MAKE_ROOM) from error


def _record_file(folder: Path, key: str) -> Path:
    return folder / "cells" / f"{key}.json"
