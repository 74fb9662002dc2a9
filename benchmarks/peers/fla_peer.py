"""flash-linear-attention's plain forms of two recurrences; its kernels need a GPU, and so do its models.

Gated DeltaNet is transformers' model with fla's chunks; RWKV-7 is ours with fla's chunks, and its steps in decoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from peers.contender import GREEDY, Cell, Contender, Ours
from peers.transformers_peer import Transformers


def fla(cell: Cell) -> Contender:
    return FlaGatedDeltaNet(cell) if cell.architecture == "gated-deltanet" else FlaRWKV7(cell)


class FlaGatedDeltaNet(Transformers):
    """Its rules stand in for transformers' while this model computes."""

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        with _rules():
            return super().loss(inputs, targets)

    def decode(self, prompt: Tensor, new_tokens: int) -> Iterator[Tensor]:
        tokens = super().decode(prompt, new_tokens)
        for _ in range(new_tokens):
            with _rules():
                token = next(tokens)
            yield token


def _rules() -> Any:
    from fla.ops.gated_delta_rule import naive
    from transformers.models.olmo_hybrid import modeling_olmo_hybrid as published

    def rule(function: Any) -> Any:
        def called(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, **given: Any) -> Any:
            if given.pop("use_qk_l2norm_in_kernel", False):
                q, k = (x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6) for x in (q, k))
            kept = {name: given[name] for name in ("initial_state", "output_final_state") if name in given}
            o, state = function(q, k, v, g=g, beta=beta, **kept)
            return o.to(q.dtype), state

        return called

    return mock.patch.multiple(
        published,
        torch_chunk_gated_delta_rule=rule(naive.naive_chunk_gated_delta_rule),
        torch_recurrent_gated_delta_rule=rule(naive.naive_recurrent_gated_delta_rule),
    )


class FlaRWKV7(Contender):
    """Of our model, the recurrence alone is theirs."""

    def __init__(self, cell: Cell) -> None:
        super().__init__(cell, Ours(cell).model)
        for module in self.model.modules():
            if hasattr(module, "recur"):
                module.recur = _recur

    def decode(self, prompt: Tensor, new_tokens: int) -> Iterator[Tensor]:
        return self.cell.plugin.generate(self.model, prompt, new_tokens, GREEDY)


CHUNK = 32


def _recur(r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor | None) -> Tensor:
    """As ``TimeMixing.recur`` of plugins/rwkv7.py, by fla's rule for a diagonal plus a low-rank matrix."""
    from fla.ops.generalized_delta_rule.dplr.naive import dplr_chunkwise, dplr_recurrence

    T, D = r.shape[1], r.shape[-1]
    exact = [x.transpose(1, 2).float() for x in (r * D**0.5, k, v, a, b, log_w)]  # (B, H, T, D); it divides r by √D
    if T > 1:
        padded = [F.pad(x, (0, 0, 0, -T % CHUNK)) for x in exact]  # zeros: they neither decay, remove nor write
        y, after = dplr_chunkwise(*padded, initial_state=state, chunk_size=CHUNK)
    else:
        y, after = dplr_recurrence(*exact, initial_state=state)
    if state is not None:
        state.copy_(after)
    return y[:, :, :T].transpose(1, 2)
