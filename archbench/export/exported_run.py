"""A run by its published names: finished, with weights, of an architecture that says how others name them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from archbench.errors import UsageError
from archbench.runs.folder import open_run
from archbench.runs.models import LoadedRun, load_architecture, loaded, require_weights
from archbench.training.weights import require_numbers


@dataclass(frozen=True)
class ExportedRun:
    """A run and what its architecture's hooks make of it.

    Attributes:
        config: the content of a ``config.json``.
        weights: published name -> tensor, on the CPU; some may share memory.
    """

    run: LoadedRun
    config: dict[str, Any]
    weights: dict[str, Tensor]


def exported(run: str | Path = "last", *, out: str | Path = "results") -> ExportedRun:
    """The run of that id or folder; ``last`` is the newest under ``out``.

    Raises:
        UnknownNameError: no such run.
        UsageError: it has not finished, has no weights, or is of a kind that the published class cannot compute.
        MissingHookError: its architecture exports nothing.
        CheckpointError: its weights are gone, cannot be read, or hold NaN.
        StorageError: its folder cannot be read.
        UntrustedCodeError: it names a plugin file that nobody has trusted here.
    """
    folder = open_run(out, run)
    if not folder.finished:
        step = f"Continue it with: {folder.resume_command}"
        raise UsageError(f"run {folder.run_id}", "it has not finished, or it failed", step)
    require_weights(folder, "Train it again, and export it before archbench clean removes its checkpoints")
    architecture, config = load_architecture(folder)
    published = architecture.export_config(config)
    found = loaded(folder.path, device="cpu")
    weights = architecture.export_weights(found.model.state_dict(), config)
    require_numbers(weights, folder.path)
    return ExportedRun(found, published, weights)
