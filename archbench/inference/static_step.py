"""One token in, one token out, at fixed shapes and addresses: a decoding step that can be captured and replayed.

The step reads where it stands from the device, keeps its states in place, and writes its token to a ledger there: the
host asks for the same work at every token. As it is, it runs everywhere, the twin of its replay.
"""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from archbench.inference.sampling import Sampling
from archbench.kernels import attention_backends
from archbench.kernels.packed_product import decoding_step
from archbench.protocols import CachedModel, DecodingCache, StaticCache

LEDGER_TOKENS = 1 << 15
"""Tokens, of all sequences together, that a step can decode: each has a place of its own, since callers keep them."""


class StaticStep:
    """Decoding of B sequences by steps of static shapes. Call :meth:`begin`, then :meth:`run` for each token.

    Args:
        model: it has :class:`archbench.protocols.StaticCache` caches; only a weak reference is kept.
        batch_size: B.
        capacity: positions that its cache holds.
        sampling: its generator, if there is one, is replaced by one of the step's own.
        device: the model's.

    Attributes:
        ledger: (R, B) int64, a row a token.
        row: the next token's.
        length: positions read, the host's copy of what the device counts.
    """

    def __init__(
        self, model: nn.Module, batch_size: int, capacity: int, sampling: Sampling, device: torch.device
    ) -> None:
        assert isinstance(model, CachedModel)
        cache = model.new_cache(batch_size, capacity)
        assert isinstance(cache, StaticCache), "why_not_static() has asked"
        self._model = weakref.ref(model)
        self.cache = cache
        self.generator = None if sampling.generator is None else torch.Generator(device)
        self.sampling = replace(sampling, generator=self.generator)
        self.token = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self.counters = torch.zeros(2, dtype=torch.int64, device=device)  # the token's position, and its row
        self.ended = None if sampling.eos is None else torch.zeros(batch_size, dtype=torch.bool, device=device)
        rows = max(LEDGER_TOKENS // batch_size, 4 * capacity)
        self.ledger = torch.zeros(rows, batch_size, dtype=torch.int64, device=device)
        self.row = self.length = 0

    @property
    def model(self) -> nn.Module:
        model = self._model()
        assert model is not None, "whoever decodes holds the model"
        return model

    def _extend(self, tokens: Tensor) -> Tensor:
        return cast("CachedModel", self.model).extend(tokens, self.cache)

    def tensors(self) -> list[Tensor]:
        """All that a step reads and writes, besides the weights."""
        ended = [] if self.ended is None else [self.ended]
        return [*self.cache.tensors(), self.token, self.counters, self.ledger, *ended]

    def has_room(self, tokens: int) -> bool:
        """Whether the ledger has rows for so many tokens more."""
        return self.row + tokens <= self.ledger.shape[0]

    def begin(self, prompt: Tensor) -> Tensor:
        """Read prompt (B, P) into the empty cache; the first token (B,)."""
        self.cache.clear()
        token = self.sampling.pick(self._extend(prompt))
        if self.ended is not None and self.sampling.eos is not None:
            torch.eq(token, self.sampling.eos, out=self.ended)
        self.length = prompt.shape[1]
        self.token.copy_(token)
        self.ledger[self.row].copy_(token)
        self.counters[0].fill_(self.length)
        self.counters[1].fill_(self.row + 1)
        return self.passed()

    def reach(self) -> int:
        """The size of the next step."""
        return self.cache.reach(self.length + 1)

    def run(self, reach: int) -> None:
        """Read the last token and choose the next, on the device alone."""
        self.cache.hold(self.counters[:1], reach)
        try:
            with decoding_step():
                logits = self._extend(self.token.unsqueeze(1))  # (B, V)
        finally:
            self.cache.release()
        token = self.sampling.pick(logits)
        if self.ended is not None and self.sampling.eos is not None:
            token = token.masked_fill(self.ended, self.sampling.eos)
            torch.eq(token, self.sampling.eos, out=self.ended)
        self.token.copy_(token)
        self.ledger.index_copy_(0, self.counters[1:], token.unsqueeze(0))
        self.counters.add_(1)

    def stepped(self) -> Tensor:
        """The token (B,) of the step that was run."""
        self.length += 1
        return self.passed()

    def passed(self) -> Tensor:
        self.row += 1
        return self.ledger[self.row - 1]


def why_not_static(model: nn.Module, prompt: Tensor) -> str | None:
    """Why static steps would not decode as eager ones do, as a clause; None if they do.

    Both read the same few tokens of ``prompt`` (B, P), the static ones one at a time: a model that takes a position
    from the host would take the same one each time. The answer is kept with the model.
    """
    assert isinstance(model, CachedModel)
    proofs = _proofs.setdefault(model, {})
    if attention_backends.ambient not in proofs:
        proofs[attention_backends.ambient] = _difference(model, prompt[:1])
    return proofs[attention_backends.ambient]


_proofs: weakref.WeakKeyDictionary[nn.Module, dict[str, str | None]] = weakref.WeakKeyDictionary()
"""For each backend of attention that is set."""


def no_static_steps(cache: DecodingCache) -> str:
    """What is missing, as a clause."""
    return f"its cache, a {type(cache).__name__}, has no static steps (reach, hold, release and clear)"


PROVEN_POSITIONS = 12
DIFFERENCE = {torch.float32: 1e-3, torch.float64: 1e-6}
"""Of the logits, as a share of their norm; 0.05 in 16 bits."""


def _difference(model: CachedModel, prompt: Tensor) -> str | None:
    context = model.config.context_length  # type: ignore[attr-defined]  # decode_with_cache has asked
    positions = min(PROVEN_POSITIONS, context)
    tokens = prompt.repeat(1, -(-positions // prompt.shape[1]))[:, :positions]  # (1, positions)
    eager, static = model.new_cache(1, positions), model.new_cache(1, positions)
    if not isinstance(static, StaticCache):
        return no_static_steps(static)
    expected = model.extend(tokens, eager)  # (1, V)
    try:
        static.clear()
        found = model.extend(tokens[:, :1], static)
        for place in range(1, positions):
            static.hold(torch.full((1,), place, device=tokens.device), static.reach(place + 1))
            try:
                found = model.extend(tokens[:, place : place + 1], static)
            finally:
                static.release()
    except Exception as error:  # noqa: BLE001  a plugin may raise anything here; it decodes eagerly, with this reason
        return f"a static step fails: {type(error).__name__}: {error}"
    off = float((found - expected).float().norm() / expected.float().norm().clamp_min(1e-30))
    if not off <= DIFFERENCE.get(found.dtype, 0.05):
        return f"its static steps give other logits than its eager ones: they differ by {off:.2g} of their norm"
    return None
