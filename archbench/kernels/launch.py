"""One launch of a Triton kernel, as data: to run on a GPU, to interpret, or to compile for an absent chip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Launch:
    """A Triton kernel with its grid and every argument.

    Attributes:
        name: its name in tables, as in ``forward``.
        kernel: the ``triton.JITFunction``.
        grid: programs along each axis.
        arguments: the kernel's arguments by name: tensors (on the meta device if only compiled), tensor descriptors,
            numbers, and ``tl.constexpr`` values.
        options: of Triton's compiler: ``num_warps``, ``num_stages``, ``enable_fp_fusion`` …
    """

    name: str
    kernel: Any
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)

    def run(self) -> Any:
        """Launch it on the current GPU and return Triton's compiled kernel; in Triton's interpreter run it: None."""
        return self.kernel[self.grid](**self.arguments, **self.options)
