"""The grouped matrix product is the readable one, in values and gradients, wherever it runs; empty groups included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from archbench.errors import UsageError
from archbench.kernels import grouped_matmul
from archbench.kernels.grouped_matmul import (
    _torch_gradients,
    _torch_products,
    ends_where_used,
    reference_grouped_matmul,
    register_flop_formulas,
)
from pairwise import pairwise

COUNTS = {
    "even": [4, 4, 4],
    "uneven": [1, 37, 5, 2],
    "empty first": [0, 0, 9, 3],
    "empty between": [6, 0, 0, 5],
    "empty last": [7, 2, 0],
    "all in one": [0, 11, 0],
    "one row": [0, 0, 1],
    "no rows": [0, 0],
}
SMALL, LARGE = (24, 16), (520, 513)
"""K, N; the large ones are enough for oneDNN where that is preferred."""


def operands(counts: list[int], K: int, N: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(sum(counts), K, dtype=dtype).requires_grad_()
    weight = (torch.randn(len(counts), N, K, dtype=dtype) / K**0.5).requires_grad_()
    return x, weight, torch.tensor(counts).cumsum(0).int()


def assert_same(out: Tensor, expected: Tensor, inputs: list[Tensor], atol: float, rtol: float) -> None:
    torch.testing.assert_close(out, expected, atol=atol, rtol=rtol)
    upstream = torch.randn_like(expected)
    for found, wanted in zip(*(torch.autograd.grad(y, inputs, upstream) for y in (out, expected)), strict=True):
        torch.testing.assert_close(found, wanted, atol=atol, rtol=rtol)


@pairwise(
    counts=COUNTS,
    precision={"float32": (torch.float32, 1e-5), "bfloat16": (torch.bfloat16, 2e-2), "float64": (torch.float64, 1e-12)},
    sizes=[SMALL, LARGE],
)
def test_values_and_gradients_equal_the_reference(
    counts: list[int], precision: tuple[torch.dtype, float], sizes: tuple[int, int]
) -> None:
    dtype, tolerance = precision
    x, weight, ends = operands(counts, *sizes, dtype)
    # bfloat16 keeps 8 bits, and the two need not add up in the same order.
    expected = reference_grouped_matmul(x, weight, ends)
    assert_same(grouped_matmul(x, weight, ends), expected, [x, weight], tolerance, tolerance)
    with torch.no_grad():  # the way of inference, past the operator
        torch.testing.assert_close(grouped_matmul(x, weight, ends), expected, atol=tolerance, rtol=tolerance)


def test_gradients_are_those_of_finite_differences() -> None:
    x, weight, ends = operands([2, 0, 3], 4, 3, torch.float64)
    assert torch.autograd.gradcheck(lambda x, weight: grouped_matmul(x, weight, ends), (x, weight))


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_the_kernel_of_torch_is_called_so_that_it_gives_the_same(counts: list[int]) -> None:
    """What runs in bfloat16 on GPUs, on the CPU: which operand is transposed, and what an empty group gets."""
    x, weight, ends = operands(counts, 24, 16, torch.bfloat16)
    expected = reference_grouped_matmul(x, weight, ends)
    upstream = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, (x, weight), upstream)
    with torch.no_grad():
        torch.testing.assert_close(_torch_products(x, weight, ends), expected, atol=2e-2, rtol=2e-2)
        found = _torch_gradients(upstream, x, weight, ends, [True, True])
    torch.testing.assert_close(found, wanted, atol=2e-2, rtol=2e-2)


def test_what_the_kernel_of_torch_leaves_in_an_empty_group_is_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On some GPUs it leaves there what was there before: https://github.com/pytorch/pytorch/issues/172439."""
    x, weight, ends = operands([6, 0, 5], 24, 16, torch.bfloat16)
    kernel = torch.nn.functional.grouped_mm

    def leaving_some(a: Tensor, b: Tensor, *, offs: Tensor) -> Tensor:
        out = kernel(a, b, offs=offs)
        if out.dim() == 3:
            out[1] = float("nan")
        return out

    monkeypatch.setattr(torch.nn.functional, "grouped_mm", leaving_some)
    with torch.no_grad():
        _, gradient = _torch_gradients(torch.ones(11, 16, dtype=torch.bfloat16), x, weight, ends, [False, True])
    assert not gradient[1].any()


@pytest.mark.parametrize("frozen", ["x", "weight"])
def test_gradients_nobody_asks_for_are_not_made(frozen: str) -> None:
    x, weight, ends = operands([3, 0, 4], *SMALL)
    kept = {"x": x, "weight": weight}
    kept.pop(frozen).requires_grad_(False)
    register_flop_formulas()
    with FlopCounterMode(display=False) as counter:
        out = grouped_matmul(x, weight, ends)
        (gradient,) = torch.autograd.grad(out.sum(), kept.values())
    assert counter.get_total_flops() == 2 * 2 * 7 * 24 * 16  # one product forward, one backward
    expected = reference_grouped_matmul(x, weight, ends).sum()
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, kept.values())[0])


@pytest.mark.parametrize("strided", ["x", "weight", "both"])
def test_operands_of_any_strides_are_taken(strided: str) -> None:
    x, weight, ends = operands([5, 0, 30], *LARGE)
    with torch.no_grad():
        x = x.t().contiguous().t() if strided != "weight" else x
        weight = weight.mT.contiguous().mT if strided != "x" else weight
    inputs = [x.detach().requires_grad_(), weight.detach().requires_grad_()]
    assert_same(grouped_matmul(*inputs, ends), reference_grouped_matmul(*inputs, ends), inputs, 1e-5, 1e-5)


def test_autocast_multiplies_in_its_dtype_and_gives_the_parameters_gradients_in_theirs() -> None:
    x, weight, ends = operands([5, 0, 6], *SMALL)
    with torch.autocast("cpu", torch.bfloat16):
        out = grouped_matmul(x, weight, ends)
        with torch.no_grad():
            assert torch.equal(grouped_matmul(x, weight, ends), out)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, grouped_matmul(x.bfloat16(), weight.bfloat16(), ends))
    gradients = torch.autograd.grad(out.float().square().sum(), (x, weight))
    wanted = torch.autograd.grad(reference_grouped_matmul(x, weight, ends).square().sum(), (x, weight))
    for found, expected in zip(gradients, wanted, strict=True):
        assert found.dtype == torch.float32
        assert (found - expected).norm() < 0.02 * expected.norm()


def test_flops_are_those_of_the_rows_that_are_there_on_meta_as_here() -> None:
    x, weight, ends = operands([1, 37, 0, 5], *SMALL)
    register_flop_formulas()
    counts = []
    for device in ("cpu", "meta"):
        tensors = [tensor.detach().to(device) for tensor in (x, weight, ends)]
        inputs = [tensor.requires_grad_() for tensor in tensors[:2]]
        with FlopCounterMode(display=False) as counter:
            out = grouped_matmul(*inputs, tensors[2])
            forward = counter.get_total_flops()
            torch.autograd.grad(out.sum(), inputs)
        counts.append((forward, counter.get_total_flops()))
    product = 2 * 43 * 24 * 16
    assert counts == [(product, 3 * product)] * 2


def test_operators_keep_what_they_promise_the_compiler() -> None:
    x, weight, ends = operands([3, 0, 4], *SMALL)
    upstream = torch.randn(7, 16)
    operators = torch.ops.archbench
    torch.library.opcheck(operators.grouped_matmul.default, (x, weight, ends))
    x, weight = x.detach(), weight.detach()
    torch.library.opcheck(operators.grouped_matmul_backward.default, (upstream, x, weight, ends, [True, False]))


def test_one_graph_serves_any_counts() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(grouped_matmul, fullgraph=True, backend="aot_eager")
    for counts in ([3, 0, 4], [0, 7, 0]):
        x, weight, ends = operands(counts, *SMALL)
        assert_same(compiled(x, weight, ends), reference_grouped_matmul(x, weight, ends), [x, weight], 1e-5, 1e-5)
    torch._dynamo.reset()


def test_a_second_derivative_is_refused() -> None:
    x, weight, ends = operands([2, 2], *SMALL)
    (gradient,) = torch.autograd.grad(grouped_matmul(x, weight, ends).square().sum(), x, create_graph=True)
    with pytest.raises(UsageError, match="reference_grouped_matmul"):
        gradient.sum().backward()


def test_the_counts_stay_where_they_are_on_a_cpu() -> None:
    x, weight, ends = operands([2, 2], *SMALL)
    assert ends_where_used(ends, x, weight) is ends


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ends": torch.tensor([2, 3], dtype=torch.int32)}, r"ends \[2, 3\].*4 rows"),
        ({"ends": torch.tensor([5, 4], dtype=torch.int32)}, r"ends \[5, 4\]"),
        ({"ends": torch.tensor([2, 4])}, r"ends \(2,\) torch.int64"),
        ({"ends": torch.tensor([4], dtype=torch.int32)}, r"ends \(1,\)"),
        ({"weight": torch.zeros(2, 16, 23)}, r"weight \(2, 16, 23\)"),
        ({"weight": torch.zeros(2, 16, 24, dtype=torch.float64)}, r"weight .* torch.float64"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change: dict[str, Tensor], words: str) -> None:
    x, weight, ends = operands([2, 2], *SMALL)
    given = {"x": x.detach(), "weight": weight.detach(), "ends": ends} | change
    with pytest.raises(UsageError, match=words):
        grouped_matmul(**given)
