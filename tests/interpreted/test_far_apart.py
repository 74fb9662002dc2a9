"""Batches and heads may lie further apart than 32 bits can count: the kernels' offsets are 64-bit."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from arenas import INPUT, OUTPUT, Arena
from kernel_mutants import Mutant, copied

from archbench.kernels.fused import launches
from archbench.kernels.fused.configurations import KERNELS, Configuration
from archbench.kernels.launch import Launch

pytestmark = pytest.mark.memory_safety

COPIES, T, D = 4, 20, 16
APART = 2**34
"""Bytes: 2^30 of the strides' units of 16 bytes, so that three times this, the last copy's, leaves 32 bits."""


def moved_apart(launch: Launch, axis: str) -> Launch:
    """The launch told that along ``axis``, ``b`` or ``h``, the tensors' parts are APART bytes from each other."""
    stride = APART // 4 // launch.arguments["STRIDE_UNIT"]
    moved = {name: stride for name in launch.arguments if name.endswith(f"_stride_{axis}")}
    assert moved
    return replace(launch, arguments={**launch.arguments, **moved})


def far_apart(axis: str, kernels: Any) -> list[str]:
    """What is wrong with the accesses to COPIES batches or heads that lie APART bytes from each other."""
    shape = (COPIES, 1, T, D) if axis == "b" else (1, COPIES, T, D)
    arena = Arena(2**17, guard=2**14)
    generator = torch.Generator().manual_seed(0)
    inputs = [arena.assign(arena.region(math.prod(shape), torch.float32).view(shape), INPUT) for _ in range(4)]
    for tensor in inputs:
        tensor.copy_(torch.randn(shape, generator=generator))
    q, k, v, grad_out = inputs
    out, *gradients = (arena.assign(arena.region(q.numel(), q.dtype).view(shape), OUTPUT) for _ in range(4))
    lse, delta = (arena.assign(arena.region(COPIES * T, q.dtype).view(shape[:3]), OUTPUT) for _ in range(2))
    arena.pretend(APART, really=4 * T * D)

    blocks = Configuration(16, 16, 4, 1)
    how: dict[str, Any] = {"window": None, "scale": 0.25, "precision": "ieee", "chip": "sm_80"}
    sequence = [
        kernels.forward_launch(q, k, v, out, lse, **how, configuration=blocks),
        *kernels.backward_launches(
            grad_out, q, k, v, out, lse, delta, *gradients, **how, configurations=dict.fromkeys(KERNELS, blocks)
        ),
    ]
    with arena.watched(), np.errstate(all="ignore"):
        for launch in sequence:
            moved_apart(launch, axis).run()
    for output in (out, lse, delta, *gradients):
        arena.take("output", output)
    return arena.findings


@pytest.mark.parametrize("axis", ["b", "h"])
def test_offsets_do_not_overflow(axis: str) -> None:
    assert far_apart(axis, launches) == []


def test_offsets_of_32_bits_would_be_found(tmp_path: Path) -> None:
    narrow = Mutant("32-bit heads", "forward", "head.to(tl.int64) * q_stride_h", "head * q_stride_h")
    with copied(tmp_path, "narrow_kernels", narrow) as kernels:
        assert any("no tensor has" in text for text in far_apart("h", kernels))
