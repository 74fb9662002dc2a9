"""Building a model while its parameters are counted: what no machine holds ends early, not with the machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from archbench.errors import ConfigError, ResourceError
from archbench.measure import machine
from archbench.presentation.quantities import quantity

MOST_TENSORS = 80_000
"""Parameters and buffers of one model. The published model with the most, 60 layers of 384 experts, has 70,000."""


@contextmanager
def watched_growth(culprit: str) -> Iterator[None]:
    """Within this context, modules that are built may have :data:`MOST_TENSORS` tensors, and as many bytes as the
    device that holds them; on the meta device, any number of bytes.

    Raises:
        ConfigError: more tensors.
        ResourceError: more bytes, with the number that the machine has.
    """
    from torch.nn.modules import module

    seen: set[int] = set()
    filled: dict[Any, int] = {}

    def count(_: object, name: str, tensor: Any) -> None:
        if tensor is None or id(tensor) in seen:
            return
        seen.add(id(tensor))
        if len(seen) > MOST_TENSORS:
            cause = f"it has more than {MOST_TENSORS:,} parameters and buffers"
            raise ConfigError(culprit, cause, "Give it fewer layers or experts")
        if tensor.device.type in ("cpu", "cuda"):
            filled[tensor.device] = filled.get(tensor.device, 0) + tensor.nbytes
            check_room(culprit, "its weights alone take", filled[tensor.device], str(tensor.device))

    hooks = [
        module.register_module_parameter_registration_hook(count),
        module.register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def check_room(culprit: str, what: str, needed: float, device: str) -> None:
    """Refuse what needs more bytes than the device has.

    Args:
        what: the subject and verb of the cause: "its weights alone take".

    Raises:
        ResourceError: naming both numbers.
    """
    there = machine.memory_bytes(device)
    if needed > there:
        cause = f"{what} {quantity(needed, 'B')}, and {device} has {quantity(there, 'B')}"
        raise ResourceError(culprit, cause, "Lower the batch size, the context or the preset, or use a larger machine")
