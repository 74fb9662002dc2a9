"""The cases of the kernel benchmark: their sizes, inputs, FLOPs, exact results and candidates.

FLOPs of attention count visible (query, key) pairs only, so a causal square counts as half: forward is two products,
4 D FLOPs a pair and query head, backward five, 2.5 times as many, for every backend (Dao 2023,
FlashAttention-2, arXiv:2307.08691, section 4.1). A loss counts 2 N C V forward and twice that backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from archbench.config import BackendName, KernelConfig
from archbench.kernels.attention import causal_attention
from archbench.kernels.linear_cross_entropy import linear_cross_entropy

DEFAULTS: dict[str, dict[str, Any]] = {
    "cpu": {
        "lengths": (128, 512, 2048),
        "query_heads": 12,
        "groups": (1, 3),
        "batch_size": 1,
        "losses": ((1024, 768, 40_478),),
        "repeats": 10,
        "warmup": 3,
        "dtype": "float32",
    },
    "cuda": {
        "backends": ("triton", "sdpa-cudnn", "sdpa-flash", "sdpa-efficient", "flex"),
        "lengths": (512, 1024, 2048, 4096, 8192, 16_384),
        "head_widths": (64, 128),
        "groups": (1, 4),
        "windows": (None, 1024),
        "losses": ((4096, 768, 40_478), (16_384, 2048, 131_072)),
        "repeats": 30,
        "warmup": 10,
        "dtype": "bfloat16",
    },
}
"""What is measured by default: a minute on two cores, and the sizes of a model on a GPU."""

_BLOCK = 2**25
"""Elements in one block of the exact computation: a quarter of a gigabyte in float64."""


@dataclass(frozen=True)
class Exact:
    """What a case's output and gradients are in float64."""

    output: Tensor
    gradients: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Candidate:
    """One implementation in one case.

    Attributes:
        name: what the table calls it.
        columns: what distinguishes its rows from the other candidates'.
        inputs: the leaves that its gradients are of.
        upstream: gradient of the output; None for a loss.
        run: the inputs, or copies of them -> the output.
    """

    name: str
    columns: dict[str, Any]
    inputs: tuple[Tensor, ...]
    upstream: Tensor | None
    run: Callable[..., Tensor]


@dataclass(frozen=True)
class AttentionCase:
    """Causal self-attention of T positions: q (B, H, T, D), k and v (B, G, T, D), window W or None."""

    speeds_apart: ClassVar[bool] = True
    """Whether forward and backward each do the work that their FLOPs count, and so have a speed each."""

    B: int
    H: int
    G: int
    T: int
    D: int
    W: int | None
    backends: tuple[BackendName, ...]

    def __str__(self) -> str:
        window = "" if self.W is None else f" W {self.W}"
        return f"attention B {self.B} T {self.T} H {self.H} G {self.G} D {self.D}{window}"

    @property
    def columns(self) -> dict[str, Any]:
        """The row's columns that name the case."""
        return {
            "operation": "causal_attention",
            "batch_size": self.B,
            "context_length": self.T,
            "query_heads": self.H,
            "kv_heads": self.G,
            "head_width": self.D,
            "window": self.W,
        }

    def least_bytes(self, itemsize: int) -> int:
        """Of inputs, output's gradient, and gradients of the inputs."""
        return itemsize * self.B * self.T * self.D * (3 * self.H + 4 * self.G)

    @property
    def pairs(self) -> int:
        """Visible (query, key) pairs of one head: position i sees min(i + 1, W) of them."""
        W = min(self.W or self.T, self.T)
        return W * (W + 1) // 2 + (self.T - W) * W

    @property
    def flops(self) -> tuple[int, int]:
        """FLOPs of forward and backward."""
        forward = 4 * self.B * self.H * self.D * self.pairs
        return forward, forward * 5 // 2

    def candidates(
        self, seed: int, device: torch.device, dtype: torch.dtype
    ) -> tuple[list[Candidate], Callable[[], Exact]]:
        """All candidates, on the same inputs, and a function that computes the exact result."""
        normal = partial(_normal, torch.Generator().manual_seed(seed), device, dtype)
        q, upstream = normal(self.B, self.H, self.T, self.D), normal(self.B, self.H, self.T, self.D)
        k, v = normal(self.B, self.G, self.T, self.D), normal(self.B, self.G, self.T, self.D)
        exact = cache(partial(exact_attention, q, k, v, upstream, self.W))
        inputs = tuple(tensor.requires_grad_() for tensor in (q, k, v))
        return [
            Candidate(
                backend,
                {"attention": backend},
                inputs,
                upstream,
                partial(causal_attention, window=self.W, backend=backend),
            )
            for backend in self.backends
        ], exact


@dataclass(frozen=True)
class LossCase:
    """The mean loss of N positions from hidden states (N, C) and the head's weight (V, C)."""

    speeds_apart: ClassVar[bool] = False  # the chunked loss computes gradients in the forward pass

    N: int
    C: int
    V: int

    def __str__(self) -> str:
        return f"loss N {self.N} C {self.C} V {self.V}"

    @property
    def columns(self) -> dict[str, Any]:
        return {"batch_size": 1, "context_length": self.N, "model_width": self.C, "vocab_size": self.V}

    def least_bytes(self, itemsize: int) -> int:
        """Of hidden states, weight, and their gradients."""
        return itemsize * 2 * (self.N + self.V) * self.C

    @property
    def flops(self) -> tuple[int, int]:
        forward = 2 * self.N * self.C * self.V
        return forward, 2 * forward

    def candidates(
        self, seed: int, device: torch.device, dtype: torch.dtype
    ) -> tuple[list[Candidate], Callable[[], Exact]]:
        generator = torch.Generator().manual_seed(seed)
        hidden = _normal(generator, device, dtype, self.N, self.C)
        weight = _normal(generator, device, dtype, self.V, self.C) * self.C**-0.5  # logits of variance 1
        targets = torch.randint(self.V, (self.N,), generator=generator).to(device)
        exact = cache(partial(exact_loss, hidden, weight, targets))
        inputs = (hidden.requires_grad_(), weight.requires_grad_())
        losses = {"linear_cross_entropy": linear_cross_entropy, "cross_entropy": cross_entropy_of_all_logits}
        return [
            Candidate(name, {"operation": name}, inputs, None, partial(loss, targets=targets))
            for name, loss in losses.items()
        ], exact


Case = AttentionCase | LossCase
"""One size at which the candidates alternate."""


def cases(config: KernelConfig) -> Iterator[Case]:
    """Every case, short ones first, so that a mistake shows early."""
    if "attention" in config.operations:
        for T, D, group, W in product(config.lengths, config.head_widths, config.groups, config.windows):
            H = config.heads(D)
            yield AttentionCase(config.batch(T), H, H // group, T, D, W, config.backends)
    if "loss" in config.operations:
        for N, C, V in config.losses:
            yield LossCase(N, C, V)


def cross_entropy_of_all_logits(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """What :func:`linear_cross_entropy` replaces; holds all (N, V) logits."""
    return F.cross_entropy(hidden @ weight.T, targets)


def exact_attention(q: Tensor, k: Tensor, v: Tensor, upstream: Tensor, window: int | None) -> Exact:
    """Causal attention and its gradients from the definition, in float64, a block of queries at a time.

    Args:
        q: (B, H, T, D).
        k, v: (B, G, T, D).
        upstream: gradient of the output, (B, H, T, D).
        window: W, or None.
    """
    B, H, T, D = q.shape
    G = k.shape[1]
    q, upstream = (x.detach().view(B, G, H // G, T, D) for x in (q, upstream))
    k, v = (x.detach().view(B, G, 1, T, D) for x in (k, v))
    output = torch.empty(q.shape, dtype=torch.float64, device=q.device)
    dq, dk, dv = (torch.zeros(x.shape, dtype=torch.float64, device=q.device) for x in (q, k, v))
    block = max(1, _BLOCK // (B * H * T))
    for begin in range(0, T, block):
        end = min(begin + block, T)
        first = 0 if window is None else max(0, begin - window + 1)  # the earliest position that any of them sees
        queries = q[..., begin:end, :].double().requires_grad_()
        keys, values = (x[..., first:end, :].double().requires_grad_() for x in (k, v))
        positions = torch.arange(first, end, device=q.device)
        distance = positions[begin - first :, None] - positions
        hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)  # (queries, keys)
        with torch.enable_grad():
            scores = (queries @ keys.transpose(-1, -2) * D**-0.5).masked_fill(hidden, -torch.inf)
            attended = scores.softmax(dim=-1) @ values
        output[..., begin:end, :] = attended.detach()
        for total, part, gradient in zip(
            (dq, dk, dv),
            (slice(begin, end), slice(first, end), slice(first, end)),
            torch.autograd.grad(attended, (queries, keys, values), upstream[..., begin:end, :].double()),
            strict=True,
        ):
            total[..., part, :] += gradient
    return Exact(output.view(B, H, T, D), (dq.view(B, H, T, D), *(x.view(B, G, T, D) for x in (dk, dv))))


def exact_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Exact:
    """The mean cross-entropy and its gradients from the definition, in float64, a block of positions at a time.

    Args:
        hidden: (N, C).
        weight: (V, C).
        targets: (N,) int64.
    """
    N, V = len(hidden), len(weight)
    wide = weight.detach().double().requires_grad_()
    loss = torch.zeros((), dtype=torch.float64, device=hidden.device)
    dhidden, dweight = [], torch.zeros_like(wide, requires_grad=False)
    block = max(1, _BLOCK // V)
    for begin in range(0, N, block):
        rows = hidden.detach()[begin : begin + block].double().requires_grad_()
        with torch.enable_grad():
            share = F.cross_entropy(rows @ wide.T, targets[begin : begin + block], reduction="sum") / N
        drows, addition = torch.autograd.grad(share, (rows, wide))
        loss += share.detach()
        dhidden.append(drows)
        dweight += addition
    return Exact(loss, (torch.cat(dhidden), dweight))


def _normal(generator: torch.Generator, device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    """Drawn on the CPU, so that a seed means the same inputs on every device."""
    return torch.randn(shape, generator=generator).to(device=device, dtype=dtype)
