"""What an operation computed besides a tensor, noted on the tensor for whoever wants it next.

* A fused kernel that writes a tensor has its copy in half precision, or its column sums, for almost nothing; the next
  operation, far away in a model, would need a kernel of its own.
* A recipe: how to compute a tensor again, for nearly nothing, from others that the graph of gradients keeps anyway. A
  product's backward pass needs its input; it keeps the recipe instead.

A note holds for the tensor object and its values: after an operation in place, or on a view, there is none, and the
next operation computes it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from archbench.errors import UsageError
from archbench.kernels.precision import autocast_dtype, without_autocast

_NARROW, _COLUMN_SUMS, _RECIPE = "_archbench_narrow", "_archbench_column_sums", "_archbench_recipe"


def note_narrow(x: Tensor, narrow: Tensor) -> None:
    """``narrow`` is ``x`` in half precision, and the graph of gradients has both."""
    _note(x, _NARROW, narrow)


def narrowed(x: Tensor) -> Tensor:
    """The half-precision copy of ``x`` that is noted, if autocast wants it; otherwise ``x`` itself."""
    narrow: Tensor | None = None if torch.compiler.is_compiling() else _noted(x, _NARROW)
    return x if narrow is None or narrow.dtype != autocast_dtype(x) else narrow


def note_column_sums(x: Tensor, sums: Tensor) -> None:
    """``sums`` (C,) are those of ``x`` (..., C) over all rows."""
    _note(x, _COLUMN_SUMS, sums)


def column_sums(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Sums (C,) of ``x`` (..., C) over all rows, in that dtype: those that are noted, or calculated."""
    noted: Tensor | None = _noted(x, _COLUMN_SUMS)
    if noted is not None:
        return noted.to(dtype)
    rows = x.flatten(0, -2)
    if x.device.type != "cuda" or torch.version.hip is not None:
        return rows.sum(0, dtype=dtype)
    # One product instead of a sum by several programs, which also clears what they share.
    ones = _ones(rows.shape[0], rows.dtype, rows.device)
    with without_autocast(x):
        return (ones @ rows if dtype == rows.dtype else torch.mm(ones, rows, out_dtype=dtype))[0]


def note_recipe(x: Tensor, function: Callable[..., Tensor], *sources: Tensor | None) -> None:
    """``x`` is ``function(*sources)``, bit for bit and at every call. On CPUs: elsewhere it would cost launches."""
    if x.device.type != "cpu" or not x.requires_grad or torch.compiler.is_compiling():
        return
    kept = [None if source is None else source.detach() for source in sources]  # which count changes with the source
    versions = [None if source is None else source._version for source in kept]

    def make() -> Tensor:
        if versions != [None if source is None else source._version for source in kept]:
            raise UsageError(
                "backward",
                f"what {getattr(function, '__name__', function)} was computed from was changed in place",
                "Change it after the backward pass, or change a copy",
            )
        with torch.no_grad():
            return function(*kept)

    _note(x, _RECIPE, make)


def keeping_recipe(x: Tensor) -> AbstractContextManager[object]:
    """Within this context, what autograd would keep of ``x`` is its recipe, if one is noted."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return nullcontext()
    make = _noted(x, _RECIPE)
    if make is None or not torch._C._autograd._saved_tensors_hooks_is_enabled():  # type: ignore[attr-defined]  # torch.func
        return nullcontext()
    start, count = x.data_ptr(), x.numel()

    def keep(tensor: Tensor) -> Tensor | tuple[Callable[[], Tensor], torch.Size]:
        whole = tensor.data_ptr() == start and tensor.numel() == count and tensor.is_contiguous()
        return (make, tensor.shape) if whole else tensor

    def recall(kept: Tensor | tuple[Callable[[], Tensor], torch.Size]) -> Tensor:
        return kept if isinstance(kept, Tensor) else kept[0]().view(kept[1])

    return torch.autograd.graph.saved_tensors_hooks(keep, recall)


@lru_cache(maxsize=8)
def _ones(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.ones(1, count, dtype=dtype, device=device)


def _note(x: Tensor, name: str, value: object) -> None:
    if not x.is_inference():  # in inference mode a tensor does not count its changes
        setattr(x, name, (x._version, value))


def _noted(x: Tensor, name: str) -> Any:
    version, value = getattr(x, name, (None, None))
    return value if version is not None and version == x._version else None
