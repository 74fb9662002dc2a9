"""A model as a GGUF file, for llama.cpp and its users.

Reference: ggml's docs/gguf.md for the keys, llama.cpp's convert_hf_to_gguf.py for what it wants of each tensor;
:mod:`archbench.training.gguf_llama` reads LLaMAs back.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from archbench.config import ModelConfig
from archbench.data.byte_tokenizer import Tokenizer
from archbench.data.gguf import gguf_package
from archbench.errors import CheckpointError, StorageError, UsageError
from archbench.export.gguf_vocabulary import Vocabulary, gguf_vocabulary
from archbench.files.writing import replace_atomically
from archbench.plugin.registry import load
from archbench.training.gguf_llama import neighbouring

FORMS = {"llama": "llama", "mistral": "llama", "mixtral": "llama", "gemma": "gemma", "gpt2": "gpt2"}
"""transformers' ``model_type`` -> llama.cpp's architecture that computes the same."""

_TYPES = {
    "float32": ("F32", "ALL_F32"),
    "float16": ("F16", "MOSTLY_F16"),
    "bfloat16": ("BF16", "MOSTLY_BF16"),
}
"""ggml's type of matrices, and the file's as llama.cpp names it."""

_ALWAYS_F32 = ("ffn_gate_inp.weight", "position_embd.weight")
"""Matrices that llama.cpp wants in float32, as it does gains and biases."""

_OTHER_STEP = "Leave out --to gguf, for a folder that transformers reads"


def write_gguf(
    path: Path,
    weights: Mapping[str, Tensor],
    published: Mapping[str, Any],
    tokenizer: Tokenizer,
    *,
    name: str,
    dtype: str = "float32",
) -> list[str]:
    """Write a model to a new file, whole or not at all.

    Args:
        weights: by transformers' names, as in its published files or in a ``state_dict``.
        published: the content of its ``config.json``.
        name: the model's, ``general.name`` of the file.
        dtype: of matrices, float32, float16 or bfloat16; gains and biases stay in float32.

    Returns:
        What a reader of the file must know, in sentences.

    Raises:
        UsageError: the file exists, or llama.cpp has no form for the model.
        CheckpointError: the model has something that no built-in architecture has; a weight is not in float16's range;
            the package gguf is not installed.
        DataError: llama.cpp could not give the tokenizer's ids.
        StorageError: the file cannot be written.
    """
    require_new_file(path)
    kind = str(published.get("model_type"))
    if kind not in FORMS:
        known = ", ".join(FORMS)
        raise UsageError(f"model of type {kind!r}", f"llama.cpp has no form of it here, but of {known}", _OTHER_STEP)
    gguf = gguf_package(path)
    architecture = load(kind)
    published = {field: value for field, value in published.items() if field != "bias"}  # GPT-2's: zeros where none
    config = architecture.import_config(published)
    tied = published.get("tie_word_embeddings", kind in ("gemma", "gpt2"))
    given = {key: tensor for key, tensor in weights.items() if not (tied and key == "lm_head.weight")}
    architecture.import_weights({key: tensor.to("meta") for key, tensor in given.items()}, config)  # all, and no more
    vocabulary = gguf_vocabulary(tokenizer, config.vocab_size)
    keys, notes = _metadata(kind, config)
    if vocabulary.absent:
        bytes_ = ", ".join(f"{byte:#04x}" for byte in vocabulary.absent)
        notes.append(f"A text with a byte that has no token may have other ids in llama.cpp: {bytes_}.")
    tensors = _llama_cpp_tensors(gguf, kind, config, given)
    matrices = getattr(gguf.GGMLQuantizationType, _TYPES[dtype][0])
    types = {
        key: matrices if tensor.ndim > 1 and not key.endswith(_ALWAYS_F32) else gguf.GGMLQuantizationType.F32
        for key, tensor in tensors.items()
    }
    if dtype == "float16":
        _refuse_overflow(tensors)
    writer = _writer(gguf, FORMS[kind])
    writer.add_name(name)
    writer.add_type("model")
    writer.add_file_type(getattr(gguf.LlamaFileType, _TYPES[dtype][1]))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in keys.items():
        (writer.add_uint32 if isinstance(value, int) else writer.add_float32)(f"{FORMS[kind]}.{key}", value)
    _add_vocabulary(gguf, writer, vocabulary)

    def write(file: IO[bytes]) -> None:
        for key, tensor in tensors.items():
            block, size = gguf.GGML_QUANT_SIZES[types[key]]
            n_bytes = tensor.numel() // block * size
            writer.add_tensor_info(key, tensor.shape, np.dtype(np.float32), n_bytes, raw_dtype=types[key])
        writer.fout, writer.state = [file], writer.state.EMPTY
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for key, tensor in tensors.items():
            writer.write_tensor_data(gguf.quants.quantize(_array(tensor), types[key]))

    try:
        replace_atomically(path, write)
    except OSError as error:
        cause = f"it cannot be written whole ({error.strerror or error})"  # numpy's errors say how much was
        raise StorageError(f"file {path}", cause, "Choose another file, or free some space") from error
    return notes


def require_new_file(path: Path) -> None:
    """Refuse a file that exists, and a folder.

    Raises:
        UsageError: names it.
    """
    if path.exists() or path.is_symlink():
        raise UsageError(f"file {path}", "it exists", "Choose another file, or remove it")


def _metadata(kind: str, config: ModelConfig) -> tuple[dict[str, int | float], list[str]]:
    """The architecture's keys, without its name, and what a reader must know of them."""
    c: Any = config
    notes = []
    context = c.context_length
    if (window := getattr(c, "window", None)) is not None and window < context:
        context = window
        notes.append(
            f"The file's context is {window} positions, not {c.context_length}: llama.cpp lets a {kind} see all "
            f"positions, which is the same up to the window of {window}."
        )
    keys: dict[str, int | float] = {
        "vocab_size": c.vocab_size,
        "context_length": context,
        "embedding_length": c.d_model,
        "block_count": c.n_layer,
        "feed_forward_length": c.d_ff,
        "attention.head_count": c.n_head,
        "attention.head_count_kv": c.n_head,
    }
    if kind == "gpt2":
        return keys | {"attention.layer_norm_epsilon": 1e-5}, notes
    keys |= {
        "attention.head_count_kv": c.n_kv_head,
        "attention.key_length": c.d_head,
        "attention.value_length": c.d_head,
        "attention.layer_norm_rms_epsilon": c.norm_eps,
        "rope.dimension_count": c.d_head,
        "rope.freq_base": float(c.rope_theta),
    }
    if kind == "mixtral":
        keys |= {"expert_count": c.n_expert, "expert_used_count": c.n_active}
    return keys, notes


def _llama_cpp_tensors(gguf: Any, kind: str, config: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """llama.cpp's name -> tensor, in the order of layers."""
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, FORMS[kind].upper()), config.n_layer)
    heads = {"attn_q": config.n_head, "attn_k": getattr(config, "n_kv_head", None)}
    tensors = {}
    for published, tensor in _with_whole_experts(weights):
        name = names.get_name(published, try_suffixes=(".weight", ".bias"))
        assert name is not None, published
        if FORMS[kind] == "llama" and (n_head := heads.get(name.split(".")[-2])):
            tensor = neighbouring(tensor, n_head)
        elif kind == "gemma" and tensor.ndim == 1:
            tensor = 1 + tensor  # a gain is stored as its difference from 1
        elif kind == "gpt2" and ".c_" in published and tensor.ndim == 2:
            tensor = tensor.t()  # published as (in, out)
        tensors[name] = tensor
    return dict(sorted(tensors.items(), key=lambda item: ([int(n) for n in re.findall(r"\d+", item[0])], item[0])))


_EXPERT = re.compile(r"(.+\.block_sparse_moe\.experts)\.(\d+)\.(w[123])\.weight")
_FUSED = re.compile(r"(.+)\.mlp\.experts\.(gate_up|down)_proj")


def _with_whole_experts(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Each matrix of a Mixtral's layer for all experts (E, …), under the name that the package gguf knows it by."""
    experts: dict[str, dict[int, Tensor]] = {}
    for name, tensor in weights.items():
        if found := _EXPERT.fullmatch(name):
            experts.setdefault(f"{found[1]}.{found[3]}.weight", {})[int(found[2])] = tensor
        elif found := _FUSED.fullmatch(name):
            parts = {"w2": tensor} if found[2] == "down" else dict(zip(("w1", "w3"), tensor.chunk(2, 1), strict=True))
            for part, whole in parts.items():
                yield f"{found[1]}.block_sparse_moe.experts.{part}.weight", whole
        else:
            yield name, tensor
    for name, of_layer in experts.items():
        yield name, torch.stack([of_layer[expert] for expert in sorted(of_layer)])


def _refuse_overflow(tensors: Mapping[str, Tensor]) -> None:
    most = torch.finfo(torch.float16).max
    for name, tensor in tensors.items():
        if tensor.ndim > 1 and tensor.abs().max() > most:
            cause = f"a weight is {tensor.abs().max():.3g}, and float16 ends at {most:,.0f}"
            raise CheckpointError(f"tensor {name}", cause, "Export with --dtype bfloat16 or float32")


def _array(tensor: Tensor) -> npt.NDArray[np.float32]:
    return tensor.detach().to("cpu", torch.float32).contiguous().numpy()


def _writer(gguf: Any, architecture: str) -> Any:
    """The package's writer, which also writes an empty list: bytes have no merges, and llama.cpp asks for them."""
    kinds = gguf.GGUFValueType

    class Writer(gguf.GGUFWriter):  # type: ignore[misc]
        def _pack_val(self, val: Any, vtype: Any, add_vtype: bool, sub_type: Any = None) -> bytes:
            if vtype is kinds.ARRAY and len(val) == 0:
                return b"".join(self._pack(*one) for one in (("I", kinds.ARRAY), ("I", sub_type), ("Q", 0)))
            whole: bytes = super()._pack_val(val, vtype, add_vtype, sub_type)
            return whole

    return Writer(None, architecture)


def _add_vocabulary(gguf: Any, writer: Any, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.token_type)
    kinds = gguf.GGUFValueType
    writer.add_key_value(gguf.Keys.Tokenizer.MERGES, vocabulary.merges, kinds.ARRAY, kinds.STRING)
    writer.add_bos_token_id(vocabulary.separator)
    writer.add_eos_token_id(vocabulary.separator)
    writer.add_add_bos_token(vocabulary.begins_texts)
