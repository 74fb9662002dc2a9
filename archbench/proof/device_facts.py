"""The device itself: that it computes, exactly where that is claimed, how near to its data sheet, and alone."""

from __future__ import annotations

import torch

from archbench.measure.environment import contamination, snapshot
from archbench.measure.machine import describe
from archbench.measure.peaks import keep_bandwidth, measure_bandwidth, measure_gemm, published_peak
from archbench.presentation.quantities import quantity
from archbench.proof.statements import COMPUTES, Bench, Statements, judged, noted

EXACT = 1e-5
"""Relative error of a float32 product of 1,024 terms; TF32's 10 bits give 1e-3."""

NEAR = 0.6
"""Share of the published peak that the best product reaches at least."""


def facts(bench: Bench) -> Statements:
    """Versions, a product that must be right, exactness of float32, speeds of products and memory, other work."""
    device = str(bench.device)
    before = snapshot(device)
    for name, value in describe(device).items():
        if value is not None:
            shown = quantity(float(value), "B") if name.endswith("_bytes") else value
            yield noted(name.removesuffix("_bytes").replace("_", " "), shown, key="fact")
    x = torch.arange(6.0, device=bench.device).view(2, 3)
    found = (x @ x.T).tolist()
    expected = [[5.0, 14.0], [14.0, 50.0]]
    yield judged("it computes: a product of 2 × 3 numbers", found == expected, str(expected), found, COMPUTES)
    error = _product_error(bench.device)
    yield judged("float32 products keep float32's precision (no TF32)", error < EXACT, f"< {EXACT:.0e}", f"{error:.1e}")
    for dtype in (torch.float32, torch.bfloat16, *([torch.float16] if bench.gpu else [])):
        name = str(dtype).removeprefix("torch.")
        rate, peak = measure_gemm(device, dtype), published_peak(device, dtype)
        shown = quantity(rate, "FLOP/s")
        if peak is None or rate is None:
            yield noted(f"best matrix product, {name}", shown)
        else:
            bound = f"≥ {NEAR:.0%} of {quantity(peak, 'FLOP/s')}, its data sheet"
            yield judged(f"best matrix product, {name}", rate >= NEAR * peak, bound, shown)
    bandwidth = measure_bandwidth(device)
    keep_bandwidth(device, bandwidth)
    yield noted("memory bandwidth", quantity(bandwidth, "B/s"))
    reasons = contamination(before, snapshot(device))
    yield judged("nobody else uses it", not reasons, "no other work", "; ".join(reasons) or "none seen")


def _product_error(device: torch.device) -> float:
    """Of a float32 product, relative to float64's."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 1024, generator=generator).to(device) for _ in range(2))
    exact = a.double() @ b.double().T
    return float((a @ b.T - exact).norm() / exact.norm())
