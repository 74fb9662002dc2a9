"""Fused causal attention as PyTorch operators, for autograd, torch.compile, export, autocast and FLOP counting.

    archbench::causal_attention_forward   q, k, v                           ->  out, lse
    archbench::causal_attention_backward  gradient of out, q, k, v, out, lse  ->  gradients of q, k, v

lse (B, H, T) is log2 of the sum over visible keys of 2^(scale · log2(e) · q·k), from which backward recomputes the
weights (Dao 2023, FlashAttention-2, arXiv:2307.08691, section 3.1). On a GPU both are Triton kernels
(:mod:`archbench.kernels.fused`). On a CPU they are the same algebra in matrix products, for tests of the code around
the kernels; :func:`archbench.kernels.causal_attention` never picks it.

These are custom operators because ``torch.library.triton_op`` can be neither checked nor compiled without a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from archbench.errors import UsageError
from archbench.kernels.attention_torch import visible
from archbench.kernels.dropout_bits import dropped_levels, kept_scale, kernel_seed, reference_keep, seed_argument
from archbench.kernels.operators import count_flops, no_second_derivative
from archbench.kernels.precision import exact, exact_dtype

LOG2_E = math.log2(math.e)


def fused_attention(
    q: Tensor, k: Tensor, v: Tensor, *, window: int | None, scale: float, precision: str, dropout: float = 0.0
) -> Tensor:
    """Causal attention by the fused kernel; differentiable once.

    Args:
        q: queries (B, H, T, D), any strides, float32, float16 or bfloat16; on a CPU also float64.
        k: keys (B, G, S, D), in q's dtype.
        v: values (B, G, S, D), in q's dtype.
        window: positions that each position sees, itself included; None for all.
        scale: factor of the scores.
        precision: of float32 products on a GPU, ``ieee``, ``tf32x3`` or ``tf32``.
        dropout: probability of dropping a weight, rounded to a multiple of 1/65,536. The mask is a function of a seed
            from the CPU's default generator: it is in no memory, and the backward pass makes it again.

    Returns:
        (B, H, T, D), in q's dtype and order of strides: its transpose to (B, T, H, D) is free if q's was.

    Raises:
        UsageError: q, k and v differ in dtype or device, or a second derivative is computed.
    """
    if scale <= 0:  # the kernel's running maximum is of unscaled scores
        q, scale = (-q, -scale) if scale < 0 else (q * 0, 1.0)
    dropped = dropped_levels(dropout)
    others = window, float(scale), precision, kernel_seed() if dropped else None, dropped
    if q.is_cuda and not torch.compiler.is_compiling() and _is_plain(q, k, v):
        if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
            differentiable: Tensor = _DirectAttention.apply(q, k, v, *others)  # type: ignore[no-untyped-call]
            return differentiable
        direct: Tensor = _forward_on_gpu(q, k, v, *others)[0]
        return direct
    out: Tensor = torch.ops.archbench.causal_attention_forward(q, k, v, *others)[0]
    return out


def _is_plain(*tensors: Tensor) -> bool:
    """Whether nothing stands between the call and the kernel that only the operators serve: a dispatch or function
    mode, a transform, a subclass, or autocast to another dtype."""
    return (
        torch._C._len_torch_dispatch_stack() == 0
        and torch._C._len_torch_function_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and all(type(x) in (Tensor, torch.nn.Parameter) for x in tensors)
        and (not torch.is_autocast_enabled("cuda") or all(x.dtype == torch.get_autocast_dtype("cuda") for x in tensors))
    )


class _DirectAttention(torch.autograd.Function):
    """The same without the operators, whose Python layers take more of the host's time than the launch."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, *others: Any) -> Tensor:
        out: Tensor
        out, lse = _forward_on_gpu(q, k, v, *others)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.others = others
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        # With a graph of the gradients, by the operator, which refuses a second derivative.
        plain = not torch.is_grad_enabled() and _is_plain(grad_out)
        backward = _backward_on_gpu if plain else torch.ops.archbench.causal_attention_backward
        return (*backward(grad_out, *ctx.saved_tensors, *ctx.others), *[None] * len(ctx.others))


@torch.library.custom_op("archbench::causal_attention_forward", mutates_args=(), device_types="cpu")
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None,
    scale: float,
    precision: str,
    seed: Tensor | None = None,
    dropped: int = 0,
) -> tuple[Tensor, Tensor]:
    """Closed form, in float32 (float64 for float64)."""
    q, k, v = _prepared(q, k, v)
    scores = _scores(q, k, window, scale)  # (B, G, H/G, T, S)
    highest = scores.amax(-1, keepdim=True)
    weights = scores.sub_(highest).exp2_()
    total = weights.sum(-1, keepdim=True)
    weights = weights / total if seed is None else weights / total * _mask(scores, seed, dropped)
    mixed = weights.flatten(2, 3) @ exact(v)  # (B, G, H/G T, D)
    lse = (highest + total.log2()).view(q.shape[:3])
    return torch.empty_like(q).copy_(mixed.view(q.shape)), lse


@torch.library.custom_op("archbench::causal_attention_backward", mutates_args=(), device_types="cpu")
def _backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    window: int | None,
    scale: float,
    precision: str,
    seed: Tensor | None = None,
    dropped: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Closed form, in float32 (float64 for float64). P = 2^(scores - lse), dS = P ⊙ (M ⊙ dO Vᵀ - rowsum(dO ⊙ O))."""
    q, k, v = _prepared(q, k, v)
    B, H, T, D = q.shape
    G, S = k.shape[1:3]
    grouped = (B, G, H // G * T, D)
    wide_q, wide_k, wide_v = exact(q).reshape(grouped), exact(k), exact(v)
    wide_grad = exact(grad_out).reshape(grouped)
    weights = (_scores(q, k, window, scale) - lse.view(B, G, H // G, T, 1)).exp2_().view(B, G, -1, S)
    delta = (wide_grad * exact(out).reshape(grouped)).sum(-1, keepdim=True)  # (B, G, H/G T, 1)
    grad_weights = wide_grad @ wide_v.mT  # (B, G, H/G T, S)
    dropped_weights = weights
    if seed is not None:
        mask = _mask(weights.view(B, G, H // G, T, S), seed, dropped).flatten(2, 3)
        grad_weights, dropped_weights = grad_weights.mul_(mask), weights * mask
    grad_scores = grad_weights.sub_(delta).mul_(weights).mul_(scale)
    grad_q = torch.empty_like(q).copy_((grad_scores @ wide_k).view(q.shape))
    grad_k = torch.empty_like(k).copy_(grad_scores.mT @ wide_q)
    grad_v = torch.empty_like(v).copy_(dropped_weights.mT @ wide_grad)
    return grad_q, grad_k, grad_v


@_forward.register_kernel("cuda")
def _forward_on_gpu(q: Tensor, k: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    from archbench.kernels.fused.launches import fused_forward

    register_flop_formulas()
    q, k, v = _prepared(q, k, v)
    return fused_forward(q, k, v, **_named(*others))


@_backward.register_kernel("cuda")
def _backward_on_gpu(grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    from archbench.kernels.fused.launches import fused_backward

    out, lse, *rest = others
    q, k, v = _prepared(q, k, v)
    grad_out = _unit_last_stride(grad_out)  # the gradient of a sum has strides 0
    return fused_backward(grad_out, q, k, v, out, lse, **_named(*rest))


def _named(
    window: int | None, scale: float, precision: str, seed: Tensor | None = None, dropped: int = 0
) -> dict[str, Any]:
    number = seed_argument(seed)  # on the CPU: nothing waits
    return {"window": window, "scale": scale, "precision": precision, "seed": number, "dropped": dropped}


@_forward.register_fake
def _forward_shapes(q: Tensor, k: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    q, k, v = _prepared(q, k, v)
    return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=exact_dtype(q.dtype))


@_backward.register_fake
def _backward_shapes(grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = _prepared(q, k, v)
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.window, ctx.scale, ctx.precision, seed, ctx.dropped = inputs
    out, lse = output
    ctx.save_for_backward(q, k, v, out, lse, seed)
    ctx.mark_non_differentiable(lse)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return (None,) * 8
    backward = torch.ops.archbench.causal_attention_backward
    *tensors, seed = ctx.saved_tensors
    given = (*tensors, ctx.window, ctx.scale, ctx.precision, seed, ctx.dropped)
    return (*backward(grad_out, *given), *[None] * 5)


_forward.register_autograd(_gradients, setup_context=_save_for_backward)
_backward.register_autograd(no_second_derivative("fused attention", "Use backend='reference'"))


def _autocast(device_type: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """Autocast: q, k and v are cast to the current autocast dtype, as for torch's own attention.

    ``torch.library.register_autocast`` would fix one dtype for good.
    """

    def cast(q: Tensor, k: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        dtype = torch.get_autocast_dtype(device_type)
        q, k, v = (x if x.dtype == torch.float64 else x.to(dtype) for x in (q, k, v))
        with torch.autocast(device_type, enabled=False):
            outputs: tuple[Tensor, Tensor] = torch.ops.archbench.causal_attention_forward(q, k, v, *others)
        return outputs

    return cast


# The registrations last as long as this object.
_library: Any = torch.library.Library("archbench", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.impl("causal_attention_forward", _autocast("cpu"), "AutocastCPU")
_library.impl("causal_attention_forward", _autocast("cuda"), "AutocastCUDA")


def _prepared(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if not q.dtype == k.dtype == v.dtype or not q.device == k.device == v.device:
        found = ", ".join(f"{name} {x.dtype} on {x.device}" for name, x in (("q", q), ("k", k), ("v", v)))
        raise UsageError(
            "fused attention", f"dtypes or devices differ: {found}", "Pass all three in one dtype, on one device"
        )
    return _unit_last_stride(q), _unit_last_stride(k), _unit_last_stride(v)


def _unit_last_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _scores(q: Tensor, k: Tensor, window: int | None, scale: float) -> Tensor:
    """(B, G, H/G, T, S): scores in base 2, minus infinity where hidden."""
    B, H, T, D = q.shape
    G, S = k.shape[1:3]
    grouped = exact(q).reshape(B, G, H // G * T, D)
    scores = (grouped @ exact(k).mT).mul_(scale * LOG2_E).view(B, G, H // G, T, S)
    return scores.masked_fill_(~visible(T, S, window, q.device), -math.inf)


def _mask(scores: Tensor, seed: Tensor, dropped: int) -> Tensor:
    """What dropout multiplies weights with, of the shape of ``scores`` (B, G, H/G, T, S), in their dtype."""
    B, G, group, T, S = scores.shape
    kept = reference_keep(int(seed), B * G * group, S, S, dropped, scores.device)[:, S - T :]
    return kept.reshape(scores.shape).to(scores.dtype) * kept_scale(dropped)


def _forward_flops(q: torch.Size, k: torch.Size, *others: object, **named: object) -> int:
    return 4 * math.prod(q) * k[2]  # 4 B H T D S


def _backward_flops(grad_out: torch.Size, q: torch.Size, k: torch.Size, *others: object, **named: object) -> int:
    return 8 * math.prod(q) * k[2]


register_flop_formulas = count_flops(
    (torch.ops.archbench.causal_attention_forward, _forward_flops),
    (torch.ops.archbench.causal_attention_backward, _backward_flops),
)
"""Convention of :mod:`archbench.measure.flops`: 2 FLOPs per multiply-add, the full T × S square; backward is twice
forward, because recomputation is not counted."""
