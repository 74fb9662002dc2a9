"""WKV7, the recurrence of RWKV-7 (Peng et al. 2025, arXiv:2503.14456, section 4): in chunks, for one position, step by
step.

A generalised delta rule: each head keeps a state S of N × D, keys by values (the transpose of the paper's). Position t
decays each key channel, moves what is stored along a_t to b_t, writes, and reads:

    S_t = diag(w_t) S_{t-1} + b_t (a_tᵀ S_{t-1}) + k_t v_tᵀ,    y_t = S_tᵀ r_t,

in RWKV-7 with a = -κ̂ and b = κ̂ ⊙ η, the normalised removal key and the in-context learning rate.

In chunks of Q positions, with p_t the product of a chunk's decays up to t, all of it is matrix products. With positions
as rows, S the chunk's initial state and tril⁻ the part below the diagonal:

    R = r ⊙ p,  A = a ⊙ p / w,  B = b / p,  K = k / p,
    U = (I - tril⁻(A Bᵀ))⁻¹ (A S + tril⁻(A Kᵀ) V),                rows u_t = S_{t-1}ᵀ a_t
    Y = R S + tril(R Bᵀ) U + tril(R Kᵀ) V,
    S' = diag(p_Q) (S + Bᵀ U + Kᵀ V).

Only U and S' are computed chunk by chunk, with two products each; the rest is done for all chunks at once. 1 / p is at
most exp(0.61 Q) for RWKV-7, whose log decay is above -exp(-1/2); every product that is used contains p_t / p_s ≤ 1.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from archbench.kernels.precision import exact_dtype, without_autocast

CHUNK = 32
"""Q, positions per chunk. Measured on a CPU: at D = 64, 16 and 64 cost 1.05 and 1.15 times as much; at D = 32, 0.9 and
1.4 times."""


def wkv7(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor | None = None,
    *,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """The recurrence over T positions, in chunks; differentiable once.

    Args:
        r, k: (B, T, H, N), receptances, which read the state, and keys, which write it.
        log_w: (B, T, H, N), log decays, from -80 / ``chunk`` to 0.
        v: (B, T, H, D), values.
        a, b: (B, T, H, N), directions of removal and of writing back.
        state: (B, H, N, D), S before the first position; None for zeros.
        chunk: Q, most positions per chunk; chunks are equally long.

    Returns:
        y (B, T, H, D) and the state after the last position (B, H, N, D), both in float32 (float64 if r is), under
        autocast too.
    """
    B, T, H, N = r.shape
    D = v.shape[-1]
    exact = exact_dtype(r.dtype)
    n, Q = _split(T, chunk)

    def chunks(tensor: Tensor) -> Tensor:
        tensor = tensor.to(exact)
        if missing := n * Q - operator.index(tensor.shape[1]):  # positions that write, remove and forget nothing
            tensor = torch.cat([tensor, tensor.new_zeros(B, missing, *tensor.shape[2:])], dim=1)
        return tensor.reshape(B, n, Q, H, -1).permute(1, 0, 3, 2, 4).reshape(n, B * H, Q, -1)

    if state is None:
        state = torch.zeros(B, H, N, D, dtype=exact, device=r.device)
    with without_autocast(r):
        arguments = [chunks(tensor) for tensor in (r, log_w, k, v, a, b)]
        y, state = _Chunks.apply(*arguments, state.to(exact).reshape(B * H, N, D))  # type: ignore[no-untyped-call]
    y = y.view(n, B, H, Q, D).permute(1, 0, 3, 2, 4).reshape(B, n * Q, H, D)
    return y if n * Q == T else y[:, :T], state.view(B, H, N, D)


def wkv7_step(r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor) -> Tensor:
    """One position of :func:`wkv7`, for decoding.

    Args:
        r, log_w, k, v, a, b: (B, H, N), v (B, H, D).
        state: (B, H, N, D), float32, overwritten with the state after this position.

    Returns:
        y (B, H, D) in the state's dtype.
    """
    B, H, N, D = state.shape
    r, log_w, k, v, a, b = (tensor.to(state.dtype).reshape(B * H, 1, -1) for tensor in (r, log_w, k, v, a, b))
    S = state.view(B * H, N, D)
    with without_autocast(r):
        written = torch.cat([torch.bmm(a, S), v], dim=1)  # (BH, 2, D)
        S.mul_(log_w.exp().mT).baddbmm_(torch.cat([b, k], dim=1).mT, written)
        return torch.bmm(r, S).view(B, H, D)


def reference_wkv7(
    r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The definition, a position at a time; see :func:`wkv7`."""
    exact = exact_dtype(r.dtype)
    r, w, k, v, a, b = (tensor.to(exact) for tensor in (r, log_w.to(exact).exp(), k, v, a, b))
    B, _, H, N = r.shape
    S = r.new_zeros(B, H, N, v.shape[-1]) if state is None else state.to(exact)
    ys = []
    for r_t, w_t, k_t, v_t, a_t, b_t in zip(*(tensor.unbind(1) for tensor in (r, w, k, v, a, b)), strict=True):
        removed = (a_t.unsqueeze(-1) * S).sum(2, keepdim=True)  # (B, H, 1, D)
        S = w_t.unsqueeze(-1) * S + b_t.unsqueeze(-1) * removed + k_t.unsqueeze(-1) * v_t.unsqueeze(-2)
        ys.append((r_t.unsqueeze(-1) * S).sum(2))  # (B, H, D)
    return torch.stack(ys, dim=1), S


def solve_flops(positions: int, *, chunk: int = CHUNK) -> int:
    """FLOPs of a head's triangular systems, which torch does not count: Q right-hand sides of Q² per chunk."""
    n, Q = _split(positions, chunk)
    return n * Q**3


def _split(positions: int, chunk: int) -> tuple[int, int]:
    """Number and length of equally long chunks: n Q is ``positions`` or slightly more."""
    positions = operator.index(positions)  # a constant: with a symbol torch.compile takes minutes
    n = -(-positions // chunk)
    return n, -(-positions // n)


class _Chunks(torch.autograd.Function):
    """r, log_w, k, a, b (n, BH, Q, N), v (n, BH, Q, D), state (BH, N, D) -> y (n, BH, Q, D), state; see the module.

    Gradients are written out because autograd would keep and traverse twice as many tensors. The decays' gradients need
    no matrix product: p_t multiplies row t of R and row t + 1 of A, and divides row t of B and K, so
    dL/dlog p_t = R_t · dL/dR_t + A_{t+1} · dL/dA_{t+1} - B_t · dL/dB_t - K_t · dL/dK_t, channel by channel, plus
    S' · dL/dS' at the end of a chunk.
    """

    @staticmethod
    def forward(
        ctx: Any, r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        Q = r.shape[2]
        log_p = log_w.cumsum(2)
        p, before = log_p.exp(), (log_p - log_w).exp()  # including this position's decay, and excluding it
        left = torch.cat([a * before, r * p], dim=2)  # A over R: (n, BH, 2Q, N)
        right = torch.cat([b / p, k / p], dim=2)  # B over K
        weights = (left @ right.mT).mul_(_causal(left))  # (n, BH, 2Q, 2Q)
        keep = p[:, :, -1:]  # (n, BH, 1, N)
        kept = right * keep  # B and K, decayed to the chunk's end

        identity = torch.eye(Q, dtype=r.dtype, device=r.device)
        inverse = torch.linalg.solve_triangular(
            identity - weights[:, :, :Q, :Q], identity.expand(*r.shape[:2], Q, Q), upper=False, unitriangular=True
        )
        by_state = inverse @ left[:, :, :Q]  # U is by_state S + by_values
        by_values = inverse @ (weights[:, :, :Q, Q:] @ v)
        new = kept[:, :, Q:].mT @ v  # (n, BH, N, D), written by this chunk's values
        states, removed = [state], []
        for A_n, X_n, new_n, keep_n, B_n in _by_chunk(by_state, by_values, new, keep.mT, kept[:, :, :Q].mT):
            U = torch.baddbmm(X_n, A_n, state)  # (BH, Q, D)
            state = torch.baddbmm(torch.addcmul(new_n, keep_n, state), B_n, U)
            removed.append(U)
            states.append(state)
        written = torch.cat([torch.stack(removed), v], dim=2)  # U over V
        S = torch.stack(states)  # (n + 1, BH, N, D)
        y = left[:, :, Q:] @ S[:-1]
        y += weights[:, :, Q:] @ written
        ctx.save_for_backward(p, before, left, right, kept, weights, inverse, written, S)
        return y, state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, for_y: Tensor, for_state: Tensor) -> tuple[Tensor, ...]:
        with without_autocast(for_y):
            return _gradients(ctx.saved_tensors, for_y.contiguous(), for_state)


def _gradients(saved: tuple[Tensor, ...], for_y: Tensor, for_state: Tensor) -> tuple[Tensor, ...]:
    """Gradients of r, log_w, k, v, a, b and the state, from the tensors that :class:`_Chunks` saves."""
    p, before, left, right, kept, weights, inverse, written, S = saved
    Q = p.shape[2]
    keep = p[:, :, -1:]
    # dL/d(A S + tril⁻(A Kᵀ) V) = inverseᵀ dL/dU, from the chunk's own y and from the state that it passes on.
    by_state = inverse.mT @ kept[:, :, :Q]
    by_outputs = inverse.mT @ (weights[:, :, Q:, :Q].mT @ for_y)
    new = left[:, :, Q:].mT @ for_y  # (n, BH, N, D), from this chunk's outputs
    for_states, for_sums = [], []
    for B_n, X_n, new_n, keep_n, A_n in reversed(_by_chunk(by_state, by_outputs, new, keep.mT, left[:, :, :Q].mT)):
        for_states.append(for_state)
        for_sum = torch.baddbmm(X_n, B_n, for_state)  # (BH, Q, D)
        for_state = torch.baddbmm(torch.addcmul(new_n, keep_n, for_state), A_n, for_sum)
        for_sums.append(for_sum)
    for_S = torch.stack(for_states[::-1])  # of each chunk's S': (n, BH, N, D)
    rows = torch.cat([torch.stack(for_sums[::-1]), for_y], dim=2)  # (n, BH, 2Q, D)

    for_weights = (rows @ written.mT).mul_(_causal(left))  # (n, BH, 2Q, 2Q)
    for_left = rows @ S[:-1].mT
    for_left += for_weights @ right
    for_right = (written @ for_S.mT).mul_(keep)
    for_right += for_weights.mT @ left
    for_v = kept[:, :, Q:] @ for_S
    for_v += weights[:, :, :, Q:].mT @ rows

    from_left, from_right = left * for_left, right * for_right
    for_log_p = from_left[:, :, Q:] - from_right[:, :, :Q]
    for_log_p -= from_right[:, :, Q:]
    for_log_p[:, :, :-1] += from_left[:, :, 1:Q]
    for_log_p[:, :, -1] += (S[1:] * for_S).sum(3)
    for_log_w = for_log_p.flip(2).cumsum(2).flip(2)

    for_a, for_r = for_left[:, :, :Q] * before, for_left[:, :, Q:] * p
    for_b, for_k = for_right[:, :, :Q] / p, for_right[:, :, Q:] / p
    return for_r, for_log_w, for_k, for_v, for_a, for_b, for_state


def _by_chunk(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Each chunk's parts of tensors (n, …)."""
    return list(zip(*(tensor.unbind() for tensor in tensors), strict=True))


def _causal(left: Tensor) -> Tensor:
    """(2Q, 2Q) bool: A sees the positions before its own, R those up to its own."""
    Q = left.shape[2] // 2
    lower = torch.ones(Q, Q, dtype=torch.bool, device=left.device).tril()
    return torch.cat([lower.tril(-1), lower]).repeat(1, 2)
