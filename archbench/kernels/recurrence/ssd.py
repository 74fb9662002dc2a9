"""The state space of Mamba-2 (SSD: Dao & Gu 2024, arXiv:2405.21060): in chunks, for one position, step by step.

Each head keeps a state h of N × D. With the paper's X, Δ, A, B, C as x, dt, a, b, c, position t writes and reads

    h_t = exp(dt_t a) h_{t-1} + b_t ⊗ dt_t x_t,    y_t = c_t · h_t.

Unrolled, this is attention with queries c, keys b, values u = dt x and decays as the mask (section 3.2):
y = (c bᵀ ∘ L) u with L_ij = exp(s_i - s_j) for i ≥ j, s the cumulative sum of dt a. Chunks of Q positions compute this
internally and pass a state on (section 6): the cost is linear in T, and nearly all of it is matrix products.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from archbench.kernels.precision import exact_dtype, without_autocast

CHUNK = 64
"""Q, positions per chunk: per head, masks cost T · Q and states T / Q · N · D."""

FORGOTTEN = -80.0
"""Least exponent: e⁻⁸⁰ is 10⁻³⁵. Subnormal float32 results take CPUs up to 35 times as long."""


def ssd(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor | None = None, *, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """The recurrence over T positions, in chunks; differentiable once.

    Args:
        x: (B, T, H, D). Matrix products are in its dtype; decays, sums over time and states are float32 (float64 if x
            is), under autocast too.
        dt: (B, T, H), step sizes, not negative.
        a: (H,), rates of decay, negative.
        b, c: (B, T, G, N), keys and queries, each shared by H / G consecutive heads; in x's dtype.
        state: (B, G, N, H / G · D), h before the first position, a group's heads concatenated; None for zeros.
        chunk: Q, positions per chunk; fewer if chunks can then be equally long.

    Returns:
        y (B, T, H, D) in x's dtype, and the state after the last position.
    """
    B, T, H, D = x.shape
    G, N = b.shape[2:]
    exact = exact_dtype(x.dtype)
    n = 1
    while n * chunk < T:  # counted, so that n is a constant to the compiler even if T is not
        n += 1
    Q = chunk if torch.compiler.is_compiling() else -(-T // n)
    if missing := n * Q - T:  # positions that write and forget nothing
        x, dt, b, c = (_padded(tensor, missing) for tensor in (x, dt, b, c))
    if state is None:
        state = torch.zeros(B, G, N, H // G * D, dtype=exact, device=x.device)
    x, dt = x.reshape(B * n, Q, H, D), dt.to(exact).reshape(B * n, Q, H)
    b, c = b.reshape(B * n, Q, G, N), c.reshape(B * n, Q, G, N)
    with without_autocast(x):
        y, state = _Chunks.apply(x, dt, a.to(exact), b, c, state)  # type: ignore[no-untyped-call]
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
    exact = exact_dtype(x.dtype)
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
    """(B, T, …) -> (B, T + positions, …), zeros at the end."""
    return torch.cat([tensor, tensor.new_zeros(tensor.shape[0], positions, *tensor.shape[2:])], dim=1)


class _Chunks(torch.autograd.Function):
    """x (M, Q, H, D), dt (M, Q, H), b and c (M, Q, G, N), M = B · T / Q chunks; see :func:`ssd`.

    Gradients are written out because autograd would differentiate the decays through every mask of Q × Q. The gradient
    of s in an exponent is the decayed quantity times its own gradient. Pairs of a position with itself do not decay and
    are left out: in bfloat16 their rounding errors would dominate.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        H, G = x.shape[2], b.shape[2]
        s = (dt * a).cumsum(1)  # (M, Q, H)
        b, c = _by_head(b), _by_head(c)  # (M · G, Q, N)

        # Within a chunk.
        u = _by_head(_scaled(x, dt))  # (M · H, Q, D)
        decays = _decays(s)  # (M · H, Q, Q)
        scores = torch.bmm(c, b.mT).tril_()  # (M · G, Q, Q): the mask of the past
        y = torch.bmm(_masked(scores, decays).to(x.dtype), u)  # (M · H, Q, D)

        # From chunk to chunk.
        kept = _exp(s[:, -1:] - s)  # (M, Q, H): decay of a write until the chunk's end
        written = torch.bmm(b.mT, _by_group(_scaled(x, dt * kept), G))  # (M · G, N, H/G · D)
        states = [state]
        keep = _chunk_decays(s, state, H)  # (B, n, G, 1, H/G · D)
        for new, decay in zip(_by_chunk(written, keep), keep.unbind(1), strict=True):
            states.append(torch.addcmul(new, states[-1], decay))
        starts = torch.stack(states[:-1], dim=1).view(written.shape)  # the chunks' initial states
        read = torch.bmm(c, starts.to(x.dtype))  # (M · G, Q, H/G · D)
        ctx.save_for_backward(x, dt, a, b, c, s, u, decays, scores, starts, read)
        return _scaled(_from_groups(read, G, H), _exp(s)).add_(_from_heads(y, H)), states[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, for_y: Tensor, for_state: Tensor) -> tuple[Tensor, ...]:
        x, dt, a, b, c, s, u, decays, scores, starts, read = ctx.saved_tensors
        H, G = x.shape[2], for_state.shape[1]

        # Reads of the chunks' initial states.
        for_read = _by_group(_scaled(for_y, _exp(s)), G)  # (M · G, Q, H/G · D)
        for_c = torch.bmm(for_read, starts.to(x.dtype).mT)  # (M · G, Q, N)
        for_starts = torch.bmm(c.mT, for_read)  # (M · G, N, H/G · D)
        for_s = _head_sums(for_read * read, G, H)  # (M, Q, H)

        # From the last chunk to the first.
        ends = [for_state]
        keep = _chunk_decays(s, for_state, H)  # (B, n, G, 1, H/G · D)
        for new, decay in zip(reversed(_by_chunk(for_starts, keep)), reversed(keep.unbind(1)), strict=True):
            ends.append(torch.addcmul(new, ends[-1], decay))
        for_ends = torch.stack(ends[-2::-1], dim=1)  # (B, n, G, N, H/G · D)
        kept_states = (for_ends * keep).view(starts.shape) * starts
        for_end_s = _head_sums(kept_states, G, H).sum(1)  # (M, H)

        # Writes to the chunks' final states.
        for_ends = for_ends.view(starts.shape).to(x.dtype)
        kept = _exp(s[:, -1:] - s)  # (M, Q, H)
        u_kept = _by_group(_scaled(x, dt * kept), G)  # (M · G, Q, H/G · D)
        for_u_kept = torch.bmm(b, for_ends)
        for_b = torch.bmm(u_kept, for_ends.mT)  # (M · G, Q, N)
        for_kept = _head_sums(u_kept * for_u_kept, G, H)  # (M, Q, H)
        for_s -= for_kept
        for_end_s += for_kept.sum(1)

        # Within a chunk.
        for_y = _by_head(for_y)  # (M · H, Q, D)
        masked = _masked(scores, decays)  # (M · H, Q, Q)
        for_u = _scaled(_from_groups(for_u_kept, G, H), kept)  # (M, Q, H, D)
        for_u += _from_heads(torch.bmm(masked.to(x.dtype).mT, for_y), H)
        for_masked = torch.bmm(for_y, u.mT)  # (M · H, Q, Q)
        for_scores = (decays * for_masked).view(len(b), H // G, *scores.shape[1:]).sum(1).tril_().to(x.dtype)
        for_c += torch.bmm(for_scores, b)
        for_b += torch.bmm(for_scores.mT, c)
        pairs = masked.mul_(for_masked)
        pairs.diagonal(dim1=1, dim2=2).zero_()
        for_s += (pairs.sum(2) - pairs.sum(1)).view(len(x), H, -1).mT

        for_log_decay = for_s.flip(1).cumsum(1).flip(1) + for_end_s.unsqueeze(1)  # (M, Q, H)
        for_dt = (for_u * x).sum(-1, dtype=dt.dtype) + for_log_decay * a
        for_a = (for_log_decay * dt).sum((0, 1))
        return _scaled(for_u, dt), for_dt, for_a, _from_heads(for_b, G), _from_heads(for_c, G), ends[-1]


def _exp(exponents: Tensor) -> Tensor:
    return exponents.clamp(min=FORGOTTEN).exp_()


def _decays(s: Tensor) -> Tensor:
    """s (M, Q, H) -> exp(s_i - s_j) for i ≥ j, finite elsewhere: (M · H, Q, Q)."""
    s = s.mT.reshape(-1, s.shape[1])  # (M · H, Q)
    return (s.unsqueeze(2) - s.unsqueeze(1)).clamp_(FORGOTTEN, 0.0).exp_()


def _masked(scores: Tensor, decays: Tensor) -> Tensor:
    """scores (M · G, Q, Q) and decays (M · H, Q, Q) -> their product (M · H, Q, Q)."""
    by_group = decays.view(len(scores), -1, *scores.shape[1:])  # (M · G, H/G, Q, Q)
    return (scores.unsqueeze(1) * by_group).view(decays.shape)


def _chunk_decays(s: Tensor, state: Tensor, heads: int) -> Tensor:
    """s (M, Q, H) -> each chunk's decay of a state (B, G, N, H/G · D), by channel: (B, n, G, 1, H/G · D)."""
    B, G, _, width = state.shape
    keep = _exp(s[:, -1]).view(B, -1, G, 1, heads // G, 1)
    return keep.expand(-1, -1, -1, -1, -1, width * G // heads).flatten(4)


def _by_chunk(x: Tensor, keep: Tensor) -> tuple[Tensor, ...]:
    """(M · G, N, H/G · D) -> for each of n chunks (B, G, N, H/G · D); ``keep`` as from :func:`_chunk_decays`."""
    return x.view(*keep.shape[:3], *x.shape[1:]).unbind(1)


def _scaled(x: Tensor, factors: Tensor) -> Tensor:
    """x (M, Q, H, D) and factors (M, Q, H) -> their product in x's dtype."""
    return x * factors.unsqueeze(-1).to(x.dtype)


def _by_head(x: Tensor) -> Tensor:
    """(M, Q, H, D) -> (M · H, Q, D)."""
    return x.transpose(1, 2).reshape(-1, x.shape[1], x.shape[3])


def _from_heads(x: Tensor, heads: int) -> Tensor:
    """(M · H, Q, D) -> (M, Q, H, D)."""
    return x.view(-1, heads, *x.shape[1:]).transpose(1, 2)


def _by_group(x: Tensor, groups: int) -> Tensor:
    """(M, Q, H, D) -> (M · G, Q, H/G · D)."""
    return _by_head(x.reshape(*x.shape[:2], groups, -1))


def _from_groups(x: Tensor, groups: int, heads: int) -> Tensor:
    """(M · G, Q, H/G · D) -> (M, Q, H, D)."""
    x = _from_heads(x, groups)  # (M, Q, G, H/G · D)
    return x.reshape(*x.shape[:2], heads, -1)


def _head_sums(products: Tensor, groups: int, heads: int) -> Tensor:
    """(M · G, Q, H/G · D) -> the sums over D, in float32 at least: (M, Q, H)."""
    sums = products.view(*products.shape[:2], heads // groups, -1).sum(-1, dtype=exact_dtype(products.dtype))
    return _from_groups(sums, groups, heads).squeeze(-1)
