"""The gated delta rule in chunks is the recurrence: values and gradients, from any state, at any length and decay."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from archbench.errors import UsageError
from archbench.kernels.recurrence.delta_rule import (
    gated_delta_rule,
    gated_delta_step,
    reference_gated_delta_rule,
)
from archbench.measure.flops import flop_counter

B, H, D, M = 2, 3, 12, 20
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def inputs(T: int, *, kind: str = "plain", seed: int = 0) -> Inputs:
    """q, k, v, g, beta and a state in float64, each asking for its gradient."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, k = (torch.nn.functional.normalize(draw(B, T, H, D), dim=-1) for _ in range(2))
    v, state = draw(B, T, H, M), draw(B, H, D, M)
    g, beta = -draw(B, T, H).exp() / 10, draw(B, T, H).sigmoid()
    if kind == "underflow":  # products of gates are zero in float32, and in float64; between them some forget nothing
        g = torch.where(draw(B, T, H) < 0, -1e-3, -400 * draw(B, T, H).abs())
    if kind == "no decay":
        g = torch.zeros_like(g)
    if kind == "extreme beta":
        beta = torch.where(draw(B, T, H) < 0, 1 - 1e-7, 1e-7)
    if kind == "zeros and ones":
        beta = (draw(B, T, H) < 0).double()
    if kind == "equal keys":  # the hardest case of the inverse: every write undoes the one before
        k, beta, g = k[:, :1].expand_as(k).clone(), torch.ones_like(beta), torch.zeros_like(g)
    return tuple(x.requires_grad_() for x in (q / D**0.5, k, v, g, beta, state))  # type: ignore[return-value]


KINDS = ["plain", "underflow", "no decay", "extreme beta", "zeros and ones", "equal keys"]


def with_gradients(rule, arguments: Inputs, **options: int) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """o, the last state, and the gradients of a random sum of both."""
    o, state = rule(*arguments, **options)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x) for x in (o, state)]
    total = (o * weights[0]).sum() + (state * weights[1]).sum()
    return o.detach(), state.detach(), torch.autograd.grad(total, arguments)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("T", [1, 2, 31, 33, 70])
def test_chunks_are_the_recurrence_in_values_and_gradients(T: int, kind: str) -> None:
    arguments = inputs(T, kind=kind)
    expected = with_gradients(reference_gated_delta_rule, arguments)
    for chunk in (4, 32, 64):
        o, state, gradients = with_gradients(gated_delta_rule, arguments, chunk=chunk)
        torch.testing.assert_close(o, expected[0], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(state, expected[1], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(gradients, expected[2], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_in_float32_they_are_as_near_to_it_as_float32_is(kind: str) -> None:
    exact = inputs(150, kind=kind)
    o, state, gradients = with_gradients(reference_gated_delta_rule, exact)
    rounded: Inputs = tuple(x.detach().float().requires_grad_() for x in exact)  # type: ignore[assignment]
    found_o, found_state, found_gradients = with_gradients(gated_delta_rule, rounded)
    for found, expected in zip((found_o, found_state, *found_gradients), (o, state, *gradients), strict=True):
        assert found.dtype == torch.float32
        # Measured: at most 4e-7; of the recurrence itself in float32, 6e-7.
        assert (found - expected).abs().max() < 1e-6 * expected.abs().max()


def test_a_decay_between_strong_ones_keeps_its_digits() -> None:
    # Sums of g over a chunk reach -1,600, of which float32 has no digit below 1e-4.
    T = 32
    q, k, v, g, beta, _ = (x.detach() for x in inputs(T))
    g = torch.where(torch.arange(T) < 16, -100.0, -0.05).double().view(1, T, 1).expand_as(g)
    expected, _ = reference_gated_delta_rule(q, k, v, g, beta)
    found, _ = gated_delta_rule(*(x.float() for x in (q, k, v, g, beta)))
    assert (found - expected).abs().max() < 2e-6 * expected.abs().max()


def test_gradients_are_those_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, 5, 2, 2), (1, 5, 2, 2), (1, 5, 2, 3), (1, 5, 2), (1, 5, 2), (1, 2, 2, 3)]
    q, k, v, g, beta, state = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in shapes)
    arguments = [x.requires_grad_() for x in (q, k, v, -g.abs(), beta.sigmoid(), state)]
    assert torch.autograd.gradcheck(lambda *x: gated_delta_rule(*x, chunk=2), arguments)


def test_the_state_is_handed_over_at_any_split() -> None:
    T = 37
    arguments = inputs(T)
    o, final, gradients = with_gradients(gated_delta_rule, arguments)

    def split(*arguments: Tensor, at: int) -> tuple[Tensor, Tensor]:
        *sequences, state = arguments
        first, between = gated_delta_rule(*(x[:, :at] for x in sequences), state)
        second, last = gated_delta_rule(*(x[:, at:] for x in sequences), between)
        return torch.cat([first, second], dim=1), last

    for at in (1, 5, 16, 32, 36):
        found = with_gradients(split, arguments, at=at)
        torch.testing.assert_close(found, (o, final, gradients), rtol=1e-9, atol=1e-11)


def test_steps_are_the_recurrence_and_write_the_state_in_place() -> None:
    *sequences, state = (x.detach() for x in inputs(9))
    expected, final = reference_gated_delta_rule(*sequences, state)
    table = state.clone()
    for t in range(9):
        o = gated_delta_step(*(x[:, t] for x in sequences), table)
        torch.testing.assert_close(o, expected[:, t], rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(table, final, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("T", [1, 40])
def test_autocast_and_bfloat16_leave_states_and_sums_in_float32(T: int) -> None:
    *sequences, state = (x.detach().float() for x in inputs(T))
    q, k, v = (x.bfloat16() for x in sequences[:3])
    g, beta = sequences[3:]
    expected, final = gated_delta_rule(q.float(), k.float(), v.float(), g, beta, state)
    table = state.clone()
    with torch.autocast("cpu", torch.bfloat16):
        o, found = gated_delta_rule(q, k, v, g, beta, state)
        first = gated_delta_step(q[:, 0], k[:, 0], v[:, 0], g[:, 0], beta[:, 0], table)
    assert o.dtype == first.dtype == torch.bfloat16
    assert found.dtype == torch.float32
    assert torch.equal(o, expected.bfloat16())
    assert torch.equal(found, final)
    after_one = gated_delta_rule(q[:, :1], k[:, :1], v[:, :1], g[:, :1], beta[:, :1], state)[1]
    torch.testing.assert_close(table, after_one, rtol=1e-5, atol=1e-6)


def test_flops_are_those_of_the_chunks_products_and_linear_in_their_number() -> None:
    def count(T: int) -> tuple[int, int]:
        with torch.device("meta"):
            q, k = torch.empty(2, 1, T, H, 16).requires_grad_()
            v, g = torch.empty(1, T, H, 32).requires_grad_(), torch.empty(1, T, H).requires_grad_()
        with flop_counter().FlopCounterMode(display=False) as forward:
            o, state = gated_delta_rule(q, k, v, g, g, chunk=32)
        with flop_counter().FlopCounterMode(display=False) as backward:
            torch.autograd.grad(o.sum() + state.sum(), [q, v, g])
        return forward.get_total_flops(), backward.get_total_flops()

    C, D, M = 32, 16, 32
    pairs = 2 * C * C * D + 2 * C * C * M  # k kᵀ and q kᵀ, then (I - N)⁻¹ and the scores times C × M
    states = 2 * C * D * M + C * D * M  # what keys and queries read, and what is written
    inverse = 4 * sum(row * row for row in range(1, 8)) + 2 * 2 * 8**3 + 2 * 16**3
    assert count(C) == (2 * H * (pairs + states + inverse), count(C)[1])
    assert count(8 * C) == (8 * count(C)[0], 8 * count(C)[1])


@pytest.mark.slow  # for torch's compiler, which is loaded
def test_operators_that_a_compiler_sees_are_what_they_say() -> None:
    from archbench.kernels.recurrence import delta_rule

    q, k, v, g, beta, state = inputs(8)
    chunked = [delta_rule._in_chunks(x, 2, 4) for x in (q, k, v, g.unsqueeze(-1), beta.unsqueeze(-1))]
    arguments = [x.detach().requires_grad_() for x in (*chunked, state.flatten(0, 1))]
    torch.library.opcheck(torch.ops.archbench.gated_delta_chunks, arguments)


def test_a_chunk_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(UsageError, match="12 is not a power of two"):
        gated_delta_rule(*inputs(20), chunk=12)
