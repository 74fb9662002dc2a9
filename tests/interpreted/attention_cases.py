"""The matrix: which shapes, layouts, numbers and blocks the interpreted kernels are tried with, every pair of them.

All combinations would be some sixteen million; nearly every defect shows with one factor or a pair of them (Kuhn,
Wallace and Gallo 2004, doi:10.1109/TSE.2004.24).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace

import torch
from allpairspy import AllPairs

from archbench.kernels.fused.configurations import Configuration

BLOCKS = {
    "16x16": Configuration(16, 16, 4, 1),
    "32x16": Configuration(32, 16, 4, 1),
    "16x32": Configuration(16, 32, 4, 1),
    "32x32tma": Configuration(32, 32, 4, 1, tma=True),
    "16x64tma": Configuration(16, 64, 4, 1, tma=True),
    "sm_80": None,
    "sm_90": None,
}
PERSISTENT = {
    "16x16x3": Configuration(16, 16, 4, 1, programs=1),
    "32x16tmax3": Configuration(32, 16, 4, 1, tma=True, programs=1),
    "16x32specialized": Configuration(16, 32, 4, 1, tma=True, programs=1, specialized=True),
}
"""As :data:`BLOCKS`, but three programs share all blocks. Outside the pairs, in cases of their own."""
"""Small blocks, so that each phase has several of them at these lengths; and what the table says for two chips."""

FACTORS = OrderedDict(
    width=[64, 96, 16, 80, 32, 128, 256, 40],
    blocks=list(BLOCKS),
    queries=[100, 65, 200, 130, 7, 1],
    window=["none", "37", "T-1", "16", "T", "1", "S+5"],
    heads=[(2, 2), (4, 2), (3, 1), (6, 2), (8, 2), (5, 1)],  # H/G = 1, 2, 3 = H, 3, 4, 5 = H
    prefix=[0, 33, 130, 1],
    layout=["gapped", "contiguous", "transposed", "packed"],
    section=["table", 3, 1, 2],
    numbers=[(dtype, gain) for gain in (1, 60) for dtype in (torch.float32, torch.bfloat16, torch.float16)],
    upstream=["expanded", "transposed", "contiguous"],
)
"""``prefix`` is S − T. Width 40 has a second tile that is half padding; ``upstream`` is how the gradient of the output
lies; ``section`` is how many heads a section of the schedule has, mostly no divisor of their number."""


@dataclass(frozen=True)
class Case:
    """One call of the forward and backward kernels.

    Attributes:
        window: W, or None.
        gain: what the queries, and so the logits, are multiplied with.
        section: heads a section, or None for what the launch itself says.
        dropped: of 65,536 weights, how many are dropped.
        cost: roughly, how many blocks of scores are calculated.
    """

    B: int
    H: int
    G: int
    T: int
    S: int
    D: int
    window: int | None
    dtype: torch.dtype
    layout: str
    upstream: str
    gain: int
    blocks: str
    section: int | None
    dropped: int = 0

    @property
    def scale(self) -> float:
        return self.D**-0.5

    @property
    def chip(self) -> str:
        return self.blocks if self.configuration is None else "sm_80"

    @property
    def configuration(self) -> Configuration | None:
        return (BLOCKS | PERSISTENT)[self.blocks]

    @property
    def tma(self) -> bool:
        """Whether tensor descriptors are asked for, and the width allows them."""
        return self.configuration is not None and self.configuration.tma and self.D.bit_count() == 1

    @property
    def cost(self) -> float:
        blocks = self.configuration or Configuration(64, 32, 4, 1)
        keys = (self.S + self.T) / 2 if self.window is None else min(self.window, self.S) + blocks.block_t
        return self.B * self.H * (1 + self.T / blocks.block_t) * (2 + keys / blocks.block_s)

    def __str__(self) -> str:
        parts = [
            f"T{self.T}-S{self.S}-D{self.D}-B{self.B}-H{self.H}-G{self.G}-W{self.window}",
            self.layout, self.upstream, f"x{self.gain}", str(self.dtype).removeprefix("torch."), self.blocks,
        ]  # fmt: skip
        if self.dropped:
            parts.append(f"drop{self.dropped}")
        return "-".join(parts) + ("" if self.section is None else f"-section{self.section}")


def case_of(
    width: int, blocks: str, queries: int, window: str, heads: tuple[int, int], prefix: int, layout: str,
    section: int | str, numbers: tuple[torch.dtype, int], upstream: str,
) -> Case:  # fmt: skip
    """The case that these values of the factors describe."""
    S = queries + prefix
    windows = {"none": None, "T-1": max(1, queries - 1), "T": queries, "S+5": S + 5}
    H, G = heads
    dtype, gain = numbers
    return Case(
        B=2 if H < 5 and queries < 200 else 1, H=H, G=G, T=queries, S=S, D=width,
        window=windows[window] if window in windows else int(window),
        dtype=dtype, layout=layout, upstream=upstream, gain=gain, blocks=blocks,
        section=None if section == "table" else int(section),
    )  # fmt: skip


ROWS = [tuple(row) for row in AllPairs(FACTORS)]
CASES = [case_of(*row) for row in ROWS]
"""In the order of the sampling, the same in every run."""

DROPOUT_CASES = [
    replace(case, dropped=dropped)
    for number, case in enumerate(sorted(CASES, key=lambda case: case.cost)[4:44:3])
    for dropped in [(6554, 32768, 655)[number % 3]]
]
"""Some of them, cheap ones, with dropout."""

PERSISTENT_CASES = [
    replace(case, blocks=[*PERSISTENT][number % 3], D=min(128, 1 << (case.D.bit_length() - 1)))
    for number, case in enumerate([case for case in sorted(CASES, key=lambda case: case.cost) if case.T >= 65][2:38:3])
]
"""Some cheap ones of several blocks, whose heads are one tile: what persistent kernels are for."""
