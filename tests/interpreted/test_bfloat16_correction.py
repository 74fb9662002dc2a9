"""Sentinels: bfloat16 is calculated rightly in this run, and would not be without the correction."""

from __future__ import annotations

import math
from unittest.mock import patch

import pytest
import torch
import triton
import triton.language as tl
from interpreter_corrections import UNCORRECTED
from torch import Tensor
from triton.runtime.errors import InterpreterError
from triton.runtime.interpreter import InterpreterBuilder

pytestmark = pytest.mark.matrix

SIZE = 16


@triton.jit
def dot_kernel(left, right, out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    tl.store(out + at, tl.dot(tl.load(left + at), tl.load(right + at)))


@triton.jit
def cast_kernel(source, out, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    tl.store(out + at, tl.load(source + at).to(out.dtype.element_ty))


@triton.jit
def sum_kernel(source, out, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    tl.store(out + at, tl.load(source + at) + tl.load(source + at))


def dot(left: Tensor, right: Tensor) -> Tensor:
    out = torch.empty(SIZE, SIZE)
    dot_kernel[(1,)](left, right, out, SIZE=SIZE)
    return out


def cast(source: Tensor, dtype: torch.dtype) -> Tensor:
    out = torch.empty(source.shape, dtype=dtype)
    cast_kernel[(1,)](source, out, COUNT=source.numel())
    return out


def matrices() -> tuple[Tensor, Tensor]:
    """Small whole numbers, whose products and sums are exact in any order."""
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randint(-8, 9, (2, SIZE, SIZE), generator=generator).bfloat16()
    return left, right


def hard_to_round() -> Tensor:
    """float32 around the ties of bfloat16, at each exponent's end, the smallest, the largest, and no numbers."""
    tie = 2**-8
    ties = [sign * (1 + k * tie + off) for sign in (1, -1) for k in range(256) for off in (-(2**-20), 0, 2**-20)]
    limits = [0.0, -0.0, 1e-45, 1e-40, 3.3e38, 3.4e38, math.inf, -math.inf]
    values = torch.tensor([*ties, *limits], dtype=torch.float32)
    return torch.cat([values, torch.randn(2048 - len(values), generator=torch.Generator().manual_seed(0)) * 1e3])


def test_a_dot_multiplies_values() -> None:
    left, right = matrices()
    assert torch.equal(dot(left, right), left.float() @ right.float())


def test_a_cast_rounds_to_nearest_even_and_back_is_exact() -> None:
    values = hard_to_round()
    rounded = cast(values, torch.bfloat16)
    assert torch.equal(rounded.view(torch.int16), values.bfloat16().view(torch.int16))
    assert torch.equal(cast(rounded, torch.float32), values.bfloat16().float())
    assert torch.equal(cast(values.half(), torch.bfloat16), values.half().bfloat16())


def test_not_a_number_stays_one() -> None:
    patterns = torch.tensor([0x7F800001, 0x7FFFFFFF, -1, -0x7FFFFF], dtype=torch.int32)
    assert cast(patterns.view(torch.float32), torch.bfloat16).isnan().all()


def test_arithmetic_on_patterns_is_refused() -> None:
    with pytest.raises(InterpreterError, match="add on bfloat16"):
        sum_kernel[(1,)](torch.ones(16).bfloat16(), torch.empty(16).bfloat16(), COUNT=16)


def test_without_the_correction_triton_is_wrong() -> None:
    """When this fails, this release of Triton needs no correction, or another one."""
    left, right = matrices()
    values = hard_to_round()
    with patch.multiple(InterpreterBuilder, **UNCORRECTED):
        assert not torch.equal(dot(left, right), left.float() @ right.float())
        assert not torch.equal(cast(values, torch.bfloat16).view(torch.int16), values.bfloat16().view(torch.int16))
