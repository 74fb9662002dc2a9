"""What training keeps: exact counts of bytes in tensors, and the same gradients as if it kept more."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import archbench
from archbench import linear_cross_entropy
from archbench.errors import UsageError
from archbench.measure.memory import peak_extra_bytes
from archbench.nn import FeedForward, Linear, ResidualNorm

CPU = torch.device("cpu")
GELU = partial(F.gelu, approximate="tanh")


def randomised(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)
    return module


def test_a_layer_of_gpt1_keeps_ten_times_its_width_a_token() -> None:
    """The sums before both norms, queries, keys and values, attention's output, and 4C before GELU; nothing twice."""
    B, T, C, H = 2, 64, 96, 6
    tokens = torch.randint(50, (B, T))

    def peak(layers: int) -> int:
        sizes = {"vocab_size": 50, "context_length": T, "n_layer": layers, "n_head": H, "d_model": C, "d_ff": 4 * C}
        plugin = archbench.load("gpt1")
        model = plugin.build(plugin.config("nano", **sizes)).train()
        return peak_extra_bytes(lambda: model(tokens, logits=False), CPU)

    statistics = 2 * 2 + H  # means and deviations of two norms, and attention's logarithms of sums
    assert peak(4) - peak(3) <= B * T * 4 * (10 * C + statistics) * 1.01


class PostNorm(nn.Module):
    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.norm, self.feed_forward, self.out = ResidualNorm(24), FeedForward(24, 80, activation), Linear(24, 7)

    def forward(self, x: Tensor, y: Tensor, plain: bool) -> Tensor:
        if not plain:
            return self.out(self.feed_forward(self.norm(x, y)))
        norm, up, down = self.norm, self.feed_forward.up, self.feed_forward.down
        h = F.layer_norm(x + y, norm.weight.shape, norm.weight, norm.bias, norm.eps)
        h = self.feed_forward.activation(F.linear(h, up.weight, up.bias))
        return F.linear(F.linear(h, down.weight, down.bias), self.out.weight, self.out.bias)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("activation", [GELU, F.silu, F.relu], ids=["gelu", "silu", "relu"])
def test_what_is_computed_again_gives_the_gradients_of_what_is_kept(
    activation: Callable[[Tensor], Tensor], autocast: bool
) -> None:
    torch.manual_seed(0)
    model = randomised(PostNorm(activation))
    x, y, upstream = torch.randn(2, 5, 24, requires_grad=True), torch.randn(2, 5, 24), torch.randn(2, 5, 7)
    found = []
    for plain in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = model(x, y, plain)
        found.append([out.detach(), *torch.autograd.grad(out, [x, *model.parameters()], upstream.to(out.dtype))])
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)


def test_second_derivatives_and_torch_func_see_no_difference() -> None:
    model = randomised(PostNorm(GELU)).double()
    x, y = torch.randn(1, 2, 24, dtype=torch.float64, requires_grad=True), torch.randn(1, 2, 24, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(lambda x: model(x, y, False), x, fast_mode=True)
    ours, theirs = (torch.func.grad(lambda x, p=plain: model(x, y, p).sum())(x.detach()) for plain in (False, True))
    torch.testing.assert_close(ours, theirs)


def test_a_source_that_changed_before_the_backward_pass_is_an_error() -> None:
    norm, layer = ResidualNorm(24), Linear(24, 7)
    out = layer(norm(torch.randn(2, 24), torch.randn(2, 24)))
    with torch.no_grad():
        norm.weight.mul_(2)
    with pytest.raises((UsageError, RuntimeError), match=r"changed in place|inplace operation"):
        out.sum().backward()


def test_the_loss_needs_its_gradients_and_one_chunk_of_logits() -> None:
    N, V, C = 2048, 8192, 48
    hidden, weight = torch.randn(N, C, requires_grad=True), torch.randn(V, C, requires_grad=True)
    targets = torch.randint(V, (N,))
    gradients, chunk = 4 * (N * C + V * C), 4 * V * N // 2
    used = peak_extra_bytes(lambda: linear_cross_entropy(hidden, weight, targets).backward(), CPU)
    pieces = 2**20 * torch.get_num_threads()
    assert gradients + chunk <= used <= 1.05 * (gradients + chunk) + pieces


def test_the_loss_loads_no_compiler() -> None:
    """85 MB, which would be in every user's peak memory."""
    code = (
        "import sys, torch, archbench\n"
        "h, w = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)\n"
        "archbench.linear_cross_entropy(h, w, torch.tensor([0, 1, 4])).backward()\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
