"""What is likely wrong with a training step whose loss or gradient is not the one asked for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archbench.data.batches import Batch
from archbench.protocols import LinearHeadModel
from archbench.testing.subject import Difference, seed_generators

if TYPE_CHECKING:
    from archbench.testing.update_audit import UpdateAudit

_Found = TypeVar("_Found")

_SHORT = (torch.bfloat16, torch.float16)

SAME = 0.02
"""Of a gradient's length: so much differs by rounding at most."""

BESIDE = 0.5
"""Of a gradient's length, that an auxiliary loss or smoothed labels may make up. Mixtral's balancing loss is 0.1."""

SPECIAL = 8
"""First targets of a batch, each of which may be the one that is left out, as padding is."""

UNLIKE = 0.2
"""Of a gradient's length, from which on other losses are looked at to explain it."""

SCALE = 1.25
"""Times that a gradient may be longer or shorter than that of the loss, where an auxiliary loss is added to it."""


@dataclass
class Step:
    """One update: what the core expected of it, and what it was.

    Attributes:
        batch: (B, T) each.
        accumulation: micro-batches.
        seed: of torch's generator before it.
        earlier: the updates before.
        audit: around ``train_step``.
        weights: name -> parameter before it.
        logits: the core's own, of each micro-batch, float32.
        expected: their mean cross-entropy, nats/token.
        reference: name -> gradient of that, sampled as in ``audit``.
        flops: of those forward and backward passes.
        inside: tokens and output of each forward pass in ``train_step``, and whether that is hidden states.
        loss: what ``train_step`` returned.
        flops_done: in ``train_step``.
        where: a clause for messages: " in update 3".
        beside: share of the gradient's length that is not of the loss.
    """

    batch: Batch
    accumulation: int
    seed: int
    earlier: list[Step]
    audit: UpdateAudit
    weights: dict[str, Tensor] = field(default_factory=dict)
    logits: list[Tensor] = field(default_factory=list)
    expected: float = math.nan
    reference: dict[str, Tensor] = field(default_factory=dict)
    flops: int = 0
    inside: list[tuple[Tensor, Tensor, bool]] = field(default_factory=list)
    loss: float = math.nan
    flops_done: int = 0
    where: str = ""
    beside: float = 0.0


def wrong_loss(step: Step, model: nn.Module, after: Tensor) -> str:
    """The likely mistake behind a loss that is not the one asked for; ``after`` are logits after the update."""
    logits, batch, loss = torch.cat(step.logits), step.batch, step.loss
    inside = other_inside(step, model)
    B, T = batch.targets.shape
    costs = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none").view(B, T)
    mean = step.expected
    scaled = {
        "it looks like bits, and nats are asked for": mean / math.log(2),
        "it looks like the sum over all tokens": mean * B * T,
        "it looks like the sum over positions": mean * T,
        "it looks like the sum over sequences": mean * B,
        "it looks like a perplexity": math.exp(min(mean, 700)),
    }
    exact = {
        "it looks like the loss after the update": _mean(after, batch.targets),
        "it looks like that of the tokens read and not of those that follow: batch.targets are": _mean(
            logits, batch.inputs
        ),
        "it looks like that of the last micro-batch": float(costs[-max(1, B // step.accumulation) :].mean()),
        "it looks like that of the first sequence alone": float(costs[0].mean()),
        **{f"it looks like it was rounded to {dtype}": float(torch.tensor(mean).to(dtype)) for dtype in _SHORT},
    }
    if T > 1:
        exact |= {
            "batch.targets are the next tokens already, and it looks as if they were shifted again": _mean(
                logits[:, :-1], batch.targets[:, 1:]
            ),
            "it looks like the mean over the later half of the positions": float(costs[:, T // 2 :].mean()),
            "it looks like the mean over the earlier half of the positions": float(costs[:, : T // 2].mean()),
            "it looks like that of the last position alone": float(costs[:, -1].mean()),
        }
    for token in sorted({*batch.targets.flatten().tolist()}):
        counted = costs[batch.targets != token]
        if counted.numel():
            exact[f"it looks as if targets of id {token} were left out"] = float(counted.mean())
    if inside:
        return inside
    for reason, value in {**exact, **scaled}.items():
        if abs(loss - value) <= (1e-5 if reason in exact else 1e-4) * max(abs(value), 1.0):
            return reason
    uniform = float((logits.logsumexp(-1) - logits.mean(-1)).mean())
    smoothed = (loss - mean) / (uniform - mean)
    if 0 < smoothed < 1 and abs(100 * smoothed - round(100 * smoothed)) < 0.1:
        return f"it looks like that of smoothed labels ({smoothed:.2g}), which belong into state.backward alone"
    if step.earlier and min(step.earlier[-1].loss, mean) < loss < max(step.earlier[-1].loss, mean):
        return "it lies between the update before and this one, and looks like a mean over updates"
    return (
        "return the mean over all tokens of F.cross_entropy(logits, batch.targets); what is trained on besides (a "
        "balancing loss, smoothed labels) goes to state.backward and not into what is returned"
    )


def other_inside(step: Step, model: nn.Module) -> str:
    """How the forward passes inside ``train_step`` differ from the core's own; "" for not at all."""
    rows = {tuple(row) for row in step.batch.inputs.tolist()}
    read = [tuple(row) for tokens, *_ in step.inside for row in tokens.tolist()]
    if len(read) < len(rows) and read and set(read) <= rows:
        return f"the model read {len(read)} of the batch's {len(rows)} sequences: read all of state.split(batch)"
    if not set(read) <= rows:
        return "inside train_step the model read other tokens than the batch's: train on batch.inputs as they are"
    micros = [micro.inputs for micro in step.batch.split(step.accumulation)]
    for (tokens, output, hidden), inputs, logits in zip(step.inside, micros, step.logits, strict=False):
        if not torch.equal(tokens, inputs.to(tokens.device)):
            continue
        if hidden and isinstance(model, LinearHeadModel):
            output = _at_earlier_weights(step, model, partial(model.head, output.float())).detach()
        if output.shape == logits.shape and not Difference.between(output, logits).negligible:
            return (
                "inside train_step the model gives other logits for the same tokens, weights and seed than outside: "
                "look for targets handed to it, a seed of its own, another mode, or autocast that was not asked for"
            )
    return ""


def wrong_gradient(step: Step, model: nn.Module) -> str:
    """What is wrong with the gradient of the update, a clause; "" where it is that of the loss, and little else.

    Sets :attr:`Step.beside`.
    """
    found, wanted = step.audit.gradients, step.reference
    zero = [name for name in wanted if name not in found]
    found = {name: found.get(name, torch.zeros_like(gradient)) for name, gradient in wanted.items()}
    length = _norm(wanted)
    if not length > 0:
        return ""
    factor = sum(float(found[name] @ wanted[name]) for name in wanted) / length**2
    rest = {name: found[name] - factor * wanted[name] for name in wanted}
    off = _norm({name: found[name] - wanted[name] for name in wanted}) / length
    if off <= SAME:
        return ""
    told = f"the gradient of the update{step.where}"
    if not _norm(found) > 0:
        return f"{told} is 0 times that of the loss: call state.backward(loss) on the loss of state.model itself"
    if _norm(rest) <= SAME * _norm(found) and not 1 / SCALE < factor < SCALE:
        return f"{told} is {factor:.3g} times that of the mean cross-entropy: {_scaled(factor, step)}"
    for name, gradient in wanted.items():
        own = float(gradient.norm())
        if own < 1e-3 * length:
            continue
        ratio = float(found[name] @ gradient) / own**2
        alike = float((found[name] - ratio * gradient).norm()) <= SAME * own
        if name in zero or (alike and not 1 / SCALE < ratio < SCALE):
            return (
                f"{told} of parameter {name!r} is {0 if name in zero else ratio:.2g} times that of the loss, where "
                "other parameters' is another multiple: one recipe has to train all parameters"
            )
    if likely := _recognised(step, model, found, wanted, off):
        return f"{told} {likely}"
    step.beside = off
    if off > BESIDE:
        return (
            f"{told} is not that of the loss that was returned: they differ by {off:.0%} of its length. Leave the "
            "gradients to state.backward(loss), and weigh an auxiliary loss so that it stays small beside it"
        )
    return ""


def _scaled(factor: float, step: Step) -> str:
    B, T = step.batch.targets.shape
    near = {
        -1.0: "it goes uphill; look at the sign of the loss that is propagated backward",
        float(B * T): "the loss is summed over all tokens; take the mean",
        float(T): "the loss is summed over positions; take the mean",
        float(B): "the loss is summed over sequences, or micro-batches' gradients are not weighted; take the mean",
        float(step.accumulation): "give state.backward(loss, weight) each micro-batch's share of the tokens",
        1 / step.accumulation: "go through all of state.split(batch), and weigh each by its share of the tokens once",
    }
    for value, hint in near.items():
        if value != 1 and abs(factor - value) < SAME * abs(value):
            return hint
    return (
        "it was scaled, or clipped, before state.update(), which clips by the recipe. Give state.backward the mean "
        "over the batch as it is"
    )


def _recognised(step: Step, model: nn.Module, found: dict[str, Tensor], wanted: dict[str, Tensor], off: float) -> str:
    """Which loss, of those that are often taken by mistake, has that gradient, a clause; "" for none."""
    losses = dict(_LOSSES) if off > UNLIKE else {}
    if not step.earlier:
        ids = step.batch.targets[0].tolist()
        losses |= {f"the targets but those of id {token}": partial(_cost_without, token) for token in ids[:SPECIAL]}
    if off > UNLIKE and step.earlier and _explained(found, [wanted, step.earlier[-1].reference]):
        return "is that of the loss and of the update before: gradients were kept and not cleared, or mixed into these"
    for what, part in losses.items():
        gradient = _at_earlier_weights(step, model, partial(_gradient, step, model, part))
        if gradient and _explained(found, [gradient]):
            return f"is that of another loss, of {what}, and not of the one that was returned"
    return ""


_Part = Callable[[Tensor, Batch], Tensor]
"""Logits (B, T, V) and the batch -> a loss."""

_LOSSES: dict[str, _Part] = {
    "the tokens read, and not of those that follow": lambda x, b: _cost(x, b.inputs),
    "targets that were shifted a second time": lambda x, b: _cost(x[:, :-1], b.targets[:, 1:]),
    "the later half of the positions": lambda x, b: _cost(x[:, x.shape[1] // 2 :], b.targets[:, x.shape[1] // 2 :]),
    "the earlier half of the positions": lambda x, b: _cost(x[:, : x.shape[1] // 2], b.targets[:, : x.shape[1] // 2]),
    "the last position alone": lambda x, b: _cost(x[:, -1:], b.targets[:, -1:]),
    "the first half of the sequences": lambda x, b: _cost(x[: len(x) // 2], b.targets[: len(x) // 2]),
    "the second half of the sequences": lambda x, b: _cost(x[len(x) // 2 :], b.targets[len(x) // 2 :]),
}


def _gradient(step: Step, model: nn.Module, part: _Part) -> dict[str, Tensor]:
    """The gradient of that part of the loss, sampled; {} where the batch has no such part."""
    seed_generators(step.seed, step.batch.inputs.device)
    loss = part(model(step.batch.inputs), step.batch)
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = torch.autograd.grad(loss, list(named.values()), materialize_grads=True, allow_unused=True)
    if not math.isfinite(loss.item()):
        return {}
    return {name: step.audit.sampled(gradient) for name, gradient in zip(named, found, strict=True)}


def _at_earlier_weights(step: Step, model: nn.Module, call: Callable[[], _Found]) -> _Found:
    """What ``call`` returns with the weights of before the update, which are put back."""
    named = dict(model.named_parameters())
    now = {name: parameter.detach().clone() for name, parameter in named.items()}
    try:
        for name, parameter in named.items():
            parameter.data.copy_(step.weights[name])
        return call()
    finally:
        for name, parameter in named.items():
            parameter.data.copy_(now[name])


def _explained(found: dict[str, Tensor], parts: list[dict[str, Tensor]]) -> bool:
    """Whether ``found`` is a sum of multiples of ``parts``."""
    gram = torch.tensor([[_dot(one, other) for other in parts] for one in parts], dtype=torch.float64)
    y = torch.tensor([_dot(part, found) for part in parts], dtype=torch.float64)
    shares = torch.linalg.lstsq(gram, y[:, None]).solution[:, 0].tolist()
    rest = {
        name: value - sum(share * part[name] for share, part in zip(shares, parts, strict=True))
        for name, value in found.items()
        if all(name in part for part in parts)
    }
    return _norm(rest) <= SAME * _norm(found)


def _dot(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return sum(float(value @ other[name]) for name, value in one.items() if name in other)


def _mean(logits: Tensor, targets: Tensor) -> float:
    return float(_cost(logits, targets))


def _cost(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over all tokens, shape (), nats/token."""
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def _cost_without(token: int, logits: Tensor, batch: Batch) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1).float(), batch.targets.flatten(), ignore_index=token)


def _norm(tensors: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(tensor.square().sum()) for tensor in tensors.values()))
