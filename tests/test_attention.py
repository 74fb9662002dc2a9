"""Attention is the textbook definition, in values and gradients, by the backend that was asked for or is best here.

FlexAttention, whose kernels take seconds to compile, has tests/test_attention_flex.py.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from archbench.errors import DeviceError, UsageError
from archbench.kernels import (
    attention_backend,
    attention_backends,
    attention_sdpa,
    causal_attention,
    record_attention,
    resolve_attention,
)
from archbench.kernels.fused.configurations import configuration_for
from attention_definition import naive_attention
from pairwise import pairwise

BACKENDS = ("sdpa", "reference")
EAGER = (*BACKENDS, "blocks")
CPU_KERNELS = ("sdpa-flash", "sdpa-math")

SHAPES = [  # B, H, G, T, S, D
    (2, 4, 4, 9, 9, 8),
    (1, 4, 2, 9, 9, 8),
    (2, 6, 1, 5, 12, 4),
    (2, 4, 2, 1, 7, 8),
    (1, 2, 2, 1, 1, 8),
    (1, 3, 3, 2, 33, 16),
    (1, 3, 1, 20, 21, 80),
    (1, 4, 2, 150, 170, 16),  # where a window goes over it in blocks
]


@pairwise(shape=SHAPES, window=[None, 1, 3, 50], backend=(*EAGER, *CPU_KERNELS), scale=[None, 0.3])
def test_backends_equal_the_definition(
    backend: str, shape: tuple[int, ...], window: int | None, scale: float | None
) -> None:
    torch.manual_seed(0)
    B, H, G, T, S, D = shape
    q = torch.randn(B, H, T, D, requires_grad=True)
    k, v = (torch.randn(B, G, S, D, requires_grad=True) for _ in range(2))
    upstream = torch.randn(B, H, T, D)

    expected = naive_attention(q, k, v, window, scale)
    expected_gradients = torch.autograd.grad(expected, (q, k, v), upstream.double())
    out = causal_attention(q, k, v, window=window, scale=scale, backend=backend)
    gradients = torch.autograd.grad(out, (q, k, v), upstream)

    assert out.dtype == q.dtype
    torch.testing.assert_close(out, expected.float(), atol=1e-5, rtol=1e-5)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", EAGER)
def test_half_precision_is_within_its_rounding(backend: str) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 40, 16).bfloat16()
    out = causal_attention(q, k, v, backend=backend)
    assert out.dtype == torch.bfloat16
    # bfloat16 keeps 8 bits: a relative 2**-8 for each of the four roundings of numbers up to about 2.
    torch.testing.assert_close(out, naive_attention(q, k, v, None, None).bfloat16(), atol=4 * 2 * 2**-8, rtol=0)


@pytest.mark.parametrize("backend", EAGER)
def test_keys_of_a_preallocated_cache_need_no_copy(backend: str) -> None:
    torch.manual_seed(0)
    q, cache = torch.randn(2, 3, 2, 8), torch.randn(2, 2, 3, 20, 8)
    k, v = cache[:, :, :, :7]
    expected = naive_attention(q, k, v, None, None).float()
    torch.testing.assert_close(causal_attention(q, k, v, backend=backend), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", EAGER)
def test_dropout_keeps_the_mean(backend: str) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 6, 8)
    expected = causal_attention(q, k, v)
    draws = torch.stack([causal_attention(q, k, v, dropout=0.25, backend=backend) for _ in range(1500)])
    assert not torch.equal(draws[0], draws[1])
    # Five standard errors of a mean of 1,500.
    assert ((draws.mean(0) - expected).abs() <= 5 * draws.std(0) / math.sqrt(1500) + 1e-6).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_as_one_graph_and_is_recorded(backend: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda q, k, v: causal_attention(q, k, v, window=4, backend=backend), fullgraph=True, backend="aot_eager"
    )
    q, k, v = torch.randn(3, 1, 2, 6, 8)
    for _ in range(2):
        with record_attention() as ran:
            out = compiled(q, k, v)
        assert ran == {backend}
    torch.testing.assert_close(out, causal_attention(q, k, v, window=4, backend="reference"))


def test_what_ran_is_recorded_and_not_what_was_asked_for() -> None:
    q, k, v = torch.randn(3, 1, 2, 6, 8)
    with record_attention() as everything:
        causal_attention(q, k, v)
        with record_attention() as ran, attention_backend("reference"):
            causal_attention(q, k, v)
        causal_attention(q, k, v, backend="auto")
    assert ran == {"reference"}
    assert everything == {"reference", "sdpa"}


def test_ambient_backend_ends_with_its_context() -> None:
    q, k, v = torch.randn(3, 1, 2, 6, 8)
    with pytest.raises(ZeroDivisionError), attention_backend("reference"):
        1 / 0  # noqa: B018
    with record_attention() as ran:
        causal_attention(q, k, v)
    assert ran == {"sdpa"}


def test_meta_device_uses_countable_matrix_products() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    q, k, v = torch.empty(3, 2, 4, 16, 8, device="meta")
    with FlopCounterMode(display=False) as counter, attention_backend("sdpa"):
        causal_attention(q, k, v)
    assert counter.get_total_flops() == 2 * (2 * 2 * 4 * 16 * 16 * 8)


@pytest.mark.parametrize("backend", attention_backends.BACKENDS)
def test_on_the_meta_device_every_choice_is_accepted(backend: str) -> None:
    q, k, v = torch.empty(3, 2, 4, 16, 8, device="meta")
    with record_attention() as ran:
        causal_attention(q, k, v, backend=backend, precision="tf32", dropout=0.1)
    assert ran == {"reference"}


def test_auto_avoids_sdpa_where_it_leaves_its_fast_path() -> None:
    sizes = {"device_type": "cpu", "T": 512, "S": 512, "D": 64}
    assert resolve_attention("auto", dtype=torch.float32, **sizes) == "sdpa"
    assert resolve_attention("auto", dtype=torch.float32, dropout=0.1, **sizes) == "reference"
    assert resolve_attention("auto", dtype=torch.bfloat16, **sizes) == "reference"
    assert resolve_attention("sdpa", dtype=torch.float32, dropout=0.1, **sizes) == "sdpa"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.zeros(1, 3, 6, 8), "v": torch.zeros(1, 3, 6, 8)}, "do not fit together"),
        ({"k": torch.zeros(1, 2, 5, 8), "v": torch.zeros(1, 2, 5, 8)}, "do not fit together"),
        ({"v": torch.zeros(1, 2, 6, 4)}, "do not fit together"),
        ({"window": 0}, "window"),
        ({"dropout": 1.0}, "dropout"),
        ({"backend": "spda"}, "Did you mean 'sdpa'"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(change: dict[str, object], message: str) -> None:
    arguments = {name: torch.zeros(1, 2, 6, 8) for name in "qkv"}
    with pytest.raises(UsageError, match=message):
        causal_attention(**{**arguments, **change})  # type: ignore[arg-type]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """What torch would say of a GPU; the decisions are archbench's own."""
    facts = SimpleNamespace(capability=(9, 0), architecture="", cudnn=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: facts.capability)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(gcnArchName=facts.architecture)
    )
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(
        attention_sdpa, "_torch_says_yes", lambda kernel, dtype, D, *others: facts.cudnn or kernel != "sdpa-cudnn"
    )
    monkeypatch.setattr(attention_backends, "torch_prefers_cudnn", lambda *facts_of_call: True)
    attention_backends.forget_decisions()
    yield facts
    attention_backends.forget_decisions()


ON_GPU = {"device_type": "cuda", "dtype": torch.bfloat16, "T": 1024, "S": 1024, "D": 64}


@pytest.mark.parametrize(
    ("capability", "D", "training", "inference"),
    [
        ((8, 0), 64, "triton", "triton"),
        ((8, 0), 128, "sdpa-flash", "sdpa-flash"),
        ((8, 6), 64, "sdpa-cudnn", "triton"),
        ((8, 9), 128, "sdpa-cudnn", "sdpa-flash"),
        ((9, 0), 64, "sdpa-cudnn", "triton"),
        ((9, 0), 128, "sdpa-cudnn", "triton"),
        ((10, 0), 128, "sdpa-cudnn", "triton"),
        *[(unpublished, 64, "triton", "triton") for unpublished in [(8, 7), (10, 3), (12, 0), (12, 1)]],
    ],
)
def test_auto_takes_the_fastest_that_is_published_for_the_chip(
    gpu: SimpleNamespace, capability: tuple[int, int], D: int, training: str, inference: str
) -> None:
    gpu.capability = capability
    assert resolve_attention("auto", **{**ON_GPU, "D": D}, gradients=True) == training
    assert resolve_attention("auto", **{**ON_GPU, "D": D}) == inference


def test_auto_goes_on_to_the_next_where_the_fastest_cannot_run(gpu: SimpleNamespace) -> None:
    gpu.cudnn = False
    assert resolve_attention("auto", **ON_GPU, gradients=True) == "sdpa-flash"
    for change, chosen in (
        ({"D": 8}, "sdpa-flash"),
        ({"dropout": 0.1}, "triton"),
        ({"dtype": torch.float32}, "triton"),
        ({"dtype": torch.float64}, "sdpa-efficient"),
        ({"window": 32}, "triton"),
        ({"window": 32, "D": 8}, "sdpa-efficient"),
        ({"T": 16}, "triton"),
        ({"device_type": "mps"}, "sdpa"),
    ):
        assert resolve_attention("auto", **{**ON_GPU, **change}) == chosen, change
    for backend in ("triton", "sdpa-flash", "flex", "reference"):
        assert resolve_attention(backend, **ON_GPU) == backend
    assert resolve_attention("sdpa", **ON_GPU) == "sdpa-flash"
    assert resolve_attention("auto", **ON_GPU, gradients=True, precision="tf32") == "triton"


def test_auto_leaves_single_queries_on_a_gpu_to_torchs_attention_and_says_why(
    gpu: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="archbench"):
        for T, S in ((1, 1), (1, 90), (1, 4096), (1024, 4096), (4096, 4096)):
            assert resolve_attention("auto", **{**ON_GPU, "T": T, "S": S}) == ("sdpa-flash" if T == 1 else "triton")
    single, cached, several = (record.getMessage() for record in caplog.records)
    assert "sdpa-flash" in single
    assert "single query" in single
    assert "mask" in cached
    assert "arXiv:2407.08608" in several
    assert resolve_attention("triton", **{**ON_GPU, "T": 1}) == "triton"
    assert resolve_attention("auto", **{**ON_GPU, "T": 1}, precision="tf32") == "triton", "which sdpa ignores"


def test_auto_picks_the_kernel_on_amds_gpus_by_name(gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.3")
    gpu.architecture, gpu.capability = "gfx942:sramecc+:xnack-", (9, 4)
    assert resolve_attention("auto", **ON_GPU) == "triton"


@pytest.mark.parametrize("chip", [(11, 0), (13, 0), "gfx950", "gfx90a:sramecc+"])
def test_a_chip_that_the_table_does_not_have_is_refused_by_name(
    gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, chip: tuple[int, int] | str
) -> None:
    if isinstance(chip, str):
        monkeypatch.setattr(torch.version, "hip", "6.3")
        gpu.architecture, gpu.capability, name = chip, (9, 4), chip.partition(":")[0]
    else:
        gpu.capability, name = chip, f"sm_{chip[0]}{chip[1]}"
    assert resolve_attention("auto", **ON_GPU) == "sdpa-flash"
    with pytest.raises(DeviceError, match=f"the Triton kernel's table has no configuration for {name}\\."):
        resolve_attention("triton", **ON_GPU)
    with pytest.raises(DeviceError, match=f"its table has no configuration for {name}"):
        configuration_for(name, "forward", 64, torch.bfloat16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device_type": "cpu"}, "runs only on NVIDIA and AMD GPUs, but q is on cpu"),
        ({"capability": (7, 5)}, r"compute capability 7\.5 is below the 8\.0"),
        ({"dtype": torch.float64}, "q is float64"),
        ({"D": 8}, "head widths 16 to 256, but this one is 8"),
        ({"D": 257}, "head widths 16 to 256, but this one is 257"),
    ],
)
def test_asking_for_the_kernel_where_it_cannot_run_says_why_and_what_can(
    gpu: SimpleNamespace, change: dict[str, object], message: str
) -> None:
    gpu.capability = change.pop("capability", gpu.capability)
    with pytest.raises(DeviceError, match=rf"attention 'triton': .*{message}.*Use auto, or one of sdpa, .*reference"):
        resolve_attention("triton", **{**ON_GPU, **change})


@pytest.mark.parametrize(
    ("backend", "dropout", "cause"),
    [
        ("sdpa-cudnn", 0.0, "cuDNN runs only on GPUs"),
        ("sdpa-efficient", 0.0, "efficient attention runs only on GPUs"),
        ("sdpa-flash", 0.1, "no dropout on CPUs"),
    ],
)
def test_a_kernel_of_torchs_that_cannot_run_on_a_cpu_is_refused(backend: str, dropout: float, cause: str) -> None:
    with pytest.raises(DeviceError, match=f"attention '{backend}': .*{cause}.*sdpa-math"):
        causal_attention(*torch.randn(3, 1, 2, 6, 16), backend=backend, dropout=dropout)


def test_the_kernel_asked_for_on_a_cpu_is_refused_and_never_replaced() -> None:
    q, k, v = torch.randn(3, 1, 2, 6, 16)
    with pytest.raises(DeviceError, match="q is on cpu"), attention_backend("triton"):
        causal_attention(q, k, v)


def test_a_gpu_that_torch_does_not_see_leaves_auto_with_torchs_attention() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert resolve_attention("auto", **ON_GPU) == "sdpa"  # fake tensors may claim to be anywhere


@pytest.mark.parametrize("backend", ["auto", "sdpa"])
def test_a_precision_that_no_backend_obeys_is_refused(backend: str) -> None:
    q, k, v = torch.randn(3, 1, 2, 6, 16)
    with pytest.raises(UsageError, match=r"tf32.*Triton.*sdpa"):
        causal_attention(q, k, v, backend=backend, precision="tf32")
    with pytest.raises(UsageError, match=r"precision 'tf23': .*Did you mean 'tf32'"):
        causal_attention(q, k, v, backend=backend, precision="tf23")


def test_each_distinct_decision_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    attention_backends.forget_decisions()
    with caplog.at_level(logging.INFO, logger="archbench"):
        for T in (5, 6, 6):
            causal_attention(*torch.randn(3, 1, 2, T, 16))
        causal_attention(*torch.randn(3, 1, 2, 6, 16), backend="reference")
    first, second = (record.getMessage() for record in caplog.records)
    for told in ("auto", "sdpa", "cpu", "float32", "head width 16", "Triton"):
        assert told in first
    assert "reference" in second


@pytest.mark.slow
def test_compiled_code_decides_too_with_changing_lengths() -> None:
    torch._dynamo.reset()
    attention_backends.forget_decisions()
    attend = torch.compile(causal_attention, fullgraph=True, backend="aot_eager", dynamic=True)
    for T, S in ((6, 6), (700, 700), (1, 200)):
        q, k, v = torch.randn(1, 4, T, 16).bfloat16(), *torch.randn(2, 1, 2, S, 16).bfloat16()
        with record_attention() as ran:
            out = attend(q, k, v)
        assert ran == {"reference" if T <= 512 and (T > 1 or S >= 128) else "sdpa"}
        torch.testing.assert_close(out, causal_attention(q, k, v))
    with attention_backend("reference"), record_attention() as ran:
        attend(*torch.randn(3, 1, 2, 6, 16))
    assert ran == {"reference"}, "the ambient backend is guarded on"


@pytest.mark.slow
def test_compiled_code_takes_a_changing_dropout() -> None:
    torch._dynamo.reset()
    attend = torch.compile(lambda q, k, v, p: causal_attention(q, k, v, dropout=p), fullgraph=True, backend="aot_eager")
    q, k, v = torch.randn(3, 1, 2, 6, 16)
    for p, backend in ((0.0, "sdpa"), (0.1, "reference"), (0.2, "reference"), (0.3, "reference")):
        with record_attention() as ran:
            attend(q, k, v, p)
        assert ran == {backend}


@pytest.mark.parametrize(("autotune", "recorded"), [(None, "triton"), ("0", "triton"), ("1", "triton-autotuned")])
def test_on_a_gpu_it_is_the_fused_operator_that_runs(
    gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, autotune: str | None, recorded: str
) -> None:
    """With tensors that have no data, so that no GPU is needed."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    monkeypatch.delenv("ARCHBENCH_AUTOTUNE", raising=False)
    if autotune:
        monkeypatch.setenv("ARCHBENCH_AUTOTUNE", autotune)
    with FakeTensorMode(), record_attention() as ran:
        q, k, v = (torch.empty(1, heads, 9, 16, device="cuda") for heads in (4, 2, 2))
        graph = make_fx(lambda q, k, v: causal_attention(q, k, v, window=4))(q, k, v)
    called = [str(node.target) for node in graph.graph.nodes if "archbench" in str(node.target)]
    assert ran == {recorded}
    assert called == ["archbench.causal_attention_forward.default"]
