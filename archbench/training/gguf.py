"""A LLaMA in a GGUF file, as transformers has it: the same configuration, names and order of channels.

Reference: llama.cpp's convert_hf_to_gguf.py, ``LlamaModel``, of which this is the way back.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from archbench.data.gguf import GGUF, read_gguf
from archbench.errors import CheckpointError

ARCHITECTURE = "llama"
_FIELDS = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
"""A key of llama.cpp's, after ``llama.`` -> transformers'."""
_NO_FIELD = {"vocab_size", "rope.dimension_count", "attention.value_length"}
"""What the others and the tensors' shapes already say; the two widths have to be a head's."""
_OFF = {"expert_count": 0, "expert_used_count": 0}
"""Keys that change what is computed, with the value that changes nothing."""

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.*.attn_norm": "model.layers.*.input_layernorm",
    "blk.*.attn_q": "model.layers.*.self_attn.q_proj",
    "blk.*.attn_k": "model.layers.*.self_attn.k_proj",
    "blk.*.attn_v": "model.layers.*.self_attn.v_proj",
    "blk.*.attn_output": "model.layers.*.self_attn.o_proj",
    "blk.*.ffn_norm": "model.layers.*.post_attention_layernorm",
    "blk.*.ffn_gate": "model.layers.*.mlp.gate_proj",
    "blk.*.ffn_up": "model.layers.*.mlp.up_proj",
    "blk.*.ffn_down": "model.layers.*.mlp.down_proj",
}
"""A tensor of llama.cpp's, without its suffix -> transformers'."""


def gguf_config(path: Path) -> dict[str, Any]:
    """The file's metadata as the ``config.json`` of a transformers LlamaForCausalLM.

    Raises:
        CheckpointError: damaged, of another architecture, or with a key that changes what is computed in a way that
            no configuration of transformers' LLaMA says.
    """
    file = read_gguf(path)
    keys = _keys(file)
    for key in ("block_count", "embedding_length", "attention.head_count"):
        if not isinstance(value := keys.get(key), int) or value < 1:
            cause = f"it is {value!r}, and has to be a number" if key in keys else "it is missing"
            raise _unusable(path, f"metadata {ARCHITECTURE}.{key}", cause, "Convert the model anew")
    config = {theirs: _plain(keys[key]) for key, theirs in _FIELDS.items() if key in keys}
    head_dim = config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
    for key in ("rope.dimension_count", "attention.value_length"):
        if keys.get(key, head_dim) != head_dim:
            cause = f"it is {keys[key]}, and a head is {head_dim} wide"
            raise _unusable(path, f"metadata {ARCHITECTURE}.{key}", cause, "Use a model whose heads turn whole")
    # As llama.cpp reads them: linear where no type is named, and nothing is scaled by 0, 1 or "none".
    scaling, factor = keys.get("rope.scaling.type", "linear"), keys.get("rope.scaling.factor", 1)
    if scaling not in ("none", "linear") or (scaling == "linear" and factor not in (0, 1)):
        config["rope_scaling"] = {"rope_type": scaling, "factor": factor}
    if "rope_freqs.weight" in file.tensors:
        config["rope_scaling"] = {"rope_type": "llama3"}
    biases = [name for name in file.tensors if name.endswith(".bias")]
    return config | {
        "model_type": "llama",
        "vocab_size": _stored(file, "token_embd.weight").shape[0],
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": any(".attn_" in name for name in biases),
        "mlp_bias": any(".ffn_" in name for name in biases),
    }


def gguf_weights(path: Path) -> dict[str, Tensor]:
    """The file's tensors in float32, by transformers' names.

    Raises:
        CheckpointError: damaged, of another architecture, or with a tensor that transformers' LLaMA does not have.
    """
    file = read_gguf(path)
    keys = _keys(file)
    heads = {"attn_q": keys.get("attention.head_count"), "attn_k": keys.get("attention.head_count_kv")}
    heads["attn_k"] = heads["attn_k"] or heads["attn_q"]
    weights = {}
    for name in file.tensors:
        part, _, suffix = name.rpartition(".")
        theirs = _NAMES.get(re.sub(r"^blk\.\d+\.", "blk.*.", part))
        if theirs is None or suffix != "weight":
            raise _unusable(path, f"tensor {name}", "transformers' LLaMA has no such tensor", "Use another model")
        tensor = torch.from_numpy(file.read(name))
        if n_head := heads.get(part.rpartition(".")[2]):
            tensor = _half_split(path, name, tensor, n_head)
        layer = part.split(".")[1] if part.startswith("blk.") else ""
        weights[f"{theirs.replace('*', layer)}.{suffix}"] = tensor
    return weights


def _half_split(path: Path, name: str, weight: Tensor, n_head: int) -> Tensor:
    """Rows (heads × D, C) from llama.cpp's order, where neighbours 2i and 2i + 1 turn together, to i and i + D/2."""
    rows, C = weight.shape
    if rows % (2 * n_head):
        raise _unusable(path, f"tensor {name}", f"its {rows} rows are not {n_head} heads of an even width", "Check it")
    return weight.view(n_head, rows // n_head // 2, 2, C).transpose(1, 2).reshape(rows, C)


def _keys(file: GGUF) -> dict[str, Any]:
    """The keys of the architecture, without its name.

    Raises:
        CheckpointError: another architecture, or a key that changes what is computed.
    """
    name = file.metadata.get("general.architecture")
    if name != ARCHITECTURE:
        step = f"Supported: {ARCHITECTURE}. Take another model as the folder that transformers saves"
        raise _unusable(file.path, "metadata general.architecture", f"it is {name!r}", step)
    keys = {
        key.removeprefix(f"{ARCHITECTURE}."): value
        for key, value in file.metadata.items()
        if key.startswith(f"{ARCHITECTURE}.")
    }
    for key, value in keys.items():
        known = key in _FIELDS or key in _NO_FIELD or key in _OFF or key.startswith("rope.scaling.")
        if not known or isinstance(value, list) or value != _OFF.get(key, value):
            cause = f"it is {str(value)[:60]}, and archbench's LLaMA has no such thing"
            step = "Use a model without" + (": a Mixtral is stored so" if key == "expert_count" else "")
            raise _unusable(file.path, f"metadata {ARCHITECTURE}.{key}", cause, step)
    return keys


def _plain(value: Any) -> Any:
    """A number as it was written before it was stored in float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _stored(file: GGUF, name: str) -> Any:
    if name not in file.tensors:
        raise _unusable(file.path, f"tensor {name}", "it is missing", "Get the file again, or convert the model anew")
    return file.tensors[name]


def _unusable(path: Path, part: str, cause: str, step: str) -> CheckpointError:
    return CheckpointError(f"weights {path}, {part}", cause, step)
