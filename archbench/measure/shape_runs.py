"""Running a model for the shapes alone: on the meta device, or where it does not run there, on tensors that do.

* ``meta``: free, whatever the size. Reading a value fails.
* ``fake``: free, and a CPU to the model. Libraries that read values to find a shortcut leave that out on fake tensors,
  as under a compiler, but not on the meta device: transformers' masks, for one. Reading a value fails.
* ``real``: tensors on the CPU with random values, at the cost of running the model. Last, and up to :data:`LARGEST`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call

from archbench.errors import ArchbenchError, DeviceError
from archbench.kernels.operators import count_flops
from archbench.kernels.triton_guard import without_triton

Kind = Literal["meta", "fake", "real"]
KINDS: tuple[Kind, ...] = get_args(Kind)
R = TypeVar("R")
Run = Callable[[Callable[[Tensor], Tensor], list[Tensor], Tensor], R]
"""Gets the model as a function, its trained parameters, and tokens (B, T)."""

LARGEST = 1 << 28
"""Most parameters of a model that runs on real tensors: 1 GiB, and as much for their gradients."""


def run_for_shapes(
    model: nn.Module, batch_size: int, context_length: int, run: Run[R]
) -> tuple[R, Kind, list[Exception]]:
    """What ``run`` returns on the first kind of tensors that the model runs on, which kind, and what the others raised.

    Args:
        model: built under ``torch.device("meta")``; it is left as it is.
        batch_size: B.
        context_length: T.
        run: called for each kind until it raises nothing.

    Raises:
        DeviceError: the model is not on the meta device, or runs on no kind; caused by the error on meta.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device.type != "meta":
            cause = f"{name} is on {tensor.device}, although FLOPs are counted on the meta device"
            step = "Create parameters and buffers without naming a device, under torch.device('meta')"
            raise DeviceError(type(model).__name__, cause, step)
    kinds = KINDS if sum(parameter.numel() for parameter in model.parameters()) <= LARGEST else KINDS[:-1]
    failed: list[Exception] = []
    for kind in kinds:
        try:
            with _tensors(model, kind) as (call, trained):
                return run(call, trained, torch.zeros(batch_size, context_length, dtype=torch.int64)), kind, failed
        except ArchbenchError:
            raise
        except Exception as error:  # noqa: BLE001  the next kind may do, and at the end all are reported
            failed.append(error)
    causes = "; ".join(
        f"on {kind} tensors: {' '.join(str(error).split())[:160]}" for kind, error in zip(kinds, failed, strict=True)
    )
    raise DeviceError(
        type(model).__name__,
        f"its FLOPs cannot be counted on the meta device, nor otherwise ({causes})",
        "Make forward independent of the tokens' values, and use only what has a meta kernel. Somebody else's library "
        "may have an option for that, such as attn_implementation='eager' in transformers",
    ) from failed[0]


@contextmanager
def _tensors(model: nn.Module, kind: Kind) -> Iterator[tuple[Callable[[Tensor], Any], list[Tensor]]]:
    """The model as a function of tokens, and its trained parameters; new tensors are of this kind too."""
    if kind == "meta":
        with torch.device("meta"):
            yield model, [parameter for parameter in model.parameters() if parameter.requires_grad]
        return
    register_flop_formulas()
    with without_triton():
        from torch._subclasses.fake_tensor import FakeTensorMode

    log = logging.getLogger("torch._subclasses.fake_tensor")
    disabled, log.disabled = log.disabled, True  # it would print what is raised
    draw = torch.Generator().manual_seed(0)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) if kind == "fake" else torch.device("cpu"):
            originals = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
            others = {key: _like(tensor, None if kind == "fake" else draw) for key, tensor in originals.items()}
            named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
            weights = {name: others[id(tensor)] for name, tensor in named}
            yield (
                lambda tokens: functional_call(model, weights, (tokens,), tie_weights=False),
                [other for other in others.values() if other.requires_grad],
            )
    finally:
        log.disabled = disabled


def _like(tensor: Tensor, draw: torch.Generator | None) -> Tensor:
    """A tensor of that shape and dtype: small random numbers if they can be drawn, else zeros."""
    other = torch.zeros(tensor.shape, dtype=tensor.dtype)
    if draw is not None and other.is_floating_point():
        other.normal_(std=0.02, generator=draw)
    return other.requires_grad_(tensor.requires_grad)


def _attention_flops(q: torch.Size, k: torch.Size, v: torch.Size, *others: object, **named: object) -> int:
    return 2 * math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])  # 2 B H T S (D + D)


def _attention_backward_flops(
    gradient: torch.Size, q: torch.Size, k: torch.Size, v: torch.Size, *others: object, **named: object
) -> int:
    return 2 * _attention_flops(q, k, v)


def _grouped_flops(a: torch.Size, b: torch.Size, *others: object, **named: object) -> int:
    rows = a[-2:] if len(a) > len(b) else a  # each group of b's columns has its own (M, K) of a
    return 2 * math.prod(rows) * b[-1]


register_flop_formulas = count_flops(
    (torch.ops.aten._scaled_dot_product_flash_attention_for_cpu, _attention_flops),
    (torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward, _attention_backward_flops),
    (torch.ops.aten._grouped_mm, _grouped_flops),
)
"""What torch has no formulas for and runs on a CPU; backward is twice forward, because recomputation is not counted."""
