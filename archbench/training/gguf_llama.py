"""A LLaMA in a GGUF file, with transformers' configuration, names and order of channels.

Reference: llama.cpp's convert_hf_to_gguf.py, ``LlamaModel``, which this inverts. transformers converts such files too,
but ignores keys and tensors that it does not know; here they are errors, because they change what is computed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from archbench.data.gguf import GGUF, gguf_package, read_gguf
from archbench.errors import CheckpointError
from archbench.nn import LLAMA_NAMES

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
"""llama.cpp's key, after ``llama.`` -> transformers' field."""
_FRACTIONS = ("attention.layer_norm_rms_epsilon", "rope.freq_base")
_REQUIRED = ("block_count", "embedding_length", "attention.head_count")
_NO_FIELD = {"vocab_size", "rope.dimension_count", "attention.value_length"}
"""Keys implied by the others and the tensors' shapes; the two widths must be a head's."""
_OFF = {"expert_count": 0, "expert_used_count": 0}
"""Keys that change what is computed, with the value that changes nothing."""


def gguf_config(path: Path) -> dict[str, Any]:
    """The file's metadata as the ``config.json`` of a transformers LlamaForCausalLM.

    Raises:
        CheckpointError: the file is damaged, of another architecture, or has a key that transformers' LLaMA lacks.
    """
    file = read_gguf(path)
    keys = _keys(file)
    config = {theirs: _plain(keys[key]) for key, theirs in _FIELDS.items() if key in keys}
    head_dim = config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
    for key in ("rope.dimension_count", "attention.value_length"):
        if keys.get(key, head_dim) != head_dim:
            cause = f"it is {keys[key]}, but a head is {head_dim} wide"
            raise _unusable(path, f"metadata {ARCHITECTURE}.{key}", cause, "Use a model that rotates whole heads")
    # As llama.cpp reads them: linear if no type is named; a factor of 0 or 1 and the type "none" scale nothing.
    scaling, factor = keys.get("rope.scaling.type", "linear"), keys.get("rope.scaling.factor", 1)
    if scaling not in ("none", "linear") or (scaling == "linear" and factor not in (0, 1)):
        config["rope_scaling"] = {"rope_type": scaling, "factor": factor}
    if "rope_freqs.weight" in file.tensors:
        config["rope_scaling"] = {"rope_type": "llama3"}
    biases = [name for name in file.tensors if name.endswith(".bias")]
    return config | {
        "model_type": "llama",
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": any(".attn_" in name for name in biases),
        "mlp_bias": any(".ffn_" in name for name in biases),
    }


def gguf_weights(path: Path) -> dict[str, Tensor]:
    """The file's tensors in float32, by transformers' names.

    Raises:
        CheckpointError: the file is damaged, of another architecture, or has a tensor that transformers' LLaMA lacks.
    """
    file = read_gguf(path)
    keys = _keys(file)
    heads = {"attn_q": keys.get("attention.head_count"), "attn_k": keys.get("attention.head_count_kv")}
    heads["attn_k"] = heads["attn_k"] or heads["attn_q"]
    names = _transformers_names(path, keys["block_count"])
    weights = {}
    for name in file.tensors:
        if name not in names:
            raise _unusable(path, f"tensor {name}", "transformers' LLaMA has no such tensor", "Use another model")
        tensor = torch.from_numpy(file.read(name))
        if n_head := heads.get(name.split(".")[-2]):
            tensor = _half_split(path, name, tensor, n_head)
        weights[names[name]] = tensor
    return weights


def _transformers_names(path: Path, n_layer: int) -> dict[str, str]:
    """llama.cpp's name of each tensor -> transformers'; the package gguf has the table of parts."""
    gguf = gguf_package(path)
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, n_layer)
    names = {}
    for published in LLAMA_NAMES.values():
        for part in (published,) if isinstance(published, str) else published:
            for layer in range(n_layer if "*" in part else 1):
                name = part.replace("*", str(layer))
                names[f"{table.get_name(name.removesuffix('.weight'))}.weight"] = name
    return names


def _half_split(path: Path, name: str, weight: Tensor, n_head: int) -> Tensor:
    """Rows (heads × D, C) from llama.cpp's order, which rotates neighbours 2i and 2i + 1, to i and i + D/2."""
    rows, C = weight.shape if weight.ndim == 2 else (len(weight), 0)
    if rows % (2 * n_head) or not C:
        raise _unusable(
            path, f"tensor {name}", f"its {rows} rows are not {n_head} heads of an even width", "Get the file again"
        )
    return weight.view(n_head, rows // n_head // 2, 2, C).transpose(1, 2).reshape(rows, C)


def neighbouring(weight: Tensor, n_head: int) -> Tensor:
    """The inverse: rows (heads × D, C) in transformers' order to llama.cpp's."""
    rows, C = weight.shape
    return weight.view(n_head, 2, rows // n_head // 2, C).transpose(1, 2).reshape(rows, C)


def _keys(file: GGUF) -> dict[str, Any]:
    """The architecture's keys, without its name.

    Raises:
        CheckpointError: another architecture, a size or the embedding is missing, or a key changes what is computed.
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
            cause = f"it is {str(value)[:60]}, which archbench's LLaMA does not support"
            step = "Use a model without it" + (" (this may be a Mixtral)" if key == "expert_count" else "")
            raise _unusable(file.path, f"metadata {ARCHITECTURE}.{key}", cause, step)
    for key in (*_FIELDS, *_NO_FIELD):
        kinds = int | float if key in _FRACTIONS else int
        if (key not in keys and key in _REQUIRED) or not isinstance(value := keys.get(key, 1), kinds) or not value > 0:
            cause = f"it is {value!r}, and must be a positive number" if key in keys else "it is missing"
            raise _unusable(file.path, f"metadata {ARCHITECTURE}.{key}", cause, "Convert the model again")
    if keys["block_count"] > len(file.tensors):
        cause = f"it is {keys['block_count']:,}, and the file has {len(file.tensors):,} tensors"
        raise _unusable(file.path, f"metadata {ARCHITECTURE}.block_count", cause, "Get the file again")
    if "token_embd.weight" not in file.tensors:
        raise _unusable(file.path, "tensor token_embd.weight", "it is missing", "Convert the model again")
    return keys


def _plain(value: Any) -> Any:
    """A number stored in float32, in its shortest form: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _unusable(path: Path, part: str, cause: str, step: str) -> CheckpointError:
    return CheckpointError(f"weights {path}, {part}", cause, step)
