"""GGUF, llama.cpp's format: one file with a model's metadata, its tokenizer and its weights. No torch here.

The layout is that of ggml's docs/gguf.md, versions 2 and 3. Block formats and their arithmetic are those of the package
``gguf`` (the extra of that name); the header is read here, because that package takes seconds and 160 MiB for the
strings of a tokenizer, at every opening, and says of a file cut short only that an index is out of range.
"""

from __future__ import annotations

import functools
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from archbench.errors import CheckpointError

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_DAMAGED = "Get the file again: a download may have been cut short"


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies: its shape as torch writes it, ggml's type, and its bytes in the file."""

    shape: tuple[int, ...]
    type: int
    begin: int
    end: int


@dataclass(frozen=True)
class GGUF:
    """A file whose header was read whole, and whose tensors are all there.

    Attributes:
        path: the file.
        metadata: every key, as plain Python values and lists.
        tensors: by llama.cpp's names.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, Stored]

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """A tensor as float32, dequantised; its memory is its own.

        Raises:
            CheckpointError: a type that the package gguf cannot dequantise.
        """
        gguf, stored = _package(self.path), self.tensors[name]
        kind = gguf.GGMLQuantizationType(stored.type)
        rows = stored.shape[:-1]
        data = np.memmap(self.path, np.uint8, "r", stored.begin, (*rows, (stored.end - stored.begin) // _product(rows)))
        try:
            values = gguf.quants.dequantize(np.asarray(data), kind)
        except NotImplementedError:
            cause = f"it is of type {kind.name}, which the package gguf {_version()} does not dequantise"
            raise CheckpointError(
                f"weights {self.path}, tensor {name}", cause, "Use F32, F16, BF16, Q8_0, Q4_0, Q4_1 or a K-quant"
            ) from None
        return np.array(values, dtype=np.float32).reshape(stored.shape)


def is_gguf(path: Path) -> bool:
    """Whether it is a file that is GGUF by its name or its first bytes."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return path.suffix == ".gguf" or file.read(len(MAGIC)) == MAGIC


def read_gguf(path: Path) -> GGUF:
    """The file's header; read once a process for as long as the file stays the same.

    Raises:
        CheckpointError: not there, no GGUF, of another version or byte order, damaged, one part of several, or the
            package gguf is not installed.
    """
    try:
        facts = path.stat()
    except OSError as error:
        raise CheckpointError(f"weights {path}", f"it cannot be read ({error.strerror})", "Check the path") from None
    return _read(path, facts.st_mtime_ns, facts.st_size)


@functools.lru_cache(maxsize=1)
def _read(path: Path, _changed: int, size: int) -> GGUF:
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise CheckpointError(f"weights {path}", "its first bytes are not those of GGUF", "Check the path")
        header = _Header(path, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), len(MAGIC))
        try:
            version = header.scalar("I")
            if version not in _VERSIONS:
                swapped = " in the byte order of another machine" if version & 0xFFFF == 0 else ""
                cause = f"it is GGUF of version {version}{swapped}, and archbench reads 2 and 3, little-endian"
                raise CheckpointError(f"weights {path}", cause, "Convert the model anew with llama.cpp")
            n_tensors, n_keys = header.scalar("Q"), header.scalar("Q")
            metadata = {header.string(): header.value(header.scalar("I")) for _ in range(n_keys)}
            infos = [header.tensor() for _ in range(n_tensors)]
            start = _aligned(header.offset, metadata.get("general.alignment", 32))
        except (struct.error, ValueError, TypeError, OverflowError, MemoryError) as error:
            raise _damaged(path, f"its header cannot be read to its end ({error})") from None
    if (parts := metadata.get("split.count", 1)) != 1:
        raise CheckpointError(
            f"weights {path}", f"it is one of {parts} parts", "Join them first: llama-gguf-split --merge PART-1 WHOLE"
        )
    tensors = {name: _stored(path, name, shape, kind, start + offset) for name, shape, kind, offset in infos}
    last = max((stored.end for stored in tensors.values()), default=start)
    if last > size:
        raise _damaged(path, f"it ends after {size:,} bytes, and its tensors after {last:,}")
    return GGUF(path, metadata, tensors)


class _Header:
    """Values one after the other."""

    def __init__(self, path: Path, data: mmap.mmap, offset: int) -> None:
        self.path = path
        self.data = data
        self.offset = offset

    def scalar(self, code: str) -> Any:
        form = struct.Struct("<" + code)
        (value,) = form.unpack_from(self.data, self.offset)
        self.offset += form.size
        return value

    def string(self) -> str:
        length = self.scalar("Q")
        content = self.data[self.offset : self.offset + length]
        if len(content) != length:
            raise ValueError("a text is longer than the file")
        self.offset += length
        return content.decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.scalar(_scalar(kind))
        kind, length = self.scalar("I"), self.scalar("Q")
        if kind == _STRING:
            return [self.string() for _ in range(length)]
        array = np.frombuffer(self.data, np.dtype(_scalar(kind)).newbyteorder("<"), length, self.offset)
        self.offset += array.nbytes
        return array.tolist()

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape, type, offset from where the tensors begin."""
        name = self.string()
        shape = tuple(self.scalar("Q") for _ in range(self.scalar("I")))[::-1]  # stored innermost first
        return name, shape, self.scalar("I"), self.scalar("Q")


def _scalar(kind: int) -> str:
    if kind not in _SCALARS:
        raise ValueError(f"a value is of the unknown type {kind}")
    return _SCALARS[kind]


def _stored(path: Path, name: str, shape: tuple[int, ...], kind: int, begin: int) -> Stored:
    gguf = _package(path)
    try:
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        cause = f"it is of type {kind}, which the package gguf {_version()} does not know"
        raise CheckpointError(f"weights {path}, tensor {name}", cause, "Try a newer one: pip install -U gguf") from None
    if not shape or 0 in shape or shape[-1] % block:
        raise _damaged(path, f"its tensor {name} has the shape {shape}, and its type blocks of {block}")
    return Stored(shape, kind, begin, begin + _product(shape) // block * size)


def _package(path: Path) -> Any:
    try:
        import gguf
        import gguf.quants
    except ImportError:
        cause = "reading a GGUF file needs the package gguf"
        raise CheckpointError(f"weights {path}", cause, "Run: pip install 'archbench[gguf]'") from None
    return gguf


def _version() -> str:
    from importlib.metadata import version

    return version("gguf")


def _aligned(offset: int, alignment: int) -> int:
    if alignment < 1:
        raise ValueError(f"an alignment of {alignment}")
    return -(-offset // alignment) * alignment


def _product(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _damaged(path: Path, cause: str) -> CheckpointError:
    return CheckpointError(f"weights {path}", cause, _DAMAGED)
