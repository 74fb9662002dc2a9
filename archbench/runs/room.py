"""Whether a run has room: the least memory that its phases need, and what its device has."""

from __future__ import annotations

import torch

from archbench.config import RunConfig
from archbench.errors import ConfigError, PluginError
from archbench.measure.meta_device import meta_device
from archbench.plugin.growth import check_room
from archbench.runs.folder import RunFolder
from archbench.runs.models import count_parameters, load_architecture

_MOMENTS = {"adamw": 2, "adam": 2, "muon": 1, "sgd": 1}
"""Numbers that an optimizer keeps for each parameter."""


def require_room(run: RunFolder, device: torch.device) -> None:
    """Refuse a run, before anything is measured, of which one phase needs more memory than there is.

    Counted are weights, gradients, moments and tokens, but no activations: what is refused cannot fit, and what is not
    may still run out of memory.

    Raises:
        ResourceError: naming both numbers.
        ConfigError: the model has more tensors than any.
    """
    architecture, config = load_architecture(run)
    try:
        with meta_device(), torch.random.fork_rng(devices=[]):
            parameters = count_parameters(architecture.build(config))
    except ConfigError:
        raise
    except PluginError:
        return  # the phase will say why it cannot be built
    subject = f"{run.config.architecture} {run.config.preset} of {parameters:,} parameters"
    for what, needed in _least_bytes(run.config, parameters, config.context_length, config.vocab_size):
        check_room(subject, f"{what} takes at least", needed, str(device))
    check_room(subject, "its weights take", 4 * parameters, "cpu")  # where they are drawn


def _least_bytes(config: RunConfig, parameters: int, T: int, V: int) -> list[tuple[str, int]]:
    """Bytes that each phase needs at the least."""
    training, speed = config.training, config.speed
    width = 4 if config.dtype == "float32" else 2
    found = []
    if "train" in config.phases:
        needed = 4 * parameters * (2 + _MOMENTS[training.optimizer]) + 16 * training.batch_size * T
        found.append((f"a training step of {training.batch_size:,} sequences", needed))
    if {"prefill", "decode", "serve"} & set(config.phases):
        B, P = max(speed.batch_sizes, default=0), max(speed.prompt_lengths or (1,))
        found.append((f"decoding {B:,} sequences at a time", width * (parameters + B * V) + 8 * B * P))
    return found
