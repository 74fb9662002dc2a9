"""A launch that is made again passes what Triton would have bound: the numbers of its kind, and the new tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is there on Linux only")
from triton.tools.tensor_descriptor import TensorDescriptor

from archbench.kernels import attention_op
from archbench.kernels.attention_op import fused_attention
from archbench.kernels.fused import repeated_launches
from archbench.kernels.fused.launches import backward_launches, forward_launch
from archbench.kernels.fused.repeated_launches import keep_launches, kind_of, launched_again
from archbench.kernels.launch import Launch

HOW: dict[str, Any] = {"window": 5, "scale": 0.3, "precision": "ieee", "chip": "sm_90"}


class Recorder:
    """In the place of Triton's compiled kernel."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[int, ...], tuple[Any, ...]]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *values: self.calls.append((grid, values))


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeated_launches, "_kept", {})


def tensors(T: int = 40, D: int = 64) -> tuple[Tensor, ...]:
    """grad_out, q, k, v, out, lse, delta and the three gradients, all different."""
    wide = [torch.randn(2, T, heads, D).bfloat16().transpose(1, 2) for heads in (4, 4, 2, 2, 4, 4, 2, 2)]
    grad_out, q, k, v, out, *gradients = wide
    return grad_out, q, k, v, out, torch.randn(2, 4, T), torch.randn(2, 4, T), *gradients


@pytest.mark.parametrize("D", [64, 48], ids=["descriptors", "pointers"])
@pytest.mark.parametrize("backward", [False, True])
def test_the_second_launch_of_a_kind_passes_what_a_new_one_would(backward: bool, D: int) -> None:
    def launches(made: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], list[Launch]]:
        if backward:
            return made, backward_launches(*made, **HOW)
        return made[1:6], [forward_launch(*made[1:6], **HOW)]

    used, first = launches(tensors(D=D))
    recorders = [Recorder() for _ in first]
    keep_launches(kind_of("it", used), used, first, recorders)
    others, wanted = launches(tensors(D=D))
    assert launched_again(kind_of("it", others), others)

    for recorder, launch in zip(recorders, wanted, strict=True):
        ((grid, values),) = recorder.calls
        assert grid == (*launch.grid, 1, 1)
        for name, value in zip(launch.kernel.arg_names, values, strict=True):
            expected = launch.arguments[name]
            if isinstance(expected, TensorDescriptor):
                assert value.base is expected.base
                assert {**vars(value), "base": None} == {**vars(expected), "base": None}
            else:
                assert value is expected if isinstance(expected, Tensor) else value == expected, name


def test_another_kind_is_not_launched_again() -> None:
    used = tensors()[1:6]
    keep_launches(kind_of("forward", used, 5), used, [forward_launch(*used, **HOW)], [Recorder()])
    q, *rest = used
    shifted = torch.empty(q.numel() + 1, dtype=q.dtype)[1:].view(2, 40, 4, 64).transpose(1, 2)
    for kind in (
        kind_of("forward", tensors(T=41)[1:6], 5),
        kind_of("forward", tensors(D=48)[1:6], 5),
        kind_of("forward", used, 6),
        kind_of("forward", (q.half(), *rest), 5),
        kind_of("forward", (q.contiguous(), *rest), 5),
        kind_of("forward", (shifted, *rest), 5),
    ):
        assert not launched_again(kind, used)
    assert launched_again(kind_of("forward", used, 5), used)
    keep_launches(kind_of("interpreted", used), used, [forward_launch(*used, **HOW)], [None])
    assert not launched_again(kind_of("interpreted", used), used), "the interpreter compiles nothing"


def test_attention_without_the_operators_has_their_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    forward, backward = torch.ops.archbench.causal_attention_forward, torch.ops.archbench.causal_attention_backward
    monkeypatch.setattr(attention_op, "_forward_on_gpu", forward)
    monkeypatch.setattr(attention_op, "_backward_on_gpu", backward)
    q, k, v = (torch.randn(1, heads, 9, 8, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2))
    upstream = torch.randn(1, 4, 9, 8, dtype=torch.float64)
    expected = fused_attention(q, k, v, window=4, scale=0.3, precision="ieee")
    out = attention_op._DirectAttention.apply(q, k, v, 4, 0.3, "ieee")
    torch.testing.assert_close(out, expected)
    for found, wanted in zip(
        torch.autograd.grad(out, (q, k, v), upstream), torch.autograd.grad(expected, (q, k, v), upstream), strict=True
    ):
        torch.testing.assert_close(found, wanted)
