"""Triton kernels with known faults, for ``test_staticcheck.py``. They are compiled and never run."""

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from archbench.kernels.launch import Launch

FUSED = {"enable_fp_fusion": True}  # said, because Triton 3.10 changes its default


@triton.jit
def attend(q, k, out, keys, M: tl.constexpr, N: tl.constexpr, D: tl.constexpr):
    """Two matrix products around an exponential; large tiles need more registers than there are."""
    rows, columns, width = tl.program_id(0) * M + tl.arange(0, M), tl.arange(0, N), tl.arange(0, D)
    queries = tl.load(q + rows[:, None] * D + width[None, :])  # (M, D)
    total = tl.zeros([M, D], tl.float32)
    for start in range(0, keys, N):
        tile = tl.load(k + (start + columns)[:, None] * D + width[None, :])  # (N, D)
        weights = tl.math.exp2(tl.dot(queries, tile.T))  # (M, N)
        total = tl.dot(weights.to(tile.dtype), tile, total)
    tl.store(out + rows[:, None] * D + width[None, :], total.to(tl.bfloat16))


@triton.jit
def attend_through_descriptor(desc, out, keys, M: tl.constexpr, N: tl.constexpr, D: tl.constexpr):
    """The same from a tensor descriptor made by the host."""
    start = tl.program_id(0) * M
    queries = desc.load([start, 0])  # (M, D), M = N
    total = tl.zeros([M, D], tl.float32)
    for key in range(0, keys, N):
        tile = desc.load([key, 0])  # (N, D)
        total = tl.dot(tl.math.exp2(tl.dot(queries, tile.T)).to(tile.dtype), tile, total)
    made = tl.make_tensor_descriptor(out, shape=[keys, D], strides=[D, 1], block_shape=[M, D])
    made.store([start, 0], total.to(tl.bfloat16))


@triton.jit
def sum_rows(x, out, length, stride, BLOCK: tl.constexpr):
    """Loads one element at a time where ``stride`` is not 1."""
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, length, BLOCK):
        total += tl.load(x + (start + tl.arange(0, BLOCK)) * stride).to(tl.float32)
    tl.store(out + tl.arange(0, BLOCK), total)


@triton.jit
def add_atomically(x, out, BLOCK: tl.constexpr):
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(out + places % 64, tl.load(x + places))


@triton.jit
def refused(x, BLOCK: tl.constexpr):
    tl.static_assert(BLOCK > 1000, "the block is too small")


def half(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device="meta")


def attention(name: str, M: int, N: int, D: int, warps: int, stages: int = 2) -> Launch:
    tensors = {"q": half(4096, D), "k": half(4096, D), "out": half(4096, D)}
    options = {"num_warps": warps, "num_stages": stages, **FUSED}
    return Launch(name, attend, (32,), {**tensors, "keys": 4096, "M": M, "N": N, "D": D}, options)


def launches(chip: str) -> list[Launch]:
    """The launches that the command line finds, each named after its fault."""
    single = torch.empty(8192, device="meta")
    # a CDNA compute unit has twice the registers and a third of the shared memory
    keys, stages = (128, 3) if chip == "gfx942" else (32, 8)
    found = [
        attention("clean", M=128, N=32, D=64, warps=4),
        attention("spills", M=128, N=keys, D=256, warps=4, stages=1),
        attention("shared", M=64, N=64, D=256, warps=8, stages=stages),
        Launch(
            "narrow",
            sum_rows,
            (1,),
            {"x": half(8192), "out": single, "length": 8192, "stride": 3, "BLOCK": 1024},
            FUSED,
        ),
        Launch(
            "wide", sum_rows, (1,), {"x": half(8192), "out": single, "length": 8192, "stride": 1, "BLOCK": 1024}, FUSED
        ),
        Launch("atomic", add_atomically, (8,), {"x": single, "out": single, "BLOCK": 1024}, FUSED),
    ]
    if chip == "sm_90":
        descriptor = TensorDescriptor.from_tensor(half(4096, 64), [64, 64])
        found.append(
            Launch(
                "descriptor",
                attend_through_descriptor,
                (64,),
                {"desc": descriptor, "out": half(4096, 64), "keys": 4096, "M": 64, "N": 64, "D": 64},
                FUSED,
            )
        )
    return found
