"""A causal language model of transformers behind archbench's interface, and its static cache."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from archbench.errors import UsageError
from archbench.kernels.triton_guard import without_triton

from .foreign_config import OWN_CACHE, Code, HFConfig

transformers: Any = import_module("transformers")

PROBED = (2, 3)
"""B and T of the pass on tensors without values that finds the shapes of the cache."""

WEIGHTS_DTYPE = torch.bfloat16
"""Of that pass: what is then of another dtype is kept in that one whatever the weights' is."""

_SHAPES: dict[tuple[Code | None, str], list[Shapes]] = {}
"""Code and content of a configuration -> shapes of its cache, found once, in twenty times the time of a small model."""

Shapes = tuple[tuple[str, int, tuple[int, ...], torch.dtype], ...]
"""Of a layer's cache: which tensor, its number, its shape and its dtype."""


class ForeignModel(nn.Module):
    """tokens (B, T) int64 -> logits (B, T, V), as transformers computes them."""

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        self.config = config
        self.inner: Any = family_of(config)._from_config(config.as_transformers(), dtype=torch.float32)

    def forward(self, tokens: Tensor) -> Tensor:
        self.check_context(tokens.shape[1])
        with self._countable(not _has_values(next(self.inner.parameters()))):
            logits: Tensor = self.inner(tokens, use_cache=False).logits
        return logits

    def check_context(self, positions: int) -> None:
        """Raises UsageError for more positions than the context has: transformers would read on."""
        T = self.config.context_length
        if positions > T:
            raise UsageError("tokens", f"{positions} positions are more than the context of {T}", f"Pass {T} at most")

    def inactive_parameters(self, tokens: int = 1) -> int:
        """Of the experts that a token, or so many at the most, is not sent to."""
        published, inactive = self.inner.config, 0
        chosen = next((getattr(published, name) for name in _CHOSEN if getattr(published, name, None)), None)
        for module in self.inner.modules():
            if type(module).__name__.endswith("Experts") and chosen is not None:
                stacks = [parameter for parameter in module.parameters(recurse=False) if parameter.dim() == 3]
                inactive += sum(stack.numel() // len(stack) * max(0, len(stack) - chosen * tokens) for stack in stacks)
        return inactive

    def uncounted_flops(self, batch_size: int, context_length: int) -> Mapping[str, float]:
        """Triangular solves in a chunk; running sums of decays are additions, no part of model FLOPs."""
        seen = _Uncounted()
        with self._without_values() as run, seen:
            run(torch.zeros(batch_size, context_length, dtype=torch.int64), use_cache=False)
        return seen.flops

    @contextmanager
    def _countable(self, shapes_alone: bool) -> Iterator[None]:
        """On tensors without values attention and experts are plain products: fused ones are not counted in full."""
        published = self.inner.config
        before = {name: getattr(published, name) for name in _PLAIN if getattr(published, name, None) is not None}
        for name in before if shapes_alone else ():
            setattr(published, name, _PLAIN[name])
        try:
            yield
        finally:
            for name, value in before.items() if shapes_alone else ():
                setattr(published, name, value)

    @contextmanager
    def _without_values(self, dtype: torch.dtype | None = None) -> Iterator[Any]:
        """The inner model as a function on tensors that have shapes alone, and another dtype if one is given."""
        with without_triton():
            from torch._subclasses.fake_tensor import FakeTensorMode

        every = self.inner.named_parameters, self.inner.named_buffers
        named = [one for kind in every for one in kind(remove_duplicate=False)]
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            FakeTensorMode(allow_non_fake_inputs=True),
            torch.device("cpu"),
            self._countable(True),
        ):
            weights = {name: torch.empty(tensor.shape, dtype=dtype or tensor.dtype) for name, tensor in named}
            yield lambda tokens, **given: functional_call(self.inner, weights, (tokens,), given, tie_weights=False)


class CachedForeignModel(ForeignModel):
    """One that decodes from transformers' static cache."""

    def __init__(self, config: HFConfig) -> None:
        super().__init__(config)
        # Before anything is timed; a model on the meta device is built often and seldom asked for its cache.
        self._shapes = None if next(self.inner.parameters()).is_meta else self._shapes_of_cache()
        keeps = "logits_to_keep" in inspect.signature(type(self.inner).forward).parameters
        self._last = {"logits_to_keep": 1} if keeps else {}

    def new_cache(self, batch_size: int, capacity: int) -> ForeignCache:
        """Room for ``capacity`` positions, allocated."""
        self.check_context(capacity)
        weight, shapes_of_layers = next(self.inner.parameters()), self._shapes or self._shapes_of_cache()
        static = transformers.StaticCache(config=self.inner.config, max_cache_len=capacity)
        for layer, shapes in zip(static.layers, shapes_of_layers, strict=True):
            _allocate(layer, shapes, batch_size, weight)
        return ForeignCache(static)

    def extend(self, tokens: Tensor, cache: ForeignCache) -> Tensor:
        """Read tokens (B, T) after those in the cache; logits (B, V) after the last one."""
        self.check_context(cache.length + tokens.shape[1])
        # A recurrence begins with any number of tokens; some families go on with one at a time only.
        size = 1 if cache.recurrent and cache.length else tokens.shape[1]
        for start in range(0, tokens.shape[1], size):
            part = tokens[:, start : start + size]
            logits: Tensor = self.inner(part, cache=cache.static, use_cache=True, **self._last).logits[:, -1]
        cache.length += tokens.shape[1]
        return logits

    def _shapes_of_cache(self) -> list[Shapes]:
        """What each layer keeps, found by a pass on tensors without values, in :data:`WEIGHTS_DTYPE`."""
        key = self.config.code, json.dumps(self.config.fields(), sort_keys=True)
        if key not in _SHAPES:
            _SHAPES[key] = self._found_shapes()
        return _SHAPES[key]

    def _found_shapes(self) -> list[Shapes]:
        B, T = PROBED
        with self._without_values(WEIGHTS_DTYPE) as run:
            static = transformers.StaticCache(config=self.inner.config, max_cache_len=T + 1)
            run(torch.zeros(B, T, dtype=torch.int64), cache=static, use_cache=True)
            return [
                tuple((kind, number, (*tensor.shape,), tensor.dtype) for kind, number, tensor in _kept(layer))
                for layer in static.layers
            ]


class ForeignCache:
    """transformers' static cache, allocated at once: left to itself it would be allocated at the first token.

    Attributes:
        static: what the model writes to.
        length: positions read so far.
        recurrent: whether a layer keeps the state of a recurrence.
    """

    def __init__(self, static: Any) -> None:
        self.static, self.length = static, 0
        self.recurrent = any(getattr(layer, "recurrent_states", None) for layer in static.layers)

    def tensors(self) -> list[Tensor]:
        return [tensor for layer in self.static.layers for _, _, tensor in _kept(layer)]


def _kept(layer: Any) -> Iterator[tuple[str, int, Tensor]]:
    """The tensors of a layer's cache: keys and values (B, G, S, D), states of convolutions and recurrences (B, …)."""
    for kind in ("keys", "values"):
        if isinstance(tensor := getattr(layer, kind, None), Tensor):
            yield kind, 0, tensor
    for kind in ("conv_states", "recurrent_states"):
        for number, tensor in getattr(layer, kind, {}).items():
            if isinstance(tensor, Tensor):
                yield kind, number, tensor


def _allocate(layer: Any, shapes: Shapes, batch_size: int, weight: Tensor) -> None:
    empty: dict[tuple[str, int], Tensor] = {}
    for kind, number, (_, *rest), dtype in shapes:
        if kind in ("keys", "values"):
            rest[1] = 0  # S: the layer knows its own capacity
        dtype = weight.dtype if dtype == WEIGHTS_DTYPE else dtype
        empty[kind, number] = torch.empty(batch_size, *rest, dtype=dtype, device=weight.device)
    with without_triton():
        if ("keys", 0) in empty:
            layer.lazy_initialization(empty["keys", 0], empty["values", 0])
        for kind, number in empty:
            if kind.endswith("_states"):
                layer.lazy_initialization(**{kind: empty[kind, number]}, state_idx=number)


class _Uncounted(TorchDispatchMode):
    """What torch counts as nothing and families of transformers run, with its FLOPs; other operators fail the check."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops: dict[str, float] = {}

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        name = function._schema.name
        if name == "aten::cumsum" and arguments[0].is_floating_point():
            self.flops[name] = 0.0
        elif name == "aten::linalg_solve_triangular":
            A, B = arguments[:2]  # (…, N, N), (…, N, K): half of N × N multiply–adds a column, 2 FLOPs each
            self.flops[name] = self.flops.get(name, 0.0) + B.numel() * A.shape[-1]
        return function(*arguments, **(named or {}))


def _has_values(tensor: Tensor) -> bool:
    if tensor.is_meta:
        return False
    with without_triton():
        from torch._subclasses.fake_tensor import FakeTensor
    return not isinstance(tensor, FakeTensor)


_PLAIN = {"_attn_implementation": "eager", "_experts_implementation": "batched_mm"}

_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k")
"""Names of the number of experts that a token is sent to."""


def family_of(config: HFConfig) -> Any:
    """The class of causal language models with that configuration: transformers', or that of the code."""
    if config.code is not None:
        return config.code.model
    return transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config.as_transformers())]


def built(config: HFConfig) -> ForeignModel:
    """The model, at initial weights; with a cache where the family takes transformers'."""
    cached = "cache" in inspect.signature(family_of(config).forward).parameters
    cached &= config.published["model_type"] not in OWN_CACHE
    return (CachedForeignModel if cached else ForeignModel)(config)


def published_weights(config: HFConfig, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a model of this configuration by the names and in the layout of published files."""
    from transformers.core_model_loading import revert_weight_conversion

    with torch.device("meta"):
        inner = ForeignModel(config).inner
    tied = getattr(inner, "all_tied_weights_keys", {}).keys()
    weights = {name.removeprefix("inner."): tensor for name, tensor in state_dict.items()}
    reverted = revert_weight_conversion(inner, {name: one for name, one in weights.items() if name not in tied})
    return dict(reverted)
