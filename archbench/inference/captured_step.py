"""Static steps as CUDA graphs, one per batch size and reach, kept with the model from one decoding to the next."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable

import torch
from torch import Tensor, nn

from archbench.inference.decoding_kind import record_decoding
from archbench.inference.sampling import Sampling
from archbench.inference.static_step import StaticStep
from archbench.kernels import attention_backends
from archbench.nn.cache import bucket

KEPT = 16
"""Decoders kept for a model, each with a cache and its graphs; the one unused for longest goes."""


class Decoder:
    """A static step and how it is taken: replayed from graphs, or (``captured`` False) asked for one by one."""

    def __init__(self, step: StaticStep, *, captured: bool) -> None:
        self.step = step
        self._take: Callable[[], None] = _Graphs(step).take if captured else lambda: step.run(step.reach())

    def next(self) -> Tensor:
        """The next token (B,)."""
        self._take()
        return self.step.stepped()


class _Graphs:
    """CUDA graphs of a step, one for each reach, in one pool of memory: they never run at the same time."""

    def __init__(self, step: StaticStep) -> None:
        self.step = step
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self.stream: torch.cuda.Stream = torch.cuda.Stream(step.token.device)  # type: ignore[no-untyped-call]
        self.attention: set[str] = set()

    def take(self) -> None:
        """Replay the step; the first of each reach is asked for one by one, which warms up what is then captured."""
        reach = self.step.reach()
        graph = self.graphs.get(reach)
        if graph is not None:
            graph.replay()
        elif self.step.model in _refusals:
            self.step.run(reach)
        else:
            self._capture(reach)
        for recorder in attention_backends.recorders:
            recorder.update(self.attention)

    def _capture(self, reach: int) -> None:
        step, device = self.step, self.step.token.device
        current = torch.cuda.current_stream(device)
        self.stream.wait_stream(current)
        with attention_backends.record_attention() as ran, torch.cuda.stream(self.stream):
            step.run(reach)  # a true step: capturing takes none
        current.wait_stream(self.stream)
        self.attention |= ran
        try:
            self.graphs[reach] = self._captured(lambda: step.run(reach))
        except RuntimeError as error:  # of torch, whatever CUDA refuses; this decoding goes on step by step
            cause = error.__context__ or error  # what was refused, not that the capture then ended without a graph
            _refusals[step.model] = f"its step cannot be captured: {str(cause).splitlines()[0]}"
            record_decoding("static", _refusals[step.model])
            self._captured(lambda: step.counters.clone())  # without it generators would believe they are captured still

    def _captured(self, work: Callable[[], object]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        if self.step.generator is not None:
            graph.register_generator_state(self.step.generator)
        pool = next((other.pool() for other in self.graphs.values()), None)
        with torch.cuda.graph(graph, pool=pool, stream=self.stream):
            work()
        return graph


def why_not_captured(model: nn.Module) -> str | None:
    """Why an earlier capture of this model's step failed, as a clause; None if none did."""
    return _refusals.get(model)


_refusals: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
_idle: weakref.WeakKeyDictionary[nn.Module, dict[Hashable, Decoder]] = weakref.WeakKeyDictionary()


class Lease:
    """A decoder for one decoding, which no other uses meanwhile; made anew where none is idle.

    Args:
        model: one for which ``why_not_static`` is None.
        prompt: (B, P).
        positions: that the decoding reads.
        context: the model's, which bounds the cache's capacity.
        sampling: how tokens are chosen; with a generator of its own, whose state is taken, and returned at the end.
        captured: whether steps are CUDA graphs.
    """

    def __init__(
        self, model: nn.Module, prompt: Tensor, positions: int, context: int, sampling: Sampling, *, captured: bool
    ) -> None:
        B, capacity = prompt.shape[0], min(bucket(positions), context)
        self._model, self._sampling = model, sampling
        self._key = B, capacity, captured, _rule(sampling), _facts(model)
        idle = _idle.setdefault(model, {})
        decoder = idle.pop(self._key, None)
        if decoder is None or not decoder.step.has_room(positions + 1 - prompt.shape[1]):
            step = StaticStep(model, B, capacity, sampling, prompt.device)
            decoder = Decoder(step, captured=captured)
        self.decoder = decoder
        if sampling.generator is not None and decoder.step.generator is not None:
            decoder.step.generator.set_state(sampling.generator.get_state())

    def end(self) -> None:
        """Give the decoder back, and the generator's state."""
        own = self.decoder.step.generator
        if self._sampling.generator is not None and own is not None:
            self._sampling.generator.set_state(own.get_state())
        idle = _idle.setdefault(self._model, {})
        idle[self._key] = self.decoder
        while len(idle) > KEPT:
            idle.pop(next(iter(idle)))


def _rule(sampling: Sampling) -> Hashable:
    """What a graph has fixed of how tokens are chosen; a subclass may keep more than is known here."""
    known = sampling.temperature, sampling.top_k, sampling.top_p, sampling.greedy, sampling.eos
    return known, sampling.generator is None, None if type(sampling) is Sampling else id(sampling)


def _facts(model: nn.Module) -> Hashable:
    """What a graph has fixed besides its shapes: where the weights are, and how products are computed."""
    tensors = [*model.parameters(), *model.buffers()]
    kind = tensors[0].device.type if tensors else "cpu"
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    places = tuple((tensor.data_ptr(), tensor.dtype) for tensor in tensors)
    return attention_backends.ambient, autocast, torch.get_float32_matmul_precision(), places
