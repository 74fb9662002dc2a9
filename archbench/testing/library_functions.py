"""The functions of torch, archbench and Python's clock, which a plugin may call and must not replace."""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import nn

import archbench.measure.scoring  # so that a plugin is not the first to import what scores it
import archbench.training.loop  # noqa: F401

_INHERITED = ("__call__", "_call_impl", "__getattr__", "__setattr__", "train", "eval", "forward", "parameters")
"""Methods of every module that a subclass of ``nn.Module`` might be given anew."""

_MODULES = ("torch", "torch.nn.functional", "torch.nn.init", "torch.nn.utils.clip_grad", "torch.autograd", "time")
_PACKAGES = ("torch.nn.modules.", "torch.optim.", "archbench.")
_TORCH = str(Path(torch.__file__).parent)

_places: list[tuple[str, Mapping[str, Any], Any, str]] = []
"""Whole name, namespace, the module or class whose it is, and name there."""

_walked: set[str] = set()


class Functions:
    """What was found at every place; two are equal unless a function was replaced between them.

    What torch's own compiler and optimizers wrap around torch's functions is no replacement.
    """

    def __init__(self) -> None:
        _walk()
        self._found = [namespace.get(name) for _, namespace, _, name in _places]

    def replaced(self, later: Functions) -> list[tuple[str, Any, Any]]:
        """Whole name, function and what is there ``later``, of those that were replaced."""
        if all(map(operator.is_, self._found, later._found)):
            return []
        places = zip(_places, self._found, later._found, strict=False)  # later there may be more
        return [(place[0], one, other) for place, one, other in places if _differ(one, other)]

    def wrapped_in(self, later: Functions) -> str:
        """The file whose functions wrap all that were replaced, and call them; "" where one does not."""
        files = {
            other.__code__.co_filename
            if getattr(other, "__wrapped__", None) is one and isinstance(other, FunctionType)
            else ""
            for _, one, other in self.replaced(later)
        }
        return files.pop() if len(files) == 1 else ""

    def restore(self) -> None:
        """Put them back."""
        for (_, namespace, owner, name), function in zip(_places, self._found, strict=False):
            if not _differ(function, namespace.get(name)):
                continue
            if function is None:  # it was inherited
                delattr(owner, name)
            else:
                setattr(owner, name, function)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Functions) and not self.replaced(other)

    __hash__ = None  # type: ignore[assignment]


def _walk() -> None:
    """Find the functions of modules that were imported since the last time."""
    for name in [*sys.modules]:
        if name not in _walked and (name in _MODULES or name.startswith(_PACKAGES)):
            _walked.add(name)
            if isinstance(module := sys.modules[name], ModuleType):
                _places.extend(_in_module(module))
            if name == "torch":
                _places.extend(_in_class("torch.Tensor", torch.Tensor))


def _in_module(module: ModuleType) -> Iterator[tuple[str, Mapping[str, Any], Any, str]]:
    for name, value in [*vars(module).items()]:
        if isinstance(value, type):
            if value.__module__ == module.__name__ and value is not torch.Tensor:
                yield from _in_class(f"{module.__name__}.{name}", value)
        elif callable(value):
            yield f"{module.__name__}.{name}", vars(module), module, name


def _in_class(whole: str, kind: type) -> Iterator[tuple[str, Mapping[str, Any], Any, str]]:
    names = {name: None for name, value in vars(kind).items() if _is_function(value)}
    if issubclass(kind, nn.Module):
        names |= dict.fromkeys(_INHERITED)
    elif issubclass(kind, torch.Tensor | torch.optim.Optimizer):
        bases = kind.__mro__[1:-1]
        names |= {name: None for base in bases for name, value in vars(base).items() if _is_function(value)}
    for name in names:
        yield f"{whole}.{name}", vars(kind), kind, name


def _is_function(value: Any) -> bool:
    return callable(value) or isinstance(value, property | staticmethod | classmethod)


def _differ(one: Any, other: Any) -> bool:
    if one is other:
        return False
    while _of_torch(other) and hasattr(other, "__wrapped__"):
        other = other.__wrapped__
    while _of_torch(one) and hasattr(one, "__wrapped__"):
        one = one.__wrapped__
    if one is None and _of_torch(other):  # an optimizer's inherited step, profiled
        return False
    return one is not other and not (_of_torch(other) and other.__code__.co_filename.startswith(f"{_TORCH}/_dynamo"))


def _of_torch(function: Any) -> bool:
    return isinstance(function, FunctionType) and function.__code__.co_filename.startswith(_TORCH)
