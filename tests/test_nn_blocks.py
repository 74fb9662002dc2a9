"""RMSNorm and rotary positions are their definitions, in values and gradients, in every dtype."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from archbench.kernels.rms_norm import reference_rms_norm, rms_norm
from archbench.kernels.rotation import reference_rotate, rotate
from archbench.nn import RMSNorm, Rotary


def test_rms_norm_equals_its_definition_in_values_and_gradients() -> None:
    torch.manual_seed(0)
    x, gain = torch.randn(3, 5, 40, requires_grad=True), torch.randn(40, requires_grad=True)
    upstream = torch.randn(3, 5, 40)
    results = []
    for norm in (rms_norm, reference_rms_norm):
        y = norm(x, gain, 1e-2)  # so large that an epsilon in the wrong place would show
        results.append([y.detach(), *torch.autograd.grad(y, [x, gain], upstream)])
    for fast, reference in zip(*results, strict=True):
        torch.testing.assert_close(fast, reference, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(results[0][0], F.rms_norm(x, (40,), gain, 1e-2).detach(), atol=1e-5, rtol=1e-5)


def test_rms_norm_has_the_gradient_of_what_it_computes() -> None:
    torch.manual_seed(0)
    x, gain = (torch.randn(size, dtype=torch.float64, requires_grad=True) for size in [(2, 3, 7), (7,)])
    assert torch.autograd.gradcheck(lambda x, gain: rms_norm(x, gain, 1e-3), (x, gain))
    strided = torch.randn(2, 7, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, gain: rms_norm(x.transpose(1, 2), gain, 1e-3), (strided, gain))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_rms_norm_of_bfloat16_is_summed_in_float32(scale: float) -> None:
    torch.manual_seed(0)
    x = (torch.randn(4, 512) * scale).bfloat16().requires_grad_()
    gain = torch.randn(512).bfloat16()
    y = rms_norm(x, gain, 1e-6)
    assert y.dtype == torch.bfloat16
    exact = F.rms_norm(x.detach().double(), (512,), gain.double(), 1e-6)
    torch.testing.assert_close(y.detach().double(), exact, atol=0.0, rtol=2**-8)  # one rounding, of the result
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16


def test_gain_offset_keeps_the_gain_as_its_difference_from_one() -> None:
    torch.manual_seed(0)
    plain, offset = RMSNorm(16), RMSNorm(16, gain_offset=1.0)
    x = torch.randn(2, 16)
    assert torch.equal(plain(x), offset(x))
    assert not offset.weight.any()
    with torch.no_grad():
        plain.weight.fill_(1.5)
        offset.weight.fill_(0.5)
    torch.testing.assert_close(plain(x), offset(x))


def _angles(T: int, D: int) -> tuple[Tensor, Tensor]:
    angles = torch.randn(T, D // 2)
    return angles.cos(), angles.sin()


def test_rotation_equals_its_definition_in_values_and_gradients() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 3, 8, requires_grad=True)
    cos, sin = _angles(5, 8)
    upstream = torch.randn(2, 5, 3, 8)
    fast, reference = rotate(x, cos, sin), reference_rotate(x, cos[:, None], sin[:, None])
    torch.testing.assert_close(fast, reference)
    for one, other in zip(*(torch.autograd.grad(y, x, upstream) for y in (fast, reference)), strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        torch.testing.assert_close(rotate(x, cos, sin), reference)


def test_rotation_turns_complex_numbers_whose_parts_are_half_a_head_apart() -> None:
    torch.manual_seed(0)
    x, angles = torch.randn(1, 5, 2, 8), torch.randn(5, 4)
    turned = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones(5, 1, 4), angles[:, None])
    expected = torch.cat([turned.real, turned.imag], dim=-1)
    torch.testing.assert_close(rotate(x, angles.cos(), angles.sin()), expected)


def test_scores_of_rotated_heads_depend_on_the_distance_alone() -> None:
    torch.manual_seed(0)
    rotary = Rotary(16, 2000, 10_000.0)
    q, k = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)

    def score(i: int, j: int) -> float:
        return float((rotate(q, *rotary(i, i + 1)) * rotate(k, *rotary(j, j + 1))).sum())

    assert score(7, 3) == pytest.approx(score(1907, 1903), abs=1e-4)
    assert abs(score(7, 3) - score(27, 3)) > 1e-2


def test_angles_of_far_positions_are_exact_in_every_dtype_that_the_model_is_cast_to() -> None:
    rotary = Rotary(64, 131_072, 10_000.0).to(torch.bfloat16)
    cos, _ = rotary(131_071, 131_072)
    exact = [math.cos(131_071 * 10_000.0 ** (-2 * i / 64)) for i in range(32)]
    torch.testing.assert_close(cos[0].double(), torch.tensor(exact, dtype=torch.float64), atol=2**-8, rtol=0)
