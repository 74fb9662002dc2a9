"""Small configurations of transformers' families, for ``hf:``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

V, T = 257, 64
MHA = {
    "vocab_size": V, "max_position_embeddings": T, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32,
    "intermediate_size": 64,
}  # fmt: skip
GQA = {**MHA, "num_key_value_heads": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": V, "n_positions": T, "n_layer": 2, "n_head": 4, "n_embd": 32},
    "gpt_neox": MHA,
    "llama": GQA,
    "mistral": {**GQA, "sliding_window": 16},
    "qwen3": {**GQA, "head_dim": 8},
    "gemma3_text": {**GQA, "head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8},
    "olmo2": GQA,
    "phi3": {**GQA, "sliding_window": 16},
    "smollm3": GQA,
    "mixtral": {**GQA, "num_local_experts": 4, "num_experts_per_tok": 2},
    "olmoe": {**GQA, "num_experts": 4, "num_experts_per_tok": 2},
    "mamba2": {
        "vocab_size": V, "num_hidden_layers": 2, "hidden_size": 32, "num_heads": 8, "head_dim": 8, "state_size": 16,
        "n_groups": 1, "chunk_size": 16,
    },
    "minimax": {**GQA, "num_local_experts": 2, "block_size": 16, "layer_types": ["linear_attention", "full_attention"]},
    "kimi_linear": {
        **MHA, "num_key_value_heads": 4, "moe_intermediate_size": 32, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
        "v_head_dim": 8, "qk_nope_head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "linear_head_dim": 8,
        "linear_num_heads": 4, "layer_types": ["linear_attention", "full_attention"],
        "mlp_layer_types": ["dense", "sparse"],
    },
    "lfm2": {**GQA, "layer_types": ["conv", "full_attention"]},
    "mamba": {"vocab_size": V, "num_hidden_layers": 2, "hidden_size": 32, "state_size": 8, "time_step_rank": 4},
    "falcon_mamba": {"vocab_size": V, "num_hidden_layers": 2, "hidden_size": 32, "state_size": 8, "time_step_rank": 4},
}  # fmt: skip
"""A small configuration of each family that passes all checks."""


def written(folder: Path, kind: str, **changes: Any) -> Path:
    """The folder with the ``config.json`` of a family."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": kind, **FAMILIES[kind], **changes}))
    return folder
