"""The kernel benchmark at a few sizes, and whether ``auto`` picks what is fastest here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from archbench.config import KernelConfig
from archbench.kernels import resolve_attention
from archbench.proof.statements import Bench, Statement, Statements, judged, noted
from archbench.results.reading import read_results
from archbench.runs.kernel_cases import DEFAULTS
from archbench.runs.kernel_run import measure_kernels

if TYPE_CHECKING:
    import pandas as pd

SLOWER = 1.05
"""Times the fastest, that the automatic choice may take."""

PUBLISHED = {
    64: "forward: FlashAttention-2 299, Triton's tutorial 376, cuDNN 388",
    128: "forward: FlashAttention-2 335, Triton's tutorial 378, cuDNN 539",
}
"""At T 16,384 on an H100, causal; the source is that of :mod:`archbench.kernels.attention_rules`."""


def kernels(bench: Bench) -> Statements:
    """Attention of two widths and three lengths by every backend, and the loss; rows go to the folder."""
    sizes = {"lengths": (512, 2048, 16_384), "groups": (1,), "windows": (None,), "repeats": 15}
    config = KernelConfig(**{**DEFAULTS["cuda"], **sizes, "device": str(bench.device), "out": str(bench.out)})
    run = measure_kernels(config, quiet=True)
    rows = read_results(run.path)
    yield from _attention(rows[rows.operation == "causal_attention"], bench)
    for one in run.left_out:
        yield noted(f"left out: {one['case']}, {one['candidate']}", one["reason"])


def _attention(rows: pd.DataFrame, bench: Bench) -> Iterator[Statement]:
    keys = ["context_length", "head_width"]
    for _, case in rows.groupby(keys):
        T, D = (int(size) for size in case.iloc[0][keys])
        speeds = case[case.metric.str.endswith("flops_per_second")].groupby(["metric", "attention"]).value.median()
        for metric in sorted(set(case.metric) & set(speeds.index.get_level_values(0))):
            shown = ", ".join(f"{name} {value / 1e12:.0f}" for name, value in speeds[metric].items())
            yield noted(f"T {T}, D {D}: TFLOP/s, {metric}", shown, PUBLISHED.get(D, "") if T == 16_384 else "")
        passes = case[case.metric.isin(("forward_seconds", "backward_seconds"))]
        both = passes.groupby(["attention", "metric"]).value.median().unstack().dropna().sum(axis=1)
        if not len(both):
            continue
        automatic = resolve_attention(
            "auto", device_type="cuda", device_index=bench.device.index, dtype=torch.bfloat16,
            T=T, S=T, D=D, gradients=True,
        )  # fmt: skip
        times = both.get(automatic, float("nan")) / both.min()
        shown = f"{times:.2f} × {both.idxmin()}'s"
        what = f"T {T}, D {D}: auto takes {automatic} for training, forward and backward together"
        yield judged(what, times <= SLOWER, f"≤ {SLOWER} × the fastest", shown)
