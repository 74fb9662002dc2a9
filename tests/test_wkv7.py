"""WKV7 in chunks is the recurrence of RWKV-7's definition: values, gradients, states, at any length."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from archbench.kernels.recurrence.wkv7 import reference_wkv7, solve_flops, wkv7, wkv7_step

STRONGEST = -math.exp(-0.5)
"""RWKV-7's log decays are between this and 0."""

Recurrence = Callable[..., tuple[Tensor, Tensor]]


def arguments(
    B: int, T: int, H: int, N: int, D: int | None = None, *, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """r, log_w, k, v, a, b and a state, as RWKV-7 makes them; drawn in float64."""
    torch.manual_seed(T)
    shape = (B, T, H, N)
    r, k, keys, rates, decays = (torch.randn(shape, dtype=torch.float64) for _ in range(5))
    v, state = (torch.randn(*first, D or N, dtype=torch.float64) for first in ((B, T, H), (B, H, N)))
    removal, rate = F.normalize(keys, dim=-1), torch.sigmoid(2 * rates)
    tensors = [r, STRONGEST * torch.sigmoid(3 * decays), k, v, -removal, removal * rate, state]
    return [tensor.to(dtype).requires_grad_() for tensor in tensors]


def results(recurrence: Recurrence, tensors: list[Tensor], **options: int) -> list[Tensor]:
    """y, the state, and gradients with respect to all arguments, of a sum that weighs each element differently."""
    y, state = recurrence(*tensors, **options)
    weigh = torch.Generator().manual_seed(0)
    loss = sum((out * torch.randn(out.shape, generator=weigh, dtype=torch.float64)).sum() for out in (y, state))
    assert isinstance(loss, Tensor)
    return [y.detach(), state.detach(), *torch.autograd.grad(loss, tensors)]


def largest_error(found: list[Tensor], expected: list[Tensor]) -> float:
    """Of each tensor's largest element, the worst."""
    pairs = zip(found, expected, strict=True)
    return max(float((one.double() - other).abs().max() / other.abs().max()) for one, other in pairs)


@pytest.mark.parametrize("T", [1, 2, 31, 32, 33, 64, 97])
def test_chunks_are_the_definition(T: int) -> None:
    tensors = arguments(2, T, 3, 8, 5)
    assert largest_error(results(wkv7, tensors), results(reference_wkv7, tensors)) < 1e-12


@pytest.mark.parametrize("chunk", [1, 5, 16, 64])
def test_the_chunk_size_changes_nothing(chunk: int) -> None:
    tensors = arguments(1, 41, 2, 8)
    assert largest_error(results(wkv7, tensors, chunk=chunk), results(reference_wkv7, tensors)) < 1e-12


def test_without_a_state_it_begins_with_zeros() -> None:
    *tensors, state = arguments(2, 40, 2, 8)
    for found, expected in zip(wkv7(*tensors), reference_wkv7(*tensors, torch.zeros_like(state)), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_gradients_by_finite_differences() -> None:
    tensors = arguments(1, 7, 2, 3, 2)
    assert torch.autograd.gradcheck(lambda *given: wkv7(*given, chunk=3), tensors)


@pytest.mark.parametrize("decays", ["random", "strongest", "none"])
def test_float32_loses_nothing_to_the_factored_decays(decays: str) -> None:
    # The definition in float32 is itself off by 1e-7 to 6e-7. Within a chunk 1 / p goes up to e^19, p down to e^-19.
    tensors = arguments(1, 256, 2, 64)
    if decays != "random":
        tensors[1] = torch.full_like(tensors[1], STRONGEST if decays == "strongest" else 0.0).requires_grad_()
    single = [tensor.detach().float().requires_grad_() for tensor in tensors]
    assert largest_error(results(wkv7, single), results(reference_wkv7, tensors)) < 3e-6


def test_a_key_repeated_at_every_position_is_solved_exactly() -> None:
    # The triangular system is then all ones, whose inverse by powers would cancel terms of 10^8.
    tensors = arguments(1, 128, 1, 16)
    with torch.no_grad():
        tensors[1].zero_()
        tensors[4].copy_(tensors[4][:, :1].expand_as(tensors[4]))
        tensors[5].copy_(-tensors[4])  # a learning rate of 1: what was stored under the key is replaced
    single = [tensor.detach().float().requires_grad_() for tensor in tensors]
    assert largest_error(results(wkv7, single), results(reference_wkv7, tensors)) < 3e-6


@pytest.mark.parametrize("split", [1, 31, 32, 50, 69])
def test_a_state_handed_over_is_as_good_as_one_pass(split: int) -> None:
    *tensors, state = arguments(2, 70, 2, 8)
    expected, after = wkv7(*tensors, state)
    y, middle = wkv7(*(tensor[:, :split] for tensor in tensors), state)
    rest, end = wkv7(*(tensor[:, split:] for tensor in tensors), middle)
    torch.testing.assert_close(torch.cat([y, rest], dim=1), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(end, after, atol=1e-12, rtol=0)


def test_one_step_at_a_time_is_the_definition_and_overwrites_the_state() -> None:
    *tensors, state = (tensor.detach() for tensor in arguments(2, 5, 2, 8, 4))
    expected, after = reference_wkv7(*tensors, state)
    address = state.data_ptr()
    for t in range(5):
        torch.testing.assert_close(wkv7_step(*(tensor[:, t] for tensor in tensors), state), expected[:, t])
    torch.testing.assert_close(state, after)
    assert state.data_ptr() == address


def test_autocast_changes_no_bit_forward_or_backward() -> None:
    tensors = arguments(1, 70, 2, 16, dtype=torch.float32)
    expected = results(wkv7, tensors)
    step = wkv7_step(*(tensor.detach()[:, 0] for tensor in tensors[:6]), tensors[6].detach().clone())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for found, wanted in zip(results(wkv7, tensors), expected, strict=True):
            assert torch.equal(found, wanted)
        again = wkv7_step(*(tensor.detach()[:, 0] for tensor in tensors[:6]), tensors[6].detach().clone())
    assert torch.equal(again, step)


def test_bfloat16_arguments_are_computed_with_in_float32() -> None:
    *rounded, _ = (tensor.detach().bfloat16() for tensor in arguments(1, 70, 2, 16))
    for found, expected in zip(wkv7(*rounded), wkv7(*(tensor.float() for tensor in rounded)), strict=True):
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)


@pytest.mark.slow
def test_compiled_whole_at_several_lengths() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(wkv7, fullgraph=True, backend="aot_eager")
    for T in (40, 33):  # two chunks each; the second length is traced as unknown
        tensors = arguments(1, T, 2, 8)
        assert largest_error(results(compiled, tensors), results(wkv7, tensors)) < 1e-12
    torch._dynamo.reset()


def test_cost_is_linear_in_the_positions() -> None:
    def flops(T: int) -> int:
        tensors = [torch.zeros_like(tensor, device="meta").requires_grad_() for tensor in arguments(1, T, 2, 16)]
        with FlopCounterMode(display=False) as counter:
            y, state = wkv7(*tensors)
            torch.autograd.grad(y.sum() + state.sum(), tensors)
        return counter.get_total_flops() + solve_flops(T)

    assert flops(1024) == 8 * flops(128)
