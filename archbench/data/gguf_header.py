"""The header of a GGUF file, read within bounds: no length in it is believed before the file is known to be that long.

The package gguf reads headers too, but loops over an array of 2^63 entries that the file does not have.
Reference: ggml's docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LONGEST = 64 << 20
"""Bytes of a header; the largest vocabularies take a quarter of that."""
MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MOST_DIMENSIONS = 4
_ALIGNMENT = "general.alignment"


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies: its shape in torch's order, ggml's type, its first byte and number of bytes."""

    shape: tuple[int, ...]
    type: int
    offset: int
    n_bytes: int


def parsed(start: bytes, size: int, blocks: Mapping[int, tuple[int, int]]) -> tuple[dict[str, Any], dict[str, Stored]]:
    """Metadata and tensors of a file of ``size`` bytes that begins with ``start``.

    Args:
        start: the first :data:`LONGEST` bytes, or the whole file.
        blocks: ggml's type -> elements and bytes of a block.

    Raises:
        ValueError: what is wrong with the header, in words; also that a tensor lies outside the file or on another one.
    """
    header = _Header(start, whole=size <= len(start))
    if header.take(4) != MAGIC:
        raise ValueError(f"its magic bytes are {start[:4]!r}, not {MAGIC!r}")
    version = header.number("I")
    if version & 0xFFFF == 0:
        raise ValueError("its numbers have the byte order of another machine")
    if version not in _VERSIONS:
        raise ValueError(f"it is of version {version}, and archbench reads versions 2 and 3")
    n_tensors, n_keys = header.number("Q"), header.number("Q")
    metadata: dict[str, Any] = {}
    for _ in range(n_keys):  # each takes bytes, so the file's end is reached soon
        name = header.text()
        if name in metadata:
            raise ValueError(f"its key {name!r} is there twice")
        metadata[name] = header.value(header.number("I"))
    alignment = metadata.get(_ALIGNMENT, 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        raise ValueError(f"its {_ALIGNMENT} is {alignment!r}, and must be a power of two")
    found: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for _ in range(n_tensors):
        name = header.text()
        if name in found:
            raise ValueError(f"its tensor {name!r} is there twice")
        n_dimensions = header.number("I")
        if not 1 <= n_dimensions <= _MOST_DIMENSIONS:
            raise ValueError(f"its tensor {name!r} has {n_dimensions} dimensions")
        shape = tuple(header.number("Q") for _ in range(n_dimensions))
        found[name] = shape[::-1], header.number("I"), header.number("Q")
    data = -(-header.place // alignment) * alignment
    tensors = {name: _stored(name, *one, data, size, blocks) for name, one in found.items()}
    end, before = data, ""
    for name, one in sorted(tensors.items(), key=lambda item: item[1].offset):
        if one.offset < end:
            raise ValueError(f"its tensor {name!r} lies on {before!r}")
        end, before = one.offset + one.n_bytes, name
    return metadata, tensors


def _stored(
    name: str,
    shape: tuple[int, ...],
    kind: int,
    offset: int,
    data: int,
    size: int,
    blocks: Mapping[int, tuple[int, int]],
) -> Stored:
    if kind not in blocks:
        raise ValueError(f"its tensor {name!r} has the type {kind}, which the package gguf does not know")
    elements, n_bytes = blocks[kind]
    if 0 in shape or shape[-1] % elements:
        raise ValueError(f"its tensor {name!r} has the shape {shape}, in blocks of {elements}")
    total = math.prod(shape) // elements * n_bytes
    if offset + total > size - data:
        raise ValueError(f"its tensor {name!r} ends at byte {data + offset + total:,}, and the file has {size:,}")
    return Stored(shape, kind, data + offset, total)


class _Header:
    """Reads one thing after the other; whatever goes beyond the end is a ValueError."""

    def __init__(self, content: bytes, *, whole: bool) -> None:
        self.place = 0
        self._content = content
        self._whole = whole

    def take(self, length: int) -> bytes:
        end = self.place + length
        if end > len(self._content):
            raise ValueError("it ends within its header" if self._whole else f"its header exceeds {LONGEST >> 20} MiB")
        self.place, start = end, self.place
        return self._content[start:end]

    def number(self, form: str) -> Any:
        (value,) = struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))
        return value

    def text(self) -> str:
        content = self.take(self.number("Q"))
        try:
            return content.decode()
        except UnicodeDecodeError:
            raise ValueError(f"a text in it is not UTF-8, {content[:40]!r}") from None

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self._array(self.number("I"), self.number("Q"))
        return self.number(self._form(kind))

    def _array(self, kind: int, length: int) -> list[Any]:
        if kind == _STRING:
            return [self.text() for _ in range(length)]
        form = self._form(kind)
        content = self.take(struct.calcsize(f"<{form}") * length)
        return [value for (value,) in struct.iter_unpack(f"<{form}", content)]

    def _form(self, kind: int) -> str:
        if kind not in _FORMATS:
            raise ValueError(f"a value in it has the type {kind}, which archbench does not read")
        return _FORMATS[kind]
