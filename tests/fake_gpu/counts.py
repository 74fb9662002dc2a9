"""What the host asks of a GPU, counted by the libraries that stand in for CUDA's."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Callable
from dataclasses import astuple, dataclass

_LIBRARY = ctypes.CDLL("libcudart.so.13")
_CAPTURE = ctypes.CDLL(None)  # stream_capture.c: pytest loads it, and preloading.preload() for a script
_FIELDS = 16


@dataclass(frozen=True)
class Counts:
    """Calls of one stretch of work, in the order in which the library numbers them; graphs and what they hold last.

    What goes into a graph while a stream is capturing is not counted: the host does not ask for it yet.
    """

    launches: int  # torch's own kernels
    triton: int
    products: int  # cuBLAS
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
    graph_launches: int
    graph_nodes: int  # kernels, products, copies and memsets that the launched graphs hold, over all launches
    refused: int  # calls that a real GPU refuses while a stream is capturing

    @property
    def kernels(self) -> int:
        """What the host starts one by one: kernels, products and memsets."""
        return self.launches + self.triton + self.products + self.memsets

    @property
    def syncs(self) -> int:
        """Waits of the host for the GPU."""
        return self.stream_syncs + self.device_syncs + self.event_syncs

    @property
    def copies(self) -> int:
        return self.to_device + self.to_host + self.on_device

    def __sub__(self, other: Counts) -> Counts:
        return Counts(*(mine - theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))


def counts() -> Counts:
    """Counts since the last reset."""
    values, captures = (ctypes.c_long * _FIELDS)(), (ctypes.c_long * (4 + _FIELDS))()
    _LIBRARY.fc_get(values)
    _CAPTURE.capture_get(captures)
    graph_launches, graph_nodes, refused, float32_products, *captured = captures
    eager = [value - inside for value, inside in zip(values, captured, strict=True)]
    eager[2] += float32_products
    return Counts(*eager, graph_launches, graph_nodes, refused)


def reset() -> None:
    _LIBRARY.fc_reset()
    _CAPTURE.capture_reset()


def counted(work: Callable[[], object]) -> Counts:
    """What one call asks for; warm it up before, since the first one compiles and allocates."""
    reset()
    work()
    return counts()


def by_name() -> dict[str, int]:
    """Launches since the last reset by the kernel's mangled name, with those that went into graphs."""
    with tempfile.NamedTemporaryFile() as file:
        _LIBRARY.fc_dump(file.name.encode())
        lines = file.read().decode().splitlines()
    return {name: int(count) for count, name in (line.split("\t", 1) for line in lines)}
