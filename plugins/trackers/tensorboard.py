"""TensorBoard: event files in ``RUN_ID/tensorboard``, written by TensorBoard's own code, without TensorFlow or torch.

``tensorboard --logdir results`` shows all runs under ``results``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from archbench.trackers.tracker import Status, flattened, summary


class TensorBoard:
    """Scalars by step, the run's single numbers at its last step, and its configuration as text and hyperparameters."""

    def start(self, run_id: str, configuration: Mapping[str, Any], folder: Path) -> None:
        self._last_step = 0
        self._writer = EventFileWriter(str(folder / "tensorboard"), flush_secs=5)
        settings = flattened({name: configuration[name] for name in ("run", "model")})
        self._write(0, hparams_pb(settings, trial_id=run_id))
        indented = "\n".join(f"    {line}" for line in json.dumps(configuration, indent=2).splitlines())
        self._write(0, text_pb("configuration", indented))  # Markdown's block of code
        self._writer.flush()

    def log(self, step: int, tokens: int, values: Mapping[str, float]) -> None:
        self._last_step = step
        for name, value in {**values, "train/tokens": tokens}.items():
            self._write(step, scalar_pb(name, value))

    def finish(self, rows: Sequence[Mapping[str, Any]], status: Status) -> None:
        for name, value in summary(rows).items():
            self._write(self._last_step, scalar_pb(name, value))
        self._write(self._last_step, text_pb("status", status))
        self._writer.close()

    def _write(self, step: int, content: Any) -> None:
        self._writer.add_event(Event(step=step, wall_time=time.time(), summary=content))
