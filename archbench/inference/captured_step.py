"""Static steps replayed: CUDA graphs, or on CPUs recorded calls; kept with the model from one decoding to the next."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable

import torch
from torch import Tensor, nn

from archbench.inference.decoding_kind import record_decoding
from archbench.inference.recorded_step import kept_tensors, record
from archbench.inference.sampling import Sampling
from archbench.inference.static_step import StaticStep
from archbench.kernels import attention_backends, product_choice
from archbench.kernels.packed_product import packed_copies
from archbench.nn.cache import bucket

KEPT = 16
"""Decoders kept for a model, each with a cache and its graphs; the one unused for longest goes."""


class Decoder:
    """A static step and how it is taken: replayed, or (``captured`` False) asked for one by one."""

    def __init__(self, step: StaticStep, *, captured: bool) -> None:
        self.step = step
        self._take: Callable[[], None] = lambda: step.run(step.reach())
        if captured:
            self._take = (_Graphs if step.token.device.type == "cuda" else _Recordings)(step).take

    def next(self) -> Tensor:
        """The next token (B,)."""
        self._take()
        return self.step.stepped()


class _Replays:
    """One replay for each reach of a step, and what ran when it was captured: a replay runs no line of Python."""

    def __init__(self, step: StaticStep) -> None:
        self.step = step
        self.replays: dict[int, Callable[[], None]] = {}
        self.attention: set[str] = set()
        self.products: set[str] = set()

    def take(self) -> None:
        """Take the step, by a replay if there is one; the first of each reach are asked for one by one."""
        reach = self.step.reach()
        replay = self.replays.get(reach)
        if replay is not None:
            replay()
        elif self.step.model in _refusals:
            self.step.run(reach)
        else:
            with attention_backends.record_attention() as attended, product_choice.record_products() as multiplied:
                self._capture(reach)
            self.attention |= attended
            self.products |= multiplied
        for recorder in attention_backends.recorders:
            recorder.update(self.attention)
        for recorder in product_choice.recorders:
            recorder.update(self.products)

    def _capture(self, reach: int) -> None:
        """Take a true step, and add to ``replays``, now or at a later one."""
        raise NotImplementedError

    def _refuse(self, reason: str) -> None:
        """This and later decodings of the model go on step by step."""
        _refusals[self.step.model] = reason
        record_decoding("static", reason)


class _Graphs(_Replays):
    """CUDA graphs, in one pool of memory: they never run at the same time."""

    def __init__(self, step: StaticStep) -> None:
        super().__init__(step)
        self.graphs: list[torch.cuda.CUDAGraph] = []
        self.stream: torch.cuda.Stream = torch.cuda.Stream(step.token.device)  # type: ignore[no-untyped-call]

    def _capture(self, reach: int) -> None:
        step, device = self.step, self.step.token.device
        current = torch.cuda.current_stream(device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            step.run(reach)  # a true step, which warms up what is captured; capturing takes none
        current.wait_stream(self.stream)
        try:
            self.replays[reach] = self._captured(lambda: step.run(reach)).replay
        except RuntimeError as error:  # of torch, whatever CUDA refuses
            cause = error.__context__ or error  # what was refused, not that the capture then ended without a graph
            self._refuse(f"its step cannot be captured: {str(cause).splitlines()[0]}")
            self._captured(lambda: step.counters.clone())  # without it generators would believe they are captured still

    def _captured(self, work: Callable[[], object]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        if self.step.generator is not None:
            graph.register_generator_state(self.step.generator)
        pool = self.graphs[0].pool() if self.graphs else None
        with torch.cuda.graph(graph, pool=pool, stream=self.stream):
            work()
        self.graphs.append(graph)
        return graph


class _Recordings(_Replays):
    """Lists of calls. The second step of a reach is recorded: the first one chooses libraries, and builds kernels."""

    def __init__(self, step: StaticStep) -> None:
        super().__init__(step)
        self.warm: set[int] = set()

    def _capture(self, reach: int) -> None:
        step = self.step
        if reach not in self.warm:
            self.warm.add(reach)
            step.run(reach)
            return
        recording = record(lambda: step.run(reach), [*kept_tensors(step.model), *packed_copies(), *step.tensors()])
        if recording.refusal is None:
            self.replays[reach] = recording.replay
        else:
            self._refuse(recording.refusal)


def why_not_captured(model: nn.Module) -> str | None:
    """Why this model's step could not be captured or recorded before, as a clause; None if it could."""
    return _refusals.get(model)


_refusals: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
_idle: weakref.WeakKeyDictionary[nn.Module, dict[tuple[Hashable, ...], Decoder]] = weakref.WeakKeyDictionary()


class Lease:
    """A decoder for one decoding, which no other uses meanwhile; made anew where none is idle.

    Args:
        model: one for which ``why_not_static``, or for recorded steps ``why_not_recorded``, is None.
        prompt: (B, P).
        positions: that the decoding reads.
        context: the model's, which bounds the cache's capacity.
        sampling: how tokens are chosen; with a generator of its own, whose state is taken, and returned at the end.
        captured: whether steps are replayed.
    """

    def __init__(
        self, model: nn.Module, prompt: Tensor, positions: int, context: int, sampling: Sampling, *, captured: bool
    ) -> None:
        B, capacity = prompt.shape[0], min(bucket(positions), context)
        self._model, self._sampling = model, sampling
        places, facts = _places(model), _facts(prompt.device.type)
        self._key = B, capacity, captured, _rule(sampling), facts, places
        idle = _idle.setdefault(model, {})
        for stale in [key for key in idle if key[-1] != places]:
            del idle[stale]  # recordings hold the weights that they read
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
    """What a replay has fixed of how tokens are chosen; a subclass may keep more than is known here."""
    known = sampling.temperature, sampling.top_k, sampling.top_p, sampling.greedy, sampling.eos
    return known, sampling.generator is None, None if type(sampling) is Sampling else id(sampling)


def _places(model: nn.Module) -> Hashable:
    """Where the weights are; and which values they have, if copies of them may be packed."""
    _, packing = product_choice.deciding()
    return tuple(
        (tensor.data_ptr(), tensor.dtype, tensor._version if packing and not tensor.is_inference() else 0)
        for tensor in kept_tensors(model)
    )


def _facts(kind: str) -> Hashable:
    """What else a replay on this kind of device has fixed besides its shapes: how products are computed."""
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    products = torch.get_float32_matmul_precision(), torch.get_num_threads(), product_choice.deciding()
    return attention_backends.ambient, autocast, products
