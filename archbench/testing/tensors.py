"""A model is its tensors: a file can hold them all, and without their values it has the same shape."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from archbench.config import ModelConfig
from archbench.errors import ArchbenchError, one_line
from archbench.testing.checks import Check, Fault
from archbench.testing.interface import dtype_name, more, raised
from archbench.testing.subject import Subject
from archbench.training.weights import WEIGHTS, read_weights, write_weights


def check_save_load(subject: Subject) -> str:
    saved, loaded = subject.model(), subject.build(subject.seed + 1).eval()
    tokens = subject.tokens(2, subject.T)
    expected = _seeded_logits(saved, tokens)  # before it is saved: what a forward pass leaves behind is saved too
    with tempfile.TemporaryDirectory(prefix="archbench-") as folder:
        path = Path(folder) / WEIGHTS
        try:
            write_weights(saved, path)
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
    found = _seeded_logits(loaded, tokens)
    if found.shape != expected.shape or not torch.equal(found, expected):
        difference = float((found - expected).abs().max()) if found.shape == expected.shape else float("nan")
        raise Fault(
            f"a model of another seed that has loaded its weights gives other logits, by up to {difference:.2g} (their "
            f"standard deviation is {float(expected.float().std()):.2g}): {_unequal(saved, loaded, set(weights))}"
        )
    return f"{size:,} bytes, and the same logits bit for bit"


def _seeded_logits(model: nn.Module, tokens: Tensor) -> Tensor:
    torch.manual_seed(0)  # noise in a forward pass is the matter of another check
    with torch.no_grad():
        logits: Tensor = model(tokens)
    return logits


def _unequal(saved: nn.Module, loaded: nn.Module, names: set[str]) -> str:
    """What the two models do not have in common although one has loaded the other's weights."""
    theirs = {**dict(loaded.named_parameters()), **dict(loaded.named_buffers()), **dict(_attributes(loaded))}
    ours = {**dict(saved.named_parameters()), **dict(saved.named_buffers()), **dict(_attributes(saved))}
    different = [name for name, value in ours.items() if name in theirs and not _same(value, theirs[name])]
    if not different:
        return "look for what the model computes with that is in no tensor of its state_dict"
    # A tensor that is saved and differs all the same is changed by load_state_dict, or by a forward pass.
    name = next((name for name in different if name not in names), different[0])
    if name in names:
        return f"{name!r} is in the state_dict and differs after loading all the same{more(different)}"
    return (
        f"{name!r} differs and is not in the state_dict{more(different)}. What a model computes with and cannot derive "
        "from its configuration has to be an nn.Parameter, or a buffer from register_buffer that is persistent"
    )


def _attributes(model: nn.Module) -> Iterator[tuple[str, object]]:
    """Tensors and numbers that a model keeps where ``state_dict`` does not look, by path."""
    internals = vars(nn.Module())
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute not in internals:
                yield from _values(f"{name}.{attribute}" if name else attribute, value)


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


def check_meta(subject: Subject) -> str:
    info = subject.architecture.info
    for preset, config in info.presets.items():
        _built_on_meta(subject, config, f"preset {preset!r}")
    model = _built_on_meta(subject, subject.config, "the model").eval()
    here, there = _described(subject.build()), _described(model)
    for name in here.keys() | there.keys():
        if here.get(name) != there.get(name):
            raise Fault(
                f"{name!r} is {there.get(name, 'missing')} on the meta device and {here.get(name, 'missing')} on "
                f"{subject.device}: build has to make the same model wherever it is"
            )
    B, T, V = 2, subject.T, subject.V
    try:
        with torch.device("meta"), torch.no_grad():
            logits = model(torch.zeros(B, T, dtype=torch.int64))
    except Exception as error:
        raise Fault(
            f"on the meta device, where FLOPs are counted, the forward pass raised {raised(error)}: look for tensors "
            "kept on another device, and for values that are read (.item(), .tolist(), .numpy(), if on a tensor)"
        ) from error
    if logits.shape != (B, T, V) or not logits.is_meta:
        raise Fault(
            f"on the meta device the logits are {(*logits.shape,)} on {logits.device}, and {(B, T, V)} there is what "
            "is asked for"
        )
    return f"{len(there)} tensors, as on {subject.device}, and presets {', '.join(info.presets)}"


def _built_on_meta(subject: Subject, config: ModelConfig, what: str) -> nn.Module:
    try:
        with torch.device("meta"):
            model = subject.architecture.build(config)
    except ArchbenchError as error:
        raise Fault(
            f"{what} cannot be built on the meta device, where parameters are counted: {raised(error)}. Where "
            "it can be built on a CPU, look for values that build reads: there tensors have shapes alone"
        ) from error
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not tensor.is_meta:
            raise Fault(
                f"{name!r} of {what} is on {tensor.device} although it was built under torch.device('meta'): name no "
                "device, and make tensors by torch's functions, not from NumPy's arrays"
            )
    return model


def _described(model: nn.Module) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of every parameter and buffer, under each of its names."""
    tensors = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return {name: ((*tensor.shape,), dtype_name(tensor)) for name, tensor in tensors}


SAVE_LOAD = Check(
    "save_load",
    "A run is resumed, and weights are passed on, as a state_dict: what is not in it is lost with them.",
    check_save_load,
    needs=("logits",),
)

META = Check(
    "meta",
    "Parameters and FLOPs are counted on the meta device, where the largest model costs nothing: what is counted there "
    "has to be what runs here.",
    check_meta,
    needs=("logits",),
)
