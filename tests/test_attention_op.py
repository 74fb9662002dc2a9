"""The fused operator keeps PyTorch's contract: autograd, compile, export, autocast, DDP and FLOPs.

Here it is the closed form for CPUs. The Triton kernels that take its place on a GPU have tests of their own, in
tests/interpreted.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as multiprocessing
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from archbench.errors import UsageError
from archbench.kernels import causal_attention
from archbench.kernels.attention_op import fused_attention, register_flop_formulas
from archbench.kernels.attention_torch import visible
from archbench.kernels.dropout_bits import new_seed, reference_keep
from attention_definition import naive_attention
from pairwise import pairwise

FORWARD = torch.ops.archbench.causal_attention_forward.default
BACKWARD = torch.ops.archbench.causal_attention_backward.default

CASES = {  # B, H, G, T, S, D, W
    "causal": (2, 2, 2, 9, 9, 8, None),
    "window": (1, 2, 2, 9, 9, 8, 3),
    "grouped": (2, 6, 2, 7, 7, 4, None),
    "cached prefix": (1, 4, 2, 3, 12, 16, None),
    "all": (2, 6, 1, 5, 21, 80, 7),
}


def make(case: str, dtype: torch.dtype = torch.float64, *, transposed: bool = False) -> tuple[Tensor, ...]:
    """q (B, H, T, D), k and v (B, G, S, D); transposed: stored as (B, T, H, D)."""
    torch.manual_seed(0)
    B, H, G, T, S, D, _ = CASES[case]
    sizes = [(B, H, T, D), (B, G, S, D), (B, G, S, D)]
    if transposed:
        return tuple(torch.randn(B, T, H, D, dtype=dtype).transpose(1, 2) for B, H, T, D in sizes)
    return tuple(torch.randn(size, dtype=dtype) for size in sizes)


def attend(q: Tensor, k: Tensor, v: Tensor, window: int | None = None, scale: float = 0.3) -> Tensor:
    return fused_attention(q, k, v, window=window, scale=scale, precision="ieee")


@pairwise(case=list(CASES), scale=[0.3, -0.3, 0.0], transposed=[False, True])
def test_values_and_gradients_are_the_definitions(case: str, transposed: bool, scale: float) -> None:
    window = CASES[case][-1]
    inputs = [x.requires_grad_() for x in make(case, transposed=transposed)]
    expected = naive_attention(*inputs, window, scale)
    upstream = torch.randn_like(expected)
    out = attend(*inputs, window, scale)
    torch.testing.assert_close(out, expected)
    gradients, wanted = (torch.autograd.grad(y, inputs, upstream) for y in (out, expected))
    torch.testing.assert_close(gradients, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_is_rounded_at_the_ends_only(dtype: torch.dtype) -> None:
    inputs = [x.requires_grad_() for x in make("all", dtype)]
    out = attend(*inputs, 7)
    upstream = torch.randn_like(out)
    gradients = torch.autograd.grad(out, inputs, upstream)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected = naive_attention(*exact, 7, 0.3)
    wanted = torch.autograd.grad(expected, exact, upstream.double())
    # Arithmetic is float32's: scores up to about 20 carry errors of 20 units in the last place into the exponential.
    # Then one rounding of the result, and for gradients that of the saved output, a sum of 80 products.
    unit, floor = torch.finfo(dtype).eps, 100 * torch.finfo(torch.float32).eps
    torch.testing.assert_close(out.double(), expected, atol=2 * unit + floor, rtol=unit)
    for gradient, right in zip(gradients, wanted, strict=True):
        assert gradient.dtype == dtype
        torch.testing.assert_close(gradient.double(), right, atol=20 * unit + floor, rtol=unit)


def test_output_and_gradients_are_stored_as_the_inputs_are() -> None:
    packed = torch.randn(2, 9, 3, 4, 8, requires_grad=True)  # (B, T, 3, H, D), as of one projection
    q, k, v = packed.permute(2, 0, 3, 1, 4).unbind()
    out = attend(q, k, v)
    assert out.transpose(1, 2).is_contiguous(), "merging the heads copies nothing"
    (gradient,) = torch.autograd.grad(out, q, torch.randn_like(out))
    assert gradient.transpose(1, 2).is_contiguous()


def test_inputs_without_a_unit_last_stride_are_taken() -> None:
    q, k, v = (x.mT.contiguous().mT for x in make("causal"))
    assert q.stride(-1) != 1
    torch.testing.assert_close(attend(q, k, v), naive_attention(q, k, v, None, 0.3))


@pytest.mark.parametrize("reduce", [Tensor.sum, Tensor.mean, lambda out: out.mT.square().sum()])
def test_upstream_gradients_of_any_strides_are_taken(reduce: object) -> None:
    inputs = [x.requires_grad_() for x in make("grouped", transposed=True)]
    gradients, wanted = (
        torch.autograd.grad(reduce(y), inputs)  # type: ignore[operator]
        for y in (attend(*inputs), naive_attention(*inputs, None, 0.3))
    )
    torch.testing.assert_close(gradients, wanted)


@pytest.mark.parametrize(
    ("case", "transposed"),
    [
        pytest.param(case, transposed, marks=[] if transposed and case == "all" else pytest.mark.slow)
        for case in CASES
        for transposed in (False, True)
    ],
)
def test_opcheck_passes_forward_and_backward(case: str, transposed: bool) -> None:
    window = CASES[case][-1]
    q, k, v = make(case, torch.float32, transposed=transposed)
    out, lse = FORWARD(q, k, v, window, 0.3, "ieee")
    upstream = torch.randn_like(out)
    for gradient in (upstream, upstream[:1, :1, :1, :1].expand_as(out)):
        torch.library.opcheck(BACKWARD, (gradient, q, k, v, out, lse, window, 0.3, "ieee"))
    torch.library.opcheck(FORWARD, (q, k, v, window, 0.3, "ieee"))
    inputs = [x.requires_grad_() for x in (q, k, v)]
    torch.library.opcheck(FORWARD, (*inputs, window, 0.3, "ieee"))


def test_opcheck_passes_where_the_last_stride_is_not_one() -> None:
    q, k, v = (x.mT.contiguous().mT.requires_grad_() for x in make("cached prefix", torch.float32))
    torch.library.opcheck(FORWARD, (q, k, v, None, 0.3, "ieee"))


@pytest.mark.parametrize("case", [pytest.param("causal", marks=pytest.mark.slow), "window", "grouped", "cached prefix"])
def test_gradcheck_passes_in_float64(case: str) -> None:
    inputs = [x[..., :4].clone().requires_grad_() for x in make(case)]
    assert torch.autograd.gradcheck(lambda q, k, v: attend(q, k, v, CASES[case][-1]), inputs)


def test_a_second_derivative_is_refused_with_a_next_step() -> None:
    q, k, v = (x.requires_grad_() for x in make("causal"))
    (gradient,) = torch.autograd.grad(attend(q, k, v).sum(), q, create_graph=True)
    with pytest.raises(UsageError, match=r"no second derivative\. Use backend='reference'"):
        gradient.sum().backward()


def test_the_logarithm_of_the_sums_claims_no_gradient() -> None:
    """Its gradient is not computed, so asking for it must not yield zeros."""
    q, k, v = (x.requires_grad_() for x in make("causal"))
    out, lse = FORWARD(q, k, v, None, 0.3, "ieee")
    assert (out.requires_grad, lse.requires_grad) == (True, False)
    scores = (0.3 * q.detach()[0, 0] @ k.detach()[0, 0].T).masked_fill(torch.ones(9, 9).triu(1) > 0, -torch.inf)
    torch.testing.assert_close(lse[0, 0], scores.logsumexp(-1) / torch.tensor(2.0, dtype=q.dtype).log())


def test_mixed_dtypes_are_refused_by_name() -> None:
    q, k, v = make("causal")
    with pytest.raises(UsageError, match=r"q torch\.float64 on cpu, k torch\.float32 on cpu"):
        attend(q, k.float(), v)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_as_one_graph_forward_and_backward_with_changing_lengths(backend: str) -> None:
    torch._dynamo.reset()

    def loss(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (2 * attend(q, k, v, 5)).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    for case in ("causal", "cached prefix"):
        inputs = [x.requires_grad_() for x in make(case, transposed=True)]
        values = [f(*inputs) for f in (compiled, loss)]
        gradients, wanted = (torch.autograd.grad(value, inputs) for value in values)
        torch.testing.assert_close(*values)
        torch.testing.assert_close(gradients, wanted)


class Mixer(nn.Module):
    """Four heads over two groups, as in a model."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = self.qkv(x).view(B, T, 8, C // 4).transpose(1, 2).split([4, 2, 2], dim=1)
        return self.out(attend(q, k, v, 5).transpose(1, 2).reshape(B, T, C))


@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_exports_with_lengths_left_open(strict: bool) -> None:
    torch.manual_seed(0)
    model, x = Mixer(), torch.randn(2, 9, 16)
    length = torch.export.Dim("length", min=2, max=64)
    program = torch.export.export(model, (x,), dynamic_shapes=({1: length},), strict=strict)
    assert "archbench.causal_attention_forward" in str(program.graph)
    longer = torch.randn(2, 33, 16)
    torch.testing.assert_close(program.module()(longer), model(longer))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_to_the_dtype_of_the_moment(dtype: torch.dtype) -> None:
    q, k, v = (x.requires_grad_() for x in make("causal", torch.float32))
    with torch.autocast("cpu", dtype):
        out = attend(q, k, v.bfloat16())
        assert attend(*make("causal", torch.float64)).dtype == torch.float64, "as torch's own, it leaves float64 alone"
    assert out.dtype == dtype
    expected = naive_attention(*(x.to(dtype) for x in (q, k, v.bfloat16())), None, 0.3)
    torch.testing.assert_close(out.double(), expected, atol=torch.finfo(dtype).eps, rtol=torch.finfo(dtype).eps)
    out.sum().backward()
    assert q.grad is not None
    assert q.grad.dtype == torch.float32


def test_autocast_holds_in_compiled_code() -> None:
    torch._dynamo.reset()
    inputs = make("causal", torch.float32)
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(compiled(*inputs), attend(*inputs), atol=0, rtol=0)
        assert compiled(*inputs).dtype == torch.bfloat16


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("case", CASES)
def test_counted_flops_are_those_of_the_definition_on_the_meta_device(case: str, device: str) -> None:
    register_flop_formulas()
    window = CASES[case][-1]
    counted = []
    for where, by in ((device, attend), ("meta", lambda q, k, v, w: causal_attention(q, k, v, window=w))):
        inputs = [x.to(where).requires_grad_() for x in make(case)]
        with FlopCounterMode(display=False) as forward:
            out = by(*inputs, window)
        with FlopCounterMode(display=False) as backward:
            torch.autograd.grad(out.sum(), inputs)
        counted.append((forward.get_total_flops(), backward.get_total_flops()))
    assert counted[0] == counted[1]
    B, H, _, T, S, D, _ = CASES[case]
    assert counted[0] == (4 * B * H * T * S * D, 8 * B * H * T * S * D)


def train_in_parallel(rank: int, size: int, rendezvous: str, x: Tensor, expected: dict[str, Tensor]) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size)
    try:
        torch.manual_seed(0)
        model = nn.parallel.DistributedDataParallel(nn.Sequential(Mixer(), Mixer()))
        for _ in range(2):  # the second step runs with the buckets rebuilt
            model.zero_grad()
            model(x.chunk(size)[rank]).square().mean().backward()
        for name, parameter in model.module.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name])
    finally:
        torch.distributed.destroy_process_group()
    # Gloo's threads may still be releasing tensors: they need the interpreter, and abort when they find it finalizing.
    os._exit(0)


@pytest.mark.slow
def test_two_processes_average_the_gradients_of_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(Mixer(), Mixer()), torch.randn(4, 9, 16)
    model(x).square().mean().backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    multiprocessing.spawn(train_in_parallel, (2, str(tmp_path / "rendezvous"), x, expected), nprocs=2)


@pytest.mark.parametrize("case", ["grouped", "cached prefix", "all"])
def test_dropout_has_one_mask_forward_and_backward_which_is_that_of_its_seed(case: str) -> None:
    B, H, _, T, S, _, window = CASES[case]
    inputs = [x.requires_grad_() for x in make(case)]
    torch.manual_seed(3)
    seed = new_seed()
    torch.manual_seed(3)
    out = fused_attention(*inputs, window=window, scale=0.3, precision="ieee", dropout=0.25)
    kept = reference_keep(int(seed), B * H, S, S, 2**14, out.device)[:, S - T :].view(B, H, T, S)
    q, k, v = (x.repeat_interleave(H // x.shape[1], 1) for x in inputs)
    scores = (q @ k.mT * 0.3).masked_fill(~visible(T, S, window, out.device), -torch.inf)
    expected = (scores.softmax(-1) * kept / 0.75) @ v
    torch.testing.assert_close(out, expected)
    upstream = torch.randn_like(out)
    gradients, wanted = (torch.autograd.grad(y, inputs, upstream) for y in (out, expected))
    torch.testing.assert_close(gradients, wanted)


def test_opcheck_passes_with_dropout() -> None:
    q, k, v = (x.requires_grad_() for x in make("grouped"))
    given = (None, 0.3, "ieee", new_seed(), 2**14)
    torch.library.opcheck(FORWARD, (q, k, v, *given))
    out, lse = FORWARD(q.detach(), k.detach(), v.detach(), *given)
    torch.library.opcheck(BACKWARD, (torch.randn_like(out), q.detach(), k.detach(), v.detach(), out, lse, *given))


def test_compiled_dropout_draws_another_mask_at_every_call() -> None:
    torch._dynamo.reset()
    q, k, v = make("grouped")

    @torch.compile(fullgraph=True, backend="aot_eager")
    def dropping(q: Tensor) -> Tensor:
        return fused_attention(q, k, v, window=None, scale=0.3, precision="ieee", dropout=0.5)

    first = dropping(q)
    assert not torch.equal(first, dropping(q))
