"""A decoder of x-transformers (pip install x-transformers) of our sizes; its layers differ a little from ours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from peers.contender import Cell, Contender


class XTransformers(Contender):
    """Its cache grows by concatenation."""

    def __init__(self, cell: Cell) -> None:
        from x_transformers import Decoder, TransformerWrapper

        c = cell.config
        layers: dict[str, Any] = {"dim": c.d_model, "depth": c.n_layer, "heads": c.n_head, "attn_flash": True}
        if cell.architecture in ("gpt1", "gpt2"):
            self.why_not = "its attention has no biases"
            layers |= {
                "attn_dim_head": c.d_model // c.n_head, "ff_mult": c.d_ff / c.d_model,
                "pre_norm": cell.architecture == "gpt2", "attn_dropout": cell.dropout, "ff_dropout": cell.dropout,
            }  # fmt: skip
        else:
            self.why_not = "its rotary positions pair other channels, and its norms have another epsilon"
            layers |= {
                "attn_dim_head": c.d_head, "attn_kv_heads": c.n_kv_head, "ff_mult": c.d_ff / c.d_model,
                "rotary_pos_emb": True, "rotary_emb_dim": c.d_head, "ff_glu": True, "ff_swish": True,
                "ff_no_bias": True, "use_rmsnorm": True,
            }  # fmt: skip
        learned = cell.architecture != "llama"
        model = TransformerWrapper(
            num_tokens=c.vocab_size, max_seq_len=c.context_length, attn_layers=Decoder(**layers),
            use_abs_pos_emb=learned, tie_embedding=learned,
        )  # fmt: skip
        super().__init__(cell, model)

    def decode(self, prompt: Tensor, new_tokens: int) -> Iterator[Tensor]:
        cache, text = None, prompt
        for _ in range(new_tokens):
            with torch.inference_mode():
                logits, cache = self.model(text, return_intermediates=True, cache=cache)
                token = logits[:, -1].argmax(-1)
                text = torch.cat([text, token[:, None]], dim=1)
            yield token
