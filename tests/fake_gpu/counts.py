"""What the host asks of a GPU, counted by the libraries that stand in for CUDA's."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Callable
from dataclasses import astuple, dataclass

_LIBRARY = ctypes.CDLL("libcudart.so.13")


@dataclass(frozen=True)
class Counts:
    """Calls of one stretch of work, in the order in which the library numbers them."""

    launches: int  # torch's own kernels
    triton: int
    products: int  # cuBLAS, in 16 bits: those in float32 are among the others
    to_device: int
    to_host: int
    on_device: int
    memsets: int
    stream_syncs: int
    device_syncs: int
    events: int
    event_syncs: int
    mallocs: int
    tensor_maps: int
    others: int
    bytes_to_device: int
    bytes_to_host: int

    @property
    def kernels(self) -> int:
        """All that the GPU would be asked to start: kernels, products and memsets."""
        return self.launches + self.triton + self.products + self.memsets

    @property
    def syncs(self) -> int:
        """Waits of the host for the GPU."""
        return self.stream_syncs + self.device_syncs + self.event_syncs

    def __sub__(self, other: Counts) -> Counts:
        return Counts(*(mine - theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))


def counts() -> Counts:
    """Counts since the last reset."""
    values = (ctypes.c_long * 16)()
    _LIBRARY.fc_get(values)
    return Counts(*values)


def counted(work: Callable[[], object]) -> Counts:
    """What one call asks for; warm it up before, since the first one compiles and allocates."""
    _LIBRARY.fc_reset()
    work()
    return counts()


def by_name() -> dict[str, int]:
    """Launches since the last reset by the kernel's mangled name."""
    with tempfile.NamedTemporaryFile() as file:
        _LIBRARY.fc_dump(file.name.encode())
        lines = file.read().decode().splitlines()
    return {name: int(count) for count, name in (line.split("\t", 1) for line in lines)}
