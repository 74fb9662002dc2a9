"""Products in float8: a linear layer whose three products multiply numbers of 8 bits, and which of a model's do.

The recipe is the default one of torchao.float8 (``Float8LinearConfig``, tensorwise and dynamic): input and weight in
e4m3, the output's gradient in e5m2 (Micikevicius et al. 2022, arXiv:2209.05433, section 3), each with one scale taken
from its largest absolute value at every use, and inexact sums ("fast accumulation") only in the forward product. Here
scales are powers of two (torchao's ``round_scales_to_power_of_2``): dividing by one rounds nothing, so a value's
rounding does not depend on its neighbours but where it is a 2^-15th of the largest or less. That a head alone may be
in float8 is from modded-nanogpt (github.com/KellerJordan/modded-nanogpt).

``torch._scaled_mm`` multiplies on GPUs of capability 8.9 and above. Its readable twin, :func:`reference_product`,
multiplies the same 8-bit numbers in float32; it is what runs on CPUs, to see what float8 does to a loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from archbench.errors import DeviceError, PluginError
from archbench.kernels.companions import column_sums, narrowed
from archbench.kernels.precision import autocast_dtype, without_autocast
from archbench.kernels.product_choice import note_product
from archbench.kernels.triton_guard import row_kernels_run

Which = Literal["none", "head", "all"]

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2

TOP = {E4M3: 2.0**7, E5M2: 2.0**14}
"""The largest scaled value lies between this and its double, which is below the formats' largest, 448 and 57,344."""

_EXPONENT = 0x7F800000
"""The bits of a float32 that make it a power of two."""

LEAST = 2.0**-60
"""Tensors of smaller numbers are scaled as if this were their largest: all zeros would have no scale."""

UNIT = 16
"""``torch._scaled_mm`` demands sizes that are multiples of it; zeros fill them up."""


class Operand(NamedTuple):
    """A matrix in float8, which a product reads along its rows; it is about ``values`` times ``scale``, () float32."""

    values: Tensor
    scale: Tensor


class Quantised(NamedTuple):
    """A matrix (M, K) in float8, twice, because a product reads both of its operands along rows.

    Attributes:
        values: (M', K'), zeros up to multiples of :data:`UNIT`.
        transposed: (K', M').
        scale: () float32, a power of two: the matrix is about ``values`` times it.
    """

    values: Tensor
    transposed: Tensor
    scale: Tensor

    @property
    def operand(self) -> Operand:
        """The matrix."""
        return Operand(self.values, self.scale)

    @property
    def turned(self) -> Operand:
        """Its transpose."""
        return Operand(self.transposed, self.scale)


def scale_of(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The scale () of x in a float8 dtype, from its largest absolute value; the host does not wait for it."""
    largest = _largest(x).clamp(min=LEAST)
    # NaN and infinity have the scale infinity, by which everything becomes NaN.
    power: Tensor = largest.view(torch.int32).bitwise_and(_EXPONENT).view(torch.float32)
    return power / TOP[dtype]


def quantise(x: Tensor, dtype: torch.dtype, scale: Tensor | None = None) -> Quantised:
    """x (M, K), bfloat16 or float32, in a float8 dtype, rounded to the nearest; ``scale`` () is by default its own.

    On GPUs one Triton kernel; :func:`reference_quantise` is its readable twin.
    """
    if torch.compiler.is_compiling() or not row_kernels_run(x.device):
        return reference_quantise(x, dtype, scale_of(x, dtype) if scale is None else scale)
    from archbench.kernels.fused.row_launches import quantise_launch

    M, K = (-(-size // UNIT) * UNIT for size in x.shape)
    values, transposed = (x.new_empty(shape, dtype=dtype) for shape in ((M, K), (K, M)))
    largest, scale = (_largest(x), x.new_empty((), dtype=torch.float32)) if scale is None else (None, scale)
    x = x if x.stride(1) == 1 else x.contiguous()
    with torch.cuda.device(x.device):
        quantise_launch(x, largest, scale, values, transposed, least=LEAST, top=TOP[dtype]).run()
    return Quantised(values, transposed, scale)


def _largest(x: Tensor) -> Tensor:
    most: Tensor = torch.linalg.vector_norm(x, float("inf"), dtype=torch.float32)
    return most


def reference_quantise(x: Tensor, dtype: torch.dtype, scale: Tensor) -> Quantised:
    """:func:`quantise` in torch's operations, which compilers fuse."""
    values = x.div(scale).to(dtype)
    M, K = x.shape
    if M % UNIT or K % UNIT:
        values = F.pad(values, (0, -K % UNIT, 0, -M % UNIT))
    return Quantised(values, values.t().contiguous(), scale)


def product(
    left: Operand, right: Operand, dtype: torch.dtype, bias: Tensor | None = None, *, inexact: bool = False
) -> Tensor:
    """left rightᵀ + bias, left (M, K) and right (N, K), bias (N,) -> (M, N) in ``dtype``.

    Args:
        bias: in ``dtype``, which is then bfloat16; None for none.
        inexact: whether tensor cores may sum in fewer bits than float32.
    """
    if left.values.device.type == "cpu":
        return reference_product(left, right, dtype, bias)
    return scaled_product(left, right, dtype, bias, inexact=inexact)


def scaled_product(
    left: Operand, right: Operand, dtype: torch.dtype, bias: Tensor | None = None, *, inexact: bool = False
) -> Tensor:
    """:func:`product` by ``torch._scaled_mm``."""
    operands = left.values, right.values.t(), left.scale, right.scale
    with without_autocast(left.values):  # under which a CPU rounds the product before it adds the bias
        y: Tensor = torch._scaled_mm(*operands, bias=bias, out_dtype=dtype, use_fast_accum=inexact)
    return y


def reference_product(left: Operand, right: Operand, dtype: torch.dtype, bias: Tensor | None = None) -> Tensor:
    """:func:`product` by its definition, in float32."""
    with without_autocast(left.values):
        y = (left.values.float() * left.scale) @ (right.values.float() * right.scale).t()
    return (y if bias is None else y + bias.float()).to(dtype)


def float8_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` under autocast, its products in float8: x (..., K), weight (N, K), bias (N,) -> (..., N).

    The result has autocast's dtype. The weight's gradient has the weight's and is summed in float32, not rounded to
    autocast's; differentiable once.
    """
    dtype = autocast_dtype(x)
    assert dtype is not None
    return Float8Linear.apply(narrowed(x), weight, bias, dtype)  # type: ignore[no-untyped-call, no-any-return]


class Float8Linear(torch.autograd.Function):
    """x Wᵀ + b; for the backward pass it keeps x and W in float8."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        rows, w = quantise(x.flatten(0, -2), E4M3), quantise(weight, E4M3)
        ctx.save_for_backward(rows.transposed, rows.scale, w.transposed, w.scale)
        ctx.like = x.shape, x.dtype, weight.shape, weight.dtype, None if bias is None else bias.dtype
        narrow = None if bias is None else F.pad(bias.to(dtype), (0, -len(bias) % UNIT))
        y = product(rows.operand, w.operand, dtype, narrow, inexact=True)
        return cut(y, x.shape[:-1].numel(), weight.shape[0]).view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, x_scale, w, w_scale = ctx.saved_tensors
        shape, x_dtype, (N, K), w_dtype, b_dtype = ctx.like
        M = shape[:-1].numel()
        errors = quantise(gradient.flatten(0, -2), E5M2)
        for_x = for_weight = None
        if ctx.needs_input_grad[0]:
            for_x = cut(product(errors.operand, Operand(w, w_scale), x_dtype), M, K).view(shape)
        if ctx.needs_input_grad[1]:
            for_weight = cut(product(errors.turned, Operand(x, x_scale), w_dtype), N, K)
        return for_x, for_weight, column_sums(gradient, b_dtype) if ctx.needs_input_grad[2] else None, None


def cut(y: Tensor, M: int, N: int) -> Tensor:
    """The first M rows and N columns of y, contiguous: y itself if there are no more."""
    return y if y.shape == (M, N) else y[:M, :N].contiguous()


_active: Float8Products | None = None


class Float8Products:
    """Which products of one model in training are in float8.

    Attributes:
        which: ``head``: that of the logits; ``all``: those of linear layers as well. Never those of routers, of
            attention's scores, of recurrences and convolutions, nor of layers that are not archbench's.

    Raises:
        DeviceError: products cannot be in float8 on that device under autocast to ``dtype``.
    """

    def __init__(self, which: Which, model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        if (reason := why_not_float8(device, dtype)) is not None:
            raise DeviceError(f"float8 {which}", *reason)
        self.which = which
        tied = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
        heads = tied if (own := getattr(model, "head_parameters", None)) is None else [*tied, own()[0]]
        self._heads = {*map(id, heads)}  # a product with an embedding's weight is one of logits
        self._emulated = "-emulated" if device.type == "cpu" else ""
        self._ran: set[str] = set()

    @contextmanager
    def used(self) -> Iterator[None]:
        """Within this context :func:`in_float8` is about this model."""
        global _active
        previous, _active = _active, self
        try:
            yield
        finally:
            _active = previous

    def takes(self, weight: Tensor) -> bool:
        """See :func:`in_float8`; what is taken is recorded, for the rows."""
        kind = "head" if id(weight) in self._heads else "layers"
        if kind == "layers" and self.which == "head":
            return False
        self._ran.add(kind)
        note_product(f"float8-{kind}{self._emulated}")
        return True

    def see_that_it_ran(self) -> None:
        """After an update: the user asked for products in float8, and got some.

        Raises:
            PluginError: there were none.
        """
        wanted = "head" if self.which == "head" else "layers"
        if wanted not in self._ran:
            what = "its logits are" if wanted == "head" else "none of its layers is"
            raise PluginError(
                f"float8 {self.which}",
                f"{what} computed by archbench.linear_cross_entropy or by layers of archbench.nn, which know float8",
                "Use archbench.nn.Linear, and offer head_parameters(); or train with float8 none",
            )


def in_float8(x: Tensor, weight: Tensor) -> bool:
    """Whether the product of x and that weight is in float8: only under autocast, in a model's training."""
    return _active is not None and x.numel() > 0 and autocast_dtype(x) is not None and _active.takes(weight)


@contextmanager
def without_float8() -> Iterator[None]:
    """Within this context no product is in float8: those of a router choose, and rounding must not."""
    global _active
    previous, _active = _active, None
    try:
        yield
    finally:
        _active = previous


def why_not_float8(device: torch.device, dtype: torch.dtype) -> tuple[str, str] | None:
    """Cause and next step, if products cannot be in float8 there; None if they can, on CPUs emulated."""
    if dtype != torch.bfloat16:
        cause = f"what is not in float8 would be {str(dtype).removeprefix('torch.')}, and the recipe is for bfloat16"
        return cause, "Use dtype bfloat16, or float8 none"
    if device.type == "cpu":
        return None
    if torch.version.hip is not None:
        return "AMD's GPUs have other formats of 8 bits", "Use float8 none"
    if (found := torch.cuda.get_device_capability(device)) < (8, 9):
        name, capability = torch.cuda.get_device_name(device), ".".join(map(str, found))
        return f"{name} multiplies no 8-bit floats (capability {capability}, it takes 8.9)", "Use float8 none"
    return None
