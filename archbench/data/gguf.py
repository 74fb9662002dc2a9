"""GGUF, llama.cpp's format: one file with a model's metadata, its tokenizer and its weights. No torch here.

The package ``gguf`` (the extra of that name) knows the types of tensors and dequantises their blocks.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from archbench.data.gguf_header import LONGEST, MAGIC, Stored, parsed
from archbench.errors import CheckpointError
from archbench.files.loader import open_regular


@dataclass(frozen=True)
class GGUF:
    """A file whose header is read, and whose tensors are all there.

    Attributes:
        path: the file.
        metadata: every key, as plain Python values and lists.
        tensors: by llama.cpp's names.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, Stored]

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """A tensor as float32, dequantised, in memory of its own.

        Raises:
            CheckpointError: the package gguf cannot dequantise its type.
        """
        gguf, stored = gguf_package(self.path), self.tensors[name]
        kind = gguf.GGMLQuantizationType(stored.type)
        rows = stored.shape[:-1]
        data = np.memmap(self.path, np.uint8, "r", stored.offset, (*rows, stored.n_bytes // math.prod(rows)))
        try:
            values = gguf.quants.dequantize(np.asarray(data), kind)
        except NotImplementedError:
            cause = f"it is of type {kind.name}, which the package gguf does not dequantise"
            step = "Use F32, F16, BF16, Q8_0, Q4_0, Q4_1 or a K-quant"
            raise CheckpointError(f"weights {self.path}, tensor {name}", cause, step) from None
        return np.array(values, dtype=np.float32).reshape(stored.shape)


def is_gguf(path: Path) -> bool:
    """Whether ``path`` is a GGUF file, by its name or its first bytes."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return path.suffix == ".gguf" or file.read(len(MAGIC)) == MAGIC


def read_gguf(path: Path) -> GGUF:
    """The file's header; read once per process while the file stays the same.

    Raises:
        CheckpointError: the file does not exist, is not GGUF, has another byte order, is damaged or one part of
            several; or the package gguf is not installed.
    """
    try:
        facts = path.stat()
    except OSError as error:
        raise CheckpointError(f"weights {path}", f"it cannot be read ({error.strerror})", "Check the path") from None
    return _read(path, facts.st_mtime_ns, facts.st_size)


@functools.lru_cache(maxsize=1)
def _read(path: Path, _changed: int, size: int) -> GGUF:
    gguf = gguf_package(path)
    blocks = {int(kind): sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    try:
        with open_regular(path) as file:
            metadata, tensors = parsed(file.read(LONGEST), size, blocks)
    except (OSError, ValueError) as error:
        step = "Get the file again: a download may have been cut short. Or try a newer reader: pip install -U gguf"
        raise CheckpointError(f"weights {path}", f"it cannot be read as GGUF ({error})", step) from None
    if (parts := metadata.get("split.count", 1)) != 1:
        raise CheckpointError(
            f"weights {path}", f"it is one of {parts} parts", "Join them first: llama-gguf-split --merge PART-1 WHOLE"
        )
    return GGUF(path, metadata, tensors)


def gguf_package(path: Path) -> Any:
    """The package ``gguf``, imported only when a file is read.

    Raises:
        CheckpointError: it is not installed.
    """
    try:
        import gguf
        import gguf.quants
    except ImportError:
        cause = "reading a GGUF file needs the package gguf"
        raise CheckpointError(f"weights {path}", cause, "Run: pip install 'archbench[gguf]'") from None
    return gguf
