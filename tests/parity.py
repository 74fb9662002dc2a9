"""A model of ours beside the published one: random parameters, and logits and gradients on the same tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Gain = Callable[[str, nn.Parameter], bool]


def randomise(model: nn.Module, gain: Gain = lambda name, parameter: parameter.dim() == 1) -> None:
    """Draw every parameter from N(0, 0.2), gains from N(1, 0.2), so that none can be forgotten or swapped unseen."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(mean=1.0 if gain(name, parameter) else 0.0, std=0.2)


def logits_and_gradients(model: Any, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits (B, T, V) for tokens (B, T + 1), and the gradients of the mean loss of the next token by parameter."""
    model.zero_grad()
    output = model(tokens[:, :-1])
    logits = output if isinstance(output, Tensor) else output.logits
    F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    return logits.detach(), gradients(model)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same_gradients(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, atol: float, rtol: float = 1e-4
) -> None:
    """Equal names, values within the tolerances, and norms within ``rtol``, which small gradients cannot hide from."""
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.any(), name
        torch.testing.assert_close(
            found[name], gradient, atol=atol, rtol=rtol, msg=lambda text, name=name: f"{name}: {text}"
        )
        assert found[name].norm().item() == pytest.approx(gradient.norm().item(), rel=rtol, abs=1e-6), name


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
