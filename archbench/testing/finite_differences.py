"""Gradients against what the loss really changes by, in float64: for a backward pass that does not fit its forward."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from archbench.data.batches import Batch
from archbench.testing.subject import seed_generators

STEPS = (1e-7, 1e-5, 1e-3)
"""Changes of the loss, nats, to try: the smallest is exact in float64, the largest still shows where a model computes
in float32 whatever its weights are."""

TOLERANCE = 0.1
"""Of a parameter's own share of the change. A halved gradient is off by 1, one of 10 % by 9."""

SMALLEST = 1e-4
"""Of the longest gradient: one that is shorter is 0 but for rounding, as that of a key's bias."""

_Directions = Mapping[str, Tensor]


def wrong_derivative(model: nn.Module, batch: Batch, found: Mapping[str, Tensor], seed: int = 0) -> str:
    """Which parameter's gradient is not what the loss changes by, a clause; "" for none.

    The loss is the mean cross-entropy in training mode. All parameters are moved at once, each so far that its gradient
    promises the same change of the loss, along it and across; only where the sum is off is each moved alone.

    Args:
        model: on its device; a copy in float64 is used, in its mode.
        batch: (B, T) each.
        found: name -> gradient that ``model`` itself gives, in its own precision.
        seed: of torch's generator before each pass, so that dropout is the same.

    Raises:
        Exception: the model cannot compute in float64.
    """
    probe = _Probe(copy.deepcopy(model).double(), batch, found, seed)
    if not probe.found or all(probe.agrees(probe.directions(draw)) for draw in (1, 2)):
        return ""
    for name in reversed(probe.found):
        alone = [{name: probe.along(name)}, *({name: probe.directions(draw)[name]} for draw in (1, 2, 3))]
        if not all(map(probe.agrees, alone)):
            ratio = probe.ratio(name)
            told = f": along it the loss changes {ratio:.2g} times as fast" if abs(ratio - 1) > TOLERANCE else ""
            return (
                f"the gradient of parameter {name!r} is not what the loss changes by{told}; those of the parameters "
                "after it are right"
            )
    return ""


class _Probe:
    """The loss of one batch at moved parameters."""

    def __init__(self, model: nn.Module, batch: Batch, found: Mapping[str, Tensor], seed: int) -> None:
        self.model, self.batch, self.seed = model, batch, seed
        self.parameters = dict(model.named_parameters())
        self.buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        lengths = {name: float(gradient.norm()) for name, gradient in found.items()}
        longest = max(lengths.values(), default=0.0)
        self.found = {name: found[name].double() for name in found if lengths[name] > SMALLEST * longest}

    def loss(self) -> Tensor:
        with torch.no_grad():
            for buffer, value in self.buffers:
                buffer.copy_(value)
        seed_generators(self.seed, self.batch.inputs.device)
        with _Float64():
            logits = self.model(self.batch.inputs)
            return F.cross_entropy(logits.flatten(0, 1), self.batch.targets.flatten())

    def along(self, name: str) -> Tensor:
        """The movement of a parameter along its gradient that promises a change of 1."""
        return self.found[name] / self.found[name].square().sum()

    def directions(self, draw: int) -> dict[str, Tensor]:
        """A random movement of every parameter, across its gradient and along it, up or down."""
        generator = torch.Generator().manual_seed(draw)
        directions = {}
        for name, gradient in self.found.items():
            across = torch.randn(gradient.shape, generator=generator, dtype=torch.float64).to(gradient.device)
            sign = 1 if float(torch.rand((), generator=generator)) < 0.5 else -1
            directions[name] = sign * self.along(name) + across / gradient.norm()
        return directions

    def change(self, directions: _Directions, step: float) -> float:
        """The derivative of the loss along ``directions``, by central differences."""
        losses = []
        for sign in (1, -1):
            self._move(directions, sign * step)
            with torch.no_grad():
                losses.append(self.loss().item())
            self._move(directions, -sign * step)
        return (losses[0] - losses[1]) / (2 * step)

    def agrees(self, directions: _Directions) -> bool:
        promised = sum(float((self.found[name] * direction).sum()) for name, direction in directions.items())
        return any(abs(self.change(directions, step) - promised) <= TOLERANCE for step in STEPS)

    def ratio(self, name: str) -> float:
        """What the loss changes by along a parameter's gradient, per what the gradient promises."""
        return self.change({name: self.along(name)}, STEPS[1])

    def _move(self, directions: _Directions, step: float) -> None:
        with torch.no_grad():
            for name, direction in directions.items():
                self.parameters[name].add_(direction, alpha=step)


class _Float64(TorchFunctionMode):
    """A context in which what a model casts to float32 becomes float64."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.float:
            return args[0].double()
        named = {key: _wider(value) for key, value in (kwargs or {}).items()}
        return func(*map(_wider, args), **named)


def _wider(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value
