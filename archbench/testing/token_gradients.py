"""Gradients of logits with respect to tokens, through what the model looked up for each of them.

Token ids are integers and have no gradient; the vectors looked up for them do. What a changed token does to a logit can
drown in rounding; its gradient is exactly zero where nothing flows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_LOOKUPS = {"embedding", "__getitem__", "index_select"}
"""Functions of torch that look up the vector of each token id."""

_CASTS = {"to", "type", "type_as", "float", "double", "half", "bfloat16"}
"""Where gradients begin with one-hot vectors instead of a lookup, or ids read as numbers."""


class TokenLookups(TorchFunctionMode):
    """A context in which every vector that a model looks up for ``tokens`` (B, T) is a leaf that requires a gradient.

    Attributes:
        leaves: what was looked up, in the order of the lookups: (B, T, ...), (T, B, ...) or (B·T, ...).
    """

    def __init__(self, tokens: Tensor) -> None:
        super().__init__()
        self.leaves: list[Tensor] = []
        self._shape = tokens.shape
        self._orders = {True: tokens.reshape(-1), False: tokens.t().reshape(-1)}
        self._by_sequence: list[bool] = []
        self._one_hot: list[tuple[Tensor, bool]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "").removesuffix(".default")
        if not isinstance(result, Tensor) or name not in _LOOKUPS | _CASTS | {"one_hot"}:
            return result
        inputs = list(_tensors([*args, *(kwargs or {}).values()]))
        order = self._order(inputs, result.shape, casts=name in _CASTS)
        if order is None:
            return result
        if not result.is_floating_point():
            if name == "one_hot":
                self._one_hot.append((result, order))
            return result
        if any(tensor.requires_grad for tensor in inputs):  # it comes from a leaf already
            return result
        leaf = result.detach().clone().requires_grad_()
        self.leaves.append(leaf)
        self._by_sequence.append(order)
        return leaf.clone()  # a leaf itself must not change in place, as in x += positions

    def gradients(self, objective: Tensor) -> list[Tensor]:
        """|d objective / d lookup|, the largest of each token's vector: (B, T) for each lookup."""
        B, T = self._shape
        found = torch.autograd.grad(objective, self.leaves, allow_unused=True, materialize_grads=True)
        sizes = []
        for gradient, by_sequence in zip(found, self._by_sequence, strict=True):
            size = gradient.reshape(B * T, -1).abs().amax(-1).float()
            sizes.append(size.view(B, T) if by_sequence else size.view(T, B).t())
        return sizes

    def _order(self, inputs: list[Tensor], shape: torch.Size, *, casts: bool) -> bool | None:
        """The order of tokens in a result of that shape: sequence by sequence (True), position by position (False), or
        none (None)."""
        for tensor in inputs:
            for one_hot, order in self._one_hot:
                if casts and tensor is one_hot:
                    return order
            if tensor.is_floating_point() or tensor.dtype == torch.bool or tensor.numel() != self._shape.numel():
                continue
            if shape[: tensor.dim()] != tensor.shape:
                continue
            for order, tokens in self._orders.items():
                if torch.equal(tensor.reshape(-1).to(tokens), tokens):
                    return order
        return None


def token_gradients(model: nn.Module, tokens: Tensor, positions: Tensor) -> list[Tensor]:
    """How strongly the logits at ``positions`` depend on each token.

    Args:
        model: tokens (B, T) int64 -> logits (B, T, V).
        tokens: (B, T) int64; random ones, since lookups are recognised by their values.
        positions: (B, T) bool: positions whose logits are summed, each with a random weight.

    Returns:
        For each lookup of the tokens, the largest absolute gradient of each token's vector, (B, T) float32; without
        lookups that the logits do not depend on or have no finite gradient to.
    """
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in asking:  # half of the backward pass, and not needed
        parameter.requires_grad_(False)
    try:
        # cuDNN's recurrent layers have no backward pass in evaluation mode.
        with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
            lookups = TokenLookups(tokens)
            with lookups:
                logits = model(tokens)  # (B, T, V)
            if not lookups.leaves or not logits.requires_grad:
                return []
            generator = torch.Generator().manual_seed(0)
            V = logits.shape[-1]
            by_token = torch.randn(V, generator=generator).to(logits)
            by_position = torch.randn(*tokens.shape, generator=generator).to(logits)
            objective = ((logits @ by_token) * by_position)[positions].sum()
            gradients = lookups.gradients(objective)
            return [gradient for gradient in gradients if 0 < float(gradient.max()) < math.inf]
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


def _tensors(values: Iterable[Any]) -> Iterable[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)
