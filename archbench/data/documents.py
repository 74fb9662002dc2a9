"""Documents and corpora: text before it becomes tokens. No torch here."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from archbench.errors import DataError

BLOCK = 1 << 20
"""Most bytes of a text that are read at once."""


class Document(Protocol):
    """A self-contained text: a play, a file, a row of a data set. It need not be in memory.

    Attributes:
        n_bytes: of its UTF-8, by which bits per byte divides.
        text: all of it.
    """

    @property
    def name(self) -> str: ...
    @property
    def n_bytes(self) -> int: ...
    @property
    def text(self) -> str: ...

    def read(self, start: int, end: int) -> bytes:
        """Some of its bytes."""
        ...

    def part(self, start: int, end: int) -> Document:
        """The document between two bytes that begin characters."""
        ...

    def blocks(self) -> Iterator[bytes]:
        """Its bytes, at most :data:`BLOCK` at a time.

        Raises:
            DataError: the text holds a lone surrogate, which has no bytes, or has changed since it was first read.
        """
        ...


@dataclass(frozen=True)
class TextDocument:
    """A document in memory."""

    name: str
    text: str

    @property
    def n_bytes(self) -> int:
        return len(self._bytes())

    def read(self, start: int, end: int) -> bytes:
        return self._bytes()[start:end]

    def part(self, start: int, end: int) -> TextDocument:
        return TextDocument(self.name, self.read(start, end).decode("utf-8"))

    def blocks(self) -> Iterator[bytes]:
        data = self._bytes()
        for start in range(0, len(data), BLOCK):
            yield data[start : start + BLOCK]

    def _bytes(self) -> bytes:
        return utf8(self.text, f"document {self.name!r}")


def text_blocks(document: Document) -> Iterator[str]:
    """The document's text, a block at a time."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    for block in document.blocks():
        if text := decoder.decode(block):
            yield text
    decoder.decode(b"", final=True)


@dataclass(frozen=True)
class Corpus:
    """Documents in disjoint splits: ``train``, ``validation`` and, in some corpora, ``test``; none if nobody knows the
    text of the tokens.

    Attributes:
        sha256: hex digest of every split's documents, in order; it depends on boundaries, not on names.
        licence: SPDX identifier or words; ``"unknown"`` for the user's own text.
        source: where the text comes from.
        held_out: which part of it the validation split is, in words.
    """

    name: str
    splits: Mapping[str, Sequence[Document]]
    sha256: str
    licence: str
    source: str
    held_out: str = "the validation split"

    def n_bytes(self, split: str) -> int:
        return sum(document.n_bytes for document in self.splits[split])

    def blocks(self, split: str) -> Iterator[bytes]:
        """The documents of ``split``, concatenated, as raw bytes, at most :data:`BLOCK` at a time."""
        return (block for document in self.splits[split] for block in document.blocks())

    def to_bytes(self, split: str, most: int | None = None) -> bytes:
        """The documents of ``split``, concatenated, as raw bytes; at most the first ``most``."""
        found, room = [], self.n_bytes(split) if most is None else most
        for block in self.blocks(split):
            found.append(block[:room])
            room -= len(found[-1])
            if not room:
                break
        return b"".join(found)


def make_corpus(
    name: str,
    splits: Mapping[str, Sequence[Document]],
    *,
    licence: str,
    source: str,
    held_out: str = "the validation split",
) -> Corpus:
    """A corpus with its checksum; reads all of its text.

    Raises:
        DataError: a lone surrogate, a text that has changed, or no text to train or validate on.
    """
    digest = hashlib.sha256()
    for split, documents in sorted(splits.items()):
        digest.update(f"{split}:{len(documents)};".encode())
        for document in documents:
            digest.update(f"{document.n_bytes};".encode())
            for block in document.blocks():
                digest.update(block)
    for split in ("train", "validation"):
        if not any(document.n_bytes for document in splits[split]):
            raise DataError(f"corpus {name!r}", f"its {split} split is empty", "Give a corpus with text in every split")
    return Corpus(name, splits, digest.hexdigest(), licence, source, held_out)


def utf8(text: str, culprit: str) -> bytes:
    """``text`` as UTF-8.

    Raises:
        DataError: the text holds a lone surrogate; says where.
    """
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = f"U+{ord(text[error.start]):04X}"
        raise DataError(
            culprit,
            f"character {error.start} is the lone surrogate {code}, which no UTF-8 text can hold",
            "Remove it, or decode the original bytes again without errors='surrogateescape' or 'surrogatepass'",
        ) from None
