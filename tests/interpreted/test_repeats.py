"""Whichever programs of a launch come first, the results are the same bit for bit: no atomics, nothing shared."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder

from archbench.kernels.fused.configurations import KERNELS, Configuration
from archbench.kernels.fused.launches import backward_launches, forward_launch

pytestmark = pytest.mark.matrix

set_grid_idx = InterpreterBuilder.set_grid_idx


def backwards(builder: InterpreterBuilder, x: int, y: int, z: int) -> None:
    set_grid_idx(builder, builder.grid_dim[0] - 1 - x, y, z)


def from_the_middle(builder: InterpreterBuilder, x: int, y: int, z: int) -> None:
    set_grid_idx(builder, (x + builder.grid_dim[0] // 2) % builder.grid_dim[0], y, z)


def refused(*arguments: Any) -> None:
    raise AssertionError("an atomic operation: its order, and so its sum, differs from run to run")


def everything(q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor) -> list[Tensor]:
    """out, lse and the three gradients."""
    out, lse = torch.empty_like(q), torch.empty(q.shape[:3])
    delta, gradients = torch.empty_like(lse), [torch.empty_like(x) for x in (q, k, v)]
    small = Configuration(32, 32, 4, 1)
    how: dict[str, Any] = {"window": 50, "scale": 0.2, "precision": "ieee", "chip": "sm_80"}
    launches = [
        forward_launch(q, k, v, out, lse, **how, configuration=small),
        *backward_launches(
            grad_out, q, k, v, out, lse, delta, *gradients, **how, configurations=dict.fromkeys(KERNELS, small)
        ),
    ]
    with patch.multiple(InterpreterBuilder, create_atomic_rmw=refused, create_atomic_cas=refused):
        for launch in launches:
            launch.run()
    return [out, lse, *gradients]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # rows past the end are calculated and thrown away: 0 / 0
@pytest.mark.parametrize("order", [set_grid_idx, backwards, from_the_middle], ids=lambda order: order.__name__)
def test_the_order_of_the_programs_changes_no_bit(order: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    q, grad_out = torch.randn(2, 2, 4, 100, 32, generator=generator)
    k, v = torch.randn(2, 2, 2, 130, 32, generator=generator)
    first = everything(q, k, v, grad_out)
    with patch.object(InterpreterBuilder, "set_grid_idx", order):
        again = everything(q, k, v, grad_out)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
