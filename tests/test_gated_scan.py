"""The gated scan is the recurrence it says it is: values, gradients, states handed on, at a cost linear in T."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from archbench.errors import UsageError
from archbench.kernels.recurrence.gated_scan import CHUNK, gated_scan, reference_gated_scan

LENGTHS = [1, 2, CHUNK - 1, CHUNK, 2 * CHUNK - 1, 2 * CHUNK, 2 * CHUNK + 5, 2 * CHUNK**2, 3 * CHUNK**2 + CHUNK + 1]
"""On both sides of where a chunk, two chunks, and chunks of chunks begin."""


def inputs(T: int, *, B: int = 2, C: int = 3, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(T)
    a = torch.rand(B, T, C, generator=generator, dtype=dtype)
    b = torch.randn(B, T, C, generator=generator, dtype=dtype)
    initial = torch.randn(B, C, generator=generator, dtype=dtype)
    return a.requires_grad_(), b.requires_grad_(), initial.requires_grad_()


def values_and_gradients(scan: Any, *given: Tensor) -> tuple[Tensor, ...]:
    """States, last state, and the gradients of a loss that depends on all of both."""
    states, last = scan(*given)
    weights = torch.linspace(-1, 2, states.numel(), dtype=states.dtype).view_as(states)
    loss = (states * weights).sum() + (last * weights[:, 0].cos()).sum()
    return states.detach(), last.detach(), *torch.autograd.grad(loss, given)


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("with_initial", [True, False])
def test_values_and_gradients_are_those_of_the_definition(T: int, with_initial: bool) -> None:
    given = inputs(T)[: 3 if with_initial else 2]
    found = values_and_gradients(gated_scan, *given)
    expected = values_and_gradients(reference_gated_scan, *given)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-13, rtol=1e-12)


def test_gradients_are_those_of_finite_differences() -> None:
    given = inputs(2 * CHUNK + 3, B=1, C=2)
    assert torch.autograd.gradcheck(gated_scan, given)


@pytest.mark.parametrize("sizes", [[1] * 40, [7, 33], [33, 7], [CHUNK, 2 * CHUNK, 5], [100, 1, 1, 60]])
def test_a_text_in_parts_leaves_the_state_of_the_whole(sizes: list[int]) -> None:
    a, b, state = (tensor.detach() for tensor in inputs(sum(sizes)))
    whole, last = gated_scan(a, b, state)
    parts = []
    for gates, new in zip(a.split(sizes, 1), b.split(sizes, 1), strict=True):
        states, state = gated_scan(gates, new, state)
        parts.append(states)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-13, rtol=1e-12)
    torch.testing.assert_close(state, last, atol=1e-13, rtol=1e-12)


def test_gates_of_zero_and_one_are_exact() -> None:
    # Both are where a scan that divides by products of gates breaks.
    b = torch.randint(-9, 9, (1, 500, 2)).float()
    a = torch.ones_like(b)
    assert torch.equal(gated_scan(a, b)[0], b.cumsum(1))
    assert torch.equal(gated_scan(torch.zeros_like(b), b)[0], b)
    a[:, 250] = 0
    assert torch.equal(gated_scan(a, b)[0][:, 250:], b[:, 250:].cumsum(1))


@pytest.mark.parametrize("autocast", [True, False])
def test_states_are_float32_whatever_the_dtype(autocast: bool) -> None:
    # A gate of 0.999 is 1 in bfloat16, and what it keeps of 1,000 positions is far from their sum.
    T = 1000
    a, b = torch.full((1, T, 1), 0.999), torch.ones(1, T, 1, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        states, last = gated_scan(a, b.requires_grad_())
        (gradient,) = torch.autograd.grad(last.sum(), b)
    assert states.dtype == last.dtype == torch.float32
    assert gradient.dtype == torch.bfloat16
    assert last.item() == pytest.approx((1 - 0.999**T) / 0.001, rel=1e-4)
    assert gradient[0, 0, 0].item() == pytest.approx(0.999 ** (T - 1), rel=1e-2)


def test_only_gates_and_states_are_kept_for_the_backward_pass() -> None:
    a, b, initial = inputs(300)
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        states, _ = gated_scan(a, b, initial)
    assert sum(kept.values()) == a.nbytes + states.nbytes + initial.nbytes


class _Work(TorchDispatchMode):
    """Counts operations that compute something, and numbers that they write."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.written = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and not func.is_view:
            self.operations += 1
            self.written += out.numel()
        return out


def work(T: int) -> _Work:
    a, b, _ = inputs(T, dtype=torch.float32)
    with _Work() as counted:
        gated_scan(a, b)[0].sum().backward()
    return counted


def test_work_grows_with_t_and_the_number_of_operations_does_not() -> None:
    short, long = work(512), work(8 * 512)
    assert long.written < 8.2 * short.written
    assert long.operations < 1.6 * short.operations
    assert long.operations < 512


def compiled(*given: Tensor) -> tuple[Tensor, ...]:
    return values_and_gradients(torch.compile(gated_scan, fullgraph=True, backend="aot_eager"), *given)


@pytest.mark.parametrize("T", [1, 40])
def test_compiled_whole_it_is_the_same_bit_for_bit(T: int) -> None:
    torch._dynamo.reset()
    given = inputs(T, dtype=torch.float32)
    for one, other in zip(compiled(*given), values_and_gradients(gated_scan, *given), strict=True):
        assert torch.equal(one, other)


def test_its_operators_are_what_they_say_to_the_compiler() -> None:
    a, b, initial = inputs(40)
    torch.library.opcheck(torch.ops.archbench.gated_scan.default, (a, b, initial))
    states = gated_scan(a, b, initial)[0].detach()
    given = [tensor.detach() for tensor in (torch.ones_like(states), a, states, initial)]
    torch.library.opcheck(torch.ops.archbench.gated_scan_backward.default, tuple(given))


def test_on_the_meta_device_it_has_shapes_and_no_floating_point_products() -> None:
    a, b, initial = (tensor.detach().to("meta").requires_grad_() for tensor in inputs(300))
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        states, last = gated_scan(a, b, initial)
        states.sum().backward()
    assert (states.shape, last.shape, a.grad.shape) == ((2, 300, 3), (2, 3), (2, 300, 3))
    assert counter.get_total_flops() == 0


@pytest.mark.parametrize(
    ("a", "b", "initial"),
    [((2, 5, 3), (2, 4, 3), None), ((2, 5, 3), (2, 5, 3), (3,)), ((2, 0, 3), (2, 0, 3), None)],
)
def test_shapes_that_do_not_fit_are_named(a: Any, b: Any, initial: Any) -> None:
    state = None if initial is None else torch.zeros(initial)
    with pytest.raises(UsageError, match=rf"gated_scan: the shapes a \({', '.join(map(str, a))}\).*do not fit"):
        gated_scan(torch.zeros(a), torch.zeros(b), state)


def test_a_second_derivative_is_an_error_and_not_a_zero() -> None:
    given = inputs(40)
    (first,) = torch.autograd.grad(gated_scan(*given)[0].square().sum(), given[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_a_long_memory_does_not_drift() -> None:
    # Products of gates and sums over 5,000 positions, in float32 against float64.
    a, b, initial = inputs(5000)
    a = 1 - a.detach() ** 8 * 1e-2
    exact = reference_gated_scan(a, b.detach(), initial.detach())[0]
    found = gated_scan(*(tensor.detach().float() for tensor in (a, b, initial)))[0]
    assert (found - exact).abs().max() < 3e-6 * exact.abs().max()
    assert math.isfinite(float(found.sum()))
