"""Loss by position: the value of more context, and whether the model can read beyond its trained length."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from archbench.config import ModelConfig
from archbench.data.dataset import Dataset, prepare
from archbench.data.token_stream import Reading
from archbench.errors import CheckpointError, ConfigError
from archbench.measure.scoring import position_losses
from archbench.plugin.architecture import Architecture
from archbench.runs.folder import RunFolder
from archbench.runs.models import count_parameters, load_architecture, trained_model
from archbench.runs.rows import Rows
from archbench.training.distribution import ALONE, Ranks

MULTIPLES = (1, 2, 4)
"""Lengths of the windows, in trained contexts."""

BUCKETS = 8
"""Buckets of positions in one trained context; a row each."""


def run_positions(run: RunFolder, device: torch.device, rows: Rows, *, quiet: bool, ranks: Ranks = ALONE) -> None:
    """Mean loss at each eighth of a context, in windows of one, two and four times the trained length.

    A longer window is read by the same weights in a model built with that context length. Rotary angles continue there;
    a table of positions has too few rows, so the window cannot be read.

    Args:
        ranks: the processes that score together, which all call it; the first one's rows are the run's.
    """
    architecture, trained = load_architecture(run)
    data = prepare(run.config.data, sha256=run.facts.get("corpus_sha256"))
    T = trained.context_length
    width = max(1, T // BUCKETS)
    rows.common["world_size"] = ranks.size
    for multiple in MULTIPLES:
        length = multiple * T
        some = next(_windows(data, length), None) is not None
        model = _model(run, architecture, trained, length, device) if some else None
        if ranks.leads:
            rows.add("readable", model is not None if some else None, context_length=length)
        if model is None:
            continue
        rows.common |= {"parameters": count_parameters(model)}
        ranks.shard_model(model, device)
        batch_size = max(1, run.config.quality.batch_size // multiple)
        with rows.recording_attention():
            losses = position_losses(
                model,
                _windows(data, length),
                batch_size=batch_size,
                device=device,
                dtype=getattr(torch, run.config.dtype),
                ranks=ranks,
            )  # (length,)
        for first in range(0, length if ranks.leads else 0, width):
            loss = float(losses[first : first + width].mean())
            rows.add("loss", loss, repeat=first, context_length=length, batch_size=batch_size)


def _windows(data: Dataset, length: int) -> Iterator[npt.NDArray[np.int64]]:
    """The validation text, a separator before each document, cut without overlap into windows, (length + 1,)."""
    reading = Reading(*(document.tokens for document in data.validation))
    for document in data.validation:
        for begin in range(0, len(document.tokens) + 1 - length, length):
            window = document.tokens[max(begin - 1, 0) : begin + length].astype(np.int64)
            reading.count(window.nbytes)
            yield window if begin else np.concatenate([[data.tokenizer.separator], window])


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
