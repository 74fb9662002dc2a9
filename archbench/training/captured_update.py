"""A whole update as one captured CUDA graph: forward and backward passes, clipping, optimizer, clearing of gradients.

A graph repeats what was asked of the GPU: the same kernels on the same addresses. What differs from one update to the
next is therefore in the device's memory, where the host puts it before each: the batch, the learning rate, the seeds of
dropout. The first updates of a process are asked operation by operation, which shows how many seeds there are and warms
up what is then captured; they are updates like others. On a CPU all are, the twin of the graph (``static``).

The learning rate is rounded to float32, as it is on the device. Otherwise losses and weights are bit for bit those of
eager training; so are torch's own random numbers on the GPU, whose generator a graph advances as eager kernels do.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from archbench.errors import HookFailedError, HookResultError, UsageError
from archbench.kernels import record_attention
from archbench.kernels.dropout_bits import new_seed, new_seeds, seeds_from
from archbench.training.optimizers import rate_on_device
from archbench.training.updates import Updates

if TYPE_CHECKING:
    from archbench.data.batches import Batch
    from archbench.training.state import TrainState
    from archbench.training.updates import Step

WARM_UPDATES = 3
"""Asked operation by operation before a capture. The second is the first that casts weights together."""


def updates_of(kind: str, state: TrainState, step: Step) -> Updates:
    """What takes the updates of a training: ``eager``, ``graph``, or ``static``, the graph's twin.

    Where the state allows no graph they are eager, and :attr:`Updates.reason` says why.
    """
    reason = None if kind == "eager" else why_not_static(state)
    if reason is None and kind == "graph" and state.device.type != "cuda":
        reason = "there are no CUDA graphs on a CPU"
    if kind == "eager" or reason is not None:
        return Updates(state, step, reason)
    return StaticUpdates(state, step, captured=kind == "graph")


def why_not_static(state: TrainState) -> str | None:
    """Why updates cannot be of fixed addresses, as a clause; None if they can."""
    if state.ranks.size > 1:
        return "several processes train together"
    if state.compiled:
        return "the model is compiled"
    if not rate_on_device(state.optimizer):
        return f"{type(state.optimizer).__name__} takes its learning rate from the host"
    return None


class StaticUpdates(Updates):
    """Updates whose batch, learning rate and seeds are at fixed addresses.

    Args:
        state: one for which :func:`why_not_static` is None.
        step: a plugin's ``train_step``.
        captured: whether to capture a CUDA graph after :data:`WARM_UPDATES` updates, and replay it.
    """

    def __init__(self, state: TrainState, step: Step, *, captured: bool) -> None:
        super().__init__(state, step)
        self.kind = "static"
        self._captures = captured
        self._stream: torch.cuda.Stream | None = None
        if captured:
            self.reason = f"it ended before its capture, in the first {WARM_UPDATES} updates"
            self._stream = torch.cuda.Stream(state.device)  # type: ignore[no-untyped-call]
        self._batch: Batch | None = None
        self._order: list[int] | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._results = torch.zeros(2)
        self._made = 1
        self._make_told(0)

    def begin(self, rate: float, *, watched: bool) -> float:
        rate = float(np.float32(rate))
        if self._captures and self._graph is None and len(self.asked) >= WARM_UPDATES and not watched:
            start = time.perf_counter()
            self._capture()
            self.capture_seconds = time.perf_counter() - start
        self.replayed = self._graph is not None and not watched
        return super().begin(rate, watched=watched)

    def place(self, drawn: Batch) -> Batch:
        if self._batch is None:
            placed = drawn.to(self.state.device)
            self._batch = type(placed)(placed.inputs.clone(), placed.targets.clone())  # another may hold these
        elif self._batch.inputs.shape != drawn.inputs.shape:
            raise UsageError("updates of a graph", "batches differ in size", "Use updates=eager")
        else:
            drawn.copy_to(self._batch)
        return self._batch

    def take(self, batch: Batch) -> Tensor:
        if self._graph is not None and self.replayed:
            self._tell()
            self._graph.replay()
            results = self._results.clone()  # the next replay overwrites them
            self.state.grad_norm = results[1]
            self.state.step += self._made
            return results[0]
        self.asked.append(self.state.step)
        return self._first(batch) if self._order is None else self._ask(batch)

    def _make_told(self, seeds: int) -> None:
        """The memory of what the host tells an update: a word of 8 bytes for each group's rate, and for each seed."""
        groups = len(self.state.optimizer.param_groups)
        self._told = torch.zeros(groups + seeds, dtype=torch.int64, device=self.state.device)
        self._rates: list[Tensor] = list(self._told[:groups].view(torch.float32)[::2])
        self._seeds: list[Tensor] = list(self._told[groups:])

    def _tell(self) -> None:
        """Send the rates and as many new seeds in one copy, for which nothing waits."""
        groups = self.state.optimizer.param_groups
        pinned = self.state.device.type == "cuda"
        words = torch.zeros(len(self._told), dtype=torch.int64, pin_memory=pinned)
        words[: len(groups)].view(torch.float32)[::2] = torch.tensor([group["lr"] for group in groups])
        if self._seeds:
            words[len(groups) :] = new_seeds(len(self._seeds))
        self._told.copy_(words, non_blocking=True)

    def _first(self, batch: Batch) -> Tensor:
        """An update with seeds from the host, which shows how many there are, and whether the host draws others."""
        drawn: list[int] = []

        def noted() -> Tensor:
            drawn.append(int(seed := new_seed()))
            return seed

        generator, plain = torch.Generator(), (random.getstate(), _numpy_state())
        generator.set_state(torch.get_rng_state())
        self._tell()
        with record_attention() as ran, self._aside(), self._at_fixed_addresses(noted):
            loss = self.step(self.state, batch)
        seeds = list(dict.fromkeys(drawn))  # where activations are computed again, so is a mask, with the same seed
        expected = new_seeds(len(seeds), generator).tolist()
        same = seeds == expected and torch.equal(generator.get_state(), torch.get_rng_state())
        same = same and plain == (random.getstate(), _numpy_state())
        if "flex" in ran and self._captures:
            self._refuse("the masks of attention by flex may move")
        if same:
            self._order = [seeds.index(seed) for seed in drawn]
            self._make_told(len(seeds))
        else:
            self._order = []
            if seeds or self._captures:
                self._refuse("its step draws random numbers on the CPU, which a graph would repeat")
        return loss

    def _ask(self, batch: Batch) -> Tensor:
        """An update, operation by operation."""
        self._tell()
        with self._aside(), self._at_fixed_addresses(self._held_seeds()):
            return self.step(self.state, batch)

    def _held_seeds(self) -> Callable[[], Tensor]:
        if not self._seeds:
            return new_seed
        places = iter(self._order or ())

        def held() -> Tensor:
            place = next(places, None)
            if place is None:
                raise HookResultError("train_step", "an update draws more masks than the first", "Use updates=eager")
            return self._seeds[place]

        return held

    @contextmanager
    def _at_fixed_addresses(self, seeds: Callable[[], Tensor], *, capturing: bool = False) -> Iterator[None]:
        """The optimizer reads its rates and kernels read their seeds where the host puts them."""
        groups = self.state.optimizer.param_groups
        plain: list[dict[str, Any]] = [
            {name: group[name] for name in ("lr", "capturable") if name in group} for group in groups
        ]
        for group, rate in zip(groups, self._rates, strict=True):
            group["lr"] = rate
            if capturing and "capturable" in group:  # torch asks for it, and computes the same
                group["capturable"] = True
        try:
            with seeds_from(seeds):
                yield
        finally:
            for group, values in zip(groups, plain, strict=True):
                group.update(values)

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """On the stream of the capture, between the work before and after."""
        if self._stream is None:
            yield
            return
        current = torch.cuda.current_stream(self.state.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)

    def _capture(self) -> None:
        state, number = self.state, self.state.step
        graph = torch.cuda.CUDAGraph()
        try:
            with (
                self._at_fixed_addresses(self._held_seeds(), capturing=True),
                torch.cuda.graph(graph, stream=self._stream),
            ):
                loss = self.step(state, self._batch)  # type: ignore[arg-type]  # place() was called before
                assert state.grad_norm is not None
                self._results = torch.stack((loss.detach().float(), state.grad_norm.float()))
        except (RuntimeError, HookFailedError) as error:  # of torch, whatever CUDA refuses
            self._refuse(f"its update cannot be captured: {_refused(error)}")
            state.forget_gradients()
            with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=self._stream):
                self._told.clone()  # without it generators would believe they are captured still
        else:
            self._graph, self._made = graph, state.step - number
            self.kind, self.reason = "graph", None
        finally:
            state.step = number

    def _refuse(self, reason: str) -> None:
        self._captures, self.reason = False, reason


def _refused(error: BaseException) -> str:
    """What CUDA refused, not that the capture then ended without a graph or a hook with an error."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _numpy_state() -> Any:
    kind, words, *others = np.random.get_state()
    return kind, bytes(np.asarray(words)), *others
