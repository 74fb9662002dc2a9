"""What modules and caches keep in their attributes, by path."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import FunctionType, MethodType, ModuleType

import torch
from torch import Tensor, nn

_EVERY_MODULE_HAS = frozenset(vars(nn.Module()))
_WITHOUT_TENSORS = (type, ModuleType, FunctionType, MethodType, str, bytes, int, float, torch.dtype, torch.device)


def module_attributes(model: nn.Module) -> Iterator[tuple[str, object]]:
    """Attributes of the model and its modules other than parameters, buffers and submodules: path and value."""
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute not in _EVERY_MODULE_HAS:
                yield f"{name}.{attribute}" if name else attribute, value


def tensors_in(value: object, path: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that can be reached from ``value``, with its path; nothing whose id is in ``seen``."""
    if id(value) in seen or isinstance(value, _WITHOUT_TENSORS):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield path, value
        return
    parts: list[tuple[str, object]] = []
    if isinstance(value, Mapping):
        parts = [(f"{path}[{key!r}]", part) for key, part in value.items()]
    elif isinstance(value, Iterable) and hasattr(value, "__len__"):
        parts = [(f"{path}[{index}]", part) for index, part in enumerate(value)]
    parts += [(f"{path}.{name}", part) for name, part in _attributes(value)]  # also of a subclass of list
    for where, part in parts:
        yield from tensors_in(part, where, seen)


def _attributes(value: object) -> Iterator[tuple[str, object]]:
    yield from getattr(value, "__dict__", {}).items()
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                yield name, getattr(value, name)
