"""Small GGUF files for tests, written with the package gguf as llama.cpp's converter writes real ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

VOCABULARY: dict[str, Any] = json.loads((Path(__file__).parent / "llama_cpp_tokens.json").read_text(encoding="utf-8"))
"""A byte-level BPE vocabulary, texts, and their ids as llama.cpp has them, for each pre-tokenizer."""

SIZES = {
    "vocab_size": len(VOCABULARY["tokens"]),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}
_METADATA = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "max_position_embeddings": "context_length",
    "vocab_size": "vocab_size",
}
_TENSORS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def published_llama(*, seed: int = 0, **changes: Any) -> Any:
    """A LlamaForCausalLM of transformers, every parameter random, so that nothing missing can hide."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**{**SIZES, "rope_parameters": {"rope_theta": 5e4, "rope_type": "default"}, **changes})
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (parameter.dim() == 1))
    return model


def write_llama(
    path: Path,
    model: Any,
    *,
    metadata: Mapping[str, Any] | None = None,
    leave_out: tuple[str, ...] = (),
    more: Mapping[str, Tensor] | None = None,
    architecture: str = "llama",
) -> Path:
    """The model and :data:`VOCABULARY`'s tokenizer as a GGUF file in float32.

    Args:
        metadata: keys besides, or in place of, those of the model; None leaves a key out.
        leave_out: llama.cpp's names of tensors that are not written.
        more: tensors besides, by llama.cpp's names.
    """
    config = model.config
    keys: dict[str, Any] = {f"llama.{key}": getattr(config, name) for name, key in _METADATA.items()}
    keys |= {
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "llama.rope.freq_base": config.rope_parameters["rope_theta"],
        "llama.rope.dimension_count": config.head_dim,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": VOCABULARY["tokens"],
        "tokenizer.ggml.token_type": VOCABULARY["token_type"],
        "tokenizer.ggml.merges": VOCABULARY["merges"],
        "tokenizer.ggml.eos_token_id": VOCABULARY["tokens"].index("<|begin|>"),
    }
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    tensors = dict(more or {})
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if (n_head := heads.get(name.split(".")[-2])) is not None:
            rows, C = tensor.shape  # half-split to neighbours, as convert_hf_to_gguf.py's permute
            tensor = tensor.view(n_head, 2, rows // n_head // 2, C).transpose(1, 2).reshape(rows, C)
        tensors[_name(name)] = tensor
    kept = {name: tensor.numpy() for name, tensor in tensors.items() if name not in leave_out}
    return write_gguf(path, {**keys, **(metadata or {})}, kept, architecture=architecture)


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    *,
    architecture: str = "llama",
    byte_order: gguf.GGUFEndian = gguf.GGUFEndian.LITTLE,
) -> Path:
    """Any metadata, and tensors as they are: float32 and float16 arrays, or (bytes, type) of a quantised one."""
    writer = gguf.GGUFWriter(path, architecture, endianess=byte_order)
    for key, value in metadata.items():
        if value is None:
            continue
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for name, tensor in tensors.items():
        data, kind = tensor if isinstance(tensor, tuple) else (tensor, None)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _name(published: str) -> str:
    part, _, suffix = published.rpartition(".")
    if part.startswith("model.layers."):
        _, _, layer, *rest = part.split(".")
        return f"blk.{layer}.{_TENSORS['.'.join(rest)]}.{suffix}"
    return f"{_TENSORS[part]}.{suffix}"
