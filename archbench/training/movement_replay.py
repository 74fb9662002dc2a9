"""The movement of one parameter, computed a second time."""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from archbench.training.distribution import local


class Replay:
    """The movement of one parameter, computed a second time from a copy of its gradient and of its state."""

    def __init__(
        self,
        name: str,
        parameter: nn.Parameter,
        optimizer: torch.optim.Optimizer,
        group: dict[str, Any],
        number: int,
    ) -> None:
        self.name, self.parameter = name, parameter
        self.gradient: Tensor | None = None
        self.deviation = 0.0
        self._optimizer, self._group, self._number = optimizer, group, number
        self._before = local(parameter.detach()).clone()
        moments = optimizer.state.get(parameter)
        self.moments = moments and {name: copy.deepcopy(local(value)) for name, value in moments.items()}

    @classmethod
    def begin(
        cls, optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]], name: str, parameter: nn.Parameter
    ) -> Replay:
        number = next(i for i, group in enumerate(groups) if any(one is parameter for one in group["params"]))
        parts = getattr(optimizer, "parts", (optimizer,))
        own = next(p for p in parts if any(one is parameter for group in p.param_groups for one in group["params"]))
        return cls(name, parameter, own, groups[number], number)

    def replay(self, rates: list[float]) -> None:
        """Set :attr:`deviation`, the part of the movement that is not the optimizer's."""
        if self.gradient is None or not bool(self.gradient.isfinite().all()):  # loss scaling may skip the update
            return
        expected = nn.Parameter(self._before.clone())
        expected.grad = self.gradient
        twin = copy.copy(self._optimizer)  # without the hooks
        twin.param_groups = [{**self._group, "lr": rates[self._number], "params": [expected]}]
        twin.state = defaultdict(dict, {expected: self.moments} if self.moments else {})
        twin.step()
        now, target = local(self.parameter.detach()), expected.detach()
        rounding = 4 * torch.finfo(now.dtype).eps * float(now.abs().max())
        moved = max(float((target - self._before).abs().max()), rounding, 1e-30)
        self.deviation = max(0.0, float((now - target).abs().max()) - rounding) / moved
