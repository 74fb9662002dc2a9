"""One launch of a Triton kernel, as data: to be run on a GPU, interpreted, or compiled for a chip that is not there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Launch:
    """A Triton kernel with its grid and every argument.

    Attributes:
        name: what the launch is called in tables, as in ``forward``.
        kernel: the ``triton.JITFunction``.
        grid: programs along each axis.
        arguments: the kernel's arguments by name: tensors (on the meta device, to compile only), tensor descriptors,
            numbers, and its ``tl.constexpr`` ones.
        options: what Triton's compiler takes beside them: ``num_warps``, ``num_stages``, ``enable_fp_fusion`` …
    """

    name: str
    kernel: Any
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)

    def run(self) -> None:
        """Launch it on the current GPU, or in Triton's interpreter where that is on."""
        self.kernel[self.grid](**self.arguments, **self.options)
