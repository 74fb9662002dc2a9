"""Launches of the fused kernels, and the two functions that run them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from archbench.kernels.attention_backends import autotunes
from archbench.kernels.dropout_bits import kept_scale
from archbench.kernels.fused.backward import delta_kernel, key_gradient_kernel, query_gradient_kernel
from archbench.kernels.fused.configurations import (
    FORWARD,
    KEY_GRADIENT,
    QUERY_GRADIENT,
    Configuration,
    chip_of,
    configuration_for,
    tile_widths,
)
from archbench.kernels.fused.forward import forward_kernel
from archbench.kernels.fused.repeated_launches import Kind, keep_launches, kind_of, launched_again
from archbench.kernels.fused.tuning import tuned
from archbench.kernels.launch import Launch

L2_BYTES = 20 * 2**20
"""Keys and values of the heads processed at one time fit in this: half the L2 cache of an A100 or H100."""

DELTA_ROWS = 64


def fused_forward(
    q: Tensor, k: Tensor, v: Tensor,
    *, window: int | None, scale: float, precision: str, seed: int | Tensor = 0, dropped: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Causal attention by the Triton kernel.

    Args:
        q: (B, H, T, D) on a GPU, or on the CPU in Triton's interpreter; the last stride is 1.
        k, v: (B, G, S, D), likewise.
        window: W, or None.
        scale: of the scores, above 0.
        precision: of float32 products: ``ieee``, ``tf32x3`` or ``tf32``.
        seed, dropped: of 65,536 weights ``dropped`` are dropped, which the seed decides; the rest is scaled. A
            seed that is a tensor () int64 on the GPU is read when the kernel runs.

    Returns:
        out (B, H, T, D) in q's dtype and memory layout, and lse (B, H, T) float32: log2 of the sum of
        2^(log2(e) · scale · q·k) over the keys that a query sees.
    """
    out, lse = torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)
    tunes, tensors = autotunes(q.device.type), (q, k, v, out, lse)
    kind = kind_of(FORWARD, tensors, window, scale, precision, tunes, dropped, isinstance(seed, Tensor))
    with _current(q.device):
        if launched_again(kind, tensors, seed):
            return out, lse
        how: dict[str, Any] = {"window": window, "precision": precision}
        launch = partial(
            forward_launch, q, k, v, out, lse, **how, scale=scale, chip=chip_of(q.device), seed=seed, dropped=dropped
        )
        chosen = None
        if tunes:
            triton.set_allocator(_scratch)  # for descriptors that kernels make themselves
            chosen = tuned(
                FORWARD, q, k, **how, outputs=(out, lse), dropout=dropped > 0,
                launches_with=lambda one: [launch(configuration=one)],
            )  # fmt: skip
        _run_first(kind, tensors, [launch(configuration=chosen)])
    return out, lse


def fused_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    *, window: int | None, scale: float, precision: str, seed: int | Tensor = 0, dropped: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k and v, in their dtypes and layouts; needs 4·B·H·T bytes besides.

    Args:
        grad_out: (B, H, T, D), the last stride 1.
        q, k, v, window, scale, precision, seed, dropped: as for :func:`fused_forward`.
        out, lse: its results.
    """
    delta = torch.empty_like(lse)
    gradients = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    tunes, tensors = autotunes(q.device.type), (grad_out, q, k, v, out, lse, delta, *gradients)
    kind = kind_of("backward", tensors, window, scale, precision, tunes, dropped, isinstance(seed, Tensor))
    with _current(q.device):
        if launched_again(kind, tensors, seed):
            return gradients
    how: dict[str, Any] = {"window": window, "precision": precision}
    launches = partial(
        backward_launches, grad_out, q, k, v, out, lse, delta, *gradients, **how, scale=scale, chip=chip_of(q.device),
        seed=seed, dropped=dropped,
    )  # fmt: skip

    def fastest(kernel: str) -> Configuration:
        def delta_and_it(configuration: Configuration) -> list[Launch]:
            return [one for one in launches(configurations={kernel: configuration}) if one.name in ("delta", kernel)]

        outputs = gradients[1:] if kernel == KEY_GRADIENT else gradients[:1]
        return tuned(kernel, q, k, **how, outputs=outputs, launches_with=delta_and_it)

    with _current(q.device):
        chosen = {kernel: fastest(kernel) for kernel in (KEY_GRADIENT, QUERY_GRADIENT)} if tunes else {}
        _run_first(kind, tensors, launches(configurations=chosen))
    return gradients


def _run_first(kind: Kind, tensors: Sequence[Tensor], launches: list[Launch]) -> None:
    """Make these launches, and keep them for others of their kind."""
    keep_launches(kind, tensors, launches, [launch.run() for launch in launches])


def forward_launch(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    *, window: int | None, scale: float, precision: str, chip: str, seed: int | Tensor = 0, dropped: int = 0,
    configuration: Configuration | None = None,
) -> Launch:  # fmt: skip
    """The forward kernel on these tensors for ``chip`` (``sm_90`` …), configured by the table or ``configuration``."""
    configuration = configuration or configuration_for(
        chip, FORWARD, q.shape[3], q.dtype, describable=_describable(k, v)
    )
    common = _common(q, k, window, scale, precision, seed, dropped, configuration, [q, k, v, out])
    streams = _streams({"k": k, "v": v}, configuration, configuration.block_s)
    arguments = {
        "q": q, "out": out, "lse": lse, **streams, **common,
        **_strides(common["STRIDE_UNIT"], q=q, k=k, v=v, out=out),
        "section": _section(k, q.shape[1] // k.shape[1]), "PERSISTENT": configuration.programs > 0,
        "SPECIALIZED": configuration.specialized and streams["TMA"] and _describable(q),
    }  # fmt: skip
    del arguments["scale"]
    grid = math.ceil(q.shape[2] / configuration.block_t) * q.shape[0] * q.shape[1]
    if configuration.programs:
        grid = min(grid, configuration.programs * _multiprocessors(q.device))
    return Launch("forward", forward_kernel, (grid,), arguments, _options(configuration))


def backward_launches(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, delta: Tensor,
    grad_q: Tensor, grad_k: Tensor, grad_v: Tensor,
    *, window: int | None, scale: float, precision: str, chip: str, seed: int | Tensor = 0, dropped: int = 0,
    configurations: dict[str, Configuration] | None = None,
) -> list[Launch]:  # fmt: skip
    """The three backward kernels in order: delta, gradients of keys and values, gradients of queries."""
    B, H, T, D = q.shape
    G, S = k.shape[1:3]
    chosen = configurations or {}
    unit = _stride_unit([out, grad_out])
    row_sums = Launch(
        "delta", delta_kernel, (math.ceil(T / DELTA_ROWS) * B * H,),
        {
            "out": out, "grad_out": grad_out, "delta": delta, "heads": H, "T": T,
            **_strides(unit, out=out, grad=grad_out),
            "D": D, "WIDTH": 1 << (D - 1).bit_length(), "BLOCK_T": DELTA_ROWS, "STRIDE_UNIT": unit,
        },
        {"num_warps": 4, "enable_fp_fusion": True},
    )  # fmt: skip

    keys = chosen.get(KEY_GRADIENT) or configuration_for(
        chip, KEY_GRADIENT, D, q.dtype, describable=_describable(q, grad_out), dropout=dropped > 0
    )
    common = _common(q, k, window, scale, precision, seed, dropped, keys, [q, k, v, grad_out, grad_k, grad_v])
    for_keys = {
        "k": k, "v": v, "lse": lse, "delta": delta, "grad_k": grad_k, "grad_v": grad_v,
        **_streams({"q": q, "grad_out": grad_out}, keys, keys.block_t), **common,
        **_strides(common["STRIDE_UNIT"], q=q, k=k, v=v, grad=grad_out, grad_k=grad_k, grad_v=grad_v),
        "section": max(1, _section(q, 1) // (H // G)),
    }  # fmt: skip

    queries = chosen.get(QUERY_GRADIENT) or configuration_for(
        chip, QUERY_GRADIENT, D, q.dtype, describable=_describable(k, v), dropout=dropped > 0
    )
    common = _common(q, k, window, scale, precision, seed, dropped, queries, [q, k, v, grad_out, grad_q])
    for_queries = {
        "q": q, "grad_out": grad_out, "lse": lse, "delta": delta, "grad_q": grad_q,
        **_streams({"k": k, "v": v}, queries, queries.block_s), **common,
        **_strides(common["STRIDE_UNIT"], q=q, k=k, v=v, grad=grad_out, grad_q=grad_q),
        "section": _section(k, H // G),
    }  # fmt: skip
    return [
        row_sums,
        Launch(KEY_GRADIENT, key_gradient_kernel, (math.ceil(S / keys.block_s) * B * G,), for_keys, _options(keys)),
        Launch(
            QUERY_GRADIENT, query_gradient_kernel, (math.ceil(T / queries.block_t) * B * H,), for_queries,
            _options(queries),
        ),
    ]  # fmt: skip


def _multiprocessors(device: torch.device) -> int:
    """Of a GPU; three for the interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 3


def _scratch(size: int, alignment: int, stream: int | None) -> Tensor:
    """Memory on the current GPU, which torch aligns to 512 bytes."""
    return torch.empty(size, dtype=torch.int8, device="cuda")


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Makes ``device`` the current GPU, on which Triton launches."""
    elsewhere = device.type == "cuda" and device.index != torch.cuda.current_device()
    return torch.cuda.device(device) if elsewhere else nullcontext()


def _common(
    q: Tensor, k: Tensor, window: int | None, scale: float, precision: str, seed: int | Tensor, dropped: int,
    configuration: Configuration, strided: list[Tensor],
) -> dict[str, Any]:  # fmt: skip
    """The arguments that all three attention kernels share."""
    B, H, T, D = q.shape
    G, S = k.shape[1:3]
    windowed = window is not None and window < S  # a longer one hides nothing
    D1, D2 = tile_widths(D)
    return {
        "batches": B, "heads": H, "group": H // G, "T": T, "S": S, "window": window if windowed else 0,
        "scale": scale, "scale_log2e": scale * math.log2(math.e),
        "seed": seed, "dropped": dropped, "kept_scale": kept_scale(dropped), "DROPOUT": dropped > 0,
        "D": D, "D1": D1, "D2": D2, "BLOCK_T": configuration.block_t, "BLOCK_S": configuration.block_s,
        "WINDOWED": windowed, "STRIDE_UNIT": _stride_unit(strided),
        "PRECISION": precision if q.dtype == torch.float32 else "ieee",
    }  # fmt: skip


def _streams(tensors: dict[str, Tensor], configuration: Configuration, rows: int) -> dict[str, Any]:
    """What a kernel's loop reads, and TMA: the tensors, or descriptors of them if the configuration says so."""
    D = next(iter(tensors.values())).shape[3]
    tma = configuration.tma and tile_widths(D)[1] == 0 and _describable(*tensors.values())
    if not tma:
        return {**tensors, "TMA": False}
    descriptors = {
        name: TensorDescriptor(tensor, [*tensor.shape], [*tensor.stride()], [1, 1, rows, D])
        for name, tensor in tensors.items()
    }
    return {**descriptors, "TMA": True}


def _describable(*tensors: Tensor) -> bool:
    """Whether descriptors of all tensors are possible: they need 16-byte strides and addresses."""
    return all(
        tensor.data_ptr() % 16 == 0
        and all(stride > 0 and stride * tensor.element_size() % 16 == 0 for stride in tensor.stride()[:3])
        for tensor in tensors
    )


def _stride_unit(tensors: list[Tensor]) -> int:
    """The largest power of two, up to 16 bytes, that divides every stride; in elements."""
    strides = [stride for tensor in tensors for stride in tensor.stride()[:3]]
    return math.gcd(16 // min(tensor.element_size() for tensor in tensors), *strides)


def _strides(unit: int, **tensors: Tensor) -> dict[str, int]:
    """Batch, head and position strides of each tensor, in units of ``unit`` elements."""
    return {
        f"{name}_stride_{letter}": stride // unit
        for name, tensor in tensors.items()
        for letter, stride in zip("bht", tensor.stride()[:3], strict=True)
    }


def _section(streamed: Tensor, heads_a_stream: int) -> int:
    """How many heads are processed at one time: those whose two streamed tensors together fit the L2 cache."""
    head_bytes = 2 * streamed.shape[2] * streamed.shape[3] * streamed.element_size()
    return max(1, L2_BYTES // head_bytes) * heads_a_stream


def _options(configuration: Configuration) -> dict[str, Any]:
    return {
        "num_warps": configuration.warps,
        "num_stages": configuration.stages,
        "enable_fp_fusion": True,  # explicit, because its default will change
    }
