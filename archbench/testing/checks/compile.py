"""torch.compile makes one graph of the model, with the same logits and gradients."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from archbench.kernels.triton_guard import without_triton
from archbench.testing.evaluation import Fault, check
from archbench.testing.plugin_lines import plugin_line
from archbench.testing.subject import TOLERANCE, Difference, Subject, seed_generators

POSITIONS = 128
"""Most positions read."""

ZERO = 1e-6
"""Of the largest gradient of all: what is 0 but for rounding, as that of a key's bias, has no digits to agree on."""


@check(needs=("logits",))
def check_compile(subject: Subject) -> str:
    """With --compile every other architecture is traced whole; one that is not is slower for a reason of its own."""
    longest = min(subject.T, POSITIONS)
    model = subject.model()
    # Torch asks for Triton when its compiler is loaded, and no process that stays on a CPU is to load it.
    with without_triton() if subject.device.type == "cpu" else nullcontext():
        import torch._dynamo  # here, because it takes a second to import

        # The second length is traced again, with a symbolic T and in training mode, but its graph is run as it is:
        # tracing the gradients too would double the time of the whole suite.
        cases = {longest: "aot_eager"}
        cases.setdefault(max(1, longest // 2 + 1), "eager")
        torch._dynamo.reset()
        try:
            off = max(
                _compare_compiled(
                    subject, model.train(longest != T), torch.compile(model, fullgraph=True, backend=backend), T
                )
                for T, backend in cases.items()
            )
        finally:
            torch._dynamo.reset()
    return f"one graph; compiled logits are off by {off:.1g} of their standard deviation"


def _compare_compiled(subject: Subject, model: nn.Module, compiled: Callable[[Tensor], Tensor], T: int) -> float:
    """Fault where compiling changes logits or gradients at ``T`` positions; how far off the logits are."""
    tokens = subject.tokens(2, T)
    expected, expected_gradients = _with_gradients(model, model, tokens)
    try:
        found, found_gradients = _with_gradients(model, compiled, tokens)
    except Exception as error:  # the model itself has just read the same, so compiling is to blame
        raise Fault(_uncompiled(error)) from error
    difference = Difference.between(found, expected)
    if not difference.negligible:
        mode = "training" if model.training else "evaluation"
        raise Fault(
            f"compiled, in {mode} mode, its logits of {T} positions are off by {difference.share:.2g} of their "
            "standard deviation. Look for state that forward keeps outside its arguments, what depends on the mode, or "
            "custom operators whose fake kernel differs"
        )
    sizes = {name: float(gradient.abs().max()) for name, gradient in expected_gradients.items()}
    for name, gradient in expected_gradients.items():
        if name not in found_gradients:
            raise Fault(f"compiled, {name} gets no gradient. Look at custom autograd functions and operators")
        off = float((found_gradients[name] - gradient).abs().max())
        if not off <= TOLERANCE * sizes[name] + ZERO * max(sizes.values()):  # a compiler may sum in another order
            raise Fault(
                f"compiled, the gradient of {name} is off by {off:.2g}, where the largest is {sizes[name]:.2g}. Look "
                "at custom autograd functions and operators"
            )
    return difference.share


def _with_gradients(
    model: nn.Module, forward: Callable[[Tensor], Tensor], tokens: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits (B, T, V), and the parameters' gradients of a random sum of them."""
    model.zero_grad()
    seed_generators(0, tokens.device)
    logits = forward(tokens)
    weights = torch.randn(logits.shape[-1], generator=torch.Generator().manual_seed(0)).to(logits)
    torch.autograd.backward((logits @ weights).square().sum())
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return logits.detach(), gradients


def _uncompiled(error: Exception) -> str:
    """What torch's compiler says, in a sentence: its headline, its explanation, and the plugin's line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    explained = [line.removeprefix("Explanation: ") for line in lines if line.startswith("Explanation: ")]
    said = ": ".join(line.rstrip(".:") for line in [lines[0], *explained[:1]])
    frames = [(match[1], int(match[2])) for match in re.finditer(r'File "(.+?)", line (\d+), in', str(error))]
    where = plugin_line(reversed(frames))
    return (
        f"torch.compile makes no one graph of it: {said}{where}. Without fullgraph=True it would fall back to Python "
        "there: write that line with tensor operations, and without printing or values taken out of tensors"
    )
