"""The training step of plugins whose loss is next-token cross-entropy."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from archbench.errors import PluginError
from archbench.kernels import linear_cross_entropy
from archbench.protocols import LinearHeadModel

if TYPE_CHECKING:
    from archbench.data.batches import Batch
    from archbench.training.state import TrainState


def next_token_step(state: TrainState, batch: Batch) -> Tensor:
    """One optimizer update on next-token cross-entropy; returns the batch's mean loss, shape (), nats/token.

    The mean is over all tokens of the batch, even if micro-batches differ in size; softmax and logarithm are in float32
    for any dtype. A :class:`archbench.protocols.LinearHeadModel` is trained without holding its logits.

    Raises:
        PluginError: the model offers a linear head that differs from its forward or ``head``.
    """
    if state.step == 0 and not state.ranks.sharded:  # it was checked before its parameters were distributed
        check_linear_head(state.module)
    batch_tokens = batch.targets.numel()
    losses = []
    for micro in state.split(batch):
        loss = next_token_loss(state, micro)
        weight = micro.targets.numel() / batch_tokens
        state.backward(loss, weight)
        losses.append(weight * loss.detach() if weight != 1.0 else loss.detach())
    state.update()
    return sum(losses[1:], losses[0])


def next_token_loss(state: TrainState, batch: Batch) -> Tensor:
    """Mean next-token cross-entropy of one micro-batch, shape (), nats/token; without logits if the model allows."""
    model = state.module
    with state.autocast():
        if isinstance(model, LinearHeadModel):
            hidden = state.model(batch.inputs, logits=False)  # (B, T, C)
            weight, bias = model.head_parameters()
            return linear_cross_entropy(hidden, weight, batch.targets, bias=bias)
        logits = state.model(batch.inputs)  # (B, T, V)
    return F.cross_entropy(logits.flatten(0, 1).float(), batch.targets.flatten())


def check_linear_head(model: object) -> None:
    """Check that a :class:`archbench.protocols.LinearHeadModel` has the head it offers: the loss is computed with it.

    Raises:
        PluginError: ``forward`` has no argument ``logits``, or ``head`` is not the product of ``head_parameters``.
    """
    if not isinstance(model, LinearHeadModel):
        return
    name = type(model).__name__
    if "logits" not in inspect.signature(model.forward).parameters:
        raise PluginError(
            name,
            "it offers head_parameters(), but its forward has no argument logits",
            "Write forward(self, tokens, *, logits=True), which returns the hidden states if logits is False",
        )
    with torch.no_grad():
        weight, bias = model.head_parameters()
        rows = weight[:2]
        hidden = rows * (100 / rows.square().sum(1, keepdim=True).clamp(min=1e-4))  # logits near 100 reveal a cap
        expected, found = F.linear(hidden, weight, bias), model.head(hidden)
        # NaN compares as equal: weights full of NaN are a divergence, not another head.
        differs = found.shape != expected.shape or bool((found - expected).abs().max() > 0.01 * expected.abs().max())
    if differs:
        raise PluginError(
            name,
            "its head() is not the linear layer of its head_parameters()",
            "Return the head's own weight and bias; omit head_parameters() for a head that is not linear",
        )
