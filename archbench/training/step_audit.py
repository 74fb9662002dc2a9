"""The audit of training steps: sampled steps are watched from outside, and change nothing.

Of a sampled step the core computes the loss itself, from the logits, and holds to it what ``train_step`` returns; the
tokens that the model read are the batch's, each once; and nothing but the run's own optimizer, at the run's own
settings, moved the parameters. No random number is drawn, buffers and attributes are put back, and the clock stands
still meanwhile: the training is the same, bit for bit, as without.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archbench.protocols import LinearHeadModel
from archbench.training.distribution import from_a_peer, local
from archbench.training.generators import forked_generators
from archbench.training.movement_replay import Replay

if TYPE_CHECKING:
    from archbench.data.batches import Batch
    from archbench.training.state import TrainState

REPLAYED = 3
"""Parameters of a step whose movement is computed again, of at most :data:`LARGEST_REPLAYED` numbers each."""

LARGEST_REPLAYED = 1 << 18

MOVEMENT_TOLERANCE = 1e-3
"""Of a parameter's movement: room for products that are fused or not."""

_LOGITS_AT_ONCE = 1 << 24
"""Most logits in float32 at a time."""

Report = Callable[["Finding"], None]


@dataclass(frozen=True)
class Finding:
    """What an audit found.

    Attributes:
        metric: its name in the tidy table, ``audit_…``.
        value: 0 for what is right; None if it could not be judged.
        tolerance: the largest value that is rounding.
        meaning: what a larger one says, in a clause.
    """

    metric: str
    value: float | None
    tolerance: float
    meaning: str

    @property
    def failed(self) -> bool:
        return self.value is not None and not self.value <= self.tolerance  # NaN fails


def fingerprint(tensors: Iterable[Tensor]) -> Tensor:
    """A number for each tensor, of all its bits, (n,) int64: one that moved has another. Of a distributed tensor, of
    this rank's part."""
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = [
        tensor.detach().contiguous().view(kinds[tensor.element_size()]).sum(dtype=torch.int64)
        for tensor in map(local, tensors)
        if tensor.element_size() in kinds
    ]
    return torch.stack(sums) if sums else torch.zeros(0, dtype=torch.int64)


def loss_tolerance(state: TrainState, loss: float) -> float:
    """Nats/token that the loss may differ by from the core's: other sums, in low precision or compiled code."""
    share = 1e-4 if state.dtype == torch.float32 else 5e-3
    return share * (4 if state.compiled else 1) * max(1.0, abs(loss))


@lru_cache
def _drawn(seed: int, low: int) -> int:
    return int(np.random.default_rng([seed, low, 23]).integers(low, 4 * low))


class StepAudit:
    """Watches some of the steps of one training: the first, and one of 1 … 3, 4 … 15, 16 … 63 and so on.

    Args:
        state: of the training, before its first step: its optimizer and settings are the run's.
        seed: which steps are watched.
        clock: of the training.
        report: called with every finding of a watched step.
    """

    def __init__(self, state: TrainState, seed: int, clock: Any, report: Report) -> None:
        self._state, self._seed, self._clock, self._report = state, seed, clock, report
        self._optimizer = state.optimizer
        self._settings = recipe_settings(state)
        self._groups = [dict(group) for group in state.optimizer.param_groups]
        self._pauses: list[tuple[Any, Any]] = []

    def due(self, step: int) -> bool:
        """Whether that step is watched."""
        return step == 0 or step == _drawn(self._seed, 4 ** ((step.bit_length() - 1) // 2))

    def start(self, batch: Batch) -> None:
        """Before the clock starts: what the step begins with, and the loss that it should return."""
        state = self._state
        self._pauses = []
        self._batch, self._lr = batch, [group["lr"] for group in state.optimizer.param_groups]
        self._loss = core_loss(state, batch)
        self._read: list[Tensor] = []
        self._settings_used, self._lr_used = self._settings, self._lr
        self._weights = [fingerprint(state._parameters)]
        self._replays = self._begin_replays()
        self._found_inf: Tensor | None = None
        self._depth = self._moves = 0
        self._hooks = [
            state.model.register_forward_pre_hook(self._note_tokens, with_kwargs=True),
            self._optimizer.register_step_pre_hook(lambda *_: self._before_move()),
            self._optimizer.register_step_post_hook(lambda *_: self._after_move()),
        ]

    def end(self, loss: Tensor, *, replayed: bool = False) -> list[tuple[Any, Any]]:
        """After the clock stopped: report what was found; returns the pauses, marks of the clock.

        Of an update that was replayed from a graph that is the loss, which shows where the graph does what no line of
        Python does any more. Its tokens and its movement are judged where it is asked operation by operation.
        """
        for hook in self._hooks:
            hook.remove()
        self._weights.append(fingerprint(self._state._parameters))
        self._report(self._judge_loss(float(loss)))
        if not replayed:
            self._report(self._judge_tokens())
            self._report(self._judge_movement())
        self._replays.clear()
        return self._pauses

    def _note_tokens(self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        first = next(iter((*arguments, *named.values())), None)
        if isinstance(first, Tensor) and first.ndim == 2 and not first.is_floating_point():
            self._read.append(first.detach())

    def _before_move(self) -> None:
        self._depth += 1  # an optimizer that calls its base class's step calls the hooks twice
        if self._depth > 1:
            return
        begin = self._clock.mark()
        self._moves += 1
        self._settings_used = recipe_settings(self._state)
        self._lr_used = [group["lr"] for group in self._optimizer.param_groups]
        self._weights.append(fingerprint(self._state._parameters))
        self._found_inf = getattr(self._optimizer, "found_inf", None)
        for replay in self._replays:
            gradient = replay.parameter.grad
            replay.gradient = None if gradient is None else local(gradient.detach()).clone()
        self._pauses.append((begin, self._clock.mark()))

    def _after_move(self) -> None:
        self._depth -= 1
        if self._depth == 0:
            begin = self._clock.mark()
            self._weights.append(fingerprint(self._state._parameters))
            self._pauses.append((begin, self._clock.mark()))

    def _judge_loss(self, loss: float) -> Finding:
        expected = self._loss
        if expected is None:
            return Finding("audit_loss", None, 0.0, "")
        same = loss == expected or (loss != loss and expected != expected)
        return Finding(
            "audit_loss", 0.0 if same else abs(loss - expected), loss_tolerance(self._state, expected),
            f"train_step returned a loss of {loss:.5g} at step {self._step}, and the batch costs {expected:.5g} "
            "nats/token by the model's own logits before the update",
        )  # fmt: skip

    def _judge_tokens(self) -> Finding:
        wanted, T = self._batch.inputs, self._batch.inputs.shape[1]
        meaning = f"the model read other tokens at step {self._step} than its batch, or some of them more than once"
        if not self._read:
            return Finding("audit_tokens", None, 0.0, meaning)
        if all(tokens.shape[1] == T for tokens in self._read):
            read = torch.cat([tokens.to(wanted.device) for tokens in self._read])
            if torch.equal(read, wanted) or sorted(read.tolist()) == sorted(wanted.tolist()):
                return Finding("audit_tokens", 0.0, 0.0, meaning)
        numbers = sum(tokens.numel() for tokens in self._read)
        meaning += f": {numbers:,} in {len(self._read)} passes, and the batch has {wanted.numel():,}"
        return Finding("audit_tokens", max(1.0, abs(numbers - wanted.numel()) / wanted.numel()), 0.0, meaning)

    def _judge_movement(self) -> Finding:
        culprit = self._other_movement()
        if culprit is not None:
            return Finding("audit_movement", 1.0, MOVEMENT_TOLERANCE, f"at step {self._step} {culprit}")
        worst = max(self._replays, key=lambda replay: replay.deviation, default=None)
        return Finding(
            "audit_movement", None if worst is None else worst.deviation, MOVEMENT_TOLERANCE,
            f"at step {self._step} {'' if worst is None else worst.name} moved otherwise than the run's optimizer "
            "moves it for its gradient",
        )  # fmt: skip

    def _other_movement(self) -> str | None:
        """What moved the parameters besides the run's own optimizer at its own settings; None if nothing did."""
        changed = changed_setting(self._settings, self._settings_used) or changed_setting(
            self._settings, recipe_settings(self._state)
        )
        if changed is not None:
            return f"train_step changed the run's {changed}"
        # Loss scaling found infinite gradients: the optimizer was not called, or was told to move nothing.
        skipped = self._moves == 0 and self._state.scaler is not None
        if self._moves != 1 and not skipped:
            return f"the run's optimizer moved the parameters {self._moves} times"
        if self._lr_used != self._lr:
            return f"train_step changed the learning rate from {self._lr} to {self._lr_used}"
        trained = [id(parameter) for parameter in self._state.module.parameters() if parameter.requires_grad]
        if trained != [*map(id, self._state._parameters)]:
            return "train_step replaced, froze or freed parameters"
        names = [name for name, parameter in self._state.module.named_parameters() if parameter.requires_grad]
        pairs = zip(self._weights[::2], self._weights[1::2], strict=True)  # begin, before it; after it, end
        for place, (one, other) in zip(("before", "after"), pairs, strict=False):
            moved = torch.nonzero(one != other).flatten().tolist()
            if moved:
                return f"train_step moved {names[moved[0]]} {place} the optimizer's step, and it has to be the only one"
        if self._found_inf is None or not bool(self._found_inf):
            for replay in self._replays:
                replay.replay(self._lr)
        return None

    @property
    def _step(self) -> int:
        return self._state.step - 1

    def _begin_replays(self) -> list[Replay]:
        state = self._state
        trained = {*map(id, state._parameters)}
        named = [pair for pair in state.module.named_parameters() if id(pair[1]) in trained]
        small = [pair for pair in named if 0 < local(pair[1]).numel() <= LARGEST_REPLAYED]
        draw = np.random.default_rng([self._seed, state.step, 29]).permutation(len(small))
        return [Replay.begin(self._optimizer, self._groups, *small[i]) for i in draw[:REPLAYED]]


def core_loss(state: TrainState, batch: Batch) -> float | None:
    """The loss of a step as the core computes it from the logits, nats/token.

    None: the model fails or gives no logits. The step itself then raises that, with the plugin named.
    """
    nats = 0.0
    with untouched(state.module, state.device):
        try:
            for micro in state.split(batch):
                with state.autocast():
                    nats += _nats(state.module, micro)
        except Exception as error:
            if from_a_peer(error):
                raise
            return None
    if state.ranks.sharded:
        state.module.reshard()  # type: ignore[operator]  # of FSDPModule; a backward pass does it otherwise
    return nats / batch.targets.numel()


def _nats(model: nn.Module, batch: Batch) -> float:
    """Summed over the batch's targets; with gradients switched on, as in training, and float32 logits in parts."""
    head = model.head if isinstance(model, LinearHeadModel) else None
    states = model(batch.inputs, logits=False) if head is not None else model(batch.inputs)  # (B, T, C) or (B, T, V)
    flat, targets = states.detach().flatten(0, 1), batch.targets.flatten()
    width = model.head_parameters()[0].shape[0] if isinstance(model, LinearHeadModel) else flat.shape[1]
    rows, nats = max(1, _LOGITS_AT_ONCE // width), 0.0
    with torch.no_grad():
        for first in range(0, len(flat), rows):
            part = flat[first : first + rows]
            logits = (part if head is None else head(part)).float()
            nats += float(F.cross_entropy(logits, targets[first : first + rows], reduction="sum"))
    return nats


@contextmanager
def untouched(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Random generators, buffers and attributes of the modules are afterwards what they were."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    modules = [(module, dict(module.__dict__), dict(module._buffers)) for module in model.modules()]
    plain, numbers = random.getstate(), np.random.get_state()
    try:
        with forked_generators(device):
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(numbers)
        for buffer, before in buffers:
            buffer.detach().copy_(before)
        for module, attributes, own in modules:
            for current, earlier in ((module.__dict__, attributes), (module._buffers, own)):
                for name in [name for name in current if name not in earlier]:
                    del current[name]
                current.update((name, value) for name, value in earlier.items() if current.get(name) is not value)


def recipe_settings(state: TrainState) -> dict[str, Any]:
    """By name, what has to be the same in every step."""
    found: dict[str, Any] = {"optimizer": state.optimizer, "model": state.model}
    found |= {name: getattr(state, name) for name in ("grad_clip", "accumulation", "dtype", "float8", "scaler")}
    for number, group in enumerate(state.optimizer.param_groups):
        options = {name: value for name, value in group.items() if name not in ("lr", "params", "initial_lr")}
        found |= {f"{name} of parameter group {number}": value for name, value in options.items()}
        found[f"parameters of group {number}"] = tuple(map(id, group["params"]))
    return found


def changed_setting(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """The first that is another one, with both values where they can be shown; None where all are the same."""
    for name in (*before, *now):
        one, other = before.get(name), now.get(name)
        if one is not other and not (isinstance(one, int | float | tuple | torch.dtype) and one == other):
            plain = all(isinstance(value, int | float | str | tuple | None) for value in (one, other))
            return f"{name} from {one} to {other}" if plain and "parameters" not in name else name
    return None
