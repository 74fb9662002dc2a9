"""Weights and configurations of published models: the same tables serve the hooks that import and that export them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from archbench.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from archbench.config import ModelConfig

Source = str | tuple[str, ...] | list[tuple[str, ...]]
"""A published name; several, whose rows are concatenated; or a list of tuples of names, one per entry of a stack."""

_LAYER = "model.layers.*"

LLAMA_NAMES: dict[str, str | tuple[str, ...]] = {
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
"""The LLaMA family: own parameter -> its name in transformers' ForCausalLM. Names of absent parts are ignored."""

LLAMA_FIELDS = {
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "d_model": "hidden_size",
    "d_ff": "intermediate_size",
    "norm_eps": "rms_norm_eps",
}
"""The LLaMA family: own field -> field of a transformers config.json. Key/value heads differ between its members."""

LLAMA_ATTENTION_FIELDS = {"n_kv_head": "num_key_value_heads", "d_head": "head_dim", "rope_theta": "rope_theta"}
"""As :data:`LLAMA_FIELDS`: written always, and read by each member in its own way, because files may leave them out."""

IRRELEVANT: dict[str, str] = {
    field: reason
    for reason, fields in {
        "it tells where the file is from": "architectures auto_map dtype is_llama_config torch_dtype "
        "transformers.js_config transformers_version unsloth_fixed unsloth_version",
        "special tokens are read like any others, and nothing is padded": "bos_token_id decoder_start_token_id "
        "eos_token_id pad_token_id sep_token_id unk_token_id",
        "it draws the weights that the published ones replace": "final_w_init_variance_scale initializer_range "
        "rescale_prenorm_residual time_step_floor time_step_max time_step_min time_step_rank w_init_variance_scale",
        "it sets speed, memory or rounding": "attn_mode chunk_size chunk_size_feed_forward fuse_cross_entropy "
        "fuse_linear_cross_entropy fuse_norm fuse_swiglu gradient_checkpointing pretraining_tp "
        "reorder_and_upcast_attn use_cache",
        "it sets what is returned beside the logits": "output_attentions output_hidden_states return_dict",
        "experts are balanced in training whether their router's logits are returned or not": "output_router_logits",
        "it is of heads for other tasks": "id2label label2id predict_special_tokens problem_type "
        "summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj "
        "task_specific_params",
        "it is an old name of what n_positions or max_position_embeddings says": "max_sequence_length n_ctx",
    }.items()
    for field in fields.split()
}
"""Fields of published configurations that change no logit and no update, with the reason."""

_UNSUPPORTED = {
    "add_cross_attention": False,
    "attention_dropout": 0.0,
    "is_encoder_decoder": False,
    "quantization_config": None,
    "rope_interleaved": False,
    "use_l2warp": False,
}
"""Fields of which no architecture here has more than this value."""


def published_weights(
    state_dict: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    names: Mapping[str, Source],
    *,
    model: str,
    transposed: Collection[str] = (),
    tied_head: str | None = None,
) -> dict[str, Tensor]:
    """A model's state dict, made from published weights; nothing may be missing or left over.

    Args:
        state_dict: published name -> tensor.
        expected: the model's own state dict, as on the meta device: names and shapes.
        names: own name -> published name, or several (:data:`Source`). ``*`` stands for the number of the layer on both
            sides.
        model: the class that published weights must come from, for messages, as in ``LlamaForCausalLM``.
        transposed: own names, with ``*``, of weights that are published as (in, out).
        tied_head: published name of an optional head, which must equal ``embedding.weight``.

    Raises:
        CheckpointError: a tensor is missing, left over or of another shape, or the head is not tied.
    """
    given = dict(state_dict)
    sources = {name: _sources(names, name) for name in expected}
    if tied_head is not None and (head := given.pop(tied_head, None)) is not None:
        embedding = sources["embedding.weight"][0][0]
        if not torch.equal(given.setdefault(embedding, head), head):
            cause = f"it differs from {embedding}, but the configuration ties the two"
            raise unusable(model, tied_head, cause)
    wanted = {part for stack in sources.values() for parts in stack for part in parts}
    if missing := sorted(wanted - given.keys()):
        raise unusable(model, missing[0], f"it is missing, as are {len(missing) - 1} others")
    if unexpected := sorted(given.keys() - wanted):
        cause = f"a model of this configuration has no such tensor ({len(unexpected)} are left over)"
        raise unusable(model, unexpected[0], cause)
    weights = {}
    for name, stack in sources.items():
        # Projections published as 1×1 convolutions are stored (in, out).
        turned = _pattern(name) in transposed
        entries = [torch.cat([given[part].t() if turned else given[part] for part in parts]) for parts in stack]
        tensor = torch.stack(entries) if isinstance(names[_pattern(name)], list) else entries[0]
        if tensor.shape != expected[name].shape:
            shapes = f"{(*tensor.shape,)}, the configuration's {(*expected[name].shape,)}"
            raise unusable(model, stack[0][0], f"as {name} its shape is {shapes}")
        weights[name] = tensor
    return weights


def unusable(model: str, tensor: str, cause: str) -> CheckpointError:
    """The error of weights that do not fit."""
    remedy = f"Pass weights of {model}, and --set their sizes (vocab_size, n_layer, …)"
    return CheckpointError(f"weights, tensor {tensor}", cause, remedy)


def exported_weights(
    state_dict: Mapping[str, Tensor],
    names: Mapping[str, Source],
    *,
    rows: Mapping[str, Sequence[int]] | None = None,
    transposed: Collection[str] = (),
) -> dict[str, Tensor]:
    """A model's state dict by its published names: the inverse of :func:`published_weights`. Nothing is copied.

    Args:
        state_dict: own name -> tensor.
        names, transposed: as there.
        rows: own name, with ``*`` -> rows of each published tensor that is concatenated there; else they are equal.
    """
    weights: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        pattern = _pattern(name)
        entries = tensor.unbind() if isinstance(names[pattern], list) else (tensor,)
        for parts, entry in zip(_sources(names, name), entries, strict=True):
            sizes = list((rows or {}).get(pattern) or [len(entry) // len(parts)] * len(parts))
            for part, piece in zip(parts, torch.split(entry, sizes), strict=True):
                weights[part] = piece.t() if pattern in transposed else piece
    return weights


def llama_rows(config: Any) -> dict[str, tuple[int, ...]]:
    """Rows of queries, keys and values in :data:`LLAMA_NAMES`, for :func:`exported_weights`."""
    keys = config.n_kv_head * config.d_head
    return {"blocks.*.attention.qkv.weight": (config.n_head * config.d_head, keys, keys)}


def _sources(names: Mapping[str, Source], name: str) -> list[tuple[str, ...]]:
    """The published names of one parameter, with the number of its layer."""
    source = names[_pattern(name)]
    stack = source if isinstance(source, list) else [(source,) if isinstance(source, str) else source]
    layer = next((part for part in name.split(".") if part.isdigit()), "*")
    return [tuple(part.replace("*", layer) for part in parts) for parts in stack]


def _pattern(name: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def published_fields(
    published: Mapping[str, Any],
    names: Mapping[str, str],
    *,
    model_type: str,
    absent: Mapping[str, Any] | None = None,
    only: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Fields of a :class:`archbench.ModelConfig`, taken from a transformers ``config.json``.

    Args:
        published: content of the ``config.json``.
        names: own field -> published field.
        model_type: required value of the published field of that name.
        absent: published field -> its value if absent or null; every other field in ``names`` is required.
        only: published field -> the only value that this architecture supports, assumed if absent. Null counts as
            absent, but where that value is True: it would be read as False.

    Raises:
        CheckpointError: another model, a field is missing, or its value is not supported.
    """
    kind = published.get("model_type")
    if kind != model_type:
        raise unlike("model_type", f"it is {kind!r}, but this architecture's is {model_type!r}")
    for field, wanted in {**_UNSUPPORTED, **(only or {})}.items():
        value = published.get(field, wanted)
        if value != wanted and (value is not None or wanted is True):
            has = "no such thing" if wanted is None else f"only {wanted!r}"
            raise unlike(field, f"it is {str(value)[:60]!r}, but this architecture has {has}")
    fields = {}
    for own, field in names.items():
        value = published.get(field)
        if value is None:
            if field not in (absent or {}):
                raise unlike(field, "it is missing")
            value = (absent or {})[field]
        if not isinstance(value, int | float):
            raise unlike(field, f"it is {str(value)[:60]!r}, and must be a number")
        fields[own] = value
    return fields


def exported_fields(
    config: ModelConfig,
    names: Mapping[str, str],
    *,
    model_type: str,
    architectures: str,
    only: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of a transformers ``config.json``: the inverse of :func:`published_fields`.

    Args:
        names, model_type, only: as there.
        architectures: the class that computes it, as in ``LlamaForCausalLM``.
    """
    fields = {published: getattr(config, own) for own, published in names.items()}
    return {"architectures": [architectures], "model_type": model_type, **fields, **(only or {})}


class FieldsRead(Mapping[str, Any]):
    """A published configuration that remembers which of its fields were read."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields
        self._read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self._read.add(name)
        return self._fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def refuse_unread(self) -> None:
        """Refuse what nobody read: a field that may change what is computed. Null is the lack of something.

        Raises:
            CheckpointError: names the first such field.
        """
        for name, value in self._fields.items():
            if name not in self._read and value is not None and name not in IRRELEVANT and not name.startswith("_"):
                cause = f"it is {str(value)[:60]!r}, and this architecture does not read it"
                raise unlike(name, cause, "If it changes nothing that is computed, delete it from the configuration")


def published_rope_theta(published: Mapping[str, Any], *, absent: float = 10_000.0, rotated: float = 1) -> float:
    """The base of plain rotary frequencies: ``rope_parameters`` as transformers 5 writes them, or ``rope_theta``.

    Args:
        absent: the base where the file names none.
        rotated: the share of a head's channels that this architecture rotates.

    Raises:
        CheckpointError: the frequencies are scaled, differ between layers, or rotate another share of the channels.
    """
    for field in ("rope_parameters", "rope_scaling"):
        rope = published.get(field)
        if rope is None:
            continue
        plain = isinstance(rope, Mapping) and not any(isinstance(value, Mapping) for value in rope.values())
        kind = rope.get("rope_type", rope.get("type", "default")) if plain else None
        if kind != "default" or rope.get("partial_rotary_factor", rotated) != rotated:
            raise unlike(field, f"it is {str(rope)[:90]}, but this architecture has only plain rotary positions")
    rope = published.get("rope_scaling") or published.get("rope_parameters") or {}  # in this order in transformers
    theta = rope.get("rope_theta", published.get("rope_theta"))
    return absent if theta is None else float(theta)


def unlike(field: str, cause: str, step: str = "Use weights of this architecture") -> CheckpointError:
    """The error of a configuration that this architecture does not support."""
    return CheckpointError(f"published configuration, field {field}", cause, step)


def inexpressible(config: ModelConfig, field: str, published: str) -> UsageError:
    """The error of a configuration that the published class cannot compute.

    Args:
        published: what that class has instead, as a clause.
    """
    cause = f"it is {getattr(config, field)!r}, and {published}"
    return UsageError(f"export, field {field} of {type(config).__name__}", cause, f"Train it with another {field}")
