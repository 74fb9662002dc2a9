"""The kernels that work row by row, run in an arena by the interpreter: everything that is wrong with one case."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from arenas import INPUT, OUTPUT, Arena
from examination import MEMORY, VALUES, Finding, run
from torch import Tensor

from archbench.kernels.dropout_bits import kept_scale, reference_keep
from archbench.kernels.float8_linear import LEAST, TOP, reference_quantise, scale_of

HALF = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}
SEED = 0x0123_4567_89AB_CDEF


@dataclass(frozen=True)
class NormCase:
    """One residual LayerNorm, forward and backward.

    Attributes:
        low: dtype of y and of the narrow output; float32 for no narrow output.
        wide: whether the float32 output has a gradient; the narrow one has, where there is one.
        programs: of the backward pass, which share the rows.
        spread: standard deviation of x and y; where it is small, eps counts.
    """

    N: int
    C: int
    low: torch.dtype
    dropped: int
    shifted: bool = True
    wide: bool = True
    programs: int = 1
    spread: float = 1.0

    def __str__(self) -> str:
        low = str(self.low).removeprefix("torch.")
        return (
            f"N{self.N}-C{self.C}-{low}-drop{self.dropped}"
            + "-bias" * self.shifted
            + "-wide" * self.wide
            + "-small" * (self.spread < 1)
        )


NORM_CASES = [
    NormCase(1, 16, torch.float32, 0),
    NormCase(5, 24, torch.bfloat16, 6554, programs=2),
    NormCase(7, 100, torch.float16, 32768, shifted=False, programs=3),
    NormCase(12, 130, torch.float32, 6554, programs=4),
    NormCase(10, 40, torch.bfloat16, 0, wide=False, programs=5),
    NormCase(4, 17, torch.bfloat16, 655, shifted=False),
    NormCase(4, 32, torch.float32, 0, spread=1e-3),
    NormCase(3, 768, torch.float16, 6554, wide=False, programs=3),
]

LOSS_CASES = [
    (rows, width, dtype, trained)
    for rows, width in [(1, 2), (5, 101), (4, 4096), (3, 5000)]
    for dtype, trained in [(torch.float32, True), (torch.bfloat16, True), (torch.float16, False)]
]

FLOAT8_CASES = [
    (M, K, dtype, float8)
    for M, K in [(1, 3), (64, 64), (100, 130), (37, 48)]
    for dtype, float8 in [(torch.float32, torch.float8_e4m3fn), (torch.bfloat16, torch.float8_e5m2)]
]


class Place:
    """Tensors in an arena, inputs with their values."""

    def __init__(self, size: int, guard: int) -> None:
        self.arena = Arena(size, guard)

    def given(self, values: Tensor) -> Tensor:
        view = self.arena.region(values.numel(), values.dtype).view(values.shape)
        self.arena.assign(view, INPUT).copy_(values)
        return view

    def output(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        view = self.arena.region(torch.Size(shape).numel(), dtype).view(shape)
        return self.arena.assign(view, OUTPUT)

    def judged(self, name: str, found: Tensor, wanted: Tensor) -> Iterator[Finding]:
        self.arena.take(name, found)
        yield from self.compared(name, found, wanted)

    def compared(self, name: str, found: Tensor, wanted: Tensor) -> Iterator[Finding]:
        largest = max(1.0, wanted.abs().max().item())
        allowed = largest * (HALF.get(found.dtype, 0.0) + 1e-5)
        error = (found.double() - wanted).abs().max().item()
        if not error <= allowed:
            yield Finding(VALUES, f"{name} is off by {error:.2e}, allowed are {allowed:.2e}")
        while self.arena.findings:
            yield Finding(MEMORY, self.arena.findings.pop(0))


def examine_norm(case: NormCase, kernels: Any) -> Iterator[Finding]:
    """Forward and backward by ``kernels``, the module of the launches or a mutant's; the definition is autograd's."""
    N, C, low = case.N, case.C, case.low
    random = torch.Generator().manual_seed(N * C)
    x, grad_out = (torch.randn(N, C, generator=random) for _ in range(2))
    y, grad_narrow = (torch.randn(N, C, generator=random).to(low) for _ in range(2))
    weight, bias = torch.rand(C, generator=random) + 0.5, torch.randn(C, generator=random)
    x, y = x * case.spread + (3 if case.spread == 1 else 0), y * case.spread  # a mean that is not zero

    exact = {n: t.double().requires_grad_() for n, t in {"x": x, "y": y, "weight": weight, "bias": bias}.items()}
    kept = torch.ones(N, C, dtype=torch.bool)
    if case.dropped:
        kept = reference_keep(SEED, 1, N, C, case.dropped, x.device)[0]
    total = exact["x"] + exact["y"] * kept * kept_scale(case.dropped)
    shift = exact["bias"] if case.shifted else None
    wanted = torch.nn.functional.layer_norm(total, (C,), exact["weight"], shift, 1e-5)
    halved = low != torch.float32
    upstream = torch.zeros(N, C, dtype=torch.float64)
    upstream += grad_out.double() if case.wide else 0
    upstream += grad_narrow.double() if halved else 0
    inputs = [exact["x"], exact["y"], exact["weight"], *([exact["bias"]] if case.shifted else [])]
    gradients = torch.autograd.grad(wanted, inputs, upstream) if case.wide or halved else ()

    place = Place(8 * 4 * (N + 2) * C + 3 * 4 * case.programs * C + 64 * 1024, 4 * 1024 + 4 * C)
    out, narrow = place.output(N, C), place.output(N, C, dtype=low) if halved else None
    kept_total, mean, deviation = place.output(N, C), place.output(N), place.output(N)
    here = {name: place.given(t) for name, t in {"x": x, "y": y, "weight": weight, "bias": bias}.items()}
    forward = kernels.residual_norm_launch(
        here["x"], here["y"], here["weight"], here["bias"] if case.shifted else None, out, narrow, kept_total, mean,
        deviation, eps=1e-5, seed=SEED, dropped=case.dropped,
    )  # fmt: skip
    run(place.arena, [forward])
    yield from place.judged("out", out, wanted.detach())
    if narrow is not None:
        yield from place.judged("narrow", narrow, wanted.detach())
    for name, found, value in (
        ("total", kept_total, total), ("mean", mean, total.mean(1)),
        ("deviation", deviation, (total.var(1, correction=0) + 1e-5).rsqrt()),
    ):  # fmt: skip
        yield from place.judged(name, found, value.detach())

    grad_x, grad_y = place.output(N, C), place.output(N, C, dtype=low)
    sums = place.output(case.programs, 3, C)
    backward = kernels.residual_norm_gradient_launch(
        place.given(grad_out) if case.wide else None, place.given(grad_narrow) if halved else None,
        kept_total, mean, deviation, here["weight"], grad_x, grad_y, sums, seed=SEED, dropped=case.dropped,
    )  # fmt: skip
    run(place.arena, [backward])
    yield from place.judged("grad_x", grad_x, gradients[0])
    yield from place.judged("grad_y", grad_y, gradients[1])
    place.arena.take("sums", sums)
    whole = sums.double().sum(0)
    yield from place.compared("the gradient of weight", whole[0].float(), gradients[2])
    if case.shifted:
        yield from place.compared("the gradient of bias", whole[1].float(), gradients[3])
    yield from place.compared("the column sums", whole[2].float(), gradients[1].sum(0))


def examine_loss(rows: int, width: int, dtype: torch.dtype, trained: bool, kernels: Any) -> Iterator[Finding]:
    """Losses, and the gradient that replaces the logits, which lie in rows of a wider matrix; one row is ignored."""
    random = torch.Generator().manual_seed(width)
    logits = (4 * torch.randn(rows, width, generator=random)).to(dtype)
    targets = torch.randint(width, (rows,), generator=random)
    logits[-1, -1] += 20  # the largest comes last
    logits[0, targets[0]] += 30  # its probability is near 1: the gradient must not be 1 - 1
    if rows > 3:
        targets[2] = -100
    exact = logits.double().requires_grad_()
    wanted = torch.nn.functional.cross_entropy(exact, targets, reduction="none")
    [gradient] = torch.autograd.grad(wanted.sum(), [exact])

    place = Place(rows * (width + 9) * 8 + 2**16, 4 * 4096 + 64)
    wide = place.arena.region(rows * (width + 9), dtype).view(rows, width + 9)
    here = place.arena.assign(wide[:, :width], OUTPUT)
    here.copy_(logits)
    losses = place.output(rows)
    launch = kernels.cross_entropy_launch(here, place.given(targets), losses, ignored=-100, trained=trained)
    run(place.arena, [launch])
    yield from place.judged("losses", losses, wanted.detach())
    if not trained:
        yield from place.compared("the logits", here.float(), logits.double())
        return
    yield from place.judged("the gradient", here, gradient)
    own = here[0, targets[0]].double() - gradient[0, targets[0]]
    if not abs(own) <= 0.02 * gradient[0, targets[0]].abs():
        yield Finding(VALUES, "the gradient of a near certain target is lost")


def examine_float8(M: int, K: int, dtype: torch.dtype, float8: torch.dtype, kernels: Any) -> Iterator[Finding]:
    """Both layouts, byte for byte; x is a part of wider rows, and spans more orders of magnitude than float8."""
    random = torch.Generator().manual_seed(M * K)
    x = torch.randn(M, K + 8, generator=random) * torch.randn(M, K + 8, generator=random).mul(5).exp()
    x = x.to(dtype)
    scale = scale_of(x[:, :K], float8)
    wanted = reference_quantise(x[:, :K], float8, scale)
    place = Place(32 * (M + 64) * (K + 64) + 64 * 1024, 16 * 1024)
    given, largest, found = place.given(x)[:, :K], place.given(x[:, :K].abs().max().float()), place.output(1)
    for most in (largest, None):  # the scale is found, then given
        values, transposed = (place.output(*one.shape, dtype=torch.uint8) for one in (wanted.values, wanted.transposed))
        written = found[0], values.view(float8), transposed.view(float8)
        run(place.arena, [kernels.quantise_launch(given, most, *written, least=LEAST, top=TOP[float8])])
        if most is not None:
            yield from place.judged("scale", found, scale.view(1))
        for name, ours, bits in (("values", values, wanted.values), ("transposed", transposed, wanted.transposed)):
            yield from place.judged(name, ours, bits.view(torch.uint8))
