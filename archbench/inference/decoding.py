"""Decoding: one tensor per token, as soon as it is known, so that a caller can time the first token and the gaps.

:mod:`archbench.inference.decoding_kind` has the ways of taking a step: one operation after the other, or at static
shapes, from a CUDA graph.

Past the context the window slides: each new token is predicted from the last ``context_length`` tokens, exactly as if
they were a prompt. That shifts every position, which invalidates the cache: each such token reads the whole window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from archbench.config import ModelConfig
from archbench.errors import UsageError
from archbench.inference import decoding_kind
from archbench.inference.captured_step import Lease, why_not_captured
from archbench.inference.modes import module_mode
from archbench.inference.recorded_step import why_not_recorded, why_not_replayed
from archbench.inference.sampling import Sampling
from archbench.inference.static_step import why_not_static
from archbench.kernels.packed_product import decoding_step
from archbench.protocols import CachedModel, DecodingCache, HiddenStateModel


def decode_with_cache(model: nn.Module, prompt: Tensor, max_new_tokens: int, sampling: Sampling) -> Iterator[Tensor]:
    """Continue ``prompt``: read it once, then one token per step from the cache.

    Args:
        model: a :class:`archbench.protocols.CachedModel` with a ``config``. It is in evaluation mode until the iterator
            ends or is closed.
        prompt: token ids (B, P) int64, 1 <= P <= ``config.context_length``, on the model's device.
        max_new_tokens: tokens to add to each sequence; the window slides past the context.
        sampling: how each token is chosen, and the id that ends a sequence.

    Returns:
        An iterator over token ids (B,) int64. A sequence that has ended repeats ``sampling.eos``; the iterator ends
        when all have, or after ``max_new_tokens``.

    Raises:
        UsageError: an argument is invalid; raised by the call, not at the first token. It is a ValueError.
    """
    if not isinstance(model, CachedModel):
        cause = "it has no decoding cache (new_cache and extend)"
        raise UsageError(f"model {type(model).__name__}", cause, "Use decode_without_cache, or give it both methods")
    context = validate_prompt(model, prompt, max_new_tokens, sampling)
    if decoding_kind.ambient != "eager":
        reason = _why_not_static(model, prompt, max_new_tokens, sampling, context)
        if reason is None:
            decoding_kind.record_decoding(decoding_kind.ambient)
            captured = decoding_kind.ambient == "graph"
            return _decode_statically(model, prompt, max_new_tokens, sampling, context, captured=captured)
        decoding_kind.record_decoding("eager", reason)
    cached: CachedModel = model
    capacity = min(prompt.shape[1] + max_new_tokens - 1, context)
    cache: DecodingCache | None = None

    def next_logits(window: Tensor) -> Tensor:
        nonlocal cache
        if cache is None or cache.length >= capacity:  # the first token, or the window slides
            cache = cached.new_cache(window.shape[0], capacity)
        tokens = window[:, cache.length :]
        with decoding_step() if tokens.shape[1] == 1 else nullcontext():
            return cached.extend(tokens, cache)

    return _decode(model, prompt, max_new_tokens, sampling, context, next_logits)


def decode_without_cache(model: nn.Module, prompt: Tensor, max_new_tokens: int, sampling: Sampling) -> Iterator[Tensor]:
    """As :func:`decode_with_cache`, for any model with a ``config``: reads the whole window for every token.

    A :class:`archbench.protocols.HiddenStateModel` computes the logits of the last position only.
    """
    context = validate_prompt(model, prompt, max_new_tokens, sampling)
    if decoding_kind.ambient != "eager":
        decoding_kind.record_decoding("eager", "it decodes without a cache, from a text that grows")
    stateful: HiddenStateModel | None = model if isinstance(model, HiddenStateModel) else None

    def next_logits(window: Tensor) -> Tensor:
        if stateful is not None:
            return stateful.head(stateful.hidden(window)[:, -1])
        logits: Tensor = model(window)  # (B, T, V)
        return logits[:, -1]

    return _decode(model, prompt, max_new_tokens, sampling, context, next_logits)


def validate_prompt(model: nn.Module, prompt: Tensor, max_new_tokens: int, sampling: Sampling) -> int:
    """Check the arguments of decoding; returns the model's context length.

    Raises:
        UsageError: see :func:`decode_with_cache`.
    """
    config = getattr(model, "config", None)
    if not isinstance(config, ModelConfig):
        cause = "it has no config with vocab_size and context_length"
        raise UsageError(f"model {type(model).__name__}", cause, "Keep the ModelConfig it was built from as its config")
    V, T = config.vocab_size, config.context_length
    if max_new_tokens < 1:
        raise UsageError("max_new_tokens", f"{max_new_tokens} is not a number of tokens to add", "Pass at least 1")
    if sampling.eos is not None and sampling.eos >= V:
        raise UsageError("eos", f"{sampling.eos} is outside the vocabulary of {V}", "Pass the tokenizer's own, or None")
    if prompt.dtype != torch.int64 or prompt.dim() != 2:
        cause = f"its shape is {tuple(prompt.shape)} and its dtype {str(prompt.dtype).removeprefix('torch.')}"
        raise UsageError("prompt", cause, "Pass token ids (B, P) of dtype int64")
    if prompt.numel() == 0:
        cause = f"it is empty, of shape {tuple(prompt.shape)}"
        raise UsageError("prompt", cause, "Pass at least one token, for instance the tokenizer's separator")
    if prompt.shape[1] > T:
        cause = f"its {prompt.shape[1]} tokens are longer than the context of {T}"
        raise UsageError("prompt", cause, f"Pass at most its last {T} tokens")
    home = next((parameter.device for parameter in model.parameters()), prompt.device)
    if prompt.device != home:
        raise UsageError("prompt", f"it is on {prompt.device}, the model on {home}", f"Pass prompt.to({str(home)!r})")
    lowest, highest = int(prompt.min()), int(prompt.max())
    if lowest < 0 or highest >= V:
        cause = f"token id {lowest if lowest < 0 else highest} is outside the vocabulary of {V}"
        raise UsageError("prompt", cause, f"Pass ids from 0 to {V - 1}, of the tokenizer that the model was built for")
    return T


def _decode(
    model: nn.Module,
    prompt: Tensor,
    max_new_tokens: int,
    sampling: Sampling,
    context: int,
    next_logits: Callable[[Tensor], Tensor],
) -> Iterator[Tensor]:
    B, P = prompt.shape
    tokens = torch.empty(B, P + max_new_tokens, dtype=torch.int64, device=prompt.device)
    tokens[:, :P] = prompt
    ended: Tensor | None = None  # (B,) bool; None if no sequence can have ended
    with module_mode(model, training=False):
        for length in range(P, P + max_new_tokens):
            with torch.inference_mode():  # not across the yield, where it would affect the caller
                window = tokens[:, max(0, length - context) : length]
                token = sampling.pick(next_logits(window))  # (B,)
                if sampling.eos is not None:
                    token = token if ended is None else token.masked_fill(ended, sampling.eos)
                    ended = token == sampling.eos
                tokens[:, length] = token
            yield token
            if ended is not None and bool(ended.all()):
                return


def _why_not_static(
    model: nn.Module, prompt: Tensor, max_new_tokens: int, sampling: Sampling, context: int
) -> str | None:
    """Why this decoding cannot take static steps, or replay them, as a clause; None if it can."""
    if prompt.shape[1] + max_new_tokens - 1 > context:
        return f"the window slides past the context of {context}, where each token reads all of it"
    replayed = decoding_kind.ambient == "graph"
    recorded = replayed and prompt.device.type != "cuda"
    reason = why_not_captured(model) if replayed else None
    if reason is None and recorded:
        reason = why_not_replayed(model, sampling)
    if reason is not None:
        return reason
    with module_mode(model, training=False), torch.inference_mode():
        return why_not_recorded(model, prompt.shape[0]) if recorded else why_not_static(model, prompt)


def _decode_statically(
    model: nn.Module, prompt: Tensor, max_new_tokens: int, sampling: Sampling, context: int, *, captured: bool
) -> Iterator[Tensor]:
    positions = prompt.shape[1] + max_new_tokens - 1
    with module_mode(model, training=False):
        with torch.inference_mode():
            lease = Lease(model, prompt, positions, context, sampling, captured=captured)
        try:
            for number in range(max_new_tokens):
                with torch.inference_mode():  # not across the yield, where it would affect the caller
                    token = lease.decoder.next() if number else lease.decoder.step.begin(prompt)
                yield token
                ended = lease.decoder.step.ended
                if ended is not None and bool(ended.all()):
                    return
        finally:
            lease.end()
