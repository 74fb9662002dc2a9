"""Cells that are runs. Each has a folder named by its key, and runs once."""

from __future__ import annotations

import hashlib
import inspect
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import pandas as pd

from archbench.config import RunConfig
from archbench.errors import ArchbenchError, KilledError, ResourceError, StorageError, storing
from archbench.measure.machine import usable_cpus
from archbench.plugin.architecture import Architecture
from archbench.results.reading import read_results, run_failed
from archbench.results.schema import ROLES
from archbench.runs.conformance import read_findings
from archbench.runs.folder import CONFIG, EVAL, open_run
from archbench.runs.run import resume, run
from archbench.study.contract import Contender, Plan
from archbench.study.outcome import Record
from archbench.study.records import CELLS, MAKE_ROOM, identity_key, read_record
from archbench.study.task_accuracy import TaskPlan

Stage = Literal["pilot", "tune", "seed", "speed", "cost", "point"]

Budget = Mapping[str, float]
"""flops, tokens or seconds -> its amount, as :class:`archbench.config.TrainingConfig` takes it."""

PILOT_STEPS = 20

FIRST_TUNING_SEED = 1_000
"""First seed of the tuning runs. The runs that confirm begin at 0, so their seeds are fresh."""


class RunPlan(Plan, Protocol):
    """The plan of a study whose cells are runs: they share a configuration."""

    @property
    def run(self) -> RunConfig: ...


class TuningPlan(RunPlan, Protocol):
    """The plan of a study that also searches for learning rates."""

    @property
    def tuning_seeds(self) -> int: ...
    @property
    def tuning_share(self) -> float: ...
    @property
    def tunes(self) -> bool: ...
    @property
    def factors(self) -> tuple[float, ...]: ...


@dataclass(frozen=True)
class RunCell:
    """One run of a study.

    Attributes:
        stage: its purpose: pilot (predicts the time), tune (a learning rate), seed (a fresh seed at the chosen learning
            rate), speed (one turn), cost (one context length), point (of a ladder).
        config: of the whole run.
        key: of the configuration, the place in the plan, and the code.
        context_length: T of the model.
        contender: key of its contender.
        factor: learning rate / the recipe's; stage tune only.
        block: number of the sweep; stage speed only.
        repeated: whether it is the baseline's second turn in a sweep, for the noise floor.
        checked_by: key of the cell whose conformance checks count for this one too, if the model is the same.
        evaluation: what the trained model is asked, before its weights go.
    """

    stage: Stage
    config: RunConfig
    key: str
    context_length: int
    contender: tuple[str, int | None] = ("", None)
    factor: float | None = None
    block: int | None = None
    repeated: bool = False
    checked_by: str | None = None
    evaluation: TaskPlan | None = None

    @property
    def architecture(self) -> str:
        return self.config.architecture

    @property
    def device(self) -> str:
        return self.config.device

    @property
    def plugins(self) -> tuple[str, ...]:
        return self.config.plugins

    @property
    def needs(self) -> tuple[str, ...]:
        """Files of the study that it reads: its own run, if it was interrupted, and the checks of its pilot."""
        checked = () if self.checked_by is None else (f"{CELLS}/{self.checked_by}.json", f"runs/{self.checked_by}")
        return (f"runs/{self.key}", *checked)

    @property
    def outside(self) -> tuple[str, ...]:
        """Files and folders that it reads elsewhere."""
        return places_outside(self.config, None if self.evaluation is None else self.evaluation.data)

    def measure(self, folder: Path, trackers: Sequence[str]) -> Record:
        """Run, or resume an interrupted run. The record has an error that ended the run.

        Raises:
            StorageError: the folder cannot be written.
            ResourceError, KilledError: memory ran out.
        """
        out = folder / "runs" / self.key
        try:
            frame = self._frame(folder, out, trackers)
            self._ask(frame, out)
        except (StorageError, ResourceError, KilledError):
            raise
        except ArchbenchError as error:
            cause = f"{error.culprit}: {error.cause}"
            record = Record(key=self.key, run_id=_run_id(out), outcome="failed", cause=cause)
        else:
            record = Record(key=self.key, run_id=str(frame.run_id.iloc[0]), outcome="ok")
            diverged = frame[frame.metric == "diverged"].value
            if len(diverged):
                cause = f"its loss was no longer finite at update {diverged.iloc[0]:.0f}"
                record = record.model_copy(update={"outcome": "diverged", "cause": cause})
        for checkpoints in out.glob("*/checkpoints"):  # nobody reads them, and many runs would leave gigabytes
            with storing(str(checkpoints), MAKE_ROOM):
                shutil.rmtree(checkpoints)
        return record

    def _ask(self, frame: pd.DataFrame, out: Path) -> None:
        """Ask the trained model what the plan says, unless it diverged or was asked before an interruption."""
        if self.evaluation is None or frame.metric.eq("diverged").any() or frame.phase.eq(EVAL).any():
            return
        from archbench.evaluation.task_scores import evaluate_run

        asked = self.evaluation
        run = open_run(out, str(frame.run_id.iloc[0]))
        evaluate_run(run, asked.tasks, shots=asked.shots, limit=asked.limit, data=asked.data, quiet=True)

    def _frame(self, folder: Path, out: Path, trackers: Sequence[str]) -> pd.DataFrame:
        """The rows of the run: from a new run, a resumed one, or a finished one that lacks only its record."""
        finished = sorted(out.glob("*.parquet"))
        if finished and not run_failed(finished[-1]):
            return read_results(finished[-1], trials=True)
        if (run_id := _run_id(out)) is not None:
            return resume(self.architecture, run_id, out, time_limit=self.config.time_limit, quiet=True)
        checked = read_record(Record, folder, self.checked_by) if self.checked_by is not None else None
        checked_by = run_folder(folder, checked) if checked is not None and checked.outcome == "ok" else None
        config = self.config.override(out=str(out), trackers=tuple(trackers) or self.config.trackers)
        return run(config, quiet=True, checked_by=checked_by, role=ROLES[self.stage])


def places_outside(config: RunConfig, data: str | None = None) -> tuple[str, ...]:
    """The files and folders that a run reads outside of its results, and ``data``; other texts have a name."""
    named = (*config.plugins, config.data.corpus, config.data.tokenizer, config.weights, config.speed.trace, data)
    return tuple(path for path in named if path is not None and os.path.exists(path))


def cell_key(config: RunConfig, source: str, **place: Any) -> str:
    """Key of a cell: of its configuration, its place in the plan and the code that it runs."""
    return identity_key(config=config.config_hash(), seed=config.seed, source=source, **place)


def source_digest(architecture: Architecture) -> str:
    """Version and digest of the files with the plugin's configuration and hooks: an edited plugin is measured again."""
    config = inspect.getsourcefile(architecture.info.config)
    files = dict.fromkeys(file for file in (config and Path(config), architecture.file) if file)  # often the same
    text = b"".join(file.read_bytes() for file in files)
    return architecture.version + hashlib.sha256(text).hexdigest()[:16]


def run_cell(
    plan: RunPlan,
    contender: Contender,
    stage: Stage,
    phases: tuple[str, ...],
    *,
    seed: int,
    training: Mapping[str, Any] | None = None,
    speed: Mapping[str, Any] | None = None,
    context_length: int | None = None,
    beside: bool = False,
    evaluation: TaskPlan | None = None,
    **place: Any,
) -> RunCell:
    """One run of a contender: the shared configuration with this run's own fields.

    Args:
        training: replaced fields of the recipe, including the budget.
        speed: replaced fields of the speed section.
        context_length: T of the model; None for the contender's own.
        beside: whether others run at the same time, so it gets a share of the threads.
        evaluation: what the trained model is asked; a cell without has the key that it always had.
        place: ``factor``, ``block`` and ``repeated`` of the cell.
    """
    shared = plan.run
    length = context_length or contender.context_length
    assert length is not None
    no_budget = {"tokens": None, "steps": None, "flops": None, "seconds": None} if training else {}
    config: RunConfig = shared.override(
        architecture=contender.architecture,
        overrides={**contender.overrides, "context_length": length},
        phases=phases,
        seed=seed,
        threads=_threads(plan) if beside else shared.threads,
        training={**dict(shared.training), **no_budget, **(training or {})},
        speed={**dict(shared.speed), **(speed or {})},
        out="results",
    )
    own: dict[str, Any] = {"block": place.get("block"), "repeated": place.get("repeated", False)}
    if evaluation is not None:
        own["evaluation"] = evaluation.model_dump(mode="json", exclude={"data"})
    key = cell_key(config, contender.source, stage=stage if stage == "pilot" else None, **own)
    checked_by = None if stage == "pilot" else pilot_cell(plan, contender).key
    return RunCell(stage, config, key, length, contender.key, checked_by=checked_by, evaluation=evaluation, **place)


def pilot_cell(plan: RunPlan, contender: Contender) -> RunCell:
    """A few updates and one scoring, to predict the time of a run."""
    training = {"steps": PILOT_STEPS, "validate_every": None, "checkpoint_every": None}
    phases = ("train", "quality")
    return run_cell(plan, contender, "pilot", phases, training=training, seed=FIRST_TUNING_SEED, beside=True)


def tuning_cells(plan: TuningPlan, contender: Contender, budget: Budget, factors: Sequence[float]) -> list[RunCell]:
    """Each learning rate with each tuning seed, on a share of the budget."""
    share, rate = budget_fields(budget, plan.tuning_share), plan.run.training.learning_rate
    return [
        run_cell(
            plan,
            contender,
            "tune",
            ("train", "quality"),
            training={**share, "learning_rate": rate * factor, "validate_every": None},
            seed=FIRST_TUNING_SEED + number,
            beside=True,
            factor=factor,
        )
        for factor in factors
        for number in range(plan.tuning_seeds)
    ]


def budget_fields(budget: Budget, share: float = 1.0) -> dict[str, Any]:
    """A share of the budget as fields of a recipe, in whole tokens."""
    return {unit: round(amount * share) if unit == "tokens" else amount * share for unit, amount in budget.items()}


def tokens_per_update(plan: RunPlan, contender: Contender) -> int:
    """B · T of one optimizer update, over all micro-batches."""
    assert contender.context_length is not None
    return plan.run.training.batch_size * plan.run.training.accumulation * contender.context_length


def updates_of(plan: RunPlan, contender: Contender, budget: Budget) -> float | None:
    """Optimizer updates in the budget; None if the number depends on the machine."""
    assert contender.size is not None
    per_update = tokens_per_update(plan, contender)
    if "tokens" in budget:
        return budget["tokens"] / per_update
    if "flops" in budget:
        return budget["flops"] / contender.size.training_flops_per_token / per_update
    return None


def rows_of(folder: Path, record: Record) -> pd.DataFrame:
    """The tidy rows of a cell's run; empty if it ended before its first row.

    Raises:
        StorageError: they cannot be read.
    """
    return read_results(sorted((folder / "runs" / record.key).glob("*.parquet")), trials=True)


def run_folder(folder: Path, record: Record) -> Path:
    """Folder in which the cell's run keeps its scores by document and block."""
    assert record.run_id is not None
    return folder / "runs" / record.key / record.run_id


def bits_per_byte(folder: Path, record: Record) -> float | None:
    """On the validation text; infinity if the run diverged, None if it failed.

    Raises:
        StorageError: its rows cannot be read.
    """
    if record.outcome != "ok":
        return math.inf if record.outcome == "diverged" else None
    frame = rows_of(folder, record)
    return float(frame[(frame.phase == "quality") & (frame.metric == "bits_per_byte")].value.iloc[0])


def check_seconds(folder: Path, record: Record) -> float:
    """Seconds of the conformance checks of the cell's run, without the start of their process; 0 if it ran none."""
    path = run_folder(folder, record)
    findings = read_findings(open_run(path.parent, path.name))
    ran = () if findings is None or findings.taken_from is not None else findings.results
    return sum(result.seconds for result in ran)


def _run_id(out: Path) -> str | None:
    started = sorted(path.parent.name for path in out.glob(f"*/{CONFIG}"))
    return started[-1] if started else None


def _threads(plan: RunPlan) -> int | None:
    """CPU threads of each of the runs that go on at the same time."""
    if plan.jobs == 1:
        return plan.run.threads
    return max(1, (plan.run.threads or len(usable_cpus())) // plan.jobs)
