"""The stand-in for stream capture: a graph holds what was captured, and what CUDA refuses is refused."""

from __future__ import annotations

import pytest
import torch
from counts import counted


def _captured(work: object, *operands: torch.Tensor) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work(*operands)  # type: ignore[operator]
    return graph


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_replayed_graph_is_one_launch_and_the_capture_is_none(dtype: torch.dtype) -> None:
    x = torch.randn(8, 8, device="cuda", dtype=dtype)
    (x @ x).relu_()
    assert counted(lambda: (x @ x).relu_()).kernels == 2, "eager: a product and a kernel"

    seen = counted(lambda: _captured(lambda x: (x @ x).relu_(), x))
    assert (seen.products, seen.graph_launches, seen.refused) == (0, 0, 0)
    assert seen.launches == 2, "torch writes the generator's seed and offset before it captures"

    graph = _captured(lambda x: (x @ x).relu_(), x)
    seen = counted(graph.replay)
    assert (seen.graph_launches, seen.graph_nodes, seen.kernels, seen.syncs) == (1, 2, 0, 0)


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x.sum().item(),
        lambda x: x.copy_(torch.zeros(8, 8)),  # torch itself refuses this one
        lambda x: torch.cuda.synchronize(),
        lambda x: x[x > 0],
    ],
    ids=["item", "pageable copy", "synchronize", "boolean index"],
)
def test_waits_and_pageable_copies_are_refused_while_capturing(work: object) -> None:
    x = torch.ones(8, 8, device="cuda")
    with pytest.raises(RuntimeError, match=r"previous error during capture|during CUDA graph capture"):
        _captured(work, x)
    _captured(lambda x: x.relu(), x).replay()  # the next capture is free of it


def test_a_pinned_copy_and_random_numbers_can_be_captured() -> None:
    x, there = torch.ones(8, device="cuda"), torch.zeros(8).pin_memory()
    graph = _captured(lambda x: there.copy_(x.exponential_(), non_blocking=True), x)
    seen = counted(graph.replay)
    assert (seen.graph_launches, seen.graph_nodes) == (1, 2)
    assert seen.launches == 2, "torch writes the generator's seed and offset before each replay"
