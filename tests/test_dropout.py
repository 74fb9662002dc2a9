"""fast_dropout is dropout: right rate, exact mean, one mask for values and gradients, repeatable."""

from __future__ import annotations

import math

import pytest
import torch

from archbench.kernels import fast_dropout
from archbench.kernels.dropout import LEVELS, random_int16


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 3 / LEVELS])
def test_elements_are_dropped_at_the_rounded_rate_and_the_mean_is_kept(p: float) -> None:
    torch.manual_seed(0)
    n = 4_000_000
    kept = fast_dropout(torch.ones(n), p, training=True)
    rate = round(p * LEVELS) / LEVELS
    assert abs(rate - p) <= 0.5 / LEVELS
    dropped = (kept == 0).double().mean().item()
    assert abs(dropped - rate) < 5 * math.sqrt(rate * (1 - rate) / n)
    assert kept[kept != 0].unique().tolist() == [pytest.approx(1 / (1 - rate), rel=1e-6)]


def test_gradient_has_the_mask_and_scale_of_the_values() -> None:
    torch.manual_seed(0)
    x = torch.randn(33, 7, requires_grad=True)
    out = fast_dropout(x, 0.3, training=True)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(out, x * gradient)
    assert gradient.unique().numel() == 2


def test_same_seed_gives_the_same_mask_and_the_next_call_another() -> None:
    x = torch.ones(1000)
    torch.manual_seed(7)
    first, second = fast_dropout(x, 0.5, training=True), fast_dropout(x, 0.5, training=True)
    torch.manual_seed(7)
    assert torch.equal(first, fast_dropout(x, 0.5, training=True))
    assert not torch.equal(first, second)


def test_nothing_is_dropped_outside_training_or_at_rate_zero() -> None:
    x = torch.randn(5)
    assert fast_dropout(x, 0.5, training=False) is x
    assert fast_dropout(x, 0.0, training=True) is x


def test_random_integers_are_uniform_and_uncorrelated_between_neighbours() -> None:
    torch.manual_seed(0)
    n = 2_000_000
    draws = random_int16(n).int() + LEVELS // 2
    counts = torch.bincount(draws >> 8, minlength=256).double()  # the high byte decides
    chi_square = ((counts - n / 256) ** 2 / (n / 256)).sum().item()
    assert abs(chi_square - 255) < 5 * math.sqrt(2 * 255)
    standard = (draws.double() - draws.double().mean()) / draws.double().std()
    for lag in (1, 2, 3, 4):  # four integers come from one draw
        assert abs((standard[lag:] * standard[:-lag]).mean().item()) < 5 / math.sqrt(n)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dtype_and_shape_are_kept(dtype: torch.dtype) -> None:
    x = torch.randn(3, 5, 7, dtype=dtype).transpose(0, 1)
    out = fast_dropout(x, 0.2, training=True)
    assert (out.dtype, out.shape) == (dtype, x.shape)
