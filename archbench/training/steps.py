"""The ordinary training step, for plugins whose loss is next-token cross-entropy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from archbench.data.batches import Batch
    from archbench.training.state import TrainState


def next_token_step(state: TrainState, batch: Batch) -> Tensor:
    """One optimizer update on next-token cross-entropy; returns the batch's mean loss, shape (), nats/token.

    The mean is over all tokens of the batch, also where its micro-batches are of unequal size; softmax and
    logarithm are taken in float32 whatever the dtype.
    """
    batch_tokens = batch.targets.numel()
    mean_loss = torch.zeros((), device=state.device)
    for micro in state.split(batch):
        with state.autocast():
            logits = state.model(micro.inputs)  # (B, T, V)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), micro.targets.flatten())
        weight = micro.targets.numel() / batch_tokens
        state.backward(loss, weight)
        mean_loss += weight * loss.detach()
    state.update()
    return mean_loss
