"""The fused attention kernel against the definition in float64: values, gradients, bits, on the chip itself.

An error is allowed to be twice that of the definition computed in the same dtype by torch, plus one rounding of it, as
FlashAttention's own tests have it (Dao et al. 2022, arXiv:2205.14135).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from archbench.kernels import causal_attention, why_not
from archbench.proof.statements import Bench, Statement, Statements, judged, not_run

WIDTHS = (16, 32, 40, 64, 80, 96, 128, 256)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HEADS = ((4, 4), (6, 2), (8, 1))
"""H and G."""
LENGTHS = ((128, 128), (1000, 1000), (65, 200), (1, 513), (333, 1024), (2048, 2048))
"""T and S."""
WINDOWS = (None, 1, 37, 256)


@dataclass(frozen=True)
class Size:
    """Of one call."""

    T: int
    S: int
    D: int
    H: int
    G: int
    window: int | None
    dtype: torch.dtype

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        window = "" if self.window is None else f" W {self.window}"
        return f"T {self.T} S {self.S} D {self.D} H {self.H} G {self.G}{window} {name}"


def sizes(dtype: torch.dtype) -> list[Size]:
    """48 calls of one dtype, in which each value of a factor meets each of every other factor."""
    return [
        Size(T, S, D, *HEADS[(i + j) % len(HEADS)], WINDOWS[(i + j) % len(WINDOWS)], dtype)
        for i, (T, S) in enumerate(LENGTHS)
        for j, D in enumerate(WIDTHS)
    ]


def matrix(bench: Bench) -> Statements:
    """For each dtype: values and gradients, and bits that repeat; layouts that forbid descriptors."""
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        reason = why_not("triton", bench.device.type, dtype, 64, device_index=bench.device.index, gradients=True)
        if reason is not None:
            yield not_run(f"the kernel, {name}", reason)
            continue
        cases = sizes(dtype)
        for label, some in (("T = S", [c for c in cases if c.T == c.S]), ("T < S", [c for c in cases if c.T < c.S])):
            values, gradients = zip(*(_excess(bench.device, case) for case in some), strict=True)
            for what, found in (("values", values), ("gradients", gradients)):
                worst = max(range(len(some)), key=found.__getitem__)
                shown = f"{found[worst]:.2f}, at {some[worst]}"
                yield judged(
                    f"{what}, {name}, {label}: {len(some)} sizes",
                    found[worst] <= 1.0,
                    "≤ 1 of the allowed error",
                    shown,
                )
        yield _repeats(bench.device, cases[-6:], name)
        yield _pointers(bench.device, dtype, name)


def _inputs(device: torch.device, case: Size, *, gap: int = 0) -> list[Tensor]:
    """q, k, v and the gradient of the output; with a ``gap`` their rows lie that many elements apart."""
    generator = torch.Generator().manual_seed(case.T * case.D + case.S)
    shapes = ((case.H, case.T), (case.G, case.S), (case.G, case.S), (case.H, case.T))
    drawn = (torch.randn(2, heads, length, case.D + gap, generator=generator) for heads, length in shapes)
    return [tensor.to(device, case.dtype)[..., : case.D] for tensor in drawn]


def _run(inputs: Sequence[Tensor], case: Size, backend: str, dtype: torch.dtype | None = None) -> list[Tensor]:
    """Output and the three gradients."""
    q, k, v, upstream = (tensor.detach().to(dtype or tensor.dtype) for tensor in inputs)
    leaves = [tensor.requires_grad_() for tensor in (q, k, v)]
    out = causal_attention(*leaves, window=case.window, backend=backend)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]


def _excess(device: torch.device, case: Size) -> tuple[float, float]:
    """Largest error over the allowed one: of the output, and of the worst gradient."""
    inputs = _inputs(device, case)
    exact = _run(inputs, case, "reference", torch.float64)
    ours, plain = _run(inputs, case, "triton"), _run(inputs, case, "reference")
    eps = torch.finfo(case.dtype).eps
    ratios = []
    for found, usual, true in zip(ours, plain, exact, strict=True):
        allowed = 2 * float((usual - true).abs().max()) + eps * float(true.abs().max())
        error = float((found - true).abs().max())
        ratios.append(error / allowed if allowed and error == error else float("inf"))
    return ratios[0], max(ratios[1:])


def _repeats(device: torch.device, cases: Sequence[Size], name: str) -> Statement:
    differing = [str(case) for case in cases if not _same(device, case)]
    found = "all" if not differing else f"not {differing[0]}"
    return judged(f"two runs agree bit for bit, {name}: {len(cases)} sizes", not differing, "all", found)


def _same(device: torch.device, case: Size) -> bool:
    inputs = _inputs(device, case)
    first, second = _run(inputs, case, "triton"), _run(inputs, case, "triton")
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def _pointers(device: torch.device, dtype: torch.dtype, name: str) -> Statement:
    """Rows a multiple of 16 bytes apart can be described to the copy engine; one element further apart they cannot.

    Each may have blocks of its own. In float32 sums of S terms in another order differ by some √S roundings; in 16
    bits by a few, of weights that were rounded against another maximum, and of the result.
    """
    case = Size(512, 512, 64, 4, 2, None, dtype)
    described = _run(_inputs(device, case, gap=64), case, "triton")
    packed = [tensor.contiguous() for tensor in _inputs(device, case, gap=64)]
    apart = [torch.nn.functional.pad(tensor, (0, 1))[..., :64] for tensor in packed]
    loaded = _run(apart, case, "triton")
    bound = torch.finfo(dtype).eps * (math.sqrt(case.S) if dtype == torch.float32 else 4)
    away = [float((one - other).abs().max()) for one, other in zip(described, loaded, strict=True)]
    error = max(away) / max(1e-30, *(float(other.abs().max()) for other in loaded))
    return judged(f"descriptors and pointers agree, {name}", error <= bound, f"≤ {bound:.0e}", f"{error:.0e}")
