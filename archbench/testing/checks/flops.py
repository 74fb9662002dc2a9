"""FLOPs and active parameters: as counted by shapes, as run here, and as the model declares them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from archbench.kernels.attention_backends import attention_backend
from archbench.kernels.triton_guard import flop_counter
from archbench.measure.flops import FlopCount, count_flops, declared_uncounted, layer_table, on_meta
from archbench.measure.sizes import active_parameters
from archbench.protocols import FlopsModel
from archbench.testing.evaluation import Fault, check
from archbench.testing.subject import Subject

TOLERANCE = 0.02
"""Of a closed form: room to leave out what is small, a router or a gate."""

RUN_POSITIONS = 64
"""Most that are read where the count is repeated with values."""


@check(needs=("logits",))
def check_flops(subject: Subject) -> str:
    """FLOPs decide which models are compared at equal cost, and what share of the hardware they use; what torch cannot
    count would be free."""
    _check_inactive(subject, subject.model())
    model = on_meta(subject.build())
    cases = [(1, subject.T)] + ([(2, subject.T // 2)] if subject.T > 1 else [])
    found = {case: count_flops(model, *case) for case in cases}
    for (B, T), count in found.items():
        _check_uncounted(model, B, T, count)
    if (kind := found[cases[0]].counted_on) != "meta":
        subject.note(f"counted on {kind} tensors: the model does not run on the meta device")
    counts = [count.forward_per_token * B * T for (B, T), count in found.items()]
    _check_as_run(subject, model, found)
    shown = f"{_flops(counts[0] / subject.T)} a token at T = {subject.T}"
    if not isinstance(model, FlopsModel):
        return f"{shown}; it declares none"
    for (B, T), counted in zip(cases, counts, strict=True):
        declared = model.forward_flops(B, T)
        if not abs(declared - counted) <= TOLERANCE * counted:
            raise Fault(
                f"forward_flops({B}, {T}) says {_flops(declared)}, and {_flops(counted)} are counted by "
                f"shapes, most of them in {_largest(model, B, T)}: {_hint(declared, counted, B, T)}"
            )
    return f"{shown}, and as declared"


def _check_uncounted(model: nn.Module, B: int, T: int, count: FlopCount) -> None:
    declared, forward, backward = declared_uncounted(model, B, T), count.uncounted, count.uncounted_backward
    # A backward pass is counted as twice the forward pass, unless that had nothing uncounted.
    missing = [name for name in forward or backward if name not in declared]
    if missing:
        raise Fault(
            f"a {'forward' if forward else 'backward'} pass runs {', '.join(missing)}, which torch counts as 0 FLOPs "
            "and which may do as much as a matrix product: give the model an uncounted_flops(batch_size, "
            f"context_length) that returns {{{missing[0]!r}: FLOPs of a forward pass}}, 0 if it is no part of model "
            "FLOPs"
        )
    for name in declared:
        if name not in forward + backward:
            seen = ", ".join(forward) or "none"
            raise Fault(
                f"uncounted_flops({B}, {T}) declares {name!r}, but no such operator runs uncounted (those that do: "
                f"{seen}), so its FLOPs would be added for nothing or a second time"
            )


def _check_as_run(subject: Subject, on_meta: nn.Module, found: dict[tuple[int, int], FlopCount]) -> None:
    """Fault where the model does more here than on the meta device, in evaluation or in training.

    Attention is computed by plain products, as it is on the meta device: fused, a CPU's is not counted.
    """
    B, T, model = 2, max(1, min(subject.T // 2, RUN_POSITIONS)), subject.build()
    tokens, counter = subject.tokens(B, T), flop_counter().FlopCounterMode
    with attention_backend("reference"), sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
        with counter(display=False) as forward:
            model.eval()(tokens)
        with counter(display=False) as training:
            torch.autograd.backward(model.train()(tokens).sum())
    count = found.get((B, T)) or count_flops(on_meta, B, T)
    declared = sum(declared_uncounted(on_meta, B, T).values())
    for what, here, per_token, passes in (
        ("a forward pass", forward, count.forward_per_token, 1),
        ("a forward and backward pass in training mode", training, count.training_per_token, 3),
    ):
        there = per_token * B * T - passes * declared
        if here.get_total_flops() > (1 + TOLERANCE) * there:
            raise Fault(
                f"{what} of {B} × {T} tokens does {_flops(here.get_total_flops())} on {subject.device}, and "
                f"{_flops(there)} where FLOPs are counted, on {count.counted_on} tensors: look for what depends on the "
                "device, on is_meta or on the mode, and compute the same everywhere"
            )


def _check_inactive(subject: Subject, model: nn.Module) -> None:
    """Fault where more parameters are declared inactive than a single token leaves without a gradient."""
    declared = sum(parameter.numel() for parameter in model.parameters()) - active_parameters(model)
    if not declared:
        return
    tables = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    idle = []
    for token in subject.tokens(1, min(4, subject.T))[0]:
        model.zero_grad()
        logits = model(token.view(1, 1))
        weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)).to(logits)
        torch.autograd.backward((logits * weights).sum())
        idle.append(sum(_idle(p) for p in model.parameters() if id(p) not in tables))
    if declared > (1 + TOLERANCE) * min(idle):
        raise Fault(
            f"inactive_parameters() says that a token does not use {declared:,} parameters, and its logits have a "
            f"gradient for all but {min(idle):,} of them, embeddings aside: count only whole parameters, or whole "
            "experts in a stack (E, …), that the forward pass of one token does not multiply by"
        )


def _idle(parameter: nn.Parameter) -> int:
    """Numbers in it without a gradient: whole parameters, or whole members of a stack of matrices."""
    if parameter.grad is None:
        return parameter.numel()
    members = parameter.grad.flatten(1) if parameter.ndim > 2 else parameter.grad.reshape(1, -1)
    return int((members == 0).all(1).sum()) * members.shape[1]


def _largest(model: nn.Module, B: int, T: int) -> str:
    """The three modules that cost most, with their share of the whole; layers that differ only by number as one."""
    costs: dict[str, int] = {}
    for row in layer_table(model, B, T):
        path = ".".join("*" if part.isdigit() else part for part in row.path.split(".")) or "the model itself"
        costs[path] = costs.get(path, 0) + row.forward_flops
    total = max(sum(costs.values()), 1)
    largest = sorted(costs, key=lambda path: -costs[path])[:3]
    return ", ".join(f"{path} ({costs[path] / total:.0%})" for path in largest if costs[path])


def _hint(declared: float, counted: float, B: int, T: int) -> str:
    """The likely mistake, by the ratio of the two."""
    likely = {
        1 / 2: "a multiply–add is 2 FLOPs",
        1 / (B * T): "it looks like FLOPs a token, and those of all B · T tokens are asked for",
        1 / B: "it looks like FLOPs of one sequence, and those of all B are asked for",
        3.0: "it looks like forward and backward, and forward alone is asked for",
    }
    for ratio, hint in likely.items():
        if ratio != 1 and abs(declared - ratio * counted) <= TOLERANCE * ratio * counted:
            return hint
    return (
        "the two must agree within 2 % (matrix products only, 2 FLOPs a multiply–add, attention over the whole T × T "
        "square, all B · T tokens)"
    )


def _flops(number: float) -> str:
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(number) >= factor:
            return f"{number / factor:.4g} {prefix}FLOP"
    return f"{number:,.0f} FLOP"
