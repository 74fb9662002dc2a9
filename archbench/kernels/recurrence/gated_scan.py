"""The gated linear recurrence h_t = a_t · h_{t-1} + b_t, channel by channel.

In chunks of K positions (Martin & Cundy 2018, arXiv:1709.04057), so that K steps, each over all chunks at once, replace
T: first each chunk's result for a zero state, and the factor of its initial state; then the states between chunks, the
same recurrence over T/K positions; then every position, from its chunk's state. Work and memory traffic are linear in
T, and nothing is divided by a product of gates, which may be zero. The backward pass keeps only gates and states, and
is the same recurrence from the last position to the first.

torch.compile sees one operator each way, archbench::gated_scan and archbench::gated_scan_backward: tracing the steps
takes many seconds per scan, and on a CPU the compiled steps are faster only at small sizes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from archbench.errors import UsageError
from archbench.kernels.operators import no_second_derivative
from archbench.kernels.precision import exact_dtype

CHUNK = 16
"""K, positions per chunk: within a sixth of the best of 4 to 64, at each of four sizes measured on a CPU."""


def gated_scan(a: Tensor, b: Tensor, initial: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """h_t = a_t · h_{t-1} + b_t from h_0 = ``initial``, in float32 (float64 stays float64); differentiable once.

    Args:
        a: gates (B, T, C), T at least 1.
        b: inputs (B, T, C).
        initial: the state (B, C) before the first position; None for zeros.

    Returns:
        The states (B, T, C) after each position, and (B, C) after the last.

    Raises:
        UsageError: the shapes do not fit together.
    """
    a, b, initial = _prepared(a, b, initial)
    if a.shape[1] == 1:  # decoding
        state = torch.addcmul(b[:, 0], a[:, 0], initial)
        return state.unsqueeze(1), state
    if torch.compiler.is_compiling():
        states: Tensor = torch.ops.archbench.gated_scan(a, b, initial)
    else:  # an operator's first call would load torch's compiler
        states = _GatedScan.apply(a, b, initial)  # type: ignore[no-untyped-call]
    return states, states[:, -1]


def reference_gated_scan(a: Tensor, b: Tensor, initial: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The definition, step by step; see :func:`gated_scan`."""
    a, b, state = _prepared(a, b, initial)
    states = []
    for gate, new in zip(a.unbind(1), b.unbind(1), strict=True):
        state = gate * state + new  # (B, C)
        states.append(state)
    return torch.stack(states, dim=1), state


def _prepared(a: Tensor, b: Tensor, initial: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    B, T, C = a.shape
    if T == 0 or b.shape != a.shape or (initial is not None and initial.shape != (B, C)):
        found = "none" if initial is None else f"{(*initial.shape,)}"
        raise UsageError(
            "gated_scan",
            f"the shapes a {(*a.shape,)}, b {(*b.shape,)}, initial {found} do not fit together",
            "Pass a and b (B, T, C), T at least 1, and initial (B, C)",
        )
    exact = exact_dtype(torch.promote_types(a.dtype, b.dtype))
    state = torch.zeros(B, C, dtype=exact, device=b.device) if initial is None else initial.to(exact)
    return a.to(exact), b.to(exact), state


class _GatedScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, initial: Tensor) -> Tensor:
        states = _states(a, b, initial)
        ctx.save_for_backward(a, states, initial)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return _gradients(gradient, *ctx.saved_tensors)


def _states(a: Tensor, b: Tensor, initial: Tensor) -> Tensor:
    states = torch.empty(b.shape, dtype=b.dtype, device=b.device)
    _scan(a, b, initial, states, back=False)
    return states


def _gradients(gradient: Tensor, a: Tensor, states: Tensor, initial: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a, b and initial: dL/dh_t is h_t's own gradient plus a_{t+1} · dL/dh_{t+1}."""
    for_states, for_a = torch.empty_like(states), torch.empty_like(states)
    for_states[:, -1] = gradient[:, -1]
    _scan(a[:, 1:], gradient[:, :-1], for_states[:, -1], for_states[:, :-1], back=True)
    torch.mul(for_states[:, 0], initial, out=for_a[:, 0])
    torch.mul(for_states[:, 1:], states[:, :-1], out=for_a[:, 1:])
    return for_a, for_states, for_states[:, 0] * a[:, 0]


def _scan(a: Tensor, b: Tensor, entering: Tensor, out: Tensor, *, back: bool) -> None:
    """Write the states (B, T, C) from gates and inputs (B, T, C) and a state (B, C); backwards if ``back``."""
    B, T, C = a.shape
    chunks, rest = T // CHUNK, T % CHUNK
    if chunks < 2:
        _walk(a, b, entering, out, dim=1, back=back)
        return
    chunked, left = (slice(rest, T), slice(rest)) if back else (slice(T - rest), slice(T - rest, T))
    gates, inputs, places = (x[:, chunked].view(B, chunks, CHUNK, C) for x in (a, b, out))
    first, *others = _order(CHUNK, back)
    made, scale = inputs[:, :, first], gates[:, :, first]  # (B, T/K, C)
    for k in others:
        made, scale = torch.addcmul(inputs[:, :, k], gates[:, :, k], made), scale * gates[:, :, k]
    leaving = torch.empty_like(made)
    _scan(scale, made, entering, leaving, back=back)
    edge = entering.unsqueeze(1)
    before = torch.cat([leaving[:, 1:], edge] if back else [edge, leaving[:, :-1]], dim=1)
    _walk(gates, inputs, before, places, dim=2, back=back)
    _walk(a[:, left], b[:, left], leaving[:, 0] if back else leaving[:, -1], out[:, left], dim=1, back=back)


def _walk(gates: Tensor, inputs: Tensor, state: Tensor, out: Tensor, *, dim: int, back: bool) -> None:
    """Write the states along dimension ``dim``, step by step."""
    steps = list(zip(gates.unbind(dim), inputs.unbind(dim), out.unbind(dim), strict=True))
    for k in _order(len(steps), back):
        gate, new, place = steps[k]
        state = torch.addcmul(new, gate, state, out=place)


def _order(steps: int, back: bool) -> range:
    return range(steps - 1, -1, -1) if back else range(steps)


_operator = torch.library.custom_op("archbench::gated_scan", _states, mutates_args=())
_backward_operator = torch.library.custom_op("archbench::gated_scan_backward", _gradients, mutates_args=())


@_operator.register_fake
def _shape(a: Tensor, b: Tensor, initial: Tensor) -> Tensor:
    return b.new_empty(b.shape)


@_backward_operator.register_fake
def _shapes(gradient: Tensor, a: Tensor, states: Tensor, initial: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return states.new_empty(states.shape), states.new_empty(states.shape), initial.new_empty(initial.shape)


def _save_for_backward(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    a, _, initial = inputs
    ctx.save_for_backward(a, output, initial)


def _propagate(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.archbench.gated_scan_backward(gradient, *ctx.saved_tensors)
    return gradients


_operator.register_autograd(_propagate, setup_context=_save_for_backward)
_backward_operator.register_autograd(no_second_derivative("gated_scan", "Use reference_gated_scan"))
