"""Residual, dropout and LayerNorm: the operators, the module, and what they note for their neighbours."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from archbench.errors import UsageError
from archbench.kernels import fast_dropout, linear, residual_norm, split_heads
from archbench.kernels.companions import column_sums, narrowed, note_column_sums, note_narrow
from archbench.kernels.dropout_bits import kept_scale, new_seed, philox, reference_keep
from archbench.kernels.matmul import BiasedLinear
from archbench.kernels.residual_norm import fused_residual_norm
from archbench.kernels.split_heads import reference_split_heads
from archbench.nn import ResidualNorm

FORWARD = torch.ops.archbench.residual_norm_forward.default
BACKWARD = torch.ops.archbench.residual_norm_backward.default


def inputs(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """x and y (2, 5, 12), weight and bias (12,)."""
    random = torch.Generator().manual_seed(0)
    return [
        torch.randn(*shape, generator=random).to(dtype).requires_grad_() for shape in [(2, 5, 12)] * 2 + [(12,)] * 2
    ]


def test_on_a_cpu_it_is_torchs_own_operations_bit_for_bit() -> None:
    module, (x, y, *_) = ResidualNorm(12, dropout=0.3), inputs(torch.float32)
    for training in (True, False):
        torch.manual_seed(5)
        found = module.train(training)(x, y)
        torch.manual_seed(5)
        assert torch.equal(found, F.layer_norm(x + fast_dropout(y, 0.3, training), (12,), module.weight, module.bias))


@pytest.mark.parametrize("dropped", [0, 20_000])
def test_the_operators_values_and_gradients_are_the_definitions(dropped: int) -> None:
    given, seed = inputs(), new_seed()
    x, y, weight, bias = given
    kept = reference_keep(int(seed), 1, 10, 12, dropped, x.device)[0].view(x.shape)
    readable = F.layer_norm(x + y * kept * kept_scale(dropped), (12,), weight, bias)
    found = fused_residual_norm(x, y, weight, bias, 1e-5, dropped, seed)
    torch.testing.assert_close(found, readable)
    upstream = torch.randn_like(found)
    for ours, theirs in zip(*(torch.autograd.grad(out, given, upstream) for out in (found, readable)), strict=True):
        torch.testing.assert_close(ours, theirs)
    first = torch.autograd.grad(fused_residual_norm(*given, 1e-5, dropped, seed), given, upstream, create_graph=True)
    with pytest.raises(UsageError, match="second derivative"):
        torch.autograd.grad(first[0].sum(), given)


def test_under_autocast_the_product_after_it_takes_the_narrow_output() -> None:
    x, y, weight, bias = inputs(torch.float32)
    head = torch.randn(7, 12, requires_grad=True)

    def trained(fused: bool) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            added = y.bfloat16()
            if fused:
                out = fused_residual_norm(x, added, weight, bias, 1e-5, 0, torch.tensor(0))
                assert narrowed(out).dtype == torch.bfloat16
                with torch.autocast("cpu", enabled=False):
                    assert narrowed(out) is out
            else:
                out = F.layer_norm(x + added, (12,), weight, bias)
            logits = linear(out, head)
        loss = logits.float().square().sum() + out.square().sum()
        return [logits, *torch.autograd.grad(loss, [x, y, weight, bias, head])]

    for ours, theirs in zip(trained(True), trained(False), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2 * float(theirs.detach().abs().max()))


def test_the_operators_keep_torchs_rules() -> None:
    x, y, weight, bias = inputs(torch.float32)
    plain = [tensor.detach() for tensor in (x, y, weight, bias)]
    for shift, dropped, narrow, trained in ((bias, 0, torch.bfloat16, True), (None, 9, torch.float32, True)):
        rest = (new_seed(), 1e-5, dropped, narrow, trained)
        checks = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(FORWARD, (x, y, weight, shift, *rest), test_utils=checks)
        torch.library.opcheck(FORWARD, (*plain[:3], None if shift is None else plain[3], *rest))
    _, _, total, mean, deviation = FORWARD(*plain, new_seed(), 1e-5, 0, torch.float32, True)
    torch.library.opcheck(BACKWARD, (plain[0], None, total, mean, deviation, plain[2], new_seed(), 9, torch.bfloat16))


def test_it_compiles_in_one_graph() -> None:
    torch._dynamo.reset()
    x, y, weight, bias = inputs(torch.float32)

    def normed(x: Tensor, y: Tensor) -> Tensor:
        return residual_norm(x, y, weight, bias, 1e-5, dropout=0.5, training=False)

    compiled = torch.compile(normed, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, y), normed(x, y))


def test_what_is_noted_is_forgotten_when_the_values_change() -> None:
    x = torch.ones(3, 2)
    note_column_sums(x, torch.tensor([3.0, 3.0]))
    note_narrow(x, x.bfloat16())
    assert column_sums(x, torch.float32).tolist() == [3.0, 3.0]
    x.mul_(2)
    assert column_sums(x, torch.float32).tolist() == [6.0, 6.0]
    with torch.autocast("cpu", torch.bfloat16):
        assert narrowed(x) is x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_with_its_own_bias_gradient_is_the_linear_layer(dtype: torch.dtype) -> None:
    x, weight, bias = torch.randn(2, 5, 4), torch.randn(3, 4), torch.randn(3)
    given = [tensor.to(dtype).requires_grad_() for tensor in (x, weight)] + [bias.requires_grad_()]
    upstream = torch.randn(2, 5, 3).to(dtype)
    ours: Any = BiasedLinear.apply(*given, bias.detach().to(dtype))
    theirs = F.linear(given[0], given[1], bias.to(dtype))
    assert torch.equal(ours, theirs)
    pairs = zip(*(torch.autograd.grad(y, given, upstream) for y in (ours, theirs)), strict=True)
    for found, wanted in pairs:
        assert found.dtype == wanted.dtype
        torch.testing.assert_close(found, wanted, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-2)


def test_split_heads_is_its_definition_and_its_gradient_is_written_once() -> None:
    packed = torch.randn(2, 5, 3, 4, 6, requires_grad=True)
    upstream = [torch.randn(2, 4, 5, 6) for _ in range(3)]
    ours, theirs = split_heads(packed), reference_split_heads(packed)
    assert all(map(torch.equal, ours, theirs))
    [found], [wanted] = (torch.autograd.grad(list(parts), [packed], upstream) for parts in (ours, theirs))
    assert torch.equal(found, wanted)
    assert found.is_contiguous()
    [only] = torch.autograd.grad(split_heads(packed)[1].sum(), [packed])
    assert only.sum() == 2 * 4 * 5 * 6


def test_philox_gives_the_published_numbers() -> None:
    """Random123's known answers of philox4x32, 10 rounds."""
    for seed, counter, words in (
        (0, [0] * 4, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (0x299F31D0_A4093822, [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], "d16cfe09 94fdcceb 5001e420 24126ea1"),
        (-1, [0xFFFFFFFF] * 4, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ):
        found = [f"{int(word):08x}" for word in philox(seed, *map(torch.tensor, counter))]
        assert found == words.split()
