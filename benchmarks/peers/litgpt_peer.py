"""litgpt's GPT (pip install litgpt): LLaMA, Mistral, Mixtral and Gemma with our weights, read by its own converter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from peers.contender import Cell, Contender, UnavailableError

BLOCKS = {"llama": "LLaMAMLP", "mistral": "LLaMAMLP", "mixtral": "LLaMAMoE", "gemma": "GemmaMLP"}


class LitGPT(Contender):
    """Its cache is allocated for all positions; ``input_pos_maxp1`` cuts attention to those that are filled."""

    def __init__(self, cell: Cell) -> None:
        from litgpt.config import Config
        from litgpt.model import GPT
        from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama

        c = cell.config
        sizes = {
            "block_size": c.context_length, "padded_vocab_size": c.vocab_size, "vocab_size": c.vocab_size,
            "n_layer": c.n_layer, "n_head": c.n_head, "n_embd": c.d_model, "intermediate_size": c.d_ff,
            "parallel_residual": False, "rotary_percentage": 1.0,
        }  # fmt: skip
        if cell.architecture in BLOCKS:
            more: dict[str, Any] = {
                "name": cell.architecture.capitalize(), "head_size": c.d_head, "n_query_groups": c.n_kv_head,
                "norm_class_name": "RMSNorm", "norm_eps": c.norm_eps, "rope_base": int(c.rope_theta), "bias": False,
                "mlp_class_name": BLOCKS[cell.architecture],
            }  # fmt: skip
            if getattr(c, "window", None):
                if cell.job != "train" and cell.positions > c.window:
                    raise UnavailableError("past its window its cache gives other tokens than its whole pass")
                more |= {"sliding_window_size": c.window, "sliding_window_indices": [1] * c.n_layer}
            if cell.architecture == "mixtral":
                more |= {"n_expert": c.n_expert, "n_expert_per_token": c.n_active}
                self.why_not = (
                    "its loss has no balancing of experts: equal until the first update"
                    if (cell.job == "train")
                    else ""
                )
            if cell.architecture == "gemma":
                more |= {"scale_embeddings": True, "gelu_approximate": "tanh"}
            config = Config(**sizes, **more)
            model = GPT(config)
            weights: dict[str, Tensor] = {}
            copy_weights_hf_llama(config, {}, weights, cell.published_weights)
            model.load_state_dict(weights)
        else:
            self.why_not = "it has rotary positions instead of learned ones, and GELU by erf"
            model = GPT(Config(**sizes, norm_class_name="LayerNorm", mlp_class_name="GptNeoxMLP", bias=True))
            model.apply(model._init_weights)
        if cell.architecture in ("gpt1", "gpt2", "gemma"):
            model.lm_head.weight = model.transformer.wte.weight
        super().__init__(cell, model)

    def decode(self, prompt: Tensor, new_tokens: int) -> Iterator[Tensor]:
        B, P = prompt.shape
        model: Any = self.model
        model.set_kv_cache(B, P + new_tokens, dtype=self.cell.torch_dtype)
        tokens, positions = prompt, torch.arange(P)
        for end in range(P, P + new_tokens):
            with torch.inference_mode():
                logits = model(tokens, positions, input_pos_maxp1=end)[:, -1]
                tokens, positions = logits.argmax(-1, keepdim=True), torch.tensor([end])
            yield tokens[:, 0]
        model.clear_kv_cache()
