"""Choosing the next token from logits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from archbench.errors import UsageError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: divides the logits; below 1 sharper, above 1 flatter.
        top_k: keep only the k most likely tokens (Fan et al. 2018, arXiv:1805.04833, section 5.4).
        top_p: keep the smallest set of most likely tokens whose probabilities reach p; the token that crosses p is
            kept (nucleus sampling, Holtzman et al. 2020, arXiv:1904.09751, section 3.1).
        greedy: always the most likely token; temperature, top_k, top_p and generator are then ignored.
        eos: token id that ends a sequence; None for none.
        generator: source of randomness, on the logits' device; None for torch's own.

    Raises:
        UsageError: an argument out of range, or top_k and top_p together. It is a ValueError and names the argument.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    greedy: bool = False
    eos: int | None = None
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise UsageError(
                "temperature",
                f"{self.temperature} is not above 0",
                "Pass a positive number, or greedy=True for the most likely token",
            )
        if self.top_k is not None and self.top_k < 1:
            raise UsageError("top_k", f"{self.top_k} keeps no token", "Pass at least 1, or None for all tokens")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UsageError(
                "top_p", f"{self.top_p} is not above 0 and at most 1", "Pass a probability, or None for all tokens"
            )
        if self.top_k is not None and self.top_p is not None:
            raise UsageError(
                "top_k and top_p", "both are given, and their order would change the result", "Pass one of them"
            )
        if self.eos is not None and self.eos < 0:
            raise UsageError("eos", f"{self.eos} is not a token id", "Pass a token id, or None")

    def pick(self, logits: Tensor) -> Tensor:
        """logits (B, V) -> token ids (B,) int64."""
        if self.greedy:
            return logits.argmax(dim=-1)
        scaled = logits.float() / self.temperature  # (B, V)
        if self.top_k is not None:
            scaled, ids = scaled.topk(min(self.top_k, scaled.shape[-1]), dim=-1)  # (B, k)
            choice = torch.multinomial(scaled.softmax(dim=-1), 1, generator=self.generator)
            return ids.gather(-1, choice).squeeze(-1)
        probabilities = scaled.softmax(dim=-1)
        if self.top_p is not None and self.top_p < 1:
            probabilities, ids = probabilities.sort(dim=-1, descending=True, stable=True)
            before = probabilities.cumsum(dim=-1) - probabilities  # probability of the more likely tokens
            choice = torch.multinomial(probabilities.masked_fill(before >= self.top_p, 0), 1, generator=self.generator)
            return ids.gather(-1, choice).squeeze(-1)
        return torch.multinomial(probabilities, 1, generator=self.generator).squeeze(-1)
