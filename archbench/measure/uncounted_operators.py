"""Operators that torch's FLOP counter ignores, although they may do as much work as matrix products.

The counter has formulas for matrix products, convolutions and attention; everything else counts as zero. Mostly
that is the convention (:mod:`archbench.measure.flops`): pointwise functions, reductions, norms, softmax, gathers,
sorting and copies do few operations on each number they read or write, and are small beside the products. An operator
is *uncounted* where the counter has no formula and it may not be small:

* products under other names: matrix times vector, quantized and sparse products, pairwise distances, bilinear forms;
* attention, convolutions and recurrent layers as one operator of some library;
* Fourier transforms, factorizations, solvers and whatever else is linear algebra;
* scans (cumulative sums and products), which is what linear recurrences are made of;
* every operator of another namespace than torch's own, whose work is unknown.

An operator without floating-point inputs and outputs does no floating-point operation and is free: the running count
with which a router places tokens, for instance.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from archbench.kernels.triton_guard import flop_counter

_TORCHS_OWN = ("aten", "prim", "prims")
MAY_BE_PRODUCTS = re.compile(
    r"""
    (^|_)(mm|bmm|addmm|addbmm|baddbmm|hspmm|sspaddmm|matmul|mv|addmv|dot|vdot|trilinear)(_|$)  # whole words
    | ^(mkldnn_)?linear(_|$) | semi_structured_linear | mixed_dtypes_linear
    | conv(?!ert)                                                                              # convert_… is a copy
    | attention | transformer_encoder
    | (rnn|lstm|gru)(?!_cell)                           # a cell is pointwise, its inputs come from products
    | fft_[cr]2[cr]
    | cdist | pdist | euclidean_dist
    | linalg_(?!vector_norm|cross|check_errors) | matrix_exp | linear_combination
    | cholesky | geqrf | ormqr | triangular_solve | spsolve
    | cumsum | cumprod | logcumsumexp
    """,
    re.VERBOSE,
)


class UncountedOperators(TorchDispatchMode):
    """A context that records the uncounted operators that run in it.

    Enter it before a ``FlopCounterMode``, which then passes on what composite operators decompose into: exactly the
    operators whose formulas that counter looks up.

    Attributes:
        names: as in ``aten::cumsum``, in the order of their first call.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name
        if name not in self.names and _uncounted(func) and _has_floats((args, kwargs, out)):
            self.names.append(name)
        return out


def _uncounted(func: torch._ops.OpOverload[Any, Any]) -> bool:
    if func._overloadpacket in flop_counter().flop_registry:
        return False
    namespace, _, name = func._schema.name.partition("::")
    return namespace not in _TORCHS_OWN or MAY_BE_PRODUCTS.search(name) is not None


def _has_floats(values: object) -> bool:
    return any(
        isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()) for value in tree_leaves(values)
    )
