"""MLflow: a server (``MLFLOW_TRACKING_URI``), or else files in ``mlflow`` beside the results.

The experiment is ``MLFLOW_EXPERIMENT_NAME``, else ``archbench``. The id that MLflow gives the run is kept in
``RUN_ID/mlflow-run-id``, so that a resumed run continues the same one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Metric, Param, RunTag

from archbench.trackers.tracker import Status, flattened, summary, title

SECONDS_BETWEEN_SENDINGS = 5.0
"""A request to a server takes as long for a thousand values as for one, so values are collected."""

_METRICS_AT_ONCE, _PARAMS_AT_ONCE = 1000, 100  # as many as MLflow's REST API takes in one request
_STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


class MLflow:
    """Metrics by step, the run's single numbers as metrics too, and its configuration as parameters."""

    def start(self, run_id: str, configuration: Mapping[str, Any], folder: Path) -> None:
        self._client = mlflow.MlflowClient(_tracking_uri(folder))
        self._waiting: list[Metric] = []
        self._sent = time.monotonic()
        self._last_step = 0
        kept = folder / "mlflow-run-id"
        if kept.exists():
            self._run_id = kept.read_text()
            self._client.update_run(self._run_id, status="RUNNING")
            return
        experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", "archbench"))
        run = self._client.create_run(experiment, run_name=title(configuration), tags={"archbench.run_id": run_id})
        self._run_id = run.info.run_id
        kept.write_text(self._run_id)
        settings = flattened({name: configuration[name] for name in ("run", "model", "facts")})
        for some in _batches((Param(name, str(value)) for name, value in settings.items()), _PARAMS_AT_ONCE):
            self._client.log_batch(self._run_id, params=some)

    def log(self, step: int, tokens: int, values: Mapping[str, float]) -> None:
        self._last_step = step
        self._keep(step, {**values, "train/tokens": tokens})
        if time.monotonic() - self._sent > SECONDS_BETWEEN_SENDINGS:
            self._send()

    def finish(self, rows: Sequence[Mapping[str, Any]], status: Status) -> None:
        self._keep(self._last_step, summary(rows))
        self._send()
        self._client.log_batch(self._run_id, tags=[RunTag("archbench.status", status)])
        self._client.set_terminated(self._run_id, _STATUS[status])

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found is not None else self._client.create_experiment(name))

    def _keep(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        self._waiting += [Metric(name, value, now, step) for name, value in values.items()]

    def _send(self) -> None:
        for some in _batches(iter(self._waiting), _METRICS_AT_ONCE):
            self._client.log_batch(self._run_id, metrics=some)
        self._waiting.clear()
        self._sent = time.monotonic()


def _tracking_uri(folder: Path) -> str | None:
    """None: MLflow's own setting."""
    if "MLFLOW_TRACKING_URI" in os.environ:
        return None
    # MLflow 3 writes files only if it is allowed to, and mlflow-skinny has no database to write to instead.
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    return (folder.parent / "mlflow").as_uri()


def _batches(things: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while some := list(islice(things, size)):
        yield some
