"""The content of a transformers ``config.json`` as a configuration: its sizes have archbench's names and can vary."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from archbench import ModelConfig
from archbench.errors import CheckpointError, ConfigError, one_line

SIZES: dict[str, tuple[str, ...]] = {
    "n_layer": ("num_hidden_layers", "n_layers"),
    "d_model": ("hidden_size", "d_model"),
    "n_head": ("num_attention_heads", "num_heads", "n_heads"),
    "n_kv_head": ("num_key_value_heads",),
    "d_head": ("head_dim",),
    "n_group": ("n_groups",),
    "d_ff": ("moe_intermediate_size", "intermediate_size", "n_inner", "ffn_hidden_size", "ffn_dim"),
    "d_state": ("state_size",),
}
"""A size here -> its names in transformers; the first that a family has. ``attribute_map`` adds a family's own."""

_KEPT_ENDINGS = ("_size", "_dim", "_rank", "_heads", "_groups")
_NO_SIZE = ("vocab_size", "chunk_size", "layer_norm_size")

OWN_CACHE = ("minimax",)
"""Model types that decode from a cache of a class of their own, and refuse transformers' static one."""

Fields = dict[str, Any]


@dataclass(frozen=True)
class Code:
    """Classes in code beside a configuration: of its configuration, and of the causal language model."""

    config: Any
    model: Any


class HFConfig(ModelConfig):
    """A published configuration and its sizes; one that it does not have is null."""

    code: ClassVar[Code | None] = None
    """Of the type that a name with ``hf-code:`` leads to. It is no field: data can name no code."""

    published: Fields = Field(description="the content of config.json, as transformers reads it")
    n_layer: int | None = Field(None, gt=0, description="L, blocks; lists with an entry a layer repeat their pattern")
    d_model: int | None = Field(None, gt=0, description="C, width of the hidden states")
    n_head: int | None = Field(None, gt=0, description="H, query heads, or heads of a recurrence")
    n_kv_head: int | None = Field(None, gt=0, description="G, key/value heads, a divisor of H")
    d_head: int | None = Field(None, gt=0, description="D, width of a head; null: C / H, or not in the configuration")
    n_group: int | None = Field(None, gt=0, description="groups of heads that share their keys in a recurrence")
    d_ff: int | None = Field(None, gt=0, description="F, width of the feed-forward layer, or of an expert")
    d_state: int | None = Field(None, gt=0, description="N, size of the recurrent state a channel")

    @model_validator(mode="after")
    def _legal(self) -> Self:
        found = sizes_of(self.published, self.code)
        for name in SIZES:
            if name not in found and getattr(self, name) is not None:
                cause = f"a {self.published['model_type']} has no such size in its configuration"
                raise ConfigError(f"HFConfig.{name}", cause, f"It has {', '.join(found)}")
        if self.n_head and self.n_kv_head and self.n_head % self.n_kv_head:
            cause = f"{self.n_kv_head} key/value heads do not divide {self.n_head} query heads"
            raise ConfigError("HFConfig.n_kv_head", cause, "Choose a divisor")
        if self.d_model and self.n_head and "d_head" not in found and self.d_model % self.n_head:
            cause = f"{self.n_head} heads do not divide d_model = {self.d_model}"
            raise ConfigError("HFConfig.n_head", cause, "Choose one of its divisors")
        if any(getattr(self, name) != value for name, (_, value) in found.items()):
            try:
                _read(self.fields(), self.code)
            except CheckpointError as error:
                raise ConfigError("HFConfig", error.cause, "Choose sizes that fit each other") from None
        return self

    @classmethod
    def of(cls, published: Mapping[str, Any], *, longest: int | None = None) -> Self:
        """The configuration as published, with a context of at most ``longest`` positions.

        Raises:
            CheckpointError: transformers does not know this kind of model, or refuses the configuration.
        """
        plain = _read(published, cls.code)
        if not isinstance(getattr(plain, "vocab_size", None), int):
            raise _refused("vocab_size", "it has none", "Correct config.json, or get it again")
        length = getattr(plain, "max_position_embeddings", None)
        length = length if isinstance(length, int) else _UNBOUNDED
        found = {name: value for name, (_, value) in sizes_of(published, cls.code).items()}
        return cls(
            vocab_size=plain.vocab_size,
            context_length=length if longest is None else min(length, longest),
            published=dict(published),
            **found,
        )

    def fields(self) -> Fields:
        """The content of a ``config.json`` with these sizes, this context and vocabulary."""
        found = sizes_of(self.published, self.code)
        changed = {key: getattr(self, name) for name, (key, value) in found.items() if getattr(self, name) != value}
        plain = _read(self.published, self.code)
        fields = {**self.published, **changed, "vocab_size": self.vocab_size}
        if "n_layer" in found and (L := found["n_layer"][1]) != self.n_layer:
            for key, value in self.published.items():
                if "layer" in key and key != "mlp_only_layers" and isinstance(value, list) and len(value) == L:
                    fields[key] = [value[layer % L] for layer in range(self.n_layer or 0)]
        position = _key(plain, "max_position_embeddings")
        if hasattr(plain, position) and (not _scaled(plain) or self.context_length > getattr(plain, position)):
            fields[position] = self.context_length
        return fields

    def as_transformers(self) -> Any:
        """The configuration object of transformers, or of the code."""
        return transformers_config(self.fields(), self.code)


_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
"""Ids are read like any others: none is padding, whose embedding would never learn."""

_HOW = "_implementation"
"""Fields that say how attention or experts are computed: transformers would fetch and run the code of ``ORG/NAME``."""

_UNBOUNDED = 2048
"""T of a model that says no limit, as recurrent ones do."""


def sizes_of(published: Mapping[str, Any], code: Code | None = None) -> dict[str, tuple[str, int]]:
    """The sizes that a configuration has: name here -> transformers' name and its value."""
    plain, declared, found = _read(published, code), _declared(published, code), {}
    for name, candidates in SIZES.items():
        for candidate in candidates:
            key = _key(plain, candidate)
            value = getattr(plain, key, None) if key in declared else None
            if key == "n_inner" and key in declared and value is None:
                value = 4 * plain.hidden_size  # as the blocks of GPT-2 do
            if type(value) is int and value > 0:
                found[name] = (key, value)
                break
    return found


def _declared(published: Mapping[str, Any], code: Code | None) -> set[str]:
    """Fields that the configuration is made of; others are derived from them."""
    return {*getattr(type(_read(published, code)), "__dataclass_fields__", ()), *published}


def kept_sizes(published: Mapping[str, Any], code: Code | None = None) -> list[str]:
    """Sizes of the configuration that matching does not vary, by transformers' names."""
    plain, declared = _read(published, code).to_dict(), _declared(published, code)
    varied = {key for key, _ in sizes_of(published, code).values()}
    sizes = [key for key, value in plain.items() if type(value) is int and key.endswith(_KEPT_ENDINGS)]
    return [key for key in sizes if key in declared and key not in varied and key not in _NO_SIZE]


def transformers_config(fields: Mapping[str, Any], code: Code | None = None) -> Any:
    """The object of transformers, or of ``code``, for the content of a ``config.json``.

    Raises:
        CheckpointError: transformers does not know this kind of model, or refuses the configuration.
    """
    kind = fields.get("model_type")
    family = _known(kind, fields) if code is None else code.config
    if "text_config" in fields:
        step = "Write its text_config, which has a model_type of its own, as config.json"
        raise _refused("text_config", f"a {kind} reads more than text", step)
    if code is None and family not in import_module("transformers").MODEL_FOR_CAUSAL_LM_MAPPING:
        raise _refused("model_type", f"a {kind} is no causal language model", "Name a decoder")
    if fields.get("is_encoder_decoder"):
        raise _refused("is_encoder_decoder", f"a {kind} is no causal language model", "Name a decoder")
    if fields.get("quantization_config") is not None:
        raise _refused("quantization_config", "its weights are quantised", "Name the model that they were made from")
    plain = {name: value for name, value in fields.items() if not name.endswith(_HOW)}
    try:
        return family.from_dict({**plain, **dict.fromkeys(_SPECIAL)})
    except Exception as error:  # noqa: BLE001 - each family validates in its own way
        cause, step = f"transformers refuses it: {one_line(error)}", "Correct config.json, or get it again"
        raise CheckpointError(f"configuration of a {kind}", cause, step) from None


def _known(kind: Any, fields: Mapping[str, Any]) -> Any:
    """transformers' class of configurations for a ``model_type``."""
    known: Any = import_module("transformers").CONFIG_MAPPING
    if kind not in known and find_spec("fla") is not None:
        import_module("fla.models")  # it adds its families to transformers' lists
    if kind in known:
        return known[kind]
    if "auto_map" in fields:
        cause = f"a {kind} is code beside it, which hf: does not run"
        step = "Read the code. If you trust it, name it so: hf-code:PLACE"
        raise _refused("auto_map", cause, step)
    step = "Upgrade transformers, or write a plugin: archbench new my-arch --wrap transformers"
    raise _refused("model_type", f"transformers {_version()} has no model of type {kind!r}", step)


def _refused(field: str, cause: str, step: str) -> CheckpointError:
    return CheckpointError(f"published configuration, field {field}", cause, step)


def _read(published: Mapping[str, Any], code: Code | None) -> Any:
    return _parsed(json.dumps(published, sort_keys=True), code)


@lru_cache(maxsize=32)
def _parsed(text: str, code: Code | None) -> Any:
    return transformers_config(json.loads(text), code)


def _key(plain: Any, name: str) -> str:
    return str(getattr(plain, "attribute_map", {}).get(name, name))


def _scaled(plain: Any) -> bool:
    """Whether rotary frequencies depend on the longest position."""
    rope = getattr(plain, "rope_parameters", None) or {}
    kinds = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    return any(kind.get("rope_type", "default") != "default" for kind in kinds)


def _version() -> str:
    import transformers

    return str(transformers.__version__)
