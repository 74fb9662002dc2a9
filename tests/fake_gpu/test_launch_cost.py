"""What a call of the Triton kernel costs the host, beside torch's own attention: its time there is real."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median

import pytest
import torch
from counts import counted
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from archbench.errors import UsageError
from archbench.kernels import causal_attention

pytestmark = pytest.mark.slow

CALLS = 300


def tensors(**how: object) -> list[Tensor]:
    make = partial(torch.randn, 8, 512, 12, 64, device="cuda", dtype=torch.bfloat16)
    return [make().transpose(1, 2).detach().requires_grad_(bool(how)) for _ in range(3)]


def seconds(call: Callable[[], object], calls: int = CALLS) -> float:
    times = []
    for number in range(calls + 20):
        start = time.perf_counter()
        call()
        if number >= 20:
            times.append(time.perf_counter() - start)
    return median(times)


def times_of_sdpa(call: Callable[[str], object]) -> float:
    """Host time by the Triton kernel over that by sdpa-flash, as the median of alternating rounds."""
    return median(seconds(partial(call, "triton"), 60) / seconds(partial(call, "sdpa-flash"), 60) for _ in range(9))


def test_a_forward_pass_costs_the_host_no_more_than_four_calls_of_torchs() -> None:
    """Measured: 2.3; 12 before launches were repeated. Without gradients."""
    q, k, v = tensors()
    assert times_of_sdpa(lambda backend: causal_attention(q, k, v, backend=backend)) < 4


def test_a_forward_and_backward_pass_costs_no_more_than_five() -> None:
    """Measured: 2.3 to 2.8, on a busy machine. One launch against four."""
    q, k, v = tensors(gradients=True)
    upstream = torch.randn_like(q)
    cost = times_of_sdpa(
        lambda backend: torch.autograd.grad(causal_attention(q, k, v, backend=backend), (q, k, v), upstream)
    )
    assert cost < 5


def test_every_call_launches_what_the_first_did() -> None:
    q, k, v = tensors(gradients=True)
    upstream = torch.randn_like(q)

    def both() -> None:
        torch.autograd.grad(causal_attention(q, k, v, backend="triton"), (q, k, v), upstream)

    first, second, third = counted(both), counted(both), counted(both)
    assert (first.triton, first.tensor_maps) == (4, 6)  # forward; delta, keys and queries: two descriptors in three
    for again in (second, third):
        assert (again.triton, again.tensor_maps, again.syncs, again.to_device) == (4, 6, 0, 0)


def test_a_dispatch_mode_still_sees_the_operators_and_a_second_derivative_is_refused() -> None:
    class Seen(TorchDispatchMode):
        names: list[str] = []  # noqa: RUF012

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            self.names.append(str(func))
            return func(*args, **(kwargs or {}))

    q, k, v = tensors(gradients=True)
    with Seen():
        causal_attention(q, k, v, backend="triton").sum().backward()
    assert {name for name in Seen.names if name.startswith("archbench")} == {
        "archbench.causal_attention_forward.default",
        "archbench.causal_attention_backward.default",
    }
    (gradient,) = torch.autograd.grad(causal_attention(q, k, v, backend="triton").sum(), q, create_graph=True)
    with pytest.raises(UsageError, match="second derivative"):
        gradient.sum().backward()
