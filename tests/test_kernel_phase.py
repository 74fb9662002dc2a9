"""The kernel phase measures what it says: exact errors, counted pairs, alternation, and no speed of a wrong result."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from archbench import config as configs
from archbench.config import KernelConfig
from archbench.errors import DeviceError
from archbench.kernels.attention_backends import BACKENDS
from archbench.measure.clock import CPUClock
from archbench.measure.memory import peak_extra_bytes
from archbench.runs.kernel_cases import (
    DEFAULTS,
    AttentionCase,
    Candidate,
    Exact,
    LossCase,
    cases,
    exact_attention,
    exact_loss,
)
from archbench.runs.kernel_timing import measure_case, run_kernel
from archbench.runs.rows import Rows

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"lengths": (32,), "losses": ((32, 16, 64),), "batch_size": 1, "repeats": 10, "warmup": 1}


def small(**values: Any) -> KernelConfig:
    return KernelConfig(
        **{**SMALL, "query_heads": 4, "head_widths": (16,), "backends": ("sdpa", "reference"), **values}
    )


@dataclass
class FakeCase:
    """A case of candidates that a test makes up; everyone's exact output is its input."""

    runs: dict[str, Callable[[Tensor], Tensor]]
    columns: dict[str, Any] = field(default_factory=dict)
    flops: tuple[int, int] = (1000, 2000)
    speeds_apart: bool = True
    memory_for_exact: bool = True

    def __str__(self) -> str:
        return "made up"

    def candidates(self, seed: int, device: torch.device, dtype: torch.dtype) -> tuple[list[Candidate], Any]:
        x = torch.linspace(1, 2, 8, dtype=dtype, requires_grad=True)

        def exact() -> Exact:
            if not self.memory_for_exact:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return Exact(x.detach().double(), (torch.ones(8, dtype=torch.float64),))

        names = self.runs.items()
        return [Candidate(name, {"attention": name}, (x,), torch.ones(8), run) for name, run in names], exact


def measured(
    runs: dict[str, Callable[[Tensor], Tensor]], clock: Any = None, **values: Any
) -> tuple[list[Any], list[Any]]:
    rows = Rows("kernel")
    left_out = measure_case(FakeCase(runs), small(**values), CPU, clock or CPUClock(), rows)
    return rows.finished(), left_out


def values(rows: list[Any], metric: str, attention: str) -> list[Any]:
    return [row["value"] for row in rows if (row["metric"], row["attention"]) == (metric, attention)]


@pytest.mark.parametrize(("T", "W"), [(1, None), (7, None), (7, 1), (7, 3), (7, 7), (7, 100)])
def test_flops_count_each_visible_pair_once(T: int, W: int | None) -> None:
    case = AttentionCase(B=2, H=6, G=3, T=T, D=16, W=W, backends=("sdpa",))
    pairs = sum(1 for query in range(T) for key in range(T) if key <= query and (W is None or query - key < W))
    # Two products of D multiply-adds a pair forward, five backward (Dao 2023, section 4.1).
    assert case.flops == (2 * 2 * 16 * pairs * 2 * 6, 5 * 2 * 16 * pairs * 2 * 6)


def test_a_loss_counts_three_products() -> None:
    assert LossCase(N=3, C=5, V=7).flops == (2 * 3 * 5 * 7, 4 * 3 * 5 * 7)


@pytest.mark.parametrize("window", [None, 1, 5, 100])
@pytest.mark.parametrize("block", [40, 2**25], ids=["in blocks", "at once"])
def test_errors_are_against_the_definition_in_float64(
    window: int | None, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blockwise computation agrees with the whole (T, T) square, written down for each head."""
    monkeypatch.setattr("archbench.runs.kernel_cases._BLOCK", block)
    B, H, G, T, D = 2, 4, 2, 9, 16
    q, upstream = (torch.randn(B, H, T, D) for _ in range(2))
    k, v = (torch.randn(B, G, T, D) for _ in range(2))
    q64, k64, v64 = (x.double().requires_grad_() for x in (q, k, v))
    heads = []
    for head in range(H):
        scores = q64[:, head] @ k64[:, head // 2].transpose(1, 2) / 4  # sqrt(16)
        for query in range(T):
            for key in range(T):
                if key > query or (window is not None and query - key >= window):
                    scores = scores.index_put(
                        (torch.arange(B), torch.tensor(query), torch.tensor(key)), torch.tensor(-1e300).double()
                    )
        heads.append(scores.softmax(-1) @ v64[:, head // 2])
    output = torch.stack(heads, dim=1)
    gradients = torch.autograd.grad(output, (q64, k64, v64), upstream.double())
    exact = exact_attention(q, k, v, upstream, window)
    for found, wanted in zip((exact.output, *exact.gradients), (output, *gradients), strict=True):
        torch.testing.assert_close(found, wanted.detach(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("block", [70, 2**25], ids=["in blocks", "at once"])
def test_the_exact_loss_is_that_of_all_logits(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("archbench.runs.kernel_cases._BLOCK", block)
    hidden, weight, targets = torch.randn(9, 5), torch.randn(21, 5), torch.randint(21, (9,))
    hidden64, weight64 = (x.double().requires_grad_() for x in (hidden, weight))
    loss = torch.nn.functional.cross_entropy(hidden64 @ weight64.T, targets)
    exact = exact_loss(hidden, weight, targets)
    for found, wanted in zip(
        (exact.output, *exact.gradients), (loss, *torch.autograd.grad(loss, (hidden64, weight64))), strict=True
    ):
        torch.testing.assert_close(found, wanted.detach(), rtol=1e-12, atol=1e-13)


def test_candidates_alternate_and_every_repeat_is_a_row() -> None:
    turns: list[str] = []

    def run(name: str, x: Tensor) -> Tensor:
        turns.append(name)
        return x * 1

    rows, _ = measured({name: partial(run, name) for name in "AB"}, repeats=12)
    timed = turns[2:-2]  # the first call of each, and one of each for memory
    assert timed == ["A", "B"] * (len(timed) // 2)
    assert len(timed) >= 2 * (12 + 1)
    for metric in ("forward_seconds", "backward_seconds"):
        assert [row["repeat"] for row in rows if row["metric"] == metric and row["attention"] == "B"] == list(range(12))


def test_the_first_call_is_timed_apart_and_averaged_into_nothing() -> None:
    calls = iter([0.3])

    def compiles_first(x: Tensor) -> Tensor:
        time.sleep(next(calls, 0.0))
        return x * 1

    rows, _ = measured({"slow": compiles_first})
    assert values(rows, "first_forward_seconds", "slow")[0] >= 0.3
    assert max(values(rows, "forward_seconds", "slow") + values(rows, "warmup_seconds", "slow")) < 0.3


@pytest.mark.parametrize(
    "wrong", [lambda x: x * 1.2, lambda x: x * torch.nan, lambda x: x.detach() + 0 * x, lambda x: x[:1].expand(8)[None]]
)
def test_a_wrong_result_gets_no_speed(wrong: Callable[[Tensor], Tensor]) -> None:
    rows, (left_out,) = measured({"wrong": wrong, "right": lambda x: x * 1})
    assert values(rows, "forward_seconds", "wrong") == [None]
    assert values(rows, "forward_flops_per_second", "wrong") == []
    assert "is wrong: it differs from float64 by" in left_out.reason
    assert len(values(rows, "forward_seconds", "right")) == 10


def test_a_backend_that_cannot_run_is_listed_and_its_rows_are_null() -> None:
    def fails(x: Tensor) -> Tensor:
        raise DeviceError("attention 'x'", "there is no such chip here", "Buy one")

    def breaks(x: Tensor) -> Tensor:
        raise RuntimeError("boom\nand more")

    rows, left_out = measured({"fails": fails, "breaks": breaks, "runs": lambda x: x * 1})
    assert [(one.candidate, one.what, one.reason) for one in left_out] == [
        ("fails", "forward and backward", "there is no such chip here"),
        ("breaks", "forward and backward", "RuntimeError: boom and more"),
    ]
    for name in ("fails", "breaks"):
        assert values(rows, "forward_seconds", name) == values(rows, "backward_seconds", name) == [None]
    assert None not in values(rows, "backward_seconds", "runs")


def test_without_a_backward_pass_the_forward_is_measured_and_the_reason_kept() -> None:
    def inference_only(x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise NotImplementedError("no backward here")
        return x * 1

    rows, (left_out,) = measured({"flex": inference_only})
    assert (left_out.what, left_out.reason) == ("backward", "NotImplementedError: no backward here")
    assert len(values(rows, "forward_seconds", "flex")) == 10
    assert values(rows, "backward_seconds", "flex") == [None]
    assert values(rows, "gradient_error", "flex") == []


def test_a_candidate_that_fails_later_leaves_the_others_their_samples() -> None:
    calls: list[int] = []

    def fails_later(x: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) > 4:
            raise RuntimeError("gone")
        return x * 1

    rows, (left_out,) = measured({"later": fails_later, "steady": lambda x: x * 1})
    assert (left_out.candidate, left_out.reason) == ("later", "RuntimeError: gone")
    assert values(rows, "forward_seconds", "later") == [None]
    assert len(values(rows, "forward_seconds", "steady")) == 10


def test_what_could_not_be_checked_gets_no_speed() -> None:
    rows = Rows("kernel")
    case = FakeCase({"any": lambda x: x * 1}, memory_for_exact=False)
    (left_out,) = measure_case(case, small(), CPU, CPUClock(), rows)
    assert "not enough memory" in left_out.reason
    assert [row["value"] for row in rows.finished()] == [None, None]


class LoggingClock:
    """What a GPU would be told, in order; every call takes one second of its time line.

    Args:
        needed: how often the hold has to be lengthened until it is long enough; None: it never is.
    """

    asynchronous = True

    def __init__(self, needed: int | None = 0) -> None:
        self.log: list[str] = []
        self.needed = needed
        self.lengthened = 0

    def mark(self) -> int:
        self.log.append("mark")
        return self.log.count("mark")

    def seconds(self, start: int, end: int) -> float:
        return float(end - start)

    def synchronize(self) -> None:
        self.log.append("synchronize")

    def flush(self) -> None:
        self.log.append("flush")

    def reserve(self) -> int:
        return 0

    def hold(self) -> None:
        self.log.append("hold")

    def lengthen(self) -> bool:
        self.lengthened += 1
        return self.lengthened <= 7

    def is_before(self, mark: int) -> bool:
        self.log.append("ask")
        return self.needed is not None and self.lengthened >= self.needed


def test_a_gpu_is_held_and_flushes_its_cache_before_each_pass_and_the_host_submits_meanwhile() -> None:
    clock = LoggingClock()

    def run(x: Tensor) -> Tensor:
        clock.log.append("work")
        return x * 1

    measured({"one": run}, clock)
    before = ["synchronize", "hold", "flush", "mark"]
    sample = [*before, "work", "mark", "ask", *before, "mark", "ask"]
    log = clock.log
    assert log[: len(sample)] == sample
    assert log.count("flush") == 2 * log.count("work")


def test_a_pass_that_may_have_waited_for_the_host_is_measured_again_under_a_longer_hold() -> None:
    clock = LoggingClock(needed=3)
    rows, _ = measured({"one": lambda x: x * 1}, clock)
    assert clock.lengthened == 3
    assert values(rows, "waits_for_host", "one") == [0]
    assert len(values(rows, "forward_seconds", "one")) == len(values(rows, "host_forward_seconds", "one")) == 10
    assert len(values(rows, "host_backward_seconds", "one")) == 10

    always = LoggingClock(needed=None)
    rows, _ = measured({"one": lambda x: x * 1}, always)
    assert values(rows, "waits_for_host", "one") == [10], (
        "work that reads from the GPU is said to contain the host's time"
    )
    assert not [row for row in measured({"one": lambda x: x * 1})[0] if "host" in row["metric"]], "a CPU has one time"


def test_memory_is_what_tensors_take_at_one_time_beyond_those_before() -> None:
    before = torch.ones(10**6)

    def work() -> Tensor:
        first = before.neg()  # 4 MB
        second = first.abs()  # and 4 MB
        del first
        return second.neg()  # and 4 MB more, in place of the first

    assert peak_extra_bytes(work, CPU) == 8 * 10**6


def test_a_gpus_memory_is_its_allocators_peak_since_a_reset() -> None:
    log: list[str] = []
    cuda = SimpleNamespace(
        synchronize=lambda device: log.append("synchronize"),
        reset_peak_memory_stats=lambda device: log.append("reset"),
        memory_allocated=lambda device: 100,
        max_memory_allocated=lambda device: 350,
    )
    assert peak_extra_bytes(lambda: log.append("work"), torch.device("cuda"), cuda) == 250
    assert log == ["synchronize", "reset", "work", "synchronize"]


def test_on_this_cpu_attention_and_losses_are_measured_for_real() -> None:
    rows = Rows("kernel")
    config = small(lengths=(256,), losses=((512, 64, 4096),), groups=(2,), windows=(None, 9))
    assert run_kernel(config, CPU, rows) == []
    finished = rows.finished()

    def one(metric: str, **columns: Any) -> float:
        (found,) = (
            row["value"] for row in finished
            if row["metric"] == metric and all(row.get(name) == value for name, value in columns.items())
        )  # fmt: skip
        return float(found)

    for window in (None, 9):
        for backend in ("sdpa", "reference"):
            case = {"attention": backend, "window": window, "query_heads": 4, "kv_heads": 2}
            assert 0 < one("output_error", **case) < 1e-5
            assert 0 < one("gradient_error", **case) < 1e-5
            assert one("flops_per_second", **case) > 0
    # The reference holds the (T, T) weights of every head, more than once; SDPA's kernel holds none.
    weights = 4 * 256 * 256 * 4
    assert one("peak_extra_bytes", attention="reference", window=None) > 2 * weights
    assert one("peak_extra_bytes", attention="sdpa", window=None) < weights
    logits = 512 * 4096 * 4
    whole = one("peak_extra_bytes", operation="cross_entropy")
    assert whole > 2 * logits
    assert one("peak_extra_bytes", operation="linear_cross_entropy") < whole
    assert one("gradient_error", operation="linear_cross_entropy") < 1e-5


def test_backends_that_can_be_asked_for_are_those_there_are() -> None:
    assert get_args(configs.BackendName) == BACKENDS


@pytest.mark.parametrize("kind", DEFAULTS)
def test_the_default_grids_are_valid_and_repeat_ten_times_at_least(kind: str) -> None:
    config = KernelConfig(**DEFAULTS[kind])
    every = list(cases(config))
    assert config.repeats >= 10
    assert {type(case) for case in every} == {AttentionCase, LossCase}
    for case in every:
        if isinstance(case, AttentionCase):
            assert case.H % case.G == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu_every_backend_is_measured_forward_and_backward() -> None:
    rows = Rows("kernel")
    config = KernelConfig(
        lengths=(1024,), query_heads=8, groups=(2,), windows=(None, 256), batch_size=2, losses=((1024, 256, 8192),),
        dtype="bfloat16", device="cuda",
    )  # fmt: skip
    assert run_kernel(config, torch.device("cuda"), rows) == []
    timed = {
        row["attention"] for row in rows.finished() if row["metric"] == "backward_seconds" and row.get("attention")
    }
    assert timed == set(BACKENDS)
