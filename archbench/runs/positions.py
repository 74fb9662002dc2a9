"""Loss by position: the value of more context, and whether the model can read beyond its trained length."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from archbench.config import ModelConfig
from archbench.data.dataset import Dataset, prepare
from archbench.errors import CheckpointError, ConfigError
from archbench.measure.scoring import position_losses
from archbench.plugin.architecture import Architecture
from archbench.runs.folder import RunFolder
from archbench.runs.models import count_parameters, load_architecture, trained_model
from archbench.runs.rows import Rows

MULTIPLES = (1, 2, 4)
"""Lengths of the windows, in trained contexts."""

BUCKETS = 8
"""Buckets of positions in one trained context; a row each."""


def run_positions(run: RunFolder, device: torch.device, rows: Rows, *, quiet: bool) -> None:
    """Mean loss at each eighth of a context, in windows of one, two and four times the trained length.

    A longer window is read by the same weights in a model built with that context length. Rotary angles continue there;
    a table of positions has too few rows, so the window cannot be read.
    """
    architecture, trained = load_architecture(run)
    data = prepare(run.config.data, sha256=run.facts.get("corpus_sha256"))
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
        with rows.recording_attention():
            losses = position_losses(
                model,
                windows,
                batch_size=batch_size,
                device=device,
                dtype=getattr(torch, run.config.dtype),
            )  # (length,)
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
    """The trained weights in a model with a context of ``length`` positions; None if they do not fit."""
    try:
        config = architecture.config(trained, context_length=length)
        return trained_model(run, architecture, config, device)
    except (ConfigError, CheckpointError):
        if length == trained.context_length:
            raise
        return None
