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
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from archbench.config import RunConfig
from archbench.errors import ArchbenchError, ResourceError, StorageError, UnknownNameError, did_you_mean, storing
from archbench.files.writing import write_text
from archbench.results.lock import locked
from archbench.results.reading import run_failed

E = TypeVar("E", bound=ArchbenchError | None)

CONFIG = "config.json"


@dataclass(frozen=True)
class RunFolder:
    """One run's folder and what its ``config.json`` says.

    Attributes:
        path: ``OUT/RUN_ID``.
        config: the frozen configuration.
        model: the resolved model configuration's fields.
        facts: plugin, data, versions and machine, as found before the first phase.
    """

    path: Path
    config: RunConfig
    model: dict[str, Any]
    facts: dict[str, Any]

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

    def resumable(self, error: E) -> E:
        """The error; of what the system refused, the next step names the command that continues the run."""
        if isinstance(error, ResourceError | StorageError) and self.resume_command not in error.next_step:
            error.next_step += f", then continue with: {self.resume_command}"
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
        return storing(str(file), f"Make room, then continue with: {self.resume_command}")

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
            write_text(self.path / CONFIG, json.dumps(self.as_dict(), indent=2) + "\n")

    def rows_file(self, phase: str) -> Path:
        return self.path / f"rows-{phase}.jsonl"

    def write_rows(self, phase: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Keep a finished phase's rows.

        Raises:
            StorageError: the folder cannot be written.
        """
        text = "".join(json.dumps(dict(row)) + "\n" for row in rows)
        with self.storing(self.rows_file(phase)):
            write_text(self.rows_file(phase), text)

    def read_rows(self, phase: str) -> list[dict[str, Any]]:
        """A finished phase's rows; JSON keeps every bit of their floats."""
        return [json.loads(line) for line in self.rows_file(phase).read_text().splitlines()]


def open_run(out: str | Path, run_id: str) -> RunFolder:
    """The folder of an earlier run; ``last`` is the newest.

    Raises:
        UnknownNameError: no such run under ``out``.
        StorageError: its ``config.json`` cannot be read.
    """
    out = Path(out)
    known = sorted(path.parent.name for path in out.glob(f"*/{CONFIG}"))
    if run_id == "last" and known:
        run_id = known[-1]
    path = out / run_id
    if run_id not in known:
        raise UnknownNameError(f"run {run_id!r}", f"{out} has no such run", did_you_mean(run_id, known))
    try:
        content = json.loads((path / CONFIG).read_text())
        return RunFolder(path, RunConfig(**content["run"]), content["model"], content["facts"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"{path / CONFIG}", f"it cannot be read ({error})", "Delete the folder, or restore the file"
        ) from error
