"""A state_dict holds the whole model: another one that loads it from a file gives the same logits."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from archbench.errors import one_line
from archbench.testing.attributes import module_attributes
from archbench.testing.evaluation import Fault, and_more, check
from archbench.testing.subject import Difference, Subject, logits_of
from archbench.training.weights import WEIGHTS, read_weights, write_weights


@check(needs=("logits",))
def check_save_load(subject: Subject) -> str:
    """A run is resumed, and weights are passed on, as a state_dict: what is not in it is lost with them."""
    saved, loaded = subject.model(), subject.build(subject.seed + 1).eval()
    tokens = subject.tokens(2, subject.T)
    expected = logits_of(saved, tokens, seed=0)  # before it is saved: what a forward pass leaves behind is saved too
    with tempfile.TemporaryDirectory(prefix=f"archbench-reload-{os.getpid()}-") as folder:
        path = Path(folder) / WEIGHTS
        try:
            write_weights(saved.state_dict(), path)
        except (AttributeError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise Fault(
                f"its state_dict cannot be written as safetensors ({one_line(error)}): keep tensors in it and nothing "
                "else"
            ) from error
        size = path.stat().st_size
        weights = read_weights(path)
    try:
        loaded.load_state_dict(weights)
    except RuntimeError as error:
        raise Fault(
            f"a new model does not take the state_dict of another: {one_line(error)}. Both have to have the same "
            "tensors from the start, before any forward pass"
        ) from error
    found = logits_of(loaded, tokens, seed=0)
    if not torch.equal(found, expected):
        difference = f", {Difference.between(found, expected)}" if found.shape == expected.shape else ""
        raise Fault(
            f"a model of another seed that has loaded its weights gives other logits{difference}: "
            f"{_unequal(saved, loaded, set(weights))}"
        )
    _check_parameters(saved, loaded)
    return f"{size:,} bytes, and the same logits bit for bit"


def _check_parameters(saved: nn.Module, loaded: nn.Module) -> None:
    """Training goes on as before: what was tied still is, and what learns still does."""
    ours, theirs = (dict(model.named_parameters(remove_duplicate=False)) for model in (saved, loaded))
    for name, other in combinations(ours, 2):
        if ours[name] is ours[other] and theirs[name] is not theirs[other]:
            raise Fault(
                f"{other!r} and {name!r} are one parameter, and two after loading a state_dict: a run that goes on "
                "would train them apart, and count both. Write into the parameter that is there, as torch does"
            )
    for name, parameter in ours.items():
        if parameter.requires_grad != theirs[name].requires_grad:
            when = "before" if parameter.requires_grad else "after"
            raise Fault(
                f"{name!r} asks for a gradient only {when} a state_dict is loaded, so a run that goes on would "
                "train another model: leave requires_grad as build sets it"
            )


def _unequal(saved: nn.Module, loaded: nn.Module, names: set[str]) -> str:
    """Where the two models differ although one has loaded the other's weights."""
    ours, theirs = ({**dict(m.named_parameters()), **dict(m.named_buffers()), **_kept(m)} for m in (saved, loaded))
    different = [name for name, value in ours.items() if name in theirs and not _same(value, theirs[name])]
    if not different:
        return "look for what the model computes with that is in no tensor of its state_dict"
    # A tensor that is saved and still differs is changed by load_state_dict, or by a forward pass.
    name = next((name for name in different if name not in names), different[0])
    if name in names:
        return f"{name!r} is in the state_dict and differs after loading all the same{and_more(different)}"
    return (
        f"{name!r} differs and is not in the state_dict{and_more(different)}. What a model computes with and cannot "
        "derive from its configuration has to be an nn.Parameter, or a buffer from register_buffer that is persistent"
    )


def _kept(model: nn.Module) -> dict[str, object]:
    """Path -> tensor or number that a model keeps where ``state_dict`` does not look."""
    return {name: value for path, kept in module_attributes(model) for name, value in _values(path, kept)}


def _values(path: str, value: object, depth: int = 3) -> Iterator[tuple[str, object]]:
    if isinstance(value, Tensor | int | float):
        yield path, value
    elif isinstance(value, nn.Module):
        for name, tensor in value.state_dict().items():
            yield f"{path}.{name}", tensor
    elif isinstance(value, list | tuple | dict) and depth:
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _values(f"{path}[{key!r}]", item, depth - 1)


def _same(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return type(one) is type(other) and one == other
