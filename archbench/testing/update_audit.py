"""What one training step did, held against what it should do: one update, by the optimizer that the recipe names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from archbench.training.movement_replay import Replay
from archbench.training.step_audit import LARGEST_REPLAYED, changed_setting, fingerprint, recipe_settings

if TYPE_CHECKING:
    from types import TracebackType

    from archbench.training.state import TrainState

SAMPLE = 1 << 16
"""Numbers of each gradient that are kept, evenly spread."""

MOVEMENT_TOLERANCE = 0.01
"""Of a movement: float32 arithmetic in another order."""

ADVICE = "Call state.update() once, and leave optimizer, recipe and parameters to it: they are the same for every model"

_METHODS = ("update", "backward", "split", "autocast", "set_learning_rate")


@dataclass
class UpdateAudit:
    """A context around one training step; afterwards :meth:`faults` says what was not as it should be.

    Attributes:
        state: of the training.
        gradients: name -> gradient before clipping, :meth:`sampled`, as it was when the optimizer moved.
        updates: how often the optimizer moved the parameters.
    """

    state: TrainState
    gradients: dict[str, Tensor] = field(default_factory=dict)
    updates: int = 0

    def __enter__(self) -> UpdateAudit:
        state, optimizer = self.state, self.state.optimizer
        self._parameters = {name: p for name, p in state.module.named_parameters() if p.requires_grad}
        self._steps, self._settings = state.step, self._read_settings()
        self._rates = [group["lr"] for group in optimizer.param_groups]
        groups = [dict(group) for group in optimizer.param_groups]
        self._replays = {
            name: Replay.begin(optimizer, groups, name, parameter)
            for name, parameter in self._parameters.items()
            if parameter.numel() <= LARGEST_REPLAYED
        }
        self._found: str | None = None
        self._weights = [fingerprint(self._parameters.values())]
        self._handles = [
            optimizer.register_step_pre_hook(lambda *_: self._before_move()),
            optimizer.register_step_post_hook(lambda *_: self._weights.append(fingerprint(self._parameters.values()))),
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        if error is None:
            self._weights.append(fingerprint(self._parameters.values()))
            self._found = self._found or self._changed_settings("")

    def faults(self) -> list[str]:
        """What was wrong, a clause each ("it changed …"), the likeliest cause first; [] if nothing."""
        if self._found:
            return [self._found]
        steps = self.state.step - self._steps
        if steps != 1 or self.updates != 1:
            return [f"it called state.update() {steps} times and moved the parameters {self.updates} times"]
        start, before, after, end = self._weights
        faults = self._moved(start, before, "before state.update()") + self._moved(after, end, "after state.update()")
        for name, replay in self._replays.items() if not faults else ():
            replay.replay(self._rates)
            if replay.deviation > MOVEMENT_TOLERANCE:
                faults.append(f"its optimizer moved parameter {name!r} otherwise than by that gradient")
        return faults

    def sampled(self, tensor: Tensor) -> Tensor:
        """Some of its numbers, evenly spread: (n,) float64."""
        flat = tensor.detach().reshape(-1)
        return flat[:: max(1, -(-flat.numel() // SAMPLE))].to(torch.float64, copy=True)

    def _before_move(self) -> None:
        self.updates += 1
        if self.updates > 1:
            return
        self._weights.append(fingerprint(self._parameters.values()))
        self._found = self._changed_settings(" for the update") or self._changed_moments()
        clip, norm = self.state.grad_clip, self.state.grad_norm
        clipped = 1.0 if clip is None or norm is None else max(1.0, float(norm) / clip)
        for name, parameter in self._parameters.items():
            if parameter.grad is not None:
                self.gradients[name] = self.sampled(parameter.grad) * clipped
                if name in self._replays:
                    self._replays[name].gradient = parameter.grad.detach().clone()

    def _read_settings(self) -> dict[str, Any]:
        """What ``train_step`` may use and not change, by the name under which a message shows it."""
        state = self.state
        settings = recipe_settings(state) | {"tokens": state.tokens}
        settings |= {f"{name}()": vars(state).get(name) for name in _METHODS}
        rates = enumerate(state.optimizer.param_groups)
        settings |= {f"learning rate of parameter group {number}": group["lr"] for number, group in rates}
        named = state.module.named_parameters()
        return settings | {f"requires_grad of {name!r}": parameter.requires_grad for name, parameter in named}

    def _changed_settings(self, when: str) -> str | None:
        changed = changed_setting(self._settings, self._read_settings())
        return None if changed is None else f"it changed the run's {changed}{when}"

    def _changed_moments(self) -> str | None:
        for name, replay in self._replays.items():
            now = self.state.optimizer.state.get(self._parameters[name], {})
            for key, value in (replay.moments or {}).items():
                if isinstance(value, Tensor) and not (key in now and torch.equal(now[key], value)):
                    return f"it changed the optimizer's state before the update: {key} of {name!r}"
        return None

    def _moved(self, before: Tensor, after: Tensor, when: str) -> list[str]:
        moved = [name for name, differs in zip(self._parameters, (before != after).tolist(), strict=True) if differs]
        more = f", and {len(moved) - 1} more," if len(moved) > 1 else ""
        return [f"it changed parameter {moved[0]!r}{more} {when}"] if moved else []
