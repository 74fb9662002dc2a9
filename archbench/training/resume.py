"""Saving and restoring all state of training, so that a resumed run continues as if it had never stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from archbench.errors import CheckpointError, one_line
from archbench.training.checkpoints import Checkpoint, load_latest, save_checkpoint
from archbench.training.distribution import part_like
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
    """Write a checkpoint between two updates. Of several ranks all call it, and one writes.

    Raises:
        StorageError: it cannot be written; older checkpoints are intact.
    """
    ranks = state.ranks
    weights, optimizer = ranks.whole(state.module.state_dict(keep_vars=True)), ranks.whole(state.optimizer.state_dict())
    random, *others = ranks.gather_objects(_generators(state.device))
    if not ranks.leads:
        return
    save_checkpoint(
        folder,
        state.step,
        weights,
        {
            "run": dict(run),
            "tokens": state.tokens,
            "optimizer": optimizer,
            "scaler": state.scaler.state_dict() if state.scaler is not None else {},
            "random": random,
            **({"random_of_others": others} if others else {}),
            "history": history.to_tensors(),
        },
    )


def restore(folder: Path, state: TrainState, run: Mapping[str, str]) -> TrainingHistory | None:
    """Load the newest checkpoint of ``folder`` into ``state``; returns its history, or None if there is none.

    It may be of another number of ranks: those that it knows continue their random numbers, and others begin theirs.

    Raises:
        CheckpointError: the checkpoint is damaged, or of another run or model.
    """
    checkpoint = load_latest(folder)
    if checkpoint is None:
        return None
    training = checkpoint.training
    try:
        random, tokens = _of_rank(state, checkpoint), int(training["tokens"])
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
        own = state.module.state_dict()
        weights = {name: part_like(full, own.get(name, full)) for name, full in checkpoint.weights.items()}
        state.module.load_state_dict(weights)
        state.optimizer.load_state_dict(_parts(optimizer, state) if state.ranks.sharded else optimizer)
        if random is not None:
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


def _of_rank(state: TrainState, checkpoint: Checkpoint) -> dict[str, torch.Tensor] | None:
    """What the random generators of this rank were; None: there was no such rank."""
    every = [checkpoint.training["random"], *checkpoint.training.get("random_of_others", ())]
    if state.ranks.rank < len(every):
        return dict(every[state.ranks.rank])
    state.ranks.seed(checkpoint.step)
    return None


def _parts(optimizer: Mapping[str, Any], state: TrainState) -> dict[str, Any]:
    """An optimizer's state with this rank's parts of the moments."""
    parameters = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
    moments = {
        number: {name: part_like(value, parameters[number]) for name, value in values.items()}
        for number, values in optimizer["state"].items()
    }
    return {**optimizer, "state": moments}


def _generators(device: torch.device) -> dict[str, torch.Tensor]:
    generators = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        generators["cuda"] = torch.cuda.get_rng_state(device)
    return generators


def _set_generators(generators: Mapping[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(generators["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(generators["cuda"], device)
