"""Evaluating a finished run: the harness's tasks asked of its model, as tidy rows, with every question beside them."""

from __future__ import annotations

import json
import random
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import lm_eval
import numpy as np
import torch
from lm_eval.evaluator import evaluate
from lm_eval.utils import handle_non_serializable

from archbench.errors import ArchbenchWarning, CheckpointError, ConfigError, UsageError
from archbench.evaluation.answer_ties import FairChoices
from archbench.evaluation.harness_model import HarnessModel
from archbench.evaluation.harness_noise import without_noise
from archbench.evaluation.harness_tasks import load_tasks
from archbench.files.seal import sealed_lines
from archbench.files.writing import write_text
from archbench.kernels import attention_backend
from archbench.presentation.step_view import StepView
from archbench.results.metrics import UNITS
from archbench.runs.device import measuring
from archbench.runs.folder import EVAL, RunFolder
from archbench.runs.models import count_parameters, loaded
from archbench.runs.quality import tokens_seen
from archbench.runs.run import add_evaluation

if TYPE_CHECKING:
    import pandas as pd

    from archbench.runs.rows import Rows

RESAMPLES = 1000
"""Of the standard error of a metric that is no mean; the harness takes 100,000 by default, which takes minutes."""

SEEDS = (0, 1234, 1234)
"""Of random, NumPy and torch, which some tasks draw from; the harness's."""


def evaluate_run(
    run: RunFolder,
    tasks: Sequence[str],
    *,
    shots: int | None = None,
    limit: int | None = None,
    data: str | None = None,
    batch_size: int | str = "auto",
    device: str | None = None,
    quiet: bool = False,
) -> pd.DataFrame:
    """Ask the run's model, and add the rows to the run's results; a task asked before with as many shots is replaced.

    Args:
        tasks, shots, data: as :func:`archbench.evaluation.harness_tasks.load_tasks`.
        limit: most questions of each task; None for all.
        device: None for the run's own.

    Returns:
        The rows of the phase ``eval`` that this call measured.

    Raises:
        UsageError: the run is not finished, or an option cannot be honoured.
        CheckpointError: the run has no weights.
        DataError: a task's data are missing, which is found before the model is loaded.
    """
    _require_weights(run)
    found = load_tasks(tasks, shots, data)
    fair = {name: FairChoices(task) for name, task in found["tasks"].items() if _has_choices(task)}
    config = run.config if device is None else run.config.override(device=device)
    with (
        run.owned(),
        attention_backend(config.attention),
        measuring(EVAL, config) as (_, rows),
        StepView(shown=not quiet) as steps,
    ):
        one, dtype = loaded(run.path, device=config.device), getattr(torch, config.dtype)
        asked = HarnessModel(
            one.architecture, one.model, one.tokenizer, one.config, dtype=dtype, batch_size=batch_size, steps=steps
        )
        rows.common |= {
            "parameters": count_parameters(one.model),
            "tokens_seen": tokens_seen(run),
            "batch_size": asked.batch_size,
        }
        _seed()
        with rows.recording_attention():
            results = _evaluated(asked, found, limit)
        _add_rows(rows, results, fair, asked.cut)
        for task, samples in results["samples"].items():
            _write_samples(run, task, results["n-shot"].get(task, 0), samples)
        measured = rows.finished()
        frame = add_evaluation(run, measured)
    now = {(row["corpus"], row["shots"]) for row in measured}
    chosen = [row.phase == EVAL and (row.corpus, row.shots) in now for row in frame.itertuples()]
    return frame[chosen].reset_index(drop=True)


def _require_weights(run: RunFolder) -> None:
    if not run.finished:
        step = f"Finish it with: {run.resume_command}"
        raise UsageError(f"run {run.run_id}", "it is not finished, or failed", step)
    if "train" in run.config.phases and any(row["metric"] == "diverged" for row in run.read_rows("train")):
        raise UsageError(f"run {run.run_id}", "its training diverged, so it answers nothing", "Name another run")
    if "train" not in run.config.phases and run.config.weights is None:
        cause = "it has no weights: it trained no model, and names no published weights"
        raise CheckpointError(f"run {run.run_id}", cause, "Name a run that trained, or a model with weights")


def _has_choices(task: Any) -> bool:
    """Whether the harness itself scores choices, not a function of the task's."""
    return task.OUTPUT_TYPE == "multiple_choice" and not callable(task.get_config("process_results"))


def _seed() -> None:
    random.seed(SEEDS[0])
    np.random.seed(SEEDS[1])
    torch.manual_seed(SEEDS[2])


def _evaluated(model: HarnessModel, tasks: dict[str, Any], limit: int | None) -> dict[str, Any]:
    try:
        with without_noise():
            results: dict[str, Any] = evaluate(model, tasks, limit=limit, bootstrap_iters=RESAMPLES)
    except ValueError as error:  # tasks that run generated code or need images
        if isinstance(error, UsageError):
            raise
        raise ConfigError("--tasks", " ".join(str(error).split()).rstrip("."), "Leave the task out") from error
    return results


def _add_rows(rows: Rows, results: Mapping[str, Any], fair: Mapping[str, FairChoices], cut: int) -> None:
    for task, values in results["results"].items():
        version = f"{results['versions'].get(task)} (lm_eval {lm_eval.__version__})"
        common = {"corpus": task, "shots": results["n-shot"].get(task), "task_version": version}
        for name, value in values.items():
            metric, comma, filter_ = name.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = values.get(f"{metric}_stderr,{filter_}")
            own = common | {"operation": None if filter_ == "none" else filter_, "unit": UNITS.get((EVAL, metric), "1")}
            rows.add(metric, value, standard_error=float(error) if isinstance(error, int | float) else None, **own)
        for metric, value in (fair[task].differing() if task in fair else {}).items():
            rows.add(f"{metric}_first_of_ties", value, unit="1", **common)
        rows.add("questions", values.get("sample_len"), **common)
        rows.add("cut", cut, **common)
    if cut:
        lost = f"{cut} requests were longer than the context and lost their beginning, as in lm_eval"
        warnings.warn(
            f"{lost}: the scores say less than those of models with longer contexts.", ArchbenchWarning, stacklevel=3
        )


def _write_samples(run: RunFolder, task: str, shots: int, samples: Sequence[Mapping[str, Any]]) -> None:
    file = run.path / f"samples-{re.sub(r'[^A-Za-z0-9_.-]', '_', task)}-{shots}.jsonl"
    plain = [json.loads(json.dumps(one, default=handle_non_serializable)) for one in samples]
    with run.storing(file):
        write_text(file, sealed_lines(plain))
