"""On the meta device, where parameters and FLOPs are counted, the model has the same shapes as anywhere else."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from archbench.config import ModelConfig
from archbench.errors import ArchbenchError, DeviceError
from archbench.measure.meta_device import meta_device
from archbench.measure.shape_runs import run_for_shapes
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

    def run(call: Callable[[Tensor], Tensor], trained: list[Tensor], tokens: Tensor) -> Tensor:
        with torch.no_grad():
            return call(tokens)

    try:
        logits, kind, failed = run_for_shapes(model, B, T, run)
    except DeviceError as error:
        raise Fault(
            "on the meta device, where FLOPs are counted, the forward pass raised "
            f"{raised(error.__cause__ or error)}: look for tensors kept on another device, and for values that are "
            "read (.item(), .tolist(), .numpy(), if on a tensor)"
        ) from error
    if logits.shape != (B, T, V) or logits.device.type != ("meta" if kind == "meta" else "cpu"):
        raise Fault(
            f"on the meta device the logits are {(*logits.shape,)} on {logits.device}, and {(B, T, V)} there is what "
            "is asked for"
        )
    if failed:
        subject.note(f"on the meta device the forward pass raises {raised(failed[0])}; it runs on {kind} tensors")
    return f"{len(there)} tensors, as on {subject.device}, and presets {', '.join(info.presets)}"


def _built_on_meta(subject: Subject, config: ModelConfig, what: str) -> nn.Module:
    try:
        with meta_device():
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
