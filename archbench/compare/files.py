"""What a command that measures cells keeps in its folder: a record of each cell, then the rows and the outcome."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from archbench import __version__
from archbench.errors import StorageError, UsageError
from archbench.runs.folder import write_text

if TYPE_CHECKING:
    from dataclasses import Field

ROWS = "runs.parquet"


class Recorded(Protocol):
    """A record: a dataclass of plain values, one of them the cell's key."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def key(self) -> str: ...


R = TypeVar("R", bound=Recorded)


def identity_key(**identity: Any) -> str:
    """16 hex digits of all that a cell depends on, the versions of archbench and torch among it."""
    whole = {"archbench": __version__, "torch": metadata.version("torch"), **identity}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]


def read_record(kind: type[R], folder: Path, key: str) -> R | None:
    """The record of a cell that is finished; None where it is still to be measured.

    Raises:
        StorageError: the record cannot be read.
    """
    file = _record_file(folder, key)
    try:
        return kind(**json.loads(file.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        step = "Delete it, to measure that cell again"
        raise StorageError(str(file), f"it cannot be read ({error})", step) from error


def write_record(folder: Path, record: Recorded) -> None:
    """Keep the record of a cell.

    Raises:
        StorageError: the folder cannot be written.
    """
    file = _record_file(folder, record.key)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(asdict(record)) + "\n")
    except OSError as error:
        step = "Make room, and run the same command again"
        raise StorageError(str(file), f"it cannot be written ({error.strerror})", step) from error


def require_same_plan(file: Path, digest: str, plan: dict[str, Any], what: str) -> None:
    """Keep the plan that a folder is begun with, and refuse to go on with another one in it.

    Args:
        file: of the plan, in that folder.
        digest: equal for plans that continue each other.
        plan: to be kept beside it, for people to read.
        what: the command measures, such as "a probe".

    Raises:
        UsageError: the folder holds one of another plan.
        StorageError: it cannot be read or written.
    """
    try:
        if file.exists() and json.loads(file.read_text()).get("digest") != digest:
            step = "Choose another folder with --out, or leave it out"
            raise UsageError(str(file.parent), f"it holds {what} of another plan", step)
        write_text(file, json.dumps({"digest": digest, "plan": plan}, indent=2) + "\n")
    except (OSError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        cause = f"it cannot be read or written ({error})"
        raise StorageError(str(file), cause, "Delete it; what was measured is kept") from error


def heading(outcome_format: int, command: str, now: Mapping[str, Any]) -> dict[str, Any]:
    """What every outcome begins with.

    Args:
        outcome_format: the number that is raised when a field changes its meaning.
        command: what the user typed.
        now: :func:`archbench.measure.machine.versions`.
    """
    return {
        "format": outcome_format,
        "archbench_version": now["archbench_version"],
        "git_revision": now["git_revision"],
        "command": command,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write_outcome(folder: Path, tables: Sequence[pa.Table], name: str, outcome: dict[str, Any]) -> None:
    """The rows first: an outcome always has its rows beside it, where there are any.

    Raises:
        StorageError: the folder cannot be written.
    """
    try:
        if tables:
            temporary = folder / f".{ROWS}.tmp"
            pq.write_table(pa.concat_tables(tables), temporary, compression="zstd")
            temporary.replace(folder / ROWS)
        write_text(folder / name, json.dumps(outcome, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    except OSError as error:
        step = "Make room, and run the same command again: what was measured is kept"
        raise StorageError(str(folder), f"the outcome cannot be written ({error.strerror})", step) from error


def _record_file(folder: Path, key: str) -> Path:
    return folder / "cells" / f"{key}.json"
