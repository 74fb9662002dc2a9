"""Saving and restoring all state of training, so that a resumed run continues as if it had never stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from archbench.errors import CheckpointError, one_line
from archbench.training.checkpoints import load_latest, save_checkpoint
from archbench.training.history import TrainingHistory

if TYPE_CHECKING:
    from archbench.config import TrainingConfig
    from archbench.data.batches import Batch
    from archbench.training.state import TrainState


def fingerprint(state: TrainState, config: TrainingConfig, first_batch: Batch) -> dict[str, str]:
    """What must not change when training resumes, by name: losses before and after would not be comparable."""
    data = hashlib.sha256()
    for tensor in (first_batch.inputs, first_batch.targets):
        data.update(repr(tuple(tensor.shape)).encode() + tensor.cpu().contiguous().numpy().tobytes())
    return {
        "training configuration": config.model_dump_json(),
        "data, tokenizer or seed": data.hexdigest(),
        "dtype": str(state.dtype),
        "device": state.device.type,
    }


def save(folder: Path, state: TrainState, history: TrainingHistory, run: Mapping[str, str]) -> None:
    """Write a checkpoint between two updates.

    Raises:
        StorageError: it cannot be written; older checkpoints are intact.
    """
    save_checkpoint(
        folder,
        state.step,
        state.module,
        {
            "run": dict(run),
            "tokens": state.tokens,
            "optimizer": state.optimizer.state_dict(),
            "scaler": state.scaler.state_dict() if state.scaler is not None else {},
            "random": _generators(state.device),
            "history": history.to_tensors(),
        },
    )


def restore(folder: Path, state: TrainState, run: Mapping[str, str]) -> TrainingHistory | None:
    """Load the newest checkpoint of ``folder`` into ``state``; returns its history, or None if there is none.

    Raises:
        CheckpointError: the checkpoint is damaged, or of another run or model.
    """
    checkpoint = load_latest(folder)
    if checkpoint is None:
        return None
    training = checkpoint.training
    try:
        random, tokens = dict(training["random"]), int(training["tokens"])
        changed = [name for name in run if training["run"].get(name) != run[name]]
        optimizer, history = training["optimizer"], TrainingHistory.from_tensors(training["history"])
        scaler = dict(training["scaler"])
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        cause = f"it lacks a part of the state of training ({one_line(error)})"
        raise CheckpointError(f"checkpoint {checkpoint.path}", cause, "Delete its folder") from error
    if changed:
        raise CheckpointError(
            f"checkpoint {checkpoint.path}",
            f"it is of a run that differs in: {', '.join(changed)}",
            "Resume with the run's original settings, or start a new run in another folder",
        )
    try:
        state.module.load_state_dict(checkpoint.weights)
        state.optimizer.load_state_dict(optimizer)
        _set_generators(random, state.device)
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        finding = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip().rstrip(".")
        raise CheckpointError(
            f"checkpoint {checkpoint.path}",
            f"it is of another model: {finding}",
            "Resume with the model's own configuration",
        ) from None
    if state.scaler is not None:
        state.scaler.load_state_dict(scaler)
    state.step, state.tokens = checkpoint.step, tokens
    history.resumed_from = checkpoint.step
    return history


def _generators(device: torch.device) -> dict[str, torch.Tensor]:
    generators = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        generators["cuda"] = torch.cuda.get_rng_state(device)
    return generators


def _set_generators(generators: Mapping[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(generators["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(generators["cuda"], device)
