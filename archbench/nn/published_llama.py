"""The layout that the LLaMA family shares in transformers: its parameters' names, and its configuration's fields.

Parts that a model has not are never asked for; those that it has besides are added by its plugin.
"""

from __future__ import annotations

from archbench.nn.published import Source

_LAYER = "model.layers.*"

LLAMA_NAMES: dict[str, Source] = {
    "embedding.weight": "model.embed_tokens.weight",
    "blocks.*.attention_norm.weight": f"{_LAYER}.input_layernorm.weight",
    "blocks.*.attention.qkv.weight": tuple(f"{_LAYER}.self_attn.{part}_proj.weight" for part in "qkv"),
    "blocks.*.attention.out.weight": f"{_LAYER}.self_attn.o_proj.weight",
    "blocks.*.feed_forward_norm.weight": f"{_LAYER}.post_attention_layernorm.weight",
    "blocks.*.feed_forward.gate_up.weight": (f"{_LAYER}.mlp.gate_proj.weight", f"{_LAYER}.mlp.up_proj.weight"),
    "blocks.*.feed_forward.down.weight": f"{_LAYER}.mlp.down_proj.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
"""A parameter of a decoder made of ``RotaryAttention`` and ``GatedFeedForward`` -> in transformers' ForCausalLM."""

LLAMA_FIELDS = {
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "d_model": "hidden_size",
    "d_ff": "intermediate_size",
    "norm_eps": "rms_norm_eps",
}
"""A field of its configuration -> in transformers' config.json. Key/value heads may be absent there, or have to be."""
