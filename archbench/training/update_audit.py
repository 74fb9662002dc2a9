"""What one training step did, held against what it should do: one update, by the optimizer that the recipe names.

The optimizer's arithmetic is done again here, in float64, on a sample of every parameter and on the gradients that the
optimizer was given. Nothing is trained twice and no tensor is copied whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from types import TracebackType

    from archbench.training.state import TrainState

SAMPLE = 4096
"""Numbers of each parameter that are followed, evenly spread."""

MOVEMENT_TOLERANCE = 0.01
"""Of a movement: float32 arithmetic in another order. Rounding of the parameter itself comes on top."""

ADVICE = "Call state.update() once, and leave optimizer, recipe and parameters to it: they are the same for every model"

_RECIPE = ("grad_clip", "accumulation", "dtype", "device", "tokens")
_METHODS = ("update", "backward", "split", "autocast", "set_learning_rate")


@dataclass(frozen=True)
class _Followed:
    """A sampled parameter: its numbers, and the optimizer's settings and moments for it."""

    values: Tensor
    settings: Mapping[str, Any]
    moments: Mapping[str, Tensor]


@dataclass
class UpdateAudit:
    """A context around one training step; afterwards :meth:`faults` says what was not as it should be.

    ::

        with UpdateAudit(state) as audit:
            loss = train_step(state, batch)
        audit.faults()

    It costs a pass over :attr:`sample` numbers of each parameter, and changes nothing.

    Attributes:
        state: of the training; its optimizer may be any of :mod:`archbench.training.optimizers`. Muon's movement is
            not calculated again: its parameters are only required to move in the optimizer's step and nowhere else.
        sample: most numbers of a parameter to follow.
        gradients: name -> sampled gradient before clipping, as it was when the optimizer moved.
        updates: how often the optimizer moved the parameters.
    """

    state: TrainState
    sample: int = SAMPLE
    gradients: dict[str, Tensor] = field(default_factory=dict)
    updates: int = 0

    def __enter__(self) -> UpdateAudit:
        state = self.state
        self._optimizer = state.optimizer
        self._parameters = dict(state.module.named_parameters())
        self._before, self._settings, self._steps = self._follow(), self._read_settings(), state.step
        self._at_update: dict[str, Tensor] = {}
        self._after_update: dict[str, Tensor] = {}
        self._found: list[str] = []
        self._handles = [
            state.optimizer.register_step_pre_hook(self._entering),
            state.optimizer.register_step_post_hook(self._left),
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        if error is None:
            self._found += self._changed_settings("") if not self._found else []
            self._end = self._values()

    def faults(self) -> list[str]:
        """What was wrong, a clause each ("it changed …"), the likeliest cause first; [] if nothing."""
        steps = self.state.step - self._steps
        if self._found:
            return self._found
        if steps != 1 or self.updates > 1 or (self.updates == 0 and self.state.scaler is None):
            return [f"it called state.update() {steps} times and moved the parameters {self.updates} times"]
        if self.updates == 0:  # loss scaling skips updates of infinite gradients
            return self._moved(self._start, self._end, "although the update was skipped")
        return (
            self._moved(self._start, self._at_update, "before state.update()")
            or self._other_movements()
            or self._moved(self._after_update, self._end, "after state.update()")
        )

    @property
    def _start(self) -> dict[str, Tensor]:
        return {name: followed.values for name, followed in self._before.items()}

    def _entering(self, optimizer: torch.optim.Optimizer, *arguments: Any) -> None:
        self.updates += 1
        if self.updates > 1:
            return
        self._found += self._changed_settings(" for the update") + self._changed_moments()
        self._at_update = self._values()
        clip, norm = self.state.grad_clip, self.state.grad_norm
        clipped = 1.0 if clip is None or norm is None else max(1.0, float(norm) / clip)
        for name, parameter in self._parameters.items():
            if parameter.grad is not None:
                self.gradients[name] = self.sampled(parameter.grad) * clipped
        self._clipped = clipped

    def _left(self, optimizer: torch.optim.Optimizer, *arguments: Any) -> None:
        if self.updates == 1:
            self._after_update = self._values()

    def sampled(self, tensor: Tensor) -> Tensor:
        """The numbers of a parameter, or of a tensor of its shape, that are followed: (n,) float64."""
        flat = tensor.detach().reshape(-1)
        return flat[:: max(1, -(-flat.numel() // self.sample))].to(torch.float64, copy=True)

    def _values(self) -> dict[str, Tensor]:
        return {name: self.sampled(parameter) for name, parameter in self._parameters.items()}

    def _follow(self) -> dict[str, _Followed]:
        places: dict[int, tuple[torch.optim.Optimizer, dict[str, Any]]] = {}
        for part in getattr(self._optimizer, "parts", (self._optimizer,)):
            for group in part.param_groups:
                places |= {id(parameter): (part, group) for parameter in group["params"]}
        followed = {}
        for name, parameter in self._parameters.items():
            part, group = places.get(id(parameter), (None, {}))
            kept: Mapping[str, Any] = {} if part is None else part.state.get(parameter, {})
            moments = {
                key: value.detach().double().clone() if value.ndim == 0 else self.sampled(value)
                for key, value in kept.items()
                if isinstance(value, Tensor)
            }
            settings = {key: value for key, value in group.items() if key != "params"}
            kind = "" if part is None else type(part).__name__
            followed[name] = _Followed(self.sampled(parameter), {**settings, "optimizer": kind}, moments)
        return followed

    def _read_settings(self) -> dict[str, Any]:
        """What ``train_step`` may use and not change, by the name under which a message shows it."""
        state, optimizer = self.state, self.state.optimizer
        settings: dict[str, Any] = {f"state.{name}": getattr(state, name) for name in _RECIPE}
        settings |= {f"state.{name}()": vars(state).get(name) for name in _METHODS}
        settings |= {"state.optimizer": optimizer, "state.model": state.model, "state.scaler": state.scaler}
        settings["the optimizer's step()"] = vars(optimizer).get("step")
        settings["the number of parameter groups"] = len(optimizer.param_groups)
        for number, group in enumerate(optimizer.param_groups):
            for key, value in group.items():
                name = f"{'the learning rate' if key == 'lr' else key} of parameter group {number}"
                settings[name] = [*map(id, value)] if key == "params" else value
        named = state.module.named_parameters()
        return settings | {f"requires_grad of {name!r}": parameter.requires_grad for name, parameter in named}

    def _changed_settings(self, when: str) -> list[str]:
        now = self._read_settings()
        changed = []
        for name in {**self._settings, **now}:
            before, after = self._settings.get(name), now.get(name)
            if before is after or (isinstance(before, int | float | tuple | list | torch.dtype) and before == after):
                continue
            shown = "" if isinstance(before, list) else f" from {_shown(before)} to {_shown(after)}"
            changed.append(f"it changed {name}{shown}{when}")
        return changed

    def _changed_moments(self) -> list[str]:
        now = self._follow()
        for name, before in self._before.items():
            after = now.get(name)
            for key, value in before.moments.items():
                if after is None or key not in after.moments or not torch.equal(after.moments[key], value):
                    return [f"it changed the optimizer's state before the update: {key} of {name!r}"]
        return []

    def _moved(self, before: Mapping[str, Tensor], after: Mapping[str, Tensor], when: str) -> list[str]:
        moved = [name for name in before if not torch.equal(before[name], after[name])]
        if not moved:
            return []
        more = f", and {len(moved) - 1} more," if len(moved) > 1 else ""
        size = float((after[moved[0]] - before[moved[0]]).abs().max())
        return [f"it changed parameter {moved[0]!r}{more} by up to {size:.2g} {when}"]

    def _other_movements(self) -> list[str]:
        """Where the optimizer moved a parameter in another way than its arithmetic says."""
        for name, followed in self._before.items():
            gradient = self.gradients.get(name)
            if gradient is None:
                continue
            wanted = _expected(followed, gradient / self._clipped)
            if wanted is None:
                continue
            old, new = followed.values, self._after_update[name]
            rounding = 4 * torch.finfo(self._parameters[name].dtype).eps * old.abs()
            off = ((new - old) - (wanted - old)).abs()
            if bool((off > rounding + MOVEMENT_TOLERANCE * (wanted - old).abs().max()).any()):
                kind = followed.settings["optimizer"]
                size = float((wanted - old).abs().max())
                return [
                    f"its optimizer moved parameter {name!r} otherwise than {kind} does with that gradient, by up to "
                    f"{float(off.max()):.2g} where the movement is {size:.2g}"
                ]
        return []


def _expected(followed: _Followed, gradient: Tensor) -> Tensor | None:
    """The sampled parameter after one step, float64; None for an optimizer whose arithmetic is not known here."""
    settings, moments, p = followed.settings, followed.moments, followed.values
    rate = float(settings.get("lr", 0.0))
    if settings["optimizer"] in ("SGD", "DecoupledSGD"):
        p = p * (1 - rate * settings.get("decoupled_decay", 0.0))
        gradient = gradient + settings["weight_decay"] * p
        momentum = moments.get("momentum_buffer")
        moved: Tensor = gradient if momentum is None else settings["momentum"] * momentum + gradient
        stepped: Tensor = p - rate * moved
        return stepped
    if settings["optimizer"] not in ("Adam", "AdamW") or not settings.get("decoupled_weight_decay", True):
        return None
    (b1, b2), steps = settings["betas"], float(moments.get("step", torch.zeros(()))) + 1
    mean = moments.get("exp_avg", torch.zeros_like(p)) * b1 + (1 - b1) * gradient
    square = moments.get("exp_avg_sq", torch.zeros_like(p)) * b2 + (1 - b2) * gradient.square()
    scale = (square / (1 - b2**steps)).sqrt() + settings["eps"]
    wanted: Tensor = p * (1 - rate * settings["weight_decay"]) - rate / (1 - b1**steps) * mean / scale
    return wanted


def _shown(value: Any) -> str:
    if isinstance(value, int | float | tuple | torch.dtype) or value is None:
        return str(value)
    return type(value).__name__ if not callable(value) else "a function of its own"
