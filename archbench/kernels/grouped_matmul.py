"""Each group of rows times its own matrix: the experts of a mixture and the tokens routed to them.

No token is dropped or padded (Gale et al. 2022, MegaBlocks, arXiv:2211.15841, section 4). These are PyTorch operators
because the sizes of the groups are known only at run time:

    archbench::grouped_matmul            x, weight, ends             ->  rows of x, each times its group's matrix
    archbench::grouped_matmul_backward   gradient, x, weight, ends   ->  gradients of x and weight

In bfloat16, on GPUs that it has a kernel for, torch's own ``F.grouped_mm`` runs. Elsewhere it is the same loop as the
one here, and cannot be compiled in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from archbench.errors import UsageError
from archbench.kernels.operators import count_flops, no_second_derivative
from archbench.kernels.precision import autocast_dtype


def grouped_matmul(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Each row of x times the matrix of its group; differentiable once.

    Args:
        x: (M, K), the rows of group 0 first, then those of group 1 and so on; float32, bfloat16, float16 or float64.
        weight: (E, N, K), one matrix per group, laid out as in ``nn.Linear``; in x's dtype unless autocast is on.
        ends: (E,) int32, where each group's rows end: a cumulative sum up to M. Groups may be empty. On x's device, or
            where :func:`ends_where_used` puts it.

    Returns:
        (M, N), in x's dtype, or in autocast's if that is on.

    Raises:
        UsageError: shapes or dtypes do not fit together, or (checked only in the loop) ``ends`` is no cumulative sum
            up to M.
    """
    if (dtype := autocast_dtype(x)) is not None:
        x, weight = x.to(dtype), weight.to(dtype)
    _check(x, weight, ends)
    if x.device.type == "meta":  # no values, so no groups: the same products as M rows of one
        return x @ weight[0].mT
    trained = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if x.device.type == "cpu" and not trained and not torch.compiler.is_compiling():
        return _products(x, weight, ends)  # not through the operator, whose first call loads torch's compiler
    product: Tensor = torch.ops.archbench.grouped_matmul(x, weight, ends)
    return product


def reference_grouped_matmul(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """The definition: every row times every matrix, then the product with its own group's is selected."""
    rows = torch.arange(x.shape[0], device=x.device)
    group = (rows[:, None] >= ends).sum(1)  # (M,)
    products = torch.einsum("mk,enk->emn", x, weight)
    return products[group, rows]  # (M, N)


def ends_where_used(ends: Tensor, x: Tensor, *weights: Tensor) -> Tensor:
    """``ends`` (E,) on the device where the products of x with each of ``weights`` read it.

    Where :func:`waits` says so that is the CPU, which then waits for the GPU only here.
    """
    return ends.cpu() if waits(x, *weights) else ends


def waits(x: Tensor, *weights: Tensor) -> bool:
    """Whether the CPU waits for the GPU to know the groups: no kernel there multiplies x by one of ``weights``."""
    dtype = autocast_dtype(x) or x.dtype
    return x.device.type == "cuda" and not all(_has_kernel(weight, dtype) for weight in weights)


@torch.library.custom_op("archbench::grouped_matmul", mutates_args=(), device_types="cpu")
def _forward(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return _products(x, weight, ends)


@torch.library.custom_op("archbench::grouped_matmul_backward", mutates_args=(), device_types="cpu")
def _backward(gradient: Tensor, x: Tensor, weight: Tensor, ends: Tensor, wanted: list[bool]) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight; an unwanted one has no elements."""
    return _gradients(gradient, x, weight, ends, wanted)


@_forward.register_kernel("cuda")
def _forward_on_gpu(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    register_flop_formulas()
    if _has_kernel(weight, x.dtype):
        return _torch_products(x, weight, ends)
    return _products(x, weight, ends)


@_backward.register_kernel("cuda")
def _backward_on_gpu(
    gradient: Tensor, x: Tensor, weight: Tensor, ends: Tensor, wanted: list[bool]
) -> tuple[Tensor, Tensor]:
    if _has_kernel(weight, x.dtype):
        return _torch_gradients(gradient, x, weight, ends, wanted)
    return _gradients(gradient, x, weight, ends, wanted)


@_forward.register_fake
def _forward_shape(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[1]))


@_backward.register_fake
def _backward_shapes(gradient: Tensor, x: Tensor, weight: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return _empty_gradients(x, weight, others[1])


def _save_for_backward(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _propagate(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    wanted = list(ctx.needs_input_grad[:2])
    found = torch.ops.archbench.grouped_matmul_backward(gradient, *ctx.saved_tensors, wanted)
    return (*(tensor if want else None for tensor, want in zip(found, wanted, strict=True)), None)


_forward.register_autograd(_propagate, setup_context=_save_for_backward)
_backward.register_autograd(no_second_derivative("grouped_matmul", "Use reference_grouped_matmul"))


@torch.no_grad()
def _products(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    out = x.new_empty((x.shape[0], weight.shape[1]))
    for group, rows in _spans(ends, x.shape[0]):
        torch.mm(x[rows], weight[group].t(), out=out[rows])
    return out


@torch.no_grad()
def _gradients(gradient: Tensor, x: Tensor, weight: Tensor, ends: Tensor, wanted: list[bool]) -> tuple[Tensor, Tensor]:
    for_x, for_weight = _empty_gradients(x, weight, wanted)
    full = 0  # groups before this one are done
    for group, rows in _spans(ends, x.shape[0]):
        if wanted[0]:
            torch.mm(gradient[rows], weight[group], out=for_x[rows])
        if wanted[1]:
            for_weight[full:group].zero_()
            torch.mm(gradient[rows].t(), x[rows], out=for_weight[group])
            full = group + 1
    for_weight[full:].zero_()
    return for_x, for_weight


def _torch_products(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """By torch's kernel; the CPU does not wait for the GPU."""
    product: Tensor = F.grouped_mm(x.contiguous(), weight.mT, offs=ends.to(x.device))
    return product


def _torch_gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, ends: Tensor, wanted: list[bool]
) -> tuple[Tensor, Tensor]:
    for_x, for_weight = _empty_gradients(x, weight, wanted)
    gradient, ends = gradient.contiguous(), ends.to(x.device)  # the gradient of a sum has strides 0
    if wanted[0]:
        for_x = F.grouped_mm(gradient, weight, offs=ends)
    if wanted[1]:
        for_weight = F.grouped_mm(gradient.t(), x.contiguous(), offs=ends)
        # On some GPUs an empty group's gradient is left uninitialised (pytorch/pytorch#172439).
        empty = torch.diff(ends, prepend=ends.new_zeros(1)) == 0  # (E,)
        for_weight.masked_fill_(empty[:, None, None], 0.0)
    return for_x, for_weight


def _has_kernel(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether ``F.grouped_mm`` has a kernel on this GPU: in bfloat16 on compute capability 9 and 10."""
    _, N, K = weight.shape
    aligned = N % 8 == K % 8 == 0 and weight.is_contiguous()  # to 16 bytes
    if dtype != torch.bfloat16 or not aligned or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_properties(weight.device).major in (9, 10)  # a constant to torch.compile


def _empty_gradients(x: Tensor, weight: Tensor, wanted: list[bool]) -> tuple[Tensor, Tensor]:
    return (
        x.new_empty(x.shape if wanted[0] else (0, 0)),
        weight.new_empty(weight.shape if wanted[1] else (0, 0, 0)),
    )


def _spans(ends: Tensor, M: int) -> Iterator[tuple[int, slice]]:
    """Each non-empty group and its rows; waits for the GPU unless ``ends`` is on the CPU."""
    start = 0
    found = ends.tolist()
    if found[-1] != M or any(end < begin for begin, end in zip([0, *found], found, strict=False)):
        raise UsageError(
            "grouped_matmul", f"ends {found} are not a cumulative sum up to {M} rows", "Pass a cumsum of counts"
        )
    for group, end in enumerate(found):
        if end > start:
            yield group, slice(start, end)
        start = end


def _check(x: Tensor, weight: Tensor, ends: Tensor) -> None:
    fits = x.dim() == 2 and weight.dim() == 3 and x.shape[1] == weight.shape[2] and ends.shape == weight.shape[:1]
    if not fits or ends.dtype != torch.int32 or x.dtype != weight.dtype:
        tensors = {"x": x, "weight": weight, "ends": ends}
        found = ", ".join(f"{name} {(*tensor.shape,)} {tensor.dtype}" for name, tensor in tensors.items())
        remedy = "Pass x (M, K) and weight (E, N, K) in one dtype, and ends (E,) int32"
        raise UsageError("grouped_matmul", f"{found} do not fit together", remedy)


def _forward_flops(x: torch.Size, weight: torch.Size, *others: object, **named: object) -> int:
    return 2 * math.prod(x) * weight[1]


def _backward_flops(
    gradient: torch.Size, x: torch.Size, weight: torch.Size, ends: torch.Size, wanted: list[bool], **named: object
) -> int:
    return 2 * math.prod(x) * weight[1] * sum(wanted)


register_flop_formulas = count_flops(
    (torch.ops.archbench.grouped_matmul, _forward_flops),
    (torch.ops.archbench.grouped_matmul_backward, _backward_flops),
)
"""2 FLOPs per multiply-add, of routed rows only. On the meta device there are plain products instead."""
