"""FLOPs, layers and cache bytes of a model, counted on the meta device at no cost in memory or time.

Convention: model FLOPs. Matrix products count, 2 FLOPs a multiply–add; norms, activations, softmax, embedding
look-ups and the optimizer do not. Attention counts over the full T × T square, although the causal half would do.
Backward is what autograd does: two products for each of forward. So for a dense decoder training costs about
6 N + 12 L C T FLOPs a token (N: parameters in matrices, head included): Chowdhery et al. 2022 (PaLM),
appendix B; Kaplan et al. 2020, section 2.1.

Elsewhere fused attention may hide its products from the counter; on the meta device
``archbench.kernels.causal_attention`` and torch's own attention are plain matrix products. A model that does not run
there is counted on other tensors (:mod:`archbench.measure.shape_runs`), to the same result.

A model declares what torch cannot count (a scan, a Fourier transform, a kernel of its own) as an
:class:`archbench.protocols.UncountedModel`; this is added once for forward, three times for training.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from archbench.errors import UsageError
from archbench.inference.modes import module_mode
from archbench.kernels.triton_guard import flop_counter
from archbench.measure.shape_runs import Kind, run_for_shapes
from archbench.measure.uncounted_operators import UncountedOperators
from archbench.protocols import CachedModel, UncountedModel

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class FlopCount:
    """Model FLOPs a token, at one context length.

    Attributes:
        forward_per_token: of a forward pass.
        training_per_token: of a forward and backward pass.
        counted_on: the tensors that it was counted on.
        uncounted: operators of the forward pass (:mod:`archbench.measure.uncounted_operators`), as in ``aten::cumsum``.
        uncounted_backward: those of the backward pass after it.
    """

    forward_per_token: float
    training_per_token: float
    counted_on: Kind
    uncounted: tuple[str, ...] = ()
    uncounted_backward: tuple[str, ...] = ()


@dataclass(frozen=True)
class LayerRow:
    """One module of a model. Parameters and FLOPs are the module's own, so each column adds up to the model's total.

    Attributes:
        path: name within the model, as in ``blocks.0.attention``; "" for the model itself.
        type: class name.
        parameters: numbers in the module's own parameters; a tied one counts where it comes first.
        forward_flops: of the matrix products in the module but in none of its children; what the model declares
            uncounted is the model's own.
        output_shape: of the first tensor that it returned; None if it was never called.
    """

    path: str
    type: str
    parameters: int
    forward_flops: int
    output_shape: tuple[int, ...] | None


def count_flops(model: nn.Module, batch_size: int, context_length: int) -> FlopCount:
    """Model FLOPs a token of ``model`` on tokens (B, T).

    Args:
        model: built under ``torch.device("meta")``; tokens (B, T) int64 -> logits (B, T, V).
        batch_size: B; FLOPs a token depend on it only in unusual models.
        context_length: T.

    Raises:
        DeviceError: the model is not on the meta device, or does something that cannot be done without values.
        UsageError: what it declares uncounted is no mapping of names to FLOPs.
    """

    def count(
        call: Callable[[Tensor], Tensor], trained: list[Tensor], tokens: Tensor
    ) -> tuple[int, int, list[str], list[str]]:
        with module_mode(model, training=False), torch.no_grad(), _counter() as evaluated:
            call(tokens)
        with module_mode(model, training=True), torch.enable_grad():
            with UncountedOperators() as passed, _counter() as forward:
                total = call(tokens).sum()
            with UncountedOperators() as back, _counter() as backward:
                torch.autograd.grad(total, trained, allow_unused=True)
        training = forward.get_total_flops() + backward.get_total_flops()
        return evaluated.get_total_flops(), training, passed.names, back.names

    (forward, training, *names), kind, _ = run_for_shapes(model, batch_size, context_length, count)
    n = batch_size * context_length
    declared = sum(declared_uncounted(model, batch_size, context_length).values())
    return FlopCount((forward + declared) / n, (training + 3 * declared) / n, kind, *map(tuple, names))


def declared_uncounted(model: nn.Module, batch_size: int, context_length: int) -> Mapping[str, float]:
    """What the model declares its uncounted operators to cost, FLOPs of a forward pass on tokens (B, T); {} if nothing.

    Raises:
        UsageError: it is no mapping of names to FLOPs.
    """
    if not isinstance(model, UncountedModel):
        return {}
    declared: object = model.uncounted_flops(batch_size, context_length)
    if not isinstance(declared, Mapping) or not all(
        isinstance(name, str) and isinstance(flops, int | float) and 0 <= flops < math.inf
        for name, flops in declared.items()
    ):
        raise UsageError(
            f"{type(model).__name__}.uncounted_flops",
            f"it returned {declared!r}",
            "Return FLOPs by operator, as in {'aten::cumsum': 0.0}",
        )
    return declared


def layer_table(model: nn.Module, batch_size: int = 1, context_length: int | None = None) -> list[LayerRow]:
    """Every module of ``model``, in the order of ``named_modules``, after one forward pass on tokens (B, T).

    Args:
        model: built under ``torch.device("meta")``.
        batch_size: B.
        context_length: T; None for ``model.config.context_length``.

    Raises:
        DeviceError: as in :func:`count_flops`.
    """
    length = int(model.config.context_length) if context_length is None else context_length  # type: ignore[union-attr, arg-type]
    own: dict[nn.Module, int] = {}
    shapes: dict[nn.Module, tuple[int, ...]] = {}

    def run(call: Callable[[Tensor], Tensor], trained: list[Tensor], tokens: Tensor) -> None:
        own.update(dict.fromkeys(model.modules(), 0))
        mode = module_mode(model, training=False)
        with mode, torch.no_grad(), _counter() as counter, _own_flops(model, counter, own, shapes):
            call(tokens)

    run_for_shapes(model, batch_size, length, run)
    own[model] += round(sum(declared_uncounted(model, batch_size, length).values()))
    rows = []
    seen: set[nn.Parameter] = set()
    for path, module in model.named_modules():
        parameters = [p for p in module.parameters(recurse=False) if p not in seen]
        seen.update(parameters)
        size = sum(parameter.numel() for parameter in parameters)
        rows.append(LayerRow(path, type(module).__name__, size, own[module], shapes.get(module)))
    return rows


@contextmanager
def _own_flops(
    model: nn.Module, counter: FlopCounterMode, own: dict[nn.Module, int], shapes: dict[nn.Module, tuple[int, ...]]
) -> Iterator[None]:
    """Charge FLOPs to the innermost module that is running, and note output shapes."""
    running: list[nn.Module] = []
    counted = 0

    def charge() -> None:
        nonlocal counted
        total = counter.get_total_flops()
        if running:
            own[running[-1]] += total - counted
        counted = total

    def enter(module: nn.Module, args: object) -> None:
        charge()
        running.append(module)

    def leave(module: nn.Module, args: object, output: object) -> None:
        charge()
        running.pop()
        first = output[0] if isinstance(output, tuple | list) and output else output
        if isinstance(first, Tensor):
            shapes[module] = tuple(first.shape)

    handles: list[RemovableHandle] = []
    for module in model.modules():
        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def cache_bytes(model: nn.Module, batch_size: int, capacity: int) -> int | None:
    """Bytes of the decoding cache of ``batch_size`` sequences of up to ``capacity`` positions, computed from shapes.

    Args:
        model: on any device; the meta device costs nothing.

    Returns:
        Bytes; None if the model decodes without a cache.
    """
    if not isinstance(model, CachedModel):
        return None
    return sum(tensor.numel() * tensor.element_size() for tensor in model.new_cache(batch_size, capacity).tensors())


def cache_bytes_per_token(model: nn.Module, batch_size: int, capacity: int) -> float | None:
    """Growth of the cache, bytes per sequence and position: the slope between half of ``capacity`` and all of it.

    A recurrent state of fixed size has slope 0; its size is in :func:`cache_bytes`.
    """
    return _slope(cache_bytes, model, batch_size, capacity)


def measured_cache_bytes(model: nn.Module, batch_size: int, capacity: int) -> int | None:
    """Bytes allocated for the decoding cache on the model's device; None if the model has no cache.

    CUDA: growth of ``memory_allocated``. CPU: the distinct storages behind the cache's tensors, so that a view counts
    as much as what it is a view of.
    """
    if not isinstance(model, CachedModel):
        return None
    device = next(model.parameters()).device
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    cache = model.new_cache(batch_size, capacity)
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) - before
    return storage_bytes(cache.tensors())


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages behind ``tensors``: a view counts as much as what it is a view of."""
    storages = {storage.data_ptr(): storage for storage in (tensor.untyped_storage() for tensor in tensors)}
    return sum(storage.nbytes() for storage in storages.values())


def measured_cache_bytes_per_token(model: nn.Module, batch_size: int, capacity: int) -> float | None:
    """As :func:`cache_bytes_per_token`, of allocated bytes; a GPU's allocator rounds up to 512 bytes."""
    return _slope(measured_cache_bytes, model, batch_size, capacity)


def _slope(
    measure: Callable[[nn.Module, int, int], int | None], model: nn.Module, batch_size: int, capacity: int
) -> float | None:
    half = max(capacity // 2, 1)
    if half == capacity:
        return None
    large, small = measure(model, batch_size, capacity), measure(model, batch_size, half)
    return None if large is None or small is None else (large - small) / (capacity - half) / batch_size


def on_meta(model: nn.Module) -> nn.Module:
    """A copy of ``model`` whose tensors have shapes but no values, for counting; tied weights stay tied."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): _described(tensor) for tensor in tensors})


def _described(tensor: Tensor) -> Tensor:
    empty = tensor.detach().to("meta")
    return nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _counter() -> FlopCounterMode:
    counter: FlopCounterMode = flop_counter().FlopCounterMode(display=False)
    return counter
