"""Memory in which every access of an interpreted kernel can be judged: tensors among guards of NaN, and a ledger."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import triton.language as tl
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

NAN_BYTE = 0xFF
"""float32, float16 and bfloat16 are all NaN where every bit is set."""

GUARD, INPUT, OUTPUT = 0, 1, 2

REGIONS = 12
"""At most so many in an arena."""


class Arena:
    """One allocation, all NaN, in which tensors are placed with guards before, after and between them.

    Every byte has a role: GUARD, INPUT (to be read only) or OUTPUT. While :meth:`watched`, each load and store of the
    interpreter is checked against the roles; what leaves the allocation altogether is noted and not carried out.
    """

    def __init__(self, size: int, guard: int) -> None:
        """
        Args:
            size: bytes of all tensors together, with the gaps in them.
            guard: bytes before and after each tensor: no fewer than a block of rows reaches past the end.
        """
        self.guard = (guard + 15) // 16 * 16
        self.memory = torch.full((size + REGIONS * (self.guard + 16),), NAN_BYTE, dtype=torch.uint8)
        self.roles = torch.zeros_like(self.memory)
        self.writes = np.zeros(len(self.memory), np.uint8)  # at an element's first byte: how often it was stored
        self.end = self.guard
        self.findings: list[str] = []
        self.spread = (0, 0)

    def pretend(self, apart: int, really: int) -> None:
        """From now on, what the kernels take to lie ``apart`` bytes further lies ``really`` bytes further.

        So tensors can be larger than any memory: no byte of the arena may be ``apart`` bytes from another.
        """
        assert apart > 2 * len(self.memory)
        self.spread = (apart, really)

    def region(self, elements: int, dtype: torch.dtype) -> Tensor:
        """(elements,) of guard, in ``dtype``, from a 16-byte address, with guards around."""
        start, size = self.end, elements * dtype.itemsize
        self.end = (start + size + 15) // 16 * 16 + self.guard
        assert self.end <= len(self.memory), "the arena is too small for its tensors"
        return self.memory[start : start + size].view(dtype)

    def assign(self, view: Tensor, role: int) -> Tensor:
        """Give each element of a view of a region its role; an input's values are then copied in by the caller."""
        size = view.element_size()
        start = view.data_ptr() - self.memory.data_ptr()
        strides = [stride * size for stride in view.stride()]
        self.roles.as_strided([*view.shape, size], [*strides, 1], start).fill_(role)
        return view

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Judge all accesses; afterwards, look whether a guard or an input has changed."""
        base, end = self.memory.data_ptr(), len(self.memory)
        roles, writes = self.roles.numpy(), self.writes
        writes[:] = 0
        before = self.memory.clone()
        load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

        def judged(pointers: TensorHandle, mask: Any, least: int, action: str) -> tuple[Any, Any, Any]:
            inside = mask.data if isinstance(mask, TensorHandle) else mask  # a bare array by Triton 3.6's descriptors
            places = pointers.data.astype(np.int64) - base
            if self.spread[0]:
                apart, really = self.spread
                times = np.maximum((places + apart // 2) // apart, 0)
                places = places - times * (apart - really)
            within = (places >= 0) & (places < end)
            places = np.where(within, places, 0)
            wrong = int((inside & ~(within & (roles[places] >= least))).sum())
            if wrong:
                self.findings.append(f"{action} {wrong} elements that no tensor has")
            addresses = TensorHandle((places + base).astype(np.uint64), pointers.dtype)
            return places, addresses, TensorHandle(inside & within, tl.int1)

        def judged_load(self: Any, pointers: Any, mask: Any, *rest: Any, **named: Any) -> TensorHandle:
            _, pointers, mask = judged(pointers, mask, INPUT, "reads")
            return load(self, pointers, mask, *rest, **named)

        def judged_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any, **named: Any) -> None:
            places, pointers, mask = judged(pointers, mask, OUTPUT, "writes")
            writes[places[mask.data]] += 1
            store(self, pointers, value, mask, *rest, **named)

        with patch.multiple(InterpreterBuilder, create_masked_load=judged_load, create_masked_store=judged_store):
            yield
        changed = (self.memory != before) & (self.roles != OUTPUT)
        if changed.any():
            self.findings.append(f"{int(changed.sum())} bytes of guards or inputs are changed")

    def take(self, name: str, output: Tensor) -> Tensor:
        """Judge that each element of an output was stored just once and is a number; from now on it is an input."""
        start, size = output.data_ptr() - self.memory.data_ptr(), output.element_size()
        strides = [stride * size for stride in output.stride()]
        counts = torch.from_numpy(self.writes).as_strided(output.shape, strides, start)
        if (counts != 1).any():
            never, often = int((counts == 0).sum()), int((counts > 1).sum())
            self.findings.append(f"{name}: {never} elements are never written, {often} more than once")
        if output.isnan().any():
            self.findings.append(f"{name}: {int(output.isnan().sum())} elements are NaN")
        return self.assign(output, INPUT)
