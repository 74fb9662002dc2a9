"""The chunked state space is the recurrence, in values and gradients, from any state, at any length and dtype."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from archbench.kernels.recurrence.ssd import FORGOTTEN, reference_ssd, ssd, ssd_step
from pairwise import pairwise

NAMES = ("x", "dt", "a", "b", "c", "state")


def inputs(
    B: int = 2,
    T: int = 20,
    H: int = 4,
    D: int = 3,
    G: int = 2,
    N: int = 5,
    *,
    dtype: torch.dtype = torch.float64,
    step: float = -1.0,
    rate: float = 2.0,
) -> list[Tensor]:
    """x, dt, a, b, c and a state; decay is of up to rate · softplus(N(step, 1)) a position."""
    torch.manual_seed(T)
    exact = torch.promote_types(dtype, torch.float32)
    values = [
        torch.randn(B, T, H, D, dtype=dtype),
        F.softplus(torch.randn(B, T, H, dtype=exact) + step),
        -torch.rand(H, dtype=exact) * rate,
        torch.randn(B, T, G, N, dtype=dtype),
        torch.randn(B, T, G, N, dtype=dtype),
        torch.randn(B, G, N, H // G * D, dtype=exact),
    ]
    return [value.requires_grad_() for value in values]


@pairwise(T=[1, 7, 8, 9, 16, 21], heads=[(4, 2), (3, 1), (2, 2)], given=[True, False])
def test_chunks_equal_the_recurrence(T: int, heads: tuple[int, int], given: bool) -> None:
    H, G = heads
    given_inputs = inputs(T=T, H=H, G=G)[: 6 if given else 5]
    expected, expected_state = reference_ssd(*given_inputs)
    y, state = ssd(*given_inputs, chunk=8)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(state, expected_state)
    upstream, upstream_state = torch.randn_like(y), torch.randn_like(state)
    theirs = torch.autograd.grad([expected, expected_state], given_inputs, [upstream, upstream_state])
    ours = torch.autograd.grad([y, state], given_inputs, [upstream, upstream_state])
    for name, gradient, correct in zip(NAMES, ours, theirs, strict=False):
        torch.testing.assert_close(gradient, correct, msg=lambda text, name=name: f"{name}: {text}")


def test_gradients_are_those_of_finite_differences() -> None:
    assert torch.autograd.gradcheck(lambda *given: ssd(*given, chunk=4), inputs(1, 6, 2, 2, 1, 2))


def test_one_step_equals_the_recurrence_and_writes_the_state_in_place() -> None:
    x, dt, a, b, c, state = (tensor.detach() for tensor in inputs())
    expected, expected_state = reference_ssd(x, dt, a, b, c, state)
    address = state.data_ptr()
    for t in range(x.shape[1]):
        torch.testing.assert_close(ssd_step(x[:, t], dt[:, t], a, b[:, t], c[:, t], state), expected[:, t])
    torch.testing.assert_close(state, expected_state)
    assert state.data_ptr() == address


def test_heads_of_a_group_write_and_read_alike_and_no_others() -> None:
    x, dt, a, b, c, _ = (tensor.detach() for tensor in inputs(H=4, G=2))
    y, _ = ssd(x, dt, a, b, c)
    b[:, :, 1] = 0
    other, _ = ssd(x, dt, a, b, c)
    assert torch.equal(other[:, :, :2], y[:, :, :2])
    assert not other[:, :, 2:].any()


@pytest.mark.parametrize(("step", "rate"), [(-4.0, 16.0), (-1.0, 2.0), (1.0, 16.0)], ids=["slow", "mixed", "fast"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-4), (torch.bfloat16, 0.02)],  # a rounding of bfloat16 is 0.004, and a value meets several
    ids=str,
)
def test_rounding_does_not_drown_any_gradient(dtype: torch.dtype, tolerance: float, step: float, rate: float) -> None:
    # Those of dt and a are sums of terms that cancel: taken as y · dL/dy less x · dL/dx, they are off by 80 % here.
    rounded = inputs(T=150, H=4, D=16, N=16, dtype=dtype, step=step, rate=rate)
    exact = [tensor.detach().double().requires_grad_() for tensor in rounded]
    y, state = ssd(*rounded)
    expected, expected_state = reference_ssd(*exact)
    assert (y.dtype, state.dtype) == (dtype, torch.float32)
    upstream, upstream_state = torch.randn_like(y), torch.randn_like(state)
    ours = torch.autograd.grad([y, state], rounded, [upstream, upstream_state])
    theirs = torch.autograd.grad([expected, expected_state], exact, [upstream.double(), upstream_state.double()])
    found = dict(zip(("y", "state after", *NAMES), (y, state, *ours), strict=True))
    correct = dict(zip(found, (expected, expected_state, *theirs), strict=True))
    for name, value in found.items():
        error = (value.double() - correct[name]).norm() / correct[name].norm()
        assert error < tolerance, f"{name} is off by {error:.2g} of its norm"


@pytest.mark.parametrize("dt", [0.0, 1e4])
def test_steps_that_forget_nothing_or_everything_stay_finite(dt: float) -> None:
    x, _, a, b, c, state = inputs(T=30, dtype=torch.float32)
    steps = torch.full((2, 30, 4), dt, requires_grad=True)
    y, final = ssd(x, steps, a, b, c, state, chunk=8)
    expected, expected_final = reference_ssd(x, steps, a, b, c, state)
    atol = 1e-6 * float(expected_final.detach().abs().max())  # values reach 50,000
    torch.testing.assert_close(y, expected, atol=atol, rtol=1e-5)
    torch.testing.assert_close(final, expected_final, atol=atol, rtol=1e-5)
    for gradient in torch.autograd.grad([y.sum(), final.sum()], [x, steps, a, b, c, state]):
        assert gradient.isfinite().all()


class SmallestExponent(TorchDispatchMode):
    """Notes the smallest number that an exponential is taken of."""

    def __init__(self) -> None:
        super().__init__()
        self.noted = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.exp.default, torch.ops.aten.exp_.default):
            self.noted = min(self.noted, float(args[0].min()))
        return func(*args, **(kwargs or {}))


def test_no_exponential_is_below_the_normal_numbers() -> None:
    # On CPUs exp takes 35 times as long there: a layer that forgets fast would train several times more slowly.
    given = inputs(T=100, dtype=torch.float32, step=1.0, rate=16.0)
    with SmallestExponent() as smallest, torch.autograd.set_multithreading_enabled(False):
        y, state = ssd(*given)
        torch.autograd.grad([y.sum(), state.sum()], given)
    assert smallest.noted == FORGOTTEN
    assert torch.tensor(FORGOTTEN).exp() > torch.finfo(torch.float32).tiny


def test_autocast_changes_neither_decays_nor_states() -> None:
    given = inputs(T=30, dtype=torch.float32)
    y, state = ssd(*given, chunk=8)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast, state_under_autocast = ssd(*given, chunk=8)
    assert torch.equal(under_autocast, y)
    assert torch.equal(state_under_autocast, state)


def test_compiled_whole_it_is_the_same_at_any_length() -> None:
    compiled = torch.compile(ssd, backend="aot_eager", fullgraph=True)
    for T in (40, 70):  # the second is traced with T unknown
        given = inputs(1, T, 2, 4, 1, 4, dtype=torch.float32)
        y, state = ssd(*given)
        compiled_y, compiled_state = compiled(*given)
        torch.testing.assert_close(compiled_y, y, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(compiled_state, state, atol=1e-5, rtol=1e-5)
        ours = torch.autograd.grad([y.sum(), state.sum()], given)
        for gradient, expected in zip(
            torch.autograd.grad([compiled_y.sum(), compiled_state.sum()], given), ours, strict=True
        ):
            torch.testing.assert_close(gradient, expected, atol=1e-4, rtol=1e-4)
