"""What all outcomes share. One pydantic model writes an outcome's JSON and validates it when it is read.

Quantities are in base units (seconds, bytes, tokens, FLOP, bits per byte, nats per token). Null is an unknown quantity.
``python -m archbench.study.json_schema FOLDER`` writes the JSON Schemas.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from archbench.errors import StorageError
from archbench.files.loader import read_json, validated
from archbench.files.parquet import sealed_parquet
from archbench.files.seal import sealed
from archbench.files.writing import write_bytes, write_text
from archbench.results.schema import ROWS

if TYPE_CHECKING:
    import pyarrow as pa

OutcomeName = Literal["ok", "diverged", "failed"]

Finite = Annotated[
    float | None,
    AfterValidator(lambda value: value if value is not None and math.isfinite(value) else None),
]
"""A number; infinity and NaN become None, because JSON has neither."""


def _plain(name: str) -> str:
    """Of a run or cell whose files are looked for under that name: it leads to no other folder."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) is None:
        raise ValueError(f"{name[:60]!r} is no name of a run or cell")
    return name


def _elapsed(seconds: float) -> float:
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{seconds} is no time")
    return seconds


Name = Annotated[str, AfterValidator(_plain)]
Elapsed = Annotated[float, AfterValidator(_elapsed)]
"""Seconds from a start to an end."""

Time = Annotated[datetime, PlainSerializer(lambda time: time.isoformat(timespec="seconds"), return_type=str)]


class Part(BaseModel):
    """A part of an outcome. Fields that a later version adds are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @classmethod
    def of(cls, source: object, **more: Any) -> Self:
        """From attributes of ``source`` with the same names, and ``more``."""
        named = {name: getattr(source, name) for name in cls.model_fields if name not in more and hasattr(source, name)}
        return cls(**named, **more)


class Keyed(Part):
    """A cell's key: 16 hex digits; cells that measure the same with the same code have the same key."""

    key: Name


class Ended(Part):
    """How a cell ended.

    Attributes:
        run_id: of its run; None if it ended before the run began.
        outcome: ok, diverged (the loss was no longer finite) or failed (by an error).
        cause: of a failure or divergence, in a clause.
        seconds: from start to end.
    """

    run_id: Name | None
    outcome: OutcomeName
    cause: str | None = None
    seconds: Elapsed = 0.0


_OF_LAUNCHERS = ("host", "device_name", "driver", "attempts")


class Record(Ended, Keyed):
    """A finished cell, as ``cells/KEY.json`` holds it: its key, then how it ended.

    Attributes:
        host: where a launcher had it measured; absent for the machine of the study.
        device_name, driver: of its device there; absent where ``host`` is.
        attempts: how earlier attempts on it ended; absent if there was none.
    """

    host: str | None = None
    device_name: str | None = None
    driver: str | None = None
    attempts: tuple[str, ...] = ()

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = handler(self)
        return {name: value for name, value in fields.items() if value or name not in _OF_LAUNCHERS}


class Interval(Part):
    """Bounds of a confidence interval."""

    low: Finite
    high: Finite


class Seconds(Part):
    """Time of the whole study: as predicted, and as measured."""

    predicted: Elapsed
    measured: Elapsed


class Outcome(Part):
    """The first fields of every outcome, and how it is read and written.

    Attributes:
        doubts: why numbers are not to be believed (:mod:`archbench.results.doubts`); absent where there is no reason.
        file, plan_file: names of the outcome's file and of its plan's.
        noun, command_name: for messages.
        newest: number of the format; it rises when a field changes its meaning.
    """

    file: ClassVar[str]
    plan_file: ClassVar[str]
    noun: ClassVar[str]
    command_name: ClassVar[str]
    newest: ClassVar[int] = 1

    format: int
    archbench_version: str
    git_revision: str | None
    command: str
    finished: Time
    machine: dict[str, Any]
    doubts: list[str] = Field(default_factory=list)

    @classmethod
    def is_in(cls, folder: Path) -> bool:
        """Whether the folder holds such a study, finished or not."""
        return (folder / cls.file).is_file() or (folder / cls.plan_file).is_file()

    @classmethod
    def again(cls) -> str:
        """How to replace a damaged file."""
        return f"Repeat the {cls.command_name} command: it writes the file again from the finished runs"

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The outcome in a study's folder.

        Raises:
            StorageError: the study is unfinished, its file is damaged, or a newer archbench wrote it.
        """
        file, again = folder / cls.file, cls.again()
        if not file.is_file():
            cause = f"its {cls.noun} is unfinished: it has a {cls.plan_file} and no {cls.file}"
            step = f"Finish it with the {cls.command_name} command that began it"
            raise StorageError(str(folder), cause, f"{step}, or show its runs: {folder}/runs/*/*.parquet")
        content = read_json(file, next_step=again, sealing="optional")
        if not isinstance(content, dict) or not isinstance(content.get("format"), int):
            raise StorageError(str(file), "it does not state its format", again)
        if content["format"] > cls.newest:
            cause = f"its format is {content['format']}, and this archbench reads formats up to {cls.newest}"
            raise StorageError(str(file), cause, "Install the newest archbench")
        return validated(cls, content, error=StorageError, culprit=str(file), next_step=again)

    def as_json(self) -> dict[str, Any]:
        """The content of the file. Fields that were absent from an older file stay absent."""
        return self.model_dump(mode="json", exclude_unset=True)

    def write(self, folder: Path, tables: Sequence[pa.Table]) -> None:
        """Write the rows, then the outcome, so that an outcome always has its rows beside it.

        Raises:
            StorageError: the folder cannot be written.
        """
        import pyarrow as pa

        try:
            if tables:
                write_bytes(folder / ROWS, sealed_parquet(pa.concat_tables(tables)))
            write_text(folder / self.file, sealed(self.as_json(), indent=1, allow_nan=False))
        except OSError as error:
            step = "Make room and run the same command again: what was measured is kept"
            raise StorageError(str(folder), f"the outcome cannot be written ({error.strerror})", step) from error


def heading(kind: type[Outcome], command: str, now: Mapping[str, Any]) -> dict[str, Any]:
    """The first fields of an outcome.

    Args:
        command: what the user typed.
        now: :func:`archbench.measure.machine.versions`.
    """
    return {
        "format": kind.newest,
        "archbench_version": now["archbench_version"],
        "git_revision": now["git_revision"],
        "command": command,
        "finished": datetime.now(UTC).replace(microsecond=0),
    }


def named_text(corpus: str) -> str:
    """Name of a corpus in a sentence; of a file or folder only the last part of its path."""
    return corpus if corpus.startswith("hf:") else corpus.rstrip("/").rpartition("/")[2]
