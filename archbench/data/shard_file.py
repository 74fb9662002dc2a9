"""A file of tokens that another project has written: its header, and what is wrong with it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from archbench.data.local_text import FileDocument, opened
from archbench.data.token_stream import TokenArray
from archbench.errors import DataError

SUFFIXES = (".bin", ".npy")

HEADER = 256 * 4
"""Bytes of the header of a ``.bin``: 256 int32. The first three are magic, version and number of tokens."""
KINDS: dict[tuple[int, int], np.dtype[Any]] = {(20240520, 1): np.dtype("<u2"), (20240801, 7): np.dtype("<u4")}
"""(magic, version) -> tokens: llm.c's for GPT-2, also modded-nanogpt's, and for Llama 3 (its data_common.py)."""

READ = 4 << 20
"""Bytes that are read at once."""


@dataclass(frozen=True, slots=True)
class ShardFile:
    """Tokens in one file, shape (n_tokens,), after a header of ``offset`` bytes."""

    file: FileDocument
    offset: int
    n_tokens: int
    dtype: np.dtype[Any]

    def tokens(self) -> TokenArray:
        """Memory-mapped; the file must be as it was when it was listed.

        Raises:
            DataError: it cannot be read, or has changed.
        """
        with opened(self.file) as file:
            # np.asarray: a slice of a memmap takes five times the memory of one of an array
            return np.asarray(np.memmap(file, self.dtype, "r", self.offset, (self.n_tokens,)))

    def read(self, vocab_size: int) -> Iterator[TokenArray]:
        """All tokens, a few mebibytes at a time, read and not mapped.

        Raises:
            DataError: an id has no place in the vocabulary; the file changes, or cannot be read.
        """
        done = 0
        with opened(self.file) as file:
            file.seek(self.offset)
            while done < self.n_tokens:
                size = min(READ // self.dtype.itemsize, self.n_tokens - done)
                tokens = np.frombuffer(file.read(size * self.dtype.itemsize), self.dtype)
                if len(tokens) < size:
                    raise damaged(self.file, f"it ends after {done + len(tokens):,} of its {self.n_tokens:,} tokens")
                if tokens.max() >= vocab_size:
                    place = int(np.argmax(tokens >= vocab_size))
                    cause = (
                        f"its token {done + place:,} has the id {tokens[place]}, and the tokenizer {vocab_size:,} ids"
                    )
                    step = "Name the tokenizer that the tokens were made with, or its number of ids as ids:V"
                    raise DataError(f"file {self.file.path!r}", cause, step)
                done += size
                yield tokens


def open_shard(file: FileDocument) -> ShardFile:
    """Read and check the header of a ``.bin`` or ``.npy``.

    Raises:
        DataError: it is no such file, or is longer or shorter than its header says.
    """
    with opened(file) as content:
        read = _numpy_header if file.path.endswith(".npy") else _llm_c_header
        shard = read(content, file)
    expected = shard.offset + shard.n_tokens * shard.dtype.itemsize
    if file.n_bytes != expected:
        what = "truncated" if file.n_bytes < expected else "longer than it says"
        cause = f"it is {what}: {shard.n_tokens:,} tokens take {expected:,} bytes, and it has {file.n_bytes:,}"
        raise damaged(file, cause)
    if not shard.n_tokens:
        raise damaged(file, "it has no token")
    return shard


def _llm_c_header(content: BinaryIO, file: FileDocument) -> ShardFile:
    header = content.read(HEADER)
    if len(header) < HEADER:
        raise damaged(file, f"it is truncated: a header has {HEADER} bytes, and it {len(header)}")
    magic, version, n_tokens = struct.unpack_from("<3i", header)
    dtype = KINDS.get((magic, version))
    if dtype is None:
        known = " or ".join(f"{magic} and {version}" for magic, version in KINDS)
        cause = f"its header begins with {magic} and {version}, not with {known} (magic, version)"
        step = (
            "Give shards as llm.c and modded-nanogpt write them; tokens without a header, as nanoGPT's, are saved as "
            '.npy by numpy.save("text_train_0.npy", numpy.fromfile("train.bin", numpy.uint16))'
        )
        raise DataError(f"file {file.path!r}", cause, step)
    if n_tokens < 0:
        raise damaged(file, f"its header gives it {n_tokens} tokens")
    return ShardFile(file, HEADER, n_tokens, dtype)


def _numpy_header(content: BinaryIO, file: FileDocument) -> ShardFile:
    try:
        version = np.lib.format.read_magic(content)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, written = read(content)
    except Exception as error:  # noqa: BLE001  numpy reads it with Python's tokenizer, which raises errors of its own
        raise damaged(file, f"it is no array of numpy ({' '.join(str(error).split())[:200]})") from None
    dtype = next((one for one in KINDS.values() if one == written), None)
    if len(shape) != 1 or dtype is None:
        step = "Save tokens as one dimension of uint16 or uint32"
        raise DataError(f"file {file.path!r}", f"it holds {written} of shape {shape}", step)
    return ShardFile(file, content.tell(), shape[0], dtype)


def damaged(file: FileDocument, cause: str) -> DataError:
    return DataError(f"file {file.path!r}", cause, "Fetch or make this shard again")
