"""What Triton's interpreter (3.6 to 3.9) gets wrong, put right; and two of its slow habits, broken.

It holds bfloat16 as uint16 patterns, and silently multiplies those patterns as integers in ``tl.dot``; it cuts a
float32 off instead of rounding it to nearest even. Other arithmetic on the patterns would be as wrong: here it raises,
which also shows that the kernels go to float32 before they calculate. To 8 bits it cuts subnormal numbers off, and
loses what carries into the exponent. As a loop's bound it takes arrays of one element,
which numpy 2.5 no longer converts (Triton 3.6; later ones squeeze them).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

COPIES = {np.transpose, np.where}
"""Operations of the interpreter that move patterns without calculating."""

FLOAT8 = {"fp8e4nv": torch.float8_e4m3fn, "fp8e5": torch.float8_e5m2}

UNCORRECTED = {
    name: getattr(InterpreterBuilder, name)
    for name in ("cast_impl", "create_fp_to_fp", "create_dot", "unary_op", "binary_op", "ternary_op")
}


def decode(patterns: np.ndarray) -> np.ndarray:
    """bfloat16 patterns (uint16) as the float32 of the same value: exact."""
    return (patterns.astype(np.uint32) << 16).view(np.float32)


def encode(values: np.ndarray) -> np.ndarray:
    """float32 as bfloat16 patterns (uint16), rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    quiet = (bits >> 16) | np.uint32(0x40)  # adding to a NaN could make it an infinity
    return np.where(np.isnan(values), quiet, rounded).astype(np.uint16)


@contextmanager
def bfloat16_corrected() -> Iterator[None]:
    """Casts round, dots multiply values, and nothing else touches the patterns."""

    def cast_impl(self: InterpreterBuilder, src: TensorHandle, dst_type: Any) -> TensorHandle:
        if src.dtype.scalar == tl.bfloat16:
            src = TensorHandle(decode(src.data), tl.float32)
        if dst_type.scalar == tl.bfloat16:
            return TensorHandle(encode(src.data), tl.bfloat16)
        if dst_type.scalar.name in FLOAT8:
            values = torch.from_numpy(np.ascontiguousarray(src.data, dtype=np.float32))
            return TensorHandle(values.to(FLOAT8[dst_type.scalar.name]).view(torch.uint8).numpy(), dst_type.scalar)
        return UNCORRECTED["cast_impl"](self, src, dst_type)

    def create_fp_to_fp(self: InterpreterBuilder, src: TensorHandle, dst_type: Any, rounding: Any) -> TensorHandle:
        if tl.bfloat16 in (src.dtype.scalar, dst_type.scalar) or dst_type.scalar.name in FLOAT8:
            return cast_impl(self, src, dst_type)
        return UNCORRECTED["create_fp_to_fp"](self, src, dst_type, rounding)

    def create_dot(self: InterpreterBuilder, a: TensorHandle, b: TensorHandle, *rest: Any) -> TensorHandle:
        a, b = (cast_impl(self, x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return UNCORRECTED["create_dot"](self, a, b, *rest)

    def refusing(name: str) -> Any:
        original = UNCORRECTED[name]

        def operation(self: InterpreterBuilder, *arguments: Any) -> TensorHandle:
            *operands, op = arguments
            if op not in COPIES and any(x.dtype.scalar == tl.bfloat16 for x in operands):
                raise TypeError(f"{op.__name__} on bfloat16: the interpreter would calculate with its bit patterns")
            return original(self, *arguments)

        return operation

    with patch.multiple(
        InterpreterBuilder,
        cast_impl=cast_impl, create_fp_to_fp=create_fp_to_fp, create_dot=create_dot,
        unary_op=refusing("unary_op"), binary_op=refusing("binary_op"), ternary_op=refusing("ternary_op"),
    ):  # fmt: skip
        yield


@contextmanager
def scalars_converted() -> Iterator[None]:
    """A tensor of one element is an integer, whatever the number of its dimensions."""
    patch_tensor = interpreter._patch_lang_tensor

    def patch_and_convert(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    with patch.object(interpreter, "_patch_lang_tensor", patch_and_convert):
        yield


@contextmanager
def patched_once() -> Iterator[None]:
    """The interpreter in a third of its time: no value changes.

    It replaces the functions of ``triton.language`` anew at every call of a helper, and does every sum of integers a
    second time in 64 bits to see whether it overflows.
    """
    patch_lang, restores, patched = interpreter._patch_lang, [], set()

    def patch_new_modules(fn: Any) -> Any:
        modules = {name for name in ("tl", "core") if name in fn.__globals__}
        if modules <= patched:
            return None
        scope = patch_lang(fn)
        restores.append(scope.restore)
        if not patched:  # the kernel's own, which alone the interpreter restores in the end
            scope.restore = restore_all
        patched.update(modules)
        return scope

    def restore_all() -> None:
        while restores:
            restores.pop()()
        patched.clear()

    builder = interpreter.interpreter_builder
    unchecked = dataclasses.replace(builder.options, sanitize_overflow=False)
    with patch.object(interpreter, "_patch_lang", patch_new_modules), patch.object(builder, "options", unchecked):
        yield
