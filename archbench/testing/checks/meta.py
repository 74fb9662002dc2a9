"""On the meta device, where parameters and FLOPs are counted, the model has the same shapes as anywhere else."""

from __future__ import annotations

import torch
from torch import nn

from archbench.config import ModelConfig
from archbench.errors import ArchbenchError
from archbench.testing.checks.logits import dtype_name
from archbench.testing.evaluation import Fault, check
from archbench.testing.plugin_lines import raised
from archbench.testing.subject import Subject


@check(needs=("logits",))
def check_meta(subject: Subject) -> str:
    """Parameters and FLOPs are counted on the meta device, where the largest model costs nothing: what is counted there
    has to be what runs here."""
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
