"""Exact costs that need no GPU: FLOPs, bytes and operations, on the meta device and a CPU.

As :mod:`archbench.regression.benchmark`, this very file runs beside the archbench of either revision.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from archbench.inference.sampling import Sampling
from archbench.measure.flops import cache_bytes_per_token, count_flops, measured_cache_bytes, on_meta
from archbench.measure.memory import peak_extra_bytes

if TYPE_CHECKING:
    from archbench.regression.benchmark import Subject

TOKENS = 4
"""New tokens of which operations are counted."""


def counts(subject: Subject) -> dict[str, float | None]:
    """Metric -> value; None where it does not exist, as the state of a model that has none."""
    T = subject.config.context_length
    model = subject.build()
    flops = count_flops(on_meta(model), 1, T)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "forward_flops_per_token": flops.forward_per_token,
        "training_flops_per_token": flops.training_per_token,
        "state_bytes_per_token": cache_bytes_per_token(model, 1, T),
        "state_bytes": measured_cache_bytes(model, 1, T),
        "saved_activation_bytes": saved_activation_bytes(subject),
        **step_costs(subject),
        "token_operations": token_operations(subject),
        "decode_bytes": decode_bytes(subject),
        "graph_breaks": graph_breaks(subject.build().train(), subject.tokens(2, T)),
    }


def saved_activation_bytes(subject: Subject, B: int = 2) -> int:
    """Most bytes kept for the backward pass at one time of a training step on tokens (B, T), float32, on a CPU.

    Distinct storages; parameters and buffers, which are there anyway, are left out.
    """
    state, batch = subject.training(B, torch.device("cpu"))
    own = {tensor.untyped_storage()._cdata for tensor in (*state.model.parameters(), *state.model.buffers())}
    saved: dict[int, int] = {}  # storage -> how many saved tensors are in it
    live = most = 0

    class Saved:
        """A tensor that autograd holds, until the graph releases it."""

        def __init__(self, tensor: Tensor) -> None:
            nonlocal live, most
            self.tensor = tensor
            storage = tensor.untyped_storage()
            self.key, self.nbytes = storage._cdata, storage.nbytes()
            if self.key in own:
                return
            if not saved.get(self.key):
                live += self.nbytes
                most = max(most, live)
            saved[self.key] = saved.get(self.key, 0) + 1

        def __del__(self) -> None:
            nonlocal live
            if self.key in own:
                return
            saved[self.key] -= 1
            if not saved[self.key]:
                live -= self.nbytes

    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda kept: kept.tensor):
        subject.architecture.train_step(state, batch)
    return most


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations that reach torch's kernels within its context."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def step_costs(subject: Subject, B: int = 2) -> dict[str, float | None]:
    """Of a second update on tokens (B, T), float32, on a CPU: operations, and most bytes of tensors that it adds."""
    step = partial(subject.architecture.train_step, *subject.training(B, torch.device("cpu")))
    step()  # makes the optimizer's state
    most = peak_extra_bytes(step, torch.device("cpu"))
    with Operations() as operations:  # type: ignore[no-untyped-call]
        step()
    return {"step_bytes": most, "step_operations": operations.count}


def token_operations(subject: Subject) -> float:
    """Operations of a decoded token at batch 1 on a CPU, the sampling included."""
    prompt = subject.tokens(1, max(1, subject.config.context_length // 4))
    tokens = iter(subject.architecture.generate(subject.build().eval(), prompt, TOKENS + 2, Sampling(greedy=True)))
    next(tokens), next(tokens)
    with Operations() as operations:  # type: ignore[no-untyped-call]
        for _ in range(TOKENS):
            next(tokens)
    return float(operations.count / TOKENS)


def decode_bytes(subject: Subject) -> int:
    """Most bytes of tensors that decoding the end of a context adds, the prompt and the cache included; B 1, CPU."""
    prompt = subject.tokens(1, max(1, subject.config.context_length - TOKENS))
    model, generate = subject.build().eval(), subject.architecture.generate
    return peak_extra_bytes(lambda: list(generate(model, prompt, TOKENS, Sampling(greedy=True))), torch.device("cpu"))


def graph_breaks(model: nn.Module, tokens: Tensor) -> int | None:
    """How often ``model(tokens)``, compiled, leaves a graph for Python and returns; None if nothing is traced.

    Graphs are counted as they run, not as they are compiled: one that each layer runs is compiled once, and a break
    within a loop leaves out the loop's whole frame.
    """
    import torch._dynamo as dynamo  # here, for it takes a second to import

    run = 0

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        def count(*arguments: Any) -> Any:
            nonlocal run
            run += 1
            return graph.forward(*arguments)

        return count

    dynamo.reset()
    try:
        compiled = torch.compile(model, backend=backend)
        compiled(tokens)
        run = 0
        compiled(tokens)
    finally:
        dynamo.reset()
    return run - 1 if run else None
