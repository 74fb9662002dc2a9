"""Mean cross-entropy straight from hidden states, without holding the (N, V) logits.

Rows are processed in chunks: logits, softmax, loss and immediately the chunk's part of every gradient, so that nothing
of size (rows, V) outlives its chunk and no product is computed twice. The backward pass only scales the gradients from
the forward pass (Liger Kernel's fused linear cross-entropy, Hsu et al. 2024, arXiv:2410.10989, section 3.2). Computing
them in the backward pass would repeat the product of the logits: four products instead of three.

On a GPU one Triton kernel reads a chunk's logits and writes the gradient in their place, instead of 17 operations in
float32; products are summed in float32.

The readable reference is ``F.cross_entropy(F.linear(hidden, weight, bias).float(), targets)``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from archbench.errors import UsageError
from archbench.kernels.float8_head import float8_losses
from archbench.kernels.float8_linear import in_float8
from archbench.kernels.matmul import linear
from archbench.kernels.precision import autocast_dtype, exact_dtype
from archbench.kernels.product_choice import choosable, input_gradient
from archbench.kernels.softmax_errors import piece_rows, slices, softmax_errors
from archbench.kernels.triton_guard import row_kernels_run

CHUNK_BYTES = 3 * 2**24
"""Logits of a chunk on a CPU, 48 MiB: less than half of the float32 gradient of GPT-1's head, which is needed anyway,
and more than the 32 MB from which glibc returns memory immediately. From 256 rows to 2,048 the time is the same within
noise, so less memory is better."""

ACCELERATOR_CHUNK_BYTES = 2**29
"""The same on other devices, 512 MiB. Each chunk reads and writes the float32 gradient of the head once, which on a GPU
of 200 FLOPs per byte costs as much as a product of some 1,000 rows. Calculated, not measured."""

FEWEST_ROWS = 256
"""Least rows of a chunk for any vocabulary: with fewer, slower products outweigh the memory saved."""


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    chunk: int | None = None,
    ignore_index: int = -100,
) -> Tensor:
    """Mean cross-entropy of ``hidden @ weight.T + bias`` against ``targets``, in memory that does not grow with N.

    Args:
        hidden: last hidden states (..., C), float16, bfloat16, float32 or float64; N rows in all.
        weight: the output head (V, C), in hidden's dtype unless autocast is on.
        targets: token ids (...) int64, each in [0, V) or ``ignore_index``.
        bias: (V,), or None.
        chunk: rows per chunk; None for what :data:`CHUNK_BYTES` of logits hold.
        ignore_index: targets of this value are excluded.

    Returns:
        The mean over the targets that count, shape (), nats; NaN if none does, as ``F.cross_entropy``. Softmax,
        logarithm, sums and the result are float32 (float64 for float64). Under autocast the products are in its dtype,
        as ``F.linear``'s would be, and gradients of float32 parameters are not rounded to it. Gradients flow to hidden,
        weight and bias, once: a second derivative is an error.

    Raises:
        UsageError: shapes or dtypes do not fit together, the chunk is empty or, on a CPU, a target is out of range
            (on other devices checking would make the CPU wait; the loss is NaN).
    """
    _check(hidden, weight, targets, bias, chunk)
    C = weight.shape[1]
    tensors = (hidden, weight, bias)
    trained = [torch.is_grad_enabled() and tensor is not None and tensor.requires_grad for tensor in tensors]
    dtype, rows = autocast_dtype(hidden) or hidden.dtype, hidden.reshape(-1, C)
    # Not the operator where a function of autograd does: torch's compiler comes with it, 85 MB and a second or two.
    plain = hidden.device.type == "cpu" and not torch.compiler.is_compiling() and type(rows) in (Tensor, Parameter)
    operation: Any = _Eager.apply if plain else _operator
    float8 = in_float8(hidden, weight)
    loss: Tensor = operation(rows, weight, targets.reshape(-1), bias, dtype, chunk, ignore_index, trained, float8)[0]
    return loss


def loss_and_gradients(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    chunk: int | None,
    ignore_index: int,
    trained: list[bool],
    float8: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss () and 1 / number of targets that count (); gradients of the *sum* by hidden, weight and bias.

    The gradients are of the sum, because those of means over thousands of rows would underflow in float16. An unwanted
    gradient is an empty tensor.
    """
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):  # dtypes are chosen explicitly
        N, V = hidden.shape[0], weight.shape[0]
        for_hidden, for_weight, for_bias = trained
        exact = exact_dtype(dtype)
        d_hidden, d_weight, d_bias = _empty_gradients(hidden, weight, dtype, trained)
        gradients = d_hidden, d_weight, d_bias
        most = _chunk_rows(N, V, dtype, hidden.device) if chunk is None else min(chunk, max(N, 1))
        chunks = slices(N, most)
        if float8:
            if hidden.device.type == "cpu":
                _check_range(targets, targets != ignore_index, V)
            losses = float8_losses(hidden, weight, bias, targets, ignore_index, dtype, chunks, gradients, trained)
            count = (targets != ignore_index).sum()
            return losses.sum() / count, count.clamp(min=1).to(exact).reciprocal(), *gradients
        head = weight.to(dtype)
        head_bias = None if bias is None else bias.to(dtype)
        if row_kernels_run(hidden.device) and dtype != torch.float64 and N > 0:
            return *_by_kernel(hidden, head, head_bias, targets, ignore_index, chunks, gradients, trained), *gradients
        counted = targets != ignore_index  # (N,)
        if hidden.device.type == "cpu":
            _check_range(targets, counted, V)
        targets = targets.where(counted, 0)
        losses = torch.empty(N, dtype=exact, device=hidden.device)
        # Before the logits: what the heap has above them when they are freed leaves a hole that the next do not fit.
        pieces = torch.empty(min(most, piece_rows(V, hidden.device)), V, dtype=exact, device=hidden.device)
        d_bias.zero_()
        if N == 0:
            d_weight.zero_()
        for number, rows in enumerate(chunks):
            states, mask = hidden[rows].to(dtype), counted[rows].to(dtype).unsqueeze(1)  # (R, C), (R, 1)
            logits = linear(states, head, head_bias)  # (R, V)
            losses[rows] = softmax_errors(logits, targets[rows], pieces, any(trained))
            if for_hidden:
                for_rows = input_gradient(logits, head) if choosable(logits, head) else logits @ head
                torch.mul(for_rows, mask, out=d_hidden[rows])
            if for_weight:
                _add_product(d_weight, logits, states * mask, min(number, 1))
            if for_bias:
                _add_product(d_bias.unsqueeze(1), logits, mask, 1)
            del logits  # before the next chunk's are allocated
        count = counted.sum()
        loss = losses.where(counted, 0).sum() / count
        return loss, count.clamp(min=1).to(exact).reciprocal(), d_hidden, d_weight, d_bias


_operator = torch.library.custom_op("archbench::linear_cross_entropy", loss_and_gradients, mutates_args=())


def _by_kernel(
    hidden: Tensor,
    head: Tensor,
    head_bias: Tensor | None,
    targets: Tensor,
    ignore_index: int,
    chunks: Iterator[slice],
    gradients: tuple[Tensor, Tensor, Tensor],
    trained: list[bool],
) -> tuple[Tensor, Tensor]:
    """The loss and 1 / count, with one kernel for all of a chunk's softmax; ``gradients`` are overwritten."""
    from archbench.kernels.fused.row_launches import cross_entropy_launch

    states, (d_hidden, d_weight, d_bias) = hidden.to(head.dtype), gradients
    losses = torch.empty(targets.shape, device=hidden.device)
    for_hidden, for_weight, for_bias = trained
    d_bias.zero_()
    for number, rows in enumerate(chunks):
        logits = _aligned_logits(states[rows], head, head_bias)  # (R, V)
        with torch.cuda.device(logits.device):
            cross_entropy_launch(logits, targets[rows], losses[rows], ignored=ignore_index, trained=any(trained)).run()
        if for_hidden:
            _sum_product(d_hidden[rows], logits, head, 0)
        if for_weight:
            _sum_product(d_weight, logits.t(), states[rows], min(number, 1))
        if for_bias:
            d_bias += logits.sum(0, dtype=d_bias.dtype)
        del logits  # before the next chunk's are allocated
    count = (targets != ignore_index).sum()
    return losses.sum() / count, count.clamp(min=1).to(losses.dtype).reciprocal()


def _aligned_logits(states: Tensor, head: Tensor, bias: Tensor | None) -> Tensor:
    """Logits (R, V) whose rows begin at multiples of 16 bytes: the kernel and products read so many at once."""
    V, unit = head.shape[0], 16 // head.element_size()
    logits = states.new_empty(states.shape[0], -(-V // unit) * unit)[:, :V]
    return torch.mm(states, head.t(), out=logits) if bias is None else torch.addmm(bias, states, head.t(), out=logits)


def _sum_product(total: Tensor, left: Tensor, right: Tensor, beta: int) -> None:
    """total = beta · total + left right, beta 0 or 1, summed in float32 by tensor cores."""
    if total.dtype == left.dtype:
        total.addmm_(left, right, beta=beta)
    elif torch.version.hip is not None:  # its products have one dtype
        if beta == 0:
            total.zero_()  # it may hold NaN
        total.add_(left @ right)
    else:
        torch.addmm(total, left, right, beta=beta, out_dtype=total.dtype, out=total)


def _add_product(total: Tensor, errors: Tensor, states: Tensor, beta: int) -> None:
    """total (V, K) = beta · total + errors (R, V)ᵀ states (R, K), the sum in total's dtype; beta 0 or 1."""
    if total.dtype == errors.dtype:
        total.addmm_(errors.t(), states, beta=beta)
        return
    if beta == 0:
        total.zero_()  # it may hold NaN
    # A sum in half precision would lose a bit every few chunks, and CPUs have no half-precision product with a float32
    # result: parts of the product, small enough for the caches, are rounded once and added. Scaling by a power of two,
    # which is exact, keeps a column of R errors below float16's 65,504.
    scale = 2 ** (states.shape[0].bit_length() // 2)
    states = states / scale
    budget = _chunk_bytes(total.device) // 8
    for part in slices(total.shape[0], max(1, budget // (states.shape[1] * states.element_size()))):
        total[part].add_(errors[:, part].t() @ states, alpha=scale)


@_operator.register_fake
def _shapes(hidden: Tensor, weight: Tensor, *others: Any) -> tuple[Tensor, ...]:
    _, _, dtype, _, _, trained, *_ = others
    scalars = (hidden.new_empty((), dtype=exact_dtype(dtype)) for _ in range(2))
    return (*scalars, *_empty_gradients(hidden, weight, dtype, trained))


def _empty_gradients(
    hidden: Tensor, weight: Tensor, dtype: torch.dtype, trained: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    V, C = weight.shape
    for_hidden, for_weight, for_bias = trained
    exact = exact_dtype(dtype)
    return (
        hidden.new_empty((hidden.shape[0], C) if for_hidden else (0, 0)),
        weight.new_empty((V, C) if for_weight else (0, 0), dtype=exact),
        weight.new_empty((V,) if for_bias else (0,), dtype=exact),
    )


def _keep_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, weight, _, bias, *_ = inputs
    ctx.save_for_backward(*output[1:])
    ctx.dtypes = weight.dtype, None if bias is None else bias.dtype
    ctx.set_materialize_grads(False)  # zeros for the gradients' gradients would be as large as the head


def _scale_gradients(ctx: Any, gradient: Tensor | None, *second: Tensor | None) -> tuple[Tensor | None, ...]:
    if any(tensor is not None for tensor in second):
        raise UsageError(
            "linear_cross_entropy",
            "its gradients cannot be differentiated again",
            "For second derivatives use F.cross_entropy(F.linear(hidden, weight, bias), targets)",
        )
    if gradient is None:
        return (None,) * 9
    inverse_count, d_hidden, d_weight, d_bias = ctx.saved_tensors
    factor = gradient * inverse_count
    for_hidden, for_weight, _, for_bias, *_ = ctx.needs_input_grad
    weight_dtype, bias_dtype = ctx.dtypes
    return (
        _scaled(d_hidden, factor) if for_hidden else None,
        _scaled(d_weight, factor).to(weight_dtype) if for_weight else None,
        None,
        _scaled(d_bias, factor).to(bias_dtype) if for_bias else None,
        *[None] * 5,
    )


def _scaled(total: Tensor, factor: Tensor) -> Tensor:
    """``total`` times ``factor``, in place if it cannot be used again: it may be the largest tensor."""
    once = not torch.is_grad_enabled() and not torch._C._autograd._get_current_graph_task_keep_graph()
    if once and type(total) is Tensor:  # and no compiler traces it
        return total.mul_(factor)
    return total * factor


_operator.register_autograd(_scale_gradients, setup_context=_keep_gradients)


class _Eager(torch.autograd.Function):
    """The operator, outside torch's compiler."""

    forward = staticmethod(loss_and_gradients)
    setup_context = staticmethod(_keep_gradients)
    backward = staticmethod(_scale_gradients)


def _chunk_bytes(device: torch.device) -> int:
    return CHUNK_BYTES if device.type == "cpu" else ACCELERATOR_CHUNK_BYTES


def _chunk_rows(N: int, V: int, dtype: torch.dtype, device: torch.device) -> int:
    most = max(FEWEST_ROWS, _chunk_bytes(device) // (V * dtype.itemsize))
    chunks = max(1, -(-N // most))
    return max(1, -(-N // chunks))  # equal chunks: a small last one would be slow


def _check(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, chunk: int | None) -> None:
    fits = (
        weight.dim() == 2
        and hidden.dim() >= 1
        and hidden.shape[-1] == weight.shape[1]
        and targets.shape == hidden.shape[:-1]
        and (bias is None or bias.shape == weight.shape[:1])
    )
    if not fits:
        shapes = f"hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)}, targets {tuple(targets.shape)}"
        if bias is not None:
            shapes += f", bias {tuple(bias.shape)}"
        raise UsageError(
            "linear_cross_entropy",
            f"the shapes {shapes} do not fit together",
            "Pass hidden (..., C), weight (V, C), targets (...) and bias (V,)",
        )
    alike = hidden.dtype == weight.dtype and (bias is None or bias.dtype == weight.dtype)
    if targets.dtype != torch.int64 or not hidden.is_floating_point() or not (alike or autocast_dtype(hidden)):
        raise UsageError(
            "linear_cross_entropy",
            f"hidden is {hidden.dtype}, weight {weight.dtype} and targets {targets.dtype}",
            "Pass hidden, weight and bias in one floating dtype, or under autocast, and targets as int64",
        )
    if chunk is not None and chunk < 1:
        raise UsageError("chunk", f"{chunk} is not a number of rows", "Pass at least 1, or None")


def _check_range(targets: Tensor, counted: Tensor, V: int) -> None:
    outside = ((targets < 0) | (targets >= V)) & counted
    if bool(outside.any()):
        raise UsageError(
            "linear_cross_entropy",
            f"target {int(targets[outside][0])} is not one of the {V} token ids that weight has rows for",
            "Pass targets in [0, V), or ignore_index",
        )
