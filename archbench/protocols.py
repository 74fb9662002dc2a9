"""What a model may offer beyond ``forward``; the core finds out with ``isinstance``."""

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
        """Every tensor of the cache, to count its bytes; works on the meta device."""
        ...


@runtime_checkable
class CachedModel(Protocol):
    """A model that decodes from a cache: it reads the prompt once, then one token a step."""

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
class StaticCache(DecodingCache, Protocol):
    """A cache that also takes static steps: one token at fixed shapes and addresses, which a CUDA graph can hold.

    Between :meth:`hold` and :meth:`release`, ``extend`` reads one token at the position that a tensor on the device
    has, and changes no number on the host, ``length`` included: a graph repeats what was asked of the device, and no
    line of Python. The caches of :mod:`archbench.nn` offer it, to models that take their positions from
    ``DecoderOnly.start``.
    """

    def reach(self, positions: int) -> int:
        """A size of step that holds so many positions, of few different ones: each is a graph of its own."""
        ...

    def hold(self, position: Tensor, reach: int) -> None:
        """Begin a static step at ``position`` (1,) int64, the token's own, below ``reach(position + 1)``."""
        ...

    def release(self) -> None:
        """End it."""
        ...

    def clear(self) -> None:
        """Empty, as from ``new_cache``, without moving a tensor."""
        ...


@runtime_checkable
class HiddenStateModel(Protocol):
    """A model that returns its hidden states before the output head: decoding then computes one position's logits."""

    def hidden(self, tokens: Tensor) -> Tensor:
        """tokens (B, T) int64 -> hidden states (B, T, C), ready for :meth:`head`."""
        ...

    def head(self, hidden: Tensor) -> Tensor:
        """hidden states (..., C) -> logits (..., V)."""
        ...


@runtime_checkable
class LinearHeadModel(HiddenStateModel, Protocol):
    """A :class:`HiddenStateModel` whose head is one linear layer: training then holds no (B, T, V) logits.

    A model that caps, scales or sums its logits offers no :meth:`head_parameters`; its loss then needs all logits.
    """

    def forward(self, tokens: Tensor, *, logits: bool = True) -> Tensor:
        """tokens (B, T) int64 -> logits (B, T, V), or :meth:`hidden`'s states (B, T, C) where ``logits`` is False.

        Training gets the hidden states by calling the model, so that module hooks and wrappers such as
        ``torch.compile`` take effect.
        """
        ...

    def head_parameters(self) -> tuple[Tensor, Tensor | None]:
        """weight (V, C) and bias (V,) or None; ``head(hidden)`` is ``hidden @ weight.T + bias``."""
        ...


@runtime_checkable
class FlopsModel(Protocol):
    """A model with a formula for the FLOPs of a forward pass; ``archbench check`` compares it with the count."""

    def forward_flops(self, batch_size: int, context_length: int) -> float:
        """Model FLOPs of one forward pass on tokens (B, T), in total.

        By the convention of :mod:`archbench.measure.flops`: matrix products only, 2 FLOPs a multiply–add, attention
        over the whole T × T square, plus :meth:`UncountedModel.uncounted_flops`.
        """
        ...


@runtime_checkable
class UncountedModel(Protocol):
    """A model with operators whose FLOPs torch cannot count: scans, Fourier transforms, kernels of its own.

    :mod:`archbench.measure.uncounted_operators` lists them. Operators with a formula registered by
    ``torch.utils.flop_counter.register_flop_formula`` are counted: do not declare them.
    """

    def uncounted_flops(self, batch_size: int, context_length: int) -> Mapping[str, float]:
        """Operator, as in ``aten::cumsum`` -> FLOPs of all its calls in one forward pass on tokens (B, T).

        They are added to the count: once for a forward pass, three times for training, which covers operators of the
        backward pass. Declare 0 for an operator whose cost is no part of model FLOPs.
        """
        ...


@runtime_checkable
class SparseModel(Protocol):
    """A model, or a module inside one, that uses only some of its parameters for a token, as a mixture of experts does.

    Architectures are matched by the parameters that a token uses. It is enough if the modules inside a model offer
    this; a module's number includes its children's, and theirs are then ignored.
    """

    def inactive_parameters(self) -> int:
        """Number of parameters, its children's included, that the forward pass of one token does not use.

        With a second parameter, ``tokens: int = 1``: that so many tokens leave unused at the least, wherever they are
        sent, which the memory-bandwidth use of decoding counts. Without it, tokens are taken to share no parameter.
        """
        ...
