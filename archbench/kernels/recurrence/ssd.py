"""The selective state space of Mamba-2 (SSD: Dao & Gu 2024, arXiv:2405.21060): in chunks, in one step, step by step.

Each head keeps a state h of N × D. Of the paper's X, Δ, A, B, C (here x, dt, a, b, c), position t writes and reads

    h_t = exp(dt_t a) h_{t-1} + b_t ⊗ dt_t x_t,    y_t = c_t · h_t.

Unrolled, this is attention with queries c, keys b, values u = dt x, decays for a mask (section 3.2): y = (c bᵀ ∘ L) u
with L_ij = exp(s_i - s_j) for i ≥ j, s the cumulative sum of dt a. Chunks of Q positions do that among themselves and
hand a state on (section 6), so the cost is linear in T, and nearly all of it is in matrix products.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 64
"""Q, positions to a chunk: the masks cost T · Q for each head, the states T / Q · N · D."""

FORGOTTEN = -80.0
"""Where exponents end: e⁻⁸⁰ is 10⁻³⁵. Results below the normal float32 numbers take CPUs up to 35 times as long."""


def ssd(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor | None = None, *, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """The recurrence over T positions, in chunks; differentiable once.

    Args:
        x: (B, T, H, D). Matrix products are made in its dtype; decays, sums over time and states are float32
            (float64 where x is), under autocast too.
        dt: (B, T, H), the step sizes, not negative.
        a: (H,), the rate of decay, negative.
        b, c: (B, T, G, N), what is written by and read by, shared by H / G heads one after the other; in x's dtype.
        state: (B, G, N, H / G · D), h before the first position, a group's heads side by side; None for zeros.
        chunk: Q, positions to a chunk; fewer where chunks can be made equally long.

    Returns:
        y (B, T, H, D) in x's dtype, and the state after the last position.
    """
    B, T, H, D = x.shape
    G, N = b.shape[2:]
    exact = torch.promote_types(x.dtype, torch.float32)
    n = 1
    while n * chunk < T:  # counted, so that the compiler takes n for a constant where T is none
        n += 1
    Q = chunk if torch.compiler.is_compiling() else -(-T // n)
    if missing := n * Q - T:  # positions that write nothing and forget nothing
        x, dt, b, c = (_padded(tensor, missing) for tensor in (x, dt, b, c))
    if state is None:
        state = torch.zeros(B, G, N, H // G * D, dtype=exact, device=x.device)
    x, b, c = x.reshape(B, n, Q, H, D), b.reshape(B, n, Q, G, N), c.reshape(B, n, Q, G, N)
    kind = x.device.type
    with torch.autocast(kind, enabled=False) if kind != "meta" else nullcontext():
        y, state = _Chunks.apply(x, dt.to(exact).reshape(B, n, Q, H), a.to(exact), b, c, state)  # type: ignore[no-untyped-call]
    return y.reshape(B, n * Q, H, D)[:, :T], state


def ssd_step(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor) -> Tensor:
    """One position of :func:`ssd`, for decoding.

    Args:
        x: (B, H, D).
        dt: (B, H).
        a: (H,).
        b, c: (B, G, N).
        state: (B, G, N, H / G · D), overwritten with the state after this position.

    Returns:
        y (B, H, D) in x's dtype.
    """
    B, H, D = x.shape
    G = b.shape[1]
    dt = dt.to(state.dtype)
    write = (x * dt.unsqueeze(-1)).view(B, G, 1, -1)  # (B, G, 1, H/G · D)
    keep = torch.exp(dt * a).view(B, G, 1, H // G, 1)
    state.view(B, G, -1, H // G, D).mul_(keep)
    state.addcmul_(b.to(state.dtype).unsqueeze(-1), write)
    return (c.to(state.dtype).unsqueeze(2) @ state).view(B, H, D).to(x.dtype)


def reference_ssd(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The definition, a position at a time; see :func:`ssd`."""
    B, T, H, D = x.shape
    G, N = b.shape[2:]
    exact = torch.promote_types(x.dtype, torch.float32)
    h = x.new_zeros(B, G, N, H // G * D, dtype=exact) if state is None else state
    h = h.view(B, G, N, H // G, D).transpose(2, 3).flatten(1, 2)  # (B, H, N, D)
    x_exact, dt = x.to(exact), dt.to(exact)
    b, c = (tensor.to(exact).repeat_interleave(H // G, dim=2) for tensor in (b, c))  # (B, T, H, N)
    ys = []
    for t in range(T):
        keep = torch.exp(dt[:, t] * a.to(exact))  # (B, H)
        write = b[:, t, :, :, None] * (dt[:, t, :, None] * x_exact[:, t])[:, :, None]  # (B, H, N, D)
        h = keep[:, :, None, None] * h + write
        ys.append((c[:, t, :, :, None] * h).sum(2))  # (B, H, D)
    final = h.view(B, G, H // G, N, D).transpose(2, 3).flatten(3)
    return torch.stack(ys, dim=1).to(x.dtype), final


def _padded(tensor: Tensor, positions: int) -> Tensor:
    """(B, T, …) -> (B, T + positions, …), zeros behind."""
    return torch.cat([tensor, tensor.new_zeros(tensor.shape[0], positions, *tensor.shape[2:])], dim=1)


class _Chunks(torch.autograd.Function):
    """x (B, n, Q, H, D) and so on; see :func:`ssd`.

    Gradients are written out because autograd would take those of the decays through every mask of Q × Q. Where s
    stands in an exponent, its gradient is the product of what it decays and the gradient of that. Pairs of a position
    with itself do not decay, and are left out: in bfloat16 they would drown the others.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        n, D = x.shape[1], x.shape[-1]
        G = b.shape[3]
        s = (dt * a).cumsum(2)  # (B, n, Q, H)
        b, c = b.transpose(2, 3), c.transpose(2, 3)  # (B, n, G, Q, N)

        # Among a chunk's own positions.
        u = _scaled(x, dt).transpose(2, 3).contiguous()  # (B, n, H, Q, D)
        decays = _decays(s)  # (B, n, H, Q, Q)
        scores = (c @ b.mT).tril_()  # (B, n, G, Q, Q): the mask of the past
        y = _masked(scores, decays).to(x.dtype) @ u  # (B, n, H, Q, D)

        # From chunk to chunk.
        written = b.mT @ _grouped(_scaled(x, dt * _exp(s[:, :, -1:] - s)), G)  # (B, n, G, N, H/G · D)
        starts = torch.empty(written.shape, dtype=state.dtype, device=state.device)  # the states that chunks begin with
        keep = _chunk_decays(s, G, D)  # (B, n, G, 1, H/G · D)
        for i in range(n):
            starts[:, i] = state
            state = torch.addcmul(written[:, i], state, keep[:, i])
        read = c @ starts.to(x.dtype)  # (B, n, G, Q, H/G · D)
        ctx.save_for_backward(x, dt, a, b, c, s, u, decays, scores, starts, read)
        return _scaled(_ungrouped(read, D), _exp(s)).add_(y.transpose(2, 3)), state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, for_y: Tensor, for_state: Tensor) -> tuple[Tensor, ...]:
        x, dt, a, b, c, s, u, decays, scores, starts, read = ctx.saved_tensors
        n, G, D = x.shape[1], b.shape[2], x.shape[-1]

        # What was read from the states that chunks begin with.
        for_read = _grouped(_scaled(for_y, _exp(s)), G)  # (B, n, G, Q, H/G · D)
        for_c = for_read @ starts.to(x.dtype).mT  # (B, n, G, Q, N)
        for_starts = c.mT @ for_read  # (B, n, G, N, H/G · D)
        for_s = _head_sums(for_read * read, D)  # (B, n, Q, H)

        # From the last chunk to the first.
        for_ends = torch.empty_like(starts)
        keep = _chunk_decays(s, G, D)
        for i in reversed(range(n)):
            for_ends[:, i] = for_state
            for_state = torch.addcmul(for_starts[:, i], for_state, keep[:, i])
        for_end_s = (starts * for_ends * keep).view(*starts.shape[:-1], -1, D).sum((3, 5)).flatten(2)  # (B, n, H)

        # What was written to the states that chunks end with.
        for_ends = for_ends.to(x.dtype)
        kept = _exp(s[:, :, -1:] - s)  # (B, n, Q, H)
        u_kept = _grouped(_scaled(x, dt * kept), G)  # (B, n, G, Q, H/G · D)
        for_u_kept = b @ for_ends
        for_b = u_kept @ for_ends.mT  # (B, n, G, Q, N)
        for_kept = _head_sums(u_kept * for_u_kept, D)  # (B, n, Q, H)
        for_s -= for_kept
        for_end_s += for_kept.sum(2)

        # Among a chunk's own positions.
        for_y = for_y.transpose(2, 3).contiguous()  # (B, n, H, Q, D)
        masked = _masked(scores, decays)  # (B, n, H, Q, Q)
        for_u = _scaled(_ungrouped(for_u_kept, D), kept)  # (B, n, Q, H, D)
        for_u += (masked.to(x.dtype).mT @ for_y).transpose(2, 3)
        for_masked = for_y @ u.mT  # (B, n, H, Q, Q)
        for_scores = _by_group(decays * for_masked, G).sum(3).tril_().to(x.dtype)  # (B, n, G, Q, Q)
        for_c += for_scores @ b
        for_b += for_scores.mT @ c
        pairs = masked.mul_(for_masked)
        pairs.diagonal(dim1=-2, dim2=-1).zero_()
        for_s += (pairs.sum(-1) - pairs.sum(-2)).transpose(2, 3)

        for_log_decay = for_s.flip(2).cumsum(2).flip(2) + for_end_s.unsqueeze(2)  # (B, n, Q, H)
        for_dt = (for_u * x).sum(-1, dtype=dt.dtype) + for_log_decay * a
        for_a = (for_log_decay * dt).sum((0, 1, 2))
        return _scaled(for_u, dt), for_dt, for_a, for_b.transpose(2, 3), for_c.transpose(2, 3), for_state


def _exp(exponents: Tensor) -> Tensor:
    return exponents.clamp(min=FORGOTTEN).exp_()


def _decays(s: Tensor) -> Tensor:
    """s (B, n, Q, H) -> exp(s_t - s_s) for t ≥ s, and something finite elsewhere: (B, n, H, Q, Q)."""
    s = s.transpose(2, 3).contiguous()  # (B, n, H, Q), so that the masks are laid out as products want them
    return (s.unsqueeze(-1) - s.unsqueeze(-2)).clamp_(FORGOTTEN, 0.0).exp_()


def _chunk_decays(s: Tensor, groups: int, width: int) -> Tensor:
    """s (B, n, Q, H) -> what a chunk keeps of each channel of the state: (B, n, G, 1, H/G · D)."""
    return _by_group(_exp(s[:, :, -1]), groups).repeat_interleave(width, dim=-1).unsqueeze(3)


def _masked(scores: Tensor, decays: Tensor) -> Tensor:
    """scores (B, n, G, Q, Q) and decays (B, n, H, Q, Q) -> their product (B, n, H, Q, Q)."""
    return (scores.unsqueeze(3) * _by_group(decays, scores.shape[2])).view(decays.shape)


def _by_group(x: Tensor, groups: int) -> Tensor:
    """(B, n, H, …) -> (B, n, G, H/G, …)."""
    return x.view(*x.shape[:2], groups, x.shape[2] // groups, *x.shape[3:])


def _scaled(x: Tensor, factors: Tensor) -> Tensor:
    """x (B, n, Q, H, D) and factors (B, n, Q, H) -> their product in x's dtype."""
    return x * factors.unsqueeze(-1).to(x.dtype)


def _grouped(x: Tensor, groups: int) -> Tensor:
    """(B, n, Q, H, D) -> (B, n, G, Q, H/G · D)."""
    return x.reshape(*x.shape[:3], groups, -1).transpose(2, 3)


def _ungrouped(x: Tensor, width: int) -> Tensor:
    """(B, n, G, Q, H/G · D) -> (B, n, Q, H, D); D is ``width``."""
    return x.transpose(2, 3).reshape(x.shape[0], x.shape[1], x.shape[3], -1, width)


def _head_sums(products: Tensor, width: int) -> Tensor:
    """(B, n, G, Q, H/G · D) -> the sums over D, in float32 at least: (B, n, Q, H)."""
    exact = torch.promote_types(products.dtype, torch.float32)
    sums = products.view(*products.shape[:-1], -1, width).sum(-1, dtype=exact)  # (B, n, G, Q, H/G)
    return sums.transpose(2, 3).flatten(3)
