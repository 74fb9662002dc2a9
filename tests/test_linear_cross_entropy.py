"""The chunked loss is F.cross_entropy of all logits, in value and gradients, and never holds them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from archbench import linear_cross_entropy
from archbench.errors import UsageError
from archbench.kernels.linear_cross_entropy import CHUNK_BYTES, loss_and_gradients

N, C, V = 37, 24, 101
OPERATOR = torch.ops.archbench.linear_cross_entropy.default
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def inputs(dtype: torch.dtype = torch.float32, *, n: int = N, seed: int = 0) -> Inputs:
    """hidden, weight, bias and targets, of which every fifth is ignored (the first one counts)."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (n, C), (V, C), (V,)
    hidden, weight, bias = (torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes)
    targets = torch.randint(V, (n,), generator=generator)
    targets[4::5] = -100
    return hidden, weight, bias, targets


def all_logits(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None) -> Tensor:
    """The readable twin."""
    logits = F.linear(hidden, weight, bias).flatten(0, -2)
    return F.cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), targets.flatten())


def values(loss: Callable[..., Tensor], given: Inputs, upstream: float = 1.0) -> list[Tensor]:
    """The loss, and what ``upstream`` times it gives hidden, weight and bias."""
    hidden, weight, bias, targets = given
    result = loss(hidden, weight, targets, bias=bias)
    return [result.detach(), *torch.autograd.grad(result * upstream, [hidden, weight, bias])]


def exact(given: Inputs, upstream: float = 1.0) -> list[Tensor]:
    hidden, weight, bias = (tensor.detach().double().requires_grad_() for tensor in given[:3])
    return values(all_logits, (hidden, weight, bias, given[3]), upstream)


def error(found: Tensor, true: Tensor) -> float:
    return ((found.double() - true).norm() / true.norm()).item()


def chunked(chunk: int | None) -> Callable[..., Tensor]:
    return lambda *args, **kwargs: linear_cross_entropy(*args, chunk=chunk, **kwargs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("chunk", [1, 8, 36, 37, 1000, None])
def test_value_and_gradients_are_as_near_to_float64_as_those_of_all_logits(
    dtype: torch.dtype, chunk: int | None
) -> None:
    given = inputs(dtype)
    ours, theirs, true = values(chunked(chunk), given), values(all_logits, given), exact(given)
    assert ours[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert [gradient.dtype for gradient in ours[1:]] == [dtype] * 3
    for found, plain, wanted in zip(ours, theirs, true, strict=True):
        # Half as much again for sums in another order, and a few units in the last place for luck in theirs.
        assert error(found, wanted) <= 1.5 * error(plain, wanted) + 4 * torch.finfo(found.dtype).eps


@pytest.mark.parametrize("n", [1, 2])
def test_a_row_or_two(n: int) -> None:
    given = inputs(n=n)
    for found, wanted in zip(values(linear_cross_entropy, given), exact(given), strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)


def test_gradcheck_in_float64() -> None:
    hidden, weight, bias, targets = inputs(torch.float64, n=6)

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return linear_cross_entropy(hidden, weight, targets, bias=bias, chunk=4)

    assert torch.autograd.gradcheck(loss, (hidden, weight, bias), fast_mode=True)


def test_a_target_whose_probability_underflows_has_its_true_loss() -> None:
    hidden = torch.tensor([[200.0, 0.0], [0.0, 12.0]], requires_grad=True)
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], requires_grad=True)
    far = linear_cross_entropy(hidden, weight, torch.tensor([2, 1]))
    # Row 1 has logits 200, 0, -200: the probability of its target underflows, its loss of 400 nats does not.
    assert far.item() == pytest.approx((400 + math.log1p(2 * math.exp(-12))) / 2, rel=1e-6)
    far.backward()
    assert all(gradient.isfinite().all() for gradient in (hidden.grad, weight.grad))


def test_leading_dimensions_and_strides_do_not_matter() -> None:
    _, weight, bias, _ = inputs()
    wide = torch.randn(3, 2 * C, 5).transpose(1, 2)[..., ::2].requires_grad_()  # (3, 5, C), nothing contiguous
    targets = torch.randint(V, (5, 3)).t()
    assert not wide.is_contiguous()
    ours, theirs = values(chunked(4), (wide, weight, bias, targets)), values(all_logits, (wide, weight, bias, targets))
    for found, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    strided = torch.randn(2 * C, V).t()[:, ::2].requires_grad_()
    hidden, _, _, targets = inputs()
    loss = linear_cross_entropy(hidden, strided, targets)
    torch.testing.assert_close(loss, all_logits(hidden, strided, targets))
    (gradient,) = torch.autograd.grad(loss, strided)
    torch.testing.assert_close(gradient, torch.autograd.grad(all_logits(hidden, strided, targets), strided)[0])


def test_ignored_targets_count_neither_in_the_sum_nor_in_the_mean() -> None:
    hidden, weight, _, targets = inputs()
    keep = targets != -100
    torch.testing.assert_close(
        linear_cross_entropy(hidden, weight, targets), all_logits(hidden[keep], weight, targets[keep])
    )
    padded = linear_cross_entropy(hidden, weight, targets.where(keep, 7), ignore_index=7)
    torch.testing.assert_close(
        padded, F.cross_entropy(F.linear(hidden, weight), targets.where(keep, 7), ignore_index=7)
    )
    (gradient,) = torch.autograd.grad(padded, hidden)
    assert gradient[~keep].count_nonzero() == 0


@pytest.mark.parametrize("n", [0, 5])
def test_with_no_target_that_counts_it_is_nan_with_gradients_zero_as_torch_has_it(n: int) -> None:
    hidden, weight, bias, targets = inputs(n=n)
    given = (hidden, weight, bias, torch.full_like(targets, -100))
    for found, wanted in zip(values(linear_cross_entropy, given), values(all_logits, given), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)


class Allocations(TorchDispatchMode):
    """Notes the largest tensor that any operation makes, inside the operator too."""

    def __init__(self) -> None:
        super().__init__()
        self.most_elements = self.most_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is OPERATOR:  # its work in place of it, under this mode again
            with self, torch.no_grad():
                return loss_and_gradients(*args)
        result = func(*args, **(kwargs or {}))
        given = {tensor.untyped_storage().data_ptr() for tensor in tree_leaves(args) if isinstance(tensor, Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in given:  # no view, not in place
                self.most_elements = max(self.most_elements, tensor.numel())
                self.most_bytes = max(self.most_bytes, tensor.numel() * tensor.element_size())
        return result


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_tensor_is_as_large_as_all_logits(dtype: torch.dtype) -> None:
    given = inputs(dtype, n=200)
    with Allocations() as theirs:
        values(all_logits, given)
    with Allocations() as ours:
        values(chunked(16), given)
    assert theirs.most_elements == 200 * V, "the counter sees what it should"
    assert ours.most_elements == 200 * C, "what is largest is as large as hidden: its gradient"


def test_chunks_keep_to_their_budget_whatever_the_rows() -> None:
    vocabulary, rows = 20_000, 2_000
    hidden, weight = torch.randn(rows, 2), torch.randn(vocabulary, 2, requires_grad=True)
    targets = torch.randint(vocabulary, (rows,))
    with Allocations() as seen:
        linear_cross_entropy(hidden, weight, targets).backward()
    assert CHUNK_BYTES // 2 < seen.most_bytes <= CHUNK_BYTES < rows * vocabulary * 4


def test_an_upstream_gradient_scales_and_losses_accumulate() -> None:
    given = inputs()
    hidden, weight, bias, targets = given
    for found, wanted in zip(values(chunked(8), given, 65_536.0), exact(given, 65_536.0), strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-2)
    parts = [slice(0, 10), slice(10, N)]
    counted = [(targets[part] != -100).sum() for part in parts]
    for part, count in zip(parts, counted, strict=True):
        loss = linear_cross_entropy(hidden[part], weight, targets[part], bias=bias)
        (loss * (count / sum(counted))).backward()
    for tensor, wanted in zip((hidden, weight, bias), exact(given)[1:], strict=True):
        assert tensor.grad is not None
        torch.testing.assert_close(tensor.grad.double(), wanted, rtol=1e-5, atol=1e-6)


def test_float16_gradients_survive_the_mean_over_many_rows() -> None:
    """Of a million rows 1 / N is hardly a float16 any more, and the sum over them is none; the mean is."""
    rows = 2**20
    hidden, weight = torch.full((rows, 1), 0.5, dtype=torch.float16), torch.zeros(2, 1, dtype=torch.float16)
    targets = torch.zeros(rows, dtype=torch.int64)
    loss = linear_cross_entropy(hidden, weight.requires_grad_(), targets)
    loss.backward()
    assert weight.grad is not None
    assert weight.grad.flatten().tolist() == [-0.25, 0.25]


def test_a_tied_head_gets_both_gradients() -> None:
    _, weight, _, targets = inputs()
    tokens = torch.randint(V, (N,))
    ours, theirs = (
        torch.autograd.grad(loss(F.embedding(tokens, weight).tanh(), weight, targets), weight)[0]
        for loss in (chunked(8), all_logits)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_kept_graph_gives_its_gradients_again() -> None:
    given = inputs()
    hidden, weight, bias, targets = given
    loss = linear_cross_entropy(hidden, weight, targets, bias=bias)
    first = torch.autograd.grad(loss * 3, [hidden, weight, bias], retain_graph=True)
    second = torch.autograd.grad(loss * 3, [hidden, weight, bias])
    for before, after in zip(first, second, strict=True):
        assert torch.equal(before, after)


def test_a_second_derivative_is_an_error_not_zero() -> None:
    hidden, weight, _, targets = inputs()
    (gradient,) = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets), hidden, create_graph=True)
    with pytest.raises(UsageError, match="cannot be differentiated again"):
        gradient.square().sum().backward()


def test_only_what_is_trained_gets_a_gradient() -> None:
    hidden, weight, bias, targets = inputs()
    frozen = weight.detach()
    loss = linear_cross_entropy(hidden, frozen, targets, bias=bias)
    (gradient,) = torch.autograd.grad(loss, hidden)
    torch.testing.assert_close(gradient, torch.autograd.grad(all_logits(hidden, frozen, targets, bias), hidden)[0])
    with torch.no_grad(), Allocations() as seen:
        assert not linear_cross_entropy(hidden, weight, targets, chunk=4).requires_grad
    assert seen.most_elements == 4 * V, "evaluation makes logits, and no gradients"


def test_autocast_casts_the_products_and_spares_the_gradients() -> None:
    given = inputs()
    true = exact(given)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = values(chunked(8), given), values(all_logits, given)
        wide = values(linear_cross_entropy, inputs(torch.float64))
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=0)  # the same bfloat16 products
    assert ours[0] != values(chunked(8), given)[0]
    assert [tensor.dtype for tensor in ours] == [torch.float32] * 4
    for found, plain, wanted in zip(ours[1:], theirs[1:], true[1:], strict=True):
        assert error(found, wanted) <= 1.5 * error(plain, wanted)
    assert [tensor.dtype for tensor in wide] == [torch.float64] * 4, "as F.linear, autocast leaves float64 alone"


def test_the_operator_keeps_torchs_rules() -> None:
    hidden, weight, bias, targets = inputs()
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    for chunk, trained in ((8, [True, True, True]), (None, [True, False, False])):
        args = (hidden, weight, targets, bias, torch.float32, chunk, -100, trained)
        torch.library.opcheck(OPERATOR, args, test_utils=checks)
        # The fourth check also differentiates the gradients that the operator returns, which is refused, see above.
        plain = tuple(arg.detach() if isinstance(arg, Tensor) else arg for arg in args)
        torch.library.opcheck(OPERATOR, plain)
    meta = [tensor.detach().to("meta") for tensor in (hidden, weight, targets)]
    assert linear_cross_entropy(*meta).shape == ()


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_it_compiles_as_one_graph_for_any_number_of_rows(backend: str) -> None:
    torch._dynamo.reset()
    _, weight, bias, _ = inputs()

    def loss(hidden: Tensor, targets: Tensor, lower: bool) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=lower):
            return linear_cross_entropy(hidden.tanh(), weight, targets, bias=bias, chunk=8) * 2

    compiled = torch.compile(loss, fullgraph=True, backend=backend, dynamic=True)
    for n, lower in ((N, False), (N + 13, False), (N, True)):
        hidden, _, _, targets = inputs(n=n)
        results = []
        for function in (compiled, loss):
            result = function(hidden, targets, lower)
            results.append([result, *torch.autograd.grad(result, [hidden, weight, bias])])
        for found, wanted in zip(*results, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_it_exports() -> None:
    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(C, V)

        def forward(self, hidden: Tensor, targets: Tensor) -> Tensor:
            return linear_cross_entropy(hidden, self.head.weight, targets, bias=self.head.bias)

    module, (hidden, _, _, targets) = Loss(), inputs()
    program = torch.export.export(module, (hidden.detach(), targets))
    assert [node.target for node in program.graph.nodes if node.op == "call_function"].count(OPERATOR) == 1
    torch.testing.assert_close(program.module()(hidden.detach(), targets), module(hidden, targets))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": torch.tensor([0] * (N - 1) + [V])}, f"target {V} is not one of the {V} token ids"),
        ({"targets": torch.tensor([-1] * N)}, "target -1 is not one of"),
        ({"targets": torch.zeros(N - 1, dtype=torch.int64)}, "do not fit together"),
        ({"targets": torch.zeros(N, dtype=torch.int32)}, "torch.int32"),
        ({"weight": torch.zeros(V, C + 1)}, "do not fit together"),
        ({"weight": torch.zeros(V, C, dtype=torch.bfloat16)}, "in one floating dtype, or under autocast"),
        ({"bias": torch.zeros(V + 1)}, "do not fit together"),
        ({"chunk": 0}, "0 is not a number of rows"),
    ],
    ids=["target V", "target -1", "few targets", "int32", "width", "dtypes", "bias", "chunk"],
)
def test_what_does_not_fit_is_said(change: dict[str, Any], message: str) -> None:
    hidden, weight, bias, targets = inputs()
    arguments: dict[str, Any] = {"hidden": hidden, "weight": weight, "targets": targets, "bias": bias} | change
    with pytest.raises(UsageError, match=message):
        linear_cross_entropy(**arguments)
