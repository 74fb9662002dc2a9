"""The backends of causal attention: which can run, which one is chosen, and which ran.

triton     archbench's fused kernel, forward and backward (GPUs)
sdpa       torch's scaled_dot_product_attention; on a GPU the fastest of its kernels, each of which has a name too:
           sdpa-cudnn, sdpa-flash, sdpa-efficient and sdpa-math (:mod:`archbench.kernels.attention_sdpa`)
flex       torch's FlexAttention, compiled (GPUs; on CPUs its forward pass)
blocks     matrix products of blocks of queries with the keys that they see (:mod:`archbench.kernels.attention_blocks`;
           CPUs)
reference  the definition, in matrix products
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from operator import index

import torch

from archbench.errors import DeviceError, UnknownNameError, UsageError, did_you_mean
from archbench.kernels.attention_rules import FIXED, MEASURED, Ranking, blocks_are_fastest, octave_of, ranking
from archbench.kernels.attention_sdpa import KERNELS, shape_of, torch_prefers_cudnn, why_not_sdpa
from archbench.kernels.fused.configurations import chip_of, family_of

BACKENDS = ("triton", "sdpa", *KERNELS, "flex", "blocks", "reference")
PRECISIONS = ("ieee", "tf32x3", "tf32")
"""Of the Triton kernel's float32 products: exact, three TF32 products for each, or one."""

SMALLEST_CAPABILITY = (8, 0)
HEAD_WIDTHS = range(16, 257)

AUTOTUNE_VARIABLE = "ARCHBENCH_AUTOTUNE"
"""Environment variable: 1 to time the Triton kernel's configurations instead of using its table."""

# Globals instead of context variables: torch.compile guards on them, and autograd's threads see them.
ambient = "auto"
recorders: list[set[str]] = []

rules: set[str] = set()
"""By which rules ``auto`` and ``sdpa`` have chosen in this process: see :mod:`archbench.kernels.attention_rules`."""


def resolve_attention(
    name: str,
    *,
    device_type: str,
    dtype: torch.dtype,
    T: int,
    S: int,
    D: int,
    window: int | None = None,
    dropout: float = 0.0,
    gradients: bool = False,
    compiling: bool = False,
    precision: str = "ieee",
    device_index: int | None = None,
    heads: int = 1,
) -> str:
    """The backend that runs: ``name`` itself, or the choice of ``auto`` or ``sdpa``. Each decision is logged once.

    On a GPU both take the fastest that can run: by a measurement of ``archbench kernels`` on that GPU, otherwise by
    published figures (:mod:`archbench.kernels.attention_rules`). On a CPU ``auto`` takes the one measured to be
    fastest, and ``sdpa`` leaves the choice to torch. On the meta device nothing runs, and the answer is always
    ``reference``, whose matrix products can be counted.

    Args:
        name: a backend, or ``auto``.
        device_type: of the tensors, as in ``torch.device.type``.
        dtype: of the queries.
        T, S, D, window, precision: see :func:`archbench.kernels.causal_attention`.
        dropout: probability of dropping an attention weight.
        gradients: whether there will be a backward pass.
        compiling: whether torch.compile is tracing the caller.
        device_index: which GPU; None for the current one.
        heads: B · H, sequences times query heads.

    Raises:
        UnknownNameError: there is no such backend or precision.
        DeviceError: the backend cannot run there; says why.
        UsageError: a precision for a backend that follows torch's own setting.
    """
    # ``not`` and ``index`` turn torch.compile's symbols into plain values. A fact without influence is the same for
    # all: otherwise one decision would be made twice.
    few = device_type == "cpu" and dtype == torch.bfloat16 and not (T > 512 or (T == 1 and S < 128))
    blocks = device_type == "cpu" and not compiling and blocks_are_fastest(dtype, heads, T, S, D, window, dropout)
    shape, octave = "square", 0
    if device_type == "cuda":
        shape, octave = shape_of(T, S, window), octave_of(T)
    return _decide(
        name, device_type, device_index, dtype, index(D), shape, octave, few, blocks, not dropout, gradients,
        compiling, precision,
    )  # fmt: skip


def _decide(*facts: object) -> str:
    return _decided(*facts)


# As torch.compiler.assume_constant_result sets it, without the second that importing the compiler takes: torch.compile
# uses the result and does not trace the function, whose logging and module search it cannot trace.
_decide._dynamo_marked_constant = True  # type: ignore[attr-defined]


@cache
def _decided(
    name: str,
    device_type: str,
    device_index: int | None,
    dtype: torch.dtype,
    D: int,
    shape: str,
    octave: int,
    few: bool,
    blocks: bool,
    dropless: bool,
    gradients: bool,
    compiling: bool,
    precision: str,
) -> str:
    check_backend(name)
    if precision not in PRECISIONS:
        raise UnknownNameError(
            f"precision {precision!r}", "there is no such precision", did_you_mean(precision, PRECISIONS)
        )
    if device_type == "meta":
        return "reference"
    dropout = 0.0 if dropless else 0.5

    def cause_against(backend: str) -> str | None:
        return why_not(
            backend, device_type, dtype, D, dropout,
            gradients=gradients, compiling=compiling, device_index=device_index, shape=shape,
        )  # fmt: skip

    rule, reason = FIXED, None
    if device_type == "cuda" and torch.cuda.is_available() and name in ("auto", "sdpa"):
        tried = _tried(name, device_index, dtype, D, octave, shape, gradients, precision)
        against = []
        for chosen in tried.names:
            cause = cause_against(chosen)
            asks = chosen == "sdpa-cudnn" and tried.rule != MEASURED
            if cause is None and asks and not torch_prefers_cudnn(dtype, D, shape, dropout, gradients, device_index):
                cause = "torch does not prefer this GPU's or this version's cuDNN"
            if cause is None:
                break
            against.append(cause)
        rule, reason = tried.rule, "; ".join([*dict.fromkeys(against), tried.reason])
    elif name == "auto":
        reason = cause_against("triton")
        # On a CPU with dropout SDPA leaves its fast path, and is twice as slow; with few positions matrix products are
        # 1.5 to 4 times as fast, until the (T, S) weights outgrow the caches.
        others = "reference" if few or (device_type == "cpu" and not dropless) else "sdpa"
        chosen = "blocks" if blocks else others
    else:
        chosen = name
        cause = cause_against(name)
        if cause is not None:
            able = [other for other in BACKENDS if cause_against(other) is None]
            raise DeviceError(f"attention {name!r}", cause, f"Use auto, or one of {', '.join(able)}")
    if precision != "ieee" and chosen != "triton":
        raise UsageError(
            f"precision {precision!r}",
            f"only the Triton kernel has it, but {chosen} attention runs here" + (f" ({reason})" if reason else ""),
            "Leave it at ieee; torch.set_float32_matmul_precision is for torch's own products",
        )
    if chosen != name:
        rules.add(rule)
    _log_once(
        f"attention {name}: {chosen} on {device_type}, {str(dtype).removeprefix('torch.')}, head width {D}"
        + (f" ({reason})" if reason else "")
    )
    return chosen


def _tried(
    name: str,
    device_index: int | None,
    dtype: torch.dtype,
    D: int,
    octave: int,
    shape: str,
    gradients: bool,
    precision: str,
) -> Ranking:
    """The backends that ``auto`` or ``sdpa`` tries on a GPU, in order; the last one can always run."""
    if name == "auto" and precision != "ieee":
        return Ranking(("triton", "sdpa-math"), FIXED, "other precisions exist only in the Triton kernel")
    chip = chip_of(torch.device("cuda" if device_index is None else f"cuda:{device_index}"))
    found = ranking(chip, dtype, D, octave, shape, training=gradients)
    if name == "sdpa":
        names = tuple(kernel for kernel in found.names if kernel in KERNELS)
        return Ranking((*names, "sdpa-efficient", "sdpa-math"), found.rule, found.reason)
    return Ranking((*found.names, "sdpa-math"), found.rule, found.reason)


@cache
def _log_once(line: str) -> None:
    logging.getLogger("archbench").info(line)


def forget_decisions() -> None:
    """Decide anew: what the decisions depend on has changed."""
    rules.clear()
    _decided.cache_clear()
    _log_once.cache_clear()


def why_not(
    backend: str,
    device_type: str,
    dtype: torch.dtype,
    D: int,
    dropout: float = 0.0,
    *,
    gradients: bool = False,
    compiling: bool = False,
    device_index: int | None = None,
    shape: str = "square",
) -> str | None:
    """Why ``backend`` cannot compute this, as a clause; None if it can. Arguments as of :func:`resolve_attention`.

    ``shape``: ``square`` (T = S, no window), ``masked`` or ``single`` (one query).
    """
    if backend in KERNELS:
        return why_not_sdpa(
            backend, device_type, dtype, D,
            shape=shape, dropout=dropout, gradients=gradients, device_index=device_index,
        )  # fmt: skip
    if backend == "triton":
        return _why_not_triton(device_type, dtype, D, device_index)
    if backend == "flex":
        return _why_not_flex(device_type, dtype, D, dropout, gradients, compiling)
    if backend == "blocks":
        if device_type != "cpu":
            return f"attention by blocks runs only on CPUs, but q is on {device_type}"
        return "torch.compile cannot compile attention by blocks" if compiling else None
    return None


def _why_not_triton(device_type: str, dtype: torch.dtype, D: int, device_index: int | None) -> str | None:
    if device_type != "cuda":
        return f"the Triton kernel runs only on NVIDIA and AMD GPUs, but q is on {device_type}"
    if find_spec("triton") is None:
        return "the Triton kernel needs triton, which is not installed"
    if not torch.cuda.is_available():
        return "torch finds no GPU"
    device = torch.device("cuda" if device_index is None else f"cuda:{device_index}")
    if torch.version.hip is None and (capability := torch.cuda.get_device_capability(device)) < SMALLEST_CAPABILITY:
        found, least = (".".join(map(str, version)) for version in (capability, SMALLEST_CAPABILITY))
        return f"compute capability {found} is below the {least} that the Triton kernel needs"
    if family_of(chip := chip_of(device)) is None:
        return f"the Triton kernel's table has no configuration for {chip}"
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        kind = str(dtype).removeprefix("torch.")
        return f"the Triton kernel computes float32, float16 and bfloat16, but q is {kind}"
    if D not in HEAD_WIDTHS:
        return f"the Triton kernel takes head widths {HEAD_WIDTHS[0]} to {HEAD_WIDTHS[-1]}, but this one is {D}"
    return None


def _why_not_flex(
    device_type: str, dtype: torch.dtype, D: int, dropout: float, gradients: bool, compiling: bool
) -> str | None:
    if dropout > 0:
        return "FlexAttention has no dropout"
    if device_type == "cpu":
        if gradients:
            return "FlexAttention has no backward pass on CPUs"
        if compiling:
            return "on CPUs torch.compile cannot compile FlexAttention within a larger graph"
        if dtype not in (torch.float32, torch.float16, torch.bfloat16):
            kind = str(dtype).removeprefix("torch.")
            return f"FlexAttention computes float32, float16 and bfloat16 on CPUs, but q is {kind}"
        if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
            return "FlexAttention needs a CPU with AVX2"
        if not any(shutil.which(compiler) for compiler in ("g++", "clang++", "c++")):
            return "FlexAttention needs a C++ compiler on CPUs, but none is on PATH"
    elif device_type == "cuda":
        if find_spec("triton") is None:
            return "FlexAttention needs triton, which is not installed"
        if D < 16:
            return f"FlexAttention takes head widths of at least 16 on GPUs, but this one is {D}"
    return None


def autotunes(device_type: str) -> bool:
    """Whether the user asked for autotuning and the device is a GPU."""
    return device_type == "cuda" and os.environ.get(AUTOTUNE_VARIABLE, "0") not in ("", "0")


autotunes._dynamo_marked_constant = True  # type: ignore[attr-defined]  # as _decide


def check_backend(name: str) -> None:
    """Check that ``name`` is a backend or ``auto``.

    Raises:
        UnknownNameError: it is neither.
    """
    if name != "auto" and name not in BACKENDS:
        raise UnknownNameError(
            f"attention {name!r}", "there is no such backend", did_you_mean(name, ["auto", *BACKENDS])
        )


@contextmanager
def attention_backend(name: str) -> Iterator[None]:
    """Within this context, attention without an explicit backend uses ``name``.

    If that backend cannot run, the call of attention raises the error.

    Raises:
        UnknownNameError: there is no such backend.
    """
    global ambient
    check_backend(name)
    previous, ambient = ambient, name
    try:
        yield
    finally:
        ambient = previous


@contextmanager
def record_attention() -> Iterator[set[str]]:
    """Yields a set of the names of all backends that run within this context."""
    recorder: set[str] = set()
    recorders.append(recorder)
    try:
        yield recorder
    finally:
        recorders[:] = [other for other in recorders if other is not recorder]
