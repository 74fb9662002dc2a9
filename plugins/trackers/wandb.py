"""Weights & Biases: online, or with ``WANDB_MODE=offline`` in ``RUN_ID/wandb``, to send later with ``wandb sync``.

W&B's own environment variables apply: ``WANDB_MODE``, ``WANDB_PROJECT`` (else ``archbench``), ``WANDB_ENTITY``,
``WANDB_DIR`` … The W&B run's id is the run's, so that a resumed run continues the same one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb

from archbench.trackers.tracker import Status, summary, title


class WandB:
    """History by step, and the run's single numbers as its summary."""

    def start(self, run_id: str, configuration: Mapping[str, Any], folder: Path) -> None:
        self._run = wandb.init(
            id=run_id,
            resume="allow",
            project=os.environ.get("WANDB_PROJECT", "archbench"),
            name=os.environ.get("WANDB_NAME", title(configuration)),
            dir=os.environ.get("WANDB_DIR", str(folder)),
            config=dict(configuration),
            # Its measuring of the machine would disturb ours, and nobody needs what this process prints.
            settings=wandb.Settings(console="off", x_disable_stats=True, disable_git=True, save_code=False),
        )

    def log(self, step: int, tokens: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "train/tokens": tokens}, step=step)

    def finish(self, rows: Sequence[Mapping[str, Any]], status: Status) -> None:
        self._run.summary.update({**summary(rows), "status": status})
        self._run.finish(exit_code=0 if status == "finished" else 1)
