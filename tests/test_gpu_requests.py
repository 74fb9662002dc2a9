"""What a trace of torch's profiler says that a GPU was asked for, from events as torch 2.x writes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import count
from typing import Any

import pytest

from archbench.regression.gpu_requests import MARK, NAMES, Requests, UncountedError, requests_in
from archbench.regression.verdict_table import UNITS

Event = dict[str, Any]
_numbers = count(1)


def call(name: str, at: float, *works: tuple[str, str, int], category: str = "cuda_runtime") -> Iterator[Event]:
    """A call of the host, and what it begins on the GPU: category, name and bytes."""
    number = next(_numbers)
    yield {"ph": "X", "cat": category, "name": name, "ts": at, "dur": 4.0, "args": {"cbid": 1, "correlation": number}}
    for kind, title, size in works:
        arguments: Mapping[str, Any] = {"correlation": number, "device": 0, "stream": 7}
        if size:
            arguments = {**arguments, "bytes": size}
        yield {"ph": "X", "cat": kind, "name": title, "ts": at + 500.0, "dur": 1.0, "args": arguments}


KERNEL = ("kernel", "void at::native::vectorized_elementwise_kernel<4, …>", 0)
ANNOTATION = {"ph": "X", "cat": "user_annotation", "name": MARK, "ts": 1000.0, "dur": 100.0, "args": {}}


def test_calls_within_the_annotation_are_counted_by_kind() -> None:
    events: list[Event] = [
        {"ph": "M", "name": "process_name", "args": {"name": "python"}},
        ANNOTATION,
        {**ANNOTATION, "cat": "gpu_user_annotation"},
        *call("cudaLaunchKernel", 999.0, KERNEL),
        *call("cudaDeviceSynchronize", 1200.0),
        *call("cudaLaunchKernel", 1000.0, KERNEL),
        *call("cudaLaunchKernelExC", 1001.0, KERNEL),
        *call("cuLaunchKernelEx", 1002.0, KERNEL, category="cuda_driver"),
        *call("cudaMemsetAsync", 1003.0),  # one that CUPTI has no record of
        *call("cudaMemcpyAsync", 1004.0, ("gpu_memcpy", "Memcpy HtoD (Pageable -> Device)", 92_928)),
        *call("cudaStreamSynchronize", 1005.0),
        *call("cudaMemcpyAsync", 1006.0, ("gpu_memcpy", "Memcpy DtoH (Device -> Pinned)", 4)),
        *call("cudaEventSynchronize", 1007.0),
        *call("cudaMemcpyAsync", 1008.0, ("gpu_memcpy", "Memcpy DtoD (Device -> Device)", 256)),
        *call("cudaGraphLaunch", 1010.0, KERNEL, KERNEL, ("gpu_memcpy", "Memcpy DtoD (Device -> Device)", 8)),
        *(event for name in ("cudaStreamWaitEvent", "cudaEventQuery", "cudaMalloc", "cudaLaunchHostFunc")
          for event in call(name, 1011.0)),
    ]  # fmt: skip
    assert requests_in(events) == Requests(
        launches=6, in_graphs=3, copies_to_device=1, bytes_to_device=92_928, copies_to_host=1, bytes_to_host=4, waits=2
    )


def test_a_profiler_that_sees_no_gpu_has_no_counts() -> None:
    with pytest.raises(UncountedError, match="no records"):
        requests_in([ANNOTATION, *call("cudaLaunchKernel", 2000.0, KERNEL)])


def test_every_count_is_a_metric_with_a_unit() -> None:
    metrics = [metric for metric in UNITS if metric.startswith("gpu_")]
    works = ("step", "graph_step", "token", "graph_token")
    assert metrics == [f"gpu_{work}_{name}" for name in NAMES for work in works]
    assert {metric for metric in metrics if UNITS[metric] == "byte"} == {
        f"gpu_{work}_bytes_{where}" for work in works for where in ("to_device", "to_host")
    }
    assert list(asdict(Requests(*[0] * len(NAMES)))) == list(NAMES)
