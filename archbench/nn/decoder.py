"""The frame around a stack of blocks, common to all decoder-only models."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from torch import Tensor, nn

from archbench.errors import UsageError
from archbench.kernels import linear

if TYPE_CHECKING:
    from archbench.config import ModelConfig


class LayerCache(Protocol):
    """What :meth:`DecoderOnly.extend` needs of a cache: its length, and how to increase it."""

    @property
    def length(self) -> int: ...

    def advance(self, positions: int) -> None: ...

    def tensors(self) -> list[Tensor]: ...


class DecoderOnly(nn.Module):
    """tokens (B, T) int64 -> logits (B, T, V), in whole passes and from a cache.

    A subclass sets ``embedding`` and, unless the head is tied to it, ``output``; and defines two methods:

    * ``hidden(tokens, cache)``, which begins with ``start = self.start(tokens, cache)``;
    * ``new_cache(batch_size, capacity)``.

    Attributes:
        config: the configuration it was built from.
        embedding: tokens -> (B, T, C).
        output: (..., C) -> logits (..., V); None if tied to the embedding.
    """

    embedding: nn.Embedding
    if TYPE_CHECKING:
        hidden: Callable[..., Tensor]

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.output: nn.Linear | None = None

    def forward(self, tokens: Tensor, *, logits: bool = True) -> Tensor:
        hidden = self.hidden(tokens)
        return self.head(hidden) if logits else hidden

    def head(self, hidden: Tensor) -> Tensor:
        """hidden states (..., C) -> logits (..., V)."""
        return linear(hidden, self._head_weight)

    def head_parameters(self) -> tuple[Tensor, None]:
        """The head's weight (V, C) and its bias; see :class:`archbench.protocols.LinearHeadModel`."""
        return self._head_weight, None

    @property
    def _head_weight(self) -> Tensor:
        return (self.embedding if self.output is None else self.output).weight

    def extend(self, tokens: Tensor, cache: LayerCache) -> Tensor:
        """Read tokens (B, T) after those in the cache; logits (B, V) after the last one."""
        x = self.hidden(tokens, cache)
        cache.advance(tokens.shape[1])
        return self.head(x[:, -1])

    def start(self, tokens: Tensor, cache: LayerCache | None) -> int | Tensor:
        """Positions read before ``tokens`` (B, T); in a static step, whose T is 1, a tensor (1,) on the device.

        Raises:
            UsageError: together with these they exceed the context length.
        """
        position: Tensor | None = getattr(cache, "position", None)
        if position is not None:
            return position
        start = 0 if cache is None else cache.length
        self.check_context("tokens", start + tokens.shape[1])
        return start

    def check_context(self, culprit: str, positions: int) -> None:
        """Check that the model's context holds that many positions.

        Raises:
            UsageError: naming ``culprit``.
        """
        T = self.config.context_length
        if positions > T:
            raise UsageError(culprit, f"{positions} positions are more than the context of {T}", f"Pass {T} at most")
