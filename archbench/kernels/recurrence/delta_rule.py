"""The gated delta rule (Yang, Kautz & Hatamizadeh 2024, arXiv:2412.06464): in chunks, for one position, step by step.

Each head keeps a matrix S (D, M), a table from keys to values. Position t decays all of it, replaces a share β_t of the
value stored under the key k_t by v_t, and reads with the query q_t (section 3.1, where S is transposed):

    S_t = exp(g_t) (I - β_t k_t k_tᵀ) S_{t-1} + β_t k_t v_tᵀ,    o_t = S_tᵀ q_t.

A chunk of C positions that begins with S adds C decaying products k_i u_iᵀ to it. Each depends on the previous ones in
the chunk (section 3.3; c is the cumulative sum of g from the chunk's start, γ_ij = exp(c_i - c_j)):

    u_i = β_i v_i - β_i exp(c_i) Sᵀ k_i - β_i Σ_{j<i} γ_ij (k_i · k_j) u_j,    or U = (I - N)⁻¹ (β V + K̃ S)

with N_ij = -β_i γ_ij k_i · k_j below the diagonal and K̃_i = -β_i exp(c_i) k_i: matrix products, at a cost linear in T.

torch.compile sees one operator each way, archbench::gated_delta_chunks and archbench::gated_delta_chunks_backward:
otherwise it unrolls the loop over chunks, which takes minutes for long texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from archbench.errors import UsageError
from archbench.kernels.precision import exact_dtype, without_autocast

CHUNK = 32
"""C, positions per chunk, a power of two: per head, masks cost T · C and states T / C · D · M."""

_SMALLEST_BLOCK = 8


def gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor | None = None, *, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """The recurrence over T positions, in chunks; differentiable once.

    Args:
        q, k: (B, T, H, D); keys need norm one, or the table can grow without bound.
        v: (B, T, H, M).
        g: (B, T, H), log decays: finite, not positive.
        beta: (B, T, H), from 0 (writes nothing) to 1 (replaces).
        state: (B, H, D, M), S before the first position; None for zeros.
        chunk: C, a power of two.

    Returns:
        o (B, T, H, M) in v's dtype, and S after the last position. Everything is computed in float32 (float64 if v is),
        under autocast too; sums of g in float64, because differences of them are used.

    Raises:
        UsageError: ``chunk`` is not a power of two.
    """
    if chunk < 1 or chunk & (chunk - 1):
        raise UsageError("chunk", f"{chunk} is not a power of two", "Choose 16, 32 or 64")
    B, T, H, D = q.shape
    M = v.shape[-1]
    exact, dtype = exact_dtype(v.dtype), v.dtype
    C = min(chunk, 1 << (T - 1).bit_length())
    n = -(-T // C)
    if state is None:
        state = torch.zeros(B, H, D, M, dtype=exact, device=v.device)
    inputs = [_in_chunks(tensor.to(exact), n, C) for tensor in (q, k, v, g.unsqueeze(-1), beta.unsqueeze(-1))]
    with without_autocast(v):
        if torch.compiler.is_compiling():
            o, state = torch.ops.archbench.gated_delta_chunks(*inputs, state.to(exact).flatten(0, 1))[:2]
        else:  # an operator's first call would load torch's compiler
            o, state = _Chunks.apply(*inputs, state.to(exact).flatten(0, 1))  # type: ignore[no-untyped-call]
    o = o.view(n, B, H, C, M).permute(1, 0, 3, 2, 4).reshape(B, n * C, H, M)
    return o[:, :T].to(dtype), state.view(B, H, D, M)


def gated_delta_step(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> Tensor:
    """One position of :func:`gated_delta_rule`, for decoding.

    Args:
        q, k: (B, H, D).
        v: (B, H, M).
        g, beta: (B, H).
        state: (B, H, D, M), overwritten with S after this position.

    Returns:
        o (B, H, M) in v's dtype.
    """
    q, k, values, beta = (tensor.to(state.dtype) for tensor in (q, k, v, beta))
    with without_autocast(v):
        state.mul_(g.to(state.dtype).exp()[..., None, None])
        held = k.unsqueeze(-2) @ state  # (B, H, 1, M)
        written = (values.unsqueeze(-2) - held) * beta[..., None, None]
        state.addcmul_(k.unsqueeze(-1), written)
        return (q.unsqueeze(-2) @ state).squeeze(-2).to(v.dtype)


def reference_gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The definition, a position at a time; see :func:`gated_delta_rule`."""
    B, T, H, D = q.shape
    exact, dtype = exact_dtype(v.dtype), v.dtype
    q, k, v, g, beta = (tensor.to(exact) for tensor in (q, k, v, g, beta))
    S = v.new_zeros(B, H, D, v.shape[-1]) if state is None else state.to(exact)
    outputs = []
    for t in range(T):
        S = S * g[:, t].exp()[..., None, None]
        held = (S * k[:, t, :, :, None]).sum(-2)  # (B, H, M)
        written = beta[:, t, :, None] * (v[:, t] - held)
        S = S + k[:, t, :, :, None] * written[:, :, None]
        outputs.append((S * q[:, t, :, :, None]).sum(-2))
    return torch.stack(outputs, dim=1).to(dtype), S


def _in_chunks(tensor: Tensor, n: int, C: int) -> Tensor:
    """(B, T, H, D) -> (n, B·H, C, D), padded with positions that write and forget nothing."""
    if missing := n * C - tensor.shape[1]:
        tensor = F.pad(tensor, (0, 0, 0, 0, 0, missing))
    B, _, H, D = tensor.shape
    return tensor.reshape(B, n, C, H, D).permute(1, 0, 3, 2, 4).flatten(1, 2).contiguous()


def _product(a: Tensor, b: Tensor) -> Tensor:
    """(n, B·H, I, K) × (n, B·H, K, J) -> (n, B·H, I, J); unlike ``@`` it copies no operand, strided or not."""
    return torch.bmm(a.flatten(0, 1), b.flatten(0, 1)).view(*a.shape[:3], -1)


def _add_product(to: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """to + :func:`_product` of a and b."""
    return torch.baddbmm(to.flatten(0, 1), a.flatten(0, 1), b.flatten(0, 1)).view(to.shape)


def _add_product_(to: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a product (B·H, I, K) × (B·H, K, J) in place; the FLOPs of ``baddbmm_`` are not counted."""
    torch.baddbmm(to, a, b, out=to)


class _Chunks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        o, final, *kept = _forward(q, k, v, g, beta, state)
        ctx.save_for_backward(k, v, g, beta, *kept)
        return o, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, for_o: Tensor, for_final: Tensor) -> tuple[Tensor, ...]:
        return _backward(for_o, for_final, *ctx.saved_tensors)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """q and k (n, B·H, C, D), v (n, B·H, C, M), g and beta (n, B·H, C, 1), state (B·H, D, M), all contiguous.

    Keys and queries multiply the same matrices (the state, the chunk's keys), so they are stacked as kq = [-β k, q].

    Returns:
        o (n, B·H, C, M), the last state, and the tensors that the gradients need.
    """
    n, heads, C, D = q.shape
    kq = torch.cat([k * -beta, q], dim=2)  # (n, B·H, 2C, D)
    c = g.double().cumsum(2)
    decays = (c - c.mT).to(v.dtype).exp_().tril_()  # γ (n, B·H, C, C)
    inverse = _inverse(_product(kq[:, :, :C], k.mT).mul_(decays))  # (n, B·H, C, C); N's diagonal is ignored
    scores = _product(q, k.mT).mul_(decays)

    since_start, until_end = c.exp().to(v.dtype), (c[:, :, -1:] - c).exp().to(v.dtype)  # (n, B·H, C, 1)
    reading, writing, keep = _scaled(kq, since_start), k * until_end, since_start[:, :, -1:]
    states = v.new_empty(n + 1, heads, D, v.shape[-1])
    states[0] = state
    reads, written, values = v.new_empty(n, heads, 2 * C, v.shape[-1]), torch.empty_like(v), v * beta
    for i in range(n):
        torch.bmm(reading[i], states[i], out=reads[i])
        torch.bmm(inverse[i], values[i].add_(reads[i, :, :C]), out=written[i])
        torch.mul(states[i], keep[i], out=states[i + 1])
        _add_product_(states[i + 1], writing[i].mT, written[i])
    o = _add_product(reads[:, :, C:], scores, written)
    return o, states[n].clone(), kq, decays, inverse, scores, states, written


def _backward(
    for_o: Tensor,
    for_final: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    kq: Tensor,
    decays: Tensor,
    inverse: Tensor,
    scores: Tensor,
    states: Tensor,
    written: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of :func:`_forward`'s arguments.

    Written out because autograd would differentiate the inverse and every mask of C × C. With Y = (I - N)⁻ᵀ dL/dU, the
    gradient of β V + K̃ S is Y and that of N is Y Uᵀ. Since exp(c_i) multiplies what row i reads and divides what it
    writes, the gradient of c_i is q_i · dL/dq_i, and likewise for k, and at the chunk's end S · dL/dS.
    """
    n, heads, C, _ = k.shape
    c = g.double().cumsum(2)
    since_start, until_end = c.exp().to(v.dtype), (c[:, :, -1:] - c).exp().to(v.dtype)  # (n, B·H, C, 1)
    reading, writing, keep = _scaled(kq, since_start), k * until_end, since_start[:, :, -1:]
    for_reads = v.new_empty(n, heads, 2 * C, v.shape[-1])  # of β V + K̃ S, then of o
    for_reads[:, :, C:] = for_o
    for_written = _product(scores.mT, for_o)
    for_states = torch.empty_like(states)
    for_states[n] = for_final
    for i in reversed(range(n)):
        _add_product_(for_written[i], writing[i], for_states[i + 1])
        for_reads[i, :, :C] = torch.bmm(inverse[i].mT, for_written[i])
        torch.mul(for_states[i + 1], keep[i], out=for_states[i])
        _add_product_(for_states[i], reading[i].mT, for_reads[i])

    for_pairs = _product(for_reads, written.mT)  # (n, B·H, 2C, C)
    for_pairs.view(n, heads, 2, C, C).mul_(decays.unsqueeze(2))
    for_pairs[:, :, :C].diagonal(dim1=-2, dim2=-1).zero_()  # N has no products of a key with itself
    for_kq = _add_product(_scaled(_product(for_reads, states[:n].mT), since_start), for_pairs, k)  # (n, B·H, 2C, D)
    for_writing = _product(written, for_states[1:].mT).mul_(until_end)  # (n, B·H, C, D)
    for_writing = _add_product(for_writing, for_pairs.mT, kq)  # plus what later positions read of it

    for_values, for_minus_beta_k, for_q = for_reads[:, :, :C], for_kq[:, :, :C], for_kq[:, :, C:]
    along_k = (k * for_minus_beta_k).sum(-1, keepdim=True)  # (n, B·H, C, 1)
    for_beta = (v * for_values).sum(-1, keepdim=True) - along_k
    for_c = (kq[:, :, C:] * for_q).sum(-1, keepdim=True) - (k * for_writing).sum(-1, keepdim=True)
    for_c.addcmul_(beta, along_k, value=-1)
    for_c[:, :, -1] += (for_states[1:] * states[1:]).sum((-1, -2)).unsqueeze(-1)
    for_g = for_c.flip(2).cumsum(2).flip(2)
    for_k = for_writing.addcmul_(beta, for_minus_beta_k, value=-1)
    return for_q.contiguous(), for_k, for_values * beta, for_g, for_beta, for_states[0].clone()


def _scaled(kq: Tensor, by: Tensor) -> Tensor:
    """Both halves of kq (n, B·H, 2C, D) times ``by`` (n, B·H, C, 1)."""
    n, heads, C, _ = by.shape
    return (kq.view(n, heads, 2, C, -1) * by.unsqueeze(2)).flatten(2, 3)


def _inverse(N: Tensor) -> Tensor:
    """(I - N)⁻¹ (n, B·H, C, C) for the part of N below its diagonal: rows of small blocks, then pairs of blocks.

    The inverse of [[I - N₁, 0], [-N₂₁, I - N₂]] is [[X₁, 0], [X₂ N₂₁ X₁, X₂]]. A product of powers of N loses all
    precision for similar keys, because the powers grow like binomials.
    """
    shape, C = N.shape, N.shape[-1]
    size = min(C, _SMALLEST_BLOCK)
    N = N.flatten(0, 1)
    blocks = _diagonal_blocks(N, size).flatten(0, 1)
    X = torch.eye(size, dtype=N.dtype, device=N.device).repeat(blocks.shape[0], 1, 1)
    for row in range(1, size):
        X[:, row : row + 1, :row] = torch.bmm(blocks[:, row : row + 1, :row], X[:, :row, :row])
    while size < C:
        first, second = X.view(-1, 2, size, size).unbind(1)
        X = X.new_zeros(first.shape[0], 2 * size, 2 * size)
        X[:, :size, :size] = first
        X[:, size:, size:] = second
        between = _diagonal_blocks(N, 2 * size)[:, :, size:, :size].flatten(0, 1)
        X[:, size:, :size] = torch.bmm(torch.bmm(second, between), first)
        size *= 2
    return X.view(shape)


def _diagonal_blocks(N: Tensor, size: int) -> Tensor:
    """(M, C, C) -> (M, C / size, size, size)."""
    count = N.shape[-1] // size
    return N.view(-1, count, size, count, size).diagonal(dim1=1, dim2=3).movedim(-1, 1)


_operator = torch.library.custom_op("archbench::gated_delta_chunks", _forward, mutates_args=())


@torch.library.custom_op("archbench::gated_delta_chunks_backward", mutates_args=())
def _backward_operator(
    for_o: Tensor, for_final: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, kept: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _backward(for_o, for_final, k, v, g, beta, *kept)


@_operator.register_fake
def _shapes(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, ...]:
    n, heads, C, D = q.shape
    square = v.new_empty(n, heads, C, C)
    states = v.new_empty(n + 1, *state.shape)
    kept = q.new_empty(n, heads, 2 * C, D), square, torch.empty_like(square), torch.empty_like(square), states
    return torch.empty_like(v), torch.empty_like(state), *kept, torch.empty_like(v)


@_backward_operator.register_fake
def _backward_shapes(for_o: Tensor, for_final: Tensor, k: Tensor, *others: Any) -> tuple[Tensor, ...]:
    v, g, beta, _ = others
    return tuple(torch.empty_like(tensor) for tensor in (k, k, v, g, beta, for_final))


def _save_for_backward(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[1:5], *output[2:])
    ctx.mark_non_differentiable(*output[2:])


def _gradients(ctx: Any, for_o: Tensor, for_final: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
    k, v, g, beta, *kept = ctx.saved_tensors
    backward = torch.ops.archbench.gated_delta_chunks_backward
    gradients: tuple[Tensor, ...] = backward(for_o, for_final, k, v, g, beta, kept)
    return gradients


_operator.register_autograd(_gradients, setup_context=_save_for_backward)
