"""The machine code of the kernels that work row by row, and of attention with dropout, for chips that are not here."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is there on Linux only")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from archbench.kernels.fused.launches import backward_launches, forward_launch
from archbench.kernels.fused.row_launches import (
    cross_entropy_launch,
    quantise_launch,
    residual_norm_gradient_launch,
    residual_norm_launch,
)
from archbench.kernels.launch import Launch
from archbench_kernelcheck.checking import check
from archbench_kernelcheck.chips import chip_named
from archbench_kernelcheck.compilation import pretended
from archbench_kernelcheck.figures import Figures, violations

pytestmark = [pytest.mark.machine_code, pytest.mark.slow]

SEED, DROPPED, N = 2**40, 6554, 4096


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def norms(C: int, low: torch.dtype) -> list[Launch]:
    x, out, total, grad_x = (empty(N, C) for _ in range(4))
    y, narrow, grad_y = (empty(N, C, dtype=low) for _ in range(3))
    gain, mean, deviation = empty(C), empty(N), empty(N)
    return [
        residual_norm_launch(
            x, y, gain, gain, out, narrow, total, mean, deviation, eps=1e-5, seed=SEED, dropped=DROPPED
        ),
        residual_norm_gradient_launch(
            out, narrow, total, mean, deviation, gain, grad_x, grad_y, empty(512, 3, C), seed=SEED, dropped=DROPPED
        ),
    ]


def attention(chip: str, D: int) -> list[Launch]:
    q, k, v, out, grad_out, grad_q, grad_k, grad_v = (
        empty(2, N, 12, D, dtype=torch.bfloat16).transpose(1, 2) for _ in range(8)
    )
    lse, delta = empty(2, 12, N), empty(2, 12, N)
    return [
        forward_launch(
            q, k, v, out, lse, window=None, scale=1.0, precision="ieee", chip=chip, seed=SEED, dropped=DROPPED
        ),
        *backward_launches(
            grad_out, q, k, v, out, lse, delta, grad_q, grad_k, grad_v,
            window=None, scale=1.0, precision="ieee", chip=chip, seed=SEED, dropped=DROPPED,
        ),
    ]  # fmt: skip


def loss(dtype: torch.dtype) -> Launch:
    logits = empty(N, 40_480, dtype=dtype)[:, :40_478]
    return cross_entropy_launch(logits, empty(N, dtype=torch.int64), empty(N), ignored=-100, trained=True)


@pytest.mark.parametrize("chip", ["sm_80", "sm_90"])
def test_nothing_spills_in_a_loop_and_only_the_last_logits_are_read_one_by_one(chip: str) -> None:
    with pretended(chip_named(chip)):
        launches = [*norms(768, torch.bfloat16), *norms(4096, torch.float32), loss(torch.float32)]
        launches += [*attention(chip, 64), *attention(chip, 128), loss(torch.bfloat16)]
        results = check([(chip_named(chip), launch) for launch in launches])
    assert all(isinstance(result, Figures) for result in results), results
    wrong = {result.launch: violations(result) for result in results if violations(result)}
    assert list(wrong) in ([], ["cross_entropy"]), wrong
    # Twice 16 elements of a thread, of 40,478 logits the last 3,614; and the target's.
    assert all("33 global loads" in found[0] and len(found) == 1 for found in wrong.values()), wrong


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_tile_in_float8_is_read_and_written_in_wide_pieces(dtype: torch.dtype) -> None:
    x, largest, scale = empty(N, 768, dtype=dtype), empty(), empty()
    launches = []
    for one in (torch.float8_e4m3fn, torch.float8_e5m2):
        values, transposed = empty(N, 768, dtype=one), empty(768, N, dtype=one)
        launches.append(quantise_launch(x, largest, scale, values, transposed, least=2.0**-60, top=2.0**7))
    with pretended(chip_named("sm_90")):
        results = check([(chip_named("sm_90"), launch) for launch in launches])
    assert all(isinstance(result, Figures) and not violations(result) for result in results), results
