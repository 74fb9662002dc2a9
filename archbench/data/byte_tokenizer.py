"""What a tokenizer is, and the simplest one: bytes. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from archbench.data.documents import utf8
from archbench.files.seal import sealed
from archbench.files.writing import write_text

SAVED_AS = "archbench_tokenizer.json"
"""The file in which a saved tokenizer's folder names it."""


class Tokenizer(Protocol):
    """Text to token ids and back.

    Attributes:
        name: the specification it was loaded by, as in ``bpe:1024``.
        vocab_size: V; every id is below it, including the separator.
        lossless: whether the tokens of *any* text spell its bytes. If False, they may still spell those of a given
            text: :func:`archbench.data.dataset.prepare` checks.
        separator: id of the token between documents, from which a document's first token is predicted. No text
            encodes to it, except if it is a file's ``<unk>``, the last resort without an end-of-text token.
        is_linear: whether its work and memory are known to be in proportion to the text, whatever the text.
        fingerprint: changes if the ids of some text may change; part of the cache's key.
    """

    @property
    def name(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def lossless(self) -> bool: ...
    @property
    def separator(self) -> int: ...
    @property
    def is_linear(self) -> bool: ...
    @property
    def fingerprint(self) -> str: ...

    def encode(self, text: str) -> npt.NDArray[np.int64]:
        """Token ids, shape (N,); nothing is added, and special tokens are ordinary text.

        Raises:
            DataError: the text holds a lone surrogate, or the tokenizer fails at it.
        """
        ...

    def batches(self, blocks: Iterable[str]) -> Iterator[list[str]]:
        """A text, given in blocks that may end anywhere, in pieces whose tokens are together those of the whole.

        A batch of pieces has about :data:`archbench.data.text_cuts.BATCH` characters, unless the text cannot be cut.

        Raises:
            DataError: too long a text, or part of one, cannot be cut.
        """
        ...

    def encode_batch(self, pieces: Sequence[str]) -> npt.NDArray[np.int64]:
        """The tokens of pieces that follow each other, as :meth:`encode`."""
        ...

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer]) -> str:
        """Text of the ids, without separators; bytes that are not UTF-8 become U+FFFD."""
        ...

    def token_bytes(self) -> tuple[bytes, ...] | None:
        """The bytes of each of the V ids (none for the separator), or None if tokens have no fixed bytes."""
        ...

    def save(self, folder: Path) -> None:
        """Write the files that ``saved:FOLDER`` is loaded from."""
        ...


class ByteTokenizer:
    """One token a byte: V = 257, ids 0 to 255 are the bytes, 256 is the separator."""

    name = "byte"
    vocab_size = 257
    lossless = True
    separator = 256
    is_linear = True
    fingerprint = "byte"

    def encode(self, text: str) -> npt.NDArray[np.int64]:
        return np.frombuffer(utf8(text, "text"), dtype=np.uint8).astype(np.int64)

    def batches(self, blocks: Iterable[str]) -> Iterator[list[str]]:
        return ([block] for block in blocks)

    def encode_batch(self, pieces: Sequence[str]) -> npt.NDArray[np.int64]:
        return self.encode("".join(pieces))

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer]) -> str:
        return bytes(int(i) for i in ids if i != self.separator).decode("utf-8", errors="replace")

    def token_bytes(self) -> tuple[bytes, ...]:
        return (*(bytes([i]) for i in range(256)), b"")

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / SAVED_AS, sealed({"name": self.name}, indent=None))
