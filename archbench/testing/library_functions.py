"""The functions of torch, archbench and Python's clock, which a plugin may call and must not replace."""

from __future__ import annotations

import operator
import sys
from collections.abc import Mapping
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

_Place = tuple[str, str]
"""Whole name of a function, and its name in its namespace."""

_spaces: list[tuple[Mapping[str, Any], Any, list[_Place]]] = []
"""Namespaces, the module or class whose each is, and the places in it."""

_walked: set[str] = set()
"""Names of the modules that have been seen, those without a place among them."""


class Functions:
    """What was found at every place; two are equal unless a function was replaced between them.

    What torch's own compiler and optimizers wrap around torch's functions is no replacement.
    """

    def __init__(self) -> None:
        _walk()
        self._found = [namespace.copy() for namespace, _, _ in _spaces]  # type: ignore[attr-defined]

    def replaced(self, later: Functions) -> list[tuple[str, Any, Any]]:
        """Whole name, function and what is there ``later``, of those that were replaced."""
        return [
            (whole, before.get(name), after.get(name))
            for (_, _, places), before, after in zip(_spaces, self._found, later._found, strict=False)  # later, more
            if not _unchanged(before, after)
            for whole, name in places
            if _differ(before.get(name), after.get(name))
        ]

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
        for (namespace, owner, places), before in zip(_spaces, self._found, strict=False):
            for _, name in places:
                function = before.get(name)
                if not _differ(function, namespace.get(name)):
                    continue
                if function is None:  # it was inherited
                    delattr(owner, name)
                else:
                    setattr(owner, name, function)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Functions) and not self.replaced(other)

    __hash__ = None  # type: ignore[assignment]


def _unchanged(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether they hold the same things under the same names in the same order."""
    return (
        len(before) == len(after)
        and all(map(operator.is_, before.values(), after.values()))
        and all(map(operator.is_, before, after))
    )


def _walk() -> None:
    """Find the functions of modules that were imported since the last time."""
    for name in [name for name in [*sys.modules] if name not in _walked]:
        _walked.add(name)
        if name in _MODULES or name.startswith(_PACKAGES):
            if isinstance(module := sys.modules[name], ModuleType):
                _walk_module(module)
            if name == "torch":
                _walk_class("torch.Tensor", torch.Tensor)


def _walk_module(module: ModuleType) -> None:
    places = []
    for name, value in [*vars(module).items()]:
        if isinstance(value, type):
            if value.__module__ == module.__name__ and value is not torch.Tensor:
                _walk_class(f"{module.__name__}.{name}", value)
        elif callable(value):
            places.append((f"{module.__name__}.{name}", name))
    _spaces.append((vars(module), module, places))


def _walk_class(whole: str, kind: type) -> None:
    names = {name: None for name, value in vars(kind).items() if _is_function(value)}
    if issubclass(kind, nn.Module):
        names |= dict.fromkeys(_INHERITED)
    elif issubclass(kind, torch.Tensor | torch.optim.Optimizer):
        bases = kind.__mro__[1:-1]
        names |= {name: None for base in bases for name, value in vars(base).items() if _is_function(value)}
    _spaces.append((vars(kind), kind, [(f"{whole}.{name}", name) for name in names]))


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
