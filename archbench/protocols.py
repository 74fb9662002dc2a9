"""What a model may offer beyond ``forward``; the core looks with ``isinstance`` and uses what it finds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


@runtime_checkable
class DecodingCache(Protocol):
    """Keys and values, or a recurrent state, of the positions read so far; preallocated."""

    length: int
    """Positions read so far."""

    def tensors(self) -> list[Tensor]:
        """Every tensor the cache holds, for counting its bytes (works on the meta device)."""
        ...


@runtime_checkable
class CachedModel(Protocol):
    """A model that decodes from a cache: prefill once, then one token a step."""

    def new_cache(self, batch_size: int, capacity: int) -> DecodingCache:
        """An empty cache for ``batch_size`` sequences of up to ``capacity`` positions, beside the weights.

        Raises:
            ValueError: ``capacity`` is more positions than the model can tell apart.
        """
        ...

    def extend(self, tokens: Tensor, cache: DecodingCache) -> Tensor:
        """Read ``tokens`` (B, T) int64 after those already in ``cache``; logits (B, V) after the last one.

        Calling it with P tokens, or with the same tokens in chunks, gives the same logits.
        """
        ...


@runtime_checkable
class HiddenStateModel(Protocol):
    """A model whose last hidden states can be had before the output head: decoding needs one position's logits only."""

    def hidden(self, tokens: Tensor) -> Tensor:
        """tokens (B, T) int64 -> hidden states (B, T, C), ready for :meth:`head`."""
        ...

    def head(self, hidden: Tensor) -> Tensor:
        """hidden states (..., C) -> logits (..., V)."""
        ...


@runtime_checkable
class LinearHeadModel(HiddenStateModel, Protocol):
    """A :class:`HiddenStateModel` whose head is one linear layer, so that training need not hold (B, T, V) logits.

    A head that is anything else (logits capped, scaled, or added up from several) offers no :meth:`head_parameters`,
    and its loss is taken from all logits.
    """

    def forward(self, tokens: Tensor, *, logits: bool = True) -> Tensor:
        """tokens (B, T) int64 -> logits (B, T, V), or :meth:`hidden`'s states (B, T, C) where ``logits`` is False.

        Training asks for the hidden states by calling the model, so that its hooks and wrappers (``torch.compile``,
        data parallelism) are passed through as ever.
        """
        ...

    def head_parameters(self) -> tuple[Tensor, Tensor | None]:
        """weight (V, C) and bias (V,) or None, of which ``head(hidden)`` is ``hidden @ weight.T + bias``."""
        ...


@runtime_checkable
class FlopsModel(Protocol):
    """A model that says in closed form what a forward pass costs; ``archbench check`` compares that with the count."""

    def forward_flops(self, batch_size: int, context_length: int) -> float:
        """Model FLOPs of one forward pass on tokens (B, T), all B · T of them together.

        By the convention of :mod:`archbench.measure.flops`: matrix products only, 2 FLOPs a multiply–add, attention
        over the whole T × T square; with what :meth:`UncountedModel.uncounted_flops` declares.
        """
        ...


@runtime_checkable
class UncountedModel(Protocol):
    """A model with operators whose FLOPs torch cannot count: scans, Fourier transforms, kernels of its own.

    :mod:`archbench.measure.uncounted_operators` lists them. An operator that has a formula of its own, registered with
    ``torch.utils.flop_counter.register_flop_formula``, is counted like any other and not declared.
    """

    def uncounted_flops(self, batch_size: int, context_length: int) -> Mapping[str, float]:
        """Operator, as in ``aten::cumsum`` -> FLOPs of all its calls in one forward pass on tokens (B, T).

        They are added to what is counted: once for a forward pass, three times for training, and so the operators of
        the backward pass need no mention. An operator whose cost is no part of model FLOPs is declared with 0.
        """
        ...


@runtime_checkable
class SparseModel(Protocol):
    """A model, or a module inside one, that uses only some of its parameters for a token, as a mixture of experts does.

    Architectures are matched by what a token's pass uses. A model whose modules speak for themselves need not do so as
    well; where it does, it speaks for all inside it.
    """

    def inactive_parameters(self) -> int:
        """How many of its parameters, those of its children included, the forward pass of one token does not use."""
        ...
