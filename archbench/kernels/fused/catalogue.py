"""All launches of the table and of autotuning's persistent kernels, on tensors without memory, for the static check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor

from archbench.kernels.fused.configurations import PERSISTENT, family_of
from archbench.kernels.fused.launches import backward_launches, forward_launch
from archbench.kernels.launch import Launch

HEAD_WIDTHS: Mapping[torch.dtype, Sequence[int]] = {
    torch.bfloat16: (32, 48, 64, 80, 96, 112, 128, 192, 256),
    torch.float32: (64, 96, 256),
}
B, H, G, T, WINDOW = 2, 8, 2, 4096, 1024


def table_launches(
    chip: str, head_widths: Sequence[int] | None = None, dtypes: Sequence[torch.dtype] = tuple(HEAD_WIDTHS)
) -> list[Launch]:
    """Each kernel at each head width and dtype, with and without a window, as it is launched on ``chip``.

    Named as in ``forward bfloat16 D=128 windowed``.
    """
    launches = []
    for dtype in dtypes:
        for D in head_widths or HEAD_WIDTHS[dtype]:
            for window in (None, WINDOW):
                kind = f"{str(dtype).removeprefix('torch.')} D={D}{' windowed' if window else ''}"
                launches += [
                    Launch(f"{launch.name} {kind}", launch.kernel, launch.grid, launch.arguments, launch.options)
                    for launch in _launches(chip, D, dtype, window)
                    if launch.name != "delta" or window is None  # it does not depend on the window
                ]
    return launches


def persistent_launches(
    chip: str, head_widths: Sequence[int] | None = None, dtypes: Sequence[torch.dtype] = (torch.bfloat16,)
) -> list[Launch]:
    """The forward kernels that autotuning may choose besides, with and without a window."""
    launches = []
    for D, configurations in PERSISTENT.get(family_of(chip) or "", {}).items():
        if torch.bfloat16 not in dtypes or (head_widths is not None and D not in head_widths):
            continue
        q, out = (_positions_first(H, D, torch.bfloat16) for _ in range(2))
        k, v = (_positions_first(G, D, torch.bfloat16) for _ in range(2))
        lse = torch.empty(B, H, T, device="meta")
        for one, window in product(configurations, (None, WINDOW)):
            launch = forward_launch(
                q, k, v, out, lse, window=window, scale=D**-0.5, precision="ieee", chip=chip, configuration=one
            )
            kind = "forward specialized" if one.specialized else "forward persistent"
            launches.append(replace(launch, name=f"{kind} bfloat16 D={D}{' windowed' if window else ''}"))
    return launches


def _launches(chip: str, D: int, dtype: torch.dtype, window: int | None) -> list[Launch]:
    q, out, grad_out, grad_q = (_positions_first(H, D, dtype) for _ in range(4))
    k, v, grad_k, grad_v = (_positions_first(G, D, dtype) for _ in range(4))
    lse, delta = (torch.empty(B, H, T, device="meta") for _ in range(2))
    forward = forward_launch(q, k, v, out, lse, window=window, scale=D**-0.5, precision="ieee", chip=chip)
    backward = backward_launches(
        grad_out, q, k, v, out, lse, delta, grad_q, grad_k, grad_v,
        window=window, scale=D**-0.5, precision="ieee", chip=chip,
    )  # fmt: skip
    return [forward, *backward]


def _positions_first(heads: int, D: int, dtype: torch.dtype) -> Tensor:
    """(B, heads, T, D) as in a model: a view of (B, T, heads, D)."""
    return torch.empty(B, T, heads, D, dtype=dtype, device="meta").transpose(1, 2)
