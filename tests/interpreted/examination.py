"""One case, run by the interpreter inside an arena: everything that is wrong with it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from arenas import INPUT, OUTPUT, Arena
from attention_cases import Case
from attention_reference import GRADIENTS, SEED, Expected, expected
from torch import Tensor

from archbench.kernels.fused.configurations import KERNELS
from archbench.kernels.launch import Launch

VALUES, MEMORY = "values", "memory"

Shape = tuple[int, int, int, int]


@dataclass(frozen=True)
class Finding:
    """What is wrong: ``proof`` says whether the values or the use of memory."""

    proof: str
    text: str


def gapped(arena: Arena, shape: Shape, dtype: torch.dtype, aligned: bool) -> Tensor:
    """Guards between rows, heads and batches; strides and address in 16 bytes if aligned, else divided by nothing."""
    B, H, T, D = shape
    unit = 16 // dtype.itemsize if aligned else 1
    row = D + 3 * unit
    head = T * row + 5 * unit
    batch = H * head + 7 * unit
    region = arena.region(unit + B * batch, dtype)
    return region.as_strided(shape, (batch, head, row, 1), region.storage_offset() + unit)


def transposed(arena: Arena, shape: Shape, dtype: torch.dtype) -> Tensor:
    """(B, T, H, D) in memory, as a projection leaves it."""
    B, H, T, D = shape
    return arena.region(math.prod(shape), dtype).view(B, T, H, D).transpose(1, 2)


def packed(arena: Arena, shapes: list[Shape], dtype: torch.dtype) -> list[Tensor]:
    """(B, T, all heads, D) in memory, as one projection of several tensors leaves them."""
    B, _, T, D = shapes[0]
    heads = [shape[1] for shape in shapes]
    return list(transposed(arena, (B, sum(heads), T, D), dtype).split(heads, dim=1))


def place(arena: Arena, case: Case, layout: str, shapes: list[Shape]) -> list[Tensor]:
    """NaN tensors of these shapes in the arena."""
    match layout:
        case "contiguous":
            return [arena.region(math.prod(shape), case.dtype).view(shape) for shape in shapes]
        case "gapped":
            return [gapped(arena, shape, case.dtype, case.tma) for shape in shapes]
        case "packed" if len({shape[2] for shape in shapes}) == 1:
            return packed(arena, shapes, case.dtype)
        case "packed":
            return [transposed(arena, shapes[0], case.dtype), *packed(arena, shapes[1:], case.dtype)]
        case _:
            return [transposed(arena, shape, case.dtype) for shape in shapes]


def place_upstream(arena: Arena, case: Case, shape: Shape) -> Tensor:
    """grad_out: as the case says, dense, or one row for all positions and heads of a batch."""
    if case.upstream == "expanded":
        row = arena.region(case.B * case.D, case.dtype).view(case.B, 1, 1, case.D)
        return arena.assign(row, INPUT).expand(shape)
    return arena.assign(*place(arena, case, case.upstream, [shape]), INPUT)


def arena_for(case: Case) -> Arena:
    """Large enough for all the tensors of a case, in any layout; its guards for a block of any kernel."""
    row = case.D * case.dtype.itemsize + 48
    rows = 4 * case.B * case.H * (case.T + 2) + 4 * case.B * case.G * (case.S + 2)
    heads_between_rows = case.H + 2 * case.G if {case.layout, case.upstream} & {"packed", "transposed"} else 1
    return Arena(rows * row + 2**16, guard=128 * heads_between_rows * row)


def in_sections(launch: Launch, section: int | None) -> Launch:
    """The launch with this many heads a section."""
    if section is None or "section" not in launch.arguments:
        return launch
    return replace(launch, arguments={**launch.arguments, "section": section})


def examine(case: Case, kernels: Any) -> Iterator[Finding]:
    """Run forward and then backward, each kernel once, and yield what is wrong after each of the two.

    Args:
        kernels: the module ``archbench.kernels.fused.launches``, or a mutant's.
    """
    wanted = expected(case)
    arena = arena_for(case)
    queries, keys = (case.B, case.H, case.T, case.D), (case.B, case.G, case.S, case.D)
    q, k, v = place(arena, case, case.layout, [queries, keys, keys])
    grad_out = place_upstream(arena, case, queries)
    for name, tensor in {"q": q, "k": k, "v": v}.items():
        arena.assign(tensor, INPUT).copy_(wanted.inputs[name])
    grad_out[:, :1, :1].copy_(wanted.inputs["grad_out"][:, :1, :1])
    if case.upstream != "expanded":
        grad_out.copy_(wanted.inputs["grad_out"])
    how: dict[str, Any] = {"window": case.window, "scale": case.scale, "precision": "ieee", "chip": case.chip}
    how |= {"seed": SEED, "dropped": case.dropped}

    [out] = place(arena, case, case.layout, [queries])
    lse = arena.region(math.prod(queries[:3]), torch.float32).view(queries[:3])
    arena.assign(out, OUTPUT), arena.assign(lse, OUTPUT)
    forward = kernels.forward_launch(q, k, v, out, lse, **how, configuration=case.configuration)
    run(arena, [in_sections(forward, case.section)])
    yield from judge(arena, {"out": out, "lse": lse}, wanted)

    gradients = place(arena, case, case.layout, [queries, keys, keys])
    delta = arena.region(lse.numel(), torch.float32).view(lse.shape)
    for output in (*gradients, delta):
        arena.assign(output, OUTPUT)
    configurations = dict.fromkeys(KERNELS, case.configuration) if case.configuration else None
    backward = kernels.backward_launches(
        grad_out, q, k, v, out, lse, delta, *gradients, **how, configurations=configurations
    )
    run(arena, [in_sections(launch, case.section) for launch in backward])
    yield from judge(arena, dict(zip(GRADIENTS, gradients, strict=True)) | {"delta": delta}, wanted)


def run(arena: Arena, sequence: list[Launch]) -> None:
    # Rows past the end are calculated too, and thrown away: 0 / 0, the logarithm of 0.
    with arena.watched(), np.errstate(all="ignore"):
        for launch in sequence:
            launch.run()


def judge(arena: Arena, outputs: dict[str, Tensor], wanted: Expected) -> Iterator[Finding]:
    for name, output in outputs.items():
        arena.take(name, output)
        if name in wanted.values:
            error = (output.double() - wanted.values[name]).abs().max().item()
            if not error <= wanted.bounds[name]:  # NaN is not either
                yield Finding(VALUES, f"{name} is off by {error:.2e}, allowed are {wanted.bounds[name]:.2e}")
    while arena.findings:
        yield Finding(MEMORY, arena.findings.pop(0))
