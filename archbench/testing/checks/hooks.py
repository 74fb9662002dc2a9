"""The hooks are usable: ``describe`` is cheap and constant, ``build`` makes models that share nothing."""

from __future__ import annotations

import time

from torch import nn

from archbench.config import ModelConfig
from archbench.errors import ConfigError
from archbench.testing.evaluation import Fault, and_more, check
from archbench.testing.subject import Subject

CHEAP_SECONDS = 0.5
"""Most that ``describe()`` may take, which only returns what is written down: 10,000 times what it needs."""


@check(gate=True)
def check_hooks(subject: Subject) -> str:
    """A run builds many models from one plugin and reads their configuration: no measurement shows what they share or
    get wrong there."""
    presets = _check_describe(subject)
    model, again = subject.build(), subject.build()
    if again is model:
        raise Fault(
            "build returned the same module twice: it has to make a new one at each call, or a second run would start "
            "from the weights that the first has trained"
        )
    parameters = dict(model.named_parameters())
    if not parameters:
        raise Fault(
            "the model has no parameters, so there is nothing to train: make tensors nn.Parameter, and keep modules as "
            "attributes or in nn.ModuleList; those in a plain list are not seen"
        )
    homes = {tensor.data_ptr() for tensor in parameters.values() if tensor.numel()}
    for name, tensor in again.named_parameters():
        if tensor.numel() and tensor.data_ptr() in homes:
            raise Fault(
                f"two models from build share the memory of parameter {name!r}, so training one changes the other: "
                "make parameters within build, not once for all"
            )
    _check_registered(model)
    _check_config(model, subject.config)
    return f"presets {', '.join(presets)}"


def _check_describe(subject: Subject) -> list[str]:
    """The presets' names."""
    info = subject.architecture.info
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        again = subject.architecture.describe()
        seconds.append(time.perf_counter() - start)
        for part in ("name", "summary", "paper", "config", "presets"):
            first, second = getattr(info, part), getattr(again, part)
            if first != second:
                hint = ": define the class once, at module level" if part == "config" else ""
                raise Fault(f"describe() gives another {part} at each call, {first!r} and then {second!r}{hint}")
    if min(seconds) > CHEAP_SECONDS:
        raise Fault(
            f"describe() took {min(seconds):.2g} s, and 'archbench list' asks every plugin: build no model there, and "
            "read no file"
        )
    bare = [name for name, field in info.config.model_fields.items() if not (field.description or "").strip()]
    if bare:
        raise Fault(
            f"{info.config.__name__}.{bare[0]} has no description{and_more(bare)}, so 'archbench show' cannot explain "
            'it: write Field(..., description="…, with its unit")'
        )
    for name, preset in info.presets.items():
        try:
            preset.override()
        except ConfigError as error:
            raise Fault(f"preset {name!r} is not valid by its own config type: {error}") from error
    return list(info.presets)


def _check_registered(model: nn.Module) -> None:
    """No module or parameter is kept where torch does not look: in a plain list, tuple or dict."""
    known = {*map(id, model.modules()), *map(id, model.parameters())}
    listed = [*map(id, model.parameters())]
    if len(listed) > len({*listed}):
        twice = next(name for name, parameter in model.named_parameters() if listed.count(id(parameter)) > 1)
        raise Fault(
            f"model.parameters() gives {twice} more than once, so it is counted and trained twice: leave parameters() "
            "and named_parameters() to torch, which gives a shared parameter once"
        )
    for name, module in model.named_modules():
        for own, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in known:
                raise Fault(
                    f"model.parameters() leaves out {name + '.' if name else ''}{own}, a parameter of one of its "
                    "modules, so it is neither trained nor counted: leave parameters() and named_parameters() to torch"
                )
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute.startswith("_") or not isinstance(value, list | tuple | dict):
                continue
            for item in value.values() if isinstance(value, dict) else value:
                if isinstance(item, nn.Module | nn.Parameter) and id(item) not in known:
                    path = f"{name}.{attribute}" if name else attribute
                    kind = "modules" if isinstance(item, nn.Module) else "parameters"
                    raise Fault(
                        f"model.{path} is a plain {type(value).__name__} of {kind}, where torch does not look: they "
                        "are neither trained nor saved nor moved with the model. Make it an nn.ModuleList, "
                        "nn.ModuleDict or nn.ParameterList"
                    )


def _check_config(model: nn.Module, asked: ModelConfig) -> None:
    config = getattr(model, "config", None)
    if not isinstance(config, ModelConfig):
        raise Fault(
            "the model has no attribute config that is a ModelConfig: write self.config = config in its __init__, for "
            "decoding reads vocab_size and context_length there"
        )
    if config != asked:
        kept, wanted = dict(config), dict(asked)
        fields = [name for name in wanted if kept.get(name) != wanted[name]]
        detail = f"in its {fields[0]}, {kept.get(fields[0])!r} for {wanted[fields[0]]!r}" if fields else "in its type"
        raise Fault(
            f"model.config differs from what build was given {detail}: keep that one, or another model is measured "
            "than was asked for"
        )
