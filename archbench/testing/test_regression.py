"""What ``pytest --pyargs archbench.testing --archbench-arch NAME --benchmark-only`` runs: costs as benchmarks.

pytest-benchmark's own table has the times of this process. With ``--archbench-baseline`` fresh processes measure what
is saved and compared, since their differences make the interval.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import torch

import pytest_archbench
from archbench.errors import ArchbenchError
from archbench.regression.benchmark import Subject, Timing, exact_costs, seconds
from archbench.regression.estimates import level
from archbench.regression.gate import SAMPLES
from archbench.testing.baseline_session import BaselineSession

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

ROUNDS = 32


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    names: list[str] = metafunc.config.getoption("archbench_arch")
    if "metric" in metafunc.fixturenames:
        cpu = metafunc.config.getoption("archbench_device") == "cpu"
        timer = pytest.mark.benchmark(
            timer=time.process_time if cpu else time.perf_counter, group="CPU time" if cpu else "time"
        )
        cases = [pytest.param(name, metric, marks=timer, id=f"{name}-{metric}") for name in names for metric in SAMPLES]
        metafunc.parametrize(("architecture", "metric"), cases)
    else:
        metafunc.parametrize("architecture", names)


@pytest.fixture
def session(request: pytest.FixtureRequest) -> BaselineSession:
    """The baselines of this pytest session."""
    stash = request.config.stash
    if pytest_archbench.SESSION not in stash:
        stash[pytest_archbench.SESSION] = BaselineSession(request.config)
    found: BaselineSession = stash[pytest_archbench.SESSION]
    return found


@pytest.fixture
def subject(session: BaselineSession, architecture: str) -> Subject:
    """The architecture under test."""
    try:
        return session.subject(architecture)
    except ArchbenchError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(autouse=True)
def _no_log_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its compiler's trace would stand as debug lines under a failure; the logger of that resets what it propagates."""
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.benchmark(group=pytest_archbench.COUNTING)
def test_exact_costs(
    architecture: str, subject: Subject, session: BaselineSession, benchmark: BenchmarkFixture
) -> None:
    """Parameters, FLOPs, bytes, operations, graph breaks, and what a GPU is asked for; none may rise."""
    reasons: dict[str, str] = {}
    costs: dict[str, float | None] = benchmark.pedantic(  # type: ignore[no-untyped-call]
        exact_costs, args=(subject, session.device, reasons), rounds=1
    )
    benchmark.extra_info.update(costs)
    session.check(session.exact(architecture, costs, reasons))


@pytest.mark.usefixtures("one_thread")
def test_time(
    architecture: str, metric: str, subject: Subject, session: BaselineSession, benchmark: BenchmarkFixture
) -> None:
    """Seconds of a training step, a prompt's first token, and four more tokens; each after the reference."""
    device = torch.device(session.device)
    timing = Timing(subject, device)
    references: list[float] = []

    def before() -> None:
        timing.prepare(metric)
        references.append(seconds(timing.reference, device))

    def work() -> None:
        timing.work[metric]()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    benchmark.pedantic(work, setup=before, rounds=ROUNDS)  # type: ignore[no-untyped-call]
    stats: Any = benchmark.stats
    if stats is not None and len(stats.stats.data) <= len(references):
        measured = list(zip(references, stats.stats.data, strict=False))
        benchmark.extra_info["times_reference"] = round(math.exp(level(measured)), 4)
    session.check(session.timed(architecture, metric))
