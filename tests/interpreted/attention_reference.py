"""What the kernels are compared with: attention as its definition says, in float64 and in the case's own dtype."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from attention_cases import Case
from torch import Tensor

from archbench.kernels.dropout_bits import kept_scale, reference_keep

LOG2E = math.log2(math.e)
GRADIENTS = ("grad_q", "grad_k", "grad_v")

FLOOR = 8 * torch.finfo(torch.float32).eps
"""Times one more than the largest logit, in powers of two: a weight 2^(logit − lse) is as inexact as the float32 logit,
whose error grows with its size. Twice the worst seen, 3.7 (the lse where a logit is the sum of 256 products; gradients
need 0.6), because another BLAS or numpy sums in another order."""


@dataclass(frozen=True)
class Expected:
    """The inputs of a case, what should come out, and how far off that may be.

    Attributes:
        inputs: q, k, v and grad_out by name, in the case's dtype, contiguous.
        values: out, lse (in powers of two), grad_q, grad_k and grad_v by name, float64.
        bounds: the largest error allowed, by the same names.
    """

    inputs: Mapping[str, Tensor]
    values: Mapping[str, Tensor]
    bounds: Mapping[str, float]


SEED = 0x0123_4567_89AB_CDEF


def mask_of(case: Case) -> Tensor | float:
    """What dropout multiplies the weights (B, H, T, S) with, by the counters of their places among S × S."""
    if not case.dropped:
        return 1.0
    kept = reference_keep(SEED, case.B * case.H, case.S, case.S, case.dropped, torch.device("cpu"))
    return kept[:, case.S - case.T :].view(case.B, case.H, case.T, case.S) * kept_scale(case.dropped)


def attend(
    q: Tensor, k: Tensor, v: Tensor, window: int | None, scale: float, mask: Tensor | float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention in the inputs' dtype by plain PyTorch: out, the weights and the logits (B, H, T, S)."""
    T, S = q.shape[2], k.shape[2]
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    behind = torch.arange(S - T, S)[:, None] - torch.arange(S)  # (T, S): how far a key lies before a query
    hidden = (behind < 0) | (behind >= (S if window is None else window))
    logits = (q @ k.mT * scale).masked_fill(hidden, -math.inf)
    weights = (logits.softmax(-1) * mask).to(v.dtype)
    return weights @ v, weights, logits


def results(inputs: Mapping[str, Tensor], case: Case) -> dict[str, Tensor]:
    """out and the gradients by name."""
    q, k, v = (inputs[name].detach().requires_grad_() for name in "qkv")
    out = attend(q, k, v, case.window, case.scale, mask_of(case))[0]
    gradients = torch.autograd.grad(out, (q, k, v), inputs["grad_out"])
    return {"out": out.detach(), **dict(zip(GRADIENTS, gradients, strict=True))}


def magnitudes(inputs: Mapping[str, Tensor], weights: Tensor, case: Case) -> dict[str, float]:
    """How large each result would be if nothing in its sums cancelled: what float32's rounding is relative to."""
    q, k, v, grad_out = (inputs[name].abs() for name in ("q", "k", "v", "grad_out"))
    k, v = (x.repeat_interleave(case.H // case.G, 1) for x in (k, v))
    out = weights @ v
    delta = (out * grad_out).sum(-1, keepdim=True)
    grad_logits = weights * (grad_out @ v.mT + delta) * case.scale
    by_group = (case.B, case.G, case.H // case.G, case.S, case.D)
    return {
        "out": out.max().item(),
        "lse": 1.0,
        "grad_q": (grad_logits @ k).max().item(),
        "grad_k": (grad_logits.mT @ q).view(by_group).sum(2).max().item(),
        "grad_v": (weights.mT @ grad_out).view(by_group).sum(2).max().item(),
    }


@cache
def expected(case: Case) -> Expected:
    """Error at most twice (values) or three times (gradients) that of plain PyTorch in the same dtype, plus the floor.

    The log-sum-exp is float32 whatever the dtype, and has the floor alone.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(str(case).encode()))
    rows = {"q": (case.H, case.T), "k": (case.G, case.S), "v": (case.G, case.S), "grad_out": (case.H, case.T)}
    inputs = {name: torch.randn(case.B, *shape, case.D, generator=generator) for name, shape in rows.items()}
    inputs["q"] *= case.gain
    if case.upstream == "expanded":
        inputs["grad_out"] = inputs["grad_out"][:, :1, :1].expand(inputs["grad_out"].shape)
    inputs = {name: tensor.to(case.dtype) for name, tensor in inputs.items()}
    exact_inputs = {name: tensor.double() for name, tensor in inputs.items()}

    exact, plain = results(exact_inputs, case), results(inputs, case)
    _, weights, logits = attend(*(exact_inputs[name] for name in "qkv"), case.window, case.scale, mask_of(case))
    largest = logits[logits.isfinite()].abs().max().item() * LOG2E
    floors = {
        name: FLOOR * (1 + largest) * magnitude for name, magnitude in magnitudes(exact_inputs, weights, case).items()
    }
    bounds = {"lse": floors["lse"]}
    for name, times in {"out": 2, **dict.fromkeys(GRADIENTS, 3)}.items():
        error = (plain[name].double() - exact[name]).abs().max().item()
        assert math.isfinite(error), "plain PyTorch leaves the dtype's range: the case says nothing"
        bounds[name] = times * error + floors[name]
    return Expected(inputs, {**exact, "lse": logits.logsumexp(-1) * LOG2E}, bounds)
