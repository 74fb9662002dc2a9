"""What a tracker is: a class with three methods that an entry point names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Literal, Protocol

Status = Literal["finished", "failed", "interrupted"]


class Tracker(Protocol):
    """Follows one run, in a process of its own; the class is called without arguments.

    An error becomes a warning and ends the tracking, not the run. A resumed run starts again under the same ``run_id``
    and is logged from where it stopped: reopen what was written before.
    """

    def start(self, run_id: str, configuration: Mapping[str, Any], folder: Path) -> None:
        """A run begins or is resumed.

        Args:
            run_id: the run's, unique.
            configuration: content of its ``config.json``: ``run`` (the frozen RunConfig), ``model`` and ``facts``.
            folder: the run's; a tracker may keep files there, under its own name.
        """
        ...

    def log(self, step: int, tokens: int, values: Mapping[str, float]) -> None:
        """The values of one training step, about a second after it; steps never decrease.

        Args:
            step: for validations the updates done, otherwise the update's number from 0.
            tokens: trained on so far.
            values: by name, in base units: ``train/loss`` (nats/token), ``train/learning_rate``, ``train/grad_norm``,
                ``train/step_seconds`` and ``train/tokens_per_second`` (both without a process's first step),
                ``train/validation_loss`` and ``train/validation_bits_per_byte``. May be NaN or infinite.
        """
        ...

    def finish(self, rows: Sequence[Mapping[str, Any]], status: Status) -> None:
        """The run is over, for now.

        Args:
            rows: of all finished phases, as in the results: ``phase``, ``metric``, ``value``, ``repeat`` …; empty for
                a run that was killed. :func:`summary` reduces them to a few numbers.
            status: ``failed`` and ``interrupted`` runs may be resumed.
        """
        ...


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """A run's rows as one number a metric: ``quality/bits_per_byte``, ``decode/tokens_per_second/P24_B1`` …

    The median of repeats, in base units. P is the prompt's length in tokens and B the number of sequences, in phases
    with several cases. Values that :meth:`Tracker.log` was given and series by position are left out.
    """
    cases: dict[str, list[float]] = {}
    for row in rows:
        phase, metric, value = row["phase"], row["metric"], row["value"]
        if value is None or phase in _NO_MEASUREMENTS or (phase == "train" and metric in _LOGGED):
            continue
        case = f"/P{row['prompt_length']}_B{row['batch_size']}" if row.get("prompt_length") is not None else ""
        cases.setdefault(f"{phase}/{metric}{case}", []).append(value)
    return {name: median(values) for name, values in cases.items()}


def flattened(configuration: Mapping[str, Any], prefix: str = "") -> dict[str, str | float | bool]:
    """A configuration with one level of names, such as ``run.training.steps``; lists and null as JSON."""
    flat: dict[str, str | float | bool] = {}
    for name, value in configuration.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, str | int | float) else json.dumps(value)
    return flat


def title(configuration: Mapping[str, Any]) -> str:
    """A name for people: ``gpt1 nano seed 0``."""
    run = configuration["run"]
    return f"{run['architecture']} {run['preset']} seed {run['seed']}"


_NO_MEASUREMENTS = ("check", "environment", "positions")
_LOGGED = ("loss", "learning_rate", "grad_norm", "step_seconds", "validation_loss", "validation_bits_per_byte")
