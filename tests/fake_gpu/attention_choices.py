"""Which attention runs on a GPU, by the kernel that the host launches. test_attention_choice.py starts these tests.

cuDNN itself cannot run over the counting libraries: a call that reaches it is stopped just before.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from counts import by_name, counted
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from archbench.errors import DeviceError
from archbench.kernels import attention_rules, causal_attention, record_attention, resolve_attention
from archbench.kernels.attention_backends import forget_decisions, rules
from archbench.kernels.attention_rules import MeasuredCase

FLASH, EFFICIENT = "flash_fwd", "fmha_cutlass"


@pytest.fixture(autouse=True)
def _decided_anew() -> Iterator[None]:
    forget_decisions()
    yield
    attention_rules.use_measured([])


def tensors(T: int = 64, S: int | None = None, D: int = 64, G: int = 4, **how: object) -> tuple[Tensor, Tensor, Tensor]:
    kind = {"device": "cuda", "dtype": torch.bfloat16, **how}
    q = torch.zeros(2, T, 4, D, **kind).transpose(1, 2)  # type: ignore[arg-type]
    k, v = (torch.zeros(2, S or T, G, D, **kind).transpose(1, 2) for _ in range(2))  # type: ignore[arg-type]
    return q, k, v


def ran(backend: str, *qkv: Tensor, window: int | None = None) -> tuple[set[str], str]:
    """What is recorded, and the names of the kernels that were launched."""
    with record_attention() as recorded:
        counted(partial(causal_attention, *qkv, window=window, backend=backend))
    return recorded, " ".join(by_name())


class ReachedCudnnError(Exception):
    """The call would have gone to cuDNN."""


class BeforeCudnn(TorchDispatchMode):
    """Stops a call of cuDNN."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "cudnn_attention" in str(func):
            raise ReachedCudnnError
        return func(*args, **(kwargs or {}))


def reaches_cudnn(backend: str, *qkv: Tensor) -> bool:
    try:
        with BeforeCudnn():
            causal_attention(*qkv, backend=backend)
    except ReachedCudnnError:
        return True
    return False


def test_torch_alone_would_take_cudnn_for_every_call_and_archbench_does_not() -> None:
    for T, S in ((64, 64), (1, 77)):
        assert torch._fused_sdp_choice(*tensors(T, S), is_causal=T == S) == 3
        recorded, launched = ran("sdpa", *tensors(T, S))
        assert recorded == {"sdpa-flash"}
        assert FLASH in launched
    assert torch.backends.cuda.cudnn_sdp_enabled(), "the switches are as they were"


def test_training_takes_cudnn_whose_plan_then_serves_every_step() -> None:
    q, k, v = tensors(requires_grad=True)
    for backend in ("auto", "sdpa", "sdpa-cudnn"):
        with record_attention() as recorded:
            assert reaches_cudnn(backend, q, k, v)
        assert recorded == {"sdpa-cudnn"}
    assert torch.backends.cuda.flash_sdp_enabled(), "the switches are as they were, after an error too"


def test_a_distrusted_cudnn_is_not_chosen_but_can_be_asked_for() -> None:
    q, k, v = tensors(requires_grad=True)
    for backend in ("auto", "sdpa"):
        assert not reaches_cudnn(backend, q, k, v)
    assert reaches_cudnn("sdpa-cudnn", q, k, v)


def test_no_token_of_a_decoding_takes_cudnn_and_asking_for_it_is_an_error() -> None:
    for backend in ("auto", "sdpa"):
        for S in range(60, 70):
            for G in (4, 2):
                recorded, launched = ran(backend, *tensors(1, S, G=G))
                assert recorded == {"sdpa-flash"}
                assert FLASH in launched
    with pytest.raises(DeviceError, match=r"sdpa-cudnn.*plan for each shape.*sdpa-flash"):
        causal_attention(*tensors(1, 60), backend="sdpa-cudnn")


@pytest.mark.parametrize(
    ("backend", "kernel"), [("sdpa-flash", FLASH), ("sdpa-efficient", EFFICIENT), ("sdpa-math", "softmax")]
)
def test_a_kernel_that_is_asked_for_is_the_one_that_runs(backend: str, kernel: str) -> None:
    for G in (4, 2):
        recorded, launched = ran(backend, *tensors(G=G))
        assert recorded == {backend}
        assert kernel in launched
    assert (FLASH in launched) is (kernel == FLASH)


@pytest.mark.parametrize(
    ("backend", "qkv", "window", "cause"),
    [
        ("sdpa-flash", {"dtype": torch.float32}, None, "float16 and bfloat16, but q is float32"),
        ("sdpa-flash", {"T": 16, "S": 64}, None, "takes no mask"),
        ("sdpa-flash", {}, 8, "takes no mask"),
        ("sdpa-flash", {"D": 288}, None, "head width 288"),
        ("sdpa-efficient", {"D": 36}, None, "head width 36"),
        ("sdpa-cudnn", {"dtype": torch.float32}, None, "q is float32"),
    ],
)
def test_one_that_cannot_run_is_an_error_that_says_why(
    backend: str, qkv: dict[str, object], window: int | None, cause: str
) -> None:
    with pytest.raises(DeviceError, match=rf"attention '{backend}': .*{cause}.*Use auto, or one of .*sdpa-math"):
        causal_attention(*tensors(**qkv), window=window, backend=backend)  # type: ignore[arg-type]


def test_masks_go_to_the_kernels_that_take_them() -> None:
    assert ran("auto", *tensors(16, 64))[0] == {"triton"}
    for G in (4, 2):
        recorded, launched = ran("sdpa", *tensors(16, 64, G=G))
        assert recorded == {"sdpa-efficient"}
        assert EFFICIENT in launched


def test_auto_takes_the_fastest_that_is_published_until_this_gpu_is_measured() -> None:
    asked = {"device_type": "cuda", "dtype": torch.bfloat16, "T": 4096, "S": 4096, "D": 128}
    assert resolve_attention("auto", **asked, gradients=True) == "sdpa-cudnn"  # 595 TFLOP/s, Triton's tutorial 395
    assert resolve_attention("auto", **asked) == "triton"  # 353, FlashAttention-2 319
    assert resolve_attention("auto", **{**asked, "T": 512, "S": 512}) == "sdpa-flash"  # 191, 146
    assert rules == {"published"}

    case = MeasuredCase("bfloat16", 128, 12, False, ("sdpa-cudnn", "sdpa-flash", "triton"), ("triton", "sdpa-cudnn"))
    attention_rules.use_measured([case])
    assert resolve_attention("auto", **asked, gradients=True) == "triton"
    assert resolve_attention("auto", **asked) == "sdpa-flash", "without gradients a plan a shape is never worth it"
    assert rules == {"measured"}
    assert resolve_attention("auto", **{**asked, "D": 64}, gradients=True) == "sdpa-cudnn", "which was not measured"


@pytest.mark.parametrize("backend", ["sdpa-flash", "sdpa-efficient", "sdpa"])
def test_compiled_code_runs_the_chosen_kernel(backend: str) -> None:
    torch._dynamo.reset()
    for q, k, v in (tensors(), tensors(1, 77)):
        attend = torch.compile(
            lambda q, k, v: causal_attention(q, k, v, backend=backend), fullgraph=True, backend="aot_eager"
        )
        attend(q, k, v)
        counted(partial(attend, q, k, v))
        assert (EFFICIENT if backend == "sdpa-efficient" else FLASH) in " ".join(by_name())


def test_a_captured_graph_holds_the_chosen_kernel() -> None:
    q, k, v = tensors(1, 77)
    causal_attention(q, k, v)
    graph = torch.cuda.CUDAGraph()
    with record_attention() as recorded, torch.cuda.graph(graph):
        causal_attention(q, k, v)
    assert recorded == {"sdpa-flash"}


def test_the_choice_costs_little_of_the_hosts_time() -> None:
    import time

    q, k, v = tensors(512)

    def seconds(call: object) -> float:
        times = []
        for _ in range(400):
            start = time.perf_counter()
            call()  # type: ignore[operator]
            times.append(time.perf_counter() - start)
        return sorted(times)[len(times) // 2]

    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        plain = seconds(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True))
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)
    chosen = seconds(lambda: causal_attention(q, k, v, backend="sdpa"))
    assert chosen < 4 * plain, f"{chosen * 1e6:.1f} µs, and {plain * 1e6:.1f} without a choice"
