"""A sparse mixture of experts in place of a feed-forward layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from archbench.errors import ConfigError
from archbench.kernels import linear
from archbench.kernels.float8_linear import without_float8
from archbench.kernels.grouped_matmul import ends_where_used, grouped_matmul, waits
from archbench.kernels.precision import exact_dtype
from archbench.nn.linear import Linear

FEW_TOKENS = 256
"""As many, in decoding, go through every expert on a GPU that would otherwise have to tell the CPU where they go."""


class Routing(NamedTuple):
    """Where a layer's N tokens were sent.

    Attributes:
        probabilities: (N, E) float32, each token's softmax over all experts.
        chosen: (N, A) int64, the experts that it was sent to, most probable first.
    """

    probabilities: Tensor
    chosen: Tensor


class SparseExperts(nn.Module):
    """A of E gated feed-forward layers for each token, weighted by a router: x (..., C) -> (..., C).

    The router's softmax is over all experts, in float32, and renormalised over the chosen ones (Jiang et al. 2024,
    Mixtral of Experts, arXiv:2401.04088, section 2.1). Tokens are sorted by expert, so that each expert multiplies its
    own in one product; no token is dropped.

    Attributes:
        router: C -> E.
        gate_up: (E, 2F, C), for each expert the rows of the gate, then of ``up``.
        down: (E, C, F).
        active: A, experts per token.
        activation: silu for SwiGLU.
    """

    def __init__(
        self, channels: int, width: int, experts: int, active: int, activation: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        if not 1 <= active <= experts:
            cause = f"a token cannot be sent to {active} of {experts} experts"
            raise ConfigError("n_active", cause, "Choose between 1 and n_expert")
        self.active, self.activation = active, activation
        self.router = Linear(channels, experts, bias=False)
        self.gate_up = nn.Parameter(torch.empty(experts, 2 * width, channels))
        self.down = nn.Parameter(torch.empty(experts, channels, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal with standard deviation 0.02, as published."""
        for weight in self.parameters():
            nn.init.normal_(weight, std=0.02)

    def inactive_parameters(self, tokens: int = 1) -> int:
        """Those of the E - A experts that a token is not sent to; see :class:`archbench.protocols.SparseModel`."""
        unused = max(0, self.gate_up.shape[0] - self.active * tokens)
        return unused * (self.gate_up[0].numel() + self.down[0].numel())

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> tuple[Tensor, Routing]: ...

    def forward(self, x: Tensor) -> tuple[Tensor, Routing]:
        """x (..., C) -> the experts' output (..., C), in x's dtype, and the routing of its N = numel / C tokens."""
        tokens = x.reshape(-1, x.shape[-1])  # (N, C)
        routing, shares = self.route(tokens)
        y = self.apply_experts(tokens, routing.chosen, shares)
        return y.view(x.shape), routing

    def route(self, tokens: Tensor) -> tuple[Routing, Tensor]:
        """tokens (N, C) -> their routing, and the weights (N, A) of the chosen experts, which sum to 1."""
        with without_float8():  # rounding must not send a token elsewhere
            logits = self.router(tokens)  # (N, E)
        probabilities = torch.softmax(logits, dim=-1, dtype=exact_dtype(logits.dtype))
        highest, chosen = torch.topk(probabilities, self.active, dim=-1)  # (N, A)
        return Routing(probabilities, chosen), highest / highest.sum(-1, keepdim=True)

    def apply_experts(self, tokens: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        """tokens (N, C), chosen (N, A) and shares (N, A) -> (N, C): the weighted sum of each token's experts."""
        N, A = chosen.shape
        E = self.gate_up.shape[0]
        eager_cpu = tokens.device.type == "cpu" and not torch.compiler.is_compiling()
        if N == 1 and eager_cpu and not torch.is_grad_enabled():
            return self._apply_to_one(tokens, chosen, shares)
        if N <= FEW_TOKENS and not torch.is_grad_enabled() and waits(tokens, self.gate_up, self.down):
            return self.apply_every_expert(tokens, chosen, shares)
        experts, order = torch.sort(chosen.flatten(), stable=True)  # (N A,), grouped by expert
        place = torch.empty_like(order).scatter_(0, order, torch.arange(N * A, device=order.device))
        ends = torch.searchsorted(experts, torch.arange(E, device=order.device), right=True, out_int32=True)  # (E,)
        ends = ends_where_used(ends, tokens, self.gate_up, self.down)

        x = arranged(tokens, order, place)  # (N A, C)
        gate, up = grouped_matmul(x, self.gate_up, ends).chunk(2, dim=-1)  # (N A, F) each
        y = grouped_matmul(self.activation(gate) * up, self.down, ends)  # (N A, C)
        y = arranged(y, place, order).view(N, A, -1)
        return (y * shares.unsqueeze(-1)).sum(1).to(tokens.dtype)

    def apply_every_expert(self, tokens: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        """The same by products whose shapes do not depend on the routing: an expert not chosen has the share zero."""
        weights = shares.new_zeros(len(tokens), self.gate_up.shape[0]).scatter_(1, chosen, shares)  # (N, E)
        x = tokens.expand(self.gate_up.shape[0], -1, -1)  # (E, N, C)
        gate, up = torch.bmm(x, self.gate_up.mT).chunk(2, dim=-1)  # (E, N, F) each
        y = torch.bmm(self.activation(gate) * up, self.down.mT)  # (E, N, C)
        return (y * weights.t().unsqueeze(-1)).sum(0).to(tokens.dtype)

    def _apply_to_one(self, token: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        """The same for one token (1, C), as in decoding, where sorting would take longer than the experts."""
        total = torch.zeros_like(token, dtype=shares.dtype)
        for expert, share in zip(chosen[0].tolist(), shares[0].tolist(), strict=True):
            gate, up = linear(token, self.gate_up[expert]).chunk(2, dim=-1)  # (1, F) each
            total.add_(linear(self.activation(gate) * up, self.down[expert]), alpha=share)
        return total.to(token.dtype)


def reference_experts(module: SparseExperts, x: Tensor) -> Tensor:
    """The definition of :class:`SparseExperts`: every expert for every token, with weight zero if not chosen."""
    probabilities = torch.softmax(module.router(x), dim=-1)  # (..., E)
    highest, chosen = probabilities.topk(module.active)
    shares = torch.zeros_like(probabilities).scatter(-1, chosen, highest / highest.sum(-1, keepdim=True))
    total = torch.zeros_like(x)
    for expert, (gate_up, down) in enumerate(zip(module.gate_up, module.down, strict=True)):
        gate, up = linear(x, gate_up).chunk(2, dim=-1)
        total = total + shares[..., expert, None] * linear(module.activation(gate) * up, down)
    return total


_sums: list[Callable[[Tensor], Tensor]] = []
"""What adds tensors of several processes, if they train together."""


@contextmanager
def balanced_over(summed: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within this context tokens of several processes are balanced together.

    Args:
        summed: a tensor -> its sum over the processes, which all call it at the same places.
    """
    _sums.append(summed)
    try:
        yield
    finally:
        _sums.pop()


def load_balancing_loss(routings: Sequence[Routing]) -> Tensor:
    """E · Σ_e f_e P_e over the tokens of all layers together, shape (); A if all experts are used equally.

    f_e is the share of tokens sent to expert e, P_e the mean of its probability (Fedus et al. 2021, Switch
    Transformers, arXiv:2101.03961, equations 4 to 6). Gradients flow only through P_e. One loss for the tokens of all
    layers, as in transformers' ``load_balancing_loss_func``, instead of one per layer. In processes that train together
    f_e is of all their tokens, so that the token-weighted mean of their losses is that of one process.
    """
    E = routings[0].probabilities.shape[1]
    rows = sum(routing.probabilities.shape[0] for routing in routings)
    ids = torch.arange(E, device=routings[0].chosen.device)
    sent = torch.stack([(routing.chosen.unsqueeze(-1) == ids).sum((0, 1)) for routing in routings]).sum(0)  # (E,)
    probability = torch.stack([routing.probabilities.sum(0) for routing in routings]).sum(0)  # (E,)
    every = rows
    if _sums:
        *counts, total = _sums[-1](torch.cat([sent, sent.new_tensor([rows])])).unbind()
        sent, every = torch.stack(counts), int(total)
    return E / (rows * every) * (sent * probability).sum()


def arranged(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """Rows of x, each repeated A times, in another order: x (M / A, C) -> (M, C).

    Args:
        x: (M / A, C).
        order: (M,) int64, a permutation.
        inverse: (M,) int64, the inverse permutation: the gradient is gathered with it instead of scattered.
    """
    y: Tensor = _Arrangement.apply(x, order, inverse)  # type: ignore[no-untyped-call]
    return y


class _Arrangement(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.copies = order.shape[0] // x.shape[0]
        return x[order if ctx.copies == 1 else order // ctx.copies]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        gradient = gradient[ctx.saved_tensors[0]]
        return gradient if ctx.copies == 1 else gradient.view(-1, ctx.copies, gradient.shape[1]).sum(1), None, None
