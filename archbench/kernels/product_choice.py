"""float32 products on x86 CPUs by MKL, which torch uses, or by oneDNN, a part of torch: whichever is faster there.

No rule holds everywhere: on AMD's Zen 4 oneDNN is 1.05 to 1.5 times as fast in forward passes and input gradients, on
Zen 3 it is slower in input gradients, and weight gradients differ by shape. So a run races both the first time that it
meets a product, and keeps the winner in archbench's cache (:mod:`archbench.measure.product_speeds`): the same machine
takes the same one from then on, and the same run gives the same numbers. Code outside a run goes by a rule.

A product of one row is not raced against a batch of blocks (:mod:`archbench.kernels.row_product`): a race repeats a
weight, which then comes from a cache, and decoding reads all weights of a model before it comes back to one.
A decoding step of a few rows may also take a packed copy of the weight (:mod:`archbench.kernels.packed_product`), where
a run allows it: that costs memory, and has to gain more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from archbench.kernels.packed_product import forget, let_copies_take, packable, packed_product
from archbench.kernels.row_product import row_product

Direction = Literal["forward", "step", "input", "weight"]
Library = Literal["torch", "onednn", "torch-batched", "packed"]
TORCH: Library = "torch"
ONEDNN: Library = "onednn"
BATCHED: Library = "torch-batched"
PACKED: Library = "packed"
Ways = Mapping[Library, Callable[..., Tensor]]

FEW_ROWS, LARGE_FOR_FEW_ROWS, LARGE = 16, 2**18, 2**16
"""A weight of at least so many elements, with few rows and with many, is worth oneDNN's 10 µs per call. Its rounding
error is about twice MKL's."""

WORTH = 0.95
"""oneDNN is taken where its time is at most this share of torch's: what is about as fast stays with torch, and a race
in warm caches is a few percent off."""

WORTH_A_COPY = 0.9
"""A packed copy is taken where its time is at most this share of the better one's without: it doubles the memory."""

LEAST_ROUNDS, MOST_ROUNDS, RACE_SECONDS = 3, 20, 0.04
"""Of a race: rounds, and the time after which it ends."""


class Case(NamedTuple):
    """Products that one decision is for.

    Attributes:
        direction: ``forward`` x Wᵀ + b, ``step`` the same in a decoding step, ``input`` G W, ``weight`` Gᵀ x.
        octave: log₂ of the number of rows of x (M, K) and G (M, N), rounded down: texts have any length.
        N, K: of the weight W (N, K).
        threads: CPU threads of torch.
    """

    direction: Direction
    octave: int
    N: int
    K: int
    threads: int


Race = Callable[[], Library]
Choice = Callable[[Case, Race], Library]
"""Gives a case's library: the one that is known, or the winner of the race."""

_choice: Choice | None = None
_packing = False
_chosen: dict[tuple[object, ...], Library] = {}  # by case, made as a plain tuple: each product of a token asks
recorders: list[set[str]] = []


def choose_products(choice: Choice | None, *, packing: int = 0) -> None:
    """Let ``choice`` decide from now on in this process; None for the rule.

    Args:
        packing: bytes that packed copies of weights may take; 0 to make none.
    """
    global _choice, _packing
    _choice, _packing = choice, packing > 0
    let_copies_take(packing)
    _chosen.clear()


def deciding() -> tuple[Choice | None, bool]:
    """What decides now (None: the rule), and whether for packed copies too."""
    return _choice, _packing


@contextmanager
def record_products() -> Iterator[set[str]]:
    """Yields a set of what is noted within this context: libraries that compute float32 products of layers on a CPU,
    and products in float8."""
    recorder: set[str] = set()
    recorders.append(recorder)
    try:
        yield recorder
    finally:
        recorders[:] = [other for other in recorders if other is not recorder]


def note_product(library: str) -> None:
    """One of the products of a layer has been computed by that library, or in that format."""
    for recorder in recorders:
        recorder.add(library)


def onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b by oneDNN, float32: x (..., K), weight (N, K), bias (N,) -> (..., N), any strides; no gradients."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


_FORWARD: Ways = {TORCH: F.linear, ONEDNN: onednn}
_ROW: Ways = {**_FORWARD, BATCHED: row_product}
_STEP: Ways = {**_FORWARD, PACKED: packed_product}
_INPUT: Ways = {TORCH: torch.matmul, ONEDNN: lambda gradient, weight: onednn(gradient, weight.t())}
_WEIGHT: Ways = {TORCH: lambda gradient, x: gradient.t() @ x, ONEDNN: lambda gradient, x: onednn(gradient.t(), x.t())}


def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x Wᵀ + b: x (..., K), weight (N, K), bias (N,) -> (..., N), float32 without gradients."""
    M = x.numel() // x.shape[-1]
    if _packing and packable(M, weight):
        return _by_choice("step", M, weight, _STEP, x, weight, bias)
    return _by_choice("forward", M, weight, _ROW if M == 1 else _FORWARD, x, weight, bias)


def input_gradient(gradient: Tensor, weight: Tensor) -> Tensor:
    """G W: gradient (..., N), weight (N, K) -> (..., K), float32 without gradients."""
    forget(weight)  # of the head, which is trained by a function of its own
    return _by_choice("input", gradient.numel() // gradient.shape[-1], weight, _INPUT, gradient, weight)


def weight_gradient(gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Gᵀ x: gradient (M, N), x (M, K) -> (N, K), the shape of ``weight``, float32 without gradients."""
    return _by_choice("weight", x.shape[0], weight, _WEIGHT, gradient, x)


def torch_alone(M: int, N: int, K: int) -> bool:
    """Whether all three products of M rows and a weight (N, K) are known to be torch's."""
    octave, threads = M.bit_length() - 1, torch.get_num_threads()
    directions: tuple[Direction, ...] = ("forward", "input", "weight")
    alone = all(_chosen.get(Case(direction, octave, N, K, threads)) == TORCH for direction in directions)
    if alone:
        note_product(TORCH)
    return alone


def choosable(x: Tensor, weight: Tensor) -> bool:
    """Whether there is a choice: float32 on an x86 CPU, and a product that is worth oneDNN's overhead."""
    large = LARGE_FOR_FEW_ROWS if x.numel() <= FEW_ROWS * x.shape[-1] else LARGE
    return (
        weight.numel() >= large
        and x.numel() > 0
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")  # it would make the product bfloat16
        and not torch.compiler.is_compiling()
        and (_cpu_maker() == "AuthenticAMD" if _choice is None else _cpu_maker() is not None)
    )


def _by_choice(direction: Direction, M: int, weight: Tensor, ways: Ways, *operands: Tensor | None) -> Tensor:
    N, K = weight.shape
    case = direction, M.bit_length() - 1, N, K, torch.get_num_threads()
    library = _chosen.get(case)
    if library is None:
        if _choice is not None and torch._C._len_torch_dispatch_stack() > 0:
            return ways[TORCH](*operands)  # a mode counts what runs: no race now
        batched = ways is _ROW and _batches_rows_fast()
        if _choice is None:
            library = TORCH if direction == "weight" else BATCHED if batched else ONEDNN
        else:
            library = _choice(Case(*case), lambda: BATCHED if batched else _winner(ways, *operands))
        _chosen[case] = library
    note_product(library)
    return ways[library](*operands)


def _winner(ways: Ways, *operands: Tensor | None) -> Library:
    """The faster one in turns, by its best time; the outputs are dropped one by one, so memory does not grow."""
    best = dict.fromkeys((name for name in ways if name != BATCHED), float("inf"))
    with torch.no_grad():
        for name in best:
            ways[name](*operands)  # builds kernels
        start = time.perf_counter()
        for turn in range(MOST_ROUNDS):
            for name in best:
                begin = time.perf_counter()
                ways[name](*operands)
                best[name] = min(best[name], time.perf_counter() - begin)
            if turn + 1 >= LEAST_ROUNDS and time.perf_counter() - start > RACE_SECONDS:
                break
    if PACKED in best:
        if best[PACKED] <= WORTH_A_COPY * min(best[TORCH], best[ONEDNN]):
            return PACKED
        assert operands[1] is not None
        forget(operands[1])
    return ONEDNN if best[ONEDNN] <= WORTH * best[TORCH] else TORCH


@cache
def _cpu_maker() -> str | None:
    """The maker of an x86 CPU whose torch has oneDNN; None: another kind, or unknown (not Linux)."""
    try:
        processor = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return None
    makers = (maker for maker in ("AuthenticAMD", "GenuineIntel") if maker in processor)
    return next(makers, None) if torch.backends.mkldnn.is_available() else None  # type: ignore[no-untyped-call]


def _batches_rows_fast() -> bool:
    """As measured on Zen 4; on Intel's CPUs MKL's other products use all threads too."""
    mkl: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    return mkl and _cpu_maker() == "AuthenticAMD"
