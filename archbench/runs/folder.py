"""A run's folder: everything that its phases need, so that each can run in a child process.

::

    OUT/RUN_ID/
      config.json          the frozen RunConfig, the resolved model configuration, facts
      tokenizer/           the tokenizer, so that the folder stands alone
      check.json           what the conformance checks found, each with its evidence
      checkpoints/         the last two training checkpoints
      rows-PHASE.jsonl     one JSON object a measurement, written when the phase is done
      documents.parquet    per-document scores, for later statistics
      blocks.parquet       nats of each 512 tokens of a document, for statistics where documents are few
      training.jsonl       every training step, for trackers
      samples-TASK.jsonl   archbench eval: every question of a task, with what the model answered
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, create_model

from archbench.config import RunConfig
from archbench.errors import ArchbenchError, ResourceError, StorageError, UnknownNameError, did_you_mean, storing
from archbench.files.loader import read_lines, read_sealed, validated
from archbench.files.seal import sealed, sealed_lines
from archbench.files.writing import write_text
from archbench.results.lock import locked
from archbench.results.reading import run_failed
from archbench.results.schema import COLUMNS, Role

E = TypeVar("E", bound=ArchbenchError | None)

CONFIG = "config.json"

EVAL = "eval"
"""The phase that ``archbench eval`` adds to a finished run."""


class _Versions(BaseModel):
    """The part of :func:`archbench.measure.machine.versions` that is asked for when a run is resumed."""

    model_config = ConfigDict(extra="allow")

    torch_version: str


class _Facts(BaseModel):
    """What was found before the first phase. Earlier archbenches wrote fewer facts, and later ones write more."""

    model_config = ConfigDict(extra="allow")

    plugin_package: str
    plugin_version: str | None
    plugin_revision: str | None = None
    role: Role | None = None
    corpus: str
    tokenizer: str
    lossless: bool | None
    scored: str | None = None
    weights_sha256: str | None = None
    versions: _Versions


class _ModelFields(BaseModel):
    """The resolved model configuration: what every model has, and what the plugin's has beside it."""

    model_config = ConfigDict(extra="allow")

    vocab_size: PositiveInt
    context_length: PositiveInt


class _Saved(BaseModel):
    """The content of ``config.json``."""

    model_config = ConfigDict(extra="forbid")

    run_id: str
    run: RunConfig
    model: _ModelFields
    facts: _Facts


_VALUES: dict[str, Any] = {
    "string": str,
    "int64": Annotated[int, Field(ge=-(2**63), lt=2**63)],
    "double": float,
    "bool": bool,
    "timestamp": str,
}
_COLUMNS: dict[str, Any] = {
    column.name: (_VALUES[column.type] | None, ... if column.name in ("phase", "metric") else None)
    for column in COLUMNS
}
_Row = create_model("_Row", __config__=ConfigDict(extra="forbid", strict=True), **_COLUMNS)
"""A line of ``rows-PHASE.jsonl``: some of the columns of the tidy table."""


@dataclass(frozen=True)
class RunFolder:
    """One run's folder and what its ``config.json`` says.

    Attributes:
        path: ``OUT/RUN_ID``.
        config: the frozen configuration.
        model: the resolved model configuration's fields.
        facts: plugin, data, versions and machine, as found before the first phase.
        sealed: whether its files have checksums; earlier archbenches wrote none.
    """

    path: Path
    config: RunConfig
    model: dict[str, Any]
    facts: dict[str, Any]
    sealed: bool = True

    @property
    def run_id(self) -> str:
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer"

    @property
    def resume_command(self) -> str:
        """The command that continues the run."""
        out = shlex.quote(str(self.path.parent))
        return f"archbench run {self.config.architecture} --resume {self.run_id} --out {out}"

    @property
    def has_vanished(self) -> bool:
        """Whether somebody has deleted, renamed or unmounted it."""
        return not (self.path / CONFIG).exists()

    @property
    def resuming(self) -> str:
        """How the run is continued, as a clause; a study continues its runs."""
        return "run the same command again" if self.facts.get("role") else f"continue with: {self.resume_command}"

    def resumable(self, error: E) -> E:
        """The error; of what the system refused, the next step says how the run is continued."""
        if isinstance(error, ResourceError | StorageError) and self.resuming not in error.next_step:
            error.next_step += f", then {self.resuming}"
        return error

    @property
    def finished(self) -> bool:
        """Whether its results are written, and it has not failed."""
        results = self.path.with_suffix(".parquet")
        return results.exists() and not run_failed(results)

    def owned(self) -> AbstractContextManager[None]:
        """Within this context the run belongs to this process alone; a UsageError names another that has it."""
        return locked(self.path, "Wait for its end, or end it")

    def storing(self, file: Path) -> AbstractContextManager[None]:
        """Within this context an OSError becomes a StorageError that says how to continue the run."""
        return storing(str(file), f"Make room, then {self.resuming}")

    def as_dict(self) -> dict[str, Any]:
        """The content of ``config.json``, and of the JSON file beside the results."""
        return {
            "run_id": self.run_id,
            "run": self.config.model_dump(mode="json"),
            "model": self.model,
            "facts": self.facts,
        }

    def create(self, save_tokenizer: Callable[[Path], object]) -> None:
        """Make the folder with the tokenizer, and write ``config.json`` last: a run without it has not begun.

        Raises:
            StorageError: the output folder cannot be written.
        """
        with storing(f"output folder {self.path.parent}", "Choose another with --out"):
            self.path.mkdir(parents=True)
            save_tokenizer(self.tokenizer)
            write_text(self.path / CONFIG, sealed(self.as_dict()))

    def rows_file(self, phase: str) -> Path:
        return self.path / f"rows-{phase}.jsonl"

    def write_rows(self, phase: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Keep a finished phase's rows.

        Raises:
            StorageError: the folder cannot be written.
        """
        with self.storing(self.rows_file(phase)):
            write_text(self.rows_file(phase), sealed_lines(rows))

    def read_rows(self, phase: str) -> list[dict[str, Any]]:
        """A finished phase's rows; JSON keeps every bit of their floats.

        Raises:
            StorageError: the file is damaged.
        """
        file, step = self.rows_file(phase), f"Delete it to measure that phase again, with: {self.resume_command}"
        lines = read_lines(file, next_step=step, sealing="required" if self.sealed else "optional")
        rows = (
            validated(_Row, line, error=StorageError, culprit=f"{file}, row {number}", next_step=step)
            for number, line in enumerate(lines, 1)
        )
        return [row.model_dump(exclude_unset=True) for row in rows]


def open_run(out: str | Path, run: str | Path) -> RunFolder:
    """The folder of an earlier run, by its id or its path; ``last`` is the newest.

    Raises:
        UnknownNameError: no such run under ``out``.
        StorageError: its ``config.json`` cannot be read.
    """
    out, run_id = Path(out), str(run)
    if Path(run).name != run_id and (Path(run) / CONFIG).is_file():
        out, run_id = Path(run).absolute().parent, Path(run).absolute().name
    known = sorted(path.parent.name for path in out.glob(f"*/{CONFIG}"))
    if run_id == "last" and known:
        run_id = known[-1]
    path = out / run_id
    if run_id not in known:
        raise UnknownNameError(f"run {run_id!r}", f"{out} has no such run", did_you_mean(run_id, known))
    file, step = path / CONFIG, "Restore the file, or delete the folder and start a new run"
    content, has_seal = read_sealed(file, next_step=step)
    saved = validated(_Saved, content, error=StorageError, culprit=str(file), next_step=step)
    if saved.run_id != run_id:
        raise StorageError(str(file), f"it is of another run, {saved.run_id!r}, than its folder's name says", step)
    model, facts = (part.model_dump(exclude_unset=True) for part in (saved.model, saved.facts))
    return RunFolder(path, saved.run, model, facts, sealed=has_seal)
