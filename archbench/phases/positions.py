"""Loss by position: what more context is worth, and whether the model reads on past the length it was trained on."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from archbench.config import ModelConfig
from archbench.data.dataset import Dataset
from archbench.errors import CheckpointError, ConfigError
from archbench.kernels import record_attention
from archbench.measure.quality import position_losses
from archbench.phases.folder import RunFolder
from archbench.phases.loading import count_parameters, load_architecture, load_dataset, trained_model
from archbench.phases.rows import Rows
from archbench.plugin.architecture import Architecture

MULTIPLES = (1, 2, 4)
"""Lengths of the windows, in contexts that the model was trained on."""

BUCKETS = 8
"""Of positions in one trained context; a row each."""


def run_positions(run: RunFolder, device: torch.device, rows: Rows, *, quiet: bool) -> None:
    """Mean loss at each eighth of a context, in windows of one, two and four times the trained length.

    A longer window is read by the same weights in a model built with that context length: what its positions mean
    there is the architecture's own (rotary angles go on; a table of positions has no more rows, and then it cannot).
    """
    architecture, trained = load_architecture(run)
    data = load_dataset(run)
    T = trained.context_length
    width = max(1, T // BUCKETS)
    for multiple in MULTIPLES:
        length = multiple * T
        windows = _windows(data, length)  # (n, length + 1)
        model = _model(run, architecture, trained, length, device) if len(windows) else None
        rows.add("readable", None if not len(windows) else model is not None, context_length=length)
        if model is None:
            continue
        rows.common |= {"parameters": count_parameters(model)}
        batch_size = max(1, run.config.quality.batch_size // multiple)
        with record_attention() as ran:
            losses = position_losses(
                model,
                windows,
                batch_size=batch_size,
                device=device,
                dtype=getattr(torch, run.config.dtype),
            )  # (length,)
        rows.common |= {"attention": "+".join(sorted(ran)) or "none"}
        for first in range(0, length, width):
            loss = float(losses[first : first + width].mean())
            rows.add("loss", loss, repeat=first, context_length=length, batch_size=batch_size)


def _windows(data: Dataset, length: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """The validation text, a separator before each document, cut without overlap into windows, (n, length + 1)."""
    found = []
    for document in data.validation:
        sequence = np.concatenate([[data.tokenizer.separator], document.tokens]).astype(np.int64)
        found += [sequence[begin : begin + length + 1] for begin in range(0, len(sequence) - length, length)]
    return np.stack(found) if found else np.zeros((0, length + 1), dtype=np.int64)


def _model(
    run: RunFolder, architecture: Architecture, trained: ModelConfig, length: int, device: torch.device
) -> nn.Module | None:
    """The trained weights in a model that reads ``length`` positions; None where they do not fit one."""
    try:
        config = architecture.config(trained, context_length=length)
        return trained_model(run, architecture, config, device)
    except (ConfigError, CheckpointError):
        if length == trained.context_length:
            raise
        return None
